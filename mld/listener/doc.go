// Package listener is the MLD listener of one interface as a state machine without input or output.
//
// It decides what a node says about the multicast addresses it listens to: which Reports and Dones, when, to
// whom. It opens no socket, starts no goroutine, takes no lock and reads no clock. The caller says what time it
// is and what has happened, sends what the listener wants to have sent, and comes back at the next deadline:
//
//	          Listen, SetSource              Outgoing
//	caller ───────────────────────▶ Listener ────────▶ packets for the wire
//	          Receive, Advance               NextDeadline
//
//	l, err := listener.New(listener.Config{}, rand.New(rand.NewPCG(seed1, seed2)))
//	l.SetSource(now, linkLocal)
//	l.Listen(now, app, group, listener.AnySource)
//	for p := range l.Outgoing() {
//		send(p.Bytes)
//	}
//	deadline, ok := l.NextDeadline() // come back then, with Advance
//
// After any call the caller drains Outgoing and asks for NextDeadline again. A deadline is soft: to come early is
// harmless, to come late costs punctuality. A listener belongs to one goroutine. The same calls with the same
// random source give the same packets.
//
// It speaks MLDv2 with source filters (RFC 9777, RFC 4604), and MLDv1 (RFC 2710) while a querier of that version is
// about or if it is told to; with the source addresses of RFC 3590 in both. The profile KAME reproduces what the
// classic mld6.c of the KAME project shows on the wire in MLDv1. In the comments and tests, V1-n, V2-n and K-n are the
// numbers of CONFORMANCE.md.
//
// No call takes longer than about a millisecond, however many addresses there are: what concerns all of them (a
// General Query, a new link-local address) is worked off in pieces by Advance, and NextDeadline says so by being
// in the past.
package listener
