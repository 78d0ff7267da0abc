package daemon

import (
	"reflect"
	"strings"
	"testing"
)

// valid returns a configuration that Validate accepts on any machine.
func valid(data string) Config {
	c := DefaultConfig()
	c.Data = data
	return c
}

func TestValidate(t *testing.T) {
	tests := []struct {
		name   string
		change func(*Config)
		want   []string // parts of the error; none: accepted
	}{
		{"defaults", func(c *Config) {}, nil},
		{"unix", func(c *Config) { c.Listen, c.AdminListen = "unix:/run/k.sock", "unix:a.sock" }, nil},
		{"IPv6 loopback", func(c *Config) { c.Listen = "[::1]:4599" }, nil},
		{"mapped loopback", func(c *Config) { c.Listen = "[::ffff:127.0.0.1]:4599" }, nil},
		{"localhost", func(c *Config) { c.Listen = "localhost:4599" }, nil},
		{"all regions", func(c *Config) { c.Regions = []string{"all"} }, nil},
		{"further regions", func(c *Config) { c.Regions = []string{"eu-west-1", "us-gov-west-1"} }, nil},
		{"no quotas", func(c *Config) { c.QuotaProfile = "none" }, nil},
		{"quota file", func(c *Config) { c.QuotaProfile = "quotas.yml" }, nil},
		{"HSM", func(c *Config) { c.HSMModule, c.HSMToken, c.HSMPINFile = "m.so", "t", "pin" }, nil},
		{"TLS anywhere", func(c *Config) { c.Listen, c.TLSCert, c.TLSKey = "0.0.0.0:443", "c", "k" }, nil},
		{"plain HTTP, told", func(c *Config) { c.Listen, c.InsecureHTTP = ":80", true }, nil},
		{"admin, told", func(c *Config) { c.AdminListen, c.InsecureAdmin = "10.0.0.1:80", true }, nil},
		{"two free ports", func(c *Config) { c.Listen, c.AdminListen = "127.0.0.1:0", "127.0.0.1:0" }, nil},

		{"no data", func(c *Config) { c.Data = "" }, []string{"data:", "--data"}},
		{"no address", func(c *Config) { c.Listen = "" }, []string{"listen: empty"}},
		{"no port", func(c *Config) { c.Listen = "127.0.0.1" }, []string{"listen:", "HOST:PORT"}},
		{"bad port", func(c *Config) { c.Listen = "127.0.0.1:99999" }, []string{"listen:", "port"}},
		{"no socket path", func(c *Config) { c.AdminListen = "unix:" }, []string{"admin-listen:", "unix:PATH"}},
		{"plain HTTP everywhere", func(c *Config) { c.Listen = "0.0.0.0:4599" }, []string{"listen:", "insecure-http", "tls-cert"}},
		{"plain HTTP, no host", func(c *Config) { c.Listen = ":4599" }, []string{"listen:", "insecure-http"}},
		{"plain HTTP, a name", func(c *Config) { c.Listen = "kms.example:4599" }, []string{"listen:", "insecure-http"}},
		{"insecure-admin does not cover the API", func(c *Config) { c.Listen, c.InsecureAdmin = ":1", true }, []string{"insecure-http"}},
		{"admin everywhere", func(c *Config) { c.AdminListen = "[::]:4598" }, []string{"admin-listen:", "insecure-admin"}},
		{"TLS does not cover the admin listener", func(c *Config) { c.AdminListen, c.TLSCert, c.TLSKey = ":1", "c", "k" }, []string{"insecure-admin"}},
		{"one address twice", func(c *Config) { c.AdminListen = c.Listen }, []string{"admin-listen: the same"}},
		{"certificate alone", func(c *Config) { c.TLSCert = "c" }, []string{"tls-key:"}},
		{"key alone", func(c *Config) { c.TLSKey = "k" }, []string{"tls-cert:"}},
		{"client CA alone", func(c *Config) { c.TLSClientCA = "ca" }, []string{"tls-client-ca:"}},
		{"XKS proxy", func(c *Config) { c.XKSListen, c.XKSCredentials, c.XKSTLSCert, c.XKSTLSKey = ":443", "x", "c", "k" }, nil},
		{"XKS credentials alone", func(c *Config) { c.XKSCredentials = "x" }, nil},
		{"XKS with client names", func(c *Config) {
			c.XKSListen, c.XKSCredentials, c.XKSTLSCert, c.XKSTLSKey, c.XKSClientCA, c.XKSClientName = ":443", "x", "c", "k", "ca", "n"
		}, nil},
		{"XKS alone", func(c *Config) { c.XKSListen = ":443" }, []string{"xks-credentials:", "xks-tls-cert:", "xks-tls-key:"}},
		{"XKS files without address", func(c *Config) { c.XKSTLSCert, c.XKSClientName = "c", "n" }, []string{"xks-tls-cert:", "xks-client-name:", "xks-listen"}},
		{"XKS on the API's address", func(c *Config) { c.XKSListen = c.Listen }, []string{"xks-listen:", "its own"}},
		{"XKS on a socket", func(c *Config) { c.XKSListen = "unix:/run/x.sock" }, []string{"xks-listen:", "TCP"}},
		{"XKS without port", func(c *Config) { c.Listen, c.XKSListen = "x", "x" }, []string{"xks-listen:", "HOST:PORT"}},
		{"XKS authority without name", func(c *Config) {
			c.XKSListen, c.XKSCredentials, c.XKSTLSCert, c.XKSTLSKey, c.XKSClientCA = ":443", "x", "c", "k", "ca"
		}, []string{"xks-client-name:"}},
		{"region all", func(c *Config) { c.Region = "all" }, []string{"region:", "regions"}},
		{"region form", func(c *Config) { c.Region = "US-EAST-1" }, []string{"region:"}},
		{"region length", func(c *Config) { c.Region = "us-" + strings.Repeat("a", 40) + "-1" }, []string{"region:"}},
		{"regions form", func(c *Config) { c.Regions = []string{"eu-west-1", "x"} }, []string{`regions: "x"`}},
		{"regions all and one", func(c *Config) { c.Regions = []string{"all", "eu-west-1"} }, []string{"regions:", "alone"}},
		{"account", func(c *Config) { c.Account = "123" }, []string{"account:", "12 digits"}},
		{"HSM without token", func(c *Config) { c.HSMModule, c.HSMPINFile = "m", "p" }, []string{"hsm-token:"}},
		{"HSM without PIN", func(c *Config) { c.HSMModule, c.HSMToken = "m", "t" }, []string{"hsm-pin-file:"}},
		{"token without module", func(c *Config) { c.HSMToken = "t" }, []string{"hsm-token:", "hsm-module"}},
		{"PIN without module", func(c *Config) { c.HSMPINFile = "p" }, []string{"hsm-pin-file:", "hsm-module"}},
		{"no quota profile", func(c *Config) { c.QuotaProfile = "" }, []string{"quota-profile:"}},
		{"log level", func(c *Config) { c.LogLevel = "loud" }, []string{"log-level:"}},
		{"log format", func(c *Config) { c.LogFormat = "xml" }, []string{"log-format:"}},
		{"several at once", func(c *Config) { c.Account, c.LogLevel = "", "" }, []string{"account:", "log-level:"}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			c := valid("data")
			tt.change(&c)
			err := c.Validate()
			if len(tt.want) == 0 {
				if err != nil {
					t.Fatal(err)
				}
				return
			}
			if err == nil {
				t.Fatal("accepted")
			}
			for _, part := range tt.want {
				if !strings.Contains(err.Error(), part) {
					t.Errorf("error %q does not say %q", err, part)
				}
			}
		})
	}
	if err := new(Config).Validate(); err == nil {
		t.Error("the zero Config was accepted")
	}
}

// Every field of Config has an option of its own, so that nothing can be set in
// one place only.
func TestOptionsCoverConfig(t *testing.T) {
	var c Config
	names := map[string]bool{}
	for _, o := range Options {
		if names[o.Name] {
			t.Errorf("option %s stands twice", o.Name)
		}
		names[o.Name] = true
		switch v := o.Field(&c).(type) {
		case *string:
			*v = o.Name
		case *bool:
			*v = true
		case *int:
			*v = 1
		case *[]string:
			*v = []string{o.Name}
		default:
			t.Errorf("option %s has a %T", o.Name, v)
		}
	}
	if fields := fieldsLeftZero(c); len(fields) > 0 {
		t.Errorf("fields without an option: %v", fields)
	}
}

// fieldsLeftZero names the fields of a struct that have their zero value.
func fieldsLeftZero(v any) (names []string) {
	for f, value := range reflect.ValueOf(v).Fields() {
		if value.IsZero() {
			names = append(names, f.Name)
		}
	}
	return names
}
