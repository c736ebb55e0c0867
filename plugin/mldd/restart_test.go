package main

import (
	"bufio"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/seed-aaab8e3a/cni-mld/mld"
	"github.com/seed-aaab8e3a/cni-mld/netnslab"
	"github.com/seed-aaab8e3a/cni-mld/plugin/api"
)

// add attaches the eth0 of a node.
func (p *process) add(n *netnslab.Node, groups string) *api.Settings {
	p.t.Helper()
	var keys map[string]json.RawMessage
	if err := json.Unmarshal(fmt.Appendf(nil, `{"groups": [%s], "mldVersion": 1, "ready": {"wait": "report"}}`, groups), &keys); err != nil {
		p.t.Fatal(err)
	}
	s, parseErr := api.ParseSettings(keys)
	if parseErr != nil {
		p.t.Fatal(parseErr)
	}
	p.call(p.request(api.OpAdd, n, s))
	return s
}

func (p *process) request(op string, n *netnslab.Node, s *api.Settings) *api.Request {
	return &api.Request{
		Op: op, Attachment: api.Attachment{Network: "lab", ContainerID: n.Name(), IfName: "eth0"}, Settings: s,
		NetnsPath: n.Path(), Netns: n.Netns().File(), HostNetns: p.lab.Host().Netns().File(),
	}
}

func (p *process) status() *api.Status {
	p.t.Helper()
	return p.call(&api.Request{Op: api.OpStatus}).Status
}

// gone waits until a process has ended.
func gone(t *testing.T, pid int) {
	t.Helper()
	fd, err := unix.PidfdOpen(pid, 0)
	if err == unix.ESRCH {
		return
	}
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(fd)
	if n, err := unix.Poll([]unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}, int(patience.Milliseconds())); n != 1 {
		t.Fatalf("process %d has not ended: %v", pid, err)
	}
}

// TestKeeperKilled: without its keeper a worker ends at once, and nothing of it is in the way of the next daemon, which
// knows what stood.
func TestKeeperKilled(t *testing.T) {
	p := start(t)
	peer, pod := p.lab.Veth(p.lab.Node("peer"), "eth0", p.lab.Node("c1"), "eth0")
	pod.LinkLocal()
	c := peer.Capture(netnslab.MLD)
	s := p.add(pod.Node(), `"ff05::1:1"`)
	before := p.status()
	if code := exitCode(p.end(unix.SIGKILL)); code != -1 {
		t.Errorf("exit code %d", code)
	}
	gone(t, before.PID)

	again := &process{t: t, lab: p.lab, runDir: p.runDir, Cmd: command(t, p.lab.Host(), "-run-dir", p.runDir, "-self-started")}
	again.Stderr = &again.stderr
	ready := again.readiness()
	if err := again.Start(); err != nil {
		t.Fatal(err)
	}
	if said := ready(); said != "ready\n" {
		t.Fatalf("says %q: %s", said, again.stderr.String())
	}
	again.call(again.request(api.OpCheck, pod.Node(), s))
	c.Wait(patience, "Report", about(mld.TypeReport, declared))
	if err := again.end(unix.SIGTERM); err != nil {
		t.Error(err)
	}
	c.Wait(patience, "Done", about(mld.TypeDone, declared))
}

// TestWorkerStopped: a worker that is told to stop takes its keeper with it, as under a service manager that tells
// both.
func TestWorkerStopped(t *testing.T) {
	p := start(t)
	if err := unix.Kill(p.status().PID, unix.SIGTERM); err != nil {
		t.Fatal(err)
	}
	if err := p.Wait(); err != nil {
		t.Errorf("%v: %s", err, p.stderr.String())
	}
	if _, err := os.Stat(api.SocketPath(p.runDir)); !os.IsNotExist(err) {
		t.Errorf("the socket is left: %v", err)
	}
}

// ourselves is the program that runs the tests, and is mldd as well.
func ourselves(t *testing.T) []byte {
	t.Helper()
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	data, err := os.ReadFile(self)
	if err != nil {
		t.Fatal(err)
	}
	return data
}

