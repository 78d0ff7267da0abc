package daemon

import (
	"errors"
	"io"
	"net"
	"os"
	"sync"
	"testing"
	"time"
)

// A deadlineConn records what deadlines it gets.
type deadlineConn struct {
	net.Conn
	read, write []time.Time
	closed      bool
}

func (c *deadlineConn) SetReadDeadline(t time.Time) error  { c.read = append(c.read, t); return nil }
func (c *deadlineConn) SetWriteDeadline(t time.Time) error { c.write = append(c.write, t); return nil }
func (c *deadlineConn) Close() error                       { c.closed = true; return nil }

func TestDeadlines(t *testing.T) {
	now := time.Now()
	d := newDeadlines(func() time.Time { return now })
	inner := &deadlineConn{}
	c := d.add(inner)
	expect := func(step string, read, write int) {
		t.Helper()
		if len(inner.read) != read || len(inner.write) != write {
			t.Fatalf("%s: %d and %d deadlines on the connection, want %d and %d", step, len(inner.read), len(inner.write), read, write)
		}
	}
	pass := func(by time.Duration) { now = now.Add(by); d.sweep() }

	for range 100 { // of which each is moved in time
		c.SetReadDeadline(now.Add(idleTimeout))
		c.SetReadDeadline(now.Add(readTimeout))
		c.SetWriteDeadline(now.Add(writeTimeout))
		pass(readTimeout - time.Second)
	}
	expect("moved in time", 0, 0)

	c.SetWriteDeadline(now.Add(writeTimeout))
	c.SetReadDeadline(now.Add(readTimeout))
	pass(readTimeout)
	expect("passed", 1, 1)
	if inner.read[0].After(now) || inner.write[0].After(now) {
		t.Fatalf("struck with deadlines ahead: %v, %v", inner.read, inner.write)
	}
	pass(time.Hour)
	expect("struck once", 1, 1)

	c.SetReadDeadline(now.Add(readTimeout))
	expect("cleared", 2, 1)
	if !inner.read[1].IsZero() {
		t.Fatalf("not cleared: %v", inner.read[1])
	}
	c.SetReadDeadline(now.Add(readTimeout))
	c.SetReadDeadline(time.Time{})
	pass(time.Hour)
	expect("taken away", 2, 1)

	near := now.Add(discardPause)
	c.SetReadDeadline(near)
	expect("near", 3, 1)
	if !inner.read[2].Equal(near) {
		t.Fatalf("near deadline set to %v, want %v", inner.read[2], near)
	}
	c.SetDeadline(time.Time{})
	expect("near one cleared, and the write's of before", 4, 2)
	if !inner.read[3].IsZero() || !inner.write[1].IsZero() {
		t.Fatalf("not cleared: %v, %v", inner.read[3], inner.write[1])
	}

	c.SetReadDeadline(now.Add(readTimeout))
	c.Close()
	pass(time.Hour)
	expect("closed", 4, 2)
	if !inner.closed || len(d.conns) != 0 {
		t.Fatalf("closed %v, %d left", inner.closed, len(d.conns))
	}
}

// A deadline that passes ends a read under way, and the connection is good for
// the next one.
func TestDeadlineEndsRead(t *testing.T) {
	now := time.Now()
	var mu sync.Mutex
	d := newDeadlines(func() time.Time { mu.Lock(); defer mu.Unlock(); return now })
	ours, theirs := net.Pipe()
	defer theirs.Close()
	c := d.add(ours)
	defer c.Close()
	if err := c.SetReadDeadline(now.Add(readTimeout)); err != nil {
		t.Fatal(err)
	}
	mu.Lock()
	now = now.Add(readTimeout)
	mu.Unlock()
	go d.sweep()
	var b [1]byte
	if _, err := c.Read(b[:]); !errors.Is(err, os.ErrDeadlineExceeded) {
		t.Fatalf("read: %v", err)
	}
	go theirs.Write([]byte{1})
	if err := c.SetReadDeadline(now.Add(readTimeout)); err != nil {
		t.Fatal(err)
	}
	if _, err := io.ReadFull(c, b[:]); err != nil {
		t.Fatalf("the next read: %v", err)
	}
}

// Deadlines that are moved while they are swept never strike a connection that
// was in time: it is left without a deadline of its own.
func TestDeadlinesMovedWhileSwept(t *testing.T) {
	base := time.Now()
	var offset sync.Map // "now" -> time.Duration, moved by the setter
	offset.Store("now", time.Duration(0))
	d := newDeadlines(func() time.Time { v, _ := offset.Load("now"); return base.Add(v.(time.Duration)) })
	inner := &deadlineConn{}
	c := d.add(inner)
	done := make(chan struct{})
	var sweeper sync.WaitGroup
	sweeper.Go(func() {
		for {
			select {
			case <-done:
				return
			default:
				d.sweep()
			}
		}
	})
	at := time.Duration(0)
	for range 20_000 {
		c.SetReadDeadline(base.Add(at + readTimeout))
		at += readTimeout - time.Second
		offset.Store("now", at)
		c.SetReadDeadline(base.Add(at + readTimeout))
		// Now late, while the sweep looks: struck or not, the next one counts.
		at += readTimeout
		offset.Store("now", at)
	}
	c.SetReadDeadline(base.Add(at + readTimeout))
	close(done)
	sweeper.Wait()
	if n := len(inner.read); n > 0 && !inner.read[n-1].IsZero() {
		t.Errorf("left with the deadline %v of its own", inner.read[n-1])
	}
}
