package e2e

import (
	"bytes"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/seed-aaab8e3a/cni-mld/e2e/chain"
	"github.com/seed-aaab8e3a/cni-mld/netnslab"
	"github.com/seed-aaab8e3a/cni-mld/plugin/api"
)

// ready makes mld's configuration of one group and what to wait for.
func ready(wait, timeout string) map[string]any {
	return map[string]any{
		"groups":                    []netip.Addr{groupA},
		"ready":                     map[string]any{"wait": wait, "timeout": timeout},
		"unsolicitedReportInterval": "200ms", "robustness": 7,
	}
}

// blockReports keeps Reports from the bridge's snooping, although they leave the container, until the returned function
// is called.
func (s *segment) blockReports() (unblock func()) {
	s.tb.Helper()
	s.run("nft", "add", "table", "bridge", "block")
	s.run("nft", "add chain bridge block in { type filter hook prerouting priority 0; }")
	s.run("nft", "add", "rule", "bridge", "block", "in", "icmpv6", "type", "{ 131, 143 }", "drop")
	return func() {
		s.tb.Helper()
		s.run("nft", "delete", "table", "bridge", "block")
	}
}

// An added is what an ADD of mld alone has come to.
type added struct {
	code       uint
	text       string
	diagnostic string // what the plugin says on standard error
	end        time.Time
}

// start begins an ADD of mld alone.
func (s *segment) start(c *container, keys map[string]any) <-chan added {
	result := make(chan added, 1)
	go func() {
		var stderr bytes.Buffer
		_, err := s.chain.Run(s.tb.Context(), chain.Call{
			Command: "ADD", ContainerID: c.Name(), Netns: c.Path(), MLD: speaking(keys), Stderr: &stderr,
		})
		a := added{end: time.Now(), diagnostic: stderr.String()}
		a.code, a.text = codeOf(err)
		result <- a
	}()
	return result
}

// ADD returns when the bridge has the entry, however late that is, and then it forwards.
func TestReadyMDB(t *testing.T) {
	t.Parallel()
	for _, wait := range []string{"auto", "mdb"} {
		t.Run(wait, func(t *testing.T) {
			t.Parallel()
			s := newSegment(t, quiet, nil)
			alice := s.connect("alice")
			unblock := s.blockReports()
			result := s.start(alice, ready(wait, "20s"))
			for range 2 {
				alice.heard.Wait(patience, "report", func(f netnslab.Frame) bool { return f.Outgoing && f.Dst() == groupA })
			}
			select {
			case a := <-result:
				t.Fatalf("ADD returned before there was an entry: %+v", a)
			default:
			}
			unblock()
			if a := <-result; a.code != 0 {
				t.Fatalf("ADD: code %d (%s)", a.code, a.text)
			}
			if !s.inMDB(groupA, alice) {
				t.Error("no entry after ADD")
			}
		})
	}
}

// Twenty containers in a row find their entry when ADD returns.
func TestReadyTwenty(t *testing.T) {
	t.Parallel()
	s := newSegment(t, quiet, map[string]any{"groups": []netip.Addr{groupA}})
	for i := range 20 {
		c := s.add("c" + string(rune('a'+i)))
		if !s.inMDB(groupA, c) {
			t.Errorf("%s: no entry after ADD: %v", c, s.mdb(groupA))
		}
	}
}

