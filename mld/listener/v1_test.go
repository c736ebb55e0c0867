package listener_test

import (
	"bytes"
	"encoding/hex"
	"net/netip"
	"slices"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/seed-aaab8e3a/cni-mld/mld"
	"github.com/seed-aaab8e3a/cni-mld/mld/listener"
)

// v1Scenarios are the rules of MLDv1. Unless a scenario draws otherwise, every delay is the longest: 10 s for a
// repeat, the Maximum Response Delay less the margin for an answer.
var v1Scenarios = []struct {
	rule, name string
	cfg        listener.Config
	transcript string
}{
	{rule: "V1-6 V1-7 V1-8 V1-16 K3 K7 K54 K55 K70", name: "join", transcript: `
		0s      source fe80::a
		0s      join ff05::8
		0s      > Report ff05::8 joined
		0s      ? ff05::8
		0s      = ff05::8 Delaying due 10s last
		9.999s  wait
		10s     > Report ff05::8 repeat
		10s     ? ff05::8
		10s     = ff05::8 Idle last
		1h      wait
	`},
	{rule: "V1-7", name: "repeat as soon as can be", transcript: `
		0s   source fe80::a
		0s   draw 0/1
		0s   join ff05::8
		0s   > Report ff05::8 joined
		1ns  > Report ff05::8 repeat
	`},
	{rule: "V1-7", name: "no repeat", cfg: listener.Config{Version: mld.Version1, Robustness: 1}, transcript: `
		0s   source fe80::a
		0s   join ff05::8
		0s   > Report ff05::8 joined
		0s   ? ff05::8
		0s   = ff05::8 Idle last
	`},
	{rule: "V1-7", name: "two repeats", cfg: listener.Config{Version: mld.Version1, Robustness: 3, UnsolicitedReportInterval: time.Second},
		transcript: `
		0s     source fe80::a
		0s     draw 1/2
		0s     join ff05::8
		0s     > Report ff05::8 joined
		500ms  > Report ff05::8 repeat
		1s     > Report ff05::8 repeat
		2s     wait
	`},
	{rule: "V1-6 K12 K74", name: "only the first subscriber starts and only the last one stops listening", transcript: `
		0s   source fe80::a
		0s   join ff05::8
		0s   > Report ff05::8 joined
		1s   join ff05::8 by 2
		2s   join ff05::8 by 3
		2s   join ff05::8
		3s   leave ff05::8
		3s   leave ff05::8
		4s   join ff05::8
		5s   leave ff05::8 by 3
		6s   leave ff05::8 by 4
		6s   ? ff05::8
		6s   = ff05::8 Delaying due 10s last
		10s  > Report ff05::8 repeat
		11s  leave ff05::8 by 2
		12s  leave ff05::8
		12s  > Done ff05::8
		13s  leave ff05::8
		14s  join ff05::8 by 2
		14s  > Report ff05::8 joined
		24s  > Report ff05::8 repeat
	`},
	{rule: "V1-9 K14 K16 K73", name: "leave when Idle", transcript: `
		0s   source fe80::a
		0s   join ff05::8
		0s   > Report ff05::8 joined
		10s  > Report ff05::8 repeat
		11s  leave ff05::8
		11s  > Done ff05::8
		11s  ? ff05::8
		11s  = ff05::8 Non-Listener
		1h   wait
	`},
	{rule: "V1-9 V1-35 K15 K17", name: "leave while a repeat is pending", transcript: `
		0s   source fe80::a
		0s   join ff05::8
		0s   > Report ff05::8 joined
		3s   leave ff05::8
		3s   > Done ff05::8
		1h   wait
	`},
	{rule: "V1-35 K15 K17", name: "leave while an answer is pending, flag set", transcript: `
		0s   source fe80::a
		0s   join ff05::8
		0s   > Report ff05::8 joined
		10s  > Report ff05::8 repeat
		20s  query :: 10s
		21s  leave ff05::8
		21s  > Done ff05::8
		1h   wait
	`},
	{rule: "V1-9 V1-28 V1-31 V1-35 K15 K39 K48", name: "leave while an answer is pending, flag clear", transcript: `
		0s   source fe80::a
		0s   join ff05::8
		0s   > Report ff05::8 joined
		1s   report ff05::8
		2s   query :: 10s
		2s   ? ff05::8
		2s   = ff05::8 Delaying due 11.995s
		3s   leave ff05::8
		3s   ? ff05::8
		3s   = ff05::8 Non-Listener
		1h   wait
		1h   join ff05::8
		1h   > Report ff05::8 joined
		1h   leave ff05::8
		1h   > Done ff05::8
	`},
	{rule: "V1-31 K85", name: "leave with flag clear, Done wanted always", cfg: listener.Config{Version: mld.Version1, AlwaysDone: true},
		transcript: `
		0s   source fe80::a
		0s   join ff05::8
		0s   > Report ff05::8 joined
		1s   report ff05::8
		1s   ? ff05::8
		1s   = ff05::8 Idle
		2s   leave ff05::8
		2s   > Done ff05::8
		3s   join ff05::9
		3s   > Report ff05::9 joined
		4s   leave ff05::9
		4s   > Done ff05::9
		4s   join ff02::1
		4s   leave ff02::1
		4s   leave ff05::8
	`},
	{rule: "V1-31", name: "an answer after the suppressed Report brings the Done back", transcript: `
		0s      source fe80::a
		0s      join ff05::8
		0s      > Report ff05::8 joined
		1s      report ff05::8
		2s      query :: 1s
		2.995s  > Report ff05::8 answer
		2.995s  ? ff05::8
		2.995s  = ff05::8 Idle last
		3s      leave ff05::8
		3s      > Done ff05::8
	`},
	{rule: "V1-11 V1-13 V1-22 V1-23 V1-24 V1-27 K34", name: "General Query", transcript: `
		0s       source fe80::a
		0s       draw 0/1
		0s       join ff02::1
		0s       join ff01::8
		0s       join ff00::8
		0s       join ff05::8
		0s       > Report ff05::8 joined
		0s       join ff02::1:ff00:a
		0s       > Report ff02::1:ff00:a joined
		1ns      > Report ff02::1:ff00:a repeat
		1ns      > Report ff05::8 repeat
		20s      draw 1/1
		20s      query :: 10s
		29.995s  > Report ff02::1:ff00:a answer
		29.995s  > Report ff05::8 answer
		1h       wait
	`},
	{rule: "V1-11 V1-12 V1-27 K35", name: "Specific Query", transcript: `
		0s       source fe80::a
		0s       draw 0/1
		0s       join ff05::8
		0s       > Report ff05::8 joined
		0s       join ff05::9
		0s       > Report ff05::9 joined
		1ns      > Report ff05::8 repeat
		1ns      > Report ff05::9 repeat
		20s      draw 1/1
		20s      query ff05::7 1s
		20s      query ff05::8 1s
		20.995s  > Report ff05::8 answer
		20.995s  ? ff05::9
		20.995s  = ff05::9 Idle last
		30s      leave ff05::8
		30s      > Done ff05::8
		31s      query ff05::8 1s
		32s      query ff05::8 0s
		1h       wait
	`},
	{rule: "V1-22 V1-23 V1-36 K4 K5", name: "silent addresses", transcript: `
		0s   source fe80::a
		0s   join ff02::1
		0s   join ff00::1
		0s   join ff01::1
		0s   join ff11::8
		0s   mirror ff30::8 EX()
		0s   query :: 1s
		0s   query :: 0s
		0s   query ff02::1 0s
		0s   query ff02::1 1s
		0s   query ff01::1 0s
		0s   query ff00::1 1s
		0s   ? ff02::1
		0s   = ff02::1 Idle
		0s   report ff02::1
		0s   ? ff02::1
		0s   = ff02::1 Idle
		0s   source fe80::a:a
		1s   leave ff02::1
		1s   leave ff01::1
		1s   leave ff11::8
		1s   ? ff02::1
		1s   = ff02::1 Non-Listener
		1h   wait
	`},
	{rule: "V1-24 K5", name: "every scope from 2 up", cfg: listener.Config{Version: mld.Version1, Robustness: 1}, transcript: `
		0s   source fe80::a
		0s   join ff02::1:ff00:a
		0s   > Report ff02::1:ff00:a joined
		0s   join ff02::2
		0s   > Report ff02::2 joined
		0s   join ff03::8
		0s   > Report ff03::8 joined
		0s   join ff04::8
		0s   > Report ff04::8 joined
		0s   listen ff3e::8000:1 IN(s1)
		0s   > Report ff3e::8000:1 joined
		0s   join ff0f::1
		0s   > Report ff0f::1 joined
		0s   leave ff02::2
		0s   > Done ff02::2
	`},
	{rule: "V1-14 V1-37 K37", name: "a Query pulls a pending Report forward", transcript: `
		0s      source fe80::a
		0s      join ff05::8
		0s      > Report ff05::8 joined
		3s      query :: 5s
		3s      ? ff05::8
		3s      = ff05::8 Delaying due 7.995s last
		4s      query ff05::8 1s
		4s      ? ff05::8
		4s      = ff05::8 Delaying due 4.995s last
		4.995s  > Report ff05::8 answer
		1h      wait
	`},
	{rule: "V1-14 V1-37", name: "a Query that pulls the first of two repeats forward takes the second away",
		cfg: listener.Config{Version: mld.Version1, Robustness: 3}, transcript: `
		0s      source fe80::a
		0s      join ff05::8
		0s      > Report ff05::8 joined
		1s      query ff05::8 1s
		1.995s  > Report ff05::8 answer
		1h      wait
	`},
	{rule: "V1-14 K38", name: "a Query leaves a pending Report that is early enough alone", transcript: `
		0s       source fe80::a
		0s       join ff05::8
		0s       > Report ff05::8 joined
		0s       draw 0/1
		1s       query :: 10s
		1s       query :: 9.001s
		1s       query :: 9s
		1s       ? ff05::8
		1s       = ff05::8 Delaying due 10s last
		1s       query :: 8.999s
		1s       ? ff05::8
		1s       = ff05::8 Delaying due 1.000000001s last
		1.000000001s > Report ff05::8 answer
	`},
	{rule: "V1-37", name: "a Query that pulls nothing forward takes no repeat away",
		cfg: listener.Config{Version: mld.Version1, Robustness: 3}, transcript: `
		0s   source fe80::a
		0s   join ff05::8
		0s   > Report ff05::8 joined
		1s   query :: 10s
		10s  > Report ff05::8 repeat
		11s  query :: 10s
		20s  > Report ff05::8 repeat
		1h   wait
	`},
	{rule: "V1-15 K33", name: "no delay: at once, Idle or Delaying", transcript: `
		0s   source fe80::a
		0s   join ff05::8
		0s   > Report ff05::8 joined
		1s   query :: 0s
		1s   > Report ff05::8 answer
		1s   ? ff05::8
		1s   = ff05::8 Idle last
		2s   query :: 0s
		2s   > Report ff05::8 answer
		3s   join ff05::9
		3s   > Report ff05::9 joined
		4s   query ff05::9 0s
		4s   > Report ff05::9 answer
		5s   query :: 10s
		6s   query :: 0s
		6s   > Report ff05::8 answer
		6s   > Report ff05::9 answer
		1h   wait
	`},
	{rule: "V1-15", name: "no delay, flag clear", transcript: `
		0s   source fe80::a
		0s   join ff05::8
		0s   > Report ff05::8 joined
		1s   report ff05::8
		2s   query ff05::8 0s
		2s   > Report ff05::8 answer
		2s   ? ff05::8
		2s   = ff05::8 Idle last
	`},
	{rule: "V1-18 V1-37 K46 K48", name: "another's Report cancels the repeat", cfg: listener.Config{Version: mld.Version1, Robustness: 7},
		transcript: `
		0s   source fe80::a
		0s   join ff05::8
		0s   > Report ff05::8 joined
		3s   report ff05::8
		3s   ? ff05::8
		3s   = ff05::8 Idle
		1h   leave ff05::8
		1h   ? ff05::8
		1h   = ff05::8 Non-Listener
	`},
	{rule: "V1-18 V1-20 V1-27 K46 K48", name: "another's Report cancels an answer, that of its address only", transcript: `
		0s       source fe80::a
		0s       draw 0/1
		0s       join ff05::8
		0s       > Report ff05::8 joined
		0s       join ff05::9
		0s       > Report ff05::9 joined
		1ns      > Report ff05::8 repeat
		1ns      > Report ff05::9 repeat
		20s      draw 1/1
		20s      query :: 10s
		25s      report ff05::7
		25s      report ff05::9
		29.995s  > Report ff05::8 answer
		30s      leave ff05::9
		30s      leave ff05::8
		30s      > Done ff05::8
	`},
	{rule: "V1-19", name: "another's Report means nothing when Idle", transcript: `
		0s   source fe80::a
		0s   join ff05::8
		0s   > Report ff05::8 joined
		10s  > Report ff05::8 repeat
		11s  report ff05::8
		11s  report ff05::7
		11s  ? ff05::8
		11s  = ff05::8 Idle last
		11s  ? ff05::7
		11s  = ff05::7 Non-Listener
		12s  leave ff05::8
		12s  > Done ff05::8
		13s  report ff05::8
		14s  leave ff05::8
	`},
	{rule: "V1-21 K49 K51", name: "Done and version 2 Reports mean nothing", transcript: `
		0s      source fe80::a
		0s      join ff05::8
		0s      > Report ff05::8 joined
		1s      done ff05::8
		1s      reportv2
		1s      ? ff05::8
		1s      = ff05::8 Delaying due 10s last
		10s     > Report ff05::8 repeat
		11s     done ff05::8
		11s     reportv2
		11s     ? ff05::8
		11s     = ff05::8 Idle last
	`},
	{rule: "V1-25 K43", name: "our own Report does not suppress, our own Query is answered", transcript: `
		0s      source fe80::a
		0s      join ff05::8
		0s      > Report ff05::8 joined
		1s      report ff05::8 from fe80::a
		1s      ? ff05::8
		1s      = ff05::8 Delaying due 10s last
		2s      query :: 1s from fe80::a
		2.995s  > Report ff05::8 answer
		3s      report ff05::8 from fe80::a
		4s      leave ff05::8
		4s      > Done ff05::8
	`},
	{rule: "V1-26", name: "the delay is linear over all 16 bits", transcript: `
		0s        source fe80::a
		0s        draw 0/1
		0s        join ff05::8
		0s        > Report ff05::8 joined
		1ns       > Report ff05::8 repeat
		1s        draw 1/1
		1s        query :: 40s
		40.995s   > Report ff05::8 answer
		100s      query :: 65.535s
		165.53s   > Report ff05::8 answer
		200s      query :: 32.768s
		232.763s  > Report ff05::8 answer
		300s      query :: 1ms
		300.00075s > Report ff05::8 answer
	`},
	{rule: "V1-28 V1-30", name: "states change although nothing can be sent", transcript: `
		0s   join ff05::8
		0s   ? ff05::8
		0s   = ff05::8 Delaying due 10s
		10s  wait
		10s  ? ff05::8
		10s  = ff05::8 Idle
		11s  query :: 1s
		20s  wait
		21s  query :: 0s
		22s  leave ff05::8
		22s  ? ff05::8
		22s  = ff05::8 Non-Listener
		23s  source fe80::a
	`},
	{rule: "V1-28 V1-30", name: "a Report that cannot be sent is none", transcript: `
		0s      source fe80::a
		0s      join ff05::8
		0s      > Report ff05::8 joined
		9s      source none
		10s     wait
		10s     ? ff05::8
		10s     = ff05::8 Idle
		11s     source fe80::a
		11s     > Report ff05::8 announced
		12s     source none
		12s     query :: 0s
		12s     ? ff05::8
		12s     = ff05::8 Idle
		13s     source fe80::a
		13s     > Report ff05::8 announced
		13s     ? ff05::8
		13s     = ff05::8 Delaying due 23s last
		23s     > Report ff05::8 repeat
	`},
	{rule: "V1-30 V1-38", name: `from "::" first, from the link-local address when it is valid`, transcript: `
		0s   source ::
		0s   join ff02::1:ff00:a
		0s   > Report ff02::1:ff00:a joined from ::
		0s   join ff05::8
		0s   > Report ff05::8 joined from ::
		0s   join ff05::9
		0s   > Report ff05::9 joined from ::
		1s   leave ff05::9
		1s   > Done ff05::9 from ::
		1s   source fe80::a
		1s   > Report ff02::1:ff00:a announced
		1s   > Report ff05::8 announced
		11s  > Report ff02::1:ff00:a repeat
		11s  > Report ff05::8 repeat
		12s  leave ff05::8
		12s  > Done ff05::8
		1h   wait
	`},
	{rule: "V1-30", name: "sending becomes possible late, ceases and becomes possible again", transcript: `
		0s   join ff05::8
		0s   join ff02::1
		5s   source fe80::a
		5s   > Report ff05::8 announced
		6s   source fe80::a
		7s   source none
		15s  wait
		16s  source fe80::a
		16s  > Report ff05::8 announced
		17s  source ::
		18s  leave ff05::8
		18s  > Done ff05::8 from ::
	`},
	{rule: "V1-30", name: "another link-local address", transcript: `
		0s   source fe80::a
		0s   join ff05::8
		0s   > Report ff05::8 joined
		1s   report ff05::8
		2s   source fe80::a:a
		2s   > Report ff05::8 announced from fe80::a:a
		2s   ? ff05::8
		2s   = ff05::8 Delaying due 12s last
		3s   source ::
		4s   source fe80::a:a
		4s   > Report ff05::8 announced from fe80::a:a
		14s  > Report ff05::8 repeat from fe80::a:a
	`},
	{rule: "V1-30 V1-18", name: "an announcement can be suppressed like any repeat", transcript: `
		0s   source ::
		0s   join ff05::8
		0s   > Report ff05::8 joined from ::
		1s   source fe80::a
		1s   > Report ff05::8 announced
		2s   report ff05::8
		1h   wait
	`},
	{rule: "V1-9", name: "forgotten without a word", transcript: `
		0s   source fe80::a
		0s   join ff05::8
		0s   > Report ff05::8 joined
		1s   join ff05::8 by 2
		2s   forget ff05::8
		3s   forget ff05::8 by 2
		3s   ? ff05::8
		3s   = ff05::8 Non-Listener
		3s   forget ff05::8 by 2
		1h   wait
	`},
}

