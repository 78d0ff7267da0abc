package kms

import (
	"context"
	"errors"

	"keymill/daemon/wire"
	"keymill/hsm"
	"keymill/keystore"
)

// mapError gives the wire error for a cause that is not the caller's. The cause
// itself is for the log.
func mapError(err error) *wire.Error {
	switch {
	case errors.Is(err, keystore.ErrConflict), errors.Is(err, errBusy):
		return wire.NewError(wire.KMSInternalException, "The request was rejected because the resource is being changed by other requests. Try again.")
	case errors.Is(err, context.DeadlineExceeded), errors.Is(err, hsm.ErrTimeout):
		return wire.NewError(wire.DependencyTimeoutException, "The system timed out while trying to fulfill the request. You can retry the request.")
	case hsmUnavailable(err):
		return wire.NewError(wire.KeyUnavailableException, "The request was rejected because the root of trust is not available. You can retry the request.")
	default:
		return wire.NewError(wire.KMSInternalException, "The request was rejected because an internal exception occurred. You can retry the request.")
	}
}

// hsmUnavailable tells whether err came from a token that may come back.
func hsmUnavailable(err error) bool {
	return errors.Is(err, hsm.ErrTokenMissing) || errors.Is(err, hsm.ErrTokenLocked) || errors.Is(err, hsm.ErrPINIncorrect)
}

func invalid(format string, args ...any) error {
	return wire.NewError(wire.ValidationException, format, args...)
}
