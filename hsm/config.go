package hsm

import (
	"errors"
	"fmt"
	"log/slog"
	"os/exec"
	"time"

	"keymill/hsm/arena"
)

// Defaults of PKCS11Config.
const (
	// DefaultSessions keeps a network HSM busy across its round trip without
	// using up the few dozen sessions a small token has.
	DefaultSessions = 8
	// DefaultTimeout bounds one PKCS#11 call in use. Encrypting 32 bytes takes
	// a slow smart card about a second; a token that needs ten has gone.
	DefaultTimeout = 10 * time.Second
	// DefaultStartTimeout bounds everything a start does: connecting, login, the
	// self test, which generates a key (RSA on a smart card takes that long).
	DefaultStartTimeout = 60 * time.Second

	maxSessions = 1024

	// maxPIN bounds the PIN: PKCS#11 PINs are short, a passphrase is not long.
	maxPIN = 1024
)

// PKCS11Config says which token is the root of trust.
type PKCS11Config struct {
	// Module is the path of the PKCS#11 shared library.
	Module string
	// TokenLabel names the token. When two tokens carry one label, TokenSerial
	// decides; either alone is enough.
	TokenLabel  string
	TokenSerial string
	// PINFile holds the user PIN, alone on its first line. It must be closed to
	// everybody but its owner. It is read at each login, so that a PIN
	// changed on the token and in the file takes effect at the next login.
	PINFile string
	// Sessions is how many calls may be in the token at once; 0 means
	// DefaultSessions. Fewer are used when the token has no more.
	Sessions int
	// Timeout bounds each call into the module; 0 means DefaultTimeout.
	Timeout time.Duration
	// StartTimeout bounds OpenPKCS11 and Inspect; 0 means DefaultStartTimeout.
	StartTimeout time.Duration
	// Child returns the command of a process that calls [ServeChild], afresh for each
	// start; the module is then loaded there. The command's files and, on Linux, its
	// death signal are set by this package; a nil Env inherits ours. A nil Child loads
	// the module into this process.
	Child func() *exec.Cmd
	// Logger receives lost sessions, logins and calls that hang; nil means
	// slog.Default().
	Logger *slog.Logger

	// pin is the PIN of OpenToken, in place of PINFile. That it is there makes the token
	// one for keys of users and not a root.
	pin *heldPIN
}

// A heldPIN is a PIN in locked memory for as long as a token is open. A nil one has no
// bytes.
type heldPIN struct{ secret *arena.Secret }

func (p *heldPIN) bytes() []byte {
	if p == nil {
		return nil
	}
	return p.secret.Bytes()
}

// holdPIN moves a PIN to locked memory and wipes the slice.
func holdPIN(pin []byte) (*heldPIN, error) {
	if len(pin) == 0 || len(pin) > maxPIN {
		arena.Wipe(pin)
		return nil, fmt.Errorf("%w: a PIN of %d bytes (want 1 to %d)", ErrPINIncorrect, len(pin), maxPIN)
	}
	secret, err := arena.From(pin)
	if err != nil {
		return nil, err
	}
	return &heldPIN{secret}, nil
}

// Wipe may be called on nil.
func (p *heldPIN) Wipe() {
	if p != nil {
		p.secret.Wipe()
	}
}

// Validate fills in defaults and refuses what cannot work.
func (c *PKCS11Config) Validate() error {
	if c.Sessions == 0 {
		c.Sessions = DefaultSessions
	}
	if c.Timeout == 0 {
		c.Timeout = DefaultTimeout
	}
	if c.StartTimeout == 0 {
		c.StartTimeout = DefaultStartTimeout
	}
	if c.Logger == nil {
		c.Logger = slog.Default()
	}
	switch {
	case c.Module == "":
		return errors.New("no PKCS#11 module given (--hsm-module)")
	case c.TokenLabel == "" && c.TokenSerial == "":
		return errors.New("no token given (--hsm-token)")
	case c.PINFile == "" && c.pin == nil:
		return errors.New("no PIN file given (--hsm-pin-file)")
	case c.Sessions < 0 || c.Sessions > maxSessions:
		return fmt.Errorf("%d token sessions (want 1 to %d)", c.Sessions, maxSessions)
	case c.Timeout < 0 || c.StartTimeout < 0:
		return errors.New("a negative token timeout")
	}
	return nil
}

// tokenName is how messages call the token.
func (c *PKCS11Config) tokenName() string {
	switch {
	case c.TokenSerial == "":
		return fmt.Sprintf("token %q", c.TokenLabel)
	case c.TokenLabel == "":
		return fmt.Sprintf("token with serial number %q", c.TokenSerial)
	default:
		return fmt.Sprintf("token %q with serial number %q", c.TokenLabel, c.TokenSerial)
	}
}
