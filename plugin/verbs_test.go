package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/containernetworking/cni/pkg/types"
	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
	"golang.org/x/sys/unix"

	"github.com/seed-aaab8e3a/cni-mld/plugin/api"
)

func TestVersion(t *testing.T) {
	t.Parallel()
	o := invocation{verb: "VERSION"}.run(t)
	o.wants(t, 0)
	var v struct {
		Supported []string `json:"supportedVersions"`
	}
	if err := json.Unmarshal([]byte(o.stdout), &v); err != nil {
		t.Fatal(err)
	}
	if want := []string{"0.3.1", "0.4.0", "1.0.0", "1.1.0"}; !slices.Equal(v.Supported, want) {
		t.Errorf("supports %v, want %v", v.Supported, want)
	}
}

// TestAddRequest: what the daemon gets is what the runtime said.
func TestAddRequest(t *testing.T) {
	t.Parallel()
	netns := filepath.Join(t.TempDir(), "netns")
	if err := os.WriteFile(netns, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	same := func(f *os.File, path string) bool {
		a, err := f.Stat()
		if err != nil {
			t.Error(err)
			return false
		}
		b, err := os.Stat(path)
		if err != nil {
			t.Error(err)
			return false
		}
		return os.SameFile(a, b)
	}
	d := startFake(t, func(r *api.Request) *api.Answer {
		if r.Op == api.OpDel {
			return &api.Answer{}
		}
		if !same(r.Netns, netns) {
			t.Error("the first descriptor is not CNI_NETNS")
		}
		if !same(r.HostNetns, "/proc/self/ns/net") {
			t.Error("the second descriptor is not the plugin's network namespace")
		}
		return &api.Answer{}
	})
	for _, verb := range []string{"ADD", "CHECK"} {
		invocation{verb: verb, runDir: d.runDir, netns: netns, args: "IgnoreUnknown=1;K8S_POD_NAME=x;;=;odd",
			keys: `,"groups":["ff05::4321"],"alwaysDone":true` + prevResult}.run(t).wants(t, 0)
	}
	invocation{verb: "DEL", runDir: d.runDir, netns: netns, keys: prevResult}.run(t).wants(t, 0)

	settings := api.DefaultSettings()
	settings.Groups = []api.Group{{Addr: netip.MustParseAddr("ff05::4321"), Deliver: true}}
	settings.AlwaysDone = true
	attachment := api.Attachment{Network: "lab", ContainerID: "c1", IfName: "eth0"}
	want := []*api.Request{
		{V: 1, Op: "add", Attachment: attachment, Settings: settings, NetnsPath: netns},
		{V: 1, Op: "check", Attachment: attachment, Settings: settings, NetnsPath: netns},
		{V: 1, Op: "del", Attachment: attachment, NetnsPath: netns},
	}
	if diff := cmp.Diff(want, d.seen(), cmpopts.EquateComparable(netip.Addr{})); diff != "" {
		t.Error(diff)
	}
}

// fullResults has a result with every field of each version, and one that no version knows yet.
var fullResults = map[string]string{
	"0.3.1": `{"cniVersion":"0.3.1","interfaces":[{"name":"eth0","mac":"02:00:00:00:00:01","sandbox":"/run/netns/c1"},{"name":"veth1"}],
		"ips":[{"version":"6","interface":0,"address":"fd00:1::2/64","gateway":"fd00:1::1"},{"version":"4","address":"10.0.0.2/24"}],
		"routes":[{"dst":"::/0","gw":"fd00:1::1"}],
		"dns":{"nameservers":["fd00::53"],"domain":"lab","search":["a","b"],"options":["ndots:2"]},"future":{"x":[1,null]}}`,
	"1.0.0": `{"cniVersion":"1.0.0","interfaces":[{"name":"eth0","mac":"02:00:00:00:00:01","sandbox":"/run/netns/c1"},{"name":"veth1"}],
		"ips":[{"interface":0,"address":"fd00:1::2/64","gateway":"fd00:1::1"},{"address":"10.0.0.2/24"}],
		"routes":[{"dst":"::/0","gw":"fd00:1::1"}],
		"dns":{"nameservers":["fd00::53"],"domain":"lab","search":["a","b"],"options":["ndots:2"]},"future":{"x":[1,null]}}`,
	"1.1.0": `{"cniVersion":"1.1.0","interfaces":[{"name":"eth0","mac":"02:00:00:00:00:01","mtu":9000,"sandbox":"/run/netns/c1",
		"socketPath":"/run/vhost.sock","pciID":"0000:00:1f.6"},{"name":"veth1"}],
		"ips":[{"interface":0,"address":"fd00:1::2/64","gateway":"fd00:1::1"},{"address":"10.0.0.2/24"}],
		"routes":[{"dst":"::/0","gw":"fd00:1::1","mtu":1400,"advmss":1300,"priority":7,"table":100,"scope":253},
		{"dst":"fd00:2::/64","table":0,"scope":0}],
		"dns":{"nameservers":["fd00::53"],"domain":"lab","search":["a","b"],"options":["ndots:2"]},"future":{"x":[12345678901234567890,null]}}`,
}

func init() { fullResults["0.4.0"] = strings.Replace(fullResults["0.3.1"], "0.3.1", "0.4.0", 1) }

// asMap decodes JSON without a loss in its numbers.
func asMap(t *testing.T, text string) map[string]any {
	t.Helper()
	d := json.NewDecoder(strings.NewReader(text))
	d.UseNumber()
	var v map[string]any
	if err := d.Decode(&v); err != nil {
		t.Fatalf("%s: %v", text, err)
	}
	return v
}

func TestAddPassesTheResultOn(t *testing.T) {
	t.Parallel()
	d := startFake(t, fine)
	for version, result := range fullResults {
		t.Run(version, func(t *testing.T) {
			o := invocation{verb: "ADD", runDir: d.runDir, version: version, keys: `,"prevResult":` + result}.run(t)
			o.wants(t, 0)
			if diff := cmp.Diff(asMap(t, result), asMap(t, o.stdout)); diff != "" {
				t.Error(diff)
			}
		})
		t.Run(version+" without its version", func(t *testing.T) {
			bare := strings.Replace(result, `"cniVersion":"`+version+`",`, "", 1)
			o := invocation{verb: "ADD", runDir: d.runDir, version: version, keys: `,"prevResult":` + bare}.run(t)
			o.wants(t, 0)
			if diff := cmp.Diff(asMap(t, result), asMap(t, o.stdout)); diff != "" {
				t.Error(diff)
			}
		})
	}
	t.Run("0.4.0 in 1.1.0", func(t *testing.T) {
		o := invocation{verb: "ADD", runDir: d.runDir, keys: `,"prevResult":` + fullResults["0.4.0"]}.run(t)
		o.wants(t, 0)
		want := asMap(t, fullResults["1.0.0"])
		want["cniVersion"] = "1.1.0"
		delete(want, "future") // a conversion keeps what both versions know
		if diff := cmp.Diff(want, asMap(t, o.stdout)); diff != "" {
			t.Error(diff)
		}
	})
}

// TestAddFails has what a runtime gets when ADD cannot be done, and that the daemon was not asked.
func TestAddFails(t *testing.T) {
	t.Parallel()
	d := startFake(t, fine)
	for _, tc := range []struct {
		name  string
		i     invocation
		code  uint
		texts []string
	}{
		{"no result", invocation{}, 7, []string{"prevResult", "after a plugin"}},
		{"null result", invocation{keys: `,"prevResult":null`}, 7, []string{"prevResult", "after a plugin"}},
		{"not a result", invocation{keys: `,"prevResult":{"cniVersion":"1.1.0","ips":"fd00::1"}`}, 7, []string{"prevResult", "ips"}},
		{"a list as result", invocation{keys: `,"prevResult":[]`}, 7, []string{"prevResult", "[]"}},
		{"a result of the future", invocation{keys: `,"prevResult":{"cniVersion":"9.0.0"}`}, 7, []string{"prevResult", "9.0.0"}},
		{"a null interface to convert", invocation{keys: `,"prevResult":{"cniVersion":"0.4.0","interfaces":[{"name":"eth0"},null]}`}, 7,
			[]string{"prevResult", "null"}},
		{"a null address to convert", invocation{version: "0.4.0", keys: `,"prevResult":{"cniVersion":"1.0.0","IPs":[null]}`}, 7,
			[]string{"prevResult", "null"}},
		{"unknown key", invocation{keys: prevResult + `,"group":"ff05::1"`}, 7, []string{"group", "ff05::1", "unknown key"}},
		{"namespace is gone", invocation{keys: prevResult, netns: "/run/netns/none"}, 4, []string{"CNI_NETNS", "/run/netns/none"}},
		{"own namespace", invocation{keys: prevResult, netns: "/proc/self/ns/net"}, 8, []string{"CNI_NETNS", "own namespace"}},
		{"a version before 0.3.1", invocation{keys: prevResult, version: "0.2.0"}, 1, nil},
		{"no namespace", invocation{keys: prevResult, netns: "none"}, 4, []string{"CNI_NETNS"}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			tc.i.verb, tc.i.runDir = "ADD", d.runDir
			tc.i.run(t).wants(t, tc.code, tc.texts...)
		})
	}
	if seen := d.seen(); len(seen) != 0 {
		t.Errorf("the daemon was asked %d times", len(seen))
	}
}

