package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"time"

	"github.com/spf13/cobra"

	"keymill/perf"
)

// scaleOptions is the command line of keymill bench scale.
type scaleOptions struct {
	keys, rounds, connections int
	data                      string
	duration                  time.Duration
	flags                     []string
}

func benchScaleCommand() *cobra.Command {
	var o scaleOptions
	cmd := &cobra.Command{
		Use:   "scale",
		Short: "Measure a daemon that holds, and uses, many keys",
		Long: `Fill a store with keys through the API, and measure a daemon that is started on
it: the time until it is ready and its memory then; every page of ListKeys;
GenerateDataKey on every key once, in random order, when all are cold; then, in
turns, on one hot key and on keys drawn at random; the memory after that; and
CreateKey.

With --data the store stays, and the next run fills only what is missing. A
million keys take some minutes to make, and 2 GB of disk.`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			err := checkFlags([]flagRange{
				{"keys", o.keys, 1, maxBenchKeys},
				{"rounds", o.rounds, 1, maxBenchRounds},
				{"connections", o.connections, 1, maxBenchConnections},
			}, o.duration)
			if err != nil {
				return err
			}
			o.flags = append(passedOn(cmd.Flags()), o.flags...)
			return o.run(cmd.Context(), cmd.OutOrStdout())
		},
	}
	f := cmd.Flags()
	f.SortFlags = false
	f.IntVar(&o.keys, "keys", benchStartupKeys, "how many `KEYS` the store holds")
	f.StringVar(&o.data, "data", "", "keep the store in `DIR` for the next run; it is made when missing")
	f.IntVar(&o.rounds, "rounds", benchRounds, "rounds of each measurement that has any")
	f.DurationVar(&o.duration, "duration", benchDuration, "length of a round")
	f.IntVar(&o.connections, "connections", useConnections, "`CONNECTIONS` of each measurement")
	f.StringArrayVar(&o.flags, "serve-flag", nil, "further `FLAG` of keymill serve")
	addPassedOn(f)
	return cmd
}

// scalePage is a page of ListKeys without a Limit.
const scalePage = 100

func (o *scaleOptions) run(ctx context.Context, w io.Writer) (err error) {
	dir := o.data
	if dir == "" {
		temp, err := os.MkdirTemp("", "keymill-bench-")
		if err != nil {
			return err
		}
		defer func() { err = errors.Join(err, os.RemoveAll(temp)) }()
		dir = filepath.Join(temp, "data")
	}
	self, err := os.Executable()
	if err != nil {
		return err
	}
	k := perf.KeymillOptions{Binary: self, Dir: dir, Flags: o.flags}
	fmt.Fprintln(w, commandLine(os.Args))
	fmt.Fprintln(w, perf.ThisMachine())
	if err := o.fill(ctx, w, k); err != nil {
		return err
	}
	ready := make([]float64, o.rounds)
	for i := range o.rounds {
		began := time.Now()
		server, err := perf.StartKeymill(ctx, k)
		if err != nil {
			return err
		}
		ready[i] = time.Since(began).Seconds() * 1e3
		if i < o.rounds-1 {
			server.Stop()
			continue
		}
		defer server.Stop()
		showFigure(w, "ms until ready", ready)
		if err := o.measure(ctx, w, server); err != nil {
			return err
		}
	}
	return nil
}

// fill makes the keys that are missing.
func (o *scaleOptions) fill(ctx context.Context, w io.Writer, k perf.KeymillOptions) error {
	server, err := perf.StartKeymill(ctx, k)
	if err != nil {
		return err
	}
	defer server.Stop()
	ids, _, err := perf.ListIDs(ctx, server.Target, 1000, o.keys)
	if err != nil {
		return err
	}
	missing := o.keys - len(ids)
	if missing <= 0 {
		return nil
	}
	began := time.Now()
	if _, err := perf.CreateKeys(ctx, server.Target, missing); err != nil {
		return err
	}
	took := time.Since(began).Seconds()
	_, err = fmt.Fprintf(w, "%d keys created in %.1f s: %.0f a second over %d connections\n", missing, took, float64(missing)/took, perf.CreateConnections)
	return err
}

