package kms

import (
	"bytes"
	"fmt"
	"slices"
	"sync"
	"sync/atomic"
	"testing"

	"keymill/hsm/hsmtest"
	"keymill/keystore"
)

func shelvedKey(n int) *keystore.Key {
	return &keystore.Key{Account: testAccount, Region: testRegion, ID: keystore.KeyID{byte(n), byte(n >> 8)}, Spec: "SYMMETRIC_DEFAULT",
		Origin: originLocal, State: "Enabled", CurrentVersion: 3, Versions: make([]keystore.Version, 3)}
}

func TestShelf(t *testing.T) {
	s := newShelf(1 << 20)
	rec, secret := shelvedKey(1), bytes.Repeat([]byte{7}, 32)
	ref := rec.Ref()
	found := func() bool { return s.key(ref) != nil }
	if found() || s.secret(ref, 3) != nil {
		t.Fatal("something on an empty shelf")
	}
	s.put(s.ticket(ref), rec, secret)
	if got := s.key(ref); got == nil || got.State != "Enabled" || got.Account != testAccount || len(got.Versions) != 3 {
		t.Fatalf("record %+v", got)
	}
	got := s.secret(ref, 3)
	if !bytes.Equal(got, secret) || s.secret(ref, 2) != nil {
		t.Fatalf("secret %x", got)
	}
	clear(got)
	if !bytes.Equal(s.secret(ref, 3), secret) {
		t.Error("the shelf lent its own bytes")
	}
	entry := s.part(&ref).keys[ref]
	s.drop(ref)
	if found() || s.secret(ref, 3) != nil || s.len() != 0 {
		t.Error("still there after a drop")
	}
	if slices.ContainsFunc(entry, func(b byte) bool { return b != 0 }) {
		t.Error("dropped, and not wiped")
	}

	// What was read before a drop does not come onto the shelf after it.
	early := s.ticket(ref)
	s.drop(ref)
	if s.put(early, rec, secret); found() {
		t.Error("an outdated ticket was honoured")
	}
	s.put(s.ticket(ref), rec, secret)
	rec.State = "Disabled"
	if s.put(s.ticket(ref), rec, secret); s.key(ref).State != "Disabled" || s.len() != 1 {
		t.Error("not replaced")
	}

	// What is too large is left out.
	s.drop(ref)
	if s.put(s.ticket(ref), rec, make([]byte, maxShelvedSecret+1)); found() {
		t.Error("a long secret is kept")
	}
	rec.Description = string(make([]byte, maxShelved))
	if s.put(s.ticket(ref), rec, secret); found() {
		t.Error("a long record is kept")
	}
}

func TestShelfIsBounded(t *testing.T) {
	const room = 64 << 10
	s := newShelf(room)
	for n := range 2000 {
		rec := shelvedKey(n)
		s.put(s.ticket(rec.Ref()), rec, make([]byte, 32))
	}
	size := 0
	for i := range s.parts {
		p := &s.parts[i]
		sum := 0
		for _, b := range p.keys {
			sum += len(b) + shelfOverhead
		}
		if sum != p.size {
			t.Fatalf("part %d has %d bytes and says %d", i, sum, p.size)
		}
		size += sum
	}
	if size > room || size < room/2 {
		t.Errorf("%d bytes on a shelf of %d", size, room)
	}
}

