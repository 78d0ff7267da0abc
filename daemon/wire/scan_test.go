package wire

import (
	"math/rand/v2"
	"testing"
)

// plainTwin is plainPrefix one byte at a time.
func plainTwin(s string) int {
	for i := range len(s) {
		if c := s[i]; c < 0x20 || c >= 0x80 || c == '"' || c == '\\' {
			return i
		}
	}
	return len(s)
}

func TestPlainPrefix(t *testing.T) {
	buf := make([]byte, 40)
	// Every byte value at every place, between neighbours whose difference
	// makes borrows.
	for _, fill := range []byte{0x20, 0x21, 0x23, 0x5b, 0x5d, 0x7f, 'a'} {
		for n := range buf {
			for at := range n {
				for c := range 256 {
					for i := range buf {
						buf[i] = fill
					}
					buf[at] = byte(c)
					if s := string(buf[:n]); plainPrefix(s) != plainTwin(s) {
						t.Fatalf("%q: %d, want %d", s, plainPrefix(s), plainTwin(s))
					}
				}
			}
		}
	}
	r := rand.New(rand.NewPCG(1, 2))
	for range 100000 {
		for i := range buf {
			buf[i] = "\x1f\x20\x21\"#[\\]\x7f\x80\xa0\xa2\xdc\xff"[r.IntN(14)]
			if r.IntN(3) > 0 {
				buf[i] = 0x20 + byte(r.IntN(2))
			}
		}
		if s := string(buf[r.IntN(8):]); plainPrefix(s) != plainTwin(s) {
			t.Fatalf("%q: %d, want %d", s, plainPrefix(s), plainTwin(s))
		}
	}
}

// TestB2S compares the views with copies, also of empty and nil slices.
func TestB2S(t *testing.T) {
	for _, b := range [][]byte{nil, {}, []byte("a"), []byte("some text")} {
		if got := b2s(b); got != string(b) {
			t.Errorf("b2s(%q) = %q", b, got)
		}
		if got := s2b(string(b)); string(got) != string(b) || len(got) != len(b) {
			t.Errorf("s2b(%q) = %q", b, got)
		}
	}
	b := []byte("view")
	s := b2s(b)
	b[0] = 'V'
	if s != "View" {
		t.Error("b2s copied")
	}
}

// TestScratchBound fills a body with what needs most scratch memory: escaped
// Base64, which takes room as text and again as bytes.
func TestScratchBound(t *testing.T) {
	var d Decoder
	in := new(EncryptRequest)
	for n := range 2000 {
		body := []byte(`{"Plaintext":"\/`)
		for range n {
			body = append(body, "AAAA"...)
		}
		body = append(body, `AAA","KeyId":"\/","EncryptionContext":{"\/":"\/"}}`...)
		d = Decoder{}
		if err := d.Decode(in, body); err != nil {
			t.Fatalf("%d groups: %v", n, err)
		}
		if used := len(d.scratch); used > 2*len(body) {
			t.Fatalf("%d bytes of scratch for a body of %d", used, len(body))
		}
	}
}

// TestKept shows that one large request does not stay in a pooled decoder.
func TestKept(t *testing.T) {
	var d Decoder
	in := new(EncryptRequest)
	body := []byte(`{"GrantTokens":[""`)
	for range keepItems * 4 {
		body = append(body, `,"\/"`...)
	}
	body = append(body, `],"EncryptionContext":{"":""`...)
	for i := range keepItems * 4 {
		body = append(body, `,"`+string(rune('\u4e00'+i))+`":""`...)
	}
	for len(body) < keepScratch {
		body = append(body, ' ')
	}
	body = append(body, "}}"...)
	if err := d.Decode(in, body); err != nil {
		t.Fatal(err)
	}
	if cap(d.scratch) <= keepScratch || cap(d.strs) <= keepItems || cap(d.pairs) <= keepItems {
		t.Fatal("the body is too small for this test")
	}
	d.Reset()
	if d.scratch != nil || d.strs != nil || d.pairs != nil {
		t.Errorf("Reset kept %d, %d, %d", cap(d.scratch), cap(d.strs), cap(d.pairs))
	}
}
