package mld_test

import (
	"bytes"
	"encoding/binary"
	"net"
	"net/netip"
	"slices"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
	"github.com/gopacket/gopacket"
	"github.com/gopacket/gopacket/layers"

	"github.com/seed-aaab8e3a/cni-mld/mld"
)

// FuzzParse: no octets make Parse panic, write, or give an error that is no Reason; what it accepts can be encoded
// again and then says the same.
func FuzzParse(f *testing.F) {
	for _, p := range goldenPackets(f) {
		f.Add(p, uint8(0))
		f.Add(p, uint8(all))
	}
	for _, r := range rejections {
		f.Add(r.packet, uint8(r.accept))
	}
	f.Fuzz(func(t *testing.T, b []byte, accept uint8) {
		before := slices.Clone(b)
		p, err := mld.Parse(b, mld.Accept(accept))
		if !bytes.Equal(before, b) {
			t.Fatal("Parse writes into the packet")
		}
		if err != nil {
			if r := mld.ReasonOf(err); r == 0 || int(r) >= mld.NumReasons || p.Src.IsValid() {
				t.Fatalf("%v with reason %d, packet %v", err, r, p)
			}
			return
		}
		m := plain(p.Message)
		checkViews(t, p.Message)
		again := m.encode(p.Src, p.Dst)
		q, err := mld.Parse(again, mld.Accept(accept)&mld.AcceptUnspecified)
		if err != nil {
			t.Fatalf("encoded again as % x: %v", again, err)
		}
		if d := cmp.Diff(m, plain(q.Message), equateAddrs, cmpopts.EquateEmpty()); d != "" {
			t.Fatal(d)
		}
		if q.Src != p.Src || q.HopLimit != 1 {
			t.Fatalf("source %v, was %v; Hop Limit %d", q.Src, p.Src, q.HopLimit)
		}
	})
}

// checkViews holds the lengths of the views against what their iterators give.
func checkViews(t *testing.T, m mld.Message) {
	t.Helper()
	if n := len(slices.Collect(m.Records.All())); n != m.Records.Len() {
		t.Fatalf("%d records, Len %d", n, m.Records.Len())
	}
	for i, s := range slices.Collect(m.Sources.All()) {
		if m.Sources.At(i) != s {
			t.Fatalf("source %d is %v and %v", i, s, m.Sources.At(i))
		}
	}
	for r := range m.Records.All() {
		if n := len(slices.Collect(r.Sources.All())); n != r.Sources.Len() {
			t.Fatalf("%d sources, Len %d", n, r.Sources.Len())
		}
	}
}

// FuzzParseSealed gets past the checksum: the fuzzer chooses Hop-by-Hop options and message, and the packet is
// sealed after that. What Parse accepts is what gopacket reads. (The checksum makes the fuzzer's search for a smaller
// input long and vain: -fuzzminimizetime 10x keeps it going.)
func FuzzParseSealed(f *testing.F) {
	for _, p := range goldenPackets(f) {
		f.Add(p[40:48], p[48:], uint8(0))
	}
	for _, r := range rejections {
		if len(r.packet) > 48 {
			f.Add(r.packet[40:48], r.packet[48:], uint8(r.accept))
		}
	}
	f.Fuzz(func(t *testing.T, options, message []byte, accept uint8) {
		if len(options)+len(message) > 65535 {
			return
		}
		b := packet("fe80::1", 0, options, message)
		p, err := mld.Parse(b, mld.Accept(accept))
		if err != nil {
			if r := mld.ReasonOf(err); r == mld.ReasonChecksum && len(options) > 1 && len(options) == 8+8*int(options[1]) {
				t.Fatalf("the checksum of % x is right", b)
			}
			return
		}
		checkViews(t, p.Message)
		m := plain(p.Message)
		q, err := mld.Parse(m.encode(p.Src, p.Dst), 0)
		if err != nil {
			t.Fatal(err)
		}
		if d := cmp.Diff(m, plain(q.Message), equateAddrs, cmpopts.EquateEmpty()); d != "" {
			t.Fatal(d)
		}
		at := 40 + 8 + 8*int(b[41])
		if d := cmp.Diff(byGopacket(t, b[at:], m.Version), m, equateAddrs, cmpopts.EquateEmpty()); d != "" {
			t.Fatalf("(-gopacket +mld)\n%s", d)
		}
	})
}

// byGopacket decodes a message, a Query as the version given.
func byGopacket(t *testing.T, b []byte, version mld.Version) message {
	t.Helper()
	addr := func(ip net.IP) netip.Addr {
		a, _ := netip.AddrFromSlice(ip)
		return a
	}
	list := func(ips []net.IP) (as []netip.Addr) {
		for _, ip := range ips {
			as = append(as, addr(ip))
		}
		return as
	}
	var (
		icmp layers.ICMPv6
		df   = gopacket.NilDecodeFeedback
	)
	if err := icmp.DecodeFromBytes(b, df); err != nil {
		t.Fatalf("gopacket: %v", err)
	}
	m := message{Type: mld.Type(icmp.TypeCode.Type()), Version: version}
	var err error
	switch {
	case m.Type == mld.TypeReportV2:
		var r layers.MLDv2MulticastListenerReportMessage
		err = r.DecodeFromBytes(icmp.Payload, df)
		for _, rec := range r.MulticastAddressRecords {
			m.Records = append(m.Records, mld.Record{
				Type: mld.RecordType(rec.RecordType), MulticastAddress: addr(rec.MulticastAddress),
				Sources: list(rec.SourceAddresses)})
		}
	case version == mld.Version2:
		var q layers.MLDv2MulticastListenerQueryMessage
		err = q.DecodeFromBytes(icmp.Payload, df)
		m.MulticastAddress, m.MaxResponseCode = addr(q.MulticastAddress), q.MaximumResponseCode
		m.S, m.QRV, m.QQIC = q.SuppressRoutersideProcessing, q.QueriersRobustnessVariable, q.QueriersQueryIntervalCode
		m.Sources = list(q.SourceAddresses)
	default:
		var v1 layers.MLDv1Message
		err = v1.DecodeFromBytes(icmp.Payload, df)
		m.MulticastAddress = addr(v1.MulticastAddress)
		if m.Type == mld.TypeQuery {
			m.MaxResponseCode = uint16(v1.MaximumResponseDelay.Milliseconds())
		}
	}
	if err != nil {
		t.Fatalf("gopacket: %v", err)
	}
	return m
}

