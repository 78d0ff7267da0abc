//go:build cgo

package hsm

import (
	"context"
	"crypto/rand"
	"crypto/subtle"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/miekg/pkcs11"

	"keymill/hsm/arena"
)

// pkcs11Root is the root of trust in a token.
type pkcs11Root struct {
	cfg   PKCS11Config // immutable
	t     *token
	pool  *pool
	sched *scheduler
	kind  kind // of new domain keys; immutable
	rng   bool // the token supplies random bytes; immutable
	about Info // immutable part of Info

	closeOnce sync.Once
}

// openModuleHere opens a token with the module in this process.
func openModuleHere(cfg PKCS11Config) (device, error) {
	r := &pkcs11Root{cfg: cfg}
	_, err := within(cfg.StartTimeout, "opening "+cfg.tokenName(), func() (struct{}, error) {
		return struct{}{}, r.start()
	}, func(struct{}) { r.Close() })
	if err != nil {
		return nil, fmt.Errorf("couldn't open the HSM: %w", err)
	}
	return r, nil
}

// start does everything that enters the module.
func (r *pkcs11Root) start() (err error) {
	defer func() {
		if err != nil {
			r.cfg.pin.Wipe()
		}
	}()
	m, err := openModule(r.cfg.Module)
	if err != nil {
		return err
	}
	r.t = newToken(m, &r.cfg)
	var open []*session
	defer func() {
		if err != nil {
			for _, s := range open {
				s.close()
			}
			m.release()
		}
	}()
	st, err := r.t.find()
	if err != nil {
		return err
	}
	first := newSession(r.t, func() {})
	if err := first.ensure(); err != nil {
		return err
	}
	open = append(open, first)
	found, err := first.discover(st.slot)
	if err != nil {
		return err
	}
	if r.cfg.pin != nil {
		if r.about.Keys, err = first.holds(st.slot, found); err != nil {
			return err
		}
	} else if !found.ok {
		return fmt.Errorf("%w: %s:\n%s", ErrMechanism, r.cfg.tokenName(), found.why())
	}
	if found.ok {
		r.kind = found.kind
		r.t.methods[found.kind].Store(&found.method)
	}
	r.rng = st.Flags&pkcs11.CKF_RNG != 0
	// Sessions are opened now, so that a token with few of them is known as one. One
	// stays free for creating domain keys, which needs a read-write session.
	for len(open) < r.cfg.Sessions+1 {
		s := newSession(r.t, func() {})
		if err := s.ensure(); err != nil {
			if isCKR(err, pkcs11.CKR_SESSION_COUNT) {
				break
			}
			return err
		}
		open = append(open, s)
	}
	if len(open) > 1 {
		open[len(open)-1].close()
		open = open[:len(open)-1]
	}
	keys := r.about.Keys
	r.about = r.describe(m, st, found.method)
	r.about.Keys = keys
	if len(open) < r.cfg.Sessions {
		r.about.Notices = append(r.about.Notices, fmt.Sprintf("the token gives %d sessions of the %d asked for", len(open), r.cfg.Sessions))
	}
	ready := slices.Clone(open)
	r.pool = newPool(len(ready), r.cfg.Timeout, r.cfg.Logger, func(w *worker) conn {
		// Called with the pool's mu held, so ready needs no lock.
		if len(ready) == 0 {
			return newSession(r.t, w.tick)
		}
		s := ready[0]
		ready = ready[1:]
		s.tick = w.tick
		return s
	})
	r.sched = newScheduler(r.pool, time.Duration(r.t.alone.Load()), func(w *worker, all []work) { workThrough(w.conn.(*session), all) })
	return nil
}

func (r *pkcs11Root) describe(m *module, st slotToken, chosen method) Info {
	info := Info{
		Kind: KindPKCS11, Location: m.path, Token: st.Label, Serial: st.SerialNumber,
		Model: strings.TrimSpace(st.ManufacturerID + " " + st.Model), Mechanism: chosen.String(),
		Random: "token and operating system, combined", Notices: notices(st.Flags),
	}
	if !r.rng {
		info.Random = "operating system (the token has no generator)"
	}
	if lib, err := m.GetInfo(); err == nil {
		info.Library = libraryName(lib)
	}
	if r.cfg.pin != nil {
		info.Mechanism = ""
	}
	if schemeKind(chosen.scheme) == kindRSA {
		info.Notices = append(info.Notices, "the token encrypts key-encryption keys with RSA: whoever has its public key can make new ones, and unwrapping is slow")
	}
	return info
}

