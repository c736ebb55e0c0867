package netnslab_test

import (
	"context"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/seed-aaab8e3a/cni-mld/mld"
	"github.com/seed-aaab8e3a/cni-mld/mld/bridge"
	"github.com/seed-aaab8e3a/cni-mld/netnslab"
)

// F12: with a querier the joined node receives and the other does not; without one both do.
func TestB1_BridgeConstrains(t *testing.T) {
	t.Parallel()
	for _, version := range []int{0, 1, 2} {
		t.Run(fmt.Sprintf("querier %d", version), func(t *testing.T) {
			t.Parallel()
			lab := netnslab.New(t)
			br := lab.Bridge("br0", netnslab.BridgeOptions{Querier: version})
			sender := br.Connect(lab.Node("sender"), "eth0")
			joined := br.Connect(lab.Node("joined"), "eth0")
			other := br.Connect(lab.Node("other"), "eth0")
			frames := other.Capture()
			membership := joined.Join(group)
			if err := joined.Port().Wait(withTimeout(t), group); err != nil {
				t.Fatal(err)
			}
			if version != 0 {
				br.WaitQuerying(withTimeout(t))
			}
			receiver, silent := joined.Receive(9000), other.Receive(9000)
			sender.Send(group, 9000, []byte("data"), 5)
			sender.Send(allNodes, 9000, []byte("the end"), 1)
			receiver.Wait(group, 5)
			silent.Wait(allNodes, 1)
			// The wire tells more than the socket, which would be silent without a membership.
			end := frames.Wait(5*time.Second, "the end", func(f netnslab.Frame) bool {
				return f.Dst() == allNodes && f.ICMPv6() == 0
			})
			heard := 0
			for _, f := range frames.Frames() {
				if f.Dst() == group && f.ICMPv6() == 0 && !f.Time.After(end.Time) { // a version 1 report goes there too
					heard++
				}
			}
			want := 5
			if version != 0 {
				want = 0
			}
			if heard != want || silent.Count(group) != 0 || receiver.Count(group) != 5 {
				t.Errorf("unjoined: %d frames, %d datagrams, joined: %d datagrams; want %d, 0 and 5",
					heard, silent.Count(group), receiver.Count(group), want)
			}
			if err := membership.Close(); err != nil {
				t.Error(err)
			}
		})
	}
}

func TestB2_EnableQuerier(t *testing.T) {
	t.Parallel()
	lab := netnslab.New(t)
	br := lab.Bridge("br0", netnslab.BridgeOptions{QueryResponseInterval: 400 * time.Millisecond})
	br.Connect(lab.Node("alice"), "eth0")
	if !br.Floods() {
		t.Error("constrains without a querier")
	}
	begin := time.Now()
	br.EnableQuerier(2)
	br.WaitQuerying(withTimeout(t))
	if took := time.Since(begin); took < 400*time.Millisecond {
		t.Errorf("constrains after %v, before the response interval is over", took)
	}
	br.DisableQuerier()
	if !br.Floods() {
		t.Error("constrains after the querier ended")
	}
	p := run(func(p *program) {
		lab := netnslab.New(p)
		br := lab.Bridge("br0", netnslab.BridgeOptions{})
		br.Connect(lab.Node("alice"), "eth0")
		ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
		defer cancel()
		br.WaitQuerying(ctx)
	})
	if !p.Failed() || !strings.Contains(p.log.String(), "still floods: context deadline exceeded: it knows no querier") {
		t.Errorf("without a querier: %q", p.log.String())
	}
}

// The judge of the queries is tshark. B4: the version is the one asked for.
func TestB4_QuerierIsHeard(t *testing.T) {
	t.Parallel()
	for version, want := range map[int]string{
		1: "fe80::ff:fe00:1 ff02::1 1 2000    ",
		2: "fe80::ff:fe00:1 ff02::1 1  2000 2 4",
	} {
		t.Run(fmt.Sprint(version), func(t *testing.T) {
			t.Parallel()
			lab := netnslab.New(t)
			br := lab.Bridge("br0", netnslab.BridgeOptions{Querier: version, QueryResponseInterval: 2 * time.Second})
			frames := br.Connect(lab.Node("alice"), "eth0").Capture(netnslab.MLD)
			frames.Wait(10*time.Second, "query", isMLD(130))
			frames.Close()
			heard := frames.Tshark(t.Context(), "-Y", "icmpv6.type == 130 && icmpv6.checksum.status == 1",
				"-T", "fields", "-E", "separator= ", "-e", "ipv6.src", "-e", "ipv6.dst", "-e", "ipv6.hlim",
				"-e", "icmpv6.mld.maximum_response_delay", "-e", "icmpv6.mld.maximum_response_code",
				"-e", "icmpv6.mld.flag.qrv", "-e", "icmpv6.mld.qqi")
			for line := range strings.Lines(heard) {
				if got := strings.TrimRight(line, "\n"); strings.TrimSpace(got) != strings.TrimSpace(want) {
					t.Errorf("heard %q, want %q", got, want)
				}
			}
			if heard == "" {
				t.Error("tshark finds no good query")
			}
		})
	}
}

