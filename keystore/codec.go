package keystore

import (
	"errors"
	"fmt"
	"math"
	"time"

	"github.com/fxamacker/cbor/v2"

	"keymill/hsm"
	"keymill/hsm/arena"
)

// # Record values
//
// The plaintext of a record is one byte of schema version and one CBOR item
// (RFC 8949, deterministic encoding): a map with small integer keys, written
// from the structures below. Absent and zero are the same. A field is never
// renumbered and never changes its type; a new field gets the next number, and
// a change that an older program would misread raises schemaVersion.
//
// The decoder is as strict as the encoder: no indefinite lengths, no tags, no
// duplicate or unknown members, no trailing bytes, bounded everywhere. A record
// that decodes was therefore written by this schema.
//
// Names (region, id, alias name ...) are not repeated in the value: they come
// from the storage key, which the seal covers.

const schemaVersion = 1

// emptyMap is the CBOR item that says nothing.
const emptyMap = 0xa0

// MaxVersions bounds the versions of one key.
const MaxVersions = 1024

type keyRecord struct {
	Account           string          `cbor:"1,keyasint,omitempty"`
	MultiRegion       bool            `cbor:"2,keyasint,omitempty"`
	Spec              string          `cbor:"3,keyasint,omitempty"`
	Usage             string          `cbor:"4,keyasint,omitempty"`
	Origin            string          `cbor:"5,keyasint,omitempty"`
	State             string          `cbor:"6,keyasint,omitempty"`
	Manager           string          `cbor:"7,keyasint,omitempty"`
	Description       string          `cbor:"8,keyasint,omitempty"`
	Created           int64           `cbor:"9,keyasint,omitempty"`
	DeletionDate      int64           `cbor:"10,keyasint,omitempty"`
	PendingWindowDays int32           `cbor:"11,keyasint,omitempty"`
	Versions          []versionRecord `cbor:"12,keyasint,omitempty"`
	CurrentVersion    uint32          `cbor:"13,keyasint,omitempty"`
	PublicKey         []byte          `cbor:"14,keyasint,omitempty"`
	Service           string          `cbor:"15,keyasint,omitempty"`
	RotationPeriod    int32           `cbor:"16,keyasint,omitempty"`
	NextRotation      int64           `cbor:"17,keyasint,omitempty"`
	OnDemandRotations int32           `cbor:"18,keyasint,omitempty"`
	PrimaryRegion     string          `cbor:"19,keyasint,omitempty"`
	ReplicaRegions    []string        `cbor:"20,keyasint,omitempty"`
	CustomKeyStore    string          `cbor:"21,keyasint,omitempty"`
	ExternalKeyID     string          `cbor:"22,keyasint,omitempty"`
	TokenKeyID        []byte          `cbor:"23,keyasint,omitempty"`
	Destroying        bool            `cbor:"24,keyasint,omitempty"`
}

type versionRecord struct {
	Number     uint32 `cbor:"1,keyasint,omitempty"`
	MaterialID []byte `cbor:"2,keyasint,omitempty"`
	Created    int64  `cbor:"3,keyasint,omitempty"`

	Rotation    string `cbor:"4,keyasint,omitempty"`
	Rotated     int64  `cbor:"5,keyasint,omitempty"`
	Description string `cbor:"6,keyasint,omitempty"`
	Pending     string `cbor:"7,keyasint,omitempty"`
	Missing     bool   `cbor:"8,keyasint,omitempty"`
	Expires     bool   `cbor:"9,keyasint,omitempty"`
	ValidTo     int64  `cbor:"10,keyasint,omitempty"`
}

// dueRecord is empty: its storage key says all.
type dueRecord struct{}

// externalRecord says which key an external key belongs to.
type externalRecord struct {
	Region string `cbor:"1,keyasint,omitempty"`
	ID     []byte `cbor:"2,keyasint,omitempty"`
}

type materialRecord struct {
	Sealed     []byte `cbor:"1,keyasint,omitempty"`
	WrappedKEK []byte `cbor:"2,keyasint,omitempty"`
	DomainKey  []byte `cbor:"3,keyasint,omitempty"`
}

type listingRecord struct {
	MultiRegion bool `cbor:"1,keyasint,omitempty"`
}

type countRecord struct {
	Keys uint64 `cbor:"1,keyasint,omitempty"`
}

type policyRecord struct {
	Policy string `cbor:"1,keyasint,omitempty"`
}

type tagsRecord struct {
	Tags []tagRecord `cbor:"1,keyasint,omitempty"`
}

type tagRecord struct {
	Key   string `cbor:"1,keyasint,omitempty"`
	Value string `cbor:"2,keyasint,omitempty"`
}

