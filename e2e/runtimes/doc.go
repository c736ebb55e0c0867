// Package runtimes runs the built plugin under real container runtimes, as Debian packages them, and looks at what
// they make of it: containerd's CRI, its command ctr, podman, and cnitool; and the daemon under systemd, with the units
// that are installed. One test each.
//
//	make e2e-runtimes
//
// needs root, and Debian to fetch the runtimes from; they are unpacked into bin/runtimes and installed nowhere.
//
// # What the machine sees of it
//
// Nothing that stays. The tests run in a process, mount and network namespace of their own: with the first process of
// it every daemon, shim and container ends, whatever happened to the tests, and the mounts and interfaces go with them.
// /run is an empty file system there, and /etc, /opt, /usr and /var are covered by layers that take what is written,
// so the runtimes find each other and the plugins under the paths that they have where they are installed. Cgroups
// alone know no such end: all containers are in one of a name of its own, which is removed afterwards, and only stays,
// empty, if the outermost process is killed by SIGKILL. systemd is the first process of a process, mount and cgroup
// namespace within these, and finds there nothing to start but the daemon.
//
// # What a test is made of
//
// A host is a netnslab.Lab with the bridge cni0, which snoops and queries, a sender on it, and a listener that has
// joined nothing and by whose silence we know that the bridge forwards selectively. The container runs the program
// receiver, which binds a port and joins nothing. The plugin is called through a spy that writes down what the runtime
// has sent; only where time is measured does the runtime call the plugin itself.
//
// The module is one of its own, so that gRPC and the CRI stay out of the plugin's.
package runtimes
