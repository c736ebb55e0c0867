package link_test

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"reflect"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/seed-aaab8e3a/cni-mld/mld"
	"github.com/seed-aaab8e3a/cni-mld/mld/link"
	"github.com/seed-aaab8e3a/cni-mld/netnslab"
)

func TestMain(m *testing.M) { netnslab.Main(m) }

const patience = 10 * time.Second

var group = netip.MustParseAddr("ff05::4321")

// open opens a Link on an endpoint. A test that waits in vain is ended by closing it.
func open(t *testing.T, e *netnslab.Endpoint) *link.Link {
	t.Helper()
	l, err := link.Open(e.Node().Netns(), e.Index())
	if err != nil {
		t.Fatal(err)
	}
	giveUp := time.AfterFunc(patience, func() {
		t.Errorf("nothing within %v", patience)
		l.Close()
	})
	t.Cleanup(func() {
		giveUp.Stop()
		if err := l.Close(); err != nil {
			t.Error(err)
		}
	})
	return l
}

// cable connects two nodes; the Link is to be on the second.
func cable(t *testing.T, options ...netnslab.LinkOption) (peer, e *netnslab.Endpoint) {
	t.Parallel()
	lab := netnslab.New(t)
	return lab.Veth(lab.Node("peer"), "eth0", lab.Node("pod"), "eth0", options...)
}

func query(src netip.Addr) []byte {
	return mld.AppendQuery(nil, src, mld.AllNodes, mld.Query{
		Version: mld.Version1, MulticastAddress: netip.IPv6Unspecified(), MaxResponseCode: 1000,
	})
}

// icmpv6 is a packet with an ICMPv6 message of the given type behind an extension header, which may be absent.
func icmpv6(kind byte, extension []byte) []byte {
	p := query(netip.MustParseAddr("fe80::1"))
	p = append(p[:40:40], append(extension, p[48:]...)...)
	p[6] = unix.IPPROTO_ICMPV6
	if len(extension) > 0 {
		p[6] = unix.IPPROTO_HOPOPTS
	}
	p[40+len(extension)] = kind
	binary.BigEndian.PutUint16(p[4:], uint16(len(p)-40))
	return p
}

// hopByHop is a Hop-by-Hop Options header of n octets before the given protocol.
func hopByHop(n int, next byte) []byte {
	h := make([]byte, n)
	h[0], h[1] = next, byte(n/8-1)
	copy(h[2:], []byte{5, 2, 0, 0})
	return h
}

func frame(dst, src net.HardwareAddr, etherType uint16, payload []byte) []byte {
	f := append(bytes.Clone(dst), src...)
	return append(binary.BigEndian.AppendUint16(f, etherType), payload...)
}

func TestReadPacketFilter(t *testing.T) {
	for _, hearKernel := range []bool{false, true} {
		t.Run(fmt.Sprintf("hear kernel %v", hearKernel), func(t *testing.T) { testReadPacketFilter(t, hearKernel) })
	}
}

