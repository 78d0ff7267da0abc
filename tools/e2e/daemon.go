package e2e

import (
	"bytes"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	awshttp "github.com/aws/aws-sdk-go-v2/aws/transport/http"
	"github.com/aws/aws-sdk-go-v2/config"
	"github.com/aws/aws-sdk-go-v2/service/kms"
)

// Bounds of waiting for a process. Each is far over what the thing takes, so
// that a busy machine fails nothing.
const (
	startTimeout = 60 * time.Second
	stopTimeout  = 15 * time.Second // the contract is 10 s
	pollInterval = 3 * time.Millisecond
	startTries   = 3
)

// Account is the account number that the daemon gives its root principal.
const Account = "000000000000"

// Build compiles the keymill binary into dir and returns its path. It runs in
// the current directory, which must be inside the module.
func Build(dir string) (string, error) {
	bin := filepath.Join(dir, "keymill")
	cmd := exec.Command("go", "build", "-o", bin, "keymill/tools/keymill")
	if out, err := cmd.CombinedOutput(); err != nil {
		return "", fmt.Errorf("couldn't build keymill: %w\n%s", err, out)
	}
	return bin, nil
}

// Options say how a daemon is run.
type Options struct {
	Binary  string      // what Build returned
	Dir     string      // data directory
	Regions string      // --regions; empty serves us-east-1 alone
	Token   *Token      // root of trust; nil is the software root
	Args    []string    // more flags
	Env     []string    // more variables, NAME=VALUE
	TLS     *tls.Config // set when the daemon serves HTTPS: what its clients use

	Coverage *Coverage // what the SDK's clients exercise goes there; nil: nowhere
}

// A Daemon is one keymill process and what is needed to start it again. Its
// methods are for one goroutine, except Config, Client and Log.
type Daemon struct {
	// Immutable after Start.
	opts      Options
	addr      string // of the KMS API, HOST:PORT
	adminAddr string

	cmd  *exec.Cmd
	done chan struct{} // closed when the process is gone
	err  error         // of Wait; valid after done

	mu  sync.Mutex
	log bytes.Buffer // standard output and error of every run; guarded by mu
}

// Start runs a daemon on free ports of the loopback interface and returns when
// it is ready. Another process may take a free port before the daemon binds it;
// Start then picks others.
func Start(ctx context.Context, o Options) (*Daemon, error) {
	var err error
	for range startTries {
		d := &Daemon{opts: o}
		if d.addr, d.adminAddr, err = freeAddresses(); err != nil {
			return nil, err
		}
		if err = d.run(ctx); err == nil {
			return d, nil
		}
		if !strings.Contains(d.Log(), syscall.EADDRINUSE.Error()) {
			break
		}
	}
	return nil, err
}

// freeAddresses returns two addresses that nobody is listening on.
func freeAddresses() (a, b string, err error) {
	var addrs [2]string
	for i := range addrs {
		ln, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			return "", "", err
		}
		defer ln.Close()
		addrs[i] = ln.Addr().String()
	}
	return addrs[0], addrs[1], nil
}

// Command returns the command that starts the daemon, not started.
func (d *Daemon) Command() *exec.Cmd {
	args := []string{"serve",
		"--listen", d.addr, "--admin-listen", d.adminAddr, "--data", d.opts.Dir,
		"--region", "us-east-1", "--quota-profile", "none",
	}
	if d.opts.Regions != "" {
		args = append(args, "--regions", d.opts.Regions)
	}
	cmd := exec.Command(d.opts.Binary, args...)
	// A developer's own settings must not change the daemon under test.
	cmd.Env = append(environWithout("KEYMILL_"), d.opts.Env...)
	if t := d.opts.Token; t != nil {
		cmd.Args = append(cmd.Args, "--hsm-module", t.Module, "--hsm-token", t.Label, "--hsm-pin-file", t.PINFile)
		cmd.Env = append(cmd.Env, t.Env()...)
	}
	cmd.Args = append(cmd.Args, d.opts.Args...)
	return cmd
}

