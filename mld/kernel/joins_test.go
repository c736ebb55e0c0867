package kernel_test

import (
	"bytes"
	"encoding/hex"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
	"github.com/mdlayher/netlink"
	"golang.org/x/net/ipv6"
	"golang.org/x/sys/unix"

	"github.com/seed-aaab8e3a/cni-mld/mld"
	"github.com/seed-aaab8e3a/cni-mld/mld/kernel"
	"github.com/seed-aaab8e3a/cni-mld/mld/netns"
	"github.com/seed-aaab8e3a/cni-mld/netnslab"
)

func TestJoins(t *testing.T) {
	t.Parallel()
	e := pod(t)
	j := newJoins(t, e)
	all := addrs(3000) // more than one socket holds
	for range 2 {
		for _, addr := range all {
			if err := j.Join(addr); err != nil {
				t.Fatal(err)
			}
		}
	}
	joined := func() (n int) {
		list := igmp6(t, e.Node(), e.Index())
		for _, addr := range all {
			if list[addr] {
				n++
			}
		}
		return n
	}
	if n := joined(); n != 3000 {
		t.Fatalf("%d of 3000 joined", n)
	}
	// Room that has become free is used again.
	for part := range slices.Chunk(all, 1000) {
		for _, addr := range part {
			if err := j.Leave(addr); err != nil {
				t.Fatal(err)
			}
		}
		if n := joined(); n != 2000 {
			t.Fatalf("%d joined, want 2000", n)
		}
		if list := j.Joined(); len(list) != 2000 || !slices.IsSortedFunc(list, netip.Addr.Compare) || slices.Contains(list, part[0]) {
			t.Errorf("%d are listed, want the 2000 that are joined, in order", len(list))
		}
		for _, addr := range part {
			if err := j.Join(addr); err != nil {
				t.Fatal(err)
			}
		}
	}
	if n := joined(); n != 3000 {
		t.Fatalf("%d of 3000 joined", n)
	}
	if n := j.Sockets(); n != 2 {
		t.Errorf("on %d sockets, want 2", n)
	}
	if err := j.Leave(netip.MustParseAddr("ff05::ffff")); err != nil {
		t.Errorf("leave what is not joined: %v", err)
	}
	for range 2 {
		if err := j.Close(); err != nil {
			t.Fatal(err)
		}
	}
	// A process that a test beside this one is starting may hold a copy of the sockets for a moment.
	netnslab.WaitFor(t, "everything to be left", patience, func() (bool, string) {
		n := joined()
		return n == 0, fmt.Sprintf("%d still joined after Close", n)
	}, e.Node())
	for _, err := range []error{j.Join(group), j.Leave(group)} {
		if !errors.Is(err, net.ErrClosed) {
			t.Errorf("after Close: %v", err)
		}
	}
}

func TestJoinsErrors(t *testing.T) {
	t.Parallel()
	e := pod(t)
	j := newJoins(t, e)
	for _, addr := range []string{"fe80::1", "224.0.0.1", "::", "::ffff:224.0.0.1"} {
		if err := j.Join(netip.MustParseAddr(addr)); err == nil || !strings.Contains(err.Error(), addr) {
			t.Errorf("%s: %v", addr, err)
		}
	}
	if err := j.Join(netip.Addr{}); err == nil {
		t.Error("no address: no error")
	}

	run(t, e.Node(), "ip", "link", "set", "eth0", "mtu", "1000")
	err := j.Join(group)
	for _, word := range []string{"eth0", "ff05::4321", "net.ipv6.conf.eth0.disable_ipv6"} {
		if err == nil || !strings.Contains(err.Error(), word) {
			t.Errorf("without IPv6: %v, which does not name %s", err, word)
		}
	}
	run(t, e.Node(), "ip", "link", "set", "eth0", "mtu", "1500")
	e.Node().SetSysctl("net/ipv6/conf/eth0/disable_ipv6", "1")
	t.Log("disable_ipv6:", j.Join(group))

	gone := kernel.NewJoins(e.Node().Netns(), 4711, nil)
	defer gone.Close()
	if err := gone.Join(group); err == nil || !strings.Contains(err.Error(), "4711") {
		t.Errorf("no such interface: %v", err)
	}
}

