package daemon_test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
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
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/seed-aaab8e3a/cni-mld/mld/kernel"
	"github.com/seed-aaab8e3a/cni-mld/netnslab"
	"github.com/seed-aaab8e3a/cni-mld/plugin/api"
	"github.com/seed-aaab8e3a/cni-mld/plugin/daemon"
)

// dups is a keeper in this process: it holds the descriptors of the daemon that is, and of those before.
type dups struct {
	mu     sync.Mutex
	last   uint64
	held   map[uint64]int
	former []int
}

func (d *dups) Keep(fd int) (uint64, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	copied, err := unix.FcntlInt(uintptr(fd), unix.F_DUPFD_CLOEXEC, 0)
	if err != nil {
		return 0, err
	}
	if d.held == nil {
		d.held = make(map[uint64]int)
	}
	d.last++
	d.held[d.last] = copied
	return d.last, nil
}

func (d *dups) Drop(id uint64) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	fd := d.held[id]
	delete(d.held, id)
	return unix.Close(fd)
}

// next makes what is held that of a former daemon, and settled drops that.
func (d *dups) next() {
	d.mu.Lock()
	defer d.mu.Unlock()
	for _, fd := range d.held {
		d.former = append(d.former, fd)
	}
	clear(d.held)
}

func (d *dups) count() (former, held int) {
	d.mu.Lock()
	defer d.mu.Unlock()
	return len(d.former), len(d.held)
}

func (d *dups) settled() {
	d.mu.Lock()
	defer d.mu.Unlock()
	for _, fd := range d.former {
		unix.Close(fd)
	}
	d.former = nil
}

// stateFile is where an attachment of a node is remembered.
func (r *rig) stateFile(network string, n *netnslab.Node) string {
	return api.StatePath(r.runDir, api.Attachment{Network: network, ContainerID: n.Name(), IfName: "eth0"})
}

// wantStateFiles wants as many files where the attachments are remembered.
func (r *rig) wantStateFiles(want int) {
	r.Helper()
	entries, err := os.ReadDir(filepath.Join(r.runDir, "attachments"))
	if err != nil || len(entries) != want {
		r.Errorf("%v, %v: %d state files, want %d", entries, err, len(entries), want)
	}
}

// changes are what is told as a change: what is left after a while must be Current State.
func changes(said []string) []string {
	return slices.DeleteFunc(slices.Clone(said), func(s string) bool {
		return strings.HasPrefix(s, "IS_") || strings.HasSuffix(s, " "+sentinel.String())
	})
}

// TestHandover: the next daemon goes on where the one before has ended, and on the wire nobody sees more of it than one
// Report for each address within the Query Response Interval.
func TestHandover(t *testing.T) {
	r := &rig{TB: t, lab: netnslab.New(t), runDir: newRunDir(t)}
	kept := &dups{}
	cfg := config(t, r.runDir)
	cfg.Keeper = kept
	r.serve(cfg)
	pod, peer := r.pod("c1", netnslab.Down)
	// When the kernel may speak for a moment, all that it has to repeat must be over: since the interface came up, everything.
	pod.Node().SetSysctl("net/ipv6/conf/eth0/mldv2_unsolicited_report_interval", "1")
	peer.SetUp()
	pod.SetUp()
	pod.LinkLocal()
	w := r.listen(peer)
	s := settings(t, `"groups": ["ff05::1:1", {"group": "ff05::1:2", "deliver": false}], "mldVersion": 2, "ready": {"wait": "report"}`)
	r.add("lab", pod.Node(), s)
	r.add("other", pod.Node(), settings(t, `"groups": ["ff05::1:1"], "mldVersion": 2`))
	pod.Join(third)
	w.wait("TO_EX " + third.String())
	for range 2 { // the repeats
		w.mark(pod)
	}
	netnslab.WaitFor(t, "end of the repeats", patience, func() (bool, string) {
		counts := map[string]int{}
		for _, what := range w.said() {
			counts[what]++
		}
		return counts["TO_EX "+first.String()] == 2 && counts["TO_EX "+second.String()] == 2 && counts["TO_EX "+third.String()] == 2, fmt.Sprint(counts)
	})
	before := len(w.said())

	for range 2 {
		if err := r.handover(); err != nil {
			t.Fatal(err)
		}
		kept.next()
		cfg.Resume, cfg.Settled = true, kept.settled
		r.serve(cfg)
		r.check("lab", pod.Node(), s) // which waits until it is back
		r.wantAttachments(2)
	}
	w.waitAll("IS_EX "+first.String(), "IS_EX "+second.String(), "IS_EX "+third.String())
	w.mark(pod)
	if got := changes(w.said()[before:]); len(got) > 0 {
		t.Errorf("told as news: %v", got)
	}
	if former, held := kept.count(); former > 0 || held != 2 {
		t.Errorf("%d are kept of daemons before, %d of this one", former, held)
	}

	r.del("other", pod.Node())
	r.wantStateFiles(1)
	r.del("lab", pod.Node())
	w.waitAll("TO_IN "+first.String(), "TO_IN "+second.String())
	r.wantStateFiles(0)
	if _, held := kept.count(); held > 0 {
		t.Errorf("%d are kept after DEL", held)
	}
	r.wantNoAgents()
}

