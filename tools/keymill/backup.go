package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"syscall"

	"github.com/spf13/cobra"

	"keymill/daemon"
	"keymill/keystore"
)

func backupCommand() *cobra.Command {
	var to string
	cmd := &cobra.Command{
		Use:   "backup --to DIR",
		Short: "Back up the key store",
		Long: `Write a consistent copy of the key store in --data into a new directory.

When a daemon is running on the data directory, it writes the copy without a
pause in its service; otherwise this command does, and then needs the same root
of trust (--hsm-... or the root key file) as the daemon.

The root key and the credentials are not in a backup. Keep them elsewhere:
whoever has the backup and the root key has every key.`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			conf, err := configFrom(cmd.Flags())
			if err != nil {
				return err
			}
			if err := backup(cmd.Context(), conf, to); err != nil {
				return err
			}
			fmt.Fprintf(cmd.OutOrStdout(), "backup of %s written to %s\n", conf.Data, to)
			return nil
		},
	}
	addFlags(cmd.Flags(), "data", "hsm-module", "hsm-token", "hsm-pin-file", "hsm-in-process")
	cmd.Flags().StringVar(&to, "to", "", "`DIR` to write; must not exist or be empty")
	cmd.MarkFlagRequired("to")
	return cmd
}

func backup(ctx context.Context, conf daemon.Config, to string) (err error) {
	err = daemon.RequestBackup(ctx, conf.Data, to)
	if !errors.Is(err, daemon.ErrNotRunning) {
		return err
	}
	syscall.Umask(0o077)
	opened, err := daemon.OpenStore(ctx, conf, daemon.StoreOptions{Logger: quiet, HSMChild: hsmChild(conf), StoreKeyOnly: true})
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, opened.Close()) }()
	return opened.Store.Backup(ctx, to)
}

func restoreCommand() *cobra.Command {
	var from string
	cmd := &cobra.Command{
		Use:   "restore --from DIR",
		Short: "Restore the key store from a backup",
		Long: `Put the key store of a backup into the data directory --data, which must not
have one. The root of trust is not in a backup: bring the root key file, or
start the daemon on the HSM token that the store was made on.`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			conf, err := configFrom(cmd.Flags())
			if err != nil {
				return err
			}
			if conf.Data == "" {
				return errors.New("data: no data directory; give one with --data")
			}
			syscall.Umask(0o077)
			if err := os.MkdirAll(conf.Data, 0o700); err != nil {
				return fmt.Errorf("data: %w", err)
			}
			if err := keystore.Restore(from, daemon.StoreDir(conf.Data)); err != nil {
				return err
			}
			fmt.Fprintf(cmd.OutOrStdout(), `key store restored into %[1]s

Two things are not in a backup. Bring them before you start the daemon:
  the root of trust   %[1]s/root.key (mode 0600) from where you keep it,
                      or the HSM token, with the --hsm-... options
  the credentials     %[1]s/credentials (mode 0600); only clients need it
`, conf.Data)
			return nil
		},
	}
	addFlags(cmd.Flags(), "data")
	cmd.Flags().StringVar(&from, "from", "", "`DIR` that keymill backup wrote")
	cmd.MarkFlagRequired("from")
	return cmd
}
