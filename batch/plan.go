package batch

import (
	"io/fs"
	"math"
	"os"
	"runtime"
	"strconv"
	"strings"

	"github.com/klauspost/cpuid/v2"
)

// A Layout says how a process shares out its processors.
type Layout struct {
	CPUs       []int   // processors the process may use, ascending; nil when unknown
	Cores      float64 // what a control group's quota leaves of them
	Workers    int     // heavy jobs at a time
	GOMAXPROCS int     // for runtime.GOMAXPROCS, while heavy jobs run
	Pin        []int   // where to bind workers, one physical core after the other
}

// Plan looks at the machine and returns the recommended layout for a number of
// heavy workers; 0 is one for each core that the process may use. It changes
// nothing. Call it once at start, and give its GOMAXPROCS to the runtime while there
// are heavy jobs ([HeavyOptions].Busy).
//
// Why GOMAXPROCS is raised: a heavy job keeps one of Go's Ps for its whole
// length, and Go takes it away after 10 ms at the earliest. With as many heavy
// workers as Ps, light goroutines, timers and the network poller get their turn
// only then; with 2 locked workers on 2 Ps and 64 submitters, a 1 ms sleeper
// never woke. So there are as many Ps as cores beyond the workers: what is
// light always finds one free, with a thread behind it, and the operating
// system, which knows that such threads mostly sleep, runs them first. Without
// heavy jobs the same room only costs: see the package documentation.
//
// Under a quota of less than all processors, heavy work could use it up, and
// everything would stand still to the end of the quota's period (100 ms as a
// rule), light work too, whatever its priority. There the workers leave one
// core of the quota to the others when it has more than one.
func Plan(workers int) Layout {
	l := Layout{CPUs: allowedCPUs()}
	all := len(l.CPUs)
	if all == 0 {
		all = runtime.NumCPU()
	}
	root := os.DirFS("/")
	l.Cores = float64(all)
	if q := CPUQuota(root); q < l.Cores {
		l.Cores = q
	}
	l.Pin = spread(root, l.CPUs)
	l.share(all, workers)
	return l
}

// share fills in the numbers of workers and Ps.
func (l *Layout) share(all, workers int) {
	cores := max(1, int(math.Ceil(l.Cores)))
	if workers < 1 {
		workers = cores
		if l.Cores < float64(all) {
			workers = max(1, int(l.Cores)-1)
		}
	}
	l.Workers = workers
	l.GOMAXPROCS = cores + workers
}

// spread orders cpus so that those on different physical cores come first.
func spread(root fs.FS, cpus []int) []int {
	seen := map[string]int{} // physical core -> threads of it placed
	rounds := map[int][]int{}
	last := 0
	for i, cpu := range cpus {
		dir := "sys/devices/system/cpu/cpu" + strconv.Itoa(cpu) + "/topology/"
		siblings, err := fs.ReadFile(root, dir+"thread_siblings_list")
		core := string(siblings)
		if err != nil {
			// Nothing but the processor's own word: neighbours share a core.
			core = strconv.Itoa(i / max(1, cpuid.CPU.ThreadsPerCore))
		}
		round := seen[core]
		seen[core]++
		rounds[round] = append(rounds[round], cpu)
		last = max(last, round)
	}
	out := make([]int, 0, len(cpus))
	for r := range last + 1 {
		out = append(out, rounds[r]...)
	}
	return out
}

// CPUQuota returns how many processors the control groups of this process grant
// it, +Inf when they set no limit. It knows both versions of the interface and
// takes the tightest of the limits on the way up to the mount's root. What it
// cannot read counts as no limit.
func CPUQuota(root fs.FS) float64 {
	groups, err := fs.ReadFile(root, "proc/self/cgroup")
	if err != nil {
		return math.Inf(1)
	}
	mounts, err := fs.ReadFile(root, "proc/self/mountinfo")
	if err != nil {
		return math.Inf(1)
	}
	quota := math.Inf(1)
	for _, g := range parseGroups(string(groups)) {
		for _, m := range parseMounts(string(mounts)) {
			if m.v2 != g.v2 {
				continue
			}
			below, ok := strings.CutPrefix(g.path, strings.TrimSuffix(m.root, "/"))
			if !ok {
				below = "" // the group is outside of what is mounted: its root is all we see
			}
			for dir := strings.Trim(below, "/"); ; dir = dir[:max(0, strings.LastIndexByte(dir, '/'))] {
				at := strings.Trim(m.point, "/") + "/" + dir
				quota = min(quota, readQuota(root, strings.Trim(at, "/"), m.v2))
				if dir == "" {
					break
				}
			}
		}
	}
	return quota
}

func readQuota(root fs.FS, dir string, v2 bool) float64 {
	if v2 {
		text, err := fs.ReadFile(root, dir+"/cpu.max")
		if err != nil {
			return math.Inf(1)
		}
		quota, period, _ := strings.Cut(strings.TrimSpace(string(text)), " ")
		return parseQuota(quota, period)
	}
	quota, err := fs.ReadFile(root, dir+"/cpu.cfs_quota_us")
	if err != nil {
		return math.Inf(1)
	}
	period, err := fs.ReadFile(root, dir+"/cpu.cfs_period_us")
	if err != nil {
		return math.Inf(1)
	}
	return parseQuota(strings.TrimSpace(string(quota)), strings.TrimSpace(string(period)))
}

// parseQuota returns quota/period; "max", -1 and nonsense are no limit.
func parseQuota(quota, period string) float64 {
	q, err := strconv.ParseInt(quota, 10, 64)
	if err != nil || q <= 0 {
		return math.Inf(1)
	}
	p, err := strconv.ParseInt(period, 10, 64)
	if err != nil || p <= 0 {
		return math.Inf(1)
	}
	return float64(q) / float64(p)
}

type cgroup struct {
	v2   bool
	path string
}

// parseGroups returns the groups in /proc/self/cgroup that can limit the
// processor: lines "ID:CONTROLLERS:PATH", ID 0 and no controllers for version 2.
func parseGroups(text string) (groups []cgroup) {
	for line := range strings.Lines(text) {
		f := strings.SplitN(strings.TrimSuffix(line, "\n"), ":", 3)
		if len(f) != 3 || !strings.HasPrefix(f[2], "/") {
			continue
		}
		if f[0] == "0" && f[1] == "" {
			groups = append(groups, cgroup{true, f[2]})
		} else if hasWord(f[1], "cpu") {
			groups = append(groups, cgroup{false, f[2]})
		}
	}
	return groups
}

type cgroupMount struct {
	v2          bool
	root, point string
}

// parseMounts returns the control group file systems in /proc/self/mountinfo:
// "ID PARENT DEVICE ROOT POINT OPTIONS... - TYPE SOURCE SUPEROPTIONS".
func parseMounts(text string) (mounts []cgroupMount) {
	for line := range strings.Lines(text) {
		before, after, ok := strings.Cut(line, " - ")
		f, g := strings.Fields(before), strings.Fields(after)
		if !ok || len(f) < 5 || len(g) < 3 {
			continue
		}
		m := cgroupMount{v2: g[0] == "cgroup2", root: f[3], point: f[4]}
		if m.v2 || g[0] == "cgroup" && hasWord(g[2], "cpu") {
			mounts = append(mounts, m)
		}
	}
	return mounts
}

func hasWord(list, word string) bool {
	for w := range strings.SplitSeq(list, ",") {
		if w == word {
			return true
		}
	}
	return false
}
