package kms

import (
	"bytes"
	"encoding/base64"
	"errors"

	"keymill/daemon/wire"
	"keymill/daemon/wire/bulk"
	"keymill/engine"
)

func generateDataKeysAction(in wire.Input) string {
	if in.(*wire.GenerateDataKeysRequest).WithoutPlaintext.V {
		return wire.OpGenerateDataKeyWithoutPlaintext.String()
	}
	return wire.OpGenerateDataKey.String()
}

// dataKeyCount returns how many data keys a request asks for: NumberOfKeys, or
// one for each of EncryptionContexts.
func dataKeyCount(in *wire.GenerateDataKeysRequest) (int, error) {
	switch {
	case in.EncryptionContexts == nil && !in.NumberOfKeys.Set:
		return 0, invalid("Please specify either NumberOfKeys or EncryptionContexts.")
	case in.EncryptionContexts == nil:
		return int(in.NumberOfKeys.V), nil
	case in.EncryptionContext != nil:
		return 0, invalid("EncryptionContext and EncryptionContexts cannot be used together.")
	case in.NumberOfKeys.Set && int(in.NumberOfKeys.V) != len(in.EncryptionContexts):
		return 0, invalid("NumberOfKeys is %d, but EncryptionContexts has %d members.", in.NumberOfKeys.V, len(in.EncryptionContexts))
	}
	return len(in.EncryptionContexts), nil
}

func dataKeyUnits(in *wire.GenerateDataKeysRequest) int {
	n, _ := dataKeyCount(in)
	return n
}

var errPrefix = errors.New("blobs of one key version have different headers")

// generateDataKeys makes data keys in pieces: one random draw for the keys of a
// piece, one call of the engine to seal them, which draws their nonces at once.
func generateDataKeys(x *exchange, in *wire.GenerateDataKeysRequest) error {
	count, err := dataKeyCount(in)
	if err != nil {
		return err
	}
	size, err := dataKeySize(in.KeySpec, in.NumberOfBytes)
	if err != nil {
		return err
	}
	if !x.key.spec.Symmetric() {
		return incompatible(engine.AlgSymmetric, x.key)
	}
	if x.dryRun {
		return nil
	}
	blob := size + engine.Overhead
	item := len(`,{"CiphertextBlob":"","Plaintext":""}`) + base64.StdEncoding.EncodedLen(blob) + base64.StdEncoding.EncodedLen(size) + 64
	b, err := x.newBulk(bulk.DataKeys, in.ResponseFormat, count*item, pieceItems*(size+blob))
	if err != nil {
		return err
	}
	defer b.discard(x)
	b.head.KeyID, b.head.Algorithm = x.key.arn, engine.AlgSymmetric.String()
	x.aad = x.encryptionContext(x.aad, in.EncryptionContext)
	for from := 0; from < count; from += pieceItems {
		n := min(pieceItems, count-from)
		secrets, blobs := b.scratch[:n*size], b.scratch[pieceItems*size:]
		engine.Random(secrets)
		b.contexts = b.contexts[:0]
		for i := range n {
			op := &b.ops[i]
			op.Verb, op.Alg, op.AAD, op.Err = engine.Encrypt, engine.AlgSymmetric, x.aad, nil
			op.In = secrets[i*size : (i+1)*size]
			op.Out = blobs[i*blob : i*blob : (i+1)*blob]
			if in.EncryptionContexts != nil {
				op.AAD = b.context(x, in.EncryptionContexts[from+i])
			}
		}
		if err := x.doMany(x.key, b.ops[:n]); err != nil {
			return err
		}
		if err := b.dataKeys(x, count, n, from == 0, !in.WithoutPlaintext.V); err != nil {
			return err
		}
		b.yield()
	}
	as := useGenerateDataKey
	if in.WithoutPlaintext.V {
		as = useGenerateDataKeyWithoutPlaintext
	}
	x.used(x.key, as, count)
	b.finish(x)
	return nil
}

// dataKeys writes the n data keys of a piece; all must have succeeded, since what
// fails one fails all.
func (b *bulkAnswer) dataKeys(x *exchange, count, n int, start, plaintext bool) error {
	for i := range n {
		op := &b.ops[i]
		if op.Err != nil {
			return cryptoError(op.Err, x.key, op)
		}
		if start && i == 0 {
			b.head.MaterialID = x.key.materialText(op.Material)
			b.head.Prefix = append(b.prefix[:0], op.Out[:engine.HeaderSize]...)
			b.start(count, &wire.GenerateDataKeysResponse{KeyId: x.key.arn, KeyMaterialId: b.head.MaterialID, DataKeys: []wire.BulkDataKey{}})
		}
		secret := op.In
		if !plaintext {
			secret = nil
		}
		if b.binary {
			if !bytes.HasPrefix(op.Out, b.head.Prefix) {
				return errPrefix
			}
			b.buf = bulk.AppendDataKey(b.buf, secret, op.Out[len(b.head.Prefix):])
			continue
		}
		b.comma()
		item := wire.BulkDataKey{CiphertextBlob: op.Out, Plaintext: secret}
		b.buf = item.AppendJSON(b.buf)
	}
	return nil
}

// context appends the canonical form of an item's encryption context to the
// piece's contexts and returns it.
func (b *bulkAnswer) context(x *exchange, pairs []wire.Pair) []byte {
	from := len(b.contexts)
	x.pairs = x.pairs[:0]
	for _, p := range pairs {
		x.pairs = append(x.pairs, engine.ContextPair{Key: p.Key, Value: p.Value})
	}
	b.contexts = engine.AppendContext(b.contexts, x.pairs)
	return b.contexts[from:len(b.contexts):len(b.contexts)]
}
