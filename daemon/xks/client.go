package xks

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"slices"
	"strings"
	"sync/atomic"
	"syscall"
	"time"

	"keymill/daemon/sigv4"
	"keymill/daemon/wire"
	"keymill/engine"
)

// ClientConfig is one external key store, as CreateCustomKeyStore has it.
type ClientConfig struct {
	Store       string // its id, for the metrics; empty: not counted
	Endpoint    string // XksProxyUriEndpoint: "https://xks.example.com"
	Path        string // XksProxyUriPath: "/prefix/kms/xks/v1"
	AccessKeyID string
	Secret      []byte // RawSecretAccessKey; copied
	Region      string // the KMS's, for the signature
}

// A Client calls one proxy. It is immutable but for its counters and safe for
// concurrent use; a change of the key store makes another one. Its errors are
// [*Error]. Failures are logged, with what the proxy said, and with the request
// id of the call.
type Client struct {
	// Immutable.
	transport *Transport
	host      string
	base      string // path up to the version
	signer    *sigv4.Signer
	places    chan struct{} // one for each call that is under way
	metrics   *storeMetrics // nil: none

	// Atomic.
	warned     atomic.Int64 // when a failure was last logged as a warning, in nanoseconds
	suppressed atomic.Int64 // failures since then
}

// NewClient returns a client for c. It calls nobody yet. An endpoint or path
// that cannot be called is an [*Error] with BadConfiguration.
func (t *Transport) NewClient(c ClientConfig) (*Client, error) {
	bad := func(what string) (*Client, error) { return nil, NewError(BadConfiguration, errors.New(what)) }
	host, ok := strings.CutPrefix(c.Endpoint, "https://")
	if !ok || !validHost(host) {
		return bad("the endpoint must be https:// and a host name, without port and path")
	}
	if !ValidPath(c.Path) {
		return bad("the path must end in " + PathSuffix + " and have no empty element")
	}
	return &Client{
		transport: t,
		host:      host,
		base:      c.Path,
		signer:    sigv4.NewSigner(c.AccessKeyID, c.Secret, c.Region, Service),
		places:    make(chan struct{}, t.calls),
		metrics:   t.metricsOf(c.Store),
	}, nil
}

// ValidPath tells whether path can be that of a proxy.
func ValidPath(path string) bool {
	prefix, ok := strings.CutSuffix(path, PathSuffix)
	return ok && len(path) <= 128 && validPrefix(prefix)
}

func validPrefix(prefix string) bool {
	if prefix == "" {
		return true
	}
	for i := range len(prefix) {
		if c := prefix[i]; !alphanumeric(c) && c != '/' && c != '_' && c != '-' {
			return false
		}
	}
	return prefix[0] == '/' && prefix[len(prefix)-1] != '/' && !strings.Contains(prefix, "//")
}

// Close wipes the credential. Calls that come later fail to authenticate.
func (c *Client) Close() { c.signer.Wipe() }

// HealthStatus is what a proxy says of itself.
type HealthStatus struct {
	FleetSize            int64
	Vendor, Model, Maker string
	Fleet                []Manager
}

// Err is an [*Error] with ManagersDown when no external key manager can work.
func (h *HealthStatus) Err() error {
	for _, m := range h.Fleet {
		if m.Health != HealthUnavailable {
			return nil
		}
	}
	return NewError(ManagersDown, nil)
}

// Health asks for the proxy's state, for the KMS operation named.
func (c *Client) Health(ctx context.Context, operation, requestID string) (*HealthStatus, error) {
	q := &Request{Call: Call{Operation: operation, RequestID: requestID}}
	var h *HealthStatus
	err := c.call(ctx, Health, "", q, func(r *Response) {
		h = &HealthStatus{r.FleetSize, strings.Clone(r.Vendor), strings.Clone(r.Model), strings.Clone(r.Maker), slices.Clone(r.Fleet)}
		for i, m := range h.Fleet {
			h.Fleet[i] = Manager{strings.Clone(m.ID), strings.Clone(m.Model), strings.Clone(m.Health)}
		}
		c.metrics.fleet(h)
	})
	return h, err
}

// KeyMetadata is what a proxy says of an external key.
type KeyMetadata struct {
	Spec   string
	Usage  []string
	Status string
}

// Err is an [*Error] when a KMS key cannot be made on such a key.
func (m *KeyMetadata) Err() error {
	switch {
	case m.Status != StatusEnabled:
		return NewError(InvalidStateException, errors.New("the external key is "+m.Status))
	case m.Spec != SpecAES256 || !slices.Contains(m.Usage, UsageEncrypt) || !slices.Contains(m.Usage, UsageDecrypt):
		return NewError(KeyMisconfigured, fmt.Errorf("the external key is %q for %q", m.Spec, m.Usage))
	}
	return nil
}

