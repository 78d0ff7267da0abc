//go:build cgo

package hsm

import (
	"bytes"
	"context"
	"crypto"
	"crypto/rand"
	"crypto/rsa"
	"encoding/asn1"
	"errors"
	"fmt"
	"slices"
	"sync"

	"github.com/miekg/pkcs11"

	"keymill/hsm/arena"
)

// # Handles
//
// A handle is valid in all sessions of a process, so what one session has found the others
// use: a search costs two round trips, and a store may have thousands of keys. Some token
// may not keep to that; when it refuses a handle that another session found, from then
// on each session searches for itself.
//
// After a login, a reset or the destruction of an object a token may give a handle out
// again for something else. Each of these counts token.forget up, and a handle is good
// only for the count at which it was found: one key never passes for another.

// heldKeys are the keys of users that were found.
type heldKeys struct {
	mu       sync.Mutex
	found    map[heldName]*heldKey // guarded by mu
	separate bool                  // guarded by mu: handles are the session's own
}

// A heldName is a key, and the session that found it when handles are separate.
type heldName struct {
	id TokenKeyID
	in *session
}

// A heldKey is a key that was found.
type heldKey struct {
	id     TokenKeyID
	handle pkcs11.ObjectHandle // of the secret or private key
	by     *session            // compared only
	forget uint64              // token.forget before it was found

	mu     sync.Mutex
	probes map[TokenMech][]byte // guarded by mu
}

// maxHeld bounds the handles that are remembered, at some 150 bytes.
const maxHeld = 1 << 16

func (h *heldKeys) name(id TokenKeyID, s *session) heldName {
	if h.separate {
		return heldName{id, s}
	}
	return heldName{id, nil}
}

func (h *heldKeys) get(id TokenKeyID, s *session) *heldKey {
	h.mu.Lock()
	defer h.mu.Unlock()
	if k := h.found[h.name(id, s)]; k != nil && k.forget == s.t.forget.Load() {
		return k
	}
	return nil
}

func (h *heldKeys) put(k *heldKey) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.found == nil || len(h.found) >= maxHeld {
		h.found = map[heldName]*heldKey{}
	}
	h.found[h.name(k.id, k.by)] = k
}

// refused forgets a key whose handle the token did not know in session s.
func (h *heldKeys) refused(k *heldKey, s *session) {
	loggedIn := s.loggedIn() // without, all handles are refused
	h.mu.Lock()
	defer h.mu.Unlock()
	delete(h.found, h.name(k.id, k.by))
	if k.by != s && k.forget == s.t.forget.Load() && loggedIn && !h.separate {
		h.separate, h.found = true, nil
		s.t.cfg.Logger.Info("the token refused a handle that another session found; each finds its own from now on", "token", s.t.cfg.tokenName())
	}
}

// heldKey returns a key, by its CKA_ID.
func (s *session) heldKey(id TokenKeyID) (*heldKey, error) {
	if k := s.t.held.get(id, s); k != nil {
		return k, nil
	}
	return s.findKey(id)
}

// findKey searches the token for a key.
func (s *session) findKey(id TokenKeyID) (*heldKey, error) {
	k := &heldKey{id: id, by: s, forget: s.t.forget.Load(), probes: map[TokenMech][]byte{}}
	var err error
	k.handle, err = s.findOne(id, pkcs11.CKO_SECRET_KEY, ErrNoTokenKey, ErrDuplicateTokenKey)
	if errors.Is(err, ErrNoTokenKey) {
		k.handle, err = s.findOne(id, pkcs11.CKO_PRIVATE_KEY, ErrNoTokenKey, ErrDuplicateTokenKey)
	}
	if err == nil {
		err = s.checkGuarded(k.handle, id, ErrWeakTokenKey)
	}
	if err != nil {
		return nil, err
	}
	s.t.held.put(k)
	return k, nil
}

// probe returns what make made for a mechanism when it was first needed.
func (k *heldKey) probe(m TokenMech, make func() ([]byte, error)) ([]byte, error) {
	k.mu.Lock()
	p := k.probes[m]
	k.mu.Unlock()
	if p != nil {
		return p, nil
	}
	p, err := make()
	if err == nil {
		k.mu.Lock()
		k.probes[m] = p
		k.mu.Unlock()
	}
	return p, err
}

