package e2e

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/seed-aaab8e3a/cni-mld/e2e/chain"
)

// A replayed is one thing that a runtime does: it calls the plugin, or ends the container.
type replayed struct {
	command    string // CNI_COMMAND; "end": the container's process and the name of its namespace go
	noNetns    bool   // CNI_NETNS is empty
	args       string // CNI_ARGS
	prevResult bool
}

// What runtimes send was measured with a spy; e2e/runtimes measures it again.
var replays = []struct {
	runtime string
	version string // of CNI
	id      string
	netns   string     // the path of the namespace, with a number to be put in; empty: /proc/PID/ns/net
	add     []replayed // what the runtime does for a container,
	del     []replayed // and at its end
}{
	{
		runtime: "containerd", version: "1.0.0", id: strings.Repeat("c0", 32),
		netns: "/var/run/netns/cni-%08x-f671-b893-9fb9-3408b774843e",
		add:   []replayed{{command: "ADD", args: podArgs(0, 1, 2, 3, 4), prevResult: true}},
		del: []replayed{
			{command: "DEL", args: podArgs(2, 3, 4, 0, 1), prevResult: true},
			{command: "end"},
			{command: "DEL", args: podArgs(4, 0, 3, 1, 2), noNetns: true},
		},
	},
	{
		runtime: "ctr", version: "1.0.0", id: "default-alice",
		add: []replayed{{command: "ADD", prevResult: true}},
		del: []replayed{{command: "end"}, {command: "DEL", noNetns: true, prevResult: true}},
	},
	{
		runtime: "podman", version: "1.0.0", id: strings.Repeat("b0", 32),
		netns: "/run/netns/netns-%08x-a91c-49a4-63b4-03bb32e39b70",
		add: []replayed{
			{command: "VERSION"}, {command: "ADD", args: "IgnoreUnknown=1;K8S_POD_NAME=alice", prevResult: true},
		},
		del: []replayed{
			{command: "VERSION"}, {command: "DEL", args: "IgnoreUnknown=1;K8S_POD_NAME=alice", prevResult: true},
			{command: "end"},
		},
	},
	{
		runtime: "cnitool", version: "1.1.0", id: "cnitool-8d229ccca37109d5fd8e",
		netns: "/run/netns/alice-%d",
		add:   []replayed{{command: "STATUS"}, {command: "ADD", prevResult: true}, {command: "CHECK", prevResult: true}},
		del:   []replayed{{command: "DEL", prevResult: true}, {command: "DEL"}, {command: "GC"}, {command: "end"}},
	},
}

// podArgs is the CNI_ARGS of Kubernetes in some order.
func podArgs(order ...int) string {
	args := []string{
		"IgnoreUnknown=1", "K8S_POD_NAMESPACE=default", "K8S_POD_NAME=alice",
		"K8S_POD_INFRA_CONTAINER_ID=" + strings.Repeat("c0", 32), "K8S_POD_UID=5f3a",
	}
	var ordered []string
	for _, i := range order {
		ordered = append(ordered, args[i])
	}
	return strings.Join(ordered, ";")
}

// Whatever a runtime sends, its container is attached once by any number of ADDs, and nothing is left of it after its
// DELs, with a daemon or without one.
func TestReplay(t *testing.T) {
	t.Parallel()
	for _, r := range replays {
		for _, killed := range []bool{false, true} {
			name := r.runtime
			if killed {
				name += " and the daemon is killed"
			}
			t.Run(name, func(t *testing.T) {
				t.Parallel()
				s := newSegment(t, quiet, nil)
				p := s.startProcess(r.netns)
				play := func(steps []replayed) {
					t.Helper()
					for _, step := range steps {
						if step.command == "end" {
							p.end()
							continue
						}
						p.replay(r.version, r.id, step)
					}
				}
				kill := func() {
					t.Helper()
					if killed {
						s.killDaemon()
					}
				}
				attached := func() {
					t.Helper()
					if ports := slices.Collect(maps.Keys(s.mdb(groupA))); !slices.Equal(ports, []string{p.port}) {
						t.Errorf("the MDB has %v on %q, want %s", groupA, ports, p.port)
					}
					if n := s.daemon().Attachments; n != 1 {
						t.Errorf("the daemon has %d attachments, want 1", n)
					}
				}

				play(r.add)
				attached()
				kill()
				play(r.add) // once more
				attached()
				s.settle()
				if dones := s.dones(groupA); dones > 0 && !killed { // the kernel of the container leaves with the daemon
					t.Errorf("%d Dones for %v before DEL", dones, groupA)
				}

				kill()
				play(r.del)
				p.waitReleased()
				if ports := s.mdb(groupA); len(ports) > 0 {
					t.Errorf("the MDB still has %v on %v", groupA, ports)
				}
				if killed {
					if daemons := s.daemons(); len(daemons) > 0 {
						t.Errorf("daemons %v have been started for a DEL", daemons)
					}
					return
				}
				if n := s.daemon().Attachments; n != 0 {
					t.Errorf("the daemon has %d attachments, want none", n)
				}
				s.settle()
				if s.dones(groupA) == 0 {
					t.Errorf("no Done for %v", groupA)
				}
			})
		}
	}
}

// killDaemon kills every process of the daemon, and waits until they hold nothing.
func (s *segment) killDaemon() {
	s.tb.Helper()
	s.wait("end of mldd", func() (bool, string) {
		daemons := s.daemons()
		for _, pid := range daemons {
			fd, err := unix.PidfdOpen(pid, unix.PIDFD_NONBLOCK)
			if errors.Is(err, unix.ESRCH) {
				continue
			}
			if err == nil {
				err = unix.PidfdSendSignal(fd, unix.SIGKILL, nil, 0)
			}
			if err != nil && !errors.Is(err, unix.ESRCH) {
				s.tb.Fatal(err)
			}
			f := os.NewFile(uintptr(fd), "mldd")
			s.waitEnd(f)
			_ = f.Close()
		}
		return len(daemons) == 0, fmt.Sprint(daemons)
	})
}

