package kms

import (
	"bytes"
	"context"
	"crypto/rsa"
	"crypto/x509"
	"errors"
	"fmt"
	"maps"
	"math/big"
	"sync"
	"testing"
	"time"

	"keymill/daemon/wire"
	"keymill/engine"
	"keymill/keystore"
)

// expiring are the members that let material expire.
func (h *harness) expiring(after time.Duration) args {
	return args{"ExpirationModel": "KEY_MATERIAL_EXPIRES", "ValidTo": float64(h.now.Add(after).UnixMilli()) / 1000}
}

// TestImportExpiry: material is refused from its ValidTo on, whether or not the
// scheduler was there, and also warm; the scheduler deletes it; the same material
// brings the key back.
func TestImportExpiry(t *testing.T) {
	h := newHarness(t)
	id, arn := h.external("SYMMETRIC_DEFAULT", "ENCRYPT_DECRYPT", false)
	rsa, rsaARN := h.external("RSA_2048", "SIGN_VERIFY", false)
	h.importInto(id, filled(1), h.expiring(time.Hour))
	p := h.parameters(rsa, "RSA_AES_KEY_WRAP_SHA_1", "RSA_2048")
	pkcs8 := testRSA(t)
	h.must("ImportKeyMaterial", p.wrapped(h, rsa, pkcs8, h.expiring(time.Hour)))
	until := h.now.Truncate(time.Millisecond).Add(time.Hour)
	full := args{"KeyState": "Enabled", "ExpirationModel": "KEY_MATERIAL_EXPIRES", "ValidTo": float64(until.UnixMilli()) / 1000}
	gone := args{"KeyState": "PendingImport", "Enabled": false, "ExpirationModel": nil, "ValidTo": nil}
	h.wantMetadata(id, full)
	blob := h.must("Encrypt", args{"KeyId": id, "Plaintext": "aGVsbG8="}).str("CiphertextBlob")
	data := h.must("GenerateDataKey", args{"KeyId": id, "KeySpec": "AES_256"}).str("CiphertextBlob")
	other, _ := h.newKey(nil)
	sign := args{"KeyId": rsa, "Message": "aGVsbG8=", "SigningAlgorithm": "RSASSA_PSS_SHA_256"}
	sig := h.must("Sign", sign).str("Signature")

	h.now = until.Add(-time.Millisecond)
	h.must("Decrypt", args{"CiphertextBlob": blob})
	h.must("Sign", sign)

	h.now = until
	refused := func() {
		t.Helper()
		for op, in := range map[string]args{
			"Encrypt":         {"KeyId": id, "Plaintext": "aGVsbG8="},
			"Decrypt":         {"CiphertextBlob": blob},
			"GenerateDataKey": {"KeyId": arn, "NumberOfBytes": 16},
			"ReEncrypt":       {"CiphertextBlob": data, "DestinationKeyId": other},
			"EnableKey":       {"KeyId": id},
			"DisableKey":      {"KeyId": id},
		} {
			h.refused(op, in, "KMSInvalidStateException", arn+" is pending import.")
		}
		h.refused("Sign", sign, "KMSInvalidStateException", rsaARN+" is pending import.")
		h.refused("Verify", args{"KeyId": rsa, "Message": "aGVsbG8=", "Signature": sig, "SigningAlgorithm": "RSASSA_PSS_SHA_256"}, "KMSInvalidStateException", rsaARN+" is pending import.")
		mine := h.must("Encrypt", args{"KeyId": other, "Plaintext": "aGVsbG8="}).str("CiphertextBlob")
		h.refused("ReEncrypt", args{"CiphertextBlob": mine, "DestinationKeyId": id}, "KMSInvalidStateException", arn+" is pending import.")
		h.wantMetadata(id, gone)
		h.wantMetadata(rsa, gone)
	}
	refused()
	// What a request resolved before the moment cannot be fetched after it either.
	v, err := h.svc.view(h.record(id).Ref())
	if err != nil {
		t.Fatal(err)
	}
	v.handle.Purge()
	x := newExchange(h.svc)
	x.now = until
	x.ops[0].Verb, x.ops[0].In = 1, []byte("x")
	if err := x.seal(v, &x.ops[0], 1, []byte("x"), nil); err == nil || !bytes.Contains([]byte(err.Error()), []byte("is pending import.")) {
		t.Errorf("expired material was fetched: %v", err)
	}
	if k := h.record(id); k.State != "Enabled" || !h.stored(k, 1) {
		t.Fatalf("%s, and the scheduler did not run", k.State)
	}

	h.restart()
	refused()
	if err := h.svc.runDue(h.now); err != nil {
		t.Fatal(err)
	}
	refused()
	for _, id := range []string{id, rsa} {
		if k := h.record(id); k.State != "PendingImport" || !k.Versions[0].Missing || h.stored(k, 1) || !k.Due().IsZero() {
			t.Errorf("%+v", k)
		}
	}
	h.sound()

	h.importInto(id, filled(1), h.expiring(time.Minute))
	h.must("Decrypt", args{"CiphertextBlob": blob})
	h.importInto(id, filled(1), nil) // for ever after all
	h.now = h.now.Add(time.Hour)
	if err := h.svc.runDue(h.now); err != nil {
		t.Fatal(err)
	}
	h.must("Decrypt", args{"CiphertextBlob": blob})
	h.sound()
}

