package main

import (
	"errors"
	"fmt"

	"github.com/spf13/cobra"

	"keymill/daemon/xks"
)

func xksConfigCommand() *cobra.Command {
	var prefix string
	cmd := &cobra.Command{
		Use:   "xks-config",
		Short: "Print the configuration file of an external key store for the AWS console",
		Long: `Print the JSON file that the AWS console takes when an external key store is
made: the proxy's URI path and its authentication credential, from the file of
--xks-credentials. With two credentials it is the first.

What is printed holds the secret of the credential.`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			conf, err := configFrom(cmd.Flags())
			if err != nil {
				return err
			}
			if conf.XKSCredentials == "" {
				return errors.New("xks-credentials: not set; give the file of the served XKS proxy")
			}
			text, err := xks.ConsoleConfig(conf.XKSCredentials, prefix)
			if err != nil {
				return fmt.Errorf("xks-credentials: %w", err)
			}
			_, err = fmt.Fprintf(cmd.OutOrStdout(), "%s\n", text)
			return err
		},
	}
	addFlags(cmd.Flags(), "xks-credentials")
	cmd.Flags().StringVar(&prefix, "prefix", "", "`PREFIX` of the store in that file")
	return cmd
}
