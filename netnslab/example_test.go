package netnslab_test

import (
	"context"
	"fmt"
	"net/netip"
	"time"

	"github.com/seed-aaab8e3a/cni-mld/mld/bridge"
	"github.com/seed-aaab8e3a/cni-mld/netnslab"
)

// Two containers on a bridge with a querier; one of them has an application that joins a group.
func Example() {
	tb := &program{name: "example"} // in a test: t
	defer tb.end()
	ctx, cancel := context.WithTimeout(tb.Context(), 10*time.Second)
	defer cancel()
	lab := netnslab.New(tb)

	group := netip.MustParseAddr("ff05::4321")
	br := lab.Bridge("br0", netnslab.BridgeOptions{Querier: 2})
	sender := br.Connect(lab.Node("sender"), "eth0")
	alice := br.Connect(lab.Node("alice"), "eth0")
	bob := br.Connect(lab.Node("bob"), "eth0")

	alice.LinkLocal() // before it has one the kernel reports from "::"
	frames := alice.Capture(netnslab.MLD)
	alice.Join(group)
	report := frames.Wait(time.Second, "report", func(f netnslab.Frame) bool { return f.Outgoing && f.ICMPv6() == 143 })
	fmt.Println("report from", report.Src(), "to", report.Dst())

	br.WaitQuerying(ctx)
	if err := alice.Port().Wait(ctx, group); err != nil {
		tb.Fatalf("%v", err)
	}
	atAlice, atBob := alice.Receive(9000), bob.Receive(9000)
	everybody := netip.MustParseAddr("ff02::1")
	sender.Send(group, 9000, []byte("data"), 5)
	sender.Send(everybody, 9000, []byte("the end"), 1)
	atAlice.Wait(group, 5)
	atBob.Wait(everybody, 1) // what was sent before would be here by now
	fmt.Println("alice", atAlice.Count(group), "bob", atBob.Count(group))

	// Output:
	// report from fe80::ff:fe00:201 to ff02::16
	// alice 5 bob 0
}

// Source-specific multicast: of two who send to a group, the application hears the one it has asked for.
func ExampleEndpoint_JoinSource() {
	tb := &program{name: "example"} // in a test: t
	defer tb.end()
	ctx, cancel := context.WithTimeout(tb.Context(), 10*time.Second)
	defer cancel()
	lab := netnslab.New(tb)

	br := lab.Bridge("br0", netnslab.BridgeOptions{Querier: 2}) // with MLDv1 nobody could name sources
	alice := br.Connect(lab.Node("alice"), "eth0")
	wanted := br.Connect(lab.Node("wanted"), "eth0")
	other := br.Connect(lab.Node("other"), "eth0")
	alice.AddAddr(netip.MustParsePrefix("fd00:1::1/64"))
	wanted.AddAddr(netip.MustParsePrefix("fd00:1::10/64"))
	other.AddAddr(netip.MustParsePrefix("fd00:1::66/64"))

	channel := bridge.Flow{Group: netip.MustParseAddr("ff3e::8000:1"), Source: netip.MustParseAddr("fd00:1::10")}
	alice.JoinSource(channel.Group, channel.Source)
	br.WaitQuerying(ctx)
	if err := alice.Port().WaitFlows(ctx, channel); err != nil {
		tb.Fatalf("%v", err)
	}
	frames, datagrams := alice.Capture(), alice.Receive(9000)
	other.Send(channel.Group, 9000, []byte("data"), 5)
	wanted.Send(channel.Group, 9000, []byte("data"), 5)
	datagrams.Wait(channel.Group, 5)
	for range 5 { // the capture may be later than the application
		frames.Wait(time.Second, "data", func(f netnslab.Frame) bool { return f.Dst() == channel.Group && f.Src() == channel.Source })
	}
	arrived := map[netip.Addr]int{}
	for _, f := range frames.Frames() { // what was sent before is here by now
		if f.Dst() == channel.Group {
			arrived[f.Src()]++
		}
	}
	fmt.Println("delivered", datagrams.Count(channel.Group), "arrived", arrived)

	// Output:
	// delivered 5 arrived map[fd00:1::10:5]
}
