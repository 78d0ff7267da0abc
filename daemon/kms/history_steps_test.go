package kms

import (
	"context"
	"encoding/base64"
	"fmt"
	"maps"
	"math/rand/v2"
	"slices"
	"strings"
	"time"
)

// historyRegions are the regions of a history.
var historyRegions = []string{testRegion, replicaRegion, "ap-south-1"}

// A player plays steps: it makes a request of a step's own random numbers and what
// is there, predicts the answer by the model, and compares.
type player struct {
	*rig
	*history
	w *world
	d *rand.Rand // of the step that is played
}

// stepKinds are the steps of histories. The weights say how often each is chosen;
// those that are marked are in all histories.
var stepKinds = []struct {
	name   string
	weight int
	play   func(p *player)
	always bool
}{
	{"CreateKey", 9, (*player).createKey, true},
	{"EnableKey", 5, (*player).enableKey, true},
	{"DisableKey", 4, (*player).disableKey, false},
	{"ScheduleKeyDeletion", 3, (*player).scheduleDeletion, false},
	{"CancelKeyDeletion", 3, (*player).cancelDeletion, false},
	{"UpdateKeyDescription", 1, (*player).describeAnew, false},
	{"TagResource", 2, (*player).tag, false},
	{"UntagResource", 1, (*player).untag, false},
	{"EnableKeyRotation", 3, (*player).enableRotation, false},
	{"DisableKeyRotation", 1, (*player).disableRotation, false},
	{"RotateKeyOnDemand", 5, (*player).rotateNow, false},
	{"ImportKeyMaterial", 10, (*player).importMaterial, true},
	{"DeleteImportedKeyMaterial", 3, (*player).deleteMaterial, false},
	{"ReplicateKey", 5, (*player).replicate, false},
	{"UpdatePrimaryRegion", 3, (*player).updatePrimary, false},
	{"CreateGrant", 4, (*player).createGrant, false},
	{"RevokeGrant", 1, (*player).revokeGrant, false},
	{"RetireGrant", 2, (*player).retireGrant, false},
	{"CreateAlias", 4, (*player).createAlias, false},
	{"UpdateAlias", 3, (*player).updateAlias, false},
	{"DeleteAlias", 2, (*player).deleteAlias, false},
	{"Encrypt", 10, (*player).encrypt, true},
	{"GenerateDataKey", 5, (*player).generateDataKey, false},
	{"Decrypt", 8, (*player).decryptSome, true},
	{"ReEncrypt", 4, (*player).reEncrypt, false},
	{"Sign", 3, (*player).sign, false},
	{"GenerateMac", 2, (*player).generateMac, false},
	{"Verify", 3, (*player).verifySome, false},
	{"GetPublicKey", 1, (*player).publicKey, false},
	{"lists", 2, (*player).lists, false},
	{"one key", 3, (*player).oneKey, false},
	{"time passes", 6, (*player).pass, true},
	{"scheduler", 5, (*player).schedule, true},
	{"restart", 1, (*player).restarted, false},
	{"reopen", 1, (*player).reopened, false},
	{"crash", 1, (*player).crash, false},
	{"erase", 1, (*player).erased, false},
	{"audit", 1, (*player).audit, false},
}

func (p *player) chance(percent int) bool { return p.d.IntN(100) < percent }

func one[T any](p *player, of ...T) T { return of[p.d.IntN(len(of))] }

// expect sends a request and compares its outcome, "" for success.
func (p *player) expect(want, region, op string, in args) answer {
	p.key.Region = region
	a := p.call(op, in)
	if a.code() != want {
		p.Fatalf("%s in %s %v\n got %s\nwant %q", op, region, in, a, want)
	}
	p.note(op, region, a)
	return a
}

// equal compares what was answered with the model.
func (p *player) equal(what string, got, want any) {
	if g, w := fmt.Sprint(got), fmt.Sprint(want); g != w {
		p.Fatalf("%s:\n got %s\nwant %s", what, g, w)
	}
}

// aimed is a request's key: what it names, where, and what that is.
type aimed struct {
	region, text string
	key          *mkey // nil when there is none
}

