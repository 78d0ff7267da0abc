package engine

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"encoding/asn1"
	"fmt"
	"slices"

	"github.com/emmansun/gmsm/sm2"
	"gitlab.com/yawning/secp256k1-voi/secec"
	"golang.org/x/crypto/cryptobyte"
	casn1 "golang.org/x/crypto/cryptobyte/asn1"

	"keymill/hsm/arena"
	"keymill/hsm/xaes"
)

// GenerateMaterial returns new material of a spec: 32 bytes for symmetric keys,
// as many as the hash has for HMAC keys, PKCS#8 DER for all others. The caller
// seals and wipes it.
func GenerateMaterial(spec Spec) ([]byte, error) {
	size := 0
	switch {
	case spec.Symmetric():
		size = xaes.KeySize
	case spec.HMAC():
		size = hmacHash(spec)().Size()
	default:
		pkcs8, _, err := GenerateKeyPair(spec)
		return pkcs8, err
	}
	b := make([]byte, size)
	Random(b)
	return b, nil
}

// GenerateKeyPair returns a new private key in PKCS#8 and its public key in
// SubjectPublicKeyInfo, both DER. It serves every asymmetric spec; which ones
// are data key pairs is [Spec.DataKeyPair]. The caller wipes the private key.
func GenerateKeyPair(spec Spec) (pkcs8, spki []byte, err error) {
	pkcs8, err = generatePKCS8(spec)
	if err != nil {
		return nil, nil, err
	}
	spki, err = PublicKey(spec, pkcs8)
	if err != nil {
		arena.Wipe(pkcs8)
		return nil, nil, err
	}
	return pkcs8, spki, nil
}

func generatePKCS8(spec Spec) ([]byte, error) {
	if spec.Valid() && served(spec, TaskGenerate) == NoProvider {
		return nil, ErrNoProvider
	}
	var key crypto.PrivateKey
	var err error
	switch spec {
	case RSA2048, RSA3072, RSA4096:
		key, err = rsa.GenerateKey(rand.Reader, spec.bits())
	case P256, P384, P521:
		key, err = ecdsa.GenerateKey(nistCurve(spec), rand.Reader)
	case Ed25519:
		_, key, err = ed25519.GenerateKey(rand.Reader)
	case Secp256k1:
		k, err := secec.GenerateKey()
		if err != nil {
			return nil, err
		}
		return marshalECPrivate(oidSecp256k1, k.Bytes(), k.PublicKey().Bytes()), nil
	case SM2:
		k, err := generateSM2()
		if err != nil {
			return nil, err
		}
		return marshalECPrivate(oidSM2, k.D.FillBytes(make([]byte, 32)), sm2Point(&k.PublicKey)), nil
	case MLDSA44, MLDSA65, MLDSA87:
		var seed [mldsaSeedSize]byte
		Random(seed[:])
		defer arena.Wipe(seed[:])
		return marshalMLDSAPrivate(spec, seed[:]), nil
	default:
		return nil, ErrUnknownSpec
	}
	if err != nil {
		return nil, err
	}
	return x509.MarshalPKCS8PrivateKey(key)
}

// generateSM2 returns an SM2 key whose scalar has no leading zero byte. The
// library hands the scalar around as a big.Int, whose byte form is as long as
// the value: with all keys equally long, that length says nothing.
func generateSM2() (*sm2.PrivateKey, error) {
	for {
		k, err := sm2.GenerateKey(rand.Reader)
		if err != nil || k.D.BitLen() > 248 {
			return k, err
		}
	}
}

// PublicKey computes the DER SubjectPublicKeyInfo that belongs to the material
// of an asymmetric key. It keeps nothing of material.
func PublicKey(spec Spec, material []byte) ([]byte, error) {
	if !spec.Asymmetric() {
		return nil, ErrUnknownSpec
	}
	p, err := parsePrivateKey(spec, material)
	if err != nil {
		return nil, err
	}
	return p.spki()
}

// A parsedKey is a private key that can also print its public half.
type parsedKey interface {
	privateKey
	spki() ([]byte, error)
}

