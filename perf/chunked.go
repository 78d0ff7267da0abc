package perf

import (
	"bytes"
	"errors"
)

var errChunk = errors.New("answer's chunks are malformed")

// parseChunked parses a body in chunks (RFC 9112, section 7.1) at the beginning
// of b: the body, put together anew, and how many bytes of b it took, 0 while
// some are missing. Chunk extensions and trailers are refused.
func parseChunked(b []byte) (body []byte, length int, err error) {
	body = []byte{}
	for at := 0; ; {
		end := bytes.Index(b[at:], []byte("\r\n"))
		if end > 8 || end < 0 && len(b)-at > 9 {
			return nil, 0, errChunk
		}
		if end < 0 {
			return nil, 0, prefixOfSize(b[at:])
		}
		size, ok := parseHex(b[at : at+end])
		if !ok || len(body)+size > maxBody {
			return nil, 0, errChunk
		}
		at += end + 2
		if len(b) < at+size+2 {
			if missing := len(b) - at - size; missing == 1 && b[len(b)-1] != '\r' {
				return nil, 0, errChunk
			}
			return nil, 0, nil
		}
		if string(b[at+size:at+size+2]) != "\r\n" {
			return nil, 0, errChunk
		}
		if size == 0 {
			return body, at + 2, nil
		}
		body = append(body, b[at:at+size]...)
		at += size + 2
	}
}

// prefixOfSize is nil when b can be the beginning of a chunk's first line.
func prefixOfSize(b []byte) error {
	b, _ = bytes.CutSuffix(b, []byte("\r"))
	if _, ok := parseHex(b); !ok && len(b) > 0 {
		return errChunk
	}
	return nil
}

// parseHex parses a hexadecimal number of one to eight digits.
func parseHex(b []byte) (n int, ok bool) {
	if len(b) == 0 || len(b) > 8 {
		return 0, false
	}
	for _, c := range b {
		switch {
		case '0' <= c && c <= '9':
			c -= '0'
		case 'a' <= c|0x20 && c|0x20 <= 'f':
			c = c | 0x20 - 'a' + 10
		default:
			return 0, false
		}
		n = n<<4 | int(c)
	}
	return n, true
}