// TestTooMuch: what does not fit into a request is refused for good.
func TestTooMuch(t *testing.T) {
	t.Parallel()
	d := startFake(t, fine)
	var groups, valid strings.Builder
	for i := range 30000 {
		fmt.Fprintf(&groups, `,"ff05:%x:ffff:ffff:ffff:ffff:ffff:ffff"`, i)
		fmt.Fprintf(&valid, `,{"containerID":"c%d","ifname":"eth0"}`, i)
	}
	keys := `,"limits":{"groups":100000},"groups":[` + groups.String()[1:] + `]` + prevResult
	invocation{verb: "ADD", runDir: d.runDir, keys: keys}.run(t).wants(t, 7, "add: a request of ", "1048576", "fewer")
	keys = `,"cni.dev/valid-attachments":[` + valid.String()[1:] + `]`
	invocation{verb: "GC", runDir: d.runDir, keys: keys}.run(t).wants(t, 7, "gc: a request of ", "1048576")
}

func TestDaemonErrorsKeepTheirCode(t *testing.T) {
	t.Parallel()
	d := startFake(t, func(*api.Request) *api.Answer {
		return &api.Answer{Error: types.NewError(api.CodeNotEthernet, "eth0: not Ethernet", "use a veth")}
	})
	for _, verb := range []string{"ADD", "CHECK", "DEL"} {
		o := invocation{verb: verb, runDir: d.runDir, keys: prevResult}.run(t)
		o.wants(t, api.CodeNotEthernet, "eth0: not Ethernet", "use a veth")
	}
	invocation{verb: "STATUS", runDir: d.runDir}.run(t).wants(t, 50, "eth0: not Ethernet")
}

