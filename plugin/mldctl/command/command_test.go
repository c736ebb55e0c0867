package command

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"net"
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
	"github.com/spf13/cobra"

	"github.com/seed-aaab8e3a/cni-mld/plugin/api"
)

var now = time.Date(2026, 11, 23, 12, 0, 0, 0, time.UTC)

// A daemon that says what a test wants.
type daemon struct {
	testing.TB
	runDir   string
	patience time.Duration // of mldctl; zero is its own
	listener net.Listener
	begun    chan struct{} // some requests were answered

	mu      sync.Mutex
	answer  api.Answer           // to everything but status
	lines   []*api.Line          // after it
	request func(r *api.Request) // looks at the request, with mu held
	hangUp  bool                 // after the lines of a watch
	replace bool                 // after each answer, by the next worker
	killed  []string             // operations during which it is, before the whole answer
}

func (d *daemon) setAnswer(a api.Answer)      { d.mu.Lock(); defer d.mu.Unlock(); d.answer = a }
func (d *daemon) setLines(lines ...*api.Line) { d.mu.Lock(); defer d.mu.Unlock(); d.lines = lines }
func (d *daemon) setRequest(look func(r *api.Request)) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.request = look
}

// setKilled has the worker be killed during operations, and returns those of the former ones that did not come.
func (d *daemon) setKilled(ops ...string) []string {
	d.mu.Lock()
	defer d.mu.Unlock()
	before := d.killed
	d.killed = ops
	return before
}

func newDaemon(t testing.TB) *daemon {
	t.Helper()
	dir, err := os.MkdirTemp("", "mldctl")
	if err != nil {
		t.Fatal(err)
	}
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: api.SocketPath(dir), Net: "unix"})
	if err != nil {
		t.Fatal(err)
	}
	d := &daemon{TB: t, runDir: dir, listener: l, begun: make(chan struct{}, 8)}
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		for {
			conn, err := l.AcceptUnix()
			if err != nil {
				return
			}
			d.serve(conn)
		}
	}()
	t.Cleanup(func() { l.Close(); <-ended; os.RemoveAll(dir) })
	return d
}

func (d *daemon) serve(conn *net.UnixConn) {
	defer conn.Close()
	for {
		r, err := api.ReadRequest(conn)
		if err != nil {
			return
		}
		d.mu.Lock()
		if d.request != nil {
			d.request(r)
		}
		answer, lines, hangUp := d.answer, d.lines, d.replace || d.hangUp && r.Op == api.OpWatch
		killed := slices.Index(d.killed, r.Op)
		if killed >= 0 {
			d.killed = slices.Delete(d.killed, killed, killed+1)
		}
		d.mu.Unlock()
		r.Close()
		if killed >= 0 && !api.Streams(r.Op) {
			return
		}
		if r.Op == api.OpStatus {
			answer = api.Answer{Status: &api.Status{Version: "v1.2", Binary: "/usr/sbin/mldd", PID: 42, KeeperPID: 41,
				Cgroup: "1:cpu:/x\n0::/system.slice/mldd.service", Netns: "net:[1]", Attachments: 2}}
		}
		if err := api.WriteAnswer(conn, &answer); err != nil {
			d.Error(err)
		}
		for _, l := range lines {
			if api.Streams(r.Op) {
				if err := api.WriteLine(conn, l); err != nil {
					return
				}
			}
		}
		if killed >= 0 {
			return
		}
		if api.Streams(r.Op) && r.Op != api.OpWatch {
			if err := api.WriteLine(conn, &api.Line{End: true}); err != nil {
				return
			}
		}
		if hangUp {
			return
		}
		select {
		case d.begun <- struct{}{}:
		default: // nobody waits
		}
	}
}

// run runs mldctl.
func (d *daemon) run(ctx context.Context, args ...string) (stdout, stderr string, code int) {
	root, t := newRoot("v1.0")
	t.now = func() time.Time { return now }
	if d.listener != nil { // and answers, however late
		t.glance = patience
	}
	if d.patience != 0 {
		t.patience = d.patience
	}
	var out, complaint bytes.Buffer
	code = t.run(ctx, root, append([]string{"--run-dir", d.runDir}, args...), &out, &complaint)
	return out.String(), complaint.String(), code
}

// want runs mldctl and compares what it prints.
func (d *daemon) want(code int, stdout string, args ...string) {
	d.Helper()
	out, complaint, got := d.run(d.Context(), args...)
	if diff := cmp.Diff(strings.TrimPrefix(stdout, "\n"), out); got != code || diff != "" || complaint != "" {
		d.Errorf("mldctl %q: code %d, want %d, %s(-want +got):\n%s", args, got, code, complaint, diff)
	}
}

