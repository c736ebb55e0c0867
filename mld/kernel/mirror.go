package kernel

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"slices"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/mdlayher/netlink"
	"golang.org/x/sys/unix"

	"github.com/seed-aaab8e3a/cni-mld/mld/netns"
)

// Of the kernel's rtnetlink; package x/sys/unix does not have them.
const (
	rtnlgrpIPv6Netconf = 25 // RTNLGRP_IPV6_NETCONF
	rtnlgrpIPv6MCAddr  = 38 // RTNLGRP_IPV6_MCADDR
	rtmNewMulticast    = 56 // RTM_NEWMULTICAST
	rtmDelMulticast    = 57 // RTM_DELMULTICAST
	netconfIfindex     = 1  // NETCONFA_IFINDEX
)

// mcaddrGroup is the event group of the kernel's memberships; a test takes it away.
var mcaddrGroup uint32 = rtnlgrpIPv6MCAddr

// How often the whole list is read where there are no events.
const (
	resyncAfterHint = 100 * time.Millisecond // at most so often when a hint may be a leave
	resyncWithHints = 30 * time.Second       // a hint may have been lost to the rate limit
	resyncAlone     = time.Second            // nothing else tells
)

// eventBuffer is room for the events of a burst of joins, which the kernel allocates as they come.
const eventBuffer = 1 << 20

// A Change is a multicast address that the kernel has joined, or has left.
type Change struct {
	Addr   netip.Addr
	Joined bool
}

// A Mirror tells the kernel's memberships of one interface: those of every program and its own, such as the
// solicited-node addresses, ff02::1 and ff01::1 included.
type Mirror struct {
	index  int
	conn   *netlink.Conn // reads the whole list; with events, these come here as well
	raw    syscall.RawConn
	hints  *netlink.Conn // copies of muted packets; nil if there are events, or no mute that makes them
	events bool
	closed atomic.Bool

	held  map[netip.Addr]bool // what Next has told; the values are true
	told  bool                // Next has returned once
	stale bool                // the whole list must be read
	due   time.Time           // without events: when to read it
	read  time.Time           // without events: when it was read
}

// HasEvents tells whether the kernel has events of its memberships (RTNLGRP_IPV6_MCADDR, about Linux 6.14).
func HasEvents(ns *netns.Namespace) bool {
	c, err := dialRoute(ns)
	if err != nil {
		return false
	}
	defer c.Close()
	return c.JoinGroup(mcaddrGroup) == nil
}

func dialRoute(ns *netns.Namespace) (c *netlink.Conn, err error) {
	err = ns.Do(func() error {
		c, err = netlink.Dial(unix.NETLINK_ROUTE, nil)
		return err
	})
	return c, err
}

// OpenMirror mirrors the memberships of the interface with the given index. Where the kernel has no events, it
// takes the hints of a mute that was made with them, which tells a join when the kernel would have reported it and a
// leave within 100 ms of that; without such a mute, which may be nil, it reads the list every second.
func OpenMirror(ns *netns.Namespace, ifindex int, mute *Mute) (*Mirror, error) {
	m := &Mirror{index: ifindex, stale: true, held: make(map[netip.Addr]bool)}
	if err := m.open(ns, mute); err != nil {
		return nil, errors.Join(fmt.Errorf("memberships of interface %d: %w", ifindex, err), m.Close())
	}
	return m, nil
}

