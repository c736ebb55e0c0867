package api

import (
	"encoding/json"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"testing"

	"github.com/containernetworking/cni/pkg/types"
	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
)

// parseAsked is ParseSettings for a network's keys and what a container asks for in as many places.
func parseAsked(t testing.TB, text string, asked ...string) (*Settings, *types.Error) {
	t.Helper()
	var keys map[string]json.RawMessage
	if err := json.Unmarshal([]byte(text), &keys); err != nil {
		t.Fatalf("test data %s: %v", text, err)
	}
	var places []Asked
	for i, raw := range asked {
		places = append(places, Asked{Place: fmt.Sprintf("place%d", i), Groups: json.RawMessage(raw)})
	}
	return ParseSettings(keys, places...)
}

// TestAsked has each result as the groups of a network that asks for the same by itself.
func TestAsked(t *testing.T) {
	for _, tc := range []struct {
		name, keys string
		asked      []string
		want       string
	}{
		{"a list", `{}`, []string{`["ff05::1", {"group": "ff05::2", "deliver": false}]`}, `["ff05::1", {"group": "ff05::2", "deliver": false}]`},
		{"text", `{}`, []string{`"ff05::1,fd00::1@ff3e::8000:1"`}, `["ff05::1", "fd00::1@ff3e::8000:1"]`},
		{"text with space", `{}`, []string{`"\n ff05::1 ,\tfd00::1@ff3e::8000:1\n"`}, `["ff05::1", "fd00::1@ff3e::8000:1"]`},
		{"a list as text", `{}`, []string{`" [\"ff05::1\", {\"group\": \"ff05::2\", \"deliver\": false}]\n"`},
			`["ff05::1", {"group": "ff05::2", "deliver": false}]`},
		{"nothing", `{"groups": ["ff05::1"]}`, []string{`null`, `""`, `" \n"`, `[]`, `"[]"`, `" [ ] "`}, `["ff05::1"]`},
		{"places add up", `{"groups": ["ff05::3"]}`, []string{`"ff05::1"`, `["ff05::4"]`, `"ff05::2"`},
			`["ff05::1", "ff05::2", "ff05::3", "ff05::4"]`},
		{"the same everywhere", `{"groups": ["fd00::1@ff05::1"]}`, []string{`"fd00::1@ff05::1"`, `["fd00::1@ff05::1"]`}, `["fd00::1@ff05::1"]`},
		{"sources add up", `{"groups": ["fd00::3@ff3e::8000:1", "fd00::1@ff3e::8000:1"]}`, []string{`"fd00::2@ff3e::8000:1"`},
			`["fd00::1@ff3e::8000:1", "fd00::2@ff3e::8000:1", "fd00::3@ff3e::8000:1"]`},
		{"any source beats a list", `{"groups": ["fd00::1@ff05::1", "ff05::2"]}`, []string{`"ff05::1, fd00::1@ff05::2"`}, `["ff05::1", "ff05::2"]`},
		{"excluded is what both exclude", `{"groups": [{"group": "ff05::1", "mode": "exclude", "sources": ["fd00::1", "fd00::2"]}]}`,
			[]string{`[{"group": "ff05::1", "mode": "exclude", "sources": ["fd00::2", "fd00::3"]}]`},
			`[{"group": "ff05::1", "mode": "exclude", "sources": ["fd00::2"]}]`},
		{"excluded and not included", `{"groups": [{"group": "ff05::1", "mode": "exclude", "sources": ["fd00::1", "fd00::2"]}]}`,
			[]string{`"fd00::2@ff05::1"`}, `[{"group": "ff05::1", "mode": "exclude", "sources": ["fd00::1"]}]`},
		{"included and not excluded", `{"groups": ["fd00::2@ff05::1"]}`,
			[]string{`[{"group": "ff05::1", "mode": "exclude", "sources": ["fd00::1", "fd00::2"]}]`},
			`[{"group": "ff05::1", "mode": "exclude", "sources": ["fd00::1"]}]`},
		{"delivery beats none", `{"groups": [{"group": "ff05::1", "deliver": false}, "ff05::2"]}`,
			[]string{`["ff05::1", {"group": "ff05::2", "deliver": false}]`}, `["ff05::1", "ff05::2"]`},
		{"no delivery twice", `{"groups": [{"group": "ff05::1", "deliver": false}]}`, []string{`[{"group": "ff05::1", "deliver": false}]`},
			`[{"group": "ff05::1", "deliver": false}]`},
		{"allowed", `{"groups": ["ff02::9"], "allowedGroups": ["ff05::/16", "ff02::8/128"]}`, []string{`"ff05::1"`, `["ff02::8"]`},
			`["ff02::8", "ff02::9", "ff05::1"]`},
		{"nothing allowed and nothing asked for", `{"groups": ["ff02::9"], "allowedGroups": []}`, []string{`""`, `null`, `[]`}, `["ff02::9"]`},
		{"a limit that is reached", `{"groups": ["ff02::9"], "limits": {"groups": 2, "sources": 2}}`, []string{`"fd00::1@ff05::1"`, `["fd00::2@ff05::1", "ff02::9"]`},
			`["ff02::9", "fd00::1@ff05::1", "fd00::2@ff05::1"]`},
	} {
		t.Run(tc.name, func(t *testing.T) {
			got, err := parseAsked(t, tc.keys, tc.asked...)
			if err != nil {
				t.Fatal(err)
			}
			want, err := parseAsked(t, `{"groups": `+tc.want+`}`)
			if err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(want, got, byAddr, cmpopts.EquateEmpty()); diff != "" {
				t.Error(diff)
			}
			network, err := parseAsked(t, tc.keys)
			if err != nil || !got.Covers(*network) {
				t.Errorf("%v does not cover its network's %v, or %v", got.Groups, network, err)
			}
		})
	}
}