func TestV1(t *testing.T) {
	for _, s := range v1Scenarios {
		t.Run(s.rule+" "+s.name, func(t *testing.T) {
			s.cfg.Version = mld.Version1
			scenario(t, s.cfg, s.transcript)
		})
	}
}

// The octets are those that Linux 6.18 sent in the same situations.
func TestV1_01_V1_02_V1_03_V1_04_V1_05_V1_08_V1_30_K1_K59_K60_K61_Octets(t *testing.T) {
	linux := netip.MustParseAddr("fe80::ff:fe00:a")
	n := newNode(t, listener.Config{Version: mld.Version1}, &share{1, 1})
	n.do(0, "source", []string{"::"})
	n.do(0, "join", []string{"ff02::1:ff00:a"})
	n.do(0, "source", []string{linux.String()})
	n.do(0, "join", []string{"ff05::4321"})
	n.do(0, "leave", []string{"ff05::4321"})
	want := []string{
		"6000000000200001" + "00000000000000000000000000000000" + "ff0200000000000000000001ff00000a" +
			"3a00050200000100" + "8300808f00000000" + "ff0200000000000000000001ff00000a",
		"6000000000200001" + "fe80000000000000000000fffe00000a" + "ff0200000000000000000001ff00000a" +
			"3a00050200000100" + "8300830400000000" + "ff0200000000000000000001ff00000a",
		"6000000000200001" + "fe80000000000000000000fffe00000a" + "ff050000000000000000000000004321" +
			"3a00050200000100" + "8300fad300000000" + "ff050000000000000000000000004321",
		"6000000000200001" + "fe80000000000000000000fffe00000a" + "ff020000000000000000000000000002" +
			"3a00050200000100" + "84003cf600000000" + "ff050000000000000000000000004321",
	}
	var got []string
	for _, p := range n.packets {
		got = append(got, hex.EncodeToString(p))
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("octets sent (-want +got):\n%s", diff)
	}
}

