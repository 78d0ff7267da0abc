package kms

import (
	"errors"

	"keymill/daemon/wire"
	"keymill/engine"
	"keymill/keystore"
)

// algorithm returns the algorithm that a member names, byDefault when it is absent.
// The names were checked against the model.
func algorithm(name string, byDefault engine.Algorithm) engine.Algorithm {
	if name == "" {
		return byDefault
	}
	alg, _ := engine.ParseAlgorithm(name)
	return alg
}

// cryptoError turns the engine's verdict on one operation into the answer.
func cryptoError(err error, v *keyView, op *engine.Op) error {
	switch err {
	case nil:
		return nil
	case engine.ErrInvalidCiphertext:
		return wire.Bare(wire.InvalidCiphertextException)
	case engine.ErrInvalidSignature:
		return wire.Bare(wire.KMSInvalidSignatureException)
	case engine.ErrInvalidMAC:
		return wire.Bare(wire.KMSInvalidMacException)
	case engine.ErrIncompatible:
		return incompatible(op.Alg, v)
	case engine.ErrPlaintextTooLong:
		return invalid("Algorithm %s and key spec %s cannot encrypt data larger than %d bytes.", op.Alg, v.spec, engine.MaxPlaintext(v.spec, op.Alg))
	case engine.ErrDigestLength:
		return invalid("Digest is invalid length for algorithm %s.", op.Alg)
	case engine.ErrMessageType:
		if op.Alg == engine.AlgMLDSA {
			return invalid("Message type %s is incompatible with key spec %s.", op.Type, v.spec)
		}
		return invalid("Message type %s is incompatible with algorithm %s.", op.Type, op.Alg)
	case engine.ErrInvalidPublicKey:
		return invalid("")
	}
	if v != nil && v.store != nil {
		return v.store.cryptoError(err, v.arn)
	}
	return err
}

func incompatible(alg engine.Algorithm, v *keyView) error {
	return wire.NewError(wire.InvalidKeyUsageException, "Algorithm %s is incompatible with key spec %s.", alg, v.spec)
}

var errIncorrectKey = wire.NewError(wire.IncorrectKeyException, "The key ID in the request does not identify a CMK that can perform this operation.")

// ciphertextOf refuses v as the key that the request names for a symmetric
// ciphertext: one that is none, or that names another key. AWS KMS says so before it
// speaks of v's usage, state or spec.
func (x *exchange) ciphertextOf(v *keyView) error {
	var ciphertext []byte
	var alg string
	var modifiers []string
	switch in := x.in.(type) {
	case *wire.DecryptRequest:
		ciphertext, alg, modifiers = in.CiphertextBlob, in.EncryptionAlgorithm, in.DryRunModifiers
	case *wire.ReEncryptRequest:
		ciphertext, alg, modifiers = in.CiphertextBlob, in.SourceEncryptionAlgorithm, in.DryRunModifiers
	default:
		return nil
	}
	if v != x.key || len(modifiers) > 0 || algorithm(alg, engine.AlgSymmetric) != engine.AlgSymmetric {
		return nil
	}
	return names(ciphertext, v)
}

// names refuses a symmetric ciphertext that does not name v.
func names(ciphertext []byte, v *keyView) error {
	switch h, err := engine.ParseBlob(ciphertext); {
	case err != nil:
		return wire.Bare(wire.InvalidCiphertextException)
	case h.KeyID != v.id:
		return errIncorrectKey
	}
	return nil
}

// seal encrypts plaintext under v. The result is in op.Out.
func (x *exchange) seal(v *keyView, op *engine.Op, alg engine.Algorithm, plaintext, aad []byte) error {
	if alg != engine.AlgSymmetric && len(aad) > 0 {
		return invalid("EncryptionContext is not supported with algorithm %s: it can only be used with symmetric encryption keys.", alg)
	}
	*op = engine.Op{Verb: engine.Encrypt, Alg: alg, In: plaintext, AAD: aad, Out: x.blob[:0]}
	err := cryptoError(x.do(v, op), v, op)
	if err == nil {
		x.blob = op.Out
	}
	return err
}

