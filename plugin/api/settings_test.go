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
	group := func(a string, deliver bool) Group { return Group{netip.MustParseAddr(a), deliver} }
	for _, tc := range []struct {
		name, text string
		want       *Settings
	}{
		{"defaults", `{}`, &Settings{MLDVersion: 1, Profile: "rfc", KernelReports: "auto", Robustness: 2,
			UnsolicitedReportInterval: Duration(10 * time.Second), Ready: Ready{"auto", Duration(time.Second)}}},
		{"every key", `{"groups": ["ff05::4321"], "mldVersion": 1, "profile": "rfc", "kernelReports": "mute",
			"robustness": 7, "unsolicitedReportInterval": "1s", "alwaysDone": true,
			"ready": {"wait": "mdb", "timeout": "60s"}}`,
			&Settings{[]Group{group("ff05::4321", true)}, 1, "rfc", "mute", 7, Duration(time.Second), true,
				Ready{"mdb", Duration(time.Minute)}}},
		{"version as a string", `{"mldVersion": "1"}`, DefaultSettings()},
		{"kame", `{"profile": "kame"}`, with(func(s *Settings) { s.Profile = "kame" })},
		{"half of ready", `{"ready": {"wait": "none"}}`, with(func(s *Settings) { s.Ready.Wait = "none" })},
		{"groups are sorted and named once",
			`{"groups": ["ff05::8", {"group": "ff02:0:0::1:5", "deliver": false}, "FF05::8", {"group": "ff05::8"}]}`,
			with(func(s *Settings) { s.Groups = []Group{group("ff02::1:5", false), group("ff05::8", true)} })},
		{"ff3x that is not source-specific", `{"groups": ["ff35:40:fd00:1::1"]}`,
			with(func(s *Settings) { s.Groups = []Group{group("ff35:40:fd00:1::1", true)} })},
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
		{"", `{"limits": {"groups": 1}}`, []string{"limits", `{"groups":1}`, "not built yet"}},
		{"", `{"allowedGroups": []}`, []string{"allowedGroups", "not built yet"}},
		{"", `{"annotation": "mld/groups"}`, []string{"annotation", "not built yet"}},
		{"", `{"mldVersion": 2}`, []string{"mldVersion: 2", "MLDv2 is not built yet", "use 1"}},
		{"", `{"mldVersion": "2"}`, []string{"mldVersion", `"2"`, "MLDv2 is not built yet"}},
		{"", `{"mldVersion": "auto"}`, []string{"mldVersion", `"auto"`, "MLDv2 is not built yet"}},
		{"", `{"mldVersion": 3}`, []string{"mldVersion: 3", "must be 1"}},
		{"", `{"mldVersion": null}`, []string{"mldVersion: null"}},
		{"", `{"profile": "bsd"}`, []string{"profile", `"bsd"`, `"kame"`}},
		{"", `{"profile": null}`, []string{"profile: null"}},
		{"", `{"profile": "kame", "alwaysDone": true}`, []string{"alwaysDone: true", `"kame"`, "leave alwaysDone out"}},
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
		{"", `{"groups": ["ff3e::8000:1"]}`, []string{"groups[0]", `"ff3e::8000:1"`, "source-specific", "MLDv2"}},
		{"", `{"groups": ["fd00:1::10@ff3e::8000:1"]}`, []string{"groups[0]", "fd00:1::10@", "sources need MLDv2"}},
		{"", `{"groups": [{"group": "ff05::8", "sources": ["fd00::1"]}]}`, []string{"groups[0]", "sources need MLDv2"}},
		{"", `{"groups": [{"group": "ff05::8", "mode": "exclude"}]}`, []string{"groups[0]", "exclude", "MLDv2"}},
		{"", `{"groups": [{"group": "ff05::8", "delivery": true}]}`, []string{"groups[0]", "delivery", "group and deliver"}},
		{"", `{"groups": [{"deliver": true}]}`, []string{"groups[0]", "no key group"}},
		{"", `{"groups": ["ff05::8", {"group": "ff05::8", "deliver": false}]}`, []string{"groups", "ff05::8", "true and false"}},
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

// TestV1_22_V1_23_GroupsAgreeWithTheCodec: what may be declared is what the protocol may report, less the
// source-specific range.
func TestV1_22_V1_23_GroupsAgreeWithTheCodec(t *testing.T) {
	for flags := range 16 {
		for scope := range 16 {
			for _, tail := range []byte{1, 2} {
				for _, prefix := range []byte{0, 0x40} {
					addr := netip.AddrFrom16([16]byte{0: 0xff, 1: byte(flags<<4 | scope), 3: prefix, 15: tail})
					want := mld.Reportable(addr) && !netip.MustParsePrefix("ff30::/12").Contains(addr)
					if flags == 3 && prefix != 0 {
						want = mld.Reportable(addr)
					}
					if err := (Group{Addr: addr}).Validate(); (err == nil) != want {
						t.Errorf("%v: %v, want allowed %v", addr, err, want)
					}
				}
			}
		}
	}
}

func TestSettingsEqual(t *testing.T) {
	a, err := parse(t, `{"groups": ["ff05::1", "ff05::2"]}`)
	if err != nil {
		t.Fatal(err)
	}
	b := *a
	b.Groups = []Group{a.Groups[1], a.Groups[0], a.Groups[1]}
	if !a.Equal(b) {
		t.Error("the order and repetition of groups makes settings differ")
	}
	for _, text := range []string{`{}`, `{"groups": ["ff05::1"]}`,
		`{"groups": ["ff05::1", {"group": "ff05::2", "deliver": false}]}`,
		`{"groups": ["ff05::1", "ff05::2"], "robustness": 3}`, `{"groups": ["ff05::1", "ff05::2"], "alwaysDone": true}`,
		`{"groups": ["ff05::1", "ff05::2"], "ready": {"timeout": "2s"}}`,
		`{"groups": ["ff05::1", "ff05::2"], "profile": "kame"}`,
		`{"groups": ["ff05::1", "ff05::2"], "kernelReports": "keep"}`,
		`{"groups": ["ff05::1", "ff05::2"], "unsolicitedReportInterval": "1s"}`,
	} {
		if o, err := parse(t, text); err != nil || a.Equal(*o) {
			t.Errorf("%s: equal to the first, or %v", text, err)
		}
	}
}

// FuzzParseSettings: no configuration panics, and what is accepted is valid, is in normal form and survives the wire.
func FuzzParseSettings(f *testing.F) {
	f.Add([]byte(`{}`))
	f.Add([]byte(`{"groups": ["ff05::8", {"group": "ff02::1:5", "deliver": false}], "mldVersion": "1", "profile": "kame",
		"robustness": 3, "unsolicitedReportInterval": "1.5s", "ready": {"wait": "none", "timeout": "1ns"}}`))
	f.Add([]byte(`{"groups": ["fd00::1@ff3e::8000:1", null, 1, {"group": "x"}], "limits": null}`))
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
	})
}
