package kms

import (
	"context"
	"errors"
	"strings"
	"sync"
	"testing"
	"time"
	"unsafe"

	"github.com/google/go-cmp/cmp"

	"keymill/keystore"
)

// wantUse compares what GetKeyLastUsage says of a key: the operation of a request
// and its id, "" for none.
func (h *harness) wantUse(id, operation, request string) {
	h.Helper()
	a := h.must("GetKeyLastUsage", args{"KeyId": id})
	u, _ := a.fields["KeyLastUsage"].(map[string]any)
	want := map[string]any{}
	if operation != "" {
		want = map[string]any{"Operation": operation, "Timestamp": wireTime(h.now), "KmsRequestId": request, "CloudTrailEventId": u["CloudTrailEventId"]}
		if event, _ := u["CloudTrailEventId"].(string); len(event) != 36 || event == request {
			h.Errorf("CloudTrailEventId %q", event)
		}
	}
	if diff := cmp.Diff(want, u); diff != "" {
		h.Errorf("last use (-want +got):\n%s", diff)
	}
}

// use makes a request and expects it to be the last use of its key.
func (h *harness) use(id, op, operation string, in args) {
	h.Helper()
	h.now = h.now.Add(time.Millisecond)
	if in["KeyId"] == nil {
		in["KeyId"] = id
	}
	a := h.must(op, in)
	h.wantUse(id, operation, a.header.Get("X-Amzn-Requestid"))
}

func (h *harness) counts(id string) map[string]uint64 {
	h.Helper()
	u, err := h.svc.usage.of(h.ref(id), nil)
	if err != nil {
		h.Fatal(err)
	}
	counts := make(map[string]uint64)
	for _, c := range u.Counts {
		counts[c.Operation] = c.Count
	}
	return counts
}

