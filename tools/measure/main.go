// Command measure prints what a keymill binary costs a request, beside a bare
// HTTP server that moves the same bytes.
//
//	go build -o bin/keymill ./tools/keymill
//	go run ./tools/measure --keymill bin/keymill --conns 16,64
//	go run ./tools/measure --keymill bin/keymill --keys 100000
//
// It starts the binary on a new data directory with the software root and
// without quotas, creates keys, and measures every operation at every number of
// connections, in alternation with the bare server. With --keys it measures the
// start on a store of that many keys. It exits 1 when any request fails. Package
// perf says what the columns mean.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"net"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/klauspost/cpuid/v2"
	"golang.org/x/sys/unix"

	"keymill/perf"
)

func main() {
	// How measure starts itself as the bare server: measure bare SIZE.
	if len(os.Args) == 3 && os.Args[1] == "bare" {
		exit(serveBare(os.Args[2]))
	}
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	exit(run(ctx, os.Args[1:]))
}

func exit(err error) {
	switch {
	case err == nil:
		os.Exit(0)
	case errors.Is(err, flag.ErrHelp):
		os.Exit(2)
	}
	fmt.Fprintln(os.Stderr, "measure:", err)
	os.Exit(1)
}

func serveBare(size string) error {
	n, err := strconv.Atoi(size)
	if err != nil || n < 0 {
		return fmt.Errorf("%q is no size", size)
	}
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return err
	}
	fmt.Println(ln.Addr())
	return perf.ServeBare(ln, n)
}

// options are the command line.
type options struct {
	binary   string
	conns    []int
	ops      []*perf.Operation
	keys     int // > 0: measure the start with that many keys instead
	settings perf.Settings
}

func parse(args []string) (*options, error) {
	var o options
	var names []string
	for _, op := range perf.Operations {
		names = append(names, op.Op.String())
	}
	flags := flag.NewFlagSet("measure", flag.ContinueOnError)
	flags.StringVar(&o.binary, "keymill", filepath.Join("bin", "keymill"), "the binary to measure")
	conns := flags.String("conns", "16,64", "numbers of connections")
	ops := flags.String("ops", strings.Join(names, ","), "operations")
	flags.IntVar(&o.keys, "keys", 0, "measure the start of a server that holds this many keys, instead of requests")
	flags.IntVar(&o.settings.Rounds, "rounds", 3, "rounds on each server")
	seconds := flags.Float64("seconds", 3, "length of a round")
	warmup := flags.Float64("warmup", 1, "seconds of load before each round that are not counted")
	if err := flags.Parse(args); err != nil {
		return nil, err
	}
	if flags.NArg() > 0 {
		return nil, fmt.Errorf("unexpected argument %q", flags.Arg(0))
	}
	if o.keys < 0 {
		return nil, errors.New("--keys must be at least 0")
	}
	if o.settings.Rounds < 1 {
		return nil, errors.New("--rounds must be at least 1")
	}
	if !(*seconds > 0 && *seconds <= 3600) || !(*warmup >= 0 && *warmup <= 3600) {
		return nil, errors.New("--seconds must be above 0 and --warmup at least 0, both at most 3600")
	}
	o.settings.Duration = time.Duration(*seconds * float64(time.Second))
	o.settings.Warmup = time.Duration(*warmup * float64(time.Second))
	for field := range strings.SplitSeq(*conns, ",") {
		n, err := strconv.Atoi(strings.TrimSpace(field))
		if err != nil || n < 1 || n > 10_000 {
			return nil, fmt.Errorf("--conns: %q is no number of connections; give 1 to 10000", field)
		}
		o.conns = append(o.conns, n)
	}
	for name := range strings.SplitSeq(*ops, ",") {
		op, ok := perf.OperationByName(strings.TrimSpace(name))
		if !ok {
			return nil, fmt.Errorf("--ops: %q cannot be measured; there are %s", name, strings.Join(names, ", "))
		}
		o.ops = append(o.ops, op)
	}
	return &o, nil
}

