package daemon

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"runtime/debug"
	"sync/atomic"
	"time"

	"github.com/VictoriaMetrics/metrics"
	"github.com/google/uuid"
	"github.com/valyala/fasthttp"

	"keymill/daemon/quota"
	"keymill/daemon/reactor"
	"keymill/daemon/wire"
	"keymill/daemon/xks"
	"keymill/keystore"
)

// Bounds of the HTTP server, each with the reason for its value.
const (
	// maxHeader bounds a request's head. A signature takes under 1 KiB, a
	// session token up to some 4 KiB.
	maxHeader = 16 << 10

	// maxConnections bounds the goroutines and buffers that connections hold:
	// some 40 KiB each while a request waits, so 640 MiB at worst, and next to
	// nothing between requests.
	maxConnections = 16 << 10

	// readTimeout bounds one request's arrival, writeTimeout one answer's way
	// out, idleTimeout the pause between two requests. AWS SDKs give up an idle
	// connection after 90 s at the latest, so the client closes first.
	readTimeout  = 30 * time.Second
	writeTimeout = 30 * time.Second
	idleTimeout  = 120 * time.Second

	// drainTimeout bounds what is waited for requests in flight when stopping.
	// The contract is 10 s for the whole stop; the rest is the admin
	// listener's and the store's.
	drainTimeout      = 7 * time.Second
	adminDrainTimeout = time.Second
)

// Environment is what a [Server] takes from the process around it. The zero
// value is the process's own.
type Environment struct {
	// Logger is where the daemon reports; nil is slog.Default().
	Logger *slog.Logger

	// Stdout gets the command to paste, once the daemon serves; nil is nowhere.
	Stdout io.Writer

	// Clock is the time of day; nil is time.Now.
	Clock func() time.Time

	// Getenv finds the preset root access key; nil is os.Getenv.
	Getenv func(string) string

	// HSMChild returns the command that runs the PKCS#11 module; nil loads the
	// module into this process. See hsm.PKCS11Config.
	HSMChild func() *exec.Cmd
}

// Server is one daemon: listeners, root of trust, store and the KMS service.
type Server struct {
	// Immutable after New.
	cfg     Config
	env     Environment
	log     *slog.Logger
	quotas  *quota.Profile
	tls     *certificates // nil without TLS
	xks     *xksProxy     // nil when none is served
	metrics *metrics.Set
	open    func(context.Context) (*service, error) // replaced in tests
	ready   chan struct{}
	failed  chan error // what ends Run before its context does

	// Owned by Run until ready is closed, immutable then.
	api, admin net.Addr
	front      *reactor.Server  // of the API's connections
	http       *fasthttp.Server // of those of them that are not for front
	service    *service

	bodies largeBodies // safe for concurrent use

	// Atomic.
	serving atomic.Bool
	ran     atomic.Bool
}

// service is what a request ends in, and what has to be closed after it.
type service struct {
	opened       *Opened
	handler      fasthttp.RequestHandler
	backup       func(ctx context.Context, dir string) error
	writeMetrics func(io.Writer)
	confirmClock func() (now time.Time, suspended bool)
	keyUsage     func(arn string) (u *keystore.Usage, since time.Time, err error)
	servedKey    func(xks.KeyRef) (xks.ServedKey, error)
	close        func() error // after handler and backup have returned
}

// New checks cfg and loads the quota profile and, with TLS, the certificate. It
// opens nothing else.
func New(cfg Config, env Environment) (*Server, error) {
	if err := cfg.Validate(); err != nil {
		return nil, err
	}
	for _, path := range []*string{&cfg.Data, &cfg.TLSCert} { // both are printed for use elsewhere
		if *path == "" {
			continue
		}
		abs, err := filepath.Abs(*path)
		if err != nil {
			return nil, err
		}
		*path = abs
	}
	if env.Logger == nil {
		env.Logger = slog.Default()
	}
	if env.Stdout == nil {
		env.Stdout = io.Discard
	}
	if env.Clock == nil {
		env.Clock = time.Now
	}
	if env.Getenv == nil {
		env.Getenv = os.Getenv
	}
	s := &Server{
		cfg:     cfg,
		env:     env,
		log:     env.Logger,
		metrics: metrics.NewSet(),
		ready:   make(chan struct{}),
		failed:  make(chan error, 1),
	}
	s.bodies.now = time.Now
	s.open = s.openService
	var err error
	if s.quotas, err = quota.Load(cfg.QuotaProfile); err != nil {
		return nil, err
	}
	if cfg.TLSCert != "" {
		s.tls = &certificates{certFile: cfg.TLSCert, keyFile: cfg.TLSKey, clientCAFile: cfg.TLSClientCA}
		if err := s.tls.load(); err != nil {
			return nil, err
		}
	}
	if cfg.XKSListen != "" {
		if s.xks, err = s.newXKSProxy(); err != nil {
			return nil, err
		}
	}
	return s, nil
}

// Ready is closed once the daemon serves.
func (s *Server) Ready() <-chan struct{} { return s.ready }

