package reftest

import (
	"encoding/base64"
	"fmt"
	"math/rand/v2"
	"strings"
)

// Sampler writes random bodies in the shape of a request, most of them right,
// some with one of the faults that a codec may get wrong.
type Sampler struct {
	M *Model
	R *rand.Rand
	// Faults is the chance, of 1000, of a fault at each value.
	Faults int
}

// Body returns a body for the named operation's request.
func (s *Sampler) Body(op string) []byte {
	var b strings.Builder
	s.space(&b)
	s.value(&b, s.M.InputShape(op))
	s.space(&b)
	if s.fault() {
		b.WriteString(s.pick("}", "0", ",", "\x00", "\xEF\xBB\xBF"))
	}
	if s.fault() {
		return []byte(b.String()[:s.R.IntN(b.Len()+1)])
	}
	return []byte(b.String())
}

func (s *Sampler) fault() bool { return s.R.IntN(1000) < s.Faults }

func (s *Sampler) pick(of ...string) string { return of[s.R.IntN(len(of))] }

func (s *Sampler) space(b *strings.Builder) {
	if s.R.IntN(4) == 0 {
		b.WriteString(s.pick(" ", "\n\t ", "\r", "  "))
	}
}

// anything is written where a value of some type is expected.
var anything = []string{"null", "true", "false", "tru", "nul", "0", "-0", "1", "01", "1.0", "1e0", "1E+3", "-", "1.", ".5",
	"2147483647", "2147483648", "-2147483649", "1477431461.947", "253402300800", "1e999", `"x"`, `""`, `"2"`, `"\u12"`,
	`"\ud800"`, `"\ud83d\ude00"`, `"\udc00\ud800"`, `"\udc00"`, `"\ud800\u0041"`, `"\x"`, "\"\x01\"", "\"\xff\"", "\"\xed\xa0\x80\"", `"A"`, `"QQ=="`, `"QR=="`, `"QQ"`,
	`"QUI="`, `"QUI=\n"`, `"QU\/+"`, `"QU-_"`, "[]", "{}", "[null]", `{"a":null}`, `{"a":"b","a":"c"}`, `{"a":1}`, `[[1,{"a":[]}]]`, "[1,]", "{,}",
	`{"a" "b"}`,
	strings.Repeat("[", 15) + strings.Repeat("]", 15), strings.Repeat("[", 16) + strings.Repeat("]", 16), "", "'x'", "NaN", "\v1"}

func (s *Sampler) value(b *strings.Builder, name string) {
	if s.fault() {
		b.WriteString(anything[s.R.IntN(len(anything))])
		return
	}
	sh := s.M.Shapes[name]
	switch sh.Type {
	case "string":
		s.text(b, s.content(sh))
	case "blob":
		n := s.R.IntN(70)
		if s.R.IntN(30) == 0 {
			n = s.R.IntN(8000)
		}
		raw := make([]byte, n)
		for i := range raw {
			raw[i] = byte(s.R.Uint32())
		}
		text := base64.StdEncoding.EncodeToString(raw)
		if s.R.IntN(8) == 0 {
			text = strings.ReplaceAll(text, "/", `\/`)
		}
		if s.fault() && len(text) > 0 {
			i := s.R.IntN(len(text))
			text = text[:i] + s.pick("=", " ", "-", "A", `\n`, `\r\n`, "") + text[i+1:]
		}
		b.WriteString(`"` + text + `"`)
	case "boolean":
		b.WriteString(s.pick("true", "false"))
	case "integer":
		fmt.Fprint(b, s.R.IntN(1200)-50)
	case "timestamp":
		b.WriteString(s.pick("1477431461", "1.477431461E9", "1614905581.947", "-62135596800", "0.0005", "-1.5", "253402300799.999"))
	case "list":
		b.WriteByte('[')
		s.repeat(b, s.few(), func() { s.value(b, sh.Member.Shape) })
		b.WriteByte(']')
	case "map":
		b.WriteByte('{')
		n, i := s.few(), 0
		s.repeat(b, n, func() {
			key := fmt.Sprintf("k%d", i)
			if i++; s.fault() {
				key = "k0"
			}
			s.text(b, key)
			s.colon(b)
			s.value(b, "EncryptionContextValue")
		})
		b.WriteByte('}')
	case "structure":
		s.structure(b, sh)
	}
}

