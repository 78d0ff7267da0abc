package keystore

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"

	"keymill/hsm/hsmtest"
)

func TestOpenOnDisk(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "data", "store")
	root := hsmtest.NewMemory()
	o := Options{Dir: dir, Root: root, MustExist: true}
	if _, err := Open(context.Background(), o); !errors.Is(err, ErrNoStore) {
		t.Fatalf("absent: %v", err)
	}
	if _, err := os.Stat(dir); !errors.Is(err, fs.ErrNotExist) {
		t.Error("MustExist made a directory")
	}
	o.MustExist = false
	s, err := Open(context.Background(), o)
	if err != nil {
		t.Fatal(err)
	}
	id := s.Header().StoreID
	if _, err := Open(context.Background(), o); !errors.Is(err, ErrLocked) || !strings.Contains(err.Error(), dir) {
		t.Errorf("in use: %v", err)
	}
	txn := s.NewTxn()
	txn.PutKey(testKey(1), 0)
	if _, err := txn.Commit(context.Background()); err != nil {
		t.Fatal(err)
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	if err := s.Close(); !errors.Is(err, ErrClosed) {
		t.Errorf("closed twice: %v", err)
	}
	o.MustExist = true
	if s, err = Open(context.Background(), o); err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	if s.Header().StoreID != id {
		t.Error("another store")
	}
	checkPrivate(t, dir)
	if n := root.Calls(hsmtest.CreateDomainKey); n != 1 {
		t.Errorf("%d domain keys were made", n)
	}
}

// checkPrivate: nobody else may read anything.
func checkPrivate(t *testing.T, dir string) {
	t.Helper()
	err := filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		info, err := d.Info()
		if err == nil && info.Mode().Perm()&0o077 != 0 {
			t.Errorf("%s has mode %v", path, info.Mode())
		}
		return err
	})
	if err != nil {
		t.Error(err)
	}
}

// TestOpenAfterFailedCreation: whatever step of creation fails, the next start
// creates the store.
func TestOpenAfterFailedCreation(t *testing.T) {
	for _, op := range []hsmtest.Op{hsmtest.CreateDomainKey, hsmtest.Encrypt} {
		h := &harness{t: t, root: hsmtest.NewMemory(), fs: newHarness(t).fs}
		o := h.options()
		o.Dir = "other"
		h.root.Inject(op, hsmtest.Fault{Err: errDisk, TookEffect: true})
		if _, err := Open(context.Background(), o); !errors.Is(err, errDisk) {
			t.Errorf("op %d: %v", op, err)
		}
		s, err := Open(context.Background(), o)
		if err != nil {
			t.Fatalf("op %d, again: %v", op, err)
		}
		s.Close()
	}
}

