package netnslab_test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/seed-aaab8e3a/cni-mld/mld/netns"
	"github.com/seed-aaab8e3a/cni-mld/netnslab"
)

var (
	group    = netip.MustParseAddr("ff05::4321")
	allNodes = netip.MustParseAddr("ff02::1")
)

// isMLD matches a frame with one of the given ICMPv6 types.
func isMLD(types ...uint8) func(netnslab.Frame) bool {
	return func(f netnslab.Frame) bool {
		for _, want := range types {
			if f.ICMPv6() == want {
				return true
			}
		}
		return false
	}
}

// The same names and addresses in many labs at a time, and nothing of them where the process is at home.
func TestLabsAreParallel(t *testing.T) {
	t.Parallel()
	var labs sync.WaitGroup
	for range 10 {
		labs.Go(func() {
			p := run(func(p *program) {
				lab := netnslab.New(p)
				br := lab.Bridge("br0", netnslab.BridgeOptions{Querier: 2})
				alice, bob := br.Connect(lab.Node("alice"), "eth0"), br.Connect(lab.Node("bob"), "eth0")
				alice.Join(group)
				if err := alice.Port().Wait(withTimeout(t), group); err != nil {
					p.Errorf("%v", err)
				}
				br.WaitQuerying(t.Context())
				receiver := alice.Receive(9000)
				bob.Send(group, 9000, nil, 3)
				receiver.Wait(group, 3)
			})
			if p.Failed() {
				t.Error(p.log.String())
			}
		})
	}
	labs.Wait()
	interfaces, err := net.Interfaces()
	if err != nil || len(interfaces) != 1 || interfaces[0].Name != "lo" {
		t.Errorf("at home: %v, %v; want the loopback alone", interfaces, err)
	}
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer listener.Close()
	conn, err := net.Dial("tcp", listener.Addr().String())
	if err != nil {
		t.Fatalf("the loopback at home is down: %v", err)
	}
	_ = conn.Close()
}

func withTimeout(t *testing.T) context.Context {
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	t.Cleanup(cancel)
	return ctx
}

func TestAddresses(t *testing.T) {
	t.Parallel()
	lab := netnslab.New(t)
	br := lab.Bridge("br0", netnslab.BridgeOptions{})
	alice := lab.Node("alice")
	first, second := br.Connect(alice, "eth0"), br.Connect(alice, "eth1")
	bob := br.Connect(lab.Node("a-name-that-is-too-long"), "eth0")
	for _, c := range []struct {
		endpoint        *netnslab.Endpoint
		name, mac, addr string
	}{
		{br.Endpoint, "host:br0", "02:00:00:00:00:01", "fe80::ff:fe00:1"},
		{first, "alice:eth0", "02:00:00:00:01:01", "fe80::ff:fe00:101"},
		{second, "alice:eth1", "02:00:00:00:01:02", "fe80::ff:fe00:102"},
		{bob, "a-name-that-is-too-long:eth0", "02:00:00:00:02:01", "fe80::ff:fe00:201"},
	} {
		var shown []struct {
			Ifindex int
			Address string
		}
		err := json.Unmarshal(output(t, c.endpoint.Node(), "ip", "-j", "link", "show", c.endpoint.Name()), &shown)
		if err != nil || len(shown) != 1 {
			t.Fatal(shown, err)
		}
		index, mac := c.endpoint.Index(), c.endpoint.HardwareAddr().String()
		if shown[0].Address != c.mac || shown[0].Ifindex != index || mac != c.mac {
			t.Errorf("%s: kernel has %+v, endpoint %d %s, want %s", c.endpoint, shown[0], index, mac, c.mac)
		}
		if got := c.endpoint.LinkLocal().String(); got != c.addr {
			t.Errorf("%s: link-local address %s, want %s", c.endpoint, got, c.addr)
		}
		if got := c.endpoint.String(); got != c.name {
			t.Errorf("name %s, want %s", got, c.name)
		}
	}
	for i, want := range map[*netnslab.Endpoint]string{first: "alice", second: "alice-2", bob: "node2"} {
		if got := i.Peer().Name(); got != want || i.Peer().Node() != lab.Host() || i.Peer().Peer() != i {
			t.Errorf("%s: port %s, want %s", i, got, want)
		}
	}
	// B22: ports are no listeners.
	if addrs := output(t, lab.Host(), "ip", "-6", "addr", "show", "dev", "alice"); len(addrs) != 0 {
		t.Errorf("the port has addresses: %s", addrs)
	}
}

