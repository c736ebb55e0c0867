package mld_test

import (
	"bytes"
	"net/netip"
	"testing"

	"pgregory.net/rapid"

	"github.com/seed-aaab8e3a/cni-mld/mld"
)

// write builds a Report of the records with a writer.
func write(w *mld.ReportWriter, mtu int, src netip.Addr, records []mld.Record) []byte {
	w.Reset(mtu)
	for _, r := range records {
		addr := r.MulticastAddress.As16()
		var sources [][16]byte
		for _, s := range r.Sources {
			sources = append(sources, s.As16())
		}
		w.Add(r.Type, &addr, sources)
	}
	return w.Packet(src)
}

// What a writer builds is what AppendReportV2 gives for the same records, whatever it has built before.
func TestV2_01_V2_02_V2_03_V2_04_ReportWriter(t *testing.T) {
	var w mld.ReportWriter
	rapid.Check(t, func(t *rapid.T) {
		var records []mld.Record
		for range rapid.IntRange(0, 30).Draw(t, "records") {
			r := mld.Record{Type: mld.RecordType(rapid.Uint8().Draw(t, "type")), MulticastAddress: group}
			for range rapid.SampledFrom([]int{0, 0, 0, 1, 2, 90}).Draw(t, "sources") {
				r.Sources = append(r.Sources, netip.AddrFrom16([16]byte(rapid.SliceOfN(rapid.Byte(), 16, 16).Draw(t, "source"))))
			}
			records = append(records, r)
		}
		src := rapid.SampledFrom([]netip.Addr{host, unspecified, {}, host.WithZone("eth0")}).Draw(t, "src")
		want := mld.AppendReportV2(nil, src, records)
		if got := write(&w, rapid.IntRange(0, 1<<17).Draw(t, "mtu"), src, records); !bytes.Equal(want, got) {
			t.Fatalf("built\n%x, want\n%x", got, want)
		}
		if w.Len() != len(records) {
			t.Fatalf("%d records, want %d", w.Len(), len(records))
		}
		p, err := mld.Parse(want, mld.AcceptUnspecified)
		if err != nil || p.Message.Records.Len() != len(records) {
			t.Fatalf("%+v, %v", p, err)
		}
	})
}

// Room is exact: that many sources fill the packet so far that one more would not fit, and after -1 nothing fits.
func TestV2_46_ReportWriterRoom(t *testing.T) {
	var w mld.ReportWriter
	addr := group.As16()
	for _, tt := range []struct{ mtu, octets, sources, records int }{
		{1280, 1280, 75, 61}, {1500, 1500, 89, 72}, {0, 1280, 75, 61}, {-1, 1280, 75, 61}, {1279, 1280, 75, 61}, {1281, 1281, 75, 61},
		{1291, 1291, 75, 61}, {1292, 1292, 76, 61}, {1295, 1295, 76, 61}, {1296, 1296, 76, 62}, {9000, 9000, 557, 447},
		{65535, 65535, 4091, 3273}, {65575, 65575, 4093, 3275}, {65576, 65575, 4093, 3275}, {1 << 30, 65575, 4093, 3275},
	} {
		w.Reset(tt.mtu)
		if got := w.Room(); got != tt.sources || w.Len() != 0 {
			t.Errorf("MTU %d: room for %d sources, want %d; %d records", tt.mtu, got, tt.sources, w.Len())
		}
		w.Add(mld.AllowNewSources, &addr, make([][16]byte, tt.sources))
		p := w.Packet(host)
		if len(p) > tt.octets || len(p)+mld.SourceLen <= tt.octets {
			t.Errorf("MTU %d: a full record makes a packet of %d octets", tt.mtu, len(p))
		}
		if got := w.Room(); got != -1 {
			t.Errorf("MTU %d: room for %d sources in a full packet, want -1", tt.mtu, got)
		}

		w.Reset(tt.mtu)
		n := 0
		for ; w.Room() >= 0; n++ {
			left := tt.octets - mld.ReportV2Len - n*mld.RecordLen
			if want := (left - mld.RecordLen) / mld.SourceLen; w.Room() != want {
				t.Fatalf("MTU %d: after %d records room for %d sources, want %d", tt.mtu, n, w.Room(), want)
			}
			w.Add(mld.ModeIsExclude, &addr, nil)
		}
		if n != tt.records || w.Len() != n {
			t.Errorf("MTU %d: %d records fit, want %d; %d counted", tt.mtu, n, tt.records, w.Len())
		}
		if p := w.Packet(host); len(p) != mld.ReportV2Len+n*mld.RecordLen {
			t.Errorf("MTU %d: %d records make %d octets", tt.mtu, n, len(p))
		}
	}
}

// A writer that has grown to the MTU allocates no more.
func TestReportWriterAllocatesNothing(t *testing.T) {
	var w mld.ReportWriter
	addr := group.As16()
	sources := make([][16]byte, 3)
	build := func() {
		w.Reset(1500)
		for w.Room() >= len(sources) {
			w.Add(mld.AllowNewSources, &addr, sources)
		}
		w.Packet(host)
	}
	build()
	if n := testing.AllocsPerRun(100, build); n != 0 {
		t.Errorf("%v allocations for a packet, want none", n)
	}
}

func BenchmarkReportWriter(b *testing.B) {
	var w mld.ReportWriter
	addr := group.As16()
	b.ReportAllocs()
	for b.Loop() {
		w.Reset(1500)
		for w.Room() >= 0 {
			w.Add(mld.ModeIsExclude, &addr, nil)
		}
		w.Packet(host)
	}
	b.ReportMetric(float64(b.Elapsed())/float64(b.N)/72, "ns/record")
}
