package engine

import (
	"errors"
	"fmt"
	"io"
	"log/slog"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"text/tabwriter"
)

// A Provider is an implementation that can serve some schemes.
type Provider uint8

// The providers. The zero value is none.
const (
	NoProvider   Provider = iota
	GoStd                 // Go's standard library, and its AES, SHA and HMAC
	OpenSSL               // OpenSSL's libcrypto, loaded at run time when there is one
	CIRCL                 // github.com/cloudflare/circl
	VoiEd25519            // github.com/oasisprotocol/curve25519-voi
	Edwards25519          // filippo.io/edwards25519
	VoiSecp256k1          // gitlab.com/yawning/secp256k1-voi
	GMSM                  // github.com/emmansun/gmsm
	GoMLDSA               // filippo.io/mldsa
	Own                   // mldsamu.go
	numProviders
)

var providerNames = [numProviders]string{
	GoStd: "go", OpenSSL: "openssl", CIRCL: "circl", VoiEd25519: "curve25519-voi", Edwards25519: "edwards25519",
	VoiSecp256k1: "secp256k1-voi", GMSM: "gmsm", GoMLDSA: "filippo-mldsa", Own: "keymill",
}

func (p Provider) String() string { return nameOf(providerNames[:], int(p)) }

// A Task is what a provider does for a spec. It is a verb, except that Encrypt
// stands for both directions of symmetric keys, MAC for both of HMAC keys, and
// that ML-DSA from a given mu is apart.
type Task uint8

// The tasks, in the order in which they are checked: a signature is checked by
// verifying it.
const (
	TaskVerify Task = iota
	TaskVerifyMu
	TaskSign
	TaskSignMu
	TaskDecrypt
	TaskEncrypt
	TaskDerive
	TaskMAC
	TaskGenerate
	numTasks
)

var taskNames = [numTasks]string{"verify", "verify mu", "sign", "sign mu", "decrypt", "encrypt", "derive", "mac", "generate"}

func (t Task) String() string { return nameOf(taskNames[:], int(t)) }

// A Candidate is a provider that can serve a row of the table.
type Candidate struct {
	Provider Provider
	Micros   float64 // processor time measured for the package documentation, 0 when not measured
	Note     string  // what decided, where it was not the figure
}

// providerRow is the candidates for one task of one spec, in order of
// preference.
type providerRow struct {
	spec       Spec
	task       Task
	candidates []Candidate
}

// ErrNoProvider: every provider of the key's spec is forbidden, missing, or
// failed its known-answer test.
var ErrNoProvider = errors.New("engine: no provider is left for the key spec")

// ProviderOptions is what [ConfigureProviders] takes.
type ProviderOptions struct {
	// Forbid names providers that must not be used.
	Forbid []string
	// Logger hears of providers that fail their known-answer test; nil is
	// slog.Default.
	Logger *slog.Logger
}

// ErrProvidersChosen is returned by a ConfigureProviders that comes too late.
var ErrProvidersChosen = errors.New("engine: the providers have been chosen already")

// ConfigureProviders loads OpenSSL, runs the known-answer tests and chooses the
// provider of every task, which takes 25 ms, 50 on a busy machine. It must come
// before all use of keys; without it the first use does the same with nothing
// forbidden. The choice holds for the process: another call that forbids the
// same does nothing, and one that does not returns ErrProvidersChosen.
//
// A provider that fails a known-answer test is used for nothing at all: the
// reason is logged, and the next candidates serve. It is an error to forbid
// what does not exist, and to forbid go, which the store and TLS depend on.
func ConfigureProviders(o ProviderOptions) error {
	forbid, err := parseForbid(o.Forbid)
	if err != nil {
		return err
	}
	choiceMu.Lock()
	defer choiceMu.Unlock()
	if c := choice.Load(); c != nil {
		if c.forbid != forbid {
			return ErrProvidersChosen
		}
		return nil
	}
	choice.Store(choose(providerTable, forbid, absentProviders(forbid), (*providers).selfTest, o.Logger))
	return nil
}

