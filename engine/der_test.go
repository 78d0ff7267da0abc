package engine

import (
	"encoding/asn1"
	"math/big"
)

// derBuilder builds the SEQUENCEs of signatures and SM2 ciphertexts with
// encoding/asn1, which the engine itself does not use for them.
type derBuilder struct{ parts []asn1.RawValue }

func (b *derBuilder) add(v any) {
	der, err := asn1.Marshal(v)
	if err != nil {
		panic(err)
	}
	b.parts = append(b.parts, asn1.RawValue{FullBytes: der})
}

func (b *derBuilder) integer(v []byte) { b.add(new(big.Int).SetBytes(v)) }
func (b *derBuilder) octets(v []byte)  { b.add(v) }

func (b *derBuilder) sequence() []byte {
	der, err := asn1.Marshal(b.parts)
	if err != nil {
		panic(err)
	}
	return der
}

// derPair is SEQUENCE { r, s }.
func derPair(r, s []byte) []byte {
	var b derBuilder
	b.integer(r)
	b.integer(s)
	return b.sequence()
}
