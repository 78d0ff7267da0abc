package fuzz

import (
	"bytes"
	"encoding/json"
	"math/rand/v2"
	"reflect"
	"slices"
	"testing"

	"keymill/daemon/wire"
	"keymill/daemon/wire/reftest"
)

// FuzzWireDecode holds every operation's decoder, validator and encoder
// against the slow oracle of reftest.
func FuzzWireDecode(f *testing.F) {
	m, err := reftest.Load()
	if err != nil {
		f.Fatal(err)
	}
	s := reftest.Sampler{M: m, R: rand.New(rand.NewPCG(1, 1)), Faults: 20}
	for op := wire.Op(1); op <= wire.NumOps; op++ {
		for range 3 {
			f.Add(byte(op), s.Body(op.String()))
		}
	}
	f.Fuzz(func(t *testing.T, op byte, body []byte) {
		var d wire.Decoder
		if err := reftest.Check(1+wire.Op(op)%wire.NumOps, &d, body); err != nil {
			t.Error(err)
		}
	})
}

// FuzzWireReuse decodes two bodies with one decoder: the first must not show
// in the second.
func FuzzWireReuse(f *testing.F) {
	f.Add(byte(20), []byte(`{"KeyId":"\u0061","Plaintext":"QUJD","EncryptionContext":{"a":"b"}}`), []byte(`{"KeyId":"b\n"}`))
	f.Add(byte(20), []byte(`{"GrantTokens":["a","b"],"KeyId":"`), []byte(`{"GrantTokens":[]}`))
	f.Fuzz(func(t *testing.T, op byte, first, second []byte) {
		o := 1 + wire.Op(op)%wire.NumOps
		var d, fresh wire.Decoder
		in, want := wire.NewInput(o), wire.NewInput(o)
		_ = d.Decode(in, first)
		a, b := d.Decode(in, second), fresh.Decode(want, second)
		if (a == nil) != (b == nil) || a != nil && a.Message != b.Message {
			t.Fatalf("reused decoder says %v, fresh one %v", a, b)
		}
		if x, y := reftest.ObjectOf(in), reftest.ObjectOf(want); !reflect.DeepEqual(x, y) {
			t.Errorf("reused decoder gives %v, fresh one %v", x, y)
		}
	})
}

// outputs has a constructor for each structure of answers.
var outputs = []func() wire.Output{
	func() wire.Output { return new(wire.EncryptResponse) },
	func() wire.Output { return new(wire.DecryptResponse) },
	func() wire.Output { return new(wire.GenerateDataKeyResponse) },
	func() wire.Output { return new(wire.GenerateDataKeyPairResponse) },
	func() wire.Output { return new(wire.DeriveSharedSecretResponse) },
	func() wire.Output { return new(wire.GetParametersForImportResponse) },
	func() wire.Output { return new(wire.GetPublicKeyResponse) },
	func() wire.Output { return new(wire.CreateKeyResponse) },
	func() wire.Output { return new(wire.ReplicateKeyResponse) },
	func() wire.Output { return new(wire.ListGrantsResponse) },
	func() wire.Output { return new(wire.ListAliasesResponse) },
	func() wire.Output { return new(wire.ListKeyRotationsResponse) },
	func() wire.Output { return new(wire.ListResourceTagsResponse) },
	func() wire.Output { return new(wire.DescribeCustomKeyStoresResponse) },
	func() wire.Output { return new(wire.GetKeyLastUsageResponse) },
	func() wire.Output { return new(wire.ScheduleKeyDeletionResponse) },
	func() wire.Output { return new(wire.GenerateDataKeysResponse) },
	func() wire.Output { return new(wire.BatchDecryptResponse) },
	func() wire.Output { return new(wire.BatchVerifyResponse) },
}

// FuzzWireEncodeRoundTrip fills an answer from the fuzzer's bytes, encodes it
// and reads it back with the oracle.
func FuzzWireEncodeRoundTrip(f *testing.F) {
	m, err := reftest.Load()
	if err != nil {
		f.Fatal(err)
	}
	for i := range outputs {
		f.Add(byte(i), []byte("\x05hello\x03\x00\x01\x02\xff\x10\"\\/<>\n\xe9\xf0\x9f\x98\x80some more text to fill the fields with"))
	}
	f.Fuzz(func(t *testing.T, which byte, data []byte) {
		out := outputs[int(which)%len(outputs)]()
		fill(reflect.ValueOf(out).Elem(), &data)
		// A buffer that is too short must give the same as a long one.
		text := out.AppendJSON(make([]byte, 0, 1<<16))
		if again := out.AppendJSON(nil); !bytes.Equal(text, again) {
			t.Fatalf("%s differs from %s", text, again)
		}
		if !json.Valid(text) {
			t.Fatalf("not JSON: %s", text)
		}
		got, err := m.DecodeShape(reflect.TypeOf(out).Elem().Name(), text)
		if err != nil {
			t.Fatalf("%s: %v", text, err)
		}
		want := reftest.ObjectOf(out)
		emitted(want)
		emitted(got)
		if !reflect.DeepEqual(got, want) {
			t.Errorf("encoded %s\ngot  %v\nwant %v", text, got, want)
		}
	})
}

