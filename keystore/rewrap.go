package keystore

import (
	"context"
	"crypto/subtle"
	"encoding/hex"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/cockroachdb/pebble/v2"

	"keymill/hsm"
	"keymill/hsm/arena"
)

// # Moving to another domain key
//
// What the root has wrapped is of two kinds: the key-encryption key (KEK) of every
// material, and the store key in the header. Everything else is sealed under the store
// key and does not know the root. Moving the store to another domain key, of the
// same root or of another, wraps all of these anew; neither a KEK nor the store key
// changes, so nothing that is cached, open or sealed does.
//
// The steps, each of which is durable before the next begins:
//
//	begin   one commit writes the record rewrap/pending, which names the domain key to
//	        leave (source) and the one to go to (target). From the moment it is
//	        applied, new materials are wrapped under the target.
//	move    every material whose KEK is under another domain key is read, its KEK
//	        decrypted and encrypted again, and the record put back with the
//	        revision that was read as expectation. What changed meanwhile is read
//	        again.
//	check   every material is looked at once more.
//	finish  one commit writes the header with the store key under the target, deletes
//	        rewrap/pending and notes the source as retired.
//
// The invariants:
//
//  1. Once begin is applied, no commit writes a material under the source. A caller
//     may have sealed one before and come to commit it after: under the lock that
//     orders commits, apply compares the domain keys of the transaction's
//     materials with those that are being left, and does nothing when one of them
//     is. Commit then has its KEK wrapped under the target, outside the lock, and
//     applies again. So a pass that began after begin, and left nothing out, has
//     found everything, and check cannot be overtaken.
//  2. Until finish, the source opens the store; after it, the target does. Nothing needs
//     the source any more after finish, and the target is needed from begin on: who
//     opens a store with rewrap/pending in it gives it both. The record says
//     where they are.
//  3. All state is in the records: a process that dies at any moment leaves a store that
//     the next one opens, and a move that is begun again from the start skips what is
//     under the target already.
//
// Going back (RewrapBack) is the same with the two exchanged: the record then says that
// the header's own domain key is the target, and finish leaves the header as it is.
//
// A retired domain key opens nothing in this store any more, but everything in backups
// that were made before finish. Its record rewrap/retired/ID stays until the key is
// destroyed (RetiredDomainKeys, ForgetDomainKey): that is an operator's decision.

const (
	pendingRewrap = "rewrap/pending"
	retiredPrefix = "rewrap/retired/"
)

// A Place says where a root of trust is found. It holds no secret.
type Place struct {
	Kind string `json:"kind"` // hsm.KindSoftware or hsm.KindPKCS11

	// Of a token.
	Module  string `json:"module,omitempty"`
	Token   string `json:"token,omitempty"` // label
	PINFile string `json:"pin_file,omitempty"`
}

// String names the place for people.
func (p Place) String() string {
	if p.Kind == hsm.KindPKCS11 {
		return fmt.Sprintf("token %q of %s", p.Token, p.Module)
	}
	return "the software root"
}

// A Rewrap is a move to another domain key that has begun and not finished.
type Rewrap struct {
	Source, Target hsm.DomainKeyID
	From, To       Place // where the two are
	Begun          time.Time
	Revision       uint64 // of the record; filled on read
}

// A RetiredKey is a domain key that the store has moved away from.
type RetiredKey struct {
	ID      hsm.DomainKeyID
	Place   Place
	Retired time.Time
}

type placeRecord struct {
	Kind    string `cbor:"1,keyasint,omitempty"`
	Module  string `cbor:"2,keyasint,omitempty"`
	Token   string `cbor:"3,keyasint,omitempty"`
	PINFile string `cbor:"4,keyasint,omitempty"`
}

type rewrapRecord struct {
	Source []byte      `cbor:"1,keyasint,omitempty"`
	Target []byte      `cbor:"2,keyasint,omitempty"`
	From   placeRecord `cbor:"3,keyasint,omitempty"`
	To     placeRecord `cbor:"4,keyasint,omitempty"`
	Begun  int64       `cbor:"5,keyasint,omitempty"`
}

type retiredRecord struct {
	Place   placeRecord `cbor:"1,keyasint,omitempty"`
	Retired int64       `cbor:"2,keyasint,omitempty"`
}

func encodeRewrap(r *Rewrap) ([]byte, error) {
	v := rewrapRecord{Source: r.Source[:], Target: r.Target[:], From: placeRecord(r.From), To: placeRecord(r.To)}
	if err := times(nil, &v.Begun, r.Begun); err != nil {
		return nil, err
	}
	return encode(&v)
}

