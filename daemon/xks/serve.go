package xks

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/VictoriaMetrics/metrics"

	"keymill/daemon/sigv4"
	"keymill/daemon/wire"
	"keymill/hsm/arena"
)

// # What a request meets, in order
//
//	path          a prefix of the file, and one of the four calls: else 404
//	method        POST: else 405
//	length        within MaxBody: else 400
//	signature     one of the prefix's credentials: else 401
//	body          the protocol's: else 400, or 501 for what is too large here
//	key           the external id is in the file: else 404
//	authorisation the key's rules: else 403
//	quota         the KMS key's: else 429
//	state         the KMS key is enabled: else 400
//	work
//
// Nothing of a body is looked at before its signature is verified, and nobody
// without a credential of a prefix learns which keys it has.

// ErrNoKey: the KMS key that the file names does not exist.
var ErrNoKey = errors.New("xks: no such KMS key")

// Keys is where a Server finds the KMS keys it serves: kms.Service.
type Keys interface {
	// ServedKey returns the key as it is now, ErrNoKey when there is none.
	ServedKey(KeyRef) (ServedKey, error)
}

// ServerOptions are what a Server is made of. Keys is required.
type ServerOptions struct {
	Keys   Keys
	Clock  func() time.Time // nil: time.Now
	Logger *slog.Logger     // nil: slog.Default()
}

// A Server is the proxy side. It is an http.Handler, safe for concurrent use,
// and answers 404 to everything until a file is loaded.
type Server struct {
	// Immutable.
	keys    Keys
	clock   func() time.Time
	log     *slog.Logger
	metrics *metrics.Set
	places  chan struct{}

	// Atomic: replaced as a whole by Load.
	stores atomic.Pointer[map[string]*store] // by prefix
}

// maxServed bounds the requests that are worked on at once. Each takes a few
// microseconds once its key is warm, so more are waiting for cold keys.
const maxServed = 1024

// A store is one prefix of the file. Immutable but for the health it remembers.
type store struct {
	verify *sigv4.Verifier
	health KeyRef // zero: nothing to try
	keys   map[string]*rule

	mu      sync.Mutex
	checked time.Time // guarded by mu
	status  string    // guarded by mu: as of checked
}

// A rule is one external key.
type rule struct {
	key                              KeyRef
	accounts, principals, operations []string
}

// NewServer returns a Server without stores.
func NewServer(o ServerOptions) *Server {
	s := &Server{keys: o.Keys, clock: o.Clock, log: o.Logger, metrics: metrics.NewSet(), places: make(chan struct{}, maxServed)}
	if s.clock == nil {
		s.clock = time.Now
	}
	if s.log == nil {
		s.log = slog.Default()
	}
	return s
}

// Load puts the file in force: for every request that starts from now on. With
// any mistake in it, what was in force stays.
func (s *Server) Load(file string) error {
	c, err := readFile(file)
	if err != nil {
		return err
	}
	s.use(c)
	return nil
}

func (s *Server) use(c *config) {
	stores := make(map[string]*store, len(c.Stores))
	for i := range c.Stores {
		stores[c.Stores[i].Prefix] = s.newStore(&c.Stores[i])
	}
	if old := s.stores.Swap(&stores); old != nil {
		for _, st := range *old {
			st.verify.PurgeAll()
		}
	}
}

func (s *Server) newStore(c *storeConfig) *store {
	st := &store{keys: make(map[string]*rule, len(c.Keys))}
	var credentials []*sigv4.Credential
	for _, cred := range c.Credentials {
		credentials = append(credentials, &sigv4.Credential{AccessKeyID: cred.AccessKeyID, Secret: []byte(cred.Secret), Active: true})
	}
	st.verify = sigv4.New(sigv4.Options{
		Service:  Service,
		NoTarget: true,
		Lookup: func(id []byte) *sigv4.Credential {
			for _, cred := range credentials {
				if cred.AccessKeyID == string(id) {
					return cred
				}
			}
			return nil
		},
		Region: func(name []byte) (string, bool) {
			if len(c.Regions) == 0 {
				return string(name), len(name) <= 32
			}
			i := slices.Index(c.Regions, string(name))
			if i < 0 {
				return "", false
			}
			return c.Regions[i], true
		},
		Served: c.Regions,
		Clock:  s.clock,
		Logger: s.log,
	})
	for i := range c.Keys {
		k := &c.Keys[i]
		ref, _ := ParseKeyRef(k.Key)
		st.keys[k.ExternalID] = &rule{key: ref, accounts: k.Accounts, principals: k.Principals, operations: k.Operations}
		if i == 0 {
			st.health = ref
		}
	}
	if ref, ok := ParseKeyRef(c.HealthKey); ok {
		st.health = ref
	}
	return st
}

