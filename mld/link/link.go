package link

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/mdlayher/netlink"
	"github.com/mdlayher/packet"
	"golang.org/x/sys/unix"

	"github.com/seed-aaab8e3a/cni-mld/mld/netns"
)

// ErrGone says that an interface does not exist, or not any more: it was deleted or moved to another namespace.
var ErrGone = errors.New("interface is gone")

// A Link is one interface of a network namespace. ReadPacket, WritePacket and Watch may run at the same time,
// each in one goroutine; State and Close may be called from anywhere.
type Link struct {
	ns    *netns.Namespace
	index int

	conn      *packet.Conn
	raw       syscall.RawConn
	events    *netlink.Conn
	eventsRaw syscall.RawConn
	closed    atomic.Bool
	gone      atomic.Bool
	restarts  atomic.Uint32
	takesAll  bool // the interface has no filter of group addresses
	watched   bool // Watch has returned once

	state sync.Mutex // held while the state is read
	last  State

	in, out  transfer
	frameLen atomic.Int64  // the longest frame of the interface, in octets
	frame    []byte        // what WritePacket sends; its room is used again
	source   atomic.Uint64 // our hardware address in the lower 48 bits, and a mark that there is one
}

// A transfer is one system call on a packet socket. It stands in the Link so that a packet costs no allocation.
type transfer struct {
	try func(fd uintptr) bool
	b   *[]byte // of buffers; nil while there is nothing
	n   int
	err error
}

// Open opens the interface with the given index in the namespace, which must stay open as long as the Link.
// CAP_NET_RAW is needed there. An error that wraps [ErrGone] says that there is no such interface.
func Open(ns *netns.Namespace, ifindex int) (*Link, error) {
	l := &Link{ns: ns, index: ifindex}
	if ifindex <= 0 { // the kernel takes 0 for every interface
		return nil, l.errGone()
	}
	l.in.try, l.out.try = l.receive, l.send
	if err := l.open(); err != nil {
		return nil, errors.Join(err, l.Close())
	}
	return l, nil
}

func (l *Link) open() (err error) {
	filter, err := mldFilter()
	if err != nil {
		return fmt.Errorf("interface %d: assemble filter: %w", l.index, err)
	}
	var route *routeSocket
	defer func() {
		if route != nil {
			err = errors.Join(err, route.Close())
		}
	}()
	err = l.ns.Do(func() (err error) {
		// The filter is attached before the socket is bound, so that not one other frame enters the queue.
		l.conn, err = packet.Listen(&net.Interface{Index: l.index}, packet.Raw, unix.ETH_P_IPV6,
			&packet.Config{Filter: filter})
		if err != nil {
			return fmt.Errorf("interface %d: open packet socket (CAP_NET_RAW is needed): %w", l.index, err)
		}
		l.events, err = netlink.Dial(unix.NETLINK_ROUTE, &netlink.Config{Groups: eventGroups})
		if err != nil {
			return fmt.Errorf("interface %d: open route socket: %w", l.index, err)
		}
		if route, err = newRouteSocket(); err != nil {
			return fmt.Errorf("interface %d: %w", l.index, err)
		}
		return nil
	})
	if errors.Is(err, unix.ENODEV) {
		return l.errGone()
	}
	if err != nil {
		return err
	}
	if l.raw, err = l.conn.SyscallConn(); err != nil {
		return fmt.Errorf("interface %d: packet socket: %w", l.index, err)
	}
	if err := l.setPacketOptions(); err != nil {
		return fmt.Errorf("interface %d: packet socket: %w", l.index, err)
	}
	if l.eventsRaw, err = l.events.SyscallConn(); err != nil {
		return fmt.Errorf("interface %d: route socket: %w", l.index, err)
	}
	if filter, err = eventFilter(); err != nil {
		return fmt.Errorf("interface %d: assemble filter: %w", l.index, err)
	}
	if err := l.events.SetBPF(filter); err != nil {
		return fmt.Errorf("interface %d: route socket: attach filter: %w", l.index, err)
	}
	// WritePacket needs the hardware address, and so it is read here, to be returned by the first Watch.
	l.state.Lock()
	s, _, err := l.readFrom(route)
	l.state.Unlock()
	l.takesAll = s.Kind == "veth" || s.Kind == "bridge"
	if err == nil && s.Kind == "macvtap" { // what comes in is the tap's, as soon as a program has opened it
		err = l.hearEveryProtocol()
	}
	return err
}

// eventGroups are the groups of events that may change what a State says, a bit for each.
const eventGroups = 1<<(unix.RTNLGRP_LINK-1) | 1<<(unix.RTNLGRP_IPV6_IFADDR-1) | 1<<(unix.RTNLGRP_IPV6_IFINFO-1) |
	1<<(rtnlgrpIPv6Netconf-1) | 1<<(unix.RTNLGRP_IPV6_ROUTE-1)

