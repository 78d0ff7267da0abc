package policy

import (
	"regexp"
	"strings"
	"testing"
)

const (
	own     = "111122223333"
	foreign = "444455556666"
	root    = "arn:aws:iam::111122223333:root"
	alice   = "arn:aws:iam::111122223333:user/alice"
	role    = "arn:aws:iam::111122223333:role/admin"
	session = "arn:aws:sts::111122223333:assumed-role/admin/s1"
	keyARN  = "arn:aws:kms:us-east-1:111122223333:key/1234abcd-12ab-34cd-56ef-1234567890ab"
)

// stmt writes a statement; rest replaces the usual Action and Resource.
func stmt(effect, principal, rest string) string {
	if rest == "" {
		rest = `"Action":"kms:*","Resource":"*"`
	}
	if strings.HasPrefix(principal, "arn:") {
		principal = `"Principal":{"AWS":"` + principal + `"}`
	}
	return `{"Effect":"` + effect + `",` + principal + `,` + rest + `}`
}

func TestAllowsUpdate(t *testing.T) {
	rootOnly, user, sess := []string{root}, []string{alice}, []string{session, role}
	everyone := `"Principal":"*"`
	allowRoot := stmt("Allow", root, "")
	for _, c := range []struct {
		name   string
		doc    string
		caller []string
		want   bool
	}{
		{"root by delegation", allowRoot, rootOnly, true},
		{"user by delegation", allowRoot, user, true},
		{"session by delegation", allowRoot, sess, true},
		{"account as digits", stmt("Allow", `"Principal":{"AWS":"`+own+`"}`, ""), rootOnly, true},
		{"another account", stmt("Allow", "arn:aws:iam::"+foreign+":root", ""), rootOnly, false},
		{"another partition", stmt("Allow", "arn:aws-cn:iam::"+own+":root", ""), rootOnly, false},
		{"foreign caller by delegation", allowRoot, []string{"arn:aws:iam::" + foreign + ":user/eve"}, false},
		{"no caller", allowRoot, nil, false},
		{"user by name", stmt("Allow", alice, ""), user, true},
		{"user's name in another case", stmt("Allow", "arn:aws:iam::111122223333:user/Alice", ""), user, false},
		{"root is not a user", stmt("Allow", alice, ""), rootOnly, false},
		{"session by its role", stmt("Allow", role, ""), sess, true},
		{"session by name", stmt("Allow", session, ""), sess, true},
		{"role's session of another name", stmt("Allow", session+"x", ""), sess, false},
		{"everyone", stmt("Allow", everyone, ""), user, true},
		{"everyone as AWS", stmt("Allow", `"Principal":{"AWS":"*"}`, ""), user, true},
		{"a service", stmt("Allow", `"Principal":{"Service":"s3.amazonaws.com"}`, ""), rootOnly, false},

		{"action spelt out", stmt("Allow", root, `"Action":["kms:Encrypt","KMS:putkeypolicy"],"Resource":"*"`), rootOnly, true},
		{"action by wildcards", stmt("Allow", root, `"Action":"kms:P?t*Policy","Resource":"*"`), rootOnly, true},
		{"action star", stmt("Allow", root, `"Action":"*","Resource":"*"`), rootOnly, true},
		{"any service", stmt("Allow", root, `"Action":"*:*","Resource":"*"`), rootOnly, true},
		{"other actions", stmt("Allow", root, `"Action":["kms:PutKeyPolic","kms:Encrypt","s3:*"],"Resource":"*"`), rootOnly, false},
		{"not action", stmt("Allow", root, `"NotAction":"kms:Encrypt","Resource":"*"`), rootOnly, true},
		{"not this action", stmt("Allow", root, `"NotAction":"kms:Put*","Resource":"*"`), rootOnly, false},
		{"no action", stmt("Allow", root, `"Resource":"*"`), rootOnly, false},
		{"empty not action", stmt("Allow", root, `"NotAction":[],"Resource":"*"`), rootOnly, false},
		{"no resource", stmt("Allow", root, `"Action":"kms:*"`), rootOnly, false},

		{"key's ARN", stmt("Allow", root, `"Action":"kms:*","Resource":"`+keyARN+`"`), rootOnly, true},
		{"pattern of the key's ARN", stmt("Allow", root, `"Action":"kms:*","Resource":"arn:aws:kms:*:`+own+`:key/*"`), rootOnly, true},
		{"another key's ARN", stmt("Allow", root, `"Action":"kms:*","Resource":"`+keyARN+`0"`), rootOnly, false},
		{"not resource", stmt("Allow", root, `"Action":"kms:*","NotResource":"`+keyARN+`"`), rootOnly, false},
		{"not another resource", stmt("Allow", root, `"Action":"kms:*","NotResource":"`+keyARN+`0"`), rootOnly, true},
		{"variable in the resource", stmt("Allow", root, `"Action":"kms:*","Resource":"arn:aws:kms:us-east-1:${aws:PrincipalAccount}:key/*"`), rootOnly, false},

		{"conditional allow", stmt("Allow", root, `"Action":"kms:*","Resource":"*","Condition":{"Bool":{"aws:SecureTransport":"true"}}`), rootOnly, false},
		{"empty condition", stmt("Allow", root, `"Action":"kms:*","Resource":"*","Condition":{}`), rootOnly, true},
		{"conditional deny", allowRoot + "," + stmt("Deny", everyone, `"Action":"kms:*","Resource":"*","Condition":{"Bool":{"aws:SecureTransport":"false"}}`), rootOnly, true},

		{"deny after allow", allowRoot + "," + stmt("Deny", root, ""), rootOnly, false},
		{"deny before allow", stmt("Deny", root, "") + "," + allowRoot, rootOnly, false},
		{"deny of everyone", allowRoot + "," + stmt("Deny", everyone, ""), user, false},
		{"deny of the account hits its users", stmt("Allow", alice, "") + "," + stmt("Deny", root, ""), user, false},
		{"deny of another", allowRoot + "," + stmt("Deny", alice, ""), rootOnly, true},
		{"deny of the role hits its session", allowRoot + "," + stmt("Deny", role, ""), sess, false},
		{"deny of another action", allowRoot + "," + stmt("Deny", everyone, `"Action":"kms:ScheduleKeyDeletion","Resource":"*"`), rootOnly, true},
		{"deny without resource", allowRoot + "," + stmt("Deny", everyone, `"Action":"kms:*"`), rootOnly, true},

		{"allow all but another", stmt("Allow", `"NotPrincipal":{"AWS":"`+alice+`"}`, ""), rootOnly, true},
		{"allow all but me", stmt("Allow", `"NotPrincipal":{"AWS":"`+alice+`"}`, ""), user, false},
		{"deny all but root", allowRoot + "," + stmt("Deny", `"NotPrincipal":{"AWS":"`+root+`"}`, ""), rootOnly, true},
		{"deny all but root hits a user", allowRoot + "," + stmt("Deny", `"NotPrincipal":{"AWS":"`+root+`"}`, ""), user, false},
		{"deny all but user forgets the account", allowRoot + "," + stmt("Deny", `"NotPrincipal":{"AWS":"`+alice+`"}`, ""), user, false},
		{"deny all but user and account", allowRoot + "," + stmt("Deny", `"NotPrincipal":{"AWS":["`+alice+`","`+own+`"]}`, ""), user, true},
		{"deny all but role forgets the session", allowRoot + "," + stmt("Deny", `"NotPrincipal":{"AWS":["`+role+`","`+own+`"]}`, ""), sess, false},
		{"deny all but role and session", allowRoot + "," + stmt("Deny", `"NotPrincipal":{"AWS":["`+role+`","`+session+`","`+own+`"]}`, ""), sess, true},
		{"deny nobody", allowRoot + "," + stmt("Deny", `"NotPrincipal":"*"`, ""), user, true},
	} {
		t.Run(c.name, func(t *testing.T) {
			p, err := Parse(`{"Version":"2012-10-17","Statement":[` + c.doc + `]}`)
			if err != nil {
				t.Fatal(err)
			}
			if got := p.AllowsUpdateOf(keyARN, own, "aws", c.caller); got != c.want {
				t.Errorf("got %v, want %v", got, c.want)
			}
		})
	}
}

