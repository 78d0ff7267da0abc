package perf

import (
	"crypto/tls"
	"crypto/x509"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"net/http"
	"net/http/httptest"
	"os"
	"strings"
	"sync"
	"testing"
	"time"
)

// A fakeTransit answers the documented requests of a transit engine mounted at
// /v1/keys-here, with nonsense that it knows again.
type fakeTransit struct {
	mu   sync.Mutex
	keys map[string]string // name to type
}

func (f *fakeTransit) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	if r.Header.Get("X-Vault-Token") != "a.token" || r.Method != http.MethodPost || r.Header.Get("Content-Type") != "application/json" {
		http.Error(w, `{"errors":["permission denied"]}`, http.StatusForbidden)
		return
	}
	path, ok := strings.CutPrefix(r.URL.Path, "/v1/keys-here/")
	var in struct {
		Type, Plaintext, Ciphertext, Input string
		SignatureAlgorithm                 string `json:"signature_algorithm"`
		Prehashed                          bool
		Bits                               int
	}
	if !ok || json.NewDecoder(r.Body).Decode(&in) != nil {
		http.Error(w, `{"errors":["bad"]}`, http.StatusBadRequest)
		return
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	if name, ok := strings.CutPrefix(path, "keys/"); ok {
		f.keys[name] = in.Type
		w.WriteHeader(http.StatusNoContent)
		return
	}
	verb, rest, _ := strings.Cut(path, "/")
	if verb == "datakey" {
		_, rest, _ = strings.Cut(rest, "/")
	}
	name, hash, _ := strings.Cut(rest, "/")
	kind := f.keys[name]
	data := map[string]string{}
	bad := ""
	raw := func(text string) []byte {
		b, err := base64.StdEncoding.DecodeString(text)
		if err != nil {
			bad = err.Error()
		}
		return b
	}
	switch {
	case kind == "":
		bad = "no such key"
	case verb == "datakey" && kind == "aes256-gcm96" && in.Bits == 256:
		data["plaintext"], data["ciphertext"] = base64.StdEncoding.EncodeToString(make([]byte, 32)), "vault:v1:"+name
	case verb == "encrypt" && kind == "aes256-gcm96":
		data["ciphertext"] = "vault:v1:" + name + string(base64.StdEncoding.EncodeToString(raw(in.Plaintext)))
	case verb == "decrypt" && kind == "aes256-gcm96" && strings.HasPrefix(in.Ciphertext, "vault:v1:"+name):
		data["plaintext"] = "AAAA"
	case verb == "sign" && kind == "ecdsa-p256" && hash == "sha2-256" && in.Prehashed && len(raw(in.Input)) == 32,
		verb == "sign" && kind == "ed25519" && hash == "" && !in.Prehashed && len(raw(in.Input)) == 32,
		verb == "sign" && kind == "rsa-2048" && hash == "sha2-256" && in.Prehashed && in.SignatureAlgorithm == "pss":
		data["signature"] = "vault:v1:sig"
	default:
		bad = fmt.Sprintf("not as documented: %s with %+v", path, in)
	}
	if bad != "" {
		http.Error(w, `{"errors":["`+bad+`"]}`, http.StatusBadRequest)
		return
	}
	json.NewEncoder(w).Encode(map[string]any{"data": data})
}

func TestTransit(t *testing.T) {
	server := httptest.NewServer(&fakeTransit{keys: map[string]string{}})
	defer server.Close()
	target, err := ParseEndpoint(server.URL, nil)
	if err != nil {
		t.Fatal(err)
	}
	api := Transit{Mount: "keys-here", Token: []byte("a.token")}
	for _, text := range []string{"GenerateDataKey", "GenerateDataKeyWithoutPlaintext", "Encrypt", "Decrypt", "Sign", "Sign:ECC_NIST_EDWARDS25519", "Sign:RSA_2048"} {
		o, err := ParseOperation(text)
		if err != nil {
			t.Fatal(err)
		}
		// 4 kB make net/http answer in chunks.
		w, err := api.Prepare(t.Context(), target, Single(o), Shape{Keys: 3, Payload: 4096, Batch: 1}, 2)
		if err != nil {
			t.Errorf("%s: %v", text, err)
			continue
		}
		l := &Load{Target: target, Workload: w, Conns: 2, Duration: 20 * time.Millisecond}
		if err := run(t, l, func(r *Round) bool { return r.Requests >= 10 }).Err(); err != nil {
			t.Errorf("%s: %v", text, err)
		}
	}
	for text, want := range map[string]string{"GenerateMac": "not asked for that", "DescribeKey": "not asked for that", "Sign:ML_DSA_44": "not asked for that"} {
		o, _ := ParseOperation(text)
		if _, err := api.Prepare(t.Context(), target, Single(o), DefaultShape, 1); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v", text, err)
		}
	}
	api.Token = []byte("other")
	o, _ := ParseOperation("Encrypt")
	if _, err := api.Prepare(t.Context(), target, Single(o), DefaultShape, 1); err == nil || !strings.Contains(err.Error(), "permission denied") {
		t.Errorf("with another token: %v", err)
	}
}

