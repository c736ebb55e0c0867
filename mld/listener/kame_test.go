package listener_test

import (
	"net/netip"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/seed-aaab8e3a/cni-mld/mld"
	"github.com/seed-aaab8e3a/cni-mld/mld/listener"
)

// kameScenarios are what mld6.c does that its rules call a deviation or a limit, each followed by what the RFC
// profile does in the same situation. A tick is 200 ms; a first Query at 0s, for nobody, sets the grid.
var kameScenarios = []struct {
	rule, name string
	kame, rfc  string
}{
	{rule: "K3 K7 K8 K54 K55", name: "join, and one repeat after at most 50 ticks", kame: `
		0s      source fe80::a
		0s      query :: 1s
		300ms   join ff05::8
		300ms   > Report ff05::8 joined
		300ms   ? ff05::8
		300ms   = ff05::8 Delaying due 10.2s last
		10.2s   > Report ff05::8 repeat
		10.2s   ? ff05::8
		10.2s   = ff05::8 Idle last
		1h      wait
	`, rfc: `
		0s      source fe80::a
		0s      query :: 1s
		300ms   join ff05::8
		300ms   > Report ff05::8 joined
		10.3s   > Report ff05::8 repeat
	`},
	{rule: "K8 K36", name: "a delay is never less than a tick", kame: `
		0s      source fe80::a
		0s      query :: 1s
		0s      draw 0/1
		300ms   join ff05::8
		300ms   > Report ff05::8 joined
		400ms   > Report ff05::8 repeat
		1s      query :: 10s
		1.2s    > Report ff05::8 answer
	`, rfc: `
		0s      source fe80::a
		0s      query :: 1s
		0s      draw 0/1
		300ms   join ff05::8
		300ms   > Report ff05::8 joined
		300.000001ms > Report ff05::8 repeat
		1s      query :: 10s
		1.000000001s > Report ff05::8 answer
	`},
	{rule: "K9 K18 K19 K57 K76", name: "silent for good without a link-local address", kame: `
		0s   source ::
		0s   join ff02::1:ff00:a
		0s   join ff05::8
		0s   join ff05::9
		0s   ? ff05::8
		0s   = ff05::8 Delaying due 10s last
		1s   leave ff05::9
		20s  source fe80::a
		21s  leave ff05::8
		21s  > Done ff05::8
		1h   wait
	`, rfc: `
		0s   source ::
		0s   join ff02::1:ff00:a
		0s   > Report ff02::1:ff00:a joined from ::
		0s   join ff05::8
		0s   > Report ff05::8 joined from ::
		0s   join ff05::9
		0s   > Report ff05::9 joined from ::
		0s   ? ff05::8
		0s   = ff05::8 Delaying due 10s last
		1s   leave ff05::9
		1s   > Done ff05::9 from ::
		10s  > Report ff02::1:ff00:a repeat from ::
		10s  > Report ff05::8 repeat from ::
		20s  source fe80::a
		20s  > Report ff02::1:ff00:a announced
		20s  > Report ff05::8 announced
		21s  leave ff05::8
		21s  > Done ff05::8
		30s  > Report ff02::1:ff00:a repeat
		1h   wait
	`},
	{rule: "K9 K56 K57", name: "a repeat that cannot leave is lost, the flag claims it", kame: `
		0s   source fe80::a
		0s   join ff05::8
		0s   > Report ff05::8 joined
		1s   report ff05::8
		1s   ? ff05::8
		1s   = ff05::8 Idle
		2s   query :: 1s
		2s   source none
		3s   wait
		3s   ? ff05::8
		3s   = ff05::8 Idle last
		4s   source fe80::a
		1h   wait
		1h   leave ff05::8
		1h   > Done ff05::8
	`, rfc: `
		0s   source fe80::a
		0s   join ff05::8
		0s   > Report ff05::8 joined
		1s   report ff05::8
		1s   ? ff05::8
		1s   = ff05::8 Idle
		2s   query :: 1s
		2s   source none
		3s   wait
		3s   ? ff05::8
		3s   = ff05::8 Idle
		4s   source fe80::a
		4s   > Report ff05::8 announced
		14s  > Report ff05::8 repeat
		1h   wait
		1h   leave ff05::8
		1h   > Done ff05::8
	`},
	{rule: "K45", name: "another's Report clears the flag even when Idle", kame: `
		0s   source fe80::a
		0s   join ff05::8
		0s   > Report ff05::8 joined
		10s  > Report ff05::8 repeat
		11s  report ff05::8
		11s  ? ff05::8
		11s  = ff05::8 Idle
		12s  leave ff05::8
		1h   wait
	`, rfc: `
		0s   source fe80::a
		0s   join ff05::8
		0s   > Report ff05::8 joined
		10s  > Report ff05::8 repeat
		11s  report ff05::8
		11s  ? ff05::8
		11s  = ff05::8 Idle last
		12s  leave ff05::8
		12s  > Done ff05::8
		1h   wait
	`},
	{rule: "K30", name: "the delay is rounded down to ticks, all of which are used", kame: `
		0s       source fe80::a
		0s       draw 0/1
		0s       join ff05::8
		0s       > Report ff05::8 joined
		200ms    > Report ff05::8 repeat
		1s       draw 1/1
		1s       query :: 1s
		2s       > Report ff05::8 answer
		3s       query :: 1.199s
		4s       > Report ff05::8 answer
		5s       query :: 399ms
		5.2s     > Report ff05::8 answer
		6s       query :: 400ms
		6.4s     > Report ff05::8 answer
		7s       query :: 10s
		17s      > Report ff05::8 answer
		20s      query :: 65.535s
		85.4s    > Report ff05::8 answer
	`, rfc: `
		0s       source fe80::a
		0s       draw 0/1
		0s       join ff05::8
		0s       > Report ff05::8 joined
		1ns      > Report ff05::8 repeat
		1s       draw 1/1
		1s       query :: 1s
		1.995s   > Report ff05::8 answer
		3s       query :: 1.199s
		4.194s   > Report ff05::8 answer
		5s       query :: 399ms
		5.394s   > Report ff05::8 answer
		6s       query :: 400ms
		6.395s   > Report ff05::8 answer
		7s       query :: 10s
		16.995s  > Report ff05::8 answer
		20s      query :: 65.535s
		85.53s   > Report ff05::8 answer
	`},
	{rule: "K31 K32", name: "a delay below a tick is a tick, and may be late", kame: `
		0s       source fe80::a
		0s       draw 0/1
		0s       join ff05::8
		0s       > Report ff05::8 joined
		200ms    > Report ff05::8 repeat
		1s       draw 1/1
		1s       query :: 1ms
		1.2s     > Report ff05::8 answer
		2s       query :: 50ms
		2.2s     > Report ff05::8 answer
		3.1s     query :: 199ms
		3.2s     > Report ff05::8 answer
		4.199s   query :: 1ms
		4.2s     > Report ff05::8 answer
	`, rfc: `
		0s       source fe80::a
		0s       draw 0/1
		0s       join ff05::8
		0s       > Report ff05::8 joined
		1ns      > Report ff05::8 repeat
		1s       draw 1/1
		1s       query :: 1ms
		1.00075s > Report ff05::8 answer
		2s       query :: 50ms
		2.045s   > Report ff05::8 answer
		3.1s     query :: 199ms
		3.294s   > Report ff05::8 answer
		4.199s   query :: 1ms
		4.19975s > Report ff05::8 answer
	`},
	{rule: "K37 K38", name: "times are compared in ticks", kame: `
		0s     source fe80::a
		0s     join ff05::8
		0s     > Report ff05::8 joined
		0s     draw 1/2
		1s     query :: 9s
		1s     query :: 9.199s
		1.1s   query :: 9s
		1.1s   ? ff05::8
		1.1s   = ff05::8 Delaying due 10s last
		1.1s   query :: 8.999s
		1.1s   ? ff05::8
		1.1s   = ff05::8 Delaying due 5.4s last
		5.4s   > Report ff05::8 answer
	`, rfc: `
		0s     source fe80::a
		0s     join ff05::8
		0s     > Report ff05::8 joined
		0s     draw 1/2
		1s     query :: 9s
		1s     query :: 9.199s
		1.1s   query :: 9s
		1.1s   ? ff05::8
		1.1s   = ff05::8 Delaying due 10s last
		1.1s   query :: 8.899s
		1.1s   ? ff05::8
		1.1s   = ff05::8 Delaying due 5.547s last
		5.547s > Report ff05::8 answer
	`},
}