func TestAllowsUpdateOfUnknownKey(t *testing.T) {
	for resource, want := range map[string]bool{"*": true, keyARN: false, "arn:aws:kms:*:*:key/*": false} {
		p, err := Parse(`{"Statement":` + stmt("Allow", root, `"Action":"kms:*","Resource":"`+resource+`"`) + `}`)
		if err != nil {
			t.Fatal(err)
		}
		if got := p.AllowsUpdate(own, "aws", []string{root}); got != want {
			t.Errorf("%s: got %v, want %v", resource, got, want)
		}
	}
}

// The matcher is compared with a regular expression on every short pattern.
func TestGlob(t *testing.T) {
	words := func(alphabet string, n int) []string {
		all, last := []string{""}, []string{""}
		for range n {
			var next []string
			for _, w := range last {
				for _, c := range alphabet {
					next = append(next, w+string(c))
				}
			}
			all, last = append(all, next...), next
		}
		return all
	}
	subjects := words("ab", 5)
	for _, pattern := range words("ab*?", 4) {
		re := regexp.MustCompile(`^` + strings.NewReplacer("*", ".*", "?", ".").Replace(pattern) + `$`)
		for _, s := range subjects {
			if got, want := glob(pattern, s), re.MatchString(s); got != want {
				t.Fatalf("glob(%q, %q) = %v", pattern, s, got)
			}
		}
	}
}