// startProcess starts the process and does not wait for anything.
func (d *Daemon) startProcess() error {
	d.cmd = d.Command()
	d.cmd.Stdout, d.cmd.Stderr = logWriter{d}, logWriter{d}
	d.cmd.SysProcAttr = childAttr()
	if err := d.cmd.Start(); err != nil {
		return err
	}
	done := make(chan struct{})
	d.done = done
	go func() {
		d.err = d.cmd.Wait()
		close(done)
	}()
	return nil
}

// run starts the process and waits until it is ready.
func (d *Daemon) run(ctx context.Context) error {
	if err := d.startProcess(); err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, startTimeout)
	defer cancel()
	for {
		if d.ready(ctx) {
			return nil
		}
		select {
		case <-d.done:
			return fmt.Errorf("keymill ended before it was ready: %v\n%s", d.err, d.Log())
		case <-ctx.Done():
			d.Kill()
			return fmt.Errorf("keymill is not ready: %w\n%s", ctx.Err(), d.Log())
		case <-time.After(pollInterval):
		}
	}
}

// ready asks the admin listener.
func (d *Daemon) ready(ctx context.Context) bool {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://"+d.adminAddr+"/readyz", nil)
	if err != nil {
		return false
	}
	req.Close = true
	res, err := http.DefaultClient.Do(req)
	if err != nil {
		return false
	}
	res.Body.Close()
	return res.StatusCode == http.StatusOK
}

// Metrics returns what the admin listener shows.
func (d *Daemon) Metrics() (string, error) {
	res, err := http.Get("http://" + d.adminAddr + "/metrics")
	if err != nil {
		return "", err
	}
	defer res.Body.Close()
	b, err := io.ReadAll(res.Body)
	return string(b), err
}

// PID is the process's id.
func (d *Daemon) PID() int { return d.cmd.Process.Pid }

// Signal sends a signal to the process.
func (d *Daemon) Signal(s os.Signal) error { return d.cmd.Process.Signal(s) }

// Kill ends the process as a crash would and returns when it is gone. It does
// nothing when the process is gone already.
func (d *Daemon) Kill() {
	d.cmd.Process.Kill()
	<-d.done
}

// Stop asks the process to end and reports whether it did as it should: in time
// and with status 0.
func (d *Daemon) Stop() error {
	select {
	case <-d.done:
		return fmt.Errorf("keymill ended by itself: %v\n%s", d.err, d.Log())
	default:
	}
	if err := d.Signal(syscall.SIGTERM); err != nil {
		return err
	}
	select {
	case <-d.done:
		if d.err != nil {
			return fmt.Errorf("keymill stopped with %w\n%s", d.err, d.Log())
		}
		return nil
	case <-time.After(stopTimeout):
		d.Kill()
		return fmt.Errorf("keymill did not stop within %s\n%s", stopTimeout, d.Log())
	}
}

// StartAgain starts the daemon after Stop or Kill, on the same addresses and the
// same data.
func (d *Daemon) StartAgain(ctx context.Context) error {
	select {
	case <-d.done:
	default:
		return errors.New("the daemon is still running")
	}
	return d.run(ctx)
}

// Restart stops the daemon and starts it again.
func (d *Daemon) Restart(ctx context.Context) error {
	if err := d.Stop(); err != nil {
		return err
	}
	return d.StartAgain(ctx)
}

// URL is where the daemon serves the KMS API.
func (d *Daemon) URL() string {
	if d.opts.TLS != nil {
		return "https://" + d.addr
	}
	return "http://" + d.addr
}

// Addr is the HOST:PORT of the KMS API.
func (d *Daemon) Addr() string { return d.addr }

// Dir is the data directory.
func (d *Daemon) Dir() string { return d.opts.Dir }

// CredentialsFile is the AWS shared credentials file that the daemon wrote.
func (d *Daemon) CredentialsFile() string { return filepath.Join(d.opts.Dir, "credentials") }

