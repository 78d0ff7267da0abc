package keystore

import (
	"bytes"
	"cmp"
	"encoding/binary"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"
	"unicode/utf8"
)

// # Usage
//
// The usage of a key says how often each operation was done with the key and which
// was the last. It is only ever added to: AddUsage reads and writes the sum within
// the commit, so that whoever counts needs to read nothing and cannot meet a
// conflict. What is added for a key that is gone is forgotten, and a key's usage
// goes with the key.
//
// It is written all the time and read hardly ever, for every key in use twice a
// minute. So keys share records: a page is the usage of all keys of a region whose
// ids begin with the same usagePageBits, which are random. A store with a million
// keys has 61 on a page, of which 4 KB are written at once instead of 61 records; one
// with few keys has pages of one key.
//
// A page's value is a list of operation names, sorted, and the keys by ascending id:
//
//	16 bytes  id
//	varint    how many operations are counted, and for each, in their order:
//	varint      number of the operation's name
//	varint      how often, not 0
//	varint    number of the last operation's name plus one; 0 for none, and the end
//	 8 bytes  its time, nanoseconds since 1970, big-endian
//	16 bytes  its request id

// A Usage is what is known of the use of a key.
type Usage struct {
	Counts []OperationCount // sorted by operation, each once, none zero

	// The last use; Operation "" is none.
	Operation string // AWS name: "Encrypt"
	Time      time.Time
	RequestID [16]byte
}

// An OperationCount says how often an operation was done.
type OperationCount struct {
	Operation string
	Count     uint64
}

// A KeyUsage is the usage of one of the keys on a page.
type KeyUsage struct {
	ID KeyID
	Usage
}

// maxUsageOperations bounds what is counted; AWS KMS has a dozen operations that
// use a key.
const maxUsageOperations = 64

type usageRecord struct {
	Operations []string `cbor:"1,keyasint,omitempty"`
	Keys       []byte   `cbor:"2,keyasint,omitempty"`
}

const usagePageBits = 14

// UsagePage is the number of the page of a key's usage: to add the usage of several
// keys of one region and page in one commit costs little more than that of one.
func UsagePage(ref Ref) uint64 {
	return uint64(binary.BigEndian.Uint16(ref.ID[:]) >> (16 - usagePageBits))
}

func usageName(ref Ref) Name {
	return Name{Kind: KindUsage, Region: ref.Region, Number: UsagePage(ref)}
}

// Add adds what o says to u. The later of the last uses remains; of two at the
// same time, o's.
func (u *Usage) Add(o *Usage) {
	for _, c := range o.Counts {
		i, found := slices.BinarySearchFunc(u.Counts, c.Operation, func(have OperationCount, op string) int {
			return strings.Compare(have.Operation, op)
		})
		if !found {
			u.Counts = slices.Insert(u.Counts, i, OperationCount{Operation: c.Operation})
		}
		u.Counts[i].Count += c.Count
	}
	if o.Operation != "" && !o.Time.Before(u.Time) {
		u.Operation, u.Time, u.RequestID = o.Operation, o.Time, o.RequestID
	}
}

// encodeUsage writes a page.
func encodeUsage(keys []KeyUsage) ([]byte, error) {
	var r usageRecord
	name := func(op string) {
		if !slices.Contains(r.Operations, op) {
			r.Operations = append(r.Operations, op)
		}
	}
	for i := range keys {
		for _, c := range keys[i].Counts {
			name(c.Operation)
		}
		if keys[i].Operation != "" {
			name(keys[i].Operation)
		}
	}
	slices.Sort(r.Operations)
	if !validOperations(r.Operations) {
		return nil, fmt.Errorf("%w: usage of operations without a name, or of too many", ErrInvalid)
	}
	index := func(op string) uint64 {
		i, _ := slices.BinarySearch(r.Operations, op)
		return uint64(i)
	}
	b := make([]byte, 0, 64*len(keys))
	for i := range keys {
		k := &keys[i]
		b = append(b, k.ID[:]...)
		b = binary.AppendUvarint(b, uint64(len(k.Counts)))
		for _, c := range k.Counts {
			b = binary.AppendUvarint(binary.AppendUvarint(b, index(c.Operation)), c.Count)
		}
		if k.Operation == "" {
			b = append(b, 0)
			continue
		}
		ns, err := putTime(k.Time)
		if err != nil {
			return nil, err
		}
		b = binary.AppendUvarint(b, index(k.Operation)+1)
		b = binary.BigEndian.AppendUint64(b, uint64(ns))
		b = append(b, k.RequestID[:]...)
	}
	r.Keys = b
	// Without encode's look at its own result: there are many of these, nothing in
	// them is secret, and what cannot be read again is refused above.
	body, err := encMode.Marshal(&r)
	if err != nil {
		return nil, fmt.Errorf("%w: %v", ErrInvalid, err)
	}
	return append([]byte{schemaVersion}, body...), nil
}

