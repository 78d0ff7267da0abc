package wire

// Op is an operation of the service.
type Op uint8

type opInfo struct {
	name   string
	body   bodyKind
	errors []Code
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

// HasBody tells whether a successful answer has a body, be it {}.
func (op Op) HasBody() bool { return opTable[op].body != noBody }

// Errors returns the errors which the model lists for the operation. Those of
// the front end can come on top. The slice must not be changed.
func (op Op) Errors() []Code { return opTable[op].errors }

// OpByTarget finds the operation that an X-Amz-Target header names. Names are
// case-exact.
func OpByTarget(target []byte) (Op, bool) {
	if len(target) < len(TargetPrefix) || string(target[:len(TargetPrefix)]) != TargetPrefix {
		return OpInvalid, false
	}
	op := opByName(target[len(TargetPrefix):])
	return op, op != OpInvalid
}
