package daemon

import (
	"context"
	"errors"
	"log/slog"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"keymill/hsm"
	"keymill/keystore"
)

// bootOnce runs a whole daemon on cfg until it is ready (or fails), calls see
// while it serves, and stops it.
func bootOnce(t *testing.T, cfg Config, environ map[string]string, see func(*Server)) (log string, err error) {
	t.Helper()
	var b logBuffer
	srv, err := New(cfg, Environment{
		Logger: slog.New(slog.NewTextHandler(&b, nil)),
		Getenv: func(name string) string { return environ[name] },
	})
	if err != nil {
		return b.String(), err
	}
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	done := make(chan error, 1)
	go func() { done <- srv.Run(ctx) }()
	select {
	case err := <-done:
		return b.String(), err
	case <-srv.Ready():
	}
	if see != nil {
		see(srv)
	}
	cancel()
	return b.String(), <-done
}

func mustBoot(t *testing.T, cfg Config, environ map[string]string) (log string) {
	t.Helper()
	log, err := bootOnce(t, cfg, environ, nil)
	if err != nil {
		t.Fatal(err)
	}
	return log
}

// stored opens the store of a stopped daemon.
func stored(t *testing.T, cfg Config, see func(*keystore.Store)) {
	t.Helper()
	opened, err := OpenStore(t.Context(), cfg, StoreOptions{})
	if err != nil {
		t.Fatal(err)
	}
	defer opened.Close()
	see(opened.Store)
}

func TestFirstStart(t *testing.T) {
	cfg := freePorts(t)
	cfg.Data = filepath.Join(cfg.Data, "made", "here")
	cfg.Region, cfg.Account = "us-gov-west-1", "123456789012"
	log := mustBoot(t, cfg, nil)

	modes := map[string]os.FileMode{".": 0o700, credentialsName: 0o600, rootKeyName: 0o600, storeName: 0o700}
	for name, want := range modes {
		info, err := os.Stat(filepath.Join(cfg.Data, name))
		if err != nil || info.Mode().Perm() != want {
			t.Errorf("%s: %v, %v; want mode %v", name, info, err, want)
		}
	}
	text, err := os.ReadFile(filepath.Join(cfg.Data, credentialsName))
	if err != nil {
		t.Fatal(err)
	}
	form := regexp.MustCompile(`(?m)^\[default\]\naws_access_key_id = (AKIA[A-Z2-7]{16})\naws_secret_access_key = ([A-Za-z0-9+/]{40})$`)
	m := form.FindSubmatch(text)
	if m == nil {
		t.Fatal("the credentials file has another form")
	}
	id, secret := string(m[1]), string(m[2])
	if strings.Contains(log, secret) {
		t.Error("the secret is in the log")
	}
	if !strings.Contains(log, id) {
		t.Error("the log does not say which access key was made")
	}
	for _, warning := range []string{"root of trust", "not enforced yet"} {
		if !strings.Contains(log, warning) {
			t.Errorf("the log lacks %q", warning)
		}
	}

	stored(t, cfg, func(s *keystore.Store) {
		key, err := s.AccessKey(id)
		if err != nil {
			t.Fatal(err)
		}
		if string(key.Secret) != secret || !key.Active || key.Account != cfg.Account {
			t.Error("the stored access key differs from the file")
		}
		p, err := s.Principal(key.PrincipalID)
		if err != nil {
			t.Fatal(err)
		}
		if !p.Root || p.ARN != "arn:aws-us-gov:iam::123456789012:root" {
			t.Errorf("principal %+v", p)
		}
	})

	// Another start changes nothing, also when the operator has moved the file.
	log = mustBoot(t, cfg, nil)
	if again, _ := os.ReadFile(filepath.Join(cfg.Data, credentialsName)); string(again) != string(text) {
		t.Error("the second start changed the credentials")
	}
	if strings.Contains(log, "first start") {
		t.Error("the second start took itself for the first")
	}
	if err := os.Remove(filepath.Join(cfg.Data, credentialsName)); err != nil {
		t.Fatal(err)
	}
	mustBoot(t, cfg, nil)
	if _, err := os.Stat(filepath.Join(cfg.Data, credentialsName)); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("credentials: %v", err)
	}

	// A store has one root account.
	other := cfg
	other.Account = "999999999999"
	if _, err := bootOnce(t, other, nil, nil); err == nil || !strings.Contains(err.Error(), "--account 123456789012") {
		t.Errorf("another account: %v", err)
	}
}

