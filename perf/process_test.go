package perf

import (
	"bytes"
	"os"
	"os/exec"
	"strconv"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// The CPU clock of another process must agree with what the kernel says of it
// in /proc, and with its resource usage once it has ended.
func TestProcessCPU(t *testing.T) {
	// Half user time, half system time, then asleep until killed.
	cmd := exec.Command("sh", "-c", `i=0; while [ $i -lt 100000 ]; do i=$((i+1)); done; dd if=/dev/zero of=/dev/null bs=64 count=300000 2>/dev/null; echo; exec sleep 60`)
	stdout, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	defer cmd.Process.Kill()
	stdout.Read(make([]byte, 1))

	p := Process{cmd.Process.Pid}
	got, err := p.CPU()
	if err != nil {
		t.Fatal(err)
	}
	stat, err := os.ReadFile("/proc/" + strconv.Itoa(p.PID) + "/stat")
	if err != nil {
		t.Fatal(err)
	}
	fields := bytes.Fields(stat[bytes.LastIndexByte(stat, ')')+2:])
	user, _ := strconv.Atoi(string(fields[11]))
	system, _ := strconv.Atoi(string(fields[12]))
	want := time.Duration(user+system) * 10 * time.Millisecond
	if d := (got - want).Abs(); got <= 0 || d > 40*time.Millisecond {
		t.Errorf("CPU clock says %v, /proc/PID/stat %v", got, want)
	}

	cmd.Process.Kill()
	cmd.Wait()
	if _, err := p.CPU(); err == nil {
		t.Error("CPU clock of a process that has ended")
	}
	if _, err := p.RSS(); err == nil {
		t.Error("RSS of a process that has ended")
	}
}

func TestProcessRSS(t *testing.T) {
	p := Process{os.Getpid()}
	before, err := p.RSS()
	if err != nil {
		t.Fatal(err)
	}
	const size = 64 << 20
	mem, err := unix.Mmap(-1, 0, size, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_PRIVATE|unix.MAP_ANON|unix.MAP_POPULATE)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Munmap(mem)
	after, err := p.RSS()
	if err != nil {
		t.Fatal(err)
	}
	if grown := after - before; before <= 0 || grown < size*9/10 || grown > 2*size {
		t.Errorf("RSS went from %d to %d with %d bytes more", before, after, size)
	}
}

func TestProcessCPUOfOurselves(t *testing.T) {
	// Threads other than the caller's count too.
	before, err := Process{os.Getpid()}.CPU()
	if err != nil {
		t.Fatal(err)
	}
	const work = 100 * time.Millisecond
	done := make(chan struct{})
	go func() {
		defer close(done)
		var u unix.Timespec
		for first := int64(0); ; {
			unix.ClockGettime(unix.CLOCK_PROCESS_CPUTIME_ID, &u)
			if first == 0 {
				first = u.Nano()
			}
			if u.Nano()-first >= int64(work) {
				return
			}
		}
	}()
	<-done
	after, err := Process{os.Getpid()}.CPU()
	if err != nil {
		t.Fatal(err)
	}
	if d := after - before; d < work || d > 10*work {
		t.Errorf("%v of work counted as %v", work, d)
	}
}

func TestFamily(t *testing.T) {
	cmd := exec.Command("sh", "-c", `sleep 60 & echo $!; wait`)
	stdout, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	defer cmd.Wait()
	defer cmd.Process.Kill()
	line := make([]byte, 32)
	n, err := stdout.Read(line)
	if err != nil {
		t.Fatal(err)
	}
	child, err := strconv.Atoi(string(bytes.TrimSpace(line[:n])))
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Kill(child, unix.SIGKILL)
	p := Process{cmd.Process.Pid}
	if family := p.Family(); len(family) != 2 || family[0] != p || family[1].PID != child {
		t.Errorf("family of %d is %v, want it and %d", p.PID, family, child)
	}
	own, err := p.RSS()
	if err != nil {
		t.Fatal(err)
	}
	if cpu, rss, err := p.Use(); err != nil || rss <= own || cpu <= 0 {
		t.Errorf("use %v, %d bytes, %v; itself %d bytes", cpu, rss, err, own)
	}
}
