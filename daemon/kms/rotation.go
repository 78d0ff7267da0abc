package kms

import (
	"errors"
	"fmt"
	"slices"
	"strconv"
	"sync"
	"time"

	"keymill/daemon/wire"
	"keymill/engine"
	"keymill/hsm/arena"
	"keymill/keystore"
)

// # Rotation
//
// A rotation gives a key a new version of its material, with which everything is
// encrypted from then on; the older versions stay and decrypt for as long as the
// key exists. It is one commit: the new version's sealed material, and the key's
// record with the version, whose number is the current one, and with the count of
// rotations on demand or the next date of automatic ones. So it happened or it did
// not, whatever crashes; and since the commit expects the record that showed the
// rotation to be due, nobody rotates twice for one date.
//
// Related multi-Region keys rotate together: the commit is about all of them, each
// with the material sealed for its own region. Their schedule is in the record of
// the primary only.
//
// A key of imported material is only rotated on demand, to material that was
// imported for it before.
//
// What is under way is noted in memory, for GetKeyRotationStatus and for those who
// ask for the same rotation meanwhile: they get its outcome. A crash forgets the
// note along with the rotation.

const (
	rotationAutomatic = "AUTOMATIC"
	rotationOnDemand  = "ON_DEMAND"

	defaultRotationDays = 365
	day                 = 24 * time.Hour

	// rotationQuiet is how long before an automatic rotation none on demand begins.
	rotationQuiet = 20 * time.Minute

	defaultRotationPage = 100
	maxRotationPage     = 1000
)

const (
	rotationSetting stateRule = ".133..e." // EnableKeyRotation, DisableKeyRotation
	rotationNow     stateRule = ".1335.e." // RotateKeyOnDemand
)

// rotationRows are the operations on rotation.
var rotationRows = []operation{
	{op: wire.OpDisableKeyRotation, key: byKey(func(in *wire.DisableKeyRotationRequest) string { return in.KeyId }), states: rotationSetting, run: with(disableKeyRotation)},
	{op: wire.OpEnableKeyRotation, key: byKey(func(in *wire.EnableKeyRotationRequest) string { return in.KeyId }), states: rotationSetting, run: with(enableKeyRotation)},
	{op: wire.OpGetKeyRotationStatus, key: byKey(func(in *wire.GetKeyRotationStatusRequest) string { return in.KeyId }), states: always, run: with(getKeyRotationStatus)},
	{op: wire.OpListKeyRotations, key: byKey(func(in *wire.ListKeyRotationsRequest) string { return in.KeyId }), states: always, run: with(listKeyRotations)},
	{op: wire.OpRotateKeyOnDemand, key: byKey(func(in *wire.RotateKeyOnDemandRequest) string { return in.KeyId }), states: rotationNow, run: with(rotateKeyOnDemand)},
}

// canRotate refuses keys that never have more than one version.
func canRotate(v *keyView) error {
	switch {
	case !v.spec.Symmetric():
		return wire.Bare(wire.UnsupportedOperationException)
	case v.rec.Origin != originLocal && v.rec.Origin != originExternal:
		return wrongOrigin(v)
	}
	return nil
}

// canSchedule refuses keys that do not rotate by themselves, or not by their own
// schedule.
func canSchedule(v *keyView) error {
	if err := lacksMaterial(v); err != nil {
		return err
	}
	if err := canRotate(v); err != nil {
		return err
	}
	if v.rec.Origin != originLocal {
		return wrongOrigin(v)
	}
	return onlyPrimary(v)
}

// lacksMaterial refuses keys that are pending import for their origin, of which AWS
// speaks before it does of their spec.
func lacksMaterial(v *keyView) error {
	if v.state == statePendingImport {
		return wrongOrigin(v)
	}
	return nil
}

func wrongOrigin(v *keyView) error {
	return wire.NewError(wire.UnsupportedOperationException, "%s origin is %s which is not valid for this operation.", v.arn, v.rec.Origin)
}

// onlyPrimary refuses a replica.
func onlyPrimary(v *keyView) error {
	if v.primaryRegion() != v.rec.Region {
		return notPrimary(v.arn)
	}
	return nil
}

