package e2e

import (
	"bytes"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/seed-aaab8e3a/cni-mld/e2e/chain"
	"github.com/seed-aaab8e3a/cni-mld/netnslab"
	"github.com/seed-aaab8e3a/cni-mld/plugin/api"
)

// undelivered is a group of mld's configuration that the kernel does not join.
func undelivered(group netip.Addr) map[string]any {
	return map[string]any{"group": group, "deliver": false}
}

// A rack is a segment whose containers are macvlans, on a cable of the host to the bridge.
type rack struct {
	*segment
	uplink *netnslab.Endpoint
}

// newRack makes a rack; the chain is that of the reference plugin macvlan and mld.
func newRack(tb testing.TB, options netnslab.BridgeOptions, keys map[string]any) *rack {
	tb.Helper()
	s := newSegment(tb, options, keys)
	r := &rack{s, s.bridge.Connect(s.Host(), "uplink")}
	s.Host().SetSysctl("net/ipv6/conf/uplink/disable_ipv6", "1") // no listener of its own
	var err error
	s.chain, err = chain.New(chain.Config{Host: s.Host(), Bin: s.bin, Dir: s.dir, Master: "uplink", MLD: speaking(keys)})
	if err != nil {
		tb.Fatal(err)
	}
	return r
}

func (r *rack) add(name string) *container {
	r.tb.Helper()
	c := r.segment.add(name)
	c.port = r.uplink.Peer()
	return c
}

// Two macvlans share a port of the bridge. ADD waits for the entry on it, and what comes is sent on to those that
// want it: also a group that the kernel has not joined, and the queries for it, which the macvlan drops if nobody has
// asked for them (S2). So one listener stays when the other leaves: the bridge asks, and the other answers.
func TestMacvlan(t *testing.T) {
	t.Parallel()
	for _, version := range []int{1, 2} {
		t.Run(fmt.Sprintf("MLDv%d", version), func(t *testing.T) {
			t.Parallel()
			options := quiet
			options.Querier = version
			r := newRack(t, options, map[string]any{
				"mldVersion": version, "groups": []any{groupA, undelivered(groupB)},
				"robustness": 1, "alwaysDone": true, // no repeat of one listener silences the other
			})
			r.bridge.WaitQuerying(t.Context())
			alice, bob, sender := r.add("alice"), r.add("bob"), r.connect("sender")
			if kind := runIn(t, alice.Node, "ip", "-d", "link", "show", "eth0"); !strings.Contains(string(kind), "macvlan") {
				t.Fatalf("alice has no macvlan: %s", kind)
			}
			for _, group := range []netip.Addr{groupA, groupB} {
				if got := r.mdb(group); len(got) != 1 || !r.inMDB(group, alice) {
					t.Errorf("after ADD the MDB has %v on ports %v, want %s", group, got, alice.port)
				}
			}
			if err := r.chain.Check(t.Context(), alice.Node); err != nil {
				t.Errorf("CHECK: %v", err)
			}
			if alice.kernelHolds(groupB) {
				t.Errorf("the kernel has joined %v", groupB)
			}

			application, onAlice := alice.eth0.Receive(port), alice.eth0.Capture()
			send := func(want int) {
				t.Helper()
				for _, group := range []netip.Addr{groupA, groupB} {
					sender.eth0.Send(group, port, []byte("data"), datagrams)
				}
				sender.eth0.Send(allNodes, port, []byte("the end"), 1)
				application.Wait(allNodes, want/datagrams)
				r.wait("the end", func() (bool, string) { return framesTo(onAlice, allNodes) >= want/datagrams, "" })
				if n := application.Count(groupA); n != want {
					t.Errorf("alice's application received %d datagrams to %v, want %d", n, groupA, want)
				}
				if n := framesTo(onAlice, groupB); n != want {
					t.Errorf("%d frames to %v came to alice's interface, want %d", n, groupB, want)
				}
			}
			send(datagrams)

			// The bridge asks for both, and forgets them if nobody answers. In version 1 it asks ff02::1, which every
			// macvlan takes in; another querier asks the group itself.
			begin := time.Now()
			r.del(bob)
			onAlice.Wait(patience, "query for "+groupB.String(), func(f netnslab.Frame) bool {
				return !f.Outgoing && f.ICMPv6() == 130 && bytes.Contains(f.Data, groupB.AsSlice())
			})
			for range 2 { // the answers to the bridge and to the router
				r.waitSaid(alice, begin, groupB, "answer", func(said []string) bool { return len(said) > 0 })
				begin = time.Now()
				r.query(groupB, 0)
			}
			r.wait("entry that lasts", func() (bool, string) {
				left := r.mdb(groupB)[alice.port.Name()]
				return left > 200, fmt.Sprintf("%v s left", left) // of 260 (B13)
			})
			send(2 * datagrams)
			if err := r.chain.Check(t.Context(), alice.Node); err != nil {
				t.Errorf("CHECK after bob has gone: %v", err)
			}

			r.blockReports()
			r.run("bridge", "mdb", "del", "dev", "cni0", "port", alice.port.Name(), "grp", groupB.String())
			code, text := r.call("CHECK", alice, nil)
			if code != api.CodeNotReady || !strings.Contains(text, "no entry for [ff05::b]") {
				t.Errorf("CHECK without the entry: code %d (%s), want %d", code, text, api.CodeNotReady)
			}
			r.del(alice)
			r.waitReleased(alice)
		})
	}
}

