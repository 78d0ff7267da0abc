// Package policy reads key policies: the JSON documents that say who may use
// and manage a key. It accepts or refuses them as AWS KMS does in CreateKey and
// PutKeyPolicy, and answers the one question those operations ask of a new
// policy: would the caller still be able to change it?
//
// # What is accepted
//
// A document is at most [MaxBytes] long and consists of tab, line feed,
// carriage return and U+0020 to U+00FF. It is strict JSON: a repeated member,
// a lone surrogate, or nesting beyond what a policy can need is refused. Names
// of elements are compared with their case. An element that the language does
// not know is refused rather than ignored, because a misspelt Condition that is
// ignored turns a narrow permission into a wide one.
//
//   - Version is 2012-10-17, 2008-10-17 or absent (which means the latter).
//   - Statement is one statement or a list of at least one.
//   - Effect, and one of Principal and NotPrincipal, are required.
//   - A statement without Action or Resource, or with an empty list of them, is
//     accepted and has no effect.
//   - Sid and Id are free text, and a Sid may repeat.
//   - An action is "*" or service:name. The service need not be kms, and a name
//     need not exist: IAM accepts those too. They match nothing here.
//   - A resource is "*" or begins with "arn:". "*" is the key that has the
//     policy; its own ARN, or a pattern that matches it, means the same.
//   - A condition value may be a string, a number or a boolean, or a list of
//     those. That it suits its operator is not checked, as in IAM: a date that
//     is none never matches.
//
// # Principals
//
// Whether a named principal exists is the caller's question, since it needs the
// store: see [Policy.Principals]. Parse checks the form only. Groups, wildcards
// inside an ARN and unique ids (AIDA..., AROA...) are refused; AWS shows a unique
// id for a principal that was deleted, and does not take it back either.
//
// # The lockout check
//
// [Policy.AllowsUpdate] describes it, with what it makes of conditions.
package policy

import (
	"fmt"
	"iter"
	"slices"
	"strings"
	"unicode/utf8"
)

// MaxBytes is the size limit of a key policy in AWS KMS (32 KB), although the
// service model lets four times as many characters pass.
const MaxBytes = 32768

// Texts that AWS is known to answer with, and that clients look for.
const (
	// TextInvalidPrincipals is also the answer for a principal that does not
	// exist.
	TextInvalidPrincipals = "Policy contains a statement with one or more invalid principals."
	// TextNoPrincipal is the answer for a missing and for an empty Principal.
	TextNoPrincipal = "Policy contains a statement with no principal."
	// TextLockout is the answer when [Policy.AllowsUpdate] is false.
	TextLockout = "The new key policy will not allow you to update the key policy in the future."
)

// Error is why a document was refused. The operations answer it as
// MalformedPolicyDocumentException, except [ErrTooLarge].
type Error struct {
	// Text is for the caller of the API: AWS's words, and what to change. It
	// may quote a few dozen characters of the document.
	Text string
	// Where is the place in the document, such as Statement[1].Principal. It
	// goes to the log, and is empty when Text says it all.
	Where string
}

func (e *Error) Error() string {
	if e.Where == "" {
		return "policy: " + e.Text
	}
	return "policy: " + e.Where + ": " + e.Text
}

// ErrTooLarge is the one refusal that AWS answers as LimitExceededException.
var ErrTooLarge = &Error{Text: fmt.Sprintf("The key policy is longer than %d bytes.", MaxBytes)}

// Effect says what a matching statement does.
type Effect uint8

const (
	Allow Effect = iota + 1
	Deny
)

// Policy is a parsed document. It is not changed after Parse, may be shared,
// and keeps no part of the text it was made from.
type Policy struct {
	// Version is "2012-10-17" or "2008-10-17", never empty. Policy variables
	// exist in the first only.
	Version    string
	ID         string
	Statements []Statement
}

// Statement is one rule: whom, what, on which resource, when.
type Statement struct {
	SID        string
	Effect     Effect
	Principals PrincipalSet
	Actions    Patterns
	Resources  Patterns
	Conditions []Condition // all must hold
}

