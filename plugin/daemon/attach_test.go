package daemon_test

import (
	"fmt"
	"io"
	"log/slog"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/containernetworking/cni/pkg/types"
	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
	"github.com/prometheus/client_golang/prometheus"

	"github.com/seed-aaab8e3a/cni-mld/mld/agent"
	"github.com/seed-aaab8e3a/cni-mld/mld/bridge"
	"github.com/seed-aaab8e3a/cni-mld/mld/netns"
	"github.com/seed-aaab8e3a/cni-mld/netnslab"
	"github.com/seed-aaab8e3a/cni-mld/plugin/api"
)

// TestAddAgain brings an attachment to other settings: nothing is left that stays.
func TestAddAgain(t *testing.T) {
	one := `"groups": ["ff05::1:1", {"group": "ff05::1:2", "deliver": false}]`
	for _, tc := range []struct {
		what, before, after string
		want                []string // said while the settings change
	}{
		{"the same", one, one, nil},
		{"the same in another order", one, `"groups": [{"group": "ff05::1:2", "deliver": false}, "ff05::1:1"]`, nil},
		{"other groups", one, `"groups": ["ff05::1:1", "ff05::1:3"]`, []string{"Report ff05::1:3", "Done ff05::1:2"}},
		{"one group less", one, `"groups": [{"group": "ff05::1:2", "deliver": false}]`, []string{"Done ff05::1:1"}},
		{"delivered no more", one, `"groups": [{"group": "ff05::1:1", "deliver": false}, {"group": "ff05::1:2", "deliver": false}]`, nil},
		{"delivered as well", one, `"groups": ["ff05::1:1", "ff05::1:2"]`, nil},
		{"other readiness", one, one + `, "ready": {"wait": "report"}`, nil},
		{"other robustness", one, one + `, "robustness": 3`, []string{"Report ff05::1:1", "Report ff05::1:2"}},
		{"other robustness and groups", one, `"groups": ["ff05::1:1", "ff05::1:3"], "robustness": 3`,
			[]string{"Done ff05::1:2", "Report ff05::1:1", "Report ff05::1:3"}},
		{"other robustness and a delivered group less", one, `"groups": [{"group": "ff05::1:2", "deliver": false}], "robustness": 3`,
			[]string{"Report ff05::1:1", "Done ff05::1:1", "Report ff05::1:2"}},
		{"other robustness, and delivery for the first time", `"groups": []`, `"groups": ["ff05::1:1"], "robustness": 3`,
			[]string{"Report ff05::1:1"}},
	} {
		t.Run(tc.what, func(t *testing.T) {
			r := serve(t)
			pod, peer := r.pod("c1")
			// Repeats come after an hour, so that each Report has a cause.
			const calm = `, "unsolicitedReportInterval": "1h"`
			before, after := settings(t, "%s", tc.before+calm), settings(t, "%s", tc.after+calm)
			r.add("lab", pod.Node(), before)
			w := r.listen(peer)
			w.mark(pod)
			got := w.since(pod, func() { r.add("lab", pod.Node(), after) })
			// Between two agents the kernel may speak, and say that it listens.
			got = slices.DeleteFunc(got, func(s string) bool { return strings.HasPrefix(s, "TO_EX") || strings.HasPrefix(s, "IS_EX") })
			slices.Sort(got)
			slices.Sort(tc.want)
			if diff := cmp.Diff(tc.want, got, cmpopts.EquateEmpty()); diff != "" {
				t.Error(diff)
			}
			r.check("lab", pod.Node(), after)

		})
	}
}

