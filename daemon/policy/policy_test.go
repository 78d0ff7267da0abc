package policy

import (
	"encoding/json"
	"errors"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"testing"
)

func TestWorkingSamples(t *testing.T) {
	for _, f := range samples(t, "working_*.json") {
		t.Run(filepath.Base(f), func(t *testing.T) {
			doc := read(t, f)
			if _, err := Parse(doc); err != nil {
				t.Error(err)
			}
			if !json.Valid([]byte(doc)) {
				t.Error("not JSON")
			}
		})
	}
}

// bustedTexts has the beginning of what each busted_*.json is answered with.
var bustedTexts = map[string]string{
	"json_empty":              "This policy contains invalid Json: a value is expected",
	"json_trailing":           "This policy contains invalid Json: text after the end",
	"json_comma":              "This policy contains invalid Json: a value is expected",
	"json_duplicate":          `This policy contains invalid Json: repeated member "Effect"`,
	"json_duplicate_escaped":  `This policy contains invalid Json: repeated member "Effect"`,
	"json_surrogate":          "This policy contains invalid Json: a lone surrogate",
	"json_surrogate_pair":     "This policy contains invalid Json: a lone surrogate",
	"json_escape":             "This policy contains invalid Json: a bad escape",
	"json_deep":               "This policy contains invalid Json: nesting too deep",
	"json_number":             "This policy contains invalid Json: a comma or } is expected",
	"json_newline":            "This policy contains invalid Json: a control character",
	"json_character":          "This policy contains invalid Json: a character outside",
	"json_bom":                "This policy contains invalid Json: a character outside",
	"not_object":              "Syntax errors in policy. the document must be a JSON object",
	"version":                 "The policy must contain a valid version string",
	"version_type":            "Syntax errors in policy. Version: a string is expected",
	"id_null":                 "Syntax errors in policy. Id: a string is expected",
	"element_case":            `Syntax errors in policy. unknown element "statement"`,
	"element_unknown":         `Syntax errors in policy. Statement[0]: unknown element "Conditions"`,
	"statement_missing":       "Missing required field Statement",
	"statement_empty":         "Syntax errors in policy. Statement: a policy has at least one",
	"statement_type":          "Syntax errors in policy. Statement[0]: a statement must be",
	"sid_type":                "Syntax errors in policy. Statement[0].Sid: a string is expected",
	"effect_missing":          "Missing required field Effect",
	"effect_case":             `Invalid effect: "allow"`,
	"principal_missing":       TextNoPrincipal,
	"principal_twice":         "Syntax errors in policy. Statement[0]: Principal and NotPrincipal exclude",
	"action_twice":            "Syntax errors in policy. Statement[0]: Action and NotAction exclude",
	"resource_twice":          "Syntax errors in policy. Statement[0]: Resource and NotResource exclude",
	"action_prefix":           "Actions/Conditions must be prefaced by a vendor",
	"action_empty":            "Actions/Conditions must be prefaced by a vendor",
	"action_space":            "Actions/Conditions must be prefaced by a vendor",
	"action_service_wildcard": "Actions/Conditions must be prefaced by a vendor",
	"action_type":             "Syntax errors in policy. Statement[0].Action: a string is expected",
	"resource_form":           `Resource "key/1" must be in ARN format or "*".`,
	"condition_type":          "Syntax errors in policy. Statement[0].Condition: a JSON object",
	"condition_operator":      `Invalid Condition type : "StringEqual"`,
	"condition_null_ifexists": `Invalid Condition type : "NullIfExists"`,
	"condition_set":           `Invalid Condition type : "ForSomeValues:StringEquals"`,
	"condition_key":           "Actions/Conditions must be prefaced by a vendor",
	"condition_keys_type":     "Syntax errors in policy. Statement[0].Condition.StringEquals: a JSON object",
	"condition_value":         "Syntax errors in policy. Statement[0].Condition.StringEquals: a condition value",
	"condition_value_null":    "Syntax errors in policy. Statement[0].Condition.StringEquals: a condition value",
}

func TestBustedSamples(t *testing.T) {
	files := samples(t, "busted_*.json")
	if len(files) != len(bustedTexts) {
		t.Errorf("%d files and %d texts", len(files), len(bustedTexts))
	}
	for _, f := range files {
		name := strings.TrimSuffix(strings.TrimPrefix(filepath.Base(f), "busted_"), ".json")
		t.Run(name, func(t *testing.T) {
			p, err := Parse(read(t, f))
			var e *Error
			if !errors.As(err, &e) || p != nil {
				t.Fatalf("policy %v, error %v", p, err)
			}
			if want, ok := bustedTexts[name]; !ok || !strings.HasPrefix(e.Text, want) {
				t.Errorf("text %q, want %q", e.Text, want)
			}
		})
	}
}

