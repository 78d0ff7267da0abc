package kms

import (
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"sync/atomic"
	"time"
	"unsafe"

	mill "keymill/batch"
	"keymill/daemon/quota"
	"keymill/daemon/sigv4"
	"keymill/engine"
	"keymill/keystore"
)

// Config is what a Service is made of. Store, Account and Region are required.
type Config struct {
	Store   *keystore.Store
	Account string   // 12 digits; owner of what is created
	Region  string   // home region
	Regions []string // further regions served, or the one word "all"
	// KeyCache bounds the keys whose record and cipher state stay in memory;
	// 0 means DefaultKeyCache.
	KeyCache int
	// ShelfBytes bounds the memory for further keys that stay warm, some 230 bytes
	// each; 0 means DefaultShelfBytes.
	ShelfBytes int
	Quota      *quota.Profile   // request and resource quotas; nil: quota.None
	Clock      func() time.Time // nil: time.Now
	Logger     *slog.Logger     // nil: slog.Default()

	// HeavyWorkers is the number of threads for work of some 100 us and more, 0
	// for one less than GOMAXPROCS; see batch.Plan. HeavyCPUs are the processors to bind
	// them to, none for none. HeavyBusy is told when they begin to work and when they
	// rest; see batch.HeavyOptions.
	HeavyWorkers int
	HeavyCPUs    []int
	HeavyBusy    func(bool)

	// KeyStores are the devices that custom key stores can be made on.
	KeyStores KeyStoreConfig
}

// DefaultKeyCache keeps the keys of a large storage system hot. A warm symmetric
// key costs about 4 KiB.
const DefaultKeyCache = 16384

// DefaultShelfBytes is room for a million symmetric keys.
const DefaultShelfBytes = 256 << 20

// maxBulkyKeys bounds the ML-DSA keys whose expanded matrices stay in memory:
// 120 KiB each for ML-DSA-65.
const maxBulkyKeys = 1024

// Service answers AWS KMS requests. Safe for concurrent use.
type Service struct {
	// immutable after New
	store   *keystore.Store
	account string
	regions *Regions
	verify  *sigv4.Verifier
	clock   func() time.Time
	log     *slog.Logger
	counts  *counters
	heavy   *mill.Heavy
	quota   *quota.Limiter

	// each safe for concurrent use, coherent by the rule in the package comment
	shelf       *shelf
	views       *keystore.Cache[keystore.Ref, keyView]
	handles     *keystore.Cache[handleName, engine.Key]
	bulky       *keystore.Cache[handleName, engine.Key] // of ML-DSA keys
	buckets     *keystore.Cache[keystore.Ref, quota.Bucket]
	aliases     *keystore.Cache[aliasName, keystore.KeyID]
	credentials *keystore.Cache[string, sigv4.Credential]

	keyRoom   keyRoom
	stores    keyStores
	exchanges sync.Pool // of *exchange
	tokens    grantTokens
	bulk      bulkState
	panics    atomic.Uint64 // operations that panicked
	sched     scheduler
	guard     *clockGuard

	erasing    erasing
	destroyed  atomic.Uint64 // keys, since the start
	completing sync.Mutex    // held while a replica in pieces gets its material

	// destroyExternal destroys what a key has outside of the store, and may be
	// called again for the same key; nil when no key has anything there. Set by New.
	destroyExternal func(rec *keystore.Key) error

	usage     *usageLog
	rotations rotations
}

// New returns a Service on an open store.
func New(c Config) (*Service, error) {
	if c.Store == nil {
		return nil, errors.New("kms: a store is required")
	}
	if !validAccount(c.Account) {
		return nil, fmt.Errorf("kms: account %q is not 12 digits", c.Account)
	}
	regions, err := NewRegions(c.Region, c.Regions)
	if err != nil {
		return nil, fmt.Errorf("kms: %w", err)
	}
	if c.KeyCache == 0 {
		c.KeyCache = DefaultKeyCache
	}
	if c.ShelfBytes == 0 {
		c.ShelfBytes = DefaultShelfBytes
	}
	if c.Clock == nil {
		c.Clock = time.Now
	}
	if c.Logger == nil {
		c.Logger = slog.Default()
	}
	s := &Service{
		store:       c.Store,
		account:     c.Account,
		regions:     regions,
		clock:       c.Clock,
		log:         c.Logger,
		counts:      newCounters(),
		quota:       quota.New(c.Quota, c.Clock()),
		shelf:       newShelf(c.ShelfBytes),
		views:       keystore.NewCache[keystore.Ref, keyView](c.KeyCache, nil),
		buckets:     keystore.NewCache[keystore.Ref, quota.Bucket](c.KeyCache, nil),
		aliases:     keystore.NewCache[aliasName, keystore.KeyID](c.KeyCache, nil),
		credentials: keystore.NewCache[string, sigv4.Credential](maxCredentials, nil),
	}
	purge := func(_ handleName, h *engine.Key) { (*h).Purge() }
	s.handles = keystore.NewCache(c.KeyCache, purge)
	s.bulky = keystore.NewCache(min(c.KeyCache, maxBulkyKeys), purge)
	s.verify = sigv4.New(sigv4.Options{
		Service: "kms",
		Lookup:  s.credential,
		Cached:  s.cachedCredential,
		Region:  regions.Intern,
		Served:  regions.List(),
		Clock:   c.Clock,
		Logger:  c.Logger,
	})
	s.exchanges.New = func() any { return newExchange(s) }
	s.guard = newClockGuard(c.Store, c.Clock, c.Logger)
	if s.usage, err = newUsageLog(c.Store, c.KeyCache, c.Clock()); err != nil {
		return nil, fmt.Errorf("kms: %w", err)
	}
	if s.heavy, err = heavyWorkers(c); err != nil {
		return nil, fmt.Errorf("kms: %w", err)
	}
	if err := s.openStores(c.KeyStores); err != nil {
		return nil, fmt.Errorf("kms: %w", err)
	}
	return s, nil
}

// maxCredentials bounds the access keys kept in memory.
const maxCredentials = 4096

// cachedCredential finds an access key for the signature check among those that
// are in memory; nil when it is not there.
func (s *Service) cachedCredential(accessKeyID []byte) *sigv4.Credential {
	// The lookup only compares: the string never outlives the call.
	c, _ := s.credentials.Get(unsafe.String(unsafe.SliceData(accessKeyID), len(accessKeyID)))
	return c
}

// credential finds an access key in the store; nil when there is none. A store that
// cannot be read counts as none, and is logged.
func (s *Service) credential(accessKeyID []byte) *sigv4.Credential {
	id := string(accessKeyID)
	c, err := s.credentials.Load(id, func() (*sigv4.Credential, error) {
		k, err := s.store.AccessKey(id)
		if err != nil {
			return nil, err
		}
		p, err := s.store.Principal(k.PrincipalID)
		if err != nil {
			return nil, fmt.Errorf("principal of access key %s: %w", id, err)
		}
		return &sigv4.Credential{
			AccessKeyID:  k.ID,
			Account:      k.Account,
			PrincipalARN: p.ARN,
			PrincipalID:  p.ID,
			Secret:       k.Secret,
			Active:       k.Active,
			Revision:     k.Revision,
		}, nil
	})
	if err != nil {
		if !errors.Is(err, keystore.ErrNotFound) {
			s.log.Error("access key could not be read", "access_key_id", id, "error", err)
		}
		return nil
	}
	return c
}

func validAccount(a string) bool {
	if len(a) != 12 {
		return false
	}
	for i := range len(a) {
		if a[i] < '0' || a[i] > '9' {
			return false
		}
	}
	return true
}
