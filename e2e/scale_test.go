package e2e

import (
	"bytes"
	"context"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/containernetworking/cni/pkg/types"
	"golang.org/x/sys/unix"

	"github.com/seed-aaab8e3a/cni-mld/mld"
	"github.com/seed-aaab8e3a/cni-mld/netnslab"
	"github.com/seed-aaab8e3a/cni-mld/plugin/api"
)

const (
	perBridge = 1000 // a Linux bridge has at most 1023 ports
	perPod    = 10   // declared groups
	atOnce    = 8    // containers that a runtime starts or ends at a time
	rounds    = 5    // of a General Query, and its answers
	maxDelay  = 10 * time.Millisecond
	idleFor   = 10 * time.Second
	calm      = 12 * time.Second // after which mldd gives back memory, and a little more
	longPause = 5 * time.Minute  // what nothing takes at any scale
)

// The goals for many namespaces.
const (
	goalQuery    = 0.9             // of the time in which as many kernels answer
	goalPackets  = 1.0             // of the packets that they send for it
	goalDetach   = 2 * time.Second // of all, and also for an orderly exit
	goalSwitches = 100             // when idle, of all: Go collects its garbage every two minutes
	goalGrowth   = 3.0             // of the time of an attach, first tenth to last: a Report takes a bridge through its ports
)

// BenchmarkScale puts SCALE containers, 1000 of them by default, in the care of one daemon and measures what that takes:
// to attach and detach them, to hold them, to answer a Query for them all, and to bring them back after a reload and a
// crash. It says on standard error what it is at.
func BenchmarkScale(b *testing.B) {
	n := 1000
	if text := os.Getenv("SCALE"); text != "" {
		var err error
		if n, err = strconv.Atoi(text); err != nil || n < 10 {
			b.Fatalf("SCALE=%s: must be a number of containers, at least 10", text)
		}
	}
	for b.Loop() {
		f := newFleet(b, n)
		kernels := f.kernels()
		f.start()
		f.attachAll()
		f.weigh()
		f.queries(kernels)
		f.look()
		f.idle()
		f.reload()
		f.crash()
		f.stop()
		begin := time.Now()
		f.start()
		f.adopted("adopted by a new daemon", begin)
		f.detachAll()
		f.end()
		fmt.Fprintf(os.Stderr, "\n%d containers with %d groups each\n%s\n", n, perPod, f.table.String())
	}
	b.ReportMetric(0, "ns/op")
}

// A fleet is a lab with many containers on a few bridges, and a daemon.
type fleet struct {
	b       *testing.B
	lab     *netnslab.Lab
	bin     string
	dir     string
	groups  []netip.Addr
	pods    []*netnslab.Endpoint
	bridges []*netnslab.Bridge
	routers []*netnslab.Endpoint // one on each bridge
	heard   *netnslab.Capture    // the MLD on them all
	table   strings.Builder

	settings *api.Settings
	mldd     *netnslab.Cmd // the keeper; nil while there is none
	logged   int64         // how long the log was when that was marked
	said     time.Time     // when progress was told last
	before   usage         // the worker with nothing attached
}

// told is a benchmark of whose labs no evidence is collected: that of thousands of containers would take longer than
// everything else.
type told struct{ *testing.B }

func (told) Failed() bool { return false }

