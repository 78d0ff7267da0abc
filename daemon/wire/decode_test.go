package wire_test

import (
	"bytes"
	"fmt"
	"strings"
	"testing"
	"time"
	"unsafe"

	"github.com/google/go-cmp/cmp"
	"keymill/daemon/wire"
	"keymill/daemon/wire/reftest"
)

// TestOutcomes holds the table of the package documentation: what each odd
// body becomes. An error's text starts with err.
func TestOutcomes(t *testing.T) {
	const key = `"KeyId":"k"`
	for _, c := range []struct {
		name, body, err string
		want            reftest.Object
	}{
		{"empty", "", "", reftest.Object{}},
		{"empty object", " {} ", "", reftest.Object{}},
		{"only space", "  ", "The body must be a JSON object", nil},
		{"null body", "null", "The body must be a JSON object", nil},
		{"array body", "[]", "The body must be a JSON object", nil},
		{"mark", "\xEF\xBB\xBF{}", "The body starts with a byte order mark", nil},
		{"trailing", "{} {}", "Expected the end of the body at byte 3", nil},
		{"trailing NUL", "{}\x00", "Expected the end of the body at byte 2", nil},
		{"cut", `{"KeyId":"k`, "The body ends within a string", nil},
		{"cut after name", `{"KeyId"`, "Expected a colon at byte 8", nil},
		{"cut after value", `{` + key, "Expected a comma or the end of an object at byte 12", nil},
		{"trailing comma", `{` + key + `,}`, "Expected a member name at byte 13", nil},
		{"comment", `{/**/}`, "Expected a member name at byte 1", nil},
		{"single quotes", `{'KeyId':'k'}`, "Expected a member name at byte 1", nil},

		{"exact name", `{"KeyId":"k"}`, "", reftest.Object{"KeyId": "k"}},
		{"escaped name", `{"Key\u0049d":"k"}`, "", reftest.Object{"KeyId": "k"}},
		{"folded name", `{"keyId":1,"KEYID":[],"KeyID":{}}`, "", reftest.Object{}},
		{"kelvin sign", "{\"\u212aeyId\":\"k\"}", "", reftest.Object{}},
		{"unknown", `{"X":{"a":[1,-2.5e+3,{"b":null}],"a":true},"X":"",` + key + `}`, "", reftest.Object{"KeyId": "k"}},
		{"unknown, bad inside", `{"X":{"a":[1,]}}`, "Expected a value at byte 13", nil},
		{"unknown, not UTF-8", "{\"X\":\"\xff\"}", "The string at byte 6 is not UTF-8", nil},
		{"unknown, lone surrogate", `{"X":"\ud800"}`, "Bad escape in the string at byte 6", nil},
		{"repeated", `{` + key + `,` + key + `}`, "KeyId appears more than once", nil},
		{"repeated with null", `{"KeyId":null,` + key + `}`, "KeyId appears more than once", nil},
		{"repeated by escape", `{` + key + `,"\u004beyId":"k"}`, "KeyId appears more than once", nil},
		{"null", `{"KeyId":null,"DryRun":null,"GrantTokens":null,"EncryptionContext":null,"Plaintext":null}`, "", reftest.Object{}},

		{"string from number", `{"KeyId":1}`, "KeyId must be a string", nil},
		{"string from object", `{"KeyId":{}}`, "KeyId must be a string", nil},
		{"empty string", `{"KeyId":""}`, "", reftest.Object{"KeyId": ""}},
		{"escapes", `{"KeyId":"\"\\\/\b\f\n\r\t\u00e9\ud83d\ude00"}`, "", reftest.Object{"KeyId": "\"\\/\b\f\n\r\t\u00e9\U0001F600"}},
		{"escaped NUL", `{"KeyId":"\u0000"}`, "", reftest.Object{"KeyId": "\x00"}},
		{"unknown escape", `{"KeyId":"\a"}`, "Bad escape in the string at byte 10", nil},
		{"short escape", `{"KeyId":"\u12"}`, "Bad escape in the string at byte 10", nil},
		{"high surrogate", `{"KeyId":"\ud83dx"}`, "Bad escape in the string at byte 10", nil},
		{"low surrogate", `{"KeyId":"\ude00"}`, "Bad escape in the string at byte 10", nil},
		{"swapped surrogates", `{"KeyId":"\ude00\ud83d"}`, "Bad escape in the string at byte 10", nil},
		{"control", "{\"KeyId\":\"a\tb\"}", "Control character in a string at byte 11", nil},
		{"not UTF-8", "{\"KeyId\":\"\xc3\x28\"}", "The string at byte 10 is not UTF-8", nil},
		{"encoded surrogate", "{\"KeyId\":\"\xed\xa0\x80\"}", "The string at byte 10 is not UTF-8", nil},
		{"overlong", "{\"KeyId\":\"\xc0\xaf\"}", "The string at byte 10 is not UTF-8", nil},

		{"blob", `{"Plaintext":"AP8="}`, "", reftest.Object{"Plaintext": []byte{0, 255}}},
		{"blob, escaped slash", `{"Plaintext":"\/\/\/\/"}`, "", reftest.Object{"Plaintext": []byte{255, 255, 255}}},
		{"blob, empty", `{"Plaintext":""}`, "", reftest.Object{"Plaintext": []byte{}}},
		{"blob, no padding", `{"Plaintext":"AP8"}`, "Plaintext must be Base64 with padding", nil},
		{"blob, stray bits", `{"Plaintext":"AP9="}`, "Plaintext must be Base64 with padding", nil},
		{"blob, much padding", `{"Plaintext":"AP8=="}`, "Plaintext must be Base64 with padding", nil},
		{"blob, after padding", `{"Plaintext":"AA==AA=="}`, "Plaintext must be Base64 with padding", nil},
		{"blob, URL alphabet", `{"Plaintext":"__8="}`, "Plaintext must be Base64 with padding", nil},
		{"blob, space", `{"Plaintext":"AP8= "}`, "Plaintext must be Base64 with padding", nil},
		{"blob, line break", `{"Plaintext":"AP8=\n"}`, "Plaintext must be Base64 with padding", nil},
		{"blob, CR within", `{"Plaintext":"AP\r8="}`, "Plaintext must be Base64 with padding", nil},
		{"blob from list", `{"Plaintext":[0]}`, "Plaintext must be a Base64 string", nil},

		{"boolean", `{"DryRun":false}`, "", reftest.Object{"DryRun": false}},
		{"boolean from string", `{"DryRun":"true"}`, "DryRun must be true or false", nil},
		{"boolean, cut", `{"DryRun":tru}`, "Expected a value at byte 10", nil},
		{"list", `{"GrantTokens":["a","b"]}`, "", reftest.Object{"GrantTokens": []any{"a", "b"}}},
		{"empty list", `{"GrantTokens":[]}`, "", reftest.Object{"GrantTokens": []any{}}},
		{"null in list", `{"GrantTokens":["a",null]}`, "GrantTokens must be a list of strings", nil},
		{"list from string", `{"GrantTokens":"a"}`, "GrantTokens must be a list", nil},
		{"map keeps order", `{"EncryptionContext":{"b":"1","a":"2"}}`, "", reftest.Object{"EncryptionContext": reftest.Pairs{{"b", "1"}, {"a", "2"}}}},
		{"empty map", `{"EncryptionContext":{}}`, "", reftest.Object{"EncryptionContext": reftest.Pairs{}}},
		{"map with null", `{"EncryptionContext":{"b":null}}`, "EncryptionContext must be a map of strings", nil},
		{"map with number", `{"EncryptionContext":{"b":1}}`, "EncryptionContext must be a map of strings", nil},
		{"map key twice", `{"EncryptionContext":{"b":"1","a":"","\u0062":"1"}}`, "EncryptionContext has a key more than once", nil},
		{"map from list", `{"EncryptionContext":[]}`, "EncryptionContext must be an object", nil},

		{"depth 16", `{"X":` + strings.Repeat("[", 15) + strings.Repeat("]", 15) + `}`, "", reftest.Object{}},
		{"depth 17", `{"X":` + strings.Repeat("[", 16) + strings.Repeat("]", 16) + `}`, "The body is nested deeper than 16 levels", nil},
	} {
		t.Run(c.name, func(t *testing.T) {
			checkOutcome(t, wire.OpEncrypt, c.body, c.err, c.want)
		})
	}
}

