package wire

import (
	"bytes"
	"encoding/base64"
	"fmt"
	"runtime"
	"strconv"
	"strings"
	"unicode/utf8"
)

const (
	// maxDepth bounds the nesting of objects and arrays, the body included.
	maxDepth = 16
	// A decoder keeps buffers up to these sizes between requests.
	keepScratch = 64 << 10
	keepItems   = 256
	// minScratch is the least that is allocated, enough for a usual request.
	minScratch = 1024
	// maxItems bounds the strings of lists, and the pairs of maps, of one body.
	// A body within MaxBody cannot hold as many; a longer one could have cheap
	// ones by the million.
	maxItems = 1 << 19
	// quadratic is the number of map keys up to which each is compared with
	// all before it; beyond, a Go map finds duplicates.
	quadratic = 32
)

// Decoder decodes one body at a time. What it returns are views on the body
// and on its own scratch memory, valid until the next Decode or Reset. The
// zero value is ready. It is not safe for concurrent use.
//
// Scratch holds decoded blobs, which may be plaintext: whoever pools decoders
// calls Reset, which wipes it, before giving one back.
type Decoder struct {
	b     []byte
	i     int
	depth int
	name  string // last member name, for messages
	err   *Error

	scratch []byte // never moves while views on it exist: see room
	strs    []string
	pairs   []Pair
}

// Decode replaces in by what body says.
func (d *Decoder) Decode(in Input, body []byte) *Error {
	if err := in.DecodeJSON(d, body); err != nil {
		return err.(*Error)
	}
	return nil
}

// Reset forgets the body and wipes the scratch memory. Everything that the
// decoder returned is invalid afterwards.
func (d *Decoder) Reset() {
	clear(d.scratch)
	runtime.KeepAlive(&d.scratch)
	d.scratch = d.scratch[:0]
	if cap(d.scratch) > keepScratch {
		d.scratch = nil
	}
	clear(d.strs)
	if d.strs = d.strs[:0]; cap(d.strs) > keepItems {
		d.strs = nil
	}
	clear(d.pairs)
	if d.pairs = d.pairs[:0]; cap(d.pairs) > keepItems {
		d.pairs = nil
	}
	d.b, d.i, d.depth, d.name, d.err = nil, 0, 0, "", nil
}

type decodable interface {
	decode(*Decoder)
	Reset()
}

// decodeBody is the common part of the DecodeJSON methods.
func decodeBody(d *Decoder, r decodable, body []byte, bound int) error {
	d.Reset()
	r.Reset()
	if len(body) == 0 {
		return nil
	}
	d.b = body
	if len(body) > bound {
		d.fail("The body is longer than " + strconv.Itoa(bound) + " bytes")
		return d.err
	}
	d.space()
	if d.peek() != '{' {
		if strings.HasPrefix(b2s(body), "\xEF\xBB\xBF") {
			d.fail("The body starts with a byte order mark")
		} else {
			d.fail("The body must be a JSON object")
		}
		return d.err
	}
	r.decode(d)
	if d.err == nil {
		if d.space(); d.i < len(d.b) {
			d.syntax("the end of the body")
		}
	}
	if d.err != nil {
		r.Reset()
		return d.err
	}
	return nil
}

// fail records the first error.
func (d *Decoder) fail(text string) {
	if d.err == nil {
		d.err = ErrorText(SerializationException, text)
	}
}

// syntax fails where want was expected.
func (d *Decoder) syntax(want string) {
	d.fail(fmt.Sprintf("Expected %s at byte %d", want, d.i))
}

// wrong fails with the current member's name.
func (d *Decoder) wrong(what string) {
	name := d.name
	if len(name) > 64 || name == "" {
		d.fail(fmt.Sprintf("The value at byte %d %s", d.i, what))
		return
	}
	d.fail(name + " " + what)
}

// peek returns the byte at the cursor, 0 at the end.
func (d *Decoder) peek() byte {
	if d.i < len(d.b) {
		return d.b[d.i]
	}
	return 0
}

func (d *Decoder) space() {
	for d.i < len(d.b) {
		switch d.b[d.i] {
		case ' ', '\n', '\t', '\r':
			d.i++
		default:
			return
		}
	}
}

// enter steps into an object or array whose bracket is at the cursor.
func (d *Decoder) enter() bool {
	if d.depth++; d.depth > maxDepth {
		d.fail(fmt.Sprintf("The body is nested deeper than %d levels", maxDepth))
		return false
	}
	d.i++
	d.space()
	return true
}

