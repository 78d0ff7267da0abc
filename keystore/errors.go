package keystore

import (
	"errors"
	"fmt"
)

// Errors that callers act on. All others are failures of the machine below
// (or of the caller's arguments) and end the request.
var (
	// ErrNotFound: there is no such record.
	ErrNotFound = errors.New("keystore: not found")
	// ErrConflict: an expectation of the commit does not hold; nothing was
	// changed. Read again and decide again.
	ErrConflict = errors.New("keystore: the record changed in between")
	// ErrTooLarge: the commit has more than MaxChanges changes or MaxCommitBytes
	// bytes; nothing was changed. Split it.
	ErrTooLarge = errors.New("keystore: the commit is too large")
	// ErrInvalid: the arguments contradict a rule of the store; nothing was
	// changed.
	ErrInvalid = errors.New("keystore: invalid change")
	// ErrCompacted: the revision to watch from is no longer, or not, in memory.
	// Read everything again and watch from the present.
	ErrCompacted = errors.New("keystore: revision no longer in the watch history")
	// ErrRewrapping: somebody moves the store to another domain key just now.
	ErrRewrapping = errors.New("keystore: the store is being moved to another domain key already")
	// ErrNoRewrap: no move to another domain key has begun.
	ErrNoRewrap = errors.New("keystore: no move to another domain key has begun")
	// ErrClosed: the store was closed.
	ErrClosed = errors.New("keystore: closed")

	// ErrNoStore: the directory has no store (and MustExist was asked for).
	ErrNoStore = errors.New("keystore: no store in the directory")
	// ErrLocked: another process, or this one, has the store open.
	ErrLocked = errors.New("keystore: the directory is in use by another keymill")
	// ErrUnknownFormat: the store was written by another version of the program.
	ErrUnknownFormat = errors.New("keystore: unknown store format")
	// ErrWrongRoot: the root of trust given is not the one the store belongs to.
	ErrWrongRoot = errors.New("keystore: the store belongs to another root of trust")
	// ErrTampered: a record is not what the store wrote. Use errors.As with a
	// *TamperedError to learn which.
	ErrTampered = errors.New("keystore: the store was changed from outside")
	// ErrFailed: a write to disk failed. What was not acknowledged may or may
	// not survive; the store refuses all further commits until it is opened
	// again.
	ErrFailed = errors.New("keystore: storage failed, no further changes are accepted")
	// ErrBadBackup: the directory to restore from is not a complete backup.
	ErrBadBackup = errors.New("keystore: not a complete backup")
)

// A TamperedError names the record that is not what the store wrote. Its text
// contains names and identifiers, never a value. It is an ErrTampered.
type TamperedError struct {
	Record string // kind and name, such as "alias 000000000000/us-east-1/alias/app"
	Reason string
}

func (e *TamperedError) Error() string {
	return fmt.Sprintf("keystore: record %s: %s", e.Record, e.Reason)
}

// Is makes errors.Is(err, ErrTampered) true.
func (e *TamperedError) Is(target error) bool { return target == ErrTampered }

func tampered(storageKey []byte, reason string) error {
	return &TamperedError{Record: describe(storageKey), Reason: reason}
}
