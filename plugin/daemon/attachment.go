package daemon

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"net/netip"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/containernetworking/cni/pkg/types"
	"golang.org/x/sys/unix"

	"github.com/seed-aaab8e3a/cni-mld/mld/agent"
	"github.com/seed-aaab8e3a/cni-mld/mld/bridge"
	"github.com/seed-aaab8e3a/cni-mld/mld/kernel"
	"github.com/seed-aaab8e3a/cni-mld/mld/link"
	"github.com/seed-aaab8e3a/cni-mld/mld/listener"
	"github.com/seed-aaab8e3a/cni-mld/mld/netns"
	"github.com/seed-aaab8e3a/cni-mld/plugin/api"
)

// An attachment is one subscriber of an interface. A request that has entered its flight owns it.
type attachment struct {
	key      api.Attachment
	settings *api.Settings
	partly   bool // the settings are in force in part: something has failed
	iface    *iface
	id       listener.SubscriberID
	joins    *kernel.Joins           // of the groups with delivery
	told     map[netip.Addr]struct{} // what the agent itself was asked to listen to
	path     string                  // where its client says the namespace is
	host     bool                    // it was attached on purpose in a namespace that is no container's
	added    time.Time
	degraded string               // why it is not known to be ready
	plug     *plug                // nil: it was never seen plugged into a bridge
	unwatch  func()               // ends the watch of its namespace's end; nil: there is none
	shown    atomic.Pointer[view] // what streams show of it; nil before it stands
}

// about is the log of what happens to an attachment.
func (d *Daemon) about(key api.Attachment) *slog.Logger {
	return d.log.With("network", key.Network, "container", key.ContainerID, "ifname", key.IfName)
}

// lookup returns the attachment of a key, or nil.
func (d *Daemon) lookup(key api.Attachment) *attachment {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.attachments[key]
}

// add attaches, or brings an attachment to new settings, and waits for readiness as the settings say. If it fails, it
// is undone: what stood before on this interface stands as before.
func (d *Daemon) add(ctx context.Context, r *api.Request) (degraded string, err error) {
	if err := d.withinCeilings(r.Settings); err != nil {
		return "", err
	}
	t, err := d.target(r)
	if err != nil {
		return "", err
	}
	defer d.release(t)

	old := d.lookup(r.Attachment)
	here := old != nil && old.iface.id == t.id
	if here && old.path != r.NetnsPath {
		if err := d.follow(old, t.netns, r.NetnsPath); err != nil {
			return "", err
		}
	}
	alive := here && old.iface.alive()
	if alive && !old.partly && old.settings.Equal(*r.Settings) {
		if old.degraded != "" { // ADD again: nothing happens, but what was not ready may be by now
			old.degraded, err = d.waitReady(ctx, old, t.host, nil)
		}
		return old.degraded, err
	}
	if !alive {
		if err := d.withinDescriptors(t.name); err != nil {
			return "", err
		}
	}
	if old != nil && !here { // the old one is over
		if err := d.del(ctx, r.Attachment); err != nil {
			return "", err
		}
		old = nil
	}
	var before former
	if old != nil {
		before = former{settings: old.settings, iface: old.iface, alive: alive, degraded: old.degraded}
		if err := t.keep(); err != nil {
			return "", err
		}
	}
	t.findPort(r.Settings)
	a, err := d.attach(ctx, t, r, old, false)
	err = attachError(t.name, err)
	if err != nil && old == nil {
		return "", err
	}
	if err == nil {
		a.degraded, err = d.waitReady(ctx, a, t.host, t.port)
	}
	if err == nil {
		err = d.store.put(a.record()) // from here on it stands, whatever becomes of this process
	}
	switch {
	case err == nil:
		return a.degraded, nil
	case old == nil:
		return "", errors.Join(err, d.del(context.WithoutCancel(ctx), r.Attachment))
	}
	fault := *asTypesError(err)
	fault.Details = d.undo(context.WithoutCancel(ctx), t, r, old, before)
	return "", &fault
}

// A former is what an attachment stood with when an ADD came.
type former struct {
	settings *api.Settings
	iface    *iface
	alive    bool
	degraded string
}

