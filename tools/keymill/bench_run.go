package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"github.com/schollz/progressbar/v3"
	"github.com/spf13/cobra"
	"golang.org/x/term"

	"keymill/engine"
	"keymill/perf"
)

// primitiveTime is how long the raw primitives run between two rounds.
const primitiveTime = 500 * time.Millisecond

// A bench is a run of keymill bench.
type bench struct {
	*benchOptions
	plan   *benchPlan
	dir    string
	server *perf.Server // ours; nil with an endpoint
	pair   *perf.Pair   // for TLS of what we start
	bar    *progressbar.ProgressBar
	report *perf.Report
}

// run measures, and prints and writes what came out.
func (o *benchOptions) run(ctx context.Context, p *benchPlan, stdout io.Writer) (err error) {
	// What cannot be written is said before the work, not after it.
	var files []*output
	defer func() {
		for _, f := range files {
			err = errors.Join(err, f.close())
		}
	}()
	for _, path := range []string{o.json, o.html} {
		f, err := openOutput(path)
		if err != nil {
			return err
		}
		files = append(files, f)
	}
	b := &bench{benchOptions: o, plan: p}
	if b.dir, err = os.MkdirTemp("", "keymill-bench-"); err != nil {
		return err
	}
	defer func() { err = errors.Join(err, os.RemoveAll(b.dir)) }()
	if err := b.start(ctx); err != nil {
		return err
	}
	defer b.stop()
	if err := b.measure(ctx); err != nil {
		return err
	}

	if err := b.report.WriteTable(stdout); err != nil {
		return err
	}
	var (
		changes  []perf.Change
		warnings []string
		unlike   error // the earlier report is of something else: these figures stand
	)
	if b.plan.earlier != nil {
		if changes, warnings, unlike = perf.Changes(b.plan.earlier, b.report); unlike != nil {
			unlike = fmt.Errorf("--compare %s: %w", b.compare, unlike)
		} else {
			fmt.Fprintf(stdout, "\nchange since %s\n", b.plan.earlier.Began.Format(time.RFC1123))
			if err := perf.WriteChanges(stdout, changes, warnings); err != nil {
				return err
			}
		}
	}
	if err := files[0].write(b.report.WriteJSON); err != nil {
		return err
	}
	if err := files[1].write(func(w io.Writer) error { return b.report.WriteHTML(w, changes, warnings) }); err != nil {
		return err
	}
	return unlike
}

// start starts a daemon, or finds the one that is there.
func (b *bench) start(ctx context.Context) (err error) {
	b.report = &perf.Report{
		Command:   commandLine(os.Args),
		Began:     time.Now(),
		Machine:   perf.ThisMachine(),
		Rounds:    b.settings.Rounds,
		WarmupS:   b.settings.Warmup.Seconds(),
		DurationS: b.settings.Duration.Seconds(),
		Server:    perf.Description{API: b.plan.api.Name(), Endpoint: b.endpoint, Version: version},
	}
	if b.tls || b.plan.target != nil && b.plan.target.TLS != nil {
		b.report.Server.TLS = true
		if b.pair, err = perf.NewPair(b.dir); err != nil {
			return err
		}
	}
	if b.plan.target != nil {
		return nil
	}
	self, err := os.Executable()
	if err != nil {
		return err
	}
	b.report.Server.Root = "software"
	if module, _ := b.flags.GetString("hsm-module"); module != "" {
		b.report.Server.Root = "PKCS#11 (" + filepath.Base(module) + ")"
	}
	b.server, err = perf.StartKeymill(ctx, perf.KeymillOptions{Binary: self, Dir: filepath.Join(b.dir, "data"),
		Region: b.region, Flags: b.plan.flags, TLS: b.pair})
	if err != nil {
		return err
	}
	b.plan.target = &b.server.Target
	return nil
}

func (b *bench) stop() {
	if b.server != nil {
		b.server.Stop()
	}
}