// open subscribes to what tells of changes; only after that the list is read, so nothing is missed.
func (m *Mirror) open(ns *netns.Namespace, mute *Mute) (err error) {
	if m.conn, err = dialRoute(ns); err != nil {
		return fmt.Errorf("open route socket: %w", err)
	}
	if m.raw, err = m.conn.SyscallConn(); err != nil {
		return err
	}
	// Without strict checking (before Linux 4.20) the list has every interface in it.
	_ = m.conn.SetOption(netlink.GetStrictCheck, true)

	switch err := m.conn.JoinGroup(mcaddrGroup); {
	case err == nil:
		m.events = true
	case !errors.Is(err, unix.EINVAL):
		return fmt.Errorf("join event group: %w", err)
	case mute != nil && mute.hints:
		m.hints, err = openHints(ns, m.index)
		return err
	default:
		return nil
	}
	if err := m.conn.SetReadBuffer(eventBuffer); err != nil {
		return fmt.Errorf("set size of event buffer: %w", err)
	}
	if err := m.conn.JoinGroup(rtnlgrpIPv6Netconf); err != nil {
		return fmt.Errorf("join event group: %w", err)
	}
	return nil
}

// Events tells whether changes come as exact events, and not as hints or by reading the list now and then.
func (m *Mirror) Events() bool { return m.events }

// Next waits for changes and returns them in the order they happened. The first call returns at once, with the
// memberships that stand, perhaps none. (While programs leave without a pause, a few of a long list may follow in
// the next call.) What came and went while nobody looked may be left out, but what Next has told adds up to the
// kernel's list. One goroutine calls it at a time; after Close it returns [net.ErrClosed].
func (m *Mirror) Next() ([]Change, error) {
	for {
		changes, err := m.next()
		switch {
		case m.closed.Load():
			return nil, net.ErrClosed
		case err != nil:
			return nil, fmt.Errorf("memberships of interface %d: %w", m.index, err)
		case len(changes) > 0 || !m.told && !m.stale:
			m.told = true
			return changes, nil
		}
	}
}

func (m *Mirror) next() ([]Change, error) {
	switch {
	case m.stale:
		return m.resync()
	case m.events:
		return m.nextEvents()
	}
	return m.nextHints()
}

// set notes an address as joined or left, and adds a change to the list if it is one.
func (m *Mirror) set(changes []Change, addr netip.Addr, joined bool) []Change {
	if m.held[addr] == joined {
		return changes
	}
	if joined {
		m.held[addr] = true
	} else {
		delete(m.held, addr)
	}
	return append(changes, Change{addr, joined})
}

// nextEvents waits for events and applies those that are in the queue, each by itself.
func (m *Mirror) nextEvents() (changes []Change, err error) {
	const limit = 1024 // of changes in one go, so that a storm cannot keep Next from returning
	take := func(h header, data []byte) {
		if e, ok := m.event(h, data); ok {
			changes = m.set(changes, e.Addr, e.Joined)
		}
	}
	err = m.receive(take, func() { m.stale = true }, func(empty bool) bool {
		return empty && (len(changes) > 0 || m.stale) || len(changes) >= limit
	})
	return changes, err
}

// event reads an event of the interface. One that says that IPv6 has gone from the interface, whose MTU may have
// become too small, means that all memberships have gone, most of them without an event of their own.
func (m *Mirror) event(h header, data []byte) (c Change, ok bool) {
	switch h.kind {
	case rtmNewMulticast, rtmDelMulticast:
		addr, ok := m.membership(data)
		return Change{addr, h.kind == rtmNewMulticast}, ok
	case unix.RTM_DELNETCONF:
		const attr = 4 // behind netconfmsg
		if len(data) >= attr+8 && binary.NativeEndian.Uint16(data[attr+2:]) == netconfIfindex &&
			int(int32(binary.NativeEndian.Uint32(data[attr+4:]))) == m.index {
			m.stale = true
		}
	}
	return Change{}, false
}

// membership reads the address of an entry of the list, or of an event, if it is about the interface.
func (m *Mirror) membership(data []byte) (addr netip.Addr, ok bool) {
	if len(data) < unix.SizeofIfAddrmsg || data[0] != unix.AF_INET6 ||
		int(int32(binary.NativeEndian.Uint32(data[4:]))) != m.index {
		return netip.Addr{}, false
	}
	for data = data[unix.SizeofIfAddrmsg:]; len(data) >= unix.SizeofRtAttr; {
		n := int(binary.NativeEndian.Uint16(data))
		if n < unix.SizeofRtAttr || n > len(data) {
			break
		}
		if binary.NativeEndian.Uint16(data[2:]) == unix.IFA_MULTICAST {
			return netip.AddrFromSlice(data[unix.SizeofRtAttr:n])
		}
		data = data[min(align(n), len(data)):]
	}
	return netip.Addr{}, false
}

