package quota

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"
	"regexp"
	"strconv"
	"time"

	"go.yaml.in/yaml/v3"
)

// # The file
//
// A profile file changes one of the two built-in profiles:
//
//	base: aws            # or none; required, everything else is not
//	requests:            # a second, per account and region
//	  symmetric: 25000   # also rsa, ecc-sm2, ml-dsa
//	  RSA_4096: 0.5      # data key pairs, by KeyPairSpec
//	  CreateKey: none    # any other operation
//	regions:             # where it differs
//	  eu-west-1:
//	    symmetric: 50000
//	  cn-*:
//	    RSA_2048: 1
//	custom-key-store: 1800
//	per-key: 20000       # 0 is none, too
//	per-key-burst: 20000
//	resources:
//	  keys: 5000
//
// A rate is a number above zero, or none for no limit; a number of things is
// whole. What is said under requests holds in all regions, also where the base
// differs, but for what regions says.

// maxFile bounds a profile file. One that names everything has 3 KiB.
const maxFile = 64 << 10

// noLimit is how files and answers to people spell the absence of a limit.
const noLimit = "none"

// maxErrors bounds how many mistakes of a file are told at once.
const maxErrors = 20

// maxFill bounds how long a key's bucket takes to fill, as a burst that does not
// come back for a month is a mistake.
const maxFill = 30 * 24 * time.Hour

// Load returns the profile that an operator names: aws, none, or else the file.
func Load(name string) (*Profile, error) {
	switch name {
	case "aws":
		return AWS(), nil
	case noLimit:
		return None(), nil
	}
	f, err := os.Open(name)
	if err != nil {
		return nil, fmt.Errorf("quota profile (neither aws nor none, so a file): %w", err)
	}
	defer f.Close()
	text, err := io.ReadAll(io.LimitReader(f, maxFile+1))
	if err != nil {
		return nil, fmt.Errorf("quota profile: %w", err)
	}
	p, err := Parse(text)
	if err != nil {
		return nil, fmt.Errorf("quota profile %s: %w", name, err)
	}
	return p, nil
}

// Parse reads a profile file. Its errors name the line; several are joined.
func Parse(text []byte) (*Profile, error) {
	if len(text) > maxFile {
		return nil, fmt.Errorf("larger than %d bytes", maxFile)
	}
	dec := yaml.NewDecoder(bytes.NewReader(text))
	var doc yaml.Node
	if err := dec.Decode(&doc); errors.Is(err, io.EOF) {
		return nil, errors.New("line 1: nothing here; a profile begins with its base, aws or none")
	} else if err != nil {
		return nil, err
	}
	var more yaml.Node
	if err := dec.Decode(&more); err == nil {
		return nil, fmt.Errorf("line %d: a second document; a profile is one", more.Line)
	} else if !errors.Is(err, io.EOF) {
		return nil, err
	}
	r := &reader{}
	p := r.profile(doc.Content[0])
	if err := errors.Join(r.errs...); err != nil {
		return nil, err
	}
	return p, nil
}

// A reader turns YAML nodes into a profile and collects what is wrong.
type reader struct{ errs []error }

func (r *reader) bad(n *yaml.Node, format string, args ...any) {
	switch len(r.errs) {
	case maxErrors:
		r.errs = append(r.errs, errors.New("and more"))
	default:
		if len(r.errs) < maxErrors {
			r.errs = append(r.errs, fmt.Errorf("line %d: %s", n.Line, fmt.Sprintf(format, args...)))
		}
	}
}

// An entry is a line of a mapping.
type entry struct {
	key   *yaml.Node
	name  string
	value *yaml.Node
}

// entries returns the lines of a mapping, each name once.
func (r *reader) entries(n *yaml.Node, what string) []entry {
	if n.Kind != yaml.MappingNode {
		r.bad(n, "%s must be lines of the form \"name: value\"", what)
		return nil
	}
	if n.Anchor != "" {
		r.bad(n, "anchors are not taken")
	}
	first := map[string]int{}
	var list []entry
	for i := 0; i+1 < len(n.Content); i += 2 {
		k, v := n.Content[i], n.Content[i+1]
		name, ok := plain(k)
		if !ok || k.Tag != "!!str" {
			r.bad(k, "%s: a name must be plain text", what)
			continue
		}
		if line, twice := first[name]; twice {
			r.bad(k, "%s: %s stands twice, first in line %d", what, clip(name), line)
			continue
		}
		first[name] = k.Line
		list = append(list, entry{k, name, v})
	}
	return list
}

