package e2e

import (
	"bytes"
	"crypto"
	"crypto/hmac"
	"crypto/rsa"
	"crypto/sha256"
	"crypto/sha512"
	"crypto/x509"
	"fmt"
	"hash"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/aws/aws-sdk-go-v2/service/kms"
	"github.com/aws/aws-sdk-go-v2/service/kms/types"

	"keymill/engine"
	"keymill/engine/wraptest"
)

// externalKey makes a key for imported material.
func (s *story) externalKey(spec types.KeySpec, usage types.KeyUsageType) *types.KeyMetadata {
	s.Helper()
	m := must(s.CreateKey(s.ctx(), &kms.CreateKeyInput{Origin: types.OriginTypeExternal, KeySpec: spec, KeyUsage: usage}))(s).KeyMetadata
	if m.KeyState != types.KeyStatePendingImport || m.Enabled || m.Origin != types.OriginTypeExternal || m.ExpirationModel != "" || m.CurrentKeyMaterialId != nil {
		s.Fatalf("a new key for imported material: %+v", m)
	}
	return m
}

func (s *story) importParameters(id *string, algorithm types.AlgorithmSpec, spec types.WrappingKeySpec) *kms.GetParametersForImportOutput {
	s.Helper()
	return must(s.GetParametersForImport(s.ctx(), &kms.GetParametersForImportInput{KeyId: id, WrappingAlgorithm: algorithm, WrappingKeySpec: spec}))(s)
}

// importInput wraps material for a key, to stay for ever.
func (s *story) importInput(id *string, algorithm types.AlgorithmSpec, spec types.WrappingKeySpec, material []byte) *kms.ImportKeyMaterialInput {
	s.Helper()
	p := s.importParameters(id, algorithm, spec)
	return &kms.ImportKeyMaterialInput{
		KeyId: id, ImportToken: p.ImportToken, ExpirationModel: types.ExpirationModelTypeKeyMaterialDoesNotExpire,
		EncryptedKeyMaterial: must(wraptest.Wrap(string(algorithm), p.PublicKey, material))(s),
	}
}

// TestImport imports a key of every spec by every wrapping algorithm that carries
// it, uses it, and checks what it does with the material outside.
func TestImport(t *testing.T) {
	t.Parallel()
	rsaKeys := []types.WrappingKeySpec{types.WrappingKeySpecRsa4096, types.WrappingKeySpecRsa3072}
	n := 0
	for spec := engine.SymmetricDefault; spec <= engine.SM2; spec++ {
		if !spec.Importable() {
			continue
		}
		for _, algorithm := range types.AlgorithmSpec("").Values() {
			w, ok := engine.ParseWrapping(string(algorithm))
			if !ok {
				t.Fatalf("the SDK knows %s", algorithm)
			}
			wrapping := types.WrappingKeySpecRsa2048
			switch n++; {
			case algorithm == types.AlgorithmSpecSm2pke:
				wrapping = types.WrappingKeySpecSm2
			case spec == engine.P521: // OAEP under 2048 bits is too short for it
				wrapping = types.WrappingKeySpecRsa3072
			case spec == engine.HMAC256, spec == engine.RSA2048: // the long keys take seconds to make
				wrapping = rsaKeys[n%2]
			}
			key, _ := engine.ParseSpec(string(wrapping))
			if !w.Carries(spec, key) {
				continue
			}
			usage := spec.Usages()[n%len(spec.Usages())]
			t.Run(fmt.Sprintf("%s by %s", spec, algorithm), func(t *testing.T) {
				t.Parallel()
				s := newStory(t)
				m := s.externalKey(types.KeySpec(spec.String()), types.KeyUsageType(usage.String()))
				material := must(engine.GenerateMaterial(spec))(t)
				in := s.importInput(m.KeyId, algorithm, wrapping, material)
				out := must(s.ImportKeyMaterial(s.ctx(), in))(t)
				if *out.KeyId != *m.Arn || (out.KeyMaterialId != nil) != spec.Symmetric() {
					t.Errorf("%+v", out)
				}
				if got := s.describe(*m.KeyId); got.KeyState != types.KeyStateEnabled || got.ExpirationModel != types.ExpirationModelTypeKeyMaterialDoesNotExpire || got.ValidTo != nil {
					t.Errorf("%+v", got)
				}
				s.useImported(m.KeyId, spec, usage, material)
			})
		}
	}
}

