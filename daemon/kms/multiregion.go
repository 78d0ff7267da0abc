package kms

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"keymill/daemon/policy"
	"keymill/daemon/quota"
	"keymill/daemon/wire"
	"keymill/engine"
	"keymill/hsm/arena"
	"keymill/keystore"
)

// # Multi-Region keys
//
// Related keys have one id, one account and one material; each is a key of its own in its
// region, with a record, policy, tags, aliases, grants and a state of its own.
// The regions are namespaces of one store. So what AWS synchronises in the
// background is one commit here, over the records of all related keys, and is true
// everywhere when the request is answered:
//
//	which is the primary, and which the replicas are   in every record, the same
//	versions and the current one                       in every record, the same
//	sealed material                                    per key: its seal names the region
//	schedule and count of rotations                    in the primary's record only
//
// A commit that touches one of the first two therefore expects all records as
// they were read, and is tried again when one was not. maxRelated keeps such a
// commit within the store's bound.
//
// # Replication
//
// ReplicateKey opens each version of the primary's material and seals it for the
// new region, with a key-encryption key of its own; imported material is not copied,
// a replica gets it from its owner. A key with more versions than one
// commit has room for appears in state Creating, with a note (creatingPrefix), and
// gets its material in pieces; the last commit sets the state and removes the note. A
// daemon that stops in between goes on by the note when it runs again. AWS answers
// with Creating in any case, and so do we; who asks again sees the key enabled.
//
// UpdatePrimaryRegion is one commit, so nobody ever sees the state Updating.

// multiRegionRows are the operations on related keys in several regions.
var multiRegionRows = []operation{
	{op: wire.OpReplicateKey, key: byKey(func(in *wire.ReplicateKeyRequest) string { return in.KeyId }), states: replication, run: with(replicateKey)},
	{op: wire.OpUpdatePrimaryRegion, key: byKey(func(in *wire.UpdatePrimaryRegionRequest) string { return in.KeyId }), states: cryptography, run: with(updatePrimaryRegion)},
}

// replication is what ReplicateKey answers in each state of the primary.
const replication stateRule = ".1335bef"

const (
	// maxRelated bounds the regions of one multi-Region key. AWS has fewer regions
	// in a partition.
	maxRelated = 40
	// materialsPerCommit is how many versions of material one commit writes beside
	// the records of maxRelated keys.
	materialsPerCommit = 64
	// sealers bounds the versions that are sealed at once.
	sealers = 16

	// creatingPrefix begins the names of the notes on replicas that get their
	// material in pieces.
	creatingPrefix = "creating/"
)

// multiRegionPrimary refuses keys that are not a multi-Region primary.
func multiRegionPrimary(k *keystore.Key, arn string) error {
	if !k.MultiRegion || k.PrimaryRegion != "" && k.PrimaryRegion != k.Region {
		return wire.NewError(wire.UnsupportedOperationException, "%s is not a multi-region primary key.", arn)
	}
	return nil
}

// otherRegion checks the name of another region that a request is about, and
// returns it as a string that may be kept.
func (x *exchange) otherRegion(name string) (string, error) {
	if Partition(name) != Partition(x.region) {
		return "", wire.NewError(wire.UnsupportedOperationException, "The Region %s is in another partition than %s: multi-Region keys are related within one partition.", name, x.region)
	}
	region, ok := x.svc.regions.Intern([]byte(name))
	if !ok {
		return "", wire.NewError(wire.UnsupportedOperationException, "The Region %s is not served here: this Keymill serves %s.", name, strings.Join(x.svc.regions.List(), ", "))
	}
	return region, nil
}

// admitElsewhere takes what the operation costs in the other region that it names.
func (x *exchange) admitElsewhere(region string) error {
	class, n := quota.Elsewhere(x.row.op)
	if n > 0 && !x.svc.quota.Account(x.account, region).Take(class, n, x.now) {
		return quota.Throttled()
	}
	return nil
}

