package keystore

import (
	"time"
)

// # What is due
//
// Three things happen to keys by themselves: imported material expires, a key
// whose waiting period is over is destroyed, a key rotates. So that nobody has to
// look at every key to find those whose time has come, the store keeps one entry
// per key that has such a date, sorted by it. The entry follows from the key's
// record (Due) and is written with it, by the store itself, so they cannot
// disagree.

// Due returns the earliest date at which something is to happen to the key by
// itself, the zero time when nothing is. A rotation waits while the key is not
// enabled; its date stays and counts again afterwards.
func (k *Key) Due() time.Time {
	due := k.DeletionDate
	earlier := func(t time.Time) {
		if !t.IsZero() && (due.IsZero() || t.Before(due)) {
			due = t
		}
	}
	if k.State == stateEnabled {
		earlier(k.NextRotation)
	}
	for i := range k.Versions {
		if v := &k.Versions[i]; v.Expires && !v.Missing {
			earlier(v.ValidTo)
		}
	}
	return due
}

// stateEnabled is the State of keys that can be used.
const stateEnabled = "Enabled"

func dueName(ref Ref, at time.Time) Name {
	return Name{Kind: KindDue, Number: uint64(at.UnixNano()), Region: ref.Region, ID: ref.ID}
}

// moveDue replaces the entry of a key as it was by one for another date; the
// zero time is none.
func (w *writer) moveDue(old *Key, due time.Time) error {
	before := old.Due()
	if before.Equal(due) {
		return nil
	}
	if !before.IsZero() {
		if err := w.delete(dueName(old.Ref(), before).key(), true); err != nil {
			return err
		}
	}
	if due.IsZero() {
		return nil
	}
	plain, err := encode(&dueRecord{})
	if err != nil {
		return err
	}
	return w.put(dueName(old.Ref(), due).key(), plain, true)
}

// A DueKey is a key to which something is to happen by itself.
type DueKey struct {
	Ref Ref
	At  time.Time
}

// ListDue returns up to limit keys that are due at or before a time, the
// earliest first, beginning after another such entry when that is not nil.
func (s *Store) ListDue(until time.Time, after *DueKey, limit int) (keys []DueKey, more bool, err error) {
	var from []byte
	if after != nil {
		from = dueName(after.Ref, after.At).key()
	}
	end := uint64(until.UnixNano())
	err = s.scan([]byte{byte(KindDue)}, from, func(r *raw) (bool, error) {
		if r.name.Number > end {
			return false, nil
		}
		if len(keys) >= limit {
			more = true
			return false, nil
		}
		if _, err := r.open(); err != nil {
			return false, err
		}
		keys = append(keys, DueKey{Ref{r.name.Region, r.name.ID}, time.Unix(0, int64(r.name.Number)).UTC()})
		return true, nil
	})
	if err == nil {
		err = s.waitSettled()
	}
	if err != nil {
		return nil, false, err
	}
	return keys, more, nil
}
