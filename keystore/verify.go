package keystore

import (
	"bytes"
	"context"
	"errors"

	"github.com/cockroachdb/pebble/v2"

	"keymill/hsm/arena"
)

// Progress says how far Verify has come.
type Progress struct {
	Records uint64 // checked so far
	Keys    uint64 // of which keys
	Done    bool
}

// progressEvery is the number of records between two calls of progress.
const progressEvery = 4096

// Verify checks every record as of one moment: that it authenticates, decodes,
// is no newer than the store, and agrees with the records it depends on (lists,
// counters, keys of policies, materials of versions, targets of aliases). The
// store stays in use meanwhile. progress may be nil. Materials are not unwrapped:
// that would be one call of the root each.
//
// It goes on after a finding and returns all of them joined, at most
// maxFindings; each is an ErrTampered and names the record.
func (s *Store) Verify(ctx context.Context, progress func(Progress)) error {
	if progress == nil {
		progress = func(Progress) {}
	}
	s.mu.Lock() // no commit is between the storage engine and the header in memory
	snap, header := s.db.NewSnapshot(), s.header.Load()
	s.mu.Unlock()
	defer snap.Close()
	v := verifier{s: s, snap: snap, expected: header, counts: make(map[Name]uint64)}
	var p Progress
	err := v.newest()
	if err == nil {
		err = s.scanAll(snap, func(r *raw) (bool, error) {
			if err := ctx.Err(); err != nil {
				return false, err
			}
			if r.name.Kind == KindHeader {
				v.header(r)
			} else {
				v.record(r)
			}
			p.Records++
			if r.name.Kind == KindKey {
				p.Keys++
			}
			if p.Records%progressEvery == 0 {
				progress(p)
			}
			return len(v.findings) < maxFindings, nil
		}, v.finding)
	}
	if err != nil {
		return errors.Join(append(v.findings, err)...)
	}
	v.counters()
	v.countedGrants()
	p.Done = true
	progress(p)
	return errors.Join(v.findings...)
}

// maxFindings bounds what Verify reports: a store under a wrong key would
// otherwise report every record.
const maxFindings = 100

type verifier struct {
	s        *Store
	snap     *pebble.Snapshot
	expected *Header
	rev      uint64
	counts   map[Name]uint64
	grants   struct { // of the key whose grants were seen last
		ref  Ref
		seen uint64
	}
	findings []error
}

func (v *verifier) finding(err error) { v.findings = append(v.findings, err) }

func (v *verifier) say(storageKey []byte, reason string) {
	v.finding(tampered(storageKey, reason))
}

// scanAll walks over all storage keys; those that are no names are findings.
func (s *Store) scanAll(from pebble.Reader, fn func(*raw) (bool, error), finding func(error)) error {
	it, err := from.NewIter(nil)
	if err != nil {
		return s.readError(nil, err)
	}
	more := true
	for ok := it.First(); ok && more && err == nil; ok = it.Next() {
		r := raw{s: s, key: it.Key()}
		var known bool
		if r.name, known = ParseName(r.key); !known {
			finding(tampered(r.key, "not a name the store writes"))
			continue
		}
		if r.sealed, err = it.ValueAndErr(); err == nil {
			more, err = fn(&r)
		}
	}
	if err == nil {
		err = it.Error()
	}
	if err != nil && pebble.IsCorruptionError(err) {
		err = s.readError(nil, err)
	}
	return errors.Join(err, it.Close())
}

// newest finds the revision of the snapshot.
func (v *verifier) newest() error {
	key := Name{Kind: KindRevision}.key()
	plain, rev, err := v.get(key)
	if err != nil {
		return err
	}
	if plain == nil {
		return tampered(key, "missing")
	}
	v.rev = rev
	return nil
}

// get reads a record of the snapshot; absent is nil.
func (v *verifier) get(key []byte) (plain []byte, rev uint64, err error) {
	sealed, closer, err := v.snap.Get(key)
	if errors.Is(err, pebble.ErrNotFound) {
		return nil, 0, nil
	} else if err != nil {
		return nil, 0, v.s.readError(key, err)
	}
	defer closer.Close()
	return openRecord(v.s.key, key, sealed)
}

func (v *verifier) header(r *raw) {
	h, err := ParseHeader(r.sealed)
	switch {
	case err != nil:
		v.finding(err)
	case !bytes.Equal(h.append(nil), v.expected.append(nil)) || !bytes.Equal(h.mac, v.expected.mac):
		v.say(r.key, "changed since the store was opened")
	}
}

