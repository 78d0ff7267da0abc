package hsm

import (
	"io/fs"
	"syscall"
)

// ownerOf returns the user that a file belongs to, where the system has users.
func ownerOf(st fs.FileInfo) (int, bool) {
	if s, ok := st.Sys().(*syscall.Stat_t); ok {
		return int(s.Uid), true
	}
	return 0, false
}
