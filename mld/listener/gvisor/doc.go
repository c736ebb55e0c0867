// Gvisor measures the listener and the codec beside their peers, side by side in one run of about a minute:
//
//	go run .
//
// The listener's peer is the MLD of gVisor's netstack. It is in an internal package, and driven as its users do: a
// stack with one interface, JoinGroup, a Query injected at the link, packets taken from the link, and a clock moved
// by hand. The codec's peer is gopacket with its layers reused; it verifies no checksum.
//
// Ours and the peer take turns, round after round, and a line shows the medians. The ratio is the median of the
// rounds' ratios, so that a machine that is busy for a while slows down both sides of it. Times are the processor
// time of the one thread that works, which leaves out the garbage collector's own threads, to the peer's advantage.
// The goals are for 10 000 addresses; a million are too long for the peer, and there ours stands alone.
//
//   - Start listening: join one address and take the Report that it causes, for so many addresses.
//   - Memory: what the heap has grown by when all addresses are idle. The peer's empty stack is not counted, our empty
//     listener is.
//   - Answer a general query: hear the packet, let time go on until nothing is due, and take every Report. Ours is
//     called at most once a millisecond, as by a timer of the Go runtime. In MLDv1 it draws a delay for each address,
//     as RFC 2710 wants it, where gVisor draws one for all and sends everything at one instant; with few addresses
//     that makes a call for each.
//   - Longest call: every call of the listener and every packet taken. The listener does the same with the same random
//     numbers, so the calls of several runs are the same ones, and the least of the times that a call took is what it
//     takes without the noise of the machine. This is what the goal is for.
//
// The program ends with status 1 if a goal is missed by more than a quarter.
package main
