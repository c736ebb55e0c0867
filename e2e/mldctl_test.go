package e2e

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/seed-aaab8e3a/cni-mld/netnslab"
)

// What mldctl prints, as somebody reads it who knows nothing of our Go code but the documented keys.
type (
	statusJSON struct {
		Daemon      struct{ PID int }
		Attachments []struct {
			Network, ContainerID, Ifname, State, Reason, KernelReports, MldVersionReason, Source string
			MldVersion, Declared, Wanted, Reported                                               int
			Since                                                                                time.Time
			Interface                                                                            struct {
				Netns   string
				Ifindex int
			}
			Querier *struct {
				Address    string
				MldVersion int
				Heard      time.Time
			}
			Bridge *struct {
				Name, Port, Querier string
				Snooping            bool
			}
		}
	}
	filterJSON struct {
		Mode    string
		Sources []string
	}
	groupJSON struct {
		Group  string
		Wanted []struct {
			filterJSON
			By         string
			Attachment *struct{ Network string }
		}
		Reported   *filterJSON
		ReportedBy string
		MDB        *struct {
			filterJSON
			Blocked []string
			Expires string
		}
		Marks []struct {
			Code, Text string
			Fault      bool
		}
	}
	eventJSON struct {
		Time                                                      time.Time
		Kind, Group, Record, Message, Cause, From, Reason, Bridge string
		Port                                                      string
		MldVersion                                                int
		Filter                                                    *filterJSON
		Attachments                                               []struct{ ContainerID string }
	}
)

// mldctl runs mldctl on the host and returns what it prints and its exit code.
func (s *segment) mldctl(args ...string) (stdout, stderr string, code int) {
	s.tb.Helper()
	return s.mldctlFrom(s.Host(), args...)
}

// mldctlFrom is mldctl in the namespace of a node.
func (s *segment) mldctlFrom(where *netnslab.Node, args ...string) (stdout, stderr string, code int) {
	s.tb.Helper()
	cmd := where.Command(s.tb.Context(), filepath.Join(s.bin, "mldctl"), append([]string{"--run-dir", s.chain.RunDir}, args...)...)
	var out, complaint bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &complaint
	var exit *exec.ExitError
	if err := cmd.Run(); errors.As(err, &exit) {
		code = exit.ExitCode()
	} else if err != nil {
		s.tb.Fatal(err)
	}
	return out.String(), complaint.String(), code
}

// document runs mldctl with --json and decodes what it prints.
func (s *segment) document(doc any, args ...string) (code int) {
	s.tb.Helper()
	out, complaint, code := s.mldctl(append(args, "--json")...)
	if err := json.Unmarshal([]byte(out), doc); err != nil {
		s.tb.Fatalf("mldctl %q: code %d, %v: %s%s", args, code, err, out, complaint)
	}
	return code
}

// group returns what mldctl says of a group of a container, and its exit code.
func (s *segment) group(group netip.Addr, c *container) (g groupJSON, code int) {
	s.tb.Helper()
	var doc struct{ Groups []groupJSON }
	code = s.document(&doc, "groups", group.String(), "--container", c.Name())
	if len(doc.Groups) > 1 {
		s.tb.Fatalf("%v: %d rows", group, len(doc.Groups))
	}
	for _, g := range doc.Groups {
		return g, code
	}
	return g, code
}

func (g groupJSON) codes() (codes []string) {
	for _, m := range g.Marks {
		codes = append(codes, m.Code)
	}
	return codes
}

// A watching is a mldctl watch at work.
type watching struct {
	*segment
	cmd    *netnslab.Cmd
	done   chan struct{} // closed when there are no more lines
	mu     sync.Mutex
	lines  []string
	stderr []byte
}

// Write takes what the program says on standard error.
func (w *watching) Write(p []byte) (int, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.stderr = append(w.stderr, p...)
	return len(p), nil
}

func (w *watching) said() string {
	w.mu.Lock()
	defer w.mu.Unlock()
	return string(w.stderr)
}

