package listener_test

import (
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"pgregory.net/rapid"

	"github.com/seed-aaab8e3a/cni-mld/mld"
	"github.com/seed-aaab8e3a/cni-mld/mld/listener"
)

// FuzzReceive has a listener in mid-life hear a packet that anybody may have sent, as it is and with its checksum
// set right. Whatever it is, only a Query or a Report about what is listened to may change anything, and only what
// it may change.
func FuzzReceive(f *testing.F) {
	group := netip.MustParseAddr("ff05::8")
	seed := func(p []byte) {
		f.Add(p, uint8(0), false)
		f.Add(p, uint8(0xff), true)
	}
	for _, addr := range []netip.Addr{netip.IPv6Unspecified(), group, netip.MustParseAddr("ff05::77"), mld.AllNodes, own} {
		for _, code := range []uint16{0, 1, 199, 10000, 0xffff} {
			seed(mld.AppendQuery(nil, other, mld.AllNodes, mld.Query{
				Version: mld.Version1, MulticastAddress: addr, MaxResponseCode: code,
			}))
		}
		seed(mld.AppendQuery(nil, other, addr, mld.Query{Version: mld.Version2, MulticastAddress: addr, MaxResponseCode: 0x8fff,
			QRV: 7, QQIC: 255, SuppressRouterProcessing: true, Sources: []netip.Addr{own, other}}))
		seed(mld.AppendReport(nil, other, addr))
		seed(mld.AppendReport(nil, own, addr))
		seed(mld.AppendReport(nil, netip.IPv6Unspecified(), addr))
		seed(mld.AppendDone(nil, other, addr))
		seed(mld.AppendReportV2(nil, other, []mld.Record{{Type: mld.ChangeToInclude, MulticastAddress: addr}}))
	}
	f.Fuzz(func(t *testing.T, packet []byte, accept uint8, kame bool) {
		if len(packet) >= 48+8 && len(packet)%2 == 0 {
			hear(t, resealed(packet, func([]byte) {}), mld.Accept(accept), kame)
		}
		hear(t, packet, mld.Accept(accept), kame)
	})
}

func hear(t *testing.T, packet []byte, accept mld.Accept, kame bool) {
	p, err := mld.Parse(packet, accept)
	if err != nil {
		return // that a refused packet changes nothing is shown elsewhere
	}
	cfg := listener.Config{Version: mld.Version1}
	if kame {
		cfg.Profile = listener.KAME
	}
	n := newNode(t, cfg, &share{1, 2})
	for _, line := range [][]string{
		{"source", own.String()},
		{"join", "ff05::9"}, {"report", "ff05::9"}, // Idle, another node reported last
		{"join", "ff05::8"},  // Delaying
		{"join", "ff02::1"},  // silent
		{"join", "ff05::77"}, // left again
		{"leave", "ff05::77"},
	} {
		n.do(0, line[0], line[1:])
	}
	before, sent := snapshot(n.l), len(n.packets)
	n.now = time.Second
	n.l.Receive(epoch.Add(n.now), p.Src, p.Message)
	n.drain()

	about, m := p.Message.MulticastAddress, p.Message
	mrd := time.Duration(m.MaxResponseCode) * time.Millisecond
	now := epoch.Add(n.now)
	for name, was := range before {
		is, ok := n.l.Address(was.Addr)
		if !ok {
			t.Fatalf("%+v: %v is listened to no longer", m, name)
		}
		want := was
		switch {
		case m.Type == mld.TypeQuery && was.Reportable && (about.IsUnspecified() || about == was.Addr):
			if mrd == 0 {
				want.State, want.Due, want.LastReporter, want.Reported = listener.IdleListener, time.Time{}, true, true
			} else {
				want.State, want.Due = listener.DelayingListener, is.Due
				if latest := now.Add(max(mrd, 200*time.Millisecond)); !is.Due.After(now) || is.Due.After(latest) {
					t.Errorf("%+v: the Report for %v is due at %v, want it within %v", m, name, is.Due.Sub(epoch), mrd)
				}
				if was.State == listener.DelayingListener && is.Due.After(was.Due) {
					t.Errorf("%+v: the Report for %v is put off from %v to %v", m, name, was.Due, is.Due)
				}
			}
		case m.Type == mld.TypeReport && p.Src != own && about == was.Addr && (was.State == listener.DelayingListener || kame):
			want.State, want.Due, want.LastReporter = listener.IdleListener, time.Time{}, false
		}
		if diff := cmp.Diff(want, is, equalAddr); diff != "" {
			t.Errorf("%+v: %v (-want +got):\n%s", m, name, diff)
		}
	}
	if after := snapshot(n.l); len(after) != len(before) {
		t.Errorf("%+v: %d addresses, want %d", m, len(after), len(before))
	}
	for _, sent := range n.packets[sent:] {
		if q, err := mld.Parse(sent, 0); err != nil || q.Message.Type != mld.TypeReport || m.Type != mld.TypeQuery || mrd != 0 {
			t.Errorf("%+v is answered at once with %+v", m, q.Message)
		}
	}
	n.runUntil(forever)
}

