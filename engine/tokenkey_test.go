package engine

import (
	"bytes"
	"context"
	"crypto"
	"crypto/cipher"
	"crypto/ecdsa"
	"crypto/hmac"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"errors"
	"runtime"
	"sync"
	"testing"

	"keymill/hsm"
)

// A fakeToken is an HSM in memory with one key of any kind.
type fakeToken struct {
	id    hsm.TokenKeyID
	aead  cipher.AEAD
	ec    *ecdsa.PrivateKey
	rsa   *rsa.PrivateKey
	mac   func([]byte) []byte
	fault error
	calls int
	seen  [][]byte
}

func (f *fakeToken) Do(_ context.Context, ops []hsm.TokenOp) {
	f.calls++
	for i := range ops {
		op := &ops[i]
		f.seen = append(f.seen, bytes.Clone(op.AAD))
		switch {
		case f.fault != nil:
			op.Err = f.fault
		case op.Key != f.id:
			op.Err = hsm.ErrNoTokenKey
		default:
			op.Out, op.Err = f.one(op)
		}
	}
}

func (f *fakeToken) one(op *hsm.TokenOp) ([]byte, error) {
	switch op.Mech {
	case hsm.TokenSeal:
		iv := make([]byte, 12)
		rand.Read(iv)
		return f.aead.Seal(append([]byte{1, 12}, iv...), iv, op.In, op.AAD), nil
	case hsm.TokenOpen:
		out, err := f.aead.Open(nil, op.In[2:14], op.In[14:], op.AAD)
		if err != nil {
			err = hsm.ErrBadCiphertext
		}
		return out, err
	case hsm.TokenHMACSHA384:
		return f.mac(op.In), nil
	case hsm.TokenECDSA:
		r, s, err := ecdsa.Sign(rand.Reader, f.ec, op.In)
		n := (f.ec.Params().BitSize + 7) / 8
		return append(r.FillBytes(make([]byte, n)), s.FillBytes(make([]byte, n))...), err
	case hsm.TokenPKCS1SHA256:
		return rsa.SignPKCS1v15(nil, f.rsa, crypto.SHA256, op.In)
	case hsm.TokenPSSSHA512:
		return rsa.SignPSS(rand.Reader, f.rsa, crypto.SHA512, op.In, &pssOptions)
	case hsm.TokenOAEPSHA256:
		out, err := rsa.DecryptOAEP(crypto.SHA256.New(), nil, f.rsa, op.In, nil)
		if err != nil {
			err = hsm.ErrBadCiphertext
		}
		return out, err
	}
	return nil, hsm.ErrMechanism
}

// tokenOf returns a handle on a key that a new fake holds.
func tokenOf(t testing.TB, spec Spec, usage Usage) (*token, *fakeToken) {
	t.Helper()
	f := &fakeToken{id: hsm.NewTokenKeyID()}
	c := TokenKey{ID: f.id, Token: f, Lease: func(context.Context, uint64) error { return nil }}
	material := testMaterial(t, spec)
	var pub any
	switch {
	case spec.Symmetric():
		f.aead = newGCM(material)
	case spec.HMAC():
		f.mac = func(m []byte) []byte { h := hmac.New(hmacHash(spec), material); h.Write(m); return h.Sum(nil) }
	case spec.RSA():
		key, err := x509.ParsePKCS8PrivateKey(material)
		if err != nil {
			t.Fatal(err)
		}
		f.rsa = key.(*rsa.PrivateKey)
		pub = f.rsa.Public()
	default:
		key, err := x509.ParsePKCS8PrivateKey(material)
		if err != nil {
			t.Fatal(err)
		}
		f.ec = key.(*ecdsa.PrivateKey)
		pub = f.ec.Public()
	}
	if pub != nil {
		der, err := x509.MarshalPKIXPublicKey(pub)
		if err != nil {
			t.Fatal(err)
		}
		c.Public = der
	}
	return NewTokenKey(testID, spec, usage, c).(*token), f
}