// watch starts mldctl watch; when it returns, every event is seen.
func (s *segment) watch(c *container, args ...string) *watching {
	s.tb.Helper()
	w := &watching{segment: s, done: make(chan struct{})}
	args = append([]string{"--run-dir", s.chain.RunDir, "watch"}, args...)
	w.cmd = s.Host().Command(s.tb.Context(), filepath.Join(s.bin, "mldctl"), args...)
	w.cmd.Stderr = w
	out, err := w.cmd.StdoutPipe()
	if err == nil {
		err = w.cmd.Start()
	}
	if err != nil {
		s.tb.Fatal(err)
	}
	go func() {
		defer close(w.done)
		for in := bufio.NewScanner(out); in.Scan(); {
			w.mu.Lock()
			w.lines = append(w.lines, in.Text())
			w.mu.Unlock()
		}
	}()
	s.wait("first event", func() (bool, string) { // until then nobody watches
		c.eth0.Join(unwanted).Close()
		return len(w.seen()) > 0, w.said()
	})
	return w
}

func (w *watching) seen() []string {
	w.mu.Lock()
	defer w.mu.Unlock()
	return slices.Clone(w.lines)
}

// events decodes what was seen of a group, and of General Queries.
func (w *watching) events(group netip.Addr) (list []eventJSON) {
	w.tb.Helper()
	for _, line := range w.seen() {
		var e eventJSON
		if err := json.Unmarshal([]byte(line), &e); err != nil {
			w.tb.Fatalf("%v: %s", err, line)
		}
		if e.Group == group.String() || e.Group == "" {
			list = append(list, e)
		}
	}
	return list
}

// inOrder waits until events were seen one after the other; others may be between them.
func (w *watching) inOrder(group netip.Addr, want ...string) {
	w.tb.Helper()
	w.wait(strings.Join(want, ", then "), func() (bool, string) {
		var got []string
		next := 0
		for _, e := range w.events(group) {
			text := strings.Join(strings.Fields(fmt.Sprint(e.Kind, " ", e.Record, " ", e.Cause, " ", e.From, " ", e.Port)), " ")
			got = append(got, text)
			if next < len(want) && text == want[next] {
				next++
			}
		}
		return next == len(want), fmt.Sprintf("%q", got)
	})
}

// stop interrupts the program and returns its exit code.
func (w *watching) stop() int {
	w.tb.Helper()
	if err := w.cmd.Process.Signal(unix.SIGINT); err != nil {
		w.tb.Error(err)
	}
	return w.ended()
}

func (w *watching) ended() int {
	w.tb.Helper()
	<-w.done
	var exit *exec.ExitError
	if err := w.cmd.Wait(); errors.As(err, &exit) {
		return exit.ExitCode()
	} else if err != nil {
		w.tb.Fatal(err)
	}
	return 0
}

// following is a configuration that follows the querier's version.
func following(keys map[string]any) map[string]any {
	all := map[string]any{"mldVersion": "auto"}
	for k, v := range keys {
		all[k] = v
	}
	return all
}

