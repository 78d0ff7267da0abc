package keystore

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"keymill/hsm/arena"
)

// # Grants
//
// A grant is one record, and a change to it touches three or four others of its
// own size or smaller, so the fifty-thousandth grant of a key costs what the
// first did:
//
//	g  region, key, grant id                            the grant
//	h  region, key, grantee's tag " " grant id          a copy: what may this grantee do?
//	q  region, retiring principal's tag " " key " " id  nothing: what may this principal retire?
//	N  region, key, fingerprint                         the id: does the same grant exist already?
//	G  region, key                                      how many there are
//
// Storage keys are not sealed, so principals are in them as hashes, their tags. The
// copy under 'h' lets whoever decides on a request read all grants of one grantee
// in one scan that does not pass those of others.
//
// AWS KMS calls two grants the same when key, name, issuer, principals,
// operations and constraints are. The fingerprint stands for all of these but the
// key: SHA-256 of the record without its date. Only grants with a name have the
// entry; without one, none is like another.
//
// All derived records are written and removed by the store itself, under the
// same mutex that decides on the commit. So the counter is exact, and of many who
// create the same named grant at once one succeeds.

// A Grant lets a principal use a key. It never changes.
type Grant struct {
	Ref        Ref    // of its key
	ID         string // 64 lower-case hexadecimal digits
	Name       string // may be empty
	Grantee    string // principal, no spaces
	Retiring   string // principal, no spaces; may be empty
	Issuer     string // account that made the grant
	Operations []string
	Equals     []Pair // encryption context, sorted by key; nil is no constraint, empty is no context
	Subset     []Pair // encryption context, sorted by key; empty is no constraint
	Created    time.Time

	Revision uint64 // of the record; filled on read, ignored on write
}

// A Pair is one entry of an encryption context.
type Pair struct{ Key, Value string }

// ErrLimit: there are as many records of the kind as the commit allows; nothing
// was changed.
var ErrLimit = errors.New("keystore: no room for another")

// Bounds of a grant, far above those of AWS KMS.
const (
	maxGrantOperations = 64
	maxGrantPairs      = 64
	maxPrincipal       = 512
)

type grantRecord struct {
	Name       string       `cbor:"1,keyasint,omitempty"`
	Grantee    string       `cbor:"2,keyasint,omitempty"`
	Retiring   string       `cbor:"3,keyasint,omitempty"`
	Issuer     string       `cbor:"4,keyasint,omitempty"`
	Operations []string     `cbor:"5,keyasint,omitempty"`
	Exact      bool         `cbor:"6,keyasint,omitempty"` // Equals counts, even empty
	Equals     []pairRecord `cbor:"7,keyasint,omitempty"`
	Subset     []pairRecord `cbor:"8,keyasint,omitempty"`
	Created    int64        `cbor:"9,keyasint,omitempty"`
}

type pairRecord struct {
	Key   string `cbor:"1,keyasint,omitempty"`
	Value string `cbor:"2,keyasint,omitempty"`
}

// grantNameRecord names the grant that has the name and the fingerprint.
type grantNameRecord struct {
	Grant string `cbor:"1,keyasint,omitempty"`
}

// ValidGrantID reports whether a text can be a grant's ID.
func ValidGrantID(id string) bool {
	if len(id) != 2*sha256.Size {
		return false
	}
	for i := range len(id) {
		if c := id[i]; (c < '0' || c > '9') && (c < 'a' || c > 'f') {
			return false
		}
	}
	return true
}

func grantName(ref Ref, id string) Name {
	return Name{Kind: KindGrant, Region: ref.Region, ID: ref.ID, Name: id}
}

// principalTag stands for a principal in a name: names are not sealed, and who may
// use a key is nobody's business who reads the disk.
func principalTag(principal string) string {
	sum := sha256.Sum256([]byte("keymill/principal/v1\x00" + principal))
	return hex.EncodeToString(sum[:16])
}

func granteeName(ref Ref, grantee, id string) Name {
	return Name{Kind: KindGrantee, Region: ref.Region, ID: ref.ID, Name: principalTag(grantee) + " " + id}
}

func retiringName(principal string, ref Ref, id string) Name {
	return Name{Kind: KindRetiring, Region: ref.Region, Name: principalTag(principal) + " " + ref.ID.String() + " " + id}
}

