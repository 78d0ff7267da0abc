//go:build cgo && linux

package engine

import (
	"crypto/ecdsa"
	"crypto/rsa"
	"crypto/sha512"
	"errors"
	"hash"
	"math/big"
	"sync"

	ossl "github.com/golang-fips/openssl/v2"
	"github.com/golang-fips/openssl/v2/bbig"
)

// # OpenSSL
//
// The binding opens libcrypto with dlopen when it is first asked for, so the
// binary neither needs OpenSSL to start nor was built against one.
//
// A key is an EVP_PKEY, made once from the parsed key and immutable from then
// on, so any number of threads may use it; every operation makes and frees an
// EVP_PKEY_CTX of its own. OpenSSL guards what it changes inside a key (RSA
// blinding, cached Montgomery constants) with locks of its own.
//
// The binding frees an EVP_PKEY in a finalizer, and OpenSSL wipes it then.
// Purge drops the handle; the next garbage collection that finds no operation
// under way frees the memory, about 4 kB that the collector does not count.
//
// Lengths, digests and encodings are checked here and in key.go before OpenSSL
// sees them, by the same rules as for Go's implementation. Every failure of a
// decryption is ErrInvalidCiphertext and of a verification
// ErrInvalidSignature; OpenSSL's own words never get out.

// opensslFile is the name of OpenSSL 3's library on every Linux distribution.
const opensslFile = "libcrypto.so.3"

// loadOpenSSL loads libcrypto and says what is wrong with it.
var loadOpenSSL = sync.OnceValue(func() error {
	if exists, _ := ossl.CheckVersion(opensslFile); !exists {
		return errors.New("not on this machine: there is no " + opensslFile)
	}
	if err := ossl.Init(opensslFile); err != nil {
		return err
	}
	return checkOpenSSLVersion(ossl.VersionText())
})

func opensslVersion() string { return ossl.VersionText() }

// oaepHashes are shared: the binding looks only at their type.
var oaepHashes = sync.OnceValue(func() map[Algorithm]hash.Hash {
	return map[Algorithm]hash.Hash{AlgOAEPSHA1: ossl.NewSHA1(), AlgOAEPSHA256: ossl.NewSHA256()}
})

type opensslRSAPrivateKey struct {
	key  *ossl.PrivateKeyRSA
	size int
}

func opensslRSAPrivate(k *rsa.PrivateKey) (privateKey, error) {
	e, pre := bbig.Enc, &k.Precomputed
	key, err := ossl.NewPrivateKeyRSA(e(k.N), e(big.NewInt(int64(k.E))), e(k.D),
		e(k.Primes[0]), e(k.Primes[1]), e(pre.Dp), e(pre.Dq), e(pre.Qinv))
	if err != nil {
		return nil, err
	}
	return &opensslRSAPrivateKey{key, k.Size()}, nil
}

func (p *opensslRSAPrivateKey) private(op *Op) error {
	if op.Verb == Decrypt {
		if len(op.In) != p.size { // as in rsa.go
			return ErrInvalidCiphertext
		}
		h := oaepHashes()[op.Alg]
		out, err := ossl.DecryptRSAOAEP(h, h, p.key, op.In, nil)
		if err != nil {
			return ErrInvalidCiphertext
		}
		op.appendSecret(out)
		return nil
	}
	var sum [sha512.Size]byte
	digest := hashMessage(op, &sum)
	var sig []byte
	var err error
	if h := op.Alg.hash(); op.Alg.pss() {
		sig, err = ossl.SignRSAPSS(p.key, h, digest, h.Size())
	} else {
		sig, err = ossl.SignRSAPKCS1v15(p.key, h, digest)
	}
	op.Out = append(op.Out, sig...)
	return err
}

type opensslRSAPublicKey struct {
	key  *ossl.PublicKeyRSA
	size int
}

func opensslRSAPublic(k *rsa.PublicKey) (publicKey, error) {
	key, err := ossl.NewPublicKeyRSA(bbig.Enc(k.N), bbig.Enc(big.NewInt(int64(k.E))))
	if err != nil {
		return nil, ErrInvalidPublicKey
	}
	return &opensslRSAPublicKey{key, k.Size()}, nil
}