// use does one operation with a key that lives in the token.
func (s *session) use(t *work) error {
	k, err := s.heldKey(t.id)
	if err != nil {
		return err
	}
	switch t.mech {
	case TokenSeal:
		t.out, err = s.sealWith(k, t.in, t.aad)
	case TokenOpen:
		t.out, err = verdict(func() ([]byte, error) { return s.openWith(k, t.in, t.aad) },
			func() error { return s.probeSeal(k) }, ErrBadCiphertext)
	case TokenOAEPSHA1, TokenOAEPSHA256:
		t.out, err = verdict(func() ([]byte, error) { return s.once(ckDecrypt, oaep(oaepScheme(t.mech)), k.handle, t.in) },
			func() error { return s.probeOAEP(k, t.mech) }, ErrBadCiphertext)
	default:
		m, in := signMech(t.mech, t.in)
		if m == nil {
			return ErrTokenInput
		}
		t.out, err = s.once(ckSign, m, k.handle, in)
	}
	if isCKR(err, pkcs11.CKR_KEY_HANDLE_INVALID, pkcs11.CKR_OBJECT_HANDLE_INVALID) {
		s.t.held.refused(k, s)
	}
	if errors.Is(err, ErrBadWrapped) { // what the values of C_Decrypt mean for a KEK
		err = fmt.Errorf("%w (the token says: %v)", ErrBadCiphertext, err)
	}
	return err
}

// seal is TokenSeal.
func (s *session) sealWith(k *heldKey, plain, aad []byte) ([]byte, error) {
	m := s.t.methods[kindAES].Load()
	if m == nil || m.scheme != schemeGCM {
		return nil, fmt.Errorf("%w: it has no AES-GCM", ErrMechanism)
	}
	iv, ct, err := s.sealGCM(k.handle, m.iv, plain, aad)
	if err != nil {
		return nil, err
	}
	if len(iv) < 12 || len(iv) > 16 || len(ct) != len(plain)+16 {
		return nil, fmt.Errorf("%w: AES-GCM made %d bytes of %d, with an IV of %d", ErrToken, len(ct), len(plain), len(iv))
	}
	out := append(make([]byte, 0, 2+len(iv)+len(ct)), tokenSealFormat, byte(len(iv)))
	return append(append(out, iv...), ct...), nil
}

// openWith is one try of TokenOpen.
func (s *session) openWith(k *heldKey, sealed, aad []byte) ([]byte, error) {
	iv, ct, err := parseSealed(sealed)
	if err != nil {
		return nil, err
	}
	out, err := s.once(ckDecrypt, withIV(schemeGCM, iv, aad), k.handle, ct)
	if err == nil && len(out) != len(ct)-16 {
		arena.Wipe(out)
		return nil, fmt.Errorf("%w: AES-GCM made %d bytes of %d", ErrToken, len(out), len(ct))
	}
	return out, err
}

// probeSeal is nil when the token opens with the key what was made with it. What is opened
// was made once: bad ciphertexts must not use a key up.
func (s *session) probeSeal(k *heldKey) error {
	p, err := k.probe(TokenOpen, func() ([]byte, error) { return s.sealWith(k, make([]byte, 16), nil) })
	if err == nil {
		_, err = s.openWith(k, p, nil)
	}
	return err
}

// probeOAEP is probeSeal for an RSA key.
func (s *session) probeOAEP(k *heldKey, m TokenMech) error {
	p, err := k.probe(m, func() ([]byte, error) {
		o, err := s.findOne(k.id, pkcs11.CKO_PUBLIC_KEY, ErrNoTokenKey, ErrDuplicateTokenKey)
		if err != nil {
			return nil, err
		}
		public, err := s.rsaPublic(o)
		if err != nil {
			return nil, err
		}
		return rsa.EncryptOAEP(oaepHash(m).New(), rand.Reader, public, make([]byte, 16), nil)
	})
	if err == nil {
		_, err = s.once(ckDecrypt, oaep(oaepScheme(m)), k.handle, p)
	}
	return err
}

func oaepScheme(m TokenMech) scheme {
	if m == TokenOAEPSHA1 {
		return schemeOAEPSHA1
	}
	return schemeOAEPSHA256
}

func oaepHash(m TokenMech) crypto.Hash {
	if m == TokenOAEPSHA1 {
		return crypto.SHA1
	}
	return crypto.SHA256
}

