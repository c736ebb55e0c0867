package daemon

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"github.com/seed-aaab8e3a/cni-mld/mld/agent"
	"github.com/seed-aaab8e3a/cni-mld/mld/kernel"
	"github.com/seed-aaab8e3a/cni-mld/mld/link"
	"github.com/seed-aaab8e3a/cni-mld/mld/listener"
	"github.com/seed-aaab8e3a/cni-mld/mld/netns"
)

const (
	// maxAdopting is how many interfaces are brought back at once.
	maxAdopting = 32
	// adoptTimeout is how long that may take for one of them.
	adoptTimeout = 30 * time.Second
	// muteRetry is after how long it is tried again to mute a kernel. The mute of a daemon that was killed may outlive
	// it for some moments.
	muteRetry = 20 * time.Millisecond
)

// A returning attachment stood before this daemon. Its requests wait until it is attached again, or found gone.
type returning struct {
	*record
	arrived func()
	seen    bool // its path led to its namespace
}

// errGone says that the interface of an attachment is not there any more.
var errGone = errors.New("the interface or its namespace is gone")

// expect takes the flights of what stood before.
func (d *Daemon) expect(records []*record) error {
	for _, r := range records {
		leave, err := d.attaching.enter(d.work, r.Attachment)
		if err != nil {
			return err
		}
		d.returning = append(d.returning, &returning{record: r, arrived: leave})
	}
	if len(records) > 0 {
		d.coming++
		d.countChanged()
	}
	return nil
}

// adoptAll brings back what stood before this daemon, interface by interface.
func (d *Daemon) adoptAll(ctx context.Context) {
	interfaces := make(map[interfaceID][]*returning)
	for _, r := range d.returning {
		interfaces[r.id()] = append(interfaces[r.id()], r)
	}
	begin := time.Now()
	places := make(chan struct{}, maxAdopting)
	var work sync.WaitGroup
	for id, list := range interfaces {
		places <- struct{}{}
		work.Go(func() {
			defer func() { <-places }()
			d.adopt(ctx, id, list)
		})
	}
	work.Wait()
	d.mu.Lock()
	back := len(d.attachments)
	if len(d.returning) > 0 {
		d.coming--
		d.countChanged()
	}
	d.mu.Unlock()
	if len(d.returning) > 0 {
		d.log.Info("attachments taken over", "before", len(d.returning), "now", back, "dur", time.Since(begin))
	}
	d.returning = nil
	close(d.adopted)
	if d.cfg.Settled != nil && ctx.Err() == nil {
		d.cfg.Settled()
	}
}

// adopt brings back the attachments of one interface. What is found gone is forgotten; what fails for another reason
// keeps its state file, for the next daemon may have more luck, and for its DEL.
func (d *Daemon) adopt(ctx context.Context, id interfaceID, list []*returning) {
	defer func() {
		for _, r := range list {
			r.arrived()
		}
	}()
	ctx, cancel := context.WithTimeout(ctx, adoptTimeout)
	defer cancel()
	leave, err := d.changing.enter(ctx, id)
	if err != nil {
		return
	}
	defer leave()
	slices.SortFunc(list, func(a, b *returning) int { return a.Added.Compare(b.Added) })

	i, err := d.startAgain(ctx, list)
	for _, r := range list {
		log := d.log.With("network", r.Network, "container", r.ContainerID, "ifname", r.IfName, "netns", r.NetnsPath)
		switch {
		case errors.Is(err, errGone):
			log.Info("attachment not taken over", "err", err)
			if err := d.store.remove(r.Attachment); err != nil {
				log.Warn("state file not removed", "err", err)
			}
		case err != nil:
			log.Error("attachment not taken over", "err", err)
		case voiceOf(r.Settings) != i.voice:
			log.Error("attachment not taken over", "err", voiceOf(r.Settings).contradiction(i.voice))
		default:
			d.takeOver(ctx, i, r)
		}
	}
}

// startAgain starts the listener of an interface that had one.
func (d *Daemon) startAgain(ctx context.Context, list []*returning) (*iface, error) {
	ns, err := d.reopen(list)
	if err != nil {
		return nil, err
	}
	first := list[0]
	t := &target{key: first.Attachment, path: first.NetnsPath, name: first.IfName, id: first.id(), netns: ns}
	defer func() { d.release(t) }()
	for {
		i, err := d.start(t, voiceOf(first.Settings), agent.Config{Resume: true, Standing: d.standing(list)})
		switch {
		case errors.Is(err, link.ErrGone):
			return nil, fmt.Errorf("%w: %w", errGone, err)
		case !errors.Is(err, kernel.ErrMuted):
			return i, err
		}
		select {
		case <-time.After(muteRetry):
		case <-ctx.Done():
			return nil, err
		}
	}
}

// standing is what the listener before has told for the attachments themselves; the ids are those that takeOver will
// give them. If it has left all that, it is news, and comes later.
func (d *Daemon) standing(list []*returning) (s []agent.Subscription) {
	if !d.cfg.Resume {
		return nil
	}
	for n, r := range list {
		for _, g := range r.Settings.Groups {
			if !g.Deliver {
				s = append(s, agent.Subscription{ID: listener.SubscriberID(n + 1), Addr: g.Addr, Filter: listenerFilter(g)})
			}
		}
	}
	return s
}

// reopen opens the namespace of attachments by the paths that their clients have told. This is the only place where
// such a path is opened, and the cookie decides what it is worth.
func (d *Daemon) reopen(list []*returning) (found *netns.Namespace, err error) {
	if list[0].Cookie == d.home.Cookie() {
		return netns.Current()
	}
	var gone, failed error
	for _, r := range list {
		ns, err := netns.Open(r.NetnsPath)
		switch {
		case isGone(err) || errors.Is(err, unix.ENOTDIR) || errors.Is(err, netns.ErrNotNetwork):
			gone = fmt.Errorf("%w: %w", errGone, err)
			continue
		case err != nil:
			failed = err
			continue
		}
		if r.seen = ns.Cookie() == r.Cookie; !r.seen {
			gone = fmt.Errorf("%w: %s is another namespace", errGone, r.NetnsPath)
		}
		if r.seen && found == nil {
			found = ns
		} else if err := ns.Close(); err != nil {
			failed = err
		}
	}
	if found != nil { // by one path at least
		return found, nil
	}
	return nil, cmp.Or(failed, gone)
}

// takeOver attaches again what is in a state file.
func (d *Daemon) takeOver(ctx context.Context, i *iface, r *returning) {
	a := d.subscribe(i, r.Attachment)
	a.path, a.host, a.added, a.degraded = r.NetnsPath, r.Host, r.Added, r.Degraded
	if err := a.apply(ctx, r.Settings); err != nil {
		a.degraded = fmt.Sprintf("after a restart of mldd: %v", err)
		d.log.Error("attachment taken over in part", "attachment", a.key, "err", err)
	}
	a.settings = r.Settings
	d.show(a)
	if err := d.watchEnd(a); isGone(err) && r.seen { // since it was opened
		go d.ended(a)
	}
}
