package daemon

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/containernetworking/cni/pkg/types"
	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"

	"github.com/seed-aaab8e3a/cni-mld/mld/netns"
	"github.com/seed-aaab8e3a/cni-mld/netnslab"
	"github.com/seed-aaab8e3a/cni-mld/plugin/api"
)

// TestFlights: one at a time for each key, side by side for different keys, and nobody waits longer than asked to.
func TestFlights(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var f flights[string]
		var mu sync.Mutex
		aloft, most := map[string]int{}, map[string]int{}
		total, mostTotal := 0, 0
		begin := time.Now()
		var work sync.WaitGroup
		for _, key := range []string{"a", "a", "a", "b", "b", "c"} {
			work.Go(func() {
				_, leave, err := f.enter(t.Context(), key)
				if err != nil {
					t.Error(err)
					return
				}
				mu.Lock()
				aloft[key]++
				total++
				most[key], mostTotal = max(most[key], aloft[key]), max(mostTotal, total)
				mu.Unlock()
				<-time.After(time.Second)
				mu.Lock()
				aloft[key]--
				total--
				mu.Unlock()
				leave()
			})
		}
		work.Wait()
		if diff := cmp.Diff(map[string]int{"a": 1, "b": 1, "c": 1}, most); diff != "" {
			t.Error(diff)
		}
		if took := time.Since(begin); mostTotal != 3 || took != 3*time.Second {
			t.Errorf("%d at once, took %v; want 3 and 3s", mostTotal, took)
		}
		if len(f.queues) != 0 {
			t.Errorf("%v are left over", f.queues)
		}

		_, leave, err := f.enter(t.Context(), "a")
		if err != nil {
			t.Fatal(err)
		}
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		begin = time.Now()
		if _, _, err := f.enter(ctx, "a"); !errors.Is(err, context.DeadlineExceeded) || time.Since(begin) != time.Second {
			t.Errorf("%v after %v", err, time.Since(begin))
		}
		leave()
		if _, leave, err = f.enter(ctx, "a"); err != nil {
			t.Errorf("a free key is refused: %v", err)
		} else {
			leave()
		}
	})
}

// TestFlightsInOrder: who waits has its turn in the order of coming, also where somebody between gives up; and who has come
// before is overtaken, be it at work or waiting.
func TestFlightsInOrder(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var f flights[string]
		done := make(chan string, 5)
		impatient, giveUp := context.WithCancel(t.Context())
		for n := range cap(done) {
			ctx := t.Context()
			if n == 2 {
				ctx = impatient
			}
			if n == 4 {
				f.overtake("a")
			}
			go func() {
				within, leave, err := f.enter(ctx, "a")
				if err != nil {
					done <- fmt.Sprint(n, ": ", err)
					return
				}
				<-time.After(time.Second)
				done <- fmt.Sprint(n, ": ", context.Cause(within))
				leave()
			}()
			synctest.Wait() // it is at work or waits
		}
		giveUp()
		var got []string
		for range cap(done) {
			got = append(got, <-done)
		}
		const overtaken = "another request for it has overtaken this one"
		want := []string{"2: context canceled", "0: " + overtaken, "1: " + overtaken, "3: " + overtaken, "4: <nil>"}
		if diff := cmp.Diff(want, got); diff != "" {
			t.Error(diff)
		}
	})
}

// TestIdleTimer: the time without attachments counts, and from the last one on.
func TestIdleTimer(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const idle = time.Minute
		d := &Daemon{cfg: Config{IdleExit: idle}, idle: time.NewTimer(idle), attachments: map[api.Attachment]*attachment{}}
		count := func(names ...string) {
			d.mu.Lock()
			defer d.mu.Unlock()
			clear(d.attachments)
			for _, name := range names {
				d.attachments[api.Attachment{ContainerID: name}] = nil
			}
			d.countChanged()
		}
		want := func(want bool) {
			t.Helper()
			select {
			case <-d.idleC():
				if !want {
					t.Error("idle")
				}
			default:
				if want {
					t.Error("not idle")
				}
			}
		}
		<-time.After(idle / 2)
		count("a")
		<-time.After(time.Hour)
		want(false)
		count("a", "b")
		count("b")
		<-time.After(time.Hour)
		want(false)
		count()
		<-time.After(idle - 1)
		want(false)
		<-time.After(2)
		want(true)
		if (&Daemon{}).idleC() != nil {
			t.Error("a daemon without IdleExit is idle at times")
		}
	})
}