func containsAll(list, want []string) bool {
	return !slices.ContainsFunc(want, func(s string) bool { return !slices.Contains(list, s) })
}

// TestStopAndStart: a stop leaves what is declared, so that the next daemon has news: at once, and not when a query asks.
func TestStopAndStart(t *testing.T) {
	r := serve(t)
	pod, peer := r.pod("c1")
	w := r.listen(peer)
	s := settings(t, `"groups": ["ff05::1:1", {"group": "ff05::1:2", "deliver": false}], "mldVersion": 2, "ready": {"wait": "report"}`)
	r.add("lab", pod.Node(), s)
	if err := r.end(); err != nil {
		t.Fatal(err)
	}
	w.waitAll("TO_IN "+first.String(), "TO_IN "+second.String())
	r.wantStateFiles(1)
	before := len(w.said())
	begin := time.Now()
	r.serve(config(t, r.runDir))
	r.check("lab", pod.Node(), s)
	if took := time.Since(begin); took > 5*time.Second {
		t.Errorf("reported after %v", took)
	}
	netnslab.WaitFor(t, "news", patience, func() (bool, string) {
		got := w.said()[before:]
		return containsAll(got, []string{"TO_EX " + first.String(), "TO_EX " + second.String()}), fmt.Sprint(got)
	})
}

// TestAdoption: what is found gone is forgotten, what cannot be read is left alone, and neither is in the way.
func TestAdoption(t *testing.T) {
	r := serve(t)
	s := settings(t, `"groups": ["ff05::1:1"]`)
	var pods []*netnslab.Endpoint
	for i := range 6 {
		pod, _ := r.pod(fmt.Sprint("c", i))
		pods = append(pods, pod)
		r.add("lab", pod.Node(), s)
	}
	if err := r.end(); err != nil {
		t.Fatal(err)
	}
	edit := func(i int, change func(keys map[string]any)) {
		t.Helper()
		editStateFile(t, r.stateFile("lab", pods[i].Node()), change)
	}
	// c0 is as it was.
	edit(1, func(k map[string]any) { k["netns"] = filepath.Join(r.runDir, "none") })
	edit(2, func(k map[string]any) { k["netns"] = pods[0].Node().Path() }) // the path is another's now
	edit(3, func(k map[string]any) { k["bootID"] = "of yesterday" })
	pods[4].Delete()
	edit(5, func(k map[string]any) { k["schema"] = 2 })
	if err := os.WriteFile(filepath.Join(r.runDir, "attachments", "lab@half@eth0.json.tmp"), []byte("{"), 0o600); err != nil {
		t.Fatal(err)
	}

	r.serve(config(t, r.runDir))
	r.check("lab", pods[0].Node(), s)
	for i, pod := range pods {
		if i != 0 {
			r.refused(r.request(api.OpCheck, "lab", pod.Node(), s), types.ErrUnknownContainer, "never seen")
		}
	}
	netnslab.WaitFor(t, "end of the adoption", patience, func() (bool, string) { // nothing has asked for c4 yet
		_, err := os.Stat(filepath.Join(r.runDir, "attachments", "lab@c4@eth0.json"))
		return errors.Is(err, fs.ErrNotExist), fmt.Sprint(err)
	})
	r.wantAttachments(1)
	r.wantStateFiles(2) // the one of the other schema too
	r.add("lab", pods[5].Node(), s)
	r.check("lab", pods[5].Node(), s)
	for i, pod := range pods {
		if i == 5 || i == 0 {
			r.del("lab", pod.Node())
		}
	}
	r.wantStateFiles(0)
	r.wantNoAgents()
}

