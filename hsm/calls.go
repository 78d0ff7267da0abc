//go:build cgo

package hsm

/*
#cgo linux LDFLAGS: -ldl
#cgo noescape keymill_crypt
#cgo nocallback keymill_crypt
#cgo noescape keymill_random
#cgo nocallback keymill_random
#cgo noescape keymill_login
#cgo nocallback keymill_login

#include <dlfcn.h>
#include <stdlib.h>
#include <string.h>

typedef unsigned char byte_t;
typedef unsigned long ulong_t;

struct functions { byte_t version[2]; void *fn[68]; };
struct mechanism { ulong_t mechanism; void *param; ulong_t len; };
struct gcm { byte_t *iv; ulong_t iv_len, iv_bits; byte_t *aad; ulong_t aad_len, tag_bits; };
struct oaep { ulong_t hash, mgf, source; void *data; ulong_t len; };
struct pss { ulong_t hash, mgf, salt; };

enum { LOGIN = 18, RANDOM = 64 };
enum { NONE, IV, GCM, OAEP, PSS };

// keymill_crypt is C_XInit and C_X in one, where C_X is the function after C_XInit in
// the list. began says on return whether C_XInit succeeded, and on entry that it did.
static ulong_t keymill_crypt(void *list, int init, ulong_t session, ulong_t key, ulong_t mechanism, int form,
	byte_t *iv, ulong_t *iv_len, byte_t *aad, ulong_t aad_len, ulong_t hash, ulong_t mgf, ulong_t salt,
	byte_t *in, ulong_t n, byte_t *out, ulong_t *room, int *began)
{
	void **fn = ((struct functions *)list)->fn;
	byte_t own[64] = { 0 }; // a token may write into it
	struct gcm gcm = { own, *iv_len, 8 * *iv_len, aad_len ? aad : NULL, aad_len, 128 };
	struct oaep oaep = { hash, mgf, 1, NULL, 0 };
	struct pss pss = { hash, mgf, salt };
	struct mechanism m = { mechanism, NULL, 0 };
	ulong_t rv;
	memcpy(own, iv, *iv_len);
	switch (form) {
	case IV:   m.param = own;   m.len = *iv_len; break;
	case GCM:  m.param = &gcm;  m.len = sizeof gcm; break;
	case OAEP: m.param = &oaep; m.len = sizeof oaep; break;
	case PSS:  m.param = &pss;  m.len = sizeof pss; break;
	}
	if (!*began) {
		rv = ((ulong_t (*)(ulong_t, struct mechanism *, ulong_t))fn[init])(session, &m, key);
		if (rv != 0)
			return rv;
		*began = 1;
	}
	rv = ((ulong_t (*)(ulong_t, byte_t *, ulong_t, byte_t *, ulong_t *))fn[init + 1])(session, in, n, out, room);
	if (form == GCM && gcm.iv == own && gcm.iv_len <= sizeof own) {
		memcpy(iv, own, gcm.iv_len <= 16 ? gcm.iv_len : 16);
		*iv_len = gcm.iv_len;
	}
	return rv;
}

static ulong_t keymill_random(void *list, ulong_t session, byte_t *out, ulong_t n)
{
	return ((ulong_t (*)(ulong_t, byte_t *, ulong_t))((struct functions *)list)->fn[RANDOM])(session, out, n);
}

static ulong_t keymill_login(void *list, ulong_t session, ulong_t user, byte_t *pin, ulong_t n)
{
	return ((ulong_t (*)(ulong_t, ulong_t, byte_t *, ulong_t))((struct functions *)list)->fn[LOGIN])(session, user, pin, n);
}
*/
import "C"

import (
	"fmt"
	"unsafe"

	"github.com/miekg/pkcs11"

	"keymill/hsm/arena"
)

// # Calls past the binding
//
// What is done with keys goes to the module without the PKCS#11 binding, which takes
// three calls from Go to C and four allocations in C for a decryption, asks the module
// for the length of each result first (a token may take that for a round trip of its
// own), and leaves decrypted keys, random bytes and the PIN behind in freed memory of
// the C library. Here it is one call, and results are written where they are wanted.
// On SoftHSM2 that saves a tenth of the processor time of an unwrap.
//
// It needs the list of functions that the binding uses: modules may give out
// another one, with a state of its own, to whoever asks again. The binding does not
// show it; its handle is a pointer to {library, list}. That this still holds is
// checked when a module is loaded.

// A ckFunction is the position of C_XInit in CK_FUNCTION_LIST; C_X follows it.
type ckFunction int

const (
	ckEncrypt ckFunction = 29
	ckDecrypt ckFunction = 33
	ckSign    ckFunction = 42
)

