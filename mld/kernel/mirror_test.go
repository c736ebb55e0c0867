package kernel_test

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"net/netip"
	"os"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/seed-aaab8e3a/cni-mld/mld"
	"github.com/seed-aaab8e3a/cni-mld/mld/kernel"
	"github.com/seed-aaab8e3a/cni-mld/netnslab"
)

// A follower adds up what a Mirror tells, and fails the test if it tells what was known already.
type follower struct {
	t      testing.TB
	mirror *kernel.Mirror
	mu     sync.Mutex
	held   map[netip.Addr]kernel.Change
	calls  int
	check  func(kernel.Change) // of each change, or nil
}

func follow(t testing.TB, e *netnslab.Endpoint, mute *kernel.Mute) *follower {
	t.Helper()
	return followWith(t, e, mute, nil, nil)
}

func followWith(
	t testing.TB, e *netnslab.Endpoint, mute *kernel.Mute, check func(kernel.Change), report func(mld.Packet),
) *follower {
	t.Helper()
	f := &follower{t: t, check: check, mirror: openMirror(t, e, mute), held: make(map[netip.Addr]kernel.Change)}
	f.mirror.OnReport(report)
	var wg sync.WaitGroup
	wg.Go(f.run)
	t.Cleanup(func() {
		if err := f.mirror.Close(); err != nil {
			t.Error(err)
		}
		wg.Wait()
	})
	return f
}

func openMirror(t testing.TB, e *netnslab.Endpoint, mute *kernel.Mute) *kernel.Mirror {
	t.Helper()
	m, err := kernel.OpenMirror(e.Node().Netns(), e.Index(), mute)
	if err != nil {
		t.Fatal(err)
	}
	return m
}

func (f *follower) run() {
	for {
		changes, err := f.mirror.Next()
		if err != nil {
			if !errors.Is(err, net.ErrClosed) {
				f.t.Error(err)
			}
			return
		}
		f.mu.Lock()
		f.calls++
		for _, c := range changes {
			before := f.held[c.Addr]
			if before.Joined == c.Joined && (!c.Joined || before.Exclude == c.Exclude && slices.Equal(before.Sources, c.Sources)) {
				f.t.Errorf("%+v is no change of %+v", c, before)
			}
			if f.check != nil {
				f.check(c)
			}
			if c.Joined {
				f.held[c.Addr] = c
			} else {
				delete(f.held, c.Addr)
			}
		}
		f.mu.Unlock()
	}
}

func (f *follower) list() map[netip.Addr]bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	list := make(map[netip.Addr]bool)
	for addr := range f.held {
		list[addr] = true
	}
	return list
}

// filter is what is told of an address; not Joined if nothing.
func (f *follower) filter(addr netip.Addr) kernel.Change {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.held[addr]
}

// equal waits until the follower's list is the kernel's.
func (f *follower) equal(e *netnslab.Endpoint) {
	f.t.Helper()
	netnslab.WaitFor(f.t, "the mirror to be like igmp6", patience, func() (bool, string) {
		got, want := f.list(), igmp6(f.t, e.Node(), e.Index())
		var missing, excess []netip.Addr
		for addr := range want {
			if !got[addr] {
				missing = append(missing, addr)
			}
		}
		for addr := range got {
			if !want[addr] {
				excess = append(excess, addr)
			}
		}
		return len(missing)+len(excess) == 0, fmt.Sprintf("%d told, missing %v, too many %v", len(got), missing, excess)
	}, e.Node())
}

// addrs are n addresses to join.
func addrs(n int) []netip.Addr {
	list := make([]netip.Addr, n)
	for i := range list {
		list[i] = netip.AddrFrom16([16]byte{0xff, 0x05, 14: byte(i >> 8), 15: byte(i)})
	}
	return list
}

func newJoins(t testing.TB, e *netnslab.Endpoint) *kernel.Joins {
	j := kernel.NewJoins(e.Node().Netns(), e.Index(), nil)
	t.Cleanup(func() {
		if err := j.Close(); err != nil {
			t.Error(err)
		}
	})
	return j
}

// withoutEvents must not run beside tests that want events.
func withoutEvents(t testing.TB) { t.Cleanup(kernel.WithoutEvents()) }

func joinAndLeave(t *testing.T, e *netnslab.Endpoint, mute *kernel.Mute, steps int) {
	t.Helper()
	f := follow(t, e, mute)
	j := newJoins(t, e)
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	random := rand.New(rand.NewPCG(seed, 0))
	all := addrs(40)
	for range steps {
		addr := all[random.IntN(len(all))]
		var err error
		if random.IntN(2) == 0 {
			err = j.Join(addr)
		} else {
			err = j.Leave(addr)
		}
		if err != nil {
			t.Fatal(err)
		}
		if random.IntN(100) == 0 {
			f.equal(e)
		}
	}
	f.equal(e)
}