// TestLifeOfAnAttachment goes through ADD, CHECK, STATUS and DEL on a bridge that forwards what is asked for alone.
func TestLifeOfAnAttachment(t *testing.T) {
	r := serve(t)
	br := r.lab.Bridge("br0", netnslab.BridgeOptions{Querier: 1})
	pod := br.Connect(r.lab.Node("c1"), "eth0")
	silent := br.Connect(r.lab.Node("c2"), "eth0")
	pod.LinkLocal()
	br.WaitQuerying(soon(t))

	s := settings(t, `"groups": ["ff05::1:1", {"group": "ff05::1:2", "deliver": false}], "ready": {"wait": "auto", "timeout": "20s"}`)
	if answer := r.add("lab", pod.Node(), s); answer.Degraded != "" {
		t.Errorf("degraded: %s", answer.Degraded)
	}
	for e, want := range map[*netnslab.Endpoint][]netip.Addr{pod: {first, second}, silent: nil} {
		entries, err := e.Port().Members()
		if err != nil {
			t.Fatal(err)
		}
		got := slices.DeleteFunc(groupsOf(entries), func(a netip.Addr) bool { return a != first && a != second })
		if diff := cmp.Diff(want, got, cmpopts.EquateEmpty(), cmpopts.EquateComparable(netip.Addr{})); diff != "" {
			t.Errorf("the bridge's entries at %v: %s", e, diff)
		}
	}
	r.check("lab", pod.Node(), s)
	status := r.must(&api.Request{Op: api.OpStatus}).Status
	own, err := os.Readlink("/proc/self/ns/net")
	if err != nil {
		t.Fatal(err)
	}
	if status.Attachments != 1 || status.PID != os.Getpid() || status.Version != "test" || status.Netns != own || status.SelfStarted ||
		!strings.HasPrefix(status.Binary, "/") || !strings.Contains(status.Cgroup, "/") {
		t.Errorf("status %+v", status)
	}

	r.refused(r.request(api.OpCheck, "lab", pod.Node(), settings(t, `"groups": ["ff05::1:1"]`)), api.CodeNotReady, "other settings")
	r.refused(r.request(api.OpCheck, "lab", pod.Node(), settings(t, `"groups": ["ff05::1:3"], "robustness": 3`)), api.CodeNotReady,
		"robustness: 3 here, 2 there", "ready", "groups: [ff05::1:3]")
	w := r.listen(pod.Peer())
	if r.del("lab", pod.Node()).Unknown {
		t.Error("unknown, although it was attached")
	}
	w.waitAll("Done "+first.String(), "Done "+second.String())
	r.wantAttachments(0)
	r.refused(r.request(api.OpCheck, "lab", pod.Node(), s), types.ErrUnknownContainer, "lab/c1/eth0")
	if !r.del("lab", pod.Node()).Unknown || !r.del("never", silent.Node()).Unknown {
		t.Error("known, although it was not attached")
	}
	r.wantNoAgents()
}

func groupsOf(entries []bridge.Entry) []netip.Addr {
	var list []netip.Addr
	for _, e := range entries {
		list = append(list, e.Group)
	}
	slices.SortFunc(list, netip.Addr.Compare)
	return list
}

// TestTwoNetworks: two attachments of one interface share its listener, and each leaves what it alone wants.
func TestTwoNetworks(t *testing.T) {
	r := serve(t)
	pod, peer := r.pod("c1")
	const calm = `"unsolicitedReportInterval": "1h", `
	a := settings(t, calm+`"groups": ["ff05::1:1", {"group": "ff05::1:2", "deliver": false}]`)
	b := settings(t, calm+`"groups": ["ff05::1:1", {"group": "ff05::1:2", "deliver": false}, {"group": "ff05::1:3", "deliver": false}]`)
	r.add("a", pod.Node(), a)
	w := r.listen(peer)
	w.mark(pod)

	for _, tc := range []struct {
		key string
		is  string
	}{
		{"robustness", `"robustness": 3`}, {"profile", `"profile": "kame"`}, {"mldVersion", `"mldVersion": "auto"`}, {"kernelReports", `"kernelReports": "keep"`},
		{"alwaysDone", `"alwaysDone": true`}, {"unsolicitedReportInterval", `"unsolicitedReportInterval": "2s"`},
	} {
		got := w.since(pod, func() {
			r.refused(r.request(api.OpAdd, "b", pod.Node(), settings(t, "%s", tc.is)), types.ErrInvalidNetworkConfig, tc.key, "eth0")
		})
		if len(got) > 0 {
			t.Errorf("said because of a refusal: %v", got)
		}
	}
	r.wantAttachments(1)
	for _, step := range []struct {
		do   func()
		want []string
	}{
		{func() { r.add("b", pod.Node(), b) }, []string{"Report ff05::1:3"}},
		{func() { r.check("a", pod.Node(), a); r.check("b", pod.Node(), b) }, nil},
		{func() { r.del("a", pod.Node()) }, nil},
		{func() { r.add("a", pod.Node(), a) }, nil},
		{func() { r.del("b", pod.Node()) }, []string{"Done ff05::1:3"}},
	} {
		if diff := cmp.Diff(step.want, w.since(pod, step.do), cmpopts.EquateEmpty()); diff != "" {
			t.Error(diff)
		}
	}
	// The only one left may change what all have to agree on, and what is agreed then holds for the next.
	changed := settings(t, calm+`"groups": [{"group": "ff05::1:2", "deliver": false}], "robustness": 3`)
	r.add("a", pod.Node(), changed)
	r.add("b", pod.Node(), changed)
	if got := w.since(pod, func() { r.del("b", pod.Node()) }); len(got) > 0 {
		t.Errorf("another network still wants it: %v", got)
	}
	r.del("a", pod.Node())
	w.waitAll("Done " + second.String())
	r.wantNoAgents()
}