func grantCountName(ref Ref) Name {
	return Name{Kind: KindGrantCount, Region: ref.Region, ID: ref.ID}
}

// sameName is the name of the entry that leads to a grant with a name.
func (g *Grant) sameName() (Name, error) {
	r, err := g.record()
	if err != nil {
		return Name{}, err
	}
	r.Created = 0
	body, err := encMode.Marshal(r)
	if err != nil {
		return Name{}, fmt.Errorf("%w: %v", ErrInvalid, err)
	}
	sum := sha256.Sum256(body)
	return Name{Kind: KindGrantName, Region: g.Ref.Region, ID: g.Ref.ID, Name: hex.EncodeToString(sum[:])}, nil
}

func (g *Grant) record() (*grantRecord, error) {
	r := &grantRecord{
		Name: g.Name, Grantee: g.Grantee, Retiring: g.Retiring, Issuer: g.Issuer, Operations: g.Operations,
		Exact: g.Equals != nil, Equals: pairRecords(g.Equals), Subset: pairRecords(g.Subset),
	}
	if err := times(nil, &r.Created, g.Created); err != nil {
		return nil, err
	}
	if err := r.check(); err != nil {
		return nil, fmt.Errorf("%w: grant %s", ErrInvalid, g.ID)
	}
	return r, nil
}

// check holds the rules of both directions.
func (r *grantRecord) check() error {
	ok := principalText(r.Grantee) && (r.Retiring == "" || principalText(r.Retiring)) &&
		r.Issuer != "" && len(r.Operations) > 0 && len(r.Operations) <= maxGrantOperations &&
		!strings.Contains(r.Name, " ") && len(r.Name) <= maxPrincipal && r.Created >= 0 &&
		sortedPairs(r.Equals) && sortedPairs(r.Subset) && (r.Exact || len(r.Equals) == 0)
	if !ok {
		return errValue
	}
	return nil
}

func principalText(s string) bool {
	return s != "" && len(s) <= maxPrincipal && !strings.Contains(s, " ")
}

func sortedPairs(pairs []pairRecord) bool {
	for i := 1; i < len(pairs); i++ {
		if pairs[i-1].Key >= pairs[i].Key {
			return false
		}
	}
	return len(pairs) <= maxGrantPairs
}

func pairRecords(pairs []Pair) []pairRecord {
	var out []pairRecord
	for _, p := range pairs {
		out = append(out, pairRecord(p))
	}
	return out
}

func encodeGrant(g *Grant) ([]byte, error) {
	r, err := g.record()
	if err != nil {
		return nil, err
	}
	if !ValidGrantID(g.ID) {
		return nil, fmt.Errorf("%w: grant ID %q", ErrInvalid, g.ID)
	}
	return encode(r)
}

// decodeGrant reads a grant's record and the copy under its grantee.
func decodeGrant(n *Name, b []byte) (*Grant, error) {
	var r grantRecord
	if err := decode(b, &r); err != nil {
		return nil, err
	}
	if err := r.check(); err != nil {
		return nil, err
	}
	id := n.Name
	if n.Kind == KindGrantee {
		var ok bool
		if id, ok = strings.CutPrefix(n.Name, principalTag(r.Grantee)+" "); !ok {
			return nil, errors.New("value disagrees with its name")
		}
	}
	if !ValidGrantID(id) {
		return nil, errors.New("its name is not a grant ID")
	}
	g := &Grant{
		Ref: Ref{n.Region, n.ID}, ID: id, Name: r.Name, Grantee: r.Grantee, Retiring: r.Retiring, Issuer: r.Issuer,
		Operations: r.Operations, Created: getTime(r.Created),
	}
	if r.Exact {
		g.Equals = make([]Pair, 0, len(r.Equals))
	}
	for _, p := range r.Equals {
		g.Equals = append(g.Equals, Pair(p))
	}
	for _, p := range r.Subset {
		g.Subset = append(g.Subset, Pair(p))
	}
	return g, nil
}

