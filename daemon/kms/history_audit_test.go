package kms

import (
	"maps"
	"math/rand/v2"
	"slices"
	"strings"

	"github.com/google/go-cmp/cmp"
)

// same compares what can be read with the model.
func (p *player) same(what string, k *mkey, got, want any) {
	if diff := cmp.Diff(want, got); diff != "" {
		p.Fatalf("%s of %s (-want +got):\n%s", what, k.name, diff)
	}
}

// pages reads a list to its end, some entries at a time.
func (p *player) pages(region, op, member string, limit int, in args) (all []map[string]any) {
	in = maps.Clone(in)
	in["Limit"] = limit
	all = []map[string]any{}
	for {
		r := p.expect("", region, op, in)
		page := r.fields[member].([]any)
		for _, e := range page {
			all = append(all, e.(map[string]any))
		}
		next, more := r.fields["NextMarker"]
		if len(page) > limit || r.fields["Truncated"] != more || more && len(page) == 0 {
			p.Fatalf("a page of %d with limit %d: %s", len(page), limit, r)
		}
		if !more {
			return all
		}
		in["Marker"] = next
	}
}

// lists reads the lists of a region.
func (p *player) lists() { p.listsOf(one(p, historyRegions...)) }

func (p *player) listsOf(region string) {
	var ids, arns []string
	var retirable []map[string]any
	at := &mkey{name: region}
	for _, k := range p.w.live() {
		if k.region == region {
			ids = append(ids, k.id)
			retirable = append(retirable, k.listedGrants(func(g *mgrant) bool { return g.retiring != "" })...)
		}
	}
	limit := one(p, 1, 2, 3, 100)
	var got []string
	for _, e := range p.pages(region, "ListKeys", "Keys", limit, args{}) {
		got = append(got, e["KeyId"].(string))
		arns = append(arns, e["KeyArn"].(string))
	}
	slices.Sort(got)
	slices.Sort(ids)
	p.same("ListKeys", at, got, ids)
	slices.Sort(arns)
	for i := range ids {
		ids[i] = keyARN(region, testAccount, ids[i])
	}
	p.same("ARNs of ListKeys", at, arns, ids)

	var aliases []map[string]any
	for _, e := range p.pages(region, "ListAliases", "Aliases", one(p, 11, 30, 100), args{}) {
		if !strings.HasPrefix(e["AliasName"].(string), managedPrefix) {
			aliases = append(aliases, e)
		}
	}
	p.same("ListAliases", at, aliases, p.w.listedAliases(region, nil))
	listed := p.pages(region, "ListRetirableGrants", "Grants", limit, args{"RetiringPrincipal": userAlice + "3"})
	p.same("ListRetirableGrants", at, byGrant(listed), byGrant(retirable))
}

func byGrant(grants []map[string]any) map[string]map[string]any {
	m := map[string]map[string]any{}
	for _, g := range grants {
		m[g["GrantId"].(string)] = g
	}
	return m
}

// listedAliases is what ListAliases lists, of a key when that is not nil.
func (w *world) listedAliases(region string, of *mkey) (list []map[string]any) {
	for _, name := range slices.Sorted(slices.Values(historyAliasNames)) {
		if a := w.aliases[[2]string{region, name}]; a != nil && (of == nil || a.target == of) {
			list = append(list, map[string]any{
				"AliasName": name, "AliasArn": aliasARN(region, testAccount, name), "TargetKeyId": a.target.id,
				"CreationDate": wireTime(a.created), "LastUpdatedDate": wireTime(a.updated),
			})
		}
	}
	return list
}

// oneKey reads what there is to read of a key.
func (p *player) oneKey() {
	if len(p.w.keys) > 0 {
		p.read(one(p, p.w.keys...))
	}
}

func (p *player) read(k *mkey) {
	if p.w.find(k.region, k.id) != k {
		if p.w.find(k.region, k.id) == nil {
			for _, op := range []string{"DescribeKey", "ListGrants", "ListResourceTags", "GetKeyRotationStatus"} {
				p.expect(codeNotFound, k.region, op, args{"KeyId": k.id})
			}
		}
		return
	}
	in := args{"KeyId": one(p, k.id, k.arn)}
	m := p.expect("", k.region, "DescribeKey", in).fields["KeyMetadata"].(map[string]any)
	p.seen(k, m)
	if k.kind.symmetric {
		limit := one(p, 1, 2, 100)
		listed := p.pages(k.region, "ListKeyRotations", "Rotations", limit, args{"KeyId": k.id, "IncludeKeyMaterial": "ALL_KEY_MATERIAL"})
		if len(listed) == len(k.fam.materials) {
			for i, e := range listed {
				p.saw(k.fam, k.fam.materials[i], e["KeyMaterialId"].(string))
			}
		}
		p.same("ListKeyRotations with all material", k, listed, p.w.rotations(k, true))
		p.same("ListKeyRotations", k, p.pages(k.region, "ListKeyRotations", "Rotations", limit, args{"KeyId": k.id}), p.w.rotations(k, false))
	} else {
		p.expect(codeUnsupported, k.region, "ListKeyRotations", in)
	}
	p.same("DescribeKey", k, m, p.w.metadata(k))
	status, code := p.w.rotationStatus(k)
	if r := p.expect(code, k.region, "GetKeyRotationStatus", in); code == "" {
		p.same("GetKeyRotationStatus", k, r.fields, status)
	}

	tags := map[string]string{}
	for _, e := range p.pages(k.region, "ListResourceTags", "Tags", one(p, 1, 3, 50), args{"KeyId": k.id}) {
		tags[e["TagKey"].(string)] = e["TagValue"].(string)
	}
	p.same("tags", k, tags, k.tags)

	limit := one(p, 1, 2, 100)
	p.same("ListGrants", k, p.pages(k.region, "ListGrants", "Grants", limit, args{"KeyId": k.id}), k.listedGrants(func(*mgrant) bool { return true }))
	p.same("ListGrants of a grantee", k, p.pages(k.region, "ListGrants", "Grants", limit, args{"KeyId": k.id, "GranteePrincipal": userAlice}),
		k.listedGrants(func(g *mgrant) bool { return g.grantee == userAlice }))
	var aliases []map[string]any
	aliases = append(aliases, p.pages(k.region, "ListAliases", "Aliases", limit, args{"KeyId": k.id})...)
	p.same("ListAliases", k, aliases, p.w.listedAliases(k.region, k))
}

// audit reads everything, and tries every ciphertext and signature everywhere.
func (p *player) audit() {
	for _, region := range historyRegions {
		p.listsOf(region)
	}
	for _, k := range p.w.keys {
		p.read(k)
	}
	plain := p.d
	for i, b := range p.w.blobs {
		p.d = rand.New(rand.NewPCG(uint64(i), 3))
		for _, region := range historyRegions {
			a := aimed{region, one(p, "", b.id), b.fam.in(region)}
			if !b.kind.symmetric {
				a.text = b.id
			}
			want := codeDenied
			if a.text != "" {
				want = codeNotFound
			}
			if a.key != nil {
				want = p.w.used(a.key, "ENCRYPT_DECRYPT")
			}
			p.decrypt(b, a, want)
		}
	}
	p.d = plain
	for _, s := range p.w.seals {
		for _, region := range historyRegions {
			p.verify(s, region, false)
		}
	}
}
