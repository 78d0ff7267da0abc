package main

import (
	"context"
	"fmt"
	"log/slog"
	"os"
	"os/signal"
	"runtime/debug"
	"syscall"

	"github.com/spf13/cobra"

	"keymill/daemon"
	"keymill/hsm/arena"
)

func serveCommand() *cobra.Command {
	var print bool
	cmd := &cobra.Command{
		Use:   "serve",
		Short: "Run the daemon",
		Long: `Run the daemon until SIGTERM or SIGINT. SIGHUP reads the TLS files
again, and those of the served XKS proxy.

The first start makes the data directory, the root access key and, without an
HSM, the root key. ` + daemon.EnvRootAccessKeyID + ` and ` + daemon.EnvRootSecretAccessKey + `
preset the access key.`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			conf, warnings, err := loadConfig(cmd.Flags(), os.Environ())
			if err != nil {
				return err
			}
			if err := conf.Validate(); err != nil {
				return err
			}
			if print {
				return printEffective(cmd.OutOrStdout(), conf)
			}
			return serve(cmd.Context(), conf, warnings)
		},
	}
	addFlags(cmd.Flags())
	cmd.Flags().BoolVar(&print, "print-config", false, "print the effective values as a configuration file and exit")
	return cmd
}

// gcPercent is how much the heap may grow between two collections, unless GOGC says
// otherwise. Go's 100 makes 1 GB of the 400 MB that a million warm keys are; a
// request on a hot key leaves no garbage, so that collecting sooner costs it nothing.
const gcPercent = 60

func serve(ctx context.Context, conf daemon.Config, warnings []string) error {
	log, err := newLogger(conf)
	if err != nil {
		return err
	}
	// Files and sockets are the daemon's alone, and no secret of it ends up in
	// a core dump or a swap file, as far as the system lets us.
	syscall.Umask(0o077)
	for _, w := range append(warnings, arena.Harden()...) {
		log.Warn(w)
	}

	if os.Getenv("GOGC") == "" {
		debug.SetGCPercent(gcPercent)
	}

	srv, err := daemon.New(conf, daemon.Environment{Logger: log, Stdout: os.Stdout, Getenv: takeEnv, HSMChild: hsmChild(conf)})
	if err != nil {
		return err
	}
	defer reloadOnHangup(srv, log)()
	if err := srv.Run(ctx); err != nil {
		return err
	}
	log.Info("stopped")
	return nil
}

// takeEnv reads a variable and removes it, so that no child process inherits a
// secret preset.
func takeEnv(name string) string {
	v := os.Getenv(name)
	os.Unsetenv(name)
	return v
}

// reloadOnHangup reloads on SIGHUP until the returned function is called.
func reloadOnHangup(srv *daemon.Server, log *slog.Logger) (stop func()) {
	hup := make(chan os.Signal, 1)
	signal.Notify(hup, syscall.SIGHUP)
	done := make(chan struct{})
	go func() {
		for {
			select {
			case <-hup:
				if err := srv.Reload(); err != nil {
					log.Error("SIGHUP: the TLS files were not reloaded, the ones in force stay", "err", err)
				} else {
					log.Info("SIGHUP: TLS files reloaded")
				}
			case <-done:
				return
			}
		}
	}()
	return func() {
		signal.Stop(hup)
		close(done)
	}
}

func newLogger(conf daemon.Config) (*slog.Logger, error) {
	var level slog.Level
	if err := level.UnmarshalText([]byte(conf.LogLevel)); err != nil {
		return nil, fmt.Errorf("log-level: %w", err)
	}
	o := &slog.HandlerOptions{Level: level}
	if conf.LogFormat == "json" {
		return slog.New(slog.NewJSONHandler(os.Stderr, o)), nil
	}
	return slog.New(slog.NewTextHandler(os.Stderr, o)), nil
}
