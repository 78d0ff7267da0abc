package wire

import "bytes"

var servicePrefix, extensionPrefix = []byte(TargetPrefix), []byte(ExtensionPrefix)

// Op is an operation of the service or of ours.
type Op uint8

type opInfo struct {
	name    string
	target  string
	body    bodyKind
	errors  []Code
	maxBody int
}

type bodyKind uint8

const (
	noBody      bodyKind = iota // success is an empty body
	emptyObject                 // success is {}
	someBody
)

// String returns the operation's name, "" for OpInvalid.
func (op Op) String() string {
	if int(op) >= len(opTable) {
		return ""
	}
	return opTable[op].name
}

// Target returns what X-Amz-Target says for the operation.
func (op Op) Target() string { return opTable[op].target }

// MaxBody returns the bound, in bytes, of the operation's request body.
func (op Op) MaxBody() int { return opTable[op].maxBody }

// HasBody tells whether a successful answer has a body, be it {}.
func (op Op) HasBody() bool { return opTable[op].body != noBody }

// Errors returns the errors which the model lists for the operation. Those of
// the front end can come on top. The slice must not be changed.
func (op Op) Errors() []Code { return opTable[op].errors }

// OpByTarget finds the operation that an X-Amz-Target header names. Names are
// case-exact.
func OpByTarget(target []byte) (Op, bool) {
	op := OpInvalid
	if name, ok := bytes.CutPrefix(target, servicePrefix); ok {
		op = opByName(name)
	} else if name, ok := bytes.CutPrefix(target, extensionPrefix); ok {
		op = extensionByName(name)
	}
	return op, op != OpInvalid
}
