package kms

import (
	"context"
	"encoding/hex"
	"errors"
	"fmt"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"keymill/keystore"
)

// # Destruction
//
// When a key's waiting period is over and the clock is believed (clock.go), the key
// goes for good. It may have 50,000 grants and a thousand versions, so it goes in
// several commits, in an order that a crash may cut anywhere:
//
//	mark     the record says Destroying. From here on the key is not found by
//	         anybody, nothing changes it, and nobody can cancel
//	elsewhere   what lives outside of the store: objects in a token
//	pieces   grants, aliases, and the material of keys with many versions
//	end      one commit: material, policy, tags and record; the count of keys; the
//	         records of related keys; and a note that the key is to be erased
//
// The deletion date stays in the record to the end, so an interrupted destruction
// is still due, and goes on with the next round of the scheduler: each of the
// steps does what is left to do.
//
// # Erasing
//
// With its last commit the key is gone, but its sealed bytes are not gone from the
// disk. A note in the store names each key that was destroyed, or lost material, until
// keystore.Erase has rewritten the files. That is done for all notes together,
// at most once in eraseEvery, beside the other work; so the bytes are gone within eraseEvery and
// the time that the rewriting takes, and after a crash the notes are still there.
const (
	eraseEvery = 10 * time.Minute
	// erasePage bounds the keys that are erased together.
	erasePage = 4096
	// erasePrefix begins the names of the notes on keys to be erased.
	erasePrefix = "erase/"
	// notesPerCommit is how many notes are removed at once.
	notesPerCommit = 100
	// aliasesPerCommit: each is two records.
	aliasesPerCommit = 40
)

// destroyDue destroys a key whose waiting period is over.
func (s *Service) destroyDue(rec *keystore.Key, now time.Time) error {
	switch {
	case rec.Destroying:
	case rec.State != statePendingDeletion.String() || rec.DeletionDate.IsZero() || rec.DeletionDate.After(now):
		return nil
	default:
		marked := *rec
		marked.Destroying = true
		t := s.store.NewTxn()
		t.PutKey(&marked, rec.Revision)
		if err := commit(t); err != nil {
			return err
		}
		s.log.Info("a key is being destroyed: its waiting period is over", "region", rec.Region, "key", rec.ID.String(), "date", rec.DeletionDate.Format(time.RFC3339))
	}
	s.forget(rec)
	if s.destroyExternal != nil {
		if err := s.destroyExternal(rec); err != nil {
			return fmt.Errorf("what it has outside of the store: %w", err)
		}
	}
	if err := s.destroyPieces(rec); err != nil {
		return err
	}
	return s.destroyRecord(rec.Ref(), now)
}

// forget drops what is in memory of a key that nobody is to find any more.
func (s *Service) forget(rec *keystore.Key) {
	ref := rec.Ref()
	if v, ok := s.views.Get(ref); ok {
		s.dropHandle(v)
	}
	s.dropView(ref)
	if v, err := s.buildView(rec); err == nil { // the handle may have outlived its view
		s.dropHandle(v)
	}
	s.buckets.Invalidate(ref)
}

// destroyPieces removes of a key's belongings what may be too much for one commit.
func (s *Service) destroyPieces(rec *keystore.Key) error {
	ref := rec.Ref()
	if err := s.store.DeleteGrants(context.Background(), ref); err != nil {
		return err
	}
	for {
		aliases, _, err := s.store.ListKeyAliases(ref, "", aliasesPerCommit)
		if err != nil {
			return err
		}
		if len(aliases) == 0 {
			break
		}
		t := s.store.NewTxn()
		for _, a := range aliases {
			t.DeleteAlias(a)
		}
		err = commit(t)
		for _, a := range aliases {
			s.aliases.Invalidate(aliasName{a.Account, a.Region, a.Name})
		}
		if err != nil {
			return err
		}
	}
	for versions := rec.Versions; len(versions) > materialsPerCommit; {
		t := s.store.NewTxn()
		for _, v := range versions[:materialsPerCommit] {
			t.DeleteMaterial(ref, v.Number, keystore.AnyRevision)
		}
		if err := commit(t); err != nil {
			return err
		}
		versions = versions[materialsPerCommit:]
	}
	return nil
}