func validOperations(names []string) bool {
	for i, name := range names {
		if name == "" || !utf8.ValidString(name) || i > 0 && names[i-1] >= name {
			return false
		}
	}
	return len(names) <= maxUsageOperations
}

// decodeUsage reads a page.
func decodeUsage(n *Name, b []byte) ([]KeyUsage, error) {
	var r usageRecord
	if err := decode(b, &r); err != nil {
		return nil, err
	}
	if !validOperations(r.Operations) {
		return nil, errValue
	}
	p := usageParser{rest: r.Keys, names: r.Operations}
	// No key takes less than 18 bytes.
	keys := make([]KeyUsage, 0, len(r.Keys)/18)
	for len(p.rest) > 0 {
		var k KeyUsage
		p.key(&k)
		if p.bad || UsagePage(Ref{ID: k.ID}) != n.Number || len(keys) > 0 && bytes.Compare(keys[len(keys)-1].ID[:], k.ID[:]) >= 0 {
			return nil, errValue
		}
		keys = append(keys, k)
	}
	return keys, nil
}

// A usageParser reads the keys of a page. Once bad, it returns nothing more of use.
type usageParser struct {
	rest   []byte
	names  []string
	counts []OperationCount // room for those of several keys
	bad    bool
}

func (p *usageParser) bytes(n int) []byte {
	if len(p.rest) < n {
		p.bad, p.rest = true, nil
		return make([]byte, n)
	}
	b := p.rest[:n]
	p.rest = p.rest[n:]
	return b
}

// uvarint reads a number in its shortest form.
func (p *usageParser) uvarint() uint64 {
	v, n := binary.Uvarint(p.rest)
	if n <= 0 || n > 1 && p.rest[n-1] == 0 {
		p.bad, p.rest = true, nil
		return 0
	}
	p.rest = p.rest[n:]
	return v
}

func (p *usageParser) name() string {
	i := p.uvarint()
	if i >= uint64(len(p.names)) {
		p.bad = true
		return ""
	}
	return p.names[i]
}

func (p *usageParser) key(k *KeyUsage) {
	k.ID = KeyID(p.bytes(len(k.ID)))
	n := p.uvarint()
	if n > uint64(len(p.names)) {
		p.bad = true
		return
	}
	if n := int(n); n > 0 {
		if cap(p.counts)-len(p.counts) < n {
			p.counts = make([]OperationCount, 0, max(n, 64))
		}
		at := len(p.counts)
		for range n {
			p.counts = append(p.counts, OperationCount{p.name(), p.uvarint()})
		}
		k.Counts = p.counts[at:len(p.counts):len(p.counts)]
		for i, c := range k.Counts {
			if c.Count == 0 || i > 0 && k.Counts[i-1].Operation >= c.Operation {
				p.bad = true
			}
		}
	}
	last := p.uvarint()
	switch {
	case last == 0:
		return
	case last > uint64(len(p.names)):
		p.bad = true
		return
	}
	k.Operation = p.names[last-1]
	ns := int64(binary.BigEndian.Uint64(p.bytes(8)))
	if ns <= 0 {
		p.bad = true
	}
	k.Time, k.RequestID = getTime(ns), [16]byte(p.bytes(16))
}