// TestUnheardIsSuccessAndALine: CNI_ARGS counts only where nothing else names a group, and that is said.
func TestUnheardIsSuccessAndALine(t *testing.T) {
	t.Parallel()
	d := startFake(t, fine)
	o := invocation{verb: "ADD", runDir: d.runDir, args: "MLD_GROUPS=ff05::2", keys: `,"groups":["ff05::1"]` + prevResult}.run(t)
	o.wants(t, 0)
	if !strings.Contains(o.stderr, "MLD_GROUPS") || !strings.Contains(o.stderr, "lab/c1/eth0") {
		t.Errorf("standard error %q", o.stderr)
	}
}

func TestDegradedIsSuccessAndALine(t *testing.T) {
	t.Parallel()
	d := startFake(t, func(*api.Request) *api.Answer { return &api.Answer{Degraded: "bridge cni0 has no entry"} })
	o := invocation{verb: "ADD", runDir: d.runDir, keys: prevResult}.run(t)
	o.wants(t, 0)
	if !strings.Contains(o.stderr, "bridge cni0 has no entry") || !strings.Contains(o.stderr, "lab/c1/eth0") {
		t.Errorf("standard error %q", o.stderr)
	}
}

// TestWorkerOfTheMeantime: who is hung up on without an answer, as by a worker that ends, asks the next one, once. Every
// request may come twice.
func TestWorkerOfTheMeantime(t *testing.T) {
	t.Parallel()
	const keys = prevResult + `,"autostart":false,"cni.dev/valid-attachments":[]`
	for _, verb := range []string{"ADD", "CHECK", "DEL", "STATUS", "GC"} {
		var asked atomic.Int32
		d := startFake(t, func(*api.Request) *api.Answer {
			if asked.Add(1) == 1 {
				return nil
			}
			return &api.Answer{}
		})
		invocation{verb: verb, runDir: d.runDir, keys: keys}.run(t).wants(t, 0)
		if n := asked.Load(); n != 2 {
			t.Errorf("%s: asked %d times, want 2", verb, n)
		}
	}
	d := startFake(t, func(*api.Request) *api.Answer { return nil })
	invocation{verb: "CHECK", runDir: d.runDir, keys: keys}.run(t).wants(t, 11, "went away without an answer")
	if n := len(d.seen()); n != 2 {
		t.Errorf("asked %d times, want 2", n)
	}
}

