package e2e

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"net"
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/seed-aaab8e3a/cni-mld/e2e/chain"
	"github.com/seed-aaab8e3a/cni-mld/mld"
	"github.com/seed-aaab8e3a/cni-mld/netnslab"
)

// groupT is source-specific like groupS, and an application's.
var groupT = netip.MustParseAddr("ff3e::8000:2")

const (
	robustness = 2                      // of a life
	uri        = 200 * time.Millisecond // its Unsolicited Report Interval
)

// voices are the networks that a life is lived in: what bridge and listener speak.
var voices = map[string]struct {
	mldVersion any
	bridge     netnslab.BridgeOptions
}{
	"MLDv1": {1, quiet},
	"MLDv2": {"auto", quietV2},
}

// inEachVoice runs a test in each of the voices.
func inEachVoice(t *testing.T, test func(t *testing.T, l *life)) {
	t.Helper()
	for name := range voices {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			test(t, newLife(t, name))
		})
	}
}

// A life is a container with declared groups, with delivery and without, with an application that has joined more, and a
// sender of all that. Something happens to the interface, and what is wanted must be reported and forwarded afterwards.
type life struct {
	*segment
	voice       string
	alice, good *container
	application *netnslab.Receiver
	members     []*netnslab.Membership
	macs        []string // that alice's interface has had
}

func newLife(tb testing.TB, voice string) *life {
	tb.Helper()
	v := voices[voice]
	return liveOn(tb, voice, v.bridge, nil)
}

// liveOn begins a life on another bridge than that of the voice, and with the IPv6 of the container prepared by a test.
func liveOn(tb testing.TB, voice string, bridge netnslab.BridgeOptions, prepare func(*netnslab.Node)) *life {
	tb.Helper()
	v := voices[voice]
	l := &life{voice: voice}
	l.segment = newSegment(tb, bridge, map[string]any{
		"groups": []any{
			groupA, map[string]any{"group": groupD, "deliver": false}, fmt.Sprintf("%v@%v", goodAddr, groupS),
		},
		"mldVersion": v.mldVersion, "robustness": robustness, "unsolicitedReportInterval": uri.String(),
	})
	if voice == "MLDv2" {
		l.version = mld.Version2
	}
	node := l.Node("alice")
	if prepare != nil {
		prepare(node)
	}
	l.alice = l.addNode(node)
	l.macs = []string{l.alice.eth0.HardwareAddr().String()}
	l.application = l.alice.eth0.Receive(port)
	l.joinAll()
	l.good = l.connect("good")
	l.good.eth0.AddAddr(netip.PrefixFrom(goodAddr, 64))
	l.witness()
	l.rest()
	return l
}

// rest waits until all that is wanted has been told, and nothing is left to be answered.
func (l *life) rest() {
	l.tb.Helper()
	series := robustness
	if l.voice == "MLDv1" { // where an answer ends a series
		series = 1
	}
	l.waitFrames("what is wanted from the beginning", l.heard, l.news, time.Time{}, l.wanted(), series)
	begin := time.Now()
	l.query(general, 0)
	l.wait("Query", func() (bool, string) { return l.lastQuery().After(begin), "" })
	l.answered()
}

// answered waits until nothing is left to be answered: the bridge may have asked as well, and given more time.
func (l *life) answered() {
	l.tb.Helper()
	for asked := l.lastQuery(); ; {
		l.waitFrames("answer", l.alice.heard, l.own, asked, l.wanted(), 1)
		last := l.lastQuery()
		if last.Equal(asked) {
			return
		}
		asked = last
	}
}

// lastQuery tells when the container has heard a General Query last.
func (l *life) lastQuery() (last time.Time) {
	for _, f := range l.alice.heard.Frames() {
		if asks(f) {
			last = f.Time
		}
	}
	return last
}

// asks tells whether a frame is a General Query that has come in.
func asks(f netnslab.Frame) bool { return !f.Outgoing && f.ICMPv6() == 130 && f.Dst() == allNodes }

// joinAll joins as an application does.
func (l *life) joinAll() {
	l.tb.Helper()
	l.members = []*netnslab.Membership{l.alice.eth0.Join(groupC), l.alice.eth0.JoinSource(groupT, goodAddr)}
}

// wanted is all that is to be reported now: what is declared, what the application has joined, and the solicited-node
// addresses.
func (l *life) wanted() []netip.Addr {
	l.tb.Helper()
	list := []netip.Addr{groupA, groupD, groupS}
	if len(l.members) > 0 {
		list = append(list, groupC, groupT)
	}
	for _, addr := range l.alice.addrs() {
		if s := solicited(addr); !slices.Contains(list, s) {
			list = append(list, s)
		}
	}
	return list
}

