package keystore

import (
	"context"
	"crypto/aes"
	"crypto/cipher"
	"crypto/rand"
	"encoding/binary"
	"errors"
	"fmt"

	"keymill/hsm"
	"keymill/hsm/arena"
)

// # Sealed material
//
// The secret of a key version is sealed twice: as Material.Sealed under a
// key-encryption key (KEK) of its own, which only the root unwraps, and again
// with the whole record under the store key. The inner seal is
//
//	offset  size
//	     0     1  material format, 1
//	     1    12  nonce, random
//	    13     n  AES-256-GCM of the secret under the KEK
//	  13+n    16  tag
//
// with the identity as associated data: "keymill material", the format byte,
// account, region and spec with one byte of length each, the 16 bytes of key id
// and the version in 4 bytes, big-endian. A KEK seals one secret once, so plain
// GCM is enough. KEK and secret are wiped when the call that made them is done;
// the expanded key schedules remain on the Go heap until it is collected.

const (
	materialFormat = 1
	materialNonce  = 12
	materialLabel  = "keymill material"
)

// aad writes the associated data of sealed material.
func (id *Identity) aad() ([]byte, error) {
	b := append(make([]byte, 0, 128), materialLabel...)
	b = append(b, materialFormat)
	for _, s := range []string{id.Account, id.Region, id.Spec} {
		if len(s) == 0 || len(s) > 255 {
			return nil, fmt.Errorf("%w: identity of material is incomplete", ErrInvalid)
		}
		b = append(append(b, byte(len(s))), s...)
	}
	b = append(b, id.ID[:]...)
	return binary.BigEndian.AppendUint32(b, id.Version), nil
}

func gcm(kek []byte) (cipher.AEAD, error) {
	block, err := aes.NewCipher(kek)
	if err != nil {
		return nil, err
	}
	return cipher.NewGCM(block)
}

// SealMaterial seals a secret under a fresh key-encryption key and has that
// wrapped by the root, together with those of other callers. The result is not
// stored: put it. The secret remains the caller's to wipe.
func (s *Store) SealMaterial(ctx context.Context, id Identity, secret []byte) (*Material, error) {
	aad, err := id.aad()
	if err != nil {
		return nil, err
	}
	kek := make([]byte, hsm.KEKSize)
	rand.Read(kek)
	aead, err := gcm(kek)
	if err != nil {
		arena.Wipe(kek)
		return nil, err
	}
	domain := s.under.Load().target
	wrapped, err := s.wrap.do(ctx, domain, kek) // wipes kek
	if err != nil {
		return nil, fmt.Errorf("keystore: could not wrap a key-encryption key: %w", err)
	}
	sealed := make([]byte, 1+materialNonce, 1+materialNonce+len(secret)+aead.Overhead())
	sealed[0] = materialFormat
	rand.Read(sealed[1:])
	return &Material{
		Ref: Ref{id.Region, id.ID}, Version: id.Version, DomainKey: domain, WrappedKEK: wrapped,
		Sealed: aead.Seal(sealed, sealed[1:], secret, aad),
	}, nil
}

// openKey names what concurrent callers can share: the revision is part of it,
// so that nobody joins the opening of material that was replaced or deleted
// before they came.
type openKey struct {
	id  Identity
	rev uint64
}

// An openFlight is one unwrap that several callers may wait for. Each copies
// the secret; the last to leave wipes it.
type openFlight struct {
	done   chan struct{}
	secret []byte // written before done
	err    error  // written before done
	users  int    // guarded by Store.opens.mu; the opener counts as one
}

// OpenMaterial loads and opens the secret of a key version. Concurrent calls
// for one version are one call of the root; calls for several travel together.
// The caller owns the secret and wipes it. ErrNotFound: there is no such
// material. ErrTampered: it is not this identity's. Errors of the root pass
// through: see hsm.Classify.
func (s *Store) OpenMaterial(ctx context.Context, id Identity) (secret []byte, err error) {
	secret, err = s.openMaterial(ctx, id)
	if errors.Is(err, hsm.ErrNoDomainKey) && len(s.under.Load().retired) > 0 {
		// The store has moved to another root since the record was read.
		secret, err = s.openMaterial(ctx, id)
	}
	return secret, err
}

func (s *Store) openMaterial(ctx context.Context, id Identity) (secret []byte, err error) {
	aad, err := id.aad()
	if err != nil {
		return nil, err
	}
	m, err := s.Material(Ref{id.Region, id.ID}, id.Version)
	if err != nil {
		return nil, err
	}
	k := openKey{id, m.Revision}
	s.opens.mu.Lock()
	f := s.opens.flights[k]
	if f == nil {
		f = &openFlight{done: make(chan struct{}), users: 1}
		s.opens.flights[k] = f
		go func() {
			f.secret, f.err = s.openSealed(m, aad)
			s.opens.mu.Lock()
			delete(s.opens.flights, k)
			s.opens.mu.Unlock()
			close(f.done)
			s.leave(f)
		}()
	}
	f.users++
	s.opens.mu.Unlock()
	defer s.leave(f)
	select {
	case <-f.done:
		if f.err != nil {
			return nil, f.err
		}
		return append(make([]byte, 0, len(f.secret)), f.secret...), nil
	case <-ctx.Done():
		return nil, ctx.Err()
	}
}

func (s *Store) leave(f *openFlight) {
	s.opens.mu.Lock()
	f.users--
	last := f.users == 0
	s.opens.mu.Unlock()
	if last {
		arena.Wipe(f.secret)
	}
}

// openSealed unwraps the KEK and opens the material. It runs for all who wait,
// so it is nobody's context; the root bounds its own time.
func (s *Store) openSealed(m *Material, aad []byte) ([]byte, error) {
	storageKey := materialName(m.Ref, m.Version).key()
	if len(m.Sealed) < 1+materialNonce+16 || m.Sealed[0] != materialFormat {
		return nil, tampered(storageKey, "unknown material format")
	}
	kek, err := s.unwrap.do(context.Background(), m.DomainKey, m.WrappedKEK)
	if err != nil {
		return nil, fmt.Errorf("keystore: could not unwrap the key of %s: %w", describe(storageKey), err)
	}
	defer arena.Wipe(kek)
	aead, err := gcm(kek)
	if err != nil {
		return nil, err
	}
	body := m.Sealed[1+materialNonce:]
	secret, err := aead.Open(make([]byte, 0, len(body)), m.Sealed[1:1+materialNonce], body, aad)
	if err != nil {
		return nil, tampered(storageKey, "does not open for this account, region, spec, key and version")
	}
	return secret, nil
}