func TestSize(t *testing.T) {
	doc := Default("aws", "111122223333")
	full := doc + strings.Repeat(" ", MaxBytes-len(doc))
	if _, err := Parse(full); err != nil {
		t.Errorf("%d bytes: %v", len(full), err)
	}
	if _, err := Parse(full + " "); !errors.Is(err, ErrTooLarge) {
		t.Errorf("%d bytes: %v", len(full)+1, err)
	}
}

func TestDefault(t *testing.T) {
	p, err := Parse(Default("aws-cn", "111122223333"))
	if err != nil {
		t.Fatal(err)
	}
	want := &Policy{
		Version: "2012-10-17", ID: "key-default-1",
		Statements: []Statement{{
			SID: "Enable IAM User Permissions", Effect: Allow,
			Principals: PrincipalSet{Values: []Principal{{
				Kind: AWS, Value: "arn:aws-cn:iam::111122223333:root", Type: Account, Partition: "aws-cn", Account: "111122223333",
			}}},
			Actions: Patterns{Values: []string{"kms:*"}}, Resources: Patterns{Values: []string{"*"}},
		}},
	}
	if !reflect.DeepEqual(p, want) {
		t.Errorf("got  %+v\nwant %+v", p, want)
	}
}

func TestConditionsAreKept(t *testing.T) {
	p, err := Parse(read(t, "testdata/working_conditions.json"))
	if err != nil {
		t.Fatal(err)
	}
	want := []Condition{
		{Operator: "StringNotEquals", IfExists: true, Key: "kms:CallerAccount", Values: []string{"111122223333", "444455556666"}},
		{Operator: "StringLike", Set: ForAnyValue, Key: "kms:EncryptionContextKeys", Values: []string{"a*"}},
		{Operator: "StringLike", Set: ForAnyValue, Key: "kms:EncryptionContext:Department of X", Values: []string{"é"}},
		{Operator: "StringEqualsIgnoreCase", Set: ForAllValues, IfExists: true, Key: "aws:TagKeys", Values: []string{}},
		{Operator: "Null", Key: "aws:TokenIssueTime", Values: []string{"false"}},
		{Operator: "DateLessThan", Key: "aws:CurrentTime", Values: []string{"2030-01-01T00:00:00Z"}},
		{Operator: "NumericGreaterThanEquals", Key: "kms:RotationPeriodInDays", Values: []string{"-1.5e2"}},
		{Operator: "BinaryEquals", Key: "kms:x", Values: []string{"QmluYXJ5"}},
		{Operator: "NotIpAddress", Key: "aws:SourceIp", Values: []string{"192.0.2.0/24", "2001:db8::/32"}},
		{Operator: "ArnLike", IfExists: true, Key: "aws:SourceArn", Values: []string{"arn:aws:s3:*:*:${aws:username}"}},
	}
	if got := p.Statements[0].Conditions; !reflect.DeepEqual(got, want) {
		t.Errorf("got  %+v\nwant %+v", got, want)
	}
}

func TestEscapesAreDecoded(t *testing.T) {
	p, err := Parse(read(t, "testdata/working_escapes.json"))
	if err != nil {
		t.Fatal(err)
	}
	if s := p.Statements[0]; s.SID != "😀 \"\\/\b\f\n\r\t" || s.Effect != Allow || s.Principals.Values[0].Kind != Everyone {
		t.Errorf("%+v", s)
	}
}

