package main

import (
	"bufio"
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"math/big"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/config"
	"github.com/aws/aws-sdk-go-v2/service/kms"
)

// asKeymill makes the test binary behave as the keymill command.
const asKeymill = testEnvPrefix + "MAIN"

func TestMain(m *testing.M) {
	if os.Getenv(asKeymill) != "" {
		main()
		return
	}
	os.Exit(m.Run())
}

// command returns keymill with args as a process of its own.
func command(t *testing.T, args ...string) *exec.Cmd {
	t.Helper()
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.CommandContext(t.Context(), self, args...)
	for _, e := range os.Environ() {
		if !strings.HasPrefix(e, "KEYMILL_") {
			cmd.Env = append(cmd.Env, e)
		}
	}
	cmd.Env = append(cmd.Env, asKeymill+"=1")
	return cmd
}

// run runs keymill to its end.
func run(t *testing.T, args ...string) (stdout, stderr string, status int) {
	t.Helper()
	cmd := command(t, args...)
	var out, errs bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &errs
	err := cmd.Run()
	var exit *exec.ExitError
	if err != nil && !errors.As(err, &exit) {
		t.Fatal(err)
	}
	return out.String(), errs.String(), cmd.ProcessState.ExitCode()
}

// process is a running daemon.
type process struct {
	*exec.Cmd
	endpoint, admin string

	mu   sync.Mutex
	logs strings.Builder
	done chan struct{} // the log has ended
	line chan string   // its lines, as they come
}

func (p *process) log() string {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.logs.String()
}

// await reads the log up to a line that holds text.
func (p *process) await(t *testing.T, text string) string {
	t.Helper()
	for {
		select {
		case line, ok := <-p.line:
			if !ok {
				t.Fatalf("the daemon ended before %q:\n%s", text, p.log())
			}
			if strings.Contains(line, text) {
				return line
			}
		case <-t.Context().Done():
			t.Fatal(t.Context().Err())
		}
	}
}

// serveDaemon starts a daemon on free ports and waits until it is ready.
func serveDaemon(t *testing.T, args ...string) *process {
	t.Helper()
	p := &process{done: make(chan struct{}), line: make(chan string, 1000)}
	p.Cmd = command(t, append([]string{"serve", "--listen", "127.0.0.1:0", "--admin-listen", "127.0.0.1:0"}, args...)...)
	stderr, err := p.StderrPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := p.Start(); err != nil {
		t.Fatal(err)
	}
	go func() {
		defer close(p.done)
		defer close(p.line)
		for lines := bufio.NewScanner(stderr); lines.Scan(); {
			p.mu.Lock()
			fmt.Fprintln(&p.logs, lines.Text())
			p.mu.Unlock()
			p.line <- lines.Text()
		}
	}()
	t.Cleanup(func() {
		p.Process.Kill()
		<-p.done
		p.Wait()
	})
	ready := p.await(t, "msg=ready")
	p.endpoint = regexp.MustCompile(`endpoint=(\S+)`).FindStringSubmatch(ready)[1]
	p.admin = regexp.MustCompile(`admin=(\S+)`).FindStringSubmatch(ready)[1]
	return p
}

// stop sends a signal and expects a clean end within the contract's 10 s.
func (p *process) stop(t *testing.T, sig syscall.Signal) {
	t.Helper()
	began := time.Now()
	if err := p.Process.Signal(sig); err != nil {
		t.Fatal(err)
	}
	<-p.done
	if err := p.Wait(); err != nil {
		t.Errorf("after %v: %v\n%s", sig, err, p.log())
	}
	if took := time.Since(began); took > 10*time.Second {
		t.Errorf("stopping took %v", took)
	}
}

// client is an AWS client of the daemon with the credentials of a data directory.
func client(t *testing.T, p *process, data string, o ...func(*config.LoadOptions) error) *kms.Client {
	t.Helper()
	conf, err := config.LoadDefaultConfig(t.Context(), append(o,
		config.WithRegion("us-east-1"),
		config.WithBaseEndpoint(p.endpoint),
		config.WithSharedConfigFiles([]string{os.DevNull}),
		config.WithSharedCredentialsFiles([]string{filepath.Join(data, "credentials")}))...)
	if err != nil {
		t.Fatal(err)
	}
	return kms.NewFromConfig(conf)
}

