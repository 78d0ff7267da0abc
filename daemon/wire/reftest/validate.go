package reftest

import (
	"fmt"
	"regexp"
	"slices"
	"strings"
	"unicode/utf8"
)

// goPattern rewrites the model's Java patterns for Go; they must hold for the
// whole string.
func goPattern(java string) *regexp.Regexp {
	text := regexp.MustCompile(`\\u([0-9A-F]{4})`).ReplaceAllString(java, `\x{$1}`)
	text = strings.ReplaceAll(text, `\/`, "/")
	text = strings.ReplaceAll(text, `\s`, `\s\x{0B}`)
	text = strings.ReplaceAll(text, `\p{ASCII}`, `[[:ascii:]]`)
	return regexp.MustCompile(`\A(?:` + text + `)\z`)
}

// Validate returns the message of the ValidationException that o deserves as
// the named structure, "" when it is valid. It does not cut long messages.
func (m *Model) Validate(name string, o Object) string {
	found := m.violations(name, o, "")
	switch len(found) {
	case 0:
		return ""
	case 1:
		return "1 validation error detected: " + found[0]
	}
	return fmt.Sprintf("%d validation errors detected: %s", len(found), strings.Join(found, "; "))
}

// Count returns the number of violations.
func (m *Model) Count(name string, o Object) int { return len(m.violations(name, o, "")) }

// InputShape returns the name of an operation's request structure.
func (m *Model) InputShape(op string) string { return m.Operations[op].Input.Shape }

func (m *Model) violations(name string, o Object, prefix string) []string {
	var out []string
	s := m.Shapes[name]
	for _, member := range s.Members.names {
		fs := m.Shapes[s.Members.shape[member]]
		path := prefix + strings.ToLower(member[:1]) + member[1:]
		add := func(value, rule string) {
			if value != "" {
				value = " " + value
			}
			out = append(out, fmt.Sprintf("Value%s at '%s' failed to satisfy constraint: %s", value, path, rule))
		}
		v, present := o[member]
		if !present {
			switch {
			case !slices.Contains(s.Required, member):
			case fs.Sensitive:
				add("", "Member must not be null")
			default:
				add("null", "Member must not be null")
			}
			continue
		}
		switch v := v.(type) {
		case string:
			echo := "'" + v + "'"
			if fs.Sensitive {
				echo = ""
			}
			for _, rule := range fs.broken(v) {
				add(echo, rule)
			}
		case []byte:
			if rule := fs.size(len(v), "length"); rule != "" {
				add("", rule)
			}
		case int64:
			if rule := fs.size(int(v), "value"); rule != "" {
				add(fmt.Sprintf("'%d'", v), rule)
			}
		case Object:
			out = append(out, m.violations(s.Members.shape[member], v, path+".")...)
		case []any:
			es := m.Shapes[fs.Member.Shape]
			var texts []string
			bad := false
			for i, e := range v {
				switch e := e.(type) {
				case string:
					texts = append(texts, e)
					bad = bad || len(es.broken(e)) > 0
				case Object:
					out = append(out, m.violations(fs.Member.Shape, e, fmt.Sprintf("%s.%d.member.", path, i+1))...)
				}
			}
			echo := ""
			if es.Type == "string" {
				echo = "'[" + strings.Join(texts, ", ") + "]'"
			}
			if rule := fs.size(len(v), "length"); rule != "" {
				add(echo, rule)
			}
			if bad {
				add(echo, "Member must satisfy constraint: ["+strings.Join(es.rules(), ", ")+"]")
			}
		}
	}
	return out
}

func (s *Shape) size(n int, what string) string {
	switch {
	case s.Min != nil && n < *s.Min:
		return fmt.Sprintf("Member must have %s greater than or equal to %d", what, *s.Min)
	case s.Max != nil && n > *s.Max:
		return fmt.Sprintf("Member must have %s less than or equal to %d", what, *s.Max)
	}
	return ""
}

// broken returns the rules of a string's shape that v breaks.
func (s *Shape) broken(v string) []string {
	if s.Enum != nil {
		if slices.Contains(s.Enum, v) {
			return nil
		}
		return s.rules()
	}
	var out []string
	if rule := s.size(utf8.RuneCountInString(v), "length"); rule != "" {
		out = append(out, rule)
	}
	if s.Pattern != "" && !goPattern(s.Pattern).MatchString(v) {
		out = append(out, "Member must satisfy regular expression pattern: "+s.Pattern)
	}
	return out
}

// rules returns all the rules of a string's shape.
func (s *Shape) rules() []string {
	if s.Enum != nil {
		told := s.Enum
		if s.told != nil {
			told = s.told
		}
		return []string{"Member must satisfy enum value set: [" + strings.Join(told, ", ") + "]"}
	}
	var out []string
	if s.Max != nil {
		out = append(out, fmt.Sprintf("Member must have length less than or equal to %d", *s.Max))
	}
	if s.Min != nil {
		out = append(out, fmt.Sprintf("Member must have length greater than or equal to %d", *s.Min))
	}
	if s.Pattern != "" {
		out = append(out, "Member must satisfy regular expression pattern: "+s.Pattern)
	}
	return out
}
