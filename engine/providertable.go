package engine

// providerTable says who may serve what, best first: by processor time, unless
// a note says what else decided. Every candidate for sign, decrypt and derive
// is documented as constant-time; the package documentation has the evidence
// and the figures' origin. Verify rows come before sign rows, which they check.
var providerTable = []providerRow{
	{SymmetricDefault, TaskEncrypt, []Candidate{{GoStd, 0.27, ""}}},
	{SymmetricDefault, TaskGenerate, []Candidate{{GoStd, 0.16, ""}}},
	{HMAC224, TaskMAC, []Candidate{{GoStd, 0.27, ""}}},
	{HMAC224, TaskGenerate, []Candidate{{GoStd, 0.16, ""}}},
	{HMAC256, TaskMAC, []Candidate{{GoStd, 0.27, ""}}},
	{HMAC256, TaskGenerate, []Candidate{{GoStd, 0.16, ""}}},
	{HMAC384, TaskMAC, []Candidate{{GoStd, 0, ""}}},
	{HMAC384, TaskGenerate, []Candidate{{GoStd, 0, ""}}},
	{HMAC512, TaskMAC, []Candidate{{GoStd, 0, ""}}},
	{HMAC512, TaskGenerate, []Candidate{{GoStd, 0, ""}}},

	{RSA2048, TaskVerify, []Candidate{{OpenSSL, 28, ""}, {GoStd, 40, ""}}},
	{RSA2048, TaskSign, []Candidate{{OpenSSL, 826, ""}, {GoStd, 1329, ""}}},
	{RSA2048, TaskDecrypt, []Candidate{{OpenSSL, 772, ""}, {GoStd, 1259, ""}}},
	{RSA2048, TaskEncrypt, []Candidate{{GoStd, 40, oaepNote}, {OpenSSL, 30, ""}}},
	{RSA2048, TaskGenerate, []Candidate{{GoStd, 86_800, ""}}},
	{RSA3072, TaskVerify, []Candidate{{OpenSSL, 56, ""}, {GoStd, 351, ""}}},
	{RSA3072, TaskSign, []Candidate{{OpenSSL, 2393, ""}, {GoStd, 3787, ""}}},
	{RSA3072, TaskDecrypt, []Candidate{{OpenSSL, 2366, ""}, {GoStd, 3725, ""}}},
	{RSA3072, TaskEncrypt, []Candidate{{GoStd, 271, oaepNote}, {OpenSSL, 72, ""}}},
	{RSA3072, TaskGenerate, []Candidate{{GoStd, 212_000, ""}}},
	{RSA4096, TaskVerify, []Candidate{{OpenSSL, 109, ""}, {GoStd, 395, ""}}},
	{RSA4096, TaskSign, []Candidate{{OpenSSL, 5181, ""}, {GoStd, 8481, ""}}},
	{RSA4096, TaskDecrypt, []Candidate{{OpenSSL, 5189, ""}, {GoStd, 7256, ""}}},
	{RSA4096, TaskEncrypt, []Candidate{{GoStd, 518, oaepNote}, {OpenSSL, 91, ""}}},
	{RSA4096, TaskGenerate, []Candidate{{GoStd, 0, ""}}},

	{P256, TaskVerify, []Candidate{{OpenSSL, 76, ""}, {GoStd, 88, ""}}},
	{P256, TaskSign, []Candidate{{OpenSSL, 33, ""}, {GoStd, 50, ""}}},
	{P256, TaskDerive, []Candidate{{GoStd, 62, ""}, {OpenSSL, 188, ""}}},
	{P256, TaskGenerate, []Candidate{{GoStd, 19, ""}}},
	{P384, TaskVerify, []Candidate{{CIRCL, 429, ""}, {GoStd, 707, ""}, {OpenSSL, 1342, ""}}},
	{P384, TaskSign, []Candidate{{GoStd, 248, ""}, {OpenSSL, 1573, ""}}},
	{P384, TaskDerive, []Candidate{{GoStd, 495, ""}, {OpenSSL, 2495, ""}}},
	{P384, TaskGenerate, []Candidate{{GoStd, 222, ""}}},
	{P521, TaskVerify, []Candidate{{OpenSSL, 764, ""}, {GoStd, 3729, ""}}},
	{P521, TaskSign, []Candidate{{OpenSSL, 386, ""}, {GoStd, 1266, ""}}},
	{P521, TaskDerive, []Candidate{{OpenSSL, 1246, ""}, {GoStd, 3774, ""}}},
	{P521, TaskGenerate, []Candidate{{GoStd, 868, ""}}},

	{Secp256k1, TaskVerify, []Candidate{{VoiSecp256k1, 104, ""}}},
	{Secp256k1, TaskSign, []Candidate{{VoiSecp256k1, 60, ""}}},
	{Secp256k1, TaskGenerate, []Candidate{{VoiSecp256k1, 0, ""}}},
	{Ed25519, TaskVerify, []Candidate{{VoiEd25519, 30, ""}, {Edwards25519, 60, ""}}},
	{Ed25519, TaskSign, []Candidate{{VoiEd25519, 14, ""}, {GoStd, 27, ""}}},
	{Ed25519, TaskGenerate, []Candidate{{GoStd, 0, ""}}},

	{MLDSA44, TaskVerify, []Candidate{{CIRCL, 26, ""}, {GoMLDSA, 0, ""}}},
	{MLDSA44, TaskVerifyMu, []Candidate{{Own, 116, ""}}},
	{MLDSA44, TaskSign, []Candidate{{CIRCL, 165, ""}, {GoMLDSA, 0, ""}}},
	{MLDSA44, TaskSignMu, []Candidate{{GoMLDSA, 418, ""}}},
	{MLDSA44, TaskGenerate, []Candidate{{GoStd, 0.16, seedNote}}},
	{MLDSA65, TaskVerify, []Candidate{{CIRCL, 36, ""}, {GoMLDSA, 0, ""}}},
	{MLDSA65, TaskVerifyMu, []Candidate{{Own, 186, ""}}},
	{MLDSA65, TaskSign, []Candidate{{CIRCL, 246, ""}, {GoMLDSA, 0, ""}}},
	{MLDSA65, TaskSignMu, []Candidate{{GoMLDSA, 699, ""}}},
	{MLDSA65, TaskGenerate, []Candidate{{GoStd, 0.16, seedNote}}},
	{MLDSA87, TaskVerify, []Candidate{{CIRCL, 53, ""}, {GoMLDSA, 0, ""}}},
	{MLDSA87, TaskVerifyMu, []Candidate{{Own, 298, ""}}},
	{MLDSA87, TaskSign, []Candidate{{CIRCL, 289, ""}, {GoMLDSA, 0, ""}}},
	{MLDSA87, TaskSignMu, []Candidate{{GoMLDSA, 764, ""}}},
	{MLDSA87, TaskGenerate, []Candidate{{GoStd, 0.16, seedNote}}},

	{SM2, TaskVerify, []Candidate{{GMSM, 79, ""}}},
	{SM2, TaskSign, []Candidate{{GMSM, 30, ""}}},
	{SM2, TaskDecrypt, []Candidate{{GMSM, 67, ""}}},
	{SM2, TaskEncrypt, []Candidate{{GMSM, 83, ""}}},
	{SM2, TaskDerive, []Candidate{{GMSM, 0, ""}}},
	{SM2, TaskGenerate, []Candidate{{GMSM, 0, ""}}},
}

const (
	// A machine resumed twice from one snapshot must not encrypt twice under
	// one seed.
	oaepNote = "OpenSSL keeps random state in the process, which a machine's snapshot repeats"
	seedNote = "a random seed"
)
