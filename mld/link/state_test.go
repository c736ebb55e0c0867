package link_test

import (
	"errors"
	"fmt"
	"net/netip"
	"os"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/seed-aaab8e3a/cni-mld/mld/link"
	"github.com/seed-aaab8e3a/cni-mld/netnslab"
)

// watchUntil follows the states until one is as it should be.
func watchUntil(t *testing.T, l *link.Link, what string, ok func(link.State) bool) link.State {
	t.Helper()
	var last link.State
	for {
		s, err := l.Watch()
		if err != nil {
			t.Fatalf("%s: %v; the last state was %+v", what, err, last)
		}
		if ok(s) {
			return s
		}
		last = s
	}
}

func run(t *testing.T, e *netnslab.Endpoint, command string, args ...string) {
	t.Helper()
	if out, err := e.Node().Command(t.Context(), command, args...).CombinedOutput(); err != nil {
		t.Fatalf("%s %q: %v: %s", command, args, err, out)
	}
}

func TestState(t *testing.T) {
	_, host := cable(t)
	l := open(t, host)
	src := host.LinkLocal()
	s, err := l.State()
	if err != nil {
		t.Fatal(err)
	}
	if s.Name != "eth0" || s.Index != host.Index() || s.HardwareAddr.String() != host.HardwareAddr().String() ||
		s.MTU != 1500 || !s.Up || s.Source != src || !s.IPv6 || s.Kind != "veth" || !s.Ethernet {
		t.Fatalf("%+v", s)
	}
}

func TestWatch(t *testing.T) {
	peer, host := cable(t)
	l := open(t, host)
	src := host.LinkLocal()
	watchUntil(t, l, "the first state", func(s link.State) bool { return s.Up && s.Source == src })
	first := netip.MustParseAddr("fe80::1") // lower than what the MAC address gives
	for _, step := range []struct {
		what string
		do   func()
		ok   func(link.State) bool
	}{
		{"peer down", peer.SetDown, func(s link.State) bool { return !s.Up }},
		{"peer up", peer.SetUp, func(s link.State) bool { return s.Up && s.Source == src }},
		{"down", host.SetDown, func(s link.State) bool { return !s.Up && !s.Source.IsValid() }},
		{"up", host.SetUp, func(s link.State) bool { return s.Up && s.Source == src }},
		{"MTU", func() { run(t, host, "ip", "link", "set", "eth0", "mtu", "1400") }, func(s link.State) bool { return s.MTU == 1400 }},
		{"second address", func() { host.AddAddr(netip.PrefixFrom(first, 64)) }, func(s link.State) bool { return s.Source == first }},
		{
			"deprecated", func() { run(t, host, "ip", "addr", "change", "fe80::1/64", "dev", "eth0", "preferred_lft", "0") },
			func(s link.State) bool { return s.Source == src },
		},
		{"one address less", func() { host.DelAddr(netip.PrefixFrom(src, 64)) }, func(s link.State) bool { return s.Source == first }},
		{"no address", func() { host.DelAddr(netip.PrefixFrom(first, 64)) }, func(s link.State) bool { return !s.Source.IsValid() }},
		{"an address again", func() { host.AddAddr(netip.PrefixFrom(src, 64)) }, func(s link.State) bool { return s.Source == src }},
		{
			"IPv6 off", func() { host.Node().SetSysctl("net/ipv6/conf/eth0/disable_ipv6", "1") },
			func(s link.State) bool { return !s.IPv6 && !s.Source.IsValid() },
		},
		{
			"IPv6 on", func() { host.Node().SetSysctl("net/ipv6/conf/eth0/disable_ipv6", "0") },
			func(s link.State) bool { return s.IPv6 && s.Source == src },
		},
		{
			"MTU too small for IPv6", func() { run(t, host, "ip", "link", "set", "eth0", "mtu", "1000") },
			func(s link.State) bool { return !s.IPv6 && s.MTU == 1000 && !s.Source.IsValid() },
		},
		{
			"MTU large enough", func() { run(t, host, "ip", "link", "set", "eth0", "mtu", "1500") },
			func(s link.State) bool { return s.IPv6 && s.MTU == 1500 && s.Source.IsValid() },
		},
		{
			"hardware address", func() { run(t, host, "ip", "link", "set", "eth0", "address", "02:00:00:00:be:ef") },
			func(s link.State) bool { return s.HardwareAddr.String() == "02:00:00:00:be:ef" },
		},
		{
			"rename", func() { run(t, host, "ip", "link", "set", "eth0", "name", "net1") },
			func(s link.State) bool { return s.Name == "net1" },
		},
	} {
		step.do()
		watchUntil(t, l, step.what, step.ok)
	}
}

