package kms

import (
	"errors"
	"slices"
	"strings"

	"keymill/daemon/wire"
	"keymill/engine"
	"keymill/hsm/arena"
	"keymill/keystore"
)

// # AWS managed keys
//
// For every service that has one, ListAliases shows the predefined name
// alias/aws/<service>. The key behind it is made when DescribeKey is asked for the
// name, by whoever asks first; no other operation makes one. It does not count in
// the quota of keys, and rotates every year.
//
// Its policy is fixed: it lets the service use the key on behalf of the account,
// which no caller here is, and the account look at it. So direct requests are
// answered as that policy says, which is the same for everybody: what looks is
// allowed, and everything that uses or changes the key is denied. It is decided
// from the operation alone, in front of whatever evaluates other keys' policies.

const (
	managerAWS    = "AWS"
	managedPrefix = aliasPrefix + "aws/"
)

// managedServices are the services with a predefined alias, sorted: those of
// whose keys AWS's documentation speaks. Newer services have none.
var managedServices = []string{
	"acm", "backup", "codecommit", "connect", "dms", "dynamodb", "ebs", "elasticfilesystem", "es", "fsx",
	"glue", "kinesis", "kinesisvideo", "lambda", "lightsail", "mq", "rds", "redshift", "s3", "secretsmanager",
	"ses", "sns", "sqs", "ssm", "workspaces", "xray",
}

// viaService is the name by which a service's requests are known where it is not
// the alias's.
var viaService = map[string]string{"ebs": "ec2"}

// managedAction tells whether the policy of an AWS managed key lets the account
// do it directly.
func managedAction(action string) bool {
	return strings.HasPrefix(action, "Describe") || strings.HasPrefix(action, "Get") || strings.HasPrefix(action, "List") ||
		action == "RevokeGrant"
}

// managedPolicy is the key policy of an AWS managed key.
func managedPolicy(region, account, service string) string {
	via := service
	if other, ok := viaService[service]; ok {
		via = other
	}
	domain := ".amazonaws.com"
	if Partition(region) == "aws-cn" {
		domain += ".cn"
	}
	return `{
  "Version" : "2012-10-17",
  "Id" : "auto-` + service + `-1",
  "Statement" : [ {
    "Sid" : "Allow use through ` + service + ` by principals of the account",
    "Effect" : "Allow",
    "Principal" : {
      "AWS" : "*"
    },
    "Action" : [ "kms:Encrypt", "kms:Decrypt", "kms:ReEncrypt*", "kms:GenerateDataKey*", "kms:CreateGrant", "kms:DescribeKey" ],
    "Resource" : "*",
    "Condition" : {
      "StringEquals" : {
        "kms:CallerAccount" : "` + account + `",
        "kms:ViaService" : "` + via + `.` + region + domain + `"
      }
    }
  }, {
    "Sid" : "Allow the account to read metadata",
    "Effect" : "Allow",
    "Principal" : {
      "AWS" : "arn:` + Partition(region) + `:iam::` + account + `:root"
    },
    "Action" : [ "kms:Describe*", "kms:Get*", "kms:List*", "kms:RevokeGrant" ],
    "Resource" : "*"
  } ]
}`
}

// authoriseManaged decides on a direct request for an AWS managed key.
func (x *exchange) authoriseManaged(v *keyView, action string) error {
	if managedAction(action) {
		return nil
	}
	return wire.NewError(wire.AccessDeniedException,
		"User: %s is not authorized to perform: kms:%s on resource: %s because no resource-based policy allows the kms:%s action",
		x.auth.Credential.PrincipalARN, action, v.arn, action)
}

// describedKey finds DescribeKey's key, and makes the one behind a predefined
// alias.
func describedKey(x *exchange) (*keyView, error) {
	id := x.in.(*wire.DescribeKeyRequest).KeyId
	v, err := x.resolve(id, keysAndAliases)
	var e *wire.Error
	if errors.As(err, &e) && e.Code == "NotFoundException" {
		if service, ok := x.predefined(id); ok {
			return x.managedKey(service)
		}
	}
	return v, err
}

