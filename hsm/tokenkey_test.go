//go:build cgo && linux

package hsm_test

import (
	"bytes"
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha256"
	"crypto/x509"
	"errors"
	"fmt"
	"math/big"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"keymill/hsm"
	"keymill/hsm/hsmtest"
)

// openKeys opens a token for keys of users, with the PIN of its directory.
func openKeys(t testing.TB, d *hsmtest.SoftHSMDir) hsm.TokenKeys {
	t.Helper()
	if inChild {
		d.Config.Child = hsmtest.Child
	}
	config := d.Config
	config.PINFile = "" // not looked at
	k, err := hsm.OpenToken(config, []byte(d.PIN()))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { k.Close() })
	return k
}

func newTokenKey(t testing.TB, k hsm.TokenKeys, spec hsm.TokenKeySpec) (id hsm.TokenKeyID, public any) {
	t.Helper()
	id = hsm.NewTokenKeyID()
	der, err := k.GenerateKey(context.Background(), id, spec, "arn:aws:kms:us-east-1:000000000000:key/test")
	if err != nil {
		t.Fatal(err)
	}
	if spec.Pair() {
		if public, err = x509.ParsePKIXPublicKey(der); err != nil {
			t.Fatal(err)
		}
	} else if der != nil {
		t.Errorf("%v has a public key", spec)
	}
	return id, public
}

// use does one operation.
func use(k hsm.TokenKeys, id hsm.TokenKeyID, m hsm.TokenMech, in, aad []byte) ([]byte, error) {
	ops := []hsm.TokenOp{{Key: id, Mech: m, In: in, AAD: aad}}
	k.Do(context.Background(), ops)
	return ops[0].Out, ops[0].Err
}

func mustUse(t testing.TB, k hsm.TokenKeys, id hsm.TokenKeyID, m hsm.TokenMech, in, aad []byte) []byte {
	t.Helper()
	out, err := use(k, id, m, in, aad)
	if err != nil {
		t.Fatalf("mechanism %d: %v", m, err)
	}
	return out
}

// Keys in a token in a process of its own are as those in this one.
func TestTokenKeysInChild(t *testing.T) {
	inChild = true
	defer func() { inChild = false }()
	for name, test := range map[string]func(*testing.T){
		"Seal": TestTokenSeal, "Kinds": TestTokenKinds, "Refusals": TestTokenRefusals, "Gone": TestTokenGone,
		"BesideRoot": TestTokenBesideRoot, "Reset": TestTokenKeysReset, "Destroy": TestTokenDestroy, "Weak": TestTokenWeak, "Self": TestTokenSelfTest,
	} {
		t.Run(name, test)
	}
}

