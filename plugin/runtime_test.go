package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"

	"github.com/containernetworking/cni/libcni"
	"github.com/containernetworking/cni/pkg/types"
	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"

	"github.com/seed-aaab8e3a/cni-mld/plugin/api"
)

// TestVerbsOfEachVersion: CHECK came with 0.4.0, STATUS and GC with 1.1.0; a runtime that asks for one before is told so
// and the daemon is left alone. DEL takes those that ADD is refused for as well, so that the plugins before ours get theirs.
func TestVerbsOfEachVersion(t *testing.T) {
	t.Parallel()
	d := startFake(t, fine)
	const wrong = types.ErrIncompatibleCNIVersion
	for _, row := range []struct {
		version                     string
		add, del, check, status, gc uint
	}{
		{"", wrong, 0, wrong, wrong, wrong}, // without the key
		{"0.1.0", wrong, 0, wrong, wrong, wrong},
		{"0.2.0", wrong, 0, wrong, wrong, wrong},
		{"0.3.0", wrong, 0, wrong, wrong, wrong},
		{"0.3.1", 0, 0, wrong, wrong, wrong},
		{"0.4.0", 0, 0, 0, wrong, wrong},
		{"1.0.0", 0, 0, 0, wrong, wrong},
		{"1.1.0", 0, 0, 0, 0, 0},
		{"1.2.0", wrong, wrong, wrong, wrong, wrong},
	} {
		for verb, code := range map[string]uint{"ADD": row.add, "DEL": row.del, "CHECK": row.check, "STATUS": row.status, "GC": row.gc} {
			t.Run(verb+" "+row.version, func(t *testing.T) {
				before := len(d.seen())
				result := strings.Replace(prevResult, "1.1.0", row.version, 1)
				config := fmt.Sprintf(`{"cniVersion":%q,"name":"lab","runDir":%q,"cni.dev/valid-attachments":[]%s}`, row.version, d.runDir, result)
				o := invocation{verb: verb, config: strings.ReplaceAll(config, `"cniVersion":"",`, "")}.run(t)
				o.wants(t, code)
				want := 0
				if code == 0 {
					want = 1
				}
				if got := len(d.seen()) - before; got != want {
					t.Errorf("the daemon was asked %d times, want %d", got, want)
				}
				if o.err == nil && (o.stdout != "") != (verb == "ADD") {
					t.Errorf("standard output %q", o.stdout)
				}
			})
		}
	}
	for verb, code := range map[string]uint{"VERSION": 0, "UPDATE": 4, "add": 4} {
		invocation{verb: verb, runDir: d.runDir}.run(t).wants(t, code)
	}
}

// TestVersionTouchesNothing: podman asks at each start, with variables that mean nothing.
func TestVersionTouchesNothing(t *testing.T) {
	t.Parallel()
	const never = "/run/mld-test-version" // an ADD would make it
	d := startFake(t, fine)
	dummy := func(cmd *exec.Cmd) {
		cmd.Env = append(cmd.Env, "CNI_CONTAINERID=", "CNI_NETNS=dummy", "CNI_IFNAME=dummy", "CNI_PATH=dummy", "CNI_ARGS=")
	}
	for _, stdin := range []string{
		`{"cniVersion":"1.1.0"}`, `{`, ` `,
		fmt.Sprintf(`{"cniVersion":"1.1.0","name":"lab","runDir":%q}`, never),
		fmt.Sprintf(`{"cniVersion":"1.1.0","name":"lab","runDir":%q}`, d.runDir),
	} {
		o := invocation{verb: "VERSION", config: stdin, change: dummy}.run(t)
		o.wants(t, 0)
		if got := asMap(t, o.stdout)["supportedVersions"]; fmt.Sprint(got) != "[0.3.1 0.4.0 1.0.0 1.1.0]" || o.stderr != "" {
			t.Errorf("%s: supported %v, standard error %q", stdin, got, o.stderr)
		}
	}
	if _, err := os.Stat(never); !errors.Is(err, fs.ErrNotExist) || len(d.seen()) != 0 {
		t.Errorf("run directory: %v; the daemon was asked %d times", err, len(d.seen()))
	}
}

