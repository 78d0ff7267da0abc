package kms

import (
	"bytes"
	"cmp"
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"keymill/daemon/wire"
	"keymill/engine"
	"keymill/keystore"
)

// # The use of keys
//
// Every cryptographic operation that succeeds is counted for its key, by the name
// of the operation, and is the key's last use until the next one. A request
// touches nothing but the keyUse that its key view points to:
//
//	count    one addition
//	last     a few stores under a sequence number. Who finds the number odd leaves
//	         it: another request is writing, at the same time as it
//	dirty    if the keyUse is clean it becomes dirty and goes on the dirty list;
//	         that is once per key and flush, not once per request
//
// Every usageEvery the flusher takes the dirty list, and adds what was counted to
// the keys' usage, in the order of the pages that it is on (keystore), usageBatch
// pages to a commit. It makes a keyUse clean first and reads its counters after, so
// that a request it does not see makes it dirty again. A failed commit gives the
// counts back. At a stop everything is written; a crash loses what was counted since
// the last flush.
//
// A keyUse holds differences only: records are sums. So it does not matter that a
// key has a new one with every view of it, and an old one as long as that is
// dirty; nor does it have to be found again. It is 128 bytes. Those that no view
// points to are bounded, since no more than most are dirty: whoever makes another
// key dirty then writes a batch of them first.
//
// The last use that GetKeyLastUsage shows is the latest of the record, the key's
// own keyUse and those of older views that are not written yet.
type usageLog struct {
	store *keystore.Store
	since time.Time // use is recorded since then
	most  int64     // of keyUses that are dirty

	dirty   atomic.Pointer[keyUse] // a stack through next
	pending atomic.Int64           // keyUses that are dirty
	wake    chan struct{}          // to flush before the time
	stop    chan struct{}          // closed by close
	done    chan struct{}          // closed when the flusher has ended; nil when never started

	mu    sync.Mutex // held while a batch is taken and written
	taken []*keyUse  // guarded by mu; were on the dirty list, are to be written, in the order of their pages

	failures atomic.Uint64
}

const (
	// usageEvery leaves half of the minute, within which use is durable, for
	// writing.
	usageEvery = 30 * time.Second
	// usageBatch is how many pages one commit is about, and usageBatchKeys how many keys
	// at most.
	usageBatch     = 100
	usageBatchKeys = 4096
	// dirtyUses is the least bound of what is not written, 34 MB: with half of it
	// from all over a large store, a page is written for eight keys at once. Where more
	// keys stay in memory anyway, twice as many as those may wait: writing them sooner
	// would be writing them more often.
	dirtyUses = 256 << 10
)

// usageRecord names the store's record of the date since which use is recorded.
const usageRecord = "daemon/usage-since"

// A use is an operation that counts as one, as GetKeyLastUsage names it. They
// are in the order of their names.
type use uint8

const (
	noUse use = iota
	useDecrypt
	useDeriveSharedSecret
	useEncrypt
	useGenerateDataKey
	useGenerateDataKeyPair
	useGenerateDataKeyPairWithoutPlaintext
	useGenerateDataKeyWithoutPlaintext
	useGenerateMac
	useReEncrypt
	useSign
	useVerify
	useVerifyMac
	numUses
)

// usedAs says as what the operations with one key and one result count.
var usedAs = [wire.NumOps + 1]use{
	wire.OpDecrypt: useDecrypt, wire.OpDeriveSharedSecret: useDeriveSharedSecret, wire.OpEncrypt: useEncrypt,
	wire.OpGenerateDataKey: useGenerateDataKey, wire.OpGenerateDataKeyPair: useGenerateDataKeyPair,
	wire.OpGenerateDataKeyPairWithoutPlaintext: useGenerateDataKeyPairWithoutPlaintext,
	wire.OpGenerateDataKeyWithoutPlaintext:     useGenerateDataKeyWithoutPlaintext,
	wire.OpGenerateMac:                         useGenerateMac, wire.OpReEncrypt: useReEncrypt, wire.OpSign: useSign,
	wire.OpVerify: useVerify, wire.OpVerifyMac: useVerifyMac,
}

// batchUsedAs says as what the items of our batches count.
var batchUsedAs = [wire.NumOps + 1]use{
	wire.OpBatchDecrypt: useDecrypt, wire.OpBatchEncrypt: useEncrypt, wire.OpBatchSign: useSign, wire.OpBatchVerify: useVerify,
}