// What is sealed opens under its key and associated data only; one bad operation of a
// batch fails alone.
func TestTokenSeal(t *testing.T) {
	d := hsmtest.NewSoftHSMDir(t)
	k := openKeys(t, d)
	id, _ := newTokenKey(t, k, hsm.TokenAES256)
	other, _ := newTokenKey(t, k, hsm.TokenAES256)
	aad := bytes.Repeat([]byte{1}, 32)
	var ops []hsm.TokenOp
	for _, n := range []int{1, 32, 4096, hsm.MaxTokenInput - hsm.TokenSealOverhead} {
		ops = append(ops, hsm.TokenOp{Key: id, Mech: hsm.TokenSeal, In: bytes.Repeat([]byte{byte(n)}, n), AAD: aad})
	}
	ops = append(ops, hsm.TokenOp{Key: id, Mech: hsm.TokenSeal, In: ops[1].In, AAD: aad}) // the same again
	k.Do(context.Background(), ops)
	for i, op := range ops {
		if op.Err != nil {
			t.Fatalf("op %d: %v", i, op.Err)
		}
		if n := len(op.Out) - len(op.In); n < hsm.TokenSealMinimum || n > hsm.TokenSealOverhead {
			t.Errorf("op %d: %d bytes longer", i, n)
		}
		if back := mustUse(t, k, id, hsm.TokenOpen, op.Out, aad); !bytes.Equal(back, op.In) {
			t.Errorf("op %d opens to something else", i)
		}
	}
	if bytes.Equal(ops[1].Out, ops[4].Out) {
		t.Error("one plaintext was sealed twice alike")
	}
	sealed := ops[1].Out
	var bad []hsm.TokenOp
	for i := range sealed {
		b := bytes.Clone(sealed)
		b[i] ^= 0x20
		bad = append(bad, hsm.TokenOp{Key: id, Mech: hsm.TokenOpen, In: b, AAD: aad})
	}
	for _, n := range []int{0, 1, 2, 13, 29, len(sealed) - 1} {
		bad = append(bad, hsm.TokenOp{Key: id, Mech: hsm.TokenOpen, In: sealed[:n], AAD: aad})
	}
	bad = append(bad, hsm.TokenOp{Key: id, Mech: hsm.TokenOpen, In: sealed, AAD: aad[1:]},
		hsm.TokenOp{Key: id, Mech: hsm.TokenOpen, In: sealed}, hsm.TokenOp{Key: other, Mech: hsm.TokenOpen, In: sealed, AAD: aad},
		hsm.TokenOp{Key: id, Mech: hsm.TokenOpen, In: make([]byte, hsm.MaxTokenInput+1), AAD: aad},
		hsm.TokenOp{Key: id, Mech: hsm.TokenOpen, In: sealed, AAD: aad}) // the last one is good
	k.Do(context.Background(), bad)
	for i, op := range bad[:len(bad)-1] {
		if !errors.Is(op.Err, hsm.ErrBadCiphertext) || op.Out != nil {
			t.Errorf("bad op %d: %v", i, op.Err)
		}
	}
	if last := bad[len(bad)-1]; last.Err != nil || !bytes.Equal(last.Out, ops[1].In) {
		t.Errorf("a good one among bad ones: %v", last.Err)
	}
	for i, op := range []hsm.TokenOp{
		{Mech: 0}, {Mech: 99, In: sealed}, {Mech: hsm.TokenSeal, In: make([]byte, hsm.MaxTokenInput)}, {Mech: hsm.TokenSeal, AAD: make([]byte, hsm.MaxTokenAAD+1)},
		{Mech: hsm.TokenECDSA, In: sealed[:31]}, {Mech: hsm.TokenHMACSHA256, In: sealed, AAD: aad}, {Mech: hsm.TokenOAEPSHA1, In: sealed[:30]},
	} {
		if _, err := use(k, id, op.Mech, op.In, op.AAD); !errors.Is(err, hsm.ErrTokenInput) {
			t.Errorf("malformed op %d: %v", i, err)
		}
	}
	if _, err := use(k, id, hsm.TokenECDSA, kek(0), nil); err == nil {
		t.Error("a symmetric key signs")
	}
	buf := [][]byte{make([]byte, 32), make([]byte, 32)}
	if err := k.Random(context.Background(), buf); err != nil || bytes.Equal(buf[0], buf[1]) {
		t.Errorf("random: %v", err)
	}

	// The token and another program's view of it outlive us.
	if err := k.Close(); err != nil {
		t.Error(err)
	}
	k = openKeys(t, d)
	if back := mustUse(t, k, id, hsm.TokenOpen, sealed, aad); !bytes.Equal(back, ops[1].In) {
		t.Error("after a restart it opens to something else")
	}
	if err := k.Check(context.Background(), id); err != nil {
		t.Error(err)
	}
}

// Every kind of key that the token holds does what it is for.
func TestTokenKinds(t *testing.T) {
	k := openKeys(t, hsmtest.NewSoftHSMDir(t))
	info := k.Info()
	digest := sha256.Sum256([]byte("message"))
	for _, c := range []struct {
		spec hsm.TokenKeySpec
		m    hsm.TokenMech
		in   []byte
		size int
	}{
		{hsm.TokenHMAC224, hsm.TokenHMACSHA224, []byte("m"), 28}, {hsm.TokenHMAC256, hsm.TokenHMACSHA256, []byte("m"), 32},
		{hsm.TokenHMAC384, hsm.TokenHMACSHA384, []byte("m"), 48}, {hsm.TokenHMAC512, hsm.TokenHMACSHA512, make([]byte, 4096), 64},
		{hsm.TokenP256, hsm.TokenECDSA, digest[:], 64}, {hsm.TokenP384, hsm.TokenECDSA, make([]byte, 48), 96}, {hsm.TokenP521, hsm.TokenECDSA, make([]byte, 64), 132},
		{hsm.TokenRSA2048Sign, hsm.TokenPKCS1SHA256, digest[:], 256}, {hsm.TokenRSA2048Sign, hsm.TokenPSSSHA512, make([]byte, 64), 256},
		{hsm.TokenRSA3072Sign, hsm.TokenPKCS1SHA384, make([]byte, 48), 384},
	} {
		if !info.Holds(c.spec) {
			t.Errorf("SoftHSM2 has no %v", c.spec)
			continue
		}
		id, public := newTokenKey(t, k, c.spec)
		out := mustUse(t, k, id, c.m, c.in, nil)
		if len(out) != c.size {
			t.Errorf("%v: %d bytes", c.spec, len(out))
		}
		ok := true
		switch pub := public.(type) {
		case *ecdsa.PublicKey:
			half := len(out) / 2
			ok = ecdsa.Verify(pub, c.in, new(big.Int).SetBytes(out[:half]), new(big.Int).SetBytes(out[half:]))
		case *rsa.PublicKey:
			switch c.m {
			case hsm.TokenPKCS1SHA256:
				ok = rsa.VerifyPKCS1v15(pub, crypto.SHA256, c.in, out) == nil
			case hsm.TokenPKCS1SHA384:
				ok = rsa.VerifyPKCS1v15(pub, crypto.SHA384, c.in, out) == nil
			default:
				ok = rsa.VerifyPSS(pub, crypto.SHA512, c.in, out, &rsa.PSSOptions{SaltLength: 64}) == nil
			}
		default:
			ok = bytes.Equal(out, mustUse(t, k, id, c.m, c.in, nil))
		}
		if !ok {
			t.Errorf("%v: what it made does not verify", c.spec)
		}
		if _, err := use(k, id, hsm.TokenSeal, []byte("x"), nil); err == nil {
			t.Errorf("%v encrypts", c.spec)
		}
	}

	// SoftHSM2 has OAEP with SHA-1 only, and says so when it is used: the key is not made.
	id := hsm.NewTokenKeyID()
	_, err := k.GenerateKey(context.Background(), id, hsm.TokenRSA2048Decrypt, "x")
	if err == nil {
		return // a later SoftHSM2
	}
	if !errors.Is(err, hsm.ErrMechanism) || !strings.Contains(err.Error(), "OAEP") {
		t.Errorf("RSA for decryption: %v", err)
	}
	if err := k.Check(context.Background(), id); !errors.Is(err, hsm.ErrNoTokenKey) {
		t.Errorf("what was not proved is left behind: %v", err)
	}
}