// TestByHand: without a verb the program says what it is.
func TestByHand(t *testing.T) {
	t.Parallel()
	cmd := exec.CommandContext(t.Context(), built)
	cmd.Env = []string{"PATH=/usr/bin"}
	out, err := cmd.CombinedOutput()
	if want := "CNI plugin mld devel\nCNI protocol versions supported: 0.3.1, 0.4.0, 1.0.0, 1.1.0\n"; err != nil || string(out) != want {
		t.Errorf("%q, %v, want %q", out, err, want)
	}
}

// TestRuntimes has what real runtimes were seen to do to a plugin of a chain.
func TestRuntimes(t *testing.T) {
	t.Parallel()
	const (
		pod    = "4e3a9d5f27b1a2c8e6d0f4b39a7c51e8d2f6a0b4c8e1d5f9a3b7c0e4d8f2a6b1"
		k8s    = "K8S_POD_INFRA_CONTAINER_ID=" + pod + ";K8S_POD_NAME=web-0;IgnoreUnknown=1;K8S_POD_UID=8d5c;K8S_POD_NAMESPACE=default"
		grants = `,"capabilities":{"io.kubernetes.cri.pod-annotations":true,"portMappings":true}`
		cri    = grants + `,"runtimeConfig":{"io.kubernetes.cri.pod-annotations":{"kubernetes.io/config.seen":"2026","mld/groups":"ff05::2"},"portMappings":[]}`
		multus = `,"args":{"cni":{"mldGroups":["ff05::3"],"ips":["10.0.0.7"]}},"deviceID":"0000:00:1f.6","pciBusID":"0000:00:1f.6"`
		gone   = "gone" // a namespace whose path leads nowhere any more
	)
	type call struct {
		verb, netns, keys string
		want              string // the groups that the daemon is told
	}
	for _, tc := range []struct {
		name, version, id, ifname, args string
		calls                           []call
	}{
		{"containerd", "1.0.0", pod, "eth0", k8s, []call{
			{"ADD", "", cri + prevResult, "[ff05::1 ff05::2]"},
			{"DEL", "", cri + prevResult, ""},
			{"DEL", "none", cri, ""}, // a second time, when the sandbox is removed
		}},
		{"containerd, a pod without annotations", "1.0.0", pod, "eth0", k8s, []call{
			{"ADD", "", grants + `,"runtimeConfig":{"io.kubernetes.cri.pod-annotations":null}` + prevResult, "[ff05::1]"},
			{"DEL", "", grants + `,"runtimeConfig":{"io.kubernetes.cri.pod-annotations":null}` + prevResult, ""},
		}},
		{"ctr run --cni", "1.0.0", "default-web", "eth0", "", []call{
			{"ADD", "process", prevResult, "[ff05::1]"},
			{"DEL", "none", prevResult, ""}, // when the task has gone
		}},
		{"ctr, the number of a process that has gone", "1.0.0", "default-web", "eth0", "", []call{{"DEL", gone, prevResult, ""}}},
		{"podman", "0.4.0", pod, "eth0", "IgnoreUnknown=1;K8S_POD_NAME=web", []call{
			{"ADD", "", prevResult, "[ff05::1]"},
			{"DEL", "", prevResult, ""},
		}},
		{"CRI-O", "1.1.0", pod, "eth0", k8s, []call{
			{"STATUS", "none", grants, ""},
			{"ADD", "", cri + prevResult, "[ff05::1 ff05::2]"},
			{"CHECK", "", cri + prevResult, "[ff05::1]"},
			{"GC", "none", grants + `,"cni.dev/valid-attachments":[{"containerID":"` + pod + `","ifname":"eth0"}]`, ""},
			{"DEL", gone, cri + prevResult, ""},
			{"GC", "none", grants + `,"cni.dev/valid-attachments":null`, ""},
		}},
		{"cnitool", "1.1.0", "cnitool-1b9e6ec3a8b1c2d3e4f5", "eth0", "", []call{
			{"ADD", "", prevResult, "[ff05::1]"},
			{"CHECK", "", prevResult, "[ff05::1]"},
			{"DEL", "", prevResult, ""},
			{"GC", "none", "", "not asked"},
			{"STATUS", "none", "", ""},
		}},
		{"Multus", "0.3.1", pod, "net1", k8s, []call{
			{"ADD", "", multus + prevResult, "[ff05::1 ff05::3]"},
			{"DEL", "", multus, ""},
		}},
		{"Multus, CHECK without cni-args", "1.0.0", pod, "net1", k8s, []call{
			{"ADD", "", multus + prevResult, "[ff05::1 ff05::3]"},
			{"CHECK", "", prevResult, "[ff05::1]"},
			{"DEL", "none", "", ""},
		}},
		{"Nomad", "0.4.0", "7a3f2b1c-9d8e-4f5a-b6c7-d8e9f0a1b2c3", "eth0", "NOMAD_REGION=global;NOMAD_JOB_ID=web;IgnoreUnknown=true", []call{
			{"ADD", "", prevResult, "[ff05::1]"},
			{"DEL", gone, prevResult, ""},
		}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			t.Parallel()
			d := startFake(t, fine)
			netns := filepath.Join(t.TempDir(), "netns")
			if err := os.WriteFile(netns, nil, 0o600); err != nil {
				t.Fatal(err)
			}
			for _, c := range tc.calls {
				i := invocation{verb: c.verb, version: tc.version, runDir: d.runDir, args: tc.args, netns: c.netns,
					keys: `,"groups":["ff05::1"]` + strings.Replace(c.keys, `"cniVersion":"1.1.0"`, `"cniVersion":"`+tc.version+`"`, 1),
					change: func(cmd *exec.Cmd) {
						cmd.Env = append(cmd.Env, "CNI_CONTAINERID="+tc.id, "CNI_IFNAME="+tc.ifname)
						if c.verb == "STATUS" || c.verb == "GC" {
							cmd.Env = append(cmd.Env, "CNI_CONTAINERID=", "CNI_IFNAME=", "CNI_ARGS=")
						}
					}}
				switch c.netns {
				case "":
					i.netns = netns
				case gone:
					i.netns = netns + "-gone"
				case "process":
					i.netns = processNetns(t)
				}
				before := len(d.seen())
				o := i.run(t)
				o.wants(t, 0)
				if o.stderr != "" {
					t.Errorf("%s: standard error %q", c.verb, o.stderr)
				}
				asked := d.seen()[before:]
				if c.want == "not asked" {
					if len(asked) != 0 {
						t.Errorf("%s: the daemon was asked for %+v", c.verb, asked[0])
					}
					continue
				}
				if len(asked) != 1 {
					t.Fatalf("%s: the daemon was asked %d times", c.verb, len(asked))
				}
				r := asked[0]
				want := api.Attachment{Network: "lab", ContainerID: tc.id, IfName: tc.ifname}
				switch c.verb {
				case "STATUS":
					want = api.Attachment{}
				case "GC":
					want = api.Attachment{Network: "lab"}
				}
				if r.Op != strings.ToLower(c.verb) || r.Attachment != want {
					t.Errorf("%s: the daemon was asked to %s %v, want %v", c.verb, r.Op, r.Attachment, want)
				}
				if (r.Settings != nil) != (c.want != "") || r.Settings != nil && fmt.Sprint(r.Settings.Groups) != c.want {
					t.Errorf("%s: settings %+v, want groups %s", c.verb, r.Settings, c.want)
				}
			}
		})
	}
}