func addr(s string) netip.Addr { return netip.MustParseAddr(s) }

var (
	c1   = api.Attachment{Network: "lab", ContainerID: "c1", IfName: "eth0"}
	long = api.Attachment{Network: "lab", ContainerID: strings.Repeat("0123456789abcdef", 4), IfName: "eth0"}
	at   = api.Interface{Netns: "/run/netns/c1", Cookie: 7, Index: 2, Name: "eth0"}
)

func TestStatus(t *testing.T) {
	d := newDaemon(t)
	d.want(exitFine, `
mldd v1.2, worker 42, keeper 41, /usr/sbin/mldd in net:[1], cgroup /system.slice/mldd.service
no attachments
`, "status")
	d.want(exitFailure, `
mldd v1.2, worker 42, keeper 41, /usr/sbin/mldd in net:[1], cgroup /system.slice/mldd.service
no attachments
`, "status", "--network", "none")
	ready := &api.AttachmentStatus{
		Attachment: c1, Interface: at, Since: now.Add(-3 * time.Hour), State: api.StateReady, KernelReports: "mute", MLDVersion: 2,
		Robustness: 2, Source: addr("fe80::1"), Declared: 3, Wanted: 7, Reported: 5,
		Querier: &api.Querier{Address: addr("fe80::99"), MLDVersion: 2, Heard: now.Add(-20 * time.Second)},
		Bridge:  &api.Bridge{Name: "cni0", Port: "veth1"},
	}
	d.setLines(&api.Line{Attachment: ready})
	d.want(exitFine, `
mldd v1.2, worker 42, keeper 41, /usr/sbin/mldd in net:[1], cgroup /system.slice/mldd.service
NETWORK  CONTAINER  INTERFACE  STATE  SINCE  MLD  KERNEL  QUERIER   HEARD  DECLARED  REPORTED  BRIDGE  PORT   REASON
lab      c1         eth0       ready  3h     v2   mute    fe80::99  20s    3         5/7       cni0    veth1
`, "status")
	renamed := at
	renamed.Name = "net1"
	d.setLines(&api.Line{Attachment: ready}, &api.Line{Attachment: &api.AttachmentStatus{
		Attachment: long, Interface: renamed, Since: now.Add(-50 * time.Hour), State: api.StateDegraded, Reason: "the link is down",
		KernelReports: "keep", MLDVersion: 1, VersionReason: "querier fe80::99 asks in MLDv1", VersionUntil: now.Add(150*time.Second + 300*time.Millisecond),
	}}, &api.Line{Attachment: &api.AttachmentStatus{
		Attachment: c1, Interface: at, Since: now.Add(-90 * time.Second), State: api.StateReady, KernelReports: "mute",
		MLDVersion: 1, VersionReason: "mldVersion is 1", BridgeReason: "bridge not seen",
	}}, &api.Line{Attachment: &api.AttachmentStatus{
		Attachment: c1, Interface: at, Since: now.Add(-90 * time.Second), State: api.StateEnded, Reason: "interface is gone",
	}})
	d.want(exitFailure, `
mldd v1.2, worker 42, keeper 41, /usr/sbin/mldd in net:[1], cgroup /system.slice/mldd.service
NETWORK  CONTAINER      INTERFACE  STATE     SINCE  MLD  KERNEL  QUERIER   HEARD  DECLARED  REPORTED  BRIDGE  PORT   REASON
lab      c1             eth0       ready     3h     v2   mute    fe80::99  20s    3         5/7       cni0    veth1
lab      0123456789abc  eth0=net1  degraded  2d     v1   keep    -         -      0         0/0       -       -      the link is down; MLDv1 for 2m30s more: querier fe80::99 asks in MLDv1
lab      c1             eth0       ready     1m     v1   mute    -         -      0         0/0       -       -      MLDv1: mldVersion is 1; bridge not seen
lab      c1             eth0       ended     1m     -    -       -         -      0         -         -       -      interface is gone
`, "status")
}

