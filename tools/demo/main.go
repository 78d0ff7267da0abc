// Command demo shows what a key management service is for, on a real file and
// with the ordinary AWS SDK for Go: it asks a running Keymill daemon for a data
// key, encrypts a file with it, stops and starts the daemon, has the data key
// decrypted and the file with it, and compares checksums. It does so once with
// keys rooted in a key file and once with keys rooted in a PKCS#11 token of
// SoftHSM2. It ends with status 1 when anything is not as it was.
package main

import (
	"context"
	"crypto/rand"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"flag"
	"fmt"
	"io"
	mathrand "math/rand/v2"
	"os"
	"os/signal"
	"path/filepath"
	"syscall"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/kms"
	"github.com/aws/aws-sdk-go-v2/service/kms/types"
	"github.com/schollz/progressbar/v3"
	"golang.org/x/term"

	"keymill/tools/e2e"
)

const region = "us-east-1"

// encryptionContext is authenticated with the data key: the same must be given to
// decrypt it.
var encryptionContext = map[string]string{"application": "keymill demo", "format": "1"}

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	if err := run(ctx, os.Args[1:]); err != nil {
		fmt.Fprintln(os.Stderr, "demo:", err)
		os.Exit(1)
	}
}

func run(ctx context.Context, args []string) error {
	flags := flag.NewFlagSet("demo", flag.ExitOnError)
	file := flags.String("file", "", "the `FILE` to encrypt; without one, a file of random bytes is made")
	size := flags.Int64("size", 100, "size of that file in `MiB`")
	root := flags.String("root", "both", "root of trust: software, softhsm or both")
	binary := flags.String("keymill", "", "the keymill `BINARY` to run; without one, it is built")
	if err := flags.Parse(args); err != nil {
		return err
	}
	if flags.NArg() > 0 || *size < 1 || *root != "software" && *root != "softhsm" && *root != "both" {
		flags.Usage()
		return errors.New("wrong arguments")
	}

	dir, err := os.MkdirTemp("", "keymill-demo-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(dir)

	if *binary == "" {
		err := step("build keymill", func() (string, error) {
			var err error
			*binary, err = e2e.Build(dir)
			return "", err
		})
		if err != nil {
			return err
		}
	}
	if *file == "" {
		*file = filepath.Join(dir, "file")
		err := step("make a file of random bytes", func() (string, error) { return makeFile(*file, *size<<20) })
		if err != nil {
			return err
		}
	}
	info, err := os.Stat(*file)
	if err != nil {
		return err
	}
	d := &demo{ctx: ctx, binary: *binary, file: *file, size: info.Size()}
	if err := step("SHA-256 of the file", func() (detail string, err error) {
		d.sum, err = d.checksum(*file)
		return d.sum, err
	}); err != nil {
		return err
	}

	if *root != "softhsm" {
		if err := d.round(filepath.Join(dir, "software"), "software root: keys rooted in a key file", nil); err != nil {
			return err
		}
	}
	if *root != "software" {
		tokenDir := filepath.Join(dir, "token")
		if err := os.Mkdir(tokenDir, 0o700); err != nil {
			return err
		}
		token, err := e2e.NewToken(tokenDir)
		if errors.Is(err, e2e.ErrNoSoftHSM) && *root == "both" {
			fmt.Printf("\nNot shown, keys rooted in a PKCS#11 token: %v\n", err)
			return nil
		}
		if err != nil {
			return err
		}
		if err := d.round(filepath.Join(dir, "softhsm"), "SoftHSM2: keys rooted in a PKCS#11 token", token); err != nil {
			return err
		}
	}
	fmt.Println("\nThe file came back unchanged.")
	return nil
}

// makeFile writes n pseudo-random bytes: incompressible and quick to make.
func makeFile(path string, n int64) (string, error) {
	var seed [32]byte
	rand.Read(seed[:])
	f, err := os.Create(path)
	if err != nil {
		return "", err
	}
	_, err = io.CopyN(f, mathrand.NewChaCha8(seed), n)
	return fmt.Sprintf("%d bytes", n), errors.Join(err, f.Close())
}

// A demo is one file on its way.
type demo struct {
	ctx    context.Context
	binary string
	file   string
	size   int64
	sum    string // SHA-256, hex
}

// round takes the file through one daemon, with its data and results in dir.
func (d *demo) round(dir, title string, token *e2e.Token) (err error) {
	fmt.Printf("\n%s\n", title)
	if err := os.Mkdir(dir, 0o700); err != nil {
		return err
	}
	var daemon *e2e.Daemon
	if err := step("start the daemon", func() (string, error) {
		var err error
		if daemon, err = e2e.Start(d.ctx, e2e.Options{Binary: d.binary, Dir: filepath.Join(dir, "data"), Token: token}); err != nil {
			return "", err
		}
		return daemon.URL(), nil
	}); err != nil {
		return err
	}
	defer daemon.Kill() // does nothing after Stop
	client, err := daemon.Client(d.ctx, region)
	if err != nil {
		return err
	}

	var key *types.KeyMetadata
	if err := step("CreateKey", func() (string, error) {
		out, err := client.CreateKey(d.ctx, &kms.CreateKeyInput{Description: aws.String("keymill demo")})
		if err != nil {
			return "", err
		}
		key = out.KeyMetadata
		return *key.Arn, nil
	}); err != nil {
		return err
	}
	var dataKey *kms.GenerateDataKeyOutput
	if err := step("GenerateDataKey", func() (string, error) {
		dataKey, err = client.GenerateDataKey(d.ctx, &kms.GenerateDataKeyInput{KeyId: key.KeyId, KeySpec: types.DataKeySpecAes256, EncryptionContext: encryptionContext})
		if err != nil {
			return "", err
		}
		return fmt.Sprintf("AES-256, %d bytes when encrypted", len(dataKey.CiphertextBlob)), nil
	}); err != nil {
		return err
	}
	sealed, opened := filepath.Join(dir, "sealed"), filepath.Join(dir, "opened")
	err = d.transform("encrypt the file", d.file, sealed, d.size, func(w io.Writer, r io.Reader) error {
		return encrypt(w, r, dataKey.Plaintext, dataKey.CiphertextBlob)
	})
	clear(dataKey.Plaintext)
	if err != nil {
		return err
	}

	if err := step("stop the daemon and start it again", func() (string, error) { return "", daemon.Restart(d.ctx) }); err != nil {
		return err
	}

	// All that is left of the data key is in the encrypted file.
	unwrap := func(blob []byte) ([]byte, error) {
		begin := time.Now()
		out, err := client.Decrypt(d.ctx, &kms.DecryptInput{CiphertextBlob: blob, EncryptionContext: encryptionContext})
		if err != nil {
			return nil, err
		}
		report("Decrypt the data key", begin, *out.KeyId)
		return out.Plaintext, nil
	}
	sealedSize := sealedSize(d.size, dataKey.CiphertextBlob)
	if err := d.transform("decrypt the file", sealed, opened, sealedSize, func(w io.Writer, r io.Reader) error {
		return decrypt(w, r, unwrap)
	}); err != nil {
		return err
	}
	if err := step("compare checksums", func() (string, error) {
		sum, err := d.checksum(opened)
		if err == nil && sum != d.sum {
			err = fmt.Errorf("the file is not what it was: SHA-256 %s, was %s", sum, d.sum)
		}
		return sum, err
	}); err != nil {
		return err
	}
	return step("stop the daemon", func() (string, error) { return "", daemon.Stop() })
}

// transform writes what f makes of the file from into the file to, and shows how
// far it is.
func (d *demo) transform(what, from, to string, size int64, f func(io.Writer, io.Reader) error) error {
	return step(what, func() (string, error) {
		begin := time.Now()
		in, err := os.Open(from)
		if err != nil {
			return "", err
		}
		defer in.Close()
		out, err := os.OpenFile(to, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
		if err != nil {
			return "", err
		}
		bar := progress(what, size)
		err = errors.Join(f(out, &counted{d.ctx, in, bar}), out.Close(), bar.Finish())
		seconds := time.Since(begin).Seconds()
		return fmt.Sprintf("%.0f MB/s", float64(d.size)/1e6/seconds), err
	})
}

// counted is a reader that moves a bar and ends with its context.
type counted struct {
	ctx context.Context
	r   io.Reader
	bar *progressbar.ProgressBar
}

func (c *counted) Read(p []byte) (int, error) {
	if err := c.ctx.Err(); err != nil {
		return 0, err
	}
	n, err := c.r.Read(p)
	c.bar.Add(n)
	return n, err
}

// progress returns a bar that is seen on a terminal only.
func progress(what string, size int64) *progressbar.ProgressBar {
	return progressbar.NewOptions64(size,
		progressbar.OptionSetDescription("  "+what),
		progressbar.OptionSetWriter(os.Stderr),
		progressbar.OptionSetVisibility(term.IsTerminal(int(os.Stderr.Fd()))),
		progressbar.OptionShowBytes(true),
		progressbar.OptionThrottle(65*time.Millisecond),
		progressbar.OptionClearOnFinish(),
	)
}

func (d *demo) checksum(path string) (string, error) {
	f, err := os.Open(path)
	if err != nil {
		return "", err
	}
	defer f.Close()
	h := sha256.New()
	if _, err := io.Copy(h, f); err != nil {
		return "", err
	}
	return hex.EncodeToString(h.Sum(nil)), nil
}

// step does one thing and reports how long it took.
func step(what string, f func() (detail string, err error)) error {
	begin := time.Now()
	detail, err := f()
	if err != nil {
		return fmt.Errorf("%s: %w", what, err)
	}
	report(what, begin, detail)
	return nil
}

func report(what string, begin time.Time, detail string) {
	fmt.Printf("  %-36s %8.1f ms  %s\n", what, float64(time.Since(begin).Microseconds())/1000, detail)
}
