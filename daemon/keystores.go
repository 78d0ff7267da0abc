package daemon

import (
	"bytes"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"regexp"

	"go.yaml.in/yaml/v3"

	"keymill/daemon/kms"
	"keymill/daemon/xks"
	"keymill/hsm"
)

// # The file of custom key stores
//
// It says which PKCS#11 tokens stand behind the cluster ids that callers name in
// CreateCustomKeyStore, and how XKS proxies are reached. PINs are not in it: a
// custom key store's password is its token's PIN. Paths are absolute, or relative
// to the file.
//
//	clusters:
//	  cluster-2a34b5cdefg:
//	    module: /usr/lib/softhsm/libsofthsm2.so
//	    token: payments
//	    trust-anchor: customerCA.crt   # what callers must show; none: anything
//	    sessions: 16                   # 0: as many as the token takes
//	    other-keys: false              # asymmetric and HMAC keys too, unlike AWS KMS
//	xks:
//	  ca: proxies.pem                  # trusted besides the system's authorities
//	  cert: client.pem                 # shown to proxies that ask for a certificate
//	  key: client.key
//	  hosts:                           # where a proxy's name leads, instead of DNS
//	    xks.example.com: 10.0.0.7:8443

// keyStoreFile is the file's form.
type keyStoreFile struct {
	Clusters map[string]clusterEntry `yaml:"clusters"`
	XKS      struct {
		CA    string            `yaml:"ca"`
		Cert  string            `yaml:"cert"`
		Key   string            `yaml:"key"`
		Hosts map[string]string `yaml:"hosts"`
	} `yaml:"xks"`
}

type clusterEntry struct {
	Module      string `yaml:"module"`
	Token       string `yaml:"token"`
	TrustAnchor string `yaml:"trust-anchor"`
	Sessions    int    `yaml:"sessions"`
	OtherKeys   bool   `yaml:"other-keys"`
}

// maxKeyStoreFile bounds the file before it is parsed.
const maxKeyStoreFile = 1 << 20

var clusterForm = regexp.MustCompile(`^cluster-[2-7a-zA-Z]{11,16}$`)

// parseKeyStoreFile reads the text of a file of custom key stores and reports all
// that is wrong with it.
func parseKeyStoreFile(text []byte) (*keyStoreFile, error) {
	f := new(keyStoreFile)
	dec := yaml.NewDecoder(bytes.NewReader(text))
	dec.KnownFields(true)
	if err := dec.Decode(f); err != nil && !errors.Is(err, io.EOF) {
		return nil, err
	}
	if err := dec.Decode(new(yaml.Node)); !errors.Is(err, io.EOF) {
		return nil, errors.New("more than one document")
	}
	var errs []error
	bad := func(format string, args ...any) { errs = append(errs, fmt.Errorf(format, args...)) }
	for id, c := range f.Clusters {
		if !clusterForm.MatchString(id) {
			bad("clusters: %q is no cluster id; use cluster- and 11 to 16 letters or digits from 2 to 7", id)
		}
		if c.Module == "" || c.Token == "" {
			bad("clusters: %s needs module and token", id)
		}
		if c.Sessions < 0 {
			bad("clusters: %s: sessions is %d; 0 is as many as the token takes", id, c.Sessions)
		}
	}
	if (f.XKS.Cert == "") != (f.XKS.Key == "") {
		bad("xks: cert and key go together")
	}
	return f, errors.Join(errs...)
}

// readBounded reads a file that must not be larger than most bytes.
func readBounded(file string, most int64) ([]byte, error) {
	h, err := os.Open(file)
	if err != nil {
		return nil, err
	}
	defer h.Close()
	text, err := io.ReadAll(io.LimitReader(h, most+1))
	if err == nil && int64(len(text)) > most {
		err = fmt.Errorf("larger than %d bytes", most)
	}
	return text, err
}

// relativeTo returns a path that a file names.
func relativeTo(file, path string) string {
	if path == "" || filepath.IsAbs(path) {
		return path
	}
	return filepath.Join(filepath.Dir(file), path)
}

// keyStores reads the file of custom key stores, and the files that it names. No
// file is no clusters, and proxies as the Internet has them. prepare completes what
// is said of a token.
func keyStores(file string, prepare func(*hsm.PKCS11Config)) (c kms.KeyStoreConfig, err error) {
	if file == "" {
		return c, nil
	}
	defer func() {
		if err != nil {
			err = fmt.Errorf("key-stores: %s: %w", file, err)
		}
	}()
	text, err := readBounded(file, maxKeyStoreFile)
	if err != nil {
		return c, err
	}
	f, err := parseKeyStoreFile(text)
	if err != nil {
		return c, err
	}
	c.Clusters = make(map[string]kms.Cluster, len(f.Clusters))
	for id, e := range f.Clusters {
		cluster := kms.Cluster{
			Token:     hsm.PKCS11Config{Module: relativeTo(file, e.Module), TokenLabel: e.Token, Sessions: e.Sessions},
			OtherKeys: e.OtherKeys,
		}
		if e.TrustAnchor != "" {
			text, err := readBounded(relativeTo(file, e.TrustAnchor), maxKeyStoreFile)
			if err != nil {
				return c, err
			}
			if block, _ := pem.Decode(text); block == nil {
				return c, fmt.Errorf("clusters: %s: trust-anchor: %s holds no certificate in PEM", id, e.TrustAnchor)
			}
			cluster.TrustAnchor = string(text)
		}
		prepare(&cluster.Token)
		c.Clusters[id] = cluster
	}
	c.Proxies = xks.TransportConfig{
		Hosts: f.XKS.Hosts, CertFile: relativeTo(file, f.XKS.Cert), KeyFile: relativeTo(file, f.XKS.Key),
	}
	if f.XKS.CA != "" {
		c.Proxies.CAFiles = []string{relativeTo(file, f.XKS.CA)}
	}
	return c, nil
}
