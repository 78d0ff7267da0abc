package batch

// Gate is the design that Heavy is compared with. It runs jobs on the goroutines that bring them, but only so many at a time.
// It does what [Heavy] does for light work, without a hand-over: at most width
// processors (in Go's sense, its Ps) are taken by heavy jobs, so with GOMAXPROCS
// above width a light goroutine always finds one free, and the operating system
// shares the cores out among the threads behind them. It cannot bind threads or
// lower their priority.
//
// # Protocol
//
// A door admits at most width + queue jobs and refuses the others at once. Who is
// admitted puts a token into a channel with room for width, and takes one out
// afterwards; Go serves the waiting in order. The token belongs to the job, so a
// job that panics gives it back on its way up.
type Gate struct {
	door   door
	tokens chan struct{}
}

// NewGate returns a gate through which width jobs run at a time while at most
// queue wait; 0 stands for Plan(0).Workers and DefaultHeavyQueue.
func NewGate(width, queue int) *Gate {
	if width < 1 {
		width = Plan(0).Workers
	}
	g := &Gate{tokens: make(chan struct{}, width)}
	g.door.init(width + orDefault(queue, DefaultHeavyQueue))
	return g
}

// Run runs job and returns when it is done, or refuses at once with [ErrFull]
// or [ErrStopped]. It allocates nothing.
func (g *Gate) Run(job func()) error {
	if err := g.door.enter(); err != nil {
		return err
	}
	g.tokens <- struct{}{}
	defer g.leave()
	job()
	return nil
}

func (g *Gate) leave() {
	<-g.tokens
	g.door.leave()
}

// Pending returns the number of jobs that run or wait.
func (g *Gate) Pending() int { return g.door.inside() }

// Close refuses what comes from now on, and returns when everything accepted
// before was run.
func (g *Gate) Close() { g.door.shut() }
