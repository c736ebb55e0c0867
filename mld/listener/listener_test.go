package listener_test

import (
	"math/rand/v2"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/seed-aaab8e3a/cni-mld/mld"
	"github.com/seed-aaab8e3a/cni-mld/mld/listener"
)

func TestNewRefuses(t *testing.T) {
	tests := []struct {
		cfg  listener.Config
		want string // in the error; "" if there is none
	}{
		{listener.Config{Version: mld.Version1}, ""},
		{listener.Config{Version: mld.Version1, Robustness: 1}, ""},
		{listener.Config{Version: mld.Version1, Robustness: 7}, ""},
		{listener.Config{Version: mld.Version1, Robustness: 8}, "robustness 8"},
		{listener.Config{Version: mld.Version1, Robustness: -1}, "robustness -1"},
		{listener.Config{Version: mld.Version1, UnsolicitedReportInterval: 1}, ""},
		{listener.Config{Version: mld.Version1, UnsolicitedReportInterval: time.Hour}, ""},
		{listener.Config{Version: mld.Version1, UnsolicitedReportInterval: time.Hour + 1}, "interval 1h0m0.000000001s"},
		{listener.Config{Version: mld.Version1, UnsolicitedReportInterval: -1}, "interval -1ns"},
		{listener.Config{Version: mld.Version1, Profile: listener.KAME}, ""},
		{listener.Config{Version: mld.Version1, Profile: listener.KAME, Robustness: 2, UnsolicitedReportInterval: time.Second}, ""},
		{listener.Config{Version: mld.Version1, Profile: listener.KAME, Robustness: 3}, "KAME"},
		{listener.Config{Version: mld.Version1, Profile: listener.KAME, AlwaysDone: true}, "KAME"},
		{listener.Config{Version: mld.Version1, Profile: 2}, "Profile(2)"},
	}
	for _, tt := range tests {
		l, err := listener.New(tt.cfg, rand.New(rand.NewPCG(1, 2)))
		switch {
		case (err == nil) != (tt.want == "") || (err == nil) != (l != nil):
			t.Errorf("%+v: listener %v, error %v", tt.cfg, l != nil, err)
		case err != nil && (!strings.HasPrefix(err.Error(), "listener: ") || !strings.Contains(err.Error(), tt.want)):
			t.Errorf("%+v: error %q does not tell of %q", tt.cfg, err, tt.want)
		}
	}
}

func TestK71_ListenRefuses(t *testing.T) {
	for _, s := range []string{
		"", "::", "::1", "fe80::1", "2001:db8::1", "224.0.0.1", "::ffff:224.0.0.1", "ff02::8%eth0", "ff02::1%1",
	} {
		var addr netip.Addr
		if s != "" {
			addr = netip.MustParseAddr(s)
		}
		n := newNode(t, listener.Config{Version: mld.Version1}, &share{1, 1})
		n.l.SetSource(epoch, own)
		for _, filter := range []listener.Filter{listener.AnySource, {}} {
			if err := n.l.Listen(epoch, 1, addr, filter); err == nil || !strings.HasPrefix(err.Error(), "listener: "+addr.String()) {
				t.Errorf("%v: error is %v", addr, err)
			}
		}
		n.l.Forget(epoch.Add(n.now), 1, addr)
		n.drain()
		if _, ok := n.l.NextDeadline(); ok || len(n.packets) > 0 || len(snapshot(n.l)) > 0 {
			t.Errorf("%v: a refused address has left %v and %d packets", addr, snapshot(n.l), len(n.packets))
		}
	}
}

// To MLDv1 a filter either wants the address or does not.
func TestListenFilters(t *testing.T) {
	source := netip.MustParseAddr("2001:db8::1")
	n := newNode(t, listener.Config{Version: mld.Version1}, &share{1, 1})
	n.l.SetSource(epoch, own)
	for i, f := range []listener.Filter{
		{Mode: listener.Include}, // nothing yet
		{Mode: listener.Include, Sources: []netip.Addr{source}},
		{Mode: listener.Exclude},
		{Mode: listener.Exclude, Sources: []netip.Addr{source}},
		{Mode: listener.Include, Sources: []netip.Addr{source}},
		{}, // nothing any more
	} {
		if err := n.l.Listen(epoch.Add(time.Duration(i)*time.Second), 1, netip.MustParseAddr("ff05::8"), f); err != nil {
			t.Fatal(err)
		}
		n.now = time.Duration(i) * time.Second
		n.drain()
	}
	want := []string{"1s > Report ff05::8 joined", "5s > Done ff05::8"}
	if diff := cmp.Diff(want, n.transcript); diff != "" {
		t.Errorf("packets (-want +got):\n%s", diff)
	}
}

func TestSetSourceRefuses(t *testing.T) {
	for _, s := range []string{"2001:db8::1", "::1", "ff02::1", "169.254.0.1", "::ffff:169.254.0.1", "0.0.0.0"} {
		n := newNode(t, listener.Config{Version: mld.Version1}, &share{1, 1})
		func() {
			defer func() {
				if v := recover(); v == nil || !strings.Contains(v.(string), s) {
					t.Errorf("SetSource(%s) panics with %v", s, v)
				}
			}()
			n.l.SetSource(epoch, netip.MustParseAddr(s))
		}()
		if n.l.Source().IsValid() {
			t.Errorf("SetSource(%s) was refused, and the source is %v", s, n.l.Source())
		}
	}
}

