package kernel

import (
	"net/netip"
	"slices"
	"testing"

	"github.com/seed-aaab8e3a/cni-mld/mld"
)

func TestMembershipAfter(t *testing.T) {
	a, b, c := netip.MustParseAddr("2001:db8::1"), netip.MustParseAddr("2001:db8::2"), netip.MustParseAddr("2001:db8::3")
	in := func(k knowledge, sources ...netip.Addr) membership { return membership{filter{false, sources}, k} }
	ex := func(k knowledge, sources ...netip.Addr) membership { return membership{filter{true, sources}, k} }
	list := func(sources ...netip.Addr) []netip.Addr { return sources }
	for _, tc := range []struct {
		name      string
		before    membership
		kind      mld.RecordType
		sources   []netip.Addr
		continued bool
		want      membership
	}{
		{"TO_EX settles", ex(unsure), mld.ChangeToExclude, list(a), false, ex(sure, a)},
		{"IS_EX settles", in(sure, a), mld.ModeIsExclude, nil, false, ex(sure)},
		{"TO_IN settles", ex(unsure), mld.ChangeToInclude, list(a), false, in(sure, a)},
		{"IS_IN settles", ex(unsure), mld.ModeIsInclude, list(a), false, in(sure, a)},
		{"TO_IN replaces", in(sure, a), mld.ChangeToInclude, list(b), false, in(sure, b)},
		{"TO_IN in two packets", in(sure, a), mld.ChangeToInclude, list(b), true, in(sure, a, b)},
		{"IS_IN in two packets", in(sure, a), mld.ModeIsInclude, list(b), true, in(sure, a, b)},
		{"TO_IN of nothing is a leave, which events tell", ex(sure, a), mld.ChangeToInclude, nil, false, ex(sure, a)},
		{"IS_IN of nothing", ex(unsure), mld.ModeIsInclude, nil, false, ex(unsure)},

		{"ALLOW adds", in(sure, a), mld.AllowNewSources, list(b), false, in(sure, a, b)},
		{"ALLOW again", in(sure, a, b), mld.AllowNewSources, list(b), false, in(sure, a, b)},
		{"ALLOW takes from the excluded", ex(sure, a, b), mld.AllowNewSources, list(b), false, ex(sure, a)},
		{"ALLOW of what is not excluded", ex(sure, a), mld.AllowNewSources, list(b), false, ex(sure, a)},
		{"ALLOW first after a join", ex(fresh), mld.AllowNewSources, list(a, b), false, in(sure, a, b)},
		{"ALLOW first after a leave and a join", ex(fresh, a), mld.AllowNewSources, list(b), false, in(sure, b)},
		{"ALLOW of an awaited source", ex(awaited), mld.AllowNewSources, list(a), false, in(sure, a)},
		{"ALLOW of what was found", in(fresh, a), mld.AllowNewSources, list(a), false, in(sure, a)},
		{"ALLOW proves nothing in an unknown mode", ex(unsure), mld.AllowNewSources, list(a), false, ex(unsure)},

		{"BLOCK takes away", in(sure, a, b), mld.BlockOldSources, list(b), false, in(sure, a)},
		{"BLOCK again", in(sure, a), mld.BlockOldSources, list(b), false, in(sure, a)},
		{"BLOCK of all is a leave", in(sure, a, b), mld.BlockOldSources, list(a, b), false, in(sure, a, b)},
		{"BLOCK adds to the excluded", ex(sure, a), mld.BlockOldSources, list(c, b), false, ex(sure, a, b, c)},
		{"BLOCK in an unknown mode", ex(unsure), mld.BlockOldSources, list(a), false, ex(unsure)},
		{"BLOCK after a join is about an earlier membership", ex(fresh), mld.BlockOldSources, list(a), false, ex(fresh)},
		{"BLOCK likewise, with sources", in(fresh, a, b), mld.BlockOldSources, list(a), false, in(fresh, a, b)},
		{"BLOCK likewise, awaited", ex(awaited), mld.BlockOldSources, list(a), false, ex(awaited)},
		{"unknown type", in(sure, a), 9, list(b), false, in(sure, a)},
	} {
		t.Run(tc.name, func(t *testing.T) {
			before := slices.Clone(tc.before.sources)
			if got := tc.before.after(tc.kind, tc.sources, tc.continued); !got.equal(tc.want.filter) || got.state != tc.want.state {
				t.Errorf("%+v, want %+v", got, tc.want)
			}
			if !slices.Equal(before, tc.before.sources) {
				t.Errorf("the list before has changed to %v", tc.before.sources)
			}
		})
	}
}

func TestSourceRow(t *testing.T) {
	for line, ok := range map[string]bool{
		"Idx Device                Multicast Address                   Source Address    INC    EXC": false,
		"  3     d0 ff050000000000000000000000000003 20010db8000000000000000000000001      1      0": true,
		"123456 veryl0 ff050000000000000000000000000003 20010db8000000000000000000000001 100000 0":   true,
		"  3     d0 ff05000000000000000000000000003 20010db8000000000000000000000001      1      0":  false,
		"  3     d0 xx050000000000000000000000000003 20010db8000000000000000000000001      1      0": false,
		"  3     d0": false,
		"":           false,
	} {
		index, r, got := parseSourceRow([]byte(line))
		if got != ok || ok && (index != 3 && index != 123456 || r.addr.String() != "ff05::3" || r.source.String() != "2001:db8::1" ||
			r.includes != 1 && r.includes != 100000 || r.excludes != 0) {
			t.Errorf("%q: %v %+v %v", line, index, r, got)
		}
	}
	const excluded = "3 d0 ff050000000000000000000000000003 20010db8000000000000000000000001 0 2"
	if _, r, _ := parseSourceRow([]byte(excluded)); r.includes != 0 || r.excludes != 2 {
		t.Errorf("%q: %+v", excluded, r)
	}
}