func replicateKey(x *exchange, in *wire.ReplicateKeyRequest) error {
	v, s := x.key, x.svc
	if err := multiRegionPrimary(v.rec, v.arn); err != nil {
		return err
	}
	region, err := x.otherRegion(in.ReplicaRegion)
	if err != nil {
		return err
	}
	arn := keyARN(region, v.rec.Account, v.idText)
	tags, err := mergeTags(nil, in.Tags, s.quota.Resources().TagsPerKey)
	if err != nil {
		return err
	}
	keyPolicy := policy.Default(Partition(region), x.account)
	if in.Policy != "" {
		if err := x.checkPolicy(arn, in.Policy, in.BypassPolicyLockoutSafetyCheck.V); err != nil {
			return err
		}
		keyPolicy = strings.Clone(in.Policy)
	}
	if err := x.admitElsewhere(region); err != nil {
		return err
	}
	done, err := s.keyRoom.take(s, x.account, region)
	if err != nil {
		return err
	}
	defer done()

	replica := &keystore.Key{
		Account: v.rec.Account, Region: region, ID: v.rec.ID, MultiRegion: true,
		Manager: v.rec.Manager, Description: strings.Clone(in.Description), Created: x.now.UTC(),
	}
	pieces, err := x.makeReplica(replica, keyPolicy, tags)
	if err != nil {
		return err
	}
	if pieces {
		if err := s.completeReplica(replica.Ref()); err != nil {
			s.log.Warn("a replica is not complete yet; it is gone on with", "region", region, "key", v.idText, "error", err)
		}
	}
	// As AWS answers, which replicates after the answer.
	shown := *replica
	shown.State = stateCreating.String()
	answered, err := s.describeView(&shown)
	if err != nil {
		return err
	}
	m := metadata(answered)
	m.CurrentKeyMaterialId = ""
	resp := wire.ReplicateKeyResponse{ReplicaKeyMetadata: m, ReplicaPolicy: keyPolicy}
	for _, t := range tags {
		resp.ReplicaTags = append(resp.ReplicaTags, wire.Tag{TagKey: t.Key, TagValue: t.Value})
	}
	x.out = resp.AppendJSON(x.out)
	return nil
}

// describeView returns a view of a record that shows what metadata does, and
// cannot be used.
func (s *Service) describeView(rec *keystore.Key) (*keyView, error) {
	v := &keyView{rec: rec, ref: rec.Ref(), id: engine.KeyID{ID: rec.ID, MultiRegion: rec.MultiRegion}}
	v.idText = v.id.String()
	v.arn = keyARN(rec.Region, rec.Account, v.idText)
	var ok [3]bool
	v.spec, ok[0] = engine.ParseSpec(rec.Spec)
	v.usage, ok[1] = engine.ParseUsage(rec.Usage)
	v.state, ok[2] = parseState(rec.State)
	if ok != [3]bool{true, true, true} {
		return nil, fmt.Errorf("record of %s has spec %q, usage %q, state %q", v.arn, rec.Spec, rec.Usage, rec.State)
	}
	return v, nil
}

// makeReplica fills in what replica shares with the request's key and commits it,
// with the records of all related keys. pieces says that its material is still to
// come.
func (x *exchange) makeReplica(replica *keystore.Key, keyPolicy string, tags []keystore.Tag) (pieces bool, err error) {
	s, v := x.svc, x.key
	ref := replica.Ref()
	for range commitRetries {
		primary, err := x.currentPrimary(v)
		if err != nil {
			return false, err
		}
		if primary.Region == ref.Region || slices.Contains(primary.ReplicaRegions, ref.Region) {
			return false, wire.NewError(wire.AlreadyExistsException, "%s already exists.", keyARN(ref.Region, primary.Account, v.idText))
		}
		if len(primary.ReplicaRegions)+2 > maxRelated {
			return false, wire.NewError(wire.LimitExceededException, "%s has related keys in %d Regions, which is the limit.", v.arn, len(primary.ReplicaRegions)+1)
		}
		share(replica, primary)
		t := s.store.NewTxn()
		keys, err := s.relatedKeys(primary, t)
		if err != nil {
			return false, err
		}
		next := copies(keys)
		relate(append(next, replica), primary.Region)
		pieces = replica.Origin == originLocal && len(replica.Versions) > materialsPerCommit
		switch {
		case replica.Origin != originLocal:
			replica.Versions, replica.CurrentVersion = nil, 0
			inherit(replica, next[0])
			replica.State = statePendingImport.String()
			settlePending(append(next, replica))
		case pieces:
			replica.State = stateCreating.String()
			t.Put(creatingName(ref), nil, keystore.AnyRevision)
		default:
			replica.State = stateEnabled.String()
			materials, err := s.sealFor(primary, replica, replica.Versions)
			if err != nil {
				return false, err
			}
			for _, m := range materials {
				t.PutMaterial(m, keystore.AnyRevision)
			}
		}
		t.PutKey(replica, 0)
		t.PutPolicy(ref, keyPolicy, keystore.AnyRevision)
		t.PutTags(ref, tags, keystore.AnyRevision)
		for i, k := range next {
			t.PutKey(k, keys[i].Revision)
		}
		if err = commit(t); errors.Is(err, keystore.ErrConflict) {
			continue
		}
		s.dropView(ref)
		for _, k := range keys {
			s.dropView(k.Ref())
		}
		return pieces, err
	}
	return false, errBusy
}

