package netnslab

import (
	"cmp"
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"time"

	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"

	"github.com/seed-aaab8e3a/cni-mld/mld/bridge"
)

// BridgeOptions is how a bridge is made. The zero value is a snooping bridge without a querier, which therefore
// floods (B1), with the kernel's defaults. Times are in steps of 10 ms; the kernel raises the two query
// intervals to a second.
type BridgeOptions struct {
	// Querier makes the bridge a querier of MLD version 1 or 2, and gives the intervals left at zero the values
	// of a lab: a query every 4 s, after one more in the first second, to be answered within 1 s. Zero means no
	// querier; snooping is of version 1 then.
	Querier int

	QueryInterval         time.Duration
	QueryResponseInterval time.Duration // also how long a bridge floods after a querier appeared (B2)
	StartupQueryInterval  time.Duration
	StartupQueryCount     int
	LastMemberInterval    time.Duration // between the queries after a leave
	LastMemberCount       int
	MembershipInterval    time.Duration // until an entry ages
	QuerierInterval       time.Duration // until another querier is taken for dead

	NoSnooping    bool // a plain bridge
	HashMax       int  // entries of the MDB; one more and snooping goes off (B19)
	VLANFiltering bool // the kernel must be built with it
}

// A Bridge is a bridge in a node, mostly the host, and that node's own endpoint on it.
type Bridge struct {
	*Endpoint
	options BridgeOptions
}

// Bridge makes a bridge in the host's namespace, see [Lab.BridgeIn].
func (l *Lab) Bridge(name string, options BridgeOptions) *Bridge {
	l.tb.Helper()
	return l.BridgeIn(l.Host(), name, options)
}

// BridgeIn makes a bridge in a node and brings it up. It has a link-local address from the start, although an
// interface without a carrier has none otherwise, so its querier begins at once (B3).
func (l *Lab) BridgeIn(n *Node, name string, options BridgeOptions) *Bridge {
	l.tb.Helper()
	b := &Bridge{Endpoint: n.newEndpoint(name), options: options}
	err := b.create()
	if err == nil && options.Querier != 0 {
		// There is no port yet to hear the first query, so it can ask for an answer within 10 ms, and with that
		// the flooding of a new querier (B2) is over as soon.
		err = b.enableQuerier(options.Querier, 10*time.Millisecond)
	}
	if err != nil {
		l.fatalf("bridge %s: %v", name, err)
	}
	return b
}

func (b *Bridge) create() error {
	o := b.options
	data := bridgeData{}
	data.flag(nl.IFLA_BR_MCAST_SNOOPING, !o.NoSnooping)
	data.flag(nl.IFLA_BR_MCAST_STATS_ENABLED, true)
	if o.VLANFiltering {
		data.flag(nl.IFLA_BR_VLAN_FILTERING, true) // a kernel built without refuses even a zero
	}
	data.interval(nl.IFLA_BR_MCAST_QUERY_INTVL, o.QueryInterval)
	data.interval(nl.IFLA_BR_MCAST_QUERY_RESPONSE_INTVL, o.QueryResponseInterval)
	data.interval(nl.IFLA_BR_MCAST_STARTUP_QUERY_INTVL, o.StartupQueryInterval)
	data.interval(nl.IFLA_BR_MCAST_LAST_MEMBER_INTVL, o.LastMemberInterval)
	data.interval(nl.IFLA_BR_MCAST_MEMBERSHIP_INTVL, o.MembershipInterval)
	data.interval(nl.IFLA_BR_MCAST_QUERIER_INTVL, o.QuerierInterval)
	data.count(nl.IFLA_BR_MCAST_STARTUP_QUERY_CNT, o.StartupQueryCount)
	data.count(nl.IFLA_BR_MCAST_LAST_MEMBER_CNT, o.LastMemberCount)
	data.count(nl.IFLA_BR_MCAST_HASH_MAX, o.HashMax)
	if err := b.request(unix.NLM_F_CREATE|unix.NLM_F_EXCL, data); err != nil {
		return err
	}
	if err := b.find(); err != nil {
		return err
	}
	if err := b.setUp(true); err != nil {
		return err
	}
	addr := addrOf(netip.PrefixFrom(b.eui64(), 64))
	addr.Flags = unix.IFA_F_NODAD
	return b.node.links.AddrAdd(b.link(), addr)
}

