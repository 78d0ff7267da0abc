package keystore

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"sync"
	"sync/atomic"
	"time"

	"github.com/cockroachdb/pebble/v2"
	"github.com/cockroachdb/pebble/v2/bloom"
	"github.com/cockroachdb/pebble/v2/vfs"

	"keymill/hsm"
	"keymill/hsm/arena"
	"keymill/hsm/xaes"
)

// DefaultCacheBytes holds the blocks of some 100,000 keys, and leaves most of
// the daemon's 200 MB to others.
const DefaultCacheBytes = 48 << 20

// memTableBytes is the size of one memtable, of which there are at most four
// for a moment. It bounds the log that is replayed at start, and half of it
// must exceed MaxCommitBytes, or a large commit would flush a table by itself.
const memTableBytes = 4 << 20

// Options of Open. Dir and Root must be set.
type Options struct {
	// Dir is the store's own directory. It and the files in it are readable by
	// the owner only.
	Dir string
	// Root unwraps the store key and the keys of materials. It is not closed by
	// the store. It is an hsm.Composite where the store is to move from one root
	// to another, see Rewrap.
	Root hsm.Root
	// Clock stamps the header and backups; nil means time.Now.
	Clock func() time.Time
	// Logger receives the storage engine's messages (at debug level) and
	// failures; nil means none.
	Logger *slog.Logger
	// CacheBytes bounds the cache of storage blocks; 0 means DefaultCacheBytes.
	CacheBytes int64
	// MustExist makes Open return ErrNoStore instead of creating a store.
	MustExist bool
	// OnFatal is called once, on a goroutine of its own, when storage has failed
	// and the store accepts no more commits. The daemon stops then. It may be nil.
	OnFatal func(error)

	fs     vfs.FS // nil means the machine's
	noSync bool   // bulk creation in tests
	tune   func(*pebble.Options)
}

// A Store is an open store. All methods may be called concurrently, except
// that Close must come after all others have returned.
type Store struct {
	// Immutable after Open.
	db     *pebble.DB
	lock   *pebble.Lock
	fs     vfs.FS
	dir    string
	root   hsm.Root
	clock  func() time.Time
	log    *slog.Logger
	key    *xaes.Key
	noSync bool

	onFatal func(error)
	wrap    *combiner
	unwrap  *combiner

	// See commit.go. The order of locks is mu, then history.mu.
	mu      sync.Mutex
	w       writer                   // guarded by mu
	closed  bool                     // guarded by mu
	tail    atomic.Pointer[inflight] // the newest commit; written under mu
	durable atomic.Uint64            // revision up to which everything is on disk
	header  atomic.Pointer[Header]   // written under mu
	under   atomic.Pointer[domain]   // written under mu; see rewrap.go
	failure atomic.Pointer[error]    // set once, by poison

	history history

	rewrapping sync.Mutex                                 // held by who moves the store to another domain key
	pause      func(context.Context, time.Duration) error // replaced in tests

	opens struct { // see material.go
		mu      sync.Mutex
		flights map[openKey]*openFlight
	}
}

// Open opens the store in o.Dir and checks that it belongs to o.Root. When the
// directory is absent or empty it creates a store and, for it, a domain key.
//
// It returns ErrLocked, ErrUnknownFormat, ErrWrongRoot or ErrTampered with a
// text that says what to do; errors of the root and of the disk pass through.
// The time it takes does not depend on the number of records.
func Open(ctx context.Context, o Options) (*Store, error) {
	if o.Dir == "" || o.Root == nil {
		return nil, fmt.Errorf("%w: Dir and Root must be set", ErrInvalid)
	}
	s := &Store{dir: o.Dir, root: o.Root, clock: o.Clock, log: o.Logger, fs: o.fs, noSync: o.noSync, onFatal: o.OnFatal}
	if s.clock == nil {
		s.clock = time.Now
	}
	if s.log == nil {
		s.log = slog.New(slog.DiscardHandler)
	}
	if s.fs == nil {
		s.fs = privateFS{vfs.Default}
	}
	s.w.s, s.pause = s, pause
	sessions := o.Root.Info().Sessions
	s.wrap = newCombiner(sessions, o.Root.Encrypt)
	s.unwrap = newCombiner(sessions, o.Root.Decrypt)
	s.opens.flights = make(map[openKey]*openFlight)
	if err := s.openDB(o); err != nil {
		return nil, err
	}
	if err := s.loadHeader(ctx, o); err != nil {
		return nil, errors.Join(err, s.closeDB())
	}
	return s, nil
}

