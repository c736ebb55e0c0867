package runtimes

import (
	"context"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	"github.com/seed-aaab8e3a/cni-mld/netnslab"
	"github.com/seed-aaab8e3a/cni-mld/plugin/api"
)

// enter puts a shell into a cgroup of its own, which boot then takes for the root.
const enter = `
	mount --make-rprivate / && mount -t cgroup2 cgroup /sys/fs/cgroup &&
	mkdir -p /sys/fs/cgroup/$` + cgroupEnv + `/systemd && echo $$ > /sys/fs/cgroup/$` + cgroupEnv + `/systemd/cgroup.procs &&
	exec unshare --cgroup --mount --pid --fork --kill-child --mount-proc --uts --ipc sh -euc "$1" sh "$2"`

// boot makes of a process the first one of a machine, which has the units of the directory $1. Of those of its system none
// begins by itself, and no device, disk or console is ours to set up.
const boot = `
	umount /sys/fs/cgroup; mount -t cgroup2 cgroup /sys/fs/cgroup
	mount -t tmpfs -o mode=0755 run /run
	mkdir -p /run/log/journal
	mount -t tmpfs log /var/log
	for dir in /lib/systemd/system/*.target.wants /lib/systemd/system-generators; do mount -t tmpfs none $dir; done
	touch /run/fstab; mount --bind /run/fstab /etc/fstab
	mount -t tmpfs units /etc/systemd/system
	cp "$1"/* /etc/systemd/system
	printf '%s\n' [Unit] 'Requires=basic.target systemd-journald.socket' After=basic.target >/etc/systemd/system/boot.target
	container=other exec /lib/systemd/systemd --unit=boot.target`

// A machine is one that systemd has booted, on the host's network.
type machine struct {
	*host
	init int // its first process
}

// boot boots a machine that has the units of mldd, and has started none. It ends with the test.
func (h *host) boot() *machine {
	h.t.Helper()
	ctx, shutDown := context.WithCancel(context.Background())
	cmd := h.Host().Command(ctx, "unshare", "--mount", "sh", "-euc", enter, "sh", boot, filepath.Join(root, "plugin/deploy/systemd"))
	var said strings.Builder
	cmd.Stdout, cmd.Stderr = &said, &said
	if err := cmd.Start(); err != nil {
		shutDown()
		h.t.Fatal(err)
	}
	m := &machine{host: h}
	h.t.Cleanup(func() {
		if h.t.Failed() {
			log, _ := m.command("sh", "-c", "journalctl --no-pager -u mldd; cat "+api.LogPath(api.DefaultRunDir)).CombinedOutput()
			h.t.Logf("the journal, and the log of a daemon that the plugin has started:\n%s", log)
		}
		shutDown() // and what it has made ends with it
		_ = cmd.Wait()
		h.ended("systemd")
	})
	h.wait("systemd", func() (bool, string) {
		// Between the shell, which becomes unshare, and systemd there is no other process.
		text, _ := os.ReadFile(fmt.Sprintf("/proc/%d/task/%d/children", cmd.Process.Pid, cmd.Process.Pid))
		m.init, _ = strconv.Atoi(strings.TrimSpace(string(text)))
		if m.init == 0 {
			return false, "no process yet"
		}
		out, err := m.command("systemctl", "is-active", "boot.target").CombinedOutput()
		return err == nil, string(out)
	})
	return m
}

// command prepares a program that runs on the machine.
func (m *machine) command(args ...string) *netnslab.Cmd {
	return m.host.command("nsenter", append([]string{"--target", strconv.Itoa(m.init), "--all", "--"}, args...)...)
}

func (m *machine) run(args ...string) string {
	m.t.Helper()
	out, err := m.command(args...).CombinedOutput()
	if err != nil {
		m.t.Fatalf("%q: %v\n%s", args, err, out)
	}
	return strings.TrimSpace(string(out))
}

// add makes a container of the machine and attaches it.
func (m *machine) add(container string) {
	m.t.Helper()
	m.run("ip", "netns", "add", container)
	if err := m.cnitool("add", container); err != nil {
		m.t.Fatal(err)
	}
}

// del takes back what add has done, and waits until the bridge knows.
func (m *machine) del(containers ...string) {
	m.t.Helper()
	for _, container := range containers {
		if err := m.cnitool("del", container); err != nil {
			m.t.Error(err)
		}
		m.run("ip", "netns", "del", container)
	}
	m.left()
}

// left waits until no container has an entry for the group.
func (m *machine) left() {
	m.t.Helper()
	m.wait("leave", func() (bool, string) { n := m.mdb(groupA); return n == 0, fmt.Sprint(n) })
}

// cnitool runs a verb for a container of the machine.
func (m *machine) cnitool(verb, container string) error {
	out, err := m.command("env", "CNI_PATH="+binDir, "cnitool", verb, m.network, "/run/netns/"+container).CombinedOutput()
	if err != nil {
		return fmt.Errorf("cnitool %s for %s: %w: %s", verb, container, err, out)
	}
	return nil
}

