package daemon_test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"

	"github.com/seed-aaab8e3a/cni-mld/netnslab"
	"github.com/seed-aaab8e3a/cni-mld/plugin/api"
	"github.com/seed-aaab8e3a/cni-mld/plugin/daemon"
)

// TestNewFails: a daemon that cannot be leaves nothing open.
func TestNewFails(t *testing.T) {
	open, missing, blocked := newRunDir(t), filepath.Join(newRunDir(t), "none"), newRunDir(t)
	if err := os.Chmod(open, 0o777); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(blocked, "attachments"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	before := len(descriptors())
	for dir, want := range map[string]string{open: "lets others write", missing: "create it", blocked: "not a directory"} {
		cfg := config(t, dir)
		cfg.Listener = listenAt(t, newRunDir(t))
		if _, err := daemon.New(cfg); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%v, want %q", err, want)
		}
	}
	if after := len(descriptors()); after != before {
		t.Errorf("%d descriptors before and %d after", before, after)
	}
}

// TestRunDirGone: without its directory, or the socket in it, nobody can reach the daemon, so it ends.
func TestRunDirGone(t *testing.T) {
	for what, remove := range map[string]func(dir string) error{
		"removed":        os.RemoveAll,
		"moved":          func(dir string) error { return os.Rename(dir, dir+".moved") },
		"socket removed": func(dir string) error { return os.Remove(api.SocketPath(dir)) },
		"socket of another": func(dir string) error { // as a service manager takes its place
			if err := os.Remove(api.SocketPath(dir)); err != nil {
				return err
			}
			other, err := net.Listen("unix", api.SocketPath(dir))
			if err == nil {
				t.Cleanup(func() { other.Close() })
			}
			return err
		},
	} {
		t.Run(what, func(t *testing.T) {
			r := serve(t)
			pod, peer := r.pod("c1")
			r.add("lab", pod.Node(), settings(t, `"groups": [{"group": "ff05::1:1", "deliver": false}]`))
			w := r.listen(peer)
			if err := remove(r.runDir); err != nil {
				t.Fatal(err)
			}
			t.Cleanup(func() { os.RemoveAll(r.runDir + ".moved") })
			if err := r.ended(); err != nil {
				t.Error(err)
			}
			w.wait("Done " + first.String())
		})
	}
}

// TestIdleExit: a daemon that nobody needs any more ends by itself.
func TestIdleExit(t *testing.T) {
	r := &rig{TB: t, lab: netnslab.New(t), runDir: newRunDir(t)}
	cfg := config(t, r.runDir)
	cfg.IdleExit, cfg.SelfStarted = time.Second, true
	pod, _ := r.pod("c1")
	r.serve(cfg)
	r.add("lab", pod.Node(), settings(t, `"groups": ["ff05::1:1"]`))
	if !r.must(&api.Request{Op: api.OpStatus}).Status.SelfStarted {
		t.Error("the status does not say who has started the daemon")
	}
	r.del("lab", pod.Node())
	if err := r.ended(); err != nil {
		t.Error(err)
	}
}

// An atStopping calls what a test gives it when a daemon has decided to stop and still serves.
type atStopping struct {
	slog.Handler
	call func()
}

func (h atStopping) Enabled(context.Context, slog.Level) bool { return true }

func (h atStopping) Handle(_ context.Context, r slog.Record) error {
	if r.Message == "stopping" {
		h.call()
	}
	return nil
}

// TestAddAtIdleExit: an ADD that comes too late is not let go before who tries again finds the next daemon.
func TestAddAtIdleExit(t *testing.T) {
	r := &rig{TB: t, lab: netnslab.New(t), runDir: newRunDir(t)}
	pod, _ := r.pod("c1")
	late, s := make(chan [2]error, 1), settings(t, "")
	again := func() error {
		_, err := r.call(&api.Request{Op: api.OpStatus})
		return err
	}
	cfg := config(t, r.runDir)
	cfg.IdleExit = time.Millisecond
	cfg.Logger = slog.New(atStopping{slog.DiscardHandler, func() {
		go func() {
			_, err := r.call(r.request(api.OpAdd, "lab", pod.Node(), s))
			late <- [2]error{err, again()}
		}()
		for range 100 { // answers later the ADD would have had its own
			if err := again(); err != nil {
				t.Error(err)
			}
		}
	}})
	r.serve(cfg)
	if err := r.ended(); err != nil {
		t.Error(err)
	}
	for i, err := range <-late {
		if !api.NotRunning(err) {
			t.Errorf("%s: %v, want that mldd does not run", []string{"ADD", "then"}[i], err)
		}
	}
}