// linkLocal, multicast and unicast make an address of its kind out of octets of the fuzzer's.
func linkLocal(id uint64) netip.Addr {
	a := [16]byte{0xfe, 0x80}
	binary.BigEndian.PutUint64(a[8:], id)
	return netip.AddrFrom16(a)
}

func multicast(hi, lo uint64) netip.Addr {
	var a [16]byte
	binary.BigEndian.PutUint64(a[:], hi)
	binary.BigEndian.PutUint64(a[8:], lo)
	a[0] = 0xff
	return netip.AddrFrom16(a)
}

func sourceList(b []byte, most int) (list []netip.Addr) {
	for c := range slices.Chunk(b, 16) {
		if len(c) == 16 && len(list) < most {
			list = append(list, netip.AddrFrom16([16]byte(c)))
		}
	}
	return list
}

// roundTrip parses what was encoded and compares it, addresses of the header included.
func roundTrip(t *testing.T, b []byte, src, dst netip.Addr, want message) {
	t.Helper()
	p, err := mld.Parse(b, 0)
	if err != nil {
		t.Fatalf("% x: %v", b, err)
	}
	if p.Src != src || p.Dst != dst || p.HopLimit != 1 {
		t.Fatalf("from %v to %v, Hop Limit %d", p.Src, p.Dst, p.HopLimit)
	}
	if d := cmp.Diff(want, plain(p.Message), equateAddrs, cmpopts.EquateEmpty()); d != "" {
		t.Fatal(d)
	}
	if d := cmp.Diff(byGopacket(t, b[48:], want.Version), want, equateAddrs, cmpopts.EquateEmpty()); d != "" {
		t.Fatalf("(-gopacket +mld)\n%s", d)
	}
	if sum := onesComplementSum(b[8:40], b[48:]); sum != 0xffff {
		t.Fatalf("sum %#04x", sum)
	}
}

func FuzzReport(f *testing.F) {
	f.Add(uint64(1), uint64(0xff05<<48), uint64(0x4321))
	f.Fuzz(func(t *testing.T, id, hi, lo uint64) {
		src, addr := linkLocal(id), multicast(hi, lo)
		m := message{Type: mld.TypeReport, Version: 1, MulticastAddress: addr}
		roundTrip(t, mld.AppendReport(nil, src, addr), src, addr, m)
		m.Type = mld.TypeDone
		roundTrip(t, mld.AppendDone(nil, src, addr), src, mld.AllRouters, m)
	})
}

// FuzzReportV2 takes a record from every few octets: its type, its number of sources, and its address, of which the
// sources are variations.
func FuzzReportV2(f *testing.F) {
	f.Add(uint64(1), []byte{4, 0, 5, 0x43, 0x21, 5, 3, 0x3e, 0x80, 1})
	for _, p := range goldenPackets(f) {
		f.Add(uint64(1), p[48:])
	}
	f.Fuzz(func(t *testing.T, id uint64, b []byte) {
		want := message{Type: mld.TypeReportV2, Version: 2}
		for c := range slices.Chunk(b, 5) {
			if len(c) < 5 || len(want.Records) == 200 {
				break
			}
			addr := multicast(uint64(c[2])<<48, uint64(c[3])<<56|uint64(c[4]))
			r := mld.Record{Type: mld.RecordType(c[0]), MulticastAddress: addr}
			for range c[1] % 8 {
				addr = addr.Prev()
				r.Sources = append(r.Sources, addr)
			}
			want.Records = append(want.Records, r)
		}
		src := linkLocal(id)
		roundTrip(t, mld.AppendReportV2(nil, src, want.Records), src, mld.AllMLDv2Routers, want)
	})
}

func FuzzQuery(f *testing.F) {
	f.Add(uint64(1), uint64(0xff05<<48), uint64(0x4321), uint16(10000), true, uint8(2), uint8(125), []byte(nil))
	f.Add(uint64(1), uint64(0), uint64(0), uint16(0xffff), false, uint8(9), uint8(255), make([]byte, 32))
	f.Fuzz(func(t *testing.T, id, hi, lo uint64, code uint16, s bool, qrv, qqic uint8, sources []byte) {
		src, addr := linkLocal(id), multicast(hi, lo)
		if hi == 0 && lo == 0 {
			addr, sources = unspecified, nil
		}
		q := mld.Query{Version: 1, MulticastAddress: addr, MaxResponseCode: code, SuppressRouterProcessing: s,
			QRV: qrv, QQIC: qqic, Sources: sourceList(sources, 200)}
		want := message{Type: mld.TypeQuery, Version: 1, MulticastAddress: addr, MaxResponseCode: code}
		roundTrip(t, mld.AppendQuery(nil, src, mld.AllNodes, q), src, mld.AllNodes, want)

		q.Version, want.Version = 2, 2
		want.S, want.QQIC, want.Sources = s, qqic, q.Sources
		if want.QRV = qrv; qrv > 7 {
			want.QRV = 0
		}
		roundTrip(t, mld.AppendQuery(nil, src, addr, q), src, addr, want)
	})
}
