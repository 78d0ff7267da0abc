package kms

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/google/go-cmp/cmp"

	"keymill/keystore"
)

const (
	userAlice = "arn:aws:iam::" + testAccount + ":user/alice"
	roleBob   = "arn:aws:iam::" + testAccount + ":role/ops/bob"
	rootARN   = "arn:aws:iam::" + testAccount + ":root"

	otherAccount = "444455556666"
	otherRoot    = "arn:aws:iam::" + otherAccount + ":root"

	noGrant = "0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef"
)

// as returns the harness as another principal sees it.
func (h *harness) as(arn string) *harness {
	h.Helper()
	account := strings.Split(arn, ":")[4]
	key := h.key
	key.ID = strings.ToUpper("AKIA" + strings.NewReplacer(":", "", "/", "", "-", "").Replace(arn))[:16] + account[:4]
	t := h.store.NewTxn()
	t.PutPrincipal(&keystore.Principal{ID: arn, Account: account, ARN: arn, Root: strings.HasSuffix(arn, ":root")}, keystore.AnyRevision)
	t.PutAccessKey(&keystore.AccessKey{ID: key.ID, Account: account, PrincipalID: arn, Secret: []byte(key.Secret), Active: true, Created: h.now}, keystore.AnyRevision)
	if _, err := t.Commit(context.Background()); err != nil {
		h.Fatal(err)
	}
	h.svc.credentials.Invalidate(key.ID)
	other := *h
	other.key = key
	return &other
}

func grantArgs(key string, more args) args {
	in := args{"KeyId": key, "GranteePrincipal": userAlice, "Operations": []string{"Encrypt", "Decrypt"}}
	maps.Copy(in, more)
	return in
}

// grant creates a grant and returns its ID and token.
func (h *harness) grant(key string, more args) (id, token string) {
	h.Helper()
	a := h.must("CreateGrant", grantArgs(key, more))
	id, token = a.str("GrantId"), a.str("GrantToken")
	if !keystore.ValidGrantID(id) || len(token) < 64 || len(a.fields) != 2 {
		h.Fatalf("CreateGrant answers %s", a)
	}
	return id, token
}

// grants lists all grants, page by page.
func (h *harness) grants(op string, in args) (all []map[string]any) {
	h.Helper()
	in = maps.Clone(in)
	for {
		a := h.must(op, in)
		for _, g := range a.fields["Grants"].([]any) {
			all = append(all, g.(map[string]any))
		}
		next, marked := a.fields["NextMarker"]
		if a.fields["Truncated"] != marked {
			h.Fatalf("%s: %v", op, a)
		}
		if !marked {
			return all
		}
		in["Marker"] = next
	}
}

func grantIDs(grants []map[string]any) (ids []string) {
	for _, g := range grants {
		ids = append(ids, g["GrantId"].(string))
	}
	slices.Sort(ids)
	return ids
}

// force puts a key into a state, whatever leads there.
func (h *harness) force(id string, state keyState) {
	h.Helper()
	k, err := h.store.Key(h.ref(id))
	if err != nil {
		h.Fatal(err)
	}
	next := *k
	next.State = state.String()
	t := h.store.NewTxn()
	t.PutKey(&next, k.Revision)
	if _, err := t.Commit(context.Background()); err != nil {
		h.Fatal(err)
	}
	h.svc.dropView(h.ref(id))
}

func TestGrant(t *testing.T) {
	h := newHarness(t)
	key, arn := h.newKey(nil)
	plain, _ := h.grant(key, nil)
	full, _ := h.grant(arn, args{
		"Name": "app:1/x_y-z", "RetiringPrincipal": roleBob,
		"Operations": []string{"RetireGrant", "Decrypt", "CreateGrant", "Decrypt"},
		"Constraints": args{
			"EncryptionContextEquals": args{"b": "2", "a": ""},
			"EncryptionContextSubset": args{"ü": "ü"},
		},
	})
	want := map[string]map[string]any{
		plain: {
			"GrantId": plain, "KeyId": arn, "Name": "", "CreationDate": 1777863721.987,
			"GranteePrincipal": userAlice, "IssuingAccount": rootARN, "Operations": []any{"Decrypt", "Encrypt"},
		},
		full: {
			"GrantId": full, "KeyId": arn, "Name": "app:1/x_y-z", "CreationDate": 1777863721.987,
			"GranteePrincipal": userAlice, "RetiringPrincipal": roleBob, "IssuingAccount": rootARN,
			"Operations": []any{"Decrypt", "CreateGrant", "RetireGrant"},
			"Constraints": map[string]any{
				"EncryptionContextEquals": map[string]any{"a": "", "b": "2"},
				"EncryptionContextSubset": map[string]any{"ü": "ü"},
			},
		},
	}
	check := func() {
		t.Helper()
		got := make(map[string]map[string]any)
		for _, g := range h.grants("ListGrants", args{"KeyId": arn}) {
			got[g["GrantId"].(string)] = g
		}
		if d := cmp.Diff(want, got); d != "" {
			t.Errorf("ListGrants (-want +got):\n%s", d)
		}
	}
	check()
	retirable := h.grants("ListRetirableGrants", args{"RetiringPrincipal": roleBob})
	if d := cmp.Diff([]map[string]any{want[full]}, retirable); d != "" {
		t.Errorf("ListRetirableGrants (-want +got):\n%s", d)
	}
	if got := h.grants("ListRetirableGrants", args{"RetiringPrincipal": userAlice}); got != nil {
		t.Errorf("retirable by nobody: %v", got)
	}
	h.svc.tokens.key.Store(nil)
	if a := h.must("RevokeGrant", args{"KeyId": key, "GrantId": full}); a.body != "" {
		t.Errorf("RevokeGrant answers %q", a.body)
	}
	delete(want, full)
	check()
	if a := h.must("RetireGrant", args{"KeyId": arn, "GrantId": plain}); a.body != "" {
		t.Errorf("RetireGrant answers %q", a.body)
	}
	delete(want, plain)
	check()
	if n, err := h.store.CountGrants(h.ref(key)); n != 0 || err != nil {
		t.Errorf("%d grants counted, %v", n, err)
	}
}

