package engine

import (
	"bytes"
	"testing"

	"keymill/hsm/xaes"
)

// TestBlobLayout checks the bytes of a blob against the published format, by
// opening it with the plain XAES-256-GCM of hsm/xaes.
func TestBlobLayout(t *testing.T) {
	material := testMaterial(t, SymmetricDefault)
	plain, err := xaes.New(material)
	if err != nil {
		t.Fatal(err)
	}
	for _, id := range []KeyID{testID, {ID: testID.ID, MultiRegion: true}} {
		k := keyOf(t, id, SymmetricDefault, EncryptDecrypt, material)
		context := AppendContext(nil, []ContextPair{{"b", "2"}, {"a", "1"}})
		blob := must(t, k, symOp(Encrypt, []byte("plaintext"), context))
		if len(blob) != Overhead+len("plaintext") {
			t.Fatalf("blob of %d bytes", len(blob))
		}
		m := ComputeMaterialID(id, material)
		want := append([]byte{1, 1, 1}, id.ID[:]...)
		if id.MultiRegion {
			want[2] = 2
		}
		want = append(want, m[:]...)
		if !bytes.Equal(blob[:51], want) {
			t.Errorf("header %x, want %x", blob[:51], want)
		}
		got, err := plain.Open(nil, blob[51:75], blob[75:], append(want, "\x00\x00\x00\x01a\x00\x00\x00\x011\x00\x00\x00\x01b\x00\x00\x00\x012"...))
		if err != nil || string(got) != "plaintext" {
			t.Errorf("opened %q, %v", got, err)
		}
		h, err := ParseBlob(blob)
		if err != nil || h != (BlobHeader{SchemeLocal, id, m}) {
			t.Errorf("ParseBlob: %+v, %v", h, err)
		}
	}
}

// TestInvalidCiphertexts: whatever is done to a blob or its context, the answer
// is the one error.
func TestInvalidCiphertexts(t *testing.T) {
	m1, _ := GenerateMaterial(SymmetricDefault)
	m2, _ := GenerateMaterial(SymmetricDefault)
	k := keyOf(t, testID, SymmetricDefault, EncryptDecrypt, m1, m2)
	ctx := AppendContext(nil, []ContextPair{{"purpose", "test"}})
	blob := must(t, k, symOp(Encrypt, []byte("secret"), ctx))
	must(t, k, symOp(Decrypt, blob, ctx))

	fails := func(name string, blob, aad []byte) {
		t.Helper()
		op := do(t, k, symOp(Decrypt, blob, aad))
		if op.Err != ErrInvalidCiphertext || len(op.Out) != 0 {
			t.Errorf("%s: %v, %d bytes", name, op.Err, len(op.Out))
		}
	}
	for i := range blob {
		for bit := range 8 {
			changed := bytes.Clone(blob)
			changed[i] ^= 1 << bit
			fails("bit flip", changed, ctx)
		}
		fails("truncated", blob[:i], ctx)
		fails("beginning cut off", blob[i+1:], ctx)
	}
	fails("longer", append(bytes.Clone(blob), 0), ctx)
	fails("no context", blob, nil)
	fails("part of the context", blob, ctx[:len(ctx)-1])
	fails("context of another case", blob, AppendContext(nil, []ContextPair{{"Purpose", "test"}}))

	// The same material under another key id, another kind of id, and another
	// version's header on this version's body.
	for _, id := range []KeyID{{ID: [16]byte{1}}, {ID: testID.ID, MultiRegion: true}} {
		other := must(t, keyOf(t, id, SymmetricDefault, EncryptDecrypt, m1, m2), symOp(Encrypt, []byte("secret"), ctx))
		fails("of another key", other, ctx)
		fails("under this key's header", append(bytes.Clone(blob[:headerSize]), other[headerSize:]...), ctx)
	}
	old := must(t, keyOf(t, testID, SymmetricDefault, EncryptDecrypt, m1), symOp(Encrypt, []byte("secret"), ctx))
	must(t, k, symOp(Decrypt, old, ctx))
	fails("under another version's header", append(bytes.Clone(old[:headerSize]), blob[headerSize:]...), ctx)
}

