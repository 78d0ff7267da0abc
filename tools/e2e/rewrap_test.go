package e2e

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/aws/aws-sdk-go-v2/service/kms"
	"github.com/aws/aws-sdk-go-v2/service/kms/types"
)

// A ring is a daemon's keys with a ciphertext of each.
type ring struct {
	*story
	ids   []string
	blobs [][]byte
}

// newRing makes n keys, many at once.
func newRing(s *story, n int) *ring {
	s.Helper()
	r := &ring{story: s, ids: make([]string, n), blobs: make([][]byte, n)}
	var next atomic.Int64
	var wg sync.WaitGroup
	for range 8 {
		wg.Go(func() {
			for i := int(next.Add(1)) - 1; i < n; i = int(next.Add(1)) - 1 {
				key, err := s.CreateKey(s.ctx(), &kms.CreateKeyInput{})
				if err != nil {
					s.Error(err)
					return
				}
				r.ids[i] = *key.KeyMetadata.KeyId
				out, err := s.Encrypt(s.ctx(), &kms.EncryptInput{KeyId: &r.ids[i], Plaintext: []byte(r.ids[i])})
				if err != nil {
					s.Error(err)
					return
				}
				r.blobs[i] = out.CiphertextBlob
			}
		})
	}
	wg.Wait()
	if s.Failed() {
		s.FailNow()
	}
	return r
}

// decrypt opens ciphertext i.
func (r *ring) decrypt(ctx context.Context, i int) error {
	out, err := r.Decrypt(ctx, &kms.DecryptInput{CiphertextBlob: r.blobs[i]})
	if err == nil && string(out.Plaintext) != r.ids[i] {
		err = fmt.Errorf("key %s decrypts to %q", r.ids[i], out.Plaintext)
	}
	return err
}

// check opens all ciphertexts and makes a key.
func (r *ring) check(when string) {
	r.Helper()
	for i := range r.ids {
		if err := r.decrypt(r.ctx(), i); err != nil {
			r.Fatalf("%s: %v\n%s", when, err, r.d.Log())
		}
	}
	id := r.symmetricKey()
	blob := must(r.Encrypt(r.ctx(), &kms.EncryptInput{KeyId: &id, Plaintext: []byte(id)}))(r).CiphertextBlob
	r.ids, r.blobs = append(r.ids, id), append(r.blobs, blob)
}

// traffic uses the first n keys and makes new ones until what it returns is called,
// which fails the test when a single request has failed.
func (r *ring) traffic(n int) (stop func()) {
	ctx, cancel := context.WithCancel(r.ctx())
	var wg sync.WaitGroup
	var done atomic.Int64
	for w := range 4 {
		rng := rand.New(rand.NewPCG(uint64(w), 3))
		wg.Go(func() {
			for ctx.Err() == nil {
				i := rng.IntN(n)
				var err error
				switch rng.IntN(6) {
				case 0:
					_, err = r.GenerateDataKey(ctx, &kms.GenerateDataKeyInput{KeyId: &r.ids[i], KeySpec: types.DataKeySpecAes256})
				case 1:
					_, err = r.CreateKey(ctx, &kms.CreateKeyInput{KeySpec: types.KeySpecEccNistP256, KeyUsage: types.KeyUsageTypeSignVerify})
				default:
					err = r.decrypt(ctx, i)
				}
				if err != nil && ctx.Err() == nil {
					r.Errorf("during the move: %v", err)
					return
				}
				done.Add(1)
			}
		})
	}
	return func() {
		r.Helper()
		cancel()
		wg.Wait()
		if done.Load() < 10 {
			r.Errorf("%d requests during the move", done.Load())
		}
	}
}

