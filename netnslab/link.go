package netnslab

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"sync"
	"time"

	"github.com/mdlayher/socket"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/seed-aaab8e3a/cni-mld/mld/bridge"
)

// patience is the ceiling of every wait for something that is sure to come soon.
const patience = 10 * time.Second

// A LinkOption changes how [Bridge.Connect] and [Lab.Veth] make a link.
type LinkOption uint8

const (
	// DAD switches duplicate address detection on, on both ends. Without it an address is valid at once.
	DAD LinkOption = iota + 1
	// Down leaves the link administratively down, to be brought up by [Endpoint.SetUp].
	Down
	// FastLeave makes the bridge port drop a group at once when it is left.
	FastLeave
)

// An Endpoint is one end of a link: an interface in a node. The MAC address is 02:00:00:00:NN:EE, with the
// numbers of node and endpoint in the order they were made, and the link-local address fe80::ff:fe00:NNEE
// follows from it.
type Endpoint struct {
	node  *Node
	name  string
	index int
	mac   net.HardwareAddr
	peer  *Endpoint
	dad   bool // its addresses are checked for duplicates

	portOnce sync.Once
	port     *bridge.Port
	portErr  error

	rawOnce sync.Once
	raw     *socket.Conn // for sending frames
	rawErr  error
}

// Node is where the interface is.
func (e *Endpoint) Node() *Node { return e.node }

// Name is the interface's name.
func (e *Endpoint) Name() string { return e.name }

// String is node and interface, as captures name it: "alice:eth0".
func (e *Endpoint) String() string { return e.node.name + ":" + e.name }

// Index is the interface's index within its node.
func (e *Endpoint) Index() int { return e.index }

// HardwareAddr is the MAC address.
func (e *Endpoint) HardwareAddr() net.HardwareAddr { return e.mac }

// Peer is the other end of the cable; nil for a bridge and for a macvlan.
func (e *Endpoint) Peer() *Endpoint { return e.peer }

// Veth connects two nodes by a cable; it works when Veth returns.
func (l *Lab) Veth(a *Node, aName string, b *Node, bName string, options ...LinkOption) (*Endpoint, *Endpoint) {
	l.tb.Helper()
	ea, eb, err := l.veth(a, aName, b, bName)
	if err == nil {
		err = errors.Join(ea.configure(options), eb.configure(options))
	}
	if err != nil {
		l.fatalf("link %s:%s to %s:%s: %v", a, aName, b, bName, err)
	}
	if !slices.Contains(options, Down) {
		ea.waitUp()
		eb.waitUp()
	}
	return ea, eb
}

// veth makes a pair whose ends are born in their namespaces under their names: there is no moment at which they
// are elsewhere or called something else.
func (l *Lab) veth(a *Node, aName string, b *Node, bName string) (*Endpoint, *Endpoint, error) {
	l.tb.Helper()
	ea, eb := a.newEndpoint(aName), b.newEndpoint(bName)
	ea.peer, eb.peer = eb, ea
	attrs := netlink.NewLinkAttrs()
	attrs.Name, attrs.HardwareAddr = aName, ea.mac
	err := a.links.LinkAdd(&netlink.Veth{
		LinkAttrs: attrs, PeerName: bName, PeerHardwareAddr: eb.mac,
		PeerNamespace: netlink.NsFd(int(b.ns.File().Fd())),
	})
	if err != nil {
		return nil, nil, err
	}
	return ea, eb, errors.Join(ea.find(), eb.find())
}

// Macvlan gives a node an interface that shares the cable of another, its master, in mode bridge. The master may be in
// another node, and is no port of a bridge.
func (l *Lab) Macvlan(master *Endpoint, n *Node, name string, options ...LinkOption) *Endpoint {
	l.tb.Helper()
	e := n.newEndpoint(name)
	attrs := netlink.NewLinkAttrs()
	attrs.Name, attrs.HardwareAddr, attrs.ParentIndex = name, e.mac, master.index
	attrs.Namespace = netlink.NsFd(int(n.ns.File().Fd()))
	err := master.node.links.LinkAdd(&netlink.Macvlan{LinkAttrs: attrs, Mode: netlink.MACVLAN_MODE_BRIDGE})
	if err == nil {
		err = e.find()
	}
	if err == nil {
		err = e.configure(options)
	}
	if err != nil {
		l.fatalf("macvlan %s:%s on %s: %v", n, name, master, err)
	}
	if !slices.Contains(options, Down) {
		e.waitUp()
	}
	return e
}

