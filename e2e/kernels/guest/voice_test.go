//go:build kernels

package guest

import (
	"fmt"
	"net/netip"
	"slices"
	"testing"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"

	"github.com/seed-aaab8e3a/cni-mld/mld"
	"github.com/seed-aaab8e3a/cni-mld/mld/agent"
	"github.com/seed-aaab8e3a/cni-mld/mld/bridge"
	"github.com/seed-aaab8e3a/cni-mld/mld/listener"
	"github.com/seed-aaab8e3a/cni-mld/netnslab"
)

// The kernel speaks version 2, our listener is made to speak version 1: so the type of a Report says whose it is. Muted,
// the kernel is not heard, though it tries, and ours speaks for the application; kept, the kernel does itself. When the
// agent has gone, the kernel answers.
func TestOneVoice(t *testing.T) {
	s := newSegment(t, 2, nil)
	alice := s.connect("alice")
	mutes := canMute(t, alice) == nil
	a, err := agent.Start(agent.Config{
		Netns: alice.Node().Netns(), Index: alice.Index(), Listener: listener.Config{Version: mld.Version1},
	})
	if err != nil {
		t.Fatal(err)
	}
	defer func() { a.Close(); <-a.Done() }()
	state, err := a.State(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if muted := state.KernelReports == agent.Mute; muted != mutes {
		t.Fatalf("kernel reports: %v, but the kernel can be muted: %v", state.KernelReports, mutes)
	}

	heard := alice.Peer().Capture(netnslab.MLD) // what comes to the bridge
	application := alice.Join(groupC)
	if mutes {
		heard.Wait(patience, "our Report", about(report, groupC))
		netnslab.WaitFor(t, "the kernel's muted Reports", patience, func() (bool, string) {
			state, err := a.State(t.Context())
			return err == nil && state.Muted > 0, ""
		})
	} else {
		heard.Wait(patience, "the kernel's Report", kind(reportV2))
	}
	s.waitEntries(alice, bridge.Flow{Group: groupC})
	if err := application.Close(); err != nil {
		t.Fatal(err)
	}
	s.waitNoEntry(alice, groupC)
	s.settle(heard)
	for _, f := range heard.Frames() {
		if mutes && kind(reportV2)(f) {
			t.Errorf("the kernel was heard: %v", f)
		}
		if !mutes && about(report, groupC)(f) {
			t.Errorf("we spoke for what the kernel reports itself: %v", f)
		}
	}

	a.Close()
	<-a.Done()
	alice.Join(groupC)
	heard = alice.Peer().Capture(netnslab.MLD)
	s.query()
	heard.Wait(patience, "the kernel's answer", kind(reportV2))
}

// about matches a message of version 1 about a group, which ends with that.
func about(k uint8, group netip.Addr) func(netnslab.Frame) bool {
	of := kind(k)
	return func(f netnslab.Frame) bool {
		packet := f.IPv6()
		return of(f) && slices.Equal(packet[len(packet)-16:], group.AsSlice())
	}
}

// settle waits until what has been sent to the bridge by now has been captured.
func (s *segment) settle(c *netnslab.Capture) {
	s.tb.Helper()
	marker := mld.AppendDone(nil, s.bridge.LinkLocal(), netip.MustParseAddr("ff0e::db8:0:ffff"))
	s.bridge.SendPacket(marker)
	c.Wait(patience, "marker", func(f netnslab.Frame) bool {
		packet := f.IPv6()
		return f.Outgoing && len(packet) >= len(marker) && slices.Equal(packet[len(marker)-16:len(marker)], marker[len(marker)-16:])
	})
}

// A killed daemon takes the mute with it: the kernel answers for the application's groups.
func TestKilledDaemon(t *testing.T) {
	s := newSegment(t, 2, map[string]any{"groups": []any{groupA}, "mldVersion": 1})
	alice := s.connect("alice")
	if err := s.call("ADD", alice); err != nil {
		t.Fatal(err)
	}
	alice.Join(groupC)
	s.waitEntries(alice, bridge.Flow{Group: groupC})
	if err := s.chain.Kill(t.Context()); err != nil {
		t.Fatal(err)
	}
	heard := alice.Peer().Capture(netnslab.MLD)
	netnslab.WaitFor(t, "answer of the kernel", patience, func() (bool, string) {
		s.query() // more than once: the mute outlives its socket for a moment
		return slices.ContainsFunc(heard.Frames(), kind(reportV2)), fmt.Sprint(heard.Frames())
	})
}

// A killed worker is followed by another, which knows the container again.
func TestKilledWorker(t *testing.T) {
	s := newSegment(t, 2, map[string]any{"groups": []any{groupA, map[string]any{"group": groupB, "deliver": false}}})
	alice := s.add("alice")
	s.waitEntries(alice, bridge.Flow{Group: groupA}, bridge.Flow{Group: groupB})
	before, err := s.chain.Daemon(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if err := unix.Kill(before.PID, unix.SIGKILL); err != nil {
		t.Fatal(err)
	}
	netnslab.WaitFor(t, "the next worker with the container", patience, func() (bool, string) {
		now, err := s.chain.Daemon(t.Context())
		return err == nil && now.PID != before.PID && now.Attachments == 1, fmt.Sprintf("%+v, %v", now, err)
	})
	if err := s.chain.Check(t.Context(), alice.Node()); err != nil {
		t.Errorf("CHECK: %v", err)
	}
	want := map[flow]int{
		{goodAddr, groupA}: datagrams, {badAddr, groupA}: datagrams,
		{goodAddr, groupB}: datagrams, {badAddr, groupB}: datagrams,
	}
	if diff := cmp.Diff(want, s.arriving(alice, groupA, groupB), compareFlows); diff != "" {
		t.Errorf("frames at alice (-want +got):\n%s", diff)
	}
}