// The operator's story: a first start, a key, a backup of the running daemon,
// a stop, a check of the store, and another machine that restores and decrypts.
func TestOperatorsStory(t *testing.T) {
	data, backup := filepath.Join(t.TempDir(), "data"), filepath.Join(t.TempDir(), "backup")
	d := serveDaemon(t, "--data", data)
	c := client(t, d, data)
	key, err := c.CreateKey(t.Context(), &kms.CreateKeyInput{})
	if err != nil {
		t.Fatal(err)
	}
	sealed, err := c.Encrypt(t.Context(), &kms.EncryptInput{KeyId: key.KeyMetadata.KeyId, Plaintext: []byte("the message")})
	if err != nil {
		t.Fatal(err)
	}
	res, err := http.Get("http://" + d.admin + "/readyz")
	if err != nil || res.StatusCode != 200 {
		t.Errorf("/readyz: %v, %v", res, err)
	}

	if out, errs, status := run(t, "backup", "--data", data, "--to", backup); status != 0 || !strings.Contains(out, backup) {
		t.Fatalf("backup of the running daemon: %d %s%s", status, out, errs)
	}
	if _, errs, status := run(t, "doctor", "--data", data, "--verify-store"); status == 0 || !strings.Contains(errs, "stop the daemon") {
		t.Errorf("doctor beside the daemon: %d %s", status, errs)
	}
	d.stop(t, syscall.SIGTERM)
	if !strings.Contains(d.log(), "msg=stopped") {
		t.Errorf("log:\n%s", d.log())
	}

	out, errs, status := run(t, "doctor", "--data", data, "--verify-store")
	if status != 0 || !strings.Contains(out, "all sound") {
		t.Errorf("doctor: %d %s%s", status, out, errs)
	}
	offline := filepath.Join(t.TempDir(), "offline")
	if out, errs, status := run(t, "backup", "--data", data, "--to", offline); status != 0 {
		t.Errorf("backup of the stopped daemon: %d %s%s", status, out, errs)
	}

	for _, from := range []string{backup, offline} {
		elsewhere := filepath.Join(t.TempDir(), "elsewhere")
		out, errs, status = run(t, "restore", "--from", from, "--data", elsewhere)
		if status != 0 || !strings.Contains(out, "root.key") || !strings.Contains(out, "credentials") {
			t.Fatalf("restore: %d %s%s", status, out, errs)
		}
		if _, errs, status := run(t, "restore", "--from", from, "--data", elsewhere); status == 0 {
			t.Errorf("restored over a store: %s", errs)
		}
		for _, name := range []string{"root.key", "credentials"} {
			b, err := os.ReadFile(filepath.Join(data, name))
			if err != nil {
				t.Fatal(err)
			}
			if err := os.WriteFile(filepath.Join(elsewhere, name), b, 0o600); err != nil {
				t.Fatal(err)
			}
		}
		d = serveDaemon(t, "--data", elsewhere)
		plain, err := client(t, d, elsewhere).Decrypt(t.Context(), &kms.DecryptInput{CiphertextBlob: sealed.CiphertextBlob})
		if err != nil || string(plain.Plaintext) != "the message" {
			t.Errorf("after the restore: %v, %v", plain, err)
		}
		d.stop(t, syscall.SIGINT)
	}
}

