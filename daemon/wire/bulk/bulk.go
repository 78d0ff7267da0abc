// Package bulk is the binary form of the answers of Keymill's bulk operations,
// for readers that do not want to pay for Base64 and JSON. The daemon writes it,
// the client package reads it; both are here so that they cannot drift apart.
//
// # Asking for it
//
// A request of one of the five operations asks for the binary form with
// ResponseFormat=BINARY, or with the header "Accept: application/x-keymill-bulk"
// and no ResponseFormat. The answer then has that Content-Type. Errors of the
// whole request are JSON in either case, with a status other than 200.
//
// # The form, version 1
//
// Numbers are big-endian. A field is a length of two bytes and that many bytes.
//
//	4  "KMBK"
//	1  version: 1
//	1  kind: 1 data keys, 2 encrypt, 3 decrypt, 4 sign, 5 verify
//	4  number of records, at most 10,000
//	f  KeyId: the key's ARN; empty when the request named no key
//	f  KeyMaterialId: 64 hexadecimal digits, empty if there is none
//	f  algorithm: as the request's EncryptionAlgorithm or SigningAlgorithm
//	f  prefix: what every CiphertextBlob of the answer begins with
//	   the records, in the order of the request's items
//
// Blobs that one key version encrypted differ only after their header, so it is
// sent once: CiphertextBlob is the prefix followed by the record's rest. It is
// an ordinary ciphertext for Decrypt of AWS KMS then.
//
// A record begins with a byte, 0 for an item that succeeded and 1 for one that
// failed. A failed one goes on with two fields, ErrorCode and ErrorMessage. One
// that succeeded goes on with the fields of its kind:
//
//	data keys  Plaintext (empty if not asked for), rest of CiphertextBlob
//	encrypt    rest of CiphertextBlob
//	decrypt    Plaintext, KeyId, KeyMaterialId
//	sign       Signature
//	verify     none: the signature is valid
//
// An empty KeyId in a decrypt record is that of the record before, in the first
// one that of the head; so is an empty KeyMaterialId when KeyId is empty too. A
// KeyId that is not empty makes an empty KeyMaterialId mean that there is none.
//
// Nothing follows the last record; fewer bytes or more mean that the answer was
// damaged or cut off, and a reader must use none of it.
package bulk

import (
	"encoding/binary"
	"errors"
	"fmt"
)

// ContentType is the media type of the form.
const ContentType = "application/x-keymill-bulk"

const (
	magic   = "KMBK"
	version = 1

	// MaxRecords bounds the records of one answer.
	MaxRecords = 10_000
)

// A Kind says which operation an answer belongs to.
type Kind uint8

// The kinds.
const (
	DataKeys Kind = iota + 1
	Encrypt
	Decrypt
	Sign
	Verify
)

// A Head is what the records have in common.
type Head struct {
	Kind       Kind
	Count      int
	KeyID      string
	MaterialID string
	Algorithm  string
	Prefix     []byte
}

// AppendHead appends the head. Count records must follow.
func AppendHead(dst []byte, h *Head) []byte {
	dst = append(dst, magic...)
	dst = append(dst, version, byte(h.Kind))
	dst = binary.BigEndian.AppendUint32(dst, uint32(h.Count))
	dst = appendText(dst, h.KeyID)
	dst = appendText(dst, h.MaterialID)
	dst = appendText(dst, h.Algorithm)
	return appendField(dst, h.Prefix)
}

// AppendDataKey appends the record of a data key; rest is its blob without the
// head's prefix.
func AppendDataKey(dst, plaintext, rest []byte) []byte {
	return appendField(appendField(append(dst, 0), plaintext), rest)
}

// AppendBlob appends a record of encrypt, with the blob's rest, or of sign.
func AppendBlob(dst, b []byte) []byte { return appendField(append(dst, 0), b) }

// AppendDecrypted appends a record of decrypt.
func AppendDecrypted(dst, plaintext []byte, keyID, materialID string) []byte {
	return appendText(appendText(appendField(append(dst, 0), plaintext), keyID), materialID)
}

// AppendVerified appends the record of a valid signature.
func AppendVerified(dst []byte) []byte { return append(dst, 0) }

// AppendError appends the record of an item that failed.
func AppendError(dst []byte, code, message string) []byte {
	return appendText(appendText(append(dst, 1), code), message)
}

func appendField(dst, b []byte) []byte {
	if len(b) > maxField {
		panic("bulk: field too long") // items are far shorter
	}
	dst = binary.BigEndian.AppendUint16(dst, uint16(len(b)))
	return append(dst, b...)
}

// appendText cuts a text that is too long: only an error's message could be.
func appendText(dst []byte, s string) []byte {
	s = s[:min(len(s), maxField)]
	dst = binary.BigEndian.AppendUint16(dst, uint16(len(s)))
	return append(dst, s...)
}