// Addr is the address the API is served on, once ready.
func (s *Server) Addr() net.Addr { return s.api }

// AdminAddr is the admin listener's address, once ready.
func (s *Server) AdminAddr() net.Addr { return s.admin }

// Endpoint is the URL of the API, once ready, or unix:PATH.
func (s *Server) Endpoint() string {
	if s.api.Network() == "unix" {
		return "unix:" + s.api.String()
	}
	scheme := "http://"
	if s.tls != nil {
		scheme = "https://"
	}
	host, port, _ := net.SplitHostPort(s.api.String())
	if ip := net.ParseIP(host); ip == nil || ip.IsUnspecified() {
		host = "127.0.0.1"
	}
	return scheme + net.JoinHostPort(host, port)
}

// Reload reads the TLS files again, and those of the served XKS proxy. What
// something is wrong with stays as it is in force, and the error says why.
func (s *Server) Reload() error {
	if s.tls == nil && s.xks == nil {
		return errors.New("nothing to reload: TLS is off")
	}
	var errs [2]error
	if s.tls != nil {
		errs[0] = s.tls.load()
	}
	if s.xks != nil {
		errs[1] = s.xks.load()
	}
	return errors.Join(errs[:]...)
}

// Run serves until ctx ends, then stops accepting, waits for what is in flight,
// closes the store and returns nil. It may be called once.
//
// The addresses are bound before the store is opened, so that a wrong address
// changes nothing; the admin listener answers from then on, and /readyz turns to
// 200 when requests are served.
func (s *Server) Run(ctx context.Context) (err error) {
	if !s.ran.CompareAndSwap(false, true) {
		return errors.New("a server runs once")
	}
	apiLn, err := s.listen("listen", s.cfg.Listen, s.tls != nil || s.cfg.InsecureHTTP)
	if err != nil {
		return err
	}
	defer apiLn.Close()
	adminLn, err := s.listen("admin-listen", s.cfg.AdminListen, s.cfg.InsecureAdmin)
	if err != nil {
		return err
	}
	var xksLn net.Listener
	if s.xks != nil {
		if xksLn, err = s.listen("xks-listen", s.cfg.XKSListen, true); err != nil {
			return err
		}
		defer xksLn.Close()
		s.xks.addr = xksLn.Addr()
	}
	s.api, s.admin = apiLn.Addr(), adminLn.Addr()
	stopAdmin := s.serveAdmin(ctx, adminLn, s.adminMux())
	defer stopAdmin()

	s.service, err = s.open(ctx)
	if err != nil {
		return err
	}
	quiet := true // nobody uses the store any more
	defer func() {
		if !quiet {
			// Everything acknowledged is on disk; closing the store under
			// a request that still runs could only do harm.
			s.log.Warn("stopped with requests in flight; the store is left as it is")
			return
		}
		if cerr := s.service.close(); cerr != nil {
			err = errors.Join(err, fmt.Errorf("couldn't close: %w", cerr))
		}
	}()

	// The store's lock is ours by now, so a control socket found in place is
	// a dead daemon's.
	controlLn, err := listenUnix(filepath.Join(s.cfg.Data, controlName))
	if err != nil {
		return fmt.Errorf("control socket: %w", err)
	}
	stopControl := s.serveAdmin(ctx, controlLn, s.controlMux())
	defer func() { quiet = stopControl() && quiet }()

	if s.xks != nil {
		stopXKS := s.serveXKS(xksLn)
		defer func() { quiet = stopXKS() && quiet }()
	}
	if err := s.serveAPI(apiLn); err != nil {
		return err
	}
	s.announce()

	select {
	case err = <-s.failed:
	case <-ctx.Done():
		select {
		case err = <-s.failed: // the cause, perhaps, of being stopped
		default:
		}
	}
	s.serving.Store(false)
	s.log.Info("stopping", "connections", s.front.Open())
	drain, cancel := context.WithTimeout(context.Background(), drainTimeout)
	defer cancel()
	// Each closes its listener, then idle connections, and waits for the others.
	quiet = errors.Join(s.front.Shutdown(drain), s.http.ShutdownWithContext(drain)) == nil
	return err
}

// fail ends Run with err; the first failure counts.
func (s *Server) fail(err error) {
	select {
	case s.failed <- err:
	default:
	}
}

// listen binds one of the two configured addresses.
func (s *Server) listen(option, addr string, remote bool) (net.Listener, error) {
	a, err := parseAddress(addr)
	if err == nil {
		var ln net.Listener
		if ln, err = listen(a, remote); err == nil {
			return ln, nil
		}
	}
	return nil, fmt.Errorf("%s: %w", option, err)
}

