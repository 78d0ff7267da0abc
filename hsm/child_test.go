//go:build cgo && linux

package hsm_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"keymill/hsm"
	"keymill/hsm/hsmtest"
)

// inChild has the tests that open tokens do so in a child process.
var inChild bool

// What holds for a module in this process holds for one in a child.
func TestChildDoesTheSame(t *testing.T) {
	inChild = true
	defer func() { inChild = false }()
	for _, c := range []struct {
		name string
		test func(*testing.T)
	}{
		{"SoftHSM", TestSoftHSM},
		{"StartRefusals", TestStartRefusals},
		{"Report", TestReport},
		{"TokenFaults", TestTokenFaults},
		{"TokenReset", TestTokenReset},
		{"FewSessions", TestFewSessions},
		{"CallsPerBatch", TestCallsPerBatch},
		{"BatchIsSpreadOverSessions", TestBatchIsSpreadOverSessions},
		{"SessionsAreNeverShared", TestSessionsAreNeverShared},
		{"ContextEndsTheWait", TestContextEndsTheWait},
		{"HangingCalls", TestHangingCalls},
	} {
		t.Run(c.name, c.test)
	}
}

// unwrapUntilDone decrypts again for as long as the error is one that may pass, and
// returns the number of tries.
func unwrapUntilDone(t *testing.T, r hsm.Root, id hsm.DomainKeyID, wraps [][]byte, n int) (tries int) {
	t.Helper()
	for {
		tries++
		it := decryptOne(r, context.Background(), id, wraps[n])
		switch {
		case it.Err == nil:
			if !bytes.Equal(it.Out, kek(n)) {
				t.Error("a wrong answer")
			}
			return tries
		case hsm.Classify(it.Err) != hsm.Retry || it.Out != nil:
			t.Errorf("decrypt: %v", it.Err)
			return tries
		case tries > 100_000:
			t.Errorf("decrypt never succeeds: %v", it.Err)
			return tries
		}
	}
}

// The child is killed again and again under load: every operation succeeds in the end,
// with the right result, and nobody repeats one because of a single kill.
func TestKilledUnderLoad(t *testing.T) {
	config := hsmtest.SoftHSM(t)
	config.Child = hsmtest.Child
	r := openToken(t, config)
	id := newDomainKey(t, r)
	wraps := wrapAll(t, r, id, 64)

	var stop atomic.Bool
	var done, longest, again atomic.Int64
	var wg sync.WaitGroup
	for g := range 8 {
		wg.Go(func() {
			for i := g; !stop.Load(); i++ {
				began := time.Now()
				if i%8 == 0 {
					for n, it := range encryptUntilDone(t, r, id, 3) {
						back := decryptOne(r, context.Background(), id, it)
						if back.Err == nil && !bytes.Equal(back.Out, kek(n)) {
							t.Error("what was wrapped unwraps to something else")
						}
					}
				}
				if unwrapUntilDone(t, r, id, wraps, i%len(wraps)) > 1 {
					again.Add(1)
				}
				took := int64(time.Since(began))
				for {
					old := longest.Load()
					if took <= old || longest.CompareAndSwap(old, took) {
						break
					}
				}
				done.Add(1)
			}
		})
	}
	const kills = 5
	var recovery time.Duration
	for range kills {
		served := done.Load()
		eventually(t, "work is done", func() bool { return done.Load() > served+100 })
		pid := r.Info().Process
		killed := time.Now()
		if err := syscall.Kill(pid, syscall.SIGKILL); err != nil {
			t.Fatal(err)
		}
		eventually(t, "another process", func() bool { now := r.Info().Process; return now != 0 && now != pid })
		it := decryptOne(r, context.Background(), id, wraps[0])
		if it.Err != nil {
			t.Error(it.Err)
		}
		recovery = max(recovery, time.Since(killed))
	}
	stop.Store(true)
	wg.Wait()
	checkUnwraps(t, r, id, wraps)
	if n := r.Info().Restarts; n != kills {
		t.Errorf("%d restarts after %d kills", n, kills)
	}
	t.Logf("%d operations; longest recovery %v, longest operation %v, %d operations were repeated by their callers",
		done.Load(), recovery, time.Duration(longest.Load()), again.Load())
}

