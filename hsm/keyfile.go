package hsm

import (
	"bytes"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"os"
	"slices"
	"time"

	"golang.org/x/sys/unix"

	"keymill/hsm/arena"
	"keymill/hsm/xaes"
)

// The key file of the software root, integers big-endian:
//
//	offset     size
//	0          12    "keymill-root"
//	12         4     format version, 1
//	16         4     n, number of domain keys, at most 1000
//	20         56n   domain keys: 16 ID, 8 creation time (Unix seconds), 32 AES-256 key
//	20+56n     32    SHA-256 of everything before
//
// The checksum finds damage; it is no protection against somebody who may write the
// file, who could as well replace the program.
const (
	keyFileMagic   = "keymill-root"
	keyFileVersion = 1
	keyFileHeader  = len(keyFileMagic) + 8
	keyFileEntry   = 16 + 8 + xaes.KeySize
	maxDomainKeys  = 1000 // a rotation a day for close to three years
	maxKeyFile     = keyFileHeader + maxDomainKeys*keyFileEntry + sha256.Size
)

// keyFile is the parsed file; its keys are in the arena.
type keyFile struct{ entries []keyFileKey }

type keyFileKey struct {
	id      DomainKeyID
	created time.Time
	secret  *arena.Secret
}

// parseKeyFile parses b, which it neither keeps nor wipes.
func parseKeyFile(b []byte) (*keyFile, error) {
	if len(b) < keyFileHeader+sha256.Size || len(b) > maxKeyFile || string(b[:len(keyFileMagic)]) != keyFileMagic {
		return nil, errors.New("it is not a key file of keymill")
	}
	if v := binary.BigEndian.Uint32(b[len(keyFileMagic):]); v != keyFileVersion {
		return nil, fmt.Errorf("it has format version %d, this program knows version %d", v, keyFileVersion)
	}
	n := binary.BigEndian.Uint32(b[len(keyFileMagic)+4:])
	if n > maxDomainKeys || len(b) != keyFileHeader+int(n)*keyFileEntry+sha256.Size {
		return nil, errors.New("it is truncated or damaged (length)")
	}
	body := b[:len(b)-sha256.Size]
	if sum := sha256.Sum256(body); !bytes.Equal(sum[:], b[len(body):]) {
		return nil, errors.New("it is damaged (checksum)")
	}
	f := &keyFile{}
	for e := body[keyFileHeader:]; len(e) > 0; e = e[keyFileEntry:] {
		created := time.Unix(int64(binary.BigEndian.Uint64(e[16:])), 0)
		if err := f.add(DomainKeyID(e[:16]), created, e[24:keyFileEntry]); err != nil {
			f.wipe()
			return nil, err
		}
	}
	return f, nil
}

// add appends a domain key; the secret is copied.
func (f *keyFile) add(id DomainKeyID, created time.Time, secret []byte) error {
	if len(f.entries) >= maxDomainKeys {
		return fmt.Errorf("it would hold more than %d domain keys", maxDomainKeys)
	}
	for _, e := range f.entries {
		if e.id == id {
			return fmt.Errorf("%w: %s", ErrDuplicateDomainKey, id)
		}
	}
	s, err := arena.New(len(secret))
	if err != nil {
		return err
	}
	copy(s.Bytes(), secret)
	f.entries = append(f.entries, keyFileKey{id, created, s})
	return nil
}

// remove drops a domain key, if it is there.
func (f *keyFile) remove(id DomainKeyID) {
	f.entries = slices.DeleteFunc(f.entries, func(e keyFileKey) bool {
		if e.id == id {
			e.secret.Wipe()
		}
		return e.id == id
	})
}

