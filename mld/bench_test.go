package mld_test

import (
	"encoding/binary"
	"fmt"
	"net/netip"
	"slices"
	"testing"

	"github.com/gopacket/gopacket"
	"github.com/gopacket/gopacket/layers"

	"github.com/seed-aaab8e3a/cni-mld/mld"
)

// workload is what the benchmarks and the allocation tests read and write.
var workload = []struct {
	name   string
	packet []byte
}{
	{"QueryV1", mld.AppendQuery(nil, querier, mld.AllNodes, mld.Query{Version: 1, MaxResponseCode: 10000})},
	{"QueryV2", mld.AppendQuery(nil, querier, mld.AllNodes, mld.Query{MaxResponseCode: 10000, QRV: 2, QQIC: 125})},
	{"QueryV2/64sources", mld.AppendQuery(nil, querier, group, mld.Query{
		MulticastAddress: group, Sources: manyAddrs(64)})},
	{"Report", mld.AppendReport(nil, host, group)},
	{"ReportV2/1record", mld.AppendReportV2(nil, host, manyRecords(1))},
	{"ReportV2/70records", mld.AppendReportV2(nil, host, manyRecords(70))},
}

func manyAddrs(n int) []netip.Addr {
	var list []netip.Addr
	for i := range n {
		list = append(list, netip.AddrFrom16([16]byte{0x20, 0x01, 0x0d, 0xb8, 14: byte(i >> 8), 15: byte(i)}))
	}
	return list
}

func manyRecords(n int) []mld.Record {
	var list []mld.Record
	for i := range n {
		a := netip.AddrFrom16([16]byte{0xff, 0x05, 14: byte(i >> 8), 15: byte(i)})
		list = append(list, mld.Record{Type: mld.ModeIsExclude, MulticastAddress: a})
	}
	return list
}

// read takes every address out of a packet, as a reader that looks for group does.
func read(b []byte) (found int, err error) {
	p, err := mld.Parse(b, 0)
	if err != nil {
		return 0, err
	}
	for s := range p.Message.Sources.All() {
		if s == group {
			found++
		}
	}
	for r := range p.Message.Records.All() {
		if r.Type == mld.ModeIsExclude && r.MulticastAddress == group {
			found++
		}
		for s := range r.Sources.All() {
			if s == group {
				found++
			}
		}
	}
	return found, nil
}

func TestNoAllocation(t *testing.T) {
	b := make([]byte, 0, 2000)
	records := append(manyRecords(70), mld.Record{mld.ModeIsInclude, group, manyAddrs(3)})
	query := mld.Query{MulticastAddress: group, Sources: manyAddrs(64)}
	work := map[string]func(){
		"AppendReport":   func() { b = mld.AppendReport(b[:0], host, group) },
		"AppendDone":     func() { b = mld.AppendDone(b[:0], host, group) },
		"AppendReportV2": func() { b = mld.AppendReportV2(b[:0], host, records) },
		"AppendQuery":    func() { b = mld.AppendQuery(b[:0], querier, group, query) },
	}
	for _, w := range workload {
		work["Parse "+w.name] = func() {
			if _, err := read(w.packet); err != nil {
				t.Error(err)
			}
		}
	}
	var counters [mld.NumReasons]int
	for _, r := range rejections {
		work["Parse "+r.name] = func() {
			_, err := mld.Parse(r.packet, 0)
			counters[mld.ReasonOf(err)]++
		}
	}
	for name, f := range work {
		if n := testing.AllocsPerRun(100, f); n != 0 {
			t.Errorf("%s: %v allocations", name, n)
		}
	}
}

