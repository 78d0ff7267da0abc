// Package keystore keeps everything that must survive: keys and their sealed
// material, policies, tags, aliases, principals and access keys, and the audit
// record of each change, sealed and with revisions, in one directory.
//
// # Using it
//
// [Open] opens the directory for a root of trust (package hsm) and returns a
// [Store]. Reads are methods of the Store and return immutable values with the
// revision of the commit that wrote them. Changes are collected in a [Txn] and
// made by one [Txn.Commit], all or none:
//
//	k, err := s.Key(ref)
//	changed := *k
//	changed.State = "Disabled"
//	txn := s.NewTxn()
//	txn.PutKey(&changed, k.Revision)
//	txn.SetAudit(record)
//	rev, err := txn.Commit(ctx)
//
// Commit answers [ErrConflict] when the key is no longer at the revision read;
// read and decide again then. When it answers without error, the change is on
// disk, and every read that begins later sees it. A read never shows what a
// crash could still take back.
//
// # What is on disk
//
// Every record has a storage key: a letter for its [Kind] and the parts of its
// name (layout.go). Its value is CBOR (codec.go), sealed with XAES-256-GCM under
// the store key, the storage key being associated data (seal.go). One record,
// the header, is in clear: it identifies the store and holds the store key,
// encrypted by the root, under a MAC. Key material is sealed once more, under a
// key of its own that only the root can unwrap (material.go). Below this is
// Pebble, of which nothing shows outside.
//
// A record that was changed, swapped or cut short is an [ErrTampered] that names
// it, never a wrong answer. [Store.Verify] checks all of them, and that indexes
// and counters agree with what they index. Not detected is a rollback: an older
// whole store, or an older version of one record, put back by somebody who can
// write the disk.
//
// All that the root has wrapped can be wrapped anew under another domain key, of the
// same root or of another, while the store is in use: [Store.BeginRewrap] and
// [Store.Rewrap], see rewrap.go.
//
// # How commits reach the disk
//
// Commits that come while the disk is busy share the next fsync; see commit.go
// for the pipeline and its invariants. A failed write or fsync is fatal: nothing
// more is accepted until the store is opened again.
//
// # Caching
//
// The store caches blocks of storage, not values. [Cache] is what callers put in
// front of it.
package keystore
