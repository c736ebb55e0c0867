package api

import (
	"encoding/json"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/containernetworking/cni/pkg/types"
	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"

	"github.com/seed-aaab8e3a/cni-mld/mld"
)

func parse(t testing.TB, text string) (*Settings, *types.Error) {
	t.Helper()
	var keys map[string]json.RawMessage
	if err := json.Unmarshal([]byte(text), &keys); err != nil {
		t.Fatalf("test data %s: %v", text, err)
	}
	return ParseSettings(keys)
}

var byAddr = cmpopts.EquateComparable(netip.Addr{})

func TestParseSettings(t *testing.T) {
	with := func(change func(*Settings)) *Settings {
		s := DefaultSettings()
		change(s)
		return s
	}
	group := func(a string, deliver bool) Group { return Group{Addr: netip.MustParseAddr(a), Deliver: deliver} }
	from := func(a string, mode Mode, sources ...string) Group {
		g := group(a, true)
		g.Mode = mode
		for _, s := range sources {
			g.Sources = append(g.Sources, netip.MustParseAddr(s))
		}
		return g
	}
	groups := func(list ...Group) *Settings { return with(func(s *Settings) { s.Groups = list }) }
	silent := from("ff05::8", Include, "fd00::1", "fd00::2")
	silent.Deliver = false
	for _, tc := range []struct {
		name, text string
		want       *Settings
	}{
		{"defaults", `{}`, &Settings{MLDVersion: "auto", Profile: "rfc", KernelReports: "auto", Robustness: 2,
			Ready: Ready{"auto", Duration(time.Second)}}},
		{"every key", `{"groups": ["ff05::4321"], "mldVersion": 1, "profile": "rfc", "kernelReports": "mute",
			"robustness": 7, "unsolicitedReportInterval": "1s", "alwaysDone": true,
			"ready": {"wait": "mdb", "timeout": "60s"}, "limits": {"groups": 1, "sources": 0}}`,
			&Settings{[]Group{group("ff05::4321", true)}, "1", "rfc", "mute", 7, Duration(time.Second), true,
				Ready{"mdb", Duration(time.Minute)}}},
		{"version 1 as a string", `{"mldVersion": "1"}`, with(func(s *Settings) { s.MLDVersion = "1" })},
		{"version 2", `{"mldVersion": 2}`, with(func(s *Settings) { s.MLDVersion = "2" })},
		{"version 2 as a string", `{"mldVersion": "2"}`, with(func(s *Settings) { s.MLDVersion = "2" })},
		{"version auto", `{"mldVersion": "auto"}`, DefaultSettings()},
		{"kame", `{"profile": "kame", "mldVersion": 1}`, with(func(s *Settings) { s.Profile, s.MLDVersion = "kame", "1" })},
		{"half of ready", `{"ready": {"wait": "none"}}`, with(func(s *Settings) { s.Ready.Wait = "none" })},
		{"groups are sorted and named once",
			`{"groups": ["ff05::8", {"group": "ff02:0:0::1:5", "deliver": false}, "FF05::8", {"group": "ff05::8"}]}`,
			groups(group("ff02::1:5", false), group("ff05::8", true))},
		{"ff3x that is not source-specific", `{"groups": ["ff35:40:fd00:1::1"]}`, groups(group("ff35:40:fd00:1::1", true))},
		{"any source in words", `{"groups": [{"group": "ff05::8", "mode": "exclude"}, {"group": "ff05::8", "mode": "exclude", "sources": []}]}`,
			groups(group("ff05::8", true))},
		{"one source", `{"groups": ["fd00:1::10@ff3e::8000:1"]}`, groups(from("ff3e::8000:1", Include, "fd00:1::10"))},
		{"one source in words", `{"groups": [{"group": "ff3e::8000:1", "mode": "include", "sources": ["fd00:1::10"]}]}`,
			groups(from("ff3e::8000:1", Include, "fd00:1::10"))},
		{"one source of a group that is not source-specific", `{"groups": ["fe80::1@ff05::8"]}`, groups(from("ff05::8", Include, "fe80::1"))},
		{"sources of one group unite",
			`{"groups": ["fd00::2@ff05::8", "ff05::7", "fd00:0::1@ff05::8", {"group": "ff05::8", "mode": "include", "sources": ["fd00::3", "fd00::2"]}]}`,
			groups(group("ff05::7", true), from("ff05::8", Include, "fd00::1", "fd00::2", "fd00::3"))},
		{"excluded sources are sorted and named once",
			`{"groups": [{"group": "ff05::8", "mode": "exclude", "sources": ["fd00::2", "fd00::1", "fd00:0::2"], "deliver": true},
				{"group": "ff05::8", "mode": "exclude", "sources": ["fd00::1", "fd00::2"]}]}`,
			groups(from("ff05::8", Exclude, "fd00::1", "fd00::2"))},
		{"sources without delivery", `{"groups": [{"group": "ff05::8", "mode": "include", "sources": ["fd00::2", "fd00::1"], "deliver": false}]}`,
			groups(silent)},
		{"the first address that IANA may assign", `{"groups": ["fd00::1@ff32::4000:1"]}`, groups(from("ff32::4000:1", Include, "fd00::1"))},
		{"version 1 with sources", `{"groups": ["fd00::1@ff3e::8000:1"], "mldVersion": 1}`, with(func(s *Settings) { // V2-77
			s.MLDVersion, s.Groups = "1", []Group{from("ff3e::8000:1", Include, "fd00::1")}
		})},
		{"limits that are reached", `{"groups": ["ff05::7", "fd00::1@ff05::8", "fd00::2@ff05::8", "fd00::2@ff05::8"], "limits": {"groups": 2, "sources": 2}}`,
			groups(group("ff05::7", true), from("ff05::8", Include, "fd00::1", "fd00::2"))},
	} {
		t.Run(tc.name, func(t *testing.T) {
			got, err := parse(t, tc.text)
			if err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(tc.want, got, byAddr, cmpopts.EquateEmpty()); diff != "" {
				t.Error(diff)
			}
		})
	}
}

