package fuzz

import (
	"os"
	"path/filepath"
	"reflect"
	"regexp"
	"strings"
	"testing"
	"time"

	"keymill/daemon/quota"
)

// FuzzQuotaProfile reads profile files: a refusal names a line, and what is
// accepted prints as a file that means the same, and makes a limiter that keeps
// its resource quotas within what the daemon can hold.
func FuzzQuotaProfile(f *testing.F) {
	files, err := filepath.Glob(filepath.Join("..", "daemon", "quota", "testdata", "*.yml"))
	if err != nil || len(files) == 0 {
		f.Fatalf("no sample files: %v", err)
	}
	for _, name := range files {
		b, err := os.ReadFile(name)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(b)
	}
	f.Add([]byte(quota.AWS().String()))
	f.Add([]byte(quota.None().String()))
	line := regexp.MustCompile(`^(yaml: .+|line [0-9]+: .+|and more|larger than .+)$`)
	start := time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)
	f.Fuzz(func(t *testing.T, text []byte) {
		p, err := quota.Parse(text)
		if err != nil {
			if p != nil {
				t.Fatal("a profile beside an error")
			}
			for _, l := range strings.Split(err.Error(), "\n") {
				if !line.MatchString(l) && !strings.HasPrefix(err.Error(), "yaml: ") {
					t.Fatalf("error %q says no line", l)
				}
			}
			return
		}
		again, err := quota.Parse([]byte(p.String()))
		if err != nil || !reflect.DeepEqual(again, p) {
			t.Fatalf("printed and read again: %v\n%s\n%s", err, p, again)
		}
		if r := p.Resources; r.TagsPerKey < 1 || r.TagsPerKey > 50 || r.PolicyBytes < 1 || r.PolicyBytes > 32768 || r.AliasesPerKey < 1 || r.OnDemandRotations < 1 || r.Keys < 0 {
			t.Fatalf("resources %+v", r)
		}
		l := quota.New(p, start)
		if b := l.NewKeyBucket(); !b.Take(1, start) {
			t.Fatal("a full bucket refuses one")
		}
		if !l.Account("111122223333", "eu-west-1").Take(quota.Symmetric, 1, start) {
			t.Fatal("a full bucket refuses one")
		}
	})
}
