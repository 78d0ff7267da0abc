package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"
	"syscall"
	"time"

	"github.com/schollz/progressbar/v3"
	"github.com/spf13/cobra"
	"golang.org/x/term"

	"keymill/daemon"
	"keymill/hsm"
	"keymill/keystore"
)

// rewrapOptions is the command line of keymill rewrap.
type rewrapOptions struct {
	module, token, pinFile     string
	software, rotate, back     bool
	destroyOld, status, asJSON bool
}

func rewrapCommand() *cobra.Command {
	var o rewrapOptions
	cmd := &cobra.Command{
		Use:   "rewrap [--rotate | --to-hsm-module PATH --to-hsm-token LABEL --to-hsm-pin-file FILE | --to-software]",
		Short: "Rotate the domain key, or move the store to another root of trust",
		Long: `Wrap every key-encryption key in the store, and the store key, under another
domain key: a new one of the same root of trust (--rotate), one on an HSM token
(--to-hsm-...), or one of the software root (--to-software). Keys, ciphertexts
and clients are not affected.

When a daemon is running on --data, it does the work while it serves, and uses
the new root of trust from then on without a restart. Otherwise this command does
it, and needs the present root of trust (--hsm-... or the root key file), too.

It can be stopped or killed at any time, and so can the daemon: what is done is
done, the daemon starts and serves with both roots of trust, and the same command,
or keymill rewrap alone, goes on. --back turns an unfinished move round. Until
it has finished, leave the daemon's configuration as it was and both roots of trust
in place (a backup made meanwhile needs both, too); afterwards change hsm-module,
hsm-token and hsm-pin-file to the new one before the next start.

The old domain key is not destroyed: backups made before the end need it, and so
do copies of the store. When they do not matter any more, --destroy-old destroys
every domain key that the store has left (in the key file or on the token they
are on), after making sure that nothing in the store needs it. A root key file is
written anew without the key; what the disk keeps of the old file, and
copies of it, are yours to remove.

--status says under which domain key the store is, and what is unfinished.`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			conf, err := configFrom(cmd.Flags())
			if err != nil {
				return err
			}
			if conf.Data == "" {
				return errors.New("data: no data directory; give one with --data")
			}
			return o.run(cmd.Context(), conf, cmd.OutOrStdout())
		},
	}
	addFlags(cmd.Flags(), "data", "hsm-module", "hsm-token", "hsm-pin-file", "hsm-in-process")
	f := cmd.Flags()
	f.BoolVar(&o.rotate, "rotate", false, "to a new domain key of the same root of trust")
	f.StringVar(&o.module, "to-hsm-module", "", "to an HSM: `PATH` of its PKCS#11 module")
	f.StringVar(&o.token, "to-hsm-token", "", "`LABEL` of the token in that module")
	f.StringVar(&o.pinFile, "to-hsm-pin-file", "", "`FILE` with that token's user PIN")
	f.BoolVar(&o.software, "to-software", false, "to the software root: a key file in the data directory")
	f.BoolVar(&o.back, "back", false, "turn the move that has begun round")
	f.BoolVar(&o.destroyOld, "destroy-old", false, "afterwards destroy the domain keys that the store has left: backups under them are lost")
	f.BoolVar(&o.status, "status", false, "only say how things stand")
	f.BoolVar(&o.asJSON, "json", false, "print progress and result as lines of JSON")
	return cmd
}

