package daemon

import (
	"errors"
	"maps"
	"net"
	"net/netip"
	"time"

	"github.com/seed-aaab8e3a/cni-mld/mld/bridge"
	"github.com/seed-aaab8e3a/cni-mld/mld/netns"
	"github.com/seed-aaab8e3a/cni-mld/plugin/api"
)

// A table is what a watcher has been told of the MDB entries of our interfaces' ports. The kernel tells of every change
// of an entry, such as of its time; a watcher, of what is forwarded.
type table struct {
	host  *netns.Namespace
	ports map[int]tablePort    // by index
	seen  map[*iface]struct{}  // those that are ports
	tried map[*iface]time.Time // when it was found that they are none
}

// tryAgain is how long an interface that was no port is not looked at again: most changes of a database are about ports
// that are nobody's.
const tryAgain = time.Second

type tablePort struct {
	iface        *iface
	bridge, name string
	entries      map[entryKey]entryKind
}

type entryKey struct{ group, source netip.Addr }

// entryKind is what an entry does.
type entryKind uint8

const (
	nothing entryKind = iota // it is not there, or is for any source and leaves it to others to forward
	forwards
	blocks
)

func kindOf(e bridge.Entry) entryKind {
	switch {
	case e.Blocked:
		return blocks
	case e.Forwards():
		return forwards
	}
	return nothing
}

// newTable knows what is there.
func (d *Daemon) newTable(host *netns.Namespace) *table {
	t := &table{host: host, ports: make(map[int]tablePort), seen: make(map[*iface]struct{}), tried: make(map[*iface]time.Time)}
	t.look(d, true)
	return t
}

// look finds the ports of interfaces that have not been seen as ports yet, with the entries that are there if these need not
// be told. An interface keeps its port for as long as it lives.
func (t *table) look(d *Daemon, entries bool) {
	now := time.Now()
	maps.DeleteFunc(t.seen, func(i *iface, _ struct{}) bool { return !i.alive() })
	maps.DeleteFunc(t.tried, func(_ *iface, at time.Time) bool { return now.Sub(at) > tryAgain })
	d.mu.Lock()
	var unseen []*iface
	for _, i := range d.interfaces {
		_, seen := t.seen[i]
		if _, tried := t.tried[i]; !seen && !tried {
			unseen = append(unseen, i)
		}
	}
	d.mu.Unlock()
	s := newSurvey(t.host, "mldctl's")
	for _, i := range unseen {
		p, err := s.port(i)
		if err != nil || p == nil {
			t.tried[i] = now // it is none yet, or gone
			continue
		}
		known := tablePort{i, p.bridge, p.name, make(map[entryKey]entryKind)}
		if entries {
			for _, e := range p.entries {
				known.entries[entryKey{e.Group, e.Source}] = kindOf(e)
			}
		}
		t.ports[p.index], t.seen[i] = known, struct{}{}
	}
}

// port returns the port with an index, if it is of an interface of ours.
func (t *table) port(d *Daemon, index int) (tablePort, bool) {
	p, ok := t.ports[index]
	if !ok {
		t.look(d, false)
		p, ok = t.ports[index]
		return p, ok
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	if i := d.interfaces[p.iface.id]; i != nil {
		p.iface = i // another listener may have come; what goes when it has gone is told as well
	}
	return p, true
}

// followMDB tells a watcher of the entries of our interfaces' ports, until the monitor is closed.
func (d *Daemon) followMDB(monitor *bridge.Monitor, t *table, w *watcher) {
	for {
		changes, err := monitor.Next()
		switch {
		case errors.Is(err, bridge.ErrLost):
			d.watchers.publish(w, &api.Event{Kind: api.EventLost, Lost: 1})
			continue
		case errors.Is(err, net.ErrClosed):
			return
		case err != nil:
			d.log.Warn("multicast database not followed", "err", err)
			return
		}
		for _, c := range changes {
			p, ok := t.port(d, c.Entry.Port)
			if !ok {
				continue
			}
			d.watchers.publish(w, p.change(c)...)
			if len(p.entries) == 0 && !p.iface.alive() {
				delete(t.ports, c.Entry.Port)
			}
		}
	}
}

// change notes a change of an entry, and makes an event of it if that makes a difference.
func (p tablePort) change(c bridge.Change) []*api.Event {
	key, now := entryKey{c.Entry.Group, c.Entry.Source}, nothing
	if !c.Gone {
		now = kindOf(c.Entry)
	}
	before := p.entries[key]
	if now == before {
		return nil
	}
	kind, does := api.EventMDB, now
	if now == nothing {
		kind, does = api.EventMDBGone, before
		delete(p.entries, key)
	} else {
		p.entries[key] = now
	}
	f := api.Filter{Mode: api.Exclude}
	if key.source.IsValid() {
		f.Sources = []netip.Addr{key.source}
		if does == forwards {
			f.Mode = api.Include
		}
	}
	told := p.iface.event(kind)
	told.Group, told.Filter, told.Bridge, told.Port = key.group, &f, p.bridge, p.name
	return []*api.Event{told}
}