// fakeKES answers KES's documented requests to clients with a certificate, by
// the given method.
func fakeKES(method string) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.Method != method {
			http.Error(w, `{"message":"method not allowed"}`, http.StatusMethodNotAllowed)
			return
		}
		var in struct{ Plaintext, Ciphertext []byte }
		parts := strings.Split(r.URL.Path, "/") // "", v1, key, VERB, NAME
		if len(r.TLS.PeerCertificates) == 0 || len(parts) != 5 || json.NewDecoder(r.Body).Decode(&in) != nil {
			http.Error(w, `{"message":"not authorized"}`, http.StatusForbidden)
			return
		}
		out := map[string][]byte{}
		switch verb := parts[3]; {
		case verb == "create":
			return
		case verb == "generate":
			out["plaintext"], out["ciphertext"] = make([]byte, 32), []byte("sealed "+parts[4])
		case verb == "encrypt" && len(in.Plaintext) == 32:
			out["ciphertext"] = []byte("sealed " + parts[4])
		case verb == "decrypt" && string(in.Ciphertext) == "sealed "+parts[4]:
			out["plaintext"] = make([]byte, 32)
		default:
			http.Error(w, `{"message":"bad request"}`, http.StatusBadRequest)
			return
		}
		json.NewEncoder(w).Encode(out)
	})
}

func TestKES(t *testing.T) {
	for _, method := range []string{http.MethodPut, http.MethodPost} {
		t.Run(method, func(t *testing.T) {
			pair, err := NewPair(t.TempDir())
			if err != nil {
				t.Fatal(err)
			}
			cert, err := tls.LoadX509KeyPair(pair.CertFile, pair.KeyFile)
			if err != nil {
				t.Fatal(err)
			}
			server := httptest.NewUnstartedServer(fakeKES(method))
			server.TLS = &tls.Config{Certificates: []tls.Certificate{cert}, ClientAuth: tls.RequestClientCert}
			server.StartTLS()
			defer server.Close()
			config := pair.Client.Clone()
			config.Certificates = []tls.Certificate{cert}
			target, err := ParseEndpoint(server.URL, config)
			if err != nil {
				t.Fatal(err)
			}
			for _, text := range []string{"GenerateDataKey", "Encrypt", "Decrypt"} {
				o, _ := ParseOperation(text)
				w, err := KES{}.Prepare(t.Context(), target, Single(o), Shape{Keys: 2, Payload: 32, Batch: 1}, 2)
				if err != nil {
					t.Errorf("%s: %v", text, err)
					continue
				}
				l := &Load{Target: target, Workload: w, Conns: 2, Duration: 20 * time.Millisecond}
				if err := run(t, l, func(r *Round) bool { return r.Requests >= 10 }).Err(); err != nil {
					t.Errorf("%s: %v", text, err)
				}
			}
			o, _ := ParseOperation("Sign")
			if _, err := (KES{}).Prepare(t.Context(), target, Single(o), DefaultShape, 1); err == nil {
				t.Error("KES signs")
			}
		})
	}
}

func TestPairIsForLoopback(t *testing.T) {
	dir := t.TempDir()
	pair, err := NewPair(dir)
	if err != nil {
		t.Fatal(err)
	}
	info, err := os.Stat(pair.KeyFile)
	if err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("key file: %v, %v", info.Mode(), err)
	}
	cert, err := tls.LoadX509KeyPair(pair.CertFile, pair.KeyFile)
	if err != nil {
		t.Fatal(err)
	}
	leaf, err := x509.ParseCertificate(cert.Certificate[0])
	if err != nil {
		t.Fatal(err)
	}
	if _, err := leaf.Verify(x509.VerifyOptions{Roots: pair.Client.RootCAs, DNSName: "127.0.0.1"}); err != nil {
		t.Error(err)
	}
}
