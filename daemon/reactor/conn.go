package reactor

import (
	"errors"
	"io"
	"net"
	"os"
	"sync/atomic"
	"syscall"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

// errWouldBlock says that a connection has nothing to read yet. It is temporary:
// crypto/tls keeps its state and can be asked again.
var errWouldBlock error = wouldBlock{}

type wouldBlock struct{}

func (wouldBlock) Error() string   { return "nothing to read yet" }
func (wouldBlock) Timeout() bool   { return true }
func (wouldBlock) Temporary() bool { return true }

// States of a connection; see the package documentation.
const (
	idle int32 = iota
	busy
	again
)

// What an idle connection waits for.
const (
	first   int32 = iota // its first request
	next                 // the next one
	halfway              // the rest of one
)

// A conn is one connection. It is a net.Conn: the plaintext one of its own
// requests, and what TLS reads from and writes to.
//
// It is in one of two hands. In ours it is a descriptor that is read and written
// without waiting. In those of package net it is a net.Conn as any other: while
// TLS shakes hands, while a worker follows it, when the client does not read what
// it is sent, and for good when others serve it.
type conn struct {
	// Immutable.
	srv    *Server
	loop   *loop
	stream net.Conn // where requests are read: the conn itself or TLS on top
	remote net.Addr

	// Atomic.
	state atomic.Int32
	waits atomic.Int32 // what for
	since atomic.Int64 // since when, in the server's seconds
	ended atomic.Bool  // Close was called

	// The owner's.
	fd       int      // in our hands, else -1
	std      net.Conn // in those of package net, else nil
	worker   *worker  // that serves it
	followed bool     // the worker does not serve any other
	drained  bool     // nothing to read until the next event
	toEnd    bool     // read until the kernel says that there is no more
	partial  []byte   // of a request of which more is to come
	away     bool     // others serve it
	reads    int      // since its turn began
}

// adopt takes the connection out of the hands of package net.
func (c *conn) adopt() error {
	raw, err := c.std.(syscall.Conn).SyscallConn()
	if err != nil {
		return err
	}
	fd := -1
	if cerr := raw.Control(func(theirs uintptr) {
		fd, err = unix.FcntlInt(theirs, unix.F_DUPFD_CLOEXEC, 0)
	}); cerr != nil {
		return cerr
	}
	if err != nil {
		return os.NewSyscallError("fcntl", err)
	}
	c.std.Close() // of its descriptor; ours keeps the connection open
	c.std, c.fd = nil, fd
	return c.loop.add(c)
}

// release gives the connection into the hands of package net.
func (c *conn) release() error {
	c.loop.remove(c)
	f := os.NewFile(uintptr(c.fd), "connection")
	c.fd = -1
	std, err := net.FileConn(f)
	f.Close()
	c.std = std
	return err
}

// Read reads what is there, errWouldBlock when nothing is. In the hands of
// package net it waits.
func (c *conn) Read(p []byte) (int, error) {
	if c.std != nil {
		if c.worker != nil && !c.followed {
			return 0, errWouldBlock // what TLS had to answer did not go out; see stay
		}
		n, err := c.std.Read(p)
		if c.followed && errors.Is(err, os.ErrDeadlineExceeded) {
			err = errWouldBlock // somebody called for attention
		}
		return n, err
	}
	if c.fd < 0 {
		return 0, net.ErrClosed
	}
	if c.drained || len(p) == 0 {
		return 0, errWouldBlock
	}
	if c.reads++; c.reads > maxReads && c.worker != nil {
		c.worker.leave()
	}
	for {
		// A raw call: it does not wait, so the scheduler need not know.
		n, _, e := syscall.RawSyscall(syscall.SYS_READ, uintptr(c.fd), uintptr(unsafe.Pointer(&p[0])), uintptr(len(p)))
		switch e {
		case 0:
			if n == 0 {
				return 0, io.EOF
			}
			c.drained = int(n) < len(p) && !c.toEnd
			return int(n), nil
		case syscall.EINTR:
		case syscall.EAGAIN:
			c.drained = true
			return 0, errWouldBlock
		default:
			return 0, os.NewSyscallError("read", e)
		}
	}
}

// maxReads is how often a connection is read before it has to do without the loop.
const maxReads = 16

// Write writes all of p. When the client does not take it, and a worker serves
// the connection, the worker leaves its loop and waits, in the hands of package
// net.
func (c *conn) Write(p []byte) (int, error) {
	done := 0
	for c.std == nil && done < len(p) {
		if c.fd < 0 {
			return done, net.ErrClosed
		}
		n, _, e := syscall.RawSyscall(syscall.SYS_WRITE, uintptr(c.fd), uintptr(unsafe.Pointer(&p[done])), uintptr(len(p)-done))
		switch e {
		case 0:
			done += int(n)
		case syscall.EINTR:
		case syscall.EAGAIN:
			if c.worker == nil {
				return done, errWouldBlock // a farewell
			}
			c.worker.leave()
			if err := c.release(); err != nil {
				return done, err
			}
		default:
			return done, os.NewSyscallError("write", e)
		}
	}
	if done == len(p) {
		return done, nil
	}
	if c.worker != nil {
		if c.worker.until.IsZero() {
			c.worker.until = time.Now().Add(c.srv.o.WriteTimeout)
		}
		if err := c.std.SetWriteDeadline(c.worker.until); err != nil {
			return done, err
		}
	}
	n, err := c.std.Write(p[done:])
	return done + n, err
}

// Close ends the connection. It may be called again, and by anybody once others
// serve it.
func (c *conn) Close() error {
	if !c.ended.CompareAndSwap(false, true) {
		return net.ErrClosed
	}
	var err error
	switch {
	case c.std != nil:
		err = c.std.Close()
	case c.fd >= 0:
		c.loop.remove(c)
		err = unix.Close(c.fd)
		c.fd = -1
	}
	if !c.away {
		c.loop.size.Add(-1)
	}
	c.srv.open.Add(-1)
	return err
}

func (c *conn) RemoteAddr() net.Addr { return c.remote }

func (c *conn) LocalAddr() net.Addr {
	if c.std != nil {
		return c.std.LocalAddr()
	}
	return c.srv.ln.Addr()
}

// The deadlines are those of package net. In our hands nothing waits, and the
// server's sweep ends what takes too long.

func (c *conn) SetDeadline(t time.Time) error {
	if c.std == nil {
		return nil
	}
	return c.std.SetDeadline(t)
}

func (c *conn) SetReadDeadline(t time.Time) error {
	if c.std == nil {
		return nil
	}
	return c.std.SetReadDeadline(t)
}

func (c *conn) SetWriteDeadline(t time.Time) error {
	if c.std == nil {
		return nil
	}
	return c.std.SetWriteDeadline(t)
}

// take makes the caller the owner of an idle connection.
func (c *conn) take() bool { return c.state.CompareAndSwap(idle, busy) }

// waitFor notes that the connection waits from now on, and for what.
func (c *conn) waitFor(what int32) {
	c.since.Store(c.srv.seconds.Load())
	c.waits.Store(what)
}

// rest ends the caller's ownership, unless something arrived meanwhile: then it
// is still the owner and has to read.
func (c *conn) rest() bool {
	c.worker = nil
	if c.state.CompareAndSwap(busy, idle) {
		return true
	}
	c.state.Store(busy)
	c.drained, c.toEnd = false, true
	return false
}

// end closes a connection of which nothing more is expected or, with part of a
// request there, leaves it to others. The caller owns it, and no longer does.
func (c *conn) end() {
	if len(c.partial) > 0 {
		c.handOver(c.partial)
		return
	}
	if c.followed {
		c.srv.unfollow(c)
	}
	c.worker = nil
	c.stream.Close()
}

// handOver gives the connection, with what was read of a request already, to
// those who serve others.
func (c *conn) handOver(read []byte) {
	if c.followed {
		c.srv.unfollow(c)
	}
	var err error
	if c.std == nil {
		err = c.release()
	}
	if err == nil {
		err = c.std.SetDeadline(time.Time{})
	}
	if err != nil {
		clear(read)
		c.stream.Close()
		return
	}
	c.worker, c.partial = nil, nil
	c.away = true
	c.srv.others.give(&handed{Conn: c.stream, read: read})
	c.loop.size.Add(-1)
}

// A handed connection is read from what was read of it already.
type handed struct {
	net.Conn
	read []byte
}

func (h *handed) Read(p []byte) (int, error) {
	if len(h.read) == 0 {
		return h.Conn.Read(p)
	}
	n := copy(p, h.read)
	clear(h.read[:n])
	if h.read = h.read[n:]; len(h.read) == 0 {
		h.read = nil
	}
	return n, nil
}