// TestSilentDaemon: every verb ends at its deadline.
func TestSilentDaemon(t *testing.T) {
	if testing.Short() {
		t.Skip("waits for deadlines of ten seconds")
	}
	t.Parallel()
	release := make(chan struct{})
	d := startFake(t, func(*api.Request) *api.Answer { <-release; return nil })
	t.Cleanup(func() { close(release) })
	var calls sync.WaitGroup
	for verb, deadline := range map[string]time.Duration{
		"ADD": callTimeout, "CHECK": callTimeout, "DEL": delTimeout, "STATUS": callTimeout, "GC": callTimeout,
	} {
		calls.Go(func() {
			keys := prevResult + `,"ready":{"timeout":"1ms"},"cni.dev/valid-attachments":[]`
			o := invocation{verb: verb, runDir: d.runDir, keys: keys}.run(t)
			code := types.ErrTryAgainLater
			if verb == "STATUS" {
				code = types.ErrPluginNotAvailable
			}
			o.wants(t, code, "deadline")
			if o.took < deadline || o.took > deadline+ceiling/4 {
				t.Errorf("%s took %v, want %v", verb, o.took, deadline)
			}
		})
	}
	calls.Wait()
}

// TestDelSucceeds whatever is gone.
func TestDelSucceeds(t *testing.T) {
	t.Parallel()
	d := startFake(t, fine)
	gone := startFake(t, func(*api.Request) *api.Answer { return nil })
	for _, tc := range []struct {
		name string
		i    invocation
	}{
		{"everything there", invocation{runDir: d.runDir, keys: prevResult}},
		{"no namespace, no result", invocation{runDir: d.runDir, netns: "none"}},
		{"namespace gone", invocation{runDir: d.runDir, netns: "/run/netns/none"}},
		{"no daemon", invocation{runDir: tempDir(t)}},
		{"daemon goes away", invocation{runDir: gone.runDir}},
		{"no run directory", invocation{runDir: "/run/mld-test-none"}},
		{"run directory that ADD refuses", invocation{runDir: "mld"}},
		{"configuration that ADD refuses", invocation{runDir: d.runDir, keys: `,"groups":["fd00::1"],"novel":1`}},
		{"configuration that is odd", invocation{config: `{"cniVersion":"1.1.0","name":"lab","runDir":5}`}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			tc.i.verb = "DEL"
			o := tc.i.run(t)
			o.wants(t, 0)
			if o.stdout != "" {
				t.Errorf("standard output %q", o.stdout)
			}
		})
	}
	if n := len(d.seen()); n != 4 {
		t.Errorf("the daemon was asked %d times, want 4", n)
	}
	if _, err := os.Stat("/run/mld-test-none"); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("DEL made the run directory: %v", err)
	}
}

