package engine

import (
	"bytes"
	"context"
	"errors"
	"io"
	"log/slog"
	"math/rand/v2"
	"os"
	"runtime"
	"strconv"
	"strings"
	"sync"
	"testing"
)

var quiet = slog.New(slog.NewTextHandler(io.Discard, nil))

// TestChoose is a table of what can be wrong with providers.
func TestChoose(t *testing.T) {
	rows := []providerRow{
		{P256, TaskVerify, []Candidate{{OpenSSL, 1, ""}, {CIRCL, 2, ""}, {GoStd, 3, ""}}},
		{P256, TaskSign, []Candidate{{OpenSSL, 1, ""}, {GoStd, 2, ""}}},
		{P521, TaskSign, []Candidate{{CIRCL, 1, ""}, {OpenSSL, 1, ""}}},
	}
	type fails struct {
		p    Provider
		spec Spec
		task Task
	}
	for _, c := range []struct {
		name   string
		forbid []Provider
		absent []Provider
		fails  []fails
		want   [3]Provider
		tests  int
	}{
		{name: "all is well", want: [3]Provider{OpenSSL, OpenSSL, CIRCL}, tests: 3},
		{name: "forbidden", forbid: []Provider{OpenSSL}, want: [3]Provider{CIRCL, GoStd, CIRCL}, tests: 3},
		{name: "absent", absent: []Provider{OpenSSL}, want: [3]Provider{CIRCL, GoStd, CIRCL}, tests: 3},
		{name: "fails at once", fails: []fails{{OpenSSL, P256, TaskVerify}}, want: [3]Provider{CIRCL, GoStd, CIRCL}, tests: 4},
		// What it passed before counts for nothing.
		{name: "fails later", fails: []fails{{OpenSSL, P256, TaskSign}}, want: [3]Provider{CIRCL, GoStd, CIRCL}, tests: 5},
		{name: "fails last", fails: []fails{{CIRCL, P521, TaskSign}}, want: [3]Provider{OpenSSL, OpenSSL, OpenSSL}, tests: 4},
		{name: "both fail", fails: []fails{{CIRCL, P521, TaskSign}, {OpenSSL, P521, TaskSign}}, want: [3]Provider{GoStd, GoStd, NoProvider}, tests: 6},
		{name: "none left", forbid: []Provider{OpenSSL, CIRCL}, want: [3]Provider{GoStd, GoStd, NoProvider}, tests: 2},
	} {
		t.Run(c.name, func(t *testing.T) {
			var forbid [numProviders]bool
			var absent [numProviders]string
			for _, p := range c.forbid {
				forbid[p] = true
			}
			for _, p := range c.absent {
				absent[p] = "no such file"
			}
			tests := 0
			test := func(_ *providers, p Provider, spec Spec, task Task) error {
				tests++
				for _, f := range c.fails {
					if f == (fails{p, spec, task}) {
						return errWrongAnswer
					}
				}
				return nil
			}
			var log bytes.Buffer
			got := choose(rows, forbid, absent, test, slog.New(slog.NewTextHandler(&log, nil)))
			for i, row := range rows {
				if p := got.chosen[row.spec][row.task]; p != c.want[i] {
					t.Errorf("%v %v is served by %v, want %v", row.spec, row.task, p, c.want[i])
				}
			}
			if tests != c.tests {
				t.Errorf("%d tests, want %d", tests, c.tests)
			}
			if logged := strings.Count(log.String(), "switched off"); logged != len(c.fails) {
				t.Errorf("%d lines for %d failures:\n%s", logged, len(c.fails), &log)
			}
			for _, f := range c.fails {
				if !strings.Contains(got.why[f.p], "known-answer") {
					t.Errorf("%v: reason %q", f.p, got.why[f.p])
				}
			}
		})
	}
}