// An application's join and leave are told from the socket to the bridge's database: what happened, what was said about
// it and why, who asked, and what the bridge made of it, in this order.
func TestMldctlWatch(t *testing.T) {
	t.Parallel()
	s := newSegment(t, quietV2, following(nil))
	c := s.add("c1")
	port := c.eth0.Peer().Name()
	w, text := s.watch(c, "--json"), s.watch(c, "--container", "c")

	m := c.eth0.Join(groupA)
	w.inOrder(groupA, "joined", "sent TO_EX changed", "mdb "+port)
	s.query(general, time.Second)
	w.inOrder(groupA, "mdb "+port, "heard "+routerAddr.String(), "sent IS_EX answer")
	m.Close()
	asks := "heard " + s.bridge.LinkLocal().String()
	w.inOrder(groupA, "sent IS_EX answer", "left", "sent TO_IN changed", asks, "mdb-gone "+port)

	var last time.Time
	for _, e := range w.events(groupA) {
		if e.Time.Before(last) {
			t.Errorf("%+v was told after something later", e)
		}
		last = e.Time
		if len(e.Attachments) != 1 || e.Attachments[0].ContainerID != "c1" {
			t.Errorf("%+v is of another attachment", e)
		}
	}
	// What was said, as tshark reads it.
	heard := s.records(c, groupA)
	for _, record := range []string{"TO_EX", "IS_EX", "TO_IN"} {
		if !slices.Contains(heard, record) {
			t.Errorf("no record %s on the wire: %q", record, heard)
		}
	}
	for _, want := range []string{
		"lab/c1/eth0          joined     ff05::a, any source", "sent       TO_EX ff05::a: what is wanted has changed",
		"in the MDB ff05::a, any source: cni0 port " + port, "General Query in MLDv2 from " + routerAddr.String() + ", to be answered within 1s",
		"sent       IS_EX ff05::a: a Query has asked", "muted      TO_EX ff05::a: the kernel's",
	} {
		s.wait(want, func() (bool, string) {
			lines := strings.Join(text.seen(), "\n")
			return strings.Contains(lines, want), lines
		})
	}
	for _, w := range []*watching{w, text} {
		if code := w.stop(); code != 0 || w.said() != "" {
			t.Errorf("interrupted: code %d, %s", code, w.said())
		}
	}
}

// A watch goes on with the next worker, says so, and ends with the daemon.
func TestMldctlWatchRestart(t *testing.T) {
	t.Parallel()
	s := newSegment(t, quietV2, following(nil))
	c := s.add("c1")
	w := s.watch(c, "--json")
	if err := unix.Kill(s.daemon().KeeperPID, unix.SIGHUP); err != nil {
		t.Fatal(err)
	}
	s.wait("event of the next worker", func() (bool, string) {
		c.eth0.Join(groupA).Close()
		return len(w.events(groupA)) > 0 && strings.Contains(w.said(), "replaced"), w.said()
	})
	if want := fmt.Sprintf("mldctl: the worker of mldd was replaced, it is process %d now: events may be missing\n",
		s.daemon().PID); w.said() != want {
		t.Errorf("says %q, want %q", w.said(), want)
	}
	before := len(w.seen())
	s.wait("event after that", func() (bool, string) {
		c.eth0.Join(groupB).Close()
		return len(w.seen()) > before && len(w.events(groupB)) > 0, w.said()
	})
	if err := s.chain.Stop(t.Context()); err != nil {
		t.Fatal(err)
	}
	if code := w.ended(); code != 3 || !strings.Contains(w.said(), "none has followed: ") {
		t.Errorf("after the end of mldd: code %d, %s", code, w.said())
	}
}

