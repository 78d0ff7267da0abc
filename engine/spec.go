package engine

import "crypto"

// A Spec is what kind of key a key is: AWS's KeySpec. The zero value is none.
type Spec uint8

// The key specs, in the model's words.
const (
	SpecInvalid Spec = iota
	SymmetricDefault
	HMAC224
	HMAC256
	HMAC384
	HMAC512
	RSA2048
	RSA3072
	RSA4096
	P256
	P384
	P521
	Secp256k1
	Ed25519
	MLDSA44
	MLDSA65
	MLDSA87
	SM2
	numSpecs
)

// A Usage is the one thing a key may be used for: AWS's KeyUsage.
type Usage uint8

// The key usages.
const (
	UsageInvalid Usage = iota
	EncryptDecrypt
	SignVerify
	GenerateVerifyMAC
	KeyAgreement
	numUsages
)

// An Algorithm is an encryption, signing, MAC or key agreement algorithm. AWS
// keeps four enumerations; their names do not collide, except that
// SYMMETRIC_DEFAULT is also a spec.
type Algorithm uint8

// The algorithms.
const (
	AlgInvalid Algorithm = iota
	AlgSymmetric
	AlgOAEPSHA1
	AlgOAEPSHA256
	AlgSM2PKE
	AlgPSSSHA256
	AlgPSSSHA384
	AlgPSSSHA512
	AlgPKCS1SHA256
	AlgPKCS1SHA384
	AlgPKCS1SHA512
	AlgECDSASHA256
	AlgECDSASHA384
	AlgECDSASHA512
	AlgEd25519
	AlgEd25519ph
	AlgMLDSA
	AlgSM2DSA
	AlgHMACSHA224
	AlgHMACSHA256
	AlgHMACSHA384
	AlgHMACSHA512
	AlgECDH
	numAlgorithms
)

// A MessageType says what the message of Sign and Verify is.
type MessageType uint8

// The message types. Raw is the zero value, as it is AWS's default.
const (
	Raw        MessageType = iota // the message itself
	Digest                        // its hash
	ExternalMu                    // the 64-byte representative mu of ML-DSA
	numMessageTypes
)

var specNames = [numSpecs]string{
	SymmetricDefault: "SYMMETRIC_DEFAULT",
	HMAC224:          "HMAC_224",
	HMAC256:          "HMAC_256",
	HMAC384:          "HMAC_384",
	HMAC512:          "HMAC_512",
	RSA2048:          "RSA_2048",
	RSA3072:          "RSA_3072",
	RSA4096:          "RSA_4096",
	P256:             "ECC_NIST_P256",
	P384:             "ECC_NIST_P384",
	P521:             "ECC_NIST_P521",
	Secp256k1:        "ECC_SECG_P256K1",
	Ed25519:          "ECC_NIST_EDWARDS25519",
	MLDSA44:          "ML_DSA_44",
	MLDSA65:          "ML_DSA_65",
	MLDSA87:          "ML_DSA_87",
	SM2:              "SM2",
}

var usageNames = [numUsages]string{
	EncryptDecrypt:    "ENCRYPT_DECRYPT",
	SignVerify:        "SIGN_VERIFY",
	GenerateVerifyMAC: "GENERATE_VERIFY_MAC",
	KeyAgreement:      "KEY_AGREEMENT",
}

var algorithmNames = [numAlgorithms]string{
	AlgSymmetric:   "SYMMETRIC_DEFAULT",
	AlgOAEPSHA1:    "RSAES_OAEP_SHA_1",
	AlgOAEPSHA256:  "RSAES_OAEP_SHA_256",
	AlgSM2PKE:      "SM2PKE",
	AlgPSSSHA256:   "RSASSA_PSS_SHA_256",
	AlgPSSSHA384:   "RSASSA_PSS_SHA_384",
	AlgPSSSHA512:   "RSASSA_PSS_SHA_512",
	AlgPKCS1SHA256: "RSASSA_PKCS1_V1_5_SHA_256",
	AlgPKCS1SHA384: "RSASSA_PKCS1_V1_5_SHA_384",
	AlgPKCS1SHA512: "RSASSA_PKCS1_V1_5_SHA_512",
	AlgECDSASHA256: "ECDSA_SHA_256",
	AlgECDSASHA384: "ECDSA_SHA_384",
	AlgECDSASHA512: "ECDSA_SHA_512",
	AlgEd25519:     "ED25519_SHA_512",
	AlgEd25519ph:   "ED25519_PH_SHA_512",
	AlgMLDSA:       "ML_DSA_SHAKE_256",
	AlgSM2DSA:      "SM2DSA",
	AlgHMACSHA224:  "HMAC_SHA_224",
	AlgHMACSHA256:  "HMAC_SHA_256",
	AlgHMACSHA384:  "HMAC_SHA_384",
	AlgHMACSHA512:  "HMAC_SHA_512",
	AlgECDH:        "ECDH",
}

