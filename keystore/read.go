package keystore

import (
	"bytes"
	"errors"

	"github.com/cockroachdb/pebble/v2"

	"keymill/hsm/arena"
)

// get returns the plaintext of a record and its revision, both durable.
func (s *Store) get(n *Name) (plain []byte, rev uint64, err error) {
	var scratch [96]byte
	key := n.append(scratch[:0], -1)
	sealed, closer, err := s.db.Get(key)
	if errors.Is(err, pebble.ErrNotFound) {
		if err := s.waitSettled(); err != nil {
			return nil, 0, err
		}
		return nil, 0, ErrNotFound
	} else if err != nil {
		return nil, 0, s.readError(key, err)
	}
	plain, rev, err = openRecord(s.key, key, sealed)
	if err := errors.Join(err, closer.Close()); err != nil {
		return nil, 0, err
	}
	if err := s.waitRevision(rev); err != nil {
		return nil, 0, err
	}
	return plain, rev, nil
}

// read gets and decodes a record.
func read[T any](s *Store, n Name, decode func(*Name, []byte) (T, error)) (v T, rev uint64, err error) {
	plain, rev, err := s.get(&n)
	if err != nil {
		return v, 0, err
	}
	v, err = decode(&n, plain)
	arena.Wipe(plain)
	if err != nil {
		return v, 0, tampered(n.key(), err.Error())
	}
	return v, rev, nil
}

// raw is a record under an iterator, valid during the callback.
type raw struct {
	s      *Store
	name   Name
	key    []byte
	sealed []byte
	rev    uint64
}

// open returns the plaintext and sets rev.
func (r *raw) open() (plain []byte, err error) {
	plain, r.rev, err = openRecord(r.s.key, r.key, r.sealed)
	return plain, err
}

// scan calls fn with the records under a prefix, after a storage key when that
// is not nil, in order, as of one moment, until fn returns false. It does not
// wait for durability.
func (s *Store) scan(prefix, after []byte, fn func(*raw) (bool, error)) error {
	return s.scanOn(s.db, prefix, after, fn)
}

func (s *Store) scanOn(from pebble.Reader, prefix, after []byte, fn func(*raw) (bool, error)) error {
	lower := prefix
	if after != nil && bytes.Compare(after, prefix) >= 0 {
		lower = append(bytes.Clone(after), 0)
	}
	it, err := from.NewIter(&pebble.IterOptions{LowerBound: lower, UpperBound: upperBound(prefix)})
	if err != nil {
		return s.readError(prefix, err)
	}
	more := true
	for ok := it.First(); ok && more && err == nil; ok = it.Next() {
		r := raw{s: s, key: it.Key()}
		var known bool
		if r.name, known = ParseName(r.key); !known {
			err = tampered(r.key, "not a name the store writes")
			break
		}
		if r.sealed, err = it.ValueAndErr(); err != nil {
			err = s.readError(r.key, err)
			break
		}
		more, err = fn(&r)
	}
	if err == nil {
		if err = it.Error(); err != nil {
			err = s.readError(prefix, err)
		}
	}
	return errors.Join(err, it.Close())
}

// list decodes up to limit records under a prefix and says whether there are
// more. What it returns, and what it misses, is durable.
func list[T any](s *Store, prefix, after []byte, limit int, decode func(*raw, []byte) (T, error)) (out []T, more bool, err error) {
	err = s.scan(prefix, after, func(r *raw) (bool, error) {
		if len(out) >= limit {
			more = true
			return false, nil
		}
		plain, err := r.open()
		if err != nil {
			return false, err
		}
		v, err := decode(r, plain)
		arena.Wipe(plain)
		if err != nil {
			return false, tampered(r.key, err.Error())
		}
		out = append(out, v)
		return true, nil
	})
	if err == nil {
		err = s.waitSettled()
	}
	if err != nil {
		return nil, false, err
	}
	return out, more, nil
}

// Key returns the metadata of a key, or ErrNotFound.
func (s *Store) Key(ref Ref) (*Key, error) {
	k, rev, err := read(s, keyName(ref), decodeKey)
	if err != nil {
		return nil, err
	}
	k.Revision = rev
	return k, nil
}

// Policy returns the key policy, or ErrNotFound.
func (s *Store) Policy(ref Ref) (policy string, rev uint64, err error) {
	return read(s, policyName(ref), func(_ *Name, b []byte) (string, error) {
		var r policyRecord
		err := decode(b, &r)
		return r.Policy, err
	})
}

// Tags returns the tags of a key, sorted by their keys. No tags is revision 0,
// whether or not the key exists.
func (s *Store) Tags(ref Ref) (tags []Tag, rev uint64, err error) {
	tags, rev, err = read(s, tagsName(ref), func(_ *Name, b []byte) ([]Tag, error) { return decodeTags(b) })
	if errors.Is(err, ErrNotFound) {
		return nil, 0, nil
	}
	return tags, rev, err
}

// Material returns the sealed secret of a key version, or ErrNotFound.
func (s *Store) Material(ref Ref, version uint32) (*Material, error) {
	m, rev, err := read(s, materialName(ref, version), decodeMaterial)
	if err != nil {
		return nil, err
	}
	m.Revision = rev
	return m, nil
}

// Alias returns an alias, or ErrNotFound.
func (s *Store) Alias(account, region, name string) (*Alias, error) {
	a, rev, err := read(s, aliasName(account, region, name), decodeAlias)
	if err != nil {
		return nil, err
	}
	a.Revision = rev
	return a, nil
}

