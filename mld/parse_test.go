package mld_test

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/seed-aaab8e3a/cni-mld/mld"
)

// golden is what the captured frames say, read off with tshark.
var golden = []struct {
	file     string // of testdata
	frame    int    // in file
	src, dst netip.Addr
	want     message
}{
	{"query-v1.hex", 0, querier, mld.AllNodes, message{
		Type: mld.TypeQuery, Version: 1, MulticastAddress: unspecified, MaxResponseCode: 10000}},
	{"query-v1.hex", 1, querier, mld.AllNodes, message{
		Type: mld.TypeQuery, Version: 1, MulticastAddress: group, MaxResponseCode: 1000}},
	{"query-v2.hex", 0, querier, mld.AllNodes, message{
		Type: mld.TypeQuery, Version: 2, MulticastAddress: unspecified, MaxResponseCode: 10000, QRV: 2, QQIC: 125}},
	{"query-v2.hex", 1, querier, group, message{
		Type: mld.TypeQuery, Version: 2, MulticastAddress: group, MaxResponseCode: 1000, QRV: 2, QQIC: 125}},
	{"query-v2.hex", 2, querier, group, message{
		Type: mld.TypeQuery, Version: 2, MulticastAddress: group, MaxResponseCode: 1000, S: true, QRV: 2, QQIC: 125}},
	{"query-v2.hex", 3, querier, ssmGroup, message{
		Type: mld.TypeQuery, Version: 2, MulticastAddress: ssmGroup, MaxResponseCode: 1000, QRV: 2, QQIC: 125,
		Sources: addrs("2001:db8::10")}},
	{"report-v1.hex", 0, unspecified, solicited, message{
		Type: mld.TypeReport, Version: 1, MulticastAddress: solicited}},
	{"report-v1.hex", 1, host, solicited, message{
		Type: mld.TypeReport, Version: 1, MulticastAddress: solicited}},
	{"report-v1.hex", 2, host, group, message{
		Type: mld.TypeReport, Version: 1, MulticastAddress: group}},
	{"done.hex", 0, host, mld.AllRouters, message{
		Type: mld.TypeDone, Version: 1, MulticastAddress: group}},
	{"report-v2.hex", 0, unspecified, mld.AllMLDv2Routers, message{
		Type: mld.TypeReportV2, Version: 2, Records: []mld.Record{{mld.ChangeToExclude, solicited, nil}}}},
	{"report-v2.hex", 1, host, mld.AllMLDv2Routers, message{
		Type: mld.TypeReportV2, Version: 2, Records: []mld.Record{
			{mld.ChangeToExclude, netip.MustParseAddr("ff02::fb"), nil},
			{mld.ChangeToExclude, netip.MustParseAddr("ff0e::db8:1"), nil},
			{mld.ChangeToExclude, group, nil}}}},
	{"report-v2.hex", 2, host, mld.AllMLDv2Routers, message{
		Type: mld.TypeReportV2, Version: 2, Records: []mld.Record{
			{mld.AllowNewSources, ssmGroup, addrs("2001:db8::10", "2001:db8::11")}}}},
	{"report-v2.hex", 3, host, mld.AllMLDv2Routers, message{
		Type: mld.TypeReportV2, Version: 2, Records: []mld.Record{
			{mld.BlockOldSources, group, addrs("2001:db8::66")}}}},
	{"report-v2.hex", 4, host, mld.AllMLDv2Routers, message{
		Type: mld.TypeReportV2, Version: 2, Records: []mld.Record{
			{mld.ModeIsInclude, ssmGroup, addrs("2001:db8::10", "2001:db8::11")},
			{mld.ModeIsExclude, netip.MustParseAddr("ff02::fb"), nil},
			{mld.ModeIsExclude, netip.MustParseAddr("ff0e::db8:1"), nil},
			{mld.ModeIsExclude, group, addrs("2001:db8::66")},
			{mld.ModeIsExclude, solicited, nil}}}},
	{"report-v2.hex", 5, host, mld.AllMLDv2Routers, message{
		Type: mld.TypeReportV2, Version: 2, Records: []mld.Record{{mld.ChangeToInclude, group, nil}}}},
	{"report-v2.hex", 6, host, mld.AllMLDv2Routers, message{
		Type: mld.TypeReportV2, Version: 2, Records: []mld.Record{
			{mld.BlockOldSources, ssmGroup, addrs("2001:db8::11")},
			{mld.ChangeToInclude, netip.MustParseAddr("ff0e::db8:1"), nil},
			{mld.ChangeToInclude, netip.MustParseAddr("ff02::fb"), nil}}}},
}

