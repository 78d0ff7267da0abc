package engine

import (
	"bytes"
	"crypto/aes"
	"crypto/ed25519"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"encoding/binary"
	"errors"
	"slices"
	"testing"

	"keymill/engine/wraptest"
)

// TestKeyWrapVectors: RFC 3394, sections 4.1, 4.3 and 4.6, and RFC 5649, section 6.
func TestKeyWrapVectors(t *testing.T) {
	for _, v := range []struct{ kek, key, wrapped string }{
		{"000102030405060708090a0b0c0d0e0f", "00112233445566778899aabbccddeeff", "1fa68b0a8112b447 aef34bd8fb5a7b82 9d3e862371d2cfe5"},
		{"000102030405060708090a0b0c0d0e0f101112131415161718191a1b1c1d1e1f", "00112233445566778899aabbccddeeff", "64e8c3f9ce0f5ba2 63e9777905818a2a 93c8191e7d6e8ae7"},
		{
			"000102030405060708090a0b0c0d0e0f101112131415161718191a1b1c1d1e1f", "00112233445566778899aabbccddeeff000102030405060708090a0b0c0d0e0f",
			"28c9f404c4b810f4 cbccb35cfb87f826 3f5786e2d80ed326 cbc7f0e71a99f43b fb988b9b7a02dd21",
		},
	} {
		kek, key, wrapped := unhex(t, v.kek), unhex(t, v.key), unhex(t, v.wrapped)
		check := bytes.Repeat([]byte{0xa6}, 8)
		if got := wraptest.Blocks(kek, check, key); !bytes.Equal(got, wrapped) {
			t.Errorf("wrapping gives %x", got)
		}
		block, err := aes.NewCipher(kek)
		if err != nil {
			t.Fatal(err)
		}
		got := make([]byte, len(wrapped))
		unwrapBlocks(block, got, wrapped)
		if !bytes.Equal(got, slices.Concat(check, key)) {
			t.Errorf("unwrapping gives %x", got)
		}
	}
	kek := unhex(t, "5840df6e29b02af1 ab493b705bf16ea1 ae8338f4dcc176a8")
	for _, v := range []struct{ key, wrapped string }{
		{"c37b7e6492584340 bed1220780894115 5068f738", "138bdeaa9b8fa7fc 61f97742e72248ee 5ae6ae5360d1ae6a 5f54f373fa543b6a"},
		{"466f7250617369", "afbeb0f07dfbf541 9200f2ccb50bb24f"},
	} {
		got, err := unwrapKWP(kek, unhex(t, v.wrapped))
		if err != nil || !bytes.Equal(got, unhex(t, v.key)) {
			t.Errorf("%x, %v", got, err)
		}
	}
}

// TestKeyWrapRefusals: every length comes back, and neither a changed bit, nor a
// wrong length field, nor padding that is not zero is taken.
func TestKeyWrapRefusals(t *testing.T) {
	kek := bytes.Repeat([]byte{7}, 32)
	for n := 1; n <= 70; n++ {
		key := bytes.Repeat([]byte{0xff}, n)
		wrapped := wraptest.KWP(kek, key)
		if got, err := unwrapKWP(kek, wrapped); err != nil || !bytes.Equal(got, key) {
			t.Fatalf("%d bytes: %x, %v", n, got, err)
		}
		for bit := range 8 * len(wrapped) {
			wrapped[bit/8] ^= 1 << (bit % 8)
			if _, err := unwrapKWP(kek, wrapped); err != ErrInvalidCiphertext {
				t.Fatalf("%d bytes, bit %d changed: %v", n, bit, err)
			}
			wrapped[bit/8] ^= 1 << (bit % 8)
		}
	}
	padded := append(bytes.Repeat([]byte{1}, 20), 0, 0, 0, 0)
	check := func(magic, size uint32) []byte {
		return binary.BigEndian.AppendUint32(binary.BigEndian.AppendUint32(nil, magic), size)
	}
	dirty := bytes.Clone(padded)
	dirty[23] = 1
	for name, in := range map[string][]byte{
		"size too small":    wraptest.Blocks(kek, check(0xa65959a6, 16), padded),
		"size too large":    wraptest.Blocks(kek, check(0xa65959a6, 25), padded),
		"size over 2^31":    wraptest.Blocks(kek, check(0xa65959a6, 0x80000014), padded),
		"padding":           wraptest.Blocks(kek, check(0xa65959a6, 20), dirty),
		"other check":       wraptest.Blocks(kek, check(0xa6a6a6a6, 20), padded),
		"RFC 3394":          wraptest.Blocks(kek, bytes.Repeat([]byte{0xa6}, 8), padded),
		"nothing in it":     wraptest.Blocks(kek, check(0xa65959a6, 0), make([]byte, 8)),
		"one block":         make([]byte, 8),
		"not whole":         make([]byte, 17),
		"empty":             nil,
		"longer than taken": make([]byte, maxKWP+8),
	} {
		if got, err := unwrapKWP(kek, in); err != ErrInvalidCiphertext {
			t.Errorf("%s: %x, %v", name, got, err)
		}
	}
	if got, err := unwrapKWP(kek, wraptest.Blocks(kek, check(0xa65959a6, 20), padded)); err != nil || len(got) != 20 {
		t.Errorf("the sound one: %x, %v", got, err)
	}
}

