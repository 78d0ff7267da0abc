package hsm_test

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

	"keymill/hsm"
)

func openSoftware(t *testing.T, path string, o hsm.SoftwareOptions) hsm.Root {
	t.Helper()
	r, err := hsm.OpenSoftware(path, o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { r.Close() })
	return r
}

func TestSoftwareSurvivesReopening(t *testing.T) {
	path := filepath.Join(t.TempDir(), "root.key")
	created := time.Unix(1700000000, 0)
	o := hsm.SoftwareOptions{Create: true, Clock: func() time.Time { return created }}
	r := openSoftware(t, path, o)
	ctx := context.Background()
	var ids []hsm.DomainKeyID
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
	r = openSoftware(t, path, hsm.SoftwareOptions{})
	for i, id := range ids {
		if err := r.CheckDomainKey(ctx, id); err != nil {
			t.Error(err)
		}
		checkUnwraps(t, r, id, wraps[i])
	}
	if err := r.CheckDomainKey(ctx, hsm.DomainKeyID{1}); !errors.Is(err, hsm.ErrNoDomainKey) {
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
	a := openSoftware(t, path, hsm.SoftwareOptions{Create: true})
	b := openSoftware(t, path, hsm.SoftwareOptions{Create: true})
	var mu sync.Mutex
	var ids []hsm.DomainKeyID
	var wg sync.WaitGroup
	for _, r := range []hsm.Root{a, b} {
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
	c := openSoftware(t, path, hsm.SoftwareOptions{})
	for _, id := range ids {
		if err := c.CheckDomainKey(context.Background(), id); err != nil {
			t.Error(err)
		}
	}
}

func TestSoftwareRefusesKeyFiles(t *testing.T) {
	dir := t.TempDir()
	good := filepath.Join(dir, "good")
	r := openSoftware(t, good, hsm.SoftwareOptions{Create: true})
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
		{"readable by the group", content, 0o640, hsm.ErrKeyFile, "chmod 600"},
		{"readable by all", content, 0o604, hsm.ErrKeyFile, "chmod 600"},
		{"empty", nil, 0o600, hsm.ErrKeyFile, "0 bytes"},
		{"something else", bytes.Repeat([]byte("x"), 100), 0o600, hsm.ErrKeyFile, "not a key file"},
		{"too long", make([]byte, hsm.MaxKeyFile+1), 0o600, hsm.ErrKeyFile, "bytes"},
		{"truncated", content[:len(content)-1], 0o600, hsm.ErrKeyFile, "truncated"},
		{"a domain key cut out", edit(func(b []byte) []byte { return append(b[:20], b[20+hsm.KeyFileEntry:]...) }), 0o600, hsm.ErrKeyFile, "truncated"},
		{"a bit flipped in a key", edit(func(b []byte) []byte { b[50] ^= 1; return b }), 0o600, hsm.ErrKeyFile, "checksum"},
		{"a later version", edit(func(b []byte) []byte { b[15] = 2; return resum(b) }), 0o600, hsm.ErrKeyFile, "version 2"},
		{"the same domain key twice", edit(func(b []byte) []byte {
			copy(b[20+hsm.KeyFileEntry:], b[20:20+hsm.KeyFileEntry])
			return resum(b)
		}), 0o600, hsm.ErrDuplicateDomainKey, "more than one"},
		{"a count that lies", edit(func(b []byte) []byte { binary.BigEndian.PutUint32(b[16:], 1<<31); return resum(b) }), 0o600, hsm.ErrKeyFile, "length"},
	} {
		t.Run(c.name, func(t *testing.T) {
			path := filepath.Join(t.TempDir(), "root.key")
			if err := os.WriteFile(path, c.content, 0o600); err != nil {
				t.Fatal(err)
			}
			if err := os.Chmod(path, c.mode); err != nil {
				t.Fatal(err)
			}
			_, err := hsm.OpenSoftware(path, hsm.SoftwareOptions{Create: true})
			if !errors.Is(err, c.want) || !strings.Contains(err.Error(), c.text) {
				t.Errorf("got %v, want %v with %q", err, c.want, c.text)
			}
			if after, err := os.ReadFile(path); err != nil || !bytes.Equal(after, c.content) {
				t.Error("the refused file was changed")
			}
		})
	}
	t.Run("absent", func(t *testing.T) {
		if _, err := hsm.OpenSoftware(filepath.Join(dir, "none")); !errors.Is(err, hsm.ErrNoKeyFile) {
			t.Errorf("got %v", err)
		}
	})
	t.Run("a directory", func(t *testing.T) {
		if _, err := hsm.OpenSoftware(dir, hsm.SoftwareOptions{Create: true}); !errors.Is(err, hsm.ErrKeyFile) {
			t.Errorf("got %v", err)
		}
	})
}

// brokenFiles fails at one step of writeAtomic.
type brokenFiles struct {
	hsm.OSFiles
	step        string
	afterEffect bool
}

var errBroken = errors.New("broken by the test")

type brokenFile struct {
	hsm.SyncFile
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

func (b *brokenFiles) CreateTemp(dir, pattern string) (f hsm.SyncFile, err error) {
	err = b.do("create", func() (err error) {
		f, err = b.OSFiles.CreateTemp(dir, pattern)
		return err
	})
	return brokenFile{f, b}, err
}

func (b *brokenFiles) Rename(from, to string) error {
	return b.do("rename", func() error { return b.OSFiles.Rename(from, to) })
}

func (b *brokenFiles) SyncDir(dir string) error {
	return b.do("sync directory", func() error { return b.OSFiles.SyncDir(dir) })
}

func (f brokenFile) Write(p []byte) (n int, err error) {
	err = f.b.do("write", func() (err error) {
		n, err = f.SyncFile.Write(p)
		return err
	})
	return n, err
}

func (f brokenFile) Sync() error  { return f.b.do("sync", f.SyncFile.Sync) }
func (f brokenFile) Close() error { return f.b.do("close", f.SyncFile.Close) }

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
			r := openSoftware(t, path, hsm.SoftwareOptions{Create: true}.WithFiles(b))
			old, err := r.CreateDomainKey(ctx)
			if err != nil {
				t.Fatal(err)
			}
			wraps := wrapAll(t, r, old, 1)
			b.step, b.afterEffect = c.step, c.tookEffect
			if id, err := r.CreateDomainKey(ctx); !errors.Is(err, errBroken) || id != (hsm.DomainKeyID{}) {
				t.Fatalf("CreateDomainKey = %s, %v", id, err)
			}
			checkUnwraps(t, r, old, wraps)
			after := openSoftware(t, path, hsm.SoftwareOptions{})
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
	r := hsm.OpenEphemeral()
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
		items := []hsm.Item{{In: kek(0)}, {In: kek(1)}}
		r.Encrypt(ctx, hsm.DomainKeyID{9}, items)
		for _, it := range items {
			if !errors.Is(it.Err, hsm.ErrNoDomainKey) || it.Out != nil {
				t.Errorf("got %v", it.Err)
			}
		}
	})
	t.Run("cancelled", func(t *testing.T) {
		gone, cancel := context.WithCancel(ctx)
		cancel()
		items := []hsm.Item{{In: kek(0)}}
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
		items := []hsm.Item{{In: kek(0)}}
		r.Encrypt(ctx, id, items)
		if !errors.Is(items[0].Err, hsm.ErrClosed) {
			t.Errorf("got %v", items[0].Err)
		}
		if _, err := r.CreateDomainKey(ctx); !errors.Is(err, hsm.ErrClosed) {
			t.Errorf("got %v", err)
		}
	})
}

func TestSoftwareRandom(t *testing.T) {
	checkRandom(t, hsm.OpenEphemeral())
}

func BenchmarkSoftware(b *testing.B) {
	ctx := context.Background()
	r := hsm.OpenEphemeral()
	id, err := r.CreateDomainKey(ctx)
	if err != nil {
		b.Fatal(err)
	}
	benchRoot(b, r, id, 1)
}
