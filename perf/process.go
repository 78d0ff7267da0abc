package perf

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"time"

	"golang.org/x/sys/unix"
)

// A Process is a running process whose use of the machine is read.
type Process struct{ PID int }

// Family is the process and those that it has started itself and that still
// run, such as the one that holds an HSM's module.
func (p Process) Family() []Process {
	family := []Process{p}
	lists, _ := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/children", p.PID))
	for _, list := range lists {
		data, err := os.ReadFile(list)
		if err != nil {
			continue // the thread has ended
		}
		for _, field := range bytes.Fields(data) {
			if pid, err := strconv.Atoi(string(field)); err == nil {
				family = append(family, Process{pid})
			}
		}
	}
	return family
}

// Use returns the processor time and the resident memory of the family. A child
// that ends meanwhile is left out.
func (p Process) Use() (cpu time.Duration, rss int64, err error) {
	for i, q := range p.Family() {
		c, err := q.CPU()
		m, err2 := q.RSS()
		if err = errors.Join(err, err2); err != nil && i == 0 {
			return 0, 0, err
		} else if err == nil {
			cpu, rss = cpu+c, rss+m
		}
	}
	return cpu, rss, nil
}

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