// Two interfaces, be they on one link or not, share nothing; on one link one suppresses the other.
func TestV1_20_V1_27_V1_32_K2_TwoInterfaces(t *testing.T) {
	a, b, apart := newNode(t, listener.Config{Version: mld.Version1}, &share{1, 2}), newNode(t, listener.Config{Version: mld.Version1}, &share{1, 1}),
		newNode(t, listener.Config{Version: mld.Version1}, &share{1, 1})
	for i, n := range []*node{a, b, apart} {
		n.do(0, "source", []string{[]string{"fe80::a", "fe80::b", "fe80::a"}[i]})
		n.do(0, "join", []string{"ff05::8"})
		n.runUntil(100 * time.Second)
		n.transcript = nil
		n.do(100*time.Second, "query", []string{"::", "10s", "from", "fe80::1"})
	}
	a.runUntil(105 * time.Second)
	if want := []string{"1m44.9975s > Report ff05::8 answer"}; !slices.Equal(a.transcript, want) {
		t.Errorf("the first interface says %q, want %q", a.transcript, want)
	}
	p, err := mld.Parse(a.packets[len(a.packets)-1], 0)
	if err != nil {
		t.Fatal(err)
	}
	b.l.Receive(epoch.Add(b.now), p.Src, p.Message)
	b.runUntil(forever)
	if len(b.transcript) != 0 {
		t.Errorf("the second interface on the link is not suppressed: %q", b.transcript)
	}
	apart.runUntil(forever)
	if want := []string{"1m49.995s > Report ff05::8 answer"}; !slices.Equal(apart.transcript, want) {
		t.Errorf("the interface on another link says %q, want %q", apart.transcript, want)
	}
}

