package main

import (
	"os"
	"os/exec"
	"os/signal"
	"strings"
	"syscall"

	"github.com/spf13/cobra"

	"keymill/daemon"
	"keymill/hsm"
	"keymill/hsm/arena"
)

// hsmChildName is the hidden command that has the vendor's PKCS#11 module loaded.
const hsmChildName = "hsm-child"

// hsmChildCommand runs the module for the daemon, its parent. It has no options and no
// configuration: what it needs comes over the socket it inherits.
func hsmChildCommand() *cobra.Command {
	return &cobra.Command{
		Use:    hsmChildName,
		Short:  "Run a PKCS#11 module for the daemon; not for people",
		Hidden: true,
		Args:   cobra.NoArgs,
		RunE: func(*cobra.Command, []string) error {
			// Signals to the whole group or service are the daemon's to act on: it still
			// needs us to finish what is in flight, and then closes the socket.
			signal.Ignore(os.Interrupt, syscall.SIGTERM, syscall.SIGHUP)
			// What cannot be had, the daemon has warned of: it asked for the same.
			arena.Harden()
			conn, err := hsm.ChildConn()
			if err != nil {
				return err
			}
			return hsm.ServeChild(conn)
		},
	}
}

// hsmChild returns how the HSM process is started; nil when the module is to be loaded
// into this process.
func hsmChild(conf daemon.Config) func() *exec.Cmd {
	if conf.HSMInProcess {
		return nil
	}
	return func() *exec.Cmd {
		// This program, also after its file was replaced by a newer one.
		cmd := exec.Command("/proc/self/exe", hsmChildName)
		cmd.Args[0] = "keymill"
		cmd.Stderr = os.Stderr // where vendors' libraries write their troubles
		for _, e := range os.Environ() {
			// Vendors' libraries are configured by variables. Our secrets are not for them.
			name, _, _ := strings.Cut(e, "=")
			if name != daemon.EnvRootAccessKeyID && name != daemon.EnvRootSecretAccessKey {
				cmd.Env = append(cmd.Env, e)
			}
		}
		return cmd
	}
}