// decodeRetiring reads what there is of an entry under a retiring principal: its
// name.
func decodeRetiring(n *Name, b []byte) (GrantRef, error) {
	var r dueRecord
	if err := decode(b, &r); err != nil {
		return GrantRef{}, err
	}
	parts := strings.Split(n.Name, " ")
	if len(parts) != 3 || !principalText(parts[0]) || len(parts[1]) != 2*len(KeyID{}) || !ValidGrantID(parts[2]) {
		return GrantRef{}, errors.New("its name is not one of a grant")
	}
	ref := Ref{Region: n.Region}
	if _, err := hex.Decode(ref.ID[:], []byte(parts[1])); err != nil || ref.ID.String() != parts[1] {
		return GrantRef{}, errors.New("its name is not one of a key")
	}
	return GrantRef{ref, parts[2]}, nil
}

func decodeGrantName(b []byte) (id string, err error) {
	var r grantNameRecord
	if err := decode(b, &r); err != nil {
		return "", err
	}
	if !ValidGrantID(r.Grant) {
		return "", errValue
	}
	return r.Grant, nil
}

// PutGrant writes a new grant of a key that exists. ErrConflict says that there
// is one with its ID, or, when it has a name, one that is the same but for ID and
// date: SameGrant finds that. When the key has most grants already, it is
// ErrLimit; most 0 is no limit.
func (t *Txn) PutGrant(g *Grant, most int) {
	key, ok := t.name(grantName(g.Ref, g.ID))
	plain, ok2 := t.value(encodeGrant(g))
	grantee, ok3 := t.name(granteeName(g.Ref, g.Grantee, g.ID))
	if !ok || !ok2 || !ok3 {
		return
	}
	var retiring, same []byte
	if g.Retiring != "" {
		if retiring, ok = t.name(retiringName(g.Retiring, g.Ref, g.ID)); !ok {
			return
		}
	}
	if g.Name != "" {
		n, err := g.sameName()
		if err != nil {
			t.fail(err)
			return
		}
		if same, ok = t.name(n); !ok {
			return
		}
	}
	ref, id := g.Ref, strings.Clone(g.ID)
	t.ops = append(t.ops, func(w *writer) error {
		if _, err := w.expect(key, 0); err != nil {
			return err
		}
		w.keys[ref] = struct{}{}
		if err := w.countGrants(ref, +1, most); err != nil {
			return err
		}
		if err := w.put(key, plain, false); err != nil {
			return err
		}
		if err := w.put(grantee, slices.Clone(plain), true); err != nil {
			return err
		}
		if retiring != nil {
			value, err := encode(&dueRecord{})
			if err != nil {
				return err
			}
			if err := w.put(retiring, value, true); err != nil {
				return err
			}
		}
		if same == nil {
			return nil
		}
		if _, err := w.expect(same, 0); err != nil {
			return err
		}
		value, err := encode(&grantNameRecord{id})
		if err != nil {
			return err
		}
		return w.put(same, value, false)
	})
}

// DeleteGrant removes a grant as read.
func (t *Txn) DeleteGrant(g *Grant) {
	n := grantName(g.Ref, g.ID)
	key, ok := t.name(n)
	if !ok {
		return
	}
	expect := g.Revision
	t.ops = append(t.ops, func(w *writer) error {
		before, err := w.existing(key, expect)
		if err != nil {
			return err
		}
		return w.dropGrant(&n, before)
	})
}

// dropGrant removes a grant whose record is plain, and what was derived from it.
func (w *writer) dropGrant(n *Name, plain []byte) error {
	key := n.key()
	g, err := decodeGrant(n, plain)
	if err != nil {
		return tampered(key, err.Error())
	}
	if err := w.delete(key, false); err != nil {
		return err
	}
	if err := w.delete(granteeName(g.Ref, g.Grantee, g.ID).key(), true); err != nil {
		return err
	}
	if g.Retiring != "" {
		if err := w.delete(retiringName(g.Retiring, g.Ref, g.ID).key(), true); err != nil {
			return err
		}
	}
	if g.Name != "" {
		same, err := g.sameName()
		if err != nil {
			return tampered(key, err.Error())
		}
		if err := w.delete(same.key(), false); err != nil {
			return err
		}
	}
	return w.countGrants(g.Ref, -1, 0)
}

