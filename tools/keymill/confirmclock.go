package main

import (
	"errors"
	"fmt"
	"time"

	"github.com/spf13/cobra"

	"keymill/daemon"
)

func confirmClockCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "confirm-clock",
		Short: "Confirm the clock after it jumped",
		Long: `Tell the daemon that serves --data that its machine's clock is right.

Keys whose waiting period is over are destroyed, and imported key material
expires, by that clock. When it is far ahead of what it should show, because it
jumped, because the daemon was off for more than a day, or because an old backup
was restored, the daemon suspends both and says so in its log and as
keymill_destruction_suspended in its metrics. Look at the clock; if it is wrong,
set it right and the suspension ends by itself. If it is right, this command ends
it: whatever is due by then is destroyed for good.`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			conf, err := configFrom(cmd.Flags())
			if err != nil {
				return err
			}
			if conf.Data == "" {
				return errors.New("data: no data directory; give one with --data")
			}
			c, err := daemon.RequestClockConfirmation(cmd.Context(), conf.Data)
			if err != nil {
				return err
			}
			fmt.Fprintf(cmd.OutOrStdout(), "clock confirmed: %s\n", c.Time.UTC().Format(time.RFC3339))
			if c.Suspended {
				fmt.Fprintln(cmd.OutOrStdout(), "expiry and deletion had been suspended; they go on now")
			} else {
				fmt.Fprintln(cmd.OutOrStdout(), "nothing had been suspended")
			}
			return nil
		},
	}
	addFlags(cmd.Flags(), "data")
	return cmd
}