// TestNumbers covers integers and timestamps likewise.
func TestNumbers(t *testing.T) {
	for _, c := range []struct{ text, integer, timestamp string }{
		{"1", "", ""},
		{"-7", "", ""},
		{"-0", "", ""},
		{"2147483647", "", ""},
		{"2147483648", "%s must be an integer of 32 bits", ""},
		{"99999999999999999999", "%s must be an integer of 32 bits", "%s must be a time in the years 1 to 9999"},
		{"1.0", "%s must be an integer of 32 bits", ""},
		{"1e0", "%s must be an integer of 32 bits", ""},
		{"1.477431461E9", "%s must be an integer of 32 bits", ""},
		{"1e400", "%s must be an integer of 32 bits", "%s must be a time in the years 1 to 9999"},
		{"253402300800", "%s must be an integer of 32 bits", "%s must be a time in the years 1 to 9999"},
		{`"1"`, "%s must be an integer", "%s must be a number of seconds"},
		{"true", "%s must be an integer", "%s must be a number of seconds"},
		{"NaN", "%s must be an integer", "%s must be a number of seconds"},
		{"+1", "%s must be an integer", "%s must be a number of seconds"},
		{"01", "Expected a comma", "Expected a comma"},
		{"1.", "Expected a digit", "Expected a digit"},
		{"1e", "Expected a digit", "Expected a digit"},
		{"-", "Expected a value", "Expected a value"},
		{"1_0", "Expected a comma", "Expected a comma"},
		{"0x1", "Expected a comma", "Expected a comma"},
	} {
		for _, f := range []struct {
			op         wire.Op
			name, want string
		}{
			{wire.OpListKeys, "Limit", c.integer},
			{wire.OpImportKeyMaterial, "ValidTo", c.timestamp},
		} {
			if strings.Contains(f.want, "%s") {
				f.want = fmt.Sprintf(f.want, f.name)
			}
			t.Run(f.name+" "+c.text, func(t *testing.T) {
				checkOutcome(t, f.op, `{"`+f.name+`":`+c.text+`}`, f.want, nil)
			})
		}
	}
}

