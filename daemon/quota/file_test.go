package quota

import (
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"

	"keymill/daemon/wire"
)

// busted says what each refused sample is told; the first line of testdata it is
// about is part of it.
var busted = map[string][]string{
	"empty":             {"line 1: nothing here"},
	"comment_only":      {"line 1: nothing here"},
	"no_base":           {"line 1: no base"},
	"base_unknown":      {"line 2: base: must be aws or none"},
	"base_list":         {"line 1: base: must be aws or none"},
	"not_a_mapping":     {"line 1: a profile must be lines"},
	"syntax":            {"yaml: line "},
	"tab":               {"line 3"},
	"two_documents":     {"line 2: a second document"},
	"unknown_name":      {`line 3: unknown name "request"`},
	"unknown_quota":     {`line 4: requests: unknown quota "CreateKye"`},
	"quota_case":        {`line 3: requests: unknown quota "createkey"; did you mean CreateKey?`},
	"shared_operation":  {`line 3: requests: unknown quota "Encrypt"; it counts in symmetric, rsa`},
	"pair_operation":    {`line 3: requests: unknown quota "GenerateDataKeyPair"; it has a quota for each KeyPairSpec`},
	"random_operation":  {`line 3: requests: unknown quota "GenerateRandom"; it counts in symmetric`},
	"unknown_resource":  {`line 3: resources: unknown quota "key"`, "aliases-per-key"},
	"negative":          {"line 3: requests: symmetric: -5 is negative"},
	"negative_fraction": {"line 4: eu-west-1: RSA_2048: -0.5 is negative"},
	"negative_resource": {"line 3: resources: keys: -1 is negative"},
	"negative_key":      {"line 2: per-key: -1 is negative"},
	"zero":              {"line 3: requests: symmetric: 0 could be read", "none"},
	"zero_fraction":     {"line 3: requests: symmetric: 0.0 is out of bounds"},
	"zero_resource":     {"line 3: resources: keys: 0 could be read"},
	"text":              {`line 3: requests: symmetric: "many" is not a number`},
	"quoted":            {"line 3: requests: symmetric: must be a number"},
	"tagged":            {"line 3: requests: symmetric: must be a number"},
	"null":              {`line 3: requests: symmetric: "" is not a number`},
	"bool":              {`line 3: requests: symmetric: "true" is not a number`},
	"infinite":          {`line 3: requests: symmetric: ".inf" is not a number`},
	"nan":               {`line 3: requests: symmetric: ".nan" is not a number`},
	"exponent":          {`line 3: requests: symmetric: "1e3" is not a number`},
	"hexadecimal":       {`line 3: requests: symmetric: "0x10" is not a number`},
	"underscore":        {`line 3: requests: symmetric: "10_000" is not a number`},
	"octal":             {`line 3: requests: symmetric: "010" is not a number`},
	"unit":              {`line 3: requests: symmetric: "5/s" is not a number`},
	"digits":            {"line 3: requests: symmetric: must be a number"},
	"too_fast":          {"line 3: requests: symmetric: 10000001 is out of bounds; a rate is from 0.001 to 10000000"},
	"too_slow":          {"line 3: requests: symmetric: 0.0001 is out of bounds"},
	"rate_list":         {"line 3: requests: symmetric: must be a number"},
	"rates_text":        {"line 2: requests must be lines"},
	"duplicate":         {`line 5: requests: "symmetric" stands twice, first in line 3`},
	"duplicate_top":     {`line 3: a profile: "per-key" stands twice, first in line 2`},
	"duplicate_base":    {`line 2: a profile: "base" stands twice, first in line 1`},
	"duplicate_region":  {`line 4: regions: "eu-west-1" stands twice, first in line 3`},
	"anchor":            {"line 3: requests: symmetric: must be a number"},
	"alias":             {"anchors are not taken", "line 5: eu-west-1 must be lines"},
	"merge":             {"line 3: requests: a name must be plain text"},
	"number_key":        {"line 3: requests: a name must be plain text"},
	"region":            {`line 3: regions: "mars" is no region`},
	"region_star":       {`line 3: regions: "*" is no region`},
	"fraction_of_keys":  {`line 3: resources: keys: "1.5" is not a whole number`},
	"too_many_tags":     {"line 3: resources: tags-per-key: 51 is too many; the most is 50"},
	"no_policy_bound":   {"line 3: resources: policy-bytes: cannot be none"},
	"too_many_keys":     {"line 3: resources: keys: 99999999999999999999 is too many"},
	"key_burst_alone":   {"line 2: per-key-burst: there is no limit per key"},
	"key_burst_none":    {"line 2: per-key-burst: none is no burst"},
	"key_burst_zero":    {"line 2: per-key-burst: 0 could be read"},
	"key_burst_month":   {"line 2: per-key: at 0.001 a second a burst of 10000 takes more than 30 days"},
	"several":           {"line 3: ", "line 4: ", "line 6: "},
}

func samples(t *testing.T, pattern string) map[string]string {
	t.Helper()
	files, err := filepath.Glob(filepath.Join("testdata", pattern))
	if err != nil || len(files) == 0 {
		t.Fatalf("no samples: %v", err)
	}
	m := map[string]string{}
	for _, f := range files {
		m[strings.TrimSuffix(filepath.Base(f), ".yml")] = f
	}
	return m
}

