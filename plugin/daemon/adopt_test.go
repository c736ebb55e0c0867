package daemon_test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/containernetworking/cni/pkg/types"
	"golang.org/x/sys/unix"

	"github.com/seed-aaab8e3a/cni-mld/netnslab"
	"github.com/seed-aaab8e3a/cni-mld/plugin/api"
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
		path := r.stateFile("lab", pods[i].Node())
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
	client, err := api.Dial(ctx, second.runDir)
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
