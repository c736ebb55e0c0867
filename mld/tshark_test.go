package mld_test

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/seed-aaab8e3a/cni-mld/mld"
)

// pcap is a capture file of packets that begin with an IP header (link type RAW).
func pcap(packets [][]byte) []byte {
	le := binary.LittleEndian
	b := le.AppendUint32(nil, 0xa1b2c3d4)
	b = le.AppendUint16(b, 2)
	b = le.AppendUint16(b, 4)
	b = append(b, make([]byte, 8)...)
	b = le.AppendUint32(b, 1<<16)
	b = le.AppendUint32(b, 101)
	for i, p := range packets {
		b = le.AppendUint32(b, uint32(i))
		b = le.AppendUint32(b, 0)
		b = le.AppendUint32(b, uint32(len(p)))
		b = le.AppendUint32(b, uint32(len(p)))
		b = append(b, p...)
	}
	return b
}

// tshark returns what Wireshark's dissectors say of each packet: the values of each field, in order.
func tshark(t *testing.T, packets [][]byte, fields ...string) []map[string][]string {
	t.Helper()
	program, err := exec.LookPath("tshark")
	if err != nil {
		if os.Getenv("LAB_REQUIRED") == "1" {
			t.Fatal(err)
		}
		t.Skip(err)
	}
	file := filepath.Join(t.TempDir(), "packets.pcap")
	if err := os.WriteFile(file, pcap(packets), 0o600); err != nil {
		t.Fatal(err)
	}
	args := []string{"-n", "-r", file, "-T", "fields", "-E", "separator=|", "-E", "occurrence=a", "-E", "aggregator=,"}
	for _, f := range fields {
		args = append(args, "-e", f)
	}
	var stderr bytes.Buffer
	cmd := exec.CommandContext(t.Context(), program, args...)
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("tshark: %v\n%s", err, stderr.Bytes())
	}
	var list []map[string][]string
	for line := range strings.Lines(string(out)) {
		row := map[string][]string{}
		for i, v := range strings.Split(strings.TrimSuffix(line, "\n"), "|") {
			if v != "" {
				row[fields[i]] = strings.Split(v, ",")
			}
		}
		list = append(list, row)
	}
	if len(list) != len(packets) {
		t.Fatalf("tshark saw %d packets of %d", len(list), len(packets))
	}
	return list
}

func strs[T any](list ...T) []string {
	var s []string
	for _, v := range list {
		s = append(s, fmt.Sprint(v))
	}
	return s
}

