package hsm

import (
	"context"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"os/exec"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"keymill/hsm/arena"
)

// # The module in a process of its own: the parent's side
//
// A childRoot is a Root whose work is done by a child process, over the protocol in
// frame.go. It owns at most one child at a time. A supervisor goroutine starts it,
// notices its end, and starts the next:
//
//	starting --ready--> up --socket ends, or no pong--> down --backoff--> starting
//	    |                                                 ^
//	    +--failed: an error that may pass-----------------+
//	    +--failed: a refused PIN--> dead: no further start, so that the token does not lock
//
// A request is written to the child that is up. When there is none it waits for one:
// until its context ends, at most PKCS11Config.Timeout, and not at all while the last
// start has failed for a reason that will not pass by itself (Classify: Fatal), or
// because the token is gone.
//
// When a child ends, what it had not answered is not known to have happened. Encrypt,
// Decrypt, Random and CheckDomainKey change nothing on a token, so they are sent to the
// next child, once: a request that kills two children is not given a third. It fails
// with ErrDevice, as do creations and destructions of domain keys, which are not
// repeated. An answer
// that has arrived whole counts; one that is cut short does not exist. So nobody
// gets an answer that the module did not give to that very request.
//
// The backoff is nothing after a child that lived for stableAfter, so that a single
// crash costs one start; it doubles from firstBackoff to maxBackoff when children
// die young, so that a module that crashes at once does not keep a core busy.
//
// A child that does not answer pings for as long as a call may take (a deadlocked
// loader, a stopped process) is killed. One whose every session hangs ends by itself,
// see ServeChild: a fresh process gets back the threads that hang, which this one cannot.
// One whose token stays away for goneAllowance is replaced too, until there is one that
// finds it: some modules look for tokens only when they are initialised.
//
// Locks: childRoot.mu and child.mu are never held together.
const (
	stableAfter  = 10 * time.Second
	firstBackoff = 50 * time.Millisecond
	maxBackoff   = 5 * time.Second

	// pingAllowance is the least time a child has to answer a ping: a machine that
	// is busy for that long is not a reason to kill a child.
	pingAllowance = 5 * time.Second
	// closeAllowance is how long a child may take to log out and end.
	closeAllowance = 3 * time.Second
	// goneAllowance is how long a module may take to find a token again that has gone.
	goneAllowance = time.Second
	// infoAllowance is how long Info waits for an answer.
	infoAllowance = time.Second
)

type childRoot struct {
	// immutable after openChild
	cfg      PKCS11Config
	slots    chan struct{} // one element per request under way
	quit     chan struct{} // closed by Close
	finished chan struct{} // closed when the supervisor has ended
	missed   chan struct{} // has room for one: a child has said that the token is gone

	closeOnce sync.Once
	gone      atomic.Bool // no child has found the token since

	mu       sync.Mutex
	up       *child        // guarded by mu: nil while there is none
	changed  chan struct{} // guarded by mu: closed and replaced when up, why or dead change
	why      error         // guarded by mu: what the last start failed with
	dead     error         // guarded by mu: a refused PIN; there will be no further child
	about    Info          // guarded by mu: the last Info a child gave
	restarts int           // guarded by mu
}

// openChild starts the first child; its errors are OpenPKCS11's own.
func openChild(cfg PKCS11Config) (*childRoot, error) {
	r := &childRoot{
		cfg: cfg, slots: make(chan struct{}, maxRequests), quit: make(chan struct{}), finished: make(chan struct{}),
		missed: make(chan struct{}, 1), changed: make(chan struct{}),
	}
	c, about, err := r.start()
	if err != nil {
		return nil, err
	}
	r.up, r.about = c, about
	go r.supervise(c)
	return r, nil
}

// inspectChild has a child make the report.
func inspectChild(cfg PKCS11Config) (*Report, error) {
	c, err := spawn(&cfg)
	if err != nil {
		return nil, err
	}
	defer c.kill()
	report := new(Report)
	if err := c.greet(&cfg, true, report); err != nil {
		return nil, err
	}
	return report, nil
}

