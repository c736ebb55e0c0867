// Package e2e tests the built programs on the real kernel, from outside: what is on the wire, what the bridge forwards,
// what the kernel knows and what the plugin says.
package e2e

import (
	"bytes"
	"context"
	"encoding/binary"
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
	"time"

	"github.com/containernetworking/cni/pkg/types"
	"golang.org/x/sys/unix"

	"github.com/seed-aaab8e3a/cni-mld/e2e/chain"
	"github.com/seed-aaab8e3a/cni-mld/mld"
	"github.com/seed-aaab8e3a/cni-mld/netnslab"
	"github.com/seed-aaab8e3a/cni-mld/plugin/api"
)

func TestMain(m *testing.M) { netnslab.Main(m) }

// patience is the ceiling of every wait for what is sure to come soon.
const patience = 20 * time.Second

// The ICMPv6 types of MLD.
const (
	report   = 131
	done     = 132
	reportV2 = 143
)

var (
	groupA = netip.MustParseAddr("ff05::a")
	groupB = netip.MustParseAddr("ff05::b")
	groupC = netip.MustParseAddr("ff05::c")
	groupD = netip.MustParseAddr("ff05::d")

	allNodes = mld.AllNodes
	general  = netip.IPv6Unspecified() // the multicast address of a General Query

	// Who the router on a segment says it is. It is the higher address, so that the bridge remains the querier (B12).
	routerAddr = netip.MustParseAddr("fe80::8000:0:0:1")
	otherAddr  = netip.MustParseAddr("fe80::8000:0:0:2") // another listener behind the router
	markerAddr = netip.MustParseAddr("fe80::8000:0:0:3") // sends what proves silence
	unwanted   = netip.MustParseAddr("ff0e::db8:0:ffff") // which nobody listens to
)

// quiet is a bridge with a querier that asks once, when a port comes up, and then leaves the questions to the test.
var quiet = netnslab.BridgeOptions{Querier: 1, QueryInterval: time.Hour, StartupQueryCount: 1}

// binaries builds the programs, once. They lie in a file system of the mount namespace that netnslab.Main has made
// for this process, and vanish with it.
var binaries = sync.OnceValues(func() (string, error) {
	if err := unix.Mount("e2e", "/run", "tmpfs", 0, "mode=0755"); err != nil {
		return "", fmt.Errorf("a file system for the programs: %w", err)
	}
	const dir = "/run/e2e"
	if err := os.Mkdir(dir, 0o755); err != nil {
		return "", err
	}
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Minute)
	defer cancel()
	return dir, chain.Build(ctx, dir)
})

// A segment is a lab with a bridge and a chain of plugins that connects containers to it.
type segment struct {
	*netnslab.Lab
	tb     testing.TB
	dir    string // what the chain leaves on disk
	bin    string
	bridge *netnslab.Bridge
	chain  *chain.Chain

	// router stands on a router port, and so hears every Report (B8). It has no IPv6 of its own, and says only what
	// a test sends from it. heard is all the MLD that comes to it.
	router  *netnslab.Endpoint
	heard   *netnslab.Capture
	version mld.Version // of the queries that the router sends, that of the bridge's querier
}

// newSegment makes a segment; keys are those of mld's configuration.
func newSegment(tb testing.TB, options netnslab.BridgeOptions, keys map[string]any) *segment {
	tb.Helper()
	s := &segment{Lab: netnslab.New(tb), tb: tb, version: mld.Version(max(options.Querier, 1))}
	s.bridge = s.Lab.Bridge("cni0", options)
	node := s.Node("router")
	node.SetSysctl("net/ipv6/conf/default/disable_ipv6", "1")
	s.router = s.bridge.Connect(node, "eth0")
	s.run("bridge", "link", "set", "dev", s.router.Peer().Name(), "mcast_router", "2")
	s.heard = s.router.Capture(netnslab.MLD)

	var err error
	if s.bin, err = binaries(); err != nil {
		tb.Fatal(err)
	}
	// Not TempDir, whose names are too long for a socket's.
	if s.dir, err = os.MkdirTemp("", "e2e-"); err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(s.close)
	s.chain = s.newChain(s.dir, keys)
	return s
}

// speaking returns keys of mld's configuration with the version of MLD: 1, unless they say another.
func speaking(keys map[string]any) map[string]any {
	all := map[string]any{"mldVersion": 1}
	maps.Copy(all, keys)
	return all
}

// newChain makes a further chain on the bridge, with a daemon of its own if dir is another.
func (s *segment) newChain(dir string, keys map[string]any) *chain.Chain {
	s.tb.Helper()
	c, err := chain.New(chain.Config{Host: s.Host(), Bin: s.bin, Dir: dir, Bridge: "cni0", MLD: speaking(keys)})
	if err != nil {
		s.tb.Fatal(err)
	}
	return c
}

