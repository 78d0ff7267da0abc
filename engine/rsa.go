package engine

import (
	"crypto/rand"
	"crypto/rsa"
	_ "crypto/sha1" // OAEP with SHA-1 only
	_ "crypto/sha256"
	"crypto/sha512"
	"crypto/x509"
)

// hashMessage returns the digest that a RAW or DIGEST message stands for, in
// sum. The length of a given digest has been checked.
func hashMessage(op *Op, sum *[sha512.Size]byte) []byte {
	if op.Type == Digest {
		return op.In
	}
	h := op.Alg.hash().New()
	h.Write(op.In)
	return h.Sum(sum[:0])
}

// verdict is the answer of a verification.
func verdict(ok bool) error {
	if !ok {
		return ErrInvalidSignature
	}
	return nil
}

type rsaPrivate struct{ key *rsa.PrivateKey }

func (p *rsaPrivate) spki() ([]byte, error) { return x509.MarshalPKIXPublicKey(&p.key.PublicKey) }

func (p *rsaPrivate) private(op *Op) error {
	if op.Verb == Decrypt {
		// RFC 8017 section 7.1.2, step 1b: the length is exactly the modulus's.
		// crypto/rsa takes shorter ones for numbers with leading zeros.
		if len(op.In) != p.key.Size() {
			return ErrInvalidCiphertext
		}
		out, err := rsa.DecryptOAEP(op.Alg.hash().New(), nil, p.key, op.In, nil)
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
	if op.Alg.pss() {
		sig, err = rsa.SignPSS(rand.Reader, p.key, op.Alg.hash(), digest, &pssOptions)
	} else {
		sig, err = rsa.SignPKCS1v15(nil, p.key, op.Alg.hash(), digest)
	}
	op.Out = append(op.Out, sig...)
	return err
}

type rsaPublic struct{ key *rsa.PublicKey }

func (p *rsaPublic) public(op *Op) error {
	if op.Verb == Encrypt {
		out, err := rsa.EncryptOAEP(op.Alg.hash().New(), rand.Reader, p.key, op.In, nil)
		op.Out = append(op.Out, out...)
		return err
	}
	if len(op.Sig) != p.key.Size() { // sections 8.1.2 and 8.2.2, step 1
		return ErrInvalidSignature
	}
	var sum [sha512.Size]byte
	digest := hashMessage(op, &sum)
	if op.Alg.pss() {
		return verdict(rsa.VerifyPSS(p.key, op.Alg.hash(), digest, op.Sig, &pssOptions) == nil)
	}
	return verdict(rsa.VerifyPKCS1v15(p.key, op.Alg.hash(), digest, op.Sig) == nil)
}

// pssOptions asks for a salt as long as the hash, and accepts no other.
var pssOptions = rsa.PSSOptions{SaltLength: rsa.PSSSaltLengthEqualsHash}

func (a Algorithm) pss() bool { return a >= AlgPSSSHA256 && a <= AlgPSSSHA512 }
