package perf

import (
	"bytes"
	"errors"
	"fmt"
)

// Bounds of an answer.
const (
	maxHead = 64 << 10
	maxBody = 64 << 20
)

// A Response is an HTTP answer, or what of one is there.
type Response struct {
	Status int
	Body   []byte // a view on the bytes that were parsed, unless it came in chunks; nil until complete
	Close  bool   // the server closes the connection after it

	// Len is the length of the whole answer, 0 while that is not known: while
	// its head is incomplete, or its chunks are.
	// The answer is complete once that many bytes are there.
	Len int
}

// Complete tells whether all of the answer was there.
func (r *Response) Complete(have int) bool { return r.Len > 0 && have >= r.Len }

var errHead = errors.New("answer's head is not HTTP/1.1")

// ParseResponse parses the HTTP/1.1 answer to a POST at the beginning of b.
// While b holds only a part of it, that is no error, see [Response.Len].
//
// It takes what servers of these APIs send and refuses the rest: bodies are
// counted by one Content-Length (none is needed with 204) or come in chunks, no
// other transfer coding, no interim answers, no folded header lines.
func ParseResponse(b []byte) (Response, error) {
	var r Response
	end := bytes.Index(b, []byte("\r\n\r\n"))
	if end < 0 {
		if len(b) > maxHead {
			return r, fmt.Errorf("answer's head is over %d bytes", maxHead)
		}
		return r, nil
	}
	line, rest, _ := bytes.Cut(b[:end+2], []byte("\r\n"))
	// HTTP/1.1 200 OK, where the reason and the space before it may be missing
	const version = "HTTP/1.1 "
	if len(line) < len(version)+3 || string(line[:len(version)]) != version {
		return r, errHead
	}
	line = line[len(version):]
	status, ok := parseDigits(line[:3])
	if !ok || status < 100 || len(line) > 3 && line[3] != ' ' || bareEnd(line) {
		return r, errHead
	}
	if status < 200 {
		return r, fmt.Errorf("interim answer %d, which nobody asked for", status)
	}
	length, chunked := -1, false
	for len(rest) > 0 {
		line, rest, _ = bytes.Cut(rest, []byte("\r\n"))
		name, value, found := bytes.Cut(line, []byte(":"))
		if !found || len(name) == 0 || name[len(name)-1] <= ' ' || name[0] <= ' ' || bareEnd(line) {
			return Response{}, errHead
		}
		switch {
		case equalFold(name, "content-length"):
			n, ok := parseDigits(bytes.Trim(value, " \t"))
			if !ok || n > maxBody {
				return Response{}, fmt.Errorf("Content-Length %.20q; at most %d is taken", value, maxBody)
			}
			if length >= 0 && length != n {
				return Response{}, errors.New("answer with two Content-Lengths")
			}
			length = n
		case equalFold(name, "transfer-encoding"):
			if chunked || !equalFold(bytes.Trim(value, " \t"), "chunked") {
				return Response{}, fmt.Errorf("answer with Transfer-Encoding %.20q; only chunked is taken", value)
			}
			chunked = true
		case equalFold(name, "connection"):
			r.Close = r.Close || equalFold(bytes.Trim(value, " \t"), "close")
		}
	}
	switch {
	case chunked && (length >= 0 || status == 204 || status == 304):
		return Response{}, errors.New("answer in chunks that may not be")
	case chunked:
		body, n, err := parseChunked(b[end+4:])
		if err != nil {
			return Response{}, err
		}
		if n > 0 {
			r.Status, r.Body, r.Len = status, body, end+4+n
		}
		return r, nil
	case status == 204 || status == 304:
		length = 0
	case length < 0:
		return Response{}, errors.New("answer without Content-Length")
	}
	r.Status = status
	r.Len = end + 4 + length
	if len(b) >= r.Len {
		r.Body = b[end+4 : r.Len : r.Len]
	}
	return r, nil
}

// bareEnd tells whether a line holds half of a line end, which some would take
// for a whole one.
func bareEnd(line []byte) bool {
	return bytes.IndexByte(line, '\n') >= 0 || bytes.IndexByte(line, '\r') >= 0
}

// parseDigits parses a decimal number without sign, of at most nine digits.
func parseDigits(b []byte) (n int, ok bool) {
	if len(b) == 0 || len(b) > 9 {
		return 0, false
	}
	for _, c := range b {
		if c < '0' || c > '9' {
			return 0, false
		}
		n = n*10 + int(c-'0')
	}
	return n, true
}

// equalFold tells whether b is lower in any case; lower is lower-case ASCII.
func equalFold(b []byte, lower string) bool {
	if len(b) != len(lower) {
		return false
	}
	for i, c := range b {
		if 'A' <= c && c <= 'Z' {
			c |= 0x20
		}
		if c != lower[i] {
			return false
		}
	}
	return true
}
