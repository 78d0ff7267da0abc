package bulk

import (
	"bytes"
	"encoding/hex"
	"errors"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

// sample is one answer of each kind with all that can be in one.
func sample(k Kind) (answer []byte, want []Record) {
	h := Head{Kind: k, Count: 4, KeyID: "arn", MaterialID: "m0", Algorithm: "ALG", Prefix: []byte("pre")}
	b := AppendHead(nil, &h)
	b = AppendError(b, "Code", "message")
	want = append(want, Record{Code: "Code", Message: "message"})
	for _, s := range []string{"one", "", strings.Repeat("x", 65535)} {
		switch k {
		case DataKeys:
			b = AppendDataKey(b, []byte("p" + s)[:min(len(s), 9)], []byte(s))
			want = append(want, Record{Plaintext: []byte("p" + s)[:min(len(s), 9)], Rest: []byte(s)})
		case Encrypt:
			b = AppendBlob(b, []byte(s))
			want = append(want, Record{Rest: []byte(s)})
		case Decrypt:
			// The first inherits the head's, the second names a key without
			// material, the third inherits that.
			key, material := map[string]string{"": "other"}[s], ""
			b = AppendDecrypted(b, []byte(s), key, material)
			r := Record{Plaintext: []byte(s), KeyID: "other"}
			if s == "one" {
				r.KeyID, r.MaterialID = "arn", "m0"
			}
			want = append(want, r)
		case Sign:
			b = AppendBlob(b, []byte(s))
			want = append(want, Record{Signature: []byte(s)})
		case Verify:
			b = AppendVerified(b)
			want = append(want, Record{})
		}
	}
	return b, want
}

func read(answer []byte) (got []Record, err error) {
	r, err := NewReader(answer)
	if err != nil {
		return nil, err
	}
	for {
		var rec Record
		ok, err := r.Next(&rec)
		if err != nil || !ok {
			return got, err
		}
		got = append(got, rec)
	}
}

func TestRoundTrip(t *testing.T) {
	for k := DataKeys; k <= Verify; k++ {
		answer, want := sample(k)
		got, err := read(answer)
		if diff := cmp.Diff(want, got); diff != "" || err != nil {
			t.Errorf("kind %d: %v\n%s", k, err, diff)
		}
	}
}

// TestVector pins version 1 down, byte by byte.
func TestVector(t *testing.T) {
	b := AppendHead(nil, &Head{Kind: DataKeys, Count: 2, KeyID: "a", MaterialID: "b", Algorithm: "c", Prefix: []byte{0xfe}})
	b = AppendDataKey(b, []byte{1, 2}, []byte{3})
	b = AppendError(b, "E", "")
	const want = "4b4d424b" + "01" + "01" + "00000002" + "000161" + "000162" + "000163" + "0001fe" +
		"00" + "00020102" + "000103" + "01" + "000145" + "0000"
	if got := hex.EncodeToString(b); got != want {
		t.Errorf("got  %s\nwant %s", got, want)
	}
}

// TestDamaged: an answer that was cut off anywhere, or has more than it should,
// is never taken for a whole one.
func TestDamaged(t *testing.T) {
	for k := DataKeys; k <= Verify; k++ {
		answer, _ := sample(k)
		for n := range len(answer) {
			if n > 300 && n < len(answer)-300 {
				continue
			}
			if _, err := read(answer[:n]); !errors.Is(err, ErrMalformed) {
				t.Fatalf("kind %d cut at %d of %d: %v", k, n, len(answer), err)
			}
		}
		if _, err := read(append(answer, 0)); !errors.Is(err, ErrMalformed) {
			t.Errorf("kind %d with a byte more: %v", k, err)
		}
	}
	good := AppendVerified(AppendHead(nil, &Head{Kind: Verify, Count: 1}))
	for name, damage := range map[string]func(b []byte){
		"magic":             func(b []byte) { b[0]++ },
		"version":           func(b []byte) { b[4] = 2 },
		"kind 0":            func(b []byte) { b[5] = 0 },
		"kind 6":            func(b []byte) { b[5] = 6 },
		"count":             func(b []byte) { b[8] = 0x40 },
		"status":            func(b []byte) { b[len(b)-1] = 2 },
		"error without end": func(b []byte) { b[len(b)-1] = 1 },
	} {
		b := bytes.Clone(good)
		damage(b)
		if _, err := read(b); !errors.Is(err, ErrMalformed) {
			t.Errorf("%s: %v", name, err)
		}
	}
	if _, err := read(AppendError(AppendHead(nil, &Head{Kind: Verify, Count: 1}), "", "m")); !errors.Is(err, ErrMalformed) {
		t.Errorf("an error without a code: %v", err)
	}
}

func TestLongTexts(t *testing.T) {
	b := AppendError(AppendHead(nil, &Head{Kind: Sign, Count: 1}), "Code", strings.Repeat("m", 70000))
	got, err := read(b)
	if err != nil || len(got) != 1 || len(got[0].Message) != 65535 {
		t.Errorf("%d records, %v", len(got), err)
	}
}
