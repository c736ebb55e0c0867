package linktest

import (
	"bytes"
	"net/netip"
	"sync"
	"time"

	"github.com/seed-aaab8e3a/cni-mld/mld"
)

// A Segment is a shared medium. Its methods and those of everything on it are safe for concurrent use.
type Segment struct {
	mu   sync.Mutex // of all that is on the segment; nobody waits while holding it
	ears []*ear
	sent []Packet
}

// NewSegment makes a segment that nobody is on.
func NewSegment() *Segment { return new(Segment) }

// A Packet is one that was sent on a segment.
type Packet struct {
	At         time.Time
	From       string // the name of the port, or the address of the querier
	Bytes      []byte // from the IPv6 header on
	mld.Packet        // what the bytes mean
	Err        error  // why they mean nothing: a [mld.Reason]
}

// Take returns the packets that were sent since the last Take, those of queriers too, and forgets them.
func (s *Segment) Take() []Packet {
	s.mu.Lock()
	defer s.mu.Unlock()
	taken := s.sent
	s.sent = nil
	return taken
}

// Sent tells how many packets Take would return.
func (s *Segment) Sent() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return len(s.sent)
}

// send delivers a packet to everyone but its sender, who may be nobody. s.mu is held.
func (s *Segment) send(from string, sender *ear, packet []byte) {
	p := Packet{At: time.Now(), From: from, Bytes: bytes.Clone(packet)}
	p.Packet, p.Err = mld.Parse(p.Bytes, mld.AcceptUnspecified)
	s.sent = append(s.sent, p)
	for _, e := range s.ears {
		if e != sender {
			e.hear(frame{packet: p.Bytes})
		}
	}
}

// An ear is where a port hears packets. Segment.mu guards it.
type ear struct {
	queue   []frame
	changed chan struct{} // closed when anything about the port has changed
}

type frame struct {
	packet  []byte
	unicast bool
}

func (e *ear) hear(f frame) {
	e.queue = append(e.queue, f)
	e.wake()
}

func (e *ear) wake() {
	close(e.changed)
	e.changed = make(chan struct{})
}

// A Querier sends Queries of version 1 on a segment. It hears nothing.
type Querier struct {
	segment *Segment
	src     netip.Addr
}

// Querier makes a querier with a source address, which for a good one is link-local.
func (s *Segment) Querier(src netip.Addr) *Querier { return &Querier{s, src} }

// Ask sends a Query now: a General Query if addr is the zero Addr, else a Specific one. The Maximum Response Delay is
// cut to whole milliseconds, of which the field holds 65535.
func (q *Querier) Ask(addr netip.Addr, maxResponseDelay time.Duration) {
	dst := addr
	if !addr.IsValid() {
		dst = mld.AllNodes
	}
	q.Send(mld.AppendQuery(nil, q.src, dst, mld.Query{
		Version: mld.Version1, MulticastAddress: addr, MaxResponseCode: uint16(min(maxResponseDelay.Milliseconds(), 0xffff)),
	}))
}

// Send sends any packet, such as a malformed one.
func (q *Querier) Send(packet []byte) {
	q.segment.mu.Lock()
	defer q.segment.mu.Unlock()
	q.segment.send(q.src.String(), nil, packet)
}

// A Query is one line of a querier's script.
type Query struct {
	After            time.Duration // since the beginning of the script; the lines are in this order
	Addr             netip.Addr    // of a Specific Query; the zero Addr makes it a General Query
	MaxResponseDelay time.Duration
}

// Play sends the Queries of a script, each at its time, and returns after the last one.
func (q *Querier) Play(script ...Query) {
	begin := time.Now()
	for _, line := range script {
		<-time.After(time.Until(begin.Add(line.After)))
		q.Ask(line.Addr, line.MaxResponseDelay)
	}
}
