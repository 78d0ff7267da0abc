package keystore

import (
	"fmt"
	"reflect"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

// TestCompact writes and reads a key of which every field is set, found by
// reflection so that none is forgotten, and then each field alone.
func TestCompact(t *testing.T) {
	full := Key{}
	setAll(reflect.ValueOf(&full).Elem(), 1)
	if len(full.Versions) != 2 || full.Versions[1].MaterialID == ([32]byte{}) {
		t.Fatalf("not filled: %+v", full)
	}
	check := func(name string, k *Key) {
		t.Helper()
		prefix := []byte("before")
		b := k.AppendCompact(prefix)
		if !strings.HasPrefix(string(b), "before") {
			t.Errorf("%s: what was there is gone", name)
		}
		got := ParseCompact(k.Ref(), b[len(prefix):])
		if d := cmp.Diff(k, got); d != "" {
			t.Errorf("%s (-want +got):\n%s", name, d)
		}
	}
	check("full", &full)
	check("empty", &Key{Region: "eu-west-1"})
	for i := range reflect.TypeFor[Key]().NumField() {
		one := Key{Region: "eu-west-1"}
		reflect.ValueOf(&one).Elem().Field(i).Set(reflect.ValueOf(full).Field(i))
		check(reflect.TypeFor[Key]().Field(i).Name, &one)
	}
	for i := range reflect.TypeFor[Version]().NumField() {
		one := Key{Region: "eu-west-1", Versions: make([]Version, 3)}
		reflect.ValueOf(&one.Versions[1]).Elem().Field(i).Set(reflect.ValueOf(full.Versions[1]).Field(i))
		check("version's "+reflect.TypeFor[Version]().Field(i).Name, &one)
	}
	for _, w := range words {
		check(w, &Key{Region: "eu-west-1", State: w})
	}
}

// TestCompactIsSmall: of a usual key.
func TestCompactIsSmall(t *testing.T) {
	k := Key{Account: "111122223333", Region: "us-east-1", Spec: "SYMMETRIC_DEFAULT", Usage: "ENCRYPT_DECRYPT", Origin: "AWS_KMS", State: "Enabled",
		Manager: "CUSTOMER", Created: time.Date(2026, 11, 22, 1, 2, 3, 4, time.UTC), CurrentVersion: 1, Revision: 1 << 20,
		Versions: []Version{{Number: 1, Created: time.Date(2026, 11, 22, 1, 2, 3, 4, time.UTC)}}}
	if n := len(k.AppendCompact(nil)); n > 96 {
		t.Errorf("%d bytes", n)
	}
	b := k.AppendCompact(nil)
	if got := testing.AllocsPerRun(100, func() { ParseCompact(k.Ref(), b) }); got > 5 {
		t.Errorf("%v allocations", got)
	}
}

// setAll sets all fields of v to values that differ and are valid.
func setAll(v reflect.Value, n int) int {
	switch v.Kind() {
	case reflect.String:
		v.SetString(fmt.Sprint("text ", n))
	case reflect.Bool:
		v.SetBool(true)
	case reflect.Int32:
		v.SetInt(int64(1000 + n))
	case reflect.Uint8, reflect.Uint32, reflect.Uint64:
		v.SetUint(uint64(n % 250))
	case reflect.Array:
		for i := range v.Len() {
			n = setAll(v.Index(i), n)
		}
	case reflect.Slice:
		v.Set(reflect.MakeSlice(v.Type(), 2, 2))
		for i := range v.Len() {
			n = setAll(v.Index(i), n)
		}
	case reflect.Struct:
		if v.Type() == reflect.TypeFor[time.Time]() {
			v.Set(reflect.ValueOf(time.Unix(int64(1_700_000_000+n), int64(n)).UTC()))
			break
		}
		for i := range v.NumField() {
			n = setAll(v.Field(i), n)
		}
	default:
		panic(v.Kind())
	}
	return n + 1
}
