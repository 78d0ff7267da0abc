//go:build cgo

package hsm

import (
	"bytes"
	"crypto/hmac"
	"crypto/rand"
	"crypto/sha256"
	"crypto/subtle"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/miekg/pkcs11"

	"keymill/hsm/arena"
)

// # How a KEK is encrypted in a token
//
// The first method of this list that passes the self test is used:
//
//	AES-GCM, IV ours          the token honours the IV it is given
//	AES-GCM, IV the token's   it writes its own into the parameters; it is read back
//	AES-GCM, zero IV in       the same, on tokens that want a zeroed buffer
//	AES-CBC                   two blocks under a random IV
//	AES-CBC-PAD               where plain CBC is missing
//	RSA-OAEP SHA-256, SHA-1   where no AES encryption is offered; the domain key is an
//	                          RSA-3072 pair (OAEP does not rest on collisions of SHA-1)
//
// What C_GetMechanismInfo says is a claim, so it only decides what is tried. The self
// test encrypts twice, wants two different results (one token accepts a call without
// IV and repeats itself), decrypts both, and wants changed ciphertexts and IVs refused.
//
// # Integrity
//
// GCM authenticates. CBC does not, so a check tag follows the ciphertext: HMAC-SHA-256
// under the KEK itself, over the scheme, the domain key's ID, IV and ciphertext, cut to
// 16 bytes. KEKs are uniformly random and never reused as HMAC keys elsewhere, so the
// tag says nothing about them, and a changed ciphertext decrypts to a KEK under which
// the tag is wrong. The same tag would add nothing to OAEP, which refuses changes, yet
// anybody with the public key can make a new wrapped KEK.
//
// Whoever knows one KEK in the clear can still make CBC or OAEP forms of it. That does
// not let anybody read or replace material: it is sealed under its KEK with its identity,
// and the records of the store are sealed again. Only GCM makes the token itself vouch
// that it wrapped a KEK; that is why it comes first.

// kind is a kind of domain key.
type kind uint8

const (
	kindAES kind = iota
	kindRSA
	numKinds
)

// ivMode says who chooses the IV of AES-GCM.
type ivMode uint8

const (
	ivOurs       ivMode = iota
	ivToken             // random bytes in, the token's IV out
	ivTokenZeros        // zeroes in, the token's IV out
)

// A method is a scheme and how to ask the token for it.
type method struct {
	scheme scheme
	iv     ivMode
}

func (m method) String() string {
	if m.scheme != schemeGCM {
		return m.scheme.String()
	}
	return m.scheme.String() + [...]string{", IV ours", ", IV written by the token", ", IV written by the token into zeroes"}[m.iv]
}

// schemeKind returns what kind of domain key a scheme needs.
func schemeKind(s scheme) kind {
	if s == schemeOAEPSHA256 || s == schemeOAEPSHA1 {
		return kindRSA
	}
	return kindAES
}

// candidates lists the methods in order of preference.
var candidates = [numKinds][]method{
	kindAES: {{schemeGCM, ivOurs}, {schemeGCM, ivToken}, {schemeGCM, ivTokenZeros}, {schemeCBC, 0}, {schemeCBCPad, 0}},
	kindRSA: {{schemeOAEPSHA256, 0}, {schemeOAEPSHA1, 0}},
}

// mechanismOf returns the PKCS#11 mechanism of a scheme.
func mechanismOf(s scheme) uint {
	switch s {
	case schemeGCM:
		return pkcs11.CKM_AES_GCM
	case schemeCBC:
		return pkcs11.CKM_AES_CBC
	case schemeCBCPad:
		return pkcs11.CKM_AES_CBC_PAD
	default:
		return pkcs11.CKM_RSA_PKCS_OAEP
	}
}

// domainKey is a domain key in one session.
type domainKey struct {
	id       DomainKeyID
	kind     kind
	enc, dec pkcs11.ObjectHandle // the same for AES; public and private for RSA
}

