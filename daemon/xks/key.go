package xks

import (
	"context"

	"keymill/engine"
)

// NewKey returns the handle of a KMS key whose material is half an external key:
// engine.NewExternalKey over this package's client.
//
// store returns the key store's current client at every use, or an error of this
// package, NotConnected above all; so a changed credential or a disconnected store
// takes effect on handles that stand. versions, current and src are the material
// of ours.
//
// For whom a call is comes from the context: see [WithCall]. Errors of single
// operations are [*Error]; [CryptoError] says what to answer.
func NewKey(store func() (*Client, error), externalID string, id engine.KeyID, versions []engine.KeyVersion, current int, src engine.Source) engine.Key {
	return engine.NewExternalKey(id, versions, current, src, &remote{store, externalID})
}

type remote struct {
	store      func() (*Client, error)
	externalID string
}

func (r *remote) Encrypt(ctx context.Context, plaintext, aad []byte) (engine.Sealed, error) {
	c, err := r.store()
	if err != nil {
		return engine.Sealed{}, err
	}
	return c.Encrypt(ctx, r.externalID, plaintext, aad, callOf(ctx, "Encrypt"))
}

func (r *remote) Decrypt(ctx context.Context, s engine.Sealed, aad []byte) ([]byte, error) {
	c, err := r.store()
	if err != nil {
		return nil, err
	}
	return c.Decrypt(ctx, r.externalID, s, aad, callOf(ctx, "Decrypt"))
}

type callKey struct{}

// WithCall returns a context that says on whose behalf a key of [NewKey] calls
// its proxy. It goes to Warm.
func WithCall(ctx context.Context, c Call) context.Context {
	return context.WithValue(ctx, callKey{}, c)
}

// internalCaller is what the protocol has for a caller that is KMS itself.
const internalCaller = "AWS Internal"

// callOf returns the context's call, completed: a proxy refuses one without the
// required members.
func callOf(ctx context.Context, operation string) Call {
	c, _ := ctx.Value(callKey{}).(Call)
	for _, f := range []struct {
		field *string
		value string
	}{{&c.PrincipalARN, internalCaller}, {&c.KeyARN, internalCaller}, {&c.Operation, operation}, {&c.RequestID, "none"}} {
		if *f.field == "" {
			*f.field = f.value
		}
	}
	return c
}
