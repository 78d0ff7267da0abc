package daemon

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"time"

	"keymill/daemon/kms"
	"keymill/engine"
	"keymill/hsm"
	"keymill/hsm/arena"
	"keymill/keystore"
)

// Names in the data directory; the package comment says what they hold.
const (
	storeName   = "store"
	rootKeyName = "root.key"
)

// StoreDir is where the store of a data directory lives.
func StoreDir(data string) string { return filepath.Join(data, storeName) }

// openService opens the root of trust and the store, makes the root principal
// on a first start, and puts the KMS service on top.
func (s *Server) openService(ctx context.Context) (_ *service, err error) {
	preset, err := presetAccessKey(s.env.Getenv)
	if err != nil {
		return nil, err
	}
	if preset != nil {
		defer arena.Wipe(preset.secret)
	}
	if err := engine.ConfigureProviders(engine.ProviderOptions{Forbid: s.cfg.ForbidProvider, Logger: s.log}); err != nil {
		return nil, fmt.Errorf("forbid-provider: %w", err)
	}
	if err := s.makeDataDir(); err != nil {
		return nil, err
	}
	opened, err := OpenStore(ctx, s.cfg, StoreOptions{Create: true, Clock: s.env.Clock, Logger: s.log, OnFatal: s.fail, HSMChild: s.env.HSMChild})
	if err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, opened.Close())
		}
	}()
	store := opened.Store
	if err := s.ensureRootPrincipal(ctx, store, preset); err != nil {
		return nil, err
	}
	stores, err := keyStores(s.cfg.KeyStores, func(token *hsm.PKCS11Config) {
		token.Logger = s.log
		if !s.cfg.HSMInProcess {
			token.Child = s.env.HSMChild
		}
	})
	if err != nil {
		return nil, err
	}
	workers, cpus, busy := s.shareProcessors()
	svc, err := kms.New(kms.Config{
		Store:   store,
		Account: s.cfg.Account,
		Region:  s.cfg.Region,
		Regions: s.cfg.Regions,
		Quota:   s.quotas,
		Clock:   s.env.Clock,
		Logger:  s.log,

		HeavyWorkers: workers,
		HeavyCPUs:    cpus,
		HeavyBusy:    busy,

		KeyStores: stores,
	})
	if err != nil {
		return nil, err
	}
	s.warn(opened.Root)
	s.warnOfRewrap(store)
	svc.Start()
	return &service{opened: opened, handler: svc.ServeHTTP, backup: store.Backup, writeMetrics: svc.WriteMetrics, confirmClock: svc.ConfirmClock, keyUsage: svc.KeyUsage, servedKey: svc.ServedKey, close: func() error {
		svc.Close()
		return opened.Close()
	}}, nil
}

// makeDataDir makes the data directory, or looks at the one that is there.
func (s *Server) makeDataDir() error {
	if err := os.MkdirAll(s.cfg.Data, 0o700); err != nil {
		return fmt.Errorf("data: %w", err)
	}
	if err := syncDir(filepath.Dir(s.cfg.Data)); err != nil {
		return fmt.Errorf("data: %w", err)
	}
	info, err := os.Stat(s.cfg.Data)
	if err != nil {
		return fmt.Errorf("data: %w", err)
	}
	if open := info.Mode().Perm() & 0o077; open != 0 {
		s.log.Warn("other users can look into the data directory; make it 0700", "data", s.cfg.Data, "mode", info.Mode().Perm().String())
	}
	return nil
}

// warn says at every start what an operator could otherwise take for granted.
func (s *Server) warn(root hsm.Root) {
	info := root.Info()
	if info.Kind == hsm.KindPKCS11 {
		s.log.Info("root of trust", "module", info.Location, "token", info.Token, "serial", info.Serial,
			"model", info.Model, "mechanism", info.Mechanism, "process", info.Process)
	}
	for _, notice := range info.Notices {
		s.log.Warn(notice, "location", info.Location)
	}
	s.log.Warn("key policies are stored but not enforced yet: every access key may use every key")
	if s.tls == nil && s.cfg.InsecureHTTP {
		s.log.Warn("requests and plaintext keys may cross the network in the clear (insecure-http)")
	}
	if s.tls != nil {
		if end := s.tls.expiry(); !end.IsZero() && !s.env.Clock().Before(end) {
			s.log.Warn("the TLS certificate has expired", "not_after", end.Format(time.RFC3339))
		}
	}
}

// StoreOptions says how [OpenStore] opens a store.
type StoreOptions struct {
	// Create makes the root key and the store when the data directory has none.
	Create bool
	// Clock and OnFatal are the store's; see keystore.Options. Logger is also
	// the token's.
	Clock   func() time.Time
	Logger  *slog.Logger
	OnFatal func(error)
	// HSMChild is the token's; see hsm.PKCS11Config.
	HSMChild func() *exec.Cmd
	// Target is where the root of trust is found to which keymill rewrap has begun to
	// move the store; nil is where that command was told.
	Target *keystore.Place
	// StoreKeyOnly is for those who unwrap nothing but the store key: of a store that
	// is being moved they need one root.
	StoreKeyOnly bool
}