// Principal returns a principal, or ErrNotFound.
func (s *Store) Principal(id string) (*Principal, error) {
	p, rev, err := read(s, Name{Kind: KindPrincipal, Name: id}, decodePrincipal)
	if err != nil {
		return nil, err
	}
	p.Revision = rev
	return p, nil
}

// AccessKey returns an access key with its secret, or ErrNotFound.
func (s *Store) AccessKey(id string) (*AccessKey, error) {
	k, rev, err := read(s, Name{Kind: KindAccessKey, Name: id}, decodeAccessKey)
	if err != nil {
		return nil, err
	}
	k.Revision = rev
	return k, nil
}

// ListKeys returns the keys of an account in a region by ascending id, those
// after the given one when hasAfter, and whether there are more.
func (s *Store) ListKeys(account, region string, after KeyID, hasAfter bool, limit int) (keys []KeyListing, more bool, err error) {
	n := Name{Kind: KindListing, Account: account, Region: region, ID: after}
	var from []byte
	if hasAfter {
		from = n.key()
	}
	return list(s, n.prefix(2), from, limit, func(r *raw, b []byte) (KeyListing, error) {
		var v listingRecord
		err := decode(b, &v)
		return KeyListing{r.name.ID, v.MultiRegion}, err
	})
}

func decodeAliasRow(r *raw, b []byte) (*Alias, error) {
	a, err := decodeAlias(&r.name, b)
	if err == nil {
		a.Revision = r.rev
	}
	return a, err
}

// ListAliases returns the aliases of an account in a region by ascending name,
// those after the given one when it is not empty, and whether there are more.
func (s *Store) ListAliases(account, region, afterName string, limit int) (aliases []*Alias, more bool, err error) {
	n := aliasName(account, region, afterName)
	return list(s, n.prefix(2), after(n), limit, decodeAliasRow)
}

// ListKeyAliases is ListAliases for those that point to one key.
func (s *Store) ListKeyAliases(ref Ref, afterName string, limit int) (aliases []*Alias, more bool, err error) {
	n := Name{Kind: KindTarget, Region: ref.Region, ID: ref.ID, Name: afterName}
	return list(s, n.prefix(2), after(n), limit, decodeAliasRow)
}

// after is the storage key that a list continues from.
func after(n Name) []byte {
	if n.Name == "" {
		return nil
	}
	return n.key()
}

// CountKeyAliases counts the aliases that point to a key, up to limit.
func (s *Store) CountKeyAliases(ref Ref, limit int) (int, error) {
	aliases, _, err := s.ListKeyAliases(ref, "", limit)
	return len(aliases), err
}

// CountKeys returns the number of customer-managed keys of an account in a
// region. It reads one record.
func (s *Store) CountKeys(account, region string) (int, error) {
	n, _, err := read(s, countName(account, region), func(_ *Name, b []byte) (uint64, error) { return decodeCount(b) })
	if errors.Is(err, ErrNotFound) {
		return 0, nil
	}
	return int(n), err
}

// ListPrincipals returns the principals by ascending id, those after the given
// one when it is not empty, and whether there are more.
func (s *Store) ListPrincipals(afterID string, limit int) (principals []*Principal, more bool, err error) {
	n := Name{Kind: KindPrincipal, Name: afterID}
	return list(s, n.prefix(0), after(n), limit, func(r *raw, b []byte) (*Principal, error) {
		p, err := decodePrincipal(&r.name, b)
		if err == nil {
			p.Revision = r.rev
		}
		return p, err
	})
}

// ListAccessKeys returns the access keys by ascending id, those after the given
// one when it is not empty, and whether there are more.
func (s *Store) ListAccessKeys(afterID string, limit int) (keys []*AccessKey, more bool, err error) {
	n := Name{Kind: KindAccessKey, Name: afterID}
	return list(s, n.prefix(0), after(n), limit, func(r *raw, b []byte) (*AccessKey, error) {
		k, err := decodeAccessKey(&r.name, b)
		if err == nil {
			k.Revision = r.rev
		}
		return k, err
	})
}

// ListAudit returns the audit records of commits after a revision, in order.
func (s *Store) ListAudit(afterRevision uint64, limit int) (records []AuditRecord, more bool, err error) {
	n := Name{Kind: KindAudit, Number: afterRevision}
	return list(s, n.prefix(0), n.key(), limit, func(r *raw, b []byte) (AuditRecord, error) {
		var v bytesRecord
		err := decode(b, &v)
		return AuditRecord{r.name.Number, v.Data}, err
	})
}

// Get returns a record of the general-purpose space, or ErrNotFound.
func (s *Store) Get(name string) (value []byte, rev uint64, err error) {
	return read(s, Name{Kind: KindRecord, Name: name}, func(_ *Name, b []byte) ([]byte, error) {
		var r bytesRecord
		err := decode(b, &r)
		return r.Data, err
	})
}

// Scan returns the records of the general-purpose space whose names begin with
// prefix, by ascending name, those after the given name when it is not empty,
// and whether there are more.
func (s *Store) Scan(prefix, afterName string, limit int) (records []Record, more bool, err error) {
	start := append([]byte{byte(KindRecord)}, prefix...)
	return list(s, start, after(Name{Kind: KindRecord, Name: afterName}), limit, func(r *raw, b []byte) (Record, error) {
		var v bytesRecord
		err := decode(b, &v)
		return Record{r.name.Name, v.Data, r.rev}, err
	})
}
