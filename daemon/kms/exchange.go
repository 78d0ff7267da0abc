package kms

import (
	"context"
	"encoding/binary"
	"math/rand/v2"
	"time"

	"github.com/valyala/fasthttp"

	"keymill/daemon/quota"
	"keymill/daemon/reactor"
	"keymill/daemon/sigv4"
	"keymill/daemon/wire"
	"keymill/engine"
	"keymill/hsm/arena"
	"keymill/keystore"
)

// An exchange is one request and its answer. It belongs to the connection's
// goroutine from begin to end and is pooled between requests, so that a warm
// request allocates next to nothing.
type exchange struct {
	svc *Service
	ctx *fasthttp.RequestCtx
	row *operation
	now time.Time

	mayWaitFunc func() // the method mayWait, bound once

	id      [36]byte  // request id, a UUID's text
	idBits  [2]uint64 // and its bits
	headers []sigv4.Header
	auth    sigv4.Result
	signed  sigv4.Request
	dec     wire.Decoder
	inputs  [wire.NumOps + 1]wire.Input // one per operation, made on first use
	in      wire.Input

	violations wire.Violations

	account string // the caller's
	region  string
	key     *keyView // the request's key, nil for operations without one
	dryRun  bool
	grants  []*keystore.Grant // those of the request's grant tokens

	quotas *quota.Account // the caller's, nil without limits
	class  quota.Class    // the one of quotas that was taken from last
	bucket *quota.Bucket  // the key's that was taken from last
	units  int64          // what the request counts for, in each of them

	// Scratch of the operations. ops[1] serves ReEncrypt's second half. secret
	// holds plaintext and is wiped; the others never do.
	ops    [2]engine.Op
	heavy  heavyJob
	pairs  []engine.ContextPair
	aad    []byte
	aad2   []byte
	secret []byte
	blob   []byte

	out  []byte      // the answer's body
	bulk *bulkAnswer // the answer's body instead of out, of a bulk operation
}

// Scratch that one large request grew past this size is not kept for the next.
const maxKeptScratch = 64 << 10

func newExchange(s *Service) *exchange {
	// All of secret is wiped after every request: it has room for the longest
	// data key, and grows in the exchanges that see longer plaintexts.
	x := &exchange{svc: s, secret: make([]byte, 0, 1024), blob: make([]byte, 0, 6144)}
	x.mayWaitFunc = x.mayWait
	return x
}

func (x *exchange) begin(ctx *fasthttp.RequestCtx) {
	x.ctx = ctx
	x.now = x.svc.clock()
	x.units = 1
	x.newRequestID()
}

// end wipes what may hold plaintext and forgets the request. The answer's body
// was handed to the connection.
func (x *exchange) end() {
	if x.in != nil {
		x.in.Reset()
	}
	x.dec.Reset()
	arena.Wipe(x.secret[:cap(x.secret)])
	x.ops = [2]engine.Op{}
	x.ctx, x.row, x.in, x.key = nil, nil, nil, nil
	x.dryRun = false
	clear(x.grants)
	x.grants = x.grants[:0]
	x.quotas, x.class, x.bucket = nil, quota.NoClass, nil
	x.account, x.region = "", ""
	x.auth = sigv4.Result{}
	x.signed = sigv4.Request{}
	clear(x.headers)
	x.headers = x.headers[:0]
	clear(x.pairs)
	x.pairs = x.pairs[:0]
	if cap(x.out) > maxKeptScratch {
		x.out = nil
	}
	if cap(x.aad)+cap(x.aad2) > maxKeptScratch {
		x.aad, x.aad2 = nil, nil
	}
}

// mayWait is called before the request waits for anything (a disk, a token, a
// worker) or works for long: until then, it holds up other connections. x may be nil,
// or without a request.
func (x *exchange) mayWait() {
	if x != nil && x.ctx != nil {
		reactor.MayWait(x.ctx)
	}
}

// newRequestID draws a version 4 UUID. It names a request in answers and logs
// and guards nothing, so the runtime's generator will do.
func (x *exchange) newRequestID() {
	var b [16]byte
	hi, lo := rand.Uint64(), rand.Uint64()
	for i := range 8 {
		b[i], b[8+i] = byte(hi>>(8*i)), byte(lo>>(8*i))
	}
	b[6] = b[6]&0x0f | 0x40
	b[8] = b[8]&0x3f | 0x80
	x.idBits = [2]uint64{binary.LittleEndian.Uint64(b[:8]), binary.LittleEndian.Uint64(b[8:])}
	putUUID(&x.id, &b)
}

// encryptionContext returns the canonical form of an encryption context, built
// in dst.
func (x *exchange) encryptionContext(dst []byte, pairs []wire.Pair) []byte {
	x.pairs = x.pairs[:0]
	for _, p := range pairs {
		x.pairs = append(x.pairs, engine.ContextPair{Key: p.Key, Value: p.Value})
	}
	return engine.AppendContext(dst[:0], x.pairs)
}

// do runs one cryptographic operation on v's material, fetching the material
// first when it is cold.
func (x *exchange) do(v *keyView, op *engine.Op) error {
	ops := x.opsFor(op)
	if err := x.compute(v, ops); err != nil {
		return err
	}
	if op.Err == engine.ErrPending {
		if err := x.warm(v, ops); err != nil {
			return err
		}
	}
	return op.Err
}

// opsFor returns op, one of x.ops, as a batch of one.
func (x *exchange) opsFor(op *engine.Op) []engine.Op {
	if op == &x.ops[0] {
		return x.ops[:1]
	}
	return x.ops[1:2]
}

// warm loads cold material and runs ops again. A handle can be purged between
// the two (its place in the cache went to another key), hence the few tries.
func (x *exchange) warm(v *keyView, ops []engine.Op) error {
	if engine.WarmNow(v.handle, ops) {
		if err := x.compute(v, ops); err != nil || ops[0].Err != engine.ErrPending {
			return err
		}
	}
	x.mayWait()
	ctx, cancel := waitForRoot()
	defer cancel()
	if v.store != nil {
		ctx = x.onBehalf(ctx, v)
	}
	for range 4 {
		if err := v.handle.Warm(ctx, ops); err != nil && err != engine.ErrPurged {
			return err
		}
		if ops[0].Err != engine.ErrPending {
			return nil // a key that waits has carried it out
		}
		if err := x.compute(v, ops); err != nil {
			return err
		}
		if ops[0].Err != engine.ErrPending {
			return nil
		}
	}
	return errBusy
}

// rootTimeout bounds the wait for the root of trust; AWS KMS answers
// DependencyTimeoutException then, which every SDK retries.
const rootTimeout = 10 * time.Second

// waitForRoot returns the context of a call to the root of trust. It does not
// descend from the request's, which ends when the daemon stops: what is in
// flight then is finished.
func waitForRoot() (context.Context, context.CancelFunc) {
	return context.WithTimeout(context.Background(), rootTimeout)
}

// commit makes a transaction durable. There is nothing to gain by giving up on
// one: the outcome would be unknown.
func commit(t *keystore.Txn) error {
	_, err := t.Commit(context.Background())
	return err
}
