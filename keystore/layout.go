package keystore

import (
	"encoding/binary"
	"encoding/hex"
	"fmt"
	"strings"
)

// A Kind is the first byte of a storage key.
type Kind byte

// The kinds of record, and the parts that make up the rest of their storage
// key. The letters are on disk: never reuse one.
const (
	KindHeader    Kind = 'H' // (nothing)              the only record that is not sealed
	KindRevision  Kind = 'R' // (nothing)              revision of the last commit
	KindKey       Kind = 'k' // region, id             Key
	KindListing   Kind = 'l' // account, region, id    list index: the key exists
	KindCount     Kind = 'n' // account, region        number of customer keys
	KindMaterial  Kind = 'm' // region, id, version    Material
	KindPolicy    Kind = 'p' // region, id             key policy
	KindTags      Kind = 't' // region, id             tags, all in one record
	KindAlias     Kind = 'a' // account, region, name  Alias
	KindTarget    Kind = 'b' // region, id, name       copy of the Alias, by its target
	KindPrincipal Kind = 'i' // name                   Principal
	KindAccessKey Kind = 'c' // name                   AccessKey
	KindStoreKey  Kind = 's' // key store, region, id  list index: the key lives in that custom key store
	KindExternal  Kind = 'y' // key store, name        the external key of that name is some key's
	KindUsage     Kind = 'f' // region, page           how often and when keys were used
	KindDue       Kind = 'd' // time, region, id       something happens to the key then
	KindAudit     Kind = 'j' // revision               what SetAudit left
	KindRecord    Kind = 'x' // name                   general purpose
)

// The kinds of record that grants have; see grants.go.
const (
	KindGrant      Kind = 'g' // region, id, grant id               Grant
	KindGrantee    Kind = 'h' // region, id, grantee and grant id   copy of the Grant, by its grantee
	KindRetiring   Kind = 'q' // region, principal's tag and grant  list index: the principal may retire the grant
	KindGrantName  Kind = 'N' // region, id, fingerprint            which Grant it is
	KindGrantCount Kind = 'G' // region, id                         number of grants
)

var kindNames = [256]string{
	KindHeader: "store header", KindRevision: "revision", KindKey: "key", KindListing: "key list entry",
	KindCount: "key count", KindMaterial: "material", KindPolicy: "key policy", KindTags: "key tags",
	KindAlias: "alias", KindTarget: "alias list entry", KindPrincipal: "principal", KindAccessKey: "access key",
	KindGrant: "grant", KindGrantee: "grantee's grant", KindRetiring: "retirable grant", KindGrantName: "grant name", KindGrantCount: "grant count",
	KindAudit: "audit", KindRecord: "record", KindDue: "due date",
	KindUsage: "key usage", KindStoreKey: "key store entry", KindExternal: "external key",
}

// parts says what follows the kind in a storage key:
//
//	A  account or custom key store, one byte of length and the bytes
//	R  region, the same
//	I  16 bytes of key id
//	V  version, 4 bytes, big-endian
//	N  revision, nanoseconds since 1970 or page, 8 bytes, big-endian
//	S  name, the rest of the key, not empty, so that names sort by their bytes
//
// Lengths come before strings, so no key is a prefix of another by accident
// and every prefix that ends between two parts selects exactly what it names.
var parts = [256]string{
	KindKey: "RI", KindListing: "ARI", KindCount: "AR", KindMaterial: "RIV", KindPolicy: "RI", KindTags: "RI",
	KindAlias: "ARS", KindDue: "NRI", KindUsage: "RN",
	KindGrant: "RIS", KindGrantee: "RIS", KindRetiring: "RS", KindGrantName: "RIS", KindGrantCount: "RI",
	KindStoreKey: "ARI", KindExternal: "AS", KindTarget: "RIS", KindPrincipal: "S", KindAccessKey: "S", KindAudit: "N", KindRecord: "S",
}

// maxName bounds the last part of a storage key.
const maxName = 1024

// A Name is a storage key taken apart. Fields that its kind lacks are zero.
type Name struct {
	Kind            Kind
	Account, Region string
	ID              KeyID
	Version         uint32
	Number          uint64
	Name            string
}

// valid reports whether n can be written as a storage key.
func (n *Name) valid() bool {
	for _, p := range parts[n.Kind] {
		switch p {
		case 'A':
			if len(n.Account) == 0 || len(n.Account) > 255 {
				return false
			}
		case 'R':
			if len(n.Region) == 0 || len(n.Region) > 255 {
				return false
			}
		case 'S':
			if len(n.Name) == 0 || len(n.Name) > maxName {
				return false
			}
		}
	}
	return kindNames[n.Kind] != ""
}

