// Package hsm is the root of trust: it keeps domain keys where nobody can read
// them and encrypts key-encryption keys under them.
//
// # What is asked of a root
//
// Every version of every key has its own 32-byte key-encryption key (KEK); its
// material is sealed under the KEK by package keystore. A [Root] encrypts and
// decrypts KEKs under a domain key, tells whether it has a given domain key, makes
// new ones, and supplies random bytes. Nothing else: no object import, no readable
// key value, no wrapping of token objects, because many tokens forbid those.
//
// Calls are batch-shaped: slices go in, each item has its own result and error. A
// token works on the items of one call over several sessions at once.
//
// # The two roots
//
// [OpenPKCS11] uses any PKCS#11 module. The domain key is an AES-256 key (or, on a
// token without AES encryption, an RSA pair) that the token generated, that cannot
// leave it and that may only encrypt and decrypt. Which mechanism is used is found
// out by trying: see the mechanism table in mechanism.go. [Inspect] tells an
// operator what a token offers and what would be used.
//
// [OpenSoftware] is the embedded default: domain keys in a file of mode 0600. Whoever
// reads that file and the store has every key; it protects a stolen backup or disk
// only as far as the file is kept apart.
//
// A [Composite] makes one root of two, for a store that moves from one to the other.
//
// The module runs in a process of its own when [PKCS11Config.Child] names one, as the
// daemon does unless told otherwise: vendor code that crashes then costs a restart of
// that process, and operations wait for it; see child.go.
//
// [OpenToken] opens a token that holds keys of users instead: see [TokenKeys].
//
// # Errors
//
// [Classify] says what the caller of a failed operation may do: repeat it later
// ([Retry]), or not at all ([Fatal]). Inside the package there is a third answer,
// [NewSession]: the session or the login is gone, which the pool repairs by itself,
// once per item, before the caller hears of it.
//
// # What remains in memory
//
// The PIN is read from its file at each login and wiped, and so are decrypted KEKs in all
// memory of ours (calls.go); what copies of either the vendor's module makes, it has to
// wipe itself. The software root's expanded AES keys live on the Go heap for as long as
// the root is open. The process is kept out of core dumps and swap by arena.Harden.
package hsm

import (
	"context"
	"encoding/hex"
	"errors"
)

// KEKSize is the length in bytes of a key-encryption key, the only thing a root
// encrypts.
const KEKSize = 32

// MaxWrapped bounds the wrapped form of a KEK, in bytes: RSA-8192 with its header.
const MaxWrapped = 1100

// A DomainKeyID names a domain key. On a token it is the object's CKA_ID: labels
// repeat, object handles do not last.
type DomainKeyID [16]byte

// String returns the ID as 32 lower-case hex digits.
func (id DomainKeyID) String() string { return hex.EncodeToString(id[:]) }

// An Item is one element of a batch. The call sets Out or Err, never both. In is
// only read during the call; Out is a fresh slice which the caller owns and, where
// it is a KEK, wipes. For encryption In is a KEK and Out its wrapped form, for
// decryption the other way round.
type Item struct {
	In, Out []byte
	Err     error
}

// A Root is a root of trust. Its methods may be called concurrently, except that
// nothing may be called after Close.
//
// When ctx ends first, what has no result yet fails with the context's error (a
// deadline also matches [ErrTimeout]). The token may then still be at work: a new
// domain key may exist although CreateDomainKey failed, one may be gone although
// DestroyDomainKey did. Encryption and decryption change nothing on a token.
type Root interface {
	// CreateDomainKey makes a new domain key and returns its ID.
	CreateDomainKey(ctx context.Context) (DomainKeyID, error)

	// CheckDomainKey returns nil when the root has the domain key and may use it,
	// an error matching ErrNoDomainKey when it is not there, ErrDuplicateDomainKey
	// when the ID is not unique, and ErrWeakDomainKey when the key could be read out.
	CheckDomainKey(ctx context.Context, id DomainKeyID) error

	// DestroyDomainKey removes a domain key for good: whatever it has encrypted is
	// lost. An error matching ErrNoDomainKey says that it is not there (any more).
	DestroyDomainKey(ctx context.Context, id DomainKeyID) error

	// Encrypt wraps the KEKs of items under the domain key. What a token returns is
	// decrypted again and compared before it counts as a result.
	Encrypt(ctx context.Context, id DomainKeyID, items []Item)

	// Decrypt unwraps KEKs. An item that was not made under this domain key, or was
	// changed since, fails with ErrBadWrapped.
	Decrypt(ctx context.Context, id DomainKeyID, items []Item)

	// Random fills every buffer with random bytes, or returns an error and leaves
	// all of them zeroed.
	Random(ctx context.Context, bufs [][]byte) error

	// Info describes the root for people and metrics; no secrets.
	Info() Info

	// Close releases the root. A second call does nothing.
	Close() error
}