// ParseRewrap reads the value of the record of a move that has begun.
func ParseRewrap(b []byte) (*Rewrap, error) {
	var v rewrapRecord
	if err := decode(b, &v); err != nil {
		return nil, err
	}
	if len(v.Source) != len(hsm.DomainKeyID{}) || len(v.Target) != len(hsm.DomainKeyID{}) || v.Begun < 0 {
		return nil, errValue
	}
	r := &Rewrap{
		Source: hsm.DomainKeyID(v.Source), Target: hsm.DomainKeyID(v.Target),
		From: Place(v.From), To: Place(v.To), Begun: getTime(v.Begun),
	}
	if r.Source == r.Target || !r.From.known() || !r.To.known() {
		return nil, errValue
	}
	return r, nil
}

func (p Place) known() bool { return p.Kind == hsm.KindSoftware || p.Kind == hsm.KindPKCS11 }

// ParseRetired reads the record of a retired domain key.
func ParseRetired(name string, b []byte) (*RetiredKey, error) {
	id, err := hex.DecodeString(strings.TrimPrefix(name, retiredPrefix))
	if err != nil || len(id) != len(hsm.DomainKeyID{}) || name != retiredPrefix+hex.EncodeToString(id) {
		return nil, errValue
	}
	var v retiredRecord
	if err := decode(b, &v); err != nil {
		return nil, err
	}
	k := &RetiredKey{ID: hsm.DomainKeyID(id), Place: Place(v.Place), Retired: getTime(v.Retired)}
	if v.Retired < 0 || !k.Place.known() {
		return nil, errValue
	}
	return k, nil
}

// domain is under which domain key KEKs are wrapped. It is replaced as a whole.
type domain struct {
	target  hsm.DomainKeyID
	retired map[hsm.DomainKeyID]bool // those that this process has seen left
}

// leave returns the state after a move from source to target has begun.
func (d *domain) leave(source, target hsm.DomainKeyID) *domain {
	next := &domain{target: target, retired: map[hsm.DomainKeyID]bool{source: true}}
	if d != nil {
		for id := range d.retired {
			next.retired[id] = true
		}
	}
	delete(next.retired, target)
	return next
}

// findDomain is part of Open: it looks whether a move has begun.
func (s *Store) findDomain() error {
	own := s.Header().DomainKey
	p, err := s.PendingRewrap()
	switch {
	case err != nil:
		return err
	case p == nil:
		s.under.Store(&domain{target: own})
	case p.Source != own && p.Target != own:
		return tampered(Name{Kind: KindRecord, Name: pendingRewrap}.key(), "names neither the domain key of the header as the one to leave nor as the one to go to")
	default:
		s.under.Store((*domain)(nil).leave(p.Source, p.Target))
	}
	return nil
}

// PendingRewrap returns the move that has begun and not finished, nil when there is none.
func (s *Store) PendingRewrap() (*Rewrap, error) {
	value, rev, err := s.Get(pendingRewrap)
	if errors.Is(err, ErrNotFound) {
		return nil, nil
	} else if err != nil {
		return nil, err
	}
	r, err := ParseRewrap(value)
	if err != nil {
		return nil, tampered(Name{Kind: KindRecord, Name: pendingRewrap}.key(), err.Error())
	}
	r.Revision = rev
	return r, nil
}

// A move is the part of a commit that changes under which domain key the store is.
type move struct {
	under  *domain
	header *Header // nil unless it changes
	record []byte  // the header's
}

// write adds the header to the commit's batch.
func (m *move) write(batch *pebble.Batch) {
	if m.header != nil {
		batch.Set(Name{Kind: KindHeader}.key(), m.record, nil)
	}
}

// apply puts the change in force, with Store.mu held and the batch applied.
func (m *move) apply(s *Store) {
	s.under.Store(m.under)
	if m.header != nil {
		s.header.Store(m.header)
	}
}

// A sealedPut is a material that a transaction writes. Its plain is among the
// transaction's own, which wipes it.
type sealedPut struct {
	name   Name
	domain hsm.DomainKeyID
	plain  []byte
}

// errRetired is apply's: a material of the transaction is under a domain key that is being
// left. It is a conflict to whoever hears of it.
var errRetired = fmt.Errorf("%w: material was sealed under a domain key that is no longer in use; seal it again", ErrConflict)