// close ends the daemon, and what a failed test has left of it.
func (s *segment) close() {
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	if s.tb.Failed() {
		log, _ := os.ReadFile(api.LogPath(s.chain.RunDir))
		s.tb.Logf("the daemon's log:\n%s", log)
	}
	if err := s.chain.Stop(ctx); err != nil {
		s.tb.Errorf("stop: %v", err)
	}
	for _, pid := range s.daemons() {
		s.tb.Errorf("mldd, process %d, is left", pid)
		_ = unix.Kill(pid, unix.SIGKILL)
	}
	if err := os.RemoveAll(s.dir); err != nil {
		s.tb.Error(err)
	}
}

// run runs a program on the host and returns what it prints.
func (s *segment) run(name string, args ...string) []byte {
	s.tb.Helper()
	return runIn(s.tb, s.Host(), name, args...)
}

func runIn(tb testing.TB, n *netnslab.Node, name string, args ...string) []byte {
	tb.Helper()
	out, err := n.Command(tb.Context(), name, args...).Output()
	if err != nil {
		tb.Fatalf("%s: %s %q: %v", n, name, args, err)
	}
	return out
}

// A container is a node with an interface on the bridge.
type container struct {
	*netnslab.Node
	tb    testing.TB
	eth0  *netnslab.Endpoint
	port  *netnslab.Endpoint // of the bridge; what is behind it may be more than this container
	heard *netnslab.Capture  // the MLD on the interface since it was attached
}

func newContainer(tb testing.TB, n *netnslab.Node, eth0 *netnslab.Endpoint) *container {
	return &container{n, tb, eth0, eth0.Peer(), eth0.Capture(netnslab.MLD)}
}

// add makes a container and attaches it by the chain: ADD of the bridge plugin, then of mld.
func (s *segment) add(name string) *container {
	s.tb.Helper()
	return s.addNode(s.Node(name))
}

func (s *segment) addNode(n *netnslab.Node) *container {
	s.tb.Helper()
	if _, err := s.chain.Add(s.tb.Context(), n); err != nil {
		s.tb.Fatalf("ADD %s: %v", n, err)
	}
	return newContainer(s.tb, n, n.Interface(chain.IfName))
}

// del detaches a container by the chain.
func (s *segment) del(c *container) {
	s.tb.Helper()
	if err := s.chain.Del(s.tb.Context(), c.Node); err != nil {
		s.tb.Fatalf("DEL %s: %v", c, err)
	}
}

// connect makes a container and plugs it into the bridge, without any plugin.
func (s *segment) connect(name string, options ...netnslab.LinkOption) *container {
	s.tb.Helper()
	n := s.Node(name)
	return newContainer(s.tb, n, s.bridge.Connect(n, chain.IfName, options...))
}

// call runs the plugin mld by itself, with the chain's keys if there are none. Of a failure it returns CNI's code and the text.
func (s *segment) call(command string, c *container, keys map[string]any) (code uint, text string) {
	s.tb.Helper()
	call := chain.Call{Command: command, ContainerID: c.Name(), Netns: c.Path()}
	if keys != nil {
		call.MLD = speaking(keys)
	}
	_, err := s.chain.Run(s.tb.Context(), call)
	return codeOf(err)
}

// codeOf returns the code and the text of a plugin's error; what is none of CNI's has CNI's internal one.
func codeOf(err error) (code uint, text string) {
	var said *types.Error
	switch {
	case err == nil:
		return 0, ""
	case errors.As(err, &said):
		return said.Code, said.Msg + " " + said.Details
	}
	return types.ErrInternal, err.Error()
}

// daemon returns the daemon's status.
func (s *segment) daemon() *api.Status {
	s.tb.Helper()
	status, err := s.chain.Daemon(s.tb.Context())
	if err != nil {
		s.tb.Fatalf("status: %v", err)
	}
	return status
}

// daemons returns the processes that serve the run directory.
func (s *segment) daemons() []int {
	s.tb.Helper()
	files, _ := filepath.Glob("/proc/[0-9]*/cmdline")
	var found []int
	for _, file := range files {
		text, _ := os.ReadFile(file)
		args := strings.Split(string(text), "\x00")
		if filepath.Base(args[0]) == "mldd" && slices.Contains(args, s.chain.RunDir) {
			pid, err := strconv.Atoi(filepath.Base(filepath.Dir(file)))
			if err != nil {
				s.tb.Fatal(err)
			}
			found = append(found, pid)
		}
	}
	return found
}

// wait waits until a condition holds.
func (s *segment) wait(what string, cond func() (bool, string)) {
	s.tb.Helper()
	netnslab.WaitFor(s.tb, what, patience, cond, s.Host())
}

