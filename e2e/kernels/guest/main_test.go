//go:build kernels

package guest

import (
	"context"
	"fmt"
	"net/netip"
	"os"
	"slices"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/seed-aaab8e3a/cni-mld/e2e/chain"
	"github.com/seed-aaab8e3a/cni-mld/mld"
	"github.com/seed-aaab8e3a/cni-mld/mld/bridge"
	"github.com/seed-aaab8e3a/cni-mld/netnslab"
	"github.com/seed-aaab8e3a/cni-mld/plugin/api"
)

func TestMain(m *testing.M) { netnslab.Main(m) }

// patience is the ceiling of every wait for what is sure to come soon; the guest is slow.
const patience = 15 * time.Second

// Where applications talk, and how much they say.
const (
	port      = 5000
	datagrams = 3
)

var (
	groupA = netip.MustParseAddr("ff05::a")      // declared, with delivery
	groupB = netip.MustParseAddr("ff05::b")      // declared, without
	groupC = netip.MustParseAddr("ff05::c")      // an application's
	groupS = netip.MustParseAddr("ff3e::8000:1") // source-specific: declared, with delivery
	groupT = netip.MustParseAddr("ff3e::8000:2") // declared, without
	groupU = netip.MustParseAddr("ff3e::8000:3") // an application's

	allNodes = mld.AllNodes

	goodAddr = netip.MustParseAddr("fd00:1::a10") // sends what is wanted
	badAddr  = netip.MustParseAddr("fd00:1::a66") // sends what is not
)

// A segment is a lab with a bridge that asks, two senders, and bob, who wants nothing.
type segment struct {
	*netnslab.Lab
	tb      testing.TB
	bridge  *netnslab.Bridge
	version mld.Version // of the bridge's queries
	chain   *chain.Chain

	good, bad, bob *netnslab.Endpoint
}

// newSegment makes a segment whose bridge asks in the version once, and after a leave; keys are mld's.
func newSegment(tb testing.TB, version int, keys map[string]any) *segment {
	tb.Helper()
	s := &segment{Lab: netnslab.New(tb), tb: tb, version: mld.Version(version)}
	s.bridge = s.Bridge("cni0", netnslab.BridgeOptions{
		Querier: version, QueryInterval: time.Hour, StartupQueryCount: 1, LastMemberInterval: 100 * time.Millisecond,
	})
	s.good, s.bad, s.bob = s.connect("good"), s.connect("bad"), s.connect("bob")
	s.good.AddAddr(netip.PrefixFrom(goodAddr, 64))
	s.bad.AddAddr(netip.PrefixFrom(badAddr, 64))

	dir, err := os.MkdirTemp("", "guest-")
	if err != nil {
		tb.Fatal(err)
	}
	s.chain, err = chain.New(chain.Config{Host: s.Host(), Bin: "/opt/cni/bin", Dir: dir, Bridge: "cni0", MLD: keys})
	if err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), patience)
		defer cancel()
		if err := s.chain.Stop(ctx); err != nil {
			tb.Errorf("stop: %v", err)
		}
		if tb.Failed() {
			log, _ := os.ReadFile(api.LogPath(s.chain.RunDir))
			tb.Logf("the daemon's log:\n%s", log)
		}
		_ = os.RemoveAll(dir)
	})
	return s
}

func (s *segment) connect(name string) *netnslab.Endpoint {
	s.tb.Helper()
	return s.bridge.Connect(s.Node(name), chain.IfName)
}

// add attaches a new container by the chain, and has all that it listens to reported in the version of the bridge: a
// kernel that changes to version 1 forgets the leaves that it has not told.
func (s *segment) add(name string) *netnslab.Endpoint {
	s.tb.Helper()
	n := s.Node(name)
	if _, err := s.chain.Add(s.tb.Context(), n); err != nil {
		s.tb.Fatalf("ADD %s: %v", n, err)
	}
	e := n.Interface(chain.IfName)
	heard := e.Peer().Capture(netnslab.MLD)
	s.query()
	want := map[mld.Version]uint8{1: report, 2: reportV2}[s.version]
	heard.Wait(patience, fmt.Sprintf("Report of version %d", s.version), kind(want))
	return e
}

// routerAddr is whom queries come from. It is higher than the bridge's, so that the bridge remains the querier (B12).
var routerAddr = netip.MustParseAddr("fe80::8000:0:0:1")