// Switching IPv6 off and on is seen where there is no address to tell of it, and no event but the one that the filter
// of events lets through.
func TestWatchIPv6WithoutAddress(t *testing.T) {
	_, host := cable(t)
	l := open(t, host)
	src := host.LinkLocal()
	run(t, host, "ip", "link", "set", "eth0", "addrgenmode", "none")
	host.DelAddr(netip.PrefixFrom(src, 64))
	watchUntil(t, l, "no address", func(s link.State) bool {
		return s.Up && s.IPv6 && !s.Source.IsValid() && !s.Tentative.IsValid()
	})
	states := make(chan link.State)
	go func() {
		defer close(states)
		for {
			s, err := l.Watch()
			if err != nil {
				return // closed with the test
			}
			states <- s
		}
	}()
	for _, off := range []bool{true, false, true, false} {
		for range 20 { // meanwhile Watch has looked, found nothing new, and waits for an event
			if _, err := l.State(); err != nil {
				t.Fatal(err)
			}
		}
		value := map[bool]string{true: "1", false: "0"}[off]
		host.Node().SetSysctl("net/ipv6/conf/eth0/disable_ipv6", value)
		select {
		case s := <-states:
			if s.IPv6 == off {
				t.Fatalf("disable_ipv6 %s: %+v", value, s)
			}
		case <-time.After(patience):
			t.Fatalf("disable_ipv6 %s: not seen", value)
		}
	}
}

// A carrier that is lost for a moment, and IPv6 that ends and begins anew, are seen though everything is as it was.
func TestWatchMoments(t *testing.T) {
	peer, host := cable(t)
	l := open(t, host)
	src := host.LinkLocal()
	ready := func(s link.State) bool { return s.Up && s.Source == src }
	before := watchUntil(t, l, "the first state", ready)
	peer.SetDown()
	peer.SetUp()
	s := watchUntil(t, l, "the carrier again", func(s link.State) bool { return ready(s) && s.Downs != before.Downs })
	if s.Restarts != before.Restarts {
		t.Errorf("IPv6 has begun anew: %+v", s)
	}
	run(t, host, "sh", "-c", "ip link set eth0 mtu 1279; ip link set eth0 mtu 1500")
	after := watchUntil(t, l, "IPv6 anew", func(a link.State) bool { return ready(a) && a.MTU == 1500 && a.Restarts != s.Restarts })
	if after.Downs != s.Downs {
		t.Errorf("the carrier was lost: %+v", after)
	}
}

func TestObstacle(t *testing.T) {
	ready := link.State{Name: "eth0", MTU: 1500, AdminUp: true, Up: true, IPv6: true, Source: netip.MustParseAddr("fe80::1")}
	if text := ready.Obstacle(); text != "" {
		t.Errorf("ready: %q", text)
	}
	for want, spoil := range map[string]func(s *link.State){
		"the link is down, see ip link set dev eth0 up": func(s *link.State) {
			s.AdminUp, s.Up, s.Source = false, false, netip.Addr{}
		},
		"the link has no carrier: is its other end up?": func(s *link.State) { s.Up = false },
		"IPv6 is off, see sysctl net.ipv6.conf.eth0.disable_ipv6": func(s *link.State) {
			s.IPv6, s.Source = false, netip.Addr{}
		},
		"there is no IPv6 with an MTU of 1279 octets: it takes 1280": func(s *link.State) {
			s.MTU, s.IPv6, s.Source = 1279, false, netip.Addr{}
		},
		"its link-local address fe80::2 is a duplicate: another node on the link has it": func(s *link.State) {
			s.Source, s.Duplicate = netip.Addr{}, netip.MustParseAddr("fe80::2")
		},
		"there is no valid link-local address yet: duplicate address detection of fe80::2 is at work": func(s *link.State) {
			s.Source, s.Tentative = netip.Addr{}, netip.MustParseAddr("fe80::2")
		},
		"there is no valid link-local address yet, see ip -6 addr show dev eth0": func(s *link.State) { s.Source = netip.Addr{} },
	} {
		s := ready
		spoil(&s)
		if text := s.Obstacle(); text != want {
			t.Errorf("%+v: %q, want %q", s, text, want)
		}
	}
}

