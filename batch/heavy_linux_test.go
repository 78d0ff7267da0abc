package batch

import (
	"testing"

	"golang.org/x/sys/unix"
)

// TestWorkerThreads looks at the threads of workers from inside.
func TestWorkerThreads(t *testing.T) {
	l := Plan(0)
	if len(l.Pin) == 0 {
		t.Skip("the kernel does not say which processors are allowed")
	}
	raisePs(t, 1)
	cpu := l.Pin[len(l.Pin)-1]
	for _, c := range []struct {
		o      HeavyOptions
		policy uint32
	}{
		{HeavyOptions{Nice: 3}, unix.SCHED_NORMAL},
		{HeavyOptions{Policy: PolicyBatch, Nice: 5}, unix.SCHED_BATCH},
		{HeavyOptions{Policy: PolicyIdle}, unix.SCHED_IDLE},
	} {
		c.o.Workers, c.o.CPUs = 1, []int{cpu}
		before, err := unix.SchedGetAttr(0, 0)
		if err != nil {
			t.Fatal(err)
		}
		h, err := NewHeavy(c.o)
		if err != nil {
			t.Fatal(err)
		}
		if err := h.Run(func() {
			var set unix.CPUSet
			if err := unix.SchedGetaffinity(0, &set); err != nil || set.Count() != 1 || !set.IsSet(cpu) {
				t.Errorf("affinity %v, %v", set, err)
			}
			attr, err := unix.SchedGetAttr(0, 0)
			if err != nil || attr.Policy != c.policy || attr.Nice != before.Nice+int32(c.o.Nice) {
				t.Errorf("%+v: attributes %+v, %v", c.o, attr, err)
			}
		}); err != nil {
			t.Error(err)
		}
		h.Close()
	}
	// Nobody else was touched.
	for range 8 {
		done := make(chan int)
		go func() {
			var set unix.CPUSet
			_ = unix.SchedGetaffinity(0, &set)
			done <- set.Count()
		}()
		if n := <-done; n != len(l.CPUs) {
			t.Errorf("a goroutine runs on a thread bound to %d processors", n)
		}
	}
}