// FuzzReceiveV2 has listeners of every configuration, in mid-life, hear a packet that anybody may have sent, as it is
// and with its checksum set right. Whatever it is, nobody stops listening, nothing impossible comes about, nothing is
// sent at once but what MLDv1 asks for, and all that is listened to is still reported when asked for afterwards.
func FuzzReceiveV2(f *testing.F) {
	group := netip.MustParseAddr("ff05::8")
	seed := func(p []byte) {
		for i := range uint8(12) {
			f.Add(p, i)
		}
	}
	for _, addr := range []netip.Addr{netip.IPv6Unspecified(), group, netip.MustParseAddr("ff3e::8000:1"), netip.MustParseAddr("ff05::77"), mld.AllNodes} {
		seed(mld.AppendQuery(nil, other, mld.AllNodes, mld.Query{Version: mld.Version1, MulticastAddress: addr, MaxResponseCode: 1000}))
		for _, code := range []uint16{0, 1, 10000, 0x8fff, 0xffff} {
			q := mld.Query{Version: mld.Version2, MulticastAddress: addr, MaxResponseCode: code, QRV: uint8(code % 8), QQIC: uint8(code)}
			seed(mld.AppendQuery(nil, other, addr, q))
			q.Sources = []netip.Addr{source(1), source(2), source(1), own}
			seed(mld.AppendQuery(nil, other, addr, q))
		}
		seed(mld.AppendReport(nil, other, addr))
		seed(mld.AppendReportV2(nil, other, []mld.Record{{Type: mld.ChangeToInclude, MulticastAddress: addr, Sources: []netip.Addr{own}}}))
	}
	f.Fuzz(func(t *testing.T, packet []byte, config uint8) {
		if len(packet) >= 48+8 && len(packet)%2 == 0 {
			hearV2(t, resealed(packet, func([]byte) {}), config)
		}
		hearV2(t, packet, config)
	})
}

