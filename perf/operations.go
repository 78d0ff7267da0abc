package perf

import (
	"context"
	"crypto/rand"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync/atomic"

	"golang.org/x/sync/errgroup"

	"keymill/daemon/wire"
	"keymill/engine"
)

// targetOf is the value of X-Amz-Target that calls op.
func targetOf(op wire.Op) string { return op.Target() }

// A Body appends the body of a connection's next request. It belongs to one
// goroutine.
type Body func(dst []byte) []byte

// Bodies makes the Body of connection i; it is called once for each, before the
// load starts.
type Bodies func(i int) Body

// An Operation is a kind of request: an operation of the API and, where it
// matters, the spec of the key and the algorithm.
type Operation struct {
	kind *kind
	Spec engine.Spec
	Alg  engine.Algorithm
}

// Name is the operation's name in the API.
func (o Operation) Name() string { return o.kind.name }

// String is the form that [ParseOperation] takes; what is the default is left out.
func (o Operation) String() string {
	def, _ := o.kind.operation("", "")
	switch {
	case o.Alg != 0 && (o.Spec != def.Spec || o.Alg != def.Alg) && o.Alg != defaultAlgorithm(o.Spec, o.kind.usage):
		return fmt.Sprintf("%s:%v:%v", o.kind.name, o.Spec, o.Alg)
	case o.kind.usage == engine.SignVerify || o.Spec != def.Spec:
		return fmt.Sprintf("%s:%v", o.kind.name, o.Spec)
	}
	return o.kind.name
}

// ParseOperation reads OPERATION[:SPEC[:ALGORITHM]], such as "Encrypt",
// "Sign:RSA_4096" or "Sign:RSA_2048:RSASSA_PKCS1_V1_5_SHA_256".
func ParseOperation(text string) (Operation, error) {
	name, rest, _ := strings.Cut(text, ":")
	spec, alg, _ := strings.Cut(rest, ":")
	for i := range kinds {
		if kinds[i].name == name && !kinds[i].part {
			return kinds[i].operation(spec, alg)
		}
	}
	return Operation{}, fmt.Errorf("%q cannot be measured; there are %s", name, strings.Join(OperationNames(), ", "))
}

// OperationNames lists the operations that can be measured.
func OperationNames() []string {
	var names []string
	for i := range kinds {
		if !kinds[i].part {
			names = append(names, kinds[i].name)
		}
	}
	return names
}

// operation is the kind's operation on a key of the spec with the algorithm, ""
// being the default.
func (k *kind) operation(spec, alg string) (Operation, error) {
	o := Operation{kind: k, Spec: k.spec}
	if spec != "" {
		s, ok := engine.ParseSpec(spec)
		if !ok {
			return o, fmt.Errorf("%s: %q is no key spec", k.name, spec)
		}
		o.Spec = s
	}
	switch {
	case k.spec == 0 && spec != "":
		return o, fmt.Errorf("%s has no key spec", k.name)
	case k.pair && !o.Spec.DataKeyPair():
		return o, fmt.Errorf("%s: there are no data key pairs of %v", k.name, o.Spec)
	case k.symmetric && !o.Spec.Symmetric():
		return o, fmt.Errorf("%s needs a symmetric key, not %v", k.name, o.Spec)
	case k.public && !o.Spec.Asymmetric():
		return o, fmt.Errorf("%s needs an asymmetric key, not %v", k.name, o.Spec)
	case k.usage != 0 && !k.pair && !o.Spec.Allows(k.usage):
		return o, fmt.Errorf("%s: a key of %v cannot be used for %v", k.name, o.Spec, k.usage)
	}
	if k.usage == 0 || k.pair {
		if alg != "" {
			return o, fmt.Errorf("%s has no algorithm", k.name)
		}
		return o, nil
	}
	o.Alg = defaultAlgorithm(o.Spec, k.usage)
	if alg != "" {
		a, ok := engine.ParseAlgorithm(alg)
		if !ok || !o.Spec.Supports(k.usage, a) {
			return o, fmt.Errorf("%s: %v has no algorithm %q; it has %v", k.name, o.Spec, alg, o.Spec.Algorithms(k.usage))
		}
		o.Alg = a
	}
	return o, nil
}

// defaultAlgorithm is the algorithm used unless one is named: the first with
// SHA-256 where there is a choice, except that Ed25519 and RSA encryption have
// theirs.
func defaultAlgorithm(s engine.Spec, u engine.Usage) engine.Algorithm {
	all := s.Algorithms(u)
	for _, a := range all {
		if strings.HasSuffix(a.String(), "_SHA_256") {
			return a
		}
	}
	return all[0]
}

