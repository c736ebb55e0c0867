package agent_test

import (
	"encoding/json"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/seed-aaab8e3a/cni-mld/mld"
	"github.com/seed-aaab8e3a/cni-mld/mld/agent"
	"github.com/seed-aaab8e3a/cni-mld/mld/listener"
	"github.com/seed-aaab8e3a/cni-mld/netnslab"
)

var (
	channel = netip.MustParseAddr("ff3e::8000:4321")
	u1      = netip.MustParseAddr("2001:db8::1")
	u2      = netip.MustParseAddr("2001:db8::2")
)

// changes are the records of state changes among the frames, as text, with the number of times each was sent.
func changes(t testing.TB, frames []netnslab.Frame) map[string]int {
	t.Helper()
	list := map[string]int{}
	for _, f := range frames {
		if f.ICMPv6() != uint8(mld.TypeReportV2) {
			continue
		}
		p, err := mld.Parse(f.IPv6(), mld.AcceptUnspecified)
		if err != nil {
			t.Fatal(err)
		}
		for r := range p.Message.Records.All() {
			if r.Type > mld.ModeIsExclude {
				list[fmt.Sprint(uint8(r.Type), " ", r.MulticastAddress, " ", slices.Collect(r.Sources.All()))]++
			}
		}
	}
	return list
}

// An mdbEntry is one of "bridge -j mdb".
type mdbEntry struct {
	Group   string `json:"grp"`
	Source  string `json:"src"`
	Mode    string `json:"filter_mode"`
	Sources []struct {
		Addr string `json:"address"`
	} `json:"source_list"`
}

// mdb is what iproute2 says of a (*,G) entry: its mode and sources, or "" if there is none.
func mdb(t testing.TB, b *netnslab.Bridge, group netip.Addr) string {
	t.Helper()
	out, err := b.Node().Command(t.Context(), "bridge", "-j", "-d", "-s", "mdb", "show", "dev", b.Name()).Output()
	if err != nil {
		t.Fatal(err)
	}
	var dump []struct {
		MDB []mdbEntry `json:"mdb"`
	}
	if err := json.Unmarshal(out, &dump); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	for _, d := range dump {
		for _, e := range d.MDB {
			if e.Group != group.String() || e.Source != "" {
				continue
			}
			var list []string
			for _, s := range e.Sources {
				list = append(list, s.Addr)
			}
			slices.Sort(list)
			return fmt.Sprint(e.Mode, " ", list)
		}
	}
	return ""
}

// TestV2_20_ApplicationsSources: what applications want, source by source, is on the wire and in the table of a bridge
// that speaks MLDv2, twice each time, and the kernel is not heard. The judges are tshark and iproute2.
func TestV2_20_ApplicationsSources(t *testing.T) {
	lab := netnslab.New(t)
	b := lab.Bridge("br0", netnslab.BridgeOptions{
		Querier: 2, LastMemberInterval: 100 * time.Millisecond, LastMemberCount: 2,
	})
	pod := b.Connect(lab.Node("pod"), "eth0")
	pod.LinkLocal()
	cfg := config2(pod)
	cfg.Listener.UnsolicitedReportInterval = 20 * time.Millisecond
	a := start(t, cfg)
	settle := func() {
		t.Helper()
		netnslab.WaitFor(t, "end of all that is to be said", patience, func() (bool, string) {
			for _, addr := range state(t, a).Addresses {
				if addr.State != listener.IdleListener {
					return false, fmt.Sprintf("%+v", addr)
				}
			}
			return true, ""
		})
	}
	settle()
	before := state(t, a)
	c := pod.Peer().Capture(netnslab.MLD)
	for now := state(t, a); now.Counters != before.Counters; now = state(t, a) { // a Query has come just then
		before = now
		c = pod.Peer().Capture(netnslab.MLD)
	}

	var first, second *netnslab.Membership
	must := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	var all []string
	for _, step := range []struct {
		rule string
		what string
		do   func()
		addr netip.Addr
		sent string // record types as in RFC 9777 section 5.2.12
		mdb  string
	}{
		{
			"V2-62", "a first source", func() { first = pod.JoinSource(channel, u1) }, channel,
			"5 ff3e::8000:4321 [2001:db8::1]", "include [2001:db8::1]",
		},
		{
			"V2-21", "one more", func() { must(first.AddSource(u2)) }, channel,
			"5 ff3e::8000:4321 [2001:db8::2]", "include [2001:db8::1 2001:db8::2]",
		},
		{
			"V2-21", "one less", func() { must(first.DropSource(u1)) }, channel,
			"6 ff3e::8000:4321 [2001:db8::1]", "include [2001:db8::2]",
		},
		{
			"V2-62", "the last one", func() { must(first.Close()) }, channel,
			"6 ff3e::8000:4321 [2001:db8::2]", "",
		},
		{
			"V2-23", "any source", func() { first = pod.Join(group) }, group,
			"4 ff05::4321 []", "exclude []",
		},
		{
			"V2-22", "but one", func() { must(first.Block(u1)) }, group,
			"6 ff05::4321 [2001:db8::1]", "exclude [2001:db8::1]",
		},
		{
			"V2-16", "which somebody else wants", func() { second = pod.JoinSource(group, u1) }, group,
			"5 ff05::4321 [2001:db8::1]", "exclude []",
		},
		{
			"V2-24", "who is the last", func() { must(first.Close()) }, group,
			"3 ff05::4321 [2001:db8::1]", "include [2001:db8::1]",
		},
		{
			"V2-62", "and leaves", func() { must(second.Close()) }, group,
			"6 ff05::4321 [2001:db8::1]", "",
		},
	} {
		had := changes(t, said(c))[step.sent]
		step.do()
		netnslab.WaitFor(t, step.rule+": "+step.what+": "+step.sent, patience, func() (bool, string) {
			got := changes(t, said(c))
			return got[step.sent] == had+2, fmt.Sprint(got)
		})
		netnslab.WaitFor(t, step.rule+": "+step.what+": the bridge's table", patience, func() (bool, string) {
			got := mdb(t, b, step.addr)
			return got == step.mdb, got
		}, b.Node())
		settle()
		all = append(all, step.sent, step.sent)
	}

	// The kernel would have said the same, and has; but every frame is one of the agent's.
	declare(t, a, last)
	netnslab.WaitFor(t, "sentinel", patience, func() (bool, string) {
		got := changes(t, said(c))
		return got["4 "+last.String()+" []"] == 2, fmt.Sprint(got)
	})
	s := state(t, a)
	sent, muted := s.Counters.ReportsSent-before.Counters.ReportsSent, s.Muted-before.Muted
	if n := uint64(len(said(c))); n != sent || muted == 0 {
		t.Errorf("%d frames came from the pod, of which the agent has sent %d; %d of the kernel's were dropped", n, sent, muted)
	}
	var seen []string
	out := c.Tshark(t.Context(), "-Y", "icmpv6.type == 143 && icmpv6.checksum.status == 1 && icmpv6.mldr.mar.record_type > 2",
		"-T", "fields", "-E", "separator=;", "-e", "icmpv6.mldr.mar.record_type", "-e", "icmpv6.mldr.mar.multicast_address",
		"-e", "icmpv6.mldr.mar.source_address")
	for line := range strings.Lines(out) {
		f := strings.Split(strings.TrimSpace(line), ";")
		if f[1] != last.String() && (f[1] == group.String() || f[1] == channel.String()) {
			seen = append(seen, f[0]+" "+f[1]+" ["+f[2]+"]")
		}
	}
	if !slices.Equal(seen, all) {
		t.Errorf("tshark sees\n%v, want\n%v", strings.Join(seen, "\n"), strings.Join(all, "\n"))
	}
}