// open decrypts ciphertext under v. The result is in op.Out, which is x.secret.
func (x *exchange) open(v *keyView, op *engine.Op, alg engine.Algorithm, ciphertext, aad []byte) error {
	if alg == engine.AlgSymmetric {
		if err := names(ciphertext, v); err != nil {
			return err
		}
	} else if len(aad) > 0 {
		return invalid("EncryptionContext is not supported with algorithm %s: it can only be used with symmetric encryption keys.", alg)
	}
	*op = engine.Op{Verb: engine.Decrypt, Alg: alg, In: ciphertext, AAD: aad, Out: x.secret[:0]}
	err := cryptoError(x.do(v, op), v, op)
	if err == nil {
		x.secret = op.Out
	}
	return err
}

func encrypt(x *exchange, in *wire.EncryptRequest) error {
	x.aad = x.encryptionContext(x.aad, in.EncryptionContext)
	op := &x.ops[0]
	if err := x.seal(x.key, op, algorithm(in.EncryptionAlgorithm, engine.AlgSymmetric), in.Plaintext, x.aad); err != nil {
		return err
	}
	resp := wire.EncryptResponse{CiphertextBlob: op.Out, KeyId: x.key.arn, EncryptionAlgorithm: op.Alg.String()}
	x.out = resp.AppendJSON(x.out)
	return nil
}

// ciphertextKey finds the key of a ciphertext: the one the caller names, else,
// for symmetric ciphertext, the one the blob names. A key that cannot be found
// through a blob is answered as one that the caller may not use.
func (x *exchange) ciphertextKey(keyID string, alg engine.Algorithm, ciphertext []byte, hasCiphertext, ignoreCiphertext bool) (*keyView, error) {
	if !hasCiphertext && !ignoreCiphertext {
		var v wire.Violations
		v.Required("ciphertextBlob")
		return nil, v.Err()
	}
	if keyID != "" {
		return x.resolve(keyID, keysAndAliases)
	}
	if ignoreCiphertext {
		return nil, invalid("A key ID is required when DryRunModifiers has IGNORE_CIPHERTEXT.")
	}
	if alg != engine.AlgSymmetric {
		return nil, invalid("A key ID is required to decrypt with algorithm %s: only symmetric ciphertext names its key.", alg)
	}
	h, err := engine.ParseBlob(ciphertext)
	if err != nil {
		return nil, cryptoError(err, nil, nil)
	}
	v, err := x.view(keystore.Ref{Region: x.region, ID: h.KeyID.ID})
	if errors.Is(err, keystore.ErrNotFound) || err == nil && (v.id != h.KeyID || v.rec.Account != x.account) {
		return nil, wire.NewError(wire.AccessDeniedException, "The ciphertext refers to a customer master key that does not exist, does not exist in this region, or you are not allowed to access.")
	}
	return v, err
}

func decryptionKey(x *exchange) (*keyView, error) {
	in := x.in.(*wire.DecryptRequest)
	return x.ciphertextKey(in.KeyId, algorithm(in.EncryptionAlgorithm, engine.AlgSymmetric), in.CiphertextBlob, in.HasCiphertextBlob(), len(in.DryRunModifiers) > 0)
}

func decrypt(x *exchange, in *wire.DecryptRequest) error {
	if len(in.DryRunModifiers) > 0 {
		return nil
	}
	x.aad = x.encryptionContext(x.aad, in.EncryptionContext)
	op := &x.ops[0]
	if err := x.open(x.key, op, algorithm(in.EncryptionAlgorithm, engine.AlgSymmetric), in.CiphertextBlob, x.aad); err != nil {
		return err
	}
	resp := wire.DecryptResponse{
		KeyId:               x.key.arn,
		Plaintext:           op.Out,
		EncryptionAlgorithm: op.Alg.String(),
		KeyMaterialId:       x.key.materialText(op.Material),
	}
	x.out = resp.AppendJSON(x.out)
	return nil
}