// Where the cable of the macvlans leads to no bridge of this host, as most do, ADD waits for the report, and has no
// entry to wait for.
func TestMacvlanWithoutBridge(t *testing.T) {
	t.Parallel()
	for name, place := range map[string]func(s *segment) *netnslab.Endpoint{
		"to another machine": func(s *segment) *netnslab.Endpoint {
			uplink, _ := s.Veth(s.Host(), "uplink", s.Node("machine"), "eth0")
			return uplink
		},
		"master elsewhere": func(s *segment) *netnslab.Endpoint { // where an index means another link than here
			return s.bridge.Connect(s.Node("elsewhere"), "uplink")
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			s := newSegment(t, quiet, nil)
			node := s.Node("alice")
			alice := newContainer(t, node, s.Macvlan(place(s), node, chain.IfName))
			a := <-s.start(alice, ready("mdb", "300ms"))
			if a.code != api.CodeNotReady || !strings.Contains(a.text, "not a port of a bridge") {
				t.Errorf("ADD, mdb: code %d (%s), want %d", a.code, a.text, api.CodeNotReady)
			}
			a = <-s.start(alice, ready("auto", "20s"))
			if a.code != 0 || a.diagnostic != "" {
				t.Fatalf("ADD, auto: code %d (%s), %s", a.code, a.text, a.diagnostic)
			}
			alice.heard.Wait(patience, "report", func(f netnslab.Frame) bool {
				return f.Outgoing && f.Dst() == groupA && f.Time.Before(a.end)
			})
			if code, text := s.call("CHECK", alice, ready("auto", "20s")); code != 0 {
				t.Errorf("CHECK: code %d (%s)", code, text)
			}
		})
	}
}

// Further kinds of links with Ethernet frames: a macvtap has its master's port; on an overlay ADD waits for the report; a
// tap has no carrier until a program has opened it, which ADD says.
func TestOtherKinds(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		kind, wait, link string
		degraded         string
	}{
		{"macvtap", "mdb", "link uplink type macvtap mode bridge", ""},
		{"vxlan", "auto", "type vxlan id 7 local ::1 remote ::1 dstport 4789", ""},
		{"tap", "auto", "", "not ready after 300ms: interface eth0: "},
	} {
		t.Run(c.kind, func(t *testing.T) {
			t.Parallel()
			r := newRack(t, quiet, nil)
			node := r.Node("alice")
			timeout := "20s"
			if c.kind == "tap" {
				if unix.Access("/dev/net/tun", unix.R_OK|unix.W_OK) != nil {
					t.Skip("/dev/net/tun is not for this user") // whatever LAB_REQUIRED says
				}
				timeout = "300ms"
				runIn(t, node, "ip", "tuntap", "add", "mode", "tap", "name", chain.IfName)
			} else {
				r.run("ip", slices.Concat([]string{"link", "add", "name", "born"}, strings.Fields(c.link))...)
				r.run("ip", "link", "set", "born", "netns", node.Path(), "name", chain.IfName)
			}
			runIn(t, node, "ip", "link", "set", chain.IfName, "up")
			alice := newContainer(t, node, node.Interface(chain.IfName))
			alice.port = r.uplink.Peer()
			a := <-r.start(alice, ready(c.wait, timeout))
			if a.code != 0 || !strings.Contains(a.diagnostic, c.degraded) || c.degraded == "" && a.diagnostic != "" {
				t.Fatalf("ADD: code %d (%s), %s", a.code, a.text, a.diagnostic)
			}
			if c.kind == "macvtap" && !r.inMDB(groupA, alice) {
				t.Errorf("after ADD the MDB has %v on ports %v", groupA, r.mdb(groupA))
			}
			code, text := r.call("CHECK", alice, ready(c.wait, timeout))
			if ok := code == 0; ok != (c.degraded == "") {
				t.Errorf("CHECK: code %d (%s)", code, text)
			}
			t.Logf("ADD: %q, CHECK: code %d %q", a.diagnostic, code, text)
		})
	}
}
