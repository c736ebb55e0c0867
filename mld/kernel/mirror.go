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

	"github.com/seed-aaab8e3a/cni-mld/mld"
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

// MaxJoined is how many addresses a Mirror keeps of an interface unless told otherwise, each source of a filter counted
// as one more. It is far beyond what the kernel's own lists, through which it goes for each join, are made for; but any
// program in a container can open sockets until then, and more.
const MaxJoined = 1 << 16

// ErrTooMany says that programs have joined more than a Mirror keeps.
var ErrTooMany = errors.New("more is joined than can be mirrored")

// eventBuffer is room for the events of a burst of joins, which the kernel allocates as they come.
const eventBuffer = 1 << 20

// A Change is a multicast address that the kernel has joined, or has left, or whose source filter is another one now.
type Change struct {
	Addr    netip.Addr
	Joined  bool         // false: left
	Exclude bool         // the mode of the filter; with no sources, any source is wanted
	Sources []netip.Addr // sorted; not to be changed
}

// A Mirror tells the kernel's memberships of one interface: those of every program and its own, such as the
// solicited-node addresses, ff02::1 and ff01::1 included.
//
// Its knowledge comes from two sockets, which the kernel fills by the order of things each, and which have no order
// among them. Events tell which addresses are joined, and the kernel's muted reports tell the filters. Of a report
// that is read, the mirror then reads all events before it looks at it. So it knows of the join of everything in the
// report that is joined, and the report cannot come too early. It can come late, and speak of an earlier membership
// of an address that was left and joined again meanwhile: then the report stands until the one that follows the join,
// at most the kernel's own delay later. What is told then is what the kernel itself has just told everybody.
//
// A report that is built later than another one is also logged later, and it is built from what is true then. So
// repeats do not matter, and after the last report the filter is the kernel's.
type Mirror struct {
	ns     *netns.Namespace
	index  int
	conn   *netlink.Conn // reads the whole list; with events, these come here as well
	raw    syscall.RawConn
	events bool

	// With a mute that logs.
	log     *netlink.Conn // copies of muted packets
	rawLog  syscall.RawConn
	sources *os.File // the kernel's list of sources; nil: filters are not wanted

	// poll is an epoll instance with the sockets in it, so that one goroutine can wait for both.
	poll   *os.File
	ready  syscall.RawConn
	closed atomic.Bool

	held    map[netip.Addr]membership
	size    int // of held, as MaxJoined counts
	most    int
	touched map[netip.Addr]membership // as they were when Next told last
	order   []netip.Addr              // of touched

	joins    []netip.Addr // joined just now; sources are to be looked for
	awaited  []netip.Addr // joined before, and still no sources
	until    time.Time    // how long these are waited for
	again    time.Time    // when to learn what could not be learned for lack of descriptors or memory; zero: nothing
	unread   []byte       // read from the log, and waiting for the events before it
	last     listRecord   // at the end of the last report
	allowed  allowed      // by the last report
	older    bool         // the kernel is in MLDv1 mode, and tells no sources
	failure  error        // of reading
	deadline time.Time    // of waiting, as set last

	onReport func(mld.Packet) // may be nil

	told  bool      // Next has returned once
	stale bool      // the whole list must be read
	due   time.Time // without events: when to read it
	read  time.Time // without events: when it was read
}

// listRecord is a record whose list may go on in the next packet.
type listRecord struct {
	kind mld.RecordType
	addr netip.Addr
}

// allowed is what a report has allowed of the address that it speaks of last.
type allowed struct {
	addr    netip.Addr
	sources []netip.Addr
	goesOn  bool // in the next packet, perhaps
}

// HasEvents tells whether the kernel has events of its memberships (RTNLGRP_IPV6_MCADDR, about Linux 6.14).
func HasEvents(ns *netns.Namespace) bool {
	return ns.Do(func() error {
		c, err := netlink.Dial(unix.NETLINK_ROUTE, nil)
		if err != nil {
			return err
		}
		defer c.Close()
		return c.JoinGroup(mcaddrGroup)
	}) == nil
}