// useImported uses a key and compares with its material.
func (s *story) useImported(id *string, spec engine.Spec, usage engine.Usage, material []byte) {
	s.Helper()
	message := []byte("known plaintext")
	alg := spec.Algorithms(usage)[0].String()
	var public []byte
	if spec.Asymmetric() {
		public = must(s.GetPublicKey(s.ctx(), &kms.GetPublicKeyInput{KeyId: id}))(s).PublicKey
		if want := must(engine.PublicKey(spec, material))(s); !bytes.Equal(public, want) {
			s.Errorf("the public key is not that of the material")
		}
	}
	switch usage {
	case engine.EncryptDecrypt:
		enc := types.EncryptionAlgorithmSpec(alg)
		blob := must(s.Encrypt(s.ctx(), &kms.EncryptInput{KeyId: id, Plaintext: message, EncryptionAlgorithm: enc}))(s).CiphertextBlob
		if spec.RSA() { // the owner of the private key can decrypt it, too
			private := must(x509.ParsePKCS8PrivateKey(material))(s).(*rsa.PrivateKey)
			got := must(private.Decrypt(nil, blob, &rsa.OAEPOptions{Hash: crypto.SHA1}))(s)
			if !bytes.Equal(got, message) {
				s.Errorf("decrypted outside: %q", got)
			}
		}
		out := must(s.Decrypt(s.ctx(), &kms.DecryptInput{KeyId: id, CiphertextBlob: blob, EncryptionAlgorithm: enc}))(s)
		if !bytes.Equal(out.Plaintext, message) {
			s.Errorf("decrypted: %q", out.Plaintext)
		}
	case engine.SignVerify:
		sign := types.SigningAlgorithmSpec(alg)
		sig := must(s.Sign(s.ctx(), &kms.SignInput{KeyId: id, Message: message, SigningAlgorithm: sign}))(s).Signature
		if spec.RSA() {
			sum := sha256.Sum256(message)
			key := must(x509.ParsePKIXPublicKey(public))(s).(*rsa.PublicKey)
			if err := rsa.VerifyPSS(key, crypto.SHA256, sum[:], sig, nil); err != nil {
				s.Error(err)
			}
		}
		must(s.Verify(s.ctx(), &kms.VerifyInput{KeyId: id, Message: message, SigningAlgorithm: sign, Signature: sig}))(s)
	case engine.GenerateVerifyMAC:
		mac := must(s.GenerateMac(s.ctx(), &kms.GenerateMacInput{KeyId: id, Message: message, MacAlgorithm: types.MacAlgorithmSpec(alg)}))(s).Mac
		h := hmac.New(map[engine.Spec]func() hash.Hash{engine.HMAC224: sha256.New224, engine.HMAC256: sha256.New, engine.HMAC384: sha512.New384, engine.HMAC512: sha512.New}[spec], material)
		h.Write(message)
		if want := h.Sum(nil); !bytes.Equal(mac, want) {
			s.Errorf("MAC %x, want %x", mac, want)
		}
	case engine.KeyAgreement:
		private, peer, err := engine.GenerateKeyPair(spec)
		if err != nil {
			s.Fatal(err)
		}
		secret := must(s.DeriveSharedSecret(s.ctx(), &kms.DeriveSharedSecretInput{KeyId: id, KeyAgreementAlgorithm: types.KeyAgreementAlgorithmSpecEcdh, PublicKey: peer}))(s)
		if secret.KeyOrigin != types.OriginTypeExternal {
			s.Errorf("origin %s", secret.KeyOrigin)
		}
		other := s.externalKey(types.KeySpec(spec.String()), types.KeyUsageTypeKeyAgreement)
		must(s.ImportKeyMaterial(s.ctx(), s.importInput(other.KeyId, types.AlgorithmSpecRsaAesKeyWrapSha256, types.WrappingKeySpecRsa2048, private)))(s)
		same := must(s.DeriveSharedSecret(s.ctx(), &kms.DeriveSharedSecretInput{KeyId: other.KeyId, KeyAgreementAlgorithm: types.KeyAgreementAlgorithmSpecEcdh, PublicKey: public}))(s)
		if !bytes.Equal(same.SharedSecret, secret.SharedSecret) {
			s.Error("the two sides have different secrets")
		}
	}
}

