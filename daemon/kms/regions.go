package kms

import (
	"fmt"
	"slices"
	"strings"

	"keymill/keystore"
)

// AllRegions in Config.Regions serves every well-formed region name.
const AllRegions = "all"

// maxInterned bounds the region names kept when every region is served; past
// it a name costs its requests an allocation, nothing else.
const maxInterned = 256

// Regions is the set of regions this daemon serves. A region is a namespace.
// It is immutable but for the interned names of "all"; safe for concurrent use.
type Regions struct {
	list  []string
	all   bool
	names *keystore.Cache[string, string] // interned names when all
}

// NewRegions builds the set: home is served always, others is a list of region
// names or the one word "all".
func NewRegions(home string, others []string) (*Regions, error) {
	r := &Regions{}
	for _, name := range append([]string{home}, others...) {
		if name == AllRegions && name != home {
			r.all = true
			continue
		}
		if !validRegion(name) {
			return nil, fmt.Errorf("region %q is not a region name: use one like us-east-1", name)
		}
		if !slices.Contains(r.list, name) {
			r.list = append(r.list, name)
		}
	}
	if r.all {
		r.names = keystore.NewCache[string, string](maxInterned, nil)
	}
	return r, nil
}

// Intern returns the served region that name spells, as a string that outlives
// the request. ok is false for a region that is not served.
func (r *Regions) Intern(name []byte) (region string, ok bool) {
	for _, s := range r.list {
		if s == string(name) {
			return s, true
		}
	}
	if !r.all || !validRegion(string(name)) {
		return "", false
	}
	kept, err := r.names.Load(string(name), func() (*string, error) {
		s := string(name)
		return &s, nil
	})
	if err != nil {
		return "", false
	}
	return *kept, true
}

// List names the regions for people; "all" is in it when every region is served.
func (r *Regions) List() []string {
	if r.all {
		return []string{AllRegions}
	}
	return r.list
}

// validRegion tells whether name has the form of the service model,
// ([a-z]+-){2,3}\d+, within its 32 characters.
func validRegion(name string) bool {
	if len(name) > 32 {
		return false
	}
	parts := strings.Split(name, "-")
	if len(parts) != 3 && len(parts) != 4 {
		return false
	}
	for i, p := range parts {
		low, high := byte('a'), byte('z')
		if i == len(parts)-1 {
			low, high = '0', '9'
		}
		if p == "" || strings.IndexFunc(p, func(c rune) bool { return c < rune(low) || c > rune(high) }) >= 0 {
			return false
		}
	}
	return true
}

// partitions maps the prefix of a region's name to its partition; everything
// else is in "aws" (IAM User Guide, Amazon Resource Names).
var partitions = []struct{ prefix, partition string }{
	{"cn-", "aws-cn"},
	{"us-gov-", "aws-us-gov"},
	{"us-isob-", "aws-iso-b"},
	{"us-isof-", "aws-iso-f"},
	{"us-iso-", "aws-iso"},
	{"eu-isoe-", "aws-iso-e"},
	{"eusc-", "aws-eusc"},
}

// Partition returns the partition that a region's ARNs are in.
func Partition(region string) string {
	for _, p := range partitions {
		if strings.HasPrefix(region, p.prefix) {
			return p.partition
		}
	}
	return "aws"
}
