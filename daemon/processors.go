package daemon

import (
	"os"
	"runtime"

	"keymill/batch"
)

// shareProcessors raises GOMAXPROCS above the number of heavy workers, and
// returns that number and where to bind them. A GOMAXPROCS in the environment
// is the operator's word and stays; there are fewer workers than that then.
func (s *Server) shareProcessors() (workers int, cpus []int) {
	plan := batch.Plan(s.cfg.HeavyWorkers)
	if s.env.Getenv("GOMAXPROCS") == "" && os.Getenv("GOMAXPROCS") == "" {
		runtime.GOMAXPROCS(plan.GOMAXPROCS)
	}
	procs := runtime.GOMAXPROCS(0)
	if plan.Workers >= procs {
		plan.Workers = max(1, procs-1)
		s.log.Warn("fewer heavy workers, because GOMAXPROCS must be larger than their number", "heavy_workers", plan.Workers, "gomaxprocs", procs)
	}
	if s.cfg.PinWorkers {
		cpus = plan.Pin
	}
	s.log.Info("processors", "allowed", len(plan.CPUs), "cores", plan.Cores, "heavy_workers", plan.Workers, "pinned", len(cpus) > 0, "gomaxprocs", procs)
	return plan.Workers, cpus
}
