package e2e

import "syscall"

// childAttr makes a daemon end with the process that started it, so that an
// aborted test leaves none behind.
func childAttr() *syscall.SysProcAttr {
	return &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
}