func TestParseGolden(t *testing.T) {
	if n := len(goldenPackets(t)); n != len(golden) {
		t.Errorf("testdata holds %d frames, the table %d", n, len(golden))
	}
	for _, g := range golden {
		t.Run(fmt.Sprintf("%s/%d", g.file, g.frame), func(t *testing.T) {
			b := frames(t, g.file)[g.frame][ethernetLen:]
			p, err := mld.Parse(b, mld.AcceptUnspecified)
			if err != nil {
				t.Fatal(err)
			}
			diff(t, g.want, plain(p.Message))
			diff(t, []netip.Addr{g.src, g.dst}, []netip.Addr{p.Src, p.Dst})
			diff(t, uint8(1), p.HopLimit)
		})
	}
}

// A Report or Done from "::" never reaches a listener, whatever sent it.
func TestV1_17_ReportOfKernelFromUnspecified(t *testing.T) {
	for _, name := range []string{"report-v1.hex", "report-v2.hex"} {
		_, err := mld.Parse(frames(t, name)[0][ethernetLen:], 0)
		diff(t, mld.ReasonUnspecifiedSource, mld.ReasonOf(err))
	}
}

// rejections hold at least one row for each Reason.
var rejections = []struct {
	rule   string
	name   string
	packet []byte
	want   mld.Reason
	accept mld.Accept // which does not help
}{
	{name: "nothing at all", want: mld.ReasonHeaderLength, accept: all, packet: nil},
	{name: "IPv6 header cut", want: mld.ReasonHeaderLength, accept: all, packet: generalQuery()[:39]},
	{name: "IP version 4", want: mld.ReasonIPVersion, accept: all, packet: edit(generalQuery(), 0, 0x45)},
	{name: "IP version 0", want: mld.ReasonIPVersion, accept: all, packet: edit(generalQuery(), 0, 0x00)},

	// TAHI 2.6: the Payload Length, not the frame, tells the length.
	{rule: "V2-7", name: "Query of 26 octets", want: mld.ReasonQueryLength,
		packet: ofMessage(append(v1(mld.TypeQuery, 1000, "::"), 2, 125))},
	{rule: "V2-7", name: "Query of 25 octets", want: mld.ReasonQueryLength,
		packet: ofMessage(append(v1(mld.TypeQuery, 1000, "::"), 2))},
	{rule: "V2-7", name: "Query of 27 octets", want: mld.ReasonQueryLength,
		packet: ofMessage(append(v1(mld.TypeQuery, 1000, "::"), 2, 125, 0))},
	{rule: "V2-7", name: "Payload Length 32 of 36", want: mld.ReasonChecksum, accept: all,
		packet: edit(generalQuery(), 5, 32)},
	{rule: "V2-7", name: "Payload Length 52 of 36", want: mld.ReasonPayloadLength, accept: all,
		packet: edit(generalQuery(), 5, 52)},
	{rule: "V2-7", name: "Payload Length 37 of 36", want: mld.ReasonPayloadLength, accept: all,
		packet: edit(generalQuery(), 5, 37)},
	{rule: "V2-7", name: "Payload Length 36 of 52", want: mld.ReasonChecksum, accept: all,
		packet: edit(ofMessage(queryV2("ff05::4321", 1, "2001:db8::1")), 5, 36)},
	{name: "Payload Length 0", want: mld.ReasonHopByHopLength, accept: all, packet: edit(generalQuery(), 5, 0)},
	{name: "packet cut", want: mld.ReasonPayloadLength, accept: all, packet: generalQuery()[:75]},
	{rule: "V2-7", name: "Query of 23 octets", want: mld.ReasonMessageLength, accept: all,
		packet: ofMessage(v1(mld.TypeQuery, 1000, "::")[:23])},
	{rule: "V1-10", name: "Query of 8 octets", want: mld.ReasonMessageLength, accept: all,
		packet: ofMessage(v1(mld.TypeQuery, 1000, "::")[:8])},
	{rule: "K20", name: "Report of 23 octets", want: mld.ReasonMessageLength, accept: all,
		packet: ofMessage(v1(mld.TypeReport, 0, "ff05::4321")[:23])},
	{rule: "V1-17", name: "Done of 23 octets", want: mld.ReasonMessageLength, accept: all,
		packet: ofMessage(v1(mld.TypeDone, 0, "ff05::4321")[:23])},
	{name: "version 2 Report of 7 octets", want: mld.ReasonMessageLength, accept: all,
		packet: ofMessage(reportV2(0)[:7])},
	{name: "message of one octet", want: mld.ReasonMessageLength, accept: all, packet: ofMessage([]byte{130})},
	{name: "no message", want: mld.ReasonMessageLength, accept: all, packet: ofMessage(nil)},

	// Extension headers.
	{rule: "V2-5", name: "no Hop-by-Hop Options header", want: mld.ReasonNoHopByHop,
		packet: packet("fe80::1", 58, nil, queryV2("::", 0))},
	{rule: "V1-34", name: "Report without Hop-by-Hop Options header", want: mld.ReasonNoHopByHop,
		packet: packet("fe80::1", 58, nil, v1(mld.TypeReport, 0, "ff05::4321"))},
	{rule: "V2-5", name: "PadN only", want: mld.ReasonNoRouterAlert,
		packet: withOptions(58, 0, 1, 4, 0, 0, 0, 0)},
	{rule: "V2-5", name: "Pad1 only", want: mld.ReasonNoRouterAlert,
		packet: withOptions(58, 0, 0, 0, 0, 0, 0, 0)},
	{rule: "V2-5", name: "Router Alert of RSVP", want: mld.ReasonRouterAlertValue,
		packet: withOptions(58, 0, 5, 2, 0, 1, 1, 0)},
	{rule: "V2-5", name: "Router Alert value 256", want: mld.ReasonRouterAlertValue,
		packet: withOptions(58, 0, 5, 2, 1, 0, 1, 0)},
	{rule: "V1-1", name: "two Router Alerts", want: mld.ReasonRouterAlertRepeated,
		packet: withOptions(58, 1, 5, 2, 0, 0, 5, 2, 0, 0, 1, 4, 0, 0, 0, 0)},
	{rule: "V1-1", name: "Router Alert of four octets", want: mld.ReasonRouterAlertLength, accept: all,
		packet: withOptions(58, 1, 5, 4, 0, 0, 0, 0, 1, 6, 0, 0, 0, 0, 0, 0)},
	{rule: "V1-1", name: "Router Alert of no octets", want: mld.ReasonRouterAlertLength, accept: all,
		packet: withOptions(58, 0, 5, 0, 1, 2, 0, 0)},
	{name: "header of less than 8 octets", want: mld.ReasonHopByHopLength, accept: all,
		packet: packet("fe80::1", 0, linuxOptions[:7], nil)},
	{name: "header longer than the packet", want: mld.ReasonHopByHopLength, accept: all,
		packet: withOptions(58, 4, 5, 2, 0, 0, 1, 0)},
	{name: "header of 2048 octets", want: mld.ReasonHopByHopLength, accept: all,
		packet: withOptions(58, 255, 5, 2, 0, 0, 1, 0)},
	{name: "option longer than its header", want: mld.ReasonOptionLength, accept: all,
		packet: withOptions(58, 0, 5, 2, 0, 0, 1, 1)},
	{name: "option without a length", want: mld.ReasonOptionLength, accept: all,
		packet: withOptions(58, 0, 5, 2, 0, 0, 0, 1)},
	{name: "Router Alert without a value", want: mld.ReasonOptionLength, accept: all,
		packet: withOptions(58, 0, 1, 2, 0, 0, 5, 2)},
	{name: "option 01: discard", want: mld.ReasonOption, accept: all,
		packet: withOptions(58, 1, 5, 2, 0, 0, 0x5e, 8, 0, 0, 0, 0, 0, 0, 0, 0)},
	{name: "option 10: discard and tell", want: mld.ReasonOption, accept: all,
		packet: withOptions(58, 0, 0x9e, 0, 5, 2, 0, 0)},
	{name: "option 11: Jumbo Payload", want: mld.ReasonOption, accept: all,
		packet: withOptions(58, 1, 5, 2, 0, 0, 0xc2, 4, 0, 1, 0, 0, 1, 2, 0, 0)},
	{name: "fragment after the options", want: mld.ReasonFragment, accept: all,
		packet: withOptions(44, 0, 5, 2, 0, 0, 1, 0, 58, 0, 0, 0, 0, 0, 0, 1)},
	{name: "fragment", want: mld.ReasonFragment, accept: all,
		packet: packet("fe80::1", 44, []byte{58, 0, 0, 0, 0, 0, 0, 1}, queryV2("::", 0))},
	{name: "options twice", want: mld.ReasonNextHeader, accept: all,
		packet: withOptions(0, 0, 5, 2, 0, 0, 1, 0, 58, 0, 5, 2, 0, 0, 1, 0)},
	{name: "destination options between", want: mld.ReasonNextHeader, accept: all,
		packet: withOptions(60, 0, 5, 2, 0, 0, 1, 0, 58, 0, 1, 4, 0, 0, 0, 0)},
	{name: "UDP after the options", want: mld.ReasonNextHeader, accept: all,
		packet: withOptions(17, 0, 5, 2, 0, 0, 1, 0)},
	{name: "TCP", want: mld.ReasonNextHeader, accept: all, packet: packet("fe80::1", 6, nil, queryV2("::", 0))},

	// Checksum: of the whole message, and before anything else of it.
	{rule: "K23", name: "checksum 0 (TAHI 2.9)", want: mld.ReasonChecksum, accept: all,
		packet: edit(edit(generalQuery(), 50, 0), 51, 0)},
	{rule: "V1-4", name: "checksum of a Report off by one", want: mld.ReasonChecksum, accept: all,
		packet: edit(ofMessage(v1(mld.TypeReport, 0, "ff05::4321")), 51, 0xff)},
	{rule: "V2-69", name: "wrong checksum of an unknown type", want: mld.ReasonChecksum, accept: all,
		packet: edit(ofMessage(v1(151, 0, "::")), 51, 0xff)},
	{rule: "V2-69", name: "wrong checksum and Hop Limit", want: mld.ReasonChecksum, accept: all,
		packet: edit(edit(generalQuery(), 51, 0), 7, 64)},
	{rule: "V1-2", name: "octet past 24 changed", want: mld.ReasonChecksum, accept: all,
		packet: edit(ofMessage(append(v1(mld.TypeReport, 0, "ff05::4321"), 1, 2)), 73, 3)},
	{rule: "V2-4", name: "octet past the sources changed", want: mld.ReasonChecksum, accept: all,
		packet: edit(ofMessage(append(queryV2("::", 0), 1, 2)), 77, 3)},
	{rule: "V2-4", name: "octet past the records changed", want: mld.ReasonChecksum, accept: all,
		packet: edit(ofMessage(append(reportV2(0), 1, 2)), 57, 3)},
	{rule: "V1-4", name: "checksum made with next header 0", want: mld.ReasonChecksum, accept: all,
		packet: wrongNextHeader()},

	// IPv6 header.
	{rule: "V2-5", name: "Hop Limit 0", want: mld.ReasonHopLimit, packet: edit(generalQuery(), 7, 0)},
	{rule: "V2-5", name: "Hop Limit 2", want: mld.ReasonHopLimit, packet: edit(generalQuery(), 7, 2)},
	{rule: "V2-5", name: "Hop Limit 255", want: mld.ReasonHopLimit, packet: edit(generalQuery(), 7, 255)},
	{rule: "V1-34", name: "Hop Limit 64 of a Report", want: mld.ReasonHopLimit,
		packet: edit(ofMessage(v1(mld.TypeReport, 0, "ff05::4321")), 7, 64)},
	{rule: "V1-33", name: "version 1 Query from ::", want: mld.ReasonUnspecifiedSource,
		packet: packet("::", 0, linuxOptions, v1(mld.TypeQuery, 1000, "::"))},
	{rule: "V2-5", name: "version 2 Query from ::", want: mld.ReasonUnspecifiedSource,
		packet: packet("::", 0, linuxOptions, queryV2("::", 0))},
	{rule: "V1-17", name: "Report from ::", want: mld.ReasonUnspecifiedSource,
		packet: packet("::", 0, linuxOptions, v1(mld.TypeReport, 0, "ff05::4321"))},
	{rule: "K22", name: "Query from a global address", want: mld.ReasonSource, accept: all,
		packet: from("2001:db8::1")},
	{rule: "V1-10", name: "version 1 Query from a global address", want: mld.ReasonSource, accept: all,
		packet: packet("2001:db8::1", 0, linuxOptions, v1(mld.TypeQuery, 1000, "::"))},
	{rule: "V1-17", name: "Report from a global address", want: mld.ReasonSource, accept: all,
		packet: packet("2001:db8::1", 0, linuxOptions, v1(mld.TypeReport, 0, "ff05::4321"))},
	{rule: "V2-5", name: "Query from a multicast address", want: mld.ReasonSource, accept: all,
		packet: from("ff02::1")},
	{rule: "V2-5", name: "Query from ::1", want: mld.ReasonSource, accept: all, packet: from("::1")},
	{rule: "V2-5", name: "Query from a site-local address", want: mld.ReasonSource, accept: all,
		packet: from("fec0::1")},
	{rule: "V2-5", name: "Query from an IPv4 link-local address", want: mld.ReasonSource, accept: all,
		packet: from("::ffff:169.254.0.1")},

	// The message.
	{rule: "V2-15", name: "unknown type (TAHI 2.7)", want: mld.ReasonType, accept: all,
		packet: ofMessage(v1(200, 0, "ff05::4321"))},
	{rule: "V1-21", name: "Neighbor Solicitation", want: mld.ReasonType, accept: all,
		packet: ofMessage(v1(135, 0, "fe80::2"))},
	{rule: "V2-15", name: "type 129", want: mld.ReasonType, accept: all,
		packet: ofMessage(v1(129, 0, "ff05::4321"))},
	{rule: "V2-15", name: "type 133", want: mld.ReasonType, accept: all,
		packet: ofMessage(v1(133, 0, "ff05::4321"))},
	{rule: "K28", name: "Query for a global address (TAHI 2.12)", want: mld.ReasonMulticastAddress, accept: all,
		packet: ofMessage(queryV2("2001:db8::1", 0))},
	{rule: "V2-10", name: "Query for a link-local address", want: mld.ReasonMulticastAddress, accept: all,
		packet: ofMessage(queryV2("fe80::1", 0))},
	{rule: "V1-10", name: "version 1 Query for a global address", want: mld.ReasonMulticastAddress, accept: all,
		packet: ofMessage(v1(mld.TypeQuery, 1000, "2001:db8::1"))},
	{rule: "V1-10", name: "Query for an IPv4 multicast address", want: mld.ReasonMulticastAddress, accept: all,
		packet: ofMessage(v1(mld.TypeQuery, 1000, "::ffff:224.0.0.1"))},
	{rule: "K44", name: "Report of a global address", want: mld.ReasonMulticastAddress, accept: all,
		packet: ofMessage(v1(mld.TypeReport, 0, "2001:db8::1"))},
	{rule: "K44", name: "Report of ::", want: mld.ReasonMulticastAddress, accept: all,
		packet: ofMessage(v1(mld.TypeReport, 0, "::"))},
	{rule: "V1-5", name: "Done for ::", want: mld.ReasonMulticastAddress, accept: all,
		packet: ofMessage(v1(mld.TypeDone, 0, "::"))},
	{rule: "V2-8", name: "one source counted, none present (TAHI 2.16.a)", want: mld.ReasonSourceCount,
		packet: ofMessage(queryV2("ff05::4321", 1))},
	{rule: "V2-8", name: "two sources counted, one present (TAHI 2.16.c)", want: mld.ReasonSourceCount,
		packet: ofMessage(queryV2("ff05::4321", 2, "2001:db8::1"))},
	{rule: "V2-8", name: "65535 sources counted", want: mld.ReasonSourceCount,
		packet: ofMessage(queryV2("ff05::4321", 65535, "2001:db8::1"))},
	{rule: "V2-8", name: "last octet of a source missing", want: mld.ReasonSourceCount,
		packet: ofMessage(queryV2("ff05::4321", 1, "2001:db8::1")[:43])},
	{rule: "V2-9", name: "General Query with a source (TAHI 2.12.b)", want: mld.ReasonGeneralSources,
		packet: ofMessage(queryV2("::", 1, "2001:db8::1"))},
	{name: "one record counted, none present", want: mld.ReasonRecordCount, accept: all,
		packet: ofMessage(reportV2(1))},
	{name: "65535 records counted", want: mld.ReasonRecordCount, accept: all,
		packet: ofMessage(reportV2(65535, record(4, 0, 0, "ff05::4321")))},
	{name: "last octet of a record missing", want: mld.ReasonRecordCount, accept: all,
		packet: ofMessage(reportV2(1, record(4, 0, 0, "ff05::4321")[:19]))},
	{name: "source of a record missing", want: mld.ReasonRecordCount, accept: all,
		packet: ofMessage(reportV2(1, record(4, 0, 1, "ff05::4321", make([]byte, 15)...)))},
	{rule: "V2-3", name: "auxiliary data missing", want: mld.ReasonRecordCount, accept: all,
		packet: ofMessage(reportV2(1, record(4, 1, 0, "ff05::4321", 1, 2, 3)))},
	{rule: "V2-3", name: "auxiliary data that eats the next record", want: mld.ReasonRecordCount, accept: all,
		packet: ofMessage(reportV2(2, record(4, 5, 0, "ff05::4321"),
			record(4, 0, 0, "ff05::4322")))},
}