// WriteMetrics writes the counters in Prometheus text.
func (s *Server) WriteMetrics(w io.Writer) { s.metrics.WritePrometheus(w) }

// ProbePath answers GET for load balancers, which the protocol's own paths may not.
const ProbePath = "/healthz"

// A target is what a path names.
type target struct {
	prefix string
	key    string
	action Action
}

// parsePath reads a path as it was sent. It is read from its end: the prefix may
// hold anything.
func parsePath(path string) (t target, ok bool) {
	base, last, _ := cutLast(path)
	switch last {
	case "health":
		t.action = Health
	case "metadata":
		t.action = Metadata
	case "encrypt":
		t.action = Encrypt
	case "decrypt":
		t.action = Decrypt
	default:
		return t, false
	}
	if t.action != Health {
		var keys string
		if base, t.key, ok = cutLast(base); !ok || !ValidKeyID(t.key) {
			return t, false
		}
		if base, keys, ok = cutLast(base); !ok || keys != "keys" {
			return t, false
		}
	}
	t.prefix, ok = strings.CutSuffix(base, PathSuffix)
	return t, ok && validPrefix(t.prefix)
}

func cutLast(path string) (before, last string, ok bool) {
	i := strings.LastIndexByte(path, '/')
	if i < 0 {
		return "", path, false
	}
	return path[:i], path[i+1:], true
}

// A failure is an answer that is an error. The message goes to KMS, which shows
// it to nobody; rule says to the log what refused.
type failure struct {
	reason  Reason
	message string
	cause   error
}

func refuse(r Reason, format string, args ...any) *failure {
	return &failure{reason: r, message: fmt.Sprintf(format, args...)}
}

// maxDiscard bounds what is read of a body that is refused.
const maxDiscard = 1 << 20

// ServeHTTP answers one request.
func (s *Server) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	if r.RequestURI == ProbePath && (r.Method == http.MethodGet || r.Method == http.MethodHead) {
		w.Header().Set("Content-Type", "text/plain")
		_, _ = io.WriteString(w, "ok\n")
		return
	}
	began := s.clock()
	x := &call{server: s, r: r, id: rand.Text()}
	defer x.wipe()
	var body []byte
	status := http.StatusOK
	fail := x.route()
	if fail == nil && r.Method != http.MethodPost {
		w.Header().Set("Allow", http.MethodPost)
		w.WriteHeader(http.StatusMethodNotAllowed)
		s.count(x.target.action, "MethodNotAllowed")
		return
	}
	if fail == nil {
		fail = x.answer()
	}
	if fail != nil {
		// A client that is still sending may not read an answer before it is done.
		_, _ = io.CopyN(io.Discard, r.Body, maxDiscard)
		row := fail.reason.row()
		status = row.status
		wr := writer{}
		wr.open()
		wr.text("errorName", row.name)
		wr.text("errorMessage", printable(fail.message, maxErrorText))
		wr.close()
		body = wr.b
	} else {
		body = x.response.Append(make([]byte, 0, 1<<10+2*len(x.response.Ciphertext)+2*len(x.response.Plaintext)))
		defer arena.Wipe(body)
	}
	x.log(fail, s.clock().Sub(began))
	w.Header().Set("Content-Type", "application/json")
	w.Header().Set("X-Request-Id", x.id)
	w.WriteHeader(status)
	_, _ = w.Write(body)
}

func (s *Server) count(a Action, outcome string) {
	name := a.String()
	if name == "" {
		name = "unknown"
	}
	s.metrics.GetOrCreateCounter(`keymill_xks_requests_total{call="` + name + `",outcome="` + outcome + `"}`).Inc()
}

// A call is one request on its way. It belongs to one goroutine.
type call struct {
	server *Server
	r      *http.Request
	id     string // of ours, for the log and the answer
	target target
	store  *store

	body     []byte // as it came; may hold plaintext
	dec      wire.Decoder
	request  *Request // views on body and dec; nil until decoded
	response *Response
}

func (x *call) wipe() {
	arena.Wipe(x.body[:cap(x.body)])
	x.dec.Reset()
	if x.response != nil {
		arena.Wipe(x.response.Plaintext)
	}
}

