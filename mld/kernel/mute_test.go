package kernel_test

import (
	"bufio"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/seed-aaab8e3a/cni-mld/mld"
	"github.com/seed-aaab8e3a/cni-mld/mld/kernel"
	"github.com/seed-aaab8e3a/cni-mld/netnslab"
)

var (
	mutes   = kernel.MuteOptions{}
	hints   = kernel.MuteOptions{Hints: true}
	sources = kernel.MuteOptions{Sources: true}
)

func newMute(t testing.TB, e *netnslab.Endpoint, options kernel.MuteOptions) *kernel.Mute {
	t.Helper()
	m, err := kernel.NewMute(e.Node().Netns(), e.Index(), options)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := m.Close(); err != nil {
			t.Error(err)
		}
	})
	return m
}

func dropped(t testing.TB, m *kernel.Mute) uint64 {
	t.Helper()
	n, err := m.Dropped()
	if err != nil {
		t.Fatal(err)
	}
	return n
}

// isReport tells whether the frame is a report or Done of the pod, whose peer captures it.
func isReport(e *netnslab.Endpoint, f netnslab.Frame) bool {
	kind := f.ICMPv6()
	return !f.Outgoing && (kind == 131 || kind == 132 || kind == 143) && (f.Src() == e.LinkLocal() || f.Src().IsUnspecified())
}

func waitReport(e *netnslab.Endpoint, c *netnslab.Capture) {
	c.Wait(patience, "a report of the pod's kernel", func(f netnslab.Frame) bool { return isReport(e, f) })
}

func query(version mld.Version, addr netip.Addr) []byte {
	dst := mld.AllNodes
	if addr.IsMulticast() {
		dst = addr
	}
	return mld.AppendQuery(nil, netip.MustParseAddr("fe80::5e:1"), dst,
		mld.Query{Version: version, MulticastAddress: addr, MaxResponseCode: 10, QRV: 2, QQIC: 125})
}

// silent does something that makes the kernel report, and fails if a report comes out. The mute's own counter
// says that the kernel has spoken, and a packet sent after that closes the capture.
func silent(t *testing.T, e *netnslab.Endpoint, m *kernel.Mute, c *netnslab.Capture, what string, do func()) {
	t.Helper()
	before := dropped(t, m)
	do()
	netnslab.WaitFor(t, what+": the kernel's report to be dropped", patience, func() (bool, string) {
		n := dropped(t, m)
		return n > before, fmt.Sprintf("%d dropped packets", n)
	})
	src := netip.MustParseAddr("fe80::5e:2")
	e.SendPacket(mld.AppendQuery(nil, src, mld.AllNodes, mld.Query{Version: mld.Version1, MulticastAddress: netip.IPv6Unspecified()}))
	c.Wait(patience, "the sentinel", func(f netnslab.Frame) bool { return f.Src() == src })
	for _, f := range c.Frames() {
		if isReport(e, f) {
			t.Errorf("%s: the kernel is heard: %v", what, f)
		}
	}
}

