package engine

import (
	"bytes"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
)

// opensslDir runs the openssl command in a directory of its own, where keys and
// messages are files.
type opensslDir struct {
	t   *testing.T
	dir string
}

func openssl(t *testing.T) opensslDir {
	t.Helper()
	if _, err := exec.LookPath("openssl"); err != nil {
		t.Skip("SKIP: there is no openssl command, so nothing is compared with it")
	}
	return opensslDir{t, t.TempDir()}
}

func (o opensslDir) put(name string, data []byte) {
	o.t.Helper()
	if err := os.WriteFile(filepath.Join(o.dir, name), data, 0o600); err != nil {
		o.t.Fatal(err)
	}
}

// run returns what openssl printed.
func (o opensslDir) run(args ...string) []byte {
	o.t.Helper()
	cmd := exec.Command("openssl", args...)
	cmd.Dir = o.dir
	var out, msg bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &msg
	if err := cmd.Run(); err != nil {
		o.t.Fatalf("openssl %v: %v\n%s%s", args, err, out.Bytes(), msg.Bytes())
	}
	return out.Bytes()
}

// opensslSpecs are the asymmetric specs that OpenSSL 3.0 knows, with the
// arguments of genpkey that make such a key.
var opensslSpecs = map[Spec][]string{
	RSA2048:   {"-algorithm", "RSA", "-pkeyopt", "rsa_keygen_bits:2048"},
	RSA3072:   {"-algorithm", "RSA", "-pkeyopt", "rsa_keygen_bits:3072"},
	P256:      {"-algorithm", "EC", "-pkeyopt", "ec_paramgen_curve:P-256"},
	P384:      {"-algorithm", "EC", "-pkeyopt", "ec_paramgen_curve:P-384"},
	P521:      {"-algorithm", "EC", "-pkeyopt", "ec_paramgen_curve:P-521"},
	Secp256k1: {"-algorithm", "EC", "-pkeyopt", "ec_paramgen_curve:secp256k1"},
	Ed25519:   {"-algorithm", "ED25519"},
	SM2:       {"-algorithm", "EC", "-pkeyopt", "ec_paramgen_curve:SM2"},
}

// TestOpenSSL holds every algorithm against OpenSSL in both directions, with a
// key we made and with one that it made.
func TestOpenSSL(t *testing.T) {
	for spec, genpkey := range opensslSpecs {
		t.Run(spec.String(), func(t *testing.T) {
			o := openssl(t)
			o.put("pem", o.run(append([]string{"genpkey"}, genpkey...)...))
			theirs := o.run("pkcs8", "-topk8", "-nocrypt", "-in", "pem", "-outform", "DER")
			for whose, material := range map[string][]byte{"ours": testMaterial(t, spec), "theirs": theirs} {
				o.put("key", material)
				o.put("pub", o.run("pkey", "-inform", "DER", "-in", "key", "-pubout", "-outform", "DER"))
				pub, err := os.ReadFile(filepath.Join(o.dir, "pub"))
				if err != nil {
					t.Fatal(err)
				}
				if spki, err := PublicKey(spec, material); err != nil || !bytes.Equal(spki, pub) {
					t.Fatalf("%s: our public key %x..., theirs %x..., %v", whose, spki[:min(30, len(spki))], pub[:30], err)
				}
				for _, usage := range spec.Usages() {
					k := keyOf(t, testID, spec, usage, material)
					for _, alg := range spec.Algorithms(usage) {
						switch {
						case usage == KeyAgreement:
							o.agree(spec, k)
						case usage == EncryptDecrypt:
							o.encrypt(k, alg)
						case alg != AlgEd25519ph: // which OpenSSL 3.0 has not
							o.sign(k, alg)
						}
					}
				}
			}
		})
	}
}