// request says what the flags ask for.
func (o *rewrapOptions) request() (daemon.RewrapRequest, error) {
	req := daemon.RewrapRequest{Rotate: o.rotate, Back: o.back, DestroyOld: o.destroyOld}
	targets := 0
	for _, set := range []bool{o.rotate, o.back, o.software, o.module != "" || o.token != "" || o.pinFile != ""} {
		if set {
			targets++
		}
	}
	if targets > 1 {
		return req, errors.New("give one of --rotate, --to-hsm-..., --to-software and --back")
	}
	switch {
	case o.software:
		req.To = &keystore.Place{Kind: hsm.KindSoftware}
	case o.module != "" || o.token != "" || o.pinFile != "":
		if o.module == "" || o.token == "" || o.pinFile == "" {
			return req, errors.New("--to-hsm-module, --to-hsm-token and --to-hsm-pin-file belong together; give all three")
		}
		place := daemon.TokenPlace(o.module, o.token, o.pinFile)
		req.To = &place
	}
	return req, nil
}

func (o *rewrapOptions) run(ctx context.Context, conf daemon.Config, out io.Writer) error {
	req, err := o.request()
	if err != nil {
		return err
	}
	if o.status {
		st, err := rewrapStatus(ctx, conf)
		if err != nil {
			return err
		}
		return o.printStatus(out, conf, st)
	}
	show := newRewrapProgress(out, o.asJSON)
	res, err := daemon.RequestRewrap(ctx, conf.Data, req, show.update)
	running := !errors.Is(err, daemon.ErrNotRunning)
	if !running {
		res, err = rewrapOffline(ctx, conf, req, show.update)
	}
	show.finish()
	if err != nil {
		if p := show.last; p.Phase == keystore.PhaseMoving && ctx.Err() != nil {
			return fmt.Errorf("stopped; %d of %d key-encryption keys were moved. Run keymill rewrap again to go on: %w", p.Moved, p.Total, err)
		}
		return err
	}
	return o.printResult(out, conf, res, running)
}

// rewrapOffline does it without a daemon.
func rewrapOffline(ctx context.Context, conf daemon.Config, req daemon.RewrapRequest, progress func(keystore.RewrapProgress)) (res daemon.RewrapResult, err error) {
	opened, err := openForRewrap(ctx, conf, req.To)
	if err != nil {
		return res, err
	}
	defer func() { err = errors.Join(err, opened.Close()) }()
	return opened.Rewrap(ctx, req, progress)
}

func openForRewrap(ctx context.Context, conf daemon.Config, target *keystore.Place) (*daemon.Opened, error) {
	syscall.Umask(0o077)
	return daemon.OpenStore(ctx, conf, daemon.StoreOptions{
		Logger: quiet, HSMChild: hsmChild(conf), Target: target, StoreKeyOnly: false,
	})
}

func rewrapStatus(ctx context.Context, conf daemon.Config) (st daemon.RewrapStatus, err error) {
	st, err = daemon.RequestRewrapStatus(ctx, conf.Data)
	if !errors.Is(err, daemon.ErrNotRunning) {
		return st, err
	}
	opened, err := daemon.OpenStore(ctx, conf, daemon.StoreOptions{Logger: quiet, HSMChild: hsmChild(conf), StoreKeyOnly: true})
	if err != nil {
		return st, err
	}
	defer func() { err = errors.Join(err, opened.Close()) }()
	return opened.RewrapStatus()
}

func (o *rewrapOptions) printStatus(out io.Writer, conf daemon.Config, st daemon.RewrapStatus) error {
	if o.asJSON {
		return json.NewEncoder(out).Encode(&st)
	}
	fmt.Fprintf(out, "the store in %s is under domain key %s\n", conf.Data, st.DomainKey)
	if p := st.Pending; p != nil {
		fmt.Fprintf(out, "unfinished: on %s it began to move from domain key %s of %s to %s of %s; run keymill rewrap to go on\n",
			p.Begun.UTC().Format(time.DateTime), p.Source, p.From, p.Target, p.To)
	}
	for _, k := range st.Retired {
		fmt.Fprintf(out, "left on %s, not destroyed: domain key %s of %s\n", k.Retired.UTC().Format(time.DateTime), k.ID, k.Place)
	}
	return nil
}

