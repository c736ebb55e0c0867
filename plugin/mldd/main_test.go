package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/containernetworking/cni/pkg/types"
	"golang.org/x/sys/unix"

	"github.com/seed-aaab8e3a/cni-mld/mld"
	"github.com/seed-aaab8e3a/cni-mld/netnslab"
	"github.com/seed-aaab8e3a/cni-mld/plugin/api"
)

// patience is what nothing in these tests takes on any machine.
const patience = 30 * time.Second

// TestMain makes the test binary the daemon where it is called mldd.
func TestMain(m *testing.M) {
	if filepath.Base(os.Args[0]) == "mldd" {
		main()
		return
	}
	netnslab.Main(m)
}

// command prepares mldd in a node.
func command(t *testing.T, n *netnslab.Node, args ...string) *netnslab.Cmd {
	t.Helper()
	program, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(context.Background(), 2*patience)
	t.Cleanup(cancel)
	cmd := n.Command(ctx, program, args...)
	cmd.Args[0] = "mldd"
	return cmd
}

func exitCode(err error) int {
	var exit *exec.ExitError
	switch {
	case err == nil:
		return 0
	case errors.As(err, &exit):
		return exit.ExitCode()
	}
	return -1
}

func TestFlags(t *testing.T) {
	lab := netnslab.New(t)
	for _, tc := range []struct {
		args []string
		code int
		says string
	}{
		{[]string{"-version"}, 0, "mldd devel\n"},
		{[]string{"-h"}, 0, "usage: mldd [flags]\n\nmldd runs the MLD listeners"},
		{[]string{"-help"}, 0, "-run-dir directory"},
		{[]string{"-wrong"}, exitUsage, "-wrong"},
		{[]string{"-log-level", "loud"}, exitUsage, "loud"},
		{[]string{"-max-groups", "0"}, exitUsage, "--max-groups 0"},
		{[]string{"-max-sources", "-1"}, exitUsage, "--max-sources -1"},
		{[]string{"-max-joined", "0"}, exitUsage, "--max-joined 0"},
		{[]string{"-metrics", "9469"}, exitUsage, `--metrics "9469": must be HOST:PORT`},
		{[]string{"start"}, exitUsage, `unexpected argument "start"`},
		{[]string{"-run-dir", "relative"}, exitUsage, `--run-dir "relative": must be an absolute path`},
		{[]string{"-run-dir", "/nonexistent/mld"}, exitFailure, "create it"},
	} {
		out, err := command(t, lab.Host(), tc.args...).CombinedOutput()
		if code := exitCode(err); code != tc.code || !strings.Contains(string(out), tc.says) {
			t.Errorf("mldd %q: exit code %d, says %q, want %d and %q", tc.args, code, out, tc.code, tc.says)
		}
	}
}

// A process is mldd at work.
type process struct {
	*netnslab.Cmd
	t      *testing.T
	lab    *netnslab.Lab
	runDir string
	stderr bytes.Buffer
}

// start starts mldd as the plugin does, with some more arguments, and waits until it is ready.
func start(t *testing.T, args ...string) *process {
	t.Helper()
	return startBy(t, func(host *netnslab.Node, dir string) *netnslab.Cmd {
		return command(t, host, append(args, "-run-dir", dir, "-self-started")...)
	})
}

// startBy is start by a command, for a host and a run directory.
func startBy(t *testing.T, command func(host *netnslab.Node, dir string) *netnslab.Cmd) *process {
	t.Helper()
	lab := netnslab.New(t)
	dir, err := os.MkdirTemp("", "mldd")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	p := &process{t: t, lab: lab, runDir: dir, Cmd: command(lab.Host(), dir)}
	if p.Stderr == nil {
		p.Stderr = &p.stderr
	}
	ready := p.readiness()
	if err := p.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = p.Process.Kill() // unless it has ended
		_ = p.Wait()
		if t.Failed() {
			t.Logf("mldd: %s", p.stderr.String())
		}
	})
	if said := ready(); said != "ready\n" {
		t.Fatalf("says %q on descriptor 3, want ready", said)
	}
	return p
}