// A Shape is what requests look like beside their operation.
type Shape struct {
	Keys    int // how many keys are used in turn
	Payload int // bytes to encrypt, to authenticate or of random numbers
	Batch   int // items of a bulk request
}

// DefaultShape is one key, 32 bytes and, in bulk, 1,000 items.
var DefaultShape = Shape{Keys: 1, Payload: 32, Batch: 1000}

// setup makes what the operations of one workload need. Operations on the same
// kind of key share keys.
type setup struct {
	ctx    context.Context
	client *Client
	shape  Shape
	keys   map[string][]string
}

// keyIDs returns the keys of spec for usage, of which it makes the shape's
// number on the first call.
func (s *setup) keyIDs(spec engine.Spec, usage engine.Usage) ([]string, error) {
	name := fmt.Sprint(spec, usage)
	if ids := s.keys[name]; ids != nil {
		return ids, nil
	}
	ids, err := createKeys(s.ctx, s.client, spec, usage, s.shape.Keys)
	if err != nil {
		return nil, err
	}
	if s.keys == nil {
		s.keys = make(map[string][]string)
	}
	s.keys[name] = ids
	return ids, nil
}

// call makes a call and reads its answer.
func (s *setup) call(op wire.Op, in Input, out any) error {
	body, err := s.client.Call(s.ctx, op, in)
	if err != nil {
		return err
	}
	if err := json.Unmarshal(body, out); err != nil {
		return fmt.Errorf("%v: %w", op, err)
	}
	return nil
}

// createKey makes a key and returns its id.
func createKey(ctx context.Context, c *Client, spec engine.Spec, usage engine.Usage) (string, error) {
	s := setup{ctx: ctx, client: c}
	var out struct{ KeyMetadata struct{ KeyId string } }
	err := s.call(wire.OpCreateKey, &wire.CreateKeyRequest{KeySpec: spec.String(), KeyUsage: usage.String(), Description: "load"}, &out)
	if err == nil && out.KeyMetadata.KeyId == "" {
		err = fmt.Errorf("%v: answer without a key id", wire.OpCreateKey)
	}
	return out.KeyMetadata.KeyId, err
}

// CreateConnections is how many connections create keys at once: enough for one
// sync of the store to carry many of them.
const CreateConnections = 64

// createKeys makes n keys, over several connections when there are many.
func createKeys(ctx context.Context, c *Client, spec engine.Spec, usage engine.Usage, n int) ([]string, error) {
	ids := make([]string, n)
	if n == 1 {
		var err error
		ids[0], err = createKey(ctx, c, spec, usage)
		return ids, err
	}
	group, ctx := errgroup.WithContext(ctx)
	var next atomic.Int64
	for range min(n, CreateConnections) {
		group.Go(func() error {
			c, err := Dial(ctx, c.target)
			if err != nil {
				return err
			}
			defer c.Close()
			for i := next.Add(1) - 1; i < int64(n); i = next.Add(1) - 1 {
				if ids[i], err = createKey(ctx, c, spec, usage); err != nil {
					return err
				}
			}
			return nil
		})
	}
	return ids, group.Wait()
}

// CreateKeys makes n symmetric keys over many connections and returns their ids.
func CreateKeys(ctx context.Context, t Target, n int) ([]string, error) {
	c, err := Dial(ctx, t)
	if err != nil {
		return nil, err
	}
	defer c.Close()
	return createKeys(ctx, c, engine.SymmetricDefault, engine.EncryptDecrypt, n)
}

// UseKeys generates a data key under each of ids, over so many connections.
func UseKeys(ctx context.Context, t Target, ids []string, conns int) error {
	group, ctx := errgroup.WithContext(ctx)
	var next atomic.Int64
	for range min(len(ids), conns) {
		group.Go(func() error {
			c, err := Dial(ctx, t)
			if err != nil {
				return err
			}
			defer c.Close()
			for i := next.Add(1) - 1; i < int64(len(ids)); i = next.Add(1) - 1 {
				if _, err := c.Call(ctx, wire.OpGenerateDataKey, &wire.GenerateDataKeyRequest{KeyId: ids[i], KeySpec: "AES_256"}); err != nil {
					return err
				}
			}
			return nil
		})
	}
	return group.Wait()
}

// A varied is bytes of which no two of a run are the same, as long as they are
// eight or more.
type varied []byte