// Leaving does not complain when the interface has lost the address before.
func TestJoinsLeaveAfterLoss(t *testing.T) {
	t.Parallel()
	e := pod(t)
	j := newJoins(t, e)
	for _, addr := range addrs(10) {
		if err := j.Join(addr); err != nil {
			t.Fatal(err)
		}
	}
	run(t, e.Node(), "ip", "link", "set", "eth0", "mtu", "1000")
	if err := j.Leave(addrs(10)[0]); err != nil {
		t.Error(err)
	}
	e.Delete()
	if err := j.Leave(addrs(10)[1]); err != nil {
		t.Error(err)
	}
}

// filtersOf reads the kernel's own list of an interface's source filters: for each source of an address by how many
// sockets it is included and excluded.
func filtersOf(t *testing.T, n *netnslab.Node, index int) map[netip.Addr]map[netip.Addr][2]int {
	t.Helper()
	var b []byte
	err := n.Do(func() error {
		// The list lacks an interface where the address that was joined last has no sources.
		last, err := net.ListenPacket("udp6", "[::]:0")
		if err != nil {
			return err
		}
		defer last.Close()
		err = ipv6.NewPacketConn(last).JoinSourceSpecificGroup(&net.Interface{Index: index},
			&net.UDPAddr{IP: net.ParseIP("ff35::8000:ffff")}, &net.UDPAddr{IP: net.ParseIP("fd00::ffff")})
		if err != nil {
			return err
		}
		b, err = os.ReadFile("/proc/thread-self/net/mcfilter6")
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	filters := map[netip.Addr]map[netip.Addr][2]int{}
	for line := range strings.Lines(string(b)) {
		var device, group, source string
		var ifindex int
		var count [2]int
		if _, err := fmt.Sscan(line, &ifindex, &device, &group, &source, &count[0], &count[1]); err != nil || ifindex != index {
			continue // another interface's, or the heading: Idx Device Multicast-Address Source-Address INC EXC
		}
		addr := addrOfHex(t, group)
		if filters[addr] == nil {
			filters[addr] = map[netip.Addr][2]int{}
		}
		filters[addr][addrOfHex(t, source)] = count
	}
	return filters
}

func addrOfHex(t *testing.T, text string) netip.Addr {
	t.Helper()
	b, err := hex.DecodeString(text)
	if err != nil || len(b) != 16 {
		t.Fatalf("%q is no address: %v", text, err)
	}
	return netip.AddrFrom16([16]byte(b))
}

func sourcesOf(n int) []netip.Addr {
	list := make([]netip.Addr, n)
	for i := range list {
		list[i] = netip.AddrFrom16([16]byte{0: 0xfd, 14: byte(i >> 8), 15: byte(i)})
	}
	return list
}

// Each join of an address replaces the filter of the one before. The oracle is /proc/net/mcfilter6, and for EXCLUDE({}),
// which it does not tell from INCLUDE({}), what the kernel lets through.
func TestV2_71_JoinsWithSources(t *testing.T) {
	t.Parallel()
	lab := netnslab.New(t)
	peer, e := lab.Veth(lab.Node("peer"), "eth0", lab.Node("pod"), "eth0")
	j := newJoins(t, e)
	s := sourcesOf(64)
	const port = 5000
	received := e.Receive(port)
	peerAddr := peer.LinkLocal() // what it sends to ff02::/16 from
	group := netip.MustParseAddr("ff02::4321")

	const included, excluded = 0, 1
	for _, step := range []struct {
		what    string
		join    func() error
		sources []netip.Addr
		kind    int
		through bool // data of the peer
	}{
		{"include one", func() error { return j.JoinInclude(group, s[0]) }, s[:1], included, false},
		{"include one again", func() error { return j.JoinInclude(group, s[0], s[0]) }, s[:1], included, false},
		{"include three, one with another", func() error { return j.JoinInclude(group, s[3], peerAddr, s[1]) }, []netip.Addr{s[1], s[3], peerAddr}, included, true},
		{"include another", func() error { return j.JoinInclude(group, s[2]) }, s[2:3], included, false},
		{"exclude", func() error { return j.JoinExclude(group, s[1], s[0]) }, s[:2], excluded, true},
		{"exclude the peer", func() error { return j.JoinExclude(group, s[1], peerAddr) }, []netip.Addr{s[1], peerAddr}, excluded, false},
		{"exclude none", func() error { return j.JoinExclude(group) }, nil, excluded, true},
		{"exclude as many as the kernel takes", func() error { return j.JoinExclude(group, s...) }, s, excluded, true},
		{"include as many as the kernel takes", func() error { return j.JoinInclude(group, s...) }, s, included, false},
		{"any source", func() error { return j.Join(group) }, nil, excluded, true},
		{"leave", func() error { return j.Leave(group) }, nil, included, false},
		{"include several at first", func() error { return j.JoinInclude(group, s[:5]...) }, s[:5], included, false},
		{"leave again", func() error { return j.Leave(group) }, nil, included, false},
		{"exclude at first", func() error { return j.JoinExclude(group, s[:5]...) }, s[:5], excluded, true},
	} {
		if err := step.join(); err != nil {
			t.Fatalf("%s: %v", step.what, err)
		}
		want := map[netip.Addr][2]int{}
		for _, source := range step.sources {
			var count [2]int
			count[step.kind] = 1
			want[source] = count
		}
		if diff := cmp.Diff(want, filtersOf(t, e.Node(), e.Index())[group], cmpopts.EquateEmpty()); diff != "" {
			t.Errorf("%s: mcfilter6 (-want +got):\n%s", step.what, diff)
		}
		before := received.Count(group)
		ends := received.Count(mld.AllNodes)
		peer.Send(group, port, []byte("data"), 3)
		peer.Send(mld.AllNodes, port, []byte("the end"), 1)
		received.Wait(mld.AllNodes, ends+1)
		wantData := 0
		if step.through {
			wantData = 3
		}
		if n := received.Count(group) - before; n != wantData {
			t.Errorf("%s: %d datagrams of the peer came through, want %d", step.what, n, wantData)
		}
	}
	if n := j.Sockets(); n != 1 {
		t.Errorf("on %d sockets, want 1", n)
	}
}

// What is too much for the kernel is refused by name, and the filter from before stands, also in what is reported.
func TestV2_72_JoinsTooManySources(t *testing.T) {
	t.Parallel()
	e := pod(t)
	j := newJoins(t, e)
	s := sourcesOf(65) // net.ipv6.mld_max_msf is 64, and every namespace's
	tooMany := func(what string, err error) {
		t.Helper()
		for _, part := range []string{"ff05::4321", "eth0", "65 sources", "net.ipv6.mld_max_msf"} {
			if !errors.Is(err, kernel.ErrTooManySources) || !strings.Contains(err.Error(), part) {
				t.Errorf("%s: %v, which does not name %s", what, err, part)
			}
		}
	}
	c := e.Capture(netnslab.MLD)
	records := func() (list []string) {
		for _, f := range c.Frames() {
			p, err := mld.Parse(f.IPv6(), 0)
			if err != nil {
				continue
			}
			for r := range p.Message.Records.All() {
				if r.MulticastAddress == group || r.MulticastAddress == netip.MustParseAddr("ff05::ffff") {
					list = append(list, fmt.Sprintf("%v %v %d", r.Type, r.MulticastAddress, r.Sources.Len()))
				}
			}
		}
		return list
	}
	reported := func(record string) {
		t.Helper()
		netnslab.WaitFor(t, record, patience, func() (bool, string) {
			list := records()
			return slices.Contains(list, record), fmt.Sprint(list)
		}, e.Node())
	}
	tooMany("at first", j.JoinInclude(group, s...))
	tooMany("at first", j.JoinExclude(group, s...))
	if igmp6(t, e.Node(), e.Index())[group] {
		t.Error("joined after an error")
	}
	if err := j.JoinInclude(group, s[:2]...); err != nil {
		t.Fatal(err)
	}
	reported("ALLOW ff05::4321 2")
	tooMany("afterwards", j.JoinInclude(group, s...))
	tooMany("afterwards", j.JoinExclude(group, s...))
	if diff := cmp.Diff(map[netip.Addr][2]int{s[0]: {1, 0}, s[1]: {1, 0}}, filtersOf(t, e.Node(), e.Index())[group]); diff != "" {
		t.Errorf("mcfilter6 (-want +got):\n%s", diff)
	}
	if err := j.JoinInclude(group); err == nil {
		t.Error("including nothing: no error")
	}
	if err := j.JoinInclude(group, group); err == nil {
		t.Error("a multicast address as a source: no error")
	}
	if err := j.Join(netip.MustParseAddr("ff05::ffff")); err != nil {
		t.Fatal(err)
	}
	reported("TO_EX ff05::ffff 0")
	for _, r := range records() {
		if strings.HasPrefix(r, "TO_") && strings.Contains(r, group.String()) {
			t.Errorf("the kernel reported %s: the filter was for any source for a moment", r)
		}
	}
}

// Lists of sources take room on a socket; a list that grows beyond it moves to another socket.
func TestJoinsWithSourcesOnManySockets(t *testing.T) {
	t.Parallel()
	e := pod(t)
	j := newJoins(t, e)
	s := sourcesOf(64)
	all := addrs(200)
	want := func(sources []netip.Addr) {
		t.Helper()
		filters := filtersOf(t, e.Node(), e.Index())
		for _, addr := range all {
			if got := filters[addr]; len(got) != len(sources) {
				t.Fatalf("%v has %d sources, want %d", addr, len(got), len(sources))
			}
		}
	}
	for _, addr := range all {
		if err := j.JoinInclude(addr, s[0]); err != nil {
			t.Fatal(err)
		}
	}
	few := j.Sockets()
	want(s[:1])
	for _, addr := range all {
		if err := j.JoinInclude(addr, s...); err != nil {
			t.Fatal(err)
		}
	}
	t.Logf("%d addresses of 1 source on %d sockets, of 64 sources on %d", len(all), few, j.Sockets())
	if j.Sockets() <= few {
		t.Errorf("%d sockets before and after: did no list move?", few)
	}
	want(s)
	for _, addr := range all {
		if err := j.Leave(addr); err != nil {
			t.Fatal(err)
		}
	}
	want(nil)
}

// joinEvents is a socket with the events of memberships, from now on.
func joinEvents(t *testing.T, e *netnslab.Endpoint) *netlink.Conn {
	t.Helper()
	var events *netlink.Conn
	if err := e.Node().Do(func() (err error) {
		events, err = netlink.Dial(unix.NETLINK_ROUTE, nil)
		return err
	}); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = events.Close() })
	const rtnlgrpIPv6MCAddr = 38
	if err := events.JoinGroup(rtnlgrpIPv6MCAddr); err != nil {
		netnslab.Skip(t, "the kernel has no events of memberships")
	}
	return events
}

