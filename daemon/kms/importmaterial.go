package kms

import (
	"bytes"
	"crypto/subtle"
	"errors"
	"slices"
	"time"

	"keymill/daemon/wire"
	"keymill/engine"
	"keymill/keystore"
)

// # The versions of a key with imported material
//
// A version of the record stands for material that the key knows. There are two
// kinds:
//
//	permanent  Pending is empty. The key has used it, and needs it for ever: the
//	           key can only be used while every permanent version is present.
//	pending    Imported to be rotated to, at most one. It is forgotten when it is
//	           deleted; RotateKeyOnDemand makes it permanent.
//
// Missing says that the bytes are not here: they were deleted, have expired, or
// were only imported into a related key. The version stays, and with it the id by
// which the same bytes are known when they come again. Material ids are compared
// in constant time, all of them. Private keys have no one encoding, so an
// asymmetric key knows its material by the public key, and material that comes
// again in another encoding gets a version number of its own: what was cached for
// the old number is not taken for the new.
//
// Related multi-Region keys know the same versions. The first import and every
// pending one are made in the primary, which writes them as missing into its
// replicas' records, in the same commit. Each key of the family loses and gets
// back its bytes on its own. A pending version waits in all of them as
// PENDING_MULTI_REGION_IMPORT_AND_ROTATION until it is missing in none, then as
// PENDING_ROTATION.

// Values of Version.Pending: KeyMaterialState before the first use.
const (
	pendingRotation = "PENDING_ROTATION"
	pendingImport   = "PENDING_MULTI_REGION_IMPORT_AND_ROTATION"
)

// Values of ImportType.
const (
	newMaterial      = "NEW_KEY_MATERIAL"
	existingMaterial = "EXISTING_KEY_MATERIAL"
)

// incoming is what an ImportKeyMaterial request wants to add.
type incoming struct {
	view        *keyView
	kind        string // ImportType, "" when not given
	claimed     string // KeyMaterialId, "" when not given
	described   bool
	description string
	until       time.Time // end of validity, zero for none
	now         time.Time

	id     engine.MaterialID // of the unwrapped material
	public []byte            // its public key
}

// checkRequest refuses combinations of members.
func (m *incoming) checkRequest() error {
	v := m.view
	if !v.spec.Symmetric() {
		switch {
		case m.kind != "":
			return onlySymmetric("ImportType", v)
		case m.claimed != "":
			return onlySymmetric("KeyMaterialId", v)
		case m.described:
			return onlySymmetric("KeyMaterialDescription", v)
		}
	}
	replica := v.primaryRegion() != v.rec.Region
	switch {
	case m.kind == newMaterial && m.claimed != "":
		return invalid("KeyMaterialId cannot be specified with ImportType %s.", newMaterial)
	case m.kind == newMaterial && replica:
		return notPrimary(v.arn)
	case m.described && replica:
		return wire.NewError(wire.UnsupportedOperationException, "%s is a replica: its KeyMaterialDescription is that of the primary key in %s.", v.arn, v.primaryRegion())
	}
	return nil
}

func notPrimary(arn string) error {
	return wire.NewError(wire.UnsupportedOperationException, "%s is not a multi-region primary key.", arn)
}

// A change is a record as it was and as it is.
type change struct{ before, after *keystore.Key }

// A family is a key that is being changed, own, and those related to it. The
// records in after are copies.
type family struct {
	own    change
	others []change
}

// family reads the keys related to k, which its caller writes.
func (s *Service) family(k *keystore.Key) (*family, error) {
	f := &family{own: copyForChange(k)}
	f.own.after = k
	k.Versions = slices.Clone(k.Versions)
	if !k.MultiRegion {
		return f, nil
	}
	for _, region := range append([]string{k.PrimaryRegion}, k.ReplicaRegions...) {
		if region == "" || region == k.Region {
			continue
		}
		other, err := s.store.Key(keystore.Ref{Region: region, ID: k.ID})
		if errors.Is(err, keystore.ErrNotFound) || err == nil && other.Destroying {
			continue
		} else if err != nil {
			return nil, err
		}
		f.others = append(f.others, copyForChange(other))
	}
	for _, o := range f.others {
		if f.isReplica() {
			if isPrimary(o.after) {
				inherit(k, o.after)
			}
		} else {
			inherit(o.after, k)
		}
	}
	return f, nil
}

