package engine

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"

	"keymill/hsm/arena"
)

// A Verb is what an operation asks of a key.
type Verb uint8

// The verbs.
const (
	Encrypt Verb = iota + 1
	Decrypt
	Sign
	Verify
	GenerateMAC
	VerifyMAC
	DeriveSecret
	numVerbs
)

// verbUsage is the usage a key must have for a verb.
var verbUsage = [numVerbs]Usage{
	Encrypt: EncryptDecrypt, Decrypt: EncryptDecrypt,
	Sign: SignVerify, Verify: SignVerify,
	GenerateMAC: GenerateVerifyMAC, VerifyMAC: GenerateVerifyMAC,
	DeriveSecret: KeyAgreement,
}

// An Op is one operation on a key, in and out. Buffers are the caller's: In,
// Sig and AAD are only read and not kept; the result is appended to Out[:0],
// and nothing is allocated for it when Out is large enough. Out must not
// overlap the inputs. When Err is set, Out is empty.
//
//	verb          In              Sig         AAD      Out
//	Encrypt       plaintext                   context  blob, or raw ciphertext
//	Decrypt       what Encrypt gave           context  plaintext
//	Sign          message                              signature
//	Verify        message         signature
//	GenerateMAC   message                              MAC
//	VerifyMAC     message         MAC
//	DeriveSecret  peer's SPKI                          x-coordinate
//
// AAD is the canonical context of AppendContext; only symmetric keys look at
// it, so the caller refuses a context on others. Type matters to Sign and
// Verify only.
type Op struct {
	Verb     Verb
	Alg      Algorithm
	Type     MessageType
	In       []byte
	Sig      []byte
	AAD      []byte
	Out      []byte
	Material MaterialID // set on success: the material that was used
	Err      error      // nil, one of this package's errors, or an internal one
}

// A Class says how much work a verb is, for whoever schedules it.
type Class uint8

// The classes.
const (
	Light Class = iota // under a few microseconds: symmetric, HMAC
	Heavy              // tens of microseconds to milliseconds: RSA, curves, ML-DSA
	Token              // waits for a device, or for another service: see waiting.go
)

// A Key is a handle on one KMS key. It is safe for use by many goroutines.
type Key interface {
	Spec() Spec
	Usage() Usage

	// Class says what the verb costs on this key.
	Class(Verb) Class

	// Do carries out the operations, each with its own Err. It never waits for
	// anything: an operation whose material is cold gets ErrPending.
	Do(ops []Op)

	// Warm loads what those of ops need whose Err is ErrPending; nil means that
	// Do is worth another try. Callers that need the same material share one
	// load, which a caller's context does not cancel for the others. It fails
	// with ErrPurged when Purge overtook the load. A key that waits for
	// something outside of this process carries these operations out instead: what
	// is not ErrPending afterwards is finished; see waiting.go.
	Warm(ctx context.Context, ops []Op) error

	// Purge drops all material and all derived keys. Operations that Do has
	// begun may finish with them; everything later is ErrPending, including
	// what a Warm that began earlier brings.
	Purge()
}

// A Source supplies the material of one version of a key, as GenerateMaterial
// made it. The engine wipes the returned slice once it has built its own state.
// The context carries the values of the first caller that needed the material,
// but not its cancellation: a source bounds its own waiting.
type Source func(ctx context.Context, version uint32) (secret []byte, err error)

// A KeyVersion is one version of a key's material.
type KeyVersion struct {
	Number     uint32
	MaterialID MaterialID
}

// A Memory supplies the material of a version when it is at hand, and otherwise
// nil. It waits for nothing, and knows nothing any more of a key whose Purge has
// begun. The engine wipes the slice. See [Remember].
type Memory func(version uint32) (secret []byte)

// Remember lets a key made by NewLocalKey, before its first use, look into m for
// its material before it asks its source.
func Remember(k Key, m Memory) {
	if k, ok := k.(*local); ok {
		k.memory = m
	}
}

// WarmNow loads what those of ops need whose Err is ErrPending, as far as that is
// possible without waiting. It returns whether it loaded anything: then Do is worth
// another try.
func WarmNow(k Key, ops []Op) (loaded bool) {
	l, ok := k.(*local)
	if !ok || l.memory == nil {
		return false
	}
	for i := range ops {
		if ops[i].Err == ErrPending {
			if v := l.versionFor(&ops[i]); v >= 0 && l.recall(v) {
				loaded = true
			}
		}
	}
	return loaded
}

// recall makes version v warm from memory. It holds mu over both, so that a Purge
// is before it, and the memory empty, or after it.
func (k *local) recall(v int) bool {
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.states[v].Load() != nil {
		return true
	}
	secret := k.memory(k.versions[v].Number)
	if secret == nil {
		return false
	}
	defer arena.Wipe(secret)
	st, err := buildState(k.spec, k.usage, secret, served)
	if err != nil {
		return false
	}
	k.states[v].Store(st)
	return true
}

// ErrNoMaterial: the key has no current version, as while its import is
// pending.
var ErrNoMaterial = errors.New("engine: key has no material")