// A tentative address is no source, its end of duplicate address detection is a change, a duplicate stays invalid.
func TestWatchDuplicateAddressDetection(t *testing.T) {
	_, host := cable(t, netnslab.DAD, netnslab.Down)
	l := open(t, host)
	watchUntil(t, l, "the first state", func(s link.State) bool { return true })
	host.SetUp()
	host.Peer().SetUp()
	s := watchUntil(t, l, "up", func(s link.State) bool { return s.Up })
	if s.Source.IsValid() {
		t.Fatalf("a source before duplicate address detection can have ended: %+v", s)
	}
	if !s.Tentative.IsValid() { // not yet
		s = watchUntil(t, l, "a tentative address", func(s link.State) bool { return s.Tentative.IsValid() || s.Source.IsValid() })
	}
	tentative := s.Tentative
	s = watchUntil(t, l, "a source", func(s link.State) bool { return s.Source.IsValid() })
	if want := host.LinkLocal(); s.Source != want || tentative != want || s.Tentative.IsValid() {
		t.Fatalf("source %s, tentative %s before and %s now, want %s", s.Source, tentative, s.Tentative, want)
	}
}

func TestWatchOptimisticAddress(t *testing.T) {
	if _, err := os.Stat("/proc/sys/net/ipv6/conf/all/optimistic_dad"); err != nil {
		netnslab.Skip(t, "the kernel has no optimistic addresses")
	}
	_, host := cable(t, netnslab.DAD, netnslab.Down)
	host.Node().SetSysctl("net/ipv6/conf/eth0/optimistic_dad", "1")
	host.Node().SetSysctl("net/ipv6/conf/eth0/dad_transmits", "5") // it stays optimistic for 5 s
	l := open(t, host)
	host.SetUp()
	host.Peer().SetUp()
	watchUntil(t, l, "an optimistic source", func(s link.State) bool { return s.Source.IsValid() })
	out, err := host.Node().Command(t.Context(), "ip", "-6", "addr", "show", "dev", "eth0", "optimistic").Output()
	if err != nil || len(out) == 0 {
		t.Errorf("the source was told after duplicate address detection, not before: %v", err)
	}
}

func TestWatchDuplicate(t *testing.T) {
	peer, host := cable(t, netnslab.DAD)
	l := open(t, host)
	host.LinkLocal()
	run(t, peer, "ip", "addr", "add", "fe80::1/64", "dev", "eth0", "nodad")
	host.AddAddr(netip.MustParsePrefix("fe80::1/64"))
	netnslab.WaitFor(t, "the duplicate to be found", patience, func() (bool, string) {
		out, err := host.Node().Command(t.Context(), "ip", "-6", "addr", "show", "dev", "eth0", "dadfailed").Output()
		return err == nil && len(out) > 0, string(out)
	}, host.Node())
	s, err := l.State()
	if err != nil || s.Source != host.LinkLocal() || s.Duplicate.IsValid() {
		t.Fatalf("source %s, %v: fe80::1 belongs to the peer", s.Source, err)
	}
	host.DelAddr(netip.PrefixFrom(s.Source, 64))
	s, err = l.State()
	if want := netip.MustParseAddr("fe80::1"); err != nil || s.Source.IsValid() || s.Duplicate != want {
		t.Fatalf("source %s, duplicate %s, %v: want the duplicate %s alone", s.Source, s.Duplicate, err, want)
	}
}

func TestErrGone(t *testing.T) {
	for name, end := range map[string]func(t *testing.T, lab *netnslab.Lab, e *netnslab.Endpoint){
		"deleted": func(_ *testing.T, _ *netnslab.Lab, e *netnslab.Endpoint) { e.Delete() },
		"moved": func(t *testing.T, lab *netnslab.Lab, e *netnslab.Endpoint) {
			elsewhere := lab.Node("elsewhere")
			run(t, e, "ip", "link", "set", "eth0", "netns", elsewhere.Path())
		},
		"moved and back": func(t *testing.T, lab *netnslab.Lab, e *netnslab.Endpoint) {
			elsewhere := lab.Node("elsewhere")
			run(t, e, "ip", "link", "set", "eth0", "netns", elsewhere.Path())
			if out, err := elsewhere.Command(t.Context(), "ip", "link", "set", "eth0", "netns", e.Node().Path()).CombinedOutput(); err != nil {
				t.Fatalf("%v: %s", err, out)
			}
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			lab := netnslab.New(t)
			_, host := lab.Veth(lab.Node("peer"), "eth0", lab.Node("pod"), "eth0")
			l := open(t, host)
			host.LinkLocal()
			reader := make(chan error, 1)
			go func() {
				for {
					if _, _, err := l.ReadPacket(); err != nil {
						reader <- err
						return
					}
				}
			}()
			end(t, lab, host)
			for {
				if _, err := l.Watch(); err != nil {
					if !errors.Is(err, link.ErrGone) {
						t.Fatalf("Watch: %v", err)
					}
					break
				}
			}
			if err := <-reader; !errors.Is(err, link.ErrGone) {
				t.Fatalf("ReadPacket: %v", err)
			}
			if _, err := l.State(); !errors.Is(err, link.ErrGone) {
				t.Fatalf("State: %v", err)
			}
		})
	}
}

