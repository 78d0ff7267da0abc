package wire_test

import (
	"encoding/base64"
	"strings"
	"testing"

	"keymill/daemon/wire"
)

const arn = "arn:aws:kms:us-east-1:111122223333:key/1234abcd-12ab-34cd-56ef-1234567890ab"

var (
	blob32  = base64.StdEncoding.EncodeToString([]byte(strings.Repeat("\xfb", 32)))
	blob200 = base64.StdEncoding.EncodeToString([]byte(strings.Repeat("\xfb", 200)))
)

// hot is a request as the clients send it (Python's has spaces) and its answer.
type hot struct {
	name   string
	in     wire.Input
	body   string
	out    wire.Output
	oracle func() any // structure for encoding/json
}

func hotOps() []hot {
	material := strings.Repeat("0123456789abcdef", 4)
	return []hot{
		{"Encrypt", new(wire.EncryptRequest),
			`{"KeyId":"` + arn + `","Plaintext":"` + blob32 + `","EncryptionContext":{"tenant":"blue","volume":"vol-0123456789"}}`,
			&wire.EncryptResponse{CiphertextBlob: make([]byte, 200), KeyId: arn, EncryptionAlgorithm: "SYMMETRIC_DEFAULT"},
			func() any { return new(plainEncrypt) }},
		{"Decrypt", new(wire.DecryptRequest),
			`{"CiphertextBlob": "` + blob200 + `", "EncryptionContext": {"tenant": "bl\u00fce"}, "GrantTokens": ["a", "b"]}`,
			&wire.DecryptResponse{KeyId: arn, Plaintext: make([]byte, 32), EncryptionAlgorithm: "SYMMETRIC_DEFAULT", KeyMaterialId: material},
			func() any { return new(plainDecrypt) }},
		{"GenerateDataKey", new(wire.GenerateDataKeyRequest),
			`{"KeyId":"` + arn + `","KeySpec":"AES_256"}`,
			&wire.GenerateDataKeyResponse{CiphertextBlob: make([]byte, 200), Plaintext: make([]byte, 32), KeyId: arn, KeyMaterialId: material},
			func() any { return new(plainDataKey) }},
		{"Sign", new(wire.SignRequest),
			`{"KeyId": "alias/signing", "Message": "` + blob32 + `", "MessageType": "DIGEST", "SigningAlgorithm": "ECDSA_SHA_256"}`,
			&wire.SignResponse{KeyId: arn, Signature: make([]byte, 71), SigningAlgorithm: "ECDSA_SHA_256"},
			func() any { return new(plainSign) }},
	}
}

type (
	plainEncrypt struct {
		KeyId, EncryptionAlgorithm string
		Plaintext                  []byte
		EncryptionContext          map[string]string
		GrantTokens                []string
		DryRun                     *bool
	}
	plainDecrypt struct {
		KeyId, EncryptionAlgorithm   string
		CiphertextBlob               []byte
		EncryptionContext            map[string]string
		GrantTokens, DryRunModifiers []string
		DryRun                       *bool
	}
	plainDataKey struct {
		KeyId, KeySpec    string
		NumberOfBytes     *int
		EncryptionContext map[string]string
		GrantTokens       []string
		DryRun            *bool
	}
	plainSign struct {
		KeyId, MessageType, SigningAlgorithm string
		Message                              []byte
		GrantTokens                          []string
		DryRun                               *bool
	}
)

// TestAllocs holds that decoding, validating and encoding the hot operations
// allocates nothing once decoder and buffer have grown.
func TestAllocs(t *testing.T) {
	if raceEnabled {
		t.Skip("the race detector allocates on its own")
	}
	var d wire.Decoder
	var v wire.Violations
	dst := make([]byte, 0, 4096)
	for _, h := range hotOps() {
		body := []byte(h.body)
		got := testing.AllocsPerRun(200, func() {
			if err := d.Decode(h.in, body); err != nil {
				t.Fatal(err)
			}
			v.Reset()
			if h.in.Validate(&v); v.Err() != nil {
				t.Fatal(v.Err())
			}
			dst = h.out.AppendJSON(dst[:0])
			d.Reset()
			h.in.Reset()
		})
		if got != 0 {
			t.Errorf("%s: %v allocations", h.name, got)
		}
	}
	target := []byte("TrentService.GenerateDataKey")
	if got := testing.AllocsPerRun(100, func() { wire.OpByTarget(target) }); got != 0 {
		t.Errorf("OpByTarget: %v allocations", got)
	}
}