// TestImportClockJump: when the clock jumps, expired material is refused but not
// destroyed, and importing it again is enough.
func TestImportClockJump(t *testing.T) {
	h := newHarness(t)
	id, arn := h.external("SYMMETRIC_DEFAULT", "ENCRYPT_DECRYPT", false)
	h.importInto(id, filled(1), h.expiring(time.Hour))
	if err := h.svc.runDue(h.now); err != nil { // a time to compare with
		t.Fatal(err)
	}
	encrypt := args{"KeyId": id, "Plaintext": "aGVsbG8="}
	h.must("Encrypt", encrypt)
	h.restart()
	h.now = h.now.Add(30 * 24 * time.Hour)
	if err := h.svc.runDue(h.now); err != nil {
		t.Fatal(err)
	}
	h.refused("Encrypt", encrypt, "KMSInvalidStateException", arn+" is pending import.")
	if k := h.record(id); !h.stored(k, 1) || k.Versions[0].Missing {
		t.Errorf("destroyed by a clock that jumped: %+v", k)
	}
	h.importInto(id, filled(1), h.expiring(time.Hour))
	h.must("Encrypt", encrypt)
}

// TestImportNewMaterial is rotation by import: what is pending, what is refused
// meanwhile, and what a deletion of each version does.
func TestImportNewMaterial(t *testing.T) {
	h := newHarness(t)
	id, arn := h.external("SYMMETRIC_DEFAULT", "ENCRYPT_DECRYPT", false)
	const put = "ImportKeyMaterial"
	p := h.parameters(id, "SM2PKE", "SM2")
	add := func(b byte, more args) args { h.Helper(); return p.wrapped(h, id, filled(b), more) }
	mid := func(b byte) string { return materialIDOf(id, filled(b)) }
	isNew := args{"ImportType": "NEW_KEY_MATERIAL"}

	h.must(put, add(1, args{"ImportType": "NEW_KEY_MATERIAL", "KeyMaterialDescription": "the first"}))
	blob := h.must("Encrypt", args{"KeyId": id, "Plaintext": "aGVsbG8="}).str("CiphertextBlob")
	known := "The key material (id: " + mid(1) + ") is already associated with the KMS key " + arn + ": import it with ImportType EXISTING_KEY_MATERIAL."
	h.refused(put, add(1, isNew), "IncorrectKeyMaterialException", known)

	if got := h.must(put, add(2, isNew)).str("KeyMaterialId"); got != mid(2) {
		t.Error(got)
	}
	h.wantMetadata(id, args{"KeyState": "Enabled", "CurrentKeyMaterialId": mid(1)})
	if v := h.record(id).Versions; len(v) != 2 || v[1].Pending != "PENDING_ROTATION" || v[1].Missing || v[0].Description != "the first" {
		t.Errorf("%+v", v)
	}
	h.refused(put, add(3, isNew), "KMSInvalidStateException", fmt.Sprintf(
		"New key material (id: %s) cannot be imported into KMS key %s, because another key material (id: %s) is pending rotation.", mid(3), id, mid(2)))
	h.refused(put, add(1, isNew), "IncorrectKeyMaterialException", known)
	h.refused(put, add(2, isNew), "IncorrectKeyMaterialException", "The key material (id: "+mid(2)+") is already associated with the KMS key "+arn+": import it with ImportType EXISTING_KEY_MATERIAL.")
	h.refused(put, add(2, args{"KeyMaterialId": mid(1)}), "IncorrectKeyMaterialException", "The id of the key material is not the KeyMaterialId of the request, "+mid(1)+".")

	// The pending one may come again, with another end, and go, without a trace.
	h.must(put, add(2, h.expiring(time.Hour)))
	h.wantMetadata(id, args{"ExpirationModel": "KEY_MATERIAL_DOES_NOT_EXPIRE"})
	a := h.must("DeleteImportedKeyMaterial", args{"KeyId": id, "KeyMaterialId": mid(2)})
	if a.str("KeyMaterialId") != mid(2) {
		t.Error(a)
	}
	h.wantMetadata(id, args{"KeyState": "Enabled"})
	if k := h.record(id); len(k.Versions) != 1 || h.stored(k, 2) {
		t.Errorf("%+v", k.Versions)
	}
	h.sound()
	// Or expire.
	h.must(put, add(3, merged(isNew, h.expiring(time.Hour))))
	h.now = h.now.Add(time.Hour)
	h.must("Encrypt", args{"KeyId": id, "Plaintext": "aGVsbG8="}) // the current one does not expire
	if err := h.svc.runDue(h.now); err != nil {
		t.Fatal(err)
	}
	h.wantMetadata(id, args{"KeyState": "Enabled", "CurrentKeyMaterialId": mid(1)})
	if k := h.record(id); len(k.Versions) != 1 || h.stored(k, 2) {
		t.Errorf("%+v", k.Versions)
	}

	// Rotated to, it is needed like the first.
	h.must(put, add(4, isNew))
	h.must("RotateKeyOnDemand", args{"KeyId": id})
	h.wantMetadata(id, args{"CurrentKeyMaterialId": mid(4)})
	newer := h.must("Encrypt", args{"KeyId": id, "Plaintext": "aGVsbG8="}).str("CiphertextBlob")
	for _, blob := range []string{blob, newer} {
		h.must("Decrypt", args{"CiphertextBlob": blob})
	}
	h.must("DeleteImportedKeyMaterial", args{"KeyId": id, "KeyMaterialId": mid(1)})
	h.wantMetadata(id, args{"KeyState": "PendingImport"})
	for _, blob := range []string{blob, newer} {
		h.refused("Decrypt", args{"CiphertextBlob": blob}, "KMSInvalidStateException", arn+" is pending import.")
	}
	h.must("DeleteImportedKeyMaterial", args{"KeyId": id}) // the current one
	h.must(put, add(1, args{"KeyMaterialId": mid(1), "KeyMaterialDescription": "once more"}))
	h.wantMetadata(id, args{"KeyState": "PendingImport"})
	h.must(put, add(4, h.expiring(time.Hour)))
	h.wantMetadata(id, args{"KeyState": "Enabled", "ExpirationModel": "KEY_MATERIAL_EXPIRES"})
	for _, blob := range []string{blob, newer} {
		h.must("Decrypt", args{"CiphertextBlob": blob})
	}
	if v := h.record(id).Versions; v[0].Description != "once more" || v[1].Description != "" {
		t.Errorf("%+v", v)
	}
	h.now = h.now.Add(time.Hour) // one of two is enough to stop the key
	h.refused("Decrypt", args{"CiphertextBlob": blob}, "KMSInvalidStateException", arn+" is pending import.")
	h.sound()
}