// TestParseSettingsRefuses has in wants what the text of the error must name: key, value, remedy.
func TestParseSettingsRefuses(t *testing.T) {
	for _, tc := range []struct {
		rule, text string
		wants      []string
	}{
		{"", `{"group": ["ff05::1"]}`, []string{"group:", "unknown key", "groups, mldVersion"}},
		{"", `{"mldversion": 1}`, []string{"mldversion", "unknown key", "mldVersion"}},
		{"V2-72", `{"groups": ["ff05::1", "ff05::2"], "limits": {"groups": 1}}`, []string{"limits.groups: 1: is less than the 2 declared", "raise the limit"}},
		{"V2-72", `{"groups": ["fd00::1@ff05::1", "fd00::2@ff05::1"], "limits": {"sources": 1}}`,
			[]string{"limits.sources: 1", "ff05::1", "2 sources", "raise the limit"}},
		{"", `{"groups": ["ff05::1"], "limits": {"groups": 0}}`, []string{"limits.groups: 0: is less than the 1 declared"}},
		{"", `{"limits": {"groups": -1}}`, []string{"limits.groups: -1", "0 or more"}},
		{"", `{"limits": {"sources": "64"}}`, []string{"limits.sources", `"64"`, "number"}},
		{"", `{"limits": {"sources": null}}`, []string{"limits.sources: null", "number"}},
		{"", `{"limits": {"sessions": 1}}`, []string{"limits.sessions: 1", "unknown key", "groups and sources"}},
		{"", `{"limits": 5}`, []string{"limits: 5", "object"}},
		{"", `{"mldVersion": 3}`, []string{"mldVersion: 3", `"auto", 2 or 1`}},
		{"", `{"mldVersion": "v2"}`, []string{"mldVersion", `"v2"`, `"auto", 2 or 1`}},
		{"", `{"mldVersion": 1.0}`, []string{"mldVersion: 1.0", `"auto", 2 or 1`}},
		{"", `{"mldVersion": null}`, []string{"mldVersion: null"}},
		{"", `{"profile": "bsd"}`, []string{"profile", `"bsd"`, `"kame"`}},
		{"", `{"profile": null}`, []string{"profile: null"}},
		{"", `{"profile": "kame"}`, []string{"mldVersion", `"auto"`, `"kame"`, "must be 1"}},
		{"", `{"profile": "kame", "mldVersion": 2}`, []string{"mldVersion", `"2"`, `"kame"`, "must be 1"}},
		{"", `{"profile": "kame", "mldVersion": 1, "robustness": 3}`, []string{"robustness: 3", `"kame"`, "leave robustness out"}},
		{"", `{"profile": "kame", "mldVersion": 1, "alwaysDone": true}`, []string{"alwaysDone: true", `"kame"`, "leave alwaysDone out"}},
		{"", `{"kernelReports": true}`, []string{"kernelReports: true", `"mute"`}},
		{"", `{"kernelReports": "off"}`, []string{"kernelReports", `"off"`, `"keep"`}},
		{"", `{"robustness": 0}`, []string{"robustness: 0", "1 to 7"}},
		{"", `{"robustness": 8}`, []string{"robustness: 8", "1 to 7"}},
		{"", `{"robustness": 2.5}`, []string{"robustness: 2.5", "1 to 7"}},
		{"", `{"robustness": "2"}`, []string{`robustness: "2"`, "number"}},
		{"", `{"unsolicitedReportInterval": "0s"}`, []string{"unsolicitedReportInterval", "0s", "more than 0"}},
		{"", `{"unsolicitedReportInterval": "-1s"}`, []string{"unsolicitedReportInterval", "-1s"}},
		{"", `{"unsolicitedReportInterval": "61m"}`, []string{"unsolicitedReportInterval", "1h1m0s", "at most 1h"}},
		{"", `{"unsolicitedReportInterval": 10}`, []string{"unsolicitedReportInterval: 10", `"10s"`}},
		{"", `{"alwaysDone": "yes"}`, []string{"alwaysDone", `"yes"`, "true or false"}},
		{"", `{"ready": "mdb"}`, []string{"ready", `"mdb"`, "object"}},
		{"", `{"ready": {"wait": "querier"}}`, []string{"ready.wait", `"querier"`, `"report"`}},
		{"", `{"ready": {"timeout": "0s"}}`, []string{"ready.timeout", "0s", "more than 0"}},
		{"", `{"ready": {"timeout": "61s"}}`, []string{"ready.timeout", "1m1s", "at most 1m"}},
		{"", `{"ready": {"for": "1s"}}`, []string{"ready.for", "unknown key", "wait and timeout"}},
		{"", `{"groups": "ff05::1"}`, []string{"groups", "list"}},
		{"", `{"groups": null}`, []string{"groups: null"}},
		{"", `{"groups": ["ff05::1", 5]}`, []string{"groups[1]: 5", "neither a string nor an object"}},
		{"", `{"groups": [null]}`, []string{"groups[0]: null"}},
		{"", `{"groups": ["ff05::1", "hello"]}`, []string{"groups[1]", `"hello"`, "not an IPv6 address"}},
		{"", `{"groups": ["239.1.1.1"]}`, []string{"groups[0]", `"239.1.1.1"`, "not an IPv6 address"}},
		{"", `{"groups": ["::ffff:239.1.1.1"]}`, []string{"groups[0]", "not an IPv6 address"}},
		{"", `{"groups": ["fd00::1"]}`, []string{"groups[0]", `"fd00::1"`, "not a multicast address", "ff00::/8"}},
		{"", `{"groups": ["ff02::5%eth0"]}`, []string{"groups[0]", "ff02::5%eth0", "zone"}},
		{"V1-22", `{"groups": ["ff02::1"]}`, []string{"groups[0]", `"ff02::1"`, "all-nodes"}},
		{"V1-23", `{"groups": ["ff00::5"]}`, []string{"groups[0]", `"ff00::5"`, "scope 0", "2 to 15"}},
		{"V1-23", `{"groups": ["ff11::5"]}`, []string{"groups[0]", `"ff11::5"`, "scope 1", "2 to 15"}},
		{"V2-75", `{"groups": ["ff3e::8000:1"]}`, []string{"groups[0]", `"ff3e::8000:1"`, "source-specific", "needs its sources", "@"}},
		{"V2-75", `{"groups": [{"group": "ff3e::8000:1", "mode": "exclude", "sources": []}]}`, []string{"groups[0]", "needs its sources"}},
		{"V2-58", `{"groups": [{"group": "ff3e::8000:1", "mode": "exclude", "sources": ["fd00::1"]}]}`,
			[]string{"groups[0]", "source-specific", "mode include"}},
		{"V2-74", `{"groups": ["fd00::1@ff3e::1"]}`, []string{"groups[0]", `"fd00::1@ff3e::1"`, "invalid source-specific", "ff3e::8000:0"}},
		{"V2-74", `{"groups": ["fd00::1@ff32::4000:0"]}`, []string{"groups[0]", "invalid source-specific", "ff32::4000:1"}},
		{"V2-74", `{"groups": ["ff35::"]}`, []string{"groups[0]", `"ff35::"`, "invalid source-specific"}},
		{"", `{"groups": ["ff05::8@fd00::1"]}`, []string{`groups[0]: "ff05::8@fd00::1": `, "SOURCE@GROUP", "write fd00::1@ff05::8"}},
		{"", `{"groups": ["fd00::2@fd00::1"]}`, []string{`groups[0]: "fd00::2@fd00::1": `, "not a multicast"}},
		{"", `{"groups": ["ff05::8, ff05::9"]}`, []string{`groups[0]: "ff05::8, ff05::9": is not one GROUP or SOURCE@GROUP: write one in each string`}},
		{"", `{"groups": ["ff05::8; fd00::1@ff05::9"]}`, []string{`groups[0]: "ff05::8; fd00::1@ff05::9": is not one GROUP`}},
		{"", `{"groups": ["fd00::1, fd00::2@ff05::8"]}`, []string{`groups[0]: "fd00::1, fd00::2@ff05::8": `, "two of them for two sources"}},
		{"", `{"groups": ["ff02::9@ff05::8"]}`, []string{"groups[0]", "source ff02::9", "multicast address", "unicast"}},
		{"", `{"groups": ["::@ff05::8"]}`, []string{"groups[0]", "source ::", "unspecified"}},
		{"", `{"groups": ["::1@ff05::8"]}`, []string{"groups[0]", "source ::1", "loopback"}},
		{"", `{"groups": ["10.0.0.1@ff05::8"]}`, []string{"groups[0]", "source 10.0.0.1", "not an IPv6 address"}},
		{"", `{"groups": ["::ffff:10.0.0.1@ff05::8"]}`, []string{"groups[0]", "not an IPv6 address"}},
		{"", `{"groups": ["fe80::1%eth0@ff05::8"]}`, []string{"groups[0]", "fe80::1%eth0", "zone"}},
		{"", `{"groups": ["@ff05::8"]}`, []string{"groups[0]", `"@ff05::8"`, `source "" is not an IPv6 address`}},
		{"", `{"groups": ["fd00::1@"]}`, []string{"groups[0]", `"fd00::1@"`, "not an IPv6 address"}},
		{"", `{"groups": ["fd00::1@fd00::2@ff05::8"]}`, []string{"groups[0]", "not an IPv6 address"}},
		{"", `{"groups": ["fd00::1@ff05::8%eth0"]}`, []string{"groups[0]", "zone"}},
		{"", `{"groups": ["ff05::7", {"group": "ff05::8", "mode": "include", "sources": ["fd00::1", "x"]}]}`,
			[]string{"groups[1]", `source "x" is not an IPv6 address`}},
		{"", `{"groups": [{"group": "ff05::8", "mode": "include", "sources": ["fd00::1", "ff02::1"]}]}`, []string{"groups[0]", "source ff02::1 is a multicast"}},
		{"", `{"groups": [{"group": "fd00::1@ff05::8"}]}`, []string{"groups[0]", "fd00::1@ff05::8", "not an IPv6 address"}},
		{"", `{"groups": [{"group": "ff05::8", "sources": ["fd00::1"]}]}`, []string{"groups[0]", "sources and no mode", "include"}},
		{"", `{"groups": [{"group": "ff05::8", "sources": []}]}`, []string{"groups[0]", "sources and no mode"}},
		{"", `{"groups": [{"group": "ff05::8", "mode": "include"}]}`, []string{"groups[0]", "include", "no sources", "any source"}},
		{"", `{"groups": [{"group": "ff05::8", "mode": "include", "sources": []}]}`, []string{"groups[0]", "no sources"}},
		{"", `{"groups": [{"group": "ff05::8", "mode": "only", "sources": ["fd00::1"]}]}`, []string{"groups[0]", `"only"`, "include", "exclude"}},
		{"", `{"groups": [{"group": "ff05::8", "mode": null}]}`, []string{"groups[0]", "mode must be"}},
		{"", `{"groups": [{"group": "ff05::8", "mode": 1}]}`, []string{"groups[0]", "mode must be"}},
		{"", `{"groups": [{"group": "ff05::8", "mode": "include", "sources": "fd00::1"}]}`, []string{"groups[0]", "sources must be a list"}},
		{"", `{"groups": [{"group": "ff05::8", "deliver": null}]}`, []string{"groups[0]", "deliver must be"}},
		{"", `{"groups": [{"group": null}]}`, []string{"groups[0]", "group must be"}},
		{"", `{"groups": [{"group": "ff05::8", "delivery": true}]}`, []string{"groups[0]", `"delivery"`, "group, mode, sources and deliver"}},
		{"", `{"groups": [{"deliver": true}]}`, []string{"groups[0]", "no key group"}},
		{"", `{"groups": ["ff05::8", "ff05::7", {"group": "ff05::8", "deliver": false}]}`,
			[]string{"groups[2]", `"deliver":false`, "contradicts groups[0], which wants ff05::8 with deliver true: "}},
		{"", `{"groups": ["ff05::7", "ff05::7", "ff05::8", "fd00::1@ff05::8"]}`,
			[]string{"groups[3]", `"fd00::1@ff05::8"`, "contradicts groups[2], which wants ff05::8 from any source: name the group once"}},
		{"", `{"groups": ["fd00::1@ff05::8", {"group": "ff05::8", "mode": "exclude", "sources": ["fd00::2"]}]}`,
			[]string{"groups[1]", "fd00::2", "contradicts groups[0], which wants ff05::8 from named sources alone"}},
		{"", `{"groups": ["ff05::8", {"group": "ff05::8", "mode": "exclude", "sources": ["fd00::2"]}]}`,
			[]string{"groups[1]", "fd00::2", "contradicts groups[0], which wants ff05::8 from any source"}},
		{"", `{"groups": [{"group": "ff05::8", "mode": "exclude", "sources": ["fd00::2"]}, "ff05::8"]}`,
			[]string{`groups[1]: "ff05::8"`, "contradicts groups[0], which wants ff05::8 from all sources but the named"}},
	} {
		t.Run(tc.text, func(t *testing.T) {
			s, err := parse(t, tc.text)
			if err == nil {
				t.Fatalf("accepted as %+v", s)
			}
			if err.Code != types.ErrInvalidNetworkConfig {
				t.Errorf("code %d, want 7", err.Code)
			}
			for _, want := range tc.wants {
				if !strings.Contains(err.Msg, want) {
					t.Errorf("%q does not name %q", err.Msg, want)
				}
			}
		})
	}
}

