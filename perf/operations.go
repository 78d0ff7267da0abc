package perf

import (
	"context"
	"crypto/rand"
	"encoding/binary"
	"encoding/json"
	"fmt"
	"sync/atomic"

	"golang.org/x/sync/errgroup"

	"keymill/daemon/wire"
)

// targetOf is the value of X-Amz-Target that calls op.
func targetOf(op wire.Op) string { return wire.TargetPrefix + op.String() }

// A Body appends the body of a connection's next request. It belongs to one
// goroutine.
type Body func(dst []byte) []byte

// Bodies makes the Body of connection i; it is called once for each, before the
// load starts.
type Bodies func(i int) Body

// An Operation is a kind of request that can be measured.
type Operation struct {
	Op wire.Op

	// What says, for the report, what the request asks for.
	What string

	prepare func(ctx context.Context, c *Client) (Bodies, error)
}

// Prepare creates the keys and ciphertexts that the requests need.
func (o *Operation) Prepare(ctx context.Context, c *Client) (Bodies, error) {
	return o.prepare(ctx, c)
}

// Operations is what can be measured, in the order of reports.
var Operations = []Operation{
	{wire.OpGenerateDataKey, "AES_256", prepareGenerateDataKey},
	{wire.OpEncrypt, "32 B", prepareEncrypt},
	{wire.OpDecrypt, "32 B", prepareDecrypt},
	{wire.OpSign, "ECDSA_SHA_256, digest", prepareSign},
}

// OperationByName finds an operation by its name in the API.
func OperationByName(name string) (*Operation, bool) {
	for i := range Operations {
		if Operations[i].Op.String() == name {
			return &Operations[i], true
		}
	}
	return nil, false
}

// createKey makes a key and returns its id.
func createKey(ctx context.Context, c *Client, spec, usage string) (string, error) {
	body, err := c.Call(ctx, wire.OpCreateKey, &wire.CreateKeyRequest{KeySpec: spec, KeyUsage: usage, Description: "load"})
	if err != nil {
		return "", err
	}
	var out struct{ KeyMetadata struct{ KeyId string } }
	if err := json.Unmarshal(body, &out); err != nil {
		return "", fmt.Errorf("%v: %w", wire.OpCreateKey, err)
	}
	if out.KeyMetadata.KeyId == "" {
		return "", fmt.Errorf("%v: answer without a key id: %.200s", wire.OpCreateKey, body)
	}
	return out.KeyMetadata.KeyId, nil
}

// CreateKeys makes n symmetric keys over conns connections at once.
func CreateKeys(ctx context.Context, t Target, n, conns int) error {
	group, ctx := errgroup.WithContext(ctx)
	var left atomic.Int64
	left.Store(int64(n))
	for range conns {
		group.Go(func() error {
			c, err := Dial(ctx, t)
			if err != nil {
				return err
			}
			defer c.Close()
			for left.Add(-1) >= 0 {
				if _, err := createKey(ctx, c, "SYMMETRIC_DEFAULT", "ENCRYPT_DECRYPT"); err != nil {
					return err
				}
			}
			return nil
		})
	}
	return group.Wait()
}

func prepareGenerateDataKey(ctx context.Context, c *Client) (Bodies, error) {
	key, err := createKey(ctx, c, "SYMMETRIC_DEFAULT", "ENCRYPT_DECRYPT")
	if err != nil {
		return nil, err
	}
	body := (&wire.GenerateDataKeyRequest{KeyId: key, KeySpec: "AES_256"}).AppendJSON(nil)
	return func(int) Body {
		return func(dst []byte) []byte { return append(dst, body...) }
	}, nil
}

// A varied is 32 bytes of which no two of a run are the same.
type varied [32]byte

func newVaried() *varied {
	v := new(varied)
	rand.Read(v[:])
	return v
}

// next changes v and returns it.
func (v *varied) next() []byte {
	binary.LittleEndian.PutUint64(v[:], binary.LittleEndian.Uint64(v[:])+1)
	return v[:]
}

func prepareEncrypt(ctx context.Context, c *Client) (Bodies, error) {
	key, err := createKey(ctx, c, "SYMMETRIC_DEFAULT", "ENCRYPT_DECRYPT")
	if err != nil {
		return nil, err
	}
	return func(int) Body {
		in, plain := &wire.EncryptRequest{KeyId: key}, newVaried()
		return func(dst []byte) []byte {
			in.Plaintext = plain.next()
			return in.AppendJSON(dst)
		}
	}, nil
}

// ciphertexts is how many different ones are decrypted in turn: more than one
// so that nothing can pass by remembering the last, few enough to be made in
// an instant.
const ciphertexts = 256

func prepareDecrypt(ctx context.Context, c *Client) (Bodies, error) {
	key, err := createKey(ctx, c, "SYMMETRIC_DEFAULT", "ENCRYPT_DECRYPT")
	if err != nil {
		return nil, err
	}
	var bodies [ciphertexts][]byte
	plain := newVaried()
	for i := range bodies {
		answer, err := c.Call(ctx, wire.OpEncrypt, &wire.EncryptRequest{KeyId: key, Plaintext: plain.next()})
		if err != nil {
			return nil, err
		}
		var out struct{ CiphertextBlob []byte }
		if err := json.Unmarshal(answer, &out); err != nil {
			return nil, fmt.Errorf("%v: %w", wire.OpEncrypt, err)
		}
		bodies[i] = (&wire.DecryptRequest{CiphertextBlob: out.CiphertextBlob}).AppendJSON(nil)
	}
	return func(conn int) Body {
		n := conn * 7
		return func(dst []byte) []byte {
			n++
			return append(dst, bodies[n%ciphertexts]...)
		}
	}, nil
}

func prepareSign(ctx context.Context, c *Client) (Bodies, error) {
	key, err := createKey(ctx, c, "ECC_NIST_P256", "SIGN_VERIFY")
	if err != nil {
		return nil, err
	}
	return func(int) Body {
		in, digest := &wire.SignRequest{KeyId: key, MessageType: "DIGEST", SigningAlgorithm: "ECDSA_SHA_256"}, newVaried()
		return func(dst []byte) []byte {
			in.Message = digest.next()
			return in.AppendJSON(dst)
		}
	}, nil
}