// TestSlowClients: whoever sends half a request, or nothing, is dropped in time.
func TestSlowClients(t *testing.T) {
	dir, err := os.MkdirTemp("", "mldd")
	if err != nil {
		t.Fatal(err)
	}
	defer os.RemoveAll(dir)
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: api.SocketPath(dir), Net: "unix"})
	if err != nil {
		t.Fatal(err)
	}
	d, err := New(Config{RunDir: dir, Listener: l, Logger: slog.New(slog.NewTextHandler(t.Output(), nil))})
	if err != nil {
		t.Fatal(err)
	}
	d.patience = 50 * time.Millisecond
	conns := make(map[string]net.Conn)
	for _, begin := range []string{"", `{"v":1,"op":"sta`} { // in the backlog, so that the daemon's time begins when all is said
		conn, err := net.Dial("unix", api.SocketPath(dir))
		if err != nil {
			t.Fatal(err)
		}
		defer conn.Close()
		if err := conn.SetDeadline(time.Now().Add(requestTimeout)); err != nil {
			t.Fatal(err)
		}
		if _, err := io.WriteString(conn, begin); err != nil {
			t.Error(err)
		}
		conns[begin] = conn
	}
	started := time.Now()
	ctx, stop := context.WithCancel(t.Context())
	served := make(chan error, 1)
	go func() { served <- d.Serve(ctx) }()
	defer func() {
		stop()
		if err := <-served; err != nil {
			t.Error(err)
		}
	}()
	for begin, conn := range conns {
		if n, err := conn.Read(make([]byte, 1)); n != 0 || !errors.Is(err, io.EOF) {
			t.Errorf("after %q: %d octets, %v", begin, n, err)
		}
		if took := time.Since(started); took < d.patience {
			t.Errorf("after %q: dropped within %v", begin, took)
		}
	}
}

// TestServeEndsBetweenRequests: a connection that is about to wait for its next request when the daemon is told to
// stop does not wait for it.
func TestServeEndsBetweenRequests(t *testing.T) {
	fds, err := socketpair()
	if err != nil {
		t.Fatal(err)
	}
	defer fds[0].Close()
	defer fds[1].Close()
	d := &Daemon{log: slog.New(slog.DiscardHandler), patience: time.Hour}
	ctx, cancel := context.WithCancel(t.Context())
	cancel() // and the deadline was moved before serve sets its own
	ended := make(chan error, 1)
	go func() { ended <- d.serve(ctx, fds[0]) }()
	select {
	case err := <-ended:
		if err != nil {
			t.Error(err)
		}
	case <-time.After(requestTimeout):
		t.Error("waits for a request")
	}
}

// A bench is a daemon that serves nobody, with a lab and a container.
type bench struct {
	*testing.T
	lab *netnslab.Lab
	pod *netnslab.Endpoint
	dir string
}

func newBench(t *testing.T) *bench {
	lab := netnslab.New(t)
	_, pod := lab.Veth(lab.Node("peer"), "eth0", lab.Node("c1"), "eth0")
	dir, err := os.MkdirTemp("", "mldd")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	return &bench{t, lab, pod, dir}
}

func (b *bench) begin() *Daemon {
	b.Helper()
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: api.SocketPath(b.dir), Net: "unix"})
	if err != nil {
		b.Fatal(err)
	}
	d, err := New(Config{RunDir: b.dir, Listener: l, Logger: slog.New(slog.NewTextHandler(b.Output(), nil))})
	if err != nil {
		b.Fatal(err)
	}
	return d
}

func (b *bench) end(d *Daemon) {
	b.Helper()
	d.end(true)
	if err := d.close(); err != nil {
		b.Error(err)
	}
}