// install puts a program at a path, in place of the one that may run there.
func install(t *testing.T, path string, program []byte) {
	t.Helper()
	if err := os.WriteFile(path+".new", program, 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.Rename(path+".new", path); err != nil {
		t.Fatal(err)
	}
}

// TestNewBinary: a reload takes the program that is at the path now.
func TestNewBinary(t *testing.T) {
	self := ourselves(t)
	var program string
	p := startBy(t, func(host *netnslab.Node, dir string) *netnslab.Cmd {
		program = filepath.Join(dir, "mldd")
		install(t, program, self)
		return host.Command(t.Context(), program, "-run-dir", dir, "-self-started")
	})
	before := p.status()
	install(t, program, self)
	file, err := os.Stat(program)
	if err != nil {
		t.Fatal(err)
	}
	if err := p.Process.Signal(unix.SIGHUP); err != nil {
		t.Fatal(err)
	}
	netnslab.WaitFor(t, "the next worker", patience, func() (bool, string) {
		now := p.status()
		return now.PID != before.PID, fmt.Sprintf("%+v", now)
	})
	for pid, want := range map[int]bool{p.status().PID: true, p.Process.Pid: false} {
		if info, err := os.Stat(fmt.Sprintf("/proc/%d/exe", pid)); err != nil || os.SameFile(info, file) != want {
			t.Errorf("process %d runs the new program: %v, %v, want %v", pid, !want, err, want)
		}
	}
	if err := p.end(unix.SIGTERM); err != nil {
		t.Error(err)
	}
}

// TestBrokenBinary: a reload with a program that cannot be started changes nothing, and says so.
func TestBrokenBinary(t *testing.T) {
	lab := netnslab.New(t)
	dir, err := os.MkdirTemp("", "mldd")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	self, program := ourselves(t), filepath.Join(dir, "mldd")
	install(t, program, self)
	m := newManager(t, dir)
	p := &process{t: t, lab: lab, runDir: dir, Cmd: lab.Host().Command(t.Context(), program, "-run-dir", dir)}
	p.Stderr = &p.stderr
	p.Env = append(os.Environ(), "NOTIFY_SOCKET="+m.path)
	if err := p.Start(); err != nil {
		t.Fatal(err)
	}
	m.want("READY=1")
	_, pod := lab.Veth(lab.Node("peer"), "eth0", lab.Node("c1"), "eth0")
	pod.LinkLocal()
	s := p.add(pod.Node(), `"ff05::1:1"`)
	before := p.status().PID
	for what, script := range map[string]string{
		"missing":      "",
		"exits with 1": "#!/bin/sh\nexit 1\n",
		"does not end": "#!/bin/sh\nsleep 1000\n",
	} {
		if script != "" {
			install(t, program, []byte(script))
		} else if err := os.Remove(program); err != nil {
			t.Fatal(err)
		}
		if err := p.Process.Signal(unix.SIGHUP); err != nil {
			t.Fatal(err)
		}
		m.want("RELOADING=1", "MONOTONIC_USEC=")
		m.want("READY=1")
		if now := p.status(); now.PID != before || now.Attachments != 1 {
			t.Errorf("%s: %+v, want the worker %d", what, now, before)
		}
		p.call(p.request(api.OpCheck, pod.Node(), s))
	}
	install(t, program, self)
	if err := p.Process.Signal(unix.SIGHUP); err != nil {
		t.Fatal(err)
	}
	m.want("RELOADING=1")
	m.want("READY=1")
	if now := p.status(); now.PID == before || now.Attachments != 1 {
		t.Errorf("%+v, want another worker than %d", now, before)
	}
	if err := p.end(unix.SIGTERM); err != nil {
		t.Error(err)
	}
	for _, cause := range []string{"no such file or directory", "exit status 1", "-version does not end within 5s"} {
		if log := p.stderr.String(); !strings.Contains(log, cause) || !strings.Contains(log, "path="+program) {
			t.Errorf("no %q of %s in the log: %s", cause, program, log)
		}
	}
}

// A manager is what systemd is to its services: it has a socket for them, and hears what they say.
type manager struct {
	t    *testing.T
	conn *net.UnixConn
	path string
}

func newManager(t *testing.T, dir string) *manager {
	t.Helper()
	m := &manager{t: t, path: filepath.Join(dir, "notify")}
	var err error
	if m.conn, err = net.ListenUnixgram("unixgram", &net.UnixAddr{Name: m.path, Net: "unixgram"}); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { m.conn.Close() })
	return m
}