// An agent gives the listener what mld.Parse accepts. What that refuses leaves every timer and flag alone.
func TestV1_04_V1_10_V1_17_V1_21_V1_33_V1_34_K20_K22_K23_K28_K44_K84_InvalidPackets(t *testing.T) {
	group := netip.MustParseAddr("ff05::8")
	query := func(src netip.Addr, addr netip.Addr) []byte {
		return mld.AppendQuery(nil, src, mld.AllNodes, mld.Query{Version: mld.Version1, MulticastAddress: addr})
	}
	edit := func(p []byte, at int, octet byte) []byte {
		p = bytes.Clone(p)
		p[at] = octet
		return p
	}
	general, report := query(other, netip.IPv6Unspecified()), mld.AppendReport(nil, other, group)
	tests := []struct {
		name   string
		packet []byte
		reason mld.Reason
	}{
		{"Query with wrong checksum", edit(general, 50, 1), mld.ReasonChecksum},
		{"Query from ::", query(netip.IPv6Unspecified(), netip.IPv6Unspecified()), mld.ReasonUnspecifiedSource},
		{"Query from a global address", query(netip.MustParseAddr("2001:db8::1"), group), mld.ReasonSource},
		{"Query about a unicast address", query(other, netip.MustParseAddr("fe80::1")), mld.ReasonMulticastAddress},
		{"Query from afar", edit(general, 7, 2), mld.ReasonHopLimit},
		{"Query without Router Alert", edit(edit(general, 42, 1), 44, 1), mld.ReasonNoRouterAlert},
		{"short Query", general[:len(general)-1], mld.ReasonPayloadLength},
		{"Report with wrong checksum", edit(report, 50, 1), mld.ReasonChecksum},
		{"Report from ::", mld.AppendReport(nil, netip.IPv6Unspecified(), group), mld.ReasonUnspecifiedSource},
		{"Report from afar", edit(report, 7, 255), mld.ReasonHopLimit},
		{"Report about a unicast address", mld.AppendReport(nil, other, own), mld.ReasonMulticastAddress},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			n := newNode(t, listener.Config{Version: mld.Version1}, &share{1, 1})
			n.do(0, "source", []string{own.String()})
			n.do(0, "join", []string{group.String()})
			before := snapshot(n.l)
			p, err := mld.Parse(tt.packet, 0)
			if mld.ReasonOf(err) != tt.reason {
				t.Fatalf("refused for %v, want %v", mld.ReasonOf(err), tt.reason)
			}
			n.l.Receive(epoch.Add(time.Second), p.Src, p.Message) // even if a caller does not look at the error
			n.drain()
			if diff := cmp.Diff(before, snapshot(n.l), equalAddr); diff != "" || len(n.packets) != 1 {
				t.Errorf("%d packets and states (-before +after):\n%s", len(n.packets), diff)
			}
		})
	}

	// The same packets, unspoilt, are heard.
	n := newNode(t, listener.Config{Version: mld.Version1}, &share{1, 1})
	n.do(0, "source", []string{own.String()})
	n.do(0, "join", []string{group.String()})
	for _, packet := range [][]byte{general, report} {
		p, err := mld.Parse(packet, 0)
		if err != nil {
			t.Fatal(err)
		}
		n.l.Receive(epoch, p.Src, p.Message)
		n.drain()
	}
	if c := n.l.Counters(); c.QueriesHeard != 1 || c.ReportsHeard != 1 || len(n.packets) != 2 {
		t.Errorf("counters are %+v, %d packets were sent", c, len(n.packets))
	}
}

