package kms

import (
	"cmp"
	"errors"
	"strings"
	"time"

	"keymill/daemon/policy"
	"keymill/daemon/wire"
	"keymill/engine"
	"keymill/keystore"
)

// Limits that AWS KMS documents but its service model does not carry.
const (
	defaultDeletionDays = 30
	minDeletionDays     = 7
	maxDeletionDays     = 30
)

// timestamp is a time as the wire has it, in seconds with milliseconds.
func timestamp(t time.Time) wire.Opt[float64] {
	return wire.Some(float64(t.UnixMilli()) / 1000)
}

func createKey(x *exchange, in *wire.CreateKeyRequest) error {
	spec, usage, err := keyKind(in)
	if err != nil {
		return err
	}
	origin := cmp.Or(strings.Clone(in.Origin), originLocal)
	if origin == originExternal && !spec.Importable() {
		return wire.NewError(wire.UnsupportedOperationException, "KeySpec %s is not supported for Origin %s.", spec, origin)
	}
	st, err := x.keyStoreFor(in, spec, usage)
	if err != nil {
		return err
	}
	tags, err := mergeTags(nil, in.Tags, x.svc.quota.Resources().TagsPerKey)
	if err != nil {
		return err
	}
	id := newKeyID(in.MultiRegion.V)
	keyPolicy := policy.Default(Partition(x.region), x.account)
	if in.Policy != "" {
		if err := x.checkPolicy(keyARN(x.region, x.account, id.String()), in.Policy, in.BypassPolicyLockoutSafetyCheck.V); err != nil {
			return err
		}
		keyPolicy = strings.Clone(in.Policy)
	}

	done, err := x.svc.keyRoom.take(x.svc, x.account, x.region)
	if err != nil {
		return err
	}
	defer done()
	rec := &keystore.Key{
		Account:     x.account,
		Region:      x.region,
		ID:          id.ID,
		MultiRegion: id.MultiRegion,
		Spec:        spec.String(),
		Usage:       usage.String(),
		Origin:      origin,
		State:       stateEnabled.String(),
		Manager:     "CUSTOMER",
		Description: strings.Clone(in.Description),
		Created:     x.now.UTC(),
	}
	ref := keystore.Ref{Region: rec.Region, ID: rec.ID}
	t := x.svc.store.NewTxn()
	undo := nothing
	var material *keystore.Material
	switch {
	case st != nil:
		t.Expect(st.name.record(), st.rev.Load())
		material, undo, err = x.makeIn(st, rec, in, spec, usage)
	case origin == originLocal:
		material, err = x.svc.firstMaterial(rec, spec)
	default:
		rec.State = statePendingImport.String()
	}
	if err != nil {
		return err
	}
	t.PutKey(rec, 0)
	if material != nil {
		t.PutMaterial(material, 0)
	}
	t.PutPolicy(ref, keyPolicy, 0)
	if len(tags) > 0 {
		t.PutTags(ref, tags, 0)
	}
	if err := commit(t); err != nil {
		undo()
		return x.notMadeIn(st, rec, err)
	}
	x.svc.dropView(ref)
	v, err := x.svc.buildView(rec)
	if err != nil {
		return err
	}
	resp := wire.CreateKeyResponse{KeyMetadata: metadata(v)}
	x.out = resp.AppendJSON(x.out)
	return nil
}

// firstMaterial generates the first version of a new key, and seals it.
func (s *Service) firstMaterial(rec *keystore.Key, spec engine.Spec) (*keystore.Material, error) {
	secret, public, err := s.generateMaterial(spec)
	if err != nil {
		return nil, err
	}
	defer clear(secret)
	id := engine.KeyID{ID: rec.ID, MultiRegion: rec.MultiRegion}
	rec.Versions = []keystore.Version{{Number: 1, MaterialID: engine.ComputeMaterialID(id, secret), Created: rec.Created}}
	rec.CurrentVersion, rec.PublicKey = 1, public
	return s.sealVersion(rec, 1, secret)
}

