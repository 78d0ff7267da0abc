package hsm

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"slices"
)

// # Keys that live in a token
//
// A [Root] encrypts key-encryption keys; the keys of users are then in this
// program's memory while they are used. A custom key store promises more: its keys
// are generated in a token, cannot leave it, and every use of one is a call of the
// token. [TokenKeys] is a token seen that way. It shares sessions, scheduler, child
// process and recovery with the root of trust, and one process may have both on
// several tokens.
//
// # What a token is asked for
//
//	AES-256           CKM_AES_KEY_GEN, CKM_AES_GCM with associated data
//	HMAC              CKM_GENERIC_SECRET_KEY_GEN, CKM_SHA*_HMAC
//	elliptic curves   CKM_EC_KEY_PAIR_GEN, CKM_ECDSA over a digest made here
//	RSA               CKM_RSA_PKCS_KEY_PAIR_GEN, CKM_RSA_PKCS and CKM_RSA_PKCS_PSS over a
//	                  digest made here, CKM_RSA_PKCS_OAEP
//
// [Info.Keys] lists what a token has the mechanisms for. A token without AES-GCM
// holds no symmetric keys: AES-CBC alone does not authenticate, a tag by a key that
// is not in the token would not be the token's word, and a second key object for each
// key, for a MAC, doubles every call.
//
// # Initialisation vectors and the limit of a key
//
// A new IV is drawn for each encryption, and what the token says it used is read
// back, since some write their own; which kind the token is, the self test at the
// start finds out (mechanism.go). Either way IVs are random, so one key must not
// encrypt more than 2^32 times. The token does not count and neither does this
// package: package engine does, durably.
//
// Rejected: deriving a key in the token for every so many messages, as the local scheme
// does, where CKM_AES_ECB_ENCRYPT_DATA is offered. Derived keys are session objects: each
// session would hold one for its own encryptions and some for what it decrypts, a
// decryption whose derived key is not there would take two round trips more, and
// the key would have to be one that only derives, chosen when it is made. That buys
// more than 27 days at 1,800 encryptions a second with one key.

// A TokenKeyID is the CKA_ID of a key that lives in a token.
type TokenKeyID [16]byte

// NewTokenKeyID returns a random ID. Whoever has a key generated chooses the ID
// first, so that an object of which it is not known whether it was made can be
// destroyed.
func NewTokenKeyID() (id TokenKeyID) {
	rand.Read(id[:])
	return id
}

// String returns the ID as 32 lower-case hex digits.
func (id TokenKeyID) String() string { return hex.EncodeToString(id[:]) }

// A TokenKeySpec is a kind of key that a token can hold. The values are part of the
// protocol with the child.
type TokenKeySpec uint8

// The kinds. RSA keys are for one use, as PKCS#11 has it.
const (
	TokenAES256 TokenKeySpec = iota + 1
	TokenHMAC224
	TokenHMAC256
	TokenHMAC384
	TokenHMAC512
	TokenP256
	TokenP384
	TokenP521
	TokenRSA2048Sign
	TokenRSA3072Sign
	TokenRSA4096Sign
	TokenRSA2048Decrypt
	TokenRSA3072Decrypt
	TokenRSA4096Decrypt
	numTokenKeySpecs
)

var tokenKeyNames = [numTokenKeySpecs]string{
	TokenAES256:  "AES-256",
	TokenHMAC224: "HMAC-224", TokenHMAC256: "HMAC-256", TokenHMAC384: "HMAC-384", TokenHMAC512: "HMAC-512",
	TokenP256: "P-256", TokenP384: "P-384", TokenP521: "P-521",
	TokenRSA2048Sign: "RSA-2048 for signing", TokenRSA3072Sign: "RSA-3072 for signing", TokenRSA4096Sign: "RSA-4096 for signing",
	TokenRSA2048Decrypt: "RSA-2048 for decryption", TokenRSA3072Decrypt: "RSA-3072 for decryption", TokenRSA4096Decrypt: "RSA-4096 for decryption",
}

func (s TokenKeySpec) String() string {
	if s < numTokenKeySpecs && s > 0 {
		return tokenKeyNames[s]
	}
	return fmt.Sprintf("token key spec %d", uint8(s))
}

// Pair reports whether keys of this kind have a public half.
func (s TokenKeySpec) Pair() bool { return s >= TokenP256 && s < numTokenKeySpecs }

// A TokenMech is what is done with a key in a token. The values are part of the
// protocol with the child.
type TokenMech uint8

// The mechanisms, with what In and Out are.
const (
	TokenSeal       TokenMech = iota + 1 // plaintext, sealed form; AAD counts
	TokenOpen                            // sealed form, plaintext; AAD counts
	TokenHMACSHA224                      // message, MAC
	TokenHMACSHA256
	TokenHMACSHA384
	TokenHMACSHA512
	TokenECDSA       // digest, signature as two integers of the curve's size
	TokenPKCS1SHA256 // digest, signature
	TokenPKCS1SHA384
	TokenPKCS1SHA512
	TokenPSSSHA256 // the salt is as long as the digest
	TokenPSSSHA384
	TokenPSSSHA512
	TokenOAEPSHA1 // ciphertext, plaintext
	TokenOAEPSHA256
	numTokenMechs
)

