package e2e

import (
	"bytes"
	"fmt"
	"net/netip"
	"strings"
	"testing"

	"github.com/containernetworking/cni/pkg/types"

	"github.com/seed-aaab8e3a/cni-mld/e2e/chain"
	"github.com/seed-aaab8e3a/cni-mld/netnslab"
	"github.com/seed-aaab8e3a/cni-mld/plugin/api"
)

// A bridge is an interface of the namespace that it is in, and what that namespace has joined has an entry of its own in
// the MDB, without which the bridge keeps the group to its ports. ADD waits for it.
func TestBridgeDevice(t *testing.T) {
	t.Parallel()
	for _, version := range []int{1, 2} {
		t.Run(fmt.Sprintf("MLDv%d", version), func(t *testing.T) {
			t.Parallel()
			keys := ready("mdb", "20s")
			keys["mldVersion"], keys["groups"] = version, []any{groupA, undelivered(groupB)}
			s := newSegment(t, quiet, keys)
			options := quiet
			options.Querier = version
			node := s.Node("alice")
			br := s.BridgeIn(node, "br0", options)
			far := br.Connect(s.Node("far"), "eth0")
			br.WaitQuerying(t.Context())
			runIn(t, node, "bridge", "link", "set", "dev", far.Peer().Name(), "mcast_router", "2") // so that far hears Reports
			heard := far.Capture(netnslab.MLD)
			call := func(command string) (code uint, text string) {
				t.Helper()
				_, err := s.chain.Run(t.Context(), chain.Call{Command: command, ContainerID: "alice", Netns: node.Path(), IfName: "br0"})
				return codeOf(err)
			}
			if code, text := call("ADD"); code != 0 {
				t.Fatalf("ADD: code %d (%s)", code, text)
			}
			own := func(group netip.Addr) bool {
				t.Helper()
				_, ok := mdbOf(t, br, group)["br0"]
				return ok
			}
			if !own(groupA) || !own(groupB) || own(groupC) {
				t.Errorf("entries after ADD: %v, %v, and of what is not declared %v", own(groupA), own(groupB), own(groupC))
			}
			if code, text := call("CHECK"); code != 0 {
				t.Errorf("CHECK: code %d (%s)", code, text)
			}
			about := func(group netip.Addr, kind string) {
				t.Helper()
				heard.Wait(patience, kind+" "+group.String(), func(f netnslab.Frame) bool {
					return f.Src() == br.LinkLocal() && f.ICMPv6() >= report && bytes.Contains(f.Data, group.AsSlice())
				})
			}
			about(groupA, "report")

			application, onBridge := br.Receive(port), br.Capture()
			for _, group := range []netip.Addr{groupA, groupB, groupC} {
				far.Send(group, port, []byte("data"), datagrams)
			}
			far.Send(allNodes, port, []byte("the end"), 1)
			application.Wait(allNodes, 1)
			s.wait("the end", func() (bool, string) { return framesTo(onBridge, allNodes) > 0, "" })
			if n := application.Count(groupA); n != datagrams {
				t.Errorf("the application received %d datagrams, want %d", n, datagrams)
			}
			for group, want := range map[netip.Addr]int{groupB: datagrams, groupC: 0} {
				if n := framesTo(onBridge, group); n != want {
					t.Errorf("%d frames to %v came to the bridge's host, want %d", n, group, want)
				}
			}

			router := segment{Lab: s.Lab, tb: t, router: far, version: s.version}
			router.queryAs(s.version, groupB, 0)
			about(groupB, "answer")
			if code, text := call("DEL"); code != 0 {
				t.Errorf("DEL: code %d (%s)", code, text)
			}
			s.wait("end of the entries", func() (bool, string) { return !own(groupA) && !own(groupB), "" })
		})
	}
}

// host asks the daemon as mldctl does, for an interface of the host's or of another namespace.
func (s *segment) host(op string, n *netnslab.Node, ifname string, host bool, settings *api.Settings) (code uint, text string) {
	s.tb.Helper()
	answer, err := api.Exchange(s.tb.Context(), s.chain.RunDir, &api.Request{
		Op: op, Attachment: api.Attachment{Network: "host", ContainerID: "host", IfName: ifname},
		Settings: settings, NetnsPath: n.Path(), Host: host,
		Netns: n.Netns().File(), HostNetns: s.Host().Netns().File(),
	})
	if err != nil {
		return codeOf(err)
	}
	return 0, answer.Degraded
}

