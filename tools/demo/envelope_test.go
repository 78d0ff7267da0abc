package main

import (
	"bytes"
	"crypto/rand"
	"errors"
	"io"
	"testing"
	"testing/iotest"
)

var (
	testKey  = bytes.Repeat([]byte{7}, 32)
	testBlob = []byte("the key as KMS encrypted it")
)

func unwrapTest([]byte) ([]byte, error) { return bytes.Clone(testKey), nil }

func seal(t *testing.T, plain []byte) []byte {
	t.Helper()
	var out bytes.Buffer
	if err := encrypt(&out, bytes.NewReader(plain), testKey, testBlob); err != nil {
		t.Fatal(err)
	}
	if int64(out.Len()) != sealedSize(int64(len(plain)), testBlob) {
		t.Errorf("%d bytes became %d, want %d", len(plain), out.Len(), sealedSize(int64(len(plain)), testBlob))
	}
	return out.Bytes()
}

func open(sealed []byte) ([]byte, error) {
	var out bytes.Buffer
	err := decrypt(&out, bytes.NewReader(sealed), unwrapTest)
	return out.Bytes(), err
}

func TestRoundTrip(t *testing.T) {
	for _, n := range []int{0, 1, chunkSize - 1, chunkSize, chunkSize + 1, 3 * chunkSize, 3*chunkSize + 5} {
		plain := make([]byte, n)
		rand.Read(plain)
		sealed := seal(t, plain)
		if got, err := open(sealed); err != nil || !bytes.Equal(got, plain) {
			t.Errorf("%d bytes: %v", n, err)
		}
		var out bytes.Buffer
		if err := decrypt(&out, iotest.HalfReader(bytes.NewReader(sealed)), unwrapTest); err != nil || !bytes.Equal(out.Bytes(), plain) {
			t.Errorf("%d bytes, read by pieces: %v", n, err)
		}
	}
}

// TestTampering: whatever is done to a file, it is refused, and what was written
// until then is a beginning of the true file.
func TestTampering(t *testing.T) {
	plain := make([]byte, 3*chunkSize)
	rand.Read(plain)
	sealed := seal(t, plain)
	start := len(header(testBlob))
	const chunk = chunkSize + 16
	cut := func(parts ...[]byte) []byte { return bytes.Join(parts, nil) }
	flip := func(at int) []byte {
		b := bytes.Clone(sealed)
		b[at] ^= 1
		return b
	}
	empty := seal(t, nil)
	for name, bad := range map[string][]byte{
		"blob":                  flip(start - 1),
		"first byte":            flip(start),
		"a tag":                 flip(start + chunk - 1),
		"last byte":             flip(len(sealed) - 1),
		"cut at a chunk":        sealed[:start+2*chunk],
		"cut in a chunk":        sealed[:start+2*chunk+100],
		"cut in a tag":          sealed[:len(sealed)-1],
		"no chunk":              sealed[:start],
		"one byte more":         cut(sealed, []byte{0}),
		"a chunk more":          cut(sealed, sealed[start:start+chunk]),
		"an empty chunk more":   cut(sealed, empty[start:]),
		"a chunk dropped":       cut(sealed[:start], sealed[start+chunk:]),
		"chunks exchanged":      cut(sealed[:start], sealed[start+chunk:start+2*chunk], sealed[start:start+chunk], sealed[start+2*chunk:]),
		"header of other blob":  cut(header([]byte("another key's blob, as long")), sealed[start:]),
		"chunk of another file": cut(sealed[:start+2*chunk], seal(t, bytes.Repeat([]byte{1}, 3*chunkSize))[start+2*chunk-1:]),
	} {
		got, err := open(bad)
		if !errors.Is(err, errSealed) {
			t.Errorf("%s: %v", name, err)
		}
		if !bytes.HasPrefix(plain, got) {
			t.Errorf("%s: wrong plaintext was written", name)
		}
	}
	for name, bad := range map[string][]byte{"empty": nil, "magic": flip(0), "no blob": header(nil), "long blob": header(make([]byte, maxBlob+1)), "cut": sealed[:start-1]} {
		if _, err := open(bad); !errors.Is(err, errFormat) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func TestReadErrors(t *testing.T) {
	broken := errors.New("broken disk")
	src := io.MultiReader(bytes.NewReader(make([]byte, chunkSize)), iotest.ErrReader(broken))
	if err := encrypt(io.Discard, src, testKey, testBlob); !errors.Is(err, broken) {
		t.Errorf("encrypt: %v", err)
	}
	sealed := seal(t, make([]byte, 2*chunkSize))
	src = io.MultiReader(bytes.NewReader(sealed[:chunkSize+100]), iotest.ErrReader(broken))
	if err := decrypt(io.Discard, src, unwrapTest); !errors.Is(err, broken) {
		t.Errorf("decrypt: %v", err)
	}
}