// TestGrantEmptyConstraints: an empty exact context is a constraint, an empty
// subset is none.
func TestGrantEmptyConstraints(t *testing.T) {
	h := newHarness(t)
	key, _ := h.newKey(nil)
	for _, c := range []struct {
		in   args
		want any
	}{
		{args{}, nil},
		{args{"EncryptionContextSubset": args{}}, nil},
		{args{"EncryptionContextEquals": args{}}, map[string]any{"EncryptionContextEquals": map[string]any{}}},
	} {
		id, _ := h.grant(key, args{"Constraints": c.in})
		got := h.grants("ListGrants", args{"KeyId": key, "GrantId": id})[0]["Constraints"]
		if d := cmp.Diff(c.want, got); d != "" {
			t.Errorf("constraints %v (-want +got):\n%s", c.in, d)
		}
	}
}

func TestCreateGrantRefusals(t *testing.T) {
	h := newHarness(t)
	key, arn := h.newKey(nil)
	mac, macARN := h.newKey(args{"KeySpec": "HMAC_256", "KeyUsage": "GENERATE_VERIFY_MAC"})
	h.must("CreateAlias", args{"AliasName": "alias/a", "TargetKeyId": key})
	nine := args{}
	for i := range 9 {
		nine[fmt.Sprint(i)] = ""
	}
	invalidARN := func(s string) string { return "ARN does not refer to a valid principal: " + s }
	foreign := "arn:aws-cn:iam::" + testAccount + ":user/alice"
	for _, c := range []struct {
		key        string
		in         args
		code, text string
	}{
		{"alias/a", nil, "InvalidArnException", "Key Aliases are not supported for this operation."},
		{strings.Replace(arn, "key/"+key, "alias/a", 1), nil, "InvalidArnException", "Key Aliases are not supported for this operation."},
		{"1234abcd-12ab-34cd-56ef-1234567890ab", nil, "NotFoundException", "Key 'arn:aws:kms:eu-west-1:111122223333:key/1234abcd-12ab-34cd-56ef-1234567890ab' does not exist"},
		{"nonsense", nil, "NotFoundException", "Invalid keyId 'nonsense'"},
		{key, args{"GranteePrincipal": testAccount}, "InvalidArnException", invalidARN(testAccount)},
		{key, args{"GranteePrincipal": "alice"}, "InvalidArnException", invalidARN("alice")},
		{key, args{"GranteePrincipal": "s3.amazonaws.com"}, "InvalidArnException", invalidARN("s3.amazonaws.com")},
		{key, args{"GranteePrincipal": "arn:aws:iam::" + testAccount + ":group/g"}, "InvalidArnException", invalidARN("arn:aws:iam::" + testAccount + ":group/g")},
		{key, args{"GranteePrincipal": foreign}, "InvalidArnException", invalidARN(foreign)},
		{key, args{"RetiringPrincipal": "arn:aws:iam::1:user/x"}, "InvalidArnException", invalidARN("arn:aws:iam::1:user/x")},
		{key, args{"GranteePrincipal": ""}, "ValidationException", "2 validation errors detected: Value '' at 'granteePrincipal' failed to satisfy constraint: Member must have length greater than or equal to 1; Value '' at 'granteePrincipal' failed to satisfy constraint: Member must satisfy regular expression pattern: ^[\\w+=,.@:/-]+$"},
		{key, args{"Name": "a b"}, "ValidationException", "1 validation error detected: Value 'a b' at 'name' failed to satisfy constraint: Member must satisfy regular expression pattern: ^[a-zA-Z0-9:/_-]+$"},
		{key, args{"Operations": nil}, "ValidationException", "1 validation error detected: Value null at 'operations' failed to satisfy constraint: Member must not be null"},
		{key, args{"Operations": []string{}}, "ValidationException", "Grants must contain at least one operation."},
		{key, args{"GranteePrincipal": nil, "GranteeServicePrincipal": "s3.amazonaws.com"}, "UnsupportedOperationException", "GranteeServicePrincipal is not supported: leave it out of the request."},
		{key, args{"RetiringServicePrincipal": "s3.amazonaws.com"}, "UnsupportedOperationException", "RetiringServicePrincipal is not supported: leave it out of the request."},
		{key, args{"Constraints": args{"SourceArn": "arn:aws:s3:::b"}}, "UnsupportedOperationException", "SourceArn is not supported: leave it out of the request."},
		{key, args{"Operations": []string{"CreateGrant"}}, "ValidationException", "Grants must not contain only the CreateGrant operation."},
		{key, args{"Operations": []string{"Sign", "DescribeKey", "GenerateMac", "GetPublicKey"}}, "ValidationException",
			"The grant operations [Sign, GetPublicKey, GenerateMac] are not valid for " + arn + ": its key spec is SYMMETRIC_DEFAULT and its key usage is ENCRYPT_DECRYPT."},
		{key, args{"Constraints": args{"EncryptionContextSubset": nine}}, "ValidationException", "The grant constraint EncryptionContextSubset has 9 encryption context pairs; at most 8 are allowed."},
		{key, args{"Constraints": args{"EncryptionContextEquals": args{"a": strings.Repeat("ü", 384)}}}, "ValidationException", "The grant constraint EncryptionContextEquals has an encryption context pair of 385 characters; at most 384 are allowed."},
		{mac, args{"Operations": []string{"GenerateMac"}, "Constraints": args{"EncryptionContextSubset": args{"a": "b"}}}, "ValidationException",
			"The grant constraint EncryptionContextSubset is only valid for symmetric encryption keys: the key spec of " + macARN + " is HMAC_256."},
		{key, args{"GrantTokens": []string{"nonsense"}}, "InvalidGrantTokenException", "Invalid grant token: it is malformed, or not one of a grant in eu-west-1."},
		{key, args{"DryRun": true}, "DryRunOperationException", "The request would have succeeded, but the DryRun option is set."},
		{key, args{"DryRun": true, "Operations": []string{"CreateGrant"}}, "ValidationException", "Grants must not contain only the CreateGrant operation."},
	} {
		h.refused("CreateGrant", grantArgs(c.key, c.in), c.code, c.text)
	}
	h.refused("ListGrants", args{"KeyId": key, "GranteeServicePrincipal": "s3.amazonaws.com"}, "UnsupportedOperationException", "GranteeServicePrincipal is not supported: leave it out of the request.")
	h.grant(key, args{"Constraints": args{"EncryptionContextEquals": args{"a": strings.Repeat("ü", 383)}, "SourceArn": nil}})
	for _, principal := range []string{
		rootARN, otherRoot, "arn:aws:iam::" + otherAccount + ":role/r", "arn:aws:sts::" + testAccount + ":assumed-role/r/s", "arn:aws:sts::" + testAccount + ":federated-user/f",
	} {
		h.grant(key, args{"GranteePrincipal": principal, "RetiringPrincipal": principal})
	}
	if got := h.grants("ListGrants", args{"KeyId": key}); len(got) != 6 {
		t.Errorf("refused CreateGrant left grants: %d", len(got))
	}
}