// OpenMirror mirrors the memberships of the interface with the given index. The namespace must stay open as long.
//
// With a mute that was made for sources, the filters are told; else, or if there is no mute, every membership counts
// as one of any source. Where the kernel has no events, the mirror takes the hints of a mute that was made with them,
// or for sources, which tells a join when the kernel would have reported it and a leave within 100 ms of that; without
// such a mute, and in the kernel's MLDv1 mode, in which it may leave without a word, it reads the list every second.
//
// The error wraps [ErrMuted] where another mirror has the log of the mute, or of one before it, still.
func OpenMirror(ns *netns.Namespace, ifindex int, mute *Mute) (*Mirror, error) {
	m := &Mirror{
		ns: ns, index: ifindex, stale: true, most: MaxJoined,
		held: make(map[netip.Addr]membership), touched: make(map[netip.Addr]membership),
	}
	if err := m.open(ns, mute); err != nil {
		return nil, errors.Join(fmt.Errorf("memberships of interface %d: %w", ifindex, err), m.Close())
	}
	return m, nil
}

// open subscribes to what tells of changes; only after that the list is read, so nothing is missed.
func (m *Mirror) open(ns *netns.Namespace, mute *Mute) (err error) {
	if err := ns.Do(func() error { return m.enter(mute) }); err != nil {
		return err
	}
	if m.raw, err = m.conn.SyscallConn(); err != nil {
		return err
	}
	// Without strict checking (before Linux 4.20) the list has every interface in it.
	_ = m.conn.SetOption(netlink.GetStrictCheck, true)
	if m.events {
		if err := m.conn.SetReadBuffer(eventBuffer); err != nil {
			return fmt.Errorf("set size of event buffer: %w", err)
		}
		if err := m.conn.JoinGroup(rtnlgrpIPv6Netconf); err != nil {
			return fmt.Errorf("join event group: %w", err)
		}
	}
	if m.log != nil {
		if err := bindLog(m.log, mute.group); err != nil {
			return err
		}
		if m.rawLog, err = m.log.SyscallConn(); err != nil {
			return err
		}
	}
	return m.openPoll()
}

// enter opens what belongs to the namespace that the thread is in.
func (m *Mirror) enter(mute *Mute) (err error) {
	if m.conn, err = netlink.Dial(unix.NETLINK_ROUTE, nil); err != nil {
		return fmt.Errorf("open route socket: %w", err)
	}
	switch err := m.conn.JoinGroup(mcaddrGroup); {
	case err == nil:
		m.events = true
	case !errors.Is(err, unix.EINVAL):
		return fmt.Errorf("join event group: %w", err)
	}
	if mute != nil && (mute.options.Sources || mute.options.Hints && !m.events) {
		if m.log, err = netlink.Dial(unix.NETLINK_NETFILTER, nil); err != nil {
			return fmt.Errorf("open netfilter socket: %w", err)
		}
	}
	if mute != nil && mute.options.Sources {
		if m.sources, err = openList(sourcesPath); err != nil {
			return fmt.Errorf("open list of sources: %w", err)
		}
	}
	return nil
}

// openPoll gathers the sockets, so that one goroutine can wait for both.
func (m *Mirror) openPoll() error {
	fd, err := unix.EpollCreate1(unix.EPOLL_CLOEXEC)
	if err != nil {
		return fmt.Errorf("open epoll: %w", err)
	}
	if err := unix.SetNonblock(fd, true); err != nil { // or Go would not wait for it in its poller
		_ = unix.Close(fd)
		return fmt.Errorf("open epoll: %w", err)
	}
	m.poll = os.NewFile(uintptr(fd), "epoll")
	for _, socket := range []syscall.RawConn{m.raw, m.rawLog} {
		if socket == nil {
			continue
		}
		var failure error
		err := socket.Control(func(s uintptr) {
			failure = unix.EpollCtl(fd, unix.EPOLL_CTL_ADD, int(s), &unix.EpollEvent{Events: unix.EPOLLIN, Fd: int32(s)})
		})
		if err := errors.Join(err, failure); err != nil {
			return fmt.Errorf("add socket to epoll: %w", err)
		}
	}
	m.ready, err = m.poll.SyscallConn()
	return err
}

