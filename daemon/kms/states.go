package kms

import (
	"keymill/daemon/wire"
)

// keyState is a KMS key's state (AWS KMS Developer Guide, Key states).
type keyState uint8

const (
	stateEnabled keyState = iota
	stateDisabled
	statePendingDeletion
	statePendingReplicaDeletion
	statePendingImport
	stateUnavailable
	stateCreating
	stateUpdating
	stateCount
)

var stateNames = [stateCount]string{
	"Enabled", "Disabled", "PendingDeletion", "PendingReplicaDeletion",
	"PendingImport", "Unavailable", "Creating", "Updating",
}

func (s keyState) String() string { return stateNames[s] }

func parseState(name string) (keyState, bool) {
	for i, n := range stateNames {
		if n == name {
			return keyState(i), true
		}
	}
	return 0, false
}

// stateRule says what an operation answers in each key state, in the order of
// the constants above. The codes are the notes of the Developer Guide's table:
//
//	. allowed             4 not pending deletion   e creating
//	1 disabled            5 pending import         f updating
//	3 pending deletion    b unavailable
type stateRule string

const (
	always         stateRule = "........"
	cryptography   stateRule = ".1335be."
	dataKeyPair    stateRule = ".1335.e." // in a custom key store never
	grantCreation  stateRule = ".1335.e."
	publicKey      stateRule = "..33..e."
	description    stateRule = "..33...."
	enableDisable  stateRule = "..335.ef"
	deletionStart  stateRule = "..33...f"
	deletionCancel stateRule = "44..4444"
)

// check returns the error with which an operation under rule r answers for the
// key arn in state s, nil when it may go on.
func (r stateRule) check(s keyState, arn string) error {
	switch r[s] {
	case '.':
		return nil
	case '1':
		return wire.NewError(wire.DisabledException, "%s is disabled.", arn)
	case '3':
		if s == statePendingReplicaDeletion {
			return invalidState("%s is pending replica deletion.", arn)
		}
		return invalidState("%s is pending deletion.", arn)
	case '4':
		return invalidState("%s is not pending deletion.", arn)
	case '5':
		return invalidState("%s is pending import.", arn)
	case 'b':
		return invalidState("%s is unavailable.", arn)
	case 'e':
		return invalidState("%s is creating.", arn)
	default:
		return invalidState("%s is updating.", arn)
	}
}

func invalidState(format, arn string) error {
	return wire.NewError(wire.KMSInvalidStateException, format, arn)
}
