package kms

import (
	"math"
	"time"

	"keymill/daemon/wire"
	"keymill/engine"
	"keymill/hsm/arena"
	"keymill/keystore"
)

// # Imported material
//
// A key of origin EXTERNAL is made without material, in state PendingImport. Its
// owner asks for a wrapping key and a token (GetParametersForImport), wraps the
// material and sends it with the token (ImportKeyMaterial). A key can lose its
// material again, by DeleteImportedKeyMaterial or because its time is over, and
// get it back: the same material only.
//
// What a key's record says of material that is not there has rules of its own,
// importmaterial.go; how wrapping keys and tokens are kept is in importtokens.go.
//
// Material whose time is over is refused from that moment on, by the clock of each
// request: the key's view shows the state that the key is about to get (at). Its
// destruction is the scheduler's and may come later.
//
// Two things that AWS restricts to its China regions are offered in all of ours,
// as SM2 keys are: SM2 wrapping keys, and the import of SM2 keys.

// Origins of key material.
const (
	originLocal    = "AWS_KMS"
	originExternal = "EXTERNAL"
)

// What the operations on imported material answer in each key state. The rows say
// always, since the origin is looked at first: AWS tells owners of other keys that
// theirs have no imported material, whatever their state.
const (
	importParameters stateRule = "..33..ef"
	importing        stateRule = "..33..e."
	importDeletion   stateRule = "......ef"
)

// importRows are the operations on imported key material.
var importRows = []operation{
	{op: wire.OpGetParametersForImport, key: byKey(func(in *wire.GetParametersForImportRequest) string { return in.KeyId }), states: always, run: with(getParametersForImport)},
	{op: wire.OpImportKeyMaterial, key: byKey(func(in *wire.ImportKeyMaterialRequest) string { return in.KeyId }), states: always, run: with(importKeyMaterial)},
	{op: wire.OpDeleteImportedKeyMaterial, key: byKey(func(in *wire.DeleteImportedKeyMaterialRequest) string { return in.KeyId }), states: always, run: with(deleteImportedKeyMaterial)},
}

// imports checks that the request's key is one for imported material, and its
// state.
func (x *exchange) imports(rule stateRule) error {
	if v := x.key; v.rec.Origin != originExternal {
		return wire.NewError(wire.UnsupportedOperationException, "%s origin is %s which is not valid for this operation.", v.arn, v.rec.Origin)
	}
	return rule.check(x.key.state, x.key.arn)
}

// stillImports is the same on a record read later.
func (x *exchange) stillImports(rule stateRule, k *keystore.Key) error {
	state, ok := parseState(k.State)
	if !ok {
		return invalidState("%s is in a state that this version does not know.", x.key.arn)
	}
	return rule.check(state, x.key.arn)
}

func getParametersForImport(x *exchange, in *wire.GetParametersForImportRequest) error {
	if err := x.imports(importParameters); err != nil {
		return err
	}
	v := x.key
	wrapping, _ := engine.ParseWrapping(in.WrappingAlgorithm) // the model has checked the names
	spec, _ := engine.ParseSpec(in.WrappingKeySpec)
	switch {
	case wrapping == engine.WrapPKCS1:
		return wire.NewError(wire.UnsupportedOperationException, "WrappingAlgorithm %s is no longer supported: use RSAES_OAEP_SHA_256 or RSA_AES_KEY_WRAP_SHA_256.", wrapping)
	case !wrapping.ServedBy(spec):
		return wire.NewError(wire.UnsupportedOperationException, "WrappingAlgorithm %s cannot be used with WrappingKeySpec %s.", wrapping, spec)
	case !wrapping.Carries(v.spec, spec):
		return wire.NewError(wire.UnsupportedOperationException, "WrappingAlgorithm %s with WrappingKeySpec %s cannot be used for key material of %s, whose KeySpec is %s.", wrapping, spec, v.arn, v.spec)
	}
	private, public, err := x.svc.generateKeyPair(spec)
	if err == engine.ErrNoProvider {
		return wire.NewError(wire.UnsupportedOperationException, "WrappingKeySpec %s is not available on this machine: keymill doctor --providers says why.", spec)
	} else if err != nil {
		return err
	}
	pair := wrappingPair{
		ID: make([]byte, pairIDSize), Wrapping: wrapping.String(), Spec: spec.String(),
		Until: x.now.Add(parametersLife).UnixMilli(), Private: private,
	}
	defer pair.wipe()
	engine.Random(pair.ID)
	if err := x.keepPair(&pair); err != nil {
		return err
	}
	token, err := x.svc.sealToken(v, &pair)
	if err != nil {
		return err
	}
	resp := wire.GetParametersForImportResponse{
		KeyId: v.arn, ImportToken: token, PublicKey: public, ParametersValidTo: timestamp(pair.until()),
	}
	x.out = resp.AppendJSON(x.out)
	return nil
}

