package kms

import (
	"errors"
	"strings"

	"keymill/daemon/wire"
	"keymill/engine"
	"keymill/keystore"
)

// identifierForms says which of the four forms of a key identifier an operation
// takes: key ID and key ARN always, alias name and alias ARN only where stated
// (AWS KMS Developer Guide, Key identifiers).
type identifierForms uint8

const (
	keysOnly identifierForms = iota
	keysAndAliases
)

const aliasPrefix = "alias/"

// An aliasName is where an alias is kept: unique in an account and region.
type aliasName struct{ account, region, name string }

// resolve finds the key that an identifier names, seen from the caller's account
// and the request's region.
func (x *exchange) resolve(text string, forms identifierForms) (*keyView, error) {
	account, resource, unknown := x.account, text, "Invalid keyId '%s'"
	if strings.HasPrefix(text, "arn:") {
		var err error
		if account, resource, err = x.splitARN(text); err != nil {
			return nil, err
		}
		if id, ok := strings.CutPrefix(resource, "key/"); ok {
			resource, unknown = id, "Invalid keyId %s"
		} else if !strings.HasPrefix(resource, aliasPrefix) {
			return nil, wire.NewError(wire.InvalidArnException, "Invalid arn %s", text)
		}
	}
	if strings.HasPrefix(resource, aliasPrefix) {
		if forms != keysAndAliases {
			return nil, wire.NewError(wire.InvalidArnException, "Key Aliases are not supported for this operation.")
		}
		return x.resolveAlias(aliasName{account, x.region, resource})
	}
	id, ok := engine.ParseKeyID(resource)
	if !ok {
		if _, ok := engine.ParseKeyID(strings.ToLower(resource)); ok && !strings.HasPrefix(strings.ToLower(resource), "mrk-") {
			return nil, keyNotFound(keyARN(x.region, account, resource)) // a UUID, but no key's
		}
		return nil, wire.NewError(wire.NotFoundException, unknown, resource)
	}
	v, err := x.view(keystore.Ref{Region: x.region, ID: id.ID})
	if errors.Is(err, keystore.ErrNotFound) || err == nil && (v.id != id || v.rec.Account != account) {
		return nil, keyNotFound(keyARN(x.region, account, id.String()))
	}
	return v, err
}

// splitARN checks the parts of a KMS ARN that say where it belongs and returns
// its account and resource.
func (x *exchange) splitARN(arn string) (account, resource string, err error) {
	_, rest, _ := strings.Cut(arn, ":")
	partition, rest, _ := strings.Cut(rest, ":")
	service, rest, _ := strings.Cut(rest, ":")
	region, rest, _ := strings.Cut(rest, ":")
	account, resource, _ = strings.Cut(rest, ":")
	if service != "kms" || resource == "" {
		return "", "", wire.NewError(wire.InvalidArnException, "Invalid arn %s", arn)
	}
	if partition != Partition(x.region) || region != x.region {
		return "", "", wire.NewError(wire.NotFoundException, "Invalid arn %s", region)
	}
	return account, resource, nil
}

// resolveAlias finds the key that an alias points to.
func (x *exchange) resolveAlias(name aliasName) (*keyView, error) {
	target, err := x.svc.aliasTarget(x, name)
	if err == nil {
		var v *keyView
		if v, err = x.view(keystore.Ref{Region: name.region, ID: target}); err == nil {
			return v, nil
		}
	}
	if errors.Is(err, keystore.ErrNotFound) {
		return nil, aliasNotFound(name)
	}
	return nil, err
}

func aliasNotFound(name aliasName) error {
	return wire.NewError(wire.NotFoundException, "Alias %s is not found.", aliasARN(name.region, name.account, name.name))
}

// aliasTarget returns the id of the key that an alias points to,
// keystore.ErrNotFound when there is no such alias. It does so for the request x; nil
// is none.
func (s *Service) aliasTarget(x *exchange, name aliasName) (keystore.KeyID, error) {
	if id, ok := s.aliases.Get(name); ok {
		return *id, nil
	}
	x.mayWait()
	name = aliasName{strings.Clone(name.account), name.region, strings.Clone(name.name)}
	id, err := s.aliases.Load(name, func() (*keystore.KeyID, error) {
		a, err := s.store.Alias(name.account, name.region, name.name)
		if err != nil {
			return nil, err
		}
		return &a.Target, nil
	})
	if err != nil {
		return keystore.KeyID{}, err
	}
	return *id, nil
}
