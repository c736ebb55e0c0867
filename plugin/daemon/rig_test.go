package daemon_test

import (
	"context"
	"encoding/json"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/containernetworking/cni/pkg/types"
	"golang.org/x/sys/unix"

	"github.com/seed-aaab8e3a/cni-mld/mld"
	"github.com/seed-aaab8e3a/cni-mld/netnslab"
	"github.com/seed-aaab8e3a/cni-mld/plugin/api"
	"github.com/seed-aaab8e3a/cni-mld/plugin/daemon"
)

// patience is what nothing in these tests takes on any machine.
const patience = 30 * time.Second

var (
	first    = netip.MustParseAddr("ff05::1:1")
	second   = netip.MustParseAddr("ff05::1:2")
	third    = netip.MustParseAddr("ff05::1:3")
	specific = netip.MustParseAddr("ff3e::8000:1") // SSM
	router   = netip.MustParseAddr("fe80::99")
)

// A rig is a daemon in this process, with a lab.
type rig struct {
	testing.TB
	lab    *netnslab.Lab
	runDir string
	daemon *daemon.Daemon
	served chan error // what Serve returns
	stop   context.CancelCauseFunc
}

// newRunDir makes a directory whose path is short enough for a socket.
func newRunDir(t testing.TB) string {
	t.Helper()
	dir, err := os.MkdirTemp("", "mldd")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	return dir
}

func config(t testing.TB, runDir string) daemon.Config {
	return daemon.Config{RunDir: runDir, Version: "test", Logger: slog.New(slog.NewTextHandler(t.Output(), nil))}
}

// listenAt opens the socket of a run directory for a daemon.
func listenAt(t testing.TB, runDir string) *net.UnixListener {
	t.Helper()
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: api.SocketPath(runDir), Net: "unix"})
	if err != nil {
		t.Fatal(err)
	}
	return l
}

// serve starts a daemon, which ends with the test at the latest.
func serve(t testing.TB) *rig {
	r := &rig{TB: t, lab: netnslab.New(t), runDir: newRunDir(t)}
	r.serve(config(t, r.runDir))
	return r
}

// serve starts a daemon, which is prepared first as asked.
func (r *rig) serve(cfg daemon.Config, prepare ...func(*daemon.Daemon)) {
	r.Helper()
	cfg.Listener = listenAt(r, r.runDir)
	d, err := daemon.New(cfg)
	if err != nil {
		r.Fatal(err)
	}
	for _, p := range prepare {
		p(d)
	}
	ctx, stop := context.WithCancelCause(context.Background())
	r.daemon, r.stop, r.served = d, stop, make(chan error, 1)
	go func() { r.served <- d.Serve(ctx) }()
	r.Cleanup(func() { r.end() })
}

// in is the rig for a subtest.
func (r *rig) in(t *testing.T) *rig {
	sub := *r
	sub.TB = t
	return &sub
}

// end stops the daemon and returns what Serve has returned.
func (r *rig) end() error {
	r.Helper()
	r.stop(nil)
	return r.ended()
}

// handover ends the daemon as a reload does.
func (r *rig) handover() error {
	r.Helper()
	r.stop(daemon.ErrHandover)
	return r.ended()
}

func (r *rig) ended() error {
	r.Helper()
	select {
	case err := <-r.served:
		r.served <- err
		return err
	case <-time.After(patience):
		r.Fatal("the daemon does not end")
		return nil
	}
}

func soon(t testing.TB) context.Context {
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	t.Cleanup(cancel)
	return ctx
}

