package policy

import "strings"

// PrincipalKind is the member of a Principal element that named somebody.
type PrincipalKind uint8

const (
	Everyone      PrincipalKind = iota + 1 // "*", or {"AWS": "*"}
	AWS                                    // an account, user, role or session
	Service                                // an AWS service
	Federated                              // an identity provider
	CanonicalUser                          // S3's account id, accepted as AWS does; matches nobody here
)

// PrincipalType says what an AWS principal is.
type PrincipalType uint8

const (
	Account       PrincipalType = iota + 1 // the account: its root user, and delegation to its identity policies
	User                                   // an IAM user
	Role                                   // an IAM role
	AssumedRole                            // one session of a role
	FederatedUser                          // one session of a federated user
)

// Principal is one name under Principal or NotPrincipal.
type Principal struct {
	Kind  PrincipalKind
	Value string // as written

	// For Kind AWS only.
	Type      PrincipalType
	Partition string // empty when the account was given as bare digits: any
	Account   string
	// Name is what follows the type in the ARN: user or role with its path
	// ("dept/alice"), role/session, or the federated user. Empty for Account.
	Name string
}

// principalMembers are the members of a Principal object.
var principalMembers = map[string]PrincipalKind{
	"AWS": AWS, "Service": Service, "Federated": Federated, "CanonicalUser": CanonicalUser,
}

func readPrincipals(n *node, where string) ([]Principal, *Error) {
	if n.kind == text {
		if n.text != "*" {
			return nil, invalidPrincipal(where)
		}
		return []Principal{{Kind: Everyone, Value: "*"}}, nil
	}
	if n.kind != object {
		return nil, syntax(where, `"*" or a JSON object is expected`)
	}
	var all []Principal
	for i := range n.members {
		m := &n.members[i]
		kind, ok := principalMembers[m.name]
		at := where + "." + excerpt(m.name)
		if !ok {
			return nil, invalidPrincipal(at)
		}
		list := oneOrMany(&m.value)
		for j := range list {
			s, err := readString(&list[j], at)
			if err != nil {
				return nil, err
			}
			pr, ok := parsePrincipal(kind, s)
			if !ok {
				return nil, invalidPrincipal(at)
			}
			all = append(all, pr)
		}
	}
	// AWS wants at least one principal in each statement of a key policy.
	if len(all) == 0 {
		return nil, &Error{Text: TextNoPrincipal, Where: where}
	}
	return all, nil
}

func invalidPrincipal(where string) *Error {
	return &Error{Text: TextInvalidPrincipals, Where: where}
}

func parsePrincipal(kind PrincipalKind, s string) (Principal, bool) {
	switch kind {
	case AWS:
		return parseAWS(s)
	case Service:
		return Principal{Kind: kind, Value: s}, hostName(s)
	case Federated:
		return Principal{Kind: kind, Value: s}, hostName(s) || identityProvider(s)
	case CanonicalUser:
		return Principal{Kind: kind, Value: s}, len(s) == 64 && only(s, "0123456789abcdefABCDEF")
	}
	return Principal{}, false
}

// ParseARN reads the ARN of an account, user, role, role session or federated
// user.
func ParseARN(s string) (Principal, bool) {
	if !strings.HasPrefix(s, "arn:") {
		return Principal{}, false
	}
	return parseAWS(s)
}

// parseAWS reads the forms of an AWS principal: "*", an account as 12 digits,
// and the ARNs of account, user, role, role session and federated user.
func parseAWS(s string) (Principal, bool) {
	if s == "*" {
		return Principal{Kind: Everyone, Value: s}, true
	}
	pr := Principal{Kind: AWS, Value: s}
	if accountID(s) {
		pr.Type, pr.Account = Account, s
		return pr, true
	}
	service, resource, ok := pr.splitARN(s)
	if !ok {
		return Principal{}, false
	}
	kind, rest, _ := strings.Cut(resource, "/")
	pr.Name = rest
	switch service + ":" + kind {
	case "iam:root":
		pr.Type, ok = Account, resource == "root"
	case "iam:user":
		pr.Type, ok = User, pathAndName(rest)
	case "iam:role":
		pr.Type, ok = Role, pathAndName(rest)
	case "sts:assumed-role":
		role, session, _ := strings.Cut(rest, "/")
		pr.Type, ok = AssumedRole, entityName(role) && entityName(session)
	case "sts:federated-user":
		pr.Type, ok = FederatedUser, entityName(rest)
	default:
		ok = false
	}
	return pr, ok
}

// splitARN takes arn:partition:service::account:resource apart; identity ARNs
// have no region.
func (p *Principal) splitARN(s string) (service, resource string, ok bool) {
	parts := strings.SplitN(s, ":", 6)
	if len(parts) != 6 || parts[0] != "arn" || parts[3] != "" || !accountID(parts[4]) ||
		!strings.HasPrefix(parts[1], "aws") || !only(parts[1], lower+"-") {
		return "", "", false
	}
	p.Partition, p.Account = parts[1], parts[4]
	return parts[2], parts[5], true
}

// identityProvider accepts the ARN of a SAML or OIDC provider.
func identityProvider(s string) bool {
	var p Principal
	service, resource, ok := p.splitARN(s)
	kind, name, _ := strings.Cut(resource, "/")
	return ok && service == "iam" && (kind == "saml-provider" || kind == "oidc-provider") &&
		name != "" && visible(name) && !strings.ContainsAny(name, "*?")
}

const (
	lower  = "abcdefghijklmnopqrstuvwxyz"
	upper  = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"
	digits = "0123456789"
)

func only(s, set string) bool {
	return strings.IndexFunc(s, func(r rune) bool { return !strings.ContainsRune(set, r) }) < 0
}

func accountID(s string) bool { return len(s) == 12 && only(s, digits) }

// IAM's bounds on names and paths.
const (
	maxName = 64
	maxPath = 512
)

func entityName(s string) bool {
	return s != "" && len(s) <= maxName && only(s, lower+upper+digits+"_+=,.@-")
}

// pathAndName accepts a name behind an optional path. A path may hold any
// visible ASCII character in IAM; its wildcards are refused, since a policy's
// reader would take them for such.
func pathAndName(s string) bool {
	i := strings.LastIndexByte(s, '/')
	path := s[:i+1]
	return entityName(s[i+1:]) && len(path) < maxPath && visible(path) &&
		!strings.ContainsAny(path, "*?") && !strings.HasPrefix(path, "/")
}

// hostName accepts what names an AWS service or a web identity provider: two or
// more dot-separated labels in lower case.
func hostName(s string) bool {
	labels := strings.Split(s, ".")
	for _, l := range labels {
		if l == "" || !only(l, lower+digits+"-_") {
			return false
		}
	}
	return len(labels) > 1 && len(s) <= 255
}
