package kms

import (
	"keymill/daemon/wire"
	"keymill/engine"
)

// message fills x.ops[0] for Sign or Verify.
func (x *exchange) message(verb engine.Verb, alg, messageType string, message, signature []byte) *engine.Op {
	op := &x.ops[0]
	*op = engine.Op{Verb: verb, Alg: algorithm(alg, 0), In: message, Sig: signature, Out: x.blob[:0]}
	if messageType != "" {
		op.Type, _ = engine.ParseMessageType(messageType)
	}
	return op
}

func sign(x *exchange, in *wire.SignRequest) error {
	op := x.message(engine.Sign, in.SigningAlgorithm, in.MessageType, in.Message, nil)
	if err := cryptoError(x.do(x.key, op), x.key, op); err != nil {
		return err
	}
	resp := wire.SignResponse{KeyId: x.key.arn, Signature: op.Out, SigningAlgorithm: in.SigningAlgorithm}
	x.out = resp.AppendJSON(x.out)
	return nil
}

func verify(x *exchange, in *wire.VerifyRequest) error {
	op := x.message(engine.Verify, in.SigningAlgorithm, in.MessageType, in.Message, in.Signature)
	if err := cryptoError(x.do(x.key, op), x.key, op); err != nil {
		return err
	}
	resp := wire.VerifyResponse{KeyId: x.key.arn, SignatureValid: wire.Some(true), SigningAlgorithm: in.SigningAlgorithm}
	x.out = resp.AppendJSON(x.out)
	return nil
}

func generateMac(x *exchange, in *wire.GenerateMacRequest) error {
	op := x.message(engine.GenerateMAC, in.MacAlgorithm, "", in.Message, nil)
	if err := cryptoError(x.do(x.key, op), x.key, op); err != nil {
		return err
	}
	resp := wire.GenerateMacResponse{Mac: op.Out, MacAlgorithm: in.MacAlgorithm, KeyId: x.key.arn}
	x.out = resp.AppendJSON(x.out)
	return nil
}

func verifyMac(x *exchange, in *wire.VerifyMacRequest) error {
	op := x.message(engine.VerifyMAC, in.MacAlgorithm, "", in.Message, in.Mac)
	if err := cryptoError(x.do(x.key, op), x.key, op); err != nil {
		return err
	}
	resp := wire.VerifyMacResponse{KeyId: x.key.arn, MacValid: wire.Some(true), MacAlgorithm: in.MacAlgorithm}
	x.out = resp.AppendJSON(x.out)
	return nil
}

func deriveSharedSecret(x *exchange, in *wire.DeriveSharedSecretRequest) error {
	op := &x.ops[0]
	*op = engine.Op{Verb: engine.DeriveSecret, Alg: algorithm(in.KeyAgreementAlgorithm, 0), In: in.PublicKey, Out: x.secret[:0]}
	if err := cryptoError(x.do(x.key, op), x.key, op); err != nil {
		return err
	}
	x.secret = op.Out
	resp := wire.DeriveSharedSecretResponse{
		KeyId:                 x.key.arn,
		SharedSecret:          op.Out,
		KeyAgreementAlgorithm: in.KeyAgreementAlgorithm,
		KeyOrigin:             x.key.rec.Origin,
	}
	x.out = resp.AppendJSON(x.out)
	return nil
}

func getPublicKey(x *exchange, _ *wire.GetPublicKeyRequest) error {
	v := x.key
	if v.state == statePendingImport && len(v.rec.PublicKey) == 0 { // no key pair was imported yet
		return invalidState("%s is pending import.", v.arn)
	}
	if !v.spec.Asymmetric() {
		return wire.Bare(wire.UnsupportedOperationException)
	}
	resp := wire.GetPublicKeyResponse{
		KeyId:                 v.arn,
		PublicKey:             v.rec.PublicKey,
		CustomerMasterKeySpec: v.rec.Spec,
		KeySpec:               v.rec.Spec,
		KeyUsage:              v.rec.Usage,
	}
	switch names := algorithmNames(v.spec, v.usage); v.usage {
	case engine.EncryptDecrypt:
		resp.EncryptionAlgorithms = names
	case engine.SignVerify:
		resp.SigningAlgorithms = names
	case engine.KeyAgreement:
		resp.KeyAgreementAlgorithms = names
	}
	x.out = resp.AppendJSON(x.out)
	return nil
}
