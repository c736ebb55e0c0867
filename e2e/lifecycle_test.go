package e2e

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"

	"github.com/seed-aaab8e3a/cni-mld/e2e/chain"
	"github.com/seed-aaab8e3a/cni-mld/mld"
	"github.com/seed-aaab8e3a/cni-mld/netnslab"
	"github.com/seed-aaab8e3a/cni-mld/plugin/api"
)

// DEL leaves every group while the link is there, and nothing stays behind.
func TestV1_09_DelLeaves(t *testing.T) {
	t.Parallel()
	s := newSegment(t, quiet, map[string]any{
		"groups": []any{groupA, map[string]any{"group": groupB, "deliver": false}},
	})
	alice, bob := s.add("alice"), s.add("bob") // bob keeps the daemon at work
	alice.eth0.Join(groupC)
	s.waitSent(alice, time.Time{}, report, groupC, 1)
	port := alice.eth0.Peer().Name()
	if ports := s.mdb(groupA); len(ports) != 2 {
		t.Errorf("the MDB has %v on %v, want two ports", groupA, ports)
	}

	s.del(alice)

	s.settle()
	for _, group := range []netip.Addr{groupA, groupB, groupC} {
		if n := len(of(s.sentBy(alice, time.Time{}), done, group)); n != 1 {
			t.Errorf("%d Dones for %v, want 1", n, group)
		}
	}
	for _, group := range []netip.Addr{groupA, groupB, groupC} {
		if _, ok := s.mdb(group)[port]; ok {
			t.Errorf("the MDB still has %v on %s", group, port)
		}
	}
	if out, err := s.Host().Command(t.Context(), "ip", "link", "show", "dev", port).CombinedOutput(); err == nil {
		t.Errorf("the host still has %s", out)
	}
	s.waitReleased(alice)
	if n := s.daemon().Attachments; n != 1 {
		t.Errorf("the daemon has %d attachments, want 1", n)
	}
	if !slices.Contains(s.namespaces(), namespaceOf(t, bob.Node)) {
		t.Error("the daemon does not hold bob's namespace: is it held otherwise?")
	}
}

// DEL succeeds however little is left of what ADD has made.
func TestDelWhateverIsLeft(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		name  string
		spoil func(t *testing.T, s *segment, alice *container) // and DEL as a runtime would do it then
	}{
		{"twice", func(t *testing.T, s *segment, alice *container) {
			s.del(alice)
			s.del(alice)
		}},
		{"as containerd does", func(t *testing.T, s *segment, alice *container) {
			s.del(alice)
			s.delBy(alice, "")
		}},
		{"no CNI_NETNS", func(t *testing.T, s *segment, alice *container) { s.delBy(alice, "") }},
		{"namespace gone", func(t *testing.T, s *segment, alice *container) { s.delBy(alice, "/run/netns/gone") }},
		{"interface gone", func(t *testing.T, s *segment, alice *container) {
			alice.eth0.Delete()
			s.waitReleased(alice) // by itself
			s.delBy(alice, alice.Path())
		}},
		{"daemon gone", func(t *testing.T, s *segment, alice *container) {
			if err := s.chain.Kill(t.Context()); err != nil {
				t.Fatal(err)
			}
			s.del(alice)
		}},
		{"daemon stopped", func(t *testing.T, s *segment, alice *container) {
			if err := s.chain.Stop(t.Context()); err != nil {
				t.Fatal(err)
			}
			s.delBy(alice, "")
		}},
		{"run directory gone", func(t *testing.T, s *segment, alice *container) {
			pidfd := s.pidfd()
			if err := os.RemoveAll(s.chain.RunDir); err != nil {
				t.Fatal(err)
			}
			s.waitEnd(pidfd)
			s.del(alice)
		}},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			s := newSegment(t, quiet, map[string]any{"groups": []netip.Addr{groupA}})
			alice := s.add("alice")
			c.spoil(t, s, alice)
			if _, muted := alice.muted(); muted {
				s.wait("end of the table", func() (bool, string) { _, muted := alice.muted(); return !muted, "" })
			}
			status, err := s.chain.Daemon(t.Context())
			switch {
			case api.NotRunning(err):
			case err != nil:
				t.Fatal(err)
			case status.Attachments != 0:
				t.Errorf("the daemon has %d attachments, want none", status.Attachments)
			default:
				s.waitReleased(alice)
			}
		})
	}
}

// delBy runs DEL of mld alone, with another CNI_NETNS.
func (s *segment) delBy(c *container, netns string) {
	s.tb.Helper()
	if _, err := s.chain.Run(s.tb.Context(), chain.Call{Command: "DEL", ContainerID: c.Name(), Netns: netns}); err != nil {
		s.tb.Fatalf("DEL %s: %v", c, err)
	}
}

