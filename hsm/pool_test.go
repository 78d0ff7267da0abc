//go:build cgo && linux

package hsm_test

import (
	"bytes"
	"context"
	"errors"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/miekg/pkcs11"

	"keymill/hsm"
	"keymill/hsm/hsmtest"
)

// eventually waits for something another thread does.
func eventually(t *testing.T, what string, ok func() bool) {
	t.Helper()
	limit := time.After(20 * time.Second)
	look := time.NewTicker(time.Millisecond)
	defer look.Stop()
	for !ok() {
		select {
		case <-look.C:
		case <-limit:
			t.Fatalf("never happened: %s", what)
		}
	}
}

func decryptOne(r hsm.Root, ctx context.Context, id hsm.DomainKeyID, wrapped []byte) hsm.Item {
	items := []hsm.Item{{In: wrapped}}
	r.Decrypt(ctx, id, items)
	return items[0]
}

// A call that hangs in the module costs its caller the timeout and the pool a session,
// up to a bound; nobody waits for ever, and when the module comes back all is well.
func TestHangingCalls(t *testing.T) {
	const sessions = 2
	ctx := context.Background()
	token := hsmtest.Shim(t)
	token.Config.Sessions = sessions
	token.Config.Timeout = time.Second
	r := openToken(t, token.Config)
	id := newDomainKey(t, r)
	wraps := wrapAll(t, r, id, 1)

	// One hangs: its caller gets ErrTimeout, the others are served.
	token.Break(hsmtest.CDecrypt, hsmtest.ShimFault{Count: 1, Hang: true})
	if it := decryptOne(r, ctx, id, wraps[0]); !errors.Is(it.Err, hsm.ErrTimeout) || hsm.Classify(it.Err) != hsm.Retry || it.Out != nil {
		t.Errorf("hanging call: %v", it.Err)
	}
	checkUnwraps(t, r, id, wraps)
	eventually(t, "another session in the place of the one that hangs", func() bool {
		i := r.Info()
		return i.Stuck == 1 && i.Sessions == sessions
	})

	// Everything hangs: no more than twice the sessions ever enter the module, and
	// then calls fail without waiting.
	token.Release(hsmtest.CDecrypt)
	eventually(t, "the call comes back", func() bool { return r.Info().Stuck == 0 })
	token.Break(hsmtest.CDecrypt, hsmtest.ShimFault{Count: 1000, Hang: true})
	for range 4 * sessions {
		if it := decryptOne(r, ctx, id, wraps[0]); hsm.Classify(it.Err) != hsm.Retry || it.Err == nil {
			t.Errorf("hanging call: %v", it.Err)
		}
	}
	eventually(t, "all sessions are given up", func() bool { return r.Info().Sessions == 0 })
	if n := token.Hanging(hsmtest.CDecrypt); n > 2*sessions {
		t.Errorf("%d threads hang in the module, with %d sessions", n, sessions)
	}
	if it := decryptOne(r, ctx, id, wraps[0]); !errors.Is(it.Err, hsm.ErrBusy) || !strings.Contains(it.Err.Error(), "hang") {
		t.Errorf("with everything hanging: %v", it.Err)
	}

	token.Release(hsmtest.CDecrypt)
	eventually(t, "the pool is whole again", func() bool { i := r.Info(); return i.Stuck == 0 && i.Sessions == sessions })
	checkUnwraps(t, r, id, wraps)
}

// The caller's context ends the wait, not the call: the result is nobody's, the
// session goes on with the next one.
func TestContextEndsTheWait(t *testing.T) {
	token := hsmtest.Shim(t)
	token.Config.Sessions = 1
	r := openToken(t, token.Config)
	id := newDomainKey(t, r)
	wraps := wrapAll(t, r, id, 1)
	token.Break(hsmtest.CEncrypt, hsmtest.ShimFault{Count: 1, Hang: true})

	ctx, cancel := context.WithCancel(context.Background())
	in := kek(7)
	items := []hsm.Item{{In: in}}
	done := make(chan struct{})
	go func() {
		defer close(done)
		r.Encrypt(ctx, id, items)
	}()
	eventually(t, "the call hangs", func() bool { return token.Hanging(hsmtest.CEncrypt) == 1 })

	// A second caller waits for the one session, with a deadline of its own.
	short, stop := context.WithTimeout(context.Background(), 20*time.Millisecond)
	defer stop()
	if it := decryptOne(r, short, id, wraps[0]); !errors.Is(it.Err, hsm.ErrTimeout) || !errors.Is(it.Err, context.DeadlineExceeded) {
		t.Errorf("waiting caller: %v", it.Err)
	}

	cancel()
	<-done
	if !errors.Is(items[0].Err, context.Canceled) || items[0].Out != nil {
		t.Errorf("cancelled caller: %v", items[0].Err)
	}
	clear(in) // ours again, as the race detector may check
	token.Release(hsmtest.CEncrypt)
	checkUnwraps(t, r, id, wraps)
	if info := r.Info(); info.Stuck != 0 || info.Sessions != 1 {
		t.Errorf("%+v", info)
	}
}

