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

	"github.com/seed-aaab8e3a/cni-mld/mld/kernel"
	"github.com/seed-aaab8e3a/cni-mld/mld/netns"
	"github.com/seed-aaab8e3a/cni-mld/plugin/api"
)

// ErrHandover is the cause of the end of Serve's context when the next worker takes over at once: nothing is left then,
// and requests that are at work are finished.
var ErrHandover = errors.New("the next worker takes over")

// Config is what a Daemon is made of.
type Config struct {
	// RunDir holds the socket and the state files; see [api.CheckRunDir] for what is asked of it.
	RunDir string
	// Listener is that of the run directory's socket. New takes it over.
	Listener *net.UnixListener
	// Keeper, which may be nil, holds what is joined for as long as it lives, this daemon and the next ones.
	Keeper kernel.Keeper
	// KeeperPID is its process, for the status.
	KeeperPID int
	// Resume says that the Keeper still holds what another daemon has joined: nobody has noticed that that one is gone.
	Resume bool
	// Settled, which may be nil, is called when all that stood before is attached again, as far as it is still there.
	Settled func()
	// Calm, which may be nil, is called when no attachment has come or gone for ten seconds.
	Calm func()
	// IdleExit ends Serve when there has been no attachment for so long; zero means never.
	IdleExit time.Duration
	// SelfStarted says in the status that the plugin has started the daemon.
	SelfStarted bool
	// Version of the program, for the status.
	Version string
	// MaxGroups and MaxSources are how many groups, and sources of them together, an attachment may declare, whatever
	// its configuration says. Zero means the defaults.
	MaxGroups, MaxSources int
	// MaxJoined is how many addresses and sources the programs of a container may have joined on an interface before it
	// is given back to the kernel. Zero means the default.
	MaxJoined int
	// Logger must not be nil.
	Logger *slog.Logger
}

// The defaults of Config.MaxGroups, Config.MaxSources and Config.MaxJoined.
const (
	DefaultMaxGroups  = 4096
	DefaultMaxSources = 16384
	DefaultMaxJoined  = kernel.MaxJoined
)

// A Daemon serves the attachments of a host.
type Daemon struct {
	cfg      Config
	log      *slog.Logger
	home     *netns.Namespace // the daemon's own
	store    *store
	names    *nameWatch
	removed  chan struct{} // closed when the run directory is gone, or its socket is not ours any more
	idle     *time.Timer   // runs while there is no attachment, and none on its way; nil without IdleExit
	calm     *time.Timer   // runs while attachments come and go; nil without Calm
	patience time.Duration // requestTimeout
	adopting time.Duration // adoptTimeout

	// Work is done until the end of this context, which is later than that of the connections.
	work       context.Context
	background sync.WaitGroup                      // what no client waits for
	returning  map[interfaceID]*returningInterface // what stood before, until Serve
	adopted    chan struct{}                       // closed when it is there again, or gone

	// Requests for one attachment, and changes of one interface, come one after the other.
	attaching flights[api.Attachment]
	changing  flights[interfaceID]

	mu          sync.Mutex // of what follows; held for moments only
	coming      int        // attachments on their way
	ending      bool       // nothing new is begun
	attachments map[api.Attachment]*attachment
	interfaces  map[interfaceID]*iface

	watchers watchers
}