func (s *Store) openDB(o Options) error {
	lock, err := s.lockDir(o)
	if err != nil {
		return err
	}
	cacheBytes := o.CacheBytes
	if cacheBytes <= 0 {
		cacheBytes = DefaultCacheBytes
	}
	cache := pebble.NewCache(cacheBytes)
	defer cache.Unref()
	opts := &pebble.Options{
		FS:                          s.fs,
		Cache:                       cache,
		Logger:                      bridge{s},
		FormatMajorVersion:          pebble.FormatNewest,
		MemTableSize:                memTableBytes,
		MemTableStopWritesThreshold: 4,
		MaxOpenFiles:                500,
		ErrorIfNotExists:            o.MustExist,
		Cleaner:                     eraser{},
		Lock:                        lock,
	}
	// Sealed values do not compress. Filters let a look-up skip tables; the
	// engine does not ask them on the last level, where most names are.
	opts.ApplyCompressionSettings(func() pebble.DBCompressionSettings { return pebble.DBCompressionNone })
	for i := range opts.Levels[:len(opts.Levels)-1] {
		opts.Levels[i].FilterPolicy = bloom.FilterPolicy(10)
	}
	opts.EnsureDefaults()
	opts.EventListener = &pebble.EventListener{
		BackgroundError: func(err error) { s.log.Error("keystore: background work failed", "error", err) },
		DiskSlow:        func(i pebble.DiskSlowInfo) { s.log.Warn("keystore: slow disk", "info", i.String()) },
	}
	if o.tune != nil {
		o.tune(opts)
	}
	db, err := pebble.Open(o.Dir, opts)
	switch {
	case err == nil:
		s.db, s.lock = db, lock
		return nil
	case errors.Is(err, pebble.ErrDBDoesNotExist):
		err = fmt.Errorf("%w: %s", ErrNoStore, o.Dir)
	case pebble.IsCorruptionError(err):
		err = fmt.Errorf("%w: storage files in %s: %w", ErrTampered, o.Dir, err)
	default:
		err = fmt.Errorf("keystore: could not open %s: %w", o.Dir, err)
	}
	return errors.Join(err, lock.Close())
}

// lockDir makes and locks the directory.
func (s *Store) lockDir(o Options) (*pebble.Lock, error) {
	if o.MustExist {
		if _, err := s.fs.Stat(o.Dir); errors.Is(err, fs.ErrNotExist) {
			return nil, fmt.Errorf("%w: %s", ErrNoStore, o.Dir)
		}
	}
	if err := s.fs.MkdirAll(o.Dir, 0o700); err != nil {
		return nil, fmt.Errorf("keystore: could not make the directory: %w", err)
	}
	lock, err := pebble.LockDirectory(o.Dir, s.fs)
	var path *fs.PathError
	if err == nil {
		return lock, nil
	} else if errors.As(err, &path) {
		return nil, fmt.Errorf("keystore: could not lock %s: %w", o.Dir, err)
	}
	// What is left is the lock itself being refused.
	return nil, fmt.Errorf("%w: %s", ErrLocked, o.Dir)
}

// closeDB releases the storage engine and the directory.
func (s *Store) closeDB() error { return errors.Join(s.db.Close(), s.lock.Close()) }

