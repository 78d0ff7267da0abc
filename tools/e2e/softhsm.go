package e2e

import (
	"crypto/rand"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
)

// ErrNoSoftHSM says that SoftHSM2 is not installed on this machine.
var ErrNoSoftHSM = errors.New("SoftHSM2 is not installed; Debian's package softhsm2 brings it")

// Where distributions put SoftHSM2's module.
var softHSMModules = []string{
	"/usr/lib/softhsm/libsofthsm2.so",
	"/usr/lib/x86_64-linux-gnu/softhsm/libsofthsm2.so",
	"/usr/lib/aarch64-linux-gnu/softhsm/libsofthsm2.so",
	"/usr/lib64/pkcs11/libsofthsm2.so",
	"/usr/local/lib/softhsm/libsofthsm2.so",
}

// A Token is an initialised SoftHSM2 token in a directory of its own.
type Token struct {
	Module  string // the PKCS#11 module
	Label   string
	PINFile string // holds the user PIN
	conf    string
}

// NewToken initialises a token in dir, which must exist and be empty. It fails
// with ErrNoSoftHSM when the machine has no SoftHSM2.
func NewToken(dir string) (*Token, error) {
	module := ""
	for _, m := range softHSMModules {
		if _, err := os.Stat(m); err == nil {
			module = m
			break
		}
	}
	util, err := exec.LookPath("softhsm2-util")
	if err != nil || module == "" {
		return nil, ErrNoSoftHSM
	}
	t := &Token{
		Module:  module,
		Label:   "keymill-e2e",
		PINFile: filepath.Join(dir, "pin"),
		conf:    filepath.Join(dir, "softhsm2.conf"),
	}
	tokens := filepath.Join(dir, "tokens")
	if err := os.Mkdir(tokens, 0o700); err != nil {
		return nil, err
	}
	conf := fmt.Sprintf("directories.tokendir = %s\nobjectstore.backend = file\nlog.level = ERROR\n", tokens)
	if err := os.WriteFile(t.conf, []byte(conf), 0o600); err != nil {
		return nil, err
	}
	pin := rand.Text()
	if err := os.WriteFile(t.PINFile, []byte(pin+"\n"), 0o600); err != nil {
		return nil, err
	}
	cmd := exec.Command(util, "--init-token", "--free", "--module", module, "--label", t.Label, "--pin", pin, "--so-pin", rand.Text())
	cmd.Env = append(os.Environ(), t.Env()...)
	if out, err := cmd.CombinedOutput(); err != nil {
		return nil, fmt.Errorf("couldn't initialise a SoftHSM2 token: %w\n%s", err, out)
	}
	return t, nil
}

// Env returns the variable through which SoftHSM2 finds the token.
func (t *Token) Env() []string { return []string{"SOFTHSM2_CONF=" + t.conf} }