// parsePrivateKey reads the PKCS#8 of a key that must be of the given spec. The
// public half inside, if any, is not believed but computed.
func parsePrivateKey(spec Spec, der []byte) (parsedKey, error) {
	switch spec {
	case Secp256k1:
		return parseSecp256k1(der)
	case SM2:
		return parseSM2(der)
	case MLDSA44, MLDSA65, MLDSA87:
		return parseMLDSA(spec, der)
	case SpecInvalid, SymmetricDefault, HMAC224, HMAC256, HMAC384, HMAC512:
		return nil, ErrUnknownSpec
	}
	key, err := x509.ParsePKCS8PrivateKey(der)
	if err != nil {
		return nil, fmt.Errorf("%w: %v", ErrInvalidMaterial, err)
	}
	switch key := key.(type) {
	case *rsa.PrivateKey:
		if spec.RSA() && key.N.BitLen() == spec.bits() && len(key.Primes) == 2 {
			return &rsaPrivate{key}, nil
		}
	case *ecdsa.PrivateKey:
		if c := nistCurve(spec); c != nil && key.Curve == c {
			return newECDSAPrivate(spec, key)
		}
	case ed25519.PrivateKey:
		if spec == Ed25519 {
			return newEd25519Private(key)
		}
	}
	return nil, fmt.Errorf("%w: not a private key of %v", ErrInvalidMaterial, spec)
}

// parsePublicKey reads the SPKI of a key that must be of the given spec.
func parsePublicKey(spec Spec, der []byte) (publicKey, error) {
	switch spec {
	case Secp256k1:
		return parseSecp256k1Public(der)
	case SM2:
		return parseSM2Public(der)
	case MLDSA44, MLDSA65, MLDSA87:
		return parseMLDSAPublic(spec, der)
	}
	key, err := x509.ParsePKIXPublicKey(der)
	if err != nil {
		return nil, ErrInvalidPublicKey
	}
	switch key := key.(type) {
	case *rsa.PublicKey:
		if spec.RSA() && key.N.BitLen() == spec.bits() {
			return &rsaPublic{key}, nil
		}
	case *ecdsa.PublicKey:
		if c := nistCurve(spec); c != nil && key.Curve == c {
			return newECDSAPublic(key)
		}
	case ed25519.PublicKey:
		if spec == Ed25519 {
			return newEd25519Public(key)
		}
	}
	return nil, ErrInvalidPublicKey
}

func nistCurve(s Spec) elliptic.Curve {
	switch s {
	case P256:
		return elliptic.P256()
	case P384:
		return elliptic.P384()
	case P521:
		return elliptic.P521()
	}
	return nil
}

// What follows writes and reads the encodings that Go's x509 has no word for:
// EC keys on curves it does not know, and ML-DSA.

var (
	oidECPublicKey = asn1.ObjectIdentifier{1, 2, 840, 10045, 2, 1}
	oidSecp256k1   = asn1.ObjectIdentifier{1, 3, 132, 0, 10}
	oidSM2         = asn1.ObjectIdentifier{1, 2, 156, 10197, 1, 301}
)

// addAlgorithm adds an AlgorithmIdentifier; curve is nil for those without
// parameters.
func addAlgorithm(b *cryptobyte.Builder, alg, curve asn1.ObjectIdentifier) {
	b.AddASN1(casn1.SEQUENCE, func(b *cryptobyte.Builder) {
		b.AddASN1ObjectIdentifier(alg)
		if curve != nil {
			b.AddASN1ObjectIdentifier(curve)
		}
	})
}

// marshalSPKI returns a SubjectPublicKeyInfo (RFC 5280).
func marshalSPKI(alg, curve asn1.ObjectIdentifier, key []byte) []byte {
	var b cryptobyte.Builder
	b.AddASN1(casn1.SEQUENCE, func(b *cryptobyte.Builder) {
		addAlgorithm(b, alg, curve)
		b.AddASN1BitString(key)
	})
	return b.BytesOrPanic()
}