// aim chooses a key, and how to name it.
func (p *player) aim(withAliases bool) aimed {
	keys := p.w.live()
	if len(keys) == 0 || p.chance(4) {
		keys = p.w.keys
	}
	if p.chance(50) { // more happens to keys that can be used
		enabled := slices.DeleteFunc(slices.Clone(keys), func(k *mkey) bool { return p.w.shown(k) != "Enabled" })
		if len(enabled) > 0 {
			keys = enabled
		}
	}
	if len(keys) == 0 {
		return aimed{historyRegions[0], "12345678-1234-4234-8234-123456789012", nil}
	}
	return p.name(keys[p.d.IntN(len(keys))], withAliases)
}

// name names a key: by its id, its ARN, or one of its aliases; sometimes in another
// region than its own.
func (p *player) name(k *mkey, withAliases bool) aimed {
	if p.chance(4) {
		region := one(p, historyRegions...)
		return aimed{region, k.id, p.w.find(region, k.id)}
	}
	a := aimed{k.region, one(p, k.id, k.arn), p.w.find(k.region, k.id)}
	if withAliases && p.chance(40) {
		for _, name := range historyAliasNames {
			if alias := p.w.aliases[[2]string{k.region, name}]; alias != nil && alias.target == k {
				a.text = one(p, name, aliasARN(k.region, testAccount, name))
			}
		}
	}
	return a
}

var historyAliasNames = []string{"alias/one", "alias/two", "alias/three/3", "alias/four", "alias/five"}

// ruled returns what a request is refused with: that its key is not there, or what
// the rule says of the key.
func ruled(a aimed, rule func(k *mkey) string) string {
	if a.key == nil {
		return codeNotFound
	}
	return rule(a.key)
}

// first returns the first that is not "".
func first(codes ...string) string {
	for _, c := range codes {
		if c != "" {
			return c
		}
	}
	return ""
}

func when(condition bool, code string) string {
	if condition {
		return code
	}
	return ""
}

func (p *player) createKey() {
	if len(p.w.live()) >= p.mostKeys {
		p.encrypt()
		return
	}
	in := args{}
	kind, origin, multi := one(p, p.kinds...), one(p, p.origins...), p.chance(p.multi)
	if origin == originExternal && (kind == specSM2 || kind == specMLDSA) {
		p.expect(codeUnsupported, testRegion, "CreateKey", args{"KeySpec": specMLDSA.spec, "KeyUsage": specMLDSA.usage, "Origin": origin})
		return
	}
	k := &mkey{kind: kind, region: one(p, historyRegions...), state: "Enabled", created: p.w.now, tags: map[string]string{}, held: map[*mmaterial]*mheld{}}
	if kind != specSymmetric || p.chance(50) {
		in["KeySpec"], in["KeyUsage"] = kind.spec, kind.usage
	}
	if origin == originExternal || p.chance(20) {
		in["Origin"] = origin
	}
	if multi {
		in["MultiRegion"] = true
	}
	if p.chance(30) {
		k.description = "made with the key"
		in["Description"] = k.description
	}
	if p.chance(20) {
		k.tags["t1"] = "made"
		in["Tags"] = []args{{"TagKey": "t1", "TagValue": "made"}}
	}
	k.fam = &mfamily{multi: multi, origin: origin, primary: k, members: []*mkey{k}}
	if origin == originExternal {
		k.state = "PendingImport"
	} else {
		m := &mmaterial{name: p.w.label("material", "")}
		k.fam.materials, k.fam.current = []*mmaterial{m}, m
	}
	m := p.expect("", k.region, "CreateKey", in).fields["KeyMetadata"].(map[string]any)
	k.id, k.arn = m["KeyId"].(string), m["Arn"].(string)
	k.name = p.w.label("key", k.id)
	p.w.keys = append(p.w.keys, k)
	p.seen(k, m)
	p.equal("CreateKey", m, p.w.metadata(k))
}

// seen learns from metadata the id of material that was made there.
func (p *player) seen(k *mkey, m map[string]any) {
	id, _ := m["CurrentKeyMaterialId"].(string)
	p.saw(k.fam, k.fam.current, id)
}