var messageTypeNames = [numMessageTypes]string{Raw: "RAW", Digest: "DIGEST", ExternalMu: "EXTERNAL_MU"}

// The names are parsed by a walk over the table: the longest has 22 entries
// and a comparison of strings of unequal length is one of integers, which is
// faster than a map and needs no initialisation.

// ParseSpec returns the spec of an AWS name.
func ParseSpec(name string) (Spec, bool) {
	i := find(specNames[:], name)
	return Spec(i), i > 0
}

// ParseUsage returns the usage of an AWS name.
func ParseUsage(name string) (Usage, bool) {
	i := find(usageNames[:], name)
	return Usage(i), i > 0
}

// ParseAlgorithm returns the algorithm of an AWS name.
func ParseAlgorithm(name string) (Algorithm, bool) {
	i := find(algorithmNames[:], name)
	return Algorithm(i), i > 0
}

// ParseMessageType returns the message type of an AWS name.
func ParseMessageType(name string) (MessageType, bool) {
	i := find(messageTypeNames[:], name)
	return MessageType(max(i, 0)), i >= 0
}

// find returns the index of name, -1 if it has none. The empty name has none.
func find(names []string, name string) int {
	for i, n := range names {
		if n == name && n != "" {
			return i
		}
	}
	return -1
}

func (s Spec) String() string        { return nameOf(specNames[:], int(s)) }
func (u Usage) String() string       { return nameOf(usageNames[:], int(u)) }
func (a Algorithm) String() string   { return nameOf(algorithmNames[:], int(a)) }
func (t MessageType) String() string { return nameOf(messageTypeNames[:], int(t)) }

func nameOf(names []string, i int) string {
	if i < len(names) && names[i] != "" {
		return names[i]
	}
	return "INVALID"
}

// usageRow is one usage of a spec and the algorithms it then has.
type usageRow struct {
	usage Usage
	algs  []Algorithm
}

var (
	oaepAlgs   = []Algorithm{AlgOAEPSHA1, AlgOAEPSHA256}
	rsaSigAlgs = []Algorithm{AlgPSSSHA256, AlgPSSSHA384, AlgPSSSHA512, AlgPKCS1SHA256, AlgPKCS1SHA384, AlgPKCS1SHA512}
	ecdhAlgs   = []Algorithm{AlgECDH}
	rsaRows    = []usageRow{{EncryptDecrypt, oaepAlgs}, {SignVerify, rsaSigAlgs}}
	mldsaRows  = []usageRow{{SignVerify, []Algorithm{AlgMLDSA}}}
)

// specRows is the table of operations.md, section 3: which usages a spec has,
// and which algorithms under each.
var specRows = [numSpecs][]usageRow{
	SymmetricDefault: {{EncryptDecrypt, []Algorithm{AlgSymmetric}}},
	HMAC224:          {{GenerateVerifyMAC, []Algorithm{AlgHMACSHA224}}},
	HMAC256:          {{GenerateVerifyMAC, []Algorithm{AlgHMACSHA256}}},
	HMAC384:          {{GenerateVerifyMAC, []Algorithm{AlgHMACSHA384}}},
	HMAC512:          {{GenerateVerifyMAC, []Algorithm{AlgHMACSHA512}}},
	RSA2048:          rsaRows,
	RSA3072:          rsaRows,
	RSA4096:          rsaRows,
	P256:             {{SignVerify, []Algorithm{AlgECDSASHA256}}, {KeyAgreement, ecdhAlgs}},
	P384:             {{SignVerify, []Algorithm{AlgECDSASHA384}}, {KeyAgreement, ecdhAlgs}},
	P521:             {{SignVerify, []Algorithm{AlgECDSASHA512}}, {KeyAgreement, ecdhAlgs}},
	Secp256k1:        {{SignVerify, []Algorithm{AlgECDSASHA256}}},
	Ed25519:          {{SignVerify, []Algorithm{AlgEd25519, AlgEd25519ph}}},
	MLDSA44:          mldsaRows,
	MLDSA65:          mldsaRows,
	MLDSA87:          mldsaRows,
	SM2:              {{EncryptDecrypt, []Algorithm{AlgSM2PKE}}, {SignVerify, []Algorithm{AlgSM2DSA}}, {KeyAgreement, ecdhAlgs}},
}

// Valid reports whether s is one of the specs.
func (s Spec) Valid() bool { return s > SpecInvalid && s < numSpecs }

