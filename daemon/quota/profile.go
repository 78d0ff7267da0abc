package quota

import (
	"fmt"
	"math"
	"slices"
	"strconv"
	"strings"

	"keymill/daemon/wire"
)

// A Rate is a number of units a second; 0 is no limit.
type Rate float64

// Bounds of a rate that is not 0. An interval has to be a good number of
// nanoseconds, and a bucket to fill within the hour.
const (
	MinRate Rate = 0.001
	MaxRate Rate = 10_000_000
)

// burst is a second's worth, at least one unit.
func (r Rate) burst() int64 { return max(int64(r), 1) }

// A Profile is what may be done how often, and how much of what there may be. It
// is not changed once a [Limiter] was made from it.
type Profile struct {
	// Requests are the rates per account and region, by class.
	Requests [numClasses]Rate

	// Regions are the rates that differ in some regions, in the order of their
	// names. A name that ends in * stands for all regions that begin so; a region's
	// own rate goes before that, and a longer beginning before a shorter one.
	Regions []Region

	// CustomKeyStore is the rate of cryptographic operations of each custom key
	// store, besides the account's.
	CustomKeyStore Rate

	// PerKey is the rate of requests on one key, by whoever makes them, and
	// PerKeyBurst how many may come at once.
	PerKey      Rate
	PerKeyBurst int64

	Resources Resources
}

// Region holds the rates of a region that are not the general ones.
type Region struct {
	Name  string
	Rates map[Class]Rate
}

// Resources are the resource quotas, per account and region where a line does not
// say more; 0 is no limit.
type Resources struct {
	Keys              int // customer managed keys in any state
	AliasesPerKey     int
	GrantsPerKey      int
	CustomKeyStores   int
	OnDemandRotations int // of one key in its life
	PolicyBytes       int // of a key policy
	TagsPerKey        int
}

// Defaults of the limit per key, which AWS KMS does not have: high enough for a
// storage system that uses one key, low enough that one key does not take all of
// a machine. The burst lets the largest bulk request through.
const (
	DefaultPerKey      Rate  = 50_000
	DefaultPerKeyBurst int64 = 50_000
	MinPerKeyBurst     int64 = 10_000 // when the burst follows from the rate
)

// defaultPerKeyBurst is the burst of a limit per key that names none.
func defaultPerKeyBurst(r Rate) int64 {
	if r == 0 {
		return 0
	}
	return max(r.burst(), MinPerKeyBurst)
}

// AWS returns AWS KMS's quotas (Developer Guide, Request quotas and Resource
// quotas, 2026).
func AWS() *Profile {
	p := &Profile{
		CustomKeyStore: 1800,
		PerKey:         DefaultPerKey,
		PerKeyBurst:    DefaultPerKeyBurst,
		Resources:      awsResources,
	}
	for c, r := range map[Class]Rate{
		Symmetric: 10_000, RSA: 1000, ECC: 1000, MLDSA: 1000,
		PairP256: 100, PairP384: 100, PairP521: 100, PairSecp256k1: 100, PairEd25519: 100,
		PairRSA2048: 20, PairRSA3072: 4, PairRSA4096: 1,
		PairSM2: 25, // where AWS offers it, in China
	} {
		p.Requests[c] = r
	}
	for op, r := range map[wire.Op]Rate{
		wire.OpCancelKeyDeletion: 5, wire.OpConnectCustomKeyStore: 5, wire.OpCreateAlias: 5, wire.OpCreateCustomKeyStore: 5,
		wire.OpCreateGrant: 50, wire.OpCreateKey: 5, wire.OpDeleteAlias: 15, wire.OpDeleteCustomKeyStore: 5,
		wire.OpDeleteImportedKeyMaterial: 15, wire.OpDescribeCustomKeyStores: 5, wire.OpDescribeKey: 2000, wire.OpDisableKey: 5,
		wire.OpDisableKeyRotation: 5, wire.OpDisconnectCustomKeyStore: 5, wire.OpEnableKey: 5, wire.OpEnableKeyRotation: 15,
		wire.OpGetKeyLastUsage: 5, wire.OpGetKeyPolicy: 1000, wire.OpGetKeyRotationStatus: 1000, wire.OpGetParametersForImport: 1,
		wire.OpGetPublicKey: 2000, wire.OpImportKeyMaterial: 15, wire.OpListAliases: 500, wire.OpListGrants: 100,
		wire.OpListKeyPolicies: 100, wire.OpListKeyRotations: 100, wire.OpListKeys: 500, wire.OpListResourceTags: 2000,
		wire.OpListRetirableGrants: 100, wire.OpPutKeyPolicy: 15, wire.OpReplicateKey: 5, wire.OpRetireGrant: 50,
		wire.OpRevokeGrant: 50, wire.OpRotateKeyOnDemand: 5, wire.OpScheduleKeyDeletion: 15, wire.OpTagResource: 10,
		wire.OpUntagResource: 5, wire.OpUpdateAlias: 5, wire.OpUpdateCustomKeyStore: 5, wire.OpUpdateKeyDescription: 5,
		wire.OpUpdatePrimaryRegion: 5,
	} {
		p.Requests[Of(op)] = r
	}
	for _, name := range []string{"us-east-1", "us-west-2", "eu-west-1"} {
		p.region(name).Rates[Symmetric] = 100_000
	}
	for _, name := range []string{"us-east-2", "ap-southeast-1", "ap-southeast-2", "ap-northeast-1", "eu-central-1", "eu-west-2"} {
		p.region(name).Rates[Symmetric] = 20_000
	}
	p.region("cn-*").Rates = map[Class]Rate{PairRSA2048: 1, PairRSA3072: 0.5, PairRSA4096: 0.1}
	return p
}

