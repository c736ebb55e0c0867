package link

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"time"

	"github.com/mdlayher/netlink"
	"golang.org/x/sys/unix"
)

// State is what a listener must know about an interface.
type State struct {
	Name         string
	Index        int
	HardwareAddr net.HardwareAddr
	MTU          int        // octets
	AdminUp      bool       // set up by whoever administers it (ifAdminStatus of RFC 2863)
	Up           bool       // operational: set up, with carrier, and taken into use by the kernel
	Downs        uint32     // how often the carrier has been lost, which may have been for a moment (Linux 4.16)
	Source       netip.Addr // a valid link-local address, or the zero Addr while there is none
	Duplicate    netip.Addr // while there is no Source: a link-local address that another node has
	Tentative    netip.Addr // while there is neither: a link-local address of which this is still to be found out
	IPv6         bool       // IPv6 is switched on, and the MTU is large enough for it
	Restarts     uint32     // how often IPv6 may have begun anew, without the memberships of before
	Kind         string     // the kernel's name of the kind of link, such as "veth"; empty for a network card
	Ethernet     bool       // frames have an Ethernet header
}

// Equal tells whether two states are the same.
func (s State) Equal(o State) bool {
	return s.Name == o.Name && s.Index == o.Index && bytes.Equal(s.HardwareAddr, o.HardwareAddr) &&
		s.MTU == o.MTU && s.AdminUp == o.AdminUp && s.Up == o.Up && s.Downs == o.Downs &&
		s.Source == o.Source && s.Duplicate == o.Duplicate && s.Tentative == o.Tentative && s.IPv6 == o.IPv6 && s.Restarts == o.Restarts &&
		s.Kind == o.Kind && s.Ethernet == o.Ethernet
}

// MinMTU is the smallest MTU that IPv6 works with, in octets (RFC 8200 section 5).
const MinMTU = 1280

// Obstacle says in words what keeps MLD messages from being sent from a valid link-local address, and is empty when
// nothing does.
func (s State) Obstacle() string {
	switch {
	case !s.IPv6 && s.MTU < MinMTU:
		return fmt.Sprintf("there is no IPv6 with an MTU of %d octets: it takes %d", s.MTU, MinMTU)
	case !s.IPv6:
		return fmt.Sprintf("IPv6 is off, see sysctl net.ipv6.conf.%s.disable_ipv6", s.Name)
	case !s.Up && !s.AdminUp:
		return "the link is down, see ip link set dev " + s.Name + " up"
	case !s.Up:
		return "the link has no carrier: is its other end up?"
	case s.Duplicate.IsValid():
		return fmt.Sprintf("its link-local address %v is a duplicate: another node on the link has it", s.Duplicate)
	case s.Tentative.IsValid():
		return fmt.Sprintf("there is no valid link-local address yet: duplicate address detection of %v is at work", s.Tentative)
	case !s.Source.IsValid():
		return "there is no valid link-local address yet, see ip -6 addr show dev " + s.Name
	}
	return ""
}

// Of the kernel's interface; neither package syscall nor x/sys has them.
const (
	rtnlgrpIPv6Netconf = 25     // RTNLGRP_IPV6_NETCONF: IPv6 comes to the interface or goes from it
	devconfDisableIPv6 = 26     // DEVCONF_DISABLE_IPV6, an index into IFLA_INET6_CONF
	inet6Conf          = 2      // IFLA_INET6_CONF
	filterSkipStats    = 1 << 3 // RTEXT_FILTER_SKIP_STATS
	netconfIfindex     = 1      // NETCONFA_IFINDEX
)

// State reads the interface's state now. An error that wraps [ErrGone] says that the interface is not there
// any more. It is safe for concurrent use.
func (l *Link) State() (State, error) {
	s, _, err := l.read()
	return s, err
}

// Watch returns the interface's state when it differs from what the last State or Watch returned. The first call returns
// at once, with the state as it was read last, by Open or State. Its error wraps [ErrGone] when the interface was deleted
// or moved to another namespace, and is [net.ErrClosed] after Close. One goroutine calls it at a time.
func (l *Link) Watch() (State, error) {
	if !l.watched {
		l.watched = true
		l.state.Lock()
		defer l.state.Unlock()
		return l.last, nil
	}
	for {
		// What has changed since the state was read last has an event.
		if err := l.waitEvent(); err != nil {
			return State{}, err
		}
		s, changed, err := l.read()
		switch {
		case scarce(err):
			_ = l.events.SetReadDeadline(time.Now().Add(scarcity)) // only fails after Close, of which waitEvent tells
		case err != nil || changed:
			return s, err
		}
	}
}

// scarcity is how long Watch waits, at most, before it looks again when it could not for lack of descriptors or memory.
const scarcity = time.Second

// scarce tells whether something has failed for lack of what others may give back.
func scarce(err error) bool {
	return errors.Is(err, unix.EMFILE) || errors.Is(err, unix.ENFILE) || errors.Is(err, unix.ENOMEM) || errors.Is(err, unix.ENOBUFS)
}