// currentPrimary reads the record of the request's key anew and judges it again.
func (x *exchange) currentPrimary(v *keyView) (*keystore.Key, error) {
	rec, err := x.svc.store.Key(v.ref)
	if errors.Is(err, keystore.ErrNotFound) || err == nil && rec.Destroying {
		return nil, keyNotFound(v.arn)
	} else if err != nil {
		return nil, err
	}
	state, ok := parseState(rec.State)
	if !ok {
		return nil, fmt.Errorf("record of %s has state %q", v.arn, rec.State)
	}
	if err := x.row.states.check(state, v.arn); err != nil {
		x.svc.dropView(v.ref) // see updateKey
		return nil, err
	}
	return rec, multiRegionPrimary(rec, v.arn)
}

// share gives a replica what all related keys have in common.
func share(replica, primary *keystore.Key) {
	replica.Spec, replica.Usage, replica.Origin = primary.Spec, primary.Usage, primary.Origin
	replica.PublicKey = primary.PublicKey
	replica.Versions, replica.CurrentVersion = slices.Clone(primary.Versions), primary.CurrentVersion
}

// relate writes into the records of all related keys which of them is the
// primary.
func relate(keys []*keystore.Key, primary string) {
	var replicas []string
	for _, k := range keys {
		if k.Region != primary {
			replicas = append(replicas, k.Region)
		}
	}
	slices.Sort(replicas)
	for _, k := range keys {
		k.PrimaryRegion, k.ReplicaRegions = primary, replicas
	}
}

// copies returns copies of records, to be changed.
func copies(keys []*keystore.Key) []*keystore.Key {
	out := make([]*keystore.Key, len(keys))
	for i, k := range keys {
		c := *k
		c.Versions = slices.Clone(k.Versions)
		out[i] = &c
	}
	return out
}

// sealFor opens versions of the material of one key and seals them for a related
// one. They travel to the root of trust together.
func (s *Service) sealFor(from, to *keystore.Key, versions []keystore.Version) ([]*keystore.Material, error) {
	ctx, cancel := waitForRoot()
	defer cancel()
	out := make([]*keystore.Material, len(versions))
	errs := make(chan error, len(versions))
	slots := make(chan struct{}, sealers)
	for i := range versions {
		slots <- struct{}{}
		go func() {
			var err error
			out[i], err = s.sealOneFor(ctx, from, to, versions[i].Number)
			<-slots
			errs <- err
		}()
	}
	var err error
	for range versions {
		err = errors.Join(err, <-errs)
	}
	return out, err
}

func (s *Service) sealOneFor(ctx context.Context, from, to *keystore.Key, version uint32) (*keystore.Material, error) {
	secret, err := s.store.OpenMaterial(ctx, keystore.Identity{Account: from.Account, Region: from.Region, Spec: from.Spec, ID: from.ID, Version: version})
	if err != nil {
		return nil, err
	}
	defer arena.Wipe(secret)
	return s.store.SealMaterial(ctx, keystore.Identity{Account: to.Account, Region: to.Region, Spec: to.Spec, ID: to.ID, Version: version}, secret)
}

func creatingName(ref keystore.Ref) string { return creatingPrefix + refName(ref) }

// completeReplicas goes on with replicas that an earlier run left in pieces. It
// tells what went wrong, having tried all.
func (s *Service) completeReplicas() (err error) {
	notes, _, err := s.store.Scan(creatingPrefix, "", 1000)
	if err != nil {
		return err
	}
	for _, n := range notes {
		ref, ok := parseRefName(strings.TrimPrefix(n.Name, creatingPrefix))
		if !ok {
			err = errors.Join(err, fmt.Errorf("record %q names no key", n.Name))
			continue
		}
		if one := s.completeReplica(ref); one != nil {
			err = errors.Join(err, fmt.Errorf("key %s in %s: %w", ref.ID, ref.Region, one))
		}
	}
	return err
}

