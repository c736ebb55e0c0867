package main

import (
	"context"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"time"

	types100 "github.com/containernetworking/cni/pkg/types/100"

	"github.com/seed-aaab8e3a/cni-mld/e2e/chain"
	"github.com/seed-aaab8e3a/cni-mld/netnslab"
)

const (
	bridgeName = "cni0"
	dataPort   = 4321
	datagrams  = 100
	answersDue = time.Second // after a General Query of the bridge
)

var (
	declared  = netip.MustParseAddr("ff05::4321") // in the network's configuration
	appJoined = netip.MustParseAddr("ff05::8")    // by an application
	unwanted  = netip.MustParseAddr("ff05::dead") // by nobody
)

// A container of the story.
type container struct {
	*netnslab.Node
	network  *chain.Chain
	groups   string // what its network declares
	eth0     *netnslab.Endpoint
	receiver *netnslab.Receiver
}

// wants tells whether data for a group should reach the container.
func (c *container) wants(group netip.Addr) bool {
	return group == declared && c.groups != "none" || group == appJoined && c.Name() == "gamma"
}

type stage struct {
	*program
	ctx        context.Context
	bin        string // directory of the programs
	lab        *netnslab.Lab
	bridge     *netnslab.Bridge
	containers []*container
	wire       *netnslab.Capture
}

// demonstrate tells the story.
func demonstrate(ctx context.Context, p *program) {
	p.printf("Three containers on a bridge with MLD snooping, joined to IPv6 multicast groups through CNI.\n")
	s := &stage{program: p, ctx: ctx}
	s.build()
	s.attach()
	s.join()
	s.query()
	s.entries()
	s.groups()
	s.data()
	s.detach()
}

// build makes the bridge and the containers, and the networks that they will be attached to.
func (s *stage) build() {
	s.step("A bridge that forwards a group only to where somebody asks for it")
	begin := time.Now()
	dir, err := os.MkdirTemp("", "cni-mld-demo-")
	s.must("temporary directory", err)
	s.Cleanup(func() { s.must("remove what was written", os.RemoveAll(dir)) })
	s.bin = filepath.Join(dir, "bin")
	s.must("build the programs", chain.Build(s.ctx, s.bin))
	s.printf("   built mld, mldd, mldctl and the reference plugins in %.0f s\n", time.Since(begin).Seconds())

	s.lab = netnslab.New(s)
	s.bridge = s.lab.Bridge(bridgeName, netnslab.BridgeOptions{Querier: 1})
	s.printf("   %s: snooping, asks all (MLDv1) every 4 s, answers due within %v\n", bridgeName, answersDue)

	network := func(mld map[string]any) *chain.Chain {
		c, err := chain.New(chain.Config{Host: s.lab.Host(), Bin: s.bin, Dir: dir, Bridge: bridgeName, MLD: mld})
		s.must("network configuration", err)
		return c
	}
	with := network(map[string]any{"groups": []string{declared.String()}, "mldVersion": 1})
	without := network(map[string]any{"mldVersion": 1})
	s.Cleanup(func() { s.must("stop mldd", with.Stop(context.WithoutCancel(s.ctx))) })
	s.containers = []*container{
		{Node: s.lab.Node("alpha"), network: with, groups: declared.String()},
		{Node: s.lab.Node("beta"), network: with, groups: declared.String()},
		{Node: s.lab.Node("gamma"), network: without, groups: "none"},
	}
}

