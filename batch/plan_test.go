package batch

import (
	"math"
	"slices"
	"strings"
	"testing"
	"testing/fstest"
)

func files(lines ...string) fstest.MapFS {
	m := fstest.MapFS{}
	for _, l := range lines {
		name, text, _ := strings.Cut(l, "=")
		m[name] = &fstest.MapFile{Data: []byte(text)}
	}
	return m
}

func TestCPUQuota(t *testing.T) {
	const (
		v1     = "proc/self/mountinfo=32 31 0:29 / /sys/fs/cgroup/cpu,cpuacct rw - cgroup cgroup rw,cpu,cpuacct\n"
		v2     = "proc/self/mountinfo=41 31 0:38 / /sys/fs/cgroup rw,relatime - cgroup2 cgroup2 rw,nsdelegate\n"
		inside = "proc/self/mountinfo=41 31 0:38 /pods/a /sys/fs/cgroup ro - cgroup2 cgroup2 rw\n"
	)
	inf := math.Inf(1)
	for _, c := range []struct {
		name  string
		files fstest.MapFS
		want  float64
	}{
		{"nothing to read", files(), inf},
		{"v2, no limit", files(v2, "proc/self/cgroup=0::/\n", "sys/fs/cgroup/cpu.max=max 100000\n"), inf},
		{"v2", files(v2, "proc/self/cgroup=0::/a/b\n", "sys/fs/cgroup/a/b/cpu.max=150000 100000\n"), 1.5},
		{"v2, the parent is tighter", files(v2, "proc/self/cgroup=0::/a/b\n",
			"sys/fs/cgroup/a/b/cpu.max=400000 100000\n", "sys/fs/cgroup/a/cpu.max=200000 100000\n"), 2},
		{"v2, a sibling does not count", files(v2, "proc/self/cgroup=0::/a\n", "sys/fs/cgroup/b/cpu.max=50000 100000\n"), inf},
		{"v2, in a container that sees its group as the root", files(inside, "proc/self/cgroup=0::/pods/a\n",
			"sys/fs/cgroup/cpu.max=50000 100000\n"), 0.5},
		{"v2, group outside of the mount", files(inside, "proc/self/cgroup=0::/other\n", "sys/fs/cgroup/cpu.max=50000 100000\n"), 0.5},
		{"v1, no limit", files(v1, "proc/self/cgroup=4:cpu,cpuacct:/\n", "sys/fs/cgroup/cpu,cpuacct/cpu.cfs_quota_us=-1\n",
			"sys/fs/cgroup/cpu,cpuacct/cpu.cfs_period_us=100000\n"), inf},
		{"v1", files(v1, "proc/self/cgroup=9:memory:/x\n4:cpu,cpuacct:/c\n0::/\n", "sys/fs/cgroup/cpu,cpuacct/c/cpu.cfs_quota_us=300000\n",
			"sys/fs/cgroup/cpu,cpuacct/c/cpu.cfs_period_us=100000\n"), 3},
		{"v1, cpuset is not cpu", files(v1, "proc/self/cgroup=4:cpuset:/c\n", "sys/fs/cgroup/cpu,cpuacct/c/cpu.cfs_quota_us=300000\n",
			"sys/fs/cgroup/cpu,cpuacct/c/cpu.cfs_period_us=100000\n"), inf},
		{"nonsense", files(v2, "proc/self/cgroup=0::/\nx\n::\n0:\n", "sys/fs/cgroup/cpu.max=0 0\n"), inf},
	} {
		if got := CPUQuota(c.files); got != c.want {
			t.Errorf("%s: %v, want %v", c.name, got, c.want)
		}
	}
}

func TestShare(t *testing.T) {
	for _, c := range []struct {
		all            int
		cores          float64
		asked          int
		workers, procs int
	}{
		{1, 1, 0, 1, 2},
		{2, 2, 0, 2, 4},
		{8, 8, 0, 8, 16},
		{8, 8, 3, 3, 11},
		{8, 4, 0, 3, 7},
		{8, 2.5, 0, 1, 4},
		{8, 0.5, 0, 1, 2},
		{2, 2, 5, 5, 7},
	} {
		l := Layout{Cores: c.cores}
		l.share(c.all, c.asked)
		if l.Workers != c.workers || l.GOMAXPROCS != c.procs {
			t.Errorf("%d processors, quota %v, asked for %d: %d workers and GOMAXPROCS %d, want %d and %d",
				c.all, c.cores, c.asked, l.Workers, l.GOMAXPROCS, c.workers, c.procs)
		}
		if l.GOMAXPROCS <= l.Workers {
			t.Error("the workers could starve the scheduler")
		}
	}
}

func TestSpread(t *testing.T) {
	topology := func(siblings ...string) fstest.MapFS {
		m := fstest.MapFS{}
		for i, s := range siblings {
			m["sys/devices/system/cpu/cpu"+string(rune('0'+i))+"/topology/thread_siblings_list"] = &fstest.MapFile{Data: []byte(s)}
		}
		return m
	}
	for _, c := range []struct {
		name string
		fs   fstest.MapFS
		cpus []int
		want []int
	}{
		{"no threads", topology("0", "1", "2"), []int{0, 1, 2}, []int{0, 1, 2}},
		{"neighbours", topology("0-1", "0-1", "2-3", "2-3"), []int{0, 1, 2, 3}, []int{0, 2, 1, 3}},
		{"halves", topology("0,2", "1,3", "0,2", "1,3"), []int{0, 1, 2, 3}, []int{0, 1, 2, 3}},
		{"some allowed", topology("0-1", "0-1", "2-3", "2-3"), []int{1, 2, 3}, []int{1, 2, 3}},
		{"none", nil, nil, []int{}},
	} {
		if got := spread(c.fs, c.cpus); !slices.Equal(got, c.want) {
			t.Errorf("%s: %v, want %v", c.name, got, c.want)
		}
	}
}

func TestPlan(t *testing.T) {
	l := Plan(0)
	if l.Workers < 1 || l.GOMAXPROCS <= l.Workers || l.Cores <= 0 || len(l.Pin) != len(l.CPUs) {
		t.Errorf("%+v", l)
	}
	t.Logf("%+v", l)
	if l = Plan(3); l.Workers != 3 || l.GOMAXPROCS < 4 {
		t.Errorf("%+v", l)
	}
}
