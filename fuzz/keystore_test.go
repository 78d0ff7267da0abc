package fuzz

import (
	"bytes"
	"reflect"
	"testing"

	"github.com/fxamacker/cbor/v2"

	"keymill/keystore"
)

// FuzzStoreName: a storage key that parses is one that the store would write,
// and its text names its kind.
func FuzzStoreName(f *testing.F) {
	for _, seed := range [][]byte{
		{}, []byte("H"), []byte("R"), []byte("xname"), []byte("j12345678"),
		[]byte("k\x09us-east-10123456789abcdef"),
		[]byte("l\x0c000000000000\x09us-east-10123456789abcdef"),
		[]byte("m\x09us-east-10123456789abcdef\x00\x00\x00\x01"),
		[]byte("a\x0c000000000000\x09us-east-1alias/app"),
		[]byte("b\x09us-east-10123456789abcdefalias/app"),
	} {
		f.Add(seed)
	}
	f.Fuzz(func(t *testing.T, key []byte) {
		n, ok := keystore.ParseName(key)
		if !ok {
			return
		}
		if n.String() == "" {
			t.Error("no text")
		}
		if again := n.StorageKey(); !bytes.Equal(again, key) {
			t.Errorf("%x parses, but is written %x", key, again)
		}
	})
}

// FuzzStoreRecord: the decoder of record values never panics, accepts only
// bounded input, and what it accepts it accepts again in the encoder's own form,
// with the same meaning.
func FuzzStoreRecord(f *testing.F) {
	kinds := []keystore.Kind{
		keystore.KindKey, keystore.KindMaterial, keystore.KindAlias, keystore.KindTarget, keystore.KindTags,
		keystore.KindPrincipal, keystore.KindAccessKey, keystore.KindCount, keystore.KindListing,
		keystore.KindPolicy, keystore.KindAudit, keystore.KindRecord, keystore.KindRevision, keystore.KindUsage,
	}
	seeds := []map[int]any{
		{},
		{1: "000000000000", 3: "SYMMETRIC_DEFAULT", 7: "CUSTOMER", 9: int64(1), 12: []any{map[int]any{1: 1, 2: make([]byte, 32), 3: 5}}, 13: 1},
		{1: []byte("sealed"), 2: []byte("wrapped"), 3: make([]byte, 16)},
		{1: "000000000000", 2: make([]byte, 16), 3: 1, 4: 2},
		{1: []any{map[int]any{1: "a", 2: "b"}, map[int]any{1: "c"}}},
		{1: uint64(3)}, {1: true}, {1: "text"}, {1: []byte("bytes")},
		{1: []any{"Decrypt", "Encrypt"}, 2: append(append(make([]byte, 16), 2, 0, 7, 1, 1, 2, 0, 0, 0, 0, 0, 0, 0, 5), make([]byte, 16)...)},
	}
	for i := range kinds {
		for _, seed := range seeds {
			b, err := cbor.Marshal(seed)
			if err != nil {
				f.Fatal(err)
			}
			f.Add(byte(i), append([]byte{1}, b...))
		}
	}
	f.Fuzz(func(t *testing.T, kind byte, value []byte) {
		n := keystore.Name{Kind: kinds[int(kind)%len(kinds)], Account: "000000000000", Region: "us-east-1", Name: "alias/app"}
		v, err := keystore.ParseRecord(n, value)
		if err != nil {
			return
		}
		if keys, ok := v.(*keystore.Key); ok && len(keys.Versions) > keystore.MaxVersions {
			t.Errorf("%d versions", len(keys.Versions))
		}
		canonical(t, n, value, v)
	})
}

// FuzzStoreHeader: a header of any bytes is taken apart without panicking, and
// its parts are what lies in them.
func FuzzStoreHeader(f *testing.F) {
	head := append([]byte("keymill store\r\n\x1a\x00\x00\x00\x01"), make([]byte, 16+16+8)...)
	f.Add(append(append(head, 0, 3), make([]byte, 3+32)...))
	f.Add(append(append(head, 0xff, 0xff), make([]byte, 40)...))
	f.Add([]byte("keymill store\r\n\x1a\x00\x00\x00\x02"))
	f.Add([]byte{})
	f.Fuzz(func(t *testing.T, b []byte) {
		h, err := keystore.ParseHeader(b)
		if (h == nil) == (err == nil) {
			t.Fatal("neither or both")
		}
		if err == nil && (!bytes.Contains(b, h.WrappedKey) || len(h.WrappedKey) == 0 || !bytes.Contains(b, h.StoreID[:])) {
			t.Errorf("%+v", h)
		}
	})
}

// FuzzBackupManifest: names in a manifest stay inside the backup.
func FuzzBackupManifest(f *testing.F) {
	const sum = `"sha256":"e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"`
	f.Add([]byte(`{"format":1,"store_id":"00","domain_key":"00","revision":1,"created":"2026-01-01T00:00:00Z","files":[{"name":"000001.sst","size":0,` + sum + `}]}`))
	f.Add([]byte(`{"format":1,"files":[{"name":"../x","size":0,` + sum + `}]}`))
	f.Add([]byte(`{"format":2}`))
	f.Add([]byte(`{}x`))
	f.Fuzz(func(t *testing.T, b []byte) {
		m, err := keystore.ParseManifest(b)
		if err != nil {
			return
		}
		for _, file := range m.Files {
			if file.Name == "" || file.Name == "." || file.Name == ".." || bytes.ContainsAny([]byte(file.Name), "/\\") || file.Size < 0 {
				t.Errorf("%+v", file)
			}
		}
	})
}

// canonical checks that the item of a record which means v, encoded deterministically,
// means the same.
func canonical(t *testing.T, n keystore.Name, value []byte, v any) {
	t.Helper()
	var item any
	if err := cbor.Unmarshal(value[1:], &item); err != nil {
		t.Fatalf("accepted, but not CBOR: %v", err)
	}
	enc, err := cbor.CoreDetEncOptions().EncMode()
	if err != nil {
		t.Fatal(err)
	}
	b, err := enc.Marshal(item)
	if err != nil {
		t.Fatal(err)
	}
	again, err := keystore.ParseRecord(n, append([]byte{1}, b...))
	if err != nil || !reflect.DeepEqual(v, again) {
		t.Errorf("%v\n%v, %v", v, again, err)
	}
}