// Wherever the three views of a group differ mldctl says why, and its exit code whether that is a fault.
func TestMldctlGroups(t *testing.T) {
	t.Parallel()
	only := func(group any) map[string]any { return map[string]any{"groups": []any{group}} }
	notDelivered := map[string]any{"group": groupA, "deliver": false}
	entry := func(s *segment, c *container) {
		s.wait("entry", func() (bool, string) { return s.inMDB(groupA, c), "" })
	}
	for name, tc := range map[string]struct {
		bridge netnslab.BridgeOptions
		keys   map[string]any
		group  netip.Addr // groupA
		then   func(s *segment, c *container)
		codes  []string
		text   string // what the reason has to say
		fault  bool
	}{
		"fine":          {bridge: quiet, keys: only(groupA), then: entry},
		"deliver false": {bridge: quiet, keys: only(notDelivered), then: entry, codes: []string{"not-delivered"}, text: "deliver false"},
		"no querier": {
			bridge: netnslab.BridgeOptions{MembershipInterval: 500 * time.Millisecond},
			keys:   map[string]any{"groups": []any{groupA}, "robustness": 1}, // a repeat would bring the entry back
			codes:  []string{"no-querier"}, text: "bridge cni0 knows no querier: the bridge floods",
		},
		"snooping off": {
			bridge: netnslab.BridgeOptions{NoSnooping: true}, keys: only(groupA),
			codes: []string{"snooping-off"}, text: "snooping is off on cni0: the bridge floods",
		},
		"table full": {
			bridge: netnslab.BridgeOptions{Querier: 1, HashMax: 4}, keys: only(groupA),
			then: func(_ *segment, c *container) {
				for i := range 8 {
					c.eth0.Join(netip.AddrFrom16([16]byte{0: 0xff, 1: 5, 14: 0xee, 15: byte(i)}))
				}
			},
			codes: []string{"table-full"}, text: "was full (mcast_hash_max 4)",
		},
		"link down": {
			bridge: quiet, keys: only(groupA), then: func(_ *segment, c *container) { c.eth0.SetDown() },
			codes: []string{"link-down"}, text: "not reported: the link is down", fault: true,
		},
		"no link-local address": {
			bridge: quiet, keys: only(groupA), then: func(_ *segment, c *container) {
				c.eth0.DelAddr(netip.PrefixFrom(c.eth0.LinkLocal(), 64))
			},
			codes: []string{"no-link-local"}, text: "no valid link-local address", fault: true,
		},
		"duplicate address detection": {
			bridge: quiet, keys: only(groupA), then: func(s *segment, c *container) {
				c.SetSysctl("net/ipv6/conf/eth0/accept_dad", "1")
				c.SetSysctl("net/ipv6/conf/eth0/dad_transmits", "100") // a second each
				c.eth0.SetDown()
				c.eth0.SetUp()
				entry(s, c) // of what is reported from "::"
			},
			codes: []string{"tentative"}, text: `reported from "::" until duplicate address detection of fe80::`,
		},
		"IPv6 off": {
			bridge: quiet, keys: only(groupA), then: func(_ *segment, c *container) {
				c.SetSysctl("net/ipv6/conf/eth0/disable_ipv6", "1")
			},
			codes: []string{"ipv6-off"}, text: "net.ipv6.conf.eth0.disable_ipv6", fault: true,
		},
		"sources in MLDv1": {
			bridge: quiet, keys: only(filtered(groupA, "include", true, goodAddr)), then: entry,
			codes: []string{"sources-mldv1"}, text: "MLDv1 is spoken",
		},
		"sources on a bridge of MLDv1": {
			bridge: quiet, keys: map[string]any{"mldVersion": 2, "groups": []any{filtered(groupA, "include", true, goodAddr)}}, then: entry,
			codes: []string{"sources-bridge"}, text: "bridge cni0 speaks MLDv1",
		},
		"sources": {
			bridge: quietV2, keys: map[string]any{"mldVersion": 2, "groups": []any{filtered(groupA, "exclude", true, badAddr)}}, then: entry,
		},
		"entry removed": {
			bridge: quiet, keys: map[string]any{"groups": []any{groupA}, "robustness": 1}, then: func(s *segment, c *container) {
				entry(s, c)
				s.run("bridge", "mdb", "del", "dev", "cni0", "port", c.eth0.Peer().Name(), "grp", groupA.String())
			},
			codes: []string{"not-in-mdb"}, text: "bridge cni0 has no entry", fault: true,
		},
		"port blocked": {
			bridge: quiet, keys: only(groupA), then: func(s *segment, c *container) {
				entry(s, c)
				s.run("bridge", "link", "set", "dev", c.eth0.Peer().Name(), "state", "0")
			},
			codes: []string{"port-down"}, text: "does not pass frames", fault: true,
		},
		"unwanted": {
			bridge: quiet, keys: only(groupB), then: func(s *segment, c *container) {
				s.run("bridge", "mdb", "add", "dev", "cni0", "port", c.eth0.Peer().Name(), "grp", groupA.String(), "permanent")
			},
			codes: []string{"unwanted"}, text: "made by hand",
		},
		"never reported": {bridge: quiet, group: allNodes, codes: []string{"never-reported"}, text: "never reported"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			group := tc.group
			if !group.IsValid() {
				group = groupA
			}
			s := newSegment(t, tc.bridge, speaking(tc.keys))
			c := s.add("c1")
			if tc.then != nil {
				tc.then(s, c)
			}
			var g groupJSON
			var code int
			s.wait(fmt.Sprintf("%q", tc.codes), func() (bool, string) {
				g, code = s.group(group, c)
				return slices.Equal(g.codes(), tc.codes) && g.Group == group.String(), fmt.Sprintf("%d %+v", code, g)
			})
			want := 0
			if tc.fault {
				want = 1
			}
			for _, m := range g.Marks {
				if !strings.Contains(m.Text, tc.text) || m.Fault != tc.fault {
					t.Errorf("%+v, want %q, fault %v", m, tc.text, tc.fault)
				}
			}
			if code != want {
				t.Errorf("exit code %d, want %d", code, want)
			}
			// The table says the same, and status of a declared group.
			out, _, code := s.mldctl("groups", group.String())
			row := slices.IndexFunc(strings.Split(out, "\n"), func(line string) bool {
				return strings.Contains(line, tc.text) && strings.Contains(line, group.String()) && strings.HasPrefix(line, "! ") == tc.fault
			})
			if row < 0 || code != want {
				t.Errorf("code %d, no row with %q in\n%s", code, tc.text, out)
			}
			var status statusJSON
			code = s.document(&status, "status")
			if a := status.Attachments; len(a) != 1 || (a[0].State != "ready") != tc.fault || (a[0].Reason != "") != tc.fault || code != want {
				t.Errorf("status, code %d: %+v", code, a)
			}
		})
	}
}

