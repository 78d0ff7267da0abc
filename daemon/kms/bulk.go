package kms

import (
	"io"
	"runtime"
	"sync"
	"sync/atomic"

	"github.com/valyala/fasthttp"

	"keymill/daemon/wire"
	"keymill/daemon/wire/bulk"
	"keymill/engine"
	"keymill/hsm/arena"
)

// # Bulk operations
//
// Keymill.GenerateDataKeys, BatchEncrypt, BatchDecrypt, BatchSign and BatchVerify
// do what the AWS KMS operation of the same kind does, many times in one request,
// with that operation's permission. What concerns the request as a whole (its
// key, the key's state, the algorithm, a limit) answers as the AWS KMS operation
// would, and nothing is done; what concerns one item answers that item with
// ErrorCode and ErrorMessage.
//
//	                      at most
//	items in a request    10,000
//	request body          8 MiB (wire.Op.MaxBody)
//	answer                12 MiB, reckoned before any work is done
//	all bulk answers      128 MiB (maxBulkMemory) from the start of the work to
//	together              the last byte sent; beyond, ThrottlingException
//
// # Pieces
//
// The work is cut into pieces of pieceItems items. For light work a piece is one
// call of the engine for each key it needs, so that one random draw, one
// encryption lane and one look at the handle serve it. Between pieces the
// goroutine yields, so a request of 10,000 items holds a lane for microseconds at
// a time and others run in between. Heavier work goes the way of single requests
// (see compute), a few operations at a time: to the heavy workers if it is slow.
// When those are full, the request is refused if nothing was done yet; after
// that, the items that found no room are answered with ThrottlingException.
//
// # The answer
//
// It is written into one buffer whose length is reckoned first: a buffer with
// plaintext in it must not move, or wipes what it leaves behind when it does.
// Nothing is allocated for an item. The buffer becomes the response's body
// stream, and is wiped when the connection has sent it or given up.

const (
	// pieceItems: at 64 a call's fixed costs are under 2 % of 64 data keys, and a
	// lane is held for some 15 us.
	pieceItems = 64

	// maxBulkAnswer and maxBulkMemory bound one answer and all of them.
	maxBulkAnswer = 12 << 20
	maxBulkMemory = 128 << 20

	// Buffers up to these sizes are kept between requests, wiped.
	keepBulkAnswer  = 4 << 20
	keepBulkScratch = 512 << 10
)

// A bulkAnswer is one bulk request's working memory and then the body of its
// answer. It belongs to the exchange until send, and to the response after.
type bulkAnswer struct {
	svc    *Service
	binary bool
	first  bool // no item was written yet
	head   bulk.Head
	prefix [engine.HeaderSize]byte // what head.Prefix points to
	buf    []byte
	sent   int
	cost   int64 // taken from svc.bulkMemory

	// Working memory of one piece. scratch holds what the engine puts out and is
	// wiped; contexts does not.
	ops      [pieceItems]engine.Op
	run      [pieceItems]engine.Op // those of ops that one key does together
	at       [pieceItems]int       // their places in ops
	views    [pieceItems]*keyView
	errs     [pieceItems]*wire.Error
	scratch  []byte
	contexts []byte
}

// bulkState is the part of a Service that bulk requests share.
type bulkState struct {
	memory atomic.Int64 // bytes of answers under way
	pool   sync.Pool    // of *bulkAnswer, wiped
}

// newBulk starts the answer to a bulk request; size is a bound of its length and
// scratch what a piece needs. One of send and Close must follow.
func (x *exchange) newBulk(kind bulk.Kind, format string, size, scratch int) (*bulkAnswer, error) {
	if size += 4096; size > maxBulkAnswer { // 4096: head, tail, slack
		return nil, invalid("The answer could be longer than %d bytes: send fewer items in a request.", maxBulkAnswer)
	}
	s := x.svc
	cost := int64(size + scratch)
	if s.bulk.memory.Add(cost) > maxBulkMemory {
		s.bulk.memory.Add(-cost)
		return nil, wire.NewError(wire.ThrottlingException, "Too many bulk requests are under way. Try again.")
	}
	b, _ := s.bulk.pool.Get().(*bulkAnswer)
	if b == nil {
		b = new(bulkAnswer)
	}
	b.svc, b.cost, b.first = s, cost, true
	b.binary = format == "BINARY" || format == "" && equalFold(mediaType(x.header("accept")), bulk.ContentType)
	b.head = bulk.Head{Kind: kind}
	if cap(b.buf) < size {
		b.buf = make([]byte, 0, size)
	}
	if cap(b.scratch) < scratch {
		b.scratch = make([]byte, scratch)
	}
	b.scratch = b.scratch[:cap(b.scratch)]
	return b, nil
}

// room makes sure that n more bytes fit.
func (b *bulkAnswer) room(n int) {
	if cap(b.buf)-len(b.buf) >= n {
		return
	}
	moved := make([]byte, len(b.buf), 2*cap(b.buf)+n)
	copy(moved, b.buf)
	arena.Wipe(b.buf)
	b.buf = moved
}