// Events tells whether changes come as exact events, and not as hints or by reading the list now and then.
func (m *Mirror) Events() bool { return m.events }

// OnReport has f called with each muted report that Next reads from the log of a mute that was made for hints or
// sources. The packet is f's until it returns. To be called before Next.
func (m *Mirror) OnReport(f func(p mld.Packet)) { m.onReport = f }

// Limit has Next fail when there is more than n, in place of MaxJoined. To be called before Next.
func (m *Mirror) Limit(n int) { m.most = n }

// Next waits for changes and returns them, each address once, in the order of their first change. The first call
// returns at once, with the memberships that stand, perhaps none. (While programs leave without a pause, a few of a
// long list may follow in the next call.) What came and went while nobody looked may be left out, but what Next has
// told adds up to the kernel's list. One goroutine calls it at a time; after Close it returns [net.ErrClosed]. An error that
// wraps [ErrTooMany] says that there is more than MaxJoined or Limit.
func (m *Mirror) Next() ([]Change, error) {
	for {
		err := m.next()
		if m.closed.Load() {
			return nil, net.ErrClosed
		}
		if err == nil && m.size > m.most {
			err = m.tooMany()
		}
		if err != nil {
			return nil, fmt.Errorf("memberships of interface %d: %w", m.index, err)
		}
		if changes := m.changes(); len(changes) > 0 || !m.told && !m.stale {
			m.told = true
			return changes, nil
		}
	}
}

func (m *Mirror) tooMany() error {
	return fmt.Errorf("%w: more than %d addresses and sources", ErrTooMany, m.most)
}

func (m *Mirror) next() error {
	if m.stale {
		return m.resync()
	}
	if err := m.setDeadline(); err != nil {
		return err
	}
	err := m.ready.Read(func(uintptr) bool { return m.gather() })
	if errors.Is(err, os.ErrDeadlineExceeded) {
		m.gather() // what has come while nobody could look has come in time
		return m.expire()
	}
	err, m.failure = errors.Join(err, m.failure), nil
	return err
}

// set changes what is held of an address, absent included.
func (m *Mirror) set(addr netip.Addr, s membership) {
	if _, ok := m.touched[addr]; !ok {
		m.touched[addr] = m.held[addr]
		m.order = append(m.order, addr)
	}
	m.size += s.size() - m.held[addr].size()
	if s.state == absent {
		delete(m.held, addr)
	} else {
		m.held[addr] = s
	}
}

// changes is what has changed since it was called last.
func (m *Mirror) changes() (list []Change) {
	for _, addr := range m.order {
		was, told := m.touched[addr].tells()
		is, tell := m.held[addr].tells()
		switch {
		case tell && (!told || !is.equal(was)):
			list = append(list, Change{Addr: addr, Joined: true, Exclude: is.exclude, Sources: is.sources})
		case told && !tell:
			list = append(list, Change{Addr: addr})
		}
	}
	if len(m.order) > limit || !m.told { // room for so many, or for what stood at the beginning, is not kept
		m.order, m.touched = nil, make(map[netip.Addr]membership)
	}
	m.order = m.order[:0]
	clear(m.touched)
	return list
}

// limit is how many addresses may change before Next returns, so that a storm cannot keep it.
const limit = 1024

// gather reads and applies what there is, and tells whether Next has something to do.
func (m *Mirror) gather() bool {
	for {
		m.readEvents()
		m.lookUp()
		if m.failure != nil || m.stale || len(m.order) >= limit {
			return true // there may be more events, so what is unread stays so
		}
		m.readReports()
		if !m.readLog() {
			return len(m.order) > 0 || m.failure != nil || m.stale || !m.deadline.Equal(m.nextDeadline())
		}
	}
}

