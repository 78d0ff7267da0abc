//go:build cgo

package hsm

import (
	"fmt"
	"os"
	"strings"
	"sync"
	"time"
	"unsafe"

	"github.com/miekg/pkcs11"
)

// A module is one loaded PKCS#11 library. C_Initialize and C_Finalize act on the whole
// process, so all users of one path share it and the last one finalises. The library
// itself is never unloaded: vendor libraries leave threads and exit handlers behind.
type module struct {
	path string
	*pkcs11.Ctx
	list unsafe.Pointer // what calls.go calls; immutable

	mu   sync.Mutex // held during C_Initialize and C_Finalize
	refs int        // guarded by mu
}

var modules struct {
	mu     sync.Mutex
	byPath map[string]*module // guarded by mu
}

// openModule loads and initialises the library. Each success needs one release.
func openModule(path string) (*module, error) {
	m, err := loadModule(path)
	if err != nil {
		return nil, err
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.refs == 0 {
		if err := m.initialize(); err != nil {
			return nil, err
		}
	}
	m.refs++
	return m, nil
}

func loadModule(path string) (*module, error) {
	modules.mu.Lock()
	defer modules.mu.Unlock()
	if m := modules.byPath[path]; m != nil {
		return m, nil
	}
	if strings.ContainsRune(path, '/') {
		if _, err := os.Stat(path); err != nil {
			return nil, fmt.Errorf("%w: %w; give the path of the vendor's PKCS#11 library", ErrModule, err)
		}
	}
	ctx := pkcs11.New(path)
	if ctx == nil {
		return nil, fmt.Errorf("%w: %s cannot be loaded, or is no PKCS#11 library; see whether `ldd %s` misses something and whether it is for this architecture", ErrModule, path, path)
	}
	list, err := functionList(ctx, path)
	if err != nil {
		return nil, err
	}
	m := &module{path: path, Ctx: ctx, list: list}
	if modules.byPath == nil {
		modules.byPath = map[string]*module{}
	}
	modules.byPath[path] = m
	return m, nil
}

// initialize calls C_Initialize; a library that is already initialised will do.
func (m *module) initialize() error {
	err := m.Initialize() // with CKF_OS_LOCKING_OK: we call from many threads
	if err != nil && !isCKR(err, pkcs11.CKR_CRYPTOKI_ALREADY_INITIALIZED) {
		return fmt.Errorf("%w: %s: C_Initialize: %w; see the vendor's log and configuration", ErrModule, m.path, err)
	}
	return nil
}

// release gives the module back. No thread of the caller's may be inside.
func (m *module) release() {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.refs--
	if m.refs == 0 {
		// An error leaves it initialised, which the next openModule accepts.
		_ = m.Finalize()
	}
}

// within runs f on another goroutine and gives up waiting after d. If f returns
// after that, late gets what it made.
func within[T any](d time.Duration, what string, f func() (T, error), late func(T)) (T, error) {
	type result struct {
		v   T
		err error
	}
	c := make(chan result)
	tooLate := make(chan struct{})
	go func() {
		v, err := f()
		select {
		case c <- result{v, err}:
		case <-tooLate:
			if err == nil {
				late(v)
			}
		}
	}()
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case r := <-c:
		return r.v, r.err
	case <-t.C:
		close(tooLate)
		var zero T
		return zero, fmt.Errorf("%w: %s took longer than %v", ErrTimeout, what, d)
	}
}