// first opens an object and returns its first member's name. It returns false
// at the object's end or on an error.
func (d *Decoder) first() (string, bool) {
	if d.peek() != '{' {
		d.wrong("must be an object")
		return "", false
	}
	if !d.enter() {
		return "", false
	}
	if d.peek() == '}' {
		d.i++
		d.depth--
		return "", false
	}
	return d.member()
}

// next returns the name of the next member.
func (d *Decoder) next() (string, bool) {
	if d.err != nil {
		return "", false
	}
	d.space()
	switch d.peek() {
	case ',':
		d.i++
		d.space()
		return d.member()
	case '}':
		d.i++
		d.depth--
	default:
		d.syntax("a comma or the end of an object")
	}
	return "", false
}

func (d *Decoder) member() (string, bool) {
	if d.peek() != '"' {
		d.syntax("a member name")
		return "", false
	}
	name, ok := d.text()
	if !ok {
		return "", false
	}
	d.space()
	if d.peek() != ':' {
		d.syntax("a colon")
		return "", false
	}
	d.i++
	d.space()
	d.name = name
	return name, true
}

// firstItem opens an array; nextItem goes on. Both return false at its end.
func (d *Decoder) firstItem() bool {
	if d.peek() != '[' {
		d.wrong("must be a list")
		return false
	}
	if !d.enter() {
		return false
	}
	if d.peek() == ']' {
		d.i++
		d.depth--
		return false
	}
	return true
}

func (d *Decoder) nextItem() bool {
	if d.err != nil {
		return false
	}
	d.space()
	switch d.peek() {
	case ',':
		d.i++
		d.space()
		return true
	case ']':
		d.i++
		d.depth--
	default:
		d.syntax("a comma or the end of a list")
	}
	return false
}

// present notes that a member was seen. It is false for null, which is the
// same as absence, and for a member that was seen before, an error.
func (d *Decoder) present(seen *uint32, bit uint32) bool {
	if *seen&bit != 0 {
		d.wrong("appears more than once")
		return false
	}
	*seen |= bit
	if d.peek() == 'n' {
		d.literal("null")
		return false
	}
	return true
}

func (d *Decoder) literal(word string) bool {
	if len(d.b)-d.i >= len(word) && string(d.b[d.i:d.i+len(word)]) == word {
		d.i += len(word)
		return true
	}
	d.syntax("a value")
	return false
}

// str decodes a string.
func (d *Decoder) str() string {
	if d.peek() != '"' {
		d.wrong("must be a string")
		return ""
	}
	s, _ := d.text()
	return s
}

// text decodes the string whose quote is at the cursor.
func (d *Decoder) text() (string, bool) {
	s := b2s(d.b[d.i+1:])
	if n := plainPrefix(s); n < len(s) && s[n] == '"' {
		d.i += n + 2
		return s[:n], true
	}
	return d.slowText(s)
}

// slowText is text for strings with escapes, characters outside ASCII, or
// faults.
func (d *Decoder) slowText(s string) (string, bool) {
	end, escaped := 0, false
scan:
	for {
		end += plainPrefix(s[min(end, len(s)):])
		if end >= len(s) {
			d.fail("The body ends within a string")
			return "", false
		}
		switch c := s[end]; {
		case c == '"':
			break scan
		case c == '\\':
			escaped = true
			end += 2
		case c < 0x20:
			d.i += 1 + end
			d.fail(fmt.Sprintf("Control character in a string at byte %d", d.i))
			return "", false
		default:
			end++
		}
	}
	start := d.i + 1
	d.i = start + end + 1
	s = s[:end]
	if !utf8.ValidString(s) {
		d.fail(fmt.Sprintf("The string at byte %d is not UTF-8", start))
		return "", false
	}
	if !escaped {
		return s, true
	}
	if !d.room(len(s)) {
		return "", false
	}
	from := len(d.scratch)
	out, ok := unescape(d.scratch, s)
	if !ok {
		d.scratch = out // so that Reset wipes it
		d.fail(fmt.Sprintf("Bad escape in the string at byte %d", start))
		return "", false
	}
	d.scratch = out
	return b2s(out[from:]), true
}

// room makes sure that n more bytes fit. The scratch memory is sized once per
// body, when first needed, for whatever the rest of the body can take: an
// unescaped string and the blob decoded from it are together shorter than
// twice the text they stand in. So it never moves under a view, and the
// refusal below is a second line of defence.
func (d *Decoder) room(n int) bool {
	if len(d.scratch) == 0 {
		need := 2 * len(d.b)
		if need > 2*keepScratch && bytes.IndexByte(d.b, '\\') < 0 {
			need /= 2 // nothing to unescape, only blobs
		}
		if cap(d.scratch) < need {
			d.scratch = make([]byte, 0, max(need, minScratch))
		}
	}
	if cap(d.scratch)-len(d.scratch) < n {
		d.fail("The body takes too much memory to decode")
		return false
	}
	return true
}