func TestKeyLastUsage(t *testing.T) {
	h := newHarness(t)
	start := h.now
	h.now = h.now.AddDate(0, 0, 1)
	created := h.now
	id, arn := h.newKey(nil)
	mac, _ := h.newKey(args{"KeySpec": "HMAC_256", "KeyUsage": "GENERATE_VERIFY_MAC"})
	sig, _ := h.newKey(args{"KeySpec": "ECC_NIST_P256", "KeyUsage": "SIGN_VERIFY"})
	ecdh, _ := h.newKey(args{"KeySpec": "ECC_NIST_P256", "KeyUsage": "KEY_AGREEMENT"})
	rsa, _ := h.newKey(args{"KeySpec": "RSA_2048", "KeyUsage": "ENCRYPT_DECRYPT"})

	h.now = h.now.AddDate(0, 0, 1)
	want := map[string]any{"KeyId": arn, "KeyCreationDate": wireTime(created), "TrackingStartDate": wireTime(created), "KeyLastUsage": map[string]any{}}
	for _, form := range []string{id, arn} {
		if diff := cmp.Diff(want, h.must("GetKeyLastUsage", args{"KeyId": form}).fields); diff != "" {
			t.Errorf("of a key that was not used (-want +got):\n%s", diff)
		}
	}

	h.use(id, "Encrypt", "Encrypt", args{"Plaintext": b64("x")})
	blob := h.must("Encrypt", args{"KeyId": arn, "Plaintext": b64("x")}).str("CiphertextBlob")
	h.use(id, "Decrypt", "Decrypt", args{"KeyId": arn, "CiphertextBlob": blob})
	h.use(id, "GenerateDataKey", "GenerateDataKey", args{"KeySpec": "AES_256"})
	h.use(id, "GenerateDataKeyWithoutPlaintext", "GenerateDataKeyWithoutPlaintext", args{"KeySpec": "AES_256"})
	h.use(id, "GenerateDataKeyPair", "GenerateDataKeyPair", args{"KeyPairSpec": "ECC_NIST_P256"})
	h.use(id, "GenerateDataKeyPairWithoutPlaintext", "GenerateDataKeyPairWithoutPlaintext", args{"KeyPairSpec": "ECC_NIST_P256"})
	h.use(mac, "GenerateMac", "GenerateMac", args{"Message": b64("x"), "MacAlgorithm": "HMAC_SHA_256"})
	tag := h.must("GenerateMac", args{"KeyId": mac, "Message": b64("x"), "MacAlgorithm": "HMAC_SHA_256"}).str("Mac")
	h.use(mac, "VerifyMac", "VerifyMac", args{"Message": b64("x"), "MacAlgorithm": "HMAC_SHA_256", "Mac": tag})
	h.use(sig, "Sign", "Sign", args{"Message": b64("x"), "SigningAlgorithm": "ECDSA_SHA_256"})
	signature := h.must("Sign", args{"KeyId": sig, "Message": b64("x"), "SigningAlgorithm": "ECDSA_SHA_256"}).str("Signature")
	h.use(sig, "Verify", "Verify", args{"Message": b64("x"), "SigningAlgorithm": "ECDSA_SHA_256", "Signature": signature})
	peer := h.must("GetPublicKey", args{"KeyId": ecdh}).str("PublicKey") // which is no use
	h.wantUse(ecdh, "", "")
	h.use(ecdh, "DeriveSharedSecret", "DeriveSharedSecret", args{"KeyAgreementAlgorithm": "ECDH", "PublicKey": peer})
	h.use(rsa, "Encrypt", "Encrypt", args{"Plaintext": b64("x"), "EncryptionAlgorithm": "RSAES_OAEP_SHA_256"})

	// ReEncrypt is a use of both keys, and one use of one.
	h.use(id, "ReEncrypt", "ReEncrypt", args{"KeyId": nil, "CiphertextBlob": blob, "DestinationKeyId": rsa, "DestinationEncryptionAlgorithm": "RSAES_OAEP_SHA_256"})
	both := h.must("GetKeyLastUsage", args{"KeyId": id}).fields["KeyLastUsage"].(map[string]any)
	h.wantUse(rsa, "ReEncrypt", both["KmsRequestId"].(string))
	h.must("ReEncrypt", args{"CiphertextBlob": blob, "DestinationKeyId": id})
	if got := h.counts(id)["ReEncrypt"]; got != 2 {
		t.Errorf("ReEncrypt counts %d times", got)
	}

	// The last use outlives changes of the key, and restarts.
	h.use(id, "Decrypt", "Decrypt", args{"CiphertextBlob": blob})
	last := h.must("GetKeyLastUsage", args{"KeyId": id}).fields
	h.now = h.now.AddDate(0, 0, 1)
	h.must("TagResource", args{"KeyId": id, "Tags": []args{{"TagKey": "a", "TagValue": "b"}}})
	h.must("DisableKey", args{"KeyId": id})
	unchanged := func(when string) {
		t.Helper()
		if diff := cmp.Diff(last, h.must("GetKeyLastUsage", args{"KeyId": id}).fields); diff != "" {
			t.Errorf("%s: %s", when, diff)
		}
	}
	unchanged("disabled")
	h.restart()
	unchanged("after a restart")
	h.must("ScheduleKeyDeletion", args{"KeyId": id})
	unchanged("pending deletion")

	// What fails, or was never to happen, is no use.
	before := h.must("GetKeyLastUsage", args{"KeyId": mac}).fields
	h.now = h.now.Add(time.Second)
	for op, in := range map[string]args{
		"GenerateMac": {"KeyId": mac, "Message": b64("x"), "MacAlgorithm": "HMAC_SHA_256", "DryRun": true},
		"VerifyMac":   {"KeyId": mac, "Message": b64("y"), "MacAlgorithm": "HMAC_SHA_256", "Mac": tag},
		"Encrypt":     {"KeyId": mac, "Plaintext": b64("x")},
	} {
		if a := h.call(op, in); a.status == 200 {
			t.Errorf("%s: %s", op, a)
		}
	}
	h.must("DescribeKey", args{"KeyId": mac})
	if diff := cmp.Diff(before, h.must("GetKeyLastUsage", args{"KeyId": mac}).fields); diff != "" {
		t.Errorf("after requests that did nothing: %s", diff)
	}

	// A key that is older than the record of its use.
	old := h.record(id)
	old.Created = start.AddDate(0, 0, -100)
	h.replace(old)
	a := h.must("GetKeyLastUsage", args{"KeyId": id})
	if a.fields["TrackingStartDate"] != wireTime(start) || a.fields["KeyCreationDate"] != wireTime(old.Created) {
		t.Errorf("use is recorded since %v, the store has it since %v", a, start)
	}
}