func newFleet(b *testing.B, n int) *fleet {
	f := &fleet{b: b, lab: netnslab.New(told{b})}
	var err error
	if f.bin, err = binaries(); err != nil {
		b.Fatal(err)
	}
	if f.dir, err = os.MkdirTemp("/run", "scale-"); err != nil {
		b.Fatal(err)
	}
	b.Cleanup(f.close)
	for i := range perPod {
		f.groups = append(f.groups, netip.MustParseAddr(fmt.Sprintf("ff05::5ca:%x", i+1)))
	}
	list, err := json.Marshal(f.groups)
	if err != nil {
		b.Fatal(err)
	}
	var fault *types.Error
	if f.settings, fault = api.ParseSettings(map[string]json.RawMessage{"groups": list}); fault != nil {
		b.Fatal(fault)
	}
	begin := time.Now()
	for i := range n {
		if i%perBridge == 0 {
			f.bridge(i / perBridge)
		}
		f.progress(i, n, "containers made")
		pod := f.lab.Node(fmt.Sprintf("c%d", i))
		f.pods = append(f.pods, f.bridges[i/perBridge].Connect(pod, "eth0"))
	}
	f.constrain()
	f.name()
	f.heard = f.lab.Capture(netnslab.MLD, f.routers...)
	f.row("made the containers", "%v", round(time.Since(begin)))
	return f
}

func round(d time.Duration) time.Duration { return d.Round(100 * time.Microsecond) }

// row adds a line to what is told in the end, and tells it now.
func (f *fleet) row(what, format string, args ...any) {
	line := fmt.Sprintf("%-44s %s", what, fmt.Sprintf(format, args...))
	fmt.Fprintln(&f.table, line)
	fmt.Fprintf(os.Stderr, "%s %s\n", time.Now().Format("15:04:05"), line)
}

// progress says every now and then how far something has come.
func (f *fleet) progress(i, of int, what string) {
	if now := time.Now(); now.Sub(f.said) > 5*time.Second {
		f.said = now
		fmt.Fprintf(os.Stderr, "%s   %d of %d %s\n", now.Format("15:04:05"), i, of, what)
	}
}

// bridge makes the next bridge, with a router on a port where all Reports go.
func (f *fleet) bridge(i int) {
	options := quiet
	options.Querier, options.HashMax = 2, 1<<14
	br := f.lab.Bridge(fmt.Sprintf("br%d", i), options)
	node := f.lab.Node(fmt.Sprintf("router%d", i))
	node.SetSysctl("net/ipv6/conf/default/disable_ipv6", "1")
	router := br.Connect(node, "eth0")
	runIn(f.b, f.lab.Host(), "bridge", "link", "set", "dev", router.Peer().Name(), "mcast_router", "2")
	f.bridges, f.routers = append(f.bridges, br), append(f.routers, router)
}

// constrain keeps Reports, and what no port has asked for, away from the containers.
func (f *fleet) constrain() {
	var batch bytes.Buffer
	for _, pod := range f.pods {
		fmt.Fprintf(&batch, "link set dev %s mcast_flood off\n", pod.Peer().Name())
	}
	cmd := f.lab.Host().Command(f.b.Context(), "bridge", "-batch", "-")
	cmd.Stdin = &batch
	if out, err := cmd.CombinedOutput(); err != nil {
		f.b.Fatalf("%v: %v: %s", cmd, err, out)
	}
}

// name gives each namespace a name in a directory, as runtimes do.
func (f *fleet) name() {
	dir := f.names()
	if err := errors.Join(os.Mkdir(dir, 0o755), unix.Mount("netns", dir, "tmpfs", 0, "mode=0755")); err != nil {
		f.b.Fatal(err)
	}
	for _, pod := range f.pods {
		path := f.path(pod)
		if err := errors.Join(os.WriteFile(path, nil, 0o644),
			unix.Mount(fmt.Sprintf("/proc/self/fd/%d", pod.Node().Netns().File().Fd()), path, "", unix.MS_BIND, "")); err != nil {
			f.b.Fatal(err)
		}
	}
}

func (f *fleet) names() string { return filepath.Join(f.dir, "netns") }
func (f *fleet) path(pod *netnslab.Endpoint) string {
	return filepath.Join(f.names(), pod.Node().Name())
}
func (f *fleet) runDir() string  { return filepath.Join(f.dir, "run") }
func (f *fleet) metrics() string { return filepath.Join(f.dir, "metrics") }
func (f *fleet) log() string     { return filepath.Join(f.dir, "log") }

