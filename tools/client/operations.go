package client

import (
	"context"
	"encoding/base64"
	"errors"
	"slices"
	"strings"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/kms/types"

	"keymill/daemon/wire"
	"keymill/daemon/wire/bulk"
)

// GenerateDataKeysInput asks for data keys: NumberOfKeys of them, or one for
// each of EncryptionContexts.
type GenerateDataKeysInput struct {
	KeyId              *string             // required
	NumberOfKeys       int32               // 0: one for each of EncryptionContexts
	KeySpec            types.DataKeySpec   // either this
	NumberOfBytes      *int32              // or this
	EncryptionContext  map[string]string   // of every data key
	EncryptionContexts []map[string]string // of each
	WithoutPlaintext   bool
	GrantTokens        []string
	DryRun             *bool
}

// GenerateDataKeysOutput is the answer.
type GenerateDataKeysOutput struct {
	KeyId         *string // ARN
	KeyMaterialId *string
	DataKeys      []DataKey
}

// A DataKey is a key for use now, and the same key encrypted, for later.
type DataKey struct {
	Plaintext      []byte // nil when it was not asked for
	CiphertextBlob []byte
}

// Wipe overwrites the plaintexts.
func (o *GenerateDataKeysOutput) Wipe() {
	for _, k := range o.DataKeys {
		clear(k.Plaintext)
	}
}

// GenerateDataKeys makes data keys.
func (c *Client) GenerateDataKeys(ctx context.Context, in *GenerateDataKeysInput, optFns ...func(*Options)) (*GenerateDataKeysOutput, error) {
	req := &wire.GenerateDataKeysRequest{
		KeyId: aws.ToString(in.KeyId), KeySpec: string(in.KeySpec), NumberOfBytes: optional(in.NumberOfBytes), DryRun: flag(in.DryRun),
		EncryptionContext: pairs(in.EncryptionContext), GrantTokens: in.GrantTokens,
	}
	size := requestSize
	if in.NumberOfKeys != 0 {
		req.NumberOfKeys = wire.Some(int64(in.NumberOfKeys))
	}
	if in.WithoutPlaintext {
		req.WithoutPlaintext = wire.Some(true)
	}
	for _, m := range in.EncryptionContexts {
		p := pairs(m)
		if p == nil {
			p = []wire.Pair{} // null is not a map
		}
		req.EncryptionContexts = append(req.EncryptionContexts, p)
		size += contextSize(m)
	}
	n := max(int(in.NumberOfKeys), len(in.EncryptionContexts))
	a, err := c.call(ctx, wire.OpGenerateDataKeys, req, size, optFns)
	if err != nil {
		return nil, err
	}
	keys := make([]DataKey, 0, n)
	var bad error // what is wrong with one data key is wrong with all: never sent
	head, err := a.results(wire.OpGenerateDataKeys, bulk.DataKeys, n, func(r *result) {
		keys = append(keys, DataKey{r.Plaintext, r.CiphertextBlob})
		if bad == nil {
			bad = r.err()
		}
	})
	if err = errors.Join(err, bad); err != nil {
		return nil, err
	}
	return &GenerateDataKeysOutput{text(head.KeyID), text(head.MaterialID), keys}, nil
}

// BatchEncryptInput holds plaintexts to encrypt under one key.
type BatchEncryptInput struct {
	KeyId               *string // required
	EncryptionAlgorithm types.EncryptionAlgorithmSpec
	EncryptionContext   map[string]string // of items that have none
	Items               []EncryptItem
	GrantTokens         []string
	DryRun              *bool
}

// An EncryptItem is one plaintext. An EncryptionContext that is not nil, be it
// empty, stands in place of the request's.
type EncryptItem struct {
	Plaintext         []byte
	EncryptionContext map[string]string
}

// BatchEncryptOutput is the answer, in the order of the items.
type BatchEncryptOutput struct {
	KeyId               *string
	EncryptionAlgorithm types.EncryptionAlgorithmSpec
	Results             []EncryptResult
}

// An EncryptResult has CiphertextBlob or Err.
type EncryptResult struct {
	CiphertextBlob []byte
	Err            error // an *ItemError
}