func merged(all ...args) args {
	out := args{}
	for _, a := range all {
		maps.Copy(out, a)
	}
	return out
}

const replicaRegion = "us-east-1"

// relate writes the record of a replica of the key id, as ReplicateKey leaves it.
func (h *harness) relate(id string) {
	h.Helper()
	primary := *h.record(id)
	primary.PrimaryRegion, primary.ReplicaRegions = testRegion, []string{replicaRegion}
	replica := primary
	replica.Region, replica.State, replica.Versions, replica.CurrentVersion = replicaRegion, "PendingImport", nil, 0
	inherit(&replica, &primary)
	t := h.store.NewTxn()
	t.PutKey(&primary, primary.Revision)
	t.PutKey(&replica, 0)
	if err := commit(t); err != nil {
		h.Fatal(err)
	}
	h.svc.dropView(primary.Ref())
}

// inRegion runs f with requests to another region.
func (h *harness) inRegion(region string, f func()) {
	home := h.key.Region
	h.key.Region = region
	f()
	h.key.Region = home
}

// TestImportAgainIntoDisabled: a disabled key whose material has expired comes back the
// same, enabled, whether it is imported again before the scheduler deletes it or after.
func TestImportAgainIntoDisabled(t *testing.T) {
	for _, swept := range []bool{false, true} {
		h := newHarness(t)
		id, _ := h.external("SYMMETRIC_DEFAULT", "ENCRYPT_DECRYPT", false)
		h.importInto(id, filled(1), h.expiring(time.Hour))
		h.must("DisableKey", args{"KeyId": id})
		h.now = h.now.Add(time.Hour - time.Second)
		h.importInto(id, filled(1), h.expiring(time.Hour)) // it has lost nothing yet
		h.wantMetadata(id, args{"KeyState": "Disabled"})
		h.now = h.now.Add(time.Hour)
		if swept {
			h.due()
		}
		h.wantMetadata(id, args{"KeyState": "PendingImport"})
		h.importInto(id, filled(1), nil)
		h.wantMetadata(id, args{"KeyState": "Enabled"})
		h.due()
		h.wantMetadata(id, args{"KeyState": "Enabled"})
	}
}

