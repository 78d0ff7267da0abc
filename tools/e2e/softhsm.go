package e2e

import (
	"crypto/rand"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
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
	dir     string // where SoftHSM2 keeps it
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
	return t, t.initialise(util)
}

// Another initialises one more token beside t, under another label.
func (t *Token) Another(label string) (*Token, error) {
	util, err := exec.LookPath("softhsm2-util")
	if err != nil {
		return nil, ErrNoSoftHSM
	}
	other := &Token{Module: t.Module, Label: label, PINFile: t.PINFile + "-" + label, conf: t.conf}
	return other, other.initialise(util)
}

func (t *Token) initialise(util string) error {
	pin := rand.Text()
	if err := os.WriteFile(t.PINFile, []byte(pin+"\n"), 0o600); err != nil {
		return err
	}
	tokens := filepath.Join(filepath.Dir(t.conf), "tokens")
	before, err := os.ReadDir(tokens)
	if err != nil {
		return err
	}
	cmd := exec.Command(util, "--init-token", "--free", "--module", t.Module, "--label", t.Label, "--pin", pin, "--so-pin", rand.Text())
	cmd.Env = append(os.Environ(), t.Env()...)
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("couldn't initialise a SoftHSM2 token: %w\n%s", err, out)
	}
	after, err := os.ReadDir(tokens)
	if err != nil {
		return err
	}
	for _, e := range after {
		if !slices.ContainsFunc(before, func(b os.DirEntry) bool { return b.Name() == e.Name() }) {
			t.dir = filepath.Join(tokens, e.Name())
		}
	}
	return nil
}

// Remove takes the token away, as somebody who pulls it out, until back is called.
// No process may have it open.
func (t *Token) Remove() (back func() error, err error) {
	hidden := filepath.Join(filepath.Dir(t.conf), "removed-"+t.Label)
	return func() error { return os.Rename(hidden, t.dir) }, os.Rename(t.dir, hidden)
}

// Env returns the variable through which SoftHSM2 finds the token.
func (t *Token) Env() []string { return []string{"SOFTHSM2_CONF=" + t.conf} }