// read reads the state and tells whether it differs from the last one read. Reads are in a row, so that the
// last one told is the last one that was true.
func (l *Link) read() (s State, changed bool, err error) {
	l.state.Lock()
	defer l.state.Unlock()
	switch {
	case l.closed.Load():
		return State{}, false, net.ErrClosed
	case l.gone.Load():
		return State{}, false, l.errGone()
	}
	r, err := dialRoute(l.ns)
	if err != nil {
		return State{}, false, fmt.Errorf("interface %d: %w", l.index, err)
	}
	defer r.Close()
	return l.readFrom(r)
}

// readFrom is read with a socket. l.state is held.
func (l *Link) readFrom(r *routeSocket) (s State, changed bool, err error) {
	found, err := readLink(r, l.index, "")
	s = found.State
	if err == nil {
		err = readSource(r, &s)
	}
	if err != nil {
		if errors.Is(err, unix.ENODEV) {
			return State{}, false, l.end()
		}
		return State{}, false, fmt.Errorf("interface %d: read state: %w", l.index, err)
	}
	s.Restarts = l.restarts.Load()
	changed = !s.Equal(l.last)
	l.last = s
	l.setSource(s)
	l.frameLen.Store(int64(ethernetLen + s.MTU))
	return s, changed, nil
}

// readLink asks for everything in Found, of an interface by its index or, if that is 0, by its name.
func readLink(r *routeSocket, index int, name string) (f Found, err error) {
	req := make([]byte, unix.SizeofIfInfomsg)
	binary.NativeEndian.PutUint32(req[4:], uint32(index))
	e := netlink.NewAttributeEncoder()
	e.Uint32(unix.IFLA_EXT_MASK, filterSkipStats)
	if index == 0 {
		e.String(unix.IFLA_IFNAME, name)
	}
	attrs, err := e.Encode()
	if err != nil {
		return Found{}, err
	}
	err = r.ask(unix.RTM_GETLINK, 0, append(req, attrs...), func(data []byte) (err error) {
		f, err = parseLink(data)
		return err
	})
	return f, err
}

func parseLink(b []byte) (Found, error) {
	if len(b) < unix.SizeofIfInfomsg {
		return Found{}, fmt.Errorf("a link of %d octets", len(b))
	}
	// IFF_RUNNING follows the carrier up to a second late, and only then the kernel begins with IPv6.
	const running = unix.IFF_UP | unix.IFF_RUNNING | unix.IFF_LOWER_UP
	flags := binary.NativeEndian.Uint32(b[8:])
	f := Found{ParentNetns: SameNetns, State: State{
		Ethernet: binary.NativeEndian.Uint16(b[2:]) == unix.ARPHRD_ETHER,
		Index:    int(int32(binary.NativeEndian.Uint32(b[4:]))),
		AdminUp:  flags&unix.IFF_UP != 0,
		Up:       flags&running == running,
	}}
	d, err := netlink.NewAttributeDecoder(b[unix.SizeofIfInfomsg:])
	if err != nil {
		return Found{}, err
	}
	for d.Next() {
		switch d.Type() {
		case unix.IFLA_IFNAME:
			f.Name = d.String()
		case unix.IFLA_ADDRESS:
			f.HardwareAddr = bytes.Clone(d.Bytes())
		case unix.IFLA_MTU:
			f.MTU = int(d.Uint32())
		case unix.IFLA_LINK:
			f.Parent = int(d.Uint32())
		case unix.IFLA_LINK_NETNSID:
			f.ParentNetns = int(d.Int32())
		case unix.IFLA_CARRIER_DOWN_COUNT:
			f.Downs = d.Uint32()
		case unix.IFLA_LINKINFO:
			d.Nested(func(d *netlink.AttributeDecoder) error {
				for d.Next() {
					if d.Type() == unix.IFLA_INFO_KIND {
						f.Kind = d.String()
					}
				}
				return nil
			})
		case unix.IFLA_AF_SPEC:
			d.Nested(func(d *netlink.AttributeDecoder) error {
				for d.Next() {
					if d.Type() == unix.AF_INET6 {
						d.Nested(func(d *netlink.AttributeDecoder) error {
							f.IPv6 = parseIPv6(d)
							return nil
						})
					}
				}
				return nil
			})
		}
	}
	return f, d.Err()
}

// parseIPv6 tells whether IPv6 is switched on. An interface with an MTU below 1280 has no IPv6 part at all.
func parseIPv6(d *netlink.AttributeDecoder) bool {
	for d.Next() {
		if conf := d.Bytes(); d.Type() == inet6Conf && len(conf) >= 4*(devconfDisableIPv6+1) {
			return binary.NativeEndian.Uint32(conf[4*devconfDisableIPv6:]) == 0
		}
	}
	return false
}