func TestKeyLastUsageRefusals(t *testing.T) {
	h := newHarness(t)
	id, arn := h.newKey(nil)
	h.must("CreateAlias", args{"AliasName": "alias/a", "TargetKeyId": id})
	const op = "GetKeyLastUsage"
	unknown := "12345678-1234-4234-8234-123456789012"
	h.refused(op, args{}, "ValidationException", "1 validation error detected: Value null at 'keyId' failed to satisfy constraint: Member must not be null")
	for _, alias := range []string{"alias/a", "alias/none", h.aliasARN("alias/a")} {
		h.refused(op, args{"KeyId": alias}, "InvalidArnException", "Key Aliases are not supported for this operation.")
	}
	h.refused(op, args{"KeyId": unknown}, "NotFoundException", "Key '"+strings.Replace(arn, id, unknown, 1)+"' does not exist")
	h.refused(op, args{"KeyId": "x"}, "NotFoundException", "Invalid keyId 'x'")
	for state := range stateCount {
		h.inState(id, state)
		h.must(op, args{"KeyId": id})
	}
}

// TestBatchesCountTheirItems: those that succeed, under AWS's names.
func TestBatchesCountTheirItems(t *testing.T) {
	h := newHarness(t)
	id, _ := h.newKey(nil)
	other, _ := h.newKey(nil)
	sig, _ := h.newKey(args{"KeySpec": "ECC_NIST_P256", "KeyUsage": "SIGN_VERIFY"})
	blob := h.must("Encrypt", args{"KeyId": id, "Plaintext": b64("x")}).str("CiphertextBlob")
	blob2 := h.must("Encrypt", args{"KeyId": other, "Plaintext": b64("x")}).str("CiphertextBlob")
	signature := h.must("Sign", args{"KeyId": sig, "Message": b64("x"), "SigningAlgorithm": "ECDSA_SHA_256"}).str("Signature")
	h.must("GenerateDataKeys", args{"KeyId": id, "KeySpec": "AES_256", "NumberOfKeys": 130})
	h.must("GenerateDataKeys", args{"KeyId": id, "KeySpec": "AES_256", "NumberOfKeys": 3, "WithoutPlaintext": true})
	var items []args
	for range 70 {
		items = append(items, args{"Plaintext": b64("x")})
	}
	h.must("BatchEncrypt", args{"KeyId": id, "Items": items})
	h.must("BatchDecrypt", args{"Items": []args{{"CiphertextBlob": blob}, {"CiphertextBlob": blob2}, {"CiphertextBlob": blob}, {"CiphertextBlob": b64("x")}}})
	h.must("BatchSign", args{"KeyId": sig, "SigningAlgorithm": "ECDSA_SHA_256", "Items": []args{{"Message": b64("x")}, {"Message": b64("y")}}})
	h.must("BatchVerify", args{"KeyId": sig, "SigningAlgorithm": "ECDSA_SHA_256", "Items": []args{{"Message": b64("x"), "Signature": signature}, {"Message": b64("y"), "Signature": signature}}})
	h.call("BatchEncrypt", args{"KeyId": id, "Items": items, "DryRun": true})
	h.call("GenerateDataKeys", args{"KeyId": id, "KeySpec": "AES_256", "NumberOfKeys": 5, "DryRun": true})
	for range 2 { // before and after they are written
		for key, want := range map[string]map[string]uint64{
			id:    {"Encrypt": 71, "GenerateDataKey": 130, "GenerateDataKeyWithoutPlaintext": 3, "Decrypt": 2},
			other: {"Encrypt": 1, "Decrypt": 1},
			sig:   {"Sign": 3, "Verify": 1},
		} {
			if diff := cmp.Diff(want, h.counts(key)); diff != "" {
				t.Errorf("(-want +got):\n%s", diff)
			}
		}
		if err := h.svc.usage.flush(); err != nil {
			t.Fatal(err)
		}
	}
	h.sound()
}