func TestFirstStartsDiffer(t *testing.T) {
	var ids [2]string
	for i := range ids {
		cfg := freePorts(t)
		mustBoot(t, cfg, nil)
		key, err := readCredentials(filepath.Join(cfg.Data, credentialsName))
		if err != nil {
			t.Fatal(err)
		}
		ids[i] = key.id + string(key.secret)
	}
	if ids[0] == ids[1] {
		t.Error("two daemons made the same root access key")
	}
}

func TestPreset(t *testing.T) {
	const id, secret = "AKIAPRESETPRESET0001", "preset/secret+preset/secret"
	preset := func(id, secret string) map[string]string {
		return map[string]string{EnvRootAccessKeyID: id, EnvRootSecretAccessKey: secret}
	}
	for name, bad := range map[string]map[string]string{
		"id alone":        preset(id, ""),
		"secret alone":    preset("", secret),
		"short id":        preset("AKIA", secret),
		"id with a break": preset(id+"\n[other]", secret),
		"short secret":    preset(id, "short"),
		"secret in parts": preset(id, "two words two words"),
	} {
		cfg := freePorts(t)
		cfg.Data = filepath.Join(cfg.Data, "new")
		_, err := bootOnce(t, cfg, bad, nil)
		if err == nil || !strings.Contains(err.Error(), "KEYMILL_ROOT_") {
			t.Errorf("%s: %v", name, err)
		} else if s := bad[EnvRootSecretAccessKey]; s != "" && strings.Contains(err.Error(), s) {
			t.Errorf("%s: the error shows the secret", name)
		}
		if _, err := os.Stat(cfg.Data); !errors.Is(err, os.ErrNotExist) {
			t.Errorf("%s: something was made", name)
		}
	}

	cfg := freePorts(t)
	log := mustBoot(t, cfg, preset(id, secret))
	if strings.Contains(log, secret) {
		t.Error("the secret is in the log")
	}
	key, err := readCredentials(filepath.Join(cfg.Data, credentialsName))
	if err != nil || !key.same(id, []byte(secret)) {
		t.Errorf("credentials file: %v", err)
	}
	mustBoot(t, cfg, preset(id, secret)) // the same again
	mustBoot(t, cfg, nil)                // or none
	for name, other := range map[string]map[string]string{
		"another secret": preset(id, "x"+secret[1:]),
		"another id":     preset("AKIAPRESETPRESET0002", secret),
	} {
		_, err := bootOnce(t, cfg, other, nil)
		if err == nil || !strings.Contains(err.Error(), "differs from the one in the store") {
			t.Errorf("%s: %v", name, err)
		}
	}
	mustBoot(t, cfg, preset(id, secret))
}