// enableKeyRotation counts the period from now, unless the key has rotated by that
// period already: who says the same again every day shall not put it off for ever.
func enableKeyRotation(x *exchange, in *wire.EnableKeyRotationRequest) error {
	if err := canSchedule(x.key); err != nil {
		return err
	}
	days := int32(defaultRotationDays)
	if in.RotationPeriodInDays.Set {
		days = int32(in.RotationPeriodInDays.V)
	}
	return x.updateKey(x.key, func(k *keystore.Key, _ *keystore.Txn) error {
		if k.NextRotation.IsZero() || k.RotationPeriodDays != days {
			k.RotationPeriodDays = days
			k.NextRotation = x.now.Round(0).UTC().Add(rotationPeriod(k))
		}
		return nil
	})
}

func disableKeyRotation(x *exchange, _ *wire.DisableKeyRotationRequest) error {
	if err := canSchedule(x.key); err != nil {
		return err
	}
	return x.updateKey(x.key, func(k *keystore.Key, _ *keystore.Txn) error {
		k.NextRotation = time.Time{}
		return nil
	})
}

// rotationPeriod is how long a key keeps its material.
func rotationPeriod(k *keystore.Key) time.Duration {
	if k.RotationPeriodDays == 0 {
		return defaultRotationDays * day
	}
	return time.Duration(k.RotationPeriodDays) * day
}

// getKeyRotationStatus refuses by origin and state alone: asymmetric and HMAC keys
// have a status too, which is always false. Terraform asks for that of every key.
func getKeyRotationStatus(x *exchange, _ *wire.GetKeyRotationStatusRequest) error {
	v := x.key
	if v.rec.Origin != originLocal && (v.rec.Origin != originExternal || v.state == statePendingImport) {
		return wrongOrigin(v)
	}
	primary := keystore.Ref{Region: v.primaryRegion(), ID: v.ref.ID}
	schedule := v.rec
	if primary != v.ref {
		p, err := x.view(primary)
		if err == nil {
			schedule = p.rec
		} else if !errors.Is(err, keystore.ErrNotFound) {
			return err
		}
	}
	resp := wire.GetKeyRotationStatusResponse{KeyId: v.arn, KeyRotationEnabled: wire.Some(false)}
	going := v.state == statePendingDeletion || v.state == statePendingReplicaDeletion
	if !schedule.NextRotation.IsZero() && !going {
		resp.KeyRotationEnabled = wire.Some(true)
		resp.RotationPeriodInDays = wire.Some(int64(rotationPeriod(schedule) / day))
		resp.NextRotationDate = timestamp(schedule.NextRotation)
	}
	if started, ok := x.svc.rotations.onDemand(primary); ok {
		resp.OnDemandRotationStartDate = timestamp(started)
	}
	x.out = resp.AppendJSON(x.out)
	return nil
}

// listKeyRotations lists versions, the oldest first. A marker is a version's
// number.
func listKeyRotations(x *exchange, in *wire.ListKeyRotationsRequest) error {
	v := x.key
	if err := canRotate(v); err != nil {
		return err
	}
	text, err := x.readMarker(in.Marker)
	if err != nil {
		return err
	}
	after := uint64(0)
	if text != "" {
		if after, err = strconv.ParseUint(text, 10, 32); err != nil {
			return invalidMarker()
		}
	}
	limit := pageSize(in.Limit, defaultRotationPage, maxRotationPage)
	resp := wire.ListKeyRotationsResponse{Rotations: []wire.RotationsListEntry{}, Truncated: wire.Some(false)}
	last := uint32(0)
	for i := range v.rec.Versions {
		ver := &v.rec.Versions[i]
		if uint64(ver.Number) <= after || ver.Rotation == "" && in.IncludeKeyMaterial != "ALL_KEY_MATERIAL" {
			continue
		}
		if len(resp.Rotations) == limit {
			resp.Truncated = wire.Some(true)
			resp.NextMarker = x.marker(strconv.FormatUint(uint64(last), 10))
			break
		}
		last = ver.Number
		resp.Rotations = append(resp.Rotations, rotationEntry(v, i))
	}
	x.out = resp.AppendJSON(x.out)
	return nil
}

