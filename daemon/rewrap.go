package daemon

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"slices"
	"sync"
	"time"

	"keymill/hsm"
	"keymill/keystore"
)

// A RewrapRequest says where the store is to be moved. At most one of To, Rotate and
// Back is set; none goes on with the move that has begun.
type RewrapRequest struct {
	To         *keystore.Place `json:"to,omitempty"`          // another root of trust
	Rotate     bool            `json:"rotate,omitempty"`      // a new domain key of the same
	Back       bool            `json:"back,omitempty"`        // the move that has begun is turned round
	DestroyOld bool            `json:"destroy_old,omitempty"` // then destroy the domain keys that were left
}

func (r *RewrapRequest) check() error {
	n := 0
	for _, set := range []bool{r.To != nil, r.Rotate, r.Back} {
		if set {
			n++
		}
	}
	if n > 1 {
		return errors.New("give one target: another root of trust, a rotation, or the way back")
	}
	if r.To != nil && r.To.Kind != hsm.KindSoftware && r.To.Kind != hsm.KindPKCS11 {
		return fmt.Errorf("to: no root of trust is of the kind %q; use %s or %s", r.To.Kind, hsm.KindSoftware, hsm.KindPKCS11)
	}
	return nil
}

// A RewrapResult says what was done.
type RewrapResult struct {
	// Of a move, when there was one: from where to where, and what its last run did.
	Moved    bool                    `json:"moved"`
	Progress keystore.RewrapProgress `json:"progress"`
	From     keystore.Place          `json:"from"`
	To       keystore.Place          `json:"to"`
	Source   string                  `json:"source,omitempty"`
	Target   string                  `json:"target,omitempty"`

	Destroyed []DestroyedKey `json:"destroyed,omitempty"`
	Retired   int            `json:"retired"` // domain keys that were left and exist
}

// A DestroyedKey is a domain key that was destroyed, or was found to be gone.
type DestroyedKey struct {
	ID    string         `json:"id"`
	Place keystore.Place `json:"place"`
	Gone  bool           `json:"gone,omitempty"`
}

// rewrapWait is how long a move waits for another one to stop.
const rewrapWait = 3 * time.Second

// Rewrap moves the store to another domain key while it is in use, or goes on with a
// move that has begun, and returns when it is done; see keystore.Store.Rewrap for
// progress and for what an error leaves. A root that is not needed any more is
// closed at the end.
func (op *Opened) Rewrap(ctx context.Context, req RewrapRequest, progress func(keystore.RewrapProgress)) (res RewrapResult, err error) {
	if err := req.check(); err != nil {
		return res, err
	}
	// A move whose client has gone is about to stop: its successor waits for that.
	wait := time.NewTimer(op.wait)
	defer wait.Stop()
	select {
	case op.busy <- struct{}{}:
	case <-wait.C:
		return res, keystore.ErrRewrapping
	case <-ctx.Done():
		return res, ctx.Err()
	}
	defer func() { <-op.busy }()
	pending, err := op.Store.PendingRewrap()
	if err != nil {
		return res, err
	}
	switch {
	case pending != nil:
		err = op.resume(ctx, req, pending)
	case req.Back:
		err = fmt.Errorf("%w; there is nothing to turn round", keystore.ErrNoRewrap)
	case req.To != nil || req.Rotate:
		err = op.begin(ctx, req)
	case !req.DestroyOld:
		err = errors.New("no move has begun that could go on: say where the store is to go (--rotate, --to-hsm-... or --to-software)")
	}
	if err != nil {
		return res, err
	}
	if pending, err = op.Store.PendingRewrap(); err != nil {
		return res, err
	}
	if pending != nil {
		res.From, res.To, res.Source, res.Target = pending.From, pending.To, pending.Source.String(), pending.Target.String()
		if res.Progress, err = op.Store.Rewrap(ctx, progress); err != nil {
			return res, err
		}
		res.Moved = true
		op.settle(ctx, pending)
	}
	if req.DestroyOld {
		if res.Destroyed, err = op.destroyOld(ctx); err != nil {
			return res, err
		}
	}
	retired, err := op.Store.RetiredDomainKeys()
	res.Retired = len(retired)
	return res, err
}

