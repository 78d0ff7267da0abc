package kms

import (
	"bytes"
	"context"
	"crypto/hmac"
	"crypto/sha512"
	"encoding/base64"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/valyala/fasthttp/fasthttputil"

	"keymill/engine"
	"keymill/engine/wraptest"
	"keymill/hsm/xaes"
	"keymill/keystore"
)

// external makes a key for imported material.
func (h *harness) external(spec, usage string, multiRegion bool) (id, arn string) {
	h.Helper()
	in := args{"Origin": "EXTERNAL", "KeySpec": spec, "KeyUsage": usage}
	if multiRegion {
		in["MultiRegion"] = true
	}
	return h.newKey(in)
}

// parameters are an answer of GetParametersForImport.
type parameters struct {
	algorithm, token string
	public           []byte
}

func (h *harness) parameters(id, algorithm, spec string) parameters {
	h.Helper()
	a := h.must("GetParametersForImport", args{"KeyId": id, "WrappingAlgorithm": algorithm, "WrappingKeySpec": spec})
	return parameters{algorithm, a.str("ImportToken"), fromBase64(h, a.str("PublicKey"))}
}

func fromBase64(h *harness, s string) []byte {
	h.Helper()
	b, err := base64.StdEncoding.DecodeString(s)
	if err != nil {
		h.Fatal(err)
	}
	return b
}

// wrapped returns the request that imports material for ever, with more members.
func (p *parameters) wrapped(h *harness, id string, material []byte, more args) args {
	h.Helper()
	blob, err := wraptest.Wrap(p.algorithm, p.public, material)
	if err != nil {
		h.Fatal(err)
	}
	in := args{
		"KeyId": id, "ImportToken": p.token, "EncryptedKeyMaterial": base64.StdEncoding.EncodeToString(blob),
		"ExpirationModel": "KEY_MATERIAL_DOES_NOT_EXPIRE",
	}
	maps.Copy(in, more)
	return in
}

// importInto imports material into a key in one go and returns its id.
func (h *harness) importInto(id string, material []byte, more args) string {
	h.Helper()
	p := h.parameters(id, "RSAES_OAEP_SHA_256", "RSA_2048")
	return h.must("ImportKeyMaterial", p.wrapped(h, id, material, more)).str("KeyMaterialId")
}

func (h *harness) metadata(id string) map[string]any {
	h.Helper()
	return h.must("DescribeKey", args{"KeyId": id}).fields["KeyMetadata"].(map[string]any)
}

// wantMetadata compares some members; nil is absent.
func (h *harness) wantMetadata(id string, want args) {
	h.Helper()
	got := h.metadata(id)
	for name, value := range want {
		if diff := cmp.Diff(value, got[name]); diff != "" {
			h.Errorf("%s of %s: %s", name, id, diff)
		}
	}
}

// record reads the record of a key of the test's region.
func (h *harness) record(id string) *keystore.Key { h.Helper(); return h.recordIn(h.key.Region, id) }

func (h *harness) recordIn(region, id string) *keystore.Key {
	h.Helper()
	parsed, ok := engine.ParseKeyID(id)
	if !ok {
		h.Fatal(id)
	}
	k, err := h.store.Key(keystore.Ref{Region: region, ID: parsed.ID})
	if err != nil {
		h.Fatal(err)
	}
	return k
}

// sound checks the whole store.
func (h *harness) sound() {
	h.Helper()
	if err := h.store.Verify(context.Background(), nil); err != nil {
		h.Error(err)
	}
}

// stored tells whether the material of a key's version is in the store.
func (h *harness) stored(k *keystore.Key, number uint32) bool {
	h.Helper()
	_, err := h.store.Material(k.Ref(), number)
	if err != nil && !errors.Is(err, keystore.ErrNotFound) {
		h.Fatal(err)
	}
	return err == nil
}

func filled(b byte) []byte { return bytes.Repeat([]byte{b}, 32) }

func materialIDOf(id string, material []byte) string {
	parsed, _ := engine.ParseKeyID(id)
	return engine.ComputeMaterialID(parsed, material).String()
}