func (m *manager) want(says ...string) {
	m.t.Helper()
	if err := m.conn.SetReadDeadline(time.Now().Add(patience)); err != nil {
		m.t.Fatal(err)
	}
	buf := make([]byte, 1000)
	n, err := m.conn.Read(buf)
	if err != nil {
		m.t.Fatalf("%v, want %q", err, says)
	}
	for _, part := range says {
		if !strings.Contains(string(buf[:n]), part) {
			m.t.Errorf("%q, want %q", buf[:n], says)
		}
	}
}

// TestService: a service manager passes the socket, where clients may wait before there is a daemon, hears when it is
// ready, reloading and stopping, and keeps the socket.
func TestService(t *testing.T) {
	lab := netnslab.New(t)
	dir, err := os.MkdirTemp("", "mldd")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	m := newManager(t, dir)
	service := func(l *net.UnixListener) *process {
		t.Helper()
		f, err := l.File()
		if err != nil {
			t.Fatal(err)
		}
		defer f.Close()
		self, err := os.Executable()
		if err != nil {
			t.Fatal(err)
		}
		p := &process{t: t, lab: lab, runDir: dir, Cmd: lab.Host().Command(t.Context(), "bash", "-c",
			`LISTEN_PID=$$ exec -a mldd "$0" -run-dir "$1"`, self, dir)}
		p.Stderr = &p.stderr
		p.Env = append(os.Environ(), "NOTIFY_SOCKET="+m.path, "LISTEN_FDS=1")
		p.ExtraFiles = []*os.File{f}
		if err := p.Start(); err != nil {
			t.Fatal(err)
		}
		return p
	}
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: api.SocketPath(dir), Net: "unix"})
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	client, err := api.Dial(dir) // before there is a daemon
	if err != nil {
		t.Fatal(err)
	}
	defer client.Close()
	p := service(l)
	m.want("READY=1")
	answer, err := client.Call(t.Context(), &api.Request{Op: api.OpStatus})
	if err != nil || answer.Status == nil || answer.Status.KeeperPID != p.Process.Pid {
		t.Errorf("%+v, %v", answer, err)
	}
	if err := p.Process.Signal(unix.SIGHUP); err != nil {
		t.Fatal(err)
	}
	m.want("RELOADING=1", "MONOTONIC_USEC=")
	m.want("READY=1")
	environ, err := os.ReadFile(fmt.Sprintf("/proc/%d/environ", p.status().PID))
	if err != nil || strings.Contains(string(environ), "LISTEN_") {
		t.Errorf("environment of the worker: %q, %v", environ, err)
	}
	if err := p.Process.Signal(unix.SIGTERM); err != nil {
		t.Fatal(err)
	}
	m.want("STOPPING=1")
	if err := p.Wait(); err != nil {
		t.Errorf("%v: %s", err, p.stderr.String())
	}
	if _, err := os.Stat(api.SocketPath(dir)); err != nil {
		t.Errorf("the service manager's socket: %v", err)
	}

	other, err := net.ListenUnix("unix", &net.UnixAddr{Name: filepath.Join(dir, "other.sock"), Net: "unix"})
	if err != nil {
		t.Fatal(err)
	}
	defer other.Close()
	p = service(other)
	if code := exitCode(p.Wait()); code != exitFailure || !strings.Contains(p.stderr.String(), "must be "+api.SocketPath(dir)) {
		t.Errorf("another socket: exit code %d, %s", code, p.stderr.String())
	}
}

