package engine

import (
	"bytes"
	_ "embed"
	"encoding/json"
	"errors"
	"fmt"
	"sync"
)

// # Known-answer tests
//
// kat.json has, for each spec, a key made for this purpose only, and for each
// task an operation with the answer it must have. Algorithms that draw
// randomness have no one answer: their signatures and ciphertexts are checked
// with the inverse, whose own test has an answer.
//
// The file was written by
//
//	go test -run TestKnownAnswers -update ./engine
//
// and the same test has every provider agree with it.

//go:embed kat.json
var katJSON []byte

// katKey is the key of a spec and its cases.
type katKey struct {
	Spec    string
	Private []byte
	Public  []byte `json:",omitempty"`
	Cases   []katCase
}

type katCase struct {
	Task   string
	Alg    string
	Type   string `json:",omitempty"`
	In     []byte
	Answer []byte
}

var katKeys = sync.OnceValues(func() (map[Spec]*katKey, error) {
	var keys []*katKey
	if err := json.Unmarshal(katJSON, &keys); err != nil {
		return nil, err
	}
	m := map[Spec]*katKey{}
	for _, k := range keys {
		spec, ok := ParseSpec(k.Spec)
		if !ok {
			return nil, fmt.Errorf("kat.json: spec %q", k.Spec)
		}
		m[spec] = k
	}
	return m, nil
})

var errWrongAnswer = errors.New("wrong answer")

// testedBy is the task whose known-answer test stands for a task. With the long
// RSA keys one private and one public operation each are enough to see the
// arithmetic at that length; padding is tested with RSA_2048.
func testedBy(spec Spec, task Task) Task {
	if spec == RSA3072 || spec == RSA4096 {
		switch task {
		case TaskSign:
			return TaskDecrypt
		case TaskEncrypt:
			return TaskVerify
		}
	}
	return task
}

// selfTest runs the known-answer test of one provider for one task. Key
// generation has none: what it makes is random, and tested when it is used.
//
// A test that needs the other direction uses the providers chosen so far.
func (c *providers) selfTest(p Provider, spec Spec, task Task) (err error) {
	defer func() {
		if r := recover(); r != nil {
			err = fmt.Errorf("panicked: %v", r)
		}
	}()
	if task == TaskGenerate {
		return nil
	}
	pick := func(s Spec, t Task) Provider {
		if t == task {
			return p
		}
		return c.chosen[s][t]
	}
	return selfTest(spec, task, pick)
}

func selfTest(spec Spec, task Task, pick picker) error {
	keys, err := katKeys()
	if err != nil {
		return err
	}
	key, ran := keys[spec], false
	if key == nil {
		return errors.New("there is no known answer")
	}
	for i := range key.Cases {
		if k := &key.Cases[i]; k.Task == task.String() {
			ran = true
			if err := key.run(spec, task, k, pick); err != nil {
				return fmt.Errorf("%s: %w", k.Alg, err)
			}
		}
	}
	if !ran {
		return errors.New("there is no known answer")
	}
	return nil
}

// run carries out one case.
func (key *katKey) run(spec Spec, task Task, k *katCase, pick picker) error {
	alg, _ := ParseAlgorithm(k.Alg)
	typ, _ := ParseMessageType(k.Type)
	op := Op{Alg: alg, Type: typ, In: k.In}
	switch task {
	case TaskMAC:
		st, err := buildState(spec, GenerateVerifyMAC, key.Private, pick)
		if err != nil {
			return err
		}
		op.Verb = GenerateMAC
		return k.equal(&op, st.mac.do(&op))
	case TaskVerify, TaskVerifyMu:
		op.Verb, op.Sig = Verify, k.Answer
		if err := key.public(spec, &op, pick); err != nil {
			return err
		}
		op.Sig = bytes.Clone(op.Sig)
		op.Sig[len(op.Sig)/2] ^= 1
		if err := key.public(spec, &op, pick); err != ErrInvalidSignature {
			return fmt.Errorf("a changed signature: %v", err)
		}
		return nil
	case TaskSign, TaskSignMu:
		op.Verb = Sign
		if err := key.private(spec, SignVerify, &op, pick); err != nil {
			return err
		}
		if len(k.Answer) > 0 {
			return k.equal(&op, nil)
		}
		check := Op{Verb: Verify, Alg: alg, Type: typ, In: k.In, Sig: op.Out}
		return key.public(spec, &check, pick)
	case TaskDerive:
		op.Verb = DeriveSecret
		return k.equal(&op, key.private(spec, KeyAgreement, &op, pick))
	case TaskDecrypt:
		op.Verb = Decrypt
		return k.equal(&op, key.private(spec, EncryptDecrypt, &op, pick))
	}
	// TaskEncrypt
	op.Verb, op.In = Encrypt, k.Answer
	if spec.Symmetric() {
		return key.symmetric(k, pick)
	}
	if err := key.public(spec, &op, pick); err != nil {
		return err
	}
	back := Op{Verb: Decrypt, Alg: alg, In: op.Out}
	return k.equal(&back, key.private(spec, EncryptDecrypt, &back, pick))
}

func (k *katCase) equal(op *Op, err error) error {
	if err == nil && !bytes.Equal(op.Out, k.Answer) {
		err = errWrongAnswer
	}
	return err
}

func (key *katKey) private(spec Spec, usage Usage, op *Op, pick picker) error {
	p, err := newPrivateKey(spec, usage, key.Private, pick)
	if err != nil {
		return err
	}
	return p.private(op)
}

func (key *katKey) public(spec Spec, op *Op, pick picker) error {
	usage := SignVerify
	if op.Verb == Encrypt {
		usage = EncryptDecrypt
	}
	p, err := newPublicKey(spec, usage, key.Public, pick)
	if err != nil {
		return err
	}
	return p.public(op)
}

// symmetric opens the known body and seals it again.
func (key *katKey) symmetric(k *katCase, pick picker) error {
	st, err := buildState(SymmetricDefault, EncryptDecrypt, key.Private, pick)
	if err != nil {
		return err
	}
	aad := []byte("known answer")
	out, ok := st.cipher.open(nil, k.In, aad)
	if !ok || !bytes.Equal(out, k.Answer) {
		return errWrongAnswer
	}
	again := bytes.Clone(k.In[:nonceSize])
	again = st.cipher.derive(k.In[:halfNonce]).Seal(again, k.In[halfNonce:nonceSize], k.Answer, aad)
	if !bytes.Equal(again, k.In) {
		return errWrongAnswer
	}
	return nil
}
