package client

import (
	"context"
	"encoding/json"
	"fmt"
	"net/http"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/smithy-go"
)

// An APIError is the server's answer to a request that it refused.
type APIError struct {
	Code      string // such as ThrottlingException
	Message   string
	Status    int // of HTTP
	RequestID string
}

var _ smithy.APIError = (*APIError)(nil)

// Error says what the server said.
func (e *APIError) Error() string {
	return fmt.Sprintf("https response error StatusCode: %d, RequestID: %s, api error %s: %s", e.Status, e.RequestID, e.Code, e.Message)
}

// ErrorCode returns the code.
func (e *APIError) ErrorCode() string { return e.Code }

// ErrorMessage returns the message.
func (e *APIError) ErrorMessage() string { return e.Message }

// ErrorFault says whose fault it was.
func (e *APIError) ErrorFault() smithy.ErrorFault {
	if e.Status >= 500 {
		return smithy.FaultServer
	}
	return smithy.FaultClient
}

// HTTPStatusCode returns the status; the SDK's retryers look at it.
func (e *APIError) HTTPStatusCode() int { return e.Status }

func newAPIError(resp *http.Response, body []byte) error {
	e := &APIError{Status: resp.StatusCode, RequestID: resp.Header.Get("X-Amzn-Requestid")}
	var text struct {
		Type    string `json:"__type"`
		Message string `json:"message"`
	}
	if json.Unmarshal(body, &text) != nil || text.Type == "" {
		e.Code = "UnknownError"
		e.Message = http.StatusText(resp.StatusCode)
		return e
	}
	e.Code, e.Message = text.Type, text.Message
	return e
}

// An ItemError says what was wrong with one item.
type ItemError struct {
	Code    string // as the AWS KMS operation would answer
	Message string
}

var _ smithy.APIError = (*ItemError)(nil)

// Error says what the server said.
func (e *ItemError) Error() string { return fmt.Sprintf("api error %s: %s", e.Code, e.Message) }

// ErrorCode returns the code.
func (e *ItemError) ErrorCode() string { return e.Code }

// ErrorMessage returns the message.
func (e *ItemError) ErrorMessage() string { return e.Message }

// ErrorFault says that the client was at fault, as a throttled one is too.
func (e *ItemError) ErrorFault() smithy.ErrorFault { return smithy.FaultClient }

// lost returns what to make of an error of the connection.
func lost(ctx context.Context, err error) error {
	if ctx.Err() != nil {
		return &aws.RequestCanceledError{Err: err}
	}
	return &connectionError{err}
}

// connectionError is a request or an answer that was lost on the way; the SDK's
// retryers try such a request again.
type connectionError struct{ error }

func (e *connectionError) Unwrap() error         { return e.error }
func (e *connectionError) ConnectionError() bool { return true }
