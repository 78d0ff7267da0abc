package wire

import (
	"fmt"
	"strings"
	"testing"
)

// TestDecodeObject: what is asked for is taken, the rest is read over, and the
// decoder's strictness holds for all of it.
func TestDecodeObject(t *testing.T) {
	var many strings.Builder
	for i := range 100 {
		fmt.Fprintf(&many, `"f%d":%d,`, i, i)
	}
	for _, c := range []struct{ body, want string }{
		{``, ""},
		{`{}`, ""},
		{`{"s":"a\u002fb","b":"AAE=","n":7,"l":["x",{"y":[1]},"z"],"o":{"s":"in"}}`, "s=a/b b=0001 n=7 l=x l=z o.s=in"},
		{`{"other":{"s":["deep",{"s":1}]},"s":null,"b":"","z":-1.5e3,"q":true}`, "b="},
		{`{` + many.String() + `"s":"last"}`, "s=last"},
		{`{"s":"a","s":"b"}`, "appears more than once"},
		{`{"s":null,"s":"b"}`, "appears more than once"},
		{`{"u":1,"u":2}`, "appears more than once"},
		{`{` + many.String() + `"f70":1}`, "appears more than once"},
		{`{"s":1}`, "must be a string"},
		{`{"b":"AAE"}`, "Base64"},
		{`{"b":"AA\n=="}`, "Base64"},
		{`{"b":"AAF="}`, "Base64"},
		{`{"n":1.5}`, "32 bits"},
		{`{"l":{}}`, "list"},
		{`{"o":[]}`, "object"},
		{`{"s":"a"} x`, "end of the body"},
		{`{"s":"a"`, "comma"},
		{`[]`, "must be a JSON object"},
		{`{"z":` + strings.Repeat("[", 20), "deeper"},
		{`{"z":"` + "\xff" + `"}`, "not UTF-8"},
		{`{"z":"` + strings.Repeat("a", 4096) + `"}`, "longer than 4096"},
	} {
		var d Decoder
		var got []string
		note := func(f string, args ...any) { got = append(got, fmt.Sprintf(f, args...)) }
		err := d.DecodeObject([]byte(c.body), 4096, func(name string) {
			switch name {
			case "s":
				note("s=%s", d.Text())
			case "b":
				note("b=%x", d.Blob())
			case "n":
				note("n=%d", d.Integer())
			case "l":
				d.Items(func() {
					if d.peek() == '"' {
						note("l=%s", d.Text())
					}
				})
			case "o":
				d.Members(func(name string) {
					if name == "s" {
						note("o.s=%s", d.Text())
					}
				})
			}
		})
		if err != nil {
			if !strings.Contains(err.Message, c.want) || c.want == "" {
				t.Errorf("%.60s: %v, want %q", c.body, err, c.want)
			}
		} else if s := strings.Join(got, " "); s != c.want {
			t.Errorf("%.60s: %q, want %q", c.body, s, c.want)
		}
	}
}