func TestBackupAndRestore(t *testing.T) {
	base := t.TempDir()
	root := hsmtest.NewMemory()
	s, err := Open(context.Background(), Options{Dir: filepath.Join(base, "live"), Root: root})
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	h := &harness{t: t, root: root, Store: s}
	_, id := furnish(h)

	// Commits go on while the backup is taken; those acknowledged before it are
	// in it.
	var wg sync.WaitGroup
	stop := make(chan struct{})
	acked := 0
	started := make(chan struct{})
	wg.Go(func() {
		for n := 10; n < 250; n++ {
			txn := s.NewTxn()
			txn.PutKey(withoutMaterial(byte(n)), 0)
			if _, err := txn.Commit(context.Background()); err != nil {
				t.Error(err)
				return
			}
			if n == 20 {
				acked = n
				close(started)
			}
			select {
			case <-stop:
				return
			default:
			}
		}
	})
	<-started
	backup := filepath.Join(base, "backup")
	if err := s.Backup(context.Background(), backup); err != nil {
		t.Fatal(err)
	}
	close(stop)
	wg.Wait()
	checkPrivate(t, backup)
	if err := s.Backup(context.Background(), backup); !errors.Is(err, os.ErrExist) {
		t.Errorf("onto a backup: %v", err)
	}

	elsewhere := filepath.Join(base, "elsewhere")
	if err := Restore(backup, elsewhere); err != nil {
		t.Fatal(err)
	}
	checkPrivate(t, elsewhere)
	restored, err := Open(context.Background(), Options{Dir: elsewhere, Root: root.Reopen(), MustExist: true})
	if err != nil {
		t.Fatal(err)
	}
	if secret, err := restored.OpenMaterial(context.Background(), id); err != nil || string(secret) != "the secret" {
		t.Errorf("material: %q, %v", secret, err)
	}
	for n := 10; n <= acked; n++ {
		if _, err := restored.Key(testKey(byte(n)).Ref()); err != nil {
			t.Errorf("key %d: %v", n, err)
		}
	}
	if err := restored.Verify(context.Background(), nil); err != nil {
		t.Error(err)
	}
	restored.Close()
	if err := Restore(backup, elsewhere); err == nil || !strings.Contains(err.Error(), "not empty") {
		t.Errorf("onto a store: %v", err)
	}
	if _, err := Open(context.Background(), Options{Dir: elsewhere, Root: hsmtest.NewMemory()}); !errors.Is(err, ErrWrongRoot) {
		t.Errorf("with another root: %v", err)
	}
	checkNoSecrets(t, backup)

	// Every file in turn is damaged, cut or lost, or one is added.
	manifest := filepath.Join(backup, manifestName)
	files, _ := filepath.Glob(filepath.Join(backup, checkpointName, "*"))
	target := filepath.Join(base, "target")
	refused := func(what string) {
		t.Helper()
		if err := Restore(backup, target); !errors.Is(err, ErrBadBackup) {
			t.Errorf("%s: %v", what, err)
		}
		for _, dir := range []string{target, target + partialSuffix} {
			if _, err := os.Stat(dir); !errors.Is(err, fs.ErrNotExist) {
				t.Errorf("%s: %s was left behind", what, dir)
			}
		}
	}
	for _, file := range append(files, manifest) {
		old, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		name := filepath.Base(file)
		os.Remove(file)
		refused(name + " lost")
		if len(old) == 0 {
			os.WriteFile(file, old, 0o600)
			continue
		}
		os.WriteFile(file, old[:len(old)-2], 0o600)
		refused(name + " cut")
		os.WriteFile(file, append(slices.Clone(old), "junk"...), 0o600)
		refused(name + " longer")
		if file != manifest {
			changed := bytes.Clone(old)
			changed[len(changed)/2] ^= 1
			os.WriteFile(file, changed, 0o600)
			refused(name + " damaged")
		}
		os.WriteFile(file, old, 0o600)
	}
	extra := filepath.Join(backup, checkpointName, "999999.sst")
	os.WriteFile(extra, []byte("x"), 0o600)
	refused("extra file")
	os.Remove(extra)
	os.Mkdir(target, 0o700)
	if err := Restore(backup, target); err != nil {
		t.Errorf("into an empty directory: %v", err)
	}
}

// checkNoSecrets looks for what must never be on disk in clear.
func checkNoSecrets(t *testing.T, dir string) {
	t.Helper()
	filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		b, err := os.ReadFile(path)
		for _, word := range []string{"the secret", "for tests", "arn:aws"} {
			if bytes.Contains(b, []byte(word)) {
				t.Errorf("%s contains %q", path, word)
			}
		}
		return err
	})
}

func TestWatch(t *testing.T) {
	h := newHarness(t)
	from := h.Revision() + 1
	k := withoutMaterial(1)
	done := make(chan error, 1)
	events := make(chan Event)
	ctx, cancel := context.WithCancel(context.Background())
	go func() {
		done <- h.Watch(ctx, from, func(e Event) bool { events <- e; return true })
	}()
	h.commit(func(txn *Txn) { txn.PutKey(k, 0); txn.SetAudit([]byte("x")) })
	e := <-events
	var names []string
	for _, c := range e.Changes {
		names = append(names, fmt.Sprint(string(c.Name.Kind), c.Deleted))
	}
	slices.Sort(names)
	if got := fmt.Sprint(e.Revision-from, names); got != "0 [jfalse kfalse lfalse nfalse]" {
		t.Errorf("event: %s", got)
	}
	k.Revision = e.Revision
	h.commit(func(txn *Txn) { txn.DeleteKey(k) })
	if e := <-events; e.Revision != from+1 || !e.Changes[0].Deleted || e.Changes[0].Name.ID != k.ID {
		t.Errorf("event: %+v", e)
	}
	cancel()
	if err := <-done; !errors.Is(err, context.Canceled) {
		t.Errorf("ended: %v", err)
	}

	if err := h.Watch(context.Background(), from-1, nil); !errors.Is(err, ErrCompacted) {
		t.Errorf("before the store was opened: %v", err)
	}
	for i := range historyCommits {
		h.commit(func(txn *Txn) { txn.Put("r", fmt.Append(nil, i), AnyRevision) })
	}
	if err := h.Watch(context.Background(), from+1, nil); !errors.Is(err, ErrCompacted) {
		t.Errorf("too old: %v", err)
	}
	seen := uint64(0)
	err := h.Watch(context.Background(), from+2, func(e Event) bool {
		if e.Revision != from+2+seen {
			t.Errorf("revision %d", e.Revision)
		}
		seen++
		return seen < historyCommits
	})
	if err != nil || seen != historyCommits {
		t.Errorf("%d events, %v", seen, err)
	}
	const large = historyChanges / MaxChanges
	for i := range large + 1 {
		h.commit(func(txn *Txn) {
			for j := range MaxChanges {
				txn.Put(fmt.Sprint(j), fmt.Append(nil, i), AnyRevision)
			}
		})
	}
	if oldest := h.Revision() - large + 1; h.history.first != oldest || h.history.changes != historyChanges {
		t.Errorf("%d changes are kept, from %d, want %d", h.history.changes, h.history.first, oldest)
	}
	go func() { done <- h.Watch(context.Background(), h.Revision()+1, nil) }()
	eventually(t, "watcher", func() bool { h.history.mu.Lock(); defer h.history.mu.Unlock(); return h.history.wake != nil })
	h.Close()
	h.Store = nil
	if err := <-done; !errors.Is(err, ErrClosed) {
		t.Errorf("closed: %v", err)
	}
}