// TestGrantOperations compares which operations a grant takes with the table of
// the Developer Guide, for each kind of key.
func TestGrantOperations(t *testing.T) {
	h := newHarness(t)
	always := []string{"DescribeKey", "CreateGrant", "RetireGrant"}
	encryption := []string{"Encrypt", "Decrypt", "ReEncryptFrom", "ReEncryptTo"}
	dataKeys := []string{"GenerateDataKey", "GenerateDataKeyWithoutPlaintext", "GenerateDataKeyPair", "GenerateDataKeyPairWithoutPlaintext"}
	for _, c := range []struct {
		spec, usage string
		valid       []string
	}{
		{"SYMMETRIC_DEFAULT", "ENCRYPT_DECRYPT", slices.Concat(encryption, dataKeys)},
		{"RSA_2048", "ENCRYPT_DECRYPT", append(encryption, "GetPublicKey")},
		{"RSA_2048", "SIGN_VERIFY", []string{"Sign", "Verify", "GetPublicKey"}},
		{"ECC_NIST_P256", "SIGN_VERIFY", []string{"Sign", "Verify", "GetPublicKey"}},
		{"ML_DSA_44", "SIGN_VERIFY", []string{"Sign", "Verify", "GetPublicKey"}},
		{"ECC_NIST_P256", "KEY_AGREEMENT", []string{"DeriveSharedSecret", "GetPublicKey"}},
		{"HMAC_512", "GENERATE_VERIFY_MAC", []string{"GenerateMac", "VerifyMac"}},
	} {
		key, _ := h.newKey(args{"KeySpec": c.spec, "KeyUsage": c.usage})
		for _, op := range grantOperations {
			want := ""
			if !slices.Contains(c.valid, op.name) && !slices.Contains(always, op.name) {
				want = "ValidationException"
			}
			ops := []string{op.name, "DescribeKey"}
			if a := h.call("CreateGrant", grantArgs(key, args{"Operations": ops})); a.code() != want {
				t.Errorf("grant of %s on a key for %s with %s: %s", op.name, c.usage, c.spec, a)
			}
		}
		if got := h.grants("ListGrants", args{"KeyId": key}); len(got) != len(c.valid)+len(always) {
			t.Errorf("%d grants on a key for %s with %s", len(got), c.usage, c.spec)
		}
	}
}

