// The command mldd is the daemon of the CNI plugin mld: it runs one MLD listener for every container interface of a
// host. It is started by hand, by a service manager, or by mld itself.
//
// SIGTERM and SIGINT stop it in good order: the declared groups are left, and the kernels speak again.
package main
