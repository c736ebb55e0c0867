package daemon

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/containernetworking/cni/pkg/types"

	"github.com/seed-aaab8e3a/cni-mld/mld/agent"
	"github.com/seed-aaab8e3a/cni-mld/mld/bridge"
	"github.com/seed-aaab8e3a/cni-mld/mld/kernel"
	"github.com/seed-aaab8e3a/cni-mld/mld/link"
	"github.com/seed-aaab8e3a/cni-mld/mld/listener"
	"github.com/seed-aaab8e3a/cni-mld/plugin/api"
)

// An attachment is one subscriber of an interface. A request that has entered its flight owns it.
type attachment struct {
	key      api.Attachment
	settings *api.Settings
	iface    *iface
	id       listener.SubscriberID
	joins    *kernel.Joins           // of the groups with delivery
	told     map[netip.Addr]struct{} // what the agent itself was asked to listen to
	path     string                  // where its client says the namespace is
	host     bool                    // it was attached on purpose in a namespace that is no container's
	added    time.Time
	degraded string               // why it is not known to be ready
	unwatch  func()               // ends the watch of its namespace's end; nil: there is none
	shown    atomic.Pointer[view] // what streams show of it; nil before it stands
}

// lookup returns the attachment of a key, or nil.
func (d *Daemon) lookup(key api.Attachment) *attachment {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.attachments[key]
}

// add attaches, or brings an attachment to new settings, and waits for readiness as the settings say.
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
	if old != nil && old.iface.id == t.id && old.iface.alive() && old.settings.Equal(*r.Settings) {
		if old.degraded != "" { // ADD again: nothing happens, but what was not ready may be by now
			old.degraded, err = d.waitReady(ctx, old, t.host)
		}
		return old.degraded, err
	}
	if old != nil && (old.iface.id != t.id || !old.iface.alive()) {
		if err := d.del(ctx, r.Attachment); err != nil { // another interface: the old one is over
			return "", err
		}
		old = nil
	}
	a, err := d.attach(ctx, t, r, old)
	if err != nil {
		return "", err
	}
	a.degraded, err = d.waitReady(ctx, a, t.host)
	if err == nil {
		err = d.store.put(a.record()) // from here on it stands, whatever becomes of this process
	}
	if err != nil {
		return "", errors.Join(err, d.del(context.WithoutCancel(ctx), r.Attachment))
	}
	return a.degraded, nil
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

// attach makes the attachment, or replaces the settings of old, without waiting for readiness. If it fails, a new
// attachment leaves nothing behind, and an old one is gone.
func (d *Daemon) attach(ctx context.Context, t *target, r *api.Request, old *attachment) (*attachment, error) {
	leave, err := d.changing.enter(ctx, t.id)
	if err != nil {
		return nil, types.NewError(types.ErrTryAgainLater, fmt.Sprintf("interface %s is busy with another request: try again", t.name), "")
	}
	defer leave()

	i, err := d.interfaceFor(ctx, t, r.Settings, old)
	if err != nil {
		if old != nil && !old.iface.alive() {
			d.detach(old)
		}
		return nil, err
	}
	a := old
	switch {
	case a == nil:
		a = d.subscribe(i, r.Attachment)
		a.path, a.host, a.added = r.NetnsPath, r.Host, time.Now()
		_ = d.watchEnd(a)
	case a.iface != i:
		// The former sockets hold their groups until the new ones do; the namespace that they came from is closed.
		defer d.closeJoins(a.key, a.joins)
		d.mu.Lock()
		a.iface, a.joins = i, kernel.NewJoins(i.netns, i.id.index, d.cfg.Keeper)
		d.mu.Unlock()
		clear(a.told)
	}
	d.declare(a, a.settings, r.Settings)
	err = a.canDeliver(r.Settings)
	if err == nil {
		err = a.apply(ctx, r.Settings)
	}
	if err != nil {
		d.declare(a, r.Settings, a.settings)
		d.detach(a)
		return nil, err
	}
	d.show(a)
	return a, nil
}