// processNetns starts a process in a network namespace of its own, and returns the path of that.
func processNetns(t *testing.T) string {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), "sleep", "60")
	cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: syscall.CLONE_NEWUSER | syscall.CLONE_NEWNET}
	if err := cmd.Start(); err != nil {
		if os.Getenv("LAB_REQUIRED") == "" {
			t.Skip(err)
		}
		t.Fatal(err)
	}
	t.Cleanup(func() { cmd.Process.Kill(); cmd.Wait() })
	return fmt.Sprintf("/proc/%d/ns/net", cmd.Process.Pid)
}

// fakeInterfaceMain is a plugin that makes no interface and says that it has.
func fakeInterfaceMain() {
	switch os.Getenv("CNI_COMMAND") {
	case "ADD":
		var conf struct {
			CNIVersion string `json:"cniVersion"`
		}
		if err := json.NewDecoder(os.Stdin).Decode(&conf); err != nil {
			os.Exit(1)
		}
		fmt.Fprintf(os.Stdout, `{"cniVersion":%q,"interfaces":[{"name":"eth0","sandbox":"/run/netns/c1"}],"dns":{"domain":"lab"}}`, conf.CNIVersion)
	case "VERSION":
		fmt.Fprint(os.Stdout, `{"cniVersion":"1.1.0","supportedVersions":["0.3.1","0.4.0","1.0.0","1.1.0"]}`)
	}
}