func testReadPacketFilter(t *testing.T, hearKernel bool) {
	peer, host := cable(t)
	kernel := peer.LinkLocal()
	l := open(t, host)
	if hearKernel {
		if err := l.HearKernel(); err != nil {
			t.Fatal(err)
		}
	}
	self := host.LinkLocal()
	toGroup := net.HardwareAddr{0x33, 0x33, 0, 0, 0, 1}
	ours, theirs := host.HardwareAddr(), peer.HardwareAddr()
	other := net.HardwareAddr{2, 0, 0, 0, 0xaa, 0xaa}
	broadcast := net.HardwareAddr{0xff, 0xff, 0xff, 0xff, 0xff, 0xff}
	const ipv6, vlan = unix.ETH_P_IPV6, unix.ETH_P_8021Q
	const icmp, udp, fragment = unix.IPPROTO_ICMPV6, unix.IPPROTO_UDP, unix.IPPROTO_FRAGMENT
	hbh := hopByHop(8, icmp)

	if err := host.Node().Command(t.Context(), "ip", "link", "set", "eth0", "promisc", "on").Run(); err != nil {
		t.Fatal(err)
	}
	for _, test := range []struct {
		name      string
		rule      string
		frame     []byte
		passes    bool
		asUnicast bool
	}{
		{name: "query", frame: frame(toGroup, theirs, ipv6, icmpv6(130, hbh)), passes: true},
		{name: "report", frame: frame(toGroup, theirs, ipv6, icmpv6(131, hbh)), passes: true},
		{name: "done", frame: frame(toGroup, theirs, ipv6, icmpv6(132, hbh)), passes: true},
		{name: "version 2 report", frame: frame(toGroup, theirs, ipv6, icmpv6(143, hbh)), passes: true},
		{name: "broadcast", frame: frame(broadcast, theirs, ipv6, icmpv6(130, hbh)), passes: true},
		{name: "query without options", rule: "K25", frame: frame(toGroup, theirs, ipv6, icmpv6(130, nil)), passes: true},
		{name: "report without options", rule: "K25", frame: frame(toGroup, theirs, ipv6, icmpv6(131, nil)), passes: true},
		{name: "done without options", rule: "K25", frame: frame(toGroup, theirs, ipv6, icmpv6(132, nil)), passes: true},
		{name: "v2 report without options", rule: "K25", frame: frame(toGroup, theirs, ipv6, icmpv6(143, nil)), passes: true},
		{name: "16 octets of options", frame: frame(toGroup, theirs, ipv6, icmpv6(130, hopByHop(16, icmp))), passes: true},
		{name: "1024 octets of options", frame: frame(toGroup, theirs, ipv6, icmpv6(143, hopByHop(1024, icmp))), passes: true},
		{name: "to our address", rule: "B25", frame: frame(ours, theirs, ipv6, icmpv6(131, hbh)), passes: true, asUnicast: true},

		{name: "to another host", frame: frame(other, theirs, ipv6, icmpv6(131, hbh))},
		{name: "of another VLAN", frame: frame(toGroup, theirs, vlan, append([]byte{0, 7, 0x86, 0xdd}, icmpv6(130, hbh)...))},
		{name: "type 129", frame: frame(toGroup, theirs, ipv6, icmpv6(129, hbh))},
		{name: "router solicitation", frame: frame(toGroup, theirs, ipv6, icmpv6(133, nil))},
		{name: "router advertisement", frame: frame(toGroup, theirs, ipv6, icmpv6(134, nil))},
		{name: "neighbour solicitation", frame: frame(toGroup, theirs, ipv6, icmpv6(135, nil))},
		{name: "neighbour advertisement", frame: frame(toGroup, theirs, ipv6, icmpv6(136, nil))},
		{name: "type 133 with options", frame: frame(toGroup, theirs, ipv6, icmpv6(133, hbh))},
		{name: "type 142", frame: frame(toGroup, theirs, ipv6, icmpv6(142, hbh))},
		{name: "type 144", frame: frame(toGroup, theirs, ipv6, icmpv6(144, hbh))},
		{name: "type 0", frame: frame(toGroup, theirs, ipv6, icmpv6(0, nil))},
		{name: "UDP behind options", frame: frame(toGroup, theirs, ipv6, icmpv6(130, hopByHop(8, udp)))},
		{name: "fragment behind options", frame: frame(toGroup, theirs, ipv6, icmpv6(130, hopByHop(8, fragment)))},
		{name: "options behind the end", frame: frame(toGroup, theirs, ipv6, icmpv6(130, []byte{icmp, 255, 5, 2, 0, 0, 1, 0}))},
		{name: "options and nothing else", frame: frame(toGroup, theirs, ipv6, icmpv6(130, hbh)[:48])},
		{name: "IPv6 header and nothing else", frame: frame(toGroup, theirs, ipv6, icmpv6(130, hbh)[:40])},
		{name: "half an IPv6 header", frame: frame(toGroup, theirs, ipv6, icmpv6(130, hbh)[:20])},
		{name: "Ethernet header alone", frame: frame(toGroup, theirs, ipv6, nil)},
		{name: "IPv4", frame: frame(toGroup, theirs, unix.ETH_P_IP, icmpv6(130, hbh))},
	} {
		t.Run(test.name, func(t *testing.T) {
			peer.SendFrame(test.frame)
			sentinel := query(netip.MustParseAddr("fe80::5e:1"))
			peer.SendPacket(sentinel)
			var packet []byte
			unicast := false
			for {
				p, u, err := l.ReadPacket()
				if err != nil {
					t.Fatal(err)
				}
				if bytes.Equal(p, sentinel) {
					break
				}
				if bytes.Contains(p, kernel.AsSlice()) || bytes.Contains(p, self.AsSlice()) {
					continue // the kernels are listeners as well
				}
				packet, unicast = bytes.Clone(p), u
			}
			switch {
			case !test.passes && packet != nil:
				t.Fatalf("the filter passes %x", packet)
			case test.passes && !bytes.Equal(packet, test.frame[14:]):
				t.Fatalf("heard %x, sent %x", packet, test.frame[14:])
			case unicast != test.asUnicast:
				t.Fatalf("unicast is %v", unicast)
			}
		})
	}
}

