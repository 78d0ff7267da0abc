package e2e

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/aws/aws-sdk-go-v2/service/kms"
	"github.com/aws/aws-sdk-go-v2/service/kms/types"

	"keymill/daemon"
	"keymill/engine"
	"keymill/hsm"
	"keymill/keystore"
	"keymill/keystore/keystoretest"
)

// offline opens the store of a daemon that does not run.
func (s *story) offline(f func(*keystore.Store) error) {
	s.Helper()
	root, err := hsm.OpenSoftware(filepath.Join(s.d.Dir(), "root.key"), hsm.SoftwareOptions{})
	if err != nil {
		s.Fatal(err)
	}
	store, err := keystore.Open(s.ctx(), keystore.Options{Dir: daemon.StoreDir(s.d.Dir()), Root: root, MustExist: true})
	if err != nil {
		s.Fatal(errors.Join(err, root.Close()))
	}
	if err := errors.Join(f(store), store.Close(), root.Close()); err != nil {
		s.Fatal(err)
	}
}

func (s *story) ref(id string) keystore.Ref {
	s.Helper()
	parsed, ok := engine.ParseKeyID(id)
	if !ok {
		s.Fatalf("key id %q", id)
	}
	return keystore.Ref{Region: s.region, ID: parsed.ID}
}

// overdue brings a key's deletion date forward, as if its waiting period had passed.
func overdue(store *keystore.Store, ref keystore.Ref) error {
	rec, err := store.Key(ref)
	if err != nil {
		return err
	}
	next := *rec
	next.DeletionDate = time.Now().Add(-time.Second)
	t := store.NewTxn()
	t.PutKey(&next, rec.Revision)
	_, err = t.Commit(context.Background())
	return err
}

// TestDeletionOnDisk: a daemon that starts after the date of some keys destroys
// them, is killed while it does, goes on when it is started again, and leaves nothing
// of their sealed material in the data directory.
func TestDeletionOnDisk(t *testing.T) {
	t.Parallel()
	d := start(t, Options{})
	s := storyIn(t, d, "us-east-1")
	const doomed = 12
	var ids []string
	for i := range doomed + 3 {
		id := s.symmetricKey()
		ids = append(ids, id)
		must(s.CreateAlias(s.ctx(), &kms.CreateAliasInput{AliasName: ptr(fmt.Sprintf("alias/%d", i)), TargetKeyId: &id}))(t)
		for range 5 {
			must(s.CreateGrant(s.ctx(), &kms.CreateGrantInput{KeyId: &id, GranteePrincipal: ptr("arn:aws:iam::" + Account + ":root"), Operations: []types.GrantOperation{types.GrantOperationDecrypt}}))(t)
		}
	}
	blob := must(s.Encrypt(s.ctx(), &kms.EncryptInput{KeyId: &ids[0], Plaintext: []byte("x")}))(t).CiphertextBlob
	for _, id := range ids[:doomed] {
		must(s.ScheduleKeyDeletion(s.ctx(), &kms.ScheduleKeyDeletionInput{KeyId: &id, PendingWindowInDays: ptr[int32](7)}))(t)
	}
	if err := d.Stop(); err != nil {
		t.Fatal(err)
	}
	var needles [][]byte
	s.offline(func(store *keystore.Store) error {
		for _, id := range ids[:doomed] {
			ref := s.ref(id)
			b, err := store.Sealed(keystore.Name{Kind: keystore.KindMaterial, Region: ref.Region, ID: ref.ID, Version: 1})
			if err != nil {
				return err
			}
			needles = append(needles, b)
			if err := overdue(store, ref); err != nil {
				return err
			}
		}
		return nil
	})
	for _, n := range needles {
		if len(keystoretest.FilesWith(t, d.Dir(), n)) == 0 {
			t.Fatal("material that exists was not found on disk: the search is wrong")
		}
	}
	for range 3 { // killed at some moment of it
		if err := d.startProcess(); err != nil {
			t.Fatal(err)
		}
		<-time.After(time.Duration(rand.IntN(300)) * time.Millisecond)
		d.Kill()
	}
	if err := d.StartAgain(t.Context()); err != nil {
		t.Fatal(err)
	}
	for _, id := range ids[:doomed] {
		eventually(t, "the key is destroyed", func() bool {
			_, err := s.DescribeKey(s.ctx(), &kms.DescribeKeyInput{KeyId: &id})
			return apiErrorOf(err).Code == "NotFoundException"
		})
		_, err := s.DescribeKey(s.ctx(), &kms.DescribeKeyInput{KeyId: &id})
		wantError(t, err, "NotFoundException", "Key '"+s.keyARN(id)+"' does not exist")
	}
	_, err := s.Decrypt(s.ctx(), &kms.DecryptInput{CiphertextBlob: blob})
	wantError(t, err, "AccessDeniedException", "The ciphertext refers to a customer master key that does not exist, does not exist in this region, or you are not allowed to access.")
	eventually(t, "the bytes are erased", func() bool { return len(keystoretest.FilesWith(t, d.Dir(), needles...)) == 0 })
	for _, id := range ids[doomed:] {
		if got := s.describe(id).KeyState; got != types.KeyStateEnabled {
			t.Errorf("a key that nobody deleted is %s", got)
		}
	}
	keys := must(s.ListKeys(s.ctx(), &kms.ListKeysInput{}))(t).Keys
	aliases := slices.DeleteFunc(must(s.ListAliases(s.ctx(), &kms.ListAliasesInput{}))(t).Aliases, func(a types.AliasListEntry) bool {
		return strings.HasPrefix(*a.AliasName, "alias/aws/")
	})
	if len(keys) != 3 || len(aliases) != 3 {
		t.Errorf("%d keys and %d aliases are left, want 3", len(keys), len(aliases))
	}
	if err := d.Stop(); err != nil {
		t.Fatal(err)
	}
	s.offline(func(store *keystore.Store) error { return store.Verify(context.Background(), nil) })
}