func output(t *testing.T, n *netnslab.Node, name string, args ...string) []byte {
	t.Helper()
	out, err := n.Command(withTimeout(t), name, args...).Output()
	if err != nil {
		t.Fatalf("%s %v: %v", name, args, err)
	}
	return out
}

// Anyone of the same user can enter a node by its path: here another process, and the namespace package.
func TestPath(t *testing.T) {
	t.Parallel()
	lab := netnslab.New(t)
	alice := lab.Node("alice")
	lab.Veth(alice, "eth0", lab.Host(), "cable")
	// From the host, which has no eth0.
	out := output(t, lab.Host(), "nsenter", "--net="+alice.Path(), "ip", "-br", "link")
	if !strings.Contains(string(out), "eth0") {
		t.Errorf("%s leads to\n%s", alice.Path(), out)
	}
	ns, err := netns.Open(alice.Path())
	if err != nil {
		t.Fatal(err)
	}
	defer ns.Close()
	if ns.Cookie() != alice.Netns().Cookie() || ns.Cookie() == lab.Host().Netns().Cookie() {
		t.Errorf("%s: cookie %d, want %d", alice.Path(), ns.Cookie(), alice.Netns().Cookie())
	}
}

func TestCommand(t *testing.T) {
	t.Parallel()
	lab := netnslab.New(t)
	alice := lab.Node("alice")
	out, err := alice.Command(t.Context(), "sh", "-c", "echo out; echo complaint >&2; exit 3").Output()
	if string(out) != "out\n" || err == nil || !strings.Contains(err.Error(), "exit status 3: complaint") {
		t.Errorf("Output: %q, %v", out, err)
	}
	out, err = alice.Command(t.Context(), "sh", "-c", "echo out; echo complaint >&2").CombinedOutput()
	if string(out) != "out\ncomplaint\n" || err != nil {
		t.Errorf("CombinedOutput: %q, %v", out, err)
	}
	if err := alice.Command(t.Context(), "/nonexistent").Run(); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("got %v of a program that is not there", err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cmd := alice.Command(ctx, "sleep", "1000")
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	cancel()
	if err := cmd.Wait(); err == nil {
		t.Error("the process outlived its context")
	}
}

func TestSysctl(t *testing.T) {
	t.Parallel()
	lab := netnslab.New(t)
	alice, bob := lab.Node("alice"), lab.Node("bob")
	const key = "net/ipv6/conf/lo/mldv2_unsolicited_report_interval"
	alice.SetSysctl(key, "400")
	if a, b := alice.Sysctl(key), bob.Sysctl(key); a != "400" || b != "1000" {
		t.Errorf("alice has %s, bob %s, want 400 and 1000", a, b)
	}
}

func TestLinkUpDown(t *testing.T) {
	t.Parallel()
	lab := netnslab.New(t)
	a, b := lab.Veth(lab.Node("alice"), "eth0", lab.Node("bob"), "eth0", netnslab.Down)
	up := func() bool {
		return strings.Contains(string(output(t, b.Node(), "ip", "link", "show", "eth0")), "LOWER_UP")
	}
	if up() {
		t.Error("up though Down was asked for")
	}
	a.SetUp()
	b.SetUp()
	a.LinkLocal()
	if !up() {
		t.Error("not up")
	}
	for i := range 20 {
		addr := netip.MustParseAddr(fmt.Sprintf("fd00::%d", i+1))
		a.AddAddr(netip.PrefixFrom(addr, 64))
		if err := a.Node().Do(func() error { // who binds to it needs it valid
			conn, err := net.ListenUDP("udp6", &net.UDPAddr{IP: addr.AsSlice()})
			if err == nil {
				err = conn.Close()
			}
			return err
		}); err != nil {
			t.Error(err)
		}
	}
	a.DelAddr(netip.MustParsePrefix("fd00::1/64"))
	if out := output(t, a.Node(), "ip", "addr"); strings.Contains(string(out), "fd00::1/64") {
		t.Errorf("address still there: %s", out)
	}
	a.SetDown()
	netnslab.WaitFor(t, "link down at the other end", 10*time.Second, func() (bool, string) { return !up(), "up" }, b.Node())
	a.Delete()
	if out := output(t, b.Node(), "ip", "-br", "link"); strings.Contains(string(out), "eth0") {
		t.Errorf("the peer is still there: %s", out)
	}
}

// L6: with duplicate address detection the first reports come from "::" and a solicitation follows.
func TestDAD(t *testing.T) {
	t.Parallel()
	lab := netnslab.New(t)
	br := lab.Bridge("br0", netnslab.BridgeOptions{})
	alice := br.Connect(lab.Node("alice"), "eth0", netnslab.DAD, netnslab.Down)
	frames := alice.Capture(netnslab.ICMPv6)
	alice.SetUp()
	addr := alice.LinkLocal()
	frames.Wait(5*time.Second, "report from the address", func(f netnslab.Frame) bool {
		return f.ICMPv6() == 143 && f.Src() == addr
	})
	var before []uint8
	for _, f := range frames.Frames() {
		if f.Outgoing && f.Src() == netip.IPv6Unspecified() {
			before = append(before, f.ICMPv6())
		}
	}
	if !slices.Contains(before, 143) || !slices.Contains(before, 135) {
		t.Errorf("sent from ::: ICMPv6 types %v, want a report (143) and a solicitation (135)", before)
	}
}

// The address is not given out before it may be used.
func TestLinkLocalWaits(t *testing.T) {
	t.Parallel()
	lab := netnslab.New(t)
	a, _ := lab.Veth(lab.Node("alice"), "eth0", lab.Node("bob"), "eth0", netnslab.DAD)
	begin := time.Now()
	addr := a.LinkLocal()
	took := time.Since(begin)
	out := output(t, a.Node(), "ip", "addr")
	if strings.Contains(string(out), "tentative") || took < 100*time.Millisecond {
		t.Errorf("after %v: %s: %s", took, addr, out)
	}
}

func TestWaitForHearsOfEvents(t *testing.T) {
	t.Parallel()
	lab := netnslab.New(t)
	alice := lab.Node("alice")
	a, _ := lab.Veth(alice, "eth0", lab.Host(), "cable")
	// After eight looks the condition is looked at every 100 ms, if nothing happens. It happens at the ninth.
	const quiet = 100 * time.Millisecond
	changes := []func(){
		a.SetDown, a.SetUp,
		func() { a.AddAddr(netip.MustParsePrefix("fd00::1/64")) },
		func() { a.DelAddr(netip.MustParsePrefix("fd00::1/64")) },
	}
	heard := 0
	for _, change := range changes {
		looks, begin := 0, time.Time{}
		netnslab.WaitFor(t, "change", 10*time.Second, func() (bool, string) {
			looks++
			if looks == 9 {
				begin = time.Now()
				change()
			}
			return looks > 9, ""
		}, alice)
		if time.Since(begin) < quiet {
			heard++
		}
	}
	if heard == 0 {
		t.Errorf("none of %d changes was noticed within %v", len(changes), quiet)
	}
	p := run(func(p *program) {
		netnslab.WaitFor(p, "the impossible", 10*time.Millisecond, func() (bool, string) { return false, "as ever" })
	})
	if !p.Failed() || !strings.Contains(p.log.String(), "waited 10ms in vain for the impossible; last seen: as ever") {
		t.Errorf("%q", p.log.String())
	}
}

// What ends a function inside a node early ends the test: what comes after it must not run, and what is to be torn down is.
func TestDoEndsItsCaller(t *testing.T) {
	t.Parallel()
	for name, fn := range map[string]func(*program) error{
		"FailNow": func(p *program) error { p.Fatalf("at once"); return nil },
		"panic":   func(*program) error { panic("at once") },
	} {
		p := run(func(p *program) {
			defer func() {
				if v := recover(); v != nil {
					p.Errorf("%v", v)
				}
			}()
			node := netnslab.New(p).Node("alice")
			if err := node.Do(func() error { return fn(p) }); err != nil {
				p.Logf("went on: %v", err)
			}
			p.Logf("went on")
		})
		if log := p.log.String(); !p.Failed() || !strings.HasPrefix(log, "at once") || strings.Contains(log, "went on") {
			t.Errorf("%s: %q", name, log)
		}
	}
}

// Whoever has to read why a test failed is told what to do about it.
func TestFailuresNameTheCause(t *testing.T) {
	t.Parallel()
	for want, fail := range map[string]func(*netnslab.Lab, *netnslab.Bridge, *netnslab.Endpoint){
		"want 2; no socket there has joined the group": func(_ *netnslab.Lab, _ *netnslab.Bridge, e *netnslab.Endpoint) {
			r := e.Receive(5353)
			r.Wait(group, 2)
		},
		"the link is down": func(_ *netnslab.Lab, _ *netnslab.Bridge, e *netnslab.Endpoint) {
			e.SetDown()
			e.LinkLocal()
		},
		"alice:interface-number-one: an interface's name": func(l *netnslab.Lab, b *netnslab.Bridge, _ *netnslab.Endpoint) {
			b.Connect(l.Node("alice"), "interface-number-one")
		},
		"bridge br1: querier of MLD version 3: want 1 or 2": func(l *netnslab.Lab, _ *netnslab.Bridge, _ *netnslab.Endpoint) {
			l.Bridge("br1", netnslab.BridgeOptions{Querier: 3})
		},
		"bob:eth0: join fe80::1: ": func(_ *netnslab.Lab, _ *netnslab.Bridge, e *netnslab.Endpoint) {
			e.Join(netip.MustParseAddr("fe80::1"))
		},
		`node "a/b": the name becomes part of file names`: func(l *netnslab.Lab, _ *netnslab.Bridge, _ *netnslab.Endpoint) {
			l.Node("a/b")
		},
	} {
		t.Run(want, func(t *testing.T) {
			t.Parallel()
			p := run(func(p *program) {
				lab := netnslab.New(p)
				br := lab.Bridge("br0", netnslab.BridgeOptions{})
				fail(lab, br, br.Connect(lab.Node("bob"), "eth0"))
			})
			if log := p.log.String(); !p.Failed() || !strings.Contains(log, want) {
				t.Errorf("%q", log)
			}
		})
	}
}

// The hint of a Receiver is no guess. A name may hold what looks like a space, as long as none of its octets is one.
func TestNotMember(t *testing.T) {
	t.Parallel()
	lab := netnslab.New(t)
	alice, bob := lab.Veth(lab.Node("alice"), "a\u2003b", lab.Node("bob"), "eth1")
	m := alice.Join(group)
	if hint := alice.NotMember(group); hint != "" {
		t.Errorf("alice has joined: %q", hint)
	}
	if bob.NotMember(group) == "" {
		t.Error("bob has not joined")
	}
	if err := m.Close(); err != nil {
		t.Fatal(err)
	}
	// A process that a test beside this one is starting may hold a copy of the socket for a moment.
	netnslab.WaitFor(t, "hint that alice has left", 10*time.Second, func() (bool, string) { return alice.NotMember(group) != "", "" })
}

func TestNodesHaveDifferentNames(t *testing.T) {
	t.Parallel()
	p := run(func(p *program) {
		lab := netnslab.New(p)
		lab.Node("alice")
		lab.Node("alice")
		p.Logf("both")
	})
	if !p.Failed() || strings.Contains(p.log.String(), "both") {
		t.Errorf("%q", p.log.String())
	}
}