// route finds the store and the call.
func (x *call) route() *failure {
	var ok bool
	if x.target, ok = parsePath(x.r.RequestURI); ok {
		if stores := x.server.stores.Load(); stores != nil {
			x.store = (*stores)[x.target.prefix]
		}
	}
	if x.store == nil {
		return refuse(InvalidURIPathException, "no such path")
	}
	return nil
}

// answer takes a routed request to its response.
func (x *call) answer() *failure {
	select {
	case x.server.places <- struct{}{}:
		defer func() { <-x.server.places }()
	default:
		return refuse(ThrottlingException, "too many requests at once")
	}
	if f := x.read(); f != nil {
		return f
	}
	if f := x.authenticate(); f != nil {
		return f
	}
	q, err := DecodeRequest(&x.dec, x.target.action, x.body)
	if err != nil {
		var m *errMessage
		if errors.As(err, &m) && m.unsupported {
			return refuse(UnsupportedOperationException, "%s", m.text)
		}
		return refuse(ValidationException, "%v", err)
	}
	x.request = q
	if x.target.action == Health {
		x.response = x.store.healthStatus(x.server)
		return nil
	}
	rule := x.store.keys[x.target.key]
	if rule == nil {
		return refuse(KeyNotFoundException, "no such external key")
	}
	if which := rule.denies(&q.Call); which != "" {
		f := refuse(AccessDeniedException, "denied by the rule on %s", which)
		f.cause = errors.New("rule: " + which)
		return f
	}
	key, err := x.server.keys.ServedKey(rule.key)
	switch {
	case errors.Is(err, ErrNoKey):
		return &failure{KeyNotFoundException, "the external key does not exist any more", err}
	case err != nil:
		return &failure{InternalException, "the external key cannot be read", err}
	case !key.Served:
		return refuse(InvalidKeyUsageException, "the external key is not a symmetric key of this appliance")
	}
	if key.Admit != nil && !key.Admit() {
		return refuse(ThrottlingException, "the external key is used more often than its quota allows")
	}
	enabled := key.State == "Enabled"
	if x.target.action == Metadata {
		x.response = &Response{KeySpec: SpecAES256, KeyUsage: []string{UsageEncrypt, UsageDecrypt}, KeyStatus: StatusDisabled}
		if enabled {
			x.response.KeyStatus = StatusEnabled
		}
		return nil
	}
	if !enabled {
		return refuse(InvalidStateException, "the external key is %s", key.State)
	}
	if x.target.action == Encrypt {
		x.response, err = key.encrypt(q)
	} else {
		x.response, err = key.decrypt(q)
	}
	if err != nil {
		return &failure{reasonFor(err), "the operation failed", err}
	}
	if key.Used != nil {
		key.Used(x.target.action)
	}
	return nil
}

// read takes the body in, into one buffer that is wiped. A body of unknown
// length gets the largest.
func (x *call) read() *failure {
	n := x.r.ContentLength
	switch {
	case n > MaxBody:
		return refuse(ValidationException, "the body is longer than %d bytes", MaxBody)
	case n < 0:
		n = MaxBody
	}
	x.body = make([]byte, n+1) // one more, to see that there is no more
	have, err := io.ReadFull(x.r.Body, x.body)
	x.body = x.body[:have]
	switch {
	case err == nil:
		return refuse(ValidationException, "the body is longer than %d bytes", n)
	case !errors.Is(err, io.ErrUnexpectedEOF) && !errors.Is(err, io.EOF):
		return &failure{ValidationException, "the body breaks off", err}
	case x.r.ContentLength > int64(have):
		return refuse(ValidationException, "the body is shorter than its Content-Length")
	}
	return nil
}

// authenticate verifies the signature. net/http has trimmed the values of headers
// and unfolded them, as the signature's canonical form does.
func (x *call) authenticate() *failure {
	req := sigv4.Request{Method: []byte(x.r.Method), Path: []byte(x.r.RequestURI), Body: x.body, ID: x.id}
	req.Headers = append(req.Headers, sigv4.Header{Name: []byte("host"), Value: []byte(x.r.Host)})
	length := false
	for name, values := range x.r.Header {
		length = length || name == "Content-Length"
		for _, v := range values {
			req.Headers = append(req.Headers, sigv4.Header{Name: []byte(name), Value: []byte(v)})
		}
	}
	if !length && x.r.ContentLength >= 0 {
		req.Headers = append(req.Headers, sigv4.Header{Name: []byte("content-length"), Value: fmt.Append(nil, x.r.ContentLength)})
	}
	var res sigv4.Result
	if err := x.store.verify.Verify(&req, &res); err != nil {
		return &failure{AuthenticationFailedException, err.Message, errors.New(err.Code)}
	}
	return nil
}