func restore(e *netnslab.Endpoint, joins ...*kernel.Joins) error {
	return kernel.Restore(e.Node().Netns(), e.Index(), joins...)
}

// What the kernel has forgotten with IPv6 is joined again with its filter, and nothing is left that it still has.
func TestRestore(t *testing.T) {
	t.Parallel()
	e := pod(t)
	j := newJoins(t, e)
	source := netip.MustParseAddr("fd00::1")
	lost, filtered := addrs(2)[0], addrs(2)[1]
	if err := errors.Join(j.Join(lost), j.JoinInclude(filtered, source)); err != nil {
		t.Fatal(err)
	}
	mtu := func(octets string) {
		t.Helper()
		if out, err := e.Node().Command(t.Context(), "ip", "link", "set", "dev", e.Name(), "mtu", octets).CombinedOutput(); err != nil {
			t.Fatalf("%v: %s", err, out)
		}
	}
	mtu("1000")
	if err := restore(e, j); err == nil || !strings.Contains(err.Error(), "MTU") {
		t.Errorf("restored without IPv6: %v", err)
	}
	mtu("1500")
	if held := igmp6(t, e.Node(), e.Index()); held[lost] || held[filtered] {
		t.Fatalf("the kernel has not forgotten: %v", held)
	}
	if err := restore(e, j); err != nil {
		t.Fatal(err)
	}
	if held := igmp6(t, e.Node(), e.Index()); !held[lost] || !held[filtered] {
		t.Fatalf("not joined again: %v", held)
	}
	const rtmNewMulticast = 56
	events := joinEvents(t, e)
	if err := errors.Join(restore(e, j), j.Join(group)); err != nil {
		t.Fatal(err)
	}
	messages, err := events.Receive()
	if err != nil || messages[0].Header.Type != rtmNewMulticast || !bytes.Contains(messages[0].Data, group.AsSlice()) {
		t.Errorf("the first event is %+v, %v: want the join of %v", messages, err, group)
	}
	if diff := cmp.Diff(map[netip.Addr][2]int{source: {1, 0}}, filtersOf(t, e.Node(), e.Index())[filtered]); diff != "" {
		t.Errorf("mcfilter6 (-want +got):\n%s", diff)
	}
	if err := j.Leave(lost); err != nil {
		t.Fatal(err)
	}
	if igmp6(t, e.Node(), e.Index())[lost] {
		t.Error("joined twice")
	}
}

