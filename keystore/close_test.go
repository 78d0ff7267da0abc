package keystore

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"testing"

	"keymill/hsm/hsmtest"
)

// TestClosedStoreIsAllTables: after an orderly end every acknowledged change is
// in a table, whose blocks are checksummed. In the log, damage would look like a
// write that a crash cut short, and what follows would be gone without a word.
func TestClosedStoreIsAllTables(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "store")
	o := Options{Dir: dir, Root: hsmtest.NewMemory()}
	s, err := Open(context.Background(), o)
	if err != nil {
		t.Fatal(err)
	}
	k := testKey(1)
	txn := s.NewTxn()
	txn.PutKey(k, 0)
	if _, err := txn.Commit(context.Background()); err != nil {
		t.Fatal(err)
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	logs, err := filepath.Glob(filepath.Join(dir, "*.log"))
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range logs {
		if err := os.Truncate(name, 0); err != nil {
			t.Fatal(err)
		}
	}
	s, err = Open(context.Background(), o)
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	if _, err := s.Key(k.Ref()); err != nil {
		t.Errorf("without the logs: %v", err)
		if errors.Is(err, ErrNotFound) {
			t.Error("the change was only in the log")
		}
	}
}