// BatchEncrypt encrypts the items.
func (c *Client) BatchEncrypt(ctx context.Context, in *BatchEncryptInput, optFns ...func(*Options)) (*BatchEncryptOutput, error) {
	req := &wire.BatchEncryptRequest{
		KeyId: aws.ToString(in.KeyId), EncryptionAlgorithm: string(in.EncryptionAlgorithm), DryRun: flag(in.DryRun),
		EncryptionContext: pairs(in.EncryptionContext), GrantTokens: in.GrantTokens, Items: make([]wire.BatchEncryptItem, 0, len(in.Items)),
	}
	size := requestSize
	for _, i := range in.Items {
		req.Items = append(req.Items, wire.BatchEncryptItem{Plaintext: present(i.Plaintext), EncryptionContext: pairs(i.EncryptionContext)})
		size += blobSize(i.Plaintext) + contextSize(i.EncryptionContext)
	}
	a, err := c.call(ctx, wire.OpBatchEncrypt, req, size, optFns)
	if err != nil {
		return nil, err
	}
	results := make([]EncryptResult, 0, len(in.Items))
	head, err := a.results(wire.OpBatchEncrypt, bulk.Encrypt, len(in.Items), func(r *result) {
		results = append(results, EncryptResult{r.CiphertextBlob, r.err()})
	})
	if err != nil {
		return nil, err
	}
	return &BatchEncryptOutput{text(head.KeyID), types.EncryptionAlgorithmSpec(head.Algorithm), results}, nil
}

// BatchDecryptInput holds ciphertexts to decrypt. Without KeyId, each symmetric
// ciphertext is decrypted with the key that it names.
type BatchDecryptInput struct {
	KeyId               *string
	EncryptionAlgorithm types.EncryptionAlgorithmSpec
	EncryptionContext   map[string]string // of items that have none
	Items               []DecryptItem
	GrantTokens         []string
	DryRun              *bool
}

// A DecryptItem is one ciphertext; see [EncryptItem] for its context.
type DecryptItem struct {
	CiphertextBlob    []byte
	EncryptionContext map[string]string
}

// BatchDecryptOutput is the answer, in the order of the items.
type BatchDecryptOutput struct {
	EncryptionAlgorithm types.EncryptionAlgorithmSpec
	Results             []DecryptResult
}

// A DecryptResult has a plaintext and its key, or Err.
type DecryptResult struct {
	Plaintext     []byte
	KeyId         string // ARN
	KeyMaterialId string
	Err           error // an *ItemError
}

// Wipe overwrites the plaintexts.
func (o *BatchDecryptOutput) Wipe() {
	for _, r := range o.Results {
		clear(r.Plaintext)
	}
}

// BatchDecrypt decrypts the items.
func (c *Client) BatchDecrypt(ctx context.Context, in *BatchDecryptInput, optFns ...func(*Options)) (*BatchDecryptOutput, error) {
	req := &wire.BatchDecryptRequest{
		KeyId: aws.ToString(in.KeyId), EncryptionAlgorithm: string(in.EncryptionAlgorithm), DryRun: flag(in.DryRun),
		EncryptionContext: pairs(in.EncryptionContext), GrantTokens: in.GrantTokens, Items: make([]wire.BatchDecryptItem, 0, len(in.Items)),
	}
	size := requestSize
	for _, i := range in.Items {
		req.Items = append(req.Items, wire.BatchDecryptItem{CiphertextBlob: present(i.CiphertextBlob), EncryptionContext: pairs(i.EncryptionContext)})
		size += blobSize(i.CiphertextBlob) + contextSize(i.EncryptionContext)
	}
	a, err := c.call(ctx, wire.OpBatchDecrypt, req, size, optFns)
	if err != nil {
		return nil, err
	}
	results := make([]DecryptResult, 0, len(in.Items))
	head, err := a.results(wire.OpBatchDecrypt, bulk.Decrypt, len(in.Items), func(r *result) {
		results = append(results, DecryptResult{r.Plaintext, r.KeyId, r.KeyMaterialId, r.err()})
	})
	if err != nil {
		return nil, err
	}
	return &BatchDecryptOutput{types.EncryptionAlgorithmSpec(head.Algorithm), results}, nil
}

// BatchSignInput holds messages to sign with one key.
type BatchSignInput struct {
	KeyId            *string                    // required
	SigningAlgorithm types.SigningAlgorithmSpec // required
	MessageType      types.MessageType          // RAW when empty
	Messages         [][]byte
	GrantTokens      []string
	DryRun           *bool
}

// BatchSignOutput is the answer, in the order of the messages.
type BatchSignOutput struct {
	KeyId            *string
	SigningAlgorithm types.SigningAlgorithmSpec
	Results          []SignResult
}

// A SignResult has Signature or Err.
type SignResult struct {
	Signature []byte
	Err       error // an *ItemError
}

