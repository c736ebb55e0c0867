package agent_test

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"runtime"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/seed-aaab8e3a/cni-mld/mld"
	"github.com/seed-aaab8e3a/cni-mld/mld/agent"
	"github.com/seed-aaab8e3a/cni-mld/mld/kernel"
	"github.com/seed-aaab8e3a/cni-mld/mld/link"
	"github.com/seed-aaab8e3a/cni-mld/mld/listener"
	"github.com/seed-aaab8e3a/cni-mld/netnslab"
)

// patience is what nothing in these tests takes on any machine.
const patience = 20 * time.Second

const subscriber listener.SubscriberID = 1

var (
	group  = netip.MustParseAddr("ff05::4321")
	other  = netip.MustParseAddr("ff05::8765")
	last   = netip.MustParseAddr("ff05::ffff") // a sentinel
	router = netip.MustParseAddr("fe80::99")
)

// pod makes a namespace with an interface, and a peer that sees what comes from it.
func pod(t testing.TB, options ...netnslab.LinkOption) (pod, peer *netnslab.Endpoint) {
	lab := netnslab.New(t)
	peer, pod = lab.Veth(lab.Node("peer"), "eth0", lab.Node("pod"), "eth0", options...)
	return pod, peer
}

// config is that of a listener of MLDv1.
func config(e *netnslab.Endpoint) agent.Config {
	return agent.Config{Netns: e.Node().Netns(), Index: e.Index(), Listener: listener.Config{Version: mld.Version1}}
}

// config2 is that of a listener which follows the querier, and begins with MLDv2.
func config2(e *netnslab.Endpoint) agent.Config {
	return agent.Config{Netns: e.Node().Netns(), Index: e.Index()}
}

// start starts an agent that is closed with the test.
func start(t testing.TB, cfg agent.Config) *agent.Agent {
	t.Helper()
	a, err := agent.Start(cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { a.Close(); ended(t, a) })
	return a
}

// ended waits for the end of an agent and returns its error.
func ended(t testing.TB, a *agent.Agent) error {
	t.Helper()
	select {
	case <-a.Done():
	case <-time.After(patience):
		t.Fatal("the agent does not end")
	}
	return a.Err()
}

func soon(t testing.TB) context.Context {
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	t.Cleanup(cancel)
	return ctx
}

func state(t testing.TB, a *agent.Agent) agent.State {
	t.Helper()
	s, err := a.State(soon(t))
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func declare(t testing.TB, a *agent.Agent, addr netip.Addr) {
	t.Helper()
	if err := a.Listen(soon(t), subscriber, addr, listener.AnySource); err != nil {
		t.Fatal(err)
	}
}

// ask sends a Query for an address, or a General Query for the zero Addr.
func ask(peer *netnslab.Endpoint, addr netip.Addr, maxResponseDelay time.Duration) {
	dst := addr
	if !addr.IsValid() {
		dst = mld.AllNodes
	}
	peer.SendPacket(mld.AppendQuery(nil, router, dst, mld.Query{
		Version: mld.Version1, MulticastAddress: addr, MaxResponseCode: uint16(maxResponseDelay.Milliseconds()),
	}))
}

// about reads an MLDv1 message: its type, and the address that it is about.
func about(f netnslab.Frame) (kind mld.Type, addr netip.Addr) {
	packet := f.IPv6()
	if kind = mld.Type(f.ICMPv6()); len(packet) < 72 {
		return kind, netip.Addr{}
	}
	return kind, netip.AddrFrom16([16]byte(packet[56:]))
}

// message matches a message about an address: a Query of the peer's, or what comes from the pod.
func message(kind mld.Type, addr netip.Addr) func(netnslab.Frame) bool {
	return func(f netnslab.Frame) bool {
		k, a := about(f)
		return k == kind && a == addr && f.Outgoing == (kind == mld.TypeQuery)
	}
}

// said returns what the pod has said so far, without what the peer's own kernel says.
func said(c *netnslab.Capture) []netnslab.Frame {
	return slices.DeleteFunc(c.Frames(), func(f netnslab.Frame) bool { return f.Outgoing })
}

func count(frames []netnslab.Frame, match func(netnslab.Frame) bool) (n int) {
	for _, f := range frames {
		if match(f) {
			n++
		}
	}
	return n
}

func openFiles(t testing.TB) int {
	t.Helper()
	entries, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		t.Fatal(err)
	}
	return len(entries)
}

