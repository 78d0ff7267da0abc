//go:build cgo

package hsm

import (
	"encoding/hex"
	"errors"
	"fmt"
	"strings"

	"github.com/miekg/pkcs11"
)

// namedMechanism is a mechanism worth showing.
type namedMechanism struct {
	mechanism uint
	name, use string
}

var mechanismsOfInterest = []namedMechanism{
	{pkcs11.CKM_AES_KEY_GEN, "CKM_AES_KEY_GEN", "makes domain keys"},
	{pkcs11.CKM_AES_GCM, "CKM_AES_GCM", "key-encryption keys, first choice"},
	{pkcs11.CKM_AES_CBC, "CKM_AES_CBC", "key-encryption keys, second choice"},
	{pkcs11.CKM_AES_CBC_PAD, "CKM_AES_CBC_PAD", "key-encryption keys, third choice"},
	{pkcs11.CKM_RSA_PKCS_KEY_PAIR_GEN, "CKM_RSA_PKCS_KEY_PAIR_GEN", "makes domain keys where AES cannot"},
	{pkcs11.CKM_RSA_PKCS_OAEP, "CKM_RSA_PKCS_OAEP", "key-encryption keys, last choice"},
}

var flagNames = []struct {
	flag uint
	name string
}{
	{pkcs11.CKF_HW, "hardware"}, {pkcs11.CKF_ENCRYPT, "encrypt"}, {pkcs11.CKF_DECRYPT, "decrypt"},
	{pkcs11.CKF_GENERATE, "generate"}, {pkcs11.CKF_GENERATE_KEY_PAIR, "generate-pair"},
	{pkcs11.CKF_WRAP, "wrap"}, {pkcs11.CKF_UNWRAP, "unwrap"},
}

// inspectModuleHere makes the report with the module in this process.
func inspectModuleHere(cfg PKCS11Config) (*Report, error) {
	return within(cfg.StartTimeout, "inspecting "+cfg.tokenName(), func() (*Report, error) {
		m, err := openModule(cfg.Module)
		if err != nil {
			return nil, err
		}
		defer m.release()
		r := &Report{Module: cfg.Module}
		if err := inspect(newToken(m, &cfg), r); err != nil {
			r.Problems = append(r.Problems, err.Error())
		}
		return r, nil
	}, func(*Report) {})
}

// inspect fills in the report until something stops it.
func inspect(t *token, r *Report) error {
	if lib, err := t.m.GetInfo(); err == nil {
		r.Library = libraryName(lib)
	}
	all, err := t.list()
	if err != nil {
		return err
	}
	picked, pickErr := t.pick(all)
	for _, st := range all {
		r.Slots = append(r.Slots, slotReport(t.m, st, pickErr == nil && st.slot == picked.slot))
	}
	if pickErr != nil {
		return pickErr
	}
	r.Notices = notices(picked.Flags)
	s := newSession(t, func() {})
	defer s.close()
	if err := s.ensure(); err != nil {
		return err
	}
	r.Login = "ok"
	if picked.Flags&pkcs11.CKF_LOGIN_REQUIRED == 0 {
		r.Login = "not needed"
		r.Notices = append(r.Notices, "the token requires no login: whoever reaches the module can use its keys")
	}
	r.Random = "operating system (the token has no generator)"
	if picked.Flags&pkcs11.CKF_RNG != 0 {
		r.Random = "token and operating system, combined"
		if err := s.random(make([]byte, 32)); err != nil {
			return err
		}
	}
	r.Sessions = sessionLimit(picked.TokenInfo)
	offers, err := s.offers(picked.slot)
	if err != nil {
		return err
	}
	for _, i := range mechanismsOfInterest {
		r.Mechanisms = append(r.Mechanisms, mechanismReport(i, offers))
	}
	d, err := s.discover(picked.slot)
	r.Candidates = d.rows
	if err != nil {
		return err
	}
	if !d.ok {
		return fmt.Errorf("%w: none of the methods above works; enable AES key generation and AES-GCM (or AES-CBC) on the token", ErrMechanism)
	}
	r.Chosen = d.method.String()
	return s.reportDomainKeys(r)
}

