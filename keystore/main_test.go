package keystore

import (
	"os"
	"testing"

	"keymill/hsm/hsmtest"
)

func TestMain(m *testing.M) {
	hsmtest.MaybeChild()
	os.Exit(m.Run())
}