func TestKAME(t *testing.T) {
	for _, s := range kameScenarios {
		t.Run(s.rule+" "+s.name, func(t *testing.T) {
			t.Run("kame", func(t *testing.T) {
				scenario(t, listener.Config{Version: mld.Version1, Profile: listener.KAME}, s.kame)
			})
			t.Run("rfc", func(t *testing.T) { scenario(t, listener.Config{Version: mld.Version1}, s.rfc) })
		})
	}
}

// commonScenarios are rows of mld6.c in which it conforms: both profiles do the same.
var commonScenarios = []struct{ rule, name, transcript string }{
	{rule: "K4 K5 K35", name: "silent addresses", transcript: `
		0s   source fe80::a
		0s   join ff02::1
		0s   join ff01::8
		0s   join ff00::8
		0s   query :: 0s
		0s   query :: 1s
		0s   query ff02::1 0s
		0s   query ff01::8 1s
		0s   report ff02::1
		1s   leave ff02::1
		1s   leave ff01::8
		1h   wait
	`},
	{rule: "K12 K14 K16 K70 K73 K74", name: "several subscribers", transcript: `
		0s   source fe80::a
		0s   join ff05::8
		0s   > Report ff05::8 joined
		0s   join ff05::8 by 2
		10s  > Report ff05::8 repeat
		11s  leave ff05::8
		12s  leave ff05::8 by 2
		12s  > Done ff05::8
		12s  ? ff05::8
		12s  = ff05::8 Non-Listener
		1h   wait
	`},
	{rule: "K14 K15 K17 K46 K48", name: "a suppressed repeat and the leave without a Done", transcript: `
		0s   source fe80::a
		0s   join ff05::8
		0s   > Report ff05::8 joined
		4s   report ff05::8
		4s   ? ff05::8
		4s   = ff05::8 Idle
		5s   query :: 10s
		6s   leave ff05::8
		1h   wait
	`},
	{rule: "K33 K39", name: "no delay, Idle and Delaying", transcript: `
		0s   source fe80::a
		0s   join ff05::8
		0s   > Report ff05::8 joined
		1s   query :: 0s
		1s   > Report ff05::8 answer
		2s   report ff05::9
		2s   query ff05::8 0s
		2s   > Report ff05::8 answer
		2s   ? ff05::8
		2s   = ff05::8 Idle last
		3s   query ff05::8 0s
		3s   > Report ff05::8 answer
		1h   wait
	`},
	{rule: "K34 K35 K39", name: "General and Specific Queries", transcript: `
		0s   source fe80::a
		0s   join ff05::8
		0s   > Report ff05::8 joined
		1s   report ff05::8
		1s   join ff05::9
		1s   > Report ff05::9 joined
		2s   report ff05::9
		3s   draw 1/2
		3s   query ff05::7 10s
		3s   query ff05::8 8s
		3s   ? ff05::9
		3s   = ff05::9 Idle
		4s   query :: 0s
		4s   > Report ff05::8 answer
		4s   > Report ff05::9 answer
		1h   wait
	`},
	{rule: "K43 K49 K51", name: "nothing that matters", transcript: `
		0s   source fe80::a
		0s   join ff05::8
		0s   > Report ff05::8 joined
		1s   report ff05::8 from fe80::a
		1s   done ff05::8
		1s   reportv2
		10s  > Report ff05::8 repeat
		11s  report ff05::8 from fe80::a
		11s  done ff05::8
		12s  leave ff05::8
		12s  > Done ff05::8
	`},
	{rule: "K43", name: "a router on this node is answered", transcript: `
		0s   source fe80::a
		0s   join ff05::8
		0s   > Report ff05::8 joined
		1s   query :: 0s from fe80::a
		1s   > Report ff05::8 answer
	`},
}

