package kms

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"strings"
	"time"

	"keymill/daemon/wire"
	"keymill/daemon/xks"
	"keymill/engine"
	"keymill/hsm"
	"keymill/keystore"
)

// # Keys in custom key stores
//
// A key of origin AWS_CLOUDHSM has no material here: its record names an object of
// the token (TokenKeyID), and every use is a call of the token. A key of origin
// EXTERNAL_KEY_STORE has material like a local key, under which everything is
// encrypted before it goes to the proxy, and names the proxy's key (ExternalKeyID).
//
// The handles of both live in the handle cache like others and find the store's
// device anew at every use, so a store that is disconnected, or reconnected, takes
// effect on handles that stand.
//
// Whatever goes wrong in a device, the answer to a cryptographic request is
// KMSInvalidStateException (AWS KMS Developer Guide, custom key stores); its text says
// what it was.

// keyStoreFor checks what a CreateKey request says of a custom key store, and
// returns it; nil when the key is to live here.
func (x *exchange) keyStoreFor(in *wire.CreateKeyRequest, spec engine.Spec, usage engine.Usage) (*keyStore, error) {
	inStore := in.Origin == typeCloudHSM || in.Origin == typeExternal
	switch {
	case in.XksKeyId != "" && in.Origin != typeExternal:
		return nil, invalid("XksKeyId can only be used with Origin %s.", typeExternal)
	case in.CustomKeyStoreId != "" && !inStore:
		return nil, invalid("CustomKeyStoreId can only be used with Origin %s or %s.", typeCloudHSM, typeExternal)
	case !inStore:
		return nil, nil
	case in.CustomKeyStoreId == "":
		return nil, invalid("You must specify CustomKeyStoreId for Origin %s.", in.Origin)
	case in.Origin == typeExternal && in.XksKeyId == "":
		return nil, invalid("You must specify XksKeyId for Origin %s.", typeExternal)
	case in.MultiRegion.V:
		return nil, wire.NewError(wire.UnsupportedOperationException, "A KMS key in a custom key store cannot be a multi-Region key.")
	}
	st, err := x.customKeyStore(in.CustomKeyStoreId)
	if err != nil {
		return nil, err
	}
	set := st.settings.Load()
	if set.Type != in.Origin {
		return nil, invalid("The custom key store %s is of type %s, which does not fit Origin %s.", st.name.id, set.Type, in.Origin)
	}
	if !spec.Symmetric() {
		kind, ok := engine.TokenSpec(spec, usage)
		if set.Type != typeCloudHSM || !x.svc.stores.config.Clusters[set.Cluster].OtherKeys {
			return nil, wire.NewError(wire.UnsupportedOperationException, "A KMS key in the custom key store %s can only have KeySpec %s.", st.name.id, engine.SymmetricDefault)
		}
		if d := st.device.Load(); !ok || d != nil && !holds(d, kind) {
			return nil, noMechanism(st, spec, usage)
		}
	}
	if !st.connected() {
		return nil, storeInvalidState("The custom key store %s is %s; connect it first.", st.name.id, st.state())
	}
	return st, nil
}

func noMechanism(st *keyStore, spec engine.Spec, usage engine.Usage) error {
	return wire.NewError(wire.UnsupportedOperationException, "The token of the custom key store %s has no mechanism for KeySpec %s with KeyUsage %s.", st.name.id, spec, usage)
}

func holds(d *device, kind hsm.TokenKeySpec) bool {
	info := d.token.Info()
	return info.Holds(kind)
}