func TestPrincipalForms(t *testing.T) {
	const a = "111122223333"
	for _, c := range []struct {
		member, value string
		ok            bool
		kind          PrincipalType
		name          string
	}{
		{"AWS", a, true, Account, ""},
		{"AWS", "11112222333", false, 0, ""},
		{"AWS", "1111222233334", false, 0, ""},
		{"AWS", "arn:aws:iam::" + a + ":root", true, Account, ""},
		{"AWS", "arn:aws:iam::" + a + ":root/", false, 0, ""},
		{"AWS", "arn:aws:iam::" + a + ":user/alice", true, User, "alice"},
		{"AWS", "arn:aws:iam::" + a + ":user/a/b/alice", true, User, "a/b/alice"},
		{"AWS", "arn:aws:iam::" + a + ":user//alice", false, 0, ""},
		{"AWS", "arn:aws:iam::" + a + ":user/a/", false, 0, ""},
		{"AWS", "arn:aws:iam::" + a + ":user", false, 0, ""},
		{"AWS", "arn:aws:iam::" + a + ":user/*", false, 0, ""},
		{"AWS", "arn:aws:iam::" + a + ":role/a*/x", false, 0, ""},
		{"AWS", "arn:aws:iam::" + a + ":role/app?", false, 0, ""},
		{"AWS", "arn:aws:iam::*:root", false, 0, ""},
		{"AWS", "arn:aws:iam::" + a + ":user/" + strings.Repeat("x", 64), true, User, strings.Repeat("x", 64)},
		{"AWS", "arn:aws:iam::" + a + ":user/" + strings.Repeat("x", 65), false, 0, ""},
		{"AWS", "arn:aws:iam::" + a + ":group/admins", false, 0, ""},
		{"AWS", "arn:aws:iam::" + a + ":role/r", true, Role, "r"},
		{"AWS", "arn:aws:iam:us-east-1:" + a + ":role/r", false, 0, ""},
		{"AWS", "arn:aws:sts::" + a + ":role/r", false, 0, ""},
		{"AWS", "arn:aws:sts::" + a + ":assumed-role/r/s", true, AssumedRole, "r/s"},
		{"AWS", "arn:aws:sts::" + a + ":assumed-role/r", false, 0, ""},
		{"AWS", "arn:aws:sts::" + a + ":assumed-role/r/s/t", false, 0, ""},
		{"AWS", "arn:aws:sts::" + a + ":federated-user/bob", true, FederatedUser, "bob"},
		{"AWS", "arn:azure:iam::" + a + ":root", false, 0, ""},
		{"AWS", "arn:aws:iam::" + a, false, 0, ""},
		{"AWS", "AIDAEXAMPLEEXAMPLE000", false, 0, ""},
		{"AWS", "alice", false, 0, ""},
		{"AWS", "", false, 0, ""},
		{"aws", a, false, 0, ""},
		{"Service", "s3.amazonaws.com", true, 0, ""},
		{"Service", "s3", false, 0, ""},
		{"Service", "*", false, 0, ""},
		{"Service", "*.amazonaws.com", false, 0, ""},
		{"Service", "S3.amazonaws.com", false, 0, ""},
		{"Federated", "accounts.google.com", true, 0, ""},
		{"Federated", "arn:aws:iam::" + a + ":saml-provider/x", true, 0, ""},
		{"Federated", "arn:aws:iam::" + a + ":user/x", false, 0, ""},
		{"CanonicalUser", strings.Repeat("0f", 32), true, 0, ""},
		{"CanonicalUser", strings.Repeat("0g", 32), false, 0, ""},
	} {
		p, err := Parse(`{"Statement":{"Effect":"Allow","Principal":{"` + c.member + `":["` + c.value + `"]}}}`)
		var e *Error
		switch {
		case !c.ok && (!errors.As(err, &e) || e.Text != TextInvalidPrincipals):
			t.Errorf("%s %q: error %v", c.member, c.value, err)
		case c.ok && err != nil:
			t.Errorf("%s %q: %v", c.member, c.value, err)
		case c.ok:
			got := slices.Collect(p.Principals())
			if len(got) != 1 || got[0].Value != c.value || got[0].Type != c.kind || got[0].Name != c.name {
				t.Errorf("%s %q: %+v", c.member, c.value, got)
			}
			if c.kind != 0 && got[0].Account != a {
				t.Errorf("%s %q: account %q", c.member, c.value, got[0].Account)
			}
		}
	}
}

func TestNoPrincipal(t *testing.T) {
	for _, v := range []string{`{}`, `{"AWS":[]}`, `{"AWS":[],"Service":[]}`} {
		var e *Error
		if _, err := Parse(`{"Statement":{"Effect":"Allow","Principal":` + v + `}}`); !errors.As(err, &e) || e.Text != TextNoPrincipal {
			t.Errorf("%s: %v", v, err)
		}
	}
}

func TestPrincipalsInOrder(t *testing.T) {
	p, err := Parse(read(t, "testdata/working_principals.json"))
	if err != nil {
		t.Fatal(err)
	}
	var kinds []PrincipalKind
	for pr := range p.Principals() {
		kinds = append(kinds, pr.Kind)
	}
	want := []PrincipalKind{Everyone, AWS, AWS, AWS, AWS, AWS, AWS, Service, Service, Federated, Federated, Federated, CanonicalUser, AWS}
	if !slices.Equal(kinds, want) {
		t.Errorf("got %v, want %v", kinds, want)
	}
	for range p.Principals() {
		break // an early end must be allowed
	}
}

func TestErrorNamesThePlace(t *testing.T) {
	_, err := Parse(`{"Statement":[{"Effect":"Deny","Principal":"*"},{"Effect":"Allow","Principal":{"AWS":["*","x"]}}]}`)
	var e *Error
	if !errors.As(err, &e) || e.Where != `Statement[1].Principal."AWS"` || !strings.Contains(err.Error(), e.Where) {
		t.Error(err)
	}
	// What an error repeats of the document is bounded.
	_, err = Parse(`{"` + strings.Repeat("é", 5000) + `":1}`)
	if !errors.As(err, &e) || len(e.Text) > 200 {
		t.Error(err)
	}
}

func samples(t *testing.T, pattern string) []string {
	files, err := filepath.Glob(filepath.Join("testdata", pattern))
	if err != nil || len(files) == 0 {
		t.Fatalf("%s: %d files, %v", pattern, len(files), err)
	}
	return files
}

func read(t *testing.T, file string) string {
	b, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}
