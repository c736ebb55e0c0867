package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"os"
	"os/signal"

	"github.com/coreos/go-systemd/v22/activation"
	sd "github.com/coreos/go-systemd/v22/daemon"
	"golang.org/x/sys/unix"

	"github.com/seed-aaab8e3a/cni-mld/plugin/api"
	"github.com/seed-aaab8e3a/cni-mld/plugin/keeper"
)

// keep is the keeper: it takes the run directory and keeps a worker at work, which says on ready, which may be nil,
// how the start went, unless there is none to say it.
func keep(runDir string, ready *os.File, logger *slog.Logger) error {
	ctx, stop := signal.NotifyContext(context.Background(), unix.SIGTERM, unix.SIGINT)
	defer stop()
	reload := make(chan os.Signal, 1)
	signal.Notify(reload, unix.SIGHUP)

	place, err := take(runDir)
	if err != nil {
		say(ready, err)
		return err
	}
	context.AfterFunc(ctx, func() { notify(logger, sd.SdNotifyStopping) })
	err = keeper.Run(ctx, keeper.Config{
		Place:     place,
		Path:      binary,
		Args:      os.Args,
		Ready:     ready,
		Reload:    reload,
		Logger:    logger,
		Settled:   func() { notify(logger, sd.SdNotifyReady) },
		Reloading: func() { notify(logger, sd.SdNotifyReloading+"\n"+sd.SdNotifyMonotonicUsec()) },
	})
	return errors.Join(err, place.Close())
}

// binary is where this program was found; os.Executable remembers it from the start, when it was not yet replaced.
var binary, errBinary = os.Executable()

// take takes the run directory, with the socket that a service manager may have passed.
func take(runDir string) (*keeper.Place, error) {
	if errBinary != nil {
		return nil, errBinary
	}
	if err := api.CheckRunDir(runDir); err != nil {
		return nil, err
	}
	passed, err := activation.Listeners() // none without LISTEN_PID and LISTEN_FDS, which are unset
	if err != nil {
		return nil, fmt.Errorf("sockets of the service manager: %w", err)
	}
	switch len(passed) {
	case 0:
		return keeper.Take(api.SocketPath(runDir), nil)
	case 1:
		l, ok := passed[0].(*net.UnixListener)
		if !ok {
			return nil, fmt.Errorf("the service manager has passed no unix stream socket: must be %s", api.SocketPath(runDir))
		}
		return keeper.Take(api.SocketPath(runDir), l)
	}
	return nil, fmt.Errorf("the service manager has passed %d sockets: must be one, %s", len(passed), api.SocketPath(runDir))
}

// say tells whoever has started the daemon how that went, and that there is nothing more to be said. The starter may
// be gone already; that is no reason not to serve.
func say(ready *os.File, err error) {
	if ready == nil {
		return
	}
	said := "ready\n"
	if err != nil {
		said = err.Error() + "\n"
	}
	_, _ = io.WriteString(ready, said)
	_ = ready.Close()
}

// notify tells the service manager, if there is one.
func notify(logger *slog.Logger, state string) {
	if _, err := sd.SdNotify(false, state); err != nil {
		logger.Warn("service manager not notified", "err", err)
	}
}