// TestCarries writes AWS's table out: what each wrapping takes, by wrapping key.
func TestCarries(t *testing.T) {
	secret := []Spec{SymmetricDefault, HMAC224, HMAC256, HMAC384, HMAC512}
	small := []Spec{P256, P384, Secp256k1, Ed25519}
	rsas := []Spec{RSA2048, RSA3072, RSA4096}
	want := map[Wrapping]map[Spec][]Spec{WrapInvalid: {}, WrapPKCS1: {}, WrapSM2PKE: {
		SM2: slices.Concat(secret, small, []Spec{P521, SM2}),
	}}
	for _, w := range []Wrapping{WrapOAEPSHA1, WrapOAEPSHA256} {
		want[w] = map[Spec][]Spec{
			RSA2048: slices.Concat(secret, small),
			RSA3072: slices.Concat(secret, small, []Spec{P521}),
			RSA4096: slices.Concat(secret, small, []Spec{P521}),
		}
	}
	for _, w := range []Wrapping{WrapAESSHA1, WrapAESSHA256} {
		want[w] = map[Spec][]Spec{}
		for _, key := range rsas {
			want[w][key] = slices.Concat(rsas, small, []Spec{P521, SM2})
		}
	}
	for w := range numWrappings + 1 {
		for key := range numSpecs + 1 {
			if got, want := w.ServedBy(key), want[w][key] != nil; got != want {
				t.Errorf("%v served by %v: %t", w, key, got)
			}
			for material := range numSpecs + 1 {
				if got, want := w.Carries(material, key), slices.Contains(want[w][key], material); got != want {
					t.Errorf("%v under %v carries %v: %t", w, key, material, got)
				}
			}
		}
	}
	for w := WrapPKCS1; w < numWrappings; w++ {
		if got, ok := ParseWrapping(w.String()); got != w || !ok {
			t.Errorf("%v is read as %v, %t", w, got, ok)
		}
	}
	if w, ok := ParseWrapping(""); w != WrapInvalid || ok {
		t.Errorf("nothing is read as %v, %t", w, ok)
	}
}

// wrap is the sender's side of every wrapping.
func wrap(t testing.TB, w Wrapping, spki, material []byte) []byte {
	t.Helper()
	out, err := wraptest.Wrap(w.String(), spki, material)
	if err != nil {
		t.Fatal(err)
	}
	return out
}

