package e2e

import (
	"encoding/json"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/seed-aaab8e3a/cni-mld/e2e/chain"
	"github.com/seed-aaab8e3a/cni-mld/plugin/api"
)

// What a container asks for is forwarded like what its network declares, and CHECK proves it, though it is not told again
// what the container has asked for.
func TestGroupsPerContainer(t *testing.T) {
	t.Parallel()
	s := newSegment(t, quiet, nil)
	const network = `{"groups": ["ff05::a"], "allowedGroups": ["ff05::/16"], "ready": {"wait": "mdb", "timeout": "20s"}, "robustness": 1`
	for name, asked := range map[string]struct{ keys, args string }{
		"capability": {`, "runtimeConfig": {"mldGroups": ["ff05::b"]}`, ""},
		"annotation": {`, "runtimeConfig": {"io.kubernetes.cri.pod-annotations": {"mld/groups": "ff05::b", "other": "x"}}`, ""},
		"cni-args":   {`, "args": {"cni": {"mldGroups": [{"group": "ff05::b", "deliver": false}]}}`, ""},
		"CNI_ARGS":   {"", "K8S_POD_NAME=x;MLD_GROUPS=ff05::a,ff05::b;IgnoreUnknown=1"},
	} {
		t.Run(name, func(t *testing.T) {
			own := network
			if asked.args != "" { // which counts only where nothing else names a group
				own = strings.Replace(own, `["ff05::a"]`, `[]`, 1)
			}
			keys := func(text string) map[string]any {
				var keys map[string]any
				if err := json.Unmarshal([]byte(text+"}"), &keys); err != nil {
					t.Fatal(err)
				}
				return speaking(keys)
			}
			c := s.connect(name)
			call := chain.Call{Command: "ADD", ContainerID: name, Netns: c.Path(), MLD: keys(own + asked.keys), Args: asked.args}
			if _, err := s.chain.Run(t.Context(), call); err != nil {
				t.Fatalf("ADD: %v", err)
			}
			for _, group := range []netip.Addr{groupA, groupB} {
				if !s.inMDB(group, c) {
					t.Errorf("the bridge has no entry for %v", group)
				}
			}
			if holds := c.kernelHolds(groupB); holds != (name != "cni-args") {
				t.Errorf("the container's kernel holds %v: %v", groupB, holds)
			}
			if code, text := s.call("CHECK", c, keys(own)); code != 0 {
				t.Errorf("CHECK: code %d (%s)", code, text)
			}
			// The bridge asked when the port came up. Nothing of the answer may be due when the entry goes.
			asked := time.Now()
			s.query(general, 100*time.Millisecond)
			s.waitSent(c, asked, report, groupB, 1)
			s.run("bridge", "mdb", "del", "dev", "cni0", "port", c.eth0.Peer().Name(), "grp", groupB.String())
			if code, text := s.call("CHECK", c, keys(own)); code != api.CodeNotReady || !strings.Contains(text, groupB.String()) {
				t.Errorf("CHECK without the bridge's entry: code %d (%s), want %d", code, text, api.CodeNotReady)
			}
			other := strings.Replace(own, `"groups": [`, `"groups": ["ff05::c", `, 1)
			if code, text := s.call("CHECK", c, keys(strings.Replace(other, ", ]", "]", 1))); code != api.CodeNotReady {
				t.Errorf("CHECK of a network that declares more: code %d (%s), want %d", code, text, api.CodeNotReady)
			}
			if code, text := s.call("DEL", c, keys(own)); code != 0 {
				t.Errorf("DEL: code %d (%s)", code, text)
			}
		})
	}
}
