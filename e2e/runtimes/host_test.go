package runtimes

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
	"strconv"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/seed-aaab8e3a/cni-mld/mld"
	"github.com/seed-aaab8e3a/cni-mld/netnslab"
	"github.com/seed-aaab8e3a/cni-mld/plugin/api"
)

// patience is the ceiling of every wait for what is sure to come soon.
const patience = 30 * time.Second

// port is the UDP port of the receivers.
const port = "5000"

const (
	confDir = "/etc/cni/net.d"
	leases  = "/var/lib/cni/networks" // of host-local: a file for each address
	results = "/var/lib/cni/results"  // of libcni: a file for each attachment
)

var (
	groupA = netip.MustParseAddr("ff05::4321")
	groupB = netip.MustParseAddr("ff05::1234")
	ssm    = netip.MustParseAddr("ff3e::8000:2")
	source = netip.MustParseAddr("fd00:1::10") // the sender's address
)

// A host has a bridge, and somebody who sends and somebody who hears what is flooded.
type host struct {
	*netnslab.Lab
	t       *testing.T
	network string // the name of its configuration, that of the test
	bridge  *netnslab.Bridge
	sender  *netnslab.Endpoint
	flooded *netnslab.Capture // at a port that nobody has reported a group on
}

// newHost makes a host whose bridge is a querier of an MLD version, which asks once, when a port comes up. What the
// runtimes keep is checked and the daemon ended with the test.
func newHost(t *testing.T, querier int) *host {
	h := &host{Lab: netnslab.New(t), t: t, network: strings.ToLower(t.Name())}
	h.bridge = h.Bridge("cni0", netnslab.BridgeOptions{
		Querier: querier, QueryInterval: time.Hour, StartupQueryCount: 1,
	})
	h.sender = h.bridge.Connect(h.Node("sender"), "eth0")
	h.sender.AddAddr(netip.PrefixFrom(source, 64))
	h.flooded = h.bridge.Connect(h.Node("bystander"), "eth0").Capture()
	t.Cleanup(h.close)
	return h
}

// close ends the daemon and looks for what is left.
func (h *host) close() {
	if h.t.Failed() {
		log, _ := os.ReadFile(api.LogPath(api.DefaultRunDir))
		h.t.Logf("the daemon's log:\n%s", log)
	}
	h.endDaemon()
	for _, pattern := range []string{leases + "/*/*:*", results + "/*"} {
		if left, err := filepath.Glob(pattern); err != nil || len(left) > 0 {
			h.t.Errorf("left: %q, %v", left, err)
		}
	}
	for _, path := range []string{leases, results, confDir, api.DefaultRunDir, spyLog} {
		if err := os.RemoveAll(path); err != nil {
			h.t.Error(err)
		}
	}
}

// configure writes the configuration of a network: the bridge plugin, and another type of plugin with keys of its own
// unless that is empty.
func (h *host) configure(dir, version, kind string, keys map[string]any) {
	h.t.Helper()
	plugins := []map[string]any{{
		"type": "bridge", "bridge": "cni0",
		"ipam": map[string]any{
			"type": "host-local", "ranges": [][]map[string]string{{{"subnet": "fd00:1::/64", "rangeStart": "fd00:1::100"}}},
		},
	}}
	if kind != "" {
		keys = maps.Clone(keys)
		keys["type"] = kind
		plugins = append(plugins, keys)
	}
	text, err := json.Marshal(map[string]any{"cniVersion": version, "name": h.network, "plugins": plugins})
	if err != nil {
		h.t.Fatal(err)
	}
	err = os.MkdirAll(dir, 0o755)
	if err := errors.Join(err, os.WriteFile(filepath.Join(dir, "10-lab.conflist"), text, 0o600)); err != nil {
		h.t.Fatal(err)
	}
}

// command prepares a program that runs on the host, and kills it when the test has taken too long.
func (h *host) command(name string, args ...string) *netnslab.Cmd {
	ctx, cancel := context.WithTimeout(context.Background(), 2*patience) // a cleanup may need it too
	h.t.Cleanup(cancel)
	return h.Host().Command(ctx, name, args...)
}

// run runs a program on the host and returns what it prints.
func (h *host) run(name string, args ...string) string {
	h.t.Helper()
	out, err := h.command(name, args...).Output()
	if err != nil {
		h.t.Fatalf("%s %q: %v\n%s", name, args, err, out)
	}
	return string(out)
}

// wait waits until a condition holds.
func (h *host) wait(what string, cond func() (bool, string)) {
	h.t.Helper()
	netnslab.WaitFor(h.t, what, patience, cond, h.Host())
}

// mdb returns how many ports of containers have an entry for the group, as the program bridge tells.
func (h *host) mdb(group netip.Addr) (ports int) {
	h.t.Helper()
	var bridges []struct {
		MDB []struct{ Port, Grp, Src string }
	}
	if err := json.Unmarshal([]byte(h.run("bridge", "-j", "mdb", "show", "dev", "cni0")), &bridges); err != nil {
		h.t.Fatalf("bridge mdb: %v", err)
	}
	seen := map[string]bool{}
	for _, b := range bridges {
		for _, e := range b.MDB {
			if e.Grp == group.String() && e.Port != "cni0" {
				seen[e.Port] = true
			}
		}
	}
	return len(seen)
}

