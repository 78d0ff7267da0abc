package engine

import (
	"bytes"
	"encoding/json"
	"flag"
	"os"
	"testing"
)

var update = flag.Bool("update", false, "write kat.json anew")

// TestKnownAnswers holds every candidate of every row against the answers.
func TestKnownAnswers(t *testing.T) {
	if *update {
		none := func(*providers, Provider, Spec, Task) error { return nil }
		choice.Store(choose(providerTable, [numProviders]bool{}, absentProviders([numProviders]bool{}), none, nil))
		writeKnownAnswers(t)
		return
	}
	for _, row := range providerTable {
		if row.task == TaskGenerate {
			continue
		}
		for _, o := range row.candidates {
			if why := theProviders().why[o.Provider]; why != "" {
				t.Logf("%v is not tested: %s", o.Provider, why)
				continue
			}
			if err := theProviders().selfTest(o.Provider, row.spec, row.task); err != nil {
				t.Errorf("%v %v by %v: %v", row.spec, row.task, o.Provider, err)
			}
		}
	}
}

// writeKnownAnswers makes new keys and has Go and the default providers answer.
func writeKnownAnswers(t *testing.T) {
	var keys []*katKey
	for spec := Spec(1); spec < numSpecs; spec++ {
		key := &katKey{Spec: spec.String(), Private: testMaterial(t, spec)}
		add := func(task Task, alg Algorithm, typ MessageType, in, answer []byte) {
			key.Cases = append(key.Cases, katCase{task.String(), alg.String(), typ.String(), in, answer})
		}
		msg := []byte("a known message for " + spec.String())
		switch {
		case spec.Symmetric():
			st, err := buildState(spec, EncryptDecrypt, key.Private, served)
			if err != nil {
				t.Fatal(err)
			}
			body := make([]byte, nonceSize)
			Random(body)
			body = st.cipher.derive(body[:halfNonce]).Seal(body, body[halfNonce:], msg, []byte("known answer"))
			add(TaskEncrypt, AlgSymmetric, Raw, body, msg)
		case spec.HMAC():
			alg := spec.Algorithms(GenerateVerifyMAC)[0]
			k := keyOf(t, testID, spec, GenerateVerifyMAC, key.Private)
			add(TaskMAC, alg, Raw, msg, must(t, k, Op{Verb: GenerateMAC, Alg: alg, In: msg}))
		}
		if !spec.Asymmetric() {
			keys = append(keys, key)
			continue
		}
		var err error
		if key.Public, err = PublicKey(spec, key.Private); err != nil {
			t.Fatal(err)
		}
		if algs := spec.Algorithms(SignVerify); algs != nil {
			k := keyOf(t, testID, spec, SignVerify, key.Private)
			sign := func(alg Algorithm, typ MessageType, in []byte, known bool) {
				sig := must(t, k, Op{Verb: Sign, Alg: alg, Type: typ, In: in})
				verify, answer := TaskVerify, sig
				task := TaskSign
				if typ == ExternalMu {
					verify, task = TaskVerifyMu, TaskSignMu
				}
				add(verify, alg, typ, in, sig)
				if !known {
					answer = nil
				}
				add(task, alg, typ, in, answer)
			}
			switch {
			case spec == RSA2048:
				sign(AlgPSSSHA512, Raw, msg, false)
				sign(AlgPKCS1SHA256, Raw, msg, true)
			case spec.RSA():
				sign(AlgPKCS1SHA256, Raw, msg, true)
			case spec == Ed25519:
				sign(AlgEd25519, Raw, msg, true)
				sign(AlgEd25519ph, Digest, bytes.Repeat([]byte{7}, 64), true)
			case spec.MLDSA():
				sign(AlgMLDSA, Raw, msg, false)
				sign(AlgMLDSA, ExternalMu, bytes.Repeat([]byte{7}, 64), false)
			default:
				sign(algs[0], Raw, msg, false)
			}
		}
		for _, alg := range spec.Algorithms(EncryptDecrypt) {
			if alg == AlgOAEPSHA1 && spec != RSA2048 {
				continue
			}
			k := keyOf(t, testID, spec, EncryptDecrypt, key.Private)
			add(TaskDecrypt, alg, Raw, must(t, k, Op{Verb: Encrypt, Alg: alg, In: msg}), msg)
			add(TaskEncrypt, alg, Raw, nil, msg)
		}
		if spec.Allows(KeyAgreement) {
			_, peer, err := GenerateKeyPair(spec)
			if err != nil {
				t.Fatal(err)
			}
			k := keyOf(t, testID, spec, KeyAgreement, key.Private)
			add(TaskDerive, AlgECDH, Raw, peer, must(t, k, Op{Verb: DeriveSecret, Alg: AlgECDH, In: peer}))
		}
		keys = append(keys, key)
	}
	text, err := json.MarshalIndent(keys, "", "\t")
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile("kat.json", append(text, '\n'), 0o666); err != nil {
		t.Fatal(err)
	}
}
