package wire

import "unsafe"

// b2s returns b as a string without copying. The string is a view: it changes
// when b does. Only the decoder uses it, on a body and a scratch buffer that
// both live until the caller resets the decoder.
func b2s(b []byte) string { return unsafe.String(unsafe.SliceData(b), len(b)) }

// s2b is the reverse of b2s. The bytes must not be written to.
func s2b(s string) []byte { return unsafe.Slice(unsafe.StringData(s), len(s)) }
