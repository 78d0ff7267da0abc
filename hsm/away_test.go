package hsm_test

import (
	"context"
	"errors"
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
	back := hsmtest.TakeTokens(t)
	eventually(t, "it is missed", func() bool { return errors.Is(unwrap(), hsm.ErrTokenMissing) })
	back()
	eventually(t, "it is found again", func() bool { return unwrap() == nil })
	checkUnwraps(t, r, id, wraps)
}
