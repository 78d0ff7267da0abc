package daemon

import (
	"bytes"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"keymill/daemon/sigv4/sigv4test"
)

// A quota file is in force from the first request, per operation.
func TestQuotaFile(t *testing.T) {
	cfg := freePorts(t)
	cfg.QuotaProfile = filepath.Join(t.TempDir(), "quotas.yml")
	if err := os.WriteFile(cfg.QuotaProfile, []byte("base: none\nrequests:\n  ListKeys: 0.001\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	key := sigv4test.Key{ID: "AKIAIOSFODNN7EXAMPLE", Secret: "not-a-secret-but-a-test-fixture-0123456789", Region: cfg.Region, Service: "kms"}
	preset := map[string]string{EnvRootAccessKeyID: key.ID, EnvRootSecretAccessKey: key.Secret}
	call := func(srv *Server, op string) (int, string) {
		r := &sigv4test.Request{
			Method: "POST", Path: "/", Body: "{}",
			Headers: []sigv4test.Header{{"Host", srv.Addr().String()}, {"Content-Type", "application/x-amz-json-1.1"}, {"X-Amz-Target", "TrentService." + op}},
		}
		r.Sign(key, time.Now())
		req, err := http.NewRequest(r.Method, srv.Endpoint(), bytes.NewReader([]byte(r.Body)))
		if err != nil {
			t.Fatal(err)
		}
		for _, h := range r.Headers {
			req.Header.Set(h[0], h[1])
		}
		resp, err := http.DefaultClient.Do(req)
		if err != nil {
			t.Fatal(err)
		}
		defer resp.Body.Close()
		body, err := io.ReadAll(resp.Body)
		if err != nil {
			t.Fatal(err)
		}
		return resp.StatusCode, string(body)
	}
	_, err := bootOnce(t, cfg, preset, func(srv *Server) {
		if status, body := call(srv, "ListKeys"); status != 200 {
			t.Errorf("the first: %d %s", status, body)
		}
		for range 2 {
			if status, body := call(srv, "ListKeys"); status != 400 || !strings.Contains(body, `"ThrottlingException"`) {
				t.Errorf("the next: %d %s", status, body)
			}
			if status, body := call(srv, "ListAliases"); status != 200 {
				t.Errorf("another operation: %d %s", status, body)
			}
		}
	})
	if err != nil {
		t.Fatal(err)
	}
}

// A bad or missing quota file is refused before anything is made.
func TestRefusedQuotaFile(t *testing.T) {
	dir := t.TempDir()
	bad := filepath.Join(dir, "bad.yml")
	if err := os.WriteFile(bad, []byte("base: aws\n\nper-key: -3\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	for path, want := range map[string]string{
		bad:                               bad + ": line 3: per-key: -3 is negative",
		filepath.Join(dir, "missing.yml"): "missing.yml",
		dir:                               dir,
	} {
		cfg := freePorts(t)
		cfg.Data = filepath.Join(dir, "data")
		cfg.QuotaProfile = path
		if _, err := New(cfg, Environment{}); err == nil || !strings.Contains(err.Error(), want) || !strings.Contains(err.Error(), "quota profile") {
			t.Errorf("%s: %v", path, err)
		}
		if _, err := os.Stat(cfg.Data); err == nil {
			t.Errorf("%s: the data directory was made", path)
		}
	}
}
