package main

import (
	"bytes"
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// TestXKSConfig: the command prints what the console reads, for the store asked
// for, and says what is wrong otherwise.
func TestXKSConfig(t *testing.T) {
	file := filepath.Join(t.TempDir(), "xks.yml")
	text := `stores:
  - prefix: /a
    credentials:
      - {access-key-id: ABCDEFGHIJKLMNOPQRST, secret-access-key: 0123456789012345678901234567890123456789abc}
      - {access-key-id: BBCDEFGHIJKLMNOPQRST, secret-access-key: 1123456789012345678901234567890123456789abc}
`
	if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	run := func(args ...string) (string, error) {
		var out bytes.Buffer
		root := newRoot()
		root.SetOut(&out)
		root.SetArgs(append([]string{"xks-config"}, args...))
		err := root.Execute()
		return out.String(), err
	}
	out, err := run("--xks-credentials", file, "--prefix", "/a")
	if err != nil {
		t.Fatal(err)
	}
	var got map[string]any
	if err := json.Unmarshal([]byte(out), &got); err != nil {
		t.Fatal(err)
	}
	cred, _ := got["XksProxyAuthenticationCredential"].(map[string]any)
	if got["XksProxyUriPath"] != "/a/kms/xks/v1" || cred["AccessKeyId"] != "ABCDEFGHIJKLMNOPQRST" || cred["RawSecretAccessKey"] != "0123456789012345678901234567890123456789abc" {
		t.Error(out)
	}
	for want, args := range map[string][]string{
		`no store with the prefix ""; it has "/a"`: {"--xks-credentials", file},
		"xks-credentials: not set":                 nil,
		"no such file":                             {"--xks-credentials", file + "x"},
	} {
		if _, err := run(args...); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("want %q: %v", want, err)
		}
	}
}