// TestMoved: an ADD of a known attachment with another interface ends the former.
func TestMoved(t *testing.T) {
	r := serve(t)
	here, herePeer := r.pod("c1")
	there, _ := r.pod("c2")
	r.add("other", there.Node(), settings(t, `"groups": ["ff05::1:3"]`))
	s := settings(t, `"groups": [{"group": "ff05::1:1", "deliver": false}]`)
	r.add("lab", here.Node(), s)
	w := r.listen(herePeer)
	moved := r.request(api.OpAdd, "lab", there.Node(), s)
	moved.ContainerID = here.Node().Name()
	r.must(moved)
	w.wait("Done " + first.String())
	r.wantAttachments(2)
	registry := prometheus.NewRegistry()
	registry.MustRegister(r.daemon.Metrics())
	if _, err := registry.Gather(); err != nil { // while the former listener is on its way out
		t.Error(err)
	}
	moved.Op = api.OpCheck
	r.must(moved)
	r.refused(r.request(api.OpCheck, "lab", here.Node(), s), api.CodeNotReady, "another namespace")
}

// TestConcurrency has the same attachments, and several of one interface, added and removed side by side.
func TestConcurrency(t *testing.T) {
	r := serve(t)
	const pods, networks, rounds = 2, 2, 6
	all := []*api.Settings{
		settings(t, `"groups": ["ff05::1:1", {"group": "ff05::1:2", "deliver": false}]`),
		settings(t, `"groups": ["ff05::1:2", {"group": "ff05::1:3", "deliver": false}], "ready": {"wait": "report"}`),
		settings(t, `"groups": ["ff05::1:1"], "robustness": 3`),
	}
	var containers []*netnslab.Node
	for p := range pods {
		pod, _ := r.pod(fmt.Sprint("c", p))
		containers = append(containers, pod.Node())
	}
	var work sync.WaitGroup
	for _, container := range containers {
		for n := range networks {
			for worker := range 3 {
				network := fmt.Sprint("net", n)
				work.Go(func() {
					for round := range rounds {
						op := api.OpAdd
						if (worker+round)%3 == 0 {
							op = api.OpDel
						}
						answer, err := r.call(r.request(op, network, container, all[(worker+round)%len(all)]))
						if err != nil {
							t.Error(err)
							return
						}
						e := answer.Error
						contradicts := e != nil && e.Code == types.ErrInvalidNetworkConfig
						overtaken := e != nil && op == api.OpAdd && strings.Contains(e.Msg, "its DEL has come")
						if e != nil && !contradicts && !overtaken {
							t.Errorf("%s: %v", op, e)
						}
					}
				})
			}
		}
	}
	work.Wait()
	for _, container := range containers {
		for n := range networks {
			r.del(fmt.Sprint("net", n), container)
		}
	}
	r.wantAttachments(0)
	r.wantNoAgents()
}