// An IPv4-mapped address of IPv4's link-local range is no link-local address (RFC 4291 section 2.5.6), though it is the
// lower one, and whoever may add addresses in the namespace may add it.
func TestStateMappedAddress(t *testing.T) {
	_, host := cable(t)
	l := open(t, host)
	src := host.LinkLocal()
	run(t, host, "ip", "addr", "add", "::ffff:169.254.0.1/128", "dev", "eth0", "nodad")
	if s, err := l.State(); err != nil || s.Source != src {
		t.Errorf("%v, %v, want %v", s.Source, err, src)
	}
}

// Whoever is root in the namespace may give an interface other names, as many as the kernel tells of in 64 KiB.
func TestStateManyNames(t *testing.T) {
	_, host := cable(t)
	l := open(t, host)
	src := host.LinkLocal()
	names := host.Node().Command(t.Context(), "ip", "-batch", "-")
	var batch strings.Builder
	for i := range 256 {
		fmt.Fprintf(&batch, "link property add dev eth0 altname %0127d\n", i)
	}
	names.Stdin = strings.NewReader(batch.String())
	if out, err := names.CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	if s, err := l.State(); err != nil || s.Name != "eth0" || s.MTU != 1500 || s.Source != src || !s.IPv6 || s.Kind != "veth" {
		t.Errorf("%+v, %v", s, err)
	}
	links, err := link.OpenLookup(host.Node().Netns())
	if err != nil {
		t.Fatal(err)
	}
	defer links.Close()
	if f, err := links.ByName("eth0"); err != nil || f.Index != host.Index() {
		t.Errorf("index %d, %v, want %d", f.Index, err, host.Index())
	}
	open(t, host)
}

// While the process has no descriptor left, a change cannot be looked at. That passes, and is no end. No other test must
// run beside this one.
func TestWatchWithoutDescriptors(t *testing.T) {
	lab := netnslab.New(t)
	host, _ := lab.Veth(lab.Node("pod"), "eth0", lab.Host(), "peer")
	l := open(t, host)
	host.LinkLocal()
	watchUntil(t, l, "the first state", func(s link.State) bool { return s.Up && s.Source.IsValid() })
	giveBack := takeDescriptors(t)
	if _, err := l.State(); !errors.Is(err, unix.EMFILE) {
		t.Fatalf("%v, want %v", err, unix.EMFILE)
	}
	host.SetDown()
	time.AfterFunc(100*time.Millisecond, giveBack)
	watchUntil(t, l, "down", func(s link.State) bool { return !s.Up })
	host.SetUp()
	watchUntil(t, l, "up", func(s link.State) bool { return s.Up && s.Source.IsValid() })
}

// takeDescriptors leaves the process none, until they are given back.
func takeDescriptors(t *testing.T) (giveBack func()) {
	t.Helper()
	var before unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_NOFILE, &before); err != nil {
		t.Fatal(err)
	}
	var taken []int
	giveBack = sync.OnceFunc(func() {
		for _, fd := range taken {
			_ = unix.Close(fd)
		}
		_ = unix.Setrlimit(unix.RLIMIT_NOFILE, &before)
	})
	t.Cleanup(giveBack)
	if err := unix.Setrlimit(unix.RLIMIT_NOFILE, &unix.Rlimit{Cur: 256, Max: before.Max}); err != nil {
		t.Fatal(err)
	}
	for {
		fd, err := unix.Open("/dev/null", unix.O_RDONLY|unix.O_CLOEXEC, 0)
		if err != nil {
			return giveBack
		}
		taken = append(taken, fd)
	}
}