// TestUseIsWritten: by a flush, in batches, once, while requests go on, and what
// a failed commit did not write is not lost.
func TestUseIsWritten(t *testing.T) {
	h := newHarness(t)
	u := h.svc.usage
	const keys = 2*usageBatch + 37
	now := h.now
	uses := make([]*keyUse, keys)
	for i := range uses {
		ref := keystore.Ref{Region: testRegion, ID: keystore.KeyID{byte(i), byte(i >> 8)}} // each on a page of its own
		tx := h.store.NewTxn()
		tx.PutKey(&keystore.Key{Account: testAccount, Region: testRegion, ID: ref.ID, Spec: "SYMMETRIC_DEFAULT", Usage: "ENCRYPT_DECRYPT", Origin: "EXTERNAL", State: "PendingImport", Manager: "CUSTOMER", Created: now}, 0)
		if err := commit(tx); err != nil {
			t.Fatal(err)
		}
		uses[i] = &keyUse{ref: ref}
	}
	id := [2]uint64{1, 2}
	mark := func(n uint32) {
		for _, k := range uses {
			u.mark(k, useSign, n, now, &id)
			u.mark(k, useVerify, 1, now, &id)
		}
	}
	mark(3)
	if got := u.pending.Load(); got != keys {
		t.Errorf("%d keys are dirty", got)
	}
	before := h.store.Revision()
	if err := u.flush(); err != nil {
		t.Fatal(err)
	}
	if got := h.store.Revision() - before; got != 3 || u.pending.Load() != 0 {
		t.Errorf("%d commits, %d keys still dirty", got, u.pending.Load())
	}
	before = h.store.Revision()
	if err := u.flush(); err != nil || h.store.Revision() != before {
		t.Errorf("a flush with nothing to write: %v, %d commits", err, h.store.Revision()-before)
	}
	check := func(sign, verify uint64) {
		t.Helper()
		for _, k := range uses {
			got, err := h.store.Usage(k.ref)
			if err != nil {
				t.Fatal(err)
			}
			want := &keystore.Usage{
				Counts:    []keystore.OperationCount{{Operation: "Sign", Count: sign}, {Operation: "Verify", Count: verify}},
				Operation: "Verify", Time: now.Truncate(time.Microsecond), RequestID: [16]byte{0: 1, 8: 2},
			}
			if diff := cmp.Diff(want, got); diff != "" {
				t.Fatalf("record (-want +got):\n%s", diff)
			}
		}
	}
	check(3, 1)

	// Requests and flushes at the same time: nothing is lost or counted twice.
	var all sync.WaitGroup
	for range 4 {
		all.Go(func() {
			for range 20 {
				mark(1)
			}
		})
	}
	for range 10 {
		if err := u.flush(); err != nil {
			t.Fatal(err)
		}
	}
	all.Wait()
	if err := u.flush(); err != nil {
		t.Fatal(err)
	}
	check(3+80, 1+80)

	// A store that fails.
	mark(5)
	u.collect()
	whole := u.store
	closed, err := keystore.Open(context.Background(), keystore.Options{Dir: t.TempDir(), Root: h.root, Clock: func() time.Time { return h.now }})
	if err != nil {
		t.Fatal(err)
	}
	if err := closed.Close(); err != nil {
		t.Fatal(err)
	}
	u.store = closed
	if err := u.flush(); !errors.Is(err, keystore.ErrClosed) {
		t.Errorf("flush into a closed store: %v", err)
	}
	if got := u.pending.Load(); got != keys {
		t.Errorf("%d keys are dirty after a failure", got)
	}
	u.store = whole
	if err := u.flush(); err != nil {
		t.Fatal(err)
	}
	check(3+80+5, 1+80+1)
	if got := u.pending.Load(); got != 0 {
		t.Errorf("%d keys are dirty in the end", got)
	}
}