const maxField = 1<<16 - 1

// ErrMalformed: the bytes are not an answer in this form.
var ErrMalformed = errors.New("bulk: malformed answer")

// A Reader reads one answer. The byte slices it returns
// are views on the answer.
type Reader struct {
	Head Head

	rest       []byte
	left       int
	keyID      string
	materialID string
}

// A Record is one item's result. Which members are set depends on the kind;
// when Code is, the item failed and only Message goes with it.
type Record struct {
	Code, Message     string
	Plaintext         []byte
	Rest              []byte // of the ciphertext, after the head's prefix
	Signature         []byte
	KeyID, MaterialID string
}

// NewReader reads the head. It fails with ErrMalformed.
func NewReader(answer []byte) (*Reader, error) {
	const fixed = len(magic) + 1 + 1 + 4
	if len(answer) < fixed || string(answer[:len(magic)]) != magic {
		return nil, fmt.Errorf("%w: no %s at its beginning", ErrMalformed, magic)
	}
	if v := answer[len(magic)]; v != version {
		return nil, fmt.Errorf("%w: version %d, this reader knows %d", ErrMalformed, v, version)
	}
	r := &Reader{rest: answer[fixed:]}
	r.Head.Kind = Kind(answer[len(magic)+1])
	n := binary.BigEndian.Uint32(answer[fixed-4:])
	if r.Head.Kind < DataKeys || r.Head.Kind > Verify {
		return nil, fmt.Errorf("%w: unknown kind %d", ErrMalformed, r.Head.Kind)
	}
	if n > MaxRecords {
		return nil, fmt.Errorf("%w: %d records", ErrMalformed, n)
	}
	r.Head.Count, r.left = int(n), int(n)
	var ok [4]bool
	r.Head.KeyID, ok[0] = r.text()
	r.Head.MaterialID, ok[1] = r.text()
	r.Head.Algorithm, ok[2] = r.text()
	r.Head.Prefix, ok[3] = r.field()
	if ok != [4]bool{true, true, true, true} {
		return nil, fmt.Errorf("%w: cut off in the head", ErrMalformed)
	}
	r.keyID, r.materialID = r.Head.KeyID, r.Head.MaterialID
	return r, nil
}

// Next reads one record into rec. It returns false after the last one, having
// seen that nothing follows, and on an error, which is ErrMalformed.
func (r *Reader) Next(rec *Record) (bool, error) {
	*rec = Record{}
	if r.left == 0 {
		if len(r.rest) > 0 {
			return false, fmt.Errorf("%w: %d bytes after the last record", ErrMalformed, len(r.rest))
		}
		return false, nil
	}
	if r.record(rec) {
		r.left--
		return true, nil
	}
	*rec = Record{}
	return false, fmt.Errorf("%w: record %d is cut off or of no known form", ErrMalformed, r.Head.Count-r.left)
}

func (r *Reader) record(rec *Record) bool {
	if len(r.rest) == 0 {
		return false
	}
	status := r.rest[0]
	r.rest = r.rest[1:]
	var ok1, ok2, ok3 = true, true, true
	switch {
	case status == 1:
		rec.Code, ok1 = r.text()
		rec.Message, ok2 = r.text()
		ok3 = rec.Code != "" // or it would pass for a success
	case status != 0:
		return false
	case r.Head.Kind == DataKeys:
		rec.Plaintext, ok1 = r.field()
		rec.Rest, ok2 = r.field()
	case r.Head.Kind == Encrypt:
		rec.Rest, ok1 = r.field()
	case r.Head.Kind == Decrypt:
		rec.Plaintext, ok1 = r.field()
		rec.KeyID, ok2 = r.text()
		rec.MaterialID, ok3 = r.text()
		r.inherit(rec)
	case r.Head.Kind == Sign:
		rec.Signature, ok1 = r.field()
	}
	return ok1 && ok2 && ok3
}

// inherit fills in what a decrypt record leaves out.
func (r *Reader) inherit(rec *Record) {
	if rec.KeyID != "" {
		r.keyID, r.materialID = rec.KeyID, ""
	}
	if rec.MaterialID != "" {
		r.materialID = rec.MaterialID
	}
	rec.KeyID, rec.MaterialID = r.keyID, r.materialID
}

func (r *Reader) field() ([]byte, bool) {
	if len(r.rest) < 2 {
		return nil, false
	}
	n := int(binary.BigEndian.Uint16(r.rest))
	if len(r.rest) < 2+n {
		return nil, false
	}
	b := r.rest[2 : 2+n : 2+n]
	r.rest = r.rest[2+n:]
	return b, true
}

func (r *Reader) text() (string, bool) {
	b, ok := r.field()
	return string(b), ok
}