// parseSPKI returns the key inside a SubjectPublicKeyInfo of this algorithm and
// curve, which must be DER without anything behind it.
func parseSPKI(der []byte, alg, curve asn1.ObjectIdentifier) ([]byte, error) {
	var spki, key cryptobyte.String
	in := cryptobyte.String(der)
	var unused uint8
	if !in.ReadASN1(&spki, casn1.SEQUENCE) || !in.Empty() ||
		!readAlgorithm(&spki, alg, curve) ||
		!spki.ReadASN1(&key, casn1.BIT_STRING) || !spki.Empty() ||
		!key.ReadUint8(&unused) || unused != 0 {
		return nil, ErrInvalidPublicKey
	}
	return key, nil
}

func readAlgorithm(in *cryptobyte.String, alg, curve asn1.ObjectIdentifier) bool {
	var id cryptobyte.String
	var gotAlg, gotCurve asn1.ObjectIdentifier
	if !in.ReadASN1(&id, casn1.SEQUENCE) || !id.ReadASN1ObjectIdentifier(&gotAlg) || !gotAlg.Equal(alg) {
		return false
	}
	if curve != nil && (!id.ReadASN1ObjectIdentifier(&gotCurve) || !gotCurve.Equal(curve)) {
		return false
	}
	return id.Empty()
}

// marshalPKCS8 returns a PrivateKeyInfo (RFC 5208) around what key adds. The
// builder has one buffer of fixed size, so no partial copies of the key stay
// behind.
func marshalPKCS8(alg, curve asn1.ObjectIdentifier, key func(*cryptobyte.Builder)) []byte {
	b := cryptobyte.NewFixedBuilder(make([]byte, 0, 256))
	b.AddASN1(casn1.SEQUENCE, func(b *cryptobyte.Builder) {
		b.AddASN1Int64(0)
		addAlgorithm(b, alg, curve)
		b.AddASN1(casn1.OCTET_STRING, key)
	})
	return b.BytesOrPanic()
}

// parsePKCS8 returns the private key field of a PrivateKeyInfo. Attributes and
// the public key of RFC 5958 may follow and are ignored.
func parsePKCS8(der []byte, alg, curve asn1.ObjectIdentifier) (cryptobyte.String, error) {
	var info, key cryptobyte.String
	in := cryptobyte.String(der)
	var version int64
	if !in.ReadASN1(&info, casn1.SEQUENCE) || !in.Empty() ||
		!info.ReadASN1Integer(&version) || version < 0 || version > 1 ||
		!readAlgorithm(&info, alg, curve) ||
		!info.ReadASN1(&key, casn1.OCTET_STRING) {
		return nil, ErrInvalidMaterial
	}
	return key, nil
}

// marshalECPrivate wraps an ECPrivateKey (RFC 5915) with its public key, as Go
// and OpenSSL write it, and wipes scalar.
func marshalECPrivate(curve asn1.ObjectIdentifier, scalar, point []byte) []byte {
	defer arena.Wipe(scalar)
	return marshalPKCS8(oidECPublicKey, curve, func(b *cryptobyte.Builder) {
		b.AddASN1(casn1.SEQUENCE, func(b *cryptobyte.Builder) {
			b.AddASN1Int64(1)
			b.AddASN1OctetString(scalar)
			b.AddASN1(casn1.Tag(1).Constructed().ContextSpecific(), func(b *cryptobyte.Builder) {
				b.AddASN1BitString(point)
			})
		})
	})
}

// parseECPrivate returns the scalar, 32 bytes, of a key on curve. Its caller
// wipes it.
func parseECPrivate(der []byte, curve asn1.ObjectIdentifier) ([]byte, error) {
	key, err := parsePKCS8(der, oidECPublicKey, curve)
	if err != nil {
		return nil, err
	}
	var ec, scalar cryptobyte.String
	var version int64
	if !key.ReadASN1(&ec, casn1.SEQUENCE) || !key.Empty() ||
		!ec.ReadASN1Integer(&version) || version != 1 ||
		!ec.ReadASN1(&scalar, casn1.OCTET_STRING) || len(scalar) != 32 {
		return nil, ErrInvalidMaterial
	}
	return slices.Clone(scalar), nil
}