// How opening fails, and what a caller can tell from it.
func TestTokenRefusals(t *testing.T) {
	token := hsmtest.Shim(t)
	if inChild {
		token.Config.Child = hsmtest.Child
	}
	for _, c := range []struct {
		name   string
		change func(*hsm.PKCS11Config)
		flags  hsmtest.ShimFlag
		pin    string
		err    error
		logins int
	}{
		{"wrong PIN", nil, 0, "not it", hsm.ErrPINIncorrect, 1},
		{"no PIN", nil, 0, "", hsm.ErrPINIncorrect, 0},
		{"long PIN", nil, 0, strings.Repeat("1", 2000), hsm.ErrPINIncorrect, 0},
		{"no such token", func(c *hsm.PKCS11Config) { c.TokenLabel = "another" }, 0, token.PIN(), hsm.ErrTokenMissing, 0},
		{"removed", nil, hsmtest.Removed, token.PIN(), hsm.ErrTokenMissing, 0},
		{"locked", nil, hsmtest.PINLocked, token.PIN(), hsm.ErrTokenLocked, 0},
		{"last try", nil, hsmtest.FinalTry, token.PIN(), hsm.ErrPINIncorrect, 0},
		{"no module", func(c *hsm.PKCS11Config) { c.Module = "/nonexistent.so" }, 0, token.PIN(), hsm.ErrModule, 0},
		{"no label", func(c *hsm.PKCS11Config) { c.TokenLabel = "" }, 0, token.PIN(), nil, 0},
	} {
		config := token.Config
		if c.change != nil {
			c.change(&config)
		}
		token.Flags(c.flags)
		before := token.Calls(hsmtest.CLogin)
		pin := []byte(c.pin)
		k, err := hsm.OpenToken(config, pin)
		if err == nil {
			k.Close()
		}
		if err == nil || c.err != nil && !errors.Is(err, c.err) {
			t.Errorf("%s: %v, want %v", c.name, err, c.err)
		}
		if n := token.Calls(hsmtest.CLogin) - before; n != c.logins {
			t.Errorf("%s: %d logins, want %d", c.name, n, c.logins)
		}
		if len(bytes.Trim(pin, "\x00")) > 0 {
			t.Errorf("%s: the PIN was not wiped", c.name)
		}
	}
}