func copyForChange(k *keystore.Key) change {
	before, after := *k, *k
	after.Versions = slices.Clone(k.Versions)
	return change{&before, &after}
}

func isPrimary(k *keystore.Key) bool { return k.PrimaryRegion == "" || k.PrimaryRegion == k.Region }

func (f *family) isReplica() bool { return !isPrimary(f.own.after) }

// inherit writes into a replica what its primary knows and it does not.
func inherit(replica, primary *keystore.Key) {
	if len(replica.PublicKey) == 0 {
		replica.PublicKey = primary.PublicKey
	}
	if len(primary.PublicKey) > 0 && len(replica.Versions) > 0 {
		return // one material, in any encoding
	}
	for i := range primary.Versions {
		v := primary.Versions[i]
		if versionOf(replica, v.MaterialID) >= 0 {
			continue
		}
		current := v.Number == primary.CurrentVersion
		v.Number, v.Missing = nextVersion(replica), true
		v.Expires, v.ValidTo = false, time.Time{}
		replica.Versions = append(replica.Versions, v)
		if current {
			replica.CurrentVersion = v.Number
		}
	}
}

// versionOf returns the index of the version with that material, -1 for none.
func versionOf(k *keystore.Key, id [32]byte) int {
	found := -1
	for i := range k.Versions {
		found = subtle.ConstantTimeSelect(subtle.ConstantTimeCompare(k.Versions[i].MaterialID[:], id[:]), i, found)
	}
	return found
}

// pendingVersion returns the index of the pending version, -1 for none.
func pendingVersion(k *keystore.Key) int {
	return slices.IndexFunc(k.Versions, func(v keystore.Version) bool { return v.Pending != "" })
}

// nextVersion returns a number that no version of k has.
func nextVersion(k *keystore.Key) uint32 {
	n := uint32(0)
	for i := range k.Versions {
		n = max(n, k.Versions[i].Number)
	}
	return n + 1
}

// materialComplete tells whether a key with imported material has all that it
// needs.
func materialComplete(k *keystore.Key) bool {
	permanent := 0
	for i := range k.Versions {
		if v := &k.Versions[i]; v.Pending == "" {
			if v.Missing {
				return false
			}
			permanent++
		}
	}
	return permanent > 0
}

// restingState returns the state that a key is in when s would be its state
// otherwise: a key that lacks imported material is pending import.
func restingState(k *keystore.Key, s keyState) keyState {
	if k.Origin == originExternal && !materialComplete(k) {
		return statePendingImport
	}
	return s
}

// find returns the index of the version whose KeyMaterialId is text, of the
// current one for none, and -1 if there is no such version.
func (f *family) find(text string) int {
	k := f.own.after
	return slices.IndexFunc(k.Versions, func(v keystore.Version) bool {
		if text == "" {
			return v.Number == k.CurrentVersion
		}
		return engine.MaterialID(v.MaterialID).String() == text
	})
}

// add adds incoming material to the family's own key. It returns the number of the
// version, and whether its material is to be stored.
func (f *family) add(m *incoming) (number uint32, store bool, err error) {
	k := f.own.after
	i := versionOf(k, m.id)
	if len(k.PublicKey) > 0 {
		i = -1
		if len(k.Versions) > 0 && bytes.Equal(k.PublicKey, m.public) {
			i = 0
		}
	}
	first := len(k.Versions) == 0
	if m.kind == newMaterial || m.kind == "" && m.claimed == "" && first {
		return f.addNew(m, i, first)
	}
	switch {
	case m.claimed != "" && m.claimed != m.id.String():
		return 0, false, incorrect("The id of the key material is not the KeyMaterialId of the request, %s.", m.claimed)
	case i < 0:
		return 0, false, incorrect("The key material is not associated with the KMS key %s: only the same key material can be imported again.", m.view.arn)
	}
	// A disabled key that has lost material comes back enabled, whether or not the
	// scheduler has found that out yet.
	late := k.State == stateDisabled.String() && overdue(k, m.now)
	v := &k.Versions[i]
	store = v.Missing
	if v.MaterialID != m.id {
		v.Number, v.MaterialID = nextVersion(k), m.id
		k.CurrentVersion, store = v.Number, true
	}
	v.Missing = false
	v.Expires, v.ValidTo = !m.until.IsZero(), m.until
	if m.described {
		v.Description = m.description
		for _, o := range f.others {
			if j := versionOf(o.after, v.MaterialID); j >= 0 {
				o.after.Versions[j].Description = m.description
			}
		}
	}
	if (k.State == statePendingImport.String() || late) && materialComplete(k) {
		k.State = stateEnabled.String()
	}
	number = v.Number
	f.settle()
	return number, store, nil
}

