package main

import (
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"testing"

	"github.com/containernetworking/cni/pkg/skel"
	"github.com/containernetworking/cni/pkg/types"

	"github.com/seed-aaab8e3a/cni-mld/plugin/api"
)

func parse(keys, cniArgs string) (*config, error) {
	return parseFor(api.OpAdd, keys, cniArgs)
}

func parseFor(op, keys, cniArgs string) (*config, error) {
	c, err := parseConfig(op, &skel.CmdArgs{ContainerID: "c1", IfName: "eth0", Args: cniArgs,
		StdinData: []byte(`{"cniVersion":"1.1.0","name":"lab","type":"mld"` + keys + `}`)})
	if err != nil {
		return nil, err
	}
	return c, nil
}

// TestForeignKeys are not ours, and no reason to refuse a configuration.
func TestForeignKeys(t *testing.T) {
	for _, keys := range []string{
		``,
		`,"cniVersions":["1.0.0","1.1.0"],"disableCheck":true,"disableGC":true,"loadOnlyInlinedPlugins":true`,
		`,"ipam":{},"dns":{"domain":"lab"},"cni.dev/valid-attachments":[],"cni.dev/attachments":[],"cni.dev/future":1`,
		`,"args":{"cni":{"ips":["10.0.0.1"]},"labels":[]},"deviceID":"0000:00:1f.6","pciBusID":"0000:00:1f.6"`,
		`,"args":[],"runtimeConfig":5`,
		`,"capabilities":{"portMappings":true,"mldGroups":false,"io.kubernetes.cri.pod-annotations":false}`,
		`,"capabilities":{"mldGroups":true,"io.kubernetes.cri.pod-annotations":true}`,
		`,"capabilities":{}`,
		`,"runtimeConfig":{"portMappings":[],"io.kubernetes.cri.pod-annotations":null,"mldGroups":null}`,
		`,"runtimeConfig":{"io.kubernetes.cri.pod-annotations":{"mld/Groups":"ff05::1","mld":{"groups":["x"]},"a":5,"b":null}}`,
		`,"runtimeConfig":{"io.kubernetes.cri.pod-annotations":{"mld/groups":""},"mldGroups":[]},"args":{"cni":{"mldGroups":[]}}`,
		`,"runtimeConfig":{"io.kubernetes.cri.pod-annotations":"mld/groups"},"args":{"cni":null}`,
		`,"args":{"mldGroups":["ff05::1"],"cni":[{"mldGroups":["ff05::1"]}]}`,
	} {
		c, err := parse(keys, "IgnoreUnknown=1;K8S_POD_NAME=a=b;MLD_GROUP=x;mld_groups=x;;MLD_GROUPS;MLD_GROUPS=")
		if err != nil {
			t.Errorf("%s: %v", keys, err)
			continue
		}
		if !c.settings.Equal(*api.DefaultSettings()) || !c.autostart || c.runDir != "/run/mld" {
			t.Errorf("%s: %+v", keys, c)
		}
	}
}

func TestOwnKeys(t *testing.T) {
	c, err := parse(`,"groups":["ff05::4321"],"runDir":"/run/lab","autostart":false`, "")
	if err != nil {
		t.Fatal(err)
	}
	if len(c.settings.Groups) != 1 || c.runDir != "/run/lab" || c.autostart {
		t.Errorf("%+v", c)
	}
}

