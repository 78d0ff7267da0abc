// Package keystoretest is for tests of stores: a file system in memory that can
// lose power, and a search of what is on the disk.
package keystoretest

import (
	"math/rand/v2"

	"github.com/cockroachdb/pebble/v2/vfs"
)

// FS is a file system in memory that knows what was synced.
type FS = vfs.MemFS

// NewFS returns an empty file system, for Options.WithFS.
func NewFS() *FS { return vfs.NewCrashableMem() }

// Crash returns what a power failure leaves of fs: all that was synced, and of the
// rest the given percentage.
func Crash(fs *FS, unsyncedPercent int, dice *rand.Rand) *FS {
	return fs.CrashClone(vfs.CrashCloneCfg{UnsyncedDataPercent: unsyncedPercent, RNG: dice})
}
