package xks

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"net/netip"
	"os"
	"strings"
	"sync"
	"syscall"
	"time"
)

// Defaults of a [TransportConfig].
const (
	// DefaultBudget is what AWS KMS allows a proxy, all included.
	DefaultBudget = 250 * time.Millisecond

	// DefaultCalls bounds the calls of one key store that are under way at once,
	// and with them its connections: 1,800 calls a second, the quota of a key
	// store, of 100 ms each are 180.
	DefaultCalls = 256

	idleConnection = 60 * time.Second
	maxHeader      = 16 << 10
)

// TransportConfig is what the appliance's operator says about the way to proxies.
// The zero value is usable.
type TransportConfig struct {
	// CAFiles are PEM files of authorities that are trusted besides the system's.
	CAFiles []string

	// Hosts maps a proxy's host name to the HOST:PORT to connect to instead of
	// port 443 of what the name resolves to. The certificate must still be the
	// name's. It may point anywhere: only the operator can say this.
	Hosts map[string]string

	// CertFile and KeyFile are shown to a proxy that asks for a client certificate.
	CertFile, KeyFile string

	Budget time.Duration    // for one call; 0: DefaultBudget
	Calls  int              // at once, of one Client; 0: DefaultCalls
	Clock  func() time.Time // nil: time.Now
	Logger *slog.Logger     // nil: slog.Default()
}

// A Transport is what the clients of all key stores share: connections, trust,
// and the operator's word. It is safe for concurrent use.
type Transport struct {
	// Immutable.
	http   *http.Transport
	budget time.Duration
	calls  int
	clock  func() time.Time
	log    *slog.Logger

	stores sync.Map // id -> *storeMetrics
}

// NewTransport reads the files that c names.
func NewTransport(c TransportConfig) (*Transport, error) {
	t := &Transport{budget: c.Budget, calls: c.Calls, clock: c.Clock, log: c.Logger}
	if t.budget <= 0 {
		t.budget = DefaultBudget
	}
	if t.calls <= 0 {
		t.calls = DefaultCalls
	}
	if t.clock == nil {
		t.clock = time.Now
	}
	if t.log == nil {
		t.log = slog.Default()
	}
	conf := &tls.Config{MinVersion: tls.VersionTLS12, NextProtos: []string{"http/1.1"}}
	if len(c.CAFiles) > 0 {
		pool, err := x509.SystemCertPool()
		if err != nil {
			pool = x509.NewCertPool() // a system without roots has none to add to
		}
		for _, name := range c.CAFiles {
			pem, err := os.ReadFile(name)
			if err != nil {
				return nil, fmt.Errorf("couldn't read the authorities: %w", err)
			}
			if !pool.AppendCertsFromPEM(pem) {
				return nil, fmt.Errorf("%s holds no certificate in PEM", name)
			}
		}
		conf.RootCAs = pool
	}
	if c.CertFile != "" {
		pair, err := tls.LoadX509KeyPair(c.CertFile, c.KeyFile)
		if err != nil {
			return nil, fmt.Errorf("couldn't load the certificate %s with the key %s: %w", c.CertFile, c.KeyFile, err)
		}
		conf.Certificates = []tls.Certificate{pair}
	}
	d, err := newDialer(c.Hosts)
	if err != nil {
		return nil, err
	}
	t.http = &http.Transport{
		DialContext:            d.dial,
		TLSClientConfig:        conf,
		TLSHandshakeTimeout:    4 * t.budget, // of a connection that nobody waits for any more
		MaxIdleConnsPerHost:    t.calls,
		IdleConnTimeout:        idleConnection,
		MaxResponseHeaderBytes: maxHeader,
		DisableCompression:     true, // what comes is bounded as it comes
		// No HTTP/2: see the package comment.
		TLSNextProto: map[string]func(string, *tls.Conn) http.RoundTripper{},
	}
	return t, nil
}

// Close closes the connections that are not in use.
func (t *Transport) Close() { t.http.CloseIdleConnections() }

// A dialer connects to a proxy.
type dialer struct {
	hosts  map[string]string
	public net.Dialer // refuses reserved addresses
	mapped net.Dialer
}

// dialTimeout bounds a connection attempt that no call waits for any more: when
// it succeeds late, the next call has it.
const dialTimeout = 2 * time.Second

func newDialer(hosts map[string]string) (*dialer, error) {
	d := &dialer{hosts: make(map[string]string, len(hosts))}
	for host, addr := range hosts {
		if !validHost(host) {
			return nil, fmt.Errorf("%q is no host name", host)
		}
		if _, port, err := net.SplitHostPort(addr); err != nil || port == "" {
			return nil, fmt.Errorf("%s: %q is no HOST:PORT", host, addr)
		}
		d.hosts[strings.ToLower(host)] = addr
	}
	d.mapped = net.Dialer{Timeout: dialTimeout}
	d.public = net.Dialer{Timeout: dialTimeout, Control: refuseReserved}
	return d, nil
}

func (d *dialer) dial(ctx context.Context, network, addr string) (net.Conn, error) {
	host, _, err := net.SplitHostPort(addr)
	if err != nil {
		return nil, err
	}
	if mapped, ok := d.hosts[strings.ToLower(host)]; ok {
		return d.mapped.DialContext(ctx, network, mapped)
	}
	return d.public.DialContext(ctx, network, addr)
}

var errReserved = errors.New("the host has a reserved address; map it in the appliance's configuration if that is meant")

// refuseReserved runs once the name is resolved, so what it sees is what is
// connected to.
func refuseReserved(_, address string, _ syscall.RawConn) error {
	ap, err := netip.ParseAddrPort(address)
	if err != nil {
		return err
	}
	a := ap.Addr().Unmap()
	if a.IsLoopback() || a.IsUnspecified() || a.IsLinkLocalUnicast() || a.IsMulticast() || a.IsInterfaceLocalMulticast() {
		return NewError(ConnectionRefused, errReserved)
	}
	return nil
}

// validHost tells whether host is a DNS name and not an address.
func validHost(host string) bool {
	if host == "" || len(host) > 253 {
		return false
	}
	if _, err := netip.ParseAddr(host); err == nil {
		return false
	}
	labels := strings.Split(host, ".")
	for _, label := range labels {
		if label == "" || len(label) > 63 || label[0] == '-' || label[len(label)-1] == '-' {
			return false
		}
		for i := range len(label) {
			if !alphanumeric(label[i]) && label[i] != '-' {
				return false
			}
		}
	}
	// Some resolvers take 127.1 and 2130706433 for addresses; no top-level name
	// is made of digits.
	last := labels[len(labels)-1]
	return strings.Trim(last, "0123456789") != ""
}
