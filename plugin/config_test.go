package main

import (
	"strings"
	"testing"

	"github.com/containernetworking/cni/pkg/skel"

	"github.com/seed-aaab8e3a/cni-mld/plugin/api"
)

func parse(keys, cniArgs string) (*config, error) {
	c, err := parseConfig(&skel.CmdArgs{ContainerID: "c1", IfName: "eth0", Args: cniArgs,
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
		`,"runtimeConfig":{"portMappings":[],"io.kubernetes.cri.pod-annotations":{"mld/groups":"ff05::1"}}`,
	} {
		c, err := parse(keys, "IgnoreUnknown=1;K8S_POD_NAME=a=b;MLD_GROUP=x")
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
		{`,"group":["ff05::1"]`, "", []string{"group:", `["ff05::1"]`, "unknown key", "groups"}},
		{`,"ipMasq":true`, "", []string{"ipMasq: true", "unknown key"}},
		{`,"cni.devs":1`, "", []string{"cni.devs: 1", "unknown key"}},
		{`,"robustness":9`, "", []string{"robustness: 9", "1 to 7"}},
		{`,"groups":["ff02::1@ff05::1"]`, "", []string{"groups[0]", `"ff02::1@ff05::1"`, "source ff02::1", "multicast"}},
		{`,"groups":["ff05::1","ff05::2"],"limits":{"groups":1}`, "", []string{"limits.groups: 1", "2 groups"}},
		{`,"allowedGroups":["ff05::/16"]`, "", []string{"allowedGroups", "ff05::/16", "not built yet"}},
		{`,"annotation":"mld/groups"`, "", []string{"annotation", "mld/groups", "not built yet"}},
		{`,"runDir":"run/mld"`, "", []string{"runDir", `"run/mld"`, "absolute path"}},
		{`,"runDir":"/` + strings.Repeat("x", 100) + `"`, "", []string{"runDir", "xxx", "107 bytes"}},
		{`,"runDir":null`, "", []string{"runDir: null", "absolute path"}},
		{`,"autostart":"yes"`, "", []string{"autostart", `"yes"`, "true or false"}},
		{`,"autostart":null`, "", []string{"autostart: null", "true or false"}},
		{`,"capabilities":{"mldGroups":true}`, "", []string{"capabilities.mldGroups: true", "not built yet", "key groups"}},
		{`,"capabilities":{"io.kubernetes.cri.pod-annotations":true}`, "",
			[]string{"capabilities.io.kubernetes.cri.pod-annotations: true", "not built yet"}},
		{`,"runtimeConfig":{"mldGroups":["ff05::1"]}`, "", []string{"runtimeConfig.mldGroups", "ff05::1", "not built yet"}},
		{`,"args":{"cni":{"mldGroups":["ff05::1"]}}`, "", []string{"args.cni.mldGroups", "ff05::1", "not built yet"}},
		{``, "IgnoreUnknown=1;MLD_GROUPS=ff05::1", []string{"CNI_ARGS MLD_GROUPS", "ff05::1", "not built yet"}},
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
