package sigv4

import (
	"bytes"
	"slices"
)

// The canonical request is built in one pass into one buffer, from the views the
// request came with; package sigv4test has the plain version that the tests and
// the fuzz targets compare with.

const (
	lowerHex = "0123456789abcdef"
	upperHex = "0123456789ABCDEF"
)

// signedHeader is one name of the SignedHeaders list, as offsets into it, and
// where the request has it.
type signedHeader struct {
	start, end int32
	first      int32 // index of its first header in the request
	repeated   bool
}

// appendCanonicalRequest appends the canonical request, with the body's hash in
// bodyHash.
func (s *scratch) appendCanonicalRequest(dst []byte, r *Request, list []byte, bodyHash *[32]byte) []byte {
	dst = append(dst, r.Method...)
	dst = append(dst, '\n')
	dst = appendPath(dst, r.Path)
	dst = append(dst, '\n')
	if len(r.Query) > 0 {
		dst = s.appendQuery(dst, r.Query)
	}
	dst = append(dst, '\n')
	for i := range s.signed[:s.nsigned] {
		h := &s.signed[i]
		name := list[h.start:h.end]
		dst = append(dst, name...)
		dst = append(dst, ':')
		dst = appendValue(dst, r.Headers[h.first].Value)
		if h.repeated {
			for _, other := range r.Headers[h.first+1:] {
				if sameName(other.Name, name) {
					dst = append(dst, ',')
					dst = appendValue(dst, other.Value)
				}
			}
		}
		dst = append(dst, '\n')
	}
	dst = append(dst, '\n')
	dst = append(dst, list...)
	dst = append(dst, '\n')
	return appendHex(dst, bodyHash)
}

// appendPath appends the canonical form of a path as it was sent.
func appendPath(dst, path []byte) []byte {
	if len(path) <= 1 && (len(path) == 0 || path[0] == '/') {
		return append(dst, '/')
	}
	base := len(dst)
	for rest := path; len(rest) > 0; {
		seg := rest
		if i := bytes.IndexByte(rest, '/'); i >= 0 {
			seg, rest = rest[:i], rest[i+1:]
		} else {
			rest = nil
		}
		switch string(seg) {
		case "", ".":
		case "..":
			// Encoded segments hold no slash, so the last one starts the last segment.
			dst = dst[:base+max(bytes.LastIndexByte(dst[base:], '/'), 0)]
		default:
			dst = append(dst, '/')
			for _, c := range seg {
				dst = appendEncoded(dst, c)
			}
		}
	}
	if len(dst) == base || path[len(path)-1] == '/' {
		dst = append(dst, '/')
	}
	return dst
}

// param is one query parameter, encoded, as offsets into scratch.query.
type param struct {
	name, value, end int32
}

// appendQuery appends the canonical form of a query as it was sent. Its length
// is bounded by the caller, and with it the number of parameters.
func (s *scratch) appendQuery(dst, query []byte) []byte {
	enc, params := s.query[:0], s.params[:0]
	for len(query) > 0 {
		piece := query
		if i := bytes.IndexByte(query, '&'); i >= 0 {
			piece, query = query[:i], query[i+1:]
		} else {
			query = nil
		}
		if len(piece) == 0 {
			continue
		}
		name, value := piece, []byte(nil)
		if i := bytes.IndexByte(piece, '='); i >= 0 {
			name, value = piece[:i], piece[i+1:]
		}
		p := param{name: int32(len(enc))}
		enc = appendReencoded(enc, name)
		p.value = int32(len(enc))
		enc = appendReencoded(enc, value)
		p.end = int32(len(enc))
		params = append(params, p)
	}
	slices.SortFunc(params, func(a, b param) int {
		if c := bytes.Compare(enc[a.name:a.value], enc[b.name:b.value]); c != 0 {
			return c
		}
		return bytes.Compare(enc[a.value:a.end], enc[b.value:b.end])
	})
	for i, p := range params {
		if i > 0 {
			dst = append(dst, '&')
		}
		dst = append(dst, enc[p.name:p.value]...)
		dst = append(dst, '=')
		dst = append(dst, enc[p.value:p.end]...)
	}
	s.query, s.params = enc, params
	return dst
}

// appendReencoded decodes one query component and encodes it again.
func appendReencoded(dst, b []byte) []byte {
	for i := 0; i < len(b); i++ {
		c := b[i]
		if c == '%' && i+2 < len(b) && isHex(b[i+1]) && isHex(b[i+2]) {
			c = hexValue(b[i+1])<<4 | hexValue(b[i+2])
			i += 2
		}
		dst = appendEncoded(dst, c)
	}
	return dst
}

func hexValue(c byte) byte {
	switch {
	case c >= 'a':
		return c - 'a' + 10
	case c >= 'A':
		return c - 'A' + 10
	}
	return c - '0'
}

// appendEncoded percent-encodes everything outside RFC 3986's unreserved set.
func appendEncoded(dst []byte, c byte) []byte {
	if 'a' <= c && c <= 'z' || 'A' <= c && c <= 'Z' || '0' <= c && c <= '9' || c == '-' || c == '_' || c == '.' || c == '~' {
		return append(dst, c)
	}
	return append(dst, '%', upperHex[c>>4], upperHex[c&0xf])
}

// appendValue appends the canonical form of a header's value.
func appendValue(dst, v []byte) []byte {
	v = trimSpace(v)
	if !hasBlank(v) {
		return append(dst, v...)
	}
	space := false
	for _, c := range v {
		if c == '\n' || c == '\r' || space && c == ' ' {
			return appendFolded(dst, v)
		}
		space = c == ' '
	}
	return append(dst, v...)
}

// appendFolded is appendValue for values that change inside.
func appendFolded(dst, v []byte) []byte {
	for i := 0; i < len(v); {
		if !isSpace(v[i]) {
			dst = append(dst, v[i])
			i++
			continue
		}
		n, broken := i, false
		for ; n < len(v) && isSpace(v[n]); n++ {
			broken = broken || v[n] == '\n' || v[n] == '\r'
		}
		if broken {
			dst = append(dst, ' ')
			i = n
			continue
		}
		for ; i < n; i++ {
			if v[i] == ' ' && i+1 < n && v[i+1] == ' ' {
				continue
			}
			dst = append(dst, v[i])
		}
	}
	return dst
}

func isSpace(c byte) bool { return c == ' ' || c == '\t' || c == '\n' || c == '\r' }

func trimSpace(b []byte) []byte {
	for len(b) > 0 && isSpace(b[0]) {
		b = b[1:]
	}
	for len(b) > 0 && isSpace(b[len(b)-1]) {
		b = b[:len(b)-1]
	}
	return b
}
