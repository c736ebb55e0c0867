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
	"github.com/seed-aaab8e3a/cni-mld/plugin/api"
)

const (
	// maxAdopting is how many interfaces are brought back at once. Those that wait to be tried again do not count.
	maxAdopting = 32
	// adoptTimeout is how long it is tried, for all of them together, to start the listeners that do not start at once;
	// and how long one of them may then take to be told what is declared.
	adoptTimeout = 30 * time.Second
	// firstRetry is after how long a listener that could not be started is tried again, and for how long the next time is
	// put off at most. A mute of a daemon that was killed may outlive it for some moments, and is asked for steadily.
	firstRetry, longestRetry = 20 * time.Millisecond, 2 * time.Second
)

// A returning attachment stood before this daemon. Its requests wait until it is attached again, or found gone.
type returning struct {
	*record
	arrived func()
	seen    bool // its path led to its namespace
}

// errGone says that the interface of an attachment is not there any more.
var errGone = errors.New("the interface or its namespace is gone")

// A returningInterface has the attachments of an interface that stood before this daemon. Whoever else comes to the
// interface waits, too: it has one listener.
type returningInterface struct {
	attachments []*returning
	arrived     func()
}

// expect takes the flights of what stood before.
func (d *Daemon) expect(records []*record) error {
	d.returning = make(map[interfaceID]*returningInterface)
	for _, r := range records {
		i := d.returning[r.id()]
		if i == nil {
			_, leave, err := d.changing.enter(d.work, r.id())
			if err != nil {
				return err
			}
			i = &returningInterface{arrived: leave}
			d.returning[r.id()] = i
		}
		_, leave, err := d.attaching.enter(d.work, r.Attachment)
		if err != nil {
			return err
		}
		i.attachments = append(i.attachments, &returning{record: r, arrived: leave})
	}
	if len(records) > 0 {
		d.coming++
		d.countChanged()
	}
	return nil
}

// adoptAll brings back what stood before this daemon, interface by interface.
func (d *Daemon) adoptAll(ctx context.Context) {
	before := 0
	begin := time.Now()
	trying, cancel := context.WithTimeout(ctx, d.adopting)
	defer cancel()
	places := make(chan struct{}, maxAdopting)
	var work sync.WaitGroup
	for _, i := range d.returning {
		before += len(i.attachments)
		places <- struct{}{}
		work.Go(func() {
			defer func() { <-places }()
			d.adopt(ctx, trying, i, places)
		})
	}
	work.Wait()
	d.mu.Lock()
	back := len(d.attachments)
	if before > 0 {
		d.coming--
		d.countChanged()
	}
	d.mu.Unlock()
	if before > 0 {
		d.log.Info("attachments taken over", "before", before, "now", back, "dur", time.Since(begin))
	}
	d.returning = nil
	close(d.adopted)
	if d.cfg.Settled != nil && ctx.Err() == nil {
		d.cfg.Settled()
	}
}

// adopt brings back the attachments of one interface. What is found gone is forgotten; what fails for another reason
// keeps its state file, for the next daemon may have more luck, and for its DEL. Where only the listener fails, as long as
// trying lasts, the attachments stand without one, and the kernel holds the groups with delivery:
// what the keeper has of the daemon before is let go of when this one is settled. The caller has one of the places.
func (d *Daemon) adopt(ctx, trying context.Context, back *returningInterface, places chan struct{}) {
	list := back.attachments
	defer func() {
		back.arrived()
		for _, r := range list {
			r.arrived()
		}
	}()
	if ctx.Err() != nil { // the daemon ends, and the next one has the state files
		return
	}
	slices.SortFunc(list, func(a, b *returning) int { return a.Added.Compare(b.Added) })

	i, err := d.startAgain(trying, list, places)
	if err != nil && ctx.Err() != nil {
		return
	}
	ctx, cancel := context.WithTimeout(ctx, adoptTimeout)
	defer cancel()
	for _, r := range list {
		log := d.about(r.Attachment).With("netns", r.NetnsPath)
		switch {
		case errors.Is(err, errGone):
			log.Info("attachment not taken over", "err", err)
			if err := d.store.remove(r.Attachment); err != nil {
				log.Warn("state file not removed", "err", err)
			}
		case err != nil:
			log.Error("attachment not taken over: its groups are left until the next restart of mldd", "err", err)
		case voiceOf(r.Settings) != i.voice:
			log.Error("attachment not taken over", "err", voiceOf(r.Settings).contradiction(i.voice))
		default:
			if i.agent == nil {
				log.Error("attachment taken over without a listener", "err", i.failed)
			}
			d.takeOver(ctx, i, r)
		}
	}
	if err == nil && i.agent == nil { // else it is closed when the agent ends
		if err := i.netns.Close(); err != nil {
			i.log.Warn("namespace not closed", "err", err)
		}
	}
}

