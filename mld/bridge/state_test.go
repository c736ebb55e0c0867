package bridge_test

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"testing"
	"time"

	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"

	"github.com/seed-aaab8e3a/cni-mld/mld"
	"github.com/seed-aaab8e3a/cni-mld/mld/bridge"
	"github.com/seed-aaab8e3a/cni-mld/netnslab"
)

// fast are the shortest intervals that the kernel takes.
var fast = netnslab.BridgeOptions{
	QueryInterval: time.Second, StartupQueryInterval: time.Second, QueryResponseInterval: 100 * time.Millisecond,
}

// pair is a bridge with two containers on it.
func pair(t *testing.T, options netnslab.BridgeOptions) (*netnslab.Bridge, *netnslab.Endpoint, *netnslab.Endpoint) {
	t.Helper()
	lab := netnslab.New(t)
	br := lab.Bridge("br0", options)
	return br, br.Connect(lab.Node("alice"), "eth0"), br.Connect(lab.Node("bob"), "eth0")
}

func stateOf(t *testing.T, e *netnslab.Endpoint) bridge.State {
	t.Helper()
	port := e.Port()
	state, err := port.State()
	if err != nil {
		t.Fatal(err)
	}
	return state
}

// agree waits until the bridge floods or does not, as wanted, and then asks it what it says about itself, but for what
// changes with every join.
func agree(t *testing.T, br *netnslab.Bridge, e *netnslab.Endpoint, floods bool) bridge.State {
	t.Helper()
	port := e.Port()
	var state bridge.State
	netnslab.WaitFor(t, fmt.Sprintf("floods=%v and querier=%v", floods, !floods), 10*time.Second, func() (bool, string) {
		var err error
		state, err = port.State()
		seen := br.Floods()
		return err == nil && seen == floods && state.Querier == !floods, fmt.Sprintf("floods=%v %+v %v", seen, state, err)
	}, br.Node())
	state.Groups = 0
	return state
}

// generalQuery is heard by the bridge as another querier's.
func generalQuery(e *netnslab.Endpoint, maxResponse time.Duration) []byte {
	return mld.AppendQuery(nil, e.LinkLocal(), mld.AllNodes, mld.Query{
		Version: mld.Version1, MulticastAddress: netip.IPv6Unspecified(),
		MaxResponseCode: uint16(maxResponse.Milliseconds()),
	})
}

func TestB1_NoQuerier(t *testing.T) {
	t.Parallel()
	br, alice, _ := pair(t, netnslab.BridgeOptions{})
	got := agree(t, br, alice, true)
	if want := (bridge.State{Snooping: true, MLDVersion: 1, HashMax: 4096, Forwarding: true}); got != want {
		t.Errorf("got %+v, want %+v", got, want)
	}
}

func TestB1_NoSnooping(t *testing.T) {
	t.Parallel()
	br, alice, bob := pair(t, netnslab.BridgeOptions{NoSnooping: true})
	bob.SendPacket(generalQuery(bob, time.Second))
	got := agree(t, br, alice, true)
	if want := (bridge.State{MLDVersion: 1, HashMax: 4096, Forwarding: true}); got != want {
		t.Errorf("got %+v, want %+v", got, want)
	}
}

func TestB1_OwnQuerier(t *testing.T) {
	t.Parallel()
	for _, version := range []int{1, 2} {
		t.Run(fmt.Sprint(version), func(t *testing.T) {
			t.Parallel()
			options := fast
			options.Querier = version
			br, alice, _ := pair(t, options)
			got := agree(t, br, alice, false)
			want := bridge.State{
				Snooping: true, Querier: true, QuerierAddr: br.LinkLocal(), MLDVersion: version, HashMax: 4096, Forwarding: true,
			}
			if got != want {
				t.Errorf("got %+v, want %+v", got, want)
			}
		})
	}
}

