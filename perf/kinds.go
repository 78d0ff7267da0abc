package perf

import (
	"fmt"

	"keymill/daemon/wire"
	"keymill/engine"
)

// kinds is what can be measured, in the order of lists.
var kinds = []kind{

	{name: "GenerateDataKey", op: wire.OpGenerateDataKey, spec: engine.SymmetricDefault, usage: engine.EncryptDecrypt, symmetric: true, what: dataKeySize,
		prepare: onEachKey(func(id string, _ Operation, _ Shape) Input {
			return &wire.GenerateDataKeyRequest{KeyId: id, KeySpec: "AES_256"}
		}), primitive: dataKeyPrimitive},
	{name: "GenerateDataKeyWithoutPlaintext", op: wire.OpGenerateDataKeyWithoutPlaintext, spec: engine.SymmetricDefault, usage: engine.EncryptDecrypt, symmetric: true, what: dataKeySize,
		prepare: onEachKey(func(id string, _ Operation, _ Shape) Input {
			return &wire.GenerateDataKeyWithoutPlaintextRequest{KeyId: id, KeySpec: "AES_256"}
		}), primitive: dataKeyPrimitive},
	{name: "Encrypt", op: wire.OpEncrypt, spec: engine.SymmetricDefault, usage: engine.EncryptDecrypt, what: payload,
		prepare: onVaried(payloadSize, func(o Operation) func(string, []byte) Input {
			in := &wire.EncryptRequest{EncryptionAlgorithm: explicit(o)}
			return func(id string, message []byte) Input {
				in.KeyId, in.Plaintext = id, message
				return in
			}
		}), primitive: enginePrimitive(engine.Encrypt)},
	{name: "Decrypt", op: wire.OpDecrypt, spec: engine.SymmetricDefault, usage: engine.EncryptDecrypt, what: payload,
		prepare: prepareDecrypt, primitive: enginePrimitive(engine.Decrypt)},
	{name: "ReEncrypt", op: wire.OpReEncrypt, spec: engine.SymmetricDefault, usage: engine.EncryptDecrypt, symmetric: true, what: payload,
		prepare: prepareReEncrypt},
	{name: "Sign", op: wire.OpSign, spec: engine.P256, usage: engine.SignVerify,
		prepare: onVaried(messageSize, func(o Operation) func(string, []byte) Input {
			in := &wire.SignRequest{MessageType: messageForm(o), SigningAlgorithm: o.Alg.String()}
			return func(id string, message []byte) Input {
				in.KeyId, in.Message = id, message
				return in
			}
		}), primitive: enginePrimitive(engine.Sign)},
	{name: "Verify", op: wire.OpVerify, spec: engine.P256, usage: engine.SignVerify,
		prepare: prepareVerify, primitive: enginePrimitive(engine.Verify)},
	{name: "GenerateMac", op: wire.OpGenerateMac, spec: engine.HMAC256, usage: engine.GenerateVerifyMAC, what: payload,
		prepare: onVaried(payloadSize, func(o Operation) func(string, []byte) Input {
			in := &wire.GenerateMacRequest{MacAlgorithm: o.Alg.String()}
			return func(id string, message []byte) Input {
				in.KeyId, in.Message = id, message
				return in
			}
		}), primitive: enginePrimitive(engine.GenerateMAC)},
	{name: "VerifyMac", op: wire.OpVerifyMac, spec: engine.HMAC256, usage: engine.GenerateVerifyMAC, what: payload,
		prepare: prepareVerifyMac, primitive: enginePrimitive(engine.VerifyMAC)},
	{name: "DeriveSharedSecret", op: wire.OpDeriveSharedSecret, spec: engine.P256, usage: engine.KeyAgreement,
		prepare: prepareDeriveSharedSecret, primitive: enginePrimitive(engine.DeriveSecret)},
	{name: "GenerateDataKeyPair", op: wire.OpGenerateDataKeyPair, spec: engine.P256, usage: engine.EncryptDecrypt, pair: true,
		prepare: onEachKey(func(id string, o Operation, _ Shape) Input {
			return &wire.GenerateDataKeyPairRequest{KeyId: id, KeyPairSpec: o.Spec.String()}
		})},
	{name: "GenerateRandom", op: wire.OpGenerateRandom, what: payload,
		prepare: func(s *setup, _ Operation) (Bodies, error) {
			return inTurn([][]byte{(&wire.GenerateRandomRequest{NumberOfBytes: wire.Some(int64(s.shape.Payload))}).AppendJSON(nil)}), nil
		}, primitive: randomPrimitive},
	{name: "GetPublicKey", op: wire.OpGetPublicKey, spec: engine.P256, public: true,
		prepare: onEachKey(func(id string, _ Operation, _ Shape) Input { return &wire.GetPublicKeyRequest{KeyId: id} })},
	{name: "DescribeKey", op: wire.OpDescribeKey, spec: engine.SymmetricDefault,
		prepare: onEachKey(func(id string, _ Operation, _ Shape) Input { return &wire.DescribeKeyRequest{KeyId: id} })},
	{name: "CreateKey", op: wire.OpCreateKey, spec: engine.SymmetricDefault,
		prepare: func(_ *setup, o Operation) (Bodies, error) {
			in := &wire.CreateKeyRequest{KeySpec: o.Spec.String(), Description: "load"}
			if usage, ok := o.Spec.DefaultUsage(); ok {
				in.KeyUsage = usage.String()
			} else {
				in.KeyUsage = o.Spec.Usages()[0].String()
			}
			return inTurn([][]byte{in.AppendJSON(nil)}), nil
		}},
	{name: "GenerateDataKeys", op: wire.OpGenerateDataKeys, spec: engine.SymmetricDefault, usage: engine.EncryptDecrypt, symmetric: true, bulk: true,
		what:    func(s Shape) string { return fmt.Sprintf("%d AES_256, binary", s.Batch) },
		prepare: prepareDataKeys("BINARY"), primitive: dataKeyPrimitive, check: func(s Shape) func([]byte) error { return checkDataKeys(s.Batch) }},
	{name: "GenerateDataKeysJSON", op: wire.OpGenerateDataKeys, spec: engine.SymmetricDefault, usage: engine.EncryptDecrypt, symmetric: true, bulk: true,
		what:    func(s Shape) string { return fmt.Sprintf("%d AES_256, JSON", s.Batch) },
		prepare: prepareDataKeys(""), primitive: dataKeyPrimitive, check: func(s Shape) func([]byte) error { return checkDataKeys(s.Batch) }},
	{name: "BatchEncrypt", op: wire.OpBatchEncrypt, spec: engine.SymmetricDefault, usage: engine.EncryptDecrypt, bulk: true, what: itemsOf,
		prepare: prepareBatchEncrypt, primitive: enginePrimitive(engine.Encrypt), check: everyItem},
	{name: "BatchDecrypt", op: wire.OpBatchDecrypt, spec: engine.SymmetricDefault, usage: engine.EncryptDecrypt, bulk: true, what: itemsOf,
		prepare: prepareBatchDecrypt, primitive: enginePrimitive(engine.Decrypt), check: everyItem},
	{name: "BatchSign", op: wire.OpBatchSign, spec: engine.P256, usage: engine.SignVerify, bulk: true, what: items,
		prepare: prepareBatchSign, primitive: enginePrimitive(engine.Sign), check: everyItem},
	{name: "BatchVerify", op: wire.OpBatchVerify, spec: engine.P256, usage: engine.SignVerify, bulk: true, what: items,
		prepare: prepareBatchVerify, primitive: enginePrimitive(engine.Verify), check: everyItem},
	{name: "DisableKey", part: true, op: wire.OpDisableKey, spec: engine.SymmetricDefault,
		prepare: onOwnKey(func(id string) Input { return &wire.DisableKeyRequest{KeyId: id} })},
	{name: "EnableKey", part: true, op: wire.OpEnableKey, spec: engine.SymmetricDefault,
		prepare: onOwnKey(func(id string) Input { return &wire.EnableKeyRequest{KeyId: id} })},
	{name: "FirstUse", part: true, op: wire.OpGenerateDataKeyWithoutPlaintext, spec: engine.SymmetricDefault, usage: engine.EncryptDecrypt, symmetric: true, what: dataKeySize,
		prepare: onOwnKey(func(id string) Input {
			return &wire.GenerateDataKeyWithoutPlaintextRequest{KeyId: id, KeySpec: "AES_256"}
		})},
}

func dataKeySize(Shape) string { return "AES_256" }

// onOwnKey is the preparation of a request for the connection's own key, of
// which there must be as many as connections.
func onOwnKey(body func(id string) Input) func(*setup, Operation) (Bodies, error) {
	return func(s *setup, o Operation) (Bodies, error) {
		ids, err := s.idsFor(o)
		if err != nil {
			return nil, err
		}
		return func(conn int) Body {
			text := body(ids[conn%len(ids)]).AppendJSON(nil)
			return func(dst []byte) []byte { return append(dst, text...) }
		}, nil
	}
}