// start starts a child and waits until it is ready.
func (r *childRoot) start() (*child, Info, error) {
	c, err := spawn(&r.cfg)
	if err != nil {
		return nil, Info{}, err
	}
	var about Info
	if err := c.greet(&r.cfg, false, &about); err != nil {
		c.kill()
		return nil, Info{}, err
	}
	go c.read()
	return c, about, nil
}

// supervise replaces children until Close.
func (r *childRoot) supervise(c *child) {
	defer close(r.finished)
	backoff := time.Duration(0)
	for {
		born := time.Now()
		r.watch(c)
		r.set(func() { r.up = nil })
		c.fail()
		select {
		case <-r.quit:
			c.finish()
			return
		default:
		}
		c.kill()
		if time.Since(born) >= stableAfter {
			backoff = 0
		}
		r.cfg.Logger.Error("the HSM process ended; starting another", "pid", c.cmd.Process.Pid, "status", c.status(), "in", backoff)
		for c = nil; c == nil; {
			t := time.NewTimer(backoff)
			select {
			case <-t.C:
			case <-r.quit:
				t.Stop()
				return
			}
			backoff = min(max(2*backoff, firstBackoff), maxBackoff)
			if r.isDead() != nil {
				<-r.quit
				return
			}
			next, about, err := r.start()
			if err != nil {
				r.cfg.Logger.Error("couldn't start the HSM process", "error", err, "again_in", backoff)
				r.note(err)
				r.set(func() { r.why = err })
				continue
			}
			c = next
			r.gone.Store(false)
			r.set(func() {
				r.up, r.why, r.about = c, nil, about
				r.restarts++
			})
			r.cfg.Logger.Info("the HSM process serves again", "pid", c.cmd.Process.Pid)
		}
	}
}

// set changes the state and wakes who waits for that.
func (r *childRoot) set(change func()) {
	r.mu.Lock()
	defer r.mu.Unlock()
	change()
	close(r.changed)
	r.changed = make(chan struct{})
}

// note remembers of what a child has answered a refused PIN, which a new process would
// try again, and whether the token is gone, which a new process may find again.
func (r *childRoot) note(err error) {
	switch {
	case err == nil:
		if r.gone.Load() {
			r.gone.Store(false)
		}
	case errors.Is(err, ErrPINIncorrect), errors.Is(err, ErrTokenLocked):
		r.set(func() { r.dead = err })
	case errors.Is(err, ErrTokenMissing):
		r.gone.Store(true)
		select {
		case r.missed <- struct{}{}:
		default:
		}
	}
}

func (r *childRoot) isDead() error {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.dead
}

// watch returns when the child is of no more use.
func (r *childRoot) watch(c *child) {
	limit := max(r.cfg.Timeout, pingAllowance)
	t := time.NewTicker(limit / 4)
	defer t.Stop()
	var gone <-chan time.Time
	for {
		select {
		case <-c.lost:
			return
		case <-r.quit:
			return
		case <-r.missed:
			if gone == nil {
				gone = time.After(goneAllowance)
			}
		case <-gone:
			if gone = nil; r.gone.Load() {
				r.cfg.Logger.Warn("the token is gone: a new HSM process looks for it", "pid", c.cmd.Process.Pid)
				return
			}
		case now := <-t.C:
			if since := now.UnixNano() - c.heard.Load(); since > int64(limit) {
				r.cfg.Logger.Error("the HSM process does not answer; it is killed", "pid", c.cmd.Process.Pid, "silent_for", time.Duration(since))
				return
			}
			c.out.send(endFrame(beginFrame(nil, kindPing, 0)))
		}
	}
}

