package mld_test

import (
	"bytes"
	"encoding/hex"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"testing"

	"github.com/seed-aaab8e3a/cni-mld/mld"
)

// What a Linux host sends and what we send in its place differ in no octet.
func TestAppendIsWhatLinuxSends(t *testing.T) {
	for _, g := range golden {
		t.Run(fmt.Sprintf("%s/%d", g.file, g.frame), func(t *testing.T) {
			want := slices.Clone(frames(t, g.file)[g.frame][ethernetLen:])
			if g.want.Type == mld.TypeQuery {
				copy(want[40:], linuxOptions) // the bridge pads with two Pad1, a host with a PadN
			}
			if got := g.want.encode(g.src, g.dst); !bytes.Equal(want, got) {
				t.Errorf("\ngot  %x\nwant %x", got, want)
			}
		})
	}
}

// Every octet written out: what stands in the RFCs, not what some system makes of it.
func TestAppendOctets(t *testing.T) {
	const (
		hostHex  = "fe80000000000000000000fffe00000a"
		groupHex = "ff050000000000000000000000004321"
		ra       = "3a00050200000100"
	)
	report := mld.AppendReport(nil, host, group)
	done := mld.AppendDone(nil, host, group)
	reportV2 := mld.AppendReportV2(nil, host, []mld.Record{{mld.ChangeToInclude, group, addrs("2001:db8::1")}})
	queryV2 := mld.AppendQuery(nil, host, group, mld.Query{MulticastAddress: group, MaxResponseCode: 0x9c40,
		SuppressRouterProcessing: true, QRV: 7, QQIC: 0x8a, Sources: addrs("2001:db8::1")})

	tests := []struct {
		rule   string
		name   string
		octets []byte
		want   string
	}{
		{rule: "V1-1", name: "Hop Limit of a Report", octets: report[7:8], want: "01"},
		{rule: "V1-1", name: "source of a Report", octets: report[8:24], want: hostHex},
		{rule: "V1-1", name: "Router Alert of a Report", octets: report[40:48], want: ra},
		{rule: "V1-1", name: "Router Alert of a Done", octets: done[40:48], want: ra},
		{rule: "K1", name: "one Router Alert of value 0, aligned to 2", octets: report[40:48], want: ra},
		{rule: "K59", name: "version, traffic class and flow label of a Report", octets: report[0:4], want: "60000000"},
		{rule: "K59", name: "Payload Length, Next Header and Hop Limit of a Done", octets: done[4:8], want: "00200001"},
		{rule: "K59", name: "version, traffic class and flow label of a Done", octets: done[0:4], want: "60000000"},
		{rule: "V1-2", name: "Payload Length of a Report: 8 and 24 octets", octets: report[4:6], want: "0020"},
		{rule: "V1-3", name: "type and Code of a Report", octets: report[48:50], want: "8300"},
		{rule: "V1-3", name: "delay and Reserved of a Report", octets: report[52:56], want: "00000000"},
		{rule: "K61", name: "type and Code of a Done", octets: done[48:50], want: "8400"},
		{rule: "K61", name: "delay and Reserved of a Done", octets: done[52:56], want: "00000000"},
		{rule: "V1-5", name: "address of a Report", octets: report[56:72], want: groupHex},
		{rule: "V1-5", name: "address of a Done", octets: done[56:72], want: groupHex},
		{rule: "V1-8", name: "destination of a Report", octets: report[24:40], want: groupHex},
		{rule: "V1-9", name: "destination of a Done", octets: done[24:40], want: "ff020000000000000000000000000002"},
		{rule: "K60", name: "destination of a Report", octets: report[24:40], want: groupHex},
		{rule: "K60", name: "destination of a Done", octets: done[24:40], want: "ff020000000000000000000000000002"},

		{rule: "V2-1", name: "whole IPv6 header", octets: reportV2[0:40],
			want: "60000000" + "0034" + "00" + "01" + hostHex + "ff020000000000000000000000000016"},
		{rule: "V2-1", name: "Router Alert", octets: reportV2[40:48], want: ra},
		{rule: "V2-1", name: "type", octets: reportV2[48:49], want: "8f"},
		{rule: "V2-2", name: "Reserved", octets: reportV2[49:50], want: "00"},
		{rule: "V2-2", name: "Flags", octets: reportV2[52:54], want: "0000"},
		{rule: "V2-3", name: "records; type, auxiliary data and sources of one", octets: reportV2[54:60],
			want: "0001" + "03" + "00" + "0001"},
		{rule: "V2-4", name: "the record to its last octet", octets: reportV2[60:92],
			want: groupHex + "20010db8000000000000000000000001"},

		{rule: "V2-2", name: "Query: type, Code", octets: queryV2[48:50], want: "8200"},
		{rule: "V2-11", name: "Query: Maximum Response Code, Reserved", octets: queryV2[52:56], want: "9c400000"},
		{rule: "V2-2", name: "Query: S, QRV, QQIC, number of sources", octets: queryV2[72:76], want: "0f8a0001"},
		{rule: "V2-4", name: "Query: to its last octet", octets: queryV2[76:92], want: "20010db8000000000000000000000001"},
	}
	for _, tt := range tests {
		t.Run(tt.rule+" "+tt.name, func(t *testing.T) {
			diff(t, tt.want, hex.EncodeToString(tt.octets))
		})
	}
	diff(t, []int{72, 72, 92, 92}, []int{len(report), len(done), len(reportV2), len(queryV2)})
}

