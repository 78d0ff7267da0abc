package main

import (
	"crypto/fips140"
	"fmt"
	"runtime"

	"github.com/spf13/cobra"
)

// version is set by the linker, see the Makefile.
var version = "development"

func versionCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "version",
		Short: "Print the version",
		Args:  cobra.NoArgs,
		Run: func(cmd *cobra.Command, _ []string) {
			mode := "off"
			if fips140.Enabled() {
				mode = "on"
			}
			fmt.Fprintf(cmd.OutOrStdout(), "keymill %s, %s, %s/%s, FIPS 140-3 mode %s\n",
				version, runtime.Version(), runtime.GOOS, runtime.GOARCH, mode)
		},
	}
}