// saw compares the id of material with what it was before, or learns it.
func (p *player) saw(f *mfamily, m *mmaterial, id string) {
	if m == nil || id == "" {
		return
	}
	if m.id == "" {
		for _, o := range f.materials {
			if o.id == id {
				p.Fatalf("new material has the id %s of old", id)
			}
		}
		m.id = id
		p.w.names[id] = m.name
	}
	p.equal("KeyMaterialId", id, m.id)
}

func (p *player) enableKey() {
	a := p.aim(false)
	want := ruled(a, func(k *mkey) string { return p.w.in(k, "Enabled", "Disabled") })
	p.expect(want, a.region, "EnableKey", args{"KeyId": a.text})
	if want == "" {
		a.key.state = "Enabled"
	}
}

func (p *player) disableKey() {
	a := p.aim(false)
	want := ruled(a, func(k *mkey) string { return p.w.in(k, "Enabled", "Disabled") })
	p.expect(want, a.region, "DisableKey", args{"KeyId": a.text})
	if want == "" {
		a.key.state = "Disabled"
	}
}

func (p *player) scheduleDeletion() {
	a := p.aim(false)
	days := one(p, 7, 7, 8, 14, 30, 6)
	want := ruled(a, func(k *mkey) string { return first(p.w.changed(k), when(days < 7, codeValidation)) })
	p.expect(want, a.region, "ScheduleKeyDeletion", args{"KeyId": a.text, "PendingWindowInDays": days})
	if want != "" {
		return
	}
	k := a.key
	k.state, k.window, k.deletion = "PendingDeletion", days, p.w.now.Add(time.Duration(days)*day)
	if k.fam.primary == k && len(k.fam.members) > 1 {
		k.state, k.deletion = "PendingReplicaDeletion", time.Time{}
	}
}

func (p *player) cancelDeletion() {
	a := p.aim(false)
	for _, k := range p.w.live() { // it is mostly for those that it is for
		if strings.HasSuffix(k.state, "Deletion") && p.chance(50) {
			a = p.name(k, false)
		}
	}
	want := ruled(a, func(k *mkey) string { return p.w.in(k, "PendingDeletion", "PendingReplicaDeletion") })
	p.expect(want, a.region, "CancelKeyDeletion", args{"KeyId": a.text})
	if want != "" {
		return
	}
	k := a.key
	k.state, k.deletion = "Disabled", time.Time{}
	if k.fam.origin == originExternal && !k.complete() {
		k.state = "PendingImport"
	}
}

func (p *player) describeAnew() {
	a := p.aim(false)
	text := fmt.Sprint("description ", p.d.IntN(100))
	want := ruled(a, p.w.changed)
	p.expect(want, a.region, "UpdateKeyDescription", args{"KeyId": a.text, "Description": text})
	if want == "" {
		a.key.description = text
	}
}

func (p *player) tag() {
	a := p.aim(false)
	add := map[string]string{}
	for range 1 + p.d.IntN(3) {
		add[fmt.Sprint("t", p.d.IntN(6))] = fmt.Sprint(p.d.IntN(100))
	}
	merged := maps.Clone(add)
	if a.key != nil {
		merged = maps.Clone(a.key.tags)
		maps.Copy(merged, add)
	}
	want := ruled(a, func(k *mkey) string { return first(p.w.changed(k), when(len(merged) > historyTags, codeTags)) })
	var list []args
	for _, name := range slices.Sorted(maps.Keys(add)) {
		list = append(list, args{"TagKey": name, "TagValue": add[name]})
	}
	p.expect(want, a.region, "TagResource", args{"KeyId": a.text, "Tags": list})
	if want == "" {
		a.key.tags = merged
	}
}

func (p *player) untag() {
	a := p.aim(false)
	name := fmt.Sprint("t", p.d.IntN(6))
	want := ruled(a, p.w.changed)
	p.expect(want, a.region, "UntagResource", args{"KeyId": a.text, "TagKeys": []string{name}})
	if want == "" {
		delete(a.key.tags, name)
	}
}