func TestMuteSilence(t *testing.T) {
	t.Parallel()
	e := pod(t)
	e.LinkLocal()
	m := newMute(t, e, mutes)
	c := e.Peer().Capture(netnslab.MLD)

	var member *netnslab.Membership
	join := func() { member = e.Join(group) }
	leave := func() {
		if err := member.Close(); err != nil {
			t.Fatal(err)
		}
	}
	silent(t, e, m, c, "join", join)
	silent(t, e, m, c, "query", func() { e.Peer().SendPacket(query(mld.Version2, netip.IPv6Unspecified())) })
	silent(t, e, m, c, "specific query", func() { e.Peer().SendPacket(query(mld.Version2, group)) })
	silent(t, e, m, c, "leave", leave)
	silent(t, e, m, c, "down and up", func() {
		e.SetDown()
		e.SetUp()
		e.LinkLocal()
	})
	silent(t, e, m, c, "rename", func() {
		run(t, e.Node(), "ip", "link", "set", "eth0", "name", "net1")
		e.Peer().SendPacket(query(mld.Version2, netip.IPv6Unspecified()))
	})
	run(t, e.Node(), "ip", "link", "set", "net1", "name", "eth0")
	silent(t, e, m, c, "IPv6 off and on", func() {
		e.Node().SetSysctl("net/ipv6/conf/eth0/disable_ipv6", "1")
		e.Node().SetSysctl("net/ipv6/conf/eth0/disable_ipv6", "0")
		e.LinkLocal()
	})
	e.Node().SetSysctl("net/ipv6/conf/eth0/force_mld_version", "1")
	silent(t, e, m, c, "version 1 join", join)
	silent(t, e, m, c, "version 1 query", func() { e.Peer().SendPacket(query(mld.Version1, netip.IPv6Unspecified())) })
	silent(t, e, m, c, "version 1 leave", leave)

	silent(t, e, m, c, "root's rules", func() {
		for _, command := range []string{
			"flush ruleset", "delete table ip6 mld-%d", "flush table ip6 mld-%d", "delete chain ip6 mld-%d output",
			"add rule ip6 mld-%d reports accept",
		} {
			if strings.Contains(command, "%d") {
				command = fmt.Sprintf(command, e.Index())
			}
			out, err := e.Node().Command(t.Context(), "nft", command).CombinedOutput()
			t.Logf("nft %s: %v %s", command, err, out)
		}
		e.Peer().SendPacket(query(mld.Version2, netip.IPv6Unspecified()))
	})
	if rules := run(t, e.Node(), "nft", "list", "ruleset"); strings.Count(rules, "table") != 1 || !strings.Contains(rules, "flags owner") {
		t.Errorf("the rules are now:\n%s", rules)
	}
}

// The kernel is not heard either while a mute becomes another one, though it never stops speaking: in version 1 it reports
// within the system call.
func TestMuteRenew(t *testing.T) {
	t.Parallel()
	e := pod(t)
	e.LinkLocal()
	e.Node().SetSysctl("net/ipv6/conf/eth0/force_mld_version", "1")
	m := newMute(t, e, mutes)
	c := e.Peer().Capture(netnslab.MLD)
	silent(t, e, m, c, "renewals", func() {
		renewed := make(chan struct{})
		var speaker sync.WaitGroup
		speaker.Go(func() {
			for {
				select {
				case <-renewed:
					return
				default:
					if err := e.Join(group).Close(); err != nil {
						t.Error(err)
						return
					}
				}
			}
		})
		for range 50 {
			for _, options := range []kernel.MuteOptions{sources, sources, hints, mutes} {
				before := dropped(t, m)
				netnslab.WaitFor(t, "a report that is dropped", patience, func() (bool, string) { return dropped(t, m) > before, "" })
				if err := m.Renew(e.Node().Netns(), options); err != nil {
					t.Fatal(err)
				}
			}
		}
		close(renewed)
		speaker.Wait()
	})
	if rules := run(t, e.Node(), "nft", "list", "ruleset"); strings.Count(rules, "table") != 1 || strings.Contains(rules, "chain input") {
		t.Errorf("the rules are now:\n%s", rules)
	}
	if err := m.Renew(e.Node().Netns(), sources); err != nil {
		t.Fatal(err)
	}
	if rules := run(t, e.Node(), "nft", "list", "ruleset"); strings.Count(rules, "table") != 1 || !strings.Contains(rules, "chain input") {
		t.Errorf("the rules are now:\n%s", rules)
	}
	if err := m.Close(); err != nil {
		t.Fatal(err)
	}
	if err := m.Renew(e.Node().Netns(), mutes); !errors.Is(err, net.ErrClosed) {
		t.Errorf("renewed after Close: %v", err)
	}
}

// The kernel answers what it refuses with an error for each message, and goes on to the acknowledgement. No later request
// may take these for answers to itself.
func TestMuteRenewFails(t *testing.T) {
	t.Parallel()
	e := pod(t)
	m := newMute(t, e, mutes)
	if err := m.DropTable(); err != nil {
		t.Fatal(err)
	}
	for range 3 {
		if err := m.Renew(e.Node().Netns(), sources); !errors.Is(err, unix.ENOENT) {
			t.Errorf("renewed without a table: %v, want %v", err, unix.ENOENT)
		}
		if _, err := m.Dropped(); !errors.Is(err, unix.ENOENT) {
			t.Errorf("counted without a table: %v, want %v", err, unix.ENOENT)
		}
	}
}