// TestTokenKeySymmetric: what is sealed opens under its key and context only,
// one Warm is one call, and the token does not learn the context.
func TestTokenKeySymmetric(t *testing.T) {
	k, f := tokenOf(t, SymmetricDefault, EncryptDecrypt)
	if k.Class(Encrypt) != Token || k.Class(Decrypt) != Token {
		t.Error("it does not wait")
	}
	context, plain := []byte("a context that nobody need see"), bytes.Repeat([]byte{7}, maxSymmetricPlaintext)
	ops := carry(t, k, symOp(Encrypt, plain, context), symOp(Encrypt, plain[:1], nil), symOp(Encrypt, nil, context))
	if f.calls != 1 {
		t.Errorf("%d calls of the token for one batch", f.calls)
	}
	for i := range ops {
		if ops[i].Err != nil || ops[i].Material != k.material || len(ops[i].Out) > len(ops[i].In)+Overhead {
			t.Fatalf("op %d: %d bytes, %v", i, len(ops[i].Out), ops[i].Err)
		}
		h, err := ParseBlob(ops[i].Out)
		if err != nil || h.Scheme != SchemeToken || h.KeyID != testID || h.MaterialID != k.material {
			t.Errorf("header %+v, %v", h, err)
		}
		back := carry(t, k, symOp(Decrypt, ops[i].Out, ops[i].AAD))[0]
		if back.Err != nil || !bytes.Equal(back.Out, ops[i].In) {
			t.Errorf("op %d does not open: %v", i, back.Err)
		}
	}
	for _, aad := range f.seen {
		if len(aad) != 32 || bytes.Contains(aad, context[:8]) {
			t.Fatalf("the token got to see %q", aad)
		}
	}
	blob := ops[1].Out
	for i := range blob {
		bad := bytes.Clone(blob)
		bad[i] ^= 1
		if i > headerSize && i < headerSize+2 {
			continue // the fake does not parse
		}
		if op := do(t, k, symOp(Decrypt, bad, nil)); op.Err != ErrInvalidCiphertext && i != headerSize {
			t.Fatalf("byte %d changed: %v", i, op.Err)
		}
	}
	for _, in := range [][]byte{nil, blob[:TokenMinimum-1], make([]byte, 9000), append(bytes.Clone(k.header[:]), make([]byte, 9000)...)} {
		before := f.calls
		if op := do(t, k, symOp(Decrypt, in, nil)); op.Err != ErrInvalidCiphertext || f.calls != before {
			t.Errorf("%d bytes: %v, %d calls", len(in), op.Err, f.calls-before)
		}
	}
	if op := do(t, k, symOp(Decrypt, blob, context)); op.Err != ErrInvalidCiphertext || len(op.Out) != 0 {
		t.Errorf("another context: %v", op.Err)
	}
	local := keyOf(t, testID, SymmetricDefault, EncryptDecrypt, testMaterial(t, SymmetricDefault))
	if op := do(t, local, symOp(Decrypt, blob, nil)); op.Err != ErrInvalidCiphertext {
		t.Errorf("a local key of the same material: %v", op.Err)
	}
	other := NewTokenKey(KeyID{ID: [16]byte{1}}, SymmetricDefault, EncryptDecrypt, k.t)
	if op := do(t, other, symOp(Decrypt, blob, nil)); op.Err != ErrInvalidCiphertext {
		t.Errorf("another key: %v", op.Err)
	}
}

// TestTokenKeyPairs: the token signs and decrypts, this process verifies and
// encrypts, and both agree.
func TestTokenKeyPairs(t *testing.T) {
	message := []byte("a message")
	for _, c := range []struct {
		spec Spec
		alg  Algorithm
	}{{P256, AlgECDSASHA256}, {P384, AlgECDSASHA384}, {P521, AlgECDSASHA512}, {RSA2048, AlgPKCS1SHA256}, {RSA2048, AlgPSSSHA512}} {
		k, f := tokenOf(t, c.spec, SignVerify)
		if k.Class(Sign) != Token || k.Class(Verify) != Heavy {
			t.Error("wrong class")
		}
		sig := carry(t, k, Op{Verb: Sign, Alg: c.alg, In: message})[0]
		if sig.Err != nil {
			t.Fatalf("%v: %v", c.spec, sig.Err)
		}
		before := f.calls
		digest := hashMessage(&Op{Alg: c.alg, In: message}, new([64]byte))
		ops := []Op{
			{Verb: Verify, Alg: c.alg, In: message, Sig: sig.Out},
			{Verb: Verify, Alg: c.alg, In: digest, Type: Digest, Sig: sig.Out},
			{Verb: Verify, Alg: c.alg, In: []byte("another"), Sig: sig.Out},
		}
		if k.Do(ops); ops[0].Err != nil || ops[1].Err != nil || ops[2].Err != ErrInvalidSignature || f.calls != before {
			t.Errorf("%v: %v, %v, %v", c.spec, ops[0].Err, ops[1].Err, ops[2].Err)
		}
		again := carry(t, k, Op{Verb: Sign, Alg: c.alg, In: digest, Type: Digest})[0]
		if again.Err != nil || again.Material != k.material {
			t.Error(again.Err)
		}
		if op := do(t, k, Op{Verb: Sign, Alg: c.alg, In: digest[1:], Type: Digest}); op.Err != ErrDigestLength {
			t.Error(op.Err)
		}
	}
	k, f := tokenOf(t, RSA2048, EncryptDecrypt)
	ops := []Op{{Verb: Encrypt, Alg: AlgOAEPSHA256, In: message}}
	if k.Do(ops); ops[0].Err != nil || f.calls != 0 {
		t.Fatal(ops[0].Err)
	}
	if back := carry(t, k, Op{Verb: Decrypt, Alg: AlgOAEPSHA256, In: ops[0].Out})[0]; back.Err != nil || !bytes.Equal(back.Out, message) {
		t.Error(back.Err)
	}
	ops[0].Out[100] ^= 1
	if back := carry(t, k, Op{Verb: Decrypt, Alg: AlgOAEPSHA256, In: ops[0].Out})[0]; back.Err != ErrInvalidCiphertext {
		t.Error(back.Err)
	}
	if op := do(t, k, Op{Verb: Decrypt, Alg: AlgOAEPSHA256, In: message}); op.Err != ErrInvalidCiphertext {
		t.Error(op.Err)
	}
}