// BatchSign signs the messages.
func (c *Client) BatchSign(ctx context.Context, in *BatchSignInput, optFns ...func(*Options)) (*BatchSignOutput, error) {
	req := &wire.BatchSignRequest{
		KeyId: aws.ToString(in.KeyId), SigningAlgorithm: string(in.SigningAlgorithm), MessageType: string(in.MessageType), DryRun: flag(in.DryRun),
		GrantTokens: in.GrantTokens, Items: make([]wire.BatchSignItem, 0, len(in.Messages)),
	}
	size := requestSize
	for _, m := range in.Messages {
		req.Items = append(req.Items, wire.BatchSignItem{Message: present(m)})
		size += blobSize(m)
	}
	a, err := c.call(ctx, wire.OpBatchSign, req, size, optFns)
	if err != nil {
		return nil, err
	}
	results := make([]SignResult, 0, len(in.Messages))
	head, err := a.results(wire.OpBatchSign, bulk.Sign, len(in.Messages), func(r *result) {
		results = append(results, SignResult{r.Signature, r.err()})
	})
	if err != nil {
		return nil, err
	}
	return &BatchSignOutput{text(head.KeyID), types.SigningAlgorithmSpec(head.Algorithm), results}, nil
}

// BatchVerifyInput holds signatures to verify with one key.
type BatchVerifyInput struct {
	KeyId            *string                    // required
	SigningAlgorithm types.SigningAlgorithmSpec // required
	MessageType      types.MessageType          // RAW when empty
	Items            []VerifyItem
	GrantTokens      []string
	DryRun           *bool
}

// A VerifyItem is a message and its signature.
type VerifyItem struct{ Message, Signature []byte }

// BatchVerifyOutput is the answer, in the order of the items.
type BatchVerifyOutput struct {
	KeyId            *string
	SigningAlgorithm types.SigningAlgorithmSpec
	Results          []VerifyResult
}

// A VerifyResult is true or has Err, of code KMSInvalidSignatureException when
// it is the signature that is wrong.
type VerifyResult struct {
	SignatureValid bool
	Err            error // an *ItemError
}

// BatchVerify verifies the items.
func (c *Client) BatchVerify(ctx context.Context, in *BatchVerifyInput, optFns ...func(*Options)) (*BatchVerifyOutput, error) {
	req := &wire.BatchVerifyRequest{
		KeyId: aws.ToString(in.KeyId), SigningAlgorithm: string(in.SigningAlgorithm), MessageType: string(in.MessageType), DryRun: flag(in.DryRun),
		GrantTokens: in.GrantTokens, Items: make([]wire.BatchVerifyItem, 0, len(in.Items)),
	}
	size := requestSize
	for _, i := range in.Items {
		req.Items = append(req.Items, wire.BatchVerifyItem{Message: present(i.Message), Signature: present(i.Signature)})
		size += blobSize(i.Message) + blobSize(i.Signature)
	}
	a, err := c.call(ctx, wire.OpBatchVerify, req, size, optFns)
	if err != nil {
		return nil, err
	}
	results := make([]VerifyResult, 0, len(in.Items))
	head, err := a.results(wire.OpBatchVerify, bulk.Verify, len(in.Items), func(r *result) {
		results = append(results, VerifyResult{r.SignatureValid, r.err()})
	})
	if err != nil {
		return nil, err
	}
	return &BatchVerifyOutput{text(head.KeyID), types.SigningAlgorithmSpec(head.Algorithm), results}, nil
}

// requestSize is a guess of what a request has beside its items.
const requestSize = 16 << 10

// blobSize and contextSize bound what a value takes in JSON, with its name.
func blobSize(b []byte) int { return base64.StdEncoding.EncodedLen(len(b)) + 32 }

func contextSize(m map[string]string) int {
	n := 32
	for k, v := range m {
		n += 6*(len(k)+len(v)) + 8
	}
	return n
}

// present makes an empty blob out of none: the server then says what is wrong
// with its length.
func present(b []byte) []byte {
	if b == nil {
		return []byte{}
	}
	return b
}

// pairs returns a map's pairs in the order of their keys, nil for nil.
func pairs(m map[string]string) []wire.Pair {
	if m == nil {
		return nil
	}
	out := make([]wire.Pair, 0, len(m))
	for k, v := range m {
		out = append(out, wire.Pair{Key: k, Value: v})
	}
	slices.SortFunc(out, func(a, b wire.Pair) int { return strings.Compare(a.Key, b.Key) })
	return out
}

func optional(n *int32) wire.Opt[int64] {
	if n == nil {
		return wire.Opt[int64]{}
	}
	return wire.Some(int64(*n))
}

func flag(b *bool) wire.Opt[bool] {
	if b == nil {
		return wire.Opt[bool]{}
	}
	return wire.Some(*b)
}

func text(s string) *string {
	if s == "" {
		return nil
	}
	return &s
}