func TestGroups(t *testing.T) {
	d := newDaemon(t)
	d.want(exitFine, "no groups\n", "groups")
	d.want(exitFailure, "no groups\n", "groups", "--container", "none")
	d.want(exitFailure, "no groups\n", "groups", "ff05::9999")
	row := func(g api.GroupStatus) *api.Line {
		g.Interface, g.Attachments = at, []api.Attachment{c1}
		return &api.Line{Group: &g}
	}
	include := func(list ...string) (f api.Filter) {
		f.Mode = api.Include
		for _, s := range list {
			f.Sources = append(f.Sources, addr(s))
		}
		return f
	}
	some := include("fd00::1", "fd00::2")
	but := api.Filter{Mode: api.Exclude, Sources: []netip.Addr{addr("fd00::66")}}
	many := include("fd00::1", "fd00::2", "fd00::3", "fd00::4", "fd00::5", "fd00::6")
	many.Omitted = 10
	lines := []*api.Line{
		row(api.GroupStatus{
			Group: addr("ff02::1"), Wanted: []api.Want{{By: api.ByKernel}}, Marks: []api.Mark{api.NewMark(api.MarkNeverReported, "never")},
		}),
		row(api.GroupStatus{
			Group: addr("ff05::1"), Wanted: []api.Want{{By: api.ByKernel}, {By: api.ByAttachment, Attachment: &c1}}, Reported: &api.Filter{},
			ReportedBy: api.ByListener, MDB: &api.MDB{Expires: api.Duration(255 * time.Second)},
		}),
		row(api.GroupStatus{
			Group: addr("ff05::2"), Wanted: []api.Want{{By: api.ByKernel, Filter: but}, {By: api.ByAttachment, Attachment: &c1, Filter: some}},
			Reported: &but, ReportedBy: api.ByListener, MDB: &api.MDB{Blocked: but.Sources, Permanent: true},
		}),
		row(api.GroupStatus{Group: addr("ff05::3"), Wanted: []api.Want{{By: api.ByKernel, Filter: many}}, Reported: &api.Filter{},
			ReportedBy: api.ByKernel, MDB: &api.MDB{Mode: api.Include, Sources: some.Sources}, Marks: []api.Mark{api.NewMark(api.MarkSourcesMLDv1, "in MLDv1")}}),
		row(api.GroupStatus{Group: addr("ff05::4"), MDB: &api.MDB{Mode: api.Include}, Marks: []api.Mark{api.NewMark(api.MarkUnwanted, "nobody wants it")}}),
	}
	d.setLines(lines...)
	d.want(exitFine, `
  CONTAINER  INTERFACE  GROUP    WANTED                                        REPORTED      MDB                     WHY
  c1         eth0       ff05::1  any (kernel, lab)                             any           any 4m15s
  c1         eth0       ff05::2  not fd00::66 (kernel), fd00::1,fd00::2 (lab)  not fd00::66  not fd00::66 permanent
  c1         eth0       ff05::3  fd00::1,fd00::2,fd00::3,fd00::4+12 (kernel)   any (kernel)  fd00::1,fd00::2         in MLDv1
  c1         eth0       ff05::4  -                                             -             nothing                 nobody wants it
`, "groups")
	d.want(exitFine, `
  CONTAINER  INTERFACE  GROUP    WANTED        REPORTED  MDB  WHY
  c1         eth0       ff02::1  any (kernel)  -         -    never
`, "groups", "ff02::1")
	d.setLines(lines[0], lines[1], row(api.GroupStatus{
		Group: addr("ff05::5"), Wanted: []api.Want{{By: api.ByKernel}}, Marks: []api.Mark{
			api.NewMark(api.MarkLinkDown, "the link is down"), api.NewMark(api.MarkNotDelivered, "and more"),
		},
	}))
	d.want(exitFailure, `
  CONTAINER  INTERFACE  GROUP    WANTED             REPORTED  MDB        WHY
  c1         eth0       ff02::1  any (kernel)       -         -          never
  c1         eth0       ff05::1  any (kernel, lab)  any       any 4m15s
! c1         eth0       ff05::5  any (kernel)       -         -          the link is down; and more
`, "groups", "--all")
}