// TestGrantStates tries every operation on grants in every key state.
func TestGrantStates(t *testing.T) {
	h := newHarness(t)
	key, arn := h.newKey(nil)
	texts := map[keyState][2]string{
		stateDisabled:               {"DisabledException", arn + " is disabled."},
		statePendingDeletion:        {"KMSInvalidStateException", arn + " is pending deletion."},
		statePendingReplicaDeletion: {"KMSInvalidStateException", arn + " is pending replica deletion."},
		statePendingImport:          {"KMSInvalidStateException", arn + " is pending import."},
		stateCreating:               {"KMSInvalidStateException", arn + " is creating."},
	}
	for state := range stateCount {
		h.force(key, stateEnabled)
		revoke, _ := h.grant(key, nil)
		retire, token := h.grant(key, args{"RetiringPrincipal": roleBob})
		retire2, _ := h.grant(key, nil)
		h.force(key, state)
		if want, refused := texts[state]; refused {
			h.refused("CreateGrant", grantArgs(key, nil), want[0], want[1])
			h.refused("CreateGrant", grantArgs(key, args{"DryRun": true}), want[0], want[1])
		} else {
			id, _ := h.grant(key, nil)
			h.must("RevokeGrant", args{"KeyId": key, "GrantId": id})
		}
		if got := h.grants("ListGrants", args{"KeyId": key}); len(got) != 3 {
			t.Errorf("%s: %d grants", state, len(got))
		}
		if got := h.grants("ListRetirableGrants", args{"RetiringPrincipal": roleBob}); len(got) != 1 || got[0]["GrantId"] != retire {
			t.Errorf("%s: retirable are %v", state, got)
		}
		h.must("RevokeGrant", args{"KeyId": arn, "GrantId": revoke})
		h.must("RetireGrant", args{"GrantToken": token})
		h.must("RetireGrant", args{"KeyId": arn, "GrantId": retire2})
		if got := h.grants("ListGrants", args{"KeyId": key}); got != nil {
			t.Errorf("%s: left are %v", state, got)
		}
	}
}

// TestGrantNames: the same name with the same parameters is the same grant.
func TestGrantNames(t *testing.T) {
	h := newHarness(t)
	key, _ := h.newKey(nil)
	key2, _ := h.newKey(nil)
	in := args{"Name": "n", "RetiringPrincipal": roleBob, "Constraints": args{"EncryptionContextSubset": args{"a": "1", "b": "2"}}}
	with := func(more args) args { m := maps.Clone(in); maps.Copy(m, more); return m }
	id, token := h.grant(key, in)
	again, token2 := h.grant(key, with(args{"Operations": []string{"Decrypt", "Encrypt", "Decrypt"}}))
	if again != id || token2 == token {
		t.Errorf("the same request: grants %s and %s, tokens %s and %s", id, again, token, token2)
	}
	h.refused("CreateGrant", grantArgs(key, with(args{"DryRun": true})), "DryRunOperationException", "The request would have succeeded, but the DryRun option is set.")
	seen := []string{id}
	for _, more := range []args{
		{"Name": "N"},
		{"Operations": []string{"Decrypt"}},
		{"GranteePrincipal": roleBob},
		{"RetiringPrincipal": userAlice},
		{"Constraints": args{"EncryptionContextSubset": args{"a": "1"}}},
		{"Constraints": args{"EncryptionContextEquals": args{"a": "1", "b": "2"}}},
	} {
		other, _ := h.grant(key, with(more))
		if slices.Contains(seen, other) {
			t.Errorf("%v finds a grant that is not the same", more)
		}
		seen = append(seen, other)
	}
	if other, _ := h.grant(key2, in); other == id {
		t.Error("a grant of another key is found")
	}
	a, _ := h.grant(key2, nil)
	if b, _ := h.grant(key2, nil); a == b {
		t.Error("grants without a name are found")
	}
	// All tokens of the grant work, and it can be made anew when it is gone.
	h.must("Encrypt", args{"KeyId": key, "Plaintext": b64("x"), "GrantTokens": []string{token, token2}})
	h.must("RetireGrant", args{"GrantToken": token2})
	h.refused("RetireGrant", args{"GrantToken": token}, "NotFoundException", "Grant ID "+id+" not found")
	h.refused("Encrypt", args{"KeyId": key, "Plaintext": b64("x"), "GrantTokens": []string{token}}, "InvalidGrantTokenException", "Invalid grant token: it is malformed, or not one of a grant in eu-west-1.")
	if fresh, _ := h.grant(key, in); fresh == id {
		t.Error("a retired grant came back")
	}
	h.refused("RetireGrant", args{"GrantToken": token}, "NotFoundException", "Grant ID "+id+" not found")
}

// TestGrantNameRace: many who create the same named grant at once get one.
func TestGrantNameRace(t *testing.T) {
	h := newHarness(t)
	key, _ := h.newKey(nil)
	ids := make([]string, 64)
	var wg sync.WaitGroup
	for i := range ids {
		wg.Go(func() {
			a := h.call("CreateGrant", grantArgs(key, args{"Name": "one"}))
			if a.status != 200 {
				t.Error(a)
			}
			ids[i] = a.str("GrantId")
		})
	}
	wg.Wait()
	for _, id := range ids {
		if id != ids[0] {
			t.Errorf("grants %s and %s", ids[0], id)
		}
	}
	if got := grantIDs(h.grants("ListGrants", args{"KeyId": key})); !slices.Equal(got, ids[:1]) {
		t.Errorf("listed: %v", got)
	}
	// And of many who revoke it, one does.
	var revoked atomic.Int32
	for range 16 {
		wg.Go(func() {
			a := h.call("RevokeGrant", args{"KeyId": key, "GrantId": ids[0]})
			switch {
			case a.status == 200:
				revoked.Add(1)
			case a.str("message") != "Grant ID "+ids[0]+" not found":
				t.Error(a)
			}
		})
	}
	wg.Wait()
	if n := revoked.Load(); n != 1 {
		t.Errorf("%d revoked one grant", n)
	}
	if n, err := h.store.CountGrants(h.ref(key)); n != 0 || err != nil {
		t.Errorf("%d grants counted, %v", n, err)
	}
}