// readEvents applies the events that are in the queue.
func (m *Mirror) readEvents() {
	if !m.events {
		return
	}
	take := func(h header, data []byte) {
		switch addr, joined, ok := m.event(h, data); {
		case !ok:
		case !joined:
			m.set(addr, membership{})
		case m.held[addr].state != absent: // of a time before the list was read
		default:
			m.join(addr)
		}
	}
	err := m.receive(take, func() { m.stale = true }, func(empty bool) bool { return empty || len(m.order) >= limit })
	m.failure = errors.Join(m.failure, err)
}

// join notes a join that has just happened.
func (m *Mirror) join(addr netip.Addr) {
	if m.sources == nil || m.older {
		m.set(addr, membership{anySource, unsure})
		return
	}
	m.set(addr, membership{anySource, fresh})
	m.joins = append(m.joins, addr)
}

// sourcesDelay is how long the sources of a source-specific address are waited for. The kernel adds them right after
// it has told of the join, and reports them 10 ms later, unless a repeat of something else is due within a second: then
// the report waits for that. A test makes it longer.
var sourcesDelay = 20 * time.Millisecond

// lookUp looks for the sources of addresses that were joined just now.
func (m *Mirror) lookUp() {
	if len(m.joins) == 0 {
		return
	}
	found := m.lookFor(slices.Concat(m.joins, m.awaited))
	m.awaited = slices.DeleteFunc(m.awaited, func(addr netip.Addr) bool { return m.held[addr].state != awaited })
	if len(m.awaited) == 0 {
		m.until = time.Time{}
	}
	for _, addr := range m.joins {
		if !mld.SourceSpecific(addr) || m.held[addr].state != fresh || found[addr] {
			continue
		}
		if before, told := m.touched[addr].tells(); told { // left and joined again in one go
			m.set(addr, membership{before, fresh})
			continue
		}
		m.set(addr, membership{anySource, awaited})
		m.awaited = append(m.awaited, addr)
		m.until = time.Now().Add(sourcesDelay) // for all that are awaited, so that none has less
	}
	m.joins = m.joins[:0]
}

// lookFor looks for the sources of addresses, and tells which have any. Who excludes a source has joined without one,
// so that for the time being these are wanted from any source.
func (m *Mirror) lookFor(addrs []netip.Addr) (found map[netip.Addr]bool) {
	sources := make(map[netip.Addr][]netip.Addr, len(addrs))
	for _, addr := range addrs {
		if s := m.held[addr].state; s == fresh || s == awaited {
			sources[addr] = nil
		}
	}
	if len(sources) == 0 {
		return nil
	}
	found = make(map[netip.Addr]bool)
	excluded := make(map[netip.Addr]bool)
	err := readSources(m.sources, m.index, func(r sourceRow) {
		list, wanted := sources[r.addr]
		if !wanted {
			return
		}
		found[r.addr] = true
		excluded[r.addr] = excluded[r.addr] || r.excludes > 0
		if unicast(r.source) {
			sources[r.addr] = append(list, r.source)
		}
	})
	m.failure = errors.Join(m.failure, err)
	for addr := range found {
		f := filter{sources: sortSet(sources[addr])}
		if excluded[addr] || len(f.sources) == 0 {
			f = anySource
		}
		m.set(addr, membership{f, fresh})
	}
	return found
}

// nextDeadline is when something is to be done though nothing comes; the zero Time if nothing is.
func (m *Mirror) nextDeadline() (next time.Time) {
	if !m.events {
		next = m.due
	}
	for _, at := range []time.Time{m.until, m.again} {
		if next.IsZero() || !at.IsZero() && at.Before(next) {
			next = at
		}
	}
	return next
}

func (m *Mirror) setDeadline() error {
	m.deadline = m.nextDeadline()
	return m.poll.SetReadDeadline(m.deadline)
}