// maxValidity is how far ahead ValidTo may be.
const maxValidity = 365 * 24 * time.Hour

// validity returns when the material of a request expires, the zero time for
// never.
func validity(in *wire.ImportKeyMaterialRequest, now time.Time) (time.Time, error) {
	if in.ExpirationModel == "KEY_MATERIAL_DOES_NOT_EXPIRE" {
		if in.ValidTo.Set {
			return time.Time{}, invalid("The parameter ValidTo cannot be specified for a key with an expiration model of KEY_MATERIAL_DOES_NOT_EXPIRE")
		}
		return time.Time{}, nil
	}
	if !in.ValidTo.Set {
		return time.Time{}, invalid("A validTo date must be set if the ExpirationModel is KEY_MATERIAL_EXPIRES")
	}
	// Judged before it is converted: it may be any number.
	ahead := in.ValidTo.V - float64(now.UnixMilli())/1000
	switch {
	case !(ahead > 0):
		return time.Time{}, invalid("ValidTo must be in the future")
	case ahead > maxValidity.Seconds():
		return time.Time{}, invalid("ValidTo must be at most 365 days in the future")
	}
	until := time.UnixMilli(int64(math.Round(in.ValidTo.V * 1000))).UTC()
	if !until.After(now) { // by less than a millisecond
		return time.Time{}, invalid("ValidTo must be in the future")
	}
	return until, nil
}

func importKeyMaterial(x *exchange, in *wire.ImportKeyMaterialRequest) error {
	if err := x.imports(importing); err != nil {
		return err
	}
	v := x.key
	until, err := validity(in, x.now)
	if err != nil {
		return err
	}
	m := incoming{view: v, kind: in.ImportType, claimed: in.KeyMaterialId, until: until, now: x.now.UTC()}
	if m.described = in.HasKeyMaterialDescription(); m.described {
		m.description = string([]byte(in.KeyMaterialDescription))
	}
	if err := m.checkRequest(); err != nil {
		return err
	}
	pair, err := x.openToken(in.ImportToken)
	if err != nil {
		return err
	}
	defer pair.wipe()
	secret, err := x.unwrapMaterial(&m, pair, in.EncryptedKeyMaterial)
	if err != nil {
		return err
	}
	defer arena.Wipe(secret)

	var sealed *keystore.Material
	var all []change
	err = x.updateKey(v, func(k *keystore.Key, t *keystore.Txn) error {
		if err := x.stillImports(importing, k); err != nil {
			return err
		}
		f, err := x.svc.family(k)
		if err != nil {
			return err
		}
		number, store, err := f.add(&m)
		if err != nil {
			return err
		}
		if store {
			if sealed == nil || sealed.Version != number {
				if sealed, err = x.svc.sealVersion(k, number, secret); err != nil {
					return err
				}
			}
			t.PutMaterial(sealed, keystore.AnyRevision)
		}
		f.write(t)
		all = f.changes()
		return nil
	})
	if err != nil {
		return err
	}
	x.svc.dropChanged(v, all)
	resp := wire.ImportKeyMaterialResponse{KeyId: v.arn}
	if v.spec.Symmetric() {
		resp.KeyMaterialId = m.id.String()
	}
	x.out = resp.AppendJSON(x.out)
	return nil
}