// TestV1_22_V1_23_V2_58_V2_75_GroupsAgreeWithTheCodec: what may be declared is what the protocol may report, and
// source-specific addresses only with the sources to include.
func TestV1_22_V1_23_V2_58_V2_75_GroupsAgreeWithTheCodec(t *testing.T) {
	for flags := range 16 {
		for scope := range 16 {
			for _, tail := range []byte{1, 2} {
				for _, prefix := range []byte{0, 0x40} {
					addr := netip.AddrFrom16([16]byte{0: 0xff, 1: byte(flags<<4 | scope), 3: prefix, 12: 0x80, 15: tail})
					if flags == 0 {
						addr = netip.AddrFrom16([16]byte{0: 0xff, 1: byte(scope), 3: prefix, 15: tail}) // ff02::1 is among them
					}
					specific := flags == 3 && prefix == 0
					source := []netip.Addr{netip.MustParseAddr("fd00::1")}
					for _, tc := range []struct {
						g    Group
						want bool
					}{
						{Group{Addr: addr}, mld.Reportable(addr) && !specific},
						{Group{Addr: addr, Sources: source}, mld.Reportable(addr) && !specific},
						{Group{Addr: addr, Mode: Include, Sources: source}, mld.Reportable(addr)},
					} {
						if err := tc.g.Validate(); (err == nil) != tc.want {
							t.Errorf("%v: %v, want allowed %v", tc.g, err, tc.want)
						}
					}
				}
			}
		}
	}
}