func (o *scaleOptions) measure(ctx context.Context, w io.Writer, server *perf.Server) error {
	if err := showMemory(w, server, "when ready"); err != nil {
		return err
	}
	for _, page := range []int{1000, scalePage} {
		ids, took, err := perf.ListIDs(ctx, server.Target, page, o.keys)
		if err != nil {
			return err
		}
		slices.Sort(took)
		at := func(q float64) float64 { return took[int(q*float64(len(took)-1))].Seconds() * 1e3 }
		fmt.Fprintf(w, "ms for a ListKeys page of %d out of %d: median %.2f, p99 %.2f, longest %.2f\n", page, len(ids), at(0.5), at(0.99), at(1))
	}
	ids, _, err := perf.ListIDs(ctx, server.Target, 1000, o.keys)
	if err != nil {
		return err
	}
	rand.Shuffle(len(ids), func(i, j int) { ids[i], ids[j] = ids[j], ids[i] })

	cpu, err := server.Process.CPU()
	if err != nil {
		return err
	}
	began := time.Now()
	if err := perf.UseKeys(ctx, server.Target, ids, o.connections); err != nil {
		return err
	}
	took := time.Since(began)
	after, err := server.Process.CPU()
	if err != nil {
		return err
	}
	fmt.Fprintf(w, "cold: first GenerateDataKey on each of %d keys: %.0f a second, CPU %.1f us/request\n", len(ids),
		float64(len(ids))/took.Seconds(), (after-cpu).Seconds()*1e6/float64(len(ids)))
	if err := showMemory(w, server, "after each key's first use"); err != nil {
		return err
	}

	hot, random := perf.DataKeys(server.Target, ids[:1]), perf.DataKeys(server.Target, ids)
	var rates, cpus [3][]float64
	for range o.rounds {
		var rate, cost [2]float64
		for i, workload := range []*perf.Workload{hot, random} {
			load := perf.Load{Target: server.Target, Workload: workload, Conns: o.connections, Warmup: o.duration / 4, Duration: o.duration, Process: server.Process}
			r, err := load.Run(ctx)
			if err == nil {
				err = r.Err()
			}
			if err != nil {
				return err
			}
			rate[i], cost[i] = r.Rate(), r.CPUPerRequest().Seconds()*1e6
			rates[i], cpus[i] = append(rates[i], rate[i]), append(cpus[i], cost[i])
		}
		rates[2], cpus[2] = append(rates[2], rate[1]/rate[0]), append(cpus[2], cost[1]/cost[0])
	}
	for i, name := range []string{"one hot key", fmt.Sprintf("one of %d keys at random", len(ids)), "random divided by hot"} {
		showFigure(w, "GenerateDataKey a second, "+name, rates[i])
		showFigure(w, "CPU us/request, "+name, cpus[i])
	}
	if err := showMemory(w, server, "after that"); err != nil {
		return err
	}
	return o.create(ctx, w, server)
}

// create measures CreateKey. The keys that it makes stay.
func (o *scaleOptions) create(ctx context.Context, w io.Writer, server *perf.Server) error {
	op, err := perf.ParseOperation("CreateKey")
	if err != nil {
		return err
	}
	workload, err := perf.AWS{}.Prepare(ctx, server.Target, perf.Single(op), perf.DefaultShape, perf.CreateConnections)
	if err != nil {
		return err
	}
	load := perf.Load{Target: server.Target, Workload: workload, Conns: perf.CreateConnections, Warmup: o.duration / 4, Duration: o.duration, Process: server.Process}
	r, err := load.Run(ctx)
	if err == nil {
		err = r.Err()
	}
	if err != nil {
		return err
	}
	_, err = fmt.Fprintf(w, "CreateKey a second over %d connections: %.0f, p50 %.1f ms, p99 %.1f ms, CPU %.0f us/request\n", load.Conns, r.Rate(),
		r.Quantile(0.5).Seconds()*1e3, r.Quantile(0.99).Seconds()*1e3, r.CPUPerRequest().Seconds()*1e6)
	return err
}

func showMemory(w io.Writer, server *perf.Server, when string) error {
	rss, err := server.Process.RSS()
	if err != nil {
		return err
	}
	_, err = fmt.Fprintf(w, "RSS MB %s: %.0f\n", when, float64(rss)/1e6)
	return err
}

func showFigure(w io.Writer, name string, values []float64) {
	f := perf.FigureOf(values)
	text := func(v float64) string {
		if v < 10 {
			return fmt.Sprintf("%.2f", v)
		}
		return fmt.Sprintf("%.0f", v)
	}
	fmt.Fprintf(w, "%s: %s (%s to %s in %d rounds)\n", name, text(f.Median), text(f.Min), text(f.Max), len(values))
}
