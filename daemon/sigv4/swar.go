package sigv4

import "encoding/binary"

// Eight bytes at a time, in one uint64: the two loops over bytes that the
// profile of a verification showed, names and values of headers. Each has a
// plain twin below it, which takes the short ones and which the test compares
// it with.

const (
	ones  = 0x0101010101010101
	highs = 0x80 * ones
)

// sameName reports whether a header's name, in any case, is the given lower-case
// one.
func sameName(name, lower []byte) bool {
	n := len(lower)
	if len(name) != n {
		return false
	}
	if n < 8 {
		return sameNamePlain(name, lower)
	}
	for i := 0; i < n; i += 8 {
		i = min(i, n-8) // the last word overlaps the one before
		if toLower8(binary.LittleEndian.Uint64(name[i:])) != binary.LittleEndian.Uint64(lower[i:]) {
			return false
		}
	}
	return true
}

// toLower8 adds 0x20 to every byte from 'A' to 'Z'. Without the high bits, the
// sums below carry into the high bit of their own byte only: in from where the
// byte is at least 'A', in past where it is beyond 'Z'.
func toLower8(x uint64) uint64 {
	low := x &^ highs
	from := low + (0x80-'A')*ones
	past := low + (0x80-'Z'-1)*ones
	return x | (from&^past&^x&highs)>>2
}

func sameNamePlain(name, lower []byte) bool {
	if len(name) != len(lower) {
		return false
	}
	for i, c := range name {
		if 'A' <= c && c <= 'Z' {
			c += 'a' - 'A'
		}
		if c != lower[i] {
			return false
		}
	}
	return true
}

// hasBlank reports whether a value has a byte up to the space, so whether
// anything in it could need folding.
func hasBlank(v []byte) bool {
	n := len(v)
	if n < 8 {
		return hasBlankPlain(v)
	}
	for i := 0; i < n; i += 8 {
		i = min(i, n-8)
		// A borrow from a byte that is small reaches the next one up, which makes
		// that one doubtful, but not the answer: the small one is there.
		if x := binary.LittleEndian.Uint64(v[i:]); (x-(' '+1)*ones)&^x&highs != 0 {
			return true
		}
	}
	return false
}

func hasBlankPlain(v []byte) bool {
	for _, c := range v {
		if c <= ' ' {
			return true
		}
	}
	return false
}

// hexPairs holds the two lower-case hex digits of every byte, in memory order of
// a little-endian uint16.
var hexPairs = func() (t [256]uint16) {
	for i := range t {
		t[i] = uint16(lowerHex[i>>4]) | uint16(lowerHex[i&0xf])<<8
	}
	return t
}()

func appendHex(dst []byte, h *[32]byte) []byte {
	n := len(dst)
	dst = append(dst, make([]byte, 64)...)
	out := (*[64]byte)(dst[n:])
	for i, c := range h {
		binary.LittleEndian.PutUint16(out[2*i:], hexPairs[c])
	}
	return dst
}
