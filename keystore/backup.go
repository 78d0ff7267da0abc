package keystore

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"slices"
	"strings"
	"time"

	"github.com/cockroachdb/pebble/v2"
	"github.com/cockroachdb/pebble/v2/vfs"
)

// # Backups
//
// A backup is a directory with
//
//	backup.json   what it is, and the size and SHA-256 of every file
//	store/        a checkpoint of the storage files
//
// The checkpoint links or copies the files of the running store as of one
// moment, with its log synced first: everything that was acknowledged before
// Backup was called is in it. Records stay sealed. The root's keys are not in it,
// nor anything that is not the store's: without the root it opens for nobody.
//
// A backup grows in a directory whose name ends in ".partial" and is renamed
// when everything in it is on disk, so what has the final name is complete.
// Restoring grows and renames in the same way. The checksums are against
// accidents; edits of records are found by their seals, as ever.

const (
	backupFormat   = 1
	manifestName   = "backup.json"
	checkpointName = "store"
	partialSuffix  = ".partial"
	maxManifest    = 16 << 20
)

// A Manifest describes a backup.
type Manifest struct {
	Format    int            `json:"format"`
	StoreID   string         `json:"store_id"`
	DomainKey string         `json:"domain_key"`
	Revision  uint64         `json:"revision"` // at least this one is in it
	Created   time.Time      `json:"created"`
	Files     []ManifestFile `json:"files"`
}

// A ManifestFile is one file of the checkpoint.
type ManifestFile struct {
	Name   string `json:"name"`
	Size   int64  `json:"size"`
	SHA256 string `json:"sha256"`
}

// ParseManifest reads and checks the description of a backup.
func ParseManifest(b []byte) (*Manifest, error) {
	bad := func(reason string) (*Manifest, error) {
		return nil, fmt.Errorf("%w: %s: %s", ErrBadBackup, manifestName, reason)
	}
	var m Manifest
	dec := json.NewDecoder(strings.NewReader(string(b)))
	dec.DisallowUnknownFields()
	if err := dec.Decode(&m); err != nil {
		return bad("does not parse")
	}
	if _, err := dec.Token(); err != io.EOF {
		return bad("has something after its end")
	}
	if m.Format != backupFormat {
		return bad(fmt.Sprintf("backup format %d is not known to this program, which reads %d", m.Format, backupFormat))
	}
	if len(m.Files) == 0 {
		return bad("names no files")
	}
	seen := make(map[string]bool)
	for _, f := range m.Files {
		if f.Name == "" || f.Name[0] == '.' || strings.ContainsAny(f.Name, "/\\\x00") || seen[f.Name] {
			return bad(fmt.Sprintf("bad file name %q", f.Name))
		}
		seen[f.Name] = true
		if sum, err := hex.DecodeString(f.SHA256); err != nil || len(sum) != sha256.Size || f.Size < 0 {
			return bad(fmt.Sprintf("bad checksum of %q", f.Name))
		}
	}
	return &m, nil
}

// Backup writes a backup of the store into a new directory. The store stays in
// use meanwhile.
func (s *Store) Backup(ctx context.Context, dir string) error {
	if err := absent(s.fs, dir); err != nil {
		return err
	}
	partial := dir + partialSuffix
	if err := absent(s.fs, partial); err != nil {
		return fmt.Errorf("an earlier backup was not finished, remove it: %w", err)
	}
	err := s.backup(ctx, partial)
	if err == nil {
		err = publish(s.fs, partial, dir)
	}
	if err != nil {
		return errors.Join(fmt.Errorf("keystore: backup: %w", err), s.fs.RemoveAll(partial))
	}
	return nil
}

func (s *Store) backup(ctx context.Context, dir string) error {
	if err := s.Err(); err != nil {
		return err
	}
	header := s.Header()
	m := Manifest{
		Format: backupFormat, StoreID: hex.EncodeToString(header.StoreID[:]), DomainKey: header.DomainKey.String(),
		Revision: s.Revision(), Created: s.clock().UTC(),
	}
	if err := s.fs.MkdirAll(dir, 0o700); err != nil {
		return err
	}
	checkpoint := s.fs.PathJoin(dir, checkpointName)
	if err := s.db.Checkpoint(checkpoint, pebble.WithFlushedWAL()); err != nil {
		return err
	}
	if err := s.Err(); err != nil {
		return err
	}
	names, err := s.fs.List(checkpoint)
	if err != nil {
		return err
	}
	slices.Sort(names)
	for _, name := range names {
		if err := ctx.Err(); err != nil {
			return err
		}
		f, err := sum(s.fs, s.fs.PathJoin(checkpoint, name), io.Discard)
		if err != nil {
			return err
		}
		f.Name = name
		m.Files = append(m.Files, f)
	}
	text, err := json.MarshalIndent(&m, "", "  ")
	if err != nil {
		return err
	}
	return writeFile(s.fs, s.fs.PathJoin(dir, manifestName), func(w io.Writer) error {
		_, err := w.Write(append(text, '\n'))
		return err
	})
}