func run(ctx context.Context, args []string) (err error) {
	o, err := parse(args)
	if err != nil {
		return err
	}
	dir, err := os.MkdirTemp("", "keymill-measure-")
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, os.RemoveAll(dir)) }()

	if o.keys > 0 {
		return o.measureStart(ctx, args, filepath.Join(dir, "data"))
	}
	began := time.Now()
	server, err := perf.StartKeymill(ctx, perf.KeymillOptions{Binary: o.binary, Dir: filepath.Join(dir, "data")})
	if err != nil {
		return err
	}
	defer server.Stop()
	startup := time.Since(began)

	o.settings.Progress = func(text string) { fmt.Fprintln(os.Stderr, text) }
	var comparisons []*perf.Comparison
	for _, op := range o.ops {
		part, err := o.measure(ctx, server, op)
		if err != nil {
			if output, ended := server.Ended(); ended {
				err = fmt.Errorf("%w; %s ended%s", err, o.binary, output)
			}
			return err
		}
		comparisons = append(comparisons, part...)
	}

	fmt.Printf("measure %s\n", strings.Join(args, " "))
	fmt.Printf("%s, %d CPUs; %s; %s\n", cpuid.CPU.BrandName, runtime.NumCPU(), kernel(), runtime.Version())
	fmt.Printf("%d rounds of %v after %v of warm-up; load generator on the same CPUs; ready %d ms after the start\n\n",
		o.settings.Rounds, o.settings.Duration, o.settings.Warmup, startup.Milliseconds())
	return perf.WriteTable(os.Stdout, comparisons)
}

// fillConnections is how many connections create keys at once: enough for one
// sync of the store to carry many of them.
const fillConnections = 64

// measureStart fills a store with keys through the API, ends the server, and
// measures how long each of several starts on that store takes until the server
// is ready, and its memory then.
func (o *options) measureStart(ctx context.Context, args []string, dir string) error {
	k := perf.KeymillOptions{Binary: o.binary, Dir: dir}
	server, err := perf.StartKeymill(ctx, k)
	if err != nil {
		return err
	}
	began := time.Now()
	err = perf.CreateKeys(ctx, server.Target, o.keys, fillConnections)
	filled := time.Since(began)
	server.Stop()
	if err != nil {
		return err
	}
	fmt.Printf("measure %s\n", strings.Join(args, " "))
	fmt.Printf("%s, %d CPUs; %s; %s\n", cpuid.CPU.BrandName, runtime.NumCPU(), kernel(), runtime.Version())
	fmt.Printf("%d keys created over %d connections in %.1f s: %.0f a second\n", o.keys, fillConnections, filled.Seconds(), float64(o.keys)/filled.Seconds())
	for range o.settings.Rounds {
		began := time.Now()
		server, err := perf.StartKeymill(ctx, k)
		if err != nil {
			return err
		}
		ready := time.Since(began)
		rss, err := server.Process.RSS()
		server.Stop()
		if err != nil {
			return err
		}
		fmt.Printf("ready %d ms after the start, RSS %.0f MB\n", ready.Milliseconds(), float64(rss)/1e6)
	}
	return nil
}

// measure compares one operation at all numbers of connections.
func (o *options) measure(ctx context.Context, server *perf.Server, op *perf.Operation) ([]*perf.Comparison, error) {
	client, err := perf.Dial(ctx, server.Target)
	if err != nil {
		return nil, err
	}
	bodies, err := op.Prepare(ctx, client)
	client.Close()
	if err != nil {
		return nil, err
	}
	size, err := perf.AnswerSize(ctx, server.Target, op, bodies)
	if err != nil {
		return nil, err
	}
	self, err := os.Executable()
	if err != nil {
		return nil, err
	}
	bare, err := perf.StartBare(ctx, exec.Command(self, "bare", strconv.Itoa(size)))
	if err != nil {
		return nil, err
	}
	defer bare.Stop()
	var comparisons []*perf.Comparison
	for _, conns := range o.conns {
		c, err := perf.Compare(ctx, server, bare, op, bodies, conns, o.settings)
		if err != nil {
			return nil, err
		}
		comparisons = append(comparisons, c)
	}
	return comparisons, nil
}

// kernel is the operating system's name and release.
func kernel() string {
	var u unix.Utsname
	if err := unix.Uname(&u); err != nil {
		return runtime.GOOS
	}
	return unix.ByteSliceToString(u.Sysname[:]) + " " + unix.ByteSliceToString(u.Release[:])
}