// witness has the container's nftables count the MLD messages that leave the interface: a packet of a program's socket
// has an owner, and one of the kernel's own has none.
func (l *life) witness() {
	l.tb.Helper()
	nft := l.alice.Command(l.tb.Context(), "nft", "-f", "-")
	nft.Stdin = strings.NewReader(`table netdev witness {
 counter program {}
 counter kernel {}
 chain mld {
  meta skuid 0-4294967294 counter name program accept
  counter name kernel
 }
 chain egress {
  type filter hook egress device ` + chain.IfName + ` priority 0
  icmpv6 type { 131, 132, 143 } goto mld
 }
}`)
	if out, err := nft.CombinedOutput(); err != nil {
		l.tb.Fatalf("nft: %v\n%s", err, out)
	}
}

// counted is what the witness has counted.
func (l *life) counted() (program, kernel int) {
	l.tb.Helper()
	var ruleset struct {
		NFTables []struct {
			Counter *struct {
				Table, Name string
				Packets     int
			}
		}
	}
	if err := json.Unmarshal(runIn(l.tb, l.alice.Node, "nft", "-j", "list", "counters", "netdev"), &ruleset); err != nil {
		l.tb.Fatalf("nft: %v", err)
	}
	counts := map[string]int{"program": -1, "kernel": -1}
	for _, object := range ruleset.NFTables {
		if c := object.Counter; c != nil && c.Table == "witness" {
			counts[c.Name] = c.Packets
		}
	}
	if counts["program"] < 0 || counts["kernel"] < 0 {
		l.tb.Fatalf("the witness has gone: %+v", ruleset)
	}
	return counts["program"], counts["kernel"]
}

// A saying is what a message says about an address: a Report or Done, or one record of a version 2 Report.
type saying struct {
	time time.Time
	kind string // "Report", "Done", or that of the record
	addr netip.Addr
	src  netip.Addr
	mac  string
	none bool // the record has no sources
}

func (s saying) String() string {
	text := fmt.Sprintf("%s %s %v", s.time.Format("05.000"), s.kind, s.addr)
	if s.src.IsUnspecified() {
		text += ` from "::"`
	}
	return text
}

// news tells whether a saying is of a change, or a Report that may be: not the answer to a Query.
func (s saying) news() bool { return s.kind != "IS_IN" && s.kind != "IS_EX" }

// leave tells whether a saying takes something back.
func (s saying) leave() bool {
	return s.kind == "Done" || s.kind == "TO_IN" && s.none || s.kind == "BLOCK"
}

// said is what has left the container's interface since a moment, as tshark reads it.
func (l *life) said(since time.Time) []saying {
	l.tb.Helper()
	const fields = 9
	out := l.alice.heard.Tshark(l.tb.Context(),
		"-Y", "icmpv6.type in {131, 132, 143} && eth.src in {"+strings.Join(l.macs, ", ")+"}",
		"-T", "fields", "-E", "separator=|", "-e", "frame.time_epoch", "-e", "icmpv6.type", "-e", "ipv6.src", "-e", "eth.src",
		"-e", "icmpv6.mld.multicast_address", "-e", "icmpv6.mldr.mar.record_type", "-e", "icmpv6.mldr.mar.multicast_address",
		"-e", "icmpv6.mldr.mar.nb_sources", "-e", "_ws.malformed")
	var list []saying
	for line := range strings.Lines(out) {
		f := strings.Split(strings.TrimSuffix(line, "\n"), "|")
		if len(f) != fields || f[fields-1] != "" {
			l.tb.Fatalf("tshark says %q", line)
		}
		s := saying{time: epoch(l.tb, f[0]), src: netip.MustParseAddr(f[2]), mac: f[3]}
		if s.time.Before(since) {
			continue
		}
		kinds, groups, sources := split(f[5]), split(f[6]), split(f[7])
		if f[1] != "143" {
			kinds, groups, sources = []string{f[1]}, []string{f[4]}, []string{"0"}
		}
		for i, kind := range kinds {
			s.kind, s.addr, s.none = recordNames[kind], netip.MustParseAddr(groups[i]), sources[i] == "0"
			switch kind {
			case "131":
				s.kind = "Report"
			case "132":
				s.kind = "Done"
			}
			list = append(list, s)
		}
	}
	return list
}