// expire does what a deadline was for.
func (m *Mirror) expire() error {
	now := time.Now()
	if !m.events && !now.Before(m.due) {
		m.stale = true
	}
	if !m.again.IsZero() && !now.Before(m.again) {
		m.again = time.Time{}
		if err := m.learn(m.unsure()); err != nil {
			return err
		}
	}
	if m.until.IsZero() || now.Before(m.until) {
		return nil
	}
	m.until = time.Time{}
	m.lookFor(m.awaited)
	for _, addr := range m.awaited {
		if s := m.held[addr]; s.state == awaited { // joined for any source, then
			m.set(addr, membership{anySource, fresh})
		}
	}
	m.awaited = m.awaited[:0]
	err := m.failure
	m.failure = nil
	return err
}

// readLog reads from the log, and tells whether there was something.
func (m *Mirror) readLog() (some bool) {
	if m.log == nil {
		return false
	}
	buf := buffers.Get().(*[bufferLen]byte)
	defer buffers.Put(buf)
	err := m.rawLog.Read(func(fd uintptr) bool {
		n, err := ignoringEINTR(func() (int, error) { return unix.Read(int(fd), buf[:]) })
		switch {
		case err == nil:
			m.unread, some = append(m.unread[:0], buf[:n]...), true
		case errors.Is(err, unix.EAGAIN):
		case errors.Is(err, unix.ENOBUFS):
			m.lose()
			some = true
		default:
			m.failure = errors.Join(m.failure, err)
		}
		return true
	})
	m.failure = errors.Join(m.failure, err)
	return some
}

func ignoringEINTR(call func() (int, error)) (int, error) {
	for {
		n, err := call()
		if !errors.Is(err, unix.EINTR) {
			return n, err
		}
	}
}

// lose forgets the filters, of which no change counts until each is known anew.
func (m *Mirror) lose() {
	m.last, m.allowed = listRecord{}, allowed{}
	for addr, s := range m.held {
		if s.state != unsure {
			m.set(addr, membership{anySource, unsure})
		}
	}
	m.soon()
}

// readReports applies the reports that have been read.
func (m *Mirror) readReports() {
	loggedPackets(m.unread, m.report)
	m.unread = m.unread[:0]
}

// report applies a report of the kernel's.
func (m *Mirror) report(packet []byte) {
	// Until its link-local address is valid the kernel reports from "::" (L6).
	p, err := mld.Parse(packet, mld.AcceptUnspecified)
	last := m.last
	m.last = listRecord{}
	if !m.allowed.goesOn {
		m.allowed = allowed{}
	}
	m.allowed.goesOn = len(packet) > roomyPacket
	if err == nil && m.onReport != nil {
		m.onReport(p)
	}
	switch {
	case err != nil:
		m.soon()
	case p.Message.Type == mld.TypeReportV2:
		m.older = false
		announcing := announces(p.Message.Records)
		for r := range p.Message.Records.All() {
			sources := sourceSet(r.Sources)
			if announcing && r.Type == mld.ChangeToExclude && len(sources) > 0 {
				sources = m.held[r.MulticastAddress].excludes(sources)
			}
			sources = m.allowed.after(r.Type, r.MulticastAddress, sources)
			this := listRecord{r.Type, r.MulticastAddress}
			m.record(this, sources, this == last)
			m.last, last = this, listRecord{} // a list goes on at the beginning of the next packet
		}
	default:
		if !m.older {
			m.older = true
			m.lose() // from now on no change of a filter is told
		}
		if p.Message.Type != mld.TypeReport {
			m.soon()
		} else if addr := p.Message.MulticastAddress; !m.events && m.held[addr].state == absent {
			m.set(addr, membership{anySource, unsure})
		}
	}
}

// roomyPacket is a length up to which a packet had room for one more record of one source, whatever the MTU. So the next
// packet is not of the same report.
const roomyPacket = 1280 - 20 - 16

// after takes note of a record and returns which of its sources it is about.
//
// The kernel keeps what it blocks apart from what it wants, and forgets to strike a source off there when the filter
// changes its mode. If it is left and joined for that source soon after, a BLOCK of the source follows right upon its
// ALLOW, in the same report. The ALLOW is made from what is wanted, and is true.
func (a *allowed) after(kind mld.RecordType, addr netip.Addr, sources []netip.Addr) []netip.Addr {
	if a.addr != addr {
		a.addr, a.sources = addr, nil
	}
	switch kind {
	case mld.AllowNewSources:
		a.sources = union(a.sources, sources)
	case mld.BlockOldSources:
		return difference(sources, a.sources)
	}
	return sources
}