// makeIn makes the part of a new key that is in a custom key store, and returns the
// material to keep here, if any. undo takes the part back when the key does not
// come about.
func (x *exchange) makeIn(st *keyStore, rec *keystore.Key, in *wire.CreateKeyRequest, spec engine.Spec, usage engine.Usage) (m *keystore.Material, undo func(), err error) {
	undo = nothing
	rec.CustomKeyStore = st.name.id
	d := st.device.Load()
	if d == nil {
		return nil, undo, storeInvalidState("The device of the custom key store %s cannot be reached at the moment.", st.name.id)
	}
	ctx, cancel := waitForRoot()
	defer cancel()
	id := engine.KeyID{ID: rec.ID}
	arn := keyARN(rec.Region, rec.Account, id.String())
	if d.proxy != nil {
		rec.ExternalKeyID = strings.Clone(in.XksKeyId)
		meta, err := d.proxy.Metadata(ctx, rec.ExternalKeyID, xks.Call{
			PrincipalARN: x.auth.Credential.PrincipalARN, Operation: x.opName(), RequestID: string(x.id[:]),
		})
		if err == nil {
			err = meta.Err()
		}
		if err != nil {
			if e := xks.KeyError(err); e != nil {
				return nil, undo, e
			}
			return nil, undo, err
		}
		m, err = x.svc.firstMaterial(rec, spec)
		return m, undo, err
	}
	kind, _ := engine.TokenSpec(spec, usage)
	object := hsm.NewTokenKeyID()
	undo = func() {
		ctx, cancel := waitForRoot()
		defer cancel()
		if err := d.token.Destroy(ctx, object); err != nil {
			x.svc.log.Warn("an object that no key uses may be left in a token", "custom_key_store", st.name.id, "object", object.String(), "label", arn, "error", err)
		}
	}
	public, err := d.token.GenerateKey(ctx, object, kind, arn)
	if err != nil {
		undo()
		if errors.Is(err, hsm.ErrMechanism) {
			return nil, nothing, noMechanism(st, spec, usage)
		}
		x.svc.log.Error("a token did not make a key", "custom_key_store", st.name.id, "request_id", string(x.id[:]), "error", err)
		return nil, nothing, storeInvalidState("The token of the custom key store %s could not make a key: %s.", st.name.id, tokenTrouble(err))
	}
	rec.TokenKeyID, rec.PublicKey = object[:], public
	rec.Versions = []keystore.Version{{Number: 1, MaterialID: engine.TokenMaterialID(id, object), Created: rec.Created}}
	rec.CurrentVersion = 1
	return nil, undo, nil
}

// notMadeIn says why the commit of a new key failed: when the key is in a custom key
// store, because another key has its external key or because the store was changed
// meanwhile.
func (x *exchange) notMadeIn(st *keyStore, rec *keystore.Key, err error) error {
	if st == nil || !errors.Is(err, keystore.ErrConflict) {
		return err
	}
	if rec.ExternalKeyID != "" {
		if _, err := x.svc.store.ExternalKey(rec.CustomKeyStore, rec.ExternalKeyID); err == nil {
			return wire.NewError(wire.XksKeyAlreadyInUseException, "The external key %s is used by another KMS key of the custom key store %s.", rec.ExternalKeyID, rec.CustomKeyStore)
		}
	}
	return storeInvalidState("The custom key store %s was changed by another request; try again.", st.name.id)
}

// storeOf returns the custom key store of a key, nil for a key that lives here.
func (s *Service) storeOf(rec *keystore.Key) *keyStore {
	if rec.CustomKeyStore == "" {
		return nil
	}
	return s.stores.get(storeName{rec.Account, rec.Region, rec.CustomKeyStore})
}

// stateIn returns the state in which a key of a custom key store shows itself.
func (st *keyStore) stateIn(own keyState) keyState {
	if (own == stateEnabled || own == stateDisabled) && !st.connected() {
		return stateUnavailable
	}
	return own
}

