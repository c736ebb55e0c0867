// Package twin holds two listeners against each other: the Linux kernel's in one namespace and ours in another. Both
// get the same joins, source filters and queries, and what they say is compared, decoded by tshark.
//
//	           cable                  cable
//	kernel ─────────────── router ─────────────── ours
//	(sockets)         asks and hears           (mld/agent, the kernel muted)
//
// Each twin has a cable of its own to the router: on a common one their MLDv1 Reports would suppress each other's.
//
// When a Report is sent is a matter of chance, so that a change may come before or after a retransmission. What is in
// it is not: it follows from the changes and the transmissions before it. A spec (model_test.go) says for each twin
// what RFC 9777 wants it to be; if both twins met changes and transmissions in the same order, they have to have said
// the same, too. Where the kernel is known to do something else, the deviation has a number, DEVIATIONS.md says what
// it is, and the spec says when it is excused. Ours never is.
//
// `make twin` runs it. It has a target of its own because it hurries both listeners and compares what they say, which
// wants a machine that has nothing else to do.
package twin
