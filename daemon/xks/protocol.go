package xks

import (
	"crypto/sha256"
	"crypto/subtle"
	"errors"
	"fmt"
	"strconv"

	"keymill/daemon/wire"
)

// PathSuffix ends the path of every proxy.
const PathSuffix = "/kms/xks/v1"

// Service is the service name in the credential scope.
const Service = "kms-xks-proxy"

// Bounds of the protocol, and those of ours where it has none.
const (
	// MaxBody bounds a body before it is parsed. The largest that must be taken
	// (plaintext, associated data and three ARNs of full length) has 24 KiB, and
	// escapes may swell its Base64.
	MaxBody = 64 << 10

	MaxPlaintext = 4300
	MaxAAD       = 8192
	MaxMetadata  = 20
	tagSize      = 16

	maxARN       = 2048
	maxText      = 1024 // of the protocol's other strings
	maxKeyID     = 128
	maxUsages    = 10
	maxFleet     = 10
	maxErrorText = 511 // errorMessage is shorter than 512
)

// Values of fields.
const (
	AESGCM         = "AES_GCM"
	SHA256         = "SHA_256"
	SpecAES256     = "AES_256"
	UsageEncrypt   = "ENCRYPT"
	UsageDecrypt   = "DECRYPT"
	StatusEnabled  = "ENABLED"
	StatusDisabled = "DISABLED"

	HealthActive      = "ACTIVE"
	HealthDegraded    = "DEGRADED"
	HealthUnavailable = "UNAVAILABLE"
)

// An Action is one of the calls.
type Action uint8

// The actions.
const (
	Health Action = iota + 1
	Metadata
	Encrypt
	Decrypt
)

var actionNames = [...]string{Health: "health", Metadata: "metadata", Encrypt: "encrypt", Decrypt: "decrypt"}

// String returns the last element of the action's path.
func (a Action) String() string {
	if int(a) < len(actionNames) {
		return actionNames[a]
	}
	return ""
}

// Call is requestMetadata: for whom and what for KMS calls.
type Call struct {
	PrincipalARN string // who called KMS; "AWS Internal" for AWS itself
	SourceVPC    string
	SourceVPCE   string
	KeyARN       string // the KMS key; not in metadata and health
	Operation    string // the KMS operation
	RequestID    string
	ViaService   string
}

// Request is the body of a request. Which fields count depends on the action;
// an optional blob that is absent is nil.
type Request struct {
	Call       Call
	Algorithm  string // AESGCM
	Plaintext  []byte
	Ciphertext []byte
	AAD        []byte
	Metadata   []byte
	IV         []byte
	Tag        []byte
	Integrity  string // SHA256 to ask for the ciphertext data integrity value
}

// A Manager is one external key manager behind a proxy.
type Manager struct{ ID, Model, Health string }

// Response is the body of an answer that is no error.
type Response struct {
	// Metadata.
	KeySpec   string
	KeyUsage  []string
	KeyStatus string

	// Encrypt.
	Ciphertext []byte
	Metadata   []byte
	IV         []byte
	Tag        []byte
	Integrity  []byte

	// Decrypt.
	Plaintext []byte

	// Health.
	FleetSize            int64
	Vendor, Model, Maker string // Maker is ekmVendor
	Fleet                []Manager
}

// errMessage is what is wrong with a message; unsupported tells a value that
// is larger than what this side takes from one that breaks the protocol.
type errMessage struct {
	text        string
	unsupported bool
}

func (e *errMessage) Error() string { return e.text }

func broken(format string, args ...any) error { return &errMessage{text: fmt.Sprintf(format, args...)} }

// DecodeRequest reads the body of a request. What it returns are views on the
// body and the decoder's memory. Unknown members are read over.
func DecodeRequest(d *wire.Decoder, a Action, body []byte) (*Request, error) {
	r := &Request{}
	seen := false
	err := d.DecodeObject(body, MaxBody, func(name string) {
		switch name {
		case "requestMetadata":
			seen = true
			r.Call.decode(d)
		case "encryptionAlgorithm":
			r.Algorithm = d.Text()
		case "plaintext":
			r.Plaintext = d.Blob()
		case "ciphertext":
			r.Ciphertext = d.Blob()
		case "additionalAuthenticatedData":
			r.AAD = d.Blob()
		case "ciphertextMetadata":
			r.Metadata = d.Blob()
		case "initializationVector":
			r.IV = d.Blob()
		case "authenticationTag":
			r.Tag = d.Blob()
		case "ciphertextDataIntegrityValueAlgorithm":
			r.Integrity = d.Text()
		}
	})
	switch {
	case err != nil:
		return nil, broken("%s", err.Message)
	case !seen:
		return nil, broken("requestMetadata is required")
	}
	return r, r.check(a)
}