// retired reports whether a material of the transaction must be wrapped anew. Called with
// Store.mu held.
func (t *Txn) retired() bool {
	left := t.s.under.Load().retired
	for _, put := range t.kept {
		if left[put.domain] {
			return true
		}
	}
	return false
}

// applyRewrapped wraps the KEKs of the transaction's materials under the present domain key
// and applies it. When that changes once more in between, it gives up.
func (t *Txn) applyRewrapped(ctx context.Context) (*inflight, error) {
	u := t.s.under.Load()
	for _, put := range t.kept {
		if !u.retired[put.domain] {
			continue
		}
		m, err := decodeMaterial(&put.name, put.plain)
		if err != nil {
			return nil, fmt.Errorf("%w: %v", ErrInvalid, err)
		}
		kek, err := t.s.unwrap.do(ctx, m.DomainKey, m.WrappedKEK)
		if errors.Is(err, hsm.ErrNoDomainKey) {
			return nil, errRetired // its root is gone already
		}
		if err == nil {
			m.DomainKey = u.target
			m.WrappedKEK, err = t.s.wrap.do(ctx, u.target, kek) // wipes kek
		}
		if err != nil {
			return nil, fmt.Errorf("keystore: could not wrap a key-encryption key anew: %w", err)
		}
		plain, ok := t.value(encodeMaterial(m))
		if !ok {
			return nil, t.err
		}
		put.domain, put.plain = u.target, plain
	}
	return t.apply(ctx)
}

// BeginRewrap records that the store is to move to the domain key r.Target, which its root
// must hold, and puts that in force for new materials. r.Source is the header's domain
// key; the rest of r is kept for whoever opens the store. ErrConflict: a move has begun
// already.
func (s *Store) BeginRewrap(ctx context.Context, r Rewrap) error {
	if !s.rewrapping.TryLock() {
		return ErrRewrapping
	}
	defer s.rewrapping.Unlock()
	r.Source = s.Header().DomainKey
	if r.Target == r.Source {
		return fmt.Errorf("%w: the store is under domain key %s already", ErrInvalid, r.Target)
	}
	if err := s.root.CheckDomainKey(ctx, r.Target); err != nil {
		return fmt.Errorf("keystore: could not look for domain key %s: %w", r.Target, err)
	}
	return s.recordMove(ctx, &r, 0)
}

// RewrapBack turns a move that has not finished round: what is under its target is to go
// back under its source.
func (s *Store) RewrapBack(ctx context.Context) error {
	if !s.rewrapping.TryLock() {
		return ErrRewrapping
	}
	defer s.rewrapping.Unlock()
	p, err := s.PendingRewrap()
	switch {
	case err != nil:
		return err
	case p == nil:
		return ErrNoRewrap
	case p.Target == s.Header().DomainKey:
		return nil // it goes back already
	}
	back := Rewrap{Source: p.Target, Target: p.Source, From: p.To, To: p.From, Begun: p.Begun}
	return s.recordMove(ctx, &back, p.Revision)
}

// RelocateRewrap records that the target of the move that has begun is found elsewhere.
func (s *Store) RelocateRewrap(ctx context.Context, to Place) error {
	if !s.rewrapping.TryLock() {
		return ErrRewrapping
	}
	defer s.rewrapping.Unlock()
	p, err := s.PendingRewrap()
	switch {
	case err != nil:
		return err
	case p == nil:
		return ErrNoRewrap
	case p.To == to:
		return nil
	}
	p.To = to
	return s.recordMove(ctx, p, p.Revision)
}

func (s *Store) recordMove(ctx context.Context, r *Rewrap, expect uint64) error {
	if !r.From.known() || !r.To.known() {
		return fmt.Errorf("%w: a root of trust of unknown kind", ErrInvalid)
	}
	value, err := encodeRewrap(r)
	if err != nil {
		return err
	}
	txn := s.NewTxn()
	txn.Put(pendingRewrap, value, expect)
	txn.move = &move{under: s.under.Load().leave(r.Source, r.Target)}
	_, err = txn.Commit(ctx)
	return err
}

