package engine

import (
	"crypto/hmac"
	"crypto/rand"
	"crypto/sha256"
	"encoding/hex"
)

// A KeyID names a key. It has two spellings that never mean the same key: a
// UUID, and "mrk-" with 32 digits for multi-Region keys.
type KeyID struct {
	ID          [16]byte
	MultiRegion bool
}

// KeyIDLen is the length of both: 8-4-4-4-12, and the prefix with its digits.
const KeyIDLen = 36

const mrkPrefix = "mrk-"

// ParseKeyID reads either spelling. Digits must be lower case, as AWS prints
// them: one key has one spelling, so a policy cannot be passed by with another.
func ParseKeyID(s string) (KeyID, bool) {
	var id KeyID
	if len(s) == KeyIDLen && s[:len(mrkPrefix)] == mrkPrefix {
		id.MultiRegion = true
		for i := range id.ID {
			if !hexByte(&id.ID[i], s[len(mrkPrefix)+2*i:]) {
				return KeyID{}, false
			}
		}
		return id, true
	}
	if len(s) != KeyIDLen {
		return KeyID{}, false
	}
	at := 0
	for i := range id.ID {
		if i == 4 || i == 6 || i == 8 || i == 10 {
			if s[at] != '-' {
				return KeyID{}, false
			}
			at++
		}
		if !hexByte(&id.ID[i], s[at:]) {
			return KeyID{}, false
		}
		at += 2
	}
	return id, true
}

// hexByte reads two lower-case digits from the beginning of s, which has them.
func hexByte(b *byte, s string) bool {
	hi, ok1 := hexDigit(s[0])
	lo, ok2 := hexDigit(s[1])
	*b = hi<<4 | lo
	return ok1 && ok2
}

func hexDigit(c byte) (byte, bool) {
	switch {
	case '0' <= c && c <= '9':
		return c - '0', true
	case 'a' <= c && c <= 'f':
		return c - 'a' + 10, true
	}
	return 0, false
}

// AppendText appends the spelling of id to dst.
func (id KeyID) AppendText(dst []byte) []byte {
	if id.MultiRegion {
		return hex.AppendEncode(append(dst, mrkPrefix...), id.ID[:])
	}
	dst = append(hex.AppendEncode(dst, id.ID[0:4]), '-')
	dst = append(hex.AppendEncode(dst, id.ID[4:6]), '-')
	dst = append(hex.AppendEncode(dst, id.ID[6:8]), '-')
	dst = append(hex.AppendEncode(dst, id.ID[8:10]), '-')
	return hex.AppendEncode(dst, id.ID[10:])
}

func (id KeyID) String() string {
	var buf [KeyIDLen]byte
	return string(id.AppendText(buf[:0]))
}

// kind is the byte that stands for the spelling in the blob and the MaterialID.
func (id KeyID) kind() byte {
	if id.MultiRegion {
		return idMultiRegion
	}
	return idUUID
}

// A MaterialID names one version of a key's material: AWS's KeyMaterialId.
type MaterialID [32]byte

// String returns 64 lower-case digits.
func (id MaterialID) String() string { return hex.EncodeToString(id[:]) }

// AppendText appends the 64 digits to dst.
func (id MaterialID) AppendText(dst []byte) []byte { return hex.AppendEncode(dst, id[:]) }

// materialLabel separates this use of the material from all others. Changing
// it would orphan every ciphertext.
const materialLabel = "keymill/key-material-id/v1\x00"

// ComputeMaterialID returns HMAC-SHA-256, keyed by the material, of a label,
// the kind of id and the id. It depends on no secret of this appliance, so
// replicas of a key agree on it; and since the material is the key, it says
// nothing about material that cannot be guessed whole.
func ComputeMaterialID(id KeyID, material []byte) MaterialID {
	mac := hmac.New(sha256.New, material)
	mac.Write([]byte(materialLabel))
	mac.Write([]byte{id.kind()})
	mac.Write(id.ID[:])
	var out MaterialID
	mac.Sum(out[:0])
	return out
}

// Random fills b from the operating system's generator. It cannot fail: a
// system without randomness ends the program.
func Random(b []byte) {
	_, _ = rand.Read(b)
}
