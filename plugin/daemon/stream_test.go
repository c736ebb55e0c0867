package daemon_test

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/containernetworking/cni/pkg/types"

	"github.com/seed-aaab8e3a/cni-mld/mld"
	"github.com/seed-aaab8e3a/cni-mld/mld/kernel"
	"github.com/seed-aaab8e3a/cni-mld/netnslab"
	"github.com/seed-aaab8e3a/cni-mld/plugin/api"
	"github.com/seed-aaab8e3a/cni-mld/plugin/daemon"
)

// stream sends a request and passes on what follows the answer, until stop is called.
func (r *rig) stream(request *api.Request) (lines <-chan *api.Line, ended <-chan error, stop func()) {
	r.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	r.Cleanup(cancel)
	client, err := api.Dial(r.runDir)
	if err != nil {
		r.Fatal(err)
	}
	c, e := make(chan *api.Line), make(chan error, 1)
	go func() {
		defer close(e)
		defer client.Close()
		for line, err := range client.Stream(ctx, request) {
			if err != nil {
				e <- err
				return
			}
			select {
			case c <- line:
			case <-ctx.Done():
			}
		}
	}()
	return c, e, func() { cancel(); <-e }
}

// all returns all lines of a stream that ends.
func (r *rig) all(request *api.Request) (list []*api.Line) {
	r.Helper()
	lines, ended, _ := r.stream(request)
	for {
		select {
		case l := <-lines:
			list = append(list, l)
		case err := <-ended:
			if err != nil {
				r.Fatal(err)
			}
			return list
		case <-time.After(patience):
			r.Fatalf("%s does not end", request.Op)
		}
	}
}

func TestList(t *testing.T) {
	r := serve(t)
	if list := r.all(&api.Request{Op: api.OpList}); len(list) != 0 {
		t.Errorf("of no attachments: %v", list)
	}
	pod, _ := r.pod("c1")
	other, _ := r.pod("c2")
	r.add("lab", pod.Node(), settings(t, `"groups": ["%v", "%v"]`, first, second))
	r.add("more", pod.Node(), settings(t, `"groups": ["%v"]`, third))
	r.add("lab", other.Node(), settings(t, ``))
	for _, c := range []struct {
		filter api.Attachment
		want   []string
	}{
		{api.Attachment{}, []string{"lab/c1/eth0 2", "lab/c2/eth0 0", "more/c1/eth0 1"}},
		{api.Attachment{Network: "lab"}, []string{"lab/c1/eth0 2", "lab/c2/eth0 0"}},
		{api.Attachment{ContainerID: "c1"}, []string{"lab/c1/eth0 2", "more/c1/eth0 1"}},
		{api.Attachment{ContainerID: "c"}, []string{"lab/c1/eth0 2", "lab/c2/eth0 0", "more/c1/eth0 1"}},
		{api.Attachment{IfName: "eth"}, nil},
	} {
		var got []string
		for _, l := range r.all(&api.Request{Op: api.OpList, Attachment: c.filter}) {
			a := l.Attachment
			got = append(got, fmt.Sprint(a.Attachment, " ", a.Declared))
			if a.State != api.StateReady || a.KernelReports != api.KernelReportsMute || a.MLDVersion != 1 || a.Bridge != nil ||
				a.Interface.Name != "eth0" || !a.Source.IsLinkLocalUnicast() || a.Since.IsZero() {
				t.Errorf("%+v", a)
			}
		}
		if !slices.Equal(got, c.want) {
			t.Errorf("%v: %q, want %q", c.filter, got, c.want)
		}
	}
	netnslab.WaitFor(t, "Reports of all that is wanted and may be reported", patience, func() (bool, string) {
		a := r.all(&api.Request{Op: api.OpList})[0].Attachment
		return a.Wanted >= 3 && a.Reported == a.Wanted, fmt.Sprintf("%d/%d", a.Reported, a.Wanted)
	})
	pod.Delete()
	netnslab.WaitFor(t, "end of both", patience, func() (bool, string) {
		list := r.all(&api.Request{Op: api.OpList, Attachment: api.Attachment{ContainerID: "c1"}})
		ended := len(list) == 2
		for _, l := range list {
			ended = ended && l.Attachment.State == api.StateEnded && l.Attachment.Reason != ""
		}
		return ended, fmt.Sprint(list)
	})
}