var useNames = [numUses]string{
	useDecrypt: "Decrypt", useDeriveSharedSecret: "DeriveSharedSecret", useEncrypt: "Encrypt",
	useGenerateDataKey: "GenerateDataKey", useGenerateDataKeyPair: "GenerateDataKeyPair",
	useGenerateDataKeyPairWithoutPlaintext: "GenerateDataKeyPairWithoutPlaintext",
	useGenerateDataKeyWithoutPlaintext:     "GenerateDataKeyWithoutPlaintext",
	useGenerateMac:                         "GenerateMac", useReEncrypt: "ReEncrypt", useSign: "Sign", useVerify: "Verify", useVerifyMac: "VerifyMac",
}

// A keyUse is what was counted of a key's use and is not in its record. Its
// counters hold a flush interval of the fastest use of one key many times over.
type keyUse struct {
	ref    keystore.Ref // immutable
	next   *keyUse      // of the list that it is on, whose owner it belongs to
	dirty  atomic.Bool  // it is on the dirty list, or about to be
	seq    atomic.Uint32
	last   atomic.Uint64    // microseconds since 1970 and, in the low byte, the use
	id     [2]atomic.Uint64 // request id of the last use
	counts [numUses - 1]atomic.Uint32
}

// newUsageLog returns the log of a store, which says since when it has one. So
// many keys stay in memory.
func newUsageLog(store *keystore.Store, keys int, now time.Time) (*usageLog, error) {
	u := &usageLog{store: store, wake: make(chan struct{}, 1), most: int64(max(dirtyUses, 2*keys))}
	text, _, err := store.Get(usageRecord)
	if errors.Is(err, keystore.ErrNotFound) {
		u.since = now.Round(0).UTC()
		t := store.NewTxn()
		t.Put(usageRecord, u.since.AppendFormat(nil, time.RFC3339Nano), 0)
		return u, commit(t)
	} else if err != nil {
		return nil, err
	}
	if u.since, err = time.Parse(time.RFC3339Nano, string(text)); err != nil {
		return nil, fmt.Errorf("record %s: %w", usageRecord, err)
	}
	return u, nil
}

// mark counts n uses of a key by the request id, which is two halves.
func (u *usageLog) mark(k *keyUse, as use, n uint32, now time.Time, id *[2]uint64) {
	k.counts[as-1].Add(n)
	if seq := k.seq.Load(); seq&1 == 0 && k.seq.CompareAndSwap(seq, seq+1) {
		k.last.Store(uint64(now.UnixMicro())<<8 | uint64(as))
		k.id[0].Store(id[0])
		k.id[1].Store(id[1])
		k.seq.Store(seq + 2)
	}
	if !k.dirty.Load() && k.dirty.CompareAndSwap(false, true) {
		u.push(k)
	}
}

// push puts a keyUse that has just become dirty on the list.
func (u *usageLog) push(k *keyUse) {
	switch n := u.pending.Add(1); {
	case n > u.most:
		u.collect()
		_, _ = u.batch() // the flusher says what is wrong
	case n == u.most/2:
		select {
		case u.wake <- struct{}{}:
		default:
		}
	}
	u.link(k)
}

// full tells whether push will wait for the disk.
func (u *usageLog) full() bool { return u.pending.Load() >= u.most }

func (u *usageLog) link(k *keyUse) {
	for {
		head := u.dirty.Load()
		k.next = head
		if u.dirty.CompareAndSwap(head, k) {
			return
		}
	}
}

// lastUse returns the last use that was counted on k, with Operation "" if there
// was none.
func (k *keyUse) lastUse() (l keystore.Usage) {
	for {
		seq := k.seq.Load()
		last, hi, lo := k.last.Load(), k.id[0].Load(), k.id[1].Load()
		if seq&1 == 1 || k.seq.Load() != seq {
			continue // the writer is a few instructions from its end
		}
		if as := use(last); as != noUse {
			l.Operation, l.Time = useNames[as], time.UnixMicro(int64(last>>8)).UTC()
			binary.LittleEndian.PutUint64(l.RequestID[:8], hi)
			binary.LittleEndian.PutUint64(l.RequestID[8:], lo)
		}
		return l
	}
}

// take returns what k counted and starts it again from nothing.
func (k *keyUse) take() *keystore.Usage {
	u := &keystore.Usage{}
	for i := range k.counts {
		if n := k.counts[i].Swap(0); n > 0 {
			u.Counts = append(u.Counts, keystore.OperationCount{Operation: useNames[i+1], Count: uint64(n)})
		}
	}
	l := k.lastUse()
	u.Operation, u.Time, u.RequestID = l.Operation, l.Time, l.RequestID
	return u
}