// Whatever the destination of a message, its address field says what it is about.
func TestV1_11_V1_20_K26_K47_K82_DestinationAndUnusedFields(t *testing.T) {
	n := newNode(t, listener.Config{Version: mld.Version1}, &share{1, 1})
	n.do(0, "source", []string{own.String()})
	n.do(0, "join", []string{"ff05::8"})
	q := mld.AppendQuery(nil, other, own, mld.Query{
		Version: mld.Version1, MulticastAddress: netip.MustParseAddr("ff05::8"), MaxResponseCode: 1000,
	})
	q = resealed(q, func(m []byte) { m[1], m[6], m[7] = 7, 8, 9 })
	p, err := mld.Parse(q, 0)
	if err != nil {
		t.Fatal(err)
	}
	n.l.Receive(epoch, p.Src, p.Message)
	if a, _ := n.l.Address(netip.MustParseAddr("ff05::8")); a.Due.Sub(epoch) != 995*time.Millisecond {
		t.Errorf("after a Query sent to us alone the Report is due after %v, want 995ms", a.Due.Sub(epoch))
	}
	r := mld.AppendReport(nil, other, netip.MustParseAddr("ff05::8"))
	copy(r[24:40], own.AsSlice())
	r = resealed(r, func(m []byte) { m[1], m[4], m[5], m[6] = 1, 2, 3, 4 })
	if p, err = mld.Parse(r, 0); err != nil {
		t.Fatal(err)
	}
	n.l.Receive(epoch, p.Src, p.Message)
	if a, _ := n.l.Address(netip.MustParseAddr("ff05::8")); a.State != listener.IdleListener || a.LastReporter {
		t.Errorf("after a Report sent to us alone the state is %+v", a)
	}
}