// Bridges are looked for where the client is, and where there may be one elsewhere, it is told.
func TestBridgeElsewhere(t *testing.T) {
	r := serve(t)
	br := r.lab.Bridge("br0", netnslab.BridgeOptions{Querier: 1})
	pod := br.Connect(r.lab.Node("c1"), "eth0")
	lone, far := r.pod("c2")
	pod.LinkLocal()
	host, elsewhere := r.lab.Host(), r.lab.Node("elsewhere")
	r.add("lab", pod.Node(), settings(t, `"groups": ["%v"], "ready": {"wait": "auto", "timeout": "20s"}`, first))
	r.add("lab", lone.Node(), settings(t, `"groups": ["%v"], "ready": {"wait": "report", "timeout": "20s"}`, first))
	for name, c := range map[string]struct {
		from *netnslab.Node
		of   *netnslab.Node
		says string // "": nothing
	}{
		"the bridge's namespace":      {host, pod.Node(), ""},
		"another one":                 {elsewhere, pod.Node(), "mldctl's namespace"},
		"the daemon's":                {nil, pod.Node(), "mldd's namespace"},
		"that of what is no bridge":   {far.Node(), lone.Node(), ""},
		"another, where no bridge is": {host, lone.Node(), "mldctl's namespace"},
		"the container's own":         {pod.Node(), pod.Node(), "mldctl's namespace"},
	} {
		t.Run(name, func(t *testing.T) {
			r := r.in(t)
			var file *os.File
			where := "/proc/self/ns/net"
			if c.from != nil {
				file, where = c.from.Netns().File(), c.from.Path()
			}
			if c.says != "" {
				inode, err := os.Stat(where)
				if err != nil {
					t.Fatal(err)
				}
				c.says = fmt.Sprintf("net:[%d], %s", inode.Sys().(*syscall.Stat_t).Ino, c.says)
			}
			for _, l := range r.all(&api.Request{Op: api.OpList, Attachment: api.Attachment{ContainerID: c.of.Name()}, HostNetns: file}) {
				if a := l.Attachment; (a.Bridge != nil) != (c.of == pod.Node() && c.says == "") || a.State != api.StateReady ||
					!strings.Contains(a.BridgeReason, c.says) || (a.BridgeReason == "") != (c.says == "") {
					t.Errorf("%+v", a)
				}
			}
			for _, l := range r.all(&api.Request{Op: api.OpGroups, Attachment: api.Attachment{ContainerID: c.of.Name()}, HostNetns: file}) {
				told := slices.IndexFunc(l.Group.Marks, func(m api.Mark) bool { return m.Code == api.MarkBridgeUnseen })
				if l.Group.Group == first && (told >= 0) != (c.says != "") {
					t.Errorf("%+v", l.Group)
				}
				if told >= 0 && !strings.Contains(l.Group.Marks[told].Text, c.says) {
					t.Errorf("%+v, want %q", l.Group, c.says)
				}
			}
		})
	}
}

// Where an interface of the host itself leads to is no place for its bridge.
func TestHostLeadsToContainer(t *testing.T) {
	r := serve(t)
	_, host := r.pod("c1")
	q := r.request(api.OpAdd, "mldctl", host.Node(), settings(t, ``))
	q.Host, q.HostNetns = true, host.Node().Netns().File()
	r.must(q)
	a := r.all(&api.Request{Op: api.OpList, HostNetns: host.Node().Netns().File()})[0].Attachment
	if a.BridgeReason != "" || a.State != api.StateReady {
		t.Errorf("%+v", a)
	}
}

