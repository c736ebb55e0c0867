package e2e

import (
	"encoding/binary"
	"net/netip"
	"slices"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/seed-aaab8e3a/cni-mld/mld"
	"github.com/seed-aaab8e3a/cni-mld/netnslab"
)

// The kernel speaks as version 1 where it has heard a Query of version 1, else as version 2. Neither is heard: our
// listener says, once, what applications join and leave and what the kernel joins for a new address (V1-24), and
// nothing about what is joined already (K12, K74). The kernel would have said more, as its dropped reports tell.
func TestV1_24_K12_K74_OneVoice(t *testing.T) {
	t.Parallel()
	for _, querier := range []int{1, 2} {
		t.Run(map[int]string{1: "MLDv1", 2: "MLDv2"}[querier], func(t *testing.T) {
			t.Parallel()
			options := quiet
			options.Querier = querier
			// Once ADD returns, what stands has been reported, before the declared group; without repeats no more follows.
			s := newSegment(t, options, map[string]any{
				"groups": []any{map[string]any{"group": groupD, "deliver": false}}, "robustness": 1,
			})
			node := s.Node("alice")
			for _, key := range []string{"mldv1_unsolicited_report_interval", "mldv2_unsolicited_report_interval"} {
				node.SetSysctl("net/ipv6/conf/default/"+key, "50") // the kernel is to say soon what it says
			}
			alice := s.addNode(node)
			for _, addr := range alice.addrs() {
				s.waitSent(alice, time.Time{}, report, solicited(addr), 1)
			}
			begin := time.Now()
			muted, _ := alice.muted()

			application := alice.eth0.Join(groupA)
			s.waitSent(alice, begin, report, groupA, 1)
			s.waitMuted(alice, muted+2)

			muted, _ = alice.muted()
			if err := application.Close(); err != nil {
				t.Fatal(err)
			}
			s.waitSent(alice, begin, done, groupA, 1)
			s.waitMuted(alice, muted+1) // as often as version 1 says it

			muted, _ = alice.muted()
			alice.eth0.AddAddr(netip.MustParsePrefix("fd00:1::ab:cdef/64"))
			alice.eth0.AddAddr(netip.MustParsePrefix("fd00:2::ab:cdef/64")) // the same solicited-node address
			s.waitSent(alice, begin, report, netip.MustParseAddr("ff02::1:ffab:cdef"), 1)
			s.waitMuted(alice, muted+2)

			muted, _ = alice.muted()
			application = alice.eth0.Join(groupD)
			s.waitMuted(alice, muted+2)
			if err := application.Close(); err != nil {
				t.Fatal(err)
			}
			s.waitMuted(alice, muted+3)

			runIn(t, alice.Node, "nft", "flush", "ruleset")
			muted, _ = alice.muted()
			alice.eth0.Join(groupB)
			s.waitSent(alice, begin, report, groupB, 1)
			s.waitMuted(alice, muted+2)

			s.settle()
			want := map[string]int{
				"131 ff05::a": 1, "132 ff05::a": 1, "131 ff02::1:ffab:cdef": 1, "131 ff05::b": 1,
			}
			if diff := cmp.Diff(want, summary(s.sentBy(alice, begin))); diff != "" {
				t.Errorf("alice has sent (-want +got):\n%s", diff)
			}
		})
	}
}

// late is how much later than it may a packet is seen on a machine that is busy with other tests.
const late = 50 * time.Millisecond

// A General Query of the bridge is answered with one Report for each address, within the Maximum Response Delay.
func TestV1_11_V1_13_V1_16_V1_26_GeneralQuery(t *testing.T) {
	t.Parallel()
	options := netnslab.BridgeOptions{Querier: 1, QueryInterval: 2 * time.Second, StartupQueryCount: 1}
	s := newSegment(t, options, map[string]any{"groups": []netip.Addr{groupA, groupB}, "robustness": 1})
	alice := s.add("alice")
	alice.eth0.Join(groupC)
	isQuery := func(f netnslab.Frame) bool { return !f.Outgoing && f.ICMPv6() == 130 && f.Src() != routerAddr }
	query := alice.heard.Wait(patience, "query of the bridge", isQuery)
	next := alice.heard.Wait(patience, "next query of the bridge", isQuery)

	delay := time.Duration(binary.BigEndian.Uint16(query.IPv6()[52:])) * time.Millisecond // behind 40 + 8 + 4 octets
	if delay != time.Second {
		t.Fatalf("the bridge's Maximum Response Delay is %v, want 1 s", delay)
	}
	s.settle()
	var answers []message
	for _, m := range s.sentBy(alice, query.Time) {
		if m.frame.Time.Before(next.Time) {
			answers = append(answers, m)
		}
		if after := m.frame.Time.Sub(query.Time); after > delay+late && m.frame.Time.Before(next.Time) {
			t.Errorf("%v is answered after %v", m.group, after)
		}
	}
	want := map[string]int{"131 ff05::a": 1, "131 ff05::b": 1, "131 ff05::c": 1}
	for _, addr := range alice.addrs() {
		want["131 "+solicited(addr).String()] = 1
	}
	if diff := cmp.Diff(want, summary(answers)); diff != "" {
		t.Errorf("answers (-want +got):\n%s", diff)
	}
}