// TestRefusals: what cannot be done is refused by code and name, and leaves nothing behind.
func TestRefusals(t *testing.T) {
	r := serve(t)
	pod, _ := r.pod("c1")
	host := r.lab.Host().Netns().File()
	s := settings(t, `"groups": ["ff05::1:1"]`)
	home, err := netns.Current()
	if err != nil {
		t.Fatal(err)
	}
	defer home.Close()
	null, err := os.Open(os.DevNull)
	if err != nil {
		t.Fatal(err)
	}
	defer null.Close()
	off := r.lab.Node("off")
	_, offEnd := r.lab.Veth(r.lab.Node("off-peer"), "eth0", off, "eth0")
	off.SetSysctl("net/ipv6/conf/"+offEnd.Name()+"/disable_ipv6", "1")
	taken, _ := r.pod("taken")
	other, err := agent.Start(agent.Config{Netns: taken.Node().Netns(), Index: taken.Index()})
	if err != nil {
		t.Fatal(err)
	}
	defer func() { other.Close(); <-other.Done() }()

	for _, tc := range []struct {
		what   string
		node   *netnslab.Node
		change func(*api.Request)
		s      *api.Settings
		code   uint
		names  []string
	}{
		{"the caller's namespace", pod.Node(), func(q *api.Request) { q.Netns = host }, s, types.ErrInvalidEnvironmentVariables,
			[]string{"CNI_NETNS", "host's namespace"}},
		{"the daemon's namespace", pod.Node(), func(q *api.Request) { q.Netns = home.File() }, s, types.ErrInvalidEnvironmentVariables,
			[]string{"CNI_NETNS", "host's namespace"}},
		{"no namespace", pod.Node(), func(q *api.Request) { q.Netns = null }, s, types.ErrInvalidEnvironmentVariables, []string{"CNI_NETNS"}},
		{"a caller without a namespace", pod.Node(), func(q *api.Request) { q.HostNetns = null }, s, types.ErrIOFailure, []string{"caller's own"}},
		{"no such interface", pod.Node(), func(q *api.Request) { q.IfName = "eth7" }, s, types.ErrInvalidEnvironmentVariables,
			[]string{"CNI_IFNAME", "eth7"}},
		{"not Ethernet", pod.Node(), func(q *api.Request) { q.IfName = "lo" }, s, api.CodeNotEthernet, []string{"lo"}},
		{"no descriptors", pod.Node(), func(q *api.Request) { q.Netns, q.HostNetns = nil, nil }, s, types.ErrDecodingFailure, []string{"netns"}},
		{"no settings", pod.Node(), func(q *api.Request) { q.Settings = nil }, s, types.ErrDecodingFailure, []string{"settings"}},
		{"IPv6 off", off, nil, s, api.CodeIPv6Off, []string{"ff05::1:1", "net.ipv6.conf.eth0.disable_ipv6"}},
		{"IPv6 off, report asked for", off, nil, settings(t,
			`"groups": [{"group": "ff05::1:1", "deliver": false}], "ready": {"wait": "report", "timeout": "50ms"}`),
			api.CodeNotReady, []string{"report", "IPv6 is off", "50ms"}},
		{"no bridge", pod.Node(), nil, settings(t, `"groups": ["ff05::1:1"], "ready": {"wait": "mdb", "timeout": "50ms"}`),
			api.CodeNotReady, []string{"mdb", "not a port"}},
		{"muted by another process", taken.Node(), nil, s, api.CodeKernelReports, []string{"kernelReports", "muted by somebody else"}},
	} {
		t.Run(tc.what, func(t *testing.T) {
			r := r.in(t)
			for _, op := range []string{api.OpAdd, api.OpCheck} {
				request := r.request(op, "lab", tc.node, tc.s)
				if tc.change != nil {
					tc.change(request)
				}
				if op == api.OpAdd {
					r.refused(request, tc.code, tc.names...)
				} else { // there is no such attachment, whatever else is wrong
					before := r.settled()
					if answer, err := r.call(request); err != nil || answer.Error == nil {
						t.Errorf("%+v, %v", answer, err)
					}
					r.wantDescriptors(before)
				}
			}
			r.wantAttachments(0)
		})
	}
	// And none of it stands in the way.
	r.add("lab", pod.Node(), s)
}

// TestAddFailsOverWhatStands: what stood before stands as before, is remembered, and nothing of it was left on the wire.
func TestAddFailsOverWhatStands(t *testing.T) {
	const (
		calm   = `, "unsolicitedReportInterval": "1h"`
		stands = `"groups": ["ff05::1:1", {"group": "ff05::1:2", "deliver": false}]` + calm
		notMDB = `, "ready": {"wait": "mdb", "timeout": "50ms"}` // there is no bridge
	)
	for _, tc := range []struct {
		what, before, after string
		then                func(t *testing.T, r *rig, pod *netnslab.Endpoint)
		code                uint
		want                []string // said while the settings change and change back
	}{
		{"other groups", stands, `"groups": ["ff05::1:1", "ff05::1:3", {"group": "ff05::1:4", "deliver": false}]` + calm + notMDB, nil,
			api.CodeNotReady, []string{"Done ff05::1:2", "Report ff05::1:2"}},
		{"other readiness", stands, stands + notMDB, nil, api.CodeNotReady, nil},
		{"delivered no more", stands, `"groups": [{"group": "ff05::1:1", "deliver": false}, "ff05::1:2"]` + calm + notMDB, nil, api.CodeNotReady, nil},
		{"other robustness", stands, stands + `, "robustness": 3` + notMDB, nil, api.CodeNotReady,
			[]string{"Report ff05::1:1", "Report ff05::1:2", "Report ff05::1:1", "Report ff05::1:2"}},
		{"another network's voice", stands, stands + `, "robustness": 3`, func(t *testing.T, r *rig, pod *netnslab.Endpoint) {
			r.add("other", pod.Node(), settings(t, `"groups": []`+calm))
		}, types.ErrInvalidNetworkConfig, nil},
		{"muted by another process", `"groups": [{"group": "ff05::1:1", "deliver": false}], "kernelReports": "keep"` + calm,
			`"groups": ["ff05::1:1"], "kernelReports": "mute"` + calm, func(t *testing.T, _ *rig, pod *netnslab.Endpoint) {
				other, err := agent.Start(agent.Config{Netns: pod.Node().Netns(), Index: pod.Index()})
				if err != nil {
					t.Fatal(err)
				}
				t.Cleanup(func() { other.Close(); <-other.Done() })
			}, api.CodeKernelReports, []string{"Report ff05::1:1"}},
	} {
		t.Run(tc.what, func(t *testing.T) {
			r := serve(t)
			pod, peer := r.pod("c1")
			before, after := settings(t, "%s", tc.before), settings(t, "%s", tc.after)
			r.add("lab", pod.Node(), before)
			if tc.then != nil {
				tc.then(t, r, pod)
			}
			file := api.StatePath(r.runDir, r.request(api.OpAdd, "lab", pod.Node(), nil).Attachment)
			remembered, err := os.ReadFile(file)
			if err != nil {
				t.Fatal(err)
			}
			w := r.listen(peer)
			w.mark(pod)
			got := w.since(pod, func() {
				r.refused(r.request(api.OpAdd, "lab", pod.Node(), after), tc.code, "stands as before, with its former settings")
			})
			got = slices.DeleteFunc(got, func(s string) bool { // what comes for a moment may be heard of or not
				return strings.HasPrefix(s, "TO_EX") || strings.HasPrefix(s, "IS_EX") || strings.HasSuffix(s, ":3") || strings.HasSuffix(s, ":4")
			})
			slices.Sort(got)
			slices.Sort(tc.want)
			if diff := cmp.Diff(tc.want, got, cmpopts.EquateEmpty()); diff != "" {
				t.Error(diff)
			}
			r.check("lab", pod.Node(), before)
			for _, line := range r.all(&api.Request{Op: api.OpGroups}) {
				g := line.Group
				if declared := slices.ContainsFunc(before.Groups, func(d api.Group) bool { return d.Addr == g.Group }); declared != strings.HasPrefix(g.Group.String(), "ff05:") {
					t.Errorf("%v is still there: %+v", g.Group, g)
				}
			}
			if again, err := os.ReadFile(file); err != nil || string(again) != string(remembered) {
				t.Errorf("%v: remembered\n%s, before\n%s", err, again, remembered)
			}
			w.mark(pod)
			if got := w.since(pod, func() { r.add("lab", pod.Node(), before) }); len(got) > 0 {
				t.Errorf("the former settings again: %q", got)
			}
		})
	}
}

