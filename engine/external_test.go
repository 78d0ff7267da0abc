package engine

import (
	"bytes"
	"context"
	"crypto/cipher"
	"crypto/rand"
	"errors"
	"fmt"
	"strings"
	"sync"
	"testing"
)

// A manager is an external key manager in memory. It records what it was shown.
type manager struct {
	aead   cipher.AEAD
	change func(*Sealed) // of what Encrypt returns
	fault  error
	gate   chan struct{} // Decrypt waits for it, when there is one

	mu   sync.Mutex
	seen [][]byte // plaintexts and associated data
}

var errManager = errors.New("manager: refused")

func newManager() *manager {
	key := make([]byte, 32)
	rand.Read(key)
	return &manager{aead: newGCM(key)}
}

func (m *manager) note(b ...[]byte) {
	m.mu.Lock()
	defer m.mu.Unlock()
	for _, b := range b {
		m.seen = append(m.seen, bytes.Clone(b))
	}
}

func (m *manager) Encrypt(_ context.Context, plaintext, aad []byte) (Sealed, error) {
	m.note(plaintext, aad)
	if m.fault != nil {
		return Sealed{}, m.fault
	}
	iv := make([]byte, 12)
	rand.Read(iv)
	meta := []byte("version 1")
	out := m.aead.Seal(nil, iv, plaintext, append(bytes.Clone(aad), meta...))
	s := Sealed{Ciphertext: out[:len(plaintext)], Metadata: meta, IV: iv, Tag: out[len(plaintext):]}
	if m.change != nil {
		m.change(&s)
	}
	return s, nil
}

func (m *manager) Decrypt(_ context.Context, s Sealed, aad []byte) ([]byte, error) {
	if m.gate != nil {
		<-m.gate
	}
	if m.fault != nil {
		return nil, m.fault
	}
	out, err := m.aead.Open(nil, s.IV, append(bytes.Clone(s.Ciphertext), s.Tag...), append(bytes.Clone(aad), s.Metadata...))
	if err != nil {
		return nil, errManager
	}
	return out, nil
}

func externalOf(t testing.TB, id KeyID, m External) *external {
	t.Helper()
	material := testMaterial(t, SymmetricDefault)
	v := []KeyVersion{{1, ComputeMaterialID(id, material)}}
	src := func(context.Context, uint32) ([]byte, error) { return bytes.Clone(material), nil }
	return NewExternalKey(id, v, 0, src, m).(*external)
}

// carry runs operations on a key that waits.
func carry(t testing.TB, k Key, ops ...Op) []Op {
	t.Helper()
	k.Do(ops)
	for i := range ops {
		if ops[i].Err == nil {
			t.Fatal("Do did not wait for anybody")
		}
	}
	if err := k.Warm(context.Background(), ops); err != nil {
		t.Fatal(err)
	}
	return ops
}

// TestExternalKey: what is sealed opens again, needs both sides, and shows the
// manager neither plaintext nor context.
func TestExternalKey(t *testing.T) {
	m := newManager()
	k := externalOf(t, testID, m)
	if k.Class(Encrypt) != Token || k.Spec() != SymmetricDefault || k.Usage() != EncryptDecrypt {
		t.Error("not what it should be")
	}
	secret, context := []byte("a plaintext that nobody else may see"), []byte("a context")
	for _, n := range []int{0, 1, len(secret), maxExternalPlaintext} {
		in := bytes.Repeat(secret, n/len(secret)+1)[:n]
		op := carry(t, k, symOp(Encrypt, in, context))[0]
		if op.Err != nil || op.Material != k.inner.versions[0].MaterialID {
			t.Fatal(op.Err)
		}
		blob := op.Out
		if len(blob) > n+ExternalOverhead || len(blob) > 6144 {
			t.Errorf("a blob of %d bytes for %d", len(blob), n)
		}
		h, err := ParseBlob(blob)
		if err != nil || h.Scheme != SchemeExternal || h.KeyID != testID || h.MaterialID != op.Material {
			t.Errorf("header %+v: %v", h, err)
		}
		op = carry(t, k, symOp(Decrypt, blob, context))[0]
		if op.Err != nil || !bytes.Equal(op.Out, in) {
			t.Fatalf("%d bytes: %v", n, op.Err)
		}
		if op := carry(t, k, symOp(Decrypt, blob, nil))[0]; op.Err != errManager || len(op.Out) != 0 {
			t.Errorf("another context: %v", op.Err)
		}
		for i := range blob {
			if n > 100 && i%97 != 0 {
				continue
			}
			blob[i] ^= 1
			op := do(t, k, symOp(Decrypt, blob, context))
			if op.Err != ErrInvalidCiphertext && op.Err != errManager || len(op.Out) != 0 {
				t.Fatalf("byte %d changed: %v", i, op.Err)
			}
			blob[i] ^= 1
		}
		for _, cut := range [][]byte{nil, blob[:headerSize], blob[:externalMinimum-1], blob[:len(blob)-1]} {
			if op := do(t, k, symOp(Decrypt, cut, context)); op.Err != ErrInvalidCiphertext && op.Err != errManager {
				t.Fatalf("%d bytes of the blob: %v", len(cut), op.Err)
			}
		}
	}
	for _, b := range m.seen {
		if bytes.Contains(b, secret[:8]) || bytes.Contains(b, context) {
			t.Fatal("the manager saw what it should not")
		}
	}
	// Another manager, or another key of ours at the same one, opens nothing.
	blob := carry(t, k, symOp(Encrypt, secret, nil))[0].Out
	if op := carry(t, externalOf(t, testID, newManager()), symOp(Decrypt, blob, nil))[0]; op.Err != errManager {
		t.Errorf("another manager: %v", op.Err)
	}
	other := externalOf(t, KeyID{ID: [16]byte{9}}, m)
	if op := do(t, other, symOp(Decrypt, blob, nil)); op.Err != ErrInvalidCiphertext {
		t.Errorf("another key: %v", op.Err)
	}
	local := keyOf(t, testID, SymmetricDefault, EncryptDecrypt, testMaterial(t, SymmetricDefault))
	if op := do(t, local, symOp(Decrypt, blob, nil)); op.Err != ErrInvalidCiphertext {
		t.Errorf("the local key of the same material: %v", op.Err)
	}
}