// TestDelWithoutDaemonForgets: the next daemon must not bring the attachment back, and must keep the others.
func TestDelWithoutDaemonForgets(t *testing.T) {
	t.Parallel()
	runDir := tempDir(t)
	paths := []string{
		api.StatePath(runDir, api.Attachment{Network: "lab", ContainerID: "c1", IfName: "eth0"}),
		api.StatePath(runDir, api.Attachment{Network: "lab", ContainerID: "c1", IfName: "eth1"}),
	}
	for _, path := range paths {
		if err := errors.Join(os.MkdirAll(filepath.Dir(path), 0o700), os.WriteFile(path, nil, 0o600)); err != nil {
			t.Fatal(err)
		}
	}
	for range 2 {
		invocation{verb: "DEL", runDir: runDir}.run(t).wants(t, 0)
	}
	if _, err := os.Stat(paths[0]); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("the state file stands: %v", err)
	}
	if _, err := os.Stat(paths[1]); err != nil {
		t.Errorf("another's state file is gone: %v", err)
	}
}

func TestCheckNeedsTheResult(t *testing.T) {
	t.Parallel()
	d := startFake(t, fine)
	for _, keys := range []string{``, `,"prevResult":null`} {
		invocation{verb: "CHECK", runDir: d.runDir, keys: keys}.run(t).wants(t, 7, "prevResult")
	}
	if n := len(d.seen()); n != 0 {
		t.Errorf("the daemon was asked %d times", n)
	}
}

func TestCheckNeedsTheDaemon(t *testing.T) {
	t.Parallel()
	runDir := tempDir(t)
	o := invocation{verb: "CHECK", runDir: runDir, keys: prevResult}.run(t)
	o.wants(t, 11, api.SocketPath(runDir), "start mldd")
}

func TestStatus(t *testing.T) {
	t.Parallel()
	d := startFake(t, fine)
	invocation{verb: "STATUS", runDir: d.runDir}.run(t).wants(t, 0)
	runDir := tempDir(t)
	invocation{verb: "STATUS", runDir: runDir}.run(t).wants(t, 50, "no program mldd in "+filepath.Dir(built), "start mldd")
	program := installation(t)
	invocation{verb: "STATUS", runDir: runDir, program: program}.run(t).wants(t, 0)
	broken := scriptedInstallation(t, "exit 3")
	invocation{verb: "STATUS", runDir: runDir, program: broken}.run(t).
		wants(t, 50, "mldd cannot be started: "+filepath.Dir(broken)+"/mldd --version: exit status 3", "start mldd")
	off := invocation{verb: "STATUS", runDir: runDir, program: program, keys: `,"autostart":false`}.run(t)
	off.wants(t, 50, api.SocketPath(runDir))
	invocation{verb: "STATUS", runDir: filepath.Join(runDir, "none"), program: program}.run(t).wants(t, 50, "create it")
	if pids := startedDaemons(t, runDir); len(pids) != 0 {
		t.Errorf("STATUS started %v", pids)
	}
}

// TestStatusHangs: a program that never says its version is ended with the call, and with what it has started.
func TestStatusHangs(t *testing.T) {
	if testing.Short() {
		t.Skip("waits for a deadline of ten seconds")
	}
	t.Parallel()
	runDir := tempDir(t)
	pidFile := filepath.Join(runDir, "pid")
	hangs := scriptedInstallation(t, "sleep 60 & echo $! >"+pidFile+"; wait")
	invocation{verb: "STATUS", runDir: runDir, program: hangs}.run(t).wants(t, 50, "--version: context deadline exceeded")
	text, err := os.ReadFile(pidFile)
	if err != nil {
		t.Fatal(err)
	}
	pid, err := strconv.Atoi(strings.TrimSpace(string(text)))
	if err != nil {
		t.Fatal(err)
	}
	var status unix.WaitStatus
	if _, err := unix.Wait4(pid, &status, 0, nil); err != nil || status.Signal() != unix.SIGKILL {
		t.Errorf("ended with %v, %v: want SIGKILL", status, err)
	}
}

// scriptedInstallation is installation with a shell script as mldd.
func scriptedInstallation(t *testing.T, script string) string {
	t.Helper()
	dir := tempDir(t)
	program := filepath.Join(dir, "mld")
	err := errors.Join(os.Link(built, program), os.WriteFile(filepath.Join(dir, "mldd"), []byte("#!/bin/sh\n"+script+"\n"), 0o700))
	if err != nil {
		t.Fatal(err)
	}
	return program
}