func (l *Link) setPacketOptions() error {
	var failure error
	err := l.raw.Control(func(fd uintptr) {
		// Frames that the host itself sends are not wanted (V1-25). A socket bound to one protocol sees none
		// in today's kernels, but that is not promised, and this is.
		err := unix.SetsockoptInt(int(fd), unix.SOL_PACKET, unix.PACKET_IGNORE_OUTGOING, 1)
		if err != nil && err != unix.ENOPROTOOPT { // before Linux 4.20
			failure = fmt.Errorf("ignore outgoing frames: %w", err)
		}
	})
	return errors.Join(err, failure)
}

// HearKernel makes ReadPacket return also what the kernel of this host sends from a link-local address; what
// WritePacket sends stays unheard. It is for a host whose kernel reports what it has joined, beside a listener. It waits
// for the kernel, 13 ms on an idle machine, and is called before ReadPacket.
func (l *Link) HearKernel() error {
	var failure error
	err := l.raw.Control(func(fd uintptr) {
		failure = unix.SetsockoptInt(int(fd), unix.SOL_PACKET, unix.PACKET_IGNORE_OUTGOING, 0)
	})
	if failure == unix.ENOPROTOOPT { // before Linux 4.20
		failure = nil
	}
	if err := errors.Join(err, failure); err != nil {
		return fmt.Errorf("interface %d: packet socket: hear outgoing frames: %w", l.index, err)
	}
	return l.hearEveryProtocol()
}

// hearEveryProtocol binds the socket to frames of every protocol, to which alone those are shown that are sent, and
// those that come in for whoever has taken the interface over.
func (l *Link) hearEveryProtocol() error {
	var failure error
	everything := binary.NativeEndian.Uint16(binary.BigEndian.AppendUint16(nil, unix.ETH_P_ALL))
	err := l.raw.Control(func(fd uintptr) {
		failure = unix.Bind(int(fd), &unix.SockaddrLinklayer{Protocol: everything, Ifindex: l.index})
	})
	if errors.Is(failure, unix.ENODEV) {
		return l.errGone()
	}
	if err := errors.Join(err, failure); err != nil {
		return fmt.Errorf("interface %d: packet socket: hear every protocol: %w", l.index, err)
	}
	return nil
}

// AddMembership makes the interface take in frames for a group that the kernel may not have joined: queries for it,
// the Reports of others, and its data. A macvlan or a network card drops them otherwise (S2); a veth or a bridge never
// does, and is spared the call, which takes the kernel's lock of all interfaces. Each call wants a DropMembership.
//
// All groups could be taken in at once, but on a macvlan the streams that concern nobody would then cost time in every
// container, and overflow the queue that the queries come through.
func (l *Link) AddMembership(group netip.Addr) error {
	return l.setMembership(unix.PACKET_ADD_MEMBERSHIP, "take in", group)
}

// DropMembership takes back one AddMembership.
func (l *Link) DropMembership(group netip.Addr) error {
	return l.setMembership(unix.PACKET_DROP_MEMBERSHIP, "no longer take in", group)
}

func (l *Link) setMembership(option int, what string, group netip.Addr) error {
	if l.takesAll {
		return nil
	}
	mac := multicastMAC(group)
	r := unix.PacketMreq{Ifindex: int32(l.index), Type: unix.PACKET_MR_MULTICAST, Alen: uint16(len(mac))}
	copy(r.Address[:], mac[:])
	var failure error
	err := l.raw.Control(func(fd uintptr) {
		failure = unix.SetsockoptPacketMreq(int(fd), unix.SOL_PACKET, option, &r)
	})
	switch {
	case l.closed.Load():
		return net.ErrClosed
	case errors.Is(failure, unix.ENODEV):
		return l.errGone()
	case err != nil || failure != nil:
		return fmt.Errorf("interface %d: %s frames for %v: %w", l.index, what, group, errors.Join(err, failure))
	}
	return nil
}

// multicastMAC is the Ethernet address of a group (RFC 2464 section 7), which others may share.
func multicastMAC(group netip.Addr) [6]byte {
	a := group.As16()
	return [6]byte{0x33, 0x33, a[12], a[13], a[14], a[15]}
}

// ReadPacket waits for the next MLD message, from another host unless HearKernel says more, and returns its IPv6
// packet, which is good until the next call. A packet that is longer than the MTU was when the state was read last may
// come cut off, and link-layer padding may stand behind a short one. Nothing about the packet is checked but that it is
// an MLD message by its type. unicast tells that the frame was sent to this host alone (B25).
// The error wraps [ErrGone] once State or Watch has found the interface gone, and is [net.ErrClosed] after Close.
func (l *Link) ReadPacket() (packet []byte, unicast bool, err error) {
	l.giveBack()
	for {
		err := l.raw.Read(l.in.try)
		if err == nil {
			err = l.in.err
		}
		switch {
		case l.closed.Load():
			return nil, false, net.ErrClosed
		case l.gone.Load():
			return nil, false, l.errGone()
		case errors.Is(err, unix.ENETDOWN): // told once; the interface may come back up
		case err != nil:
			return nil, false, fmt.Errorf("interface %d: read packet: %w", l.index, err)
		case l.in.n > ethernetLen:
			const groupBit = 1
			b := *l.in.b
			return b[ethernetLen:l.in.n], b[0]&groupBit == 0, nil
		}
	}
}