// pidfd opens the daemon's process that ends last, the keeper, until the end of the test.
func (s *segment) pidfd() *os.File {
	s.tb.Helper()
	fd, err := unix.PidfdOpen(s.daemon().KeeperPID, unix.PIDFD_NONBLOCK)
	if err != nil {
		s.tb.Fatal(err)
	}
	f := os.NewFile(uintptr(fd), "mldd")
	s.tb.Cleanup(func() { _ = f.Close() })
	return f
}

// waitEnd waits until a process has ended.
func (s *segment) waitEnd(pidfd *os.File) {
	s.tb.Helper()
	for {
		n, err := unix.Poll([]unix.PollFd{{Fd: int32(pidfd.Fd()), Events: unix.POLLIN}}, int(patience.Milliseconds()))
		switch {
		case errors.Is(err, unix.EINTR):
		case n > 0:
			return
		default:
			s.tb.Fatalf("the daemon has not ended after %v: %v", patience, err)
		}
	}
}

// A namespace dies with its last process once its attachment is gone, and the host's end of the link with it: nothing
// of the daemon's, no descriptor and no socket, keeps it alive.
func TestNamespaceIsNotPinned(t *testing.T) {
	t.Parallel()
	s := newSegment(t, quiet, map[string]any{"groups": []netip.Addr{groupA}})
	p := s.startProcess("")
	netns := p.netns
	for _, command := range []string{"ADD", "DEL"} {
		_, err := s.chain.Run(t.Context(), chain.Call{Command: command, ContainerID: "process", Netns: netns})
		if err != nil {
			t.Fatalf("%s: %v", command, err)
		}
		netns = "" // as containerd does
	}
	p.end()
	p.waitReleased()
	if n := s.daemon().Attachments; n != 0 {
		t.Errorf("the daemon has %d attachments, want none", n)
	}
}

// When the daemon is killed, the kernel speaks again for its applications: it answers the next query. The next ADD
// starts another daemon.
func TestKilledDaemon(t *testing.T) {
	t.Parallel()
	for _, querier := range []int{1, 2} {
		t.Run(fmt.Sprintf("MLDv%d", querier), func(t *testing.T) {
			t.Parallel()
			options := quiet
			options.Querier = querier
			s := newSegment(t, options, map[string]any{"groups": []netip.Addr{groupA}})
			alice := s.add("alice")
			alice.eth0.Join(groupB)
			s.waitSent(alice, time.Time{}, report, groupB, 1)
			first := s.daemon().PID

			if err := s.chain.Kill(t.Context()); err != nil {
				t.Fatal(err)
			}
			s.wait("end of the table", func() (bool, string) { _, muted := alice.muted(); return !muted, "" })
			s.kernelAnswers(alice, groupB)

			s.add("bob")
			if second := s.daemon().PID; second == first {
				t.Errorf("the daemon has still process number %d", first)
			}
		})
	}
}

// kernelAnswers asks, and waits until the container's kernel answers for the group in the version of the query and the
// entry in the MDB, which there must be, is renewed by that.
func (s *segment) kernelAnswers(c *container, group netip.Addr) {
	s.tb.Helper()
	port := c.eth0.Peer().Name()
	if _, ok := s.mdb(group)[port]; !ok {
		s.tb.Fatalf("the MDB has no entry for %v on %s", group, port)
	}
	var end time.Time
	s.wait("entry that is a second old", func() (bool, string) { // so that it can be told from a new one
		left := s.mdb(group)[port]
		end = time.Now().Add(seconds(left))
		return left < membershipInterval-1, fmt.Sprint(left)
	})
	begin := time.Now()
	s.query(group, 100*time.Millisecond)
	if s.version == mld.Version1 {
		s.waitSent(c, begin, report, group, 1)
	} else {
		s.waitKernelSaid(c, begin, group)
	}
	now := time.Now()
	if newEnd := now.Add(seconds(s.mdb(group)[port])); !newEnd.After(end) {
		s.tb.Errorf("the entry for %v is to end at %v and was to end at %v before: not renewed", group, newEnd, end)
	}
}

// membershipInterval is how long an entry of the MDB lives (B13), in seconds.
const membershipInterval = 260

func seconds(s float64) time.Duration { return time.Duration(s * float64(time.Second)) }

// waitKernelSaid waits for a version 2 Report that names the group, which only the kernel sends.
func (s *segment) waitKernelSaid(c *container, since time.Time, group netip.Addr) {
	s.tb.Helper()
	address := group.As16()
	s.wait("report of the kernel about "+group.String(), func() (bool, string) {
		sent := s.sentBy(c, since)
		return slices.ContainsFunc(sent, func(m message) bool {
			return m.kind == reportV2 && bytes.Contains(m.frame.IPv6(), address[:])
		}), fmt.Sprint(sent)
	})
}