// Patterns is an Action or Resource element, or its Not form. Without values
// the statement has no effect, in either form.
type Patterns struct {
	Not    bool
	Values []string
}

// PrincipalSet is a Principal or NotPrincipal element. It has at least one
// value.
type PrincipalSet struct {
	Not    bool
	Values []Principal
}

// Default is the policy of a key that was created without one, in AWS's words
// and spacing. It leaves everything to the identity policies of the account.
func Default(partition, account string) string {
	return `{
  "Version" : "2012-10-17",
  "Id" : "key-default-1",
  "Statement" : [ {
    "Sid" : "Enable IAM User Permissions",
    "Effect" : "Allow",
    "Principal" : {
      "AWS" : "arn:` + partition + `:iam::` + account + `:root"
    },
    "Action" : "kms:*",
    "Resource" : "*"
  } ]
}`
}

// Parse reads and checks a document. Every error is an *Error. The policy keeps
// nothing of doc, which may be a view on a buffer that is used again.
func Parse(doc string) (*Policy, error) {
	if len(doc) > MaxBytes {
		return nil, ErrTooLarge
	}
	// An own copy: the nodes below, and so the policy, are views on it.
	root, err := parseJSON(strings.Clone(doc))
	if err != nil {
		return nil, err
	}
	p, perr := readPolicy(root)
	if perr != nil {
		return nil, perr
	}
	return p, nil
}

// Principals iterates over everybody the policy names, in order, those under
// NotPrincipal and repeated ones included. An operation that stores a policy
// refuses it with [TextInvalidPrincipals] when one of them does not exist.
func (p *Policy) Principals() iter.Seq[Principal] {
	return func(yield func(Principal) bool) {
		for i := range p.Statements {
			for _, pr := range p.Statements[i].Principals.Values {
				if !yield(pr) {
					return
				}
			}
		}
	}
}

func readPolicy(root *node) (*Policy, *Error) {
	if root.kind != object {
		return nil, syntax("", "the document must be a JSON object")
	}
	p := &Policy{Version: "2008-10-17"}
	var statements *node
	for i := range root.members {
		name, v := root.members[i].name, &root.members[i].value
		var err *Error
		switch name {
		case "Version":
			if p.Version, err = readString(v, name); err == nil &&
				p.Version != "2012-10-17" && p.Version != "2008-10-17" {
				err = &Error{Text: "The policy must contain a valid version string", Where: name}
			}
		case "Id":
			p.ID, err = readString(v, name)
		case "Statement":
			statements = v
		default:
			err = unknown("", name)
		}
		if err != nil {
			return nil, err
		}
	}
	if statements == nil {
		return nil, &Error{Text: "Missing required field Statement"}
	}
	list := []node{*statements}
	if statements.kind == array {
		list = statements.items
	}
	if len(list) == 0 {
		return nil, syntax("Statement", "a policy has at least one statement")
	}
	p.Statements = make([]Statement, len(list))
	for i := range list {
		where := fmt.Sprintf("Statement[%d]", i)
		if err := p.Statements[i].read(&list[i], where); err != nil {
			return nil, err
		}
	}
	return p, nil
}

func (s *Statement) read(n *node, where string) *Error {
	if n.kind != object {
		return syntax(where, "a statement must be a JSON object")
	}
	var principal, action, resource string // the form that was given
	for i := range n.members {
		name, v := n.members[i].name, &n.members[i].value
		at := where + "." + name
		var err *Error
		switch name {
		case "Sid":
			s.SID, err = readString(v, at)
		case "Effect":
			s.Effect, err = readEffect(v, at)
		case "Principal", "NotPrincipal":
			if err = once(&principal, name, where); err == nil {
				s.Principals.Not = name[0] == 'N'
				s.Principals.Values, err = readPrincipals(v, at)
			}
		case "Action", "NotAction":
			if err = once(&action, name, where); err == nil {
				s.Actions.Not = name[0] == 'N'
				s.Actions.Values, err = readPatterns(v, at, checkAction)
			}
		case "Resource", "NotResource":
			if err = once(&resource, name, where); err == nil {
				s.Resources.Not = name[0] == 'N'
				s.Resources.Values, err = readPatterns(v, at, checkResource)
			}
		case "Condition":
			s.Conditions, err = readConditions(v, at)
		default:
			err = unknown(where, name)
		}
		if err != nil {
			return err
		}
	}
	if s.Effect == 0 {
		return &Error{Text: "Missing required field Effect", Where: where}
	}
	if principal == "" {
		return &Error{Text: TextNoPrincipal, Where: where}
	}
	return nil
}