// epoch reads a time of tshark's: seconds and nanoseconds.
func epoch(tb testing.TB, text string) time.Time {
	tb.Helper()
	whole, part, _ := strings.Cut(text, ".")
	seconds, err := strconv.ParseInt(whole, 10, 64)
	nanos, err2 := strconv.ParseInt((part + "000000000")[:9], 10, 64)
	if err := errors.Join(err, err2); err != nil {
		tb.Fatalf("tshark's time %q: %v", text, err)
	}
	return time.Unix(seconds, nanos)
}

// own tells whether a frame is a message that comes from the container, and from a valid address.
func (l *life) own(f netnslab.Frame) bool {
	mac := net.HardwareAddr(f.Data[6:12]).String()
	return slices.Contains(l.macs, mac) && f.ICMPv6() >= report && !f.Src().IsUnspecified()
}

// news tells whether an own frame is no answer to a Query, or one of version 1, where that is not to be seen: a version 2
// Report has records of one sort.
func (l *life) news(f netnslab.Frame) bool {
	const recordType, isEX = 40 + 8 + 8, 2
	return l.own(f) && (f.ICMPv6() != reportV2 || f.IPv6()[recordType] > isEX)
}

// waitTold waits until each address has stood in as many messages as make a series, and returns how late the first one
// of the last address was.
func (l *life) waitTold(what string, since time.Time, addrs []netip.Addr) (took time.Duration) {
	l.tb.Helper()
	l.waitFrames(what, l.alice.heard, l.news, since, addrs, robustness)
	for _, addr := range addrs {
		first := slices.IndexFunc(l.alice.heard.Frames(), func(f netnslab.Frame) bool {
			return l.news(f) && !f.Time.Before(since) && bytes.Contains(f.IPv6(), addr.AsSlice())
		})
		took = max(took, l.alice.heard.Frames()[first].Time.Sub(since))
	}
	return took
}

// waitFrames waits for so many messages of a sort with each of the addresses.
func (l *life) waitFrames(
	what string, heard *netnslab.Capture, sort func(netnslab.Frame) bool, since time.Time, addrs []netip.Addr, n int,
) {
	l.tb.Helper()
	l.wait(what, func() (bool, string) {
		counts := make(map[netip.Addr]int)
		for _, f := range heard.Frames() {
			if !sort(f) || f.Time.Before(since) {
				continue
			}
			for _, addr := range addrs {
				if bytes.Contains(f.IPv6(), addr.AsSlice()) {
					counts[addr]++
				}
			}
		}
		missing := slices.ContainsFunc(addrs, func(a netip.Addr) bool { return counts[a] < n })
		return !missing, fmt.Sprintf("%v of %v", counts, addrs)
	})
}

// check runs CHECK of mld, which is to pass if there is nothing that it says.
func (l *life) check(when string, want uint, words ...string) {
	l.tb.Helper()
	code, text := l.call("CHECK", l.alice, nil)
	if len(words) == 0 {
		want = 0
	}
	if code != want {
		l.tb.Errorf("%s: CHECK: code %d (%s), want %d", when, code, text, want)
	}
	for _, w := range words {
		if !strings.Contains(text, w) {
			l.tb.Errorf("%s: CHECK says %q, and not %q", when, text, w)
		}
	}
}

// queries is how many General Queries have come to the container since a moment.
func (l *life) queries(since time.Time) (n int) {
	for _, f := range l.alice.heard.Frames() {
		if asks(f) && !f.Time.Before(since) {
			n++
		}
	}
	return n
}

// judge holds what was said since a moment against what a listener may say: of each address that is wanted a series of
// news, if there is to be any, and an answer to each General Query; nothing else, and nothing of the kernel's. It returns
// how often each kind was said.
func (l *life) judge(since time.Time, wanted []netip.Addr, anew bool) map[string]int {
	l.tb.Helper()
	return l.judgeAll(since, wanted, anew, true)
}

// judgeAll is judge where the container may have gone to another bridge.
func (l *life) judgeAll(since time.Time, wanted []netip.Addr, anew, here bool) map[string]int {
	l.tb.Helper()
	if here {
		l.settle()
	}
	queries := l.queries(since.Add(-2 * time.Second)) // what was asked a second ago may be answered now
	series := 0
	if anew {
		series = robustness
	}
	said := l.said(since)
	news, answers := make(map[netip.Addr]int), make(map[netip.Addr]int)
	kinds := make(map[string]int)
	for _, s := range said {
		early := s.src.IsUnspecified()
		switch {
		case early:
			kinds[s.kind+` from "::"`]++
			continue
		case solicitedNode.Contains(s.addr): // it comes and goes with its address, as often as that does
		case s.leave():
			l.tb.Errorf("what is wanted was left: %v", s)
		case s.news():
			news[s.addr]++
		default:
			answers[s.addr]++
		}
		kinds[s.kind]++
	}
	for _, addr := range wanted {
		if solicitedNode.Contains(addr) {
			continue
		}
		most := series
		if l.voice == "MLDv1" { // where an answer is a Report like any other
			most += queries
		}
		if n := news[addr]; n < series || n > most {
			l.tb.Errorf("%v was told %d times, want %d to %d; General Queries: %d", addr, n, series, most, queries)
		}
		if n := answers[addr]; n > queries {
			l.tb.Errorf("%v was in %d answers to %d General Queries", addr, n, queries)
		}
	}
	if l.tb.Failed() {
		l.tb.Logf("said since %s:\n%v", since.Format("05.000"), said)
	}
	if _, kernel := l.counted(); kernel != 0 {
		l.tb.Errorf("%d messages of the kernel's have left the interface", kernel)
	}
	return kinds
}