// digestInfos are what PKCS #1 v1.5 puts in front of a digest (RFC 8017, section 9.2).
var digestInfos = map[TokenMech][]byte{
	TokenPKCS1SHA256: {0x30, 0x31, 0x30, 0x0d, 0x06, 0x09, 0x60, 0x86, 0x48, 0x01, 0x65, 0x03, 0x04, 0x02, 0x01, 0x05, 0x00, 0x04, 0x20},
	TokenPKCS1SHA384: {0x30, 0x41, 0x30, 0x0d, 0x06, 0x09, 0x60, 0x86, 0x48, 0x01, 0x65, 0x03, 0x04, 0x02, 0x02, 0x05, 0x00, 0x04, 0x30},
	TokenPKCS1SHA512: {0x30, 0x51, 0x30, 0x0d, 0x06, 0x09, 0x60, 0x86, 0x48, 0x01, 0x65, 0x03, 0x04, 0x02, 0x03, 0x05, 0x00, 0x04, 0x40},
}

// signMech returns the mechanism of C_Sign and what it is given for in.
func signMech(m TokenMech, in []byte) (*mech, []byte) {
	pss := func(hash, mgf, salt uint) (*mech, []byte) {
		return &mech{mechanism: pkcs11.CKM_RSA_PKCS_PSS, form: formPSS, hash: hash, mgf: mgf, salt: salt}, in
	}
	switch m {
	case TokenHMACSHA224:
		return &mech{mechanism: pkcs11.CKM_SHA224_HMAC}, in
	case TokenHMACSHA256:
		return &mech{mechanism: pkcs11.CKM_SHA256_HMAC}, in
	case TokenHMACSHA384:
		return &mech{mechanism: pkcs11.CKM_SHA384_HMAC}, in
	case TokenHMACSHA512:
		return &mech{mechanism: pkcs11.CKM_SHA512_HMAC}, in
	case TokenECDSA:
		return &mech{mechanism: pkcs11.CKM_ECDSA}, in
	case TokenPKCS1SHA256, TokenPKCS1SHA384, TokenPKCS1SHA512:
		return &mech{mechanism: pkcs11.CKM_RSA_PKCS}, slices.Concat(digestInfos[m], in)
	case TokenPSSSHA256:
		return pss(pkcs11.CKM_SHA256, pkcs11.CKG_MGF1_SHA256, 32)
	case TokenPSSSHA384:
		return pss(pkcs11.CKM_SHA384, pkcs11.CKG_MGF1_SHA384, 48)
	case TokenPSSSHA512:
		return pss(pkcs11.CKM_SHA512, pkcs11.CKG_MGF1_SHA512, 64)
	}
	return nil, nil
}

// trialAAD tells whether AES-GCM minds associated data: some tokens take and ignore it.
func (s *session) trialAAD(k domainKey, m method) (bool, error) {
	plain, aad := []byte("sixteen bytes..."), []byte("associated")
	iv, ct, err := s.sealGCM(k.enc, m.iv, plain, aad)
	if err != nil {
		return false, fatalOnly(err)
	}
	back, err := s.once(ckDecrypt, withIV(schemeGCM, iv, aad), k.dec, ct)
	if err != nil || !bytes.Equal(back, plain) {
		return false, fatalOnly(err)
	}
	if _, err = s.once(ckDecrypt, withIV(schemeGCM, iv, aad[1:]), k.dec, ct); err == nil {
		return false, nil
	}
	if ambiguous(err) || errors.Is(err, ErrBadWrapped) {
		return true, nil
	}
	return false, fatalOnly(err)
}

// fatalOnly drops an error that says what a token cannot do, and keeps one of a session or
// device in trouble.
func fatalOnly(err error) error {
	if err == nil || Classify(err) == Fatal {
		return nil
	}
	return err
}

// Do implements TokenKeys.
func (r *pkcs11Root) Do(ctx context.Context, ops []TokenOp) {
	if ctx.Err() != nil {
		failOps(ops, contextError(ctx))
		return
	}
	all, good := make([]work, 0, len(ops)), make([]*TokenOp, 0, len(ops))
	for i := range ops {
		op := &ops[i]
		op.Out = nil
		if op.Err = op.check(); op.Err == nil {
			all, good = append(all, op.work()), append(good, op)
		}
	}
	for i, w := range r.sched.do(ctx, all) {
		good[i].Out, good[i].Err = w.out, w.err
	}
}

// ecPoint takes CKA_EC_POINT apart: an OCTET STRING with the point in it, by the
// standard, or the point itself, as some tokens have it.
func ecPoint(b []byte, size int) []byte {
	var point []byte
	if rest, err := asn1.Unmarshal(b, &point); err == nil && len(rest) == 0 && len(point) == 1+2*size {
		return point
	}
	return b
}