func TestWatchText(t *testing.T) {
	one := &api.Filter{Mode: api.Include, Sources: []netip.Addr{addr("fd00::1")}}
	group := addr("ff05::1")
	for want, e := range map[string]api.Event{
		"joined     ff05::1, source fd00::1: the kernel":                            {Kind: api.EventJoined, Group: group, Filter: one},
		"left       ff05::1: the kernel":                                            {Kind: api.EventLeft, Group: group},
		"declared   ff05::1, any source: lab/c1/eth0":                               {Kind: api.EventDeclared, Group: group, Filter: &api.Filter{}, Attachment: &c1},
		"undeclared ff05::1: lab/c1/eth0":                                           {Kind: api.EventUndeclared, Group: group, Attachment: &c1},
		"sent       ALLOW ff05::1 fd00::1: what is wanted has changed":              {Kind: api.EventSent, Group: group, Record: "ALLOW", Sources: one.Sources, Cause: api.CauseChanged},
		"sent       Done ff05::1: it is wanted no longer":                           {Kind: api.EventSent, Group: group, Message: "Done", Cause: api.CauseLeft},
		"not sent   Done ff05::1: network is down":                                  {Kind: api.EventNotSent, Group: group, Message: "Done", Reason: "network is down"},
		"heard      General Query in MLDv1 from fe80::9, to be answered within 10s": {Kind: api.EventHeard, From: addr("fe80::9"), MLDVersion: 1, MaxDelay: api.Duration(10 * time.Second)},
		"heard      Query for ff05::1 fd00::1 in MLDv2 from fe80::9, to be answered within 1s": {
			Kind: api.EventHeard, Group: group, Sources: one.Sources, From: addr("fe80::9"), MLDVersion: 2, MaxDelay: api.Duration(time.Second)},
		"suppressed Report ff05::1: fe80::b has sent one":             {Kind: api.EventSuppressed, Group: group, From: addr("fe80::b")},
		"muted      TO_EX ff05::1: the kernel's":                      {Kind: api.EventMuted, Group: group, Message: "ReportV2", Record: "TO_EX"},
		"version    MLDv1 from now on":                                {Kind: api.EventVersion, MLDVersion: 1},
		"link       down":                                             {Kind: api.EventLink, Reason: "down"},
		"in the MDB ff05::1, any source: cni0 port veth1":             {Kind: api.EventMDB, Group: group, Filter: &api.Filter{}, Bridge: "cni0", Port: "veth1"},
		"not in MDB ff05::1, any source but fd00::1: cni0 port veth1": {Kind: api.EventMDBGone, Group: group, Filter: &api.Filter{Sources: one.Sources}, Bridge: "cni0", Port: "veth1"},
		"ended      interface is gone":                                {Kind: api.EventEnded, Reason: "interface is gone"},
	} {
		e.Time = time.Date(2026, 11, 23, 12, 0, 0, 123456789, time.Local)
		e.Interface, e.Attachments = &at, []api.Attachment{c1}
		if diff := cmp.Diff("12:00:00.123456 lab/c1/eth0          "+want, eventText(&e)); diff != "" {
			t.Errorf("(-want +got):\n%s", diff)
		}
	}
	lost := &api.Event{Time: time.Date(2026, 11, 23, 12, 0, 0, 0, time.Local), Kind: api.EventLost, Lost: 7}
	if got, want := eventText(lost), "12:00:00.000000                      lost       7 events, at least"; got != want {
		t.Errorf("%q, want %q", got, want)
	}
	for _, cause := range []string{api.CauseJoined, api.CauseRepeat, api.CauseAnnounced, api.CauseLeft, api.CauseChanged, api.CauseAnswer} {
		if causes[cause] == "" {
			t.Errorf("%s is not explained", cause)
		}
	}
}

// A watch goes on until it is interrupted or the daemon goes; what is not about the groups is left out.
func TestWatch(t *testing.T) {
	d := newDaemon(t)
	event := func(group string) *api.Line {
		e := &api.Event{Time: now, Kind: api.EventLeft, Interface: &at, Attachments: []api.Attachment{c1}}
		if group != "" {
			e.Group = addr(group)
		}
		return &api.Line{Event: e}
	}
	d.setLines(event("ff05::1"), event("ff05::2"), event(""))
	ctx, cancel := context.WithCancel(t.Context())
	go func() { <-d.begun; cancel() }()
	out, complaint, code := d.run(ctx, "watch", "--json", "ff05::2")
	if code != exitFine || complaint != "" {
		t.Errorf("interrupted: code %d, %s", code, complaint)
	}
	for line := range strings.Lines(out) {
		var e struct{ Kind, Group string }
		if err := json.Unmarshal([]byte(line), &e); err != nil || e.Kind != "left" || e.Group == "ff05::1" {
			t.Errorf("%s: %v", line, err)
		}
	}
	d.setLines(event("ff05::1"), &api.Line{Error: types.NewError(types.ErrTryAgainLater, "no more", "")})
	if _, complaint, code := d.run(t.Context(), "watch"); code != exitFailure || !strings.Contains(complaint, "no more") {
		t.Errorf("ended by the daemon: code %d, %s", code, complaint)
	}
}

