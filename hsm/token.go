//go:build cgo

package hsm

import (
	"bytes"
	"errors"
	"fmt"
	"strings"
	"sync"
	"sync/atomic"

	"github.com/miekg/pkcs11"

	"keymill/hsm/arena"
)

// ckUnavailable is CK_UNAVAILABLE_INFORMATION.
const ckUnavailable = ^uint(0)

// A token finds its slot, opens sessions and logs in. All sessions of a process share
// one login per token.
type token struct {
	m   *module       // immutable
	cfg *PKCS11Config // immutable

	forget atomic.Uint64 // goes up when handles may be given out again; see tokenkey_use.go
	held   heldKeys

	mu   sync.Mutex // serialises slot search and login
	dead error      // guarded by mu: a refused PIN, which is never tried again

	loginRequired atomic.Bool // the token's flag when it was last looked at

	claimMu sync.Mutex
	claimed map[pkcs11.SessionHandle]struct{} // guarded by claimMu, see pool.go

	// methods holds what the self test chose, by kind of domain key.
	methods [numKinds]atomic.Pointer[method]

	// alone is the shortest time of a decryption in the self tests, in nanoseconds.
	alone atomic.Int64

	useMu sync.Mutex
	uses  map[DomainKeyID]uint64 // guarded by useMu
}

func newToken(m *module, cfg *PKCS11Config) *token {
	return &token{m: m, cfg: cfg, claimed: map[pkcs11.SessionHandle]struct{}{}, uses: map[DomainKeyID]uint64{}}
}

// slotToken is a slot with the token in it.
type slotToken struct {
	slot uint
	pkcs11.TokenInfo
}

// list returns all tokens of the module. Slots that cannot be asked are left out.
func (t *token) list() ([]slotToken, error) {
	slots, err := t.m.GetSlotList(true)
	if isCKR(err, pkcs11.CKR_CRYPTOKI_NOT_INITIALIZED) {
		// Something in this process finalised the library. Once more, then.
		if err = t.m.initialize(); err == nil {
			slots, err = t.m.GetSlotList(true)
		}
	}
	if err != nil {
		return nil, tokenError("C_GetSlotList", err)
	}
	var all []slotToken
	for _, s := range slots {
		if info, err := t.m.GetTokenInfo(s); err == nil {
			all = append(all, slotToken{s, cleanInfo(info)})
		}
	}
	return all, nil
}

// cleanInfo drops padding; some modules pad with NUL.
func cleanInfo(i pkcs11.TokenInfo) pkcs11.TokenInfo {
	for _, s := range []*string{&i.Label, &i.ManufacturerID, &i.Model, &i.SerialNumber} {
		*s = strings.TrimRight(*s, " \x00")
	}
	return i
}

// find returns the slot of the configured token.
func (t *token) find() (slotToken, error) {
	all, err := t.list()
	if err != nil {
		return slotToken{}, err
	}
	return t.pick(all)
}

func (t *token) pick(all []slotToken) (slotToken, error) {
	var found []slotToken
	var others []string
	for _, st := range all {
		if (t.cfg.TokenLabel == "" || st.Label == t.cfg.TokenLabel) && (t.cfg.TokenSerial == "" || st.SerialNumber == t.cfg.TokenSerial) {
			found = append(found, st)
		} else if st.Flags&pkcs11.CKF_TOKEN_INITIALIZED != 0 {
			others = append(others, fmt.Sprintf("%q", st.Label))
		}
	}
	switch {
	case len(found) == 1:
		return found[0], nil
	case len(found) > 1:
		return slotToken{}, fmt.Errorf("%w: %d tokens are called %q; give the serial number as well", ErrTokenMissing, len(found), t.cfg.TokenLabel)
	case len(others) == 0:
		return slotToken{}, fmt.Errorf("%w: %s: the module shows no initialised token; check that the HSM is connected, that the vendor's configuration names it and that this user may reach it", ErrTokenMissing, t.cfg.tokenName())
	default:
		return slotToken{}, fmt.Errorf("%w: %s: the module shows %s", ErrTokenMissing, t.cfg.tokenName(), strings.Join(others, ", "))
	}
}

// openSession opens a session in which the user is logged in.
func (t *token) openSession(readWrite bool) (pkcs11.SessionHandle, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.dead != nil {
		return 0, t.dead
	}
	st, err := t.find()
	if err != nil {
		return 0, err
	}
	sh, err := t.openClaimed(st.slot, readWrite)
	if err != nil {
		return 0, err
	}
	if err := t.login(sh, st); err != nil {
		t.closeSession(sh)
		if errors.Is(err, ErrPINIncorrect) || errors.Is(err, ErrTokenLocked) {
			t.dead = err
		}
		return 0, err
	}
	return sh, nil
}

// openClaimed opens a session with a handle number nobody else of us holds. A number
// that is claimed belongs, after a token reset, to a worker who does not know of the
// reset yet: that session is left to it.
func (t *token) openClaimed(slot uint, readWrite bool) (pkcs11.SessionHandle, error) {
	flags := uint(pkcs11.CKF_SERIAL_SESSION)
	if readWrite {
		flags |= pkcs11.CKF_RW_SESSION
	}
	for range maxSessions + 1 {
		sh, err := t.m.OpenSession(slot, flags)
		if err != nil {
			return 0, tokenError("C_OpenSession", err)
		}
		t.claimMu.Lock()
		_, taken := t.claimed[sh]
		if !taken {
			t.claimed[sh] = struct{}{}
		}
		t.claimMu.Unlock()
		if !taken {
			return sh, nil
		}
	}
	return 0, fmt.Errorf("%w: C_OpenSession repeats handles that are in use", ErrToken)
}

