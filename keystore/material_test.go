package keystore

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"testing"
	"time"

	"keymill/hsm"
	"keymill/hsm/hsmtest"
)

// keys commits keys with material and returns their identities.
func (h *harness) keys(n int) []Identity {
	h.t.Helper()
	ids := make([]Identity, n)
	for i := range ids {
		k := testKey(byte(i + 1))
		ids[i] = Identity{account, region, k.Spec, k.ID, 1}
		m, err := h.SealMaterial(context.Background(), ids[i], []byte(fmt.Sprint("secret ", i)))
		if err != nil {
			h.t.Fatal(err)
		}
		h.commit(func(txn *Txn) { txn.PutKey(k, 0); txn.PutMaterial(m, 0) })
	}
	return ids
}

// block makes the next call of op wait, and returns what lets it go.
func (h *harness) block(op hsmtest.Op) (release func()) {
	c := make(chan struct{})
	h.root.Inject(op, hsmtest.Fault{Block: c})
	return func() { close(c) }
}

// TestUnwrapsAreShared: concurrent callers of one key are one unwrap, also those
// who come while it is under way, and callers of several keys one of each.
func TestUnwrapsAreShared(t *testing.T) {
	h := newHarness(t)
	ids := h.keys(20)
	release := h.block(hsmtest.Decrypt)
	before, items := h.root.Calls(hsmtest.Decrypt), h.root.Items(hsmtest.Decrypt)
	var wg sync.WaitGroup
	open := func(i int) {
		wg.Go(func() {
			secret, err := h.OpenMaterial(context.Background(), ids[i])
			if err != nil || string(secret) != fmt.Sprint("secret ", i) {
				t.Errorf("key %d: %q, %v", i, secret, err)
			}
			clear(secret) // each has its own
		})
	}
	open(0)
	eventually(t, "call", func() bool { return h.root.Calls(hsmtest.Decrypt) == before+1 })
	for i := range ids {
		for range 5 {
			open(i)
		}
	}
	eventually(t, "everybody waits", func() bool {
		users := 0
		h.opens.mu.Lock()
		defer h.opens.mu.Unlock()
		for _, f := range h.opens.flights {
			users += f.users - 1
		}
		return users == 1+5*len(ids)
	})
	release()
	wg.Wait()
	if n := h.root.Items(hsmtest.Decrypt) - items; n != len(ids) {
		t.Errorf("%d unwraps, want %d", n, len(ids))
	}
	if len(h.opens.flights) != 0 {
		t.Errorf("%d flights remain", len(h.opens.flights))
	}
}

// TestCombinedCalls: a quick root gets one call at a time, with all that has come
// meanwhile; a slow one gets as many calls as it has sessions, none of them large;
// and it goes back to one when the root is quick again.
func TestCombinedCalls(t *testing.T) {
	const sessions = 4
	var mu sync.Mutex
	clock := time.Time{}
	type call struct {
		items int
		took  time.Duration
		end   chan struct{}
	}
	calls := make(chan *call)
	c := newCombiner(sessions, func(_ context.Context, _ hsm.DomainKeyID, items []hsm.Item) {
		this := &call{items: len(items), end: make(chan struct{})}
		calls <- this
		<-this.end
		mu.Lock()
		clock = clock.Add(this.took)
		mu.Unlock()
		for i := range items {
			items[i].Out = append([]byte(nil), items[i].In...)
		}
	})
	c.now = func() time.Time {
		mu.Lock()
		defer mu.Unlock()
		return clock
	}
	var wg sync.WaitGroup
	queue := func(n int) {
		c.mu.Lock()
		before := len(c.queue)
		c.mu.Unlock()
		for i := range n {
			wg.Go(func() {
				if out, err := c.do(context.Background(), hsm.DomainKeyID{}, []byte{byte(i)}); err != nil || out[0] != byte(i) {
					t.Errorf("item %d: %x, %v", i, out, err)
				}
			})
		}
		eventually(t, "queued", func() bool {
			c.mu.Lock()
			defer c.mu.Unlock()
			return len(c.queue) == before+n
		})
	}
	next := func(items int) *call {
		t.Helper()
		this := <-calls
		if this.items != items {
			t.Errorf("a call of %d items, want %d", this.items, items)
		}
		return this
	}
	end := func(this *call, took time.Duration) {
		this.took = took
		close(this.end)
	}
	one := func() *call {
		wg.Go(func() { c.do(context.Background(), hsm.DomainKeyID{}, []byte{1}) })
		return next(1)
	}
	first := one()
	queue(20)
	end(first, slowRound/2)
	all := next(20) // together
	queue(3*slowCombined + 2)
	end(all, 6*slowRound) // five rounds of four: slow
	under := []*call{<-calls, <-calls, <-calls, <-calls}
	slices.SortFunc(under, func(a, b *call) int { return b.items - a.items })
	for i, want := range []int{slowCombined, slowCombined, slowCombined, 2} {
		if under[i].items != want {
			t.Errorf("call %d of %d items, want %d", i, under[i].items, want)
		}
	}
	queue(1) // as many are under way as there are sessions
	end(under[0], 2*slowRound)
	last := next(1)
	for _, u := range under[1:] {
		end(u, 0)
	}
	runners := func(want int) {
		t.Helper()
		eventually(t, "runners end", func() bool {
			c.mu.Lock()
			defer c.mu.Unlock()
			return c.runs == want && len(c.queue) == 0
		})
	}
	runners(1)
	end(last, slowRound/2) // quick again
	wg.Wait()
	runners(0)
	first = one()
	queue(20)
	end(first, slowRound/2)
	end(next(20), 0)
	wg.Wait()
}