// request makes a request about the container and a network, with a listener beside which another one could be.
func (b *bench) request(op, network string) *api.Request {
	b.Helper()
	r := &api.Request{
		Op: op, Attachment: api.Attachment{Network: network, ContainerID: "c1", IfName: "eth0"},
		NetnsPath: b.pod.Node().Path(), Settings: api.DefaultSettings(),
	}
	r.Settings.KernelReports = api.KernelReportsKeep
	for to, node := range map[**os.File]*netnslab.Node{&r.Netns: b.pod.Node(), &r.HostNetns: b.lab.Host()} {
		var err error
		if *to, err = os.Open(node.Path()); err != nil {
			b.Fatal(err)
		}
	}
	b.Cleanup(r.Close)
	return r
}

// add has the container added to a network.
func (b *bench) add(ctx context.Context, d *Daemon, network string) *types.Error {
	b.Helper()
	answer, err := d.handle(ctx, b.request(api.OpAdd, network), stays)
	if answer == nil {
		b.Fatal(err)
	}
	return answer.Error
}

// attached has the container added to network "a".
func (b *bench) attached(d *Daemon) *attachment {
	b.Helper()
	if err := b.add(b.Context(), d, "a"); err != nil {
		b.Fatal(err)
	}
	return d.lookup(api.Attachment{Network: "a", ContainerID: "c1", IfName: "eth0"})
}

// again begins a daemon that finds the container attached to network "a" by the one before.
func (b *bench) again() *Daemon {
	b.Helper()
	before := b.begin()
	b.attached(before)
	b.end(before)
	return b.begin()
}

// stays and leaves are clients that wait for an answer, or have given up.
func stays() bool  { return false }
func leaves() bool { return true }

// TestDelOvertakesWaiting: an ADD that waits for its turn when its DEL comes is not done, and one that comes later is, unless
// its client has given up meanwhile. They have their turns in the order in which they have come.
func TestDelOvertakesWaiting(t *testing.T) {
	b := newBench(t)
	d := b.again()
	defer b.end(d)
	var work sync.WaitGroup
	for n, c := range []struct {
		op   string
		left func() bool
		says string // "": it is done
	}{
		{api.OpAdd, stays, "its DEL has come before this was done"},
		{api.OpAdd, leaves, "its DEL has come before this was done"},
		{api.OpCheck, stays, "its DEL has come before this was done"},
		{api.OpDel, stays, ""},
		{api.OpDel, stays, ""},
		{api.OpAdd, leaves, "its client has given up"},
		{api.OpCheck, stays, "mldd does not know it"},
		{api.OpAdd, stays, ""},
		{api.OpAdd, leaves, "its client has given up"},
	} {
		r := b.request(c.op, "a")
		work.Go(func() {
			answer, err := d.handle(t.Context(), r, c.left)
			switch {
			case answer == nil || c.says == "" && answer.Error != nil:
				t.Errorf("%d, %s: %+v, %v", n, c.op, answer, err)
			case c.says != "" && (answer.Error == nil || !strings.Contains(answer.Error.Msg, c.says)):
				t.Errorf("%d, %s: %v, want %q", n, c.op, answer.Error, c.says)
			}
		})
		netnslab.WaitFor(t, "it to wait", requestTimeout, func() (bool, string) {
			d.attaching.mu.Lock()
			defer d.attaching.mu.Unlock()
			waiting := len(d.attaching.queues[r.Attachment]) - 1
			return waiting == n+1, fmt.Sprint(waiting)
		})
	}
	d.adoptAll(t.Context())
	work.Wait()
	if d.lookup(b.request(api.OpAdd, "a").Attachment) == nil {
		t.Error("the last ADD was not done")
	}
}

