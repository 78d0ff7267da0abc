package perf

import (
	"bytes"
	"fmt"
	"os"
	"strconv"
	"time"

	"golang.org/x/sys/unix"
)

// A Process is a running process whose use of the machine is read.
type Process struct{ PID int }

// CPU returns the processor time that the process has used, user and system
// time together, over all its threads, also those that ended.
//
// It reads the process's CPU clock, which counts nanoseconds, where
// /proc/PID/stat counts hundredths of a second.
func (p Process) CPU() (time.Duration, error) {
	// Linux's clock id of another process: its complement above three bits that
	// say which clock, of which 2 is the scheduler's.
	var t unix.Timespec
	if err := unix.ClockGettime(int32(^p.PID<<3|2), &t); err != nil {
		return 0, fmt.Errorf("CPU clock of process %d: %w", p.PID, err)
	}
	return time.Duration(t.Nano()), nil
}

// RSS returns the bytes of memory that the process has resident.
func (p Process) RSS() (int64, error) {
	data, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", p.PID))
	if err != nil {
		return 0, err
	}
	_, rest, _ := bytes.Cut(data, []byte("\nVmRSS:"))
	line, _, _ := bytes.Cut(rest, []byte("\n"))
	number, _ := bytes.CutSuffix(line, []byte("kB"))
	kib, err := strconv.ParseInt(string(bytes.TrimSpace(number)), 10, 64)
	if err != nil {
		return 0, fmt.Errorf("no VmRSS of process %d", p.PID)
	}
	return kib << 10, nil
}
