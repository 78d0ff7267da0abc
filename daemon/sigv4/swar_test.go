package sigv4_test

import (
	"bytes"
	"encoding/hex"
	"testing"

	"keymill/daemon/sigv4"
)

// Every byte value in every position of every short length, beside neighbours
// that could borrow or carry.
func TestWordsAgreeWithBytes(t *testing.T) {
	for n := range 27 {
		for pos := range n {
			for c := range 256 {
				for _, fill := range []byte{'a', '!', 0x80, 0xff} {
					v := bytes.Repeat([]byte{fill}, n)
					v[pos] = byte(c)
					if fast, plain := sigv4.HasBlank(v); fast != plain {
						t.Fatalf("hasBlank(%q) = %v, want %v", v, fast, plain)
					}
					lower := bytes.Clone(v)
					if 'A' <= c && c <= 'Z' {
						lower[pos] += 'a' - 'A'
					}
					for _, l := range [][]byte{lower, v, bytes.Repeat([]byte{fill}, n)} {
						if fast, plain := sigv4.SameName(v, l); fast != plain {
							t.Fatalf("sameName(%q, %q) = %v, want %v", v, l, fast, plain)
						}
					}
					lower[pos] ^= 0x20
					if fast, plain := sigv4.SameName(v, lower); fast != plain {
						t.Fatalf("sameName(%q, %q) = %v, want %v", v, lower, fast, plain)
					}
				}
			}
		}
	}
	for _, c := range []struct{ name, lower string }{{"Host", "hosts"}, {"X-Amz-Target", "x-amz-targe"}, {"", "a"}} {
		if fast, plain := sigv4.SameName([]byte(c.name), []byte(c.lower)); fast || plain {
			t.Errorf("%q is taken for %q", c.name, c.lower)
		}
	}
	var h [32]byte
	for i := range h {
		h[i] = byte(i * 37)
	}
	if got := string(sigv4.AppendHex(&h)); got != hex.EncodeToString(h[:]) {
		t.Errorf("hex %s", got)
	}
}
