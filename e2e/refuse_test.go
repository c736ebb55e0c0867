package e2e

import (
	"encoding/json"
	"errors"
	"io/fs"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/containernetworking/cni/pkg/types"
	"golang.org/x/sys/unix"

	"github.com/seed-aaab8e3a/cni-mld/e2e/chain"
	"github.com/seed-aaab8e3a/cni-mld/netnslab"
	"github.com/seed-aaab8e3a/cni-mld/plugin/api"
)

// A configuration that is not understood, or a group that a container may not ask for, is refused with code 7, key and
// value, before anything is changed: not even a daemon is started.
func TestRefusedConfiguration(t *testing.T) {
	t.Parallel()
	s := newSegment(t, quiet, nil)
	alice := s.connect("alice")
	for _, c := range []struct {
		name, conf string // keys of mld, as JSON
		args       string // CNI_ARGS
		text       []string
	}{
		{"unknown key", `{"gruops": ["ff05::a"]}`, "", []string{"gruops", "ff05::a", "unknown key"}},
		{"not a list", `{"groups": "ff05::a"}`, "", []string{"groups", `"ff05::a"`}},
		{"not an address", `{"groups": ["ff05::a", "all"]}`, "", []string{"groups[1]", `"all"`}},
		{"not multicast", `{"groups": ["fd00::1"]}`, "", []string{"groups[0]", "fd00::1", "not a multicast"}},
		{"IPv4", `{"groups": ["224.0.0.251"]}`, "", []string{"groups[0]", "224.0.0.251"}},
		{"all nodes", `{"groups": ["ff02::1"]}`, "", []string{"groups[0]", "ff02::1", "all-nodes"}},
		{"scope 0", `{"groups": ["ff00::1"]}`, "", []string{"groups[0]", "ff00::1", "scope 0"}},
		{"scope 1", `{"groups": ["ff01::fb"]}`, "", []string{"groups[0]", "ff01::fb", "scope 1"}},
		{"zone", `{"groups": ["ff02::fb%eth0"]}`, "", []string{"groups[0]", "ff02::fb%eth0", "zone"}},
		{"source", `{"groups": ["ff02::1@ff3e::8000:1"]}`, "", []string{"groups[0]", "ff02::1@ff3e::8000:1", "source ff02::1"}},
		{"loopback", `{"groups": ["::1@ff3e::8000:1"]}`, "", []string{"groups[0]", "::1@ff3e::8000:1", "loopback"}},
		{"source-specific", `{"groups": ["ff3e::8000:1"]}`, "", []string{"groups[0]", "ff3e::8000:1", "source"}},
		{"source-specific, exclude", `{"groups": [{"group": "ff3e::8000:1", "mode": "exclude", "sources": ["fd00::66"]}]}`, "",
			[]string{"groups[0]", "ff3e::8000:1", "include"}},
		{"source-specific, invalid", `{"groups": ["fd00:1::10@ff3e::1"]}`, "", []string{"groups[0]", "fd00:1::10@ff3e::1", "invalid"}},
		{"no mode", `{"groups": [{"group": "ff05::8", "sources": ["fd00::66"]}]}`, "", []string{"groups[0]", "fd00::66", "mode"}},
		{"include nothing", `{"groups": [{"group": "ff05::8", "mode": "include"}]}`, "", []string{"groups[0]", "include", "no sources"}},
		{"both modes", `{"groups": ["ff05::8", "fd00::66@ff05::8"]}`, "", []string{"groups[1]", "fd00::66@ff05::8", "contradicts groups[0]"}},
		{"key of a group", `{"groups": [{"group": "ff05::8", "delivery": true}]}`, "", []string{"groups[0]", "delivery"}},
		{"both ways", `{"groups": ["ff05::8", {"group": "ff05::8", "deliver": false}]}`, "", []string{"groups", "ff05::8", "deliver"}},
		{"version 3", `{"mldVersion": 3}`, "", []string{"mldVersion", "3"}},
		{"profile", `{"profile": "bsd"}`, "", []string{"profile", "bsd"}},
		{"kame without its version", `{"profile": "kame"}`, "", []string{"mldVersion", "kame", "must be 1"}},
		{"alwaysDone in kame", `{"profile": "kame", "mldVersion": 1, "alwaysDone": true}`, "", []string{"alwaysDone", "kame"}},
		{"kernelReports", `{"kernelReports": "loud"}`, "", []string{"kernelReports", "loud"}},
		{"robustness 0", `{"robustness": 0}`, "", []string{"robustness", "0"}},
		{"robustness 8", `{"robustness": 8}`, "", []string{"robustness", "8"}},
		{"robustness in kame", `{"profile": "kame", "mldVersion": 1, "robustness": 3}`, "", []string{"robustness", "3", "kame"}},
		{"interval", `{"unsolicitedReportInterval": "0s"}`, "", []string{"unsolicitedReportInterval", "0s"}},
		{"interval without unit", `{"unsolicitedReportInterval": 10}`, "", []string{"unsolicitedReportInterval", "10"}},
		{"ready", `{"ready": {"wait": "forever"}}`, "", []string{"ready.wait", "forever"}},
		{"key of ready", `{"ready": {"for": "mdb"}}`, "", []string{"ready.for", "mdb"}},
		{"timeout", `{"ready": {"timeout": "2h"}}`, "", []string{"ready.timeout", "2h"}},
		{"null", `{"groups": null}`, "", []string{"groups", "null"}},
		{"run directory", `{"runDir": "run/mld"}`, "", []string{"runDir", "run/mld"}},
		{"limit of groups", `{"groups": ["ff05::a", "ff05::b"], "limits": {"groups": 1}}`, "", []string{"limits.groups", "1", "2 declared"}},
		{"limit of sources", `{"groups": ["fd00::1@ff05::a"], "limits": {"sources": 0}}`, "", []string{"limits.sources", "0", "ff05::a"}},
		{"key of limits", `{"limits": {"sessions": 1}}`, "", []string{"limits.sessions", "1"}},
		{"allowedGroups", `{"allowedGroups": ["fd00::/16"]}`, "", []string{"allowedGroups[0]", "fd00::/16", "multicast prefix"}},
		{"annotation", `{"annotation": 5}`, "", []string{"annotation", "5", "mld/groups"}},
		{"runtimeConfig", `{"runtimeConfig": {"mldGroups": ["ff02::1"]}}`, "", []string{"runtimeConfig.mldGroups[0]", "ff02::1", "all-nodes"}},
		{"annotation's value", `{"runtimeConfig": {"io.kubernetes.cri.pod-annotations": {"mld/groups": "ff05::a,fd00::1"}}}`, "",
			[]string{`runtimeConfig["io.kubernetes.cri.pod-annotations"]["mld/groups"][1]`, "fd00::1", "not a multicast"}},
		{"cni-args", `{"args": {"cni": {"mldGroups": ["ff01::a"]}}}`, "", []string{"args.cni.mldGroups[0]", "ff01::a", "scope 1"}},
		{"CNI_ARGS", `{}`, "IgnoreUnknown=1;MLD_GROUPS=ff3e::8000:1", []string{"MLD_GROUPS[0]", "ff3e::8000:1", "source"}},
		{"not allowed", `{"allowedGroups": ["ff05::/16"], "runtimeConfig": {"mldGroups": ["ff02::a"]}}`, "",
			[]string{"runtimeConfig.mldGroups[0]", "ff02::a", "allowedGroups", "ff05::/16"}},
		{"nothing allowed", `{"allowedGroups": []}`, "MLD_GROUPS=ff05::a", []string{"MLD_GROUPS[0]", "ff05::a", "allowedGroups is empty"}},
	} {
		t.Run(c.name, func(t *testing.T) {
			var keys map[string]any
			if err := json.Unmarshal([]byte(c.conf), &keys); err != nil {
				t.Fatal(err)
			}
			_, err := s.chain.Run(t.Context(), chain.Call{
				Command: "ADD", ContainerID: "alice", Netns: alice.Path(), MLD: keys, Args: c.args,
			})
			code, text := codeOf(err)
			if code != types.ErrInvalidNetworkConfig {
				t.Errorf("ADD: code %d (%s), want %d", code, text, types.ErrInvalidNetworkConfig)
			}
			for _, part := range c.text {
				if !strings.Contains(text, part) {
					t.Errorf("ADD says %q, and not %q", text, part)
				}
			}
			if _, err := s.chain.Daemon(t.Context()); !api.NotRunning(err) {
				t.Errorf("a daemon runs: %v", err)
			}
		})
	}
	if entries, err := os.ReadDir(s.chain.RunDir); err != nil || len(entries) > 0 {
		t.Errorf("the run directory has %v, %v", entries, err)
	}
	if _, muted := alice.muted(); muted {
		t.Error("the kernel is muted")
	}
	if code, text := s.call("ADD", alice, nil); code != 0 {
		t.Errorf("ADD without any key: code %d (%s)", code, text)
	}
}