// append writes the storage key. Only the first count parts of it when count
// is not negative: the prefix of a scan.
func (n *Name) append(dst []byte, count int) []byte {
	layout := parts[n.Kind]
	if count >= 0 {
		layout = layout[:count]
	}
	dst = append(dst, byte(n.Kind))
	for i := range len(layout) {
		switch layout[i] {
		case 'A':
			dst = append(append(dst, byte(len(n.Account))), n.Account...)
		case 'R':
			dst = append(append(dst, byte(len(n.Region))), n.Region...)
		case 'I':
			dst = append(dst, n.ID[:]...)
		case 'V':
			dst = binary.BigEndian.AppendUint32(dst, n.Version)
		case 'N':
			dst = binary.BigEndian.AppendUint64(dst, n.Number)
		case 'S':
			dst = append(dst, n.Name...)
		}
	}
	return dst
}

func (n Name) key() []byte             { return n.append(make([]byte, 0, 64), -1) }
func (n Name) prefix(count int) []byte { return n.append(make([]byte, 0, 64), count) }

// StorageKey writes the name as a storage key. The reverse is ParseName.
func (n Name) StorageKey() []byte { return n.key() }

// ParseName takes a storage key apart. It accepts exactly what the store
// writes.
func ParseName(b []byte) (Name, bool) {
	var n Name
	if len(b) == 0 || kindNames[b[0]] == "" {
		return n, false
	}
	n.Kind = Kind(b[0])
	rest := b[1:]
	take := func(size int) []byte {
		if len(rest) < size {
			return nil
		}
		part := rest[:size]
		rest = rest[size:]
		return part
	}
	text := func() (string, bool) {
		size := take(1)
		if size == nil || size[0] == 0 {
			return "", false
		}
		part := take(int(size[0]))
		return string(part), part != nil
	}
	for _, p := range parts[n.Kind] {
		ok := true
		switch p {
		case 'A':
			n.Account, ok = text()
		case 'R':
			n.Region, ok = text()
		case 'I':
			ok = copy(n.ID[:], take(len(n.ID))) == len(n.ID)
		case 'V':
			if part := take(4); part != nil {
				n.Version = binary.BigEndian.Uint32(part)
			} else {
				ok = false
			}
		case 'N':
			if part := take(8); part != nil {
				n.Number = binary.BigEndian.Uint64(part)
			} else {
				ok = false
			}
		case 'S':
			ok = len(rest) > 0 && len(rest) <= maxName
			n.Name, rest = string(rest), nil
		}
		if !ok {
			return Name{}, false
		}
	}
	return n, len(rest) == 0
}

// String names the record for people: its kind and its parts.
func (n Name) String() string {
	var b strings.Builder
	b.WriteString(kindNames[n.Kind])
	sep := byte(' ')
	for _, p := range parts[n.Kind] {
		if p == 'V' {
			fmt.Fprintf(&b, " version %d", n.Version)
			continue
		}
		b.WriteByte(sep)
		sep = '/'
		switch p {
		case 'A':
			fmt.Fprintf(&b, "%q", n.Account)
		case 'R':
			fmt.Fprintf(&b, "%q", n.Region)
		case 'I':
			b.WriteString(n.ID.String())
		case 'N':
			fmt.Fprintf(&b, "%d", n.Number)
		case 'S':
			fmt.Fprintf(&b, "%q", n.Name)
		}
	}
	return b.String()
}

// describe names the record under a storage key, even one that is no name.
func describe(storageKey []byte) string {
	if n, ok := ParseName(storageKey); ok {
		return n.String()
	}
	if len(storageKey) > 80 {
		storageKey = storageKey[:80]
	}
	return "of unknown kind 0x" + hex.EncodeToString(storageKey)
}

func keyName(ref Ref) Name    { return Name{Kind: KindKey, Region: ref.Region, ID: ref.ID} }
func policyName(ref Ref) Name { return Name{Kind: KindPolicy, Region: ref.Region, ID: ref.ID} }
func tagsName(ref Ref) Name   { return Name{Kind: KindTags, Region: ref.Region, ID: ref.ID} }
func listingName(k *Key) Name {
	return Name{Kind: KindListing, Account: k.Account, Region: k.Region, ID: k.ID}
}
func countName(account, region string) Name {
	return Name{Kind: KindCount, Account: account, Region: region}
}
func materialName(ref Ref, version uint32) Name {
	return Name{Kind: KindMaterial, Region: ref.Region, ID: ref.ID, Version: version}
}
func aliasName(account, region, name string) Name {
	return Name{Kind: KindAlias, Account: account, Region: region, Name: name}
}
func targetName(a *Alias) Name {
	return Name{Kind: KindTarget, Region: a.Region, ID: a.Target, Name: a.Name}
}

// upperBound returns the first key after all keys with the prefix, whose last
// byte is never 0xff in practice; when it is, the bound is found further left.
func upperBound(prefix []byte) []byte {
	end := append([]byte(nil), prefix...)
	for i := len(end) - 1; i >= 0; i-- {
		if end[i]++; end[i] != 0 {
			return end[:i+1]
		}
	}
	return nil
}