func (c *Call) decode(d *wire.Decoder) {
	d.Members(func(name string) {
		switch name {
		case "awsPrincipalArn":
			c.PrincipalARN = d.Text()
		case "awsSourceVpc":
			c.SourceVPC = d.Text()
		case "awsSourceVpce":
			c.SourceVPCE = d.Text()
		case "kmsKeyArn":
			c.KeyARN = d.Text()
		case "kmsOperation":
			c.Operation = d.Text()
		case "kmsRequestId":
			c.RequestID = d.Text()
		case "kmsViaService":
			c.ViaService = d.Text()
		}
	})
}

// check holds a request to the rules of its action.
func (r *Request) check(a Action) error {
	c := &r.Call
	crypto := a == Encrypt || a == Decrypt
	for _, f := range []struct {
		name, value string
		bound       int
		required    bool
	}{
		{"awsPrincipalArn", c.PrincipalARN, maxARN, a != Health},
		{"awsSourceVpc", c.SourceVPC, maxText, false},
		{"awsSourceVpce", c.SourceVPCE, maxText, false},
		{"kmsKeyArn", c.KeyARN, maxARN, crypto},
		{"kmsOperation", c.Operation, maxText, true},
		{"kmsRequestId", c.RequestID, maxText, true},
		{"kmsViaService", c.ViaService, maxText, false},
	} {
		switch {
		case f.required && f.value == "":
			return broken("requestMetadata.%s is required", f.name)
		case len(f.value) > f.bound:
			return broken("requestMetadata.%s is longer than %d characters", f.name, f.bound)
		}
	}
	if !crypto {
		return nil
	}
	var input []byte
	switch a {
	case Encrypt:
		if input = r.Plaintext; input == nil {
			return broken("plaintext is required")
		}
		if r.Integrity != "" && r.Integrity != SHA256 {
			return broken("ciphertextDataIntegrityValueAlgorithm must be %s", SHA256)
		}
	case Decrypt:
		if input = r.Ciphertext; input == nil {
			return broken("ciphertext is required")
		}
		if err := checkSealed(r.Metadata, r.IV, r.Tag); err != nil {
			return err
		}
	}
	switch {
	case r.Algorithm != AESGCM:
		return broken("encryptionAlgorithm must be %s", AESGCM)
	case len(input) > MaxPlaintext:
		return &errMessage{"the text to work on is longer than " + strconv.Itoa(MaxPlaintext) + " bytes", true}
	case len(r.AAD) > MaxAAD:
		return &errMessage{"additionalAuthenticatedData is longer than " + strconv.Itoa(MaxAAD) + " bytes", true}
	}
	return nil
}

func checkSealed(metadata, iv, tag []byte) error {
	switch {
	case len(metadata) > MaxMetadata:
		return broken("ciphertextMetadata has %d bytes, at most %d are allowed", len(metadata), MaxMetadata)
	case len(iv) != 12 && len(iv) != 16:
		return broken("initializationVector has %d bytes, not 12 or 16", len(iv))
	case len(tag) != tagSize:
		return broken("authenticationTag has %d bytes, not %d", len(tag), tagSize)
	}
	return nil
}

// A writer appends the members of one object.
type writer struct {
	b     []byte
	first bool
}

func (w *writer) name(name string) {
	if !w.first {
		w.b = append(w.b, ',')
	}
	w.first = false
	w.b = wire.AppendString(w.b, name)
	w.b = append(w.b, ':')
}

func (w *writer) text(name, value string) {
	if value != "" {
		w.name(name)
		w.b = wire.AppendString(w.b, value)
	}
}

func (w *writer) blob(name string, value []byte) {
	if value != nil {
		w.name(name)
		w.b = wire.AppendBlob(w.b, value)
	}
}