// rotationEntry is what ListKeyRotations says of the version at an index.
func rotationEntry(v *keyView, i int) wire.RotationsListEntry {
	ver := &v.rec.Versions[i]
	e := wire.RotationsListEntry{KeyId: v.arn, KeyMaterialId: v.materialIDs[i], KeyMaterialState: "NON_CURRENT"}
	switch {
	case ver.Pending != "":
		e.KeyMaterialState = ver.Pending
	case ver.Number == v.rec.CurrentVersion:
		e.KeyMaterialState = "CURRENT"
	}
	if ver.Rotation != "" {
		e.RotationType, e.RotationDate = ver.Rotation, timestamp(ver.Rotated)
	}
	if v.rec.Origin != originExternal {
		return e
	}
	e.KeyMaterialDescription = ver.Description
	if ver.Missing {
		e.ImportState = "PENDING_IMPORT"
		return e
	}
	e.ImportState, e.ExpirationModel = "IMPORTED", "KEY_MATERIAL_DOES_NOT_EXPIRE"
	if ver.Expires {
		e.ExpirationModel, e.ValidTo = "KEY_MATERIAL_EXPIRES", timestamp(ver.ValidTo)
	}
	return e
}

// A rotation is one that is under way.
type rotation struct {
	kind    string
	started time.Time
	done    chan struct{}
	err     error // written before done
}

// rotations are those under way, by the primary key.
type rotations struct {
	mu      sync.Mutex
	running map[keystore.Ref]*rotation // guarded by mu
}

// begin notes a rotation, unless one of the key is under way: then it returns
// that, and false. Who began it ends it.
func (r *rotations) begin(ref keystore.Ref, kind string, now time.Time) (*rotation, bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if other := r.running[ref]; other != nil {
		return other, false
	}
	if r.running == nil {
		r.running = make(map[keystore.Ref]*rotation)
	}
	one := &rotation{kind: kind, started: now, done: make(chan struct{}), err: errRotationPanicked}
	r.running[ref] = one
	return one, true
}

func (r *rotations) end(ref keystore.Ref, one *rotation) {
	r.mu.Lock()
	delete(r.running, ref)
	r.mu.Unlock()
	close(one.done)
}

// errRotationPanicked is what those who waited for a rotation get when it
// panicked.
var errRotationPanicked = errors.New("a concurrent rotation of the same key failed")

// onDemand tells since when a rotation on demand is under way.
func (r *rotations) onDemand(ref keystore.Ref) (started time.Time, ok bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if one := r.running[ref]; one != nil && one.kind == rotationOnDemand {
		return one.started, true
	}
	return time.Time{}, false
}

func rotateKeyOnDemand(x *exchange, _ *wire.RotateKeyOnDemandRequest) error {
	v, s := x.key, x.svc
	if err := canRotate(v); err != nil {
		return err
	}
	if err := onlyPrimary(v); err != nil {
		return err
	}
	one, mine := s.rotations.begin(v.ref, rotationOnDemand, x.now)
	switch {
	case mine:
		defer s.rotations.end(v.ref, one)
		one.err = x.rotateOnDemand(v)
	case one.kind == rotationAutomatic:
		return errRotationSoon
	default:
		<-one.done
	}
	if one.err != nil {
		return one.err
	}
	resp := wire.RotateKeyOnDemandResponse{KeyId: v.arn}
	x.out = resp.AppendJSON(x.out)
	return nil
}

var errRotationSoon = wire.NewError(wire.ConflictException, "The request was rejected because an automatic rotation of this key is currently in progress or scheduled to begin within the next 20 minutes.")

// rotateOnDemand rotates the key as its record is now.
func (x *exchange) rotateOnDemand(v *keyView) error {
	s := x.svc
	most := s.quota.Resources().OnDemandRotations
	for range commitRetries {
		rec, err := s.store.Key(v.ref)
		if errors.Is(err, keystore.ErrNotFound) {
			return keyNotFound(v.arn)
		} else if err != nil {
			return err
		}
		now, err := s.buildView(rec) // judges the state, and who is the primary, again
		if err != nil {
			return err
		}
		if err := x.row.states.check(now.at(x.now).state, v.arn); err != nil {
			s.dropView(v.ref) // see updateKey
			return err
		}
		if err := onlyPrimary(now); err != nil {
			return err
		}
		pending := uint32(0)
		if rec.Origin == originExternal {
			if pending = readyVersion(rec, x.now); pending == 0 {
				return nothingPending(v.arn)
			}
		}
		switch next := rec.NextRotation; {
		case most > 0 && int(rec.OnDemandRotations) >= most, pending == 0 && len(rec.Versions) >= keystore.MaxVersions:
			return wire.NewError(wire.LimitExceededException, "The on-demand rotations limit has been reached for the given keyId. No more on-demand rotations can be performed for this key: %s", v.arn)
		case !next.IsZero() && next.Sub(x.now) <= rotationQuiet:
			return errRotationSoon
		}
		err = s.rotate(rec, pending, rotationOnDemand, x.now, func(k *keystore.Key) { k.OnDemandRotations++ })
		switch {
		case errors.Is(err, errNotEverywhere):
			return nothingPending(v.arn)
		case !errors.Is(err, keystore.ErrConflict):
			return err
		}
	}
	return errBusy
}

