package reactor

import (
	"cmp"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"runtime"
	"slices"
	"sync"
	"sync/atomic"
	"syscall"
	"time"
	"unsafe"

	"github.com/valyala/fasthttp"
	"golang.org/x/sys/unix"
)

// Options configure a Server.
type Options struct {
	// Handler answers requests. It calls MayWait before it waits, and may neither
	// hijack the connection nor keep anything of the request. It is called from
	// several goroutines, one at a time for each connection. Required.
	Handler fasthttp.RequestHandler

	// TLS is spoken on every connection; nil is plaintext.
	TLS *tls.Config

	// MaxConns bounds the connections, those of others too. Whoever comes when
	// there are as many is told so and closed. Required.
	MaxConns int

	// FirstTimeout bounds the TLS handshake, and the pause before the first
	// request; IdleTimeout the pause between two; WriteTimeout the wait for a
	// client that does not read. They are kept to the second. Required.
	FirstTimeout, IdleTimeout, WriteTimeout time.Duration

	// Loops is the number of loops; 0 is GOMAXPROCS.
	Loops int

	// Logger gets what is wrong with connections, at debug level. Required.
	Logger *slog.Logger
}

// Server serves the connections of one listener. See the package documentation.
type Server struct {
	// Immutable.
	o      Options
	ln     net.Listener
	loops  []*loop
	others *othersListener

	// Atomic.
	seconds  atomic.Int64 // since the start: the clock of connections that rest
	open     atomic.Int64 // connections
	refused  atomic.Int64
	stopping atomic.Bool

	handshakes    context.Context // ends when they have to
	endHandshakes context.CancelFunc

	accepting chan struct{} // closed when Serve has returned
	sweeping  chan struct{} // closed to end the sweep

	mu       sync.Mutex
	resting  []*worker          // guarded by mu
	followed map[*conn]struct{} // guarded by mu
	ended    bool               // no more work; guarded by mu
}

// maxResting bounds the workers that are kept for later.
const maxResting = 64

// New makes a Server of ln's connections.
func New(ln net.Listener, o Options) (*Server, error) {
	if o.Loops <= 0 {
		o.Loops = runtime.GOMAXPROCS(0)
	}
	s := &Server{o: o, ln: ln, accepting: make(chan struct{}), sweeping: make(chan struct{}), followed: map[*conn]struct{}{}}
	s.others = &othersListener{srv: s, conns: make(chan net.Conn, 128), done: make(chan struct{})}
	s.handshakes, s.endHandshakes = context.WithCancel(context.Background())
	for range o.Loops {
		l, err := newLoop()
		if err != nil {
			s.closeLoops()
			return nil, err
		}
		s.loops = append(s.loops, l)
	}
	return s, nil
}

// Open returns the number of connections, those of others too.
func (s *Server) Open() int64 { return s.open.Load() }

// Refused returns how many connections came when there were too many.
func (s *Server) Refused() int64 { return s.refused.Load() }

// Others is the listener of the connections that this server does not serve. It
// has to be accepted from for as long as the Server serves, and closed after.
func (s *Server) Others() net.Listener { return s.others }

// Serve accepts connections until the listener is closed, or Shutdown called, and
// returns nil then. It has to be called once.
func (s *Server) Serve() error {
	defer close(s.accepting)
	for _, l := range s.loops {
		s.give(job{loop: l})
	}
	go s.sweep()
	for {
		std, err := s.ln.Accept()
		if err != nil {
			var temporary interface{ Temporary() bool }
			if errors.As(err, &temporary) && temporary.Temporary() { // out of descriptors
				s.o.Logger.Warn("couldn't accept a connection", "error", err)
				time.Sleep(acceptPause)
				continue
			}
			if s.stopping.Load() || errors.Is(err, net.ErrClosed) {
				return nil
			}
			return err
		}
		s.serve(std, slices.MinFunc(s.loops, func(a, b *loop) int { return cmp.Compare(a.size.Load(), b.size.Load()) }))
	}
}