// CheckForbid returns the error that [ConfigureProviders] has for the names.
func CheckForbid(names []string) error {
	_, err := parseForbid(names)
	return err
}

func parseForbid(names []string) (forbid [numProviders]bool, err error) {
	for _, name := range names {
		p := find(providerNames[:], name)
		switch {
		case p < 0:
			return forbid, fmt.Errorf("no cryptography provider is called %q; use %s", name, strings.Join(providerNames[OpenSSL:], ", "))
		case Provider(p) == GoStd:
			return forbid, errors.New("the provider go cannot be forbidden: the store and TLS are built on it")
		}
		forbid[p] = true
	}
	return forbid, nil
}

// choice is made once and then only read.
var (
	choice   atomic.Pointer[providers]
	choiceMu sync.Mutex
)

// theProviders returns the choice, made with the defaults if nobody did.
func theProviders() *providers {
	for {
		if c := choice.Load(); c != nil {
			return c
		}
		// The only error is that somebody else has just chosen.
		_ = ConfigureProviders(ProviderOptions{})
	}
}

// served is the provider of a task, NoProvider when there is none.
func served(spec Spec, task Task) Provider { return theProviders().chosen[spec][task] }

// A picker says who serves a task of a spec: served, or in tests and
// known-answer tests one provider for all.
type picker func(Spec, Task) Provider

// Supported returns ErrNoProvider when keys of this spec and usage cannot be
// generated and used, nil when they can. It does not ask whether a spec has
// that usage.
func Supported(spec Spec, usage Usage) error {
	if !spec.Valid() {
		return ErrUnknownSpec
	}
	if served(spec, TaskGenerate) == NoProvider || served(spec, privateTask(spec, usage)) == NoProvider {
		return ErrNoProvider
	}
	return nil
}

// privateTask is what a usage needs the private or secret key for.
func privateTask(spec Spec, usage Usage) Task {
	switch {
	case spec.Symmetric():
		return TaskEncrypt
	case usage == EncryptDecrypt:
		return TaskDecrypt
	case usage == GenerateVerifyMAC:
		return TaskMAC
	case usage == KeyAgreement:
		return TaskDerive
	}
	return TaskSign
}

// publicTask is what a usage needs the public key for.
func publicTask(usage Usage) Task {
	if usage == EncryptDecrypt {
		return TaskEncrypt
	}
	return TaskVerify
}

// providers is the outcome of choosing.
type providers struct {
	rows   []providerRow
	forbid [numProviders]bool
	why    [numProviders]string // why a provider is not used, "" when it is
	chosen [numSpecs][numTasks]Provider
}

// choose gives every row the first of its candidates that is neither forbidden
// nor absent and passes its test. When one fails, everything is chosen anew
// without that provider, since a library that is wrong once is not believed
// again; so there are at most as many rounds as providers. A test has seen the
// providers of all rows before its own.
func choose(rows []providerRow, forbid [numProviders]bool, absent [numProviders]string, test func(*providers, Provider, Spec, Task) error, log *slog.Logger) *providers {
	if log == nil {
		log = slog.Default()
	}
	c := &providers{rows: rows, forbid: forbid, why: absent}
	for p, no := range forbid {
		if no {
			c.why[p] = "forbidden"
		}
	}
	type key struct {
		p    Provider
		spec Spec
		task Task
	}
	passed := map[key]bool{}
again:
	c.chosen = [numSpecs][numTasks]Provider{}
	for _, row := range rows {
		at := slices.IndexFunc(row.candidates, func(o Candidate) bool { return c.why[o.Provider] == "" })
		if at < 0 {
			continue
		}
		p := row.candidates[at].Provider
		if k := (key{p, row.spec, testedBy(row.spec, row.task)}); !passed[k] {
			if err := test(c, p, k.spec, k.task); err != nil {
				c.why[p] = fmt.Sprintf("failed its known-answer test: %v %v: %v", k.spec, k.task, err)
				log.Error("a cryptography provider is switched off", "provider", p.String(), "reason", c.why[p])
				goto again
			}
			passed[k] = true
		}
		c.chosen[row.spec][row.task] = p
	}
	for _, row := range rows {
		if c.chosen[row.spec][row.task] == NoProvider {
			log.Error("no provider is left", "spec", row.spec.String(), "task", row.task.String())
		}
	}
	return c
}