// NewLocalKey returns the handle of a key whose material this process uses
// itself. versions[current] encrypts and signs, each of them decrypts; a key
// without material has none and current is -1. spki is the public key of an
// asymmetric key, with which Verify and Encrypt never need the material. The
// slices are kept and must not change.
//
// Material that does not have the MaterialID of its version is refused, so
// that a mix-up in storage is an error here and not an undecryptable blob.
func NewLocalKey(id KeyID, spec Spec, usage Usage, versions []KeyVersion, current int, spki []byte, src Source) Key {
	if current >= len(versions) {
		current = -1
	}
	k := &local{
		id: id, spec: spec, usage: usage,
		versions: versions, current: current, spki: spki, src: src,
	}
	if len(versions) <= 1 {
		k.states, k.headers = k.sole.states[:len(versions)], k.sole.headers[:len(versions)]
	} else {
		k.states, k.headers = make([]atomic.Pointer[state], len(versions)), make([][headerSize]byte, len(versions))
	}
	for i, v := range versions {
		k.headers[i] = makeHeader(SchemeLocal, id, v.MaterialID)
	}
	return k
}

// local is a key whose material is unwrapped for use in this process.
//
// # Warm and cold
//
// states[i] is nil while version i is cold, else an immutable pointer to what
// was built from its material. Do only ever loads these pointers; it takes no
// lock and cannot be blocked by Warm or Purge. What a Do has loaded it may use
// to its end, also when Purge comes in between: such an operation counts as
// having happened before the Purge.
//
// Loading is the cold path and has a mutex. A flight is one load of one
// version, shared by all who wait for it:
//
//	Warm      under mu: join flights[v] or start one, noting gen
//	flight    without mu: call the source, build the state, wipe the secret
//	          under mu: if gen is still the noted one, publish states[v] and
//	          leave flights; otherwise throw the state away: ErrPurged
//	Purge     under mu: gen++, forget all flights, clear all states
//
// So after Purge has returned, a state can only appear from a flight that
// started after it, and nobody who calls Warm after it joins an older flight.
// The material of a thrown-away state is left to the garbage collector, as is
// that of a purged one: other goroutines may still be computing with it.
type local struct {
	// Immutable.
	id       KeyID
	spec     Spec
	usage    Usage
	versions []KeyVersion
	headers  [][headerSize]byte // what blobs of each version begin with
	current  int                // index of the version to encrypt with, or -1
	spki     []byte
	src      Source
	memory   Memory // may be nil

	// Atomic.
	states []atomic.Pointer[state]

	// Where states and headers of a key with one version are: most have one, and
	// there may be many keys.
	sole struct {
		states  [1]atomic.Pointer[state]
		headers [1][headerSize]byte
	}

	// Parsed from spki on first use; not secret, so never purged.
	pubOnce sync.Once
	pub     publicKey
	pubErr  error

	// Guarded by mu.
	mu      sync.Mutex
	gen     uint64
	flights map[int]*flight // nil until the first
}

// A flight is one load under way. err is written before done is closed.
type flight struct {
	gen  uint64
	done chan struct{}
	err  error
}

// state is what one version's material was built into; one field is set.
type state struct {
	cipher *cipherState
	mac    *macState
	priv   privateKey
}

// privateKey carries out Sign, Decrypt and DeriveSecret, publicKey Verify and
// Encrypt, on an operation that check let pass.
type privateKey interface{ private(op *Op) error }
type publicKey interface{ public(op *Op) error }

func (k *local) Spec() Spec   { return k.spec }
func (k *local) Usage() Usage { return k.usage }

func (k *local) Class(Verb) Class {
	if k.spec.Asymmetric() {
		return Heavy
	}
	return Light
}

func (k *local) Do(ops []Op) {
	if k.spec.Symmetric() {
		k.doCipher(ops)
		return
	}
	if k.verifyBatch(ops) {
		return
	}
	for i := range ops {
		k.single(&ops[i])
	}
}

// single is Do for one operation of a key that is not symmetric.
func (k *local) single(op *Op) {
	op.Out = op.Out[:0]
	op.Err = k.one(op)
	k.finish(op)
}

// finish sets what follows from Err.
func (k *local) finish(op *Op) {
	if op.Err != nil {
		op.Out = op.Out[:0]
	} else if k.current >= 0 {
		op.Material = k.versions[k.current].MaterialID
	}
}

// one carries out an operation of a key that is not symmetric.
func (k *local) one(op *Op) error {
	if err := k.check(op); err != nil {
		return err
	}
	if k.spec.Asymmetric() && (op.Verb == Verify || op.Verb == Encrypt) {
		pub, err := k.publicKey()
		if err != nil {
			return err
		}
		return pub.public(op)
	}
	if k.current < 0 {
		return ErrNoMaterial
	}
	st := k.states[k.current].Load()
	if st == nil {
		return ErrPending
	}
	if st.mac != nil {
		return st.mac.do(op)
	}
	return st.priv.private(op)
}