func TestReadPacketUDP(t *testing.T) {
	peer, host := cable(t)
	l := open(t, host)
	peer.LinkLocal()
	peer.Send(group, 4321, []byte("data"), 3)
	sentinel := query(netip.MustParseAddr("fe80::5e:1"))
	peer.SendPacket(sentinel)
	for {
		p, _, err := l.ReadPacket()
		if err != nil {
			t.Fatal(err)
		}
		if bytes.Equal(p, sentinel) {
			return
		}
		if _, err := mld.Parse(p, mld.AcceptUnspecified); err != nil {
			t.Fatalf("heard %x: %v", p, err)
		}
	}
}

// A packet that is longer than the MTU was comes cut off; the codec then says what is wrong with it. With the state the
// room grows.
func TestReadPacketLargerMTU(t *testing.T) {
	peer, host := cable(t)
	l := open(t, host)
	for _, e := range []*netnslab.Endpoint{peer, host} {
		run(t, e, "ip", "link", "set", "eth0", "mtu", "9000")
	}
	long := append(query(netip.MustParseAddr("fe80::5e:1")), make([]byte, 8000)...)
	for _, want := range []struct {
		what   string
		octets func(int) bool
	}{
		{"cut off", func(n int) bool { return n >= 1500 && n < len(long) }},
		{"whole", func(n int) bool { return n == len(long) }},
	} {
		peer.SendPacket(long)
		for {
			p, _, err := l.ReadPacket()
			if err != nil {
				t.Fatal(err)
			}
			if len(p) < 1000 {
				continue // the kernels are listeners as well
			}
			if !want.octets(len(p)) {
				t.Fatalf("%d octets of %d: want it %s", len(p), len(long), want.what)
			}
			break
		}
		if _, err := l.State(); err != nil {
			t.Fatal(err)
		}
	}
}

func TestV1_25_OwnFramesAreNotHeard(t *testing.T) {
	peer, host := cable(t)
	l := open(t, host)
	capture := peer.Capture(netnslab.MLD)
	src := host.LinkLocal()
	if err := l.WritePacket(mld.AppendReport(nil, src, group)); err != nil {
		t.Fatal(err)
	}
	// The kernel of the same namespace joins, and by that also hears its own data.
	host.Join(netip.MustParseAddr("ff05::99"))
	capture.Wait(patience, "our report", func(f netnslab.Frame) bool { return f.ICMPv6() == 131 && f.Src() == src })
	capture.Wait(patience, "the kernel's report", func(f netnslab.Frame) bool { return f.ICMPv6() == 143 && f.Src() == src })

	sentinel := query(netip.MustParseAddr("fe80::5e:1"))
	peer.SendPacket(sentinel)
	for {
		p, _, err := l.ReadPacket()
		if err != nil {
			t.Fatal(err)
		}
		if bytes.Equal(p, sentinel) {
			return
		}
		if heard, _ := mld.Parse(p, 0); heard.Src == src {
			t.Fatalf("heard our own: %x", p)
		}
	}
}

