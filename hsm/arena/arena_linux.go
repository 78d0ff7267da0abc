package arena

import (
	"fmt"

	"golang.org/x/sys/unix"
)

// mapLocked maps n zeroed bytes rounded up to whole pages, outside the Go heap.
// lockErr is mlock's refusal, which the caller reports and lives with.
func mapLocked(n int) (m []byte, lockErr, err error) {
	page := unix.Getpagesize()
	n = (n + page - 1) / page * page
	m, err = unix.Mmap(-1, 0, n, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_PRIVATE|unix.MAP_ANON)
	if err != nil {
		return nil, nil, err
	}
	lockErr = unix.Mlock(m)
	// Neither advice can fail in a way that matters: an old kernel without them
	// still has RLIMIT_CORE and PR_SET_DUMPABLE from Harden.
	_ = unix.Madvise(m, unix.MADV_DONTDUMP)
	_ = unix.Madvise(m, unix.MADV_WIPEONFORK)
	return m, lockErr, nil
}

func unmap(m []byte) {
	// Munmap of a mapping of ours cannot fail; it is zeroed already in any case.
	_ = unix.Munmap(m)
}

const capIPCLock = 14 // CAP_IPC_LOCK, <linux/capability.h>

// Harden makes the process a poor place to steal secrets from: no core dumps, no
// ptrace or /proc/self/mem for other processes of the same user, and all memory
// locked when that is permitted without a limit. It returns one sentence for each
// thing that could not be done; none of them stops a start.
//
// With a finite RLIMIT_MEMLOCK and no CAP_IPC_LOCK, mlockall(MCL_FUTURE) would make
// the Go runtime's next mapping fail and kill the process, so it is not even tried;
// the arena's own pages are locked either way, as far as the limit goes.
// MCL_ONFAULT locks a page when it is first touched, so that reserved but unused
// address space costs nothing.
func Harden() []string {
	var warnings []string
	if err := unix.Prctl(unix.PR_SET_DUMPABLE, 0, 0, 0, 0); err != nil {
		warnings = append(warnings, fmt.Sprintf("other processes of this user may read our memory: PR_SET_DUMPABLE was refused (%v)", err))
	}
	if err := unix.Setrlimit(unix.RLIMIT_CORE, &unix.Rlimit{}); err != nil {
		warnings = append(warnings, fmt.Sprintf("a crash may write secrets to a core dump: RLIMIT_CORE could not be set to 0 (%v)", err))
	}
	if !mayLockAll() {
		warnings = append(warnings, "key material outside the locked arena may be swapped to disk: RLIMIT_MEMLOCK is finite "+
			"(systemd: LimitMEMLOCK=infinity, Docker: --ulimit memlock=-1), so mlockall was not tried")
	} else if err := unix.Mlockall(unix.MCL_CURRENT | unix.MCL_FUTURE | unix.MCL_ONFAULT); err != nil {
		warnings = append(warnings, fmt.Sprintf("key material outside the locked arena may be swapped to disk: mlockall was refused (%v)", err))
	}
	// One secret through the arena tells whether its own locking works.
	if s, err := New(1); err == nil {
		s.Wipe()
	}
	if n := Notice(); n != "" {
		warnings = append(warnings, n)
	}
	return warnings
}

// mayLockAll reports whether this process may lock memory without a limit.
func mayLockAll() bool {
	var lim unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_MEMLOCK, &lim); err == nil && lim.Cur == unix.RLIM_INFINITY {
		return true
	}
	hdr := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
	var data [2]unix.CapUserData
	if err := unix.Capget(&hdr, &data[0]); err != nil {
		return false
	}
	return data[0].Effective&(1<<capIPCLock) != 0
}
