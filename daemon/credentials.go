package daemon

import (
	"bufio"
	"bytes"
	"crypto/rand"
	"crypto/subtle"
	"encoding/base32"
	"encoding/base64"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"strings"

	"keymill/hsm/arena"
)

// Environment variables that preset the root access key. They are no options:
// a secret belongs neither on a command line nor in a printed configuration.
const (
	EnvRootAccessKeyID     = EnvPrefix + "ROOT_ACCESS_KEY_ID"
	EnvRootSecretAccessKey = EnvPrefix + "ROOT_SECRET_ACCESS_KEY"
)

// credentialsName is the credentials file's name in the data directory.
const credentialsName = "credentials"

func (s *Server) credentialsPath() string { return filepath.Join(s.cfg.Data, credentialsName) }

// accessKey is an access key id and its secret. It has no String method and is
// never logged.
type accessKey struct {
	id     string
	secret []byte
}

// same compares in constant time as far as the secret goes.
func (a accessKey) same(id string, secret []byte) bool {
	return a.id == id && subtle.ConstantTimeCompare(a.secret, secret) == 1
}

var (
	// The service model's form of an access key id.
	accessKeyIDForm = regexp.MustCompile(`^[A-Za-z0-9_]{16,128}$`)
	// Anything that needs no quoting in the credentials file. AWS's are 40
	// characters of Base64.
	secretForm = regexp.MustCompile(`^[!-~]{16,128}$`)
)

// presetAccessKey returns the root access key that the environment presets, or
// nil when it does not.
func presetAccessKey(getenv func(string) string) (*accessKey, error) {
	a := &accessKey{getenv(EnvRootAccessKeyID), []byte(getenv(EnvRootSecretAccessKey))}
	switch {
	case a.id == "" && len(a.secret) == 0:
		return nil, nil
	case a.id == "" || len(a.secret) == 0:
		return nil, fmt.Errorf("%s and %s go together; set both or neither", EnvRootAccessKeyID, EnvRootSecretAccessKey)
	case !accessKeyIDForm.MatchString(a.id):
		return nil, fmt.Errorf("%s is no access key id; use 16 to 128 letters and digits", EnvRootAccessKeyID)
	case !secretForm.Match(a.secret):
		return nil, fmt.Errorf("%s cannot be used; use 16 to 128 printable characters without spaces", EnvRootSecretAccessKey)
	}
	return a, nil
}

// newAccessKey draws an access key in AWS's form: AKIA and 16 characters of
// Base32, and 40 characters of Base64.
func newAccessKey() *accessKey {
	var id [10]byte
	rand.Read(id[:])
	var raw [30]byte
	rand.Read(raw[:])
	defer arena.Wipe(raw[:])
	secret := make([]byte, base64.StdEncoding.EncodedLen(len(raw)))
	base64.StdEncoding.Encode(secret, raw[:])
	return &accessKey{"AKIA" + base32.StdEncoding.EncodeToString(id[:]), secret}
}

// writeCredentials writes the access key in the form of an AWS shared
// credentials file: all of it or nothing, durable on return, mode 0600.
func writeCredentials(path string, a *accessKey, account, region string) error {
	var b bytes.Buffer
	fmt.Fprintf(&b, "# Keymill: the root access key of account %s. Whoever has it may use every key.\n", account)
	fmt.Fprintf(&b, "# The daemon's region is %s; give it with --region or AWS_DEFAULT_REGION.\n", region)
	fmt.Fprintf(&b, "[default]\naws_access_key_id = %s\naws_secret_access_key = %s\n", a.id, a.secret)
	defer arena.Wipe(b.Bytes())
	return writeDurably(path, b.Bytes())
}

// writeDurably replaces the file at path in one step, with mode 0600.
func writeDurably(path string, data []byte) (err error) {
	dir := filepath.Dir(path)
	f, err := os.CreateTemp(dir, "."+filepath.Base(path)+"-*") // makes it 0600
	if err != nil {
		return err
	}
	defer func() {
		if err != nil {
			os.Remove(f.Name())
		}
	}()
	_, err = f.Write(data)
	if err == nil {
		err = f.Sync()
	}
	if err = errors.Join(err, f.Close()); err != nil {
		return err
	}
	if err = os.Rename(f.Name(), path); err != nil {
		return err
	}
	return syncDir(dir)
}

// syncDir makes the names in a directory durable.
func syncDir(path string) error {
	d, err := os.Open(path)
	if err != nil {
		return err
	}
	return errors.Join(d.Sync(), d.Close())
}

// readCredentials reads what writeCredentials wrote; nil when there is no file.
func readCredentials(path string) (*accessKey, error) {
	data, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	defer arena.Wipe(data)
	a := &accessKey{}
	for lines := bufio.NewScanner(bytes.NewReader(data)); lines.Scan(); {
		name, value, _ := bytes.Cut(lines.Bytes(), []byte("="))
		switch string(bytes.TrimSpace(name)) {
		case "aws_access_key_id":
			a.id = string(bytes.TrimSpace(value))
		case "aws_secret_access_key":
			a.secret = bytes.Clone(bytes.TrimSpace(value))
		}
	}
	if !accessKeyIDForm.MatchString(a.id) || !secretForm.Match(a.secret) {
		return nil, fmt.Errorf("%s holds no access key; restore the file, or remove it if nobody uses it", path)
	}
	return a, nil
}

// shellQuote returns s as one word of a POSIX shell.
func shellQuote(s string) string {
	if s != "" && strings.Trim(s, "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789@%+=:,./_-") == "" {
		return s
	}
	return "'" + strings.ReplaceAll(s, "'", `'\''`) + "'"
}