// An interface of the host itself is attached only if the request says so: a veth as in a container, and a bridge, which
// is the case of a host that wants a group of its own containers' network.
func TestHostInterface(t *testing.T) {
	t.Parallel()
	s := newSegment(t, quiet, nil)
	alice, sender := s.add("alice"), s.connect("sender") // the daemon runs in the host's namespace
	uplink := s.bridge.Connect(s.Host(), "uplink")
	settings := api.DefaultSettings()
	settings.MLDVersion = api.MLDVersion1
	settings.Ready = api.Ready{Wait: api.WaitMDB, Timeout: api.Duration(patience)}
	settings.Groups = []api.Group{
		{Addr: groupA, Mode: api.Exclude, Deliver: true}, {Addr: groupB, Mode: api.Exclude},
	}
	for _, c := range []struct {
		what   string
		node   *netnslab.Node
		ifname string
		host   bool
		code   uint
		text   string
	}{
		{"without a word", s.Host(), "uplink", false, types.ErrInvalidEnvironmentVariables, "is the host's namespace"},
		{"a container's", alice.Node, "eth0", true, types.ErrInvalidEnvironmentVariables, "is not the host's namespace"},
		{"not Ethernet", s.Host(), "lo", true, api.CodeNotEthernet, "lo"},
		{"nothing", s.Host(), "eth7", true, types.ErrInvalidEnvironmentVariables, "eth7"},
	} {
		if code, text := s.host(api.OpAdd, c.node, c.ifname, c.host, settings); code != c.code || !strings.Contains(text, c.text) {
			t.Errorf("ADD, %s: code %d (%s), want %d", c.what, code, text, c.code)
		}
	}
	if n := s.daemon().Attachments; n != 1 {
		t.Errorf("the daemon has %d attachments, want alice's alone", n)
	}

	s.bridge.WaitQuerying(t.Context())
	for _, c := range []struct {
		endpoint *netnslab.Endpoint
		port     string // of the entry
	}{
		{uplink, uplink.Peer().Name()},
		{s.bridge.Endpoint, "cni0"},
	} {
		t.Run(c.endpoint.Name(), func(t *testing.T) {
			ifname := c.endpoint.Name()
			if code, text := s.host(api.OpAdd, s.Host(), ifname, true, settings); code != 0 {
				t.Fatalf("ADD: code %d (%s)", code, text)
			}
			for _, group := range []netip.Addr{groupA, groupB} {
				if _, ok := s.mdb(group)[c.port]; !ok {
					t.Errorf("after ADD the MDB has %v on %v, want %s", group, s.mdb(group), c.port)
				}
			}
			if code, text := s.host(api.OpCheck, s.Host(), ifname, true, settings); code != 0 {
				t.Errorf("CHECK: code %d (%s)", code, text)
			}
			application := c.endpoint.Receive(port)
			defer application.Close()
			onHost := c.endpoint.Capture()
			for _, group := range []netip.Addr{groupA, groupB} {
				sender.eth0.Send(group, port, []byte("data"), datagrams)
			}
			sender.eth0.Send(allNodes, port, []byte("the end"), 1)
			application.Wait(allNodes, 1)
			s.wait("the end", func() (bool, string) { return framesTo(onHost, allNodes) > 0, "" })
			if n := application.Count(groupA); n != datagrams {
				t.Errorf("the application received %d datagrams, want %d", n, datagrams)
			}
			if n := framesTo(onHost, groupB); n != datagrams {
				t.Errorf("%d frames to %v came to the interface, want %d", n, groupB, datagrams)
			}
			if code, text := s.host(api.OpDel, s.Host(), ifname, true, nil); code != 0 {
				t.Errorf("DEL: code %d (%s)", code, text)
			}
			s.wait("end of the entries", func() (bool, string) {
				for _, group := range []netip.Addr{groupA, groupB} {
					if _, ok := s.mdb(group)[c.port]; ok {
						return false, fmt.Sprint(s.mdb(group))
					}
				}
				return true, ""
			})
		})
	}
	if code, text := s.call("CHECK", alice, nil); code != 0 {
		t.Errorf("CHECK alice: code %d (%s)", code, text)
	}
}
