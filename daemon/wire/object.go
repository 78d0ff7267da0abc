package wire

// What follows reads and writes JSON that no model of AWS describes, with the
// strictness of the decoder: of the XKS proxy protocol.

// DecodeObject reads a body of at most bound bytes that is one JSON object, as
// [Decoder.Members] reads an object. An empty body is an empty object.
func (d *Decoder) DecodeObject(body []byte, bound int, member func(name string)) *Error {
	if err := decodeBody(d, object(member), body, bound); err != nil {
		return err.(*Error)
	}
	return nil
}

type object func(name string)

func (o object) decode(d *Decoder) { d.Members(o) }
func (o object) Reset()            {}

// Members reads the object at the cursor and calls member for each of its
// members that is not null. member takes the value with one of Text, Blob,
// Integer, Members and Items; one it does not take is read over. A name that
// comes twice is an error. Only member functions may call these methods.
func (d *Decoder) Members(member func(name string)) {
	var few [quadratic]string
	names := few[:0]
	var many map[string]struct{}
	for name, ok := d.first(); ok; name, ok = d.next() {
		twice := false
		if len(names) < quadratic {
			for _, n := range names {
				twice = twice || n == name
			}
			names = append(names, name)
		} else {
			if many == nil {
				many = make(map[string]struct{})
				for _, n := range names {
					many[n] = struct{}{}
				}
			}
			_, twice = many[name]
			many[name] = struct{}{}
		}
		if twice {
			d.wrong("appears more than once")
			return
		}
		if d.peek() == 'n' {
			d.literal("null")
			continue
		}
		from := d.i
		member(name)
		if d.i == from {
			d.skip()
		}
	}
}

// Items reads the list at the cursor and calls item for each of its values,
// which item takes as member does.
func (d *Decoder) Items(item func()) {
	name := d.name
	for more := d.firstItem(); more; more = d.nextItem() {
		d.name = name
		from := d.i
		item()
		if d.i == from {
			d.skip()
		}
	}
}

// Text takes a string: a view, like all that the decoder returns.
func (d *Decoder) Text() string { return d.str() }

// Blob takes a Base64 string and returns what it stands for, never nil but on
// an error.
func (d *Decoder) Blob() []byte { return d.blob() }

// Integer takes an integer of 32 bits.
func (d *Decoder) Integer() int64 { return d.integer().V }

// AppendString appends s as a JSON string; what is not UTF-8 in it is replaced.
func AppendString(dst []byte, s string) []byte { return appendString(dst, s) }

// AppendBlob appends b in Base64 as a JSON string.
func AppendBlob(dst, b []byte) []byte { return appendBlob(dst, b) }