// A Specific Query is answered for its group alone: not for another that is listened to, nor is one answered that asks
// for what is not listened to, or for ff02::1.
func TestV1_11_V1_12_V1_36_SpecificQuery(t *testing.T) {
	t.Parallel()
	s := newSegment(t, quiet, map[string]any{"groups": []netip.Addr{groupA, groupB, groupD}, "robustness": 1})
	alice := s.add("alice")
	s.hearReports(alice) // and Queries for what the bridge does not know
	begin := time.Now()
	const delay = 100 * time.Millisecond
	for _, group := range []netip.Addr{groupC, allNodes, groupA} {
		s.query(group, delay)
	}
	s.waitSilent(alice, groupD, time.Now().Add(delay+late))
	for _, group := range []netip.Addr{groupC, allNodes} {
		alice.heard.Wait(patience, "query for "+group.String(), func(f netnslab.Frame) bool { return messageOf(f).group == group })
	}
	sent := s.sentBy(alice, begin)
	if n := len(of(sent, report, groupA)); n != 1 {
		t.Errorf("%d answers for %v, want 1", n, groupA)
	}
	for _, m := range sent {
		if m.group != groupA && m.group != groupD {
			t.Errorf("unexpected: %v", m.frame)
		}
	}
}

// waitSilent asks for a group, which is answered at once if the delay may be 0 (V1-15), until the answer comes after
// the given moment. What the container would have said until then is in s.heard.
func (s *segment) waitSilent(c *container, group netip.Addr, until time.Time) {
	s.tb.Helper()
	for begin := time.Now(); ; {
		s.query(group, 0)
		answers := s.waitSent(c, begin, report, group, 1)
		begin = answers[len(answers)-1].frame.Time
		if begin.After(until) {
			return
		}
	}
}

// Another listener's Report silences ours while an answer is pending, and it owes no Done then; alwaysDone has it sent
// all the same.
func TestV1_18_V1_31_Suppression(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		name string
		keys map[string]any
		want map[string]int // of the Dones
	}{
		{"Done left out", map[string]any{}, map[string]int{"132 ff05::b": 1}},
		{"alwaysDone", map[string]any{"alwaysDone": true}, map[string]int{"132 ff05::a": 1, "132 ff05::b": 1}},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			c.keys["groups"], c.keys["robustness"] = []netip.Addr{groupA, groupB}, 1
			s := newSegment(t, quiet, c.keys)
			alice := s.add("alice")
			s.hearReports(alice)

			const delay = 300 * time.Millisecond
			s.suppress(alice, delay)
			begin := time.Now()
			s.waitSilent(alice, groupB, begin.Add(delay+late))
			if answers := of(s.sentBy(alice, begin), report, groupA); len(answers) > 0 {
				t.Errorf("answered after another's Report: %v", answers[0].frame)
			}
			s.del(alice)
			s.settle()
			dones := slices.DeleteFunc(s.sentBy(alice, begin), func(m message) bool {
				return m.kind != done || m.group != groupA && m.group != groupB
			})
			if diff := cmp.Diff(c.want, summary(dones)); diff != "" {
				t.Errorf("Dones (-want +got):\n%s", diff)
			}
		})
	}
}

// suppress asks for groupA and answers in the name of another listener, until that comes before the container's own
// answer, as it nearly always does.
func (s *segment) suppress(c *container, delay time.Duration) {
	s.tb.Helper()
	for range 5 {
		begin := time.Now()
		s.query(groupA, delay)
		s.router.SendPacket(mld.AppendReport(nil, otherAddr, groupA))
		foreign := c.heard.Wait(patience, "the other listener's Report", func(f netnslab.Frame) bool { return f.Src() == otherAddr })
		if !slices.ContainsFunc(c.heard.Frames(), func(f netnslab.Frame) bool {
			return f.Outgoing && f.Time.After(begin) && f.Time.Before(foreign.Time) && messageOf(f).group == groupA
		}) {
			return
		}
	}
	s.tb.Fatal("the container answered each time before the other listener")
}

