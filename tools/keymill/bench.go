package main

import (
	"bytes"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"os"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"keymill/daemon"
	"keymill/perf"
)

// Defaults of keymill bench, each with the reason for its value.
const (
	// benchRounds is enough for the statistics of --compare, which cannot call
	// anything a change with fewer than four.
	benchRounds = 5

	// benchDuration is long enough for a p99.9 of a thousand requests a second.
	benchDuration = 3 * time.Second

	// benchWarmup lets caches fill and the processors clock up.
	benchWarmup = time.Second

	// benchConnections keeps two cores busy without queues that are only the
	// generator's.
	benchConnections = 16

	// benchOpenConnections is for open loops: enough that a request seldom waits
	// for a connection.
	benchOpenConnections = 64
)

// Bounds of what can be asked for.
const (
	maxBenchConnections = 10_000
	maxBenchRounds      = 1000
	maxBenchKeys        = 1_000_000
	maxBenchPayload     = 4096 // of Encrypt, GenerateMac's message; GenerateRandom's is smaller
	maxBenchBatch       = 10_000
	maxBenchRate        = 1e6
	maxBenchDuration    = time.Hour
)

// benchOptions is the command line, as yet unread files included.
type benchOptions struct {
	ops, mixes  []string
	connections []string
	background  string
	rate        float64
	shape       perf.Shape
	settings    perf.Settings
	tls         bool

	baseline            bool
	compare, json, html string

	api, endpoint, credentials, region string
	ca, clientCert, clientKey          string
	tokenFile, mount                   string
	pid                                int
	serveFlags                         []string
	flags                              *pflag.FlagSet
}

// A benchPlan is the command line understood.
type benchPlan struct {
	mixes       []perf.Mix
	connections []int
	background  *perf.Mix
	backConns   int
	backName    string
	api         perf.API
	target      *perf.Target // nil: a daemon of our own
	earlier     *perf.Report
	flags       []string // of keymill serve
}

