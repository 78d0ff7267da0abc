package kms

import (
	"encoding/hex"
	"errors"
	"slices"
	"strings"
	"unicode/utf8"

	"keymill/daemon/policy"
	"keymill/daemon/wire"
	"keymill/engine"
	"keymill/keystore"
)

// grantRows are the operations on grants. RetireGrant finds its key itself: it is
// for principals of other accounts, too, whom the grant names.
var grantRows = []operation{
	{op: wire.OpCreateGrant, key: byKey(func(in *wire.CreateGrantRequest) string { return in.KeyId }), states: grantCreation, run: with(createGrant)},
	{op: wire.OpListGrants, key: byKey(func(in *wire.ListGrantsRequest) string { return in.KeyId }), states: always, run: with(listGrants)},
	{op: wire.OpListRetirableGrants, run: with(listRetirableGrants)},
	{op: wire.OpRetireGrant, states: always, run: with(retireGrant)},
	{op: wire.OpRevokeGrant, key: byKey(func(in *wire.RevokeGrantRequest) string { return in.KeyId }), states: always, run: with(revokeGrant)},
}

// Limits that AWS KMS documents but its service model does not carry.
const (
	defaultGrantPage   = 50
	maxGrantPage       = 100
	maxConstraintPairs = 8
	maxConstraintChars = 384 // of one pair
)

// grantOperations are the operations that a grant can allow, in the order in
// which grants show them, with the keys that have them (AWS KMS Developer Guide,
// Grants in AWS KMS).
var grantOperations = []struct {
	name string
	on   func(engine.Spec, engine.Usage) bool
}{
	{"Decrypt", usedFor(engine.EncryptDecrypt)},
	{"Encrypt", usedFor(engine.EncryptDecrypt)},
	{"GenerateDataKey", symmetricKeys},
	{"GenerateDataKeyWithoutPlaintext", symmetricKeys},
	{"ReEncryptFrom", usedFor(engine.EncryptDecrypt)},
	{"ReEncryptTo", usedFor(engine.EncryptDecrypt)},
	{"Sign", usedFor(engine.SignVerify)},
	{"Verify", usedFor(engine.SignVerify)},
	{"GetPublicKey", func(s engine.Spec, _ engine.Usage) bool { return s.Asymmetric() }},
	{grantCreateGrant, anyKey},
	{grantRetireGrant, anyKey},
	{"DescribeKey", anyKey},
	{"GenerateDataKeyPair", symmetricKeys},
	{"GenerateDataKeyPairWithoutPlaintext", symmetricKeys},
	{"GenerateMac", usedFor(engine.GenerateVerifyMAC)},
	{"VerifyMac", usedFor(engine.GenerateVerifyMAC)},
	{"DeriveSharedSecret", usedFor(engine.KeyAgreement)},
}

const (
	grantCreateGrant = "CreateGrant"
	grantRetireGrant = "RetireGrant"
)

func anyKey(engine.Spec, engine.Usage) bool            { return true }
func symmetricKeys(s engine.Spec, _ engine.Usage) bool { return s.Symmetric() }
func usedFor(u engine.Usage) func(engine.Spec, engine.Usage) bool {
	return func(_ engine.Spec, usage engine.Usage) bool { return usage == u }
}

func createGrant(x *exchange, in *wire.CreateGrantRequest) error {
	g, err := x.newGrant(in)
	if err != nil {
		return err
	}
	s, v := x.svc, x.key
	most := s.quota.Resources().GrantsPerKey
	full := wire.NewError(wire.LimitExceededException, "The key %s has %d grants, which is the limit.", v.arn, most)
	for range commitRetries {
		same, err := s.store.SameGrant(g)
		if err == nil {
			if x.dryRun {
				return nil
			}
			return x.answerGrant(same.ID)
		} else if !errors.Is(err, keystore.ErrNotFound) {
			return err
		}
		if x.dryRun {
			if n, err := s.store.CountGrants(v.ref); err != nil || most == 0 || n < most {
				return err
			}
			return full
		}
		// The key must not change between this look at its state and the commit.
		rec, err := s.store.Key(v.ref)
		if errors.Is(err, keystore.ErrNotFound) {
			return keyNotFound(v.arn)
		} else if err != nil {
			return err
		}
		if state, ok := parseState(rec.State); ok {
			if err := x.row.states.check(state, v.arn); err != nil {
				s.dropView(v.ref) // see updateKey
				return err
			}
		}
		t := s.store.NewTxn()
		t.ExpectKey(v.ref, rec.Revision)
		t.PutGrant(g, most)
		switch err = commit(t); {
		case err == nil:
			return x.answerGrant(g.ID)
		case errors.Is(err, keystore.ErrLimit):
			return full
		case !errors.Is(err, keystore.ErrConflict):
			return err
		}
	}
	return errBusy
}