// tooMuch has programs join more than a daemon with MaxJoined 20 mirrors, and returns what takes it back.
func (r *rig) tooMuch(pod *netnslab.Endpoint) (mend func()) {
	r.Helper()
	var joined []*netnslab.Membership
	for i := range 20 {
		joined = append(joined, pod.Join(netip.MustParseAddr(fmt.Sprintf("ff05::99:%x", i))))
	}
	return func() {
		r.Helper()
		for _, m := range joined {
			m.Close()
		}
	}
}

// waitEnded waits for the end of the only attachment's listener.
func (r *rig) waitEnded() {
	r.Helper()
	netnslab.WaitFor(r, "end of the listener", patience, func() (bool, string) {
		a := r.all(&api.Request{Op: api.OpList})[0].Attachment
		return a.State == api.StateEnded, a.State
	})
}

// TestAddOverEnded: an ADD over an attachment whose listener has ended starts another one. Where none can be started, what the
// kernel holds of the attachment stays, and is remembered, whatever the ADD has declared.
func TestAddOverEnded(t *testing.T) {
	r := &rig{TB: t, lab: netnslab.New(t), runDir: newRunDir(t)}
	cfg := config(t, r.runDir)
	cfg.MaxJoined = 20
	r.serve(cfg)
	pod, peer := r.pod("c1")
	s := settings(t, `"mldVersion": 2, "groups": ["%v", {"group": "%v", "deliver": false}], "ready": {"wait": "report"}`, first, second)
	other := settings(t, `"mldVersion": 2, "robustness": 3, "groups": ["%v"]`, third)
	w := r.listen(peer)
	before := r.settled()
	r.add("lab", pod.Node(), s)
	remembered, err := os.ReadFile(r.stateFile("lab", pod.Node()))
	if err != nil {
		t.Fatal(err)
	}
	mend := r.tooMuch(pod)
	r.waitEnded()

	stands := func(declared int) {
		t.Helper()
		r.wantAttachments(1)
		if a := r.all(&api.Request{Op: api.OpList})[0].Attachment; a.State != api.StateEnded || a.Declared != declared {
			t.Errorf("%+v", a)
		}
		if f := [2]string{filterOf(t, pod, first), filterOf(t, pod, third)}; f != [2]string{"exclude []", ""} {
			t.Errorf("of what is declared, and what was to be, the kernel has %q", f)
		}
		if again, err := os.ReadFile(r.stateFile("lab", pod.Node())); err != nil || string(again) != string(remembered) {
			t.Errorf("%v: remembered\n%s, before\n%s", err, again, remembered)
		}
		if said := w.said(); slices.Contains(said, "TO_IN "+first.String()) {
			t.Errorf("left: %v", said)
		}
	}
	for _, wanted := range []*api.Settings{s, other} {
		r.refused(r.request(api.OpAdd, "lab", pod.Node(), wanted), api.CodeKernelReports, "--max-joined", "stands as before, without a listener")
		stands(2)
	}
	enough := leaveDescriptors(t, 40)
	r.refused(r.request(api.OpAdd, "lab", pod.Node(), s), types.ErrTryAgainLater, "RLIMIT_NOFILE")
	enough()
	stands(2)

	another := func() { // network has a listener there, for a moment
		r.add("other", pod.Node(), settings(t, `"mldVersion": 2`))
		r.del("other", pod.Node())
	}
	mend()
	another()
	pod.Node().SetSysctl("net/ipv6/conf/eth0/disable_ipv6", "1")
	answer, err := r.call(r.request(api.OpAdd, "lab", pod.Node(), other))
	if err != nil {
		t.Fatal(err)
	}
	wantError(t, answer.Error, api.CodeIPv6Off, third.String(), "stands as before, with its former settings") // and a listener
	pod.Node().SetSysctl("net/ipv6/conf/eth0/disable_ipv6", "0")
	pod.LinkLocal()
	r.add("lab", pod.Node(), s)
	r.check("lab", pod.Node(), s)

	mend = r.tooMuch(pod)
	r.waitEnded()
	mend()
	another()
	path, remove := named(t, pod.Node())
	request := r.request(api.OpAdd, "lab", pod.Node(), s)
	request.NetnsPath = path
	r.must(request)
	r.check("lab", pod.Node(), s)
	said := len(w.said())
	remove() // which is its end
	netnslab.WaitFor(t, "leaves", patience, func() (bool, string) {
		got := w.said()[said:]
		return containsAll(got, []string{"TO_IN " + first.String(), "TO_IN " + second.String()}), fmt.Sprint(got)
	})
	netnslab.WaitFor(t, "end of the attachment", patience, func() (bool, string) {
		n := r.must(&api.Request{Op: api.OpStatus}).Status.Attachments
		return n == 0, fmt.Sprint(n)
	})
	r.wantStateFiles(0)
	r.wantNoAgents()
	r.wantDescriptors(before)
}