// plain returns the text of a scalar without anchor.
func plain(n *yaml.Node) (string, bool) {
	return n.Value, n.Kind == yaml.ScalarNode && n.Anchor == ""
}

func (r *reader) profile(n *yaml.Node) *Profile {
	top := r.entries(n, "a profile")
	var p *Profile
	for _, e := range top {
		if e.name == "base" {
			switch v, _ := plain(e.value); v {
			case "aws":
				p = AWS()
			case noLimit:
				p = None()
			default:
				r.bad(e.value, "base: must be aws or none")
				p = None()
			}
		}
	}
	if p == nil {
		r.bad(n, "no base; say base: aws or base: none")
		p = None()
	}

	// In this order, wherever they stand in the file: regions refine requests, and
	// the burst of a key follows from its rate unless it is given.
	find := func(name string) *yaml.Node {
		for _, e := range top {
			if e.name == name {
				return e.value
			}
		}
		return nil
	}
	if v := find("requests"); v != nil {
		r.rates(v, "requests", func(c Class, rate Rate) {
			p.Requests[c] = rate
			p.forget(c)
		})
	}
	if v := find("regions"); v != nil {
		r.regions(v, p)
	}
	if v := find("custom-key-store"); v != nil {
		p.CustomKeyStore = r.rate(v, "custom-key-store")
	}
	r.perKey(p, find("per-key"), find("per-key-burst"))
	if v := find("resources"); v != nil {
		r.resources(v, p)
	}

	for _, e := range top {
		switch e.name {
		case "base", "requests", "regions", "custom-key-store", "per-key", "per-key-burst", "resources":
		default:
			r.bad(e.key, "unknown name %s; the names are base, requests, regions, custom-key-store, per-key, per-key-burst and resources", clip(e.name))
		}
	}
	return p
}

// rates reads named rates.
func (r *reader) rates(n *yaml.Node, what string, set func(Class, Rate)) {
	for _, e := range r.entries(n, what) {
		c, ok := classes[e.name]
		if !ok {
			r.bad(e.key, "%s: unknown quota %s%s", what, clip(e.name), hint(e.name))
			continue
		}
		set(c, r.rate(e.value, what+": "+e.name))
	}
}

// regionForm is that of the service model, or the beginning of one and a star.
var regionForm = regexp.MustCompile(`^([a-z]+-){2,3}[0-9]+$|^([a-z]+-){1,3}\*$`)

func (r *reader) regions(n *yaml.Node, p *Profile) {
	for _, e := range r.entries(n, "regions") {
		if len(e.name) > 32 || !regionForm.MatchString(e.name) {
			r.bad(e.key, "regions: %s is no region; use a name such as us-east-1, or a beginning such as cn-*", clip(e.name))
			continue
		}
		r.rates(e.value, e.name, func(c Class, rate Rate) { p.region(e.name).Rates[c] = rate })
	}
}

func (r *reader) perKey(p *Profile, rate, burst *yaml.Node) {
	if rate != nil {
		if v, _ := plain(rate); v == "0" {
			p.PerKey = 0
		} else {
			p.PerKey = r.rate(rate, "per-key")
		}
		p.PerKeyBurst = defaultPerKeyBurst(p.PerKey)
	}
	where := rate
	if burst != nil {
		where = burst
		if p.PerKey == 0 {
			r.bad(burst, "per-key-burst: there is no limit per key to go with it; give per-key")
			return
		}
		p.PerKeyBurst = int64(r.count(burst, "per-key-burst", int(MaxRate)))
		if p.PerKeyBurst == 0 {
			r.bad(burst, "per-key-burst: none is no burst; give a number, or per-key: none")
			return
		}
	}
	if where != nil && float64(p.PerKeyBurst) > float64(p.PerKey)*maxFill.Seconds() && p.PerKey != 0 {
		r.bad(where, "per-key: at %s a second a burst of %d takes more than 30 days to come back; give a smaller per-key-burst", p.PerKey, p.PerKeyBurst)
	}
}

