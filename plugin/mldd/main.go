package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"log/slog"
	"os"
	"os/signal"
	"time"

	"golang.org/x/sys/unix"

	"github.com/seed-aaab8e3a/cni-mld/plugin/api"
	"github.com/seed-aaab8e3a/cni-mld/plugin/daemon"
	"github.com/seed-aaab8e3a/cni-mld/plugin/keeper"
)

// version is set by the linker.
var version = "devel"

// idleExit is how long a self-started daemon stays when its last attachment has gone.
const idleExit = time.Minute

// readyFD is the descriptor on which a self-started daemon says "ready", or what is wrong.
const readyFD = 3

// Exit codes.
const (
	exitFailure = 1
	exitUsage   = 2
)

func main() {
	flags := flag.NewFlagSet("mldd", flag.ContinueOnError)
	runDir := flags.String("run-dir", api.DefaultRunDir, "`directory` of the socket and the lock")
	maxGroups := flags.Int("max-groups", daemon.DefaultMaxGroups, "how many groups an attachment may declare, at least 1")
	maxSources := flags.Int("max-sources", daemon.DefaultMaxSources, "how many sources the groups of an attachment may have together, at least 1")
	logLevel := slog.LevelInfo
	flags.TextVar(&logLevel, "log-level", slog.LevelInfo, "log messages of this `level` and above: debug, info, warn, error")
	selfStarted := flags.Bool("self-started", false, "for mld: report readiness on descriptor 3, end when idle for a minute")
	printVersion := flags.Bool("version", false, "print the version and exit")
	flags.Usage = func() {
		fmt.Fprint(flags.Output(), "usage: mldd [flags]\n\nmldd runs the MLD listeners of the containers of this host.\n\n")
		flags.PrintDefaults()
	}
	switch err := flags.Parse(os.Args[1:]); {
	case errors.Is(err, flag.ErrHelp):
		return
	case err != nil:
		os.Exit(exitUsage)
	case flags.NArg() > 0:
		fmt.Fprintf(os.Stderr, "mldd: unexpected argument %q\n", flags.Arg(0))
		os.Exit(exitUsage)
	case *maxGroups < 1 || *maxSources < 1:
		fmt.Fprintf(os.Stderr, "mldd: --max-groups %d, --max-sources %d: must be at least 1\n", *maxGroups, *maxSources)
		os.Exit(exitUsage)
	}
	if *printVersion {
		fmt.Println("mldd", version)
		return
	}

	cfg := daemon.Config{
		RunDir:     *runDir,
		Version:    version,
		MaxGroups:  *maxGroups,
		MaxSources: *maxSources,
		Logger:     slog.New(slog.NewTextHandler(os.Stderr, &slog.HandlerOptions{Level: logLevel})),
	}
	ready := io.WriteCloser(nopReady{})
	if *selfStarted {
		unix.Umask(0o077)
		ready = os.NewFile(readyFD, "readiness")
		cfg.SelfStarted = true
		cfg.IdleExit = idleExit
	}
	if err := run(cfg, ready); err != nil {
		cfg.Logger.Error("mldd ended", "err", err)
		os.Exit(exitFailure)
	}
}

// run serves until a signal comes. It says on ready how the start went.
func run(cfg daemon.Config, ready io.WriteCloser) error {
	ctx, stop := signal.NotifyContext(context.Background(), unix.SIGTERM, unix.SIGINT)
	defer stop()
	d, err := open(cfg)
	said := "ready\n"
	if err != nil {
		said = err.Error() + "\n"
	}
	// Whoever has started the daemon may be gone already; that is no reason not to serve.
	_, _ = io.WriteString(ready, said)
	_ = ready.Close()
	if err != nil {
		return err
	}
	return d.Serve(ctx)
}

// open takes the run directory.
func open(cfg daemon.Config) (*daemon.Daemon, error) {
	if err := api.CheckRunDir(cfg.RunDir); err != nil {
		return nil, err
	}
	place, err := keeper.Take(api.SocketPath(cfg.RunDir), nil)
	if err != nil {
		return nil, err
	}
	cfg.Listener = place.Listener
	return daemon.New(cfg)
}

// nopReady is nobody to report readiness to.
type nopReady struct{}

func (nopReady) Write(p []byte) (int, error) { return len(p), nil }
func (nopReady) Close() error                { return nil }
