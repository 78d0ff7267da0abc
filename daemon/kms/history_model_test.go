package kms

import (
	"maps"
	"slices"
	"strings"
	"time"
)

// # The model
//
// A world is what the tests of histories believe Keymill to be: plain values, no
// caches, no records, one request at a time. It was written from AWS KMS's rules
// and knows nothing of how the service keeps things, but for two liberties that
// those rules leave: what is due happens in a round of the scheduler, and material
// whose time is over is refused at once and deleted in such a round.
type world struct {
	now     time.Time
	keys    []*mkey // in the order of their creation, destroyed ones too
	aliases map[[2]string]*malias
	blobs   []*mblob
	seals   []*mseal
	names   map[string]string // what is different in every run, and its name here
	nextID  int
}

// Quotas that histories run under: low, so that they are met.
const (
	historyTags      = 4
	historyAliases   = 3
	historyGrants    = 3
	historyRotations = 4
)

// An mspec is a kind of key.
type mspec struct {
	spec, usage, alg string
	symmetric        bool
	asymmetric       bool
}

var (
	specSymmetric = &mspec{"SYMMETRIC_DEFAULT", "ENCRYPT_DECRYPT", "SYMMETRIC_DEFAULT", true, false}
	specHMAC      = &mspec{"HMAC_256", "GENERATE_VERIFY_MAC", "HMAC_SHA_256", false, false}
	specP256      = &mspec{"ECC_NIST_P256", "SIGN_VERIFY", "ECDSA_SHA_256", false, true}
	specSM2       = &mspec{"SM2", "ENCRYPT_DECRYPT", "SM2PKE", false, true}
	specMLDSA     = &mspec{"ML_DSA_44", "SIGN_VERIFY", "ML_DSA_SHAKE_256", false, true}
)

// An mkey is a key of one region.
type mkey struct {
	name, region, id, arn string
	kind                  *mspec
	fam                   *mfamily

	state       string // without what has expired since the last round
	description string
	created     time.Time
	deletion    time.Time
	window      int
	gone        bool
	tags        map[string]string
	grants      []*mgrant
	held        map[*mmaterial]*mheld // of imported material, what is here

	// The parameters for import that were asked for last.
	params      *parameters
	paramsUntil time.Time
}

// An mfamily is what related keys share. Other keys are families of one.
type mfamily struct {
	multi     bool
	origin    string
	primary   *mkey
	members   []*mkey // not destroyed
	materials []*mmaterial
	current   *mmaterial
	public    string // once it was seen

	period   int
	next     time.Time
	onDemand int
}

// An mmaterial is a generation of a family's material.
type mmaterial struct {
	name        string
	id          string // "" until it was seen
	secret      byte   // of imported material
	pending     bool
	kind        string // how it became current
	rotated     time.Time
	description string
}

// An mheld is imported material that is here.
type mheld struct{ until time.Time }

type malias struct {
	region, name     string
	target           *mkey
	created, updated time.Time
}

type mgrant struct {
	name, id, token   string
	label             string // Name
	grantee, retiring string
	operations        []string
	created           time.Time
}

// An mblob is a ciphertext.
type mblob struct {
	name      string
	fam       *mfamily
	id        string // of the key
	kind      *mspec
	material  *mmaterial
	context   args
	text      string // base64
	plaintext string // base64, "" until it was seen
}

// An mseal is a signature or a MAC.
type mseal struct {
	fam           *mfamily
	id            string
	kind          *mspec
	message, text string // base64
}

// label names what differs in every run.
func (w *world) label(kind, text string) string {
	w.nextID++
	name := kind + itoa(w.nextID)
	if text != "" {
		w.names[text] = name
	}
	return name
}

func itoa(n int) string {
	if n < 10 {
		return string(rune('0' + n))
	}
	return itoa(n/10) + itoa(n%10)
}

const (
	codeNotFound     = "NotFoundException"
	codeDisabled     = "DisabledException"
	codeState        = "KMSInvalidStateException"
	codeUnsupported  = "UnsupportedOperationException"
	codeValidation   = "ValidationException"
	codeUsage        = "InvalidKeyUsageException"
	codeDenied       = "AccessDeniedException"
	codeMaterial     = "IncorrectKeyMaterialException"
	codeLimit        = "LimitExceededException"
	codeExists       = "AlreadyExistsException"
	codeDry          = "DryRunOperationException"
	codeWrongKey     = "IncorrectKeyException"
	codeCiphertext   = "InvalidCiphertextException"
	codeSoon         = "ConflictException"
	codeTags         = "TagException"
	codeTokenExpired = "ExpiredImportTokenException"
)

// shown is the state that callers see.
func (w *world) shown(k *mkey) string {
	if k.state == "Enabled" || k.state == "Disabled" {
		for m, h := range k.held {
			if !m.pending && h.over(w.now) {
				return "PendingImport"
			}
		}
	}
	return k.state
}