// The three views agree with those who know best: the kernel's list of members and the program bridge.
func TestMldctlViews(t *testing.T) {
	t.Parallel()
	s := newSegment(t, quietV2, following(map[string]any{"groups": []any{
		groupA, filtered(groupB, "exclude", true, badAddr), map[string]any{"group": groupC, "deliver": false},
	}}))
	c := s.add("c1")
	c.eth0.JoinSource(groupS, goodAddr)
	c.eth0.Join(groupA)
	s.wait("all sources", func() (bool, string) { // what is excluded is known when the kernel has reported it
		got := fmt.Sprint(s.entries(groupB, c), s.entries(groupS, c))
		return got == "[exclude fd00:1::a66 blocked] [fd00:1::a10 include]", got
	})
	var doc struct{ Groups []groupJSON }
	s.wait("agreement", func() (bool, string) {
		doc.Groups = nil
		code := s.document(&doc, "groups", "--all")
		return code == 0 && len(doc.Groups) >= 6, fmt.Sprintf("code %d %+v", code, doc)
	})
	for _, g := range doc.Groups {
		group := netip.MustParseAddr(g.Group)
		byKernel := len(g.Wanted) > 0 && g.Wanted[0].By == "kernel"
		if byKernel != c.kernelHolds(group) {
			t.Errorf("%v: by the kernel: %v, as the kernel says: %v", group, byKernel, !byKernel)
		}
		var entries []string
		if g.MDB != nil {
			entries = append(entries, g.MDB.Mode)
			entries = append(entries, g.MDB.Sources...)
			for _, b := range g.MDB.Blocked {
				entries = append(entries, b+" blocked")
			}
		}
		slices.Sort(entries)
		if want := s.entries(group, c); !slices.Equal(entries, want) {
			t.Errorf("%v: MDB %q, as bridge says: %q", group, entries, want)
		}
	}
	for group, want := range map[netip.Addr]string{
		groupA: "[any kernel any attachment] any", groupB: "[not fd00:1::a66 kernel not fd00:1::a66 attachment] not fd00:1::a66",
		groupC: "[any attachment] any", groupS: "[fd00:1::a10 kernel] fd00:1::a10",
	} {
		g, _ := s.group(group, c)
		text := func(f filterJSON) string {
			if f.Mode == "exclude" && len(f.Sources) == 0 {
				return "any"
			}
			return strings.TrimPrefix(map[string]string{"exclude": "not "}[f.Mode]+strings.Join(f.Sources, ","), " ")
		}
		var wanted []string
		for _, w := range g.Wanted {
			wanted = append(wanted, text(w.filterJSON)+" "+w.By)
		}
		if g.Reported == nil {
			t.Errorf("%v is not reported", group)
		} else if got := fmt.Sprint(wanted, " ", text(*g.Reported)); got != want || g.ReportedBy != "listener" {
			t.Errorf("%v: %s by %s, want %s", group, got, g.ReportedBy, want)
		}
	}
	var status statusJSON
	s.wait("querier", func() (bool, string) {
		s.query(general, time.Second) // the bridge may ask as well
		code := s.document(&status, "status")
		a := status.Attachments
		return code == 0 && len(a) == 1 && a[0].Querier != nil && a[0].Querier.Address == routerAddr.String(), fmt.Sprintf("%+v", a)
	})
	a := status.Attachments[0]
	if status.Daemon.PID != s.daemon().PID || a.MldVersion != 2 || a.KernelReports != "mute" || a.Declared != 3 ||
		a.Bridge == nil || a.Bridge.Port != c.eth0.Peer().Name() || a.Bridge.Querier != s.bridge.LinkLocal().String() ||
		a.Source != c.eth0.LinkLocal().String() || a.Interface.Ifindex != c.eth0.Index() || a.Reported < 4 || a.Wanted < a.Reported {
		t.Errorf("%+v", status)
	}
}

