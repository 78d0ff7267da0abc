package e2e

import (
	"bytes"
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/rsa"
	_ "crypto/sha1"
	"crypto/sha256"
	"crypto/sha3"
	"crypto/sha512"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/asn1"
	"errors"
	"fmt"
	"strings"
	"testing"

	"filippo.io/mldsa"
	"github.com/aws/aws-sdk-go-v2/service/kms/types"
	"github.com/decred/dcrd/dcrec/secp256k1/v4"
	secpecdsa "github.com/decred/dcrd/dcrec/secp256k1/v4/ecdsa"
	"github.com/emmansun/gmsm/sm2"
	"github.com/emmansun/gmsm/sm3"
	"github.com/emmansun/gmsm/smx509"
)

// What a holder of nothing but the public key does, with implementations that
// are not the daemon's own code path.

// verifyOutside checks a signature that Sign made over message as RAW.
func verifyOutside(spki []byte, spec types.KeySpec, alg types.SigningAlgorithmSpec, message, sig []byte) error {
	switch spec {
	case types.KeySpecEccSecgP256k1:
		key, err := secp256k1.ParsePubKey(subjectKey(spki))
		if err != nil {
			return err
		}
		s, err := secpecdsa.ParseDERSignature(sig)
		if err != nil {
			return err
		}
		if digest := sha256.Sum256(message); !s.Verify(digest[:], key) {
			return errors.New("the signature is wrong")
		}
		return nil
	case types.KeySpecMlDsa44, types.KeySpecMlDsa65, types.KeySpecMlDsa87:
		params := map[types.KeySpec]mldsa.Parameters{
			types.KeySpecMlDsa44: mldsa.MLDSA44(), types.KeySpecMlDsa65: mldsa.MLDSA65(), types.KeySpecMlDsa87: mldsa.MLDSA87(),
		}[spec]
		key, err := mldsa.NewPublicKey(params, subjectKey(spki))
		if err != nil {
			return err
		}
		return mldsa.Verify(key, message, sig, nil)
	case types.KeySpecSm2:
		key, err := smx509.ParsePKIXPublicKey(spki)
		if err != nil {
			return err
		}
		if !sm2.VerifyASN1WithSM2(key.(*ecdsa.PublicKey), nil, message, sig) {
			return errors.New("the signature is wrong")
		}
		return nil
	}

	key, err := x509.ParsePKIXPublicKey(spki)
	if err != nil {
		return err
	}
	switch key := key.(type) {
	case ed25519.PublicKey:
		if alg == types.SigningAlgorithmSpecEd25519PhSha512 {
			digest := sha512.Sum512(message)
			return ed25519.VerifyWithOptions(key, digest[:], sig, &ed25519.Options{Hash: crypto.SHA512})
		}
		return ed25519.VerifyWithOptions(key, message, sig, &ed25519.Options{})
	case *ecdsa.PublicKey:
		if !ecdsa.VerifyASN1(key, digestFor(alg, message), sig) {
			return errors.New("the signature is wrong")
		}
		return nil
	case *rsa.PublicKey:
		digest, hash := digestFor(alg, message), hashOf(alg)
		if strings.HasPrefix(string(alg), "RSASSA_PSS") {
			return rsa.VerifyPSS(key, hash, digest, sig, &rsa.PSSOptions{SaltLength: rsa.PSSSaltLengthEqualsHash})
		}
		return rsa.VerifyPKCS1v15(key, hash, digest, sig)
	}
	return fmt.Errorf("a public key of type %T", key)
}

// hashOf is the hash that an RSA or ECDSA algorithm is named after.
func hashOf(alg types.SigningAlgorithmSpec) crypto.Hash {
	switch {
	case strings.HasSuffix(string(alg), "SHA_256"):
		return crypto.SHA256
	case strings.HasSuffix(string(alg), "SHA_384"):
		return crypto.SHA384
	}
	return crypto.SHA512
}

// digestFor hashes message as a caller of MessageType DIGEST does.
func digestFor(alg types.SigningAlgorithmSpec, message []byte) []byte {
	h := hashOf(alg).New()
	h.Write(message)
	return h.Sum(nil)
}

// externalMu computes what a caller of MessageType EXTERNAL_MU sends (FIPS 204,
// algorithm 7 with an empty context).
func externalMu(spki, message []byte) []byte {
	tr := sha3.SumSHAKE256(subjectKey(spki), 64)
	return sha3.SumSHAKE256(append(append(tr, 0, 0), message...), 64)
}

// subjectKey returns the bit string of a SubjectPublicKeyInfo.
func subjectKey(spki []byte) []byte {
	var info struct {
		Algorithm pkix.AlgorithmIdentifier
		Key       asn1.BitString
	}
	if rest, err := asn1.Unmarshal(spki, &info); err != nil || len(rest) > 0 {
		return nil
	}
	return info.Key.Bytes
}

// sm2Digest computes what a caller of SM2DSA with MessageType DIGEST sends: SM3
// over Z, which binds the default identity, and the message.
func sm2Digest(t testing.TB, spki, message []byte) []byte {
	t.Helper()
	key := must(smx509.ParsePKIXPublicKey(spki))(t).(*ecdsa.PublicKey)
	z := must(sm2.CalculateZA(key, []byte("1234567812345678")))(t)
	digest := sm3.Sum(append(z, message...))
	return digest[:]
}

// matchingSecp256k1 is matching for the one curve that no X.509 library here
// reads: a PKCS #8 wrapper around an ECPrivateKey (RFC 5915).
func matchingSecp256k1(private, public []byte) error {
	var outer struct {
		Version    int
		Algorithm  pkix.AlgorithmIdentifier
		PrivateKey []byte
	}
	if _, err := asn1.Unmarshal(private, &outer); err != nil {
		return err
	}
	var curve asn1.ObjectIdentifier
	if _, err := asn1.Unmarshal(outer.Algorithm.Parameters.FullBytes, &curve); err != nil || curve.String() != "1.3.132.0.10" {
		return fmt.Errorf("the curve is %v (%w)", curve, err)
	}
	var inner struct {
		Version    int
		PrivateKey []byte
		Curve      asn1.ObjectIdentifier `asn1:"optional,explicit,tag:0"`
		PublicKey  asn1.BitString        `asn1:"optional,explicit,tag:1"`
	}
	if _, err := asn1.Unmarshal(outer.PrivateKey, &inner); err != nil {
		return err
	}
	key := secp256k1.PrivKeyFromBytes(inner.PrivateKey)
	if !bytes.Equal(key.PubKey().SerializeUncompressed(), subjectKey(public)) {
		return errors.New("the private key belongs to another public key")
	}
	return nil
}