// dups is a Keeper in this process.
type dups map[uint64]int

func (d dups) Keep(fd int) (uint64, error) {
	copied, err := dup(fd)
	d[uint64(len(d)+1)] = copied
	return uint64(len(d)), err
}

func (d dups) Drop(id uint64) error {
	fd := d[id]
	d[id] = -1
	return unix.Close(fd)
}

// dup keeps the copy from the programs that other tests start meanwhile.
func dup(fd int) (int, error) { return unix.FcntlInt(uintptr(fd), unix.F_DUPFD_CLOEXEC, 0) }

// open counts what the keeper has.
func (d dups) open() (n int) {
	for _, fd := range d {
		if fd >= 0 {
			n++
		}
	}
	return n
}

// TestJoinsKept: what a keeper has stays joined when its owner goes without a word, and is left when the owner leaves.
func TestJoinsKept(t *testing.T) {
	t.Parallel()
	e := pod(t)
	all := addrs(3000) // more than one socket holds
	joined := func() (n int) {
		list := igmp6(t, e.Node(), e.Index())
		for _, addr := range all {
			if list[addr] {
				n++
			}
		}
		return n
	}
	kept := dups{}
	gone := kernel.NewJoins(e.Node().Netns(), e.Index(), kept)
	for _, addr := range all {
		if err := gone.Join(addr); err != nil {
			t.Fatal(err)
		}
	}
	if err := gone.Abandon(); err != nil {
		t.Error(err)
	}
	if n := joined(); n != len(all) {
		t.Errorf("%d of %d joined after the owner has gone", n, len(all))
	}

	next := kernel.NewJoins(e.Node().Netns(), e.Index(), kept)
	for _, addr := range all {
		if err := next.Join(addr); err != nil {
			t.Fatal(err)
		}
	}
	if n := kept.open(); n != 4 {
		t.Errorf("the keeper has %d sockets, want 4", n)
	}
	for id := range uint64(2) {
		if err := kept.Drop(id + 1); err != nil {
			t.Error(err)
		}
	}
	if n := joined(); n != len(all) {
		t.Errorf("%d of %d joined by the next owner", n, len(all))
	}
	if err := next.Leave(all[0]); err != nil {
		t.Error(err)
	}
	left := func(want int, when string) { // a socket lives on in a child that is being started
		t.Helper()
		netnslab.WaitFor(t, fmt.Sprintf("%d joined %s", want, when), patience, func() (bool, string) {
			n := joined()
			return n == want, fmt.Sprint(n)
		}, e.Node())
	}
	left(len(all)-1, "after a leave")
	copied, err := dup(kept[3]) // as if Drop were late
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(copied)
	for range 2 {
		if err := next.Close(); err != nil {
			t.Error(err)
		}
	}
	left(0, "after Close")
	if n := kept.open(); n != 0 {
		t.Errorf("the keeper has %d sockets left", n)
	}
}

