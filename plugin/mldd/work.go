package main

import (
	"context"
	"errors"
	"os"
	"os/signal"
	"runtime"
	"runtime/debug"
	"time"

	"golang.org/x/sys/unix"

	"github.com/seed-aaab8e3a/cni-mld/plugin/daemon"
	"github.com/seed-aaab8e3a/cni-mld/plugin/keeper"
)

// idleExit is how long a self-started daemon stays when its last attachment has gone.
const idleExit = time.Minute

// work is the worker: it serves until a signal comes, and returns the exit code. metrics is where it serves metrics, if not
// empty.
func work(cfg daemon.Config, metrics string) int {
	signals := make(chan os.Signal, 1)
	signal.Notify(signals, unix.SIGTERM, unix.SIGINT, unix.SIGHUP)
	ctx, cancel := context.WithCancelCause(context.Background())
	defer cancel(nil)
	go func() {
		if <-signals == unix.SIGHUP {
			cancel(daemon.ErrHandover)
		}
		cancel(errAsked)
	}()

	w, err := keeper.Connect()
	if err != nil {
		cfg.Logger.Error("worker ended", "err", err)
		return exitFailure
	}
	go func() {
		w.Wait()
		os.Exit(exitFailure) // with all that is open, as if killed: nobody is left to keep it
	}()
	var d *daemon.Daemon
	l, err := listenMetrics(metrics)
	if err == nil {
		d, err = open(cfg, w)
	}
	say(w.Ready, err)
	if err == nil {
		if l != nil {
			go serveMetrics(ctx, l, d.Metrics(), cfg.Logger)
		}
		err = d.Serve(ctx)
	}
	switch {
	case err != nil:
		cfg.Logger.Error("worker ended", "err", err)
		return exitFailure
	case errors.Is(context.Cause(ctx), daemon.ErrHandover):
		return keeper.ExitHandover
	}
	return 0
}

var errAsked = errors.New("asked to")

// open makes the daemon of what the keeper has.
func open(cfg daemon.Config, w *keeper.Worker) (*daemon.Daemon, error) {
	cfg.Listener, cfg.Keeper, cfg.KeeperPID, cfg.Resume = w.Listener, w, os.Getppid(), w.Resume
	cfg.Settled = func() {
		if err := w.Settled(); err != nil {
			cfg.Logger.Warn("keeper not told", "err", err)
		}
	}
	cfg.Calm = giveBack
	if cfg.SelfStarted {
		cfg.IdleExit = idleExit
	}
	return daemon.New(cfg)
}

// giveBack returns the memory that a burst of requests has taken, which Go would keep for the next one. Two collections
// make the stacks small again, too, of which there are some for each interface.
func giveBack() {
	runtime.GC()
	debug.FreeOSMemory()
}
