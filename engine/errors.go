package engine

import "errors"

// What Do sets as an operation's Err, and what the parsers return. The caller
// may compare with ==: none of these is ever wrapped in an Op. Any other error
// there is an internal failure; its text is for the log.
var (
	// ErrPending: the material of the operation is cold. Call Warm with the
	// same operations, then Do again. Nothing has been done.
	ErrPending = errors.New("engine: key material is not loaded")

	// ErrPurged is returned by Warm when Purge was called while the material
	// was on its way: it was not kept. Look at the key's state again before
	// trying once more.
	ErrPurged = errors.New("engine: key was purged while its material was loading")

	// ErrInvalidCiphertext is the one answer to everything that does not
	// decrypt: truncated, changed, of another key, under another context.
	ErrInvalidCiphertext = errors.New("engine: invalid ciphertext")

	ErrInvalidSignature = errors.New("engine: invalid signature")
	ErrInvalidMAC       = errors.New("engine: invalid MAC")

	// ErrDigestLength: a message of type Digest or ExternalMu has not the
	// length that the algorithm needs.
	ErrDigestLength = errors.New("engine: digest is of invalid length for the algorithm")

	// ErrMessageType: the algorithm does not take messages of this type.
	ErrMessageType = errors.New("engine: message type does not fit the algorithm")

	// ErrIncompatible: the algorithm is not one of the key's spec.
	ErrIncompatible = errors.New("engine: algorithm is incompatible with the key spec")

	// ErrUsage: the verb is not one of the key's usage.
	ErrUsage = errors.New("engine: operation is not valid for the key usage")

	ErrPlaintextTooLong = errors.New("engine: plaintext is too long for the algorithm")

	// ErrInvalidPublicKey: the peer's public key is not a DER
	// SubjectPublicKeyInfo, names another curve, or is not a point on it.
	ErrInvalidPublicKey = errors.New("engine: invalid public key")

	// ErrInvalidMaterial: the key material is not one of the spec.
	ErrInvalidMaterial = errors.New("engine: invalid key material")

	// ErrUnknownSpec: no such key spec, or none that the call makes sense for.
	ErrUnknownSpec = errors.New("engine: no such key spec")
)