// TestImportLife takes a symmetric key through all of it, and looks at what AWS
// shows on the way.
func TestImportLife(t *testing.T) {
	h := newHarness(t)
	id, arn := h.external("SYMMETRIC_DEFAULT", "ENCRYPT_DECRYPT", false)
	empty := args{"KeyState": "PendingImport", "Enabled": false, "Origin": "EXTERNAL", "ExpirationModel": nil, "ValidTo": nil}
	h.wantMetadata(id, empty)
	h.wantMetadata(id, args{"CurrentKeyMaterialId": nil})
	h.refused("Encrypt", args{"KeyId": id, "Plaintext": "aGVsbG8="}, "KMSInvalidStateException", arn+" is pending import.")

	material := filled(7)
	p := h.parameters(id, "RSAES_OAEP_SHA_256", "RSA_2048")
	in := p.wrapped(h, id, material, nil)
	delete(in, "ExpirationModel")
	h.refused("ImportKeyMaterial", in, "ValidationException", "A validTo date must be set if the ExpirationModel is KEY_MATERIAL_EXPIRES")
	a := h.must("ImportKeyMaterial", p.wrapped(h, id, material, nil))
	mid := materialIDOf(id, material)
	if diff := cmp.Diff(map[string]any{"KeyId": arn, "KeyMaterialId": mid}, a.fields); diff != "" {
		t.Error(diff)
	}
	full := args{"KeyState": "Enabled", "Enabled": true, "ExpirationModel": "KEY_MATERIAL_DOES_NOT_EXPIRE", "ValidTo": nil, "CurrentKeyMaterialId": mid}
	h.wantMetadata(id, full)

	// It is this material that encrypts.
	blob := h.must("Encrypt", args{"KeyId": id, "Plaintext": "aGVsbG8="}).str("CiphertextBlob")
	parsed, _ := engine.ParseKeyID(id)
	own := engine.NewLocalKey(parsed, engine.SymmetricDefault, engine.EncryptDecrypt,
		[]engine.KeyVersion{{Number: 1, MaterialID: engine.ComputeMaterialID(parsed, material)}}, 0, nil,
		func(context.Context, uint32) ([]byte, error) { return bytes.Clone(material), nil })
	ops := []engine.Op{{Verb: engine.Decrypt, Alg: engine.AlgSymmetric, In: fromBase64(h, blob), Err: engine.ErrPending}}
	if err := own.Warm(t.Context(), ops); err != nil {
		t.Fatal(err)
	}
	if own.Do(ops); ops[0].Err != nil || string(ops[0].Out) != "hello" {
		t.Errorf("%q, %v", ops[0].Out, ops[0].Err)
	}

	a = h.must("DeleteImportedKeyMaterial", args{"KeyId": arn})
	if diff := cmp.Diff(map[string]any{"KeyId": arn, "KeyMaterialId": mid}, a.fields); diff != "" {
		t.Error(diff)
	}
	h.wantMetadata(id, empty)
	h.wantMetadata(id, args{"CurrentKeyMaterialId": mid})
	h.refused("Decrypt", args{"CiphertextBlob": blob}, "KMSInvalidStateException", arn+" is pending import.")
	if h.stored(h.record(id), 1) {
		t.Error("deleted material is in the store")
	}
	h.sound()
	h.must("DeleteImportedKeyMaterial", args{"KeyId": arn}) // again

	// Only the same comes back, and decrypts what it encrypted.
	other := h.parameters(id, "RSAES_OAEP_SHA_1", "RSA_2048")
	h.refused("ImportKeyMaterial", other.wrapped(h, id, filled(8), nil), "IncorrectKeyMaterialException",
		"The key material is not associated with the KMS key "+arn+": only the same key material can be imported again.")
	h.must("ImportKeyMaterial", other.wrapped(h, id, material, nil))
	h.wantMetadata(id, full)
	if a := h.must("Decrypt", args{"CiphertextBlob": blob}); a.str("Plaintext") != "aGVsbG8=" || a.str("KeyMaterialId") != mid {
		t.Error(a)
	}
	// A token serves as often as its owner likes.
	h.must("ImportKeyMaterial", p.wrapped(h, id, material, nil))
	h.sound()
}