// scheduled refuses keys that do not rotate by themselves.
func (p *player) scheduled(k *mkey) string {
	return first(p.w.in(k, "Enabled", "PendingImport"), when(!k.kind.symmetric || k.fam.origin != "AWS_KMS" || k.fam.primary != k, codeUnsupported))
}

func (p *player) enableRotation() {
	a := p.aim(false)
	in := args{"KeyId": a.text}
	days := one(p, 90, 90, 120, 365, 2560, 0)
	if days > 0 {
		in["RotationPeriodInDays"] = days
	} else {
		days = 365
	}
	want := ruled(a, p.scheduled)
	p.expect(want, a.region, "EnableKeyRotation", in)
	if want != "" {
		return
	}
	if f := a.key.fam; f.next.IsZero() || f.period != days {
		f.period, f.next = days, p.w.now.Add(time.Duration(days)*day)
	}
}

func (p *player) disableRotation() {
	a := p.aim(false)
	want := ruled(a, p.scheduled)
	p.expect(want, a.region, "DisableKeyRotation", args{"KeyId": a.text})
	if want == "" {
		a.key.fam.next = time.Time{}
	}
}

func (p *player) rotateNow() {
	a := p.aim(false)
	for _, k := range p.w.live() { // it is mostly for those that it is for
		if k.fam.primary == k && k.fam.waiting() != nil && p.chance(50) {
			a = p.name(k, false)
		}
	}
	want := ruled(a, func(k *mkey) string {
		f := k.fam
		if code := first(p.w.in(k, "Enabled"), when(!k.kind.symmetric || f.primary != k, codeUnsupported)); code != "" {
			return code
		}
		if f.origin == originExternal {
			m := f.waiting()
			lacks := func(o *mkey) bool { return m == nil || o.held[m] == nil || o.held[m].over(p.w.now) }
			return first(when(lacks(k), codeState), when(f.onDemand >= historyRotations, codeLimit), when(slices.ContainsFunc(f.members, lacks), codeState))
		}
		return first(when(f.onDemand >= historyRotations, codeLimit), when(!f.next.IsZero() && f.next.Sub(p.w.now) <= 20*time.Minute, codeSoon))
	})
	p.expect(want, a.region, "RotateKeyOnDemand", args{"KeyId": a.text})
	if want != "" {
		return
	}
	f := a.key.fam
	f.onDemand++
	if f.origin == originExternal {
		m := f.waiting()
		m.pending, m.kind, m.rotated = false, "ON_DEMAND", p.w.now
		f.current = m
	} else {
		p.w.rotate(f, "ON_DEMAND")
	}
}

func (p *player) replicate() {
	a := p.aim(false)
	for _, k := range p.w.live() {
		if k.fam.multi && k.fam.primary == k && p.w.shown(k) == "Enabled" && p.chance(60) {
			a = p.name(k, false)
		}
	}
	region := one(p, historyRegions...)
	for range 2 {
		if a.key != nil && a.key.fam.in(region) != nil && p.chance(70) {
			region = one(p, historyRegions...)
		}
	}
	want := ruled(a, func(k *mkey) string {
		return first(p.w.in(k, "Enabled"), when(!k.fam.multi || k.fam.primary != k, codeUnsupported), when(k.fam.in(region) != nil, codeExists))
	})
	r := p.expect(want, a.region, "ReplicateKey", args{"KeyId": a.text, "ReplicaRegion": region, "Description": "a replica", "Tags": []args{{"TagKey": "t2", "TagValue": "r"}}})
	if want != "" {
		return
	}
	from := a.key
	k := &mkey{
		region: region, id: from.id, arn: keyARN(region, testAccount, from.id), kind: from.kind, fam: from.fam, state: "Creating",
		description: "a replica", created: p.w.now, tags: map[string]string{"t2": "r"}, held: map[*mmaterial]*mheld{},
	}
	k.name = p.w.label("key", "")
	p.w.keys = append(p.w.keys, k)
	from.fam.members = append(from.fam.members, k)
	shown := p.w.metadata(k)
	delete(shown, "CurrentKeyMaterialId")
	p.equal("ReplicaKeyMetadata", r.fields["ReplicaKeyMetadata"], shown)
	if k.state = "Enabled"; k.fam.origin == originExternal {
		k.state = "PendingImport"
	}
}