func (f ckFunction) String() string {
	switch f {
	case ckEncrypt:
		return "C_Encrypt"
	case ckDecrypt:
		return "C_Decrypt"
	default:
		return "C_Sign"
	}
}

// A mech is a mechanism with its parameter.
type mech struct {
	mechanism uint
	form      mechForm

	iv    [16]byte // formIV and formGCM; the token may have written it
	ivLen int
	aad   []byte // formGCM

	hash, mgf, salt uint // formOAEP and, with salt, formPSS
}

type mechForm int

const (
	formNone mechForm = C.NONE
	formIV   mechForm = C.IV
	formGCM  mechForm = C.GCM
	formOAEP mechForm = C.OAEP
	formPSS  mechForm = C.PSS
)

// Room for a result beyond its input: tags, padding, and what a token says it may need;
// and for what RSA makes of anything.
const (
	roomBlocks = 64
	roomRSA    = 1024
	maxRoom    = 64 << 10
)

// once does one operation in the session: the function's Init and the function itself.
func (s *session) once(f ckFunction, m *mech, key pkcs11.ObjectHandle, in []byte) ([]byte, error) {
	room := C.ulong_t(len(in) + roomBlocks)
	if f == ckSign || m.form == formOAEP {
		room = roomRSA
	}
	out := make([]byte, room)
	ivLen, began := C.ulong_t(m.ivLen), C.int(0)
	for range 2 {
		s.tick()
		rv := C.keymill_crypt(s.m.list, C.int(f), C.ulong_t(s.sh), C.ulong_t(key), C.ulong_t(m.mechanism), C.int(m.form),
			bytePtr(m.iv[:]), &ivLen, bytePtr(m.aad), C.ulong_t(len(m.aad)), C.ulong_t(m.hash), C.ulong_t(m.mgf), C.ulong_t(m.salt),
			bytePtr(in), C.ulong_t(len(in)), bytePtr(out), &room, &began)
		switch {
		case rv == 0 && int(room) <= len(out) && ivLen <= C.ulong_t(len(m.iv)):
			m.ivLen = int(ivLen)
			arena.Wipe(out[room:])
			return out[:room], nil
		case rv == 0:
			arena.Wipe(out)
			return nil, fmt.Errorf("%w: %s returned %d bytes and an IV of %d", ErrToken, f, room, ivLen)
		case began == 0:
			return nil, tokenError(f.String()+"Init", pkcs11.Error(rv))
		case rv == pkcs11.CKR_BUFFER_TOO_SMALL && int(room) > len(out) && room <= maxRoom:
			out = make([]byte, room) // the operation is still active
		default:
			arena.Wipe(out)
			return nil, errOnce{tokenError(f.String(), pkcs11.Error(rv))}
		}
	}
	return nil, fmt.Errorf("%w: %s does not say how long its result is", ErrToken, f)
}

// errOnce marks an error of the function itself: what comes from its Init cannot mean
// that the input is wrong.
type errOnce struct{ error }

func (e errOnce) Unwrap() error { return e.error }

// bytePtr returns a pointer that is not nil, not even for no bytes: modules take that
// for a question or refuse it.
func bytePtr(b []byte) *C.byte_t {
	if len(b) == 0 {
		b = make([]byte, 1)
	}
	return (*C.byte_t)(&b[0])
}

// drawInto is C_GenerateRandom.
func (s *session) drawInto(b []byte) error {
	s.tick()
	if rv := C.keymill_random(s.m.list, C.ulong_t(s.sh), bytePtr(b), C.ulong_t(len(b))); rv != 0 {
		return tokenError("C_GenerateRandom", pkcs11.Error(rv))
	}
	return nil
}

// loginUser is C_Login.
func (m *module) loginUser(sh pkcs11.SessionHandle, pin []byte) error {
	if rv := C.keymill_login(m.list, C.ulong_t(sh), pkcs11.CKU_USER, bytePtr(pin), C.ulong_t(len(pin))); rv != 0 {
		return pkcs11.Error(rv)
	}
	return nil
}

// functionList returns the list of functions that ctx calls.
func functionList(ctx *pkcs11.Ctx, path string) (unsafe.Pointer, error) {
	binding := *(**struct{ library, list unsafe.Pointer })(unsafe.Pointer(ctx))
	name := C.CString(path)
	defer C.free(unsafe.Pointer(name))
	library := C.dlopen(name, C.RTLD_LAZY|C.RTLD_NOLOAD)
	if library != nil {
		defer C.dlclose(library) // the binding has it as well
	}
	if library == nil || library != binding.library || binding.list == nil {
		return nil, fmt.Errorf("%w: the PKCS#11 binding of this program has changed: its list of functions is not where it was", ErrModule)
	}
	return binding.list, nil
}
