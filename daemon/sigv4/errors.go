package sigv4

import (
	"strings"

	"keymill/daemon/wire"
)

// The codes of refused requests. AWS's JSON services use these names; the query
// protocol has others for the same things.
const (
	codeMissing      = wire.MissingAuthenticationTokenException
	codeIncomplete   = wire.IncompleteSignatureException
	codeUnrecognized = wire.UnrecognizedClientException
	codeInvalid      = wire.InvalidSignatureException
)

// Refusals whose text is always the same. wire's errors are immutable.
var (
	errMissing      = wire.ErrorText(codeMissing, "Missing Authentication Token")
	errUnrecognized = wire.ErrorText(codeUnrecognized, "The security token included in the request is invalid.")
	errMismatch     = wire.ErrorText(codeInvalid, "The request signature we calculated does not match the signature you provided. "+
		"Check your AWS Secret Access Key and signing method. Consult the service documentation for details.")
	errPresigned = wire.ErrorText(codeIncomplete, "Query-string authentication (a presigned request) is not supported; "+
		"sign the request with the Authorization header.")
	errSignedHeaders = wire.ErrorText(codeIncomplete, "Authorization header's 'SignedHeaders' must be lower-case header names, "+
		"sorted, without repeats, separated by semicolons.")
	errContentHash = wire.ErrorText(codeInvalid, "The value of 'X-Amz-Content-Sha256' must be the lower-case hex SHA-256 of the body; "+
		"unsigned and streaming payloads are not supported.")
)

// maxEcho bounds what a refusal repeats of the request.
const maxEcho = 256

// echo renders bytes of a request for an error's text: printable ASCII only, at
// most maxEcho bytes, and without anything that could be a signature. Rather
// than trust the parameter's name in a header that did not parse, it removes
// every run of 32 and more hex digits.
func echo(b []byte) string {
	var sb strings.Builder
	for i := 0; i < len(b); {
		if sb.Len() >= maxEcho {
			sb.WriteString("...")
			break
		}
		n := i
		for n < len(b) && isHex(b[n]) {
			n++
		}
		if n-i >= 32 {
			sb.WriteString("[removed]")
			i = n
			continue
		}
		if n == i {
			n++
		}
		for ; i < n; i++ {
			c := b[i]
			if c < ' ' || c > '~' {
				c = '?'
			}
			sb.WriteByte(c)
		}
	}
	return sb.String()
}

func isHex(c byte) bool {
	return '0' <= c && c <= '9' || 'a' <= c && c <= 'f' || 'A' <= c && c <= 'F'
}