func TestBridgeOptions(t *testing.T) {
	t.Parallel()
	lab := netnslab.New(t)
	lab.Bridge("plain", netnslab.BridgeOptions{NoSnooping: true})
	lab.Bridge("zero", netnslab.BridgeOptions{})
	lab.Bridge("lab", netnslab.BridgeOptions{Querier: 2})
	lab.Bridge("every", netnslab.BridgeOptions{
		Querier: 1, QueryInterval: 5 * time.Second, QueryResponseInterval: 500 * time.Millisecond,
		StartupQueryInterval: 2 * time.Second, StartupQueryCount: 7, LastMemberInterval: 300 * time.Millisecond,
		LastMemberCount: 5, MembershipInterval: 20 * time.Second, QuerierInterval: 11 * time.Second, HashMax: 64,
	})
	for name, want := range map[string][]string{
		"plain": {"mcast_snooping 0", "mcast_querier 0"},
		"zero": {"mcast_snooping 1", "mcast_querier 0", "mcast_stats_enabled 1", "mcast_mld_version 1",
			"mcast_query_interval 12500", "mcast_query_response_interval 1000", "vlan_filtering 0"},
		"lab": {"mcast_snooping 1", "mcast_querier 1", "mcast_mld_version 2", "mcast_query_interval 400",
			"mcast_query_response_interval 100", "mcast_startup_query_interval 100"},
		"every": {"mcast_querier 1", "mcast_mld_version 1", "mcast_query_interval 500", "mcast_query_response_interval 50",
			"mcast_startup_query_interval 200", "mcast_startup_query_count 7", "mcast_last_member_interval 30",
			"mcast_last_member_count 5", "mcast_membership_interval 2000", "mcast_querier_interval 1100", "mcast_hash_max 64"},
	} {
		shown := string(output(t, lab.Host(), "ip", "-d", "link", "show", name))
		for _, w := range want {
			if !strings.Contains(shown, w+" ") {
				t.Errorf("bridge %s: no %q in %s", name, w, shown)
			}
		}
	}
}

// B15: a port with fast leave forgets a group at once, another one asks first.
func TestB15_FastLeave(t *testing.T) {
	t.Parallel()
	lab := netnslab.New(t)
	br := lab.Bridge("br0", netnslab.BridgeOptions{Querier: 2})
	fast := br.Connect(lab.Node("fast"), "eth0", netnslab.FastLeave)
	slow := br.Connect(lab.Node("slow"), "eth0")
	for e, want := range map[*netnslab.Endpoint]string{fast: "on", slow: "off"} {
		shown := string(output(t, lab.Host(), "bridge", "-d", "link", "show", "dev", e.Peer().Name()))
		if !strings.Contains(shown, "fastleave "+want) {
			t.Errorf("%s: want fastleave %s in %s", e, want, shown)
		}
	}
	ports := map[*netnslab.Endpoint]*bridge.Port{fast: fast.Port(), slow: slow.Port()}
	memberships := []*netnslab.Membership{fast.Join(group), slow.Join(group)}
	for e, port := range ports {
		if err := port.Wait(withTimeout(t), group); err != nil {
			t.Fatalf("%s: %v", e, err)
		}
	}
	for _, m := range memberships {
		if err := m.Close(); err != nil {
			t.Fatal(err)
		}
	}
	has := func(e *netnslab.Endpoint) bool {
		members, err := ports[e].Members()
		if err != nil {
			t.Fatal(err)
		}
		return slices.ContainsFunc(members, func(m bridge.Entry) bool { return m.Group == group })
	}
	netnslab.WaitFor(t, "group forgotten", 10*time.Second, func() (bool, string) { return !has(fast), "" }, lab.Host())
	if !has(slow) {
		t.Error("the port without fast leave forgot the group as well")
	}
}

// A test plays a querier, and an application's kernel answers.
func TestSendPacket(t *testing.T) {
	t.Parallel()
	lab := netnslab.New(t)
	alice, querier := lab.Veth(lab.Node("alice"), "eth0", lab.Node("querier"), "eth0")
	alice.Join(group)
	frames := querier.Capture(netnslab.MLD)
	query := mld.AppendQuery(nil, querier.LinkLocal(), mld.AllNodes, mld.Query{
		Version: mld.Version1, MulticastAddress: netip.IPv6Unspecified(), MaxResponseCode: 100,
	})
	querier.SendPacket(query)
	sent := frames.Wait(5*time.Second, "our query", isMLD(130))
	if !sent.Outgoing || string(sent.IPv6()) != string(query) || sent.Data[0] != 0x33 {
		t.Errorf("sent %v %x", sent, sent.Data)
	}
	report := frames.Wait(5*time.Second, "version 1 report", func(f netnslab.Frame) bool {
		return f.ICMPv6() == 131 && f.Dst() == group
	})
	if report.Outgoing || report.Src() != alice.LinkLocal() || report.Endpoint != querier {
		t.Errorf("heard %v", report)
	}
	for name, bad := range map[string][]byte{
		"short":   query[:39],
		"unicast": mld.AppendQuery(nil, querier.LinkLocal(), alice.LinkLocal(), mld.Query{Version: mld.Version1}),
	} {
		p := run(func(p *program) {
			lab := netnslab.New(p)
			_, b := lab.Veth(lab.Node("a"), "eth0", lab.Node("b"), "eth0")
			b.SendPacket(bad)
		})
		if !p.Failed() {
			t.Errorf("%s: sent", name)
		}
	}
}
