package hsm_test

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"testing"

	"keymill/hsm"
	"keymill/hsm/hsmtest"
)

// A token that vanishes and comes back is found again, though the module looks for
// tokens only when it is initialised.
func TestTokenAway(t *testing.T) {
	dir := hsmtest.NewSoftHSMDir(t)
	dir.Config.Child = hsmtest.Child
	r := openToken(t, dir.Config)
	id := newDomainKey(t, r)
	wraps := wrapAll(t, r, id, 1)
	unwrap := func() error { return decryptOne(r, context.Background(), id, wraps[0]).Err }
	tokens := filepath.Join(filepath.Dir(os.Getenv("SOFTHSM2_CONF")), "tokens")
	move := func(from, to string) {
		t.Helper()
		if err := os.Rename(from, to); err != nil {
			t.Fatal(err)
		}
	}
	move(tokens, tokens+".away")
	if err := os.Mkdir(tokens, 0o700); err != nil {
		t.Fatal(err)
	}
	eventually(t, "it is missed", func() bool { return errors.Is(unwrap(), hsm.ErrTokenMissing) })
	move(tokens, tokens+".empty")
	move(tokens+".away", tokens)
	eventually(t, "it is found again", func() bool { return unwrap() == nil })
	checkUnwraps(t, r, id, wraps)
}
