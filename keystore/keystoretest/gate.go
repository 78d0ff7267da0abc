package keystoretest

import (
	"sync"

	"github.com/cockroachdb/pebble/v2/vfs"
	"github.com/cockroachdb/pebble/v2/vfs/errorfs"
)

// A Gate is a disk that can be made to take its time. The zero value is open.
type Gate struct{ syncs sync.RWMutex }

// FS returns the machine's file system with the gate in front of its disk, for
// Options.WithFS.
func (g *Gate) FS() vfs.FS {
	return errorfs.Wrap(vfs.Default, errorfs.InjectorFunc(func(op errorfs.Op) error {
		switch op.Kind {
		case errorfs.OpFileSync, errorfs.OpFileSyncData, errorfs.OpFileSyncTo:
			g.syncs.RLock()
			defer g.syncs.RUnlock()
		}
		return nil
	}))
}

// Close makes what is written wait for the disk until open is called.
func (g *Gate) Close() (open func()) {
	g.syncs.Lock()
	return g.syncs.Unlock
}