// A ProviderReport says who serves what, for an operator.
type ProviderReport struct {
	OpenSSL string // the version that was loaded, or why none is used
	Rows    []ProviderChoice
}

// Missing names the tasks that nobody is left for.
func (r ProviderReport) Missing() (tasks []string) {
	for _, row := range r.Rows {
		if row.Served.Provider == NoProvider {
			tasks = append(tasks, row.Spec.String()+" "+row.Task.String())
		}
	}
	return tasks
}

// A ProviderChoice is one task of one spec.
type ProviderChoice struct {
	Spec     Spec
	Task     Task
	Served   Candidate // the zero value when there is no provider
	Others   []Candidate
	Excluded []string // why, for each of Others; "" for those not preferred
}

// Providers reports the choice; it makes it if nobody did.
func Providers() ProviderReport {
	c := theProviders()
	r := ProviderReport{OpenSSL: c.why[OpenSSL]}
	if r.OpenSSL == "" {
		r.OpenSSL = opensslVersion()
	}
	for _, row := range c.rows {
		out := ProviderChoice{Spec: row.spec, Task: row.task}
		for _, o := range row.candidates {
			if o.Provider == c.chosen[row.spec][row.task] {
				out.Served = o
				continue
			}
			out.Others = append(out.Others, o)
			out.Excluded = append(out.Excluded, c.why[o.Provider])
		}
		r.Rows = append(r.Rows, out)
	}
	return r
}

// WriteTo prints the report as a table.
func (r ProviderReport) WriteTo(w io.Writer) (int64, error) {
	var b strings.Builder
	fmt.Fprintf(&b, "openssl: %s\n\n", r.OpenSSL)
	t := tabwriter.NewWriter(&b, 0, 0, 2, ' ', 0)
	fmt.Fprintln(t, "spec\ttask\tserved by\twhy\t")
	for _, row := range r.Rows {
		name := "NONE"
		if row.Served.Provider != NoProvider {
			name = row.Served.Provider.String()
		}
		fmt.Fprintf(t, "%v\t%v\t%s\t%s\t\n", row.Spec, row.Task, name, row.reason())
	}
	t.Flush()
	fmt.Fprint(&b, "\nFigures are microseconds on the machine where the table was measured: read them as ratios.\n")
	n, err := io.WriteString(w, b.String())
	return int64(n), err
}

func (c ProviderChoice) reason() string {
	var parts []string
	switch {
	case c.Served.Provider == NoProvider:
	case len(c.Others) == 0:
		parts = append(parts, "the only one"+c.Served.figure())
	default:
		first := "measured best"
		if slices.ContainsFunc(c.Excluded, func(why string) bool { return why != "" }) {
			first = "best of what is left"
		} else if c.Served.Note != "" {
			first = "chosen"
		}
		parts = append(parts, first+c.Served.figure())
	}
	if c.Served.Note != "" {
		parts = append(parts, c.Served.Note)
	}
	for i, o := range c.Others {
		text := "not " + o.Provider.String() + o.figure()
		if why := c.Excluded[i]; why != "" {
			text += ", " + why
		} else if o.Note != "" {
			text += ", " + o.Note
		}
		parts = append(parts, text)
	}
	return strings.Join(parts, "; ")
}

func (o Candidate) figure() string {
	if o.Micros == 0 {
		return ""
	}
	if o.Micros < 10 {
		return fmt.Sprintf(" (%.2f)", o.Micros)
	}
	return fmt.Sprintf(" (%.0f)", o.Micros)
}