// TestRewrap moves the store of a daemon that serves from one root of trust to another,
// then takes the old one away.
func TestRewrap(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		name          string
		from, to, opt string
	}{
		{"software to HSM", "", "a", ""},
		{"HSM to another token", "a", "b", ""},
		{"HSM to software", "a", "", "--to-software"},
		{"rotation on the HSM", "a", "a", "--rotate"},
		{"rotation on the software root", "", "", "--rotate"},
	} {
		t.Run(c.name, func(t *testing.T) {
			a := token(t)
			b, err := a.Another("keymill-b")
			if err != nil {
				t.Fatal(err)
			}
			tokens := map[string]*Token{"a": a, "b": b, "": nil}
			from, to := tokens[c.from], tokens[c.to]
			d := start(t, Options{Token: from, Env: a.Env()})
			r := newRing(storyIn(t, d, "us-east-1"), 60)
			before := filepath.Join(t.TempDir(), "before")
			if out, err := keymill(t, nil, "backup", "--data", d.Dir(), "--to", before); err != nil {
				t.Fatalf("%v\n%s", err, out)
			}
			if err := d.Restart(t.Context()); err != nil { // with nothing cached
				t.Fatal(err)
			}
			flags := []string{c.opt}
			if c.opt == "" {
				flags = []string{"--to-hsm-module", to.Module, "--to-hsm-token", to.Label, "--to-hsm-pin-file", to.PINFile}
			}
			stop := r.traffic(30)
			out, err := keymill(t, nil, append([]string{"rewrap", "--data", d.Dir()}, flags...)...)
			stop()
			if err != nil {
				t.Fatalf("%v\n%s", err, out)
			}
			for _, text := range []string{"the store key are under domain key", "--destroy-old"} {
				if !strings.Contains(out, text) {
					t.Errorf("the output lacks %q:\n%s", text, out)
				}
			}
			if moves := c.from != c.to; moves != strings.Contains(out, "configuration") {
				t.Errorf("the output on the configuration:\n%s", out)
			}

			if c.from == c.to {
				r.check("after a rotation")
				if err := d.Restart(t.Context()); err != nil {
					t.Fatal(err)
				}
				r.check("after a restart")
				return
			}

			// Half of the keys have not been used since the start: they need the root.
			back := takeAway(t, d, from)
			r.check("without the old root of trust")
			back()
			if err := d.Stop(); err != nil {
				t.Fatal(err)
			}
			if err := d.StartAgain(t.Context()); err == nil || !strings.Contains(d.Log(), "belongs to another root of trust") || !strings.Contains(d.Log(), "keymill rewrap") {
				t.Errorf("with the old root of trust: %v", err)
			}
			d.opts.Token = to
			back = takeAway(t, d, from)
			if err := d.StartAgain(t.Context()); err != nil {
				t.Fatal(err)
			}
			r.check("after a restart on the new root of trust alone")
			back()

			// The backup from before needs the old domain key, until it is destroyed.
			elsewhere := filepath.Join(t.TempDir(), "data")
			restore := func() *Daemon {
				os.RemoveAll(elsewhere)
				if out, err := keymill(t, nil, "restore", "--data", elsewhere, "--from", before); err != nil {
					t.Fatalf("%v\n%s", err, out)
				}
				copyFile(t, d.CredentialsFile(), filepath.Join(elsewhere, "credentials"))
				if from == nil {
					copyFile(t, filepath.Join(d.Dir(), "root.key"), filepath.Join(elsewhere, "root.key"))
				}
				return &Daemon{opts: Options{Binary: binary, Dir: elsewhere, Token: from, Env: a.Env()}, addr: "127.0.0.1:0", adminAddr: "127.0.0.1:0"}
			}
			old := restore()
			o := old.opts
			if err := start(t, o).Stop(); err != nil {
				t.Errorf("a backup from before the move: %v", err)
			}
			out, err = keymill(t, nil, "rewrap", "--data", d.Dir(), "--destroy-old")
			if err != nil || !strings.Contains(out, "destroyed") {
				t.Fatalf("%v\n%s", err, out)
			}
			if out, err := restore().Command().CombinedOutput(); err == nil || !strings.Contains(string(out), "belongs to another root of trust") {
				t.Errorf("a backup whose domain key was destroyed: %v\n%s", err, out)
			}
			r.check("after the old domain key was destroyed")
			if out, err := keymill(t, nil, "rewrap", "--data", d.Dir(), "--status"); err != nil || strings.Contains(out, "not destroyed") || strings.Contains(out, "unfinished") {
				t.Errorf("%v\n%s", err, out)
			}
		})
	}
}

// takeAway takes a root of trust from a daemon's machine.
func takeAway(t *testing.T, d *Daemon, root *Token) (back func()) {
	t.Helper()
	undo := func() error { return nil }
	var err error
	if root != nil {
		undo, err = root.Remove()
	} else {
		path := filepath.Join(d.Dir(), "root.key")
		err = os.Rename(path, path+".away")
		undo = func() error { return os.Rename(path+".away", path) }
	}
	if err != nil {
		t.Fatal(err)
	}
	return func() {
		t.Helper()
		if err := undo(); err != nil {
			t.Error(err)
		}
	}
}