// begin records a new move.
func (op *Opened) begin(ctx context.Context, req RewrapRequest) error {
	from := op.roots[0]
	to := from
	if req.To != nil {
		if req.To.Kind == hsm.KindSoftware && from.place.Kind == hsm.KindSoftware {
			return errors.New("the store is on the software root already; to give it a new domain key there, use --rotate")
		}
		root, err := openPlace(op.cfg, op.o, *req.To, true)
		if err != nil {
			return err
		}
		to = placedRoot{*req.To, root}
	}
	target, err := to.root.CreateDomainKey(ctx)
	if err == nil && to != from {
		err = op.add(to.place, to.root)
	}
	if err != nil {
		if to != from {
			err = errors.Join(err, to.root.Close())
		}
		return err
	}
	err = op.Store.BeginRewrap(ctx, keystore.Rewrap{Target: target, From: from.place, To: to.place, Begun: op.clock()})
	if err != nil && op.Store.Err() == nil {
		// It is certain that nothing names the new key.
		err = errors.Join(err, to.root.DestroyDomainKey(context.WithoutCancel(ctx), target))
		if to != from {
			err = errors.Join(err, op.drop(to.root))
		}
	}
	return err
}

// resume prepares to go on with a move that has begun.
func (op *Opened) resume(ctx context.Context, req RewrapRequest, p *keystore.Rewrap) error {
	other := fmt.Errorf("a move from %s to %s has begun and not finished: let it finish (keymill rewrap without a target), or turn it round (--back), before another one", p.From, p.To)
	switch {
	case req.Back:
		return op.Store.RewrapBack(ctx)
	case req.Rotate && p.From != p.To:
		return other
	case req.To == nil || *req.To == p.To:
		return nil
	}
	// Another place, which may be another way to the same token.
	root, err := openPlace(op.cfg, op.o, *req.To, false)
	if err != nil {
		return err
	}
	err = errors.Join(root.CheckDomainKey(ctx, p.Target), root.Close())
	if errors.Is(err, hsm.ErrNoDomainKey) {
		return other
	}
	if err != nil {
		return err
	}
	return op.Store.RelocateRewrap(ctx, *req.To)
}

// settle lets go of the root that the store has left.
func (op *Opened) settle(ctx context.Context, p *keystore.Rewrap) {
	i := slices.IndexFunc(op.roots, func(r placedRoot) bool { return r.place == p.To })
	if i < 0 { // it was opened by another way than the record says
		i = slices.IndexFunc(op.roots, func(r placedRoot) bool { return r.root.CheckDomainKey(ctx, p.Target) == nil })
	}
	if i < 0 {
		return // both stay open
	}
	op.roots = []placedRoot{{p.To, op.roots[i].root}}
	if err := op.Root.Keep(op.roots[0].root); err != nil && op.o.Logger != nil {
		op.o.Logger.Warn("the root of trust that the store has left didn't close in order", "err", err)
	}
}

// destroyOld destroys every domain key that the store has left.
func (op *Opened) destroyOld(ctx context.Context) (done []DestroyedKey, err error) {
	retired, err := op.Store.RetiredDomainKeys()
	if err != nil {
		return nil, err
	}
	for _, k := range retired {
		root, shut := op.roots[0].root, func() error { return nil }
		if k.Place != op.roots[0].place {
			if root, err = openPlace(op.cfg, op.o, k.Place, false); err != nil {
				return done, fmt.Errorf("couldn't destroy domain key %s: %w", k.ID, err)
			}
			shut = root.Close
		}
		d := DestroyedKey{ID: k.ID.String(), Place: k.Place}
		err = op.Store.ForgetDomainKey(ctx, k.ID, func() error {
			err := root.DestroyDomainKey(ctx, k.ID)
			if d.Gone = errors.Is(err, hsm.ErrNoDomainKey); d.Gone {
				return nil
			}
			return err
		})
		if err = errors.Join(err, shut()); err != nil {
			return done, fmt.Errorf("couldn't destroy domain key %s of %s: %w", k.ID, k.Place, err)
		}
		done = append(done, d)
	}
	return done, nil
}

