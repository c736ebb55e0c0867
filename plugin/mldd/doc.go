// The command mldd is the daemon of the CNI plugin mld: it runs one MLD listener for every container interface of a
// host. It is started by hand, by a service manager, or by mld itself.
//
// It is two processes of one binary: a keeper (plugin/keeper), which is the process that was started and holds what
// is joined, and a worker (plugin/daemon), which does everything else and may be killed and replaced.
//
// SIGTERM and SIGINT stop both in good order: the declared groups are left, and the kernels speak again. What is
// attached is remembered in the run directory, and the next mldd goes on with it. SIGHUP replaces the worker by a new
// one, of the binary that is at the same path now, if that can be started, and nobody on the wire notices. When the socket
// or the run directory is removed, or another takes its place, as a service manager's socket does, nobody finds mldd any
// more, and it stops as after SIGTERM, with exit code 0.
//
// The log goes to standard error. That of a daemon that mld has started is a file in the run directory, mldd.log, which
// becomes mldd.log.1 at 1 MiB, so that the two never take much more than 2 MiB.
//
// For systemd it is a service of Type=notify-reload with KillMode=mixed, or Type=notify with
// ExecReload=kill -HUP $MAINPID; it takes the run directory's socket over from a socket unit.
package main