// TestImportSpecs imports a key of every spec with every wrapping that takes it.
// The large wrapping keys have a turn each; the end-to-end tests use all of them.
func TestImportSpecs(t *testing.T) {
	h := newHarness(t)
	for spec := engine.SymmetricDefault; spec <= engine.SM2; spec++ {
		usages := spec.Usages()
		if !spec.Importable() {
			h.refused("CreateKey", args{"Origin": "EXTERNAL", "KeySpec": spec.String(), "KeyUsage": usages[0].String()},
				"UnsupportedOperationException", "KeySpec "+spec.String()+" is not supported for Origin EXTERNAL.")
			continue
		}
		material, err := engine.GenerateMaterial(spec)
		if err != nil {
			t.Fatal(err)
		}
		for _, algorithm := range []string{"RSAES_OAEP_SHA_1", "RSAES_OAEP_SHA_256", "RSA_AES_KEY_WRAP_SHA_1", "RSA_AES_KEY_WRAP_SHA_256", "SM2PKE"} {
			w, _ := engine.ParseWrapping(algorithm)
			wrapping := engine.RSA2048
			switch {
			case algorithm == "SM2PKE":
				wrapping = engine.SM2
			case spec == engine.P521:
				wrapping = engine.RSA3072
			}
			usage := usages[int(w)%len(usages)]
			id, arn := h.external(spec.String(), usage.String(), false)
			ask := args{"KeyId": id, "WrappingAlgorithm": algorithm, "WrappingKeySpec": wrapping.String()}
			if !w.Carries(spec, wrapping) {
				h.refused("GetParametersForImport", ask, "UnsupportedOperationException",
					fmt.Sprintf("WrappingAlgorithm %s with WrappingKeySpec %s cannot be used for key material of %s, whose KeySpec is %s.", algorithm, wrapping, arn, spec))
				continue
			}
			p := h.parameters(id, algorithm, wrapping.String())
			h.must("ImportKeyMaterial", p.wrapped(h, id, material, nil))
			h.wantMetadata(id, args{"KeyState": "Enabled"})
			h.checkUse(id, spec, usage, material)
		}
	}
	h.sound()
}

// checkUse uses a key and compares with its material.
func (h *harness) checkUse(id string, spec engine.Spec, usage engine.Usage, material []byte) {
	h.Helper()
	alg := spec.Algorithms(usage)[0].String()
	if spec.Asymmetric() {
		want, err := engine.PublicKey(spec, material)
		if err != nil {
			h.Fatal(err)
		}
		if got := fromBase64(h, h.must("GetPublicKey", args{"KeyId": id}).str("PublicKey")); !bytes.Equal(got, want) {
			h.Errorf("%s has the public key %x, its material %x", id, got, want)
		}
	}
	switch usage {
	case engine.EncryptDecrypt:
		blob := h.must("Encrypt", args{"KeyId": id, "Plaintext": "aGVsbG8=", "EncryptionAlgorithm": alg}).str("CiphertextBlob")
		if got := h.must("Decrypt", args{"KeyId": id, "CiphertextBlob": blob, "EncryptionAlgorithm": alg}).str("Plaintext"); got != "aGVsbG8=" {
			h.Error(got)
		}
	case engine.SignVerify:
		sig := h.must("Sign", args{"KeyId": id, "Message": "aGVsbG8=", "SigningAlgorithm": alg}).str("Signature")
		h.must("Verify", args{"KeyId": id, "Message": "aGVsbG8=", "SigningAlgorithm": alg, "Signature": sig})
	case engine.GenerateVerifyMAC:
		mac := fromBase64(h, h.must("GenerateMac", args{"KeyId": id, "Message": "aGVsbG8=", "MacAlgorithm": alg}).str("Mac"))
		if spec == engine.HMAC512 {
			m := hmac.New(sha512.New, material)
			m.Write([]byte("hello"))
			if want := m.Sum(nil); !bytes.Equal(mac, want) {
				h.Errorf("MAC %x, want %x", mac, want)
			}
		}
	case engine.KeyAgreement:
		_, peer, err := engine.GenerateKeyPair(spec)
		if err != nil {
			h.Fatal(err)
		}
		h.must("DeriveSharedSecret", args{"KeyId": id, "KeyAgreementAlgorithm": "ECDH", "PublicKey": base64.StdEncoding.EncodeToString(peer)})
	}
}

