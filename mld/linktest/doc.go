// Package linktest is a network segment in memory, for tests of what listens on an interface.
//
// A [Segment] carries IPv6 packets, each to everyone who is plugged in but its sender, and writes down what was
// sent when. A [Port] does for an agent what an interface does (mld/link), and does as the test tells it: goes down,
// refuses packets, disappears. A [Querier] is a router on the segment that asks by a script. [Memberships] stands
// for the kernel of the agent's node (mld/kernel).
//
//	segment := linktest.NewSegment()
//	port := linktest.Plug(segment, "alice", link.State{Up: true, ...})
//	router := segment.Querier(netip.MustParseAddr("fe80::99"))
//	...
//	router.Ask(netip.Addr{}, 10*time.Second)
//	time.Sleep(10 * time.Second) // by the clock of the bubble
//	for _, p := range segment.Take() {
//		... // p.At, p.Message.MulticastAddress
//	}
//
// It is made for the bubbles of testing/synctest: whoever waits here waits for a channel or for a timer, so that the
// clock of the bubble goes on, and ten seconds take no time. Segment, ports and memberships have to be made inside
// the bubble. A packet is with its receivers at the moment it is sent.
//
// What the state of an interface is made of, and what a change of memberships, is the type parameter's; this package
// stands on package mld alone.
package linktest