func encryptUntilDone(t *testing.T, r hsm.Root, id hsm.DomainKeyID, n int) [][]byte {
	t.Helper()
	out := make([][]byte, n)
	for i := range out {
		for out[i] == nil {
			items := []hsm.Item{{In: kek(i)}}
			r.Encrypt(context.Background(), id, items)
			if err := items[0].Err; err != nil && hsm.Classify(err) != hsm.Retry {
				t.Errorf("encrypt: %v", err)
				return nil
			}
			out[i] = items[0].Out
		}
	}
	return out
}

// How a crash of the module looks to the callers, call by call.
func TestModuleCrashes(t *testing.T) {
	ctx := context.Background()
	for _, c := range []struct {
		name     string
		function hsmtest.ShimFunc
		fault    hsmtest.ShimFault
		do       func(r hsm.Root, id hsm.DomainKeyID, wraps [][]byte) error
		err      error // nil: nobody notices
		restarts int
	}{
		{"one crash in C_Decrypt", hsmtest.CDecrypt, hsmtest.ShimFault{Count: 1, Crash: hsmtest.WildPointer}, unwrapFirst, nil, 1},
		{"one abort in C_DecryptInit", hsmtest.CDecryptInit, hsmtest.ShimFault{Count: 1, Crash: hsmtest.Abort}, unwrapFirst, nil, 1},
		{"the third of many crashes", hsmtest.CDecrypt, hsmtest.ShimFault{Skip: 2, Count: 1, Crash: hsmtest.WildPointer}, unwrapAll, nil, 1},
		{"one crash in C_Encrypt", hsmtest.CEncrypt, hsmtest.ShimFault{Count: 1, Crash: hsmtest.Abort}, func(r hsm.Root, id hsm.DomainKeyID, _ [][]byte) error {
			items := []hsm.Item{{In: kek(0)}}
			r.Encrypt(ctx, id, items)
			return items[0].Err
		}, nil, 1},
		{"one crash in C_GenerateRandom", hsmtest.CGenerateRandom, hsmtest.ShimFault{Count: 1, Crash: hsmtest.WildPointer}, func(r hsm.Root, _ hsm.DomainKeyID, _ [][]byte) error {
			return r.Random(ctx, [][]byte{make([]byte, 32)})
		}, nil, 1},
		// Whether the domain key was made is not known; it is not made twice behind the
		// caller's back. (The start's self test calls C_GenerateKey once.)
		{"a crash in C_GenerateKey", hsmtest.CGenerateKey, hsmtest.ShimFault{Count: 1, Crash: hsmtest.Abort}, func(r hsm.Root, _ hsm.DomainKeyID, _ [][]byte) error {
			_, err := r.CreateDomainKey(ctx)
			return err
		}, hsm.ErrDevice, 1},
	} {
		t.Run(c.name, func(t *testing.T) {
			token := hsmtest.Shim(t)
			token.Config.Child = hsmtest.Child
			token.Config.Sessions = 2
			r := openToken(t, token.Config)
			id := newDomainKey(t, r)
			wraps := wrapAll(t, r, id, 8)
			token.Break(c.function, c.fault)
			err := c.do(r, id, wraps)
			if c.err == nil && err != nil || c.err != nil && (!errors.Is(err, c.err) || hsm.Classify(err) != hsm.Retry) {
				t.Errorf("got %v, want %v", err, c.err)
			}
			eventually(t, "a process serves", func() bool { i := r.Info(); return i.Process != 0 && i.Restarts >= c.restarts })
			checkUnwraps(t, r, id, wraps)
			if n := r.Info().Restarts; n != c.restarts {
				t.Errorf("%d restarts, want %d", n, c.restarts)
			}
		})
	}
}