func libraryName(i pkcs11.Info) string {
	return fmt.Sprintf("%s %s %d.%d (PKCS#11 %d.%d)", strings.TrimRight(i.ManufacturerID, " \x00"), strings.TrimRight(i.LibraryDescription, " \x00"),
		i.LibraryVersion.Major, i.LibraryVersion.Minor, i.CryptokiVersion.Major, i.CryptokiVersion.Minor)
}

// discovery is the outcome of the search for a mechanism.
type discovery struct {
	kind   kind
	method method
	ok     bool
	aad    bool // GCM with associated data works; looked at for OpenToken only
	rows   []Candidate
}

// why explains a search that found nothing.
func (d discovery) why() string {
	var b strings.Builder
	for _, r := range d.rows {
		fmt.Fprintf(&b, "  %s: %s\n", r.Method, r.Reason)
	}
	b.WriteString("  enable AES key generation and AES-GCM (or AES-CBC) on the token, e.g. by leaving a mode that restricts it to other algorithms")
	return b.String()
}

// discover asks the token what it has and tries it with keys that are gone afterwards.
func (s *session) discover(slot uint) (discovery, error) {
	offers, err := s.offers(slot)
	if err != nil {
		return discovery{}, err
	}
	var d discovery
	for k, generator := range [numKinds]uint{kindAES: pkcs11.CKM_AES_KEY_GEN, kindRSA: pkcs11.CKM_RSA_PKCS_KEY_PAIR_GEN} {
		var rows []Candidate
		switch _, can := offers[generator]; {
		case d.ok || s.t.cfg.pin != nil && kind(k) != kindAES:
			rows = allRows(kind(k), offers, "not needed")
		case !can:
			rows = allRows(kind(k), offers, "the token cannot generate a key for it")
		default:
			err = s.withScratch(kind(k), func(key domainKey) (err error) {
				d.kind = kind(k)
				d.method, d.ok, rows, err = s.choose(key, offers)
				if err == nil && d.ok && d.method.scheme == schemeGCM && s.t.cfg.pin != nil {
					d.aad, err = s.trialAAD(key, d.method)
				}
				return err
			})
			if err != nil && Classify(err) != Fatal {
				return discovery{}, err
			}
			if err != nil {
				rows = allRows(kind(k), offers, "the token refuses to generate a key for it: "+err.Error())
			}
		}
		d.rows = append(d.rows, rows...)
	}
	return d, nil
}

func allRows(k kind, offers map[uint]pkcs11.MechanismInfo, reason string) []Candidate {
	var rows []Candidate
	for _, m := range candidates[k] {
		_, offered := offers[mechanismOf(m.scheme)]
		rows = append(rows, Candidate{Method: m.String(), Offered: offered, Reason: reason})
	}
	return rows
}

// offers returns the token's mechanisms of interest.
func (s *session) offers(slot uint) (map[uint]pkcs11.MechanismInfo, error) {
	s.tick()
	list, err := s.m.GetMechanismList(slot)
	if err != nil {
		return nil, tokenError("C_GetMechanismList", err)
	}
	offers := map[uint]pkcs11.MechanismInfo{}
	for _, mech := range list {
		if !slices.ContainsFunc(mechanismsOfInterest, func(i namedMechanism) bool { return i.mechanism == mech.Mechanism }) &&
			!slices.Contains(tokenKeyMechanisms, mech.Mechanism) {
			continue
		}
		info, err := s.m.GetMechanismInfo(slot, []*pkcs11.Mechanism{mech})
		if err != nil {
			continue // listed, but not to be had
		}
		offers[mech.Mechanism] = info
	}
	return offers, nil
}

// method returns the method for a domain key; for a kind that was not tried at the
// start (an RSA domain key of before a firmware update) it is found with that very key.
func (s *session) method(k domainKey) (method, error) {
	if m := s.t.methods[k.kind].Load(); m != nil {
		return *m, nil
	}
	st, err := s.t.find()
	if err != nil {
		return method{}, err
	}
	offers, err := s.offers(st.slot)
	if err != nil {
		return method{}, err
	}
	m, ok, rows, err := s.choose(k, offers)
	if err != nil {
		return method{}, err
	}
	if !ok {
		return method{}, fmt.Errorf("%w: domain key %s:\n%s", ErrMechanism, k.id, discovery{rows: rows}.why())
	}
	s.t.methods[k.kind].Store(&m)
	return m, nil
}

