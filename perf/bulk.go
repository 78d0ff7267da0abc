package perf

import (
	"bytes"
	"errors"
	"fmt"

	"keymill/daemon/wire"
)

// Requests of many items, which AWS lacks. Each request of a connection has the
// same messages but for the first: what is different costs the generator, and
// the server keeps nothing of either.

func items(s Shape) string { return fmt.Sprintf("%d items", s.Batch) }

func itemsOf(s Shape) string { return fmt.Sprintf("%d items of %d B", s.Batch, s.Payload) }

func prepareDataKeys(format string) func(*setup, Operation) (Bodies, error) {
	return onEachKey(func(id string, _ Operation, s Shape) Input {
		return &wire.GenerateDataKeysRequest{KeyId: id, KeySpec: "AES_256", NumberOfKeys: wire.Some(int64(s.Batch)), ResponseFormat: format}
	})
}

func prepareBatchEncrypt(s *setup, o Operation) (Bodies, error) {
	ids, err := s.idsFor(o)
	if err != nil {
		return nil, err
	}
	return func(n int) Body {
		in := &wire.BatchEncryptRequest{EncryptionAlgorithm: explicit(o), Items: make([]wire.BatchEncryptItem, s.shape.Batch)}
		for i := range in.Items {
			in.Items[i].Plaintext = newVaried(s.shape.Payload)
		}
		return func(dst []byte) []byte {
			n++
			in.KeyId = ids[n%len(ids)]
			varied(in.Items[0].Plaintext).next()
			return in.AppendJSON(dst)
		}
	}, nil
}

func prepareBatchDecrypt(s *setup, o Operation) (Bodies, error) {
	ids, err := s.idsFor(o)
	if err != nil {
		return nil, err
	}
	blobs, err := s.ciphertexts(ids[:1], o)
	if err != nil {
		return nil, err
	}
	in := &wire.BatchDecryptRequest{EncryptionAlgorithm: explicit(o), Items: make([]wire.BatchDecryptItem, s.shape.Batch)}
	if !o.Spec.Symmetric() {
		in.KeyId = ids[0]
	}
	for i := range in.Items {
		in.Items[i].CiphertextBlob = blobs[i%len(blobs)]
	}
	return inTurn([][]byte{in.AppendJSON(nil)}), nil
}

func prepareBatchSign(s *setup, o Operation) (Bodies, error) {
	ids, err := s.idsFor(o)
	if err != nil {
		return nil, err
	}
	return func(n int) Body {
		in := &wire.BatchSignRequest{MessageType: messageForm(o), SigningAlgorithm: o.Alg.String(), Items: make([]wire.BatchSignItem, s.shape.Batch)}
		for i := range in.Items {
			in.Items[i].Message = newVaried(messageSize(o, s.shape))
		}
		return func(dst []byte) []byte {
			n++
			in.KeyId = ids[n%len(ids)]
			varied(in.Items[0].Message).next()
			return in.AppendJSON(dst)
		}
	}, nil
}

// signatures is how many different ones a batch to be verified holds.
const signatures = 64

func prepareBatchVerify(s *setup, o Operation) (Bodies, error) {
	ids, err := s.idsFor(o)
	if err != nil {
		return nil, err
	}
	in := &wire.BatchVerifyRequest{KeyId: ids[0], MessageType: messageForm(o), SigningAlgorithm: o.Alg.String(), Items: make([]wire.BatchVerifyItem, s.shape.Batch)}
	for i := range in.Items {
		if i >= signatures {
			in.Items[i] = in.Items[i%signatures]
			continue
		}
		var out struct{ Signature []byte }
		message := newVaried(messageSize(o, s.shape))
		err := s.call(wire.OpSign, &wire.SignRequest{KeyId: ids[0], Message: message, MessageType: in.MessageType, SigningAlgorithm: in.SigningAlgorithm}, &out)
		if err != nil {
			return nil, err
		}
		in.Items[i] = wire.BatchVerifyItem{Message: message, Signature: out.Signature}
	}
	return inTurn([][]byte{in.AppendJSON(nil)}), nil
}

// checkItems finds items that failed in an answer that as a whole is fine. No
// value of such an answer can hold the quotation mark.
func checkItems(body []byte) error {
	at := bytes.Index(body, []byte(`"ErrorCode"`))
	if at < 0 {
		return nil
	}
	return fmt.Errorf("an item failed: %.200s", body[at:])
}

var errFewKeys = errors.New("the answer is too short for the data keys asked for")

// checkDataKeys checks the length of an answer with n data keys of 32 bytes,
// each with a blob that is longer than that.
func checkDataKeys(n int) func([]byte) error {
	return func(body []byte) error {
		if len(body) < n*2*32 {
			return errFewKeys
		}
		return nil
	}
}

func everyItem(Shape) func([]byte) error { return checkItems }