// TestRefusedKeys: the text of each error names key, value and remedy. The settings have a table of their own in
// package api.
func TestRefusedKeys(t *testing.T) {
	for _, tc := range []struct {
		keys, args string
		texts      []string
	}{
		{`,"capabilities":{"mldGroup":true}`, "", []string{"capabilities.mldGroup: true: unknown key: known are mldGroups, io.kubernetes.cri.pod-annotations, "}},
		{`,"capabilities":{"mldGroups":"true"}`, "", []string{`capabilities.mldGroups: "true": must be true or false`}},
		{`,"capabilities":{"mldGroups":null}`, "", []string{"capabilities.mldGroups: null: must be true or false"}},
		{`,"capabilities":["mldGroups"]`, "", []string{`capabilities: ["mldGroups"]: must be an object`}},
		{`,"group":["ff05::1"]`, "", []string{"group:", `["ff05::1"]`, "unknown key", "groups"}},
		{`,"ipMasq":true`, "", []string{"ipMasq: true", "unknown key"}},
		{`,"cni.devs":1`, "", []string{"cni.devs: 1", "unknown key"}},
		{`,"robustness":9`, "", []string{"robustness: 9", "1 to 7"}},
		{`,"groups":["ff02::1@ff05::1"]`, "", []string{"groups[0]", `"ff02::1@ff05::1"`, "source ff02::1", "multicast"}},
		{`,"groups":["ff05::1","ff05::2"],"limits":{"groups":1}`, "", []string{"limits.groups: 1", "the 2 declared"}},
		{`,"allowedGroups":["fd00::/16"]`, "", []string{"allowedGroups[0]", "fd00::/16", "multicast prefix"}},
		{`,"annotation":""`, "", []string{`annotation: ""`, "mld/groups", "1 to 317"}},
		{`,"annotation":["mld/groups"]`, "", []string{`annotation: ["mld/groups"]`, "name"}},
		{`,"annotation":"` + strings.Repeat("x", 318) + `"`, "", []string{"annotation: ", "xxx", "317"}},
		{`,"runDir":"run/mld"`, "", []string{"runDir", `"run/mld"`, "absolute path"}},
		{`,"runDir":"/` + strings.Repeat("x", 100) + `"`, "", []string{"runDir", "xxx", "107 bytes"}},
		{`,"runDir":null`, "", []string{"runDir: null", "absolute path"}},
		{`,"autostart":"yes"`, "", []string{"autostart", `"yes"`, "true or false"}},
		{`,"autostart":null`, "", []string{"autostart: null", "true or false"}},
		{`,"runtimeConfig":{"mldGroups":["ff05::1","ff02::1"]}`, "", []string{`runtimeConfig.mldGroups[1]: "ff02::1"`, "all-nodes"}},
		{`,"runtimeConfig":{"io.kubernetes.cri.pod-annotations":{"mld/groups":"ff05::1,x"}}`, "",
			[]string{`runtimeConfig["io.kubernetes.cri.pod-annotations"]["mld/groups"][1]: "x"`, "not an IPv6 address"}},
		{`,"runtimeConfig":{"io.kubernetes.cri.pod-annotations":{"mld/groups":5}}`, "",
			[]string{`runtimeConfig["io.kubernetes.cri.pod-annotations"]["mld/groups"]: 5`, "must be a list"}},
		{`,"annotation":"a\"b","runtimeConfig":{"io.kubernetes.cri.pod-annotations":{"a\"b":"x"}}`, "",
			[]string{`["io.kubernetes.cri.pod-annotations"]["a\"b"][0]: "x"`}},
		{`,"args":{"cni":{"mldGroups":["ff3e::8000:1"]}}`, "", []string{`args.cni.mldGroups[0]: "ff3e::8000:1"`, "needs its sources"}},
		{``, "IgnoreUnknown=1;MLD_GROUPS=ff05::1,fd00::1", []string{`CNI_ARGS MLD_GROUPS[1]: "fd00::1"`, "not a multicast address"}},
		{`,"allowedGroups":["ff05::/16"],"runtimeConfig":{"mldGroups":["ff05::1","ff02::2"]}`, "",
			[]string{`runtimeConfig.mldGroups[1]: "ff02::2"`, "not in allowedGroups", "[ff05::/16]"}},
		{`,"allowedGroups":["ff05::/16"],"runtimeConfig":{"io.kubernetes.cri.pod-annotations":{"mld/groups":"ff02::2"}}`, "",
			[]string{`["mld/groups"][0]: "ff02::2"`, "not in allowedGroups"}},
		{`,"allowedGroups":["ff05::/16"],"args":{"cni":{"mldGroups":["ff02::2"]}}`, "", []string{`args.cni.mldGroups[0]: "ff02::2"`, "not in allowedGroups"}},
		{`,"allowedGroups":["ff05::/16"]`, "MLD_GROUPS=ff02::2", []string{`CNI_ARGS MLD_GROUPS[0]: "ff02::2"`, "not in allowedGroups"}},
		{`,"allowedGroups":[]`, "MLD_GROUPS=ff02::2", []string{`CNI_ARGS MLD_GROUPS[0]: "ff02::2"`, "allowedGroups is empty"}},
	} {
		_, err := parse(tc.keys, tc.args)
		if err == nil {
			t.Errorf("%s %s: accepted", tc.keys, tc.args)
			continue
		}
		for _, text := range tc.texts {
			if !strings.Contains(err.Error(), text) {
				t.Errorf("%s %s: error %q does not say %q", tc.keys, tc.args, err, text)
			}
		}
	}
}