// query sends a General Query, in the version of the bridge, by which everything is reported at once.
func (s *segment) query() {
	s.tb.Helper()
	s.bad.SendPacket(mld.AppendQuery(nil, routerAddr, allNodes, mld.Query{
		Version: s.version, MulticastAddress: netip.IPv6Unspecified(), MaxResponseCode: 100, QRV: 2, QQIC: 125,
	}))
}

// The ICMPv6 types of MLD.
const (
	report   = 131
	reportV2 = 143
)

// kind matches MLD of a type that comes from the node to the bridge.
func kind(k uint8) func(netnslab.Frame) bool {
	return func(f netnslab.Frame) bool { return !f.Outgoing && f.ICMPv6() == k }
}

// call runs the plugin mld alone.
func (s *segment) call(command string, e *netnslab.Endpoint) error {
	s.tb.Helper()
	_, err := s.chain.Run(s.tb.Context(), chain.Call{Command: command, ContainerID: e.Node().Name(), Netns: e.Node().Path()})
	return err
}

// waitEntries waits until the bridge has entries on the port of e that forward the flows.
func (s *segment) waitEntries(e *netnslab.Endpoint, flows ...bridge.Flow) {
	s.tb.Helper()
	ctx, cancel := context.WithTimeout(s.tb.Context(), patience)
	defer cancel()
	if err := e.Port().WaitFlows(ctx, flows...); err != nil {
		s.tb.Fatal(err)
	}
}

// waitNoEntry waits until the bridge forwards none of the groups to e.
func (s *segment) waitNoEntry(e *netnslab.Endpoint, groups ...netip.Addr) {
	s.tb.Helper()
	netnslab.WaitFor(s.tb, fmt.Sprintf("end of the entries for %v", groups), patience, func() (bool, string) {
		found := s.entries(e, groups...)
		return len(found) == 0, fmt.Sprint(found)
	}, s.Host())
}

// entries returns what the bridge forwards of the groups to e.
func (s *segment) entries(e *netnslab.Endpoint, groups ...netip.Addr) []bridge.Entry {
	s.tb.Helper()
	members, err := e.Port().Members()
	if err != nil {
		s.tb.Fatal(err)
	}
	return slices.DeleteFunc(members, func(m bridge.Entry) bool { return !m.Forwards() || !slices.Contains(groups, m.Group) })
}

// A flow is how many frames of a source to a group have come.
type flow struct{ source, group netip.Addr }

// arriving sends data of both senders to each of the groups, and returns what of it arrives at e, and, which is an
// error, at bob.
func (s *segment) arriving(e *netnslab.Endpoint, groups ...netip.Addr) map[flow]int {
	s.tb.Helper()
	s.bridge.WaitQuerying(s.tb.Context())
	at, bob := e.Capture(), s.bob.Capture()
	for _, g := range groups {
		s.good.Send(g, port, []byte("data"), datagrams)
		s.bad.Send(g, port, []byte("unwanted"), datagrams)
	}
	s.good.Send(allNodes, port, []byte("the end"), 1) // which every bridge floods
	for _, c := range []*netnslab.Capture{at, bob} {
		c.Wait(patience, "the end", func(f netnslab.Frame) bool { return isData(f) && f.Dst() == allNodes })
	}
	if n := count(bob, groups); len(n) > 0 {
		s.tb.Errorf("bob, who wants nothing, got %v", n)
	}
	return count(at, groups)
}

func isData(f netnslab.Frame) bool {
	packet := f.IPv6()
	return !f.Outgoing && packet != nil && packet[6] == unix.IPPROTO_UDP
}

func count(c *netnslab.Capture, groups []netip.Addr) map[flow]int {
	counts := map[flow]int{}
	for _, f := range c.Frames() {
		if isData(f) && slices.Contains(groups, f.Dst()) {
			counts[flow{f.Src(), f.Dst()}]++
		}
	}
	return counts
}

// waitNoFlow waits until the bridge does not forward the source's packets to e.
func (s *segment) waitNoFlow(e *netnslab.Endpoint, group, source netip.Addr) {
	s.tb.Helper()
	netnslab.WaitFor(s.tb, fmt.Sprintf("end of the entry for (%v,%v)", source, group), patience, func() (bool, string) {
		found := s.entries(e, group)
		return !slices.ContainsFunc(found, func(m bridge.Entry) bool { return m.Source == source || !m.Source.IsValid() }), fmt.Sprint(found)
	}, s.Host())
}
