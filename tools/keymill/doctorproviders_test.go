package main

import (
	"regexp"
	"strings"
	"testing"
)

// TestDoctorProviders prints the table as an operator sees it, with and without
// OpenSSL, and with a spec that has nobody left.
func TestDoctorProviders(t *testing.T) {
	out, errs, status := run(t, "doctor", "--providers")
	if status != 0 {
		t.Fatalf("status %d: %s", status, errs)
	}
	if !regexp.MustCompile(`(?m)^SYMMETRIC_DEFAULT +encrypt +go +the only one`).MatchString(out) {
		t.Errorf("no row for symmetric keys:\n%s", out)
	}
	out, errs, status = run(t, "doctor", "--providers", "--forbid-provider", "openssl")
	if status != 0 || !strings.Contains(out, "openssl: forbidden") ||
		!regexp.MustCompile(`(?m)^RSA_2048 +sign +go +best of what is left .*not openssl .*forbidden`).MatchString(out) {
		t.Errorf("without openssl: status %d\n%s%s", status, out, errs)
	}
	out, errs, status = run(t, "doctor", "--providers", "--forbid-provider", "secp256k1-voi")
	if status == 0 || !strings.Contains(errs, "ECC_SECG_P256K1 sign") || !strings.Contains(out, "NONE") {
		t.Errorf("without secp256k1: status %d\n%s%s", status, out, errs)
	}
}
