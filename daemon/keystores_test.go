package daemon

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"keymill/hsm"
)

const keyStoreText = `clusters:
  cluster-2a34b5cdefg:
    module: lib/module.so
    token: payments
    trust-anchor: anchor.pem
    sessions: 16
    other-keys: true
xks:
  ca: proxies.pem
  cert: client.pem
  key: /keys/client.key
  hosts:
    xks.example.com: 10.0.0.7:8443
`

const testAnchor = "-----BEGIN CERTIFICATE-----\nMAA=\n-----END CERTIFICATE-----\n"

func TestKeyStoreFile(t *testing.T) {
	dir := t.TempDir()
	file := filepath.Join(dir, "stores.yaml")
	for name, text := range map[string]string{"stores.yaml": keyStoreText, "anchor.pem": testAnchor} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	c, err := keyStores(file, func(token *hsm.PKCS11Config) { token.Timeout = 1 })
	if err != nil {
		t.Fatal(err)
	}
	got := c.Clusters["cluster-2a34b5cdefg"]
	if len(c.Clusters) != 1 || got.Token.Module != filepath.Join(dir, "lib/module.so") || got.Token.TokenLabel != "payments" ||
		got.Token.Sessions != 16 || got.Token.Timeout != 1 || got.TrustAnchor != testAnchor || !got.OtherKeys {
		t.Errorf("%+v", c.Clusters)
	}
	if p := c.Proxies; len(p.CAFiles) != 1 || p.CAFiles[0] != filepath.Join(dir, "proxies.pem") || p.CertFile != filepath.Join(dir, "client.pem") ||
		p.KeyFile != "/keys/client.key" || p.Hosts["xks.example.com"] != "10.0.0.7:8443" {
		t.Errorf("%+v", p)
	}
	if c, err := keyStores("", nil); err != nil || c.Clusters != nil {
		t.Errorf("no file: %+v, %v", c, err)
	}
}

func TestKeyStoreFileRefused(t *testing.T) {
	for name, c := range map[string]struct{ text, want string }{
		"unknown name":   {"clusters: {}\npins: 1\n", "line 2"},
		"bad cluster id": {"clusters:\n  payments: {module: m, token: t}\n", `"payments" is no cluster id`},
		"no token":       {"clusters:\n  cluster-aaaaaaaaaaa: {module: m}\n", "needs module and token"},
		"sessions":       {"clusters:\n  cluster-aaaaaaaaaaa: {module: m, token: t, sessions: -1}\n", "sessions is -1"},
		"two documents":  {"clusters: {}\n---\nxks: {}\n", "more than one document"},
		"no mapping":     {"- 1\n", "line 1"},
		"no anchor":      {"clusters:\n  cluster-aaaaaaaaaaa: {module: m, token: t, trust-anchor: stores.yaml}\n", "holds no certificate in PEM"},
		"cert alone":     {"xks:\n  cert: c.pem\n", "xks: cert and key go together"},
		"key alone":      {"xks:\n  key: c.key\n", "xks: cert and key go together"},
		"anchor missing": {"clusters:\n  cluster-aaaaaaaaaaa: {module: m, token: t, trust-anchor: none.pem}\n", "none.pem"},
	} {
		t.Run(name, func(t *testing.T) {
			file := filepath.Join(t.TempDir(), "stores.yaml")
			if err := os.WriteFile(file, []byte(c.text), 0o600); err != nil {
				t.Fatal(err)
			}
			_, err := keyStores(file, func(*hsm.PKCS11Config) {})
			if err == nil || !strings.Contains(err.Error(), c.want) || !strings.Contains(err.Error(), "key-stores: ") {
				t.Errorf("%v, want %q", err, c.want)
			}
		})
	}
}

func FuzzKeyStoreFile(f *testing.F) {
	f.Add([]byte(keyStoreText))
	f.Add([]byte("clusters:\n  cluster-aaaaaaaaaaa: {module: m, token: t}\n"))
	f.Fuzz(func(t *testing.T, text []byte) {
		got, err := parseKeyStoreFile(text)
		if err != nil {
			return
		}
		for id, c := range got.Clusters {
			if !clusterForm.MatchString(id) || c.Module == "" || c.Token == "" || c.Sessions < 0 {
				t.Errorf("accepted %q: %+v", id, c)
			}
		}
	})
}