// options are the -pkeyopt arguments that select an algorithm.
func (o opensslDir) options(alg Algorithm) []string {
	hash := map[int]string{20: "sha1", 32: "sha256", 48: "sha384", 64: "sha512"}
	pss := func() []string {
		return []string{"-digest", hash[alg.hash().Size()], "-pkeyopt", "rsa_padding_mode:pss",
			"-pkeyopt", fmt.Sprintf("rsa_pss_saltlen:%d", alg.hash().Size()), "-pkeyopt", "rsa_mgf1_md:" + hash[alg.hash().Size()]}
	}
	switch alg {
	case AlgOAEPSHA1, AlgOAEPSHA256:
		h := hash[alg.hash().Size()]
		return []string{"-pkeyopt", "rsa_padding_mode:oaep", "-pkeyopt", "rsa_oaep_md:" + h, "-pkeyopt", "rsa_mgf1_md:" + h}
	case AlgPSSSHA256, AlgPSSSHA384, AlgPSSSHA512:
		return pss()
	case AlgSM2DSA:
		return []string{"-digest", "sm3", "-pkeyopt", "distid:1234567812345678"}
	case AlgEd25519, AlgSM2PKE:
		return nil
	}
	return []string{"-digest", hash[alg.hash().Size()]}
}

var (
	withKey = []string{"-keyform", "DER", "-inkey", "key"}
	withPub = []string{"-keyform", "DER", "-pubin", "-inkey", "pub"}
)

func (o opensslDir) pkeyutl(verb string, lists ...[]string) []byte {
	o.t.Helper()
	args := []string{"pkeyutl", verb}
	for _, l := range lists {
		args = append(args, l...)
	}
	return o.run(args...)
}

func (o opensslDir) sign(k *local, alg Algorithm) {
	o.t.Helper()
	msg := []byte("a message for two implementations")
	o.put("msg", msg)
	in := []string{"-rawin", "-in", "msg"}
	o.put("sig", must(o.t, k, Op{Verb: Sign, Alg: alg, In: msg}))
	o.pkeyutl("-verify", withPub, in, []string{"-sigfile", "sig"}, o.options(alg))
	must(o.t, k, Op{Verb: Verify, Alg: alg, In: msg, Sig: o.pkeyutl("-sign", withKey, in, o.options(alg))})
}

func (o opensslDir) encrypt(k *local, alg Algorithm) {
	o.t.Helper()
	msg := []byte("thirty-two bytes of a data key..")
	o.put("msg", msg)
	theirs := o.pkeyutl("-encrypt", withPub, []string{"-in", "msg"}, o.options(alg))
	if got := must(o.t, k, Op{Verb: Decrypt, Alg: alg, In: theirs}); !bytes.Equal(got, msg) {
		o.t.Errorf("%v: their ciphertext decrypts to %q", alg, got)
	}
	o.put("ct", must(o.t, k, Op{Verb: Encrypt, Alg: alg, In: msg}))
	if got := o.pkeyutl("-decrypt", withKey, []string{"-in", "ct"}, o.options(alg)); !bytes.Equal(got, msg) {
		o.t.Errorf("%v: our ciphertext decrypts to %q", alg, got)
	}
}

func (o opensslDir) agree(spec Spec, k *local) {
	o.t.Helper()
	if spec == SM2 { // its -derive is not plain ECDH
		return
	}
	_, peer, err := GenerateKeyPair(spec)
	if err != nil {
		o.t.Fatal(err)
	}
	o.put("peer", peer)
	theirs := o.pkeyutl("-derive", withKey, []string{"-peerform", "DER", "-peerkey", "peer"})
	if ours := must(o.t, k, Op{Verb: DeriveSecret, Alg: AlgECDH, In: peer}); !bytes.Equal(ours, theirs) {
		o.t.Errorf("%v: secrets %x and %x", spec, ours, theirs)
	}
}

// TestOpenSSLHMAC compares MACs under a generated key.
func TestOpenSSLHMAC(t *testing.T) {
	o := openssl(t)
	o.put("msg", []byte("a message"))
	for spec, digest := range map[Spec]string{HMAC224: "SHA224", HMAC256: "SHA256", HMAC384: "SHA384", HMAC512: "SHA512"} {
		material := testMaterial(t, spec)
		k := keyOf(t, testID, spec, GenerateVerifyMAC, material)
		theirs := o.run("mac", "-digest", digest, "-macopt", fmt.Sprintf("hexkey:%x", material), "-in", "msg", "-binary", "HMAC")
		must(t, k, Op{Verb: VerifyMAC, Alg: spec.Algorithms(k.usage)[0], In: []byte("a message"), Sig: theirs})
	}
}
