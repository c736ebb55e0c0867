// Package netns holds a Linux network namespace by descriptor, tells which one it is, and runs a function
// inside it.
//
// It is the only place of the production code that enters a namespace. Entering one is a property of an
// operating-system thread, and goroutines move between threads, so a program that enters namespaces in many
// places ends with sockets in the wrong one. Here a thread enters for the time of one call, and dies if it cannot
// come back:
//
//	ns, err := netns.Open("/run/netns/pod")
//	...
//	err = ns.Do(func() error {
//		fd, err = unix.Socket(...) // the socket belongs to the pod's namespace for good
//		return err
//	})
//
// A socket stays in the namespace it was made in, whichever thread uses it later, so Do is needed to open
// things and not to use them. The functions passed to Do must be short.
//
// A process that imports this package has its main goroutine on its first thread for good.
//
// An open Namespace pins the namespace, and with it the interfaces in it: Close is not optional.
package netns
