//go:build kernels

package guest

import (
	"errors"
	"fmt"
	"net/netip"
	"strings"
	"testing"

	"github.com/containernetworking/cni/pkg/types"
	"github.com/google/go-cmp/cmp"

	"github.com/seed-aaab8e3a/cni-mld/mld/bridge"
	"github.com/seed-aaab8e3a/cni-mld/netnslab"
	"github.com/seed-aaab8e3a/cni-mld/plugin/api"
)

// What is declared is in the bridge's database when ADD returns, its data comes to the container and nowhere else, and
// CHECK agrees; DEL leaves it.
func TestDeclared(t *testing.T) {
	each(t, func(t *testing.T, version int, reports string) {
		groups := []any{groupA, map[string]any{"group": groupB, "deliver": false}}
		flows := []bridge.Flow{{Group: groupA}, {Group: groupB}}
		want := map[flow]int{
			{goodAddr, groupA}: datagrams, {badAddr, groupA}: datagrams,
			{goodAddr, groupB}: datagrams, {badAddr, groupB}: datagrams,
		}
		addrs := []netip.Addr{groupA, groupB}
		if version == 2 { // in version 1 nobody can name sources
			groups = append(groups, fmt.Sprintf("%v@%v", goodAddr, groupS),
				map[string]any{"group": groupT, "mode": "include", "sources": []netip.Addr{goodAddr}, "deliver": false})
			flows = append(flows, bridge.Flow{Group: groupS, Source: goodAddr}, bridge.Flow{Group: groupT, Source: goodAddr})
			addrs = append(addrs, groupS, groupT)
			want[flow{goodAddr, groupS}], want[flow{goodAddr, groupT}] = datagrams, datagrams
		}
		s := newSegment(t, version, map[string]any{
			"groups": groups, "kernelReports": reports, "ready": map[string]any{"wait": "mdb", "timeout": patience.String()},
		})
		alice := s.add("alice")
		if n := len(s.entries(alice, addrs...)); n != len(addrs) {
			t.Errorf("entries after ADD: %v, want one for each of %v", s.entries(alice, addrs...), addrs)
		}
		s.waitEntries(alice, flows...)
		state, err := alice.Port().State()
		if err != nil || !state.Querier || state.QuerierAddr != s.bridge.LinkLocal() || state.MLDVersion != version {
			t.Errorf("state of the bridge: %+v, %v", state, err)
		}

		application := alice.Receive(port)
		if diff := cmp.Diff(want, s.arriving(alice, addrs...), compareFlows); diff != "" {
			t.Errorf("frames at alice (-want +got):\n%s", diff)
		}
		application.Wait(allNodes, 1)
		for _, g := range []netip.Addr{groupA, groupS} {
			sum := want[flow{goodAddr, g}] + want[flow{badAddr, g}]
			if n := application.Count(g); n != sum {
				t.Errorf("%d datagrams of %v at an application that joins nothing, want %d", n, g, sum)
			}
		}
		for _, g := range []netip.Addr{groupB, groupT} {
			if n := application.Count(g); n != 0 {
				t.Errorf("%d datagrams of %v, which is not to be delivered", n, g)
			}
		}

		if err := s.chain.Check(t.Context(), alice.Node()); err != nil {
			t.Errorf("CHECK: %v", err)
		}
		netnslab.WaitFor(t, "CHECK that fails without an entry", patience, func() (bool, string) {
			// More than once: what has been reported twice by now may come once more.
			_ = s.Host().Command(t.Context(), "bridge", "mdb", "del", "dev", "cni0", "port", alice.Peer().Name(), "grp", groupB.String()).Run()
			err := s.chain.Check(t.Context(), alice.Node())
			var said *types.Error
			return errors.As(err, &said) && said.Code == api.CodeNotReady, fmt.Sprint(err)
		})
		if err := s.call("DEL", alice); err != nil {
			t.Errorf("DEL: %v", err)
		}
		s.waitNoEntry(alice, addrs...)
		if got := s.arriving(alice, addrs...); len(got) > 0 {
			t.Errorf("frames after DEL: %v", got)
		}
	})
}

// each runs a test with bridges of both versions, and with a kernel that is muted if it can be, and one that is not.
func each(t *testing.T, test func(t *testing.T, version int, reports string)) {
	for _, version := range []int{1, 2} {
		for _, reports := range []string{"auto", "keep"} {
			t.Run(fmt.Sprintf("MLDv%d/%s", version, reports), func(t *testing.T) { test(t, version, reports) })
		}
	}
}

var compareFlows = cmp.AllowUnexported(flow{})

// What an application joins is reported, by whoever speaks for it, and what it leaves is left.
func TestApplication(t *testing.T) {
	each(t, func(t *testing.T, version int, reports string) {
		s := newSegment(t, version, map[string]any{"groups": []any{groupA}, "kernelReports": reports})
		alice := s.add("alice")

		any := alice.Join(groupC)
		s.waitEntries(alice, bridge.Flow{Group: groupC})
		want := map[flow]int{{goodAddr, groupC}: datagrams, {badAddr, groupC}: datagrams}
		if diff := cmp.Diff(want, s.arriving(alice, groupC), compareFlows); diff != "" {
			t.Errorf("frames at alice (-want +got):\n%s", diff)
		}
		if err := any.Close(); err != nil {
			t.Fatal(err)
		}
		s.waitNoEntry(alice, groupC)
		if got := s.arriving(alice, groupC); len(got) > 0 {
			t.Errorf("frames after the leave: %v", got)
		}
		if len(s.entries(alice, groupA)) == 0 {
			t.Error("the declared group has no entry any more")
		}
		if version == 1 {
			return
		}

		some := alice.JoinSource(groupU, goodAddr)
		s.waitEntries(alice, bridge.Flow{Group: groupU, Source: goodAddr})
		want = map[flow]int{{goodAddr, groupU}: datagrams}
		if diff := cmp.Diff(want, s.arriving(alice, groupU), compareFlows); diff != "" {
			t.Errorf("frames of one source at alice (-want +got):\n%s", diff)
		}
		if err := some.AddSource(badAddr); err != nil {
			t.Fatal(err)
		}
		s.waitEntries(alice, bridge.Flow{Group: groupU, Source: goodAddr}, bridge.Flow{Group: groupU, Source: badAddr})
		if err := some.DropSource(goodAddr); err != nil {
			t.Fatal(err)
		}
		s.waitNoFlow(alice, groupU, goodAddr)
		want = map[flow]int{{badAddr, groupU}: datagrams}
		if diff := cmp.Diff(want, s.arriving(alice, groupU), compareFlows); diff != "" {
			t.Errorf("frames of the other source at alice (-want +got):\n%s", diff)
		}
		if err := some.Close(); err != nil {
			t.Fatal(err)
		}
		s.waitNoEntry(alice, groupU)
	})
}

// Who asks for a mute by name gets it, or the reason why not.
func TestMuteByName(t *testing.T) {
	s := newSegment(t, 1, map[string]any{"groups": []any{groupA}, "kernelReports": "mute"})
	alice := s.connect("alice")
	reason := canMute(t, alice)
	err := s.call("ADD", alice)
	if reason == nil {
		if err != nil {
			t.Errorf("ADD: %v", err)
		}
		return
	}
	t.Logf("ADD: %v", err)
	var said *types.Error
	if !errors.As(err, &said) || said.Code != api.CodeKernelReports || !strings.Contains(said.Error(), "Linux 5.12") {
		t.Errorf("ADD: %v, want code %d and the reason: %v", err, api.CodeKernelReports, reason)
	}
	s.waitNoEntry(alice, groupA)
}