// Kinds of root, as Info.Kind.
const (
	KindSoftware = "software"
	KindPKCS11   = "pkcs11"
)

// Info describes an open root.
type Info struct {
	Kind      string         // KindSoftware or KindPKCS11
	Location  string         // key file, or path of the PKCS#11 module
	Library   string         // PKCS#11: the library's description and version
	Token     string         // PKCS#11: token label
	Serial    string         // PKCS#11: token serial number
	Model     string         // PKCS#11: manufacturer and model
	Mechanism string         // how KEKs are encrypted, e.g. "CKM_AES_GCM, IV ours"
	Random    string         // where random bytes come from
	Sessions  int            // PKCS#11: sessions that can work now
	InUse     int            // PKCS#11: sessions that are used at once under load, see sched.go
	Stuck     int            // PKCS#11: calls that never came back from the module
	Process   int            // PKCS#11: process that has the module loaded; 0 when it is this one, or none runs
	Restarts  int            // PKCS#11: how often that process ended and was replaced
	Keys      []TokenKeySpec // OpenToken: the keys that the token can hold
	Notices   []string
}

// Errors of this package. What is returned wraps one of these with what was
// attempted; the message says what to change.
var (
	ErrNoDomainKey        = errors.New("domain key not found")
	ErrDuplicateDomainKey = errors.New("more than one domain key has this ID")
	ErrWeakDomainKey      = errors.New("domain key could be read out of the token")
	ErrDomainKeyUsedUp    = errors.New("domain key has encrypted as much as is safe; make a new one")
	ErrBadWrapped         = errors.New("wrapped key-encryption key is damaged or belongs to another domain key")
	ErrBadItem            = errors.New("a key-encryption key is 32 bytes")

	ErrNoKeyFile = errors.New("key file does not exist")
	ErrKeyFile   = errors.New("key file refused")

	ErrModule       = errors.New("PKCS#11 module refused")
	ErrTokenMissing = errors.New("token not found")
	ErrTokenLocked  = errors.New("token's user PIN is locked")
	ErrPINIncorrect = errors.New("token refused the PIN")
	ErrPINFile      = errors.New("PIN file refused")
	ErrMechanism    = errors.New("token has no usable mechanism")
	ErrToken        = errors.New("token refused the operation")
	ErrDevice       = errors.New("token failed")
	ErrSession      = errors.New("token session lost")
	ErrTimeout      = errors.New("token did not answer in time")
	ErrBusy         = errors.New("all token sessions are busy")
	ErrClosed       = errors.New("root is closed")
)

// A Class says what may be done about an error.
type Class uint8

const (
	// Fatal: the same call will fail again; the key (or the start) must stop.
	Fatal Class = iota
	// Retry: the same call may succeed later. The caller decides when.
	Retry
	// NewSession: a new session and perhaps a new login may help. The pool has
	// tried that already when a caller sees it; for the caller it is Retry.
	NewSession
)

// String returns the class's name.
func (c Class) String() string {
	switch c {
	case Retry:
		return "retry"
	case NewSession:
		return "new session"
	default:
		return "fatal"
	}
}

// Classify says what may be done about an error of this package. An error it does
// not know is Fatal: repeating what is not understood can lock a token.
func Classify(err error) Class {
	switch {
	// A lost login looks like a wrong PIN to nobody: these stop first, whatever
	// else the chain says.
	case errors.Is(err, ErrPINIncorrect), errors.Is(err, ErrTokenLocked), errors.Is(err, ErrClosed),
		errors.Is(err, ErrBadWrapped):
		return Fatal
	case errors.Is(err, ErrSession), errors.Is(err, ErrTokenMissing):
		return NewSession
	case errors.Is(err, ErrTimeout), errors.Is(err, ErrBusy), errors.Is(err, ErrDevice),
		errors.Is(err, context.DeadlineExceeded), errors.Is(err, context.Canceled):
		return Retry
	}
	return Fatal
}

// contextError turns a context's end into an error of this package.
func contextError(ctx context.Context) error {
	err := ctx.Err()
	if errors.Is(err, context.DeadlineExceeded) {
		return errors.Join(ErrTimeout, err)
	}
	return err
}

// failAll gives every item the same error.
func failAll(items []Item, err error) {
	for i := range items {
		items[i].Out, items[i].Err = nil, err
	}
}