// predefined returns the service whose predefined alias of the caller's account
// and region an identifier names.
func (x *exchange) predefined(id string) (service string, ok bool) {
	if strings.HasPrefix(id, "arn:") {
		account, resource, err := x.splitARN(id)
		if err != nil || account != x.account {
			return "", false
		}
		id = resource
	}
	name, ok := strings.CutPrefix(id, managedPrefix)
	if !ok {
		return "", false
	}
	i, ok := slices.BinarySearch(managedServices, name)
	if !ok {
		return "", false
	}
	return managedServices[i], true
}

// managedKey returns the AWS managed key of a service, a new one if there is
// none. The alias is part of the commit that makes the key, and expected not to
// exist: of several who make one at the same time, one does.
func (x *exchange) managedKey(service string) (*keyView, error) {
	s := x.svc
	name := aliasName{x.account, x.region, managedPrefix + service}
	for range commitRetries {
		v, err := x.resolveAlias(name)
		var e *wire.Error
		if err == nil || !errors.As(err, &e) {
			return v, err
		}
		err = x.makeManagedKey(name, service)
		s.aliases.Invalidate(name)
		if err != nil && !errors.Is(err, keystore.ErrConflict) {
			return nil, err
		}
	}
	return nil, errBusy
}

func (x *exchange) makeManagedKey(name aliasName, service string) error {
	s := x.svc
	x.mayWait()
	id := newKeyID(false)
	now := x.now.Round(0).UTC()
	secret, _, err := s.generateMaterial(engine.SymmetricDefault)
	if err != nil {
		return err
	}
	defer arena.Wipe(secret)
	rec := &keystore.Key{
		Account:        strings.Clone(name.account),
		Region:         name.region,
		ID:             id.ID,
		Spec:           engine.SymmetricDefault.String(),
		Usage:          engine.EncryptDecrypt.String(),
		Origin:         originLocal,
		State:          stateEnabled.String(),
		Manager:        managerAWS,
		Service:        service,
		Description:    "Default key that protects data of " + service + " when no other key is defined",
		Created:        now,
		Versions:       []keystore.Version{{Number: 1, MaterialID: engine.ComputeMaterialID(id, secret), Created: now}},
		CurrentVersion: 1,

		RotationPeriodDays: defaultRotationDays,
		NextRotation:       now.Add(defaultRotationDays * day),
	}
	ctx, cancel := waitForRoot()
	defer cancel()
	material, err := s.store.SealMaterial(ctx, keystore.Identity{
		Account: rec.Account, Region: rec.Region, Spec: rec.Spec, ID: rec.ID, Version: 1,
	}, secret)
	if err != nil {
		return err
	}
	t := s.store.NewTxn()
	t.PutKey(rec, 0)
	t.PutMaterial(material, 0)
	t.PutPolicy(rec.Ref(), managedPolicy(rec.Region, rec.Account, service), 0)
	t.PutAlias(&keystore.Alias{Account: rec.Account, Region: rec.Region, Name: name.name, Target: rec.ID, Created: now, Updated: now}, 0)
	return commit(t)
}

// withPredefined adds to a page of aliases the predefined names that have no key
// yet, and keeps to its limit. The page holds what comes after a name, in order.
func (x *exchange) withPredefined(page []*keystore.Alias, more bool, after string, limit int) ([]*keystore.Alias, bool) {
	last := ""
	if more {
		last = page[len(page)-1].Name
	}
	byName := func(a *keystore.Alias, name string) int { return strings.Compare(a.Name, name) }
	for _, service := range managedServices {
		name := managedPrefix + service
		if name <= after || more && name > last {
			continue
		}
		if i, found := slices.BinarySearchFunc(page, name, byName); !found {
			page = slices.Insert(page, i, &keystore.Alias{Account: x.account, Region: x.region, Name: name})
		}
	}
	if len(page) > limit {
		return page[:limit], true
	}
	return page, more
}