// solicitedNode are the solicited-node multicast addresses.
var solicitedNode = netip.MustParsePrefix("ff02::1:ff00:0/104")

// forwarded wants entries in a bridge's MDB for all groups, and counts data of those that the application is to receive.
func (l *life) forwarded(bridge string, sender *container) {
	l.tb.Helper()
	for group, ok := range l.entered(bridge) {
		if !ok {
			l.tb.Errorf("no entry of the MDB for %v", group)
		}
	}
	l.received(sender)
}

// received sends data of the groups that the application is to receive, and counts it.
func (l *life) received(sender *container) {
	l.tb.Helper()
	for _, group := range []netip.Addr{groupA, groupC, groupS, groupT} {
		before := l.application.Count(group)
		sender.eth0.Send(group, port, []byte("data"), datagrams)
		l.application.Wait(group, before+datagrams)
	}
}

// entered tells for which groups a bridge's MDB has an entry on the container's port.
func (l *life) entered(bridge string) map[netip.Addr]bool {
	l.tb.Helper()
	var bridges []struct {
		MDB []struct{ Port, Grp string }
	}
	if err := json.Unmarshal(l.run("bridge", "-j", "mdb", "show", "dev", bridge), &bridges); err != nil {
		l.tb.Fatalf("bridge mdb: %v", err)
	}
	entered := map[netip.Addr]bool{groupA: false, groupC: false, groupD: false, groupS: false, groupT: false}
	for _, b := range bridges {
		for _, e := range b.MDB {
			group, err := netip.ParseAddr(e.Grp)
			if _, ok := entered[group]; ok && err == nil && e.Port == l.alice.eth0.Peer().Name() {
				entered[group] = true
			}
		}
	}
	return entered
}

// forget takes entries of the container's port from a bridge's MDB.
func (l *life) forget(bridge string, groups ...netip.Addr) {
	l.tb.Helper()
	for _, group := range groups {
		l.run("bridge", "mdb", "del", "dev", bridge, "port", l.alice.eth0.Peer().Name(), "grp", group.String())
	}
}

// waitEntered waits until a bridge's MDB has entries for all groups, and returns how long that took.
func (l *life) waitEntered(bridge string, since time.Time) time.Duration {
	l.tb.Helper()
	l.wait("entries of "+bridge, func() (bool, string) {
		entered := l.entered(bridge)
		return !slices.Contains(slices.Collect(maps.Values(entered)), false), fmt.Sprint(entered)
	})
	return time.Since(since)
}

// send sends a General Query of a querier that has told its interval of a second, so that a listener forgets it soon.
func (l *life) send(version mld.Version, maxDelay time.Duration) {
	l.tb.Helper()
	l.sendAs(l.router, version, maxDelay)
}

func (l *life) sendFrom(c *container, version mld.Version, maxDelay time.Duration) {
	l.tb.Helper()
	l.sendAs(c.eth0, version, maxDelay)
}

func (l *life) sendAs(e *netnslab.Endpoint, version mld.Version, maxDelay time.Duration) {
	l.tb.Helper()
	e.SendPacket(mld.AppendQuery(nil, routerAddr, allNodes, mld.Query{
		Version: version, MulticastAddress: general, MaxResponseCode: uint16(maxDelay.Milliseconds()), QRV: robustness, QQIC: 1,
	}))
}

// ip runs the program ip in the container.
func (l *life) ip(args ...string) {
	l.tb.Helper()
	runIn(l.tb, l.alice.Node, "ip", args...)
}

// sysctl sets what concerns IPv6 on the container's interface.
func (l *life) sysctl(key, value string) {
	l.tb.Helper()
	l.alice.SetSysctl("net/ipv6/conf/"+chain.IfName+"/"+key, value)
}
