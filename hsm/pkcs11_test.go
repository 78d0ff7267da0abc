//go:build cgo && linux

package hsm_test

import (
	"bytes"
	"context"
	"errors"
	"os"
	"strings"
	"sync"
	"testing"
	"time"

	"keymill/hsm"
	"keymill/hsm/hsmtest"
)

// Return values of PKCS#11, as the shim is told them.
const (
	ckrGeneralError         = 0x5
	ckrFunctionFailed       = 0x6
	ckrArgumentsBad         = 0x7
	ckrDeviceError          = 0x30
	ckrDeviceRemoved        = 0x32
	ckrEncryptedDataInvalid = 0x40
	ckrKeyHandleInvalid     = 0x60
	ckrMechanismInvalid     = 0x70
	ckrOperationActive      = 0x90
	ckrPINIncorrect         = 0xA0
	ckrPINLocked            = 0xA4
	ckrSessionHandleInvalid = 0xB3
	ckrTokenNotPresent      = 0xE0
	ckrUserNotLoggedIn      = 0x101
	ckrCryptokiNotInit      = 0x190
	ckrVendor               = 0x80000001
)

func openToken(t testing.TB, c hsm.PKCS11Config) hsm.Root {
	t.Helper()
	if inChild {
		c.Child = hsmtest.Child
	}
	r, err := hsm.OpenPKCS11(c)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { r.Close() })
	return r
}

func newDomainKey(t testing.TB, r hsm.Root) hsm.DomainKeyID {
	t.Helper()
	id, err := r.CreateDomainKey(context.Background())
	if err != nil {
		t.Fatal(err)
	}
	return id
}

func TestSoftHSM(t *testing.T) {
	c := hsmtest.SoftHSM(t)
	r := openToken(t, c)
	ctx := context.Background()
	id := newDomainKey(t, r)
	other := newDomainKey(t, r)
	checkBadItems(t, r, id, other)
	checkRandom(t, r)
	if err := r.CheckDomainKey(ctx, hsm.DomainKeyID{1}); !errors.Is(err, hsm.ErrNoDomainKey) {
		t.Errorf("unknown domain key: %v", err)
	}
	info := r.Info()
	if info.Kind != hsm.KindPKCS11 || info.Mechanism != "CKM_AES_GCM, IV ours" || info.Sessions != hsm.DefaultSessions || info.Token != c.TokenLabel {
		t.Errorf("%+v", info)
	}
	wraps := wrapAll(t, r, id, 20)
	r.Close()
	r.Close()
	items := []hsm.Item{{In: wraps[0]}}
	r.Decrypt(ctx, id, items)
	if !errors.Is(items[0].Err, hsm.ErrClosed) {
		t.Errorf("after Close: %v", items[0].Err)
	}
	r = openToken(t, c)
	checkUnwraps(t, r, id, wraps)
	// A second root on the same module: closing one leaves the other alone.
	second := openToken(t, c)
	checkUnwraps(t, second, id, wraps)
	second.Close()
	checkUnwraps(t, r, id, wraps)
}