// measure makes all measurements.
func (b *bench) measure(ctx context.Context) error {
	subjects := 1
	if b.baseline {
		subjects++
		// The raw primitives are those of the fastest providers.
		if err := engine.ConfigureProviders(engine.ProviderOptions{Logger: quiet}); err != nil {
			return err
		}
	}
	if b.plan.background != nil {
		subjects++
	}
	if term.IsTerminal(int(os.Stderr.Fd())) {
		b.bar = progressbar.NewOptions(len(b.plan.mixes)*len(b.plan.connections)*subjects*b.settings.Rounds,
			progressbar.OptionSetWriter(os.Stderr), progressbar.OptionClearOnFinish(), progressbar.OptionShowCount(),
			progressbar.OptionSetRenderBlankState(true), progressbar.OptionSetPredictTime(true))
		defer b.bar.Finish()
		rounds := 0
		b.settings.Progress = func(text string) {
			b.bar.Describe(text)
			b.bar.Set(rounds)
			rounds++
		}
	}
	most := 0
	for _, n := range b.plan.connections {
		most = max(most, n)
	}
	var background *perf.Workload
	if b.plan.background != nil {
		var err error
		if background, err = b.plan.api.Prepare(ctx, *b.plan.target, *b.plan.background, b.shape, b.plan.backConns); err != nil {
			return b.said(err)
		}
	}
	for _, mix := range b.plan.mixes {
		w, err := b.plan.api.Prepare(ctx, *b.plan.target, mix, b.shape, most)
		if err != nil {
			return b.said(err)
		}
		if err := b.workload(ctx, w, background); err != nil {
			return err
		}
	}
	return nil
}

// said adds to an error what our server wrote when it has ended.
func (b *bench) said(err error) error {
	if b.server != nil {
		if output, ended := b.server.Ended(); ended {
			return fmt.Errorf("%w; the server has ended%s", err, output)
		}
	}
	return err
}

// workload measures w at all numbers of connections.
func (b *bench) workload(ctx context.Context, w, background *perf.Workload) error {
	load := perf.Load{Target: *b.plan.target, Workload: w, Rate: b.rate}
	subject := perf.Subject{Name: "server"}
	switch {
	case b.server != nil:
		load.Process, subject.Ended, subject.Name = b.server.Process, b.server.Ended, "keymill"
	case b.pid != 0:
		load.Process = &perf.Process{PID: b.pid}
	}
	var bare *perf.Server
	if b.baseline {
		var err error
		if bare, err = b.startBare(ctx, w.AnswerSize); err != nil {
			return err
		}
		defer bare.Stop()
	}
	for _, conns := range b.plan.connections {
		m := perf.Measurement{Workload: w.Name, What: w.What(), Connections: conns, Rate: b.rate, Background: b.plan.backName,
			Keys: b.shape.Keys, Payload: b.shape.Payload, TLS: b.report.Server.TLS}
		load.Conns = conns
		subject.Load = load
		subjects := []perf.Subject{subject}
		if bare != nil {
			plain := perf.Subject{Name: "bare fasthttp", Load: load, Ended: bare.Ended}
			plain.Load.Target, plain.Load.Process, plain.Load.Workload = bare.Target, bare.Process, unchecked(w)
			subjects = append([]perf.Subject{plain}, subjects...)
		}
		if background != nil {
			loaded := subject
			loaded.Name += " with background"
			loaded.Load.Background = &perf.Load{Target: *b.plan.target, Workload: background, Conns: b.plan.backConns}
			subjects = append(subjects, loaded)
		}
		settings := b.settings
		if b.baseline {
			settings.Between = func(ctx context.Context) error {
				rate, each, err := perf.MeasurePrimitives(ctx, w, primitiveTime)
				if rate > 0 {
					m.Primitives = append(m.Primitives, rate)
					m.PrimitiveCPU = append(m.PrimitiveCPU, float64(each)/float64(time.Microsecond))
				}
				return err
			}
		}
		rounds, err := perf.Alternate(ctx, m.Title(), subjects, settings)
		if err != nil {
			return err
		}
		for i, s := range subjects {
			series := perf.NewSeries(s.Name, rounds[i])
			series.Bare, series.Loaded = bare != nil && i == 0, s.Load.Background != nil
			m.Series = append(m.Series, series)
		}
		b.report.Measurements = append(b.report.Measurements, m)
	}
	return nil
}

