package daemon

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"

	"keymill/daemon/kms"
	"keymill/engine"
)

// Defaults of a [Config], each with the reason for its value.
const (
	// DefaultListen is loopback, so that a first start is reachable by nobody
	// else; the port is one no registered service uses.
	DefaultListen = "127.0.0.1:4599"

	// DefaultAdminListen is loopback too: the listener has no authentication.
	DefaultAdminListen = "127.0.0.1:4598"

	// DefaultRegion is the region AWS tools fall back to most often.
	DefaultRegion = "us-east-1"

	// DefaultAccount can be nobody's account at AWS, so that an ARN of this
	// daemon is never mistaken for a real one.
	DefaultAccount = "000000000000"

	// DefaultQuotaProfile is AWS's table, so that a client that behaves here
	// behaves there.
	DefaultQuotaProfile = "aws"

	// DefaultLogLevel shows what an operator has to know and no request.
	DefaultLogLevel = "info"

	// DefaultLogFormat is the one people read.
	DefaultLogFormat = "text"

	// maxHeavyWorkers bounds a typing mistake: each worker is a thread, and more
	// than there are processors only share these out differently.
	maxHeavyWorkers = 1024

	// defaultDataName is the data directory's name in the user's home.
	defaultDataName = ".keymill"
)

// AllRegions, alone in [Config.Regions], serves every region.
const AllRegions = kms.AllRegions

// Config is what a daemon is told. [DefaultConfig] gives the values that hold
// when nobody says otherwise; the zero value is refused by [Config.Validate].
// Every field is also an [Option]: a flag, a key of the configuration file and
// an environment variable of the same name.
type Config struct {
	// Listen is where the KMS API is served: HOST:PORT or unix:PATH.
	Listen string

	// Data is the data directory: store, credentials, control socket and, with
	// the software root, the root key. It is made (0700) when it is missing.
	Data string

	// Region is the region a request without one belongs to, and the one the
	// printed command names.
	Region string

	// Regions lists further regions to serve; AllRegions alone serves all.
	Regions []string

	// Account is the 12-digit account number of the root principal.
	Account string

	// AdminListen is where health, readiness and metrics are served, in plain
	// HTTP and without authentication: HOST:PORT or unix:PATH.
	AdminListen string

	// HSMModule is the PKCS#11 module (a shared library) that holds the root
	// of trust. Empty selects the software root.
	HSMModule string

	// HSMToken is the label of the token to use in that module.
	HSMToken string

	// HSMPINFile is a file that holds the token's user PIN.
	HSMPINFile string

	// HSMInProcess loads the module into the daemon instead of a process of its
	// own. It exists for comparison: a crash of the module ends the daemon.
	HSMInProcess bool

	// ForbidProvider lists cryptography providers that must not be used, by the
	// names that keymill doctor --providers prints.
	ForbidProvider []string

	// QuotaProfile is "aws", "none" or a file of quotas; see package quota.
	QuotaProfile string

	// KeyStores is a file of devices for custom key stores; see keystores.go.
	KeyStores string

	// TLSCert and TLSKey are PEM files; both or neither. They are read again
	// on SIGHUP.
	TLSCert, TLSKey string

	// TLSClientCA is a PEM file of authorities. When it is set, a client must
	// show a certificate that one of them has signed.
	TLSClientCA string

	// XKSListen is where the XKS proxy is served, HOST:PORT; empty is nowhere.
	// It has TLS always, its own certificate, and nothing in common with Listen.
	XKSListen string

	// XKSCredentials is the file with the credentials and keys of the served
	// proxy; see package xks. It is read again on SIGHUP.
	XKSCredentials string

	// XKSTLSCert and XKSTLSKey are the proxy's certificate and key in PEM. They
	// are read again on SIGHUP.
	XKSTLSCert, XKSTLSKey string

	// XKSClientCA is a PEM file of authorities. When it is set, whoever calls the
	// proxy must show a certificate that one of them has signed for the common
	// name XKSClientName; AWS KMS has cks.kms.<region>.amazonaws.com.
	XKSClientCA   string
	XKSClientName string

	// InsecureHTTP allows the API in plain HTTP on an address that is neither
	// loopback nor a Unix socket.
	InsecureHTTP bool

	// InsecureAdmin allows the admin listener on an address that is neither
	// loopback nor a Unix socket.
	InsecureAdmin bool

	// HeavyWorkers is the number of threads for work of some 100 us and more,
	// such as RSA signatures; 0 is one for each core that the process may use.
	HeavyWorkers int

	// PinWorkers binds each of these threads to a processor.
	PinWorkers bool

	// LogLevel is debug, info, warn or error.
	LogLevel string

	// LogFormat is text or json.
	LogFormat string
}

// DefaultConfig returns the configuration of a daemon that was told nothing.
// Its data directory is .keymill in the user's home, and empty when the user
// has none: [Config.Validate] then asks for it.
func DefaultConfig() Config {
	c := Config{
		Listen:       DefaultListen,
		Region:       DefaultRegion,
		Account:      DefaultAccount,
		AdminListen:  DefaultAdminListen,
		QuotaProfile: DefaultQuotaProfile,
		PinWorkers:   true,
		LogLevel:     DefaultLogLevel,
		LogFormat:    DefaultLogFormat,
	}
	if home, err := os.UserHomeDir(); err == nil && filepath.IsAbs(home) {
		c.Data = filepath.Join(home, defaultDataName)
	}
	return c
}

var accountForm = regexp.MustCompile(`^[0-9]{12}$`)

