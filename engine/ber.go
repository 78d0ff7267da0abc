package engine

import (
	"crypto/ed25519"
	"encoding/asn1"
	"slices"

	"github.com/emmansun/gmsm/ecdh"
	"gitlab.com/yawning/secp256k1-voi/secec"
	"golang.org/x/crypto/cryptobyte"
	casn1 "golang.org/x/crypto/cryptobyte/asn1"

	"keymill/hsm/arena"
)

// Reading private keys that others wrote. AWS takes PKCS#8 in BER, of which DER is
// one way of writing; our parsers take DER only. The difference, in a private key,
// is how lengths are written and that strings may come in pieces (X.690, sections
// 8.1.3 and 8.7); toDER rewrites just that and leaves the rest to the parsers.

// maxBERDepth is more than any PKCS#8 nests.
const maxBERDepth = 12

// derPrivateKey returns PKCS#8 as DER, also inside its private key field. It fails
// with ErrInvalidMaterial. The caller wipes the result, which is a copy.
func derPrivateKey(in []byte) ([]byte, error) {
	der, rest, err := toDER(make([]byte, 0, len(in)), in, 0)
	if err != nil || len(rest) != 0 {
		arena.Wipe(der)
		return nil, ErrInvalidMaterial
	}
	defer arena.Wipe(der)
	s := cryptobyte.String(der)
	var info, version, algorithm, key cryptobyte.String
	if !s.ReadASN1(&info, casn1.SEQUENCE) ||
		!info.ReadASN1Element(&version, casn1.INTEGER) ||
		!info.ReadASN1Element(&algorithm, casn1.SEQUENCE) ||
		!info.ReadASN1(&key, casn1.OCTET_STRING) {
		return nil, ErrInvalidMaterial
	}
	inner, rest, err := toDER(make([]byte, 0, len(key)), key, 0)
	if err != nil || len(rest) != 0 {
		arena.Wipe(inner)
		return nil, ErrInvalidMaterial
	}
	defer arena.Wipe(inner)
	// What follows the key (attributes, a public key) is of no use here.
	b := cryptobyte.NewFixedBuilder(make([]byte, 0, len(der)+8))
	b.AddASN1(casn1.SEQUENCE, func(b *cryptobyte.Builder) {
		b.AddBytes(version)
		b.AddBytes(algorithm)
		b.AddASN1(casn1.OCTET_STRING, func(b *cryptobyte.Builder) { b.AddBytes(inner) })
	})
	out, err := b.Bytes()
	if err != nil {
		return nil, ErrInvalidMaterial
	}
	return out, nil
}

// toDER appends the first element of in to dst, with all lengths definite and
// minimal and all octet strings in one piece, and returns what follows
// it. DER is never longer than the BER it is made from, so dst does not grow
// beyond len(in): no copy of a secret is left behind.
func toDER(dst, in []byte, depth int) (out, rest []byte, err error) {
	tag, body, rest, indefinite, err := berHeader(in)
	if err != nil || depth > maxBERDepth {
		return dst, nil, ErrInvalidMaterial
	}
	const constructed = 0x20
	if tag&constructed == 0 {
		return appendElement(dst, tag, body), rest, nil
	}
	content := make([]byte, 0, len(body))
	defer func() { arena.Wipe(content[:cap(content)]) }()
	flat := tag == constructed|byte(casn1.OCTET_STRING)
	for {
		if indefinite && len(body) >= 2 && body[0] == 0 && body[1] == 0 {
			rest = body[2:]
			break
		}
		if !indefinite && len(body) == 0 {
			break
		}
		start := len(content)
		if content, body, err = toDER(content, body, depth+1); err != nil {
			return dst, nil, err
		}
		if flat { // keep only what the piece holds
			var piece cryptobyte.String
			element := cryptobyte.String(content[start:])
			if !element.ReadASN1(&piece, casn1.OCTET_STRING) {
				return dst, nil, ErrInvalidMaterial
			}
			content = content[:start+copy(content[start:], piece)]
		}
	}
	if flat {
		tag = byte(casn1.OCTET_STRING)
	}
	return appendElement(dst, tag, content), rest, nil
}

// berHeader reads a tag and length. The body of an indefinite length is all that
// follows. Tags of more than one byte have no place in a private key.
func berHeader(in []byte) (tag byte, body, rest []byte, indefinite bool, err error) {
	if len(in) < 2 || in[0]&0x1f == 0x1f {
		return 0, nil, nil, false, ErrInvalidMaterial
	}
	tag, size, at := in[0], int(in[1]), 2
	switch {
	case size == 0x80:
		if tag&0x20 == 0 {
			return 0, nil, nil, false, ErrInvalidMaterial
		}
		return tag, in[2:], nil, true, nil
	case size > 0x80:
		n := size - 0x80
		if n > 4 || len(in) < 2+n {
			return 0, nil, nil, false, ErrInvalidMaterial
		}
		size = 0
		for _, b := range in[2 : 2+n] {
			size = size<<8 | int(b)
		}
		at += n
	}
	if size > len(in)-at {
		return 0, nil, nil, false, ErrInvalidMaterial
	}
	return tag, in[at : at+size], in[at+size:], false, nil
}

func appendElement(dst []byte, tag byte, body []byte) []byte {
	dst = append(dst, tag)
	switch n := len(body); {
	case n < 0x80:
		dst = append(dst, byte(n))
	case n < 1<<8:
		dst = append(dst, 0x81, byte(n))
	case n < 1<<16:
		dst = append(dst, 0x82, byte(n>>8), byte(n))
	default:
		dst = append(dst, 0x83, byte(n>>16), byte(n>>8), byte(n))
	}
	return append(dst, body...)
}

// shortScalar is parseECPrivate for scalars that may lack leading zero bytes.
func shortScalar(der []byte, curve asn1.ObjectIdentifier) ([]byte, error) {
	key, err := parsePKCS8(der, oidECPublicKey, curve)
	if err != nil {
		return nil, err
	}
	var ec, scalar cryptobyte.String
	var version int64
	if !key.ReadASN1(&ec, casn1.SEQUENCE) || !key.Empty() ||
		!ec.ReadASN1Integer(&version) || version != 1 ||
		!ec.ReadASN1(&scalar, casn1.OCTET_STRING) || len(scalar) == 0 || len(scalar) > 32 {
		return nil, ErrInvalidMaterial
	}
	out := make([]byte, 32)
	copy(out[32-len(scalar):], scalar)
	return out, nil
}

// curvePoint returns the uncompressed public point of a scalar.
func curvePoint(spec Spec, scalar []byte) ([]byte, error) {
	if spec == SM2 {
		k, err := ecdh.P256().NewPrivateKey(scalar)
		if err != nil {
			return nil, err
		}
		return k.PublicKey().Bytes(), nil
	}
	k, err := secec.NewPrivateKey(scalar)
	if err != nil {
		return nil, err
	}
	return k.PublicKey().Bytes(), nil
}

var oidEd25519 = asn1.ObjectIdentifier{1, 3, 101, 112}

// marshalEd25519Private writes the seed as RFC 8410 has it, and wipes it.
func marshalEd25519Private(seed []byte) []byte {
	defer arena.Wipe(seed)
	return marshalPKCS8(oidEd25519, nil, func(b *cryptobyte.Builder) {
		b.AddASN1OctetString(slices.Clip(seed[:ed25519.SeedSize]))
	})
}