// rewrapStatus is what keymill rewrap --status --json prints.
type rewrapStatus struct {
	DomainKey string `json:"domain_key"`
	Pending   *struct {
		Target string `json:"target"`
	} `json:"pending"`
}

func statusOf(t *testing.T, d *Daemon) (st rewrapStatus) {
	t.Helper()
	out, err := keymill(t, nil, "rewrap", "--data", d.Dir(), "--status", "--json")
	if err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	if err := json.Unmarshal([]byte(out), &st); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	return st
}

// TestRewrapKilled kills the daemon, or the client, in the middle of moves between two
// tokens. The daemon starts again with the configuration that it had, serves everything,
// and the command run again finishes.
func TestRewrapKilled(t *testing.T) {
	t.Parallel()
	a := token(t)
	b, err := a.Another("keymill-b")
	if err != nil {
		t.Fatal(err)
	}
	d := start(t, Options{Token: a, Env: a.Env()})
	r := newRing(storyIn(t, d, "us-east-1"), 400)
	rng := rand.New(rand.NewPCG(uint64(time.Now().UnixNano()), 0))
	here, there := a, b
	resumed, took := 0, time.Duration(0)
	for round := 0; round < 12 || resumed < 2; round++ {
		if round == 60 {
			t.Fatalf("%d of %d rounds were caught in the middle", resumed, round)
		}
		flags := []string{"rewrap", "--data", d.Dir(), "--to-hsm-module", there.Module, "--to-hsm-token", there.Label, "--to-hsm-pin-file", there.PINFile}
		if round == 0 { // undisturbed, to learn how long it takes
			began := time.Now()
			if out, err := keymill(t, nil, flags...); err != nil {
				t.Fatalf("%v\n%s", err, out)
			}
			took = time.Since(began)
		} else {
			before := statusOf(t, d).DomainKey
			cmd := exec.CommandContext(t.Context(), binary, flags...)
			cmd.Env = environWithout("KEYMILL_")
			var out bytes.Buffer
			cmd.Stdout, cmd.Stderr = &out, &out
			if err := cmd.Start(); err != nil {
				t.Fatal(err)
			}
			victim := d.cmd.Process
			if round%2 == 0 {
				victim = cmd.Process
			}
			kill := time.AfterFunc(time.Duration(rng.Int64N(int64(took))), func() { victim.Kill() })
			err := cmd.Wait()
			kill.Stop()
			if round%2 == 1 {
				d.Kill() // at the latest now
				if err != nil && !slices.ContainsFunc([]string{
					"the daemon ended", "couldn't reach the daemon",
					"without its root of trust", // none was there when it came, and it was told of no token
				}, func(text string) bool { return strings.Contains(out.String(), text) }) {
					t.Errorf("the client's last words:\n%s", &out)
				}
				// What is configured is the root that the store came from, until it is done.
				if err := d.StartAgain(t.Context()); err != nil {
					if !strings.Contains(err.Error(), "belongs to another root of trust") {
						t.Fatal(err)
					}
					d.opts.Token = there // it was done
					if err := d.StartAgain(t.Context()); err != nil {
						t.Fatal(err)
					}
				}
			}
			st := statusOf(t, d)
			if st.Pending != nil {
				resumed++
				if round%2 == 1 {
					checkSome(r, rng)
				}
				// The command without a target goes on as well as the same command does.
				if round%3 == 0 {
					flags = flags[:3]
				}
				if round%5 == 0 {
					d.checkNeedsBoth(t, there)
				}
				stop := r.traffic(50)
				out, err := keymill(t, nil, flags...)
				stop()
				if err != nil {
					t.Fatalf("round %d: %v\n%s", round, err, out)
				}
			} else if st.DomainKey == before {
				// Killed before it began; the next round starts from the same place.
				continue
			}
		}
		d.opts.Token = there
		here, there = there, here
		checkSome(r, rng)
	}
	t.Logf("%d moves were caught in the middle and finished; an undisturbed one took %v", resumed, took)
	if err := d.Restart(t.Context()); err != nil {
		t.Fatal(err)
	}
	r.check("in the end")
	if err := d.Stop(); err != nil {
		t.Fatal(err)
	}
	args := []string{"doctor", "--verify-store", "--data", d.Dir(), "--hsm-module", here.Module, "--hsm-token", here.Label, "--hsm-pin-file", here.PINFile}
	if out, err := keymill(t, here.Env(), args...); err != nil || !strings.Contains(out, "all sound") {
		t.Errorf("%v\n%s", err, out)
	}
}