// Through the chain the runtime gets the error as it is, and its DEL removes what the plugin before has made.
func TestRefusedThroughTheChain(t *testing.T) {
	t.Parallel()
	s := newSegment(t, quiet, map[string]any{"groups": []string{"fd00::1"}})
	node := s.Node("alice")
	_, err := s.chain.Add(t.Context(), node)
	if code, text := codeOf(err); code != types.ErrInvalidNetworkConfig || !strings.Contains(text, "fd00::1") {
		t.Errorf("ADD: code %d (%s), want %d", code, text, types.ErrInvalidNetworkConfig)
	}
	if err := s.chain.Del(t.Context(), node); err != nil {
		t.Fatalf("DEL: %v", err)
	}
	if links := runIn(t, node, "ip", "-j", "link", "show", "type", "veth"); strings.TrimSpace(string(links)) != "[]" {
		t.Errorf("links are left: %s", links)
	}
	if _, err := os.Stat(api.SocketPath(s.chain.RunDir)); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("a daemon was started: %v", err)
	}
}

// Two daemons cannot speak on one interface: the second is told who does (code 104), and the first goes on.
func TestSecondDaemon(t *testing.T) {
	t.Parallel()
	s := newSegment(t, quiet, map[string]any{"groups": []netip.Addr{groupA}, "kernelReports": "mute"})
	alice := s.add("alice")
	second := s.newChain(filepath.Join(s.dir, "second"), map[string]any{"groups": []netip.Addr{groupB}, "kernelReports": "mute"})
	defer func() {
		if err := second.Stop(t.Context()); err != nil {
			t.Errorf("stop: %v", err)
		}
	}()
	_, err := second.Run(t.Context(), chain.Call{Command: "ADD", ContainerID: "alice", Netns: alice.Path()})
	if code, text := codeOf(err); code != api.CodeKernelReports || !strings.Contains(text, "kernelReports") {
		t.Errorf("ADD of a second daemon: code %d (%s), want %d", code, text, api.CodeKernelReports)
	}
	if alice.kernelHolds(groupB) {
		t.Errorf("the kernel holds %v", groupB)
	}
	begin := time.Now()
	s.query(groupA, 0)
	s.waitSent(alice, begin, report, groupA, 1)
}