func unwrapFirst(r hsm.Root, id hsm.DomainKeyID, wraps [][]byte) error {
	it := decryptOne(r, context.Background(), id, wraps[0])
	if it.Err == nil && !bytes.Equal(it.Out, kek(0)) {
		return errors.New("a wrong answer")
	}
	return it.Err
}

func unwrapAll(r hsm.Root, id hsm.DomainKeyID, wraps [][]byte) error {
	items := make([]hsm.Item, len(wraps))
	for i := range items {
		items[i].In = wraps[i]
	}
	r.Decrypt(context.Background(), id, items)
	var all []error
	for i, it := range items {
		all = append(all, it.Err)
		if it.Err == nil && !bytes.Equal(it.Out, kek(i)) {
			all = append(all, fmt.Errorf("item %d: a wrong answer", i))
		}
	}
	return errors.Join(all...)
}

// An operation that crashes the module every time fails after the second crash, and a
// module that crashes at its start is reported as that. Neither takes us along.
func TestModuleCrashesAlways(t *testing.T) {
	token := hsmtest.Shim(t)
	token.Config.Child = hsmtest.Child
	token.Config.Timeout = 2 * time.Second
	r := openToken(t, token.Config)
	id := newDomainKey(t, r)
	wraps := wrapAll(t, r, id, 2)

	// The start's self test decrypts as well: let it pass.
	token.Break(hsmtest.CDestroyObject, hsmtest.ShimFault{Count: 1000, Crash: hsmtest.WildPointer})
	token.Break(hsmtest.CDecrypt, hsmtest.ShimFault{Count: 1, Crash: hsmtest.WildPointer})
	it := decryptOne(r, context.Background(), id, wraps[0])
	if hsm.Classify(it.Err) != hsm.Retry || it.Err == nil || it.Out != nil {
		t.Errorf("while no process lives through its start: %v", it.Err)
	}
	eventually(t, "the trouble is reported", func() bool {
		i := r.Info()
		return i.Process == 0 && strings.Contains(strings.Join(i.Notices, "\n"), "during its start")
	})
	if _, err := hsm.OpenPKCS11(token.Config); !errors.Is(err, hsm.ErrDevice) {
		t.Errorf("opening: %v", err)
	}
	if _, err := hsm.Inspect(token.Config); !errors.Is(err, hsm.ErrDevice) {
		t.Errorf("inspecting: %v", err)
	}
	token.Break(hsmtest.CDestroyObject, hsmtest.ShimFault{})
	// A process that died while SoftHSM wrote the token's flags, as it does at each
	// login, can leave one that starts meanwhile without the token: it is replaced.
	eventually(t, "a process lives", func() bool { return decryptOne(r, context.Background(), id, wraps[0]).Err == nil })
	checkUnwraps(t, r, id, wraps)
}

// A PIN that was refused is not tried again by the next process, and neither is it tried
// by a process that follows one which was refused.
func TestRefusedPINIsNotTriedByTheNextProcess(t *testing.T) {
	token := hsmtest.Shim(t)
	token.Config.Child = hsmtest.Child
	r := openToken(t, token.Config)
	id := newDomainKey(t, r)
	wraps := wrapAll(t, r, id, 1)
	token.WritePIN(t, "not the PIN\n")
	logins := token.Calls(hsmtest.CLogin)
	if err := syscall.Kill(r.Info().Process, syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	for range 5 {
		it := decryptOne(r, context.Background(), id, wraps[0])
		if !errors.Is(it.Err, hsm.ErrPINIncorrect) || hsm.Classify(it.Err) != hsm.Fatal {
			t.Errorf("got %v", it.Err)
		}
	}
	if n := token.Calls(hsmtest.CLogin) - logins; n != 1 {
		t.Errorf("the wrong PIN was tried %d times", n)
	}
}

// A child that is stopped, not dead, is replaced; callers that have a deadline keep it.
func TestSilentChild(t *testing.T) {
	config := hsmtest.SoftHSM(t)
	config.Child = hsmtest.Child
	config.Timeout = time.Second
	r := openToken(t, config)
	id := newDomainKey(t, r)
	wraps := wrapAll(t, r, id, 1)
	pid := r.Info().Process
	if err := syscall.Kill(pid, syscall.SIGSTOP); err != nil {
		t.Fatal(err)
	}
	eventually(t, "it stops", func() bool {
		b, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
		return err == nil && bytes.Contains(b, []byte(") T "))
	})
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Millisecond)
	defer cancel()
	if it := decryptOne(r, ctx, id, wraps[0]); !errors.Is(it.Err, hsm.ErrTimeout) {
		t.Errorf("within the deadline: %v", it.Err)
	}
	eventually(t, "it is replaced", func() bool { return r.Info().Process != pid })
	checkUnwraps(t, r, id, wraps)
}

