package wire_test

import (
	"reflect"
	"strings"
	"testing"

	"keymill/daemon/wire"
)

// TestListOfMaps decodes and encodes a list of maps, the one shape that AWS
// KMS's model does not have.
func TestListOfMaps(t *testing.T) {
	var d wire.Decoder
	var in wire.GenerateDataKeysRequest
	const body = `{"EncryptionContexts":[{"a":"b","c":"d"},{},{"a":"\u0062"}]}`
	if err := d.Decode(&in, []byte(body)); err != nil {
		t.Fatal(err)
	}
	want := [][]wire.Pair{{{Key: "a", Value: "b"}, {Key: "c", Value: "d"}}, {}, {{Key: "a", Value: "b"}}}
	if !reflect.DeepEqual(in.EncryptionContexts, want) {
		t.Errorf("decoded %v", in.EncryptionContexts)
	}
	if got := string(in.AppendJSON(nil)); got != strings.ReplaceAll(body, `\u0062`, "b") {
		t.Errorf("encoded %s", got)
	}
	for _, bad := range []string{`{"EncryptionContexts":[null]}`, `{"EncryptionContexts":[{"a":1}]}`, `{"EncryptionContexts":[[]]}`, `{"EncryptionContexts":[{"a":"b","a":"c"}]}`} {
		if err := d.Decode(&in, []byte(bad)); err == nil || err.Code != "SerializationException" {
			t.Errorf("%s: %v", bad, err)
		}
	}
}

// TestLongLists holds that a list over the model's bound is refused as such and
// does not take memory for each of its elements.
func TestLongLists(t *testing.T) {
	const n = 2_000_000
	for _, c := range []struct {
		in           wire.Input
		member, elem string
		kept         func(wire.Input) int
	}{
		{new(wire.BatchEncryptRequest), "Items", "{}", func(in wire.Input) int { return cap(in.(*wire.BatchEncryptRequest).Items) }},
		{new(wire.GenerateDataKeysRequest), "EncryptionContexts", "{}", func(in wire.Input) int { return cap(in.(*wire.GenerateDataKeysRequest).EncryptionContexts) }},
	} {
		var d wire.Decoder
		var v wire.Violations
		body := `{"KeyId":"k","` + c.member + `":[` + strings.Repeat(c.elem+",", n) + c.elem + `]}`
		if err := d.Decode(c.in, []byte(body)); err != nil {
			t.Fatal(err)
		}
		if got := c.kept(c.in); got > 20_000 {
			t.Errorf("%s: %d elements kept", c.member, got)
		}
		c.in.Validate(&v)
		if err := v.Err(); err == nil || !strings.Contains(err.Message, "Member must have length less than or equal to 10000") {
			t.Errorf("%s: %v", c.member, err)
		}
		if err := d.Decode(c.in, []byte(body[:len(body)-3]+`1]}`)); err == nil {
			t.Errorf("%s: a wrong element beyond the bound was accepted", c.member)
		}
	}
}

// TestTooManyEntries: what no list of the model bounds has a bound of its own.
func TestTooManyEntries(t *testing.T) {
	var d wire.Decoder
	for _, c := range []struct{ body, want string }{
		{`{"GrantTokens":[` + strings.Repeat(`"",`, 1<<20) + `""]}`, "The body has too many strings in lists"},
		{`{"Items":[` + strings.Repeat(`{"EncryptionContext":{"":"","a":"","b":"","c":"","d":"","e":"","f":"","g":"","h":"","i":"","j":"","k":"","l":"","m":"","n":"","o":""}},`, 50_000) + `{}]}`, "The body has too many entries in maps"},
	} {
		if err := d.Decode(new(wire.BatchEncryptRequest), []byte(c.body)); err == nil || err.Message != c.want {
			t.Errorf("%v, want %s", err, c.want)
		}
	}
}