// aliasRecord is the value of both alias records; each takes from it what its
// storage key lacks.
type aliasRecord struct {
	Account string `cbor:"1,keyasint,omitempty"`
	Target  []byte `cbor:"2,keyasint,omitempty"`
	Created int64  `cbor:"3,keyasint,omitempty"`
	Updated int64  `cbor:"4,keyasint,omitempty"`
}

type principalRecord struct {
	Account string `cbor:"1,keyasint,omitempty"`
	ARN     string `cbor:"2,keyasint,omitempty"`
	Name    string `cbor:"3,keyasint,omitempty"`
	Root    bool   `cbor:"4,keyasint,omitempty"`
	Created int64  `cbor:"5,keyasint,omitempty"`
}

type accessKeyRecord struct {
	Account     string `cbor:"1,keyasint,omitempty"`
	PrincipalID string `cbor:"2,keyasint,omitempty"`
	Secret      []byte `cbor:"3,keyasint,omitempty"`
	Active      bool   `cbor:"4,keyasint,omitempty"`
	Created     int64  `cbor:"5,keyasint,omitempty"`
}

// bytesRecord is the value of audit and general-purpose records.
type bytesRecord struct {
	Data []byte `cbor:"1,keyasint,omitempty"`
}

// revisionRecord is empty: what it says is its own revision.
type revisionRecord struct{}

var (
	encMode = must(cbor.CoreDetEncOptions().EncMode())
	decMode = must(cbor.DecOptions{
		DupMapKey:          cbor.DupMapKeyEnforcedAPF,
		IndefLength:        cbor.IndefLengthForbidden,
		TagsMd:             cbor.TagsForbidden,
		MaxNestedLevels:    4,
		MaxArrayElements:   4096,
		MaxMapPairs:        32,
		ExtraReturnErrors:  cbor.ExtraDecErrorUnknownField,
		FieldNameMatching:  cbor.FieldNameMatchingCaseSensitive,
		ByteStringToString: cbor.ByteStringToStringForbidden,
	}.DecMode())
)

func must[T any](v T, err error) T {
	if err != nil {
		panic(err)
	}
	return v
}

// encode refuses what decode would refuse, such as text that is not UTF-8: it
// is better not written than not read.
func encode[T any](v *T) ([]byte, error) {
	body, err := encMode.Marshal(v)
	if err != nil {
		return nil, fmt.Errorf("%w: %v", ErrInvalid, err)
	}
	b := append([]byte{schemaVersion}, body...)
	arena.Wipe(body)
	if err := decode(b, new(T)); err != nil {
		return nil, fmt.Errorf("%w: a value cannot be stored: %v", ErrInvalid, err)
	}
	return b, nil
}

// decode reads a value into v, which is zero.
func decode(b []byte, v any) error {
	if len(b) == 0 {
		return errors.New("empty value")
	}
	if b[0] != schemaVersion {
		return fmt.Errorf("schema version %d is not known to this program", b[0])
	}
	if len(b) == 2 && b[1] == emptyMap {
		return nil // as in most entries of lists, which are read by the thousand
	}
	if err := decMode.Unmarshal(b[1:], v); err != nil {
		return errors.New("value does not decode") // the cause may quote the value
	}
	return nil
}

// Times are kept as nanoseconds since 1970 and read back in UTC; 0 is the zero
// time.
func putTime(t time.Time) (int64, error) {
	if t.IsZero() {
		return 0, nil
	}
	if y := t.Year(); y < 1970 || y > 2261 {
		return 0, fmt.Errorf("%w: time %v out of range", ErrInvalid, t)
	}
	return t.UnixNano(), nil
}

func getTime(ns int64) time.Time {
	if ns == 0 {
		return time.Time{}
	}
	return time.Unix(0, ns).UTC()
}

// times converts several times at once.
func times(err error, pairs ...any) error {
	for i := 0; i < len(pairs) && err == nil; i += 2 {
		*pairs[i].(*int64), err = putTime(pairs[i+1].(time.Time))
	}
	return err
}

