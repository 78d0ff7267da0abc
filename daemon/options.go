package daemon

import "strings"

// Option is one row of the table that drives flags, keys of the configuration
// file, environment variables and --print-config.
type Option struct {
	// Name is the flag's name without dashes and the key in the file. The
	// environment variable is KEYMILL_ and the name in capitals with
	// underscores, see [Option.Env].
	Name string

	// Usage says what the option does, in one line. A word in back quotes
	// names the value, as package pflag has it.
	Usage string

	// Field returns a pointer to the option's field: *string, *bool, *int or
	// *[]string.
	Field func(*Config) any
}

// EnvPrefix begins the name of every environment variable that keymill reads.
const EnvPrefix = "KEYMILL_"

// Env returns the name of the option's environment variable.
func (o *Option) Env() string {
	return EnvPrefix + strings.ToUpper(strings.ReplaceAll(o.Name, "-", "_"))
}

// Options is the table, in the order in which help and --print-config show it.
var Options = []Option{
	{"listen", "serve the KMS API on `ADDR`: HOST:PORT or unix:PATH", func(c *Config) any { return &c.Listen }},
	{"data", "keep everything in `DIR`, which is made when missing", func(c *Config) any { return &c.Data }},
	{"region", "serve `REGION`", func(c *Config) any { return &c.Region }},
	{"regions", "serve the regions in `LIST` too, separated by commas, or all", func(c *Config) any { return &c.Regions }},
	{"account", "account `NUMBER`, 12 digits", func(c *Config) any { return &c.Account }},
	{"admin-listen", "serve health and metrics on `ADDR`: HOST:PORT or unix:PATH", func(c *Config) any { return &c.AdminListen }},
	{"hsm-module", "PKCS#11 module `PATH` of the root of trust; without one, the software root", func(c *Config) any { return &c.HSMModule }},
	{"hsm-token", "`LABEL` of the token in that module", func(c *Config) any { return &c.HSMToken }},
	{"hsm-pin-file", "`FILE` with the token's user PIN", func(c *Config) any { return &c.HSMPINFile }},
	{"hsm-in-process", "load the PKCS#11 module into the daemon, which then crashes when the module does", func(c *Config) any { return &c.HSMInProcess }},
	{"forbid-provider", "do not use the cryptography providers in `LIST`, separated by commas; see keymill doctor --providers", func(c *Config) any { return &c.ForbidProvider }},
	{"quota-profile", "request and resource quotas: `aws|none|FILE`", func(c *Config) any { return &c.QuotaProfile }},
	{"key-stores", "`FILE` that says which tokens and proxies custom key stores can be made on", func(c *Config) any { return &c.KeyStores }},
	{"tls-cert", "certificate chain `FILE` in PEM; serves HTTPS", func(c *Config) any { return &c.TLSCert }},
	{"tls-key", "private key `FILE` of the certificate, in PEM", func(c *Config) any { return &c.TLSKey }},
	{"tls-client-ca", "require a client certificate signed by an authority in `FILE`", func(c *Config) any { return &c.TLSClientCA }},
	{"xks-listen", "serve an XKS proxy for external key stores of AWS KMS on `ADDR`, HOST:PORT", func(c *Config) any { return &c.XKSListen }},
	{"xks-credentials", "`FILE` with the proxy's credentials and the keys that it serves", func(c *Config) any { return &c.XKSCredentials }},
	{"xks-tls-cert", "the proxy's certificate chain `FILE` in PEM", func(c *Config) any { return &c.XKSTLSCert }},
	{"xks-tls-key", "private key `FILE` of that certificate, in PEM", func(c *Config) any { return &c.XKSTLSKey }},
	{"xks-client-ca", "require of the proxy's callers a certificate signed by an authority in `FILE`", func(c *Config) any { return &c.XKSClientCA }},
	{"xks-client-name", "and issued for the common `NAME`, such as cks.kms.us-east-1.amazonaws.com", func(c *Config) any { return &c.XKSClientName }},
	{"insecure-http", "allow plain HTTP on an address that is not loopback", func(c *Config) any { return &c.InsecureHTTP }},
	{"insecure-admin", "allow the admin listener on an address that is not loopback", func(c *Config) any { return &c.InsecureAdmin }},
	{"heavy-workers", "run slow cryptography on `N` threads of its own; 0 is one for each core", func(c *Config) any { return &c.HeavyWorkers }},
	{"pin-workers", "bind those threads to processors", func(c *Config) any { return &c.PinWorkers }},
	{"log-level", "log `LEVEL`: debug, info, warn or error", func(c *Config) any { return &c.LogLevel }},
	{"log-format", "log `FORMAT`: text or json", func(c *Config) any { return &c.LogFormat }},
}