// Where IPv6 is switched off nothing can be delivered: code 102 names sysctl and interface. Without delivery the
// listener waits for IPv6.
func TestIPv6Off(t *testing.T) {
	t.Parallel()
	s := newSegment(t, quiet, nil)
	node := s.Node("alice")
	node.SetSysctl("net/ipv6/conf/default/disable_ipv6", "1")
	alice := newContainer(t, node, s.bridge.Connect(node, chain.IfName))

	code, text := s.call("ADD", alice, map[string]any{"groups": []netip.Addr{groupA}})
	if code != api.CodeIPv6Off || !strings.Contains(text, "net.ipv6.conf.eth0.disable_ipv6") {
		t.Errorf("ADD: code %d (%s), want %d", code, text, api.CodeIPv6Off)
	}
	if n := s.daemon().Attachments; n != 0 {
		t.Errorf("the daemon has %d attachments, want none", n)
	}
	s.waitReleased(alice)

	keys := ready("auto", "100ms")
	keys["groups"] = []any{map[string]any{"group": groupA, "deliver": false}}
	a := <-s.start(alice, keys)
	if a.code != 0 || !strings.Contains(a.diagnostic, "not ready after 100ms") {
		t.Errorf("ADD without delivery: code %d (%s), %s", a.code, a.text, a.diagnostic)
	}
	node.SetSysctl("net/ipv6/conf/eth0/disable_ipv6", "0")
	s.wait("entry of the MDB", func() (bool, string) { return s.inMDB(groupA, alice), "" })
}

// There is no MLD to speak on an interface that carries no Ethernet frames: code 103.
func TestNotEthernet(t *testing.T) {
	t.Parallel()
	s := newSegment(t, netnslab.BridgeOptions{}, nil)
	node := s.Node("alice")
	for _, ifname := range []string{"lo", "tun0"} {
		t.Run(ifname, func(t *testing.T) {
			if ifname == "tun0" {
				if unix.Access("/dev/net/tun", unix.R_OK|unix.W_OK) != nil {
					t.Skip("/dev/net/tun is not for this user; lo has shown it") // whatever LAB_REQUIRED says
				}
				runIn(t, node, "ip", "tuntap", "add", "mode", "tun", "name", ifname)
			}
			_, err := s.chain.Run(t.Context(), chain.Call{
				Command: "ADD", ContainerID: "alice", Netns: node.Path(), IfName: ifname,
			})
			if code, text := codeOf(err); code != api.CodeNotEthernet || !strings.Contains(text, ifname) {
				t.Errorf("ADD: code %d (%s), want %d", code, text, api.CodeNotEthernet)
			}
			if n := s.daemon().Attachments; n != 0 {
				t.Errorf("the daemon has %d attachments, want none", n)
			}
		})
	}
}