func TestSettingsEqual(t *testing.T) {
	a, err := parse(t, `{"groups": ["ff05::1", "fd00::1@ff05::2", "fd00::2@ff05::2"]}`)
	if err != nil {
		t.Fatal(err)
	}
	for _, tc := range []struct {
		want bool
		text string
	}{
		{true, `{"groups": ["fd00::2@ff05::2", "ff05::1", "fd00::1@ff05::2", "fd00::2@ff05::2", "ff05::1"], "limits": {"groups": 5}}`},
		{false, `{}`},
		{false, `{"groups": ["ff05::1"]}`},
		{false, `{"groups": ["ff05::1", "ff05::2"]}`},
		{false, `{"groups": ["ff05::1", "fd00::1@ff05::2"]}`},
		{false, `{"groups": ["ff05::1", {"group": "ff05::2", "mode": "exclude", "sources": ["fd00::1", "fd00::2"]}]}`},
		{false, `{"groups": ["ff05::1", {"group": "ff05::2", "mode": "include", "sources": ["fd00::1", "fd00::2"], "deliver": false}]}`},
		{false, `{"groups": ["ff05::1", "fd00::1@ff05::2", "fd00::2@ff05::2"], "robustness": 3}`},
		{false, `{"groups": ["ff05::1", "fd00::1@ff05::2", "fd00::2@ff05::2"], "alwaysDone": true}`},
		{false, `{"groups": ["ff05::1", "fd00::1@ff05::2", "fd00::2@ff05::2"], "ready": {"timeout": "2s"}}`},
		{false, `{"groups": ["ff05::1", "fd00::1@ff05::2", "fd00::2@ff05::2"], "mldVersion": 2}`},
		{false, `{"groups": ["ff05::1", "fd00::1@ff05::2", "fd00::2@ff05::2"], "mldVersion": 1}`},
		{false, `{"groups": ["ff05::1", "fd00::1@ff05::2", "fd00::2@ff05::2"], "mldVersion": 1, "profile": "kame"}`},
		{false, `{"groups": ["ff05::1", "fd00::1@ff05::2", "fd00::2@ff05::2"], "kernelReports": "keep"}`},
		{false, `{"groups": ["ff05::1", "fd00::1@ff05::2", "fd00::2@ff05::2"], "unsolicitedReportInterval": "1s"}`},
	} {
		if o, err := parse(t, tc.text); err != nil || a.Equal(*o) != tc.want {
			t.Errorf("%s: equal to the first, want %v, or %v", tc.text, tc.want, err)
		}
	}
}

