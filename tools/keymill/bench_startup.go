package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"time"

	"github.com/spf13/cobra"

	"keymill/perf"
)

// benchStartupKeys is a store that a start-up time growing with the number of
// keys would show on.
const benchStartupKeys = 10_000

// useConnections is how many connections use every key once after a start:
// enough that misses wait for the root of trust together.
const useConnections = 64

// startupOptions is the command line of keymill bench startup.
type startupOptions struct {
	keys, rounds int
	use          bool
	flags        []string
}

func benchStartupCommand() *cobra.Command {
	var o startupOptions
	cmd := &cobra.Command{
		Use:   "startup",
		Short: "Measure the start of a daemon that holds many keys",
		Long: `Fill a new store with keys through the API, and measure how long each of several
starts on it takes until the daemon is ready, and its memory then. With --use,
also use every key once after each start, when all of them are cold.`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if o.keys < 1 || o.keys > maxBenchKeys {
				return fmt.Errorf("--keys must be from 1 to %d", maxBenchKeys)
			}
			if o.rounds < 1 || o.rounds > maxBenchRounds {
				return fmt.Errorf("--rounds must be from 1 to %d", maxBenchRounds)
			}
			o.flags = append(passedOn(cmd.Flags()), o.flags...)
			return o.run(cmd.Context(), cmd.OutOrStdout())
		},
	}
	f := cmd.Flags()
	f.SortFlags = false
	f.IntVar(&o.keys, "keys", benchStartupKeys, "how many `KEYS` the store holds")
	f.IntVar(&o.rounds, "rounds", benchRounds, "how often the daemon is started")
	f.BoolVar(&o.use, "use", false, "use every key once after each start")
	f.StringArrayVar(&o.flags, "serve-flag", nil, "further `FLAG` of keymill serve")
	addPassedOn(f)
	return cmd
}

func (o *startupOptions) run(ctx context.Context, w io.Writer) (err error) {
	dir, err := os.MkdirTemp("", "keymill-bench-")
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, os.RemoveAll(dir)) }()
	self, err := os.Executable()
	if err != nil {
		return err
	}
	k := perf.KeymillOptions{Binary: self, Dir: filepath.Join(dir, "data"), Flags: o.flags}
	fmt.Fprintln(w, commandLine(os.Args))
	fmt.Fprintln(w, perf.ThisMachine())

	server, err := perf.StartKeymill(ctx, k)
	if err != nil {
		return err
	}
	began := time.Now()
	ids, err := perf.CreateKeys(ctx, server.Target, o.keys)
	filled := time.Since(began)
	server.Stop()
	if err != nil {
		return err
	}
	fmt.Fprintf(w, "%d keys created in %.1f s: %.0f a second\n", o.keys, filled.Seconds(), float64(o.keys)/filled.Seconds())

	ready, memory := make([]float64, o.rounds), make([]float64, o.rounds)
	used, after := make([]float64, o.rounds), make([]float64, o.rounds)
	for i := range o.rounds {
		began := time.Now()
		server, err := perf.StartKeymill(ctx, k)
		if err != nil {
			return err
		}
		ready[i] = float64(time.Since(began).Microseconds()) / 1e3
		err = func() error {
			defer server.Stop()
			rss, err := server.Process.RSS()
			if err != nil || !o.use {
				memory[i] = float64(rss) / 1e6
				return err
			}
			memory[i] = float64(rss) / 1e6
			began := time.Now()
			if err := perf.UseKeys(ctx, server.Target, ids, useConnections); err != nil {
				return err
			}
			used[i] = float64(len(ids)) / time.Since(began).Seconds()
			rss, err = server.Process.RSS()
			after[i] = float64(rss) / 1e6
			return err
		}()
		if err != nil {
			return err
		}
	}
	show := func(label string, values []float64) {
		f := perf.FigureOf(values)
		fmt.Fprintf(w, "%s: %.0f (%.0f to %.0f in %d starts)\n", label, f.Median, f.Min, f.Max, o.rounds)
	}
	show("ms until ready", ready)
	show("RSS MB when ready", memory)
	if o.use {
		show(fmt.Sprintf("first uses of keys a second over %d connections", useConnections), used)
		show("RSS MB after them", after)
	}
	return nil
}