// attach runs the chain for every container.
func (s *stage) attach() {
	s.step("CNI ADD: the plugin bridge, then the plugin mld")
	rows := table{{"container", "address", "declared groups", "ADD took"}}
	for _, c := range s.containers {
		begin := time.Now()
		result, err := c.network.Add(s.ctx, c.Node)
		took := time.Since(begin)
		s.must("ADD "+c.Name(), err)
		s.Cleanup(func() { s.must("DEL "+c.Name(), c.network.Del(context.WithoutCancel(s.ctx), c.Node)) })
		r, err := types100.NewResultFromResult(result)
		s.must("result of ADD", err)
		c.eth0 = c.Interface(chain.IfName)
		c.receiver = c.eth0.Receive(dataPort)
		rows = append(rows, []string{c.Name(), r.IPs[0].Address.IP.String(), c.groups, took.Round(time.Millisecond).String()})
	}
	s.print(rows)
	for _, c := range s.containers {
		entries, err := c.eth0.Port().Members()
		s.must("entries of the bridge", err)
		if !c.wants(declared) {
			continue
		}
		found := false
		for _, e := range entries {
			found = found || e.Group == declared
		}
		s.check(found, "when ADD returned for %s, the bridge had its entry for %v", c.Name(), declared)
	}
	daemon, err := s.containers[0].network.Daemon(s.ctx)
	s.must("status of mldd", err)
	s.bridge.WaitQuerying(s.ctx)
	s.check(true, "the bridge no longer floods, as it does before it has asked and heard the answers")
	s.printf("   one daemon for all of them: mldd, process %d, started by the first ADD\n", daemon.KeeperPID)
}

// join has an application join a group by itself.
func (s *stage) join() {
	gamma := s.containers[2]
	s.step(fmt.Sprintf("An application in %s joins %v by itself, as any application does", gamma.Name(), appJoined))
	var endpoints []*netnslab.Endpoint
	for _, c := range s.containers {
		endpoints = append(endpoints, c.eth0)
	}
	s.wire = s.lab.Capture(netnslab.MLD, endpoints...)
	gamma.eth0.Join(appJoined)
	s.wire.Wait(10*time.Second, "the Report of the application's group", func(f netnslab.Frame) bool {
		return f.Endpoint == gamma.eth0 && f.Outgoing && f.ICMPv6() == 131 && f.Dst() == appJoined
	})
	s.check(true, "reported at once; by the listener, for the kernel is muted")
}

// query waits for the bridge to ask, and for the answers.
func (s *stage) query() {
	s.step("On the wire, as tshark reads it: the join, the bridge's next question, the answers")
	asked := s.wire.Wait(10*time.Second, "a General Query", func(f netnslab.Frame) bool { return f.ICMPv6() == 130 && !f.Outgoing })
	for _, c := range s.containers {
		for _, group := range []netip.Addr{declared, appJoined} {
			if c.wants(group) {
				s.waitAnswer(c, group)
			}
		}
	}
	next := s.wire.Wait(10*time.Second, "the next General Query", func(f netnslab.Frame) bool {
		return f.ICMPv6() == 130 && !f.Outgoing && f.Time.Sub(asked.Time) > answersDue
	})
	s.print(s.conversation(s.wire))
	queries, answers := map[string]int{}, map[string]map[netip.Addr]int{}
	begin := asked.Time.Add(-time.Millisecond) // it comes to one container after the other
	for _, f := range s.wire.Frames() {
		name := f.Endpoint.Node().Name()
		switch {
		case f.Time.Before(begin) || !f.Time.Before(next.Time):
		case f.ICMPv6() == 130 && !f.Outgoing:
			queries[name]++
		case f.Outgoing:
			if answers[name] == nil {
				answers[name] = map[netip.Addr]int{}
			}
			answers[name][f.Dst()]++
		}
	}
	alone := true
	for name, groups := range answers {
		for group, n := range groups {
			alone = alone && n <= queries[name]
			s.expect(n <= queries[name], "%s has answered %d times for %v, and was asked %d times", name, n, group, queries[name])
		}
	}
	s.check(alone, "one voice on each interface: no kernel has answered as well")
}

// waitAnswer waits until a container has reported a group since the query, wherever in the capture that is.
func (s *stage) waitAnswer(c *container, group netip.Addr) {
	netnslab.WaitFor(s, fmt.Sprintf("answer of %s for %v", c.Name(), group), 10*time.Second, func() (bool, string) {
		asked := false
		for _, f := range s.wire.Frames() {
			asked = asked || f.ICMPv6() == 130
			if asked && f.Endpoint == c.eth0 && f.Outgoing && f.ICMPv6() == 131 && f.Dst() == group {
				return true, ""
			}
		}
		return false, "no answer yet"
	}, c.Node)
	s.check(true, "%s has answered for %v", c.Name(), group)
}

