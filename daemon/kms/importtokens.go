package kms

import (
	"encoding/binary"
	"errors"
	"fmt"
	"strconv"
	"strings"
	"time"

	"github.com/fxamacker/cbor/v2"

	"keymill/daemon/wire"
	"keymill/engine"
	"keymill/hsm/arena"
	"keymill/hsm/xaes"
	"keymill/keystore"
)

// # Wrapping keys
//
// Each GetParametersForImport makes a wrapping key pair of its own. The private
// half is kept in the store, sealed like every record under the store key, which
// the root holds: it survives a restart, and needs no room in a token. A key has
// one record for all its pairs,
//
//	import/key/REGION/ID                   CBOR list of wrappingPair
//	import/due/UNTIL/REGION/ID             empty; UNTIL is in milliseconds, 16 hex
//
// and per pair a mark that says when to look at it. A pair lives parametersLife.
// It is not used after that, and soon removed (sweepPairs). More than maxPairs
// live pairs of one key push out the oldest, whose token is invalid from then on.
//
// # Import tokens
//
//	offset  size
//	     0     1  format, 1
//	     1    24  nonce, random
//	    25     8  UNTIL, big-endian milliseconds
//	    33    16  id of the pair
//	    49    16  tag
//
// From offset 25 on it is XAES-256-GCM under a key that is in the store as well
// (import/token), made on first use. Associated data are a label, the format, and
// account, region and id of the KMS key, so that a token of another key is as
// invalid as one that is garbled. Wrapping algorithm and key follow from the pair.
// A token can be used until it expires, any number of times.

const (
	parametersLife = 24 * time.Hour
	maxPairs       = 8

	tokenFormat = 1
	tokenNonce  = 2 * xaes.HalfNonce
	tokenTag    = 16
	pairIDSize  = 16
	tokenBody   = 8 + pairIDSize
	tokenSize   = 1 + tokenNonce + tokenBody + tokenTag

	pairsPrefix = "import/key/"
	duePrefix   = "import/due/"
	tokenRecord = "import/token"
)

// A wrappingPair is a wrapping key pair, without its public half.
type wrappingPair struct {
	ID       []byte `cbor:"1,keyasint"`
	Wrapping string `cbor:"2,keyasint"` // AWS names
	Spec     string `cbor:"3,keyasint"`
	Until    int64  `cbor:"4,keyasint"` // milliseconds since 1970
	Private  []byte `cbor:"5,keyasint"` // PKCS#8
}

func (p *wrappingPair) until() time.Time { return time.UnixMilli(p.Until).UTC() }

func (p *wrappingPair) wipe() { arena.Wipe(p.Private) }

func wipePairs(pairs []wrappingPair) {
	for i := range pairs {
		pairs[i].wipe()
	}
}

func pairsName(ref keystore.Ref) string { return pairsPrefix + refName(ref) }

func dueMark(until int64, ref keystore.Ref) string {
	return fmt.Sprintf("%s%016x/%s", duePrefix, uint64(until), refName(ref))
}

// parseDueMark is the reverse of dueMark.
func parseDueMark(name string) (until int64, ref keystore.Ref, ok bool) {
	digits, rest, _ := strings.Cut(strings.TrimPrefix(name, duePrefix), "/")
	ms, err := strconv.ParseUint(digits, 16, 64)
	ref, ok = parseRefName(rest)
	return int64(ms), ref, ok && err == nil && dueMark(int64(ms), ref) == name
}

// pairs reads the pairs of a key. No pairs is revision 0.
func (s *Service) pairs(ref keystore.Ref) (pairs []wrappingPair, rev uint64, err error) {
	value, rev, err := s.store.Get(pairsName(ref))
	if errors.Is(err, keystore.ErrNotFound) {
		return nil, 0, nil
	} else if err != nil {
		return nil, 0, err
	}
	defer arena.Wipe(value)
	if err := cbor.Unmarshal(value, &pairs); err != nil {
		return nil, 0, fmt.Errorf("record %s does not decode", pairsName(ref)) // the cause may quote it
	}
	return pairs, rev, nil
}

// putPairs writes the pairs of a key.
func putPairs(t *keystore.Txn, ref keystore.Ref, pairs []wrappingPair, rev uint64) error {
	if len(pairs) == 0 {
		t.Delete(pairsName(ref), rev)
		return nil
	}
	value, err := cbor.Marshal(pairs)
	if err != nil {
		return err
	}
	t.Put(pairsName(ref), value, rev)
	arena.Wipe(value)
	return nil
}

// livePairs returns those whose time is not over, and wipes the others.
func livePairs(pairs []wrappingPair, now time.Time) []wrappingPair {
	live := pairs[:0]
	for i := range pairs {
		if now.Before(pairs[i].until()) {
			live = append(live, pairs[i])
		} else {
			pairs[i].wipe()
		}
	}
	return live
}

// keepPair stores a new pair of the request's key.
func (x *exchange) keepPair(pair *wrappingPair) error {
	s, ref := x.svc, x.key.ref
	for range commitRetries {
		rec, err := s.store.Key(ref)
		if errors.Is(err, keystore.ErrNotFound) {
			return keyNotFound(x.key.arn)
		} else if err != nil {
			return err
		}
		if err := x.stillImports(importParameters, rec); err != nil {
			return err
		}
		old, rev, err := s.pairs(ref)
		if err != nil {
			return err
		}
		kept := livePairs(old, x.now)
		for len(kept) >= maxPairs {
			kept[0].wipe()
			kept = kept[1:]
		}
		t := s.store.NewTxn()
		t.ExpectKey(ref, rec.Revision) // it was not destroyed meanwhile
		err = putPairs(t, ref, append(kept[:len(kept):len(kept)], *pair), rev)
		t.Put(dueMark(pair.Until, ref), nil, keystore.AnyRevision)
		wipePairs(kept)
		if err == nil {
			err = commit(t)
		}
		if !errors.Is(err, keystore.ErrConflict) {
			return err
		}
	}
	return errBusy
}