func (op *Opened) clock() time.Time {
	if op.o.Clock != nil {
		return op.o.Clock()
	}
	return time.Now()
}

// A RewrapStatus says under which domain key the store is.
type RewrapStatus struct {
	DomainKey string         `json:"domain_key"`
	Pending   *PendingRewrap `json:"pending,omitempty"`
	Retired   []RetiredKey   `json:"retired,omitempty"`
}

// A PendingRewrap is a move that has begun and not finished.
type PendingRewrap struct {
	From   keystore.Place `json:"from"`
	To     keystore.Place `json:"to"`
	Source string         `json:"source"`
	Target string         `json:"target"`
	Begun  time.Time      `json:"begun"`
}

// A RetiredKey is a domain key that the store has left and that exists.
type RetiredKey struct {
	ID      string         `json:"id"`
	Place   keystore.Place `json:"place"`
	Retired time.Time      `json:"retired"`
}

// RewrapStatus reads the records of moves.
func (op *Opened) RewrapStatus() (st RewrapStatus, err error) {
	st.DomainKey = op.Store.Header().DomainKey.String()
	p, err := op.Store.PendingRewrap()
	if err != nil {
		return st, err
	}
	if p != nil {
		st.Pending = &PendingRewrap{p.From, p.To, p.Source.String(), p.Target.String(), p.Begun}
	}
	retired, err := op.Store.RetiredDomainKeys()
	for _, k := range retired {
		st.Retired = append(st.Retired, RetiredKey{k.ID.String(), k.Place, k.Retired})
	}
	slices.SortFunc(st.Retired, func(a, b RetiredKey) int { return a.Retired.Compare(b.Retired) })
	return st, err
}

// # Over the control socket
//
// POST /rewrap takes a RewrapRequest and answers with lines of JSON: the progress
// now and then, and in the end the result or an error. The move belongs to who asks:
// when the connection ends, it stops, and goes on when somebody asks again.

// rewrapTick is how often progress is told, besides each new phase.
const rewrapTick = 200 * time.Millisecond

type rewrapLine struct {
	Progress *keystore.RewrapProgress `json:"progress,omitempty"`
	Result   *RewrapResult            `json:"result,omitempty"`
	Error    string                   `json:"error,omitempty"`
}

// rewrap is the control socket's verb.
func (s *Server) rewrap(w http.ResponseWriter, r *http.Request) {
	var req RewrapRequest
	dec := json.NewDecoder(http.MaxBytesReader(w, r.Body, maxControlBody))
	dec.DisallowUnknownFields()
	if err := dec.Decode(&req); err != nil {
		answer(w, http.StatusBadRequest, fmt.Errorf("couldn't read the request: %w", err))
		return
	}
	if !s.serving.Load() {
		answer(w, http.StatusServiceUnavailable, errors.New("the daemon is starting or stopping"))
		return
	}
	var mu sync.Mutex
	var latest keystore.RewrapProgress // guarded by mu
	type outcome struct {
		res RewrapResult
		err error
	}
	done, phase := make(chan outcome, 1), make(chan struct{}, 1)
	s.log.Info("rewrap: begins or goes on", "rotate", req.Rotate, "back", req.Back, "to", req.To, "destroy_old", req.DestroyOld)
	go func() {
		res, err := s.service.opened.Rewrap(r.Context(), req, func(p keystore.RewrapProgress) {
			mu.Lock()
			defer mu.Unlock()
			if p.Phase != latest.Phase {
				select {
				case phase <- struct{}{}:
				default:
				}
			}
			latest = p
		})
		done <- outcome{res, err}
	}()
	w.Header().Set("Content-Type", "application/x-ndjson")
	enc, flush := json.NewEncoder(w), http.NewResponseController(w).Flush
	tick := time.NewTicker(rewrapTick)
	defer tick.Stop()
	var told keystore.RewrapProgress
	for {
		var line rewrapLine
		select {
		case <-tick.C:
		case <-phase:
		case o := <-done:
			s.logRewrap(o.res, o.err)
			if o.err != nil {
				line.Error = o.err.Error()
			} else {
				line.Result = &o.res
			}
			_, _ = enc.Encode(&line), flush()
			return
		}
		mu.Lock()
		p := latest
		mu.Unlock()
		if p == told {
			continue
		}
		told, line.Progress = p, &p
		// Who does not listen any more ends the request's context, and so the move.
		_, _ = enc.Encode(&line), flush()
	}
}