func TestBustedSamples(t *testing.T) {
	files := samples(t, "busted_*.yml")
	for name := range busted {
		if files["busted_"+name] == "" {
			t.Errorf("no sample busted_%s.yml", name)
		}
	}
	for name, file := range files {
		t.Run(name, func(t *testing.T) {
			want := busted[strings.TrimPrefix(name, "busted_")]
			if want == nil {
				t.Fatal("nothing is said of this sample")
			}
			p, err := Load(file)
			if err == nil || p != nil {
				t.Fatalf("accepted: %v\n%s", err, p)
			}
			for _, part := range append(want, file) {
				if !strings.Contains(err.Error(), part) {
					t.Errorf("%q does not say %q", err, part)
				}
			}
		})
	}
}

// working makes the profile that each accepted sample means.
var working = map[string]func() *Profile{
	"base_only": AWS,
	"none":      None,
	"key_zero": func() *Profile {
		p := AWS()
		p.PerKey, p.PerKeyBurst = 0, 0
		return p
	},
	"order": func() *Profile {
		p := None()
		p.Requests[Symmetric] = 3
		p.Regions = []Region{{"us-east-1", map[Class]Rate{Symmetric: 7}}}
		p.PerKey, p.PerKeyBurst = 2, 5
		return p
	},
	"everything": func() *Profile {
		p := AWS()
		for c, r := range map[Class]Rate{
			Symmetric: 25_000, RSA: 250.5, ECC: 2000, MLDSA: 0, PairRSA4096: 0.5, PairSM2: 3,
			Of(wire.OpCreateKey): 0, Of(wire.OpReplicateKey): 2,
		} {
			p.Requests[c] = r
		}
		// What is said under requests replaces what the base says of regions.
		p.Regions = []Region{
			{"cn-*", map[Class]Rate{PairRSA2048: 1, PairRSA3072: 0.5}},
			{"eu-west-1", map[Class]Rate{Symmetric: 50_000}},
			{"us-gov-*", map[Class]Rate{Symmetric: 0, Of(wire.OpCreateKey): 7}},
		}
		p.CustomKeyStore, p.PerKey, p.PerKeyBurst = 500, 20_000, 60_000
		p.Resources = Resources{5000, 60, 0, 2, 1000, 1024, 49}
		return p
	},
}

func TestWorkingSamples(t *testing.T) {
	files := samples(t, "working_*.yml")
	if len(files) != len(working) {
		t.Errorf("%d samples, %d known", len(files), len(working))
	}
	for name, want := range working {
		t.Run(name, func(t *testing.T) {
			p, err := Load(files["working_"+name])
			if err != nil {
				t.Fatal(err)
			}
			same(t, p, want())
			again, err := Parse([]byte(p.String()))
			if err != nil {
				t.Fatalf("%v\n%s", err, p)
			}
			same(t, again, p)
		})
	}
}

func same(t *testing.T, got, want *Profile) {
	t.Helper()
	if !reflect.DeepEqual(got, want) {
		t.Errorf("got\n%s\nwant\n%s", got, want)
	}
}

func TestLoad(t *testing.T) {
	for name, want := range map[string]*Profile{"aws": AWS(), "none": None()} {
		p, err := Load(name)
		if err != nil {
			t.Fatal(err)
		}
		same(t, p, want)
	}
	dir := t.TempDir()
	if _, err := Load(filepath.Join(dir, "quotas.yml")); err == nil || !strings.Contains(err.Error(), "quotas.yml") || !strings.Contains(err.Error(), "neither aws nor none") {
		t.Errorf("a missing file: %v", err)
	}
	big := filepath.Join(dir, "big.yml")
	for size, ok := range map[int]bool{maxFile: true, maxFile + 1: false} {
		text := "base: aws\n#" + strings.Repeat("x", size-len("base: aws\n#"))
		if err := os.WriteFile(big, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		if _, err := Load(big); (err == nil) != ok {
			t.Errorf("%d bytes: %v", size, err)
		}
	}
}

// A limit per key lets a whole bulk request through, unless told otherwise.
func TestPerKeyBurst(t *testing.T) {
	for text, want := range map[string]int64{
		"per-key: 100":                      10_000,
		"per-key: 70000":                    70_000,
		"per-key: none":                     0,
		"per-key-burst: 3":                  3, // of the base's rate
		"per-key: 0.5\nper-key-burst: 2":    2,
		"per-key: 100\nper-key-burst: 1000": 1000,
	} {
		p, err := Parse([]byte("base: aws\n" + text))
		if err != nil {
			t.Fatal(err)
		}
		if p.PerKeyBurst != want {
			t.Errorf("%q: burst %d, want %d", text, p.PerKeyBurst, want)
		}
	}
}

// A file full of mistakes is told the first ones.
func TestErrorsAreBounded(t *testing.T) {
	var b strings.Builder
	b.WriteString("base: aws\nrequests:\n")
	for i := range 3000 {
		b.WriteString("  x" + strings.Repeat("y", i%9) + string(rune('a'+i%26)) + string(rune('a'+i/26%26)) + ": 1\n")
	}
	_, err := Parse([]byte(b.String()))
	if err == nil || strings.Count(err.Error(), "\n") != maxErrors || !strings.HasSuffix(err.Error(), "and more") {
		t.Errorf("%v", err)
	}
}