// TestImportRefusals has every error of the three operations that is not about
// states.
func TestImportRefusals(t *testing.T) {
	h := newHarness(t)
	id, arn := h.external("SYMMETRIC_DEFAULT", "ENCRYPT_DECRYPT", false)
	mac, macARN := h.external("HMAC_384", "GENERATE_VERIFY_MAC", false)
	rsa, rsaARN := h.external("RSA_2048", "SIGN_VERIFY", false)
	mine, mineARN := h.newKey(nil)
	const get, put, del = "GetParametersForImport", "ImportKeyMaterial", "DeleteImportedKeyMaterial"

	ask := func(id, algorithm, spec string) args {
		return args{"KeyId": id, "WrappingAlgorithm": algorithm, "WrappingKeySpec": spec}
	}
	unsupported := "UnsupportedOperationException"
	h.refused(get, ask(id, "RSAES_PKCS1_V1_5", "RSA_2048"), unsupported, "WrappingAlgorithm RSAES_PKCS1_V1_5 is no longer supported: use RSAES_OAEP_SHA_256 or RSA_AES_KEY_WRAP_SHA_256.")
	h.refused(get, ask(id, "SM2PKE", "RSA_2048"), unsupported, "WrappingAlgorithm SM2PKE cannot be used with WrappingKeySpec RSA_2048.")
	h.refused(get, ask(id, "RSAES_OAEP_SHA_1", "SM2"), unsupported, "WrappingAlgorithm RSAES_OAEP_SHA_1 cannot be used with WrappingKeySpec SM2.")
	h.refused(get, ask(rsa, "RSAES_OAEP_SHA_1", "RSA_4096"), unsupported, "WrappingAlgorithm RSAES_OAEP_SHA_1 with WrappingKeySpec RSA_4096 cannot be used for key material of "+rsaARN+", whose KeySpec is RSA_2048.")
	h.refused(get, ask("alias/nothing", "RSAES_OAEP_SHA_1", "RSA_2048"), "InvalidArnException", "Key Aliases are not supported for this operation.")
	wrongOrigin := mineARN + " origin is AWS_KMS which is not valid for this operation."
	h.refused(get, ask(mine, "RSAES_OAEP_SHA_1", "RSA_2048"), unsupported, wrongOrigin)
	h.refused(del, args{"KeyId": mine}, unsupported, wrongOrigin)

	p := h.parameters(id, "RSAES_OAEP_SHA_256", "RSA_2048")
	h.refused(put, p.wrapped(h, mine, filled(1), nil), unsupported, wrongOrigin)
	forMac := h.parameters(mac, "RSAES_OAEP_SHA_256", "RSA_2048")
	forRSA := h.parameters(rsa, "RSA_AES_KEY_WRAP_SHA_256", "RSA_2048")

	now := float64(h.now.UnixMilli()) / 1000
	for name, c := range map[string]struct {
		in   args
		text string
	}{
		"for ever, with a date": {args{"ValidTo": now + 10}, "The parameter ValidTo cannot be specified for a key with an expiration model of KEY_MATERIAL_DOES_NOT_EXPIRE"},
		"now":                   {args{"ExpirationModel": "KEY_MATERIAL_EXPIRES", "ValidTo": now}, "ValidTo must be in the future"},
		"less than a moment":    {args{"ExpirationModel": "KEY_MATERIAL_EXPIRES", "ValidTo": now + 0.0001}, "ValidTo must be in the future"},
		"long ago":              {args{"ExpirationModel": "KEY_MATERIAL_EXPIRES", "ValidTo": -1}, "ValidTo must be in the future"},
		"far away":              {args{"ExpirationModel": "KEY_MATERIAL_EXPIRES", "ValidTo": 250_000_000_000}, "ValidTo must be at most 365 days in the future"},
		"366 days":              {args{"ExpirationModel": "KEY_MATERIAL_EXPIRES", "ValidTo": now + 365*86400 + 1}, "ValidTo must be at most 365 days in the future"},
		"id of what is new":     {args{"ImportType": "NEW_KEY_MATERIAL", "KeyMaterialId": strings.Repeat("a", 64)}, "KeyMaterialId cannot be specified with ImportType NEW_KEY_MATERIAL."},
	} {
		t.Run(name, func(t *testing.T) {
			h.refused(put, p.wrapped(h, id, filled(1), c.in), "ValidationException", c.text)
		})
	}
	for member, value := range map[string]string{"ImportType": "EXISTING_KEY_MATERIAL", "KeyMaterialId": strings.Repeat("a", 64), "KeyMaterialDescription": "x"} {
		h.refused(put, forMac.wrapped(h, mac, filled(1), args{member: value}), unsupported,
			member+" can only be used with symmetric encryption keys; "+macARN+" has KeySpec HMAC_384.")
	}
	h.refused(del, args{"KeyId": rsa, "KeyMaterialId": strings.Repeat("a", 64)}, unsupported, "KeyMaterialId can only be used with symmetric encryption keys; "+rsaARN+" has KeySpec RSA_2048.")
	h.refused(del, args{"KeyId": id, "KeyMaterialId": strings.Repeat("a", 64)}, "NotFoundException", "Key material "+strings.Repeat("a", 64)+" is not associated with KMS key "+arn+".")
	if a := h.must(del, args{"KeyId": id}); len(a.fields) != 1 || a.str("KeyId") != arn { // it never had any
		t.Error(a)
	}

	// What the material must be.
	wrong := "IncorrectKeyMaterialException"
	h.refused(put, p.wrapped(h, id, make([]byte, 31), nil), wrong, "The key material is 31 bytes long. "+arn+" has KeySpec SYMMETRIC_DEFAULT, which takes 32 bytes.")
	h.refused(put, forMac.wrapped(h, mac, make([]byte, 47), nil), wrong, "The key material is 47 bytes long. "+macARN+" has KeySpec HMAC_384, which takes as many bytes as its MAC has, up to 128.")
	notRSA := "The key material is not a private key for " + rsaARN + ": KeySpec RSA_2048 takes a PKCS #8 private key of that kind in DER or BER, not encrypted."
	p256, err := engine.GenerateMaterial(engine.P256)
	if err != nil {
		t.Fatal(err)
	}
	h.refused(put, forRSA.wrapped(h, rsa, p256, nil), wrong, notRSA)
	h.refused(put, forRSA.wrapped(h, rsa, []byte("no key"), nil), wrong, notRSA)
	h.refused(put, p.wrapped(h, id, filled(1), args{"ImportType": "EXISTING_KEY_MATERIAL"}), wrong, "The key material is not associated with the KMS key "+arn+": only the same key material can be imported again.")
	h.refused(put, p.wrapped(h, id, filled(1), args{"KeyMaterialId": strings.Repeat("a", 64)}), wrong, "The id of the key material is not the KeyMaterialId of the request, "+strings.Repeat("a", 64)+".")

	// What does not unwrap: another key, another algorithm, nonsense.
	second := h.parameters(id, "RSAES_OAEP_SHA_256", "RSA_2048")
	crossed := p.wrapped(h, id, filled(1), args{"ImportToken": second.token})
	sha1 := p
	sha1.algorithm = "RSAES_OAEP_SHA_1"
	for _, in := range []args{crossed, sha1.wrapped(h, id, filled(1), nil), p.wrapped(h, id, filled(1), args{"EncryptedKeyMaterial": "bm9uc2Vuc2U="})} {
		a := h.call(put, in)
		if a.code() != "InvalidCiphertextException" || len(a.fields) != 1 {
			t.Error(a)
		}
	}
	for _, id := range []string{id, mac, rsa} {
		h.wantMetadata(id, args{"KeyState": "PendingImport"})
	}
	h.sound()
}