// addNew adds material that the family does not know, if i says so.
func (f *family) addNew(m *incoming, i int, first bool) (number uint32, store bool, err error) {
	k := f.own.after
	if f.isReplica() {
		return 0, false, invalidState("%s is a replica, and its primary key has no key material yet.", m.view.arn)
	}
	if i >= 0 {
		return 0, false, incorrect("The key material (id: %s) is already associated with the KMS key %s: import it with ImportType %s.", m.id, m.view.arn, existingMaterial)
	}
	if p := pendingVersion(k); p >= 0 {
		return 0, false, wire.NewError(wire.KMSInvalidStateException, "New key material (id: %s) cannot be imported into KMS key %s, because another key material (id: %s) is pending rotation.",
			m.id, m.view.idText, engine.MaterialID(k.Versions[p].MaterialID))
	}
	v := keystore.Version{
		Number: nextVersion(k), MaterialID: m.id, Created: m.now, Description: m.description,
		Expires: !m.until.IsZero(), ValidTo: m.until,
	}
	if first {
		k.CurrentVersion, k.PublicKey = v.Number, m.public
		if k.State == statePendingImport.String() {
			k.State = stateEnabled.String()
		}
	} else {
		v.Pending = pendingRotation
	}
	k.Versions = append(k.Versions, v)
	for _, o := range f.others {
		inherit(o.after, k)
	}
	f.settle()
	return v.Number, true, nil
}

// remove deletes the material of a version of the family's own key.
func (f *family) remove(i int, t *keystore.Txn) {
	k := f.own.after
	v := &k.Versions[i]
	if !v.Missing {
		t.DeleteMaterial(k.Ref(), v.Number, keystore.AnyRevision)
	}
	v.Missing, v.Expires, v.ValidTo = true, false, time.Time{}
	switch {
	case v.Pending == "":
		switch state, _ := parseState(k.State); state {
		case stateEnabled, stateDisabled, stateUpdating:
			k.State = statePendingImport.String()
		}
	case f.isReplica():
		f.settle()
	default:
		id := v.MaterialID
		k.Versions = slices.Delete(k.Versions, i, i+1)
		for _, o := range f.others {
			j := versionOf(o.after, id)
			if j < 0 {
				continue
			}
			if ov := &o.after.Versions[j]; !ov.Missing {
				t.DeleteMaterial(o.after.Ref(), ov.Number, keystore.AnyRevision)
			}
			o.after.Versions = slices.Delete(o.after.Versions, j, j+1)
		}
	}
}

// settle writes into every record of the family what the pending version waits
// for.
func (f *family) settle() {
	keys := []*keystore.Key{f.own.after}
	for _, o := range f.others {
		keys = append(keys, o.after)
	}
	settlePending(keys)
}

// settlePending is settle for the records of all keys of a family, in any order.
func settlePending(keys []*keystore.Key) {
	state := pendingRotation
	for _, k := range keys {
		if p := pendingVersion(k); p < 0 || k.Versions[p].Missing {
			state = pendingImport
		}
	}
	for _, k := range keys {
		if p := pendingVersion(k); p >= 0 {
			k.Versions[p].Pending = state
		}
	}
}