var awsResources = Resources{
	Keys:              100_000,
	AliasesPerKey:     50,
	GrantsPerKey:      50_000,
	CustomKeyStores:   10,
	OnDemandRotations: 25,
	PolicyBytes:       32_768,
	TagsPerKey:        50,
}

// None returns the profile without request quotas. It lifts the number of keys
// and custom key stores too. What AWS does not raise for anybody, or what keeps
// the work on one key bounded, stays: tags, aliases, grants and on-demand
// rotations per key, and the size of a key policy.
func None() *Profile {
	r := awsResources
	r.Keys, r.CustomKeyStores = 0, 0
	return &Profile{Resources: r}
}

// region returns the entry of a region, making it if there is none.
func (p *Profile) region(name string) *Region {
	i, found := slices.BinarySearchFunc(p.Regions, name, func(r Region, name string) int { return strings.Compare(r.Name, name) })
	if !found {
		p.Regions = slices.Insert(p.Regions, i, Region{name, map[Class]Rate{}})
	}
	return &p.Regions[i]
}

// forget removes what is said of a class in single regions.
func (p *Profile) forget(c Class) {
	for _, r := range p.Regions {
		delete(r.Rates, c)
	}
	p.Regions = slices.DeleteFunc(p.Regions, func(r Region) bool { return len(r.Rates) == 0 })
}

// Rate returns the rate of a class in a region.
func (p *Profile) Rate(region string, c Class) Rate {
	rate, best := p.Requests[c], -1
	for _, r := range p.Regions {
		begin, open := strings.CutSuffix(r.Name, "*")
		length := len(begin)
		if !open {
			length = math.MaxInt
		}
		if length <= best || r.Name != region && !(open && strings.HasPrefix(region, begin)) {
			continue
		}
		if v, ok := r.Rates[c]; ok {
			rate, best = v, length
		}
	}
	return rate
}

// unlimited tells whether no class has a limit anywhere.
func (p *Profile) unlimited() bool {
	if p.Requests != [numClasses]Rate{} {
		return false
	}
	for _, r := range p.Regions {
		for _, rate := range r.Rates {
			if rate != 0 {
				return false
			}
		}
	}
	return true
}

func (r Rate) String() string {
	if r == 0 {
		return noLimit
	}
	return strconv.FormatFloat(float64(r), 'f', -1, 64)
}

// String returns the profile as a file that [Parse] reads as the same profile.
func (p *Profile) String() string {
	var b strings.Builder
	b.WriteString("base: none\n")
	if p.Requests != [numClasses]Rate{} {
		b.WriteString("\n# a second, per account and region\nrequests:\n")
	}
	for c := range p.Requests {
		if p.Requests[c] != 0 {
			fmt.Fprintf(&b, "  %s: %s\n", Class(c), p.Requests[c])
		}
	}
	if len(p.Regions) > 0 {
		b.WriteString("\nregions:\n")
	}
	for _, r := range p.Regions {
		fmt.Fprintf(&b, "  %s:\n", r.Name)
		for c := range Class(numClasses) {
			if rate, ok := r.Rates[c]; ok {
				fmt.Fprintf(&b, "    %s: %s\n", c, rate)
			}
		}
	}
	fmt.Fprintf(&b, "\n# a second, of each custom key store\ncustom-key-store: %s\n", p.CustomKeyStore)
	fmt.Fprintf(&b, "\n# requests on one key: a second, and at once\nper-key: %s\n", p.PerKey)
	if p.PerKey != 0 {
		fmt.Fprintf(&b, "per-key-burst: %d\n", p.PerKeyBurst)
	}
	b.WriteString("\nresources:\n")
	res := p.Resources
	for _, f := range resourceFields {
		value := noLimit
		if v := *f.field(&res); v != 0 {
			value = strconv.Itoa(v)
		}
		fmt.Fprintf(&b, "  %s: %s\n", f.name, value)
	}
	return b.String()
}