// PKCS11Config returns what cfg says about the token. A nil log is slog.Default().
func PKCS11Config(cfg Config, log *slog.Logger) hsm.PKCS11Config {
	return hsm.PKCS11Config{Module: cfg.HSMModule, TokenLabel: cfg.HSMToken, PINFile: cfg.HSMPINFile, Logger: log}
}

// explain adds what to do to the errors an operator meets at start.
func explain(err error, cfg Config) error {
	switch {
	case errors.Is(err, keystore.ErrWrongRoot) && cfg.HSMModule == "":
		return fmt.Errorf("%w; %s is not its key: bring the right file back, or name the HSM with hsm-module if it was made on one or keymill rewrap has moved it there", err, filepath.Join(cfg.Data, rootKeyName))
	case errors.Is(err, keystore.ErrWrongRoot):
		return fmt.Errorf("%w; name the HSM token it was made on or keymill rewrap has moved it to (until that is finished, the one it comes from), or leave hsm-module out for the software root", err)
	case errors.Is(err, keystore.ErrTampered):
		return fmt.Errorf("%w; nothing was changed: restore a backup, or look closer with keymill doctor --verify-store", err)
	}
	return err
}

// rootRecord names the store's record of who its root is.
const rootRecord = "daemon/root"

// rootIdentity is that record.
type rootIdentity struct {
	Account     string `json:"account"`
	AccessKeyID string `json:"access_key_id"`
}

// ensureRootPrincipal makes the root principal and its access key on a first
// start, and on every other checks that account and preset are the stored ones.
//
// The credentials file is written before the commit. So when a first start is
// cut short in between, the file names a key that the store does not have, and
// the next start takes that key: nobody is ever locked out by a store whose key
// was never shown.
func (s *Server) ensureRootPrincipal(ctx context.Context, store *keystore.Store, preset *accessKey) error {
	stored, _, err := store.Get(rootRecord)
	if err == nil {
		return s.checkRoot(store, stored, preset)
	}
	if !errors.Is(err, keystore.ErrNotFound) {
		return explain(err, s.cfg)
	}

	path := s.credentialsPath()
	key, err := readCredentials(path)
	if err != nil {
		return err
	}
	switch {
	case key == nil && preset != nil:
		key = &accessKey{preset.id, append([]byte(nil), preset.secret...)}
	case key == nil:
		key = newAccessKey()
	case preset != nil && !key.same(preset.id, preset.secret):
		return s.errPreset(fmt.Sprintf("the one in %s", path))
	}
	defer arena.Wipe(key.secret)
	if err := writeCredentials(path, key, s.cfg.Account, s.cfg.Region); err != nil {
		return fmt.Errorf("couldn't write the credentials: %w", err)
	}

	now := s.env.Clock()
	value, err := json.Marshal(rootIdentity{Account: s.cfg.Account, AccessKeyID: key.id})
	if err != nil {
		return err
	}
	txn := store.NewTxn()
	txn.PutPrincipal(&keystore.Principal{
		ID:      s.cfg.Account, // AWS's unique id of a root user is its account
		Account: s.cfg.Account,
		ARN:     "arn:" + kms.Partition(s.cfg.Region) + ":iam::" + s.cfg.Account + ":root",
		Name:    "root",
		Root:    true,
		Created: now,
	}, 0)
	txn.PutAccessKey(&keystore.AccessKey{
		ID:          key.id,
		Account:     s.cfg.Account,
		PrincipalID: s.cfg.Account,
		Secret:      key.secret,
		Active:      true,
		Created:     now,
	}, 0)
	txn.Put(rootRecord, value, 0)
	if _, err := txn.Commit(ctx); err != nil {
		return fmt.Errorf("couldn't store the root access key: %w", err)
	}
	s.log.Info("first start: root access key made", "account", s.cfg.Account, "access_key_id", key.id, "credentials", path)
	return nil
}

// checkRoot compares what the store says of its root with what we were told.
func (s *Server) checkRoot(store *keystore.Store, record []byte, preset *accessKey) error {
	var root rootIdentity
	if err := json.Unmarshal(record, &root); err != nil {
		return fmt.Errorf("couldn't read the record %s: %w", rootRecord, err)
	}
	if root.Account != s.cfg.Account {
		return fmt.Errorf("account: the store in %s belongs to account %s; start with --account %s, or use another data directory", s.cfg.Data, root.Account, root.Account)
	}
	if preset == nil {
		return nil
	}
	stored, err := store.AccessKey(root.AccessKeyID)
	if err != nil {
		return explain(fmt.Errorf("couldn't read the root access key: %w", err), s.cfg)
	}
	defer arena.Wipe(stored.Secret)
	if !preset.same(stored.ID, stored.Secret) {
		return s.errPreset("the one in the store")
	}
	return nil
}

func (s *Server) errPreset(which string) error {
	return fmt.Errorf("the root access key that %s and %s preset differs from %s; unset both, or set the stored pair",
		EnvRootAccessKeyID, EnvRootSecretAccessKey, which)
}