func hearV2(t *testing.T, packet []byte, config uint8) {
	p, err := mld.Parse(packet, 0)
	if err != nil {
		return
	}
	cfg := listener.Config{Version: []mld.Version{0, mld.Version2, 0, mld.Version1}[config%4], Robustness: 1 + int(config/4%7)}
	n := newNode(t, cfg, &share{1, 2})
	steps := []string{
		"source fe80::a",
		"listen ff05::8 EX(s1)", "listen ff05::9 IN(s1,s2)", "listen ff3e::8000:1 IN(s1) by 2", "listen ff02::1 EX()", // told
		"query2 ff05::9 1m sources s1", // pending beside a general answer
		"query2 :: 2m",
		"listen ff05::8 EX(s2)", "listen ff05::a EX()", // being told
		"listen ff05::77 EX()", "listen ff05::77 IN()", // left, which is being told
		"listen ff05::78 IN(s3)", "listen ff05::78 IN()",
	}
	if config%4 == 2 { // version 1 mode, with a version 1 answer pending
		steps = append(steps, "query ff05::8 1m", "report ff05::9")
	}
	for i, step := range steps {
		if i == 5 {
			n.runUntil(time.Minute)
		}
		f := strings.Fields(step)
		n.do(n.now, f[0], f[1:])
	}
	before, version := snapshot(n.l), n.l.Version()
	n.now += 100 * time.Millisecond
	sent := len(n.packets)
	n.l.Receive(epoch.Add(n.now), p.Src, p.Message)
	n.drain()

	same := func() {
		t.Helper()
		after := snapshot(n.l)
		for name, was := range before {
			is, ok := after[name]
			if !ok || is.Mode != was.Mode || is.Subscribers != was.Subscribers || !slices.Equal(is.Sources, was.Sources) {
				t.Fatalf("%+v: %v was %+v and is %+v", p.Message, name, was, is)
			}
		}
		if len(after) != len(before) {
			t.Fatalf("%+v: %d addresses, want %d", p.Message, len(after), len(before))
		}
	}
	same()
	for _, b := range n.packets[sent:] {
		got, err := mld.Parse(b, 0)
		changed := n.l.Version() != version && p.Message.Version == mld.Version1 && p.Message.Type == mld.TypeQuery
		atOnce := n.l.Version() == mld.Version1 && p.Message.MaxResponseCode == 0 && p.Message.Type == mld.TypeQuery
		if err != nil || !(got.Message.Type == mld.TypeDone && changed) && !(got.Message.Type == mld.TypeReport && atOnce) {
			t.Fatalf("%+v is answered at once with %+v", p.Message, got.Message)
		}
	}
	n.runUntil(forever)
	same()
	if slots := n.l.Slots(); slots != len(before) {
		t.Fatalf("%+v: %d addresses are kept, %d listened to", p.Message, slots, len(before))
	}

	n.transcript = nil
	n.do(n.now, "query2", []string{"::", "1s"})
	n.runUntil(forever)
	answers := strings.Join(n.transcript, "\n")
	for name, a := range before {
		if a.Reportable && strings.Count(answers, name+";")+strings.Count(answers, name+")")+strings.Count(answers, name+" answer") != 1 {
			t.Fatalf("%+v: %v is not answered once: %s", p.Message, name, answers)
		}
	}
}

// What is no Query and no Report about an address listened to leaves no trace in any state.
func TestV1_12_V1_19_V1_21_K49_K51_K84_IrrelevantMessages(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		l, err := listener.New(listener.Config{Version: mld.Version1, Profile: rapid.SampledFrom([]listener.Profile{0, 1}).Draw(t, "profile")}, &share{1, 2})
		if err != nil {
			t.Fatal(err)
		}
		l.SetSource(epoch, rapid.SampledFrom(modelSources).Draw(t, "source"))
		for i := range 3 {
			if err := l.Listen(epoch, 1, address(i), listener.AnySource); err != nil {
				t.Fatal(err)
			}
		}
		l.Receive(epoch, other, mld.Message{Type: mld.TypeReport, MulticastAddress: address(0)})
		for range l.Outgoing() {
		}
		before := snapshot(l)

		m := mld.Message{
			Type:            mld.Type(rapid.Uint8().Draw(t, "type")),
			Version:         mld.Version(rapid.IntRange(0, 3).Draw(t, "version")),
			MaxResponseCode: rapid.Uint16().Draw(t, "code"),
		}
		strangers := []netip.Addr{
			{}, netip.MustParseAddr("::1"), mld.AllNodes, address(3), other, netip.MustParseAddr("224.0.0.1"),
			netip.MustParseAddr("::ffff:224.0.0.1"),
		}
		if m.Type != mld.TypeQuery && m.Type != mld.TypeReport {
			strangers = append(strangers, address(0), address(1), netip.IPv6Unspecified())
		}
		m.MulticastAddress = rapid.SampledFrom(strangers).Draw(t, "addr")
		l.Receive(epoch.Add(time.Second), rapid.SampledFrom(modelSenders).Draw(t, "src"), m)
		if diff := cmp.Diff(before, snapshot(l), equalAddr); diff != "" {
			t.Errorf("%+v (-before +after):\n%s", m, diff)
		}
		for p := range l.Outgoing() {
			t.Errorf("%+v is answered with %+v", m, p)
		}
		if err := l.Check(); err != nil {
			t.Error(err)
		}
	})
}
