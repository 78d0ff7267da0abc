package arena

import (
	"bytes"
	"os"
	"os/exec"
	"runtime"
	"strings"
	"sync"
	"testing"
	"unsafe"
)

func TestSecretIsZeroedWipedAndExact(t *testing.T) {
	for _, n := range []int{1, 31, 32, 64, 65, 100, 4096, 4097, 70000, MaxSize} {
		s, err := New(n)
		if err != nil {
			t.Fatalf("New(%d): %v", n, err)
		}
		b := s.Bytes()
		if len(b) != n || cap(b) != n {
			t.Errorf("New(%d): len %d cap %d", n, len(b), cap(b))
		}
		if !bytes.Equal(b, make([]byte, n)) {
			t.Errorf("New(%d) is not zeroed", n)
		}
		for i := range b {
			b[i] = 0xA5
		}
		s.Wipe()
		s.Wipe()
		if s.Bytes() != nil {
			t.Errorf("Bytes after Wipe is not nil")
		}
		if n <= maxSlot && !bytes.Equal(b, make([]byte, n)) {
			t.Errorf("Wipe left bytes of a %d-byte secret behind", n)
		}
	}
	var none *Secret
	none.Wipe()
}

func TestNewRefusesSizes(t *testing.T) {
	for _, n := range []int{-1, 0, MaxSize + 1} {
		if s, err := New(n); err == nil {
			t.Errorf("New(%d) = %v, want an error", n, s)
		}
	}
}

func TestFromMovesTheBytes(t *testing.T) {
	b := []byte("a secret that moves")
	s, err := From(b)
	if err != nil {
		t.Fatal(err)
	}
	defer s.Wipe()
	if string(s.Bytes()) != "a secret that moves" {
		t.Errorf("got %q", s.Bytes())
	}
	if !bytes.Equal(b, make([]byte, len(b))) {
		t.Error("From left the source in place")
	}
}

// Slots are never shared: every live secret keeps its own pattern while others
// come and go.
func TestSlotsAreExclusive(t *testing.T) {
	var wg sync.WaitGroup
	for g := range 4 {
		wg.Go(func() {
			var live []*Secret
			for i := range 2000 {
				s, err := New(1 + (i*37+g)%300)
				if err != nil {
					t.Error(err)
					return
				}
				for j := range s.Bytes() {
					if s.Bytes()[j] != 0 {
						t.Error("a slot was handed out that is not zero")
						return
					}
					s.Bytes()[j] = byte(g + 1)
				}
				live = append(live, s)
				if len(live) > 50 {
					old := live[0]
					live = live[1:]
					for _, c := range old.Bytes() {
						if c != byte(g+1) {
							t.Error("another secret's bytes in a live slot")
							return
						}
					}
					old.Wipe()
				}
			}
			for _, s := range live {
				s.Wipe()
			}
		})
	}
	wg.Wait()
}

// A freed slot is used again: making and wiping secrets does not grow the process.
func TestSlotsAreReused(t *testing.T) {
	s, err := New(32)
	if err != nil {
		t.Fatal(err)
	}
	s.Wipe()
	pool.mu.Lock()
	before := pool.held
	pool.mu.Unlock()
	for range 10000 {
		s, err := New(32)
		if err != nil {
			t.Fatal(err)
		}
		s.Wipe()
	}
	pool.mu.Lock()
	after := pool.held
	pool.mu.Unlock()
	if before != after {
		t.Errorf("arena grew from %d to %d bytes", before, after)
	}
}

// The kernel's own view: a secret's pages are locked and left out of core dumps.
func TestPagesAreLockedAndNotDumped(t *testing.T) {
	if runtime.GOOS != "linux" {
		t.Skip("skipped: /proc/self/smaps is Linux's")
	}
	s, err := New(32)
	if err != nil {
		t.Fatal(err)
	}
	defer s.Wipe()
	if n := Notice(); n != "" {
		t.Skipf("skipped: this machine refuses to lock memory: %s", n)
	}
	smaps, err := os.ReadFile("/proc/self/smaps")
	if err != nil {
		t.Skipf("skipped: %v", err)
	}
	addr := uintptr(unsafe.Pointer(&s.Bytes()[0]))
	flags, ok := vmFlags(string(smaps), addr)
	if !ok {
		t.Fatal("the secret's mapping is not in smaps")
	}
	for _, want := range []string{"lo", "dd"} {
		if !strings.Contains(flags+" ", " "+want+" ") {
			t.Errorf("mapping has flags %q, lacks %q", flags, want)
		}
	}
}

// vmFlags finds the VmFlags line of the mapping that holds addr.
func vmFlags(smaps string, addr uintptr) (string, bool) {
	inside := false
	for line := range strings.Lines(smaps) {
		line = strings.TrimSpace(line)
		if lo, hi, ok := bounds(line); ok {
			inside = lo <= addr && addr < hi
		} else if inside && strings.HasPrefix(line, "VmFlags:") {
			return strings.TrimPrefix(line, "VmFlags:"), true
		}
	}
	return "", false
}

func bounds(line string) (lo, hi uintptr, ok bool) {
	span, _, _ := strings.Cut(line, " ")
	a, b, found := strings.Cut(span, "-")
	if !found {
		return 0, 0, false
	}
	return hex(a), hex(b), hex(b) != 0
}

func hex(s string) (v uintptr) {
	for _, c := range s {
		switch {
		case '0' <= c && c <= '9':
			v = v<<4 | uintptr(c-'0')
		case 'a' <= c && c <= 'f':
			v = v<<4 | uintptr(c-'a'+10)
		default:
			return 0
		}
	}
	return v
}

// Harden changes the whole process for good, so it runs in a child.
func TestHarden(t *testing.T) {
	if os.Getenv("ARENA_HARDEN_CHILD") != "" {
		hardenChild(t)
		return
	}
	if runtime.GOOS != "linux" {
		t.Skip("skipped: Harden is Linux's")
	}
	cmd := exec.Command(os.Args[0], "-test.run=^TestHarden$", "-test.v")
	cmd.Env = append(os.Environ(), "ARENA_HARDEN_CHILD=1")
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
}

func hardenChild(t *testing.T) {
	for _, w := range Harden() {
		t.Logf("warning: %s", w)
	}
	limits, err := os.ReadFile("/proc/self/limits")
	if err == nil { // not readable any more counts as hardened, too
		for line := range strings.Lines(string(limits)) {
			f := strings.Fields(line)
			if strings.HasPrefix(line, "Max core file size") && (f[4] != "0" || f[5] != "0") {
				t.Errorf("core limit: %s", line)
			}
		}
	}
	// The process goes on working: fresh heap, fresh stacks, a collection.
	var keep [][]byte
	for range 64 {
		keep = append(keep, make([]byte, 1<<20))
	}
	runtime.GC()
	var wg sync.WaitGroup
	for range 64 {
		wg.Go(func() { runtime.LockOSThread() })
	}
	wg.Wait()
	runtime.KeepAlive(keep)
}

func BenchmarkNewWipe(b *testing.B) {
	b.ReportAllocs()
	for b.Loop() {
		s, err := New(32)
		if err != nil {
			b.Fatal(err)
		}
		s.Wipe()
	}
}