// TestValidateWantsNormalForm: nobody but ParseSettings has to deal with what is named twice.
func TestValidateWantsNormalForm(t *testing.T) {
	one, two := netip.MustParseAddr("ff05::1"), netip.MustParseAddr("ff05::2")
	x, y := netip.MustParseAddr("fd00::1"), netip.MustParseAddr("fd00::2")
	for _, tc := range []struct {
		groups []Group
		want   string // of the error
	}{
		{[]Group{{Addr: one}, {Addr: two, Mode: Include, Sources: []netip.Addr{x, y}}}, ""},
		{[]Group{{Addr: one}, {Addr: one}}, "groups[1]"},
		{[]Group{{Addr: one}, {Addr: one, Deliver: true}}, "groups[1]"},
		{[]Group{{Addr: two}, {Addr: one}}, "groups[1]"},
		{[]Group{{Addr: one, Mode: Include, Sources: []netip.Addr{y, x}}}, "source fd00::1 is named twice or not in order"},
		{[]Group{{Addr: one, Sources: []netip.Addr{x, x}}}, "source fd00::1 is named twice"},
		{[]Group{{Addr: one, Mode: 2, Sources: []netip.Addr{x}}}, "unknown mode 2"},
		{[]Group{{Addr: one, Mode: Include, Sources: []netip.Addr{{}}}}, "not an IPv6 address"},
	} {
		s := DefaultSettings()
		s.Groups = tc.groups
		switch err := s.Validate(); {
		case tc.want == "" && err != nil:
			t.Errorf("%v: %v", tc.groups, err)
		case tc.want != "" && (err == nil || err.Code != types.ErrInvalidNetworkConfig || !strings.Contains(err.Msg, tc.want)):
			t.Errorf("%v: error %v, want %q", tc.groups, err, tc.want)
		}
	}
}