// undo brings an attachment back to what it stood with, as far as that can be, and tells what stands now. Where no
// listener can be started, it stands without one, and the kernel holds its groups with delivery.
func (d *Daemon) undo(ctx context.Context, t *target, r *api.Request, a *attachment, before former) (stands string) {
	ctx, cancel := context.WithTimeout(ctx, workTimeout)
	defer cancel()
	var err error
	if a.settings != before.settings || a.iface != before.iface || a.iface.alive() != before.alive {
		if err = t.renew(); err == nil {
			again := *r
			again.Settings = before.settings
			_, err = d.attach(ctx, t, &again, a, true)
		}
		if errors.Is(err, link.ErrGone) {
			return fmt.Sprintf("the attachment that stood before has ended: %v", errors.Join(err, d.del(ctx, a.key)))
		}
		if why := cmp.Or(err, a.iface.over()); !a.iface.alive() {
			err = errors.Join(attachError(t.name, why), d.standWithout(ctx, t, a, before.settings, why))
		}
	}
	switch a.degraded = before.degraded; {
	case err == nil && a.iface.alive():
		stands = "the attachment stands as before, with its former settings"
	case err == nil:
		stands = "the attachment stands as before, without a listener"
	case a.iface.alive():
		stands = "the attachment stands, but not with its former settings: " + reason(err)
	default:
		stands = "the attachment stands with its former settings, but without a listener: " + reason(err)
	}
	if err := d.store.put(a.record()); err != nil {
		stands += fmt.Sprintf("; it may be remembered otherwise: %v", err)
	}
	return stands
}

// standWithout has an attachment stand with settings and without a listener.
func (d *Daemon) standWithout(ctx context.Context, t *target, a *attachment, s *api.Settings, why error) error {
	_, leave, err := d.changing.enter(ctx, t.id)
	if err != nil {
		return err
	}
	defer leave()
	if err := t.renew(); err != nil {
		return err
	}
	i := d.newIface(t, voiceOf(s))
	i.failed = why
	defer d.closeJoins(a.key, d.move(a, i)) // only when all is joined again
	d.declare(a, a.settings, s)
	err = a.deliver(s)
	d.show(a)
	return err
}

// record is what is remembered of the attachment.
func (a *attachment) record() record {
	return record{
		Attachment: a.key,
		Cookie:     a.iface.id.netns,
		Index:      a.iface.id.index,
		NetnsPath:  a.path,
		Host:       a.host,
		Settings:   a.settings,
		Added:      a.added,
		Degraded:   a.degraded,
		Plug:       a.plug,
	}
}

// withinCeilings refuses settings that are beyond what the daemon does for one attachment, whoever has written them.
func (d *Daemon) withinCeilings(s *api.Settings) error {
	sources := 0
	for _, g := range s.Groups {
		sources += len(g.Sources)
	}
	for _, c := range []struct {
		what, flag string
		n, most    int
	}{
		{"groups", "--max-groups", len(s.Groups), d.cfg.MaxGroups},
		{"sources", "--max-sources", sources, d.cfg.MaxSources},
	} {
		if c.n > c.most { // V2-72
			return types.NewError(types.ErrInvalidNetworkConfig, fmt.Sprintf(
				"groups: %d %s: this host allows an attachment %d: declare fewer, or start mldd with a higher %s", c.n, c.what, c.most, c.flag), "")
		}
	}
	return nil
}

// spareDescriptors are kept for requests about what is attached: without any, nothing could be detached.
const spareDescriptors = 64

// withinDescriptors refuses a new attachment when there are hardly any descriptors left.
func (d *Daemon) withinDescriptors(name string) error {
	var limit unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_NOFILE, &limit); err != nil {
		return err
	}
	next, err := unix.FcntlInt(d.home.File().Fd(), unix.F_DUPFD_CLOEXEC, 0) // gets the lowest number that is free
	if err == nil {
		err = unix.Close(next)
	}
	if err == nil && uint64(next)+spareDescriptors < limit.Cur {
		return nil
	}
	return errors.Join(types.NewError(types.ErrTryAgainLater, fmt.Sprintf(
		"interface %s: mldd may have %d descriptors open, and has: raise its limit of open files (RLIMIT_NOFILE; LimitNOFILE of a unit)",
		name, limit.Cur), ""), err)
}

