// Package api is what the daemon mldd and its clients say to each other: the requests and answers, the settings
// of an attachment with their rules, the error codes, and the few functions that carry all this over a socket.
//
// The socket is RUNDIR/mldd.sock, a unix stream socket that belongs to the daemon's user and to nobody else. A
// client sends one JSON object in one line and gets one back:
//
//	{"v":1,"op":"add","network":"lab","containerID":"c1","ifname":"eth0","settings":{...},
//	 "netns":"/run/netns/c1","descriptors":["netns","hostNetns"]}
//	{"v":1,"degraded":"bridge cni0 has no entry for ff05::4321 after 1s"}
//
// Network namespaces travel as open descriptors in the same message, and "descriptors" says which is which. The
// path in "netns" is a label for humans and for the way back after a restart; nobody opens it on a request, so a
// client can only hand over a namespace that it could open itself. A connection may carry several requests, one
// after the other, each sent when the answer to the one before has been read.
//
// To three ops, which mldctl uses, lines follow the answer: of attachments, of groups, or of events as they happen. A
// [Line] is what stands in each; the keys of what is in it are a promise to whoever reads mldctl's --json.
//
//	{"v":1,"event":{"time":"2026-11-23T10:44:03.383552Z","kind":"sent","group":"ff05::8","record":"TO_EX",...}}
//
// "v" is the version of this protocol. Both sides are built from the same source and upgraded together, so a
// version or a key that a side does not know is an error and never a guess.
//
// Settings are the part of a network's configuration that the daemon acts on. ParseSettings turns the
// configuration's keys, and what the container itself asks for, into them and fills in every default, so what
// travels and what is stored is complete and two of them can be compared. Their rules live here because the plugin
// checks them before it troubles the daemon, and the daemon checks them again because it trusts no client.
//
// A client:
//
//	c, err := api.Dial("/run/mld")
//	...
//	defer c.Close()
//	answer, err := c.Call(ctx, &api.Request{Op: api.OpStatus})
//	...
//	for line, err := range c.Stream(ctx, &api.Request{Op: api.OpGroups}) {
//		...
//	}
//
// The package imports nothing heavy: the plugin is started for every container, and each package it links costs
// every start of a container a little time.
package api
