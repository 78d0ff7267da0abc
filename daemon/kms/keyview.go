package kms

import (
	"context"
	"errors"
	"fmt"
	"strings"

	"keymill/daemon/quota"
	"keymill/daemon/wire"
	"keymill/engine"
	"keymill/keystore"
)

// A keyView is all that requests need of one KMS key: its record, decoded and
// with its texts prepared, and the handle on its cryptography. It is immutable;
// a change to the key makes a new one.
//
// Views and handles are cached apart. A view is cheap to build (one record) and
// goes with every change of the key; a handle is dear (its key-encryption key
// comes through the root of trust) and goes only when the material it may use
// changes. Both caches are bounded; a view may outlive its handle's place in
// the cache, then the handle is cold and warms up again on use.
type keyView struct {
	rec    *keystore.Key
	ref    keystore.Ref
	id     engine.KeyID
	idText string
	arn    string
	spec   engine.Spec
	usage  engine.Usage
	state  keyState
	handle engine.Key
	bucket *quota.Bucket // the key's limit, nil without one; the same for all views of a key
	store  *keyStore     // the custom key store the key lives in, nil for none
	use    *keyUse       // what was counted of the key's use through this view

	// read is a ticket of before rec was read; see shelf.go.
	read ticket

	// expires is when the first of the imported material that the key needs does, in
	// nanoseconds since 1970; 0 is never. See at.
	expires int64

	// materialIDs are the texts of the versions' KeyMaterialIds, in the order of
	// rec.Versions; nil for keys whose material has no visible id.
	materialIDs []string
}

// materialText returns the KeyMaterialId's text for the answer, "" for keys
// whose material ids AWS KMS does not show.
func (v *keyView) materialText(id engine.MaterialID) string {
	for i := range v.materialIDs {
		if v.rec.Versions[i].MaterialID == id {
			return v.materialIDs[i]
		}
	}
	return ""
}

// currentMaterial returns the text of the current KeyMaterialId, or "".
func (v *keyView) currentMaterial() string {
	for i := range v.materialIDs {
		if v.rec.Versions[i].Number == v.rec.CurrentVersion {
			return v.materialIDs[i]
		}
	}
	return ""
}

// view returns the view of the key ref, keystore.ErrNotFound when there is none.
func (s *Service) view(ref keystore.Ref) (*keyView, error) { return s.viewFor(nil, ref) }

// view is the service's, for a request.
func (x *exchange) view(ref keystore.Ref) (*keyView, error) { return x.svc.viewFor(x, ref) }

// viewFor is view for the request x; nil is none.
func (s *Service) viewFor(x *exchange, ref keystore.Ref) (*keyView, error) {
	if v, ok := s.views.Get(ref); ok {
		return v, nil
	}
	ref.Region = s.ownRegion(ref.Region)
	if !s.shelf.has(ref) {
		x.mayWait() // to read it, or for somebody who does
	}
	return s.views.Load(ref, func() (*keyView, error) {
		ticket := s.shelf.ticket(ref)
		if rec := s.shelf.key(ref); rec != nil {
			return s.buildViewAt(rec, ticket)
		}
		rec, err := s.store.Key(ref)
		if err != nil {
			return nil, err
		}
		if rec.Destroying {
			return nil, keystore.ErrNotFound
		}
		return s.buildViewAt(rec, ticket)
	})
}

// ownRegion returns region as a string that outlives the request and that all keys
// share.
func (s *Service) ownRegion(region string) string {
	if own, ok := s.regions.Intern([]byte(region)); ok {
		return own
	}
	return strings.Clone(region)
}

func (s *Service) buildView(rec *keystore.Key) (*keyView, error) {
	return s.buildViewAt(rec, noTicket)
}