func (x *exchange) answerGrant(id string) error {
	token, err := x.svc.newGrantToken(x.key.ref, id)
	if err != nil {
		return err
	}
	resp := wire.CreateGrantResponse{GrantId: id, GrantToken: token}
	x.out = resp.AppendJSON(x.out)
	return nil
}

// newGrant checks a CreateGrant request and makes the grant of it. Its strings
// live as long as the request.
func (x *exchange) newGrant(in *wire.CreateGrantRequest) (*keystore.Grant, error) {
	if _, err := x.grantPrincipal(in.GranteePrincipal); err != nil {
		return nil, err
	}
	if in.HasRetiringPrincipal() {
		if _, err := x.grantPrincipal(in.RetiringPrincipal); err != nil {
			return nil, err
		}
	}
	ops, err := operationsOfGrant(x.key, in.Operations)
	if err != nil {
		return nil, err
	}
	var id [32]byte
	engine.Random(id[:])
	g := &keystore.Grant{
		Ref:        x.key.ref,
		ID:         hex.EncodeToString(id[:]),
		Name:       in.Name,
		Grantee:    in.GranteePrincipal,
		Retiring:   in.RetiringPrincipal,
		Issuer:     x.account,
		Operations: ops,
		Created:    x.now.UTC(),
	}
	if c := in.Constraints; c != nil {
		if g.Equals, err = x.constraint("EncryptionContextEquals", c.EncryptionContextEquals); err != nil {
			return nil, err
		}
		if g.Subset, err = x.constraint("EncryptionContextSubset", c.EncryptionContextSubset); err != nil {
			return nil, err
		}
	}
	return g, nil
}

// grantPrincipal reads a principal as a grant can name it. Whether somebody of
// that name exists is not asked.
func (x *exchange) grantPrincipal(arn string) (policy.Principal, error) {
	p, ok := policy.ParseARN(arn)
	if !ok || p.Partition != Partition(x.region) {
		return p, wire.NewError(wire.InvalidArnException, "ARN does not refer to a valid principal: %s", arn)
	}
	return p, nil
}

// operationsOfGrant returns the operations in the order of the table, each once.
func operationsOfGrant(v *keyView, asked []string) ([]string, error) {
	if len(asked) == 0 {
		return nil, invalid("Grants must contain at least one operation.")
	}
	var ops, wrong []string
	for _, op := range grantOperations {
		if !slices.Contains(asked, op.name) {
			continue
		}
		ops = append(ops, op.name)
		if !op.on(v.spec, v.usage) {
			wrong = append(wrong, op.name)
		}
	}
	switch {
	case len(wrong) > 0:
		return nil, invalid("The grant operations [%s] are not valid for %s: its key spec is %s and its key usage is %s.", strings.Join(wrong, ", "), v.arn, v.spec, v.usage)
	case len(ops) == 1 && ops[0] == grantCreateGrant:
		return nil, invalid("Grants must not contain only the CreateGrant operation.")
	}
	return ops, nil
}

// constraint checks one kind of grant constraint and sorts its pairs; nil for
// none.
func (x *exchange) constraint(name string, pairs []wire.Pair) ([]keystore.Pair, error) {
	if pairs == nil {
		return nil, nil
	}
	if !x.key.spec.Symmetric() {
		return nil, invalid("The grant constraint %s is only valid for symmetric encryption keys: the key spec of %s is %s.", name, x.key.arn, x.key.spec)
	}
	if len(pairs) > maxConstraintPairs {
		return nil, invalid("The grant constraint %s has %d encryption context pairs; at most %d are allowed.", name, len(pairs), maxConstraintPairs)
	}
	sorted := make([]keystore.Pair, 0, len(pairs))
	for _, p := range pairs {
		if n := utf8.RuneCountInString(p.Key) + utf8.RuneCountInString(p.Value); n > maxConstraintChars {
			return nil, invalid("The grant constraint %s has an encryption context pair of %d characters; at most %d are allowed.", name, n, maxConstraintChars)
		}
		sorted = append(sorted, keystore.Pair(p))
	}
	slices.SortFunc(sorted, func(a, b keystore.Pair) int { return strings.Compare(a.Key, b.Key) })
	return sorted, nil
}

