package policy

import (
	"slices"
	"strings"
)

// updateAction is what the lockout check asks for.
const updateAction = "kms:PutKeyPolicy"

// AllowsUpdate is the lockout safety check for a key whose ARN is not known
// yet: see [Policy.AllowsUpdateOf]. Only a resource of "*" is then the key.
func (p *Policy) AllowsUpdate(account, partition string, caller []string) bool {
	return p.AllowsUpdateOf("", account, partition, caller)
}

// AllowsUpdateOf is the lockout safety check: under this policy, could the caller
// change the policy of the key again? The operations that store a policy refuse
// it with [TextLockout] when the answer is no, unless told to skip the check.
//
// Account and partition are the key's owner. Caller is every name of the one who
// asks: the ARN of root or a user; for a session of a role, the session's ARN and
// the role's. A caller from elsewhere cannot be helped by the delegation to the
// account.
//
// The answer is yes when a statement allows kms:PutKeyPolicy to the caller by
// name, to everyone, or to the account, and none denies it.
//
//   - The account stands for its root user and for its identity policies. The
//     latter are not this package's: a caller who is not root must, in
//     addition, be allowed by them where the account is the only way in. As a
//     denial, the account means everybody in it.
//   - A denial with NotPrincipal spares a caller only if all of its names and its
//     account are listed, as in IAM. A permission with NotPrincipal is for
//     those of whom none is listed.
//   - AWS evaluates conditions on the request at hand. Without that evaluation an
//     Allow under a condition does not count, so that a key is never lost to a
//     condition that will not hold tomorrow, and a Deny under a condition is not
//     held against the policy, since such statements are common ("unless over
//     TLS") and mostly not meant for the caller. So a policy that AWS accepts
//     for a conditional permission alone is refused here; the caller can say
//     BypassPolicyLockoutSafetyCheck.
//   - A resource with a policy variable does not match.
func (p *Policy) AllowsUpdateOf(keyARN, account, partition string, caller []string) bool {
	who := newIdentity(account, partition, caller)
	allowed := false
	for i := range p.Statements {
		s := &p.Statements[i]
		if !s.effective() || len(s.Conditions) > 0 || !s.coversUpdate(keyARN) || !s.Principals.match(s.Effect, who) {
			continue
		}
		if s.Effect == Deny {
			return false
		}
		allowed = true
	}
	return allowed
}

func (s *Statement) coversUpdate(keyARN string) bool {
	return s.Actions.match(func(pattern string) bool { return matchAction(pattern, updateAction) }) &&
		s.Resources.match(func(pattern string) bool { return glob(pattern, keyARN) })
}

// identity is the caller as statements see it.
type identity struct {
	account, partition string // the key's owner
	names              []string
	member             bool // the caller belongs to that account
}

func newIdentity(account, partition string, names []string) *identity {
	who := &identity{account: account, partition: partition, names: names}
	who.member = slices.ContainsFunc(names, func(n string) bool {
		pr, ok := parseAWS(n)
		return ok && who.owns(&pr)
	})
	return who
}

// owns says whether a principal is in the key's account, or is it.
func (who *identity) owns(pr *Principal) bool {
	return pr.Kind == AWS && pr.Account == who.account && (pr.Partition == "" || pr.Partition == who.partition)
}

// is says whether a principal names the caller or its account.
func (who *identity) is(pr *Principal) bool {
	switch {
	case pr.Kind == Everyone:
		return true
	case pr.Kind != AWS:
		return false
	case pr.Type == Account && who.member && who.owns(pr):
		return true
	}
	return slices.Contains(who.names, pr.Value)
}

func (set *PrincipalSet) match(e Effect, who *identity) bool {
	listed := func(pr Principal) bool { return who.is(&pr) }
	switch {
	case !set.Not:
		return slices.ContainsFunc(set.Values, listed)
	case e == Allow:
		return !slices.ContainsFunc(set.Values, listed)
	}
	return !set.spares(who)
}

// spares says whether a NotPrincipal of a Deny lists every name of the caller,
// and its account.
func (set *PrincipalSet) spares(who *identity) bool {
	account := !who.member
	missing := make(map[string]bool)
	for _, n := range who.names {
		if pr, ok := parseAWS(n); !ok || pr.Type != Account {
			missing[n] = true
		}
	}
	for i := range set.Values {
		pr := &set.Values[i]
		if pr.Kind == Everyone {
			return true
		}
		if pr.Type == Account && who.owns(pr) {
			account = true
		}
		delete(missing, pr.Value)
	}
	return account && len(missing) == 0
}

// matchAction compares without case. "*" covers every service.
func matchAction(pattern, action string) bool {
	return glob(strings.ToLower(pattern), strings.ToLower(action))
}

// glob matches with * for any run and ? for one byte. It goes back only to the
// last star, so its time is bounded by the product of the lengths.
func glob(pattern, s string) bool {
	p, i := 0, 0
	star, mark := -1, 0
	for i < len(s) {
		switch {
		case p < len(pattern) && pattern[p] == '*':
			star, mark = p, i
			p++
		case p < len(pattern) && (pattern[p] == '?' || pattern[p] == s[i]):
			p++
			i++
		case star >= 0:
			mark++
			p, i = star+1, mark
		default:
			return false
		}
	}
	return strings.Trim(pattern[p:], "*") == ""
}