// encode returns the file's bytes, which the caller wipes.
func (f *keyFile) encode() (*arena.Secret, error) {
	s, err := arena.New(keyFileHeader + len(f.entries)*keyFileEntry + sha256.Size)
	if err != nil {
		return nil, err
	}
	b := append(s.Bytes()[:0], keyFileMagic...)
	b = binary.BigEndian.AppendUint32(b, keyFileVersion)
	b = binary.BigEndian.AppendUint32(b, uint32(len(f.entries)))
	for _, e := range f.entries {
		b = append(b, e.id[:]...)
		b = binary.BigEndian.AppendUint64(b, uint64(e.created.Unix()))
		b = append(b, e.secret.Bytes()...)
	}
	sum := sha256.Sum256(b)
	copy(s.Bytes()[len(b):], sum[:])
	return s, nil
}

// ciphers makes the ciphers of all domain keys.
func (f *keyFile) ciphers() (map[DomainKeyID]*xaes.Key, error) {
	keys := make(map[DomainKeyID]*xaes.Key, len(f.entries))
	for _, e := range f.entries {
		k, err := xaes.New(e.secret.Bytes())
		if err != nil {
			return nil, err
		}
		keys[e.id] = k
	}
	return keys, nil
}

func (f *keyFile) wipe() {
	for _, e := range f.entries {
		e.secret.Wipe()
	}
	f.entries = nil
}

// CheckKeyFile parses a key file without keeping anything of it. It exists for
// fuzzing and for checking a backup of the root key.
func CheckKeyFile(b []byte) error {
	f, err := parseKeyFile(b)
	if err != nil {
		return fmt.Errorf("%w: %w", ErrKeyFile, err)
	}
	f.wipe()
	return nil
}

// readPrivate reads a secret file of at most limit bytes into the arena. The file
// must be regular, belong to this user or root, and be closed to everybody else. The
// checks are made on the open file, so that it cannot be exchanged in between.
// Refusals wrap sentinel; a missing file also matches fs.ErrNotExist.
func readPrivate(path string, limit int, sentinel error) (*arena.Secret, error) {
	// O_NONBLOCK: a named pipe must not hang the start before it is refused.
	f, err := os.OpenFile(path, os.O_RDONLY|unix.O_NONBLOCK, 0)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", sentinel, err)
	}
	defer f.Close()
	st, err := f.Stat()
	if err != nil {
		return nil, fmt.Errorf("%w: %w", sentinel, err)
	}
	if !st.Mode().IsRegular() {
		return nil, fmt.Errorf("%w: %s is not a regular file", sentinel, path)
	}
	if perm := st.Mode().Perm(); perm&0o077 != 0 {
		return nil, fmt.Errorf("%w: %s has mode %04o, so others can reach it; run: chmod 600 %s", sentinel, path, perm, path)
	}
	if uid, ok := ownerOf(st); ok && uid != os.Geteuid() && uid != 0 {
		return nil, fmt.Errorf("%w: %s belongs to user %d; it must belong to user %d or root", sentinel, path, uid, os.Geteuid())
	}
	if st.Size() == 0 || st.Size() > int64(limit) {
		return nil, fmt.Errorf("%w: %s has %d bytes (want 1 to %d)", sentinel, path, st.Size(), limit)
	}
	s, err := arena.New(int(st.Size()))
	if err != nil {
		return nil, err
	}
	if _, err := io.ReadFull(f, s.Bytes()); err != nil {
		s.Wipe()
		return nil, fmt.Errorf("%w: couldn't read %s: %w", sentinel, path, err)
	}
	return s, nil
}

// lockDir takes an exclusive lock on a directory, so that two processes do not
// rewrite one key file at once; the kernel drops it when the process ends.
func lockDir(dir string) (unlock func(), err error) {
	d, err := os.Open(dir)
	if err != nil {
		return nil, err
	}
	for {
		err = unix.Flock(int(d.Fd()), unix.LOCK_EX)
		if err != unix.EINTR {
			break
		}
	}
	if err != nil {
		d.Close()
		return nil, err
	}
	return func() { d.Close() }, nil
}
