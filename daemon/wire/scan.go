package wire

import (
	"encoding/binary"
	"math/bits"
	"unsafe"
)

// plainPrefix returns how many leading bytes of a JSON string need no
// attention: neither quote, backslash, control character nor non-ASCII.
//
// Eight bytes are looked at in one word. Subtracting with borrow may flag a
// byte wrongly, but only above one that is flagged rightly, so the lowest flag
// is exact.
func plainPrefix(s string) int {
	const (
		ones = 0x0101010101010101
		high = 0x8080808080808080
	)
	i := 0
	for ; i+8 <= len(s); i += 8 {
		x := binary.LittleEndian.Uint64(unsafe.Slice(unsafe.StringData(s[i:]), 8))
		q := x ^ ones*'"'
		b := x ^ ones*'\\'
		m := ((x - ones*0x20) &^ x) | ((q - ones) &^ q) | ((b - ones) &^ b) | x
		if m &= high; m != 0 {
			return i + bits.TrailingZeros64(m)/8
		}
	}
	for ; i < len(s); i++ {
		if c := s[i]; c < 0x20 || c >= 0x80 || c == '"' || c == '\\' {
			break
		}
	}
	return i
}