// unchecked is w for the bare server, whose answers have a length and no
// meaning.
func unchecked(w *perf.Workload) *perf.Workload {
	plain := *w
	plain.Parts = append([]perf.Part(nil), w.Parts...)
	for i := range plain.Parts {
		plain.Parts[i].Check = nil
	}
	return &plain
}

// startBare starts a bare server whose answers have size bytes.
func (b *bench) startBare(ctx context.Context, size int) (*perf.Server, error) {
	self, err := os.Executable()
	if err != nil {
		return nil, err
	}
	args := []string{"bench", "serve-bare", strconv.Itoa(size)}
	if b.pair == nil {
		return perf.StartBare(ctx, exec.Command(self, args...), nil)
	}
	return perf.StartBare(ctx, exec.Command(self, append(args, b.pair.CertFile, b.pair.KeyFile)...), b.pair.Client)
}

// benchBareCommand is how bench starts itself as the bare server.
func benchBareCommand() *cobra.Command {
	return &cobra.Command{
		Use:    "serve-bare SIZE [CERT KEY]",
		Short:  "Serve HTTP with answers of SIZE bytes",
		Hidden: true,
		Args:   cobra.MatchAll(cobra.RangeArgs(1, 3), func(_ *cobra.Command, args []string) error { return evenPair(args) }),
		RunE: func(cmd *cobra.Command, args []string) error {
			size, err := strconv.Atoi(args[0])
			if err != nil || size < 0 {
				return fmt.Errorf("%q is no size", args[0])
			}
			var pair *perf.Pair
			if len(args) == 3 {
				pair = &perf.Pair{CertFile: args[1], KeyFile: args[2]}
			}
			ln, err := perf.ListenLoopback()
			if err != nil {
				return err
			}
			defer context.AfterFunc(cmd.Context(), func() { ln.Close() })()
			fmt.Fprintln(cmd.OutOrStdout(), ln.Addr())
			err = perf.ServeBare(ln, size, pair)
			if cmd.Context().Err() != nil {
				return nil
			}
			return err
		},
	}
}

func evenPair(args []string) error {
	if len(args) == 2 {
		return errors.New("a certificate without a key")
	}
	return nil
}

// commandLine is the command as a shell would take it.
func commandLine(args []string) string {
	words := []string{"keymill"}
	for _, a := range args[1:] {
		if a == "" || strings.ContainsFunc(a, func(r rune) bool {
			return !('a' <= r && r <= 'z' || 'A' <= r && r <= 'Z' || '0' <= r && r <= '9' || strings.ContainsRune("-_=/.,:@+%", r))
		}) {
			a = "'" + strings.ReplaceAll(a, "'", `'\''`) + "'"
		}
		words = append(words, a)
	}
	return strings.Join(words, " ")
}

// An output is a file that is written at the end, if all went well.
type output struct {
	file  *os.File // nil when none was asked for
	fresh bool     // made for the run, and still empty
}

func openOutput(path string) (*output, error) {
	if path == "" {
		return &output{}, nil
	}
	_, err := os.Stat(path)
	fresh := errors.Is(err, os.ErrNotExist)
	f, err := os.OpenFile(path, os.O_CREATE|os.O_WRONLY, 0o644)
	return &output{f, fresh}, err
}

func (o *output) write(to func(io.Writer) error) error {
	if o.file == nil {
		return nil
	}
	if err := o.file.Truncate(0); err != nil {
		return err
	}
	if err := to(o.file); err != nil {
		return fmt.Errorf("%s: %w", o.file.Name(), err)
	}
	o.fresh = false
	return nil
}

// close closes the file; one that was made for nothing goes.
func (o *output) close() error {
	if o.file == nil {
		return nil
	}
	err := o.file.Close()
	if o.fresh {
		err = errors.Join(err, os.Remove(o.file.Name()))
	}
	return err
}
