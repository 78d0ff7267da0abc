package hsm

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"
	"time"

	"keymill/hsm/arena"
	"keymill/hsm/xaes"
)

// SoftwareOptions are the choices for [OpenSoftware]. The zero value is usable.
type SoftwareOptions struct {
	// Create makes the key file, with no domain key in it, when it does not exist.
	// Without it a missing file is ErrNoKeyFile.
	Create bool
	// Clock supplies creation times; nil means time.Now.
	Clock func() time.Time

	files fileSystem // tests break it; nil means the operating system's
}

// softwareRoot holds its domain keys as ciphers only. The raw keys pass through the
// arena while the key file is parsed or written and are wiped then; a new domain key
// reads the file again.
//
// A domain key encrypts under XAES-256-GCM with 24 random bytes as nonce, which is
// safe for 2^80 KEKs: there is no counter to keep here.
type softwareRoot struct {
	path  string // immutable; "" for an ephemeral root
	clock func() time.Time
	files fileSystem

	// keys is replaced as a whole by CreateDomainKey and DestroyDomainKey and set to
	// nil by Close; the map behind it is never written to.
	keys atomic.Pointer[map[DomainKeyID]*xaes.Key]

	mu sync.Mutex // serialises CreateDomainKey, DestroyDomainKey and Close
}

// OpenSoftware opens the software root whose domain keys are in the file at path.
// A file that others can read, that does not carry its checksum, or of an unknown
// version is refused with ErrKeyFile. At most one SoftwareOptions may be given.
func OpenSoftware(path string, options ...SoftwareOptions) (Root, error) {
	var o SoftwareOptions
	if len(options) > 0 {
		o = options[0]
	}
	r := newSoftware(o)
	r.path = filepath.Clean(path)
	f, err := r.load()
	if errors.Is(err, ErrNoKeyFile) && o.Create {
		err = r.change(func(f *keyFile) error { return nil })
		if err == nil {
			f, err = r.load()
		}
	}
	if err != nil {
		return nil, err
	}
	defer f.wipe()
	keys, err := f.ciphers()
	if err != nil {
		return nil, err
	}
	r.keys.Store(&keys)
	return r, nil
}

// OpenEphemeral returns a software root whose domain keys exist only as long as it
// is open: for tests, benchmarks and trials.
func OpenEphemeral() Root {
	r := newSoftware(SoftwareOptions{})
	r.keys.Store(&map[DomainKeyID]*xaes.Key{})
	return r
}

func newSoftware(o SoftwareOptions) *softwareRoot {
	r := &softwareRoot{clock: o.Clock, files: o.files}
	if r.clock == nil {
		r.clock = time.Now
	}
	if r.files == nil {
		r.files = osFiles{}
	}
	return r
}

func (r *softwareRoot) CreateDomainKey(ctx context.Context) (DomainKeyID, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if err := ctx.Err(); err != nil {
		return DomainKeyID{}, contextError(ctx)
	}
	old := r.keys.Load()
	if old == nil {
		return DomainKeyID{}, ErrClosed
	}
	secret, err := arena.New(xaes.KeySize)
	if err != nil {
		return DomainKeyID{}, err
	}
	defer secret.Wipe()
	var id DomainKeyID
	rand.Read(id[:])
	rand.Read(secret.Bytes())
	key, err := xaes.New(secret.Bytes())
	if err != nil {
		return DomainKeyID{}, err
	}
	keys := map[DomainKeyID]*xaes.Key{}
	if r.path == "" {
		maps.Copy(keys, *old)
		keys[id] = key
	} else {
		err = r.change(func(f *keyFile) error {
			if err := f.add(id, r.clock(), secret.Bytes()); err != nil {
				return err
			}
			keys, err = f.ciphers()
			return err
		})
		if err != nil {
			return DomainKeyID{}, fmt.Errorf("couldn't add a domain key: %w", err)
		}
	}
	r.keys.Store(&keys)
	return id, nil
}

func (r *softwareRoot) DestroyDomainKey(ctx context.Context, id DomainKeyID) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	if _, err := r.key(ctx, id); err != nil {
		return err
	}
	keys := map[DomainKeyID]*xaes.Key{}
	maps.Copy(keys, *r.keys.Load())
	delete(keys, id)
	if r.path != "" {
		err := r.change(func(f *keyFile) (err error) {
			f.remove(id)
			keys, err = f.ciphers()
			return err
		})
		if err != nil {
			return fmt.Errorf("couldn't remove domain key %s: %w", id, err)
		}
	}
	r.keys.Store(&keys)
	return nil
}

// key finds a domain key.
func (r *softwareRoot) key(ctx context.Context, id DomainKeyID) (*xaes.Key, error) {
	if ctx.Err() != nil {
		return nil, contextError(ctx)
	}
	keys := r.keys.Load()
	if keys == nil {
		return nil, ErrClosed
	}
	k := (*keys)[id]
	if k == nil {
		where := r.path
		if where == "" {
			where = "memory"
		}
		return nil, fmt.Errorf("%w: %s in %s", ErrNoDomainKey, id, where)
	}
	return k, nil
}

func (r *softwareRoot) CheckDomainKey(ctx context.Context, id DomainKeyID) error {
	_, err := r.key(ctx, id)
	return err
}

// softwareAAD separates this use of a domain key from any later one.
func softwareAAD(id DomainKeyID) []byte {
	return append([]byte("keymill software root KEK v1\x00"), id[:]...)
}