// TestImportTokens: a token serves its own key until it expires or is pushed out,
// also after a restart; then its wrapping key is gone.
func TestImportTokens(t *testing.T) {
	h := newHarness(t)
	const put = "ImportKeyMaterial"
	id, _ := h.external("SYMMETRIC_DEFAULT", "ENCRYPT_DECRYPT", false)
	other, _ := h.external("SYMMETRIC_DEFAULT", "ENCRYPT_DECRYPT", false)
	invalidToken := func(in args) { h.Helper(); h.refused(put, in, "InvalidImportTokenException", errInvalidToken.Message) }

	a := h.must("GetParametersForImport", args{"KeyId": id, "WrappingAlgorithm": "RSAES_OAEP_SHA_256", "WrappingKeySpec": "RSA_2048"})
	if got, want := a.fields["ParametersValidTo"].(float64), float64(h.now.Add(24*time.Hour).UnixMilli())/1000; got != want {
		t.Errorf("valid to %f, want %f", got, want)
	}
	p := parameters{"RSAES_OAEP_SHA_256", a.str("ImportToken"), fromBase64(h, a.str("PublicKey"))}
	invalidToken(p.wrapped(h, other, filled(1), nil))
	token := fromBase64(h, p.token)
	for i := range token {
		bad := bytes.Clone(token)
		bad[i] ^= 1
		invalidToken(p.wrapped(h, id, filled(1), args{"ImportToken": base64.StdEncoding.EncodeToString(bad)}))
	}
	invalidToken(p.wrapped(h, id, filled(1), args{"ImportToken": "AQ=="}))
	h.refused(put, p.wrapped(h, id, filled(1), args{"ImportToken": ""}), "ValidationException",
		"1 validation error detected: Value at 'importToken' failed to satisfy constraint: Member must have length greater than or equal to 1")

	h.restart()
	h.must(put, p.wrapped(h, id, filled(1), nil))
	h.now = h.now.Add(24*time.Hour - time.Millisecond)
	h.must(put, p.wrapped(h, id, filled(1), nil))
	h.now = h.now.Add(time.Millisecond)
	expired := func() {
		h.refused(put, p.wrapped(h, id, filled(1), nil), "ExpiredImportTokenException", errExpiredToken.Message)
	}
	expired()

	// Gone with its time, and only then.
	late := h.parameters(id, "RSAES_OAEP_SHA_256", "RSA_2048")
	count := func(prefix string) int {
		t.Helper()
		records, _, err := h.store.Scan(prefix, "", 1000)
		if err != nil {
			t.Fatal(err)
		}
		return len(records)
	}
	if marks := count(duePrefix); marks != 2 {
		t.Errorf("%d marks", marks)
	}
	h.svc.round()
	if marks, pairs := count(duePrefix), count(pairsPrefix); marks != 1 || pairs != 1 {
		t.Errorf("%d marks, %d records of pairs", marks, pairs)
	}
	expired()
	h.must(put, late.wrapped(h, id, filled(1), nil))
	if err := h.svc.sweepPairs(h.now.Add(24 * time.Hour)); err != nil {
		t.Fatal(err)
	}
	if marks, pairs := count(duePrefix), count(pairsPrefix); marks != 0 || pairs != 0 {
		t.Errorf("%d marks, %d records of pairs", marks, pairs)
	}
	invalidToken(late.wrapped(h, id, filled(1), nil)) // its time is not over, but its key is gone

	// The newest maxPairs serve.
	var all []parameters
	for range maxPairs + 1 {
		h.now = h.now.Add(time.Second)
		all = append(all, h.parameters(other, "SM2PKE", "SM2"))
	}
	invalidToken(all[0].wrapped(h, other, filled(1), nil))
	for _, p := range all[1:] {
		h.must(put, p.wrapped(h, other, filled(1), nil))
	}
}