// acceptPause is how long a server waits that cannot accept.
const acceptPause = 50 * time.Millisecond

var tooMany = []byte("HTTP/1.1 503 Service Unavailable\r\nConnection: close\r\nContent-Length: 0\r\n\r\n")

// serve begins with a new connection.
func (s *Server) serve(std net.Conn, l *loop) {
	if s.open.Load() >= int64(s.o.MaxConns) {
		s.refused.Add(1)
		if s.o.TLS == nil && std.SetWriteDeadline(time.Now().Add(acceptPause)) == nil {
			std.Write(tooMany) // a new connection takes as much at once
		}
		std.Close()
		return
	}
	l.size.Add(1)
	if s.open.Add(1) > int64(len(s.loops)) {
		s.callFollowed(every)
	}
	c := &conn{srv: s, loop: l, remote: std.RemoteAddr(), fd: -1, std: std}
	c.state.Store(busy)
	c.since.Store(s.seconds.Load())
	c.stream = c
	if s.o.TLS == nil {
		s.begin(c)
		return
	}
	t := tls.Server(c, s.o.TLS)
	c.stream = t
	go func() {
		err := c.SetDeadline(time.Now().Add(s.o.FirstTimeout))
		if err == nil {
			err = t.HandshakeContext(s.handshakes)
		}
		if err == nil {
			err = c.SetDeadline(time.Time{})
		}
		if err != nil {
			s.o.Logger.Debug("TLS handshake failed", "remote", c.remote, "error", err)
			c.stream.Close()
			return
		}
		s.begin(c)
	}()
}

// begin has a connection served that is in the hands of package net.
func (s *Server) begin(c *conn) {
	if s.few() {
		s.follow(c)
	} else if err := c.adopt(); err != nil {
		s.o.Logger.Debug("connection lost", "remote", c.remote, "error", err)
		c.end()
		return
	} else if s.o.TLS == nil && c.rest() {
		return
	}
	// With TLS, the first request may have come with the end of the handshake.
	s.give(job{conn: c})
}

// few tells whether each connection may have a worker to itself.
func (s *Server) few() bool { return s.open.Load() <= int64(len(s.loops)) }

// follow notes that a worker serves nothing but c, which is in the hands of package
// net.
func (s *Server) follow(c *conn) {
	c.followed = true
	s.mu.Lock()
	defer s.mu.Unlock()
	s.followed[c] = struct{}{}
	if !s.few() || s.stopping.Load() { // since it was asked last
		call(c)
	}
}

func (s *Server) unfollow(c *conn) {
	s.mu.Lock()
	defer s.mu.Unlock()
	c.followed = false
	delete(s.followed, c)
}

// callFollowed has the workers of followed connections that are like that look
// around.
func (s *Server) callFollowed(like func(*conn) bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for c := range s.followed {
		if like(c) {
			call(c)
		}
	}
}

// call ends a worker's wait for what a followed connection sends.
func call(c *conn) { _ = c.std.SetReadDeadline(longAgo) }

var longAgo = time.Unix(1, 0)

func every(*conn) bool { return true }

// give has a worker do a job.
func (s *Server) give(j job) {
	s.mu.Lock()
	var w *worker
	if n := len(s.resting); n > 0 {
		w = s.resting[n-1]
		s.resting[n-1], s.resting = nil, s.resting[:n-1]
	}
	s.mu.Unlock()
	if w == nil {
		w = newWorker(s)
		go w.work()
	}
	w.job <- j
}

// rest keeps a worker for later; false ends it.
func (s *Server) rest(w *worker) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.ended || len(s.resting) == maxResting {
		return false
	}
	s.resting = append(s.resting, w)
	return true
}

// sweepEvery is how exact the timeouts are.
const sweepEvery = time.Second