// newStoreHandle returns the handle of a key in a custom key store. src is the
// source of the material that is here.
func (s *Service) newStoreHandle(v *keyView, versions []engine.KeyVersion, current int, src engine.Source) engine.Key {
	if v.rec.Origin == typeExternal {
		return xks.NewKey(v.store.currentProxy, v.rec.ExternalKeyID, v.id, versions, current, src)
	}
	return engine.NewTokenKey(v.id, v.spec, v.usage, engine.TokenKey{
		ID:     hsm.TokenKeyID(v.rec.TokenKeyID),
		Public: v.rec.PublicKey,
		Token:  storeToken{v.store},
		Before: func() error { return s.stillUsable(v.ref, v.arn) },
		Lease:  func(ctx context.Context, n uint64) error { return s.leaseUses(v.ref, v.arn, n) },
	})
}

// stillUsable looks whether a key may still be used for cryptography: it may have
// been disabled or deleted since its handle was made.
func (s *Service) stillUsable(ref keystore.Ref, arn string) error {
	rec, err := s.store.Key(ref)
	if errors.Is(err, keystore.ErrNotFound) {
		return keyNotFound(arn)
	} else if err != nil {
		return err
	}
	if state, ok := parseState(rec.State); ok {
		if err := cryptography.check(state, arn); err != nil {
			s.dropView(ref) // see updateKey
			return err
		}
	}
	return nil
}

// onBehalf returns a context that tells an XKS proxy for whom it is called.
func (x *exchange) onBehalf(ctx context.Context, v *keyView) context.Context {
	return xks.WithCall(ctx, xks.Call{
		PrincipalARN: x.auth.Credential.PrincipalARN, KeyARN: v.arn, Operation: x.row.kmsOperation(), RequestID: string(x.id[:]),
	})
}

// kmsOperation is the operation of AWS KMS that an operation is, for a proxy: that of
// which a bulk operation makes many.
func (r *operation) kmsOperation() string {
	switch r.op {
	case wire.OpGenerateDataKeys:
		return wire.OpGenerateDataKey.String()
	case wire.OpBatchEncrypt:
		return wire.OpEncrypt.String()
	case wire.OpBatchDecrypt:
		return wire.OpDecrypt.String()
	}
	return r.op.String()
}

// currentProxy returns the client of the store's proxy.
func (st *keyStore) currentProxy() (*xks.Client, error) {
	d := st.device.Load()
	switch {
	case !st.connected():
		return nil, xks.NewError(xks.NotConnected, nil)
	case d == nil: // it has not answered since the daemon started
		return nil, xks.NewError(xks.Unreachable, nil)
	}
	return d.proxy, nil
}

// A storeToken is the token of a custom key store, whichever is open when it is
// called.
type storeToken struct{ st *keyStore }

func (t storeToken) Do(ctx context.Context, ops []hsm.TokenOp) {
	if d := t.st.device.Load(); d != nil && t.st.connected() {
		d.token.Do(ctx, ops)
		return
	}
	for i := range ops {
		ops[i].Err = errNoDevice
	}
}

var errNoDevice = fmt.Errorf("%w: the custom key store has no open token", hsm.ErrTokenMissing)

// cryptoError is the answer to a cryptographic request whose device failed.
func (st *keyStore) cryptoError(err error, arn string) error {
	var e *wire.Error
	if errors.As(err, &e) {
		return e
	}
	if e := xks.CryptoError(err); e != nil {
		return e
	}
	if errors.Is(err, engine.ErrUsedUp) {
		return wire.NewError(wire.KMSInvalidStateException, "%s has encrypted as often as a key in a token safely can. Create a new KMS key.", arn).WithCause(err)
	}
	return wire.NewError(wire.KMSInvalidStateException, "The token of the custom key store %s failed: %s.", st.name.id, tokenTrouble(err)).WithCause(err)
}

// tokenTrouble says in a few words, for a caller, what is the matter with a token.
func tokenTrouble(err error) string {
	switch {
	case errors.Is(err, hsm.ErrTokenMissing):
		return "it cannot be found at the moment"
	case errors.Is(err, hsm.ErrPINIncorrect), errors.Is(err, hsm.ErrTokenLocked):
		return "it refuses the password of the custom key store"
	case errors.Is(err, hsm.ErrNoTokenKey):
		return "it does not have the key material"
	case errors.Is(err, hsm.ErrTimeout), errors.Is(err, context.DeadlineExceeded):
		return "it did not answer in time"
	case errors.Is(err, hsm.ErrBusy):
		return "all its sessions are busy"
	}
	return "it refused the operation"
}

