package hsm_test

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"testing"

	"keymill/hsm"
)

// kek returns a key-encryption key that differs for each n.
func kek(n int) []byte {
	sum := sha256.Sum256(fmt.Appendf(nil, "test KEK %d", n))
	return sum[:]
}

// wrapAll encrypts n test KEKs and fails the test on any error.
func wrapAll(t *testing.T, r hsm.Root, id hsm.DomainKeyID, n int) [][]byte {
	t.Helper()
	items := make([]hsm.Item, n)
	for i := range items {
		items[i].In = kek(i)
	}
	r.Encrypt(context.Background(), id, items)
	out := make([][]byte, n)
	for i, it := range items {
		if it.Err != nil {
			t.Fatalf("encrypt item %d: %v", i, it.Err)
		}
		out[i] = it.Out
	}
	return out
}

// checkUnwraps decrypts what wrapAll made.
func checkUnwraps(t *testing.T, r hsm.Root, id hsm.DomainKeyID, wrapped [][]byte) {
	t.Helper()
	items := make([]hsm.Item, len(wrapped))
	for i := range items {
		items[i].In = wrapped[i]
	}
	r.Decrypt(context.Background(), id, items)
	for i, it := range items {
		if it.Err != nil {
			t.Errorf("decrypt item %d: %v", i, it.Err)
		} else if !bytes.Equal(it.Out, kek(i)) {
			t.Errorf("decrypt item %d: another KEK came back", i)
		}
	}
}

// checkBadItems holds any root to the promises about single items: a bad one fails
// alone, and nothing but what was made under this domain key opens.
func checkBadItems(t *testing.T, r hsm.Root, id, other hsm.DomainKeyID) {
	t.Helper()
	ctx := context.Background()
	good := wrapAll(t, r, id, 2)
	if bytes.Equal(good[0], good[1]) {
		t.Error("two KEKs have one wrapped form")
	}
	if again := wrapAll(t, r, id, 1); bytes.Equal(good[0], again[0]) {
		t.Error("one KEK was wrapped twice alike: the IV repeats")
	}
	items := []hsm.Item{{In: kek(0)[:31]}, {In: kek(0)}, {In: nil}, {In: append(kek(0), 0)}}
	r.Encrypt(ctx, id, items)
	for i, it := range items {
		if ok := i == 1; ok != (it.Err == nil) || ok != (it.Out != nil) {
			t.Errorf("encrypt item %d: %v, %x", i, it.Err, it.Out)
		}
		if i != 1 && !errors.Is(it.Err, hsm.ErrBadItem) {
			t.Errorf("encrypt item %d: %v", i, it.Err)
		}
	}
	var bad []hsm.Item
	step := 1
	if len(good[0]) > 200 {
		step = 29 // RSA: each takes milliseconds
	}
	for i := 0; i < len(good[0]); i += step {
		b := bytes.Clone(good[0])
		b[i] ^= 0x10
		bad = append(bad, hsm.Item{In: b})
	}
	for _, n := range []int{0, 1, 2, 3, len(good[0]) / 2, len(good[0]) - 1} {
		bad = append(bad, hsm.Item{In: good[0][:n]})
	}
	bad = append(bad, hsm.Item{In: append(bytes.Clone(good[0]), 0)}, hsm.Item{In: make([]byte, hsm.MaxWrapped+1)})
	bad = append(bad, hsm.Item{In: good[1]}) // the last one is good
	r.Decrypt(ctx, id, bad)
	for i, it := range bad[:len(bad)-1] {
		if !errors.Is(it.Err, hsm.ErrBadWrapped) || it.Out != nil {
			t.Errorf("damaged item %d: %v", i, it.Err)
		}
	}
	if last := bad[len(bad)-1]; last.Err != nil || !bytes.Equal(last.Out, kek(1)) {
		t.Errorf("good item among bad ones: %v", last.Err)
	}
	swapped := []hsm.Item{{In: good[0]}}
	r.Decrypt(ctx, other, swapped)
	if !errors.Is(swapped[0].Err, hsm.ErrBadWrapped) {
		t.Errorf("under another domain key: %v", swapped[0].Err)
	}
}

// checkRandom fills buffers of several sizes and expects no two alike, nor zeroes.
func checkRandom(t *testing.T, r hsm.Root) {
	t.Helper()
	bufs := [][]byte{make([]byte, 32), {}, make([]byte, 1), make([]byte, 5000), make([]byte, 32)}
	if err := r.Random(context.Background(), bufs); err != nil {
		t.Fatal(err)
	}
	if bytes.Equal(bufs[0], bufs[4]) || bytes.Equal(bufs[0], bufs[3][:32]) {
		t.Error("two buffers are alike")
	}
	for at := 0; at+32 <= 5000; at += 32 {
		if bytes.Equal(bufs[3][at:at+32], make([]byte, 32)) {
			t.Errorf("32 zero bytes at %d: not filled", at)
		}
	}
}

// benchRoot measures wrap and unwrap per item with batches of n.
func benchRoot(b *testing.B, r hsm.Root, id hsm.DomainKeyID, n int) {
	ctx := context.Background()
	in := make([]hsm.Item, n)
	for i := range in {
		in[i].In = kek(i)
	}
	run := func(b *testing.B, f func()) {
		b.ReportAllocs()
		for b.Loop() {
			f()
		}
		b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(b.N*n), "ns/item")
		b.ReportMetric(float64(b.N*n)/b.Elapsed().Seconds(), "items/s")
	}
	b.Run("wrap", func(b *testing.B) { run(b, func() { r.Encrypt(ctx, id, in) }) })
	r.Encrypt(ctx, id, in)
	out := make([]hsm.Item, n)
	for i := range out {
		if in[i].Err != nil {
			b.Fatal(in[i].Err)
		}
		out[i].In = in[i].Out
	}
	b.Run("unwrap", func(b *testing.B) { run(b, func() { r.Decrypt(ctx, id, out) }) })
}
