package e2e

import (
	"fmt"
	"net/netip"
	"slices"
	"testing"
	"time"

	"github.com/seed-aaab8e3a/cni-mld/mld"
)

// said returns what a container has said about a group since a moment, by whichever voice: "Report" and "Done", or the
// record of version 2.
func (s *segment) said(c *container, since time.Time, group netip.Addr) (list []string) {
	s.tb.Helper()
	for _, m := range s.sentBy(c, since) {
		p, err := mld.Parse(m.frame.IPv6(), mld.AcceptUnspecified)
		if err != nil {
			s.tb.Errorf("%v: %v", m.frame, err)
		}
		if p.Message.Type != mld.TypeReportV2 && p.Message.MulticastAddress == group {
			list = append(list, p.Message.Type.String())
		}
		for r := range p.Message.Records.All() {
			if r.MulticastAddress == group {
				list = append(list, r.Type.String())
			}
		}
	}
	return list
}

// waitSaid waits until enough has been said about a group.
func (s *segment) waitSaid(c *container, since time.Time, group netip.Addr, what string, enough func([]string) bool) {
	s.tb.Helper()
	s.wait(what, func() (bool, string) {
		said := s.said(c, since, group)
		return enough(said), fmt.Sprint(said)
	})
}

// leaves counts what takes a group back.
func leaves(said []string) (n int) {
	for _, text := range said {
		if text == "Done" || text == "TO_IN" || text == "BLOCK" {
			n++
		}
	}
	return n
}

// With kernelReports keep there are two voices and one for each address: ours for what is declared and left alone by the
// kernel, and the kernel's for what it holds. An application joins what is declared: the kernel speaks, and we fall
// silent without a word. It leaves: the kernel says so, twice in version 2, and each time we report anew at once, so
// that the bridge has forgotten the group for a moment at most, although the leave came from our address (B16) and the
// port leaves fast (B15).
func TestKeep(t *testing.T) {
	t.Parallel()
	for _, version := range []int{1, 2} {
		for _, fastLeave := range []bool{false, true} {
			t.Run(fmt.Sprintf("MLDv%d, fast leave %v", version, fastLeave), func(t *testing.T) {
				t.Parallel()
				testKeep(t, version, fastLeave)
			})
		}
	}
}