// announce says that requests are served, in the log and to whoever started us.
func (s *Server) announce() {
	s.serving.Store(true)
	close(s.ready)
	s.log.Info("ready", "endpoint", s.Endpoint(), "listen", s.api.String(), "admin", s.admin.String(), "data", s.cfg.Data)
	if s.api.Network() == "unix" {
		return // the AWS tools cannot reach it
	}
	ca := ""
	if s.tls != nil {
		ca = "AWS_CA_BUNDLE=" + shellQuote(s.cfg.TLSCert) + " "
	}
	fmt.Fprintf(s.env.Stdout, "\nTry it:\n\n  %sAWS_SHARED_CREDENTIALS_FILE=%s aws --endpoint-url %s --region %s kms create-key\n\n",
		ca, shellQuote(s.credentialsPath()), s.Endpoint(), s.cfg.Region)
}

// serveAdmin serves mux on ln in the background. What it returns stops that and
// reports whether no request is left; requests see ctx end.
func (s *Server) serveAdmin(ctx context.Context, ln net.Listener, mux *http.ServeMux) (stop func() bool) {
	srv := &http.Server{
		Handler:           mux,
		ReadHeaderTimeout: adminTimeout,
		IdleTimeout:       adminTimeout,
		MaxHeaderBytes:    maxHeader,
		ErrorLog:          slog.NewLogLogger(s.log.Handler(), slog.LevelDebug),
		BaseContext:       func(net.Listener) context.Context { return ctx },
	}
	go func() {
		if err := srv.Serve(ln); !errors.Is(err, http.ErrServerClosed) {
			s.fail(fmt.Errorf("admin listener: %w", err))
		}
	}()
	return func() bool {
		wait, cancel := context.WithTimeout(context.Background(), adminDrainTimeout)
		defer cancel()
		err := srv.Shutdown(wait)
		srv.Close()
		return err == nil
	}
}

// serveAPI serves the API on ln in the background.
func (s *Server) serveAPI(ln net.Listener) (err error) {
	o := reactor.Options{
		Handler:      s.guarded(s.service.handler),
		MaxConns:     maxConnections,
		FirstTimeout: readTimeout,
		IdleTimeout:  idleTimeout,
		WriteTimeout: writeTimeout,
		Logger:       s.log,
	}
	if s.tls != nil {
		o.TLS = s.tls.config()
	}
	if s.front, err = reactor.New(ln, o); err != nil {
		return err
	}
	s.metrics.NewGauge("keymill_http_connections", func() float64 { return float64(s.front.Open()) })
	s.metrics.NewGauge("keymill_http_connections_refused_total", func() float64 { return float64(s.front.Refused()) })
	s.http = s.newHTTPServer(o.Handler)
	for _, serve := range []func() error{s.front.Serve, func() error { return s.http.Serve(s.front.Others()) }} {
		go func() {
			if err := serve(); err != nil {
				s.fail(fmt.Errorf("listen: %w", err))
			}
		}()
	}
	return nil
}

// guarded returns the handler of the API's requests around next.
func (s *Server) guarded(next fasthttp.RequestHandler) fasthttp.RequestHandler {
	panics := s.metrics.NewCounter("keymill_http_panics_total")
	return func(ctx *fasthttp.RequestCtx) {
		// A bug that one request meets must not end the others.
		defer func() {
			if v := recover(); v != nil {
				panics.Inc()
				s.recovered(ctx, v)
			}
		}()
		defer s.bodies.release(&ctx.Request)
		next(ctx)
	}
}

// newHTTPServer returns the server of what is not for the reactor: a goroutine for
// each connection.
func (s *Server) newHTTPServer(handler fasthttp.RequestHandler) *fasthttp.Server {
	return &fasthttp.Server{
		Handler:            handler,
		HeaderReceived:     s.bodies.configure,
		ErrorHandler:       s.refuse,
		Logger:             httpLog{s.log},
		Concurrency:        maxConnections,
		ReadBufferSize:     maxHeader,
		MaxRequestBodySize: wire.MaxBody,
		ReadTimeout:        readTimeout,
		WriteTimeout:       writeTimeout,
		IdleTimeout:        idleTimeout,
		CloseOnShutdown:    true,

		// The signature covers names and values as they were sent.
		DisableHeaderNamesNormalizing: true,
		DisablePreParseMultipartForm:  true,
		NoDefaultServerHeader:         true,
		NoDefaultContentType:          true,

		// fasthttp would quote the offending head in its message.
		SecureErrorLogMessage: true,
	}
}

// recovered answers for a handler that panicked. The value is not shown to the
// client; the log has it with the stack, which holds addresses and no contents.
func (s *Server) recovered(ctx *fasthttp.RequestCtx, v any) {
	id := uuid.NewString()
	s.log.Error("a request panicked", "request_id", id, "panic", fmt.Sprint(v), "stack", string(debug.Stack()))
	ctx.Response.Reset()
	writeError(ctx, id, wire.ErrorText(wire.KMSInternalException, "The request was rejected because an internal exception occurred."))
	ctx.SetConnectionClose()
}

// httpLog sends fasthttp's own lines (bad handshakes, resets, full
// concurrency) to the log; they are about clients, not about us.
type httpLog struct{ log *slog.Logger }

func (l httpLog) Printf(format string, args ...any) {
	l.log.Debug("http", "message", fmt.Sprintf(format, args...))
}