func (w *writer) open()  { w.b, w.first = append(w.b, '{'), true }
func (w *writer) close() { w.b, w.first = append(w.b, '}'), false }

// Append appends the body of a request. Empty strings and nil blobs are left out.
func (r *Request) Append(dst []byte) []byte {
	w := writer{b: dst}
	w.open()
	w.name("requestMetadata")
	w.open()
	c := &r.Call
	w.text("awsPrincipalArn", c.PrincipalARN)
	w.text("awsSourceVpc", c.SourceVPC)
	w.text("awsSourceVpce", c.SourceVPCE)
	w.text("kmsKeyArn", c.KeyARN)
	w.text("kmsOperation", c.Operation)
	w.text("kmsRequestId", c.RequestID)
	w.text("kmsViaService", c.ViaService)
	w.close()
	w.blob("additionalAuthenticatedData", r.AAD)
	w.blob("plaintext", r.Plaintext)
	w.blob("ciphertext", r.Ciphertext)
	w.text("encryptionAlgorithm", r.Algorithm)
	w.text("ciphertextDataIntegrityValueAlgorithm", r.Integrity)
	w.blob("ciphertextMetadata", r.Metadata)
	w.blob("initializationVector", r.IV)
	w.blob("authenticationTag", r.Tag)
	w.close()
	return w.b
}

// DecodeResponse reads the body of an answer to a and holds it to the rules
// that need nothing of the request; [Response.Answers] has the others.
func DecodeResponse(d *wire.Decoder, a Action, body []byte) (*Response, error) {
	r := &Response{}
	err := d.DecodeObject(body, MaxBody, func(name string) {
		switch name {
		case "keySpec":
			r.KeySpec = d.Text()
		case "keyUsage":
			d.Items(func() {
				if s := d.Text(); len(r.KeyUsage) <= maxUsages {
					r.KeyUsage = append(r.KeyUsage, s)
				}
			})
		case "keyStatus":
			r.KeyStatus = d.Text()
		case "ciphertext":
			r.Ciphertext = d.Blob()
		case "ciphertextMetadata":
			r.Metadata = d.Blob()
		case "initializationVector":
			r.IV = d.Blob()
		case "authenticationTag":
			r.Tag = d.Blob()
		case "ciphertextDataIntegrityValue":
			r.Integrity = d.Blob()
		case "plaintext":
			r.Plaintext = d.Blob()
		case "xksProxyFleetSize":
			r.FleetSize = d.Integer()
		case "xksProxyVendor":
			r.Vendor = d.Text()
		case "xksProxyModel":
			r.Model = d.Text()
		case "ekmVendor":
			r.Maker = d.Text()
		case "ekmFleetDetails":
			d.Items(func() {
				var m Manager
				m.decode(d)
				if len(r.Fleet) <= maxFleet {
					r.Fleet = append(r.Fleet, m)
				}
			})
		}
	})
	if err != nil {
		return nil, broken("%s", err.Message)
	}
	return r, r.check(a)
}

func (m *Manager) decode(d *wire.Decoder) {
	d.Members(func(name string) {
		switch name {
		case "id":
			m.ID = d.Text()
		case "model":
			m.Model = d.Text()
		case "healthStatus":
			m.Health = d.Text()
		}
	})
}

func (r *Response) check(a Action) error {
	switch a {
	case Metadata:
		switch {
		case r.KeySpec == "" || r.KeyStatus == "" || len(r.KeyUsage) == 0:
			return broken("keySpec, keyUsage and keyStatus are required")
		case len(r.KeyUsage) > maxUsages:
			return broken("keyUsage has more than %d entries", maxUsages)
		case r.KeyStatus != StatusEnabled && r.KeyStatus != StatusDisabled:
			return broken("keyStatus is neither %s nor %s", StatusEnabled, StatusDisabled)
		}
	case Encrypt:
		if r.Ciphertext == nil {
			return broken("ciphertext is required")
		}
		return checkSealed(r.Metadata, r.IV, r.Tag)
	case Decrypt:
		if r.Plaintext == nil {
			return broken("plaintext is required")
		}
	case Health:
		switch {
		case r.FleetSize <= 0:
			return broken("xksProxyFleetSize must be above zero")
		case r.Vendor == "" || r.Model == "" || r.Maker == "":
			return broken("xksProxyVendor, xksProxyModel and ekmVendor are required")
		case len(r.Fleet) == 0 || len(r.Fleet) > maxFleet:
			return broken("ekmFleetDetails must have 1 to %d entries", maxFleet)
		}
		for _, m := range r.Fleet {
			if m.ID == "" || m.Model == "" || m.Health != HealthActive && m.Health != HealthDegraded && m.Health != HealthUnavailable {
				return broken("an entry of ekmFleetDetails is incomplete or has an unknown healthStatus")
			}
		}
	}
	return nil
}

