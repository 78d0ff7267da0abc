package hsm

// For the tests in package hsm_test, which cannot be in this package because package
// hsmtest imports it.

type (
	FileSystem = fileSystem
	SyncFile   = syncFile
	OSFiles    = osFiles
)

const (
	KeyFileEntry = keyFileEntry
	MaxKeyFile   = maxKeyFile
)

// WithFiles replaces the file system.
func (o SoftwareOptions) WithFiles(f FileSystem) SoftwareOptions {
	o.files = f
	return o
}
