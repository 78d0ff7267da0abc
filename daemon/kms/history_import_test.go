package kms

// The steps of histories on imported material.

import (
	"fmt"
	"time"
)

// imports refuses keys that take no imported material.
func (p *player) imports(k *mkey) string {
	return first(when(k.fam.origin != "EXTERNAL", codeUnsupported), p.w.changed(k))
}

// external chooses a key, mostly one of imported material.
func (p *player) external() aimed {
	var keys []*mkey
	for _, k := range p.w.live() {
		if k.fam.origin == originExternal {
			keys = append(keys, k)
		}
	}
	if len(keys) == 0 || p.chance(10) {
		return p.aim(false)
	}
	return p.name(keys[p.d.IntN(len(keys))], false)
}

// ask gets parameters for import into a key, unless those that it has will do.
func (p *player) ask(a aimed) bool {
	want := ruled(a, p.imports)
	if want == "" && a.key.params != nil && p.chance(90) && (p.w.now.Before(a.key.paramsUntil) || p.chance(20)) {
		return true
	}
	r := p.expect(want, a.region, "GetParametersForImport", args{"KeyId": a.text, "WrappingAlgorithm": "SM2PKE", "WrappingKeySpec": "SM2"})
	if want != "" {
		return false
	}
	a.key.params = &parameters{"SM2PKE", r.str("ImportToken"), fromBase64(p.harness, r.str("PublicKey"))}
	a.key.paramsUntil = p.w.now.Add(24 * time.Hour).Truncate(time.Millisecond)
	return true
}

// idOf returns the KeyMaterialId that material has in a key, and names it.
func (p *player) idOf(k *mkey, material []byte, secret byte) string {
	id := materialIDOf(k.id, material)
	p.w.names[id] = fmt.Sprint(p.w.names[k.id], " material ", secret)
	return id
}

// wants returns the material, and the ImportType, that brings a key on: what it lacks,
// else what is to be its next.
func (f *mfamily) wants(k *mkey) (secret byte, as string) {
	for _, m := range f.materials {
		if k.held[m] == nil {
			return m.secret, existingMaterial
		}
	}
	for secret = 1; f.bySecret(secret) != nil && secret < 7; secret++ {
	}
	return secret, newMaterial
}

// importMaterial imports one of a few materials, in any of the ways there are.
func (p *player) importMaterial() {
	a := p.external()
	if a.key != nil && a.key.fam.origin != originExternal && p.chance(85) {
		p.encrypt()
		return
	}
	if !p.ask(a) {
		return
	}
	k, f := a.key, a.key.fam
	secret := byte(1 + p.d.IntN(5))
	more, until := args{}, time.Time{}
	if p.chance(40) {
		until = p.w.now.Add(one(p, time.Hour, 30*time.Hour, 20*day)).Truncate(time.Millisecond)
		more["ExpirationModel"], more["ValidTo"] = "KEY_MATERIAL_EXPIRES", wireTime(until)
	}
	kind := one(p, "", newMaterial, newMaterial, existingMaterial)
	if wanted, as := f.wants(k); p.chance(60) { // what leads on
		secret, kind = wanted, as
	} else if len(f.materials) > 0 && p.chance(60) { // what is known
		secret = one(p, f.materials...).secret
	}
	if !k.kind.symmetric && p.chance(90) {
		kind = ""
	}
	material := filled(secret)
	if k.kind.asymmetric {
		material = historyPair(secret)
	}
	id := p.idOf(k, material, secret)
	if kind != "" {
		more["ImportType"] = kind
	}
	claimed := ""
	if p.chance(15) {
		claimed = one(p, id, id, p.idOf(k, filled(77), 77))
		more["KeyMaterialId"] = claimed
	}
	description := ""
	if p.chance(20) {
		description = fmt.Sprint("material ", secret)
		more["KeyMaterialDescription"] = description
	}

	known, replica, begins := f.bySecret(secret), f.primary != k, len(f.materials) == 0
	asNew := kind == newMaterial || kind == "" && claimed == "" && begins
	var want string
	switch {
	case !k.kind.symmetric && (kind != "" || claimed != "" || description != ""):
		want = codeUnsupported
	case kind == newMaterial && claimed != "":
		want = codeValidation
	case kind == newMaterial && replica, description != "" && replica:
		want = codeUnsupported
	case !p.w.now.Before(k.paramsUntil):
		want = codeTokenExpired
	case asNew && replica:
		want = codeState
	case asNew && known != nil:
		want = codeMaterial
	case asNew && f.waiting() != nil:
		want = codeState
	case !asNew && (claimed != "" && claimed != id || known == nil):
		want = codeMaterial
	}
	r := p.expect(want, a.region, "ImportKeyMaterial", k.params.wrapped(p.harness, a.text, material, more))
	if want != "" {
		return
	}
	if k.kind.symmetric {
		p.equal("KeyMaterialId", r.str("KeyMaterialId"), id)
	}
	if asNew {
		known = &mmaterial{name: p.w.names[id], id: id, secret: secret, pending: !begins, description: description}
		f.materials = append(f.materials, known)
		if begins {
			f.current = known
		}
	} else if description != "" {
		known.description = description
	}
	lost := p.w.shown(k) == "PendingImport"
	k.held[known] = &mheld{until}
	if lost && k.complete() {
		k.state = "Enabled"
	}
}

func (p *player) deleteMaterial() {
	a := p.external()
	if a.key != nil && a.key.fam.origin != originExternal && p.chance(85) {
		p.encrypt()
		return
	}
	in := args{"KeyId": a.text}
	var m *mmaterial
	want := ruled(a, func(k *mkey) string { return when(k.fam.origin != "EXTERNAL", codeUnsupported) })
	if want == "" {
		f := a.key.fam
		m = f.current
		switch {
		case p.chance(40) && len(f.materials) > 0:
			m = one(p, f.materials...)
			in["KeyMaterialId"] = m.id
		case p.chance(10):
			in["KeyMaterialId"] = p.idOf(a.key, filled(77), 77)
			want = codeNotFound
		}
		if in["KeyMaterialId"] != nil && !a.key.kind.symmetric {
			want = codeUnsupported
		}
	}
	p.expect(want, a.region, "DeleteImportedKeyMaterial", in)
	if want == "" && m != nil {
		a.key.lose(m)
	}
}
