package engine

import (
	"crypto"
	"crypto/rsa"
	"crypto/sha1"
	"crypto/sha256"
	"crypto/x509"
	"hash"
	"slices"

	"github.com/emmansun/gmsm/sm2"

	"keymill/hsm/arena"
	"keymill/hsm/xaes"
)

// # Imported material
//
// Material that was made elsewhere comes wrapped under a public key of ours. A
// Wrapping says how:
//
//	RSAES_OAEP_SHA_n        RSA-OAEP(material)
//	RSA_AES_KEY_WRAP_SHA_n  RSA-OAEP(K) and then AES-KWP(K, material), where K is
//	                        a fresh AES-256 key: CKM_RSA_AES_KEY_WRAP of PKCS#11
//	SM2PKE                  SM2 encryption in the ASN.1 form of GM/T 0009
//
// OAEP has the named hash in both places and an empty label. What comes out is
// raw bytes for symmetric and HMAC keys, and a PKCS#8 private key for all others.
//
// Whoever can call Unwrap with ciphertexts of their own choice learns that they
// do not unwrap, and nothing of where it failed: there is one error for all.

// A Wrapping is a way to wrap key material on its way here: AWS's
// WrappingAlgorithm. The zero value is none.
type Wrapping uint8

// The wrappings. WrapPKCS1 is in the service model, but AWS has refused it since
// October 2023 and so do we: no key serves it.
const (
	WrapInvalid Wrapping = iota
	WrapPKCS1
	WrapOAEPSHA1
	WrapOAEPSHA256
	WrapAESSHA1
	WrapAESSHA256
	WrapSM2PKE
	numWrappings
)

var wrappingNames = [numWrappings]string{
	WrapPKCS1:      "RSAES_PKCS1_V1_5",
	WrapOAEPSHA1:   "RSAES_OAEP_SHA_1",
	WrapOAEPSHA256: "RSAES_OAEP_SHA_256",
	WrapAESSHA1:    "RSA_AES_KEY_WRAP_SHA_1",
	WrapAESSHA256:  "RSA_AES_KEY_WRAP_SHA_256",
	WrapSM2PKE:     "SM2PKE",
}

// ParseWrapping returns the wrapping of an AWS name.
func ParseWrapping(name string) (Wrapping, bool) {
	i := find(wrappingNames[:], name)
	return Wrapping(max(i, 0)), i > 0
}

func (w Wrapping) String() string { return nameOf(wrappingNames[:], int(w)) }

// ServedBy reports whether a wrapping key of that spec can unwrap.
func (w Wrapping) ServedBy(key Spec) bool {
	switch w {
	case WrapOAEPSHA1, WrapOAEPSHA256, WrapAESSHA1, WrapAESSHA256:
		return key.RSA()
	case WrapSM2PKE:
		return key == SM2
	}
	return false
}

// Carries reports whether material of that spec may be wrapped so, under a
// wrapping key of the spec key. The table is AWS's: short material goes under the
// public key itself, RSA keys under an AES key, elliptic curve keys as they fit.
func (w Wrapping) Carries(material, key Spec) bool {
	if !w.ServedBy(key) || !material.Importable() {
		return false
	}
	secret := material.Symmetric() || material.HMAC()
	switch w {
	case WrapOAEPSHA1, WrapOAEPSHA256:
		return secret || material.ecc() && (material != P521 || key != RSA2048)
	case WrapAESSHA1, WrapAESSHA256:
		return !secret
	default: // WrapSM2PKE
		return !material.RSA()
	}
}

// Importable reports whether keys of this spec can have imported material.
func (s Spec) Importable() bool { return s.Valid() && !s.MLDSA() }

// ecc reports whether s is an elliptic curve that is not SM2's.
func (s Spec) ecc() bool { return s >= P256 && s <= Ed25519 }

// newHash returns the hash of the OAEP in w.
func (w Wrapping) newHash() hash.Hash {
	if w == WrapOAEPSHA1 || w == WrapAESSHA1 {
		return sha1.New()
	}
	return sha256.New()
}