// What a token lacks or does differently decides the mechanism, and everything works
// with what is left.
func TestMechanismIsChosenByTrial(t *testing.T) {
	const noAESEncryption = hsmtest.NoGCM | hsmtest.NoCBC | hsmtest.NoCBCPad
	for _, c := range []struct {
		name  string
		flags hsmtest.ShimFlag
		want  string
	}{
		{"all there", 0, "CKM_AES_GCM, IV ours"},
		{"forbids objects and values", hsmtest.NoCreate | hsmtest.HideValue | hsmtest.StrictTemplate, "CKM_AES_GCM, IV ours"},
		{"keys must be token objects", hsmtest.NoSessionKeys, "CKM_AES_GCM, IV ours"},
		{"no random numbers", hsmtest.NoRNG, "CKM_AES_GCM, IV ours"},
		{"writes its own IV", hsmtest.OwnIV, "CKM_AES_GCM, IV written by the token"},
		{"wants zeroes as IV", hsmtest.ZeroIVOnly, "CKM_AES_GCM, IV written by the token into zeroes"},
		{"uses one IV for all", hsmtest.IgnoreIV, "CKM_AES_CBC"},
		{"does not check tags", hsmtest.NoTagCheck, "CKM_AES_CBC"},
		{"no GCM", hsmtest.NoGCM, "CKM_AES_CBC"},
		{"CBC with padding only", hsmtest.NoGCM | hsmtest.NoCBC, "CKM_AES_CBC_PAD"},
		{"no AES encryption", noAESEncryption, "CKM_RSA_PKCS_OAEP (SHA-1)"},
		{"no AES at all", hsmtest.NoAES, "CKM_RSA_PKCS_OAEP (SHA-1)"},
	} {
		t.Run(c.name, func(t *testing.T) {
			token := hsmtest.Shim(t)
			token.Flags(c.flags)
			report, err := hsm.Inspect(token.Config)
			if err != nil || !report.OK() || report.Chosen != c.want {
				t.Errorf("Inspect: %v, %+v", err, report)
			}
			r := openToken(t, token.Config)
			if got := r.Info().Mechanism; got != c.want {
				t.Fatalf("uses %s, want %s", got, c.want)
			}
			id, other := newDomainKey(t, r), newDomainKey(t, r)
			if c.flags&hsmtest.NoTagCheck == 0 {
				checkBadItems(t, r, id, other)
			}
			checkRandom(t, r)
			wraps := wrapAll(t, r, id, 3)
			r.Close()
			r = openToken(t, token.Config)
			checkUnwraps(t, r, id, wraps)
			if n := token.Calls(hsmtest.CCreateObject); n != 0 {
				t.Errorf("C_CreateObject was called %d times", n)
			}
		})
	}
}

// A token that gained AES (or lost it) still opens what was made before.
func TestFirmwareUpdateKeepsOldDomainKeys(t *testing.T) {
	token := hsmtest.Shim(t)
	token.Flags(hsmtest.NoAES | hsmtest.NoGCM | hsmtest.NoCBC | hsmtest.NoCBCPad)
	r := openToken(t, token.Config)
	rsa := newDomainKey(t, r)
	rsaWraps := wrapAll(t, r, rsa, 2)
	r.Close()
	token.Flags(hsmtest.NoGCM)
	r = openToken(t, token.Config)
	checkUnwraps(t, r, rsa, rsaWraps)
	checkUnwraps(t, r, rsa, wrapAll(t, r, rsa, 2)) // still RSA: the key is
	aes := newDomainKey(t, r)
	cbcWraps := wrapAll(t, r, aes, 2)
	r.Close()
	token.Flags(0)
	r = openToken(t, token.Config)
	checkUnwraps(t, r, rsa, rsaWraps)
	checkUnwraps(t, r, aes, append(cbcWraps, wrapAll(t, r, aes, 3)[2]))
}

