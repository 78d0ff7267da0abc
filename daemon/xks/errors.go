package xks

import (
	"errors"
	"fmt"

	"keymill/daemon/wire"
)

// A Reason says why a call failed: with an error of the protocol, or on the way.
type Reason uint8

// The reasons. Those of the protocol carry its names.
const (
	ValidationException Reason = iota + 1
	InvalidStateException
	InvalidCiphertextException
	InvalidKeyUsageException
	AuthenticationFailedException
	AccessDeniedException
	KeyNotFoundException
	InvalidURIPathException
	UnsupportedOperationException
	DependencyTimeoutException
	ThrottlingException
	InternalException

	// Of the way there and back.
	MalformedReply // not of the protocol, or against its rules
	Unreachable    // no name, no connection, or it broke
	TLSFailed      // no handshake, or a certificate that is not trusted
	TimedOut       // no answer in the time allotted

	// Of the key store.
	NotConnected      // its connection state is not CONNECTED
	ManagersDown      // all external key managers report UNAVAILABLE
	KeyMisconfigured  // the external key is of another kind
	BadConfiguration  // endpoint or path cannot be called
	ConnectionRefused // a reserved address
	numReasons
)

// A row says what becomes of a reason. store is what CreateCustomKeyStore and
// UpdateCustomKeyStore answer, key CreateKey; connect is the ConnectionErrorCode.
// Cryptographic operations always answer KMSInvalidStateException: only the text
// tells the cause. name and status are the protocol's, where it has the reason.
//
// Where the protocol's document has no entry for a call, the reason is a reply
// that the call cannot have: malformed.
type row struct {
	name       string
	status     int
	store, key wire.Code
	connect    string
	text       string
}

const (
	codeState = wire.CustomKeyStoreInvalidStateException

	invalidResponse = "XKS_PROXY_INVALID_RESPONSE"
	notReachable    = "XKS_PROXY_NOT_REACHABLE"
	timedOut        = "XKS_PROXY_TIMED_OUT"

	textMalformed = "The response from the external key store proxy cannot be interpreted. If this happens again, report it to the administrator of the external key store proxy."
	textReach     = "The external key store proxy cannot be reached. If this happens again, check that it is running and that its endpoint and network are set up correctly."
	textTime      = "The external key store proxy did not respond in the time allotted. Retry the request. If this happens again, report it to the administrator of the external key store proxy."
	textConfig    = "The URI endpoint or path of the external key store proxy is not valid. Check the configuration of the external key store."
)

var rows = [numReasons]row{
	ValidationException:           {"ValidationException", 400, wire.XksProxyInvalidResponseException, codeState, invalidResponse, textMalformed},
	InvalidStateException:         {"InvalidStateException", 400, wire.XksProxyInvalidResponseException, wire.XksKeyInvalidConfigurationException, invalidResponse, "The external key is not enabled. Enable it in the external key manager."},
	InvalidCiphertextException:    {"InvalidCiphertextException", 400, wire.XksProxyInvalidResponseException, codeState, invalidResponse, "The external key store proxy rejected the request: the ciphertext or the encryption context is corrupted, missing, or otherwise invalid."},
	InvalidKeyUsageException:      {"InvalidKeyUsageException", 400, wire.XksProxyInvalidResponseException, wire.XksKeyInvalidConfigurationException, invalidResponse, "The external key does not support this operation. Check its key usage in the external key manager."},
	AuthenticationFailedException: {"AuthenticationFailedException", 401, wire.XksProxyIncorrectAuthenticationCredentialException, codeState, "INVALID_CREDENTIALS", "The external key store proxy could not authenticate the request. Check the proxy authentication credential of the external key store."},
	AccessDeniedException:         {"AccessDeniedException", 403, wire.XksProxyInvalidResponseException, codeState, "XKS_PROXY_ACCESS_DENIED", "The external key store proxy denied access to the operation. Check that both the caller and the external key are authorized for it."},
	KeyNotFoundException:          {"KeyNotFoundException", 404, wire.XksProxyInvalidResponseException, wire.XksKeyNotFoundException, invalidResponse, "The external key store proxy could not find the external key. Check the ID of the external key and that it exists in the external key manager."},
	InvalidURIPathException:       {"InvalidUriPathException", 404, wire.XksProxyInvalidConfigurationException, codeState, "XKS_PROXY_INVALID_CONFIGURATION", "The external key store proxy does not know the URI path of the request. Check the proxy URI path of the external key store."},
	UnsupportedOperationException: {"UnsupportedOperationException", 501, wire.XksProxyInvalidResponseException, codeState, invalidResponse, "The external key store proxy does not support this operation."},
	DependencyTimeoutException:    {"DependencyTimeoutException", 503, wire.XksProxyUriUnreachableException, codeState, timedOut, textTime},
	ThrottlingException:           {"ThrottlingException", 429, wire.XksProxyUriUnreachableException, codeState, notReachable, "The external key store proxy rejected the request because of a very high request rate. Reduce the rate of calls that use KMS keys in this external key store."},
	InternalException:             {"InternalException", 500, wire.XksProxyInvalidResponseException, codeState, invalidResponse, "The external key store proxy cannot reach the external key manager. If this happens again, report it to the administrator of the external key store proxy."},

	MalformedReply:    {store: wire.XksProxyInvalidResponseException, key: codeState, connect: invalidResponse, text: textMalformed},
	Unreachable:       {store: wire.XksProxyUriUnreachableException, key: codeState, connect: notReachable, text: textReach},
	TLSFailed:         {store: wire.XksProxyUriUnreachableException, key: codeState, connect: "XKS_PROXY_INVALID_TLS_CONFIGURATION", text: "A TLS connection to the external key store proxy cannot be established. Check the TLS configuration of the proxy, including its certificate."},
	TimedOut:          {store: wire.XksProxyUriUnreachableException, key: codeState, connect: timedOut, text: textTime},
	NotConnected:      {store: codeState, key: codeState, connect: "INTERNAL_ERROR", text: "The external key store is not connected. Connect it with ConnectCustomKeyStore."},
	ManagersDown:      {store: wire.XksProxyUriUnreachableException, key: codeState, connect: notReachable, text: "The external key store proxy reports that none of its external key managers is available."},
	KeyMisconfigured:  {store: wire.XksProxyInvalidResponseException, key: wire.XksKeyInvalidConfigurationException, connect: invalidResponse, text: "The external key does not meet the requirements: it must be an enabled 256-bit AES key that may encrypt and decrypt."},
	BadConfiguration:  {store: wire.XksProxyInvalidConfigurationException, key: codeState, connect: "XKS_PROXY_INVALID_CONFIGURATION", text: textConfig},
	ConnectionRefused: {store: wire.XksProxyUriUnreachableException, key: codeState, connect: notReachable, text: textReach},
}