// Packets are made when they are handed out: the caller may take a few and do something else in between.
func TestOutgoingInParts(t *testing.T) {
	l, err := listener.New(listener.Config{Version: mld.Version1, Robustness: 1}, &share{1, 1})
	if err != nil {
		t.Fatal(err)
	}
	l.SetSource(epoch, own)
	var want, got []netip.Addr
	take := func(n int) {
		for p := range l.Outgoing() {
			got = append(got, p.Addr)
			if n--; n == 0 {
				return
			}
		}
	}
	rnd := rand.New(rand.NewPCG(3, 4))
	for i := range 20_000 {
		a := address(i)
		if err := l.Listen(epoch, 1, a, listener.AnySource); err != nil {
			t.Fatal(err)
		}
		want = append(want, a)
		if n := rnd.IntN(4); i%7 == 0 && n > 0 {
			take(n * 3)
		}
		if i%5000 == 0 {
			take(-1)
		}
	}
	take(-1)
	if !slices.Equal(want, got) {
		t.Errorf("%d packets were handed out, want %d, each once and in order", len(got), len(want))
	}
	if l.Counters().ReportsSent != uint64(len(want)) {
		t.Errorf("%d Reports are counted, want %d", l.Counters().ReportsSent, len(want))
	}

	// What can no longer be sent is dropped.
	if err := l.Listen(epoch, 1, address(-1), listener.AnySource); err != nil {
		t.Fatal(err)
	}
	l.SetSource(epoch, netip.Addr{})
	for p := range l.Outgoing() {
		t.Errorf("without a source %v is handed out", p)
	}
}

// A packet that is handed out late is still the one that was due; only a leave and a new join in between make
// another address of the slot, which must not count as reported.
func TestReported(t *testing.T) {
	n := newNode(t, listener.Config{Version: mld.Version1}, &share{1, 1})
	group, next := netip.MustParseAddr("ff05::8"), netip.MustParseAddr("ff05::9")
	reported := func(want bool, addr netip.Addr) {
		t.Helper()
		if a, ok := n.l.Address(addr); !ok || a.Reported != want {
			t.Errorf("%v: reported is %v, want %v", addr, a.Reported, want)
		}
	}
	n.l.SetSource(epoch, netip.IPv6Unspecified())
	n.do(0, "join", []string{group.String()})
	reported(false, group) // a router has not heard it
	n.l.SetSource(epoch, own)
	reported(false, group) // not handed out yet
	n.drain()
	reported(true, group)
	n.do(0, "leave", []string{group.String()})
	n.do(0, "join", []string{group.String()})
	reported(true, group)

	n.do(0, "leave", []string{group.String()})
	if err := n.l.Listen(epoch, 1, group, listener.AnySource); err != nil {
		t.Fatal(err)
	}
	n.l.Forget(epoch.Add(n.now), 1, group)
	n.l.SetSource(epoch, netip.Addr{})
	if err := n.l.Listen(epoch, 1, next, listener.AnySource); err != nil { // takes the slot over
		t.Fatal(err)
	}
	n.l.SetSource(epoch, own)
	first := true
	for p := range n.l.Outgoing() {
		if first && p.Addr == group {
			reported(false, next)
		}
		first = false
	}
	reported(true, next)
}

// The clock may begin anywhere, even at the zero time.
func TestAnyClock(t *testing.T) {
	for _, start := range []time.Time{{}, epoch, time.Unix(0, 0), time.Now()} {
		l, err := listener.New(listener.Config{Version: mld.Version1}, &share{1, 1})
		if err != nil {
			t.Fatal(err)
		}
		l.SetSource(start, own)
		if err := l.Listen(start.Add(time.Second), 1, address(0), listener.AnySource); err != nil {
			t.Fatal(err)
		}
		l.Receive(start.Add(2*time.Second), other, generalQuery(5000))
		deadline, ok := l.NextDeadline()
		if want := start.Add(6995 * time.Millisecond); !ok || !deadline.Equal(want) {
			t.Errorf("counted from %v, the deadline is %v, want %v", start, deadline, want)
		}
	}
}

// Coming early changes nothing, coming late only the time.
func TestV1_16_SoftDeadlines(t *testing.T) {
	n := newNode(t, listener.Config{Version: mld.Version1, Robustness: 3}, &share{1, 1})
	n.do(0, "source", []string{"fe80::a"})
	n.do(0, "join", []string{"ff05::8"})
	for d := time.Duration(0); d < 10*time.Second; d += time.Millisecond {
		n.l.Advance(epoch.Add(d))
		n.drain()
	}
	if len(n.packets) != 1 {
		t.Fatalf("before the deadline there are %d packets: %q", len(n.packets), n.transcript)
	}
	n.now = 14 * time.Second
	n.l.Advance(epoch.Add(n.now))
	n.drain()
	n.runUntil(forever)
	want := []string{"0s > Report ff05::8 joined", "14s > Report ff05::8 repeat", "24s > Report ff05::8 repeat"}
	if diff := cmp.Diff(want, n.transcript); diff != "" {
		t.Errorf("packets (-want +got):\n%s", diff)
	}
}

func TestStrings(t *testing.T) {
	for got, want := range map[string]string{
		listener.RFC.String():              "rfc",
		listener.KAME.String():             "kame",
		listener.Profile(9).String():       "Profile(9)",
		listener.IdleListener.String():     "Idle Listener",
		listener.DelayingListener.String(): "Delaying Listener",
		listener.CauseJoined.String():      "joined",
		listener.CauseRepeat.String():      "repeat",
		listener.CauseAnswer.String():      "answer",
		listener.CauseAnnounced.String():   "announced",
		listener.CauseLeft.String():        "left",
		listener.Cause(9).String():         "Cause(9)",
	} {
		if got != want {
			t.Errorf("%q, want %q", got, want)
		}
	}
}

// address makes the i-th of many reportable addresses.
func address(i int) netip.Addr {
	return netip.AddrFrom16([16]byte{0: 0xff, 1: 0x05, 12: byte(i >> 24), 13: byte(i >> 16), 14: byte(i >> 8), 15: byte(i)})
}