// dones counts the Dones for a group that the router has heard.
func (s *segment) dones(group netip.Addr) (n int) {
	for _, f := range s.heard.Frames() {
		if f.ICMPv6() == done && messageOf(f).group == group {
			n++
		}
	}
	return n
}

// A process is a container as runtimes make it: a process in a namespace that ends with it, unless the path of the
// namespace or somebody's descriptor keeps it.
type process struct {
	s     *segment
	netns string // path of the namespace
	port  string // of the bridge
	end   func() // of the process and the path
}

// startProcess starts a container with an interface on the bridge.
func (s *segment) startProcess(netns string) *process {
	s.tb.Helper()
	p := &process{s: s, port: "far"}
	ctx, cancel := context.WithCancel(context.Background())
	sleep := s.Host().Command(ctx, "unshare", "-n", "sleep", "infinity")
	if err := sleep.Start(); err != nil {
		cancel()
		s.tb.Fatal(err)
	}
	p.end = sync.OnceFunc(func() {
		if netns != "" {
			if err := errors.Join(unix.Unmount(p.netns, unix.MNT_DETACH), os.Remove(p.netns)); err != nil {
				s.tb.Error(err)
			}
		}
		cancel()
		_ = sleep.Wait() // killed
	})
	s.tb.Cleanup(p.end)
	pid := strconv.Itoa(sleep.Process.Pid)
	p.netns = "/proc/" + pid + "/ns/net"
	s.wait("namespace of its own", func() (bool, string) {
		name, err := os.ReadFile("/proc/" + pid + "/comm")
		return string(name) == "sleep\n", fmt.Sprint(string(name), err)
	})
	if netns != "" {
		path := fmt.Sprintf(netns, sleep.Process.Pid)
		err := errors.Join(os.MkdirAll(filepath.Dir(path), 0o755), os.WriteFile(path, nil, 0o600))
		if err := errors.Join(err, unix.Mount(p.netns, path, "", unix.MS_BIND, "")); err != nil {
			s.tb.Fatal(err)
		}
		p.netns = path
	}
	s.run("ip", "link", "add", p.port, "master", "cni0", "up", "type", "veth", "peer", "name", chain.IfName, "netns", pid)
	for _, command := range []string{ // as the bridge plugin does
		"echo 0 > /proc/sys/net/ipv6/conf/" + chain.IfName + "/accept_dad", "ip link set dev " + chain.IfName + " up",
	} {
		s.run("nsenter", "--net="+p.netns, "sh", "-c", command)
	}
	return p
}

// waitReleased waits until the namespace has ended, and the port with it.
func (p *process) waitReleased() {
	p.s.tb.Helper()
	p.s.wait("end of the link", func() (bool, string) {
		out, err := p.s.Host().Command(p.s.tb.Context(), "ip", "link", "show", "dev", p.port).CombinedOutput()
		return err != nil, string(out)
	})
}

// replay calls the plugin as a runtime does. It must succeed.
func (p *process) replay(version, id string, r replayed) {
	s := p.s
	s.tb.Helper()
	env := map[string]string{
		"PATH": os.Getenv("PATH"), "CNI_COMMAND": r.command, "CNI_PATH": s.bin, "CNI_CONTAINERID": id,
		"CNI_IFNAME": chain.IfName, "CNI_NETNS": p.netns, "CNI_ARGS": r.args,
	}
	conf := speaking(map[string]any{
		"cniVersion": version, "name": "lab", "type": "mld", "runDir": s.chain.RunDir, "groups": []netip.Addr{groupA},
	})
	switch r.command {
	case "VERSION": // libcni asks so
		maps.Copy(env, map[string]string{
			"CNI_PATH": "dummy", "CNI_CONTAINERID": "", "CNI_IFNAME": "dummy", "CNI_NETNS": "dummy",
		})
		conf = map[string]any{"cniVersion": version}
	case "STATUS", "GC":
		maps.Copy(env, map[string]string{"CNI_CONTAINERID": "", "CNI_IFNAME": "", "CNI_NETNS": ""})
	}
	if r.noNetns {
		env["CNI_NETNS"] = ""
	}
	if r.prevResult {
		conf["prevResult"] = map[string]any{
			"cniVersion": version,
			"interfaces": []map[string]string{
				{"name": "cni0", "mac": "02:00:00:00:00:01"}, {"name": p.port, "mac": "02:00:00:00:00:02"},
				{"name": chain.IfName, "mac": "02:00:00:00:00:03", "sandbox": p.netns},
			},
			"ips": []map[string]any{{"interface": 2, "address": "fd00:1::100/64", "gateway": "fd00:1::1"}},
			"dns": map[string]any{},
		}
	}
	stdin, err := json.Marshal(conf)
	if err != nil {
		s.tb.Fatal(err)
	}
	plugin := s.Host().Command(s.tb.Context(), filepath.Join(s.bin, "mld"))
	plugin.Stdin = bytes.NewReader(stdin)
	for key, value := range env {
		plugin.Env = append(plugin.Env, key+"="+value)
	}
	out, err := plugin.Output()
	if err != nil {
		s.tb.Errorf("%s: %v: %s", r.command, err, out)
	}
	var said struct{ SupportedVersions []string }
	if r.command == "VERSION" && (json.Unmarshal(out, &said) != nil || !slices.Contains(said.SupportedVersions, version)) {
		s.tb.Errorf("VERSION says %s: want %s", out, version)
	}
}