// live returns a child that is up, waiting for one if need be.
func (r *childRoot) live(ctx context.Context, limit <-chan time.Time) (*child, error) {
	for {
		r.mu.Lock()
		c, changed, why, dead := r.up, r.changed, r.why, r.dead
		r.mu.Unlock()
		select {
		case <-r.quit:
			return nil, ErrClosed
		default:
		}
		switch {
		case c != nil:
			return c, nil
		case dead != nil:
			return nil, dead
		case why != nil && (Classify(why) == Fatal || errors.Is(why, ErrTokenMissing)):
			return nil, why
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return nil, contextError(ctx)
		case <-r.quit:
			return nil, ErrClosed
		case <-limit:
			if why == nil {
				why = errors.New("it is being started")
			}
			return nil, fmt.Errorf("%w: no HSM process for %v: %w", ErrBusy, r.cfg.Timeout, why)
		}
	}
}

// do sends a request and has take read its answer, on the reader's goroutine. frame
// builds the request under the given number; it is called once per attempt.
func (r *childRoot) do(ctx context.Context, again bool, frame func(id uint64) []byte, take func(*cursor)) error {
	if ctx.Err() != nil {
		return contextError(ctx)
	}
	var limit <-chan time.Time // for waiting, not for the work: that is the child's to bound
	wait := func() {
		if limit == nil {
			limit = time.After(r.cfg.Timeout)
		}
	}
	select {
	case r.slots <- struct{}{}:
	default:
		wait()
		select {
		case r.slots <- struct{}{}:
		case <-ctx.Done():
			return contextError(ctx)
		case <-r.quit:
			return ErrClosed
		case <-limit:
			return fmt.Errorf("%w: %d requests are under way", ErrBusy, maxRequests)
		}
	}
	defer func() { <-r.slots }()
	for attempt := 0; ; attempt++ {
		r.mu.Lock()
		c := r.up
		r.mu.Unlock()
		if c == nil {
			wait()
			var err error
			if c, err = r.live(ctx, limit); err != nil {
				return err
			}
		}
		err := c.ask(ctx, frame, take)
		switch {
		case !errors.Is(err, errChildLost):
			return err
		case !again:
			return fmt.Errorf("%w: %w; whether the token did it is not known", ErrDevice, err)
		case attempt == 1:
			return fmt.Errorf("%w: %w, twice", ErrDevice, err)
		}
		limit = nil
	}
}

var errChildLost = errors.New("the process that runs the PKCS#11 module ended before it answered")

func (r *childRoot) CreateDomainKey(ctx context.Context) (id DomainKeyID, err error) {
	var answer error
	err = r.do(ctx, false, func(n uint64) []byte { return endFrame(beginFrame(nil, kindCreate, n)) }, func(c *cursor) {
		if answer = c.error(); answer == nil {
			id = c.domainKey()
		}
	})
	if err == nil {
		err = answer
	}
	if err != nil {
		r.note(err)
		return DomainKeyID{}, err
	}
	return id, nil
}

func (r *childRoot) CheckDomainKey(ctx context.Context, id DomainKeyID) error {
	return r.onDomainKey(ctx, kindCheck, true, id)
}

func (r *childRoot) DestroyDomainKey(ctx context.Context, id DomainKeyID) error {
	return r.onDomainKey(ctx, kindDestroy, false, id)
}

// onDomainKey sends a request about one domain key, whose answer is an error or nothing.
func (r *childRoot) onDomainKey(ctx context.Context, kind frameKind, again bool, id DomainKeyID) error {
	var answer error
	err := r.do(ctx, again, func(n uint64) []byte {
		return endFrame(append(beginFrame(nil, kind, n), id[:]...))
	}, func(c *cursor) { answer = c.error() })
	if err == nil {
		err = answer
	}
	r.note(err)
	return err
}

func (r *childRoot) Encrypt(ctx context.Context, id DomainKeyID, items []Item) {
	r.batch(ctx, kindEncrypt, id, items, checkKEK)
}

func (r *childRoot) Decrypt(ctx context.Context, id DomainKeyID, items []Item) {
	r.batch(ctx, kindDecrypt, id, items, checkWrapped)
}