// Environ returns the variables that point any AWS tool at the daemon, with
// nothing left of the caller's own AWS settings.
func (d *Daemon) Environ() []string {
	return append(environWithout("AWS_"),
		"AWS_SHARED_CREDENTIALS_FILE="+d.CredentialsFile(),
		"AWS_CONFIG_FILE="+os.DevNull,
		"AWS_ENDPOINT_URL_KMS="+d.URL(),
		"AWS_REGION=us-east-1",
		"AWS_DEFAULT_REGION=us-east-1",
		"AWS_EC2_METADATA_DISABLED=true",
		"AWS_PAGER=",
	)
}

// environWithout returns the environment without variables of a prefix.
func environWithout(prefix string) []string {
	return slices.DeleteFunc(os.Environ(), func(e string) bool { return strings.HasPrefix(e, prefix) })
}

// Config returns the SDK's configuration for a region, with the credentials from
// the daemon's file and nothing else of the environment.
func (d *Daemon) Config(ctx context.Context, region string) (aws.Config, error) {
	opts := []func(*config.LoadOptions) error{
		config.WithRegion(region),
		config.WithSharedCredentialsFiles([]string{d.CredentialsFile()}),
		config.WithSharedConfigFiles([]string{}),
		config.WithSharedConfigProfile("default"),
		config.WithBaseEndpoint(d.URL()),
		// One try: a test must see the daemon's first answer.
		config.WithRetryMaxAttempts(1),
		config.WithHTTPClient(awshttp.NewBuildableClient().WithTransportOptions(func(t *http.Transport) {
			if d.opts.TLS != nil {
				t.TLSClientConfig = d.opts.TLS.Clone()
			}
		})),
	}
	cfg, err := config.LoadDefaultConfig(ctx, opts...)
	if err != nil {
		return aws.Config{}, err
	}
	cfg.HTTPClient = oneBody{cfg.HTTPClient, d.opts.Coverage}
	return cfg, nil
}

// oneBody sends requests whose body nobody else can close. The SDK closes the
// body it built as soon as there is an answer; net/http, when the answer is quick,
// may then still be asking that body whether there is more of it, takes the end it
// is told for a failed write and cuts the connection under the answer. Over a real
// network nobody is quick enough for that, and the SDK would try again, which the
// tests must not.
type oneBody struct {
	config.HTTPClient
	coverage *Coverage // nil: nobody asks
}

func (c oneBody) Do(req *http.Request) (*http.Response, error) {
	if req.Body != nil {
		body, err := io.ReadAll(req.Body)
		if err != nil {
			return nil, err
		}
		req = req.Clone(req.Context())
		req.Body = io.NopCloser(bytes.NewReader(body))
		if c.coverage != nil {
			return c.observed(req, body)
		}
	}
	return c.HTTPClient.Do(req)
}

// observed sends a request and notes it with its answer.
func (c oneBody) observed(req *http.Request, body []byte) (*http.Response, error) {
	res, err := c.HTTPClient.Do(req)
	if err != nil {
		return nil, err
	}
	answer, err := io.ReadAll(res.Body)
	if err := errors.Join(err, res.Body.Close()); err != nil {
		return nil, err
	}
	c.coverage.note(req.Header.Get("X-Amz-Target"), body, answer, res.StatusCode == http.StatusOK)
	res.Body = io.NopCloser(bytes.NewReader(answer))
	return res, nil
}

// Client returns an SDK client for a region.
func (d *Daemon) Client(ctx context.Context, region string) (*kms.Client, error) {
	cfg, err := d.Config(ctx, region)
	if err != nil {
		return nil, err
	}
	return kms.NewFromConfig(cfg), nil
}

// Log returns what the daemon has printed so far, in all its runs.
func (d *Daemon) Log() string {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.log.String()
}

type logWriter struct{ d *Daemon }

func (w logWriter) Write(p []byte) (int, error) {
	w.d.mu.Lock()
	defer w.d.mu.Unlock()
	return w.d.log.Write(p)
}
