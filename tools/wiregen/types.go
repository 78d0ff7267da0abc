package main

// genTypes writes the structures.
func (g *gen) genTypes() {
	split := g.split("types")
	for _, s := range g.m.structures() {
		p := split(s)
		p("// %s is %s.\n", s.name, g.role(s))
		p("type %s struct {\n", s.name)
		strs := false
		for _, f := range s.Members {
			t, err := g.m.goType(f.shape)
			if err != nil {
				g.fail(err)
			}
			strs = strs || t == "string"
			note := ""
			if s.required(f.name) {
				note = " // required"
			}
			p("%s %s%s\n", f.name, t, note)
		}
		if s.in && strs {
			p("\nhas uint32 // strings that are present, perhaps empty\n")
		}
		p("}\n\n")
		if !s.in {
			continue
		}
		for i, f := range s.Members {
			switch g.m.Shapes[f.shape].Type {
			case "string":
				p("// Has%s tells whether %s is present, be it empty.\n", f.name, f.name)
				p("func (r *%s) Has%s() bool { return r.has&(1<<%d) != 0 || r.%s != \"\" }\n\n", s.name, f.name, i, f.name)
			case "blob", "map":
				p("// Has%s tells whether %s is present, be it empty.\n", f.name, f.name)
				p("func (r *%s) Has%s() bool { return r.%s != nil }\n\n", s.name, f.name, f.name)
			}
		}
		p("// Reset empties r.\nfunc (r *%s) Reset() { *r = %s{} }\n\n", s.name, s.name)
	}
}

func (g *gen) role(s *shape) string {
	for _, o := range g.m.ops() {
		if o.Input.Shape == s.name {
			return "the input of " + o.Name
		}
		if o.Output != nil && o.Output.Shape == s.name {
			return "the output of " + o.Name
		}
	}
	switch {
	case s.in && s.out:
		return "a structure of requests and responses"
	case s.in:
		return "a structure of requests"
	}
	return "a structure of responses"
}
