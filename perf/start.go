package perf

import (
	"bufio"
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
	"strings"
	"syscall"
	"time"
)

// A Server is a server process that this one started.
type Server struct {
	Target  Target
	Process *Process

	cmd    *exec.Cmd
	output *tail
	done   chan struct{} // closed when the process has ended
}

const (
	// startTimeout is how long a server may take until it answers.
	startTimeout = 30 * time.Second

	// stopTimeout is how long one may take to end; Keymill promises 10 s.
	stopTimeout = 15 * time.Second

	readyPoll = 20 * time.Millisecond
)

// KeymillOptions say how to start a keymill.
type KeymillOptions struct {
	Binary string
	Dir    string   // data directory, which keymill makes when it is missing
	Region string   // "" is us-east-1
	Flags  []string // further flags of keymill serve
	TLS    *Pair    // nil is plain HTTP
}

// StartKeymill starts a keymill without quotas on free ports of the loopback
// interface, and returns once it is ready, with the root access key as
// credentials. The caller stops it.
func StartKeymill(ctx context.Context, o KeymillOptions) (*Server, error) {
	if o.Region == "" {
		o.Region = "us-east-1"
	}
	listen, admin, err := freeAddrs()
	if err != nil {
		return nil, err
	}
	args := append([]string{"serve", "--listen", listen, "--admin-listen", admin, "--data", o.Dir,
		"--region", o.Region, "--quota-profile", "none"}, o.Flags...)
	if o.TLS != nil {
		args = append(args, "--tls-cert", o.TLS.CertFile, "--tls-key", o.TLS.KeyFile)
	}
	s, err := start(exec.Command(o.Binary, args...))
	if err != nil {
		return nil, err
	}
	s.Target = Target{Addr: listen, Region: o.Region}
	if o.TLS != nil {
		s.Target.TLS = o.TLS.Client
	}
	err = s.awaitReady(ctx, "http://"+admin+"/readyz")
	if err == nil {
		s.Target.Credentials, err = ReadCredentials(filepath.Join(o.Dir, "credentials"))
	}
	if err != nil {
		s.Stop()
		return nil, err
	}
	return s, nil
}

// StartBare starts a bare server, see [ServeBare], in a process of its own: cmd
// is a command that serves on a port it chooses and prints HOST:PORT as its
// first line on standard output. clientTLS is how it is reached, nil when in
// plain HTTP. The caller stops it.
func StartBare(ctx context.Context, cmd *exec.Cmd, clientTLS *tls.Config) (*Server, error) {
	r, w, err := os.Pipe()
	if err != nil {
		return nil, err
	}
	defer r.Close()
	cmd.Stdout = w
	s, err := start(cmd)
	w.Close()
	if err != nil {
		return nil, err
	}
	// A child that ends closes the pipe; one that says nothing is ended.
	defer time.AfterFunc(startTimeout, func() { cmd.Process.Kill() }).Stop()
	defer context.AfterFunc(ctx, func() { cmd.Process.Kill() })()
	line, err := bufio.NewReader(io.LimitReader(r, 256)).ReadString('\n')
	if err != nil {
		s.Stop()
		return nil, fmt.Errorf("%s printed no address: %w%s", cmd.Path, errors.Join(err, ctx.Err()), s.output)
	}
	s.Target = Target{Addr: strings.TrimSpace(line), TLS: clientTLS, Region: "us-east-1",
		Credentials: Credentials{AccessKeyID: "AKIAIOSFODNN7EXAMPLE", Secret: []byte("of no account")}}
	return s, nil
}

// start starts cmd, which does not outlive this process.
func start(cmd *exec.Cmd) (*Server, error) {
	s := &Server{cmd: cmd, output: &tail{}, done: make(chan struct{})}
	cmd.Stderr = s.output
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	cmd.WaitDelay = time.Second // a child of its own may hold standard error
	if err := cmd.Start(); err != nil {
		return nil, err
	}
	s.Process = &Process{cmd.Process.Pid}
	go func() {
		cmd.Wait()
		close(s.done)
	}()
	return s, nil
}

// awaitReady asks url until it says 200.
func (s *Server) awaitReady(ctx context.Context, url string) error {
	ctx, cancel := context.WithTimeout(ctx, startTimeout)
	defer cancel()
	poll := time.NewTicker(readyPoll)
	defer poll.Stop()
	client := http.Client{Transport: &http.Transport{DisableKeepAlives: true}}
	for {
		req, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
		if err != nil {
			return err
		}
		if resp, err := client.Do(req); err == nil {
			resp.Body.Close()
			if resp.StatusCode == http.StatusOK {
				return nil
			}
		}
		select {
		case <-poll.C:
		case <-s.done:
			return fmt.Errorf("%s ended before it was ready%s", s.cmd.Path, s.output)
		case <-ctx.Done():
			return fmt.Errorf("%s is not ready: %w%s", s.cmd.Path, ctx.Err(), s.output)
		}
	}
}

// Stop ends the process, with SIGTERM and, when that does not do, SIGKILL, and
// waits for its end.
func (s *Server) Stop() {
	s.cmd.Process.Signal(syscall.SIGTERM)
	timer := time.AfterFunc(stopTimeout, func() { s.cmd.Process.Kill() })
	defer timer.Stop()
	<-s.done
}

// Ended tells whether the process has ended by itself, and the end of what it
// wrote to standard error, worded to follow an error's text.
func (s *Server) Ended() (output string, ended bool) {
	select {
	case <-s.done:
		return s.output.String(), true
	default:
		return "", false
	}
}

// freeAddrs returns two loopback addresses on which nobody listens now.
func freeAddrs() (a, b string, err error) {
	first, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return "", "", err
	}
	defer first.Close()
	second, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return "", "", err
	}
	defer second.Close()
	return first.Addr().String(), second.Addr().String(), nil
}

// ReadCredentials reads the default profile of an AWS shared credentials file.
func ReadCredentials(path string) (Credentials, error) {
	data, err := os.ReadFile(path)
	if err != nil {
		return Credentials{}, err
	}
	defer clear(data)
	c, err := ParseCredentials(data)
	if err != nil {
		return c, fmt.Errorf("%s: %w", path, err)
	}
	return c, nil
}

// ParseCredentials reads the default profile of an AWS shared credentials file.
// What it returns does not point into data.
func ParseCredentials(data []byte) (Credentials, error) {
	var c Credentials
	profile := ""
	for line := range bytes.Lines(data) {
		line = bytes.TrimSpace(line)
		if len(line) > 1 && line[0] == '[' && line[len(line)-1] == ']' {
			profile = string(bytes.TrimSpace(line[1 : len(line)-1]))
			continue
		}
		name, value, ok := bytes.Cut(line, []byte("="))
		if profile != "default" || !ok || line[0] == '#' || line[0] == ';' {
			continue
		}
		switch value = bytes.TrimSpace(value); string(bytes.TrimSpace(name)) {
		case "aws_access_key_id":
			c.AccessKeyID = string(value)
		case "aws_secret_access_key":
			c.Secret = bytes.Clone(value)
		}
	}
	if c.AccessKeyID == "" || len(c.Secret) == 0 {
		return Credentials{}, errors.New("no access key under [default]")
	}
	return c, nil
}