func benchCommand() *cobra.Command {
	var o benchOptions
	cmd := &cobra.Command{
		Use:   "bench",
		Short: "Measure a server: rate, latency, processor time and memory",
		Long: `Measure a server through its socket, with every request freshly signed.

Without --endpoint, bench starts this binary on a temporary data directory,
without quotas, and stops it at the end; --hsm-module and its companions give it
an HSM, and --serve-flag any further flag of keymill serve.

  keymill bench                                       the storage mix, 16 connections
  keymill bench --op Encrypt --payload 4096 --connections 16,64 --baseline
  keymill bench --mix signing --json new.json --compare old.json --html report.html
  keymill bench --op GenerateDataKey --rate 2000 --background Sign:RSA_4096:64

Without --rate, every connection asks as fast as it is answered (a closed loop):
the question is what the server can do. With --rate, requests are due at even
intervals whatever the server does, and a latency begins when its request was
due, so that a stall shows in full.

With --background, rounds with and without that load take turns, and the ratio
of their latencies is printed.

Any request that is not answered with success makes the exit status 1, and no
figure is printed.`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			o.flags = cmd.Flags()
			plan, err := o.plan()
			if err != nil {
				return err
			}
			return o.run(cmd.Context(), plan, cmd.OutOrStdout())
		},
	}
	f := cmd.Flags()
	f.SortFlags = false
	f.StringSliceVar(&o.ops, "op", nil, "measure `OPERATION[:SPEC[:ALGORITHM]]`; may be given more than once")
	f.StringSliceVar(&o.mixes, "mix", nil, "measure a `MIX`: storage, signing, mixed, bulk or hsm (default storage)")
	f.StringSliceVar(&o.connections, "connections", nil, fmt.Sprintf("numbers of `CONNECTIONS` (default %d; with --rate, %d)", benchConnections, benchOpenConnections))
	f.Float64Var(&o.rate, "rate", 0, "offer so many `REQUESTS` a second over all connections")
	f.StringVar(&o.background, "background", "", "measure with and without `OPERATION[:SPEC]:CONNECTIONS` at the same time")
	f.IntVar(&o.settings.Rounds, "rounds", benchRounds, "rounds of each measurement")
	f.DurationVar(&o.settings.Duration, "duration", benchDuration, "length of a round")
	f.DurationVar(&o.settings.Warmup, "warmup", benchWarmup, "load before each round that is not counted")
	f.IntVar(&o.shape.Keys, "keys", perf.DefaultShape.Keys, "use so many `KEYS` in turn")
	f.IntVar(&o.shape.Payload, "payload", perf.DefaultShape.Payload, "`BYTES` to encrypt, authenticate or draw")
	f.IntVar(&o.shape.Batch, "batch", perf.DefaultShape.Batch, "`ITEMS` of a bulk request")
	f.BoolVar(&o.tls, "tls", false, "start the daemon with TLS")
	f.BoolVar(&o.baseline, "baseline", false, "measure a bare HTTP server and the raw primitives in the same run, and print ratios")
	f.StringVar(&o.compare, "compare", "", "print the change since the run that wrote `FILE` with --json")
	f.StringVar(&o.json, "json", "", "write the figures to `FILE`")
	f.StringVar(&o.html, "html", "", "write a report with plots to `FILE`, one page that needs no network")
	f.StringVar(&o.endpoint, "endpoint", "", "measure the server at `URL` instead of starting one")
	f.StringVar(&o.api, "api", "aws", "what the endpoint speaks: aws (AWS KMS), transit (OpenBao, Vault) or kes (MinIO KES)")
	f.StringVar(&o.credentials, "credentials", "", "AWS shared credentials `FILE` for the endpoint")
	f.StringVar(&o.region, "region", daemon.DefaultRegion, "region to sign for")
	f.StringVar(&o.ca, "ca", "", "PEM `FILE` of the authorities that the endpoint's certificate may be from")
	f.StringVar(&o.clientCert, "client-cert", "", "PEM `FILE` of a client certificate")
	f.StringVar(&o.clientKey, "client-key", "", "PEM `FILE` of its private key")
	f.StringVar(&o.tokenFile, "token-file", "", "`FILE` that holds the transit server's token")
	f.StringVar(&o.mount, "mount", "transit", "`PATH` at which the transit engine is mounted")
	f.IntVar(&o.pid, "pid", 0, "process `ID` of the endpoint's server, for its processor time and memory, when it runs on this machine")
	f.StringArrayVar(&o.serveFlags, "serve-flag", nil, "further `FLAG` of keymill serve, such as --serve-flag=--log-level=warn")
	addPassedOn(f)
	cmd.AddCommand(benchStartupCommand(), benchScaleCommand(), benchBareCommand())
	return cmd
}

// addPassedOn adds the options that a daemon of our own gets as they are.
func addPassedOn(f *pflag.FlagSet) {
	def := daemon.DefaultConfig()
	for _, opt := range daemon.Options {
		if !strings.HasPrefix(opt.Name, "hsm-") {
			continue
		}
		switch v := opt.Field(&def).(type) {
		case *string:
			f.String(opt.Name, *v, opt.Usage)
		case *bool:
			f.Bool(opt.Name, *v, opt.Usage)
		case *[]string:
			f.StringSlice(opt.Name, *v, opt.Usage)
		}
	}
}

// passedOn are the flags of keymill serve that were given.
func passedOn(f *pflag.FlagSet) []string {
	var flags []string
	f.Visit(func(flag *pflag.Flag) {
		if !strings.HasPrefix(flag.Name, "hsm-") {
			return
		}
		value := flag.Value.String()
		if list, ok := flag.Value.(pflag.SliceValue); ok {
			value = strings.Join(list.GetSlice(), ",")
		}
		flags = append(flags, "--"+flag.Name+"="+value)
	})
	return flags
}