func listGrants(x *exchange, in *wire.ListGrantsRequest) error {
	after, err := x.readMarker(in.Marker)
	if err != nil {
		return err
	}
	if after != "" && !keystore.ValidGrantID(after) {
		return invalidMarker()
	}
	if in.HasGranteePrincipal() {
		if _, err := x.grantPrincipal(in.GranteePrincipal); err != nil {
			return err
		}
	}
	limit := pageSize(in.Limit, defaultGrantPage, maxGrantPage)
	var found []*keystore.Grant
	var more bool
	store, ref := x.svc.store, x.key.ref
	switch {
	case in.HasGrantId():
		if err := checkGrantID(in.GrantId); err != nil {
			return err
		}
		var g *keystore.Grant
		if g, err = store.Grant(ref, in.GrantId); errors.Is(err, keystore.ErrNotFound) {
			err = nil
		} else if err == nil && g.ID > after && (!in.HasGranteePrincipal() || g.Grantee == in.GranteePrincipal) {
			found = []*keystore.Grant{g}
		}
	case in.HasGranteePrincipal():
		found, more, err = store.ListGranteeGrants(ref, in.GranteePrincipal, after, limit)
	default:
		found, more, err = store.ListGrants(ref, after, limit)
	}
	if err != nil {
		return err
	}
	resp := wire.ListGrantsResponse{Grants: make([]wire.GrantListEntry, 0, len(found)), Truncated: wire.Some(more)}
	for _, g := range found {
		resp.Grants = append(resp.Grants, grantEntry(g, x.key.arn))
	}
	if more {
		resp.NextMarker = x.marker(found[len(found)-1].ID)
	}
	x.out = resp.AppendJSON(x.out)
	return nil
}

// grantEntry is a grant as lists show it, on the key arn.
func grantEntry(g *keystore.Grant, arn string) wire.GrantListEntry {
	e := wire.GrantListEntry{
		CreationDate:      timestamp(g.Created),
		GrantId:           g.ID,
		GranteePrincipal:  g.Grantee,
		IssuingAccount:    accountARN(g.Ref.Region, g.Issuer),
		KeyId:             arn,
		Name:              g.Name,
		Operations:        g.Operations,
		RetiringPrincipal: g.Retiring,
	}
	if g.Equals != nil || len(g.Subset) > 0 {
		e.Constraints = &wire.GrantConstraints{
			EncryptionContextEquals: wirePairs(g.Equals),
			EncryptionContextSubset: wirePairs(g.Subset),
		}
	}
	return e
}

func wirePairs(pairs []keystore.Pair) []wire.Pair {
	if pairs == nil {
		return nil
	}
	out := make([]wire.Pair, len(pairs))
	for i, p := range pairs {
		out[i] = wire.Pair(p)
	}
	return out
}

// accountARN is the principal that stands for an account.
func accountARN(region, account string) string {
	return "arn:" + Partition(region) + ":iam::" + account + ":root"
}

// listRetirableGrants lists grants on keys of any account; who may see them
// depends on the retiring principal alone.
func listRetirableGrants(x *exchange, in *wire.ListRetirableGrantsRequest) error {
	p, err := x.grantPrincipal(in.RetiringPrincipal)
	if err != nil {
		return err
	}
	if p.Account != x.account {
		return x.denied(wire.OpListRetirableGrants, in.RetiringPrincipal)
	}
	text, err := x.readMarker(in.Marker)
	if err != nil {
		return err
	}
	var after *keystore.GrantRef
	if text != "" {
		if after, err = x.readGrantRef(text); err != nil {
			return err
		}
	}
	found, last, more, err := x.svc.store.ListRetirable(x.region, in.RetiringPrincipal, after, pageSize(in.Limit, defaultGrantPage, maxGrantPage))
	if err != nil {
		return err
	}
	resp := wire.ListGrantsResponse{Grants: make([]wire.GrantListEntry, 0, len(found)), Truncated: wire.Some(more)}
	for _, g := range found {
		v, err := x.view(g.Ref)
		if errors.Is(err, keystore.ErrNotFound) {
			continue // deleted since the page was read
		} else if err != nil {
			return err
		}
		resp.Grants = append(resp.Grants, grantEntry(g, v.arn))
	}
	if more {
		resp.NextMarker = x.marker(last.Key.ID.String() + " " + last.ID)
	}
	x.out = resp.AppendJSON(x.out)
	return nil
}