// TestMuteOutlives: the mute of a daemon that was killed may still stand when the next one comes.
func TestMuteOutlives(t *testing.T) {
	r := serve(t)
	pod, _ := r.pod("c1")
	s := settings(t, `"groups": ["ff05::1:1"], "kernelReports": "mute"`)
	r.add("lab", pod.Node(), s)
	file, err := os.ReadFile(r.stateFile("lab", pod.Node()))
	if err != nil {
		t.Fatal(err)
	}
	second := &rig{TB: t, lab: r.lab, runDir: newRunDir(t)}
	if err := os.Mkdir(filepath.Join(second.runDir, "attachments"), 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(second.stateFile("lab", pod.Node()), file, 0o600); err != nil {
		t.Fatal(err)
	}
	second.serve(config(t, second.runDir))
	ctx, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
	defer cancel()
	client, err := api.Dial(second.runDir)
	if err != nil {
		t.Fatal(err)
	}
	defer client.Close()
	if answer, err := client.Call(ctx, second.request(api.OpCheck, "lab", pod.Node(), s)); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("%v, %v: answered although it is not back", answer, err)
	}
	if err := r.end(); err != nil {
		t.Error(err)
	}
	second.check("lab", pod.Node(), s)
}

// TestStateFile: ADD is not answered before its attachment is remembered, nor DEL while it is.
func TestStateFile(t *testing.T) {
	r := serve(t)
	pod, peer := r.pod("c1")
	w := r.listen(peer)
	s := settings(t, `"groups": [{"group": "ff05::1:2", "deliver": false}]`)
	r.add("lab", pod.Node(), s)
	if info, err := os.Stat(r.stateFile("lab", pod.Node())); err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("%v, %v", info, err)
	}
	r.del("lab", pod.Node())
	w.wait("Done " + second.String())
	r.wantStateFiles(0)

	dir := filepath.Dir(r.stateFile("lab", pod.Node()))
	if err := os.Remove(dir); err != nil {
		t.Fatal(err)
	}
	r.refused(r.request(api.OpAdd, "lab", pod.Node(), s), types.ErrInternal, "state", dir)
	w.wait("Done " + second.String())
	r.wantAttachments(0)
	r.del("lab", pod.Node())
}

// TestGC: what the runtime does not know any more goes, of its network alone, and whatever there is of it.
func TestGC(t *testing.T) {
	r := serve(t)
	s := settings(t, `"groups": ["ff05::1:1"]`)
	var pods []*netnslab.Endpoint
	var wires []*wire
	for i := range 4 {
		pod, peer := r.pod(fmt.Sprint("c", i))
		pods, wires = append(pods, pod), append(wires, r.listen(peer))
		r.add("lab", pod.Node(), s)
	}
	r.add("other", pods[1].Node(), s)
	stray := r.stateFile("lab", r.lab.Node("stray"))
	if err := os.WriteFile(stray, []byte("of another schema"), 0o600); err != nil {
		t.Fatal(err)
	}
	valid := []api.Attachment{{ContainerID: "c0", IfName: "eth0"}, {ContainerID: "c2", IfName: "eth1"}}
	r.must(&api.Request{Op: api.OpGC, Attachment: api.Attachment{Network: "lab"}, Valid: valid})
	r.wantAttachments(2)
	r.wantStateFiles(2)
	r.check("lab", pods[0].Node(), s)
	r.check("other", pods[1].Node(), s)
	for _, i := range []int{2, 3} {
		wires[i].wait("Done " + first.String())
	}
	r.must(&api.Request{Op: api.OpGC, Attachment: api.Attachment{Network: "none"}})
	r.wantAttachments(2)

	// One that cannot be forgotten does not hold up the others.
	if err := os.MkdirAll(filepath.Join(stray, "full"), 0o700); err != nil {
		t.Fatal(err)
	}
	answer, err := r.call(&api.Request{Op: api.OpGC, Attachment: api.Attachment{Network: "lab"}})
	if err != nil {
		t.Fatal(err)
	}
	wantError(t, answer.Error, types.ErrInternal, stray)
	r.wantAttachments(1)
}