// After HearKernel the kernel of the same namespace is heard, but not what it says from "::", and not we.
func TestHearKernel(t *testing.T) {
	t.Parallel()
	lab := netnslab.New(t)
	silent := lab.Node("peer")
	silent.SetSysctl("net/ipv6/conf/default/disable_ipv6", "1")
	// With DAD the kernel speaks from "::" first, and from its link-local address a second later.
	peer, host := lab.Veth(silent, "eth0", lab.Node("pod"), "eth0", netnslab.DAD)
	l := open(t, host)
	if err := l.HearKernel(); err != nil {
		t.Fatal(err)
	}
	capture := peer.Capture(netnslab.MLD)
	src := host.LinkLocal()
	if err := l.WritePacket(mld.AppendReport(nil, src, group)); err != nil {
		t.Fatal(err)
	}
	capture.Wait(patience, "our report", func(f netnslab.Frame) bool { return f.ICMPv6() == 131 && f.Src() == src })
	host.Join(netip.MustParseAddr("ff05::99"))
	capture.Wait(patience, "the kernel's report", func(f netnslab.Frame) bool {
		return f.ICMPv6() == 143 && bytes.Contains(f.Data, netip.MustParseAddr("ff05::99").AsSlice())
	})
	for {
		p, _, err := l.ReadPacket()
		if err != nil {
			t.Fatal(err)
		}
		m, err := mld.Parse(p, mld.AcceptUnspecified)
		switch {
		case err != nil || m.Src != src || m.Message.Type == mld.TypeReport: // ours is of version 1
			t.Fatalf("heard %v: %x, %v", m, p, err)
		case bytes.Contains(p, netip.MustParseAddr("ff05::99").AsSlice()):
			return
		}
	}
}

func TestWritePacket(t *testing.T) {
	peer, host := cable(t)
	l := open(t, host)
	capture := peer.Capture(netnslab.MLD)
	src := host.LinkLocal()
	report := mld.AppendReport(nil, src, group)
	if err := l.WritePacket(report); err != nil {
		t.Fatal(err)
	}
	got := capture.Wait(patience, "our report", func(f netnslab.Frame) bool { return f.ICMPv6() == 131 })
	want := frame(net.HardwareAddr{0x33, 0x33, 0, 0, 0x43, 0x21}, host.HardwareAddr(), unix.ETH_P_IPV6, report)
	if !bytes.Equal(got.Data, want) {
		t.Fatalf("sent %x, want %x", got.Data, want)
	}

	// After a change of the hardware address that Watch has told, frames come from the new one.
	if err := host.Node().Command(t.Context(), "ip", "link", "set", "eth0", "address", "02:00:00:00:be:ef").Run(); err != nil {
		t.Fatal(err)
	}
	for {
		s, err := l.Watch()
		if err != nil {
			t.Fatal(err)
		}
		if s.HardwareAddr.String() == "02:00:00:00:be:ef" {
			break
		}
	}
	if err := l.WritePacket(report); err != nil {
		t.Fatal(err)
	}
	got = capture.Wait(patience, "the second report", func(f netnslab.Frame) bool { return f.ICMPv6() == 131 })
	if mac := net.HardwareAddr(got.Data[6:12]).String(); mac != "02:00:00:00:be:ef" {
		t.Fatalf("sent from %s", mac)
	}
}