// TestStop is what SIGTERM does: declared groups are left, each by whoever speaks for it, what applications want
// stays, and the kernel speaks again. A client that says nothing does not hold it up.
func TestStop(t *testing.T) {
	r := serve(t)
	pod, peer := r.pod("c1")
	shared, _ := r.pod("c2")
	r.add("lab", pod.Node(), settings(t, `"groups": ["ff05::1:1", {"group": "ff05::1:2", "deliver": false}, {"group": "ff05::1:3", "deliver": false}]`))
	r.add("lab", shared.Node(), settings(t, `"groups": ["ff05::1:1"], "kernelReports": "keep"`))
	pod.Join(third) // declared, and an application's as well
	silent, err := net.Dial("unix", api.SocketPath(r.runDir))
	if err != nil {
		t.Fatal(err)
	}
	defer silent.Close()
	w := r.listen(peer)
	w.mark(pod)
	begin := time.Now()
	before := len(w.said())
	if err := r.end(); err != nil {
		t.Error(err)
	}
	if took := time.Since(begin); took > 5*time.Second {
		t.Errorf("stopped after %v", took)
	}
	w.waitAll("Done "+second.String(), "Done "+first.String())
	w.ask() // the kernel answers, for what is still wanted
	w.waitAll("Report " + third.String())
	got := w.said()[before:]
	// What is delivered is left while the kernel is mute. The kernel has heard no Querier, speaks MLDv2, and may repeat
	// the leave as soon as it may speak.
	if n := count(got, "Done "+first.String()); n != 1 {
		t.Errorf("%v: %d leaves of what is delivered, want 1", got, n)
	}
	for _, text := range got {
		if text == "Done "+third.String() || text == "TO_IN "+third.String() {
			t.Errorf("%v: leaves what an application wants", got)
		}
	}
	r.wantNoAgents()
}

// TestServeReturns: when it does, nothing of the daemon is at work any more, or open.
func TestServeReturns(t *testing.T) {
	r := &rig{TB: t, lab: netnslab.New(t), runDir: newRunDir(t)}
	var nodes []*netnslab.Node
	for n := range 10 {
		pod, _ := r.pod(fmt.Sprint("c", n))
		nodes = append(nodes, pod.Node())
	}
	before := r.settled()
	for range 3 {
		r.serve(config(t, r.runDir))
		for _, n := range nodes {
			r.add("lab", n, settings(t, `"groups": ["%v"]`, first))
		}
		if err := r.handover(); err != nil {
			t.Fatal(err)
		}
		if list := descriptors(); len(list) > before {
			t.Errorf("%d descriptors before and %d after: %q", before, len(list), list)
		}
	}
}

func count(list []string, what string) (n int) {
	for _, s := range list {
		if s == what {
			n++
		}
	}
	return n
}

// TestStopDuringAdd: who waits for readiness gets an answer, and what the ADD has made is undone.
func TestStopDuringAdd(t *testing.T) {
	r := serve(t)
	pod, _ := r.pod("c1", netnslab.Down)
	answered := make(chan *api.Answer, 1)
	go func() {
		answer, err := r.call(r.request(api.OpAdd, "lab", pod.Node(),
			settings(t, `"groups": [{"group": "ff05::1:1", "deliver": false}], "ready": {"wait": "report", "timeout": "1m"}`)))
		if err != nil {
			t.Error(err)
		}
		answered <- answer
	}()
	netnslab.WaitFor(t, "ADD that waits", patience, func() (bool, string) {
		return r.must(&api.Request{Op: api.OpStatus}).Status.Attachments == 1, ""
	})
	if err := r.end(); err != nil {
		t.Error(err)
	}
	if answer := <-answered; answer != nil {
		wantError(t, answer.Error, api.CodeNotReady, "the link is down")
	}
	r.wantNoAgents()
}

// TestAddGivenUp: an ADD whose client has given up before anybody was there to read it is not done: its DEL may have come
// first.
func TestAddGivenUp(t *testing.T) {
	r := &rig{TB: t, lab: netnslab.New(t), runDir: newRunDir(t)}
	pod, _ := r.pod("c1")
	r.serve(config(t, r.runDir), func(*daemon.Daemon) { // it listens, and nobody accepts yet
		ctx, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
		defer cancel()
		_, err := api.Exchange(ctx, r.runDir, r.request(api.OpAdd, "lab", pod.Node(), settings(t, `"groups": ["ff05::1:1"]`)))
		if !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("%v, want %v", err, context.DeadlineExceeded)
		}
	})
	r.must(&api.Request{Op: api.OpStatus}) // whose client has come later
	if err := r.handover(); err != nil {   // when all is done
		t.Error(err)
	}
	r.wantStateFiles(0)
}