// fail writes the result of an item that failed.
func (b *bulkAnswer) fail(e *wire.Error) {
	message := e.Message
	if e.NoMessage {
		message = ""
	}
	b.room(6*(len(e.Code)+len(message)) + 64)
	if b.binary {
		b.buf = bulk.AppendError(b.buf, e.Code, message)
		return
	}
	// Every result structure says failure in the same way.
	r := wire.BatchVerifyResult{ErrorCode: e.Code, ErrorMessage: message}
	b.comma()
	b.buf = r.AppendJSON(b.buf)
}

// start writes what comes before the items. For JSON that is the response with
// an empty list, its last member, left open.
func (b *bulkAnswer) start(count int, response wire.Output) {
	b.head.Count = count
	if b.binary {
		b.buf = bulk.AppendHead(b.buf, &b.head)
		return
	}
	b.buf = response.AppendJSON(b.buf)
	b.buf = b.buf[:len(b.buf)-len("]}")]
}

func (b *bulkAnswer) comma() {
	if !b.first {
		b.buf = append(b.buf, ',')
	}
	b.first = false
}

// finish writes what comes after the items and hands the answer to the exchange.
func (b *bulkAnswer) finish(x *exchange) {
	if !b.binary {
		b.buf = append(b.buf, "]}"...)
	}
	b.wipeScratch()
	x.bulk = b
}

// wipeScratch clears what a piece may have left of plaintext.
func (b *bulkAnswer) wipeScratch() {
	arena.Wipe(b.scratch)
	clear(b.ops[:])
	clear(b.run[:])
	clear(b.views[:])
	clear(b.errs[:])
}

// send makes the answer the response's body.
func (b *bulkAnswer) send(resp *fasthttp.Response) {
	if b.binary {
		resp.Header.SetContentType(bulk.ContentType)
	}
	resp.SetBodyStream(b, len(b.buf))
}

// Read and WriteTo hand the body to the connection, Close takes it back.
func (b *bulkAnswer) Read(p []byte) (int, error) {
	if b.sent == len(b.buf) {
		return 0, io.EOF
	}
	n := copy(p, b.buf[b.sent:])
	b.sent += n
	return n, nil
}

func (b *bulkAnswer) WriteTo(w io.Writer) (int64, error) {
	n, err := w.Write(b.buf[b.sent:])
	b.sent += n
	return int64(n), err
}

// Close wipes the answer and gives its memory back.
func (b *bulkAnswer) Close() error {
	s := b.svc
	arena.Wipe(b.buf)
	b.buf, b.sent = b.buf[:0], 0
	b.wipeScratch()
	s.bulk.memory.Add(-b.cost)
	b.svc, b.cost, b.head = nil, 0, bulk.Head{}
	if cap(b.buf) > keepBulkAnswer {
		b.buf = nil
	}
	if cap(b.scratch) > keepBulkScratch {
		b.scratch = nil
	}
	if cap(b.contexts) > maxKeptScratch {
		b.contexts = nil
	}
	s.bulk.pool.Put(b)
	return nil
}

// yield lets others run between two pieces.
func (b *bulkAnswer) yield() { runtime.Gosched() }

// discard gives up an answer that was not handed to the exchange, whatever ended
// the work on it.
func (b *bulkAnswer) discard(x *exchange) {
	if x.bulk != b {
		_ = b.Close()
	}
}

// doMany runs operations of one verb on one key's material, in parts that hold a
// processor or a heavy worker for a millisecond or so, fetching the material
// when it is cold. Each operation has its own verdict in Err; an error is one
// that ended the work before anything was done, or is nobody's item's fault.
func (x *exchange) doMany(v *keyView, ops []engine.Op) error {
	part := partItems(v, ops[0].Verb)
	for from := 0; from < len(ops); from += part {
		now := ops[from:min(from+part, len(ops))]
		if from > 0 {
			runtime.Gosched()
		}
		all, err := itemError(x.doPart(v, now))
		if err == nil && all != nil && from == 0 {
			err = all
		}
		if err != nil {
			return err
		}
		for i := range now {
			if all != nil {
				now[i].Err, now[i].Out = all, now[i].Out[:0]
			}
		}
	}
	return nil
}

// partItems says how many operations run in one go.
func partItems(v *keyView, verb engine.Verb) int {
	switch {
	case v.handle.Class(verb) == engine.Light:
		return pieceItems
	case slow(v.spec, verb):
		return 4 // a hand-over is a few per cent of four of them
	}
	return 16 // of some 15 to 60 us each
}

func (x *exchange) doPart(v *keyView, ops []engine.Op) error {
	if err := x.compute(v, ops); err != nil || !pending(ops) {
		return err
	}
	ctx, cancel := waitForRoot()
	defer cancel()
	if v.store != nil {
		ctx = x.onBehalf(ctx, v)
	}
	for range 4 {
		if err := v.handle.Warm(ctx, ops); err != nil && err != engine.ErrPurged {
			return err
		}
		if !pending(ops) {
			return nil // a key that waits has carried them out
		}
		// The ones that were done are done again: cold keys are rare, and no
		// operation has an effect beyond its result.
		if err := x.compute(v, ops); err != nil || !pending(ops) {
			return err
		}
	}
	return errBusy
}

func pending(ops []engine.Op) bool {
	for i := range ops {
		if ops[i].Err == engine.ErrPending {
			return true
		}
	}
	return false
}