func TestWritePacketRefusals(t *testing.T) {
	_, host := cable(t)
	l := open(t, host)
	unicast := mld.AppendReport(nil, netip.MustParseAddr("fe80::1"), group)
	copy(unicast[24:], netip.MustParseAddr("fe80::2").AsSlice())
	for name, packet := range map[string][]byte{
		"nothing": nil, "short": make([]byte, 39), "unicast": unicast,
		"larger than the MTU": append(mld.AppendReport(nil, netip.MustParseAddr("fe80::1"), group), make([]byte, 1500)...),
	} {
		if err := l.WritePacket(packet); err == nil {
			t.Errorf("%s: no error", name)
		}
	}
	lo, err := link.Open(host.Node().Netns(), 1)
	if err != nil {
		t.Fatal(err)
	}
	defer lo.Close()
	if err := lo.WritePacket(mld.AppendReport(nil, netip.MustParseAddr("fe80::1"), group)); err == nil {
		t.Error("the loopback takes a packet")
	}
	if s, err := lo.State(); err != nil || s.Ethernet {
		t.Errorf("loopback: %+v, %v", s, err)
	}
}

// A macvlan takes in only the groups that somebody has asked for (S2), and a few more: its filter is a table of 256
// hashes. What two groups with one Ethernet address have asked for stays until both are done with it.
func TestReadPacketMacvlan(t *testing.T) {
	t.Parallel()
	lab := netnslab.New(t)
	peer, master := lab.Veth(lab.Node("peer"), "eth0", lab.Node("host-of-pod"), "eth0")
	pod := lab.Macvlan(master, lab.Node("pod"), "eth0")
	pod.LinkLocal() // so that the kernel has joined ff02::1, which the sentinel goes to
	l := open(t, pod)
	if s, err := l.State(); err != nil || !s.Ethernet || s.Kind != "macvlan" {
		t.Fatalf("%+v, %v", s, err)
	}
	const groups = 20
	group := func(scope, i byte) netip.Addr {
		return netip.AddrFrom16([16]byte{0: 0xff, 1: scope, 12: 0xab, 13: 0xcd, 14: 0xef, 15: i})
	}
	sentinel := query(netip.MustParseAddr("fe80::5e:1"))
	hears := func() (heard int) {
		t.Helper()
		for i := range byte(groups) {
			peer.SendPacket(mld.AppendReport(nil, netip.MustParseAddr("fe80::5e:2"), group(5, i)))
		}
		peer.SendPacket(sentinel)
		for {
			p, _, err := l.ReadPacket()
			if err != nil {
				t.Fatal(err)
			}
			if bytes.Equal(p, sentinel) {
				return heard
			}
			if m, err := mld.Parse(p, 0); err == nil && m.Message.Type == mld.TypeReport {
				heard++
			}
		}
	}
	each := func(change func(netip.Addr) error, scope byte) {
		t.Helper()
		for i := range byte(groups) {
			if err := change(group(scope, i)); err != nil {
				t.Fatal(err)
			}
		}
	}
	if n := hears(); n > groups/2 {
		t.Fatalf("%d of %d groups are heard that nobody has asked for", n, groups)
	}
	each(l.AddMembership, 5)
	each(l.AddMembership, 14)
	if n := hears(); n != groups {
		t.Fatalf("%d of %d groups are heard", n, groups)
	}
	each(l.DropMembership, 5)
	if n := hears(); n != groups {
		t.Fatalf("%d of %d groups are heard after one of two memberships was dropped", n, groups)
	}
	each(l.DropMembership, 14)
	if n := hears(); n > groups/2 {
		t.Fatalf("%d of %d groups are still heard", n, groups)
	}
}

