package fuzz

import (
	"testing"
	"testing/fstest"

	"keymill/batch"
)

// FuzzCPUQuota: whatever the kernel's files say, the answer is a positive number.
func FuzzCPUQuota(f *testing.F) {
	f.Add("0::/a/b\n", "41 31 0:38 / /sys rw - cgroup2 cgroup2 rw\n", "150000 100000\n")
	f.Add("4:cpu:/a\n", "41 31 0:38 /a /sys rw - cgroup cgroup rw,cpu\n", "-1")
	f.Add("0::/../..\n", "41 31 0:38 /a// // rw - cgroup2 cgroup2 rw\n", "max 0")
	f.Fuzz(func(t *testing.T, groups, mounts, limit string) {
		m := fstest.MapFS{}
		for name, text := range map[string]string{
			"proc/self/cgroup": groups, "proc/self/mountinfo": mounts,
			"sys/cpu.max": limit, "sys/a/cpu.max": limit,
			"sys/cpu.cfs_quota_us": limit, "sys/cpu.cfs_period_us": "100000",
		} {
			m[name] = &fstest.MapFile{Data: []byte(text)}
		}
		if q := batch.CPUQuota(m); !(q > 0) {
			t.Errorf("quota %v", q)
		}
	})
}