// countGrants changes the counter of a key's grants.
func (w *writer) countGrants(ref Ref, by, most int) error {
	key := grantCountName(ref).key()
	plain, ok, err := w.current(key)
	if err != nil {
		return err
	}
	var n uint64
	if ok {
		if n, err = decodeCount(plain); err != nil {
			return tampered(key, err.Error())
		}
	}
	switch {
	case by < 0 && n == 0:
		return tampered(key, "counts fewer grants than there are")
	case by > 0 && most > 0 && n >= uint64(most):
		return fmt.Errorf("%w: %s has %d grants", ErrLimit, describe(keyName(ref).key()), n)
	}
	n += uint64(by)
	if n == 0 {
		return w.delete(key, true)
	}
	value, err := encode(&countRecord{n})
	if err != nil {
		return err
	}
	return w.put(key, value, true)
}

// deleteGrants removes up to limit grants of a key, those after a storage key
// when it is not nil, and returns the last one's, nil when there was none left. It
// stops when the commit is full.
func (w *writer) deleteGrants(ref Ref, after []byte, limit int) (last []byte, err error) {
	n := 0
	prefix := grantName(ref, "")
	err = w.s.scan(prefix.prefix(2), after, func(r *raw) (bool, error) {
		if n >= limit || len(w.changes) > MaxChanges {
			return false, nil
		}
		plain, err := r.open()
		if err != nil {
			return false, err
		}
		name := r.name
		err = w.dropGrant(&name, plain)
		arena.Wipe(plain)
		last = slices.Clone(r.key)
		n++
		return true, err
	})
	return last, err
}

// grantsPerCommit is how many grants DeleteGrants removes at once: at most four
// records each, and the counter.
const grantsPerCommit = (MaxChanges - 4) / 4

// DeleteGrants removes all grants of a key, in as many commits as that takes:
// before DeleteKey, which has room for a few of them only. Interrupted, it leaves
// some and can be called again. Grants made meanwhile may stay.
func (s *Store) DeleteGrants(ctx context.Context, ref Ref) error {
	var after []byte
	for {
		var last []byte
		t := s.NewTxn()
		t.ops = append(t.ops, func(w *writer) (err error) {
			last, err = w.deleteGrants(ref, after, grantsPerCommit)
			return err
		})
		if _, err := t.Commit(ctx); err != nil || last == nil {
			return err
		}
		after = last
	}
}

// Grant returns a grant of a key, or ErrNotFound.
func (s *Store) Grant(ref Ref, id string) (*Grant, error) {
	if !ValidGrantID(id) {
		return nil, ErrNotFound
	}
	g, rev, err := read(s, grantName(ref, id), decodeGrant)
	if err != nil {
		return nil, err
	}
	g.Revision = rev
	return g, nil
}

// SameGrant returns the grant that is like g but for ID and date, or ErrNotFound.
// A grant without a name is like no other.
func (s *Store) SameGrant(g *Grant) (*Grant, error) {
	if g.Name == "" {
		return nil, ErrNotFound
	}
	n, err := g.sameName()
	if err != nil {
		return nil, err
	}
	id, _, err := read(s, n, func(_ *Name, b []byte) (string, error) { return decodeGrantName(b) })
	if err != nil {
		return nil, err
	}
	return s.Grant(g.Ref, id)
}

// CountGrants returns the number of a key's grants. It reads one record.
func (s *Store) CountGrants(ref Ref) (int, error) {
	n, _, err := read(s, grantCountName(ref), func(_ *Name, b []byte) (uint64, error) { return decodeCount(b) })
	if errors.Is(err, ErrNotFound) {
		return 0, nil
	}
	return int(n), err
}

func decodeGrantRow(r *raw, b []byte) (*Grant, error) {
	g, err := decodeGrant(&r.name, b)
	if err == nil {
		g.Revision = r.rev
	}
	return g, err
}

// ListGrants returns the grants of a key by ascending ID, those after the given
// one when it is not empty, and whether there are more.
func (s *Store) ListGrants(ref Ref, afterID string, limit int) (grants []*Grant, more bool, err error) {
	n := grantName(ref, afterID)
	return list(s, n.prefix(2), after(n), limit, decodeGrantRow)
}

// ListGranteeGrants is ListGrants for those of one grantee. What it costs does
// not depend on the grants of others.
func (s *Store) ListGranteeGrants(ref Ref, grantee, afterID string, limit int) (grants []*Grant, more bool, err error) {
	prefix := granteeName(ref, grantee, "").key()
	var from []byte
	if afterID != "" {
		from = granteeName(ref, grantee, afterID).key()
	}
	return list(s, prefix, from, limit, decodeGrantRow)
}

// A GrantRef names a grant.
type GrantRef struct {
	Key Ref
	ID  string
}

