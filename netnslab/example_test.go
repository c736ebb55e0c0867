package netnslab_test

import (
	"fmt"
	"net/netip"
	"time"

	"github.com/seed-aaab8e3a/cni-mld/netnslab"
)

// Two containers on a bridge with a querier; one of them has an application that joins a group.
func Example() {
	tb := &program{name: "example"} // in a test: t
	defer tb.end()
	lab := netnslab.New(tb)

	group := netip.MustParseAddr("ff05::4321")
	br := lab.Bridge("br0", netnslab.BridgeOptions{Querier: 2})
	sender := br.Connect(lab.Node("sender"), "eth0")
	alice := br.Connect(lab.Node("alice"), "eth0")
	bob := br.Connect(lab.Node("bob"), "eth0")

	frames := alice.Capture(netnslab.MLD)
	alice.Join(group)
	report := frames.Wait(time.Second, "report", func(f netnslab.Frame) bool { return f.Outgoing && f.ICMPv6() == 143 })
	fmt.Println("report from", report.Src(), "to", report.Dst())

	br.WaitQuerying(tb.Context())
	if err := alice.Port().Wait(tb.Context(), group); err != nil {
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