// TestParseBlobRefusals: unknown schemes, versions and id kinds, and
// anything too short are invalid ciphertexts.
func TestParseBlobRefusals(t *testing.T) {
	k := keyOf(t, testID, SymmetricDefault, EncryptDecrypt, testMaterial(t, SymmetricDefault))
	blob := must(t, k, symOp(Encrypt, nil, nil))
	for name, change := range map[string]func(b []byte) []byte{
		"empty":          func(b []byte) []byte { return nil },
		"one byte short": func(b []byte) []byte { return b[1:] },
		"version 0":      func(b []byte) []byte { b[0] = 0; return b },
		"version 2":      func(b []byte) []byte { b[0] = 2; return b },
		"short token":    func(b []byte) []byte { b[1] = byte(SchemeToken); return b[:TokenMinimum-1] },
		"unknown scheme": func(b []byte) []byte { b[1] = 4; return b },
		"id kind 0":      func(b []byte) []byte { b[2] = 0; return b },
		"id kind 3":      func(b []byte) []byte { b[2] = 3; return b },
	} {
		if _, err := ParseBlob(change(bytes.Clone(blob))); err != ErrInvalidCiphertext {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// busy uses k until it has lanes, and returns them.
func busy(t testing.TB, k *local) *busyState {
	t.Helper()
	for range busyAfter {
		must(t, k, symOp(Encrypt, nil, nil))
	}
	b := k.states[0].Load().cipher.busy.Load()
	if b == nil {
		t.Fatalf("not busy after %d messages", busyAfter)
	}
	return b
}

// TestBusy: the first messages of a key leave neither lanes nor derived keys, each
// has a derived key of its own, and forgeries do not count as messages.
func TestBusy(t *testing.T) {
	material := testMaterial(t, SymmetricDefault)
	k := keyOf(t, testID, SymmetricDefault, EncryptDecrypt, material)
	seen := map[string]bool{}
	var blob []byte
	for range busyAfter - 2 {
		blob = must(t, k, symOp(Encrypt, []byte("x"), nil))
		if prefix := string(blob[headerSize:][:halfNonce]); seen[prefix] {
			t.Error("two messages under one derived key")
		} else {
			seen[prefix] = true
		}
	}
	forged := bytes.Clone(blob)
	forged[len(forged)-1] ^= 1
	for range 3 * busyAfter {
		do(t, k, symOp(Decrypt, forged, nil))
	}
	if got := must(t, k, symOp(Decrypt, blob, nil)); string(got) != "x" {
		t.Errorf("decrypted %q", got)
	}
	st := k.states[0].Load().cipher
	if st.busy.Load() != nil {
		t.Fatal("busy too early")
	}
	if got := must(t, k, symOp(Decrypt, blob, nil)); string(got) != "x" || st.busy.Load() == nil {
		t.Fatalf("decrypted %q, busy %t", got, st.busy.Load() != nil)
	}
	k.Purge()
	must(t, k, symOp(Encrypt, nil, nil))
	if k.states[0].Load().cipher.busy.Load() != nil {
		t.Error("busy after a purge")
	}
	batch := make([]Op, busyAfter)
	for i := range batch {
		batch[i] = symOp(Encrypt, []byte{byte(i)}, nil)
	}
	k.Do(batch)
	if k.states[0].Load().cipher.busy.Load() == nil {
		t.Error("not busy after a batch")
	}
	for i := range batch {
		if got := must(t, k, symOp(Decrypt, batch[i].Out, nil)); !bytes.Equal(got, []byte{byte(i)}) {
			t.Errorf("decrypted %x, not %d", got, i)
		}
	}
}

// TestCacheFillsOnlyAfterTag: forged blobs compute derived keys but leave none
// in the cache.
func TestCacheFillsOnlyAfterTag(t *testing.T) {
	k := keyOf(t, testID, SymmetricDefault, EncryptDecrypt, testMaterial(t, SymmetricDefault))
	d := &busy(t, k).derived
	blob := must(t, k, symOp(Encrypt, []byte("x"), nil))
	cached := func() (n int) {
		for i := range d.ways {
			for j := range d.ways[i] {
				if d.ways[i][j].Load() != nil {
					n++
				}
			}
		}
		return n
	}
	for i := range 200 {
		forged := bytes.Clone(blob)
		forged[headerSize] ^= byte(i + 1)
		do(t, k, symOp(Decrypt, forged, nil))
	}
	if n := cached(); n != 0 {
		t.Fatalf("%d derived keys cached by forgeries", n)
	}
	must(t, k, symOp(Decrypt, blob, nil))
	if n := cached(); n != 1 {
		t.Fatalf("%d derived keys cached by one genuine blob", n)
	}
}

// TestCacheIsBounded fills the cache with far more derived keys than it holds.
// All of them still decrypt.
func TestCacheIsBounded(t *testing.T) {
	material := testMaterial(t, SymmetricDefault)
	k := keyOf(t, testID, SymmetricDefault, EncryptDecrypt, material)
	var blobs [][]byte
	for range 4 * derivedSets {
		k.Purge() // new lanes, so new derived keys
		blobs = append(blobs, must(t, k, symOp(Encrypt, []byte("x"), nil)))
	}
	busy(t, k)
	for range 2 {
		for i, b := range blobs {
			if op := do(t, k, symOp(Decrypt, b, nil)); op.Err != nil {
				t.Fatalf("blob %d: %v", i, op.Err)
			}
		}
	}
}

// TestLaneLimit: a lane takes a new derived key after its last message, in the
// middle of a batch too, and draws a new second half for each message.
func TestLaneLimit(t *testing.T) {
	k := keyOf(t, testID, SymmetricDefault, EncryptDecrypt, testMaterial(t, SymmetricDefault))
	lanes := busy(t, k).lanes
	first := map[[halfNonce]byte]bool{}
	for range lanes.Len() { // every lane is about to be used up
		slot := lanes.Acquire()
		defer lanes.Release(slot)
		slot.V.ready(k.states[0].Load().cipher)
		slot.V.sealed = laneMessages - 1
		first[slot.V.prefix] = true
	}
	// All lanes are ours: the key has to do without.
	spare := must(t, k, symOp(Encrypt, []byte("spare"), nil))
	if first[[halfNonce]byte(spare[headerSize:])] {
		t.Fatal("a busy lane's derived key was used")
	}
	if got := must(t, k, symOp(Decrypt, spare, nil)); string(got) != "spare" {
		t.Fatalf("decrypted %q", got)
	}
}

func TestLaneRollsOver(t *testing.T) {
	k := keyOf(t, testID, SymmetricDefault, EncryptDecrypt, testMaterial(t, SymmetricDefault))
	lanes := busy(t, k).lanes
	var slots []func()
	for range lanes.Len() {
		slot := lanes.Acquire()
		slot.V.ready(k.states[0].Load().cipher)
		slot.V.sealed = laneMessages - 3
		slots = append(slots, func() { lanes.Release(slot) })
	}
	for _, release := range slots {
		release()
	}
	const n = 150 // more than one read of random bytes
	ops := make([]Op, n)
	for i := range ops {
		ops[i] = symOp(Encrypt, []byte{byte(i)}, nil)
	}
	k.Do(ops)
	prefixes, nonces := map[string]int{}, map[string]bool{}
	for i := range ops {
		if ops[i].Err != nil {
			t.Fatal(ops[i].Err)
		}
		prefixes[string(ops[i].Out[headerSize:headerSize+halfNonce])]++
		nonces[string(ops[i].Out[headerSize+halfNonce:headerSize+nonceSize])] = true
		if got := must(t, k, symOp(Decrypt, ops[i].Out, nil)); got[0] != byte(i) {
			t.Fatalf("op %d decrypts to %d", i, got[0])
		}
	}
	if len(nonces) != n {
		t.Errorf("%d nonces for %d messages", len(nonces), n)
	}
	if prefixes[string(ops[0].Out[headerSize:headerSize+halfNonce])] != 3 || len(prefixes) != 2 {
		t.Errorf("messages by derived key: %d keys, want 3 messages under the first of 2", len(prefixes))
	}
}

// TestBatchMixed: errors in a batch stay with their own operation, and the
// scratch holds no nonce afterwards.
func TestBatchMixed(t *testing.T) {
	k := keyOf(t, testID, SymmetricDefault, EncryptDecrypt, testMaterial(t, SymmetricDefault))
	good := must(t, k, symOp(Encrypt, []byte("good"), nil))
	ops := []Op{
		symOp(Encrypt, []byte("a"), []byte("ctx")),
		symOp(Decrypt, good[:20], nil),
		symOp(Encrypt, make([]byte, 5000), nil),
		symOp(Decrypt, good, nil),
		symOp(Encrypt, []byte("b"), nil),
		{Verb: Sign, Alg: AlgSymmetric},
	}
	k.Do(ops)
	for i, want := range []error{nil, ErrInvalidCiphertext, ErrPlaintextTooLong, nil, nil, ErrUsage} {
		if ops[i].Err != want {
			t.Errorf("op %d: %v, want %v", i, ops[i].Err, want)
		}
	}
	for range scratches.Len() {
		slot := scratches.Acquire()
		defer scratches.Release(slot)
		if slot.V.nonces != [64 * halfNonce]byte{} {
			t.Error("a nonce was kept beyond its call")
		}
	}
	// With every scratch owned, calls bring their own.
	if got := must(t, k, symOp(Decrypt, ops[0].Out, []byte("ctx"))); string(got) != "a" {
		t.Errorf("decrypted %q", got)
	}
}

func TestAllocations(t *testing.T) {
	if raceEnabled {
		t.Skip("SKIP: the race detector allocates, so allocations are not counted")
	}
	k := keyOf(t, testID, SymmetricDefault, EncryptDecrypt, testMaterial(t, SymmetricDefault))
	mac := keyOf(t, testID, HMAC256, GenerateVerifyMAC, testMaterial(t, HMAC256))
	ctx := AppendContext(nil, []ContextPair{{"purpose", "test"}})
	out := make([]byte, 0, 256)
	blob := must(t, k, symOp(Encrypt, make([]byte, 32), ctx))
	tag := must(t, mac, Op{Verb: GenerateMAC, Alg: AlgHMACSHA256, In: blob})
	ops := make([]Op, 1)
	for name, c := range map[string]struct {
		k  Key
		op Op
	}{
		"Encrypt":              {k, Op{Verb: Encrypt, Alg: AlgSymmetric, In: make([]byte, 32), Out: out}},
		"Encrypt with context": {k, Op{Verb: Encrypt, Alg: AlgSymmetric, In: make([]byte, 32), AAD: ctx, Out: out}},
		"Decrypt":              {k, Op{Verb: Decrypt, Alg: AlgSymmetric, In: blob, AAD: ctx, Out: out}},
		"GenerateMAC":          {mac, Op{Verb: GenerateMAC, Alg: AlgHMACSHA256, In: blob, Out: out}},
		"VerifyMAC":            {mac, Op{Verb: VerifyMAC, Alg: AlgHMACSHA256, In: blob, Sig: tag}},
	} {
		run := func() {
			ops[0] = c.op
			c.k.Do(ops)
			if ops[0].Err != nil {
				t.Fatalf("%s: %v", name, ops[0].Err)
			}
		}
		for range 100 { // every lane is used at least once
			run()
		}
		if n := testing.AllocsPerRun(200, run); n != 0 {
			t.Errorf("%s allocates %v times", name, n)
		}
	}
	buf := make([]byte, 0, 64)
	pairs := []ContextPair{{"b", "2"}, {"a", "1"}}
	id := testID.String()
	if n := testing.AllocsPerRun(100, func() {
		pairs[0], pairs[1] = pairs[1], pairs[0]
		buf = AppendContext(buf[:0], pairs)
		if _, ok := ParseKeyID(id); !ok {
			t.Fatal(id)
		}
		if _, ok := ParseAlgorithm("ED25519_PH_SHA_512"); !ok {
			t.Fatal("algorithm")
		}
	}); n != 0 {
		t.Errorf("context, key id and algorithm allocate %v times", n)
	}
}
