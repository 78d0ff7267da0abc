package fuzz

import (
	"net"
	"net/netip"
	"strings"
	"testing"

	"keymill/daemon"
)

// FuzzListen holds the promise that plain HTTP and the admin listener stay on
// this machine: an address that is accepted without being told otherwise is a
// Unix socket, localhost or a literal loopback address.
func FuzzListen(f *testing.F) {
	for _, s := range []string{
		"127.0.0.1:4599", "unix:/run/k.sock", "unix:", ":80", "0.0.0.0:1", "[::1]:1", "[::]:1", "[::ffff:127.0.0.1]:1",
		"localhost:http", "localhost.:1", "127.1:1", "0x7f000001:1", "127.0.0.1%lo:1", "[::1%lo]:1", "127.0.0.1:", "127.0.0.1:65536", "",
	} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		for _, option := range []func(*daemon.Config){
			func(c *daemon.Config) { c.Listen = s },
			func(c *daemon.Config) { c.AdminListen = s },
		} {
			c := daemon.DefaultConfig()
			c.Data = "data"
			option(&c)
			if c.Validate() != nil {
				continue
			}
			if path, ok := strings.CutPrefix(s, "unix:"); ok {
				if path == "" {
					t.Error("a socket without a path was accepted")
				}
				continue
			}
			host, _, err := net.SplitHostPort(s)
			if err != nil {
				t.Fatalf("%q was accepted: %v", s, err)
			}
			if ip, err := netip.ParseAddr(host); host != "localhost" && (err != nil || !ip.Unmap().IsLoopback()) {
				t.Errorf("%q was accepted", s)
			}
		}
	})
}
