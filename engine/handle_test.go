package engine

import (
	"bytes"
	"context"
	"errors"
	"runtime"
	"sync"
	"sync/atomic"
	"testing"
)

func symOp(verb Verb, in, aad []byte) Op { return Op{Verb: verb, Alg: AlgSymmetric, In: in, AAD: aad} }

// TestColdWarmPurge walks a handle through its life.
func TestColdWarmPurge(t *testing.T) {
	material := testMaterial(t, SymmetricDefault)
	k := keyOf(t, testID, SymmetricDefault, EncryptDecrypt, material)
	ops := []Op{symOp(Encrypt, []byte("a"), nil), symOp(Encrypt, []byte("b"), nil)}
	k.Do(ops)
	for i, op := range ops {
		if op.Err != ErrPending || len(op.Out) != 0 {
			t.Fatalf("op %d on a cold key: %v", i, op.Err)
		}
	}
	if err := k.Warm(context.Background(), ops); err != nil {
		t.Fatal(err)
	}
	k.Do(ops)
	if ops[0].Err != nil || ops[1].Err != nil || ops[0].Material != k.versions[0].MaterialID {
		t.Fatal("a warm key does not encrypt, or does not say with what")
	}
	k.Purge()
	blob := ops[0].Out
	ops = []Op{symOp(Decrypt, blob, nil)}
	if k.Do(ops); ops[0].Err != ErrPending {
		t.Fatalf("after Purge: %v", ops[0].Err)
	}
	if got := must(t, k, symOp(Decrypt, blob, nil)); string(got) != "a" {
		t.Fatalf("decrypted %q", got)
	}
}

// TestVersions: the current version encrypts, every version decrypts, and only
// what is needed is loaded.
func TestVersions(t *testing.T) {
	var materials [][]byte
	var blobs [][]byte
	for i := range 3 {
		m, _ := GenerateMaterial(SymmetricDefault)
		materials = append(materials, m)
		k := keyOf(t, testID, SymmetricDefault, EncryptDecrypt, materials...)
		blobs = append(blobs, must(t, k, symOp(Encrypt, []byte{byte(i)}, nil)))
	}
	k := keyOf(t, testID, SymmetricDefault, EncryptDecrypt, materials...)
	var loads []uint32
	src := k.src
	k.src = func(ctx context.Context, v uint32) ([]byte, error) { loads = append(loads, v); return src(ctx, v) }
	for i := range blobs {
		op := do(t, k, symOp(Decrypt, blobs[i], nil))
		if op.Err != nil || op.Out[0] != byte(i) || op.Material != k.versions[i].MaterialID {
			t.Fatalf("version %d: %v", i, op.Err)
		}
	}
	if len(loads) != 3 || loads[0] != 1 || loads[2] != 3 {
		t.Fatalf("loads: %v", loads)
	}
}

// TestSourceFaults: each way the source can fail is an error of Warm, leaves
// the key cold, and does not keep a later load from succeeding.
func TestSourceFaults(t *testing.T) {
	good := testMaterial(t, SymmetricDefault)
	fault := errors.New("token is gone")
	for _, c := range []struct {
		name string
		src  Source
		want error
	}{
		{"error", func(context.Context, uint32) ([]byte, error) { return nil, fault }, fault},
		{"other material", func(context.Context, uint32) ([]byte, error) { return make([]byte, 32), nil }, ErrInvalidMaterial},
		{"short material", func(context.Context, uint32) ([]byte, error) { return good[:31:31], nil }, ErrInvalidMaterial},
		{"panic", func(context.Context, uint32) ([]byte, error) { panic("defect") }, nil},
	} {
		t.Run(c.name, func(t *testing.T) {
			k := keyOf(t, testID, SymmetricDefault, EncryptDecrypt, testMaterial(t, SymmetricDefault))
			src := k.src
			k.src = c.src
			ops := []Op{symOp(Encrypt, []byte("a"), nil)}
			k.Do(ops)
			err := k.Warm(context.Background(), ops)
			if err == nil || c.want != nil && !errors.Is(err, c.want) {
				t.Fatalf("Warm: %v, want %v", err, c.want)
			}
			if k.Do(ops); ops[0].Err != ErrPending {
				t.Fatalf("Do after it: %v", ops[0].Err)
			}
			k.src = src
			must(t, k, symOp(Encrypt, []byte("a"), nil))
		})
	}
}

