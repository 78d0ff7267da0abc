package hsm

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"sync"

	"keymill/hsm/arena"
)

// # The protocol between the daemon and the child that holds the module
//
// A vendor's PKCS#11 module is code nobody here has read, in the address space of
// whoever loads it. So by default the daemon (the parent) does not: a process of its own
// (the child, see child.go) opens the token, and the two speak over a socket pair that
// the child inherits. Nothing listens anywhere, and nobody else can join.
//
// Both directions carry frames, integers big-endian:
//
//	offset  size
//	0       4     n, length of the rest, 9 to maxFrame
//	4       1     kind
//	5       8     id
//	13      n-9   body
//
//	kind       from    id       body
//	hello      parent  0        JSON childHello; the first frame, and sent once
//	pin        parent  0        the PIN; follows hello when that says so
//	ready      child   0        JSON Info (or Report, when hello asked for that)
//	failed     child   0        error; the child then ends
//	log        child   0        JSON logLine, at any time, also before ready
//	ping       parent  0        empty
//	pong       child   0        empty, at once
//	create     parent  request  empty
//	check      parent  request  domain key, 16
//	destroy    parent  request  domain key, 16
//	encrypt    parent  request  domain key, 16; strings
//	decrypt    parent  request  domain key, 16; strings
//	generate   parent  request  token key, 16; 1 TokenKeySpec; string, the label
//	find       parent  request  token key, 16
//	remove     parent  request  token key, 16
//	use        parent  request  2 count (at most maxItems), then each: token key, 16;
//	                            1 TokenMech; string, the input; string, associated data
//	random     parent  request  2 count, then 4 length each; at most maxRandom in all
//	info       parent  request  empty
//	cancel     parent  request  empty: nobody waits for this request any more
//	answer     child   request  by the request's kind:
//	             create           error, then domain key, 16, when there is none
//	             check, destroy   error
//	             generate         error, then a string, the public key, when there is none
//	             find, remove     error
//	             encrypt, decrypt, use
//	                              each item: error, then a string when there is none
//	             random           error, then the bytes one after the other
//	             info             JSON Info
//
//	strings    2 count (at most maxItems), then each 2 length and the bytes
//	error      4 mask of wireErrors; when it is not 0, 2 length and the text
//
// The parent numbers its requests and has at most maxRequests under way. The child works
// on all of them at once and answers each exactly once, in any order, cancelled
// ones too: an answer nobody waits for is dropped by the parent. The child refuses a
// parent that speaks another version, that sends a frame it does not know, that repeats
// the number of a request under way or exceeds a bound: it ends. The parent does the
// same to a child, which it then replaces. There is no negotiation: both ends are the
// same binary.
//
// When the parent closes its sending side, the child finishes what is under way, logs
// out and ends. When the socket breaks, each side gives up: the child exits at once,
// the parent counts what was unanswered as not done.
//
// KEKs cross the socket in the clear: it is the kernel's memory between two processes of
// one user, as private as the pipe between a process and itself. Frames are wiped on
// both sides once they are written or consumed.
const (
	protocolVersion = 2

	frameHead   = 4 + 1 + 8
	maxFrame    = 1 << 20
	maxItems    = 512
	maxRandom   = 256 << 10
	maxRequests = 1024
	maxText     = 8 << 10
)

type frameKind byte

const (
	kindHello frameKind = iota + 1
	kindReady
	kindFailed
	kindLog
	kindPing
	kindPong
	kindCreate
	kindCheck
	kindEncrypt
	kindDecrypt
	kindRandom
	kindInfo
	kindCancel
	kindAnswer
	kindDestroy
	kindPIN
	kindGenerate
	kindFind
	kindRemove
	kindUse
)

// childHello is what the child is told. The PIN is not in it, nor on the command line:
// of a root, the child reads the file at each login, so that the daemon never holds the
// PIN; that of OpenToken comes in a frame of its own, which needs no encoding.
type childHello struct {
	Version      int
	Inspect      bool // answer with a Report and end
	Keys         bool // open it for keys of users; the PIN follows
	Module       string
	TokenLabel   string
	TokenSerial  string
	PINFile      string
	Sessions     int
	Timeout      int64 // nanoseconds, as StartTimeout
	StartTimeout int64
}