// A watch goes on with the next worker, and ends if there is none.
func TestWatchGoesOn(t *testing.T) {
	d := newDaemon(t)
	watches := 0
	d.setRequest(func(r *api.Request) {
		if r.Op == api.OpWatch {
			watches++
		}
		d.hangUp = watches < 3
	})
	ctx, cancel := context.WithCancel(t.Context())
	go func() {
		for range 3 { // two of them status
			<-d.begun
		}
		cancel()
	}()
	_, complaint, code := d.run(ctx, "watch", "--json")
	line := "mldctl: the worker of mldd was replaced, it is process 42 now: events may be missing\n"
	if code != exitFine || complaint != line+line {
		t.Errorf("code %d, %s", code, complaint)
	}
	d.setRequest(func(*api.Request) { d.hangUp = true; d.listener.Close() })
	_, complaint, code = d.run(t.Context(), "watch")
	if code != exitNoDaemon || !strings.Contains(complaint, "none has followed: ") || strings.Count(complaint, "is mldd running") != 1 {
		t.Errorf("code %d, %s", code, complaint)
	}
}

// A worker that is replaced after an answer takes no other command along.
func TestReplacedInBetween(t *testing.T) {
	d := newDaemon(t)
	d.mu.Lock()
	d.replace = true
	d.mu.Unlock()
	for _, args := range []string{"status", "groups", "version", "detach blue"} {
		if _, complaint, code := d.run(t.Context(), strings.Fields(args)...); code != exitFine || complaint != "" {
			t.Errorf("%s: code %d, %s", args, code, complaint)
		}
	}
}

// A worker that is killed before it has answered takes no command along, since the next one answers; but what that would say
// of what is detached by then is no answer.
func TestKilledMeanwhile(t *testing.T) {
	d := newDaemon(t)
	d.setLines(&api.Line{Attachment: &api.AttachmentStatus{Attachment: c1, State: api.StateReady}, Group: &api.GroupStatus{Group: addr("ff05::1")}})
	for _, tc := range []struct {
		args string
		ops  []string
		code int
	}{
		{"status", []string{api.OpStatus, api.OpList}, exitFine},
		{"groups", []string{api.OpGroups}, exitFine},
		{"version", []string{api.OpStatus}, exitFine},
		{"attach --host lo", []string{api.OpAdd}, exitFine},
		{"detach blue", []string{api.OpDel}, exitNoDaemon},
	} {
		args := strings.Fields(tc.args)
		whole, _, _ := d.run(t.Context(), args...)
		d.setKilled(tc.ops...)
		out, complaint, code := d.run(t.Context(), args...)
		if code != tc.code || (complaint == "") != (code == exitFine) || code == exitFine && out != whole {
			t.Errorf("mldctl %s: code %d, want %d, %s%s\nwant %s", tc.args, code, tc.code, complaint, out, whole)
		}
		if left := d.setKilled(); len(left) > 0 {
			t.Errorf("mldctl %s did not ask for %q", tc.args, left)
		}
	}
}

// JSON is one document, with lists that are lists though they are empty.
func TestJSON(t *testing.T) {
	d := newDaemon(t)
	for command, want := range map[string]string{
		"groups":  `{"groups":[]}`,
		"version": `{"mldctl":"v1.0","mldd":"v1.2","protocol":1}`,
		"status": `{"daemon":{"version":"v1.2","binary":"/usr/sbin/mldd","pid":42,"keeper":41,"cgroup":"1:cpu:/x\n0::/system.slice/mldd.service",` +
			`"netns":"net:[1]","selfStarted":false,"attachments":2},"attachments":[]}`,
		"detach blue": `{"attachment":{"network":"mldctl","containerID":"blue","ifname":"eth0"}}`,
	} {
		out, complaint, code := d.run(t.Context(), append(strings.Fields(command), "--json")...)
		var compact bytes.Buffer
		if err := json.Compact(&compact, []byte(out)); err != nil || code != exitFine || strings.TrimSpace(compact.String()) != want {
			t.Errorf("%s: code %d, %v, %s\n%s\nwant %s", command, code, err, complaint, out, want)
		}
	}
}

// To detach what is not there has failed, and is said.
func TestDetachUnknown(t *testing.T) {
	d := newDaemon(t)
	d.want(exitFine, "", "detach", "blue")
	d.setAnswer(api.Answer{Unknown: true})
	const want = "mldctl: mldctl/blue/eth0: nothing is attached under this name: see mldctl status --network mldctl\n"
	for _, args := range []string{"detach blue", "detach blue --json"} {
		if out, complaint, code := d.run(t.Context(), strings.Fields(args)...); code != exitFailure || out != "" || complaint != want {
			t.Errorf("%s: code %d, %s%s", args, code, out, complaint)
		}
	}
}