// restart gives the harness a new Service on its store.
func (h *harness) restart() {
	h.Helper()
	h.svc.Close()
	var err error
	if h.svc, err = New(h.conf); err != nil {
		h.Fatal(err)
	}
	_ = h.ln.Close()
	ln, server := fasthttputil.NewInmemoryListener(), h.server()
	h.ln = ln
	go func() { _ = server.Serve(ln) }()
}

// TestImportStates tries the operations in every state, on keys of both origins.
func TestImportStates(t *testing.T) {
	h := newHarness(t)
	texts := map[keyState]string{
		statePendingDeletion: "is pending deletion.", statePendingReplicaDeletion: "is pending replica deletion.",
		stateCreating: "is creating.", stateUpdating: "is updating.",
	}
	refusing := map[string][]keyState{
		"GetParametersForImport":    {statePendingDeletion, statePendingReplicaDeletion, stateCreating, stateUpdating},
		"ImportKeyMaterial":         {statePendingDeletion, statePendingReplicaDeletion, stateCreating},
		"DeleteImportedKeyMaterial": {stateCreating, stateUpdating},
	}
	for _, state := range []keyState{stateEnabled, stateDisabled, statePendingDeletion, statePendingReplicaDeletion, statePendingImport, stateCreating, stateUpdating} {
		t.Run(state.String(), func(t *testing.T) {
			id, arn := h.external("SYMMETRIC_DEFAULT", "ENCRYPT_DECRYPT", false)
			mine, mineARN := h.newKey(nil)
			p := h.parameters(id, "SM2PKE", "SM2")
			if state != statePendingImport {
				h.must("ImportKeyMaterial", p.wrapped(h, id, filled(1), nil))
			}
			h.inState(id, state)
			h.inState(mine, state)
			for _, op := range []string{"GetParametersForImport", "ImportKeyMaterial", "DeleteImportedKeyMaterial"} {
				request := func(id string) args {
					switch op {
					case "GetParametersForImport":
						return args{"KeyId": id, "WrappingAlgorithm": "SM2PKE", "WrappingKeySpec": "SM2"}
					case "ImportKeyMaterial":
						return p.wrapped(h, id, filled(1), nil)
					}
					return args{"KeyId": id}
				}
				h.refused(op, request(mine), "UnsupportedOperationException", mineARN+" origin is AWS_KMS which is not valid for this operation.")
				if slices.Contains(refusing[op], state) {
					h.refused(op, request(id), "KMSInvalidStateException", arn+" "+texts[state])
				} else {
					h.must(op, request(id))
				}
			}
			want := state
			switch state { // all three, in turn
			case stateEnabled, stateDisabled, statePendingImport:
				want = statePendingImport
			}
			h.wantMetadata(id, args{"KeyState": want.String()})
		})
	}
}

