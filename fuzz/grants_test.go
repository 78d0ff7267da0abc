package fuzz

import (
	"strings"
	"testing"

	"github.com/fxamacker/cbor/v2"

	"keymill/keystore"
)

// FuzzGrantRecord: the records of grants decode to what can be encoded and means
// the same, never panic, and keep their bounds.
func FuzzGrantRecord(f *testing.F) {
	const id = "0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef"
	key := strings.Repeat("00", 16)
	names := []keystore.Name{
		{Kind: keystore.KindGrant, Region: "us-east-1", Name: id},
		{Kind: keystore.KindGrantee, Region: "us-east-1", Name: "arn:aws:iam::000000000000:root " + id},
		{Kind: keystore.KindRetiring, Region: "us-east-1", Name: "arn:aws:iam::000000000000:root " + key + " " + id},
		{Kind: keystore.KindGrantName, Region: "us-east-1", Name: "name " + id[:32]},
		{Kind: keystore.KindGrantCount, Region: "us-east-1"},
	}
	pairs := []any{map[int]any{1: "a", 2: "b"}, map[int]any{1: "c"}}
	for i := range names {
		for _, seed := range []map[int]any{
			{},
			{2: "arn:aws:iam::000000000000:root", 4: "000000000000", 5: []string{"Decrypt"}, 9: 5},
			{1: "n", 2: "arn:aws:iam::000000000000:root", 3: "r", 4: "000000000000", 5: []string{"Decrypt", "Encrypt"}, 6: true, 7: pairs, 8: pairs},
			{1: id}, {1: uint64(3)},
		} {
			b, err := cbor.Marshal(seed)
			if err != nil {
				f.Fatal(err)
			}
			f.Add(byte(i), "", append([]byte{1}, b...))
		}
	}
	f.Add(byte(2), "r "+key+" "+id, []byte{1, 0xa0})
	f.Fuzz(func(t *testing.T, kind byte, name string, value []byte) {
		n := names[int(kind)%len(names)]
		if name != "" {
			n.Name = name
		}
		v, err := keystore.ParseRecord(n, value)
		if err != nil {
			return
		}
		switch v := v.(type) {
		case *keystore.Grant:
			if !keystore.ValidGrantID(v.ID) || v.Grantee == "" || strings.Contains(v.Grantee+v.Retiring+v.Name, " ") || len(v.Operations) == 0 {
				t.Errorf("%+v", v)
			}
			for _, list := range [][]keystore.Pair{v.Equals, v.Subset} {
				for i := range list {
					if i > 0 && list[i-1].Key >= list[i].Key {
						t.Errorf("pairs %v", list)
					}
				}
			}
		case keystore.GrantRef:
			if !keystore.ValidGrantID(v.ID) || !strings.HasSuffix(n.Name, " "+v.Key.ID.String()+" "+v.ID) {
				t.Errorf("%q is %v", n.Name, v)
			}
		case string:
			if !keystore.ValidGrantID(v) {
				t.Errorf("%q", v)
			}
		}
		canonical(t, n, value, v)
	})
}
