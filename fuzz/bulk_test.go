package fuzz

import (
	"bytes"
	"errors"
	"testing"

	"keymill/daemon/wire/bulk"
)

// FuzzBulkReader reads any bytes as a bulk answer. What is accepted must be what
// the writer makes of the same records, but for what a decrypt record may leave
// out; what is refused must say so.
func FuzzBulkReader(f *testing.F) {
	head := func(k bulk.Kind, n int) []byte {
		return bulk.AppendHead(nil, &bulk.Head{Kind: k, Count: n, KeyID: "arn", MaterialID: "id", Algorithm: "ALG", Prefix: []byte("prefix")})
	}
	f.Add(bulk.AppendError(bulk.AppendDataKey(head(bulk.DataKeys, 2), []byte("key"), []byte("rest")), "Code", "message"))
	f.Add(bulk.AppendBlob(head(bulk.Encrypt, 1), []byte("rest")))
	f.Add(bulk.AppendDecrypted(bulk.AppendDecrypted(head(bulk.Decrypt, 2), []byte("a"), "", ""), []byte("b"), "other", "material"))
	f.Add(bulk.AppendBlob(head(bulk.Sign, 1), []byte("signature")))
	f.Add(bulk.AppendVerified(head(bulk.Verify, 1)))
	f.Fuzz(func(t *testing.T, answer []byte) {
		before := bytes.Clone(answer)
		r, err := bulk.NewReader(answer)
		if err != nil {
			if !errors.Is(err, bulk.ErrMalformed) {
				t.Fatal(err)
			}
			return
		}
		again := bulk.AppendHead(nil, &r.Head)
		n := 0
		for {
			var rec bulk.Record
			ok, err := r.Next(&rec)
			if err != nil {
				if !errors.Is(err, bulk.ErrMalformed) || ok {
					t.Fatal(ok, err)
				}
				return
			}
			if !ok {
				break
			}
			n++
			switch {
			case rec.Code != "":
				again = bulk.AppendError(again, rec.Code, rec.Message)
			case r.Head.Kind == bulk.DataKeys:
				again = bulk.AppendDataKey(again, rec.Plaintext, rec.Rest)
			case r.Head.Kind == bulk.Encrypt:
				again = bulk.AppendBlob(again, rec.Rest)
			case r.Head.Kind == bulk.Decrypt:
				again = bulk.AppendDecrypted(again, rec.Plaintext, rec.KeyID, rec.MaterialID)
			case r.Head.Kind == bulk.Sign:
				again = bulk.AppendBlob(again, rec.Signature)
			default:
				again = bulk.AppendVerified(again)
			}
		}
		if n != r.Head.Count {
			t.Errorf("%d records, the head says %d", n, r.Head.Count)
		}
		if !bytes.Equal(before, answer) {
			t.Error("the answer was changed")
		}
		if r.Head.Kind != bulk.Decrypt && !bytes.Equal(again, answer) {
			t.Errorf("read %x\nwrote %x", answer, again)
		}
	})
}