// What comes in at a macvtap is taken by the program that has opened its tap, and shown before that only to a socket for
// every protocol. (No program can open one here: it takes a device file, which a user namespace cannot make.)
func TestMacvtap(t *testing.T) {
	t.Parallel()
	lab := netnslab.New(t)
	pod := lab.Node("pod")
	peer, _ := lab.Veth(lab.Node("peer"), "eth0", pod, "master")
	for _, args := range []string{"link add link master name tap0 type macvtap mode bridge", "link set tap0 up"} {
		if out, err := pod.Command(t.Context(), "ip", strings.Fields(args)...).CombinedOutput(); err != nil {
			t.Fatalf("ip %s: %v: %s", args, err, out)
		}
	}
	tap := pod.Interface("tap0")
	capture := peer.Capture(netnslab.MLD)
	l := open(t, tap)
	if err := l.WritePacket(mld.AppendReport(nil, tap.LinkLocal(), group)); err != nil {
		t.Fatal(err)
	}
	capture.Wait(patience, "our report", func(f netnslab.Frame) bool { return f.ICMPv6() == 131 })
	sentinel := query(netip.MustParseAddr("fe80::5e:1"))
	peer.SendPacket(sentinel)
	for {
		p, _, err := l.ReadPacket()
		if err != nil {
			t.Fatal(err)
		}
		if bytes.Equal(p, sentinel) {
			break
		}
		if m, err := mld.Parse(p, mld.AcceptUnspecified); err != nil || m.Src == tap.LinkLocal() {
			t.Fatalf("heard %v: %x, %v", m, p, err)
		}
	}
	out, err := pod.Command(t.Context(), "cat", "/proc/net/packet").Output()
	if err != nil {
		t.Fatal(err)
	}
	// sk RefCnt Type Proto Iface ...
	everything := fmt.Sprintf("0003   %d ", tap.Index())
	if !strings.Contains(string(out), everything) {
		t.Errorf("no socket for every protocol (%s):\n%s", everything, out)
	}
}

func TestNoAllocation(t *testing.T) {
	lab := netnslab.New(t) // alone: allocations are counted in the whole process
	peer, host := lab.Veth(lab.Node("peer"), "eth0", lab.Node("pod"), "eth0")
	l, other := open(t, host), open(t, peer)
	report := mld.AppendReport(nil, host.LinkLocal(), group)
	perPacket := testing.AllocsPerRun(1000, func() {
		if err := l.WritePacket(report); err != nil {
			t.Fatal(err)
		}
		for {
			p, _, err := other.ReadPacket()
			if err != nil {
				t.Fatal(err)
			}
			if bytes.Equal(p, report) {
				return
			}
		}
	})
	if perPacket != 0 {
		t.Fatalf("%v allocations for a packet sent and heard", perPacket)
	}
}

// TestLookup finds a veth by either handle, and its other end by what it leads to.
func TestLookup(t *testing.T) {
	lab := netnslab.New(t)
	pod, peer := lab.Veth(lab.Node("pod"), "eth0", lab.Node("node"), "veth0")
	links, err := link.OpenLookup(pod.Node().Netns())
	if err != nil {
		t.Fatal(err)
	}
	defer links.Close()
	byName, err := links.ByName("eth0")
	if err != nil {
		t.Fatal(err)
	}
	id, ok, err := links.NetnsID(peer.Node().Netns())
	if err != nil || !ok {
		t.Fatalf("number of the other end's namespace: %v, %v", ok, err)
	}
	if byName.Index != pod.Index() || byName.Name != "eth0" || byName.Kind != "veth" || byName.Parent != peer.Index() || byName.ParentNetns != id {
		t.Errorf("%+v, want index %d, parent %d in %d", byName, pod.Index(), peer.Index(), id)
	}
	if byIndex, err := links.ByIndex(pod.Index()); err != nil || !reflect.DeepEqual(byName, byIndex) {
		t.Errorf("by index: %+v, %v, want %+v", byIndex, err, byName)
	}
	if id, ok, err := links.NetnsID(lab.Node("unrelated").Netns()); ok || err != nil {
		t.Errorf("a namespace that nothing leads to: %d, %v, %v", id, ok, err)
	}
	_, err = links.ByName("eth1")
	for what, err := range map[string]error{"eth1": err, "index 4711": gone(links, 4711), "index 0": gone(links, 0), "index -1": gone(links, -1)} {
		if !errors.Is(err, link.ErrGone) {
			t.Errorf("%s: %v", what, err)
		}
	}
}

