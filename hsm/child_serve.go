package hsm

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"sync"
	"time"

	"keymill/hsm/arena"
)

// errNoChildSocket is what a person sees who starts the child by hand.
var errNoChildSocket = errors.New("this is the part of keymill that runs a PKCS#11 module; the daemon starts it, people do not")

// ServeChild is the child's side of the protocol in frame.go: it opens the token it is
// told of and does the requests that come over conn, until the parent closes its sending
// side (nil) or the socket breaks. The caller exits then without further ado: threads
// may hang in the module.
//
// It also ends, with ErrBusy, when for as long as a call may take every session has hung
// in the module: a new process has new threads, which this one cannot get back.
func ServeChild(conn net.Conn) error {
	s := &childServer{out: newFrameWriter(conn), cancel: map[uint64]func(){}}
	defer func() {
		s.out.close()
		<-s.out.done
	}()
	in := newFrameReader(conn)
	defer in.wipe()
	kind, _, body, err := in.next()
	if err != nil {
		return err
	}
	var hello childHello
	if kind != kindHello || json.Unmarshal(body.b, &hello) != nil || hello.Version != protocolVersion {
		return fmt.Errorf("%w: no hello of version %d", errProtocol, protocolVersion)
	}
	cfg := PKCS11Config{
		Module: hello.Module, TokenLabel: hello.TokenLabel, TokenSerial: hello.TokenSerial, PINFile: hello.PINFile, Sessions: hello.Sessions,
		Timeout: time.Duration(hello.Timeout), StartTimeout: time.Duration(hello.StartTimeout), Logger: slog.New(childLog{out: s.out}),
	}
	if hello.Keys {
		kind, _, body, err := in.next()
		if err != nil {
			return err
		}
		if kind != kindPIN || len(body.b) == 0 || len(body.b) > maxPIN {
			return fmt.Errorf("%w: no PIN after hello", errProtocol)
		}
		if cfg.pin, err = holdPIN(append(make([]byte, 0, len(body.b)), body.b...)); err != nil {
			return err
		}
	}
	fail := func(err error) error {
		s.out.send(endFrame(appendError(beginFrame(nil, kindFailed, 0), err)))
		return err
	}
	if err := cfg.Validate(); err != nil {
		return fail(err)
	}
	ready := func(v any) error {
		b, err := json.Marshal(v)
		if err != nil {
			return fail(err)
		}
		s.out.send(endFrame(append(beginFrame(nil, kindReady, 0), b...)))
		return nil
	}
	if hello.Inspect {
		report, err := inspectModuleHere(cfg)
		if err != nil {
			return fail(err)
		}
		return ready(report)
	}
	if s.root, err = openModuleHere(cfg); err != nil {
		return fail(err)
	}
	if err := ready(s.root.Info()); err != nil {
		return err
	}
	ended := make(chan error, 2)
	go func() { ended <- s.read(in) }()
	stop := make(chan struct{})
	defer close(stop)
	go s.watch(cfg.Timeout, stop, ended)
	if err := <-ended; err != io.EOF {
		return err
	}
	s.work.Wait()
	return s.root.Close()
}

type childServer struct {
	out  *frameWriter
	root device
	work sync.WaitGroup // requests under way

	mu     sync.Mutex
	cancel map[uint64]func() // guarded by mu: requests under way
}

// A device is a token whose module is in this process.
type device interface {
	Root
	TokenKeys
	// begin does tasks, whose inputs it takes over, for a group of one or more.
	begin(g *group, all []work)
}

// watch reports a module in which everything has hung for the time one call may take.
func (s *childServer) watch(timeout time.Duration, stop chan struct{}, ended chan<- error) {
	t := time.NewTicker(timeout)
	defer t.Stop()
	for hung := 0; hung < 2; {
		select {
		case <-t.C:
		case <-stop:
			return
		}
		if i := s.root.Info(); i.Sessions == 0 && i.Stuck > 0 {
			hung++
		} else {
			hung = 0
		}
	}
	ended <- fmt.Errorf("%w: every session hangs in the module", ErrBusy)
}