// resealed changes the message of a packet and sets its checksum right.
func resealed(packet []byte, change func(message []byte)) []byte {
	p := bytes.Clone(packet)
	m := p[48:]
	change(m)
	m[2], m[3] = 0, 0
	sum := uint32(len(m)) + 58
	for _, b := range [][]byte{p[8:40], m} {
		for i := 0; i < len(b); i += 2 {
			sum += uint32(b[i])<<8 | uint32(b[i+1])
		}
	}
	for sum > 0xffff {
		sum = sum>>16 + sum&0xffff
	}
	m[2], m[3] = byte(^sum>>8), byte(^sum)
	return p
}

// A node that speaks version 1 reads every Query as one of version 1.
func TestV1_02_V1_26_K21_K78_LongerQuery(t *testing.T) {
	for _, profile := range []listener.Profile{listener.RFC, listener.KAME} {
		n := newNode(t, listener.Config{Version: mld.Version1, Profile: profile}, &share{1, 1})
		n.do(0, "source", []string{own.String()})
		n.do(0, "join", []string{"ff05::8"})
		n.runUntil(time.Minute)
		q := mld.AppendQuery(nil, other, mld.AllNodes, mld.Query{Version: mld.Version2, MaxResponseCode: 0x9c40, QRV: 7})
		p, err := mld.Parse(q, 0)
		if err != nil {
			t.Fatal(err)
		}
		n.l.Receive(epoch.Add(time.Minute), p.Src, p.Message)
		a, _ := n.l.Address(netip.MustParseAddr("ff05::8"))
		if d := a.Due.Sub(epoch) - time.Minute; d < 39*time.Second || d > 40*time.Second {
			t.Errorf("%v: a version 2 Query with code 40000 is answered after %v, want about 40s", profile, d)
		}
		n.runUntil(forever)
		if got := n.l.Counters().ReportsSent; got != 3 {
			t.Errorf("%v: %d Reports in all, want 3", profile, got)
		}
	}
}

func snapshot(l *listener.Listener) map[string]listener.Address {
	m := map[string]listener.Address{}
	for a := range l.Snapshot() {
		m[a.Addr.String()] = a
	}
	return m
}