func TestGrantLimit(t *testing.T) {
	h := newHarnessWith(t, profile(t, "base: none\nresources: {grants-per-key: 3}\n"))
	key, arn := h.newKey(nil)
	h.grant(key, args{"Name": "n"})
	h.grant(key, nil)
	id, _ := h.grant(key, nil)
	full := "The key " + arn + " has 3 grants, which is the limit."
	h.refused("CreateGrant", grantArgs(key, nil), "LimitExceededException", full)
	h.refused("CreateGrant", grantArgs(key, args{"DryRun": true}), "LimitExceededException", full)
	h.grant(key, args{"Name": "n"}) // is there already
	h.must("RevokeGrant", args{"KeyId": key, "GrantId": id})
	h.grant(key, nil)
	h.refused("CreateGrant", grantArgs(key, args{"Name": "m"}), "LimitExceededException", full)
}

// TestListGrants lists 2,500 grants to the end in every way.
func TestListGrants(t *testing.T) {
	h := newHarness(t)
	key, arn := h.newKey(nil)
	key2, _ := h.newKey(args{"MultiRegion": true})
	const n = 2500
	h.fillGrants(h.ref(key), n)
	h.fillGrants(h.ref(key2), 30)
	all := h.grants("ListGrants", args{"KeyId": key, "Limit": 1000}) // a page has at most 100
	if ids := grantIDs(all); len(all) != n || len(slices.Compact(ids)) != n {
		t.Errorf("%d grants listed", len(all))
	}
	if got := h.grants("ListGrants", args{"KeyId": arn}); !cmp.Equal(got, all) {
		t.Error("pages of 50 list something else")
	}
	a := h.must("ListGrants", args{"KeyId": key})
	if got := a.fields["Grants"].([]any); len(got) != 50 {
		t.Errorf("a page has %d grants", len(got))
	}
	if got := h.must("ListGrants", args{"KeyId": key, "Limit": 1000}).fields["Grants"].([]any); len(got) != 100 {
		t.Errorf("the largest page has %d grants", len(got))
	}
	var bobs []map[string]any
	for _, g := range all {
		if g["GranteePrincipal"] == roleBob {
			bobs = append(bobs, g)
		}
	}
	if len(bobs) != n/10 {
		t.Errorf("%d grants of a tenth of the grantees", len(bobs))
	}
	if got := h.grants("ListGrants", args{"KeyId": key, "GranteePrincipal": roleBob, "Limit": 7}); !cmp.Equal(got, bobs) {
		t.Errorf("%d grants of one grantee, not %d", len(got), len(bobs))
	}
	if got := h.grants("ListRetirableGrants", args{"RetiringPrincipal": roleBob, "Limit": 3}); len(got) != n/100+1 {
		t.Errorf("%d retirable grants", len(got))
	} else {
		keys := make(map[string]int)
		for _, g := range got {
			keys[g["KeyId"].(string)]++
		}
		if keys[arn] != n/100 || len(keys) != 2 {
			t.Errorf("retirable grants by key: %v", keys)
		}
	}
	one := bobs[3]
	for grantee, want := range map[any]int{nil: 1, roleBob: 1, userAlice: 0} {
		if got := h.grants("ListGrants", args{"KeyId": key, "GrantId": one["GrantId"], "GranteePrincipal": grantee}); len(got) != want {
			t.Errorf("the grant of %v: %v", grantee, got)
		}
	}
	if got := h.grants("ListGrants", args{"KeyId": key, "GrantId": noGrant}); got != nil {
		t.Errorf("no grant: %v", got)
	}
	marker := "The marker is not one that this operation returned as NextMarker."
	own := a.fields["NextMarker"]
	retirable := h.must("ListRetirableGrants", args{"RetiringPrincipal": roleBob, "Limit": 1}).fields["NextMarker"]
	keys := h.must("ListKeys", args{"Limit": 1}).fields["NextMarker"]
	for _, bad := range []any{"x", retirable, keys} {
		h.refused("ListGrants", args{"KeyId": key, "Marker": bad}, "InvalidMarkerException", marker)
	}
	for _, bad := range []any{"x", own, keys} {
		h.refused("ListRetirableGrants", args{"RetiringPrincipal": roleBob, "Marker": bad}, "InvalidMarkerException", marker)
	}
	for _, c := range []struct {
		op         string
		in         args
		code, text string
	}{
		{"ListGrants", args{"KeyId": key, "GrantId": "x"}, "InvalidGrantIdException", "Invalid grant ID x: a grant ID is 64 hexadecimal digits."},
		{"ListGrants", args{"KeyId": key, "GrantId": ""}, "ValidationException", "1 validation error detected: Value '' at 'grantId' failed to satisfy constraint: Member must have length greater than or equal to 1"},
		{"ListGrants", args{"KeyId": key, "GranteePrincipal": "bob"}, "InvalidArnException", "ARN does not refer to a valid principal: bob"},
		{"ListGrants", args{"KeyId": key, "Limit": 0}, "ValidationException", "1 validation error detected: Value '0' at 'limit' failed to satisfy constraint: Member must have value greater than or equal to 1"},
		{"ListGrants", args{"KeyId": "alias/a"}, "InvalidArnException", "Key Aliases are not supported for this operation."},
		{"ListGrants", args{"KeyId": "nonsense"}, "NotFoundException", "Invalid keyId 'nonsense'"},
		{"ListRetirableGrants", args{}, "ValidationException", "1 validation error detected: Value null at 'retiringPrincipal' failed to satisfy constraint: Member must not be null"},
		{"ListRetirableGrants", args{"RetiringPrincipal": "bob"}, "InvalidArnException", "ARN does not refer to a valid principal: bob"},
		{"ListRetirableGrants", args{"RetiringPrincipal": otherRoot}, "AccessDeniedException",
			"User: " + rootARN + " is not authorized to perform: kms:ListRetirableGrants on resource: " + otherRoot + " because no identity-based policy allows the kms:ListRetirableGrants action"},
	} {
		h.refused(c.op, c.in, c.code, c.text)
	}
}