// TestNoProvider: a spec that nobody is left for is refused with its own error,
// by whatever needs the key.
func TestNoProvider(t *testing.T) {
	nobody := func(Spec, Task) Provider { return NoProvider }
	for _, spec := range allSpecs {
		material := testMaterial(t, spec)
		for _, usage := range spec.Usages() {
			if spec.MLDSA() {
				continue
			}
			if _, err := buildState(spec, usage, material, nobody); err != ErrNoProvider {
				t.Errorf("%v: %v", spec, err)
			}
			if spec.Asymmetric() {
				if _, err := newPublicKey(spec, usage, nil, nobody); err != ErrNoProvider {
					t.Errorf("%v public: %v", spec, err)
				}
			}
			if err := Supported(spec, usage); err != nil {
				t.Errorf("%v with all providers: %v", spec, err)
			}
		}
	}
	// ML-DSA has two tasks for one key, and loses them apart.
	spki, _ := PublicKey(MLDSA44, testMaterial(t, MLDSA44))
	for _, lost := range []Task{TaskSign, TaskSignMu, TaskVerify, TaskVerifyMu} {
		pick := func(s Spec, task Task) Provider {
			if task == lost {
				return NoProvider
			}
			return served(s, task)
		}
		priv, err := newPrivateKey(MLDSA44, SignVerify, testMaterial(t, MLDSA44), pick)
		if err != nil {
			t.Fatal(err)
		}
		pub, err := newPublicKey(MLDSA44, SignVerify, spki, pick)
		if err != nil {
			t.Fatal(err)
		}
		for typ, in := range map[MessageType][]byte{Raw: []byte("m"), ExternalMu: make([]byte, muSize)} {
			op := Op{Verb: Sign, Alg: AlgMLDSA, Type: typ, In: in}
			gotSign := priv.private(&op)
			op = Op{Verb: Verify, Alg: AlgMLDSA, Type: typ, In: in, Sig: make([]byte, 2420)}
			gotVerify := pub.public(&op)
			if (gotSign == ErrNoProvider) != (lost == TaskSign && typ == Raw || lost == TaskSignMu && typ == ExternalMu) ||
				(gotVerify == ErrNoProvider) != (lost == TaskVerify && typ == Raw || lost == TaskVerifyMu && typ == ExternalMu) {
				t.Errorf("without %v, %v: sign %v, verify %v", lost, typ, gotSign, gotVerify)
			}
		}
	}
}

func TestConfigureProviders(t *testing.T) {
	theProviders()
	if err := ConfigureProviders(ProviderOptions{}); err != nil {
		t.Errorf("choosing the same again: %v", err)
	}
	for _, c := range []struct {
		forbid []string
		want   string
	}{
		{[]string{"openssl"}, ErrProvidersChosen.Error()},
		{[]string{"openssl", "libressl"}, `"libressl"`},
		{[]string{""}, `""`},
		{[]string{"go"}, "cannot be forbidden"},
	} {
		if err := ConfigureProviders(ProviderOptions{Forbid: c.forbid, Logger: quiet}); err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("forbid %q: %v", c.forbid, err)
		}
	}
}

func TestOpenSSLVersions(t *testing.T) {
	for text, good := range map[string]bool{
		"OpenSSL 3.0.19 27 Jan 2026": true, "OpenSSL 3.0.16 11 Feb 2025": true, "OpenSSL 3.0.15 3 Sep 2024": false,
		"OpenSSL 3.1.7 3 Sep 2024": false, "OpenSSL 3.1.8 11 Feb 2025": true, "OpenSSL 3.2.3 3 Sep 2024": false,
		"OpenSSL 3.3.3 11 Feb 2025": true, "OpenSSL 3.4.0 22 Oct 2024": false, "OpenSSL 3.4.1 11 Feb 2025": true,
		"OpenSSL 3.5.0 8 Apr 2025": true, "OpenSSL 1.1.1w  11 Sep 2023": false, "OpenSSL 4.0.0": false,
		"LibreSSL 3.9.0": false, "BoringSSL": false, "": false,
	} {
		if err := checkOpenSSLVersion(text); (err == nil) != good {
			t.Errorf("%q: %v", text, err)
		}
	}
}

// TestTable: the table has a row for all that a key can be asked for, and its
// order is that of its figures or has a reason.
func TestTable(t *testing.T) {
	rows := map[[2]int]bool{}
	for _, row := range providerTable {
		rows[[2]int{int(row.spec), int(row.task)}] = true
		for i, o := range row.candidates[1:] {
			if first := row.candidates[i]; o.Micros > 0 && o.Micros < first.Micros && first.Note == "" {
				t.Errorf("%v %v: %v comes before %v, which is faster, without a reason", row.spec, row.task, first.Provider, o.Provider)
			}
		}
	}
	for _, spec := range allSpecs {
		need := []Task{TaskGenerate}
		for _, usage := range spec.Usages() {
			need = append(need, privateTask(spec, usage))
			if spec.Asymmetric() && usage != KeyAgreement {
				need = append(need, publicTask(usage))
			}
		}
		for _, task := range need {
			if !rows[[2]int{int(spec), int(task)}] {
				t.Errorf("no row for %v %v", spec, task)
			}
		}
	}
}

