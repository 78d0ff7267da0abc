package kms

import (
	"context"
	"crypto/hmac"
	"crypto/sha256"
	"encoding/base64"
	"encoding/hex"
	"errors"
	"sync/atomic"

	"keymill/daemon/wire"
	"keymill/engine"
	"keymill/keystore"
)

// # Grant tokens
//
// A grant token stands for a grant. It is base64url, without padding, of
//
//	offset  size
//	     0     1  format, 1
//	     1    16  id of the key
//	    17    32  id of the grant
//	    49    16  random: AWS KMS never hands out the same token twice
//	    65    32  HMAC-SHA-256 of the label, the region and all before it
//
// The label is "keymill grant token" and a zero byte, the region is followed by a
// zero byte. The HMAC's key is random and kept in the store, so tokens survive a
// restart and go with a backup.
//
// Grants of Keymill are in effect when CreateGrant answers, so nobody needs a
// token. It is accepted as long as its grant exists. It is not secret and gives
// nobody a right; that it cannot be forged only keeps callers from asking which
// grants exist.

const (
	grantTokenFormat = 1
	grantTokenBody   = 1 + 16 + 32 + 16
	grantTokenSize   = grantTokenBody + sha256.Size
	grantTokenLabel  = "keymill grant token\x00"

	// grantTokenKeyName is the record of the HMAC key.
	grantTokenKeyName = "kms/grant-token-key"
	grantTokenKeySize = 32
)

var grantTokenText = base64.RawURLEncoding.Strict()

// grantTokens keeps the HMAC key once it was read or made.
type grantTokens struct {
	key atomic.Pointer[[]byte]
}

// grantTokenKey returns the HMAC key, nil when there was none and make is false.
func (s *Service) grantTokenKey(make bool) ([]byte, error) {
	if k := s.tokens.key.Load(); k != nil {
		return *k, nil
	}
	for range commitRetries {
		key, _, err := s.store.Get(grantTokenKeyName)
		switch {
		case err == nil && len(key) != grantTokenKeySize:
			return nil, errors.New("the key of grant tokens has the wrong length")
		case err == nil:
			s.tokens.key.Store(&key)
			return key, nil
		case !errors.Is(err, keystore.ErrNotFound):
			return nil, err
		case !make:
			return nil, nil
		}
		var fresh [grantTokenKeySize]byte
		engine.Random(fresh[:])
		t := s.store.NewTxn()
		t.Put(grantTokenKeyName, fresh[:], 0)
		_, err = t.Commit(context.Background())
		clear(fresh[:])
		if err != nil && !errors.Is(err, keystore.ErrConflict) {
			return nil, err
		}
	}
	return nil, errBusy
}

func grantTokenMAC(key []byte, region string, body []byte) []byte {
	mac := hmac.New(sha256.New, key)
	mac.Write([]byte(grantTokenLabel))
	mac.Write([]byte(region))
	mac.Write([]byte{0})
	mac.Write(body)
	return mac.Sum(nil)
}

// newGrantToken returns a fresh token of a grant.
func (s *Service) newGrantToken(ref keystore.Ref, id string) (string, error) {
	key, err := s.grantTokenKey(true)
	if err != nil {
		return "", err
	}
	b := make([]byte, grantTokenBody, grantTokenSize)
	b[0] = grantTokenFormat
	copy(b[1:17], ref.ID[:])
	if _, err := hex.Decode(b[17:49], []byte(id)); err != nil {
		return "", err
	}
	engine.Random(b[49:grantTokenBody])
	return grantTokenText.EncodeToString(append(b, grantTokenMAC(key, ref.Region, b)...)), nil
}

// readGrantToken returns the grant that a token was made for in a region; the
// grant need not exist any more.
func (s *Service) readGrantToken(region, token string) (keystore.GrantRef, error) {
	key, err := s.grantTokenKey(false)
	if err != nil {
		return keystore.GrantRef{}, err
	}
	ref, ok := parseGrantToken(key, region, token)
	if !ok {
		return ref, invalidGrantToken(region)
	}
	return ref, nil
}

func parseGrantToken(key []byte, region, token string) (keystore.GrantRef, bool) {
	var b [grantTokenSize]byte
	if len(token) != grantTokenText.EncodedLen(len(b)) || key == nil {
		return keystore.GrantRef{}, false
	}
	if n, err := grantTokenText.Decode(b[:], []byte(token)); err != nil || n != len(b) || b[0] != grantTokenFormat {
		return keystore.GrantRef{}, false
	}
	if !hmac.Equal(b[grantTokenBody:], grantTokenMAC(key, region, b[:grantTokenBody])) {
		return keystore.GrantRef{}, false
	}
	return keystore.GrantRef{
		Key: keystore.Ref{Region: region, ID: keystore.KeyID(b[1:17])},
		ID:  hex.EncodeToString(b[17:49]),
	}, true
}

func invalidGrantToken(region string) error {
	return wire.NewError(wire.InvalidGrantTokenException, "Invalid grant token: it is malformed, or not one of a grant in %s.", region)
}

// readGrantTokens puts the grants of a request's tokens into x.grants.
func (x *exchange) readGrantTokens(tokens []string) error {
	x.mayWait()
	for _, token := range tokens {
		ref, err := x.svc.readGrantToken(x.region, token)
		if err != nil {
			return err
		}
		g, err := x.svc.store.Grant(ref.Key, ref.ID)
		if errors.Is(err, keystore.ErrNotFound) {
			return invalidGrantToken(x.region)
		} else if err != nil {
			return err
		}
		x.grants = append(x.grants, g)
	}
	return nil
}
