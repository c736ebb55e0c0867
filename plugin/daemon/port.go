package daemon

import (
	"errors"
	"fmt"

	"github.com/seed-aaab8e3a/cni-mld/mld/bridge"
	"github.com/seed-aaab8e3a/cni-mld/mld/link"
	"github.com/seed-aaab8e3a/cni-mld/mld/netns"
)

// errElsewhere says that a bridge is not looked for where it may be. It is an [bridge.ErrNotPort].
var errElsewhere = fmt.Errorf("%w that can be seen from here: it leads to another network namespace", bridge.ErrNotPort)

// A plug is the port of a bridge that an interface was plugged into when it was attached, by its names.
type plug struct {
	Bridge string `json:"bridge"`
	Port   string `json:"port"`
}

// pulled says that the interface has no port any more, and what helps.
func (p *plug) pulled() string {
	return fmt.Sprintf("%s was a port of bridge %s, and is none any more: ip link set %s master %s", p.Port, p.Bridge, p.Port, p.Bridge)
}

// findPort finds the port of a Linux bridge that an interface in the namespace own is plugged into. Of what it leads
// to, only what is in the namespace host can be seen:
//
//	veth          the other end
//	macvlan       (and macvtap) that of its master, which its neighbours on the master share
//	bridge        itself: what the bridge's own host has joined
//
// An error that wraps [bridge.ErrNotPort] says that there is none.
func findPort(own, host *netns.Namespace, index int) (*bridge.Port, error) {
	links, err := link.OpenLookup(own)
	if err != nil {
		return nil, err
	}
	defer links.Close()
	l, err := linkAt(links, index)
	if err != nil {
		return nil, err
	}
	return portOf(l, links, own, host)
}

// portOf is findPort for an interface that links, a lookup in the namespace own, has found.
func portOf(l link.Found, links *link.Lookup, own, host *netns.Namespace) (*bridge.Port, error) {
	if l.Kind == "macvlan" || l.Kind == "macvtap" {
		if err := leadsTo(l, links, own, host); err != nil {
			return nil, err
		}
		hostLinks, err := link.OpenLookup(host)
		if err != nil {
			return nil, err
		}
		defer hostLinks.Close()
		own, links = host, hostLinks
		if l, err = linkAt(links, l.Parent); err != nil {
			return nil, err
		}
	}
	switch l.Kind {
	case "bridge":
		return bridge.FindPort(own, l.Index)
	case "veth":
		if err := leadsTo(l, links, own, host); err != nil {
			return nil, err
		}
		return bridge.FindPort(host, l.Parent)
	}
	return nil, fmt.Errorf("%s: %w that can be seen from here", l.Name, bridge.ErrNotPort)
}

func linkAt(links *link.Lookup, index int) (link.Found, error) {
	l, err := links.ByIndex(index)
	if errors.Is(err, link.ErrGone) {
		return link.Found{}, fmt.Errorf("link %d: %w: it does not exist", index, bridge.ErrNotPort)
	}
	return l, err
}

// leadsTo makes sure that the other end of a veth in own, or the master of a macvlan, is in the namespace host: its
// index by itself could be that of any link there.
func leadsTo(l link.Found, links *link.Lookup, own, host *netns.Namespace) error {
	want := link.SameNetns
	if own.Cookie() != host.Cookie() {
		id, ok, err := links.NetnsID(host)
		if err != nil {
			return err
		}
		if !ok { // not a link of own leads there
			return fmt.Errorf("%s: %w", l.Name, errElsewhere)
		}
		want = id
	}
	if l.ParentNetns != want {
		return fmt.Errorf("%s: %w", l.Name, errElsewhere)
	}
	return nil
}