// keyKind returns the spec and usage that a CreateKey request asks for.
func keyKind(in *wire.CreateKeyRequest) (engine.Spec, engine.Usage, error) {
	name := in.KeySpec
	if in.CustomerMasterKeySpec != "" {
		if name != "" {
			return 0, 0, invalid("You cannot specify KeySpec and CustomerMasterKeySpec in the same request. CustomerMasterKeySpec is deprecated.")
		}
		name = in.CustomerMasterKeySpec
	}
	if name == "" {
		name = engine.SymmetricDefault.String()
	}
	spec, ok := engine.ParseSpec(name)
	if !ok {
		return 0, 0, wire.NewError(wire.UnsupportedOperationException, "KeySpec %s is not available in this version of Keymill.", name)
	}
	if in.KeyUsage == "" {
		if !spec.Symmetric() {
			return 0, 0, invalid("You must specify a KeyUsage value for all KMS keys except for symmetric encryption keys.")
		}
		return spec, engine.EncryptDecrypt, nil
	}
	usage, _ := engine.ParseUsage(in.KeyUsage)
	for _, u := range spec.Usages() {
		if u != usage {
			continue
		}
		if engine.Supported(spec, usage) != nil {
			return 0, 0, wire.NewError(wire.UnsupportedOperationException, "KeySpec %s with KeyUsage %s is not available on this machine: keymill doctor --providers says why.", spec, usage)
		}
		return spec, usage, nil
	}
	return 0, 0, invalid("KeyUsage %s is not compatible with KeySpec %s", in.KeyUsage, spec)
}

func newKeyID(multiRegion bool) engine.KeyID {
	id := engine.KeyID{MultiRegion: multiRegion}
	engine.Random(id.ID[:])
	if !multiRegion { // a version 4 UUID
		id.ID[6] = id.ID[6]&0x0f | 0x40
		id.ID[8] = id.ID[8]&0x3f | 0x80
	}
	return id
}

// metadata is what DescribeKey and CreateKey show of a key (operations of the
// AWS KMS API Reference, KeyMetadata).
func metadata(v *keyView) *wire.KeyMetadata {
	k := v.rec
	m := &wire.KeyMetadata{
		AWSAccountId:          k.Account,
		KeyId:                 v.idText,
		Arn:                   v.arn,
		CreationDate:          timestamp(k.Created),
		Enabled:               wire.Some(v.state == stateEnabled),
		Description:           k.Description,
		KeyUsage:              k.Usage,
		KeyState:              v.state.String(),
		Origin:                k.Origin,
		KeyManager:            k.Manager,
		CustomerMasterKeySpec: k.Spec,
		KeySpec:               k.Spec,
		MultiRegion:           wire.Some(k.MultiRegion),
		CurrentKeyMaterialId:  v.currentMaterial(),
	}
	if v.state == statePendingDeletion {
		m.DeletionDate = timestamp(k.DeletionDate)
	}
	switch names := algorithmNames(v.spec, v.usage); v.usage {
	case engine.EncryptDecrypt:
		m.EncryptionAlgorithms = names
	case engine.SignVerify:
		m.SigningAlgorithms = names
	case engine.GenerateVerifyMAC:
		m.MacAlgorithms = names
	case engine.KeyAgreement:
		m.KeyAgreementAlgorithms = names
	}
	if v.state == statePendingReplicaDeletion {
		m.PendingDeletionWindowInDays = wire.Some(int64(k.PendingWindowDays))
	}
	if k.Origin == originExternal && v.state != statePendingImport && materialComplete(k) {
		m.ExpirationModel = "KEY_MATERIAL_DOES_NOT_EXPIRE"
		if first := earliestExpiry(k); !first.IsZero() {
			m.ExpirationModel, m.ValidTo = "KEY_MATERIAL_EXPIRES", timestamp(first)
		}
	}
	if k.MultiRegion {
		m.MultiRegionConfiguration = relations(v)
	}
	if v.store != nil {
		m.CustomKeyStoreId = k.CustomKeyStore
		m.CloudHsmClusterId = v.store.settings.Load().Cluster
	}
	if k.ExternalKeyID != "" {
		m.XksKeyConfiguration = &wire.XksKeyConfigurationType{Id: k.ExternalKeyID}
	}
	return m
}

