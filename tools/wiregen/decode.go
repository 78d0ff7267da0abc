package main

import (
	"fmt"
	"strconv"
)

func itoa(n int) string { return strconv.Itoa(n) }

// listLimit returns how many elements of a list are worth keeping, as Go.
func listLimit(s *shape) string {
	if s.Max == nil {
		return "maxItems"
	}
	return itoa(*s.Max)
}

func errShape(s *shape, f member, what string) error {
	return fmt.Errorf("%s.%s: %s", s.name, f.name, what)
}

// genDecoders writes the decoders of request structures.
func (g *gen) genDecoders() {
	split := g.split("decode")
	inputs := map[string]*operation{}
	for _, o := range g.m.ops() {
		inputs[o.Input.Shape] = o
	}
	for _, s := range g.m.structures() {
		if !s.in {
			continue
		}
		p := split(s)
		if len(s.Members) > 32 {
			g.fail(fmt.Errorf("%s has more than 32 members", s.name))
		}
		if o := inputs[s.name]; o != nil {
			p("// DecodeJSON implements [Input].\n")
			p("func (r *%s) DecodeJSON(d *Decoder, body []byte) error { return decodeBody(d, r, body, %s) }\n\n", s.name, o.bound())
		}
		p("func (r *%s) decode(d *Decoder) {\n", s.name)
		if len(s.Members) > 0 {
			p("var seen uint32\n")
		}
		p("for name, ok := d.first(); ok; name, ok = d.next() {\nswitch name {\n")
		for i, f := range s.Members {
			fs := g.m.Shapes[f.shape]
			p("case %q:\nif d.present(&seen, 1<<%d) {\n", f.name, i)
			switch fs.Type {
			case "string":
				p("r.%s = d.str()\nr.has |= 1 << %d\n", f.name, i)
			case "blob":
				p("r.%s = d.blob()\n", f.name)
			case "boolean":
				p("r.%s = d.boolean()\n", f.name)
			case "integer":
				p("r.%s = d.integer()\n", f.name)
			case "timestamp":
				p("r.%s = d.timestamp()\n", f.name)
			case "map":
				p("r.%s = d.pairList()\n", f.name)
			case "structure":
				p("r.%s = new(%s)\nr.%s.decode(d)\n", f.name, f.shape, f.name)
			case "list":
				switch g.m.Shapes[fs.Member.Shape].Type {
				case "string":
					p("r.%s = d.strings()\n", f.name)
				case "map":
					p("r.%s = d.pairLists(%s)\n", f.name, listLimit(fs))
				default:
					p("r.%s = decodeList[%s](d, %s)\n", f.name, fs.Member.Shape, listLimit(fs))
				}
			}
			p("}\n")
		}
		for _, f := range g.o.Unsupported[s.name] {
			p("case %q:\nd.unsupported()\n", f)
		}
		p("default:\nd.skip()\n}\n}\n}\n\n")
	}
}
