package daemon

import (
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"net"
	"os"
	"sync/atomic"
	"time"
)

// certificates holds the TLS configuration in force. A handshake takes whatever
// is current when it begins; connections that stand are left alone.
type certificates struct {
	// Immutable.
	certFile, keyFile, clientCAFile string
	clientName                      string // common name that a client's certificate must have; "" is any

	// Atomic: replaced as a whole by load.
	current atomic.Pointer[tls.Config]
}

var errClientName = errors.New("the client's certificate is for another name")

// load reads the files and puts them in force together. When anything is wrong
// with any of them, what was in force stays.
//
// Key exchange and cipher suites are Go's defaults: TLS 1.3 with the hybrid
// X25519MLKEM768 where the client offers it, forward secrecy for all.
func (c *certificates) load() error {
	pair, err := tls.LoadX509KeyPair(c.certFile, c.keyFile)
	if err != nil {
		return fmt.Errorf("couldn't load the certificate %s with the key %s: %w", c.certFile, c.keyFile, err)
	}
	conf := &tls.Config{
		Certificates: []tls.Certificate{pair},
		MinVersion:   tls.VersionTLS12,
		NextProtos:   []string{"http/1.1"},
	}
	if c.clientCAFile != "" {
		pem, err := os.ReadFile(c.clientCAFile)
		if err != nil {
			return fmt.Errorf("couldn't read the client authorities: %w", err)
		}
		conf.ClientCAs = x509.NewCertPool()
		if !conf.ClientCAs.AppendCertsFromPEM(pem) {
			return fmt.Errorf("%s holds no certificate in PEM", c.clientCAFile)
		}
		conf.ClientAuth = tls.RequireAndVerifyClientCert
	}
	if c.clientName != "" {
		// Runs for resumed connections too.
		conf.VerifyConnection = func(state tls.ConnectionState) error {
			if len(state.PeerCertificates) == 0 || state.PeerCertificates[0].Subject.CommonName != c.clientName {
				return errClientName
			}
			return nil
		}
	}
	c.current.Store(conf)
	return nil
}

// expiry returns the end of the current certificate's validity.
func (c *certificates) expiry() time.Time {
	conf := c.current.Load()
	if conf == nil || conf.Certificates[0].Leaf == nil {
		return time.Time{}
	}
	return conf.Certificates[0].Leaf.NotAfter
}

// listener serves TLS on ln.
func (c *certificates) listener(ln net.Listener) net.Listener { return tls.NewListener(ln, c.config()) }

// config returns a configuration that follows what is in force.
func (c *certificates) config() *tls.Config {
	return &tls.Config{
		MinVersion: tls.VersionTLS12,
		GetConfigForClient: func(*tls.ClientHelloInfo) (*tls.Config, error) {
			conf := c.current.Load()
			if conf == nil {
				return nil, errors.New("no certificate is loaded")
			}
			return conf, nil
		},
	}
}