// TestAskedRefuses: the text of each error names place, value and remedy.
func TestAskedRefuses(t *testing.T) {
	long := `"` + strings.Repeat("ff05::1,", MaxAsked/8) + `"`
	for _, tc := range []struct {
		rule, keys, asked string
		wants             []string
	}{
		{"", `{}`, `5`, []string{"place0: 5", "must be a list", "text such as"}},
		{"", `{}`, `{"group": "ff05::1"}`, []string{"place0: {", "must be a list"}},
		{"", `{}`, `"{\"group\": \"ff05::1\"}"`, []string{"place0: ", "must be a list"}},
		{"", `{}`, `"\"ff05::1\",\"ff05::2\""`, []string{"place0: ", "must be a list"}},
		{"", `{}`, `"[\"ff05::1\""`, []string{"place0: ", "must be a list"}},
		{"", `{}`, `"ff05::1,"`, []string{`place0[1]: ""`, "not an IPv6 address"}},
		{"", `{}`, `"ff05::1 ff05::2"`, []string{`place0: "ff05::1 ff05::2": must be a list`}},
		{"", `{}`, `"ff05::1,hello"`, []string{`place0[1]: "hello"`, "not an IPv6 address"}},
		{"", `{}`, `"ff05::1; ff05::2"`, []string{`place0: "ff05::1; ff05::2": must be a list`, `"ff05::4321, fd00:1::10@ff3e::8000:1"`}},
		{"", `{}`, `["ff05::1", "10.0.0.1@ff05::2"]`, []string{`place0[1]: "10.0.0.1@ff05::2"`, "source 10.0.0.1"}},
		{"V1-22", `{}`, `"ff05::1,ff02::1"`, []string{`place0[1]: "ff02::1"`, "all-nodes"}},
		{"V1-23", `{}`, `"ff01::5"`, []string{`place0[0]: "ff01::5"`, "scope 1"}},
		{"V2-75", `{"groups": ["fd00::1@ff3e::8000:1"]}`, `"ff3e::8000:1"`, []string{`place0[0]: "ff3e::8000:1"`, "needs its sources"}},
		{"", `{}`, `["ff05::1", {"group": "ff05::1", "deliver": false}]`, []string{"place0[1]: {", "contradicts place0[0]"}},
		{"", `{}`, long, []string{"place0: ", fmt.Sprint(MaxAsked), "fewer groups"}},
		{"", `{"allowedGroups": ["ff05::/16", "ff02::8/128"]}`, `"ff05::1, ff02::9"`,
			[]string{`place0[1]: "ff02::9"`, "not in allowedGroups", "[ff05::/16 ff02::8/128]", "ask for a group that is"}},
		{"", `{"allowedGroups": ["ff05::/16"]}`, `["fd00::1@ff3e::8000:1"]`, []string{`place0[0]: "fd00::1@ff3e::8000:1"`, "not in allowedGroups"}},
		{"", `{"allowedGroups": ["ff05::/16"]}`, `"ff15::1"`, []string{`place0[0]: "ff15::1"`, "not in allowedGroups"}},
		{"", `{"groups": ["ff05::1"], "allowedGroups": []}`, `"ff05::1"`, []string{`place0[0]: "ff05::1"`, "allowedGroups is empty", "remove it"}},
		{"V2-72", `{"groups": ["ff05::1", "ff05::2"], "limits": {"groups": 2}}`, `"ff05::3"`, []string{"limits.groups: 2", "the 3 declared"}},
		{"V2-72", `{"groups": ["fd00::1@ff05::1"], "limits": {"sources": 1}}`, `"fd00::2@ff05::1"`, []string{"limits.sources: 1", "ff05::1", "2 sources"}},

		{"", `{"allowedGroups": null}`, `null`, []string{"allowedGroups: null", "must be a list", "ff05::/16"}},
		{"", `{"allowedGroups": "ff05::/16"}`, `null`, []string{`allowedGroups: "ff05::/16"`, "must be a list"}},
		{"", `{"allowedGroups": [5]}`, `null`, []string{"allowedGroups: [5]", "must be a list"}},
		{"", `{"allowedGroups": ["ff05::/16", "ff05::1"]}`, `null`, []string{`allowedGroups[1]: "ff05::1"`, "not an IPv6 prefix", "/128"}},
		{"", `{"allowedGroups": ["ff02::%eth0/16"]}`, `null`, []string{`allowedGroups[0]: "ff02::%eth0/16"`, "not an IPv6 prefix"}},
		{"", `{"allowedGroups": ["fd00::/8"]}`, `null`, []string{`allowedGroups[0]: "fd00::/8"`, "not an IPv6 multicast prefix"}},
		{"", `{"allowedGroups": ["ff00::/7"]}`, `null`, []string{`allowedGroups[0]: "ff00::/7"`, "not an IPv6 multicast prefix", "ff00::/8"}},
		{"", `{"allowedGroups": ["::/0"]}`, `null`, []string{`allowedGroups[0]: "::/0"`, "ff00::/8"}},
		{"", `{"allowedGroups": ["239.0.0.0/8"]}`, `null`, []string{`allowedGroups[0]: "239.0.0.0/8"`, "not an IPv6 multicast prefix"}},
		{"", `{"allowedGroups": ["ff05::1/16"]}`, `null`, []string{`allowedGroups[0]: "ff05::1/16"`, "behind its 16 bits", "ff05::/16", "ff05::1/128"}},
		{"", `{"allowedGroups": ["ff05::/16"` + strings.Repeat(`, "ff05::/16"`, MaxAllowedGroups) + `]}`, `null`, []string{"allowedGroups: ", "1001 prefixes", "1000"}},
	} {
		t.Run(tc.keys[:min(len(tc.keys), 80)]+" "+tc.asked[:min(len(tc.asked), 80)], func(t *testing.T) {
			s, err := parseAsked(t, tc.keys, tc.asked)
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
			if len(err.Msg) > 1000 {
				t.Errorf("the error has %d bytes", len(err.Msg))
			}
		})
	}
}