// readiness gives a command its descriptor 3, and returns what reads it to the end.
func (p *process) readiness() func() string {
	p.t.Helper()
	r, w, err := os.Pipe()
	if err != nil {
		p.t.Fatal(err)
	}
	p.ExtraFiles = []*os.File{w}
	return func() string {
		defer r.Close()
		w.Close()
		if err := r.SetReadDeadline(time.Now().Add(patience)); err != nil {
			p.t.Fatal(err)
		}
		said, err := io.ReadAll(r)
		if err != nil {
			p.t.Fatalf("%q, %v", said, err)
		}
		return string(said)
	}
}

func (p *process) call(r *api.Request) *api.Answer {
	p.t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	client, err := api.Dial(p.runDir)
	if err != nil {
		p.t.Fatal(err)
	}
	defer client.Close()
	answer, err := client.Call(ctx, r)
	if err == nil && answer.Error != nil {
		err = answer.Error
	}
	if err != nil {
		p.t.Fatal(err)
	}
	return answer
}

// end sends a signal and waits for the end of the process.
func (p *process) end(s os.Signal) error {
	p.t.Helper()
	if err := p.Process.Signal(s); err != nil {
		p.t.Fatal(err)
	}
	return p.Wait()
}

// TestStatus: what the plugin has started says so, and lets nobody write what it makes.
func TestStatus(t *testing.T) {
	p := start(t)
	s := p.call(&api.Request{Op: api.OpStatus}).Status
	if s.KeeperPID != p.Process.Pid || s.PID == s.KeeperPID || !s.SelfStarted || s.Version != version || s.Attachments != 0 {
		t.Errorf("%+v", s)
	}
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", s.PID))
	if err != nil || !strings.Contains(string(text), "Umask:\t0077") {
		t.Errorf("%v, or another umask: %s", err, text)
	}
	if err := p.end(unix.SIGINT); err != nil {
		t.Errorf("SIGINT: %v", err)
	}
}

// TestDescriptors: at its limit of open files mldd refuses what is new, saying why, and still does all the rest.
func TestDescriptors(t *testing.T) {
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(context.Background(), 2*patience)
	t.Cleanup(cancel)
	p := startBy(t, func(host *netnslab.Node, dir string) *netnslab.Cmd {
		return host.Command(ctx, "bash", "-c", `ulimit -n 120 && exec -a mldd "$0" -run-dir "$1" -self-started`, self, dir)
	})
	add := func(i int) *types.Error {
		t.Helper()
		_, pod := p.lab.Veth(p.lab.Node(fmt.Sprintf("x%d", i)), "eth0", p.lab.Node(fmt.Sprintf("c%d", i)), "eth0")
		client, err := api.Dial(p.runDir)
		if err != nil {
			t.Fatal(err)
		}
		defer client.Close()
		answer, err := client.Call(ctx, p.request(api.OpAdd, pod.Node(), &api.Settings{
			MLDVersion: api.MLDVersionAuto, Profile: api.ProfileRFC, KernelReports: api.KernelReportsAuto,
			Robustness: api.DefaultRobustness, Ready: api.Ready{Wait: api.WaitNone, Timeout: api.Duration(api.DefaultReadyTimeout)},
		}))
		if err != nil {
			t.Fatal(err)
		}
		return answer.Error
	}
	const many = 20
	var refused *types.Error
	n := 0
	for ; refused == nil && n < many; n++ {
		refused = add(n)
	}
	n-- // were not
	if refused == nil || refused.Code != types.ErrTryAgainLater || !strings.Contains(refused.Msg, "mldd may have 120 descriptors open") || n == 0 {
		t.Fatalf("after %d attachments: %v", n, refused)
	}
	if attached := p.status().Attachments; attached != n {
		t.Errorf("%d attachments, want %d", attached, n)
	}
	p.call(&api.Request{Op: api.OpDel, Attachment: api.Attachment{Network: "lab", ContainerID: "c0", IfName: "eth0"}})
	netnslab.WaitFor(t, "room for another one", patience, func() (bool, string) {
		n++
		err := add(n)
		return err == nil, fmt.Sprint(err)
	})
	if err := p.end(unix.SIGTERM); err != nil {
		t.Errorf("%v: %s", err, p.stderr.String())
	}
}

