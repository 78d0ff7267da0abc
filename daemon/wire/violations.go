package wire

import (
	"regexp"
	"strconv"
	"strings"
	"sync"
	"unicode/utf8"
)

// Violations collects broken constraints and turns them into one
// ValidationException with AWS's wording. The zero value is ready; Reset makes
// it so again.
//
// Paths are in lowerCamelCase, as they stand in the message. The exported
// methods serve rules that are stricter than the model's.
type Violations struct {
	n    int
	text []byte
	path []step
}

type step struct {
	name  string
	index int // 1-based member of a list; 0 for a structure
}

const (
	// maxTold bounds how many violations are written out; all are counted.
	maxTold = 20
	// maxEcho bounds, in bytes, how much of a value is repeated.
	maxEcho = 4096

	ruleEnum = "Member must satisfy enum value set: "
)

// Reset empties v.
func (v *Violations) Reset() { v.n, v.text, v.path = 0, v.text[:0], v.path[:0] }

// Len returns the number of violations.
func (v *Violations) Len() int { return v.n }

// Err returns nil without violations, otherwise a ValidationException.
func (v *Violations) Err() *Error {
	if v.n == 0 {
		return nil
	}
	s := " validation error"
	if v.n > 1 {
		s = " validation errors"
	}
	return ErrorText(ValidationException, strconv.Itoa(v.n)+s+" detected: "+string(v.text))
}

func (v *Violations) enter(name string, index int) { v.path = append(v.path, step{name, index}) }
func (v *Violations) leave()                       { v.path = v.path[:len(v.path)-1] }

// add writes one violation; value stands between "Value" and "at".
func (v *Violations) add(path, value, rule string) {
	v.n++
	if v.n > maxTold {
		return
	}
	if v.n > 1 {
		v.text = append(v.text, "; "...)
	}
	v.text = append(v.text, "Value "...)
	if value != "" {
		v.text = append(append(v.text, value...), ' ')
	}
	v.text = append(v.text, "at '"...)
	for _, s := range v.path {
		v.text = append(append(v.text, s.name...), '.')
		if s.index > 0 {
			v.text = append(strconv.AppendInt(v.text, int64(s.index), 10), ".member."...)
		}
	}
	v.text = append(v.text, path...)
	v.text = append(v.text, "' failed to satisfy constraint: "...)
	v.text = append(v.text, rule...)
}

func quote(s string) string { return "'" + clip(s) + "'" }

// clip cuts what is too long to repeat, at a character's start.
func clip(s string) string {
	if len(s) <= maxEcho {
		return s
	}
	n := maxEcho
	for n > 0 && !utf8.RuneStart(s[n]) {
		n--
	}
	return s[:n] + "..."
}

// Required says that the member at path is missing.
func (v *Violations) Required(path string) { v.add(path, "null", "Member must not be null") }

// requiredSensitive is Required for a member whose value is never repeated: AWS leaves
// out the null too.
func (v *Violations) requiredSensitive(path string) { v.add(path, "", "Member must not be null") }

// Range checks an integer.
func (v *Violations) Range(path string, value, minimum, maximum int64) {
	switch {
	case value < minimum:
		v.add(path, quote(strconv.FormatInt(value, 10)), "Member must have value greater than or equal to "+strconv.FormatInt(minimum, 10))
	case value > maximum:
		v.add(path, quote(strconv.FormatInt(value, 10)), "Member must have value less than or equal to "+strconv.FormatInt(maximum, 10))
	}
}

// Length checks a string's length in characters; maximum -1 means none.
func (v *Violations) Length(path, value string, minimum, maximum int) {
	v.length(path, value, minimum, maximum, false)
}

// BlobLength checks a length in bytes; the blob is not repeated.
func (v *Violations) BlobLength(path string, n, minimum, maximum int) {
	v.blobLength(path, n, minimum, maximum)
}

// Enum says that value is not in set, which is written "[A, B]".
func (v *Violations) Enum(path, value, set string) { v.add(path, quote(value), ruleEnum+set) }

// Pattern says that value does not match pattern.
func (v *Violations) Pattern(path, value, pattern string) { v.pattern(path, value, pattern, false) }

// Rule says that value breaks a rule in other words.
func (v *Violations) Rule(path, value, rule string) { v.add(path, quote(value), rule) }

func (v *Violations) length(path, s string, minimum, maximum int, sensitive bool) {
	if lengthOK(s, minimum, maximum) {
		return
	}
	value := ""
	if !sensitive {
		value = quote(s)
	}
	v.badLength(path, value, utf8.RuneCountInString(s), minimum, maximum)
}

func (v *Violations) blobLength(path string, n, minimum, maximum int) {
	if n < minimum || maximum >= 0 && n > maximum {
		v.badLength(path, "", n, minimum, maximum)
	}
}

func (v *Violations) badLength(path, value string, n, minimum, maximum int) {
	if n < minimum {
		v.add(path, value, "Member must have length greater than or equal to "+strconv.Itoa(minimum))
		return
	}
	v.add(path, value, "Member must have length less than or equal to "+strconv.Itoa(maximum))
}

func (v *Violations) listLength(path string, list []string, minimum, maximum int) {
	if n := len(list); n < minimum || maximum >= 0 && n > maximum {
		v.badLength(path, quoteList(list), n, minimum, maximum)
	}
}

func (v *Violations) pattern(path, s, pattern string, sensitive bool) {
	value := ""
	if !sensitive {
		value = quote(s)
	}
	v.add(path, value, "Member must satisfy regular expression pattern: "+pattern)
}

// elements says that a string of the list breaks a rule of its shape. AWS
// repeats the whole list and names all the rules.
func (v *Violations) elements(path string, list []string, rules string) {
	v.add(path, quoteList(list), "Member must satisfy constraint: ["+rules+"]")
}

func quoteList(list []string) string {
	var b strings.Builder
	for i, s := range list {
		if i > 0 {
			b.WriteString(", ")
		}
		b.WriteString(s)
		if b.Len() > maxEcho {
			break
		}
	}
	return "'[" + clip(b.String()) + "]'"
}

// lengthOK counts characters only when bytes cannot decide.
func lengthOK(s string, minimum, maximum int) bool {
	if len(s) < minimum {
		return false
	}
	if minimum > 1 || maximum >= 0 && len(s) > maximum {
		n := utf8.RuneCountInString(s)
		return n >= minimum && (maximum < 0 || n <= maximum)
	}
	return true
}

// class is a set of characters below U+0100.
type class [4]uint64

// all tells whether s has no other characters.
func (c *class) all(s string) bool {
	for i := 0; i < len(s); {
		r := rune(s[i])
		if r < utf8.RuneSelf {
			i++
		} else {
			var n int
			if r, n = utf8.DecodeRuneInString(s[i:]); r > 0xFF {
				return false
			}
			i += n
		}
		if c[r>>6]&(1<<(r&63)) == 0 {
			return false
		}
	}
	return true
}

// lazyPattern compiles a rarely used pattern on first use. It must match the
// whole string.
func lazyPattern(text string) func() *regexp.Regexp {
	return sync.OnceValue(func() *regexp.Regexp { return regexp.MustCompile(`\A(?:` + text + `)\z`) })
}
