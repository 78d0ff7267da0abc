package daemon

import (
	"net"
	"testing"
	"time"
)

// BenchmarkDeadlines sets the three deadlines that fasthttp sets for a request:
// of a TCP connection, and with marks.
func BenchmarkDeadlines(b *testing.B) {
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		b.Fatal(err)
	}
	defer ln.Close()
	c, err := net.Dial("tcp", ln.Addr().String())
	if err != nil {
		b.Fatal(err)
	}
	defer c.Close()
	for _, v := range []struct {
		name string
		conn net.Conn
	}{{"timers", c}, {"marks", newDeadlines(time.Now).add(c)}} {
		b.Run(v.name, func(b *testing.B) {
			b.ReportAllocs()
			for b.Loop() {
				v.conn.SetReadDeadline(time.Now().Add(idleTimeout))
				v.conn.SetReadDeadline(time.Now().Add(readTimeout))
				v.conn.SetWriteDeadline(time.Now().Add(writeTimeout))
			}
		})
	}
}
