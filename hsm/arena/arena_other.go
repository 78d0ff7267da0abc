//go:build !linux

package arena

import "errors"

// Outside Linux a Secret is plain heap memory that is wiped: good enough to develop
// on, and Notice says so.
func mapLocked(n int) (m []byte, lockErr, err error) {
	return make([]byte, n), errors.New("locked memory is implemented on Linux only"), nil
}

func unmap([]byte) {}

// Harden does nothing outside Linux and says so.
func Harden() []string {
	return []string{"memory protection (no core dumps, locked memory) is implemented on Linux only"}
}