func TestMirrorEvents(t *testing.T) {
	t.Parallel()
	e := pod(t)
	if !kernel.HasEvents(e.Node().Netns()) {
		netnslab.Skip(t, "the kernel has no RTNLGRP_IPV6_MCADDR")
	}
	joinAndLeave(t, e, nil, 2000)
}

func TestMirrorHints(t *testing.T) {
	withoutEvents(t)
	e := pod(t)
	e.LinkLocal()
	mute := newMute(t, e, hints)
	if kernel.HasEvents(e.Node().Netns()) {
		t.Fatal("there are events")
	}
	joinAndLeave(t, e, mute, 500)
}

func TestMirrorHintsVersion1(t *testing.T) {
	withoutEvents(t)
	e := pod(t)
	e.LinkLocal()
	e.Node().SetSysctl("net/ipv6/conf/eth0/force_mld_version", "1")
	joinAndLeave(t, e, newMute(t, e, hints), 500)
}

// In MLDv1 mode the kernel says nothing when it leaves what another node has reported last.
func TestMirrorLeaveWithoutDone(t *testing.T) {
	withoutEvents(t)
	e := pod(t)
	e.LinkLocal()
	e.Node().SetSysctl("net/ipv6/conf/eth0/force_mld_version", "1")
	f := follow(t, e, newMute(t, e, hints))
	for _, addr := range addrs(3) { // after the first report in MLDv1 the list is read in any case
		member := e.Join(addr)
		netnslab.WaitFor(t, "join", patience, func() (bool, string) { return f.filter(addr).Joined, "" }, e.Node())
		e.Peer().SendPacket(mld.AppendReport(nil, netip.MustParseAddr("fe80::8765"), addr))
		if err := member.Close(); err != nil {
			t.Fatal(err)
		}
		netnslab.WaitFor(t, "leave", patience, func() (bool, string) { return !f.filter(addr).Joined, "" }, e.Node())
	}
}

func TestMirrorAlone(t *testing.T) {
	withoutEvents(t)
	e := pod(t)
	joinAndLeave(t, e, nil, 200)
	joinAndLeave(t, e, newMute(t, e, mutes), 50)
}

// A join is told by its hint and not by the list, which is due 30 s later.
func TestMirrorHintIsPrompt(t *testing.T) {
	withoutEvents(t)
	e := pod(t)
	e.LinkLocal()
	mute := newMute(t, e, hints)
	f := follow(t, e, mute)
	f.equal(e)
	start := time.Now()
	member := e.Join(group)
	f.equal(e)
	t.Logf("join %v", time.Since(start))
	if err := member.Close(); err != nil {
		t.Fatal(err)
	}
	start = time.Now()
	f.equal(e)
	t.Logf("leave %v", time.Since(start))
	if !strings.Contains(run(t, e.Node(), "nft", "list", "ruleset"), "queue-threshold 1") {
		t.Error("hints wait in a queue")
	}
}

func TestMirrorOverflow(t *testing.T) {
	t.Parallel()
	e := pod(t)
	e.LinkLocal()
	m := openMirror(t, e, nil)
	if _, err := m.Next(); err != nil {
		t.Fatal(err)
	}
	// Nobody reads while the queue runs over.
	j := newJoins(t, e)
	all := addrs(2000)
	for range 3 {
		for _, addr := range all {
			if err := j.Join(addr); err != nil {
				t.Fatal(err)
			}
		}
		for _, addr := range all[100:] {
			if err := j.Leave(addr); err != nil {
				t.Fatal(err)
			}
		}
	}
	if lost := lostEvents(t, e.Node()); lost == 0 {
		t.Fatal("the queue did not run over")
	}
	held := make(map[netip.Addr]bool)
	giveUp := time.AfterFunc(patience, func() { m.Close() })
	defer giveUp.Stop()
	for want := igmp6(t, e.Node(), e.Index()); !contains(held, want); {
		changes, err := m.Next()
		if err != nil {
			t.Fatalf("%d of %d told, then %v", len(held), len(want), err)
		}
		for _, c := range changes {
			if !c.Joined || held[c.Addr] {
				delete(held, c.Addr)
			}
			if c.Joined {
				held[c.Addr] = true
			}
		}
	}
	if err := m.Close(); err != nil {
		t.Fatal(err)
	}
}

