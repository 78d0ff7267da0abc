package kms

import (
	"bytes"
	"errors"
	"fmt"
	"log/slog"
	"runtime"
	"strings"
	"testing"
	"time"

	"keymill/keystore"
)

// TestScheduleGoesOn: a key that fails, and one that panics, neither hold up the
// others nor are forgotten; the pause between tries grows.
func TestScheduleGoesOn(t *testing.T) {
	h := newHarness(t)
	h.svc.log = slog.New(slog.DiscardHandler)
	const keys = 40
	bad := make(map[keystore.KeyID]int) // tries
	for i := range keys {
		id, _ := h.newKey(nil)
		h.must("ScheduleKeyDeletion", args{"KeyId": id, "PendingWindowInDays": 7})
		if i%20 == 7 {
			bad[refOf(t, testRegion, id).ID] = 0
		}
	}
	panics := false
	h.svc.destroyExternal = func(rec *keystore.Key) error {
		if _, ok := bad[rec.ID]; !ok {
			return nil
		}
		bad[rec.ID]++
		if panics {
			panic("a bug")
		}
		return errors.New("its token is away")
	}
	left := func(want int) {
		t.Helper()
		if n, err := h.store.CountKeys(testAccount, testRegion); n != want || err != nil {
			t.Errorf("%d keys are left, %v, want %d", n, err, want)
		}
	}
	tried := func(want int) {
		t.Helper()
		for id, n := range bad {
			if n != want {
				t.Errorf("key %s was tried %d times, want %d", id, n, want)
			}
		}
	}
	h.now = h.now.Add(7 * day)
	h.due()
	left(len(bad))
	tried(1)
	h.now = h.now.Add(setbackFirst - 1)
	h.due()
	tried(1)
	h.now = h.now.Add(1)
	panics = true
	h.due()
	tried(2)
	h.now = h.now.Add(2*setbackFirst - 1)
	h.due()
	tried(2)
	h.now = h.now.Add(1)
	h.due()
	tried(3)
	var metrics bytes.Buffer
	h.svc.WriteMetrics(&metrics)
	for _, want := range []string{"keymill_due_keys_failing 2\n", fmt.Sprintf("keymill_keys_destroyed_total %d\n", keys-len(bad))} {
		if !strings.Contains(metrics.String(), want) {
			t.Errorf("metrics lack %q", want)
		}
	}
	h.svc.destroyExternal = nil
	h.now = h.now.Add(setbackMost)
	h.due()
	left(0)
	if n := h.svc.sched.failing.Load(); n != 0 {
		t.Errorf("%d keys count as failing", n)
	}
}

// TestSchedulePages: more keys are due than are listed at once.
func TestSchedulePages(t *testing.T) {
	h := newHarness(t)
	for i := range duePage + 5 {
		rec := &keystore.Key{
			Account: testAccount, Region: testRegion, ID: keystore.KeyID{byte(i), byte(i >> 8), 1}, Spec: "SYMMETRIC_DEFAULT", Usage: "ENCRYPT_DECRYPT", Origin: "EXTERNAL",
			State: "PendingDeletion", Manager: keystore.ManagerCustomer, Created: h.now, DeletionDate: h.now.Add(time.Duration(i%3) * time.Hour), PendingWindowDays: 7,
		}
		tx := h.store.NewTxn()
		tx.PutKey(rec, 0)
		if err := commit(tx); err != nil {
			t.Fatal(err)
		}
	}
	h.now = h.now.Add(2 * time.Hour)
	h.due()
	if n, err := h.store.CountKeys(testAccount, testRegion); n != 0 || err != nil {
		t.Errorf("%d keys are left, %v", n, err)
	}
}

// TestScheduleRuns: the goroutine does what is due, waits until the next date, and
// ends.
func TestScheduleRuns(t *testing.T) {
	h := newHarness(t)
	id, _ := h.newKey(nil)
	h.must("ScheduleKeyDeletion", args{"KeyId": id, "PendingWindowInDays": 7})
	h.now = h.now.Add(7 * day)
	if wait := h.svc.round(); wait != scheduleEvery {
		t.Errorf("with nothing due it waits %v", wait)
	}
	if n, _ := h.store.CountKeys(testAccount, testRegion); n != 0 {
		t.Error("the round did not destroy the key")
	}
	h.svc.erasing.wg.Wait()
	id, _ = h.newKey(nil)
	h.must("ScheduleKeyDeletion", args{"KeyId": id, "PendingWindowInDays": 7})
	h.now = h.now.Add(7*day - 9*time.Second)
	if wait := h.svc.round(); wait != 9*time.Second {
		t.Errorf("nine seconds before the date it waits %v", wait)
	}
	h.now = h.now.Add(time.Hour)
	h.svc.Start() // ended by the harness
	for h.svc.sched.rounds.Load() < 3 {
		runtime.Gosched()
	}
	if n, _ := h.store.CountKeys(testAccount, testRegion); n != 0 {
		t.Error("the goroutine did not destroy the key")
	}
}