// closeSession closes a session and gives up its number.
func (t *token) closeSession(sh pkcs11.SessionHandle) {
	// What cannot be closed is gone already.
	_ = t.m.CloseSession(sh)
	t.forgetSession(sh)
}

// forgetSession gives up a session that the module has ended; closing it could hit
// somebody else's new session of the same number.
func (t *token) forgetSession(sh pkcs11.SessionHandle) {
	t.claimMu.Lock()
	delete(t.claimed, sh)
	t.claimMu.Unlock()
}

// login logs the user in unless the process is logged in already.
func (t *token) login(sh pkcs11.SessionHandle, st slotToken) error {
	required := st.Flags&pkcs11.CKF_LOGIN_REQUIRED != 0
	t.loginRequired.Store(required)
	if !required {
		return nil
	}
	if si, err := t.m.GetSessionInfo(sh); err == nil && (si.State == pkcs11.CKS_RO_USER_FUNCTIONS || si.State == pkcs11.CKS_RW_USER_FUNCTIONS) {
		return nil
	}
	if err := pinState(st.Flags); err != nil {
		return fmt.Errorf("%s: %w", t.cfg.tokenName(), err)
	}
	pin := t.cfg.pin.bytes()
	if pin == nil {
		file, err := readPIN(t.cfg.PINFile)
		if err != nil {
			return err
		}
		defer file.Wipe()
		pin = file.pin
	}
	err := t.m.loginUser(sh, pin)
	if isCKR(err, pkcs11.CKR_USER_ALREADY_LOGGED_IN) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("%s: %w", t.cfg.tokenName(), tokenError("C_Login", err))
	}
	t.forget.Add(1)
	t.cfg.Logger.Info("logged in to the token", "token", st.Label, "serial", st.SerialNumber)
	return nil
}

// pinState refuses a login that could do harm or cannot work.
func pinState(flags uint) error {
	switch {
	case flags&pkcs11.CKF_USER_PIN_LOCKED != 0:
		return fmt.Errorf("%w; unlock it with the security officer's PIN and the vendor's tool", ErrTokenLocked)
	case flags&pkcs11.CKF_USER_PIN_INITIALIZED == 0:
		return fmt.Errorf("%w: no user PIN has been set; set one with the vendor's tool", ErrPINIncorrect)
	case flags&pkcs11.CKF_USER_PIN_FINAL_TRY != 0:
		return fmt.Errorf("%w: one more wrong PIN locks the token, so none is tried; log in once with the vendor's tool to reset the count, then check the PIN file", ErrPINIncorrect)
	}
	return nil
}

// readPIN reads the first line of the PIN file; it must be the only one.
func readPIN(path string) (*pinSecret, error) {
	s, err := readPrivate(path, maxPIN, ErrPINFile)
	if err != nil {
		return nil, err
	}
	b := bytes.TrimSuffix(s.Bytes(), []byte("\n"))
	b = bytes.TrimSuffix(b, []byte("\r"))
	if len(b) == 0 || bytes.ContainsAny(b, "\r\n\x00") {
		s.Wipe()
		return nil, fmt.Errorf("%w: %s must hold the PIN and nothing else, on one line", ErrPINFile, path)
	}
	return &pinSecret{s, b}, nil
}

// pinSecret is a PIN in locked memory.
type pinSecret struct {
	*arena.Secret
	pin []byte // view of the secret
}

// lost reports whether err says that the module has ended the session by itself.
func lost(err error) bool {
	return isCKR(err, pkcs11.CKR_SESSION_HANDLE_INVALID, pkcs11.CKR_SESSION_CLOSED, pkcs11.CKR_DEVICE_REMOVED,
		pkcs11.CKR_TOKEN_NOT_PRESENT, pkcs11.CKR_CRYPTOKI_NOT_INITIALIZED)
}

// useLimit is how many KEKs one AES domain key encrypts in one process. SP 800-38D
// allows 2^32 random 96-bit IVs under a key. A domain key sees one use per key version
// and a handful per start, and the store keeps a record for each, so a store would
// need 2^32 records first; what this count stops is a loop gone wrong. It is
// not durable and need not be: half the bound is left for other processes and starts.
const useLimit = 1 << 31

// spend counts n encryptions under a domain key or refuses them.
func (t *token) spend(id DomainKeyID, n int) error {
	t.useMu.Lock()
	defer t.useMu.Unlock()
	if t.uses[id]+uint64(n) > useLimit {
		return fmt.Errorf("%w: %s", ErrDomainKeyUsedUp, id)
	}
	before := t.uses[id]
	t.uses[id] = before + uint64(n)
	if before < useLimit/2 && t.uses[id] >= useLimit/2 {
		t.cfg.Logger.Warn("a domain key has used up half of its encryptions; rotate it", "domain_key", id.String())
	}
	return nil
}

// notices are sentences for the operator about a token's state.
func notices(flags uint) []string {
	var n []string
	for _, f := range []struct {
		flag uint
		text string
	}{
		{pkcs11.CKF_USER_PIN_TO_BE_CHANGED, "the token asks for its user PIN to be changed"},
		{pkcs11.CKF_USER_PIN_COUNT_LOW, "a wrong PIN was tried since the last login"},
		{pkcs11.CKF_WRITE_PROTECTED, "the token is write-protected: no domain key can be created on it"},
		{pkcs11.CKF_ERROR_STATE, "the token has failed its self test and is in its error state"},
	} {
		if flags&f.flag != 0 {
			n = append(n, f.text)
		}
	}
	return n
}
