//go:build cgo

package hsm

import (
	"crypto/rand"
	"errors"
	"fmt"
	"time"

	"github.com/miekg/pkcs11"
)

// A session is a worker's conn: at most one PKCS#11 session and the handles found in
// it. Only the worker's goroutine uses it. Every entry into the module is announced
// with tick, so that the watchdog measures single calls.
type session struct {
	t    *token
	m    *module
	tick func()

	open   bool
	sh     pkcs11.SessionHandle
	keys   map[DomainKeyID]domainKey
	forget uint64 // token.forget when keys were found
}

func newSession(t *token, tick func()) *session {
	return &session{t: t, m: t.m, tick: tick}
}

// ensure opens the session if there is none.
func (s *session) ensure() error {
	if s.open {
		return nil
	}
	s.tick()
	sh, err := s.t.openSession(false)
	if err != nil {
		return err
	}
	s.open, s.sh, s.keys = true, sh, nil
	return nil
}

// close implements conn.
func (s *session) close() {
	if s.open {
		s.open, s.keys = false, nil
		s.tick()
		s.t.closeSession(s.sh)
	}
}

// drop ends the session after err.
func (s *session) drop(err error) {
	if s.open && lost(err) {
		s.t.forget.Add(1)
		s.open, s.keys = false, nil
		s.t.forgetSession(s.sh)
		return
	}
	s.close()
}

// try runs f in the session and, when the session or the device failed, once more in
// a new one. What f does must bear being done twice.
func (s *session) try(f func() error) error {
	for attempt := 0; ; attempt++ {
		err := s.ensure()
		if err == nil {
			err = f()
		}
		if err == nil || Classify(err) == Fatal {
			return err
		}
		s.drop(err)
		if attempt == 1 {
			return err
		}
		s.t.cfg.Logger.Warn("a token session failed; opening another", "error", err)
	}
}

// key finds a domain key by its CKA_ID.
func (s *session) key(id DomainKeyID) (domainKey, error) {
	if forget := s.t.forget.Load(); forget != s.forget || s.keys == nil {
		s.keys, s.forget = map[DomainKeyID]domainKey{}, forget
	}
	if k, ok := s.keys[id]; ok {
		return k, nil
	}
	k, err := s.find(id)
	if err != nil {
		return domainKey{}, err
	}
	if err := s.checkGuarded(k.dec, k.id, ErrWeakDomainKey); err != nil {
		return domainKey{}, err
	}
	s.keys[id] = k
	return k, nil
}

// find searches for a secret key with this ID, then for an RSA pair.
func (s *session) find(id DomainKeyID) (domainKey, error) {
	missing, several := ErrNoDomainKey, ErrDuplicateDomainKey
	secret, err := s.findOne(id, pkcs11.CKO_SECRET_KEY, missing, several)
	if err == nil {
		return domainKey{id, kindAES, secret, secret}, nil
	}
	if !errors.Is(err, ErrNoDomainKey) {
		return domainKey{}, err
	}
	private, err := s.findOne(id, pkcs11.CKO_PRIVATE_KEY, missing, several)
	if err != nil {
		return domainKey{}, err
	}
	public, err := s.findOne(id, pkcs11.CKO_PUBLIC_KEY, missing, several)
	if err != nil {
		return domainKey{}, err
	}
	return domainKey{id, kindRSA, public, private}, nil
}

// findOne finds the object of a class with this CKA_ID; the errors say that there is none,
// and that there are several.
func (s *session) findOne(id [16]byte, class uint, missing, several error) (pkcs11.ObjectHandle, error) {
	for attempt := 0; ; attempt++ {
		found, err := s.findAll([]*pkcs11.Attribute{
			pkcs11.NewAttribute(pkcs11.CKA_CLASS, class),
			pkcs11.NewAttribute(pkcs11.CKA_TOKEN, true),
			pkcs11.NewAttribute(pkcs11.CKA_ID, id[:]),
		}, 2)
		switch {
		case err != nil:
			return 0, err
		case len(found) == 0 && !s.loggedIn():
			// Private objects are invisible then, which must not pass for "not there".
			return 0, fmt.Errorf("%w: the login is gone", ErrSession)
		case len(found) == 0 && attempt < 2:
			// The login is the token's, not the session's: it may have been gone
			// during the search and renewed by another worker before the look.
			continue
		case len(found) == 0:
			return 0, fmt.Errorf("%w: %x on %s", missing, id, s.t.cfg.tokenName())
		case len(found) > 1:
			return 0, fmt.Errorf("%w: %x on %s; delete the copy with the vendor's tool", several, id, s.t.cfg.tokenName())
		}
		return found[0], nil
	}
}