// startAgain starts the listener of an interface that had one, and tries it again until ctx ends, if that may help. Where
// it cannot be started, and the namespace is there, the iface has no agent.
func (d *Daemon) startAgain(ctx context.Context, list []*returning, places chan struct{}) (*iface, error) {
	first := list[0]
	t := &target{key: first.Attachment, path: first.NetnsPath, name: first.IfName, ofHost: first.Host, id: first.id()}
	defer func() { d.release(t) }()
	v := voiceOf(first.Settings)
	for pause := firstRetry; ; {
		i, err := d.startOnce(t, v, list)
		switch {
		case err == nil || errors.Is(err, errGone):
			return i, err
		case errors.Is(err, link.ErrGone):
			return nil, fmt.Errorf("%w: %w", errGone, err)
		case !lasting(err) && wait(ctx, pause, places):
			if errors.Is(err, kernel.ErrMuted) {
				continue
			}
			if pause == firstRetry {
				d.about(t.key).Warn("listener not started, trying again", "netns", t.path, "err", err)
			}
			pause = min(2*pause, longestRetry)
			continue
		case errors.Is(ctx.Err(), context.Canceled) || t.netns == nil:
			return nil, err
		}
		i = d.newIface(t, v)
		i.failed = fmt.Errorf("not started again with mldd: %w", err)
		t.netns = nil // the interface's now
		return i, nil
	}
}

// startOnce tries to start the listener of an interface that had one.
func (d *Daemon) startOnce(t *target, v voice, list []*returning) (_ *iface, err error) {
	if t.netns == nil {
		if t.netns, err = d.reopen(list); err != nil {
			return nil, err
		}
	}
	i, err := d.start(t, v, agent.Config{Resume: true, Standing: d.standing(v, list)})
	if err == nil {
		i.agent.Begin()
	}
	return i, err
}

// lasting tells of an error that a listener is not started with whether it will be the same the next time. What programs
// have joined, they keep.
func lasting(err error) bool {
	return errors.Is(err, kernel.ErrTooMany) || errors.Is(err, kernel.ErrCannotMute) || errors.Is(err, agent.ErrEthernet)
}

// wait waits, with its place left to others, and tells whether ctx has not ended meanwhile.
func wait(ctx context.Context, pause time.Duration, places chan struct{}) bool {
	<-places
	defer func() { places <- struct{}{} }()
	select {
	case <-time.After(pause):
		return true
	case <-ctx.Done():
		return false
	}
}

// standing is what the listener before has told for the attachments themselves, those with the voice v; the ids are those
// that takeOver will give them. If it has left all that, it is news, and comes later.
func (d *Daemon) standing(v voice, list []*returning) (s []agent.Subscription) {
	if !d.cfg.Resume {
		return nil
	}
	var id listener.SubscriberID
	for _, r := range list {
		if voiceOf(r.Settings) != v {
			continue
		}
		id++
		for _, g := range r.Settings.Groups {
			if !g.Deliver {
				s = append(s, agent.Subscription{ID: id, Addr: g.Addr, Filter: listenerFilter(g)})
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
	a.path, a.host, a.added, a.degraded, a.plug = r.NetnsPath, r.Host, r.Added, r.Degraded, r.Plug
	var err error
	if i.agent == nil {
		err = a.deliver(r.Settings)
	} else {
		err = a.apply(ctx, r.Settings)
	}
	if err != nil {
		a.degraded = fmt.Sprintf("after a restart of mldd: %v", err)
		d.about(a.key).Error("attachment taken over in part", "err", err)
	}
	d.show(a)
	if err := d.watchEnd(a, i.netns); isGone(err) && r.seen { // since it was opened
		go d.ended(a, a.path)
	}
}

// deliver is apply for an attachment without a listener: it joins the groups with delivery, as many as it can.
func (a *attachment) deliver(s *api.Settings) error {
	a.settings, a.partly = s, true
	var errs []error
	for _, g := range s.Groups {
		if g.Deliver {
			errs = append(errs, a.join(g))
		}
	}
	return errors.Join(errs...)
}