// TestV2_16_UnionIsThatOfSockets tries every pair of filters over three sources: what is wanted of a source together is
// what one of the two wants.
func TestV2_16_UnionIsThatOfSockets(t *testing.T) {
	addr := netip.MustParseAddr("ff05::1")
	sources := []netip.Addr{netip.MustParseAddr("fd00::1"), netip.MustParseAddr("fd00::2"), netip.MustParseAddr("fd00::3")}
	var all []Group
	for _, mode := range []Mode{Exclude, Include} {
		for set := range 1 << len(sources) {
			g := Group{Addr: addr, Mode: mode}
			for i, s := range sources {
				if set&(1<<i) != 0 {
					g.Sources = append(g.Sources, s)
				}
			}
			if g.Validate() == nil {
				all = append(all, g)
			}
		}
	}
	wants := func(g Group, s netip.Addr) bool { return slices.Contains(g.Sources, s) == (g.Mode == Include) }
	for _, a := range all {
		for _, b := range all {
			got := union([]Group{a}, []Group{b})
			if len(got) != 1 || got[0].Validate() != nil {
				t.Fatalf("%v and %v: %v", a, b, got)
			}
			for _, s := range append(sources, netip.MustParseAddr("fd00::4")) {
				if want := wants(a, s) || wants(b, s); wants(got[0], s) != want {
					t.Errorf("%v and %v: %v, of %v want %v", a, b, got[0], s, want)
				}
			}
			if a.Mode == Include && b.Mode == Include && got[0].Mode == Exclude {
				t.Errorf("%v and %v: %v", a, b, got[0])
			}
		}
	}
}