// A port that has left its bridge is missed, also by the next daemon; one that has gone to another bridge is not.
func TestPulled(t *testing.T) {
	r := serve(t)
	br := r.lab.Bridge("br0", netnslab.BridgeOptions{})
	r.lab.Bridge("br1", netnslab.BridgeOptions{})
	pod := br.Connect(r.lab.Node("c1"), "eth0")
	pod.LinkLocal()
	port := pod.Peer().Name()
	s := settings(t, `"groups": ["%v"]`, first)
	r.add("lab", pod.Node(), s)
	move := func(where ...string) {
		t.Helper()
		if err := r.lab.Host().Command(t.Context(), "ip", append([]string{"link", "set", "dev", port}, where...)...).Run(); err != nil {
			t.Fatal(err)
		}
	}
	want := fmt.Sprintf("%s was a port of bridge br0, and is none any more: ip link set %[1]s master br0", port)
	missed := func() {
		t.Helper()
		r.refused(r.request(api.OpCheck, "lab", pod.Node(), s), api.CodeNotReady, want)
		file := r.lab.Host().Netns().File()
		for _, l := range r.all(&api.Request{Op: api.OpList, HostNetns: file}) {
			if a := l.Attachment; a.State != api.StateDegraded || a.Reason != want {
				t.Errorf("%+v", a)
			}
		}
		for _, l := range r.all(&api.Request{Op: api.OpGroups, HostNetns: file}) {
			if g := l.Group; g.Reported != nil && !slices.Contains(g.Marks, api.NewMark(api.MarkNoPort, "not forwarded: "+want)) {
				t.Errorf("%+v", g)
			}
		}
	}
	fine := func() {
		t.Helper()
		r.check("lab", pod.Node(), s)
		a := r.all(&api.Request{Op: api.OpList, HostNetns: r.lab.Host().Netns().File()})[0].Attachment
		if a.State != api.StateReady || a.Bridge == nil {
			t.Errorf("%+v", a)
		}
	}
	fine()
	move("nomaster")
	missed()
	move("master", "br1")
	fine()
	move("nomaster")
	if err := r.end(); err != nil {
		t.Fatal(err)
	}
	r.serve(config(t, r.runDir))
	missed()
	s = settings(t, `"groups": ["%v"], "ready": {"wait": "auto"}`, first)
	if answer := r.add("lab", pod.Node(), s); !strings.Contains(answer.Degraded, want) {
		t.Errorf("ADD again: %q", answer.Degraded)
	}
	move("master", "br0")
	fine()
}

// Why MLDv1 is spoken, and how long still.
func TestWhyMLDv1(t *testing.T) {
	r := serve(t)
	pod, peer := r.pod("c1")
	status := func() *api.AttachmentStatus { return r.all(&api.Request{Op: api.OpList})[0].Attachment }
	r.add("lab", pod.Node(), settings(t, `"mldVersion": "1"`))
	if a := status(); a.VersionReason != "mldVersion is 1" || !a.VersionUntil.IsZero() {
		t.Errorf("configured: %+v", a)
	}
	r.add("lab", pod.Node(), settings(t, `"mldVersion": "auto"`))
	if a := status(); a.MLDVersion != 2 || !a.VersionUntil.IsZero() {
		t.Errorf("nobody has asked: %+v", a)
	}
	before := time.Now()
	r.listen(peer).ask()
	netnslab.WaitFor(t, "MLDv1", patience, func() (bool, string) {
		a := status()
		return a.MLDVersion == 1, fmt.Sprintf("%+v", a)
	})
	const timeout = 2*125*time.Second + 10*time.Millisecond // V2-68, with the delay of the Query
	a := status()
	if from, to := before.Add(timeout-time.Second), time.Now().Add(timeout); a.VersionUntil.Before(from) || a.VersionUntil.After(to) ||
		!strings.Contains(a.VersionReason, router.String()) {
		t.Errorf("asked in MLDv1: %q until %v, want %v to %v", a.VersionReason, a.VersionUntil, from, to)
	}
}