// relations says which keys are related to a multi-Region key, and how.
func relations(v *keyView) *wire.MultiRegionConfiguration {
	key := func(region string) wire.MultiRegionKey {
		return wire.MultiRegionKey{Arn: keyARN(region, v.rec.Account, v.idText), Region: region}
	}
	c := &wire.MultiRegionConfiguration{MultiRegionKeyType: "PRIMARY", ReplicaKeys: []wire.MultiRegionKey{}}
	primary := v.primaryRegion()
	if primary != v.rec.Region {
		c.MultiRegionKeyType = "REPLICA"
	}
	p := key(primary)
	c.PrimaryKey = &p
	for _, r := range v.rec.ReplicaRegions {
		c.ReplicaKeys = append(c.ReplicaKeys, key(r))
	}
	return c
}

// primaryRegion is the region of a multi-Region key's primary, and of other keys
// their own.
func (v *keyView) primaryRegion() string {
	if v.rec.PrimaryRegion != "" {
		return v.rec.PrimaryRegion
	}
	return v.rec.Region
}

func algorithmNames(s engine.Spec, u engine.Usage) []string {
	algs := s.Algorithms(u)
	names := make([]string, len(algs))
	for i, a := range algs {
		names[i] = a.String()
	}
	return names
}

func describeKey(x *exchange, _ *wire.DescribeKeyRequest) error {
	resp := wire.DescribeKeyResponse{KeyMetadata: metadata(x.key)}
	x.out = resp.AppendJSON(x.out)
	return nil
}

// enableKey also begins a rotation that came due while the key was disabled.
func enableKey(x *exchange, _ *wire.EnableKeyRequest) error {
	if err := x.setState(stateEnabled); err != nil {
		return err
	}
	if next := x.key.rec.NextRotation; !next.IsZero() && !next.After(x.now) {
		x.svc.sched.hurry()
	}
	return nil
}

func disableKey(x *exchange, _ *wire.DisableKeyRequest) error {
	if err := x.setState(stateDisabled); err != nil {
		return err
	}
	x.svc.dropHandle(x.key)
	return nil
}

func (x *exchange) setState(s keyState) error {
	return x.updateKey(x.key, func(k *keystore.Key, _ *keystore.Txn) error {
		k.State = s.String()
		return nil
	})
}

func scheduleKeyDeletion(x *exchange, in *wire.ScheduleKeyDeletionRequest) error {
	days := int64(defaultDeletionDays)
	if in.PendingWindowInDays.Set {
		days = in.PendingWindowInDays.V
		var v wire.Violations
		v.Range("pendingWindowInDays", days, minDeletionDays, maxDeletionDays)
		if err := v.Err(); err != nil {
			return err
		}
	}
	state, date := statePendingDeletion, time.Time{}
	err := x.updateKey(x.key, func(k *keystore.Key, _ *keystore.Txn) error {
		state, date = statePendingDeletion, x.now.UTC().Add(time.Duration(days)*day)
		if len(k.ReplicaRegions) > 0 && isPrimary(k) { // its waiting period begins when the last replica is gone
			state, date = statePendingReplicaDeletion, time.Time{}
		}
		k.State = state.String()
		k.DeletionDate = date
		k.PendingWindowDays = int32(days)
		return nil
	})
	if err != nil {
		return err
	}
	x.svc.dropHandle(x.key)
	resp := wire.ScheduleKeyDeletionResponse{
		KeyId:               x.key.arn,
		KeyState:            state.String(),
		PendingWindowInDays: wire.Some(days),
	}
	if !date.IsZero() {
		resp.DeletionDate = timestamp(date)
	}
	x.out = resp.AppendJSON(x.out)
	return nil
}