// announces tells whether a report may be one of those with which the kernel, when its link-local address has become
// valid, tells everything that is joined. In these, TO_EX has every source in it that any socket names, those that are
// wanted included, and does not count for more than is known. They are not marked; but the solicited-node address is
// among what they tell.
func announces(records mld.Records) bool {
	for r := range records.All() {
		if r.Type == mld.ChangeToExclude && mld.SolicitedNode(r.MulticastAddress) {
			return true
		}
	}
	return false
}

// record applies a record.
func (m *Mirror) record(r listRecord, sources []netip.Addr, continued bool) {
	wanted := r.kind == mld.ModeIsExclude || r.kind == mld.ChangeToExclude ||
		r.kind != mld.BlockOldSources && len(sources) > 0
	if !wanted {
		m.soon()
	}
	s := m.held[r.addr]
	if s.state == absent {
		if m.events || !wanted {
			return // of a membership that has ended
		}
		if !r.addr.IsMulticast() || r.addr.Is4In6() {
			return // not the kernel's: others can log to the same group
		}
		m.join(r.addr)
		s = m.held[r.addr]
	}
	if m.sources == nil {
		return
	}
	if now := s.after(r.kind, sources, continued); now.state != s.state || !now.equal(s.filter) {
		m.set(r.addr, now)
	}
}

// event reads an event of the interface. One that says that IPv6 has gone from the interface, whose MTU may have
// become too small, means that all memberships have gone, most of them without an event of their own.
func (m *Mirror) event(h header, data []byte) (addr netip.Addr, joined, ok bool) {
	switch h.kind {
	case rtmNewMulticast, rtmDelMulticast:
		addr, ok = m.membership(data)
		return addr, h.kind == rtmNewMulticast, ok
	case unix.RTM_DELNETCONF:
		const attr = 4 // behind netconfmsg
		if len(data) >= attr+8 && binary.NativeEndian.Uint16(data[attr+2:]) == netconfIfindex &&
			int(int32(binary.NativeEndian.Uint32(data[attr+4:]))) == m.index {
			m.stale = true
		}
	}
	return addr, false, false
}