// finishRewrap is the commit that ends a move. Everything has been checked.
func (s *Store) finishRewrap(ctx context.Context, p *Rewrap) error {
	retired := retiredRecord{Place: placeRecord(p.From)}
	if err := times(nil, &retired.Retired, s.clock()); err != nil {
		return err
	}
	value, err := encode(&retired)
	if err != nil {
		return err
	}
	txn := s.NewTxn()
	txn.Delete(pendingRewrap, p.Revision)
	txn.Put(retiredPrefix+p.Source.String(), value, AnyRevision)
	txn.Delete(retiredPrefix+p.Target.String(), AnyRevision) // it may have been one before
	txn.move = &move{under: s.under.Load()}
	if s.Header().DomainKey != p.Target {
		if txn.move.header, txn.move.record, err = s.rewrapHeader(ctx, p.Target); err != nil {
			return err
		}
	}
	_, err = txn.Commit(ctx)
	return err
}

// rewrapHeader returns the header with the store key under another domain key.
func (s *Store) rewrapHeader(ctx context.Context, target hsm.DomainKeyID) (*Header, []byte, error) {
	old := s.Header()
	storeKey, err := s.unwrapStoreKey(ctx, old)
	if err != nil {
		return nil, nil, err
	}
	defer arena.Wipe(storeKey)
	if !old.authentic(storeKey) {
		return nil, nil, fmt.Errorf("%w: it unwraps another store key than before", ErrWrongRoot)
	}
	items := []hsm.Item{{In: storeKey}}
	s.root.Encrypt(ctx, target, items)
	if err := items[0].Err; err != nil {
		return nil, nil, fmt.Errorf("keystore: could not wrap the store key: %w", err)
	}
	next := &Header{Format: old.Format, StoreID: old.StoreID, DomainKey: target, Created: old.Created, WrappedKey: items[0].Out}
	if n := len(next.WrappedKey); n == 0 || n > maxWrapped {
		return nil, nil, fmt.Errorf("keystore: the root wrapped the store key to %d bytes", n)
	}
	// The one wrapped key on which everything depends: see it open before it replaces
	// the one that does.
	again, err := s.unwrapStoreKey(ctx, next)
	if err != nil {
		return nil, nil, err
	}
	defer arena.Wipe(again)
	if subtle.ConstantTimeCompare(storeKey, again) != 1 {
		return nil, nil, fmt.Errorf("%w: domain key %s does not give back the store key that it wrapped", ErrWrongRoot, target)
	}
	return next, next.marshal(storeKey), nil
}

// RetiredDomainKeys returns the domain keys that the store has moved away from and that
// have not been forgotten.
func (s *Store) RetiredDomainKeys() ([]RetiredKey, error) {
	var keys []RetiredKey
	for after := ""; ; {
		records, more, err := s.Scan(retiredPrefix, after, 100)
		if err != nil {
			return nil, err
		}
		for _, r := range records {
			k, err := ParseRetired(r.Name, r.Value)
			if err != nil {
				return nil, tampered(Name{Kind: KindRecord, Name: r.Name}.key(), err.Error())
			}
			keys, after = append(keys, *k), r.Name
		}
		if !more {
			return keys, nil
		}
	}
}

// ForgetDomainKey deletes the record of a retired domain key once destroy, which destroys
// the key, has returned without error. Before that it makes sure that the store needs
// it nowhere: that no move has begun, and that neither the header nor any
// material is under it; ErrInvalid says otherwise.
func (s *Store) ForgetDomainKey(ctx context.Context, id hsm.DomainKeyID, destroy func() error) error {
	if !s.rewrapping.TryLock() {
		return ErrRewrapping
	}
	defer s.rewrapping.Unlock()
	if p, err := s.PendingRewrap(); err != nil {
		return err
	} else if p != nil {
		return fmt.Errorf("%w: the move to another domain key that has begun must finish first", ErrInvalid)
	}
	name := retiredPrefix + id.String()
	_, rev, err := s.Get(name)
	if errors.Is(err, ErrNotFound) {
		return fmt.Errorf("%w: the store has not moved away from domain key %s", ErrInvalid, id)
	} else if err != nil {
		return err
	}
	if s.Header().DomainKey == id {
		return fmt.Errorf("%w: domain key %s opens the store", ErrInvalid, id)
	}
	// Nobody can write a material under it meanwhile: SealMaterial does not use it, and
	// Commit refuses what a process that has seen the move had sealed before.
	err = s.eachMaterial(ctx, func(m *Material) error {
		if m.DomainKey == id {
			return fmt.Errorf("%w: domain key %s is still needed by %s", ErrInvalid, id, materialName(m.Ref, m.Version))
		}
		return nil
	})
	if err != nil {
		return err
	}
	if err := destroy(); err != nil {
		return err
	}
	txn := s.NewTxn()
	txn.Delete(name, rev)
	_, err = txn.Commit(ctx)
	return err
}