// TestStart: the kernel is mute, its memberships are reported, those that stood and those that come, once each.
func TestStart(t *testing.T) {
	pod, peer := pod(t)
	pod.LinkLocal()
	pod.Join(group)
	a := start(t, config(pod))
	c := peer.Capture(netnslab.MLD)
	s := state(t, a)
	if s.KernelReports != agent.Mute || s.Link.Name != "eth0" || s.Link.Source != pod.LinkLocal() {
		t.Fatalf("%+v", s)
	}
	if err := a.WaitReported(soon(t), group); err != nil {
		t.Fatal(err)
	}
	application := pod.Join(other)
	c.Wait(patience, "Report of a new join", message(mld.TypeReport, other))
	netnslab.WaitFor(t, "muted report of the kernel", patience, func() (bool, string) {
		s := state(t, a)
		return s.Muted > 0, fmt.Sprintf("%+v", s)
	}, pod.Node())

	const mrd = 500 * time.Millisecond
	ask(peer, netip.Addr{}, mrd)
	query := c.Wait(patience, "Query", message(mld.TypeQuery, netip.IPv6Unspecified()))
	answers := func(addr netip.Addr) int { // a repeat of the Report of a join may come right before the Query
		after := slices.DeleteFunc(said(c), func(f netnslab.Frame) bool { return f.Time.Before(query.Time) })
		return count(after, message(mld.TypeReport, addr))
	}
	for _, addr := range []netip.Addr{group, other} {
		netnslab.WaitFor(t, fmt.Sprintf("answer for %v", addr), patience, func() (bool, string) {
			return answers(addr) > 0, ""
		})
	}
	netnslab.WaitFor(t, "end of all that is to be said", patience, func() (bool, string) {
		for _, addr := range state(t, a).Addresses {
			if addr.State != listener.IdleListener {
				return false, fmt.Sprintf("%+v", addr)
			}
		}
		return true, ""
	})
	if err := application.Close(); err != nil {
		t.Fatal(err)
	}
	c.Wait(patience, "Done of a group that its application left", message(mld.TypeDone, other))
	declare(t, a, last)
	c.Wait(patience, "sentinel", message(mld.TypeReport, last))
	frames := said(c)
	for _, addr := range []netip.Addr{group, other} {
		if n := answers(addr); n != 1 {
			t.Errorf("%d answers for %v, want 1", n, addr)
		}
	}
	for _, f := range frames {
		kind, addr := about(f)
		if kind == mld.TypeReportV2 {
			t.Errorf("the kernel was heard: %v", f)
		}
		if late := f.Time.Sub(query.Time) - mrd; kind == mld.TypeReport && addr == group && late > 50*time.Millisecond { // V1-26
			t.Errorf("%v later than it may be: %v", late, f)
		}
	}
}

// TestV1_30_V1_38_RealDAD: the solicited-node address is reported from "::" before duplicate address detection ends,
// and again afterwards.
func TestV1_30_V1_38_RealDAD(t *testing.T) {
	pod, peer := pod(t, netnslab.DAD, netnslab.Down)
	a := start(t, config(pod))
	c := peer.Capture(netnslab.MLD)
	declare(t, a, group)
	peer.SetUp()
	pod.SetUp()
	own := pod.LinkLocal().As16()
	solicited := netip.AddrFrom16([16]byte{0: 0xff, 1: 0x02, 11: 1, 12: 0xff, 13: own[13], 14: own[14], 15: own[15]})
	if err := a.WaitReported(soon(t), group, solicited); err != nil {
		t.Fatal(err)
	}
	for _, addr := range []netip.Addr{group, solicited} {
		netnslab.WaitFor(t, fmt.Sprintf("Report of %v from :: first, and then from %v", addr, pod.LinkLocal()), patience,
			func() (bool, string) {
				var sources []netip.Addr
				for _, f := range said(c) {
					if message(mld.TypeReport, addr)(f) {
						sources = append(sources, f.Src())
					}
				}
				n := len(sources)
				return n >= 2 && sources[0].IsUnspecified() && sources[n-1] == pod.LinkLocal(), fmt.Sprint(sources)
			})
	}
}

