package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"time"

	"github.com/schollz/progressbar/v3"
	"github.com/spf13/cobra"
	"golang.org/x/term"

	"keymill/daemon"
	"keymill/hsm"
	"keymill/keystore"
)

func doctorCommand() *cobra.Command {
	var verify, providers, quotas bool
	cmd := &cobra.Command{
		Use:   "doctor",
		Short: "Examine an HSM, the key store, the cryptography or the quotas",
		Long: `Examine an HSM, the key store, the cryptography of this machine, the quotas, or
all of them, and change nothing.

With --hsm-module (and --hsm-token and --hsm-pin-file), print what the token
offers, which mechanism would be used and what is missing.

With --providers, print which implementation computes what for each kind of key,
and why: it was measured best, or a better one is forbidden, missing or failed
its known-answer test.

With --quotas, print the quotas that --quota-profile stands for, as a file that it
reads.

With --verify-store, open the store in --data and check every record. The daemon
must not be running on it.

The exit status is 0 when everything that was examined is sound.`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			conf, err := configFrom(cmd.Flags())
			if err != nil {
				return err
			}
			if conf.HSMModule == "" && !verify && !providers && !quotas {
				return errors.New("nothing to examine: give --hsm-module, --verify-store, --providers or --quotas")
			}
			var found error
			if quotas {
				found = printQuotas(cmd.OutOrStdout(), conf, "")
			}
			if providers {
				found = errors.Join(found, printProviders(cmd.OutOrStdout(), conf))
			}
			if conf.HSMModule != "" {
				found = errors.Join(found, inspectHSM(cmd.OutOrStdout(), conf))
			}
			if verify {
				found = errors.Join(found, verifyStore(cmd.Context(), cmd.OutOrStdout(), conf))
			}
			return found
		},
	}
	addFlags(cmd.Flags(), "data", "forbid-provider", "quota-profile", "hsm-module", "hsm-token", "hsm-pin-file", "hsm-in-process")
	cmd.Flags().BoolVar(&providers, "providers", false, "say which cryptography provider serves what")
	cmd.Flags().BoolVar(&quotas, "quotas", false, "print the quotas in force")
	cmd.Flags().BoolVar(&verify, "verify-store", false, "check every record of the store")
	return cmd
}

func inspectHSM(w io.Writer, conf daemon.Config) error {
	token := daemon.PKCS11Config(conf, quiet)
	token.Child = hsmChild(conf)
	report, err := hsm.Inspect(token)
	if err != nil {
		return err
	}
	if _, err := report.WriteTo(w); err != nil {
		return err
	}
	if !report.OK() {
		return errors.New("the token cannot be used as it is; the report says what would help")
	}
	return nil
}

// verifyStore checks every record and shows how far it is, on a terminal.
func verifyStore(ctx context.Context, w io.Writer, conf daemon.Config) (err error) {
	opened, err := daemon.OpenStore(ctx, conf, daemon.StoreOptions{Logger: quiet, HSMChild: hsmChild(conf), StoreKeyOnly: true})
	if errors.Is(err, keystore.ErrLocked) {
		return fmt.Errorf("%w; stop the daemon first", err)
	}
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, opened.Close()) }()

	var bar *progressbar.ProgressBar
	if term.IsTerminal(int(os.Stderr.Fd())) {
		bar = progressbar.NewOptions64(-1, progressbar.OptionSetDescription("verifying"), progressbar.OptionSetWriter(os.Stderr),
			progressbar.OptionShowCount(), progressbar.OptionClearOnFinish(), progressbar.OptionThrottle(100*time.Millisecond))
	}
	var last keystore.Progress
	err = opened.Store.Verify(ctx, func(p keystore.Progress) {
		last = p
		if bar != nil {
			bar.Set64(int64(p.Records))
		}
	})
	if bar != nil {
		bar.Finish()
	}
	if err != nil {
		return err
	}
	fmt.Fprintf(w, "store %s: %d records of %d keys, all sound\n", daemon.StoreDir(conf.Data), last.Records, last.Keys)
	return nil
}