// TestDirtyUsesAreBounded: who goes beyond the bound writes.
func TestDirtyUsesAreBounded(t *testing.T) {
	h := newHarness(t)
	u := h.svc.usage
	id := [2]uint64{}
	for i := range dirtyUses + 50*usageBatch {
		k := &keyUse{ref: keystore.Ref{Region: testRegion, ID: keystore.KeyID{byte(i), byte(i >> 8), byte(i >> 16)}}}
		u.mark(k, useSign, 1, h.now, &id)
		if n := u.pending.Load(); n > dirtyUses+1 {
			t.Fatalf("%d keys are dirty", n)
		}
	}
	select {
	case <-u.wake:
	default:
		t.Error("nobody woke the flusher")
	}
	if size := unsafe.Sizeof(keyUse{}); size > 128 {
		t.Errorf("a keyUse has %d bytes", size)
	}
	if err := u.close(); err != nil || u.pending.Load() != 0 {
		t.Errorf("%v, %d keys still dirty", err, u.pending.Load())
	}
}

// TestLastUseIsOne: time, operation and request of the last use are always of one
// and the same request.
func TestLastUseIsOne(t *testing.T) {
	u := newHarness(t).svc.usage
	k := &keyUse{}
	base := time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)
	var all sync.WaitGroup
	stop := make(chan struct{})
	for w := range 3 {
		all.Go(func() {
			for i := uint64(w); ; i += 3 {
				select {
				case <-stop:
					return
				default:
				}
				n := i % 1_000_000
				u.mark(k, use(1+n%uint64(numUses-1)), 1, base.Add(time.Duration(n)*time.Microsecond), &[2]uint64{n, ^n})
			}
		})
	}
	for range 100_000 {
		l := k.lastUse()
		if l.Operation == "" {
			continue
		}
		n := uint64(l.Time.Sub(base).Microseconds())
		var want [16]byte
		for i := range 8 {
			want[i], want[8+i] = byte(n>>(8*i)), byte(^n>>(8*i))
		}
		if l.RequestID != want || l.Operation != useNames[1+n%uint64(numUses-1)] {
			t.Fatalf("%+v is not of request %d", l, n)
		}
	}
	close(stop)
	all.Wait()
}

func TestUseNames(t *testing.T) {
	for as := useDecrypt; as < numUses; as++ {
		if as > useDecrypt && useNames[as-1] >= useNames[as] {
			t.Errorf("%s comes before %s", useNames[as-1], useNames[as])
		}
		if got := usedAs[operationOf(useNames[as])]; got != as {
			t.Errorf("%s counts as %s", useNames[as], useNames[got])
		}
	}
}

// TestUsageSince: the date since which use is recorded stays.
func TestUsageSince(t *testing.T) {
	h := newHarness(t)
	since := h.svc.usage.since
	h.now = h.now.AddDate(1, 0, 0)
	h.restart()
	if !h.svc.usage.since.Equal(since) {
		t.Errorf("recorded since %v, was %v", h.svc.usage.since, since)
	}
	tx := h.store.NewTxn()
	tx.Put(usageRecord, []byte("yesterday"), keystore.AnyRevision)
	if err := commit(tx); err != nil {
		t.Fatal(err)
	}
	if _, err := newUsageLog(h.store, 1, h.now); err == nil || !strings.Contains(err.Error(), usageRecord) {
		t.Errorf("a date that is none: %v", err)
	}
}

func TestUsageMetrics(t *testing.T) {
	h := newHarness(t)
	id, _ := h.newKey(nil)
	h.must("Encrypt", args{"KeyId": id, "Plaintext": b64("x")})
	var b strings.Builder
	h.svc.WriteMetrics(&b)
	for _, line := range []string{"keymill_usage_pending_keys 1", "keymill_usage_write_failures_total 0"} {
		if !strings.Contains(b.String(), line+"\n") {
			t.Errorf("no %q in\n%s", line, b.String())
		}
	}
}