// publicKey parses the public key once.
func (k *local) publicKey() (publicKey, error) {
	k.pubOnce.Do(func() { k.pub, k.pubErr = newPublicKey(k.spec, k.usage, k.spki, served) })
	return k.pub, k.pubErr
}

// check refuses what does not fit the key's usage and spec, the algorithm or
// the limits, before anything is loaded for it.
func (k *local) check(op *Op) error { return checkOp(k.spec, k.usage, op) }

func checkOp(spec Spec, usage Usage, op *Op) error {
	if op.Verb == 0 || op.Verb >= numVerbs || verbUsage[op.Verb] != usage {
		return ErrUsage
	}
	if !spec.Supports(usage, op.Alg) {
		return ErrIncompatible
	}
	switch op.Verb {
	case Encrypt:
		if len(op.In) > MaxPlaintext(spec, op.Alg) {
			return ErrPlaintextTooLong
		}
	case Sign, Verify:
		return checkMessage(op.Alg, op.Type, len(op.In))
	}
	return nil
}

// checkMessage holds the rules on message types. Ed25519 signs messages only
// and Ed25519ph digests only: KMS hashes what it is given with SHA-512 once
// more, and what it is given must have the length of a SHA-512 digest.
func checkMessage(a Algorithm, t MessageType, n int) error {
	size := 0
	switch {
	case t == Raw && a != AlgEd25519ph:
		return nil
	case t == Digest:
		size = a.digestSize()
	case t == ExternalMu && a == AlgMLDSA:
		size = muSize
	}
	switch size {
	case 0:
		return ErrMessageType
	case n:
		return nil
	}
	return ErrDigestLength
}

func (k *local) Warm(ctx context.Context, ops []Op) error {
	// A batch seldom needs more than one version: wait for them in turn.
	for i := range ops {
		if ops[i].Err != ErrPending {
			continue
		}
		v := k.versionFor(&ops[i])
		if v < 0 {
			return ErrNoMaterial
		}
		if k.memory != nil && k.recall(v) {
			continue
		}
		f := k.join(ctx, v)
		if f == nil {
			continue
		}
		select {
		case <-f.done:
			if f.err != nil {
				return f.err
			}
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
	return nil
}

// versionFor returns the index of the version an operation needs, -1 if there
// is none.
func (k *local) versionFor(op *Op) int {
	if k.spec.Symmetric() && op.Verb == Decrypt {
		v, _ := k.versionOf(op.In)
		return v
	}
	return k.current
}

// join returns the flight that loads version v, a new one if need be, and nil
// when the version is warm.
func (k *local) join(ctx context.Context, v int) *flight {
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.states[v].Load() != nil {
		return nil
	}
	f := k.flights[v]
	if f == nil {
		f = &flight{gen: k.gen, done: make(chan struct{})}
		if k.flights == nil {
			k.flights = make(map[int]*flight)
		}
		k.flights[v] = f
		go k.fly(context.WithoutCancel(ctx), v, f)
	}
	return f
}

func (k *local) fly(ctx context.Context, v int, f *flight) {
	st, err := k.load(ctx, v)
	k.mu.Lock()
	defer k.mu.Unlock()
	switch {
	case f.gen != k.gen:
		f.err = ErrPurged // flights no longer has f
	case err != nil:
		f.err = err
		delete(k.flights, v)
	default:
		k.states[v].Store(st)
		delete(k.flights, v)
	}
	close(f.done)
}

// load fetches the material of version v and builds its state. A panic, which
// only a defect can cause, fails this load and not the process.
func (k *local) load(ctx context.Context, v int) (st *state, err error) {
	var secret []byte
	defer func() {
		arena.Wipe(secret)
		if r := recover(); r != nil {
			st, err = nil, fmt.Errorf("engine: loading material panicked: %v", r)
		}
	}()
	secret, err = k.src(ctx, k.versions[v].Number)
	if err != nil {
		return nil, fmt.Errorf("couldn't load key material: %w", err)
	}
	if ComputeMaterialID(k.id, secret) != k.versions[v].MaterialID {
		return nil, fmt.Errorf("material of key %v has not the id of its version %d: %w",
			k.id, k.versions[v].Number, ErrInvalidMaterial)
	}
	return buildState(k.spec, k.usage, secret, served)
}

// buildState makes of material what operations compute with. It keeps no part
// of secret.
func buildState(spec Spec, usage Usage, secret []byte, pick picker) (*state, error) {
	if task := privateTask(spec, usage); pick(spec, task) == NoProvider && !spec.MLDSA() {
		return nil, ErrNoProvider
	}
	switch {
	case spec.Symmetric():
		c, err := newCipherState(secret)
		return &state{cipher: c}, err
	case spec.HMAC():
		m, err := newMACState(spec, secret)
		return &state{mac: m}, err
	}
	p, err := newPrivateKey(spec, usage, secret, pick)
	return &state{priv: p}, err
}

func (k *local) Purge() {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.gen++
	clear(k.flights)
	for i := range k.states {
		k.states[i].Store(nil)
	}
}
