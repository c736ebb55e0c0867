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
// The daemon runs thousands of agents; a test can run one in its own process:
//
//	a, err := agent.Start(agent.Config{Netns: ns, Index: eth0})
//	...
//	defer a.Stop(ctx)
//	err = a.Listen(ctx, 1, netip.MustParseAddr("ff05::4321"), listener.AnySource)
package agent