// close leaves nothing behind, whatever has happened.
func (f *fleet) close() {
	if f.b.Failed() {
		lines := strings.Split(strings.TrimSpace(f.words(0)), "\n")
		f.b.Logf("the daemon's last words:\n%s", strings.Join(lines[max(0, len(lines)-20):], "\n"))
	}
	if f.mldd != nil {
		_ = f.mldd.Process.Kill()
		_ = f.mldd.Wait()
	}
	_ = unix.Unmount(f.names(), unix.MNT_DETACH) // with all that is mounted there
	if err := os.RemoveAll(f.dir); err != nil {
		f.b.Error(err)
	}
}

// await waits until a condition holds, and returns when that was.
func (f *fleet) await(what string, cond func() (done bool, state string)) time.Time {
	f.b.Helper()
	ceiling := time.NewTimer(longPause)
	defer ceiling.Stop()
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	for {
		done, state := cond()
		if done {
			return time.Now()
		}
		if now := time.Now(); now.Sub(f.said) > 5*time.Second {
			f.said = now
			fmt.Fprintf(os.Stderr, "%s   waiting until %s: %s\n", now.Format("15:04:05"), what, state)
		}
		select {
		case <-tick.C:
		case <-ceiling.C:
			f.b.Fatalf("not after %v: %s: %s", longPause, what, state)
		case <-f.b.Context().Done():
			f.b.Fatalf("ended before %s: %s", what, state)
		}
	}
}

// pause lets time pass in which nothing is to happen, so that there is nothing to wait for.
func (f *fleet) pause(d time.Duration) {
	select {
	case <-time.After(d):
	case <-f.b.Context().Done():
	}
}

// silent waits until nobody has sent MLD for a while.
func (f *fleet) silent() {
	f.b.Helper()
	begin := time.Now()
	f.await("nobody says anything", func() (bool, string) {
		last := begin
		if frames := f.heard.Frames(); len(frames) > 0 && frames[len(frames)-1].Time.After(last) {
			last = frames[len(frames)-1].Time
		}
		return time.Since(last) > 1500*time.Millisecond, last.Format("15:04:05.000")
	})
}

// forwarded returns how many ports have entries for how many of the declared groups, as the program bridge tells.
func (f *fleet) forwarded() (entries int) {
	f.b.Helper()
	var list []struct {
		MDB []struct{ Port, Grp string }
	}
	if err := json.Unmarshal(runIn(f.b, f.lab.Host(), "bridge", "-j", "mdb", "show"), &list); err != nil {
		f.b.Fatalf("bridge mdb: %v", err)
	}
	wanted := make(map[string]bool)
	for _, g := range f.groups {
		wanted[g.String()] = true
	}
	for _, l := range list {
		for _, e := range l.MDB {
			if wanted[e.Grp] {
				entries++
			}
		}
	}
	return entries
}

func (f *fleet) awaitForwarded(entries int) time.Time {
	f.b.Helper()
	return f.await(fmt.Sprintf("the bridges have %d entries", entries), func() (bool, string) {
		n := f.forwarded()
		return n == entries, strconv.Itoa(n)
	})
}

// A record is one of a Report of version 2.
type record struct {
	kind  byte
	group netip.Addr
}

const (
	toInclude = 3
	block     = 6
)

// recordsOf reads the records of a frame, in a test's own way.
func recordsOf(frame netnslab.Frame) (list []record) {
	const hopByHop, head = 8, 8
	b := frame.IPv6()
	if frame.ICMPv6() != reportV2 || len(b) < 40+hopByHop+head {
		return nil
	}
	b = b[40+hopByHop:]
	n := int(binary.BigEndian.Uint16(b[6:]))
	for b = b[head:]; n > 0 && len(b) >= 20; n-- {
		list = append(list, record{b[0], netip.AddrFrom16([16]byte(b[4:]))})
		b = b[min(20+16*int(binary.BigEndian.Uint16(b[2:])), len(b)):]
	}
	return list
}