// For a response interval after a querier appears the state says less than the truth: the kernel does not tell.
func TestB2_NewQuerierFloods(t *testing.T) {
	t.Parallel()
	options := fast
	options.QueryResponseInterval = 500 * time.Millisecond
	br, alice, _ := pair(t, options)
	before := time.Now()
	br.EnableQuerier(1)
	if !br.Floods() && time.Since(before) < options.QueryResponseInterval {
		t.Error("the bridge constrains at once")
	}
	agree(t, br, alice, false)
	if took := time.Since(before); took < options.QueryResponseInterval {
		t.Errorf("constrains after %v", took)
	}
}

// An own querier that never had an address, and one that lost it.
func TestB3_OwnQuerierWithoutAddress(t *testing.T) {
	t.Parallel()
	options := fast
	options.Querier = 2
	br, alice, _ := pair(t, options)
	agree(t, br, alice, false)
	addr := br.LinkLocal()
	br.DelAddr(netip.PrefixFrom(addr, 64))
	agree(t, br, alice, true)
	br.DisableQuerier()
	br.EnableQuerier(2)
	agree(t, br, alice, true)
	br.AddAddr(netip.PrefixFrom(addr, 64))
	agree(t, br, alice, false)
}

func TestB12_OtherQuerier(t *testing.T) {
	t.Parallel()
	options := fast
	options.QuerierInterval = 2 * time.Second
	br, alice, bob := pair(t, options)
	port := alice.Port()
	netnslab.WaitFor(t, "querier", 10*time.Second, func() (bool, string) {
		// Like a querier it repeats itself: a bridge that has just come up does not take the first one in.
		bob.SendPacket(generalQuery(bob, 100*time.Millisecond))
		state, err := port.State()
		return err == nil && state.Querier, fmt.Sprintf("%+v %v", state, err)
	})
	got := agree(t, br, alice, false)
	want := bridge.State{
		Snooping: true, Querier: true, QuerierAddr: bob.LinkLocal(), QuerierPort: bob.Peer().Index(),
		MLDVersion: 1, HashMax: 4096, Forwarding: true,
	}
	if got != want {
		t.Errorf("got %+v, want %+v", got, want)
	}
	// It is not heard of again, and after the querier interval it is taken for dead.
	if got := agree(t, br, alice, true); got.QuerierAddr.IsValid() || got.QuerierPort != 0 {
		t.Errorf("got %+v of a bridge without a querier", got)
	}
}

func TestB19_Overflow(t *testing.T) {
	t.Parallel()
	options := fast
	options.Querier, options.HashMax = 2, 4
	br, alice, _ := pair(t, options)
	for i := range options.HashMax + 1 {
		alice.Join(netip.AddrFrom16([16]byte{0: 0xff, 1: 0x05, 15: byte(i + 1)}))
	}
	netnslab.WaitFor(t, "overflow", 10*time.Second, func() (bool, string) { // the kernel reports a moment after the join
		state := stateOf(t, alice)
		return !state.Snooping, fmt.Sprintf("%+v", state)
	}, alice.Node())
	if got := agree(t, br, alice, true); got.Snooping || got.HashMax != options.HashMax {
		t.Errorf("got %+v of a bridge whose database overflowed", got)
	}
	// What tells an overflow from a bridge whose snooping was turned off.
	if got := stateOf(t, alice); got.Groups == 0 {
		t.Errorf("got %+v: the entries went with the overflow", got)
	}
	off, carol, _ := pair(t, fast)
	carol.Join(netip.MustParseAddr("ff05::1"))
	netnslab.WaitFor(t, "entry", 10*time.Second, func() (bool, string) {
		state := stateOf(t, carol)
		return state.Groups > 0, fmt.Sprintf("%+v", state)
	}, off.Node())
	if out, err := off.Node().Command(t.Context(), "ip", "link", "set", "br0", "type", "bridge", "mcast_snooping", "0").CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	if got := stateOf(t, carol); got.Snooping || got.Groups != 0 {
		t.Errorf("got %+v of a bridge whose snooping was turned off", got)
	}
}