// fillGrants makes n grants of a key in the store: a tenth of them to bob, a
// hundredth retirable by him.
func (h *harness) fillGrants(ref keystore.Ref, n int) {
	h.Helper()
	for from := 0; from < n; from += 25 {
		t := h.store.NewTxn()
		for i := from; i < min(n, from+25); i++ {
			t.PutGrant(numberedGrant(ref, i), 0)
		}
		if _, err := t.Commit(context.Background()); err != nil {
			h.Fatal(err)
		}
	}
}

func numberedGrant(ref keystore.Ref, i int) *keystore.Grant {
	g := &keystore.Grant{
		Ref: ref, ID: fmt.Sprintf("%08x%056x", uint32(i)*0x9e3779b1, i), Issuer: testAccount,
		Grantee: fmt.Sprintf("arn:aws:iam::%s:user/u%d", testAccount, i), Operations: []string{"Decrypt"},
	}
	if i%10 == 0 {
		g.Grantee = roleBob
	}
	if i%100 == 0 {
		g.Retiring = roleBob
	}
	return g
}

// TestRetireGrant tries who may retire a grant, and how it is named.
func TestRetireGrant(t *testing.T) {
	h := newHarness(t)
	key, arn := h.newKey(nil)
	denied := func(who string) string {
		return "User: " + who + " is not authorized to perform: kms:RetireGrant on resource: " + arn + " because no identity-based policy allows the kms:RetireGrant action"
	}
	foreign := h.as(otherRoot)
	carol := "arn:aws:iam::" + otherAccount + ":user/carol"
	for _, c := range []struct {
		who string
		in  args
		may bool
	}{
		{rootARN, nil, true},
		{userAlice, nil, false},
		{userAlice, args{"Operations": []string{"RetireGrant", "Decrypt"}}, true},
		{roleBob, args{"Operations": []string{"RetireGrant", "Decrypt"}}, false},
		{roleBob, args{"RetiringPrincipal": roleBob}, true},
		{carol, args{"RetiringPrincipal": carol}, true},
		{carol, args{"RetiringPrincipal": otherRoot}, false},
		{otherRoot, args{"RetiringPrincipal": otherRoot}, true},
		{otherRoot, args{"RetiringPrincipal": carol}, false},
	} {
		who := h.as(c.who)
		if c.who == rootARN {
			who = h
		}
		for _, byToken := range []bool{false, true} {
			id, token := h.grant(key, c.in)
			in := args{"KeyId": arn, "GrantId": id}
			if byToken {
				in = args{"GrantToken": token}
			}
			dry := maps.Clone(in)
			dry["DryRun"] = true
			if c.may {
				who.refused("RetireGrant", dry, "DryRunOperationException", "The request would have succeeded, but the DryRun option is set.")
				who.must("RetireGrant", in)
				continue
			}
			who.refused("RetireGrant", dry, "AccessDeniedException", denied(c.who))
			who.refused("RetireGrant", in, "AccessDeniedException", denied(c.who))
			h.must("RevokeGrant", args{"KeyId": key, "GrantId": id})
		}
	}
	if got := h.grants("ListGrants", args{"KeyId": key}); got != nil {
		t.Errorf("left: %v", got)
	}

	id, token := h.grant(key, nil)
	invalidToken := "Invalid grant token: it is malformed, or not one of a grant in eu-west-1."
	for _, c := range []struct {
		in         args
		code, text string
	}{
		{args{}, "ValidationException", "Name the grant by GrantToken, or by both KeyId and GrantId."},
		{args{"KeyId": arn}, "ValidationException", "Name the grant by GrantToken, or by both KeyId and GrantId."},
		{args{"GrantId": id}, "ValidationException", "Name the grant by GrantToken, or by both KeyId and GrantId."},
		{args{"GrantToken": token, "KeyId": arn, "GrantId": id}, "ValidationException", "Name the grant by GrantToken, or by KeyId and GrantId, not by both."},
		{args{"KeyId": key, "GrantId": id, "DryRun": true}, "DryRunOperationException", "The request would have succeeded, but the DryRun option is set."},
		{args{"KeyId": "nonsense", "GrantId": id}, "NotFoundException", "Invalid keyId 'nonsense'"},
		{args{"KeyId": "alias/a", "GrantId": id}, "InvalidArnException", "Key Aliases are not supported for this operation."},
		{args{"KeyId": strings.Replace(arn, "key/"+key, "alias/a", 1), "GrantId": id}, "InvalidArnException", "Key Aliases are not supported for this operation."},
		{args{"KeyId": strings.Replace(arn, testRegion, "us-west-2", 1), "GrantId": id}, "NotFoundException", "Invalid arn us-west-2"},
		{args{"KeyId": arn, "GrantId": "x"}, "InvalidGrantIdException", "Invalid grant ID x: a grant ID is 64 hexadecimal digits."},
		{args{"KeyId": arn, "GrantId": strings.ToUpper(noGrant)}, "InvalidGrantIdException", "Invalid grant ID " + strings.ToUpper(noGrant) + ": a grant ID is 64 hexadecimal digits."},
		{args{"KeyId": arn, "GrantId": noGrant}, "NotFoundException", "Grant ID " + noGrant + " not found"},
		{args{"GrantToken": "x"}, "InvalidGrantTokenException", invalidToken},
		{args{"GrantToken": "B" + token[1:]}, "InvalidGrantTokenException", invalidToken},
		{args{"GrantToken": token[:60] + "A" + token[61:]}, "InvalidGrantTokenException", invalidToken},
	} {
		if c.in["GrantToken"] == token[:60]+"A"+token[61:] && token[60] == 'A' {
			continue
		}
		h.refused("RetireGrant", c.in, c.code, c.text)
	}
	// Others learn nothing of keys and grants that do not name them.
	foreign.refused("RetireGrant", args{"KeyId": arn, "GrantId": noGrant}, "NotFoundException", "Key '"+arn+"' does not exist")
	foreign.refused("RevokeGrant", args{"KeyId": arn, "GrantId": id}, "NotFoundException", "Key '"+arn+"' does not exist")
	foreign.refused("ListGrants", args{"KeyId": arn}, "NotFoundException", "Key '"+arn+"' does not exist")
	foreign.refused("CreateGrant", grantArgs(arn, nil), "NotFoundException", "Key '"+arn+"' does not exist")

	for _, c := range []struct {
		in         args
		code, text string
	}{
		{args{"KeyId": key, "GrantId": "x"}, "InvalidGrantIdException", "Invalid grant ID x: a grant ID is 64 hexadecimal digits."},
		{args{"KeyId": key, "GrantId": noGrant}, "NotFoundException", "Grant ID " + noGrant + " not found"},
		{args{"KeyId": "alias/a", "GrantId": id}, "InvalidArnException", "Key Aliases are not supported for this operation."},
		{args{"KeyId": "nonsense", "GrantId": id}, "NotFoundException", "Invalid keyId 'nonsense'"},
		{args{"KeyId": key}, "ValidationException", "1 validation error detected: Value null at 'grantId' failed to satisfy constraint: Member must not be null"},
		{args{"KeyId": key, "GrantId": id, "DryRun": true}, "DryRunOperationException", "The request would have succeeded, but the DryRun option is set."},
	} {
		h.refused("RevokeGrant", c.in, c.code, c.text)
	}
	h.must("RevokeGrant", args{"KeyId": key, "GrantId": id})
	h.refused("RevokeGrant", args{"KeyId": key, "GrantId": id}, "NotFoundException", "Grant ID "+id+" not found")
}