// TestSIGHUP: on the wire nobody notices a reload of an MLDv1 listener.
func TestSIGHUP(t *testing.T) {
	p := start(t)
	peer, pod := p.lab.Veth(p.lab.Node("peer"), "eth0", p.lab.Node("c1"), "eth0")
	pod.LinkLocal()
	c := peer.Capture(netnslab.MLD)
	s := p.add(pod.Node(), `"ff05::1:1"`)
	before := p.status()
	since := time.Now()
	if err := p.Process.Signal(unix.SIGHUP); err != nil {
		t.Fatal(err)
	}
	netnslab.WaitFor(t, "the next worker", patience, func() (bool, string) {
		now := p.status()
		return now.PID != before.PID && now.KeeperPID == before.KeeperPID && now.Attachments == 1, fmt.Sprintf("%+v", now)
	})
	p.call(p.request(api.OpCheck, pod.Node(), s))
	// Whoever asks is answered by the new listener, and by nobody else.
	peer.SendPacket(mld.AppendQuery(nil, netip.MustParseAddr("fe80::99"), declared,
		mld.Query{Version: mld.Version1, MulticastAddress: declared, MaxResponseCode: 10}))
	c.Wait(patience, "Report", about(mld.TypeReport, declared))
	p.add(pod.Node(), `"ff05::1:2"`)
	c.Wait(patience, "Done", about(mld.TypeDone, declared)) // of the change, which only a listener in charge tells
	dones := 0
	for _, f := range c.Frames() {
		if f.Time.After(since) && about(mld.TypeDone, declared)(f) {
			dones++
		}
	}
	if dones != 1 {
		t.Errorf("%d Dones, want 1", dones)
	}
}

// TestStopInHandover: also who is told to stop while one worker follows another leaves what is declared.
func TestStopInHandover(t *testing.T) {
	p := start(t)
	peer, pod := p.lab.Veth(p.lab.Node("peer"), "eth0", p.lab.Node("c1"), "eth0")
	pod.LinkLocal()
	_, down := p.lab.Veth(p.lab.Node("peer2"), "eth0", p.lab.Node("c2"), "eth0", netnslab.Down)
	c := peer.Capture(netnslab.MLD)
	s := p.add(pod.Node(), `{"group": "ff05::1:1", "deliver": false}`)

	watch, err := net.Dial("unix", api.SocketPath(p.runDir))
	if err != nil {
		t.Fatal(err)
	}
	defer watch.Close()
	if err := watch.SetDeadline(time.Now().Add(patience)); err != nil {
		t.Fatal(err)
	}
	if _, err := io.WriteString(watch, `{"v":1,"op":"watch"}`+"\n"); err != nil {
		t.Fatal(err)
	}
	events := bufio.NewReader(watch)
	if answer, err := events.ReadString('\n'); err != nil {
		t.Fatalf("%q, %v", answer, err)
	}
	waits := *s // for what does not come, and holds the handover up
	waits.Ready.Timeout = api.Duration(3 * time.Second)
	refused := make(chan error, 1)
	go func() {
		_, err := api.Exchange(t.Context(), p.runDir, p.request(api.OpAdd, down.Node(), &waits))
		refused <- err
	}()
	netnslab.WaitFor(t, "ADD that waits", patience, func() (bool, string) {
		now := p.status()
		return now.Attachments == 2, fmt.Sprintf("%+v", now)
	})
	if err := p.Process.Signal(unix.SIGHUP); err != nil {
		t.Fatal(err)
	}
	if _, err := io.Copy(io.Discard, events); err != nil { // ends with the watch
		t.Fatal(err)
	}
	if err := p.end(unix.SIGTERM); err != nil {
		t.Error(err)
	}
	if err := <-refused; err == nil || !strings.Contains(err.Error(), "not ready after 3s") {
		t.Errorf("the ADD that waits: %v", err)
	}
	c.Wait(patience, "Done", about(mld.TypeDone, declared))
}