// membership reads the address of an entry of the list, or of an event, if it is about the interface.
func (m *Mirror) membership(data []byte) (addr netip.Addr, ok bool) {
	if len(data) < unix.SizeofIfAddrmsg || data[0] != unix.AF_INET6 ||
		int(int32(binary.NativeEndian.Uint32(data[4:]))) != m.index {
		return netip.Addr{}, false
	}
	attributes(data[unix.SizeofIfAddrmsg:], func(kind uint16, value []byte) {
		if kind == unix.IFA_MULTICAST && !ok {
			addr, ok = netip.AddrFromSlice(value)
		}
	})
	return addr, ok
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
func (m *Mirror) resync() error {
	m.stale = false
	ignore := func(header, []byte) {}
	if err := m.receive(ignore, func() {}, func(empty bool) bool { return empty }); err != nil {
		return err
	}
	req := make([]byte, unix.SizeofIfAddrmsg)
	req[0] = unix.AF_INET6
	binary.NativeEndian.PutUint32(req[4:], uint32(m.index))
	sent, err := m.conn.Send(netlink.Message{
		Header: netlink.Header{Type: unix.RTM_GETMULTICAST, Flags: netlink.Request | netlink.Dump},
		Data:   req,
	})
	if err != nil {
		return err
	}

	var (
		list         = make(map[netip.Addr]bool)
		late         = make(map[netip.Addr]bool)
		entries      int
		left, broken bool // somebody left meanwhile; the list is of no use
		tooMany      bool
		done         bool
		failure      error
	)
	take := func(h header, data []byte) {
		if h.seq != sent.Header.Sequence {
			if addr, joined, ok := m.event(h, data); ok {
				late[addr] = joined
				left = left || !joined
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
		tooMany = len(list) > m.most
	}
	err = m.receive(take, func() { broken = true }, func(bool) bool { return done || tooMany })
	switch {
	case err != nil:
		return err
	case tooMany:
		return m.tooMany()
	case errors.Is(failure, unix.ENODEV): // the interface has gone, and everything with it
		clear(list)
		left = false
	case failure != nil:
		return fmt.Errorf("read list: %w", failure)
	}
	if broken || m.stale {
		m.stale = true
		return nil
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
	return m.learn(m.replace(list, late))
}

// learn learns the filters of addresses that stand, as far as the kernel's lists prove them (see [standing.filter]).
//
// The log has been open for longer than that, so a change that the lists do not have yet is reported into it, and
// applied after this: what is wanted beyond the lists comes as ALLOW or TO_EX. A report that is older than the lists
// is followed by one of the kernel's for whatever has changed since.
func (m *Mirror) learn(addrs []netip.Addr) error {
	if m.sources == nil || m.older || !slices.ContainsFunc(addrs, filtered) {
		return nil
	}
	s, err := readStanding(m.ns, m.sources, m.index)
	if scarce(err) {
		m.again = time.Now().Add(scarcity)
		return nil
	}
	if err != nil {
		return err
	}
	for _, addr := range addrs {
		if f, ok := s.filter(addr); ok {
			m.set(addr, membership{f, sure})
		}
	}
	return nil
}

// scarcity is how long learning waits when it could not be done for lack of descriptors or memory.
const scarcity = time.Second

// scarce tells whether something has failed for lack of what others may give back.
func scarce(err error) bool {
	return errors.Is(err, unix.EMFILE) || errors.Is(err, unix.ENFILE) || errors.Is(err, unix.ENOMEM)
}

// unsure is what is held without its filter.
func (m *Mirror) unsure() (addrs []netip.Addr) {
	for addr, s := range m.held {
		if s.state == unsure {
			addrs = append(addrs, addr)
		}
	}
	return addrs
}

// filtered tells whether a source filter of an address may matter to anybody: not that of one which is never reported,
// nor that of those which the kernel joins by itself.
func filtered(addr netip.Addr) bool {
	return !addr.IsInterfaceLocalMulticast() && addr != allNodes && !mld.SolicitedNode(addr)
}

var allNodes = netip.IPv6LinkLocalAllNodes()

// replace makes list what is held, in the order of the addresses, and returns what was not held before. If the list may
// lack an entry, only those leave whose leave was seen.
func (m *Mirror) replace(list, late map[netip.Addr]bool) (joined []netip.Addr) {
	var left []netip.Addr
	for addr := range list {
		if m.held[addr].state == absent {
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
		m.set(addr, membership{})
	}
	for _, addr := range joined {
		m.set(addr, membership{anySource, unsure})
	}
	return joined
}

// interval is how long the list is good for without events.
func (m *Mirror) interval() time.Duration {
	if m.log == nil || m.older { // in its MLDv1 mode the kernel leaves without a Done what another node has reported last
		return resyncAlone
	}
	return resyncWithHints
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
	for _, file := range []*os.File{m.poll, m.sources} {
		if file != nil {
			err = errors.Join(err, file.Close())
		}
	}
	for _, conn := range []*netlink.Conn{m.log, m.conn} {
		if conn != nil {
			err = errors.Join(err, conn.Close())
		}
	}
	return err
}

// A header is what matters here of a netlink message's header.
type header struct {
	kind, flags uint16
	seq         uint32
}

func align(n int) int { return (n + 3) &^ 3 }

// attributes goes through the attributes at the end of a message.
func attributes(b []byte, found func(kind uint16, value []byte)) {
	for len(b) >= unix.SizeofRtAttr {
		n := int(binary.NativeEndian.Uint16(b))
		if n < unix.SizeofRtAttr || n > len(b) {
			return
		}
		found(binary.NativeEndian.Uint16(b[2:]), b[unix.SizeofRtAttr:n])
		b = b[min(align(n), len(b)):]
	}
}

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