// TestGrantTokens sends tokens with every operation that takes them.
func TestGrantTokens(t *testing.T) {
	h := newHarness(t)
	key, arn := h.newKey(nil)
	_, token := h.grant(key, nil)
	_, token2 := h.grant(key, nil)
	rsa, _ := h.newKey(args{"KeySpec": "RSA_2048", "KeyUsage": "SIGN_VERIFY"})
	mac, _ := h.newKey(args{"KeySpec": "HMAC_256", "KeyUsage": "GENERATE_VERIFY_MAC"})
	blob := h.must("Encrypt", args{"KeyId": key, "Plaintext": b64("x")}).str("CiphertextBlob")
	ten := slices.Concat(slices.Repeat([]string{token}, 9), []string{token2})
	for _, c := range []struct {
		op string
		in args
	}{
		{"Encrypt", args{"KeyId": key, "Plaintext": b64("x")}},
		{"Decrypt", args{"CiphertextBlob": blob}},
		{"ReEncrypt", args{"CiphertextBlob": blob, "DestinationKeyId": arn}},
		{"GenerateDataKey", args{"KeyId": key, "KeySpec": "AES_256"}},
		{"GenerateDataKeyWithoutPlaintext", args{"KeyId": key, "KeySpec": "AES_256"}},
		{"GenerateDataKeyPair", args{"KeyId": key, "KeyPairSpec": "ECC_NIST_P256"}},
		{"GenerateDataKeyPairWithoutPlaintext", args{"KeyId": key, "KeyPairSpec": "ECC_NIST_P256"}},
		{"DescribeKey", args{"KeyId": key}},
		{"GetPublicKey", args{"KeyId": rsa}},
		{"Sign", args{"KeyId": rsa, "Message": b64("x"), "SigningAlgorithm": "RSASSA_PSS_SHA_256"}},
		{"GenerateMac", args{"KeyId": mac, "Message": b64("x"), "MacAlgorithm": "HMAC_SHA_256"}},
		{"CreateGrant", grantArgs(key, nil)},
	} {
		in := maps.Clone(c.in)
		in["GrantTokens"] = ten
		h.must(c.op, in)
		in["GrantTokens"] = []string{token, "nonsense"}
		h.refused(c.op, in, "InvalidGrantTokenException", "Invalid grant token: it is malformed, or not one of a grant in eu-west-1.")
		in["GrantTokens"] = append(ten, token)
		if a := h.call(c.op, in); a.code() != "ValidationException" || !strings.Contains(a.str("message"), "at 'grantTokens' failed to satisfy constraint: Member must have length less than or equal to 10") {
			t.Errorf("%s with eleven tokens: %s", c.op, a)
		}
	}
	// A token is one of a region, and of a store.
	elsewhere := *h
	elsewhere.key.Region = "us-east-1"
	other, _ := elsewhere.newKey(nil)
	elsewhere.refused("DescribeKey", args{"KeyId": other, "GrantTokens": []string{token}}, "InvalidGrantTokenException", "Invalid grant token: it is malformed, or not one of a grant in us-east-1.")
	_, foreign := newHarness(t).tokenOfNewKey()
	h.refused("DescribeKey", args{"KeyId": key, "GrantTokens": []string{foreign}}, "InvalidGrantTokenException", "Invalid grant token: it is malformed, or not one of a grant in eu-west-1.")
}