// An answer is what a General Query brings.
type answer struct {
	took    time.Duration // from the Query to the last Report
	packets int
	missing int // containers and groups that were not reported
}

// query asks on all bridges at once, and waits until all have answered.
func (f *fleet) query() (a answer) {
	f.b.Helper()
	since := time.Now()
	packet := mld.AppendQuery(nil, routerAddr, allNodes, mld.Query{
		Version: mld.Version2, MulticastAddress: general, MaxResponseCode: uint16(maxDelay.Milliseconds()), QRV: 2, QQIC: 125,
	})
	for _, br := range f.bridges { // what comes from the bridge itself gets to all ports
		br.SendPacket(packet)
	}
	f.silent()
	var last time.Time
	said := make(map[string]map[netip.Addr]bool)
	for _, frame := range f.heard.Frames() {
		switch {
		case frame.Time.Before(since):
		case !frame.Outgoing && frame.ICMPv6() == reportV2:
			a.packets++
			last = frame.Time
			who := string(frame.Data[6:12])
			for _, r := range recordsOf(frame) {
				if said[who] == nil {
					said[who] = make(map[netip.Addr]bool)
				}
				said[who][r.group] = true
			}
		}
	}
	a.took = last.Sub(since)
	for _, pod := range f.pods {
		for _, g := range f.groups {
			if !said[string(pod.HardwareAddr())][g] {
				a.missing++
			}
		}
	}
	return a
}

// ask has the question asked some times. It returns the fastest round, for whatever else the machine does only slows it, and
// of packets and of what is missing the most.
func (f *fleet) ask() (a answer) {
	f.b.Helper()
	for i := range rounds {
		f.progress(i, rounds, "General Queries")
		q := f.query()
		if i == 0 || q.took < a.took {
			a.took = q.took
		}
		a.packets, a.missing = max(a.packets, q.packets), max(a.missing, q.missing)
	}
	return a
}