func (p *opensslRSAPublicKey) public(op *Op) error {
	if op.Verb == Encrypt {
		h := oaepHashes()[op.Alg]
		out, err := ossl.EncryptRSAOAEP(h, h, p.key, op.In, nil)
		op.Out = append(op.Out, out...)
		return err
	}
	if len(op.Sig) != p.size { // as in rsa.go
		return ErrInvalidSignature
	}
	var sum [sha512.Size]byte
	digest := hashMessage(op, &sum)
	if h := op.Alg.hash(); op.Alg.pss() {
		return verdict(ossl.VerifyRSAPSS(p.key, h, digest, op.Sig, h.Size()) == nil)
	}
	return verdict(ossl.VerifyRSAPKCS1v15(p.key, op.Alg.hash(), digest, op.Sig) == nil)
}

type opensslECDSAPrivateKey struct{ key *ossl.PrivateKeyECDSA }

func opensslECDSAPrivate(p *ecdsaPrivate) (privateKey, error) {
	x, y, err := coordinates(&p.key.PublicKey)
	if err != nil {
		return nil, err
	}
	scalar, err := p.key.Bytes()
	if err != nil {
		return nil, ErrInvalidMaterial
	}
	d := new(big.Int).SetBytes(scalar)
	clear(scalar)
	defer clear(d.Bits())
	key, err := ossl.NewPrivateKeyECDSA(p.key.Params().Name, bbig.Enc(x), bbig.Enc(y), bbig.Enc(d))
	if err != nil {
		return nil, err
	}
	return &opensslECDSAPrivateKey{key}, nil
}

func (p *opensslECDSAPrivateKey) private(op *Op) error {
	// Hedged: OpenSSL hashes key, digest and randomness into the nonce.
	var sum [sha512.Size]byte
	sig, err := ossl.SignMarshalECDSA(p.key, hashMessage(op, &sum))
	op.Out = append(op.Out, sig...)
	return err
}

type opensslECDSAPublicKey struct{ key *ossl.PublicKeyECDSA }

func opensslECDSAPublic(k *ecdsa.PublicKey) (publicKey, error) {
	x, y, err := coordinates(k)
	if err != nil {
		return nil, err
	}
	key, err := ossl.NewPublicKeyECDSA(k.Params().Name, bbig.Enc(x), bbig.Enc(y))
	if err != nil {
		return nil, ErrInvalidPublicKey
	}
	return &opensslECDSAPublicKey{key}, nil
}

func (p *opensslECDSAPublicKey) public(op *Op) error {
	var sum [sha512.Size]byte
	return verdict(ossl.VerifyECDSA(p.key, hashMessage(op, &sum), op.Sig))
}

// coordinates returns the coordinates of a point on its curve.
func coordinates(k *ecdsa.PublicKey) (x, y *big.Int, err error) {
	point, err := k.Bytes()
	if err != nil {
		return nil, nil, ErrInvalidPublicKey
	}
	half := len(point) / 2
	return new(big.Int).SetBytes(point[1 : 1+half]), new(big.Int).SetBytes(point[1+half:]), nil
}

type opensslECDHPrivateKey struct {
	spec  Spec
	curve string
	key   *ossl.PrivateKeyECDH
}

func opensslECDHPrivate(p *ecdsaPrivate) (privateKey, error) {
	scalar := p.agree.Bytes()
	defer clear(scalar)
	curve := p.key.Params().Name
	key, err := ossl.NewPrivateKeyECDH(curve, scalar)
	if err != nil {
		return nil, err
	}
	return &opensslECDHPrivateKey{p.spec, curve, key}, nil
}

func (p *opensslECDHPrivateKey) private(op *Op) error {
	peer, err := parsePeer(p.spec, op.In)
	if err != nil {
		return err
	}
	theirs, err := ossl.NewPublicKeyECDH(p.curve, peer.Bytes())
	if err != nil {
		return ErrInvalidPublicKey
	}
	secret, err := ossl.ECDH(p.key, theirs)
	if err != nil {
		return ErrInvalidPublicKey
	}
	op.appendSecret(secret)
	return nil
}
