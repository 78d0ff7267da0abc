//go:build cgo && linux

package hsm_test

import (
	"bytes"
	"context"
	"fmt"
	"math/rand/v2"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/miekg/pkcs11"

	"keymill/hsm"
	"keymill/hsm/hsmtest"
)

// The number of sessions follows the token, whatever it is like, and stays there.
func TestGovernor(t *testing.T) {
	noise := rand.New(rand.NewPCG(1, 2))
	noisy := func(r, by float64) float64 { return r * (1 + by*(2*noise.Float64()-1)) }
	for _, c := range []struct {
		name     string
		failAt   int
		rate     func(w int) float64
		best     float64
		min, max int // width in the end
	}{
		{"parallel", -1, func(w int) float64 { return 200 * float64(w) }, 3200, 16, 16},
		{"parallel, noisy", -1, func(w int) float64 { return noisy(200*float64(w), 0.3) }, 3200, 10, 16},
		{"one thing at a time", -1, func(int) float64 { return 20_000 }, 20_000, 1, 2},
		{"four at once", -1, func(w int) float64 { return 500 * float64(min(w, 4)) }, 2000, 4, 6},
		{"suffers from more than two", -1, func(w int) float64 {
			if w > 2 {
				return 40_000 / float64(w)
			}
			return 20_000 * float64(w)
		}, 40_000, 2, 3},
		{"fails once", 300, func(w int) float64 { return 200 * float64(w) }, 3200, 16, 16},
	} {
		mean, width := hsm.Govern(16, 1000, c.failAt, 0, c.rate)
		if mean < 0.95*c.best && !(c.failAt < 0 && mean >= 0.9*c.best && c.name == "parallel, noisy") {
			t.Errorf("%s: %.0f a second of %.0f", c.name, mean, c.best)
		}
		if width < c.min || width > c.max {
			t.Errorf("%s: %d sessions in the end, want %d to %d", c.name, width, c.min, c.max)
		}
	}
	// What the self test measured spares a token that scales all probing, and only such
	// a token.
	alone := 5 * time.Millisecond
	if mean, _ := hsm.Govern(16, 60, -1, alone, func(w int) float64 { return 190 * float64(w) }); mean < 0.999*190*16 {
		t.Errorf("a token that scales: %.0f a second of %d", mean, 190*16)
	}
	if _, width := hsm.Govern(16, 60, -1, alone, func(w int) float64 { return 200 * float64(min(w, 4)) }); width > 6 {
		t.Errorf("a token that works on four things at once: %d sessions", width)
	}
}

// Callers with one item each and callers with thousands share the sessions; everybody
// gets their own results, and those who leave take nothing of the others with them.
func TestScheduleOfManyCallers(t *testing.T) {
	token := hsmtest.Shim(t)
	token.RoundTrip(100 * time.Microsecond)
	token.Config.Sessions = 4
	for _, child := range []bool{false, true} {
		if token.Config.Child = nil; child {
			token.Config.Child = hsmtest.Child
		}
		r := openToken(t, token.Config)
		id, other := newDomainKey(t, r), newDomainKey(t, r)
		wraps, others := wrapAll(t, r, id, 40), wrapAll(t, r, other, 40)
		before := token.Calls(hsmtest.CDecryptInit)
		many := slices.Repeat(wraps, 30) // more than one frame takes
		var wg sync.WaitGroup
		wg.Go(func() {
			items := make([]hsm.Item, len(many))
			for i := range items {
				items[i].In = many[i]
			}
			r.Decrypt(context.Background(), id, items)
			for i, it := range items {
				if it.Err != nil || !bytes.Equal(it.Out, kek(i%len(wraps))) {
					t.Errorf("item %d: %v", i, it.Err)
				}
			}
		})
		for i := range wraps {
			wg.Go(func() { unwrapUntilDone(t, r, id, wraps, i) })
			wg.Go(func() { unwrapUntilDone(t, r, other, others, i) })
		}
		wg.Go(func() { checkRandom(t, r) })
		wg.Wait()
		if n := token.Calls(hsmtest.CDecryptInit) - before; n != len(many)+2*len(wraps) {
			t.Errorf("%d decryptions for %d items", n, len(many)+2*len(wraps))
		}

		ctx, cancel := context.WithCancel(context.Background())
		token.Break(hsmtest.CDecryptInit, hsmtest.ShimFault{Count: 4, Hang: true})
		left := make([]hsm.Item, len(wraps))
		for i := range left {
			left[i].In = wraps[i]
		}
		done := make(chan struct{})
		go func() {
			defer close(done)
			r.Decrypt(ctx, id, left)
		}()
		eventually(t, "a session is in the token", func() bool { return token.Hanging(hsmtest.CDecryptInit) > 0 })
		before = token.Calls(hsmtest.CDecryptInit)
		cancel()
		<-done
		for i, it := range left {
			if it.Err == nil || it.Out != nil {
				t.Errorf("item %d of the caller who left: %v", i, it.Err)
			}
		}
		token.Release(hsmtest.CDecryptInit)
		checkUnwraps(t, r, id, wraps[:4])
		if n := token.Calls(hsmtest.CDecryptInit) - before; !child && n > 4+4 { // to a child, the cancelling is on its way
			t.Errorf("%d decryptions after the caller left, want the next caller's 4 and what had begun", n)
		}
		r.Close()
	}
	if n := token.Collisions(); n != 0 {
		t.Errorf("two threads in one session, %d times", n)
	}
}

