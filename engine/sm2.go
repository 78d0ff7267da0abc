package engine

//lint:file-ignore SA1019 the SM2 library takes its keys as ecdsa structs with big.Int fields

import (
	"crypto/ecdsa"
	"crypto/rand"
	"math/big"

	sm2ecdh "github.com/emmansun/gmsm/ecdh"
	"github.com/emmansun/gmsm/sm2"

	"keymill/hsm/arena"
)

// sm2Private is an SM2 key, for encryption, signing or agreement.
type sm2Private struct {
	key   *sm2.PrivateKey
	agree *sm2ecdh.PrivateKey
}

// sm2Raw has the library compute ZA with the default identity and hash it with
// the message; without it, the message is taken as that hash.
var sm2Raw = sm2.NewSM2SignerOption(true, nil)

func parseSM2(der []byte) (parsedKey, error) {
	scalar, err := parseECPrivate(der, oidSM2)
	if err != nil {
		return nil, err
	}
	defer arena.Wipe(scalar)
	agree, err := sm2ecdh.P256().NewPrivateKey(scalar)
	if err != nil {
		return nil, ErrInvalidMaterial
	}
	pub, err := sm2Key(agree.PublicKey().Bytes())
	if err != nil {
		return nil, ErrInvalidMaterial
	}
	key := &sm2.PrivateKey{PrivateKey: ecdsa.PrivateKey{PublicKey: *pub, D: new(big.Int).SetBytes(scalar)}}
	return &sm2Private{key, agree}, nil
}

// sm2Key reads an uncompressed point, which must be on the curve.
func sm2Key(point []byte) (*ecdsa.PublicKey, error) {
	if _, err := sm2ecdh.P256().NewPublicKey(point); err != nil {
		return nil, ErrInvalidPublicKey
	}
	return &ecdsa.PublicKey{
		Curve: sm2.P256(),
		X:     new(big.Int).SetBytes(point[1:33]),
		Y:     new(big.Int).SetBytes(point[33:]),
	}, nil
}

// sm2Point is the uncompressed form of a public key.
func sm2Point(k *ecdsa.PublicKey) []byte {
	b := make([]byte, 65)
	b[0] = 4
	k.X.FillBytes(b[1:33])
	k.Y.FillBytes(b[33:])
	return b
}

func (p *sm2Private) spki() ([]byte, error) {
	return marshalSPKI(oidECPublicKey, oidSM2, sm2Point(&p.key.PublicKey)), nil
}

func (p *sm2Private) private(op *Op) error {
	switch op.Verb {
	case Decrypt:
		out, err := p.key.Decrypt(nil, op.In, sm2.ASN1DecrypterOpts)
		if err != nil {
			return ErrInvalidCiphertext
		}
		op.appendSecret(out)
		return nil
	case DeriveSecret:
		point, err := parseSPKI(op.In, oidECPublicKey, oidSM2)
		if err != nil {
			return err
		}
		peer, err := sm2ecdh.P256().NewPublicKey(point)
		if err != nil {
			return ErrInvalidPublicKey
		}
		secret, err := p.agree.ECDH(peer)
		if err != nil {
			return ErrInvalidPublicKey
		}
		op.appendSecret(secret)
		return nil
	}
	var sig []byte
	var err error
	if op.Type == Digest {
		sig, err = p.key.Sign(rand.Reader, op.In, nil)
	} else {
		sig, err = p.key.Sign(rand.Reader, op.In, sm2Raw)
	}
	op.Out = append(op.Out, sig...)
	return err
}

type sm2Public struct{ key *ecdsa.PublicKey }

func parseSM2Public(der []byte) (publicKey, error) {
	point, err := parseSPKI(der, oidECPublicKey, oidSM2)
	if err != nil {
		return nil, err
	}
	key, err := sm2Key(point)
	if err != nil {
		return nil, err
	}
	return &sm2Public{key}, nil
}

func (p *sm2Public) public(op *Op) error {
	if op.Verb == Encrypt {
		out, err := sm2.EncryptASN1(rand.Reader, p.key, op.In)
		op.Out = append(op.Out, out...)
		return err
	}
	if op.Type == Digest {
		return verdict(sm2.VerifyASN1(p.key, op.In, op.Sig))
	}
	return verdict(sm2.VerifyASN1WithSM2(p.key, nil, op.In, op.Sig))
}