// Usages returns the usages a key of this spec can be made for, a new slice.
func (s Spec) Usages() []Usage {
	var us []Usage
	if s.Valid() {
		for _, row := range specRows[s] {
			us = append(us, row.usage)
		}
	}
	return us
}

// DefaultUsage returns the usage of a key made without one. Only
// SYMMETRIC_DEFAULT has a default at AWS; for every other spec ok is false.
func (s Spec) DefaultUsage() (u Usage, ok bool) {
	return EncryptDecrypt, s == SymmetricDefault
}

// Allows reports whether a key of this spec can have this usage.
func (s Spec) Allows(u Usage) bool { return s.Algorithms(u) != nil }

// Algorithms returns the algorithms of a key of this spec and usage, nil when
// there is no such key. The slice is shared: do not change it.
func (s Spec) Algorithms(u Usage) []Algorithm {
	if s.Valid() {
		for _, row := range specRows[s] {
			if row.usage == u {
				return row.algs
			}
		}
	}
	return nil
}

// Supports reports whether a key of this spec and usage has the algorithm.
func (s Spec) Supports(u Usage, a Algorithm) bool {
	for _, have := range s.Algorithms(u) {
		if have == a {
			return true
		}
	}
	return false
}

// Symmetric reports whether s is the symmetric encryption spec.
func (s Spec) Symmetric() bool { return s == SymmetricDefault }

// HMAC reports whether s is one of the HMAC specs.
func (s Spec) HMAC() bool { return s >= HMAC224 && s <= HMAC512 }

// RSA reports whether s is one of the RSA specs.
func (s Spec) RSA() bool { return s >= RSA2048 && s <= RSA4096 }

// MLDSA reports whether s is one of the ML-DSA specs.
func (s Spec) MLDSA() bool { return s >= MLDSA44 && s <= MLDSA87 }

// Asymmetric reports whether keys of this spec have a public half.
func (s Spec) Asymmetric() bool { return s >= RSA2048 && s < numSpecs }

// DataKeyPair reports whether GenerateDataKeyPair makes pairs of this spec.
func (s Spec) DataKeyPair() bool { return s.Asymmetric() && !s.MLDSA() }

// Bits returns the modulus length of an RSA spec, 0 for others.
func (s Spec) bits() int {
	switch s {
	case RSA2048:
		return 2048
	case RSA3072:
		return 3072
	case RSA4096:
		return 4096
	}
	return 0
}

// hash returns the hash of an algorithm, 0 when the message is not hashed by
// one of Go's (SM3, pure EdDSA and ML-DSA).
func (a Algorithm) hash() crypto.Hash {
	switch a {
	case AlgOAEPSHA1:
		return crypto.SHA1
	case AlgHMACSHA224:
		return crypto.SHA224
	case AlgOAEPSHA256, AlgPSSSHA256, AlgPKCS1SHA256, AlgECDSASHA256, AlgHMACSHA256:
		return crypto.SHA256
	case AlgPSSSHA384, AlgPKCS1SHA384, AlgECDSASHA384, AlgHMACSHA384:
		return crypto.SHA384
	case AlgPSSSHA512, AlgPKCS1SHA512, AlgECDSASHA512, AlgEd25519ph, AlgHMACSHA512:
		return crypto.SHA512
	}
	return 0
}

// digestSize returns the length a message of type Digest must have, 0 when the
// algorithm takes none.
func (a Algorithm) digestSize() int {
	switch a {
	case AlgSM2DSA:
		return 32
	case AlgEd25519ph, AlgPSSSHA256, AlgPSSSHA384, AlgPSSSHA512, AlgPKCS1SHA256, AlgPKCS1SHA384, AlgPKCS1SHA512,
		AlgECDSASHA256, AlgECDSASHA384, AlgECDSASHA512:
		return a.hash().Size()
	}
	return 0
}

// MaxPlaintext returns how many bytes a key of this spec encrypts at most with
// the algorithm, 0 when it encrypts nothing with it.
func MaxPlaintext(s Spec, a Algorithm) int {
	if !s.Supports(EncryptDecrypt, a) {
		return 0
	}
	switch a {
	case AlgSymmetric:
		return maxSymmetricPlaintext
	case AlgSM2PKE:
		return 1024
	}
	return s.bits()/8 - 2*a.hash().Size() - 2 // RFC 8017, section 7.1.1
}

// maxSymmetricPlaintext is what the API of an external key store proxy must
// take. AWS's limit on the plaintext of Encrypt, 4,096, is the model's and held
// by daemon/wire; the PKCS#8 form of the largest data key pair, RSA-4096, is about
// 2,400 bytes.
const maxSymmetricPlaintext = 4300
