package hsm_test

import (
	"os"
	"testing"

	"keymill/hsm/hsmtest"
)

func TestMain(m *testing.M) {
	hsmtest.MaybeChild()
	os.Exit(m.Run())
}