// TestSecretIsWiped: what the source returned is zero once the key is warm.
func TestSecretIsWiped(t *testing.T) {
	for _, spec := range []Spec{SymmetricDefault, HMAC256, P256, Ed25519, Secp256k1, SM2, MLDSA44, RSA2048} {
		k := keyOf(t, testID, spec, spec.Usages()[0], testMaterial(t, spec))
		var given []byte
		src := k.src
		k.src = func(ctx context.Context, v uint32) ([]byte, error) {
			var err error
			given, err = src(ctx, v)
			return given, err
		}
		verb := map[Usage]Verb{EncryptDecrypt: Decrypt, SignVerify: Sign, GenerateVerifyMAC: GenerateMAC}[k.usage]
		ops := []Op{{Verb: verb, Alg: spec.Algorithms(k.usage)[0], In: make([]byte, Overhead)}}
		if k.Do(ops); ops[0].Err != ErrPending {
			t.Fatalf("%v: %v", spec, ops[0].Err)
		}
		if err := k.Warm(context.Background(), ops); err != nil {
			t.Fatal(err)
		}
		if !bytes.Equal(given, make([]byte, len(given))) {
			t.Errorf("%v: the source's secret is still there", spec)
		}
		// The state must not have kept a slice of what was wiped.
		if verb == Decrypt {
			continue
		}
		if op := do(t, k, ops[0]); op.Err != nil {
			t.Errorf("%v: %v", spec, op.Err)
		}
	}
}

// TestWarmIsCoalesced: many callers who miss at once cause one load; one of
// them giving up takes nothing from the others.
func TestWarmIsCoalesced(t *testing.T) {
	k := keyOf(t, testID, SymmetricDefault, EncryptDecrypt, testMaterial(t, SymmetricDefault))
	var loads atomic.Int32
	gate, src := make(chan struct{}), k.src
	k.src = func(ctx context.Context, v uint32) ([]byte, error) {
		loads.Add(1)
		<-gate
		if ctx.Err() != nil {
			t.Error("a caller's cancellation reached the shared load")
		}
		return src(ctx, v)
	}
	ops := []Op{symOp(Encrypt, []byte("a"), nil)}
	k.Do(ops)
	ctx, cancel := context.WithCancel(context.Background())
	quit := make(chan error)
	go func() { quit <- k.Warm(ctx, append([]Op(nil), ops...)) }()
	for loads.Load() == 0 { // the first caller's load is under way
		runtime.Gosched()
	}
	var wg sync.WaitGroup
	for range 8 {
		wg.Go(func() {
			if err := k.Warm(context.Background(), append([]Op(nil), ops...)); err != nil {
				t.Errorf("Warm: %v", err)
			}
		})
	}
	cancel()
	if err := <-quit; err != context.Canceled {
		t.Errorf("the cancelled caller got %v", err)
	}
	close(gate)
	wg.Wait()
	if n := loads.Load(); n != 1 {
		t.Errorf("%d loads", n)
	}
	if k.Do(ops); ops[0].Err != nil {
		t.Error(ops[0].Err)
	}
}

// TestPurgeBeatsWarm: a load that was under way when Purge came must not bring
// the material back, and a Warm after the Purge does not wait for that load.
func TestPurgeBeatsWarm(t *testing.T) {
	k := keyOf(t, testID, SymmetricDefault, EncryptDecrypt, testMaterial(t, SymmetricDefault))
	started, gate, src := make(chan struct{}, 2), make(chan struct{}), k.src
	var first atomic.Bool
	k.src = func(ctx context.Context, v uint32) ([]byte, error) {
		if first.CompareAndSwap(false, true) {
			started <- struct{}{}
			<-gate
		}
		return src(ctx, v)
	}
	ops := []Op{symOp(Encrypt, []byte("a"), nil)}
	k.Do(ops)
	done := make(chan error)
	go func() { done <- k.Warm(context.Background(), append([]Op(nil), ops...)) }()
	<-started
	k.Purge()
	// The old load still hangs; a new one goes past it.
	if err := k.Warm(context.Background(), ops); err != nil {
		t.Fatalf("Warm after Purge: %v", err)
	}
	k.Purge()
	close(gate)
	if err := <-done; err != ErrPurged {
		t.Fatalf("the overtaken Warm: %v", err)
	}
	if k.Do(ops); ops[0].Err != ErrPending {
		t.Fatalf("the overtaken load was published: %v", ops[0].Err)
	}
}