// contains tells whether held and want agree on the addresses of addrs.
func contains(held, want map[netip.Addr]bool) bool {
	for _, addr := range addrs(2000) {
		if held[addr] != want[addr] {
			return false
		}
	}
	return true
}

// lostEvents is the number of messages that netlink sockets of the namespace have lost.
func lostEvents(t *testing.T, n *netnslab.Node) (lost int) {
	t.Helper()
	var b []byte
	if err := n.Do(func() (err error) {
		b, err = os.ReadFile("/proc/thread-self/net/netlink")
		return err
	}); err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(b)) {
		var drops int
		if f := strings.Fields(line); len(f) > 8 {
			if _, err := fmt.Sscan(f[8], &drops); err == nil {
				lost += drops
			}
		}
	}
	return lost
}

// The list is read, in several parts, while programs join and leave, or only join, which leaves no second chance.
func TestMirrorReadsWhileOthersJoin(t *testing.T) {
	all := addrs(4000)
	for name, change := range map[string]func(j *kernel.Joins, i int) error{
		"join and leave": func(j *kernel.Joins, i int) error {
			return errors.Join(j.Leave(all[rand.IntN(2000)]), j.Join(all[rand.IntN(2000)]))
		},
		"join": func(j *kernel.Joins, i int) error { return j.Join(all[min(1500+i, len(all)-1)]) },
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			e := pod(t)
			j := newJoins(t, e)
			for _, addr := range all[:1500] {
				if err := j.Join(addr); err != nil {
					t.Fatal(err)
				}
			}
			stop := make(chan struct{})
			var wg sync.WaitGroup
			wg.Go(func() {
				for i := 0; ; i++ {
					select {
					case <-stop:
						return
					default:
					}
					if err := change(j, i); err != nil {
						t.Error(err)
						return
					}
				}
			})
			var followers []*follower
			for range 10 {
				f := follow(t, e, nil)
				followers = append(followers, f)
				netnslab.WaitFor(t, "the mirror to tell most", patience, func() (bool, string) {
					n := len(f.list())
					return n > 1000, fmt.Sprint(n)
				})
			}
			close(stop)
			wg.Wait()
			for _, f := range followers {
				f.equal(e)
			}
		})
	}
}

func TestMirrorFirstCall(t *testing.T) {
	t.Parallel()
	e := pod(t)
	e.LinkLocal()
	e.Join(group)
	m := openMirror(t, e, nil)
	defer m.Close()
	changes, err := m.Next()
	if err != nil || !slices.ContainsFunc(changes, func(c kernel.Change) bool {
		return c.Addr == group && c.Joined && c.Exclude && len(c.Sources) == 0
	}) {
		t.Fatalf("%v %v", changes, err)
	}

	// An interface without IPv6 has nothing, and says so at once.
	run(t, e.Node(), "ip", "link", "set", "eth0", "mtu", "1000")
	empty := openMirror(t, e, nil)
	defer empty.Close()
	if changes, err := empty.Next(); err != nil || len(changes) != 0 {
		t.Fatalf("%v %v", changes, err)
	}
}

// When the MTU becomes too small for IPv6, the kernel forgets everything, most of it without an event.
func TestMirrorWithoutIPv6(t *testing.T) {
	t.Parallel()
	e := pod(t)
	e.LinkLocal()
	f := follow(t, e, nil)
	j := newJoins(t, e)
	for _, addr := range addrs(20) {
		if err := j.Join(addr); err != nil {
			t.Fatal(err)
		}
	}
	f.equal(e)
	for _, mtu := range []string{"1000", "1500"} {
		run(t, e.Node(), "ip", "link", "set", "eth0", "mtu", mtu)
		f.equal(e)
	}
	e.Node().SetSysctl("net/ipv6/conf/eth0/disable_ipv6", "1")
	f.equal(e)
	e.Node().SetSysctl("net/ipv6/conf/eth0/disable_ipv6", "0")
	e.LinkLocal()
	f.equal(e)
	if got := len(f.list()); got == 0 {
		t.Error("nothing is told")
	}
	e.Delete()
	f.equal(e)
}

func TestMirrorOtherInterface(t *testing.T) {
	t.Parallel()
	lab := netnslab.New(t)
	n := lab.Node("pod")
	_, mine := lab.Veth(lab.Node("left"), "eth0", n, "eth0")
	_, other := lab.Veth(lab.Node("right"), "eth0", n, "eth1")
	f := follow(t, mine, nil)
	other.Join(group)
	sentinel := netip.MustParseAddr("ff05::5e:1")
	mine.Join(sentinel)
	netnslab.WaitFor(t, "the sentinel", patience, func() (bool, string) { return f.list()[sentinel], "" }, n)
	if f.list()[group] {
		t.Error("a join on another interface is told")
	}
}