const all = mld.AcceptHopLimit | mld.AcceptNoRouterAlert | mld.AcceptQueryLength | mld.AcceptUnspecified

func generalQuery() []byte { return ofMessage(queryV2("::", 0)) }

func from(src string) []byte { return packet(src, 0, linuxOptions, queryV2("::", 0)) }

func ofMessage(message []byte) []byte { return packet("fe80::1", 0, linuxOptions, message) }

func withOptions(options ...byte) []byte { return packet("fe80::1", 0, options, queryV2("::", 0)) }

func edit(packet []byte, i int, to byte) []byte {
	packet[i] = to
	return packet
}

// wrongNextHeader has a checksum made with the next header of the IPv6 header, as some have sent it.
func wrongNextHeader() []byte {
	p := ofMessage(v1(mld.TypeReport, 0, "ff05::4321"))
	sum := uint32(p[50])<<8 + uint32(p[51]) + 58
	p[50], p[51] = byte(sum>>8), byte(sum)
	return p
}

func TestParseRejects(t *testing.T) {
	seen := map[mld.Reason]bool{}
	for _, r := range rejections {
		t.Run(strings.TrimSpace(r.rule+" "+r.name), func(t *testing.T) {
			for _, accept := range []mld.Accept{0, r.accept} {
				before := slices.Clone(r.packet)
				p, err := mld.Parse(r.packet, accept)
				if err != error(r.want) {
					t.Errorf("accepting %b: got %v (%v), want %v", accept, err, mld.ReasonOf(err), r.want)
				}
				diff(t, message{}, plain(p.Message))
				diff(t, netip.Addr{}, p.Src)
				diff(t, before, r.packet)
			}
		})
		seen[r.want] = true
	}
	for r := range mld.Reasons() {
		if !seen[r] {
			t.Errorf("no packet is rejected for %v: %v", r, r.Error())
		}
	}
}