func TestV1_02_ExactlyTwentyFourOctets(t *testing.T) {
	q := mld.Query{Version: 1, MulticastAddress: group, MaxResponseCode: 1000, SuppressRouterProcessing: true, QRV: 2,
		QQIC: 125, Sources: addrs("2001:db8::1")}
	for _, b := range [][]byte{mld.AppendReport(nil, host, group), mld.AppendDone(nil, host, group),
		mld.AppendQuery(nil, querier, mld.AllNodes, q)} {
		diff(t, 40+8+24, len(b))
	}
}

// The checksum of every kind of packet against a sum made word by word.
func TestV1_04_Checksum(t *testing.T) {
	for n := range 100 {
		var records []mld.Record
		for i := range n {
			records = append(records, mld.Record{mld.ModeIsExclude, group, slices.Repeat(addrs("2001:db8::ffff"), i%5)})
		}
		sources := slices.Repeat(addrs("2001:db8:ffff::1"), n)
		for _, b := range [][]byte{
			mld.AppendReportV2(nil, host, records),
			mld.AppendQuery(nil, querier, group, mld.Query{MulticastAddress: group, QRV: 2, QQIC: uint8(n), Sources: sources}),
			mld.AppendReport(nil, host, netip.AddrFrom16([16]byte{0: 0xff, 1: 5, 14: byte(n)})),
			mld.AppendDone(nil, host, netip.AddrFrom16([16]byte{0: 0xff, 1: 5, 15: byte(n)})),
		} {
			if sum := onesComplementSum(b[8:40], b[48:]); sum != 0xffff {
				t.Fatalf("%d: sum %#04x over % x", n, sum, b)
			}
		}
	}
}

// Parse verifies the checksum over messages of every length: all residues of the fast loop's turns.
func TestV2_69_ChecksumOfEveryLength(t *testing.T) {
	for n := range 200 {
		m := append(queryV2("::", 0), bytes.Repeat([]byte{0xff, byte(n)}, n)[:n]...)
		b := ofMessage(m)
		if _, err := mld.Parse(b, 0); err != nil {
			t.Fatalf("%d octets: %v", len(m), err)
		}
		for i := range m {
			b[48+i] ^= 0x10
			if _, err := mld.Parse(b, 0); mld.ReasonOf(err) != mld.ReasonChecksum {
				t.Fatalf("%d octets, octet %d changed: %v", len(m), i, err)
			}
			b[48+i] ^= 0x10
		}
	}
}

// A zone never reaches the packet: not in the addresses of the header, not in the message, not in the checksum.
func TestK62_NoZoneInPacket(t *testing.T) {
	zoned := func(a netip.Addr) netip.Addr { return a.WithZone("eth0") }
	source := netip.MustParseAddr("fe80::1")
	tests := []struct {
		name      string
		want, got []byte
	}{
		{"Report", mld.AppendReport(nil, host, group), mld.AppendReport(nil, zoned(host), zoned(group))},
		{"Done", mld.AppendDone(nil, host, group), mld.AppendDone(nil, zoned(host), zoned(group))},
		{"ReportV2",
			mld.AppendReportV2(nil, host, []mld.Record{{1, group, []netip.Addr{source}}}),
			mld.AppendReportV2(nil, zoned(host), []mld.Record{{1, zoned(group), []netip.Addr{zoned(source)}}})},
		{"Query",
			mld.AppendQuery(nil, host, group, mld.Query{MulticastAddress: group, Sources: []netip.Addr{source}}),
			mld.AppendQuery(nil, zoned(host), zoned(group), mld.Query{
				MulticastAddress: zoned(group), Sources: []netip.Addr{zoned(source)}})},
	}
	for _, tt := range tests {
		if !bytes.Equal(tt.want, tt.got) {
			t.Errorf("%s: zone changes the packet\ngot  %x\nwant %x", tt.name, tt.got, tt.want)
		}
		p, err := mld.Parse(tt.got, 0)
		if err != nil || p.Src.Zone() != "" || p.Dst.Zone() != "" || p.Message.MulticastAddress.Zone() != "" {
			t.Errorf("%s: %v, %v", tt.name, p, err)
		}
	}
}