func TestProviderReport(t *testing.T) {
	rows := []providerRow{
		{P256, TaskSign, []Candidate{{OpenSSL, 15, ""}, {GoStd, 25, ""}}},
		{P256, TaskDerive, []Candidate{{GoStd, 25, ""}, {OpenSSL, 50, ""}}},
		{P384, TaskSign, []Candidate{{OpenSSL, 50, ""}}},
	}
	why := [numProviders]string{OpenSSL: "not on this machine"}
	pass := func(*providers, Provider, Spec, Task) error { return nil }
	old := choice.Swap(choose(rows, [numProviders]bool{}, why, pass, quiet))
	defer choice.Store(old)
	var b bytes.Buffer
	if _, err := Providers().WriteTo(&b); err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{
		"openssl: not on this machine\n",
		"best of what is left (25); not openssl (15), not on this machine",
		"NONE",
	} {
		if !strings.Contains(b.String(), want) {
			t.Errorf("the report lacks %q:\n%s", want, &b)
		}
	}
}

// candidates are the providers of a row that can be used here.
func candidates(spec Spec, task Task) (ps []Provider) {
	for _, row := range providerTable {
		if row.spec == spec && row.task == task {
			for _, o := range row.candidates {
				if theProviders().why[o.Provider] == "" {
					ps = append(ps, o.Provider)
				}
			}
		}
	}
	return ps
}

// only picks one provider for everything that is not ML-DSA from mu.
func only(p Provider) picker {
	return func(spec Spec, task Task) Provider {
		if task == TaskSignMu || task == TaskVerifyMu {
			return served(spec, task)
		}
		return p
	}
}

// publics returns the public key of each candidate.
func publics(t testing.TB, spec Spec, usage Usage, der []byte) map[Provider]publicKey {
	t.Helper()
	m := map[Provider]publicKey{}
	for _, p := range candidates(spec, publicTask(usage)) {
		pub, err := newPublicKey(spec, usage, der, only(p))
		if err != nil {
			t.Fatalf("%v by %v: %v", spec, p, err)
		}
		m[p] = pub
	}
	return m
}

// privates returns the private key of each candidate.
func privates(t testing.TB, spec Spec, usage Usage, der []byte) map[Provider]privateKey {
	t.Helper()
	m := map[Provider]privateKey{}
	for _, p := range candidates(spec, privateTask(spec, usage)) {
		priv, err := newPrivateKey(spec, usage, der, only(p))
		if err != nil {
			t.Fatalf("%v by %v: %v", spec, p, err)
		}
		m[p] = priv
	}
	return m
}