func TestMuteDuplicateAddressDetection(t *testing.T) {
	t.Parallel()
	e := pod(t, netnslab.DAD, netnslab.Down)
	m := newMute(t, e, mutes)
	e.Peer().SetUp()
	c := e.Peer().Capture(netnslab.ICMPv6)
	silent(t, e, m, c, "duplicate address detection", func() {
		e.SetUp()
		e.LinkLocal()
	})
	// What is not MLD passes: the neighbour solicitations, and the router solicitations after them.
	var others int
	for _, f := range c.Frames() {
		if !f.Outgoing && f.ICMPv6() == 135 && f.Src().IsUnspecified() {
			others++
		}
	}
	if others == 0 {
		t.Error("no neighbour solicitation was let through")
	}
}

// Another interface of the namespace, and other users of the muted one, are not touched.
func TestMuteSparesOthers(t *testing.T) {
	t.Parallel()
	lab := netnslab.New(t)
	n := lab.Node("pod")
	_, muted := lab.Veth(lab.Node("left"), "eth0", n, "eth0")
	_, free := lab.Veth(lab.Node("right"), "eth0", n, "eth1")
	muted.LinkLocal()
	m := newMute(t, muted, mutes)
	right := free.Peer().Capture(netnslab.MLD)
	free.Join(group)
	waitReport(free, right)

	left := muted.Peer().Capture(netnslab.MLD)
	silent(t, muted, m, left, "join", func() { muted.Join(group) })
	for _, kind := range []byte{131, 132, 143} {
		sendAsProgram(t, muted, kind)
		left.Wait(patience, "the program's own report", func(f netnslab.Frame) bool {
			return !f.Outgoing && f.ICMPv6() == kind && f.Dst() == group
		})
	}
}

// sendAsProgram sends an MLD message through a raw socket, as a multicast router does.
func sendAsProgram(t *testing.T, e *netnslab.Endpoint, kind byte) {
	t.Helper()
	err := e.Node().Do(func() error {
		fd, err := unix.Socket(unix.AF_INET6, unix.SOCK_RAW|unix.SOCK_CLOEXEC, unix.IPPROTO_ICMPV6)
		if err != nil {
			return err
		}
		defer unix.Close(fd)
		options := string([]byte{0, 0, 5, 2, 0, 0, 1, 0})
		return errors.Join(
			unix.SetsockoptInt(fd, unix.IPPROTO_IPV6, unix.IPV6_MULTICAST_IF, e.Index()),
			unix.SetsockoptInt(fd, unix.IPPROTO_IPV6, unix.IPV6_MULTICAST_HOPS, 1),
			unix.SetsockoptString(fd, unix.IPPROTO_IPV6, unix.IPV6_HOPOPTS, options),
			unix.Sendto(fd, append([]byte{kind, 0, 0, 0, 0, 0, 0, 0}, group.AsSlice()...), 0,
				&unix.SockaddrInet6{Addr: group.As16(), ZoneId: uint32(e.Index())}),
		)
	})
	if err != nil {
		t.Fatal(err)
	}
}

