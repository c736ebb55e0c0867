package e2e

import (
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/containernetworking/cni/pkg/types"

	"github.com/seed-aaab8e3a/cni-mld/plugin/api"
)

// CHECK passes while the bridge forwards, and else says why it does not.
func TestCheck(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		name  string
		spoil func(t *testing.T, s *segment, alice *container)
		code  uint
		text  []string
		mend  func(s *segment, alice *container) // so that CHECK passes again
	}{
		{name: "nothing", spoil: func(*testing.T, *segment, *container) {}},
		{
			name:  "interface down",
			spoil: func(_ *testing.T, _ *segment, alice *container) { alice.eth0.SetDown() },
			code:  api.CodeNotReady, text: []string{"interface eth0", "the link is down"},
			mend: func(s *segment, alice *container) {
				alice.eth0.SetUp()
				alice.eth0.LinkLocal() // the kernel takes up to a second to notice the carrier
			},
		},
		{
			name: "daemon gone",
			spoil: func(t *testing.T, s *segment, _ *container) {
				if err := s.chain.Kill(t.Context()); err != nil {
					t.Fatal(err)
				}
			},
			code: types.ErrTryAgainLater, text: []string{"mldd", "connection refused", "start mldd"},
		},
		{
			name: "daemon started anew",
			spoil: func(t *testing.T, s *segment, _ *container) {
				if err := s.chain.Kill(t.Context()); err != nil {
					t.Fatal(err)
				}
				s.add("bob")
			},
		},
		{
			name: "daemon started anew, and nothing remembered",
			spoil: func(t *testing.T, s *segment, _ *container) {
				if err := s.chain.Kill(t.Context()); err != nil {
					t.Fatal(err)
				}
				if err := os.RemoveAll(filepath.Join(s.chain.RunDir, "attachments")); err != nil {
					t.Fatal(err)
				}
				s.add("bob")
			},
			code: types.ErrUnknownContainer, text: []string{"lab/alice/eth0", "mldd does not know it"},
			mend: func(s *segment, alice *container) { s.call("ADD", alice, nil) },
		},
		{
			name: "entry of the MDB deleted",
			spoil: func(_ *testing.T, s *segment, alice *container) {
				s.run("bridge", "mdb", "del", "dev", "cni0", "port", alice.eth0.Peer().Name(), "grp", groupA.String())
			},
			code: api.CodeNotReady, text: []string{"cni0", "no entry for [ff05::a]"},
			mend: func(s *segment, _ *container) { s.query(general, 0) },
		},
		{
			name: "port off its bridge",
			spoil: func(_ *testing.T, s *segment, alice *container) {
				s.run("ip", "link", "set", "dev", alice.eth0.Peer().Name(), "nomaster")
			},
			code: api.CodeNotReady, text: []string{"was a port of bridge cni0, and is none any more: ip link set"},
			mend: func(s *segment, alice *container) {
				s.run("ip", "link", "set", "dev", alice.eth0.Peer().Name(), "master", "cni0")
				s.query(general, 0) // what was entered is forgotten
			},
		},
		{
			name: "IPv6 switched off",
			spoil: func(_ *testing.T, _ *segment, alice *container) {
				alice.SetSysctl("net/ipv6/conf/eth0/disable_ipv6", "1")
			},
			code: api.CodeNotReady, text: []string{"IPv6 is off", "net.ipv6.conf.eth0.disable_ipv6"},
		},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			s := newSegment(t, quiet, map[string]any{"groups": []netip.Addr{groupA}, "robustness": 1})
			alice := s.add("alice")
			if err := s.chain.Check(t.Context(), alice.Node); err != nil {
				t.Fatalf("CHECK after ADD: %v", err)
			}
			c.spoil(t, s, alice)
			code, text := s.call("CHECK", alice, nil)
			if code != c.code {
				t.Errorf("CHECK: code %d (%s), want %d", code, text, c.code)
			}
			for _, part := range c.text {
				if !strings.Contains(text, part) {
					t.Errorf("CHECK says %q, and not %q", text, part)
				}
			}
			if c.mend != nil {
				c.mend(s, alice)
				if code, text := s.call("CHECK", alice, nil); code != 0 {
					t.Errorf("CHECK afterwards: code %d (%s)", code, text)
				}
			}
		})
	}
}

// CHECK passes where the bridge rightly has no entry, because it floods (B1), and what applications have joined is not
// judged.
func TestCheckFlooding(t *testing.T) {
	t.Parallel()
	s := newSegment(t, quiet, map[string]any{"groups": []netip.Addr{groupA}})
	alice := s.add("alice")
	alice.eth0.Join(groupB)
	s.waitSent(alice, time.Time{}, report, groupB, 1)
	port := alice.eth0.Peer().Name()
	s.run("bridge", "mdb", "del", "dev", "cni0", "port", port, "grp", groupB.String())
	if code, text := s.call("CHECK", alice, nil); code != 0 {
		t.Errorf("an application's group: code %d (%s)", code, text)
	}
	s.run("bridge", "mdb", "del", "dev", "cni0", "port", port, "grp", groupA.String())
	s.bridge.DisableQuerier()
	if code, text := s.call("CHECK", alice, nil); code != 0 {
		t.Errorf("without a querier: code %d (%s)", code, text)
	}
}