// While there is no valid link-local address nothing is reported that a router counts (V1-30, V1-38), and ADD waits for
// that where it does not wait for the bridge.
func TestV1_30_V1_38_ReadyReport(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		name, wait string
		bridge     netnslab.BridgeOptions
	}{
		{"auto without a querier", "auto", netnslab.BridgeOptions{}},
		{"auto without snooping", "auto", netnslab.BridgeOptions{NoSnooping: true}},
		{"report", "report", quiet},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			s := newSegment(t, c.bridge, nil)
			alice := s.connect("alice", netnslab.DAD) // a second of it
			a := <-s.start(alice, ready(c.wait, "20s"))
			if a.code != 0 || strings.Contains(a.diagnostic, "not known to be ready") {
				t.Fatalf("ADD: code %d (%s), %s", a.code, a.text, a.diagnostic)
			}
			own := alice.eth0.LinkLocal()
			isReport := func(src netip.Addr) func(netnslab.Frame) bool {
				return func(f netnslab.Frame) bool { return f.Outgoing && f.Dst() == groupA && f.Src() == src }
			}
			early := alice.heard.Wait(patience, `report from "::"`, isReport(netip.IPv6Unspecified()))
			first := alice.heard.Wait(patience, "report from "+own.String(), isReport(own))
			if !early.Time.Before(first.Time) || first.Time.After(a.end) {
				t.Errorf(`reports: from "::" at %v, from %v at %v; ADD returned at %v`, early.Time, own, first.Time, a.end)
			}
		})
	}
}

// At the timeout auto is content and says so; what was asked for by name is an error, and everything is undone.
func TestReadyTimeout(t *testing.T) {
	t.Parallel()
	blocked := func(s *segment) *container {
		s.blockReports()
		return s.connect("alice")
	}
	tentative := func(s *segment) *container {
		n := s.Node("alice")
		n.SetSysctl("net/ipv6/conf/default/dad_transmits", "100") // a second each
		return newContainer(s.tb, n, s.bridge.Connect(n, chain.IfName, netnslab.DAD))
	}
	cable := func(s *segment) *container {
		n := s.Node("alice")
		eth0, _ := s.Veth(n, chain.IfName, s.Host(), "far")
		return newContainer(s.tb, n, eth0)
	}
	for _, c := range []struct {
		name, wait string
		bridge     netnslab.BridgeOptions
		connect    func(*segment) *container
		code       uint
		text       string // of the error, or of the warning
	}{
		{"auto, no entry", "auto", quiet, blocked, 0, "no entry for [ff05::a]"},
		{"auto, no report", "auto", netnslab.BridgeOptions{}, tentative, 0, "no valid link-local address"},
		{"mdb, no entry", "mdb", quiet, blocked, api.CodeNotReady, "not ready after 300ms: cni0 port alice: no entry for [ff05::a]"},
		{"mdb, no snooping", "mdb", netnslab.BridgeOptions{NoSnooping: true}, blocked, api.CodeNotReady, "not ready: bridge cni0: snooping is off"},
		{"mdb, no bridge", "mdb", quiet, cable, api.CodeNotReady, "not ready: link far: not a port of a bridge"},
		{"report", "report", quiet, tentative, api.CodeNotReady, "no valid link-local address"},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			s := newSegment(t, c.bridge, nil)
			alice := c.connect(s)
			a := <-s.start(alice, ready(c.wait, "300ms"))
			if a.code != c.code {
				t.Fatalf("ADD: code %d (%s), want %d", a.code, a.text, c.code)
			}
			if said := a.text + a.diagnostic; !strings.Contains(said, c.text) {
				t.Errorf("ADD says %q, and not %q", said, c.text)
			}
			if c.code == 0 {
				if n := s.daemon().Attachments; n != 1 {
					t.Errorf("the daemon has %d attachments, want 1", n)
				}
				return
			}
			if n := s.daemon().Attachments; n != 0 {
				t.Errorf("the daemon has %d attachments, want none", n)
			}
			if alice.kernelHolds(groupA) {
				t.Errorf("the kernel still holds %v", groupA)
			}
			s.waitReleased(alice)
		})
	}
}

// Nothing is waited for.
func TestReadyNone(t *testing.T) {
	t.Parallel()
	s := newSegment(t, quiet, nil)
	s.blockReports()
	alice := s.connect("alice")
	a := <-s.start(alice, ready("none", "20s"))
	if a.code != 0 || a.diagnostic != "" {
		t.Errorf("ADD: code %d (%s), %s", a.code, a.text, a.diagnostic)
	}
	if s.inMDB(groupA, alice) {
		t.Error("there is an entry: are reports blocked?")
	}
}
