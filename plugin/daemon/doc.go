// Package daemon is the inside of mldd: the registry of all attachments of a host, and the server that the plugin
// talks to.
//
// The unit of work is the interface. Each interface that anybody is attached to has one agent (mld/agent), which is
// the one voice on it; an attachment, named by network, container ID and interface name, is one subscriber of that
// agent. The last attachment to go ends the agent.
//
//	mld (ADD, DEL, CHECK) ──unix socket──▶ server ──▶ registry ──▶ interface ──▶ agent
//	                                                     │             └──────▶ agent ...
//	                                                     └─ attachments
//
// A group with delivery is joined by a socket inside the namespace (mld/kernel.Joins), with the sources that it is wanted
// from, and the agent sees that join like any application's. A group without is given to the agent alone.
//
// Streams (list, groups, watch) are for whoever looks in. They read what requests have left for them, ask the agents and
// the bridges, and hold nobody up: events wait in a queue for each watcher, and those that find it full are counted; and who
// is slow to read a list has two seconds for the rest of it when the daemon is to end.
//
// # Restarts
//
// Each attachment has a state file under the run directory, written before ADD is answered and removed before DEL is.
// The next daemon takes over what is still there, interface by interface, while it serves already: requests for an
// attachment wait until it is back. The namespace is opened by the path of its state file, and its cookie decides. What
// the next daemon finds standing with the kernel is told by Current State Records within the Query Response Interval,
// never as a change, and never left.
//
// A listener that cannot be started again at once is tried again for half a minute, ever more seldom, if that may help; only
// then the daemon is settled. An attachment that still has none, or on whose interface programs have joined too much, stands
// without: the kernel holds its groups with delivery and speaks for them, unless somebody else has muted it, and each
// restart and each ADD of it tries it anew. So it is after an ADD that has failed and could not bring the listener back.
//
// When a daemon stops, it leaves the declared groups with one voice, unmutes the kernels and lets them speak for the
// applications; when it is killed, the kernel does both. With a [Config].Keeper, which holds what is joined, neither a
// kill nor a handover ([ErrHandover]) is a leave.
//
// # The end of a namespace
//
// An open socket keeps a namespace alive, and with it the links in it. So when the path that a runtime has named is
// removed, or the process that it names ends, the attachment is detached as by DEL. This is an event of inotify or of a
// pidfd. Where the path does not lead to the namespace from the daemon's view, DEL and GC are left.
//
//	d, err := daemon.New(daemon.Config{RunDir: "/run/mld", Listener: l, Logger: slog.Default()})
//	...
//	err = d.Serve(ctx)
package daemon