// checkNeedsBoth checks that a daemon in the middle of a move says what it misses when
// the second token is not there, and starts when it is back.
func (d *Daemon) checkNeedsBoth(t *testing.T, second *Token) {
	t.Helper()
	if err := d.Stop(); err != nil {
		t.Fatal(err)
	}
	back, err := second.Remove()
	if err != nil {
		t.Fatal(err)
	}
	err = d.StartAgain(t.Context())
	if err == nil {
		t.Fatal("a daemon started without the second root of trust")
	}
	for _, text := range []string{"has not finished, so it needs both", second.Label, "stop the daemon"} {
		if !strings.Contains(err.Error(), text) {
			t.Errorf("without the second token the error lacks %q: %v", text, err)
		}
	}
	if err := back(); err != nil {
		t.Fatal(err)
	}
	if err := d.StartAgain(t.Context()); err != nil {
		t.Fatal(err)
	}
}

// checkSome opens a few ciphertexts.
func checkSome(r *ring, rng *rand.Rand) {
	r.Helper()
	for range 40 {
		if err := r.decrypt(r.ctx(), rng.IntN(len(r.ids))); err != nil {
			r.Fatalf("%v\n%s", err, r.d.Log())
		}
	}
}

// TestRewrapOffline does without a daemon what the other tests do with one.
func TestRewrapOffline(t *testing.T) {
	t.Parallel()
	a := token(t)
	d := start(t, Options{Env: a.Env()})
	r := newRing(storyIn(t, d, "us-east-1"), 30)
	if err := d.Stop(); err != nil {
		t.Fatal(err)
	}
	rewrap := func(args ...string) (string, error) {
		return keymill(t, a.Env(), append([]string{"rewrap", "--data", d.Dir()}, args...)...)
	}
	toToken := []string{"--to-hsm-module", a.Module, "--to-hsm-token", a.Label, "--to-hsm-pin-file", a.PINFile}
	onToken := []string{"--hsm-module", a.Module, "--hsm-token", a.Label, "--hsm-pin-file", a.PINFile}

	for _, row := range []struct {
		args []string
		want string
	}{
		{nil, "say where the store is to go"},
		{[]string{"--back"}, "nothing to turn round"},
		{[]string{"--to-software"}, "on the software root already"},
		{[]string{"--rotate", "--to-software"}, "give one of"},
		{toToken[:4], "belong together"},
		{append([]string{"--to-hsm-pin-file", os.DevNull}, toToken[:4]...), "PIN file"},
		{[]string{"--to-hsm-module", "/no/such.so", "--to-hsm-token", "t", "--to-hsm-pin-file", a.PINFile}, "/no/such.so"},
	} {
		if out, err := rewrap(row.args...); err == nil || !strings.Contains(out, row.want) {
			t.Errorf("%v: %v, want %q\n%s", row.args, err, row.want, out)
		}
	}

	out, err := rewrap(append(toToken, "--json")...)
	if err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	lines := strings.Split(strings.TrimSpace(out), "\n")
	var last struct {
		Result *struct {
			Moved  bool   `json:"moved"`
			Target string `json:"target"`
		} `json:"result"`
	}
	if err := json.Unmarshal([]byte(lines[len(lines)-1]), &last); err != nil || last.Result == nil || !last.Result.Moved || last.Result.Target == "" {
		t.Errorf("the last line: %v\n%s", err, out)
	}
	d.opts.Token = a
	if err := d.StartAgain(t.Context()); err != nil {
		t.Fatal(err)
	}
	r.check("after a move without a daemon")
	if err := d.Stop(); err != nil {
		t.Fatal(err)
	}
	if out, err := rewrap("--rotate"); err == nil || !strings.Contains(out, "belongs to another root of trust") {
		t.Errorf("with the old root of trust: %v\n%s", err, out)
	}
	if out, err := rewrap(append(onToken, "--rotate", "--destroy-old")...); err != nil || strings.Count(out, "destroyed") != 2 {
		t.Errorf("%v\n%s", err, out)
	}
	if out, err := rewrap(append(onToken, "--to-software")...); err != nil || !strings.Contains(out, "take hsm-module") {
		t.Errorf("%v\n%s", err, out)
	}
	d.opts.Token = nil
	if err := d.StartAgain(t.Context()); err != nil {
		t.Fatal(err)
	}
	r.check("back on the software root")
}