// eui64 is the link-local address that follows from the MAC address (RFC 4291 appendix A).
func (e *Endpoint) eui64() netip.Addr {
	m := e.mac
	return netip.AddrFrom16([16]byte{
		0: 0xfe, 1: 0x80, 8: m[0] ^ 2, 9: m[1], 10: m[2], 11: 0xff, 12: 0xfe, 13: m[3], 14: m[4], 15: m[5],
	})
}

// EnableQuerier makes the bridge a querier of MLD version 1 or 2, with the intervals of [BridgeOptions]. It floods
// for one query response interval more, see [Bridge.WaitQuerying].
func (b *Bridge) EnableQuerier(version int) {
	b.node.lab.tb.Helper()
	b.must(b.enableQuerier(version, b.responseInterval()))
}

func (b *Bridge) responseInterval() time.Duration {
	return cmp.Or(b.options.QueryResponseInterval, time.Second)
}

// enableQuerier turns the querier on with a response interval of flooding and then sets the one that is wanted.
func (b *Bridge) enableQuerier(version int, flooding time.Duration) error {
	if version != 1 && version != 2 {
		return fmt.Errorf("querier of MLD version %d: want 1 or 2", version)
	}
	settings, querier, response := bridgeData{}, bridgeData{}, bridgeData{}
	settings.byte(nl.IFLA_BR_MCAST_MLD_VERSION, byte(version))
	settings.interval(nl.IFLA_BR_MCAST_QUERY_INTVL, cmp.Or(b.options.QueryInterval, 4*time.Second))
	settings.interval(nl.IFLA_BR_MCAST_STARTUP_QUERY_INTVL, cmp.Or(b.options.StartupQueryInterval, time.Second))
	settings.interval(nl.IFLA_BR_MCAST_QUERY_RESPONSE_INTVL, flooding)
	querier.flag(nl.IFLA_BR_MCAST_QUERIER, true)
	response.interval(nl.IFLA_BR_MCAST_QUERY_RESPONSE_INTVL, b.responseInterval())
	// One request each: within a request the kernel turns the querier on before it sets the intervals.
	for _, data := range []bridgeData{settings, querier, response} {
		if err := b.request(0, data); err != nil {
			return err
		}
	}
	return nil
}

// DisableQuerier ends the bridge's own querying.
func (b *Bridge) DisableQuerier() {
	b.node.lab.tb.Helper()
	data := bridgeData{}
	data.flag(nl.IFLA_BR_MCAST_QUERIER, false)
	b.must(b.request(0, data))
}

// Connect gives a node an interface with the name ifname whose other end is a port of the bridge. Frames pass when
// it returns. The port is named after the node if that is free. It has no IPv6 address: it would be one more listener in
// every capture (B22).
func (b *Bridge) Connect(n *Node, ifname string, options ...LinkOption) *Endpoint {
	b.node.lab.tb.Helper()
	e, err := b.connect(n, ifname, options)
	if err != nil {
		b.node.lab.fatalf("connect %s:%s to bridge %s: %v", n, ifname, b.name, err)
	}
	if !slices.Contains(options, Down) {
		e.waitUp()
		e.peer.waitUp()
		b.waitForwarding(e)
	}
	return e
}