// batch sends the items that pass check, in as many requests as it takes.
func (r *childRoot) batch(ctx context.Context, kind frameKind, id DomainKeyID, items []Item, check func([]byte) error) {
	good := make([]*Item, 0, len(items))
	for i := range items {
		it := &items[i]
		it.Out = nil
		if it.Err = check(it.In); it.Err == nil {
			good = append(good, it)
		}
	}
	if len(good) == 0 && ctx.Err() != nil {
		failAll(items, contextError(ctx))
	}
	var wg sync.WaitGroup
	for part := range slices.Chunk(good, maxItems) {
		if len(part) < maxItems || len(good) == maxItems {
			r.part(ctx, kind, id, part) // the last one on our own goroutine
			break
		}
		wg.Go(func() { r.part(ctx, kind, id, part) })
	}
	wg.Wait()
}

func (r *childRoot) part(ctx context.Context, kind frameKind, id DomainKeyID, items []*Item) {
	size := frameHead + len(id) + 2
	for _, it := range items {
		size += 2 + len(it.In)
	}
	got := make([]Item, len(items))
	err := r.do(ctx, true, func(n uint64) []byte {
		b := append(beginFrame(make([]byte, 0, size), kind, n), id[:]...)
		b = binary.BigEndian.AppendUint16(b, uint16(len(items)))
		for _, it := range items {
			b = appendString(b, it.In)
		}
		return endFrame(b)
	}, func(c *cursor) { c.items(got) })
	for i, it := range items {
		if err != nil {
			it.Err = err
			continue
		}
		it.Out, it.Err = got[i].Out, got[i].Err
		if it.Err != nil {
			it.Out = nil
		}
		r.note(it.Err)
	}
}

func (r *childRoot) Random(ctx context.Context, bufs [][]byte) error {
	err := r.random(ctx, bufs)
	if err != nil {
		r.note(err)
		for _, b := range bufs {
			arena.Wipe(b)
		}
	}
	return err
}

// random asks in requests within the bounds. A buffer larger than one is filled in
// pieces.
func (r *childRoot) random(ctx context.Context, bufs [][]byte) error {
	if ctx.Err() != nil {
		return contextError(ctx)
	}
	var group [][]byte
	total := 0
	flush := func() error {
		if len(group) == 0 {
			return nil
		}
		err := r.fill(ctx, group, total)
		group, total = group[:0], 0
		return err
	}
	for _, b := range bufs {
		for len(b) > 0 {
			n := min(len(b), maxRandom-total)
			group, total, b = append(group, b[:n]), total+n, b[n:]
			if total == maxRandom || len(group) == maxItems {
				if err := flush(); err != nil {
					return err
				}
			}
		}
	}
	return flush()
}

func (r *childRoot) fill(ctx context.Context, bufs [][]byte, total int) error {
	var answer error
	got := make([]byte, total) // the caller may leave before the answer comes
	defer arena.Wipe(got)
	err := r.do(ctx, true, func(n uint64) []byte {
		b := binary.BigEndian.AppendUint16(beginFrame(nil, kindRandom, n), uint16(len(bufs)))
		for _, buf := range bufs {
			b = binary.BigEndian.AppendUint32(b, uint32(len(buf)))
		}
		return endFrame(b)
	}, func(c *cursor) {
		if answer = c.error(); answer == nil {
			copy(got, c.take(total))
		}
	})
	if err == nil {
		err = answer
	}
	if err != nil {
		return err
	}
	rest := got
	for _, b := range bufs {
		rest = rest[copy(b, rest):]
	}
	return nil
}