func TestCloseWithAHangingCall(t *testing.T) {
	token := hsmtest.Shim(t)
	token.Config.Timeout = time.Second
	token.Config.Sessions = 2
	r := openToken(t, token.Config)
	id := newDomainKey(t, r)
	wraps := wrapAll(t, r, id, 1)
	token.Break(hsmtest.CDecryptInit, hsmtest.ShimFault{Count: 1, Hang: true})
	left := make(chan hsm.Item)
	go func() { left <- decryptOne(r, context.Background(), id, wraps[0]) }()
	eventually(t, "the call hangs", func() bool { return token.Hanging(hsmtest.CDecryptInit) == 1 })
	if err := r.Close(); err != nil {
		t.Error(err)
	}
	if it := <-left; !errors.Is(it.Err, hsm.ErrTimeout) {
		t.Errorf("the hanging call: %v", it.Err)
	}
	token.Release(hsmtest.CDecryptInit)
	eventually(t, "the thread leaves the module", func() bool { return r.Info().Stuck == 0 })
	// Only then was the module finalised, so that it can be opened afresh.
	r = openToken(t, token.Config)
	checkUnwraps(t, r, id, wraps)
}

// A token with few sessions is used with those it has, one kept free for making
// domain keys.
func TestFewSessions(t *testing.T) {
	for _, c := range []struct{ allowed, want int }{{2, 1}, {3, 2}, {9, 8}, {30, 8}} {
		token := hsmtest.Shim(t)
		token.MaxSessions(c.allowed)
		r := openToken(t, token.Config)
		if n := r.Info().Sessions; n != c.want {
			t.Errorf("%d sessions of %d, want %d", n, c.allowed, c.want)
		}
		if noticed := len(r.Info().Notices) > 0; noticed != (c.want < hsm.DefaultSessions) {
			t.Errorf("notices: %q", r.Info().Notices)
		}
		id := newDomainKey(t, r)
		checkUnwraps(t, r, id, wrapAll(t, r, id, 20))
		r.Close()
	}
}

// What a batch costs in the token: two passes per wrapped KEK (one verifies), one per
// unwrapped KEK, no question for a length, no search and no login.
func TestCallsPerBatch(t *testing.T) {
	token := hsmtest.Shim(t)
	token.Config.Sessions = 1
	r := openToken(t, token.Config)
	id := newDomainKey(t, r)
	wraps := wrapAll(t, r, id, 16)
	watched := []hsmtest.ShimFunc{hsmtest.CEncryptInit, hsmtest.CEncrypt, hsmtest.CDecryptInit, hsmtest.CDecrypt,
		hsmtest.CFindInit, hsmtest.CLogin, hsmtest.COpenSession, hsmtest.CGetAttribute, hsmtest.CGenerateRandom}
	for _, c := range []struct {
		name string
		do   func()
		want []int
	}{
		{"wrap 16", func() { wrapAll(t, r, id, 16) }, []int{16, 16, 16, 16, 0, 0, 0, 0, 0}},
		{"unwrap 16", func() { checkUnwraps(t, r, id, wraps) }, []int{0, 0, 16, 16, 0, 0, 0, 0, 0}},
		{"16 times 32 random bytes", func() {
			bufs := make([][]byte, 16)
			for i := range bufs {
				bufs[i] = make([]byte, 32)
			}
			if err := r.Random(context.Background(), bufs); err != nil {
				t.Error(err)
			}
		}, []int{0, 0, 0, 0, 0, 0, 0, 0, 1}},
	} {
		before := make([]int, len(watched))
		for i, f := range watched {
			before[i] = token.Calls(f)
		}
		c.do()
		for i, f := range watched {
			if got := token.Calls(f) - before[i]; got != c.want[i] {
				t.Errorf("%s: function %d called %d times, want %d", c.name, f, got, c.want[i])
			}
		}
	}
}