// sweep ends what takes too long.
func (s *Server) sweep() {
	tick := time.NewTicker(sweepEvery)
	defer tick.Stop()
	for {
		select {
		case <-s.sweeping:
			return
		case <-tick.C:
		}
		s.seconds.Add(int64(sweepEvery / time.Second))
		s.callFollowed(s.late)
		for _, l := range s.loops {
			for _, c := range l.all(func(c *conn) bool { return c.state.Load() == idle && s.late(c) }) {
				s.end(c)
			}
		}
	}
}

// late tells whether a connection has waited for too long.
func (s *Server) late(c *conn) bool {
	bound := s.o.IdleTimeout
	switch c.waits.Load() {
	case first:
		bound = s.o.FirstTimeout
	case halfway:
		bound = sweepEvery // then somebody with a goroutine to spare may wait
	}
	return s.seconds.Load()-c.since.Load() > int64(bound/time.Second)
}

// end ends a connection if it is idle and late, or the server stops.
func (s *Server) end(c *conn) {
	switch {
	case !c.take():
	case s.stopping.Load() || s.late(c): // still
		c.end()
	case !c.rest():
		s.give(job{conn: c})
	}
}

// Shutdown stops accepting, closes connections that rest, and waits until all
// requests are answered, or ctx ends. Those of others go on.
func (s *Server) Shutdown(ctx context.Context) error {
	s.stopping.Store(true)
	close(s.sweeping)
	s.endHandshakes()
	s.ln.Close()
	<-s.accepting
	tick := time.NewTicker(stopEvery)
	defer tick.Stop()
	for {
		left := int64(0)
		s.callFollowed(every)
		for _, l := range s.loops {
			for _, c := range l.all(func(c *conn) bool { return c.state.Load() == idle }) {
				s.end(c)
			}
			left += l.size.Load()
		}
		if left == 0 {
			break
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("%d connections are still busy: %w", left, ctx.Err())
		case <-tick.C:
		}
	}
	s.closeLoops()
	s.mu.Lock()
	defer s.mu.Unlock()
	s.ended = true
	for _, w := range s.resting {
		w.job <- job{}
	}
	s.resting = nil
	return nil
}

// stopEvery is how often Shutdown looks.
const stopEvery = 10 * time.Millisecond

func (s *Server) closeLoops() {
	for _, l := range s.loops {
		l.file.Close()
	}
}

// A loop is an epoll instance and its connections.
type loop struct {
	// Immutable.
	file *os.File // the instance
	raw  syscall.RawConn
	fd   int
	ask  func(uintptr) bool // the method asked, bound once

	// Of the worker that runs the loop.
	events [maxEvents]unix.EpollEvent
	ready  [maxEvents]*conn // what the events are about, nil for nothing any more
	looked int              // how many were popped
	count  int
	passes int // since it parked

	size atomic.Int64 // connections that are the server's own, watched or not

	mu    sync.Mutex
	conns map[int32]*conn // those watched, by descriptor; guarded by mu
}

// maxEvents is how many connections a loop answers before it looks again.
const maxEvents = 32

// maxPasses is how often a loop finds something to do before it lets other
// goroutines run. It is not after each pass because that wakes a thread to look
// for them.
const maxPasses = 16

func newLoop() (*loop, error) {
	fd, err := unix.EpollCreate1(unix.EPOLL_CLOEXEC)
	if err != nil {
		return nil, os.NewSyscallError("epoll_create1", err)
	}
	if err := unix.SetNonblock(fd, true); err != nil { // or netpoll does not watch it
		unix.Close(fd)
		return nil, os.NewSyscallError("fcntl", err)
	}
	l := &loop{fd: fd, conns: map[int32]*conn{}, file: os.NewFile(uintptr(fd), "connections")}
	l.ask = l.asked
	if l.raw, err = l.file.SyscallConn(); err != nil {
		l.file.Close()
		return nil, err
	}
	return l, nil
}