func encodeKey(k *Key) ([]byte, error) {
	r := keyRecord{
		Account: k.Account, MultiRegion: k.MultiRegion, Spec: k.Spec, Usage: k.Usage, Origin: k.Origin,
		State: k.State, Manager: k.Manager, Description: k.Description, PendingWindowDays: k.PendingWindowDays,
		CurrentVersion: k.CurrentVersion, PublicKey: k.PublicKey, Service: k.Service,
		RotationPeriod: k.RotationPeriodDays, OnDemandRotations: k.OnDemandRotations,
		PrimaryRegion: k.PrimaryRegion, ReplicaRegions: k.ReplicaRegions,
		CustomKeyStore: k.CustomKeyStore, ExternalKeyID: k.ExternalKeyID, TokenKeyID: k.TokenKeyID,
		Destroying: k.Destroying,
	}
	err := times(nil, &r.Created, k.Created, &r.DeletionDate, k.DeletionDate, &r.NextRotation, k.NextRotation)
	if k.Account == "" || len(k.Versions) > MaxVersions || k.PendingWindowDays < 0 || k.RotationPeriodDays < 0 || k.OnDemandRotations < 0 {
		err = fmt.Errorf("%w: key %v", ErrInvalid, k.ID)
	}
	for _, v := range k.Versions {
		vr := versionRecord{
			Number: v.Number, MaterialID: v.MaterialID[:], Rotation: v.Rotation,
			Description: v.Description, Pending: v.Pending, Missing: v.Missing, Expires: v.Expires,
		}
		err = times(err, &vr.Created, v.Created, &vr.Rotated, v.Rotated, &vr.ValidTo, v.ValidTo)
		r.Versions = append(r.Versions, vr)
	}
	if err != nil {
		return nil, err
	}
	return encode(&r)
}

var errValue = errors.New("value out of bounds")

func decodeKey(n *Name, b []byte) (*Key, error) {
	var r keyRecord
	if err := decode(b, &r); err != nil {
		return nil, err
	}
	k := &Key{
		Account: r.Account, Region: n.Region, ID: n.ID, MultiRegion: r.MultiRegion, Spec: r.Spec, Usage: r.Usage,
		Origin: r.Origin, State: r.State, Manager: r.Manager, Description: r.Description,
		Created: getTime(r.Created), DeletionDate: getTime(r.DeletionDate), PendingWindowDays: r.PendingWindowDays,
		CurrentVersion: r.CurrentVersion, PublicKey: r.PublicKey, Service: r.Service,
		RotationPeriodDays: r.RotationPeriod, NextRotation: getTime(r.NextRotation), OnDemandRotations: r.OnDemandRotations,
		PrimaryRegion: r.PrimaryRegion, ReplicaRegions: r.ReplicaRegions,
		CustomKeyStore: r.CustomKeyStore, ExternalKeyID: r.ExternalKeyID, TokenKeyID: r.TokenKeyID,
		Destroying: r.Destroying,
	}
	if k.Account == "" || len(r.Versions) > MaxVersions || min(r.Created, r.DeletionDate, r.NextRotation) < 0 ||
		min(r.PendingWindowDays, r.RotationPeriod, r.OnDemandRotations) < 0 {
		return nil, errValue
	}
	if len(r.Versions) > 0 {
		k.Versions = make([]Version, len(r.Versions))
	}
	for i, v := range r.Versions {
		if len(v.MaterialID) != 32 || min(v.Created, v.Rotated, v.ValidTo) < 0 {
			return nil, errValue
		}
		k.Versions[i] = Version{
			Number: v.Number, MaterialID: [32]byte(v.MaterialID), Created: getTime(v.Created),
			Rotation: v.Rotation, Rotated: getTime(v.Rotated),
			Description: v.Description, Pending: v.Pending, Missing: v.Missing,
			Expires: v.Expires, ValidTo: getTime(v.ValidTo),
		}
	}
	return k, nil
}

func encodeMaterial(m *Material) ([]byte, error) {
	return encode(&materialRecord{m.Sealed, m.WrappedKEK, m.DomainKey[:]})
}

func decodeMaterial(n *Name, b []byte) (*Material, error) {
	var r materialRecord
	if err := decode(b, &r); err != nil {
		return nil, err
	}
	if len(r.DomainKey) != len(hsm.DomainKeyID{}) {
		return nil, errValue
	}
	return &Material{
		Ref: Ref{n.Region, n.ID}, Version: n.Version,
		Sealed: r.Sealed, WrappedKEK: r.WrappedKEK, DomainKey: hsm.DomainKeyID(r.DomainKey),
	}, nil
}

func encodeAlias(a *Alias) ([]byte, error) {
	r := aliasRecord{Account: a.Account, Target: a.Target[:]}
	if err := times(nil, &r.Created, a.Created, &r.Updated, a.Updated); err != nil {
		return nil, err
	}
	return encode(&r)
}