// kernels has the kernels of all containers answer a Query, without any daemon.
func (f *fleet) kernels() answer {
	f.b.Helper()
	var sockets []int
	defer func() {
		for _, fd := range sockets {
			_ = unix.Close(fd)
		}
	}()
	begin := time.Now()
	for _, pod := range f.pods {
		if err := pod.Node().Do(func() error {
			fd, err := unix.Socket(unix.AF_INET6, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
			if err != nil {
				return err
			}
			sockets = append(sockets, fd)
			for _, g := range f.groups {
				m := unix.IPv6Mreq{Multiaddr: g.As16(), Interface: uint32(pod.Index())}
				if err := unix.SetsockoptIPv6Mreq(fd, unix.IPPROTO_IPV6, unix.IPV6_JOIN_GROUP, &m); err != nil {
					return err
				}
			}
			return nil
		}); err != nil {
			f.b.Fatalf("%s: %v", pod, err)
		}
	}
	f.awaitForwarded(len(f.pods) * perPod)
	f.silent()
	f.row("the kernels' reports of joining", "%.2f", float64(f.reports(begin))/float64(len(f.pods)))
	a := f.ask()
	f.row("query answered by the kernels", "%v, %d packets", round(a.took), a.packets)
	begin = time.Now()
	for _, fd := range sockets {
		_ = unix.Close(fd)
	}
	f.row("kernels' sockets closed", "%v", round(time.Since(begin)))
	sockets = nil
	f.awaitForwarded(0)
	f.row("the kernels' reports of leaving", "%.2f", float64(f.reports(begin))/float64(len(f.pods)))
	f.silent()
	return a
}

// start starts the daemon.
func (f *fleet) start() {
	f.b.Helper()
	if err := os.MkdirAll(f.runDir(), 0o700); err != nil {
		f.b.Fatal(err)
	}
	log, err := os.OpenFile(f.log(), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		f.b.Fatal(err)
	}
	defer log.Close()
	f.mark()
	cmd := f.lab.Host().Command(context.WithoutCancel(f.b.Context()), filepath.Join(f.bin, "mldd"),
		"--run-dir", f.runDir(), "--metrics", f.metrics())
	cmd.Stderr = log
	if err := cmd.Start(); err != nil {
		f.b.Fatal(err)
	}
	f.mldd = cmd
	f.await("the daemon answers", func() (bool, string) {
		_, err := f.status()
		return err == nil, fmt.Sprint(err)
	})
	f.before = f.worker()
}

// mark remembers where the log ends.
func (f *fleet) mark() {
	info, err := os.Stat(f.log())
	if err == nil {
		f.logged = info.Size()
	}
}

// words returns what the daemon has logged from a place on.
func (f *fleet) words(from int64) string {
	text, _ := os.ReadFile(f.log())
	return string(text[min(from, int64(len(text))):])
}

func (f *fleet) call(r *api.Request) (*api.Answer, error) {
	ctx, cancel := context.WithTimeout(f.b.Context(), longPause)
	defer cancel()
	return api.Exchange(ctx, f.runDir(), r)
}

func (f *fleet) status() (*api.Status, error) {
	a, err := f.call(&api.Request{Op: api.OpStatus})
	if err != nil {
		return nil, err
	}
	return a.Status, nil
}

// each does something for all containers, some at a time, in their order, and returns how long each has taken.
func (f *fleet) each(what string, atOnce int, do func(pod *netnslab.Endpoint) error) []time.Duration {
	f.b.Helper()
	took := make([]time.Duration, len(f.pods))
	errs := make([]error, len(f.pods))
	next := make(chan int)
	var workers sync.WaitGroup
	for range atOnce {
		workers.Go(func() {
			for i := range next {
				begin := time.Now()
				errs[i] = do(f.pods[i])
				took[i] = time.Since(begin)
			}
		})
	}
	for i := range f.pods {
		f.progress(i, len(f.pods), what)
		next <- i
	}
	close(next)
	workers.Wait()
	var failed int
	for i, err := range errs {
		if err != nil {
			if failed++; failed <= 5 {
				f.b.Errorf("%s: %s: %v", what, f.pods[i], err)
			}
		}
	}
	if failed > 0 {
		f.b.Fatalf("%s: %d of %d failed", what, failed, len(f.pods))
	}
	return took
}

func (f *fleet) request(op string, pod *netnslab.Endpoint) *api.Request {
	r := &api.Request{
		Op:         op,
		Attachment: api.Attachment{Network: "scale", ContainerID: pod.Node().Name(), IfName: pod.Name()},
	}
	if op == api.OpAdd {
		r.Settings, r.NetnsPath = f.settings, f.path(pod)
		r.Netns, r.HostNetns = pod.Node().Netns().File(), f.lab.Host().Netns().File()
	}
	return r
}

// attachAll attaches everything as the plugin does.
func (f *fleet) attachAll() {
	f.b.Helper()
	var mu sync.Mutex
	degraded := 0
	begin := time.Now()
	took := f.each("attached", atOnce, func(pod *netnslab.Endpoint) error {
		a, err := f.call(f.request(api.OpAdd, pod))
		if err == nil && a.Degraded != "" {
			mu.Lock()
			defer mu.Unlock()
			if degraded++; degraded <= 3 {
				f.b.Logf("%s: %s", pod, a.Degraded)
			}
		}
		return err
	})
	all := time.Since(begin)
	w := f.worker()
	f.silent()
	f.row("reports of an attach", "%.2f", float64(f.reports(begin))/float64(len(f.pods)))
	tenth := max(len(took)/10, 1)
	first, last := quantile(took[:tenth], 0.5), quantile(took[len(took)-tenth:], 0.5)
	n := time.Duration(len(took))
	f.row("attached", "%v, %d degraded", round(all), degraded)
	f.row("an attach, "+strconv.Itoa(atOnce)+" at a time: median, 95 %", "%v, %v", round(quantile(took, 0.5)), round(quantile(took, 0.95)))
	f.row("in the first tenth, in the last: median", "%v, %v", round(first), round(last))
	f.row("CPU of an attach: user, system", "%v, %v", ((w.user - f.before.user) / n).Round(time.Microsecond),
		((w.system - f.before.system) / n).Round(time.Microsecond))
	hold(f.b, "attach-last/first", last, first, goalGrowth)
	if degraded > 0 {
		f.b.Errorf("%d of %d attachments were not ready in time", degraded, len(took))
	}
	f.awaitForwarded(len(f.pods) * perPod)
}

// A usage is what a process takes.
type usage struct {
	user, system time.Duration
	resident     int // bytes
	threads, fds int
	switches     int
}

func (f *fleet) worker() usage {
	f.b.Helper()
	s, err := f.status()
	if err != nil {
		f.b.Fatal(err)
	}
	return f.process(s.PID)
}

func (f *fleet) process(pid int) (p usage) {
	f.b.Helper()
	dir := fmt.Sprintf("/proc/%d", pid)
	text, err := os.ReadFile(dir + "/stat")
	if err != nil {
		f.b.Fatal(err)
	}
	fields := strings.Fields(string(text[bytes.LastIndexByte(text, ')')+1:]))
	const tick = 10 * time.Millisecond // USER_HZ is 100 everywhere
	number := func(s string) int {
		n, err := strconv.Atoi(s)
		if err != nil {
			f.b.Fatalf("%s: %v", dir, err)
		}
		return n
	}
	p.user, p.system = time.Duration(number(fields[11]))*tick, time.Duration(number(fields[12]))*tick
	status, err := os.ReadFile(dir + "/status")
	if err != nil {
		f.b.Fatal(err)
	}
	for line := range strings.Lines(string(status)) {
		if name, value, _ := strings.Cut(strings.TrimSpace(line), ":"); name == "RssAnon" { // the rest is of files, and shared
			p.resident = 1024 * number(strings.Fields(value)[0])
		}
	}
	entries, err := os.ReadDir(dir + "/fd")
	if err != nil {
		f.b.Fatal(err)
	}
	p.fds = len(entries)
	tasks, err := filepath.Glob(dir + "/task/*/status")
	if err != nil {
		f.b.Fatal(err)
	}
	p.threads = len(tasks)
	for _, task := range tasks {
		text, _ := os.ReadFile(task)
		for line := range strings.Lines(string(text)) {
			if name, value, _ := strings.Cut(strings.TrimSpace(line), ":"); strings.HasSuffix(name, "ctxt_switches") {
				p.switches += number(strings.TrimSpace(value))
			}
		}
	}
	return p
}

// series scrapes the daemon's metrics.
func (f *fleet) series() string {
	f.b.Helper()
	client := http.Client{Transport: &http.Transport{
		DisableKeepAlives: true,
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			return (&net.Dialer{}).DialContext(ctx, "unix", f.metrics())
		},
	}}
	response, err := client.Get("http://mldd/metrics")
	if err != nil {
		f.b.Fatal(err)
	}
	defer response.Body.Close()
	text, err := io.ReadAll(response.Body)
	if err != nil || response.StatusCode != http.StatusOK {
		f.b.Fatalf("metrics: %s, %v", response.Status, err)
	}
	return string(text)
}

