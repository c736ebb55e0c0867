// Gvisor measures the listener and the codec beside their peers, side by side in one run:
//
//	go run .
//
// The listener's peer is the MLD of gVisor's netstack, which is in an internal package and is driven as its users do:
// a stack with one interface, JoinGroup, a Query injected at the link, and a clock moved by hand. The codec's peer
// is gopacket with its layers reused.
//
// Ours and the peer take turns, round after round, and a line shows the medians. The ratio is the median of the
// rounds' ratios, so that a machine that is busy for a while slows down both sides of it. Where the peer takes too
// long for a million addresses, ours stands alone.
//
// What each side does:
//
//   - start listening: join one address and take the Report that it causes, for so many addresses.
//   - answer a general query: hear the packet, let time go on until nothing is due, and take every Report. Ours is
//     called at most once a millisecond, as by a timer of the Go runtime; with version 1 it draws a delay for each
//     address, where gVisor draws one for all and sends everything at one instant.
//   - memory: what the heap has grown by when all addresses are idle; gVisor's empty stack is not counted, our empty
//     listener is.
//   - longest call: each call of the listener, and each packet taken, with a million addresses. The listener does the
//     same with the same random numbers, so the calls of several runs are the same, and the least of a call's times
//     is that without the noise of the machine.
//
// The program ends with status 1 if a goal is missed by more than a quarter.
package main