// TestStatusOfContainersLeft: 51 only where nothing can bring the listeners of this network back.
func TestStatusOfContainersLeft(t *testing.T) {
	t.Parallel()
	runDir := tempDir(t)
	remember(t, runDir, "other@c1@eth0.json", "lab@c1@eth0.json.tmp", "lab@c1.json", "lab")
	invocation{verb: "STATUS", runDir: runDir}.run(t).wants(t, 50, "no program mldd", "start mldd")
	remember(t, runDir, "lab@c1@eth0.json", "lab@c2@eth@0.json")
	invocation{verb: "STATUS", runDir: runDir}.run(t).wants(t, 51, "no program mldd", "2 attachments of network lab", "start mldd")
	invocation{verb: "STATUS", runDir: runDir, keys: `,"autostart":false`}.run(t).wants(t, 51, api.SocketPath(runDir), "2 attachments")
	invocation{verb: "STATUS", runDir: runDir, program: scriptedInstallation(t, "exit 3")}.run(t).wants(t, 51, "exit status 3", "2 attachments")
	invocation{verb: "STATUS", runDir: runDir, program: installation(t)}.run(t).wants(t, 0)

	d := startFake(t, func(*api.Request) *api.Answer { return &api.Answer{Error: types.NewError(999, "broken", "")} })
	remember(t, d.runDir, "lab@c1@eth0.json")
	invocation{verb: "STATUS", runDir: d.runDir}.run(t).wants(t, 50, "broken") // a daemon lives, and its listeners may
}