// sweepPairs removes wrapping keys whose time is over.
func (s *Service) sweepPairs(now time.Time) error {
	for {
		marks, more, err := s.store.Scan(duePrefix, "", sweepPage)
		if err != nil {
			return err
		}
		for _, mark := range marks {
			until, ref, ok := parseDueMark(mark.Name)
			if ok && now.Before(time.UnixMilli(until)) {
				return nil
			}
			if err := s.sweepKey(mark.Name, ref, now, ok); err != nil {
				return err
			}
		}
		if !more {
			return nil
		}
	}
}

// sweepPage is how many marks are listed at once.
const sweepPage = 128

func (s *Service) sweepKey(mark string, ref keystore.Ref, now time.Time, ok bool) error {
	for range commitRetries {
		t := s.store.NewTxn()
		t.Delete(mark, keystore.AnyRevision)
		if ok {
			pairs, rev, err := s.pairs(ref)
			if err != nil {
				return err
			}
			had := len(pairs)
			pairs = livePairs(pairs, now)
			if len(pairs) < had {
				err = putPairs(t, ref, pairs, rev)
			}
			wipePairs(pairs)
			if err != nil {
				return err
			}
		}
		if err := commit(t); !errors.Is(err, keystore.ErrConflict) {
			return err
		}
	}
	return errBusy
}

// dropPairs removes the wrapping keys of a key that is destroyed. Their marks go
// when their time comes.
func dropPairs(t *keystore.Txn, ref keystore.Ref) {
	t.Delete(pairsName(ref), keystore.AnyRevision)
}

// tokenKey returns the key that import tokens are sealed with.
func (s *Service) tokenKey() (*xaes.Key, error) {
	for range commitRetries {
		secret, _, err := s.store.Get(tokenRecord)
		if errors.Is(err, keystore.ErrNotFound) {
			secret = make([]byte, xaes.KeySize)
			engine.Random(secret)
			t := s.store.NewTxn()
			t.Put(tokenRecord, secret, 0)
			err = commit(t)
		}
		if errors.Is(err, keystore.ErrConflict) {
			arena.Wipe(secret)
			continue
		}
		defer arena.Wipe(secret)
		if err != nil {
			return nil, err
		}
		return xaes.New(secret)
	}
	return nil, errBusy
}

// tokenAAD says which KMS key a token is for.
func tokenAAD(v *keyView) []byte {
	return fmt.Appendf(nil, "keymill import token\x00%c%s\x00%s\x00%s", tokenFormat, v.rec.Account, v.rec.Region, v.idText)
}

func (s *Service) sealToken(v *keyView, pair *wrappingPair) ([]byte, error) {
	key, err := s.tokenKey()
	if err != nil {
		return nil, err
	}
	var nonce [tokenNonce]byte
	engine.Random(nonce[:])
	return appendToken(make([]byte, 0, tokenSize), key, &nonce, tokenAAD(v), pair.Until, pair.ID), nil
}

// appendToken appends a token for a pair.
func appendToken(dst []byte, key *xaes.Key, nonce *[tokenNonce]byte, aad []byte, until int64, id []byte) []byte {
	body := append(binary.BigEndian.AppendUint64(make([]byte, 0, tokenBody), uint64(until)), id...)
	dst = append(append(dst, tokenFormat), nonce[:]...)
	return key.Seal(dst, nonce[:], body, aad)
}

// parseToken opens a token.
func parseToken(key *xaes.Key, aad, token []byte) (until int64, id []byte, ok bool) {
	if len(token) != tokenSize || token[0] != tokenFormat {
		return 0, nil, false
	}
	body, err := key.Open(make([]byte, 0, tokenBody), token[1:1+tokenNonce], token[1+tokenNonce:], aad)
	if err != nil {
		return 0, nil, false
	}
	return int64(binary.BigEndian.Uint64(body)), body[8:], true
}

var (
	errInvalidToken = wire.NewError(wire.InvalidImportTokenException, "The import token is not valid for this KMS key. Use the token and the public key of one GetParametersForImport answer.")
	errExpiredToken = wire.NewError(wire.ExpiredImportTokenException, "The import token has expired. Call GetParametersForImport for another, and wrap the key material again.")
)

// openToken returns the pair that a token of the request's key is for. The caller
// wipes it.
func (x *exchange) openToken(token []byte) (*wrappingPair, error) {
	key, err := x.svc.tokenKey()
	if err != nil {
		return nil, err
	}
	until, id, ok := parseToken(key, tokenAAD(x.key), token)
	if !ok {
		return nil, errInvalidToken
	}
	if !x.now.Before(time.UnixMilli(until)) {
		return nil, errExpiredToken
	}
	pairs, _, err := x.svc.pairs(x.key.ref)
	if err != nil {
		return nil, err
	}
	var found *wrappingPair
	for i := range pairs {
		if p := &pairs[i]; string(p.ID) == string(id) && p.Until == until {
			found = p
		} else {
			p.wipe()
		}
	}
	if found == nil {
		return nil, errInvalidToken
	}
	return found, nil
}