// startDaemon starts mldd as an administrator would, in the namespace of a node.
func (s *segment) startDaemon(where *netnslab.Node) {
	s.tb.Helper()
	ctx := context.WithoutCancel(s.tb.Context()) // which ends before the clean-up
	cmd := where.Command(ctx, filepath.Join(s.bin, "mldd"), "--run-dir", s.chain.RunDir)
	var log bytes.Buffer
	cmd.Stderr = &log
	if err := cmd.Start(); err != nil {
		s.tb.Fatal(err)
	}
	s.tb.Cleanup(func() {
		_ = cmd.Process.Signal(unix.SIGTERM)
		if err := cmd.Wait(); err != nil || s.tb.Failed() {
			s.tb.Logf("mldd: %v\n%s", err, &log)
		}
	})
	s.wait("mldd", func() (bool, string) {
		_, err := s.chain.Daemon(s.tb.Context())
		return err == nil, fmt.Sprint(err)
	})
}

// What no CNI runtime manages is attached by hand: by the name of a namespace, by its path and by a process.
func TestMldctlAttach(t *testing.T) {
	t.Parallel()
	s := newSegment(t, quiet, nil)
	if _, complaint, code := s.mldctl("attach", "blue"); code != 1 || !strings.Contains(complaint, "/run/netns/blue") {
		t.Errorf("of no namespace: code %d, %s", code, complaint)
	}
	c := s.connect("c1")
	for _, args := range [][]string{{"attach", c.Path()}, {"detach", "blue"}, {"status"}, {"groups"}, {"watch"}} {
		if out, complaint, code := s.mldctl(args...); code != 3 || out != "" || !strings.Contains(complaint, s.chain.RunDir) {
			t.Errorf("mldctl %q without a daemon: code %d, %s%s", args, code, out, complaint)
		}
	}
	s.startDaemon(s.Host())

	sleep := c.Command(t.Context(), "sleep", "infinity")
	if err := sleep.Start(); err != nil {
		t.Fatal(err)
	}
	defer func() {
		_ = sleep.Process.Kill()
		_ = sleep.Wait()
	}()
	name := filepath.Base(s.dir)
	if err := bindNetns(t, c.Path(), name); err != nil {
		t.Fatal(err)
	}
	for _, place := range []struct {
		args []string
		id   string
	}{
		{[]string{name}, name},
		{[]string{c.Path()}, "path-proc-"},
		{[]string{"--pid", strconv.Itoa(sleep.Process.Pid)}, "pid-" + strconv.Itoa(sleep.Process.Pid)},
	} {
		attach := append([]string{"attach", "--mld-version", "1", "--group", groupA.String(), "--group", goodAddr.String() + "@" + groupS.String()}, place.args...)
		if out, complaint, code := s.mldctl(attach...); code != 0 || out != "" || complaint != "" {
			t.Fatalf("mldctl %q: code %d, %s%s", attach, code, out, complaint)
		}
		if !s.inMDB(groupA, c) || !s.inMDB(groupS, c) { // attach has waited for them
			t.Errorf("%q: no entry", attach)
		}
		var status statusJSON
		s.document(&status, "status", "--network", "mldctl")
		if a := status.Attachments; len(a) != 1 || !strings.HasPrefix(a[0].ContainerID, place.id) || a[0].Ifname != "eth0" || a[0].Declared != 2 {
			t.Errorf("%q: %+v", attach, a)
		}
		// The shell completes it, by the argument or the flag that it was attached by.
		last := len(place.args) - 1
		completed := slices.Concat([]string{"__complete", "--run-dir", s.chain.RunDir, "detach"}, place.args[:last], []string{""})
		s.wait(fmt.Sprintf("completion %q", completed), func() (bool, string) { // nobody at a prompt waits for a busy daemon
			out, complaint, _ := s.mldctl(completed...)
			return out == place.args[last]+"\n:4\n", out + complaint
		})
		before := time.Now()
		if out, complaint, code := s.mldctl(append([]string{"detach"}, place.args...)...); code != 0 || out != "" || complaint != "" {
			t.Fatalf("detach %q: code %d, %s%s", place.args, code, out, complaint)
		}
		s.waitSent(c, before, done, groupA, 1)
		status = statusJSON{}
		if s.document(&status, "status"); len(status.Attachments) != 0 {
			t.Errorf("detached: %+v", status.Attachments)
		}
		if _, complaint, code := s.mldctl(append([]string{"detach"}, place.args...)...); code != 1 || !strings.Contains(complaint, "nothing is attached") {
			t.Errorf("detached again: code %d, %s", code, complaint)
		}
		s.waitReleased(c)
	}

	// An interface of the host, if that is said.
	if _, complaint, code := s.mldctl("attach", "--host", "cni0", "--group", groupA.String(), "--mld-version", "1"); code != 0 {
		t.Fatalf("attach --host: code %d, %s", code, complaint)
	}
	if _, ok := s.mdb(groupA)["cni0"]; !ok {
		t.Errorf("attach --host: no entry: %v", s.mdb(groupA))
	}
	if _, complaint, code := s.mldctl("detach", "--host", "cni0"); code != 0 {
		t.Errorf("detach --host: code %d, %s", code, complaint)
	}

	// What is refused, and what is degraded.
	for _, tc := range []struct {
		args []string
		code int
		text string
	}{
		{[]string{"attach", name, "--interface", "eth7"}, 1, "mldctl: --interface eth7: no such interface in " + name + "\n"},
		{[]string{"attach", "--host", "eth7"}, 1, "mldctl: --host eth7: no such interface in the namespace of mldctl\n"},
		{[]string{"attach", s.Host().Path()}, 1, "mldctl: " + s.Host().Path() + ": is the host's namespace: name a container's, or an interface of the host with --host\n"},
		{[]string{"attach", name, "--group", "ff02::1"}, 2, "all-nodes"},
		{[]string{"attach", name, "--group", `{"group": "ff05::8", "mode": "none"}`}, 2, "mode"},
		{[]string{"attach", name, "--robustness", "9"}, 2, "robustness"},
		{[]string{"attach", name, "--pid", "1"}, 2, "one of"},
		{[]string{"attach"}, 2, "one of"},
		{[]string{"attach", "--pid", "-1"}, 2, "--pid"},
		{[]string{"attach", "--host", "cni0", "--interface", "eth0"}, 2, "--interface"},
		{[]string{"attach", name, "--nonsense"}, 2, "nonsense"},
		{[]string{"nonsense"}, 2, "nonsense"},
		{[]string{"groups", "fd00::1"}, 2, "multicast"},
	} {
		if out, complaint, code := s.mldctl(tc.args...); code != tc.code || out != "" || !strings.Contains(complaint, tc.text) {
			t.Errorf("mldctl %q: code %d, %s%s, want code %d and %q", tc.args, code, out, complaint, tc.code, tc.text)
		}
	}
	c.eth0.SetDown()
	var doc struct {
		Attachment struct{ Network, ContainerID, Ifname string }
		Degraded   string
	}
	if code := s.document(&doc, "attach", name, "--group", groupA.String(), "--timeout", "50ms"); code != 1 ||
		doc.Attachment.ContainerID != name || !strings.Contains(doc.Degraded, "not ready after 50ms") {
		t.Errorf("degraded: code %d, %+v", code, doc)
	}
	if _, complaint, code := s.mldctl("attach", "--pid", strconv.Itoa(sleep.Process.Pid), "--group", groupA.String(),
		"--ready", "report", "--timeout", "50ms"); code != 1 || !strings.Contains(complaint, "the link is down") ||
		!strings.HasPrefix(complaint, `mldctl: --ready "report": not ready`) {
		t.Errorf("not ready: code %d, %s", code, complaint)
	}
	var status statusJSON
	if code := s.document(&status, "status"); code != 1 || len(status.Attachments) != 1 || status.Attachments[0].State != "degraded" {
		t.Errorf("status: code %d, %+v", code, status)
	}
}

