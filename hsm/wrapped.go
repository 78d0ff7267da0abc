package hsm

import "fmt"

// The wrapped form of a KEK describes itself, so that one store can hold KEKs of
// several mechanisms (after a firmware update, or a move to another token):
//
//	offset  size
//	0       1     format version, 1
//	1       1     scheme
//	2       1     n, length of the IV
//	3       n     IV
//	3+n     ..    ciphertext with whatever tag the scheme has
//
//	scheme                 IV     ciphertext
//	1  XAES-256-GCM        24     32 + 16          software root
//	2  CKM_AES_GCM         12-16  32 + 16
//	3  CKM_AES_CBC         16     32 + 16          check tag keyed by the KEK
//	4  CKM_AES_CBC_PAD     16     48 + 16          check tag keyed by the KEK
//	5  CKM_RSA_PKCS_OAEP   0      256 to 1024      SHA-256, MGF1 the same
//	6  CKM_RSA_PKCS_OAEP   0      256 to 1024      SHA-1, MGF1 the same
//
// There is no other length: a parser that knows the scheme knows the size.
type scheme byte

const (
	schemeXAES       scheme = 1
	schemeGCM        scheme = 2
	schemeCBC        scheme = 3
	schemeCBCPad     scheme = 4
	schemeOAEPSHA256 scheme = 5
	schemeOAEPSHA1   scheme = 6
)

const wrappedVersion = 1

// shape gives the sizes a scheme allows.
type shape struct {
	name         string
	ivMin, ivMax int
	ctMin, ctMax int
}

var shapes = [...]shape{
	schemeXAES:       {"XAES-256-GCM", 24, 24, 48, 48},
	schemeGCM:        {"CKM_AES_GCM", 12, 16, 48, 48},
	schemeCBC:        {"CKM_AES_CBC", 16, 16, 48, 48},
	schemeCBCPad:     {"CKM_AES_CBC_PAD", 16, 16, 64, 64},
	schemeOAEPSHA256: {"CKM_RSA_PKCS_OAEP (SHA-256)", 0, 0, 256, 1024},
	schemeOAEPSHA1:   {"CKM_RSA_PKCS_OAEP (SHA-1)", 0, 0, 256, 1024},
}

func (s scheme) String() string {
	if int(s) < len(shapes) && shapes[s].name != "" {
		return shapes[s].name
	}
	return fmt.Sprintf("scheme %d", byte(s))
}

// wrapped is the parsed form; its slices are views of what was parsed.
type wrapped struct {
	scheme scheme
	iv, ct []byte
}

// parseWrapped checks everything that can be checked without a key.
func parseWrapped(b []byte) (wrapped, error) {
	if len(b) < 3 || len(b) > MaxWrapped {
		return wrapped{}, fmt.Errorf("%w: %d bytes", ErrBadWrapped, len(b))
	}
	if b[0] != wrappedVersion {
		return wrapped{}, fmt.Errorf("%w: format version %d, this program knows version %d", ErrBadWrapped, b[0], wrappedVersion)
	}
	s := scheme(b[1])
	if int(s) >= len(shapes) || shapes[s].name == "" {
		return wrapped{}, fmt.Errorf("%w: unknown scheme %d", ErrBadWrapped, b[1])
	}
	sh, n := shapes[s], int(b[2])
	if n < sh.ivMin || n > sh.ivMax || len(b) < 3+n {
		return wrapped{}, fmt.Errorf("%w: %s with an IV of %d bytes", ErrBadWrapped, s, n)
	}
	w := wrapped{s, b[3 : 3+n], b[3+n:]}
	if len(w.ct) < sh.ctMin || len(w.ct) > sh.ctMax {
		return wrapped{}, fmt.Errorf("%w: %s with %d bytes of ciphertext", ErrBadWrapped, s, len(w.ct))
	}
	return w, nil
}

// append appends the encoded form to dst.
func (w wrapped) append(dst []byte) []byte {
	dst = append(dst, wrappedVersion, byte(w.scheme), byte(len(w.iv)))
	dst = append(dst, w.iv...)
	return append(dst, w.ct...)
}

// checkKEK and checkWrapped refuse inputs that no root could do anything with.
func checkKEK(in []byte) error {
	if len(in) != KEKSize {
		return ErrBadItem
	}
	return nil
}

func checkWrapped(in []byte) error {
	_, err := parseWrapped(in)
	return err
}