// completeReplica gives a replica in state Creating the material it lacks, and
// then its state. It does so once at a time for all callers, and may be repeated.
func (s *Service) completeReplica(ref keystore.Ref) error {
	s.completing.Lock()
	defer s.completing.Unlock()
	for range commitRetries {
		replica, err := s.store.Key(ref)
		if errors.Is(err, keystore.ErrNotFound) || err == nil && replica.Destroying {
			t := s.store.NewTxn()
			t.Delete(creatingName(ref), keystore.AnyRevision)
			return commit(t)
		} else if err != nil {
			return err
		}
		primary, err := s.store.Key(keystore.Ref{Region: replica.PrimaryRegion, ID: ref.ID})
		if err != nil {
			return err
		}
		missing, err := s.missingMaterial(replica)
		if err != nil {
			return err
		}
		piece := missing[:min(len(missing), materialsPerCommit)]
		materials, err := s.sealFor(primary, replica, piece)
		if err != nil {
			return err
		}
		t := s.store.NewTxn()
		for _, m := range materials {
			t.PutMaterial(m, 0)
		}
		if len(piece) == len(missing) {
			next := *replica
			if next.State == stateCreating.String() {
				next.State = stateEnabled.String()
			}
			t.PutKey(&next, replica.Revision)
			t.Delete(creatingName(ref), keystore.AnyRevision)
		} else {
			t.ExpectKey(ref, replica.Revision)
		}
		err = commit(t)
		switch {
		case errors.Is(err, keystore.ErrConflict):
		case err != nil:
			return err
		case len(piece) == len(missing):
			s.dropView(ref)
			return nil
		}
	}
	return errBusy
}

// missingMaterial returns the versions of a key that have no material in the
// store.
func (s *Service) missingMaterial(k *keystore.Key) (missing []keystore.Version, err error) {
	for _, v := range k.Versions {
		switch _, err := s.store.Material(k.Ref(), v.Number); {
		case errors.Is(err, keystore.ErrNotFound):
			missing = append(missing, v)
		case err != nil:
			return nil, err
		}
	}
	return missing, nil
}

func updatePrimaryRegion(x *exchange, in *wire.UpdatePrimaryRegionRequest) error {
	v, s := x.key, x.svc
	if err := multiRegionPrimary(v.rec, v.arn); err != nil {
		return err
	}
	region, err := x.otherRegion(in.PrimaryRegion)
	if err != nil {
		return err
	}
	if region == v.rec.Region {
		return wire.NewError(wire.UnsupportedOperationException, "%s is the primary key already.", v.arn)
	}
	arn := keyARN(region, v.rec.Account, v.idText)
	target, err := s.view(keystore.Ref{Region: region, ID: v.ref.ID})
	if errors.Is(err, keystore.ErrNotFound) {
		return keyNotFound(arn)
	} else if err != nil {
		return err
	}
	if err := x.judge(target, x.row.permission(in)); err != nil {
		return err
	}
	if err := x.admitElsewhere(region); err != nil {
		return err
	}
	for range commitRetries {
		primary, err := x.currentPrimary(v)
		if err != nil {
			return err
		}
		t := s.store.NewTxn()
		keys, err := s.relatedKeys(primary, t)
		if err != nil {
			return err
		}
		next := copies(keys)
		at := slices.IndexFunc(next, func(k *keystore.Key) bool { return k.Region == region })
		if at < 0 || next[at].Destroying {
			return keyNotFound(arn)
		}
		state, ok := parseState(next[at].State)
		if !ok {
			return fmt.Errorf("record of %s has state %q", arn, next[at].State)
		}
		if err := x.row.states.check(state, arn); err != nil {
			return err
		}
		relate(next, region)
		handSchedule(next[0], next[at])
		for i, k := range next {
			t.PutKey(k, keys[i].Revision)
		}
		if err = commit(t); errors.Is(err, keystore.ErrConflict) {
			continue
		}
		for _, k := range keys {
			s.dropView(k.Ref())
		}
		return err
	}
	return errBusy
}

// leaveFamily takes a key that is being destroyed out of the records of those
// related to it. A primary that has waited for its last replica begins its own
// waiting period.
func (s *Service) leaveFamily(rec *keystore.Key, now time.Time, t *keystore.Txn) (changed []keystore.Ref, err error) {
	if !rec.MultiRegion {
		return nil, nil
	}
	keys, err := s.relatedKeys(rec, t)
	if err != nil {
		return nil, err
	}
	keys = keys[1:]
	next := copies(keys)
	relate(next, rec.PrimaryRegion)
	settlePending(next)
	for i, k := range next {
		if len(k.ReplicaRegions) == 0 && k.State == statePendingReplicaDeletion.String() {
			k.State = statePendingDeletion.String()
			k.DeletionDate = now.Round(0).UTC().Add(time.Duration(k.PendingWindowDays) * day)
		}
		t.PutKey(k, keys[i].Revision)
		changed = append(changed, k.Ref())
	}
	return changed, nil
}