// What attach asks for.
func TestAttachRequest(t *testing.T) {
	d := newDaemon(t)
	self := fmt.Sprint(os.Getpid())
	for args, want := range map[string]string{
		"--pid " + self: "add mldctl/pid-" + self + "/eth0 /proc/" + self + "/ns/net host:false auto 2 auto []",
		"/proc/self/ns/net --interface net1 --group ff05::2 --group ff05::1": "add mldctl/path-proc-self-ns-net-975887dc/net1 " +
			"/proc/self/ns/net host:false auto 2 auto [ff05::1 ff05::2]",
		"--host lo --mld-version 1 --robustness 3 --ready none --unsolicited-report-interval 5s": "add mldctl/host/lo " +
			"/proc/self/ns/net host:true 1 3 none []",
	} {
		d.setRequest(func(r *api.Request) {
			got := fmt.Sprint(r.Op, " ", r.Attachment, " ", r.NetnsPath, " host:", r.Host, " ", r.Settings.MLDVersion, " ", r.Settings.Robustness, " ",
				r.Settings.Ready.Wait, " ", r.Settings.Groups)
			if got != want || r.Netns == nil || r.HostNetns == nil {
				t.Errorf("%s:\n%s\nwant\n%s", args, got, want)
			}
		})
		d.want(exitFine, "", append([]string{"attach"}, strings.Fields(args)...)...)
	}
	d.setRequest(nil)
	d.setAnswer(api.Answer{Degraded: "no querier"})
	if out, complaint, code := d.run(t.Context(), "attach", "--pid", self); code != exitFailure || out != "" ||
		!strings.Contains(complaint, "attached, but no querier") {
		t.Errorf("degraded: code %d, %s%s", code, out, complaint)
	}
	d.setAnswer(api.Answer{Error: types.NewError(api.CodeIPv6Off, "IPv6 is off", "")})
	if out, complaint, code := d.run(t.Context(), "attach", "--pid", self); code != exitFailure || out != "" || !strings.Contains(complaint, "IPv6 is off") {
		t.Errorf("refused: code %d, %s%s", code, out, complaint)
	}
}

// What the daemon refuses in the words of CNI is said in those of the command line.
func TestAttachRefused(t *testing.T) {
	d := newDaemon(t)
	const self = "/proc/self/ns/net"
	pid := fmt.Sprint(os.Getpid())
	for _, tc := range []struct{ args, says, want string }{
		{self + " --interface eth9", `CNI_IFNAME: "eth9": not found in ` + self, "--interface eth9: no such interface in " + self},
		{"--host eth9", `CNI_IFNAME: "eth9": not found in ` + self, "--host eth9: no such interface in the namespace of mldctl"},
		{"--pid " + pid, `CNI_IFNAME: "eth0": not found in /proc/` + pid + "/ns/net", "--interface eth0: no such interface in the namespace of --pid " + pid},
		{"--pid " + pid, `CNI_NETNS: "/proc/` + pid + `/ns/net": is the host's namespace: a container's own is needed`,
			"--pid " + pid + ": is the host's namespace: name a container's, or an interface of the host with --host"},
		{self, `CNI_NETNS: "` + self + `": not a network namespace`, self + ": not a network namespace"},
		{self, `ready.wait "mdb": not ready`, `--ready "mdb": not ready`},
		{self, "IPv6 is off", "IPv6 is off"},
	} {
		d.setAnswer(api.Answer{Error: types.NewError(types.ErrInvalidEnvironmentVariables, tc.says, "")})
		_, complaint, code := d.run(t.Context(), append([]string{"attach"}, strings.Fields(tc.args)...)...)
		if want := "mldctl: " + tc.want + "\n"; code != exitFailure || complaint != want {
			t.Errorf("attach %s: code %d, %q, want %q", tc.args, code, complaint, want)
		}
	}
}

func TestContainerID(t *testing.T) {
	seen := make(map[string]string)
	for path, want := range map[string]string{
		"/run/netns/blue":                        "blue",
		"/var/run/netns/blue":                    "blue",
		"/run/netns/host":                        "path-run-netns-host-",
		"/run/netns/pid-7":                       "path-run-netns-pid-7-",
		"/run/netns/-x":                          "path-run-netns--x-",
		"/a/b":                                   "path-a-b-",
		"/a-b":                                   "path-a-b-",
		"/run/netns/ü":                           "path-run-netns-",
		"/" + strings.Repeat("x/", 2000):         "path-x-x-",
		"/run/netns/" + strings.Repeat("y", 200): "path-yyyy",
	} {
		p := place{netns: path, ifname: "a-long-name-123"}
		a := p.attachment()
		if err := a.Validate(); err != nil || !strings.HasPrefix(a.ContainerID, want) {
			t.Errorf("%.50s: %q, want %q: %v", path, a.ContainerID, want, err)
		}
		if other, ok := seen[a.ContainerID]; ok && want != "blue" {
			t.Errorf("%s and %s are both %s", path, other, a.ContainerID)
		}
		seen[a.ContainerID] = path
	}
}

