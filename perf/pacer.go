package perf

import (
	"context"
	"errors"
	"fmt"
	"os"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"
)

// A pacer is the schedule of an open loop: request n is due n/rate seconds after
// the beginning, whatever happened to the others. Connections take the numbers in
// turn: one that waits for a slow answer delays no other request as long as
// there is an idle connection, and when there is none, requests become late,
// which their latencies show since these begin when the request was due.
type pacer struct {
	begin time.Time
	rate  float64
	taken atomic.Int64
}

// take returns when the next request is due.
func (p *pacer) take() time.Time {
	return p.due(uint64(p.taken.Add(1) - 1))
}

// due is when request n is.
func (p *pacer) due(n uint64) time.Time {
	return p.begin.Add(time.Duration(float64(n) * float64(time.Second) / p.rate))
}

// between is how many requests are due from start until before end, which are
// not before the beginning.
func (p *pacer) between(start, end time.Time) uint64 {
	first := func(t time.Time) uint64 {
		n := uint64(t.Sub(p.begin).Seconds() * p.rate)
		for n > 0 && !p.due(n-1).Before(t) {
			n--
		}
		for p.due(n).Before(t) {
			n++
		}
		return n
	}
	return first(end) - first(start)
}

// A clock tells the time to one connection and lets it wait.
type clock interface {
	now() time.Time
	sleepUntil(ctx context.Context, t time.Time) error
	close()
}

// An alarm is the machine's clock, with a timer of its own.
//
// It waits on a Linux timer descriptor. The run-time's timers end the wait of
// an idle process up to a millisecond late, since epoll counts milliseconds, and
// that is many times what is measured here; a descriptor that becomes readable
// ends it at once. A sleeping thread would be as exact, but keeps a processor of
// the Go scheduler from whoever has work.
type alarm struct{ file *os.File }

func newAlarm() (*alarm, error) {
	fd, err := unix.TimerfdCreate(unix.CLOCK_MONOTONIC, unix.TFD_NONBLOCK|unix.TFD_CLOEXEC)
	if err != nil {
		return nil, fmt.Errorf("timer of a connection: %w", err)
	}
	return &alarm{os.NewFile(uintptr(fd), "timer")}, nil
}

func (a *alarm) now() time.Time { return time.Now() }

func (a *alarm) close() { a.file.Close() }

func (a *alarm) sleepUntil(ctx context.Context, t time.Time) error {
	wait := time.Until(t)
	if wait <= 0 {
		return ctx.Err()
	}
	raw, err := a.file.SyscallConn()
	if err != nil {
		return err
	}
	var serr error
	err = raw.Control(func(fd uintptr) {
		serr = unix.TimerfdSettime(int(fd), 0, &unix.ItimerSpec{Value: unix.NsecToTimespec(int64(wait))}, nil)
	})
	if err == nil {
		err = serr
	}
	if err != nil {
		return err
	}
	stop := context.AfterFunc(ctx, func() { a.file.SetReadDeadline(time.Unix(1, 0)) })
	defer stop()
	var expirations [8]byte
	_, err = a.file.Read(expirations[:])
	return errors.Join(ctx.Err(), err)
}
