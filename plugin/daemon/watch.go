package daemon

import (
	"context"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/containernetworking/cni/pkg/types"

	"github.com/seed-aaab8e3a/cni-mld/mld"
	"github.com/seed-aaab8e3a/cni-mld/mld/agent"
	"github.com/seed-aaab8e3a/cni-mld/mld/bridge"
	"github.com/seed-aaab8e3a/cni-mld/mld/link"
	"github.com/seed-aaab8e3a/cni-mld/mld/listener"
	"github.com/seed-aaab8e3a/cni-mld/mld/netns"
	"github.com/seed-aaab8e3a/cni-mld/plugin/api"
)

const (
	// maxWatchers is how many clients may watch at once: each holds one of the places of maxConnections.
	maxWatchers = 16
	// maxQueue is how many events wait for a client that is slow to read. Those that come beyond are counted.
	maxQueue = 4096
)

// watchers are the clients that are told of events. An agent that tells them never waits for one.
type watchers struct {
	some atomic.Bool // there are any

	mu  sync.Mutex // of what follows and of all queues, so that there is one order of events
	all map[*watcher]struct{}
}

// A watcher is a client that is told of events.
type watcher struct {
	filter api.Attachment
	queue  []*api.Event
	ready  chan struct{} // has room for one: there is something in the queue
}

func (w *watchers) enter(filter api.Attachment) (*watcher, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if len(w.all) == maxWatchers {
		return nil, types.NewError(types.ErrTryAgainLater, fmt.Sprintf("%d clients watch already: end one of them", maxWatchers), "")
	}
	if w.all == nil {
		w.all = make(map[*watcher]struct{})
	}
	one := &watcher{filter: filter, ready: make(chan struct{}, 1)}
	w.all[one] = struct{}{}
	w.some.Store(true)
	return one, nil
}

func (w *watchers) leave(one *watcher) {
	w.mu.Lock()
	defer w.mu.Unlock()
	delete(w.all, one)
	w.some.Store(len(w.all) > 0)
}

// publish tells watchers of what has happened just now: only, or, if that is nil, all.
func (w *watchers) publish(only *watcher, events ...*api.Event) {
	w.mu.Lock()
	defer w.mu.Unlock()
	now := time.Now().Round(0)
	for _, e := range events {
		e.Time = now
		for one := range w.all {
			if only == nil || only == one {
				one.push(e)
			}
		}
	}
}

// push queues an event, or counts it in the last place of the queue. watchers.mu is held.
func (w *watcher) push(e *api.Event) {
	if e.Kind != api.EventLost && !slices.ContainsFunc(e.Attachments, func(key api.Attachment) bool { return matches(w.filter, key) }) {
		return
	}
	switch n := len(w.queue); {
	case n < maxQueue-1:
		w.queue = append(w.queue, e)
	case n < maxQueue:
		w.queue = append(w.queue, &api.Event{Time: e.Time, Kind: api.EventLost, Lost: 1})
	default:
		w.queue[n-1].Lost++
	}
	select {
	case w.ready <- struct{}{}:
	default:
	}
}

// take empties the queue.
func (w *watchers) take(one *watcher) []*api.Event {
	w.mu.Lock()
	defer w.mu.Unlock()
	events := one.queue
	one.queue = nil
	return events
}

// watch tells a client of events until it goes away, which ends the connection, or the daemon stops.
func (d *Daemon) watch(ctx context.Context, conn *net.UnixConn, r *api.Request, host *netns.Namespace) error {
	w, err := d.watchers.enter(r.Attachment)
	if err != nil {
		return d.answer(conn, &api.Answer{Error: asTypesError(err)})
	}
	defer d.watchers.leave(w)
	monitor, err := bridge.OpenMonitor(host)
	if err != nil {
		return d.answer(conn, &api.Answer{Error: asTypesError(err)})
	}
	var helpers sync.WaitGroup
	defer helpers.Wait()
	defer monitor.Close()
	table := d.newTable(host)
	helpers.Go(func() { d.followMDB(monitor, table, w) })
	if err := d.answer(conn, &api.Answer{}); err != nil {
		return err
	}

	// From now on the client may take its time, for it holds nobody up.
	if err := conn.SetDeadline(time.Time{}); err != nil {
		return err
	}
	defer context.AfterFunc(ctx, func() { _ = conn.SetDeadline(time.Unix(1, 0)) })()
	gone := make(chan struct{})
	defer conn.SetReadDeadline(time.Unix(1, 0)) // ends the reader
	helpers.Go(func() {
		defer close(gone)
		_, _ = conn.Read(make([]byte, 1)) // the client says nothing until it goes
	})
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-gone:
			return nil
		case <-w.ready:
		}
		for _, e := range d.watchers.take(w) {
			if err := api.WriteLine(conn, &api.Line{Event: e}); err != nil {
				return nil // nobody is there to be told
			}
		}
	}
}

// observe tells the watchers what an agent has noticed. It is called by the agent's goroutines.
func (d *Daemon) observe(i *iface, e agent.Event) {
	if e.Kind == agent.EventLink {
		state := e.Link // by itself: the event is ten times as large, and is not to be kept or allocated for it
		i.link.Store(&state)
	}
	if d.watchers.some.Load() {
		d.watchers.publish(nil, i.events(e)...)
	}
}

// event makes an event of the interface.
func (i *iface) event(kind string) *api.Event {
	at := i.describe()
	return &api.Event{Kind: kind, Interface: &at, Attachments: i.shown.Load().attachments}
}

