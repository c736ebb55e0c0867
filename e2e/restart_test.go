package e2e

import (
	"fmt"
	"maps"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/seed-aaab8e3a/cni-mld/e2e/chain"
	"github.com/seed-aaab8e3a/cni-mld/mld"
	"github.com/seed-aaab8e3a/cni-mld/netnslab"
	"github.com/seed-aaab8e3a/cni-mld/plugin/api"
)

// leaves lists what the container has sent since a moment that ends a membership: Dones, and the records TO_IN and
// BLOCK.
func (s *segment) leaves(c *container, since time.Time) (list []string) {
	s.tb.Helper()
	for _, m := range s.sentBy(c, since) {
		p, err := mld.Parse(m.frame.IPv6(), mld.AcceptUnspecified)
		if err != nil {
			s.tb.Fatal(err)
		}
		if m.kind == done {
			list = append(list, m.String())
		}
		for r := range p.Message.Records.All() {
			if r.Type == mld.ChangeToInclude || r.Type == mld.BlockOldSources {
				list = append(list, fmt.Sprint(r.Type, " ", r.MulticastAddress))
			}
		}
	}
	return list
}

// waitWorker waits until another worker has taken everything over.
func (s *segment) waitWorker(before *api.Status) *api.Status {
	s.tb.Helper()
	var now *api.Status
	s.wait("the next worker", func() (bool, string) {
		now = s.daemon() // which waits in the backlog meanwhile
		return now.PID != before.PID && now.Attachments == before.Attachments, fmt.Sprintf("%+v", now)
	})
	if now.KeeperPID != before.KeeperPID {
		s.tb.Errorf("the keeper is process %d, and was %d", now.KeeperPID, before.KeeperPID)
	}
	return now
}

// A worker that is killed, or replaced by a reload, is missed by nobody: every datagram arrives, nothing is left on the
// wire, and the entries of the MDB stay.
func TestWorkerReplaced(t *testing.T) {
	t.Parallel()
	for _, version := range []int{1, 2} {
		for name, end := range map[string]func(*api.Status) error{
			"killed":   func(s *api.Status) error { return unix.Kill(s.PID, unix.SIGKILL) },
			"reloaded": func(s *api.Status) error { return unix.Kill(s.KeeperPID, unix.SIGHUP) },
		} {
			t.Run(fmt.Sprintf("%s, MLDv%d", name, version), func(t *testing.T) {
				t.Parallel()
				options := quiet
				options.Querier = version
				s := newSegment(t, options, map[string]any{
					"groups":     []any{groupA, map[string]any{"group": groupB, "deliver": false}},
					"mldVersion": version,
				})
				alice, bob, sender := s.add("alice"), s.connect("bob"), s.connect("sender")
				alice.eth0.Join(groupC)
				s.wait("entries", func() (bool, string) {
					return s.inMDB(groupA, alice) && s.inMDB(groupB, alice) && s.inMDB(groupC, alice), ""
				})
				s.bridge.WaitQuerying(t.Context())
				application, other := alice.eth0.Receive(port), bob.eth0.Receive(port)
				onAlice := alice.eth0.Capture()
				before, since := s.daemon(), time.Now()

				const all = 500
				pace := time.NewTicker(2 * time.Millisecond)
				defer pace.Stop()
				for i := range all {
					if i == all/10 {
						if err := end(before); err != nil {
							t.Fatal(err)
						}
					}
					sender.eth0.Send(groupA, port, []byte("data"), 1)
					sender.eth0.Send(groupB, port, []byte("data"), 1)
					<-pace.C
				}
				s.waitWorker(before)
				if err := s.chain.Check(t.Context(), alice.Node); err != nil {
					t.Errorf("CHECK: %v", err)
				}
				sender.eth0.Send(allNodes, port, []byte("the end"), 1)
				application.Wait(allNodes, 1)
				other.Wait(allNodes, 1)
				s.settle()

				// What the kernel had for the application while that was not let run is no fault of a daemon.
				if n, late := application.Count(groupA), alice.overflown(); n+late != all {
					t.Errorf("%d of %d datagrams arrived, and %d found no room in the application's socket; the kernel says\n%s",
						n, all, late, runIn(t, alice.Node, "cat", "/proc/net/snmp6"))
				}
				if n := framesTo(onAlice, groupB); n != all {
					t.Errorf("%d of %d frames came of a group without delivery", n, all)
				}
				if n := other.Count(groupA) + other.Count(groupB); n != 0 {
					t.Errorf("bob received %d datagrams: does the bridge flood?", n)
				}
				if left := s.leaves(alice, since); len(left) > 0 {
					t.Errorf("left: %q", left)
				}
				for _, group := range []netip.Addr{groupA, groupB, groupC} {
					if !s.inMDB(group, alice) {
						t.Errorf("the MDB has no entry for %v", group)
					}
				}

				s.del(alice)
				s.settle()
				left := s.leaves(alice, since)
				for _, group := range []netip.Addr{groupA, groupB, groupC} {
					if !slices.ContainsFunc(left, func(l string) bool { return netip.MustParseAddr(lastField(l)) == group }) {
						t.Errorf("DEL does not leave %v: %q", group, left)
					}
				}
			})
		}
	}
}