func TestGroupString(t *testing.T) {
	for form, want := range map[string]string{
		`"ff05::8"`:                              "ff05::8",
		`{"group": "ff05::8", "deliver": false}`: "ff05::8 (deliver false)",
		`"fd00::1@ff3e::8000:1"`:                 "ff3e::8000:1 (include [fd00::1])",
		`{"group": "ff05::8", "mode": "exclude", "sources": ["fd00::2", "fd00::1"], "deliver": false}`: "ff05::8 (exclude [fd00::1 fd00::2], deliver false)",
	} {
		var g Group
		if err := json.Unmarshal([]byte(form), &g); err != nil || g.String() != want {
			t.Errorf("%s: %q, %v, want %q", form, g, err, want)
		}
	}
}

// FuzzParseSettings: no configuration panics, and what is accepted is valid, is in normal form and survives the wire.
func FuzzParseSettings(f *testing.F) {
	f.Add([]byte(`{}`))
	f.Add([]byte(`{"groups": ["ff05::8", {"group": "ff02::1:5", "deliver": false}], "mldVersion": "1", "profile": "kame",
		"robustness": 3, "unsolicitedReportInterval": "1.5s", "ready": {"wait": "none", "timeout": "1ns"}}`))
	f.Add([]byte(`{"groups": ["fd00::1@ff3e::8000:1", null, 1, {"group": "x"}], "limits": null}`))
	f.Add([]byte(`{"groups": ["fd00::2@ff3e::8000:1", "fd00::1@ff3e::8000:1", "fe80::1@ff02::1:3"], "mldVersion": 2,
		"limits": {"groups": 2, "sources": 2}}`))
	f.Add([]byte(`{"groups": [{"group": "ff05::8", "mode": "exclude", "sources": ["fd00::2", "fd00::1", "fd00::1"], "deliver": false},
		{"group": "ff05::9", "mode": "include", "sources": ["fd00::2"], "deliver": false}, {"group": "ff05::7", "mode": "exclude"}]}`))
	f.Fuzz(func(t *testing.T, data []byte) {
		var keys map[string]json.RawMessage
		if json.Unmarshal(data, &keys) != nil {
			return
		}
		s, e := ParseSettings(keys)
		if e != nil {
			if e.Code != types.ErrInvalidNetworkConfig || s != nil {
				t.Fatalf("error %v with code %d and settings %v", e, e.Code, s)
			}
			return
		}
		text, err := json.Marshal(s)
		if err != nil {
			t.Fatal(err)
		}
		var back Settings
		if err := json.Unmarshal(text, &back); err != nil {
			t.Fatalf("%s: %v", text, err)
		}
		if e := back.Validate(); e != nil {
			t.Fatalf("%s: %v", text, e)
		}
		if diff := cmp.Diff(s, &back, byAddr, cmpopts.EquateEmpty()); diff != "" || !s.Equal(back) {
			t.Fatalf("%s: %s", text, diff)
		}
		// What it was made to is a configuration that means the same.
		var again map[string]json.RawMessage
		if err := json.Unmarshal(text, &again); err != nil {
			t.Fatalf("%s: %v", text, err)
		}
		again["limits"] = json.RawMessage(`{"groups": 1000000, "sources": 1000000}`)
		if again["groups"] == nil || string(again["groups"]) == "null" {
			delete(again, "groups")
		}
		if o, e := ParseSettings(again); e != nil || !s.Equal(*o) {
			t.Fatalf("%s: %v, %v", text, o, e)
		}
	})
}