// attach makes the attachment, or replaces the settings of old, without waiting for readiness. If it fails, a new
// attachment leaves nothing behind, and an old one is to be brought back by undo, which does not ask again whether the
// groups can be delivered.
func (d *Daemon) attach(ctx context.Context, t *target, r *api.Request, old *attachment, undoing bool) (*attachment, error) {
	_, leave, err := d.changing.enter(ctx, t.id)
	if err != nil {
		return nil, types.NewError(types.ErrTryAgainLater, fmt.Sprintf("interface %s is busy with another request: try again", t.name), "")
	}
	defer leave()

	if old != nil && old.iface.alive() && !undoing {
		if err := old.iface.canDeliver(ctx, r.Settings); err != nil {
			return nil, err
		}
	}
	i, err := d.interfaceFor(ctx, t, r.Settings, old)
	t.looking.Wait() // the bridge is listened to before it is told anything
	if err != nil {
		return nil, err
	}
	defer i.agent.Begin() // what is declared need not wait for its first packet
	a := old
	switch {
	case a == nil:
		a = d.subscribe(i, r.Attachment)
		a.path, a.host, a.added = r.NetnsPath, r.Host, time.Now()
		_ = d.watchEnd(a, i.netns)
	case a.iface != i:
		// The former sockets hold their groups until the new ones do; the namespace that they came from is closed.
		defer d.closeJoins(a.key, d.move(a, i))
	}
	if !undoing { // also where there was no agent to ask
		err = i.canDeliver(ctx, r.Settings)
	}
	if err == nil {
		d.declare(a, a.settings, r.Settings)
		err = a.apply(ctx, r.Settings)
	}
	if err != nil {
		if old == nil {
			d.detach(a)
		}
		return nil, err
	}
	if t.plug != nil {
		a.plug = t.plug
	}
	d.show(a)
	return a, nil
}

// interfaceFor returns the interface with an agent that has the voice of the settings.
func (d *Daemon) interfaceFor(ctx context.Context, t *target, s *api.Settings, old *attachment) (*iface, error) {
	var other *iface // of another attachment; its listener may have ended
	d.mu.Lock()
	i := d.interfaces[t.id]
	attached := i != nil && i.attachments > 0
	for _, a := range d.attachments {
		if a != old && a.iface.id == t.id {
			other = a.iface
		}
	}
	d.mu.Unlock()

	v := voiceOf(s)
	var mute *kernel.Mute
	if i != nil && !i.alive() { // and about to be forgotten
		i = nil
	}
	switch {
	case other != nil && other.voice != v:
		return nil, types.NewError(types.ErrInvalidNetworkConfig, fmt.Sprintf(
			"%s: interface %s is attached already, for another network, and they must agree", v.contradiction(other.voice), t.name), "")
	case attached && i != nil && i.voice == v:
		return i, nil
	case i != nil: // on its way out, or to be replaced by one with another voice, without a leave for what stays
		if old != nil && old.iface == i {
			if err := old.undeclare(ctx, s); err != nil {
				return nil, err
			}
		}
		// Not the request's: what is begun here is done, or the next request for the interface would find no listener.
		ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), workTimeout)
		defer cancel()
		var err error
		if mute, err = i.release(ctx); err != nil {
			return nil, err
		}
	}
	return d.start(t, v, agent.Config{Mute: mute})
}

// subscribe registers a new attachment.
func (d *Daemon) subscribe(i *iface, key api.Attachment) *attachment {
	d.mu.Lock()
	defer d.mu.Unlock()
	i.attachments++
	i.lastID++ // the first one is 1: 0 is the kernel's
	a := &attachment{
		key:      key,
		settings: &api.Settings{}, // nothing declared yet
		iface:    i,
		id:       i.lastID,
		joins:    kernel.NewJoins(i.netns, i.id.index, d.cfg.Keeper),
		told:     make(map[netip.Addr]struct{}),
	}
	d.attachments[key] = a
	d.countChanged()
	return a
}

// move has an attachment stand on an iface that has followed its own, with nothing joined yet, and returns its former
// joins.
func (d *Daemon) move(a *attachment, i *iface) (joins *kernel.Joins) {
	d.mu.Lock()
	defer d.mu.Unlock()
	joins = a.joins
	a.iface.attachments--
	i.attachments++
	i.lastID++
	a.iface, a.id, a.joins = i, i.lastID, kernel.NewJoins(i.netns, i.id.index, d.cfg.Keeper)
	clear(a.told)
	return joins
}

