package keystore

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/cockroachdb/pebble/v2"
)

// An eraser deletes the files that the storage engine has done with. The engine
// would keep a few logs, to write over them later, and in them what was deleted
// meanwhile. It deletes them as well when its cleaner says that it wants the contents
// of files, as ArchiveCleaner does with a method that cannot be written
// elsewhere. Embedded one deeper, it lends that method and no other.
type eraser struct {
	pebble.DeleteCleaner
	keepNoLogs
}

type keepNoLogs struct{ pebble.ArchiveCleaner }

// eraseTimeout bounds the wait for files that the storage engine has replaced to
// go. Readers that began before may hold one for a moment.
const eraseTimeout = time.Minute

// ErrPinned says that bytes of deleted records are still needed by somebody who
// reads an earlier state of the store: try again later.
var ErrPinned = errors.New("keystore: deleted records are still being read")

// # Erasing
//
// A deleted record is gone for every reader when the commit returns, but its
// sealed bytes are not gone from the disk: the storage engine has written a marker
// that hides them, and they remain in the log and in the tables that they were
// written to until those are rewritten, which may be never. Erase
// makes that happen for some keys:
//
//	flush    every log that exists now becomes superfluous, and is deleted (eraser)
//	compact  over the range of each kind of record of each key, level by level, so that
//	         marker and bytes meet in one rewriting and neither survives it
//	wait     until the files that both have replaced are gone from the directory
//
// What compaction must not drop is what a snapshot sees (Verify), and what a
// reader has under its cursor stays in a file until it is done; hence ErrPinned.
// A compaction rewrites whole tables, some megabytes each, and tables once
// rewritten to the last level are not rewritten again for their neighbours. Many keys
// at once therefore cost little more than a few; see maxSpans for very many.
//
// Backups are copies elsewhere: nothing here reaches them.

// Erase removes from disk the bytes of what was deleted of keys: of their
// records, materials, policies, tags, grants and everything else whose
// storage key begins with the key, and of the pages that their usage was on. It may
// be called again at any time, and after a failure has to be. Commits go on meanwhile.
func (s *Store) Erase(ctx context.Context, refs []Ref) error {
	if len(refs) == 0 {
		return nil
	}
	if err := s.waitSettled(); err != nil {
		return err
	}
	if s.db.Metrics().Snapshots.Count > 0 {
		return ErrPinned
	}
	ctx, cancel := context.WithTimeout(ctx, eraseTimeout+time.Duration(len(refs))*time.Second)
	defer cancel()
	logs, err := s.files(".log")
	if err != nil {
		return err
	}
	flushed, err := s.db.AsyncFlush()
	if err != nil {
		return err
	}
	select {
	case <-flushed:
	case <-ctx.Done():
		return fmt.Errorf("keystore: erasing: the log was not written out: %w", ctx.Err())
	}
	for _, span := range spans(refs) {
		if err := s.db.Compact(ctx, span.start, span.end, false); err != nil {
			return fmt.Errorf("keystore: erasing: %w", err)
		}
	}
	if err := s.Err(); err != nil {
		return err
	}
	return s.gone(ctx, logs)
}

// A span is a range of storage keys, both ends in it.
type span struct{ start, end []byte }

// maxSpans is up to how many keys are compacted one by one. Beyond, everything
// between the first and the last is: less to decide, and nearly every table
// holds one of them anyway.
const maxSpans = 256

// spans returns the ranges of what belongs to keys.
func spans(refs []Ref) (out []span) {
	for kind := range parts {
		if !strings.HasPrefix(parts[kind], "RI") && Kind(kind) != KindUsage {
			continue
		}
		first := len(out)
		for _, ref := range refs {
			n := Name{Kind: Kind(kind), Region: ref.Region, ID: ref.ID}
			if n.Kind == KindUsage {
				n = usageName(ref)
			}
			start := n.prefix(2)
			out = append(out, span{start, upperBound(start)})
		}
		of := out[first:]
		slices.SortFunc(of, func(a, b span) int { return bytes.Compare(a.start, b.start) })
		if len(of) > maxSpans {
			out = append(out[:first], span{of[0].start, of[len(of)-1].end})
		}
	}
	return out
}

// files lists the files of the store's directory with a suffix.
func (s *Store) files(suffix string) (map[string]bool, error) {
	names, err := s.fs.List(s.dir)
	if err != nil {
		return nil, fmt.Errorf("keystore: erasing: %w", err)
	}
	found := make(map[string]bool)
	for _, name := range names {
		if strings.HasSuffix(name, suffix) {
			found[name] = true
		}
	}
	return found, nil
}

// gone waits until none of the logs is left, and of the tables that there are now
// only those that the store consists of.
func (s *Store) gone(ctx context.Context, logs map[string]bool) error {
	tables, err := s.files(".sst")
	if err != nil {
		return err
	}
	timeout, pause := time.NewTimer(eraseTimeout), time.NewTicker(5*time.Millisecond)
	defer timeout.Stop()
	defer pause.Stop()
	for {
		left, err := s.left(logs, tables)
		if err != nil || left == 0 {
			return err
		}
		select {
		case <-pause.C:
		case <-timeout.C:
			return fmt.Errorf("%w: %d files", ErrPinned, left)
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

// left counts the logs that still exist and the tables that exist and are not live.
func (s *Store) left(logs, tables map[string]bool) (n int, err error) {
	live := make(map[string]bool)
	levels, err := s.db.SSTables()
	if err != nil {
		return 0, fmt.Errorf("keystore: erasing: %w", err)
	}
	for _, level := range levels {
		for i := range level {
			live[fmt.Sprintf("%06d.sst", level[i].BackingSSTNum)] = true
			live[fmt.Sprintf("%06d.sst", level[i].FileNum)] = true
		}
	}
	names, err := s.fs.List(s.dir)
	if err != nil {
		return 0, fmt.Errorf("keystore: erasing: %w", err)
	}
	for _, name := range names {
		if logs[name] || tables[name] && !live[name] {
			n++
		}
	}
	return n, nil
}

// Sealed returns a record as its bytes are on disk, for those who look for them
// there. ErrNotFound: there is no such record.
func (s *Store) Sealed(n Name) ([]byte, error) {
	key := n.key()
	sealed, closer, err := s.db.Get(key)
	if errors.Is(err, pebble.ErrNotFound) {
		return nil, ErrNotFound
	} else if err != nil {
		return nil, s.readError(key, err)
	}
	return bytes.Clone(sealed), closer.Close()
}