func (h *mheld) over(now time.Time) bool { return !h.until.IsZero() && !now.Before(h.until) }

// in refuses states other than those.
func (w *world) in(k *mkey, allowed ...string) string {
	state := w.shown(k)
	switch {
	case slices.Contains(allowed, state):
		return ""
	case state == "Disabled" && !slices.Contains(allowed, "PendingDeletion"):
		return codeDisabled
	}
	return codeState
}

// used refuses cryptography with a key that is not one for it.
func (w *world) used(k *mkey, usage string) string {
	if k.kind.usage != usage {
		return codeUsage
	}
	return w.in(k, "Enabled")
}

// changed refuses changes of a key that is to be deleted.
func (w *world) changed(k *mkey) string { return w.in(k, "Enabled", "Disabled", "PendingImport") }

func (f *mfamily) in(region string) *mkey {
	for _, k := range f.members {
		if k.region == region {
			return k
		}
	}
	return nil
}

// find returns the key that an id means in a region.
func (w *world) find(region, id string) *mkey {
	for _, k := range w.keys {
		if k.region == region && k.id == id && !k.gone {
			return k
		}
	}
	return nil
}

func (w *world) live() (keys []*mkey) {
	for _, k := range w.keys {
		if !k.gone {
			keys = append(keys, k)
		}
	}
	return keys
}

func (f *mfamily) permanent() (all []*mmaterial) {
	for _, m := range f.materials {
		if !m.pending {
			all = append(all, m)
		}
	}
	return all
}

func (f *mfamily) waiting() *mmaterial {
	for _, m := range f.materials {
		if m.pending {
			return m
		}
	}
	return nil
}

func (f *mfamily) bySecret(b byte) *mmaterial {
	for _, m := range f.materials {
		if m.secret == b {
			return m
		}
	}
	return nil
}

// complete tells whether a key of imported material has all that it needs.
func (k *mkey) complete() bool {
	all := k.fam.permanent()
	for _, m := range all {
		if k.held[m] == nil {
			return false
		}
	}
	return len(all) > 0
}

// pendingState is the KeyMaterialState of material that waits for its rotation.
func (f *mfamily) pendingState(m *mmaterial) string {
	for _, k := range f.members {
		if k.held[m] == nil {
			return "PENDING_MULTI_REGION_IMPORT_AND_ROTATION"
		}
	}
	return "PENDING_ROTATION"
}

// lose takes imported material from a key.
func (k *mkey) lose(m *mmaterial) {
	delete(k.held, m)
	switch {
	case !m.pending:
		if k.state == "Enabled" || k.state == "Disabled" {
			k.state = "PendingImport"
		}
	case k.fam.primary == k:
		for _, other := range k.fam.members {
			delete(other.held, m)
		}
		k.fam.materials = slices.DeleteFunc(k.fam.materials, func(o *mmaterial) bool { return o == m })
	}
}

// rotate gives a family new material.
func (w *world) rotate(f *mfamily, kind string) {
	m := &mmaterial{name: w.label("material", ""), kind: kind, rotated: w.now}
	f.materials = append(f.materials, m)
	f.current = m
}

// round does what is due.
func (w *world) round() {
	for _, k := range w.live() {
		for _, m := range slices.Clone(k.fam.materials) {
			if h := k.held[m]; h != nil && h.over(w.now) {
				k.lose(m)
			}
		}
	}
	for _, k := range w.live() {
		if k.state == "PendingDeletion" && !w.now.Before(k.deletion) {
			w.destroy(k)
		}
	}
	for _, k := range w.live() {
		f := k.fam
		if f.primary != k || f.next.IsZero() || w.now.Before(f.next) || k.state != "Enabled" {
			continue
		}
		w.rotate(f, "AUTOMATIC")
		if w.now.Sub(f.next) > day {
			f.next = w.now
		}
		f.next = f.next.Add(time.Duration(f.period) * day)
	}
}

func (w *world) destroy(k *mkey) {
	k.gone = true
	maps.DeleteFunc(w.aliases, func(_ [2]string, a *malias) bool { return a.target == k })
	k.grants = nil
	f := k.fam
	f.members = slices.DeleteFunc(f.members, func(o *mkey) bool { return o == k })
	if p := f.primary; len(f.members) == 1 && f.members[0] == p && p.state == "PendingReplicaDeletion" {
		p.state = "PendingDeletion"
		p.deletion = w.now.Add(time.Duration(p.window) * day)
	}
}