// useRecords keep the durable counts of encryptions under keys in tokens: 8 bytes,
// big-endian, under "uses/<region>/<id>".
func useRecord(ref keystore.Ref) string { return "uses/" + ref.Region + "/" + ref.ID.String() }

// leaseUses makes n more encryptions of a key durable before they happen.
func (s *Service) leaseUses(ref keystore.Ref, arn string, n uint64) error {
	for range commitRetries {
		value, rev, err := s.store.Get(useRecord(ref))
		if err != nil && !errors.Is(err, keystore.ErrNotFound) {
			return err
		}
		used := uint64(0)
		if len(value) == 8 {
			used = binary.BigEndian.Uint64(value)
		}
		next, alarm, err := engine.LeaseUses(used, n)
		if err != nil {
			return err
		}
		t := s.store.NewTxn()
		t.Put(useRecord(ref), binary.BigEndian.AppendUint64(nil, next), rev)
		if err := commit(t); errors.Is(err, keystore.ErrConflict) {
			continue
		} else if err != nil {
			return err
		}
		if alarm {
			s.log.Warn("a key in a token has used up half of the encryptions that are safe: plan for its replacement", "key", arn, "used", next, "limit", uint64(engine.TokenUseLimit))
		}
		return nil
	}
	return errBusy
}

// tokenPatience is for how long after its date the destruction of a key waits for
// its token to come back.
const tokenPatience = 7 * 24 * time.Hour

// destroyInToken removes the object of a key in a token. A token that is away makes
// it fail, to be tried again, until tokenPatience is over.
func (s *Service) destroyInToken(rec *keystore.Key) error {
	if rec.Origin != typeCloudHSM || len(rec.TokenKeyID) != len(hsm.TokenKeyID{}) {
		return nil
	}
	object := hsm.TokenKeyID(rec.TokenKeyID)
	err := errNoDevice
	if st := s.storeOf(rec); st != nil {
		if d := st.device.Load(); d != nil {
			ctx, cancel := waitForRoot()
			defer cancel()
			err = d.token.Destroy(ctx, object)
		}
	}
	if err != nil {
		if s.clock().Sub(rec.DeletionDate) <= tokenPatience {
			return err
		}
		s.log.Error("a deleted key's object is left in its token, which was away too long", "custom_key_store", rec.CustomKeyStore, "object", object.String(), "error", err)
	}
	t := s.store.NewTxn()
	t.Delete(useRecord(rec.Ref()), keystore.AnyRevision)
	return commit(t)
}

// randomFrom fills b from the token of a custom key store.
func (x *exchange) randomFrom(id string, b []byte) error {
	x.mayWait()
	st, err := x.customKeyStore(id)
	if err != nil {
		return err
	}
	if st.settings.Load().Type != typeCloudHSM {
		return wire.NewError(wire.UnsupportedOperationException, "Random bytes cannot be had from the external key store %s.", id)
	}
	d := st.device.Load()
	if d == nil || !st.connected() {
		return storeInvalidState("The custom key store %s is %s and its token cannot be used.", id, st.state())
	}
	if !st.admit(1, x.now) {
		return x.notAdmitted(st.bucket.Burst())
	}
	ctx, cancel := waitForRoot()
	defer cancel()
	if err := d.token.Random(ctx, [][]byte{b}); err != nil {
		x.svc.log.Error("a token gave no random bytes", "custom_key_store", id, "request_id", string(x.id[:]), "error", err)
		return storeInvalidState("The token of the custom key store %s gave no random bytes: %s.", id, tokenTrouble(err))
	}
	return nil
}
