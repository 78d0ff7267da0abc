//go:build cgo && linux

package hsm_test

import (
	"context"
	"errors"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"

	"keymill/hsm"
	"keymill/hsm/hsmtest"
)

// A destroyed domain key is gone for this root and for the next, and nothing else is.
func TestDestroyDomainKey(t *testing.T) {
	const noAES = hsmtest.NoAES | hsmtest.NoGCM | hsmtest.NoCBC | hsmtest.NoCBCPad
	for name, root := range map[string]func(*testing.T) func() hsm.Root{
		"software": func(t *testing.T) func() hsm.Root {
			path := filepath.Join(t.TempDir(), "root.key")
			return func() hsm.Root { return openSoftware(t, path, hsm.SoftwareOptions{Create: true}) }
		},
		"SoftHSM": func(t *testing.T) func() hsm.Root {
			c := hsmtest.SoftHSM(t)
			return func() hsm.Root { return openToken(t, c) }
		},
		"SoftHSM in a child": func(t *testing.T) func() hsm.Root {
			c := hsmtest.SoftHSM(t)
			c.Child = hsmtest.Child
			return func() hsm.Root { return openToken(t, c) }
		},
		"RSA": func(t *testing.T) func() hsm.Root {
			token := hsmtest.Shim(t)
			token.Flags(noAES)
			return func() hsm.Root { return openToken(t, token.Config) }
		},
		"composite": func(t *testing.T) func() hsm.Root {
			a, b := hsmtest.NewMemory(), hsmtest.NewMemory()
			return func() hsm.Root {
				c := hsm.NewComposite(a.Reopen())
				if err := c.Add(b.Reopen()); err != nil {
					t.Fatal(err)
				}
				return c
			}
		},
	} {
		t.Run(name, func(t *testing.T) {
			ctx := context.Background()
			open := root(t)
			r := open()
			id, other := newDomainKey(t, r), newDomainKey(t, r)
			wraps, others := wrapAll(t, r, id, 2), wrapAll(t, r, other, 2)
			if err := r.DestroyDomainKey(ctx, hsm.DomainKeyID{1}); !errors.Is(err, hsm.ErrNoDomainKey) {
				t.Errorf("one that is not there: %v", err)
			}
			if err := r.DestroyDomainKey(ctx, id); err != nil {
				t.Fatal(err)
			}
			if err := r.DestroyDomainKey(ctx, id); !errors.Is(err, hsm.ErrNoDomainKey) {
				t.Errorf("a second time: %v", err)
			}
			check := func(when string) {
				if err := r.CheckDomainKey(ctx, id); !errors.Is(err, hsm.ErrNoDomainKey) {
					t.Errorf("%s: %v", when, err)
				}
				items := []hsm.Item{{In: wraps[0]}, {In: wraps[1]}}
				r.Decrypt(ctx, id, items)
				if items[0].Err == nil || items[1].Err == nil {
					t.Errorf("%s, the destroyed key decrypts", when)
				}
				checkUnwraps(t, r, other, others)
			}
			check("at once")
			r.Close()
			r = open()
			check("after reopening")
		})
	}
}