// The sealed form of TokenSeal is its format, 1, the length of the IV, the IV, and
// the AES-GCM ciphertext with its tag of 16 bytes.
const (
	// TokenSealOverhead is how much longer a sealed form is than its plaintext at most.
	TokenSealOverhead = 1 + 1 + 16 + 16
	// TokenSealMinimum is how much longer it is at least.
	TokenSealMinimum = 1 + 1 + 12 + 16

	tokenSealFormat = 1

	// MaxTokenInput bounds TokenOp.In, MaxTokenAAD its AAD.
	MaxTokenInput = 8 << 10
	MaxTokenAAD   = 1 << 10
)

// parseSealed takes the form that TokenSeal makes apart.
func parseSealed(b []byte) (iv, ct []byte, err error) {
	if len(b) < TokenSealMinimum || len(b) > MaxTokenInput || b[0] != tokenSealFormat {
		return nil, nil, ErrBadCiphertext
	}
	n := int(b[1])
	if n < 12 || n > 16 || len(b) < 2+n+16 {
		return nil, nil, ErrBadCiphertext
	}
	return b[2 : 2+n], b[2+n:], nil
}

// A TokenOp is one operation with a key in a token. The call sets Out or Err, never
// both. In and AAD are only read during the call; Out is a fresh slice, which the
// caller owns and, where it is a secret, wipes.
type TokenOp struct {
	Key     TokenKeyID
	Mech    TokenMech
	In, AAD []byte
	Out     []byte
	Err     error
}

// check refuses what no key can do, before it is sent anywhere.
func (op *TokenOp) check() error {
	n, ok := len(op.In), false
	switch op.Mech {
	case TokenSeal:
		ok = n <= MaxTokenInput-TokenSealOverhead
	case TokenOpen:
		if _, _, err := parseSealed(op.In); err != nil {
			return err
		}
		ok = true
	case TokenHMACSHA224, TokenHMACSHA256, TokenHMACSHA384, TokenHMACSHA512:
		ok = n <= MaxTokenInput
	case TokenECDSA:
		ok = n == 32 || n == 48 || n == 64
	case TokenPKCS1SHA256, TokenPSSSHA256:
		ok = n == 32
	case TokenPKCS1SHA384, TokenPSSSHA384:
		ok = n == 48
	case TokenPKCS1SHA512, TokenPSSSHA512:
		ok = n == 64
	case TokenOAEPSHA1, TokenOAEPSHA256:
		ok = n >= 128 && n <= 1024
	}
	if aad := op.Mech == TokenSeal || op.Mech == TokenOpen; !ok || len(op.AAD) > MaxTokenAAD || len(op.AAD) > 0 && !aad {
		return fmt.Errorf("%w: mechanism %d, %d bytes, %d of associated data", ErrTokenInput, op.Mech, n, len(op.AAD))
	}
	return nil
}

// work is the task for a session, with copies of the inputs.
func (op *TokenOp) work() work {
	return work{kind: taskUse, id: op.Key, mech: op.Mech, in: slices.Clone(op.In), aad: slices.Clone(op.AAD)}
}

// failOps gives every operation the same error.
func failOps(ops []TokenOp, err error) {
	for i := range ops {
		ops[i].Out, ops[i].Err = nil, err
	}
}

// maxTokenLabel bounds the label of a key: an ARN is shorter.
const maxTokenLabel = 255

// TokenKeys is a token that holds keys of users. Its methods may be called
// concurrently, except that nothing may be called after Close.
//
// A token that is away makes everything fail with errors that Classify calls
// Retry or NewSession, ErrTokenMissing above all; once it is back, the next call logs
// in and finds its keys again. A refused PIN is not tried again: open the token anew.
type TokenKeys interface {
	// GenerateKey makes a key that cannot leave the token, under an ID of the caller's
	// and a label for people. For a pair it returns the public key as a DER
	// SubjectPublicKeyInfo. When it fails, an object with this ID may exist in the
	// token all the same: destroy it, and use another ID for another try.
	GenerateKey(ctx context.Context, id TokenKeyID, spec TokenKeySpec, label string) (public []byte, err error)

	// Check looks whether the token has the key. The error matches ErrNoTokenKey when
	// it has not, ErrDuplicateTokenKey when the ID is not unique and ErrWeakTokenKey
	// when the key could be read out.
	Check(ctx context.Context, id TokenKeyID) error

	// Destroy removes the key, and whatever else has its ID. It is nil, too, when
	// there is none.
	Destroy(ctx context.Context, id TokenKeyID) error

	// Do carries the operations out over several sessions at once, each with its own
	// result. ErrBadCiphertext: not made with this key and AAD, or changed since.
	Do(ctx context.Context, ops []TokenOp)

	// Random is Root.Random.
	Random(ctx context.Context, bufs [][]byte) error

	// Info describes the token for people and metrics; Info.Keys says which keys it
	// can hold.
	Info() Info

	// Close logs out and releases the token. A second call does nothing.
	Close() error
}

// Holds reports whether the token has the mechanisms for keys of a kind.
func (i *Info) Holds(s TokenKeySpec) bool { return slices.Contains(i.Keys, s) }

// Errors of TokenKeys, besides those of a root.
var (
	ErrNoTokenKey        = errors.New("key not found in the token")
	ErrDuplicateTokenKey = errors.New("more than one key in the token has this ID")
	ErrWeakTokenKey      = errors.New("key could be read out of the token")
	ErrBadCiphertext     = errors.New("ciphertext is damaged, or of another key or context")
	ErrTokenInput        = errors.New("no key in a token does that")
)