// logLine is one record of the child's logger.
type logLine struct {
	Level   int
	Message string
	Attrs   [][2]string
}

// wireErrors gives the errors that callers act on their bit in an error's mask. Its
// order is part of the protocol; bit 31 stands for errors that are none of these.
var wireErrors = [...]error{
	ErrNoDomainKey, ErrDuplicateDomainKey, ErrWeakDomainKey, ErrDomainKeyUsedUp, ErrBadWrapped, ErrBadItem,
	ErrModule, ErrTokenMissing, ErrTokenLocked, ErrPINIncorrect, ErrPINFile, ErrMechanism, ErrToken, ErrDevice,
	ErrSession, ErrTimeout, ErrBusy, ErrClosed, context.Canceled, context.DeadlineExceeded,
	ErrNoTokenKey, ErrDuplicateTokenKey, ErrWeakTokenKey, ErrBadCiphertext, ErrTokenInput,
}

const otherError = 1 << 31

// errProtocol is a frame that the other side cannot have meant.
var errProtocol = errors.New("the HSM process sent or got something that is not its protocol")

// childError is an error that crossed the socket: its text, and what it matches.
type childError struct {
	text string
	is   []error
}

func (e *childError) Error() string   { return e.text }
func (e *childError) Unwrap() []error { return e.is }

// beginFrame starts a frame in dst[:0]; endFrame completes it.
func beginFrame(dst []byte, kind frameKind, id uint64) []byte {
	dst = append(dst[:0], 0, 0, 0, 0, byte(kind))
	return binary.BigEndian.AppendUint64(dst, id)
}

func endFrame(b []byte) []byte {
	binary.BigEndian.PutUint32(b, uint32(len(b)-4))
	return b
}

func appendString(dst, s []byte) []byte {
	return append(binary.BigEndian.AppendUint16(dst, uint16(len(s))), s...)
}

func appendError(dst []byte, err error) []byte {
	if err == nil {
		return binary.BigEndian.AppendUint32(dst, 0)
	}
	var mask uint32
	for i, sentinel := range wireErrors {
		if errors.Is(err, sentinel) {
			mask |= 1 << i
		}
	}
	if mask == 0 {
		mask = otherError
	}
	text := err.Error()
	return appendString(binary.BigEndian.AppendUint32(dst, mask), []byte(text[:min(len(text), maxText)]))
}

// cursor takes a body apart. After a read past the end bad is set and everything reads
// as zero.
type cursor struct {
	b   []byte
	bad bool
}

func (c *cursor) take(n int) []byte {
	if n > len(c.b) {
		c.b, c.bad = nil, true
		return nil
	}
	v := c.b[:n:n]
	c.b = c.b[n:]
	return v
}

func (c *cursor) u16() int {
	if b := c.take(2); b != nil {
		return int(binary.BigEndian.Uint16(b))
	}
	return 0
}

func (c *cursor) u8() byte {
	if b := c.take(1); b != nil {
		return b[0]
	}
	return 0
}

func (c *cursor) u32() uint32 {
	if b := c.take(4); b != nil {
		return binary.BigEndian.Uint32(b)
	}
	return 0
}

func (c *cursor) tokenKey() (id TokenKeyID) {
	copy(id[:], c.take(len(id)))
	return id
}

func (c *cursor) domainKey() (id DomainKeyID) {
	copy(id[:], c.take(len(id)))
	return id
}

// string returns a view.
func (c *cursor) string() []byte { return c.take(c.u16()) }

func (c *cursor) error() error {
	mask := c.u32()
	if mask == 0 {
		return nil
	}
	e := &childError{text: string(c.string())}
	for i, sentinel := range wireErrors {
		if mask&(1<<i) != 0 {
			e.is = append(e.is, sentinel)
		}
	}
	return e
}

// strings returns views.
func (c *cursor) strings() [][]byte {
	n := c.u16()
	if n > maxItems {
		c.bad = true
		return nil
	}
	all := make([][]byte, 0, n)
	for range n {
		all = append(all, c.string())
	}
	return all
}