// TestExternalBatch: each operation of a batch has its own result, those that
// were refused at once keep theirs, and all others are under way together.
func TestExternalBatch(t *testing.T) {
	m := newManager()
	k := externalOf(t, testID, m)
	var ops []Op
	for i := range 5 {
		ops = append(ops, symOp(Encrypt, []byte{byte(i)}, nil))
	}
	carry(t, k, ops...)
	m.gate = make(chan struct{})
	for i := range ops {
		ops[i] = symOp(Decrypt, ops[i].Out, nil)
	}
	ops[1].AAD = []byte("x")
	ops[2].Alg = AlgOAEPSHA1
	ops[3].In = ops[3].In[:60]
	done := make(chan error)
	go func() {
		k.Do(ops)
		done <- k.Warm(context.Background(), ops)
	}()
	for range 3 { // the gate is not buffered: three are at it, or this never ends
		m.gate <- struct{}{}
	}
	if err := <-done; err != nil {
		t.Fatal(err)
	}
	got := make([]string, len(ops))
	for i := range ops {
		got[i] = fmt.Sprint(ops[i].Out, ops[i].Err)
	}
	want := []string{"[0] <nil>", "[] " + errManager.Error(), "[] " + ErrIncompatible.Error(), "[] " + ErrInvalidCiphertext.Error(), "[4] <nil>"}
	if strings.Join(got, "|") != strings.Join(want, "|") {
		t.Errorf("got %q, want %q", got, want)
	}
}

// TestExternalFaults: whatever the manager does, the operation fails, says so
// and has no result.
func TestExternalFaults(t *testing.T) {
	for name, change := range map[string]func(*Sealed){
		"short ciphertext": func(s *Sealed) { s.Ciphertext = s.Ciphertext[1:] },
		"long ciphertext":  func(s *Sealed) { s.Ciphertext = append(s.Ciphertext, 0) },
		"IV of 13":         func(s *Sealed) { s.IV = make([]byte, 13) },
		"no IV":            func(s *Sealed) { s.IV = nil },
		"long metadata":    func(s *Sealed) { s.Metadata = make([]byte, 21) },
		"short tag":        func(s *Sealed) { s.Tag = s.Tag[:15] },
		"panic":            func(*Sealed) { panic("defect") },
	} {
		m := newManager()
		m.change = change
		op := carry(t, externalOf(t, testID, m), symOp(Encrypt, []byte("a"), nil))[0]
		if op.Err == nil || op.Err == ErrPending || len(op.Out) != 0 {
			t.Errorf("%s: %v", name, op.Err)
		}
	}
	m := newManager()
	m.fault = errManager
	k := externalOf(t, testID, m)
	if op := carry(t, k, symOp(Encrypt, []byte("a"), nil))[0]; op.Err != errManager {
		t.Errorf("the manager's own error became %v", op.Err)
	}
	// A purged key asks for its material again, and fails when that does.
	k.Purge()
	gone := errors.New("material is gone")
	k.inner.src = func(context.Context, uint32) ([]byte, error) { return nil, gone }
	ops := []Op{symOp(Encrypt, []byte("a"), nil)}
	k.Do(ops)
	if err := k.Warm(context.Background(), ops); !errors.Is(err, gone) || ops[0].Err != ErrPending {
		t.Errorf("without material: %v, %v", err, ops[0].Err)
	}
}
