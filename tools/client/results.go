package client

import (
	"encoding/json"
	"fmt"

	"keymill/daemon/wire"
	"keymill/daemon/wire/bulk"
)

// A result is one item's result of any operation, from either form.
type result struct {
	Plaintext               []byte
	CiphertextBlob          []byte
	Signature               []byte
	SignatureValid          bool
	KeyId, KeyMaterialId    string
	ErrorCode, ErrorMessage string
}

func (r *result) err() error {
	if r.ErrorCode == "" {
		return nil
	}
	return &ItemError{r.ErrorCode, r.ErrorMessage}
}

// results calls each with the n results of an answer, one after the other in the
// same place.
func (a *answer) results(op wire.Op, kind bulk.Kind, n int, each func(r *result)) (*bulk.Head, error) {
	if !a.binary {
		return a.plain(op, n, each)
	}
	r, err := bulk.NewReader(a.body)
	if err == nil && r.Head.Kind != kind {
		err = fmt.Errorf("%w: kind %d for %s", bulk.ErrMalformed, r.Head.Kind, op)
	}
	if err == nil && r.Head.Count != n {
		err = fmt.Errorf("%w: %d results for %d items", bulk.ErrMalformed, r.Head.Count, n)
	}
	if err != nil {
		return nil, a.refuse(op, err)
	}
	// Blobs are put together in one piece of memory, which never moves.
	var blobs []byte
	if len(r.Head.Prefix) > 0 {
		blobs = make([]byte, 0, n*len(r.Head.Prefix)+len(a.body))
	}
	var rec bulk.Record
	var res result // one for all, as it escapes
	for {
		ok, err := r.Next(&rec)
		if err != nil {
			return nil, a.refuse(op, err)
		}
		if !ok {
			return &r.Head, nil
		}
		res = result{
			Signature: rec.Signature, KeyId: rec.KeyID, KeyMaterialId: rec.MaterialID,
			SignatureValid: kind == bulk.Verify && rec.Code == "", ErrorCode: rec.Code, ErrorMessage: rec.Message,
		}
		if len(rec.Plaintext) > 0 {
			res.Plaintext = rec.Plaintext
		}
		if len(r.Head.Prefix) == 0 {
			res.CiphertextBlob = rec.Rest
		} else if rec.Rest != nil {
			from := len(blobs)
			blobs = append(append(blobs, r.Head.Prefix...), rec.Rest...)
			res.CiphertextBlob = blobs[from:len(blobs):len(blobs)]
		}
		each(&res)
	}
}

// plain is results for an answer in JSON.
func (a *answer) plain(op wire.Op, n int, each func(r *result)) (*bulk.Head, error) {
	var body struct {
		KeyId, KeyMaterialId                  string
		EncryptionAlgorithm, SigningAlgorithm string
		Results, DataKeys                     []result
	}
	if err := json.Unmarshal(a.body, &body); err != nil {
		return nil, a.refuse(op, fmt.Errorf("couldn't read the answer: %w", err))
	}
	clear(a.body) // the results are copies
	list := append(body.Results, body.DataKeys...)
	if len(list) != n {
		return nil, a.refuse(op, fmt.Errorf("%d results for %d items", len(list), n))
	}
	for i := range list {
		each(&list[i])
	}
	return &bulk.Head{KeyID: body.KeyId, MaterialID: body.KeyMaterialId, Algorithm: body.EncryptionAlgorithm + body.SigningAlgorithm}, nil
}

// refuse gives up an answer that cannot be read; nothing of it may be used.
func (a *answer) refuse(op wire.Op, err error) error {
	clear(a.body)
	return operationError(op, err)
}