// skipped is a value for a member that nobody reads.
func (s *Sampler) skipped() string {
	if s.Faults > 0 && s.R.IntN(4) == 0 {
		return anything[s.R.IntN(len(anything))]
	}
	return s.pick("null", "-0.5e-3", `"\ud83d\ude00é"`, `{"a":[{"a":1},{"a":2}],"a":{}}`,
		strings.Repeat(`{"a":[`, 7)+strings.Repeat("]}", 7))
}

func (s *Sampler) few() int {
	if s.R.IntN(40) == 0 {
		return s.R.IntN(60)
	}
	return s.R.IntN(4)
}

func (s *Sampler) structure(b *strings.Builder, sh *Shape) {
	b.WriteByte('{')
	order := s.R.Perm(len(sh.Members.names))
	n := s.R.IntN(len(order) + 1)
	if s.R.IntN(2) == 0 {
		n = len(order)
	}
	order = order[:n]
	if s.fault() && n > 0 {
		order = append(order, order[s.R.IntN(n)])
	}
	i := 0
	s.repeat(b, len(order), func() {
		m := sh.Members.names[order[i]]
		i++
		if s.R.IntN(20) == 0 {
			s.text(b, s.pick("Unknown", "keyId", "KEYID", "keyID", ""))
			s.colon(b)
			b.WriteString(s.skipped())
			b.WriteByte(',')
		}
		s.text(b, m)
		s.colon(b)
		if s.R.IntN(30) == 0 {
			b.WriteString("null")
			return
		}
		s.value(b, sh.Members.shape[m])
	})
	b.WriteByte('}')
}

func (s *Sampler) repeat(b *strings.Builder, n int, f func()) {
	s.space(b)
	for i := range n {
		if i > 0 {
			b.WriteByte(',')
			s.space(b)
		}
		f()
		s.space(b)
	}
}

func (s *Sampler) colon(b *strings.Builder) {
	s.space(b)
	b.WriteByte(':')
	s.space(b)
}

// content chooses a string that suits the shape, mostly.
func (s *Sampler) content(sh *Shape) string {
	if len(sh.Enum) > 0 && s.R.IntN(5) > 0 {
		return sh.Enum[s.R.IntN(len(sh.Enum))]
	}
	n := s.R.IntN(40)
	switch {
	case sh.Min != nil && s.R.IntN(2) == 0:
		n = *sh.Min + s.R.IntN(2)
	case sh.Max != nil && *sh.Max < 3000 && s.R.IntN(4) == 0:
		n = *sh.Max - 1 + s.R.IntN(3)
	}
	alphabet := []rune(s.pick("abcXYZ0-/:_.", "abc019", "a b\t\n\v\f\r\"\\/<>&'", "é\u00ff\u0100ÿ~\u007f", "日本😀\u2028\uffff", "\u0000\u0001a"))
	var b strings.Builder
	for range n {
		b.WriteRune(alphabet[s.R.IntN(len(alphabet))])
	}
	return b.String()
}

// text writes a JSON string, with more or fewer escapes.
func (s *Sampler) text(b *strings.Builder, t string) {
	b.WriteByte('"')
	all := s.R.IntN(6) == 0
	for _, r := range t {
		switch {
		case r > 0xFFFF && all:
			h := r - 0x10000
			fmt.Fprintf(b, `\u%04X\u%04x`, 0xD800+h>>10, 0xDC00+h&0x3FF)
		case all || r < 0x20:
			fmt.Fprintf(b, `\u%04x`, r)
		case r == '"' || r == '\\':
			b.WriteByte('\\')
			b.WriteRune(r)
		default:
			b.WriteRune(r)
		}
	}
	b.WriteByte('"')
}
