package engine

import (
	"crypto"
	"encoding/asn1"
	"sync"

	"filippo.io/mldsa"
	"filippo.io/mldsa/mldsacrypto"
	"github.com/cloudflare/circl/sign/mldsa/mldsa44"
	"github.com/cloudflare/circl/sign/mldsa/mldsa65"
	"github.com/cloudflare/circl/sign/mldsa/mldsa87"
	"golang.org/x/crypto/cryptobyte"
	casn1 "golang.org/x/crypto/cryptobyte/asn1"
)

const (
	mldsaSeedSize = 32
	muSize        = 64
)

// mldsaOID is the algorithm of RFC 9881, which has no parameters.
func mldsaOID(spec Spec) asn1.ObjectIdentifier {
	return asn1.ObjectIdentifier{2, 16, 840, 1, 101, 3, 4, 3, 17 + int(spec-MLDSA44)}
}

// seedTag is the implicit tag of the seed form of RFC 9881, section 6.
var seedTag = casn1.Tag(0).ContextSpecific()

func marshalMLDSAPrivate(spec Spec, seed []byte) []byte {
	return marshalPKCS8(mldsaOID(spec), nil, func(b *cryptobyte.Builder) {
		b.AddASN1(seedTag, func(b *cryptobyte.Builder) { b.AddBytes(seed) })
	})
}

// mldsaPrivate signs messages with CIRCL, and mu, which CIRCL has no way in
// for, with the extract of Go's own crypto/mldsa. Both are hedged and both
// expand one seed; the second is expanded when first asked for.
type mldsaPrivate struct {
	spec    Spec
	signRaw func(msg, sig []byte) error
	public  []byte
	raw, mu Provider
	muKey   func() (*mldsa.PrivateKey, error)
}

func parseMLDSA(spec Spec, der []byte) (parsedKey, error) {
	key, err := parsePKCS8(der, mldsaOID(spec), nil)
	if err != nil {
		return nil, err
	}
	var inner cryptobyte.String
	if !key.ReadASN1(&inner, seedTag) || !key.Empty() || len(inner) != mldsaSeedSize {
		return nil, ErrInvalidMaterial
	}
	seed := new([mldsaSeedSize]byte)
	copy(seed[:], inner)
	p := &mldsaPrivate{spec: spec, raw: CIRCL, mu: GoMLDSA}
	p.muKey = sync.OnceValues(func() (*mldsa.PrivateKey, error) {
		return mldsa.NewPrivateKey(mldsaParams(spec), seed[:])
	})
	switch spec {
	case MLDSA44:
		pk, sk := mldsa44.NewKeyFromSeed(seed)
		p.public = pk.Bytes()
		p.signRaw = func(msg, sig []byte) error { return mldsa44.SignTo(sk, msg, nil, true, sig) }
	case MLDSA65:
		pk, sk := mldsa65.NewKeyFromSeed(seed)
		p.public = pk.Bytes()
		p.signRaw = func(msg, sig []byte) error { return mldsa65.SignTo(sk, msg, nil, true, sig) }
	default:
		pk, sk := mldsa87.NewKeyFromSeed(seed)
		p.public = pk.Bytes()
		p.signRaw = func(msg, sig []byte) error { return mldsa87.SignTo(sk, msg, nil, true, sig) }
	}
	return p, nil
}

func mldsaParams(spec Spec) mldsa.Parameters {
	switch spec {
	case MLDSA44:
		return mldsa.MLDSA44()
	case MLDSA65:
		return mldsa.MLDSA65()
	}
	return mldsa.MLDSA87()
}

func (p *mldsaPrivate) spki() ([]byte, error) {
	return marshalSPKI(mldsaOID(p.spec), nil, p.public), nil
}

func (p *mldsaPrivate) private(op *Op) error {
	if op.Type == ExternalMu {
		if p.mu != GoMLDSA {
			return ErrNoProvider
		}
		return p.signGo(op, mldsacrypto.MLDSAMu)
	}
	switch p.raw {
	case NoProvider:
		return ErrNoProvider
	case GoMLDSA:
		return p.signGo(op, nil)
	}
	sig := make([]byte, mldsaParams(p.spec).SignatureSize())
	if err := p.signRaw(op.In, sig); err != nil {
		return err
	}
	op.Out = append(op.Out, sig...)
	return nil
}

// signGo signs with filippo.io/mldsa.
func (p *mldsaPrivate) signGo(op *Op, opts crypto.SignerOpts) error {
	key, err := p.muKey()
	if err != nil {
		return err
	}
	sig, err := key.Sign(nil, op.In, opts)
	op.Out = append(op.Out, sig...)
	return err
}

type mldsaPublic struct {
	spec      Spec
	raw, mu   Provider
	goKey     func() (*mldsa.PublicKey, error)
	encoded   []byte
	verifyRaw func(msg, sig []byte) bool
}

func parseMLDSAPublic(spec Spec, der []byte) (publicKey, error) {
	key, err := parseSPKI(der, mldsaOID(spec), nil)
	if err != nil || len(key) != mldsaParams(spec).PublicKeySize() {
		return nil, ErrInvalidPublicKey
	}
	p := &mldsaPublic{spec: spec, encoded: key, raw: CIRCL, mu: Own}
	p.goKey = sync.OnceValues(func() (*mldsa.PublicKey, error) { return mldsa.NewPublicKey(mldsaParams(spec), key) })
	switch spec {
	case MLDSA44:
		var pk mldsa44.PublicKey
		err = pk.UnmarshalBinary(key)
		p.verifyRaw = func(msg, sig []byte) bool { return mldsa44.Verify(&pk, msg, nil, sig) }
	case MLDSA65:
		var pk mldsa65.PublicKey
		err = pk.UnmarshalBinary(key)
		p.verifyRaw = func(msg, sig []byte) bool { return mldsa65.Verify(&pk, msg, nil, sig) }
	default:
		var pk mldsa87.PublicKey
		err = pk.UnmarshalBinary(key)
		p.verifyRaw = func(msg, sig []byte) bool { return mldsa87.Verify(&pk, msg, nil, sig) }
	}
	if err != nil {
		return nil, ErrInvalidPublicKey
	}
	return p, nil
}

func (p *mldsaPublic) public(op *Op) error {
	if op.Type == ExternalMu {
		if p.mu != Own {
			return ErrNoProvider
		}
		return verdict(verifyMu(p.spec, p.encoded, [muSize]byte(op.In), op.Sig))
	}
	switch p.raw {
	case NoProvider:
		return ErrNoProvider
	case GoMLDSA:
		key, err := p.goKey()
		if err != nil {
			return ErrInvalidPublicKey
		}
		return verdict(mldsa.Verify(key, op.In, op.Sig, nil) == nil)
	}
	return verdict(p.verifyRaw(op.In, op.Sig))
}
