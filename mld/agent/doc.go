// Package agent puts an MLD listener to work on one interface of one network namespace.
//
// An Agent joins four things under one goroutine that owns them: the protocol (mld/listener), the wire
// (mld/link), the kernel's own memberships and the mute of its reports (mld/kernel):
//
//	applications ──▶ kernel ──memberships──▶ ┌───────┐
//	                   ╳ its reports dropped │ agent │──▶ Reports, Dones ──▶ wire
//	declared groups ───────── Listen ──────▶ └───────┘◀── Queries ────────── wire
//
// One voice speaks on an interface. The kernel sends from the same link-local address, and a snooping bridge would
// take the leave of one for the leave of the other; so the agent mutes the kernel and speaks for it too: whatever
// an application joins is reported as if the agent's user had asked for it, from the same sources, which the kernel's
// muted reports tell. When the agent is gone, killed included, the mute goes with its socket, and the kernel answers
// the next query.
//
// [Agent.State] and [Agent.Groups] tell how things stand, and Config.Observe is told what happens.
//
// The daemon runs thousands of agents; a program with CAP_SYS_ADMIN, CAP_NET_ADMIN and CAP_NET_RAW, or a test in netnslab,
// can run one:
//
//	ns, err := netns.Open("/run/netns/pod")
//	...
//	defer ns.Close()
//	var eth0 *net.Interface
//	err = ns.Do(func() error { eth0, err = net.InterfaceByName("eth0"); return err })
//	...
//	a, err := agent.Start(agent.Config{Netns: ns, Index: eth0.Index})
//	...
//	defer a.Close()
//	err = a.Listen(ctx, 1, netip.MustParseAddr("ff05::4321"), listener.AnySource) // 1: a number for who wants it
//	...
//	err = a.WaitReported(ctx, netip.MustParseAddr("ff05::4321"))
//
// # What it does not do
//
// [Agent.Listen] has a group reported, so that it comes as far as the interface. Linux gives it to a socket only if some
// socket of the namespace has joined it there: the application itself, or one that the agent's user keeps open for it.
//
// [Agent.Close] says nothing on the wire, and is for a program that ends or starts an agent anew; the bridge forgets the
// groups in its own time. [Agent.Stop] leaves them, and the agent ends up to a second later: see [Agent.Done].
package agent