// inState writes a state into a key's record.
func (h *harness) inState(id string, state keyState) {
	h.Helper()
	k := *h.record(id)
	k.State = state.String()
	t := h.store.NewTxn()
	t.PutKey(&k, k.Revision)
	if err := commit(t); err != nil {
		h.Fatal(err)
	}
	h.svc.dropView(k.Ref())
}

// TestImportKeepsDisabled: renewing material does not enable a key that its owner
// disabled, but material that comes back does.
func TestImportKeepsDisabled(t *testing.T) {
	h := newHarness(t)
	id, _ := h.external("HMAC_256", "GENERATE_VERIFY_MAC", false)
	h.importInto(id, filled(1), nil)
	h.must("DisableKey", args{"KeyId": id})
	h.importInto(id, filled(1), args{"ExpirationModel": "KEY_MATERIAL_EXPIRES", "ValidTo": h.now.Unix() + 60})
	h.wantMetadata(id, args{"KeyState": "Disabled", "ExpirationModel": "KEY_MATERIAL_EXPIRES", "ValidTo": float64(h.now.Unix() + 60)})
	h.must("DeleteImportedKeyMaterial", args{"KeyId": id})
	h.wantMetadata(id, args{"KeyState": "PendingImport"})
	h.importInto(id, filled(1), nil)
	h.wantMetadata(id, args{"KeyState": "Enabled", "ExpirationModel": "KEY_MATERIAL_DOES_NOT_EXPIRE", "ValidTo": nil})

	// A deletion that is cancelled does not make up material.
	h.must("ScheduleKeyDeletion", args{"KeyId": id})
	h.wantMetadata(id, args{"KeyState": "PendingDeletion", "ExpirationModel": "KEY_MATERIAL_DOES_NOT_EXPIRE"})
	h.must("DeleteImportedKeyMaterial", args{"KeyId": id})
	h.wantMetadata(id, args{"KeyState": "PendingDeletion", "ExpirationModel": nil})
	h.must("CancelKeyDeletion", args{"KeyId": id})
	h.wantMetadata(id, args{"KeyState": "PendingImport"})
}