// The zero Addr is "::": before there is a link-local address a report is sent from it.
func TestAppendFromUnspecified(t *testing.T) {
	for _, src := range []netip.Addr{{}, unspecified} {
		for _, b := range [][]byte{mld.AppendReport(nil, src, group), mld.AppendDone(nil, src, group),
			mld.AppendReportV2(nil, src, []mld.Record{{mld.ChangeToExclude, group, nil}})} {
			diff(t, make([]byte, 16), b[8:24])
			_, err := mld.Parse(b, 0)
			diff(t, mld.ReasonUnspecifiedSource, mld.ReasonOf(err))
			p, err := mld.Parse(b, mld.AcceptUnspecified)
			if err != nil {
				t.Error(err)
			}
			diff(t, unspecified, p.Src)
		}
	}
}

// What was there stays, and spare room is used and overwritten.
func TestAppendExtends(t *testing.T) {
	b := append(make([]byte, 0, 500), "before"...)
	copy(b[:500][6:], bytes.Repeat([]byte{0xaa}, 494))
	records := []mld.Record{{mld.ModeIsInclude, ssmGroup, addrs("2001:db8::1")}}
	got := mld.AppendReportV2(mld.AppendReport(b, host, group), host, records)
	want := slices.Concat([]byte("before"), mld.AppendReport(nil, host, group), mld.AppendReportV2(nil, host, records))
	diff(t, want, got)
	if &got[0] != &b[0] {
		t.Error("a slice with room was not used")
	}
}

func TestQRVAboveSevenIsSentAsZero(t *testing.T) {
	for qrv, want := range map[uint8]uint8{0: 0, 7: 7, 8: 0, 255: 0} {
		p, err := mld.Parse(mld.AppendQuery(nil, querier, mld.AllNodes, mld.Query{QRV: qrv}), 0)
		if err != nil || p.Message.QRV != want || p.Message.SuppressRouterProcessing {
			t.Errorf("QRV %d: got %d, S %v, %v", qrv, p.Message.QRV, p.Message.SuppressRouterProcessing, err)
		}
	}
}

// The lengths that are exported are those of the packets, at the usual MTUs.
func TestLengths(t *testing.T) {
	full := func(mtu int) int { return (mtu - mld.ReportV2Len) / mld.RecordLen }
	diff(t, []int{72, 61}, []int{full(1500), full(1280)})
	sources := slices.Repeat(addrs("2001:db8::1"), 3)
	records := []mld.Record{{1, group, sources}, {2, group, nil}}
	diff(t, mld.ReportV2Len+2*mld.RecordLen+3*mld.SourceLen, len(mld.AppendReportV2(nil, host, records)))
	diff(t, mld.ReportV2Len, len(mld.AppendReportV2(nil, host, nil)))
	diff(t, mld.QueryV2Len+3*mld.SourceLen, len(mld.AppendQuery(nil, host, group, mld.Query{Sources: sources})))
}

func TestAppendTooMuchPanics(t *testing.T) {
	const most = (65535 - 8 - 8) / mld.RecordLen
	records := slices.Repeat([]mld.Record{{mld.ModeIsExclude, group, nil}}, most+1)
	p, err := mld.Parse(mld.AppendReportV2(nil, host, records[:most]), 0)
	if err != nil || p.Message.Records.Len() != most {
		t.Errorf("%d records, %v", p.Message.Records.Len(), err)
	}
	defer func() {
		if r, _ := recover().(string); !strings.HasPrefix(r, "mld: ") {
			t.Errorf("recovered %q", r)
		}
	}()
	mld.AppendReportV2(nil, host, records)
}

func TestReportable(t *testing.T) {
	tests := []struct {
		rule string
		addr string
		want bool
	}{
		{rule: "V1-22", addr: "ff02::1", want: false},
		{rule: "V1-22", addr: "ff02::1%eth0", want: false},
		{rule: "V1-23", addr: "ff00::1", want: false},
		{rule: "V1-23", addr: "ff01::1", want: false},
		{rule: "V1-23", addr: "ff31::8000:1", want: false},
		{rule: "V1-24", addr: "ff02::2", want: true},
		{rule: "V1-24", addr: "ff02::16", want: true},
		{rule: "V1-24", addr: "ff02::1:ff00:a", want: true},
		{rule: "V1-24", addr: "ff12::1", want: true},
		{rule: "K5", addr: "ff03::1", want: true},
		{rule: "K5", addr: "ff05::4321", want: true},
		{rule: "K5", addr: "ff0e::1", want: true},
		{rule: "K5", addr: "ff0f::1", want: true},
		{addr: "fe80::1", want: false},
		{addr: "2001:db8::1", want: false},
		{addr: "::", want: false},
		{addr: "224.0.0.251", want: false},
		{addr: "::ffff:224.0.0.251", want: false},
	}
	for _, tt := range tests {
		if got := mld.Reportable(netip.MustParseAddr(tt.addr)); got != tt.want {
			t.Errorf("%s: %s: %v", tt.rule, tt.addr, got)
		}
	}
	if mld.Reportable(netip.Addr{}) {
		t.Error("the zero Addr is reportable")
	}
}