func checkOutcome(t *testing.T, op wire.Op, body, wantErr string, want reftest.Object) {
	t.Helper()
	var d wire.Decoder
	in := wire.NewInput(op)
	err := d.Decode(in, []byte(body))
	switch {
	case wantErr == "" && err != nil:
		t.Fatalf("refused: %v", err)
	case wantErr != "" && err == nil:
		t.Fatalf("accepted as %v", reftest.ObjectOf(in))
	case wantErr != "":
		if err.Code != "SerializationException" || err.Status != 400 || !strings.HasPrefix(err.Message, wantErr) {
			t.Errorf("got %d %v, want %q", err.Status, err, wantErr)
		}
	case want != nil:
		if diff := cmp.Diff(want, reftest.ObjectOf(in)); diff != "" {
			t.Error(diff)
		}
	}
	if err := reftest.Check(op, &d, []byte(body)); err != nil {
		t.Errorf("oracle: %v", err)
	}
}

// TestManyPairs passes the size at which duplicate keys are found otherwise,
// and shows that a body full of keys is not quadratic.
func TestManyPairs(t *testing.T) {
	build := func(n, last int) []byte {
		b := []byte(`{"EncryptionContext":{`)
		for i := range n {
			b = fmt.Appendf(b, `"k%d":"",`, i)
		}
		return fmt.Appendf(b, `"k%d":""}}`, last)
	}
	var d wire.Decoder
	in := new(wire.EncryptRequest)
	for _, n := range []int{1, 31, 32, 33, 34, 60000} {
		if err := d.Decode(in, build(n, n)); err != nil {
			t.Errorf("%d keys: %v", n, err)
		} else if len(in.EncryptionContext) != n+1 {
			t.Errorf("%d keys: got %d", n+1, len(in.EncryptionContext))
		}
		for _, last := range []int{0, n - 1} {
			if err := d.Decode(in, build(n, last)); err == nil {
				t.Errorf("%d keys: repetition of key %d accepted", n, last)
			}
		}
	}
}