func TestMirrorClose(t *testing.T) {
	for _, events := range []bool{true, false} {
		t.Run(fmt.Sprintf("events=%v", events), func(t *testing.T) {
			if !events {
				withoutEvents(t)
			}
			e := pod(t)
			m := openMirror(t, e, newMute(t, e, hints))
			if m.Events() != events {
				t.Fatalf("Events is %v", m.Events())
			}
			result := make(chan error, 1)
			go func() {
				for {
					if _, err := m.Next(); err != nil {
						result <- err
						return
					}
				}
			}()
			for range 2 {
				if err := m.Close(); err != nil {
					t.Fatal(err)
				}
			}
			select {
			case err := <-result:
				if !errors.Is(err, net.ErrClosed) {
					t.Error(err)
				}
			case <-time.After(patience):
				t.Fatal("Close does not wake Next")
			}
		})
	}
}

// benchmarkNext measures from before setsockopt until Next has told the join.
func benchmarkNext(b *testing.B, e *netnslab.Endpoint, mute *kernel.Mute) {
	m := openMirror(b, e, mute)
	defer m.Close()
	type told struct {
		addr netip.Addr
		at   time.Time
	}
	joined := make(chan told, 16)
	go func() {
		for {
			changes, err := m.Next()
			if err != nil {
				return
			}
			at := time.Now()
			for _, c := range changes {
				if c.Joined {
					joined <- told{c.Addr, at}
				}
			}
		}
	}()
	j := newJoins(b, e)
	all := addrs(2000)
	if err := j.Join(netip.MustParseAddr("ff05::ffff")); err != nil { // opens the socket
		b.Fatal(err)
	}
	var times []time.Duration
	for i := 0; b.Loop(); i++ {
		addr := all[i%len(all)]
		start := time.Now()
		if err := j.Join(addr); err != nil {
			b.Fatal(err)
		}
		for w := range joined {
			if w.addr == addr {
				times = append(times, w.at.Sub(start))
				break
			}
		}
		b.StopTimer()
		if err := j.Leave(addr); err != nil {
			b.Fatal(err)
		}
		b.StartTimer()
	}
	slices.Sort(times)
	b.ReportMetric(float64(times[len(times)/2].Microseconds()), "µs-median")
	b.ReportMetric(float64(times[len(times)*95/100].Microseconds()), "µs-p95")
}

func BenchmarkNextByEvent(b *testing.B) { benchmarkNext(b, pod(b), nil) }

func BenchmarkNextByHint(b *testing.B) {
	withoutEvents(b)
	e := pod(b)
	e.LinkLocal()
	benchmarkNext(b, e, newMute(b, e, hints))
}

// A mirror begins while the kernel reports, whose muted packets come to the log before it is set up.
func TestOpenMirrorWhileTheKernelReports(t *testing.T) {
	t.Parallel()
	e := pod(t)
	e.Node().SetSysctl("net/ipv6/conf/"+e.Name()+"/force_mld_version", "1") // in which it reports each join at once
	mute := newMute(t, e, sources)
	stop, stopped := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(stopped)
		for i := 0; ; i++ {
			select {
			case <-stop:
				return
			default:
			}
			j := kernel.NewJoins(e.Node().Netns(), e.Index(), nil)
			for n := range 8 {
				if err := j.Join(netip.AddrFrom16([16]byte{0: 0xff, 1: 5, 13: 7, 14: byte(i), 15: byte(n)})); err != nil {
					t.Error(err)
				}
			}
			if err := j.Close(); err != nil {
				t.Error(err)
			}
		}
	}()
	for range 200 {
		var m *kernel.Mirror
		var err error
		netnslab.WaitFor(t, "the log", patience, func() (bool, string) { // the former socket lives on in a child that is being started
			m, err = kernel.OpenMirror(e.Node().Netns(), e.Index(), mute)
			return !errors.Is(err, kernel.ErrMuted), fmt.Sprint(err)
		})
		if err != nil {
			t.Error(err)
			break
		}
		if err := m.Close(); err != nil {
			t.Error(err)
		}
	}
	close(stop)
	<-stopped
}

