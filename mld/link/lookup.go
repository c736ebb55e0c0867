package link

import (
	"errors"
	"fmt"

	"github.com/mdlayher/netlink"
	"golang.org/x/sys/unix"

	"github.com/seed-aaab8e3a/cni-mld/mld/netns"
)

// A Lookup finds the interfaces of a namespace, all by one socket. It is for one goroutine at a time.
type Lookup struct{ route *routeSocket }

// Found is an interface as a Lookup finds it: its State without addresses, and what it leads to.
type Found struct {
	State
	Parent      int // index of the other end of a veth, or of what a macvlan is on; of no meaning for other kinds
	ParentNetns int // of Parent: a number as that of [Lookup.NetnsID], or SameNetns
}

// SameNetns stands in place of a number for the namespace that is asked.
const SameNetns = -1

// OpenLookup opens a Lookup in a namespace.
func OpenLookup(ns *netns.Namespace) (l *Lookup, err error) {
	err = ns.Do(func() error {
		l, err = NewLookup()
		return err
	})
	return l, err
}

// NewLookup opens a Lookup in the namespace that the thread is in.
func NewLookup() (*Lookup, error) {
	r, err := newRouteSocket()
	if err != nil {
		return nil, err
	}
	return &Lookup{route: r}, nil
}

// Close closes the socket.
func (l *Lookup) Close() error { return l.route.Close() }

// ByName finds the interface with a name. The error wraps [ErrGone] if there is none.
func (l *Lookup) ByName(name string) (Found, error) {
	f, err := l.find(0, name)
	if err != nil {
		return Found{}, fmt.Errorf("interface %s: %w", name, err)
	}
	return f, nil
}

// ByIndex finds the interface with an index. The error wraps [ErrGone] if there is none.
func (l *Lookup) ByIndex(index int) (Found, error) {
	if index <= 0 { // readLink would look for a name
		return Found{}, fmt.Errorf("interface %d: %w", index, ErrGone)
	}
	f, err := l.find(index, "")
	if err != nil {
		return Found{}, fmt.Errorf("interface %d: %w", index, err)
	}
	return f, nil
}

func (l *Lookup) find(index int, name string) (Found, error) {
	f, err := readLink(l.route, index, name)
	if errors.Is(err, unix.ENODEV) {
		return Found{}, ErrGone
	}
	return f, err
}

// NetnsID returns the number by which the namespace of the Lookup knows another one (ip netns list-id). ok is false if
// it knows it by none. The kernel assigns the number when it tells of an interface that leads there, so such an interface
// must have been found by a Lookup before.
func (l *Lookup) NetnsID(other *netns.Namespace) (id int, ok bool, err error) {
	const sizeofRtGenmsg, notAssigned = 4, -1 // with its padding
	e := netlink.NewAttributeEncoder()
	e.Uint32(unix.NETNSA_FD, uint32(other.File().Fd()))
	attrs, err := e.Encode()
	if err != nil {
		return 0, false, err
	}
	id = notAssigned
	err = l.route.ask(unix.RTM_GETNSID, 0, append(make([]byte, sizeofRtGenmsg), attrs...), func(data []byte) error {
		if len(data) < sizeofRtGenmsg {
			return fmt.Errorf("a number of %d octets", len(data))
		}
		d, err := netlink.NewAttributeDecoder(data[sizeofRtGenmsg:])
		if err != nil {
			return err
		}
		for d.Next() {
			if d.Type() == unix.NETNSA_NSID {
				id = int(d.Int32())
			}
		}
		return d.Err()
	})
	if err != nil {
		return 0, false, fmt.Errorf("number of network namespace %s: %w", other.File().Name(), err)
	}
	return id, id != notAssigned, nil
}