// TestV2_01_V2_60_V2_61_RealDAD: in MLDv2 too, and as often as the Robustness Variable says once there is an address.
func TestV2_01_V2_60_V2_61_RealDAD(t *testing.T) {
	pod, peer := pod(t, netnslab.DAD, netnslab.Down)
	a := start(t, config2(pod))
	c := peer.Capture(netnslab.MLD)
	peer.SetUp()
	pod.SetUp()
	own := pod.LinkLocal()
	low := own.As16()
	solicited := netip.AddrFrom16([16]byte{0: 0xff, 1: 0x02, 11: 1, 12: 0xff, 13: low[13], 14: low[14], 15: low[15]})
	if err := a.WaitReported(soon(t), solicited); err != nil {
		t.Fatal(err)
	}
	const changeToExclude = "4"
	netnslab.WaitFor(t, fmt.Sprintf("TO_EX(%v) from :: first, and then twice from %v", solicited, own), patience,
		func() (bool, string) {
			out := c.Tshark(t.Context(), "-Y", "icmpv6.type == 143 && eth.src == "+pod.HardwareAddr().String(), "-T", "fields",
				"-e", "ipv6.src", "-e", "icmpv6.mldr.mar.record_type", "-e", "icmpv6.mldr.mar.multicast_address")
			var sources []string
			for line := range strings.Lines(out) {
				f := strings.Split(strings.TrimSpace(line), "\t")
				types, addrs := strings.Split(f[1], ","), strings.Split(f[2], ",")
				if i := slices.Index(addrs, solicited.String()); i >= 0 && types[i] == changeToExclude {
					sources = append(sources, f[0])
				}
			}
			n := len(sources)
			return n >= 3 && sources[0] == "::" && sources[n-1] == own.String() && sources[n-2] == own.String(), fmt.Sprint(sources)
		})
}

// TestStop: a Done for every address, applications' and the kernel's own included; the kernel stays mute, and the end
// comes within a second.
func TestStop(t *testing.T) {
	pod, peer := pod(t, netnslab.Down)
	// The kernel's own repeats must not outlast its muteness, which takes them up to a second after the first report.
	pod.Node().SetSysctl("net/ipv6/conf/eth0/mldv2_unsolicited_report_interval", "1")
	peer.SetUp()
	pod.SetUp()
	pod.LinkLocal()
	pod.Join(other)
	a := start(t, config(pod))
	declare(t, a, group)
	if err := a.WaitReported(soon(t), group, other); err != nil {
		t.Fatal(err)
	}
	var addrs []netip.Addr
	for _, addr := range state(t, a).Addresses {
		if addr.Reportable {
			addrs = append(addrs, addr.Addr)
		}
	}
	if len(addrs) < 3 {
		t.Fatalf("%v: the kernel's own are missing", addrs)
	}
	c := peer.Capture(netnslab.MLD)
	stopped := time.Now()
	if err := a.Stop(soon(t)); err != nil {
		t.Fatal(err)
	}
	if err := ended(t, a); !errors.Is(err, agent.ErrStopped) || time.Since(stopped) > 2*time.Second {
		t.Errorf("ended after %v: %v", time.Since(stopped), err)
	}
	// With that the kernel may speak, and answers; so nothing was said before but these.
	ask(peer, netip.Addr{}, 10*time.Millisecond)
	c.Wait(patience, "answer of the kernel", message(mld.TypeReport, other))
	frames := c.Frames()
	frames = frames[:slices.IndexFunc(frames, message(mld.TypeQuery, netip.IPv6Unspecified()))]
	for _, addr := range addrs {
		if n := count(frames, message(mld.TypeDone, addr)); n != 1 {
			t.Errorf("%d Dones for %v, want 1", n, addr)
		}
	}
	for _, f := range frames {
		if f.ICMPv6() != uint8(mld.TypeDone) && !f.Outgoing {
			t.Errorf("between Stop and the Query: %v", f)
		}
	}
}