// Validate reports everything that is wrong with c, joined; each error names
// the option and says what to do. It looks at no file and binds no address.
func (c *Config) Validate() error {
	var errs []error
	bad := func(option, format string, args ...any) {
		errs = append(errs, fmt.Errorf("%s: %s", option, fmt.Sprintf(format, args...)))
	}

	if c.Data == "" {
		bad("data", "no data directory; give one, for example --data /var/lib/keymill")
	}
	c.validateAddresses(bad)

	if c.Region == AllRegions {
		bad("region", "%q is no region; name one here and put \"all\" in regions", c.Region)
	} else if !validRegion(c.Region) {
		bad("region", "%q is no region name; use one such as us-east-1", c.Region)
	}
	if !slices.Equal(c.Regions, []string{AllRegions}) {
		for _, r := range c.Regions {
			if r == AllRegions {
				bad("regions", "%q stands alone; drop the other regions, or drop it", AllRegions)
			} else if !validRegion(r) {
				bad("regions", "%q is no region name; use names such as us-east-1, or \"all\"", r)
			}
		}
	}
	if !accountForm.MatchString(c.Account) {
		bad("account", "%q is no account number; use exactly 12 digits (in quotes in a YAML file)", c.Account)
	}

	if c.HSMModule != "" {
		if c.HSMToken == "" {
			bad("hsm-token", "hsm-module is set without it; give the token's label")
		}
		if c.HSMPINFile == "" {
			bad("hsm-pin-file", "hsm-module is set without it; give a file that holds the token's user PIN")
		}
	} else {
		if c.HSMToken != "" {
			bad("hsm-token", "set without hsm-module; give the PKCS#11 module too, or leave it out for the software root")
		}
		if c.HSMPINFile != "" {
			bad("hsm-pin-file", "set without hsm-module; give the PKCS#11 module too, or leave it out for the software root")
		}
	}

	if err := engine.CheckForbid(c.ForbidProvider); err != nil {
		bad("forbid-provider", "%v", err)
	}
	if c.QuotaProfile == "" {
		bad("quota-profile", "empty; use aws, none or a file of quotas")
	}
	if c.HeavyWorkers < 0 || c.HeavyWorkers > maxHeavyWorkers {
		bad("heavy-workers", "%d is not in 0 to %d; 0 is one for each core", c.HeavyWorkers, maxHeavyWorkers)
	}
	if !slices.Contains([]string{"debug", "info", "warn", "error"}, c.LogLevel) {
		bad("log-level", "%q is no level; use debug, info, warn or error", c.LogLevel)
	}
	if !slices.Contains([]string{"text", "json"}, c.LogFormat) {
		bad("log-format", "%q is no format; use text or json", c.LogFormat)
	}
	return errors.Join(errs...)
}

func (c *Config) validateAddresses(bad func(option, format string, args ...any)) {
	switch {
	case c.TLSCert != "" && c.TLSKey == "":
		bad("tls-key", "tls-cert is set without it; give the certificate's private key")
	case c.TLSCert == "" && c.TLSKey != "":
		bad("tls-cert", "tls-key is set without it; give the certificate")
	case c.TLSCert == "" && c.TLSClientCA != "":
		bad("tls-client-ca", "client certificates need TLS; give tls-cert and tls-key too")
	}

	if a, err := parseAddress(c.Listen); err != nil {
		bad("listen", "%v", err)
	} else if !a.local() && c.TLSCert == "" && !c.InsecureHTTP {
		bad("listen", "%s is not loopback and TLS is off; give tls-cert and tls-key, listen on 127.0.0.1 or unix:PATH, or set insecure-http to serve requests and keys in the clear", c.Listen)
	}
	if a, err := parseAddress(c.AdminListen); err != nil {
		bad("admin-listen", "%v", err)
	} else if !a.local() && !c.InsecureAdmin {
		bad("admin-listen", "%s is not loopback and the admin listener has neither TLS nor authentication; listen on 127.0.0.1 or unix:PATH, or set insecure-admin", c.AdminListen)
	}
	c.validateXKS(bad)
	if c.Listen == c.AdminListen && !strings.HasSuffix(c.Listen, ":0") {
		bad("admin-listen", "the same address as listen (%s); give it its own", c.Listen)
	}
}

func validRegion(name string) bool {
	_, err := kms.NewRegions(name, nil)
	return err == nil
}

// address is a parsed listen address.
type address struct {
	network string // "tcp" or "unix"
	addr    string // HOST:PORT or a path
}

// parseAddress reads HOST:PORT or unix:PATH.
func parseAddress(s string) (address, error) {
	if path, ok := strings.CutPrefix(s, "unix:"); ok {
		if path == "" {
			return address{}, errors.New("no path after unix:; use unix:PATH")
		}
		return address{"unix", path}, nil
	}
	if s == "" {
		return address{}, errors.New("empty; use HOST:PORT or unix:PATH")
	}
	_, port, err := net.SplitHostPort(s)
	if err != nil {
		return address{}, fmt.Errorf("%q is no address; use HOST:PORT or unix:PATH", s)
	}
	if _, err := strconv.ParseUint(port, 10, 16); err != nil {
		return address{}, fmt.Errorf("%q has no port number; use HOST:PORT or unix:PATH", s)
	}
	return address{"tcp", s}, nil
}

// local reports whether only this machine can reach a. A host name other than
// localhost is taken for remote: what it resolves to may change. The address
// that is bound in the end is checked once more, see [listen].
func (a address) local() bool {
	if a.network == "unix" {
		return true
	}
	host, _, _ := net.SplitHostPort(a.addr)
	if host == "localhost" {
		return true
	}
	ip, err := netip.ParseAddr(host)
	return err == nil && ip.Unmap().IsLoopback()
}