func (r *softwareRoot) Encrypt(ctx context.Context, id DomainKeyID, items []Item) {
	k, err := r.key(ctx, id)
	if err != nil {
		failAll(items, err)
		return
	}
	aad := softwareAAD(id)
	// One read of the random number generator for the whole batch.
	nonces := make([]byte, len(items)*xaes.NonceSize)
	rand.Read(nonces)
	for i := range items {
		it := &items[i]
		it.Out, it.Err = nil, nil
		if len(it.In) != KEKSize {
			it.Err = ErrBadItem
			continue
		}
		nonce := nonces[i*xaes.NonceSize:][:xaes.NonceSize]
		out := make([]byte, 0, 3+xaes.NonceSize+KEKSize+xaes.Overhead)
		out = wrapped{scheme: schemeXAES, iv: nonce}.append(out)
		it.Out = k.Seal(out, nonce, it.In, aad)
	}
}

func (r *softwareRoot) Decrypt(ctx context.Context, id DomainKeyID, items []Item) {
	k, err := r.key(ctx, id)
	if err != nil {
		failAll(items, err)
		return
	}
	aad := softwareAAD(id)
	for i := range items {
		it := &items[i]
		it.Out, it.Err = nil, nil
		w, err := parseWrapped(it.In)
		if err != nil {
			it.Err = err
			continue
		}
		if w.scheme != schemeXAES {
			it.Err = fmt.Errorf("%w: it was made with %s, by another root", ErrBadWrapped, w.scheme)
			continue
		}
		out, err := k.Open(make([]byte, 0, KEKSize), w.iv, w.ct, aad)
		if err != nil {
			it.Err = ErrBadWrapped
			continue
		}
		it.Out = out
	}
}

func (r *softwareRoot) Random(ctx context.Context, bufs [][]byte) error {
	if ctx.Err() != nil {
		for _, b := range bufs {
			clear(b)
		}
		return contextError(ctx)
	}
	for _, b := range bufs {
		rand.Read(b) // never fails: crypto/rand aborts the process instead
	}
	return nil
}

func (r *softwareRoot) Info() Info {
	info := Info{
		Kind: KindSoftware, Location: r.path, Mechanism: schemeXAES.String(), Random: "operating system",
		Notices: []string{"the root of trust is a file: whoever can read it and the store can read every key"},
	}
	if r.path == "" {
		info.Notices = []string{"the root of trust exists only in this process's memory"}
	}
	if n := arena.Notice(); n != "" {
		info.Notices = append(info.Notices, n)
	}
	return info
}

func (r *softwareRoot) Close() error {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.keys.Store(nil)
	return nil
}

// load reads the key file. The caller wipes the result.
func (r *softwareRoot) load() (*keyFile, error) {
	b, err := readPrivate(r.path, maxKeyFile, ErrKeyFile)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("%w: %s", ErrNoKeyFile, r.path)
	}
	if err != nil {
		return nil, err
	}
	defer b.Wipe()
	f, err := parseKeyFile(b.Bytes())
	if err != nil {
		return nil, fmt.Errorf("%w: %s: %w; restore it from your backup of the root key", ErrKeyFile, r.path, err)
	}
	return f, nil
}

// change rewrites the key file under a lock on its directory: read, let edit change
// it, write to a temporary file, sync, rename, sync the directory. A failure at any
// step leaves the old file or the new one, whole. A file that does not exist yet is
// edited as an empty one.
func (r *softwareRoot) change(edit func(*keyFile) error) error {
	dir := filepath.Dir(r.path)
	unlock, err := lockDir(dir)
	if err != nil {
		return fmt.Errorf("couldn't lock %s: %w", dir, err)
	}
	defer unlock()
	f, err := r.load()
	if errors.Is(err, ErrNoKeyFile) {
		f, err = &keyFile{}, nil
	}
	if err != nil {
		return err
	}
	defer f.wipe()
	if err := edit(f); err != nil {
		return err
	}
	b, err := f.encode()
	if err != nil {
		return err
	}
	defer b.Wipe()
	return writeAtomic(r.files, r.path, b.Bytes())
}

// fileSystem is what writeAtomic needs, so that tests can break each step.
type fileSystem interface {
	CreateTemp(dir, pattern string) (syncFile, error) // mode 0600
	Rename(from, to string) error
	Remove(name string) error
	SyncDir(dir string) error
}

type syncFile interface {
	Name() string
	Write([]byte) (int, error)
	Sync() error
	Close() error
}

// writeAtomic replaces path by b so that a crash leaves the old or the new content.
func writeAtomic(files fileSystem, path string, b []byte) (err error) {
	dir := filepath.Dir(path)
	f, err := files.CreateTemp(dir, ".root-*.tmp")
	if err != nil {
		return fmt.Errorf("couldn't create a file in %s: %w", dir, err)
	}
	renamed := false
	defer func() {
		if !renamed {
			// Best effort: the error that matters is the one being returned.
			_ = files.Remove(f.Name())
		}
	}()
	if _, err = f.Write(b); err == nil {
		err = f.Sync()
	}
	if cerr := f.Close(); err == nil {
		err = cerr
	}
	if err != nil {
		return fmt.Errorf("couldn't write %s: %w", f.Name(), err)
	}
	if err = files.Rename(f.Name(), path); err != nil {
		return fmt.Errorf("couldn't replace %s: %w", path, err)
	}
	renamed = true
	if err = files.SyncDir(dir); err != nil {
		return fmt.Errorf("couldn't sync %s: %w", dir, err)
	}
	return nil
}

type osFiles struct{}

func (osFiles) CreateTemp(dir, pattern string) (syncFile, error) { return os.CreateTemp(dir, pattern) }
func (osFiles) Rename(from, to string) error                     { return os.Rename(from, to) }
func (osFiles) Remove(name string) error                         { return os.Remove(name) }
func (osFiles) SyncDir(dir string) error {
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	defer d.Close()
	return d.Sync()
}