func (b *Bridge) connect(n *Node, ifname string, options []LinkOption) (*Endpoint, error) {
	host := b.node
	host.lab.tb.Helper()
	port, e, err := host.lab.veth(host, host.portName(n), n, ifname)
	if err != nil {
		return nil, err
	}
	if err := host.writeSysctl("net/ipv6/conf/"+port.name+"/disable_ipv6", "1"); err != nil {
		return nil, err
	}
	if err := host.links.LinkSetMasterByIndex(port.link(), b.index); err != nil {
		return nil, fmt.Errorf("%s: %w", port, err)
	}
	for _, o := range options {
		if o == FastLeave {
			if err := host.links.LinkSetFastLeave(port.link(), true); err != nil {
				return nil, fmt.Errorf("%s: fast leave: %w", port, err)
			}
		}
	}
	return e, errors.Join(port.setUp(true), e.configure(options))
}

// waitForwarding waits until the port of an endpoint passes frames.
func (b *Bridge) waitForwarding(e *Endpoint) {
	b.node.lab.tb.Helper()
	port, err := bridge.FindPort(b.node.ns, e.peer.index)
	b.must(err)
	defer port.Close()
	WaitFor(b.node.lab.tb, port.String()+": forwarding", patience, func() (bool, string) {
		state, err := port.State()
		return err == nil && state.Forwarding, fmt.Sprintf("%+v, %v", state, err)
	}, b.node)
}

// portName is a name for the host's end of a link to n: short enough for an interface and not taken.
func (n *Node) portName(far *Node) string {
	n.lab.mu.Lock()
	defer n.lab.mu.Unlock()
	name := far.name
	if len(name) >= unix.IFNAMSIZ {
		name = fmt.Sprintf("node%d", far.number)
	}
	stem := name
	for i := 2; n.has(name); i++ {
		suffix := fmt.Sprintf("-%d", i)
		name = stem[:min(len(stem), unix.IFNAMSIZ-1-len(suffix))] + suffix
	}
	return name
}

func (n *Node) has(ifname string) bool {
	for _, e := range n.endpoints {
		if e.name == ifname {
			return true
		}
	}
	return false
}

// request sends RTM_NEWLINK for the bridge with what vishvananda/netlink cannot say.
func (b *Bridge) request(flags int, data bridgeData) error {
	req := nl.NewNetlinkRequest(unix.RTM_NEWLINK, flags|unix.NLM_F_ACK)
	msg := nl.NewIfInfomsg(unix.AF_UNSPEC)
	msg.Index = int32(b.index)
	req.AddData(msg)
	if b.index == 0 {
		req.AddData(nl.NewRtAttr(unix.IFLA_IFNAME, nl.ZeroTerminated(b.name)))
		req.AddData(nl.NewRtAttr(unix.IFLA_ADDRESS, b.mac))
	}
	info := nl.NewRtAttr(unix.IFLA_LINKINFO, nil)
	info.AddRtAttr(unix.IFLA_INFO_KIND, nl.NonZeroTerminated("bridge"))
	attrs := info.AddRtAttr(unix.IFLA_INFO_DATA, nil)
	for _, a := range data {
		attrs.AddRtAttr(a.kind, a.value)
	}
	req.AddData(info)
	return b.node.Do(func() error {
		_, err := req.Execute(netlinkRoute, 0)
		return err
	})
}

// bridgeData collects the attributes of a bridge; what is zero is left to the kernel.
type bridgeData []struct {
	kind  int
	value []byte
}

func (d *bridgeData) add(kind int, value []byte) {
	*d = append(*d, struct {
		kind  int
		value []byte
	}{kind, value})
}

func (d *bridgeData) byte(kind int, value byte) { d.add(kind, []byte{value}) }

func (d *bridgeData) flag(kind int, on bool) {
	if on {
		d.byte(kind, 1)
	} else {
		d.byte(kind, 0)
	}
}

func (d *bridgeData) count(kind, value int) {
	if value != 0 {
		d.add(kind, binary.NativeEndian.AppendUint32(nil, uint32(value)))
	}
}

// interval adds a time, which the kernel takes in hundredths of a second.
func (d *bridgeData) interval(kind int, value time.Duration) {
	if value != 0 {
		d.add(kind, binary.NativeEndian.AppendUint64(nil, uint64(value/(10*time.Millisecond))))
	}
}
