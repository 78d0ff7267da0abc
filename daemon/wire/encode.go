package wire

import (
	"encoding/base64"
	"math"
	"strconv"
	"unicode/utf8"
)

const hexDigits = "0123456789abcdef"

// appendString appends s as a JSON string. What is not UTF-8 becomes U+FFFD,
// so that the output is valid whatever s holds.
func appendString(dst []byte, s string) []byte {
	dst = append(dst, '"')
	for {
		n := plainPrefix(s)
		dst = append(dst, s[:n]...)
		if n == len(s) {
			return append(dst, '"')
		}
		c := s[n]
		size := 1
		switch {
		case c == '"' || c == '\\':
			dst = append(dst, '\\', c)
		case c == '\n':
			dst = append(dst, '\\', 'n')
		case c == '\r':
			dst = append(dst, '\\', 'r')
		case c == '\t':
			dst = append(dst, '\\', 't')
		case c < 0x20:
			dst = append(dst, '\\', 'u', '0', '0', hexDigits[c>>4], hexDigits[c&15])
		default:
			var r rune
			r, size = utf8.DecodeRuneInString(s[n:])
			dst = utf8.AppendRune(dst, r)
		}
		s = s[n+size:]
	}
}

func appendBlob(dst, b []byte) []byte {
	dst = append(dst, '"')
	dst = base64.StdEncoding.AppendEncode(dst, b)
	return append(dst, '"')
}

func blobLen(b []byte) int { return base64.StdEncoding.EncodedLen(len(b)) }

// maxTime bounds timestamps: the end of the year 9999. minTime is the start
// of the year 1.
const (
	maxTime = 253402300799.999
	minTime = -62135596800
)

// appendTime appends seconds with up to three decimals and no exponent.
func appendTime(dst []byte, t float64) []byte {
	if math.IsNaN(t) {
		t = 0
	}
	ms := int64(math.Round(min(max(t, minTime), maxTime) * 1000))
	if ms < 0 {
		dst = append(dst, '-')
		ms = -ms
	}
	dst = strconv.AppendInt(dst, ms/1000, 10)
	if f := ms % 1000; f != 0 {
		dst = append(dst, '.', '0'+byte(f/100))
		if f %= 100; f != 0 {
			dst = append(dst, '0'+byte(f/10))
			if f %= 10; f != 0 {
				dst = append(dst, '0'+byte(f))
			}
		}
	}
	return dst
}

func appendPairs(dst []byte, pairs []Pair) []byte {
	dst = append(dst, '{')
	for _, p := range pairs {
		dst = append(appendString(dst, p.Key), ':')
		dst = append(appendString(dst, p.Value), ',')
	}
	return closeObject(dst)
}

func appendPairLists(dst []byte, list [][]Pair) []byte {
	dst = append(dst, '[')
	for i, pairs := range list {
		if i > 0 {
			dst = append(dst, ',')
		}
		dst = appendPairs(dst, pairs)
	}
	return append(dst, ']')
}

func appendStrings(dst []byte, list []string) []byte {
	dst = append(dst, '[')
	for i, s := range list {
		if i > 0 {
			dst = append(dst, ',')
		}
		dst = appendString(dst, s)
	}
	return append(dst, ']')
}

func appendList[T any, P interface {
	*T
	AppendJSON([]byte) []byte
}](dst []byte, list []T) []byte {
	dst = append(dst, '[')
	for i := range list {
		if i > 0 {
			dst = append(dst, ',')
		}
		dst = P(&list[i]).AppendJSON(dst)
	}
	return append(dst, ']')
}

// closeObject ends an object whose members were each followed by a comma.
func closeObject(dst []byte) []byte {
	if dst[len(dst)-1] == ',' {
		dst[len(dst)-1] = '}'
		return dst
	}
	return append(dst, '}')
}

// reserve makes room for n more bytes. When dst has to move, its old array is
// wiped: answers with plaintext reserve their longest length first, so that
// no copy of it is left behind by a growing buffer.
func reserve(dst []byte, n int) []byte {
	if cap(dst)-len(dst) >= n {
		return dst
	}
	moved := make([]byte, len(dst), 2*cap(dst)+n)
	copy(moved, dst)
	clear(dst[:cap(dst)])
	return moved
}