// What is wanted from one source alone, by the network or by an application, is so for the next worker as well: it is never
// reported for any source, and the entries stay as they are.
func TestV2_16_WorkerReplacedSources(t *testing.T) {
	t.Parallel()
	s := newSegment(t, quietV2, map[string]any{"groups": []string{fmt.Sprintf("%v@%v", goodAddr, groupS)}, "mldVersion": "auto"})
	alice := s.add("alice")
	alice.eth0.JoinSource(groupB, goodAddr)
	entries := func() string { return fmt.Sprint(s.entries(groupS, alice), s.entries(groupB, alice)) }
	want := fmt.Sprintf("[%v include] [%[1]v include]", goodAddr)
	s.wait("entries", func() (bool, string) { return entries() == want, entries() })
	alice.eth0.Join(groupC) // which hides the others from the kernel's list of sources
	s.wait("entry", func() (bool, string) { return s.inMDB(groupC, alice), "" })

	before, said := s.daemon(), map[netip.Addr]int{groupS: len(s.records(alice, groupS)), groupB: len(s.records(alice, groupB))}
	if err := unix.Kill(before.PID, unix.SIGKILL); err != nil {
		t.Fatal(err)
	}
	s.waitWorker(before)
	for group, n := range said {
		var all []string
		s.wait("what stands, told once more", func() (bool, string) {
			all = s.records(alice, group)[n:]
			return slices.ContainsFunc(all, func(r string) bool { return strings.HasPrefix(r, "IS_") }), fmt.Sprint(all)
		})
		if slices.ContainsFunc(all, func(r string) bool { return strings.Contains(r, "_EX") }) {
			t.Errorf("%v was reported for any source: %q", group, all)
		}
	}
	if got := entries(); got != want {
		t.Errorf("the MDB has %s, want %s", got, want)
	}
}

func lastField(s string) string {
	fields := strings.Fields(s)
	return fields[len(fields)-1]
}

// While one worker follows another, no client is turned away.
func TestReloadTurnsNobodyAway(t *testing.T) {
	t.Parallel()
	s := newSegment(t, quiet, map[string]any{"groups": []netip.Addr{groupA}})
	alice := s.add("alice")
	stop := make(chan struct{})
	var clients sync.WaitGroup
	var failed sync.Map
	status := func() error {
		_, err := s.chain.Daemon(t.Context())
		return err
	}
	mldctl := func() error {
		cmd := s.Host().Command(t.Context(), filepath.Join(s.bin, "mldctl"), "--run-dir", s.chain.RunDir, "status")
		var stderr strings.Builder
		cmd.Stderr = &stderr
		err := cmd.Run()
		// What has just been taken over may be degraded for a moment: that is code 1 as well, without a word.
		if err != nil && (cmd.ProcessState.ExitCode() != 1 || stderr.Len() > 0) {
			return fmt.Errorf("mldctl status: %w: %s", err, &stderr)
		}
		return nil
	}
	for _, ask := range []func() error{status, status, status, mldctl} {
		clients.Go(func() {
			for {
				select {
				case <-stop:
					return
				default:
				}
				if err := ask(); err != nil {
					failed.Store(err.Error(), true)
					return
				}
			}
		})
	}
	for i := range 10 {
		before := s.daemon()
		if err := unix.Kill(before.KeeperPID, unix.SIGHUP); err != nil {
			t.Fatal(err)
		}
		if i%2 == 0 { // one of the plugin, too
			if code, text := s.call("CHECK", alice, nil); code != 0 {
				t.Errorf("CHECK: code %d (%s)", code, text)
			}
		}
		s.waitWorker(before)
	}
	close(stop)
	clients.Wait()
	failed.Range(func(err, _ any) bool { t.Error(err); return true })
}

// A daemon that comes after both processes were killed goes on where they have ended.
func TestKeeperKilled(t *testing.T) {
	t.Parallel()
	s := newSegment(t, quiet, map[string]any{"groups": []any{groupA, map[string]any{"group": groupB, "deliver": false}}})
	alice := s.add("alice")
	since := time.Now()
	if err := s.chain.Kill(t.Context()); err != nil {
		t.Fatal(err)
	}
	if pids := s.daemons(); len(pids) > 0 {
		t.Errorf("processes %v are left", pids)
	}
	s.wait("the kernel's leave", func() (bool, string) { return !s.inMDB(groupA, alice), "" })
	bob := s.add("bob")
	if n := s.daemon().Attachments; n != 2 {
		t.Errorf("the daemon has %d attachments, want 2", n)
	}
	for _, c := range []*container{alice, bob} {
		if err := s.chain.Check(t.Context(), c.Node); err != nil {
			t.Errorf("CHECK %s: %v", c, err)
		}
	}
	if of(s.sentBy(alice, since), report, groupB) == nil {
		t.Error("not reported again")
	}
}