// resourceFields are the names of resource quotas, and how far each can go: what
// the daemon's own formats and answers are made for.
var resourceFields = []struct {
	name  string
	most  int // 0: may be none
	field func(*Resources) *int
}{
	{"keys", 0, func(r *Resources) *int { return &r.Keys }},
	{"aliases-per-key", 10_000, func(r *Resources) *int { return &r.AliasesPerKey }},
	{"grants-per-key", 0, func(r *Resources) *int { return &r.GrantsPerKey }},
	{"custom-key-stores", 0, func(r *Resources) *int { return &r.CustomKeyStores }},
	{"on-demand-rotations", 1000, func(r *Resources) *int { return &r.OnDemandRotations }},
	{"policy-bytes", 32_768, func(r *Resources) *int { return &r.PolicyBytes }},
	{"tags-per-key", 50, func(r *Resources) *int { return &r.TagsPerKey }},
}

func (r *reader) resources(n *yaml.Node, p *Profile) {
next:
	for _, e := range r.entries(n, "resources") {
		for _, f := range resourceFields {
			if f.name != e.name {
				continue
			}
			what := "resources: " + f.name
			if v, _ := plain(e.value); v == noLimit && f.most > 0 {
				r.bad(e.value, "%s: cannot be none; the most is %d", what, f.most)
				continue next
			}
			most := f.most
			if most == 0 {
				most = 1_000_000_000
			}
			*f.field(&p.Resources) = r.count(e.value, what, most)
			continue next
		}
		r.bad(e.key, "resources: unknown quota %s; the names are keys, aliases-per-key, grants-per-key, custom-key-stores, on-demand-rotations, policy-bytes and tags-per-key", clip(e.name))
	}
}

// Numbers are written as people do: no exponents, hexadecimals or underscores,
// and no leading zeros, which YAML takes for octal.
var (
	rateForm  = regexp.MustCompile(`^(0|[1-9][0-9]*)(\.[0-9]+)?$`)
	countForm = regexp.MustCompile(`^(0|[1-9][0-9]*)$`)
	lessForm  = regexp.MustCompile(`^-[0-9.]+$`)
)

// maxDigits bounds the text of a number.
const maxDigits = 24

// rate reads a rate: 0 for none, which is also what it returns after an error.
func (r *reader) rate(n *yaml.Node, what string) Rate {
	text, ok := r.number(n, what, rateForm, "a number such as 5 or 0.5")
	if !ok {
		return 0
	}
	v, err := strconv.ParseFloat(text, 64)
	if rate := Rate(v); err == nil && rate >= MinRate && rate <= MaxRate {
		return rate
	}
	r.bad(n, "%s: %s is out of bounds; a rate is from %s to %s a second, or none", what, text, MinRate, MaxRate)
	return 0
}

// count reads a number of things: 0 for none, which is also what it returns after
// an error.
func (r *reader) count(n *yaml.Node, what string, most int) int {
	text, ok := r.number(n, what, countForm, "a whole number")
	if !ok {
		return 0
	}
	v, err := strconv.Atoi(text)
	if err == nil && v <= most {
		return v
	}
	r.bad(n, "%s: %s is too many; the most is %d", what, text, most)
	return 0
}

// number returns the text of a number above zero; ok is false for none too.
func (r *reader) number(n *yaml.Node, what string, form *regexp.Regexp, needs string) (text string, ok bool) {
	text, ok = plain(n)
	switch {
	case !ok, n.Style&^yaml.FlowStyle != 0, len(text) > maxDigits:
		r.bad(n, "%s: must be %s, or none", what, needs)
	case text == noLimit:
	case text == "0":
		r.bad(n, "%s: 0 could be read as nothing allowed or as no limit; write none for no limit", what)
	case lessForm.MatchString(text):
		r.bad(n, "%s: %s is negative; it must be %s, or none", what, text, needs)
	case !form.MatchString(text):
		r.bad(n, "%s: %s is not %s, nor none", what, clip(text), needs)
	default:
		return text, true
	}
	return "", false
}

// clip quotes what a file says, bounded.
func clip(s string) string {
	if len(s) > 64 {
		s = s[:64] + "..."
	}
	return strconv.Quote(s)
}