// denies returns what of the rule refuses a call, or "".
func (k *rule) denies(c *Call) string {
	if len(k.accounts) > 0 {
		arn := c.KeyARN
		if arn == "" {
			arn = c.PrincipalARN // the call has no KMS key yet
		}
		if p := strings.SplitN(arn, ":", 6); len(p) < 6 || !slices.Contains(k.accounts, p[4]) {
			return "accounts"
		}
	}
	if len(k.principals) > 0 && !slices.ContainsFunc(k.principals, func(p string) bool {
		if begin, ok := strings.CutSuffix(p, "*"); ok {
			return strings.HasPrefix(c.PrincipalARN, begin)
		}
		return p == c.PrincipalARN
	}) {
		return "principals"
	}
	if len(k.operations) > 0 && !slices.Contains(k.operations, c.Operation) {
		return "operations"
	}
	return ""
}

// healthTime is how long a health check's outcome is given again. The protocol
// allows a minute.
const healthTime = 15 * time.Second

// healthStatus tries the store's key, all the way: a round trip through its
// material. Without a key to try, it says that the appliance answers.
func (st *store) healthStatus(s *Server) *Response {
	st.mu.Lock()
	defer st.mu.Unlock()
	if now := s.clock(); st.status == "" || now.Sub(st.checked) >= healthTime || now.Before(st.checked) {
		st.status, st.checked = st.try(s), now
	}
	return &Response{
		FleetSize: 1, Vendor: "Keymill", Model: "Keymill XKS proxy", Maker: "Keymill",
		Fleet: []Manager{{ID: "keymill", Model: "Keymill", Health: st.status}},
	}
}

func (st *store) try(s *Server) string {
	if st.health == (KeyRef{}) {
		return HealthActive
	}
	key, err := s.keys.ServedKey(st.health)
	if err == nil && (!key.Served || key.State != "Enabled") {
		err = fmt.Errorf("the key is %s", key.State)
	}
	if err == nil {
		_, err = key.encrypt(&Request{Plaintext: make([]byte, 32), Integrity: SHA256})
	}
	switch reason := reasonFor(err); {
	case err == nil:
		return HealthActive
	case errors.Is(err, ErrNoKey), reason == InvalidStateException, key.State != "" && key.State != "Enabled":
		// The key is not usable, which says nothing of the others.
		s.log.Warn("the health check's key cannot be used", "key", st.health.Resource, "region", st.health.Region, "error", err)
		return HealthDegraded
	default:
		s.log.Error("the health check failed", "key", st.health.Resource, "region", st.health.Region, "error", err)
		return HealthUnavailable
	}
}

// log says who asked for what, and what came of it. No plaintext, no body.
func (x *call) log(f *failure, took time.Duration) {
	outcome, level := "ok", slog.LevelInfo
	if f != nil {
		outcome, level = f.reason.String(), slog.LevelWarn
		if f.reason == InternalException {
			level = slog.LevelError
		} else if x.request == nil {
			level = slog.LevelDebug // nobody known to us: anybody can cause it
		}
	}
	x.server.count(x.target.action, outcome)
	ctx := context.Background()
	if !x.server.log.Enabled(ctx, level) {
		return
	}
	attrs := []slog.Attr{
		slog.String("call", x.target.action.String()), slog.String("prefix", x.target.prefix),
		slog.String("external_key_id", x.target.key), slog.String("outcome", outcome),
		slog.Duration("took", took), slog.String("id", x.id), slog.String("remote", x.r.RemoteAddr),
	}
	if x.request != nil {
		c := &x.request.Call
		for _, a := range [...][2]string{
			{"kms_request_id", c.RequestID}, {"kms_operation", c.Operation}, {"principal", c.PrincipalARN}, {"kms_key", c.KeyARN},
			{"source_vpc", c.SourceVPC}, {"source_vpce", c.SourceVPCE}, {"via_service", c.ViaService},
		} {
			if a[1] != "" {
				attrs = append(attrs, slog.String(a[0], a[1]))
			}
		}
	}
	if f != nil {
		attrs = append(attrs, slog.String("message", f.message))
		if f.cause != nil {
			attrs = append(attrs, slog.Any("cause", f.cause))
		}
	}
	x.server.log.LogAttrs(ctx, level, "XKS proxy request", attrs...)
}
