package fuzz

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"os"
	"path/filepath"
	"slices"
	"testing"
	"testing/iotest"

	"keymill/hsm"
)

// FuzzWrappedKEK feeds a root bytes in place of a wrapped key-encryption key: it opens
// exactly what it made and refuses everything else with one error.
func FuzzWrappedKEK(f *testing.F) {
	ctx := context.Background()
	root := hsm.OpenEphemeral()
	id, err := root.CreateDomainKey(ctx)
	if err != nil {
		f.Fatal(err)
	}
	kek := bytes.Repeat([]byte{0x42}, hsm.KEKSize)
	made := []hsm.Item{{In: kek}}
	root.Encrypt(ctx, id, made)
	if made[0].Err != nil {
		f.Fatal(made[0].Err)
	}
	f.Add(made[0].Out)
	f.Add([]byte{})
	f.Add([]byte{1, 1, 24})
	f.Add(append([]byte{1, 2, 12}, make([]byte, 60)...))  // CKM_AES_GCM
	f.Add(append([]byte{1, 3, 16}, make([]byte, 64)...))  // CKM_AES_CBC
	f.Add(append([]byte{1, 4, 16}, make([]byte, 80)...))  // CKM_AES_CBC_PAD
	f.Add(append([]byte{1, 5, 0}, make([]byte, 384)...))  // CKM_RSA_PKCS_OAEP
	f.Add(append([]byte{1, 6, 0}, make([]byte, 1024)...)) // the longest
	f.Fuzz(func(t *testing.T, b []byte) {
		items := []hsm.Item{{In: b}}
		root.Decrypt(ctx, id, items)
		switch it := items[0]; {
		case bytes.Equal(b, made[0].Out):
			if it.Err != nil || !bytes.Equal(it.Out, kek) {
				t.Errorf("the genuine one: %v", it.Err)
			}
		case !errors.Is(it.Err, hsm.ErrBadWrapped) || it.Out != nil:
			t.Errorf("%x opened: %v", b, it.Err)
		}
	})
}

// FuzzKeyFile feeds the software root's key file parser.
func FuzzKeyFile(f *testing.F) {
	path := filepath.Join(f.TempDir(), "root.key")
	root, err := hsm.OpenSoftware(path, hsm.SoftwareOptions{Create: true})
	if err != nil {
		f.Fatal(err)
	}
	for range 3 {
		b, err := os.ReadFile(path)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(b)
		f.Add(b[:len(b)-1])
		if _, err := root.CreateDomainKey(context.Background()); err != nil {
			f.Fatal(err)
		}
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		before := bytes.Clone(b)
		err := hsm.CheckKeyFile(b)
		if err != nil && !errors.Is(err, hsm.ErrKeyFile) {
			t.Error(err)
		}
		if !bytes.Equal(b, before) {
			t.Error("the parser changed its input")
		}
		if err == nil && len(b) > 0 {
			// What is accepted carries a checksum: no accepted file has an accepted
			// neighbour one bit away.
			b[len(b)/2] ^= 1
			if hsm.CheckKeyFile(b) == nil {
				t.Error("a changed file was accepted")
			}
			b[len(b)/2] ^= 1
		}
	})
}

// FuzzChildFrames feeds both ends of the socket to the process that has the PKCS#11
// module: any stream is either taken apart to its end or refused, without a panic and
// without memory beyond a frame's bound.
func FuzzChildFrames(f *testing.F) {
	frame := func(kind byte, body ...byte) []byte {
		b := binary.BigEndian.AppendUint32(nil, uint32(9+len(body)))
		b = append(b, kind, 0, 0, 0, 0, 0, 0, 0, 7)
		return append(b, body...)
	}
	id := make([]byte, 16)
	f.Add(frame(1, []byte(`{"Version":1,"Sessions":8}`)...))
	f.Add(frame(3, 0, 0, 0, 9, 0, 2, 'n', 'o'))
	f.Add(append(frame(5), frame(13)...))
	f.Add(frame(8, id...))
	f.Add(frame(10, append(id, 0, 1, 0, 3, 'a', 'b', 'c')...))
	f.Add(frame(11, 0, 2, 0, 0, 0, 32, 0, 0, 4, 0))
	f.Add(frame(14, 0, 0, 0, 0, 0, 3, 'k', 'e', 'k'))
	f.Add(frame(16, []byte("1234")...))
	f.Add(frame(17, append(id, 1, 0, 3, 'a', 'r', 'n')...))
	f.Add(append(frame(18, id...), frame(19, id...)...))
	f.Add(frame(20, slices.Concat([]byte{0, 2}, id, []byte{1, 0, 1, 'p', 0, 2, 'a', 'd'}, id, []byte{2, 0, 3, 1, 12, 0, 0, 0})...))
	f.Add([]byte{0, 15, 255, 255})
	f.Fuzz(func(t *testing.T, b []byte) {
		whole := hsm.CheckFrames(bytes.NewReader(b))
		// However the stream arrives, the outcome is the same.
		pieces := hsm.CheckFrames(iotest.OneByteReader(bytes.NewReader(b)))
		if (whole == nil) != (pieces == nil) {
			t.Errorf("in one piece: %v; in many: %v", whole, pieces)
		}
	})
}