func nothingPending(arn string) error {
	return invalidState("No available key material pending rotation for the key: %s.", arn)
}

// readyVersion returns the number of the imported version that may become
// current, 0 if there is none.
func readyVersion(k *keystore.Key, now time.Time) uint32 {
	for i := range k.Versions {
		if v := &k.Versions[i]; v.Pending == pendingRotation && present(v, now) {
			return v.Number
		}
	}
	return 0
}

// present tells whether the material of an imported version is here and its time
// is not over.
func present(v *keystore.Version, now time.Time) bool {
	return !v.Missing && !expired(v, now)
}

// rotateDue rotates a key whose date has come.
func (s *Service) rotateDue(rec *keystore.Key, now time.Time) error {
	if rec.NextRotation.IsZero() || rec.NextRotation.After(now) || rec.State != stateEnabled.String() {
		return nil
	}
	if !isPrimary(rec) {
		return s.returnSchedule(rec)
	}
	one, mine := s.rotations.begin(rec.Ref(), rotationAutomatic, now)
	if !mine {
		return keystore.ErrConflict // looked at again when that is done
	}
	defer s.rotations.end(rec.Ref(), one)
	move := func(k *keystore.Key) { k.NextRotation = nextRotation(k, now) }
	if len(rec.Versions) >= keystore.MaxVersions {
		s.log.Error("a key is not rotated: it has as many versions as a key can have", "region", rec.Region, "key", rec.ID.String(), "versions", len(rec.Versions))
		next := *rec
		move(&next)
		t := s.store.NewTxn()
		t.PutKey(&next, rec.Revision)
		one.err = commit(t)
		s.dropView(rec.Ref())
		return one.err
	}
	if one.err = s.rotate(rec, 0, rotationAutomatic, now, move); one.err == nil {
		s.log.Info("key rotated", "region", rec.Region, "key", rec.ID.String(), "version", len(rec.Versions)+1)
	}
	return one.err
}

// nextRotation is the date after a rotation at now. The rhythm stays; after a
// rotation that was long overdue, because the key was disabled or the daemon was
// off, it starts anew.
func nextRotation(k *keystore.Key, now time.Time) time.Time {
	period := rotationPeriod(k)
	if now.Sub(k.NextRotation) > day {
		return now.Round(0).UTC().Add(period)
	}
	return k.NextRotation.Add(period)
}

// handSchedule moves the schedule of automatic rotation, and what was counted of
// those on demand, from a primary key's record to that of the next primary.
func handSchedule(from, to *keystore.Key) {
	to.RotationPeriodDays, to.NextRotation = from.RotationPeriodDays, from.NextRotation
	to.OnDemandRotations = from.OnDemandRotations
	from.NextRotation = time.Time{}
}

// returnSchedule gives a schedule that a replica has to its primary: only that
// rotates.
func (s *Service) returnSchedule(rec *keystore.Key) error {
	replica := *rec
	t := s.store.NewTxn()
	primary, err := s.store.Key(keystore.Ref{Region: rec.PrimaryRegion, ID: rec.ID})
	switch {
	case errors.Is(err, keystore.ErrNotFound):
		replica.NextRotation = time.Time{}
	case err != nil:
		return err
	case primary.NextRotation.IsZero():
		next := *primary
		handSchedule(&replica, &next)
		t.PutKey(&next, primary.Revision)
		defer s.dropView(next.Ref())
	default:
		replica.NextRotation = time.Time{}
	}
	t.PutKey(&replica, rec.Revision)
	defer s.dropView(rec.Ref())
	return commit(t)
}

// errNotEverywhere: material that is to become current is not in every related
// key.
var errNotEverywhere = errors.New("not every related key has the material")