// TestWarmFromTheShelf uses more keys than the caches hold: the root is asked once
// for each. Every change of a key takes it off the shelf.
func TestWarmFromTheShelf(t *testing.T) {
	h := newHarnessConfig(t, func(c *Config) { c.KeyCache = 2 })
	const keys = 10
	var ids [keys]string
	use := func(id string) answer { return h.call("GenerateDataKey", args{"KeyId": id, "KeySpec": "AES_256"}) }
	for i := range ids {
		ids[i], _ = h.newKey(nil)
	}
	mac, _ := h.newKey(args{"KeySpec": "HMAC_384", "KeyUsage": "GENERATE_VERIFY_MAC"})
	tag := h.must("GenerateMac", args{"KeyId": mac, "Message": b64("m"), "MacAlgorithm": "HMAC_SHA_384"}).str("Mac")
	for _, id := range ids {
		if a := use(id); a.status != 200 {
			t.Fatal(a)
		}
	}
	h.root.Inject(hsmtest.Decrypt, hsmtest.Fault{Count: -1, Err: fmt.Errorf("the root was asked")})
	for range 3 {
		for _, id := range ids {
			blob := h.must("GenerateDataKey", args{"KeyId": id, "KeySpec": "AES_256"}).str("CiphertextBlob")
			h.must("Decrypt", args{"CiphertextBlob": blob})
			h.must("BatchEncrypt", args{"KeyId": id, "Items": []args{{"Plaintext": b64("a")}}})
		}
		if got := h.must("GenerateMac", args{"KeyId": mac, "Message": b64("m"), "MacAlgorithm": "HMAC_SHA_384"}).str("Mac"); got != tag {
			t.Error("another MAC")
		}
	}
	h.root.Heal()

	old := h.must("Encrypt", args{"KeyId": ids[0], "Plaintext": b64("old")}).str("CiphertextBlob")
	was := h.must("DescribeKey", args{"KeyId": ids[0]}).fields["KeyMetadata"].(map[string]any)["CurrentKeyMaterialId"]
	h.must("RotateKeyOnDemand", args{"KeyId": ids[0]})
	h.must("DisableKey", args{"KeyId": ids[1]})
	h.must("ScheduleKeyDeletion", args{"KeyId": ids[2]})
	h.must("UpdateKeyDescription", args{"KeyId": ids[3], "Description": "new"})
	for _, id := range ids[4:] { // so that nothing of the four is in the caches
		use(id)
	}
	if now := h.must("GenerateDataKey", args{"KeyId": ids[0], "KeySpec": "AES_256"}).str("KeyMaterialId"); now == was {
		t.Error("the material of before the rotation is used")
	}
	if got := h.must("Decrypt", args{"CiphertextBlob": old}).str("Plaintext"); got != b64("old") {
		t.Errorf("decrypted %s", got)
	}
	if a := use(ids[1]); a.code() != "DisabledException" {
		t.Error(a)
	}
	if a := use(ids[2]); a.code() != "KMSInvalidStateException" {
		t.Error(a)
	}
	if got := h.must("DescribeKey", args{"KeyId": ids[3]}).fields["KeyMetadata"].(map[string]any)["Description"]; got != "new" {
		t.Errorf("description %v", got)
	}
	h.must("EnableKey", args{"KeyId": ids[1]})
	if a := use(ids[1]); a.status != 200 {
		t.Error(a)
	}
}

// TestImportedMaterialIsNotShelved: it may go at any time.
func TestImportedMaterialIsNotShelved(t *testing.T) {
	for _, rec := range []keystore.Key{{Origin: originExternal}, {Origin: originLocal, CustomKeyStore: "cks-1"}, {Origin: originLocal, PublicKey: []byte{1}}} {
		if (&Service{}).shelved(&rec) {
			t.Errorf("%+v goes onto the shelf", rec)
		}
	}
}

// TestShelfRace disables and enables keys while others use them from the shelf: no
// use that begins after DisableKey has answered succeeds.
func TestShelfRace(t *testing.T) {
	h := newHarnessConfig(t, func(c *Config) { c.KeyCache = 1 })
	const keys = 3
	var ids [keys]string
	var off [keys]atomic.Uint64 // odd while the key is disabled for sure
	for i := range ids {
		ids[i], _ = h.newKey(nil)
	}
	done := make(chan struct{})
	var users sync.WaitGroup
	for g := range 4 {
		users.Go(func() {
			for n := g; ; n++ {
				select {
				case <-done:
					return
				default:
				}
				i := n % keys
				before := off[i].Load()
				a := h.call("GenerateDataKey", args{"KeyId": ids[i], "KeySpec": "AES_256"})
				switch after := off[i].Load(); {
				case a.status == 200 && before == after && before&1 == 1:
					t.Errorf("a disabled key was used: %s", a)
				case a.status != 200 && a.code() != "DisabledException":
					t.Errorf("%s", a)
				}
			}
		})
	}
	for n := range 60 {
		i := n % keys
		h.must("DisableKey", args{"KeyId": ids[i]})
		off[i].Add(1)
		for range 3 {
			if a := h.call("GenerateDataKey", args{"KeyId": ids[i], "KeySpec": "AES_256"}); a.code() != "DisabledException" {
				t.Errorf("after DisableKey: %s", a)
			}
		}
		off[i].Add(1)
		h.must("EnableKey", args{"KeyId": ids[i]})
		if a := h.call("GenerateDataKey", args{"KeyId": ids[i], "KeySpec": "AES_256"}); a.status != 200 {
			t.Errorf("after EnableKey: %s", a)
		}
	}
	close(done)
	users.Wait()
}
