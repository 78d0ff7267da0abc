package kms

import (
	"encoding/base64"
	"errors"

	"keymill/daemon/wire"
	"keymill/daemon/wire/bulk"
	"keymill/engine"
)

// A batch is what BatchEncrypt, BatchDecrypt, BatchSign and BatchVerify differ
// in. Its functions are called for one item after the other, in order.
type batch struct {
	kind   bulk.Kind
	format string
	count  int
	alg    engine.Algorithm

	// out bounds the engine's output for item i.
	out func(i int) int
	// prepare makes an operation of item i, whose Out is set, and says on which
	// key it works. Its error is the item's.
	prepare func(b *bulkAnswer, i int, op *engine.Op) (*keyView, error)
	// response is the JSON answer without its items.
	response wire.Output
	// write appends the result of an operation that succeeded; there is room.
	write func(b *bulkAnswer, v *keyView, op *engine.Op)
}

// jsonItem bounds what a result has beside its blob: names, an ARN of up to 110
// bytes, a KeyMaterialId.
const jsonItem = 320

// runBatch carries a batch out, piece by piece.
func (x *exchange) runBatch(c *batch) error {
	size, piece, largest := 0, 0, 0
	for i := range c.count {
		n := c.out(i)
		if i%pieceItems == 0 {
			piece = 0
		}
		piece += n
		largest = max(largest, piece)
		size += base64.StdEncoding.EncodedLen(n) + jsonItem
	}
	b, err := x.newBulk(c.kind, c.format, size, largest)
	if err != nil {
		return err
	}
	defer b.discard(x)
	if x.key != nil {
		b.head.KeyID = x.key.arn
	}
	b.head.Algorithm = c.alg.String()
	for from := 0; from < c.count; from += pieceItems {
		n := min(pieceItems, c.count-from)
		if err := x.runPiece(b, c, from, n); err != nil {
			return err
		}
		if from == 0 {
			b.sharePrefix(c, n)
			b.start(c.count, c.response)
		}
		for i := range n {
			if e := b.errs[i]; e != nil {
				b.fail(e)
				continue
			}
			op := &b.ops[i]
			b.room(base64.StdEncoding.EncodedLen(len(op.Out)) + jsonItem)
			c.write(b, b.views[i], op)
		}
		b.yield()
	}
	b.finish(x)
	return nil
}

// runPiece prepares and carries out n items. The operations of one key run
// together, wherever they stand in the piece.
func (x *exchange) runPiece(b *bulkAnswer, c *batch, from, n int) error {
	b.contexts = b.contexts[:0]
	var todo [pieceItems]bool
	used := 0
	for i := range n {
		op := &b.ops[i]
		size := c.out(from + i)
		*op = engine.Op{Alg: c.alg, Out: b.scratch[used : used : used+size]}
		used += size
		v, err := c.prepare(b, from+i, op)
		if b.errs[i], err = itemError(err); err != nil {
			return err
		}
		b.views[i], todo[i] = v, b.errs[i] == nil
	}
	for i := range n {
		if !todo[i] {
			continue
		}
		v, k := b.views[i], 0
		for j := i; j < n; j++ {
			if todo[j] && b.views[j] == v {
				b.run[k], b.at[k], todo[j] = b.ops[j], j, false
				k++
			}
		}
		all, err := itemError(x.doMany(v, b.run[:k]))
		if err == nil && all != nil && x.key != nil && from == 0 {
			err = all // nothing was done, and the key is the request's
		}
		if err != nil {
			return err
		}
		done := 0
		for j := range k {
			op, e := &b.run[j], all
			if e == nil {
				if e, err = itemError(cryptoError(op.Err, v, op)); err != nil {
					return err
				}
			}
			b.ops[b.at[j]], b.errs[b.at[j]] = *op, e
			if e == nil {
				done++
			}
		}
		x.used(v, batchUsedAs[x.row.op], done)
	}
	return nil
}

// itemError tells what is wrong with an item from what is wrong with us, which
// ends the request.
func itemError(err error) (*wire.Error, error) {
	if err == nil {
		return nil, nil
	}
	var e *wire.Error
	if errors.As(err, &e) {
		return e, nil
	}
	return nil, err
}

// sharePrefix takes the header of the first blob that was made for all of them.
func (b *bulkAnswer) sharePrefix(c *batch, n int) {
	if c.kind != bulk.Encrypt || c.alg != engine.AlgSymmetric {
		return
	}
	for i := range n {
		if b.errs[i] == nil {
			b.head.Prefix = append(b.prefix[:0], b.ops[i].Out[:engine.HeaderSize]...)
			return
		}
	}
}

// checkAlgorithm refuses an algorithm that the key does not have, and an
// encryption context that the algorithm does not take, for the whole request.
func (x *exchange) checkAlgorithm(alg engine.Algorithm, context []wire.Pair) error {
	if x.key != nil && !x.key.spec.Supports(x.key.usage, alg) {
		return incompatible(alg, x.key)
	}
	return checkContext(alg, context)
}