// TestConcurrentUse runs everything at once, for the race detector, and checks
// that every blob that came out decrypts.
func TestConcurrentUse(t *testing.T) {
	m1, _ := GenerateMaterial(SymmetricDefault)
	m2, _ := GenerateMaterial(SymmetricDefault)
	k := keyOf(t, testID, SymmetricDefault, EncryptDecrypt, m1, m2)
	mac := keyOf(t, testID, HMAC256, GenerateVerifyMAC, testMaterial(t, HMAC256))
	old := must(t, keyOf(t, testID, SymmetricDefault, EncryptDecrypt, m1), symOp(Encrypt, []byte("old"), []byte("ctx")))
	warm := func(k Key, ops []Op) bool {
		for range 1000 {
			k.Do(ops)
			pending := false
			for i := range ops {
				pending = pending || ops[i].Err == ErrPending
			}
			if !pending {
				return true
			}
			if err := k.Warm(context.Background(), ops); err != nil && err != ErrPurged {
				t.Error(err)
				return false
			}
		}
		t.Error("never warm")
		return false
	}
	var wg sync.WaitGroup
	for g := range 6 {
		wg.Go(func() {
			for i := range 150 {
				aad := bytes.Repeat([]byte{byte(g)}, i%40)
				ops := []Op{symOp(Encrypt, aad, aad), symOp(Encrypt, []byte("x"), nil), symOp(Decrypt, old, []byte("ctx"))}
				if !warm(k, ops) {
					return
				}
				back := []Op{symOp(Decrypt, ops[0].Out, aad), symOp(Decrypt, ops[1].Out, nil)}
				if !warm(k, back) {
					return
				}
				if !bytes.Equal(back[0].Out, aad) || string(back[1].Out) != "x" || string(ops[2].Out) != "old" {
					t.Error("wrong plaintext")
				}
				macs := []Op{{Verb: GenerateMAC, Alg: AlgHMACSHA256, In: aad}}
				if !warm(mac, macs) {
					return
				}
				macs = []Op{{Verb: VerifyMAC, Alg: AlgHMACSHA256, In: aad, Sig: macs[0].Out}}
				if warm(mac, macs); macs[0].Err != nil {
					t.Error(macs[0].Err)
				}
				if g == 0 && i%10 == 0 {
					k.Purge()
					mac.Purge()
				}
			}
		})
	}
	wg.Wait()
}

// TestKeyWithoutMaterial: a key whose import is pending.
func TestKeyWithoutMaterial(t *testing.T) {
	sym := NewLocalKey(testID, SymmetricDefault, EncryptDecrypt, nil, -1, nil, nil)
	mac := NewLocalKey(testID, HMAC256, GenerateVerifyMAC, nil, -1, nil, nil)
	for k, op := range map[Key]Op{
		sym: symOp(Encrypt, []byte("a"), nil),
		mac: {Verb: GenerateMAC, Alg: AlgHMACSHA256, In: []byte("a")},
	} {
		ops := []Op{op}
		if k.Do(ops); ops[0].Err != ErrNoMaterial {
			t.Errorf("%v: %v", k.Spec(), ops[0].Err)
		}
	}
	ops := []Op{symOp(Decrypt, make([]byte, 100), nil)}
	if sym.Do(ops); ops[0].Err != ErrNoMaterial {
		t.Errorf("Decrypt: %v", ops[0].Err)
	}
}

// TestRefusals: an operation that does not fit the key says how, and the key
// stays cold.
func TestRefusals(t *testing.T) {
	sym := keyOf(t, testID, SymmetricDefault, EncryptDecrypt, testMaterial(t, SymmetricDefault))
	ec := keyOf(t, testID, P256, SignVerify, testMaterial(t, P256))
	agree := keyOf(t, testID, P256, KeyAgreement, testMaterial(t, P256))
	_, p384, _ := GenerateKeyPair(P384)
	for _, c := range []struct {
		name string
		k    *local
		op   Op
		want error
	}{
		{"sign with an encryption key", sym, Op{Verb: Sign, Alg: AlgSymmetric}, ErrUsage},
		{"no verb", sym, Op{Alg: AlgSymmetric}, ErrUsage},
		{"unknown verb", sym, Op{Verb: 99, Alg: AlgSymmetric}, ErrUsage},
		{"OAEP with a symmetric key", sym, Op{Verb: Encrypt, Alg: AlgOAEPSHA1}, ErrIncompatible},
		{"long plaintext", sym, Op{Verb: Encrypt, Alg: AlgSymmetric, In: make([]byte, 4301)}, ErrPlaintextTooLong},
		{"P-384's algorithm", ec, Op{Verb: Sign, Alg: AlgECDSASHA384}, ErrIncompatible},
		{"unknown algorithm", ec, Op{Verb: Sign, Alg: 200}, ErrIncompatible},
		{"unknown message type", ec, Op{Verb: Sign, Alg: AlgECDSASHA256, Type: 9}, ErrMessageType},
		{"short digest", ec, Op{Verb: Verify, Alg: AlgECDSASHA256, Type: Digest, In: make([]byte, 31)}, ErrDigestLength},
		{"derive with a signing key", ec, Op{Verb: DeriveSecret, Alg: AlgECDH}, ErrUsage},
		{"cold key", agree, Op{Verb: DeriveSecret, Alg: AlgECDH, In: p384}, ErrPending},
	} {
		ops := []Op{c.op}
		c.k.Do(ops)
		if ops[0].Err != c.want {
			t.Errorf("%s: %v, want %v", c.name, ops[0].Err, c.want)
		}
		for i := range c.k.states {
			if c.k.states[i].Load() != nil {
				t.Errorf("%s: the key is warm", c.name)
			}
		}
	}
	for name, peer := range map[string][]byte{"nothing": nil, "other curve": p384, "cut": ec.spki[:80], "garbage": bytes.Repeat([]byte{0x30}, 91)} {
		if op := do(t, agree, Op{Verb: DeriveSecret, Alg: AlgECDH, In: peer}); op.Err != ErrInvalidPublicKey {
			t.Errorf("peer %s: %v", name, op.Err)
		}
	}
	off := bytes.Clone(agree.spki)
	off[len(off)-1] ^= 1
	if op := do(t, agree, Op{Verb: DeriveSecret, Alg: AlgECDH, In: off}); op.Err != ErrInvalidPublicKey {
		t.Errorf("peer off the curve: %v", op.Err)
	}
}

