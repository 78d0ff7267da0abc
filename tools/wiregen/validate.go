package main

import (
	"fmt"
	"regexp/syntax"
	"sort"
	"strings"
)

func lowerCamel(s string) string { return strings.ToLower(s[:1]) + s[1:] }

// genValidators writes Validate for request structures.
func (g *gen) genValidators() {
	split := g.split("validate")
	enums, patterns := map[string]*shape{}, map[string]string{}
	for _, s := range g.m.structures() {
		if !s.in {
			continue
		}
		p := split(s)
		p("// Validate adds what breaks the model's constraints to v.\n")
		p("func (r *%s) Validate(v *Violations) {\n", s.name)
		for _, f := range s.Members {
			g.genCheck(p, s, f, enums, patterns)
		}
		p("}\n\n")
	}
	c := g.file("constraints_gen.go")
	for _, n := range sortedKeys(enums) {
		e := enums[n]
		told := e.Enum
		if other := g.o.EnumTold[n]; other != nil {
			told = other
		}
		c("const set%s = %q\n\n", n, "["+strings.Join(told, ", ")+"]")
		c("func is%s(s string) bool {\nswitch s {\ncase ", n)
		for i, v := range e.Enum {
			if i > 0 {
				c(",\n")
			}
			c("%q", v)
		}
		c(":\nreturn true\n}\nreturn false\n}\n\n")
	}
	for _, n := range sortedKeys(patterns) {
		c("%s\n\n", patterns[n])
	}
}

func sortedKeys[V any](m map[string]V) []string {
	var out []string
	for k := range m {
		out = append(out, k)
	}
	sort.Strings(out)
	return out
}

func (g *gen) genCheck(p printer, s *shape, f member, enums map[string]*shape, patterns map[string]string) {
	fs := g.m.Shapes[f.shape]
	path := fmt.Sprintf("%q", lowerCamel(f.name))
	field := "r." + f.name
	var present, absent string
	switch fs.Type {
	case "string":
		present, absent = "r.Has"+f.name+"()", "!r.Has"+f.name+"()"
	case "boolean", "integer", "timestamp":
		present, absent = field+".Set", "!"+field+".Set"
	default:
		present, absent = field+" != nil", field+" == nil"
	}
	var checks []string
	add := func(format string, args ...any) { checks = append(checks, fmt.Sprintf(format, args...)) }
	switch fs.Type {
	case "string":
		checks = g.stringChecks(fs, path, field, enums, patterns)
	case "blob":
		if fs.Min != nil || fs.Max != nil {
			add("v.blobLength(%s, len(%s), %d, %d)", path, field, bound(fs.Min, 0), bound(fs.Max, -1))
		}
	case "integer":
		if fs.Min != nil || fs.Max != nil {
			if fs.Min == nil || fs.Max == nil {
				g.fail(errShape(s, f, "integer with one bound only"))
				return
			}
			add("v.Range(%s, %s.V, %d, %d)", path, field, *fs.Min, *fs.Max)
		}
	case "structure":
		add("v.enter(%s, 0)\n%s.Validate(v)\nv.leave()", path, field)
	case "list":
		if fs.Min != nil || fs.Max != nil {
			if g.m.Shapes[fs.Member.Shape].Type == "string" {
				add("v.listLength(%s, %s, %d, %d)", path, field, bound(fs.Min, 0), bound(fs.Max, -1))
			} else {
				add("v.blobLength(%s, len(%s), %d, %d)", path, field, bound(fs.Min, 0), bound(fs.Max, -1))
			}
		}
		es := g.m.Shapes[fs.Member.Shape]
		if es.Type == "map" {
			break
		}
		if es.Type == "structure" {
			if !g.constrained(es) {
				break
			}
			add("for i := range %s {\nv.enter(%s, i+1)\n%s[i].Validate(v)\nv.leave()\n}", field, path, field)
			break
		}
		if rules, cond := g.elementRules(es, enums, patterns); cond != "" {
			add("for _, s := range %s {\nif %s {\nv.elements(%s, %s, %s)\nbreak\n}\n}", field, cond, path, field, rules)
		}
	}
	missing := "Required"
	if fs.Sensitive {
		missing = "requiredSensitive"
	}
	switch required := s.required(f.name); {
	case required && len(checks) > 0:
		p("if %s {\nv.%s(%s)\n} else {\n%s\n}\n", absent, missing, path, strings.Join(checks, "\n"))
	case required:
		p("if %s {\nv.%s(%s)\n}\n", absent, missing, path)
	case len(checks) > 0:
		p("if %s {\n%s\n}\n", present, strings.Join(checks, "\n"))
	}
}

// constrained tells whether a structure's own members have anything to check.
func (g *gen) constrained(s *shape) bool {
	for _, f := range s.Members {
		fs := g.m.Shapes[f.shape]
		if fs.Min != nil || fs.Max != nil || fs.Pattern != "" || len(fs.Enum) > 0 || s.required(f.name) ||
			fs.Type == "structure" || fs.Type == "list" {
			return true
		}
	}
	return false
}

