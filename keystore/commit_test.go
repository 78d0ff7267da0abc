package keystore

import (
	"context"
	"sync"
	"testing"

	"github.com/cockroachdb/pebble/v2/vfs"

	"keymill/hsm/hsmtest"
)

// TestCommitOfNothing: a commit that changes nothing answers with the revision in front
// of it, and leaves the settling of that to the one whose it is.
func TestCommitOfNothing(t *testing.T) {
	h := &harness{t: t, root: hsmtest.NewMemory(), fs: vfs.NewMem()}
	h.open()
	newest := h.commit(func(txn *Txn) { txn.PutKey(testKey(1), 0) })
	nothing, err := h.NewTxn().apply(context.Background())
	if err != nil || nothing == h.tail.Load() || nothing.rev != newest {
		t.Fatalf("%+v, %v, want revision %d", nothing, err, newest)
	}
	var wg sync.WaitGroup
	for i := range 4 {
		wg.Go(func() {
			for n := range 300 {
				txn := h.NewTxn()
				if i%2 == 0 {
					txn.Put("test/record", []byte{byte(n)}, AnyRevision)
				}
				rev, err := txn.Commit(context.Background())
				if err != nil || rev > h.Revision() {
					t.Errorf("revision %d, %v; %d is durable", rev, err, h.Revision())
					return
				}
			}
		})
	}
	wg.Wait()
	if got, want := h.Revision(), newest+2*300; got != want {
		t.Errorf("revision %d, want %d", got, want)
	}
}