// TestConfirmClock: a daemon that was off for long destroys nothing until an
// operator confirms the clock.
func TestConfirmClock(t *testing.T) {
	t.Parallel()
	d := start(t, Options{})
	s := storyIn(t, d, "us-east-1")
	id := s.symmetricKey()
	must(s.ScheduleKeyDeletion(s.ctx(), &kms.ScheduleKeyDeletionInput{KeyId: &id}))(t)
	if err := d.Stop(); err != nil {
		t.Fatal(err)
	}
	s.offline(func(store *keystore.Store) error {
		tx := store.NewTxn()
		tx.Put("daemon/clock", []byte(`{"time":"`+time.Now().Add(-49*time.Hour).UTC().Format(time.RFC3339)+`"}`), keystore.AnyRevision)
		if _, err := tx.Commit(context.Background()); err != nil {
			return err
		}
		return overdue(store, s.ref(id))
	})
	if err := d.StartAgain(t.Context()); err != nil {
		t.Fatal(err)
	}
	metric := func(want string) func() bool {
		return func() bool { return strings.Contains(must(d.Metrics())(t), want+"\n") }
	}
	eventually(t, "destruction is suspended", metric("keymill_destruction_suspended 1"))
	eventually(t, "a round ended", func() bool { return !metric("keymill_due_rounds_total 0")() })
	if got := s.describe(id).KeyState; got != types.KeyStatePendingDeletion {
		t.Errorf("the key is %s", got)
	}
	if !strings.Contains(d.Log(), "expiry and deletion are suspended") {
		t.Error("the log does not say so")
	}
	confirm := func() string {
		t.Helper()
		out, err := exec.Command(binary, "confirm-clock", "--data", d.Dir()).CombinedOutput()
		if err != nil {
			t.Fatalf("%v: %s", err, out)
		}
		return string(out)
	}
	if out := confirm(); !strings.HasPrefix(out, "clock confirmed: ") || !strings.Contains(out, "they go on now") {
		t.Errorf("printed %q", out)
	}
	if out := confirm(); !strings.Contains(out, "nothing had been suspended") {
		t.Errorf("printed %q", out)
	}
	eventually(t, "the key is destroyed", func() bool {
		_, err := s.DescribeKey(s.ctx(), &kms.DescribeKeyInput{KeyId: &id})
		return apiErrorOf(err).Code == "NotFoundException"
	})
	eventually(t, "destruction goes on", metric("keymill_destruction_suspended 0"))
	if err := d.Stop(); err != nil {
		t.Fatal(err)
	}
	if out, err := exec.Command(binary, "confirm-clock", "--data", d.Dir()).CombinedOutput(); err == nil || !strings.Contains(string(out), "no daemon is running") {
		t.Errorf("without a daemon: %v, %q", err, out)
	}
}