// TestStopThenDelete is what a container's end looks like: the agent is gone with the interface.
func TestStopThenDelete(t *testing.T) {
	pod, peer := pod(t)
	before := openFiles(t)
	a := start(t, config(pod))
	stopped := time.Now()
	if err := a.Stop(soon(t)); err != nil {
		t.Fatal(err)
	}
	peer.Delete()
	if err := ended(t, a); !errors.Is(err, agent.ErrStopped) || time.Since(stopped) >= time.Second {
		t.Errorf("ended after %v: %v", time.Since(stopped), err)
	}
	if after := openFiles(t); after > before {
		t.Errorf("%d descriptors before and %d after", before, after)
	}
}

// TestClose: nobody is told anything, and the kernel answers the next Query.
func TestClose(t *testing.T) {
	pod, peer := pod(t)
	pod.LinkLocal()
	pod.Join(other)
	a := start(t, config(pod))
	declare(t, a, group)
	if err := a.WaitReported(soon(t), group, other); err != nil {
		t.Fatal(err)
	}
	c := peer.Capture(netnslab.MLD)
	a.Close()
	if err := ended(t, a); !errors.Is(err, agent.ErrStopped) {
		t.Error(err)
	}
	ask(peer, netip.Addr{}, 10*time.Millisecond)
	c.Wait(patience, "answer of the kernel", message(mld.TypeReport, other))
	for _, f := range said(c) {
		if kind, addr := about(f); kind == mld.TypeDone || addr == group {
			t.Errorf("after Close: %v", f)
		}
	}
}

// What Close leaves is over when it returns: the namespace may be closed, and a test may end whose log is told the events.
func TestCloseWaits(t *testing.T) {
	e, _ := pod(t)
	for range 20 {
		var told []agent.EventKind
		cfg := config2(e)
		cfg.KernelReports = agent.Keep // nobody but the owner of the agent is telling
		cfg.Observe = func(event agent.Event) { told = append(told, event.Kind) }
		a, err := agent.Start(cfg)
		if err != nil {
			t.Fatal(err)
		}
		a.Close()
		select {
		case <-a.Done():
		default:
			t.Fatal("Close has returned before the end")
		}
		if len(told) == 0 || told[len(told)-1] != agent.EventEnded {
			t.Fatalf("told %v, want the end last", told)
		}
		a.Close() // a second one does nothing
	}
}

// A program's mistakes are refused where they are made.
func TestMistakes(t *testing.T) {
	e, _ := pod(t)
	if _, err := agent.Start(agent.Config{Index: e.Index()}); err == nil || !strings.Contains(err.Error(), "Config.Netns") {
		t.Errorf("started without a namespace: %v", err)
	}
	a := start(t, config2(e))
	if err := a.Listen(soon(t), agent.KernelID, group, listener.AnySource); err == nil {
		t.Error("spoke in the name of the kernel")
	}
	if a, err := a.Groups(soon(t)); err != nil || slices.ContainsFunc(a, func(g agent.Group) bool { return g.Addr == group }) {
		t.Errorf("what was refused is listened to: %v, %v", a, err)
	}
}