// New prepares to serve a run directory; [Daemon.Serve] answers the clients. Requests for what stood before wait until
// it is attached again.
func New(cfg Config) (*Daemon, error) {
	cfg.MaxGroups = cmp.Or(cfg.MaxGroups, DefaultMaxGroups)
	cfg.MaxSources = cmp.Or(cfg.MaxSources, DefaultMaxSources)
	cfg.MaxJoined = cmp.Or(cfg.MaxJoined, DefaultMaxJoined)
	d := &Daemon{
		cfg:         cfg,
		log:         cfg.Logger,
		patience:    requestTimeout,
		adopting:    adoptTimeout,
		work:        context.Background(),
		removed:     make(chan struct{}),
		adopted:     make(chan struct{}),
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
	if d.names, err = newNameWatch(d.log); err != nil {
		return err
	}
	if d.home, err = netns.Current(); err != nil {
		return err
	}
	if d.store, err = openStore(d.cfg.RunDir); err != nil {
		return err
	}
	records, err := d.store.load(d.log)
	if err != nil {
		return err
	}
	gone := sync.OnceFunc(func() { close(d.removed) })
	for _, path := range []string{filepath.Clean(d.cfg.RunDir), api.SocketPath(d.cfg.RunDir)} {
		info, err := os.Lstat(path)
		if err != nil {
			return err
		}
		if _, err := d.names.watch(path, info, os.Lstat, gone); err != nil {
			return err
		}
	}
	if d.cfg.IdleExit > 0 {
		d.idle = time.NewTimer(d.cfg.IdleExit)
	}
	if d.cfg.Calm != nil {
		d.calm = time.AfterFunc(calmDelay, d.cfg.Calm)
	}
	return d.expect(records)
}

// close closes what open has opened.
func (d *Daemon) close() error {
	errs := []error{ignoreClosed(d.cfg.Listener.Close())}
	if d.calm != nil {
		d.calm.Stop()
	}
	if d.home != nil {
		errs = append(errs, d.home.Close())
	}
	if d.names != nil {
		errs = append(errs, ignoreClosed(d.names.close()))
	}
	return errors.Join(errs...)
}

func ignoreClosed(err error) error {
	if errors.Is(err, net.ErrClosed) || errors.Is(err, os.ErrClosed) {
		return nil
	}
	return err
}

// Serve answers requests until ctx is done, the daemon has been idle for Config.IdleExit, or its run directory has
// been removed or the socket in it, so that nobody finds it any more. Then it leaves what is declared and lets the
// kernels speak again; but if the cause of ctx's end is [ErrHandover], it goes without a word. What was attached is
// remembered for the next daemon of the run directory. Serve is called once.
func (d *Daemon) Serve(ctx context.Context) error {
	handover := ctx
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	work, cancelWork := context.WithCancel(context.WithoutCancel(ctx))
	defer cancelWork()
	d.work = work
	d.background.Go(func() { d.adoptAll(work) })
	clients, cancelClients := context.WithCancel(work)
	defer cancelClients()
	var connections sync.WaitGroup
	connections.Go(func() {
		d.accept(clients, &connections)
		cancel() // without a socket there is nothing to wait for
	})

	d.log.Info("serving", "run_dir", d.cfg.RunDir, "version", d.cfg.Version, "netns_cookie", d.home.Cookie())
	d.log.Info("stopping", "reason", d.wait(ctx))
	err := ignoreClosed(d.cfg.Listener.Close())
	cancelClients() // only now: who comes again, as its watch has ended, is for the next daemon
	over := errors.Is(context.Cause(handover), ErrHandover)
	if !over {
		cancelWork()
	}
	connections.Wait()
	cancelWork()
	d.mu.Lock()
	d.ending = true
	d.mu.Unlock()
	d.background.Wait()
	d.end(over)
	return errors.Join(err, d.close())
}

// wait waits for a reason to stop.
func (d *Daemon) wait(ctx context.Context) (reason string) {
	for {
		select {
		case <-ctx.Done():
			return context.Cause(ctx).Error()
		case <-d.idleC():
			if d.endIdle() {
				return fmt.Sprintf("no attachments for %v", d.cfg.IdleExit)
			}
		case <-d.removed:
			return "run directory or socket removed"
		}
	}
}

// idleC fires when the daemon has been idle long enough; never without IdleExit.
func (d *Daemon) idleC() <-chan time.Time {
	if d.idle == nil {
		return nil
	}
	return d.idle.C
}

// endIdle decides to end, unless an attachment has come meanwhile or is on its way.
func (d *Daemon) endIdle() bool {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.ending = len(d.attachments) == 0 && d.coming == 0
	return d.ending
}

// expectOne keeps the daemon from ending because it is idle, until the returned function is called. It returns false
// if the daemon is about to end.
func (d *Daemon) expectOne() (arrived func(), ok bool) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.ending {
		return nil, false
	}
	d.coming++
	d.countChanged()
	return func() {
		d.mu.Lock()
		defer d.mu.Unlock()
		d.coming--
		d.countChanged()
	}, true
}

// calmDelay is how long no attachment has come or gone when Config.Calm is called.
const calmDelay = 10 * time.Second

// countChanged restarts or stops the timers after attachments have come or gone. d.mu is held.
func (d *Daemon) countChanged() {
	if d.calm != nil {
		d.calm.Reset(calmDelay)
	}
	switch {
	case d.idle == nil:
	case len(d.attachments) == 0 && d.coming == 0:
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
		KeeperPID:   d.cfg.KeeperPID,
		Cgroup:      strings.TrimSpace(string(cgroup)),
		Netns:       ns,
		SelfStarted: d.cfg.SelfStarted,
		Attachments: len(d.attachments),
	}
}