// A token that goes away makes operations fail with ErrTokenMissing, and they work again
// when it is back: after a new login, with handles found anew.
func TestTokenGone(t *testing.T) {
	ctx := context.Background()
	token := hsmtest.Shim(t)
	k := openKeys(t, token.SoftHSMDir)
	id, _ := newTokenKey(t, k, hsm.TokenAES256)
	sealed := mustUse(t, k, id, hsm.TokenSeal, kek(0), nil)
	for range 2 {
		token.Flags(hsmtest.Removed)
		ops := make([]hsm.TokenOp, 20)
		for i := range ops {
			ops[i] = hsm.TokenOp{Key: id, Mech: hsm.TokenOpen, In: sealed}
		}
		k.Do(ctx, ops)
		for i, op := range ops {
			if !errors.Is(op.Err, hsm.ErrTokenMissing) || hsm.Classify(op.Err) == hsm.Fatal || op.Out != nil {
				t.Fatalf("op %d on a token that is away: %v", i, op.Err)
			}
		}
		if err := k.Check(ctx, id); !errors.Is(err, hsm.ErrTokenMissing) {
			t.Errorf("Check: %v", err)
		}
		if err := k.Destroy(ctx, id); !errors.Is(err, hsm.ErrTokenMissing) {
			t.Errorf("Destroy: %v", err)
		}
		if _, err := k.GenerateKey(ctx, hsm.NewTokenKeyID(), hsm.TokenAES256, "x"); !errors.Is(err, hsm.ErrTokenMissing) {
			t.Errorf("GenerateKey: %v", err)
		}
		if err := k.Random(ctx, [][]byte{make([]byte, 8)}); !errors.Is(err, hsm.ErrTokenMissing) {
			t.Errorf("Random: %v", err)
		}
		token.Flags(0)
		token.Reset() // what was plugged in again has no sessions of ours
		for range 20 {
			if out := mustUse(t, k, id, hsm.TokenOpen, sealed, nil); !bytes.Equal(out, kek(0)) {
				t.Fatal("a wrong answer")
			}
		}
	}
	// A PIN that was changed meanwhile is tried once.
	token.Flags(hsmtest.PINLocked)
	token.Reset()
	before := token.Calls(hsmtest.CLogin)
	for range 3 {
		if _, err := use(k, id, hsm.TokenOpen, sealed, nil); !errors.Is(err, hsm.ErrTokenLocked) || hsm.Classify(err) != hsm.Fatal {
			t.Errorf("locked: %v", err)
		}
	}
	if n := token.Calls(hsmtest.CLogin) - before; n != 0 {
		t.Errorf("%d logins on a locked token", n)
	}
}

// Resets and lost logins in the middle of the work are not noticed.
func TestTokenKeysReset(t *testing.T) {
	token := hsmtest.Shim(t)
	token.Config.Sessions = 4
	k := openKeys(t, token.SoftHSMDir)
	var ids []hsm.TokenKeyID
	var sealed [][]byte
	for i := range 6 {
		id, _ := newTokenKey(t, k, hsm.TokenAES256)
		ids, sealed = append(ids, id), append(sealed, mustUse(t, k, id, hsm.TokenSeal, kek(i), nil))
	}
	stop := make(chan struct{})
	var wg sync.WaitGroup
	for g := range 4 {
		wg.Go(func() {
			for i := g; ; i++ {
				select {
				case <-stop:
					return
				default:
				}
				n := i % len(ids)
				ops := []hsm.TokenOp{{Key: ids[n], Mech: hsm.TokenOpen, In: sealed[n]}, {Key: ids[n], Mech: hsm.TokenSeal, In: kek(n)}}
				k.Do(context.Background(), ops)
				if ops[0].Err == nil && !bytes.Equal(ops[0].Out, kek(n)) {
					t.Error("a wrong answer")
				}
				for _, op := range ops {
					// Two resets may hit one operation.
					if op.Err != nil && hsm.Classify(op.Err) == hsm.Fatal {
						t.Error(op.Err)
					}
				}
			}
		})
	}
	for i := range 10 {
		before := token.Calls(hsmtest.CDecrypt)
		eventually(t, "work is done", func() bool { return token.Calls(hsmtest.CDecrypt) > before+20 })
		if i%2 == 0 {
			token.Reset()
		} else {
			token.Logout()
		}
	}
	close(stop)
	wg.Wait()
	for n := range ids {
		if out := mustUse(t, k, ids[n], hsm.TokenOpen, sealed[n], nil); !bytes.Equal(out, kek(n)) {
			t.Error("a wrong answer")
		}
	}
	if n := token.Collisions(); n != 0 {
		t.Errorf("two threads in one session, %d times", n)
	}
}

