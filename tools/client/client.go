package client

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strings"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/aws/retry"
	"github.com/aws/aws-sdk-go-v2/aws/signer/v4"
	awshttp "github.com/aws/aws-sdk-go-v2/aws/transport/http"

	"keymill/daemon/wire"
	"keymill/daemon/wire/bulk"
)

// Limits of one request.
const (
	MaxItems = bulk.MaxRecords
	MaxBody  = 8 << 20
)

// maxAnswer bounds what is read of an answer: more than the server ever sends.
const maxAnswer = 32 << 20

// HTTPClient sends a request; *http.Client does.
type HTTPClient interface {
	Do(*http.Request) (*http.Response, error)
}

// Options configure a [Client]. Endpoint, Region and Credentials are required.
type Options struct {
	// Endpoint is the server's URL, such as https://keymill.example:4599.
	Endpoint string

	// Region is the namespace of keys, as the signature names it.
	Region string

	// Credentials supplies the access key.
	Credentials aws.CredentialsProvider

	// HTTPClient sends the requests; nil is a client of the SDK's kind that keeps
	// connections open.
	HTTPClient HTTPClient

	// Retryer decides what is tried again, and when; nil is the SDK's standard
	// one, three attempts. aws.NopRetryer tries once.
	Retryer aws.Retryer

	// JSON asks for answers in JSON. They say the same as the binary form, and
	// cost several times as much.
	JSON bool
}

// Client calls Keymill's own operations. It is safe for concurrent use.
type Client struct {
	options Options
	signer  *v4.Signer
}

// New returns a client. What is missing in the options shows with the first call.
func New(o Options, optFns ...func(*Options)) *Client {
	for _, f := range optFns {
		f(&o)
	}
	if o.HTTPClient == nil {
		o.HTTPClient = awshttp.NewBuildableClient().WithTransportOptions(func(t *http.Transport) { t.DisableCompression = true })
	}
	if o.Retryer == nil {
		o.Retryer = retry.NewStandard()
	}
	return &Client{options: o, signer: v4.NewSigner()}
}

// NewFromConfig returns a client with the SDK's configuration: region,
// credentials, HTTP client, retryer and base endpoint.
func NewFromConfig(cfg aws.Config, optFns ...func(*Options)) *Client {
	o := Options{Region: cfg.Region, Credentials: cfg.Credentials}
	if cfg.HTTPClient != nil {
		o.HTTPClient = cfg.HTTPClient
	}
	if cfg.Retryer != nil {
		o.Retryer = cfg.Retryer()
	}
	if cfg.BaseEndpoint != nil {
		o.Endpoint = *cfg.BaseEndpoint
	}
	return New(o, optFns...)
}

// Options returns a copy of the client's options.
func (c *Client) Options() Options { return c.options }

// An answer is a successful response.
type answer struct {
	body   []byte
	binary bool
}

// call sends a request until it succeeds, fails for good, or the retryer has had
// enough. It wipes the request's body, which may hold plaintext, when it is done.
// size is a guess of the body's length, on the safe side.
func (c *Client) call(ctx context.Context, op wire.Op, in wire.Input, size int, optFns []func(*Options)) (*answer, error) {
	o := c.options
	for _, f := range optFns {
		f(&o)
	}
	switch {
	case o.Endpoint == "":
		return nil, operationError(op, errors.New("no Endpoint in the options"))
	case o.Region == "":
		return nil, operationError(op, errors.New("no Region in the options"))
	case o.Credentials == nil:
		return nil, operationError(op, errors.New("no Credentials in the options"))
	}
	body := in.AppendJSON(make([]byte, 0, size))
	defer clear(body)
	if len(body) > op.MaxBody() {
		return nil, operationError(op, fmt.Errorf("the request takes %d bytes of JSON, the limit is %d: send fewer items", len(body), op.MaxBody()))
	}
	a, err := c.attempts(ctx, &o, op, body)
	if err != nil {
		return nil, operationError(op, err)
	}
	return a, nil
}

func operationError(op wire.Op, err error) error {
	return fmt.Errorf("operation error Keymill: %s: %w", op, err)
}

// attempts is the retry loop of the SDK, without its middleware.
func (c *Client) attempts(ctx context.Context, o *Options, op wire.Op, body []byte) (*answer, error) {
	release := func(error) error { return nil }
	for n := 1; ; n++ {
		a, err := c.attempt(ctx, o, op, body)
		if rerr := release(err); err == nil && rerr != nil {
			return nil, rerr
		}
		if err == nil {
			return a, nil
		}
		most := o.Retryer.MaxAttempts() // 0 is no bound
		if ctx.Err() != nil || !o.Retryer.IsErrorRetryable(err) || most > 0 && n >= most {
			return nil, err
		}
		var terr error
		if release, terr = o.Retryer.GetRetryToken(ctx, err); terr != nil {
			return nil, errors.Join(err, terr)
		}
		delay, derr := o.Retryer.RetryDelay(n, err)
		if derr != nil {
			return nil, errors.Join(err, derr)
		}
		t := time.NewTimer(delay)
		select {
		case <-t.C:
		case <-ctx.Done():
			t.Stop()
			return nil, errors.Join(err, context.Cause(ctx))
		}
	}
}

// attempt sends the request once.
func (c *Client) attempt(ctx context.Context, o *Options, op wire.Op, body []byte) (*answer, error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, strings.TrimSuffix(o.Endpoint, "/")+"/", bytes.NewReader(body))
	if err != nil {
		return nil, err
	}
	req.Header.Set("Content-Type", wire.ContentType)
	req.Header.Set("X-Amz-Target", op.Target())
	if !o.JSON {
		req.Header.Set("Accept", bulk.ContentType)
	}
	cred, err := o.Credentials.Retrieve(ctx)
	if err != nil {
		return nil, fmt.Errorf("couldn't get credentials: %w", err)
	}
	hash := sha256.Sum256(body)
	if err := c.signer.SignHTTP(ctx, cred, req, hex.EncodeToString(hash[:]), "kms", o.Region, time.Now()); err != nil {
		return nil, fmt.Errorf("couldn't sign: %w", err)
	}
	resp, err := o.HTTPClient.Do(req)
	if err != nil {
		return nil, lost(ctx, err)
	}
	defer resp.Body.Close()
	text, err := readBody(resp)
	if err != nil {
		return nil, lost(ctx, err)
	}
	if resp.StatusCode != http.StatusOK {
		return nil, newAPIError(resp, text)
	}
	kind, _, _ := strings.Cut(resp.Header.Get("Content-Type"), ";")
	return &answer{text, kind == bulk.ContentType}, nil
}

// readBody reads an answer into a buffer of its length.
func readBody(resp *http.Response) ([]byte, error) {
	if resp.ContentLength > maxAnswer {
		return nil, fmt.Errorf("the answer has %d bytes, more than any of Keymill's", resp.ContentLength)
	}
	if n := resp.ContentLength; n >= 0 {
		b := make([]byte, n)
		if _, err := io.ReadFull(resp.Body, b); err != nil {
			clear(b)
			return nil, err
		}
		return b, nil
	}
	return io.ReadAll(io.LimitReader(resp.Body, maxAnswer))
}