// TestManyGroups: a thousand delivered groups take no longer than a runtime has patience. The machine may stand still
// during one ADD, but not during each.
func TestManyGroups(t *testing.T) {
	r := serve(t)
	var list []string
	for i := range 1000 {
		list = append(list, fmt.Sprintf(`"ff05::2:%x"`, i))
	}
	s := settings(t, `"groups": [%s], "ready": {"wait": "report", "timeout": "10s"}`, strings.Join(list, ","))
	var took []time.Duration
	for i := range 3 {
		pod, _ := r.pod(fmt.Sprint("c", i))
		begin := time.Now()
		r.add("lab", pod.Node(), s)
		took = append(took, time.Since(begin))
		r.check("lab", pod.Node(), s)
		r.del("lab", pod.Node())
	}
	t.Log(took)
	if slices.Min(took) > 2*time.Second {
		t.Errorf("each ADD took %v", took)
	}
}

// TestOtherUsers: only the daemon's own user and root are served, whatever the mode of the socket says.
func TestOtherUsers(t *testing.T) {
	if ids, err := os.ReadFile("/proc/self/uid_map"); err != nil || len(strings.Fields(string(ids))) != 3 || strings.Fields(string(ids))[2] == "1" {
		t.Skip("there is only one user in this user namespace")
	}
	r := serve(t)
	dir := newRunDir(t)
	path := filepath.Join(dir, "stranger") // the test binary may be in a directory that is closed to others
	copyFile(t, "/proc/self/exe", path)
	for _, p := range []string{dir, r.runDir, path} {
		if err := os.Chmod(p, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	dial := func(uid uint32) string {
		cmd := exec.CommandContext(soon(t), path)
		cmd.Env = []string{strangerEnv + "=" + api.SocketPath(r.runDir)}
		cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: uid, Gid: uid, NoSetGroups: true}}
		out, err := cmd.CombinedOutput()
		if err != nil {
			return fmt.Sprintf("%v: %s", err, out)
		}
		return string(out)
	}
	const nobody = 65534
	if said := dial(nobody); !strings.Contains(said, "permission denied") { // the mode
		t.Errorf("socket with mode 0600: %s", said)
	}
	if err := os.Chmod(api.SocketPath(r.runDir), 0o666); err != nil {
		t.Fatal(err)
	}
	if said := dial(nobody); !strings.HasPrefix(said, `answer ""`) {
		t.Errorf("user %d was served: %s", nobody, said)
	}
	if said := dial(0); !strings.HasPrefix(said, `answer "{\"v\":1`) {
		t.Errorf("root was not served: %s", said)
	}
}

func copyFile(t *testing.T, from, to string) {
	t.Helper()
	in, err := os.Open(from)
	if err != nil {
		t.Fatal(err)
	}
	defer in.Close()
	out, err := os.Create(to)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := io.Copy(out, in); err != nil {
		t.Fatal(err)
	}
	if err := out.Close(); err != nil {
		t.Fatal(err)
	}
}

// TestBadRequests: whatever a client sends, it gets an error or a closed connection, and the next client an answer.
func TestBadRequests(t *testing.T) {
	r := serve(t)
	before := r.settled()
	for _, line := range []string{
		"", "\n", "junk\n", "{}\n", `{"v":2,"op":"status"}` + "\n", `{"v":1,"op":"explode"}` + "\n",
		`{"v":1,"op":"status","extra":1}` + "\n", `{"v":1,"op":"status"}` + "\n" + `{"v":1,"op":"status"}` + "\n",
		`{"v":1,"op":"del","network":"../../etc","containerID":"c1","ifname":"eth0"}` + "\n",
		`{"v":1,"op":"add","network":"lab","containerID":"c1","ifname":"eth0","settings":{},"descriptors":["netns","hostNetns"]}` + "\n",
		strings.Repeat("x", api.MaxLine+1), `{"v":1,"op":"sta`,
	} {
		conn, err := net.Dial("unix", api.SocketPath(r.runDir))
		if err != nil {
			t.Fatal(err)
		}
		if err := conn.SetDeadline(time.Now().Add(5 * time.Second)); err != nil { // the daemon waits for 10 s
			t.Fatal(err)
		}
		_, _ = io.WriteString(conn, line)
		if !strings.HasSuffix(line, "\n") { // else it is the daemon that hangs up
			_ = conn.(*net.UnixConn).CloseWrite()
		}
		answer, err := io.ReadAll(conn)
		if text := line[:min(len(line), 50)]; strings.HasSuffix(line, "\n") && (err != nil || !strings.Contains(string(answer), `"error"`)) {
			t.Errorf("%q: %q, %v, want an error and the end", text, answer, err)
		}
		conn.Close()
	}
	r.wantAttachments(0)
	r.wantDescriptors(before)
}