// settings parses members of a network configuration. Nobody waits for readiness, and MLDv1 is spoken, unless they say
// so.
func settings(t testing.TB, format string, args ...any) *api.Settings {
	t.Helper()
	var keys map[string]json.RawMessage
	if err := json.Unmarshal(fmt.Appendf(nil, "{"+format+"}", args...), &keys); err != nil {
		t.Fatal(err)
	}
	if keys["ready"] == nil {
		keys["ready"] = json.RawMessage(`{"wait": "none"}`)
	}
	if keys["mldVersion"] == nil {
		keys["mldVersion"] = json.RawMessage("1")
	}
	s, err := api.ParseSettings(keys)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// request makes a request for a node's eth0 in a network.
func (r *rig) request(op, network string, n *netnslab.Node, s *api.Settings) *api.Request {
	return &api.Request{
		Op: op, Attachment: api.Attachment{Network: network, ContainerID: n.Name(), IfName: "eth0"},
		Settings: s, NetnsPath: n.Path(), Netns: n.Netns().File(), HostNetns: r.lab.Host().Netns().File(),
	}
}

// call sends a request over a connection of its own. Goroutines may use it.
func (r *rig) call(request *api.Request) (*api.Answer, error) {
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	client, err := api.Dial(r.runDir)
	if err != nil {
		return nil, err
	}
	defer client.Close()
	return client.Call(ctx, request)
}

func (r *rig) must(request *api.Request) *api.Answer {
	r.Helper()
	answer, err := r.call(request)
	if err == nil && answer.Error != nil {
		err = answer.Error
	}
	if err != nil {
		r.Fatalf("%s %v: %v", request.Op, request.Attachment, err)
	}
	return answer
}

// refused wants a request to be refused with a code and a text that names some things, and no descriptor left open.
func (r *rig) refused(request *api.Request, code uint, names ...string) {
	r.Helper()
	r.all(&api.Request{Op: api.OpList}) // which waits for what stood before: its descriptors are not the request's
	before := r.settled()
	answer, err := r.call(request)
	if err != nil {
		r.Fatal(err)
	}
	wantError(r, answer.Error, code, names...)
	r.wantDescriptors(before)
}

func wantError(t testing.TB, err *types.Error, code uint, names ...string) {
	t.Helper()
	if err == nil || err.Code != code {
		t.Errorf("%v, want an error of code %d", err, code)
		return
	}
	for _, name := range names {
		if !strings.Contains(err.Error(), name) {
			t.Errorf("%q does not say %q", err, name)
		}
	}
}

func (r *rig) add(network string, n *netnslab.Node, s *api.Settings) *api.Answer {
	r.Helper()
	return r.must(r.request(api.OpAdd, network, n, s))
}

func (r *rig) check(network string, n *netnslab.Node, s *api.Settings) {
	r.Helper()
	r.must(r.request(api.OpCheck, network, n, s))
}

func (r *rig) del(network string, n *netnslab.Node) *api.Answer {
	r.Helper()
	return r.must(&api.Request{Op: api.OpDel, Attachment: api.Attachment{Network: network, ContainerID: n.Name(), IfName: "eth0"}})
}

func (r *rig) wantAttachments(want int) {
	r.Helper()
	if n := r.must(&api.Request{Op: api.OpStatus}).Status.Attachments; n != want {
		r.Errorf("%d attachments, want %d", n, want)
	}
}

// descriptors lists what is open in this process.
func descriptors() []string {
	entries, _ := os.ReadDir("/proc/self/fd")
	var list []string
	for _, e := range entries {
		if target, err := os.Readlink("/proc/self/fd/" + e.Name()); err == nil && !strings.HasPrefix(target, "/proc/") {
			list = append(list, e.Name()+" "+target)
		}
	}
	return list
}

// settled counts the descriptors when none is on its way out: the daemon notices a moment later that a client has
// gone.
func (r *rig) settled() int {
	r.Helper()
	n := -1
	netnslab.WaitFor(r, "an end of closing", patience, func() (bool, string) {
		now := len(descriptors())
		same := now == n
		n = now
		return same, fmt.Sprint(now)
	})
	return n
}

// wantDescriptors waits until no more descriptors are open than there were; one that was about to go may have been
// counted.
func (r *rig) wantDescriptors(want int) {
	r.Helper()
	netnslab.WaitFor(r, fmt.Sprintf("return to %d descriptors", want), patience, func() (bool, string) {
		list := descriptors()
		return len(list) <= want, fmt.Sprintf("%d: %q", len(list), list)
	})
}

// wantNoAgents waits until no agent is left: each has a netfilter socket, its mute.
func (r *rig) wantNoAgents() {
	r.Helper()
	netnslab.WaitFor(r, "end of all agents", patience, func() (bool, string) {
		list := slices.DeleteFunc(descriptors(), func(d string) bool {
			number, target, _ := strings.Cut(d, " ")
			fd, err := strconv.Atoi(number)
			if err != nil || !strings.HasPrefix(target, "socket:") {
				return true
			}
			protocol, err := unix.GetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_PROTOCOL)
			family, _ := unix.GetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_DOMAIN)
			muted := family == unix.AF_NETLINK && protocol == unix.NETLINK_NETFILTER
			return err != nil || !muted
		})
		return len(list) == 0, fmt.Sprint(list)
	})
}