// wanted is what a loop is told of: once each time something arrives. (EPOLLET is
// a negative number in package unix.)
const wanted = unix.EPOLLIN | unix.EPOLLRDHUP | 1<<31

// add watches a connection.
func (l *loop) add(c *conn) error {
	l.mu.Lock()
	l.conns[int32(c.fd)] = c
	l.mu.Unlock()
	// What has arrived before is told of too.
	if err := unix.EpollCtl(l.fd, unix.EPOLL_CTL_ADD, c.fd, &unix.EpollEvent{Events: wanted, Fd: int32(c.fd)}); err != nil {
		return os.NewSyscallError("epoll_ctl", err)
	}
	return nil
}

// remove ceases to watch a connection.
func (l *loop) remove(c *conn) {
	l.mu.Lock()
	delete(l.conns, int32(c.fd))
	l.mu.Unlock()
	_ = unix.EpollCtl(l.fd, unix.EPOLL_CTL_DEL, c.fd, nil)
}

// all returns the connections that are like that.
func (l *loop) all(like func(*conn) bool) (found []*conn) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, c := range l.conns {
		if like(c) {
			found = append(found, c)
		}
	}
	return found
}

// wait fills ready, and returns false when the loop was closed.
func (l *loop) wait() bool {
	l.looked, l.count = 0, 0
	if l.passes++; l.passes > maxPasses {
		l.passes = 0
		runtime.Gosched()
	}
	// Read forgets what netpoll knows, asks, and parks when there is nothing: what
	// arrives after the asking wakes it.
	if err := l.raw.Read(l.ask); err != nil {
		return false
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	for i := range l.count {
		l.ready[i] = l.conns[l.events[i].Fd]
	}
	return true
}

func (l *loop) asked(uintptr) bool {
	n, _, e := syscall.RawSyscall6(syscall.SYS_EPOLL_PWAIT, uintptr(l.fd), uintptr(unsafe.Pointer(&l.events[0])), maxEvents, 0, 0, 0)
	if e != 0 {
		return e == syscall.EINTR // and asked again
	}
	l.count = int(n)
	if n == 0 {
		l.passes = 0
	}
	return n > 0
}

// pop makes the caller the owner of the next connection that is ready, nil when
// there is none.
func (l *loop) pop() *conn {
	for l.looked < l.count {
		i := l.looked
		l.looked++
		c := l.ready[i]
		l.ready[i] = nil
		if c == nil {
			continue
		}
		for !c.take() {
			if c.state.CompareAndSwap(busy, again) || c.state.Load() == again {
				c = nil
				break
			}
		}
		if c != nil {
			c.drained = false
			c.toEnd = l.events[i].Events&(unix.EPOLLRDHUP|unix.EPOLLHUP|unix.EPOLLERR) != 0
			return c
		}
	}
	return nil
}

// othersListener hands connections to others.
type othersListener struct {
	srv   *Server
	conns chan net.Conn
	done  chan struct{}
	once  sync.Once
}

func (o *othersListener) give(c net.Conn) {
	select {
	case o.conns <- c:
	default:
		go func() { // whoever gives must not wait
			select {
			case o.conns <- c:
				o.ended()
			case <-o.done:
				c.Close()
			}
		}()
		return
	}
	o.ended()
}

// ended closes what nobody accepts any more.
func (o *othersListener) ended() {
	select {
	case <-o.done:
	default:
		return
	}
	for {
		select {
		case c := <-o.conns:
			c.Close()
		default:
			return
		}
	}
}

func (o *othersListener) Accept() (net.Conn, error) {
	select {
	case c := <-o.conns:
		return c, nil
	case <-o.done:
		return nil, net.ErrClosed
	}
}

func (o *othersListener) Close() error {
	o.once.Do(func() { close(o.done) })
	o.ended()
	return nil
}

func (o *othersListener) Addr() net.Addr { return o.srv.ln.Addr() }
