package kms

import (
	"errors"
	"strings"

	"keymill/daemon/wire"
	"keymill/keystore"
)

// ownedAlias checks an alias name that a caller wants to make or change, and
// returns it with where it is kept.
func (x *exchange) ownedAlias(name string) (aliasName, error) {
	switch {
	case !strings.HasPrefix(name, aliasPrefix):
		return aliasName{}, invalid("Alias must start with the prefix \"alias/\". Please see https://docs.aws.amazon.com/kms/latest/developerguide/kms-alias.html")
	case len(name) == len(aliasPrefix):
		return aliasName{}, wire.NewError(wire.InvalidAliasNameException, "The alias name %s has nothing after its prefix.", name)
	case strings.HasPrefix(name, "alias/aws/"):
		return aliasName{}, wire.NewError(wire.NotAuthorizedException, "Aliases that begin with alias/aws/ are reserved.")
	}
	return aliasName{x.account, x.region, strings.Clone(name)}, nil
}

// aliasTargetKey finds the key that an alias is to point to.
func (x *exchange) aliasTargetKey(id string) (*keyView, error) {
	if strings.HasPrefix(id, aliasPrefix) || strings.Contains(id, ":alias/") {
		return nil, invalid("Aliases must refer to keys. Not aliases")
	}
	v, err := x.resolve(id, keysOnly)
	if err != nil {
		return nil, err
	}
	return v, x.judge(v, x.row.action)
}

func createAlias(x *exchange, in *wire.CreateAliasRequest) error {
	name, err := x.ownedAlias(in.AliasName)
	if err != nil {
		return err
	}
	target, err := x.aliasTargetKey(in.TargetKeyId)
	if err != nil {
		return err
	}
	exists := wire.NewError(wire.AlreadyExistsException, "An alias with the name %s already exists", aliasARN(name.region, name.account, name.name))
	s := x.svc
	// Writing the key's record too makes aliases of one key queue up, so that the
	// limit holds and no alias is made for a key that is being deleted.
	err = x.updateKey(target, func(_ *keystore.Key, t *keystore.Txn) error {
		if _, err := s.store.Alias(name.account, name.region, name.name); err == nil {
			return exists
		} else if !errors.Is(err, keystore.ErrNotFound) {
			return err
		}
		if err := s.roomForAlias(target); err != nil {
			return err
		}
		t.PutAlias(&keystore.Alias{
			Account: name.account, Region: name.region, Name: name.name,
			Target: target.ref.ID, Created: x.now.UTC(), Updated: x.now.UTC(),
		}, 0)
		return nil
	})
	s.aliases.Invalidate(name)
	return err
}

// roomForAlias refuses one more alias than a key may have.
func (s *Service) roomForAlias(target *keyView) error {
	most := s.quota.Resources().AliasesPerKey
	n, err := s.store.CountKeyAliases(target.ref, most)
	if err == nil && n >= most {
		err = wire.NewError(wire.LimitExceededException, "The key %s has %d aliases, which is the limit.", target.arn, n)
	}
	return err
}

func updateAlias(x *exchange, in *wire.UpdateAliasRequest) error {
	name, err := x.ownedAlias(in.AliasName)
	if err != nil {
		return err
	}
	s := x.svc
	if _, err := s.store.Alias(name.account, name.region, name.name); errors.Is(err, keystore.ErrNotFound) {
		s.aliases.Invalidate(name) // who removed it may not have done so yet
		return aliasNotFound(name)
	}
	target, err := x.aliasTargetKey(in.TargetKeyId)
	if err != nil {
		return err
	}
	err = x.updateKey(target, func(_ *keystore.Key, t *keystore.Txn) error {
		a, err := s.store.Alias(name.account, name.region, name.name)
		if errors.Is(err, keystore.ErrNotFound) {
			return aliasNotFound(name)
		} else if err != nil {
			return err
		}
		if err := x.sameKind(a, target); err != nil {
			return err
		}
		if a.Target != target.ref.ID {
			if err := s.roomForAlias(target); err != nil {
				return err
			}
		}
		moved := *a
		moved.Target, moved.Updated = target.ref.ID, x.now.UTC()
		t.PutAlias(&moved, a.Revision)
		return nil
	})
	s.aliases.Invalidate(name)
	return err
}

// sameKind refuses to move an alias to a key of another type or usage: callers of
// the alias would fail.
func (x *exchange) sameKind(a *keystore.Alias, target *keyView) error {
	old, err := x.view(keystore.Ref{Region: a.Region, ID: a.Target})
	if errors.Is(err, keystore.ErrNotFound) {
		return nil
	} else if err != nil {
		return err
	}
	kind := func(v *keyView) [3]bool {
		return [3]bool{v.spec.Symmetric(), v.spec.HMAC(), v.spec.Asymmetric()}
	}
	if kind(old) != kind(target) || old.usage != target.usage {
		return invalid("Alias %s cannot be changed from %s to %s: the keys must have the same type and the same key usage.", a.Name, old.arn, target.arn)
	}
	return nil
}

func deleteAlias(x *exchange, in *wire.DeleteAliasRequest) error {
	name, err := x.ownedAlias(in.AliasName)
	if err != nil {
		return err
	}
	s := x.svc
	for range commitRetries {
		a, err := s.store.Alias(name.account, name.region, name.name)
		if errors.Is(err, keystore.ErrNotFound) {
			s.aliases.Invalidate(name) // who removed it may not have done so yet
			return aliasNotFound(name)
		} else if err != nil {
			return err
		}
		t := s.store.NewTxn()
		t.DeleteAlias(a)
		if err = commit(t); errors.Is(err, keystore.ErrConflict) {
			continue
		}
		s.aliases.Invalidate(name)
		return err
	}
	return errBusy
}
