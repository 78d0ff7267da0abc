package wire_test

import (
	"encoding/json"
	"math"
	"strings"
	"testing"

	"keymill/daemon/wire"
)

func TestEncode(t *testing.T) {
	for _, c := range []struct {
		name string
		out  wire.Output
		want string
	}{
		{"members", &wire.EncryptResponse{CiphertextBlob: []byte{0, 255}, KeyId: "k", EncryptionAlgorithm: "SYMMETRIC_DEFAULT"},
			`{"CiphertextBlob":"AP8=","EncryptionAlgorithm":"SYMMETRIC_DEFAULT","KeyId":"k"}`},
		{"nothing", &wire.EncryptResponse{}, `{}`},
		{"no members", &wire.DeleteCustomKeyStoreResponse{}, `{}`},
		{"empty blob", &wire.GenerateRandomResponse{Plaintext: []byte{}}, `{"Plaintext":""}`},
		{"overlay", &wire.DescribeKeyResponse{KeyMetadata: &wire.KeyMetadata{KeyId: "k"}}, `{"KeyMetadata":{"Description":"","KeyId":"k"}}`},
		{"grant name", &wire.ListGrantsResponse{Grants: []wire.GrantListEntry{{}}}, `{"Grants":[{"Name":""}]}`},
		{"required", &wire.ListResourceTagsResponse{Tags: []wire.Tag{{TagKey: "a"}}, Truncated: wire.Some(false)},
			`{"Tags":[{"TagKey":"a","TagValue":""}],"Truncated":false}`},
		{"lists", &wire.MultiRegionConfiguration{ReplicaKeys: []wire.MultiRegionKey{}}, `{"ReplicaKeys":[]}`},
		{"strings", &wire.GetPublicKeyResponse{SigningAlgorithms: []string{"A", "B"}, EncryptionAlgorithms: []string{}},
			`{"EncryptionAlgorithms":[],"SigningAlgorithms":["A","B"]}`},
		{"map", &wire.GrantListEntry{Constraints: &wire.GrantConstraints{EncryptionContextEquals: []wire.Pair{{Key: "b", Value: "1"}, {Key: "a", Value: "2"}}}},
			`{"Constraints":{"EncryptionContextEquals":{"b":"1","a":"2"}},"Name":""}`},
		{"numbers", &wire.ScheduleKeyDeletionResponse{DeletionDate: wire.Some(1614905581.947), PendingWindowInDays: wire.Some[int64](7)},
			`{"DeletionDate":1614905581.947,"PendingWindowInDays":7}`},
	} {
		t.Run(c.name, func(t *testing.T) {
			if got := string(c.out.AppendJSON(nil)); got != c.want {
				t.Errorf("got  %s\nwant %s", got, c.want)
			}
			if got := string(c.out.AppendJSON([]byte("x,"))); got != "x,"+c.want {
				t.Errorf("appended: %s", got)
			}
		})
	}
}

func TestEncodeTime(t *testing.T) {
	for _, c := range []struct {
		v    float64
		want string
	}{
		{0, "0"}, {-0.0001, "0"}, {1477431461, "1477431461"}, {1.5, "1.5"}, {1.25, "1.25"}, {1.001, "1.001"}, {1.0004, "1"},
		{1.9996, "2"}, {-1.5, "-1.5"}, {math.Inf(1), "253402300799.999"}, {math.Inf(-1), "-62135596800"}, {math.NaN(), "0"},
	} {
		out := wire.GetKeyLastUsageResponse{TrackingStartDate: wire.Some(c.v)}
		if got := string(out.AppendJSON(nil)); got != `{"TrackingStartDate":`+c.want+`}` {
			t.Errorf("%v: got %s, want %s", c.v, got, c.want)
		}
	}
}

// TestEscaping reads strings of every byte and many runes back.
func TestEscaping(t *testing.T) {
	var all []string
	for i := range 256 {
		for _, pad := range []string{"", "a", "abcdefg", "abcdefghijklmno"} {
			all = append(all, pad+string([]byte{byte(i)})+pad)
		}
	}
	all = append(all, "", "é日本😀", "\u2028</script>&", "\xed\xa0\x80", "\xf0\x9f\x98", strings.Repeat("\"", 100), "\uFFFD")
	for _, s := range all {
		text := wire.ErrorText(wire.ValidationException, s).AppendJSON(nil)
		var got struct{ Message string }
		if err := json.Unmarshal(text, &got); err != nil {
			t.Errorf("%q: %s: %v", s, text, err)
			continue
		}
		// Go's range replaces each bad byte by U+FFFD, as the encoder does.
		if want := string([]rune(s)); got.Message != want {
			t.Errorf("%q became %q, want %q", s, got.Message, want)
		}
	}
}

// TestSecretAnswerStays shows that an answer with plaintext is written into
// one array, and that the short buffer it came from is wiped.
func TestSecretAnswerStays(t *testing.T) {
	out := wire.DecryptResponse{Plaintext: []byte("plaintext"), KeyId: strings.Repeat("\x01", 50), KeyMaterialId: strings.Repeat("\xff", 70),
		EncryptionAlgorithm: `""""`, CiphertextForRecipient: make([]byte, 1000)}
	old := []byte("something before")
	room := make([]byte, 0, 1<<14)
	text := out.AppendJSON(room)
	if &text[0] != &room[:1][0] {
		t.Error("a long enough buffer was not used")
	}
	moved := out.AppendJSON(old)
	if string(moved) != "something before"+string(text) {
		t.Errorf("moved text differs: %s", moved)
	}
	if strings.Trim(string(old), "\x00") != "" {
		t.Errorf("the old array still holds %q", old)
	}
}