// read takes requests until the stream ends: io.EOF is the parent's wish.
func (s *childServer) read(in *frameReader) error {
	for {
		kind, id, body, err := in.next()
		if err != nil {
			return err
		}
		switch kind {
		case kindPing:
			s.out.send(endFrame(beginFrame(nil, kindPong, 0)))
			continue
		case kindCancel:
			s.mu.Lock()
			cancel := s.cancel[id]
			s.mu.Unlock()
			if cancel != nil {
				cancel()
			}
			continue
		}
		switch kind {
		case kindEncrypt, kindDecrypt, kindUse:
			err = s.batch(kind, id, body)
		default:
			err = s.single(kind, id, body)
		}
		if err != nil {
			return err
		}
	}
}

// register notes a request under way and how it is cancelled.
func (s *childServer) register(id uint64, cancel func()) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.cancel[id] != nil || len(s.cancel) >= 2*maxRequests { // cancelled ones linger
		return fmt.Errorf("%w: request %d", errProtocol, id)
	}
	s.cancel[id] = cancel
	s.work.Add(1)
	return nil
}

// answered ends a request.
func (s *childServer) answered(id uint64, answer []byte) {
	s.mu.Lock()
	delete(s.cancel, id)
	s.mu.Unlock()
	s.out.send(endFrame(answer))
	s.work.Done()
}

// single does a request that is not a batch, on a goroutine of its own.
func (s *childServer) single(kind frameKind, id uint64, body *cursor) error {
	do := s.request(kind, body)
	if do == nil || !body.end() {
		return fmt.Errorf("%w: a request of kind %d", errProtocol, kind)
	}
	ctx, cancel := context.WithCancel(context.Background())
	if err := s.register(id, cancel); err != nil {
		cancel()
		return err
	}
	go func() {
		answer := do(ctx, id)
		cancel()
		s.answered(id, answer)
	}()
	return nil
}

// batch queues a batch. Nobody waits for it here: the worker who has the last result makes
// the answer and writes it.
func (s *childServer) batch(kind frameKind, id uint64, body *cursor) error {
	all := batchWork(kind, body)
	if !body.end() {
		return fmt.Errorf("%w: a request of kind %d", errProtocol, kind)
	}
	g := newGroup(len(all), func(results []work) { s.answered(id, batchAnswer(id, results)) })
	if err := s.register(id, func() { g.leave(context.Canceled) }); err != nil {
		return err
	}
	if len(all) == 0 {
		g.done(nil)
		return nil
	}
	s.root.begin(g, all)
	return nil
}

// batchWork makes tasks of a batch. One that nothing could be done about has its error
// already.
func batchWork(kind frameKind, body *cursor) (all []work) {
	task, check := taskEncrypt, checkKEK
	switch kind {
	case kindUse:
		for _, op := range body.ops() {
			w := op.work()
			w.err = op.check()
			all = append(all, w)
		}
		return all
	case kindDecrypt:
		task, check = taskDecrypt, checkWrapped
	}
	key, inputs := body.domainKey(), body.strings()
	all = make([]work, len(inputs))
	for i, in := range inputs {
		all[i] = work{kind: task, id: key, in: append(make([]byte, 0, len(in)), in...), err: check(in)}
	}
	return all
}

// batchAnswer makes the answer to a batch and wipes the results.
func batchAnswer(id uint64, results []work) []byte {
	// Room for everything, so that no copy of a KEK is left behind by growing.
	size := frameHead
	for i := range results {
		size += 6 + len(results[i].out)
		if results[i].err != nil {
			size += maxText
		}
	}
	b := beginFrame(make([]byte, 0, min(size, maxFrame)), kindAnswer, id)
	for i := range results {
		w := &results[i]
		if w.err != nil && len(b) > maxFrame/2 {
			w.err = shorten(w.err) // so many errors, all alike
		}
		if b = appendError(b, w.err); w.err == nil {
			b = appendString(b, w.out)
		}
		arena.Wipe(w.out)
	}
	return b
}