// Every record of a store is checked, and the exit status says what was found.
func TestDoctorFindsDamage(t *testing.T) {
	data := t.TempDir()
	d := serveDaemon(t, "--data", data)
	c := client(t, d, data)
	for range 20 {
		if _, err := c.CreateKey(t.Context(), &kms.CreateKeyInput{}); err != nil {
			t.Fatal(err)
		}
	}
	d.stop(t, syscall.SIGTERM)
	// Opening moves what is only in the log into tables.
	if out, errs, status := run(t, "doctor", "--data", data, "--verify-store"); status != 0 {
		t.Fatalf("doctor on a sound store: %d %s%s", status, out, errs)
	}
	tables, err := filepath.Glob(filepath.Join(data, "store", "*.sst"))
	if err != nil || len(tables) == 0 {
		t.Fatalf("tables: %v, %v", tables, err)
	}
	for _, path := range tables {
		b, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		b[len(b)/4] ^= 1
		if err := os.WriteFile(path, b, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	out, errs, status := run(t, "doctor", "--data", data, "--verify-store")
	if status == 0 || errs == "" {
		t.Errorf("doctor on a damaged store: %d %s%s", status, out, errs)
	}
}

// Requests that are in flight when the signal comes are answered; connections
// that merely stand do not hold the daemon up.
func TestGracefulStop(t *testing.T) {
	data := t.TempDir()
	d := serveDaemon(t, "--data", data)
	c := client(t, d, data, config.WithRetryMaxAttempts(1))
	key, err := c.CreateKey(t.Context(), &kms.CreateKeyInput{})
	if err != nil {
		t.Fatal(err)
	}

	var wg sync.WaitGroup
	busy := make(chan struct{})
	var once sync.Once
	for range 8 {
		wg.Go(func() {
			for {
				_, err := c.GenerateDataKey(t.Context(), &kms.GenerateDataKeyInput{KeyId: key.KeyMetadata.KeyId, NumberOfBytes: aws.Int32(32)})
				once.Do(func() { close(busy) })
				if err == nil {
					continue
				}
				// A request may find the door closed; none may be cut off
				// in the middle of its answer.
				if errors.Is(err, io.ErrUnexpectedEOF) {
					t.Errorf("an answer was cut off: %v", err)
				}
				return
			}
		})
	}
	<-busy
	d.stop(t, syscall.SIGTERM)
	wg.Wait()
	if strings.Contains(d.log(), "in flight") || strings.Contains(d.log(), "level=ERROR") {
		t.Errorf("log:\n%s", d.log())
	}
	if left, _ := filepath.Glob(filepath.Join(data, "*.sock")); len(left) > 0 {
		t.Errorf("left behind: %v", left)
	}
}

// A killed daemon starts again on the same directory, over its dead sockets.
func TestStartAfterKill(t *testing.T) {
	data := t.TempDir()
	socket := filepath.Join(t.TempDir(), "api.sock")
	args := []string{"--data", data, "--listen", "unix:" + socket}
	d := serveDaemon(t, args...)
	d.Process.Kill()
	<-d.done
	d.Wait()
	d = serveDaemon(t, args...)
	info, err := os.Stat(socket)
	if err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("API socket: %v, %v", info, err)
	}
	conn, err := net.Dial("unix", socket)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	io.WriteString(conn, "GET / HTTP/1.1\r\nHost: k\r\n\r\n")
	res, err := http.ReadResponse(bufio.NewReader(conn), nil)
	if err != nil || res.StatusCode < 400 {
		t.Errorf("unsigned request on the socket: %v, %v", res, err)
	}
	d.stop(t, syscall.SIGTERM)
}

// SIGHUP puts a new certificate in force, and a broken one not.
func TestHangupReloadsTLS(t *testing.T) {
	data, dir := t.TempDir(), t.TempDir()
	cert, key := filepath.Join(dir, "cert.pem"), filepath.Join(dir, "key.pem")
	serial := func(p *process) int64 {
		t.Helper()
		conn, err := tls.Dial("tcp", strings.TrimPrefix(p.endpoint, "https://"), &tls.Config{InsecureSkipVerify: true})
		if err != nil {
			t.Fatal(err)
		}
		defer conn.Close()
		return conn.ConnectionState().PeerCertificates[0].SerialNumber.Int64()
	}
	selfSigned(t, 1, cert, key)
	d := serveDaemon(t, "--data", data, "--tls-cert", cert, "--tls-key", key)
	if got := serial(d); got != 1 {
		t.Errorf("certificate %d", got)
	}
	selfSigned(t, 2, cert, key)
	d.Process.Signal(syscall.SIGHUP)
	d.await(t, "TLS files reloaded")
	if got := serial(d); got != 2 {
		t.Errorf("certificate %d after SIGHUP", got)
	}
	if err := os.WriteFile(key, []byte("junk"), 0o600); err != nil {
		t.Fatal(err)
	}
	d.Process.Signal(syscall.SIGHUP)
	if line := d.await(t, "not reloaded"); !strings.Contains(line, key) {
		t.Errorf("log line %q", line)
	}
	if got := serial(d); got != 2 {
		t.Errorf("certificate %d after a broken one", got)
	}
	d.stop(t, syscall.SIGTERM)
}

func selfSigned(t *testing.T, serial int64, certFile, keyFile string) {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{SerialNumber: big.NewInt(serial), NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour)}
	der, err := x509.CreateCertificate(rand.Reader, template, template, &key.PublicKey, key)
	if err != nil {
		t.Fatal(err)
	}
	pkcs8, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		t.Fatal(err)
	}
	for path, block := range map[string]*pem.Block{certFile: {Type: "CERTIFICATE", Bytes: der}, keyFile: {Type: "PRIVATE KEY", Bytes: pkcs8}} {
		if err := os.WriteFile(path, pem.EncodeToMemory(block), 0o600); err != nil {
			t.Fatal(err)
		}
	}
}