// TestCallersMayLeave: a caller whose context ends goes; the others get their
// secret.
func TestCallersMayLeave(t *testing.T) {
	h := newHarness(t)
	ids := h.keys(1)
	release := h.block(hsmtest.Decrypt)
	ctx, cancel := context.WithCancel(context.Background())
	gone, stayed := make(chan error, 1), make(chan error, 1)
	go func() { _, err := h.OpenMaterial(ctx, ids[0]); gone <- err }()
	go func() {
		secret, err := h.OpenMaterial(context.Background(), ids[0])
		if err == nil && string(secret) != "secret 0" {
			err = fmt.Errorf("got %q", secret)
		}
		stayed <- err
	}()
	eventually(t, "both to wait", func() bool {
		h.opens.mu.Lock()
		defer h.opens.mu.Unlock()
		for _, f := range h.opens.flights {
			return f.users == 3
		}
		return false
	})
	cancel()
	if err := <-gone; !errors.Is(err, context.Canceled) {
		t.Errorf("who left got %v", err)
	}
	release()
	if err := <-stayed; err != nil {
		t.Error(err)
	}

	release = h.block(hsmtest.Encrypt)
	ctx, cancel = context.WithCancel(context.Background())
	calls := h.root.Calls(hsmtest.Encrypt)
	go func() { _, err := h.SealMaterial(ctx, ids[0], []byte("x")); gone <- err }()
	eventually(t, "call", func() bool { return h.root.Calls(hsmtest.Encrypt) > calls })
	cancel()
	if err := <-gone; !errors.Is(err, context.Canceled) {
		t.Errorf("who left got %v", err)
	}
	release()
	if _, err := h.SealMaterial(ctx, ids[0], nil); !errors.Is(err, context.Canceled) {
		t.Errorf("with an ended context: %v", err)
	}
}

// TestReplacedMaterialIsNotShared: an unwrap that began before the material was
// replaced does not answer those who came after.
func TestReplacedMaterialIsNotShared(t *testing.T) {
	h := newHarness(t)
	ids := h.keys(1)
	release := h.block(hsmtest.Decrypt)
	calls := h.root.Calls(hsmtest.Decrypt)
	old := make(chan string, 1)
	go func() { secret, _ := h.OpenMaterial(context.Background(), ids[0]); old <- string(secret) }()
	eventually(t, "call", func() bool { return h.root.Calls(hsmtest.Decrypt) > calls })
	m, err := h.SealMaterial(context.Background(), ids[0], []byte("replaced"))
	if err != nil {
		t.Fatal(err)
	}
	h.commit(func(txn *Txn) { txn.PutMaterial(m, AnyRevision) })
	later := make(chan string, 1)
	go func() { secret, _ := h.OpenMaterial(context.Background(), ids[0]); later <- string(secret) }()
	eventually(t, "second caller", func() bool {
		h.opens.mu.Lock()
		defer h.opens.mu.Unlock()
		callers := 0
		for _, f := range h.opens.flights {
			callers += f.users - 1
		}
		return callers == 2
	})
	release()
	if s := <-old; s != "secret 0" {
		t.Errorf("the first got %q", s)
	}
	if s := <-later; s != "replaced" {
		t.Errorf("the second got %q", s)
	}
}

// TestRootFaults: each row breaks the root; the error passes through, nothing is
// kept, and the next call works.
func TestRootFaults(t *testing.T) {
	h := newHarness(t)
	ids := h.keys(2)
	for _, fault := range []hsmtest.Fault{
		{Err: hsm.ErrTokenMissing},
		{Err: hsm.ErrTimeout, TookEffect: true},
		{Err: hsm.ErrBadWrapped, Items: []int{0}},
	} {
		h.root.Inject(hsmtest.Decrypt, fault)
		if secret, err := h.OpenMaterial(context.Background(), ids[0]); !errors.Is(err, fault.Err) || secret != nil {
			t.Errorf("open: %q, %v, want %v", secret, err, fault.Err)
		}
		h.root.Inject(hsmtest.Encrypt, fault)
		if m, err := h.SealMaterial(context.Background(), ids[0], []byte("x")); !errors.Is(err, fault.Err) || m != nil {
			t.Errorf("seal: %v, %v, want %v", m, err, fault.Err)
		}
		if _, err := h.OpenMaterial(context.Background(), ids[0]); err != nil {
			t.Errorf("afterwards: %v", err)
		}
	}
}