// weigh tells what the daemon holds for those that are attached.
func (f *fleet) weigh() {
	f.b.Helper()
	f.silent()
	s, err := f.status()
	if err != nil {
		f.b.Fatal(err)
	}
	high := f.process(s.PID).resident
	f.pause(calm)
	w, k, n := f.process(s.PID), f.process(s.KeeperPID), len(f.pods)
	f.row("resident, worker: highest", "%.1f MB", mb(high))
	f.row("resident: worker before, after; keeper", "%.1f MB, %.1f MB; %.1f MB", mb(f.before.resident), mb(w.resident), mb(k.resident))
	f.row("resident, worker, of each", "%.1f kB", float64(w.resident-f.before.resident)/1000/float64(n))
	f.row("descriptors: worker, of each; keeper", "%d, %.2f; %d", w.fds, float64(w.fds-f.before.fds)/float64(n), k.fds)
	f.row("threads: worker, keeper", "%d, %d", w.threads, k.threads)
	begin := time.Now()
	text := f.series()
	took := time.Since(begin)
	for line := range strings.Lines(text) {
		for _, name := range []string{"go_goroutines", "go_memstats_heap_inuse_bytes", "go_memstats_stack_inuse_bytes"} {
			if value, ok := strings.CutPrefix(line, name+" "); ok {
				v, err := strconv.ParseFloat(strings.TrimSpace(value), 64)
				if err != nil {
					f.b.Fatal(err)
				}
				f.row(name+", of each", "%.0f, %.1f", v, v/float64(n))
			}
		}
	}
	f.row("metrics", "%v, %.1f MB", round(took), mb(len(text)))
}