// metadata is what DescribeKey shows.
func (w *world) metadata(k *mkey) map[string]any {
	f, state := k.fam, w.shown(k)
	m := map[string]any{
		"AWSAccountId": testAccount, "KeyId": k.id, "Arn": k.arn, "CreationDate": wireTime(k.created),
		"Enabled": state == "Enabled", "Description": k.description, "KeyUsage": k.kind.usage, "KeyState": state,
		"Origin": f.origin, "KeyManager": "CUSTOMER", "KeySpec": k.kind.spec,
		"CustomerMasterKeySpec": k.kind.spec, "MultiRegion": f.multi,
	}
	if k.kind.symmetric && f.current != nil {
		m["CurrentKeyMaterialId"] = f.current.id
	}
	switch state {
	case "PendingDeletion":
		m["DeletionDate"] = wireTime(k.deletion)
	case "PendingReplicaDeletion":
		m["PendingDeletionWindowInDays"] = float64(k.window)
	}
	if f.origin == "EXTERNAL" && state != "PendingImport" && k.complete() {
		m["ExpirationModel"] = "KEY_MATERIAL_DOES_NOT_EXPIRE"
		var first time.Time
		for _, mat := range f.permanent() {
			if h := k.held[mat]; h != nil && !h.until.IsZero() && (first.IsZero() || h.until.Before(first)) {
				first = h.until
			}
		}
		if !first.IsZero() {
			m["ExpirationModel"], m["ValidTo"] = "KEY_MATERIAL_EXPIRES", wireTime(first)
		}
	}
	switch algs := []any{k.kind.alg}; k.kind.usage {
	case "ENCRYPT_DECRYPT":
		m["EncryptionAlgorithms"] = algs
	case "SIGN_VERIFY":
		m["SigningAlgorithms"] = algs
	case "GENERATE_VERIFY_MAC":
		m["MacAlgorithms"] = algs
	}
	if f.multi {
		key := func(k *mkey) map[string]any { return map[string]any{"Arn": k.arn, "Region": k.region} }
		c := map[string]any{"MultiRegionKeyType": "REPLICA", "PrimaryKey": key(f.primary)}
		if f.primary == k {
			c["MultiRegionKeyType"] = "PRIMARY"
		}
		members := slices.SortedFunc(slices.Values(f.members), func(a, b *mkey) int { return strings.Compare(a.region, b.region) })
		replicas := []any{}
		for _, o := range members {
			if o != f.primary {
				replicas = append(replicas, key(o))
			}
		}
		c["ReplicaKeys"] = replicas
		m["MultiRegionConfiguration"] = c
	}
	return m
}

// rotations is what ListKeyRotations lists.
func (w *world) rotations(k *mkey, all bool) []map[string]any {
	f := k.fam
	list := []map[string]any{}
	for _, mat := range f.materials {
		if !all && mat.kind == "" {
			continue
		}
		e := map[string]any{"KeyId": k.arn, "KeyMaterialId": mat.id, "KeyMaterialState": "NON_CURRENT"}
		switch {
		case mat.pending:
			e["KeyMaterialState"] = f.pendingState(mat)
		case mat == f.current:
			e["KeyMaterialState"] = "CURRENT"
		}
		if mat.kind != "" {
			e["RotationType"], e["RotationDate"] = mat.kind, wireTime(mat.rotated)
		}
		if f.origin == "EXTERNAL" {
			if mat.description != "" {
				e["KeyMaterialDescription"] = mat.description
			}
			e["ImportState"] = "PENDING_IMPORT"
			if h := k.held[mat]; h != nil {
				e["ImportState"], e["ExpirationModel"] = "IMPORTED", "KEY_MATERIAL_DOES_NOT_EXPIRE"
				if !h.until.IsZero() {
					e["ExpirationModel"], e["ValidTo"] = "KEY_MATERIAL_EXPIRES", wireTime(h.until)
				}
			}
		}
		list = append(list, e)
	}
	return list
}

// rotationStatus is what GetKeyRotationStatus answers, or refuses with.
func (w *world) rotationStatus(k *mkey) (map[string]any, string) {
	state := w.shown(k)
	if state == "PendingImport" {
		return nil, codeUnsupported
	}
	m := map[string]any{"KeyId": k.arn, "KeyRotationEnabled": false}
	if f := k.fam; !f.next.IsZero() && !strings.HasSuffix(state, "Deletion") {
		m["KeyRotationEnabled"], m["RotationPeriodInDays"], m["NextRotationDate"] = true, float64(f.period), wireTime(f.next)
	}
	return m, ""
}

// listedGrants is what lists show of grants of a key.
func (k *mkey) listedGrants(only func(g *mgrant) bool) []map[string]any {
	list := []map[string]any{}
	for _, g := range k.grants {
		if !only(g) {
			continue
		}
		ops := []any{}
		for _, op := range g.operations {
			ops = append(ops, op)
		}
		e := map[string]any{
			"KeyId": k.arn, "GrantId": g.id, "GranteePrincipal": g.grantee, "CreationDate": wireTime(g.created),
			"IssuingAccount": "arn:aws:iam::" + testAccount + ":root", "Operations": ops, "Name": g.label,
		}
		if g.retiring != "" {
			e["RetiringPrincipal"] = g.retiring
		}
		list = append(list, e)
	}
	return list
}
