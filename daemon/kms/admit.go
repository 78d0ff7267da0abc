package kms

import (
	"sync"

	"keymill/daemon/quota"
	"keymill/daemon/wire"
	"keymill/engine"
)

// # Admission
//
// A request takes from at most one bucket of the caller's account (ReEncrypt
// between keys of two kinds: one of each) and from that of every key it works on.
// When it takes:
//
//	after authentication  operations with a quota of their own, and GenerateRandom:
//	                      before anything of the body is looked at
//	after decoding        data key pairs: their quota is that of the KeyPairSpec
//	after the key is      all other cryptographic operations: their quota is that
//	found                 of the key's kind, which only the key tells
//	after authorisation   the key's own limit: who may not use a key cannot use up
//	                      what others may
//
// All of this is before the work. A cryptographic request that is refused before
// its key is found counts as symmetric, so that malformed requests are not free.
// A dry run counts like any other.

// quotaRule says in which of the account's request quotas an operation counts.
type quotaRule uint8

const (
	ownQuota       quotaRule = iota // the operation's
	symmetricQuota                  // that of symmetric cryptography
	keyQuota                        // that of the kind of the operation's key
	pairQuota                       // that of the KeyPairSpec asked for
)

// keyClass returns the class of cryptography with keys of a spec.
func keyClass(s engine.Spec) quota.Class {
	switch {
	case s.RSA():
		return quota.RSA
	case s.MLDSA():
		return quota.MLDSA
	case s.Asymmetric():
		return quota.ECC
	}
	return quota.Symmetric
}

// admitCall admits what needs nothing but the operation's name.
func (x *exchange) admitCall() error {
	x.quotas = x.svc.quota.Account(x.account, x.region)
	switch x.row.quota {
	case ownQuota:
		return x.admit(quota.Of(x.row.op))
	case symmetricQuota:
		return x.admit(quota.Symmetric)
	}
	return nil
}

// admitPair admits a request for a data key pair.
func (x *exchange) admitPair() error {
	switch in := x.in.(type) {
	case *wire.GenerateDataKeyPairRequest:
		return x.admit(quota.Pair(in.KeyPairSpec))
	case *wire.GenerateDataKeyPairWithoutPlaintextRequest:
		return x.admit(quota.Pair(in.KeyPairSpec))
	}
	return nil
}

// admit takes the request's units from the account's bucket of a class, unless it
// has taken from that one already.
func (x *exchange) admit(c quota.Class) error {
	if c == x.class {
		return nil
	}
	x.class = c
	if !x.quotas.Take(c, x.units, x.now) {
		return x.notAdmitted(x.quotas.Burst(c))
	}
	return nil
}

// admitKey takes the request's units from the key's bucket, unless that is the
// one it has taken from already.
func (x *exchange) admitKey(v *keyView) error {
	if v.store != nil && x.row.quota == keyQuota && !v.store.admit(x.units, x.now) {
		return x.notAdmitted(v.store.bucket.Burst())
	}
	if v.bucket == x.bucket {
		return nil
	}
	x.bucket = v.bucket
	if !v.bucket.Take(x.units, x.now) {
		return x.notAdmitted(v.bucket.Burst())
	}
	return nil
}

// notAdmitted answers a request that a bucket of that burst refused. Throttling
// says to try again, which a bulk request of more than the burst should not.
func (x *exchange) notAdmitted(burst int64) error {
	if x.units > burst {
		return invalid("The request counts for %d operations, and the quota admits at most %d at once: send fewer items in a request.", x.units, burst)
	}
	return quota.Throttled()
}

// keyRoom makes the quota of keys exact without holding up those who are far
// from it.
type keyRoom struct{ mu sync.Mutex }

// keyMargin is how near the quota CreateKey requests go one after the other: more
// than can be between their count and their commit at once.
const keyMargin = 10_000

func nothing() {}

// take returns once there is room for one more key in the account and region;
// done is called after the commit that uses it.
func (r *keyRoom) take(s *Service, account, region string) (done func(), err error) {
	most := s.quota.Resources().Keys
	if most == 0 {
		return nothing, nil
	}
	n, err := s.store.CountKeys(account, region)
	if err != nil {
		return nil, err
	}
	if n < most-keyMargin {
		return nothing, nil
	}
	r.mu.Lock()
	if n, err = s.store.CountKeys(account, region); err == nil && n >= most {
		err = wire.NewError(wire.LimitExceededException, "The account %s has %d KMS keys in %s, which is the limit.", account, n, region)
	}
	if err != nil {
		r.mu.Unlock()
		return nil, err
	}
	return r.mu.Unlock, nil
}