// TestMaterialBelongsToItsIdentity: material opens for exactly the identity it
// was sealed for, even when it lies in another's record.
func TestMaterialBelongsToItsIdentity(t *testing.T) {
	h := newHarness(t)
	ids := h.keys(2)
	wrong := map[string]Identity{}
	for name, change := range map[string]func(*Identity){
		"account": func(id *Identity) { id.Account = "111111111111" },
		"spec":    func(id *Identity) { id.Spec = "HMAC_256" },
	} {
		id := ids[0]
		change(&id)
		wrong[name] = id
	}
	m, err := h.Material(Ref{region, ids[0].ID}, 1)
	if err != nil {
		t.Fatal(err)
	}
	for name, move := range map[string]func(*Material){
		"key":     func(m *Material) { m.Ref.ID = ids[1].ID },
		"version": func(m *Material) { m.Version = 2 },
	} {
		moved := *m
		move(&moved)
		h.commit(func(txn *Txn) { txn.PutMaterial(&moved, AnyRevision) })
		id := ids[0]
		id.ID, id.Version = moved.Ref.ID, moved.Version
		wrong[name] = id
	}
	for name, id := range wrong {
		if secret, err := h.OpenMaterial(context.Background(), id); !errors.Is(err, ErrTampered) || secret != nil {
			t.Errorf("another %s: %q, %v", name, secret, err)
		}
	}
	cut := *m
	cut.Sealed = cut.Sealed[:10]
	h.commit(func(txn *Txn) { txn.PutMaterial(&cut, AnyRevision) })
	if _, err := h.OpenMaterial(context.Background(), ids[0]); !errors.Is(err, ErrTampered) {
		t.Errorf("cut: %v", err)
	}
	if _, err := h.OpenMaterial(context.Background(), Identity{}); !errors.Is(err, ErrInvalid) {
		t.Errorf("no identity: %v", err)
	}
}

// TestSecretsAreWiped looks at the buffers after their time.
func TestSecretsAreWiped(t *testing.T) {
	h := newHarness(t)
	ids := h.keys(1)
	var seen [][]byte
	spy := newCombiner(0, func(ctx context.Context, id hsm.DomainKeyID, items []hsm.Item) {
		h.root.Decrypt(ctx, id, items)
		for _, it := range items {
			seen = append(seen, it.Out)
		}
	})
	h.unwrap = spy
	secret, err := h.OpenMaterial(context.Background(), ids[0])
	if err != nil || string(secret) != "secret 0" {
		t.Fatal(secret, err)
	}
	if len(seen) != 1 || !bytes.Equal(seen[0], make([]byte, hsm.KEKSize)) {
		t.Error("the key-encryption key was not wiped")
	}
	txn := h.NewTxn()
	txn.PutAccessKey(&AccessKey{ID: "AKIA", Account: account, PrincipalID: "p", Secret: []byte("very secret")}, 0)
	plain := txn.plain[0]
	if !bytes.Contains(plain, []byte("very secret")) {
		t.Fatal("the test looks in the wrong place")
	}
	if _, err := txn.Commit(context.Background()); err != nil {
		t.Fatal(err)
	}
	if bytes.Contains(plain, []byte("secret")) {
		t.Error("the encoded access key was not wiped")
	}
}

// Verify holds the material of imported keys against what their records say of it.
func TestVerifyImportedMaterial(t *testing.T) {
	for _, c := range []struct{ missing, there, sound bool }{
		{false, true, true}, {true, false, true}, {false, false, false}, {true, true, false},
	} {
		h := newHarness(t)
		k := testKey(1)
		k.Origin, k.Versions[0].Missing = originImported, c.missing
		h.commit(func(txn *Txn) { txn.PutKey(k, 0) })
		if c.there {
			m, err := h.SealMaterial(t.Context(), Identity{Account: k.Account, Region: k.Region, Spec: k.Spec, ID: k.ID, Version: 1}, make([]byte, 32))
			if err != nil {
				t.Fatal(err)
			}
			h.commit(func(txn *Txn) { txn.PutMaterial(m, 0) })
		}
		if err := h.Verify(t.Context(), nil); (err == nil) != c.sound {
			t.Errorf("%+v: %v", c, err)
		}
	}
}