// A log that belongs to another socket is told as a mute that does: whoever follows another one waits for both.
func TestOpenMirrorTwice(t *testing.T) {
	t.Parallel()
	e := pod(t)
	mute := newMute(t, e, sources)
	m, err := kernel.OpenMirror(e.Node().Netns(), e.Index(), mute)
	if err != nil {
		t.Fatal(err)
	}
	defer m.Close()
	if _, err := kernel.OpenMirror(e.Node().Netns(), e.Index(), mute); !errors.Is(err, kernel.ErrMuted) {
		t.Errorf("%v, want kernel.ErrMuted", err)
	}
}

// Interfaces whose indexes would give them the same log have each its own, also one that needs none until the others have
// theirs.
func TestMirrorsOfEqualIndexes(t *testing.T) {
	t.Parallel()
	n := netnslab.New(t).Node("pod")
	indexes := []string{"10", "32778", "65546"}
	add := func(i int) *netnslab.Endpoint {
		t.Helper()
		name, peer := fmt.Sprint("eth", i), "peer"+indexes[i]
		run(t, n, "ip", "link", "add", "name", name, "index", indexes[i], "type", "veth", "peer", "name", peer)
		run(t, n, "ip", "link", "set", "dev", peer, "up")
		run(t, n, "ip", "link", "set", "dev", name, "up")
		return n.Interface(name)
	}
	logs := func(i int, e *netnslab.Endpoint, mute *kernel.Mute) {
		t.Helper()
		f := follow(t, e, mute)
		m := e.JoinSource(group, u[i])
		f.wants(e, group, include(i))
		if err := m.AddSource(u[3]); err != nil {
			t.Fatal(err)
		}
		netnslab.WaitFor(t, "the second source, which only the log tells", patience, func() (bool, string) {
			c := f.filter(group)
			return told(c) == include(i, 3), fmt.Sprintf("%+v is told", c)
		}, n)
	}
	late := add(0)
	lateMute := newMute(t, late, mutes)
	for i := 1; i < len(indexes); i++ {
		e := add(i)
		logs(i, e, newMute(t, e, sources))
	}
	if err := lateMute.Renew(n.Netns(), sources); err != nil {
		t.Fatal(err)
	}
	logs(0, late, lateMute)
}

// What programs join costs memory here; beyond a bound the mirror ends, with what stood before it as with what comes later.
func TestMirrorTooMany(t *testing.T) {
	e := pod(t)
	e.LinkLocal()
	m := openMirror(t, e, nil)
	standing, err := m.Next()
	if err != nil {
		t.Fatal(err)
	}
	m.Limit(len(standing) + 2)
	address := func(i int) netip.Addr {
		return netip.MustParseAddr(fmt.Sprintf("ff05::99:%x", i))
	}
	for i := range 2 {
		e.Join(address(i))
	}
	for told := 0; told < 2; {
		changes, err := m.Next()
		if err != nil {
			t.Fatalf("%v after %d of 2", err, told)
		}
		told += len(changes)
	}
	e.Join(address(2))
	if changes, err := m.Next(); !errors.Is(err, kernel.ErrTooMany) {
		t.Errorf("one more: %v, %v", changes, err)
	}
	if err := m.Close(); err != nil {
		t.Error(err)
	}

	m = openMirror(t, e, nil)
	defer m.Close()
	m.Limit(len(standing) + 2)
	if changes, err := m.Next(); !errors.Is(err, kernel.ErrTooMany) {
		t.Errorf("what stands: %v, %v", changes, err)
	}
}

// Whoever may make rules in the namespace can log any packet to the mirror's group. A record about what is no multicast
// address tells nothing.
func TestMirrorForgedReport(t *testing.T) {
	withoutEvents(t)
	e := pod(t)
	f := follow(t, e, newMute(t, e, sources))
	f.equal(e)
	run(t, e.Node(), "nft", fmt.Sprintf("table ip6 forger { chain c { type filter hook prerouting priority 0; "+
		"icmpv6 type 143 log group %d queue-threshold 1; }; }", 0x8000|e.Index()))
	unicast, mapped := netip.MustParseAddr("fd00::1"), netip.MustParseAddr("::ffff:224.0.0.251")
	var records []mld.Record
	for _, addr := range []netip.Addr{unicast, mapped, group} {
		records = append(records, mld.Record{Type: mld.ChangeToExclude, MulticastAddress: addr})
	}
	e.Peer().SendPacket(mld.AppendReportV2(nil, netip.MustParseAddr("fe80::99"), records))
	netnslab.WaitFor(t, "the rest of the report to be told", patience, func() (bool, string) {
		return f.filter(group).Joined, ""
	})
	if list := f.list(); list[unicast] || list[mapped] {
		t.Errorf("told: %v", list)
	}
}
