package kms

// The steps of histories on grants and aliases.

import (
	"slices"
	"strings"
)

func (p *player) createGrant() {
	a := p.aim(false)
	dry := p.chance(10)
	g := &mgrant{grantee: one(p, userAlice, userAlice+"2"), created: p.w.now, operations: []string{"DescribeKey"}}
	in := args{"KeyId": a.text, "GranteePrincipal": g.grantee}
	if p.chance(60) {
		g.label = one(p, "first", "second")
		in["Name"] = g.label
	}
	if p.chance(40) {
		g.retiring = userAlice + "3"
		in["RetiringPrincipal"] = g.retiring
	}
	if p.chance(60) {
		g.operations = []string{"Decrypt", "Encrypt"}
	}
	in["Operations"] = g.operations
	if dry {
		in["DryRun"] = true
	}
	var same *mgrant
	want := ruled(a, func(k *mkey) string {
		if code := first(p.w.in(k, "Enabled"), when(len(g.operations) == 2 && k.kind.usage != "ENCRYPT_DECRYPT", codeValidation)); code != "" {
			return code
		}
		for _, o := range k.grants {
			if g.label != "" && o.label == g.label && o.grantee == g.grantee && o.retiring == g.retiring && slices.Equal(o.operations, g.operations) {
				same = o
			}
		}
		return first(when(same == nil && len(k.grants) >= historyGrants, codeLimit), when(dry, codeDry))
	})
	r := p.expect(want, a.region, "CreateGrant", in)
	if want != "" {
		return
	}
	if same != nil {
		p.equal("GrantId", r.str("GrantId"), same.id)
		return
	}
	g.id, g.token = r.str("GrantId"), r.str("GrantToken")
	g.name = p.w.label("grant", g.id)
	k := a.key
	k.grants = append(k.grants, g)
	slices.SortFunc(k.grants, func(a, b *mgrant) int { return strings.Compare(a.id, b.id) })
}

// aGrant chooses a key and one of its grants, mostly.
func (p *player) aGrant() (aimed, *mgrant) {
	a := p.aim(false)
	for _, k := range p.w.live() {
		if len(k.grants) > 0 && p.chance(70) {
			a = p.name(k, false)
			break
		}
	}
	if a.key == nil || len(a.key.grants) == 0 {
		return a, &mgrant{id: noGrant}
	}
	// They are sorted by their random ids: take them by what is the same in every run.
	oldest := slices.SortedFunc(slices.Values(a.key.grants), func(a, b *mgrant) int { return strings.Compare(a.name, b.name) })
	return a, oldest[p.d.IntN(len(oldest))]
}

func (k *mkey) drop(g *mgrant) {
	k.grants = slices.DeleteFunc(k.grants, func(o *mgrant) bool { return o == g })
}

func (p *player) revokeGrant() {
	a, g := p.aGrant()
	want := ruled(a, func(*mkey) string { return when(g.name == "", codeNotFound) })
	p.expect(want, a.region, "RevokeGrant", args{"KeyId": a.text, "GrantId": g.id})
	if want == "" {
		a.key.drop(g)
	}
}

func (p *player) retireGrant() {
	a, g := p.aGrant()
	in := args{"GrantToken": g.token}
	if g.name == "" || p.chance(50) {
		in = args{"KeyId": a.text, "GrantId": g.id}
	}
	want := ruled(a, func(*mkey) string { return when(g.name == "", codeNotFound) })
	if p.chance(15) && want == "" {
		in["DryRun"], want = true, codeDry
	}
	p.expect(want, a.region, "RetireGrant", in)
	if want == "" {
		a.key.drop(g)
	}
}

func (w *world) aliasesOf(k *mkey) (n int) {
	for _, a := range w.aliases {
		if a.target == k {
			n++
		}
	}
	return n
}

func (p *player) createAlias() {
	a, name := p.aim(false), one(p, historyAliasNames...)
	at := [2]string{a.region, name}
	want := ruled(a, func(k *mkey) string {
		return first(p.w.changed(k), when(p.w.aliases[at] != nil, codeExists), when(p.w.aliasesOf(k) >= historyAliases, codeLimit))
	})
	p.expect(want, a.region, "CreateAlias", args{"AliasName": name, "TargetKeyId": a.text})
	if want == "" {
		p.w.aliases[at] = &malias{a.region, name, a.key, p.w.now, p.w.now}
	}
}

// anAlias chooses the name of an alias, mostly of one that is there.
func (p *player) anAlias(region string) string {
	for _, name := range historyAliasNames {
		if p.w.aliases[[2]string{region, name}] != nil && p.chance(50) {
			return name
		}
	}
	return one(p, historyAliasNames...)
}

func (p *player) updateAlias() {
	a := p.aim(false)
	name := p.anAlias(a.region)
	if p.w.aliases[[2]string{a.region, name}] == nil && p.chance(80) {
		p.createAlias()
		return
	}
	alias := p.w.aliases[[2]string{a.region, name}]
	want := codeNotFound
	if alias != nil {
		want = ruled(a, func(k *mkey) string {
			old := alias.target.kind
			return first(p.w.changed(k),
				when(old.usage != k.kind.usage || old.symmetric != k.kind.symmetric || old.asymmetric != k.kind.asymmetric, codeValidation),
				when(alias.target != k && p.w.aliasesOf(k) >= historyAliases, codeLimit))
		})
	}
	p.expect(want, a.region, "UpdateAlias", args{"AliasName": name, "TargetKeyId": a.text})
	if want == "" {
		alias.target, alias.updated = a.key, p.w.now
	}
}

func (p *player) deleteAlias() {
	region := p.aim(false).region
	name := p.anAlias(region)
	if p.w.aliases[[2]string{region, name}] == nil && p.chance(70) {
		p.encrypt()
		return
	}
	at := [2]string{region, name}
	p.expect(when(p.w.aliases[at] == nil, codeNotFound), region, "DeleteAlias", args{"AliasName": name})
	delete(p.w.aliases, at)
}