// TestEndedDuringAdd: where the listener ends during an ADD, and none can be started, what stood before stands without one:
// the kernel holds its groups with delivery.
func TestEndedDuringAdd(t *testing.T) {
	for what, voice := range map[string]string{"the same listener": "", "another listener": `, "robustness": 3`} {
		t.Run(what, func(t *testing.T) {
			r := &rig{TB: t, lab: netnslab.New(t), runDir: newRunDir(t)}
			cfg := config(t, r.runDir)
			cfg.MaxJoined = 20
			r.serve(cfg)
			pod, peer := r.pod("c1", netnslab.Down)
			s := settings(t, `"groups": ["%v"]`, first)
			before := r.settled()
			r.add("lab", pod.Node(), s)
			remembered, err := os.ReadFile(r.stateFile("lab", pod.Node()))
			if err != nil {
				t.Fatal(err)
			}
			answers := r.callWaiting(r.request(api.OpAdd, "lab", pod.Node(),
				settings(t, `"groups": ["%v", "%v"], "ready": {"wait": "report", "timeout": "30s"}%s`, second, third, voice)), 2)
			mend := r.tooMuch(pod)
			wantError(t, (<-answers).Error, api.CodeNotReady, "more than 20", "stands with its former settings, but without a listener", "--max-joined")
			r.wantEnded(pod, s, "--max-joined")
			if f := [2]string{filterOf(t, pod, first), filterOf(t, pod, second)}; f != [2]string{"exclude []", ""} {
				t.Errorf("of what stood before, and what was to stand, the kernel has %q", f)
			}
			if again, err := os.ReadFile(r.stateFile("lab", pod.Node())); err != nil || string(again) != string(remembered) {
				t.Errorf("%v: remembered\n%s, before\n%s", err, again, remembered)
			}
			mend()
			peer.SetUp()
			pod.SetUp()
			pod.LinkLocal()
			r.add("lab", pod.Node(), s)
			r.check("lab", pod.Node(), s)
			r.del("lab", pod.Node())
			r.wantStateFiles(0)
			r.wantNoAgents()
			r.wantDescriptors(before)
		})
	}
}

// callWaiting sends an ADD of so many groups, and returns when it waits for readiness.
func (r *rig) callWaiting(add *api.Request, declared int) <-chan *api.Answer {
	r.Helper()
	answers := make(chan *api.Answer, 1)
	go func() {
		answer, err := r.call(add)
		if err != nil {
			r.Error(err)
			answer = &api.Answer{}
		}
		answers <- answer
	}()
	netnslab.WaitFor(r, "the wait for readiness", patience, func() (bool, string) {
		list := r.all(&api.Request{Op: api.OpList})
		return len(list) == 1 && list[0].Attachment.Declared == declared, fmt.Sprint(list)
	})
	return answers
}