// emitted brings an object to what the encoder promises: valid UTF-8,
// milliseconds, and the strings that are written although empty.
func emitted(o reftest.Object) {
	for k, v := range o {
		switch v := v.(type) {
		case string:
			o[k] = string([]rune(v))
		case float64:
			o[k] = wire.Timestamp(wire.Time(wire.Some(v))).V
		case reftest.Pairs:
			for i := range v {
				v[i] = [2]string{string([]rune(v[i][0])), string([]rune(v[i][1]))}
			}
		case reftest.Object:
			emitted(v)
		case []any:
			for i, e := range v {
				switch e := e.(type) {
				case string:
					v[i] = string([]rune(e))
				case reftest.Object:
					emitted(e)
				}
			}
		}
	}
	for _, k := range []string{"Description", "KeyId", "Name", "TagKey", "TagValue"} {
		if o[k] == "" {
			delete(o, k)
		}
	}
}

// fill sets the fields of v from data: a byte says how long each is.
func fill(v reflect.Value, data *[]byte) {
	take := func(n int) []byte {
		n = min(n, len(*data))
		b := (*data)[:n]
		*data = (*data)[n:]
		return b
	}
	number := func() int {
		b := take(1)
		if len(b) == 0 {
			return 0
		}
		return int(b[0])
	}
	switch p := v.Addr().Interface().(type) {
	case *string:
		*p = string(take(number() % 32))
		return
	case *[]byte:
		if n := number() % 32; n > 0 {
			*p = append([]byte{}, take(n-1)...)
		}
		return
	case *wire.Opt[bool]:
		*p = wire.Opt[bool]{V: number()%2 == 1, Set: true}
		return
	case *wire.Opt[int64]:
		*p = wire.Some(int64(number() - 100))
		return
	case *wire.Opt[float64]:
		*p = wire.Some(float64(number()*number()*number()) / 7)
		return
	case *[]wire.Pair:
		for i := range number() % 4 {
			// The first character makes keys differ, as those of a map do.
			*p = append(*p, wire.Pair{Key: string(rune('a'+i)) + string(take(number()%8)), Value: string(take(number() % 8))})
		}
		return
	}
	switch v.Kind() {
	case reflect.Pointer:
		if number()%4 > 0 {
			v.Set(reflect.New(v.Type().Elem()))
			fill(v.Elem(), data)
		}
	case reflect.Slice:
		if n := number() % 5; n > 0 {
			v.Set(reflect.MakeSlice(v.Type(), n-1, n-1))
			for i := range n - 1 {
				fill(v.Index(i), data)
			}
		}
	case reflect.Struct:
		for i := range v.NumField() {
			if v.Field(i).CanSet() {
				fill(v.Field(i), data)
			}
		}
	}
}

// FuzzWireError reads error bodies with any text back.
func FuzzWireError(f *testing.F) {
	f.Add(byte(1), "The request would have succeeded, but the DryRun option is set.")
	f.Add(byte(30), "\x00\x1f\"\\\u2028\xff\xed\xa0\x80")
	f.Fuzz(func(t *testing.T, n byte, text string) {
		op := 1 + wire.Op(n)%wire.NumOps
		for _, code := range slices.Concat(op.Errors(), []wire.Code{wire.ValidationException, wire.UnknownOperationException}) {
			if err := reftest.CheckError(wire.ErrorText(code, text), code.String()); err != nil {
				t.Error(err)
			}
		}
	})
}

// FuzzWireTarget holds that only the exact names are found.
func FuzzWireTarget(f *testing.F) {
	f.Add([]byte("TrentService.GenerateDataKey"))
	f.Add([]byte("TrentService."))
	f.Add([]byte("Keymill.BatchSign"))
	f.Fuzz(func(t *testing.T, target []byte) {
		op, ok := wire.OpByTarget(target)
		if ok != (op != wire.OpInvalid) || ok && op.Target() != string(target) {
			t.Errorf("%q finds %v", target, op)
		}
	})
}
