package main

import (
	"errors"
	"flag"
	"fmt"
	"io"
	"log/slog"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"

	"github.com/seed-aaab8e3a/cni-mld/plugin/api"
	"github.com/seed-aaab8e3a/cni-mld/plugin/daemon"
	"github.com/seed-aaab8e3a/cni-mld/plugin/keeper"
)

// version is set by the linker.
var version = "devel"

// readyFD is the descriptor on which a self-started daemon says "ready", or what is wrong.
const readyFD = 3

// Exit codes.
const (
	exitFailure = 1
	exitUsage   = 2
)

func main() {
	flags := flag.NewFlagSet("mldd", flag.ContinueOnError)
	runDir := flags.String("run-dir", api.DefaultRunDir, "`directory` of the socket, the lock and the state files")
	maxGroups := flags.Int("max-groups", daemon.DefaultMaxGroups, "how many groups an attachment may declare, at least 1")
	maxSources := flags.Int("max-sources", daemon.DefaultMaxSources, "how many sources the groups of an attachment may have together, at least 1")
	maxJoined := flags.Int("max-joined", daemon.DefaultMaxJoined, "how many multicast addresses and sources the programs of a container may have joined before its interface is given back to the kernel, at least 1")
	metrics := flags.String("metrics", "", "serve metrics for Prometheus at `address`, which is HOST:PORT or the path of a unix socket, to anybody who connects")
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
	case *maxGroups < 1 || *maxSources < 1 || *maxJoined < 1:
		fmt.Fprintf(os.Stderr, "mldd: --max-groups %d, --max-sources %d, --max-joined %d: must be at least 1\n", *maxGroups, *maxSources, *maxJoined)
		os.Exit(exitUsage)
	case !filepath.IsAbs(*runDir):
		fmt.Fprintf(os.Stderr, "mldd: --run-dir %q: must be an absolute path such as %s\n", *runDir, api.DefaultRunDir)
		os.Exit(exitUsage)
	case !isMetricsAddress(*metrics):
		fmt.Fprintf(os.Stderr, "mldd: --metrics %q: %s\n", *metrics, metricsRule)
		os.Exit(exitUsage)
	}
	if *printVersion {
		fmt.Println("mldd", version)
		return
	}

	var log io.Writer = os.Stderr
	if *selfStarted {
		log = selfLog(api.LogPath(*runDir))
	}
	logger := slog.New(slog.NewTextHandler(log, &slog.HandlerOptions{Level: logLevel}))
	if keeper.IsWorker() {
		os.Exit(work(daemon.Config{
			RunDir:      *runDir,
			SelfStarted: *selfStarted,
			Version:     version,
			MaxGroups:   *maxGroups,
			MaxSources:  *maxSources,
			MaxJoined:   *maxJoined,
			Logger:      logger,
		}, *metrics))
	}
	var ready *os.File
	if *selfStarted {
		unix.Umask(0o077)
		unix.CloseOnExec(readyFD)
		ready = os.NewFile(readyFD, "readiness")
	}
	if err := keep(*runDir, ready, logger); err != nil {
		logger.Error("mldd ended", "err", err)
		os.Exit(exitFailure)
	}
}