var errIVNotHonoured = fmt.Errorf("%w: the token does not use the IV it is given", ErrMechanism)
var errIVNotWritten = fmt.Errorf("%w: the token does not write its IV back", ErrMechanism)

const checkTagSize = 16

// checkTag is the check tag described above.
func checkTag(kek []byte, id DomainKeyID, s scheme, iv, ct []byte) []byte {
	h := hmac.New(sha256.New, kek)
	h.Write([]byte("keymill KEK check v1"))
	h.Write([]byte{byte(s)})
	h.Write(id[:])
	h.Write(iv) // 16 bytes in every scheme with a tag
	h.Write(ct)
	return h.Sum(nil)[:checkTagSize]
}

// wrap encrypts a KEK in the session. It does not verify the result.
func (s *session) wrap(k domainKey, m method, kek []byte) ([]byte, error) {
	if schemeKind(m.scheme) != k.kind {
		return nil, fmt.Errorf("%w: %s needs another kind of domain key", ErrMechanism, m.scheme)
	}
	w := wrapped{scheme: m.scheme}
	var err error
	switch m.scheme {
	case schemeGCM:
		w.iv, w.ct, err = s.sealGCM(k.enc, m.iv, kek, nil)
	case schemeCBC, schemeCBCPad:
		w.iv = make([]byte, 16)
		rand.Read(w.iv)
		w.ct, err = s.once(ckEncrypt, withIV(m.scheme, w.iv, nil), k.enc, kek)
		w.ct = append(w.ct, checkTag(kek, k.id, m.scheme, w.iv, w.ct)...)
	default:
		w.ct, err = s.once(ckEncrypt, oaep(m.scheme), k.enc, kek)
	}
	if err != nil {
		return nil, err
	}
	out := w.append(nil)
	if _, err := parseWrapped(out); err != nil {
		return nil, fmt.Errorf("%w: %s returned %d bytes", ErrMechanism, m, len(w.ct))
	}
	return out, nil
}

// sealGCM encrypts under an IV that is read back after the operation.
func (s *session) sealGCM(key pkcs11.ObjectHandle, mode ivMode, plain, aad []byte) (iv, ct []byte, err error) {
	given := make([]byte, 12)
	if mode != ivTokenZeros {
		rand.Read(given)
	}
	p := withIV(schemeGCM, given, aad)
	if ct, err = s.once(ckEncrypt, p, key, plain); err != nil {
		return nil, nil, err
	}
	iv = p.iv[:p.ivLen]
	switch same := bytes.Equal(iv, given); {
	case mode == ivOurs && !same:
		return nil, nil, errIVNotHonoured
	case mode != ivOurs && same:
		return nil, nil, errIVNotWritten
	}
	return iv, ct, nil
}

// unwrap decrypts a KEK. ErrBadWrapped is only returned for a wrapped form that this
// key does not open; an ambiguous answer of the token comes back as it is.
func (s *session) unwrap(k domainKey, w wrapped) ([]byte, error) {
	if schemeKind(w.scheme) != k.kind || w.scheme == schemeXAES {
		return nil, fmt.Errorf("%w: it was made with %s", ErrBadWrapped, w.scheme)
	}
	var p *mech
	ct := w.ct
	var tag []byte
	switch w.scheme {
	case schemeGCM:
		p = withIV(w.scheme, w.iv, nil)
	case schemeCBC, schemeCBCPad:
		ct, tag = ct[:len(ct)-checkTagSize], ct[len(ct)-checkTagSize:]
		p = withIV(w.scheme, w.iv, nil)
	default:
		p = oaep(w.scheme)
	}
	kek, err := s.once(ckDecrypt, p, k.dec, ct)
	if err != nil {
		return nil, err
	}
	// Without a length of 32 there is no KEK and no tag under it to compare.
	if len(kek) != KEKSize || tag != nil && subtle.ConstantTimeCompare(tag, checkTag(kek, k.id, w.scheme, w.iv, ct)) == 0 {
		arena.Wipe(kek)
		return nil, ErrBadWrapped
	}
	return kek, nil
}