// resync reads the whole list and returns what differs from what was told. Events of the meantime come through
// the same socket, and belong to the same picture:
//
//   - Those that were in the queue before the question are older than the answer, and dropped.
//   - Those that come before the end of the answer may be older or newer than the part of the list with their
//     address. They are in the right order, so the last one of an address is what is true, or what was true
//     just before one that still comes.
//   - The kernel goes on with a long list by counting, so a leave may make it miss an entry. Then an address
//     that is not in the list proves nothing, and the list is read again.
//   - When events were lost, or the kernel says that the list is not consistent, everything starts again.
func (m *Mirror) resync() ([]Change, error) {
	m.stale = false
	ignore := func(header, []byte) {}
	if err := m.receive(ignore, func() {}, func(empty bool) bool { return empty }); err != nil {
		return nil, err
	}
	req := make([]byte, unix.SizeofIfAddrmsg)
	req[0] = unix.AF_INET6
	binary.NativeEndian.PutUint32(req[4:], uint32(m.index))
	sent, err := m.conn.Send(netlink.Message{
		Header: netlink.Header{Type: unix.RTM_GETMULTICAST, Flags: netlink.Request | netlink.Dump},
		Data:   req,
	})
	if err != nil {
		return nil, err
	}

	var (
		list         = make(map[netip.Addr]bool)
		late         = make(map[netip.Addr]bool)
		entries      int
		left, broken bool // somebody left meanwhile; the list is of no use
		done         bool
		failure      error
	)
	take := func(h header, data []byte) {
		if h.seq != sent.Header.Sequence {
			if e, ok := m.event(h, data); ok {
				late[e.Addr] = e.Joined
				left = left || !e.Joined
			}
			return
		}
		broken = broken || h.flags&unix.NLM_F_DUMP_INTR != 0
		if h.kind == unix.NLMSG_DONE || h.kind == unix.NLMSG_ERROR {
			done, failure = true, errnoOf(data)
			return
		}
		entries++
		if addr, ok := m.membership(data); ok {
			list[addr] = true
		}
	}
	err = m.receive(take, func() { broken = true }, func(bool) bool { return done })
	switch {
	case err != nil:
		return nil, err
	case errors.Is(failure, unix.ENODEV): // the interface has gone, and everything with it
		clear(list)
		left = false
	case failure != nil:
		return nil, fmt.Errorf("read list: %w", failure)
	}
	if broken || m.stale {
		m.stale = true
		return nil, nil
	}
	for addr, joined := range late {
		if joined {
			list[addr] = true
		} else {
			delete(list, addr)
		}
	}
	m.stale = left && entries > onePart
	m.read = time.Now()
	m.due = m.read.Add(m.interval())
	return m.replace(list, late), nil
}

// replace makes list what is held, and returns the difference in the order of the addresses. If the list may
// lack an entry, only those leave whose leave was seen.
func (m *Mirror) replace(list, late map[netip.Addr]bool) (changes []Change) {
	var joined, left []netip.Addr
	for addr := range list {
		if !m.held[addr] {
			joined = append(joined, addr)
		}
	}
	for addr := range m.held {
		_, seen := late[addr]
		if !list[addr] && (seen || !m.stale) {
			left = append(left, addr)
		}
	}
	slices.SortFunc(joined, netip.Addr.Compare)
	slices.SortFunc(left, netip.Addr.Compare)
	for _, addr := range left {
		changes = m.set(changes, addr, false)
	}
	for _, addr := range joined {
		changes = m.set(changes, addr, true)
	}
	return changes
}