// Unwrap opens wrapped material with the PKCS#8 private key of spec key. It fails
// with ErrInvalidCiphertext when that is not what wrapped was made for; any other
// error says that the private key is not one. The caller wipes the material.
func Unwrap(w Wrapping, key Spec, pkcs8, wrapped []byte) ([]byte, error) {
	if !w.ServedBy(key) {
		return nil, ErrIncompatible
	}
	parsed, err := parsePrivateKey(key, pkcs8)
	if err != nil {
		return nil, err
	}
	var out []byte
	switch p := parsed.(type) {
	case *rsaPrivate:
		out, err = unwrapRSA(w, p.key, wrapped)
	case *sm2Private:
		out, err = p.key.Decrypt(nil, wrapped, sm2.ASN1DecrypterOpts)
	default:
		return nil, ErrIncompatible
	}
	if err != nil {
		return nil, ErrInvalidCiphertext
	}
	return out, nil
}

func unwrapRSA(w Wrapping, key *rsa.PrivateKey, wrapped []byte) ([]byte, error) {
	first := wrapped
	if w == WrapAESSHA1 || w == WrapAESSHA256 {
		first = wrapped[:min(len(wrapped), key.Size())]
	}
	if len(first) != key.Size() { // RFC 8017, section 7.1.2, step 1b
		return nil, ErrInvalidCiphertext
	}
	out, err := rsa.DecryptOAEP(w.newHash(), nil, key, first, nil)
	if err != nil || w == WrapOAEPSHA1 || w == WrapOAEPSHA256 {
		return out, err
	}
	defer arena.Wipe(out)
	if len(out) != wrapKeySize {
		return nil, ErrInvalidCiphertext
	}
	return unwrapKWP(out, wrapped[key.Size():])
}

// wrapKeySize is the length of the AES key between the RSA key and the material.
const wrapKeySize = 32

// ImportMaterial checks material of a spec as it came out of its wrapping, and
// returns it in the form in which GenerateMaterial makes it, and the public key of
// an asymmetric spec. A private key is read as DER or BER PKCS#8; its public half,
// if it has one, is not believed but computed. ErrInvalidMaterial: it has another
// length, or is no private key of the spec. The caller wipes in and material,
// which do not overlap.
func ImportMaterial(spec Spec, in []byte) (material, spki []byte, err error) {
	switch {
	case !spec.Importable():
		return nil, nil, ErrUnknownSpec
	case spec.Symmetric():
		if len(in) != xaes.KeySize {
			return nil, nil, ErrInvalidMaterial
		}
		return slices.Clone(in), nil, nil
	case spec.HMAC():
		if len(in) < hmacHash(spec)().Size() || len(in) > maxHMACKey {
			return nil, nil, ErrInvalidMaterial
		}
		return slices.Clone(in), nil, nil
	}
	der, err := derPrivateKey(in)
	if err != nil {
		return nil, nil, err
	}
	defer arena.Wipe(der)
	if material, err = canonicalPrivateKey(spec, der); err != nil {
		return nil, nil, ErrInvalidMaterial
	}
	if spki, err = PublicKey(spec, material); err != nil {
		arena.Wipe(material)
		return nil, nil, err
	}
	return material, spki, nil
}

// canonicalPrivateKey writes a PKCS#8 private key as we write it. The scalar of a
// curve may come without its leading zero bytes: some writers leave them out.
func canonicalPrivateKey(spec Spec, der []byte) ([]byte, error) {
	curve := oidSecp256k1
	switch spec {
	case SM2:
		curve = oidSM2
	case Secp256k1:
	default:
		key, err := parsePrivateKey(spec, der)
		if err != nil {
			return nil, err
		}
		var std crypto.PrivateKey
		switch key := key.(type) {
		case *rsaPrivate:
			std = key.key
		case *ecdsaPrivate:
			std = key.key
		case *ed25519Private:
			return marshalEd25519Private(key.key.Seed()), nil
		}
		return x509.MarshalPKCS8PrivateKey(std)
	}
	scalar, err := shortScalar(der, curve)
	if err != nil {
		return nil, err
	}
	defer arena.Wipe(scalar)
	point, err := curvePoint(spec, scalar)
	if err != nil {
		return nil, err
	}
	return marshalECPrivate(curve, slices.Clone(scalar), point), nil
}
