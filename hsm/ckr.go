//go:build cgo

package hsm

import (
	"errors"
	"fmt"

	"github.com/miekg/pkcs11"
)

// ckrAEADDecryptFailed is CKR_AEAD_DECRYPT_FAILED of PKCS#11 3.0, newer than the binding.
const ckrAEADDecryptFailed = 0x42

// ckrTable says what the return values of a module mean to us: the error they become,
// whose class Classify knows, and what an operator can do. What is not listed becomes
// ErrToken, which is fatal.
var ckrTable = map[uint]struct {
	err  error
	hint string
}{
	// The session, the login or the objects are gone; a new session may do.
	pkcs11.CKR_SESSION_HANDLE_INVALID:    {ErrSession, ""},
	pkcs11.CKR_SESSION_CLOSED:            {ErrSession, ""},
	pkcs11.CKR_USER_NOT_LOGGED_IN:        {ErrSession, ""},
	pkcs11.CKR_OBJECT_HANDLE_INVALID:     {ErrSession, ""},
	pkcs11.CKR_KEY_HANDLE_INVALID:        {ErrSession, ""},
	pkcs11.CKR_OPERATION_ACTIVE:          {ErrSession, ""},
	pkcs11.CKR_OPERATION_NOT_INITIALIZED: {ErrSession, ""},
	pkcs11.CKR_CRYPTOKI_NOT_INITIALIZED:  {ErrSession, ""},
	pkcs11.CKR_DEVICE_REMOVED:            {ErrTokenMissing, "check that the HSM is connected and reachable"},
	pkcs11.CKR_TOKEN_NOT_PRESENT:         {ErrTokenMissing, "check that the HSM is connected and reachable"},
	pkcs11.CKR_TOKEN_NOT_RECOGNIZED:      {ErrTokenMissing, "check that the HSM is initialised"},
	pkcs11.CKR_SLOT_ID_INVALID:           {ErrTokenMissing, "check that the HSM is connected and reachable"},

	// The device or the host is in trouble now; later may be better. Network HSMs
	// report a lost connection as any of these.
	pkcs11.CKR_GENERAL_ERROR:     {ErrDevice, ""},
	pkcs11.CKR_FUNCTION_FAILED:   {ErrDevice, ""},
	pkcs11.CKR_FUNCTION_CANCELED: {ErrDevice, ""},
	pkcs11.CKR_DEVICE_ERROR:      {ErrDevice, ""},
	pkcs11.CKR_DEVICE_MEMORY:     {ErrDevice, "the token is out of memory"},
	pkcs11.CKR_HOST_MEMORY:       {ErrDevice, "this host is out of memory"},
	pkcs11.CKR_SESSION_COUNT:     {ErrDevice, "the token has no session left; use fewer, here or in other programs"},

	// Never again with this PIN: each further try brings the token closer to its lock.
	pkcs11.CKR_PIN_INCORRECT:            {ErrPINIncorrect, "correct the PIN file; it is not tried again before a restart, so that the token does not lock"},
	pkcs11.CKR_PIN_INVALID:              {ErrPINIncorrect, "the PIN has characters the token does not take"},
	pkcs11.CKR_PIN_LEN_RANGE:            {ErrPINIncorrect, "the PIN is too short or too long for the token"},
	pkcs11.CKR_PIN_EXPIRED:              {ErrPINIncorrect, "the PIN has expired; set a new one with the vendor's tool"},
	pkcs11.CKR_USER_PIN_NOT_INITIALIZED: {ErrPINIncorrect, "the token has no user PIN yet; set one with the vendor's tool"},
	pkcs11.CKR_PIN_LOCKED:               {ErrTokenLocked, "unlock it with the security officer's PIN and the vendor's tool"},

	pkcs11.CKR_MECHANISM_INVALID:          {ErrMechanism, ""},
	pkcs11.CKR_MECHANISM_PARAM_INVALID:    {ErrMechanism, ""},
	pkcs11.CKR_KEY_TYPE_INCONSISTENT:      {ErrMechanism, ""},
	pkcs11.CKR_KEY_SIZE_RANGE:             {ErrMechanism, ""},
	pkcs11.CKR_KEY_FUNCTION_NOT_PERMITTED: {ErrMechanism, "the domain key may not encrypt and decrypt"},
	pkcs11.CKR_FUNCTION_NOT_SUPPORTED:     {ErrMechanism, ""},
	pkcs11.CKR_RANDOM_NO_RNG:              {ErrMechanism, "the token has no random number generator"},

	pkcs11.CKR_ENCRYPTED_DATA_INVALID:   {ErrBadWrapped, ""},
	pkcs11.CKR_ENCRYPTED_DATA_LEN_RANGE: {ErrBadWrapped, ""},
	ckrAEADDecryptFailed:                {ErrBadWrapped, ""},

	pkcs11.CKR_TOKEN_WRITE_PROTECTED: {ErrToken, "the token is write-protected; domain keys must be created on it"},
}

// tokenError wraps what a module returned, with the function that returned it.
func tokenError(function string, err error) error {
	if err == nil {
		return nil
	}
	var ckr pkcs11.Error
	if !errors.As(err, &ckr) {
		return fmt.Errorf("%w: %s: %w", ErrToken, function, err)
	}
	row, ok := ckrTable[uint(ckr)]
	if !ok {
		row.err = ErrToken
	}
	if row.hint == "" {
		return fmt.Errorf("%w: %s: %w", row.err, function, ckr)
	}
	return fmt.Errorf("%w: %s: %w; %s", row.err, function, ckr, row.hint)
}

// isCKR reports whether err came from the module with one of these values.
func isCKR(err error, values ...uint) bool {
	var ckr pkcs11.Error
	if !errors.As(err, &ckr) {
		return false
	}
	for _, v := range values {
		if uint(ckr) == v {
			return true
		}
	}
	return false
}

// ambiguous reports whether a failed C_Decrypt may mean a wrong tag as well as a
// failing device: SoftHSM2 answers CKR_GENERAL_ERROR to a changed GCM ciphertext,
// others use CKR_FUNCTION_FAILED, CKR_DEVICE_ERROR or a complaint about arguments.
func ambiguous(err error) bool {
	return isCKR(err, pkcs11.CKR_GENERAL_ERROR, pkcs11.CKR_FUNCTION_FAILED, pkcs11.CKR_DEVICE_ERROR,
		pkcs11.CKR_DATA_INVALID, pkcs11.CKR_DATA_LEN_RANGE, pkcs11.CKR_ARGUMENTS_BAD, pkcs11.CKR_SIGNATURE_INVALID)
}