// When the daemon is stopped, it leaves what is declared, and the kernel speaks for its applications: one that had
// joined what is declared as well holds it.
func TestStoppedDaemon(t *testing.T) {
	t.Parallel()
	s := newSegment(t, quiet, map[string]any{
		"groups": []any{groupA, map[string]any{"group": groupB, "deliver": false}, groupD},
	})
	alice := s.add("alice")
	s.query(groupC, 100*time.Millisecond) // makes the kernel speak version 1, so that its leave is a Done
	alice.eth0.Join(groupC)
	alice.eth0.Join(groupD)
	s.waitSent(alice, time.Time{}, report, groupC, 1)

	if err := s.chain.Stop(t.Context()); err != nil {
		t.Fatal(err)
	}
	s.waitSent(alice, time.Time{}, done, groupA, 1)
	s.waitSent(alice, time.Time{}, done, groupB, 1)
	s.settle()
	for _, group := range []netip.Addr{groupC, groupD} {
		if dones := of(s.sentBy(alice, time.Time{}), done, group); len(dones) > 0 {
			t.Errorf("left although an application holds it: %v", dones[0].frame)
		}
		s.kernelAnswers(alice, group)
	}
	if _, muted := alice.muted(); muted {
		t.Error("the kernel is still muted")
	}
}

// Ten ADDs at once start one daemon, which keeps nothing of its caller's.
func TestAutostart(t *testing.T) {
	t.Parallel()
	s := newSegment(t, quiet, map[string]any{"groups": []netip.Addr{groupA}})
	var nodes []*netnslab.Node
	for i := range 10 {
		nodes = append(nodes, s.Node(fmt.Sprintf("c%d", i)))
	}
	s.all(nodes, len(nodes), s.addQuietly)
	status := s.daemon()
	if status.Attachments != len(nodes) || !status.SelfStarted {
		t.Errorf("status %+v, want %d attachments, self-started", status, len(nodes))
	}
	want := []int{status.KeeperPID, status.PID}
	slices.Sort(want)
	if daemons := slices.Sorted(slices.Values(s.daemons())); !slices.Equal(daemons, want) {
		t.Errorf("processes %v are daemons of the run directory, want keeper and worker, %v", daemons, want)
	}

	for _, pid := range want {
		for fd, target := range descriptors(pid) {
			switch n, _ := strconv.Atoi(fd); {
			case n < 2 && target != "/dev/null", n == 2 && target != api.LogPath(s.chain.RunDir):
				t.Errorf("descriptor %s is %s", fd, target)
			case strings.HasPrefix(target, "pipe:"):
				t.Errorf("descriptor %s is a pipe", fd)
			}
		}
		proc := fmt.Sprintf("/proc/%d", pid)
		for link, want := range map[string]string{"ns/net": namespaceOf(t, s.Host()), "cwd": "/"} {
			if got, err := os.Readlink(filepath.Join(proc, link)); err != nil || got != want {
				t.Errorf("%s of the daemon is %s, %v, want %s", link, got, err, want)
			}
		}
		if session, err := unix.Getsid(pid); err != nil || session != status.KeeperPID {
			t.Errorf("the daemon is in session %d, %v, want its own, %d", session, err, status.KeeperPID)
		}
		environ, err := os.ReadFile(filepath.Join(proc, "environ"))
		if bytes.Contains(environ, []byte("CNI_")) || len(environ) == 0 {
			t.Errorf("the daemon's environment is %q, %v", environ, err)
		}
	}

	s.all(nodes, len(nodes), s.chain.Del)
	s.wait("release of all namespaces", func() (bool, string) {
		held := s.namespaces()
		slices.Sort(held)
		held = slices.Compact(held) // its own, twice
		return slices.Equal(held, []string{namespaceOf(t, s.Host())}), fmt.Sprint(held)
	})
	pidfd := s.pidfd()
	if err := os.RemoveAll(s.chain.RunDir); err != nil {
		t.Fatal(err)
	}
	s.waitEnd(pidfd)
}