// TestInterfaceGoneDuringAdd: where nothing can stand any more, the error says so, and nothing is left.
func TestInterfaceGoneDuringAdd(t *testing.T) {
	r := serve(t)
	pod, _ := r.pod("c1", netnslab.Down)
	r.add("lab", pod.Node(), settings(t, `"groups": ["%v"]`, first))
	answers := r.callWaiting(r.request(api.OpAdd, "lab", pod.Node(),
		settings(t, `"groups": ["%v", "%v"], "ready": {"wait": "report", "timeout": "30s"}`, first, second)), 2)
	pod.Delete()
	wantError(t, (<-answers).Error, api.CodeNotReady, "the attachment that stood before has ended", "gone")
	r.wantAttachments(0)
	r.wantNoAgents()
}

// TestNotRemembered: what an ADD leaves behind that could not be undone entirely is answered or logged.
func TestNotRemembered(t *testing.T) {
	log := new(lockedBuffer)
	r := &rig{TB: t, lab: netnslab.New(t), runDir: newRunDir(t)}
	cfg := config(t, r.runDir)
	cfg.Logger = slog.New(slog.NewTextHandler(io.MultiWriter(t.Output(), log), nil))
	r.serve(cfg)
	pod, _ := r.pod("c1")
	s := settings(t, `"groups": ["%v"]`, first)
	file := r.stateFile("lab", pod.Node())
	if err := os.MkdirAll(filepath.Join(file, "full"), 0o700); err != nil {
		t.Fatal(err)
	}
	notReady := settings(t, `"groups": ["%v"], "ready": {"wait": "mdb", "timeout": "50ms"}`, first) // there is no bridge
	r.refused(r.request(api.OpAdd, "lab", pod.Node(), notReady), api.CodeNotReady, "not a port")
	netnslab.WaitFor(t, "what is logged", patience, func() (bool, string) {
		return strings.Contains(log.String(), "not a port") && strings.Contains(log.String(), "remove "+file), log.String()
	})

	if err := os.RemoveAll(file); err != nil {
		t.Fatal(err)
	}
	r.add("lab", pod.Node(), s)
	if err := os.RemoveAll(filepath.Dir(file)); err != nil {
		t.Fatal(err)
	}
	r.refused(r.request(api.OpAdd, "lab", pod.Node(), settings(t, `"groups": ["%v"]`, second)), types.ErrInternal,
		"state", "stands as before, with its former settings; it may be remembered otherwise: state", file)
	r.check("lab", pod.Node(), s)
	r.del("lab", pod.Node())
}

// TestDegraded: "auto" says why it is not ready, and the listener goes on when it can.
func TestDegraded(t *testing.T) {
	r := serve(t)
	pod, peer := r.pod("c1", netnslab.Down)
	s := settings(t, `"groups": [{"group": "ff05::1:1", "deliver": false}], "ready": {"timeout": "50ms"}`)
	if answer := r.add("lab", pod.Node(), s); !strings.Contains(answer.Degraded, "the link is down") {
		t.Errorf("degraded: %q", answer.Degraded)
	}
	if answer := r.add("lab", pod.Node(), s); !strings.Contains(answer.Degraded, "the link is down") {
		t.Errorf("added again, degraded: %q", answer.Degraded)
	}
	r.refused(r.request(api.OpCheck, "lab", pod.Node(), s), api.CodeNotReady, "eth0", "the link is down")
	w := r.listen(peer)
	peer.SetUp()
	pod.SetUp()
	w.wait("Report " + first.String())
	r.check("lab", pod.Node(), s)
	if answer := r.add("lab", pod.Node(), s); answer.Degraded != "" {
		t.Errorf("added again when it is ready, degraded: %q", answer.Degraded)
	}
}

// TestDelOvertakesAdd: a runtime that has given up an ADD does not wait until that has waited for its readiness.
func TestDelOvertakesAdd(t *testing.T) {
	r := serve(t)
	pod, _ := r.pod("c1", netnslab.Down)
	for _, wait := range []string{"auto", "report"} {
		before := r.settled()
		add := r.request(api.OpAdd, "lab", pod.Node(), settings(t, `"groups": ["%v"], "ready": {"wait": %q, "timeout": "20s"}`, first, wait))
		added := make(chan *api.Answer, 1)
		go func() {
			defer close(added)
			answer, err := r.call(add)
			if err != nil {
				t.Error(err)
				return
			}
			added <- answer
		}()
		netnslab.WaitFor(t, "an attachment", patience, func() (bool, string) {
			list := r.all(&api.Request{Op: api.OpList})
			return len(list) == 1, fmt.Sprint(list)
		})
		begin := time.Now()
		r.del("lab", pod.Node())
		select {
		case answer := <-added:
			wantError(t, answer.Error, types.ErrTryAgainLater, "lab/c1/eth0", "its DEL has come before this was done")
		case <-time.After(patience):
			t.Fatal("ADD is not answered")
		}
		if took := time.Since(begin); took > 10*time.Second {
			t.Errorf("wait %q: took %v: ADD was waited for", wait, took)
		}
		r.wantNoAgents()
		r.wantDescriptors(before)
	}
}