// TestImportOpenSSL wraps with the openssl command, as AWS's guide tells people to:
// a symmetric key by OAEP, and an RSA key by an AES key.
func TestImportOpenSSL(t *testing.T) {
	t.Parallel()
	if _, err := exec.LookPath("openssl"); err != nil {
		skip(t, "openssl", "the openssl command is not installed (package openssl)")
	}
	s := newStory(t)
	dir := t.TempDir()
	file := func(name string) string { return filepath.Join(dir, name) }
	run := func(args ...string) {
		t.Helper()
		if out, err := exec.Command("openssl", args...).CombinedOutput(); err != nil {
			t.Fatalf("openssl %s: %v\n%s", strings.Join(args, " "), err, out)
		}
	}
	read := func(name string) []byte { t.Helper(); return must(os.ReadFile(file(name)))(t) }
	write := func(name string, b []byte) {
		t.Helper()
		if err := os.WriteFile(file(name), b, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	oaep := func(in, out, digest string) {
		t.Helper()
		run("pkeyutl", "-encrypt", "-in", file(in), "-out", file(out), "-inkey", file("wrapping.der"), "-keyform", "DER", "-pubin",
			"-pkeyopt", "rsa_padding_mode:oaep", "-pkeyopt", "rsa_oaep_md:"+digest, "-pkeyopt", "rsa_mgf1_md:"+digest)
	}

	symmetric := s.externalKey("", "")
	p := s.importParameters(symmetric.KeyId, types.AlgorithmSpecRsaesOaepSha1, types.WrappingKeySpecRsa3072)
	write("wrapping.der", p.PublicKey)
	run("rand", "-out", file("plain"), "32")
	oaep("plain", "wrapped", "sha1")
	must(s.ImportKeyMaterial(s.ctx(), &kms.ImportKeyMaterialInput{
		KeyId: symmetric.KeyId, ImportToken: p.ImportToken, EncryptedKeyMaterial: read("wrapped"), ExpirationModel: types.ExpirationModelTypeKeyMaterialDoesNotExpire,
	}))(t)
	s.useImported(symmetric.KeyId, engine.SymmetricDefault, engine.EncryptDecrypt, read("plain"))

	signer := s.externalKey(types.KeySpecRsa2048, types.KeyUsageTypeSignVerify)
	p = s.importParameters(signer.KeyId, types.AlgorithmSpecRsaAesKeyWrapSha256, types.WrappingKeySpecRsa2048)
	write("wrapping.der", p.PublicKey)
	run("genpkey", "-algorithm", "RSA", "-pkeyopt", "rsa_keygen_bits:2048", "-outform", "DER", "-out", file("traditional.der"))
	run("pkcs8", "-topk8", "-nocrypt", "-inform", "DER", "-in", file("traditional.der"), "-outform", "DER", "-out", file("key.der"))
	run("rand", "-out", file("aes"), "32")
	run("enc", "-id-aes256-wrap-pad", "-K", fmt.Sprintf("%x", read("aes")), "-iv", "A65959A6", "-in", file("key.der"), "-out", file("second"))
	oaep("aes", "first", "sha256")
	must(s.ImportKeyMaterial(s.ctx(), &kms.ImportKeyMaterialInput{
		KeyId: signer.KeyId, ImportToken: p.ImportToken, EncryptedKeyMaterial: slices.Concat(read("first"), read("second")), ExpirationModel: types.ExpirationModelTypeKeyMaterialDoesNotExpire,
	}))(t)
	s.useImported(signer.KeyId, engine.RSA2048, engine.SignVerify, read("key.der"))
}

// TestImportErrors has each modelled error of the three operations but the ones
// that take a day.
func TestImportErrors(t *testing.T) {
	t.Parallel()
	s := newStory(t)
	key := s.externalKey("", "")
	mine := s.newKey("", "")
	const algorithm, spec = types.AlgorithmSpecRsaesOaepSha256, types.WrappingKeySpecRsa2048
	in := s.importInput(key.KeyId, algorithm, spec, make([]byte, 32))
	second := s.importInput(key.KeyId, algorithm, spec, make([]byte, 31))
	calls := map[string]func(id *string) error{
		"GetParametersForImport": func(id *string) error {
			_, err := s.GetParametersForImport(s.ctx(), &kms.GetParametersForImportInput{KeyId: id, WrappingAlgorithm: algorithm, WrappingKeySpec: spec})
			return err
		},
		"ImportKeyMaterial": func(id *string) error {
			other := *in
			other.KeyId = id
			_, err := s.ImportKeyMaterial(s.ctx(), &other)
			return err
		},
		"DeleteImportedKeyMaterial": func(id *string) error {
			_, err := s.DeleteImportedKeyMaterial(s.ctx(), &kms.DeleteImportedKeyMaterialInput{KeyId: id})
			return err
		},
	}
	const unknown = "12345678-1234-4234-8234-123456789012"
	for name, call := range calls {
		t.Run(name, func(t *testing.T) {
			wantError(t, call(ptr("alias/x")), "InvalidArnException", "Key Aliases are not supported for this operation.")
			wantError(t, call(ptr(unknown)), "NotFoundException", "Key '"+s.keyARN(unknown)+"' does not exist")
			wantError(t, call(mine.KeyId), "UnsupportedOperationException", *mine.Arn+" origin is AWS_KMS which is not valid for this operation.")
			if name != "DeleteImportedKeyMaterial" {
				going := s.externalKey("", "")
				must(s.ScheduleKeyDeletion(s.ctx(), &kms.ScheduleKeyDeletionInput{KeyId: going.KeyId}))(t)
				wantError(t, call(going.KeyId), "KMSInvalidStateException", *going.Arn+" is pending deletion.")
			}
		})
	}
	try := func(change func(in *kms.ImportKeyMaterialInput)) error {
		other := *in
		change(&other)
		_, err := s.ImportKeyMaterial(s.ctx(), &other)
		return err
	}
	wantError(t, try(func(in *kms.ImportKeyMaterialInput) { in.ExpirationModel = "" }), "ValidationException", "A validTo date must be set if the ExpirationModel is KEY_MATERIAL_EXPIRES")
	wantError(t, try(func(in *kms.ImportKeyMaterialInput) {
		in.ExpirationModel, in.ValidTo = "", ptr(time.Now().Add(-time.Hour))
	}), "ValidationException", "ValidTo must be in the future")
	wantError(t, try(func(in *kms.ImportKeyMaterialInput) { in.ImportToken = second.ImportToken }), "InvalidCiphertextException", "")
	wantError(t, try(func(in *kms.ImportKeyMaterialInput) { in.ImportToken = []byte("x") }), "InvalidImportTokenException", "The import token is not valid for this KMS key...")
	_, err := s.ImportKeyMaterial(s.ctx(), second)
	wantError(t, err, "IncorrectKeyMaterialException", "The key material is 31 bytes long...")
	_, err = s.CreateKey(s.ctx(), &kms.CreateKeyInput{Origin: types.OriginTypeExternal, KeySpec: types.KeySpecMlDsa65, KeyUsage: types.KeyUsageTypeSignVerify})
	wantError(t, err, "UnsupportedOperationException", "KeySpec ML_DSA_65 is not supported for Origin EXTERNAL.")
}

// TestImportAcrossRestarts: tokens and material survive a crash; material whose
// time passes while nobody is there is refused by whoever starts next, and goes;
// the same material brings the key back to what it encrypted.
func TestImportAcrossRestarts(t *testing.T) {
	t.Parallel()
	d := start(t, Options{})
	s := storyIn(t, d, "us-east-1")
	again := func() {
		t.Helper()
		d.Kill()
		if err := d.StartAgain(t.Context()); err != nil {
			t.Fatal(err)
		}
		s = storyIn(t, d, "us-east-1")
	}
	key := s.externalKey("", "")
	material := bytes.Repeat([]byte{0x5a}, 32)
	in := s.importInput(key.KeyId, types.AlgorithmSpecRsaesOaepSha256, types.WrappingKeySpecRsa2048, material)
	in.ImportType, in.KeyMaterialDescription = types.ImportTypeNewKeyMaterial, ptr("from the vault")
	again()
	first := must(s.ImportKeyMaterial(s.ctx(), in))(t)
	blob := must(s.Encrypt(s.ctx(), &kms.EncryptInput{KeyId: key.KeyId, Plaintext: []byte("x")}))(t).CiphertextBlob
	decrypts := func() error {
		_, err := s.Decrypt(s.ctx(), &kms.DecryptInput{CiphertextBlob: blob})
		return err
	}
	again()
	if err := decrypts(); err != nil {
		t.Fatal(err)
	}

	until := time.Now().Add(2 * time.Second)
	in.ImportType, in.KeyMaterialDescription, in.KeyMaterialId = types.ImportTypeExistingKeyMaterial, nil, first.KeyMaterialId
	in.ExpirationModel, in.ValidTo = types.ExpirationModelTypeKeyMaterialExpires, &until
	must(s.ImportKeyMaterial(s.ctx(), in))(t)
	if m := s.describe(*key.KeyId); m.ExpirationModel != types.ExpirationModelTypeKeyMaterialExpires || m.ValidTo == nil || m.ValidTo.Sub(until).Abs() > time.Second {
		t.Errorf("%+v", m)
	}
	d.Kill()
	<-time.After(time.Until(until.Add(time.Millisecond)))
	if err := d.StartAgain(t.Context()); err != nil {
		t.Fatal(err)
	}
	s = storyIn(t, d, "us-east-1")
	wantError(t, decrypts(), "KMSInvalidStateException", *key.Arn+" is pending import.")
	m := s.describe(*key.KeyId)
	if m.KeyState != types.KeyStatePendingImport || m.Enabled || m.ExpirationModel != "" || m.ValidTo != nil || *m.CurrentKeyMaterialId != *first.KeyMaterialId {
		t.Errorf("%+v", m)
	}

	in.ExpirationModel, in.ValidTo = types.ExpirationModelTypeKeyMaterialDoesNotExpire, nil
	must(s.ImportKeyMaterial(s.ctx(), in))(t)
	if err := decrypts(); err != nil {
		t.Error(err)
	}
	out := must(s.DeleteImportedKeyMaterial(s.ctx(), &kms.DeleteImportedKeyMaterialInput{KeyId: key.Arn, KeyMaterialId: first.KeyMaterialId}))(t)
	if *out.KeyId != *key.Arn || *out.KeyMaterialId != *first.KeyMaterialId {
		t.Errorf("%+v", out)
	}
	again()
	wantError(t, decrypts(), "KMSInvalidStateException", *key.Arn+" is pending import.")
}
