package daemon

import (
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"syscall"
	"time"
)

// listen binds a. Unless remote is set, an address that another machine could
// reach is refused even when its name looked local.
func listen(a address, remote bool) (net.Listener, error) {
	if a.network == "unix" {
		return listenUnix(a.addr)
	}
	ln, err := net.Listen("tcp", a.addr)
	if err != nil {
		return nil, err
	}
	if tcp, ok := ln.Addr().(*net.TCPAddr); !remote && (!ok || !tcp.IP.IsLoopback()) {
		ln.Close()
		return nil, fmt.Errorf("%s is bound to %s, which is not loopback", a.addr, ln.Addr())
	}
	return ln, nil
}

// probeTimeout bounds the question whether a socket found in place is alive; on
// one machine the answer is immediate.
const probeTimeout = time.Second

// listenUnix binds a Unix socket that only the daemon's own user may use. A
// socket that a daemon left behind when it was killed is replaced; a live one,
// or a file that is no socket, is refused.
func listenUnix(path string) (net.Listener, error) {
	switch info, err := os.Lstat(path); {
	case errors.Is(err, fs.ErrNotExist):
	case err != nil:
		return nil, err
	case info.Mode().Type() != fs.ModeSocket:
		return nil, fmt.Errorf("%s is in the way: it is no socket", path)
	default:
		conn, err := dialUnix(path)
		if err == nil {
			conn.Close()
			return nil, fmt.Errorf("%s is in use by another process", path)
		}
		if !errors.Is(err, syscall.ECONNREFUSED) {
			return nil, fmt.Errorf("couldn't tell whether %s is in use: %w", path, err)
		}
		if err := os.Remove(path); err != nil {
			return nil, err
		}
	}

	short, done, err := shortPath(path)
	if err != nil {
		return nil, err
	}
	defer done()
	ln, err := net.ListenUnix("unix", &net.UnixAddr{Name: short, Net: "unix"})
	if err != nil {
		return nil, err
	}
	ln.SetUnlinkOnClose(false) // by unixListener, which knows the real path
	if err := os.Chmod(path, 0o600); err != nil {
		ln.Close()
		return nil, err
	}
	return &unixListener{ln, path}, nil
}

// unixListener is a Unix listener known by its real path.
type unixListener struct {
	*net.UnixListener
	path string
}

func (l *unixListener) Addr() net.Addr { return &net.UnixAddr{Name: l.path, Net: "unix"} }

// Close removes the socket first, so that nobody connects to a queue that is
// never served.
func (l *unixListener) Close() error {
	err := l.UnixListener.Close()
	if err == nil {
		os.Remove(l.path)
	}
	return err
}

// dialUnix connects to a Unix socket at a path of any length.
func dialUnix(path string) (net.Conn, error) {
	short, done, err := shortPath(path)
	if err != nil {
		return nil, err
	}
	defer done()
	return net.DialTimeout("unix", short, probeTimeout)
}

// maxSocketPath is what fits the kernel's sockaddr_un with its final zero.
const maxSocketPath = 107

// shortPath returns a name for path that fits a socket address: path itself or,
// when that is too long, one that goes through an open descriptor of its
// directory. The name is good until done is called.
func shortPath(path string) (short string, done func(), err error) {
	if len(path) <= maxSocketPath {
		return path, func() {}, nil
	}
	dir, err := os.Open(filepath.Dir(path))
	if err != nil {
		return "", nil, err
	}
	short = fmt.Sprintf("/proc/self/fd/%d/%s", dir.Fd(), filepath.Base(path))
	return short, func() { dir.Close() }, nil
}