func BenchmarkParse(b *testing.B) {
	for _, w := range workload {
		b.Run(w.name, func(b *testing.B) {
			b.SetBytes(int64(len(w.packet)))
			for b.Loop() {
				if _, err := mld.Parse(w.packet, 0); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}

// BenchmarkRead is Parse and a walk over all records and sources.
func BenchmarkRead(b *testing.B) {
	for _, w := range workload {
		b.Run(w.name, func(b *testing.B) {
			for b.Loop() {
				if _, err := read(w.packet); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}

func BenchmarkAppend(b *testing.B) {
	buf := make([]byte, 0, 2000)
	b.Run("Report", func(b *testing.B) {
		for b.Loop() {
			buf = mld.AppendReport(buf[:0], host, group)
		}
	})
	for _, n := range []int{1, 70} {
		records := manyRecords(n)
		b.Run(fmt.Sprintf("ReportV2/%drecords", n), func(b *testing.B) {
			for b.Loop() {
				buf = mld.AppendReportV2(buf[:0], host, records)
			}
		})
	}
	b.Run("QueryV2/64sources", func(b *testing.B) {
		q := mld.Query{MulticastAddress: group, Sources: manyAddrs(64)}
		for b.Loop() {
			buf = mld.AppendQuery(buf[:0], querier, group, q)
		}
	})
}

// BenchmarkFloor is the least work that has the effect of BenchmarkRead and BenchmarkAppend, by a program that
// knows the only packet it will ever see: the measure for both, in the same run.
func BenchmarkFloor(b *testing.B) {
	var (
		be   = binary.BigEndian
		le   = binary.LittleEndian
		want = group.As16()
		hi   = le.Uint64(want[:])
		lo   = le.Uint64(want[8:])
	)
	head := func(p []byte) bool {
		return p[0] == 0x60 && p[6] == 0 && p[7] == 1 && p[8] == 0xfe && p[9] == 0x80 && be.Uint32(p[40:]) == 0x3a000502
	}
	for _, w := range workload[1:] {
		b.Run("Read/"+w.name, func(b *testing.B) {
			for b.Loop() {
				p := w.packet
				n := int(be.Uint16(p[4:]))
				if !head(p) || mld.Checksum((*[32]byte)(p[8:]), p[48:40+n]) != 0xffff {
					b.Fatal("not the packet")
				}
				found := 0
				at, step := 56, 16
				if p[48] == 143 {
					at, step = 60, 20
				}
				for ; at+16 <= len(p); at += step {
					if le.Uint64(p[at:]) == hi && le.Uint64(p[at+8:]) == lo {
						found++
					}
				}
			}
		})
	}
	full := workload[len(workload)-1].packet
	template := slices.Clone(full[:56])
	records := make([][16]byte, 70)
	for i := range records {
		records[i] = want
	}
	buf := make([]byte, 2000)
	b.Run("Append/ReportV2/70records", func(b *testing.B) {
		for b.Loop() {
			at := copy(buf, template)
			for i := range records {
				le.PutUint32(buf[at:], uint32(mld.ModeIsExclude))
				copy(buf[at+4:at+20], records[i][:])
				at += 20
			}
			le.PutUint16(buf[50:], 0)
			le.PutUint16(buf[50:], ^mld.Checksum((*[32]byte)(buf[8:]), buf[48:at]))
		}
	})
}

// BenchmarkGopacket is the yardstick for BenchmarkRead: gopacket's parser with its layers reused. It verifies no
// checksum.
func BenchmarkGopacket(b *testing.B) {
	var (
		ip      layers.IPv6
		options layers.IPv6ExtensionSkipper
		icmp    layers.ICMPv6
		query1  layers.MLDv1MulticastListenerQueryMessage
		report1 layers.MLDv1MulticastListenerReportMessage
		query2  layers.MLDv2MulticastListenerQueryMessage
		report2 layers.MLDv2MulticastListenerReportMessage
		decoded []gopacket.LayerType
	)
	parser := gopacket.NewDecodingLayerParser(layers.LayerTypeIPv6,
		&ip, &options, &icmp, &query1, &report1, &query2, &report2)
	for _, w := range workload {
		b.Run(w.name, func(b *testing.B) {
			for b.Loop() {
				if err := parser.DecodeLayers(w.packet, &decoded); err != nil {
					b.Fatal(err)
				}
			}
			if last := decoded[len(decoded)-1]; !slices.Contains([]gopacket.LayerType{
				layers.LayerTypeMLDv1MulticastListenerQuery, layers.LayerTypeMLDv1MulticastListenerReport,
				layers.LayerTypeMLDv2MulticastListenerQuery, layers.LayerTypeMLDv2MulticastListenerReport,
			}, last) {
				b.Fatalf("ended in %v", last)
			}
		})
	}
}