func TestMaxGroups(t *testing.T) {
	t.Parallel()
	br, alice, _ := pair(t, fast)
	// Not every iproute2 knows the option.
	request := nl.NewNetlinkRequest(unix.RTM_SETLINK, unix.NLM_F_ACK)
	header := nl.NewIfInfomsg(unix.AF_BRIDGE)
	header.Index = int32(alice.Peer().Index())
	request.AddData(header)
	port := nl.NewRtAttr(unix.IFLA_PROTINFO|unix.NLA_F_NESTED, nil)
	port.AddRtAttr(nl.IFLA_BRPORT_MCAST_MAX_GROUPS, nl.Uint32Attr(7))
	request.AddData(port)
	if err := br.Node().Do(func() error {
		_, err := request.Execute(unix.NETLINK_ROUTE, 0)
		return err
	}); err != nil {
		t.Fatal(err)
	}
	if got := stateOf(t, alice); got.MaxGroups != 7 {
		t.Errorf("got %+v, want a limit of 7 entries", got)
	}
}

func TestForwarding(t *testing.T) {
	t.Parallel()
	br, alice, _ := pair(t, netnslab.BridgeOptions{})
	port := alice.Port()
	if !stateOf(t, alice).Forwarding {
		t.Error("a port whose link is up does not forward")
	}
	alice.SetDown()
	netnslab.WaitFor(t, "port not forwarding", 10*time.Second, func() (bool, string) {
		state, err := port.State()
		return err == nil && !state.Forwarding, fmt.Sprintf("%+v %v", state, err)
	}, br.Node())
}

// A bridge is a port of its own: the entries there are of what its host has joined.
func TestBridgeItself(t *testing.T) {
	t.Parallel()
	options := fast
	options.Querier = 2
	br, alice, _ := pair(t, options)
	port, err := bridge.FindPort(br.Node().Netns(), br.Index())
	if err != nil {
		t.Fatal(err)
	}
	defer port.Close()
	if want := "br0 port br0"; port.String() != want {
		t.Errorf("got %q, want %q", port, want)
	}
	alice.Join(netip.MustParseAddr("ff05::1"))
	br.Join(group)
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	if err := port.Wait(ctx, group); err != nil {
		t.Fatal(err)
	}
	members, err := port.Members()
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range members {
		if e.Port != br.Index() || e.Group == netip.MustParseAddr("ff05::1") {
			t.Errorf("not the bridge's own: %+v", e)
		}
	}
	state, err := port.State()
	if err != nil || !state.Forwarding || !state.Querier || state.QuerierAddr != br.LinkLocal() {
		t.Errorf("got %+v, %v", state, err)
	}
	br.SetDown()
	if state, err := port.State(); err != nil || state.Forwarding {
		t.Errorf("down: got %+v, %v", state, err)
	}
	br.Delete()
	if state, err := port.State(); !errors.Is(err, bridge.ErrNotPort) {
		t.Errorf("after its end: got %+v, %v, want ErrNotPort", state, err)
	}
}

func TestErrNotPort(t *testing.T) {
	t.Parallel()
	lab := netnslab.New(t)
	br := lab.Bridge("br0", netnslab.BridgeOptions{})
	alice := br.Connect(lab.Node("alice"), "eth0")
	free, _ := lab.Veth(lab.Host(), "free", lab.Node("bob"), "eth0")
	for name, index := range map[string]int{"cable": free.Index(), "nothing": 4711} {
		port, err := bridge.FindPort(lab.Host().Netns(), index)
		if !errors.Is(err, bridge.ErrNotPort) {
			t.Errorf("%s: got %v, %v, want ErrNotPort", name, port, err)
		}
	}
	port := alice.Port()
	if want := "br0 port alice"; port.String() != want {
		t.Errorf("got %q, want %q", port, want)
	}
	alice.Delete()
	if state, err := port.State(); !errors.Is(err, bridge.ErrNotPort) {
		t.Errorf("after its end: got %+v, %v, want ErrNotPort", state, err)
	}
}
