// Package link is one network interface as an MLD listener sees it: the MLD packets that arrive there, the
// packets that the listener sends, and what changes about the interface itself.
//
//	l, err := link.Open(ns, ifindex)
//	...
//	state, err := l.State()             // name, addresses, MTU, whether it is up
//	packet, _, err := l.ReadPacket()    // the next Query, Report or Done on the wire, for mld.Parse
//	err = l.WritePacket(packet)         // made by mld.AppendReport and its like
//	state, err = l.Watch()              // returns when State has changed
//
// Which interfaces there are, and what they lead to, a [Lookup] tells.
//
// # Packets
//
// An AF_PACKET socket hears what a raw ICMPv6 socket does not: specific queries for, and Reports of, groups
// that the kernel has not joined (protocol rules S1, S2). A filter in the kernel lets MLD messages through and
// nothing else, so other traffic costs no wake-up; whether a message is a good one is for mld.Parse to say, and
// to count. Frames that this host sent, by us or (but after HearKernel) by its kernel, are not heard, nor are
// frames for other hosts. Which groups an interface with a filter takes in is for AddMembership to say.
// Packets that are sent do not pass the namespace's netfilter hooks, and no allocation is made for a packet in
// either direction.
//
// # State
//
// Watch is level-triggered: an event only says that it is worth looking again, and the state is then read
// afresh. A lost event or a hundred at once therefore cannot leave a wrong picture behind. What was different for a
// moment only is not seen, but for a loss of the carrier, which the kernel counts: behind the other end there may be
// somebody else now.
// Switching IPv6 off on an interface that has no IPv6 address is told by the route of multicast that goes with it, and
// so by nothing where sysctl net.ipv6.route.skip_notify_on_dev_down is set.
package link