// buildViewAt is buildView of a record that was read since the ticket was taken.
func (s *Service) buildViewAt(rec *keystore.Key, at ticket) (*keyView, error) {
	v := &keyView{
		rec:  rec,
		read: at,
		ref:  keystore.Ref{Region: rec.Region, ID: rec.ID},
		id:   engine.KeyID{ID: rec.ID, MultiRegion: rec.MultiRegion},
	}
	idText := v.id.String()
	v.arn = keyARN(rec.Region, rec.Account, idText)
	v.idText = v.arn[len(v.arn)-len(idText):] // one copy of it
	var ok [3]bool
	v.spec, ok[0] = engine.ParseSpec(rec.Spec)
	v.usage, ok[1] = engine.ParseUsage(rec.Usage)
	v.state, ok[2] = parseState(rec.State)
	if ok != [3]bool{true, true, true} {
		return nil, fmt.Errorf("record of %s has spec %q, usage %q, state %q: written by a newer version?", v.arn, rec.Spec, rec.Usage, rec.State)
	}
	if rec.CustomKeyStore != "" {
		if v.store = s.storeOf(rec); v.store == nil {
			return nil, fmt.Errorf("record of %s names the custom key store %s, which does not exist", v.arn, rec.CustomKeyStore)
		}
		v.state = v.store.stateIn(v.state)
	}
	v.bucket = s.keyBucket(v.ref)
	if first := earliestExpiry(rec); !first.IsZero() {
		v.expires = first.UnixNano()
	}
	v.use = &keyUse{ref: v.ref}
	if v.spec.Symmetric() && v.store == nil {
		for i := range rec.Versions {
			v.materialIDs = append(v.materialIDs, engine.MaterialID(rec.Versions[i].MaterialID).String())
		}
	}
	handle, err := s.handleCache(v.spec).Load(v.handleName(), func() (*engine.Key, error) {
		h := s.newHandle(v)
		return &h, nil
	})
	if err != nil {
		return nil, err
	}
	v.handle = *handle
	return v, nil
}

// keyBucket returns the limit of a key. It is kept apart from the views, which go
// with every change of the key: nobody gets a full bucket by editing a key.
func (s *Service) keyBucket(ref keystore.Ref) *quota.Bucket {
	if b, ok := s.buckets.Get(ref); ok {
		return b
	}
	b, _ := s.buckets.Load(ref, func() (*quota.Bucket, error) { return s.quota.NewKeyBucket(), nil })
	return b
}

// A handleName tells the handles of one key apart by the material they know, so
// that a view built while the key rotates cannot leave an outdated handle behind.
type handleName struct {
	ref      keystore.Ref
	current  uint32
	versions int
}

func (v *keyView) handleName() handleName {
	return handleName{v.ref, v.rec.CurrentVersion, len(v.rec.Versions)}
}

// handleCache returns the cache that handles of a spec are kept in.
func (s *Service) handleCache(spec engine.Spec) *keystore.Cache[handleName, engine.Key] {
	switch spec {
	case engine.MLDSA44, engine.MLDSA65, engine.MLDSA87:
		return s.bulky
	}
	return s.handles
}

func (s *Service) newHandle(v *keyView) engine.Key {
	versions := make([]engine.KeyVersion, len(v.rec.Versions))
	current := 0
	for i, ver := range v.rec.Versions {
		versions[i] = engine.KeyVersion{Number: ver.Number, MaterialID: ver.MaterialID}
		if ver.Number == v.rec.CurrentVersion {
			current = i
		}
	}
	src := func(ctx context.Context, version uint32) ([]byte, error) {
		secret, err := s.material(ctx, v, version, false)
		for try := 0; errors.Is(err, keystore.ErrNotFound) && try < 4; try++ {
			// It went after the record was read; the new record says why.
			secret, err = s.material(ctx, v, version, true)
		}
		return secret, err
	}
	if v.store != nil {
		return s.newStoreHandle(v, versions, current, src)
	}
	h := engine.NewLocalKey(v.id, v.spec, v.usage, versions, current, v.rec.PublicKey, src)
	if s.shelved(v.rec) {
		ref := v.ref
		engine.Remember(h, func(version uint32) []byte { return s.shelf.secret(ref, version) })
	}
	return h
}