// TestImportForms: the same private key comes back in another encoding.
func TestImportForms(t *testing.T) {
	h := newHarness(t)
	id, arn := h.external("ECC_NIST_P256", "SIGN_VERIFY", false)
	h.refused("GetPublicKey", args{"KeyId": id}, "KMSInvalidStateException", arn+" is pending import.")
	full, err := engine.GenerateMaterial(engine.P256)
	if err != nil {
		t.Fatal(err)
	}
	// PKCS#8 of P-256 with a public key: 30 81 87 02 01 00 30 13 .. 04 6d 30 6b 02 01 01 04 20 scalar a1 44 ..
	scalar := full[36:68]
	bare := slices.Concat([]byte{0x30, 0x41}, full[3:27], []byte{0x04, 0x27, 0x30, 0x25, 2, 1, 1, 4, 0x20}, scalar)
	a := h.must("ImportKeyMaterial", func() args {
		p := h.parameters(id, "RSAES_OAEP_SHA_256", "RSA_2048")
		return p.wrapped(h, id, bare, nil)
	}())
	if diff := cmp.Diff(map[string]any{"KeyId": arn}, a.fields); diff != "" { // no KeyMaterialId
		t.Error(diff)
	}
	h.wantMetadata(id, args{"CurrentKeyMaterialId": nil})
	public := h.must("GetPublicKey", args{"KeyId": id}).str("PublicKey")
	h.checkUse(id, engine.P256, engine.SignVerify, full)
	if a := h.must("DeleteImportedKeyMaterial", args{"KeyId": id}); len(a.fields) != 1 {
		t.Error(a)
	}
	if got := h.must("GetPublicKey", args{"KeyId": id}).str("PublicKey"); got != public {
		t.Errorf("the public key is gone with the material: %s", got)
	}
	for _, form := range [][]byte{full, bare, full} {
		h.importInto(id, form, nil)
		h.checkUse(id, engine.P256, engine.SignVerify, full)
		h.sound()
	}
	another, err := engine.GenerateMaterial(engine.P256)
	if err != nil {
		t.Fatal(err)
	}
	p := h.parameters(id, "SM2PKE", "SM2")
	h.refused("ImportKeyMaterial", p.wrapped(h, id, another, nil), "IncorrectKeyMaterialException",
		"The key material is not associated with the KMS key "+arn+": only the same key material can be imported again.")
}

// FuzzImportToken: no token is taken but the genuine one, for its own key only, and
// marks in the store read as they were written.
func FuzzImportToken(f *testing.F) {
	key, err := xaes.New(make([]byte, xaes.KeySize))
	if err != nil {
		f.Fatal(err)
	}
	id := bytes.Repeat([]byte{5}, pairIDSize)
	genuine := appendToken(nil, key, new([tokenNonce]byte), []byte("one key"), 1_800_000_000_000, id)
	f.Add(genuine, dueMark(1, keystore.Ref{Region: "eu-west-1"}))
	f.Add(genuine[:tokenSize-1], "import/due/")
	f.Add([]byte{1}, "import/due/0000000000000001/x/00")
	f.Fuzz(func(t *testing.T, token []byte, mark string) {
		until, got, ok := parseToken(key, []byte("one key"), token)
		if same := bytes.Equal(token, genuine); ok != same || ok && (until != 1_800_000_000_000 || !bytes.Equal(got, id)) {
			t.Fatalf("%x: %d %x %t", token, until, got, ok)
		}
		if _, _, ok := parseToken(key, []byte("another key"), token); ok {
			t.Fatalf("%x is taken for another key", token)
		}
		if until, ref, ok := parseDueMark(mark); ok && dueMark(until, ref) != mark {
			t.Fatalf("%q reads as %d %v", mark, until, ref)
		}
	})
}