// unwrapMaterial opens what the caller wrapped, and fills in what m says of it.
// The caller wipes the result.
func (x *exchange) unwrapMaterial(m *incoming, pair *wrappingPair, wrapped []byte) ([]byte, error) {
	wrapping, ok := engine.ParseWrapping(pair.Wrapping)
	spec, ok2 := engine.ParseSpec(pair.Spec)
	if !ok || !ok2 {
		return nil, errInvalidToken
	}
	var secret, raw []byte
	var err error
	full := x.svc.runHeavy(func() {
		if raw, err = engine.Unwrap(wrapping, spec, pair.Private, wrapped); err == nil {
			defer arena.Wipe(raw)
			secret, m.public, err = engine.ImportMaterial(m.view.spec, raw)
		}
	})
	switch {
	case full != nil:
		return nil, full
	case err == engine.ErrInvalidMaterial:
		return nil, wrongMaterial(m.view, len(raw))
	case err == engine.ErrInvalidCiphertext:
		return nil, wire.Bare(wire.InvalidCiphertextException)
	case err != nil:
		return nil, err
	}
	m.id = engine.ComputeMaterialID(m.view.id, secret)
	return secret, nil
}

// wrongMaterial says what material of a key has to be.
func wrongMaterial(v *keyView, size int) error {
	switch {
	case v.spec.Symmetric():
		return incorrect("The key material is %d bytes long. %s has KeySpec %s, which takes 32 bytes.", size, v.arn, v.spec)
	case v.spec.HMAC():
		return incorrect("The key material is %d bytes long. %s has KeySpec %s, which takes as many bytes as its MAC has, up to 128.", size, v.arn, v.spec)
	}
	return incorrect("The key material is not a private key for %s: KeySpec %s takes a PKCS #8 private key of that kind in DER or BER, not encrypted.", v.arn, v.spec)
}

func incorrect(format string, args ...any) error {
	return wire.NewError(wire.IncorrectKeyMaterialException, format, args...)
}

// sealVersion seals the material of one version of a key.
func (s *Service) sealVersion(k *keystore.Key, number uint32, secret []byte) (*keystore.Material, error) {
	ctx, cancel := waitForRoot()
	defer cancel()
	return s.store.SealMaterial(ctx, keystore.Identity{
		Account: k.Account, Region: k.Region, Spec: k.Spec, ID: k.ID, Version: number,
	}, secret)
}

func deleteImportedKeyMaterial(x *exchange, in *wire.DeleteImportedKeyMaterialRequest) error {
	if err := x.imports(importDeletion); err != nil {
		return err
	}
	v := x.key
	if in.HasKeyMaterialId() && !v.spec.Symmetric() {
		return onlySymmetric("KeyMaterialId", v)
	}
	id := string([]byte(in.KeyMaterialId))
	if id == "" {
		id = v.currentMaterial()
	}
	var all []change
	err := x.updateKey(v, func(k *keystore.Key, t *keystore.Txn) error {
		if err := x.stillImports(importDeletion, k); err != nil {
			return err
		}
		f, err := x.svc.family(k)
		if err != nil {
			return err
		}
		i := f.find(id)
		switch {
		case i >= 0:
			f.remove(i, t)
		case in.KeyMaterialId != "":
			return wire.NewError(wire.NotFoundException, "Key material %s is not associated with KMS key %s.", in.KeyMaterialId, v.arn)
		}
		f.write(t)
		f.eraseLater(t)
		all = f.changes()
		return nil
	})
	if err != nil {
		return err
	}
	x.svc.dropChanged(v, all)
	resp := wire.DeleteImportedKeyMaterialResponse{KeyId: v.arn}
	if v.spec.Symmetric() {
		resp.KeyMaterialId = id
	}
	x.out = resp.AppendJSON(x.out)
	return nil
}

func onlySymmetric(member string, v *keyView) error {
	return wire.NewError(wire.UnsupportedOperationException, "%s can only be used with symmetric encryption keys; %s has KeySpec %s.", member, v.arn, v.spec)
}