// loggedIn reports whether the session can see private objects, as far as it tells.
func (s *session) loggedIn() bool {
	si, err := s.m.GetSessionInfo(s.sh)
	return err == nil && (!s.t.loginRequired.Load() || si.State == pkcs11.CKS_RO_USER_FUNCTIONS || si.State == pkcs11.CKS_RW_USER_FUNCTIONS)
}

// findAll returns up to limit objects.
func (s *session) findAll(template []*pkcs11.Attribute, limit int) ([]pkcs11.ObjectHandle, error) {
	s.tick()
	if err := s.m.FindObjectsInit(s.sh, template); err != nil {
		return nil, tokenError("C_FindObjectsInit", err)
	}
	var all []pkcs11.ObjectHandle
	var err error
	for len(all) < limit {
		var some []pkcs11.ObjectHandle
		some, _, err = s.m.FindObjects(s.sh, limit-len(all))
		if err != nil || len(some) == 0 {
			break
		}
		all = append(all, some...)
	}
	if ferr := s.m.FindObjectsFinal(s.sh); err == nil && ferr != nil {
		return nil, tokenError("C_FindObjectsFinal", ferr)
	}
	return all, tokenError("C_FindObjects", err)
}

// flag reads a CK_BBOOL attribute; known is false when the token does not tell.
func (s *session) flag(o pkcs11.ObjectHandle, attribute uint) (value, known bool) {
	a, err := s.m.GetAttributeValue(s.sh, o, []*pkcs11.Attribute{pkcs11.NewAttribute(attribute, nil)})
	if err != nil || len(a) != 1 || len(a[0].Value) != 1 {
		return false, false
	}
	return a[0].Value[0] != 0, true
}

// checkGuarded refuses, with the error weak, a key that could leave the token. An
// attribute the token does not tell is not held against it.
func (s *session) checkGuarded(o pkcs11.ObjectHandle, id [16]byte, weak error) error {
	s.tick()
	for _, a := range []struct {
		attribute uint
		bad       bool
		text      string
	}{
		{pkcs11.CKA_EXTRACTABLE, true, "it is extractable"},
		{pkcs11.CKA_SENSITIVE, false, "it is not sensitive"},
		{pkcs11.CKA_UNWRAP, true, "it may unwrap other keys"},
		{pkcs11.CKA_WRAP, true, "it may wrap other keys"},
	} {
		if v, known := s.flag(o, a.attribute); known && v == a.bad {
			return fmt.Errorf("%w: %x on %s: %s; make keys for this program with this program only", weak, id, s.t.cfg.tokenName(), a.text)
		}
	}
	return nil
}

