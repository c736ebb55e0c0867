package e2e

import (
	"encoding/json"
	"fmt"
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"

	"github.com/seed-aaab8e3a/cni-mld/mld"
	"github.com/seed-aaab8e3a/cni-mld/netnslab"
)

var (
	groupS = netip.MustParseAddr("ff3e::8000:1") // source-specific

	goodAddr = netip.MustParseAddr("fd00:1::a10") // of the container that sends what is wanted
	badAddr  = netip.MustParseAddr("fd00:1::a66") // of the one whose data is not
)

// quietV2 is a bridge that tracks sources, with a querier that asks once and after a leave.
var quietV2 = netnslab.BridgeOptions{
	Querier: 2, QueryInterval: time.Hour, StartupQueryCount: 1, LastMemberInterval: 100 * time.Millisecond,
}

// filtered is a group with a source filter, as mld's configuration has it.
func filtered(group netip.Addr, mode string, deliver bool, sources ...netip.Addr) map[string]any {
	return map[string]any{"group": group, "mode": mode, "sources": append([]netip.Addr{}, sources...), "deliver": deliver}
}

// entries returns what the program bridge tells of a group on a container's port: "include", "exclude" for the entry of any
// source with its mode, "fd00::1" for one of a source, "fd00::1 blocked" for one that keeps it out.
func (s *segment) entries(group netip.Addr, c *container) []string {
	s.tb.Helper()
	var bridges []struct {
		MDB []struct {
			Port, Grp, Src string
			FilterMode     string `json:"filter_mode"`
			Flags          []string
		}
	}
	if err := json.Unmarshal(s.run("bridge", "-j", "-d", "-s", "mdb", "show", "dev", "cni0"), &bridges); err != nil {
		s.tb.Fatalf("bridge mdb: %v", err)
	}
	var list []string
	for _, b := range bridges {
		for _, e := range b.MDB {
			switch {
			case e.Grp != group.String() || e.Port != c.eth0.Peer().Name():
			case e.Src == "":
				list = append(list, e.FilterMode)
			case slices.Contains(e.Flags, "blocked"):
				list = append(list, e.Src+" blocked")
			default:
				list = append(list, e.Src)
			}
		}
	}
	slices.Sort(list)
	return list
}

// recordNames are the record types as tshark numbers them (RFC 9777 section 5.2.12).
var recordNames = map[string]string{"1": "IS_IN", "2": "IS_EX", "3": "TO_IN", "4": "TO_EX", "5": "ALLOW", "6": "BLOCK"}

// records returns the records about a group that a container has sent, as tshark reads them: "ALLOW fd00::1,fd00::2".
func (s *segment) records(c *container, group netip.Addr) []string {
	s.tb.Helper()
	out := s.heard.Tshark(s.tb.Context(),
		"-Y", fmt.Sprintf("eth.src == %v && icmpv6.type == 143 && icmpv6.mldr.mar.multicast_address == %v", c.eth0.HardwareAddr(), group),
		"-T", "fields", "-E", "separator=|", "-e", "icmpv6.mldr.mar.record_type", "-e", "icmpv6.mldr.mar.multicast_address",
		"-e", "icmpv6.mldr.mar.nb_sources", "-e", "icmpv6.mldr.mar.source_address")
	var list []string
	for line := range strings.Lines(out) {
		f := strings.Split(strings.TrimSuffix(line, "\n"), "|")
		if len(f) != 4 {
			s.tb.Fatalf("tshark says %q", line)
		}
		kinds, groups, counts, sources := split(f[0]), split(f[1]), split(f[2]), split(f[3])
		for i, kind := range kinds {
			n, err := strconv.Atoi(counts[i])
			if err != nil || n > len(sources) {
				s.tb.Fatalf("tshark says %q", line)
			}
			if groups[i] == group.String() {
				list = append(list, strings.TrimSpace(recordNames[kind]+" "+strings.Join(sources[:n], ",")))
			}
			sources = sources[n:]
		}
	}
	return list
}

func split(list string) []string {
	if list == "" {
		return nil
	}
	return strings.Split(list, ",")
}

