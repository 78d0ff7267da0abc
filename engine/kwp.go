package engine

import (
	"crypto/aes"
	"crypto/cipher"
	"crypto/subtle"
	"encoding/binary"

	"keymill/hsm/arena"
)

// AES key wrap with padding (RFC 5649), the unwrapping half.
//
// The wrapped form is a number of 64-bit blocks. Unwrapped, the first is the
// integrity check: 32 bits that never change and the length of the key in bytes;
// the rest is the key, filled up with zero bytes. Two blocks are one AES block;
// more of them are the six passes of RFC 3394.

const (
	kwpCheck = 0xa65959a6
	kwpBlock = 8
	maxKWP   = 8 << 10 // far above any private key; the wire has less
)

// unwrapKWP returns the key wrapped under kek, or ErrInvalidCiphertext. That check
// and padding are right is decided at once, so that nobody can ask for them one by
// one. The caller wipes the result.
func unwrapKWP(kek, in []byte) ([]byte, error) {
	if len(in) < 2*kwpBlock || len(in)%kwpBlock != 0 || len(in) > maxKWP {
		return nil, ErrInvalidCiphertext
	}
	block, err := aes.NewCipher(kek)
	if err != nil {
		return nil, err
	}
	buf := make([]byte, len(in))
	if len(in) == 2*kwpBlock {
		block.Decrypt(buf, in)
	} else {
		unwrapBlocks(block, buf, in)
	}
	padded := buf[kwpBlock:]
	size := int(binary.BigEndian.Uint32(buf[4:]))
	ok := subtle.ConstantTimeEq(int32(binary.BigEndian.Uint32(buf)), kwpCheck-1<<32) &
		subtle.ConstantTimeLessOrEq(len(padded)-kwpBlock+1, min(size, len(padded))) &
		subtle.ConstantTimeLessOrEq(min(size, len(padded)+1), len(padded))
	rest := byte(0)
	for i := len(padded) - kwpBlock; i < len(padded); i++ {
		rest |= byte(subtle.ConstantTimeLessOrEq(min(size, len(padded)), i)) * padded[i]
	}
	if ok&subtle.ConstantTimeByteEq(rest, 0) != 1 {
		arena.Wipe(buf)
		return nil, ErrInvalidCiphertext
	}
	key := append(make([]byte, 0, size), padded[:size]...)
	arena.Wipe(buf)
	return key, nil
}

// unwrapBlocks undoes the six passes of RFC 3394, section 2.2.2, from in to dst,
// which are equally long: at least three blocks.
func unwrapBlocks(block cipher.Block, dst, in []byte) {
	copy(dst, in)
	var b [aes.BlockSize]byte
	n := len(in)/kwpBlock - 1
	for j := 5; j >= 0; j-- {
		for i := n; i >= 1; i-- {
			r := dst[i*kwpBlock : (i+1)*kwpBlock]
			a := binary.BigEndian.Uint64(dst) ^ uint64(n*j+i)
			binary.BigEndian.PutUint64(b[:], a)
			copy(b[kwpBlock:], r)
			block.Decrypt(b[:], b[:])
			copy(dst[:kwpBlock], b[:])
			copy(r, b[kwpBlock:])
		}
	}
	arena.Wipe(b[:])
}