// plan checks the command line and reads the files that it names.
func (o *benchOptions) plan() (*benchPlan, error) {
	var p benchPlan
	if len(o.ops) == 0 && len(o.mixes) == 0 {
		o.mixes = []string{"storage"}
	}
	for _, name := range o.mixes {
		m, err := perf.MixByName(name)
		if err != nil {
			return nil, fmt.Errorf("--mix: %w", err)
		}
		p.mixes = append(p.mixes, m)
	}
	for _, text := range o.ops {
		op, err := perf.ParseOperation(text)
		if err != nil {
			return nil, fmt.Errorf("--op: %w", err)
		}
		p.mixes = append(p.mixes, perf.Single(op))
	}
	if err := o.planLoad(&p); err != nil {
		return nil, err
	}
	if err := o.planServer(&p); err != nil {
		return nil, err
	}
	if o.compare != "" {
		file, err := os.Open(o.compare)
		if err != nil {
			return nil, fmt.Errorf("--compare: %w", err)
		}
		defer file.Close()
		if p.earlier, err = perf.ReadReport(file); err != nil {
			return nil, fmt.Errorf("--compare %s: %w", o.compare, err)
		}
	}
	return &p, nil
}

func (o *benchOptions) planLoad(p *benchPlan) error {
	if !(o.rate >= 0 && o.rate <= maxBenchRate) {
		return fmt.Errorf("--rate must be above 0 and at most %g", float64(maxBenchRate))
	}
	if o.flags != nil && o.flags.Changed("rate") && o.rate == 0 {
		return errors.New("--rate must be above 0")
	}
	if o.connections == nil {
		n := benchConnections
		if o.rate > 0 {
			n = benchOpenConnections
		}
		o.connections = []string{strconv.Itoa(n)}
	}
	for _, text := range o.connections {
		n, err := parseConnections(text)
		if err != nil {
			return fmt.Errorf("--connections: %w", err)
		}
		p.connections = append(p.connections, n)
	}
	if o.background != "" {
		i := strings.LastIndexByte(o.background, ':')
		if i < 0 {
			return fmt.Errorf("--background: %q lacks the number of connections; give OPERATION[:SPEC]:CONNECTIONS", o.background)
		}
		n, err := parseConnections(o.background[i+1:])
		if err != nil {
			return fmt.Errorf("--background: %w", err)
		}
		op, err := perf.ParseOperation(o.background[:i])
		if err != nil {
			return fmt.Errorf("--background: %w", err)
		}
		m := perf.Single(op)
		p.background, p.backConns, p.backName = &m, n, fmt.Sprintf("%v:%d", op, n)
	}
	err := checkFlags([]flagRange{
		{"rounds", o.settings.Rounds, 1, maxBenchRounds},
		{"keys", o.shape.Keys, 1, maxBenchKeys},
		{"payload", o.shape.Payload, 1, maxBenchPayload},
		{"batch", o.shape.Batch, 1, maxBenchBatch},
		{"pid", o.pid, 0, 1 << 30},
	}, o.settings.Duration)
	if err != nil {
		return err
	}
	if o.settings.Warmup < 0 || o.settings.Warmup > maxBenchDuration {
		return fmt.Errorf("--warmup must be from 0 to %v", maxBenchDuration)
	}
	return nil
}

// A flagRange is the value of a flag and what it may be.
type flagRange struct {
	name             string
	value, low, high int
}

// checkFlags checks flags, and the length of a round.
func checkFlags(all []flagRange, duration time.Duration) error {
	for _, f := range all {
		if f.value < f.low || f.value > f.high {
			return fmt.Errorf("--%s must be from %d to %d", f.name, f.low, f.high)
		}
	}
	if duration <= 0 || duration > maxBenchDuration {
		return fmt.Errorf("--duration must be above 0 and at most %v", maxBenchDuration)
	}
	return nil
}

func parseConnections(text string) (int, error) {
	n, err := strconv.Atoi(strings.TrimSpace(text))
	if err != nil || n < 1 || n > maxBenchConnections {
		return 0, fmt.Errorf("%q is no number of connections; give 1 to %d", text, maxBenchConnections)
	}
	return n, nil
}