// A watcher's end is noticed, and so is that of the daemon.
func TestWatchEnds(t *testing.T) {
	r := serve(t)
	pod, _ := r.pod("c1")
	before := r.settled()
	lines, _, stop := r.stream(&api.Request{Op: api.OpWatch})
	r.add("lab", pod.Node(), settings(t, `"groups": ["%v"]`, first))
	select {
	case <-lines:
	case <-time.After(patience):
		t.Fatal("no event")
	}
	stop()
	r.del("lab", pod.Node())
	r.wantNoAgents()
	r.wantDescriptors(before)

	_, ended, _ := r.stream(&api.Request{Op: api.OpWatch})
	if err := r.end(); err != nil {
		t.Error(err)
	}
	select {
	case err := <-ended:
		if !api.NotRunning(err) {
			t.Errorf("the daemon has ended: %v", err)
		}
	case <-time.After(patience):
		t.Fatal("the daemon has ended, and the stream has not")
	}
}

// Who comes again because its watch has ended finds the next daemon, and never the one that is about to end.
func TestNotServedAfterTheWatch(t *testing.T) {
	for range 200 {
		r := &rig{TB: t, runDir: newRunDir(t)}
		cfg := config(t, r.runDir)
		cfg.Logger = slog.New(slog.DiscardHandler)
		r.serve(cfg)
		status := &api.Request{Op: api.OpStatus}
		r.must(status)
		_, ended, _ := r.stream(&api.Request{Op: api.OpWatch})
		r.stop(daemon.ErrHandover)
		if err := <-ended; !api.NotRunning(err) {
			t.Fatalf("the watch of a daemon that has ended: %v", err)
		}
		if answer, err := r.call(status); !api.NotRunning(err) {
			t.Fatalf("after the end of the watch: %+v, %v", answer, err)
		}
		r.end()
	}
}

// Who has begun to ask before a handover is told all of it.
func TestAnsweredInHandover(t *testing.T) {
	r := serve(t)
	var many []string // more than fits into the socket
	for i := range 2000 {
		many = append(many, fmt.Sprintf(`{"group": "ff05::2:%x", "deliver": false}`, i))
	}
	for name, groups := range map[string]string{"c1": strings.Join(many, ","), "c2": fmt.Sprintf(`"%v"`, first)} {
		pod, _ := r.pod(name)
		r.add("lab", pod.Node(), settings(t, `"limits": {"groups": 4096}, "groups": [%s]`, groups))
	}
	lines, ended, _ := r.stream(&api.Request{Op: api.OpGroups})
	<-lines
	r.stop(daemon.ErrHandover)
	netnslab.WaitFor(t, "end of the socket", patience, func() (bool, string) {
		client, err := api.Dial(r.runDir)
		if err == nil {
			client.Close()
		}
		return api.NotRunning(err), fmt.Sprint(err)
	})
	last := false
	for {
		select {
		case l := <-lines:
			last = last || l.Group.Attachments[0].ContainerID == "c2"
			continue
		case err := <-ended:
			if err != nil || !last {
				t.Errorf("%v, told of the last interface: %v", err, last)
			}
		}
		break
	}
}

