package quota

import (
	"strings"

	"keymill/daemon/wire"
)

// A Class is what shares one bucket of an account in a region. The zero Class
// has no limit.
type Class uint8

// The classes that are not one operation's own. Those of data key pairs bear the
// name of the KeyPairSpec.
const (
	NoClass   Class = iota
	Symmetric       // symmetric and HMAC keys, and GenerateRandom
	RSA
	ECC // elliptic curves and SM2
	MLDSA
	PairP256
	PairP384
	PairP521
	PairSecp256k1
	PairEd25519
	PairRSA2048
	PairRSA3072
	PairRSA4096
	PairSM2
	operations // operation op has the class operations + op

	numClasses = int(operations) + wire.NumOps + 1
)

// Of returns the class of an operation that has a quota of its own. What
// cryptographic operations count in depends on the key: they have none.
func Of(op wire.Op) Class {
	if op == wire.OpInvalid || op > wire.NumOps || cryptographic(op) {
		return NoClass
	}
	return operations + Class(op)
}

// cryptographic tells the operations that count in a class they share.
func cryptographic(op wire.Op) bool {
	switch op {
	case wire.OpDecrypt, wire.OpDeriveSharedSecret, wire.OpEncrypt, wire.OpGenerateDataKey, wire.OpGenerateDataKeyPair,
		wire.OpGenerateDataKeyPairWithoutPlaintext, wire.OpGenerateDataKeyWithoutPlaintext, wire.OpGenerateMac,
		wire.OpGenerateRandom, wire.OpReEncrypt, wire.OpSign, wire.OpVerify, wire.OpVerifyMac,
		wire.OpBatchDecrypt, wire.OpBatchEncrypt, wire.OpBatchSign, wire.OpBatchVerify, wire.OpGenerateDataKeys:
		return true
	}
	return false
}

// Elsewhere returns what an operation takes besides its own class, in the other
// region that it names: ReplicateKey makes a key there, at the price of two, and
// UpdatePrimaryRegion counts on both sides. For all others n is 0.
func Elsewhere(op wire.Op) (c Class, n int64) {
	switch op {
	case wire.OpReplicateKey:
		return Of(wire.OpCreateKey), 2
	case wire.OpUpdatePrimaryRegion:
		return Of(op), 1
	}
	return NoClass, 0
}

// Pair returns the class of the data key pairs of a KeyPairSpec, NoClass when
// there is none of that name.
func Pair(spec string) Class {
	for c := PairP256; c <= PairSM2; c++ {
		if sharedNames[c] == spec {
			return c
		}
	}
	return NoClass
}

var sharedNames = [operations]string{
	Symmetric:     "symmetric",
	RSA:           "rsa",
	ECC:           "ecc-sm2",
	MLDSA:         "ml-dsa",
	PairP256:      "ECC_NIST_P256",
	PairP384:      "ECC_NIST_P384",
	PairP521:      "ECC_NIST_P521",
	PairSecp256k1: "ECC_SECG_P256K1",
	PairEd25519:   "ECC_NIST_EDWARDS25519",
	PairRSA2048:   "RSA_2048",
	PairRSA3072:   "RSA_3072",
	PairRSA4096:   "RSA_4096",
	PairSM2:       "SM2",
}

// String returns the name that profiles use: symmetric, rsa, ecc-sm2, ml-dsa, a
// KeyPairSpec, or the operation's name. It is empty for what has no quota.
func (c Class) String() string {
	if c < operations {
		return sharedNames[c]
	}
	if op := wire.Op(c - operations); Of(op) != NoClass {
		return op.String()
	}
	return ""
}

// classes maps the names to the classes.
var classes = func() map[string]Class {
	m := map[string]Class{}
	for c := range Class(numClasses) {
		if name := c.String(); name != "" {
			m[name] = c
		}
	}
	return m
}()

// hint says what an unknown name of a quota may have been meant for.
func hint(name string) string {
	for op := wire.Op(1); op <= wire.NumOps; op++ {
		if !cryptographic(op) || !strings.EqualFold(op.String(), name) {
			continue
		}
		switch op {
		case wire.OpGenerateDataKeyPair, wire.OpGenerateDataKeyPairWithoutPlaintext:
			return "; it has a quota for each KeyPairSpec, such as RSA_2048"
		case wire.OpGenerateRandom:
			return "; it counts in symmetric"
		}
		return "; it counts in symmetric, rsa, ecc-sm2 or ml-dsa, by its key"
	}
	for known := range classes {
		if strings.EqualFold(known, name) {
			return "; did you mean " + known + "?"
		}
	}
	return "; the names are symmetric, rsa, ecc-sm2, ml-dsa, those of key pair specs such as RSA_2048, and those of operations such as CreateKey"
}
