package kms

import (
	"slices"

	"keymill/daemon/wire"
	"keymill/engine"
)

// An operation is one row of the table: everything the pipeline has to know of
// an AWS KMS operation, and the function that holds only what is special to it.
type operation struct {
	op wire.Op
	// action is the permission that the key must give, without "kms:"; for most
	// operations their own name.
	action string
	// actionOf is for operations whose permission depends on the input; nil is
	// action.
	actionOf func(in wire.Input) string
	// key finds the operation's KMS key; nil for operations without one, and for
	// those that name several and find them themselves.
	key func(x *exchange) (*keyView, error)
	// states says what the operation answers in each key state.
	states stateRule
	// quota says which of the account's request quotas a request counts in; without
	// a word it is the operation's own.
	quota quotaRule
	// usage is the only key usage that the operation works on; 0 is any.
	usage engine.Usage
	// light says that the operation does not wait, except where it calls mayWait
	// itself: its requests are answered where they are read. See package reactor.
	light bool
	// units says how many operations of AWS KMS the request counts for in quotas;
	// nil is one.
	units func(in wire.Input) int64
	// run does the work and puts the answer's body into x.out; nil for operations
	// that this version answers with UnsupportedOperationException.
	run func(x *exchange) error
}

// operations is indexed by wire.Op. The rows of a subject with many of its own are
// beside its functions.
var operations = table(coreRows, rotationRows, importRows, multiRegionRows, grantRows, keyStoreRows, usageRows)