// TestRemember: a key whose material is at hand is warm at once, without its
// source, and not after a Purge that empties the memory first.
func TestRemember(t *testing.T) {
	material := testMaterial(t, SymmetricDefault)
	k := NewLocalKey(testID, SymmetricDefault, EncryptDecrypt, []KeyVersion{{1, ComputeMaterialID(testID, material)}}, 0, nil,
		func(context.Context, uint32) ([]byte, error) { return nil, errors.New("the source was asked") })
	ops := []Op{symOp(Encrypt, []byte("x"), nil)}
	if k.Do(ops); WarmNow(k, ops) || ops[0].Err != ErrPending {
		t.Fatalf("warm without a memory: %v", ops[0].Err)
	}
	var memory []byte
	Remember(k, func(version uint32) []byte {
		if version != 1 {
			t.Errorf("asked for version %d", version)
		}
		return memory
	})
	if WarmNow(k, ops) {
		t.Fatal("warm from an empty memory")
	}
	memory = bytes.Clone(material)
	if !WarmNow(k, ops) {
		t.Fatal("not warm")
	}
	if !bytes.Equal(memory, make([]byte, len(memory))) {
		t.Error("the material was not wiped")
	}
	memory = nil
	if k.Do(ops); ops[0].Err != nil || WarmNow(k, ops) {
		t.Fatalf("%v, or warmed for nothing", ops[0].Err)
	}
	if got := must(t, keyOf(t, testID, SymmetricDefault, EncryptDecrypt, material), symOp(Decrypt, ops[0].Out, nil)); string(got) != "x" {
		t.Errorf("decrypted %q", got)
	}
	k.Purge()
	if k.Do(ops); ops[0].Err != ErrPending || WarmNow(k, ops) {
		t.Errorf("after the purge: %v", ops[0].Err)
	}
	if err := k.Warm(context.Background(), ops); err == nil {
		t.Error("warm without a source")
	}
	memory = make([]byte, 5)
	if WarmNow(k, ops) {
		t.Error("warm from something that is no material")
	}
}

// TestRememberRace: a key that is purged again and again after its memory was
// emptied never computes with what was in it before.
func TestRememberRace(t *testing.T) {
	material := testMaterial(t, SymmetricDefault)
	var mu sync.Mutex
	var memory []byte
	k := NewLocalKey(testID, SymmetricDefault, EncryptDecrypt, []KeyVersion{{1, ComputeMaterialID(testID, material)}}, 0, nil, nil)
	Remember(k, func(uint32) []byte {
		mu.Lock()
		defer mu.Unlock()
		return bytes.Clone(memory)
	})
	var users sync.WaitGroup
	stop := make(chan struct{})
	for range 4 {
		users.Go(func() {
			ops := []Op{symOp(Encrypt, []byte("x"), nil)}
			for {
				select {
				case <-stop:
					return
				default:
				}
				if k.Do(ops); ops[0].Err == ErrPending {
					WarmNow(k, ops)
				}
			}
		})
	}
	for range 300 {
		mu.Lock()
		memory = material
		mu.Unlock()
		for used := false; !used; {
			ops := []Op{symOp(Encrypt, nil, nil)}
			WarmNow(k, []Op{{Verb: Encrypt, Err: ErrPending}})
			k.Do(ops)
			used = ops[0].Err == nil
		}
		mu.Lock()
		memory = nil
		mu.Unlock()
		k.Purge()
		for range 10 {
			ops := []Op{symOp(Encrypt, nil, nil)}
			if k.Do(ops); ops[0].Err != ErrPending {
				t.Fatalf("after the purge: %v", ops[0].Err)
			}
		}
	}
	close(stop)
	users.Wait()
}
