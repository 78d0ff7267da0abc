//go:build !linux

package hsm

import (
	"errors"
	"net"
)

var errNoChild = errors.New("a process of its own for the PKCS#11 module is implemented on Linux only; use --hsm-in-process")

func spawn(*PKCS11Config) (*child, error) { return nil, errNoChild }

// ChildConn works on Linux only.
func ChildConn() (net.Conn, error) { return nil, errNoChild }

// tryWrite leaves it to the goroutine that waits.
func tryWrite(net.Conn, [][]byte) (int, error) { return 0, nil }