// What is declared with sources is reported with them and, when ADD returns, is in the MDB with them; DEL takes both back.
// No record but of the declared filter is ever sent, in particular none of any source.
func TestV2_58_V2_62_B18_SourcesAreReported(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		name    string
		group   netip.Addr
		keys    func(deliver bool) []any
		entries []string
		records []string // from ADD to DEL
		types   []string // of these at most
	}{
		{
			name: "source@group", group: groupS,
			keys: func(deliver bool) []any {
				if deliver {
					return []any{fmt.Sprintf("%v@%v", goodAddr, groupS)}
				}
				return []any{filtered(groupS, "include", false, goodAddr)}
			},
			entries: []string{"fd00:1::a10", "include"},
			records: []string{"ALLOW fd00:1::a10", "BLOCK fd00:1::a10"},
			types:   []string{"ALLOW", "BLOCK"},
		},
		{
			name: "include", group: groupA,
			keys:    func(deliver bool) []any { return []any{filtered(groupA, "include", deliver, badAddr, goodAddr)} },
			entries: []string{"fd00:1::a10", "fd00:1::a66", "include"},
			records: []string{"ALLOW fd00:1::a10,fd00:1::a66", "BLOCK fd00:1::a10,fd00:1::a66"},
			types:   []string{"ALLOW", "BLOCK"},
		},
		{
			name: "exclude", group: groupA,
			keys:    func(deliver bool) []any { return []any{filtered(groupA, "exclude", deliver, badAddr)} },
			entries: []string{"exclude", "fd00:1::a66 blocked"},
			records: []string{"TO_EX fd00:1::a66", "TO_IN"},
			types:   []string{"TO_EX", "BLOCK", "TO_IN", "IS_EX"}, // a BLOCK has the bridge ask
		},
		{
			name: "any source", group: groupA,
			keys:    func(deliver bool) []any { return []any{map[string]any{"group": groupA, "deliver": deliver}} },
			entries: []string{"exclude"},
			records: []string{"TO_EX", "TO_IN"},
			types:   []string{"TO_EX", "TO_IN"},
		},
	} {
		for _, deliver := range []bool{false, true} {
			t.Run(fmt.Sprintf("%s, deliver %v", c.name, deliver), func(t *testing.T) {
				t.Parallel()
				s := newSegment(t, quietV2, map[string]any{
					"groups": c.keys(deliver), "mldVersion": "auto", "robustness": 1, "ready": map[string]any{"wait": "mdb", "timeout": "20s"},
				})
				alice := s.add("alice")
				// Only what is to be kept out may follow, as the kernel tells it a moment after its join.
				after := s.entries(c.group, alice)
				for _, want := range c.entries {
					if !strings.HasSuffix(want, " blocked") && !slices.Contains(after, want) {
						t.Errorf("entries after ADD %q: %q is missing", after, want)
					}
				}
				s.wait(fmt.Sprintf("entries %q", c.entries), func() (bool, string) {
					list := s.entries(c.group, alice)
					return slices.Equal(list, c.entries), fmt.Sprintf("%q", list)
				})
				if err := s.chain.Check(t.Context(), alice.Node); err != nil {
					t.Errorf("CHECK: %v", err)
				}
				if code, text := s.call("DEL", alice, nil); code != 0 {
					t.Fatalf("DEL: code %d (%s)", code, text)
				}
				s.wait("end of the entries", func() (bool, string) {
					list := s.entries(c.group, alice)
					return len(list) == 0, fmt.Sprint(list)
				})
				s.settle()
				got := s.records(alice, c.group)
				if diff := cmp.Diff(c.records, got, cmpopts.EquateEmpty()); diff != "" && !deliver {
					t.Errorf("records (-want +got):\n%s", diff)
				}
				// What is delivered is reported as the kernel tells it, which may take more records, but of no other type.
				for _, record := range got {
					if kind, _, _ := strings.Cut(record, " "); deliver && !slices.Contains(c.types, kind) {
						t.Errorf("records %q: want only %v", got, c.types)
					}
				}
			})
		}
	}
}