func decodeAlias(n *Name, b []byte) (*Alias, error) {
	var r aliasRecord
	if err := decode(b, &r); err != nil {
		return nil, err
	}
	if len(r.Target) != len(KeyID{}) || r.Account == "" || r.Created < 0 || r.Updated < 0 {
		return nil, errValue
	}
	a := &Alias{Account: r.Account, Region: n.Region, Name: n.Name, Target: KeyID(r.Target), Created: getTime(r.Created), Updated: getTime(r.Updated)}
	if n.Kind == KindAlias && a.Account != n.Account || n.Kind == KindTarget && a.Target != n.ID {
		return nil, errors.New("value disagrees with its name")
	}
	return a, nil
}

func encodeTags(tags []Tag) ([]byte, error) {
	r := tagsRecord{Tags: make([]tagRecord, len(tags))}
	for i, t := range tags {
		r.Tags[i] = tagRecord(t)
		if i > 0 && tags[i-1].Key >= t.Key {
			return nil, fmt.Errorf("%w: tag keys repeat", ErrInvalid)
		}
	}
	return encode(&r)
}

func decodeTags(b []byte) ([]Tag, error) {
	var r tagsRecord
	if err := decode(b, &r); err != nil {
		return nil, err
	}
	tags := make([]Tag, len(r.Tags))
	for i, t := range r.Tags {
		tags[i] = Tag(t)
		if i > 0 && tags[i-1].Key >= t.Key {
			return nil, errValue
		}
	}
	return tags, nil
}

func encodePrincipal(p *Principal) ([]byte, error) {
	r := principalRecord{Account: p.Account, ARN: p.ARN, Name: p.Name, Root: p.Root}
	if err := times(nil, &r.Created, p.Created); err != nil {
		return nil, err
	}
	return encode(&r)
}

func decodePrincipal(n *Name, b []byte) (*Principal, error) {
	var r principalRecord
	if err := decode(b, &r); err != nil {
		return nil, err
	}
	if r.Created < 0 {
		return nil, errValue
	}
	return &Principal{ID: n.Name, Account: r.Account, ARN: r.ARN, Name: r.Name, Root: r.Root, Created: getTime(r.Created)}, nil
}

func encodeAccessKey(k *AccessKey) ([]byte, error) {
	r := accessKeyRecord{Account: k.Account, PrincipalID: k.PrincipalID, Secret: k.Secret, Active: k.Active}
	if err := times(nil, &r.Created, k.Created); err != nil {
		return nil, err
	}
	return encode(&r)
}

func decodeAccessKey(n *Name, b []byte) (*AccessKey, error) {
	var r accessKeyRecord
	if err := decode(b, &r); err != nil {
		return nil, err
	}
	if r.Created < 0 {
		return nil, errValue
	}
	return &AccessKey{ID: n.Name, Account: r.Account, PrincipalID: r.PrincipalID, Secret: r.Secret, Active: r.Active, Created: getTime(r.Created)}, nil
}

func decodeCount(b []byte) (uint64, error) {
	var r countRecord
	if err := decode(b, &r); err != nil {
		return 0, err
	}
	if r.Keys > math.MaxInt32 {
		return 0, errValue
	}
	return r.Keys, nil
}

// ParseRecord decodes the plaintext of the record with the given name into the
// value the store would answer with. It is what Verify applies to every record,
// and a target for fuzzing.
func ParseRecord(n Name, plaintext []byte) (any, error) {
	switch n.Kind {
	case KindKey:
		return decodeKey(&n, plaintext)
	case KindMaterial:
		return decodeMaterial(&n, plaintext)
	case KindAlias, KindTarget:
		return decodeAlias(&n, plaintext)
	case KindTags:
		return decodeTags(plaintext)
	case KindPrincipal:
		return decodePrincipal(&n, plaintext)
	case KindAccessKey:
		return decodeAccessKey(&n, plaintext)
	case KindCount:
		return decodeCount(plaintext)
	case KindListing:
		var r listingRecord
		err := decode(plaintext, &r)
		return KeyListing{n.ID, r.MultiRegion}, err
	case KindPolicy:
		var r policyRecord
		err := decode(plaintext, &r)
		return r.Policy, err
	case KindAudit, KindRecord:
		var r bytesRecord
		err := decode(plaintext, &r)
		return r.Data, err
	case KindUsage:
		return decodeUsage(&n, plaintext)
	case KindExternal:
		return decodeExternal(plaintext)
	case KindDue, KindStoreKey:
		var r dueRecord
		return nil, decode(plaintext, &r)
	case KindGrant, KindGrantee:
		return decodeGrant(&n, plaintext)
	case KindRetiring:
		return decodeRetiring(&n, plaintext)
	case KindGrantName:
		return decodeGrantName(plaintext)
	case KindGrantCount:
		return decodeCount(plaintext)
	case KindRevision:
		var r revisionRecord
		return nil, decode(plaintext, &r)
	}
	return nil, errors.New("unknown kind")
}
