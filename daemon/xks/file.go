package xks

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"
	"syscall"

	"go.yaml.in/yaml/v3"
)

// # The file of the proxy side
//
//	stores:
//	  - prefix: /payments          # of the path; may be left out for one store
//	    regions: [eu-west-1]       # of the KMS that may call; left out: any
//	    credentials:               # one, or two while one replaces the other
//	      - access-key-id: ABCDEFGHIJKLMNOPQRST
//	        secret-access-key: ...
//	    health-key: arn:...        # tried by the health check; left out: the first of keys
//	    keys:
//	      - external-id: payments-2026
//	        key: arn:aws:kms:eu-west-1:000000000000:alias/payments   # or key/...
//	        accounts: ["111122223333"]       # whose KMS keys; left out: anybody's
//	        principals: [arn:aws:iam::111122223333:role/app, arn:aws:sts::111122223333:assumed-role/batch/*]
//	        operations: [Encrypt, Decrypt, GenerateDataKey, CreateKey]
//
// Two AWS accounts may name the same external key, so accounts is worth having:
// it is compared with the account of the KMS key, and of the caller where a call
// has no KMS key. A principal ends in * to mean all that begin so. Health is
// everybody's who has the credential.
//
// The file holds secrets, so it must be closed to others. It is read at the start and
// on SIGHUP, as a whole: with any mistake in it, what was in force stays.

// maxFile bounds the file: ten thousand keys with rules take 3 MiB.
const maxFile = 4 << 20

type config struct {
	Stores []storeConfig `yaml:"stores"`
}

type storeConfig struct {
	Prefix      string       `yaml:"prefix"`
	Regions     []string     `yaml:"regions"`
	Credentials []credential `yaml:"credentials"`
	HealthKey   string       `yaml:"health-key"`
	Keys        []keyConfig  `yaml:"keys"`
}

type credential struct {
	AccessKeyID string `yaml:"access-key-id"`
	Secret      string `yaml:"secret-access-key"`
}

// String keeps the secret out of what is printed.
func (c credential) String() string   { return c.AccessKeyID }
func (c credential) GoString() string { return c.AccessKeyID }

type keyConfig struct {
	ExternalID string   `yaml:"external-id"`
	Key        string   `yaml:"key"`
	Accounts   []string `yaml:"accounts"`
	Principals []string `yaml:"principals"`
	Operations []string `yaml:"operations"`
}

// A KeyRef names a KMS key of this appliance.
type KeyRef struct {
	Region, Account string
	Resource        string // "key/<id>" or "alias/<name>"
}

// ParseKeyRef reads the ARN of a key or alias.
func ParseKeyRef(arn string) (KeyRef, bool) {
	p := strings.SplitN(arn, ":", 6)
	if len(p) != 6 || p[0] != "arn" || p[1] == "" || p[2] != "kms" || p[3] == "" || len(p[4]) != 12 ||
		!strings.HasPrefix(p[5], "key/") && !strings.HasPrefix(p[5], "alias/") {
		return KeyRef{}, false
	}
	return KeyRef{Region: p[3], Account: p[4], Resource: p[5]}, true
}

// readFile reads the file of the proxy side.
func readFile(name string) (*config, error) {
	// O_NONBLOCK: a named pipe must not hang the start before it is refused.
	f, err := os.OpenFile(name, os.O_RDONLY|syscall.O_NONBLOCK, 0)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return nil, err
	}
	switch perm := info.Mode().Perm(); {
	case !info.Mode().IsRegular():
		return nil, fmt.Errorf("%s is not a regular file", name)
	case perm&0o077 != 0:
		return nil, fmt.Errorf("%s has mode %04o, so others can reach the secrets in it; run: chmod 600 %s", name, perm, name)
	}
	text, err := io.ReadAll(io.LimitReader(f, maxFile+1))
	if err != nil {
		return nil, err
	}
	defer clear(text)
	c, err := parseFile(text)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", name, err)
	}
	return c, nil
}

// parseFile reads the text of the file and checks all of it.
func parseFile(text []byte) (*config, error) {
	if len(text) > maxFile {
		return nil, fmt.Errorf("larger than %d bytes", maxFile)
	}
	dec := yaml.NewDecoder(bytes.NewReader(text))
	dec.KnownFields(true)
	var c config
	if err := dec.Decode(&c); errors.Is(err, io.EOF) {
		return nil, errors.New("nothing in it; give stores")
	} else if err != nil {
		return nil, hideValues(err)
	}
	if err := dec.Decode(new(yaml.Node)); !errors.Is(err, io.EOF) {
		return nil, errors.New("more than one document")
	}
	return &c, c.check()
}