// Restore makes a store directory from a backup, after checking that the backup
// is complete and undamaged. storeDir must be absent or empty. The root of trust
// is not in the backup: it must be supplied to Open as ever.
func Restore(backupDir, storeDir string) error {
	return restore(privateFS{vfs.Default}, backupDir, storeDir)
}

func restore(on vfs.FS, backupDir, storeDir string) error {
	m, err := readManifest(on, backupDir)
	if err != nil {
		return err
	}
	names, err := on.List(storeDir)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("keystore: restore: %w", err)
	}
	if len(names) > 0 {
		return fmt.Errorf("keystore: restore: %s is not empty", storeDir)
	}
	partial := storeDir + partialSuffix
	if err := absent(on, partial); err != nil {
		return fmt.Errorf("an earlier restore was not finished, remove it: %w", err)
	}
	err = copyBackup(on, m, on.PathJoin(backupDir, checkpointName), partial)
	if err == nil {
		if err = on.Remove(storeDir); errors.Is(err, fs.ErrNotExist) {
			err = nil
		}
	}
	if err == nil {
		err = publish(on, partial, storeDir)
	}
	if err != nil {
		return errors.Join(fmt.Errorf("keystore: restore: %w", err), on.RemoveAll(partial))
	}
	return nil
}

func readManifest(on vfs.FS, backupDir string) (*Manifest, error) {
	f, err := on.Open(on.PathJoin(backupDir, manifestName))
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrBadBackup, err)
	}
	defer f.Close()
	text, err := io.ReadAll(io.LimitReader(f, maxManifest))
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrBadBackup, err)
	}
	m, err := ParseManifest(text)
	if err != nil {
		return nil, err
	}
	names, err := on.List(on.PathJoin(backupDir, checkpointName))
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrBadBackup, err)
	}
	for _, name := range names {
		if !slices.ContainsFunc(m.Files, func(f ManifestFile) bool { return f.Name == name }) {
			return nil, fmt.Errorf("%w: %s is not in the manifest", ErrBadBackup, name)
		}
	}
	return m, nil
}

// copyBackup copies the files of a checkpoint and compares their checksums.
func copyBackup(on vfs.FS, m *Manifest, from, to string) error {
	if err := on.MkdirAll(to, 0o700); err != nil {
		return err
	}
	for _, want := range m.Files {
		err := writeFile(on, on.PathJoin(to, want.Name), func(w io.Writer) error {
			got, err := sum(on, on.PathJoin(from, want.Name), w)
			if err != nil {
				return fmt.Errorf("%w: %w", ErrBadBackup, err)
			}
			if got.Size != want.Size {
				return fmt.Errorf("%w: %s has %d bytes, not %d", ErrBadBackup, want.Name, got.Size, want.Size)
			}
			if got.SHA256 != want.SHA256 {
				return fmt.Errorf("%w: %s has another checksum", ErrBadBackup, want.Name)
			}
			return nil
		})
		if err != nil {
			return err
		}
	}
	return nil
}

// sum copies a file and returns its size and checksum.
func sum(on vfs.FS, name string, to io.Writer) (ManifestFile, error) {
	f, err := on.Open(name, vfs.SequentialReadsOption)
	if err != nil {
		return ManifestFile{}, err
	}
	defer f.Close()
	h := sha256.New()
	n, err := io.Copy(io.MultiWriter(h, to), f)
	return ManifestFile{Size: n, SHA256: hex.EncodeToString(h.Sum(nil))}, err
}

// writeFile creates a file and syncs it.
func writeFile(on vfs.FS, name string, write func(io.Writer) error) error {
	f, err := on.Create(name, vfs.WriteCategoryUnspecified)
	if err != nil {
		return err
	}
	err = write(f)
	if err == nil {
		err = f.Sync()
	}
	return errors.Join(err, f.Close())
}

// publish gives a finished directory its name, durably.
func publish(on vfs.FS, partial, dir string) error {
	if err := syncDir(on, partial); err != nil {
		return err
	}
	if err := on.Rename(partial, dir); err != nil {
		return err
	}
	return syncDir(on, on.PathDir(dir))
}

func syncDir(on vfs.FS, dir string) error {
	d, err := on.OpenDir(dir)
	if err != nil {
		return err
	}
	return errors.Join(d.Sync(), d.Close())
}

func absent(on vfs.FS, dir string) error {
	if _, err := on.Stat(dir); err == nil {
		return fmt.Errorf("keystore: %s: %w", dir, os.ErrExist)
	} else if !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("keystore: %s: %w", dir, err)
	}
	return nil
}