// A destroyed key is gone with all its objects, at once and for every session; an ID is
// used once; what is no key of ours is not touched.
func TestTokenDestroy(t *testing.T) {
	ctx := context.Background()
	d := hsmtest.NewSoftHSMDir(t)
	k := openKeys(t, d)
	id, _ := newTokenKey(t, k, hsm.TokenP256)
	keep, _ := newTokenKey(t, k, hsm.TokenAES256)
	sealed := mustUse(t, k, keep, hsm.TokenSeal, kek(0), nil)
	ops := make([]hsm.TokenOp, 64)
	for i := range ops {
		ops[i] = hsm.TokenOp{Key: id, Mech: hsm.TokenECDSA, In: kek(i)}
	}
	k.Do(ctx, ops) // all sessions know it now
	if _, err := k.GenerateKey(ctx, id, hsm.TokenAES256, "x"); !errors.Is(err, hsm.ErrDuplicateTokenKey) {
		t.Errorf("the same ID again: %v", err)
	}
	for range 2 {
		if err := k.Destroy(ctx, id); err != nil {
			t.Error(err)
		}
	}
	if err := k.Check(ctx, id); !errors.Is(err, hsm.ErrNoTokenKey) || hsm.Classify(err) != hsm.Fatal {
		t.Errorf("Check: %v", err)
	}
	k.Do(ctx, ops)
	for i, op := range ops {
		if !errors.Is(op.Err, hsm.ErrNoTokenKey) {
			t.Errorf("op %d with a destroyed key: %v", i, op.Err)
		}
	}
	if out := mustUse(t, k, keep, hsm.TokenOpen, sealed, nil); !bytes.Equal(out, kek(0)) {
		t.Error("another key was hit")
	}
	for _, bad := range []hsm.TokenKeySpec{0, 200} {
		if _, err := k.GenerateKey(ctx, hsm.NewTokenKeyID(), bad, "x"); !errors.Is(err, hsm.ErrMechanism) {
			t.Errorf("spec %d: %v", bad, err)
		}
	}
	if _, err := k.GenerateKey(ctx, hsm.NewTokenKeyID(), hsm.TokenAES256, strings.Repeat("x", 256)); !errors.Is(err, hsm.ErrTokenInput) {
		t.Errorf("a long label: %v", err)
	}

	// A root of trust on the same token keeps its domain key.
	root := openToken(t, d.Config)
	domain := newDomainKey(t, root)
	if err := k.Destroy(ctx, hsm.TokenKeyID(domain)); err == nil {
		t.Error("a domain key was destroyed as if it were a user's")
	}
	if err := root.CheckDomainKey(ctx, domain); err != nil {
		t.Error(err)
	}
	k.Close()
	if _, err := use(k, keep, hsm.TokenOpen, sealed, nil); !errors.Is(err, hsm.ErrClosed) {
		t.Errorf("after Close: %v", err)
	}
}

// A root of trust and key stores on several tokens of one module live side by side, also
// with the module in this process, and end one by one.
func TestTokenBesideRoot(t *testing.T) {
	d := hsmtest.NewSoftHSMDir(t)
	second := *d
	second.Config.TokenLabel += "-second"
	d.AddToken(t, second.Config.TokenLabel)
	root := openToken(t, d.Config)
	domain := newDomainKey(t, root)
	wraps := wrapAll(t, root, domain, 3)
	k := openKeys(t, &second)
	id, _ := newTokenKey(t, k, hsm.TokenAES256)
	sealed := mustUse(t, k, id, hsm.TokenSeal, kek(0), nil)
	checkUnwraps(t, root, domain, wraps)
	if err := k.Check(context.Background(), hsm.TokenKeyID(domain)); !errors.Is(err, hsm.ErrNoTokenKey) {
		t.Errorf("the root's key is on the other token: %v", err)
	}
	if info := k.Info(); info.Token != second.Config.TokenLabel || len(info.Keys) == 0 || len(root.Info().Keys) != 0 {
		t.Errorf("%+v", info)
	}
	k.Close()
	checkUnwraps(t, root, domain, wraps)
	k = openKeys(t, &second)
	root.Close()
	if out := mustUse(t, k, id, hsm.TokenOpen, sealed, nil); !bytes.Equal(out, kek(0)) {
		t.Error("a wrong answer")
	}
}

// A token that makes keys that can be read out holds none.
func TestTokenWeak(t *testing.T) {
	token := hsmtest.Shim(t)
	k := openKeys(t, token.SoftHSMDir)
	id, _ := newTokenKey(t, k, hsm.TokenAES256)
	token.Flags(hsmtest.SayExtractable)
	if err := k.Check(context.Background(), id); !errors.Is(err, hsm.ErrWeakTokenKey) {
		t.Errorf("Check: %v", err)
	}
	weak := hsm.NewTokenKeyID()
	if _, err := k.GenerateKey(context.Background(), weak, hsm.TokenAES256, "x"); !errors.Is(err, hsm.ErrWeakTokenKey) {
		t.Errorf("GenerateKey: %v", err)
	}
	token.Flags(hsmtest.StrictTemplate)
	if err := k.Check(context.Background(), weak); !errors.Is(err, hsm.ErrNoTokenKey) {
		t.Errorf("the weak key is left behind: %v", err)
	}
	if _, err := k.GenerateKey(context.Background(), weak, hsm.TokenP256, "x"); err != nil {
		t.Errorf("a token that is strict about templates: %v", err)
	}
	token.Flags(0)
	if err := k.Check(context.Background(), id); err != nil {
		t.Error(err)
	}
}

