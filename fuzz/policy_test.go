package fuzz

import (
	"bytes"
	"encoding/json"
	"errors"
	"os"
	"path/filepath"
	"reflect"
	"testing"

	"keymill/daemon/policy"
)

// FuzzPolicyParse holds the policy reader against encoding/json: what it accepts
// is JSON, names the same elements, and reads the same without white space.
func FuzzPolicyParse(f *testing.F) {
	f.Add(policy.Default("aws", "111122223333"))
	files, err := filepath.Glob(filepath.Join("..", "daemon", "policy", "testdata", "*.json"))
	if err != nil || len(files) == 0 {
		f.Fatalf("no sample documents: %v", err)
	}
	for _, name := range files {
		b, err := os.ReadFile(name)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(string(b))
	}
	f.Fuzz(func(t *testing.T, doc string) {
		p, err := policy.Parse(doc)
		if err != nil {
			var e *policy.Error
			if !errors.As(err, &e) || e.Text == "" || p != nil {
				t.Fatalf("policy %v, error %#v", p, err)
			}
			return
		}
		comparePlain(t, p, doc)

		var compact bytes.Buffer
		if err := json.Compact(&compact, []byte(doc)); err != nil {
			t.Fatal(err)
		}
		again, err := policy.Parse(compact.String())
		if err != nil || !reflect.DeepEqual(again, p) {
			t.Fatalf("without white space: %v\n%+v\n%+v", err, again, p)
		}

		for pr := range p.Principals() {
			if pr.Kind == 0 || pr.Value == "" || (pr.Kind == policy.AWS) != (pr.Type != 0) {
				t.Fatalf("principal %+v", pr)
			}
			p.AllowsUpdate(pr.Account, pr.Partition, []string{pr.Value})
		}
		// Nobody can be allowed by a policy that allows nothing.
		caller := []string{"arn:aws:iam::111122223333:root"}
		if p.AllowsUpdate("111122223333", "aws", caller) {
			for i := range p.Statements {
				if p.Statements[i].Effect == policy.Allow {
					return
				}
			}
			t.Fatal("allowed without an Allow")
		}
	})
}

// comparePlain reads the document into maps and compares what they show.
func comparePlain(t *testing.T, p *policy.Policy, doc string) {
	var plain map[string]any
	if err := json.Unmarshal([]byte(doc), &plain); err != nil {
		t.Fatalf("accepted what is not JSON: %v", err)
	}
	list, ok := plain["Statement"].([]any)
	if !ok {
		list = []any{plain["Statement"]}
	}
	if len(list) != len(p.Statements) {
		t.Fatalf("%d statements, want %d", len(p.Statements), len(list))
	}
	for i, s := range p.Statements {
		m := list[i].(map[string]any)
		effect := map[policy.Effect]string{policy.Allow: "Allow", policy.Deny: "Deny"}[s.Effect]
		if sid, _ := m["Sid"].(string); m["Effect"] != effect || sid != s.SID {
			t.Fatalf("statement %d: %+v, want %v", i, s, m)
		}
		for _, e := range []struct {
			name string
			got  policy.Patterns
		}{{"Action", s.Actions}, {"Resource", s.Resources}} {
			name := e.name
			if e.got.Not {
				name = "Not" + name
			}
			if want := stringsOf(m[name]); len(want)+len(e.got.Values) > 0 && !reflect.DeepEqual(want, e.got.Values) {
				t.Fatalf("statement %d %s: %q, want %q", i, name, e.got.Values, want)
			}
		}
		conditions := 0
		operators, _ := m["Condition"].(map[string]any)
		for _, keys := range operators {
			conditions += len(keys.(map[string]any))
		}
		if conditions != len(s.Conditions) {
			t.Fatalf("statement %d: %d conditions, want %d", i, len(s.Conditions), conditions)
		}
	}
}

// stringsOf makes a list of a string, or of a list of strings.
func stringsOf(v any) []string {
	var all []string
	switch v := v.(type) {
	case string:
		all = append(all, v)
	case []any:
		for _, e := range v {
			all = append(all, e.(string))
		}
	}
	return all
}
