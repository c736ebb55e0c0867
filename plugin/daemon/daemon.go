package daemon

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"github.com/seed-aaab8e3a/cni-mld/mld/netns"
	"github.com/seed-aaab8e3a/cni-mld/plugin/api"
)

// ErrRunning says that another daemon serves the run directory.
var ErrRunning = errors.New("another mldd serves this run directory")

// Config is what a Daemon is made of.
type Config struct {
	// RunDir holds the socket and the lock; see [api.CheckRunDir] for what is asked of it.
	RunDir string
	// IdleExit ends Serve when there has been no attachment for so long; zero means never.
	IdleExit time.Duration
	// SelfStarted says in the status that the plugin has started the daemon.
	SelfStarted bool
	// Version of the program, for the status.
	Version string
	// MaxGroups and MaxSources are how many groups, and sources of them together, an attachment may declare, whatever
	// its configuration says. Zero means the defaults.
	MaxGroups, MaxSources int
	// Logger must not be nil.
	Logger *slog.Logger
}

// The defaults of Config.MaxGroups and Config.MaxSources.
const (
	DefaultMaxGroups  = 4096
	DefaultMaxSources = 16384
)

// A Daemon serves the attachments of a host.
type Daemon struct {
	cfg      Config
	log      *slog.Logger
	home     *netns.Namespace // the daemon's own
	lock     *os.File
	listener *net.UnixListener
	removed  *dirWatch
	idle     *time.Timer   // runs while there is no attachment; nil without IdleExit
	patience time.Duration // requestTimeout

	// Requests for one attachment, and changes of one interface, come one after the other.
	attaching flights[api.Attachment]
	changing  flights[interfaceID]

	mu          sync.Mutex // of what follows; held for moments only
	attachments map[api.Attachment]*attachment
	interfaces  map[interfaceID]*iface

	watchers watchers
}

// New takes the run directory and opens the socket, so that clients can connect; [Daemon.Serve] answers them. An
// error wraps [ErrRunning] if another daemon is there.
func New(cfg Config) (*Daemon, error) {
	cfg.MaxGroups = cmp.Or(cfg.MaxGroups, DefaultMaxGroups)
	cfg.MaxSources = cmp.Or(cfg.MaxSources, DefaultMaxSources)
	d := &Daemon{
		cfg:         cfg,
		log:         cfg.Logger,
		patience:    requestTimeout,
		attachments: make(map[api.Attachment]*attachment),
		interfaces:  make(map[interfaceID]*iface),
	}
	if err := d.open(); err != nil {
		return nil, errors.Join(err, d.close())
	}
	return d, nil
}

func (d *Daemon) open() (err error) {
	if err := api.CheckRunDir(d.cfg.RunDir); err != nil {
		return err
	}
	if d.lock, err = takeLock(filepath.Join(d.cfg.RunDir, "mldd.lock")); err != nil {
		return err
	}
	if d.removed, err = watchDir(d.cfg.RunDir); err != nil {
		return err
	}
	if d.home, err = netns.Current(); err != nil {
		return err
	}
	path := api.SocketPath(d.cfg.RunDir)
	if err := os.Remove(path); err != nil && !errors.Is(err, os.ErrNotExist) { // of a daemon that was killed
		return err
	}
	if d.listener, err = net.ListenUnix("unix", &net.UnixAddr{Name: path, Net: "unix"}); err != nil {
		return err
	}
	if err := os.Chmod(path, 0o600); err != nil {
		return err
	}
	if d.cfg.IdleExit > 0 {
		d.idle = time.NewTimer(d.cfg.IdleExit)
	}
	return nil
}

// close closes what open has opened; the lock comes last, because whoever gets it next removes the socket.
func (d *Daemon) close() error {
	var errs []error
	if d.listener != nil {
		errs = append(errs, ignoreClosed(d.listener.Close()))
	}
	if d.home != nil {
		errs = append(errs, d.home.Close())
	}
	if d.removed != nil {
		errs = append(errs, ignoreClosed(d.removed.Close()))
	}
	if d.lock != nil {
		errs = append(errs, d.lock.Close())
	}
	return errors.Join(errs...)
}

func ignoreClosed(err error) error {
	if errors.Is(err, net.ErrClosed) || errors.Is(err, os.ErrClosed) {
		return nil
	}
	return err
}

// takeLock locks path for as long as the file is open.
func takeLock(path string) (*os.File, error) {
	f, err := os.OpenFile(path, os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return nil, err
	}
	err = unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB)
	if errors.Is(err, unix.EWOULDBLOCK) {
		err = ErrRunning
	}
	if err != nil {
		return nil, errors.Join(fmt.Errorf("%s: %w", path, err), f.Close())
	}
	return f, nil
}

// Serve answers requests until ctx is done, the daemon has been idle for Config.IdleExit, or its run directory has
// been removed. Then it leaves what is declared and lets the kernels speak again. It is called once.
func (d *Daemon) Serve(ctx context.Context) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	var connections sync.WaitGroup
	connections.Go(func() {
		d.accept(ctx, &connections)
		cancel() // without a socket there is nothing to wait for
	})
	removed := make(chan error, 1)
	go func() { removed <- d.removed.wait() }()

	d.log.Info("serving", "run_dir", d.cfg.RunDir, "version", d.cfg.Version, "netns", d.home.Cookie())
	select {
	case <-ctx.Done():
		d.log.Info("stopping", "reason", "asked to")
	case <-d.idleC():
		d.log.Info("stopping", "reason", "no attachments", "for", d.cfg.IdleExit)
	case err := <-removed:
		d.log.Warn("stopping", "reason", "run directory removed", "err", err)
	}
	cancel()
	err := ignoreClosed(d.listener.Close())
	connections.Wait()
	d.detachAll()
	return errors.Join(err, d.close())
}

// idleC fires when the daemon has been idle long enough; never without IdleExit.
func (d *Daemon) idleC() <-chan time.Time {
	if d.idle == nil {
		return nil
	}
	return d.idle.C
}

// countChanged restarts or stops the idle timer after attachments have come or gone. d.mu is held.
func (d *Daemon) countChanged() {
	switch {
	case d.idle == nil:
	case len(d.attachments) == 0:
		d.idle.Reset(d.cfg.IdleExit)
	default:
		d.idle.Stop()
	}
}

// status describes the running daemon.
func (d *Daemon) status() *api.Status {
	binary, err := os.Executable()
	if err != nil {
		binary = "unknown: " + err.Error()
	}
	cgroup, err := os.ReadFile("/proc/self/cgroup")
	if err != nil {
		cgroup = []byte("unknown: " + err.Error())
	}
	ns, err := os.Readlink("/proc/self/ns/net")
	if err != nil {
		ns = "unknown: " + err.Error()
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	return &api.Status{
		Version:     d.cfg.Version,
		Binary:      binary,
		PID:         os.Getpid(),
		Cgroup:      strings.TrimSpace(string(cgroup)),
		Netns:       ns,
		SelfStarted: d.cfg.SelfStarted,
		Attachments: len(d.attachments),
	}
}