// printResult says what was done and what is left to do.
func (o *rewrapOptions) printResult(out io.Writer, conf daemon.Config, res daemon.RewrapResult, running bool) error {
	if o.asJSON {
		return json.NewEncoder(out).Encode(map[string]any{"result": &res})
	}
	var b strings.Builder
	if res.Moved {
		fmt.Fprintf(&b, "%d key-encryption keys and the store key are under domain key %s of %s now; %d were moved by this run\n",
			res.Progress.Materials, res.Target, res.To, res.Progress.Moved)
	}
	for _, d := range res.Destroyed {
		was := "destroyed"
		if d.Gone {
			was = "not there any more"
		}
		fmt.Fprintf(&b, "domain key %s of %s: %s\n", d.ID, d.Place, was)
	}
	if res.Moved && res.From != res.To {
		if running {
			b.WriteString("\nThe running daemon uses it already. Before its next start, ")
		} else {
			b.WriteString("\nBefore the daemon starts, ")
		}
		if res.To.Kind == hsm.KindPKCS11 {
			fmt.Fprintf(&b, "set in its configuration:\n\n  hsm-module: %s\n  hsm-token: %s\n  hsm-pin-file: %s\n", res.To.Module, res.To.Token, res.To.PINFile)
		} else {
			fmt.Fprintf(&b, "take hsm-module, hsm-token and hsm-pin-file out of its configuration,\nand keep a copy of %s/root.key apart from the backups.\n", conf.Data)
		}
	}
	if res.Retired > 0 {
		fmt.Fprintf(&b, "\nBackups made before now need the domain keys that the store has left: %d. They are kept;\nkeymill rewrap --status lists them, --destroy-old destroys them.\n", res.Retired)
	}
	_, err := io.WriteString(out, b.String())
	return err
}

// rewrapProgress shows how far a move is: a bar on a terminal, otherwise a line for
// each phase and each tenth of the work, or lines of JSON.
type rewrapProgress struct {
	out      io.Writer
	asJSON   bool
	terminal bool
	bar      *progressbar.ProgressBar // of the phase
	last     keystore.RewrapProgress
	tenth    uint64
}

func newRewrapProgress(out io.Writer, asJSON bool) *rewrapProgress {
	return &rewrapProgress{out: out, asJSON: asJSON, terminal: !asJSON && term.IsTerminal(int(os.Stderr.Fd()))}
}

func (p *rewrapProgress) update(now keystore.RewrapProgress) {
	before := p.last
	p.last = now
	moving := now.Phase == keystore.PhaseMoving && now.Total > 0
	if p.terminal {
		if now.Phase != before.Phase {
			p.finish()
			if now.Phase == keystore.PhaseDone {
				return
			}
			length := int64(-1)
			if moving {
				length = int64(now.Total)
			}
			p.bar = progressbar.NewOptions64(length, progressbar.OptionSetDescription(now.Phase), progressbar.OptionSetWriter(os.Stderr),
				progressbar.OptionShowCount(), progressbar.OptionClearOnFinish(), progressbar.OptionThrottle(100*time.Millisecond))
		}
		at := now.Materials
		if moving {
			at = min(now.Moved, now.Total)
		}
		p.bar.Set64(int64(at))
		return
	}
	switch {
	case moving:
		tenth := 10 * now.Moved / now.Total
		if before.Phase == now.Phase && tenth == p.tenth {
			return
		}
		p.tenth = tenth
	case before.Phase == now.Phase:
		return
	}
	switch {
	case p.asJSON:
		json.NewEncoder(p.out).Encode(map[string]any{"progress": &now})
	case moving:
		fmt.Fprintf(os.Stderr, "moving: %d of %d\n", now.Moved, now.Total)
	case now.Phase != keystore.PhaseDone:
		fmt.Fprintln(os.Stderr, now.Phase)
	}
}

// finish takes the bar away.
func (p *rewrapProgress) finish() {
	if p.bar != nil {
		p.bar.Finish()
		p.bar = nil
	}
}
