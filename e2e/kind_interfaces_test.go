package e2e

import (
	"fmt"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/containernetworking/cni/pkg/types"

	"github.com/seed-aaab8e3a/cni-mld/e2e/chain"
	"github.com/seed-aaab8e3a/cni-mld/netnslab"
)

// network makes a chain of another network, with the same daemon.
func (s *segment) network(name, bridge, ifname string, keys map[string]any) *chain.Chain {
	s.tb.Helper()
	c, err := chain.New(chain.Config{
		Host: s.Host(), Bin: s.bin, Dir: s.dir, Name: name, Bridge: bridge, IfName: ifname, MLD: speaking(keys),
	})
	if err != nil {
		s.tb.Fatal(err)
	}
	return c
}

// A container with two interfaces on two bridges has a listener on each (V2-57): a group is joined, forwarded and left
// on the interface whose network declares it, and the end of one leaves the other alone.
func TestTwoInterfaces(t *testing.T) {
	t.Parallel()
	s := newSegment(t, quiet, map[string]any{"groups": []any{groupA, groupC, undelivered(groupD)}})
	other := s.Bridge("cni1", quiet)
	second := s.network("second", "cni1", "eth1", map[string]any{"groups": []any{groupB, groupC}})
	here, there := s.connect("here"), s.Node("there")
	onOther := other.Connect(there, "eth0")
	alice := s.add("alice")
	if _, err := second.Add(t.Context(), alice.Node); err != nil {
		t.Fatalf("ADD eth1: %v", err)
	}
	eth1 := alice.Interface("eth1")
	if n := s.daemon().Attachments; n != 2 {
		t.Errorf("the daemon has %d attachments, want 2", n)
	}
	for _, b := range []*netnslab.Bridge{s.bridge, other} {
		b.WaitQuerying(t.Context())
	}
	type entries struct{ here, there bool }
	look := func(group netip.Addr) entries {
		t.Helper()
		_, there := mdbOf(t, other, group)[eth1.Peer().Name()]
		return entries{s.inMDB(group, alice), there}
	}
	for group, want := range map[netip.Addr]entries{
		groupA: {true, false}, groupB: {false, true}, groupC: {true, true}, groupD: {true, false},
	} {
		if got := look(group); got != want {
			t.Errorf("%v: entries %+v, want %+v", group, got, want)
		}
	}

	const few = 20                                                       // so that the buffer of a socket holds them all
	receive0, receive1 := alice.eth0.Receive(port), eth1.Receive(port+1) // each counts what came by its interface
	send := func(want0, want1 map[netip.Addr]int) {
		t.Helper()
		before0, before1 := receive0.Count(allNodes), receive1.Count(allNodes)
		for _, group := range []netip.Addr{groupA, groupB, groupC} {
			here.eth0.Send(group, port, []byte("data"), few)
			onOther.Send(group, port+1, []byte("data"), few)
		}
		here.eth0.Send(allNodes, port, []byte("the end"), 1)
		onOther.Send(allNodes, port+1, []byte("the end"), 1)
		receive0.Wait(allNodes, before0+1)
		for group, n := range want0 {
			if got := receive0.Count(group); got != n {
				t.Errorf("eth0: %d datagrams to %v, want %d", got, group, n)
			}
		}
		if want1 == nil {
			return
		}
		receive1.Wait(allNodes, before1+1)
		for group, n := range want1 {
			if got := receive1.Count(group); got != n {
				t.Errorf("eth1: %d datagrams to %v, want %d", got, group, n)
			}
		}
	}
	send(map[netip.Addr]int{groupA: few, groupB: 0, groupC: few},
		map[netip.Addr]int{groupA: 0, groupB: few, groupC: few})

	begin := time.Now()
	_, err := second.Run(t.Context(), chain.Call{Command: "DEL", ContainerID: alice.Name(), Netns: alice.Path()})
	if err != nil {
		t.Fatalf("DEL eth1: %v", err)
	}
	s.wait("end of the entry on cni1", func() (bool, string) {
		got := look(groupC)
		return !got.there && got.here, fmt.Sprint(got)
	})
	s.settle()
	if sent := s.sentBy(alice, begin); len(of(sent, done, groupC)) > 0 {
		t.Errorf("eth0 said, too: %v", sent)
	}
	send(map[netip.Addr]int{groupA: 2 * few, groupB: 0, groupC: 2 * few}, nil)
	if code, text := s.call("CHECK", alice, nil); code != 0 {
		t.Errorf("CHECK eth0: code %d (%s)", code, text)
	}
}