// Start-up says which thing is wrong and what would help.
func TestStartRefusals(t *testing.T) {
	for _, c := range []struct {
		name    string
		prepare func(*testing.T, *hsmtest.Token)
		want    error
		class   hsm.Class
		text    string
		report  bool // Inspect gives a report with this problem, not an error
	}{
		{"module does not exist", func(t *testing.T, k *hsmtest.Token) { k.Config.Module = "/nonexistent.so" }, hsm.ErrModule, hsm.Fatal, "give the path", false},
		{"module is something else", func(t *testing.T, k *hsmtest.Token) { k.Config.Module = k.Config.PINFile }, hsm.ErrModule, hsm.Fatal, "ldd", false},
		{"C_Initialize fails", func(t *testing.T, k *hsmtest.Token) {
			// The function list is only there once the module was loaded.
			if _, err := hsm.Inspect(k.Config); err != nil {
				t.Fatal(err)
			}
			k.Break(hsmtest.CInitialize, hsmtest.ShimFault{Count: 100, RV: ckrGeneralError})
		}, hsm.ErrModule, hsm.Fatal, "C_Initialize", false},
		{"token missing", func(t *testing.T, k *hsmtest.Token) { k.Config.TokenLabel = "other" }, hsm.ErrTokenMissing, hsm.NewSession, `"keymill-`, true},
		{"serial does not match", func(t *testing.T, k *hsmtest.Token) { k.Config.TokenSerial = "1" }, hsm.ErrTokenMissing, hsm.NewSession, "serial", true},
		{"label twice", func(t *testing.T, k *hsmtest.Token) { k.AddToken(t, k.Config.TokenLabel) }, hsm.ErrTokenMissing, hsm.NewSession, "serial number", true},
		{"HSM unplugged", func(t *testing.T, k *hsmtest.Token) { k.Flags(hsmtest.Removed) }, hsm.ErrTokenMissing, hsm.NewSession, "connected", true},
		{"locked", func(t *testing.T, k *hsmtest.Token) { k.Flags(hsmtest.PINLocked) }, hsm.ErrTokenLocked, hsm.Fatal, "security officer", true},
		{"locks during login", func(t *testing.T, k *hsmtest.Token) {
			k.Break(hsmtest.CLogin, hsmtest.ShimFault{Count: 100, RV: ckrPINLocked})
		}, hsm.ErrTokenLocked, hsm.Fatal, "security officer", true},
		{"one PIN try left", func(t *testing.T, k *hsmtest.Token) { k.Flags(hsmtest.FinalTry) }, hsm.ErrPINIncorrect, hsm.Fatal, "one more wrong PIN", true},
		{"wrong PIN", func(t *testing.T, k *hsmtest.Token) { k.WritePIN(t, "0000000\n") }, hsm.ErrPINIncorrect, hsm.Fatal, "correct the PIN file", true},
		{"PIN file missing", func(t *testing.T, k *hsmtest.Token) { k.Config.PINFile += "x" }, hsm.ErrPINFile, hsm.Fatal, "no such file", true},
		{"PIN file open to others", func(t *testing.T, k *hsmtest.Token) {
			if err := os.Chmod(k.Config.PINFile, 0o644); err != nil {
				t.Fatal(err)
			}
		}, hsm.ErrPINFile, hsm.Fatal, "chmod 600", true},
		{"PIN file empty", func(t *testing.T, k *hsmtest.Token) { k.WritePIN(t, "\n") }, hsm.ErrPINFile, hsm.Fatal, "one line", true},
		{"PIN file with more in it", func(t *testing.T, k *hsmtest.Token) { k.WritePIN(t, k.PIN()+"\nand more\n") }, hsm.ErrPINFile, hsm.Fatal, "one line", true},
		{"no usable mechanism", func(t *testing.T, k *hsmtest.Token) {
			k.Flags(hsmtest.NoGCM | hsmtest.NoCBC | hsmtest.NoCBCPad | hsmtest.NoRSA)
		}, hsm.ErrMechanism, hsm.Fatal, "enable AES", true},
		{"hangs", func(t *testing.T, k *hsmtest.Token) {
			k.Config.StartTimeout = 50 * time.Millisecond
			k.Break(hsmtest.CLogin, hsmtest.ShimFault{Count: 100, Hang: true, RV: ckrGeneralError})
			t.Cleanup(func() { k.Release(hsmtest.CLogin) })
		}, hsm.ErrTimeout, hsm.Retry, "longer than 50ms", false},
	} {
		t.Run(c.name, func(t *testing.T) {
			token := hsmtest.Shim(t)
			c.prepare(t, token)
			logins := token.Calls(hsmtest.CLogin)
			r, err := hsm.OpenPKCS11(token.Config)
			if err == nil {
				r.Close()
			}
			if !errors.Is(err, c.want) || !strings.Contains(err.Error(), c.text) || hsm.Classify(err) != c.class {
				t.Errorf("OpenPKCS11: %v (%v), want %v (%v) with %q", err, hsm.Classify(err), c.want, c.class, c.text)
			}
			if n := token.Calls(hsmtest.CLogin) - logins; n > 1 {
				t.Errorf("tried to log in %d times", n)
			}
			if err != nil && strings.Contains(err.Error(), token.PIN()) {
				t.Error("the error contains the PIN")
			}
			report, err := hsm.Inspect(token.Config)
			if !c.report {
				if !errors.Is(err, c.want) {
					t.Errorf("Inspect: %v", err)
				}
				return
			}
			if err != nil || report.OK() || !strings.Contains(report.Problems[0], c.want.Error()) {
				t.Fatalf("Inspect: %v, %+v", err, report)
			}
			var text strings.Builder
			if _, err := report.WriteTo(&text); err != nil || !strings.Contains(text.String(), c.text) || strings.Contains(text.String(), token.PIN()) {
				t.Errorf("report:\n%s", text.String())
			}
		})
	}
}