func (p *player) updatePrimary() {
	a, region := p.aim(false), one(p, historyRegions...)
	for _, k := range p.w.live() {
		if k.fam.primary != k && p.w.in(k, "Enabled") == "" && p.w.in(k.fam.primary, "Enabled") == "" && p.chance(60) {
			a, region = p.name(k.fam.primary, false), k.region
		}
	}
	var target *mkey
	want := ruled(a, func(k *mkey) string {
		if code := first(p.w.in(k, "Enabled"), when(!k.fam.multi || k.fam.primary != k || k.region == region, codeUnsupported)); code != "" {
			return code
		}
		if target = k.fam.in(region); target == nil {
			return codeNotFound
		}
		return p.w.in(target, "Enabled")
	})
	p.expect(want, a.region, "UpdatePrimaryRegion", args{"KeyId": a.text, "PrimaryRegion": region})
	if want == "" {
		a.key.fam.primary = target
	}
}

var historyContexts = []args{nil, {"a": "1"}, {"a": "2", "b": "3"}}

// keep adds a ciphertext that an operation of a key made.
func (p *player) keep(k *mkey, text string, context args, plaintext, material string) {
	b := &mblob{name: p.w.label("blob", text), fam: k.fam, id: k.id, kind: k.kind, material: k.fam.current, context: context, text: text, plaintext: plaintext}
	if k.kind.symmetric {
		p.saw(k.fam, b.material, material)
	}
	p.w.blobs = append(p.w.blobs, b)
}

func (p *player) encrypt() {
	a := p.aim(true)
	in := args{"KeyId": a.text, "Plaintext": b64(fmt.Sprint("plaintext ", p.d.IntN(1000)))}
	var context args
	if k := a.key; k != nil && k.kind == specSM2 {
		in["EncryptionAlgorithm"] = k.kind.alg
	} else if context = one(p, historyContexts...); context != nil {
		in["EncryptionContext"] = context
	}
	want := ruled(a, func(k *mkey) string { return p.w.used(k, "ENCRYPT_DECRYPT") })
	if want == "" && p.chance(5) {
		in["DryRun"], want = true, codeDry
	}
	r := p.expect(want, a.region, "Encrypt", in)
	if want == "" {
		p.keep(a.key, r.str("CiphertextBlob"), context, in["Plaintext"].(string), "")
	}
}

func (p *player) generateDataKey() {
	a := p.aim(true)
	op, in := "GenerateDataKey", args{"KeyId": a.text, "NumberOfBytes": 24}
	text, plain := "CiphertextBlob", "Plaintext"
	switch p.d.IntN(4) {
	case 0:
		op = "GenerateDataKeyWithoutPlaintext"
	case 1:
		op, text, plain = "GenerateDataKeyPair", "PrivateKeyCiphertextBlob", "PrivateKeyPlaintext"
		in = args{"KeyId": a.text, "KeyPairSpec": "ECC_NIST_P256"}
	}
	context := one(p, historyContexts...)
	if context != nil {
		in["EncryptionContext"] = context
	}
	want := ruled(a, func(k *mkey) string {
		return first(p.w.used(k, "ENCRYPT_DECRYPT"), when(!k.kind.symmetric, codeUsage))
	})
	r := p.expect(want, a.region, op, in)
	if want == "" {
		p.keep(a.key, r.str(text), context, r.str(plain), r.str("KeyMaterialId"))
	}
}

// named returns how a request for a ciphertext names its key, and what answers for
// the key.
func (p *player) named(b *mblob) (a aimed, want string) {
	region := one(p, historyRegions...)
	if home := b.fam.members; len(home) > 0 && p.chance(80) {
		region = one(p, home...).region
	}
	a = aimed{region, "", b.fam.in(region)}
	switch {
	case b.kind.symmetric && p.chance(60):
		want = codeDenied
		if a.key != nil {
			want = p.w.used(a.key, "ENCRYPT_DECRYPT")
		}
	case p.chance(90):
		a.text = b.id
		want = ruled(a, func(k *mkey) string { return p.w.used(k, "ENCRYPT_DECRYPT") })
	default:
		a = p.aim(true)
		want = ruled(a, func(k *mkey) string {
			wrong := codeWrongKey
			switch {
			case k.fam == b.fam:
				wrong = ""
			case !b.kind.symmetric && k.kind.symmetric: // the algorithm is not one of the key's
				wrong = codeUsage
			case !b.kind.symmetric:
				wrong = codeCiphertext
			}
			if wrong == codeWrongKey { // before the key's usage and state
				return wrong
			}
			return first(p.w.used(k, "ENCRYPT_DECRYPT"), wrong)
		})
	}
	return a, want
}