// planServer finds out what server is meant and how it is reached.
func (o *benchOptions) planServer(p *benchPlan) error {
	if o.flags != nil {
		p.flags = append(passedOn(o.flags), o.serveFlags...)
	}
	if o.endpoint == "" {
		var wrong []string
		for name, given := range map[string]bool{"api": o.api != "aws", "credentials": o.credentials != "", "ca": o.ca != "",
			"client-cert": o.clientCert != "", "client-key": o.clientKey != "", "token-file": o.tokenFile != "", "pid": o.pid != 0} {
			if given {
				wrong = append(wrong, "--"+name)
			}
		}
		if wrong != nil {
			slices.Sort(wrong)
			return fmt.Errorf("%s without --endpoint", strings.Join(wrong, ", "))
		}
		p.api = perf.AWS{}
		return nil
	}
	if o.tls || len(p.flags) > 0 {
		return errors.New("--tls, --hsm-* and --serve-flag are for a server that bench starts; leave them out with --endpoint")
	}
	config, err := o.clientTLS()
	if err != nil {
		return err
	}
	target, err := perf.ParseEndpoint(o.endpoint, config)
	if err != nil {
		return fmt.Errorf("--endpoint: %w", err)
	}
	target.Region = o.region
	p.target = &target
	switch o.api {
	case "aws":
		p.api = perf.AWS{}
		if o.credentials == "" {
			return errors.New("--endpoint needs --credentials FILE, in the form of AWS's shared credentials file")
		}
		target.Credentials, err = perf.ReadCredentials(o.credentials)
		if err != nil {
			return fmt.Errorf("--credentials: %w", err)
		}
	case "transit":
		token, err := readToken(o.tokenFile)
		if err != nil {
			return fmt.Errorf("--token-file: %w", err)
		}
		mount := strings.Trim(o.mount, "/")
		if mount == "" || strings.ContainsFunc(mount, func(r rune) bool { return r <= ' ' || r > '~' || strings.ContainsRune("?#%", r) }) {
			return fmt.Errorf("--mount: %q is no path of an engine", o.mount)
		}
		p.api = perf.Transit{Mount: mount, Token: token}
	case "kes":
		if target.TLS == nil || len(target.TLS.Certificates) == 0 {
			return errors.New("--api kes needs an https endpoint, --client-cert and --client-key")
		}
		p.api = perf.KES{}
	default:
		return fmt.Errorf("--api: there is no %q; there are aws, transit and kes", o.api)
	}
	return nil
}

// clientTLS is how TLS endpoints are connected to.
func (o *benchOptions) clientTLS() (*tls.Config, error) {
	config := &tls.Config{MinVersion: tls.VersionTLS12}
	if o.ca != "" {
		data, err := os.ReadFile(o.ca)
		if err != nil {
			return nil, fmt.Errorf("--ca: %w", err)
		}
		config.RootCAs = x509.NewCertPool()
		if !config.RootCAs.AppendCertsFromPEM(data) {
			return nil, fmt.Errorf("--ca: no certificate in %s", o.ca)
		}
	}
	if (o.clientCert == "") != (o.clientKey == "") {
		return nil, errors.New("--client-cert and --client-key belong together")
	}
	if o.clientCert != "" {
		cert, err := tls.LoadX509KeyPair(o.clientCert, o.clientKey)
		if err != nil {
			return nil, fmt.Errorf("--client-cert: %w", err)
		}
		config.Certificates = []tls.Certificate{cert}
	}
	return config, nil
}

// readToken reads a token that stands alone in a file.
func readToken(path string) ([]byte, error) {
	if path == "" {
		return nil, errors.New("needed for --api transit")
	}
	data, err := os.ReadFile(path)
	if err != nil {
		return nil, err
	}
	token := bytes.TrimSpace(data)
	if len(token) == 0 || bytes.ContainsFunc(token, func(r rune) bool { return r <= ' ' || r > '~' }) {
		return nil, fmt.Errorf("%s does not hold one token", path)
	}
	return token, nil
}