func TestParseAccepts(t *testing.T) {
	general := message{Type: mld.TypeQuery, Version: 2, MulticastAddress: unspecified, MaxResponseCode: 1000,
		QRV: 2, QQIC: 125}
	generalV1 := message{Type: mld.TypeQuery, Version: 1, MulticastAddress: unspecified, MaxResponseCode: 1000}
	specific, withSource, flagged, allNodes := general, general, general, generalV1
	specific.MulticastAddress = group
	withSource.MulticastAddress, withSource.Sources = group, addrs("2001:db8::1")
	flagged.S, flagged.QRV = true, 7
	allNodes.MulticastAddress = mld.AllNodes
	report := message{Type: mld.TypeReport, Version: 1, MulticastAddress: group}
	done := message{Type: mld.TypeDone, Version: 1, MulticastAddress: group}
	reportMessage := v1(mld.TypeReport, 0, "ff05::4321")
	source := addrs("2001:db8::1")

	tests := []struct {
		rule   string
		name   string
		packet []byte
		accept mld.Accept
		want   message
	}{
		{rule: "V1-1", name: "options of Linux", want: general, packet: withOptions(linuxOptions...)},
		{rule: "V1-1", name: "options of the Linux bridge", want: general, packet: withOptions(bridgeOptions...)},
		{rule: "K1", name: "options of KAME", want: general, packet: withOptions(kameOptions...)},
		{rule: "V1-1", name: "Pad1 between", want: general, packet: withOptions(58, 0, 0, 5, 2, 0, 0, 0)},
		{name: "unknown option 00: skip", want: general,
			packet: withOptions(58, 1, 0x1e, 2, 9, 9, 5, 2, 0, 0, 0x3e, 4, 9, 9, 9, 9)},
		{name: "options of 2048 octets", want: general,
			packet: withOptions(slices.Concat([]byte{58, 255, 5, 2, 0, 0},
				slices.Repeat([]byte{1, 255 - 2}, 1), make([]byte, 253), make([]byte, 2048-6-255))...)},
		{rule: "V2-6", name: "unicast destination", want: general, packet: toUnicast()},
		{rule: "K26", name: "destination of a Report is not its address", want: report,
			packet: ofMessage(reportMessage)},

		{rule: "V2-7", name: "24 octets", want: generalV1, packet: ofMessage(v1(mld.TypeQuery, 1000, "::"))},
		{rule: "V2-7", name: "28 octets", want: general, packet: ofMessage(queryV2("::", 0))},
		{rule: "V2-7", name: "padding of the link", want: generalV1,
			packet: append(ofMessage(v1(mld.TypeQuery, 1000, "::")), 2, 125, 0, 0)},
		{rule: "V2-7", name: "extra data that the payload does not cover (TAHI 2.6.d)", want: general,
			packet: append(generalQuery(), make([]byte, 16)...)},
		{rule: "V2-4", name: "trailing data of a Query (TAHI 2.18)", want: general,
			packet: ofMessage(append(queryV2("::", 0), 1, 2, 3))},
		{rule: "V2-4", name: "trailing data of a Report", want: message{Type: mld.TypeReportV2, Version: 2},
			packet: ofMessage(append(reportV2(0), 1, 2, 3))},
		{rule: "V2-4", name: "trailing data that looks like a record", want: message{Type: mld.TypeReportV2, Version: 2},
			packet: ofMessage(reportV2(0, record(mld.ChangeToExclude, 0, 0, "ff05::4321")))},
		{rule: "V1-2", name: "octets past 24 of a Report", want: report,
			packet: ofMessage(append(slices.Clone(reportMessage), 1, 2, 3))},
		{rule: "V1-2", name: "octets past 24 of a Done", want: done,
			packet: ofMessage(append(v1(mld.TypeDone, 0, "ff05::4321"), 1))},

		{rule: "V1-3", name: "Code, delay and Reserved of a Report", want: report,
			packet: ofMessage(fill(reportMessage, 1, 4, 5, 6, 7))},
		{rule: "V1-3", name: "Code and Reserved of a Query", want: generalV1,
			packet: ofMessage(fill(v1(mld.TypeQuery, 1000, "::"), 1, 6, 7))},
		{rule: "K82", name: "Code and Reserved of a Done", want: done,
			packet: ofMessage(fill(v1(mld.TypeDone, 0, "ff05::4321"), 1, 4, 5, 6, 7))},
		{rule: "V2-2", name: "Code 255 (TAHI 2.8)", want: general, packet: ofMessage(fill(queryV2("::", 0), 1))},
		{rule: "V2-2", name: "Reserved of a Query (TAHI 2.11)", want: general,
			packet: ofMessage(fill(queryV2("::", 0), 6, 7))},
		{rule: "V2-2", name: "flags of a Query", want: general, packet: ofMessage(with(queryV2("::", 0), 24, 0xf2))},
		{rule: "V2-2", name: "Reserved of a Report", want: message{Type: mld.TypeReportV2, Version: 2},
			packet: ofMessage(fill(reportV2(0), 1, 4, 5))},

		{rule: "V2-12", name: "S flag", want: flagged,
			packet: ofMessage(with(queryV2("::", 0), 24, 0x0f))},
		{rule: "V2-8", name: "no source counted, one present (TAHI 2.16.b)", want: specific,
			packet: ofMessage(queryV2("ff05::4321", 0, "2001:db8::1"))},
		{rule: "V2-8", name: "one source counted, two present (TAHI 2.16.d)", want: withSource,
			packet: ofMessage(queryV2("ff05::4321", 1, "2001:db8::1", "2001:db8::2"))},
		{name: "Query for ff02::1", want: allNodes,
			packet: ofMessage(v1(mld.TypeQuery, 1000, "ff02::1"))},
		{rule: "V1-5", name: "Done", want: done, packet: ofMessage(v1(mld.TypeDone, 0, "ff05::4321"))},
		{rule: "V2-3", name: "auxiliary data is skipped", want: message{Type: mld.TypeReportV2,
			Version: 2, Records: []mld.Record{
				{mld.ChangeToExclude, group, source}, {mld.AllowNewSources, ssmGroup, nil}}},
			packet: ofMessage(reportV2(2,
				record(mld.ChangeToExclude, 1, 1, "ff05::4321", append(octets("2001:db8::1"), 1, 2, 3, 4)...),
				record(mld.AllowNewSources, 2, 0, "ff3e::8000:1", make([]byte, 8)...)))},
		{rule: "MQ-22", name: "record of an unknown type", want: message{Type: mld.TypeReportV2,
			Version: 2, Records: []mld.Record{{9, group, source}, {mld.ChangeToExclude, group, nil}}},
			packet: ofMessage(reportV2(2,
				record(9, 0, 1, "ff05::4321", octets("2001:db8::1")...),
				record(mld.ChangeToExclude, 0, 0, "ff05::4321")))},
		{rule: "V1-10", name: "every link-local address", want: general, packet: from("febf:ffff::1")},

		{rule: "K24", name: "any Hop Limit", accept: mld.AcceptHopLimit, want: general,
			packet: edit(generalQuery(), 7, 64)},
		{rule: "K25", name: "no Hop-by-Hop Options header", accept: mld.AcceptNoRouterAlert, want: general,
			packet: packet("fe80::1", 58, nil, queryV2("::", 0))},
		{rule: "K25", name: "no Router Alert", accept: mld.AcceptNoRouterAlert, want: general,
			packet: withOptions(58, 0, 1, 4, 0, 0, 0, 0)},
		{rule: "K25", name: "Router Alert of RSVP", accept: mld.AcceptNoRouterAlert, want: general,
			packet: withOptions(58, 0, 5, 2, 0, 1, 1, 0)},
		{rule: "K25", name: "two Router Alerts", accept: mld.AcceptNoRouterAlert, want: general,
			packet: withOptions(58, 1, 5, 2, 0, 0, 5, 2, 0, 1, 1, 4, 0, 0, 0, 0)},
		{rule: "V1-2", name: "Query of 25 octets", accept: mld.AcceptQueryLength, want: generalV1,
			packet: ofMessage(append(v1(mld.TypeQuery, 1000, "::"), 2))},
		{rule: "K21", name: "Query of 26 octets", accept: mld.AcceptQueryLength, want: generalV1,
			packet: ofMessage(append(v1(mld.TypeQuery, 1000, "::"), 2, 125))},
		{rule: "V1-2", name: "Query of 27 octets", accept: mld.AcceptQueryLength, want: generalV1,
			packet: ofMessage(append(v1(mld.TypeQuery, 1000, "::"), 2, 125, 0))},
		{rule: "K21", name: "General Query with sources", accept: mld.AcceptQueryLength, want: generalV1,
			packet: ofMessage(queryV2("::", 1, "2001:db8::1"))},
		{rule: "K21", name: "more sources counted than present", accept: mld.AcceptQueryLength, want: generalV1,
			packet: ofMessage(queryV2("::", 9))},
		{name: "Report from :: for a switch", accept: mld.AcceptUnspecified, want: report,
			packet: packet("::", 0, linuxOptions, reportMessage)},
	}
	for _, tt := range tests {
		t.Run(strings.TrimSpace(tt.rule+" "+tt.name), func(t *testing.T) {
			p, err := mld.Parse(tt.packet, tt.accept)
			if err != nil {
				t.Fatalf("rejected: %v (%v)", err, mld.ReasonOf(err))
			}
			diff(t, tt.want, plain(p.Message))
			if tt.accept == 0 {
				return
			}
			// Only this bit opens the door.
			if _, err := mld.Parse(tt.packet, all&^tt.accept); err == nil {
				t.Errorf("accepted without %b as well", tt.accept)
			}
		})
	}
}

