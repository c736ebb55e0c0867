package daemon

import (
	"errors"
	"fmt"

	"github.com/vishvananda/netlink"

	"github.com/seed-aaab8e3a/cni-mld/mld/bridge"
	"github.com/seed-aaab8e3a/cni-mld/mld/netns"
)

// findPort finds the port of a Linux bridge that an interface in the namespace own is plugged into. Of what it leads
// to, only what is in the namespace host can be seen:
//
//	veth          the other end
//	macvlan       (and macvtap) that of its master, which its neighbours on the master share
//	bridge        itself: what the bridge's own host has joined
//
// An error that wraps [bridge.ErrNotPort] says that there is none.
func findPort(own, host *netns.Namespace, index int) (*bridge.Port, error) {
	l, err := linkIn(own, index)
	if err != nil {
		return nil, err
	}
	if master := l.Attrs().ParentIndex; l.Type() == "macvlan" || l.Type() == "macvtap" {
		if err := leadsTo(l, own, host); err != nil {
			return nil, err
		}
		own = host
		if l, err = linkIn(own, master); err != nil {
			return nil, err
		}
	}
	switch l.Type() {
	case "bridge":
		return bridge.FindPort(own, l.Attrs().Index)
	case "veth":
		if err := leadsTo(l, own, host); err != nil {
			return nil, err
		}
		return bridge.FindPort(host, l.Attrs().ParentIndex)
	}
	return nil, fmt.Errorf("%s: %w that can be seen from here", l.Attrs().Name, bridge.ErrNotPort)
}

func linkIn(ns *netns.Namespace, index int) (l netlink.Link, err error) {
	err = ns.Do(func() error {
		l, err = netlink.LinkByIndex(index)
		return err
	})
	if _, gone := errors.AsType[netlink.LinkNotFoundError](err); gone {
		return nil, fmt.Errorf("link %d: %w: it does not exist", index, bridge.ErrNotPort)
	}
	return l, err
}

// leadsTo makes sure that the other end of a veth in own, or the master of a macvlan, is in the namespace host: its
// index by itself could be that of any link there.
func leadsTo(l netlink.Link, own, host *netns.Namespace) error {
	const itself = -1 // no number of a namespace: the same one
	want := itself
	if own.Cookie() != host.Cookie() {
		if err := own.Do(func() (err error) {
			want, err = netlink.GetNetNsIdByFd(int(host.File().Fd()))
			return err
		}); err != nil {
			return fmt.Errorf("number of the host's namespace: %w", err)
		}
		if want == itself {
			return fmt.Errorf("%s: %w: it leads to no link of the host", l.Attrs().Name, bridge.ErrNotPort)
		}
	}
	if l.Attrs().NetNsID != want {
		return fmt.Errorf("%s: %w: it leads to another namespace", l.Attrs().Name, bridge.ErrNotPort)
	}
	return nil
}