func TestMuteClose(t *testing.T) {
	t.Parallel()
	e := pod(t)
	e.LinkLocal()
	m := newMute(t, e, mutes)
	c := e.Peer().Capture(netnslab.MLD)
	silent(t, e, m, c, "join", func() { e.Join(group) })
	if fd := m.HighDescriptor(); fd < 256 {
		t.Errorf("the second descriptor is %d, not a high one", fd)
	}
	for range 2 {
		if err := m.Close(); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := m.Dropped(); !errors.Is(err, net.ErrClosed) {
		t.Errorf("Dropped after Close: %v", err)
	}
	waitUnmuted(t, e)
	e.Peer().SendPacket(query(mld.Version2, group))
	waitReport(e, c)
	again := newMute(t, e, sources)
	c = e.Peer().Capture(netnslab.MLD)
	silent(t, e, again, c, "query", func() { e.Peer().SendPacket(query(mld.Version2, group)) })
}

// withLongOptions returns a query whose Hop-by-Hop Options header has 16 octets.
func withLongOptions(packet []byte) []byte {
	const hopByHop, payloadLength = 40, 4
	packet = slices.Insert(packet, hopByHop+8, 0x1e, 6, 0, 0, 0, 0, 0, 0) // one that is skipped by who does not know it
	packet[hopByHop+1]++
	packet[payloadLength+1] += 8
	return packet
}

// For sources, the kernel stays in MLDv2 mode while a querier of version 1 asks, and is asked no source-specific query,
// the answer to which would be a part of a filter. When the mute has gone, all this is over.
func TestMuteQueries(t *testing.T) {
	t.Parallel()
	general := netip.IPv6Unspecified()
	for _, tc := range []struct {
		name   string
		asked  []byte
		closed uint8 // type of the kernel's next answer, after the mute is closed and it is asked again
	}{
		{"version 1", query(mld.Version1, general), 131},
		{"version 1, long options", withLongOptions(query(mld.Version1, general)), 131},
		{"version 2", query(mld.Version2, general), 143},
		{"version 2, long options", withLongOptions(query(mld.Version2, general)), 143},
	} {
		for _, options := range []kernel.MuteOptions{sources, hints} {
			t.Run(fmt.Sprintf("%s, %+v", tc.name, options), func(t *testing.T) {
				t.Parallel()
				e := pod(t, netnslab.Down)
				announced(t, e)
				m := newMute(t, e, options)
				c := e.Peer().Capture(netnslab.MLD)
				e.Peer().SendPacket(tc.asked)
				// An answer to a query that is heard, or to the one after it.
				before := dropped(t, m)
				e.Peer().SendPacket(query(mld.Version2, general))
				netnslab.WaitFor(t, "the kernel's answer", patience, func() (bool, string) { return dropped(t, m) > before, "" })
				if err := m.Close(); err != nil {
					t.Fatal(err)
				}
				waitUnmuted(t, e)
				answer := func(want uint8) {
					t.Helper()
					got := c.Wait(patience, "an answer", func(f netnslab.Frame) bool { return isReport(e, f) }).ICMPv6()
					if got != want {
						t.Errorf("the kernel answers with type %d, want %d", got, want)
					}
				}
				c = e.Peer().Capture(netnslab.MLD)
				e.Peer().SendPacket(query(mld.Version2, general))
				answer(143) // it has not heard a query of version 1
				c = e.Peer().Capture(netnslab.MLD)
				e.Peer().SendPacket(tc.asked)
				answer(tc.closed)
			})
		}
	}
}

// The answer to a source-specific query would be taken for the whole filter.
func TestMuteSourceSpecificQueries(t *testing.T) {
	t.Parallel()
	e := pod(t, netnslab.Down)
	announced(t, e)
	member := e.JoinSource(group, u[0])
	if err := member.AddSource(u[1]); err != nil {
		t.Fatal(err)
	}
	m := newMute(t, e, sources)
	f := follow(t, e, m)
	f.equal(e)
	e.Peer().SendPacket(mld.AppendQuery(nil, netip.MustParseAddr("fe80::5e:1"), group, mld.Query{
		Version: mld.Version2, MulticastAddress: group, MaxResponseCode: 1, Sources: u[:1],
	}))
	f.ask(e, m)
	f.wants(e, group, include(0, 1))
}

// waitUnmuted waits for the table to go. A process that a test beside this one is starting may hold a copy of its
// owner's socket for a moment.
func waitUnmuted(t *testing.T, e *netnslab.Endpoint) {
	t.Helper()
	netnslab.WaitFor(t, "the table to go", patience, func() (bool, string) {
		rules := run(t, e.Node(), "nft", "list", "ruleset")
		return rules == "", rules
	})
}

// The kernel speaks again when the process that muted it is killed.
func TestMuteKill(t *testing.T) {
	t.Parallel()
	e := pod(t)
	e.LinkLocal()
	holder := e.Node().Command(t.Context(), "/proc/self/exe")
	holder.Env = append(os.Environ(), fmt.Sprintf("%s=%d", holderEnv, e.Index()))
	in, err := holder.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	defer in.Close()
	out, err := holder.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := holder.Start(); err != nil {
		t.Fatal(err)
	}
	if line, err := bufio.NewReader(out).ReadString('\n'); line != "muted\n" {
		t.Fatalf("%q %v", line, err)
	}
	_, err = kernel.NewMute(e.Node().Netns(), e.Index(), mutes)
	if !errors.Is(err, kernel.ErrMuted) || !strings.Contains(err.Error(), fmt.Sprintf("mld-%d", e.Index())) {
		t.Errorf("a second mute: %v", err)
	}
	e.Join(group)

	if err := holder.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	_ = holder.Wait() // says that it was killed
	waitUnmuted(t, e)
	c := e.Peer().Capture(netnslab.MLD)
	e.Peer().SendPacket(query(mld.Version2, group))
	waitReport(e, c)
	c = e.Peer().Capture(netnslab.MLD)
	e.Peer().SendPacket(query(mld.Version1, group))
	c.Wait(patience, "a report of version 1", func(f netnslab.Frame) bool { return isReport(e, f) && f.ICMPv6() == 131 })
}

func TestMuteTaken(t *testing.T) {
	t.Parallel()
	e := pod(t)
	run(t, e.Node(), "nft", fmt.Sprintf("add table ip6 mld-%d", e.Index()))
	if _, err := kernel.NewMute(e.Node().Netns(), e.Index(), mutes); !errors.Is(err, kernel.ErrMuted) {
		t.Errorf("beside a table that nobody owns: %v", err)
	}
	for _, index := range []int{0, -1} {
		if _, err := kernel.NewMute(e.Node().Netns(), index, mutes); err == nil {
			t.Errorf("index %d: no error", index)
		}
	}
}

func TestMuteWithoutCapability(t *testing.T) {
	t.Parallel()
	if _, err := exec.LookPath("setpriv"); err != nil {
		netnslab.Skip(t, "setpriv is not installed")
	}
	e := pod(t)
	holder := e.Node().Command(t.Context(), "setpriv", "--bounding-set", "-net_admin", "/proc/self/exe")
	exe, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	holder.Args[3] = exe
	holder.Env = append(os.Environ(), fmt.Sprintf("%s=%d", holderEnv, e.Index()))
	out, err := holder.CombinedOutput()
	if err == nil || !strings.Contains(string(out), "CAP_NET_ADMIN") {
		t.Errorf("%v: %s", err, out)
	}
}

func TestMuteConcurrently(t *testing.T) {
	t.Parallel()
	e := pod(t)
	m := newMute(t, e, mutes)
	var wg sync.WaitGroup
	for i := range 8 {
		wg.Go(func() {
			for {
				if _, err := m.Dropped(); err != nil {
					if !errors.Is(err, net.ErrClosed) {
						t.Error(err)
					}
					return
				}
				if i == 7 {
					if err := m.Close(); err != nil {
						t.Error(err)
					}
				}
			}
		})
	}
	wg.Wait()
}

// BenchmarkNewMute opens a mute while there is another one on the machine: the first of all makes the kernel
// change its code, which takes longer. Closing waits for the kernel (RCU) and is measured apart.
func BenchmarkNewMute(b *testing.B) {
	e := pod(b)
	newMute(b, e.Peer(), mutes)
	var closing time.Duration
	for b.Loop() {
		m, err := kernel.NewMute(e.Node().Netns(), e.Index(), sources)
		if err != nil {
			b.Fatal(err)
		}
		b.StopTimer()
		start := time.Now()
		if err := m.Close(); err != nil {
			b.Fatal(err)
		}
		closing += time.Since(start)
		b.StartTimer()
	}
	b.ReportMetric(float64(closing.Microseconds())/float64(b.N), "µs/Close")
}