// A runtime waits until nobody holds the plugin's standard output, and what it has leaked into the plugin must not
// live on in the daemon.
func TestAutostartLetsGo(t *testing.T) {
	t.Parallel()
	s := newSegment(t, quiet, nil)
	alice := s.connect("alice")
	kept, passed, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer kept.Close()
	plugin := s.Host().Command(t.Context(), filepath.Join(s.bin, "mld"))
	plugin.Env = []string{
		"CNI_COMMAND=ADD", "CNI_CONTAINERID=alice", "CNI_NETNS=" + alice.Path(), "CNI_IFNAME=eth0", "CNI_PATH=" + s.bin,
	}
	plugin.Stdin = strings.NewReader(fmt.Sprintf(`{"cniVersion": "1.1.0", "name": "lab", "type": "mld", "runDir": %q,
		"prevResult": {"cniVersion": "1.1.0"}}`, s.chain.RunDir))
	plugin.ExtraFiles = []*os.File{passed, passed, passed} // more than the daemon is given itself
	plugin.WaitDelay = patience
	begin := time.Now()
	out, err := plugin.CombinedOutput() // waits until both are closed
	if err != nil || !bytes.Contains(out, []byte("1.1.0")) {
		t.Fatalf("ADD: %v\n%s", err, out)
	}
	if took := time.Since(begin); took >= patience {
		t.Errorf("ADD took %v: who holds its standard output?", took)
	}
	if err := passed.Close(); err != nil {
		t.Fatal(err)
	}
	if err := kept.SetReadDeadline(time.Now().Add(patience)); err != nil {
		t.Fatal(err)
	}
	if n, err := kept.Read(make([]byte, 1)); !errors.Is(err, io.EOF) {
		t.Errorf("read %d bytes, %v: somebody has kept a descriptor of the runtime's", n, err)
	}
	s.daemon() // lives
}

func (s *segment) addQuietly(ctx context.Context, n *netnslab.Node) error {
	_, err := s.chain.Add(ctx, n)
	return err
}

// all does something to all nodes, some at a time.
func (s *segment) all(nodes []*netnslab.Node, atOnce int, do func(context.Context, *netnslab.Node) error) {
	s.tb.Helper()
	var wg sync.WaitGroup
	places := make(chan struct{}, atOnce)
	for _, n := range nodes {
		places <- struct{}{}
		wg.Go(func() {
			defer func() { <-places }()
			if err := do(s.tb.Context(), n); err != nil {
				s.tb.Errorf("%s: %v", n, err)
			}
		})
	}
	wg.Wait()
	if s.tb.Failed() {
		s.tb.FailNow()
	}
}

// Fifty attachments, eight at a time. When they have gone the daemon has what it had.
func TestFiftyAttachments(t *testing.T) {
	t.Parallel()
	s := newSegment(t, quiet, map[string]any{"groups": []netip.Addr{groupA}})
	// One that comes and goes has the daemon started and its runtime warmed up.
	warm := s.add("warm")
	s.del(warm)
	s.waitReleased(warm)
	before := s.resources()

	var nodes []*netnslab.Node
	for i := range 50 {
		nodes = append(nodes, s.Node(fmt.Sprintf("c%d", i)))
	}
	s.all(nodes, 8, s.addQuietly)
	if n := len(s.mdb(groupA)); n != len(nodes) {
		t.Errorf("the MDB has %v on %d ports, want %d", groupA, n, len(nodes))
	}
	if n := s.daemon().Attachments; n != len(nodes) {
		t.Errorf("the daemon has %d attachments, want %d", n, len(nodes))
	}
	full := s.resources()
	t.Logf("mldd without attachments: %v; with %d: %v", before, len(nodes), full)
	if full.threads > 20 {
		t.Errorf("%d threads: one for each attachment?", full.threads)
	}

	s.all(nodes, 8, s.chain.Del)
	if n := len(s.mdb(groupA)); n != 0 {
		t.Errorf("the MDB still has %v on %d ports", groupA, n)
	}
	s.wait("end of all listeners", func() (bool, string) {
		now := s.resources()
		return cmp.Equal(now.descriptors, before.descriptors), fmt.Sprintf("%v, before %v", now, before)
	})
	t.Logf("and without again: %v", s.resources())
}

// resources are what a process takes.
type resources struct {
	rss         string // VmRSS
	threads     int
	descriptors int
}

func (r resources) String() string {
	return fmt.Sprintf("VmRSS %s, %d threads, %d descriptors", r.rss, r.threads, r.descriptors)
}

func (s *segment) resources() resources {
	s.tb.Helper()
	pid := s.daemon().PID
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	if err != nil {
		s.tb.Fatal(err)
	}
	r := resources{descriptors: len(descriptors(pid))}
	for line := range strings.Lines(string(text)) {
		key, value, _ := strings.Cut(strings.TrimSpace(line), ":")
		switch value = strings.TrimSpace(value); key {
		case "VmRSS":
			r.rss = value
		case "Threads":
			r.threads, _ = strconv.Atoi(value)
		}
	}
	return r
}