// Metadata asks what kind of key an external key is; see [KeyMetadata.Err].
func (c *Client) Metadata(ctx context.Context, externalID string, meta Call) (*KeyMetadata, error) {
	meta.KeyARN, meta.ViaService = "", "" // not of this call
	var m *KeyMetadata
	err := c.call(ctx, Metadata, externalID, &Request{Call: meta}, func(r *Response) {
		m = &KeyMetadata{Spec: strings.Clone(r.KeySpec), Status: strings.Clone(r.KeyStatus)}
		for _, u := range r.KeyUsage {
			m.Usage = append(m.Usage, strings.Clone(u))
		}
	})
	return m, err
}

// Encrypt encrypts plaintext with an external key. The ciphertext data integrity
// value is asked for and verified.
func (c *Client) Encrypt(ctx context.Context, externalID string, plaintext, aad []byte, meta Call) (s engine.Sealed, err error) {
	q := &Request{Call: meta, Algorithm: AESGCM, Plaintext: plaintext, AAD: aad, Integrity: SHA256}
	err = c.call(ctx, Encrypt, externalID, q, func(r *Response) {
		s = engine.Sealed{Ciphertext: bytes.Clone(r.Ciphertext), Metadata: bytes.Clone(r.Metadata), IV: bytes.Clone(r.IV), Tag: bytes.Clone(r.Tag)}
	})
	return s, err
}

// Decrypt undoes Encrypt. The caller wipes what it returns.
func (c *Client) Decrypt(ctx context.Context, externalID string, s engine.Sealed, aad []byte, meta Call) (plaintext []byte, err error) {
	q := &Request{Call: meta, Algorithm: AESGCM, Ciphertext: s.Ciphertext, Metadata: s.Metadata, IV: s.IV, Tag: s.Tag, AAD: aad}
	if len(q.Metadata) == 0 {
		q.Metadata = nil // the blob does not tell an empty value from an absent one
	}
	err = c.call(ctx, Decrypt, externalID, q, func(r *Response) { plaintext = bytes.Clone(r.Plaintext) })
	return plaintext, err
}

// call makes one call within the budget. take gets an answer that was held to
// all rules; what it keeps it clones.
func (c *Client) call(ctx context.Context, a Action, externalID string, q *Request, take func(*Response)) error {
	began := c.transport.clock()
	err := c.try(ctx, a, externalID, q, take)
	took := c.transport.clock().Sub(began)
	c.metrics.called(a, took, err)
	if err == nil {
		return nil
	}
	c.log(a, externalID, &q.Call, took, err)
	return err
}

func (c *Client) try(ctx context.Context, a Action, externalID string, q *Request, take func(*Response)) error {
	path := c.base + "/" + a.String()
	if a != Health {
		if !ValidKeyID(externalID) {
			return NewError(KeyNotFoundException, errors.New("the external key's id cannot stand in a path"))
		}
		path = c.base + "/keys/" + externalID + "/" + a.String()
	}
	ctx, cancel := context.WithTimeout(ctx, c.transport.budget)
	defer cancel()
	select {
	case c.places <- struct{}{}:
		defer func() { <-c.places }()
	case <-ctx.Done():
		return NewError(ThrottlingException, fmt.Errorf("%d calls are under way: %w", cap(c.places), ctx.Err()))
	}

	// Nothing in it is secret: what is encrypted here is encrypted already.
	body := q.Append(make([]byte, 0, 4<<10))
	date, authorization := c.signer.Sign(c.host, path, body, c.transport.clock())
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, "https://"+c.host+path, bytes.NewReader(body))
	if err != nil {
		return NewError(BadConfiguration, err)
	}
	req.Header = http.Header{
		"Content-Type":  {"application/json"},
		"X-Amz-Date":    {date},
		"Authorization": {authorization},
		"User-Agent":    {"Keymill"},
		// Not sent. It tells net/http that the request may go over another
		// connection when a kept one was closed before an answer came.
		"X-Idempotency-Key": nil,
	}
	resp, err := c.transport.http.RoundTrip(req)
	if err != nil {
		return NewError(wayReason(ctx, err), err)
	}
	defer resp.Body.Close()
	if resp.TLS != nil && len(resp.TLS.PeerCertificates) > 0 {
		c.metrics.certificate(resp.TLS.PeerCertificates[0].NotAfter)
	}
	answer, err := io.ReadAll(io.LimitReader(resp.Body, MaxBody+1))
	if err != nil {
		if reason := wayReason(ctx, err); reason == TimedOut {
			return NewError(TimedOut, err)
		}
		return NewError(MalformedReply, fmt.Errorf("the reply breaks off: %w", err))
	}
	if len(answer) > MaxBody {
		return NewError(MalformedReply, fmt.Errorf("the reply is longer than %d bytes", MaxBody))
	}
	defer clear(answer)
	var d wire.Decoder
	defer d.Reset()
	if resp.StatusCode != http.StatusOK {
		return refusal(&d, resp.StatusCode, answer)
	}
	r, err := DecodeResponse(&d, a, answer)
	if err == nil {
		err = r.Answers(a, q)
	}
	if err != nil {
		return NewError(MalformedReply, err)
	}
	take(r)
	return nil
}

