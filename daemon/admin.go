package daemon

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"net/http"
	"path/filepath"
	"syscall"
	"time"

	"github.com/VictoriaMetrics/metrics"
)

// adminTimeout bounds a request on the admin listener, so that a stuck scraper
// holds nothing for long.
const adminTimeout = 30 * time.Second

// adminMux answers what anyone who reaches the admin listener may know: no
// names, no identifiers, no verbs.
func (s *Server) adminMux() *http.ServeMux {
	mux := http.NewServeMux()
	mux.HandleFunc("GET /healthz", func(w http.ResponseWriter, _ *http.Request) {
		io.WriteString(w, "ok\n")
	})
	mux.HandleFunc("GET /readyz", func(w http.ResponseWriter, _ *http.Request) {
		if !s.serving.Load() {
			http.Error(w, "not ready", http.StatusServiceUnavailable)
			return
		}
		io.WriteString(w, "ready\n")
	})
	mux.HandleFunc("GET /metrics", func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Type", "text/plain; version=0.0.4; charset=utf-8")
		metrics.WritePrometheus(w, true)
		s.metrics.WritePrometheus(w)
		if s.xks != nil {
			s.xks.server.WriteMetrics(w)
		}
		if s.serving.Load() {
			s.service.writeMetrics(w)
		}
	})
	return mux
}

// controlName is the control socket's name in the data directory.
const controlName = "control.sock"

// maxControlBody bounds a request on the control socket.
const maxControlBody = 64 << 10

type backupRequest struct {
	To string `json:"to"`
}

type controlAnswer struct {
	Error string `json:"error,omitempty"`
}

// controlMux answers on the control socket: all of adminMux, and verbs.
func (s *Server) controlMux() *http.ServeMux {
	mux := s.adminMux()
	mux.HandleFunc("POST /backup", func(w http.ResponseWriter, r *http.Request) {
		var in backupRequest
		err := json.NewDecoder(http.MaxBytesReader(w, r.Body, maxControlBody)).Decode(&in)
		switch {
		case err != nil:
			answer(w, http.StatusBadRequest, fmt.Errorf("couldn't read the request: %w", err))
		case !filepath.IsAbs(in.To):
			answer(w, http.StatusBadRequest, errors.New("to: give an absolute path"))
		case !s.serving.Load():
			answer(w, http.StatusServiceUnavailable, errors.New("the daemon is starting or stopping"))
		default:
			if err := s.service.backup(r.Context(), in.To); err != nil {
				s.log.Error("backup failed", "to", in.To, "err", err)
				answer(w, http.StatusInternalServerError, err)
				return
			}
			s.log.Info("backup written", "to", in.To)
			answer(w, http.StatusOK, nil)
		}
	})
	mux.HandleFunc("POST /confirm-clock", s.confirmClock)
	mux.HandleFunc("POST /key-usage", s.keyUsage)
	mux.HandleFunc("POST /rewrap", s.rewrap)
	mux.HandleFunc("GET /rewrap", s.rewrapStatus)
	return mux
}

func answer(w http.ResponseWriter, status int, err error) {
	var a controlAnswer
	if err != nil {
		a.Error = err.Error()
	}
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(status)
	json.NewEncoder(w).Encode(a)
}

// ErrNotRunning says that no daemon serves a data directory.
var ErrNotRunning = errors.New("no daemon is running on this data directory")

// RequestBackup asks the daemon that serves the data directory data to write a
// backup into the directory to, on the daemon's machine and as its user. It
// fails with [ErrNotRunning] when there is none.
func RequestBackup(ctx context.Context, data, to string) error {
	to, err := filepath.Abs(to)
	if err != nil {
		return err
	}
	var a controlAnswer
	if err := callControl(ctx, data, "/backup", backupRequest{To: to}, &a); err != nil {
		return err
	}
	if a.Error != "" {
		return fmt.Errorf("the daemon couldn't write the backup: %s", a.Error)
	}
	return nil
}

// callControl asks the daemon that serves the data directory data on its control
// socket, and reads its answer, of any status, into out. It fails with
// [ErrNotRunning] when there is none.
func callControl(ctx context.Context, data, path string, in, out any) error {
	res, err := askControl(ctx, data, http.MethodPost, path, in)
	if err != nil {
		return err
	}
	defer res.Body.Close()
	return readControl(res, out)
}

func readControl(res *http.Response, out any) error {
	if err := json.NewDecoder(io.LimitReader(res.Body, maxControlBody)).Decode(out); err != nil {
		return fmt.Errorf("couldn't read the daemon's answer (status %d): %w", res.StatusCode, err)
	}
	return nil
}

// askControl is callControl for an answer that the caller reads, and closes.
func askControl(ctx context.Context, data, method, path string, in any) (*http.Response, error) {
	body, err := json.Marshal(in)
	if err != nil {
		return nil, err
	}
	conn, err := dialUnix(filepath.Join(data, controlName))
	if err != nil {
		if errors.Is(err, fs.ErrNotExist) || errors.Is(err, syscall.ECONNREFUSED) {
			return nil, ErrNotRunning
		}
		return nil, fmt.Errorf("couldn't reach the daemon: %w", err)
	}
	client := &http.Client{Transport: &http.Transport{
		DialContext:       func(context.Context, string, string) (net.Conn, error) { return conn, nil },
		DisableKeepAlives: true,
	}}
	req, err := http.NewRequestWithContext(ctx, method, "http://control"+path, bytes.NewReader(body))
	if err != nil {
		conn.Close()
		return nil, err
	}
	res, err := client.Do(req)
	if err != nil {
		return nil, fmt.Errorf("couldn't reach the daemon: %w", err)
	}
	return res, nil
}
