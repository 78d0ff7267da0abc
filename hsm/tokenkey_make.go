//go:build cgo

package hsm

import (
	"bytes"
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"encoding/asn1"
	"errors"
	"fmt"
	"math/big"
	"strings"

	"github.com/miekg/pkcs11"
)

// A keyKind is what a token needs for keys of a kind.
type keyKind struct {
	generate uint   // mechanism
	use      []uint // mechanisms
	flag     uint   // what they must be able to do
	keyType  uint
	bits     int                   // RSA: of the modulus; HMAC: of the key; curves: of the field
	oid      asn1.ObjectIdentifier // of the curve
	curve    elliptic.Curve
}

func hmacKind(mechanism uint, bits int) keyKind {
	return keyKind{generate: pkcs11.CKM_GENERIC_SECRET_KEY_GEN, use: []uint{mechanism}, flag: pkcs11.CKF_SIGN, keyType: pkcs11.CKK_GENERIC_SECRET, bits: bits}
}

func curveKind(curve elliptic.Curve, oid ...int) keyKind {
	return keyKind{generate: pkcs11.CKM_EC_KEY_PAIR_GEN, use: []uint{pkcs11.CKM_ECDSA}, flag: pkcs11.CKF_SIGN, keyType: pkcs11.CKK_EC,
		bits: curve.Params().BitSize, oid: oid, curve: curve}
}

func rsaSignKind(bits int) keyKind {
	return keyKind{generate: pkcs11.CKM_RSA_PKCS_KEY_PAIR_GEN, use: []uint{pkcs11.CKM_RSA_PKCS, pkcs11.CKM_RSA_PKCS_PSS}, flag: pkcs11.CKF_SIGN,
		keyType: pkcs11.CKK_RSA, bits: bits}
}

func rsaDecryptKind(bits int) keyKind {
	return keyKind{generate: pkcs11.CKM_RSA_PKCS_KEY_PAIR_GEN, use: []uint{pkcs11.CKM_RSA_PKCS_OAEP}, flag: pkcs11.CKF_DECRYPT,
		keyType: pkcs11.CKK_RSA, bits: bits}
}

var keyKinds = [numTokenKeySpecs]keyKind{
	TokenAES256:         {generate: pkcs11.CKM_AES_KEY_GEN, use: []uint{pkcs11.CKM_AES_GCM}, flag: pkcs11.CKF_ENCRYPT, keyType: pkcs11.CKK_AES, bits: 256},
	TokenHMAC224:        hmacKind(pkcs11.CKM_SHA224_HMAC, 224),
	TokenHMAC256:        hmacKind(pkcs11.CKM_SHA256_HMAC, 256),
	TokenHMAC384:        hmacKind(pkcs11.CKM_SHA384_HMAC, 384),
	TokenHMAC512:        hmacKind(pkcs11.CKM_SHA512_HMAC, 512),
	TokenP256:           curveKind(elliptic.P256(), 1, 2, 840, 10045, 3, 1, 7),
	TokenP384:           curveKind(elliptic.P384(), 1, 3, 132, 0, 34),
	TokenP521:           curveKind(elliptic.P521(), 1, 3, 132, 0, 35),
	TokenRSA2048Sign:    rsaSignKind(2048),
	TokenRSA3072Sign:    rsaSignKind(3072),
	TokenRSA4096Sign:    rsaSignKind(4096),
	TokenRSA2048Decrypt: rsaDecryptKind(2048),
	TokenRSA3072Decrypt: rsaDecryptKind(3072),
	TokenRSA4096Decrypt: rsaDecryptKind(4096),
}

// tokenKeyMechanisms are all of them, for the question what a token offers.
var tokenKeyMechanisms = func() (all []uint) {
	for _, k := range keyKinds[1:] {
		all = append(append(all, k.generate), k.use...)
	}
	return all
}()