// stringChecks returns the statements that check a string.
func (g *gen) stringChecks(fs *shape, path, field string, enums map[string]*shape, patterns map[string]string) []string {
	var checks []string
	if len(fs.Enum) > 0 {
		enums[fs.name] = fs
		if fs.Sensitive {
			g.fail(fmt.Errorf("%s: a sensitive enum would be repeated in messages", fs.name))
		}
		return []string{fmt.Sprintf("if !is%s(%s) {\nv.Enum(%s, %s, set%s)\n}", fs.name, field, path, field, fs.name)}
	}
	if fs.Min != nil || fs.Max != nil {
		checks = append(checks, fmt.Sprintf("v.length(%s, %s, %d, %d, %v)", path, field, bound(fs.Min, 0), bound(fs.Max, -1), fs.Sensitive))
	}
	if fs.Pattern != "" {
		g.pattern(fs, patterns)
		checks = append(checks, fmt.Sprintf("if !match%s(%s) {\nv.pattern(%s, %s, %q, %v)\n}", fs.name, field, path, field, fs.Pattern, fs.Sensitive))
	}
	return checks
}

// elementRules returns the rules of a list's strings as text, and the
// condition under which a string s breaks one.
func (g *gen) elementRules(es *shape, enums map[string]*shape, patterns map[string]string) (rules, cond string) {
	var texts, conds []string
	if es.Sensitive {
		g.fail(fmt.Errorf("%s: sensitive list elements would be repeated in messages", es.name))
	}
	if len(es.Enum) > 0 {
		enums[es.name] = es
		return fmt.Sprintf("ruleEnum+set%s", es.name), fmt.Sprintf("!is%s(s)", es.name)
	}
	if es.Max != nil {
		texts = append(texts, fmt.Sprintf("Member must have length less than or equal to %d", *es.Max))
	}
	if es.Min != nil {
		texts = append(texts, fmt.Sprintf("Member must have length greater than or equal to %d", *es.Min))
	}
	if len(texts) > 0 {
		conds = append(conds, fmt.Sprintf("!lengthOK(s, %d, %d)", bound(es.Min, 0), bound(es.Max, -1)))
	}
	if es.Pattern != "" {
		g.pattern(es, patterns)
		texts = append(texts, "Member must satisfy regular expression pattern: "+es.Pattern)
		conds = append(conds, fmt.Sprintf("!match%s(s)", es.name))
	}
	return fmt.Sprintf("%q", strings.Join(texts, ", ")), strings.Join(conds, " || ")
}

func bound(b *int, def int) int {
	if b == nil {
		return def
	}
	return *b
}

// javaToGo turns a pattern of the model into Go's flavour.
var javaToGo = strings.NewReplacer(`\\`, `\\`, `\/`, `/`, `\u0009`, `\x{09}`, `\u000A`, `\x{0A}`,
	`\u000D`, `\x{0D}`, `\u0020`, `\x{20}`, `\u00FF`, `\x{FF}`, `\s`, ` \t\n\x{0B}\f\r`, `\p{ASCII}`, `[\x{00}-\x{7F}]`)

// pattern adds a matcher for the shape's pattern, which must hold for the
// whole string. A repeated character class becomes a bit set; anything else is
// a regular expression, compiled on first use.
func (g *gen) pattern(s *shape, patterns map[string]string) {
	text := javaToGo.Replace(s.Pattern)
	if strings.Contains(text, `\u`) {
		g.fail(fmt.Errorf("%s: pattern %q has an unknown escape", s.name, s.Pattern))
		return
	}
	re, err := syntax.Parse(text, syntax.Perl)
	if err != nil {
		g.fail(fmt.Errorf("%s: %w", s.name, err))
		return
	}
	if set, empty, ok := repeatedClass(re); ok {
		cond := fmt.Sprintf("class%s.all(s)", s.name)
		if !empty {
			cond = `s != "" && ` + cond
		}
		patterns[s.name] = fmt.Sprintf("var class%s = class{%#x, %#x, %#x, %#x}\n\nfunc match%s(s string) bool { return %s }",
			s.name, set[0], set[1], set[2], set[3], s.name, cond)
		return
	}
	patterns[s.name] = fmt.Sprintf("var pattern%s = lazyPattern(%q)\n\nfunc match%s(s string) bool { return pattern%s().MatchString(s) }",
		s.name, text, s.name, s.name)
}

// repeatedClass recognises a character class below U+0100 under + or *, with
// or without anchors.
func repeatedClass(re *syntax.Regexp) (set [4]uint64, empty, ok bool) {
	for re.Op == syntax.OpConcat {
		var rest []*syntax.Regexp
		for _, s := range re.Sub {
			if s.Op != syntax.OpBeginText && s.Op != syntax.OpEndText {
				rest = append(rest, s)
			}
		}
		if len(rest) != 1 {
			return set, false, false
		}
		re = rest[0]
	}
	if re.Op != syntax.OpPlus && re.Op != syntax.OpStar {
		return set, false, false
	}
	c := re.Sub[0]
	if c.Op != syntax.OpCharClass {
		return set, false, false
	}
	for i := 0; i < len(c.Rune); i += 2 {
		for r := c.Rune[i]; r <= c.Rune[i+1]; r++ {
			if r > 0xFF {
				return set, false, false
			}
			set[r>>6] |= 1 << (r & 63)
		}
	}
	return set, re.Op == syntax.OpStar, true
}