// show is a property of the service.
func (m *machine) show(property string) string {
	m.t.Helper()
	return m.run("systemctl", "show", "--value", "--property", property, "mldd.service")
}

// pids are the processes of the service: the keeper, which is the main one, and the workers.
func (m *machine) pids() (keeper string, workers []string) {
	m.t.Helper()
	keeper = m.show("MainPID")
	// Without a process there is no cgroup.
	list, _ := m.command("cat", "/sys/fs/cgroup/system.slice/mldd.service/cgroup.procs").Output()
	for _, pid := range strings.Fields(string(list)) {
		if pid != keeper {
			workers = append(workers, pid)
		}
	}
	return keeper, workers
}

// forwarded waits until CHECK passes for all containers, the group of each is in the MDB, and one worker is at work other
// than a former one.
func (m *machine) forwarded(former string, containers ...string) (keeper, worker string) {
	m.t.Helper()
	m.wait("daemon at work", func() (bool, string) {
		var workers []string
		keeper, workers = m.pids()
		if len(workers) != 1 || workers[0] == former {
			return false, fmt.Sprintf("keeper %s, workers %q", keeper, workers)
		}
		worker = workers[0]
		for _, c := range containers {
			if err := m.cnitool("check", c); err != nil {
				return false, err.Error()
			}
		}
		return m.mdb(groupA) == len(containers), m.host.run("bridge", "mdb", "show", "dev", "cni0")
	})
	return keeper, worker
}

// systemd has the socket and starts the service for the first ADD, within the limits of the unit; and it reloads,
// restarts and stops it, and brings it back.
func TestSystemd(t *testing.T) {
	h := newHost(t, 1)
	h.configure(confDir, "1.1.0", "mld", map[string]any{"groups": []netip.Addr{groupA}, "robustness": 1})
	m := h.boot()
	t.Log(m.run("systemctl", "--version"))
	m.run("systemctl", "start", "mldd.socket")
	if pid := m.show("MainPID"); pid != "0" {
		t.Fatalf("process %s runs before somebody has called", pid)
	}
	m.add("one")
	keeper, worker := m.forwarded("", "one")
	for _, pid := range []string{keeper, worker} {
		status := m.run("cat", "/proc/"+pid+"/status")
		for _, limit := range []string{"NoNewPrivs:\t1\n", "Seccomp:\t2\n", "CapBnd:\t0000000000283000\n"} {
			if !strings.Contains(status, limit) {
				t.Errorf("process %s is not within the limits of the unit, %q:\n%s", pid, limit, status)
			}
		}
	}
	m.add("two") // of whose namespace the service has to find the path afterwards

	m.run("systemctl", "reload", "mldd")
	before := keeper
	if keeper, worker = m.forwarded(worker, "one", "two"); keeper != before {
		t.Errorf("a reload has replaced the keeper %s by %s", before, keeper)
	}
	m.run("kill", "-KILL", worker)
	if keeper, worker = m.forwarded(worker, "one", "two"); keeper != before {
		t.Errorf("the end of a worker has replaced the keeper %s by %s", before, keeper)
	}
	m.run("kill", "-KILL", keeper)
	if keeper, worker = m.forwarded(worker, "one", "two"); keeper == before {
		t.Errorf("the keeper %s is still the main process", keeper)
	}
	m.run("systemctl", "restart", "mldd")
	_, worker = m.forwarded(worker, "one", "two")

	m.run("systemctl", "stop", "mldd.service")
	m.left()
	if state := m.show("ActiveState"); state != "inactive" {
		t.Errorf("stopped, the service is %s", state)
	}
	if err := m.cnitool("check", "one"); err != nil { // which calls it back
		t.Error(err)
	}
	m.forwarded(worker, "one", "two")
	m.del("one", "two")
	m.run("systemctl", "stop", "mldd.socket", "mldd.service")
	h.ended("mldd")
}

// A daemon that the plugin has started makes room for the service, which begins at once and goes on with what is attached;
// and after somebody has removed the socket, both units begin anew.
func TestSystemdTakesOver(t *testing.T) {
	h := newHost(t, 1)
	h.configure(confDir, "1.1.0", "mld", map[string]any{"groups": []netip.Addr{groupA}, "robustness": 1})
	m := h.boot()
	m.add("one")
	if pid := m.show("MainPID"); pid != "0" || len(processes("mldd")) == 0 {
		t.Fatalf("the service has process %s, before it was started", pid)
	}
	m.run("systemctl", "enable", "--now", "mldd.service")
	_, worker := m.forwarded("", "one") // which calls it only when it is there
	m.run("systemctl", "is-enabled", "mldd.socket")

	m.run("rm", api.SocketPath(api.DefaultRunDir))
	h.ended("mldd")
	m.run("systemctl", "restart", "mldd.socket", "mldd.service")
	m.forwarded(worker, "one")

	m.del("one")
	m.run("systemctl", "disable", "--now", "mldd.socket", "mldd.service")
	h.ended("mldd")
}