// Who does not take in time what it has asked for is not waited for.
func TestHandoverDoesNotWaitForReaders(t *testing.T) {
	r := &rig{TB: t, lab: netnslab.New(t), runDir: newRunDir(t)}
	pod, _ := r.pod("c1")
	var many []string
	for i := range 4000 {
		many = append(many, fmt.Sprintf(`{"group": "ff05::2:%x", "deliver": false}`, i))
	}
	s := settings(t, `"limits": {"groups": 4096}, "groups": [%s]`, strings.Join(many, ","))
	for what, pace := range map[string]time.Duration{"paused": time.Hour, "slow": 10 * time.Millisecond} {
		t.Run(what, func(t *testing.T) {
			r := r.in(t)
			r.serve(config(t, r.runDir))
			r.add("lab", pod.Node(), s)
			lines, _, _ := r.stream(&api.Request{Op: api.OpGroups})
			<-lines
			begin := time.Now()
			r.stop(daemon.ErrHandover)
			go func() {
				next := time.NewTicker(pace)
				defer next.Stop()
				for {
					select {
					case <-next.C:
					case <-t.Context().Done():
						return
					}
					select {
					case <-lines:
					case <-t.Context().Done():
						return
					}
				}
			}()
			if err := r.ended(); err != nil {
				t.Error(err)
			}
			if took := time.Since(begin); took > 8*time.Second {
				t.Errorf("ended after %v", took)
			}
		})
	}
}

// Who waits for what stood before is told when the daemon makes room for the next one, and that it is to ask again.
func TestHandoverBeforeAdoption(t *testing.T) {
	r := serve(t)
	pod, _ := r.pod("c1")
	r.add("lab", pod.Node(), settings(t, `"groups": ["%v"], "kernelReports": "mute"`, first))
	if err := r.handover(); err != nil {
		t.Fatal(err)
	}
	mute, err := kernel.NewMute(pod.Node().Netns(), pod.Index(), kernel.MuteOptions{})
	if err != nil {
		t.Fatal(err)
	}
	defer mute.Close()
	r.serve(config(t, r.runDir))
	conn, err := net.Dial("unix", api.SocketPath(r.runDir))
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	if _, err := io.WriteString(conn, `{"v":1,"op":"list"}`+"\n"); err != nil {
		t.Fatal(err)
	}
	lines := bufio.NewScanner(conn)
	if !lines.Scan() {
		t.Fatal(lines.Err()) // the answer
	}
	begin := time.Now()
	if err := r.handover(); err != nil {
		t.Error(err)
	}
	if took := time.Since(begin); took > 8*time.Second {
		t.Errorf("ended after %v", took)
	}
	if lines.Scan() || lines.Err() != nil { // and is to ask the next one
		t.Errorf("told %q, %v", lines.Text(), lines.Err())
	}
}

// A watcher that does not read holds nobody up: it loses events.
func TestSlowWatcher(t *testing.T) {
	r := serve(t)
	pod, _ := r.pod("c1")
	r.add("lab", pod.Node(), settings(t, ``))
	lines, _, stop := r.stream(&api.Request{Op: api.OpWatch})
	defer stop()
	groups := func(round byte) string {
		text := ""
		for i := range 2000 {
			a := netip.AddrFrom16([16]byte{0: 0xff, 1: 5, 12: round, 13: byte(i >> 8), 14: byte(i), 15: 1})
			text += fmt.Sprintf(`{"group": "%v", "deliver": false},`, a)
		}
		return text[:len(text)-1]
	}
	for round := range byte(4) { // each is some 6000 events
		r.add("lab", pod.Node(), settings(t, `"limits": {"groups": 4096}, "groups": [%s]`, groups(round)))
	}
	told, lost := 0, 0
	for lost == 0 {
		select {
		case l := <-lines:
			told++
			if l.Event.Kind == api.EventLost {
				lost = l.Event.Lost
			}
		case <-time.After(patience):
			t.Fatalf("%d events, and none is said to be lost", told)
		}
	}
	if lost < 1000 {
		t.Errorf("%d events are lost", lost)
	}
}

// What cannot be done is answered, and leaves nothing open.
func TestStreamRefused(t *testing.T) {
	r := serve(t)
	before := r.settled()
	file := tempNetns(t)
	_, ended, _ := r.stream(&api.Request{Op: api.OpGroups, HostNetns: file})
	var fault *types.Error
	if err := <-ended; !errors.As(err, &fault) || fault.Code != types.ErrIOFailure {
		t.Errorf("of a namespace that is none: %v", err)
	}
	file.Close()
	r.wantDescriptors(before)
}