// The items of one call are in the token at the same time, in sessions of their own.
func TestBatchIsSpreadOverSessions(t *testing.T) {
	token := hsmtest.Shim(t)
	token.Config.Sessions = 4
	r := openToken(t, token.Config)
	id := newDomainKey(t, r)
	wraps := wrapAll(t, r, id, 8)
	token.Break(hsmtest.CDecryptInit, hsmtest.ShimFault{Count: 4, Hang: true})
	done := make(chan struct{})
	go func() {
		defer close(done)
		checkUnwraps(t, r, id, wraps)
	}()
	eventually(t, "four calls are in the token", func() bool { return token.Hanging(hsmtest.CDecryptInit) == 4 })
	token.Release(hsmtest.CDecryptInit)
	<-done
}

// Everything at once, on a token that is a little slow: no two threads in one session,
// no wrong answer. Most telling under -race.
func TestSessionsAreNeverShared(t *testing.T) {
	token := hsmtest.Shim(t)
	token.Latency(50 * time.Microsecond)
	token.Config.Sessions = 3
	r := openToken(t, token.Config)
	id := newDomainKey(t, r)
	var wg sync.WaitGroup
	for g := range 6 {
		wg.Go(func() {
			for i := range 8 {
				switch (g + i) % 4 {
				case 0, 1:
					checkUnwraps(t, r, id, wrapAll(t, r, id, 1+i))
				case 2:
					checkRandom(t, r)
				default:
					if err := r.CheckDomainKey(context.Background(), id); err != nil {
						t.Error(err)
					}
				}
			}
		})
	}
	wg.Wait()
	if n := token.Collisions(); n != 0 {
		t.Errorf("two threads in one session, %d times", n)
	}
}

func TestWeakAndUsedUpDomainKeys(t *testing.T) {
	ctx := context.Background()
	token := hsmtest.Shim(t)
	r := openToken(t, token.Config)
	id := newDomainKey(t, r)

	token.Flags(hsmtest.SayExtractable)
	if err := r.CheckDomainKey(ctx, id); !errors.Is(err, hsm.ErrWeakDomainKey) || hsm.Classify(err) != hsm.Fatal {
		t.Errorf("an extractable key: %v", err)
	}
	destroyed := token.Calls(hsmtest.CDestroyObject)
	if _, err := r.CreateDomainKey(ctx); !errors.Is(err, hsm.ErrWeakDomainKey) {
		t.Errorf("a token that makes extractable keys: %v", err)
	}
	if n := token.Calls(hsmtest.CDestroyObject) - destroyed; n != 1 {
		t.Errorf("the weak key was deleted %d times", n)
	}
	token.Flags(0)
	wraps := wrapAll(t, r, id, 1)

	if err := hsm.Use(r, id, hsm.UseLimit-2); err != nil {
		t.Fatal(err)
	}
	items := []hsm.Item{{In: kek(0)}, {In: kek(1)}}
	r.Encrypt(ctx, id, items)
	ok := 0
	for _, it := range items {
		if it.Err == nil {
			ok++
		} else if !errors.Is(it.Err, hsm.ErrDomainKeyUsedUp) || hsm.Classify(it.Err) != hsm.Fatal {
			t.Error(it.Err)
		}
	}
	if ok != 1 {
		t.Errorf("%d of 2 items were encrypted at the limit, want 1", ok)
	}
	checkUnwraps(t, r, id, wraps) // decryption is not limited
	checkUnwraps(t, r, newDomainKey(t, r), nil)
}

