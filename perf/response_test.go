package perf

import (
	"strings"
	"testing"
)

func TestParseResponse(t *testing.T) {
	cases := []struct {
		name, in string
		status   int
		body     string
		close    bool
		err      string // part of its text
	}{
		{"plain", "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}", 200, "{}", false, ""},
		{"any case, spaces", "HTTP/1.1 200 OK\r\nX: y\r\ncOnTent-lEngth:2 \r\n\r\n{}", 200, "{}", false, ""},
		{"no reason", "HTTP/1.1 400\r\nContent-Length: 0\r\n\r\n", 400, "", false, ""},
		{"close", "HTTP/1.1 500 No\r\nConnection: Close\r\nContent-Length: 1\r\n\r\nx", 500, "x", true, ""},
		{"no content", "HTTP/1.1 204 No Content\r\n\r\n", 204, "", false, ""},
		{"same length twice", "HTTP/1.1 200 OK\r\nContent-Length: 2\r\nContent-Length: 2\r\n\r\n{}", 200, "{}", false, ""},

		{"other length twice", "HTTP/1.1 200 OK\r\nContent-Length: 2\r\nContent-Length: 3\r\n\r\n{}", 0, "", false, "two Content-Lengths"},
		{"no length", "HTTP/1.1 200 OK\r\nX: y\r\n\r\n{}", 0, "", false, "without Content-Length"},
		{"negative length", "HTTP/1.1 200 OK\r\nContent-Length: -1\r\n\r\n", 0, "", false, "Content-Length"},
		{"huge length", "HTTP/1.1 200 OK\r\nContent-Length: 999999999\r\n\r\n", 0, "", false, "at most"},
		{"overlong length", "HTTP/1.1 200 OK\r\nContent-Length: 99999999999999999999\r\n\r\n", 0, "", false, "at most"},
		{"chunked and a length", "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nContent-Length: 5\r\n\r\n0\r\n\r\n", 0, "", false, "may not be"},
		{"chunked without content", "HTTP/1.1 204 OK\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n", 0, "", false, "may not be"},
		{"another coding", "HTTP/1.1 200 OK\r\nTransfer-Encoding: gzip\r\n\r\n0\r\n\r\n", 0, "", false, "Transfer-Encoding"},
		{"chunk extension", "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n1;a\r\nx\r\n0\r\n\r\n", 0, "", false, "chunks"},
		{"trailer", "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n0\r\nX: y\r\n\r\n", 0, "", false, "chunks"},
		{"chunk longer than said", "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n1\r\nxy\r\n0\r\n\r\n", 0, "", false, "chunks"},
		{"huge chunk", "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n7fffffff\r\nxy", 0, "", false, "chunks"},
		{"overlong chunk size", "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n0000000001\r\nx\r\n", 0, "", false, "chunks"},
		{"negative chunk", "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n-1\r\n", 0, "", false, "chunks"},
		{"interim", "HTTP/1.1 100 Continue\r\n\r\n", 0, "", false, "interim"},
		{"old", "HTTP/1.0 200 OK\r\nContent-Length: 0\r\n\r\n", 0, "", false, "not HTTP/1.1"},
		{"other protocol", "SSH-2.0-OpenSSH_9.2\r\n\r\n", 0, "", false, "not HTTP/1.1"},
		{"long status", "HTTP/1.1 2000 OK\r\n\r\n", 0, "", false, "not HTTP/1.1"},
		{"folded", "HTTP/1.1 200 OK\r\nX: y\r\n z: 1\r\nContent-Length: 0\r\n\r\n", 0, "", false, "not HTTP/1.1"},
		{"space before colon", "HTTP/1.1 200 OK\r\nContent-Length : 0\r\n\r\n", 0, "", false, "not HTTP/1.1"},
		{"no colon", "HTTP/1.1 200 OK\r\nnothing\r\n\r\n", 0, "", false, "not HTTP/1.1"},
		{"bare line feed", "HTTP/1.1 200 \n\r\nContent-Length: 0\r\n\r\n", 0, "", false, "not HTTP/1.1"},
		{"bare return", "HTTP/1.1 200 OK\r\nX: \ry\r\nContent-Length: 0\r\n\r\n", 0, "", false, "not HTTP/1.1"},
		{"endless head", "HTTP/1.1 200 OK\r\n" + strings.Repeat("X: y\r\n", 20000), 0, "", false, "head is over"},
	}
	for _, c := range cases {
		t.Run(c.name, func(t *testing.T) {
			r, err := ParseResponse([]byte(c.in))
			if c.err != "" {
				if err == nil || !strings.Contains(err.Error(), c.err) {
					t.Fatalf("error is %v, want one about %q", err, c.err)
				}
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			if r.Status != c.status || string(r.Body) != c.body || r.Close != c.close || r.Len != len(c.in) {
				t.Errorf("got %d %q, close %v, length %d; want %d %q, %v, %d",
					r.Status, r.Body, r.Close, r.Len, c.status, c.body, c.close, len(c.in))
			}
			head := strings.Index(c.in, "\r\n\r\n") + 4
			for n := range len(c.in) { // every part of it is incomplete, never wrong
				r, err := ParseResponse([]byte(c.in[:n]))
				if err != nil || r.Complete(n) || n < head && r.Len != 0 || n >= head && r.Len != len(c.in) {
					t.Errorf("of %d bytes: %+v, %v", n, r, err)
				}
			}
		})
	}
}

func TestParseChunks(t *testing.T) {
	const head = "HTTP/1.1 200 OK\r\ntransfer-encoding: Chunked\r\n\r\n"
	for in, want := range map[string]string{
		"0\r\n\r\n":            "",
		"2\r\n{}\r\n0\r\n\r\n": "{}",
		"3\r\n{\r\n\r\n00A\r\n0123456789\r\n0\r\n\r\n": "{\r\n0123456789",
	} {
		r, err := ParseResponse([]byte(head + in + "next"))
		if err != nil || r.Status != 200 || string(r.Body) != want || r.Len != len(head+in) {
			t.Errorf("%q: %d %q, length %d, %v", in, r.Status, r.Body, r.Len, err)
		}
		for n := range len(head + in) {
			if r, err := ParseResponse([]byte(head + in)[:n]); err != nil || r.Len != 0 || r.Complete(n) {
				t.Errorf("%q: of %d bytes: %+v, %v", in, n, r, err)
			}
		}
	}
}