// interval is how long the list is good for without events.
func (m *Mirror) interval() time.Duration {
	if m.hints != nil {
		return resyncWithHints
	}
	return resyncAlone
}

// nextHints waits for a muted packet, or until the list is due.
func (m *Mirror) nextHints() (changes []Change, err error) {
	source := m.hints
	if source == nil {
		source = m.conn
	}
	if err := source.SetReadDeadline(m.due); err != nil {
		return nil, err
	}
	messages, err := source.Receive()
	switch {
	case errors.Is(err, os.ErrDeadlineExceeded):
		m.stale = true
		return nil, m.conn.SetReadDeadline(time.Time{})
	case errors.Is(err, unix.ENOBUFS):
		m.soon()
	case err != nil:
		return nil, err
	}
	for _, message := range messages {
		packet := loggedPacket(message)
		if packet == nil {
			continue
		}
		if heard(packet, func(addr netip.Addr) { changes = m.set(changes, addr, true) }) {
			m.soon()
		}
	}
	return changes, nil
}

// soon has the list read as early as its limit allows.
func (m *Mirror) soon() {
	if soon := m.read.Add(resyncAfterHint); soon.Before(m.due) {
		m.due = soon
	}
}

// Close ends the mirror and wakes Next. Further calls do nothing.
func (m *Mirror) Close() error {
	if m.closed.Swap(true) {
		return nil
	}
	var err error
	if m.hints != nil {
		err = m.hints.Close()
	}
	if m.conn != nil {
		err = errors.Join(err, m.conn.Close())
	}
	return err
}

// A header is what matters here of a netlink message's header.
type header struct {
	kind, flags uint16
	seq         uint32
}

func align(n int) int { return (n + 3) &^ 3 }

// errnoOf reads the error that ends a list.
func errnoOf(data []byte) error {
	if len(data) < 4 {
		return nil
	}
	if n := int32(binary.NativeEndian.Uint32(data)); n < 0 {
		return unix.Errno(-n)
	}
	return nil
}

// The kernel packs a list into parts no longer than the reader's buffer, the first one shorter than a page. An entry
// takes 64 octets.
const (
	bufferLen = 32 << 10
	onePart   = 32 // so many entries are surely in the first part
)

// buffers are only borrowed while there is something to read, so that an idle mirror needs none.
var buffers = sync.Pool{New: func() any { return new([bufferLen]byte) }}

// receive hands the messages of the route socket to take, and calls lost when the kernel had to drop some. After
// every part, and when the queue is empty, it asks whether that is enough, and otherwise goes on, or waits.
func (m *Mirror) receive(take func(h header, data []byte), lost func(), enough func(empty bool) bool) error {
	var failure error
	err := m.raw.Read(func(fd uintptr) bool {
		buf := buffers.Get().(*[bufferLen]byte)
		defer buffers.Put(buf)
		for {
			n, err := unix.Read(int(fd), buf[:])
			switch err {
			case nil:
				walk(buf[:n], take)
			case unix.EINTR:
				continue
			case unix.ENOBUFS:
				lost()
			case unix.EAGAIN:
				return enough(true)
			default:
				failure = err
				return true
			}
			if enough(false) {
				return true
			}
		}
	})
	return errors.Join(err, failure)
}

// walk goes through the messages of one part.
func walk(b []byte, take func(h header, data []byte)) {
	for len(b) >= unix.SizeofNlMsghdr {
		n := int(binary.NativeEndian.Uint32(b))
		if n < unix.SizeofNlMsghdr || n > len(b) {
			return
		}
		take(header{
			kind:  binary.NativeEndian.Uint16(b[4:]),
			flags: binary.NativeEndian.Uint16(b[6:]),
			seq:   binary.NativeEndian.Uint32(b[8:]),
		}, b[unix.SizeofNlMsghdr:n])
		b = b[min(align(n), len(b)):]
	}
}