// TestSecond: the second mldd of a run directory says why it is none, to its starter and in its exit code.
func TestSecond(t *testing.T) {
	p := start(t)
	second := &process{t: t, Cmd: command(t, p.lab.Host(), "-run-dir", p.runDir, "-self-started")}
	ready := second.readiness()
	if err := second.Start(); err != nil {
		t.Fatal(err)
	}
	said := ready()
	if code := exitCode(second.Wait()); code != exitFailure || !strings.Contains(said, "another mldd serves this run directory") {
		t.Errorf("exit code %d, says %q", code, said)
	}
	p.call(&api.Request{Op: api.OpStatus})
}

// TestStarterGone: nobody has to read that it is ready.
func TestStarterGone(t *testing.T) {
	p := start(t)
	if err := p.end(unix.SIGTERM); err != nil {
		t.Fatal(err)
	}
	again := &process{t: t, lab: p.lab, runDir: p.runDir, Cmd: command(t, p.lab.Host(), "-run-dir", p.runDir, "-self-started")}
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	r.Close()
	again.ExtraFiles = []*os.File{w}
	if err := again.Start(); err != nil {
		t.Fatal(err)
	}
	w.Close()
	netnslab.WaitFor(t, "mldd that serves", patience, func() (bool, string) {
		client, err := api.Dial(p.runDir)
		if err != nil {
			return false, err.Error()
		}
		return client.Close() == nil, ""
	})
	again.call(&api.Request{Op: api.OpStatus})
	if err := again.end(unix.SIGTERM); err != nil {
		t.Error(err)
	}
}

var (
	declared    = netip.MustParseAddr("ff05::1:1")
	application = netip.MustParseAddr("ff05::1:2")
)

// TestSignals: after SIGTERM what was declared is left; after SIGKILL nobody says so; and either way the kernel
// speaks for its applications again.
func TestSignals(t *testing.T) {
	for _, tc := range []struct {
		signal os.Signal
		code   int
		dones  int
	}{
		{unix.SIGTERM, 0, 1},
		{unix.SIGKILL, -1, 0},
	} {
		t.Run(tc.signal.String(), func(t *testing.T) {
			p := start(t)
			peer, pod := p.lab.Veth(p.lab.Node("peer"), "eth0", p.lab.Node("c1"), "eth0")
			pod.LinkLocal()
			pod.Join(application)
			c := peer.Capture(netnslab.MLD)
			var keys map[string]json.RawMessage
			if err := json.Unmarshal([]byte(`{"groups": [{"group": "ff05::1:1", "deliver": false}], "mldVersion": 1}`), &keys); err != nil {
				t.Fatal(err)
			}
			s, parseErr := api.ParseSettings(keys)
			if parseErr != nil {
				t.Fatal(parseErr)
			}
			answer := p.call(&api.Request{
				Op: api.OpAdd, Attachment: api.Attachment{Network: "lab", ContainerID: "c1", IfName: "eth0"}, Settings: s,
				Netns: pod.Node().Netns().File(), HostNetns: p.lab.Host().Netns().File(),
			})
			if answer.Degraded != "" {
				t.Error(answer.Degraded)
			}
			c.Wait(patience, "Report of the declared group", about(mld.TypeReport, declared))
			if code := exitCode(p.end(tc.signal)); code != tc.code {
				t.Errorf("exit code %d, want %d", code, tc.code)
			}
			peer.SendPacket(mld.AppendQuery(nil, netip.MustParseAddr("fe80::99"), mld.AllNodes,
				mld.Query{Version: mld.Version1, MaxResponseCode: 10}))
			c.Wait(patience, "Query", func(f netnslab.Frame) bool { return f.ICMPv6() == uint8(mld.TypeQuery) })
			c.Wait(patience, "answer of the kernel", about(mld.TypeReport, application))
			dones := 0
			for _, f := range c.Frames() {
				if about(mld.TypeDone, declared)(f) {
					dones++
				}
				if about(mld.TypeDone, application)(f) {
					t.Errorf("leaves what an application wants: %v", f)
				}
			}
			if dones != tc.dones {
				t.Errorf("%d Dones, want %d", dones, tc.dones)
			}
		})
	}
}

// about matches a message of the pod.
func about(kind mld.Type, addr netip.Addr) func(netnslab.Frame) bool {
	return func(f netnslab.Frame) bool {
		p, err := mld.Parse(f.IPv6(), 0)
		return err == nil && !f.Outgoing && p.Message.Type == kind && p.Message.MulticastAddress == addr
	}
}
