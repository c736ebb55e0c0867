package e2e

import (
	"fmt"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/seed-aaab8e3a/cni-mld/netnslab"
)

const (
	port      = 5000
	datagrams = 100
)

// framesTo counts the frames to a group that have come in.
func framesTo(c *netnslab.Capture, group netip.Addr) (n int) {
	for _, f := range c.Frames() {
		if !f.Outgoing && f.Dst() == group && f.ICMPv6() == 0 { // a version 1 Report goes to its group, too
			n++
		}
	}
	return n
}

// A declared group is reported, and so the bridge sends it to the container, whose application receives it although it
// joins nothing. That the bridge sends it to nobody else takes a querier: without one it floods (B1, F12).
func TestV1_06_DeclaredGroupIsForwarded(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		name   string
		bridge netnslab.BridgeOptions
		bob    int // frames that the bridge sends to a container that wants none
	}{
		{"querier", netnslab.BridgeOptions{Querier: 1}, 0},
		{"no querier", netnslab.BridgeOptions{}, datagrams},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			s := newSegment(t, c.bridge, map[string]any{"groups": []string{groupA.String()}})
			alice, bob, sender := s.add("alice"), s.connect("bob"), s.connect("sender")
			if got := s.mdb(groupA); len(got) != 1 || !s.inMDB(groupA, alice) {
				t.Errorf("the MDB has %v on ports %v, want %s", groupA, got, alice.eth0.Peer().Name())
			}
			if c.bridge.Querier != 0 {
				s.bridge.WaitQuerying(t.Context())
			}
			application, other := alice.eth0.Receive(port), bob.eth0.Receive(port)
			onBob := bob.eth0.Capture()

			sender.eth0.Send(groupA, port, []byte("data"), datagrams)
			sender.eth0.Send(allNodes, port, []byte("the end"), 1)

			application.Wait(allNodes, 1)
			if n := application.Count(groupA); n != datagrams {
				t.Errorf("alice's application received %d datagrams, want %d", n, datagrams)
			}
			other.Wait(allNodes, 1)
			s.settleOn(onBob)
			if n := framesTo(onBob, groupA); n != c.bob {
				t.Errorf("the bridge sent bob %d frames, want %d", n, c.bob)
			}
		})
	}
}

// What is on the wire, as tshark reads it.
func TestV1_01_V1_02_V1_03_V1_04_V1_05_V1_08_V1_09_OnTheWire(t *testing.T) {
	t.Parallel()
	s := newSegment(t, quiet, map[string]any{"groups": []string{groupA.String()}, "robustness": 1})
	alice := s.add("alice")
	source := alice.eth0.LinkLocal()
	s.waitSent(alice, time.Time{}, report, groupA, 1)
	s.del(alice)
	s.settle()

	for _, c := range []struct {
		kind   int
		dst    netip.Addr
		dstMAC string
	}{
		{report, groupA, "33:33:00:00:00:0a"},
		{done, netip.MustParseAddr("ff02::2"), "33:33:00:00:00:02"},
	} {
		got := s.heard.Tshark(t.Context(),
			"-Y", fmt.Sprintf("icmpv6.type == %d && icmpv6.mld.multicast_address == %v", c.kind, groupA),
			"-T", "fields", "-E", "separator= ",
			"-e", "eth.dst", "-e", "ipv6.src", "-e", "ipv6.dst", "-e", "ipv6.hlim", "-e", "ipv6.plen",
			"-e", "ipv6.opt.type", "-e", "ipv6.opt.router_alert", "-e", "icmpv6.code", "-e", "icmpv6.checksum.status",
			"-e", "icmpv6.mld.maximum_response_delay", "-e", "icmpv6.reserved", "-e", "icmpv6.mld.multicast_address")
		// Payload 8 octets of Hop-by-Hop Options and 24 of the message; options Router Alert and PadN; checksum good.
		want := fmt.Sprintf("%s %v %v 1 32 0x05,0x01 0 0 1 0 0000 %v", c.dstMAC, source, c.dst, groupA)
		if got != want {
			t.Errorf("type %d:\n got %s\nwant %s", c.kind, strings.ReplaceAll(got, "\n", "\n     "), want)
		}
	}
}

// With deliver false the bridge sends the group, and the kernel is left alone: what receives it does not go through
// its sockets (S7).
func TestGroupWithoutDelivery(t *testing.T) {
	t.Parallel()
	s := newSegment(t, netnslab.BridgeOptions{Querier: 1},
		map[string]any{"groups": []any{map[string]any{"group": groupA, "deliver": false}}})
	alice, sender := s.add("alice"), s.connect("sender")
	if !s.inMDB(groupA, alice) {
		t.Errorf("the MDB has no entry for %v: %v", groupA, s.mdb(groupA))
	}
	if alice.kernelHolds(groupA) {
		t.Errorf("the kernel has joined %v", groupA)
	}
	if !alice.kernelHolds(allNodes) {
		t.Errorf("the kernel has not joined %v: is igmp6 read well?", allNodes)
	}
	s.bridge.WaitQuerying(t.Context())
	application, interfaceOf := alice.eth0.Receive(port), alice.eth0.Capture()

	sender.eth0.Send(groupA, port, []byte("data"), datagrams)
	sender.eth0.Send(allNodes, port, []byte("the end"), 1)

	application.Wait(allNodes, 1)
	s.settleOn(interfaceOf)
	if n := framesTo(interfaceOf, groupA); n != datagrams {
		t.Errorf("%d frames came to the interface, want %d", n, datagrams)
	}
	if n := application.Count(groupA); n != 0 {
		t.Errorf("the kernel gave %d datagrams to an application, want none", n)
	}
}