func (p *player) decryptSome() {
	if len(p.w.blobs) == 0 {
		return
	}
	b := one(p, p.w.blobs...)
	a, want := p.named(b)
	p.decrypt(b, a, want)
}

// decrypt decrypts a ciphertext with a key, sometimes after having damaged it or with
// another context.
func (p *player) decrypt(b *mblob, a aimed, want string) {
	in := args{"CiphertextBlob": b.text}
	if a.text != "" {
		in["KeyId"] = a.text
	}
	if b.context != nil {
		in["EncryptionContext"] = b.context
	}
	if !b.kind.symmetric {
		in["EncryptionAlgorithm"] = b.kind.alg
	}
	switch {
	case want != "":
	case p.chance(4):
		raw := fromBase64(p.harness, b.text)
		raw[len(raw)-1] ^= 1
		in["CiphertextBlob"], want = base64.StdEncoding.EncodeToString(raw), codeCiphertext
	case p.chance(4) && b.kind.symmetric:
		in["EncryptionContext"], want = args{"a": "3"}, codeCiphertext
	}
	r := p.expect(want, a.region, "Decrypt", in)
	if want == "" {
		p.opened(b, a.key, r)
	}
}

// opened compares what a ciphertext was decrypted to.
func (p *player) opened(b *mblob, k *mkey, r answer) {
	if b.plaintext == "" {
		b.plaintext = r.str("Plaintext")
	}
	if r.str("Plaintext") != b.plaintext || r.str("KeyId") != k.arn {
		p.Fatalf("%s of %s: %s, want %s", b.name, k.name, r, b.plaintext)
	}
	if b.kind.symmetric {
		p.saw(b.fam, b.material, r.str("KeyMaterialId"))
	}
}

func (p *player) reEncrypt() {
	if len(p.w.blobs) == 0 {
		return
	}
	b := one(p, p.w.blobs...)
	a, _ := p.named(b)
	if a.text != "" && a.text != b.id {
		return // Decrypt tries that
	}
	in := args{"CiphertextBlob": b.text}
	want := codeDenied
	if a.text != "" {
		in["SourceKeyId"], want = a.text, codeNotFound
	}
	if a.key != nil {
		want = p.w.used(a.key, "ENCRYPT_DECRYPT")
	}
	if b.context != nil {
		in["SourceEncryptionContext"] = b.context
	}
	if !b.kind.symmetric {
		in["SourceEncryptionAlgorithm"] = b.kind.alg
	}
	to := p.aim(true)
	to.region = a.region
	if strings.HasPrefix(to.text, "arn:") || strings.HasPrefix(to.text, aliasPrefix) {
		if to.key != nil && to.key.region != a.region {
			return
		}
	} else {
		to.key = p.w.find(a.region, to.text)
	}
	if to.key != nil && to.key.kind == specSM2 {
		in["DestinationEncryptionAlgorithm"] = specSM2.alg
	}
	in["DestinationKeyId"] = to.text
	want = first(want, ruled(to, func(k *mkey) string { return p.w.used(k, "ENCRYPT_DECRYPT") }))
	r := p.expect(want, a.region, "ReEncrypt", in)
	if want == "" {
		if b.kind.symmetric {
			p.saw(b.fam, b.material, r.str("SourceKeyMaterialId"))
		}
		p.keep(to.key, r.str("CiphertextBlob"), nil, b.plaintext, r.str("DestinationKeyMaterialId"))
	}
}

