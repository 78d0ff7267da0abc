package perf

import (
	"fmt"
	"runtime"

	"github.com/klauspost/cpuid/v2"
	"golang.org/x/sys/unix"
)

// A Machine is where something was measured.
type Machine struct {
	CPU      string `json:"cpu"`
	CPUs     int    `json:"cpus"`
	MemoryMB int64  `json:"memory_mb"`
	System   string `json:"system"`
	Go       string `json:"go"`
}

// ThisMachine describes the machine this runs on.
func ThisMachine() Machine {
	m := Machine{CPU: cpuid.CPU.BrandName, CPUs: runtime.NumCPU(), System: runtime.GOOS, Go: runtime.Version() + " " + runtime.GOARCH}
	var u unix.Utsname
	if unix.Uname(&u) == nil {
		m.System = unix.ByteSliceToString(u.Sysname[:]) + " " + unix.ByteSliceToString(u.Release[:])
	}
	var info unix.Sysinfo_t
	if unix.Sysinfo(&info) == nil {
		m.MemoryMB = int64(info.Totalram) * int64(info.Unit) / 1e6
	}
	return m
}

// String is the machine in a line.
func (m Machine) String() string {
	return fmt.Sprintf("%s, %d CPUs, %.0f GB; %s; %s", m.CPU, m.CPUs, float64(m.MemoryMB)/1e3, m.System, m.Go)
}