// Wireshark reads in our packets what we meant.
func TestTsharkReadsOurPackets(t *testing.T) {
	var (
		sources = addrs("2001:db8::10", "2001:db8::11", "fd00::1")
		records = []mld.Record{
			{mld.ModeIsInclude, ssmGroup, sources[:2]}, {mld.ModeIsExclude, group, nil},
			{mld.ChangeToInclude, group, nil}, {mld.ChangeToExclude, solicited, sources[2:]},
			{mld.AllowNewSources, ssmGroup, sources[:1]}, {mld.BlockOldSources, ssmGroup, sources},
		}
		always = map[string][]string{ // in every packet
			"ipv6.tclass": {"0x00000000"}, "ipv6.flow": {"0x000000"}, "ipv6.hlim": {"1"}, "ipv6.hopopts.nxt": {"58"},
			"ipv6.opt.type": {"0x05", "0x01"}, "ipv6.opt.router_alert": {"0"}, "icmpv6.code": {"0"},
			"icmpv6.checksum.status": {"1"}, // good
		}
	)
	full := message{Type: mld.TypeReportV2, Records: manyRecords(72)}
	tests := []struct {
		name   string
		packet []byte
		want   map[string][]string
	}{
		{"Report", mld.AppendReport(nil, host, group), map[string][]string{
			"ipv6.src": strs(host), "ipv6.dst": strs(group), "icmpv6.type": {"131"}, "ipv6.plen": {"32"},
			"icmpv6.mld.maximum_response_delay": {"0"}, "icmpv6.reserved": {"0000"},
			"icmpv6.mld.multicast_address": strs(group)}},
		{"Report from ::", mld.AppendReport(nil, unspecified, solicited), map[string][]string{
			"ipv6.src": strs(unspecified), "ipv6.dst": strs(solicited), "icmpv6.type": {"131"}, "ipv6.plen": {"32"},
			"icmpv6.mld.maximum_response_delay": {"0"}, "icmpv6.reserved": {"0000"},
			"icmpv6.mld.multicast_address": strs(solicited)}},
		{"Done", mld.AppendDone(nil, host, group), map[string][]string{
			"ipv6.src": strs(host), "ipv6.dst": strs(mld.AllRouters), "icmpv6.type": {"132"}, "ipv6.plen": {"32"},
			"icmpv6.mld.maximum_response_delay": {"0"}, "icmpv6.reserved": {"0000"},
			"icmpv6.mld.multicast_address": strs(group)}},
		{"ReportV2", mld.AppendReportV2(nil, host, records), map[string][]string{
			"ipv6.src": strs(host), "ipv6.dst": strs(mld.AllMLDv2Routers), "icmpv6.type": {"143"}, "ipv6.plen": {"248"},
			"icmpv6.reserved":                   {"0000"},
			"icmpv6.mldr.nb_mcast_records":      {"6"},
			"icmpv6.mldr.mar.record_type":       {"1", "2", "3", "4", "5", "6"},
			"icmpv6.mldr.mar.aux_data_len":      {"0", "0", "0", "0", "0", "0"},
			"icmpv6.mldr.mar.nb_sources":        {"2", "0", "0", "1", "1", "3"},
			"icmpv6.mldr.mar.multicast_address": strs(ssmGroup, group, group, solicited, ssmGroup, ssmGroup),
			"icmpv6.mldr.mar.source_address": strs(sources[0], sources[1], sources[2], sources[0], sources[0], sources[1],
				sources[2])}},
		{"ReportV2 of a full MTU", full.encode(host, netip.Addr{}), map[string][]string{
			"ipv6.src": strs(host), "ipv6.dst": strs(mld.AllMLDv2Routers), "icmpv6.type": {"143"}, "ipv6.plen": {"1456"},
			"icmpv6.reserved": {"0000"}, "icmpv6.mldr.nb_mcast_records": {"72"}}},
		{"QueryV1", mld.AppendQuery(nil, querier, mld.AllNodes, mld.Query{Version: 1, MulticastAddress: unspecified,
			MaxResponseCode: 40000}), map[string][]string{
			"ipv6.src": strs(querier), "ipv6.dst": strs(mld.AllNodes), "icmpv6.type": {"130"}, "ipv6.plen": {"32"},
			"icmpv6.mld.maximum_response_delay": {"40000"}, "icmpv6.reserved": {"0000"},
			"icmpv6.mld.multicast_address": {"::"}}},
		{"QueryV2", mld.AppendQuery(nil, querier, group, mld.Query{MulticastAddress: group, MaxResponseCode: 1000,
			SuppressRouterProcessing: true, QRV: 5, QQIC: 0x8a, Sources: sources}), map[string][]string{
			"ipv6.src": strs(querier), "ipv6.dst": strs(group), "icmpv6.type": {"130"}, "ipv6.plen": {"84"},
			"icmpv6.mld.maximum_response_code": {"1000"}, "icmpv6.reserved": {"0000"},
			"icmpv6.mld.multicast_address": strs(group), "icmpv6.mld.flag.s": {"1"}, "icmpv6.mld.flag.qrv": {"5"},
			"icmpv6.mld.flag.reserved": {"0"}, "icmpv6.mld.qqi": {"208"}, "icmpv6.mld.nb_sources": {"3"},
			"icmpv6.mld.source_address": strs(sources...)}},
	}

	fields := []string{"_ws.expert.message", "_ws.malformed"} // which no packet of ours has
	known := map[string]bool{}
	add := func(m map[string][]string) {
		for f := range m {
			if !known[f] {
				known[f] = true
				fields = append(fields, f)
			}
		}
	}
	add(always)
	var packets [][]byte
	for _, tt := range tests {
		add(tt.want)
		packets = append(packets, tt.packet)
	}
	broken := mld.AppendReport(nil, host, group)
	broken[60] ^= 1
	rows := tshark(t, append(packets, broken), fields...)
	for i, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			for field, want := range always {
				diff(t, want, rows[i][field])
			}
			for _, field := range fields {
				want, ok := tt.want[field]
				if _, everywhere := always[field]; everywhere || !ok && tt.name == "ReportV2 of a full MTU" &&
					strings.HasPrefix(field, "icmpv6.mldr.mar.") {
					continue
				}
				if got := rows[i][field]; strings.Join(got, ",") != strings.Join(want, ",") {
					t.Errorf("%s: got %q, want %q", field, got, want)
				}
			}
		})
	}
	// The judge does find faults.
	if got := rows[len(tests)]; got["icmpv6.checksum.status"][0] != "0" || len(got["_ws.expert.message"]) == 0 {
		t.Errorf("tshark finds nothing wrong with a wrong checksum: %v", got)
	}
}