// What the self test makes of a token: whatever it does with IVs, they differ; one that
// ignores what it should authenticate, or has no AES-GCM, holds no symmetric keys.
func TestTokenSelfTest(t *testing.T) {
	for _, c := range []struct {
		name string
		flag hsmtest.ShimFlag
		aes  bool
	}{
		{"an honest token", 0, true},
		{"own IVs", hsmtest.OwnIV, true},
		{"own IVs into zeroes", hsmtest.ZeroIVOnly, true},
		{"one IV for all", hsmtest.IgnoreIV, false},
		{"no AES-GCM", hsmtest.NoGCM, false},
		{"no AES keys", hsmtest.NoAES, false},
		{"ignores associated data", hsmtest.IgnoreAAD, false},
		{"ignores tags", hsmtest.NoTagCheck, false},
	} {
		token := hsmtest.Shim(t)
		token.Flags(c.flag)
		k := openKeys(t, token.SoftHSMDir)
		info := k.Info()
		if info.Holds(hsm.TokenAES256) != c.aes || !info.Holds(hsm.TokenP256) {
			t.Errorf("%s: holds %v", c.name, info.Keys)
		}
		if !c.aes {
			if _, err := k.GenerateKey(context.Background(), hsm.NewTokenKeyID(), hsm.TokenAES256, "x"); !errors.Is(err, hsm.ErrMechanism) {
				t.Errorf("%s: %v", c.name, err)
			}
			k.Close()
			continue
		}
		id, _ := newTokenKey(t, k, hsm.TokenAES256)
		seen := map[string]bool{}
		for range 20 {
			sealed := mustUse(t, k, id, hsm.TokenSeal, kek(0), []byte("aad"))
			if iv := string(sealed[2 : 2+sealed[1]]); seen[iv] {
				t.Fatalf("%s: an IV repeats", c.name)
			} else {
				seen[iv] = true
			}
			if back := mustUse(t, k, id, hsm.TokenOpen, sealed, []byte("aad")); !bytes.Equal(back, kek(0)) {
				t.Errorf("%s: opens to something else", c.name)
			}
		}
		k.Close()
	}
}

// A key is searched for once, not once per session, unless the token's handles are a
// session's own; and anew after all that may change handles.
func TestTokenHandles(t *testing.T) {
	const keys = 20
	token := hsmtest.Shim(t)
	token.Config.Sessions = 4
	for _, flags := range []hsmtest.ShimFlag{0, hsmtest.OwnHandles} {
		token.Flags(flags)
		k := openKeys(t, token.SoftHSMDir)
		ids := make([]hsm.TokenKeyID, keys)
		ops := make([]hsm.TokenOp, 10*keys)
		for i := range ids {
			ids[i], _ = newTokenKey(t, k, hsm.TokenAES256)
		}
		round := func() {
			t.Helper()
			for i := range ops {
				ops[i] = hsm.TokenOp{Key: ids[i%keys], Mech: hsm.TokenSeal, In: kek(i)}
			}
			k.Do(context.Background(), ops)
			for i := range ops {
				if ops[i].Err != nil {
					t.Fatal(ops[i].Err)
				}
				if i >= keys {
					continue
				}
				if out := mustUse(t, k, ids[i], hsm.TokenOpen, ops[i].Out, nil); !bytes.Equal(out, kek(i)) {
					t.Error("a wrong answer")
				}
			}
		}
		searches := func(f func()) int {
			before := token.Calls(hsmtest.CFindInit)
			f()
			return token.Calls(hsmtest.CFindInit) - before
		}
		round()
		round()
		round()
		token.RoundTrip(time.Millisecond) // so that all sessions take part
		switch n := searches(round); {
		case flags == 0 && n > 0:
			t.Errorf("%d searches for keys that were found", n)
		case flags != 0 && n > 4*keys:
			t.Errorf("%d searches by four sessions for %d keys", n, keys)
		}
		token.RoundTrip(0)
		if err := k.Destroy(context.Background(), ids[0]); err != nil {
			t.Error(err)
		}
		ids[0], _ = newTokenKey(t, k, hsm.TokenAES256)
		if n := searches(round); n < keys-1 || n > 8*keys {
			t.Errorf("%d searches after a key was destroyed", n)
		}
		token.Logout()
		round()
		token.Reset()
		round()
		k.Close()
	}
}