// wrapVerified wraps a KEK and decrypts the result again: a wrapped form that does not
// open is the loss of a customer's key, found years later. Wrapping happens once per
// key version, so the second call is cheap insurance.
func (s *session) wrapVerified(k domainKey, kek []byte) ([]byte, error) {
	m, err := s.method(k)
	if err != nil {
		return nil, err
	}
	out, err := s.wrap(k, m, kek)
	if err != nil {
		return nil, err
	}
	w, err := parseWrapped(out)
	if err != nil {
		return nil, err
	}
	back, err := s.unwrap(k, w)
	if err != nil && Classify(err) == NewSession {
		return nil, err
	}
	same := subtle.ConstantTimeCompare(back, kek) == 1
	arena.Wipe(back)
	if err != nil || !same {
		return nil, fmt.Errorf("%w: what it encrypted does not decrypt to the same key (%v)", ErrDevice, err)
	}
	return out, nil
}

// unwrapVerdict unwraps a KEK and decides whether an ambiguous failure is the
// ciphertext's fault or the device's: it is the ciphertext's when it fails twice and
// another one, made on the spot, opens.
func (s *session) unwrapVerdict(k domainKey, w wrapped) ([]byte, error) {
	return verdict(func() ([]byte, error) { return s.unwrap(k, w) }, func() error {
		probe := make([]byte, KEKSize)
		rand.Read(probe)
		_, err := s.wrapVerified(k, probe)
		return err
	}, ErrBadWrapped)
}

// verdict has try decrypt. When it fails twice in a way that may be the ciphertext's fault
// or the device's, alive decides: nil means that the ciphertext is bad.
func verdict(try func() ([]byte, error), alive func() error, bad error) ([]byte, error) {
	var err error
	for range 2 {
		var out []byte
		var once errOnce
		if out, err = try(); !errors.As(err, &once) || !ambiguous(err) {
			return out, err
		}
	}
	if perr := alive(); perr != nil {
		return nil, perr
	}
	return nil, fmt.Errorf("%w (the token says: %v)", bad, err)
}

func (r *pkcs11Root) CreateDomainKey(ctx context.Context) (DomainKeyID, error) {
	var id DomainKeyID
	err := r.once(ctx, func(s *session) (err error) {
		id, err = r.createIn(s)
		return err
	})
	if err != nil {
		return DomainKeyID{}, fmt.Errorf("couldn't create a domain key: %w", err)
	}
	return id, nil
}

// createIn makes a token object and uses it once before anything depends on it.
func (r *pkcs11Root) createIn(s *session) (id DomainKeyID, err error) {
	rand.Read(id[:])
	rw, err := s.t.openSession(true)
	if err != nil {
		return id, err
	}
	defer s.t.closeSession(rw)
	k, err := s.generate(rw, r.kind, id, true)
	if err != nil {
		return id, err
	}
	err = s.checkGuarded(k.dec, k.id, ErrWeakDomainKey)
	if err == nil {
		// By its ID, as every later use will find it.
		k, err = s.key(id)
	}
	if err == nil {
		probe := make([]byte, KEKSize)
		rand.Read(probe)
		_, err = s.wrapVerified(k, probe)
	}
	if err != nil {
		delete(s.keys, id)
		return id, errors.Join(err, s.destroy(rw, k))
	}
	return id, nil
}

func (r *pkcs11Root) CheckDomainKey(ctx context.Context, id DomainKeyID) error {
	return r.once(ctx, func(s *session) error {
		delete(s.keys, id) // look again: this is the question
		_, err := s.key(id)
		return err
	})
}

func (r *pkcs11Root) DestroyDomainKey(ctx context.Context, id DomainKeyID) error {
	err := r.once(ctx, func(s *session) error {
		delete(s.keys, id)
		k, err := s.find(id)
		if err != nil {
			return err
		}
		rw, err := s.t.openSession(true)
		if err != nil {
			return err
		}
		defer s.t.closeSession(rw)
		return s.destroy(rw, k)
	})
	if err != nil {
		return fmt.Errorf("couldn't destroy domain key %s: %w", id, err)
	}
	return nil
}

// once runs f in one session. f's results must be written through variables that are
// only read when once returns nil.
func (r *pkcs11Root) once(ctx context.Context, f func(*session) error) error {
	if ctx.Err() != nil {
		return contextError(ctx)
	}
	var err error
	j := newJob(func(w *worker) {
		s := w.conn.(*session)
		err = s.try(func() error { return f(s) })
	}, func() {})
	if derr := r.pool.do(ctx, j); derr != nil {
		return derr
	}
	return err
}

func (r *pkcs11Root) Encrypt(ctx context.Context, id DomainKeyID, items []Item) {
	r.batch(ctx, taskEncrypt, id, items, checkKEK)
}

func (r *pkcs11Root) Decrypt(ctx context.Context, id DomainKeyID, items []Item) {
	r.batch(ctx, taskDecrypt, id, items, checkWrapped)
}