// TestImportFamily: related keys know the same material, each keeps its own bytes,
// and rotation waits until all have them.
func TestImportFamily(t *testing.T) {
	h := newHarness(t)
	id, _ := h.external("SYMMETRIC_DEFAULT", "ENCRYPT_DECRYPT", true)
	mid := func(b byte) string { return materialIDOf(id, filled(b)) }
	h.importInto(id, filled(1), args{"KeyMaterialDescription": "shared"})
	blob := h.must("Encrypt", args{"KeyId": id, "Plaintext": "aGVsbG8="}).str("CiphertextBlob")
	h.relate(id)
	there := func(f func()) { h.Helper(); h.inRegion(replicaRegion, f) }
	replicaARN := keyARN(replicaRegion, testAccount, id)
	put := func(b byte, more args) args {
		h.Helper()
		p := h.parameters(id, "SM2PKE", "SM2")
		return p.wrapped(h, id, filled(b), more)
	}
	pending := func(primary, replica string) {
		t.Helper()
		for region, want := range map[string]string{testRegion: primary, replicaRegion: replica} {
			v := h.recordIn(region, id).Versions
			if got := v[len(v)-1]; got.Pending != want || len(v) != 2 {
				t.Errorf("in %s: %+v", region, v)
			}
		}
	}

	// The replica takes the primary's material and no other.
	there(func() {
		h.wantMetadata(id, args{"KeyState": "PendingImport", "CurrentKeyMaterialId": mid(1)})
		h.refused("ImportKeyMaterial", put(2, nil), "IncorrectKeyMaterialException", "The key material is not associated with the KMS key "+replicaARN+": only the same key material can be imported again.")
		h.refused("ImportKeyMaterial", put(2, args{"ImportType": "NEW_KEY_MATERIAL"}), "UnsupportedOperationException", replicaARN+" is not a multi-region primary key.")
		h.refused("ImportKeyMaterial", put(1, args{"KeyMaterialDescription": "mine"}), "UnsupportedOperationException", replicaARN+" is a replica: its KeyMaterialDescription is that of the primary key in "+testRegion+".")
		if got := h.must("ImportKeyMaterial", put(1, h.expiring(time.Hour))).str("KeyMaterialId"); got != mid(1) {
			t.Error(got)
		}
		h.wantMetadata(id, args{"KeyState": "Enabled", "ExpirationModel": "KEY_MATERIAL_EXPIRES"})
		h.must("Decrypt", args{"CiphertextBlob": blob})
	})
	h.wantMetadata(id, args{"KeyState": "Enabled", "ExpirationModel": "KEY_MATERIAL_DOES_NOT_EXPIRE"})
	if d := h.recordIn(replicaRegion, id).Versions[0].Description; d != "shared" {
		t.Error(d)
	}

	const waiting, ready = "PENDING_MULTI_REGION_IMPORT_AND_ROTATION", "PENDING_ROTATION"
	h.must("ImportKeyMaterial", put(2, args{"ImportType": "NEW_KEY_MATERIAL"}))
	pending(waiting, waiting)
	there(func() { h.wantMetadata(id, args{"KeyState": "Enabled"}) }) // it does not need that one yet
	h.sound()
	there(func() { h.must("ImportKeyMaterial", put(2, args{"ImportType": "EXISTING_KEY_MATERIAL"})) })
	pending(ready, ready)
	there(func() { h.must("DeleteImportedKeyMaterial", args{"KeyId": id, "KeyMaterialId": mid(2)}) })
	pending(waiting, waiting)
	there(func() { h.must("ImportKeyMaterial", put(2, h.expiring(time.Minute))) })
	pending(ready, ready)
	h.now = h.now.Add(time.Minute)
	if err := h.svc.runDue(h.now); err != nil {
		t.Fatal(err)
	}
	pending(waiting, waiting)
	h.sound()
	there(func() { h.must("ImportKeyMaterial", put(2, nil)) })
	pending(ready, ready)

	// Deleting it in the primary deletes it everywhere.
	h.must("DeleteImportedKeyMaterial", args{"KeyId": id, "KeyMaterialId": mid(2)})
	for _, region := range []string{testRegion, replicaRegion} {
		if k := h.recordIn(region, id); len(k.Versions) != 1 || h.stored(k, 2) {
			t.Errorf("in %s: %+v", region, k.Versions)
		}
	}
	h.sound()

	// Each key loses its material alone.
	h.now = h.now.Add(time.Hour)
	if err := h.svc.runDue(h.now); err != nil {
		t.Fatal(err)
	}
	there(func() {
		h.wantMetadata(id, args{"KeyState": "PendingImport"})
		h.refused("Decrypt", args{"CiphertextBlob": blob}, "KMSInvalidStateException", replicaARN+" is pending import.")
	})
	h.must("Decrypt", args{"CiphertextBlob": blob})
	h.must("DeleteImportedKeyMaterial", args{"KeyId": id})
	there(func() { h.must("ImportKeyMaterial", put(1, nil)); h.must("Decrypt", args{"CiphertextBlob": blob}) })
	h.wantMetadata(id, args{"KeyState": "PendingImport"})
	h.sound()
}