// TestInterfaceGone: the agent ends with the interface, lets go of the namespace, and a new interface is a new start.
func TestInterfaceGone(t *testing.T) {
	r := serve(t)
	pod, peer := r.pod("c1")
	node := pod.Node()
	s := settings(t, `"groups": ["ff05::1:1", {"group": "ff05::1:2", "deliver": false}]`)
	r.add("lab", node, s)
	peer.Delete()
	r.wantNoAgents()
	r.wantAttachments(1) // until its DEL
	r.refused(r.request(api.OpCheck, "lab", node, s), types.ErrInvalidEnvironmentVariables, "CNI_IFNAME", "eth0")

	peer, pod = r.lab.Veth(r.lab.Node("c1-second-peer"), "eth0", node, "eth0")
	pod.LinkLocal()
	r.refused(r.request(api.OpCheck, "lab", node, s), api.CodeNotReady, "made anew")
	w := r.listen(peer)
	r.add("lab", node, s)
	w.wait("Report " + second.String())
	r.check("lab", node, s)
	r.wantAttachments(1)
	r.del("lab", node)
	w.wait("Done " + second.String())
	r.wantAttachments(0)
	peer.Delete()
	r.wantNoAgents()
}

// TestCheckLooksAtTheBridge: an entry that is missing is missed, unless the bridge floods anyway.
func TestCheckLooksAtTheBridge(t *testing.T) {
	r := serve(t)
	br := r.lab.Bridge("br0", netnslab.BridgeOptions{Querier: 1, QueryInterval: time.Hour, StartupQueryCount: 1})
	pod := br.Connect(r.lab.Node("c1"), "eth0")
	pod.LinkLocal()
	s := settings(t, `"groups": [{"group": "ff05::1:1", "deliver": false}], "unsolicitedReportInterval": "1h", "ready": {"wait": "mdb", "timeout": "20s"}`)
	br.WaitQuerying(soon(t))
	r.add("lab", pod.Node(), s)
	r.check("lab", pod.Node(), s)
	forget := func() {
		out, err := r.lab.Host().Command(soon(t), "bridge", "mdb", "del", "dev", "br0", "port", pod.Peer().Name(), "grp", "ff05::1:1", "temp").CombinedOutput()
		if err != nil {
			t.Fatalf("%v: %s", err, out)
		}
	}
	forget()
	r.refused(r.request(api.OpCheck, "lab", pod.Node(), s), api.CodeNotReady, "ff05::1:1")
	br.DisableQuerier()
	netnslab.WaitFor(t, "CHECK of a bridge that floods", patience, func() (bool, string) {
		answer, err := r.call(r.request(api.OpCheck, "lab", pod.Node(), s))
		return err == nil && answer.Error == nil, fmt.Sprint(answer, err)
	})
	if entries, err := pod.Port().Members(); err != nil || slices.Contains(groupsOf(entries), first) {
		t.Errorf("%v, %v: the entry has come back, and the test proves nothing", entries, err)
	}
}

// TestAutoWaitsForTheBridge: on a bridge that forwards what it has entries for, a Report is not enough for
// "auto": this port lets nobody in whom it does not know.
func TestAutoWaitsForTheBridge(t *testing.T) {
	r := serve(t)
	br := r.lab.Bridge("br0", netnslab.BridgeOptions{Querier: 1})
	pod := br.Connect(r.lab.Node("c1"), "eth0")
	pod.LinkLocal()
	br.WaitQuerying(soon(t))
	port := pod.Peer().Name()
	for _, args := range [][]string{
		{"link", "set", "dev", port, "learning", "off", "locked", "on"}, {"fdb", "del", pod.HardwareAddr().String(), "dev", port, "master"},
	} {
		if out, err := r.lab.Host().Command(soon(t), "bridge", args...).CombinedOutput(); err != nil {
			t.Fatalf("bridge %q: %v: %s", args, err, out)
		}
	}
	s := settings(t, `"groups": [{"group": "ff05::1:1", "deliver": false}], "ready": {"timeout": "200ms"}`)
	if answer := r.add("lab", pod.Node(), s); !strings.Contains(answer.Degraded, "br0") {
		t.Errorf("degraded: %q, want the bridge's fault", answer.Degraded)
	}
}