// remember makes state files.
func remember(t *testing.T, runDir string, names ...string) {
	t.Helper()
	dir := filepath.Dir(api.StatePath(runDir, api.Attachment{}))
	if err := os.MkdirAll(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	for _, name := range names {
		if err := os.WriteFile(filepath.Join(dir, name), nil, 0o600); err != nil {
			t.Fatal(err)
		}
	}
}

// remembered returns the names of the state files.
func remembered(t *testing.T, runDir string) []string {
	t.Helper()
	entries, err := os.ReadDir(filepath.Dir(api.StatePath(runDir, api.Attachment{})))
	if err != nil {
		t.Fatal(err)
	}
	var names []string
	for _, e := range entries {
		names = append(names, e.Name())
	}
	return names
}

// TestGCRequest: the daemon gets the list as it is, for this network; without a list it is not asked.
func TestGCRequest(t *testing.T) {
	t.Parallel()
	lab := api.Attachment{Network: "lab"}
	valid := func(list ...api.Attachment) *api.Request {
		return &api.Request{V: 1, Op: "gc", Attachment: lab, Valid: list}
	}
	for _, tc := range []struct {
		name, keys string
		want       *api.Request
	}{
		{"two", `,"cni.dev/valid-attachments":[{"containerID":"c1","ifname":"eth0"},{"containerID":"c2","ifname":"net1","future":1}]`,
			valid(api.Attachment{ContainerID: "c1", IfName: "eth0"}, api.Attachment{ContainerID: "c2", IfName: "net1"})},
		{"none", `,"cni.dev/valid-attachments":[]`, valid()},
		{"none, as libcni writes a nil list", `,"cni.dev/valid-attachments":null,"cni.dev/attachments":null`, valid()},
		{"absent", ``, nil},
		{"a configuration that ADD refuses", `,"groups":["fd00::1"],"novel":1,"prevResult":5,"cni.dev/valid-attachments":[]`, valid()},
	} {
		t.Run(tc.name, func(t *testing.T) {
			d := startFake(t, fine)
			o := invocation{verb: "GC", runDir: d.runDir, keys: tc.keys}.run(t)
			o.wants(t, 0)
			if o.stdout != "" {
				t.Errorf("standard output %q", o.stdout)
			}
			var want []*api.Request
			if tc.want != nil {
				want = []*api.Request{tc.want}
			}
			if diff := cmp.Diff(want, d.seen(), cmpopts.EquateEmpty()); diff != "" {
				t.Error(diff)
			}
		})
	}
}

// TestGCFails: a list that is not understood lets nothing go, with and without a daemon.
func TestGCFails(t *testing.T) {
	t.Parallel()
	d, runDir := startFake(t, fine), tempDir(t)
	remember(t, runDir, "lab@c1@eth0.json")
	for list, texts := range map[string][]string{
		`{}`:     {"cni.dev/valid-attachments: {}", "must be a list"},
		`["c1"]`: {`cni.dev/valid-attachments: ["c1"]`, "must be a list"},
		`[null]`: {"cni.dev/valid-attachments[0]", "container ID"},
		`[{"containerID":"c1","ifname":"eth0"},{"containerID":"c1"}]`:      {"cni.dev/valid-attachments[1]", `"c1"`, "interface name"},
		`[{"containerID":"../c1","ifname":"eth0"}]`:                        {"cni.dev/valid-attachments[0]", `"../c1"`, "container ID"},
		`[{"containerID":"c1","ifname":"a/b"}]`:                            {"cni.dev/valid-attachments[0]", `"a/b"`, "interface name"},
		`[{"containerID":"` + strings.Repeat("c", 500) + `","ifname":""}]`: {"cni.dev/valid-attachments[0]"},
	} {
		for _, dir := range []string{d.runDir, runDir} {
			invocation{verb: "GC", runDir: dir, keys: `,"cni.dev/valid-attachments":` + list}.run(t).wants(t, 7, texts...)
		}
	}
	if n := len(d.seen()); n != 0 {
		t.Errorf("the daemon was asked %d times", n)
	}
	if names := remembered(t, runDir); len(names) != 1 {
		t.Errorf("state files: %q", names)
	}
	broken := startFake(t, func(*api.Request) *api.Answer { return &api.Answer{Error: types.NewError(999, "c7: no", "")} })
	o := invocation{verb: "GC", runDir: broken.runDir, keys: `,"cni.dev/valid-attachments":[]`}.run(t)
	o.wants(t, 999, "c7: no")
}

// TestGCWithoutDaemonForgets: the next daemon must not bring back what is gone. None is started for that.
func TestGCWithoutDaemonForgets(t *testing.T) {
	t.Parallel()
	foreign := []string{"lab", "lab2@c9@eth0.json", "lab@c9.json", "lab@c9@eth0", "lab@c9@eth0.json.tmp", "other@c9@eth0.json"}
	gone := startFake(t, func(*api.Request) *api.Answer { return nil }) // hangs up
	program := installation(t)
	for _, tc := range []struct {
		name, list string
		want       []string
	}{
		{"some", `[{"containerID":"c1","ifname":"eth0"},{"containerID":"c2","ifname":"e@1"},{"containerID":"c9","ifname":"eth0"}]`,
			[]string{"lab@c1@eth0.json", "lab@c2@e@1.json"}},
		{"none", `[]`, nil},
		{"null", `null`, nil},
	} {
		for _, runDir := range []string{runDirWithCleanup(t, ""), gone.runDir} {
			remember(t, runDir, "lab@c1@eth0.json", "lab@c1@eth1.json", "lab@c2@eth0.json", "lab@c2@e@1.json")
			remember(t, runDir, foreign...)
			for range 2 {
				invocation{verb: "GC", runDir: runDir, program: program, keys: `,"cni.dev/valid-attachments":` + tc.list}.run(t).wants(t, 0)
			}
			want := slices.Sorted(slices.Values(slices.Concat(foreign, tc.want)))
			if diff := cmp.Diff(want, remembered(t, runDir)); diff != "" {
				t.Errorf("%s: %s", tc.name, diff)
			}
			if births := startedDaemons(t, runDir); len(births) != 0 {
				t.Errorf("started %+v", births)
			}
		}
	}
	for _, runDir := range []string{"/run/mld-test-none", "mld", tempDir(t)} {
		invocation{verb: "GC", runDir: runDir, keys: `,"cni.dev/valid-attachments":[]`}.run(t).wants(t, 0)
	}
	if _, err := os.Stat("/run/mld-test-none"); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("GC made the run directory: %v", err)
	}
}