// What mldctl cannot do without a daemon it says so, with a code of its own.
func TestExitCodes(t *testing.T) {
	none := &daemon{TB: t, runDir: filepath.Join(t.TempDir(), "none")}
	for args, code := range map[string]int{
		"status": exitNoDaemon, "groups": exitNoDaemon, "watch": exitNoDaemon, "detach x": exitNoDaemon, "version": exitFine, "": exitFine,
		"attach --host lo": exitNoDaemon, "attach nothing-of-this-name": exitFailure, "status x": exitUsage, "x": exitUsage, "--x": exitUsage,
		"groups x": exitUsage, "groups ff05::1%eth0": exitUsage, "attach": exitUsage, "attach a b": exitUsage, "attach a --pid 1": exitUsage,
		"attach a --pid x": exitUsage, "attach a --interface a/b": exitUsage, "attach a --profile x": exitUsage, "help": exitFine,
		"attach a --group {": exitUsage, "attach a --group ff05::1,ff05::2": exitUsage, "completion bash": exitFine, "attach a --timeout 2m": exitUsage,
		"completion": exitFine, "completion bsh": exitUsage, "status --run-dir a": exitUsage, "version --run-dir a": exitUsage,
		"--version": exitFine, "help attach": exitFine, "help nonsense": exitUsage, "help status x": exitUsage, "completion --version": exitUsage,
	} {
		out, complaint, got := none.run(t.Context(), strings.Fields(args)...)
		if got != code || (complaint == "") != (code == exitFine) || (out == "") != (code != exitFine) {
			t.Errorf("mldctl %s: code %d, want %d: %q %q", args, got, code, out, complaint)
		}
		if args == "--version" && out != "mldctl v1.0\n" {
			t.Errorf("mldctl %s: %q", args, out)
		}
		if strings.Contains(args, "help") && code != exitFine && strings.Count(complaint, "\n") != 1 {
			t.Errorf("mldctl %s: %q", args, complaint)
		}
		if strings.Contains(args, ",") && !strings.Contains(complaint, "in each flag --group") {
			t.Errorf("mldctl %s: %q", args, complaint)
		}
		if code == exitNoDaemon && !strings.Contains(complaint, "to start it: ") {
			t.Errorf("mldctl %s: %q", args, complaint)
		}
	}
}

// TestSilentDaemon: one that is there and does not answer in time is none that answers.
func TestSilentDaemon(t *testing.T) {
	dir := t.TempDir()
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: api.SocketPath(dir), Net: "unix"})
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	silent := &daemon{TB: t, runDir: dir, patience: 100 * time.Millisecond}
	for _, args := range []string{"status", "groups", "attach --host lo --timeout 1ms", "detach x"} {
		_, complaint, code := silent.run(t.Context(), strings.Fields(args)...)
		if code != exitNoDaemon || !strings.Contains(complaint, "no worker of mldd answers") {
			t.Errorf("mldctl %s: code %d, want %d: %q", args, code, exitNoDaemon, complaint)
		}
	}
}

