package daemon

import (
	"os"
	"runtime"

	"keymill/batch"
)

// shareProcessors says how many heavy workers there are, where to bind them, and
// what to do when they begin to work and when they rest: while they work,
// GOMAXPROCS is above their number (see batch.Plan). While only light requests come
// it is what Go chooses, one for each core: more than that cost, see package batch.
// A GOMAXPROCS in the environment is the operator's word and stays; there are fewer
// workers than that then.
func (s *Server) shareProcessors() (workers int, cpus []int, busy func(bool)) {
	plan := batch.Plan(s.cfg.HeavyWorkers)
	if s.cfg.PinWorkers {
		cpus = plan.Pin
	}
	fixed := s.env.Getenv("GOMAXPROCS") != "" || os.Getenv("GOMAXPROCS") != ""
	light, heavy := runtime.GOMAXPROCS(0), plan.GOMAXPROCS
	if fixed {
		heavy = light
		if plan.Workers >= light {
			plan.Workers = max(1, light-1)
			s.log.Warn("fewer heavy workers, because GOMAXPROCS must be larger than their number", "heavy_workers", plan.Workers, "gomaxprocs", light)
		}
	} else {
		busy = func(heavyWork bool) {
			if heavyWork {
				runtime.GOMAXPROCS(heavy)
			} else {
				runtime.SetDefaultGOMAXPROCS()
			}
		}
	}
	s.log.Info("processors", "allowed", len(plan.CPUs), "cores", plan.Cores, "heavy_workers", plan.Workers, "pinned", len(cpus) > 0, "gomaxprocs", light, "gomaxprocs_beside_heavy_work", heavy)
	return plan.Workers, cpus, busy
}