func mb(n int) float64 { return float64(n) / 1e6 }

// queries has the daemon answer a Query for all.
func (f *fleet) queries(kernels answer) {
	f.b.Helper()
	a := f.ask()
	f.row("query answered", "%v, %d packets", round(a.took), a.packets)
	hold(f.b, "query/kernels", a.took, kernels.took, goalQuery)
	hold(f.b, "packets/kernels", time.Duration(a.packets), time.Duration(kernels.packets), goalPackets)
	if a.missing > 0 {
		f.b.Errorf("%d of %d groups not reported", a.missing, len(f.pods)*perPod)
	}
}

// look tells how long the operator's tool takes.
func (f *fleet) look() {
	f.b.Helper()
	for _, verb := range []string{"status", "groups"} {
		cmd := f.lab.Host().Command(f.b.Context(), filepath.Join(f.bin, "mldctl"), verb, "--run-dir", f.runDir())
		begin := time.Now()
		out, err := cmd.Output()
		if err != nil {
			f.b.Errorf("mldctl %s: %v", verb, err)
		}
		f.row("mldctl "+verb, "%v, %d lines", round(time.Since(begin)), bytes.Count(out, []byte("\n")))
	}
}

// idle counts how often the daemon wakes up while nothing happens.
func (f *fleet) idle() {
	f.b.Helper()
	f.silent()
	s, err := f.status()
	if err != nil {
		f.b.Fatal(err)
	}
	w, k := f.process(s.PID), f.process(s.KeeperPID)
	f.pause(idleFor)
	after, afterK := f.process(s.PID), f.process(s.KeeperPID)
	switches := after.switches - w.switches + afterK.switches - k.switches
	f.row("context switches when idle: worker, keeper", "%d, %d in %v; CPU %v", after.switches-w.switches,
		afterK.switches-k.switches, idleFor, after.user+after.system-w.user-w.system)
	if switches > goalSwitches {
		f.b.Errorf("idle: %d context switches in %v: the goal is %d at most", switches, idleFor, goalSwitches)
	}
}

// adopted waits until a new worker has taken over all attachments, and proves that nothing was left.
func (f *fleet) adopted(what string, since time.Time) {
	f.b.Helper()
	const said = "attachments taken over"
	var line string
	at := f.await(what, func() (bool, string) {
		text := f.words(f.logged)
		if i := strings.Index(text, said); i >= 0 {
			line, _, _ = strings.Cut(text[i:], "\n")
			return true, ""
		}
		s, err := f.status()
		if err != nil {
			return false, err.Error()
		}
		return false, fmt.Sprintf("%d attached", s.Attachments)
	})
	if want := fmt.Sprintf("before=%d now=%d ", len(f.pods), len(f.pods)); !strings.Contains(line, want) {
		f.b.Errorf("%s: %s, want %s", what, line, want)
	}
	f.row(what, "%v (%s)", round(at.Sub(since)), line[strings.LastIndexByte(line, ' ')+1:])
	f.silent()
	if left := f.leaves(since); left > 0 && !strings.Contains(what, "new daemon") {
		f.b.Errorf("%s: %d declared groups were left on the wire", what, left)
	}
	if n := f.forwarded(); n != len(f.pods)*perPod {
		f.b.Errorf("%s: %d entries, want %d", what, n, len(f.pods)*perPod)
	}
	if a := f.query(); a.missing > 0 {
		f.b.Errorf("%s: %d groups are not reported any more", what, a.missing)
	}
}

