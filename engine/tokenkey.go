package engine

import (
	"context"
	"crypto/sha256"
	"crypto/sha512"
	"crypto/subtle"
	"encoding/asn1"
	"errors"
	"fmt"
	"math/big"
	"slices"
	"sync"

	"keymill/hsm"
	"keymill/hsm/arena"
)

// A TokenService carries out operations with keys that live in a token.
// hsm.TokenKeys is one; a caller who has to look first whether the token is
// connected puts that in front of it.
type TokenService interface {
	Do(ctx context.Context, ops []hsm.TokenOp)
}

// A TokenKey says where the material of a key is that lives in a token.
type TokenKey struct {
	ID     hsm.TokenKeyID
	Public []byte // DER SubjectPublicKeyInfo of a pair
	Token  TokenService

	// Before is asked before every call of the token, whether the key may still
	// be used: there is nothing in this process that Purge could take away. Its
	// error is that of Warm. nil means yes.
	Before func() error

	// Lease makes n more encryptions durable in the key's count before they
	// happen, or refuses them; see LeaseUses. Its error becomes that of the
	// operations. Symmetric keys need it; it is called for blocks of uses, and
	// by one goroutine at a time.
	Lease func(ctx context.Context, n uint64) error
}

// TokenMinimum is the length of the shortest blob of the token scheme. All are at
// most Overhead longer than their plaintext.
const TokenMinimum = headerSize + hsm.TokenSealMinimum

// TokenSpec returns what a token is to generate for a key of this spec and
// usage; ok is false when no token can hold such a key.
func TokenSpec(spec Spec, usage Usage) (s hsm.TokenKeySpec, ok bool) {
	switch usage {
	case EncryptDecrypt:
		s = map[Spec]hsm.TokenKeySpec{
			SymmetricDefault: hsm.TokenAES256,
			RSA2048:          hsm.TokenRSA2048Decrypt, RSA3072: hsm.TokenRSA3072Decrypt, RSA4096: hsm.TokenRSA4096Decrypt,
		}[spec]
	case SignVerify:
		s = map[Spec]hsm.TokenKeySpec{
			P256: hsm.TokenP256, P384: hsm.TokenP384, P521: hsm.TokenP521,
			RSA2048: hsm.TokenRSA2048Sign, RSA3072: hsm.TokenRSA3072Sign, RSA4096: hsm.TokenRSA4096Sign,
		}[spec]
	case GenerateVerifyMAC:
		s = map[Spec]hsm.TokenKeySpec{
			HMAC224: hsm.TokenHMAC224, HMAC256: hsm.TokenHMAC256, HMAC384: hsm.TokenHMAC384, HMAC512: hsm.TokenHMAC512,
		}[spec]
	}
	return s, s != 0
}

// tokenMechs is what a token is asked for; symmetric keys have one for each verb.
var tokenMechs = [numAlgorithms]hsm.TokenMech{
	AlgOAEPSHA1: hsm.TokenOAEPSHA1, AlgOAEPSHA256: hsm.TokenOAEPSHA256,
	AlgPSSSHA256: hsm.TokenPSSSHA256, AlgPSSSHA384: hsm.TokenPSSSHA384, AlgPSSSHA512: hsm.TokenPSSSHA512,
	AlgPKCS1SHA256: hsm.TokenPKCS1SHA256, AlgPKCS1SHA384: hsm.TokenPKCS1SHA384, AlgPKCS1SHA512: hsm.TokenPKCS1SHA512,
	AlgECDSASHA256: hsm.TokenECDSA, AlgECDSASHA384: hsm.TokenECDSA, AlgECDSASHA512: hsm.TokenECDSA,
	AlgHMACSHA224: hsm.TokenHMACSHA224, AlgHMACSHA256: hsm.TokenHMACSHA256, AlgHMACSHA384: hsm.TokenHMACSHA384, AlgHMACSHA512: hsm.TokenHMACSHA512,
}

// TokenMaterialID names the material of a key that lives in a token. It cannot
// be computed from the material, so it is a hash of the names of both.
func TokenMaterialID(id KeyID, token hsm.TokenKeyID) MaterialID {
	h := sha256.New()
	h.Write([]byte("keymill/token-material-id/v1\x00"))
	h.Write([]byte{id.kind()})
	h.Write(id.ID[:])
	h.Write(token[:])
	var out MaterialID
	h.Sum(out[:0])
	return out
}

