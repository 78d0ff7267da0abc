package daemon

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"strings"
	"sync"
	"time"

	"keymill/daemon/xks"
)

// Bounds of the served XKS proxy's listener.
const (
	// maxXKSConnections bounds the connections: KMS keeps some for each of its
	// hosts.
	maxXKSConnections = 4096

	// xksTimeout bounds one request's arrival and one answer's way out. KMS gives
	// up after 250 ms.
	xksTimeout = 10 * time.Second

	// xksDrainTimeout bounds the wait for requests in flight when stopping: they
	// take a few milliseconds, and nobody waits for them longer.
	xksDrainTimeout = 500 * time.Millisecond
)

// validateXKS checks what concerns the served XKS proxy.
func (c *Config) validateXKS(bad func(option, format string, args ...any)) {
	options := []struct{ name, value string }{
		{"xks-credentials", c.XKSCredentials}, {"xks-tls-cert", c.XKSTLSCert}, {"xks-tls-key", c.XKSTLSKey},
		{"xks-client-ca", c.XKSClientCA}, {"xks-client-name", c.XKSClientName},
	}
	if c.XKSListen == "" {
		// xks-credentials alone is of use to keymill xks-config.
		for _, o := range options[1:] {
			if o.value != "" {
				bad(o.name, "set without xks-listen; say where the XKS proxy is served")
			}
		}
		return
	}
	if a, err := parseAddress(c.XKSListen); err != nil {
		bad("xks-listen", "%v", err)
	} else if a.network != "tcp" {
		bad("xks-listen", "%q is no HOST:PORT; AWS KMS speaks TCP", c.XKSListen)
	}
	if (c.XKSListen == c.Listen || c.XKSListen == c.AdminListen) && !strings.HasSuffix(c.XKSListen, ":0") {
		bad("xks-listen", "%s is another listener's address; give it its own", c.XKSListen)
	}
	for _, o := range options[:3] {
		if o.value == "" {
			bad(o.name, "xks-listen is set without it; an XKS proxy needs credentials and TLS")
		}
	}
	if (c.XKSClientCA == "") != (c.XKSClientName == "") {
		bad("xks-client-name", "xks-client-ca and xks-client-name go together: an authority alone vouches for all its other customers too")
	}
}

// An xksProxy is the served XKS proxy: its server and the files behind it.
type xksProxy struct {
	// Immutable.
	server *xks.Server
	certs  *certificates
	file   string

	addr net.Addr // owned by Run until Server.ready is closed, immutable then
}

// newXKSProxy reads the files of the proxy.
func (s *Server) newXKSProxy() (*xksProxy, error) {
	p := &xksProxy{
		server: xks.NewServer(xks.ServerOptions{Keys: servedKeys{s}, Clock: s.env.Clock, Logger: s.log}),
		certs: &certificates{
			certFile: s.cfg.XKSTLSCert, keyFile: s.cfg.XKSTLSKey,
			clientCAFile: s.cfg.XKSClientCA, clientName: s.cfg.XKSClientName,
		},
		file: s.cfg.XKSCredentials,
	}
	return p, p.load()
}

// load puts changed files in force; one that is wrong does not hold up the others.
func (p *xksProxy) load() error {
	var errs [2]error
	if err := p.server.Load(p.file); err != nil {
		errs[0] = fmt.Errorf("xks-credentials: %w", err)
	}
	if err := p.certs.load(); err != nil {
		errs[1] = fmt.Errorf("xks-tls-cert: %w", err)
	}
	return errors.Join(errs[:]...)
}

// servedKeys finds the proxy's keys in the service, which is there before the
// proxy is served.
type servedKeys struct{ s *Server }

func (k servedKeys) ServedKey(ref xks.KeyRef) (xks.ServedKey, error) {
	return k.s.service.servedKey(ref)
}

// XKSAddr is the address the XKS proxy is served on, once ready; nil when none is.
func (s *Server) XKSAddr() net.Addr {
	if s.xks == nil {
		return nil
	}
	return s.xks.addr
}

// serveXKS serves the XKS proxy on ln in the background. What it returns stops
// that and reports whether no request is left.
func (s *Server) serveXKS(ln net.Listener) (stop func() bool) {
	srv := &http.Server{
		Handler:           s.xks.server,
		ReadHeaderTimeout: xksTimeout,
		ReadTimeout:       xksTimeout,
		WriteTimeout:      xksTimeout,
		IdleTimeout:       idleTimeout,
		MaxHeaderBytes:    maxHeader,
		ErrorLog:          slog.NewLogLogger(s.log.Handler(), slog.LevelDebug),
	}
	ln = s.xks.certs.listener(newBounded(ln, maxXKSConnections))
	go func() {
		if err := srv.Serve(ln); !errors.Is(err, http.ErrServerClosed) {
			s.fail(fmt.Errorf("xks-listen: %w", err))
		}
	}()
	s.log.Info("XKS proxy ready", "listen", s.xks.addr.String())
	return func() bool {
		wait, cancel := context.WithTimeout(context.Background(), xksDrainTimeout)
		defer cancel()
		err := srv.Shutdown(wait)
		srv.Close()
		return err == nil
	}
}

// A bounded listener accepts so many connections at once and closes what comes
// beyond them, rather than let it wait: KMS tries again elsewhere.
type bounded struct {
	net.Listener
	places chan struct{}
}

func newBounded(ln net.Listener, n int) *bounded { return &bounded{ln, make(chan struct{}, n)} }

func (b *bounded) Accept() (net.Conn, error) {
	for {
		conn, err := b.Listener.Accept()
		if err != nil {
			return nil, err
		}
		select {
		case b.places <- struct{}{}:
			return &boundedConn{Conn: conn, free: sync.OnceFunc(func() { <-b.places })}, nil
		default:
			conn.Close()
		}
	}
}

type boundedConn struct {
	net.Conn
	free func()
}

func (c *boundedConn) Close() error {
	defer c.free()
	return c.Conn.Close()
}