func TestBodyBound(t *testing.T) {
	var d wire.Decoder
	in := new(wire.EncryptRequest)
	body := []byte(`{"KeyId":"` + strings.Repeat("a", wire.MaxBody-12) + `"}`)
	if err := d.Decode(in, body); err != nil || len(body) != wire.MaxBody {
		t.Errorf("body of %d bytes: %v", len(body), err)
	}
	if err := d.Decode(in, append(body, ' ')); err == nil {
		t.Error("a body over the bound was accepted")
	}
}

// TestReuse decodes unlike bodies with one decoder and structure: nothing of
// one may show in the next.
func TestReuse(t *testing.T) {
	var d wire.Decoder
	in := new(wire.EncryptRequest)
	full := `{"KeyId":"\u0061","Plaintext":"QUJD","GrantTokens":["x"],"EncryptionContext":{"a":"b"},"DryRun":true,"EncryptionAlgorithm":""}`
	for _, next := range []string{"", "{}", "[", `{"KeyId":1}`} {
		if err := d.Decode(in, []byte(full)); err != nil || !in.HasEncryptionAlgorithm() {
			t.Fatal(err)
		}
		d.Decode(in, []byte(next))
		if o := reftest.ObjectOf(in); len(o) != 0 || in.HasEncryptionAlgorithm() {
			t.Errorf("after %q: %v", next, o)
		}
	}
}

// TestWiped looks at the scratch memory through a stale view: Reset must have
// cleared decoded blobs and unescaped strings, also those of refused bodies.
func TestWiped(t *testing.T) {
	var d wire.Decoder
	in := new(wire.EncryptRequest)
	secret := []byte("attack at dawn, bring no umbrella")
	if err := d.Decode(in, []byte(`{"KeyId":"\u0061lpha","Plaintext":"YXR0YWNrIGF0IGRhd24sIGJyaW5nIG5vIHVtYnJlbGxh"}`)); err != nil {
		t.Fatal(err)
	}
	blob, text := in.Plaintext, unsafe.Slice(unsafe.StringData(in.KeyId), len(in.KeyId))
	if !bytes.Equal(blob, secret) || string(text) != "alpha" {
		t.Fatalf("decoded %q, %q", blob, text)
	}
	d.Reset()
	if !bytes.Equal(blob, make([]byte, len(blob))) || !bytes.Equal(text, make([]byte, len(text))) {
		t.Errorf("Reset left %q and %q", blob, text)
	}

	if err := d.Decode(in, []byte(`{"Plaintext":"YXR0YWNrIGF0IGRhd24sIGJyaW5nIG5vIHVtYnJlbGx!"}`)); err == nil {
		t.Fatal("bad Base64 accepted")
	}
	d.Reset()
	if !bytes.Equal(blob, make([]byte, len(blob))) {
		t.Errorf("Reset left %q of a refused blob", blob)
	}
}

// TestViews shows that plain strings are views on the body and others are not.
func TestViews(t *testing.T) {
	var d wire.Decoder
	in := new(wire.EncryptRequest)
	body := []byte(`{"KeyId":"plain","EncryptionAlgorithm":"esc\u0061ped"}`)
	if err := d.Decode(in, body); err != nil {
		t.Fatal(err)
	}
	copy(body[10:], "PLAIN")
	if in.KeyId != "PLAIN" || in.EncryptionAlgorithm != "escaped" {
		t.Errorf("KeyId %q, EncryptionAlgorithm %q", in.KeyId, in.EncryptionAlgorithm)
	}
}

func TestTime(t *testing.T) {
	for _, s := range []string{"2016-10-25T21:37:41Z", "2021-03-04T15:46:21.947Z", "1960-01-02T03:04:05.006Z", "9999-12-31T23:59:59.999Z"} {
		want, err := time.Parse(time.RFC3339Nano, s)
		if err != nil {
			t.Fatal(err)
		}
		if got := wire.Time(wire.Timestamp(want)); !got.Equal(want) {
			t.Errorf("%s became %v", s, got)
		}
	}
	if wire.Timestamp(time.Time{}).Set || !wire.Time(wire.Opt[float64]{}).IsZero() {
		t.Error("the zero time must be absent")
	}
}