var coreRows = []operation{
	{op: wire.OpBatchDecrypt, action: "Decrypt", key: batchDecryptionKey, states: cryptography, quota: keyQuota, usage: engine.EncryptDecrypt, units: items(func(in *wire.BatchDecryptRequest) int { return len(in.Items) }), run: with(batchDecrypt)},
	{op: wire.OpBatchEncrypt, action: "Encrypt", key: byAlias(func(in *wire.BatchEncryptRequest) string { return in.KeyId }), states: cryptography, quota: keyQuota, usage: engine.EncryptDecrypt, units: items(func(in *wire.BatchEncryptRequest) int { return len(in.Items) }), run: with(batchEncrypt)},
	{op: wire.OpBatchSign, action: "Sign", key: byAlias(func(in *wire.BatchSignRequest) string { return in.KeyId }), states: cryptography, quota: keyQuota, usage: engine.SignVerify, units: items(func(in *wire.BatchSignRequest) int { return len(in.Items) }), run: with(batchSign)},
	{op: wire.OpBatchVerify, action: "Verify", key: byAlias(func(in *wire.BatchVerifyRequest) string { return in.KeyId }), states: cryptography, quota: keyQuota, usage: engine.SignVerify, units: items(func(in *wire.BatchVerifyRequest) int { return len(in.Items) }), run: with(batchVerify)},
	{op: wire.OpCancelKeyDeletion, key: byKey(func(in *wire.CancelKeyDeletionRequest) string { return in.KeyId }), states: deletionCancel, run: with(cancelKeyDeletion)},
	{op: wire.OpCreateAlias, states: description, run: with(createAlias)},
	{op: wire.OpCreateKey, run: with(createKey)},
	{op: wire.OpDecrypt, light: true, key: decryptionKey, states: cryptography, quota: keyQuota, usage: engine.EncryptDecrypt, run: with(decrypt)},
	{op: wire.OpDeleteAlias, states: always, run: with(deleteAlias)},
	{op: wire.OpDeriveSharedSecret, key: byAlias(func(in *wire.DeriveSharedSecretRequest) string { return in.KeyId }), states: cryptography, quota: keyQuota, usage: engine.KeyAgreement, run: with(deriveSharedSecret)},
	{op: wire.OpDescribeKey, light: true, key: describedKey, states: always, run: with(describeKey)},
	{op: wire.OpDisableKey, key: byKey(func(in *wire.DisableKeyRequest) string { return in.KeyId }), states: enableDisable, run: with(disableKey)},
	{op: wire.OpEnableKey, key: byKey(func(in *wire.EnableKeyRequest) string { return in.KeyId }), states: enableDisable, run: with(enableKey)},
	{op: wire.OpEncrypt, light: true, key: byAlias(func(in *wire.EncryptRequest) string { return in.KeyId }), states: cryptography, quota: keyQuota, usage: engine.EncryptDecrypt, run: with(encrypt)},
	{op: wire.OpGenerateDataKey, light: true, key: dataKeyKey(func(in *wire.GenerateDataKeyRequest) (string, string, wire.Opt[int64]) {
		return in.KeyId, in.KeySpec, in.NumberOfBytes
	}), states: cryptography, quota: keyQuota, usage: engine.EncryptDecrypt, run: with(generateDataKey)},
	{op: wire.OpGenerateDataKeyPair, key: byAlias(func(in *wire.GenerateDataKeyPairRequest) string { return in.KeyId }), states: dataKeyPair, quota: pairQuota, usage: engine.EncryptDecrypt, run: with(generateDataKeyPair)},
	{op: wire.OpGenerateDataKeyPairWithoutPlaintext, key: byAlias(func(in *wire.GenerateDataKeyPairWithoutPlaintextRequest) string { return in.KeyId }), states: dataKeyPair, quota: pairQuota, usage: engine.EncryptDecrypt, run: with(generateDataKeyPairWithoutPlaintext)},
	{op: wire.OpGenerateDataKeys, actionOf: generateDataKeysAction, key: byAlias(func(in *wire.GenerateDataKeysRequest) string { return in.KeyId }), states: cryptography, quota: keyQuota, usage: engine.EncryptDecrypt, units: items(dataKeyUnits), run: with(generateDataKeys)},
	{op: wire.OpGenerateDataKeyWithoutPlaintext, light: true, key: dataKeyKey(func(in *wire.GenerateDataKeyWithoutPlaintextRequest) (string, string, wire.Opt[int64]) {
		return in.KeyId, in.KeySpec, in.NumberOfBytes
	}), states: cryptography, quota: keyQuota, usage: engine.EncryptDecrypt, run: with(generateDataKeyWithoutPlaintext)},
	{op: wire.OpGenerateMac, light: true, key: byAlias(func(in *wire.GenerateMacRequest) string { return in.KeyId }), states: cryptography, quota: keyQuota, usage: engine.GenerateVerifyMAC, run: with(generateMac)},
	{op: wire.OpGenerateRandom, light: true, quota: symmetricQuota, run: with(generateRandom)},
	{op: wire.OpGetKeyPolicy, key: byKey(func(in *wire.GetKeyPolicyRequest) string { return in.KeyId }), states: always, run: with(getKeyPolicy)},
	{op: wire.OpGetPublicKey, key: byAlias(func(in *wire.GetPublicKeyRequest) string { return in.KeyId }), states: publicKey, run: with(getPublicKey)},
	{op: wire.OpListAliases, states: always, run: with(listAliases)},
	{op: wire.OpListKeyPolicies, key: byKey(func(in *wire.ListKeyPoliciesRequest) string { return in.KeyId }), states: always, run: with(listKeyPolicies)},
	{op: wire.OpListKeys, run: with(listKeys)},
	{op: wire.OpListResourceTags, key: byKey(func(in *wire.ListResourceTagsRequest) string { return in.KeyId }), states: always, run: with(listResourceTags)},
	{op: wire.OpPutKeyPolicy, key: byKey(func(in *wire.PutKeyPolicyRequest) string { return in.KeyId }), states: always, run: with(putKeyPolicy)},
	{op: wire.OpReEncrypt, light: true, action: "ReEncryptFrom", key: reEncryptSource, states: cryptography, quota: keyQuota, usage: engine.EncryptDecrypt, run: with(reEncrypt)},
	{op: wire.OpScheduleKeyDeletion, key: byKey(func(in *wire.ScheduleKeyDeletionRequest) string { return in.KeyId }), states: deletionStart, run: with(scheduleKeyDeletion)},
	{op: wire.OpSign, light: true, key: byAlias(func(in *wire.SignRequest) string { return in.KeyId }), states: cryptography, quota: keyQuota, usage: engine.SignVerify, run: with(sign)},
	{op: wire.OpTagResource, key: byKey(func(in *wire.TagResourceRequest) string { return in.KeyId }), states: description, run: with(tagResource)},
	{op: wire.OpUntagResource, key: byKey(func(in *wire.UntagResourceRequest) string { return in.KeyId }), states: description, run: with(untagResource)},
	{op: wire.OpUpdateAlias, states: description, run: with(updateAlias)},
	{op: wire.OpUpdateKeyDescription, key: byKey(func(in *wire.UpdateKeyDescriptionRequest) string { return in.KeyId }), states: description, run: with(updateKeyDescription)},
	{op: wire.OpVerify, light: true, key: byAlias(func(in *wire.VerifyRequest) string { return in.KeyId }), states: cryptography, quota: keyQuota, usage: engine.SignVerify, run: with(verify)},
	{op: wire.OpVerifyMac, light: true, key: byAlias(func(in *wire.VerifyMacRequest) string { return in.KeyId }), states: cryptography, quota: keyQuota, usage: engine.GenerateVerifyMAC, run: with(verifyMac)},
}

func table(subjects ...[]operation) (t [wire.NumOps + 1]operation) {
	for op := range t {
		t[op] = operation{op: wire.Op(op)}
	}
	for _, r := range slices.Concat(subjects...) {
		if t[r.op].run != nil {
			panic("kms: two rows for " + r.op.String())
		}
		if r.action == "" {
			r.action = r.op.String()
		}
		t[r.op] = r
	}
	return t
}