// TestLibcni: all verbs as the library of every runtime calls them, from a configuration on disk.
func TestLibcni(t *testing.T) {
	t.Parallel()
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	bin := tempDir(t)
	if err := errors.Join(os.Link(built, filepath.Join(bin, "mld")), os.Symlink(self, filepath.Join(bin, "iface"))); err != nil {
		t.Fatal(err)
	}
	const first = `{"type":"iface"}`
	for _, version := range []string{"0.3.1", "0.4.0", "1.0.0", "1.1.0"} {
		for _, dropIn := range []bool{false, true} {
			if dropIn && version < "1.1.0" {
				continue
			}
			t.Run(fmt.Sprintf("%s, drop-in %v", version, dropIn), func(t *testing.T) {
				t.Parallel()
				d := startFake(t, fine)
				dir := t.TempDir()
				mld := fmt.Sprintf(`{"type":"mld","runDir":%q,"groups":["ff05::1"],"allowedGroups":["ff05::/16"],
					"capabilities":{"mldGroups":true,"io.kubernetes.cri.pod-annotations":true,"bandwidth":false}}`, d.runDir)
				plugins := first + "," + mld
				if dropIn { // the network's own file is its vendor's
					plugins = first
					file := filepath.Join(dir, "lab", "50-mld.conf")
					if err := errors.Join(os.Mkdir(filepath.Dir(file), 0o700), os.WriteFile(file, []byte(mld), 0o600)); err != nil {
						t.Fatal(err)
					}
				}
				list := fmt.Sprintf(`{"cniVersion":%q,"name":"lab","disableCheck":false,"disableGC":"false","plugins":[%s]}`, version, plugins)
				if err := os.WriteFile(filepath.Join(dir, "10-lab.conflist"), []byte(list), 0o600); err != nil {
					t.Fatal(err)
				}
				allVerbs(t, bin, dir, d)
			})
		}
	}
}

// TestLibcniCapabilities: the library hands the key on, so that a typing error in it is seen.
func TestLibcniCapabilities(t *testing.T) {
	t.Parallel()
	list, err := libcni.ConfListFromBytes([]byte(`{"cniVersion":"1.0.0","name":"lab","plugins":[{"type":"mld","capabilities":{"mldGroup":true}}]}`))
	if err != nil {
		t.Fatal(err)
	}
	cni := libcni.NewCNIConfigWithCacheDir([]string{filepath.Dir(built)}, t.TempDir(), nil)
	var e *types.Error
	_, err = cni.AddNetworkList(t.Context(), list, &libcni.RuntimeConf{ContainerID: "c1", NetNS: os.DevNull, IfName: "eth0"})
	if !errors.As(err, &e) || e.Code != 7 || !strings.Contains(e.Msg, "capabilities.mldGroup: true: unknown key") {
		t.Errorf("ADD: %v", err)
	}
}

