package daemon

import (
	"context"
	"encoding/json"
	"errors"
	"net/http"
	"time"
)

// A ClockConfirmation is what the daemon says of its clock when an operator
// confirms it.
type ClockConfirmation struct {
	Time      time.Time `json:"time"`      // that was confirmed
	Suspended bool      `json:"suspended"` // destruction was, until then
}

type clockAnswer struct {
	controlAnswer
	ClockConfirmation
}

// confirmClock is the control socket's verb: the clock is right, and what is due
// by it may be destroyed.
func (s *Server) confirmClock(w http.ResponseWriter, _ *http.Request) {
	if !s.serving.Load() {
		answer(w, http.StatusServiceUnavailable, errors.New("the daemon is starting or stopping"))
		return
	}
	var a clockAnswer
	a.Time, a.Suspended = s.service.confirmClock()
	s.log.Warn("an operator confirmed the clock", "clock", a.Time.UTC().Format(time.RFC3339), "destruction_was_suspended", a.Suspended)
	w.Header().Set("Content-Type", "application/json")
	json.NewEncoder(w).Encode(&a)
}

// RequestClockConfirmation tells the daemon that serves the data directory data
// that its clock is right. It fails with [ErrNotRunning] when there is none.
func RequestClockConfirmation(ctx context.Context, data string) (ClockConfirmation, error) {
	var a clockAnswer
	if err := callControl(ctx, data, "/confirm-clock", struct{}{}, &a); err != nil {
		return ClockConfirmation{}, err
	}
	if a.Error != "" {
		return ClockConfirmation{}, errors.New(a.Error)
	}
	return a.ClockConfirmation, nil
}
