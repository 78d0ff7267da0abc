package hsm_test

import (
	"context"
	"errors"
	"fmt"
	"testing"

	"keymill/hsm"
)

// Every error has one stated class, also when wrapped; what is unknown stops.
func TestClassify(t *testing.T) {
	for err, want := range map[error]hsm.Class{
		hsm.ErrNoDomainKey: hsm.Fatal, hsm.ErrDuplicateDomainKey: hsm.Fatal, hsm.ErrWeakDomainKey: hsm.Fatal,
		hsm.ErrDomainKeyUsedUp: hsm.Fatal, hsm.ErrBadWrapped: hsm.Fatal, hsm.ErrBadItem: hsm.Fatal,
		hsm.ErrNoKeyFile: hsm.Fatal, hsm.ErrKeyFile: hsm.Fatal, hsm.ErrModule: hsm.Fatal, hsm.ErrToken: hsm.Fatal,
		hsm.ErrTokenLocked: hsm.Fatal, hsm.ErrPINIncorrect: hsm.Fatal, hsm.ErrPINFile: hsm.Fatal, hsm.ErrMechanism: hsm.Fatal,
		hsm.ErrClosed: hsm.Fatal, errors.New("something else"): hsm.Fatal,
		hsm.ErrTokenMissing: hsm.NewSession, hsm.ErrSession: hsm.NewSession,
		hsm.ErrDevice: hsm.Retry, hsm.ErrTimeout: hsm.Retry, hsm.ErrBusy: hsm.Retry,
		context.Canceled: hsm.Retry, context.DeadlineExceeded: hsm.Retry,
	} {
		if got := hsm.Classify(fmt.Errorf("couldn't do it: %w", err)); got != want {
			t.Errorf("%v is %v, want %v", err, got, want)
		}
	}
	// A refused PIN must not be tried again, whatever else went wrong beside it.
	if got := hsm.Classify(errors.Join(hsm.ErrTimeout, hsm.ErrPINIncorrect)); got != hsm.Fatal {
		t.Errorf("a refused PIN with a timeout is %v", got)
	}
}