func (r *childRoot) Info() Info {
	r.mu.Lock()
	c, about, restarts, why, dead := r.up, r.about, r.restarts, r.why, r.dead
	r.mu.Unlock()
	about.Notices = slices.Clone(about.Notices)
	about.Restarts = restarts
	if c == nil {
		about.Sessions, about.Stuck, about.Process = 0, 0, 0
		if dead != nil {
			why = dead
		}
		notice := "no HSM process is running"
		if why != nil {
			notice += ": " + why.Error()
		}
		about.Notices = append(about.Notices, notice)
		return about
	}
	about.Process = c.cmd.Process.Pid
	ctx, cancel := context.WithTimeout(context.Background(), infoAllowance)
	defer cancel()
	var now Info
	var bad error
	err := c.ask(ctx, func(n uint64) []byte { return endFrame(beginFrame(nil, kindInfo, n)) }, func(b *cursor) {
		bad = json.Unmarshal(b.take(len(b.b)), &now)
	})
	if err != nil || bad != nil {
		about.Notices = append(about.Notices, "the HSM process is slow to answer; this is what it last said")
		return about
	}
	r.mu.Lock()
	r.about = now
	r.mu.Unlock()
	now.Restarts, now.Process = restarts, about.Process
	return now
}

func (r *childRoot) Close() error {
	r.closeOnce.Do(func() {
		close(r.quit)
		<-r.finished
		r.cfg.pin.Wipe()
	})
	return nil
}

// A child is one process and the socket to it.
type child struct {
	cmd    *exec.Cmd
	conn   net.Conn
	in     *frameReader // owned by the goroutine of greet, then of read
	out    *frameWriter
	log    *slog.Logger
	exited chan struct{} // closed when the process is gone and waitErr is set
	lost   chan struct{} // closed when the socket is of no more use
	heard  atomic.Int64  // when the last frame came, Unix nanoseconds

	waitErr error // read after exited
	readErr error // read after lost

	mu    sync.Mutex
	calls map[uint64]*request // guarded by mu: what has no answer yet
	next  uint64              // guarded by mu
	gone  bool                // guarded by mu: no more requests
}

// A request is removed from child.calls by whoever settles it: the reader, fail, or the
// caller who leaves. Only the first two close done, after take has returned.
type request struct {
	take func(*cursor)
	lost bool // read after done
	done chan struct{}
}

// newChild wraps what spawn has started.
func newChild(cfg *PKCS11Config, cmd *exec.Cmd, conn net.Conn, exited chan struct{}) *child {
	c := &child{
		cmd: cmd, conn: conn, in: newFrameReader(conn), out: newFrameWriter(conn), log: cfg.Logger,
		exited: exited, lost: make(chan struct{}), calls: map[uint64]*request{},
	}
	c.heard.Store(time.Now().UnixNano())
	return c
}

// greet says hello and waits for ready, whose body it decodes.
func (c *child) greet(cfg *PKCS11Config, inspect bool, into any) error {
	hello, err := json.Marshal(childHello{
		Version: protocolVersion, Inspect: inspect, Keys: cfg.pin != nil, Module: cfg.Module, TokenLabel: cfg.TokenLabel, TokenSerial: cfg.TokenSerial,
		PINFile: cfg.PINFile, Sessions: cfg.Sessions, Timeout: int64(cfg.Timeout), StartTimeout: int64(cfg.StartTimeout),
	})
	if err != nil {
		return err
	}
	c.out.send(endFrame(append(beginFrame(nil, kindHello, 0), hello...)))
	if pin := cfg.pin.bytes(); pin != nil {
		c.out.send(endFrame(append(beginFrame(make([]byte, 0, frameHead+len(pin)), kindPIN, 0), pin...)))
	}
	// The child bounds its start itself; this is for one that does not get so far.
	if err := c.conn.SetReadDeadline(time.Now().Add(cfg.StartTimeout + closeAllowance)); err != nil {
		return err
	}
	for {
		kind, _, body, err := c.in.next()
		switch {
		case err != nil:
			c.kill()
			return fmt.Errorf("%w: the process that runs the PKCS#11 module ended during its start (%s); "+
				"the module may be broken or for another system: see what it wrote to standard error", ErrDevice, c.status())
		case kind == kindLog:
			c.relay(body)
		case kind == kindFailed:
			if err = body.error(); err == nil || !body.end() {
				err = errProtocol
			}
			return err
		case kind == kindReady:
			if err := json.Unmarshal(body.b, into); err != nil {
				return fmt.Errorf("%w: %v", errProtocol, err)
			}
			return c.conn.SetReadDeadline(time.Time{})
		default:
			return fmt.Errorf("%w: kind %d during the start", errProtocol, kind)
		}
	}
}