// TestTokenKeyMAC: the token makes MACs; comparing is done here.
func TestTokenKeyMAC(t *testing.T) {
	k, _ := tokenOf(t, HMAC384, GenerateVerifyMAC)
	op := carry(t, k, Op{Verb: GenerateMAC, Alg: AlgHMACSHA384, In: []byte("m")})[0]
	if op.Err != nil || len(op.Out) != 48 {
		t.Fatal(op.Err)
	}
	mac := bytes.Clone(op.Out)
	for _, c := range []struct {
		in   string
		sig  []byte
		want error
	}{{"m", mac, nil}, {"n", mac, ErrInvalidMAC}, {"m", mac[:47], ErrInvalidMAC}, {"m", nil, ErrInvalidMAC}} {
		if op := carry(t, k, Op{Verb: VerifyMAC, Alg: AlgHMACSHA384, In: []byte(c.in), Sig: c.sig})[0]; op.Err != c.want || len(op.Out) != 0 {
			t.Errorf("%q: %v, want %v", c.in, op.Err, c.want)
		}
	}
}

// TestTokenKeyFaults: what the token says of an operation is its error; what
// Before says is Warm's, and the token is not called then.
func TestTokenKeyFaults(t *testing.T) {
	k, f := tokenOf(t, SymmetricDefault, EncryptDecrypt)
	blob := carry(t, k, symOp(Encrypt, []byte("a"), nil))[0].Out
	f.fault = hsm.ErrTokenMissing
	for _, op := range carry(t, k, symOp(Encrypt, []byte("a"), nil), symOp(Decrypt, blob, nil)) {
		if !errors.Is(op.Err, hsm.ErrTokenMissing) || len(op.Out) != 0 {
			t.Errorf("%v: %v", op.Verb, op.Err)
		}
	}
	f.fault = nil
	if op := carry(t, k, symOp(Decrypt, blob, nil))[0]; op.Err != nil {
		t.Error(op.Err)
	}
	refused := errors.New("key is disabled")
	k.t.Before = func() error { return refused }
	before := f.calls
	ops := []Op{symOp(Decrypt, blob, nil)}
	k.Do(ops)
	if err := k.Warm(context.Background(), ops); err != refused || f.calls != before || ops[0].Err != ErrPending {
		t.Errorf("%v, %d calls", err, f.calls-before)
	}
	if op := do(t, k, Op{Verb: Sign, Alg: AlgECDSASHA256}); op.Err != ErrUsage {
		t.Error(op.Err)
	}
}