// TestGroupsPerContainer has the places and what comes of them.
func TestGroupsPerContainer(t *testing.T) {
	const (
		network    = `,"groups":["ff05::1"]`
		capability = `"mldGroups":["ff05::2"]`
		pod        = `"io.kubernetes.cri.pod-annotations":{"mld/groups":"ff05::3, ff05::4","k8s.io/other":"x","mld/other":{}}`
		multus     = `,"args":{"cni":{"mldGroups":["ff05::5"],"ips":["fd00::1"]}}`
		nomad      = "NOMAD_JOB_ID=x;MLD_GROUPS=ff05::6;IgnoreUnknown=1"
	)
	for _, tc := range []struct {
		keys, args string
		want       string
		unheard    bool
	}{
		{network, "", "[ff05::1]", false},
		{`,"runtimeConfig":{` + capability + `}`, "", "[ff05::2]", false},
		{`,"runtimeConfig":{` + pod + `}`, "", "[ff05::3 ff05::4]", false},
		{multus, "", "[ff05::5]", false},
		{"", nomad, "[ff05::6]", false},
		{"", "MLD_GROUPS=fd00::1@ff3e::8000:1,ff05::6", "[ff05::6 ff3e::8000:1 (include [fd00::1])]", false},
		{"", `MLD_GROUPS=[{"group":"ff05::6","deliver":false}]`, "[ff05::6 (deliver false)]", false},
		{"", "MLD_GROUPS=ff05::6;MLD_GROUPS=ff05::7", "[ff05::6 ff05::7]", false},
		{network + `,"runtimeConfig":{` + capability + `,` + pod + `}` + multus, "", "[ff05::1 ff05::2 ff05::3 ff05::4 ff05::5]", false},
		{network + `,"runtimeConfig":{` + capability + `,` + pod + `}` + multus, nomad, "[ff05::1 ff05::2 ff05::3 ff05::4 ff05::5]", true},
		{network, nomad, "[ff05::1]", true},
		{network, "MLD_GROUPS=nonsense", "[ff05::1]", true},
		{network, "MLD_GROUPS=;MLD_GROUPS", "[ff05::1]", false},
		{`,"runtimeConfig":{` + capability + `}`, nomad, "[ff05::2]", true},
		{`,"runtimeConfig":{` + pod + `}`, nomad, "[ff05::3 ff05::4]", true},
		{multus, nomad, "[ff05::5]", true},
		{`,"groups":[],"runtimeConfig":{"mldGroups":[]},"args":{"cni":{"mldGroups":[]}}`, nomad, "[ff05::6]", false},
		{`,"annotation":"example.org/mcast","runtimeConfig":{"io.kubernetes.cri.pod-annotations":{"mld/groups":"x","example.org/mcast":"ff05::9"}}`,
			"", "[ff05::9]", false},
		{`,"allowedGroups":["ff05::/16"],"runtimeConfig":{` + pod + `}`, "", "[ff05::3 ff05::4]", false},
		{`,"allowedGroups":[],"groups":["ff02::9"]`, "", "[ff02::9]", false},
	} {
		c, err := parse(tc.keys, tc.args)
		if err != nil {
			t.Errorf("%s %s: %v", tc.keys, tc.args, err)
			continue
		}
		if got := fmt.Sprint(c.settings.Groups); got != tc.want || c.unheard != tc.unheard {
			t.Errorf("%s %s: %s, want %s; CNI_ARGS unheard %v, want %v", tc.keys, tc.args, got, tc.want, c.unheard, tc.unheard)
		}
		// CHECK and STATUS look at the network's part alone, which an ADD covers.
		for _, op := range []string{api.OpCheck, api.OpStatus} {
			n, err := parseFor(op, tc.keys, tc.args)
			if err != nil || !c.settings.Covers(*n.settings) || slices.ContainsFunc(n.settings.Groups, func(g api.Group) bool {
				return g.Addr != netip.MustParseAddr("ff05::1") && g.Addr != netip.MustParseAddr("ff02::9")
			}) {
				t.Errorf("%s of %s %s: %+v, %v", op, tc.keys, tc.args, n, err)
			}
		}
	}
}

