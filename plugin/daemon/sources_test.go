package daemon_test

import (
	"encoding/hex"
	"fmt"
	"maps"
	"net"
	"net/netip"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/containernetworking/cni/pkg/types"
	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
	"golang.org/x/net/ipv6"

	"github.com/seed-aaab8e3a/cni-mld/mld"
	"github.com/seed-aaab8e3a/cni-mld/netnslab"
	"github.com/seed-aaab8e3a/cni-mld/plugin/api"
	"github.com/seed-aaab8e3a/cni-mld/plugin/daemon"
)

var (
	one = netip.MustParseAddr("fd00::1")
	two = netip.MustParseAddr("fd00::2")
)

// once has each change reported once.
const once = `"mldVersion": 2, "robustness": 1, `

// object is a group of a configuration with a filter.
func object(group netip.Addr, deliver bool, mode string, sources ...netip.Addr) string {
	quoted := make([]string, len(sources))
	for i, s := range sources {
		quoted[i] = fmt.Sprintf("%q", s)
	}
	return fmt.Sprintf(`{"group": %q, "mode": %q, "sources": [%s], "deliver": %v}`, group, mode, strings.Join(quoted, ","), deliver)
}

// filterOf reads what the kernel has for an address: "include [fd00::1]" by /proc/net/mcfilter6, "exclude []" where that has
// no sources, and "" without a membership.
func filterOf(t *testing.T, e *netnslab.Endpoint, group netip.Addr) string {
	t.Helper()
	// The list of sources lacks an interface where the address that was joined last has none.
	last := joinFrom(t, e, netip.MustParseAddr("ff35::8000:ffff"), one)
	defer last.Close()
	var filters, groups []byte
	err := e.Node().Do(func() (err error) {
		if groups, err = os.ReadFile("/proc/thread-self/net/igmp6"); err != nil {
			return err
		}
		filters, err = os.ReadFile("/proc/thread-self/net/mcfilter6")
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	a := group.As16()
	name := hex.EncodeToString(a[:])
	var included, excluded []netip.Addr
	for line := range strings.Lines(string(filters)) {
		f := strings.Fields(line) // Idx Device Multicast-Address Source-Address INC EXC
		if len(f) != 6 || f[1] != e.Name() || f[2] != name {
			continue
		}
		source, err := hex.DecodeString(f[3])
		if err != nil {
			t.Fatal(err)
		}
		if f[5] != "0" {
			excluded = append(excluded, netip.AddrFrom16([16]byte(source)))
		} else {
			included = append(included, netip.AddrFrom16([16]byte(source)))
		}
	}
	switch {
	case len(excluded) > 0:
		return fmt.Sprint("exclude ", excluded)
	case len(included) > 0:
		return fmt.Sprint("include ", included)
	case strings.Contains(string(groups), name):
		return "exclude []"
	}
	return ""
}

// known is what a router knows of an address from the records that a listener sends (RFC 9777 section 7.4): "include [...]",
// "exclude [...]", or "" of one that nobody listens to.
func known(said []string, group netip.Addr) string {
	mode, sources := "include", map[string]bool{}
	for _, text := range said {
		kind, rest, _ := strings.Cut(text, " ")
		addr, list, _ := strings.Cut(rest, " ")
		if addr != group.String() {
			continue
		}
		named := strings.Fields(strings.Trim(list, "[]"))
		switch kind {
		case "TO_EX", "IS_EX":
			mode = "exclude"
			clear(sources)
		case "TO_IN", "IS_IN":
			mode = "include"
			clear(sources)
		}
		for _, source := range named {
			takesOut := kind == "ALLOW" && mode == "exclude" || kind == "BLOCK" && mode == "include"
			if takesOut {
				delete(sources, source)
			} else {
				sources[source] = true
			}
		}
	}
	if mode == "include" && len(sources) == 0 {
		return ""
	}
	return fmt.Sprintf("%s %v", mode, slices.Sorted(maps.Keys(sources)))
}

// waitKnown waits until the records of the pod tell a router what is wanted. A querier is part of that if something is
// delivered: while an interface is new, the kernel's own records leave room for doubt, which its answer does not.
func (w *wire) waitKnown(group netip.Addr, want string, deliver bool) {
	w.Helper()
	if deliver {
		w.peer.SendPacket(mld.AppendQuery(nil, router, mld.AllNodes, mld.Query{Version: mld.Version2, MaxResponseCode: 10, QRV: 1}))
	}
	netnslab.WaitFor(w, fmt.Sprintf("records that make %v %q", group, want), patience/3, func() (bool, string) {
		said := w.said()
		return known(said, group) == want, fmt.Sprint(said)
	})
}

// Settings with other sources replace the former ones: what differs is reported and nothing else, and the kernel has what
// is to be delivered. What is delivered is reported as the kernel tells it, which may take more records.
func TestV2_71_AddAgainWithSources(t *testing.T) {
	group := func(mode string, sources ...netip.Addr) func(bool) string {
		return func(deliver bool) string { return object(first, deliver, mode, sources...) }
	}
	nothing := func(bool) string { return "" }
	for _, tc := range []struct {
		what          string
		before, after func(deliver bool) string
		was, is       string
		want          []string // records
	}{
		{"the same", group("include", one, two), group("include", two, one), "include [fd00::1 fd00::2]", "include [fd00::1 fd00::2]", nil},
		{"one more", group("include", one), group("include", one, two), "include [fd00::1]", "include [fd00::1 fd00::2]",
			[]string{"ALLOW ff05::1:1 [fd00::2]"}},
		{"one less", group("include", one, two), group("include", two), "include [fd00::1 fd00::2]", "include [fd00::2]",
			[]string{"BLOCK ff05::1:1 [fd00::1]"}},
		{"another", group("include", one), group("include", two), "include [fd00::1]", "include [fd00::2]",
			[]string{"ALLOW ff05::1:1 [fd00::2]", "BLOCK ff05::1:1 [fd00::1]"}},
		{"any source", group("include", one), group("exclude"), "include [fd00::1]", "exclude []", []string{"TO_EX ff05::1:1"}},
		{"no longer any", group("exclude"), group("include", one), "exclude []", "include [fd00::1]", []string{"TO_IN ff05::1:1 [fd00::1]"}},
		{"excluded", group("exclude"), group("exclude", one), "exclude []", "exclude [fd00::1]", []string{"BLOCK ff05::1:1 [fd00::1]"}},
		{"another excluded", group("exclude", one), group("exclude", two), "exclude [fd00::1]", "exclude [fd00::2]",
			[]string{"ALLOW ff05::1:1 [fd00::1]", "BLOCK ff05::1:1 [fd00::2]"}},
		{"from included to excluded", group("include", one), group("exclude", one), "include [fd00::1]", "exclude [fd00::1]",
			[]string{"TO_EX ff05::1:1 [fd00::1]"}},
		{"included left", group("include", one, two), nothing, "include [fd00::1 fd00::2]", "", []string{"BLOCK ff05::1:1 [fd00::1 fd00::2]"}}, // V2-62
		{"excluded left", group("exclude", one), nothing, "exclude [fd00::1]", "", []string{"TO_IN ff05::1:1"}},
	} {
		for _, deliver := range []bool{false, true} {
			t.Run(fmt.Sprintf("%s, deliver %v", tc.what, deliver), func(t *testing.T) {
				r := serve(t)
				pod, peer := r.pod("c1")
				w := r.listen(peer)
				r.add("lab", pod.Node(), settings(t, once+`"groups": [%s]`, tc.before(deliver)))
				w.waitKnown(first, tc.was, deliver)
				w.mark(pod)
				before := len(w.said())
				r.add("lab", pod.Node(), settings(t, once+`"groups": [%s]`, tc.after(deliver)))
				w.waitKnown(first, tc.is, deliver)
				w.mark(pod)
				got := slices.DeleteFunc(w.said()[before:], func(s string) bool { return strings.HasSuffix(s, sentinel.String()) })
				slices.Sort(got)
				if diff := cmp.Diff(tc.want, got, cmpopts.EquateEmpty()); diff != "" && !deliver {
					t.Errorf("said (-want +got):\n%s", diff)
				}
				if deliver && tc.is != "" && slices.Contains(got, "TO_IN "+first.String()) {
					t.Errorf("said %v: left in between", got)
				}
				want := map[bool]string{true: tc.is}[deliver]
				if got := filterOf(t, pod, first); got != want {
					t.Errorf("the kernel has %q, want %q", got, want)
				}
			})
		}
	}
}

// A group that changes its sources together with its delivery is left neither in between nor with the former sources.
func TestV2_71_DeliveryAndSourcesChange(t *testing.T) {
	r := serve(t)
	pod, peer := r.pod("c1")
	w := r.listen(peer)
	for _, step := range []struct {
		groups string
		known  string
		kernel string
	}{
		{object(specific, false, "include", one), "include [fd00::1]", ""},
		{object(specific, true, "include", one), "include [fd00::1]", "include [fd00::1]"},
		{object(specific, true, "include", one, two), "include [fd00::1 fd00::2]", "include [fd00::1 fd00::2]"},
		{object(specific, false, "include", two), "include [fd00::2]", ""},
		{object(specific, true, "include", one), "include [fd00::1]", "include [fd00::1]"},
		{"", "", ""},
	} {
		r.add("lab", pod.Node(), settings(t, once+`"groups": [%s]`, step.groups))
		w.waitKnown(specific, step.known, true)
		if got := filterOf(t, pod, specific); got != step.kernel {
			t.Errorf("%s: the kernel has %q, want %q", step.groups, got, step.kernel)
		}
	}
	w.mark(pod)
	said := w.said()
	if got := known(said, specific); got != "" {
		t.Errorf("left, and then %q after all: %v", got, said)
	}
	for i, text := range said { // V2-58
		if strings.HasPrefix(text, "TO_EX "+specific.String()) || strings.HasPrefix(text, "IS_EX "+specific.String()) {
			t.Errorf("said %q", text)
		}
		if known(said[:i+1], specific) == "" && strings.Contains(text, specific.String()) && i+1 < len(said) &&
			slices.ContainsFunc(said[i+1:], func(s string) bool { return strings.Contains(s, specific.String()) }) {
			t.Errorf("left in between: %v", said)
		}
	}
}

// Plain Reports and Dones of MLDv1 tell no sources, which the kernel minds all the same.
func TestV2_77_SourcesInMLDv1(t *testing.T) {
	r := serve(t)
	pod, peer := r.pod("c1")
	w := r.listen(peer)
	r.add("other", pod.Node(), settings(t, `"unsolicitedReportInterval": "1h"`)) // the listener stays
	for _, deliver := range []bool{false, true} {
		before := len(w.said())
		r.add("lab", pod.Node(), settings(t, `"unsolicitedReportInterval": "1h", "groups": [%s]`, object(specific, deliver, "include", one)))
		w.wait("Report ff3e::8000:1")
		if want := map[bool]string{true: "include [fd00::1]"}[deliver]; filterOf(t, pod, specific) != want {
			t.Errorf("deliver %v: the kernel has %q, want %q", deliver, filterOf(t, pod, specific), want)
		}
		r.del("lab", pod.Node())
		w.wait("Done ff3e::8000:1")
		w.mark(pod)
		got := slices.DeleteFunc(w.said()[before:], func(s string) bool { return strings.HasSuffix(s, sentinel.String()) })
		if diff := cmp.Diff([]string{"Report ff3e::8000:1", "Done ff3e::8000:1"}, got); diff != "" {
			t.Errorf("deliver %v: said (-want +got):\n%s", deliver, diff)
		}
	}
}

// Too much is refused by name: for the daemon whatever the configuration allows itself, and for the kernel.
func TestV2_72_Ceilings(t *testing.T) {
	r := &rig{TB: t, lab: netnslab.New(t), runDir: newRunDir(t)}
	cfg := config(t, r.runDir)
	cfg.MaxGroups, cfg.MaxSources = 3, 66
	r.serve(cfg)
	pod, _ := r.pod("c1")
	source := func(i int) netip.Addr { return netip.AddrFrom16([16]byte{0: 0xfd, 15: byte(i)}) }
	var sources []netip.Addr
	for i := range 65 {
		sources = append(sources, source(i))
	}
	const limits = `"limits": {"groups": 1000, "sources": 1000}, `
	for _, tc := range []struct {
		groups string
		code   uint
		names  []string
	}{
		{`"ff05::1:1", "ff05::1:2", "ff05::1:3", "ff05::1:4"`, types.ErrInvalidNetworkConfig, []string{"groups: 4 groups", "3", "--max-groups"}},
		{object(first, false, "include", sources...) + "," + object(second, false, "exclude", one, two),
			types.ErrInvalidNetworkConfig, []string{"groups: 67 sources", "66", "--max-sources"}},
		{object(first, true, "include", sources...), types.ErrInvalidNetworkConfig, []string{"ff05::1:1", "65 sources", "net.ipv6.mld_max_msf", "deliver false"}},
	} {
		r.refused(r.request(api.OpAdd, "lab", pod.Node(), settings(t, limits+`"groups": [%s]`, tc.groups)), tc.code, tc.names...)
		r.wantAttachments(0)
	}
	r.add("lab", pod.Node(), settings(t, limits+`"groups": [%s, "ff05::1:2", "ff05::1:3"]`, object(first, false, "include", sources...)))
	r.del("lab", pod.Node())
}

// TestReadyWithThousands: why thousands of sources are not ready fits into an answer.
func TestReadyWithThousands(t *testing.T) {
	r := serve(t)
	pod := r.lab.Bridge("br0", netnslab.BridgeOptions{}).Connect(r.lab.Node("c1"), "eth0")
	pod.SetDown()
	var groups []string
	for g := range 4 {
		var sources []string
		for n := range daemon.DefaultMaxSources / 4 {
			sources = append(sources, fmt.Sprintf(`"fd00:1111:2222:3333:4444:5555:6666:%x"`, 0xa000+n))
		}
		groups = append(groups, fmt.Sprintf(`{"group": "ff35:1111:2222:3333:4444:5555:8666:%x", "mode": "include", "sources": [%s], "deliver": false}`,
			0xa000+g, strings.Join(sources, ",")))
	}
	s := settings(t, `"groups": [%s], "limits": {"sources": 5000}, "mldVersion": 2, "ready": {"wait": "mdb", "timeout": "50ms"}`, strings.Join(groups, ","))
	r.refused(r.request(api.OpAdd, "lab", pod.Node(), s), api.CodeNotReady, "the link is down", "no entry for")
	s.Ready.Wait = api.WaitAuto
	if answer := r.add("lab", pod.Node(), s); !strings.Contains(answer.Degraded, "the link is down") {
		t.Errorf("degraded: %.100q", answer.Degraded)
	}
}

// ADD waits for, and CHECK wants, what a bridge has to have for the sources that are declared: entries for them, or of its
// version 1 and of a listener in version 1 those for any source.
func TestB17_B18_ReadyWithSources(t *testing.T) {
	groups := fmt.Sprintf(`"groups": [%s, %s, %s, "ff05::1:3"]`, object(specific, false, "include", one, two),
		object(first, false, "include", one), object(second, false, "exclude", one))
	for _, tc := range []struct {
		bridge  int
		version string // mldVersion
		want    []string
	}{
		{2, `2`, []string{
			"fd00::1@ff05::1:1", "include ff05::1:1", "blocked fd00::1@ff05::1:2", "exclude ff05::1:2", "exclude ff05::1:3",
			"fd00::1@ff3e::8000:1", "fd00::2@ff3e::8000:1", "include ff3e::8000:1",
		}},
		{2, `1`, []string{"exclude ff05::1:1", "exclude ff05::1:2", "exclude ff05::1:3", "exclude ff3e::8000:1"}},
		{1, `2`, []string{"exclude ff05::1:1", "exclude ff05::1:2", "exclude ff05::1:3", "exclude ff3e::8000:1"}},
	} {
		t.Run(fmt.Sprintf("bridge %d, listener %s", tc.bridge, tc.version), func(t *testing.T) {
			r := serve(t)
			br := r.lab.Bridge("br0", netnslab.BridgeOptions{Querier: tc.bridge, QueryInterval: time.Hour})
			pod := br.Connect(r.lab.Node("c1"), "eth0")
			pod.LinkLocal()
			br.WaitQuerying(soon(t))
			s := settings(t, `"mldVersion": %s, "unsolicitedReportInterval": "1h", "ready": {"wait": "mdb", "timeout": "20s"}, %s`, tc.version, groups)
			r.add("lab", pod.Node(), s)
			if diff := cmp.Diff(tc.want, entriesOf(t, pod)); diff != "" {
				t.Errorf("entries (-want +got):\n%s", diff)
			}
			r.check("lab", pod.Node(), s)
			if tc.bridge == 1 || tc.version == "1" {
				return
			}

			// An application that wants the group from anywhere is no fault.
			joinFrom(t, pod, specific, netip.MustParseAddr("fd00::99"))
			pod.Join(first)
			netnslab.WaitFor(t, "entry for any source", patience, func() (bool, string) {
				list := entriesOf(t, pod)
				return slices.Contains(list, "exclude ff05::1:1"), fmt.Sprint(list)
			})
			r.check("lab", pod.Node(), s)
		})
	}
}

// A Linux bridge keeps 32 sources of a group for each port. What is beyond is not forwarded, and said.
func TestB18_MoreSourcesThanABridgeKeeps(t *testing.T) {
	r := serve(t)
	br := r.lab.Bridge("br0", netnslab.BridgeOptions{Querier: 2, QueryInterval: time.Hour})
	pod := br.Connect(r.lab.Node("c1"), "eth0")
	pod.LinkLocal()
	br.WaitQuerying(soon(t))
	var sources []netip.Addr
	for i := range 33 {
		sources = append(sources, netip.AddrFrom16([16]byte{0: 0xfd, 15: byte(i)}))
	}
	declare := func(n int) *api.Settings {
		return settings(t, `"mldVersion": 2, "ready": {"timeout": "500ms"}, "groups": [%s]`, object(specific, false, "include", sources[:n]...))
	}
	if answer := r.add("lab", pod.Node(), declare(32)); answer.Degraded != "" {
		t.Error(answer.Degraded)
	}
	r.check("lab", pod.Node(), declare(32))
	const missing = "no entry for [(fd00::20,ff3e::8000:1)]: a Linux bridge keeps 32 sources for a port and group: name fewer"
	if answer := r.add("lab", pod.Node(), declare(33)); !strings.Contains(answer.Degraded, missing) {
		t.Errorf("degraded: %q, which does not say %q", answer.Degraded, missing)
	}
	r.refused(r.request(api.OpCheck, "lab", pod.Node(), declare(33)), api.CodeNotReady, missing)
}

// entriesOf lists the bridge's entries for declared groups on the pod's port.
func entriesOf(t *testing.T, pod *netnslab.Endpoint) []string {
	t.Helper()
	entries, err := pod.Port().Members()
	if err != nil {
		t.Fatal(err)
	}
	var list []string
	for _, e := range entries {
		if !slices.Contains([]netip.Addr{first, second, third, specific}, e.Group) {
			continue
		}
		switch {
		case e.Source.IsValid() && e.Blocked:
			list = append(list, fmt.Sprintf("blocked %v@%v", e.Source, e.Group))
		case e.Source.IsValid():
			list = append(list, fmt.Sprintf("%v@%v", e.Source, e.Group))
		case e.Include:
			list = append(list, fmt.Sprintf("include %v", e.Group))
		default:
			list = append(list, fmt.Sprintf("exclude %v", e.Group))
		}
	}
	slices.SortFunc(list, func(a, b string) int {
		key := func(s string) string { return s[strings.LastIndexAny(s, "@ ")+1:] + s }
		return strings.Compare(key(a), key(b))
	})
	return list
}

// joinFrom lets an application join a group from a source, until the end of the test at the latest.
func joinFrom(t *testing.T, e *netnslab.Endpoint, group, source netip.Addr) (conn net.PacketConn) {
	t.Helper()
	err := e.Node().Do(func() (err error) {
		conn, err = net.ListenPacket("udp6", "[::]:0")
		if err != nil {
			return err
		}
		t.Cleanup(func() { _ = conn.Close() })
		return ipv6.NewPacketConn(conn).JoinSourceSpecificGroup(&net.Interface{Index: e.Index()},
			&net.UDPAddr{IP: group.AsSlice()}, &net.UDPAddr{IP: source.AsSlice()})
	})
	if err != nil {
		t.Fatal(err)
	}
	return conn
}

// Beyond a ceiling of what programs have joined the interface is its kernel's again, which reports that and what is
// delivered.
func TestCeilingOfJoined(t *testing.T) {
	r := &rig{TB: t, lab: netnslab.New(t), runDir: newRunDir(t)}
	cfg := config(t, r.runDir)
	cfg.MaxJoined = 20
	r.serve(cfg)
	br := r.lab.Bridge("br0", netnslab.BridgeOptions{Querier: 2, QueryInterval: time.Hour})
	pod := br.Connect(r.lab.Node("c1"), "eth0")
	pod.LinkLocal()
	br.WaitQuerying(soon(t))
	s := settings(t, `"mldVersion": 2, "ready": {"wait": "mdb", "timeout": "20s"}, "groups": ["%v"]`, first)
	r.add("lab", pod.Node(), s)
	for i := range cfg.MaxJoined {
		pod.Join(netip.MustParseAddr(fmt.Sprintf("ff05::99:%x", i)))
	}
	netnslab.WaitFor(t, "end of the listener", patience, func() (bool, string) {
		a := r.all(&api.Request{Op: api.OpList})[0].Attachment
		return a.State == api.StateEnded && strings.Contains(a.Reason, "--max-joined"), a.State + ": " + a.Reason
	})
	r.refused(r.request(api.OpCheck, "lab", pod.Node(), s), api.CodeNotReady, "more than 20", "--max-joined")
	pod.Join(second)
	netnslab.WaitFor(t, "entry by the kernel's report", patience, func() (bool, string) {
		list := entriesOf(t, pod)
		return slices.Contains(list, "exclude ff05::1:2"), fmt.Sprint(list)
	})
	if f := filterOf(t, pod, first); f != "exclude []" {
		t.Errorf("of the declared group the kernel has %q", f)
	}
	r.refused(r.request(api.OpAdd, "other", pod.Node(), s), api.CodeKernelReports, "more than 20", "--max-joined")
	r.del("lab", pod.Node())
	netnslab.WaitFor(t, "leave of the declared group", patience, func() (bool, string) {
		list := entriesOf(t, pod)
		return !slices.Contains(list, "exclude ff05::1:1"), fmt.Sprint(list)
	})
}