// TestV2_49_Version1Querier: the agent follows a querier of version 1, which the kernel is kept from hearing; so the
// sources of applications stay known, and are told when the querier is one of version 2. When the agent is gone, the
// kernel answers both.
func TestV2_49_Version1Querier(t *testing.T) {
	pod, peer := pod(t)
	pod.LinkLocal()
	a := start(t, config2(pod))
	c := peer.Capture(netnslab.MLD)
	member := pod.JoinSource(group, u1)
	if err := a.WaitReported(soon(t), group); err != nil {
		t.Fatal(err)
	}
	ask(peer, netip.Addr{}, 10*time.Millisecond)
	c.Wait(patience, "MLDv1 answer", message(mld.TypeReport, group))
	if err := member.AddSource(u2); err != nil {
		t.Fatal(err)
	}
	netnslab.WaitFor(t, "the second source", patience, func() (bool, string) {
		for _, addr := range state(t, a).Addresses {
			if addr.Addr == group {
				return addr.Mode == listener.Include && slices.Equal(addr.Sources, []netip.Addr{u1, u2}), fmt.Sprintf("%+v", addr)
			}
		}
		return false, "none"
	})
	a.Close()
	ended(t, a)
	for _, version := range []mld.Version{mld.Version2, mld.Version1} {
		want := map[mld.Version]mld.Type{mld.Version1: mld.TypeReport, mld.Version2: mld.TypeReportV2}[version]
		c := peer.Capture(netnslab.MLD)
		// Asked more than once: the mute goes a moment after its socket while another process is being started.
		netnslab.WaitFor(t, "the kernel's answer", patience, func() (bool, string) {
			peer.SendPacket(mld.AppendQuery(nil, router, mld.AllNodes, mld.Query{Version: version, MaxResponseCode: 10}))
			heard := c.Frames()
			return slices.ContainsFunc(heard, func(f netnslab.Frame) bool { return !f.Outgoing && mld.Type(f.ICMPv6()) == want }),
				fmt.Sprint(heard)
		})
	}
}

// TestStandingSources: an agent that comes late takes what stands for any source, and the first Query settles it, first
// of all for the kernel, whose answer is muted.
func TestStandingSources(t *testing.T) {
	pod, peer := pod(t)
	pod.LinkLocal()
	pod.JoinSource(group, u1)
	pod.JoinSource(channel, u2)
	a := start(t, config2(pod))
	peer.SendPacket(mld.AppendQuery(nil, router, mld.AllNodes, mld.Query{Version: mld.Version2, MaxResponseCode: 1}))
	netnslab.WaitFor(t, "the sources", patience, func() (bool, string) {
		s := state(t, a)
		found := 0
		for _, addr := range s.Addresses {
			if addr.Mode == listener.Include && (addr.Addr == group && slices.Equal(addr.Sources, []netip.Addr{u1}) ||
				addr.Addr == channel && slices.Equal(addr.Sources, []netip.Addr{u2})) {
				found++
			}
		}
		return found == 2 && s.KernelReports == agent.Mute, fmt.Sprintf("%+v", s.Addresses)
	})
}
