package sigv4

import (
	"bytes"
	"strings"

	"keymill/daemon/wire"
)

const (
	algorithm  = "AWS4-HMAC-SHA256"
	terminator = "aws4_request"
)

// Bounds on what is parsed. Real requests stay far below: an Authorization
// header of the SDKs has about 250 bytes and signs at most a dozen headers.
const (
	maxAuthorization = 4096
	maxSigned        = 64
	maxAccessKeyID   = 128
	maxHeaders       = 256
	maxTarget        = 8192 // path and query, each
)

// authorization is a parsed Authorization header: views on it.
type authorization struct {
	credential    []byte // the whole, for error texts
	accessKeyID   []byte
	date          []byte
	region        []byte
	service       []byte
	terminator    []byte
	signedHeaders []byte
	signature     []byte
}

// parse reads the Authorization header's value. haveDate says whether the
// request has an X-Amz-Date: AWS lists a missing one together with the missing
// parameters.
func (a *authorization) parse(h []byte, haveDate bool) *wire.Error {
	if len(h) > maxAuthorization {
		return wire.NewError(codeIncomplete, "Authorization header is longer than %d bytes.", maxAuthorization)
	}
	h = trimSpace(h)
	name, rest := h, []byte(nil)
	if i := bytes.IndexByte(h, ' '); i >= 0 {
		name, rest = h[:i], trimSpace(h[i:])
	}
	if string(name) != algorithm {
		return wire.NewError(codeIncomplete, "Unsupported AWS 'algorithm': '%s'. Use '%s'.", echo(name), algorithm)
	}
	for more := len(rest) > 0; more; {
		pair := rest
		if i := bytes.IndexByte(rest, ','); i >= 0 {
			pair, rest = rest[:i], rest[i+1:]
		} else {
			more = false
		}
		pair = trimSpace(pair)
		eq := bytes.IndexByte(pair, '=')
		if eq < 0 || hasBlank(pair) {
			return wire.NewError(codeIncomplete,
				"'%s' not a valid key=value pair (missing equal-sign) in Authorization header: '%s'.", echo(pair), echo(h))
		}
		var field *[]byte
		switch string(pair[:eq]) {
		case "Credential":
			field = &a.credential
		case "SignedHeaders":
			field = &a.signedHeaders
		case "Signature":
			field = &a.signature
		default:
			return wire.NewError(codeIncomplete, "Authorization header has an unknown parameter '%s'. Authorization=%s", echo(pair[:eq]), echo(h))
		}
		if *field != nil {
			return wire.NewError(codeIncomplete, "Authorization header has parameter '%s' more than once. Authorization=%s", pair[:eq], echo(h))
		}
		*field = pair[eq+1:]
	}
	if len(a.credential) == 0 || len(a.signature) == 0 || len(a.signedHeaders) == 0 || !haveDate {
		return a.incomplete(h, haveDate)
	}
	return a.parseCredential()
}

// incomplete names everything that is missing, in AWS's words and order.
func (a *authorization) incomplete(h []byte, haveDate bool) *wire.Error {
	var sb strings.Builder
	for _, p := range []struct {
		name    string
		missing bool
	}{
		{"Credential", len(a.credential) == 0},
		{"Signature", len(a.signature) == 0},
		{"SignedHeaders", len(a.signedHeaders) == 0},
	} {
		if p.missing {
			sb.WriteString("Authorization header requires '" + p.name + "' parameter. ")
		}
	}
	if !haveDate {
		sb.WriteString("Authorization header requires existence of a 'X-Amz-Date' header. ")
	}
	return wire.NewError(codeIncomplete, "%sAuthorization=%s", sb.String(), echo(h))
}

func (a *authorization) parseCredential() *wire.Error {
	fields := [...]*[]byte{&a.accessKeyID, &a.date, &a.region, &a.service, &a.terminator}
	rest := a.credential
	for i, f := range fields {
		j := bytes.IndexByte(rest, '/')
		if last := i == len(fields)-1; last != (j < 0) || j == 0 || len(rest) == 0 {
			return wire.NewError(codeIncomplete,
				"Credential must have exactly 5 slash-delimited elements, e.g. keyid/date/region/service/term, got '%s'.", echo(a.credential))
		}
		if j < 0 {
			*f = rest
		} else {
			*f, rest = rest[:j], rest[j+1:]
		}
	}
	if len(a.accessKeyID) > maxAccessKeyID {
		return errUnrecognized
	}
	return nil
}

// decodeSignature reads the hex signature. Anything but 64 lower-case hex digits
// cannot match, and is left to be reported where a mismatch is.
func (a *authorization) decodeSignature(dst *[32]byte) bool {
	if len(a.signature) != 64 {
		return false
	}
	for i := range dst {
		hi, lo := unhex[a.signature[2*i]], unhex[a.signature[2*i+1]]
		if hi|lo > 0xf {
			return false
		}
		dst[i] = hi<<4 | lo
	}
	return true
}

// unhex maps lower-case hex digits to their value, everything else to 0xff.
var unhex = func() (t [256]byte) {
	for i := range t {
		t[i] = 0xff
	}
	for i, c := range []byte(lowerHex) {
		t[c] = byte(i)
	}
	return t
}()