func newVaried(n int) varied {
	v := make(varied, n)
	rand.Read(v)
	return v
}

// next changes v and returns it.
func (v varied) next() []byte {
	if len(v) >= 8 {
		binary.LittleEndian.PutUint64(v, binary.LittleEndian.Uint64(v)+1)
	} else if len(v) > 0 {
		v[0]++
	}
	return v
}

// messageOf is what is signed: a digest where the algorithm has one of that
// length, so that hashing is not measured, else 32 bytes.
func messageOf(a engine.Algorithm) (size int, form engine.MessageType) {
	name := a.String()
	if strings.HasPrefix(name, "RSASSA") || strings.HasPrefix(name, "ECDSA") {
		switch {
		case strings.HasSuffix(name, "_256"):
			return 32, engine.Digest
		case strings.HasSuffix(name, "_384"):
			return 48, engine.Digest
		case strings.HasSuffix(name, "_512"):
			return 64, engine.Digest
		}
	}
	return 32, engine.Raw
}

// prepared is how many different inputs, at least, are decrypted or verified in
// turn: more than one so that nothing can pass by remembering the last, few
// enough to be made in an instant.
const prepared = 256

// inTurn is bodies that come one after the other, each connection beginning
// elsewhere.
func inTurn(bodies [][]byte) Bodies {
	return func(conn int) Body {
		n := conn * 7
		return func(dst []byte) []byte {
			n++
			return append(dst, bodies[n%len(bodies)]...)
		}
	}
}

// each is one body for every key.
func each(ids []string, body func(id string) Input) Bodies {
	bodies := make([][]byte, len(ids))
	for i, id := range ids {
		bodies[i] = body(id).AppendJSON(nil)
	}
	return inTurn(bodies)
}

// A kind is a row of the table of what can be measured.
type kind struct {
	name string
	op   wire.Op // 0: an operation that AWS lacks

	// spec is the default; 0 when there is no key. usage is what the key is for.
	spec  engine.Spec
	usage engine.Usage

	// What the spec must be: of a pair to be generated, of a symmetric key, of
	// one that has a public key.
	pair, symmetric, public bool

	// prepare makes keys and what else the requests need.
	prepare func(s *setup, o Operation) (Bodies, error)

	// what describes the request, after the key's spec and algorithm.
	what func(Shape) string

	// primitive makes the computation that the operation cannot do without; nil
	// when there is none.
	primitive func(o Operation, s Shape) (Primitive, error)

	bulk bool // a request has the shape's batch of items
	part bool // makes sense in a mix only, and is in no list

	// check looks into the answers with status 200; nil trusts them.
	check func(Shape) func(body []byte) error
}

func payload(s Shape) string { return fmt.Sprintf("%d B", s.Payload) }

var errUnanswered = errors.New("the answer lacks what was asked for")

// idsFor returns the ids of the keys for o.
func (s *setup) idsFor(o Operation) ([]string, error) {
	spec, usage := o.Spec, o.kind.usage
	if o.kind.pair {
		spec = engine.SymmetricDefault
	}
	if usage == 0 {
		usage, _ = spec.DefaultUsage()
		if usage == 0 {
			usage = spec.Usages()[0]
		}
	}
	return s.keyIDs(spec, usage)
}

// ciphertexts encrypts different plaintexts under ids in turn.
func (s *setup) ciphertexts(ids []string, o Operation) ([][]byte, error) {
	blobs := make([][]byte, max(prepared, len(ids)))
	plain := newVaried(s.shape.Payload)
	for i := range blobs {
		var out struct{ CiphertextBlob []byte }
		in := &wire.EncryptRequest{KeyId: ids[i%len(ids)], Plaintext: plain.next(), EncryptionAlgorithm: explicit(o)}
		if err := s.call(wire.OpEncrypt, in, &out); err != nil {
			return nil, err
		}
		if len(out.CiphertextBlob) == 0 {
			return nil, fmt.Errorf("%v: %w", wire.OpEncrypt, errUnanswered)
		}
		blobs[i] = out.CiphertextBlob
	}
	return blobs, nil
}

// explicit is the algorithm's name where it must be given.
func explicit(o Operation) string {
	if o.Alg == engine.AlgSymmetric {
		return ""
	}
	return o.Alg.String()
}

// onEachKey is the preparation of a request that only names a key.
func onEachKey(body func(id string, o Operation, s Shape) Input) func(*setup, Operation) (Bodies, error) {
	return func(s *setup, o Operation) (Bodies, error) {
		ids, err := s.idsFor(o)
		if err != nil {
			return nil, err
		}
		return each(ids, func(id string) Input { return body(id, o, s.shape) }), nil
	}
}