// A first start that was cut short between the credentials file and the store is
// finished by the next one with the key that the file already names.
func TestFirstStartCutShort(t *testing.T) {
	cfg := freePorts(t)
	shown := newAccessKey()
	if err := writeCredentials(filepath.Join(cfg.Data, credentialsName), shown, cfg.Account, cfg.Region); err != nil {
		t.Fatal(err)
	}
	other := map[string]string{EnvRootAccessKeyID: "AKIAPRESETPRESET0001", EnvRootSecretAccessKey: "preset/secret+preset/secret"}
	if _, err := bootOnce(t, cfg, other, nil); err == nil || !strings.Contains(err.Error(), "differs from the one in "+cfg.Data) {
		t.Errorf("a preset that differs from the file: %v", err)
	}
	mustBoot(t, cfg, nil)
	stored(t, cfg, func(s *keystore.Store) {
		key, err := s.AccessKey(shown.id)
		if err != nil || !shown.same(key.ID, key.Secret) {
			t.Errorf("the shown key was not stored: %v", err)
		}
	})

	broken := freePorts(t)
	if err := os.WriteFile(filepath.Join(broken.Data, credentialsName), []byte("[default]\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := bootOnce(t, broken, nil, nil); err == nil || !strings.Contains(err.Error(), "holds no access key") {
		t.Errorf("a credentials file without a key: %v", err)
	}
}

// Each way in which a root and a store do not belong together is refused with
// what would help, and leaves both alone.
func TestWrongRoot(t *testing.T) {
	cfg := freePorts(t)
	mustBoot(t, cfg, nil)
	rootKey := filepath.Join(cfg.Data, rootKeyName)
	saved, err := os.ReadFile(rootKey)
	if err != nil {
		t.Fatal(err)
	}

	if err := os.Remove(rootKey); err != nil {
		t.Fatal(err)
	}
	_, err = bootOnce(t, cfg, nil, nil)
	if !errors.Is(err, hsm.ErrNoKeyFile) || !strings.Contains(err.Error(), rootKey) {
		t.Errorf("the root key is missing: %v", err)
	}
	if _, err := os.Stat(rootKey); !errors.Is(err, os.ErrNotExist) {
		t.Error("a new root key was made for an old store")
	}

	elsewhere := freePorts(t)
	mustBoot(t, elsewhere, nil)
	foreign, err := os.ReadFile(filepath.Join(elsewhere.Data, rootKeyName))
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(rootKey, foreign, 0o600); err != nil {
		t.Fatal(err)
	}
	_, err = bootOnce(t, cfg, nil, nil)
	if !errors.Is(err, keystore.ErrWrongRoot) || !strings.Contains(err.Error(), rootKeyName) {
		t.Errorf("another's root key: %v", err)
	}

	if err := os.WriteFile(rootKey, saved, 0o600); err != nil {
		t.Fatal(err)
	}
	mustBoot(t, cfg, nil)
}

func TestOneDaemonPerDataDirectory(t *testing.T) {
	cfg := freePorts(t)
	_, err := bootOnce(t, cfg, nil, func(first *Server) {
		if _, err := bootOnce(t, cfg, nil, nil); !errors.Is(err, keystore.ErrLocked) {
			t.Errorf("a second daemon: %v", err)
		}
		if err := RequestBackup(t.Context(), cfg.Data, filepath.Join(t.TempDir(), "b")); err != nil {
			t.Errorf("the first daemon's control socket after that: %v", err)
		}
	})
	if err != nil {
		t.Fatal(err)
	}
}

// A backup of a running daemon opens elsewhere with the same root key.
func TestBackupAndRestore(t *testing.T) {
	cfg := freePorts(t)
	to := filepath.Join(t.TempDir(), "backup")
	var want []*keystore.Principal
	_, err := bootOnce(t, cfg, nil, func(s *Server) {
		if err := RequestBackup(t.Context(), cfg.Data, to); err != nil {
			t.Fatal(err)
		}
		// A backup is never written over.
		if err := RequestBackup(t.Context(), cfg.Data, to); err == nil {
			t.Error("a second backup went into the same directory")
		}
	})
	if err != nil {
		t.Fatal(err)
	}
	stored(t, cfg, func(s *keystore.Store) { want, _, _ = s.ListPrincipals("", 10) })

	key, err := readCredentials(filepath.Join(cfg.Data, credentialsName))
	if err != nil {
		t.Fatal(err)
	}
	rootKey, err := os.ReadFile(filepath.Join(cfg.Data, rootKeyName))
	if err != nil {
		t.Fatal(err)
	}
	err = filepath.WalkDir(to, func(path string, d os.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		b, err := os.ReadFile(path)
		if strings.Contains(string(b), string(key.secret)) || strings.Contains(string(b), string(rootKey)) {
			t.Errorf("%s holds a secret in the clear", path)
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}

	elsewhere := freePorts(t)
	if err := keystore.Restore(to, StoreDir(elsewhere.Data)); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(elsewhere.Data, rootKeyName), rootKey, 0o600); err != nil {
		t.Fatal(err)
	}
	mustBoot(t, elsewhere, nil)
	stored(t, elsewhere, func(s *keystore.Store) {
		got, _, err := s.ListPrincipals("", 10)
		if err != nil || len(got) != 1 || got[0].ARN != want[0].ARN {
			t.Errorf("principals %v, %v", got, err)
		}
	})
}

func TestOpenStoreNeedsAStore(t *testing.T) {
	cfg := valid(t.TempDir())
	if _, err := OpenStore(t.Context(), cfg, StoreOptions{}); err == nil || !strings.Contains(err.Error(), "no key store") {
		t.Errorf("error %v", err)
	}
	if left, _ := os.ReadDir(cfg.Data); len(left) > 0 {
		t.Errorf("made %v", left)
	}
}

// The store's failure ends the daemon with its cause.
func TestFailureEndsRun(t *testing.T) {
	cause := errors.New("disk gone")
	_, err := bootOnce(t, freePorts(t), nil, func(s *Server) {
		s.fail(cause)
		s.fail(errors.New("a consequence"))
	})
	if !errors.Is(err, cause) {
		t.Errorf("Run: %v", err)
	}
}
