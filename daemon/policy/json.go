package policy

import (
	"strconv"
	"strings"
	"unicode/utf16"
	"unicode/utf8"
)

// A strict JSON reader for small documents. encoding/json would fold the case
// of names, let the last of two equal members win and replace lone surrogates;
// a security policy must not have two readings.
//
// Nodes are views on the document where a string has no escapes.

// maxDepth leaves two levels over the deepest legal policy: document, statement
// list, statement, Condition, operator, values.
const maxDepth = 8

type kind uint8

const (
	null kind = iota
	boolean
	number
	text
	array
	object
)

type node struct {
	kind    kind
	text    string // decoded string, or the literal as written (number, boolean)
	items   []node
	members []member
}

type member struct {
	name  string
	value node
}

type reader struct {
	s   string
	pos int
}

func parseJSON(s string) (*node, error) {
	for i, r := range s {
		if r == utf8.RuneError || r > 0xff || (r < ' ' && r != '\t' && r != '\n' && r != '\r') {
			return nil, invalidJSON("a character outside tab, LF, CR and U+0020 to U+00FF", i)
		}
	}
	r := &reader{s: s}
	n := new(node)
	if err := r.value(n, 1); err != nil {
		return nil, err
	}
	if r.space(); r.pos != len(s) {
		return nil, r.fail("text after the end")
	}
	return n, nil
}

func invalidJSON(what string, pos int) *Error {
	return &Error{Text: "This policy contains invalid Json: " + what + " at offset " + strconv.Itoa(pos) + "."}
}

func (r *reader) fail(what string) *Error { return invalidJSON(what, r.pos) }

func (r *reader) space() {
	for r.pos < len(r.s) && strings.IndexByte(" \t\n\r", r.s[r.pos]) >= 0 {
		r.pos++
	}
}

// peek skips space and looks at the next byte; 0 at the end, where no valid
// document can have one.
func (r *reader) peek() byte {
	r.space()
	if r.pos == len(r.s) {
		return 0
	}
	return r.s[r.pos]
}

func (r *reader) value(n *node, depth int) error {
	if depth > maxDepth {
		return r.fail("nesting too deep")
	}
	switch c := r.peek(); {
	case c == '{':
		return r.object(n, depth)
	case c == '[':
		return r.array(n, depth)
	case c == '"':
		n.kind = text
		return r.string(&n.text)
	case c == '-' || '0' <= c && c <= '9':
		n.kind = number
		return r.number(&n.text)
	}
	for _, w := range [...]struct {
		word string
		kind kind
	}{{"true", boolean}, {"false", boolean}, {"null", null}} {
		if strings.HasPrefix(r.s[r.pos:], w.word) {
			n.kind, n.text = w.kind, w.word
			r.pos += len(w.word)
			return nil
		}
	}
	return r.fail("a value is expected")
}

func (r *reader) array(n *node, depth int) error {
	n.kind = array
	r.pos++
	if r.peek() == ']' {
		r.pos++
		return nil
	}
	for {
		n.items = append(n.items, node{})
		if err := r.value(&n.items[len(n.items)-1], depth+1); err != nil {
			return err
		}
		switch r.peek() {
		case ',':
			r.pos++
		case ']':
			r.pos++
			return nil
		default:
			return r.fail("a comma or ] is expected")
		}
	}
}

func (r *reader) object(n *node, depth int) error {
	n.kind = object
	r.pos++
	if r.peek() == '}' {
		r.pos++
		return nil
	}
	names := make(map[string]struct{})
	for {
		if r.peek() != '"' {
			return r.fail("a member name is expected")
		}
		at := r.pos
		var m member
		if err := r.string(&m.name); err != nil {
			return err
		}
		if _, twice := names[m.name]; twice {
			return invalidJSON("repeated member "+excerpt(m.name), at)
		}
		names[m.name] = struct{}{}
		if r.peek() != ':' {
			return r.fail("a colon is expected")
		}
		r.pos++
		if err := r.value(&m.value, depth+1); err != nil {
			return err
		}
		n.members = append(n.members, m)
		switch r.peek() {
		case ',':
			r.pos++
		case '}':
			r.pos++
			return nil
		default:
			return r.fail("a comma or } is expected")
		}
	}
}

// number follows RFC 8259 section 6 and keeps the literal as it is written.
func (r *reader) number(dst *string) error {
	start := r.pos
	digits := func() bool {
		from := r.pos
		for r.pos < len(r.s) && '0' <= r.s[r.pos] && r.s[r.pos] <= '9' {
			r.pos++
		}
		return r.pos > from
	}
	skip := func(set string) bool {
		if r.pos < len(r.s) && strings.IndexByte(set, r.s[r.pos]) >= 0 {
			r.pos++
			return true
		}
		return false
	}
	skip("-")
	if !skip("0") && !digits() {
		return r.fail("a digit is expected")
	}
	if skip(".") && !digits() {
		return r.fail("a digit is expected")
	}
	if skip("eE") {
		skip("+-")
		if !digits() {
			return r.fail("a digit is expected")
		}
	}
	*dst = r.s[start:r.pos]
	return nil
}

func (r *reader) string(dst *string) error {
	r.pos++
	rest := r.s[r.pos:]
	end := strings.IndexAny(rest, "\"\\\t\n\r")
	if end >= 0 && rest[end] == '"' { // nothing to decode
		*dst = rest[:end]
		r.pos += end + 1
		return nil
	}
	var b strings.Builder
	for r.pos < len(r.s) {
		switch c := r.s[r.pos]; {
		case c == '"':
			r.pos++
			*dst = b.String()
			return nil
		case c == '\\':
			if err := r.escape(&b); err != nil {
				return err
			}
		case c < ' ':
			return r.fail("a control character in a string")
		default:
			b.WriteByte(c)
			r.pos++
		}
	}
	return r.fail("an unfinished string")
}

func (r *reader) escape(b *strings.Builder) error {
	if r.pos+1 >= len(r.s) {
		return r.fail("an unfinished string")
	}
	c := r.s[r.pos+1]
	if c == 'u' {
		unit, ok := r.hex4()
		if !ok {
			return r.fail("a bad escape")
		}
		if utf16.IsSurrogate(unit) {
			low, ok := rune(0), strings.HasPrefix(r.s[r.pos:], `\u`)
			if ok {
				low, ok = r.hex4()
			}
			if unit = utf16.DecodeRune(unit, low); !ok || unit == utf8.RuneError {
				return r.fail("a lone surrogate")
			}
		}
		b.WriteRune(unit)
		return nil
	}
	i := strings.IndexByte(`"\/bfnrt`, c)
	if i < 0 {
		return r.fail("a bad escape")
	}
	b.WriteByte("\"\\/\b\f\n\r\t"[i])
	r.pos += 2
	return nil
}

// hex4 reads \uXXXX at pos.
func (r *reader) hex4() (rune, bool) {
	if len(r.s)-r.pos < 6 {
		return 0, false
	}
	var v rune
	for _, c := range []byte(r.s[r.pos+2 : r.pos+6]) {
		d := strings.IndexByte("0123456789abcdef", c|0x20)
		if d < 0 || c < '0' {
			return 0, false
		}
		v = v<<4 | rune(d)
	}
	r.pos += 6
	return v, true
}