func TestLimits(t *testing.T) {
	h := newHarness(t)
	put := func(n, size int) func(*Txn) {
		return func(txn *Txn) {
			for i := range n {
				txn.Put(fmt.Sprintf("%d/%d/%03d", n, size, i), make([]byte, size), 0)
			}
		}
	}
	h.commit(put(MaxChanges, 10))
	h.fails(ErrTooLarge, put(MaxChanges+1, 11))
	h.commit(put(8, 127<<10))
	h.fails(ErrTooLarge, put(8, 128<<10))
	if _, _, err := h.Get("129/11/000"); !errors.Is(err, ErrNotFound) {
		t.Errorf("part of a refused commit: %v", err)
	}
	rows, more, err := h.Scan("128/10/", "128/10/010", 5)
	if len(rows) != 5 || rows[0].Name != "128/10/011" || !more || err != nil {
		t.Errorf("scan: %v, %v, %v", rows, more, err)
	}
	if rows, more, err := h.Scan("128/10/", "128/10/125", 5); len(rows) != 2 || more || err != nil {
		t.Errorf("last page: %v, %v, %v", rows, more, err)
	}
	for what, build := range map[string]func(*Txn){
		"no name":        func(txn *Txn) { txn.Put("", nil, 0) },
		"long name":      func(txn *Txn) { txn.Put(strings.Repeat("x", maxName+1), nil, 0) },
		"no region":      func(txn *Txn) { k := testKey(1); k.Region = ""; txn.PutKey(k, 0) },
		"long region":    func(txn *Txn) { k := testKey(1); k.Region = strings.Repeat("r", 256); txn.PutKey(k, 0) },
		"ancient":        func(txn *Txn) { k := testKey(1); k.Created = now.AddDate(-100, 0, 0); txn.PutKey(k, 0) },
		"repeated tag":   func(txn *Txn) { txn.PutTags(Ref{region, KeyID{1}}, []Tag{{"a", "1"}, {"a", "2"}}, 0) },
		"too many tags":  func(txn *Txn) { txn.PutTags(Ref{region, KeyID{1}}, manyTags(5000), 0) },
		"written twice":  func(txn *Txn) { txn.Put("t", nil, 0); txn.Put("t", nil, 0) },
		"no account":     func(txn *Txn) { txn.PutAlias(&Alias{Region: region, Name: "alias/x"}, 0) },
		"name not utf-8": func(txn *Txn) { k := testKey(1); k.Spec = "\xff"; txn.PutKey(k, 0) },
	} {
		txn := h.NewTxn()
		build(txn)
		before := h.Revision()
		if _, err := txn.Commit(context.Background()); !errors.Is(err, ErrInvalid) || h.Revision() != before {
			t.Errorf("%s: %v", what, err)
		}
	}
	txn := h.NewTxn()
	txn.Put("once", nil, 0)
	if _, err := txn.Commit(context.Background()); err != nil {
		t.Fatal(err)
	}
	if _, err := txn.Commit(context.Background()); !errors.Is(err, ErrInvalid) {
		t.Errorf("committed twice: %v", err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	txn = h.NewTxn()
	txn.Put("never", nil, 0)
	if _, err := txn.Commit(ctx); !errors.Is(err, context.Canceled) {
		t.Errorf("with an ended context: %v", err)
	}
	if _, _, err := h.Get("never"); !errors.Is(err, ErrNotFound) {
		t.Errorf("with an ended context: %v", err)
	}
}

func manyTags(n int) (tags []Tag) {
	for i := range n {
		tags = append(tags, Tag{fmt.Sprintf("%05d", i), ""})
	}
	return tags
}

// TestAliasMoves: both indexes follow an alias from key to key and away.
func TestAliasMoves(t *testing.T) {
	h := newHarness(t)
	k1, k2 := withoutMaterial(1), withoutMaterial(2)
	h.commit(func(txn *Txn) { txn.PutKey(k1, 0); txn.PutKey(k2, 0) })
	a := &Alias{Account: account, Region: region, Name: "alias/a", Created: now, Updated: now}
	expect := uint64(0)
	for _, target := range []KeyID{{}, k1.ID, k1.ID, k2.ID, {}, k2.ID} {
		a.Target = target
		expect = h.commit(func(txn *Txn) { txn.PutAlias(a, expect) })
		for _, k := range []*Key{k1, k2} {
			n, err := h.CountKeyAliases(k.Ref(), 10)
			if want := map[bool]int{true: 1}[k.ID == target]; n != want || err != nil {
				t.Errorf("target %v: key %v has %d aliases, %v", target, k.ID, n, err)
			}
		}
		if err := h.Verify(context.Background(), nil); err != nil {
			t.Error(err)
		}
	}
	h.fails(ErrConflict, func(txn *Txn) { b := *a; b.Target = KeyID{99}; txn.PutAlias(&b, expect) })
	h.fails(ErrConflict, func(txn *Txn) { b := *a; b.Revision = 1; txn.DeleteAlias(&b) })
	a.Revision = expect
	h.commit(func(txn *Txn) { txn.DeleteAlias(a) })
	h.fails(ErrConflict, func(txn *Txn) { txn.DeleteAlias(a) })
	if n, err := h.CountKeyAliases(k2.Ref(), 10); n != 0 || err != nil {
		t.Errorf("after deletion: %d, %v", n, err)
	}
	// Names of one key may be a prefix of another's region or account.
	long := withoutMaterial(1)
	long.Region, long.ID = "us-east-1a", KeyID{7}
	h.commit(func(txn *Txn) { txn.PutKey(long, 0) })
	if rows, _, _ := h.ListKeys(account, region, KeyID{}, false, 10); len(rows) != 2 {
		t.Errorf("%d keys in %s", len(rows), region)
	}
}

// TestDeleteKeyWithManyAliases: more than fit into one commit are refused as a
// whole; after some are gone, the rest goes with the key.
func TestDeleteKeyWithManyAliases(t *testing.T) {
	h := newHarness(t)
	k := withoutMaterial(1)
	h.commit(func(txn *Txn) { txn.PutKey(k, 0) })
	k.Revision = h.Revision()
	for i := range 80 {
		h.commit(func(txn *Txn) {
			txn.PutAlias(&Alias{Account: account, Region: region, Name: fmt.Sprintf("alias/%02d", i), Target: k.ID, Created: now, Updated: now}, 0)
		})
	}
	h.fails(ErrTooLarge, func(txn *Txn) { txn.DeleteKey(k) })
	if n, err := h.CountKeyAliases(k.Ref(), 100); n != 80 || err != nil {
		t.Errorf("%d aliases after a refused deletion, %v", n, err)
	}
	some, more, err := h.ListKeyAliases(k.Ref(), "alias/09", 30)
	if len(some) != 30 || !more || err != nil || some[0].Name != "alias/10" {
		t.Fatalf("%d aliases, %v, %v", len(some), more, err)
	}
	h.commit(func(txn *Txn) {
		for _, a := range some {
			txn.DeleteAlias(a)
		}
	})
	h.commit(func(txn *Txn) { txn.DeleteKey(k) })
	if rows, _, err := h.ListAliases(account, region, "", 100); len(rows) != 0 || err != nil {
		t.Errorf("%d aliases remain, %v", len(rows), err)
	}
	if err := h.Verify(context.Background(), nil); err != nil {
		t.Error(err)
	}
}
