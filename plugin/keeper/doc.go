// Package keeper is the part of mldd that stays while the rest is replaced: a parent process that holds what must not
// be lost, and starts a worker, the same program, that does everything else.
//
//	mldd (keeper) ── starts, restarts ──▶ mldd (worker)
//	  lock of the run directory  ────────▶  answers requests
//	  listening socket           ────────▶  runs the listeners
//	  join sockets  ◀── keep, drop, settled ──
//
// The kernel leaves a group when the last descriptor of the socket that has joined it is closed, and says so within
// 10 ms. So the worker gives the keeper a duplicate of each such socket. When the worker is gone, killed or replaced by
// a newer program, the kernel still holds the groups and speaks for them itself; connections wait in the backlog of the
// listening socket. The next worker finds its way by its own files, joins everything anew with sockets of its own, and
// says that it is settled; only then the keeper closes what it holds of the workers before, eight at most. It never passes
// one back: the descriptors are an anonymous bag.
//
// A worker that ends with code 0 has nothing more to do, and the keeper ends too. After any other end there is a next
// one: at once if the end was a handover, else after a pause of 100 ms that doubles up to 10 s. When the keeper is gone,
// its worker ends at once. A worker is told to make room for the next one only when the program has shown that it can be
// started, by saying its version.
//
// While no worker gets settled, the keeper holds on, however long that takes, and tells with each worker's end how much it
// holds. That pins the namespaces of containers that end meanwhile; but their number does not grow beyond what was
// attached, while to give up would be to leave the groups of all that live. A worker that is settled, or the end of the
// keeper, lets go of them.
//
// The keeper reads nothing that comes from outside: its worker's messages have nine octets.
package keeper