// collect takes the dirty list, unless one that was taken is still to be written.
func (u *usageLog) collect() {
	u.mu.Lock()
	defer u.mu.Unlock()
	if len(u.taken) > 0 {
		return
	}
	u.taken = u.taken[:0]
	for k := u.dirty.Swap(nil); k != nil; k = k.next {
		u.taken = append(u.taken, k)
	}
	slices.SortFunc(u.taken, func(a, b *keyUse) int {
		return cmp.Or(strings.Compare(a.ref.Region, b.ref.Region), bytes.Compare(a.ref.ID[:], b.ref.ID[:]))
	})
}

// next takes from what was taken the keys that the next commit is about. mu is held.
func (u *usageLog) next() (uses []*keyUse) {
	pages, n := 0, 0
	for ; n < min(len(u.taken), usageBatchKeys); n++ {
		if n == 0 || u.taken[n].ref.Region != u.taken[n-1].ref.Region || keystore.UsagePage(u.taken[n].ref) != keystore.UsagePage(u.taken[n-1].ref) {
			if pages++; pages > usageBatch {
				break
			}
		}
	}
	uses = u.taken[:n]
	if u.taken = u.taken[n:]; len(u.taken) == 0 {
		u.taken = nil
	}
	return uses
}

// batch writes some of what was taken. It returns false when nothing is left.
func (u *usageLog) batch() (more bool, err error) {
	u.mu.Lock()
	defer u.mu.Unlock()
	uses := u.next()
	if len(uses) == 0 {
		return false, nil
	}
	taken := make([]*keystore.Usage, len(uses))
	t := u.store.NewTxn()
	for i, k := range uses {
		k.next = nil
		u.pending.Add(-1)
		k.dirty.Store(false) // from here on it may be put on the list again
		taken[i] = k.take()
		t.AddUsage(k.ref, taken[i])
	}
	if err := commit(t); err != nil {
		u.failures.Add(1)
		for i, k := range uses {
			u.giveBack(k, taken[i])
		}
		return false, fmt.Errorf("use of %d keys could not be written: %w", len(uses), err)
	}
	return len(u.taken) > 0, nil
}

// giveBack counts again what was taken of k and could not be written.
func (u *usageLog) giveBack(k *keyUse, taken *keystore.Usage) {
	at := 0
	for _, c := range taken.Counts {
		for useNames[at+1] != c.Operation {
			at++
		}
		k.counts[at].Add(uint32(c.Count))
	}
	if k.dirty.CompareAndSwap(false, true) {
		u.pending.Add(1)
		u.link(k)
	}
}

// flush writes everything that was counted before it was called.
func (u *usageLog) flush() error {
	// Once for what an earlier flush left, once for the list as it is now: going on
	// until it is empty might never end.
	for range 2 {
		u.collect()
		for {
			more, err := u.batch()
			if err != nil {
				return err
			}
			if !more {
				break
			}
		}
	}
	return nil
}

// start lets the flusher run until close.
func (u *usageLog) start(log func(err error)) {
	u.stop, u.done = make(chan struct{}), make(chan struct{})
	go func() {
		defer close(u.done)
		tick := time.NewTicker(usageEvery)
		defer tick.Stop()
		for {
			select {
			case <-u.stop:
				return
			case <-tick.C:
			case <-u.wake:
			}
			if err := u.flush(); err != nil {
				log(err)
			}
		}
	}()
}

// close ends the flusher and writes what is left. No request may be in flight.
func (u *usageLog) close() error {
	if u.done != nil {
		close(u.stop)
		<-u.done
	}
	return u.flush()
}

// of returns what is known of the use of a key: its record and what is not in it
// yet. own, which may be nil, need not be dirty.
func (u *usageLog) of(ref keystore.Ref, own *keyUse) (*keystore.Usage, error) {
	u.mu.Lock()
	defer u.mu.Unlock()
	sum, err := u.store.Usage(ref)
	if err != nil {
		return nil, err
	}
	add := func(k *keyUse) {
		not := k.lastUse()
		for i := range k.counts {
			if n := k.counts[i].Load(); n > 0 {
				not.Counts = append(not.Counts, keystore.OperationCount{Operation: useNames[i+1], Count: uint64(n)})
			}
		}
		sum.Add(&not)
	}
	// The list only changes at its head while mu is held.
	for _, k := range u.taken {
		if k.ref == ref && k != own {
			add(k)
		}
	}
	for k := u.dirty.Load(); k != nil; k = k.next {
		if k.ref == ref && k != own {
			add(k)
		}
	}
	if own != nil {
		add(own)
	}
	return sum, nil
}