// batch has the scheduler do the items that pass check. It gets copies of the inputs,
// because a session may still be at it when the caller has left.
func (r *pkcs11Root) batch(ctx context.Context, kind taskKind, id DomainKeyID, items []Item, check func([]byte) error) {
	if ctx.Err() != nil {
		failAll(items, contextError(ctx))
		return
	}
	all, good := make([]work, 0, len(items)), make([]*Item, 0, len(items))
	for i := range items {
		it := &items[i]
		it.Out = nil
		if it.Err = check(it.In); it.Err == nil {
			all, good = append(all, work{kind: kind, id: id, in: slices.Clone(it.In)}), append(good, it)
		}
	}
	for i, w := range r.sched.do(ctx, all) {
		good[i].Out, good[i].Err = w.out, w.err
	}
}

// begin has the scheduler do tasks whose inputs it may keep.
func (r *pkcs11Root) begin(g *group, all []work) { r.sched.begin(g, all) }

// workThrough does some tasks in one session, on its worker's goroutine. Once the token
// itself has failed, the rest fail with it: each would only wait for the same answer.
func workThrough(s *session, all []work) {
	var broken error
	for i := 0; i < len(all); i++ {
		t := &all[i]
		switch {
		case t.err != nil: // refused before it got here
		case broken != nil:
			t.err = broken
		case t.left.Load():
			t.err = context.Canceled // seen by nobody
			arena.Wipe(t.in)
			continue
		case t.kind == taskRandom:
			n := 1
			for i+n < len(all) && all[i+n].kind == taskRandom {
				n++
			}
			s.randomTasks(all[i : i+n])
			i += n - 1
		default:
			t.err = s.try(func() error { return s.do(t) })
		}
		if t.err != nil && Classify(t.err) != Fatal {
			broken = t.err
		}
		arena.Wipe(t.in)
	}
}

// do wraps or unwraps one KEK, or uses a key that lives in the token.
func (s *session) do(t *work) error {
	if t.kind == taskUse {
		return s.use(t)
	}
	k, err := s.key(t.id)
	if err != nil {
		return err
	}
	if t.kind == taskEncrypt {
		if err := s.t.spend(t.id, 1); err != nil {
			return err
		}
		t.out, err = s.wrapVerified(k, t.in)
		return err
	}
	w, err := parseWrapped(t.in)
	if err != nil {
		return err
	}
	t.out, err = s.unwrapVerdict(k, w)
	return err
}

// randomTasks draws for all of them at once.
func (s *session) randomTasks(all []work) {
	total := 0
	for i := range all {
		total += len(all[i].out)
	}
	drawn := make([]byte, total)
	defer arena.Wipe(drawn)
	err := s.try(func() error { return s.random(drawn) })
	rest := drawn
	for i := range all {
		if all[i].err = err; err == nil {
			rest = rest[copy(all[i].out, rest):]
		}
	}
}

// randomChunk is how much is asked of a token at once; some allow 1024 bytes.
const randomChunk = 1024

// Random combines the token's bytes with the operating system's by exclusive or, so that
// the result is at least as good as the better of the two.
func (r *pkcs11Root) Random(ctx context.Context, bufs [][]byte) error {
	for _, b := range bufs {
		rand.Read(b)
	}
	if !r.rng {
		return nil
	}
	total := 0
	for _, b := range bufs {
		total += len(b)
	}
	err := contextError(ctx)
	if err == nil {
		got := r.sched.do(ctx, []work{{kind: taskRandom, out: make([]byte, total)}})[0]
		if err = got.err; err == nil {
			rest := got.out
			for _, b := range bufs {
				subtle.XORBytes(b, b, rest[:len(b)])
				rest = rest[len(b):]
			}
			arena.Wipe(got.out)
			return nil
		}
	}
	for _, b := range bufs {
		arena.Wipe(b)
	}
	return err
}

// random fills b from the token.
func (s *session) random(b []byte) error {
	for len(b) > 0 {
		n := min(len(b), randomChunk)
		if err := s.drawInto(b[:n]); err != nil {
			return err
		}
		b = b[n:]
	}
	return nil
}

func (r *pkcs11Root) Info() Info {
	info := r.about
	info.Notices = slices.Clone(info.Notices)
	info.Sessions, info.Stuck = int(r.pool.live.Load()), int(r.pool.stuck.Load())
	info.InUse = r.sched.width()
	if info.Stuck > 0 {
		info.Notices = append(info.Notices, fmt.Sprintf("%d calls hang in the module", info.Stuck))
	}
	return info
}

func (r *pkcs11Root) Close() error {
	r.closeOnce.Do(func() {
		r.pool.close(func() {
			r.t.m.release()
			r.cfg.pin.Wipe()
		})
	})
	return nil
}
