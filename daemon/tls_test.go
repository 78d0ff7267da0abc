package daemon

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"math/big"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// authority makes certificates for tests.
type authority struct {
	t    *testing.T
	cert *x509.Certificate
	key  *ecdsa.PrivateKey
	n    int64
}

func newAuthority(t *testing.T) *authority {
	a := &authority{t: t}
	a.cert, a.key = a.make(&x509.Certificate{IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign})
	return a
}

func (a *authority) make(template *x509.Certificate) (*x509.Certificate, *ecdsa.PrivateKey) {
	a.t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		a.t.Fatal(err)
	}
	a.n++
	template.SerialNumber = big.NewInt(a.n)
	if template.Subject.CommonName == "" {
		template.Subject = pkix.Name{CommonName: "test"}
	}
	template.NotBefore, template.NotAfter = time.Now().Add(-time.Hour), time.Now().Add(time.Hour)
	parent, signer := template, key
	if a.cert != nil {
		parent, signer = a.cert, a.key
	}
	der, err := x509.CreateCertificate(rand.Reader, template, parent, &key.PublicKey, signer)
	if err != nil {
		a.t.Fatal(err)
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		a.t.Fatal(err)
	}
	return cert, key
}

// pair writes a fresh certificate for 127.0.0.1 and its key.
func (a *authority) pair(certFile, keyFile string) *x509.Certificate {
	a.t.Helper()
	cert, key := a.make(&x509.Certificate{
		IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)},
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth},
	})
	der, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		a.t.Fatal(err)
	}
	writePEM(a.t, certFile, "CERTIFICATE", cert.Raw)
	writePEM(a.t, keyFile, "PRIVATE KEY", der)
	return cert
}

func writePEM(t *testing.T, path, kind string, der []byte) {
	t.Helper()
	if err := os.WriteFile(path, pem.EncodeToMemory(&pem.Block{Type: kind, Bytes: der}), 0o600); err != nil {
		t.Fatal(err)
	}
}