func (u *usageLog) writeMetrics(w io.Writer) {
	fmt.Fprintf(w, "keymill_usage_pending_keys %d\n", u.pending.Load())
	fmt.Fprintf(w, "keymill_usage_write_failures_total %d\n", u.failures.Load())
}

// used counts n uses of v by the request, unless it is a dry run.
func (x *exchange) used(v *keyView, as use, n int) {
	if n > 0 && !x.dryRun {
		if !v.use.dirty.Load() && x.svc.usage.full() {
			x.mayWait()
		}
		x.svc.usage.mark(v.use, as, uint32(n), x.now, &x.idBits)
	}
}

// usageRows are the operations on what is known of a key's use.
var usageRows = []operation{
	{op: wire.OpGetKeyLastUsage, key: byKey(func(in *wire.GetKeyLastUsageRequest) string { return in.KeyId }), states: always, run: with(getKeyLastUsage)},
}

func getKeyLastUsage(x *exchange, _ *wire.GetKeyLastUsageRequest) error {
	u, err := x.svc.usage.of(x.key.ref, x.key.use)
	if err != nil {
		return err
	}
	tracked := x.svc.usage.since
	if created := x.key.rec.Created; created.After(tracked) {
		tracked = created
	}
	resp := wire.GetKeyLastUsageResponse{
		KeyId:             x.key.arn,
		KeyCreationDate:   timestamp(x.key.rec.Created),
		TrackingStartDate: timestamp(tracked),
		KeyLastUsage:      &wire.KeyLastUsageData{},
	}
	if u.Operation != "" {
		*resp.KeyLastUsage = wire.KeyLastUsageData{
			Operation:         u.Operation,
			Timestamp:         timestamp(u.Time),
			KmsRequestId:      uuidText(u.RequestID),
			CloudTrailEventId: uuidText(eventID(u.RequestID)),
		}
	}
	x.out = resp.AppendJSON(x.out)
	return nil
}

// eventID is the event id of the audit record of a request on one key. It
// follows from the request id, so that it need not be kept beside it.
func eventID(requestID [16]byte) (id [16]byte) {
	sum := sha256.Sum256(append([]byte("keymill audit event id\x00"), requestID[:]...))
	copy(id[:], sum[:])
	id[6] = id[6]&0x0f | 0x40
	id[8] = id[8]&0x3f | 0x80
	return id
}

func uuidText(b [16]byte) string {
	var t [36]byte
	putUUID(&t, &b)
	return string(t[:])
}

// putUUID writes the text of a UUID.
func putUUID(t *[36]byte, b *[16]byte) {
	hex.Encode(t[0:8], b[0:4])
	hex.Encode(t[9:13], b[4:6])
	hex.Encode(t[14:18], b[6:8])
	hex.Encode(t[19:23], b[8:10])
	hex.Encode(t[24:36], b[10:16])
	t[8], t[13], t[18], t[23] = '-', '-', '-', '-'
}

// KeyUsage returns how often the key arn was used for what, when it was last, and
// since when that is recorded. keystore.ErrNotFound: there is no such key.
func (s *Service) KeyUsage(arn string) (u *keystore.Usage, since time.Time, err error) {
	part := strings.SplitN(arn, ":", 6)
	if len(part) != 6 {
		return nil, since, fmt.Errorf("%q is not a key ARN", arn)
	}
	text, isKey := strings.CutPrefix(part[5], "key/")
	id, ok := engine.ParseKeyID(text)
	if !ok || !isKey || arn != keyARN(part[3], part[4], text) {
		return nil, since, fmt.Errorf("%q is not a key ARN", arn)
	}
	v, err := s.view(keystore.Ref{Region: part[3], ID: id.ID})
	if err != nil {
		return nil, since, err
	}
	if v.arn != arn {
		return nil, since, keystore.ErrNotFound
	}
	if since = s.usage.since; v.rec.Created.After(since) {
		since = v.rec.Created
	}
	u, err = s.usage.of(v.ref, v.use)
	return u, since, err
}