func reEncryptSource(x *exchange) (*keyView, error) {
	in := x.in.(*wire.ReEncryptRequest)
	return x.ciphertextKey(in.SourceKeyId, algorithm(in.SourceEncryptionAlgorithm, engine.AlgSymmetric), in.CiphertextBlob, in.HasCiphertextBlob(), len(in.DryRunModifiers) > 0)
}

func reEncrypt(x *exchange, in *wire.ReEncryptRequest) error {
	dest, err := x.resolve(in.DestinationKeyId, keysAndAliases)
	if err != nil {
		return err
	}
	if err := x.admit(keyClass(dest.spec)); err != nil {
		return err
	}
	if err := x.judge(dest, "ReEncryptTo"); err != nil {
		return err
	}
	if len(in.DryRunModifiers) > 0 {
		return nil
	}
	from, to := &x.ops[0], &x.ops[1]
	x.aad = x.encryptionContext(x.aad, in.SourceEncryptionContext)
	if err := x.open(x.key, from, algorithm(in.SourceEncryptionAlgorithm, engine.AlgSymmetric), in.CiphertextBlob, x.aad); err != nil {
		return err
	}
	x.aad2 = x.encryptionContext(x.aad2, in.DestinationEncryptionContext)
	if err := x.seal(dest, to, algorithm(in.DestinationEncryptionAlgorithm, engine.AlgSymmetric), from.Out, x.aad2); err != nil {
		return err
	}
	if dest.ref != x.key.ref {
		x.used(dest, useReEncrypt, 1)
	}
	resp := wire.ReEncryptResponse{
		CiphertextBlob:                 to.Out,
		SourceKeyId:                    x.key.arn,
		KeyId:                          dest.arn,
		SourceEncryptionAlgorithm:      from.Alg.String(),
		DestinationEncryptionAlgorithm: to.Alg.String(),
		SourceKeyMaterialId:            x.key.materialText(from.Material),
		DestinationKeyMaterialId:       dest.materialText(to.Material),
	}
	x.out = resp.AppendJSON(x.out)
	return nil
}

// dataKeySize returns the length in bytes of the data key that a request asks
// for; exactly one of keySpec and numberOfBytes must be given.
func dataKeySize(keySpec string, numberOfBytes wire.Opt[int64]) (int, error) {
	if (keySpec == "") == !numberOfBytes.Set {
		return 0, invalid("Please specify either number of bytes or key spec.")
	}
	switch keySpec {
	case "AES_128":
		return 16, nil
	case "AES_256":
		return 32, nil
	}
	return int(numberOfBytes.V), nil
}

// dataKeyKey finds the key for a new data key, once it is clear what to make: AWS KMS
// looks at that before it does at the key's usage and state.
func dataKeyKey[I any](fields func(in *I) (keyID, keySpec string, numberOfBytes wire.Opt[int64])) func(*exchange) (*keyView, error) {
	return func(x *exchange) (*keyView, error) {
		id, spec, n := fields(any(x.in).(*I))
		if _, err := dataKeySize(spec, n); err != nil {
			return nil, err
		}
		return x.resolve(id, keysAndAliases)
	}
}

// newDataKey fills x.secret with a new data key and seals it under x.key.
func (x *exchange) newDataKey(keySpec string, numberOfBytes wire.Opt[int64], context []wire.Pair) error {
	n, err := dataKeySize(keySpec, numberOfBytes)
	if err != nil {
		return err
	}
	if !x.key.spec.Symmetric() {
		return wire.ErrorText(wire.InvalidKeyUsageException, "You cannot generate a data key with an asymmetric CMK")
	}
	x.secret = x.secret[:n]
	engine.Random(x.secret)
	return x.sealSecret(context)
}

// sealSecret seals x.secret under x.key, into x.ops[0].
func (x *exchange) sealSecret(context []wire.Pair) error {
	x.aad = x.encryptionContext(x.aad, context)
	return x.seal(x.key, &x.ops[0], engine.AlgSymmetric, x.secret, x.aad)
}