// Two networks on one interface are two subscribers of its one Listener: it reports the union of what they want, the
// leave of one leaves what the other has declared, and settings that contradict what stands are refused by name.
func TestTwoNetworksOnOneInterface(t *testing.T) {
	t.Parallel()
	for _, deliver := range []bool{true, false} {
		t.Run(fmt.Sprintf("deliver %v", deliver), func(t *testing.T) {
			t.Parallel()
			groups := func(list ...netip.Addr) (keys []any) {
				for _, group := range list {
					keys = append(keys, map[string]any{"group": group, "deliver": deliver})
				}
				return keys
			}
			s := newSegment(t, quiet, map[string]any{"groups": groups(groupA, groupB), "robustness": 1})
			second := s.network("second", "cni0", "", map[string]any{"groups": groups(groupB, groupC), "robustness": 1})
			alice, sender := s.add("alice"), s.connect("sender")
			call := func(command string) error {
				_, err := second.Run(t.Context(), chain.Call{Command: command, ContainerID: alice.Name(), Netns: alice.Path()})
				return err
			}
			want := func(groups map[netip.Addr]bool) {
				t.Helper()
				for group, there := range groups {
					if got := s.inMDB(group, alice); got != there {
						t.Errorf("%v has an entry: %v, want %v", group, got, there)
					}
				}
			}
			want(map[netip.Addr]bool{groupA: true, groupB: true, groupC: false})
			begin := time.Now()
			if err := call("ADD"); err != nil {
				t.Fatalf("ADD of the second network: %v", err)
			}
			want(map[netip.Addr]bool{groupA: true, groupB: true, groupC: true})
			s.waitSent(alice, begin, report, groupC, 1)
			if n := s.daemon().Attachments; n != 2 {
				t.Errorf("the daemon has %d attachments, want 2", n)
			}
			if tables := runIn(t, alice.Node, "nft", "list", "tables"); strings.Count(string(tables), "table") != 1 {
				t.Errorf("not one voice: %s", tables)
			}

			contradiction := s.network("third", "cni0", "", map[string]any{"groups": groups(groupD), "robustness": 3})
			_, err := contradiction.Run(t.Context(), chain.Call{Command: "ADD", ContainerID: alice.Name(), Netns: alice.Path()})
			code, text := codeOf(err)
			if code != types.ErrInvalidNetworkConfig || !strings.Contains(text, "robustness: 3 here, 1 there") {
				t.Errorf("ADD with other settings: code %d (%s), want %d", code, text, types.ErrInvalidNetworkConfig)
			}
			want(map[netip.Addr]bool{groupA: true, groupB: true, groupC: true, groupD: false})

			s.bridge.WaitQuerying(t.Context())
			onAlice := alice.eth0.Capture()
			data := sender.stream(groupB, time.Millisecond)
			s.wait("data", func() (bool, string) { return len(data.arrived(onAlice)) > 0, "" })
			begin = time.Now()
			if err := call("DEL"); err != nil {
				t.Fatalf("DEL of the second network: %v", err)
			}
			s.waitSent(alice, begin, done, groupC, 1)
			s.wait("end of the entry", func() (bool, string) { return !s.inMDB(groupC, alice), "" })
			if code, text := s.call("CHECK", alice, nil); code != 0 {
				t.Errorf("CHECK of the first: code %d (%s)", code, text)
			}
			if code, text := codeOf(call("CHECK")); code != types.ErrUnknownContainer {
				t.Errorf("CHECK of the second: code %d (%s), want %d", code, text, types.ErrUnknownContainer)
			}
			sent := data.end(t)
			s.wait("the last datagram", func() (bool, string) {
				list := data.arrived(onAlice)
				return list[len(list)-1].number == sent-1, ""
			})
			if lost, gap := data.missing(onAlice); lost > 0 {
				t.Errorf("%d of %d datagrams to %v are lost, %v between two", lost, sent, groupB, gap)
			}
			if sent := of(s.sentBy(alice, begin), done, groupB); len(sent) > 0 {
				t.Errorf("left what the other wants: %v", sent)
			}
			s.del(alice)
			s.wait("end of all entries", func() (bool, string) { return !s.inMDB(groupA, alice) && !s.inMDB(groupB, alice), "" })
		})
	}
}