// Whoever looks at an agent that is on its way out is told why it ends, and not that a socket is closed.
func TestStateWhileEnding(t *testing.T) {
	e, _ := pod(t)
	for range 20 {
		a := start(t, config2(e))
		looked := make(chan error)
		go func() {
			for {
				if _, err := a.State(soon(t)); err != nil {
					looked <- err
					return
				}
			}
		}()
		if _, err := a.State(soon(t)); err != nil {
			t.Fatal(err)
		}
		a.Close()
		if err := <-looked; !errors.Is(err, agent.ErrStopped) {
			t.Fatalf("%v, want agent.ErrStopped", err)
		}
		ended(t, a)
	}
}

// TestKeep: whatever both want has one voice, the kernel's.
func TestKeep(t *testing.T) {
	pod, peer := pod(t)
	pod.LinkLocal()
	cfg := config(pod)
	cfg.KernelReports = agent.Keep
	a := start(t, cfg)
	c := peer.Capture(netnslab.MLD)
	declare(t, a, group)
	c.Wait(patience, "Report of the declared group", message(mld.TypeReport, group))
	ask(peer, netip.Addr{}, 10*time.Millisecond) // from now on the kernel speaks MLDv1
	c.Wait(patience, "answer", message(mld.TypeReport, group))

	application := pod.Join(group)
	netnslab.WaitFor(t, "end of our part", patience, func() (bool, string) {
		s := state(t, a)
		return len(s.Addresses) == 0, fmt.Sprintf("%+v", s)
	}, pod.Node())
	before := len(said(c))
	ask(peer, group, 10*time.Millisecond)
	declare(t, a, last)
	c.Wait(patience, "sentinel", message(mld.TypeReport, last))
	netnslab.WaitFor(t, "answer of the kernel", patience, func() (bool, string) {
		return count(said(c)[before:], message(mld.TypeReport, group)) > 0, ""
	})
	if n := count(c.Frames(), message(mld.TypeDone, group)); n != 0 {
		t.Errorf("%d Dones of a group that passed to the kernel", n)
	}
	if err := application.Close(); err != nil {
		t.Fatal(err)
	}
	netnslab.WaitFor(t, "our part again", patience, func() (bool, string) {
		s := state(t, a)
		return len(s.Addresses) == 2, fmt.Sprintf("%+v", s)
	}, pod.Node())
	if s := state(t, a); s.KernelReports != agent.Keep || s.Muted != 0 {
		t.Errorf("%+v", s)
	}
}

// TestSecondAgent: one voice on an interface; the next one may come when the first has gone.
func TestSecondAgent(t *testing.T) {
	pod, peer := pod(t)
	pod.LinkLocal()
	first := start(t, config(pod))
	before := openFiles(t)
	for _, mode := range []agent.KernelReports{agent.Auto, agent.Mute} {
		cfg := config(pod)
		cfg.KernelReports = mode
		if a, err := agent.Start(cfg); !errors.Is(err, kernel.ErrMuted) || a != nil {
			t.Fatalf("%v: %v, want kernel.ErrMuted", mode, err)
		}
	}
	if after := openFiles(t); after > before {
		t.Errorf("%d descriptors before and %d after", before, after)
	}
	c := peer.Capture(netnslab.MLD)
	declare(t, first, group)
	c.Wait(patience, "Report of the first", message(mld.TypeReport, group))
	first.Close()
	ended(t, first)
	second := start(t, config(pod))
	declare(t, second, other)
	c.Wait(patience, "Report of the second", message(mld.TypeReport, other))
}