// TestAddBeforeAdoption: an interface has one listener, also where another network comes to it before it is back after a
// restart.
func TestAddBeforeAdoption(t *testing.T) {
	b := newBench(t)
	d := b.again()
	defer b.end(d)
	hurry, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
	defer cancel()
	if err := b.add(hurry, d, "b"); err == nil || err.Code != types.ErrTryAgainLater {
		t.Errorf("%v: the interface is not back yet", err)
	}
	d.adoptAll(t.Context())
	if err := b.add(t.Context(), d, "b"); err != nil {
		t.Error(err)
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	listeners := make(map[*iface]struct{})
	for _, a := range d.attachments {
		listeners[a.iface] = struct{}{}
	}
	if len(d.attachments) != 2 || len(listeners) != 1 {
		t.Errorf("%d attachments with %d listeners, want 2 with 1", len(d.attachments), len(listeners))
	}
}

// TestPlaceLeft: an interface that cannot be brought back yet does not hold up the others while it waits.
func TestPlaceLeft(t *testing.T) {
	b := newBench(t)
	before := b.begin()
	b.attached(before)
	b.end(before)

	loop := filepath.Join(b.dir, "loop")
	if err := os.Symlink(loop, loop); err != nil {
		t.Fatal(err)
	}
	d := b.begin()
	defer b.end(d)
	trying, stop := context.WithCancel(t.Context())
	places := make(chan struct{}, 1)
	var work sync.WaitGroup
	for _, i := range d.returning {
		i.attachments[0].NetnsPath = loop
		places <- struct{}{}
		work.Go(func() { d.adopt(t.Context(), trying, i, places) })
	}
	select {
	case places <- struct{}{}:
	case <-time.After(requestTimeout):
		t.Fatal("no place for another interface")
	}
	stop()
	<-places
	work.Wait()
	if len(places) != 1 {
		t.Errorf("%d places are taken, want that of the interface", len(places))
	}
}

// TestApplyAfterFailure: what was joined by settings of which a part has failed is left by the next ones.
func TestApplyAfterFailure(t *testing.T) {
	b := newBench(t)
	d := b.begin()
	defer b.end(d)
	a := b.attached(d)
	tooMany := api.Group{Addr: netip.MustParseAddr("ff05::9"), Mode: api.Include, Deliver: true}
	for n := range 65 {
		tooMany.Sources = append(tooMany.Sources, netip.AddrFrom16([16]byte{0: 0xfd, 15: byte(n)}))
	}
	group := func(n int) api.Group {
		return api.Group{Addr: netip.MustParseAddr(fmt.Sprintf("ff05::%d", n)), Mode: api.Exclude, Deliver: true}
	}
	for _, step := range []struct {
		groups []api.Group
		fails  bool
	}{
		{[]api.Group{group(1)}, false},
		{[]api.Group{group(2), tooMany}, true},
		{[]api.Group{tooMany}, true},
		{[]api.Group{group(3)}, false},
	} {
		s := api.DefaultSettings()
		s.Groups = step.groups
		if err := a.apply(t.Context(), s); (err != nil) != step.fails {
			t.Errorf("%v: %v", step.groups, err)
		}
	}
	if got := a.joins.Joined(); !slices.Equal(got, []netip.Addr{group(3).Addr}) {
		t.Errorf("joined is %v, want what was declared last", got)
	}
}

// TestStreamFails: why there is no more is told to the client, which would otherwise take the daemon for gone.
func TestStreamFails(t *testing.T) {
	b := newBench(t)
	d := b.begin()
	defer b.end(d)
	if err := b.attached(d).iface.netns.Close(); err != nil {
		t.Fatal(err)
	}
	close(d.adopted)
	pair, err := socketpair()
	if err != nil {
		t.Fatal(err)
	}
	defer pair[1].Close()
	if err := d.stream(t.Context(), pair[0], &api.Request{Op: api.OpList}); err != nil {
		t.Error(err)
	}
	pair[0].Close()
	if lines, err := io.ReadAll(pair[1]); err != nil || !strings.Contains(string(lines), `"msg":"interface eth0: `) {
		t.Errorf("%s, %v", lines, err)
	}
}

// TestStreamCutOff: when its time is over, a stream ends, though its client takes every line.
func TestStreamCutOff(t *testing.T) {
	b := newBench(t)
	d := b.begin()
	defer b.end(d)
	close(d.adopted)
	pair, err := socketpair()
	if err != nil {
		t.Fatal(err)
	}
	defer pair[0].Close()
	defer pair[1].Close()
	over, cancel := context.WithCancel(t.Context())
	cancel()
	d.work = over
	if err := d.stream(t.Context(), pair[0], &api.Request{Op: api.OpList}); !errors.Is(err, context.Canceled) {
		t.Errorf("%v, want %v", err, context.Canceled)
	}
}

// TestRestoreOnce: however often IPv6 begins anew while an interface is busy, what is joined is looked at once.
func TestRestoreOnce(t *testing.T) {
	b := newBench(t)
	d := b.begin()
	defer b.end(d)
	i := b.attached(d).iface
	_, leave, err := d.changing.enter(t.Context(), i.id)
	if err != nil {
		t.Fatal(err)
	}
	for range 5 {
		for _, off := range []string{"1", "0"} {
			b.pod.Node().SetSysctl("net/ipv6/conf/eth0/disable_ipv6", off)
			netnslab.WaitFor(t, "disable_ipv6 "+off, requestTimeout, func() (bool, string) {
				state := i.agent.Link()
				return state.IPv6 == (off == "0"), fmt.Sprintf("%+v", state)
			})
		}
	}
	restoring := func() int {
		stacks := make([]byte, 1<<20)
		return strings.Count(string(stacks[:runtime.Stack(stacks, true)]), "(*Daemon).restore(")
	}
	if n := restoring(); n != 1 {
		t.Errorf("%d wait for the interface, want 1", n)
	}
	leave()
	netnslab.WaitFor(t, "end of what has waited", requestTimeout, func() (bool, string) {
		n := restoring()
		return n == 0, fmt.Sprint(n)
	})
}

// TestRestoreReplaced: what a listener was about to have joined again is joined again also when another one has followed it.
func TestRestoreReplaced(t *testing.T) {
	b := newBench(t)
	d := b.begin()
	defer b.end(d)
	a := b.attached(d)
	if err := a.joins.Join(netip.MustParseAddr("ff05::4321")); err != nil {
		t.Fatal(err)
	}
	ns, err := netns.Open(b.pod.Node().Path())
	if err == nil {
		err = ns.Close()
	}
	if err != nil {
		t.Fatal(err)
	}
	a.iface.restoring.Store(true) // it leaves that to the other one
	for _, mtu := range []string{"1000", "1500"} {
		if out, err := b.pod.Node().Command(t.Context(), "ip", "link", "set", "dev", "eth0", "mtu", mtu).CombinedOutput(); err != nil {
			t.Fatalf("%v: %s", err, out)
		}
	}
	d.restore(&iface{id: a.iface.id, netns: ns, log: a.iface.log})
	joined, err := b.pod.Node().Command(t.Context(), "cat", "/proc/net/igmp6").Output()
	if err != nil {
		t.Fatal(err)
	}
	if !strings.Contains(string(joined), "ff050000000000000000000000004321") {
		t.Errorf("not joined again:\n%s", joined)
	}
}

// TestReplacedThoughOvertaken: a listener that is to make room for one with another voice is followed by that one, also when
// the request's DEL has come: between the two, another network's ADD would find a listener that has ended.
func TestReplacedThoughOvertaken(t *testing.T) {
	b := newBench(t)
	d := b.begin()
	defer b.end(d)
	a := b.attached(d)
	before, s := a.iface, *a.settings
	s.Robustness = 3
	ns, err := netns.Open(b.pod.Node().Path())
	if err != nil {
		t.Fatal(err)
	}
	at := &target{key: a.key, path: a.path, name: before.name, id: before.id, netns: ns}
	defer func() { d.release(at) }()
	overtaken, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := d.attach(overtaken, at, &api.Request{Attachment: a.key, Settings: &s}, a, false); err != nil {
		t.Error(err)
	}
	if a.iface == before || !a.iface.alive() || a.iface.attachments != 1 || a.iface.lastID != a.id {
		t.Errorf("the former listener is over: %v, the present one: %v, with %d attachments, the last one %d, this one %d",
			before.over(), a.iface.over(), a.iface.attachments, a.iface.lastID, a.id)
	}
}

// TestCanDeliverNow: IPv6 that has just been switched on is on, though the listener has not looked yet.
func TestCanDeliverNow(t *testing.T) {
	b := newBench(t)
	d := b.begin()
	defer b.end(d)
	a := b.attached(d)
	s := &api.Settings{Groups: []api.Group{{Deliver: true}}}
	for range 20 {
		b.pod.Node().SetSysctl("net/ipv6/conf/eth0/disable_ipv6", "1")
		netnslab.WaitFor(t, "IPv6 off", requestTimeout, func() (bool, string) { return !a.iface.agent.Link().IPv6, "" })
		if err := a.iface.canDeliver(t.Context(), s); err == nil {
			t.Error("accepted without IPv6")
		}
		answer := make(chan error)
		if err := a.iface.agent.Together(t.Context(), func() {
			b.pod.Node().SetSysctl("net/ipv6/conf/eth0/disable_ipv6", "0")
			started := make(chan struct{})
			go func() { close(started); answer <- a.iface.canDeliver(t.Context(), s) }()
			<-started
		}); err != nil {
			t.Fatal(err)
		}
		if err := <-answer; err != nil {
			t.Error(err)
		}
	}
}

// TestContradiction names every setting that attachments of an interface have to agree on.
func TestContradiction(t *testing.T) {
	stands := voiceOf(api.DefaultSettings())
	for want, change := range map[string]func(*voice){
		"mldVersion: 2 here, auto there":                                  func(v *voice) { v.mldVersion = "2" },
		"profile: kame here, rfc there":                                   func(v *voice) { v.profile = api.ProfileKAME },
		"kernelReports: mute here, auto there":                            func(v *voice) { v.kernelReports = api.KernelReportsMute },
		"robustness: 3 here, 2 there":                                     func(v *voice) { v.robustness = 3 },
		"unsolicitedReportInterval: 1s here, the default there":           func(v *voice) { v.interval = time.Second },
		"alwaysDone: true here, false there":                              func(v *voice) { v.alwaysDone = true },
		"robustness: 1 here, 2 there; alwaysDone: true here, false there": func(v *voice) { v.robustness, v.alwaysDone = 1, true },
	} {
		v := stands
		change(&v)
		if got := v.contradiction(stands); got != want {
			t.Errorf("%q, want %q", got, want)
		}
	}
}

// TestTables: every value of the settings has its meaning.
func TestTables(t *testing.T) {
	for _, v := range []string{api.MLDVersionAuto, api.MLDVersion1, api.MLDVersion2} {
		if _, ok := versions[v]; !ok {
			t.Errorf("mldVersion %q has no meaning", v)
		}
	}
	for _, m := range []api.Mode{api.Exclude, api.Include} {
		if got, ok := modes[m]; !ok || !strings.EqualFold(got.String(), m.String()) {
			t.Errorf("mode %v means %v", m, got)
		}
	}
	for _, p := range []string{api.ProfileRFC, api.ProfileKAME} {
		if _, ok := profiles[p]; !ok {
			t.Errorf("profile %q has no meaning", p)
		}
	}
	for _, k := range []string{api.KernelReportsAuto, api.KernelReportsMute, api.KernelReportsKeep} {
		if got, ok := kernelReports[k]; !ok || got.String() != k {
			t.Errorf("kernelReports %q means %v", k, got)
		}
	}
}

// socketpair makes two connected sockets.
func socketpair() ([2]*net.UnixConn, error) {
	var pair [2]*net.UnixConn
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
	if err != nil {
		return pair, err
	}
	for i, fd := range fds {
		f := os.NewFile(uintptr(fd), "pair")
		defer f.Close()
		conn, err := net.FileConn(f)
		if err != nil {
			return pair, err
		}
		pair[i] = conn.(*net.UnixConn)
	}
	return pair, nil
}