// buffers are only borrowed while there is a packet, so that an idle Link needs none. Each has room for a frame of an
// ordinary link, and grows with the first one of a larger MTU.
var buffers = sync.Pool{New: func() any { b := make([]byte, 1536); return &b }}

func (l *Link) receive(fd uintptr) bool {
	if l.in.b == nil {
		l.in.b = buffers.Get().(*[]byte)
	}
	if n := int(l.frameLen.Load()); len(*l.in.b) < n {
		*l.in.b = make([]byte, n)
	}
	l.in.n, l.in.err = ignoringEINTR(func() (int, error) { return unix.Read(int(fd), *l.in.b) })
	if l.in.err == nil {
		return true
	}
	l.giveBack()
	return !errors.Is(l.in.err, unix.EAGAIN)
}

// giveBack returns the buffer of the packet that was read last.
func (l *Link) giveBack() {
	if l.in.b != nil {
		buffers.Put(l.in.b)
		l.in.b = nil
	}
}

// WritePacket sends an IPv6 packet, whose destination must be multicast, with the Ethernet addresses that belong
// to it: that of its destination (33:33 and the lower 32 bits, RFC 2464 section 7), and the interface's own as of
// the last State or Watch. It does not wait: when the interface's queue is full, that is an error. After Close the
// error is [net.ErrClosed].
func (l *Link) WritePacket(packet []byte) error {
	const ipv6Len, dstOffset = 40, 24
	if len(packet) < ipv6Len || packet[dstOffset] != 0xff {
		return fmt.Errorf("interface %d: packet of %d octets: not an IPv6 packet to a multicast address", l.index,
			len(packet))
	}
	source := l.source.Load()
	if source&haveSource == 0 {
		return fmt.Errorf("interface %d: not an Ethernet-like link", l.index)
	}
	dst := packet[dstOffset : dstOffset+16]
	l.frame = append(l.frame[:0], 0x33, 0x33, dst[12], dst[13], dst[14], dst[15],
		byte(source>>40), byte(source>>32), byte(source>>24), byte(source>>16), byte(source>>8), byte(source))
	l.frame = binary.BigEndian.AppendUint16(l.frame, unix.ETH_P_IPV6)
	l.frame = append(l.frame, packet...)

	err := l.raw.Write(l.out.try)
	if err == nil {
		err = l.out.err
	}
	switch {
	case l.closed.Load():
		return net.ErrClosed
	case errors.Is(err, unix.ENXIO), errors.Is(err, unix.ENODEV):
		return l.end()
	case err != nil:
		return fmt.Errorf("interface %d: write packet of %d octets: %w", l.index, len(packet), err)
	}
	return nil
}

// send does not wait for room: whoever sets a slow queue on the interface would stop the caller with it, and the
// protocol is made for lost packets.
func (l *Link) send(fd uintptr) bool {
	l.out.n, l.out.err = ignoringEINTR(func() (int, error) { return unix.Write(int(fd), l.frame) })
	return true
}

func ignoringEINTR(call func() (int, error)) (int, error) {
	for {
		n, err := call()
		if !errors.Is(err, unix.EINTR) {
			return n, err
		}
	}
}

const haveSource = 1 << 48

// setSource keeps the address that frames are sent from.
func (l *Link) setSource(s State) {
	var v uint64
	if s.Ethernet && len(s.HardwareAddr) == 6 {
		v = haveSource
		for i, octet := range s.HardwareAddr {
			v |= uint64(octet) << (40 - 8*i)
		}
	}
	l.source.Store(v)
}

// end notes that the interface is gone, and wakes ReadPacket, which the kernel leaves waiting.
func (l *Link) end() error {
	l.gone.Store(true)
	_ = l.conn.SetReadDeadline(time.Unix(0, 1)) // only fails after Close, which wakes it as well
	return l.errGone()
}

func (l *Link) errGone() error { return fmt.Errorf("interface %d: %w", l.index, ErrGone) }

// Close ends the Link and wakes everyone who waits in it. Closing the packet socket waits for the kernel, 13 ms
// on an idle machine, so whoever closes many does it concurrently. Further calls do nothing.
func (l *Link) Close() error {
	if l.closed.Swap(true) {
		return nil
	}
	var err error
	if l.events != nil {
		err = l.events.Close()
	}
	if l.conn != nil {
		err = errors.Join(err, l.conn.Close())
	}
	return err
}