// rotate gives the key of rec, and all that are related to it, a new current
// version in one commit, with what change does to rec: the imported version of the
// number pending, or one of new material if that is 0. keystore.ErrConflict: rec,
// or a related key, is not what it was.
func (s *Service) rotate(rec *keystore.Key, pending uint32, kind string, now time.Time, change func(k *keystore.Key)) error {
	now = now.Round(0).UTC()
	t := s.store.NewTxn()
	keys, err := s.relatedKeys(rec, t)
	if err != nil {
		return err
	}
	next := make([]*keystore.Key, len(keys))
	for i, k := range keys {
		c := *k
		c.Versions = slices.Clone(k.Versions)
		next[i] = &c
	}
	if pending != 0 {
		err = promote(next, pending, kind, now)
	} else {
		err = s.addVersion(next, kind, now, t)
	}
	if err != nil {
		return err
	}
	change(next[0])
	for i, k := range next {
		t.PutKey(k, keys[i].Revision)
	}
	if err := commit(t); err != nil {
		return err
	}
	for _, k := range keys {
		s.dropMaterial(k)
	}
	return nil
}

// relatedKeys returns the records of rec, first, and of the keys related to it. A
// related key that is gone must still be gone when t commits.
func (s *Service) relatedKeys(rec *keystore.Key, t *keystore.Txn) ([]*keystore.Key, error) {
	keys := []*keystore.Key{rec}
	regions := rec.ReplicaRegions
	if rec.PrimaryRegion != "" {
		regions = append([]string{rec.PrimaryRegion}, regions...)
	}
	for _, region := range regions {
		if slices.ContainsFunc(keys, func(k *keystore.Key) bool { return k.Region == region }) {
			continue
		}
		ref := keystore.Ref{Region: region, ID: rec.ID}
		k, err := s.store.Key(ref)
		if errors.Is(err, keystore.ErrNotFound) {
			t.ExpectKey(ref, 0)
			continue
		} else if err != nil {
			return nil, err
		}
		keys = append(keys, k)
	}
	return keys, nil
}

// promote makes the imported version of a number of the first key current in all.
func promote(keys []*keystore.Key, number uint32, kind string, now time.Time) error {
	find := func(k *keystore.Key, is func(v *keystore.Version) bool) *keystore.Version {
		for i := range k.Versions {
			if is(&k.Versions[i]) {
				return &k.Versions[i]
			}
		}
		return nil
	}
	chosen := *find(keys[0], func(v *keystore.Version) bool { return v.Number == number })
	for _, k := range keys {
		v := find(k, func(v *keystore.Version) bool { return v.MaterialID == chosen.MaterialID && present(v, now) })
		if v == nil {
			return errNotEverywhere
		}
		v.Pending, v.Rotation, v.Rotated = "", kind, now
		k.CurrentVersion = v.Number
	}
	return nil
}

// addVersion makes new material and makes it current in all keys. The root of
// trust is asked for all of them at once.
func (s *Service) addVersion(keys []*keystore.Key, kind string, now time.Time, t *keystore.Txn) error {
	first := keys[0]
	spec, ok := engine.ParseSpec(first.Spec)
	if !ok {
		return fmt.Errorf("record of key %s has spec %q", first.ID, first.Spec)
	}
	secret, _, err := s.generateMaterial(spec)
	if err != nil {
		return err
	}
	defer arena.Wipe(secret)
	id := engine.ComputeMaterialID(engine.KeyID{ID: first.ID, MultiRegion: first.MultiRegion}, secret)
	ctx, cancel := waitForRoot()
	defer cancel()
	materials := make([]*keystore.Material, len(keys))
	errs := make([]error, len(keys))
	var all sync.WaitGroup
	for i, k := range keys {
		number := nextVersion(k)
		k.Versions = append(k.Versions, keystore.Version{Number: number, MaterialID: id, Created: now, Rotation: kind, Rotated: now})
		k.CurrentVersion = number
		all.Go(func() {
			materials[i], errs[i] = s.store.SealMaterial(ctx, keystore.Identity{
				Account: k.Account, Region: k.Region, Spec: k.Spec, ID: k.ID, Version: number,
			}, secret)
		})
	}
	all.Wait()
	if err := errors.Join(errs...); err != nil {
		return err
	}
	for _, m := range materials {
		t.PutMaterial(m, 0)
	}
	return nil
}

// dropMaterial makes requests that start from now on read a key anew, and purges
// the material and derived keys of its handle as it was until now.
func (s *Service) dropMaterial(was *keystore.Key) {
	v, ok := s.views.Get(was.Ref())
	s.dropView(was.Ref())
	if ok {
		s.dropHandle(v)
	}
	if spec, ok := engine.ParseSpec(was.Spec); ok {
		s.handleCache(spec).Invalidate(handleName{was.Ref(), was.CurrentVersion, len(was.Versions)})
	}
}