// TestManyRequestsPerConnection: a connection may carry one request after the other.
func TestManyRequestsPerConnection(t *testing.T) {
	r := serve(t)
	client, err := api.Dial(r.runDir)
	if err != nil {
		t.Fatal(err)
	}
	defer client.Close()
	pod, _ := r.pod("c1")
	s := settings(t, `"groups": ["ff05::1:1"]`)
	var got []string
	for _, request := range []*api.Request{
		r.request(api.OpAdd, "lab", pod.Node(), s),
		r.request(api.OpCheck, "lab", pod.Node(), settings(t, `"groups": ["ff05::1:2"]`)),
		r.request(api.OpCheck, "lab", pod.Node(), s),
		{Op: api.OpDel, Attachment: api.Attachment{Network: "lab", ContainerID: "c1", IfName: "eth0"}},
		{Op: api.OpStatus},
	} {
		answer, err := client.Call(soon(t), request)
		if err != nil {
			t.Fatal(err)
		}
		switch {
		case answer.Error != nil:
			got = append(got, fmt.Sprint("error ", answer.Error.Code))
		case answer.Status != nil:
			got = append(got, fmt.Sprint("attachments ", answer.Status.Attachments))
		default:
			got = append(got, "done")
		}
	}
	if diff := cmp.Diff([]string{"done", "error 101", "done", "done", "attachments 0"}, got, cmpopts.EquateEmpty()); diff != "" {
		t.Error(diff)
	}
}

// TestConnectionBound: beyond 256 clients the next one waits for a place.
func TestConnectionBound(t *testing.T) {
	const bound = 256
	r := serve(t)
	var silent []net.Conn
	for range bound {
		conn, err := net.Dial("unix", api.SocketPath(r.runDir))
		if err != nil {
			t.Fatal(err)
		}
		defer conn.Close()
		silent = append(silent, conn)
	}
	answered := make(chan error, 1)
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	client, err := api.Dial(r.runDir)
	if err != nil {
		t.Fatal(err)
	}
	defer client.Close()
	go func() {
		_, err := client.Call(ctx, &api.Request{Op: api.OpStatus})
		answered <- err
	}()
	// Whoever has a place is served at once. A hundred answers later the last one would have had its own.
	served := json.NewDecoder(silent[bound-1])
	for range 100 {
		if _, err := io.WriteString(silent[bound-1], `{"v":1,"op":"status"}`+"\n"); err != nil {
			t.Fatal(err)
		}
		var answer api.Answer
		if err := served.Decode(&answer); err != nil {
			t.Fatal(err)
		}
	}
	select {
	case err := <-answered:
		t.Errorf("client %d was served: %v", bound+1, err)
	default:
	}
	silent[0].Close()
	if err := <-answered; err != nil {
		t.Error(err)
	}
}

// TestLogNames: whatever is logged of a container names it in one way.
func TestLogNames(t *testing.T) {
	log := new(lockedBuffer)
	r := &rig{TB: t, lab: netnslab.New(t), runDir: newRunDir(t)}
	cfg := config(t, r.runDir)
	cfg.Logger = slog.New(slog.NewJSONHandler(io.MultiWriter(t.Output(), log), &slog.HandlerOptions{Level: slog.LevelDebug}))
	r.serve(cfg)
	pod, _ := r.pod("c1")
	r.add("lab", pod.Node(), settings(t, `"groups": ["%v"]`, first))
	pod.Delete()
	r.wantNoAgents()
	netnslab.WaitFor(t, "end of the listener", patience, func() (bool, string) {
		return strings.Contains(log.String(), "listener ended"), log.String()
	})
	r.del("lab", pod.Node())
	if err := r.end(); err != nil {
		t.Error(err)
	}
	said := make(map[string]bool)
	for line := range strings.Lines(log.String()) {
		var l struct{ Msg, Network, Container, Ifname string }
		if err := json.Unmarshal([]byte(line), &l); err != nil {
			t.Fatal(err)
		}
		said[l.Msg] = true
		if l.Msg != "serving" && l.Msg != "stopping" && (l.Network != "lab" || l.Container != "c1" || l.Ifname != "eth0") {
			t.Errorf("whose is %s", line)
		}
	}
	for _, msg := range []string{"request done", "packet sent", "listener ended"} {
		if !said[msg] {
			t.Errorf("nothing was said of %q: %v", msg, said)
		}
	}
}