// Objects are found by CKA_ID, which a token does not keep unique.
func TestDuplicateDomainKey(t *testing.T) {
	dir := hsmtest.NewSoftHSMDir(t)
	r := openToken(t, dir.Config)
	id := newDomainKey(t, r)
	wraps := wrapAll(t, r, id, 1)
	another := newDomainKey(t, r) // same label, another ID: no trouble
	checkUnwraps(t, r, id, wraps)

	p := pkcs11.New(dir.Config.Module) // initialised and logged in by r
	slots, err := p.GetSlotList(true)
	if err != nil {
		t.Fatal(err)
	}
	sh, err := p.OpenSession(slots[0], pkcs11.CKF_SERIAL_SESSION|pkcs11.CKF_RW_SESSION)
	if err != nil {
		t.Fatal(err)
	}
	defer p.CloseSession(sh)
	if _, err := p.GenerateKey(sh, []*pkcs11.Mechanism{pkcs11.NewMechanism(pkcs11.CKM_AES_KEY_GEN, nil)}, []*pkcs11.Attribute{
		pkcs11.NewAttribute(pkcs11.CKA_TOKEN, true), pkcs11.NewAttribute(pkcs11.CKA_ID, id[:]), pkcs11.NewAttribute(pkcs11.CKA_VALUE_LEN, 32),
	}); err != nil {
		t.Fatal(err)
	}
	ctx := context.Background()
	if err := r.CheckDomainKey(ctx, id); !errors.Is(err, hsm.ErrDuplicateDomainKey) || hsm.Classify(err) != hsm.Fatal {
		t.Errorf("got %v", err)
	}
	if err := r.CheckDomainKey(ctx, another); err != nil {
		t.Error(err)
	}
}

// The ID is the only thing a wrapped KEK is tied to; a copy of the items is made before
// the call returns, so nothing of the caller's is kept.
func TestCallersBuffersAreTheirs(t *testing.T) {
	r := openToken(t, hsmtest.SoftHSM(t))
	id := newDomainKey(t, r)
	in := kek(0)
	items := []hsm.Item{{In: in}}
	r.Encrypt(context.Background(), id, items)
	if items[0].Err != nil || !bytes.Equal(in, kek(0)) {
		t.Errorf("the input was changed: %v", items[0].Err)
	}
}

// BenchmarkBinding is what BenchmarkSoftHSM is compared with: the same encryption and
// decryption by plain calls in one session, without pool, timeout or verification.
func BenchmarkBinding(b *testing.B) {
	config := hsmtest.SoftHSM(b)
	r := openToken(b, config) // initialises and logs in
	id := newDomainKey(b, r)
	p := pkcs11.New(config.Module)
	slots, err := p.GetSlotList(true)
	if err != nil {
		b.Fatal(err)
	}
	sh, err := p.OpenSession(slots[0], pkcs11.CKF_SERIAL_SESSION)
	if err != nil {
		b.Fatal(err)
	}
	defer p.CloseSession(sh)
	if err := p.FindObjectsInit(sh, []*pkcs11.Attribute{pkcs11.NewAttribute(pkcs11.CKA_ID, id[:])}); err != nil {
		b.Fatal(err)
	}
	keys, _, err := p.FindObjects(sh, 1)
	if err != nil || len(keys) != 1 {
		b.Fatal(err)
	}
	if err := p.FindObjectsFinal(sh); err != nil {
		b.Fatal(err)
	}
	iv, plain := make([]byte, 12), kek(0)
	pass := func(init func(pkcs11.SessionHandle, []*pkcs11.Mechanism, pkcs11.ObjectHandle) error,
		do func(pkcs11.SessionHandle, []byte) ([]byte, error), in []byte) []byte {
		params := pkcs11.NewGCMParams(iv, nil, 128)
		defer params.Free()
		if err := init(sh, []*pkcs11.Mechanism{pkcs11.NewMechanism(pkcs11.CKM_AES_GCM, params)}, keys[0]); err != nil {
			b.Fatal(err)
		}
		out, err := do(sh, in)
		if err != nil {
			b.Fatal(err)
		}
		return out
	}
	ct := pass(p.EncryptInit, p.Encrypt, plain)
	b.Run("encrypt", func(b *testing.B) {
		for b.Loop() {
			pass(p.EncryptInit, p.Encrypt, plain)
		}
	})
	b.Run("decrypt", func(b *testing.B) {
		for b.Loop() {
			pass(p.DecryptInit, p.Decrypt, ct)
		}
	})
}

func BenchmarkSoftHSM(b *testing.B) {
	for _, c := range []struct {
		name     string
		sessions int
		child    bool
	}{{"sessions=1", 1, false}, {"sessions=8", 8, false}, {"child/sessions=8", 8, true}} {
		b.Run(c.name, func(b *testing.B) {
			config := hsmtest.SoftHSM(b)
			config.Sessions = c.sessions
			if c.child {
				config.Child = hsmtest.Child
			}
			r := openToken(b, config)
			defer r.Close()
			id := newDomainKey(b, r)
			benchRoot(b, r, id, 64)
		})
	}
}