// with and fill change octets of a message that is not sealed yet.
func with(message []byte, i int, to byte) []byte {
	message = slices.Clone(message)
	message[i] = to
	return message
}

func fill(message []byte, at ...int) []byte {
	for _, i := range at {
		message = with(message, i, 0xff)
	}
	return message
}

func toUnicast() []byte {
	p := generalQuery()
	copy(p[24:40], octets("fe80::2"))
	p[50], p[51] = 0, 0
	sum := ^onesComplementSum(p[8:40], p[48:])
	p[50], p[51] = byte(sum>>8), byte(sum)
	return p
}

// The answers of a listener depend on how it reads the delay: the same 40000 is 40 s in version 1 and 115.712 s
// in version 2.
func TestMaxResponseDelay(t *testing.T) {
	tests := []struct {
		rule    string
		version mld.Version
		code    uint16
		want    time.Duration
	}{
		{rule: "V1-26", version: 1, code: 0, want: 0},
		{rule: "V1-26", version: 1, code: 1, want: time.Millisecond},
		{rule: "V1-26", version: 1, code: 999, want: 999 * time.Millisecond},
		{rule: "V1-26", version: 1, code: 40000, want: 40 * time.Second},
		{rule: "V1-26", version: 1, code: 65535, want: 65535 * time.Millisecond},
		{rule: "V2-11", version: 2, code: 0, want: 0},
		{rule: "V2-11", version: 2, code: 32767, want: 32767 * time.Millisecond},
		{rule: "V2-11", version: 2, code: 40000, want: 115712 * time.Millisecond},
		{rule: "V2-11", version: 2, code: 65535, want: 8387584 * time.Millisecond},
	}
	for _, tt := range tests {
		t.Run(fmt.Sprintf("%s %d", tt.rule, tt.code), func(t *testing.T) {
			b := mld.AppendQuery(nil, querier, mld.AllNodes, mld.Query{
				Version: tt.version, MulticastAddress: unspecified, MaxResponseCode: tt.code})
			p, err := mld.Parse(b, 0)
			if err != nil {
				t.Fatal(err)
			}
			if got := p.Message.MaxResponseDelay(); got != tt.want {
				t.Errorf("%v, want %v", got, tt.want)
			}
		})
	}
}

