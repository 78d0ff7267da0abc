package keystore

import (
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"
	"unicode/utf8"
)

// # Usage
//
// A key's usage record says how often each operation was done with the key and
// which was the last. It is only ever added to: AddUsage reads the record and
// writes the sum within the commit, so that whoever counts needs to read nothing
// and cannot meet a conflict. What is added for a key that is gone is forgotten,
// and the record goes with the key.

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

// maxUsageOperations bounds what a record counts; AWS KMS has a dozen operations
// that use a key.
const maxUsageOperations = 64

type usageRecord struct {
	Counts    []operationCountRecord `cbor:"1,keyasint,omitempty"`
	Operation string                 `cbor:"2,keyasint,omitempty"`
	Time      int64                  `cbor:"3,keyasint,omitempty"`
	RequestID []byte                 `cbor:"4,keyasint,omitempty"`
}

type operationCountRecord struct {
	Operation string `cbor:"1,keyasint,omitempty"`
	Count     uint64 `cbor:"2,keyasint,omitempty"`
}

func usageName(ref Ref) Name { return Name{Kind: KindUsage, Region: ref.Region, ID: ref.ID} }

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

func encodeUsage(u *Usage) ([]byte, error) {
	r := usageRecord{Counts: make([]operationCountRecord, len(u.Counts)), Operation: u.Operation}
	for i, c := range u.Counts {
		r.Counts[i] = operationCountRecord(c)
	}
	if u.Operation != "" {
		r.RequestID = u.RequestID[:]
	}
	if err := times(nil, &r.Time, u.Time); err != nil {
		return nil, err
	}
	if !r.valid() {
		return nil, fmt.Errorf("%w: a usage that contradicts itself", ErrInvalid)
	}
	// Without encode's look at its own result: there are many of these, nothing in
	// them is secret, and valid says as much.
	body, err := encMode.Marshal(&r)
	if err != nil {
		return nil, fmt.Errorf("%w: %v", ErrInvalid, err)
	}
	return append([]byte{schemaVersion}, body...), nil
}

func (r *usageRecord) valid() bool {
	for i, c := range r.Counts {
		if c.Operation == "" || !utf8.ValidString(c.Operation) || c.Count == 0 || i > 0 && r.Counts[i-1].Operation >= c.Operation {
			return false
		}
	}
	size := 16
	if r.Operation == "" {
		size = 0
	}
	return len(r.Counts) <= maxUsageOperations && utf8.ValidString(r.Operation) && len(r.RequestID) == size && r.Time >= 0 && (r.Time == 0) == (r.Operation == "")
}

func decodeUsage(b []byte) (*Usage, error) {
	var r usageRecord
	if err := decode(b, &r); err != nil {
		return nil, err
	}
	if !r.valid() {
		return nil, errValue
	}
	u := &Usage{Counts: make([]OperationCount, len(r.Counts)), Operation: r.Operation, Time: getTime(r.Time)}
	for i, c := range r.Counts {
		u.Counts[i] = OperationCount(c)
	}
	copy(u.RequestID[:], r.RequestID)
	return u, nil
}

// AddUsage adds to the usage of a key. If there is no such key it does nothing.
func (t *Txn) AddUsage(ref Ref, u *Usage) {
	key, ok := t.name(usageName(ref))
	if !ok {
		return
	}
	add := *u
	add.Counts = slices.Clone(u.Counts)
	t.ops = append(t.ops, func(w *writer) error {
		sum := new(Usage)
		plain, ok, err := w.current(key)
		if err != nil {
			return err
		}
		if ok { // then so does the key
			if sum, err = decodeUsage(plain); err != nil {
				return tampered(key, err.Error())
			}
		} else if _, ok, err := w.current(keyName(ref).key()); err != nil || !ok {
			return err
		}
		sum.Add(&add)
		value, err := encodeUsage(sum)
		if err != nil {
			return err
		}
		return w.put(key, value, true)
	})
}

// Usage returns what is known of the use of a key, also if that is nothing.
func (s *Store) Usage(ref Ref) (*Usage, error) {
	u, _, err := read(s, usageName(ref), func(_ *Name, b []byte) (*Usage, error) { return decodeUsage(b) })
	if errors.Is(err, ErrNotFound) {
		return new(Usage), nil
	}
	return u, err
}