// events makes of what an agent has noticed what watchers are told: of a version 2 Report, each record.
func (i *iface) events(e agent.Event) []*api.Event {
	switch e.Kind {
	case agent.EventJoined, agent.EventLeft:
		if !mld.Reportable(e.Addr) {
			return nil
		}
		if e.Kind == agent.EventLeft {
			told := i.event(api.EventLeft)
			told.Group = e.Addr
			return []*api.Event{told}
		}
		told := i.event(api.EventJoined)
		f := filterOf(e.Filter.Mode == listener.Exclude, e.Filter.Sources)
		told.Group, told.Filter = e.Addr, &f
		return []*api.Event{told}
	case agent.EventHeard:
		m := &e.Heard.Message
		told := i.event(api.EventHeard)
		told.From, told.MLDVersion, told.Message = e.Heard.Src, int(m.Version), m.Type.String()
		told.MaxDelay = api.Duration(m.MaxResponseDelay())
		if !m.MulticastAddress.IsUnspecified() {
			told.Group, told.Sources = m.MulticastAddress, some(m.Sources)
		}
		return []*api.Event{told}
	case agent.EventSuppressed:
		told := i.event(api.EventSuppressed)
		told.Group, told.From = e.Addr, e.Heard.Src
		return []*api.Event{told}
	case agent.EventSent, agent.EventNotSent:
		p, err := mld.Parse(e.Sent.Bytes, mld.AcceptUnspecified)
		if err != nil {
			panic(err) // our own
		}
		kind, reason := api.EventSent, ""
		if e.Kind == agent.EventNotSent {
			kind, reason = api.EventNotSent, e.Err.Error()
		}
		list := i.messages(kind, &p.Message)
		for _, told := range list {
			told.Cause, told.Reason = e.Sent.Cause.String(), reason
		}
		return list
	case agent.EventMuted:
		return i.messages(api.EventMuted, &e.Heard.Message)
	case agent.EventVersion:
		told := i.event(api.EventVersion)
		told.MLDVersion = int(e.Version)
		return []*api.Event{told}
	case agent.EventLink:
		return i.linkEvents(e.Before, e.Link)
	case agent.EventEnded:
		told := i.event(api.EventEnded)
		told.Reason = e.Err.Error()
		return []*api.Event{told}
	}
	return nil
}

// messages makes an event of a message of version 1, or of each record of one of version 2.
func (i *iface) messages(kind string, m *mld.Message) []*api.Event {
	if m.Type != mld.TypeReportV2 {
		told := i.event(kind)
		told.Message, told.Group = m.Type.String(), m.MulticastAddress
		return []*api.Event{told}
	}
	var list []*api.Event
	for r := range m.Records.All() {
		told := i.event(kind)
		told.Message, told.Record = m.Type.String(), r.Type.String()
		told.Group, told.Sources = r.MulticastAddress, some(r.Sources)
		list = append(list, told)
	}
	return list
}

// some returns as many sources as fit into a line.
func some(s mld.Sources) (list []netip.Addr) {
	for a := range s.All() {
		if len(list) == api.MaxSources {
			break
		}
		list = append(list, a)
	}
	return list
}

// linkEvents says what has changed about the interface. What an agent finds at its start is no change.
func (i *iface) linkEvents(before, now link.State) []*api.Event {
	if before.Index == 0 {
		return nil
	}
	source := func(a netip.Addr) string {
		if !a.IsValid() {
			return "no valid link-local address"
		}
		return "link-local address " + a.String()
	}
	var list []*api.Event
	for _, c := range []struct {
		changed bool
		reason  string
	}{
		{before.Name != now.Name, "renamed from " + before.Name},
		{before.IPv6 != now.IPv6, map[bool]string{true: "IPv6 on", false: "IPv6 off"}[now.IPv6]},
		{before.Up != now.Up, map[bool]string{true: "up", false: "down"}[now.Up]},
		{before.Source != now.Source, source(now.Source)},
		{before.MTU != now.MTU, fmt.Sprintf("MTU %d", now.MTU)},
	} {
		if c.changed {
			told := i.event(api.EventLink)
			told.Reason = c.reason
			list = append(list, told)
		}
	}
	return list
}

// declare tells the watchers what an attachment declares from now on, and what no longer.
func (d *Daemon) declare(a *attachment, before, now *api.Settings) {
	if !d.watchers.some.Load() {
		return
	}
	var list []*api.Event
	tell := func(kind string, g api.Group, f *api.Filter) {
		told := a.iface.event(kind)
		told.Attachment, told.Group, told.Filter = &a.key, g.Addr, f
		if !slices.Contains(told.Attachments, a.key) {
			told.Attachments = append(slices.Clone(told.Attachments), a.key)
		}
		list = append(list, told)
	}
	stays := make(map[netip.Addr]api.Group)
	for _, g := range before.Groups {
		stays[g.Addr] = g
	}
	for _, g := range now.Groups {
		if old, ok := stays[g.Addr]; !ok || !old.Equal(g) {
			f := filterOf(g.Mode == api.Exclude, g.Sources)
			tell(api.EventDeclared, g, &f)
		}
		delete(stays, g.Addr)
	}
	for _, g := range before.Groups {
		if _, gone := stays[g.Addr]; gone {
			tell(api.EventUndeclared, g, nil)
		}
	}
	d.watchers.publish(nil, list...)
}