func gone(links *link.Lookup, index int) error {
	_, err := links.ByIndex(index)
	return err
}

func TestOpenNothing(t *testing.T) {
	_, host := cable(t)
	for _, index := range []int{4711, 0, -1} {
		if _, err := link.Open(host.Node().Netns(), index); !errors.Is(err, link.ErrGone) {
			t.Errorf("index %d: %v", index, err)
		}
	}
}

func TestClose(t *testing.T) {
	_, host := cable(t)
	l, err := link.Open(host.Node().Netns(), host.Index())
	if err != nil {
		t.Fatal(err)
	}
	if _, err := l.Watch(); err != nil {
		t.Fatal(err)
	}
	results := make(chan error, 2)
	go func() {
		for {
			if _, _, err := l.ReadPacket(); err != nil {
				results <- err
				return
			}
		}
	}()
	go func() {
		for {
			if _, err := l.Watch(); err != nil {
				results <- err
				return
			}
		}
	}()
	for range 3 {
		if err := l.Close(); err != nil {
			t.Fatal(err)
		}
	}
	for range 2 {
		select {
		case err := <-results:
			if !errors.Is(err, net.ErrClosed) {
				t.Errorf("%v, want net.ErrClosed", err)
			}
		case <-time.After(patience):
			t.Fatal("Close wakes nobody")
		}
	}
	if err := l.WritePacket(mld.AppendReport(nil, netip.MustParseAddr("fe80::1"), group)); !errors.Is(err, net.ErrClosed) {
		t.Errorf("WritePacket: %v", err)
	}
	if _, err := l.State(); !errors.Is(err, net.ErrClosed) {
		t.Errorf("State: %v", err)
	}
}

// A message leaves by the interface it is for, whatever the routes of the namespace say.
func TestK63_LeavesByItsInterface(t *testing.T) {
	t.Parallel()
	lab := netnslab.New(t)
	pod := lab.Node("pod")
	first, _ := lab.Veth(lab.Node("one"), "eth0", pod, "eth0")
	second, e := lab.Veth(lab.Node("two"), "eth0", pod, "eth1")
	l := open(t, e)
	capture := lab.Capture(netnslab.MLD, first, second)
	report := mld.AppendReport(nil, e.LinkLocal(), group)
	if err := l.WritePacket(report); err != nil {
		t.Fatal(err)
	}
	got := capture.Wait(patience, "the report", func(f netnslab.Frame) bool { return f.ICMPv6() == 131 && !f.Outgoing })
	if got.Endpoint != second {
		t.Errorf("the report left by %v", got.Endpoint.Peer())
	}
	// Had it left by the other one too, that would have been before this.
	first.Peer().SendPacket(query(netip.MustParseAddr("fe80::1")))
	capture.Wait(patience, "the sentinel", func(f netnslab.Frame) bool {
		if f.Endpoint == first && f.ICMPv6() == 131 {
			t.Errorf("the report left by eth0: %v", f)
		}
		return f.Endpoint == first && f.ICMPv6() == 130
	})
}

// The container's root may put a queue on the interface that lets hardly anything through. Whoever sends gets an error
// then, and does not wait.
func TestWritePacketDoesNotWait(t *testing.T) {
	_, e := cable(t)
	l := open(t, e) // which gives up after a while, and fails the test
	out, err := e.Node().Command(t.Context(), "tc", "qdisc", "add", "dev", "eth0", "root", "tbf",
		"rate", "1kbit", "burst", "2000", "limit", "10000000").CombinedOutput()
	if err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	report := mld.AppendReport(nil, e.LinkLocal(), group)
	for range 10000 {
		if err = l.WritePacket(report); err != nil {
			break
		}
	}
	if !errors.Is(err, unix.EAGAIN) {
		t.Errorf("got %v, want EAGAIN from a queue that is full", err)
	}
}