// The bridges are those of whoever asks, wherever the daemon runs.
func TestMldctlFromAnotherNetns(t *testing.T) {
	t.Parallel()
	s := newSegment(t, quiet, nil)
	elsewhere := s.Node("elsewhere")
	s.startDaemon(elsewhere)
	c := s.connect("c1")
	if _, complaint, code := s.mldctl("attach", c.Path(), "--mld-version", "1", "--group", groupA.String(), "--ready", "mdb"); code != 0 {
		t.Fatalf("attach: code %d, %s", code, complaint)
	}
	var doc struct{ Groups []groupJSON }
	if code := s.document(&doc, "groups", groupA.String()); code != 0 || len(doc.Groups) != 1 || doc.Groups[0].MDB == nil {
		t.Errorf("groups: code %d, %+v", code, doc)
	}
	var status statusJSON
	if code := s.document(&status, "status"); code != 0 || len(status.Attachments) != 1 || status.Attachments[0].Bridge == nil {
		t.Errorf("status: code %d, %+v", code, status)
	}
	var there unix.Stat_t
	if err := unix.Stat(elsewhere.Path(), &there); err != nil {
		t.Fatal(err)
	}
	want := fmt.Sprintf("net:[%d], mldctl's namespace, and eth0 leads to another one: run mldctl in the bridge's", there.Ino)
	for _, command := range []string{"groups", "status"} { // from where no bridge is
		if out, complaint, code := s.mldctlFrom(elsewhere, command); code != 0 || !strings.Contains(out, want) {
			t.Errorf("%s from elsewhere: code %d, %s%s\nwant %q", command, code, out, complaint, want)
		}
	}
	w := s.watch(c, "--json")
	c.eth0.Join(groupB)
	w.inOrder(groupB, "joined", "mdb "+c.eth0.Peer().Name())
	if code := w.stop(); code != 0 {
		t.Errorf("watch: code %d", code)
	}
}

// bindNetns gives a namespace a name as `ip netns` does, in the mount namespace of this process.
func bindNetns(tb testing.TB, path, name string) error {
	const dir = "/run/netns"
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return err
	}
	file := filepath.Join(dir, name)
	if err := os.WriteFile(file, nil, 0o644); err != nil {
		return err
	}
	if err := unix.Mount(path, file, "", unix.MS_BIND, ""); err != nil {
		return err
	}
	tb.Cleanup(func() {
		if err := errors.Join(unix.Unmount(file, unix.MNT_DETACH), os.Remove(file)); err != nil {
			tb.Error(err)
		}
	})
	return nil
}
