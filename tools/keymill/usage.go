package main

import (
	"errors"
	"fmt"
	"maps"
	"slices"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"

	"keymill/daemon"
)

func usageCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "usage KEY-ARN",
		Short: "Show how often a key was used, and when last",
		Long: `Ask the daemon that serves --data how often each cryptographic operation was
done with a key, and which was the last. The items of bulk requests count one by
one. What was counted in the last half minute before a crash may be missing.`,
		Args: cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			conf, err := configFrom(cmd.Flags())
			if err != nil {
				return err
			}
			if conf.Data == "" {
				return errors.New("data: no data directory; give one with --data")
			}
			u, err := daemon.RequestKeyUsage(cmd.Context(), conf.Data, args[0])
			if err != nil {
				return err
			}
			w := tabwriter.NewWriter(cmd.OutOrStdout(), 0, 8, 2, ' ', 0)
			fmt.Fprintf(w, "recorded since\t%s\n", u.Since.UTC().Format(time.RFC3339))
			for _, op := range slices.Sorted(maps.Keys(u.Operations)) {
				fmt.Fprintf(w, "%s\t%d\n", op, u.Operations[op])
			}
			if u.LastOperation == "" {
				fmt.Fprintf(w, "last use\tnone\n")
			} else {
				fmt.Fprintf(w, "last use\t%s, %s, request %s\n", u.LastUsed.UTC().Format(time.RFC3339Nano), u.LastOperation, u.LastRequestID)
			}
			return w.Flush()
		},
	}
	addFlags(cmd.Flags(), "data")
	return cmd
}