// framesFrom counts the frames of a source to a group that have come in.
func framesFrom(c *netnslab.Capture, source, group netip.Addr) (n int) {
	for _, f := range c.Frames() {
		if !f.Outgoing && f.Src() == source && f.Dst() == group {
			n++
		}
	}
	return n
}

// Data of the declared sources is forwarded to the container and to an application that joins nothing, other data is not
// forwarded at all; who wants any source, behind another port, gets both, and who wants nothing gets nothing.
func TestB18_SourcesAreForwarded(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		name    string
		group   netip.Addr
		mode    string
		sources []netip.Addr
	}{
		{"include", groupA, "include", []netip.Addr{goodAddr}},
		{"exclude", groupA, "exclude", []netip.Addr{badAddr}},
		{"source-specific", groupS, "include", []netip.Addr{goodAddr}},
	} {
		for _, deliver := range []bool{false, true} {
			t.Run(fmt.Sprintf("%s, deliver %v", c.name, deliver), func(t *testing.T) {
				t.Parallel()
				s := newSegment(t, quietV2, map[string]any{"groups": []any{filtered(c.group, c.mode, deliver, c.sources...)}, "mldVersion": "auto"})
				alice, bob, carol := s.add("alice"), s.connect("bob"), s.connect("carol")
				good, bad := s.connect("good"), s.connect("bad")
				good.eth0.AddAddr(netip.PrefixFrom(goodAddr, 64))
				bad.eth0.AddAddr(netip.PrefixFrom(badAddr, 64))
				carol.eth0.Join(c.group)
				s.wait("entry of carol", func() (bool, string) {
					return slices.Contains(s.entries(c.group, carol), "exclude"), fmt.Sprint(s.entries(c.group, carol))
				})
				if c.mode == "exclude" { // which the kernel tells a moment after its join
					s.wait("exclusion", func() (bool, string) {
						list := s.entries(c.group, alice)
						return slices.Contains(list, badAddr.String()+" blocked"), fmt.Sprint(list)
					})
				}
				s.bridge.WaitQuerying(t.Context())
				application := alice.eth0.Receive(port)
				onAlice, onBob, onCarol := alice.eth0.Capture(), bob.eth0.Capture(), carol.eth0.Capture()

				bad.eth0.Send(c.group, port, []byte("unwanted"), datagrams)
				good.eth0.Send(c.group, port, []byte("data"), datagrams)
				good.eth0.Send(allNodes, port, []byte("the end"), 1)

				application.Wait(allNodes, 1)
				for _, capture := range []*netnslab.Capture{onAlice, onBob, onCarol} {
					s.settleOn(capture)
				}
				for name, count := range map[string]struct{ got, want int }{
					"wanted datagrams at alice's application": {application.Count(c.group), map[bool]int{true: datagrams}[deliver]},
					"wanted frames at alice":                  {framesFrom(onAlice, goodAddr, c.group), datagrams},
					"unwanted frames at alice":                {framesFrom(onAlice, badAddr, c.group), 0},
				} {
					if count.got != count.want {
						t.Errorf("%d %s, want %d", count.got, name, count.want)
					}
				}
				for _, source := range []netip.Addr{goodAddr, badAddr} {
					if n := framesFrom(onBob, source, c.group); n != 0 {
						t.Errorf("%d frames of %v at bob, want none", n, source)
					}
					if n := framesFrom(onCarol, source, c.group); n != datagrams {
						t.Errorf("%d frames of %v at carol, want %d", n, source, datagrams)
					}
				}
			})
		}
	}
}

// On a network of MLDv1 the sources are not told, and nobody misses them: not ADD, not CHECK. The kernel still keeps them
// apart.
func TestV2_49_V2_50_V2_77_B17_SourcesOnMLDv1(t *testing.T) {
	t.Parallel()
	s := newSegment(t, quiet, map[string]any{
		"groups": []any{filtered(groupS, "include", false, goodAddr)}, "mldVersion": "auto", "robustness": 1,
		"ready": map[string]any{"wait": "mdb", "timeout": "20s"},
	})
	alice := s.add("alice")
	begin := time.Now()
	s.query(general, 100*time.Millisecond)
	s.waitSent(alice, begin, report, groupS, 1)
	if err := s.chain.Check(t.Context(), alice.Node); err != nil {
		t.Errorf("CHECK: %v", err)
	}
	if !s.inMDB(groupS, alice) {
		t.Errorf("no entry for %v", groupS)
	}
	begin = time.Now()
	if code, text := s.call("DEL", alice, nil); code != 0 {
		t.Fatalf("DEL: code %d (%s)", code, text)
	}
	s.waitSent(alice, begin, done, groupS, 1)
	s.settle()
	if sent := s.sentBy(alice, begin); slices.ContainsFunc(sent, func(m message) bool { return m.kind == reportV2 }) {
		t.Errorf("version 2 in version 1 mode: %v", sent)
	}
}

