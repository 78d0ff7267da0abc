package main

import (
	"slices"
	"strings"
)

// genEncoders writes AppendJSON for every structure.
func (g *gen) genEncoders() {
	split := g.split("encode", "strconv")
	for _, s := range g.m.structures() {
		g.genEncoder(split(s), s)
	}
}

func (g *gen) genEncoder(p printer, s *shape) {
	p("// AppendJSON appends r as a JSON object.\n")
	p("func (r *%s) AppendJSON(dst []byte) []byte {\n", s.name)
	if len(s.Members) == 0 {
		p("return append(dst, \"{}\"...)\n}\n\n")
		return
	}
	if n := g.size(s); n != "" {
		p("dst = reserve(dst, %s)\n", n)
	}
	p("dst = append(dst, '{')\n")
	for _, f := range s.Members {
		fs := g.m.Shapes[f.shape]
		name := `"` + f.name + `":`
		switch fs.Type {
		case "string":
			always := s.out && (s.required(f.name) || slices.Contains(g.o.AlwaysEmit[s.name], f.name))
			if !always && s.in {
				p("if r.Has%s() {\n", f.name)
			} else if !always {
				p("if r.%s != \"\" {\n", f.name)
			}
			p("dst = append(dst, `%s`...)\n", name)
			p("dst = append(appendString(dst, r.%s), ',')\n", f.name)
			if !always {
				p("}\n")
			}
			continue
		case "blob":
			p("if r.%s != nil {\ndst = append(dst, `%s`...)\n", f.name, name)
			p("dst = append(appendBlob(dst, r.%s), ',')\n}\n", f.name)
		case "boolean":
			p("if r.%s.Set {\ndst = append(dst, `%s`...)\n", f.name, name)
			p("dst = append(strconv.AppendBool(dst, r.%s.V), ',')\n}\n", f.name)
		case "integer":
			p("if r.%s.Set {\ndst = append(dst, `%s`...)\n", f.name, name)
			p("dst = append(strconv.AppendInt(dst, r.%s.V, 10), ',')\n}\n", f.name)
		case "timestamp":
			p("if r.%s.Set {\ndst = append(dst, `%s`...)\n", f.name, name)
			p("dst = append(appendTime(dst, r.%s.V), ',')\n}\n", f.name)
		case "structure":
			p("if r.%s != nil {\ndst = append(dst, `%s`...)\n", f.name, name)
			p("dst = append(r.%s.AppendJSON(dst), ',')\n}\n", f.name)
		case "map":
			p("if r.%s != nil {\ndst = append(dst, `%s`...)\n", f.name, name)
			p("dst = append(appendPairs(dst, r.%s), ',')\n}\n", f.name)
		case "list":
			p("if r.%s != nil {\ndst = append(dst, `%s`...)\n", f.name, name)
			switch g.m.Shapes[fs.Member.Shape].Type {
			case "string":
				p("dst = append(appendStrings(dst, r.%s), ',')\n}\n", f.name)
			case "map":
				p("dst = append(appendPairLists(dst, r.%s), ',')\n}\n", f.name)
			default:
				p("dst = append(appendList(dst, r.%s), ',')\n}\n", f.name)
			}
		}
	}
	p("return closeObject(dst)\n}\n\n")
}

// size returns an expression for the longest encoding of a response that holds
// a sensitive blob, so that its buffer never moves while it holds one.
func (g *gen) size(s *shape) string {
	secret := false
	for _, f := range s.Members {
		fs := g.m.Shapes[f.shape]
		secret = secret || fs.Type == "blob" && fs.Sensitive
	}
	if !secret || !s.out {
		return ""
	}
	n := 2
	var parts []string
	for _, f := range s.Members {
		n += len(f.name) + 6
		switch g.m.Shapes[f.shape].Type {
		case "string":
			parts = append(parts, "6*len(r."+f.name+")")
		case "blob":
			parts = append(parts, "blobLen(r."+f.name+")")
		case "boolean", "integer", "timestamp":
			n += 24
		default:
			g.fail(errShape(s, f, "no size bound for a nested member beside a sensitive blob"))
		}
	}
	return strings.Join(append(parts, itoa(n)), " + ")
}