func (h *harness) tokenOfNewKey() (key, token string) {
	h.Helper()
	key, _ = h.newKey(nil)
	_, token = h.grant(key, nil)
	return key, token
}

// TestGrantTokenFirst: before there was any grant, every token is refused, and
// nothing is written for it.
func TestGrantTokenFirst(t *testing.T) {
	h := newHarness(t)
	key, _ := h.newKey(nil)
	rev := h.store.Revision()
	h.refused("DescribeKey", args{"KeyId": key, "GrantTokens": []string{strings.Repeat("A", 130)}}, "InvalidGrantTokenException", "Invalid grant token: it is malformed, or not one of a grant in eu-west-1.")
	if got := h.store.Revision(); got != rev {
		t.Errorf("revision %d, was %d", got, rev)
	}
	if _, _, err := h.store.Get(grantTokenKeyName); !errors.Is(err, keystore.ErrNotFound) {
		t.Error(err)
	}
}

// TestGrantTokensAfterRestart: grants and tokens outlive the service.
func TestGrantTokensAfterRestart(t *testing.T) {
	h := newHarness(t)
	key, token := h.tokenOfNewKey()
	svc, err := New(Config{Store: h.store, Account: testAccount, Region: testRegion, Clock: h.svc.clock})
	if err != nil {
		t.Fatal(err)
	}
	defer svc.Close()
	for _, s := range []*Service{h.svc, svc} {
		ref, err := s.readGrantToken(testRegion, token)
		if err != nil || ref.Key != h.ref(key) {
			t.Errorf("%v, %v", ref, err)
		}
	}
	// Two services that make the first key at once agree.
	t2 := h.store.NewTxn()
	t2.Delete(grantTokenKeyName, keystore.AnyRevision)
	if _, err := t2.Commit(context.Background()); err != nil {
		t.Fatal(err)
	}
	h.svc.tokens.key.Store(nil)
	svc.tokens.key.Store(nil)
	keys := make([]string, 8)
	var wg sync.WaitGroup
	for i := range keys {
		wg.Go(func() {
			k, err := []*Service{h.svc, svc}[i%2].grantTokenKey(true)
			if err != nil {
				t.Error(err)
			}
			keys[i] = string(k)
		})
	}
	wg.Wait()
	if slices.ContainsFunc(keys, func(k string) bool { return k != keys[0] || len(k) != grantTokenKeySize }) {
		t.Error("two keys of grant tokens")
	}
	if _, err := svc.readGrantToken(testRegion, token); err == nil {
		t.Error("a token outlived its key")
	}
}

// FuzzGrantToken: only what was made for a grant in a region is its token.
func FuzzGrantToken(f *testing.F) {
	h := newHarness(f)
	key, _ := h.newKey(nil)
	ref := h.ref(key)
	made, err := h.svc.newGrantToken(ref, noGrant)
	if err != nil {
		f.Fatal(err)
	}
	secret, err := h.svc.grantTokenKey(false)
	if err != nil {
		f.Fatal(err)
	}
	for _, seed := range []string{"", made, made[:129], made + "A", made[:128] + "\r\n", strings.Repeat("A", 130), strings.Repeat("=", 130)} {
		f.Add(seed)
	}
	f.Fuzz(func(t *testing.T, token string) {
		got, ok := parseGrantToken(secret, testRegion, token)
		if ok != (token == made) || ok && got != (keystore.GrantRef{Key: ref, ID: noGrant}) {
			t.Errorf("%q: %v, %v", token, got, ok)
		}
		if _, ok := parseGrantToken(secret, "eu-west-2", token); ok {
			t.Errorf("%q is one of another region", token)
		}
	})
}
