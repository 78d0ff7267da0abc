package wire

import (
	"fmt"
	"strings"
)

// Code names one of the errors that a caller can see. Its constants are
// generated: those of the model and those of the front end.
type Code uint8

// String returns the name as it stands in __type.
func (c Code) String() string { return codeTable[c].name }

// Status returns the HTTP status that goes with the code.
func (c Code) Status() int { return int(codeTable[c].status) }

type codeInfo struct {
	name      string
	status    uint16
	noMessage bool
}

// Error is an error as the caller sees it. It is immutable once returned and
// may be shared between requests.
type Error struct {
	Code      string // as in __type
	Message   string
	NoMessage bool // the body has only __type, whatever Message says
	Status    int

	cause error
}

// NewError returns an error with a formatted message, which the caller of the
// service will read: it must hold no secret. Codes that AWS answers without a
// message (InvalidCiphertextException and its kind) keep Message for the log.
func NewError(code Code, format string, args ...any) *Error {
	return ErrorText(code, fmt.Sprintf(format, args...))
}

// ErrorText is NewError for a text that is no format.
func ErrorText(code Code, text string) *Error {
	i := &codeTable[code]
	return &Error{Code: i.name, Message: text, NoMessage: i.noMessage, Status: int(i.status)}
}

// Bare returns an error whose body has only __type.
func Bare(code Code) *Error {
	i := &codeTable[code]
	return &Error{Code: i.name, NoMessage: true, Status: int(i.status)}
}

// WithStatus returns a copy with another HTTP status, for the few cases in
// which one code has two.
func (e *Error) WithStatus(status int) *Error {
	c := *e
	c.Status = status
	return &c
}

// WithCause returns a copy that carries what happened inside, for the log
// only: it is never part of the body.
func (e *Error) WithCause(cause error) *Error {
	c := *e
	c.cause = cause
	return &c
}

// Is makes errors.Is compare codes.
func (e *Error) Is(target error) bool {
	t, ok := target.(*Error)
	return ok && e != nil && t != nil && e.Code == t.Code
}

// Has tells whether e is an error with the given code.
func (e *Error) Has(code Code) bool { return e != nil && e.Code == codeTable[code].name }

// Unwrap returns the inner cause.
func (e *Error) Unwrap() error { return e.cause }

// Error returns code and message, not the cause.
func (e *Error) Error() string {
	if e.Message == "" {
		return e.Code
	}
	var b strings.Builder
	b.WriteString(e.Code)
	b.WriteString(": ")
	b.WriteString(e.Message)
	return b.String()
}

// AppendJSON appends the error body.
func (e *Error) AppendJSON(dst []byte) []byte {
	dst = append(dst, `{"__type":`...)
	dst = appendString(dst, e.Code)
	if !e.NoMessage {
		dst = append(dst, `,"message":`...)
		dst = appendString(dst, e.Message)
	}
	return append(dst, '}')
}
