package main

import (
	"fmt"
	"io"
	"strings"

	"keymill/daemon"
	"keymill/daemon/quota"
)

// printQuotas prints the quotas that the profile of the configuration amounts to, as
// a file that quota-profile reads, each line after a prefix.
func printQuotas(w io.Writer, conf daemon.Config, prefix string) error {
	profile, err := quota.Load(conf.QuotaProfile)
	if err != nil {
		return fmt.Errorf("quota-profile: %w", err)
	}
	for line := range strings.Lines(profile.String()) {
		if _, err := io.WriteString(w, strings.TrimRight(prefix+line, " \n")+"\n"); err != nil {
			return err
		}
	}
	return nil
}

// quotaComment begins the lines in which --print-config shows the quotas: it prints a
// configuration file, in which they are named and not listed.
const quotaComment = "#   "

// printEffective writes the configuration and, as comments, the quotas it leads to.
func printEffective(w io.Writer, conf daemon.Config) error {
	if err := printConfig(w, conf); err != nil {
		return err
	}
	if _, err := fmt.Fprintf(w, "\n# The quotas that quota-profile %s stands for, as a file for it; keymill doctor --quotas prints that file:\n#\n", conf.QuotaProfile); err != nil {
		return err
	}
	return printQuotas(w, conf, quotaComment)
}
