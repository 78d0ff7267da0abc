// Package engine is the cryptography of Keymill: key specs and algorithms, the
// handles that compute with keys, and the ciphertext format. It knows nothing
// of HTTP, accounts, policies or storage.
//
// # Keys
//
// A [Key] is a handle on one KMS key. Its Do carries out a batch of operations
// and never waits: an operation whose material is not loaded answers
// [ErrPending], the caller calls Warm, which may wait for storage and the HSM,
// and then Do again. A [Class] tells the scheduler how much work a verb is.
// [NewLocalKey] makes the handle of a key whose material this process unwraps.
// Once warm, a handle is read without a lock; the comment on its type has the
// protocol between Do, Warm and Purge.
//
// Verify and asymmetric Encrypt need the public key only and work on a cold
// handle.
//
// # Ciphertexts
//
// Symmetric keys make self-describing blobs, laid out in blob.go: a header that
// names format, key and material, then XAES-256-GCM (C2SP). The header and the
// canonical encryption context ([AppendContext]) are associated data, so a blob
// decrypts under exactly the key id, material and context it was made with.
// There is one error for every blob that does not: [ErrInvalidCiphertext].
// cipher.go explains how lanes make the derivation of XAES nearly free.
//
// Asymmetric ciphertexts and all signatures and MACs are raw: RFC 8017 for RSA,
// DER for ECDSA and SM2, RFC 8032, FIPS 204.
//
// # Message types
//
// As AWS has them. RSA, ECDSA and SM2 take RAW, and DIGEST of the hash's length
// (for SM2 the hash of ZA and message). Ed25519 takes RAW. Ed25519ph takes
// DIGEST and hashes it once more, so that what it signs is Ed25519ph of the 64
// bytes given. ML-DSA takes RAW and the 64-byte EXTERNAL_MU; a signature of one
// verifies as the other.
//
// # Secrets in memory
//
// The slice a [Source] returns is wiped when the state has been built from it,
// and so are derived keys and the libraries' copies of decrypted plaintexts and
// shared secrets that pass through here. Warm state (AES schedules, HMAC keys,
// private keys) is on the Go heap; Purge makes it garbage but cannot wipe what
// another goroutine may still be using. None of the libraries wipes its own
// intermediate values.
//
// A warm handle takes about 3.5 kB of heap for a symmetric key (two processors;
// each more adds a lane of 1.5 kB, each derived key in the cache 1.3 kB), 1 to
// 2 kB for HMAC and curves, 6 kB for RSA-2048, and 120 kB for ML-DSA-65, whose
// expanded matrix both halves keep: a cache of handles should count ML-DSA
// keys for more than one.
//
// # Which implementation does what
//
// Private keys are touched only by code documented as taking constant time;
// among those, the fastest here. Verification and encryption to a public key
// may take variable time. Microseconds of processor time, the lower of two runs
// on one thread of a busy 2-vCPU AMD Zen 5 virtual machine, Go 1.26.8: read
// them as ratios (on a quiet machine they were 1.5 to 2 times lower). From
//
//	go test -run '^$' -bench 'Choice|Handle' -benchtime 80ms ./engine
//
//	scheme            private  served by         public  served by
//	RSA-PSS 2048        1,144  Go                    37  Go
//	RSA-PSS 3072        3,265  Go                   206  Go
//	RSA-PSS 4096        6,997  Go                   370  Go
//	RSA-OAEP 2048       1,142  Go                    37  Go
//	P-256 ECDSA            38  Go                    83  Go
//	P-384 ECDSA           248  Go                   429  CIRCL arithmetic (Go: 707)
//	P-521 ECDSA           892  Go                 3,318  Go
//	P-256 ECDH             65  Go
//	P-384 ECDH            495  Go
//	P-521 ECDH          2,486  Go
//	secp256k1              60  secp256k1-voi        104  secp256k1-voi (decred: 167)
//	Ed25519                14  curve25519-voi        30  curve25519-voi
//	                           (Go, CIRCL: 27)           (Go, CIRCL: 60)
//	ML-DSA-44             165  CIRCL                 26  CIRCL
//	ML-DSA-65             246  CIRCL                 36  CIRCL
//	ML-DSA-87             289  CIRCL                 53  CIRCL
//	ML-DSA-44 from mu     418  filippo.io/mldsa     116  mldsamu.go
//	ML-DSA-65 from mu     699  filippo.io/mldsa     186  mldsamu.go
//	ML-DSA-87 from mu     764  filippo.io/mldsa     298  mldsamu.go
//	SM2DSA                 30  gmsm                  79  gmsm
//	SM2PKE                 67  gmsm                  83  gmsm
//
//	symmetric, warm handle           32 B   4 KiB
//	AES-256-GCM, random nonce, bare  0.16    1.21
//	XAES without lanes               0.79    2.25
//	Encrypt                          0.27    1.59
//	Decrypt                          0.18    1.23
//
//	HMAC-SHA-256: new 0.67, reset 0.21, GenerateMAC of a warm handle 0.27
//
// What decided, where it was not the figure:
//
//   - decred's secp256k1 signs twice as fast, but not in constant time;
//     secp256k1-voi documents its scalar and point arithmetic as constant-time.
//   - curve25519-voi documents its basepoint multiplication as constant-time.
//     Its rules for verification are those of FIPS 186-5; curves.go says why.
//   - CIRCL names the packages of it that leak through timing; ML-DSA is not
//     among them. Go and filippo.io/mldsa, which is Go's, document the same for
//     what they do with private keys.
//   - CIRCL's P-384 warns that its multiplication leaks: it only verifies.
//   - CIRCL has no way to sign a given mu, and no library exports verification
//     of one. filippo.io/mldsa, the extract of Go 1.27's crypto/mldsa, signs;
//     verification from mu is ours, and tested against CIRCL's.
//   - gmsm keeps the SM2 scalar in a big.Int, whose length in bytes shows; the
//     arithmetic on it is constant-time. Keys made here all have full length.
package engine