// destroyRecord is the end of a key.
func (s *Service) destroyRecord(ref keystore.Ref, now time.Time) error {
	for range commitRetries {
		rec, err := s.store.Key(ref)
		if errors.Is(err, keystore.ErrNotFound) {
			return nil
		} else if err != nil {
			return err
		}
		t := s.store.NewTxn()
		changed, err := s.leaveFamily(rec, now, t)
		if err != nil {
			return err
		}
		t.DeleteKey(rec)
		dropPairs(t, ref)
		eraseLater(t, ref)
		if err = commit(t); errors.Is(err, keystore.ErrConflict) {
			continue
		} else if err != nil {
			return err
		}
		s.forget(rec)
		for _, r := range changed {
			s.dropView(r)
		}
		s.destroyed.Add(1)
		s.log.Info("a key was destroyed", "region", ref.Region, "key", ref.ID.String())
		return nil
	}
	return errBusy
}

// refName writes a reference as the last part of a record's name.
func refName(ref keystore.Ref) string { return ref.Region + "/" + ref.ID.String() }

// parseRefName is the reverse of refName.
func parseRefName(name string) (ref keystore.Ref, ok bool) {
	region, id, _ := strings.Cut(name, "/")
	b, err := hex.DecodeString(id)
	if region == "" || err != nil || len(b) != len(ref.ID) {
		return ref, false
	}
	return keystore.Ref{Region: region, ID: keystore.KeyID(b)}, refName(keystore.Ref{Region: region, ID: keystore.KeyID(b)}) == name
}

// eraseLater notes in a transaction that deletes material of a key that its bytes
// are to be erased from the disk.
func eraseLater(t *keystore.Txn, ref keystore.Ref) {
	t.Put(erasePrefix+refName(ref), nil, keystore.AnyRevision)
}

// eraseLater is the same for what was deleted of a family's imported material.
func (f *family) eraseLater(t *keystore.Txn) {
	for _, c := range f.changes() {
		eraseLater(t, c.before.Ref())
	}
}

// An erasing is the state of the work that rewrites files.
type erasing struct {
	mu   sync.Mutex // held while files are rewritten
	wg   sync.WaitGroup
	busy atomic.Bool
	last time.Time // begun; of the scheduler's goroutine
}

// eraseDue begins to erase what is noted, unless that was done lately or is being
// done.
func (s *Service) eraseDue(now time.Time) {
	e := &s.erasing
	if now.Sub(e.last).Abs() < eraseEvery || e.busy.Load() {
		return
	}
	if notes, _, err := s.store.Scan(erasePrefix, "", 1); err == nil && len(notes) == 0 {
		return
	}
	e.last = now
	e.busy.Store(true)
	ctx, cancel := context.WithCancel(context.Background())
	e.wg.Go(func() {
		defer e.busy.Store(false)
		defer cancel()
		n, err := s.erase(ctx)
		switch {
		case err != nil && ctx.Err() == nil:
			s.log.Warn("the bytes of destroyed keys could not be erased from the disk yet; it is tried again", "again_in", eraseEvery.String(), "error", err)
		case n > 0:
			s.log.Info("the bytes of destroyed keys and materials were erased from the disk", "keys", n)
		}
	})
	e.wg.Go(func() {
		select {
		case <-s.sched.stop:
			cancel()
		case <-ctx.Done():
		}
	})
}

// erase erases from the disk what is noted, and removes the notes. It returns how
// many keys that were.
func (s *Service) erase(ctx context.Context) (n int, err error) {
	s.erasing.mu.Lock()
	defer s.erasing.mu.Unlock()
	for {
		notes, more, err := s.store.Scan(erasePrefix, "", erasePage)
		if err != nil || len(notes) == 0 {
			return n, err
		}
		var refs []keystore.Ref
		for _, note := range notes {
			ref, ok := parseRefName(strings.TrimPrefix(note.Name, erasePrefix))
			if !ok {
				return n, fmt.Errorf("record %q names no key", note.Name)
			}
			refs = append(refs, ref)
		}
		if err := s.store.Erase(ctx, refs); err != nil {
			return n, err
		}
		for len(notes) > 0 {
			t := s.store.NewTxn()
			piece := notes[:min(len(notes), notesPerCommit)]
			for _, note := range piece {
				t.Delete(note.Name, note.Revision)
			}
			// A conflict: material of such a key was deleted again meanwhile. The
			// notes stay for the next time.
			if err := commit(t); err != nil && !errors.Is(err, keystore.ErrConflict) {
				return n, err
			}
			n += len(piece)
			notes = notes[len(piece):]
		}
		if !more {
			return n, nil
		}
	}
}