// attachments returns how many attachments the daemon has.
func (h *host) attachments() int {
	h.t.Helper()
	status, err := daemon(h.t.Context())
	if err != nil {
		h.t.Fatalf("status: %v", err)
	}
	return status.Attachments
}

func daemon(ctx context.Context) (*api.Status, error) {
	answer, err := api.Exchange(ctx, api.DefaultRunDir, &api.Request{Op: api.OpStatus})
	if err != nil {
		return nil, err
	}
	return answer.Status, nil
}

// endDaemon ends the daemon, if there is one, and waits until no process of it is left.
func (h *host) endDaemon() {
	h.t.Helper()
	for pid := range processes("mldd") {
		if err := unix.Kill(pid, unix.SIGTERM); err != nil && !errors.Is(err, unix.ESRCH) {
			h.t.Errorf("mldd, process %d: %v", pid, err)
		}
	}
	h.ended("mldd")
}

// ended waits until no process of a program is left.
func (h *host) ended(program string) {
	h.t.Helper()
	h.wait("end of "+program, func() (bool, string) {
		left := processes(program)
		return len(left) == 0, fmt.Sprint(left)
	})
}

// processes returns the command lines of the processes of a program, by number. In our process namespace there are none
// but those of the tests.
func processes(program string) map[int]string {
	found := map[int]string{}
	files, _ := filepath.Glob("/proc/[0-9]*/cmdline")
	for _, file := range files {
		text, _ := os.ReadFile(file) // empty once it has ended
		args := strings.Split(string(text), "\x00")
		if pid, err := strconv.Atoi(filepath.Base(filepath.Dir(file))); err == nil && filepath.Base(args[0]) == program {
			found[pid] = strings.Join(args, " ")
		}
	}
	return found
}

// delivers proves that a group arrives in a container, by what its receiver prints, and nowhere else.
func (h *host) delivers(group netip.Addr, printed func() string) {
	h.t.Helper()
	count := func() int { return strings.Count(printed(), group.String()+"\n") }
	h.wait("receiver", func() (bool, string) { text := printed(); return strings.Contains(text, "bound\n"), text })
	before, atBystander := count(), h.flooding(group)
	const n = 10
	h.send(group, n)
	h.wait(fmt.Sprintf("%d datagrams to %v", n, group), func() (bool, string) {
		return count() == before+n, printed() + h.run("bridge", "-d", "-s", "mdb", "show", "dev", "cni0")
	})
	h.send(mld.AllNodes, 1)
	h.wait("what is flooded", func() (bool, string) { return h.flooding(mld.AllNodes) > 0, "" })
	if floods := h.flooding(group) - atBystander; floods > 0 {
		h.t.Errorf("%d datagrams to %v have come to a port where nobody listens", floods, group)
	}
}

func (h *host) send(group netip.Addr, n int) {
	h.t.Helper()
	h.sender.Send(group, 5000, []byte("data"), n)
}

// flooding counts the UDP datagrams to a group that have come to the bystander.
func (h *host) flooding(group netip.Addr) (n int) {
	for _, f := range h.flooded.Frames() {
		const udp = 17
		if packet := f.IPv6(); packet != nil && packet[6] == udp && f.Dst() == group {
			n++
		}
	}
	return n
}

// check runs CHECK for an attachment, as a runtime would that knows the verb: with what ADD was given, and its result.
func (h *host) check(added call) error {
	h.t.Helper()
	cmd := h.command(filepath.Join(binDir, "mld"))
	cmd.Stdin = bytes.NewReader([]byte(added.Config))
	cmd.Env = []string{"CNI_COMMAND=CHECK"}
	for key, value := range added.Env {
		if key != "CNI_COMMAND" {
			cmd.Env = append(cmd.Env, key+"="+value)
		}
	}
	out, err := cmd.Output()
	if err != nil {
		return fmt.Errorf("%w: %s", err, out)
	}
	return nil
}

// joined proves that a container's groups are in the MDB and nowhere else, and that CHECK passes and can fail.
func (h *host) joined(added call, groups ...netip.Addr) {
	h.t.Helper()
	for _, group := range groups {
		if n := h.mdb(group); n != 1 {
			h.t.Errorf("%d ports have an entry for %v after ADD, want 1", n, group)
		}
	}
	if n := h.attachments(); n != 1 {
		h.t.Errorf("the daemon has %d attachments, want 1", n)
	}
	if err := h.check(added); err != nil {
		h.t.Errorf("CHECK: %v", err)
	}
}

// gone proves that nothing is left of a container.
func (h *host) gone(groups ...netip.Addr) {
	h.t.Helper()
	if n := h.attachments(); n != 0 {
		h.t.Errorf("the daemon has %d attachments, want none", n)
	}
	for _, group := range groups {
		h.wait("end of the entries", func() (bool, string) { n := h.mdb(group); return n == 0, fmt.Sprint(n) })
	}
	h.wait("end of the links", func() (bool, string) {
		links := h.run("ip", "-br", "link", "show", "type", "veth")
		return strings.Count(links, "\n") == 2, links // the sender's and the bystander's
	})
}