// yardstick is what plain calls reach, each of so many threads in a session of its own:
// no queue, no pool, no timeout, no result kept.
func yardstick(b *testing.B, token *hsmtest.Token, id hsm.DomainKeyID, sessions int, d time.Duration) {
	p := pkcs11.New(token.Config.Module) // initialised and logged in by the root
	slots, err := p.GetSlotList(true)
	if err != nil {
		b.Fatal(err)
	}
	iv := make([]byte, 12)
	gcm := func() []*pkcs11.Mechanism {
		return []*pkcs11.Mechanism{pkcs11.NewMechanism(pkcs11.CKM_AES_GCM, pkcs11.NewGCMParams(iv, nil, 128))}
	}
	var handles []pkcs11.SessionHandle
	var key pkcs11.ObjectHandle
	var ct []byte
	for range sessions {
		sh, err := p.OpenSession(slots[0], pkcs11.CKF_SERIAL_SESSION)
		if err != nil {
			b.Fatal(err)
		}
		defer p.CloseSession(sh)
		if handles = append(handles, sh); len(handles) > 1 {
			continue
		}
		if err := p.FindObjectsInit(sh, []*pkcs11.Attribute{pkcs11.NewAttribute(pkcs11.CKA_ID, id[:])}); err != nil {
			b.Fatal(err)
		}
		found, _, err := p.FindObjects(sh, 1)
		if err != nil || len(found) != 1 {
			b.Fatal(err)
		}
		if err := p.FindObjectsFinal(sh); err != nil {
			b.Fatal(err)
		}
		key = found[0]
		if err := p.EncryptInit(sh, gcm(), key); err != nil {
			b.Fatal(err)
		}
		if ct, err = p.Encrypt(sh, kek(0)); err != nil {
			b.Fatal(err)
		}
	}
	token.RoundTrip(d)
	report := ofIdeal(b, token, sessions, d)
	b.ResetTimer()
	var wg sync.WaitGroup
	for g, sh := range handles {
		wg.Go(func() {
			for i := g; i < b.N; i += sessions {
				if err := p.DecryptInit(sh, gcm(), key); err != nil {
					b.Error(err)
				}
				if _, err := p.Decrypt(sh, ct); err != nil {
					b.Error(err)
				}
			}
		})
	}
	wg.Wait()
	report(b.N)
}

// ofIdeal returns what reports n operations since now: the rate, its share of the ideal,
// and %used, the time that the sessions spent waiting for the token as a share of all the
// time they had. The two differ by how much longer than asked the system let them
// sleep, which is not the doing of what is measured here.
func ofIdeal(b *testing.B, token *hsmtest.Token, sessions int, d time.Duration) func(n int) {
	_, before := token.RoundTrips()
	return func(n int) {
		_, after := token.RoundTrips()
		rate := float64(n) / b.Elapsed().Seconds()
		b.ReportMetric(rate, "ops/s")
		b.ReportMetric(100*rate*d.Seconds()/float64(sessions), "%ideal")
		b.ReportMetric(100*(after-before).Seconds()/(float64(sessions)*b.Elapsed().Seconds()), "%used")
		b.ReportMetric(0, "ns/op")
	}
}

// BenchmarkRoundTrip is the token behind a network: what is reached of the ideal, which is
// sessions divided by the round trip. wrap makes two round trips: it verifies.
//
//	go test ./hsm -run '^$' -bench RoundTrip -benchtime 3s
func BenchmarkRoundTrip(b *testing.B) {
	const sessions, callers = 16, 64
	for _, d := range []time.Duration{time.Millisecond, 5 * time.Millisecond, 20 * time.Millisecond} {
		for _, child := range []bool{false, true} {
			token := hsmtest.Shim(b)
			token.Config.Sessions = sessions
			where := "here"
			if child {
				token.Config.Child, where = hsmtest.Child, "child"
			}
			r := openToken(b, token.Config)
			id := newDomainKey(b, r)
			wraps := make([][]byte, 256)
			for i := range wraps {
				items := []hsm.Item{{In: kek(i)}}
				r.Encrypt(context.Background(), id, items)
				wraps[i] = items[0].Out
			}
			if !child {
				b.Run(fmt.Sprintf("%v/yardstick", d), func(b *testing.B) { yardstick(b, token, id, sessions, d) })
			}
			token.RoundTrip(d)
			name := fmt.Sprintf("%v/%s/", d, where)
			b.Run(name+"unwrap-callers=64", func(b *testing.B) {
				report := ofIdeal(b, token, sessions, d)
				var wg sync.WaitGroup
				var next atomic.Int64
				for range callers {
					wg.Go(func() {
						for i := int(next.Add(1)); i <= b.N; i = int(next.Add(1)) {
							if it := decryptOne(r, context.Background(), id, wraps[i%len(wraps)]); it.Err != nil {
								b.Error(it.Err)
							}
						}
					})
				}
				wg.Wait()
				report(b.N)
			})
			b.Run(name+"unwrap-batch=10000", func(b *testing.B) {
				items := make([]hsm.Item, 10_000)
				for i := range items {
					items[i].In = wraps[i%len(wraps)]
				}
				report := ofIdeal(b, token, sessions, d)
				n := 0
				for b.Loop() {
					r.Decrypt(context.Background(), id, items)
					n += len(items)
				}
				report(n)
			})
			b.Run(name+"wrap-batch=1000", func(b *testing.B) {
				items := make([]hsm.Item, 1000)
				for i := range items {
					items[i].In = kek(i)
				}
				report := ofIdeal(b, token, sessions, d)
				n := 0
				for b.Loop() {
					r.Encrypt(context.Background(), id, items)
					n += 2 * len(items)
				}
				report(n)
			})
			r.Close()
		}
	}
}