// findUsage returns where a key is on a page, or belongs.
func findUsage(keys []KeyUsage, id KeyID) (i int, found bool) {
	return slices.BinarySearchFunc(keys, id, func(k KeyUsage, id KeyID) int { return bytes.Compare(k.ID[:], id[:]) })
}

// An addition is what AddUsage adds to the usage of a key.
type addition struct {
	ref Ref
	Usage
}

// AddUsage adds to the usage of a key. If there is no such key it does nothing. All
// additions of a transaction happen where the first is among its changes.
func (t *Txn) AddUsage(ref Ref, u *Usage) {
	if _, ok := t.name(usageName(ref)); !ok {
		return
	}
	add := addition{ref, *u}
	add.Counts = slices.Clone(u.Counts)
	t.usages = append(t.usages, add)
	if len(t.usages) == 1 {
		t.ops = append(t.ops, func(w *writer) error { return w.addUsage(t.usages) })
	}
}

// addUsage adds to the usage of keys, page by page.
func (w *writer) addUsage(all []addition) error {
	slices.SortStableFunc(all, func(a, b addition) int {
		return cmp.Or(strings.Compare(a.ref.Region, b.ref.Region), bytes.Compare(a.ref.ID[:], b.ref.ID[:]))
	})
	for len(all) > 0 {
		n := usageName(all[0].ref)
		end := 1
		for end < len(all) && usageName(all[end].ref) == n {
			end++
		}
		if err := w.addToPage(&n, all[:end]); err != nil {
			return err
		}
		all = all[end:]
	}
	return nil
}

// addToPage adds to the usage of keys of one page, which are in the order of their
// ids.
func (w *writer) addToPage(n *Name, adds []addition) error {
	key := n.key()
	keys, err := w.usagePage(n, key)
	if err != nil {
		return err
	}
	merged := make([]KeyUsage, 0, len(keys)+len(adds))
	added := false
	for len(adds) > 0 {
		id := adds[0].ref.ID
		at, found := findUsage(keys, id)
		merged = append(merged, keys[:at]...)
		keys = keys[at:]
		sum := KeyUsage{ID: id}
		if found {
			sum, keys = keys[0], keys[1:] // and so there is the key
			sum.Counts = slices.Clone(sum.Counts)
		} else if _, found, err = w.current(keyName(adds[0].ref).key()); err != nil {
			return err
		}
		for ; len(adds) > 0 && adds[0].ref.ID == id; adds = adds[1:] {
			sum.Add(&adds[0].Usage)
		}
		if found {
			merged, added = append(merged, sum), true
		}
	}
	if !added {
		return nil
	}
	return w.putUsage(key, append(merged, keys...))
}

// usagePage reads a page as this commit would leave it so far.
func (w *writer) usagePage(n *Name, key []byte) ([]KeyUsage, error) {
	plain, ok, err := w.current(key)
	if err != nil || !ok {
		return nil, err
	}
	keys, err := decodeUsage(n, plain)
	if err != nil {
		return nil, tampered(key, err.Error())
	}
	return keys, nil
}

func (w *writer) putUsage(key []byte, keys []KeyUsage) error {
	value, err := encodeUsage(keys)
	if err != nil {
		return err
	}
	return w.put(key, value, true)
}

// deleteUsage takes a key off its page.
func (w *writer) deleteUsage(ref Ref) error {
	n := usageName(ref)
	key := n.key()
	keys, err := w.usagePage(&n, key)
	if err != nil {
		return err
	}
	i, found := findUsage(keys, ref.ID)
	switch {
	case !found:
		return nil
	case len(keys) == 1:
		return w.delete(key, true)
	}
	return w.putUsage(key, slices.Delete(keys, i, i+1))
}

// Usage returns what is known of the use of a key, also if that is nothing.
func (s *Store) Usage(ref Ref) (*Usage, error) {
	keys, _, err := read(s, usageName(ref), decodeUsage)
	if err != nil && !errors.Is(err, ErrNotFound) {
		return nil, err
	}
	if i, found := findUsage(keys, ref.ID); found {
		return &keys[i].Usage, nil
	}
	return new(Usage), nil
}