// write puts the related keys that changed, and holds the others to what was read
// of them. The caller puts its own.
func (f *family) write(t *keystore.Txn) {
	for _, o := range f.others {
		if o.changed() {
			t.PutKey(o.after, o.before.Revision)
		} else {
			t.ExpectKey(o.before.Ref(), o.before.Revision)
		}
	}
}

func (c *change) changed() bool {
	a, b := c.before, c.after
	return a.State != b.State || a.CurrentVersion != b.CurrentVersion || !bytes.Equal(a.PublicKey, b.PublicKey) ||
		!slices.EqualFunc(a.Versions, b.Versions, func(a, b keystore.Version) bool { return a == b })
}

// changes returns own and those of the others that were changed.
func (f *family) changes() []change {
	all := []change{f.own}
	for _, o := range f.others {
		if o.changed() {
			all = append(all, o)
		}
	}
	return all
}

// dropChanged makes requests that start from now on see changed keys, and purges
// from memory what was unwrapped of their material. v is the view under which the
// change was made, nil without one.
func (s *Service) dropChanged(v *keyView, all []change) {
	if v != nil {
		v.handle.Purge()
	}
	for _, c := range all {
		ref := c.before.Ref()
		if old, ok := s.views.Get(ref); ok {
			old.handle.Purge()
		}
		s.dropView(ref)
		spec, ok := engine.ParseSpec(c.before.Spec)
		if !ok {
			continue
		}
		for _, k := range []*keystore.Key{c.before, c.after} {
			s.handleCache(spec).Invalidate(handleName{ref, k.CurrentVersion, len(k.Versions)})
		}
	}
}

// expireDue deletes imported material whose time is over.
func (s *Service) expireDue(rec *keystore.Key, now time.Time) error {
	if rec.Destroying {
		return nil // it goes with the key
	}
	k := *rec
	f, err := s.family(&k)
	if err != nil {
		return err
	}
	t := s.store.NewTxn()
	removed := false
	for {
		i := slices.IndexFunc(k.Versions, func(v keystore.Version) bool { return expired(&v, now) })
		if i < 0 {
			break
		}
		f.remove(i, t)
		removed = true
	}
	if !removed {
		return nil
	}
	f.write(t)
	f.eraseLater(t)
	t.PutKey(&k, rec.Revision)
	if err := commit(t); err != nil {
		return err
	}
	s.dropChanged(nil, f.changes())
	return nil
}

// expired tells whether the time of a version's material is over.
func expired(v *keystore.Version, now time.Time) bool {
	return v.Expires && !v.Missing && !now.Before(v.ValidTo)
}

// overdue tells whether the time of a permanent version's material is over.
func overdue(k *keystore.Key, now time.Time) bool {
	first := earliestExpiry(k)
	return !first.IsZero() && !now.Before(first)
}

// earliestExpiry returns when the first of a key's permanent versions expires, the
// zero time when none does.
func earliestExpiry(k *keystore.Key) (first time.Time) {
	for i := range k.Versions {
		if v := &k.Versions[i]; v.Pending == "" && v.Expires && !v.Missing && (first.IsZero() || v.ValidTo.Before(first)) {
			first = v.ValidTo
		}
	}
	return first
}

// available checks, when a handle fetches material, that the key's record still
// has that version, and that its time is not over.
func available(k *keystore.Key, number uint32, now time.Time, arn string) error {
	for i := range k.Versions {
		if v := &k.Versions[i]; v.Number == number {
			if v.Missing || expired(v, now) {
				return invalidState("%s is pending import.", arn)
			}
			return nil
		}
	}
	return invalidState("%s is being changed. Try again.", arn)
}

// at returns the view as it is at a time: a key of which imported material has
// expired is pending import, whether or not the material is gone yet.
func (v *keyView) at(now time.Time) *keyView {
	if v.expires == 0 || now.UnixNano() < v.expires {
		return v
	}
	return v.overdue()
}

// overdue is the rare part of at.
func (v *keyView) overdue() *keyView {
	switch v.state {
	case stateEnabled, stateDisabled, stateUpdating:
		late := *v
		late.state = statePendingImport
		return &late
	}
	return v
}
