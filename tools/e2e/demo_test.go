package e2e

import (
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

// TestDemo runs what "make demo" runs, on a file of 100 MiB.
func TestDemo(t *testing.T) {
	t.Parallel()
	bin := filepath.Join(t.TempDir(), "demo")
	if out, err := exec.CommandContext(t.Context(), "go", "build", "-o", bin, "keymill/tools/demo").CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	for root, title := range map[string]string{"software": "software root", "softhsm": "SoftHSM2"} {
		t.Run(root, func(t *testing.T) {
			if root == "softhsm" {
				token(t) // or skip
			}
			out, err := exec.CommandContext(t.Context(), bin, "--keymill", binary, "--root", root).CombinedOutput()
			if err != nil {
				t.Fatalf("%v\n%s", err, out)
			}
			for _, text := range []string{title, "encrypt the file", "stop the daemon and start it again", "decrypt the file", "The file came back unchanged."} {
				if !strings.Contains(string(out), text) {
					t.Errorf("it did not print %q:\n%s", text, out)
				}
			}
		})
	}
	out, err := exec.CommandContext(t.Context(), bin, "--keymill", binary, "--root", "software", "--file", filepath.Join(t.TempDir(), "absent")).CombinedOutput()
	if err == nil {
		t.Errorf("it succeeded without a file:\n%s", out)
	}
}