// entries shows the multicast database of the bridge.
func (s *stage) entries() {
	s.step("What the bridge knows (its multicast database)")
	head := []string{"group"}
	for _, c := range s.containers {
		head = append(head, c.Name())
	}
	rows := table{head}
	for _, group := range []netip.Addr{declared, appJoined, unwanted} {
		row := []string{group.String()}
		for _, c := range s.containers {
			has := s.mdb(c, group)
			row = append(row, map[bool]string{true: "yes", false: "-"}[has])
			s.expect(has == c.wants(group), "entry of %s for %v: %v", c.Name(), group, has)
		}
		rows = append(rows, row)
	}
	s.print(rows)
	s.check(true, "an entry for each group that a container wants, and for no other")
}

// groups shows the same as the operator's tool has it.
func (s *stage) groups() {
	s.step("What mldctl says of them: wanted by whom, reported, and in the database")
	mldctl := s.lab.Host().Command(s.ctx, filepath.Join(s.bin, "mldctl"),
		"--run-dir", s.containers[0].network.RunDir, "groups", declared.String(), appJoined.String())
	out, err := mldctl.Output()
	for line := range strings.Lines(string(out)) {
		s.printf("   %s", line)
	}
	s.check(err == nil, "no fault, which would be marked by ! and told by the exit code")
}

// mdb asks iproute2 whether the bridge has an entry for a group at a container's port.
func (s *stage) mdb(c *container, group netip.Addr) bool {
	out, err := s.bridge.Node().Command(s.ctx, "bridge", "mdb", "show", "dev", bridgeName).Output()
	s.must("bridge mdb", err)
	return strings.Contains(string(out), fmt.Sprintf("port %s grp %v ", c.eth0.Peer().Name(), group))
}

// expect is a check that is only worth a line when it fails.
func (s *stage) expect(ok bool, format string, args ...any) {
	if !ok {
		s.check(false, format, args...)
	}
}

// data sends datagrams to three groups and counts what arrives where.
func (s *stage) data() {
	s.step(fmt.Sprintf("Data: %d datagrams to each group, from the host", datagrams))
	groups := []netip.Addr{declared, appJoined, unwanted}
	for _, group := range groups {
		s.bridge.Send(group, dataPort, []byte("demo"), datagrams)
	}
	// What every bridge floods comes last: when it is there, nothing else is on its way any more.
	s.bridge.Send(netip.MustParseAddr("ff02::1"), dataPort, []byte("end"), 1)
	head := []string{"group"}
	for _, c := range s.containers {
		c.receiver.Wait(netip.MustParseAddr("ff02::1"), 1)
		head = append(head, c.Name())
	}
	rows := table{head}
	for _, group := range groups {
		row := []string{group.String()}
		for _, c := range s.containers {
			want := 0
			if c.wants(group) {
				want = datagrams
			}
			got := c.receiver.Count(group)
			row = append(row, fmt.Sprint(got))
			s.expect(got == want, "%s has received %d datagrams for %v, and should have %d", c.Name(), got, group, want)
		}
		rows = append(rows, row)
	}
	s.print(rows)
	s.check(true, "delivered to whom it was for, without a change to any application")
}

// detach runs DEL for the first container.
func (s *stage) detach() {
	alpha := s.containers[0]
	s.step("CNI DEL of " + alpha.Name())
	capture := alpha.eth0.Capture(netnslab.MLD)
	s.must("DEL "+alpha.Name(), alpha.network.Del(s.ctx, alpha.Node))
	capture.Wait(10*time.Second, "the Done", func(f netnslab.Frame) bool { return f.ICMPv6() == 132 && f.Outgoing })
	s.print(s.conversation(capture))
	s.check(true, "left before its interface went")
	s.expect(!s.mdb(alpha, declared), "the bridge still has an entry for %s", alpha.Name())
	s.check(s.mdb(s.containers[1], declared), "%s keeps the group", s.containers[1].Name())
}
