package daemon

import (
	"context"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"time"

	"keymill/keystore"
)

// KeyUsage is what the daemon knows of the use of a key.
type KeyUsage struct {
	Since      time.Time         `json:"since"`      // use is recorded since then
	Operations map[string]uint64 `json:"operations"` // how often each was done with the key

	// Of the last use, absent when there was none.
	LastOperation string    `json:"last_operation,omitempty"`
	LastUsed      time.Time `json:"last_used,omitzero"`
	LastRequestID string    `json:"last_request_id,omitempty"`
}

type usageRequest struct {
	Key string `json:"key"`
}

type usageAnswer struct {
	controlAnswer
	KeyUsage
}

// keyUsage is the control socket's verb: how a key was used.
func (s *Server) keyUsage(w http.ResponseWriter, r *http.Request) {
	var in usageRequest
	if err := json.NewDecoder(http.MaxBytesReader(w, r.Body, maxControlBody)).Decode(&in); err != nil {
		answer(w, http.StatusBadRequest, fmt.Errorf("couldn't read the request: %w", err))
		return
	}
	if !s.serving.Load() {
		answer(w, http.StatusServiceUnavailable, errors.New("the daemon is starting or stopping"))
		return
	}
	u, since, err := s.service.keyUsage(in.Key)
	if errors.Is(err, keystore.ErrNotFound) {
		err = fmt.Errorf("there is no key %s", in.Key)
	}
	if err != nil {
		answer(w, http.StatusBadRequest, err)
		return
	}
	a := usageAnswer{KeyUsage: KeyUsage{Since: since, Operations: make(map[string]uint64)}}
	for _, c := range u.Counts {
		a.Operations[c.Operation] = c.Count
	}
	if u.Operation != "" {
		id := hex.EncodeToString(u.RequestID[:])
		a.LastOperation, a.LastUsed = u.Operation, u.Time
		a.LastRequestID = id[:8] + "-" + id[8:12] + "-" + id[12:16] + "-" + id[16:20] + "-" + id[20:]
	}
	w.Header().Set("Content-Type", "application/json")
	json.NewEncoder(w).Encode(&a)
}

// RequestKeyUsage asks the daemon that serves the data directory data how a key
// was used, by its ARN. It fails with [ErrNotRunning] when there is none.
func RequestKeyUsage(ctx context.Context, data, arn string) (KeyUsage, error) {
	var a usageAnswer
	if err := callControl(ctx, data, "/key-usage", usageRequest{arn}, &a); err != nil {
		return KeyUsage{}, err
	}
	if a.Error != "" {
		return KeyUsage{}, errors.New(a.Error)
	}
	return a.KeyUsage, nil
}
