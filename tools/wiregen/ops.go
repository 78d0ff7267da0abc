package main

import (
	"slices"
	"sort"
	"strings"
)

// bound returns the bound of the operation's request body, as Go.
func (o *operation) bound() string {
	if o.maxBody == 0 {
		return "MaxBody"
	}
	return itoa(o.maxBody)
}

// genOps writes the operation constants and tables.
func (g *gen) genOps() {
	p := g.file("ops_gen.go")
	ops := g.m.ops()
	p("// The operations of the service.\nconst (\nOpInvalid Op = iota\n")
	for _, o := range ops {
		p("Op%s\n", o.Name)
	}
	p(")\n\n// NumOps is the number of operations; valid ones are 1 to NumOps.\nconst NumOps = %d\n\n", len(ops))
	p("var opTable = [NumOps + 1]opInfo{\n")
	for _, o := range ops {
		body := "noBody"
		if o.Output != nil {
			body = "someBody"
			if len(g.m.Shapes[o.Output.Shape].Members) == 0 {
				body = "emptyObject"
			}
		}
		var errs []string
		for _, e := range o.Errors {
			errs = append(errs, e.Shape)
		}
		sort.Strings(errs)
		prefix := "TargetPrefix"
		if o.extension {
			prefix = "ExtensionPrefix"
		}
		p("Op%s: {%q, %s + %q, %s, []Code{%s}, %s},\n", o.Name, o.Name, prefix, o.Name, body, strings.Join(errs, ", "), o.bound())
	}
	p("}\n\n")
	p("// ExtensionPrefix stands before the name of an operation that is not the service's.\n")
	p("const ExtensionPrefix = %q\n\n", g.m.extensionPrefix+".")
	for _, own := range []bool{false, true} {
		name := map[bool]string{false: "opByName", true: "extensionByName"}[own]
		p("func %s(name []byte) Op {\nswitch string(name) {\n", name)
		for _, o := range ops {
			if o.extension == own {
				p("case %q:\nreturn Op%s\n", o.Name, o.Name)
			}
		}
		p("}\nreturn OpInvalid\n}\n\n")
	}
	p("// NewInput returns an empty request structure of op, nil for OpInvalid.\n")
	p("func NewInput(op Op) Input {\nswitch op {\n")
	for _, o := range ops {
		p("case Op%s:\nreturn new(%s)\n", o.Name, o.Input.Shape)
	}
	p("}\nreturn nil\n}\n")
}

// genErrors writes the error codes.
func (g *gen) genErrors() {
	p := g.file("codes_gen.go")
	status := map[string]int{}
	for n, s := range g.o.FrontEnd {
		status[n] = s
	}
	for n, s := range g.m.Shapes {
		if !s.Exception {
			continue
		}
		status[n] = 400
		if s.Fault {
			status[n] = 500
		}
	}
	var names []string
	for n := range status {
		names = append(names, n)
	}
	sort.Strings(names)
	p("// The errors of the model and of the front end.\nconst (\n_ Code = iota\n")
	for _, n := range names {
		p("%s\n", n)
	}
	p(")\n\nvar codeTable = [...]codeInfo{\n0: {\"InternalFailure\", 500, false},\n")
	for _, n := range names {
		p("%s: {%q, %d, %v},\n", n, n, status[n], slices.Contains(g.o.NoMessage, n))
	}
	p("}\n")
}