// wayReason tells what went wrong before there was an answer.
func wayReason(ctx context.Context, err error) Reason {
	var own *Error
	var cert *tls.CertificateVerificationError
	var record tls.RecordHeaderError
	var alert tls.AlertError
	var host x509.HostnameError
	var timeout interface{ Timeout() bool }
	switch {
	case errors.As(err, &own):
		return own.Reason
	case ctx.Err() != nil || errors.As(err, &timeout) && timeout.Timeout():
		return TimedOut
	case errors.As(err, &cert), errors.As(err, &record), errors.As(err, &alert), errors.As(err, &host),
		strings.Contains(err.Error(), "tls: "), strings.Contains(err.Error(), "remote error: "):
		return TLSFailed
	case errors.Is(err, io.EOF), errors.Is(err, io.ErrUnexpectedEOF), errors.Is(err, syscall.ECONNRESET), errors.Is(err, syscall.EPIPE):
		return Unreachable
	case strings.Contains(err.Error(), "malformed HTTP"), strings.Contains(err.Error(), "net/http: "):
		return MalformedReply
	}
	return Unreachable
}

// refusal reads the body of an answer that is an error.
func refusal(d *wire.Decoder, status int, body []byte) error {
	name, message, err := DecodeError(d, body)
	if err != nil {
		return NewError(MalformedReply, fmt.Errorf("status %d: %w", status, err))
	}
	reason := byName[name]
	if reason == 0 {
		return NewError(MalformedReply, fmt.Errorf("status %d with the error %q (%q)", status, printable(name, 64), message))
	}
	return NewError(reason, fmt.Errorf("status %d, %q", status, message))
}

// DecodeError reads the body of an error. The message is cut to what the
// protocol allows.
func DecodeError(d *wire.Decoder, body []byte) (name, message string, err error) {
	if e := d.DecodeObject(body, MaxBody, func(member string) {
		switch member {
		case "errorName":
			name = strings.Clone(d.Text())
		case "errorMessage":
			message = printable(d.Text(), maxErrorText)
		}
	}); e != nil {
		return "", "", broken("%s", e.Message)
	}
	if name == "" {
		return "", "", broken("errorName is required")
	}
	return name, message, nil
}

// printable returns at most n bytes of s, printable ASCII only.
func printable(s string, n int) string {
	b := []byte(s[:min(len(s), n)])
	for i, c := range b {
		if c < ' ' || c > '~' {
			b[i] = '?'
		}
	}
	return string(b)
}

// warnEvery bounds the warnings of one key store whose proxy is down: the rest
// goes to the debug level, and is counted.
const warnEvery = time.Second

func (c *Client) log(a Action, externalID string, meta *Call, took time.Duration, err error) {
	level := slog.LevelDebug
	now := c.transport.clock().UnixNano()
	last := c.warned.Load()
	if d := now - last; (d < 0 || d >= int64(warnEvery)) && c.warned.CompareAndSwap(last, now) {
		level = slog.LevelWarn
	}
	attrs := []slog.Attr{
		slog.String("host", c.host), slog.String("action", a.String()), slog.String("external_key_id", externalID),
		slog.String("request_id", meta.RequestID), slog.String("kms_operation", meta.Operation),
		slog.String("reason", ReasonOf(err).String()), slog.Duration("took", took), slog.Any("error", err),
	}
	if level == slog.LevelWarn {
		attrs = append(attrs, slog.Int64("others_not_shown", c.suppressed.Swap(0)))
	} else {
		c.suppressed.Add(1)
	}
	c.transport.log.LogAttrs(context.Background(), level, "external key store proxy call failed", attrs...)
}
