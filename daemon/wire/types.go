package wire

import (
	"math"
	"time"
)

// MaxBody bounds a request body of AWS KMS's operations; see [Op.MaxBody] for
// ours. The pipeline refuses longer ones before they are read, with
// RequestEntityTooLarge.
const MaxBody = 1 << 20

// ContentType is that of every request and answer.
const ContentType = "application/x-amz-json-1.1"

// TargetPrefix stands before the name of an AWS KMS operation in X-Amz-Target.
const TargetPrefix = "TrentService."

// Opt is an optional number, boolean or timestamp.
type Opt[T any] struct {
	V   T
	Set bool
}

// Some returns an Opt that holds v.
func Some[T any](v T) Opt[T] { return Opt[T]{V: v, Set: true} }

// Or returns the value, or def when it is absent.
func (o Opt[T]) Or(def T) T {
	if o.Set {
		return o.V
	}
	return def
}

// Pair is one entry of a map, kept in the order in which it appeared.
type Pair struct{ Key, Value string }

// Input is implemented by every request structure.
type Input interface {
	// DecodeJSON replaces the structure by what body says. The error is
	// always an *Error (SerializationException). Strings, blobs, lists of
	// strings and maps are views on body and on the decoder: they are valid
	// until either is reused.
	DecodeJSON(d *Decoder, body []byte) error
	// Validate adds what breaks the model's constraints to v.
	Validate(v *Violations)
	// Reset empties the structure.
	Reset()
	// AppendJSON appends the request as JSON, for clients and load generators.
	AppendJSON(dst []byte) []byte
}

// Output is implemented by every response structure.
//
// A response with a sensitive blob reserves its longest length before it
// writes the first byte; when dst is too short and has to move, dst's old
// array is wiped, so dst must not be shared. Wiping the result is the
// caller's.
type Output interface {
	AppendJSON(dst []byte) []byte
}

// Timestamp returns t in the form the protocol has, to the millisecond. The
// zero time is absent.
func Timestamp(t time.Time) Opt[float64] {
	if t.IsZero() {
		return Opt[float64]{}
	}
	return Some(float64(t.UnixMilli()) / 1000)
}

// Time is the reverse of [Timestamp], rounded to the millisecond.
func Time(o Opt[float64]) time.Time {
	if !o.Set {
		return time.Time{}
	}
	return time.UnixMilli(int64(math.Round(o.V * 1000))).UTC()
}
