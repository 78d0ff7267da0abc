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
// [NewTokenKey] makes the handle of a key that lives in an HSM, [NewExternalKey]
// that of a key in an external key store. They wait for somebody else on every
// use; waiting.go says how such a key fits in.
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
// another goroutine may still be using. OpenSSL's keys are outside the heap, 2 to
// 4 kB each, and wiped when they are freed; none of the other libraries wipes its
// own intermediate values, nor does reading PKCS#8.
//
// A warm handle takes about 3.5 kB of heap for a symmetric key (two processors;
// each more adds a lane of 1.5 kB, each derived key in the cache 1.3 kB), 1 to
// 2 kB for HMAC and curves, 6 kB for RSA-2048, and 120 kB for ML-DSA-65, whose
// expanded matrix both halves keep: a cache of handles should count ML-DSA
// keys for more than one.
//
// # Which implementation does what
//
// Every task of every spec has a list of candidates, in providertable.go: the
// first that is neither forbidden nor missing serves, once it has passed its
// known-answer test ([ConfigureProviders], [Providers]). Private keys are
// touched only by code documented as taking constant time; among those, the
// fastest here. Verification and encryption to a public key may take variable
// time. All candidates obey the same rules on lengths and encodings and give
// the same verdicts; the tests hold them against each other.
//
// Microseconds of processor time, the lowest of eight short runs on one thread
// of a busy 2-vCPU AMD EPYC virtual machine without AVX-512 IFMA, Go 1.26.8,
// OpenSSL 3.0.19: read them as ratios (on a quiet machine they are 1.5 to 2
// times lower; with IFMA, OpenSSL signs with RSA_2048 three times as fast as
// Go). The provider in front serves. From
//
//	go test -run '^$' -bench 'Provider' -benchtime 10ms -count 8 ./engine
//
//	scheme            private                       public
//	RSA-PSS 2048      openssl 750, go 1,180         openssl 27, go 37
//	RSA-PSS 3072      openssl 2,330, go 4,160       openssl 57, go 239
//	RSA-PSS 4096      openssl 6,400, go 8,590       openssl 96, go 470
//	RSA-OAEP 2048     openssl 875, go 1,330         go 44, openssl 33
//	RSA-OAEP 3072     openssl 2,900, go 4,390       go 329, openssl 79
//	RSA-OAEP 4096     openssl 5,410, go 8,240       go 379, openssl 102
//	P-256 ECDSA       openssl 31, go 40             go 83, openssl 75
//	P-384 ECDSA       go 278, openssl 1,050         circl 445, openssl 829, go 839
//	P-521 ECDSA       openssl 368, go 955           openssl 686, go 3,740
//	P-256 ECDH        go 86, openssl 228
//	P-384 ECDH        go 738, openssl 2,420
//	P-521 ECDH        openssl 732, go 2,360
//	secp256k1         secp256k1-voi 49              secp256k1-voi 108 (decred 167)
//	Ed25519           curve25519-voi 14, go 30      curve25519-voi 30, edwards25519 64
//	                  (circl 27, openssl 85)        (go, circl 60, openssl 268)
//	ML-DSA-44         circl 173, filippo 381        circl 27, filippo 136
//	ML-DSA-65         circl 224, filippo 675        circl 36, filippo 205
//	ML-DSA-87         circl 317, filippo 706        circl 57, filippo 330
//	ML-DSA-44 from mu filippo 450                   mldsamu.go 129
//	ML-DSA-65 from mu filippo 725                   mldsamu.go 215
//	ML-DSA-87 from mu filippo 1,160                 mldsamu.go 314
//	SM2DSA            gmsm 33                       gmsm 91
//	SM2PKE            gmsm 71                       gmsm 100
//	RSA_2048 keys     go 86,800 (openssl 396,000)
//
// Several Ed25519 signatures of one key, verified in one Do, are checked in one
// sum (ed25519batch.go); microseconds for all of them:
//
//	signatures               1     2     3     4     8     32     64    128
//	one by one              41    68    97   134   245  1,061  2,041  4,290
//	curve25519-voi's batch  52    73    86   101   165    594  1,272  2,269
//	the sum for one key     55    61    71    82   125    410    818  1,649
//
// So three are worth a sum, and 64 cost 2.5 times less than one by one.
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
//   - OpenSSL documents blinding for RSA, and checks what the Chinese
//     remainder theorem gave before it lets go of it; OAEP is unpadded without
//     branches. P-256 and P-521 have arithmetic of their own that is constant
//     in time, any other curve the Montgomery ladder (since 1.1.1), and nonces
//     are inverted by exponentiation. Versions before the last known leaks were
//     closed are refused (openssl.go).
//   - OpenSSL draws from a generator inside the process, whose state a snapshot
//     of a machine repeats. Its ECDSA nonces survive that, for key and message
//     are hashed into them, and PSS needs no secret salt; OAEP's seed does
//     not, so encryption stays with Go.
//   - Ten percent on P-256 verification do not pay for a thread in C.
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
