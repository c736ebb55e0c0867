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
// the bridges, and hold nobody up: events wait in a queue for each watcher, and those that find it full are counted.
//
// When mldd stops, it leaves the declared groups, unmutes the kernels and lets them speak for the applications; when
// it is killed, the kernel does both.
//
//	d, err := daemon.New(daemon.Config{RunDir: "/run/mld", Logger: slog.Default()})
//	...
//	err = d.Serve(ctx)
package daemon
