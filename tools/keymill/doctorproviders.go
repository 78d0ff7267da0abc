package main

import (
	"fmt"
	"io"
	"strings"

	"keymill/daemon"
	"keymill/engine"
)

// printProviders prints what the daemon would choose with this configuration.
// It is an error when something has nobody left to compute it.
func printProviders(w io.Writer, conf daemon.Config) error {
	if err := engine.ConfigureProviders(engine.ProviderOptions{Forbid: conf.ForbidProvider, Logger: quiet}); err != nil {
		return err
	}
	report := engine.Providers()
	if _, err := report.WriteTo(w); err != nil {
		return err
	}
	if missing := report.Missing(); len(missing) > 0 {
		return fmt.Errorf("no provider is left for %s", strings.Join(missing, ", "))
	}
	return nil
}