// TestDaemonOfTheMeantime: whoever waited for the lock asks again, for the file may be a daemon's by now.
func TestDaemonOfTheMeantime(t *testing.T) {
	t.Parallel()
	for _, verb := range []string{"DEL", "GC"} {
		runDir := tempDir(t)
		remember(t, runDir, "lab@c1@eth0.json")
		holder, err := os.OpenFile(api.LockPath(runDir), os.O_RDWR|os.O_CREATE, 0o600)
		if err != nil {
			t.Fatal(err)
		}
		defer holder.Close()
		if err := unix.Flock(int(holder.Fd()), unix.LOCK_EX); err != nil {
			t.Fatal(err)
		}
		opened := watchOpen(t, api.LockPath(runDir))
		ended := make(chan outcome)
		go func() {
			ended <- invocation{verb: verb, runDir: runDir, keys: `,"cni.dev/valid-attachments":[]`}.run(t)
		}()
		opened.SetReadDeadline(time.Now().Add(ceiling))
		if _, err := opened.Read(make([]byte, 4096)); err != nil { // it has found no daemon
			t.Fatal(err)
		}
		d := startFakeIn(t, runDir, fine)
		holder.Close()
		(<-ended).wants(t, 0)
		if n := len(d.seen()); n != 1 {
			t.Errorf("%s: the daemon was asked %d times", verb, n)
		}
		if names := remembered(t, runDir); len(names) != 1 {
			t.Errorf("%s: the daemon's state files are %q", verb, names)
		}
	}
}

// TestDaemonBesideForget: a daemon that is started by other means than the plugin's, which takes no lock, may have read the
// files that are removed, and is asked as well.
func TestDaemonBesideForget(t *testing.T) {
	t.Parallel()
	runDir := tempDir(t)
	request := &api.Request{Op: api.OpDel, Attachment: api.Attachment{Network: "lab", ContainerID: "c1", IfName: "eth0"}}
	var d *fakeDaemon
	if err := detach(t.Context(), runDir, request, func() error { d = startFakeIn(t, runDir, fine); return nil }); err != nil {
		t.Fatal(err)
	}
	if n := len(d.seen()); n != 1 {
		t.Errorf("the daemon was asked %d times", n)
	}
}

// watchOpen returns a file that can be read once path is opened.
func watchOpen(t *testing.T, path string) *os.File {
	t.Helper()
	fd, err := unix.InotifyInit1(unix.IN_NONBLOCK | unix.IN_CLOEXEC)
	if err != nil {
		t.Fatal(err)
	}
	f := os.NewFile(uintptr(fd), "inotify")
	t.Cleanup(func() { f.Close() })
	if _, err := unix.InotifyAddWatch(fd, path, unix.IN_OPEN); err != nil {
		t.Fatal(err)
	}
	return f
}

// TestGCGoesOn: one file that cannot be removed does not keep the others.
func TestGCGoesOn(t *testing.T) {
	t.Parallel()
	runDir := tempDir(t)
	remember(t, runDir, "lab@c1@eth0.json", "lab@c3@eth0.json")
	stuck := api.StatePath(runDir, api.Attachment{Network: "lab", ContainerID: "c2", IfName: "eth0"})
	if err := os.MkdirAll(filepath.Join(stuck, "x"), 0o700); err != nil { // a directory with something in it
		t.Fatal(err)
	}
	o := invocation{verb: "GC", runDir: runDir, keys: `,"cni.dev/valid-attachments":[]`}.run(t)
	o.wants(t, 11, stuck)
	if diff := cmp.Diff([]string{"lab@c2@eth0.json"}, remembered(t, runDir)); diff != "" {
		t.Error(diff)
	}
}

// BenchmarkStart is the plugin's own cost: fork and exec of a Go program, and nothing asked of anybody.
func BenchmarkStart(b *testing.B) {
	for b.Loop() {
		invocation{verb: "VERSION"}.run(b)
	}
}

// BenchmarkAdd is an ADD with a daemon that answers at once.
func BenchmarkAdd(b *testing.B) {
	d := startFake(b, fine)
	for b.Loop() {
		invocation{verb: "ADD", runDir: d.runDir, keys: `,"groups":["ff05::4321"]` + prevResult}.run(b)
	}
}
