package netnslab

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/mdlayher/socket"
	"golang.org/x/net/ipv6"
	"golang.org/x/sys/unix"
)

// udpSocket opens a socket of an ordinary application in the node, on port or, if that is 0, on any port.
func (n *Node) udpSocket(port uint16) (*ipv6.PacketConn, error) {
	var conn net.PacketConn
	err := n.Do(func() error {
		var err error
		conn, err = net.ListenUDP("udp6", &net.UDPAddr{IP: net.IPv6unspecified, Port: int(port)})
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("node %s: %w", n, err)
	}
	return ipv6.NewPacketConn(conn), nil
}

// A Membership is an application's socket that has joined a group, of any source or with a source filter.
type Membership struct {
	endpoint *Endpoint
	group    netip.Addr
	conn     *ipv6.PacketConn
	close    func() error
}

// newMembership makes the socket of a membership, which has not joined yet.
func (e *Endpoint) newMembership(group netip.Addr) *Membership {
	e.node.lab.tb.Helper()
	conn, err := e.node.udpSocket(0)
	e.must(err)
	m := &Membership{endpoint: e, group: group, conn: conn, close: sync.OnceValue(conn.Close)}
	e.node.lab.atEnd(func() { _ = m.close() })
	return m
}

// Join joins a group on the endpoint as an application does, of any source, and the node's kernel reports it. The
// membership ends with Close or with the test.
//
// The report leaves a moment after Join returns. Whoever sends to the group next waits until the bridge has its entry,
// by the Wait of [Endpoint.Port], or else the bridge, unless it floods, drops what is sent.
func (e *Endpoint) Join(group netip.Addr) *Membership {
	e.node.lab.tb.Helper()
	m := e.newMembership(group)
	if err := m.conn.JoinGroup(e.netInterface(), udpAddr(group)); err != nil {
		e.node.lab.fatalf("%s: join %s: %v", e, group, err)
	}
	return m
}

// JoinSource joins a group for one source on the endpoint (MCAST_JOIN_SOURCE_GROUP), as an application does for
// source-specific multicast; WaitFlows of [Endpoint.Port] waits for the bridge's entry. The membership ends with Close
// or with the test.
func (e *Endpoint) JoinSource(group, source netip.Addr) *Membership {
	e.node.lab.tb.Helper()
	m := e.newMembership(group)
	if err := m.AddSource(source); err != nil {
		e.node.lab.fatalf("%s: join %s of %s: %v", e, group, source, err)
	}
	return m
}

// AddSource adds a source to those that are wanted (MCAST_JOIN_SOURCE_GROUP). The errors of this and the following
// methods are the kernel's.
func (m *Membership) AddSource(source netip.Addr) error {
	return m.conn.JoinSourceSpecificGroup(m.endpoint.netInterface(), udpAddr(m.group), udpAddr(source))
}

// DropSource takes a source from those that are wanted (MCAST_LEAVE_SOURCE_GROUP). With the last one the group is left.
func (m *Membership) DropSource(source netip.Addr) error {
	return m.conn.LeaveSourceSpecificGroup(m.endpoint.netInterface(), udpAddr(m.group), udpAddr(source))
}

// Block adds a source to those that are not wanted (MCAST_BLOCK_SOURCE), after a join of any source.
func (m *Membership) Block(source netip.Addr) error {
	return m.conn.ExcludeSourceSpecificGroup(m.endpoint.netInterface(), udpAddr(m.group), udpAddr(source))
}

// Unblock takes a source from those that are not wanted (MCAST_UNBLOCK_SOURCE).
func (m *Membership) Unblock(source netip.Addr) error {
	return m.conn.IncludeSourceSpecificGroup(m.endpoint.netInterface(), udpAddr(m.group), udpAddr(source))
}

// SetFilter replaces the whole source filter (MCAST_MSFILTER): the sources are those wanted, or with exclude those not
// wanted. The group must be joined; without sources to include it is left.
func (m *Membership) SetFilter(exclude bool, sources ...netip.Addr) error {
	const mcastMSFilter, sockaddrLen, include = 48, 128, 1 // MCAST_MSFILTER, sockaddr_storage, MCAST_INCLUDE
	sockaddr := func(b []byte, a netip.Addr) []byte {
		b = binary.NativeEndian.AppendUint16(b, unix.AF_INET6)
		b = append(b, make([]byte, 6)...) // port and flow information
		b = append(b, a.AsSlice()...)
		return append(b, make([]byte, sockaddrLen-24)...)
	}
	mode := uint32(include)
	if exclude {
		mode = 0
	}
	b := binary.NativeEndian.AppendUint32(nil, uint32(m.endpoint.index))
	b = sockaddr(append(b, 0, 0, 0, 0), m.group)
	b = binary.NativeEndian.AppendUint32(b, mode)
	b = binary.NativeEndian.AppendUint32(b, uint32(len(sources)))
	for _, source := range sources {
		b = sockaddr(b, source)
	}
	raw, err := m.conn.PacketConn.(syscall.Conn).SyscallConn()
	if err != nil {
		return err
	}
	var failure error
	err = raw.Control(func(fd uintptr) {
		failure = unix.SetsockoptString(int(fd), unix.IPPROTO_IPV6, mcastMSFilter, string(b))
	})
	return errors.Join(err, failure)
}

// Close leaves the group. A second Close does nothing.
func (m *Membership) Close() error { return m.close() }

func udpAddr(addr netip.Addr) *net.UDPAddr { return &net.UDPAddr{IP: addr.AsSlice()} }

// netInterface is what golang.org/x/net/ipv6 takes for an interface; it uses the index alone.
func (e *Endpoint) netInterface() *net.Interface { return &net.Interface{Index: e.index, Name: e.name} }

// Send sends n UDP datagrams to a group from the endpoint. They are not looped back to its own node.
func (e *Endpoint) Send(group netip.Addr, port uint16, payload []byte, n int) {
	e.node.lab.tb.Helper()
	e.LinkLocal() // without a source address the kernel refuses
	conn, err := e.node.udpSocket(0)
	e.must(err)
	defer conn.Close()
	e.must(errors.Join(
		conn.SetMulticastInterface(e.netInterface()), conn.SetMulticastLoopback(false), conn.SetMulticastHopLimit(16)))
	to := &net.UDPAddr{IP: group.AsSlice(), Port: int(port)}
	for range n {
		_, err := conn.WriteTo(payload, nil, to)
		e.must(err)
	}
}

// A Receiver is an application that binds a port and joins nothing by itself: it receives a group if something
// else, such as [Endpoint.Join], has made its node a member. It counts what it receives by destination; by source, see
// [Frame.Src] of a [Capture].
type Receiver struct {
	endpoint *Endpoint
	port     uint16
	conn     *ipv6.PacketConn
	close    func() error
	reader   sync.WaitGroup

	mu      sync.Mutex
	counts  map[netip.Addr]int
	arrived chan struct{} // closed when a datagram comes
}

// Receive binds a UDP port in the node and counts what comes in at the endpoint until the end of the test.
func (e *Endpoint) Receive(port uint16) *Receiver {
	e.node.lab.tb.Helper()
	conn, err := e.node.udpSocket(port)
	e.must(err)
	r := &Receiver{
		endpoint: e, port: port, conn: conn, close: sync.OnceValue(conn.Close),
		counts: map[netip.Addr]int{}, arrived: make(chan struct{}),
	}
	e.node.lab.atEnd(func() { _ = r.Close() })
	e.must(conn.SetControlMessage(ipv6.FlagDst|ipv6.FlagInterface, true))
	r.reader.Go(r.read)
	return r
}

func (r *Receiver) read() {
	buf := make([]byte, 1<<16)
	for {
		_, cm, _, err := r.conn.ReadFrom(buf)
		if err != nil {
			return
		}
		if cm == nil || cm.IfIndex != r.endpoint.index {
			continue
		}
		to, _ := netip.AddrFromSlice(cm.Dst)
		r.mu.Lock()
		r.counts[to]++
		close(r.arrived)
		r.arrived = make(chan struct{})
		r.mu.Unlock()
	}
}

// Count is the number of datagrams to the group so far. That it is 0 proves something once a datagram that was
// sent later has come: send one to ff02::1, which every bridge floods, and wait for it on the same Receiver.
func (r *Receiver) Count(group netip.Addr) int {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.counts[group]
}

// Wait waits until n datagrams to the group have come, and fails the test if they do not.
func (r *Receiver) Wait(group netip.Addr, n int) {
	l := r.endpoint.node.lab
	l.tb.Helper()
	deadline := time.NewTimer(patience)
	defer deadline.Stop()
	for {
		r.mu.Lock()
		count, arrived := r.counts[group], r.arrived
		r.mu.Unlock()
		if count >= n {
			return
		}
		select {
		case <-arrived:
		case <-deadline.C:
			l.fatalf("%s port %d: %d datagrams to %s within %v, want %d%s",
				r.endpoint, r.port, count, group, patience, n, r.endpoint.notMember(group))
		}
	}
}

// notMember says that no socket has joined the group on the endpoint, if that is so: nothing is delivered then, not even
// what a bridge forwards for the report of somebody else.
func (e *Endpoint) notMember(group netip.Addr) string {
	var memberships []byte
	err := e.node.Do(func() (err error) {
		memberships, err = os.ReadFile("/proc/thread-self/net/igmp6") // index, name, group, and more
		return err
	})
	if err != nil {
		return ""
	}
	for line := range strings.Lines(string(memberships)) {
		f := strings.FieldsFunc(line, func(r rune) bool { return r == ' ' }) // the name may hold U+2003 and the like
		if len(f) > 2 && f[0] == strconv.Itoa(e.index) && f[2] == fmt.Sprintf("%x", group.AsSlice()) {
			return ""
		}
	}
	return "; no socket there has joined the group, see Endpoint.Join"
}

// Close gives the port back.
func (r *Receiver) Close() error {
	err := r.close()
	r.reader.Wait()
	return err
}

// SendPacket sends an IPv6 packet, from its header on and with a multicast destination, from the endpoint's MAC
// address. The kernel does not look at it: this is how a test plays a querier, or somebody broken. Package mld of this
// module makes such packets and reads those of [Frame.IPv6].
func (e *Endpoint) SendPacket(packet []byte) {
	e.node.lab.tb.Helper()
	if len(packet) < ipv6Header {
		e.node.lab.fatalf("%s: an IPv6 packet of %d bytes", e, len(packet))
	}
	to := netip.AddrFrom16([16]byte(packet[24:]))
	if !to.IsMulticast() {
		e.node.lab.fatalf("%s: packet to %s, which is not a group; use SendFrame", e, to)
	}
	frame := make([]byte, 0, ethernetHeader+len(packet))
	frame = append(frame, multicastMAC(to)...)
	frame = append(frame, e.mac...)
	frame = append(frame, 0x86, 0xdd)
	e.SendFrame(append(frame, packet...))
}

// SendFrame sends an Ethernet frame, from the destination MAC address on.
func (e *Endpoint) SendFrame(frame []byte) {
	e.node.lab.tb.Helper()
	conn, err := e.rawSocket()
	e.must(err)
	e.must(conn.Sendto(context.Background(), frame, 0, &unix.SockaddrLinklayer{Ifindex: e.index}))
}

// rawSocket is the endpoint's socket for sending; it stays open, because closing one takes long.
func (e *Endpoint) rawSocket() (*socket.Conn, error) {
	e.rawOnce.Do(func() {
		e.raw, e.rawErr = e.packetSocket(nil, 0) // no protocol: it hears nothing
		if e.rawErr == nil {
			e.node.lab.atEnd(func() { _ = e.raw.Close() })
		}
	})
	return e.raw, e.rawErr
}
