package daemon

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"net"
	"slices"
	"strings"
	"time"

	"github.com/containernetworking/cni/pkg/types"

	"github.com/seed-aaab8e3a/cni-mld/mld/listener"
	"github.com/seed-aaab8e3a/cni-mld/mld/netns"
	"github.com/seed-aaab8e3a/cni-mld/plugin/api"
)

// lastLines is how long a stream with an end may still take when the daemon is told to end.
const lastLines = 2 * time.Second

// stream answers a request that is answered by lines. What has an end is told to it in a handover, too, to who takes it
// in time.
func (d *Daemon) stream(ctx context.Context, conn *net.UnixConn, r *api.Request) error {
	host, whose := d.home, "mldd's"
	if file := r.HostNetns; file != nil {
		r.HostNetns, whose = nil, "mldctl's"
		var err error
		if host, err = netns.FromFile(file); err != nil {
			fault := types.NewError(types.ErrIOFailure, fmt.Sprintf("the caller's own namespace: %v", err), "")
			return d.answer(conn, &api.Answer{Error: fault})
		}
		defer host.Close()
	}
	if r.Op == api.OpWatch {
		return d.watch(ctx, conn, r, host)
	}
	if err := d.answer(conn, &api.Answer{}); err != nil {
		return err
	}
	work, cancel := context.WithCancel(d.work)
	defer cancel()
	defer context.AfterFunc(ctx, func() { time.AfterFunc(lastLines, cancel) })()
	defer context.AfterFunc(work, func() { _ = conn.SetWriteDeadline(time.Unix(1, 0)) })()
	say := func(l *api.Line) error {
		return d.write(conn, func() error {
			if err := work.Err(); err != nil { // only now: from here on the end of work moves the deadline
				return err
			}
			return api.WriteLine(conn, l)
		})
	}
	select { // what stood before this daemon is there, or gone
	case <-d.adopted:
	case <-ctx.Done(): // who asks again finds the next daemon
		return errors.New("not told: mldd ends, and what stood before it is not back yet")
	}
	tell := d.list
	if r.Op == api.OpGroups {
		tell = d.groups
	}
	s := newSurvey(host, whose)
	if err := tell(work, r, s, say); err != nil {
		var fault *types.Error
		if !errors.As(err, &fault) {
			return err
		}
		return say(&api.Line{Error: fault})
	}
	return say(&api.Line{End: true})
}

// answer answers a request.
func (d *Daemon) answer(conn *net.UnixConn, a *api.Answer) error {
	return d.write(conn, func() error { return api.WriteAnswer(conn, a) })
}

// write writes to a client that has to take it in time.
func (d *Daemon) write(conn *net.UnixConn, write func() error) error {
	if err := conn.SetWriteDeadline(time.Now().Add(d.patience)); err != nil {
		return err
	}
	return write()
}

// A view is what streams show of an attachment: it may be read at any time. It is replaced and never changed.
type view struct {
	key      api.Attachment
	settings *api.Settings
	iface    *iface
	id       listener.SubscriberID
	since    time.Time
	plug     *plug
}

// A label is how an interface is called in streams. It is replaced and never changed.
type label struct {
	netns       string
	attachments []api.Attachment
}

// show makes what a request has made of an attachment visible.
func (d *Daemon) show(a *attachment) {
	a.shown.Store(&view{key: a.key, settings: a.settings, iface: a.iface, id: a.id, since: a.added, plug: a.plug})
	d.mu.Lock()
	defer d.mu.Unlock()
	l := *a.iface.shown.Load()
	if !slices.Contains(l.attachments, a.key) {
		l.attachments = append(slices.Clone(l.attachments), a.key)
		slices.SortFunc(l.attachments, compareKeys)
	}
	a.iface.shown.Store(&l)
}

// dropLabel takes an attachment from those that an interface is called by. Daemon.mu is held.
func (i *iface) dropLabel(key api.Attachment) {
	l := *i.shown.Load()
	l.attachments = slices.DeleteFunc(slices.Clone(l.attachments), func(k api.Attachment) bool { return k == key })
	i.shown.Store(&l)
}

func compareKeys(a, b api.Attachment) int {
	return cmp.Or(cmp.Compare(a.Network, b.Network), cmp.Compare(a.ContainerID, b.ContainerID), cmp.Compare(a.IfName, b.IfName))
}

// describe tells which interface it is.
func (i *iface) describe() api.Interface {
	name := i.name
	if l := i.link.Load(); l != nil {
		name = l.Name
	}
	return api.Interface{Netns: i.shown.Load().netns, Cookie: i.id.netns, Index: i.id.index, Name: name}
}

// matches tells whether a key is one of those that a request asks for, see [api.Request].
func matches(filter, key api.Attachment) bool {
	part := func(want, is string) bool { return want == "" || want == is }
	return part(filter.Network, key.Network) && strings.HasPrefix(key.ContainerID, filter.ContainerID) && part(filter.IfName, key.IfName)
}

// views returns the attachments that a filter lets through, in order.
func (d *Daemon) views(filter api.Attachment) []*view {
	d.mu.Lock()
	defer d.mu.Unlock()
	var list []*view
	for key, a := range d.attachments {
		if v := a.shown.Load(); v != nil && matches(filter, key) {
			list = append(list, v)
		}
	}
	slices.SortFunc(list, func(a, b *view) int { return compareKeys(a.key, b.key) })
	return list
}

// viewsByInterface returns the attachments of each interface, in order.
func (d *Daemon) viewsByInterface() map[*iface][]*view {
	all := make(map[*iface][]*view)
	for _, v := range d.views(api.Attachment{}) {
		all[v.iface] = append(all[v.iface], v)
	}
	return all
}
