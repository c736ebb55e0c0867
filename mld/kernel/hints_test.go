package kernel_test

import (
	"net/netip"
	"slices"
	"testing"

	"github.com/seed-aaab8e3a/cni-mld/mld"
	"github.com/seed-aaab8e3a/cni-mld/mld/kernel"
)

func TestHeard(t *testing.T) {
	src := netip.MustParseAddr("fe80::1")
	source := []netip.Addr{netip.MustParseAddr("2001:db8::1")}
	record := func(kind mld.RecordType, sources []netip.Addr) []byte {
		return mld.AppendReportV2(nil, src, []mld.Record{{Type: kind, MulticastAddress: group, Sources: sources}})
	}
	for _, test := range []struct {
		name          string
		packet        []byte
		joined, other bool
	}{
		{"report", mld.AppendReport(nil, src, group), true, false},
		{"report before there is an address", mld.AppendReport(nil, netip.IPv6Unspecified(), group), true, false},
		{"done", mld.AppendDone(nil, src, group), false, true},
		{"IS_EX", record(mld.ModeIsExclude, nil), true, false},
		{"TO_EX", record(mld.ChangeToExclude, source), true, false},
		{"IS_IN", record(mld.ModeIsInclude, source), true, false},
		{"TO_IN", record(mld.ChangeToInclude, source), true, false},
		{"TO_IN of nothing", record(mld.ChangeToInclude, nil), false, true},
		{"ALLOW", record(mld.AllowNewSources, source), true, false},
		{"BLOCK", record(mld.BlockOldSources, source), false, true},
		{"unknown type", record(9, nil), false, true},
		{"garbage", []byte{0x60, 1, 2}, false, true},
		{"nothing", nil, false, true},
		{
			"a join and a leave", mld.AppendReportV2(nil, src, []mld.Record{
				{Type: mld.ChangeToExclude, MulticastAddress: group},
				{Type: mld.ChangeToInclude, MulticastAddress: netip.MustParseAddr("ff05::9")},
			}), true, true,
		},
	} {
		t.Run(test.name, func(t *testing.T) {
			var joined []netip.Addr
			other := kernel.Heard(test.packet, func(addr netip.Addr) { joined = append(joined, addr) })
			var want []netip.Addr
			if test.joined {
				want = []netip.Addr{group}
			}
			if !slices.Equal(joined, want) || other != test.other {
				t.Errorf("joined %v, something else %v", joined, other)
			}
		})
	}
}