// reports counts the Reports since a moment.
func (f *fleet) reports(since time.Time) (n int) {
	for _, frame := range f.heard.Frames() {
		if frame.Time.After(since) && frame.ICMPv6() == reportV2 {
			n++
		}
	}
	return n
}

// leaves counts the records by which declared groups were left since a moment.
func (f *fleet) leaves(since time.Time) (n int) {
	for _, frame := range f.heard.Frames() {
		if frame.Time.Before(since) {
			continue
		}
		for _, r := range recordsOf(frame) {
			if (r.kind == toInclude || r.kind == block) && slices.Contains(f.groups, r.group) {
				n++
			}
		}
	}
	return n
}

// reload has the next worker take over.
func (f *fleet) reload() {
	f.b.Helper()
	f.mark()
	begin := time.Now()
	if err := f.mldd.Process.Signal(unix.SIGHUP); err != nil {
		f.b.Fatal(err)
	}
	f.adopted("reloaded", begin)
}

// crash kills the worker.
func (f *fleet) crash() {
	f.b.Helper()
	s, err := f.status()
	if err != nil {
		f.b.Fatal(err)
	}
	f.mark()
	begin := time.Now()
	if err := unix.Kill(s.PID, unix.SIGKILL); err != nil {
		f.b.Fatal(err)
	}
	gone := f.await("the killed worker is gone", func() (bool, string) {
		return strings.Contains(f.words(f.logged), "worker ended"), ""
	})
	f.row("killed worker gone", "%v", round(gone.Sub(begin)))
	f.adopted("recovered from the kill", begin)
}

// stop has the daemon end in order.
func (f *fleet) stop() {
	f.b.Helper()
	begin := time.Now()
	f.end()
	took := time.Since(begin)
	f.row("orderly exit", "%v", round(took))
	hold(f.b, "exit/goal", took, goalDetach, 1)
	f.awaitForwarded(0)
	f.silent()
	f.row("reports of leaving", "%.2f", float64(f.reports(begin))/float64(len(f.pods)))
	if left, want := f.leaves(begin), len(f.pods)*perPod; left < want {
		f.b.Errorf("orderly exit: %d groups left on the wire, want %d", left, want)
	}
}

// detachAll detaches everything as the plugin does.
func (f *fleet) detachAll() {
	f.b.Helper()
	begin := time.Now()
	took := f.each("detached", 64, func(pod *netnslab.Endpoint) error {
		_, err := f.call(f.request(api.OpDel, pod))
		return err
	})
	all := time.Since(begin)
	f.row("detached, 64 at a time", "%v, median %v", round(all), round(quantile(took, 0.5)))
	hold(f.b, "detach/goal", all, goalDetach, 1)
	f.awaitForwarded(0)
	w := f.worker()
	f.row("after that: resident, descriptors, threads", "%.1f MB, %d, %d", mb(w.resident), w.fds, w.threads)
}

func (f *fleet) end() {
	f.b.Helper()
	if err := f.mldd.Process.Signal(unix.SIGTERM); err != nil {
		f.b.Fatal(err)
	}
	err := f.mldd.Wait()
	f.mldd = nil
	if err != nil {
		f.b.Errorf("mldd: %v", err)
	}
}