func allVerbs(t *testing.T, bin, dir string, d *fakeDaemon) {
	ctx := t.Context()
	list, err := libcni.LoadNetworkConf(dir, "lab")
	if err != nil {
		t.Fatal(err)
	}
	cni := libcni.NewCNIConfigWithCacheDir([]string{bin}, filepath.Join(dir, "cache"), nil)
	if caps, err := cni.ValidateNetworkList(ctx, list); err != nil || len(caps) != 2 {
		t.Errorf("capabilities %v, %v", caps, err)
	}
	container := func(id string) *libcni.RuntimeConf {
		return &libcni.RuntimeConf{
			ContainerID: id, NetNS: os.DevNull, IfName: "eth0",
			Args: [][2]string{{"IgnoreUnknown", "1"}, {"K8S_POD_NAME", id}},
			CapabilityArgs: map[string]any{
				"mldGroups":                         []any{"ff05::2", map[string]any{"group": "ff05::3", "deliver": false}},
				"io.kubernetes.cri.pod-annotations": map[string]string{"mld/groups": "ff05::4", "other": "x"},
				"bandwidth":                         map[string]any{"ingressRate": 5},
			},
		}
	}
	for _, id := range []string{"c1", "c2"} {
		result, err := cni.AddNetworkList(ctx, list, container(id))
		if err != nil {
			t.Fatal(err)
		}
		if result.Version() != list.CNIVersion || !strings.Contains(fmt.Sprintf("%+v", result), "lab") {
			t.Errorf("result %+v", result)
		}
	}
	atLeast := func(version string) bool { return list.CNIVersion >= version }
	if err := cni.CheckNetworkList(ctx, list, container("c1")); (err == nil) != atLeast("0.4.0") {
		t.Errorf("CHECK: %v", err)
	}
	bare := container("c1")
	bare.CapabilityArgs, bare.Args = nil, nil // as cnitool without them again
	if err := cni.CheckNetworkList(ctx, list, bare); (err == nil) != atLeast("0.4.0") {
		t.Errorf("CHECK: %v", err)
	}
	refused := container("c3")
	refused.CapabilityArgs["mldGroups"] = []string{"ff02::5"}
	var e *types.Error
	if _, err := cni.AddNetworkList(ctx, list, refused); !errors.As(err, &e) || e.Code != 7 || !strings.Contains(e.Msg, "not in allowedGroups") {
		t.Errorf("ADD of what is not allowed: %v", err)
	}
	if err := cni.DelNetworkList(ctx, list, refused); err != nil {
		t.Errorf("DEL: %v", err)
	}
	if err := cni.GetStatusNetworkList(ctx, list); err != nil {
		t.Errorf("STATUS: %v", err)
	}
	// c1 is in the library's cache and no longer valid: DEL and then GC; with nil arguments all go, and there is no list.
	for _, args := range []*libcni.GCArgs{{ValidAttachments: []types.GCAttachment{{ContainerID: "c2", IfName: "eth0"}}}, {}, nil} {
		if err := cni.GCNetworkList(ctx, list, args); err != nil {
			t.Errorf("GC: %v", err)
		}
	}

	got := make([]string, 0, 16)
	for _, r := range d.seen() {
		line := r.Op + " " + r.ContainerID
		if r.Settings != nil {
			line += fmt.Sprint(" ", r.Settings.Groups)
		}
		if r.Op == api.OpGC {
			line += fmt.Sprint(r.Valid)
		}
		got = append(got, line)
	}
	const all = " [ff05::1 ff05::2 ff05::3 (deliver false) ff05::4]"
	want := []string{"add c1" + all, "add c2" + all, "check c1 [ff05::1]", "check c1 [ff05::1]", "del c3", "status ",
		"del c1", "gc [/c2/eth0]", "del c2", "gc []"}
	want = slices.DeleteFunc(want, func(line string) bool {
		return strings.HasPrefix(line, "check") && !atLeast("0.4.0") ||
			(strings.HasPrefix(line, "status") || strings.HasPrefix(line, "gc")) && !atLeast("1.1.0")
	})
	if diff := cmp.Diff(want, got, cmpopts.EquateEmpty()); diff != "" {
		t.Error(diff)
	}
}