func TestTLS(t *testing.T) {
	ca := newAuthority(t)
	cfg := freePorts(t)
	dir := t.TempDir()
	cfg.TLSCert, cfg.TLSKey = filepath.Join(dir, "cert.pem"), filepath.Join(dir, "key.pem")
	first := ca.pair(cfg.TLSCert, cfg.TLSKey)
	s := start(t, cfg, serving(ok))
	if !strings.HasPrefix(s.Endpoint(), "https://127.0.0.1:") {
		t.Errorf("endpoint %s", s.Endpoint())
	}

	roots := x509.NewCertPool()
	roots.AddCert(ca.cert)
	dial := func(conf *tls.Config) (tls.ConnectionState, error) {
		t.Helper()
		conf.RootCAs = roots
		conn, err := tls.Dial("tcp", s.Addr().String(), conf)
		if err != nil {
			return tls.ConnectionState{}, err
		}
		defer conn.Close()
		return conn.ConnectionState(), conn.Handshake()
	}

	state, err := dial(&tls.Config{})
	if err != nil {
		t.Fatal(err)
	}
	if state.Version != tls.VersionTLS13 || state.CurveID != tls.X25519MLKEM768 {
		t.Errorf("version %s, key exchange %s; want TLS 1.3 with X25519MLKEM768", tls.VersionName(state.Version), state.CurveID)
	}
	if state, err := dial(&tls.Config{MaxVersion: tls.VersionTLS12}); err != nil || state.Version != tls.VersionTLS12 {
		t.Errorf("TLS 1.2: %v", err)
	}
	if _, err := dial(&tls.Config{MinVersion: tls.VersionTLS10, MaxVersion: tls.VersionTLS11}); err == nil {
		t.Error("TLS 1.1 was accepted")
	}

	// A new pair is served after Reload, to new connections.
	second := ca.pair(cfg.TLSCert, cfg.TLSKey)
	serves := func(want *x509.Certificate, when string) {
		t.Helper()
		state, err := dial(&tls.Config{})
		if err != nil {
			t.Fatalf("%s: %v", when, err)
		}
		if got := state.PeerCertificates[0].SerialNumber; got.Cmp(want.SerialNumber) != 0 {
			t.Errorf("%s: certificate %v, want %v", when, got, want.SerialNumber)
		}
	}
	serves(first, "before the reload")
	if err := s.Reload(); err != nil {
		t.Fatal(err)
	}
	serves(second, "after the reload")

	// A broken pair leaves the one in force, and the error says what is wrong.
	ca.pair(filepath.Join(dir, "other.pem"), cfg.TLSKey)
	if err := s.Reload(); err == nil || !strings.Contains(err.Error(), cfg.TLSCert) {
		t.Errorf("a certificate with another's key: %v", err)
	}
	serves(second, "after a mismatched pair")
	if err := os.WriteFile(cfg.TLSCert, []byte("junk"), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := s.Reload(); err == nil {
		t.Error("junk was accepted")
	}
	serves(second, "after junk")
}

func TestTLSClientCertificates(t *testing.T) {
	ca, stranger := newAuthority(t), newAuthority(t)
	cfg := freePorts(t)
	dir := t.TempDir()
	file := func(name string) string { return filepath.Join(dir, name) }
	cfg.TLSCert, cfg.TLSKey, cfg.TLSClientCA = file("cert.pem"), file("key.pem"), file("ca.pem")
	ca.pair(cfg.TLSCert, cfg.TLSKey)
	writePEM(t, cfg.TLSClientCA, "CERTIFICATE", ca.cert.Raw)
	s := start(t, cfg, serving(ok))

	ca.pair(file("client.pem"), file("client-key.pem"))
	stranger.pair(file("stranger.pem"), file("stranger-key.pem"))
	roots := x509.NewCertPool()
	roots.AddCert(ca.cert)
	get := func(name string) error {
		conf := &tls.Config{RootCAs: roots}
		if name != "" {
			pair, err := tls.LoadX509KeyPair(file(name+".pem"), file(name+"-key.pem"))
			if err != nil {
				t.Fatal(err)
			}
			conf.Certificates = []tls.Certificate{pair}
		}
		conn, err := tls.Dial("tcp", s.Addr().String(), conf)
		if err != nil {
			return err
		}
		defer conn.Close()
		if _, err := conn.Write([]byte("POST / HTTP/1.1\r\nHost: k\r\nContent-Length: 0\r\n\r\n")); err != nil {
			return err
		}
		_, err = conn.Read(make([]byte, 1)) // TLS 1.3 tells a client no sooner
		return err
	}
	if err := get("client"); err != nil {
		t.Errorf("a client of our authority: %v", err)
	}
	if err := get(""); err == nil {
		t.Error("a client without a certificate was served")
	}
	if err := get("stranger"); err == nil {
		t.Error("a client of another authority was served")
	}

	if err := os.WriteFile(cfg.TLSClientCA, []byte("junk"), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := s.Reload(); err == nil || !strings.Contains(err.Error(), cfg.TLSClientCA) {
		t.Errorf("a broken authority file: %v", err)
	}
	if err := get(""); err == nil {
		t.Error("a failed reload dropped the demand for a certificate")
	}
}

func TestNewRefusesBrokenTLS(t *testing.T) {
	cfg := valid(t.TempDir())
	cfg.TLSCert, cfg.TLSKey = filepath.Join(cfg.Data, "missing.pem"), filepath.Join(cfg.Data, "missing-key.pem")
	if _, err := New(cfg, Environment{}); err == nil || !strings.Contains(err.Error(), "missing.pem") {
		t.Errorf("error %v", err)
	}
	s, err := New(valid(t.TempDir()), Environment{})
	if err != nil {
		t.Fatal(err)
	}
	if err := s.Reload(); err == nil {
		t.Error("reloaded without TLS")
	}
}
