// Command mld is the CNI plugin: it asks the daemon mldd for an MLD listener on a container's interface.
//
// It stands in a list of plugins after the one that makes the interface:
//
//	{ "cniVersion": "1.1.0", "name": "lab", "plugins": [
//	  { "type": "bridge", "bridge": "cni0", "ipam": { ... } },
//	  { "type": "mld", "groups": ["ff05::4321"] } ] }
//
// The runtime starts it for every verb with the configuration on its standard input and a few environment variables
// (CNI specification 0.3.1 to 1.1.0), and reads the result or the error from its standard output:
//
//	ADD      the interface gets a listener; the previous plugin's result is passed on as it came
//	DEL      the listener ends; it is no error if anything that it needs is gone
//	CHECK    the listener works
//	GC       the listeners of containers that the runtime no longer knows end
//	STATUS   an ADD would find a daemon, or could start one
//	VERSION  what the library answers
//
// The plugin itself does almost nothing, since every start of a container waits for it: it reads the configuration
// (config.go), opens the two network namespaces and hands them to mldd over a unix socket (verbs.go, package api),
// and starts mldd at the first ADD when nothing listens (autostart.go). It never enters a namespace, and it holds no
// state. What it links is kept small by a test.
//
// A container's groups are the network's and its own, from four places that runtimes fill (asked); package api puts them
// together and holds the container to what its network allows.
//
// A key of the configuration that is unknown is an error and never ignored: a listener that silently does something else
// than the configuration says is worse than none.
package main