// TestTokenUsesAreLeased: encryptions are paid for before they happen, in
// blocks that grow; a batch that cannot be paid for fails, what decrypts in it
// does not.
func TestTokenUsesAreLeased(t *testing.T) {
	k, f := tokenOf(t, SymmetricDefault, EncryptDecrypt)
	var used uint64
	var blocks []uint64
	alarms := 0
	k.uses.lease = func(_ context.Context, n uint64) error {
		next, alarm, err := LeaseUses(used, n)
		if err == nil {
			used, blocks = next, append(blocks, n)
		}
		if alarm {
			alarms++
		}
		return err
	}
	encrypt := func(n int) (done int) {
		ops := make([]Op, n)
		for i := range ops {
			ops[i] = symOp(Encrypt, []byte{1}, nil)
		}
		for _, op := range carry(t, k, ops...) {
			if op.Err == nil {
				done++
			} else if op.Err != ErrUsedUp {
				t.Fatal(op.Err)
			}
		}
		return done
	}
	total := 0
	for range 30 {
		total += encrypt(100)
		if uint64(total) > used {
			t.Fatalf("%d uses, %d of them paid for", total, used)
		}
	}
	if len(blocks) != 4 || blocks[0] != firstLease || blocks[3] != 8*firstLease {
		t.Errorf("blocks %v for %d uses", blocks, total)
	}
	blob := carry(t, k, symOp(Encrypt, []byte{1}, nil))[0].Out

	k.uses.left, used = 0, TokenUseLimit-150
	if n := encrypt(100); n != 100 || used != TokenUseLimit-50 {
		t.Errorf("%d uses near the limit, %d left", n, TokenUseLimit-used)
	}
	before := f.calls
	if n := encrypt(51); n != 0 || f.calls != before {
		t.Errorf("%d uses beyond the limit, %d calls", n, f.calls-before)
	}
	ops := carry(t, k, symOp(Decrypt, blob, nil), symOp(Encrypt, nil, nil), symOp(Decrypt, blob, nil))
	if ops[0].Err != nil || ops[1].Err != nil || ops[2].Err != nil || string(ops[2].Out) != "\x01" {
		t.Errorf("within the limit: %v %v %v", ops[0].Err, ops[1].Err, ops[2].Err)
	}
	used = TokenUseLimit
	k.uses.left = 0
	ops = carry(t, k, symOp(Encrypt, nil, nil), symOp(Decrypt, blob, nil))
	if ops[0].Err != ErrUsedUp || ops[1].Err != nil || string(ops[1].Out) != "\x01" {
		t.Errorf("at the limit: %v %v", ops[0].Err, ops[1].Err)
	}
	if alarms != 0 {
		t.Errorf("%d alarms, but half was never passed by a lease", alarms)
	}
	for _, c := range []struct {
		used, n, next uint64
		alarm         bool
		err           error
	}{
		{0, 256, 256, false, nil},
		{TokenUseLimit/2 - 1, 1, TokenUseLimit / 2, true, nil},
		{TokenUseLimit / 2, 1, TokenUseLimit/2 + 1, false, nil},
		{TokenUseLimit - 1, 1, TokenUseLimit, false, nil},
		{TokenUseLimit, 1, TokenUseLimit, false, ErrUsedUp},
		{TokenUseLimit + 1, 0, TokenUseLimit + 1, false, ErrUsedUp},
		{1, 1<<64 - 1, 1, false, ErrUsedUp},
	} {
		if next, alarm, err := LeaseUses(c.used, c.n); next != c.next || alarm != c.alarm || err != c.err {
			t.Errorf("LeaseUses(%d, %d): %d, %v, %v", c.used, c.n, next, alarm, err)
		}
	}
}

// TestLeasesOneAtATime: many goroutines never use more than was leased, and a
// lease that hangs holds nobody beyond his context.
func TestLeasesOneAtATime(t *testing.T) {
	var mu sync.Mutex
	var leased, taken uint64
	at := 0
	b := newBudget(func(_ context.Context, n uint64) error {
		mu.Lock()
		defer mu.Unlock()
		if at++; at != 1 {
			t.Error("two leases at once")
		}
		leased += n
		at--
		return nil
	})
	var wg sync.WaitGroup
	for range 8 {
		wg.Go(func() {
			for n := range uint64(200) {
				if err := b.take(context.Background(), n); err != nil {
					t.Error(err)
				}
				mu.Lock()
				if taken += n; taken > leased {
					t.Error("more taken than leased")
				}
				mu.Unlock()
			}
		})
	}
	wg.Wait()
	if leased-taken != b.left || leased > taken+maxLease {
		t.Errorf("%d leased, %d taken, %d left", leased, taken, b.left)
	}
	hang := make(chan struct{})
	b = newBudget(func(context.Context, uint64) error { <-hang; return nil })
	first := make(chan error)
	go func() { first <- b.take(context.Background(), 1) }()
	for len(b.turn) == 0 {
		runtime.Gosched()
	}
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	if err := b.take(ctx, 1); !errors.Is(err, context.Canceled) {
		t.Errorf("while a lease hangs: %v", err)
	}
	close(hang)
	if err := <-first; err != nil {
		t.Error(err)
	}
}

// TestTokenSpecs: every spec and usage that a token can hold has a kind of its own.
func TestTokenSpecs(t *testing.T) {
	seen := map[hsm.TokenKeySpec]bool{}
	for _, spec := range allSpecs {
		for _, usage := range spec.Usages() {
			s, ok := TokenSpec(spec, usage)
			if ok != (s.String() != hsm.TokenKeySpec(0).String()) || ok && seen[s] {
				t.Errorf("%v, %v: %v", spec, usage, s)
			}
			if ok && s.Pair() != spec.Asymmetric() {
				t.Errorf("%v: a pair?", s)
			}
			seen[s] = true
		}
	}
	if len(seen) != 15 { // 14 kinds, and none
		t.Errorf("%d kinds", len(seen)-1)
	}
}