// Attachments are completed with what the daemon knows, which gets the rest of the command line as a filter; where none
// answers there is nothing, and nothing is said.
func TestComplete(t *testing.T) {
	d := newDaemon(t)
	hand := func(id, ifname, path string) *api.Line {
		return &api.Line{Attachment: &api.AttachmentStatus{
			Attachment: api.Attachment{Network: network, ContainerID: id, IfName: ifname}, Interface: api.Interface{Netns: path},
		}}
	}
	byPath := place{netns: "/srv/ns/green", ifname: "eth0"}
	hands := []*api.Line{hand("blue", "eth0", "/run/netns/blue"), hand("blue", "eth1", "/run/netns/blue"), hand("pid-42", "eth0", "/proc/42/ns/net"),
		hand("host", "br0", "/proc/self/ns/net"), hand(byPath.attachment().ContainerID, "eth0", byPath.netns)}
	others := []*api.Line{{Attachment: &api.AttachmentStatus{Attachment: long}}}
	ids := "blue host " + byPath.attachment().ContainerID + " pid-42"
	for args, want := range map[string]string{
		"detach":                           "/srv/ns/green blue; mldctl//eth0",
		"detach --interface eth1":          "/srv/ns/green blue; mldctl//eth1",
		"detach --pid":                     "42; mldctl//eth0",
		"detach --host":                    "br0; mldctl//",
		"detach --interface":               "br0 eth0 eth1; mldctl//",
		"groups --network":                 "lab mldctl; //",
		"watch ff05::1 --container":        long.ContainerID + " " + ids + "; //",
		"status --network lab --container": long.ContainerID + " " + ids + "; lab//",
		"groups --container c --interface": "br0 eth0 eth1; /c/",
	} {
		var filter api.Attachment
		d.setRequest(func(r *api.Request) {
			if filter = r.Attachment; filter.Network == network {
				d.lines = hands
			} else {
				d.lines = slices.Concat(hands, others)
			}
		})
		out, complaint, code := d.run(t.Context(), slices.Concat([]string{"__complete"}, strings.Fields(args), []string{""})...)
		names, directive, _ := strings.Cut(out, ":4\n")
		got := strings.Join(strings.Fields(names), " ") + "; " + filter.String()
		if code != exitFine || got != want || directive != "" || strings.Contains(complaint, "mldctl:") {
			t.Errorf("%s: code %d, %s%s\n%s\nwant\n%s", args, code, out, complaint, got, want)
		}
	}
	d.setRequest(nil)
	for _, args := range []string{"groups", "watch", "status"} { // no files
		if out, _, code := d.run(t.Context(), "__complete", args, ""); code != exitFine || out != ":4\n" {
			t.Errorf("%s: code %d, %s", args, code, out)
		}
	}

	silent := &daemon{TB: t, runDir: t.TempDir()} // it takes no client
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: api.SocketPath(silent.runDir), Net: "unix"})
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	for _, d := range []*daemon{silent, {TB: t, runDir: filepath.Join(t.TempDir(), "none")}} {
		ctx, cancel := context.WithTimeout(t.Context(), patience/2)
		out, complaint, code := d.run(ctx, "__complete", "detach", "")
		if code != exitFine || out != ":4\n" || strings.Contains(complaint, "mldd") || ctx.Err() != nil {
			t.Errorf("no daemon: code %d, %s%s, %v", code, out, complaint, ctx.Err())
		}
		cancel()
	}
}

// What is wrong with a flag is said by its name, with the value and what helps.
func TestWrongFlags(t *testing.T) {
	none := &daemon{TB: t, runDir: filepath.Join(t.TempDir(), "none")}
	for args, want := range map[string]string{
		"attach --pid x":                              "--pid x: not a whole number: the network namespace of the process with this number",
		"attach --pid 0":                              "--pid 0: not the number of a process: these begin with 1",
		"attach --pid 99999999999999999999":           "--pid 99999999999999999999: too large a number: the network namespace of the process with this number",
		"attach a --robustness 2x":                    "--robustness 2x: not a whole number: how often a change is reported, 1 to 7",
		"attach a --robustness 9":                     "--robustness 9: must be from 1 to 7",
		"attach a --always-done=x":                    "--always-done x: neither true nor false: send a Done on every leave in MLDv1",
		"attach a --profile x":                        `--profile "x": must be "rfc" or "kame"`,
		"attach a --mld-version 3":                    `--mld-version "3": must be "auto", 2 or 1`,
		"attach a --kernel-reports x":                 `--kernel-reports "x": must be "auto", "mute" or "keep"`,
		"attach a --ready x":                          `--ready "x": must be "auto", "mdb", "report" or "none"`,
		"attach a --timeout x":                        `--timeout "x": must be a duration such as "1s", more than 0 and at most 1m`,
		"attach a --unsolicited-report-interval x":    `--unsolicited-report-interval "x": must be a duration such as "10s", more than 0 and at most 1h`,
		"attach a --group ff05::1 --group ff05::1%%0": `--group "ff05::1%%0": has a zone: leave it out, the interface is the attachment's`,
		"attach a --group ff05:: --group 2::@ff05::":  `--group "2::@ff05::": contradicts --group[0], which wants ff05:: from any source: name the group once`,
		"attach a --nonsense":                         "unknown flag: --nonsense",
	} {
		command, _, _ := strings.Cut(args, " ")
		want = "mldctl: " + want + ": see mldctl " + command + " --help\n"
		if out, complaint, code := none.run(t.Context(), strings.Fields(args)...); code != exitUsage || complaint != want || out != "" {
			t.Errorf("mldctl %s: code %d, %s%q\nwant %q", args, code, out, complaint, want)
		}
	}
	// Every key of the configuration that is a flag's is named by it.
	cmd := &cobra.Command{}
	(&settings{}).flags(cmd)
	for key, flag := range flagOf {
		if cmd.Flags().Lookup(flag) == nil {
			t.Errorf("%s: no flag --%s", key, flag)
		}
	}
}
