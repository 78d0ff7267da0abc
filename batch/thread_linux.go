package batch

import (
	"fmt"

	"golang.org/x/sys/unix"
)

// prepareThread binds the calling thread to a processor (none when cpu is
// negative) and lowers its priority. The goroutine is locked to the thread.
func prepareThread(cpu int, o HeavyOptions) error {
	if cpu >= 0 {
		var set unix.CPUSet
		set.Set(cpu)
		if err := unix.SchedSetaffinity(0, &set); err != nil {
			return fmt.Errorf("couldn't bind a worker to processor %d: %w", cpu, err)
		}
	}
	if o.Policy == PolicyNormal && o.Nice == 0 {
		return nil
	}
	attr, err := unix.SchedGetAttr(0, 0)
	if err != nil {
		return fmt.Errorf("couldn't read a worker's priority: %w", err)
	}
	attr.Nice = min(attr.Nice+int32(o.Nice), 19)
	switch o.Policy {
	case PolicyNormal:
		attr.Policy = unix.SCHED_NORMAL
	case PolicyBatch:
		attr.Policy = unix.SCHED_BATCH
	case PolicyIdle:
		attr.Policy = unix.SCHED_IDLE
	}
	if err := unix.SchedSetAttr(0, attr, 0); err != nil {
		return fmt.Errorf("couldn't lower a worker's priority: %w", err)
	}
	return nil
}

// allowedCPUs returns the processors that this process may use, in ascending
// order, or nil when the kernel does not say.
func allowedCPUs() (cpus []int) {
	var set unix.CPUSet
	if err := unix.SchedGetaffinity(0, &set); err != nil {
		return nil
	}
	for i := range len(set) * 64 {
		if set.IsSet(i) {
			cpus = append(cpus, i)
		}
	}
	return cpus
}
