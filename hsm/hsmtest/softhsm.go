package hsmtest

import (
	"crypto/rand"
	"fmt"
	"io"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"testing"

	"keymill/hsm"
)

// ModuleEnv names the environment variable that points tests at a SoftHSM2 library in an
// unusual place.
const ModuleEnv = "KEYMILL_TEST_PKCS11_MODULE"

// usualPlaces is where distributions put SoftHSM2.
var usualPlaces = []string{
	"/usr/lib/softhsm/libsofthsm2.so",
	"/usr/lib/*/softhsm/libsofthsm2.so",
	"/usr/lib64/softhsm/libsofthsm2.so",
	"/usr/lib64/pkcs11/libsofthsm2.so",
	"/usr/lib/libsofthsm2.so",
	"/usr/local/lib/softhsm/libsofthsm2.so",
	"/opt/homebrew/lib/softhsm/libsofthsm2.so",
}

// SoftHSMModule returns the path of SoftHSM2's PKCS#11 library, or "".
func SoftHSMModule() string {
	if p := os.Getenv(ModuleEnv); p != "" {
		return p
	}
	for _, pattern := range usualPlaces {
		if found, _ := filepath.Glob(pattern); len(found) > 0 {
			return found[0]
		}
	}
	return ""
}

// SoftHSM makes a new token in SoftHSM2, in a directory of the test's own, and returns
// the configuration for it. It skips the test, saying why, where SoftHSM2 is not
// installed. See the package comment on SOFTHSM2_CONF.
func SoftHSM(t testing.TB) hsm.PKCS11Config {
	t.Helper()
	c := softHSM(t)
	c.AddToken(t, c.Config.TokenLabel)
	return c.Config
}

// SoftHSMDir is a directory of SoftHSM2 tokens.
type SoftHSMDir struct {
	Config hsm.PKCS11Config
	util   string
	pin    string
}

// softHSM prepares the directory, without a token.
func softHSM(t testing.TB) *SoftHSMDir {
	t.Helper()
	module := SoftHSMModule()
	if module == "" {
		t.Skipf("skipped: SoftHSM2 is not installed (Debian: apt install softhsm2; elsewhere set %s)", ModuleEnv)
	}
	util, err := exec.LookPath("softhsm2-util")
	if err != nil {
		t.Skip("skipped: softhsm2-util is not installed (Debian: apt install softhsm2)")
	}
	// Not t.TempDir: SoftHSM2 cuts paths with an equals sign short, and names of
	// subtests may have one.
	dir, err := os.MkdirTemp("", "keymill-softhsm-")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	write := func(name, content string) string {
		path := filepath.Join(dir, name)
		if err := os.WriteFile(path, []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
		return path
	}
	tokens := filepath.Join(dir, "tokens")
	if err := os.Mkdir(tokens, 0o700); err != nil {
		t.Fatal(err)
	}
	t.Setenv("SOFTHSM2_CONF", write("softhsm2.conf", "directories.tokendir = "+tokens+"\nlog.level = ERROR\n"))
	pin := rand.Text()[:12]
	return &SoftHSMDir{
		util: util, pin: pin,
		Config: hsm.PKCS11Config{
			Module: module, TokenLabel: "keymill-" + rand.Text()[:6], PINFile: write("pin", pin+"\n"),
			Logger: slog.New(slog.NewTextHandler(io.Discard, nil)),
		},
	}
}

// AddToken initialises one more token with the directory's PIN. No root may be open:
// SoftHSM2 looks for tokens when it is initialised.
func (d *SoftHSMDir) AddToken(t testing.TB, label string) {
	t.Helper()
	cmd := exec.Command(d.util, "--module", d.Config.Module, "--init-token", "--free", "--label", label, "--pin", d.pin, "--so-pin", "so-"+d.pin)
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("softhsm2-util: %v\n%s", err, out)
	}
}

// NewSoftHSMDir returns a directory with one token in it, for tests that want several.
func NewSoftHSMDir(t testing.TB) *SoftHSMDir {
	t.Helper()
	d := softHSM(t)
	d.AddToken(t, d.Config.TokenLabel)
	return d
}

// TakeTokens makes the test's tokens vanish, and returns what brings them back.
func TakeTokens(t testing.TB) (back func()) {
	t.Helper()
	tokens := filepath.Join(filepath.Dir(os.Getenv("SOFTHSM2_CONF")), "tokens")
	move := func(from, to string) {
		t.Helper()
		if err := os.Rename(from, to); err != nil {
			t.Fatal(err)
		}
	}
	move(tokens, tokens+".away")
	if err := os.Mkdir(tokens, 0o700); err != nil {
		t.Fatal(err)
	}
	return func() {
		t.Helper()
		move(tokens, tokens+".empty")
		move(tokens+".away", tokens)
	}
}

// WritePIN replaces the PIN file's content.
func (d *SoftHSMDir) WritePIN(t testing.TB, content string) {
	t.Helper()
	if err := os.WriteFile(d.Config.PINFile, []byte(content), 0o600); err != nil {
		t.Fatal(fmt.Errorf("couldn't write the PIN file: %w", err))
	}
}

// PIN returns the token's PIN, for tests that look for it where it must not be.
func (d *SoftHSMDir) PIN() string { return d.pin }