// byName finds the reason of an errorName.
var byName = func() map[string]Reason {
	m := make(map[string]Reason)
	for r, row := range rows {
		if row.name != "" {
			m[row.name] = Reason(r)
		}
	}
	return m
}()

func (r Reason) row() *row {
	if r == 0 || r >= numReasons {
		r = MalformedReply
	}
	return &rows[r]
}

var wayNames = map[Reason]string{
	MalformedReply: "malformed reply", Unreachable: "unreachable", TLSFailed: "TLS failed", TimedOut: "timed out",
	NotConnected: "not connected", ManagersDown: "key managers unavailable", KeyMisconfigured: "key of another kind",
	BadConfiguration: "bad configuration", ConnectionRefused: "reserved address",
}

// String returns the protocol's name of r, or a few words.
func (r Reason) String() string {
	if name := r.row().name; name != "" {
		return name
	}
	return wayNames[r]
}

// An Error is a call that failed. Its text is for the log: it may hold what
// the proxy said. What a caller of KMS may be told are [StoreError], [KeyError]
// and [CryptoError].
type Error struct {
	Reason Reason
	cause  error
}

// NewError returns an error with a reason and, perhaps, a cause.
func NewError(r Reason, cause error) *Error { return &Error{r, cause} }

func (e *Error) Error() string {
	if e.cause == nil {
		return "xks: " + e.Reason.String()
	}
	return fmt.Sprintf("xks: %v: %v", e.Reason, e.cause)
}

// Unwrap returns the cause.
func (e *Error) Unwrap() error { return e.cause }

// ReasonOf returns the reason of an error of this package, 0 for any other.
func ReasonOf(err error) Reason {
	var e *Error
	if errors.As(err, &e) {
		return e.Reason
	}
	return 0
}

// StoreError is what CreateCustomKeyStore and UpdateCustomKeyStore answer when
// the proxy's health check failed with err; nil when err is none of this package.
func StoreError(err error) *wire.Error {
	return answer(err, func(r *row) wire.Code { return r.store })
}

// KeyError is what CreateKey answers when the look at the external key failed.
func KeyError(err error) *wire.Error { return answer(err, func(r *row) wire.Code { return r.key }) }

// CryptoError is what a cryptographic operation answers when a key of NewKey
// failed with err; nil when err is none of this package.
func CryptoError(err error) *wire.Error {
	return answer(err, func(*row) wire.Code { return wire.KMSInvalidStateException })
}

func answer(err error, code func(*row) wire.Code) *wire.Error {
	r := ReasonOf(err)
	if r == 0 {
		return nil
	}
	return wire.ErrorText(code(r.row()), r.row().text).WithCause(err)
}

// ConnectionCode is the ConnectionErrorCode of a key store whose connection
// failed with err.
func ConnectionCode(err error) string {
	if r := ReasonOf(err); r != 0 {
		return r.row().connect
	}
	return "INTERNAL_ERROR"
}
