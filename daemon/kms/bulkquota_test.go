package kms

import (
	"runtime"
	"strings"
	"sync"
	"testing"

	mill "keymill/batch"
)

// TestBulkQuota: a bulk request counts for its items, in the account's quota and
// in that of the key, or keys, that it uses.
func TestBulkQuota(t *testing.T) {
	h := newHarnessWith(t, profile(t, `
base: none
requests: {symmetric: 100}
per-key: 10
per-key-burst: 10
`))
	id, _ := h.newKey(nil)
	other, _ := h.newKey(nil)
	keys := func(id string, n int) args { return args{"KeyId": id, "NumberOfKeys": n, "KeySpec": "AES_256"} }
	blobs, _ := h.binary("GenerateDataKeys", args{"KeyId": id, "NumberOfKeys": 6, "KeySpec": "AES_256", "ResponseFormat": "BINARY"})
	more, _ := h.binary("GenerateDataKeys", args{"KeyId": other, "NumberOfKeys": 6, "KeySpec": "AES_256", "ResponseFormat": "BINARY"})
	h.admits(0, "GenerateDataKeys", keys(id, 5))
	h.admits(1, "GenerateDataKeys", keys(id, 4))
	h.admits(0, "Encrypt", args{"KeyId": id, "Plaintext": "QQ=="})
	if a := h.call("GenerateDataKeys", keys(other, 11)); a.code() != "ValidationException" || !strings.Contains(a.str("message"), "send fewer items") {
		t.Errorf("more than the burst: %s", a)
	}

	// A batch without KeyId takes one of each item's key. other has 4 left.
	var items []args
	for i := range 6 {
		items = append(items, args{"CiphertextBlob": b64(blobs[i].CiphertextBlob)}, args{"CiphertextBlob": b64(more[i].CiphertextBlob)})
	}
	results := h.must("BatchDecrypt", args{"Items": items}).fields["Results"].([]any)
	done := map[int]int{}
	for i, r := range results {
		switch code, _ := r.(map[string]any)["ErrorCode"].(string); code {
		case "":
			done[i%2]++
		case "ThrottlingException":
		default:
			t.Errorf("item %d: %v", i, r)
		}
	}
	if done[0] != 0 || done[1] != 4 {
		t.Errorf("%d and %d items were admitted, want 0 and 4", done[0], done[1])
	}
}

// TestBulkHeavyOverload: a batch that finds the heavy workers full before it has
// done anything is refused whole.
func TestBulkHeavyOverload(t *testing.T) {
	h := newHarness(t)
	id, _ := h.newKey(args{"KeySpec": "ECC_NIST_P384", "KeyUsage": "SIGN_VERIFY"})
	sign := args{"KeyId": id, "SigningAlgorithm": "ECDSA_SHA_384", "Items": []args{{"Message": "QQ=="}, {"Message": "QQ=="}}}
	h.must("BatchSign", sign)

	h.svc.heavy.Close()
	var err error
	if h.svc.heavy, err = mill.NewHeavy(mill.HeavyOptions{Workers: 1, Queue: 1}); err != nil {
		t.Fatal(err)
	}
	gate := make(chan struct{})
	var wg sync.WaitGroup
	for range 2 {
		wg.Go(func() {
			if err := h.svc.heavy.Run(func() { <-gate }); err != nil {
				t.Error(err)
			}
		})
	}
	for h.svc.heavy.Pending() < 2 {
		runtime.Gosched()
	}
	if a := h.call("BatchSign", sign); a.code() != "ThrottlingException" {
		t.Errorf("beyond the bound: %s", a)
	}
	if got := h.svc.bulk.memory.Load(); got != 0 {
		t.Errorf("%d bytes are still taken", got)
	}
	close(gate)
	wg.Wait()
	h.must("BatchSign", sign)
}