// TestProvidersAgree has what each provider makes read by each other one, for
// two keys of every spec and random inputs.
func TestProvidersAgree(t *testing.T) {
	const rounds = 4
	random := func(n int) []byte {
		b := make([]byte, n)
		Random(b)
		return b
	}
	pairs := map[[2]Provider]bool{}
	for _, spec := range allSpecs {
		if !spec.Asymmetric() {
			continue
		}
		fresh := testMaterial(t, spec)
		if !spec.RSA() {
			fresh, _ = GenerateMaterial(spec)
		}
		for _, material := range [][]byte{testMaterial(t, spec), fresh} {
			spki, err := PublicKey(spec, material)
			if err != nil {
				t.Fatal(err)
			}
			for _, usage := range spec.Usages() {
				privs := privates(t, spec, usage, material)
				pubs := map[Provider]publicKey{}
				if usage != KeyAgreement {
					pubs = publics(t, spec, usage, spki)
				}
				for _, alg := range spec.Algorithms(usage) {
					for range rounds {
						switch usage {
						case SignVerify:
							in, typ := random(rand.IntN(200)), Raw
							if n := alg.digestSize(); alg == AlgEd25519ph || n > 0 && rand.IntN(2) == 0 {
								in, typ = random(n), Digest
							}
							for p, priv := range privs {
								op := Op{Verb: Sign, Alg: alg, Type: typ, In: in}
								if err := priv.private(&op); err != nil {
									t.Fatalf("%v %v by %v: %v", spec, alg, p, err)
								}
								for q, pub := range pubs {
									pairs[[2]Provider{p, q}] = true
									if err := pub.public(&Op{Verb: Verify, Alg: alg, Type: typ, In: in, Sig: op.Out}); err != nil {
										t.Errorf("%v %v signed by %v, verified by %v: %v", spec, alg, p, q, err)
									}
								}
							}
						case EncryptDecrypt:
							in := random(rand.IntN(MaxPlaintext(spec, alg)))
							if alg == AlgSM2PKE {
								in = append(in, 0) // it does not take nothing
							}
							for q, pub := range pubs {
								ct := Op{Verb: Encrypt, Alg: alg, In: in}
								if err := pub.public(&ct); err != nil {
									t.Fatalf("%v %v by %v: %v", spec, alg, q, err)
								}
								for p, priv := range privs {
									pairs[[2]Provider{q, p}] = true
									op := Op{Verb: Decrypt, Alg: alg, In: ct.Out}
									if err := priv.private(&op); err != nil || !bytes.Equal(op.Out, in) {
										t.Errorf("%v %v encrypted by %v, decrypted by %v: %v", spec, alg, q, p, err)
									}
									op = Op{Verb: Decrypt, Alg: alg, In: append([]byte{0}, ct.Out...)}
									if err := priv.private(&op); err != ErrInvalidCiphertext {
										t.Errorf("%v %v by %v: a ciphertext one byte too long: %v", spec, alg, p, err)
									}
								}
							}
						case KeyAgreement:
							_, peer, err := GenerateKeyPair(spec)
							if err != nil {
								t.Fatal(err)
							}
							var first []byte
							for p, priv := range privs {
								op := Op{Verb: DeriveSecret, Alg: alg, In: peer}
								if err := priv.private(&op); err != nil {
									t.Fatal(err)
								}
								if first == nil {
									first = op.Out
								} else if pairs[[2]Provider{p, p}] = true; !bytes.Equal(first, op.Out) {
									t.Errorf("%v: %v derives another secret", spec, p)
								}
							}
						}
					}
				}
			}
		}
	}
	if theProviders().why[OpenSSL] == "" && (!pairs[[2]Provider{OpenSSL, GoStd}] || !pairs[[2]Provider{GoStd, OpenSSL}]) {
		t.Error("OpenSSL was not compared with Go")
	}
}

// TestProvidersAgreeOnGarbage changes signatures and ciphertexts at random,
// most of all in the lengths and tags that encodings are made of: the verdict
// must be the same from all providers.
func TestProvidersAgreeOnGarbage(t *testing.T) {
	rng := rand.New(rand.NewPCG(1, 2))
	mutate := func(in []byte) []byte {
		b := bytes.Clone(in)
		for range 1 + rng.IntN(2) {
			at := rng.IntN(len(b))
			if rng.IntN(2) == 0 {
				at = rng.IntN(min(len(b), 8))
			}
			switch rng.IntN(6) {
			case 0:
				b[at] ^= 1 << rng.IntN(8)
			case 1:
				b[at] = []byte{0, 1, 0x7f, 0x80, 0x81, 0x82, 0xff}[rng.IntN(7)]
			case 2:
				b = append(b[:at], append([]byte{0}, b[at:]...)...)
			case 3:
				b = append(b[:at], b[min(at+1, len(b)):]...)
			case 4: // longer, and the outer length with it
				b = append(b, 0)
				if len(b) > 1 {
					b[1]++
				}
			case 5:
				b = append(b[:min(4, len(b))], append([]byte{0}, b[min(4, len(b)):]...)...)
				b[1]++
				if len(b) > 3 {
					b[3]++
				}
			}
			if len(b) == 0 {
				return b
			}
		}
		return b
	}
	for _, spec := range []Spec{P256, P384, P521, RSA2048, Ed25519} {
		material := testMaterial(t, spec)
		spki, _ := PublicKey(spec, material)
		privs, pubs := privates(t, spec, SignVerify, material), publics(t, spec, SignVerify, spki)
		valid := 0
		for _, alg := range spec.Algorithms(SignVerify)[:1] {
			sign := Op{Verb: Sign, Alg: alg, In: []byte("m")}
			if err := privs[candidates(spec, TaskSign)[0]].private(&sign); err != nil {
				t.Fatal(err)
			}
			n := 400
			if spec == P521 {
				n = 100
			}
			for i := range n {
				sig := sign.Out
				if i > 0 {
					sig = mutate(sig)
				}
				var first error
				for j, p := range candidates(spec, TaskVerify) {
					err := pubs[p].public(&Op{Verb: Verify, Alg: alg, In: []byte("m"), Sig: sig})
					if j == 0 {
						first = err
					} else if err != first {
						t.Errorf("%v: signature %x: %v says %v, another %v", spec, sig, p, err, first)
					}
					if err == nil {
						valid++
					}
				}
			}
		}
		if valid < len(pubs) {
			t.Errorf("%v: the unchanged signature did not verify", spec)
		}
	}
	material := testMaterial(t, RSA2048)
	spki, _ := PublicKey(RSA2048, material)
	pub, _ := newPublicKey(RSA2048, EncryptDecrypt, spki, served)
	ct := Op{Verb: Encrypt, Alg: AlgOAEPSHA256, In: []byte("m")}
	if err := pub.public(&ct); err != nil {
		t.Fatal(err)
	}
	for range 60 {
		bad := mutate(ct.Out)
		if bytes.Equal(bad, ct.Out) {
			continue
		}
		for p, priv := range privates(t, RSA2048, EncryptDecrypt, material) {
			if err := priv.private(&Op{Verb: Decrypt, Alg: AlgOAEPSHA256, In: bad}); err != ErrInvalidCiphertext {
				t.Errorf("%v: changed ciphertext: %v", p, err)
			}
		}
	}
}