func checkContext(alg engine.Algorithm, context []wire.Pair) error {
	if alg != engine.AlgSymmetric && len(context) > 0 {
		return invalid("EncryptionContext is not supported with algorithm %s: it can only be used with symmetric encryption keys.", alg)
	}
	return nil
}

// itemContext returns the canonical encryption context of an item: its own if it
// has one, else the request's, which is in x.aad.
func (b *bulkAnswer) itemContext(x *exchange, alg engine.Algorithm, pairs []wire.Pair) ([]byte, error) {
	if pairs == nil {
		return x.aad, nil
	}
	if err := checkContext(alg, pairs); err != nil {
		return nil, err
	}
	return b.context(x, pairs), nil
}

// validate holds an item to the constraints of the AWS KMS operation.
func (x *exchange) validate(in wire.Input) error {
	x.violations.Reset()
	in.Validate(&x.violations)
	if e := x.violations.Err(); e != nil {
		return e
	}
	return nil
}

func batchEncrypt(x *exchange, in *wire.BatchEncryptRequest) error {
	alg := algorithm(in.EncryptionAlgorithm, engine.AlgSymmetric)
	if err := x.checkAlgorithm(alg, in.EncryptionContext); err != nil || x.dryRun {
		return err
	}
	x.aad = x.encryptionContext(x.aad, in.EncryptionContext)
	one := wire.EncryptRequest{KeyId: in.KeyId}
	return x.runBatch(&batch{
		kind: bulk.Encrypt, format: in.ResponseFormat, count: len(in.Items), alg: alg,
		out: func(i int) int { return ciphertextSize(x.key.spec, min(len(in.Items[i].Plaintext), maxPlaintext)) },
		prepare: func(b *bulkAnswer, i int, op *engine.Op) (_ *keyView, err error) {
			item := &in.Items[i]
			one.Plaintext = item.Plaintext
			if err := x.validate(&one); err != nil {
				return nil, err
			}
			op.Verb, op.In = engine.Encrypt, item.Plaintext
			op.AAD, err = b.itemContext(x, alg, item.EncryptionContext)
			return x.key, err
		},
		response: &wire.BatchEncryptResponse{
			KeyId: x.key.arn, KeyMaterialId: x.key.currentMaterial(),
			EncryptionAlgorithm: alg.String(), Results: []wire.BatchEncryptResult{},
		},
		write: func(b *bulkAnswer, _ *keyView, op *engine.Op) {
			if b.binary {
				b.buf = bulk.AppendBlob(b.buf, op.Out[len(b.head.Prefix):])
				return
			}
			b.comma()
			r := wire.BatchEncryptResult{CiphertextBlob: op.Out}
			b.buf = r.AppendJSON(b.buf)
		},
	})
}

// batchDecryptionKey finds the key that the request names. Without one, each
// item's blob names its own.
func batchDecryptionKey(x *exchange) (*keyView, error) {
	in := x.in.(*wire.BatchDecryptRequest)
	if in.KeyId != "" {
		return x.resolve(in.KeyId, keysAndAliases)
	}
	if alg := algorithm(in.EncryptionAlgorithm, engine.AlgSymmetric); alg != engine.AlgSymmetric {
		return nil, invalid("A key ID is required to decrypt with algorithm %s: only symmetric ciphertext names its key.", alg)
	}
	return nil, nil
}

func batchDecrypt(x *exchange, in *wire.BatchDecryptRequest) error {
	alg := algorithm(in.EncryptionAlgorithm, engine.AlgSymmetric)
	if err := x.checkAlgorithm(alg, in.EncryptionContext); err != nil || x.dryRun {
		return err
	}
	x.aad = x.encryptionContext(x.aad, in.EncryptionContext)
	var last struct {
		id    engine.KeyID
		view  *keyView
		err   error
		known bool
	}
	var told struct{ key, material string }
	if x.key != nil {
		told.key = x.key.arn
	}
	one := wire.DecryptRequest{}
	return x.runBatch(&batch{
		kind: bulk.Decrypt, format: in.ResponseFormat, count: len(in.Items), alg: alg,
		out: func(i int) int { return min(len(in.Items[i].CiphertextBlob), maxCiphertext) },
		prepare: func(b *bulkAnswer, i int, op *engine.Op) (v *keyView, err error) {
			item := &in.Items[i]
			one.CiphertextBlob = item.CiphertextBlob
			if err := x.validate(&one); err != nil {
				return nil, err
			}
			op.Verb, op.In = engine.Decrypt, item.CiphertextBlob
			if op.AAD, err = b.itemContext(x, alg, item.EncryptionContext); err != nil {
				return nil, err
			}
			h, malformed := engine.ParseBlob(item.CiphertextBlob)
			if x.key != nil {
				if alg == engine.AlgSymmetric && malformed == nil && h.KeyID != x.key.id {
					return nil, errIncorrectKey
				}
				return x.key, nil
			}
			if malformed != nil || !last.known || h.KeyID != last.id {
				last.id, last.known = h.KeyID, malformed == nil
				last.view, last.err = x.ciphertextKey("", alg, item.CiphertextBlob, item.HasCiphertextBlob(), false)
				if last.err == nil {
					x.bucket = nil
					last.err = x.judge(last.view, x.row.action)
				}
			} else if last.err == nil {
				x.bucket = nil // every item counts
				if err := x.admitKey(last.view); err != nil {
					return nil, err
				}
			}
			return last.view, last.err
		},
		response: &wire.BatchDecryptResponse{EncryptionAlgorithm: alg.String(), Results: []wire.BatchDecryptResult{}},
		write: func(b *bulkAnswer, v *keyView, op *engine.Op) {
			key, material := v.arn, v.materialText(op.Material)
			if !b.binary {
				b.comma()
				r := wire.BatchDecryptResult{Plaintext: op.Out, KeyId: key, KeyMaterialId: material}
				b.buf = r.AppendJSON(b.buf)
				return
			}
			was := told
			told.key, told.material = key, material
			if key == was.key {
				key = ""
				if material == was.material {
					material = ""
				}
			}
			b.buf = bulk.AppendDecrypted(b.buf, op.Out, key, material)
		},
	})
}