// NewTokenKey returns the handle of a key whose material never leaves a token:
// every use of its secret half is a call of the token, all operations of one
// Warm together; waiting.go says what that means for Do and Warm. What needs
// the public key only is computed here, in Do.
//
// Encryptions of a symmetric key have random IVs, so they are counted: Warm
// calls t.Lease for a block of uses when those it has are used up.
func NewTokenKey(id KeyID, spec Spec, usage Usage, t TokenKey) Key {
	k := &token{id: id, spec: spec, usage: usage, t: t, material: TokenMaterialID(id, t.ID)}
	k.header = makeHeader(SchemeToken, id, k.material)
	if spec.Symmetric() {
		k.uses = newBudget(t.Lease)
	}
	return k
}

// token is a key that lives in a token.
//
// The blob of a symmetric one is the header of the token scheme and the sealed form
// that hsm.TokenSeal makes. The associated data is a hash of header and
// encryption context: a token bounds its length, and need not know a context.
//
// There is nothing to keep of the material, so Purge has nothing to do; Before
// sees to it that a disabled key is not used.
type token struct {
	// Immutable.
	id       KeyID
	spec     Spec
	usage    Usage
	t        TokenKey
	material MaterialID
	header   [headerSize]byte
	uses     *budget

	pubOnce sync.Once
	pub     publicKey
	pubErr  error
}

func (k *token) Spec() Spec   { return k.spec }
func (k *token) Usage() Usage { return k.usage }
func (k *token) Purge()       {}

func (k *token) Class(v Verb) Class {
	if k.public(v) {
		return Heavy
	}
	return Token
}

// public tells whether a verb needs the public key only.
func (k *token) public(v Verb) bool {
	return k.spec.Asymmetric() && (v == Verify || v == Encrypt)
}

func (k *token) Do(ops []Op) {
	await(ops, k.check)
	for i := range ops {
		op := &ops[i]
		if op.Err != ErrPending || !k.public(op.Verb) {
			continue
		}
		k.pubOnce.Do(func() { k.pub, k.pubErr = newPublicKey(k.spec, k.usage, k.t.Public, served) })
		if op.Err = k.pubErr; op.Err == nil {
			op.Err = k.pub.public(op)
		}
		if op.Err != nil {
			op.Out = op.Out[:0]
		} else {
			op.Material = k.material
		}
	}
}

// check refuses what needs no call to be refused.
func (k *token) check(op *Op) error {
	if err := checkOp(k.spec, k.usage, op); err != nil {
		return err
	}
	switch {
	case op.Verb == Decrypt && k.spec.Symmetric():
		if len(op.In) < TokenMinimum || len(op.In) > headerSize+hsm.MaxTokenInput || [headerSize]byte(op.In[:headerSize]) != k.header {
			return ErrInvalidCiphertext
		}
	case op.Verb == Decrypt && len(op.In) != k.spec.bits()/8:
		return ErrInvalidCiphertext
	case op.Verb == DeriveSecret:
		return ErrIncompatible
	case len(op.In) > hsm.MaxTokenInput && k.spec.HMAC():
		return fmt.Errorf("engine: a message of %d bytes for a key in a token (at most %d)", len(op.In), hsm.MaxTokenInput)
	}
	return nil
}

func (k *token) Warm(ctx context.Context, ops []Op) error {
	if k.t.Before != nil {
		if err := k.t.Before(); err != nil {
			return err
		}
	}
	calls, at := make([]hsm.TokenOp, 0, len(ops)), make([]*Op, 0, len(ops))
	encryptions := uint64(0)
	for i := range ops {
		op := &ops[i]
		if op.Err != ErrPending {
			continue
		}
		if op.Verb == Encrypt {
			encryptions++
		}
		calls, at = append(calls, k.call(op)), append(at, op)
	}
	if encryptions > 0 {
		if err := k.uses.take(ctx, encryptions); err != nil {
			n := 0
			for i, op := range at { // the rest goes on
				if op.Verb == Encrypt {
					op.Err = err
					continue
				}
				calls[n], at[n] = calls[i], op
				n++
			}
			calls, at = calls[:n], at[:n]
		}
	}
	if len(calls) > 0 {
		k.t.Token.Do(ctx, calls)
	}
	for i, op := range at {
		op.Err = k.settle(op, &calls[i])
		arena.Wipe(calls[i].Out)
		if op.Err != nil {
			op.Out = op.Out[:0]
		} else {
			op.Material = k.material
		}
	}
	return nil
}

// call returns what the token is to do for an operation that check let pass.
func (k *token) call(op *Op) hsm.TokenOp {
	c := hsm.TokenOp{Key: k.t.ID, Mech: tokenMechs[op.Alg], In: op.In}
	switch {
	case k.spec.Symmetric():
		aad := tokenAAD(&k.header, op.AAD)
		c.AAD = aad[:]
		if c.Mech = hsm.TokenSeal; op.Verb == Decrypt {
			c.Mech, c.In = hsm.TokenOpen, op.In[headerSize:]
		}
	case op.Verb == Sign:
		var sum [sha512.Size]byte
		c.In = slices.Clone(hashMessage(op, &sum))
	}
	return c
}