// generate makes a domain key of a kind. persistent says whether it is a token object
// (which needs a read-write session) or goes with the session.
func (s *session) generate(sh pkcs11.SessionHandle, k kind, id DomainKeyID, persistent bool) (domainKey, error) {
	s.tick()
	label := labelPrefix + time.Now().UTC().Format("2006-01-02")
	if !persistent {
		label = "keymill self test"
	}
	attr := pkcs11.NewAttribute
	common := []*pkcs11.Attribute{
		attr(pkcs11.CKA_TOKEN, persistent),
		attr(pkcs11.CKA_ID, id[:]),
		attr(pkcs11.CKA_LABEL, label),
	}
	// Decrypting, and nothing that could move another key through it.
	guarded := append(common[:3:3],
		attr(pkcs11.CKA_PRIVATE, true),
		attr(pkcs11.CKA_SENSITIVE, true),
		attr(pkcs11.CKA_EXTRACTABLE, false),
		attr(pkcs11.CKA_DECRYPT, true),
		attr(pkcs11.CKA_UNWRAP, false),
	)
	// What the standard has as default false, but some tokens as true. A token
	// that does not know one of these refuses it; then it is left out.
	strict := []*pkcs11.Attribute{attr(pkcs11.CKA_SIGN, false), attr(pkcs11.CKA_DERIVE, false)}

	if k == kindRSA {
		public := append(common[:3:3],
			attr(pkcs11.CKA_ENCRYPT, true), attr(pkcs11.CKA_WRAP, false), attr(pkcs11.CKA_VERIFY, false),
			attr(pkcs11.CKA_MODULUS_BITS, rsaBits), attr(pkcs11.CKA_PUBLIC_EXPONENT, []byte{1, 0, 1}))
		mech := []*pkcs11.Mechanism{pkcs11.NewMechanism(pkcs11.CKM_RSA_PKCS_KEY_PAIR_GEN, nil)}
		pub, priv, err := s.m.GenerateKeyPair(sh, mech, public, append(guarded[:len(guarded):len(guarded)], strict...))
		if templateRefused(err) {
			pub, priv, err = s.m.GenerateKeyPair(sh, mech, public, guarded)
		}
		return domainKey{id, k, pub, priv}, tokenError("C_GenerateKeyPair", err)
	}
	secret := append(guarded[:len(guarded):len(guarded)],
		attr(pkcs11.CKA_CLASS, pkcs11.CKO_SECRET_KEY), attr(pkcs11.CKA_KEY_TYPE, pkcs11.CKK_AES),
		attr(pkcs11.CKA_VALUE_LEN, 32), attr(pkcs11.CKA_ENCRYPT, true), attr(pkcs11.CKA_WRAP, false))
	mech := []*pkcs11.Mechanism{pkcs11.NewMechanism(pkcs11.CKM_AES_KEY_GEN, nil)}
	o, err := s.m.GenerateKey(sh, mech, append(secret[:len(secret):len(secret)], append(strict, attr(pkcs11.CKA_VERIFY, false))...))
	if templateRefused(err) {
		o, err = s.m.GenerateKey(sh, mech, secret)
	}
	return domainKey{id, k, o, o}, tokenError("C_GenerateKey", err)
}

// labelPrefix begins the label of every domain key. It only informs people; keys are
// found by their ID.
const labelPrefix = "keymill domain key "

// rsaBits is the size of an RSA domain key: 128 bits of security, as SP 800-57 counts.
const rsaBits = 3072

func templateRefused(err error) bool {
	return isCKR(err, pkcs11.CKR_ATTRIBUTE_TYPE_INVALID, pkcs11.CKR_ATTRIBUTE_VALUE_INVALID,
		pkcs11.CKR_TEMPLATE_INCONSISTENT, pkcs11.CKR_ATTRIBUTE_READ_ONLY)
}

// destroy removes what generate made.
func (s *session) destroy(sh pkcs11.SessionHandle, k domainKey) error {
	s.tick()
	err := s.m.DestroyObject(sh, k.dec)
	if k.kind == kindRSA {
		err = errors.Join(err, s.m.DestroyObject(sh, k.enc))
	}
	return tokenError("C_DestroyObject", err)
}

// withScratch runs f with a key that is gone afterwards, for the self test. Tokens that
// refuse session objects get a token object, which is deleted again.
func (s *session) withScratch(k kind, f func(domainKey) error) error {
	var id DomainKeyID
	rand.Read(id[:])
	key, err := s.generate(s.sh, k, id, false)
	if err == nil {
		defer s.destroy(s.sh, key) // the session's end would remove it as well
		return f(key)
	}
	if Classify(err) != Fatal {
		return err
	}
	rw, rwErr := s.t.openSession(true)
	if rwErr != nil {
		return rwErr
	}
	defer s.t.closeSession(rw)
	key, err = s.generate(rw, k, id, true)
	if err != nil {
		return err
	}
	ferr := f(key)
	return errors.Join(ferr, s.destroy(rw, key))
}