// pod makes a container with an interface, and a peer that sees what comes from it.
func (r *rig) pod(name string, options ...netnslab.LinkOption) (pod, peer *netnslab.Endpoint) {
	r.Helper()
	peer, pod = r.lab.Veth(r.lab.Node(name+"-peer"), "eth0", r.lab.Node(name), "eth0", options...)
	if !slices.Contains(options, netnslab.Down) {
		pod.LinkLocal()
	}
	return pod, peer
}

// A wire is what a peer sees of its pod.
type wire struct {
	*rig
	peer *netnslab.Endpoint
	c    *netnslab.Capture
}

func (r *rig) listen(peer *netnslab.Endpoint) *wire {
	return &wire{r, peer, peer.Capture(netnslab.MLD)}
}

// said lists what the pod has said, such as "Done ff05::1:1" or "ALLOW ff05::1:1 [fd00::1]", without what concerns other
// addresses.
func (w *wire) said() []string {
	list := []string{}
	for _, f := range w.c.Frames() {
		list = append(list, texts(f)...)
	}
	return list
}

func texts(f netnslab.Frame) (list []string) {
	if f.Outgoing {
		return nil
	}
	p, err := mld.Parse(f.IPv6(), 0)
	if err != nil {
		return nil
	}
	add := func(kind string, addr netip.Addr) {
		if slices.Contains([]netip.Addr{first, second, third, specific, sentinel}, addr) {
			list = append(list, kind+" "+addr.String())
		}
	}
	if m := p.Message; m.Type != mld.TypeReportV2 {
		add(m.Type.String(), m.MulticastAddress)
	}
	for r := range p.Message.Records.All() {
		before := len(list)
		add(r.Type.String(), r.MulticastAddress)
		if len(list) > before && r.Sources.Len() > 0 {
			list[before] += fmt.Sprint(" ", slices.Collect(r.Sources.All()))
		}
	}
	return list
}

// sentinel is an address that an application joins so that something is said after what may have been said before.
var sentinel = netip.MustParseAddr("ff05::ffff")

// since tells what the pod says while something is done, until the daemon reports what an application joins.
func (w *wire) since(pod *netnslab.Endpoint, do func()) []string {
	w.Helper()
	before := len(w.said())
	do()
	w.mark(pod)
	list := w.said()[before:]
	return slices.DeleteFunc(list, func(s string) bool { return strings.HasSuffix(s, " "+sentinel.String()) })
}

// mark lets an application join and leave the sentinel.
func (w *wire) mark(pod *netnslab.Endpoint) {
	w.Helper()
	m := pod.Join(sentinel)
	w.wait("Report "+sentinel.String(), "TO_EX "+sentinel.String())
	m.Close()
	w.wait("Done "+sentinel.String(), "TO_IN "+sentinel.String())
}

// wait waits for the next message that is one of the given.
func (w *wire) wait(what ...string) {
	w.Helper()
	w.c.Wait(patience, strings.Join(what, " or "), func(f netnslab.Frame) bool {
		return slices.ContainsFunc(what, func(text string) bool { return slices.Contains(texts(f), text) })
	})
}

// waitAll waits for several messages in any order.
func (w *wire) waitAll(what ...string) {
	w.Helper()
	netnslab.WaitFor(w, strings.Join(what, " and "), patience, func() (bool, string) {
		said := w.said()
		return !slices.ContainsFunc(what, func(text string) bool { return !slices.Contains(said, text) }), fmt.Sprint(said)
	})
}

// ask sends a General Query.
func (w *wire) ask() {
	w.peer.SendPacket(mld.AppendQuery(nil, router, mld.AllNodes, mld.Query{Version: mld.Version1, MaxResponseCode: 10}))
}