// loadHeader reads or creates the header, unwraps the store key and finds the
// last revision.
func (s *Store) loadHeader(ctx context.Context, o Options) error {
	headerKey := Name{Kind: KindHeader}.key()
	raw, closer, err := s.db.Get(headerKey)
	if errors.Is(err, pebble.ErrNotFound) {
		return s.create(ctx, o)
	} else if err != nil {
		return s.readError(headerKey, err)
	}
	header, err := ParseHeader(raw)
	closer.Close()
	if err != nil {
		return err
	}
	storeKey, err := s.unwrapStoreKey(ctx, header)
	if err != nil {
		return err
	}
	defer arena.Wipe(storeKey)
	if !header.authentic(storeKey) {
		return tampered(headerKey, "does not authenticate: it was changed")
	}
	s.header.Store(header)
	if s.key, err = xaes.New(storeKey); err != nil {
		return err
	}
	return s.start()
}

// unwrapStoreKey asks the root for the store key. A root that has no such
// domain key, or one with other contents, is not this store's.
func (s *Store) unwrapStoreKey(ctx context.Context, header *Header) ([]byte, error) {
	id := header.DomainKey
	if err := s.root.CheckDomainKey(ctx, id); errors.Is(err, hsm.ErrNoDomainKey) {
		return nil, fmt.Errorf("%w: it needs domain key %s, which this one does not hold; start with the root the store was made with, or was last moved to by keymill rewrap", ErrWrongRoot, id)
	} else if err != nil {
		return nil, fmt.Errorf("keystore: could not look for domain key %s: %w", id, err)
	}
	items := []hsm.Item{{In: header.WrappedKey}}
	s.root.Decrypt(ctx, id, items)
	switch it := items[0]; {
	case it.Err != nil && !errors.Is(it.Err, hsm.ErrBadWrapped):
		return nil, fmt.Errorf("keystore: could not unwrap the store key: %w", it.Err)
	case it.Err != nil:
		return nil, fmt.Errorf("%w: its domain key %s does not unwrap the store key, or the store's header was changed: %w", ErrWrongRoot, id, it.Err)
	case len(it.Out) != storeKeySize:
		arena.Wipe(it.Out)
		return nil, fmt.Errorf("%w: the unwrapped store key has %d bytes", ErrWrongRoot, len(it.Out))
	default:
		return it.Out, nil
	}
}

// create writes header and first revision of a new store.
func (s *Store) create(ctx context.Context, o Options) error {
	it, err := s.db.NewIter(nil)
	if err != nil {
		return err
	}
	notEmpty := it.First()
	if err := errors.Join(it.Error(), it.Close()); err != nil {
		return s.readError(Name{Kind: KindHeader}.key(), err)
	}
	if notEmpty {
		return tampered(Name{Kind: KindHeader}.key(), "missing, though there are other records")
	}
	if o.MustExist {
		return fmt.Errorf("%w: %s", ErrNoStore, o.Dir)
	}
	id, err := s.root.CreateDomainKey(ctx)
	if err != nil {
		return fmt.Errorf("keystore: could not create a domain key: %w", err)
	}
	storeKey := make([]byte, storeKeySize)
	rand.Read(storeKey)
	defer arena.Wipe(storeKey)
	items := []hsm.Item{{In: storeKey}}
	s.root.Encrypt(ctx, id, items)
	if items[0].Err != nil {
		return fmt.Errorf("keystore: could not wrap the store key: %w", items[0].Err)
	}
	if n := len(items[0].Out); n == 0 || n > maxWrapped {
		return fmt.Errorf("keystore: the root wrapped the store key to %d bytes", n)
	}
	header := &Header{Format: storeFormat, DomainKey: id, Created: s.clock(), WrappedKey: items[0].Out}
	rand.Read(header.StoreID[:])
	if s.key, err = xaes.New(storeKey); err != nil {
		return err
	}
	batch := s.db.NewBatch()
	defer batch.Close()
	batch.Set(Name{Kind: KindHeader}.key(), header.marshal(storeKey), nil)
	s.header.Store(header)
	revisionKey := Name{Kind: KindRevision}.key()
	value, err := encode(&revisionRecord{})
	if err != nil {
		return err
	}
	batch.Set(revisionKey, sealRecord(nil, s.key, revisionKey, value, 1), nil)
	if err := batch.Commit(pebble.Sync); err != nil {
		return fmt.Errorf("keystore: could not write the header: %w", err)
	}
	if err := s.Err(); err != nil {
		return err
	}
	return s.start()
}