// apply brings the attachment to new settings: first what is wanted is joined, then the rest is left. What has not
// changed is left alone. It has the new settings then, also where it fails half-way.
func (a *attachment) apply(ctx context.Context, s *api.Settings) error {
	a.settings, a.partly = s, true
	delivered := make(map[netip.Addr]struct{})
	if err := together(ctx, a.iface, s.Groups, func(g api.Group) error {
		if !g.Deliver {
			return nil
		}
		delivered[g.Addr] = struct{}{}
		return a.join(g)
	}); err != nil {
		return err
	}
	for _, g := range s.Groups {
		if err := a.listen(ctx, g); err != nil {
			return err
		}
	}
	if err := a.undeclare(ctx, s); err != nil {
		return err
	}
	left := slices.DeleteFunc(a.joins.Joined(), func(addr netip.Addr) bool { _, stays := delivered[addr]; return stays })
	if err := together(ctx, a.iface, left, a.joins.Leave); err != nil {
		return err
	}
	a.partly = false
	return nil
}

// together does something with groups that the kernel joins or leaves, and that the agent is to tell together: a bridge
// goes through its ports for each Report. It keeps the agent from its work for moments only.
func together[G any](ctx context.Context, i *iface, groups []G, do func(G) error) error {
	const atOnce = 64
	for some := range slices.Chunk(groups, atOnce) {
		var err error
		if agentErr := i.agent.Together(ctx, func() {
			for _, g := range some {
				if err = do(g); err != nil {
					return
				}
			}
		}); agentErr != nil {
			return agentErr
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// canDeliver refuses groups with delivery where the kernel can join nothing.
func (i *iface) canDeliver(ctx context.Context, s *api.Settings) error {
	n := slices.IndexFunc(s.Groups, func(g api.Group) bool { return g.Deliver })
	if n < 0 {
		return nil
	}
	if i.agent.Link().IPv6 {
		return nil
	}
	now, err := i.agent.State(ctx) // what was seen last may be what has been mended a moment ago
	if err != nil || now.Link.IPv6 {
		return err
	}
	state := now.Link
	remedy := fmt.Sprintf("set sysctl net.ipv6.conf.%s.disable_ipv6 to 0", state.Name)
	if state.MTU < link.MinMTU {
		remedy = fmt.Sprintf("raise its MTU of %d octets to %d", state.MTU, link.MinMTU)
	}
	return types.NewError(api.CodeIPv6Off, fmt.Sprintf(
		"group %v cannot be delivered: IPv6 is off on %s: %s, or declare the group with deliver false",
		s.Groups[n].Addr, state.Name, remedy), "")
}

// listen makes the agent listen to a group that is not to be delivered. One that is delivered from now on stays with the
// agent too, which hears of the new join a moment later and must not leave before.
func (a *attachment) listen(ctx context.Context, g api.Group) error {
	if _, told := a.told[g.Addr]; g.Deliver && !told {
		return nil
	}
	if err := a.iface.agent.Listen(ctx, a.id, g.Addr, listenerFilter(g)); err != nil {
		return err
	}
	a.told[g.Addr] = struct{}{}
	return nil
}

func listenerFilter(g api.Group) listener.Filter {
	return listener.Filter{Mode: modes[g.Mode], Sources: g.Sources}
}

var modes = map[api.Mode]listener.FilterMode{
	api.Exclude: listener.Exclude,
	api.Include: listener.Include,
}

// join makes the kernel join a group, in place of what it has joined of it for this attachment.
func (a *attachment) join(g api.Group) error {
	var err error
	if g.Mode == api.Include {
		err = a.joins.JoinInclude(g.Addr, g.Sources...)
	} else {
		err = a.joins.JoinExclude(g.Addr, g.Sources...)
	}
	if errors.Is(err, kernel.ErrTooManySources) {
		return types.NewError(types.ErrInvalidNetworkConfig, fmt.Sprintf(
			"groups: %v cannot be delivered: %v: declare fewer, raise it, or declare the group with deliver false", g.Addr, err), "")
	}
	return err
}

// undeclare takes back what was given to the agent and is not in the new settings.
func (a *attachment) undeclare(ctx context.Context, s *api.Settings) error {
	stays := make(map[netip.Addr]struct{}, len(s.Groups))
	for _, g := range s.Groups {
		stays[g.Addr] = struct{}{}
	}
	for _, addr := range slices.SortedFunc(maps.Keys(a.told), netip.Addr.Compare) {
		if _, ok := stays[addr]; ok {
			continue
		}
		if err := a.iface.agent.Listen(ctx, a.id, addr, listener.Filter{}); err != nil {
			return err
		}
		delete(a.told, addr)
	}
	return nil
}

// watchEnd has the attachment detached when its namespace ends. The path is only what the client says: if it does not lead
// to the namespace from here, which is logged, the end shows otherwise, by DEL or GC.
func (d *Daemon) watchEnd(a *attachment, ns *netns.Namespace) (err error) {
	path := a.path
	if a.unwatch, err = d.names.watchNamespace(path, ns, func() { d.ended(a, path) }); err != nil {
		d.about(a.key).Debug("end of the namespace not watched", "netns", path, "err", err)
	}
	return err
}

// follow takes another path of an attachment's namespace for the one that tells of its end, if it can.
func (d *Daemon) follow(a *attachment, ns *netns.Namespace, path string) error {
	former, unwatch := a.path, a.unwatch
	a.path = path
	if d.watchEnd(a, ns) != nil {
		a.path, a.unwatch = former, unwatch
		return nil
	}
	if unwatch != nil {
		unwatch()
	}
	return d.store.put(a.record())
}

// ended detaches an attachment whose namespace has ended, unless its DEL has come first, or an ADD by another path.
func (d *Daemon) ended(a *attachment, path string) {
	d.mu.Lock()
	if d.ending {
		d.mu.Unlock()
		return
	}
	d.background.Add(1)
	d.mu.Unlock()
	defer d.background.Done()
	_, leave, err := d.attaching.enter(d.work, a.key)
	if err != nil { // the daemon ends
		return
	}
	defer leave()
	if d.lookup(a.key) != a || a.path != path {
		return
	}
	d.about(a.key).Info("namespace ended", "netns", a.path)
	if err := d.del(d.work, a.key); err != nil {
		d.about(a.key).Warn("attachment not detached", "err", err)
	}
}

// del detaches, and forgets the attachment before. What is gone already is detached; it fails only where the state file
// stays.
func (d *Daemon) del(ctx context.Context, key api.Attachment) error {
	err := d.store.remove(key)
	a := d.lookup(key)
	if a == nil {
		return err
	}
	_, leave, busy := d.changing.enter(ctx, a.iface.id)
	if busy != nil {
		return types.NewError(types.ErrTryAgainLater, fmt.Sprintf("interface %s is busy with another request: try again", a.iface.name), "")
	}
	defer leave()
	d.detach(a)
	return err
}

// gc detaches every attachment of a network that the runtime does not know any more, those included of which there is
// only a state file. It goes on after an error, and returns the first.
func (d *Daemon) gc(ctx context.Context, r *api.Request) error {
	keys, err := api.Remembered(d.cfg.RunDir, r.Network)
	d.mu.Lock()
	for key := range d.attachments {
		if key.Network == r.Network {
			keys = append(keys, key)
		}
	}
	d.mu.Unlock()
	valid := make(map[api.Attachment]bool, len(r.Valid))
	for _, key := range r.Valid {
		key.Network = r.Network
		valid[key] = true
	}
	slices.SortFunc(keys, compareKeys)
	keys = slices.DeleteFunc(slices.Compact(keys), func(key api.Attachment) bool { return valid[key] })
	errs := make([]error, len(keys))
	var work sync.WaitGroup
	for i, key := range keys {
		work.Go(func() { // none holds up the others
			_, leave, busy := d.enter(ctx, key)
			if busy != nil {
				errs[i] = busy
				return
			}
			defer leave()
			errs[i] = d.del(ctx, key)
		})
	}
	work.Wait()
	d.log.Info("garbage collected", "network", r.Network, "valid", len(r.Valid), "detached", len(keys))
	return cmp.Or(append([]error{err}, errs...)...)
}

// detach ends an attachment, and with the last one the agent, which leaves everything at once. The interface's
// flight is the caller's.
func (d *Daemon) detach(a *attachment) {
	// Not the request's: what is begun here is done, also when its client has given up.
	ctx, cancel := context.WithTimeout(context.Background(), workTimeout)
	defer cancel()
	if a.unwatch != nil {
		a.unwatch()
	}
	d.mu.Lock()
	delete(d.attachments, a.key)
	a.iface.attachments--
	last := a.iface.attachments == 0
	if !last { // what the last one leaves is told in its name
		a.iface.dropLabel(a.key)
	}
	d.countChanged()
	d.mu.Unlock()
	d.declare(a, a.settings, &api.Settings{})

	log := d.about(a.key)
	if last {
		if err := a.iface.stop(ctx); err != nil {
			log.Debug("nothing left to say", "err", err)
		}
	} else if err := a.undeclare(ctx, &api.Settings{}); err != nil {
		log.Debug("nothing left to say", "err", err)
	}
	d.closeJoins(a.key, a.joins)
}

// closeJoins leaves the groups with delivery.
func (d *Daemon) closeJoins(key api.Attachment, joins *kernel.Joins) {
	if err := joins.Close(); err != nil {
		d.about(key).Warn("join sockets not closed", "err", err)
	}
}

const (
	// maxEnding is how many interfaces are let go of at once. Each may hold a thread that waits for the kernel to close a
	// socket, 13 ms for one as for many.
	maxEnding = 128
	// maxLeaving is how many of them are at that moment leaving what was declared, which takes the processor's time.
	maxLeaving = 8
)

// leaveGrace is how long an agent that is about to end is given to hear that the kernel has left. Where there are events
// (mld/kernel.HasEvents) it takes a tenth of a millisecond, unless there are many agents; what an application holds too
// takes all of it.
const leaveGrace = 200 * time.Millisecond

// end ends all agents and lets every kernel speak for its applications again. Before, it leaves the declared groups, with
// one voice: what the kernel has joined for them is left while it is mute, so that the agent says so. In a handover
// nothing is left.
func (d *Daemon) end(handover bool) {
	d.mu.Lock()
	attachments := make(map[*iface][]*attachment)
	for _, a := range d.attachments {
		attachments[a.iface] = append(attachments[a.iface], a)
	}
	clear(d.attachments)
	interfaces := slices.Collect(maps.Values(d.interfaces))
	d.mu.Unlock()

	ending, leaving := make(chan struct{}, maxEnding), make(chan struct{}, maxLeaving)
	var ends sync.WaitGroup
	for _, i := range interfaces {
		ending <- struct{}{}
		ends.Go(func() {
			defer func() { <-ending }()
			if !handover {
				leaving <- struct{}{}
				left := d.leave(i, attachments[i])
				<-leaving
				d.waitLeft(i, left)
			}
			ctx, cancel := context.WithTimeout(context.Background(), workTimeout)
			defer cancel()
			if err := i.end(ctx); err != nil {
				i.log.Warn("listener not ended", "err", err)
			}
		})
	}
	ends.Wait()
	for _, list := range attachments {
		for _, a := range list {
			if a.unwatch != nil {
				a.unwatch()
			}
			if err := a.joins.Abandon(); err != nil { // of what is left none is open
				d.about(a.key).Warn("join sockets not closed", "err", err)
			}
		}
	}
}

// leave leaves what the attachments of an interface have declared, and returns what the kernel had joined of it.
func (d *Daemon) leave(i *iface, list []*attachment) (delivered []netip.Addr) {
	ctx, cancel := context.WithTimeout(context.Background(), workTimeout)
	defer cancel()
	for _, a := range list {
		_ = a.undeclare(ctx, &api.Settings{}) // fails only where there is no voice left to say it
		for _, g := range a.settings.Groups {
			if g.Deliver {
				delivered = append(delivered, g.Addr)
			}
		}
		if err := i.agent.Together(ctx, func() { d.closeJoins(a.key, a.joins) }); err != nil {
			d.closeJoins(a.key, a.joins)
		}
	}
	return delivered
}

// waitLeft waits until the agent has told what the kernel has left.
func (d *Daemon) waitLeft(i *iface, left []netip.Addr) {
	ctx, cancel := context.WithTimeout(context.Background(), leaveGrace)
	defer cancel()
	if err := i.agent.WaitLeft(ctx, left...); err != nil { // an application may hold one of them
		i.log.Debug("groups not left", "err", err)
	}
}

// addrs returns the addresses of the declared groups.
func addrs(s *api.Settings) []netip.Addr {
	list := make([]netip.Addr, len(s.Groups))
	for i, g := range s.Groups {
		list[i] = g.Addr
	}
	return list
}

// flows returns what of the declared groups a bridge has to forward. That it keeps out what is excluded is a favour:
// another listener behind the same port may want it.
func flows(s *api.Settings) []bridge.Flow {
	var list []bridge.Flow
	for _, g := range s.Groups {
		if g.Mode == api.Exclude {
			list = append(list, bridge.Flow{Group: g.Addr})
			continue
		}
		for _, source := range g.Sources {
			list = append(list, bridge.Flow{Group: g.Addr, Source: source})
		}
	}
	return list
}