func testKeep(t *testing.T, version int, fastLeave bool) {
	options := quiet // it gives a second to answer after a leave, in which a port that leaves fast gets nothing
	options.Querier = version
	s := newSegment(t, options, map[string]any{
		"mldVersion": "auto", "kernelReports": "keep",
		"unsolicitedReportInterval": "50ms", // our own repeats are over before the kernel's, and make up for nothing
		"groups":                    []any{undelivered(groupA), undelivered(groupC), groupD},
	})
	node := s.Node("alice")
	for _, key := range []string{"mldv1_unsolicited_report_interval", "mldv2_unsolicited_report_interval"} {
		node.SetSysctl("net/ipv6/conf/default/"+key, "300") // milliseconds: the kernel is to say soon what it says
	}
	alice, sender := s.addNode(node), s.connect("sender")
	if _, muted := alice.muted(); muted {
		t.Fatal("the kernel is muted")
	}
	if fastLeave {
		s.run("bridge", "link", "set", "dev", alice.port.Name(), "fastleave", "on")
	}
	if alice.kernelHolds(groupA) || !alice.kernelHolds(groupD) {
		t.Errorf("the kernel holds %v: %v, %v: %v", groupA, alice.kernelHolds(groupA), groupD, alice.kernelHolds(groupD))
	}
	for _, group := range []netip.Addr{groupA, groupC, groupD} {
		if !s.inMDB(group, alice) {
			t.Errorf("after ADD the MDB has %v on ports %v", group, s.mdb(group))
		}
	}
	s.query(general, 0) // the kernel has its version from a query, which it may not have heard yet
	s.bridge.WaitQuerying(t.Context())
	onAlice := alice.eth0.Capture()
	data := sender.stream(groupA, time.Millisecond)
	arrive := func(what string) {
		t.Helper()
		n := len(data.arrived(onAlice))
		s.wait("data "+what, func() (bool, string) { return len(data.arrived(onAlice)) > n+20, "" })
	}
	arrive("while it is declared alone")

	// The kernel takes over, which says so twice.
	begin := time.Now()
	application := alice.eth0.Join(groupA)
	s.waitSaid(alice, begin, groupA, "reports of the kernel", func(said []string) bool { return len(said) >= 2 })
	begin = time.Now()
	s.query(groupA, 0)
	s.query(groupC, 0)
	for _, group := range []netip.Addr{groupA, groupC} {
		s.waitSaid(alice, begin, group, "answer", func(said []string) bool { return len(said) > 0 })
	}
	s.settle()
	isRepeat := func(said string) bool { return said == "TO_EX" } // of the kernel's join
	if said := s.said(alice, begin, groupA); len(slices.DeleteFunc(slices.Clone(said), isRepeat)) != 1 {
		t.Errorf("answers about %v: %v, want the kernel's alone", groupA, said)
	}
	if said := s.said(alice, time.Time{}, groupA); leaves(said) > 0 {
		t.Errorf("when the kernel took over, a leave was said: %v", said)
	}
	arrive("while an application has joined it")

	// And back: the kernel says its leave as often as its version does.
	begin = time.Now()
	if err := application.Close(); err != nil {
		t.Fatal(err)
	}
	s.waitSaid(alice, begin, groupA, "leaves of the kernel, and then a report", func(said []string) bool {
		return leaves(said) >= version && leaves(said[len(said)-1:]) == 0
	})
	s.settle()
	arrive("after the application has left")
	if !s.inMDB(groupA, alice) {
		t.Errorf("no entry after the last leave: %v", s.mdb(groupA))
	}
	if version == 2 {
		records := s.records(alice, groupA)
		for i, r := range records {
			if r == "TO_IN" && (i == len(records)-1 || records[i+1] == "TO_IN") {
				t.Errorf("a leave is not contradicted: %v", records)
			}
		}
	}
	if code, text := s.call("CHECK", alice, nil); code != 0 {
		t.Errorf("CHECK: code %d (%s)", code, text)
	}
	sent := data.end(t)
	lost, gap := data.missing(onAlice)
	t.Logf("%d datagrams sent, one each millisecond; %d lost; at most %v between two", sent, lost, gap.Round(time.Microsecond))
	if lost > 250 {
		t.Errorf("%d of %d datagrams are lost", lost, sent)
	}
}

// Both voices answer a General Query, each for its own addresses, and neither takes back what the other has said,
// although the bridge knows them by one address (B16).
func TestKeepGeneralQuery(t *testing.T) {
	t.Parallel()
	for _, version := range []int{1, 2} {
		t.Run(fmt.Sprintf("MLDv%d", version), func(t *testing.T) {
			t.Parallel()
			options := quiet
			options.Querier = version
			s := newSegment(t, options, map[string]any{
				"mldVersion": "auto", "kernelReports": "keep", "robustness": 1,
				"groups": []any{undelivered(groupA), groupD},
			})
			alice := s.add("alice")
			alice.eth0.Join(groupB)
			both := []netip.Addr{groupA, groupB, groupD}
			for _, group := range both {
				s.wait("entry of the MDB", func() (bool, string) { return s.inMDB(group, alice), group.String() })
			}
			for range 3 {
				const delay = 200 * time.Millisecond
				begin := time.Now()
				s.query(general, delay)
				for _, group := range both {
					s.waitSaid(alice, begin, group, "answer", func(said []string) bool { return len(said) > 0 })
				}
				s.settle()
				for _, group := range both {
					if left := s.mdb(group)[alice.port.Name()]; left < 200 { // of 260 seconds (B13)
						t.Errorf("the entry of %v has %v s left", group, left)
					}
				}
			}
			for _, group := range both {
				if said := s.said(alice, time.Time{}, group); leaves(said) > 0 {
					t.Errorf("%v: said %v", group, said)
				}
			}
			if version == 2 {
				for _, group := range both {
					if records := s.records(alice, group); slices.ContainsFunc(records, func(r string) bool { return r != "TO_EX" && r != "IS_EX" }) {
						t.Errorf("%v: %v", group, records)
					}
				}
			}
		})
	}
}