// warnOfRewrap says at the start that a move is waiting to be finished.
func (s *Server) warnOfRewrap(store *keystore.Store) {
	if p, err := store.PendingRewrap(); err == nil && p != nil {
		s.log.Warn("keymill rewrap has begun to move the store and has not finished; run it again", "from", p.From.String(), "to", p.To.String(),
			"begun", p.Begun.UTC().Format(time.RFC3339))
	}
}

func (s *Server) logRewrap(res RewrapResult, err error) {
	switch {
	case err != nil:
		s.log.Warn("rewrap: stopped", "moved", res.Progress.Moved, "err", err)
	case res.Moved:
		s.log.Info("rewrap: done", "from", res.From.String(), "to", res.To.String(), "domain_key", res.Target, "moved", res.Progress.Moved)
		if res.To != placeOf(s.cfg) {
			s.log.Warn("the store has moved to another root of trust; change hsm-module, hsm-token and hsm-pin-file before the next start", "to", res.To.String())
		}
	}
	for _, d := range res.Destroyed {
		s.log.Warn("rewrap: old domain key destroyed", "domain_key", d.ID, "place", d.Place.String(), "was_gone", d.Gone)
	}
}

// rewrapStatus is the control socket's answer to GET /rewrap.
func (s *Server) rewrapStatus(w http.ResponseWriter, _ *http.Request) {
	if !s.serving.Load() {
		answer(w, http.StatusServiceUnavailable, errors.New("the daemon is starting or stopping"))
		return
	}
	st, err := s.service.opened.RewrapStatus()
	if err != nil {
		answer(w, http.StatusInternalServerError, err)
		return
	}
	w.Header().Set("Content-Type", "application/json")
	json.NewEncoder(w).Encode(&st)
}

// RequestRewrap has the daemon that serves the data directory data move its store, and
// returns when it is done. It fails with [ErrNotRunning] when there is none. When ctx
// ends, or the daemon does, the move stops and can go on later.
func RequestRewrap(ctx context.Context, data string, req RewrapRequest, progress func(keystore.RewrapProgress)) (RewrapResult, error) {
	res, err := askControl(ctx, data, http.MethodPost, "/rewrap", req)
	if err != nil {
		return RewrapResult{}, err
	}
	defer res.Body.Close()
	dec := json.NewDecoder(res.Body)
	for {
		var line rewrapLine
		if err := dec.Decode(&line); err != nil {
			if ctx.Err() != nil {
				return RewrapResult{}, ctx.Err()
			}
			return RewrapResult{}, fmt.Errorf("the daemon ended before the store was moved (%w); start it again, and this command, which goes on where it was", err)
		}
		switch {
		case line.Error != "":
			return RewrapResult{}, errors.New(line.Error)
		case line.Result != nil:
			return *line.Result, nil
		case line.Progress != nil && progress != nil:
			progress(*line.Progress)
		}
	}
}

// RequestRewrapStatus asks the daemon under which domain key its store is.
func RequestRewrapStatus(ctx context.Context, data string) (st RewrapStatus, err error) {
	res, err := askControl(ctx, data, http.MethodGet, "/rewrap", struct{}{})
	if err != nil {
		return st, err
	}
	defer res.Body.Close()
	return st, readControl(res, &st)
}