// refusing is a Keeper that takes nothing.
type refusing struct{}

func (refusing) Keep(int) (uint64, error) { return 0, errors.New("no more room") }
func (refusing) Drop(uint64) error        { return errors.New("never had it") }

func TestJoinsNotKept(t *testing.T) {
	t.Parallel()
	e := pod(t)
	j := kernel.NewJoins(e.Node().Netns(), e.Index(), refusing{})
	if err := j.Join(group); err == nil || !strings.Contains(err.Error(), "no more room") {
		t.Errorf("%v, want the keeper's", err)
	}
	if err := j.Close(); err != nil {
		t.Error(err)
	}
	if igmp6(t, e.Node(), e.Index())[group] {
		t.Error("joined, and not kept")
	}
}

// What could not be joined again is not taken for joined: neither by who joins it, nor where another program has it.
func TestRestoreFails(t *testing.T) {
	t.Parallel()
	e := pod(t)
	j := newJoins(t, e)
	again, others := addrs(2)[0], addrs(2)[1]
	if err := errors.Join(j.Join(again), j.Join(others)); err != nil {
		t.Fatal(err)
	}
	run(t, e.Node(), "ip", "link", "set", "dev", e.Name(), "mtu", "1000")
	if err := restore(e, j); err == nil {
		t.Fatal("restored without IPv6")
	}
	run(t, e.Node(), "ip", "link", "set", "dev", e.Name(), "mtu", "1500")
	if err := j.Join(again); err != nil {
		t.Error(err)
	}
	if !igmp6(t, e.Node(), e.Index())[again] {
		t.Errorf("%v is not joined, and to join it is no error", again)
	}
	other := e.Join(others)
	if err := errors.Join(restore(e, j), other.Close()); err != nil {
		t.Error(err)
	}
	if held := igmp6(t, e.Node(), e.Index()); !held[again] || !held[others] {
		t.Errorf("not joined again: %v", held)
	}
}

