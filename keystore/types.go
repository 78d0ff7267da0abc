package keystore

import (
	"encoding/hex"
	"time"

	"keymill/hsm"
)

// KeyID is the 16 bytes of a key's identifier: a UUID, or what follows "mrk-".
type KeyID [16]byte

// String returns 32 hexadecimal digits. The forms callers see are made
// elsewhere; this one is for errors and logs.
func (id KeyID) String() string { return hex.EncodeToString(id[:]) }

// A Ref names a key: identifiers are unique within a region, whatever account
// the key belongs to.
type Ref struct {
	Region string
	ID     KeyID
}

// A Key is the metadata of a key. It is immutable once returned: change a copy
// and put that, with Revision as the expectation.
type Key struct {
	Account     string // never changes
	Region      string // never changes
	ID          KeyID  // never changes
	MultiRegion bool   // the identifier is written "mrk-..."; never changes

	Spec   string // AWS names throughout: "SYMMETRIC_DEFAULT"
	Usage  string // "ENCRYPT_DECRYPT"
	Origin string // "AWS_KMS"
	State  string // "Enabled"

	Manager     string // "CUSTOMER" (counted by CountKeys) or "AWS"; never changes
	Description string
	Created     time.Time

	DeletionDate      time.Time // zero unless deletion is scheduled
	PendingWindowDays int32
	Destroying        bool // deletion has begun and goes on: nothing may use or change the key

	Versions       []Version // oldest first, at most MaxVersions
	CurrentVersion uint32    // Number of the version in use; 0 means the last one
	PublicKey      []byte    // DER SubjectPublicKeyInfo of an asymmetric key

	Service            string    // of an AWS managed key: "s3"
	RotationPeriodDays int32     // of automatic rotation; stays when that is switched off
	NextRotation       time.Time // zero while automatic rotation is off
	OnDemandRotations  int32     // over the key's life

	// Of a multi-Region key, the same in all related keys: the region of the
	// primary ("" is the key's own), and the others, sorted.
	PrimaryRegion  string
	ReplicaRegions []string

	CustomKeyStore string // "cks-...", of a key in a custom key store
	ExternalKeyID  string // XksKeyId, of a key in an external key store
	TokenKeyID     []byte // CKA_ID, of a key that lives in a token

	Revision uint64 // of the record; filled on read, ignored on write
}

// ManagerCustomer is the Manager of the keys that CountKeys counts.
const ManagerCustomer = "CUSTOMER"

// Ref returns the name of the key.
func (k *Key) Ref() Ref { return Ref{k.Region, k.ID} }

// A Version of a key is one generation of its material.
type Version struct {
	Number     uint32
	MaterialID [32]byte
	Created    time.Time

	Rotation string    // how it became current: "AUTOMATIC", "ON_DEMAND", "" for the first
	Rotated  time.Time // when it became current by rotation

	// Of imported material.
	Description string
	Pending     string    // KeyMaterialState before its first use: "PENDING_ROTATION" ...
	Missing     bool      // deleted or expired; the same bytes may be imported again
	Expires     bool      // ValidTo counts
	ValidTo     time.Time // end of validity
}

// A Material is the sealed secret of one key version.
type Material struct {
	Ref        Ref
	Version    uint32
	Sealed     []byte          // under the version's key-encryption key
	WrappedKEK []byte          // that key, encrypted by the root
	DomainKey  hsm.DomainKeyID // with this domain key
	Revision   uint64
}

// An Identity says whose secret a Material is. It is the associated data of
// the seal, so material moved to another key, account or region does not open.
type Identity struct {
	Account, Region, Spec string
	ID                    KeyID
	Version               uint32
}

// An Alias is a friendly name of a key.
type Alias struct {
	Account, Region string
	Name            string // with "alias/"
	Target          KeyID  // zero for a name that points nowhere yet
	Created         time.Time
	Updated         time.Time
	Revision        uint64
}

// A Tag is one label of a key.
type Tag struct{ Key, Value string }

// A Principal is somebody who may call.
type Principal struct {
	ID, Account, ARN, Name string
	Root                   bool // the account's root
	Created                time.Time
	Revision               uint64
}

// An AccessKey lets a principal sign requests.
type AccessKey struct {
	ID, Account, PrincipalID string
	Secret                   []byte // the caller may keep it; it wipes what it does not keep
	Active                   bool
	Created                  time.Time
	Revision                 uint64
}

// A KeyListing is one row of ListKeys.
type KeyListing struct {
	ID          KeyID
	MultiRegion bool
}

// An AuditRecord is what a commit left with SetAudit.
type AuditRecord struct {
	Revision uint64 // of that commit
	Data     []byte
}

// A Record is an entry of the general-purpose space; see [Txn.Put].
type Record struct {
	Name     string
	Value    []byte
	Revision uint64
}