// TestImportFamilyRSA: a replica takes the primary's key pair in any encoding.
func TestImportFamilyRSA(t *testing.T) {
	h := newHarness(t)
	id, arn := h.external("RSA_2048", "SIGN_VERIFY", true)
	pkcs8 := testRSA(t)
	put := func(pkcs8 []byte) args {
		h.Helper()
		p := h.parameters(id, "RSA_AES_KEY_WRAP_SHA_256", "RSA_2048")
		return p.wrapped(h, id, pkcs8, nil)
	}
	h.must("ImportKeyMaterial", put(pkcs8))
	h.relate(id)
	public := h.must("GetPublicKey", args{"KeyId": id}).str("PublicKey")
	h.inRegion(replicaRegion, func() {
		replicaARN := keyARN(replicaRegion, testAccount, id)
		h.refused("ImportKeyMaterial", put(testRSA(t)), "IncorrectKeyMaterialException", "The key material is not associated with the KMS key "+replicaARN+": only the same key material can be imported again.")
		h.must("ImportKeyMaterial", put(swappedPrimes(t, pkcs8)))
		if got := h.must("GetPublicKey", args{"KeyId": id}).str("PublicKey"); got != public {
			t.Error(got)
		}
		sig := h.must("Sign", args{"KeyId": id, "Message": "aGVsbG8=", "SigningAlgorithm": "RSASSA_PSS_SHA_256"}).str("Signature")
		h.inRegion(testRegion, func() {
			h.must("Verify", args{"KeyId": arn, "Message": "aGVsbG8=", "SigningAlgorithm": "RSASSA_PSS_SHA_256", "Signature": sig})
		})
	})
	h.sound()
}