// TestUnwrap sends material of every spec through everything that carries it, and
// checks that it arrives, only with its own key and wrapping, and only unchanged.
func TestUnwrap(t *testing.T) {
	type pair struct{ pkcs8, spki []byte }
	keys := map[Spec][2]pair{}
	for _, spec := range []Spec{RSA2048, RSA3072, RSA4096, SM2} {
		var two [2]pair
		for i := range two {
			if i == 1 && spec != RSA2048 && spec != SM2 {
				break // the long keys take seconds to make
			}
			var err error
			if two[i].pkcs8, two[i].spki, err = GenerateKeyPair(spec); err != nil {
				t.Fatal(err)
			}
		}
		keys[spec] = two
	}
	for spec := SymmetricDefault; spec < numSpecs; spec++ {
		if !spec.Importable() {
			continue
		}
		material, err := GenerateMaterial(spec)
		if err != nil {
			t.Fatal(err)
		}
		for key, pairs := range keys {
			for w := WrapOAEPSHA1; w < numWrappings; w++ {
				if !w.Carries(spec, key) {
					continue
				}
				wrapped := wrap(t, w, pairs[0].spki, material)
				got, err := Unwrap(w, key, pairs[0].pkcs8, wrapped)
				if err != nil || !bytes.Equal(got, material) {
					t.Fatalf("%v under %v %v: %v", spec, key, w, err)
				}
				if _, _, err := ImportMaterial(spec, got); err != nil {
					t.Errorf("%v under %v %v: %v", spec, key, w, err)
				}
				if pairs[1].pkcs8 == nil {
					continue
				}
				if got, err := Unwrap(w, key, pairs[1].pkcs8, wrapped); err != ErrInvalidCiphertext {
					t.Errorf("%v under %v %v opens with another key: %x, %v", spec, key, w, got, err)
				}
				for _, other := range []Wrapping{WrapOAEPSHA1, WrapOAEPSHA256, WrapAESSHA1, WrapAESSHA256} {
					if _, err := Unwrap(other, key, pairs[0].pkcs8, wrapped); other != w && other.ServedBy(key) && err != ErrInvalidCiphertext {
						t.Errorf("%v wrapped with %v opens as %v: %v", spec, w, other, err)
					}
				}
				for _, at := range []int{0, len(wrapped) / 2, len(wrapped) - 1} {
					wrapped[at] ^= 1
					if _, err := Unwrap(w, key, pairs[0].pkcs8, wrapped); err != ErrInvalidCiphertext {
						t.Errorf("%v under %v %v, changed at %d: %v", spec, key, w, at, err)
					}
					wrapped[at] ^= 1
				}
				for _, cut := range [][]byte{nil, wrapped[1:], wrapped[:len(wrapped)-1], append(bytes.Clone(wrapped), 0)} {
					if _, err := Unwrap(w, key, pairs[0].pkcs8, cut); err != ErrInvalidCiphertext {
						t.Errorf("%v under %v %v, %d of %d bytes: %v", spec, key, w, len(cut), len(wrapped), err)
					}
				}
			}
		}
	}
	p := keys[RSA2048][0]
	if _, err := Unwrap(WrapPKCS1, RSA2048, p.pkcs8, make([]byte, 256)); err != ErrIncompatible {
		t.Errorf("PKCS #1 v1.5: %v", err)
	}
	if _, err := Unwrap(WrapOAEPSHA256, RSA3072, p.pkcs8, make([]byte, 256)); !errors.Is(err, ErrInvalidMaterial) {
		t.Errorf("a key of another length: %v", err)
	}
	// An AES key that is not of 256 bits.
	key, err := x509.ParsePKIXPublicKey(p.spki)
	if err != nil {
		t.Fatal(err)
	}
	short := make([]byte, 16)
	first, err := rsa.EncryptOAEP(WrapAESSHA256.newHash(), rand.Reader, key.(*rsa.PublicKey), short, nil)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := Unwrap(WrapAESSHA256, RSA2048, p.pkcs8, append(first, wraptest.KWP(short, make([]byte, 32))...)); err != ErrInvalidCiphertext {
		t.Errorf("an AES-128 key: %v", err)
	}
}

func TestImportMaterialLengths(t *testing.T) {
	for _, c := range []struct {
		spec      Spec
		low, high int
	}{{SymmetricDefault, 32, 32}, {HMAC224, 28, 128}, {HMAC256, 32, 128}, {HMAC384, 48, 128}, {HMAC512, 64, 128}} {
		for n := range 200 {
			in := bytes.Repeat([]byte{byte(n)}, n)
			got, spki, err := ImportMaterial(c.spec, in)
			if good := c.low <= n && n <= c.high; good != (err == nil) || good && !bytes.Equal(got, in) || spki != nil {
				t.Errorf("%v, %d bytes: %x %x %v", c.spec, n, got, spki, err)
			}
		}
	}
	for _, spec := range []Spec{MLDSA44, MLDSA65, MLDSA87, SpecInvalid, numSpecs} {
		if _, _, err := ImportMaterial(spec, make([]byte, 32)); err != ErrUnknownSpec {
			t.Errorf("%v: %v", spec, err)
		}
	}
}