// permission returns the permission that the key must give.
func (r *operation) permission(in wire.Input) string {
	if r.actionOf != nil {
		return r.actionOf(in)
	}
	return r.action
}

// items makes a units function of one that counts an input's items.
func items[I any](count func(in *I) int) func(wire.Input) int64 {
	return func(in wire.Input) int64 { return max(1, int64(count(any(in).(*I)))) }
}

// with gives an operation's function its decoded input.
func with[I any](f func(x *exchange, in *I) error) func(*exchange) error {
	return func(x *exchange) error { return f(x, any(x.in).(*I)) }
}

// byAlias finds the key by any of the four forms of an identifier.
func byAlias[I any](text func(in *I) string) func(*exchange) (*keyView, error) {
	return func(x *exchange) (*keyView, error) { return x.resolve(text(any(x.in).(*I)), keysAndAliases) }
}

// byKey finds the key by key ID or key ARN only.
func byKey[I any](text func(in *I) string) func(*exchange) (*keyView, error) {
	return func(x *exchange) (*keyView, error) { return x.resolve(text(any(x.in).(*I)), keysOnly) }
}

// commonFields are members that many inputs share and the pipeline handles.
type commonFields struct {
	recipient   *wire.RecipientInfo
	grantTokens []string
	dryRun      bool
	modifiers   []string
}

func common(in wire.Input) commonFields {
	switch in := in.(type) {
	case *wire.BatchDecryptRequest:
		return commonFields{recipient: in.Recipient, grantTokens: in.GrantTokens, dryRun: in.DryRun.V}
	case *wire.BatchEncryptRequest:
		return commonFields{grantTokens: in.GrantTokens, dryRun: in.DryRun.V}
	case *wire.BatchSignRequest:
		return commonFields{grantTokens: in.GrantTokens, dryRun: in.DryRun.V}
	case *wire.BatchVerifyRequest:
		return commonFields{grantTokens: in.GrantTokens, dryRun: in.DryRun.V}
	case *wire.CreateGrantRequest:
		return commonFields{grantTokens: in.GrantTokens, dryRun: in.DryRun.V}
	case *wire.DecryptRequest:
		return commonFields{in.Recipient, in.GrantTokens, in.DryRun.V, in.DryRunModifiers}
	case *wire.DeriveSharedSecretRequest:
		return commonFields{recipient: in.Recipient, grantTokens: in.GrantTokens, dryRun: in.DryRun.V}
	case *wire.DescribeKeyRequest:
		return commonFields{grantTokens: in.GrantTokens}
	case *wire.EncryptRequest:
		return commonFields{grantTokens: in.GrantTokens, dryRun: in.DryRun.V}
	case *wire.GenerateDataKeyRequest:
		return commonFields{recipient: in.Recipient, grantTokens: in.GrantTokens, dryRun: in.DryRun.V}
	case *wire.GenerateDataKeyPairRequest:
		return commonFields{recipient: in.Recipient, grantTokens: in.GrantTokens, dryRun: in.DryRun.V}
	case *wire.GenerateDataKeyPairWithoutPlaintextRequest:
		return commonFields{grantTokens: in.GrantTokens, dryRun: in.DryRun.V}
	case *wire.GenerateDataKeysRequest:
		return commonFields{recipient: in.Recipient, grantTokens: in.GrantTokens, dryRun: in.DryRun.V}
	case *wire.GenerateDataKeyWithoutPlaintextRequest:
		return commonFields{grantTokens: in.GrantTokens, dryRun: in.DryRun.V}
	case *wire.GenerateMacRequest:
		return commonFields{grantTokens: in.GrantTokens, dryRun: in.DryRun.V}
	case *wire.GenerateRandomRequest:
		return commonFields{recipient: in.Recipient}
	case *wire.GetPublicKeyRequest:
		return commonFields{grantTokens: in.GrantTokens}
	case *wire.ReEncryptRequest:
		return commonFields{nil, in.GrantTokens, in.DryRun.V, in.DryRunModifiers}
	case *wire.RetireGrantRequest:
		return commonFields{dryRun: in.DryRun.V}
	case *wire.RevokeGrantRequest:
		return commonFields{dryRun: in.DryRun.V}
	case *wire.SignRequest:
		return commonFields{grantTokens: in.GrantTokens, dryRun: in.DryRun.V}
	case *wire.VerifyRequest:
		return commonFields{grantTokens: in.GrantTokens, dryRun: in.DryRun.V}
	case *wire.VerifyMacRequest:
		return commonFields{grantTokens: in.GrantTokens, dryRun: in.DryRun.V}
	}
	return commonFields{}
}
