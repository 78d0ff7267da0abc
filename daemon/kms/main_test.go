package kms

import (
	"os"
	"testing"

	"keymill/hsm/hsmtest"
)

// TestMain lets the test binary be the process that has a PKCS#11 module loaded.
func TestMain(m *testing.M) {
	hsmtest.MaybeChild()
	os.Exit(m.Run())
}