func (v *verifier) record(r *raw) {
	plain, err := r.open()
	if err != nil {
		v.finding(err)
		return
	}
	defer arena.Wipe(plain)
	if r.rev > v.rev {
		v.say(r.key, "newer than the store")
	}
	value, err := ParseRecord(r.name, plain)
	if err != nil {
		v.say(r.key, err.Error())
		return
	}
	n := r.name
	ref := Ref{n.Region, n.ID}
	switch n.Kind {
	case KindKey:
		v.key(r, value.(*Key))
	case KindListing:
		if k := v.lookUpKey(r.key, ref); k != nil && (k.Account != n.Account || k.MultiRegion != value.(KeyListing).MultiRegion) {
			v.say(r.key, "disagrees with its key")
		}
	case KindMaterial:
		k := v.lookUpKey(r.key, ref)
		if k != nil && !hasMaterial(k, n.Version) {
			v.say(r.key, "its key has no such version, or one without material")
		}
	case KindPolicy, KindTags:
		v.lookUpKey(r.key, ref)
	case KindUsage:
		for _, k := range value.([]KeyUsage) {
			v.lookUpKey(r.key, Ref{n.Region, k.ID})
		}
	case KindAlias:
		a := value.(*Alias)
		if a.Target == (KeyID{}) {
			break
		}
		if k := v.lookUpKey(r.key, Ref{a.Region, a.Target}); k != nil && k.Account != a.Account {
			v.say(r.key, "its key belongs to another account")
		}
		v.same(r, plain, targetName(a))
	case KindTarget:
		a := value.(*Alias)
		v.same(r, plain, aliasName(a.Account, a.Region, a.Name))
	case KindStoreKey:
		if k := v.lookUpKey(r.key, ref); k != nil && k.CustomKeyStore != n.Account {
			v.say(r.key, "disagrees with its key")
		}
	case KindExternal:
		if k := v.lookUpKey(r.key, value.(Ref)); k != nil && (k.CustomKeyStore != n.Account || k.ExternalKeyID != n.Name) {
			v.say(r.key, "disagrees with its key")
		}
	case KindDue:
		if k := v.lookUpKey(r.key, ref); k != nil && k.Due().UnixNano() != int64(n.Number) {
			v.say(r.key, "disagrees with its key")
		}
	case KindGrant:
		v.grant(r, plain, value.(*Grant))
	case KindGrantee, KindRetiring, KindGrantName, KindGrantCount:
		v.grantEntry(r, plain, value)
	case KindCount:
		v.counts[n] -= value.(uint64)
	case KindAccessKey:
		k := value.(*AccessKey)
		arena.Wipe(k.Secret)
		v.lookUp(r.key, Name{Kind: KindPrincipal, Name: k.PrincipalID})
	}
}

func hasMaterial(k *Key, number uint32) bool {
	for _, v := range k.Versions {
		if v.Number == number {
			return !v.Missing
		}
	}
	return false
}

// key checks that a key is listed and counts it. A version may lack material: it
// was deleted or has expired, as the version says, or lives elsewhere.
func (v *verifier) key(r *raw, k *Key) {
	v.lookUp(r.key, listingName(k))
	if k.CustomKeyStore != "" {
		v.lookUp(r.key, storeKeyName(k.CustomKeyStore, k.Ref()))
	}
	if k.ExternalKeyID != "" {
		v.lookUp(r.key, externalName(k.CustomKeyStore, k.ExternalKeyID))
	}
	if due := k.Due(); !due.IsZero() {
		v.lookUp(r.key, dueName(k.Ref(), due))
	}
	if k.Manager == ManagerCustomer {
		v.counts[countName(k.Account, k.Region)]++
	}
	if (k.Origin == originLocal || k.Origin == originImported) && !k.Destroying && k.State != stateCreating {
		for _, version := range k.Versions {
			if !version.Missing {
				v.lookUp(r.key, materialName(k.Ref(), version.Number))
			}
		}
	}
}

// The Origins of keys whose every version has material here, unless it is missing,
// but while the key is being made or destroyed in pieces.
const (
	originLocal    = "AWS_KMS"
	originImported = "EXTERNAL"
	stateCreating  = "Creating"
)

// lookUp reports a record that needs another which is not there.
func (v *verifier) lookUp(from []byte, n Name) (plain []byte) {
	plain, _, err := v.get(n.key())
	if err != nil {
		return nil // reported when its turn comes
	}
	if plain == nil {
		v.say(from, "needs "+n.String()+", which is missing")
	}
	return plain
}

func (v *verifier) lookUpKey(from []byte, ref Ref) *Key {
	n := keyName(ref)
	plain := v.lookUp(from, n)
	if plain == nil {
		return nil
	}
	k, err := decodeKey(&n, plain)
	if err != nil {
		return nil // reported when its turn comes
	}
	return k
}

// same reports a record whose copy is missing or different.
func (v *verifier) same(r *raw, plain []byte, n Name) {
	if other := v.lookUp(r.key, n); other != nil && !bytes.Equal(plain, other) {
		v.say(r.key, "disagrees with "+n.String())
	}
}

func (v *verifier) counters() {
	for n, difference := range v.counts {
		if difference != 0 {
			v.say(n.key(), "disagrees with the number of keys")
		}
	}
}