// A preset that is refused names the variable and does not show the secret.
func TestRefusedPreset(t *testing.T) {
	const secret = "preset/secret+preset/secret"
	data := t.TempDir()
	cmd := command(t, "serve", "--data", data, "--listen", "127.0.0.1:0", "--admin-listen", "127.0.0.1:0")
	cmd.Env = append(cmd.Env, "KEYMILL_ROOT_ACCESS_KEY_ID=short", "KEYMILL_ROOT_SECRET_ACCESS_KEY="+secret)
	out, err := cmd.CombinedOutput()
	if err == nil || !strings.Contains(string(out), "KEYMILL_ROOT_ACCESS_KEY_ID") || strings.Contains(string(out), secret) {
		t.Errorf("a short id: %v\n%s", err, out)
	}
}

func TestCommandLineErrors(t *testing.T) {
	pin := filepath.Join(t.TempDir(), "pin")
	if err := os.WriteFile(pin, []byte("1234\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, tt := range []struct {
		args []string
		want string
	}{
		{[]string{"serve", "--listen", "0.0.0.0:4599", "--data", "d"}, "insecure-http"},
		{[]string{"serve", "--quota-profile", "no-such-quotas.yml", "--data", "d"}, "no-such-quotas.yml"},
		{[]string{"serve", "--quota-profile", filepath.Join("..", "..", "daemon", "quota", "testdata", "busted_negative.yml"), "--data", "d"}, "line 3: requests: symmetric: -5 is negative"},
		{[]string{"serve", "--quota-profile", filepath.Join("..", "..", "daemon", "quota", "testdata", "busted_unknown_quota.yml"), "--data", "d"}, `line 4: requests: unknown quota "CreateKye"`},
		{[]string{"serve", "--lisen", "x"}, "unknown flag: --lisen"},
		{[]string{"serve", "more"}, "more"},
		{[]string{"serve", "--config", "missing.yml"}, "missing.yml"},
		{[]string{"doctor"}, "nothing to examine"},
		{[]string{"doctor", "--providers", "--forbid-provider", "libressl"}, `no cryptography provider is called "libressl"`},
		{[]string{"serve", "--forbid-provider", "openssl,go", "--data", "d"}, "forbid-provider: the provider go cannot be forbidden"},
		{[]string{"doctor", "--verify-store", "--data", "no-such-directory"}, "no key store"},
		{[]string{"doctor", "--hsm-module", "no-such-module.so"}, "hsm-token"},
		{[]string{"doctor", "--hsm-module", "no-such-module.so", "--hsm-token", "t", "--hsm-pin-file", pin}, "no-such-module.so"},
		{[]string{"backup", "--data", "no-such-directory"}, `"to" not set`},
		{[]string{"backup", "--data", "no-such-directory", "--to", "x"}, "no key store"},
		{[]string{"restore", "--from", "no-such-directory", "--data", filepath.Join(t.TempDir(), "d")}, "no-such-directory"},
		{[]string{"mill"}, "unknown command"},
	} {
		out, errs, status := run(t, tt.args...)
		if status == 0 || !strings.Contains(errs, tt.want) || !strings.HasPrefix(errs, "keymill: ") {
			t.Errorf("%v: status %d, %s%s; want %q", tt.args, status, out, errs, tt.want)
		}
	}
	if _, err := os.Stat("d"); err == nil {
		t.Error("a refused start made the data directory")
	}
}

func TestPrintConfigAndVersion(t *testing.T) {
	out, errs, status := run(t, "serve", "--print-config", "--data", "/d", "--regions", "all", "--account", "000000000012")
	if status != 0 || errs != "" {
		t.Fatalf("%d %s", status, errs)
	}
	for _, line := range []string{"data: /d\n", `account: "000000000012"` + "\n", "listen: 127.0.0.1:4599\n", "admin-listen: 127.0.0.1:4598\n", "quota-profile: aws\n"} {
		if !strings.Contains(out, line) {
			t.Errorf("--print-config lacks %q:\n%s", line, out)
		}
	}
	if out, _, status := run(t, "version"); status != 0 || !strings.HasPrefix(out, "keymill ") {
		t.Errorf("version: %d %q", status, out)
	}
}

// doctor looks at a token as the daemon would.
func TestDoctorOnSoftHSM(t *testing.T) {
	var module string
	for _, path := range []string{"/usr/lib/softhsm/libsofthsm2.so", "/usr/lib/x86_64-linux-gnu/softhsm/libsofthsm2.so", "/usr/lib/aarch64-linux-gnu/softhsm/libsofthsm2.so"} {
		if _, err := os.Stat(path); err == nil {
			module = path
		}
	}
	util, err := exec.LookPath("softhsm2-util")
	if err != nil || module == "" {
		t.Skip("no SoftHSM2 on this machine (package softhsm2)")
	}
	dir := t.TempDir()
	conf, pin := filepath.Join(dir, "softhsm2.conf"), filepath.Join(dir, "pin")
	if err := errors.Join(os.Mkdir(filepath.Join(dir, "tokens"), 0o700),
		os.WriteFile(conf, []byte("directories.tokendir = "+filepath.Join(dir, "tokens")+"\n"), 0o600),
		os.WriteFile(pin, []byte("1234\n"), 0o600)); err != nil {
		t.Fatal(err)
	}
	t.Setenv("SOFTHSM2_CONF", conf)
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	if out, err := exec.CommandContext(ctx, util, "--module", module, "--init-token", "--free", "--label", "keymill", "--so-pin", "5678", "--pin", "1234").CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	out, errs, status := run(t, "doctor", "--hsm-module", module, "--hsm-token", "keymill", "--hsm-pin-file", pin)
	if status != 0 || !strings.Contains(out, "CKM_AES") {
		t.Errorf("doctor: %d %s%s", status, out, errs)
	}
	out, errs, status = run(t, "doctor", "--hsm-module", module, "--hsm-token", "another", "--hsm-pin-file", pin)
	if status == 0 || !strings.Contains(out+errs, "another") {
		t.Errorf("doctor on a token that is not there: %d %s%s", status, out, errs)
	}

	data := t.TempDir()
	d := serveDaemon(t, "--data", data, "--hsm-module", module, "--hsm-token", "keymill", "--hsm-pin-file", pin)
	c := client(t, d, data)
	if _, err := c.CreateKey(t.Context(), &kms.CreateKeyInput{}); err != nil {
		t.Error(err)
	}
	if _, err := os.Stat(filepath.Join(data, "root.key")); err == nil {
		t.Error("a software root beside the HSM")
	}
	d.stop(t, syscall.SIGTERM)
	out, errs, status = run(t, "doctor", "--data", data, "--verify-store")
	if status == 0 || !strings.Contains(errs, "hsm-module") {
		t.Errorf("the store without its token: %d %s%s", status, out, errs)
	}
}