// named gives a namespace a name, as a runtime does, and returns the path and what takes it away again.
func named(t *testing.T, n *netnslab.Node) (path string, remove func()) {
	t.Helper()
	path = filepath.Join(newRunDir(t), n.Name())
	if err := os.WriteFile(path, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := unix.Mount(n.Path(), path, "", unix.MS_BIND, ""); err != nil {
		t.Fatal(err)
	}
	remove = func() {
		t.Helper()
		if err := errors.Join(unix.Unmount(path, unix.MNT_DETACH), os.Remove(path)); err != nil {
			t.Error(err)
		}
	}
	t.Cleanup(func() {
		if _, err := os.Stat(path); !errors.Is(err, fs.ErrNotExist) {
			remove()
		}
	})
	return path, remove
}

// TestNamespaceEnds: when the name of its namespace is taken away, an attachment goes by itself, and says so. Another
// one, whose path leads somewhere else, stays.
func TestNamespaceEnds(t *testing.T) {
	r := serve(t)
	pod, peer := r.pod("c1")
	w := r.listen(peer)
	s := settings(t, `"groups": ["ff05::1:1", {"group": "ff05::1:2", "deliver": false}]`)
	path, remove := named(t, pod.Node())
	other, removeOther := named(t, r.lab.Node("c2"))
	request := r.request(api.OpAdd, "lab", pod.Node(), s)
	request.NetnsPath = path
	before := r.settled()
	r.must(request)
	elsewhere := r.request(api.OpAdd, "elsewhere", pod.Node(), s)
	elsewhere.NetnsPath = other
	r.must(elsewhere)

	removeOther()
	remove()
	netnslab.WaitFor(t, "end of the attachment", patience, func() (bool, string) {
		n := r.must(&api.Request{Op: api.OpStatus}).Status.Attachments
		return n == 1, fmt.Sprint(n)
	})
	r.wantStateFiles(1)
	r.check("elsewhere", pod.Node(), s)
	r.del("elsewhere", pod.Node())
	w.waitAll("Done "+first.String(), "Done "+second.String())
	r.wantNoAgents()
	r.wantDescriptors(before)

	// After a restart the name is watched as well.
	path, remove = named(t, pod.Node())
	request.NetnsPath = path
	r.must(request)
	if err := r.end(); err != nil {
		t.Error(err)
	}
	r.serve(config(t, r.runDir))
	r.check("lab", pod.Node(), s)
	remove()
	netnslab.WaitFor(t, "end of the attachment", patience, func() (bool, string) {
		n := r.must(&api.Request{Op: api.OpStatus}).Status.Attachments
		return n == 0, fmt.Sprint(n)
	})
	r.wantStateFiles(0)
}

// TestNamespaceRenamed: an attachment that is added again by another path to its namespace stands as long as that one.
func TestNamespaceRenamed(t *testing.T) {
	r := serve(t)
	pod, _ := r.pod("c1")
	s := settings(t, `"groups": ["ff05::1:1"]`)
	former, removeFormer := named(t, pod.Node())
	path, remove := named(t, pod.Node())
	for _, path := range []string{former, path, "of no use"} {
		request := r.request(api.OpAdd, "lab", pod.Node(), s)
		request.NetnsPath = path
		r.must(request)
	}
	removeFormer()
	if err := r.end(); err != nil {
		t.Error(err)
	}
	r.serve(config(t, r.runDir))
	r.check("lab", pod.Node(), s)
	remove()
	netnslab.WaitFor(t, "end of the attachment", patience, func() (bool, string) {
		n := r.must(&api.Request{Op: api.OpStatus}).Status.Attachments
		return n == 0, fmt.Sprint(n)
	})
}

// TestTakenOverInPart: what could not be joined after a restart is joined when the attachment is added again, although
// its settings are the same.
func TestTakenOverInPart(t *testing.T) {
	r := serve(t)
	pod, _ := r.pod("c1")
	s := settings(t, `"groups": ["ff05::1:1"]`)
	r.add("lab", pod.Node(), s)
	if err := r.end(); err != nil {
		t.Fatal(err)
	}
	setMTU := func(n int) {
		t.Helper()
		if err := pod.Node().Netns().Do(func() error {
			l, err := netlink.LinkByIndex(pod.Index())
			return errors.Join(err, netlink.LinkSetMTU(l, n))
		}); err != nil {
			t.Fatal(err)
		}
	}
	setMTU(1200) // too small for IPv6
	r.serve(config(t, r.runDir))
	r.refused(r.request(api.OpCheck, "lab", pod.Node(), s), api.CodeNotReady)
	setMTU(1500)
	pod.LinkLocal()
	netnslab.WaitFor(t, "ADD with IPv6", patience, func() (bool, string) { // until the listener has seen it
		answer, err := r.call(r.request(api.OpAdd, "lab", pod.Node(), s))
		return err == nil && answer.Error == nil, fmt.Sprint(answer, err)
	})
	r.check("lab", pod.Node(), s)
}

// reload is a handover to the next daemon of a keeper, which is settled when it returns.
func (r *rig) reload(cfg daemon.Config, kept *dups, prepare ...func(*daemon.Daemon)) {
	r.Helper()
	if err := r.handover(); err != nil {
		r.Fatal(err)
	}
	kept.next()
	settled := make(chan struct{})
	cfg.Keeper, cfg.Resume, cfg.Settled = kept, true, func() { kept.settled(); close(settled) }
	r.serve(cfg, prepare...)
	select {
	case <-settled:
	case <-time.After(patience):
		r.Fatal("the next daemon is not settled")
	}
	if former, _ := kept.count(); former > 0 {
		r.Errorf("%d are kept of daemons before", former)
	}
}

// wantEnded wants an attachment to stand without a listener, for a reason that is told.
func (r *rig) wantEnded(pod *netnslab.Endpoint, s *api.Settings, reason string) {
	r.Helper()
	list := r.all(&api.Request{Op: api.OpList}) // once it is back
	r.wantAttachments(1)
	if len(list) != 1 || list[0].Attachment.State != api.StateEnded || !strings.Contains(list[0].Attachment.Reason, reason) {
		r.Errorf("listed as %+v, want it ended, because of %q", list, reason)
	}
	r.refused(r.request(api.OpCheck, "lab", pod.Node(), s), api.CodeNotReady, "has ended", reason)
}

// TestGivenBackAdopted: the next daemon, too, lets the kernel hold what is declared on an interface on which programs have
// joined too much, and speaks for it again as soon as a daemon finds that they have not.
func TestGivenBackAdopted(t *testing.T) {
	r := &rig{TB: t, lab: netnslab.New(t), runDir: newRunDir(t)}
	kept := &dups{}
	cfg := config(t, r.runDir)
	cfg.Keeper, cfg.MaxJoined = kept, 20
	r.serve(cfg)
	pod, peer := r.pod("c1")
	w := r.listen(peer)
	s := settings(t, `"mldVersion": 2, "groups": ["%v", {"group": "%v", "deliver": false}], "ready": {"wait": "report"}`, first, second)
	r.add("lab", pod.Node(), s)
	var joined []*netnslab.Membership
	for i := range cfg.MaxJoined {
		joined = append(joined, pod.Join(netip.MustParseAddr(fmt.Sprintf("ff05::99:%x", i))))
	}
	netnslab.WaitFor(t, "end of the listener", patience, func() (bool, string) {
		a := r.all(&api.Request{Op: api.OpList})[0].Attachment
		return a.State == api.StateEnded, a.State
	})
	for _, how := range []string{"reload", "restart"} {
		before := len(w.said())
		if how == "reload" {
			r.reload(cfg, kept)
		} else {
			if err := r.end(); err != nil {
				t.Fatal(err)
			}
			r.serve(cfg)
		}
		r.wantEnded(pod, s, "--max-joined")
		if f := filterOf(t, pod, first); f != "exclude []" {
			t.Errorf("%s: of the declared group the kernel has %q", how, f)
		}
		last := pod.Join(sentinel) // the kernel says so
		netnslab.WaitFor(t, "the kernel's report", patience, func() (bool, string) {
			said := w.said()[before:]
			return slices.Contains(said, "TO_EX "+sentinel.String()), fmt.Sprint(said)
		})
		last.Close()
		w.wait("TO_IN " + sentinel.String())
		if said := w.said()[before:]; how == "reload" && slices.Contains(said, "TO_IN "+first.String()) {
			t.Errorf("left over a reload: %v", said)
		}
	}
	for _, m := range joined {
		m.Close()
	}
	r.reload(cfg, kept)
	r.check("lab", pod.Node(), s)
	r.del("lab", pod.Node())
	w.waitAll("TO_IN "+first.String(), "TO_IN "+second.String())
	r.wantStateFiles(0)
	if _, held := kept.count(); held > 0 {
		t.Errorf("%d are kept after DEL", held)
	}
	r.wantNoAgents()
}

// TestRestoredBesideEnded: what an attachment without a listener has declared is joined again, too, when IPv6 begins anew on
// an interface that has a listener for another network.
func TestRestoredBesideEnded(t *testing.T) {
	r := &rig{TB: t, lab: netnslab.New(t), runDir: newRunDir(t)}
	cfg := config(t, r.runDir)
	cfg.MaxJoined = 20
	r.serve(cfg)
	pod, _ := r.pod("c1")
	r.add("lab", pod.Node(), settings(t, `"groups": ["%v"]`, first))
	var joined []*netnslab.Membership
	for i := range cfg.MaxJoined {
		joined = append(joined, pod.Join(netip.MustParseAddr(fmt.Sprintf("ff05::99:%x", i))))
	}
	netnslab.WaitFor(t, "end of the listener", patience, func() (bool, string) {
		a := r.all(&api.Request{Op: api.OpList})[0].Attachment
		return a.State == api.StateEnded, a.State
	})
	for _, m := range joined {
		m.Close()
	}
	other := settings(t, `"groups": ["%v"]`, second)
	netnslab.WaitFor(t, "ADD", patience, func() (bool, string) { // the former listener may be on its way out
		answer, err := r.call(r.request(api.OpAdd, "other", pod.Node(), other))
		return err == nil && answer.Error == nil, fmt.Sprint(answer, err)
	})
	filters := func() string { return fmt.Sprint(filterOf(t, pod, first), ", ", filterOf(t, pod, second)) }
	for range 8 { // whichever comes first
		for _, mtu := range []string{"1000", "1500"} {
			if out, err := pod.Node().Command(t.Context(), "ip", "link", "set", "dev", "eth0", "mtu", mtu).CombinedOutput(); err != nil {
				t.Fatalf("%v: %s", err, out)
			}
		}
		netnslab.WaitFor(t, "both groups to be joined again", patience, func() (bool, string) {
			f := filters()
			return f == "exclude [], exclude []", f
		})
	}
}

// TestMuteRefused: where the next daemon cannot start a listener as long as it tries, the kernel holds what is declared
// until DEL, or until a daemon can.
func TestMuteRefused(t *testing.T) {
	r := &rig{TB: t, lab: netnslab.New(t), runDir: newRunDir(t)}
	kept := &dups{}
	cfg := config(t, r.runDir)
	cfg.Keeper = kept
	r.serve(cfg)
	pod, peer := r.pod("c1")
	w := r.listen(peer)
	s := settings(t, `"mldVersion": 2, "groups": ["%v"], "kernelReports": "mute"`, first)
	before := r.settled()
	r.add("lab", pod.Node(), s)
	if err := r.handover(); err != nil {
		t.Fatal(err)
	}
	mute, err := kernel.NewMute(pod.Node().Netns(), pod.Index(), kernel.MuteOptions{})
	if err != nil {
		t.Fatal(err)
	}
	defer mute.Close()
	soon := func(d *daemon.Daemon) { d.AdoptWithin(100 * time.Millisecond) }
	r.reload(cfg, kept, soon)
	r.wantEnded(pod, s, "mldd")
	if f := filterOf(t, pod, first); f != "exclude []" {
		t.Errorf("of the declared group the kernel has %q", f)
	}
	r.del("lab", pod.Node())
	if f := filterOf(t, pod, first); f != "" {
		t.Errorf("after DEL the kernel has %q of the declared group", f)
	}
	r.wantStateFiles(0)

	if err := mute.Close(); err != nil {
		t.Fatal(err)
	}
	r.add("lab", pod.Node(), s)
	if err := r.handover(); err != nil {
		t.Fatal(err)
	}
	if mute, err = kernel.NewMute(pod.Node().Netns(), pod.Index(), kernel.MuteOptions{}); err != nil {
		t.Fatal(err)
	}
	defer mute.Close()
	r.reload(cfg, kept, soon)
	r.wantEnded(pod, s, "mldd")
	if err := mute.Close(); err != nil {
		t.Fatal(err)
	}
	r.add("lab", pod.Node(), s) // anew
	r.check("lab", pod.Node(), s)
	r.del("lab", pod.Node())
	w.wait("TO_IN " + first.String())
	r.wantNoAgents()
	r.wantDescriptors(before)
}

// TestAdoptedLater: what fails for a moment when the next daemon comes is tried again, and what the keeper holds of the
// daemon before stays until then.
func TestAdoptedLater(t *testing.T) {
	for what, fail := range map[string]func(t *testing.T, path string) (mend func()){
		"path": func(t *testing.T, path string) func() {
			if err := errors.Join(os.Rename(path, path+".away"), os.Symlink(path, path)); err != nil {
				t.Fatal(err)
			}
			return func() {
				if err := os.Rename(path+".away", path); err != nil {
					t.Error(err)
				}
			}
		},
		"descriptors": func(t *testing.T, _ string) func() { return leaveDescriptors(t, 2) },
	} {
		t.Run(what, func(t *testing.T) {
			r := &rig{TB: t, lab: netnslab.New(t), runDir: newRunDir(t)}
			kept := &dups{}
			cfg := config(t, r.runDir)
			cfg.Keeper = kept
			r.serve(cfg)
			pod, peer := r.pod("c1")
			w := r.listen(peer)
			s := settings(t, `"mldVersion": 2, "groups": ["%v"], "ready": {"wait": "report"}`, first)
			dir := newRunDir(t)
			path := filepath.Join(dir, "c1")
			if err := os.Symlink(pod.Node().Path(), path); err != nil {
				t.Fatal(err)
			}
			request := r.request(api.OpAdd, "lab", pod.Node(), s)
			request.NetnsPath = path
			r.must(request)
			before := len(w.said())

			if err := r.handover(); err != nil {
				t.Fatal(err)
			}
			log := new(lockedBuffer)
			next := cfg
			next.Logger = slog.New(slog.NewTextHandler(io.MultiWriter(t.Output(), log), nil))
			next.Settled, next.Resume = kept.settled, true
			kept.next()
			var mend func()
			r.serve(next, func(*daemon.Daemon) { mend = fail(t, path) })
			netnslab.WaitFor(t, "failure", patience, func() (bool, string) {
				return strings.Contains(log.String(), "trying again"), log.String()
			})
			if former, _ := kept.count(); former != 1 {
				t.Errorf("%d are kept of the daemon before, want 1", former)
			}
			mend()
			r.check("lab", pod.Node(), s)
			netnslab.WaitFor(t, "the daemon to be settled", patience, func() (bool, string) {
				former, held := kept.count()
				return former == 0 && held == 1, fmt.Sprint(former, held)
			})
			w.mark(pod)
			if got := changes(w.said()[before:]); slices.Contains(got, "TO_IN "+first.String()) {
				t.Errorf("told as news: %v", got)
			}
			r.del("lab", pod.Node())
		})
	}
}

// TestEndedAgreesToo: another network has to agree with an attachment whose listener has ended, so that the next daemon finds
// one listener for both.
func TestEndedAgreesToo(t *testing.T) {
	r := &rig{TB: t, lab: netnslab.New(t), runDir: newRunDir(t)}
	kept := &dups{}
	cfg := config(t, r.runDir)
	cfg.Keeper, cfg.MaxJoined = kept, 20
	r.serve(cfg)
	pod, _ := r.pod("c1")
	ended := settings(t, `"groups": ["%v"]`, first)
	r.add("ended", pod.Node(), ended)
	mend := r.tooMuch(pod)
	r.waitEnded()
	mend()
	r.refused(r.request(api.OpAdd, "other", pod.Node(), settings(t, `"groups": ["%v"], "robustness": 3`, second)),
		types.ErrInvalidNetworkConfig, "robustness: 3 here, 2 there", "eth0")
	other := settings(t, `"groups": ["%v"]`, second)
	r.add("other", pod.Node(), other)
	r.check("other", pod.Node(), other)
	r.reload(cfg, kept)
	r.check("ended", pod.Node(), ended)
	r.check("other", pod.Node(), other)
	for _, network := range []string{"ended", "other"} {
		r.del(network, pod.Node())
	}
	r.wantNoAgents()
}

// TestContradictingStateFile: where state files of one interface do not agree, what is not taken over stands in nobody's way:
// the others leave what they have declared.
func TestContradictingStateFile(t *testing.T) {
	r := &rig{TB: t, lab: netnslab.New(t), runDir: newRunDir(t)}
	kept := &dups{}
	cfg := config(t, r.runDir)
	cfg.Keeper = kept
	r.serve(cfg)
	pod, peer := r.pod("c1")
	w := r.listen(peer)
	for network, group := range map[string]netip.Addr{"a": first, "b": second, "c": third} {
		r.add(network, pod.Node(), settings(t, `"mldVersion": 2, "groups": [{"group": "%v", "deliver": false}]`, group))
	}
	if err := r.handover(); err != nil {
		t.Fatal(err)
	}
	for n, network := range []string{"a", "b", "c"} {
		editStateFile(t, r.stateFile(network, pod.Node()), func(keys map[string]any) {
			keys["added"] = time.Unix(int64(n), 0).Format(time.RFC3339)
			if network == "b" {
				keys["settings"].(map[string]any)["robustness"] = 3
			}
		})
	}
	kept.next()
	cfg.Resume, cfg.Settled = true, kept.settled
	r.serve(cfg)
	r.refused(r.request(api.OpCheck, "b", pod.Node(), settings(t, ``)), types.ErrUnknownContainer)
	r.del("c", pod.Node())
	w.wait("TO_IN " + third.String())
	r.del("a", pod.Node())
	w.wait("TO_IN " + first.String())
}

// TestNotTriedAgain: what will not be another time is not tried again when a daemon comes back, and nobody waits for it.
func TestNotTriedAgain(t *testing.T) {
	r := serve(t)
	pod, _ := r.pod("c1")
	s := settings(t, `"groups": ["%v"]`, first)
	r.add("lab", pod.Node(), s)
	if err := r.end(); err != nil {
		t.Fatal(err)
	}
	editStateFile(t, r.stateFile("lab", pod.Node()), func(keys map[string]any) { keys["ifindex"] = 1 }) // lo
	begin := time.Now()
	r.serve(config(t, r.runDir))
	a := r.all(&api.Request{Op: api.OpList})[0].Attachment // once it is back
	if a.State != api.StateEnded || !strings.Contains(a.Reason, "not an Ethernet-like interface") {
		t.Errorf("%+v", a)
	}
	if took := time.Since(begin); took > 10*time.Second {
		t.Errorf("it was tried for %v", took)
	}
}

// editStateFile changes what a state file says.
func editStateFile(t *testing.T, path string, change func(keys map[string]any)) {
	t.Helper()
	data, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	var keys map[string]any
	d := json.NewDecoder(strings.NewReader(string(data)))
	d.UseNumber()
	if err := d.Decode(&keys); err != nil {
		t.Fatal(err)
	}
	change(keys)
	if data, err = json.Marshal(keys); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, data, 0o600); err != nil {
		t.Fatal(err)
	}
}

// leaveDescriptors lowers the limit of open files, so that n more can be opened, until mend is called.
func leaveDescriptors(t *testing.T, n int) (mend func()) {
	t.Helper()
	var before unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_NOFILE, &before); err != nil {
		t.Fatal(err)
	}
	limit := unix.Rlimit{Max: before.Max}
	for range n {
		fd, err := unix.FcntlInt(0, unix.F_DUPFD_CLOEXEC, 0) // gets the lowest number that is free
		if err != nil {
			t.Fatal(err)
		}
		defer unix.Close(fd)
		limit.Cur = max(limit.Cur, uint64(fd)+1)
	}
	if err := unix.Setrlimit(unix.RLIMIT_NOFILE, &limit); err != nil {
		t.Fatal(err)
	}
	mend = sync.OnceFunc(func() {
		if err := unix.Setrlimit(unix.RLIMIT_NOFILE, &before); err != nil {
			t.Error(err)
		}
	})
	t.Cleanup(mend)
	return mend
}

// lockedBuffer is a log that is read while it is written.
type lockedBuffer struct {
	mu   sync.Mutex
	text strings.Builder
}

func (b *lockedBuffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.text.Write(p)
}

func (b *lockedBuffer) String() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.text.String()
}
