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

	{RSA2048, TaskVerify, []Candidate{{OpenSSL, 27, ""}, {GoStd, 37, ""}}},
	{RSA2048, TaskSign, []Candidate{{OpenSSL, 750, ""}, {GoStd, 1_180, ""}}},
	{RSA2048, TaskDecrypt, []Candidate{{OpenSSL, 875, ""}, {GoStd, 1_330, ""}}},
	{RSA2048, TaskEncrypt, []Candidate{{GoStd, 44, oaepNote}, {OpenSSL, 33, ""}}},
	{RSA2048, TaskGenerate, []Candidate{{GoStd, 86_800, ""}}},
	{RSA3072, TaskVerify, []Candidate{{OpenSSL, 57, ""}, {GoStd, 239, ""}}},
	{RSA3072, TaskSign, []Candidate{{OpenSSL, 2_330, ""}, {GoStd, 4_160, ""}}},
	{RSA3072, TaskDecrypt, []Candidate{{OpenSSL, 2_900, ""}, {GoStd, 4_390, ""}}},
	{RSA3072, TaskEncrypt, []Candidate{{GoStd, 329, oaepNote}, {OpenSSL, 79, ""}}},
	{RSA3072, TaskGenerate, []Candidate{{GoStd, 212_000, ""}}},
	{RSA4096, TaskVerify, []Candidate{{OpenSSL, 96, ""}, {GoStd, 470, ""}}},
	{RSA4096, TaskSign, []Candidate{{OpenSSL, 6_400, ""}, {GoStd, 8_590, ""}}},
	{RSA4096, TaskDecrypt, []Candidate{{OpenSSL, 5_410, ""}, {GoStd, 8_240, ""}}},
	{RSA4096, TaskEncrypt, []Candidate{{GoStd, 379, oaepNote}, {OpenSSL, 102, ""}}},
	{RSA4096, TaskGenerate, []Candidate{{GoStd, 0, ""}}},

	{P256, TaskVerify, []Candidate{{GoStd, 83, cgoNote}, {OpenSSL, 75, ""}}},
	{P256, TaskSign, []Candidate{{OpenSSL, 31, ""}, {GoStd, 40, ""}}},
	{P256, TaskDerive, []Candidate{{GoStd, 86, ""}, {OpenSSL, 228, ""}}},
	{P256, TaskGenerate, []Candidate{{GoStd, 19, ""}}},
	{P384, TaskVerify, []Candidate{{CIRCL, 445, ""}, {OpenSSL, 829, ""}, {GoStd, 839, ""}}},
	{P384, TaskSign, []Candidate{{GoStd, 278, ""}, {OpenSSL, 1_050, ""}}},
	{P384, TaskDerive, []Candidate{{GoStd, 738, ""}, {OpenSSL, 2_420, ""}}},
	{P384, TaskGenerate, []Candidate{{GoStd, 222, ""}}},
	{P521, TaskVerify, []Candidate{{OpenSSL, 686, ""}, {GoStd, 3_740, ""}}},
	{P521, TaskSign, []Candidate{{OpenSSL, 368, ""}, {GoStd, 955, ""}}},
	{P521, TaskDerive, []Candidate{{OpenSSL, 732, ""}, {GoStd, 2_360, ""}}},
	{P521, TaskGenerate, []Candidate{{GoStd, 868, ""}}},

	{Secp256k1, TaskVerify, []Candidate{{VoiSecp256k1, 108, ""}}},
	{Secp256k1, TaskSign, []Candidate{{VoiSecp256k1, 49, ""}}},
	{Secp256k1, TaskGenerate, []Candidate{{VoiSecp256k1, 0, ""}}},
	{Ed25519, TaskVerify, []Candidate{{VoiEd25519, 30, ""}, {Edwards25519, 64, ""}}},
	{Ed25519, TaskSign, []Candidate{{VoiEd25519, 14, ""}, {GoStd, 30, ""}}},
	{Ed25519, TaskGenerate, []Candidate{{GoStd, 0, ""}}},

	{MLDSA44, TaskVerify, []Candidate{{CIRCL, 27, ""}, {GoMLDSA, 136, ""}}},
	{MLDSA44, TaskVerifyMu, []Candidate{{Own, 129, ""}}},
	{MLDSA44, TaskSign, []Candidate{{CIRCL, 173, ""}, {GoMLDSA, 381, ""}}},
	{MLDSA44, TaskSignMu, []Candidate{{GoMLDSA, 450, ""}}},
	{MLDSA44, TaskGenerate, []Candidate{{GoStd, 0.16, seedNote}}},
	{MLDSA65, TaskVerify, []Candidate{{CIRCL, 36, ""}, {GoMLDSA, 205, ""}}},
	{MLDSA65, TaskVerifyMu, []Candidate{{Own, 215, ""}}},
	{MLDSA65, TaskSign, []Candidate{{CIRCL, 224, ""}, {GoMLDSA, 675, ""}}},
	{MLDSA65, TaskSignMu, []Candidate{{GoMLDSA, 725, ""}}},
	{MLDSA65, TaskGenerate, []Candidate{{GoStd, 0.16, seedNote}}},
	{MLDSA87, TaskVerify, []Candidate{{CIRCL, 57, ""}, {GoMLDSA, 330, ""}}},
	{MLDSA87, TaskVerifyMu, []Candidate{{Own, 314, ""}}},
	{MLDSA87, TaskSign, []Candidate{{CIRCL, 317, ""}, {GoMLDSA, 706, ""}}},
	{MLDSA87, TaskSignMu, []Candidate{{GoMLDSA, 1_160, ""}}},
	{MLDSA87, TaskGenerate, []Candidate{{GoStd, 0.16, seedNote}}},

	{SM2, TaskVerify, []Candidate{{GMSM, 91, ""}}},
	{SM2, TaskSign, []Candidate{{GMSM, 33, ""}}},
	{SM2, TaskDecrypt, []Candidate{{GMSM, 71, ""}}},
	{SM2, TaskEncrypt, []Candidate{{GMSM, 100, ""}}},
	{SM2, TaskDerive, []Candidate{{GMSM, 76, ""}}},
	{SM2, TaskGenerate, []Candidate{{GMSM, 0, ""}}},
}

const (
	// A machine resumed twice from one snapshot must not encrypt twice under
	// one seed.
	oaepNote = "OpenSSL keeps random state in the process, which a machine's snapshot repeats"
	seedNote = "a random seed"
	// A tenth is within the noise, and a thread that stays in C for so long is
	// taken for blocked.
	cgoNote = "the difference is not worth the calls into C"
)