// TestImportPrivateKeys: what GenerateKeyPair makes is imported as it is, gives its
// own public key, and is refused as material of any other spec.
func TestImportPrivateKeys(t *testing.T) {
	for spec := RSA2048; spec < numSpecs; spec++ {
		if !spec.Importable() {
			continue
		}
		pkcs8, spki, err := GenerateKeyPair(spec)
		if err != nil {
			t.Fatal(err)
		}
		for name, in := range map[string][]byte{"DER": pkcs8, "BER": ber(t, pkcs8)} {
			got, public, err := ImportMaterial(spec, in)
			if err != nil || !bytes.Equal(got, pkcs8) || !bytes.Equal(public, spki) {
				t.Errorf("%v as %s: %v\n%x\n%x", spec, name, err, got, pkcs8)
			}
		}
		for other := RSA2048; other < numSpecs; other++ {
			if _, _, err := ImportMaterial(other, pkcs8); other != spec && other.Importable() && err != ErrInvalidMaterial {
				t.Errorf("%v as %v: %v", spec, other, err)
			}
		}
		for _, bad := range [][]byte{nil, {0}, pkcs8[1:], pkcs8[:len(pkcs8)-1], append(bytes.Clone(pkcs8), 0)} {
			if _, _, err := ImportMaterial(spec, bad); err != ErrInvalidMaterial {
				t.Errorf("%v, %d of %d bytes: %v", spec, len(bad), len(pkcs8), err)
			}
		}
	}
}

// TestImportForeignForms: scalars without leading zeros, private keys without
// their public half, and public halves that lie.
func TestImportForeignForms(t *testing.T) {
	for _, c := range []struct {
		spec Spec
		oid  []byte
	}{{Secp256k1, []byte{0x06, 0x05, 0x2b, 0x81, 0x04, 0x00, 0x0a}}, {SM2, []byte{0x06, 0x08, 0x2a, 0x81, 0x1c, 0xcf, 0x55, 0x01, 0x82, 0x2d}}, {P256, []byte{0x06, 0x08, 0x2a, 0x86, 0x48, 0xce, 0x3d, 0x03, 0x01, 0x07}}} {
		scalar := append([]byte{0, 0}, bytes.Repeat([]byte{0x42}, 30)...)
		alg := element(0x30, append([]byte{0x06, 0x07, 0x2a, 0x86, 0x48, 0xce, 0x3d, 0x02, 0x01}, c.oid...))
		build := func(scalar, public []byte) []byte {
			body := slices.Concat([]byte{2, 1, 1}, element(4, scalar))
			if public != nil {
				body = append(body, element(0xa1, element(3, append([]byte{0}, public...)))...)
			}
			return element(0x30, slices.Concat([]byte{2, 1, 0}, alg, element(4, element(0x30, body))))
		}
		want, spki, err := ImportMaterial(c.spec, build(scalar, nil))
		if err != nil {
			t.Fatal(c.spec, err)
		}
		lie := append([]byte{4}, bytes.Repeat([]byte{0x11}, 64)...)
		for name, in := range map[string][]byte{"short scalar": build(scalar[2:], nil), "lie": build(scalar, lie)} {
			got, public, err := ImportMaterial(c.spec, in)
			if err != nil || !bytes.Equal(got, want) || !bytes.Equal(public, spki) {
				t.Errorf("%v, %s: %v", c.spec, name, err)
			}
		}
		for name, in := range map[string][]byte{
			"zero": build(bytes.Repeat([]byte{0}, 32), nil), "order": build(bytes.Repeat([]byte{0xff}, 32), nil), "none": build(nil, nil),
		} {
			if _, _, err := ImportMaterial(c.spec, in); err != ErrInvalidMaterial {
				t.Errorf("%v, %s: %v", c.spec, name, err)
			}
		}
	}
	// RFC 5958 with attributes and a public key behind the private one.
	seed := bytes.Repeat([]byte{9}, ed25519.SeedSize)
	v2 := element(0x30, slices.Concat([]byte{2, 1, 1}, element(0x30, []byte{6, 3, 0x2b, 0x65, 0x70}), element(4, element(4, seed)),
		element(0xa0, element(0x30, nil)), element(0x81, append([]byte{0}, ed25519.NewKeyFromSeed(seed).Public().(ed25519.PublicKey)...))))
	_, spki, err := ImportMaterial(Ed25519, v2)
	want, _ := x509.MarshalPKIXPublicKey(ed25519.NewKeyFromSeed(seed).Public())
	if err != nil || !bytes.Equal(spki, want) {
		t.Errorf("RFC 5958: %x, %v", spki, err)
	}
}