// holds returns the kinds of keys for which the token says it has everything. That AES-GCM
// does what it should, the self test has found out; for the others a new key is tried.
func (s *session) holds(slot uint, d discovery) (all []TokenKeySpec, err error) {
	offers, err := s.offers(slot)
	if err != nil {
		return nil, err
	}
	for spec := TokenAES256; spec < numTokenKeySpecs; spec++ {
		k := &keyKinds[spec]
		gen, ok := offers[k.generate]
		for _, m := range k.use {
			info, have := offers[m]
			ok = ok && have && info.Flags&k.flag != 0
		}
		if spec.Pair() { // others count in bits or in bytes
			ok = ok && uint(k.bits) >= gen.MinKeySize && (gen.MaxKeySize == 0 || uint(k.bits) <= gen.MaxKeySize)
		}
		if ok && (spec != TokenAES256 || d.ok && d.method.scheme == schemeGCM && d.aad) {
			all = append(all, spec)
		}
	}
	if len(all) == 0 {
		return nil, fmt.Errorf("%w: %s can hold no keys for this program: it needs CKM_AES_KEY_GEN and CKM_AES_GCM with associated data", ErrMechanism, s.t.cfg.tokenName())
	}
	return all, nil
}

// GenerateKey implements TokenKeys.
func (r *pkcs11Root) GenerateKey(ctx context.Context, id TokenKeyID, spec TokenKeySpec, label string) ([]byte, error) {
	if !r.about.Holds(spec) {
		return nil, fmt.Errorf("%w: %s cannot hold a key of kind %s", ErrMechanism, r.cfg.tokenName(), spec)
	}
	if len(label) > maxTokenLabel {
		return nil, fmt.Errorf("%w: a label of %d bytes (at most %d)", ErrTokenInput, len(label), maxTokenLabel)
	}
	var public []byte
	again := false
	err := r.once(ctx, func(s *session) (err error) {
		public, err = s.makeKey(id, spec, label, again)
		again = true
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("couldn't generate a key in the token: %w", err)
	}
	return public, nil
}

// makeKey generates a key and uses it once before anything depends on it. again says that
// an earlier try may have left something.
func (s *session) makeKey(id TokenKeyID, spec TokenKeySpec, label string, again bool) (public []byte, err error) {
	rw, closeRW, err := s.readWrite()
	if err != nil {
		return nil, err
	}
	defer closeRW()
	if again {
		err = rw.destroyAll(id)
	} else {
		var there []pkcs11.ObjectHandle
		there, err = rw.objects(id)
		if err == nil && len(there) > 0 {
			err = fmt.Errorf("%w: %s on %s", ErrDuplicateTokenKey, id, s.t.cfg.tokenName())
		}
	}
	if err != nil {
		return nil, err
	}
	o, err := rw.generateKey(id, spec, label)
	if err == nil && spec.Pair() {
		public, err = rw.publicKey(o, spec)
	}
	if err == nil {
		err = s.prove(id, spec, public)
	}
	if err != nil {
		return nil, errors.Join(err, rw.destroyAll(id))
	}
	return public, nil
}

// readWrite returns a second session for what changes the token, and what closes it.
func (s *session) readWrite() (*session, func(), error) {
	s.tick()
	sh, err := s.t.openSession(true)
	if err != nil {
		return nil, nil, err
	}
	return &session{t: s.t, m: s.m, tick: s.tick, open: true, sh: sh}, func() { s.t.closeSession(sh) }, nil
}

// generateKey makes the objects of a key and returns the secret or the public one.
func (s *session) generateKey(id TokenKeyID, spec TokenKeySpec, label string) (pkcs11.ObjectHandle, error) {
	k, attr := &keyKinds[spec], pkcs11.NewAttribute
	is := func(flag uint) bool { return k.flag == flag }
	common := []*pkcs11.Attribute{attr(pkcs11.CKA_TOKEN, true), attr(pkcs11.CKA_ID, id[:]), attr(pkcs11.CKA_LABEL, label)}
	secret := append(common[:3:3],
		attr(pkcs11.CKA_PRIVATE, true), attr(pkcs11.CKA_SENSITIVE, true), attr(pkcs11.CKA_EXTRACTABLE, false),
		attr(pkcs11.CKA_UNWRAP, false), attr(pkcs11.CKA_SIGN, is(pkcs11.CKF_SIGN)), attr(pkcs11.CKA_DECRYPT, !is(pkcs11.CKF_SIGN)))
	// Left out for a token that does not know one of them.
	strict := []*pkcs11.Attribute{attr(pkcs11.CKA_DERIVE, false), attr(pkcs11.CKA_MODIFIABLE, false)}
	mech := []*pkcs11.Mechanism{pkcs11.NewMechanism(k.generate, nil)}
	s.tick()
	if !spec.Pair() {
		secret = append(secret, attr(pkcs11.CKA_CLASS, pkcs11.CKO_SECRET_KEY), attr(pkcs11.CKA_KEY_TYPE, k.keyType), attr(pkcs11.CKA_VALUE_LEN, k.bits/8),
			attr(pkcs11.CKA_ENCRYPT, !is(pkcs11.CKF_SIGN)), attr(pkcs11.CKA_WRAP, false))
		o, err := s.m.GenerateKey(s.sh, mech, append(secret[:len(secret):len(secret)], strict...))
		if templateRefused(err) {
			o, err = s.m.GenerateKey(s.sh, mech, secret)
		}
		return o, tokenError("C_GenerateKey", err)
	}
	public := append(common[:3:3], attr(pkcs11.CKA_WRAP, false), attr(pkcs11.CKA_VERIFY, is(pkcs11.CKF_SIGN)), attr(pkcs11.CKA_ENCRYPT, !is(pkcs11.CKF_SIGN)))
	if k.curve != nil {
		oid, err := asn1.Marshal(k.oid)
		if err != nil {
			return 0, err
		}
		public = append(public, attr(pkcs11.CKA_EC_PARAMS, oid))
	} else {
		public = append(public, attr(pkcs11.CKA_MODULUS_BITS, k.bits), attr(pkcs11.CKA_PUBLIC_EXPONENT, []byte{1, 0, 1}))
	}
	pub, _, err := s.m.GenerateKeyPair(s.sh, mech, public, append(secret[:len(secret):len(secret)], strict...))
	if templateRefused(err) {
		pub, _, err = s.m.GenerateKeyPair(s.sh, mech, public, secret)
	}
	return pub, tokenError("C_GenerateKeyPair", err)
}

// publicKey reads a public key as DER.
func (s *session) publicKey(o pkcs11.ObjectHandle, spec TokenKeySpec) ([]byte, error) {
	s.tick()
	k := &keyKinds[spec]
	if k.curve == nil {
		public, err := s.rsaPublic(o)
		if err != nil {
			return nil, err
		}
		if public.N.BitLen() != k.bits {
			return nil, fmt.Errorf("%w: it made an RSA key of %d bits instead of %d", ErrToken, public.N.BitLen(), k.bits)
		}
		return x509.MarshalPKIXPublicKey(public)
	}
	public, err := ecdsa.ParseUncompressedPublicKey(k.curve, ecPoint(s.bytes(o, pkcs11.CKA_EC_POINT), (k.bits+7)/8))
	if err != nil {
		return nil, fmt.Errorf("%w: CKA_EC_POINT of the new key is no point on %s: %w", ErrToken, k.curve.Params().Name, err)
	}
	return x509.MarshalPKIXPublicKey(public)
}

func (s *session) rsaPublic(o pkcs11.ObjectHandle) (*rsa.PublicKey, error) {
	s.tick()
	n, e := new(big.Int).SetBytes(s.bytes(o, pkcs11.CKA_MODULUS)), new(big.Int).SetBytes(s.bytes(o, pkcs11.CKA_PUBLIC_EXPONENT))
	if n.BitLen() < 1024 || e.BitLen() > 31 || e.Int64() < 3 {
		return nil, fmt.Errorf("%w: it does not show the public half of an RSA key", ErrToken)
	}
	return &rsa.PublicKey{N: n, E: int(e.Int64())}, nil
}

// prove uses a new key as it will be used, found by its ID.
func (s *session) prove(id TokenKeyID, spec TokenKeySpec, public []byte) error {
	k, err := s.heldKey(id)
	if err != nil {
		return err
	}
	do := func(m TokenMech, in, aad []byte) ([]byte, error) {
		t := work{kind: taskUse, id: id, mech: m, in: in, aad: aad}
		err := s.use(&t)
		return t.out, err
	}
	digest := make([]byte, 32)
	rand.Read(digest)
	wrong := fmt.Errorf("%w: the new key of kind %s does not do what it should", ErrMechanism, spec)
	switch kind := &keyKinds[spec]; {
	case spec == TokenAES256:
		sealed, err := do(TokenSeal, digest, digest[:16])
		if err != nil {
			return err
		}
		if back, err := do(TokenOpen, sealed, digest[:16]); err != nil || !bytes.Equal(back, digest) {
			return errors.Join(wrong, err)
		}
		if _, err := do(TokenOpen, sealed, digest[:15]); !errors.Is(err, ErrBadCiphertext) {
			return errors.Join(wrong, err)
		}
	case spec >= TokenHMAC224 && spec <= TokenHMAC512:
		m := TokenHMACSHA224 + TokenMech(spec-TokenHMAC224)
		mac, err := do(m, digest, nil)
		if err != nil {
			return err
		}
		if other, err := do(m, digest[1:], nil); err != nil || len(mac) != kind.bits/8 || bytes.Equal(mac, other) {
			return errors.Join(wrong, err)
		}
	case kind.flag == pkcs11.CKF_DECRYPT:
		for _, m := range []TokenMech{TokenOAEPSHA1, TokenOAEPSHA256} {
			if err := s.probeOAEP(k, m); err != nil {
				return fmt.Errorf("%w: OAEP with %v: %w", wrong, oaepHash(m), err)
			}
		}
	default:
		parsed, err := x509.ParsePKIXPublicKey(public)
		if err != nil {
			return err
		}
		if pub, ok := parsed.(*ecdsa.PublicKey); ok {
			sig, err := do(TokenECDSA, digest, nil)
			if err != nil {
				return err
			}
			half := len(sig) / 2
			if !ecdsa.Verify(pub, digest, new(big.Int).SetBytes(sig[:half]), new(big.Int).SetBytes(sig[half:])) {
				return wrong
			}
			return nil
		}
		pub, ok := parsed.(*rsa.PublicKey)
		if !ok {
			return wrong
		}
		for _, m := range []TokenMech{TokenPKCS1SHA256, TokenPSSSHA256} {
			sig, err := do(m, digest, nil)
			if err != nil {
				return err
			}
			if m == TokenPKCS1SHA256 {
				err = rsa.VerifyPKCS1v15(pub, crypto.SHA256, digest, sig)
			} else {
				err = rsa.VerifyPSS(pub, crypto.SHA256, digest, sig, &rsa.PSSOptions{SaltLength: rsa.PSSSaltLengthEqualsHash})
			}
			if err != nil {
				return wrong
			}
		}
	}
	return nil
}

// Check implements TokenKeys.
func (r *pkcs11Root) Check(ctx context.Context, id TokenKeyID) error {
	return r.once(ctx, func(s *session) error {
		_, err := s.findKey(id)
		return err
	})
}

// Destroy implements TokenKeys.
func (r *pkcs11Root) Destroy(ctx context.Context, id TokenKeyID) error {
	err := r.once(ctx, func(s *session) error {
		rw, closeRW, err := s.readWrite()
		if err != nil {
			return err
		}
		defer closeRW()
		return rw.destroyAll(id)
	})
	if err != nil {
		return fmt.Errorf("couldn't destroy a key in the token: %w", err)
	}
	return nil
}

// maxObjects is how many objects with one ID are looked for at a time.
const maxObjects = 16

// objects returns the objects of any class with this ID.
func (s *session) objects(id TokenKeyID) ([]pkcs11.ObjectHandle, error) {
	found, err := s.findAll([]*pkcs11.Attribute{pkcs11.NewAttribute(pkcs11.CKA_TOKEN, true), pkcs11.NewAttribute(pkcs11.CKA_ID, id[:])}, maxObjects)
	if err == nil && len(found) == 0 && !s.loggedIn() {
		// Private objects are invisible then, which must not pass for "not there".
		return nil, fmt.Errorf("%w: the login is gone", ErrSession)
	}
	return found, err
}

// destroyAll destroys the objects with this ID, but no domain key.
func (s *session) destroyAll(id TokenKeyID) error {
	for range maxObjects {
		found, err := s.objects(id)
		if err != nil || len(found) == 0 {
			return err
		}
		for _, o := range found {
			if strings.HasPrefix(s.text(o, pkcs11.CKA_LABEL), labelPrefix) {
				return fmt.Errorf("%w: %s on %s is a domain key", ErrToken, id, s.t.cfg.tokenName())
			}
			s.tick()
			s.t.forget.Add(1) // before it is gone, and after
			err := s.m.DestroyObject(s.sh, o)
			s.t.forget.Add(1)
			if err != nil {
				return tokenError("C_DestroyObject", err)
			}
		}
	}
	return fmt.Errorf("%w: objects with the ID %s on %s do not go away", ErrToken, id, s.t.cfg.tokenName())
}