// material opens the material of one version of v's key, for its handle. v's own
// record says whether that may be, unless the key has changed since or the caller
// wants a newer one.
func (s *Service) material(ctx context.Context, v *keyView, version uint32, newer bool) ([]byte, error) {
	ticket := s.shelf.ticket(v.ref)
	rec := v.rec
	if newer || ticket != v.read {
		// The key may have been disabled or deleted since the handle was made, and
		// after its caches were purged: look before fetching again.
		var err error
		if rec, err = s.store.Key(v.ref); errors.Is(err, keystore.ErrNotFound) {
			return nil, keyNotFound(v.arn)
		} else if err != nil {
			return nil, err
		}
	}
	if state, ok := parseState(rec.State); ok {
		if err := cryptography.check(state, v.arn); err != nil {
			s.dropView(v.ref) // see updateKey
			return nil, err
		}
	}
	if err := available(rec, version, s.clock(), v.arn); err != nil {
		return nil, err
	}
	secret, err := s.store.OpenMaterial(ctx, keystore.Identity{Account: rec.Account, Region: rec.Region, Spec: rec.Spec, ID: rec.ID, Version: version})
	if err == nil && s.shelved(rec) && version == rec.CurrentVersion {
		s.shelf.put(ticket, rec, secret)
	}
	return secret, err
}

// shelved tells whether the key of a record goes onto the shelf.
func (s *Service) shelved(rec *keystore.Key) bool {
	return rec.Origin == originLocal && rec.CustomKeyStore == "" && len(rec.PublicKey) == 0 && !rec.Destroying
}

// dropView makes requests that start from now on read the key's record anew.
func (s *Service) dropView(ref keystore.Ref) {
	s.shelf.drop(ref)
	s.views.Invalidate(ref)
}

// dropHandle purges the key's material and derived keys from memory and makes
// the next view start cold: for disable, deletion, expiry and rotation.
func (s *Service) dropHandle(v *keyView) {
	s.shelf.drop(v.ref)
	s.handleCache(v.spec).Invalidate(v.handleName())
	v.handle.Purge()
}

// updateKey changes the record of the key behind v: change is given a copy to
// alter, and the transaction for further records. It is tried again on the
// newest record when another request changed the key first, after the row's
// state rule passed on that record too. The view is dropped before it returns, also
// when it refuses: what made the record differ from the view may be a request that
// has not dropped it yet, and nobody who comes after this answer may see less.
func (x *exchange) updateKey(v *keyView, change func(k *keystore.Key, t *keystore.Txn) error) error {
	s := x.svc
	defer s.dropView(v.ref)
	for range commitRetries {
		rec, err := s.store.Key(v.ref)
		if errors.Is(err, keystore.ErrNotFound) || err == nil && rec.Destroying {
			return keyNotFound(v.arn)
		} else if err != nil {
			return err
		}
		state, ok := parseState(rec.State)
		if !ok {
			return fmt.Errorf("record of %s has state %q", v.arn, rec.State)
		}
		if err := x.row.states.check(state, v.arn); err != nil {
			return err
		}
		next := *rec
		t := s.store.NewTxn()
		if err := change(&next, t); err != nil {
			return err
		}
		t.PutKey(&next, rec.Revision)
		if err = commit(t); errors.Is(err, keystore.ErrConflict) {
			continue
		}
		return err
	}
	return errBusy
}

// commitRetries bounds how often a change is tried again when others change the
// same records at the same time. Each conflict means that another change went
// through, so only a crowd on one key ever comes near it.
const commitRetries = 64

var errBusy = errors.New("too many changes of the same record at the same time")

func keyARN(region, account, id string) string {
	return "arn:" + Partition(region) + ":kms:" + region + ":" + account + ":key/" + id
}

func aliasARN(region, account, name string) string {
	return "arn:" + Partition(region) + ":kms:" + region + ":" + account + ":" + name
}

func keyNotFound(arn string) error {
	return wire.NewError(wire.NotFoundException, "Key '%s' does not exist", arn)
}