// Each call reaches the root that has the domain key, and a root that cannot be asked is
// not taken for one that lacks it.
func TestCompositeFindsTheOwner(t *testing.T) {
	ctx := context.Background()
	a, b := hsmtest.NewMemory(), hsmtest.NewMemory()
	ida, idb := newDomainKey(t, a), newDomainKey(t, b)
	wa, wb := wrapAll(t, a, ida, 3), wrapAll(t, b, idb, 3)
	c := hsm.NewComposite(a)
	checkUnwraps(t, c, ida, wa)
	if n := a.Calls(hsmtest.CheckDomainKey); n != 0 {
		t.Errorf("the only root was asked %d times whether it has the key", n)
	}
	if err := c.CheckDomainKey(ctx, idb); !errors.Is(err, hsm.ErrNoDomainKey) {
		t.Errorf("alone: %v", err)
	}
	if err := c.Add(b); err != nil {
		t.Fatal(err)
	}
	asked := a.Calls(hsmtest.CheckDomainKey)
	for range 3 {
		checkUnwraps(t, c, ida, wa)
		checkUnwraps(t, c, idb, wb)
		checkUnwraps(t, c, idb, wrapAll(t, c, idb, 2))
	}
	if n := a.Calls(hsmtest.CheckDomainKey) - asked; n != 2 {
		t.Errorf("the first root was asked %d times about 2 domain keys", n)
	}
	if err := c.CheckDomainKey(ctx, hsm.DomainKeyID{1}); !errors.Is(err, hsm.ErrNoDomainKey) {
		t.Errorf("unknown: %v", err)
	}
	a.Inject(hsmtest.CheckDomainKey, hsmtest.Fault{Err: hsm.ErrTimeout, Count: -1})
	items := []hsm.Item{{In: wa[0]}}
	c.Decrypt(ctx, hsm.DomainKeyID{1}, items)
	if err := items[0].Err; !errors.Is(err, hsm.ErrTimeout) || errors.Is(err, hsm.ErrNoDomainKey) {
		t.Errorf("with a root out of order: %v", err)
	}
	idb2 := newDomainKey(t, b)
	checkUnwraps(t, c, idb2, wrapAll(t, c, idb2, 1)) // found all the same
	a.Heal()

	if id := newDomainKey(t, c); a.CheckDomainKey(ctx, id) != nil {
		t.Error("a new domain key is not the first root's")
	}
	checkRandom(t, c)
	if c.First() != hsm.Root(a) || !strings.Contains(strings.Join(c.Info().Notices, "\n"), "a second root") {
		t.Errorf("%+v", c.Info())
	}

	if err := c.Keep(hsmtest.NewMemory()); err == nil {
		t.Error("a stranger was kept")
	}
	if err := c.Keep(b); err != nil {
		t.Fatal(err)
	}
	checkUnwraps(t, c, idb, wb)
	items = []hsm.Item{{In: wa[0]}}
	c.Decrypt(ctx, ida, items)
	if !errors.Is(items[0].Err, hsm.ErrNoDomainKey) {
		t.Errorf("under the key of a root that left: %v", items[0].Err)
	}
	if err := a.CheckDomainKey(ctx, ida); !errors.Is(err, hsm.ErrClosed) {
		t.Errorf("the root that left was not closed: %v", err)
	}
	if err := c.Remove(b); err == nil {
		t.Error("the last root was removed")
	}
	c.Close()
	c.Close()
	if _, err := c.CreateDomainKey(ctx); !errors.Is(err, hsm.ErrClosed) {
		t.Errorf("after Close: %v", err)
	}
	if err := c.Random(ctx, [][]byte{{1}}); !errors.Is(err, hsm.ErrClosed) {
		t.Errorf("after Close: %v", err)
	}
	if err := c.Add(a); !errors.Is(err, hsm.ErrClosed) {
		t.Errorf("after Close: %v", err)
	}
	c.Info()
}

// watchful fails the test when it is called after its Close.
type watchful struct {
	hsm.Root
	t      *testing.T
	inside atomic.Int32
	closed atomic.Bool
}

func (w *watchful) Decrypt(ctx context.Context, id hsm.DomainKeyID, items []hsm.Item) {
	w.inside.Add(1)
	defer w.inside.Add(-1)
	if w.closed.Load() {
		w.t.Error("called after Close")
	}
	w.Root.Decrypt(ctx, id, items)
}

func (w *watchful) Close() error {
	w.closed.Store(true)
	if n := w.inside.Load(); n != 0 {
		w.t.Errorf("closed with %d calls inside", n)
	}
	return w.Root.Close()
}

// Roots come and go under calls: every call is answered by a root that is open, and only
// calls under the key of the one that is gone fail.
func TestCompositeChangesUnderLoad(t *testing.T) {
	stays := hsm.OpenEphemeral()
	id := newDomainKey(t, stays)
	wraps := wrapAll(t, stays, id, 4)
	c := hsm.NewComposite(stays)
	var stop atomic.Bool
	var wg sync.WaitGroup
	var current atomic.Pointer[hsm.DomainKeyID]
	for range 4 {
		wg.Go(func() {
			for !stop.Load() {
				checkUnwraps(t, c, id, wraps)
				if other := current.Load(); other != nil {
					items := []hsm.Item{{In: wraps[0]}} // of another key: only who answers matters
					c.Decrypt(context.Background(), *other, items)
					if err := items[0].Err; !errors.Is(err, hsm.ErrBadWrapped) && !errors.Is(err, hsm.ErrNoDomainKey) {
						t.Errorf("got %v", err)
					}
				}
			}
		})
	}
	for range 200 {
		guest := &watchful{Root: hsm.OpenEphemeral(), t: t}
		other := newDomainKey(t, guest)
		if err := c.Add(guest); err != nil {
			t.Fatal(err)
		}
		current.Store(&other)
		if err := c.CheckDomainKey(context.Background(), other); err != nil {
			t.Error(err)
		}
		if err := c.Remove(guest); err != nil {
			t.Error(err)
		}
	}
	stop.Store(true)
	wg.Wait()
}