// With mldVersion 2 nothing makes the listener speak version 1.
func TestV2_56_VersionTwoAlone(t *testing.T) {
	t.Parallel()
	s := newSegment(t, quietV2, map[string]any{"groups": []any{filtered(groupS, "include", false, goodAddr)}, "mldVersion": 2, "robustness": 1})
	alice := s.add("alice")
	begin := time.Now()
	s.queryAs(mld.Version1, general, 100*time.Millisecond)
	s.queryAs(mld.Version2, groupS, 100*time.Millisecond)
	s.wait("answer", func() (bool, string) {
		list := s.records(alice, groupS)
		return slices.Contains(list, "IS_IN fd00:1::a10"), fmt.Sprint(list)
	})
	s.settle()
	for _, m := range s.sentBy(alice, begin) {
		if m.kind != reportV2 {
			t.Errorf("sent %v", m)
		}
	}
}

// ADD again with other sources changes what differs, without a gap in what stays.
func TestV2_71_OtherSources(t *testing.T) {
	t.Parallel()
	for _, deliver := range []bool{false, true} {
		t.Run(fmt.Sprintf("deliver %v", deliver), func(t *testing.T) {
			t.Parallel()
			keys := func(mode string, sources ...netip.Addr) map[string]any {
				return map[string]any{
					"groups": []any{filtered(groupA, mode, deliver, sources...)}, "mldVersion": "auto", "robustness": 1,
					"ready": map[string]any{"wait": "mdb", "timeout": "20s"},
				}
			}
			s := newSegment(t, quietV2, nil)
			alice := s.connect("alice")
			for _, step := range []struct {
				keys    map[string]any
				entries []string // at last
			}{
				{keys("include", goodAddr), []string{"fd00:1::a10", "include"}},
				{keys("include", badAddr), []string{"fd00:1::a66", "include"}},
				{keys("exclude", goodAddr), []string{"exclude", "fd00:1::a10 blocked"}},
				{keys("exclude"), []string{"exclude"}},
			} {
				if code, text := s.call("ADD", alice, step.keys); code != 0 {
					t.Fatalf("ADD: code %d (%s)", code, text)
				}
				s.wait(fmt.Sprintf("entries %v", step.entries), func() (bool, string) {
					list := s.entries(groupA, alice)
					// ALLOW(A) leaves A in the record of a router in EXCLUDE mode, as a source that is forwarded.
					return slices.Equal(slices.DeleteFunc(slices.Clone(list), func(e string) bool {
						return step.entries[0] == "exclude" && !strings.Contains(e, "exclude") && !strings.HasSuffix(e, "blocked")
					}), step.entries), fmt.Sprint(list)
				})
			}
			s.settle()
			// The last change is told as TO_EX once more where that of the mode is still being told (V2-29).
			want := []string{"ALLOW fd00:1::a10", "ALLOW fd00:1::a66", "BLOCK fd00:1::a10", "TO_EX fd00:1::a10"}
			got := slices.DeleteFunc(s.records(alice, groupA), func(r string) bool { return strings.HasPrefix(r, "IS_") }) // answers to the bridge
			if diff := cmp.Diff(want, got[:min(len(want), len(got))]); diff != "" && !deliver {
				t.Errorf("records (-want +got):\n%s", diff)
			}
			if slices.ContainsFunc(got, func(r string) bool { return strings.HasPrefix(r, "TO_IN") }) {
				t.Errorf("the group was left in between: %v", got)
			}
		})
	}
}