func cancelKeyDeletion(x *exchange, _ *wire.CancelKeyDeletionRequest) error {
	err := x.updateKey(x.key, func(k *keystore.Key, _ *keystore.Txn) error {
		k.State = restingState(k, stateDisabled).String()
		k.DeletionDate = time.Time{}
		k.PendingWindowDays = 0
		return nil
	})
	if err != nil {
		return err
	}
	resp := wire.CancelKeyDeletionResponse{KeyId: x.key.arn}
	x.out = resp.AppendJSON(x.out)
	return nil
}

func updateKeyDescription(x *exchange, in *wire.UpdateKeyDescriptionRequest) error {
	text := strings.Clone(in.Description)
	return x.updateKey(x.key, func(k *keystore.Key, _ *keystore.Txn) error {
		k.Description = text
		return nil
	})
}

// policyName is the only name a key policy can have.
const policyName = "default"

func getKeyPolicy(x *exchange, in *wire.GetKeyPolicyRequest) error {
	if in.PolicyName != "" && in.PolicyName != policyName {
		return wire.NewError(wire.NotFoundException, "No such policy exists")
	}
	text, _, err := x.svc.store.Policy(x.key.ref)
	if err != nil {
		return err
	}
	resp := wire.GetKeyPolicyResponse{Policy: text, PolicyName: policyName}
	x.out = resp.AppendJSON(x.out)
	return nil
}

func putKeyPolicy(x *exchange, in *wire.PutKeyPolicyRequest) error {
	if in.PolicyName != "" && in.PolicyName != policyName {
		return wire.NewError(wire.UnsupportedOperationException, "Only default policy is supported")
	}
	if err := x.checkPolicy(x.key.arn, in.Policy, in.BypassPolicyLockoutSafetyCheck.V); err != nil {
		return err
	}
	text := strings.Clone(in.Policy)
	return x.updateKey(x.key, func(_ *keystore.Key, t *keystore.Txn) error {
		_, rev, err := x.svc.store.Policy(x.key.ref)
		if err != nil && !errors.Is(err, keystore.ErrNotFound) {
			return err
		}
		t.PutPolicy(x.key.ref, text, rev)
		return nil
	})
}

// checkPolicy refuses a key policy that is too long, malformed, names principals
// that cannot exist, or would lock the caller out of the key arn.
func (x *exchange) checkPolicy(arn, text string, bypassLockout bool) error {
	if most := x.svc.quota.Resources().PolicyBytes; len(text) > most {
		return wire.NewError(wire.LimitExceededException, "The key policy has %d bytes; the limit is %d.", len(text), most)
	}
	p, err := policy.Parse(text)
	var bad *policy.Error
	switch {
	case errors.As(err, &bad):
		x.svc.log.Debug("key policy refused", "request_id", string(x.id[:]), "where", bad.Where)
		return wire.ErrorText(wire.MalformedPolicyDocumentException, bad.Text)
	case err != nil:
		return err
	}
	if !bypassLockout && !p.AllowsUpdateOf(arn, x.account, Partition(x.region), []string{x.auth.Credential.PrincipalARN}) {
		return wire.ErrorText(wire.MalformedPolicyDocumentException, policy.TextLockout)
	}
	return nil
}

func listKeyPolicies(x *exchange, in *wire.ListKeyPoliciesRequest) error {
	if in.Marker != "" { // one name never fills a page: no marker was ever handed out
		return invalidMarker()
	}
	resp := wire.ListKeyPoliciesResponse{PolicyNames: []string{policyName}, Truncated: wire.Some(false)}
	x.out = resp.AppendJSON(x.out)
	return nil
}