// mdb returns the bridge's ports that have an entry for the group, as the program bridge tells, with the seconds that
// each entry has left.
func (s *segment) mdb(group netip.Addr) map[string]float64 {
	s.tb.Helper()
	return mdbOf(s.tb, s.bridge, group)
}

// mdbOf is segment.mdb for any bridge.
func mdbOf(tb testing.TB, bridge *netnslab.Bridge, group netip.Addr) map[string]float64 {
	tb.Helper()
	var bridges []struct {
		MDB []struct{ Port, Grp, Timer string }
	}
	out := runIn(tb, bridge.Node(), "bridge", "-j", "-d", "-s", "mdb", "show", "dev", bridge.Name())
	if err := json.Unmarshal(out, &bridges); err != nil {
		tb.Fatalf("bridge mdb: %v", err)
	}
	ports := map[string]float64{}
	for _, b := range bridges {
		for _, e := range b.MDB {
			if e.Grp == group.String() {
				var left float64
				if _, err := fmt.Sscan(e.Timer, &left); err != nil {
					tb.Fatalf("bridge mdb: timer %q: %v", e.Timer, err)
				}
				ports[e.Port] = left
			}
		}
	}
	return ports
}

// inMDB tells whether the bridge has an entry for the group on the container's port.
func (s *segment) inMDB(group netip.Addr, c *container) bool {
	s.tb.Helper()
	_, ok := s.mdb(group)[c.port.Name()]
	return ok
}

// query sends a Query from the router; the group "::" makes it a General Query.
func (s *segment) query(group netip.Addr, maxDelay time.Duration) {
	s.tb.Helper()
	s.queryAs(s.version, group, maxDelay)
}

// queryAs is query in a version of choice.
func (s *segment) queryAs(version mld.Version, group netip.Addr, maxDelay time.Duration) {
	s.tb.Helper()
	dst := group
	if group.IsUnspecified() {
		dst = allNodes
	}
	s.router.SendPacket(mld.AppendQuery(nil, routerAddr, dst, mld.Query{
		Version: version, MulticastAddress: group, MaxResponseCode: uint16(maxDelay.Milliseconds()), QRV: 2, QQIC: 125,
	}))
}

// hearReports makes the port of a container a router port, so that the Reports of others get there (B8).
func (s *segment) hearReports(c *container) {
	s.tb.Helper()
	s.run("bridge", "link", "set", "dev", c.port.Name(), "mcast_router", "2")
}

// A message is what MLD a container has sent. Of a version 2 Report the group is not told.
type message struct {
	kind  uint8
	group netip.Addr
	frame netnslab.Frame
}

func (m message) String() string { return fmt.Sprintf("%d %v", m.kind, m.group) }

// messageOf reads a frame. The multicast address is the last of a message of version 1.
func messageOf(f netnslab.Frame) message {
	m := message{kind: f.ICMPv6(), frame: f}
	packet := f.IPv6()
	if end := 40 + int(binary.BigEndian.Uint16(packet[4:])); m.kind != reportV2 && end <= len(packet) {
		m.group = netip.AddrFrom16([16]byte(packet[end-16 : end]))
	}
	return m
}

// sentBy returns the MLD that has come from the container's interface since a moment, but queries.
func (s *segment) sentBy(c *container, since time.Time) []message {
	var sent []message
	for _, f := range s.heard.Frames() {
		from := f.Data[6:12]
		if k := f.ICMPv6(); bytes.Equal(from, c.eth0.HardwareAddr()) && f.Time.After(since) && k >= report {
			sent = append(sent, messageOf(f))
		}
	}
	return sent
}

func of(sent []message, kind uint8, group netip.Addr) []message {
	return slices.DeleteFunc(slices.Clone(sent), func(m message) bool { return m.kind != kind || m.group != group })
}

// waitSent waits until the container has sent so many messages about the group since a moment, and returns them.
func (s *segment) waitSent(c *container, since time.Time, kind uint8, group netip.Addr, n int) []message {
	s.tb.Helper()
	var found []message
	s.wait(fmt.Sprintf("%d messages of type %d about %v from %s", n, kind, group, c), func() (bool, string) {
		sent := s.sentBy(c, since)
		found = of(sent, kind, group)
		return len(found) >= n, fmt.Sprint(sent)
	})
	return found
}

// settle sends a marker through the bridge and waits until the router has heard it. All that was sent before is in
// s.heard then.
func (s *segment) settle() {
	s.tb.Helper()
	s.settleOn(s.heard)
}

// settleOn is settle for a capture on any endpoint of the bridge: a Done is flooded (B8).
func (s *segment) settleOn(c *netnslab.Capture) {
	s.tb.Helper()
	before := markers(c)
	s.bridge.SendPacket(mld.AppendDone(nil, markerAddr, unwanted))
	s.wait("marker", func() (bool, string) { return markers(c) > before, "" })
}