// withIV returns the mechanism of an AES scheme; aad is for GCM.
func withIV(s scheme, iv, aad []byte) *mech {
	m := &mech{mechanism: mechanismOf(s), form: formIV, aad: aad}
	if s == schemeGCM {
		m.form = formGCM
	}
	m.ivLen = copy(m.iv[:], iv)
	return m
}

func oaep(s scheme) *mech {
	m := &mech{mechanism: pkcs11.CKM_RSA_PKCS_OAEP, form: formOAEP, hash: pkcs11.CKM_SHA256, mgf: pkcs11.CKG_MGF1_SHA256}
	if s == schemeOAEPSHA1 {
		m.hash, m.mgf = pkcs11.CKM_SHA_1, pkcs11.CKG_MGF1_SHA1
	}
	return m
}

// trial is the self test of one method with one key. nil means it may be used.
func (s *session) trial(k domainKey, m method) error {
	kek := make([]byte, KEKSize)
	rand.Read(kek)
	var parsed [2]wrapped
	for i := range parsed {
		b, err := s.wrap(k, m, kek)
		if err != nil {
			return err
		}
		if parsed[i], err = parseWrapped(b); err != nil {
			return err
		}
		began := time.Now()
		back, err := s.unwrap(k, parsed[i])
		if took := int64(time.Since(began)); i == 0 || took < s.t.alone.Load() {
			s.t.alone.Store(took)
		}
		if err != nil {
			return fmt.Errorf("%w: what it encrypted does not decrypt: %w", ErrMechanism, err)
		}
		same := bytes.Equal(back, kek)
		arena.Wipe(back)
		if !same {
			return fmt.Errorf("%w: what it encrypted decrypts to something else", ErrMechanism)
		}
	}
	if bytes.Equal(parsed[0].ct, parsed[1].ct) {
		return fmt.Errorf("%w: it encrypts the same bytes twice alike, so it ignores the IV", ErrMechanism)
	}
	if len(parsed[0].iv) > 0 && bytes.Equal(parsed[0].iv, parsed[1].iv) {
		return fmt.Errorf("%w: the token repeats its IV", ErrMechanism)
	}
	for _, part := range [][]byte{parsed[0].ct, parsed[0].iv} {
		if len(part) == 0 {
			continue
		}
		part[len(part)/3] ^= 0x04
		back, err := s.unwrap(k, parsed[0])
		part[len(part)/3] ^= 0x04
		switch {
		case err == nil:
			arena.Wipe(back)
			return fmt.Errorf("%w: it decrypts what was changed", ErrMechanism)
		case errors.Is(err, ErrBadWrapped), ambiguous(err):
		default:
			return err
		}
	}
	return nil
}

// choose tries the methods for a key in order and returns the first that works. The
// error is that of a session or device in trouble; finding nothing is ok == false.
func (s *session) choose(k domainKey, offers map[uint]pkcs11.MechanismInfo) (chosen method, ok bool, rows []Candidate, err error) {
	for _, m := range candidates[k.kind] {
		row := Candidate{Method: m.String()}
		info, offered := offers[mechanismOf(m.scheme)]
		row.Offered = offered && info.Flags&pkcs11.CKF_ENCRYPT != 0 && info.Flags&pkcs11.CKF_DECRYPT != 0
		switch {
		case !row.Offered:
			row.Reason = "not offered for encryption and decryption"
		case ok:
			row.Reason = "not needed"
		default:
			err := s.trial(k, m)
			if ambiguous(err) {
				// Perhaps a hiccup: that must not settle what is used from now on.
				err = s.trial(k, m)
			}
			if err != nil && !ambiguous(err) && Classify(err) != Fatal {
				return method{}, false, rows, err
			}
			if err != nil {
				row.Reason = strings.TrimPrefix(err.Error(), ErrMechanism.Error()+": ")
				break
			}
			row.OK, row.Chosen, chosen, ok = true, true, m, true
		}
		rows = append(rows, row)
	}
	return chosen, ok, rows, nil
}