func element(tag byte, body []byte) []byte { return appendElement(nil, tag, body) }

// ber rewrites DER with indefinite lengths and octet strings in pieces, also
// inside the private key.
func ber(t testing.TB, der []byte) []byte {
	t.Helper()
	var out []byte
	for len(der) > 0 {
		tag, body, rest, _, err := berHeader(der)
		if err != nil {
			t.Fatal(err)
		}
		switch {
		case tag == 4:
			if len(body) > 0 && (body[0] == 0x30 || len(body) == 34 && body[0] == 4) {
				body = ber(t, body)
			}
			out = append(out, 0x24, 0x80)
			for len(body) > 0 {
				n := min(len(body), 100)
				out = append(append(out, 4, 0x82, 0, byte(n)), body[:n]...) // a length with a zero too many
				body = body[n:]
			}
			out = append(out, 0, 0)
		case tag&0x20 != 0:
			out = append(append(append(out, tag, 0x80), ber(t, body)...), 0, 0)
		default:
			out = append(out, element(tag, body)...)
		}
		der = rest
	}
	return out
}

// FuzzUnwrapKWP: nothing unwraps but what wrapping makes.
func FuzzUnwrapKWP(f *testing.F) {
	kek := bytes.Repeat([]byte{3}, 32)
	f.Add(wraptest.KWP(kek, []byte("seven b")))
	f.Add(wraptest.KWP(kek, make([]byte, 33)))
	f.Add([]byte{})
	f.Fuzz(func(t *testing.T, in []byte) {
		key, err := unwrapKWP(kek, in)
		if err == nil && !bytes.Equal(wraptest.KWP(kek, key), in) {
			t.Fatalf("%x unwraps to %x", in, key)
		}
		// And as a key to wrap.
		if len(in) > 0 && len(in) <= maxKWP-16 {
			if back, err := unwrapKWP(kek, wraptest.KWP(kek, in)); err != nil || !bytes.Equal(back, in) {
				t.Fatalf("%x comes back as %x, %v", in, back, err)
			}
		}
	})
}

// FuzzImportMaterial: what is taken as material of a spec is taken again in the
// form it was given, with the same public key, and can be used.
func FuzzImportMaterial(f *testing.F) {
	for spec := SymmetricDefault; spec < numSpecs; spec++ {
		if !spec.Importable() || spec == RSA3072 || spec == RSA4096 {
			continue
		}
		m, err := GenerateMaterial(spec)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(uint8(spec), m)
		if spec.Asymmetric() {
			f.Add(uint8(spec), ber(f, m))
		}
	}
	f.Add(uint8(P256), []byte{0x30, 0x80, 0x30, 0x80, 0x24, 0x80, 4, 0, 0, 0})
	f.Fuzz(func(t *testing.T, s uint8, in []byte) {
		spec := Spec(s % uint8(numSpecs))
		before := bytes.Clone(in)
		m, spki, err := ImportMaterial(spec, in)
		if !bytes.Equal(before, in) {
			t.Fatal("the input was changed")
		}
		if err != nil {
			if m != nil || spki != nil || !errors.Is(err, ErrInvalidMaterial) && err != ErrUnknownSpec {
				t.Fatal(m, spki, err)
			}
			return
		}
		again, same, err := ImportMaterial(spec, m)
		if err != nil || !bytes.Equal(again, m) || !bytes.Equal(spki, same) {
			t.Fatalf("%v: %x becomes %x, %v", spec, m, again, err)
		}
		for _, u := range spec.Usages() {
			if _, err := buildState(spec, u, m, served); err != nil {
				t.Fatalf("%v for %v: %v", spec, u, err)
			}
		}
	})
}
