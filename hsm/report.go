package hsm

import (
	"fmt"
	"io"
	"strings"
	"text/tabwriter"
)

// A Candidate is one row of the search for a mechanism.
type Candidate struct {
	Method  string // e.g. "CKM_AES_GCM, IV ours"
	Offered bool   // C_GetMechanismList and -Info say it can encrypt and decrypt
	OK      bool   // the self test passed
	Chosen  bool
	Reason  string // why not, or why it was not tried
}

// A Report is what [Inspect] found out, for people. It holds no secrets.
type Report struct {
	Module  string
	Library string // description and version
	Slots   []SlotReport

	Login      string // "ok", "not needed", or "" when it did not come to that
	Random     string // where random bytes would come from
	Sessions   string // how many the token allows
	Mechanisms []MechanismReport
	Candidates []Candidate // in order of preference
	Chosen     string      // how key-encryption keys would be encrypted; "" when not at all
	DomainKeys []DomainKeyReport

	Notices  []string // worth knowing
	Problems []string // what stops a start, each with what would help
}

// A SlotReport is one slot of the module.
type SlotReport struct {
	Slot                         uint
	Description                  string
	Token, Serial, Maker, Model  string // empty without a token
	Initialised, Selected, Login bool   // Login: the token requires one
	PIN                          string // state of the user PIN
}

// A MechanismReport is one mechanism that matters here.
type MechanismReport struct {
	Name           string
	Offered        bool
	MinKey, MaxKey uint
	Flags          []string
	Use            string // what it is needed for
}

// A DomainKeyReport is one key on the token that looks like a domain key of ours.
type DomainKeyReport struct {
	ID, Label, Kind string
	Problem         string
}

// OK reports whether a start with the same configuration would succeed.
func (r *Report) OK() bool { return len(r.Problems) == 0 }

// WriteTo prints the report as text.
func (r *Report) WriteTo(w io.Writer) (int64, error) {
	var b strings.Builder
	tw := tabwriter.NewWriter(&b, 0, 8, 2, ' ', 0)
	section := func(name string) {
		tw.Flush()
		fmt.Fprintf(&b, "\n%s\n", name)
	}
	fmt.Fprintf(&b, "Module   %s\n", r.Module)
	if r.Library != "" {
		fmt.Fprintf(&b, "Library  %s\n", r.Library)
	}
	if len(r.Slots) > 0 {
		section("Slots")
		for _, s := range r.Slots {
			mark := " "
			if s.Selected {
				mark = "*"
			}
			token := "no initialised token"
			if s.Initialised {
				token = fmt.Sprintf("%q, serial %s, %s", s.Token, s.Serial, strings.TrimSpace(s.Maker+" "+s.Model))
			}
			fmt.Fprintf(tw, " %s %d\t%s\t%s\t%s\n", mark, s.Slot, s.Description, token, s.PIN)
		}
	}
	if r.Login != "" {
		section("Token")
		fmt.Fprintf(tw, "   login\t%s\n", r.Login)
		fmt.Fprintf(tw, "   sessions\t%s\n", r.Sessions)
		fmt.Fprintf(tw, "   random\t%s\n", r.Random)
	}
	if len(r.Mechanisms) > 0 {
		section("Mechanisms")
		for _, m := range r.Mechanisms {
			what := "not offered"
			if m.Offered {
				what = fmt.Sprintf("%s, keys %d to %d", strings.Join(m.Flags, " "), m.MinKey, m.MaxKey)
			}
			fmt.Fprintf(tw, "   %s\t%s\t%s\n", m.Name, what, m.Use)
		}
	}
	if len(r.Candidates) > 0 {
		section("Encryption of key-encryption keys, in order of preference")
		for _, c := range r.Candidates {
			mark, result := " ", c.Reason
			if c.Chosen {
				mark, result = "*", "passed the self test; this one is used"
			}
			fmt.Fprintf(tw, " %s %s\t%s\n", mark, c.Method, result)
		}
	}
	if r.Chosen != "" {
		section("Domain keys on the token")
		if len(r.DomainKeys) == 0 {
			fmt.Fprintf(tw, "   none yet; a first start creates one\n")
		}
		for _, k := range r.DomainKeys {
			fmt.Fprintf(tw, "   %s\t%s\t%q\t%s\n", k.ID, k.Kind, k.Label, k.Problem)
		}
	}
	for _, list := range []struct {
		name  string
		lines []string
	}{{"Notices", r.Notices}, {"Problems", r.Problems}} {
		if len(list.lines) > 0 {
			section(list.name)
			for _, l := range list.lines {
				fmt.Fprintf(tw, " - %s\n", l)
			}
		}
	}
	tw.Flush()
	if r.OK() {
		fmt.Fprintf(&b, "\nThe token can be used: %s\n", r.Chosen)
	} else {
		fmt.Fprintf(&b, "\nThe token cannot be used.\n")
	}
	text := b.String()
	for strings.Contains(text, " \n") { // empty last columns
		text = strings.ReplaceAll(text, " \n", "\n")
	}
	n, err := io.WriteString(w, text)
	return int64(n), err
}