// blob decodes a Base64 string: standard alphabet, padded, canonical, without
// line breaks.
func (d *Decoder) blob() []byte {
	if d.peek() != '"' {
		d.wrong("must be a Base64 string")
		return nil
	}
	s, ok := d.text()
	if !ok {
		return nil
	}
	if !d.room(len(s)) {
		return nil
	}
	from := len(d.scratch)
	to := d.scratch[from : from+base64.StdEncoding.DecodedLen(len(s))]
	d.scratch = d.scratch[:from+len(to)]
	n, err := strictBase64.Decode(to, s2b(s))
	// encoding/base64 passes over line breaks, which only escapes can bring.
	if err != nil || strings.IndexByte(s, '\n') >= 0 || strings.IndexByte(s, '\r') >= 0 {
		d.wrong("must be Base64 with padding")
		return nil
	}
	return to[:n:n]
}

var strictBase64 = base64.StdEncoding.Strict()

func (d *Decoder) boolean() Opt[bool] {
	switch d.peek() {
	case 't':
		return Opt[bool]{V: true, Set: d.literal("true")}
	case 'f':
		return Opt[bool]{Set: d.literal("false")}
	}
	d.wrong("must be true or false")
	return Opt[bool]{}
}

// number returns the text of a JSON number, "" after an error.
func (d *Decoder) number() string {
	from := d.i
	d.skipNumber()
	if d.err != nil {
		return ""
	}
	return b2s(d.b[from:d.i])
}

// integer accepts numbers without fraction and exponent that fit 32 bits.
func (d *Decoder) integer() Opt[int64] {
	if c := d.peek(); c != '-' && (c < '0' || c > '9') {
		d.wrong("must be an integer")
		return Opt[int64]{}
	}
	s := d.number()
	if d.err != nil {
		return Opt[int64]{}
	}
	n, err := strconv.ParseInt(s, 10, 32)
	if err != nil {
		d.wrong("must be an integer of 32 bits")
		return Opt[int64]{}
	}
	return Some(n)
}

// timestamp accepts any number of seconds within the years 1 to 9999.
func (d *Decoder) timestamp() Opt[float64] {
	if c := d.peek(); c != '-' && (c < '0' || c > '9') {
		d.wrong("must be a number of seconds")
		return Opt[float64]{}
	}
	s := d.number()
	if d.err != nil {
		return Opt[float64]{}
	}
	t, err := strconv.ParseFloat(s, 64)
	if err != nil || t < minTime || t > maxTime {
		d.wrong("must be a time in the years 1 to 9999")
		return Opt[float64]{}
	}
	return Some(t)
}

// strings decodes a list of strings.
func (d *Decoder) strings() []string {
	if d.strs == nil {
		d.strs = make([]string, 0, 8)
	}
	from := len(d.strs)
	for more := d.firstItem(); more; more = d.nextItem() {
		if d.peek() != '"' {
			d.wrong("must be a list of strings")
			break
		}
		d.strs = append(d.strs, d.str())
		if len(d.strs) > maxItems {
			d.fail("The body has too many strings in lists")
		}
	}
	return d.strs[from:len(d.strs):len(d.strs)]
}

// pairList decodes a map of strings.
func (d *Decoder) pairList() []Pair {
	if d.pairs == nil {
		d.pairs = make([]Pair, 0, 8)
	}
	from, field := len(d.pairs), d.name
	for key, ok := d.first(); ok; key, ok = d.next() {
		d.name = field
		if d.peek() != '"' {
			d.wrong("must be a map of strings")
			break
		}
		d.pairs = append(d.pairs, Pair{key, d.str()})
		if len(d.pairs) > maxItems {
			d.fail("The body has too many entries in maps")
		}
	}
	out := d.pairs[from:len(d.pairs):len(d.pairs)]
	d.name = field
	if d.err == nil && repeated(out) {
		d.wrong("has a key more than once")
	}
	return out
}

// pairLists decodes a list of maps of strings. Of more than limit, one is kept.
func (d *Decoder) pairLists(limit int) [][]Pair {
	out := [][]Pair{}
	name := d.name
	for more := d.firstItem(); more; more = d.nextItem() {
		if d.name = name; d.peek() != '{' {
			d.wrong("must be a list of maps of strings")
			break
		}
		if len(out) <= limit {
			out = append(out, d.pairList())
		} else {
			out[limit] = d.pairList()
		}
	}
	return out
}