func TestKAMEConforms(t *testing.T) {
	for _, s := range commonScenarios {
		t.Run(s.rule+" "+s.name, func(t *testing.T) {
			t.Run("kame", func(t *testing.T) {
				scenario(t, listener.Config{Version: mld.Version1, Profile: listener.KAME}, s.transcript)
			})
			t.Run("rfc", func(t *testing.T) { scenario(t, listener.Config{Version: mld.Version1}, s.transcript) })
		})
	}
}

// CVE-2008-2464: a Maximum Response Delay too small for the clock was a division by zero. Here every draw would
// panic that is asked for from an empty range.
func TestV1_26_K32_EveryDelayCanBeDrawn(t *testing.T) {
	for _, profile := range []listener.Profile{listener.RFC, listener.KAME} {
		n := newNode(t, listener.Config{Version: mld.Version1, Profile: profile}, &share{1, 1})
		n.l.SetSource(epoch, own)
		n.do(0, "join", []string{"ff05::8"})
		n.runUntil(time.Minute)
		var now time.Duration = time.Minute
		for mrd := range 1 << 16 {
			sent := n.l.Counters().ReportsSent
			n.l.Receive(epoch.Add(now), other, generalQuery(uint16(mrd)))
			if a, _ := n.l.Address(netip.MustParseAddr("ff05::8")); a.State == listener.DelayingListener {
				late := a.Due.Sub(epoch.Add(now)) - time.Duration(mrd)*time.Millisecond
				if profile == listener.RFC && late > 0 || late > 200*time.Millisecond {
					t.Fatalf("%v: a delay of %d ms is exceeded by %v", profile, mrd, late)
				}
				now = a.Due.Sub(epoch)
			} else if mrd > 0 {
				t.Fatalf("%v: a Query with a delay of %d ms arms no timer", profile, mrd)
			}
			n.l.Advance(epoch.Add(now))
			for range n.l.Outgoing() {
			}
			if got := n.l.Counters().ReportsSent - sent; got != 1 {
				t.Fatalf("%v: a Query with a delay of %d ms has %d answers", profile, mrd, got)
			}
		}
	}
}