// interfaceFor returns the interface with an agent that has the voice of the settings.
func (d *Daemon) interfaceFor(ctx context.Context, t *target, s *api.Settings, old *attachment) (*iface, error) {
	d.mu.Lock()
	i, shared := d.interfaces[t.id], false
	if i != nil {
		shared = i.attachments > 1 || (i.attachments == 1 && old == nil)
	}
	d.mu.Unlock()

	v := voiceOf(s)
	var mute *kernel.Mute
	switch {
	case i != nil && shared && i.voice != v:
		return nil, types.NewError(types.ErrInvalidNetworkConfig, fmt.Sprintf(
			"%s: interface %s has a listener already, for another network, and they must agree", v.contradiction(i.voice), t.name), "")
	case i != nil && i.voice == v && (shared || old != nil):
		return i, nil
	case i != nil: // on its way out, or to be replaced by one with another voice, without a leave for what stays
		if old != nil {
			if err := old.undeclare(ctx, s); err != nil {
				return nil, err
			}
		}
		var err error
		if mute, err = i.release(ctx); err != nil {
			return nil, err
		}
	}
	next, err := d.start(t, v, agent.Config{Mute: mute})
	if err != nil {
		return nil, startError(t.name, err)
	}
	if old != nil {
		d.mu.Lock()
		next.attachments, next.lastID = 1, old.id
		d.mu.Unlock()
	}
	return next, nil
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

// apply brings the attachment to new settings: first what is wanted is joined, then the rest is left. What has not
// changed is left alone.
func (a *attachment) apply(ctx context.Context, s *api.Settings) error {
	delivered := make(map[netip.Addr]struct{})
	for _, g := range s.Groups {
		if err := a.listen(ctx, g); err != nil {
			return err
		}
		if g.Deliver {
			delivered[g.Addr] = struct{}{}
		}
	}
	if err := a.undeclare(ctx, s); err != nil {
		return err
	}
	for _, g := range a.settings.Groups {
		if _, still := delivered[g.Addr]; g.Deliver && !still {
			if err := a.joins.Leave(g.Addr); err != nil {
				return err
			}
		}
	}
	a.settings = s
	return nil
}

// canDeliver refuses groups with delivery where the kernel can join nothing.
func (a *attachment) canDeliver(s *api.Settings) error {
	i := slices.IndexFunc(s.Groups, func(g api.Group) bool { return g.Deliver })
	if i < 0 {
		return nil
	}
	state := a.iface.agent.Link()
	if state.IPv6 {
		return nil
	}
	remedy := fmt.Sprintf("set sysctl net.ipv6.conf.%s.disable_ipv6 to 0", state.Name)
	if state.MTU < link.MinMTU {
		remedy = fmt.Sprintf("raise its MTU of %d octets to %d", state.MTU, link.MinMTU)
	}
	return types.NewError(api.CodeIPv6Off, fmt.Sprintf(
		"group %v cannot be delivered: IPv6 is off on %s: %s, or declare the group with deliver false",
		s.Groups[i].Addr, state.Name, remedy), "")
}

// listen makes the kernel join a group that is to be delivered, and the agent listen to any other. A group that is
// delivered from now on stays with the agent too, which hears of the new join a moment later and must not leave before.
func (a *attachment) listen(ctx context.Context, g api.Group) error {
	if g.Deliver {
		if err := a.join(g); err != nil {
			return err
		}
		if _, told := a.told[g.Addr]; !told {
			return nil
		}
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
func (d *Daemon) watchEnd(a *attachment) (err error) {
	if a.unwatch, err = d.names.watchNamespace(a.path, a.iface.netns, func() { d.ended(a) }); err != nil {
		d.log.Debug("end of the namespace not watched", "attachment", a.key, "err", err)
	}
	return err
}

// ended detaches an attachment whose namespace has ended, unless its DEL has come first.
func (d *Daemon) ended(a *attachment) {
	d.mu.Lock()
	if d.ending {
		d.mu.Unlock()
		return
	}
	d.background.Add(1)
	d.mu.Unlock()
	defer d.background.Done()
	leave, err := d.attaching.enter(d.work, a.key)
	if err != nil { // the daemon ends
		return
	}
	defer leave()
	if d.lookup(a.key) != a {
		return
	}
	d.log.Info("namespace ended", "attachment", a.key, "netns", a.path)
	if err := d.del(d.work, a.key); err != nil {
		d.log.Warn("attachment not detached", "attachment", a.key, "err", err)
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
	leave, busy := d.changing.enter(ctx, a.iface.id)
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
			leave, busy := d.enter(ctx, key)
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

	log := d.log.With("network", a.key.Network, "container", a.key.ContainerID, "ifname", a.key.IfName)
	if last {
		if err := a.iface.agent.Stop(ctx); err != nil {
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
		d.log.Warn("join sockets not closed", "attachment", key, "err", err)
	}
}

// leaveGrace is how long an agent that is about to end is given to hear that the kernel has left. Where there are events
// (mld/kernel.HasEvents) it takes a tenth of a millisecond.
const leaveGrace = 50 * time.Millisecond

// end ends all agents and lets every kernel speak for its applications again. Before, it leaves the declared groups, with
// one voice: what the kernel has joined for them is left while it is mute, so that the agent says so. In a handover
// nothing is left.
func (d *Daemon) end(handover bool) {
	ctx, cancel := context.WithTimeout(context.Background(), workTimeout)
	defer cancel()
	d.mu.Lock()
	attachments := make(map[*iface][]*attachment)
	for _, a := range d.attachments {
		attachments[a.iface] = append(attachments[a.iface], a)
	}
	clear(d.attachments)
	interfaces := slices.Collect(maps.Values(d.interfaces))
	d.mu.Unlock()

	var ends sync.WaitGroup
	for _, i := range interfaces { // side by side: an AF_PACKET socket takes 13 ms to close
		ends.Go(func() {
			if !handover {
				d.leave(ctx, i, attachments[i])
			}
			if err := i.end(ctx); err != nil {
				d.log.Warn("listener not ended", "err", err)
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
				d.log.Warn("join sockets not closed", "attachment", a.key, "err", err)
			}
		}
	}
}

// leave leaves what the attachments of an interface have declared.
func (d *Daemon) leave(ctx context.Context, i *iface, list []*attachment) {
	ctx, cancel := context.WithTimeout(ctx, leaveGrace)
	defer cancel()
	var delivered []netip.Addr
	for _, a := range list {
		_ = a.undeclare(ctx, &api.Settings{}) // fails only where there is no voice left to say it
		for _, g := range a.settings.Groups {
			if g.Deliver {
				delivered = append(delivered, g.Addr)
			}
		}
		d.closeJoins(a.key, a.joins)
	}
	if err := i.agent.WaitLeft(ctx, delivered...); err != nil { // an application may hold one of them
		d.log.Debug("groups not left", "ifname", i.name, "err", err)
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