// ops reads what use asks for, as views.
func (c *cursor) ops() []TokenOp {
	n := c.u16()
	if n > maxItems {
		c.bad = true
		return nil
	}
	all := make([]TokenOp, 0, n)
	for range n {
		all = append(all, TokenOp{Key: c.tokenKey(), Mech: TokenMech(c.u8()), In: c.string(), AAD: c.string()})
	}
	return all
}

// lengths reads what random asks for.
func (c *cursor) lengths() []int {
	n, total := c.u16(), 0
	if n > maxItems {
		c.bad = true
		return nil
	}
	all := make([]int, 0, n)
	for range n {
		l := c.u32()
		if l > maxRandom {
			c.bad = true
			return nil
		}
		total += int(l)
		all = append(all, int(l))
	}
	if total > maxRandom {
		c.bad = true
	}
	return all
}

// items reads a whole answer to a batch into items, whose Out are copies; half an
// answer leaves none.
func (c *cursor) items(items []Item) {
	for i := range items {
		it := &items[i]
		it.Out = nil
		if it.Err = c.error(); it.Err == nil {
			s := c.string()
			it.Out = append(make([]byte, 0, len(s)), s...)
		}
	}
	if !c.end() {
		for i := range items {
			arena.Wipe(items[i].Out)
		}
	}
}

// end reports whether the body was read without error and to its end.
func (c *cursor) end() bool { return !c.bad && len(c.b) == 0 }

// A frameReader takes a stream apart into frames.
type frameReader struct {
	r          io.Reader
	buf        []byte
	start, end int // the bytes read and not consumed
	last       int // the frame handed out last begins here and ends at start
}

func newFrameReader(r io.Reader) *frameReader { return &frameReader{r: r, buf: make([]byte, 16<<10)} }

// next returns the next frame. Its body is a view, valid until the next call, which
// wipes it.
func (f *frameReader) next() (kind frameKind, id uint64, body *cursor, err error) {
	arena.Wipe(f.buf[f.last:f.start])
	f.last = f.start
	if err := f.fill(4); err != nil {
		return 0, 0, nil, err
	}
	n := binary.BigEndian.Uint32(f.buf[f.start:])
	if n < frameHead-4 || n > maxFrame {
		return 0, 0, nil, fmt.Errorf("%w: a frame of %d bytes", errProtocol, n)
	}
	size := 4 + int(n)
	if err := f.fill(size); err != nil {
		if err == io.EOF {
			err = io.ErrUnexpectedEOF
		}
		return 0, 0, nil, err
	}
	b := f.buf[f.start : f.start+size : f.start+size]
	f.start += size
	return frameKind(b[4]), binary.BigEndian.Uint64(b[5:]), &cursor{b: b[frameHead:]}, nil
}

// fill reads until n bytes are there. The error is io.EOF only when there are none.
func (f *frameReader) fill(n int) error {
	if f.start+n > len(f.buf) {
		// Move what is left to the front, of a larger buffer if need be.
		old, to := f.buf, f.buf
		if n > len(to) {
			to = make([]byte, n)
		}
		kept := copy(to, old[f.start:f.end])
		if n > len(old) {
			arena.Wipe(old)
		} else {
			arena.Wipe(old[kept:f.end])
		}
		f.buf, f.start, f.end, f.last = to, 0, kept, 0
	}
	for f.end-f.start < n {
		m, err := f.r.Read(f.buf[f.end:])
		f.end += m
		if err != nil && f.end-f.start < n {
			if err == io.EOF && f.end > f.start {
				err = io.ErrUnexpectedEOF
			}
			return err
		}
	}
	return nil
}

// wipe forgets what was read.
func (f *frameReader) wipe() { arena.Wipe(f.buf[:f.end]) }

// A frameWriter sends frames in the order they were given. Whoever sends while nobody
// is writing writes his frame himself, and then what others have queued meanwhile: to
// wake a goroutine for that costs more than the system call, on either side of the
// socket. He never waits: what the socket does not take at once, and what still comes
// after flushRounds, is written by a goroutine that ends when the queue is empty.
//
// The writer takes frames over and wipes them once they are written.
type frameWriter struct {
	conn net.Conn

	mu      sync.Mutex
	queue   [][]byte      // guarded by mu
	writing bool          // guarded by mu: somebody is writing, and looks at queue when done
	closing bool          // guarded by mu: nothing more is taken
	done    chan struct{} // closed when closing and not writing
}