// once refuses an element beside its Not form. The same name twice cannot come
// here: the JSON reader refused it.
func once(given *string, name, where string) *Error {
	if *given != "" {
		return syntax(where, *given+" and "+name+" exclude each other")
	}
	*given = name
	return nil
}

func readEffect(n *node, where string) (Effect, *Error) {
	s, err := readString(n, where)
	switch {
	case err != nil:
		return 0, err
	case s == "Allow":
		return Allow, nil
	case s == "Deny":
		return Deny, nil
	}
	return 0, &Error{Text: "Invalid effect: " + excerpt(s), Where: where}
}

func readString(n *node, where string) (string, *Error) {
	if n.kind != text {
		return "", syntax(where, "a string is expected")
	}
	return n.text, nil
}

// oneOrMany views a value that may stand alone or in a list as a list.
func oneOrMany(n *node) []node {
	if n.kind == array {
		return n.items
	}
	return []node{*n}
}

func readPatterns(n *node, where string, check func(s, where string) *Error) ([]string, *Error) {
	list := oneOrMany(n)
	values := make([]string, 0, len(list))
	for i := range list {
		s, err := readString(&list[i], where)
		if err == nil {
			err = check(s, where)
		}
		if err != nil {
			return nil, err
		}
		values = append(values, s)
	}
	return values, nil
}

// checkAction wants "*" or service:name, both of visible ASCII. The service may
// be unknown; as a wildcard it must be the whole "*".
func checkAction(s, where string) *Error {
	if strings.Trim(s, "*") == "" && s != "" {
		return nil
	}
	service, name, ok := strings.Cut(s, ":")
	if !ok || service == "" || name == "" || !visible(s) ||
		(service != "*" && strings.ContainsAny(service, "*?")) {
		return &Error{Where: where, Text: "Actions/Conditions must be prefaced by a vendor, e.g., iam, sdb, ec2, etc." +
			" Invalid action: " + excerpt(s)}
	}
	return nil
}

func checkResource(s, where string) *Error {
	if s != "*" && !strings.HasPrefix(s, "arn:") {
		return &Error{Text: "Resource " + excerpt(s) + ` must be in ARN format or "*".`, Where: where}
	}
	return nil
}

// visible says whether s is ASCII without space and control characters.
func visible(s string) bool {
	return !strings.ContainsFunc(s, func(r rune) bool { return r <= ' ' || r >= 0x7f })
}

func syntax(where, detail string) *Error {
	t := "Syntax errors in policy."
	if where != "" {
		t += " " + where + ":"
	}
	return &Error{Text: t + " " + detail + "."}
}

func unknown(where, name string) *Error {
	return syntax(where, "unknown element "+excerpt(name))
}

// maxExcerpt bounds what of a document an error repeats.
const maxExcerpt = 64

func excerpt(s string) string {
	if len(s) > maxExcerpt {
		cut := maxExcerpt
		for !utf8.RuneStart(s[cut]) {
			cut--
		}
		return fmt.Sprintf("%q...", s[:cut])
	}
	return fmt.Sprintf("%q", s)
}

// effective says whether the statement can match anything at all.
func (s *Statement) effective() bool {
	return len(s.Actions.Values) > 0 && len(s.Resources.Values) > 0
}

// match says whether the element covers a name: one of its patterns does, or in
// the Not form none of them.
func (p *Patterns) match(matches func(pattern string) bool) bool {
	return slices.ContainsFunc(p.Values, matches) != p.Not
}