// request takes a body apart, copying what it needs, and returns what makes the answer;
// nil for a kind that is no request.
func (s *childServer) request(kind frameKind, body *cursor) func(context.Context, uint64) []byte {
	answer := func(id uint64) []byte { return beginFrame(nil, kindAnswer, id) }
	switch kind {
	case kindCreate:
		return func(ctx context.Context, id uint64) []byte {
			key, err := s.root.CreateDomainKey(ctx)
			b := appendError(answer(id), err)
			if err == nil {
				b = append(b, key[:]...)
			}
			return b
		}
	case kindCheck:
		key := body.domainKey()
		return func(ctx context.Context, id uint64) []byte {
			return appendError(answer(id), s.root.CheckDomainKey(ctx, key))
		}
	case kindDestroy:
		key := body.domainKey()
		return func(ctx context.Context, id uint64) []byte {
			return appendError(answer(id), s.root.DestroyDomainKey(ctx, key))
		}
	case kindGenerate:
		key, spec, label := body.tokenKey(), TokenKeySpec(body.u8()), string(body.string())
		return func(ctx context.Context, id uint64) []byte {
			public, err := s.root.GenerateKey(ctx, key, spec, label)
			b := appendError(answer(id), err)
			if err == nil {
				b = appendString(b, public)
			}
			return b
		}
	case kindFind:
		key := body.tokenKey()
		return func(ctx context.Context, id uint64) []byte { return appendError(answer(id), s.root.Check(ctx, key)) }
	case kindRemove:
		key := body.tokenKey()
		return func(ctx context.Context, id uint64) []byte { return appendError(answer(id), s.root.Destroy(ctx, key)) }
	case kindRandom:
		return s.random(body.lengths())
	case kindInfo:
		return func(_ context.Context, id uint64) []byte {
			b, err := json.Marshal(s.root.Info())
			if err != nil {
				b = []byte("{}")
			}
			return append(answer(id), b...)
		}
	}
	return nil
}

// shorten keeps what an error matches and little of its text.
func shorten(err error) error {
	var c cursor
	c.b = appendError(nil, err)
	short, _ := c.error().(*childError)
	short.text = short.text[:min(len(short.text), 100)]
	return short
}

func (s *childServer) random(lengths []int) func(context.Context, uint64) []byte {
	return func(ctx context.Context, id uint64) []byte {
		total := 0
		for _, n := range lengths {
			total += n
		}
		head := appendError(beginFrame(make([]byte, 0, frameHead+4+total), kindAnswer, id), nil)
		all := head[len(head) : len(head)+total]
		bufs, rest := make([][]byte, len(lengths)), all
		for i, n := range lengths {
			bufs[i], rest = rest[:n:n], rest[n:]
		}
		if err := s.root.Random(ctx, bufs); err != nil {
			return appendError(beginFrame(nil, kindAnswer, id), err)
		}
		return head[:len(head)+total]
	}
}

// childLog sends log records to the parent.
type childLog struct {
	out   *frameWriter
	attrs [][2]string
}

func (h childLog) Enabled(_ context.Context, l slog.Level) bool { return l >= slog.LevelInfo }

func (h childLog) Handle(_ context.Context, r slog.Record) error {
	line := logLine{Level: int(r.Level), Message: r.Message, Attrs: h.attrs[:len(h.attrs):len(h.attrs)]}
	r.Attrs(func(a slog.Attr) bool {
		line.Attrs = append(line.Attrs, [2]string{a.Key, a.Value.String()})
		return true
	})
	b, err := json.Marshal(line)
	if err != nil || len(b) > maxFrame/2 {
		return err
	}
	h.out.send(endFrame(append(beginFrame(nil, kindLog, 0), b...)))
	return nil
}

func (h childLog) WithAttrs(attrs []slog.Attr) slog.Handler {
	h.attrs = h.attrs[:len(h.attrs):len(h.attrs)]
	for _, a := range attrs {
		h.attrs = append(h.attrs, [2]string{a.Key, a.Value.String()})
	}
	return h
}

func (h childLog) WithGroup(string) slog.Handler { return h }