func TestCovers(t *testing.T) {
	a, err := parse(t, `{"groups": ["ff05::1", "fd00::1@ff05::2", "fd00::2@ff05::2", {"group": "ff05::3", "deliver": false}]}`)
	if err != nil {
		t.Fatal(err)
	}
	for text, want := range map[string]bool{
		`{}`:                                                             true,
		`{"groups": ["ff05::1"]}`:                                        true,
		`{"groups": ["fd00::1@ff05::1"]}`:                                true,
		`{"groups": ["fd00::2@ff05::2"]}`:                                true,
		`{"groups": ["fd00::3@ff05::2"]}`:                                false,
		`{"groups": ["ff05::2"]}`:                                        false,
		`{"groups": ["ff05::3"]}`:                                        false, // with delivery
		`{"groups": ["ff05::4"]}`:                                        false,
		`{"groups": [{"group": "ff05::1", "deliver": false}]}`:           true,
		`{"groups": [{"group": "ff05::3", "deliver": false}]}`:           true,
		`{"groups": ["ff05::1"], "limits": {"groups": 1}}`:               true,
		`{"groups": ["ff05::1"], "mldVersion": 2}`:                       false,
		`{"robustness": 3}`:                                              false,
		`{"ready": {"wait": "none"}}`:                                    false,
		`{"groups": ["ff05::1"], "unsolicitedReportInterval": "1s"}`:     false,
		`{"groups": ["ff05::1"], "kernelReports": "keep"}`:               false,
		`{"groups": ["ff05::1"], "allowedGroups": [], "robustness": 2 }`: true,
	} {
		o, err := parse(t, text)
		if err != nil || a.Covers(*o) != want {
			t.Errorf("%s: want covered %v, or %v", text, want, err)
		}
	}
}

// FuzzAsked: nothing that a container asks for panics or gets past allowedGroups, and together with the network's own
// it is in normal form and covers them.
func FuzzAsked(f *testing.F) {
	const network = `{"groups": ["ff02::9", "fd00::1@ff05::8", {"group": "ff05::9", "mode": "exclude", "sources": ["fd00::1", "fd00::2"]}],
		"allowedGroups": ["ff05::/16", "ff3e::/32"], "limits": {"groups": 1000000, "sources": 1000000}}`
	f.Add(`ff05::1, fd00::1@ff3e::8000:1`)
	f.Add(` ["ff05::8", {"group": "ff05::9", "mode": "include", "sources": ["fd00::2"], "deliver": false}] `)
	f.Add(`[{"group": "ff05::9", "mode": "exclude", "sources": ["fd00::2", "fd00::3"]}, null, 5, [], {}]`)
	f.Add(`{"group": "ff05::1"},ff02::1,,@,ff05::%eth0`)
	f.Fuzz(func(t *testing.T, text string) {
		own, err := parse(t, network)
		if err != nil {
			t.Fatal(err)
		}
		asText, jsonErr := json.Marshal(text)
		if jsonErr != nil {
			t.Fatal(jsonErr)
		}
		forms := []string{string(asText)}
		if json.Valid([]byte(text)) {
			forms = append(forms, strings.TrimSpace(text)) // as it is in a decoded object
		}
		for _, form := range forms {
			s, err := parseAsked(t, network, form)
			if err != nil {
				if err.Code != types.ErrInvalidNetworkConfig || !strings.HasPrefix(err.Msg, "place0") {
					t.Fatalf("%s: error %v with code %d", form, err, err.Code)
				}
				continue
			}
			if err := s.Validate(); err != nil {
				t.Fatalf("%s: %v", form, err)
			}
			if !s.Covers(*own) {
				t.Fatalf("%s: %v does not cover %v", form, s.Groups, own.Groups)
			}
			for _, g := range s.Groups {
				b := g.Addr.As16()
				inNetwork := slices.ContainsFunc(own.Groups, func(o Group) bool { return o.Equal(g) })
				if !inNetwork && b[1] != 0x05 && [4]byte(b[:4]) != [4]byte{0xff, 0x3e} {
					t.Fatalf("%s: %v is not allowed", form, g)
				}
			}
		}
	})
}

// FuzzAllowedGroups: what is accepted is multicast, and lets in what begins like it and nothing else.
func FuzzAllowedGroups(f *testing.F) {
	f.Add("ff05::/16", []byte{0xff, 0x05, 15: 1})
	f.Add("ff05::1/128", []byte{0xff, 0x05, 15: 1})
	f.Add("::ffff:239.0.0.0/104", []byte{0xff})
	f.Add("ff02::%1/16", []byte{0xff, 0x02})
	f.Fuzz(func(t *testing.T, text string, octets []byte) {
		raw, err := json.Marshal([]string{text})
		if err != nil {
			t.Fatal(err)
		}
		l, e := parseAllowed(raw)
		if e != nil {
			if e.Code != types.ErrInvalidNetworkConfig || l != nil {
				t.Fatalf("error %v with code %d and list %v", e, e.Code, l)
			}
			return
		}
		var a [16]byte
		copy(a[:], octets)
		p := l[0].Addr().As16()
		same := true
		for i := range l[0].Bits() {
			bit := byte(0x80 >> (i % 8))
			same = same && a[i/8]&bit == p[i/8]&bit
		}
		if p[0] != 0xff || l[0].Bits() < 8 || (l.check(Group{Addr: netip.AddrFrom16(a)}) == nil) != same {
			t.Fatalf("%q: %v, of %v want %v", text, l, netip.AddrFrom16(a), same)
		}
	})
}