// readGrantRef reads what a marker of ListRetirableGrants holds.
func (x *exchange) readGrantRef(text string) (*keystore.GrantRef, error) {
	key, id, _ := strings.Cut(text, " ")
	ref := &keystore.GrantRef{Key: keystore.Ref{Region: x.region}, ID: id}
	raw, err := hex.DecodeString(key)
	if err != nil || copy(ref.Key.ID[:], raw) != len(raw) || len(raw) != len(ref.Key.ID) || !keystore.ValidGrantID(id) {
		return nil, invalidMarker()
	}
	return ref, nil
}

// denied is the answer to a caller whom no policy allows an operation.
func (x *exchange) denied(op wire.Op, resource string) error {
	return wire.NewError(wire.AccessDeniedException,
		"User: %s is not authorized to perform: kms:%s on resource: %s because no identity-based policy allows the kms:%s action",
		x.auth.Credential.PrincipalARN, op, resource, op)
}

func checkGrantID(id string) error {
	if !keystore.ValidGrantID(id) {
		return wire.NewError(wire.InvalidGrantIdException, "Invalid grant ID %s: a grant ID is 64 hexadecimal digits.", id)
	}
	return nil
}

func grantNotFound(id string) error {
	return wire.NewError(wire.NotFoundException, "Grant ID %s not found", id)
}

func retireGrant(x *exchange, in *wire.RetireGrantRequest) error {
	v, id, err := x.grantToRetire(in)
	if err != nil {
		return err
	}
	g, err := x.svc.store.Grant(v.ref, id)
	if errors.Is(err, keystore.ErrNotFound) {
		if v.rec.Account != x.account { // and nothing more about keys of others
			return keyNotFound(v.arn)
		}
		return grantNotFound(id)
	} else if err != nil {
		return err
	}
	if !mayRetire(x.auth.Credential.PrincipalARN, v.rec.Account, g) {
		return x.denied(wire.OpRetireGrant, v.arn)
	}
	if err := x.admitKey(v); err != nil {
		return err
	}
	return x.deleteGrant(v, g)
}

// grantToRetire returns the key and the ID of the grant that a RetireGrant request
// names, by token or by both. AWS documents KeyId as a key ARN, and takes the key ID
// of a key of the caller's account as well.
func (x *exchange) grantToRetire(in *wire.RetireGrantRequest) (v *keyView, id string, err error) {
	switch {
	case in.HasGrantToken() && (in.HasKeyId() || in.HasGrantId()):
		return nil, "", invalid("Name the grant by GrantToken, or by KeyId and GrantId, not by both.")
	case in.HasGrantToken():
		at, err := x.svc.readGrantToken(x.region, in.GrantToken)
		if err != nil {
			return nil, "", err
		}
		v, err := x.view(at.Key)
		if errors.Is(err, keystore.ErrNotFound) {
			err = grantNotFound(at.ID)
		}
		return v, at.ID, err
	case !in.HasKeyId() || !in.HasGrantId():
		return nil, "", invalid("Name the grant by GrantToken, or by both KeyId and GrantId.")
	}
	if err := checkGrantID(in.GrantId); err != nil {
		return nil, "", err
	}
	v, err = x.resolve(in.KeyId, keysOnly)
	return v, in.GrantId, err
}

// mayRetire tells whether the grant itself lets a caller retire it: the retiring
// principal, the grantee if the grant says so, and the accounts of the grant and
// of its key. Identity policies to which an account leaves this are not evaluated
// yet.
func mayRetire(caller, keyAccount string, g *keystore.Grant) bool {
	region := g.Ref.Region
	switch caller {
	case "":
		return false
	case g.Retiring, accountARN(region, g.Issuer), accountARN(region, keyAccount):
		return true
	case g.Grantee:
		return slices.Contains(g.Operations, grantRetireGrant)
	}
	return false
}

func revokeGrant(x *exchange, in *wire.RevokeGrantRequest) error {
	if err := checkGrantID(in.GrantId); err != nil {
		return err
	}
	g, err := x.svc.store.Grant(x.key.ref, in.GrantId)
	if errors.Is(err, keystore.ErrNotFound) {
		return grantNotFound(in.GrantId)
	} else if err != nil {
		return err
	}
	return x.deleteGrant(x.key, g)
}

// deleteGrant removes a grant of v. Grants do not change: when somebody else was
// faster, it is gone.
func (x *exchange) deleteGrant(v *keyView, g *keystore.Grant) error {
	if x.dryRun {
		return nil
	}
	t := x.svc.store.NewTxn()
	t.DeleteGrant(g)
	err := commit(t)
	if errors.Is(err, keystore.ErrConflict) {
		return grantNotFound(g.ID)
	}
	return err
}