const flushRounds = 4

func newFrameWriter(conn net.Conn) *frameWriter {
	return &frameWriter{conn: conn, done: make(chan struct{})}
}

// send queues a frame. After close it wipes it.
func (w *frameWriter) send(frame []byte) {
	w.mu.Lock()
	if w.closing {
		w.mu.Unlock()
		arena.Wipe(frame)
		return
	}
	w.queue = append(w.queue, frame)
	mine := !w.writing
	w.writing = true
	w.mu.Unlock()
	if !mine {
		return
	}
	for range flushRounds {
		frames := w.next()
		if frames == nil {
			return
		}
		n, err := tryWrite(w.conn, frames)
		rest := consume(frames, n)
		if err != nil {
			wipeAll(rest)
			w.broken()
			return
		}
		if len(rest) > 0 {
			go w.drain(rest)
			return
		}
	}
	go w.drain(nil)
}

// next takes the queue. When it is empty the caller does not write any more.
func (w *frameWriter) next() [][]byte {
	w.mu.Lock()
	defer w.mu.Unlock()
	frames := w.queue
	w.queue = nil
	if frames == nil {
		w.writing = false
		if w.closing {
			close(w.done)
		}
	}
	return frames
}

// drain writes the rest and what is queued, waiting for the socket.
func (w *frameWriter) drain(rest [][]byte) {
	for {
		for len(rest) > 0 {
			n, err := w.conn.Write(rest[0])
			rest = consume(rest, n)
			if err != nil {
				wipeAll(rest)
				w.broken()
				return
			}
		}
		if rest = w.next(); rest == nil {
			return
		}
	}
}

// broken ends a writer whose socket is of no more use; our reader notices the same and
// says what has happened.
func (w *frameWriter) broken() {
	w.mu.Lock()
	w.closing = true
	w.mu.Unlock()
	for frames := w.next(); frames != nil; frames = w.next() {
		wipeAll(frames)
	}
}

// close writes what is queued and ends the writer.
func (w *frameWriter) close() {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.closing {
		return
	}
	w.closing = true
	if !w.writing {
		close(w.done)
	}
}

// consume drops and wipes the first n bytes of frames.
func consume(frames [][]byte, n int) [][]byte {
	for n > 0 {
		f := frames[0]
		m := min(n, len(f))
		arena.Wipe(f[:m])
		n -= m
		if m < len(f) {
			frames[0] = f[m:]
			break
		}
		frames = frames[1:]
	}
	return frames
}

func wipeAll(frames [][]byte) {
	for _, f := range frames {
		arena.Wipe(f)
	}
}

// CheckFrames takes a stream apart as both ends of the socket would, and returns the
// first thing in it that either would refuse. It exists for fuzzing.
func CheckFrames(r io.Reader) error {
	f := newFrameReader(r)
	for {
		kind, _, body, err := f.next()
		if err == io.EOF {
			return nil
		}
		if err != nil {
			return err
		}
		switch kind {
		case kindHello, kindReady, kindLog:
			continue // JSON
		case kindFailed:
			body.error()
		case kindCheck, kindDestroy, kindFind, kindRemove:
			body.domainKey()
		case kindPIN:
			body.take(min(len(body.b), maxPIN))
		case kindGenerate:
			body.tokenKey()
			body.u8()
			body.string()
		case kindUse:
			for _, op := range body.ops() {
				_ = op.check()
			}
		case kindEncrypt, kindDecrypt:
			body.domainKey()
			body.strings()
		case kindRandom:
			body.lengths()
		case kindAnswer:
			// The longest form: items until the body ends.
			for items := make([]Item, 1); !body.bad && len(body.b) > 0; {
				body.items(items)
			}
		case kindPing, kindPong, kindCreate, kindInfo, kindCancel:
		default:
			return fmt.Errorf("%w: kind %d", errProtocol, kind)
		}
		if !body.end() {
			return fmt.Errorf("%w: kind %d is malformed", errProtocol, kind)
		}
	}
}