// Answers holds r to what was asked: lengths, and the integrity value over what
// came back, compared in constant time.
func (r *Response) Answers(a Action, q *Request) error {
	switch a {
	case Encrypt:
		if len(r.Ciphertext) != len(q.Plaintext) {
			return broken("the ciphertext has %d bytes, the plaintext %d", len(r.Ciphertext), len(q.Plaintext))
		}
		if q.Integrity == "" {
			return nil
		}
		want := Integrity(q.AAD, r.Metadata, r.IV, r.Ciphertext, r.Tag)
		if subtle.ConstantTimeCompare(want[:], r.Integrity) != 1 {
			return errors.New("the ciphertext data integrity value is missing or does not match")
		}
	case Decrypt:
		if len(r.Plaintext) != len(q.Ciphertext) {
			return broken("the plaintext has %d bytes, the ciphertext %d", len(r.Plaintext), len(q.Ciphertext))
		}
	}
	return nil
}

// Append appends the body of an answer.
func (r *Response) Append(dst []byte) []byte {
	w := writer{b: dst}
	w.open()
	w.text("keySpec", r.KeySpec)
	if r.KeyUsage != nil {
		w.name("keyUsage")
		w.b = append(w.b, '[')
		for i, u := range r.KeyUsage {
			if i > 0 {
				w.b = append(w.b, ',')
			}
			w.b = wire.AppendString(w.b, u)
		}
		w.b = append(w.b, ']')
	}
	w.text("keyStatus", r.KeyStatus)
	w.blob("ciphertext", r.Ciphertext)
	w.blob("ciphertextMetadata", r.Metadata)
	w.blob("initializationVector", r.IV)
	w.blob("authenticationTag", r.Tag)
	w.blob("ciphertextDataIntegrityValue", r.Integrity)
	w.blob("plaintext", r.Plaintext)
	if r.Fleet != nil {
		w.name("xksProxyFleetSize")
		w.b = strconv.AppendInt(w.b, r.FleetSize, 10)
		w.text("xksProxyVendor", r.Vendor)
		w.text("xksProxyModel", r.Model)
		w.text("ekmVendor", r.Maker)
		w.name("ekmFleetDetails")
		w.b = append(w.b, '[')
		for i, m := range r.Fleet {
			if i > 0 {
				w.b = append(w.b, ',')
			}
			w.open()
			w.text("id", m.ID)
			w.text("model", m.Model)
			w.text("healthStatus", m.Health)
			w.close()
		}
		w.b = append(w.b, ']')
	}
	w.close()
	return w.b
}

// Integrity is the ciphertext data integrity value: a hash of all parts, without
// lengths, absent ones empty.
func Integrity(aad, metadata, iv, ciphertext, tag []byte) (sum [sha256.Size]byte) {
	h := sha256.New()
	for _, part := range [...][]byte{aad, metadata, iv, ciphertext, tag} {
		h.Write(part)
	}
	h.Sum(sum[:0])
	return sum
}

// ValidKeyID tells whether id may name an external key. The protocol's alphabet
// has the two names that mean directories in a path; they are left out.
func ValidKeyID(id string) bool {
	if id == "" || len(id) > maxKeyID || id == "." || id == ".." {
		return false
	}
	for i := range len(id) {
		c := id[i]
		if !alphanumeric(c) && c != '.' && c != '_' && c != '-' {
			return false
		}
	}
	return true
}

func alphanumeric(c byte) bool {
	return 'a' <= c && c <= 'z' || 'A' <= c && c <= 'Z' || '0' <= c && c <= '9'
}