// settle takes the token's answer over.
func (k *token) settle(op *Op, c *hsm.TokenOp) error {
	switch {
	case errors.Is(c.Err, hsm.ErrBadCiphertext):
		return ErrInvalidCiphertext
	case c.Err != nil:
		return c.Err
	}
	switch op.Verb {
	case Encrypt:
		op.Out = append(append(slices.Grow(op.Out[:0], headerSize+len(c.Out)), k.header[:]...), c.Out...)
	case VerifyMAC:
		if subtle.ConstantTimeCompare(c.Out, op.Sig) == 0 {
			return ErrInvalidMAC
		}
	case Sign:
		if c.Mech == hsm.TokenECDSA {
			return op.appendECDSA(c.Out)
		}
		op.Out = append(op.Out[:0], c.Out...)
	default:
		op.Out = append(op.Out[:0], c.Out...)
	}
	return nil
}

// appendECDSA turns the two integers of a token's signature into DER.
func (op *Op) appendECDSA(raw []byte) error {
	if len(raw) == 0 || len(raw)%2 != 0 {
		return fmt.Errorf("engine: a token made an ECDSA signature of %d bytes", len(raw))
	}
	half := len(raw) / 2
	der, err := asn1.Marshal(struct{ R, S *big.Int }{new(big.Int).SetBytes(raw[:half]), new(big.Int).SetBytes(raw[half:])})
	op.Out = append(op.Out[:0], der...)
	return err
}

// tokenLabel separates this hash from all others. Changing it would orphan
// every ciphertext.
const tokenLabel = "keymill/token-aad/v1\x00"

func tokenAAD(header *[headerSize]byte, context []byte) [sha256.Size]byte {
	h := sha256.New()
	h.Write([]byte(tokenLabel))
	h.Write(header[:])
	h.Write(context)
	var sum [sha256.Size]byte
	h.Sum(sum[:0])
	return sum
}

// # Counting uses
//
// NIST SP 800-38D, section 8.3: with random IVs of 96 bits, one key encrypts at
// most 2^32 times. The count must survive a crash, and a commit for each use
// would cost more than the use. So uses are leased in blocks: the durable count
// is raised by a block before the first use out of it, and what is left of a block
// when the process ends is lost. Blocks begin small and double, so that a key
// whose handle comes and goes from the cache loses little, and one that is busy
// commits every ten seconds at the 1,800 uses a second of a key store.

const (
	// TokenUseLimit is how often one key in a token may encrypt.
	TokenUseLimit = 1 << 32

	firstLease = 1 << 8
	maxLease   = 1 << 14
)

// ErrUsedUp: the key has encrypted as often as is safe.
var ErrUsedUp = errors.New("engine: key in a token has encrypted as often as is safe")

// LeaseUses is the arithmetic of a TokenKey's Lease: used is the durable count, n
// what is to be added to it. alarm is true for the one lease that passes half of the
// limit. The error is ErrUsedUp, and used then stays.
func LeaseUses(used, n uint64) (next uint64, alarm bool, err error) {
	if used > TokenUseLimit || n > TokenUseLimit-used {
		return used, false, ErrUsedUp
	}
	next = used + n
	return next, used < TokenUseLimit/2 && next >= TokenUseLimit/2, nil
}

// A budget is what is left of a block of uses.
type budget struct {
	lease func(context.Context, uint64) error // immutable

	// Whoever holds the token in turn may lease.
	turn chan struct{}

	mu   sync.Mutex
	left uint64 // guarded by mu
	next uint64 // guarded by mu: size of the next block
}

func newBudget(lease func(context.Context, uint64) error) *budget {
	return &budget{lease: lease, turn: make(chan struct{}, 1), next: firstLease}
}

// take uses n up, leasing if need be.
func (b *budget) take(ctx context.Context, n uint64) error {
	if b.spend(n) {
		return nil
	}
	select {
	case b.turn <- struct{}{}:
	case <-ctx.Done():
		return context.Cause(ctx)
	}
	defer func() { <-b.turn }()
	for !b.spend(n) {
		b.mu.Lock()
		block := max(b.next, n)
		b.mu.Unlock()
		err := b.lease(ctx, block)
		if errors.Is(err, ErrUsedUp) && block > n {
			block, err = n, b.lease(ctx, n) // the last ones, to the limit
		}
		if err != nil {
			return err
		}
		b.mu.Lock()
		b.left += block
		b.next = min(2*b.next, maxLease)
		b.mu.Unlock()
	}
	return nil
}

func (b *budget) spend(n uint64) bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.left < n {
		return false
	}
	b.left -= n
	return true
}
