package kms

import (
	"errors"
	"math/rand/v2"
	"strings"

	"keymill/daemon/xks"
	"keymill/engine"
	"keymill/keystore"
)

// ServedKey returns a key for the served XKS proxy: package xks, which decides
// who may use it. It implements xks.Keys. A key is served when it is a customer's
// symmetric key whose material is this appliance's; a key in a custom key store
// would only pass the request on.
func (s *Service) ServedKey(ref xks.KeyRef) (xks.ServedKey, error) {
	v, err := s.servedView(ref)
	if errors.Is(err, keystore.ErrNotFound) || err == nil && v.rec.Account != ref.Account {
		return xks.ServedKey{}, xks.ErrNoKey
	} else if err != nil {
		return xks.ServedKey{}, err
	}
	state := v.state
	if now := s.clock(); v.expires != 0 && now.UnixNano() >= v.expires && state == stateEnabled {
		state = statePendingImport // expired, though it may still be there
	}
	k := xks.ServedKey{
		Handle: v.handle, ID: v.id, State: state.String(),
		Served: v.spec.Symmetric() && v.usage == engine.EncryptDecrypt && v.rec.CustomKeyStore == "" && v.rec.Manager == keystore.ManagerCustomer,
		Admit:  func() bool { return v.bucket.Take(1, s.clock()) },
		Used:   func(a xks.Action) { s.usedByProxy(v, a) },
	}
	for i := range v.rec.Versions {
		k.Materials = append(k.Materials, v.rec.Versions[i].MaterialID)
	}
	return k, nil
}

func (s *Service) servedView(ref xks.KeyRef) (*keyView, error) {
	region, ok := s.regions.Intern([]byte(ref.Region))
	if !ok {
		return nil, keystore.ErrNotFound
	}
	if strings.HasPrefix(ref.Resource, aliasPrefix) {
		id, err := s.aliasTarget(nil, aliasName{ref.Account, region, ref.Resource})
		if err != nil {
			return nil, err
		}
		return s.view(keystore.Ref{Region: region, ID: id})
	}
	id, ok := engine.ParseKeyID(strings.TrimPrefix(ref.Resource, "key/"))
	if !ok {
		return nil, keystore.ErrNotFound
	}
	v, err := s.view(keystore.Ref{Region: region, ID: id.ID})
	if err == nil && v.id != id {
		return nil, keystore.ErrNotFound
	}
	return v, err
}

// usedByProxy counts a use of a key by the proxy, as the KMS operation it amounts
// to. There is no request of ours whose id it could have.
func (s *Service) usedByProxy(v *keyView, a xks.Action) {
	as := useEncrypt
	if a == xks.Decrypt {
		as = useDecrypt
	}
	s.usage.mark(v.use, as, 1, s.clock(), &[2]uint64{rand.Uint64(), rand.Uint64()})
}