// read hands answers out until the socket ends.
func (c *child) read() {
	defer close(c.lost)
	defer c.in.wipe()
	for {
		kind, id, body, err := c.in.next()
		if err != nil {
			c.readErr = err
			return
		}
		c.heard.Store(time.Now().UnixNano())
		switch kind {
		case kindPong:
		case kindLog:
			c.relay(body)
		case kindAnswer:
			c.mu.Lock()
			q := c.calls[id]
			delete(c.calls, id)
			c.mu.Unlock()
			if q == nil {
				continue // nobody waits any more
			}
			q.take(body)
			q.lost = !body.end()
			close(q.done)
			if q.lost {
				c.readErr = errProtocol
				return
			}
		default:
			c.readErr = fmt.Errorf("%w: kind %d", errProtocol, kind)
			return
		}
	}
}

// relay writes a line of the child's to our log.
func (c *child) relay(body *cursor) {
	var line logLine
	if json.Unmarshal(body.b, &line) != nil {
		return
	}
	attrs := make([]slog.Attr, 0, len(line.Attrs))
	for _, a := range line.Attrs {
		attrs = append(attrs, slog.String(a[0], a[1]))
	}
	c.log.LogAttrs(context.Background(), slog.Level(line.Level), line.Message, attrs...)
}

// ask sends one request and waits for its answer.
func (c *child) ask(ctx context.Context, frame func(uint64) []byte, take func(*cursor)) error {
	q := &request{take: take, done: make(chan struct{})}
	c.mu.Lock()
	if c.gone {
		c.mu.Unlock()
		return errChildLost
	}
	c.next++
	id := c.next
	c.calls[id] = q
	c.mu.Unlock()
	c.out.send(frame(id))
	select {
	case <-q.done:
	case <-ctx.Done():
		c.mu.Lock()
		mine := c.calls[id] == q
		delete(c.calls, id)
		c.mu.Unlock()
		if mine {
			c.out.send(endFrame(beginFrame(nil, kindCancel, id)))
			return contextError(ctx)
		}
		<-q.done // settled in the same moment
	}
	if q.lost {
		return errChildLost
	}
	return nil
}

// fail settles all requests as lost and takes no more.
func (c *child) fail() {
	c.mu.Lock()
	c.gone = true
	calls := c.calls
	c.calls = map[uint64]*request{}
	c.mu.Unlock()
	for _, q := range calls {
		q.lost = true
		close(q.done)
	}
}

// finish asks the child to end and waits for that, within bounds.
func (c *child) finish() {
	c.out.close()
	t := time.AfterFunc(closeAllowance, func() { c.cmd.Process.Kill() })
	defer t.Stop()
	<-c.out.done
	if w, ok := c.conn.(interface{ CloseWrite() error }); ok {
		_ = w.CloseWrite() // fails when the child is gone already
	}
	<-c.exited
	c.kill()
}

// kill ends the process, if it still runs, and frees what belongs to it.
func (c *child) kill() {
	_ = c.cmd.Process.Kill() // fails when it has ended
	<-c.exited
	_ = c.conn.Close() // ends reader and writer
	c.out.close()
}

// status says how the process ended.
func (c *child) status() string {
	select {
	case <-c.exited:
	default:
		return "still running"
	}
	var s []string
	if c.waitErr != nil {
		s = append(s, c.waitErr.Error())
	}
	select {
	case <-c.lost:
		if c.readErr != nil && c.readErr != io.EOF {
			s = append(s, c.readErr.Error())
		}
	default:
	}
	if len(s) == 0 {
		return "exit status 0"
	}
	return strings.Join(s, "; ")
}
