// Package kernel deals with the listener that every Linux network namespace already has: the kernel's own.
//
// Two listeners on one interface cancel each other out, because a snooping bridge tells listeners apart by their
// link-local address and both have the same (B16). So there can only be one voice, and this package has the three
// parts that make it ours:
//
//   - [Mute] drops the MLD reports that the kernel sends on an interface. It ends with the process, however that
//     ends, and then the kernel answers the next query: it fails open.
//   - [Mirror] tells what the kernel has joined there for every program, and from which sources, so that our listener
//     can report it.
//   - [Joins] makes the kernel join further addresses, so that a program receives what is asked for in its name.
//
// Mute and mirror belong together:
//
//	mute, err := kernel.NewMute(ns, ifindex, kernel.MuteOptions{Sources: true})
//	...
//	mirror, err := kernel.OpenMirror(ns, ifindex, mute)
//	...
//	for {
//		changes, err := mirror.Next() // at first all that stands
//		...
//	}
//
// # The mute
//
// It is an nftables table with the flag owner, which the kernel removes with the netlink socket that made it and
// lets nobody else change: a container's root cannot flush it. Its chain is in the output hook, which packets of
// AF_PACKET sockets do not pass, so package link's leave. Packets that a program sends through a socket of its own
// are spared. Queries are let through; they are no listener's.
//
// # The mirror
//
// Since about Linux 6.14 the kernel has an event for every join and leave of an interface, 0.1 ms after it. Before
// that, the mute can log copies of what it drops: these come when the kernel would have spoken, which is 10 ms
// after a join, and at a leave the list is read again. In both cases the list is read at the beginning and after a
// loss, never for a single event.
//
// # Sources
//
// No list of the kernel's has the source filter of an address, whose mode cannot in general be computed from what /proc
// shows. The kernel tells it in its reports, TO_EX, ALLOW and the others, so the mute logs copies of these, and keeps
// the kernel in MLDv2: it drops the queries of version 1 in the input hook, after AF_PACKET sockets have heard them.
// Until a report has told the filter of an address, it counts as EXCLUDE({}), any source: perhaps more than is wanted,
// but never less. Two things can be known sooner: what is joined while the mirror looks, and, of what stands when it
// begins, an address that has a single user who includes sources, or, in the range for source-specific multicast, one
// of whose sources every user includes. A kernel that was in MLDv1 mode before the mute tells that with its next report
// only; until then a change of such a filter is not heard of.
package kernel
