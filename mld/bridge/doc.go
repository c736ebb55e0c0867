// Package bridge sees a Linux bridge that does multicast snooping from the host's side: what it knows about the
// listeners behind a port, and whether it acts upon it.
//
// A snooping bridge learns from MLD messages which ports want which group, and keeps what it learned in its
// multicast database, the MDB. An entry there is half of the proof that a group's traffic reaches a container. The
// other half is a querier: without one the bridge does not trust its database and floods everything everywhere
// (rule B1). So there are two questions, and [Port] answers both:
//
//	port, err := bridge.FindPort(host, ifindex) // the host's end of the container's veth
//	state, err := port.State()                  // snooping? a querier? is the port forwarding?
//	err = port.Wait(ctx, group)                 // until the bridge has an entry for the group on this port
//
// With MLDv2 an entry may be for one source alone, or for all but some; [Port.WaitFlows] tells them apart.
//
// A [Monitor] tells of every entry that comes or goes.
//
// Wait hears of new entries by netlink events; nothing here polls, and no thread waits.
//
// The namespace passed in is the one the bridge is in, commonly the host's. Only IPv6 entries are of interest
// here; those of IPv4 and of MAC addresses are left out.
package bridge
