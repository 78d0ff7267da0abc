//go:build linux

package hsmtest

import (
	_ "embed"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"sync"
	"sync/atomic"
	"testing"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

//go:embed testdata/shim.c
var shimSource []byte

// ShimFlag is a way in which the shim's token is not what one hoped for.
type ShimFlag uint32

// The flags, in the order of testdata/shim.c.
const (
	NoGCM          ShimFlag = 1 << iota // CKM_AES_GCM is missing
	NoCBC                               // CKM_AES_CBC is missing
	NoCBCPad                            // CKM_AES_CBC_PAD is missing
	OwnIV                               // GCM encryption writes its own IV
	ZeroIVOnly                          // the same, and refuses any IV but zeroes
	IgnoreIV                            // GCM uses one IV for everything and does not say so
	NoAES                               // CKM_AES_KEY_GEN is missing
	NoCreate                            // C_CreateObject is refused
	HideValue                           // CKA_VALUE is CKR_ATTRIBUTE_SENSITIVE
	Removed                             // the token is gone
	PINLocked                           // the user PIN is locked
	FinalTry                            // one wrong PIN is left
	NoSessionKeys                       // keys must be token objects
	SayExtractable                      // CKA_EXTRACTABLE reads as true
	NoTagCheck                          // a wrong tag decrypts to rubbish
	NoRNG                               // there is no random number generator
	StrictTemplate                      // CKA_SIGN on a new AES key is refused
	NoRSA                               // CKM_RSA_PKCS_KEY_PAIR_GEN is missing
	IgnoreAAD                           // GCM ignores associated data
	OwnHandles                          // handles of objects are the session's own
)

// ShimFunc is a PKCS#11 function, by its position in CK_FUNCTION_LIST.
type ShimFunc uint32

// The functions that can be broken and counted.
const (
	CInitialize       ShimFunc = 0
	CGetSlotList      ShimFunc = 4
	CGetTokenInfo     ShimFunc = 6
	CGetMechanismList ShimFunc = 7
	COpenSession      ShimFunc = 12
	CCloseSession     ShimFunc = 13
	CGetSessionInfo   ShimFunc = 15
	CLogin            ShimFunc = 18
	CCreateObject     ShimFunc = 20
	CDestroyObject    ShimFunc = 22
	CGetAttribute     ShimFunc = 24
	CFindInit         ShimFunc = 26
	CFind             ShimFunc = 27
	CFindFinal        ShimFunc = 28
	CEncryptInit      ShimFunc = 29
	CEncrypt          ShimFunc = 30
	CDecryptInit      ShimFunc = 33
	CDecrypt          ShimFunc = 34
	CSignInit         ShimFunc = 42
	CSign             ShimFunc = 43
	CGenerateKey      ShimFunc = 58
	CGenerateKeyPair  ShimFunc = 59
	CGenerateRandom   ShimFunc = 64
)

// A ShimFault says how a PKCS#11 function breaks.
type ShimFault struct {
	Skip       uint32 // this many calls pass first
	Count      uint32 // then this many break
	RV         uint32 // CK_RV they return; 0 with Hang: none, the call goes on
	TookEffect bool   // the real call is made first
	Hang       bool   // they hang until Release
	Crash      Crash  // they take the process with them; see Child
}

// Crash is a way for a module to end the process that has it loaded.
type Crash uint32

// The ways to crash.
const (
	NoCrash     Crash = iota
	WildPointer       // SIGSEGV
	Abort             // SIGABRT, as glibc does when the heap is damaged
)

// Token is a token behind the shim, and its controls. Controls may be used while calls
// are under way.
type Token struct {
	*SoftHSMDir
	words *[1024]uint32
}

// built is the compiled shim, made once per process.
var built struct {
	once    sync.Once
	library []byte
	err     error
}

// Shim compiles the misbehaving module and returns a token behind it. It skips the test,
// saying why, where there is no C compiler or no SoftHSM2.
func Shim(t testing.TB) *Token {
	t.Helper()
	cc, err := exec.LookPath("cc")
	if err != nil {
		t.Skip("skipped: no C compiler (cc) to build the PKCS#11 test module with")
	}
	token := &Token{SoftHSMDir: NewSoftHSMDir(t)}
	dir := t.TempDir()
	source, module, control := filepath.Join(dir, "shim.c"), filepath.Join(dir, "shim.so"), filepath.Join(dir, "control")
	if err := os.WriteFile(source, shimSource, 0o600); err != nil {
		t.Fatal(err)
	}
	built.once.Do(func() {
		cmd := exec.Command(cc, "-shared", "-fPIC", "-O1", "-Wall", "-Wextra", "-Werror", "-o", module, source, "-ldl", "-lpthread")
		if out, err := cmd.CombinedOutput(); err != nil {
			built.err = fmt.Errorf("couldn't compile the test module: %w\n%s", err, out)
			return
		}
		built.library, built.err = os.ReadFile(module)
	})
	if built.err != nil {
		t.Fatal(built.err)
	}
	// A file of its own, so that the loader gives each test a module of its own.
	if err := os.WriteFile(module, built.library, 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(control, make([]byte, 4096), 0o600); err != nil {
		t.Fatal(err)
	}
	f, err := os.OpenFile(control, os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	m, err := unix.Mmap(int(f.Fd()), 0, 4096, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED)
	if err != nil {
		t.Fatal(err)
	}
	// The mapping stays: a call that hangs may look at it after the test.
	token.words = (*[1024]uint32)(unsafe.Pointer(&m[0]))
	t.Setenv("KEYMILL_SHIM_MODULE", token.Config.Module)
	t.Setenv("KEYMILL_SHIM_CONTROL", control)
	token.Config.Module = module
	return token
}

func (s *Token) set(word int, v uint32)      { atomic.StoreUint32(&s.words[word], v) }
func (s *Token) get(word int) uint32         { return atomic.LoadUint32(&s.words[word]) }
func (s *Token) at(f ShimFunc, word int) int { return 16 + 8*int(f) + word }

// Flags sets all flags at once.
func (s *Token) Flags(f ShimFlag) { s.set(0, uint32(f)) }

// Latency makes every call take this much longer.
func (s *Token) Latency(d time.Duration) { s.set(1, uint32(d.Microseconds())) }

// RoundTrip makes the calls that a network HSM's library sends to the device take this
// much longer: C_Encrypt and C_Decrypt of data (not for a length), C_GenerateRandom,
// key generation, search, login. The Init functions, which such a library answers
// itself, stay quick. It is a sleep, so calls in other sessions go on.
func (s *Token) RoundTrip(d time.Duration) { s.set(6, uint32(d.Microseconds())) }

// RoundTrips returns how many round trips there were, and how long they took in all: an
// operating system that is busy wakes who sleeps later than was asked. The time wraps
// after an hour.
func (s *Token) RoundTrips() (n int, took time.Duration) {
	return int(s.get(7)), time.Duration(s.get(8)) * time.Microsecond
}

// MaxSessions limits the sessions open at once; 0 is no limit.
func (s *Token) MaxSessions(n int) { s.set(2, uint32(n)) }

// Reset makes the token lose all sessions and the login at the next call.
func (s *Token) Reset() { s.set(3, 1) }

// Logout makes the token lose the login, but not the sessions, at the next call.
func (s *Token) Logout() { s.set(4, 1) }

// Collisions returns how often two threads were in one session at once.
func (s *Token) Collisions() int { return int(s.get(5)) }

// Break makes calls of f break. A second Break of the same function replaces the first.
func (s *Token) Break(f ShimFunc, fault ShimFault) {
	s.set(s.at(f, 2), 0)
	s.set(s.at(f, 1), fault.Skip)
	s.set(s.at(f, 3), fault.RV)
	s.set(s.at(f, 4), word(fault.TookEffect))
	s.set(s.at(f, 5), word(fault.Hang))
	s.set(s.at(f, 7), uint32(fault.Crash))
	s.set(s.at(f, 2), fault.Count)
}

func word(b bool) uint32 {
	if b {
		return 1
	}
	return 0
}

// Release lets hanging calls of f go on and heals it.
func (s *Token) Release(f ShimFunc) {
	s.set(s.at(f, 2), 0)
	s.set(s.at(f, 5), 0)
}

// Calls returns how often f was called.
func (s *Token) Calls(f ShimFunc) int { return int(s.get(s.at(f, 0))) }

// Hanging returns how many calls of f hang now.
func (s *Token) Hanging(f ShimFunc) int { return int(s.get(s.at(f, 6))) }
