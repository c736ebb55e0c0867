package listener_test

import (
	"net/netip"
	"slices"
	"testing"
	"time"

	"pgregory.net/rapid"

	"github.com/seed-aaab8e3a/cni-mld/mld"
	"github.com/seed-aaab8e3a/cni-mld/mld/listener"
)

// A part is a record of one Report, which holds nothing else of its kind.
type part struct {
	kind    mld.RecordType
	sources []netip.Addr
}

// parts drains the Reports about ff05::8, which listener l has been made to send.
func parts(t *rapid.T, l *listener.Listener, mtu int) map[mld.RecordType][]part {
	all := map[mld.RecordType][]part{}
	for p := range l.Outgoing() {
		got, err := mld.Parse(p.Bytes, 0)
		if err != nil || len(p.Bytes) > mtu {
			t.Fatalf("a packet of %d octets, MTU %d: %v", len(p.Bytes), mtu, err)
		}
		here := map[mld.RecordType]bool{}
		for r := range got.Message.Records.All() {
			if here[r.Type] {
				t.Fatalf("two records %v in one Report", r.Type) // V2-47: each in a Report of its own
			}
			here[r.Type] = true
			all[r.Type] = append(all[r.Type], part{r.Type, slices.Collect(r.Sources.All())})
		}
	}
	return all
}

// checkWhole wants the parts of a record to be its set, each of them as long as can be but for the last.
func checkWhole(t *rapid.T, got []part, want []netip.Addr, room int) {
	if most := (len(want) + room - 1) / room; len(got) > max(most, 1) || len(want) > 0 && len(got) != most {
		t.Fatalf("%d sources in %d parts, %d fit into one", len(want), len(got), room)
	}
	var union []netip.Addr
	for i, p := range got {
		if i < len(got)-1 && len(p.sources) != room {
			t.Fatalf("part %d of %d has %d sources, %d fit", i, len(got), len(p.sources), room)
		}
		union = append(union, p.sources...)
	}
	slices.SortFunc(union, netip.Addr.Compare)
	want = slices.SortedFunc(slices.Values(want), netip.Addr.Compare)
	if !slices.Equal(union, want) { // which says that they are disjoint, too
		t.Fatalf("the parts are %d sources, want %d", len(union), len(want))
	}
}

func TestV2_46_V2_47_V2_48_Splitting(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		mtu := rapid.IntRange(1280, 9000).Draw(t, "mtu")
		room := (mtu - mld.ReportV2Len - mld.RecordLen) / mld.SourceLen
		n := rapid.OneOf(
			rapid.IntRange(0, 5000), rapid.Just(room), rapid.Just(room-1), rapid.Just(room+1), rapid.Just(2*room), rapid.Just(2*room+1),
		).Draw(t, "sources")
		var list []netip.Addr
		for i := range n {
			list = append(list, source(i+1))
		}
		l, err := listener.New(listener.Config{Robustness: 1}, &share{1, 1})
		if err != nil {
			t.Fatal(err)
		}
		l.SetSource(epoch, own)
		l.SetMTU(mtu)
		group := netip.MustParseAddr("ff05::8")
		now := time.Duration(0)
		listen := func(mode listener.FilterMode, sources []netip.Addr) map[mld.RecordType][]part {
			if err := l.Listen(epoch.Add(now), 1, group, listener.Filter{Mode: mode, Sources: sources}); err != nil {
				t.Fatal(err)
			}
			return parts(t, l, mtu)
		}
		ask := func() map[mld.RecordType][]part {
			l.Receive(epoch.Add(now), other, mld.Message{Type: mld.TypeQuery, Version: mld.Version2, MulticastAddress: group,
				MaxResponseCode: 1, QRV: 1})
			now += time.Second
			l.Advance(epoch.Add(now))
			return parts(t, l, mtu)
		}
		truncated := func(got map[mld.RecordType][]part, kind mld.RecordType, before []netip.Addr) []netip.Addr {
			if len(got) != 1 || len(got[kind]) != 1 || len(got[kind][0].sources) != min(n, room) {
				t.Fatalf("%d sources, %d fit: %v", n, room, got)
			}
			sources := got[kind][0].sources
			if before != nil && !slices.Equal(before, sources) {
				t.Fatalf("of %d sources first some were reported and then others", n)
			}
			for _, s := range sources {
				if !slices.Contains(list, s) {
					t.Fatalf("%v is none of the sources", s)
				}
			}
			return sources
		}

		first := truncated(listen(listener.Exclude, list), mld.ChangeToExclude, nil)
		truncated(ask(), mld.ModeIsExclude, first)
		truncated(ask(), mld.ModeIsExclude, first)
		checkWhole(t, listen(listener.Exclude, nil)[mld.AllowNewSources], list, room)
		checkWhole(t, listen(listener.Exclude, list)[mld.BlockOldSources], list, room)
		if n > 0 {
			checkWhole(t, listen(listener.Include, list)[mld.ChangeToInclude], list, room)
			checkWhole(t, ask()[mld.ModeIsInclude], list, room)

			// ALLOW and BLOCK together, both perhaps too long.
			others := []netip.Addr{source(6001), source(6002)}
			for i := range n {
				others = append(others, source(7001+i))
			}
			got := listen(listener.Include, others)
			checkWhole(t, got[mld.BlockOldSources], list, room)
			union := 0
			for _, p := range got[mld.AllowNewSources] {
				union += len(p.sources)
			}
			if union != len(others) {
				t.Fatalf("ALLOW of %d sources, want %d", union, len(others))
			}
		}
		if err := l.Check(); err != nil {
			t.Fatal(err)
		}
	})
}
