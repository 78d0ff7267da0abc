package engine

import (
	"crypto"
	"crypto/ecdh"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/rand"
	"crypto/sha512"
	"crypto/x509"
	"slices"

	voied "github.com/oasisprotocol/curve25519-voi/primitives/ed25519"
	"gitlab.com/yawning/secp256k1-voi/secec"

	"keymill/hsm/arena"
)

// appendSecret moves a secret result to Out and wipes where it came from.
func (op *Op) appendSecret(secret []byte) {
	op.Out = append(op.Out, secret...)
	arena.Wipe(secret)
}

// ecdsaPrivate is a key on one of the NIST curves, for signing or agreement.
type ecdsaPrivate struct {
	spec  Spec
	key   *ecdsa.PrivateKey
	agree *ecdh.PrivateKey
}

func newECDSAPrivate(spec Spec, key *ecdsa.PrivateKey) (*ecdsaPrivate, error) {
	agree, err := key.ECDH()
	if err != nil {
		return nil, ErrInvalidMaterial
	}
	return &ecdsaPrivate{spec, key, agree}, nil
}

func (p *ecdsaPrivate) spki() ([]byte, error) { return x509.MarshalPKIXPublicKey(&p.key.PublicKey) }

func (p *ecdsaPrivate) private(op *Op) error {
	if op.Verb == DeriveSecret {
		peer, err := parsePeer(p.spec, op.In)
		if err != nil {
			return err
		}
		secret, err := p.agree.ECDH(peer)
		if err != nil {
			return ErrInvalidPublicKey
		}
		op.appendSecret(secret)
		return nil
	}
	// Hedged: the nonce comes from the key, the digest and fresh randomness.
	var sum [sha512.Size]byte
	sig, err := ecdsa.SignASN1(rand.Reader, p.key, hashMessage(op, &sum))
	op.Out = append(op.Out, sig...)
	return err
}

// parsePeer reads the public key of the other side, which must be a point on
// the curve of spec.
func parsePeer(spec Spec, der []byte) (*ecdh.PublicKey, error) {
	key, err := x509.ParsePKIXPublicKey(der)
	if err != nil {
		return nil, ErrInvalidPublicKey
	}
	ec, ok := key.(*ecdsa.PublicKey)
	if !ok || ec.Curve != nistCurve(spec) {
		return nil, ErrInvalidPublicKey
	}
	peer, err := ec.ECDH()
	if err != nil {
		return nil, ErrInvalidPublicKey
	}
	return peer, nil
}

type ecdsaPublic struct{ key *ecdsa.PublicKey }

func newECDSAPublic(key *ecdsa.PublicKey) (publicKey, error) {
	if _, err := key.ECDH(); err != nil {
		return nil, ErrInvalidPublicKey
	}
	return &ecdsaPublic{key}, nil
}

func (p *ecdsaPublic) public(op *Op) error {
	var sum [sha512.Size]byte
	return verdict(ecdsa.VerifyASN1(p.key, hashMessage(op, &sum), op.Sig))
}

type secp256k1Private struct{ key *secec.PrivateKey }

// secp256k1Options asks for DER and takes signatures with either s.
var secp256k1Options = secec.ECDSAOptions{Encoding: secec.EncodingASN1}

func parseSecp256k1(der []byte) (parsedKey, error) {
	scalar, err := parseECPrivate(der, oidSecp256k1)
	if err != nil {
		return nil, err
	}
	defer arena.Wipe(scalar)
	key, err := secec.NewPrivateKey(scalar)
	if err != nil {
		return nil, ErrInvalidMaterial
	}
	return &secp256k1Private{key}, nil
}

func (p *secp256k1Private) spki() ([]byte, error) {
	return marshalSPKI(oidECPublicKey, oidSecp256k1, p.key.PublicKey().Bytes()), nil
}

func (p *secp256k1Private) private(op *Op) error {
	// Hedged, and s is always the smaller of the two.
	var sum [sha512.Size]byte
	sig, err := p.key.Sign(rand.Reader, hashMessage(op, &sum), &secp256k1Options)
	op.Out = append(op.Out, sig...)
	return err
}

type secp256k1Public struct{ key *secec.PublicKey }

func parseSecp256k1Public(der []byte) (publicKey, error) {
	point, err := parseSPKI(der, oidECPublicKey, oidSecp256k1)
	if err != nil || len(point) != 65 {
		return nil, ErrInvalidPublicKey
	}
	key, err := secec.NewPublicKey(point)
	if err != nil {
		return nil, ErrInvalidPublicKey
	}
	return &secp256k1Public{key}, nil
}

func (p *secp256k1Public) public(op *Op) error {
	var sum [sha512.Size]byte
	return verdict(p.key.Verify(hashMessage(op, &sum), op.Sig, &secp256k1Options))
}

// Ed25519 by curve25519-voi. Its verification follows FIPS 186-5 to the letter:
// the equation is multiplied by the cofactor, R and A must be canonical. Unlike
// the equation without the cofactor, which Go's package checks, that one can
// also be checked for many signatures at once with the same verdict for each.
// The two differ only on signatures that the owner of a key made on purpose to
// tell them apart.
var (
	edPure = voied.Options{Verify: voied.VerifyOptionsFIPS_186_5}
	edPh   = voied.Options{Verify: voied.VerifyOptionsFIPS_186_5, Hash: crypto.SHA512}
)

type ed25519Private struct{ key voied.PrivateKey }

func newEd25519Private(key ed25519.PrivateKey) (parsedKey, error) {
	return &ed25519Private{voied.PrivateKey(slices.Clone(key))}, nil
}

func (p *ed25519Private) spki() ([]byte, error) {
	return x509.MarshalPKIXPublicKey(ed25519.PrivateKey(p.key).Public())
}

func (p *ed25519Private) private(op *Op) error {
	if op.Alg == AlgEd25519 {
		op.Out = append(op.Out, voied.Sign(p.key, op.In)...)
		return nil
	}
	// Ed25519ph hashes what it is given, also when that is a hash already.
	sum := sha512.Sum512(op.In)
	sig, err := p.key.Sign(nil, sum[:], &edPh)
	op.Out = append(op.Out, sig...)
	return err
}

// ed25519StdPrivate signs with Go's package. The signatures are the same.
type ed25519StdPrivate struct{ key ed25519.PrivateKey }

func (p *ed25519StdPrivate) private(op *Op) error {
	if op.Alg == AlgEd25519 {
		op.Out = append(op.Out, ed25519.Sign(p.key, op.In)...)
		return nil
	}
	sum := sha512.Sum512(op.In)
	sig, err := p.key.Sign(nil, sum[:], crypto.SHA512)
	op.Out = append(op.Out, sig...)
	return err
}

// ed25519Public keeps the public key with a table of its multiples.
type ed25519Public struct {
	bytes []byte
	key   *voied.ExpandedPublicKey
	batch *edBatchKey
}

func newEd25519Public(key ed25519.PublicKey) (publicKey, error) {
	expanded, err := voied.NewExpandedPublicKey(voied.PublicKey(key))
	if err != nil {
		return nil, ErrInvalidPublicKey
	}
	own := slices.Clone(key)
	return &ed25519Public{own, expanded, newEdBatchKey(own)}, nil
}

func (p *ed25519Public) public(op *Op) error {
	if op.Alg == AlgEd25519 {
		return verdict(voied.VerifyExpandedWithOptions(p.key, op.In, op.Sig, &edPure))
	}
	sum := sha512.Sum512(op.In)
	return verdict(voied.VerifyExpandedWithOptions(p.key, sum[:], op.Sig, &edPh))
}