// TestSharedHandles computes with one handle of every provider's keys from many
// goroutines, under garbage collections and purges. It is meant for -race, and
// for OpenSSL's own locks.
func TestSharedHandles(t *testing.T) {
	for _, spec := range []Spec{RSA2048, P256, P521} {
		k := keyOf(t, testID, spec, SignVerify, testMaterial(t, spec))
		alg := spec.Algorithms(SignVerify)[0]
		var wg sync.WaitGroup
		for g := range 8 {
			wg.Go(func() {
				msg := []byte{byte(g)}
				for i := range 12 {
					var op Op
					for { // a purge may come between Warm and Do at any time
						ops := []Op{{Verb: Sign, Alg: alg, In: msg}}
						if k.Do(ops); ops[0].Err == nil {
							op = ops[0]
							break
						} else if ops[0].Err != ErrPending {
							t.Error(ops[0].Err)
							return
						}
						if err := k.Warm(context.Background(), ops); err != nil && !errors.Is(err, ErrPurged) {
							t.Error(err)
							return
						}
					}
					ops := []Op{{Verb: Verify, Alg: alg, In: msg, Sig: op.Out}}
					if k.Do(ops); ops[0].Err != nil {
						t.Errorf("%v: %v", spec, ops[0].Err)
					}
					if g == 0 && i%4 == 3 {
						k.Purge()
						runtime.GC()
					}
				}
			})
		}
		wg.Wait()
	}
}

// TestPurgeFrees: what OpenSSL holds for keys that were dropped is freed, which
// the Go heap's figures would not show.
func TestPurgeFrees(t *testing.T) {
	if why := theProviders().why[OpenSSL]; why != "" {
		t.Skip("SKIP: no OpenSSL:", why)
	}
	parsed, err := parsePrivateKey(RSA2048, testMaterial(t, RSA2048))
	if err != nil {
		t.Fatal(err)
	}
	resident := func() int {
		text, err := os.ReadFile("/proc/self/statm")
		if err != nil {
			t.Skip("SKIP: no /proc")
		}
		pages, _ := strconv.Atoi(strings.Fields(string(text))[1])
		return pages * os.Getpagesize()
	}
	const n = 3000
	round := func() {
		for range n {
			if _, err := opensslRSAPrivate(parsed.(*rsaPrivate).key); err != nil {
				t.Fatal(err)
			}
		}
		// Finalizers run in turn: this one comes after nearly all of theirs.
		done := make(chan struct{})
		runtime.SetFinalizer(&[16]byte{}, func(*[16]byte) { close(done) })
		runtime.GC()
		<-done
	}
	for range 5 {
		round()
	}
	base := resident()
	for range 5 {
		round()
	}
	grown := resident() - base
	// One key takes more than 2 kB there.
	if t.Logf("memory has grown by %d kB over %d keys", grown>>10, 5*n); grown > 5*n*1000 {
		t.Error("keys are not freed")
	}
}