// sealed adds a signature or a MAC.
func (p *player) sealed(a aimed, usage, op, member string) {
	in := args{"KeyId": a.text, "Message": b64(fmt.Sprint("message ", p.d.IntN(100)))}
	algorithm := member + "Algorithm"
	if member == "Signature" {
		algorithm = "SigningAlgorithm"
	}
	in[algorithm] = map[string]string{"Signature": "ECDSA_SHA_256", "Mac": "HMAC_SHA_256"}[member]
	if a.key != nil && a.key.kind.usage == usage {
		in[algorithm] = a.key.kind.alg
	}
	want := ruled(a, func(k *mkey) string { return p.w.used(k, usage) })
	r := p.expect(want, a.region, op, in)
	if want == "" {
		p.w.seals = append(p.w.seals, &mseal{a.key.fam, a.key.id, a.key.kind, in["Message"].(string), r.str(member)})
	}
}

// aimAt chooses a key, mostly one of a usage.
func (p *player) aimAt(usage string) aimed {
	for _, k := range p.w.live() {
		if k.kind.usage == usage && p.chance(60) {
			return p.name(k, true)
		}
	}
	return p.aim(true)
}

func (p *player) sign() { p.sealed(p.aimAt("SIGN_VERIFY"), "SIGN_VERIFY", "Sign", "Signature") }

func (p *player) generateMac() {
	p.sealed(p.aimAt("GENERATE_VERIFY_MAC"), "GENERATE_VERIFY_MAC", "GenerateMac", "Mac")
}

func (p *player) verifySome() {
	if len(p.w.seals) > 0 {
		p.verify(one(p, p.w.seals...), one(p, historyRegions...), p.chance(10))
	}
}

// verify verifies a signature or a MAC in a region, or another message with it.
func (p *player) verify(s *mseal, region string, wrong bool) {
	a := aimed{region, s.id, s.fam.in(region)}
	want := ruled(a, func(k *mkey) string { return p.w.used(k, s.kind.usage) })
	op, in, bad := "Verify", args{"KeyId": s.id, "Message": s.message, "Signature": s.text, "SigningAlgorithm": s.kind.alg}, "KMSInvalidSignatureException"
	if s.kind == specHMAC {
		op, in, bad = "VerifyMac", args{"KeyId": s.id, "Message": s.message, "Mac": s.text, "MacAlgorithm": s.kind.alg}, "KMSInvalidMacException"
	}
	if wrong {
		in["Message"] = b64("another message")
		want = first(want, bad)
	}
	p.expect(want, region, op, in)
}

func (p *player) publicKey() {
	a := p.aim(true)
	want := ruled(a, func(k *mkey) string {
		return first(p.w.changed(k), when(!k.kind.asymmetric && p.w.shown(k) == "PendingImport", codeState), when(!k.kind.asymmetric, codeUnsupported), when(len(k.fam.materials) == 0 && k.fam.origin == originExternal, codeState))
	})
	r := p.expect(want, a.region, "GetPublicKey", args{"KeyId": a.text})
	if want != "" {
		return
	}
	f := a.key.fam
	if f.public == "" {
		f.public = r.str("PublicKey")
	}
	p.equal("PublicKey", r.str("PublicKey"), f.public)
}

func (p *player) pass() {
	p.now = p.now.Add(one(p, time.Millisecond, time.Second, 21*time.Minute, 21*time.Minute, time.Hour, time.Hour, 25*time.Hour, 8*day, 8*day, 40*day, 90*day))
	p.w.now = p.now
}

func (p *player) schedule() {
	if err := p.svc.runDue(p.now); err != nil {
		p.Fatalf("%v", err)
	}
	if err := p.svc.completeReplicas(); err != nil {
		p.Fatalf("%v", err)
	}
	if err := p.svc.sweepPairs(p.now); err != nil {
		p.Fatalf("%v", err)
	}
	p.w.round()
}

func (p *player) restarted() { p.restartService() }
func (p *player) reopened()  { p.reopen(nil) }
func (p *player) crash()     { p.reopen(p.d) }

func (p *player) erased() {
	if _, err := p.svc.erase(context.Background()); err != nil {
		p.Fatalf("%v", err)
	}
}
