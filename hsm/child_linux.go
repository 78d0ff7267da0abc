package hsm

import (
	"fmt"
	"net"
	"os"
	"runtime"
	"syscall"

	"golang.org/x/sys/unix"
)

// childFD is the number under which the child inherits its socket.
const childFD = 3

// spawn starts the process. The child is killed by the kernel when the daemon ends in
// whatever way; Linux ties that to the thread that forked, so one thread forks, waits and
// does nothing else. It costs a thread per child, as waiting does anyway.
func spawn(cfg *PKCS11Config) (*child, error) {
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, fmt.Errorf("couldn't make a socket pair: %w", err)
	}
	ours, theirs := os.NewFile(uintptr(fds[0]), "hsm"), os.NewFile(uintptr(fds[1]), "hsm-child")
	defer theirs.Close()
	conn, err := net.FileConn(ours)
	ours.Close()
	if err != nil {
		return nil, fmt.Errorf("couldn't make a socket pair: %w", err)
	}
	cmd := cfg.Child()
	cmd.ExtraFiles = []*os.File{theirs}
	if cmd.Env == nil {
		cmd.Env = os.Environ()
	}
	// A crash inside the module prints no registers and no stack: they may hold keys.
	cmd.Env = append(cmd.Env, "GOTRACEBACK=none")
	if cmd.SysProcAttr == nil {
		cmd.SysProcAttr = &syscall.SysProcAttr{}
	}
	cmd.SysProcAttr.Pdeathsig = syscall.SIGKILL

	c := newChild(cfg, cmd, conn, make(chan struct{}))
	started := make(chan error)
	go func() {
		runtime.LockOSThread()
		defer runtime.UnlockOSThread()
		err := cmd.Start()
		started <- err
		if err == nil {
			c.waitErr = cmd.Wait()
			close(c.exited)
		}
	}()
	if err := <-started; err != nil {
		conn.Close()
		c.out.close()
		return nil, fmt.Errorf("couldn't start the process that runs the PKCS#11 module: %w", err)
	}
	return c, nil
}

// ChildConn returns the socket that the child inherited, for [ServeChild].
func ChildConn() (net.Conn, error) {
	f := os.NewFile(childFD, "hsm")
	if f == nil {
		return nil, errNoChildSocket
	}
	defer f.Close()
	conn, err := net.FileConn(f)
	if err != nil {
		return nil, errNoChildSocket
	}
	return conn, nil
}

// maxVector is how many frames one system call writes.
const maxVector = 64

// tryWrite writes as much of frames as the socket takes without waiting. An error is
// one of the socket's; it is not that there was no room.
func tryWrite(conn net.Conn, frames [][]byte) (n int, err error) {
	sc, ok := conn.(syscall.Conn)
	if !ok {
		return 0, nil
	}
	raw, err := sc.SyscallConn()
	if err != nil {
		return 0, err
	}
	werr := raw.Write(func(fd uintptr) bool {
		n, err = unix.Writev(int(fd), frames[:min(len(frames), maxVector)])
		return true
	})
	if err == unix.EAGAIN || err == unix.EINTR {
		err = nil
	}
	if err == nil {
		err = werr
	}
	return max(n, 0), err
}