// A name may hold what looks like a space, as long as none of its octets is one.
func TestRestoreOddName(t *testing.T) {
	t.Parallel()
	e := pod(t)
	j := newJoins(t, e)
	kept := addrs(1)[0]
	if err := j.Join(kept); err != nil {
		t.Fatal(err)
	}
	run(t, e.Node(), "ip", "link", "set", "dev", e.Name(), "down")
	run(t, e.Node(), "ip", "link", "set", "dev", e.Name(), "name", "a\u2003b")
	run(t, e.Node(), "ip", "link", "set", "dev", "a\u2003b", "up")
	events := joinEvents(t, e)
	if err := errors.Join(restore(e, j), j.Join(group)); err != nil {
		t.Fatal(err)
	}
	for {
		messages, err := events.Receive()
		if err != nil {
			t.Fatal(err)
		}
		for _, m := range messages {
			switch {
			case bytes.Contains(m.Data, kept.AsSlice()):
				t.Fatalf("%v was left and joined again", kept)
			case bytes.Contains(m.Data, group.AsSlice()):
				return
			}
		}
	}
}

// What two have joined is there until both have left, also after the kernel has forgotten it.
func TestRestoreTogether(t *testing.T) {
	t.Parallel()
	e := pod(t)
	first, second := newJoins(t, e), newJoins(t, e)
	if err := errors.Join(first.Join(group), second.Join(group)); err != nil {
		t.Fatal(err)
	}
	run(t, e.Node(), "ip", "link", "set", "dev", e.Name(), "mtu", "1000")
	run(t, e.Node(), "ip", "link", "set", "dev", e.Name(), "mtu", "1500")
	if err := restore(e, first, second); err != nil {
		t.Fatal(err)
	}
	for _, step := range []struct {
		leaves *kernel.Joins
		want   bool
	}{{first, true}, {second, false}} {
		if err := step.leaves.Leave(group); err != nil {
			t.Fatal(err)
		}
		if held := igmp6(t, e.Node(), e.Index())[group]; held != step.want {
			t.Errorf("joined after a leave: %v, want %v", held, step.want)
		}
	}
}

// What is joined is joined again beside what has ended, in any order, and also where only the sockets are left of who has
// joined it.
func TestRestoreBesideEnded(t *testing.T) {
	t.Parallel()
	e := pod(t)
	ns, err := netns.Open(e.Node().Path())
	if err != nil {
		t.Fatal(err)
	}
	closed := newJoins(t, e)
	left := kernel.NewJoins(ns, e.Index(), nil)
	defer left.Close()
	present := newJoins(t, e)
	all := addrs(3)
	for i, j := range []*kernel.Joins{closed, left, present} {
		if err := j.Join(all[i]); err != nil {
			t.Fatal(err)
		}
	}
	if err := errors.Join(closed.Close(), ns.Close()); err != nil {
		t.Fatal(err)
	}
	for _, joins := range [][]*kernel.Joins{{closed, left, present}, {left, present, closed}, {present, closed, left}} {
		run(t, e.Node(), "ip", "link", "set", "dev", e.Name(), "mtu", "1000")
		run(t, e.Node(), "ip", "link", "set", "dev", e.Name(), "mtu", "1500")
		if err := restore(e, joins...); err != nil {
			t.Error(err)
		}
		if held := igmp6(t, e.Node(), e.Index()); held[all[0]] || !held[all[1]] || !held[all[2]] {
			t.Errorf("joined of %v: %v, want all but the first", all, held)
		}
	}
	if err := kernel.Restore(ns, e.Index(), closed); err != nil {
		t.Errorf("nothing to join again: %v", err)
	}
}