func markers(c *netnslab.Capture) (n int) {
	for _, f := range c.Frames() {
		if f.Src() == markerAddr {
			n++
		}
	}
	return n
}

// summary counts messages: "131 ff05::a" → 2.
func summary(sent []message) map[string]int {
	counts := map[string]int{}
	for _, m := range sent {
		counts[m.String()]++
	}
	return counts
}

// addrs returns the unicast addresses of the interface.
func (c *container) addrs() []netip.Addr {
	c.tb.Helper()
	var links []struct {
		AddrInfo []struct{ Local netip.Addr } `json:"addr_info"`
	}
	out := runIn(c.tb, c.Node, "ip", "-j", "-6", "addr", "show", "dev", c.eth0.Name())
	if err := json.Unmarshal(out, &links); err != nil {
		c.tb.Fatalf("ip addr: %v", err)
	}
	var addrs []netip.Addr
	for _, l := range links {
		for _, a := range l.AddrInfo {
			addrs = append(addrs, a.Local)
		}
	}
	return addrs
}

// solicited is the solicited-node address of a unicast address (RFC 4291 section 2.7.1).
func solicited(addr netip.Addr) netip.Addr {
	a := addr.As16()
	return netip.AddrFrom16([16]byte{0: 0xff, 1: 2, 11: 1, 12: 0xff, 13: a[13], 14: a[14], 15: a[15]})
}

// kernelHolds tells whether the container's kernel is a member of the group on its interface.
func (c *container) kernelHolds(group netip.Addr) bool {
	c.tb.Helper()
	var list []byte
	err := c.Do(func() (err error) {
		list, err = os.ReadFile("/proc/thread-self/net/igmp6")
		return err
	})
	if err != nil {
		c.tb.Fatal(err)
	}
	a := group.As16()
	want := []string{fmt.Sprint(c.eth0.Index()), c.eth0.Name(), fmt.Sprintf("%x", a[:])}
	for line := range strings.Lines(string(list)) {
		if f := strings.Fields(line); len(f) >= 3 && slices.Equal(f[:3], want) {
			return true
		}
	}
	return false
}

// muted returns how many reports of the container's kernel its nftables have dropped; ok is false if no table does.
func (c *container) muted() (packets int, ok bool) {
	c.tb.Helper()
	var ruleset struct {
		NFTables []struct {
			Counter *struct {
				Table   string
				Packets int
			}
		}
	}
	if err := json.Unmarshal(runIn(c.tb, c.Node, "nft", "-j", "list", "counters"), &ruleset); err != nil {
		c.tb.Fatalf("nft: %v", err)
	}
	for _, object := range ruleset.NFTables {
		if object.Counter != nil && strings.HasPrefix(object.Counter.Table, "mld-") {
			return object.Counter.Packets, true
		}
	}
	return 0, false
}

// waitMuted waits until the container's kernel has tried to send so many reports and was not let.
func (s *segment) waitMuted(c *container, packets int) {
	s.tb.Helper()
	s.wait(fmt.Sprintf("%d dropped reports of %s's kernel", packets, c), func() (bool, string) {
		n, ok := c.muted()
		return ok && n >= packets, fmt.Sprintf("%d, table: %v", n, ok)
	})
}

// waitReleased waits until the daemon holds no descriptor of the container's namespace, and no table is left there.
func (s *segment) waitReleased(c *container) {
	s.tb.Helper()
	s.wait("release of "+c.Name(), func() (bool, string) {
		held := slices.Contains(s.namespaces(), namespaceOf(s.tb, c.Node))
		_, table := c.muted()
		return !held && !table, fmt.Sprintf("namespace held: %v, table: %v", held, table)
	})
}

// namespaces returns the network namespaces that the daemon holds by descriptor, "net:[4026532277]".
func (s *segment) namespaces() []string {
	s.tb.Helper()
	var held []string
	for _, target := range descriptors(s.daemon().PID) {
		if strings.HasPrefix(target, "net:[") {
			held = append(held, target)
		}
	}
	return held
}

// namespaceOf is how a descriptor of the node's namespace reads.
func namespaceOf(tb testing.TB, n *netnslab.Node) string {
	tb.Helper()
	target, err := os.Readlink(n.Path())
	if err != nil {
		tb.Fatal(err)
	}
	return target
}

// descriptors returns what the descriptors of a process are, by number.
func descriptors(pid int) map[string]string {
	links, _ := filepath.Glob(fmt.Sprintf("/proc/%d/fd/*", pid))
	targets := map[string]string{}
	for _, link := range links {
		if target, err := os.Readlink(link); err == nil {
			targets[filepath.Base(link)] = target
		}
	}
	return targets
}
