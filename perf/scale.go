package perf

import (
	"context"
	"encoding/json"
	"fmt"
	"math/rand/v2"
	"time"

	"keymill/daemon/wire"
)

// Measurements of a server with many keys: of each page of its list, and of
// requests that are spread over all keys.

// ListIDs goes through the list of keys, up to most of them, in pages of so many
// keys, and returns their ids and how long each page took.
func ListIDs(ctx context.Context, t Target, page, most int) (ids []string, took []time.Duration, err error) {
	c, err := Dial(ctx, t)
	if err != nil {
		return nil, nil, err
	}
	defer c.Close()
	in := wire.ListKeysRequest{Limit: wire.Some(int64(page))}
	for {
		began := time.Now()
		body, err := c.Call(ctx, wire.OpListKeys, &in)
		if err != nil {
			return nil, nil, err
		}
		took = append(took, time.Since(began))
		var out struct {
			Keys       []struct{ KeyId string }
			NextMarker string
			Truncated  bool
		}
		if err := json.Unmarshal(body, &out); err != nil {
			return nil, nil, fmt.Errorf("ListKeys: %w", err)
		}
		for _, k := range out.Keys {
			ids = append(ids, k.KeyId)
		}
		if !out.Truncated || len(ids) >= most {
			return ids[:min(len(ids), most)], took, nil
		}
		in.Marker = out.NextMarker
	}
}

// DataKeys is the workload of GenerateDataKey on the keys ids, each request on one
// of them drawn at random.
func DataKeys(t Target, ids []string) *Workload {
	return &Workload{
		Name:  fmt.Sprintf("GenerateDataKey on %d keys", len(ids)),
		Parts: []Part{{Name: "GenerateDataKey", What: dataKeySize(Shape{}), Weight: 1, Items: 1}},
		Requests: func(conn int) Request {
			build := newBuilder(t.Addr, t.Region, targetOf(wire.OpGenerateDataKey), t.Credentials)
			rng := rand.New(rand.NewPCG(uint64(conn), uint64(time.Now().UnixNano())))
			in := wire.GenerateDataKeyRequest{KeySpec: "AES_256"}
			var body []byte
			return func(dst []byte, now time.Time) ([]byte, int) {
				in.KeyId = ids[rng.IntN(len(ids))]
				body = in.AppendJSON(body[:0])
				return build.append(dst, now, body), 0
			}
		},
	}
}