func generalQuery(mrd uint16) mld.Message {
	return mld.Message{
		Type: mld.TypeQuery, Version: mld.Version1,
		MulticastAddress: netip.IPv6Unspecified(), MaxResponseCode: mrd,
	}
}

// What could not be sent when it came up is not sent later either.
func TestK18_K56_LostForGood(t *testing.T) {
	n := newNode(t, listener.Config{Version: mld.Version1, Profile: listener.KAME}, &share{1, 1})
	for _, filter := range []listener.Filter{listener.AnySource, {}} {
		if err := n.l.Listen(epoch, 1, address(0), filter); err != nil {
			t.Fatal(err)
		}
	}
	n.l.SetSource(epoch, own)
	n.drain()
	if len(n.packets) > 0 {
		t.Errorf("with a source there is %q", n.transcript)
	}
}

// No zone of an address gets anywhere: not into the octets, not into the comparison with our own source.
func TestK62_Zones(t *testing.T) {
	n := newNode(t, listener.Config{Version: mld.Version1}, &share{1, 1})
	n.l.SetSource(epoch, own.WithZone("eth0"))
	if n.l.Source() != own {
		t.Errorf("the source is %v, want %v", n.l.Source(), own)
	}
	n.do(0, "join", []string{"ff02::8"})
	n.do(0, "report", []string{"ff02::8", "from", own.String()})
	if a, _ := n.l.Address(netip.MustParseAddr("ff02::8")); a.State != listener.DelayingListener {
		t.Errorf("our own Report has stopped the timer: %+v", a)
	}
	n.l.SetSource(epoch, own.WithZone("eth1"))
	n.drain()
	if len(n.packets) != 1 {
		t.Errorf("another zone announces the addresses anew: %q", n.transcript)
	}
}

func TestK66_K67_Counters(t *testing.T) {
	n := newNode(t, listener.Config{Version: mld.Version1}, &share{1, 1})
	for _, line := range [][]string{
		{"source", "fe80::a"},
		{"join", "ff05::8"}, // a Report
		{"join", "ff05::9"}, // a Report
		{"join", "ff02::1"},
		{"report", "ff05::7"},
		{"report", "ff05::9"}, // suppressed
		{"report", "ff05::9"},
		{"report", "ff05::9", "from", "fe80::a"},
		{"query", "::", "0s"},      // two Reports
		{"query", "ff05::7", "0s"}, // heard, though for others
		{"done", "ff05::8"},
		{"reportv2"},
		{"leave", "ff05::8"}, // a Done
		{"leave", "ff02::1"},
	} {
		n.do(0, line[0], line[1:])
	}
	want := listener.Counters{QueriesHeard: 2, ReportsHeard: 3, Suppressed: 1, ReportsSent: 4, DonesSent: 1}
	if diff := cmp.Diff(want, n.l.Counters()); diff != "" {
		t.Errorf("counters (-want +got):\n%s", diff)
	}
}
