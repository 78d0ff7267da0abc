package hsm

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"
)

// kek returns a key-encryption key that differs for each n.
func kek(n int) []byte {
	sum := sha256.Sum256(fmt.Appendf(nil, "test KEK %d", n))
	return sum[:]
}

func openSoftware(t *testing.T, path string, o SoftwareOptions) Root {
	t.Helper()
	r, err := OpenSoftware(path, o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { r.Close() })
	return r
}

// wrapAll encrypts n test KEKs and fails the test on any error.
func wrapAll(t *testing.T, r Root, id DomainKeyID, n int) [][]byte {
	t.Helper()
	items := make([]Item, n)
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
func checkUnwraps(t *testing.T, r Root, id DomainKeyID, wrapped [][]byte) {
	t.Helper()
	items := make([]Item, len(wrapped))
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

func TestSoftwareSurvivesReopening(t *testing.T) {
	path := filepath.Join(t.TempDir(), "root.key")
	created := time.Unix(1700000000, 0)
	o := SoftwareOptions{Create: true, Clock: func() time.Time { return created }}
	r := openSoftware(t, path, o)
	ctx := context.Background()
	var ids []DomainKeyID
	var wraps [][][]byte
	for range 3 {
		id, err := r.CreateDomainKey(ctx)
		if err != nil {
			t.Fatal(err)
		}
		ids = append(ids, id)
		wraps = append(wraps, wrapAll(t, r, id, 5))
	}
	if st, err := os.Stat(path); err != nil || st.Mode().Perm() != 0o600 {
		t.Errorf("key file: %v, %v; want mode 0600", st.Mode(), err)
	}
	r.Close()
	r = openSoftware(t, path, SoftwareOptions{})
	for i, id := range ids {
		if err := r.CheckDomainKey(ctx, id); err != nil {
			t.Error(err)
		}
		checkUnwraps(t, r, id, wraps[i])
	}
	if err := r.CheckDomainKey(ctx, DomainKeyID{1}); !errors.Is(err, ErrNoDomainKey) {
		t.Errorf("unknown domain key: %v", err)
	}
	left, err := os.ReadDir(filepath.Dir(path))
	if err != nil || len(left) != 1 {
		t.Errorf("directory holds %v, %v; want the key file alone", left, err)
	}
}

// Two roots on one file add domain keys; none is lost.
func TestSoftwareTwoWritersLoseNothing(t *testing.T) {
	path := filepath.Join(t.TempDir(), "root.key")
	a := openSoftware(t, path, SoftwareOptions{Create: true})
	b := openSoftware(t, path, SoftwareOptions{Create: true})
	var mu sync.Mutex
	var ids []DomainKeyID
	var wg sync.WaitGroup
	for _, r := range []Root{a, b} {
		wg.Go(func() {
			for range 8 {
				id, err := r.CreateDomainKey(context.Background())
				if err != nil {
					t.Error(err)
					return
				}
				mu.Lock()
				ids = append(ids, id)
				mu.Unlock()
			}
		})
	}
	wg.Wait()
	c := openSoftware(t, path, SoftwareOptions{})
	for _, id := range ids {
		if err := c.CheckDomainKey(context.Background(), id); err != nil {
			t.Error(err)
		}
	}
}

func TestSoftwareRefusesKeyFiles(t *testing.T) {
	dir := t.TempDir()
	good := filepath.Join(dir, "good")
	r := openSoftware(t, good, SoftwareOptions{Create: true})
	for range 2 {
		if _, err := r.CreateDomainKey(context.Background()); err != nil {
			t.Fatal(err)
		}
	}
	content, err := os.ReadFile(good)
	if err != nil {
		t.Fatal(err)
	}
	resum := func(b []byte) []byte {
		b = b[:len(b)-sha256.Size]
		sum := sha256.Sum256(b)
		return append(b, sum[:]...)
	}
	edit := func(f func(b []byte) []byte) []byte { return f(bytes.Clone(content)) }
	for _, c := range []struct {
		name    string
		content []byte
		mode    fs.FileMode
		want    error
		text    string
	}{
		{"readable by the group", content, 0o640, ErrKeyFile, "chmod 600"},
		{"readable by all", content, 0o604, ErrKeyFile, "chmod 600"},
		{"empty", nil, 0o600, ErrKeyFile, "0 bytes"},
		{"something else", bytes.Repeat([]byte("x"), 100), 0o600, ErrKeyFile, "not a key file"},
		{"too long", make([]byte, maxKeyFile+1), 0o600, ErrKeyFile, "bytes"},
		{"truncated", content[:len(content)-1], 0o600, ErrKeyFile, "truncated"},
		{"a domain key cut out", edit(func(b []byte) []byte { return append(b[:20], b[20+keyFileEntry:]...) }), 0o600, ErrKeyFile, "truncated"},
		{"a bit flipped in a key", edit(func(b []byte) []byte { b[50] ^= 1; return b }), 0o600, ErrKeyFile, "checksum"},
		{"a later version", edit(func(b []byte) []byte { b[15] = 2; return resum(b) }), 0o600, ErrKeyFile, "version 2"},
		{"the same domain key twice", edit(func(b []byte) []byte {
			copy(b[20+keyFileEntry:], b[20:20+keyFileEntry])
			return resum(b)
		}), 0o600, ErrDuplicateDomainKey, "more than one"},
		{"a count that lies", edit(func(b []byte) []byte { binary.BigEndian.PutUint32(b[16:], 1<<31); return resum(b) }), 0o600, ErrKeyFile, "length"},
	} {
		t.Run(c.name, func(t *testing.T) {
			path := filepath.Join(t.TempDir(), "root.key")
			if err := os.WriteFile(path, c.content, 0o600); err != nil {
				t.Fatal(err)
			}
			if err := os.Chmod(path, c.mode); err != nil {
				t.Fatal(err)
			}
			_, err := OpenSoftware(path, SoftwareOptions{Create: true})
			if !errors.Is(err, c.want) || !strings.Contains(err.Error(), c.text) {
				t.Errorf("got %v, want %v with %q", err, c.want, c.text)
			}
			if after, err := os.ReadFile(path); err != nil || !bytes.Equal(after, c.content) {
				t.Error("the refused file was changed")
			}
		})
	}
	t.Run("absent", func(t *testing.T) {
		if _, err := OpenSoftware(filepath.Join(dir, "none")); !errors.Is(err, ErrNoKeyFile) {
			t.Errorf("got %v", err)
		}
	})
	t.Run("a directory", func(t *testing.T) {
		if _, err := OpenSoftware(dir, SoftwareOptions{Create: true}); !errors.Is(err, ErrKeyFile) {
			t.Errorf("got %v", err)
		}
	})
}

// brokenFiles fails at one step of writeAtomic.
type brokenFiles struct {
	osFiles
	step        string
	afterEffect bool
}

var errBroken = errors.New("broken by the test")

type brokenFile struct {
	syncFile
	b *brokenFiles
}

func (b *brokenFiles) do(step string, f func() error) error {
	if b.step != step {
		return f()
	}
	if b.afterEffect {
		if err := f(); err != nil {
			return err
		}
	}
	return errBroken
}

func (b *brokenFiles) CreateTemp(dir, pattern string) (f syncFile, err error) {
	err = b.do("create", func() (err error) {
		f, err = b.osFiles.CreateTemp(dir, pattern)
		return err
	})
	return brokenFile{f, b}, err
}

func (b *brokenFiles) Rename(from, to string) error {
	return b.do("rename", func() error { return b.osFiles.Rename(from, to) })
}

func (b *brokenFiles) SyncDir(dir string) error {
	return b.do("sync directory", func() error { return b.osFiles.SyncDir(dir) })
}

func (f brokenFile) Write(p []byte) (n int, err error) {
	err = f.b.do("write", func() (err error) {
		n, err = f.syncFile.Write(p)
		return err
	})
	return n, err
}

func (f brokenFile) Sync() error  { return f.b.do("sync", f.syncFile.Sync) }
func (f brokenFile) Close() error { return f.b.do("close", f.syncFile.Close) }

// Whatever step of writing the key file breaks, the domain keys of before are there
// afterwards, and the next attempt works.
func TestSoftwareKeyFileFaults(t *testing.T) {
	for _, c := range []struct {
		step       string
		tookEffect bool // the step was carried out before it failed
		newKey     bool // the new domain key is in the file afterwards
	}{
		{"create", false, false},
		{"write", false, false},
		{"write", true, false},
		{"sync", false, false},
		{"close", true, false},
		{"rename", false, false},
		{"rename", true, true},
		{"sync directory", true, true},
	} {
		t.Run(fmt.Sprintf("%s/%t", c.step, c.tookEffect), func(t *testing.T) {
			ctx := context.Background()
			path := filepath.Join(t.TempDir(), "root.key")
			b := &brokenFiles{}
			r := openSoftware(t, path, SoftwareOptions{Create: true, files: b})
			old, err := r.CreateDomainKey(ctx)
			if err != nil {
				t.Fatal(err)
			}
			wraps := wrapAll(t, r, old, 1)
			b.step, b.afterEffect = c.step, c.tookEffect
			if id, err := r.CreateDomainKey(ctx); !errors.Is(err, errBroken) || id != (DomainKeyID{}) {
				t.Fatalf("CreateDomainKey = %s, %v", id, err)
			}
			checkUnwraps(t, r, old, wraps)
			after := openSoftware(t, path, SoftwareOptions{})
			checkUnwraps(t, after, old, wraps)
			raw, err := os.ReadFile(path)
			if err != nil {
				t.Fatal(err)
			}
			if n := binary.BigEndian.Uint32(raw[16:]); (n == 2) != c.newKey {
				t.Errorf("file holds %d domain keys", n)
			}
			b.step = ""
			if _, err := r.CreateDomainKey(ctx); err != nil {
				t.Errorf("after the fault: %v", err)
			}
		})
	}
}

func TestSoftwareItems(t *testing.T) {
	ctx := context.Background()
	r := OpenEphemeral()
	id, err := r.CreateDomainKey(ctx)
	if err != nil {
		t.Fatal(err)
	}
	other, err := r.CreateDomainKey(ctx)
	if err != nil {
		t.Fatal(err)
	}
	checkBadItems(t, r, id, other)
	t.Run("unknown domain key", func(t *testing.T) {
		items := []Item{{In: kek(0)}, {In: kek(1)}}
		r.Encrypt(ctx, DomainKeyID{9}, items)
		for _, it := range items {
			if !errors.Is(it.Err, ErrNoDomainKey) || it.Out != nil {
				t.Errorf("got %v", it.Err)
			}
		}
	})
	t.Run("cancelled", func(t *testing.T) {
		gone, cancel := context.WithCancel(ctx)
		cancel()
		items := []Item{{In: kek(0)}}
		r.Encrypt(gone, id, items)
		if !errors.Is(items[0].Err, context.Canceled) {
			t.Errorf("got %v", items[0].Err)
		}
		buf := []byte{1, 2, 3}
		if err := r.Random(gone, [][]byte{buf}); !errors.Is(err, context.Canceled) || !bytes.Equal(buf, make([]byte, 3)) {
			t.Errorf("Random: %v, %x", err, buf)
		}
	})
	t.Run("closed", func(t *testing.T) {
		r.Close()
		r.Close()
		items := []Item{{In: kek(0)}}
		r.Encrypt(ctx, id, items)
		if !errors.Is(items[0].Err, ErrClosed) {
			t.Errorf("got %v", items[0].Err)
		}
		if _, err := r.CreateDomainKey(ctx); !errors.Is(err, ErrClosed) {
			t.Errorf("got %v", err)
		}
	})
}

// checkBadItems holds any root to the promises about single items: a bad one fails
// alone, and nothing but what was made under this domain key opens.
func checkBadItems(t *testing.T, r Root, id, other DomainKeyID) {
	t.Helper()
	ctx := context.Background()
	good := wrapAll(t, r, id, 2)
	if bytes.Equal(good[0], good[1]) {
		t.Error("two KEKs have one wrapped form")
	}
	if again := wrapAll(t, r, id, 1); bytes.Equal(good[0], again[0]) {
		t.Error("one KEK was wrapped twice alike: the IV repeats")
	}
	items := []Item{{In: kek(0)[:31]}, {In: kek(0)}, {In: nil}, {In: append(kek(0), 0)}}
	r.Encrypt(ctx, id, items)
	for i, it := range items {
		if ok := i == 1; ok != (it.Err == nil) || ok != (it.Out != nil) {
			t.Errorf("encrypt item %d: %v, %x", i, it.Err, it.Out)
		}
		if i != 1 && !errors.Is(it.Err, ErrBadItem) {
			t.Errorf("encrypt item %d: %v", i, it.Err)
		}
	}
	var bad []Item
	for i := range good[0] {
		b := bytes.Clone(good[0])
		b[i] ^= 0x10
		bad = append(bad, Item{In: b})
	}
	for _, n := range []int{0, 1, 2, 3, len(good[0]) / 2, len(good[0]) - 1} {
		bad = append(bad, Item{In: good[0][:n]})
	}
	bad = append(bad, Item{In: append(bytes.Clone(good[0]), 0)}, Item{In: make([]byte, MaxWrapped+1)})
	bad = append(bad, Item{In: good[1]}) // the last one is good
	r.Decrypt(ctx, id, bad)
	for i, it := range bad[:len(bad)-1] {
		if !errors.Is(it.Err, ErrBadWrapped) || it.Out != nil {
			t.Errorf("damaged item %d: %v", i, it.Err)
		}
	}
	if last := bad[len(bad)-1]; last.Err != nil || !bytes.Equal(last.Out, kek(1)) {
		t.Errorf("good item among bad ones: %v", last.Err)
	}
	swapped := []Item{{In: good[0]}}
	r.Decrypt(ctx, other, swapped)
	if !errors.Is(swapped[0].Err, ErrBadWrapped) {
		t.Errorf("under another domain key: %v", swapped[0].Err)
	}
}

func TestSoftwareRandom(t *testing.T) {
	checkRandom(t, OpenEphemeral())
}

// checkRandom fills buffers of several sizes and expects no two alike, nor zeroes.
func checkRandom(t *testing.T, r Root) {
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

func BenchmarkSoftware(b *testing.B) {
	ctx := context.Background()
	r := OpenEphemeral()
	id, err := r.CreateDomainKey(ctx)
	if err != nil {
		b.Fatal(err)
	}
	benchRoot(b, r, id, 1)
}

// benchRoot measures wrap and unwrap per item with batches of n.
func benchRoot(b *testing.B, r Root, id DomainKeyID, n int) {
	ctx := context.Background()
	in := make([]Item, n)
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
	out := make([]Item, n)
	for i := range out {
		if in[i].Err != nil {
			b.Fatal(in[i].Err)
		}
		out[i].In = in[i].Out
	}
	b.Run("unwrap", func(b *testing.B) { run(b, func() { r.Decrypt(ctx, id, out) }) })
}