func batchSign(x *exchange, in *wire.BatchSignRequest) error {
	alg := algorithm(in.SigningAlgorithm, 0)
	if err := x.checkAlgorithm(alg, nil); err != nil || x.dryRun {
		return err
	}
	one := wire.SignRequest{KeyId: in.KeyId, SigningAlgorithm: in.SigningAlgorithm}
	return x.runBatch(&batch{
		kind: bulk.Sign, format: in.ResponseFormat, count: len(in.Items), alg: alg,
		out: func(int) int { return signatureSize(x.key.spec) },
		prepare: func(_ *bulkAnswer, i int, op *engine.Op) (*keyView, error) {
			one.Message = in.Items[i].Message
			op.Verb, op.Type, op.In = engine.Sign, messageType(in.MessageType), one.Message
			return x.key, x.validate(&one)
		},
		response: &wire.BatchSignResponse{KeyId: x.key.arn, SigningAlgorithm: in.SigningAlgorithm, Results: []wire.BatchSignResult{}},
		write: func(b *bulkAnswer, _ *keyView, op *engine.Op) {
			if b.binary {
				b.buf = bulk.AppendBlob(b.buf, op.Out)
				return
			}
			b.comma()
			r := wire.BatchSignResult{Signature: op.Out}
			b.buf = r.AppendJSON(b.buf)
		},
	})
}

func batchVerify(x *exchange, in *wire.BatchVerifyRequest) error {
	alg := algorithm(in.SigningAlgorithm, 0)
	if err := x.checkAlgorithm(alg, nil); err != nil || x.dryRun {
		return err
	}
	one := wire.VerifyRequest{KeyId: in.KeyId, SigningAlgorithm: in.SigningAlgorithm}
	return x.runBatch(&batch{
		kind: bulk.Verify, format: in.ResponseFormat, count: len(in.Items), alg: alg,
		out: func(int) int { return 0 },
		prepare: func(_ *bulkAnswer, i int, op *engine.Op) (*keyView, error) {
			one.Message, one.Signature = in.Items[i].Message, in.Items[i].Signature
			op.Verb, op.Type, op.In, op.Sig = engine.Verify, messageType(in.MessageType), one.Message, one.Signature
			return x.key, x.validate(&one)
		},
		response: &wire.BatchVerifyResponse{KeyId: x.key.arn, SigningAlgorithm: in.SigningAlgorithm, Results: []wire.BatchVerifyResult{}},
		write: func(b *bulkAnswer, _ *keyView, _ *engine.Op) {
			if b.binary {
				b.buf = bulk.AppendVerified(b.buf)
				return
			}
			b.comma()
			r := wire.BatchVerifyResult{SignatureValid: wire.Some(true)}
			b.buf = r.AppendJSON(b.buf)
		},
	})
}

func messageType(name string) engine.MessageType {
	t, _ := engine.ParseMessageType(name)
	return t // Raw when absent
}

// The model's bounds of a plaintext and a ciphertext.
const (
	maxPlaintext  = 4096
	maxCiphertext = 6144
)

// ciphertextSize bounds what a plaintext of n bytes becomes.
func ciphertextSize(s engine.Spec, n int) int {
	switch s {
	case engine.RSA2048, engine.RSA3072, engine.RSA4096:
		return 512
	case engine.SM2:
		return n + 128 // a point, a hash, DER
	}
	return n + engine.Overhead
}

// signatureSize bounds a signature.
func signatureSize(s engine.Spec) int {
	switch s {
	case engine.RSA2048:
		return 256
	case engine.RSA3072:
		return 384
	case engine.RSA4096:
		return 512
	case engine.MLDSA44:
		return 2420
	case engine.MLDSA65:
		return 3309
	case engine.MLDSA87:
		return 4627
	}
	return 144 // ECDSA P-521 in DER takes 139
}
