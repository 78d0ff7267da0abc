// Command keymill is a self-hosted key management appliance that speaks the AWS
// KMS API: the daemon and what an operator needs around it.
package main

import (
	"context"
	"fmt"
	"log/slog"
	"os"
	"os/signal"
	"syscall"

	"github.com/spf13/cobra"
)

func main() {
	// The first signal asks for a graceful stop; a second one, which meets the
	// default handler again, ends the process.
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	context.AfterFunc(ctx, stop)
	if err := newRoot().ExecuteContext(ctx); err != nil {
		fmt.Fprintln(os.Stderr, "keymill:", err)
		os.Exit(1)
	}
}

// quiet shows what commands other than serve have to say of their surroundings:
// no progress, only what is wrong.
var quiet = slog.New(slog.NewTextHandler(os.Stderr, &slog.HandlerOptions{Level: slog.LevelWarn}))

func newRoot() *cobra.Command {
	root := &cobra.Command{
		Use:   "keymill",
		Short: "A self-hosted key management appliance that speaks the AWS KMS API",
		Long: `Keymill is a self-hosted key management appliance that speaks the AWS KMS API.

Every option is a flag, a key of the configuration file (--config FILE, YAML) and
an environment variable: --admin-listen is admin-listen and KEYMILL_ADMIN_LISTEN.
A flag wins over the environment, the environment over the file.`,
		SilenceErrors: true,
		SilenceUsage:  true,
	}
	root.AddCommand(serveCommand(), benchCommand(), doctorCommand(), backupCommand(), restoreCommand(), rewrapCommand(), confirmClockCommand(), usageCommand(), xksConfigCommand(), versionCommand(), hsmChildCommand())
	root.CompletionOptions.HiddenDefaultCmd = true
	return root
}
