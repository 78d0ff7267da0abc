package daemon

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"time"

	"keymill/hsm"
	"keymill/keystore"
)

// # The store and its roots of trust
//
// A store is under one root of trust, which the configuration names. While keymill
// rewrap moves it to another one it needs both, and what is configured may be either
// of them: the record of the move, in the store, says where the other is. So a
// daemon that was killed in the middle of a move starts as before.
//
//	configured                opens the store     the other
//	the root it comes from    yes                 as the record says
//	the root it goes to       not before the end  a root key file in the data directory
//	                                              is tried; a token is not known

// An Opened is an open store with the roots of trust that it needs.
type Opened struct {
	// Immutable.
	Root  *hsm.Composite
	Store *keystore.Store
	cfg   Config
	o     StoreOptions
	wait  time.Duration // for a move that stops; replaced in tests

	busy  chan struct{} // full while a move is made
	roots []placedRoot  // guarded by busy; the members of Root
}

type placedRoot struct {
	place keystore.Place
	root  hsm.Root
}

// Close closes the store and then its roots.
func (op *Opened) Close() error { return errors.Join(op.Store.Close(), op.Root.Close()) }

// placeOf is the root of trust that cfg names.
func placeOf(cfg Config) keystore.Place {
	if cfg.HSMModule == "" {
		return keystore.Place{Kind: hsm.KindSoftware}
	}
	return TokenPlace(cfg.HSMModule, cfg.HSMToken, cfg.HSMPINFile)
}

// TokenPlace is a root of trust on a token. Paths are made absolute, since the place
// is read again by a process that may run elsewhere; a module without a slash is
// looked for by the system's loader.
func TokenPlace(module, token, pinFile string) keystore.Place {
	p := keystore.Place{Kind: hsm.KindPKCS11, Module: module, Token: token, PINFile: pinFile}
	for _, path := range []*string{&p.Module, &p.PINFile} {
		if *path == "" || path == &p.Module && filepath.Base(*path) == *path {
			continue
		}
		if abs, err := filepath.Abs(*path); err == nil {
			*path = abs
		}
	}
	return p
}

// openPlace opens a root of trust. With create the software root's key file is made
// when it is missing.
func openPlace(cfg Config, o StoreOptions, p keystore.Place, create bool) (hsm.Root, error) {
	if p.Kind == hsm.KindPKCS11 {
		cfg.HSMModule, cfg.HSMToken, cfg.HSMPINFile = p.Module, p.Token, p.PINFile
		token := PKCS11Config(cfg, o.Logger)
		token.Child = o.HSMChild
		return hsm.OpenPKCS11(token)
	}
	path := filepath.Join(cfg.Data, rootKeyName)
	root, err := hsm.OpenSoftware(path, hsm.SoftwareOptions{Create: create})
	if errors.Is(err, hsm.ErrNoKeyFile) {
		return nil, fmt.Errorf("%w: %s; the store beside it cannot be opened without its root of trust: bring the file back, or name the HSM with hsm-module", hsm.ErrNoKeyFile, path)
	}
	return root, err
}

// OpenStore opens the store in cfg's data directory and the root of trust that cfg
// names, and the second one when the store is on its way from one to another.
func OpenStore(ctx context.Context, cfg Config, o StoreOptions) (_ *Opened, err error) {
	dir := StoreDir(cfg.Data)
	files, err := os.ReadDir(dir)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("data: %w", err)
	}
	exists := len(files) > 0
	if !exists && !o.Create {
		return nil, fmt.Errorf("data: %s holds no key store", cfg.Data)
	}
	place := placeOf(cfg)
	// A missing root key file is made only for a store that is yet to be made: for any
	// other, a new key could not open it.
	root, err := openPlace(cfg, o, place, o.Create && !exists)
	if err != nil {
		return nil, err
	}
	op := &Opened{Root: hsm.NewComposite(root), cfg: cfg, o: o, wait: rewrapWait, busy: make(chan struct{}, 1), roots: []placedRoot{{place, root}}}
	defer func() {
		if err != nil {
			err = errors.Join(err, op.Root.Close())
		}
	}()
	err = op.openStore(ctx)
	fallback := false
	if errors.Is(err, keystore.ErrWrongRoot) && place.Kind != hsm.KindSoftware {
		// The configuration may be ahead of a move that has not finished.
		soft, softErr := openPlace(cfg, o, keystore.Place{Kind: hsm.KindSoftware}, false)
		if softErr == nil {
			fallback = true
			wrong := err
			if err = op.add(keystore.Place{Kind: hsm.KindSoftware}, soft); err == nil {
				err = op.openStore(ctx)
			}
			if err != nil {
				err = wrong
			}
		}
	}
	if err != nil {
		return nil, explain(err, cfg)
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, op.Store.Close())
		}
	}()
	pending, err := op.Store.PendingRewrap()
	if err != nil {
		return nil, explain(err, cfg)
	}
	if pending == nil {
		if fallback {
			return nil, explain(fmt.Errorf("%w: it is under the software root, and the configuration names %s", keystore.ErrWrongRoot, place), cfg)
		}
		return op, nil
	}
	if o.StoreKeyOnly {
		return op, nil
	}
	if err := op.openOther(ctx, pending); err != nil {
		return nil, err
	}
	return op, nil
}

func (op *Opened) openStore(ctx context.Context) (err error) {
	op.Store, err = keystore.Open(ctx, keystore.Options{
		Dir:       StoreDir(op.cfg.Data),
		Root:      op.Root,
		Clock:     op.o.Clock,
		Logger:    op.o.Logger,
		OnFatal:   op.o.OnFatal,
		MustExist: !op.o.Create,
	})
	return err
}

// add makes an open root a member.
func (op *Opened) add(place keystore.Place, root hsm.Root) error {
	if err := op.Root.Add(root); err != nil {
		return errors.Join(err, root.Close())
	}
	op.roots = append(op.roots, placedRoot{place, root})
	return nil
}

// drop closes a member that is not needed.
func (op *Opened) drop(root hsm.Root) error {
	op.roots = slices.DeleteFunc(op.roots, func(r placedRoot) bool { return r.root == root })
	return op.Root.Remove(root)
}

// openOther opens what the move that has begun needs and is not open yet.
func (op *Opened) openOther(ctx context.Context, p *keystore.Rewrap) error {
	for _, need := range []struct {
		id    hsm.DomainKeyID
		place keystore.Place
	}{{p.Source, p.From}, {p.Target, p.To}} {
		err := op.Root.CheckDomainKey(ctx, need.id)
		if err == nil {
			continue
		}
		place := need.place
		if errors.Is(err, hsm.ErrNoDomainKey) {
			if t := op.o.Target; t != nil && need.id == p.Target {
				place = *t
			}
			var root hsm.Root
			if root, err = openPlace(op.cfg, op.o, place, false); err == nil {
				if err = op.add(place, root); err == nil {
					err = op.Root.CheckDomainKey(ctx, need.id)
				}
			}
		}
		if err != nil {
			return fmt.Errorf("on %s keymill rewrap began to move the store from %s to %s and has not finished, so it needs both; "+
				"domain key %s of %s is not to be had: %w; bring that root of trust back, or, if it is found elsewhere now, "+
				"stop the daemon, give both (--hsm-... and --to-hsm-...) to keymill rewrap, and let it finish",
				p.Begun.UTC().Format(time.DateTime), p.From, p.To, need.id, place, err)
		}
	}
	return nil
}
