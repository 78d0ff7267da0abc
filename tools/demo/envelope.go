package main

import (
	"bufio"
	"crypto/aes"
	"crypto/cipher"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
)

// # The file format
//
//	magic          "keymill demo v1\n"
//	blob length    4 bytes, big-endian
//	blob           the data key, encrypted by KMS
//	chunks         64 KiB of the file each, the last one shorter, sealed
//
// Every file has a data key of its own, so its nonces may simply count. A chunk is
// sealed with AES-256-GCM; this is the STREAM construction (Hoang, Reyhanitabar,
// Rogaway, Vizár: Online Authenticated-Encryption and its Nonce-Reuse
// Misuse-Resistance):
//
//	nonce          chunk number, 11 bytes, big-endian; then 1 for the last chunk, 0 for others
//	additional     SHA-256 of everything before the chunks
//
// The number keeps chunks in their order, the flag shows a file that was cut at
// the border of a chunk, and the header belongs to the file. Nothing of a chunk
// is written before its tag was verified; what was written before a chunk that
// fails is a true beginning of the file, and the caller is told that it is no more.

const (
	magic     = "keymill demo v1\n"
	chunkSize = 64 << 10
	maxBlob   = 6144 // KMS's limit for a ciphertext
)

var (
	errFormat = errors.New("not a file of keymill's demo")
	errSealed = errors.New("the file was changed or cut")
)

// header returns what stands before the chunks.
func header(blob []byte) []byte {
	h := append([]byte(magic), 0, 0, 0, 0)
	binary.BigEndian.PutUint32(h[len(magic):], uint32(len(blob)))
	return append(h, blob...)
}

// readHeader reads a header and returns the encrypted data key in it.
func readHeader(r io.Reader) (blob []byte, err error) {
	var start [len(magic) + 4]byte
	if _, err := io.ReadFull(r, start[:]); err != nil || string(start[:len(magic)]) != magic {
		return nil, errFormat
	}
	n := binary.BigEndian.Uint32(start[len(magic):])
	if n == 0 || n > maxBlob {
		return nil, errFormat
	}
	blob = make([]byte, n)
	if _, err := io.ReadFull(r, blob); err != nil {
		return nil, errFormat
	}
	return blob, nil
}

// chunks seals or opens the chunks of one file in order.
type chunks struct {
	aead   cipher.AEAD
	header [sha256.Size]byte
	nonce  [12]byte
}

func newChunks(key, header []byte) (*chunks, error) {
	block, err := aes.NewCipher(key)
	if err != nil {
		return nil, err
	}
	aead, err := cipher.NewGCM(block)
	if err != nil {
		return nil, err
	}
	return &chunks{aead: aead, header: sha256.Sum256(header)}, nil
}

// next returns the nonce of the next chunk.
func (c *chunks) next(number uint64, last bool) []byte {
	binary.BigEndian.PutUint64(c.nonce[3:11], number)
	c.nonce[11] = 0
	if last {
		c.nonce[11] = 1
	}
	return c.nonce[:]
}

// encrypt writes src, encrypted under key, to dst; blob is the key as KMS
// encrypted it.
func encrypt(dst io.Writer, src io.Reader, key, blob []byte) error {
	h := header(blob)
	c, err := newChunks(key, h)
	if err != nil {
		return err
	}
	if _, err := dst.Write(h); err != nil {
		return err
	}
	in := bufio.NewReaderSize(src, 2*chunkSize)
	buf := make([]byte, chunkSize, chunkSize+c.aead.Overhead())
	for number := uint64(0); ; number++ {
		n, last, err := readChunk(in, buf[:chunkSize])
		if err != nil {
			return err
		}
		if _, err := dst.Write(c.aead.Seal(buf[:0], c.next(number, last), buf[:n], c.header[:])); err != nil {
			return err
		}
		if last {
			return nil
		}
	}
}

// decrypt writes to dst what encrypt read. It fails with errSealed when anything
// was changed; dst then has a beginning of the file.
func decrypt(dst io.Writer, src io.Reader, unwrap func(blob []byte) (key []byte, err error)) error {
	in := bufio.NewReaderSize(src, 2*chunkSize)
	blob, err := readHeader(in)
	if err != nil {
		return err
	}
	key, err := unwrap(blob)
	if err != nil {
		return fmt.Errorf("couldn't decrypt the data key: %w", err)
	}
	defer clear(key)
	c, err := newChunks(key, header(blob))
	if err != nil {
		return err
	}
	buf := make([]byte, chunkSize+c.aead.Overhead())
	for number := uint64(0); ; number++ {
		n, last, err := readChunk(in, buf)
		if err != nil {
			return err
		}
		plain, err := c.aead.Open(buf[:0], c.next(number, last), buf[:n], c.header[:])
		if err != nil || len(plain) == 0 && number > 0 { // only an empty file has an empty chunk
			return errSealed
		}
		if _, err := dst.Write(plain); err != nil {
			return err
		}
		if last {
			return nil
		}
	}
}

// readChunk fills buf as far as it goes and tells whether the input ended there.
func readChunk(in *bufio.Reader, buf []byte) (n int, last bool, err error) {
	n, err = io.ReadFull(in, buf)
	if err == io.EOF || err == io.ErrUnexpectedEOF {
		return n, true, nil
	}
	if err != nil {
		return n, false, err
	}
	_, err = in.Peek(1)
	if err == io.EOF {
		return n, true, nil
	}
	return n, false, err
}

// sealedSize is how many bytes encrypt writes for a file of n bytes.
func sealedSize(n int64, blob []byte) int64 {
	whole := max(1, (n+chunkSize-1)/chunkSize)
	return int64(len(header(blob))) + n + whole*16
}