func slotReport(m *module, st slotToken, selected bool) SlotReport {
	sr := SlotReport{
		Slot: st.slot, Token: st.Label, Serial: st.SerialNumber, Maker: st.ManufacturerID, Model: st.Model,
		Initialised: st.Flags&pkcs11.CKF_TOKEN_INITIALIZED != 0, Selected: selected,
		Login: st.Flags&pkcs11.CKF_LOGIN_REQUIRED != 0, PIN: "PIN set",
	}
	if si, err := m.GetSlotInfo(st.slot); err == nil {
		sr.Description = strings.TrimRight(si.SlotDescription, " \x00")
	}
	for _, f := range []struct {
		is   bool
		text string
	}{
		{st.Flags&pkcs11.CKF_USER_PIN_INITIALIZED == 0, "no user PIN set"},
		{st.Flags&pkcs11.CKF_USER_PIN_COUNT_LOW != 0, "a wrong PIN was tried"},
		{st.Flags&pkcs11.CKF_USER_PIN_FINAL_TRY != 0, "one PIN try left"},
		{st.Flags&pkcs11.CKF_USER_PIN_LOCKED != 0, "PIN locked"},
	} {
		if f.is {
			sr.PIN = f.text
		}
	}
	return sr
}

func mechanismReport(i namedMechanism, offers map[uint]pkcs11.MechanismInfo) MechanismReport {
	info, ok := offers[i.mechanism]
	m := MechanismReport{Name: i.name, Use: i.use, Offered: ok, MinKey: info.MinKeySize, MaxKey: info.MaxKeySize}
	for _, f := range flagNames {
		if info.Flags&f.flag != 0 {
			m.Flags = append(m.Flags, f.name)
		}
	}
	return m
}

// sessionLimit puts ulMaxSessionCount into words: 0 means no limit and all ones that
// the token does not say. The binding gives the latter as a large number.
func sessionLimit(i pkcs11.TokenInfo) string {
	one := func(n uint) string {
		switch n {
		case 0:
			return "no limit"
		case ckUnavailable:
			return "not told"
		}
		return fmt.Sprint(n)
	}
	return fmt.Sprintf("at most: %s; read-write: %s", one(i.MaxSessionCount), one(i.MaxRwSessionCount))
}

// maxListed bounds the listing of domain keys.
const maxListed = 200

// reportDomainKeys lists keys that carry an ID and a label like ours.
func (s *session) reportDomainKeys(r *Report) error {
	seen := map[DomainKeyID]bool{}
	for _, c := range []struct {
		class uint
		kind  string
	}{{pkcs11.CKO_SECRET_KEY, "AES-256"}, {pkcs11.CKO_PRIVATE_KEY, "RSA"}} {
		found, err := s.findAll([]*pkcs11.Attribute{
			pkcs11.NewAttribute(pkcs11.CKA_CLASS, c.class),
			pkcs11.NewAttribute(pkcs11.CKA_TOKEN, true),
		}, maxListed)
		if err != nil {
			return err
		}
		if len(found) == maxListed {
			r.Notices = append(r.Notices, fmt.Sprintf("the token holds more keys than the %d looked at", maxListed))
		}
		for _, o := range found {
			label, id := s.text(o, pkcs11.CKA_LABEL), s.bytes(o, pkcs11.CKA_ID)
			if len(id) != len(DomainKeyID{}) || !strings.HasPrefix(label, labelPrefix) || seen[DomainKeyID(id)] {
				continue
			}
			seen[DomainKeyID(id)] = true
			row := DomainKeyReport{ID: hex.EncodeToString(id), Label: label, Kind: c.kind}
			if _, err := s.key(DomainKeyID(id)); err != nil {
				if Classify(err) != Fatal {
					return err
				}
				row.Problem = err.Error()
				if errors.Is(err, ErrDuplicateDomainKey) || errors.Is(err, ErrWeakDomainKey) {
					r.Notices = append(r.Notices, "domain key "+row.ID+" cannot be used; see its line")
				}
			}
			r.DomainKeys = append(r.DomainKeys, row)
		}
	}
	return nil
}

// bytes reads an attribute; nil when the token does not tell.
func (s *session) bytes(o pkcs11.ObjectHandle, attribute uint) []byte {
	a, err := s.m.GetAttributeValue(s.sh, o, []*pkcs11.Attribute{pkcs11.NewAttribute(attribute, nil)})
	if err != nil || len(a) != 1 {
		return nil
	}
	return a[0].Value
}

// text reads an attribute as printable text.
func (s *session) text(o pkcs11.ObjectHandle, attribute uint) string {
	return strings.ToValidUTF8(strings.TrimRight(string(s.bytes(o, attribute)), " \x00"), "?")
}