// TestStartRefused: what is no interface for MLD is refused by name, and leaves no descriptor open.
// On a loopback interface there is nothing to speak and nobody to answer (K27).
func TestK27_StartRefused(t *testing.T) {
	pod, _ := pod(t)
	lo := pod.Node().Interface("lo").Index()
	tun := lo // where /dev/net/tun is root's alone
	if out, err := pod.Node().Command(t.Context(), "ip", "tuntap", "add", "dev", "tun0", "mode", "tun").CombinedOutput(); err == nil {
		tun = pod.Node().Interface("tun0").Index()
	} else {
		t.Logf("no tun: %v: %s", err, out)
	}
	before := openFiles(t)
	for _, tc := range []struct {
		what  string
		index int
		cfg   listener.Config
		want  error
	}{
		{"tun", tun, listener.Config{}, agent.ErrEthernet},
		{"loopback", lo, listener.Config{}, agent.ErrEthernet},
		{"no such interface", 4711, listener.Config{}, link.ErrGone},
		{"index 0", 0, listener.Config{}, link.ErrGone},
		{"robustness 8", pod.Index(), listener.Config{Robustness: 8}, nil},
	} {
		cfg := config(pod)
		cfg.Index, cfg.Listener = tc.index, tc.cfg
		a, err := agent.Start(cfg)
		if err == nil {
			a.Close()
			ended(t, a)
			t.Errorf("%s: started", tc.what)
		}
		if tc.want != nil && !errors.Is(err, tc.want) {
			t.Errorf("%s: %v, want %v", tc.what, err, tc.want)
		}
	}
	if after := openFiles(t); after > before {
		t.Errorf("%d descriptors before and %d after", before, after)
	}
	// Nothing is left of the last one's mute either.
	start(t, config(pod))
}

// TestInterfaceDeleted: the agent ends by itself, says why, and lets go of everything.
func TestInterfaceDeleted(t *testing.T) {
	pod, peer := pod(t)
	pod.LinkLocal()
	before := openFiles(t)
	a := start(t, config(pod))
	declare(t, a, group)
	if during := openFiles(t); during <= before {
		t.Errorf("%d descriptors before and %d with an agent: the count proves nothing", before, during)
	}
	waited := make(chan error, 1)
	go func() { waited <- a.WaitReported(context.Background(), other) }()
	peer.Delete()
	if err := ended(t, a); !errors.Is(err, link.ErrGone) {
		t.Errorf("%v, want link.ErrGone", err)
	}
	if err := <-waited; !errors.Is(err, link.ErrGone) {
		t.Errorf("who waited: %v", err)
	}
	if after := openFiles(t); after > before {
		t.Errorf("%d descriptors before and %d after", before, after)
	}
	if err := a.Stop(soon(t)); !errors.Is(err, link.ErrGone) {
		t.Errorf("Stop afterwards: %v", err)
	}
}

// idle starts n agents, each in a namespace of its own, and tells what they cost when nothing happens.
func idle(t testing.TB, n int, config func(*netnslab.Endpoint) agent.Config) (bytes, goroutines, descriptors float64) {
	lab := netnslab.New(t)
	var endpoints []*netnslab.Endpoint
	for i := range n {
		pod, _ := lab.Veth(lab.Node(fmt.Sprintf("pod%d", i)), "eth0", lab.Host(), fmt.Sprintf("v%d", i))
		pod.LinkLocal()
		endpoints = append(endpoints, pod)
	}
	used := func() (heap, stack uint64) {
		runtime.GC()
		runtime.GC()
		var m runtime.MemStats
		runtime.ReadMemStats(&m)
		return m.HeapAlloc, m.StackInuse
	}
	files, routines := openFiles(t), runtime.NumGoroutine()
	heap, stack := used()
	for _, e := range endpoints {
		a := start(t, config(e))
		if err := a.WaitReported(soon(t)); err != nil { // the owner has done what was to be done at once
			t.Fatal(err)
		}
	}
	heapAfter, stackAfter := used()
	per := func(after, before int) float64 { return float64(after-before) / float64(n) }
	return per(int(heapAfter+stackAfter), int(heap+stack)), per(runtime.NumGoroutine(), routines), per(openFiles(t), files)
}

// TestIdleAgents: no goroutine beside the owner and one for each source, and a handful of descriptors; those of MLDv2
// are two more, for the log and the kernel's list of sources.
func TestIdleAgents(t *testing.T) {
	for _, tc := range []struct {
		name        string
		config      func(*netnslab.Endpoint) agent.Config
		descriptors float64
	}{{"MLDv1", config, 6}, {"MLDv2", config2, 8}} {
		t.Run(tc.name, func(t *testing.T) {
			bytes, goroutines, descriptors := idle(t, 20, tc.config)
			t.Logf("an agent costs %.0f octets", bytes)
			if goroutines > 4 || descriptors > tc.descriptors || bytes > 64<<10 {
				t.Errorf("an agent costs %.0f octets, %v goroutines, %v descriptors", bytes, goroutines, descriptors)
			}
		})
	}
}

