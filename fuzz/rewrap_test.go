package fuzz

import (
	"bytes"
	"testing"

	"github.com/fxamacker/cbor/v2"

	"keymill/hsm"
	"keymill/keystore"
)

// FuzzRewrapRecord: the records of a move to another domain key are read without panic,
// and what is accepted is within its bounds.
func FuzzRewrapRecord(f *testing.F) {
	id := bytes.Repeat([]byte{7}, 16)
	for _, seed := range []map[int]any{
		{},
		{1: id, 2: make([]byte, 16), 3: map[int]any{1: hsm.KindSoftware}, 4: map[int]any{1: hsm.KindPKCS11, 2: "/m.so", 3: "token", 4: "/pin"}, 5: 1},
		{1: id, 2: id, 3: map[int]any{1: hsm.KindSoftware}, 4: map[int]any{1: hsm.KindSoftware}},
		{1: map[int]any{1: hsm.KindSoftware}, 2: int64(1)},
		{1: map[int]any{1: "paper"}, 2: int64(-1)},
	} {
		b, err := cbor.Marshal(seed)
		if err != nil {
			f.Fatal(err)
		}
		f.Add("rewrap/retired/00112233445566778899aabbccddeeff", append([]byte{1}, b...))
		f.Add("rewrap/retired/x", append([]byte{1}, b...))
	}
	known := func(t *testing.T, p keystore.Place) {
		if p.Kind != hsm.KindSoftware && p.Kind != hsm.KindPKCS11 {
			t.Errorf("a place of kind %q", p.Kind)
		}
		if p.String() == "" {
			t.Error("a place without a name")
		}
	}
	f.Fuzz(func(t *testing.T, name string, value []byte) {
		if r, err := keystore.ParseRewrap(value); err == nil {
			known(t, r.From)
			known(t, r.To)
			if r.Source == r.Target || !r.Begun.IsZero() && r.Begun.Year() < 1970 {
				t.Errorf("accepted %+v", r)
			}
		}
		if k, err := keystore.ParseRetired(name, value); err == nil {
			known(t, k.Place)
			if name != "rewrap/retired/"+k.ID.String() {
				// Upper-case digits would be a second name of one key.
				t.Errorf("%q is read as %s", name, k.ID)
			}
		}
	})
}