// TestImportRaces deletes and imports while others use the key: they get an answer
// or are told that it is pending import, and what begins after an acknowledgement
// sees it.
func TestImportRaces(t *testing.T) {
	h := newHarness(t)
	id, arn := h.external("SYMMETRIC_DEFAULT", "ENCRYPT_DECRYPT", false)
	p := h.parameters(id, "SM2PKE", "SM2")
	in := p.wrapped(h, id, filled(1), nil)
	encrypt := args{"KeyId": id, "Plaintext": "aGVsbG8="}
	h.must("ImportKeyMaterial", in)
	blob := h.must("Encrypt", encrypt).str("CiphertextBlob")
	stop := make(chan struct{})
	var users sync.WaitGroup
	for i := range 4 {
		users.Go(func() {
			for {
				select {
				case <-stop:
					return
				default:
				}
				op, in := "Encrypt", encrypt
				if i%2 == 1 {
					op, in = "Decrypt", args{"CiphertextBlob": blob}
				}
				a := h.call(op, in)
				if a.code() != "" && (a.code() != "KMSInvalidStateException" || a.str("message") != arn+" is pending import.") {
					t.Errorf("%s: %s", op, a)
				}
			}
		})
	}
	for range 30 {
		h.must("DeleteImportedKeyMaterial", args{"KeyId": id})
		h.refused("Encrypt", encrypt, "KMSInvalidStateException", arn+" is pending import.")
		h.refused("Decrypt", args{"CiphertextBlob": blob}, "KMSInvalidStateException", arn+" is pending import.")
		h.must("ImportKeyMaterial", in)
		if got := h.must("Decrypt", args{"CiphertextBlob": blob}).str("Plaintext"); got != "aGVsbG8=" {
			t.Error(got)
		}
	}
	close(stop)
	users.Wait()
	h.sound()
}

// Material that goes after a request has read the key's record is missed for the
// reason that the new record gives.
func TestImportGoneMeanwhile(t *testing.T) {
	h := newHarness(t)
	id, _ := h.external("SYMMETRIC_DEFAULT", "ENCRYPT_DECRYPT", false)
	h.importInto(id, filled(7), nil)
	v, err := h.svc.view(h.ref(id))
	if err != nil {
		t.Fatal(err)
	}
	h.must("DeleteImportedKeyMaterial", args{"KeyId": id})
	stale := *v
	stale.read = h.svc.shelf.ticket(v.ref) // as if nothing had changed since
	op := []engine.Op{{Verb: engine.Encrypt, Alg: engine.AlgSymmetric, In: []byte("x")}}
	handle := h.svc.newHandle(&stale)
	handle.Do(op)
	var e *wire.Error
	if err := handle.Warm(context.Background(), op); !errors.As(err, &e) || e.Code != wire.KMSInvalidStateException.String() {
		t.Errorf("%v", err)
	}
}

// TestSettlePending holds the rule for families of three.
func TestSettlePending(t *testing.T) {
	key := func(pending, missing bool) *keystore.Key {
		k := &keystore.Key{Versions: []keystore.Version{{Number: 1}}}
		if pending {
			k.Versions = append(k.Versions, keystore.Version{Number: 2, Pending: "x", Missing: missing})
		}
		return k
	}
	for _, c := range []struct {
		keys []*keystore.Key
		want string
	}{
		{[]*keystore.Key{key(true, false)}, pendingRotation},
		{[]*keystore.Key{key(true, true)}, pendingImport},
		{[]*keystore.Key{key(true, false), key(true, false), key(true, false)}, pendingRotation},
		{[]*keystore.Key{key(true, false), key(true, false), key(true, true)}, pendingImport},
		{[]*keystore.Key{key(true, false), key(true, false), key(false, false)}, pendingImport},
	} {
		settlePending(c.keys)
		for _, k := range c.keys {
			if p := pendingVersion(k); p >= 0 && k.Versions[p].Pending != c.want || k.Versions[0].Pending != "" {
				t.Errorf("%+v, want %s", k.Versions, c.want)
			}
		}
	}
}

func testRSA(t *testing.T) []byte {
	t.Helper()
	b, err := engine.GenerateMaterial(engine.RSA2048)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// swappedPrimes writes an RSA key with its primes the other way round.
func swappedPrimes(t *testing.T, pkcs8 []byte) []byte {
	t.Helper()
	parsed, err := x509.ParsePKCS8PrivateKey(pkcs8)
	if err != nil {
		t.Fatal(err)
	}
	key := parsed.(*rsa.PrivateKey)
	swapped := &rsa.PrivateKey{PublicKey: key.PublicKey, D: key.D, Primes: []*big.Int{key.Primes[1], key.Primes[0]}}
	swapped.Precompute()
	out, err := x509.MarshalPKCS8PrivateKey(swapped)
	if err != nil {
		t.Fatal(err)
	}
	if bytes.Equal(out, pkcs8) {
		t.Fatal("the same")
	}
	return out
}
