package quota

import (
	"strings"
	"sync/atomic"
	"time"

	"keymill/daemon/wire"
	"keymill/keystore"
)

// Bounds of the tables. What is forgotten starts full again, which only matters
// to whoever uses more accounts and regions, or stores, than these within the
// second in which a bucket fills.
const (
	maxAccounts = 4096
	maxStores   = 1024
)

// A Limiter holds the buckets of a profile. Safe for concurrent use.
type Limiter struct {
	// immutable after New
	profile *Profile
	origin  time.Time
	perKey  Limit
	store   Limit

	accounts *keystore.Cache[accountName, Account] // nil without request quotas
	stores   *keystore.Cache[string, Bucket]       // nil without a quota for stores

	// recent spares nearly all requests the hashing of two strings, which costs
	// several times what the taking does. A slot is written when an account's
	// buckets are made, never on a hit: two accounts that share one do not take
	// turns in it, the older goes the long way.
	recent [256]atomic.Pointer[Account]
}

type accountName struct{ account, region string }

// New returns a limiter whose time begins at start. No profile is no limits but
// the resource quotas of [None].
func New(p *Profile, start time.Time) *Limiter {
	if p == nil {
		p = None()
	}
	l := &Limiter{
		profile: p,
		origin:  start,
		perKey:  NewLimit(p.PerKey, p.PerKeyBurst),
		store:   NewLimit(p.CustomKeyStore, p.CustomKeyStore.burst()),
	}
	if !p.unlimited() {
		l.accounts = keystore.NewCache[accountName, Account](maxAccounts, nil)
	}
	if p.CustomKeyStore != 0 {
		l.stores = keystore.NewCache[string, Bucket](maxStores, nil)
	}
	return l
}

// Resources returns the resource quotas.
func (l *Limiter) Resources() *Resources { return &l.profile.Resources }

// An Account holds the buckets of one account in one region. A nil Account has
// no limits.
type Account struct {
	name    accountName
	origin  time.Time
	buckets [numClasses]bucket
}

// Account returns the buckets of an account in a region. It takes no lock and
// allocates nothing once it has seen the two.
func (l *Limiter) Account(account, region string) *Account {
	if l.accounts == nil {
		return nil
	}
	if a := l.slot(account, region).Load(); a != nil && a.name.account == account && a.name.region == region {
		return a
	}
	if a, ok := l.accounts.Get(accountName{account, region}); ok {
		return a
	}
	return l.newAccount(accountName{strings.Clone(account), strings.Clone(region)})
}

// slot finds an account's slot by the characters in which accounts and regions
// differ most.
func (l *Limiter) slot(account, region string) *atomic.Pointer[Account] {
	h := uint32(0)
	for _, s := range [2]string{account, region} {
		if n := len(s); n >= 4 {
			h = h*31 + uint32(s[n-1]) + uint32(s[n-2])*10 + uint32(s[n-4])*100 + uint32(s[0])*7 + uint32(s[3])*17
		}
	}
	return &l.recent[(h^h>>8)%uint32(len(l.recent))]
}

func (l *Limiter) newAccount(name accountName) *Account {
	a, _ := l.accounts.Load(name, func() (*Account, error) {
		a := &Account{name: name, origin: l.origin}
		for c := range a.buckets {
			rate := l.profile.Rate(name.region, Class(c))
			a.buckets[c].Limit = NewLimit(rate, rate.burst())
		}
		return a, nil
	})
	l.slot(name.account, name.region).Store(a)
	return a
}

// Take takes n units of a class at the time now, all or none. No units are
// always there.
func (a *Account) Take(c Class, n int64, now time.Time) bool {
	return a == nil || a.buckets[c].take(int64(now.Sub(a.origin)), n)
}

// Burst returns the most units that one Take of a class can get, 0 for no bound.
func (a *Account) Burst(c Class) int64 {
	if a == nil {
		return 0
	}
	return a.buckets[c].Burst()
}

// NewKeyBucket returns a full bucket for one key, nil when keys have no limit.
func (l *Limiter) NewKeyBucket() *Bucket { return l.newBucket(l.perKey) }

func (l *Limiter) newBucket(limit Limit) *Bucket {
	if limit == (Limit{}) {
		return nil
	}
	return &Bucket{bucket: bucket{Limit: limit}, origin: l.origin}
}

// CustomKeyStore returns the bucket of a custom key store. It takes no lock and
// allocates nothing once it has seen the store.
func (l *Limiter) CustomKeyStore(id string) *Bucket {
	if l.stores == nil {
		return nil
	}
	if b, ok := l.stores.Get(id); ok {
		return b
	}
	b, _ := l.stores.Load(strings.Clone(id), func() (*Bucket, error) { return l.newBucket(l.store), nil })
	return b
}

var throttled = wire.ErrorText(wire.ThrottlingException, "You have exceeded the rate at which you may call KMS. Reduce the frequency of your calls.")

// Throttled is the answer to a request that finds its bucket empty.
func Throttled() *wire.Error { return throttled }