func TestReport(t *testing.T) {
	token := hsmtest.Shim(t)
	r := openToken(t, token.Config)
	id := newDomainKey(t, r)
	report, err := hsm.Inspect(token.Config)
	if err != nil {
		t.Fatal(err)
	}
	var b strings.Builder
	if _, err := report.WriteTo(&b); err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{
		token.Config.TokenLabel, "SoftHSM", "login", "ok", "* CKM_AES_GCM, IV ours", "not needed", id.String(), "keymill domain key 2",
		"CKM_RSA_PKCS_OAEP", "encrypt decrypt", "The token can be used",
	} {
		if !strings.Contains(b.String(), want) {
			t.Errorf("report lacks %q", want)
		}
	}
	if strings.Contains(b.String(), token.PIN()) {
		t.Error("the report contains the PIN")
	}
	if t.Failed() {
		t.Log(b.String())
	}
}

// The fault table: one row for each way a call into the module breaks while a root is
// in use.
func TestTokenFaults(t *testing.T) {
	type op uint8
	const (
		wrap op = iota
		unwrap
		random
		create
		check
	)
	names := [...]string{"wrap", "unwrap", "random", "create", "check"}
	for _, c := range []struct {
		name  string
		op    op
		fn    hsmtest.ShimFunc
		fault hsmtest.ShimFault
		want  error     // nil: the pool repairs it and the caller sees nothing
		class hsm.Class // of want
		after bool      // the next call succeeds
	}{
		// A session that is gone is replaced without the caller noticing.
		{"session gone", wrap, hsmtest.CEncryptInit, hsmtest.ShimFault{Count: 1, RV: ckrSessionHandleInvalid}, nil, 0, true},
		{"session gone", unwrap, hsmtest.CDecryptInit, hsmtest.ShimFault{Count: 1, RV: ckrSessionHandleInvalid}, nil, 0, true},
		{"session gone", random, hsmtest.CGenerateRandom, hsmtest.ShimFault{Count: 1, RV: ckrSessionHandleInvalid}, nil, 0, true},
		{"session gone", create, hsmtest.CGenerateKey, hsmtest.ShimFault{Count: 1, RV: ckrSessionHandleInvalid}, nil, 0, true},
		{"session gone", check, hsmtest.CFindInit, hsmtest.ShimFault{Count: 1, RV: ckrSessionHandleInvalid}, nil, 0, true},
		{"session gone in the length query", wrap, hsmtest.CEncrypt, hsmtest.ShimFault{Count: 1, RV: ckrSessionHandleInvalid}, nil, 0, true},
		{"session gone after encryption", wrap, hsmtest.CEncrypt, hsmtest.ShimFault{Skip: 1, Count: 1, RV: ckrSessionHandleInvalid, TookEffect: true}, nil, 0, true},
		{"login gone", wrap, hsmtest.CEncryptInit, hsmtest.ShimFault{Count: 1, RV: ckrUserNotLoggedIn}, nil, 0, true},
		{"key handle gone", unwrap, hsmtest.CDecryptInit, hsmtest.ShimFault{Count: 1, RV: ckrKeyHandleInvalid}, nil, 0, true},
		{"operation left active", wrap, hsmtest.CEncryptInit, hsmtest.ShimFault{Count: 1, RV: ckrOperationActive}, nil, 0, true},
		{"device hiccup", wrap, hsmtest.CEncryptInit, hsmtest.ShimFault{Count: 1, RV: ckrDeviceError}, nil, 0, true},
		{"device hiccup after encryption", wrap, hsmtest.CEncrypt, hsmtest.ShimFault{Skip: 1, Count: 1, RV: ckrDeviceError, TookEffect: true}, nil, 0, true},
		{"device hiccup while verifying", wrap, hsmtest.CDecrypt, hsmtest.ShimFault{Count: 1, RV: ckrGeneralError}, nil, 0, true},
		{"general error once is no damage", unwrap, hsmtest.CDecrypt, hsmtest.ShimFault{Count: 1, RV: ckrGeneralError}, nil, 0, true},
		{"function failed once is no damage", unwrap, hsmtest.CDecrypt, hsmtest.ShimFault{Skip: 1, Count: 1, RV: ckrFunctionFailed}, nil, 0, true},
		{"library finalised", unwrap, hsmtest.CDecryptInit, hsmtest.ShimFault{Count: 1, RV: ckrCryptokiNotInit}, nil, 0, true},
		{"token pulled and put back", unwrap, hsmtest.CDecryptInit, hsmtest.ShimFault{Count: 1, RV: ckrDeviceRemoved}, nil, 0, true},
		{"key made, answer lost", create, hsmtest.CGenerateKey, hsmtest.ShimFault{Count: 1, RV: ckrDeviceError, TookEffect: true}, nil, 0, true},

		// What lasts is reported, and is over when it is over.
		{"session gone again and again", wrap, hsmtest.CEncryptInit, hsmtest.ShimFault{Count: 2, RV: ckrSessionHandleInvalid}, hsm.ErrSession, hsm.NewSession, true},
		{"device failing", wrap, hsmtest.CEncryptInit, hsmtest.ShimFault{Count: 2, RV: ckrDeviceError}, hsm.ErrDevice, hsm.Retry, true},
		{"device failing", unwrap, hsmtest.CDecryptInit, hsmtest.ShimFault{Count: 2, RV: ckrDeviceError}, hsm.ErrDevice, hsm.Retry, true},
		{"device failing", random, hsmtest.CGenerateRandom, hsmtest.ShimFault{Count: 2, RV: ckrDeviceError}, hsm.ErrDevice, hsm.Retry, true},
		{"device failing", create, hsmtest.CGenerateKey, hsmtest.ShimFault{Count: 2, RV: ckrDeviceError}, hsm.ErrDevice, hsm.Retry, true},
		{"every decryption fails", unwrap, hsmtest.CDecrypt, hsmtest.ShimFault{Count: 6, RV: ckrGeneralError}, hsm.ErrDevice, hsm.Retry, true},
		{"token not present", check, hsmtest.CFindInit, hsmtest.ShimFault{Count: 2, RV: ckrTokenNotPresent}, hsm.ErrTokenMissing, hsm.NewSession, true},

		// What no repetition mends is said at once.
		{"mechanism withdrawn", wrap, hsmtest.CEncryptInit, hsmtest.ShimFault{Count: 1, RV: ckrMechanismInvalid}, hsm.ErrMechanism, hsm.Fatal, true},
		{"damaged, says the token", unwrap, hsmtest.CDecrypt, hsmtest.ShimFault{Count: 1, RV: ckrEncryptedDataInvalid}, hsm.ErrBadWrapped, hsm.Fatal, true},
		{"damaged, it says in other words", unwrap, hsmtest.CDecrypt, hsmtest.ShimFault{Count: 2, RV: ckrArgumentsBad}, hsm.ErrBadWrapped, hsm.Fatal, true},
		{"vendor's own error", wrap, hsmtest.CEncryptInit, hsmtest.ShimFault{Count: 1, RV: ckrVendor}, hsm.ErrToken, hsm.Fatal, true},
		{"PIN changed meanwhile", wrap, hsmtest.CLogin, hsmtest.ShimFault{Count: 1, RV: ckrPINIncorrect}, hsm.ErrPINIncorrect, hsm.Fatal, false},
		{"PIN locked meanwhile", wrap, hsmtest.CLogin, hsmtest.ShimFault{Count: 1, RV: ckrPINLocked}, hsm.ErrTokenLocked, hsm.Fatal, false},
	} {
		t.Run(names[c.op]+"/"+c.name, func(t *testing.T) {
			ctx := context.Background()
			token := hsmtest.Shim(t)
			token.Config.Sessions = 1
			r := openToken(t, token.Config)
			id := newDomainKey(t, r)
			wraps := wrapAll(t, r, id, 1)
			if c.fn == hsmtest.CLogin {
				token.Reset()
			}
			logins := token.Calls(hsmtest.CLogin)
			token.Break(c.fn, c.fault)
			try := func() error {
				switch c.op {
				case wrap:
					items := []hsm.Item{{In: kek(0)}}
					r.Encrypt(ctx, id, items)
					if items[0].Err == nil {
						checkUnwraps(t, r, id, [][]byte{items[0].Out})
					}
					return items[0].Err
				case unwrap:
					items := []hsm.Item{{In: wraps[0]}}
					r.Decrypt(ctx, id, items)
					if items[0].Err == nil && !bytes.Equal(items[0].Out, kek(0)) {
						t.Error("another KEK came back")
					}
					return items[0].Err
				case random:
					buf := make([]byte, 32)
					err := r.Random(ctx, [][]byte{buf})
					if (err != nil) != bytes.Equal(buf, make([]byte, 32)) {
						t.Errorf("%v, yet the buffer is %x", err, buf)
					}
					return err
				case create:
					made, err := r.CreateDomainKey(ctx)
					if err == nil {
						checkUnwraps(t, r, made, wrapAll(t, r, made, 1))
					}
					return err
				default:
					return r.CheckDomainKey(ctx, id)
				}
			}
			err := try()
			if c.want == nil && err != nil || !errors.Is(err, c.want) {
				t.Errorf("got %v, want %v", err, c.want)
			}
			if err != nil && hsm.Classify(err) != c.class {
				t.Errorf("%v is classified %v, want %v", err, hsm.Classify(err), c.class)
			}
			err = try()
			if (err == nil) != c.after {
				t.Errorf("the next call: %v", err)
			}
			if !c.after {
				if !errors.Is(err, c.want) {
					t.Errorf("the next call: %v", err)
				}
				if n := token.Calls(hsmtest.CLogin) - logins; n != 1 {
					t.Errorf("a refused PIN was tried %d times", n)
				}
			}
			if n := token.Collisions(); n != 0 {
				t.Errorf("two threads in one session, %d times", n)
			}
		})
	}
}

