package kms

import (
	"runtime"

	mill "keymill/batch"
	"keymill/daemon/quota"
	"keymill/engine"
)

// Where the work is done.
//
// Light work (symmetric keys, HMAC, random) runs where the request is read: a
// hand-over costs more than the work.
//
// Work of some 100 us and more (RSA private keys, the larger NIST curves, ML-DSA
// signatures, key generation) goes to the few locked threads of package batch.
// They leave Go's Ps to the connections and let the operating system tell who
// hogs a processor from who only sleeps and wakes; the package shows what that
// does to the latency of light work. When as many wait as may wait, the answer
// is ThrottlingException, at once.
//
// What is between them (P-256, Ed25519, secp256k1, SM2, public-key RSA, ML-DSA
// verification: 15 to 60 us) stays on a goroutine, but one that no other
// connection waits for (see package reactor): the way to a locked thread and back
// costs 10 to 40 us of processor time, up to as much as the work, and no single
// one of them holds a P for long.

// heavyWorkers returns the pool for c, with fewer workers than Go has Ps when
// nobody says how many: as many would starve the scheduler.
func heavyWorkers(c Config) (*mill.Heavy, error) {
	o := mill.HeavyOptions{Workers: c.HeavyWorkers, CPUs: c.HeavyCPUs, Busy: c.HeavyBusy}
	if o.Workers < 1 {
		o.Workers = max(1, runtime.GOMAXPROCS(0)-1)
	}
	return mill.NewHeavy(o)
}

// slow tells whether a verb on a key of this spec is worth a hand-over.
func slow(spec engine.Spec, verb engine.Verb) bool {
	public := verb == engine.Verify || verb == engine.Encrypt
	switch spec {
	case engine.RSA2048, engine.RSA3072, engine.RSA4096, engine.MLDSA44, engine.MLDSA65, engine.MLDSA87:
		return !public
	case engine.P384, engine.P521:
		return true
	}
	return false
}

// A heavyJob is one call of engine.Key.Do on its way to a worker. It lives in
// its exchange, so that handing it over allocates nothing.
type heavyJob struct {
	key engine.Key
	ops []engine.Op
	run func() // the method do, bound once
}

func (j *heavyJob) do() { j.key.Do(j.ops) }

// compute runs ops, all of one verb, on v's handle, where they belong.
func (x *exchange) compute(v *keyView, ops []engine.Op) error {
	if v.spec.Asymmetric() || v.store != nil {
		x.mayWait()
	}
	if !slow(v.spec, ops[0].Verb) {
		v.handle.Do(ops)
		return nil
	}
	j := &x.heavy
	if j.run == nil {
		j.run = j.do
	}
	j.key, j.ops = v.handle, ops
	err := x.svc.runHeavy(j.run)
	j.key, j.ops = nil, nil
	return err
}

// runHeavy runs job on a heavy worker.
func (s *Service) runHeavy(job func()) error {
	err := s.heavy.Run(job)
	if err == mill.ErrFull {
		return quota.Throttled()
	}
	return err
}

// generateMaterial makes key material, and for asymmetric keys the public key.
func (s *Service) generateMaterial(spec engine.Spec) (secret, public []byte, err error) {
	if !spec.Asymmetric() {
		secret, err = engine.GenerateMaterial(spec)
		return secret, nil, err
	}
	full := s.runHeavy(func() {
		if secret, err = engine.GenerateMaterial(spec); err == nil {
			public, err = engine.PublicKey(spec, secret)
		}
	})
	if full != nil {
		return nil, nil, full
	}
	return secret, public, err
}

// generateKeyPair makes a data key pair.
func (s *Service) generateKeyPair(spec engine.Spec) (private, public []byte, err error) {
	if full := s.runHeavy(func() { private, public, err = engine.GenerateKeyPair(spec) }); full != nil {
		return nil, nil, full
	}
	return private, public, err
}

// Close returns when all heavy work is done and ends its threads. Call it when no
// request is in flight any more; one that comes later is answered with an error.
func (s *Service) Close() {
	s.stopSchedule()
	s.heavy.Close()
	s.closeStores()
	if err := s.usage.close(); err != nil {
		s.log.Error("the last use of keys is lost", "error", err)
	}
}