// When everything hangs for longer than a call may take, a new process has new threads.
func TestHungModuleIsReplaced(t *testing.T) {
	token := hsmtest.Shim(t)
	token.Config.Child = hsmtest.Child
	token.Config.Sessions = 2
	token.Config.Timeout = 2 * time.Second // more than a busy machine takes for a call
	r := openToken(t, token.Config)
	id := newDomainKey(t, r)
	wraps := wrapAll(t, r, id, 1)
	// Two sessions, and the one that takes the place of the first: then none is left.
	token.Break(hsmtest.CDecrypt, hsmtest.ShimFault{Count: 3, Hang: true})
	unwrapUntilDone(t, r, id, wraps, 0)
	eventually(t, "it was replaced", func() bool { return r.Info().Restarts == 1 })
	checkUnwraps(t, r, id, wraps)
}

// The process has neither the PIN nor anything else of interest on its command line or
// in its environment, leaves no core, and ends with its parent's socket.
func TestChildProcess(t *testing.T) {
	dir := hsmtest.NewSoftHSMDir(t)
	dir.Config.Child = hsmtest.Child
	r := openToken(t, dir.Config)
	pid := r.Info().Process
	checkProcess(t, pid, dir.PIN())
	if b, err := os.ReadFile(fmt.Sprintf("/proc/%d/maps", pid)); err != nil || !bytes.Contains(b, []byte("softhsm")) {
		t.Errorf("the module is not in the child: %v", err)
	}
	if err := r.Close(); err != nil {
		t.Error(err)
	}
	if err := syscall.Kill(pid, 0); !errors.Is(err, syscall.ESRCH) {
		t.Errorf("after Close the process is there: %v", err)
	}
	if it := decryptOne(r, context.Background(), hsm.DomainKeyID{}, append([]byte{1, 2, 12}, make([]byte, 60)...)); !errors.Is(it.Err, hsm.ErrClosed) {
		t.Errorf("after Close: %v", it.Err)
	}
}

// checkProcess looks for the PIN where others can see it.
func checkProcess(t *testing.T, pid int, pin string) {
	t.Helper()
	for _, file := range []string{"cmdline", "environ"} {
		b, err := os.ReadFile(fmt.Sprintf("/proc/%d/%s", pid, file))
		if err != nil {
			t.Fatal(err)
		}
		if bytes.Contains(b, []byte(pin)) {
			t.Errorf("the PIN is in its %s", file)
		}
	}
}

// What the child logs arrives in the parent's log.
func TestChildLogs(t *testing.T) {
	var log safeBuffer
	config := hsmtest.SoftHSM(t)
	config.Child = hsmtest.Child
	config.Logger = slog.New(slog.NewTextHandler(&log, nil))
	openToken(t, config)
	if text := log.String(); !strings.Contains(text, "logged in to the token") || !strings.Contains(text, config.TokenLabel) {
		t.Errorf("the log: %s", text)
	}
}

type safeBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (s *safeBuffer) Write(p []byte) (int, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.b.Write(p)
}

func (s *safeBuffer) String() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.b.String()
}