func generateDataKey(x *exchange, in *wire.GenerateDataKeyRequest) error {
	if err := x.newDataKey(in.KeySpec, in.NumberOfBytes, in.EncryptionContext); err != nil {
		return err
	}
	op := &x.ops[0]
	resp := wire.GenerateDataKeyResponse{
		CiphertextBlob: op.Out,
		Plaintext:      x.secret,
		KeyId:          x.key.arn,
		KeyMaterialId:  x.key.materialText(op.Material),
	}
	x.out = resp.AppendJSON(x.out)
	return nil
}

func generateDataKeyWithoutPlaintext(x *exchange, in *wire.GenerateDataKeyWithoutPlaintextRequest) error {
	if err := x.newDataKey(in.KeySpec, in.NumberOfBytes, in.EncryptionContext); err != nil {
		return err
	}
	op := &x.ops[0]
	resp := wire.GenerateDataKeyWithoutPlaintextResponse{
		CiphertextBlob: op.Out,
		KeyId:          x.key.arn,
		KeyMaterialId:  x.key.materialText(op.Material),
	}
	x.out = resp.AppendJSON(x.out)
	return nil
}

// newDataKeyPair makes a key pair, its private key in x.secret as PKCS #8, and
// seals the private key under x.key. A dry run makes none.
func (x *exchange) newDataKeyPair(pairSpec string, context []wire.Pair) (public []byte, err error) {
	switch {
	case x.key.store != nil:
		return nil, wire.NewError(wire.UnsupportedOperationException, "%s is in a custom key store, whose keys do not encrypt data key pairs.", x.key.arn)
	case !x.key.spec.Symmetric():
		return nil, incompatible(engine.AlgSymmetric, x.key)
	}
	if x.dryRun {
		return nil, nil
	}
	spec, _ := engine.ParseSpec(pairSpec)
	private, public, err := x.svc.generateKeyPair(spec)
	if err != nil {
		return nil, err
	}
	x.secret = append(x.secret[:0], private...)
	clear(private)
	return public, x.sealSecret(context)
}

func generateDataKeyPair(x *exchange, in *wire.GenerateDataKeyPairRequest) error {
	public, err := x.newDataKeyPair(in.KeyPairSpec, in.EncryptionContext)
	if err != nil {
		return err
	}
	op := &x.ops[0]
	resp := wire.GenerateDataKeyPairResponse{
		PrivateKeyCiphertextBlob: op.Out,
		PrivateKeyPlaintext:      x.secret,
		PublicKey:                public,
		KeyId:                    x.key.arn,
		KeyPairSpec:              in.KeyPairSpec,
		KeyMaterialId:            x.key.materialText(op.Material),
	}
	x.out = resp.AppendJSON(x.out)
	return nil
}

func generateDataKeyPairWithoutPlaintext(x *exchange, in *wire.GenerateDataKeyPairWithoutPlaintextRequest) error {
	public, err := x.newDataKeyPair(in.KeyPairSpec, in.EncryptionContext)
	if err != nil {
		return err
	}
	op := &x.ops[0]
	resp := wire.GenerateDataKeyPairWithoutPlaintextResponse{
		PrivateKeyCiphertextBlob: op.Out,
		PublicKey:                public,
		KeyId:                    x.key.arn,
		KeyPairSpec:              in.KeyPairSpec,
		KeyMaterialId:            x.key.materialText(op.Material),
	}
	x.out = resp.AppendJSON(x.out)
	return nil
}

func generateRandom(x *exchange, in *wire.GenerateRandomRequest) error {
	if !in.NumberOfBytes.Set {
		return invalid("NumberOfBytes is required.")
	}
	x.secret = x.secret[:in.NumberOfBytes.V]
	if in.CustomKeyStoreId == "" {
		engine.Random(x.secret)
	} else if err := x.randomFrom(in.CustomKeyStoreId, x.secret); err != nil {
		return err
	}
	resp := wire.GenerateRandomResponse{Plaintext: x.secret}
	x.out = resp.AppendJSON(x.out)
	return nil
}