// start begins at the last revision.
func (s *Store) start() error {
	revisionKey := Name{Kind: KindRevision}.key()
	raw, closer, err := s.db.Get(revisionKey)
	if errors.Is(err, pebble.ErrNotFound) {
		return tampered(revisionKey, "missing")
	} else if err != nil {
		return s.readError(revisionKey, err)
	}
	defer closer.Close()
	_, rev, err := openRecord(s.key, revisionKey, raw)
	if err != nil {
		return err
	}
	settled := &inflight{rev: rev, done: make(chan struct{})}
	close(settled.done)
	s.tail.Store(settled)
	s.durable.Store(rev)
	s.history.start(rev)
	return s.findDomain()
}

// Header returns what identifies the store. The caller must not change it.
func (s *Store) Header() *Header { return s.header.Load() }

// Revision returns the revision up to which everything is durable.
func (s *Store) Revision() uint64 { return s.durable.Load() }

// Err returns nil while the store accepts commits, and what stopped it after.
func (s *Store) Err() error {
	if p := s.failure.Load(); p != nil {
		return *p
	}
	return nil
}

// Close waits for the commits under way and closes the store. It does not
// close the root.
func (s *Store) Close() error {
	s.mu.Lock()
	if s.closed {
		s.mu.Unlock()
		return ErrClosed
	}
	s.closed = true
	s.mu.Unlock()
	<-s.tail.Load().done
	s.history.close()
	// The storage engine takes damage near the end of its log for a write that a
	// crash cut short, and drops what follows. So a store that ends in order
	// leaves no log behind, only tables whose blocks are checksummed.
	if s.Err() == nil {
		s.flush()
	}
	err := s.closeDB()
	if failed := s.Err(); failed != nil {
		return failed
	}
	return err
}

// flushTimeout bounds what Close waits for the log to be written out. The
// storage engine tries a failing flush for ever.
const flushTimeout = 2 * time.Second

// flush writes what is only in the log to tables, as far as that is possible.
func (s *Store) flush() {
	done, err := s.db.AsyncFlush()
	if err == nil {
		select {
		case <-done:
			return
		case <-time.After(flushTimeout):
			err = context.DeadlineExceeded
		}
	}
	s.log.Warn("keystore: the log could not be written out at the end; it is replayed at the next start", "error", err)
}

// poison makes the store refuse all further commits, and returns why.
func (s *Store) poison(cause error) error {
	err := fmt.Errorf("%w: %w", ErrFailed, cause)
	if s.failure.CompareAndSwap(nil, &err) {
		s.log.Error("keystore: storage failed; no further changes are accepted", "error", cause)
		if s.onFatal != nil {
			go s.onFatal(err)
		}
	}
	return s.Err()
}

// readError explains a failed read of one record.
func (s *Store) readError(storageKey []byte, err error) error {
	if pebble.IsCorruptionError(err) {
		s.log.Error("keystore: storage file damaged", "record", describe(storageKey), "error", err)
		return tampered(storageKey, "storage file damaged: "+err.Error())
	}
	return fmt.Errorf("keystore: could not read %s: %w", describe(storageKey), err)
}

// bridge gives the storage engine's messages to the log. Fatalf reports what
// the engine cannot go on from: the store is poisoned, and since nothing is
// acknowledged any more it is safe to return.
type bridge struct{ s *Store }

func (b bridge) Infof(format string, args ...any) {
	b.s.log.Debug("keystore: storage: " + fmt.Sprintf(format, args...))
}

func (b bridge) Errorf(format string, args ...any) {
	b.s.log.Error("keystore: storage: " + fmt.Sprintf(format, args...))
}

func (b bridge) Fatalf(format string, args ...any) {
	b.s.poison(fmt.Errorf(format, args...))
}
