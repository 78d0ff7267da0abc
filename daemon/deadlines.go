package daemon

import (
	"net"
	"sync"
	"sync/atomic"
	"time"
)

// # Deadlines that cost nothing until they pass
//
// fasthttp sets three deadlines for every request: on the wait for its first
// byte, on its arrival, on the answer's way out. Each is a timer of Go's runtime
// that is moved under a lock; nearly all are moved again before they pass.
//
// So a connection only notes when it has to be done, and a sweep looks at all
// notes once in sweepEvery. One that has passed it strikes: it sets the
// connection's own deadline to the past, which ends the read or write under way
// with a timeout as if a timer had run out, up to sweepEvery late. Deadlines
// nearer than some nearDeadline are set at once, so what is short is exact.
//
// # Protocol
//
// A mark is the deadline of one direction: a time, 0 for none, or struck, which
// says that the connection has a deadline of its own, from the sweep or because
// it was near. One goroutine at a time sets a mark, as fasthttp and crypto/tls
// do; the sweep races with it:
//
//	set     swap the new time in. Had it been struck, wait for mu, which the
//	        sweep holds until it has set the connection's deadline, and clear
//	        that.
//	strike  under mu: from a time that has passed to struck, by compare and
//	        swap, and only if that succeeded set the connection's deadline.
//
// So a deadline that was moved in time is never struck, and one that was struck
// is cleared before the next one counts.

const (
	sweepEvery   = time.Second
	nearDeadline = 5 * time.Second
)

// struck is a mark whose connection has a deadline of its own.
const struck = -1

// longAgo is a deadline that has passed.
var longAgo = time.Unix(1, 0)

// deadlines keeps the deadlines of all connections of a listener.
type deadlines struct {
	// Immutable.
	epoch time.Time // marks count from here; it has a monotonic reading
	now   func() time.Time

	swept atomic.Int64 // when the last sweep was, from epoch: a clock for what is near

	mu       sync.Mutex
	conns    map[*markedConn]struct{} // guarded by mu
	sweeping bool                     // there is a goroutine that sweeps; guarded by mu
}

func newDeadlines(now func() time.Time) *deadlines {
	return &deadlines{epoch: now(), now: now, conns: map[*markedConn]struct{}{}}
}

// listener returns ln with connections that d keeps the deadlines of.
func (d *deadlines) listener(ln net.Listener) net.Listener { return &markedListener{ln, d} }

type markedListener struct {
	net.Listener
	deadlines *deadlines
}

func (l *markedListener) Accept() (net.Conn, error) {
	c, err := l.Listener.Accept()
	if err != nil {
		return nil, err
	}
	m := l.deadlines.add(c)
	l.deadlines.start()
	return m, nil
}

// add registers a connection until it is closed.
func (d *deadlines) add(c net.Conn) *markedConn {
	m := &markedConn{Conn: c, all: d}
	d.mu.Lock()
	defer d.mu.Unlock()
	d.conns[m] = struct{}{}
	if !d.sweeping {
		d.swept.Store(int64(d.now().Sub(d.epoch)))
	}
	return m
}

// start makes sure that somebody sweeps while there are connections.
func (d *deadlines) start() {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.sweeping {
		return
	}
	d.sweeping = true
	go func() {
		for tick := time.NewTicker(sweepEvery); ; <-tick.C {
			if !d.sweep() {
				tick.Stop()
				return
			}
		}
	}()
}

// sweep strikes every mark that has passed, and tells whether there are any.
func (d *deadlines) sweep() bool {
	d.mu.Lock()
	defer d.mu.Unlock()
	now := int64(d.now().Sub(d.epoch))
	d.swept.Store(now)
	for m := range d.conns {
		m.read.strike(now, m.Conn.SetReadDeadline)
		m.write.strike(now, m.Conn.SetWriteDeadline)
	}
	d.sweeping = d.sweeping && len(d.conns) > 0
	return d.sweeping
}

// A markedConn is a connection whose far deadlines are marks.
type markedConn struct {
	net.Conn
	all         *deadlines
	read, write mark
}

func (m *markedConn) SetReadDeadline(t time.Time) error {
	return m.read.set(m.all, t, m.Conn.SetReadDeadline)
}

func (m *markedConn) SetWriteDeadline(t time.Time) error {
	return m.write.set(m.all, t, m.Conn.SetWriteDeadline)
}

func (m *markedConn) SetDeadline(t time.Time) error {
	if err := m.SetReadDeadline(t); err != nil {
		return err
	}
	return m.SetWriteDeadline(t)
}

func (m *markedConn) Close() error {
	m.all.mu.Lock()
	delete(m.all.conns, m)
	m.all.mu.Unlock()
	return m.Conn.Close()
}

type mark struct {
	at atomic.Int64 // nanoseconds from the epoch, 0, or struck
	mu sync.Mutex   // held while the connection's own deadline is set
}

// set sets a mark, and the connection's own deadline where it needs one or has
// one that no longer counts.
func (k *mark) set(d *deadlines, t time.Time, own func(time.Time) error) error {
	at := int64(0)
	if !t.IsZero() {
		at = int64(t.Sub(d.epoch))
		if at-d.swept.Load() < int64(nearDeadline) {
			k.mu.Lock()
			defer k.mu.Unlock()
			k.at.Store(struck)
			return own(t)
		}
	}
	if k.at.Swap(at) != struck {
		return nil
	}
	k.mu.Lock()
	defer k.mu.Unlock()
	return own(time.Time{})
}

// strike ends what is under way when the mark has passed.
func (k *mark) strike(now int64, own func(time.Time) error) {
	at := k.at.Load()
	if at <= 0 || at > now {
		return
	}
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.at.CompareAndSwap(at, struck) {
		_ = own(longAgo) // fails on a closed connection
	}
}