// When the namespace of a container ends and nobody says DEL, the daemon lets go of all it holds of it: the links in it
// go, and with them their ends on the host.
func TestNamespaceEnds(t *testing.T) {
	t.Parallel()
	for name, netns := range map[string]string{
		"process": "",
		"name":    "/run/netns/mld-%d",
		"link":    "/var/run/netns/mld-%d", // through a symbolic link
	} {
		for _, replaced := range []bool{false, true} {
			t.Run(fmt.Sprintf("%s, another worker %v", name, replaced), func(t *testing.T) {
				t.Parallel()
				s := newSegment(t, quiet, map[string]any{"groups": []any{groupA, map[string]any{"group": groupB, "deliver": false}}})
				p := s.startProcess(netns)
				if _, err := s.chain.Run(t.Context(), chain.Call{Command: "ADD", ContainerID: "process", Netns: p.netns}); err != nil {
					t.Fatal(err)
				}
				before := s.daemon()
				if replaced {
					if err := unix.Kill(before.PID, unix.SIGKILL); err != nil {
						t.Fatal(err)
					}
					before = s.waitWorker(before)
				}
				namespace, err := os.Stat(p.netns)
				if err != nil {
					t.Fatal(err)
				}
				if n := held(before.PID, namespace); n == 0 {
					t.Error("the daemon does not hold the namespace: is it held otherwise?")
				}
				p.end()
				s.wait("end of the link", func() (bool, string) {
					out, err := s.Host().Command(t.Context(), "ip", "link", "show", "dev", p.port).CombinedOutput()
					return err != nil, string(out)
				})
				if now := s.daemon(); now.Attachments != 0 || now.PID != before.PID {
					t.Errorf("%+v, want no attachment", now)
				}
				if n := held(before.PID, namespace); n > 0 {
					t.Errorf("%d descriptors of the namespace are open", n)
				}
				if entries, err := os.ReadDir(s.chain.RunDir + "/attachments"); err != nil || len(entries) > 0 {
					t.Errorf("remembered: %v, %v", entries, err)
				}
			})
		}
	}
}

// overflown is how many datagrams the sockets in the container had no room for.
func (c *container) overflown() (n int) {
	c.tb.Helper()
	for line := range strings.Lines(string(runIn(c.tb, c.Node, "cat", "/proc/net/snmp6"))) {
		if f := strings.Fields(line); f[0] == "Udp6RcvbufErrors" {
			if _, err := fmt.Sscan(f[1], &n); err != nil {
				c.tb.Fatal(err)
			}
		}
	}
	return n
}

// held counts the descriptors of a process that are of a file.
func held(pid int, file os.FileInfo) (n int) {
	for fd := range descriptors(pid) {
		if info, err := os.Stat(fmt.Sprintf("/proc/%d/fd/%s", pid, fd)); err == nil && os.SameFile(info, file) {
			n++
		}
	}
	return n
}

// The keeper holds one socket for each container with delivery, as long as it is attached, and little else.
func TestKeeperHolds(t *testing.T) {
	t.Parallel()
	s := newSegment(t, quiet, map[string]any{"groups": []netip.Addr{groupA}})
	nodes := []*netnslab.Node{s.Node("c0"), s.Node("c1"), s.Node("c2"), s.Node("c3")}
	s.all(nodes, 2, s.addQuietly)
	status := s.daemon()
	wantShared := func(what string, want int) {
		t.Helper()
		s.wait(what, func() (bool, string) {
			mine, theirs := descriptors(status.KeeperPID), slices.Collect(maps.Values(descriptors(status.PID)))
			maps.DeleteFunc(mine, func(_, target string) bool {
				return !strings.HasPrefix(target, "socket:") || !slices.Contains(theirs, target)
			})
			return len(mine) == want, fmt.Sprint(mine)
		})
	}
	wantShared("the listening socket, and one for each container", 1+4)
	for who, pid := range map[string]int{"keeper": status.KeeperPID, "worker": status.PID} {
		text, err := os.ReadFile(fmt.Sprintf("/proc/%d/smaps_rollup", pid))
		if err != nil {
			t.Fatal(err)
		}
		for line := range strings.Lines(string(text)) {
			if f := strings.Fields(line); f[0] == "Rss:" || f[0] == "Private_Dirty:" {
				t.Log(who, f)
			}
		}
	}
	s.all(nodes[1:], 3, s.chain.Del)
	wantShared("one socket less for each DEL", 1+1)
}