// readSource finds the address that MLD messages are sent from, or else a duplicate that cannot be it, or else one that
// may become it.
func readSource(r *routeSocket, s *State) error {
	req := make([]byte, unix.SizeofIfAddrmsg)
	req[0] = unix.AF_INET6
	binary.NativeEndian.PutUint32(req[4:], uint32(s.Index))
	var best, deprecated, duplicate, tentative netip.Addr
	err := r.ask(unix.RTM_GETADDR, unix.NLM_F_DUMP, req, func(data []byte) error {
		if len(data) < unix.SizeofIfAddrmsg || int(binary.NativeEndian.Uint32(data[4:])) != s.Index {
			return nil
		}
		addr, flags, err := parseAddr(data)
		if err != nil {
			return err
		}
		switch {
		case !addr.IsLinkLocalUnicast() || addr.Is4In6(): // netip takes ::ffff:169.254.0.1 for link-local
		case flags&unix.IFA_F_DADFAILED != 0:
			duplicate = lower(duplicate, addr)
		case !usable(flags):
			tentative = lower(tentative, addr)
		case flags&unix.IFA_F_DEPRECATED != 0:
			deprecated = lower(deprecated, addr)
		default:
			best = lower(best, addr)
		}
		return nil
	})
	switch {
	case best.IsValid():
		s.Source = best
	case deprecated.IsValid():
		s.Source = deprecated
	case duplicate.IsValid():
		s.Duplicate = duplicate
	default:
		s.Tentative = tentative
	}
	return err
}

// usable tells whether an address is valid: a tentative one is not (RFC 3590 section 4), an optimistic one is, though it
// is marked tentative as well (RFC 4429).
func usable(flags uint32) bool {
	return flags&unix.IFA_F_TENTATIVE == 0 || flags&unix.IFA_F_OPTIMISTIC != 0
}

// lower is the lower of two addresses, so that the choice among several does not depend on their order.
func lower(a, b netip.Addr) netip.Addr {
	if !a.IsValid() || b.Less(a) {
		return b
	}
	return a
}

func parseAddr(b []byte) (addr netip.Addr, flags uint32, err error) {
	flags = uint32(b[2])
	d, err := netlink.NewAttributeDecoder(b[unix.SizeofIfAddrmsg:])
	if err != nil {
		return netip.Addr{}, 0, err
	}
	var local bool
	for d.Next() {
		switch d.Type() {
		case unix.IFA_LOCAL: // ours, where IFA_ADDRESS is the far end's
			addr, local = netip.AddrFromSlice(d.Bytes())
		case unix.IFA_ADDRESS:
			if !local {
				addr, _ = netip.AddrFromSlice(d.Bytes())
			}
		case unix.IFA_FLAGS:
			flags = d.Uint32()
		}
	}
	return addr, flags, d.Err()
}

// waitEvent returns when something may have happened to the interface. All events that stand in the queue are
// taken together, so that a storm of them costs one look at the state.
func (l *Link) waitEvent() error {
	var failure error
	err := l.eventsRaw.Read(func(fd uintptr) bool {
		var concerned bool
		var b [64]byte // the beginning of a message tells whom it concerns
		for {
			switch n, err := unix.Read(int(fd), b[:]); err {
			case nil:
				concerned = l.concerns(b[:n]) || concerned
			case unix.EINTR:
			case unix.ENOBUFS: // events were lost
				concerned = true
				l.restarts.Add(1)
			case unix.EAGAIN:
				return concerned
			default:
				failure = err
				return true
			}
		}
	})
	switch {
	case l.closed.Load():
		return net.ErrClosed
	case errors.Is(err, os.ErrDeadlineExceeded): // scarcity is over, perhaps
		_ = l.events.SetReadDeadline(time.Time{})
		return nil
	case err != nil:
		failure = err
	}
	if failure != nil {
		return fmt.Errorf("interface %d: read events: %w", l.index, failure)
	}
	return nil
}

// concerns tells whether the event that begins with b may be about the interface, and notes its end: an
// interface that was deleted or moved away and has come back is another one, to which no socket of ours is bound.
func (l *Link) concerns(b []byte) bool {
	if len(b) < unix.SizeofNlMsghdr+12 {
		return false
	}
	kind, family := binary.NativeEndian.Uint16(b[4:]), b[unix.SizeofNlMsghdr]
	index := b[unix.SizeofNlMsghdr+4:] // in ifinfomsg and ifaddrmsg alike
	if kind == unix.RTM_NEWROUTE || kind == unix.RTM_DELROUTE {
		return true // perhaps: the interface stands further behind
	}
	if kind == unix.RTM_NEWNETCONF || kind == unix.RTM_DELNETCONF {
		if binary.NativeEndian.Uint16(index[2:]) != netconfIfindex {
			return false
		}
		index = index[4:]
	}
	if int(int32(binary.NativeEndian.Uint32(index))) != l.index {
		return false
	}
	switch {
	case kind == unix.RTM_DELLINK && family == unix.AF_UNSPEC:
		_ = l.end()
	case kind == unix.RTM_NEWNETCONF && family == unix.AF_INET6: // also at a new name
		l.restarts.Add(1)
	}
	return true
}