// A token reset takes all sessions and the login; calls under way at that moment
// notice nothing. The shim gives out session numbers again at once.
func TestTokenReset(t *testing.T) {
	for _, what := range []string{"reset", "logout"} {
		t.Run(what, func(t *testing.T) {
			token := hsmtest.Shim(t)
			r := openToken(t, token.Config)
			id := newDomainKey(t, r)
			wraps := wrapAll(t, r, id, 40)
			logins := token.Calls(hsmtest.CLogin)
			const rounds = 20
			for range rounds {
				var wg sync.WaitGroup
				for g := range 4 {
					wg.Go(func() {
						if what == "reset" && g == 2 {
							token.Reset()
						} else if g == 2 {
							token.Logout()
						}
						items := make([]hsm.Item, len(wraps))
						for i := range items {
							items[i].In = wraps[i]
						}
						r.Decrypt(context.Background(), id, items)
						for i, it := range items {
							// Another worker may lose its fresh session to the
							// same event; that may surface, as something to repeat.
							if it.Err != nil && hsm.Classify(it.Err) == hsm.Fatal || it.Err == nil && !bytes.Equal(it.Out, kek(i)) {
								t.Errorf("item %d: %v", i, it.Err)
							}
						}
					})
				}
				wg.Wait()
				checkUnwraps(t, r, id, wraps)
			}
			if n := token.Calls(hsmtest.CLogin) - logins; n < rounds {
				t.Errorf("%d logins after %d rounds", n, rounds)
			}
			if n := token.Collisions(); n != 0 {
				t.Errorf("two threads in one session, %d times", n)
			}
		})
	}
}