// tempNetns is no network namespace.
func tempNetns(t *testing.T) *os.File {
	t.Helper()
	f, err := os.Open(os.DevNull)
	if err != nil {
		t.Fatal(err)
	}
	return f
}

// A watcher is told whatever happens to an interface, one event after the other.
func TestWatchEvents(t *testing.T) {
	r := serve(t)
	pod, peer := r.pod("c1")
	w := r.listen(peer)
	lines, _, stop := r.stream(&api.Request{Op: api.OpWatch, Attachment: api.Attachment{Network: "lab"}})
	defer stop()
	var told []string
	want := func(what ...string) { // in this order, with others between
		t.Helper()
		for _, text := range what {
			deadline := time.After(patience)
			for found := false; !found; {
				select {
				case l := <-lines:
					e := l.Event
					got := fmt.Sprint(e.Kind, " ", e.Group, " ", e.Message, e.Record, " ", e.Cause, e.Reason, " ", e.MLDVersion)
					told = append(told, got)
					found = strings.HasPrefix(got, text)
					if !slices.ContainsFunc(e.Attachments, func(a api.Attachment) bool { return a.Network == "lab" }) ||
						e.Interface.Index != pod.Index() || e.Interface.Netns != pod.Node().Path() || e.Time.IsZero() {
						t.Errorf("%+v", e)
					}
				case <-deadline:
					t.Fatalf("not told %q, but %q", text, told)
				}
			}
		}
	}
	auto := `"mldVersion": "auto", "groups": [%s]`
	// Nothing is told before the stream has begun: until then declarations come and go.
	netnslab.WaitFor(t, "first event", patience, func() (bool, string) {
		r.add("lab", pod.Node(), settings(t, auto, fmt.Sprintf(`{"group": "%v", "deliver": false}`, second)))
		r.add("lab", pod.Node(), settings(t, auto, ""))
		select {
		case <-lines:
			return true, ""
		default:
			return false, ""
		}
	})
	r.add("lab", pod.Node(), settings(t, auto, fmt.Sprintf(`{"group": "%v", "deliver": false}`, first)))
	want(fmt.Sprintf("declared %v   0", first), fmt.Sprintf("sent %v ReportV2TO_EX changed 0", first))
	w.ask()
	want("heard invalid IP Query  1", "version invalid IP   1", fmt.Sprintf("sent %v Report answer 0", first))
	for range 2 { // the answer may be due within a moment
		peer.SendPacket(mld.AppendQuery(nil, router, first, mld.Query{Version: mld.Version1, MulticastAddress: first, MaxResponseCode: 30000}))
		peer.SendPacket(mld.AppendReport(nil, router, first))
	}
	want(fmt.Sprintf("suppressed %v   0", first))
	r.add("lab", pod.Node(), settings(t, auto, ""))
	want(fmt.Sprintf("undeclared %v   0", first))
	pod.SetDown()
	want("link invalid IP  down 0")
	pod.SetUp()
	want("link invalid IP  up 0")
	pod.Delete()
	want("ended ")
}

// TestListWhileInterfacesGo: an interface that goes while it is looked at has ended, and the others are told of.
func TestListWhileInterfacesGo(t *testing.T) {
	r := serve(t)
	const pods = 20
	var ends []*netnslab.Endpoint
	for n := range pods {
		pod, _ := r.pod(fmt.Sprint("c", n))
		r.add("lab", pod.Node(), settings(t, `"groups": ["%v"]`, first))
		ends = append(ends, pod)
	}
	gone := make(chan struct{})
	go func() {
		defer close(gone)
		for _, e := range ends {
			e.Delete()
		}
	}()
	for ended := 0; ended < pods; {
		list := r.all(&api.Request{Op: api.OpList})
		if len(list) != pods {
			t.Fatalf("%d of %d are told of", len(list), pods)
		}
		ended = 0
		for _, l := range list {
			if l.Attachment.State == api.StateEnded {
				ended++
			}
		}
	}
	<-gone
}