func TestQueryInterval(t *testing.T) {
	for _, b := range goldenPackets(t) {
		p, err := mld.Parse(b, mld.AcceptUnspecified)
		if err != nil {
			t.Fatal(err)
		}
		want := time.Duration(0)
		if p.Message.Type == mld.TypeQuery && p.Message.Version == mld.Version2 {
			want = 125 * time.Second
		}
		if got := p.Message.QueryInterval(); got != want {
			t.Errorf("%v, want %v", got, want)
		}
		if m := p.Message; m.Type != mld.TypeQuery && m.MaxResponseDelay() != 0 {
			t.Errorf("%v has a delay of %v", m.Type, m.MaxResponseDelay())
		}
	}
}

// A view ends where it should, and can be left in the middle.
func TestViews(t *testing.T) {
	rest := slices.Concat(octets("2001:db8::1"), octets("2001:db8::2"), []byte{9, 9, 9, 9})
	b := ofMessage(reportV2(2,
		record(mld.ChangeToExclude, 1, 2, "ff05::4321", rest...),
		record(mld.AllowNewSources, 0, 1, "ff3e::8000:1", octets("2001:db8::3")...)))
	p, err := mld.Parse(b, 0)
	if err != nil {
		t.Fatal(err)
	}
	diff(t, 2, p.Message.Records.Len())
	diff(t, 0, p.Message.Sources.Len())
	for r := range p.Message.Records.All() {
		diff(t, 2, r.Sources.Len())
		diff(t, netip.MustParseAddr("2001:db8::2"), r.Sources.At(1))
		for s := range r.Sources.All() {
			diff(t, netip.MustParseAddr("2001:db8::1"), s)
			break
		}
		defer func() {
			if recover() == nil {
				t.Error("At(2) of two sources did not panic")
			}
		}()
		r.Sources.At(2)
		break
	}
}
