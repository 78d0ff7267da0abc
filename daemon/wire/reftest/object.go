package reftest

import (
	"reflect"
	"strings"

	"keymill/daemon/wire"
)

// ObjectOf turns a structure of package wire into the oracle's form.
func ObjectOf(in any) Object {
	v := reflect.ValueOf(in).Elem()
	out := Object{}
	for i := range v.NumField() {
		name := v.Type().Field(i).Name
		if name == "has" {
			continue
		}
		f := v.Field(i)
		switch x := f.Interface().(type) {
		case string:
			has := x != ""
			if m := v.Addr().MethodByName("Has" + name); m.IsValid() {
				has = m.Call(nil)[0].Bool()
			}
			if has {
				out[name] = strings.Clone(x)
			}
		case []byte:
			if x != nil {
				out[name] = append([]byte{}, x...)
			}
		case wire.Opt[bool]:
			if x.Set {
				out[name] = x.V
			}
		case wire.Opt[int64]:
			if x.Set {
				out[name] = x.V
			}
		case wire.Opt[float64]:
			if x.Set {
				out[name] = x.V
			}
		case []wire.Pair:
			if x != nil {
				p := Pairs{}
				for _, e := range x {
					p = append(p, [2]string{strings.Clone(e.Key), strings.Clone(e.Value)})
				}
				out[name] = p
			}
		case [][]wire.Pair:
			if x != nil {
				l := []any{}
				for _, m := range x {
					p := Pairs{}
					for _, e := range m {
						p = append(p, [2]string{strings.Clone(e.Key), strings.Clone(e.Value)})
					}
					l = append(l, p)
				}
				out[name] = l
			}
		case []string:
			if x != nil {
				l := []any{}
				for _, e := range x {
					l = append(l, strings.Clone(e))
				}
				out[name] = l
			}
		default:
			switch f.Kind() {
			case reflect.Pointer:
				if !f.IsNil() {
					out[name] = ObjectOf(f.Interface())
				}
			case reflect.Slice:
				if !f.IsNil() {
					l := []any{}
					for j := range f.Len() {
						l = append(l, ObjectOf(f.Index(j).Addr().Interface()))
					}
					out[name] = l
				}
			default:
				panic("reftest: field " + name + " has an unknown type")
			}
		}
	}
	return out
}