// FuzzParseValid: what is accepted of a GC's list is a valid request.
func FuzzParseValid(f *testing.F) {
	f.Add([]byte(`[{"containerID":"c1","ifname":"eth0"},{"containerID":"c2","ifname":"e@1","network":"x"}]`))
	f.Add([]byte(`[null,{"containerID":"../c1"},5]`))
	f.Add([]byte(`null`))
	f.Fuzz(func(t *testing.T, raw []byte) {
		valid, err := parseValid("lab", raw)
		if err != nil {
			var e *types.Error
			if !errors.As(err, &e) || e.Code != types.ErrInvalidNetworkConfig || valid != nil {
				t.Fatalf("%v, %v", valid, err)
			}
			return
		}
		r := &api.Request{Op: api.OpGC, Attachment: api.Attachment{Network: "lab"}, Valid: valid}
		if err := r.Validate(); err != nil {
			t.Fatal(err)
		}
	})
}

// FuzzParseConfig: no configuration and no CNI_ARGS panic, errors are of the configuration, and CHECK takes what ADD has
// taken.
func FuzzParseConfig(f *testing.F) {
	f.Add([]byte(`{"cniVersion":"1.1.0","name":"lab","groups":["ff05::1"],"annotation":"a","runDir":"/run/x","autostart":false,
		"runtimeConfig":{"mldGroups":["ff05::2"],"io.kubernetes.cri.pod-annotations":{"a":"ff05::3"}},"args":{"cni":{"mldGroups":"ff05::4"}}}`),
		"IgnoreUnknown=1;MLD_GROUPS=ff05::5")
	f.Add([]byte(`{"cniVersion":"1.1.0","name":"lab","allowedGroups":["ff05::/16"],"cni.dev/x":1,"capabilities":{"dns":true}}`), "MLD_GROUPS=fd00::1@ff05::5;;=;MLD_GROUPS=[]")
	f.Add([]byte(`{"name":null,"args":[],"runtimeConfig":{"io.kubernetes.cri.pod-annotations":[]}}`), "MLD_GROUPS")
	f.Fuzz(func(t *testing.T, stdin []byte, cniArgs string) {
		args := &skel.CmdArgs{ContainerID: "c1", IfName: "eth0", Args: cniArgs, StdinData: stdin}
		c, err := parseConfig(api.OpAdd, args)
		if err != nil {
			if err.Code != types.ErrInvalidNetworkConfig && err.Code != types.ErrDecodingFailure {
				t.Fatalf("code %d: %v", err.Code, err)
			}
			return
		}
		if err := c.settings.Validate(); err != nil {
			t.Fatal(err)
		}
		n, err := parseConfig(api.OpCheck, args)
		if err != nil || !c.settings.Covers(*n.settings) {
			t.Fatalf("ADD %+v, CHECK %+v, %v", c.settings, n, err)
		}
	})
}