// A bad ciphertext and a device in trouble look alike on some tokens: only the first is
// the caller's fault, and neither uses a key up.
func TestTokenVerdicts(t *testing.T) {
	token := hsmtest.Shim(t)
	token.Config.Sessions = 1
	k := openKeys(t, token.SoftHSMDir)
	id, _ := newTokenKey(t, k, hsm.TokenAES256)
	sealed := mustUse(t, k, id, hsm.TokenSeal, kek(0), nil)
	bad := bytes.Clone(sealed)
	bad[20] ^= 1
	before := token.Calls(hsmtest.CEncrypt)
	for range 50 {
		if _, err := use(k, id, hsm.TokenOpen, bad, nil); !errors.Is(err, hsm.ErrBadCiphertext) {
			t.Fatal(err)
		}
	}
	if n := token.Calls(hsmtest.CEncrypt) - before; n > 1 {
		t.Errorf("%d encryptions for 50 bad ciphertexts, want one at most", n)
	}
	token.Break(hsmtest.CDecrypt, hsmtest.ShimFault{Count: 1, RV: 5 /* CKR_GENERAL_ERROR */})
	if out := mustUse(t, k, id, hsm.TokenOpen, sealed, nil); !bytes.Equal(out, kek(0)) {
		t.Error("a wrong answer after a hiccup")
	}
	token.Break(hsmtest.CDecrypt, hsmtest.ShimFault{Count: 1000, RV: 5})
	if _, err := use(k, id, hsm.TokenOpen, sealed, nil); !errors.Is(err, hsm.ErrDevice) || errors.Is(err, hsm.ErrBadCiphertext) {
		t.Errorf("a failing device: %v", err)
	}
	token.Break(hsmtest.CDecrypt, hsmtest.ShimFault{})
	mustUse(t, k, id, hsm.TokenOpen, sealed, nil)
}