func repeated(pairs []Pair) bool {
	if len(pairs) > quadratic {
		seen := make(map[string]struct{}, len(pairs))
		for _, p := range pairs {
			seen[p.Key] = struct{}{}
		}
		return len(seen) < len(pairs)
	}
	for i := range pairs {
		for j := range i {
			if pairs[i].Key == pairs[j].Key {
				return true
			}
		}
	}
	return false
}

// decodeList decodes a list of structures. Those beyond limit+1 are decoded and
// forgotten: one too many is enough for the validator to say so, and a long
// body full of {} must not become a list of millions.
func decodeList[T any, P interface {
	*T
	decode(*Decoder)
}](d *Decoder, limit int) []T {
	out := []T{}
	name := d.name
	var zero T
	for more := d.firstItem(); more; more = d.nextItem() {
		if d.name = name; d.peek() != '{' {
			d.wrong("must be a list of objects")
			break
		}
		if len(out) <= limit {
			out = append(out, zero)
		} else {
			out[limit] = zero
		}
		P(&out[len(out)-1]).decode(d)
	}
	return out
}

// skip reads over a value that nobody asked for. Its syntax is checked like
// that of any other.
func (d *Decoder) skip() {
	if d.err != nil {
		return
	}
	switch c := d.peek(); c {
	case '"':
		d.text()
	case '{':
		for _, ok := d.first(); ok; _, ok = d.next() {
			d.skip()
		}
	case '[':
		for more := d.firstItem(); more; more = d.nextItem() {
			d.skip()
		}
	case 't':
		d.literal("true")
	case 'f':
		d.literal("false")
	case 'n':
		d.literal("null")
	default:
		d.skipNumber()
	}
}

// unsupported refuses a member that AWS KMS has and Keymill does not: whoever
// narrows a right by it must not get the whole.
func (d *Decoder) unsupported() {
	if d.peek() == 'n' {
		d.literal("null")
	} else if d.err == nil {
		d.err = NewError(UnsupportedOperationException, "%s is not supported: leave it out of the request.", d.name)
	}
}

func (d *Decoder) skipNumber() {
	if d.peek() == '-' {
		d.i++
	}
	if d.peek() == '0' {
		d.i++
	} else if !d.digits() {
		d.syntax("a value")
		return
	}
	if d.peek() == '.' {
		d.i++
		if !d.digits() {
			d.syntax("a digit")
			return
		}
	}
	if c := d.peek(); c == 'e' || c == 'E' {
		d.i++
		if c := d.peek(); c == '+' || c == '-' {
			d.i++
		}
		if !d.digits() {
			d.syntax("a digit")
		}
	}
}

func (d *Decoder) digits() bool {
	from := d.i
	for d.i < len(d.b) && d.b[d.i]-'0' <= 9 {
		d.i++
	}
	return d.i > from
}

// unescape appends the decoded form of the valid UTF-8 string s to dst, which
// has room for it. It refuses unknown escapes and surrogates without partner.
func unescape(dst []byte, s string) ([]byte, bool) {
	for {
		n := strings.IndexByte(s, '\\')
		if n < 0 {
			return append(dst, s...), true
		}
		dst = append(dst, s[:n]...)
		if s = s[n:]; len(s) < 2 {
			return dst, false
		}
		c := s[1]
		if c != 'u' {
			if int(c) >= len(escapes) || escapes[c] == 0 {
				return dst, false
			}
			dst = append(dst, escapes[c])
			s = s[2:]
			continue
		}
		r, ok := hex4(s)
		if !ok || r >= 0xDC00 && r < 0xE000 {
			return dst, false
		}
		s = s[6:]
		if r >= 0xD800 && r < 0xDC00 {
			low, ok := hex4(s)
			if !ok || low < 0xDC00 || low >= 0xE000 {
				return dst, false
			}
			r = 0x10000 + (r-0xD800)<<10 + (low - 0xDC00)
			s = s[6:]
		}
		dst = utf8.AppendRune(dst, r)
	}
}

var escapes = [128]byte{'"': '"', '\\': '\\', '/': '/', 'b': '\b', 'f': '\f', 'n': '\n', 'r': '\r', 't': '\t'}

// hex4 reads \uXXXX at the start of s.
func hex4(s string) (rune, bool) {
	if len(s) < 6 || s[0] != '\\' || s[1] != 'u' {
		return 0, false
	}
	var r rune
	for _, c := range []byte(s[2:6]) {
		switch {
		case c >= '0' && c <= '9':
			c -= '0'
		case c >= 'a' && c <= 'f':
			c -= 'a' - 10
		case c >= 'A' && c <= 'F':
			c -= 'A' - 10
		default:
			return 0, false
		}
		r = r<<4 | rune(c)
	}
	return r, true
}