func BenchmarkIdleAgents(b *testing.B) {
	for b.Loop() {
		bytes, goroutines, descriptors := idle(b, 200, config2)
		b.ReportMetric(bytes, "B/agent")
		b.ReportMetric(goroutines, "goroutines/agent")
		b.ReportMetric(descriptors, "descriptors/agent")
	}
}

// An observer is told of an application's join, of our Report of it, and of the kernel's, which is dropped.
func TestObserveKernel(t *testing.T) {
	t.Parallel()
	e, _ := pod(t)
	e.LinkLocal()
	seen := make(chan string, 1024)
	cfg := config2(e)
	cfg.Observe = func(e agent.Event) {
		switch {
		case e.Kind == agent.EventJoined && e.Addr == group:
			seen <- "joined"
		case e.Kind == agent.EventSent && e.Sent.Addr == group:
			seen <- fmt.Sprint("sent ", e.Sent.Cause)
		case e.Kind == agent.EventMuted:
			for r := range e.Heard.Message.Records.All() {
				if r.MulticastAddress == group {
					seen <- fmt.Sprint("muted ", r.Type)
				}
			}
		}
	}
	start(t, cfg)
	e.Join(group)
	want := map[string]bool{"joined": true, "sent changed": true, "muted TO_EX": true}
	var first string
	for deadline := time.After(patience); len(want) > 0; {
		select {
		case s := <-seen:
			if first == "" {
				first = s
			}
			delete(want, s)
		case <-deadline:
			t.Fatalf("not told: %v", want)
		}
	}
	if first != "joined" && first != "muted TO_EX" { // which has no order among the others
		t.Errorf("told of %q first", first)
	}
}

// TestMappedAddress: an address that only looks link-local to Go does not become the source, nor end the process.
func TestMappedAddress(t *testing.T) {
	pod, peer := pod(t)
	pod.LinkLocal()
	a := start(t, config(pod))
	c := peer.Capture(netnslab.MLD)
	add := pod.Node().Command(t.Context(), "ip", "addr", "add", "::ffff:169.254.0.1/128", "dev", "eth0", "nodad")
	if out, err := add.CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	if source := state(t, a).Link.Source; source != pod.LinkLocal() { // of the link as it is now
		t.Errorf("the source is %v, want %v", source, pod.LinkLocal())
	}
	declare(t, a, group)
	if f := c.Wait(patience, "Report", message(mld.TypeReport, group)); f.Src() != pod.LinkLocal() {
		t.Errorf("reported from %v, want %v", f.Src(), pod.LinkLocal())
	}
}

// TestKeepHairpin: a bridge whose port is in hairpin mode sends our Reports back to us, and they come to an end.
func TestKeepHairpin(t *testing.T) {
	lab := netnslab.New(t)
	pod := lab.Bridge("br0", netnslab.BridgeOptions{}).Connect(lab.Node("pod"), "eth0")
	hairpin := lab.Host().Command(t.Context(), "bridge", "link", "set", "dev", pod.Peer().Name(), "hairpin", "on")
	if out, err := hairpin.CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	pod.LinkLocal()
	cfg := config2(pod)
	cfg.KernelReports = agent.Keep
	a := start(t, cfg)
	declare(t, a, group)
	netnslab.WaitFor(t, "end of all that is to be said", patience, func() (bool, string) {
		s := state(t, a)
		return len(s.Addresses) == 1 && s.Addresses[0].State == listener.IdleListener, fmt.Sprintf("%+v", s)
	})
	if s := state(t, a); s.Counters.ReportsSent > 4 {
		t.Errorf("%d Reports of one address", s.Counters.ReportsSent)
	}
}