// newEndpoint gives the next endpoint of a node its addresses.
func (n *Node) newEndpoint(name string) *Endpoint {
	n.lab.tb.Helper()
	if len(name) >= unix.IFNAMSIZ {
		n.lab.fatalf("%s:%s: an interface's name has at most %d octets", n, name, unix.IFNAMSIZ-1)
	}
	n.lab.mu.Lock()
	defer n.lab.mu.Unlock()
	number := len(n.endpoints) + 1
	e := &Endpoint{node: n, name: name, mac: net.HardwareAddr{
		0x02, byte(number >> 8), 0, byte(n.number >> 8), byte(n.number), byte(number),
	}}
	n.endpoints = append(n.endpoints, e)
	return e
}

// find looks up the index of an interface that has just been made.
func (e *Endpoint) find() error {
	link, err := e.node.links.LinkByName(e.name)
	if err != nil {
		return fmt.Errorf("%s: %w", e, err)
	}
	e.index = link.Attrs().Index
	return nil
}

// Interface is the endpoint of an interface that somebody else has made in the node, such as a CNI plugin. If its
// other end is in the host's namespace, that is its peer. The interface stays its maker's to remove.
func (n *Node) Interface(name string) *Endpoint {
	n.lab.tb.Helper()
	e := &Endpoint{node: n, name: name}
	if err := e.adopt(); err != nil {
		n.lab.fatalf("%v", err)
	}
	return e
}

// adopt looks up an interface that is there already, and its peer on the host.
func (e *Endpoint) adopt() error {
	link, err := e.node.links.LinkByName(e.name)
	if err != nil {
		return fmt.Errorf("%s: %w", e, err)
	}
	e.index, e.mac = link.Attrs().Index, link.Attrs().HardwareAddr
	host := e.node.lab.Host()
	other, err := host.links.LinkByIndex(link.Attrs().ParentIndex)
	if err == nil && link.Type() == "veth" && other.Type() == "veth" && other.Attrs().ParentIndex == e.index {
		e.peer = &Endpoint{
			node: host, name: other.Attrs().Name, index: other.Attrs().Index, mac: other.Attrs().HardwareAddr, peer: e,
		}
	}
	return nil
}

// configure applies the options that concern an interface by itself and brings it up.
func (e *Endpoint) configure(options []LinkOption) error {
	up := true
	for _, o := range options {
		switch o {
		case DAD:
			e.dad = true
			if err := e.node.writeSysctl("net/ipv6/conf/"+e.name+"/accept_dad", "1"); err != nil {
				return err
			}
		case Down:
			up = false
		}
	}
	if !up {
		return nil
	}
	return e.setUp(true)
}

// waitUp waits until frames can be sent: the kernel turns an interface on a moment after both ends are up.
func (e *Endpoint) waitUp() {
	e.node.lab.tb.Helper()
	WaitFor(e.node.lab.tb, e.String()+": link up", patience, func() (bool, string) {
		link, err := e.node.links.LinkByIndex(e.index)
		if err != nil {
			return false, err.Error()
		}
		return link.Attrs().OperState == netlink.OperUp, "operational state " + link.Attrs().OperState.String()
	}, e.node)
}

// link is what the requests of vishvananda/netlink take for an interface. It names it by index alone, because a
// test may have renamed it.
func (e *Endpoint) link() netlink.Link {
	return &netlink.Device{LinkAttrs: netlink.LinkAttrs{Index: e.index}}
}

