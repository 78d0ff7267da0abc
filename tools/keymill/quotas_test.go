package main

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"keymill/daemon/quota"
)

// What --print-config and doctor --quotas show is the profile in force, in a form that
// gives the same one again; and the former is still a configuration file.
func TestQuotasAreShown(t *testing.T) {
	own := filepath.Join(t.TempDir(), "quotas.yml")
	if err := os.WriteFile(own, []byte("base: aws\nrequests:\n  CreateKey: 7\nper-key: 100\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"aws", "none", own} {
		want, err := quota.Load(name)
		if err != nil {
			t.Fatal(err)
		}
		out, errs, status := run(t, "doctor", "--quotas", "--quota-profile", name)
		if status != 0 {
			t.Fatalf("doctor: %d %s", status, errs)
		}
		got, err := quota.Parse([]byte(out))
		if err != nil || cmp.Diff(want, got) != "" {
			t.Errorf("doctor --quotas, %s: %v\n%s", name, err, cmp.Diff(want, got))
		}

		out, errs, status = run(t, "serve", "--print-config", "--data", "/d", "--quota-profile", name)
		if status != 0 {
			t.Fatalf("--print-config: %d %s", status, errs)
		}
		var file strings.Builder
		_, listed, ok := strings.Cut(out, "\n# The quotas")
		if !ok {
			t.Fatalf("no quotas:\n%s", out)
		}
		for line := range strings.Lines(listed) {
			if line, ok := strings.CutPrefix(line, quotaComment); ok {
				file.WriteString(line)
			}
		}
		got, err = quota.Parse([]byte(file.String()))
		if err != nil || cmp.Diff(want, got) != "" {
			t.Errorf("--print-config, %s: %v\n%s", name, err, cmp.Diff(want, got))
		}
		conf := filepath.Join(t.TempDir(), "keymill.yml")
		if err := os.WriteFile(conf, []byte(out), 0o600); err != nil {
			t.Fatal(err)
		}
		again, errs, status := run(t, "serve", "--print-config", "--config", conf)
		if status != 0 || again != out {
			t.Errorf("read back: %d %s\n%s", status, errs, cmp.Diff(out, again))
		}
	}
	if _, errs, status := run(t, "serve", "--print-config", "--data", "/d", "--quota-profile", "/no/such/file"); status == 0 || !strings.Contains(errs, "/no/such/file") {
		t.Errorf("a profile that is not there: %d %s", status, errs)
	}
}