// An Idle Listener that hears another's Report: RFC 2710 ignores it (V1-19), so the Done is sent; KAME's listener takes
// the other for the last reporter and leaves the Done out (K45).
func TestV1_19_K45_ReportWhileIdle(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		rule, profile string
		want          map[string]int // of the Dones
	}{
		{"V1-19", "rfc", map[string]int{"132 ff05::a": 1, "132 ff05::b": 1}},
		{"K45", "kame", map[string]int{"132 ff05::b": 1}},
	} {
		t.Run(c.profile, func(t *testing.T) {
			t.Parallel()
			s := newSegment(t, quiet, map[string]any{
				"groups": []netip.Addr{groupA, groupB}, "profile": c.profile, "unsolicitedReportInterval": "200ms",
			})
			alice := s.add("alice")
			s.hearReports(alice)
			for _, group := range []netip.Addr{groupA, groupB} {
				s.waitSent(alice, time.Time{}, report, group, 2) // with its repeat: Idle now
			}
			begin := time.Now()
			s.router.SendPacket(mld.AppendReport(nil, otherAddr, groupA))
			s.query(groupB, 0)
			s.waitSent(alice, begin, report, groupB, 1) // so the Report before has been heard
			s.del(alice)
			s.settle()
			dones := slices.DeleteFunc(s.sentBy(alice, begin), func(m message) bool {
				return m.kind != done || m.group != groupA && m.group != groupB
			})
			if diff := cmp.Diff(c.want, summary(dones)); diff != "" {
				t.Errorf("%s: Dones (-want +got):\n%s", c.rule, diff)
			}
		})
	}
}

// KAME's listener looks at its timers every 200 ms, so its answers come a whole number of these apart.
func TestK36_K54_Grid(t *testing.T) {
	t.Parallel()
	const tick = 200 * time.Millisecond
	var groups []netip.Addr
	for i := range 20 {
		groups = append(groups, netip.AddrFrom16([16]byte{0: 0xff, 1: 5, 15: byte(0x10 + i)}))
	}
	s := newSegment(t, quiet, map[string]any{"groups": groups, "profile": "kame", "unsolicitedReportInterval": "200ms"})
	alice := s.add("alice")
	for _, group := range groups {
		s.waitSent(alice, time.Time{}, report, group, 2)
	}
	begin := time.Now()
	s.query(general, 2*time.Second)
	var first time.Duration
	for i, group := range groups {
		at := s.waitSent(alice, begin, report, group, 1)[0].frame.Time.Sub(begin)
		if i == 0 {
			first = at
		}
		off := (at - first) % tick // Go's remainder has the sign of the dividend
		off = min((off+tick)%tick, (tick-off)%tick)
		if off > late {
			t.Errorf("%v is answered after %v and %v after %v, which is %v off the grid", groups[0], first, group, at, off)
		}
	}
}

// With kernelReports keep, the kernel's reports are seen, here of version 2 and so told from ours. We speak for a group
// without delivery, but not while the kernel holds it.
func TestKeptKernelReports(t *testing.T) {
	t.Parallel()
	options := quiet
	options.Querier = 2
	s := newSegment(t, options, map[string]any{
		"groups": []any{
			map[string]any{"group": groupA, "deliver": false}, map[string]any{"group": groupC, "deliver": false}, groupB,
		},
		"kernelReports": "keep", "robustness": 1,
	})
	alice := s.add("alice")
	if _, muted := alice.muted(); muted {
		t.Error("the kernel is muted")
	}
	s.waitSent(alice, time.Time{}, report, groupA, 1)
	s.waitKernelSaid(alice, time.Time{}, groupB)

	begin := time.Now()
	application := alice.eth0.Join(groupA)
	s.waitKernelSaid(alice, begin, groupA)
	begin = time.Now()
	s.query(groupA, 100*time.Millisecond)
	s.waitKernelSaid(alice, begin, groupA)
	s.waitSilent(alice, groupC, begin.Add(100*time.Millisecond+late))
	for _, m := range s.sentBy(alice, time.Time{}) {
		if m.kind == report && m.group != groupC && (m.group != groupA || m.frame.Time.After(begin)) {
			t.Errorf("we speak for what the kernel holds: %v", m.frame)
		}
	}

	begin = time.Now()
	if err := application.Close(); err != nil {
		t.Fatal(err)
	}
	s.waitSent(alice, begin, report, groupA, 1)
	s.wait("entry of the MDB", func() (bool, string) { return s.inMDB(groupA, alice), "" })
}