// hideValues keeps the line of a YAML error, but nothing that could be a secret:
// the library quotes the value that does not fit.
func hideValues(err error) error {
	var lines []string
	for _, line := range strings.Split(err.Error(), "\n") {
		if i := strings.Index(line, "cannot unmarshal"); i >= 0 {
			line = line[:i] + "a value of the wrong kind"
		}
		lines = append(lines, line)
	}
	return errors.New(strings.Join(lines, "\n"))
}

func (c *config) check() error {
	var errs []error
	bad := func(format string, args ...any) { errs = append(errs, fmt.Errorf(format, args...)) }
	if len(c.Stores) == 0 {
		bad("stores: there are none")
	}
	prefixes := map[string]bool{}
	for i := range c.Stores {
		s := &c.Stores[i]
		at := fmt.Sprintf("stores[%d]", i)
		switch {
		case !validPrefix(s.Prefix) || !ValidPath(s.Prefix+PathSuffix):
			bad("%s: prefix %q must begin with a slash, end without, and hold letters, digits, - _ and /", at, s.Prefix)
		case prefixes[s.Prefix]:
			bad("%s: prefix %q is another store's too", at, s.Prefix)
		}
		prefixes[s.Prefix] = true
		if n := len(s.Credentials); n < 1 || n > 2 {
			bad("%s: credentials: give one, or two while one replaces the other", at)
		}
		ids := map[string]bool{}
		for j, cred := range s.Credentials {
			if !only(cred.AccessKeyID, 20, 30, "ABCDEFGHIJKLMNOPQRSTUVWXYZ234567") {
				bad("%s: credentials[%d]: access-key-id must be 20 to 30 of A-Z and 2-7", at, j)
			}
			if !only(cred.Secret, 43, 64, "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789/+=") {
				bad("%s: credentials[%d]: secret-access-key must be 43 to 64 of A-Z, a-z, 0-9 and / + =", at, j)
			}
			if ids[cred.AccessKeyID] {
				bad("%s: credentials[%d]: the other one has the same access-key-id", at, j)
			}
			ids[cred.AccessKeyID] = true
		}
		if s.HealthKey != "" {
			if _, ok := ParseKeyRef(s.HealthKey); !ok {
				bad("%s: health-key: %q is no ARN of a KMS key or alias", at, s.HealthKey)
			}
		}
		external := map[string]bool{}
		for j, k := range s.Keys {
			if !ValidKeyID(k.ExternalID) {
				bad("%s: keys[%d]: external-id %q must be 1 to 128 of letters, digits, . _ and -", at, j, k.ExternalID)
			}
			if external[k.ExternalID] {
				bad("%s: keys[%d]: external-id %q is there twice", at, j, k.ExternalID)
			}
			external[k.ExternalID] = true
			if _, ok := ParseKeyRef(k.Key); !ok {
				bad("%s: keys[%d]: key: %q is no ARN of a KMS key or alias", at, j, k.Key)
			}
			for _, a := range k.Accounts {
				if !only(a, 12, 12, "0123456789") {
					bad("%s: keys[%d]: accounts: %q is not 12 digits (in quotes)", at, j, a)
				}
			}
			for _, p := range k.Principals {
				if p == "" || strings.Contains(p[:len(p)-1], "*") {
					bad("%s: keys[%d]: principals: %q may have a * at its end only", at, j, p)
				}
			}
		}
	}
	return errors.Join(errs...)
}

// only tells whether s has min to max characters of an alphabet.
func only(s string, min, max int, alphabet string) bool {
	return len(s) >= min && len(s) <= max && strings.Trim(s, alphabet) == "" && !strings.ContainsFunc(s, func(r rune) bool {
		return !strings.ContainsRune(alphabet, r)
	})
}

// ConsoleConfig returns the configuration file that the AWS console takes when
// an external key store is made, from the file of the proxy side: for the store
// with that prefix, with the first of its credentials. It holds the secret.
func ConsoleConfig(name, prefix string) ([]byte, error) {
	c, err := readFile(name)
	if err != nil {
		return nil, err
	}
	var known []string
	for _, s := range c.Stores {
		if s.Prefix != prefix {
			known = append(known, fmt.Sprintf("%q", s.Prefix))
			continue
		}
		type auth struct {
			AccessKeyID string `json:"AccessKeyId"`
			Secret      string `json:"RawSecretAccessKey"`
		}
		return json.MarshalIndent(struct {
			Path string `json:"XksProxyUriPath"`
			Auth auth   `json:"XksProxyAuthenticationCredential"`
		}{prefix + PathSuffix, auth{s.Credentials[0].AccessKeyID, s.Credentials[0].Secret}}, "", "  ")
	}
	return nil, fmt.Errorf("%s has no store with the prefix %q; it has %s", name, prefix, strings.Join(known, ", "))
}