func (e *Endpoint) setUp(up bool) error {
	set := e.node.links.LinkSetUp
	if !up {
		set = e.node.links.LinkSetDown
	}
	if err := set(e.link()); err != nil {
		return fmt.Errorf("%s: %w", e, err)
	}
	return nil
}

// SetUp brings the interface up. It does not wait until the link works, which takes both ends; LinkLocal does.
func (e *Endpoint) SetUp() { e.node.lab.tb.Helper(); e.must(e.setUp(true)) }

// SetDown brings the interface down. Its peer loses the carrier, so to take that from an endpoint, its Peer goes down.
func (e *Endpoint) SetDown() { e.node.lab.tb.Helper(); e.must(e.setUp(false)) }

// Delete removes the interface, and with it its peer.
func (e *Endpoint) Delete() {
	e.node.lab.tb.Helper()
	e.must(e.node.links.LinkDel(e.link()))
}

// AddAddr adds an address. It is valid at once, unless the link was made with DAD.
func (e *Endpoint) AddAddr(prefix netip.Prefix) {
	e.node.lab.tb.Helper()
	addr := addrOf(prefix)
	if !e.dad { // else it would be tentative until the kernel has found that there is nothing to detect
		addr.Flags = unix.IFA_F_NODAD
	}
	e.must(e.node.links.AddrAdd(e.link(), addr))
}

// DelAddr removes an address.
func (e *Endpoint) DelAddr(prefix netip.Prefix) {
	e.node.lab.tb.Helper()
	e.must(e.node.links.AddrDel(e.link(), addrOf(prefix)))
}

func addrOf(prefix netip.Prefix) *netlink.Addr {
	ip := prefix.Addr()
	return &netlink.Addr{IPNet: &net.IPNet{
		IP: ip.AsSlice(), Mask: net.CIDRMask(prefix.Bits(), ip.BitLen()),
	}}
}

// must fails the test if err is not nil.
func (e *Endpoint) must(err error) {
	if err != nil {
		e.node.lab.tb.Helper()
		e.node.lab.fatalf("%s: %v", e, err)
	}
}

// LinkLocal is the interface's link-local address. It waits until there is one that may be used as a source:
// link up, not tentative, no duplicate.
func (e *Endpoint) LinkLocal() netip.Addr {
	e.node.lab.tb.Helper()
	var addr netip.Addr
	WaitFor(e.node.lab.tb, e.String()+": a valid link-local address", patience, func() (bool, string) {
		var state string
		addr, state = e.linkLocal()
		return addr.IsValid(), state
	}, e.node)
	return addr
}

func (e *Endpoint) linkLocal() (netip.Addr, string) {
	addrs, err := e.node.links.AddrList(e.link(), unix.AF_INET6)
	if err != nil {
		return netip.Addr{}, err.Error()
	}
	const unusable = unix.IFA_F_TENTATIVE | unix.IFA_F_DADFAILED
	for _, a := range addrs {
		addr, ok := netip.AddrFromSlice(a.IP)
		if ok && addr.IsLinkLocalUnicast() && !addr.Is4In6() && a.Flags&unusable == 0 {
			return addr, ""
		}
	}
	link, err := e.node.links.LinkByIndex(e.index)
	if err != nil {
		return netip.Addr{}, err.Error()
	}
	return netip.Addr{}, fmt.Sprintf("the link is %s, its IPv6 addresses are %v", link.Attrs().OperState, addrs)
}

// Port is the bridge's view of this endpoint: of the port that its peer on the host is. It fails the test if
// the peer is no bridge port.
func (e *Endpoint) Port() *bridge.Port {
	l := e.node.lab
	l.tb.Helper()
	if e.peer == nil {
		l.fatalf("%s: has no peer that could be a bridge port", e)
	}
	e.portOnce.Do(func() {
		e.port, e.portErr = bridge.FindPort(e.peer.node.ns, e.peer.index)
		if e.portErr == nil {
			l.atEnd(func() { _ = e.port.Close() })
		}
	})
	e.must(e.portErr)
	return e.port
}
