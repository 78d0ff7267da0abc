package keystore

import (
	"context"
	"testing"
	"time"

	"github.com/cockroachdb/pebble/v2/vfs"

	"keymill/hsm/hsmtest"
)

const (
	account = "000000000000"
	region  = "us-east-1"
)

// A harness is a store in memory with its root.
type harness struct {
	t    testing.TB
	fs   vfs.FS
	root *hsmtest.Memory
	*Store
}

func newHarness(t testing.TB) *harness {
	h := &harness{t: t, fs: vfs.NewCrashableMem(), root: hsmtest.NewMemory()}
	h.open()
	return h
}

var now = time.Date(2026, 5, 4, 3, 2, 1, 987654321, time.UTC)

func (h *harness) options() Options {
	return Options{Dir: "store", Root: h.root, fs: h.fs, Clock: func() time.Time { return now }}
}

func (h *harness) open() {
	h.t.Helper()
	s, err := Open(context.Background(), h.options())
	if err != nil {
		h.t.Fatal(err)
	}
	h.Store = s
	h.t.Cleanup(func() {
		if h.Store == s {
			h.Close()
		}
	})
}

func (h *harness) reopen() {
	h.t.Helper()
	if err := h.Close(); err != nil {
		h.t.Fatal(err)
	}
	h.open()
}

// commit runs a transaction that must succeed.
func (h *harness) commit(build func(t *Txn)) uint64 {
	h.t.Helper()
	txn := h.NewTxn()
	build(txn)
	rev, err := txn.Commit(context.Background())
	if err != nil {
		h.t.Fatal(err)
	}
	return rev
}

// fails runs a transaction that must fail with the error.
func (h *harness) fails(want error, build func(t *Txn)) {
	h.t.Helper()
	txn := h.NewTxn()
	build(txn)
	if _, err := txn.Commit(context.Background()); !isError(err, want) {
		h.t.Fatalf("got %v, want %v", err, want)
	}
}

func testKey(n byte) *Key {
	return &Key{
		Account: account, Region: region, ID: KeyID{0: n, 15: n}, Spec: "SYMMETRIC_DEFAULT", Usage: "ENCRYPT_DECRYPT",
		Origin: "AWS_KMS", State: "Enabled", Manager: ManagerCustomer, Description: "for tests", Created: now,
		Versions:       []Version{{Number: 1, MaterialID: [32]byte{n}, Created: now}},
		CurrentVersion: 1,
	}
}