// The process that has the module may die at any time: what was asked is done by the next,
// except for making keys, of which nobody knows then.
func TestTokenKeysChildDies(t *testing.T) {
	ctx := context.Background()
	token := hsmtest.Shim(t)
	token.Config.Child = hsmtest.Child
	token.Config.Sessions = 4
	k := openKeys(t, token.SoftHSMDir)
	id, _ := newTokenKey(t, k, hsm.TokenAES256)
	pair, public := newTokenKey(t, k, hsm.TokenP256)
	sealed := mustUse(t, k, id, hsm.TokenSeal, kek(0), nil)

	for _, f := range []hsmtest.ShimFunc{hsmtest.CDecrypt, hsmtest.CSign} {
		token.Break(f, hsmtest.ShimFault{Skip: 2, Count: 1, Crash: hsmtest.WildPointer})
		ops := make([]hsm.TokenOp, 40)
		for i := range ops {
			ops[i] = hsm.TokenOp{Key: id, Mech: hsm.TokenOpen, In: sealed}
			if i%2 == 1 {
				ops[i] = hsm.TokenOp{Key: pair, Mech: hsm.TokenECDSA, In: kek(i)}
			}
		}
		k.Do(ctx, ops)
		for i, op := range ops {
			switch {
			case op.Err != nil:
				t.Errorf("op %d: %v", i, op.Err)
			case i%2 == 0 && !bytes.Equal(op.Out, kek(0)):
				t.Errorf("op %d: a wrong answer", i)
			case i%2 == 1 && !ecdsa.Verify(public.(*ecdsa.PublicKey), kek(i), new(big.Int).SetBytes(op.Out[:32]), new(big.Int).SetBytes(op.Out[32:])):
				t.Errorf("op %d: a wrong signature", i)
			}
		}
	}
	if n := k.Info().Restarts; n != 2 {
		t.Errorf("%d restarts after two crashes", n)
	}

	lost := hsm.NewTokenKeyID()
	token.Break(hsmtest.CGenerateKey, hsmtest.ShimFault{Count: 1, Crash: hsmtest.Abort})
	if _, err := k.GenerateKey(ctx, lost, hsm.TokenAES256, "x"); !errors.Is(err, hsm.ErrDevice) {
		t.Errorf("a crash while a key is made: %v", err)
	}
	if err := k.Destroy(ctx, lost); err != nil { // by the next process, which has the PIN again
		t.Error(err)
	}
	if err := k.Check(ctx, lost); !errors.Is(err, hsm.ErrNoTokenKey) {
		t.Error(err)
	}

	// Under load, and with the token gone while no process is there.
	var wg sync.WaitGroup
	stop := make(chan struct{})
	for range 4 {
		wg.Go(func() {
			for {
				select {
				case <-stop:
					return
				default:
				}
				if out, err := use(k, id, hsm.TokenOpen, sealed, nil); err == nil && !bytes.Equal(out, kek(0)) {
					t.Error("a wrong answer")
				} else if err != nil && hsm.Classify(err) == hsm.Fatal {
					t.Error(err)
				}
			}
		})
	}
	for range 3 {
		pid := k.Info().Process
		if err := syscall.Kill(pid, syscall.SIGKILL); err != nil {
			t.Fatal(err)
		}
		eventually(t, "another process", func() bool { now := k.Info().Process; return now != 0 && now != pid })
	}
	close(stop)
	wg.Wait()
	token.Flags(hsmtest.Removed)
	if err := syscall.Kill(k.Info().Process, syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	short, cancel := context.WithTimeout(ctx, 50*time.Millisecond)
	defer cancel()
	ops := []hsm.TokenOp{{Key: id, Mech: hsm.TokenOpen, In: sealed}}
	k.Do(short, ops)
	if ops[0].Err == nil || hsm.Classify(ops[0].Err) == hsm.Fatal {
		t.Errorf("without token and process: %v", ops[0].Err)
	}
	token.Flags(0)
	if out := mustUse(t, k, id, hsm.TokenOpen, sealed, nil); !bytes.Equal(out, kek(0)) {
		t.Error("a wrong answer")
	}
}

// The PIN is where it must be, in locked memory, and nowhere in the child's command line
// or environment.
func TestTokenPINStaysInside(t *testing.T) {
	d := hsmtest.NewSoftHSMDir(t)
	d.Config.Child = hsmtest.Child
	k := openKeys(t, d)
	if info := fmt.Sprintf("%+v", k.Info()); strings.Contains(info, d.PIN()) {
		t.Error("the PIN is in Info")
	}
	checkProcess(t, k.Info().Process, d.PIN())
}

// Many callers with many keys share the sessions; who leaves takes nothing with him.
func TestTokenManyCallers(t *testing.T) {
	token := hsmtest.Shim(t)
	token.RoundTrip(200 * time.Microsecond)
	token.Config.Sessions = 4
	for _, child := range []bool{false, true} {
		if token.Config.Child = nil; child {
			token.Config.Child = hsmtest.Child
		}
		k := openKeys(t, token.SoftHSMDir)
		ids := make([]hsm.TokenKeyID, 5)
		for i := range ids {
			ids[i], _ = newTokenKey(t, k, hsm.TokenAES256)
		}
		var wg sync.WaitGroup
		for g := range 8 {
			wg.Go(func() {
				ctx, cancel := context.WithCancel(context.Background())
				defer cancel()
				n := 1 + 90*g // more than one frame takes, in bytes
				ops := make([]hsm.TokenOp, n)
				for i := range ops {
					ops[i] = hsm.TokenOp{Key: ids[i%len(ids)], Mech: hsm.TokenSeal, In: bytes.Repeat(kek(i), 40), AAD: kek(g)}
				}
				if g == 7 {
					go cancel()
				}
				k.Do(ctx, ops)
				for i := range ops {
					op := &ops[i]
					if op.Err != nil && !(g == 7 && errors.Is(op.Err, context.Canceled)) {
						t.Error(op.Err)
					}
					*op = hsm.TokenOp{Key: op.Key, Mech: hsm.TokenOpen, In: op.Out, AAD: kek(g)}
				}
				ops = slices.DeleteFunc(ops, func(op hsm.TokenOp) bool { return op.In == nil })
				k.Do(context.Background(), ops)
				for i, op := range ops {
					if op.Err != nil || g != 7 && !bytes.Equal(op.Out, bytes.Repeat(kek(i), 40)) {
						t.Errorf("caller %d, op %d: %v", g, i, op.Err)
					}
				}
			})
		}
		wg.Wait()
		k.Close()
	}
	if n := token.Collisions(); n != 0 {
		t.Errorf("two threads in one session, %d times", n)
	}
}

// BenchmarkTokenKeys is a key store's keys behind a network, and as they are.
//
//	go test ./hsm -run '^$' -bench TokenKeys -benchtime 3s
func BenchmarkTokenKeys(b *testing.B) {
	const sessions, keys = 16, 100
	for _, d := range []time.Duration{0, 5 * time.Millisecond} {
		token := hsmtest.Shim(b)
		token.Config.Sessions, token.Config.Child = sessions, hsmtest.Child
		k := openKeys(b, token.SoftHSMDir)
		ids := make([]hsm.TokenKeyID, keys)
		ops := make([]hsm.TokenOp, 5000)
		for i := range ids {
			ids[i], _ = newTokenKey(b, k, hsm.TokenAES256)
		}
		plain := make([]byte, 32)
		rand.Read(plain)
		fill := func(m hsm.TokenMech) {
			for i := range ops {
				in := plain
				if m == hsm.TokenOpen {
					in = ops[i].Out
				}
				ops[i] = hsm.TokenOp{Key: ids[i%keys], Mech: m, In: in, AAD: plain}
			}
		}
		fill(hsm.TokenSeal)
		k.Do(context.Background(), ops) // all sessions know all keys
		token.RoundTrip(d)
		for _, m := range []struct {
			name string
			mech hsm.TokenMech
		}{{"seal", hsm.TokenSeal}, {"open", hsm.TokenOpen}} {
			b.Run(fmt.Sprintf("%v/%s", d, m.name), func(b *testing.B) {
				fill(m.mech)
				report := ofIdeal(b, token, sessions, d)
				n := 0
				for b.Loop() {
					k.Do(context.Background(), ops)
					n += len(ops)
				}
				report(n)
				for _, op := range ops {
					if op.Err != nil {
						b.Fatal(op.Err)
					}
				}
			})
		}
		k.Close()
	}
}
