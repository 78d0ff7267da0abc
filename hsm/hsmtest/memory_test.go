package hsmtest

import (
	"bytes"
	"context"
	"errors"
	"testing"

	"keymill/hsm"
)

var errFault = errors.New("injected")

// The fake does what it is told, no more and no less: tests elsewhere rest on it.
func TestMemoryFaults(t *testing.T) {
	ctx := context.Background()
	m := NewMemory()
	id, err := m.CreateDomainKey(ctx)
	if err != nil {
		t.Fatal(err)
	}
	kek := bytes.Repeat([]byte{7}, hsm.KEKSize)
	encrypt := func() []hsm.Item {
		items := []hsm.Item{{In: kek}, {In: kek}, {In: kek}}
		m.Encrypt(ctx, id, items)
		return items
	}
	m.Inject(Encrypt, Fault{Skip: 1, Count: 2, Err: errFault})
	m.Inject(Encrypt, Fault{Err: errFault, Items: []int{1}})
	for call, want := range [][]bool{{true, true, true}, {false, false, false}, {false, false, false}, {true, false, true}, {true, true, true}} {
		for i, it := range encrypt() {
			if ok := it.Err == nil && it.Out != nil; ok != want[i] {
				t.Errorf("call %d item %d: %v", call, i, it.Err)
			}
		}
	}
	if c, n := m.Calls(Encrypt), m.Items(Encrypt); c != 5 || n != 15 {
		t.Errorf("counted %d calls, %d items; want 5 and 15", c, n)
	}

	m.Inject(CreateDomainKey, Fault{Err: errFault, TookEffect: true})
	if _, err := m.CreateDomainKey(ctx); !errors.Is(err, errFault) {
		t.Errorf("got %v", err)
	}

	gone, cancel := context.WithCancel(ctx)
	cancel()
	m.Inject(Random, Fault{Block: make(chan struct{})})
	if err := m.Random(gone, [][]byte{make([]byte, 1)}); !errors.Is(err, context.Canceled) {
		t.Errorf("blocked call: %v", err)
	}
	open := make(chan struct{})
	close(open)
	m.Inject(Random, Fault{Block: open})
	if err := m.Random(ctx, [][]byte{make([]byte, 1)}); err != nil {
		t.Errorf("released call: %v", err)
	}

	out := encrypt()
	m.Close()
	if it := encrypt(); !errors.Is(it[0].Err, hsm.ErrClosed) {
		t.Errorf("after Close: %v", it[0].Err)
	}
	again := m.Reopen()
	items := []hsm.Item{{In: out[0].Out}}
	again.Decrypt(ctx, id, items)
	if items[0].Err != nil || !bytes.Equal(items[0].Out, kek) {
		t.Errorf("after Reopen: %v", items[0].Err)
	}
}