// onVaried is the preparation of a request with a message that is never the
// same.
func onVaried(size func(Operation, Shape) int, body func(o Operation) func(id string, message []byte) Input) func(*setup, Operation) (Bodies, error) {
	return func(s *setup, o Operation) (Bodies, error) {
		ids, err := s.idsFor(o)
		if err != nil {
			return nil, err
		}
		return func(n int) Body {
			make, message := body(o), newVaried(size(o, s.shape))
			return func(dst []byte) []byte {
				n++
				return make(ids[n%len(ids)], message.next()).AppendJSON(dst)
			}
		}, nil
	}
}

func payloadSize(_ Operation, s Shape) int { return s.Payload }

func messageSize(o Operation, _ Shape) int {
	n, _ := messageOf(o.Alg)
	return n
}

func messageForm(o Operation) string {
	_, form := messageOf(o.Alg)
	return form.String()
}

func prepareVerify(s *setup, o Operation) (Bodies, error) {
	ids, err := s.idsFor(o)
	if err != nil {
		return nil, err
	}
	bodies := make([][]byte, max(prepared, len(ids)))
	message := newVaried(messageSize(o, s.shape))
	for i := range bodies {
		var out struct{ Signature []byte }
		id := ids[i%len(ids)]
		err := s.call(wire.OpSign, &wire.SignRequest{KeyId: id, Message: message.next(), MessageType: messageForm(o), SigningAlgorithm: o.Alg.String()}, &out)
		if err != nil {
			return nil, err
		}
		bodies[i] = (&wire.VerifyRequest{KeyId: id, Message: slices.Clone(message), MessageType: messageForm(o), SigningAlgorithm: o.Alg.String(), Signature: out.Signature}).AppendJSON(nil)
	}
	return inTurn(bodies), nil
}

func prepareVerifyMac(s *setup, o Operation) (Bodies, error) {
	ids, err := s.idsFor(o)
	if err != nil {
		return nil, err
	}
	bodies := make([][]byte, max(prepared, len(ids)))
	message := newVaried(s.shape.Payload)
	for i := range bodies {
		var out struct{ Mac []byte }
		id := ids[i%len(ids)]
		if err := s.call(wire.OpGenerateMac, &wire.GenerateMacRequest{KeyId: id, Message: message.next(), MacAlgorithm: o.Alg.String()}, &out); err != nil {
			return nil, err
		}
		bodies[i] = (&wire.VerifyMacRequest{KeyId: id, Message: message, MacAlgorithm: o.Alg.String(), Mac: out.Mac}).AppendJSON(nil)
	}
	return inTurn(bodies), nil
}

func prepareDecrypt(s *setup, o Operation) (Bodies, error) {
	ids, err := s.idsFor(o)
	if err != nil {
		return nil, err
	}
	blobs, err := s.ciphertexts(ids, o)
	if err != nil {
		return nil, err
	}
	bodies := make([][]byte, len(blobs))
	for i, blob := range blobs {
		in := &wire.DecryptRequest{CiphertextBlob: blob, EncryptionAlgorithm: explicit(o)}
		if !o.Spec.Symmetric() {
			in.KeyId = ids[i%len(ids)]
		}
		bodies[i] = in.AppendJSON(nil)
	}
	return inTurn(bodies), nil
}

func prepareReEncrypt(s *setup, o Operation) (Bodies, error) {
	ids, err := s.idsFor(o)
	if err != nil {
		return nil, err
	}
	blobs, err := s.ciphertexts(ids, o)
	if err != nil {
		return nil, err
	}
	bodies := make([][]byte, len(blobs))
	for i, blob := range blobs {
		bodies[i] = (&wire.ReEncryptRequest{CiphertextBlob: blob, DestinationKeyId: ids[(i+1)%len(ids)]}).AppendJSON(nil)
	}
	return inTurn(bodies), nil
}

func prepareDeriveSharedSecret(s *setup, o Operation) (Bodies, error) {
	pkcs8, spki, err := engine.GenerateKeyPair(o.Spec)
	if err != nil {
		return nil, err
	}
	clear(pkcs8)
	return onEachKey(func(id string, o Operation, _ Shape) Input {
		return &wire.DeriveSharedSecretRequest{KeyId: id, KeyAgreementAlgorithm: o.Alg.String(), PublicKey: spki}
	})(s, o)
}