// ListRetirable returns the grants in a region that name a retiring principal, by
// ascending key and ID, those after the given one when that is not nil. With more,
// last is where the next page begins; a page may have fewer than limit grants
// then, even none, when some are being removed.
func (s *Store) ListRetirable(region, principal string, after *GrantRef, limit int) (grants []*Grant, last GrantRef, more bool, err error) {
	prefix := Name{Kind: KindRetiring, Region: region, Name: principalTag(principal) + " "}
	var from []byte
	if after != nil {
		from = retiringName(principal, Ref{region, after.Key.ID}, after.ID).key()
	}
	refs, more, err := list(s, prefix.key(), from, limit, func(r *raw, b []byte) (GrantRef, error) {
		return decodeRetiring(&r.name, b)
	})
	if err != nil {
		return nil, GrantRef{}, false, err
	}
	for _, ref := range refs {
		last = ref
		switch g, err := s.Grant(ref.Key, ref.ID); {
		case err == nil:
			grants = append(grants, g)
		case !errors.Is(err, ErrNotFound):
			return nil, GrantRef{}, false, err
		}
	}
	return grants, last, more, nil
}

// grant checks that the records derived from a grant are there.
func (v *verifier) grant(r *raw, plain []byte, g *Grant) {
	v.lookUpKey(r.key, g.Ref)
	v.same(r, plain, granteeName(g.Ref, g.Grantee, g.ID))
	if g.Retiring != "" {
		v.lookUp(r.key, retiringName(g.Retiring, g.Ref, g.ID))
	}
	if g.Name != "" {
		v.sameGrant(r, g)
	}
	// A key's grants come one after the other.
	if v.grants.ref != g.Ref {
		v.countedGrants()
		v.grants.ref = g.Ref
	}
	v.grants.seen++
}

// sameGrant checks the entry of a grant with a name.
func (v *verifier) sameGrant(r *raw, g *Grant) {
	n, err := g.sameName()
	if err != nil {
		v.say(r.key, err.Error())
		return
	}
	if entry := v.lookUp(r.key, n); entry != nil {
		if id, err := decodeGrantName(entry); err == nil && id != g.ID {
			v.say(r.key, "disagrees with "+n.String())
		}
	}
}

// countedGrants compares the grants seen of one key with their counter.
func (v *verifier) countedGrants() {
	if v.grants.seen == 0 {
		return
	}
	n := grantCountName(v.grants.ref)
	plain, _, err := v.get(n.key())
	if err == nil {
		var count uint64
		if plain != nil {
			count, err = decodeCount(plain)
		}
		if err == nil && count != v.grants.seen {
			v.say(n.key(), "disagrees with the number of grants")
		}
	}
	v.grants.seen = 0
}

// grantEntry checks a record derived from a grant. Counters are compared when the
// grants come; here it only matters that there are any.
func (v *verifier) grantEntry(r *raw, plain []byte, value any) {
	ref := Ref{r.name.Region, r.name.ID}
	switch r.name.Kind {
	case KindGrantee:
		v.same(r, plain, grantName(ref, value.(*Grant).ID))
	case KindRetiring:
		at := value.(GrantRef)
		if g := v.lookUpGrant(r.key, at); g != nil && retiringName(g.Retiring, g.Ref, g.ID) != r.name {
			v.say(r.key, "disagrees with its grant")
		}
	case KindGrantName:
		if g := v.lookUpGrant(r.key, GrantRef{ref, value.(string)}); g != nil {
			if n, err := g.sameName(); err != nil || g.Name == "" || n != r.name {
				v.say(r.key, "disagrees with its grant")
			}
		}
	case KindGrantCount:
		any := false
		prefix := grantName(ref, "")
		err := v.s.scanOn(v.snap, prefix.prefix(2), nil, func(*raw) (bool, error) {
			any = true
			return false, nil
		})
		if err == nil && !any {
			v.say(r.key, "disagrees with the number of grants")
		}
	}
}

func (v *verifier) lookUpGrant(from []byte, ref GrantRef) *Grant {
	n := grantName(ref.Key, ref.ID)
	plain := v.lookUp(from, n)
	if plain == nil {
		return nil
	}
	g, err := decodeGrant(&n, plain)
	if err != nil {
		return nil // reported when its turn comes
	}
	return g
}
