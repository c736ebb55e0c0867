package listener_test

import (
	"net/netip"
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
	cfg := listener.Config{}
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

// What is no Query and no Report about an address listened to leaves no trace in any state.
func TestV1_12_V1_19_V1_21_K49_K51_K84_IrrelevantMessages(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		l, err := listener.New(listener.Config{Profile: rapid.SampledFrom([]listener.Profile{0, 1}).Draw(t, "profile")}, &share{1, 2})
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
