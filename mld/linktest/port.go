package linktest

import (
	"maps"
	"net"
	"net/netip"
	"slices"
	"time"
)

// A Port is an interface on a segment; S is the type of its state. State, Watch, ReadPacket, WritePacket, HearKernel,
// AddMembership, DropMembership and Close stand for the methods of those names of mld/link.Link. The others are the test's.
type Port[S any] struct {
	segment *Segment
	name    string

	// Guarded by Segment.mu.
	ear
	state     S
	unseen    bool          // the state has changed since State or Watch returned it
	err       error         // of everybody who reads or asks, once the port has come to its end
	refusal   error         // of WritePacket
	writeTime time.Duration // of WritePacket

	memberships map[netip.Addr]int
}

// Plug plugs a port into a segment.
func Plug[S any](s *Segment, name string, state S) *Port[S] {
	p := &Port[S]{
		segment: s, name: name, state: state, unseen: true, ear: ear{changed: make(chan struct{})},
		memberships: make(map[netip.Addr]int),
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.ears = append(s.ears, &p.ear)
	return p
}

// wait waits until ready, which is called with Segment.mu held, returns true, or the port comes to its end.
func (p *Port[S]) wait(ready func() bool) error {
	for {
		p.segment.mu.Lock()
		err, ok, changed := p.err, false, p.changed
		if err == nil {
			ok = ready()
		}
		p.segment.mu.Unlock()
		if ok || err != nil {
			return err
		}
		<-changed
	}
}

// State returns the state of the interface.
func (p *Port[S]) State() (S, error) {
	var state S
	err := p.wait(func() bool { state, p.unseen = p.state, false; return true })
	return state, err
}

// Watch waits for a state that neither State nor Watch has returned. What changes twice meanwhile is told once.
func (p *Port[S]) Watch() (S, error) {
	var state S
	err := p.wait(func() bool {
		seen := !p.unseen
		state, p.unseen = p.state, false
		return !seen
	})
	return state, err
}

// ReadPacket waits for the next packet.
func (p *Port[S]) ReadPacket() (packet []byte, unicast bool, err error) {
	err = p.wait(func() bool {
		if len(p.queue) == 0 {
			return false
		}
		packet, unicast = p.queue[0].packet, p.queue[0].unicast
		p.queue = slices.Delete(p.queue, 0, 1)
		return true
	})
	return packet, unicast, err
}

// WritePacket sends a packet.
func (p *Port[S]) WritePacket(packet []byte) error {
	p.segment.mu.Lock()
	pause := p.writeTime
	p.segment.mu.Unlock()
	if pause > 0 {
		<-time.After(pause)
	}
	p.segment.mu.Lock()
	defer p.segment.mu.Unlock()
	switch {
	case p.err != nil:
		return p.err
	case p.refusal != nil:
		return p.refusal
	}
	p.segment.send(p.name, &p.ear, packet)
	return nil
}

// HearKernel changes nothing: what the kernel of the node says is given to Hear by the test.
func (p *Port[S]) HearKernel() error { return nil }

// AddMembership counts a membership.
func (p *Port[S]) AddMembership(group netip.Addr) error {
	p.segment.mu.Lock()
	defer p.segment.mu.Unlock()
	p.memberships[group]++
	return p.err
}

// DropMembership takes back an AddMembership.
func (p *Port[S]) DropMembership(group netip.Addr) error {
	p.segment.mu.Lock()
	defer p.segment.mu.Unlock()
	if p.memberships[group]--; p.memberships[group] == 0 {
		delete(p.memberships, group)
	}
	return p.err
}

// Memberships returns how often each group was added and not dropped.
func (p *Port[S]) Memberships() map[netip.Addr]int {
	p.segment.mu.Lock()
	defer p.segment.mu.Unlock()
	return maps.Clone(p.memberships)
}

// Close unplugs the port; who waits in it gets [net.ErrClosed].
func (p *Port[S]) Close() error {
	p.End(net.ErrClosed)
	return nil
}

// End makes everybody who uses the port fail with err from now on, as when the interface is deleted. The first End or
// Close counts.
func (p *Port[S]) End(err error) {
	p.segment.mu.Lock()
	defer p.segment.mu.Unlock()
	if p.err != nil {
		return
	}
	p.err = err
	p.segment.ears = slices.DeleteFunc(p.segment.ears, func(e *ear) bool { return e == &p.ear })
	p.wake()
}

// Closed tells whether the port has been closed, or ended by the test.
func (p *Port[S]) Closed() bool {
	p.segment.mu.Lock()
	defer p.segment.mu.Unlock()
	return p.err != nil
}

// SetState changes the state.
func (p *Port[S]) SetState(state S) {
	p.segment.mu.Lock()
	defer p.segment.mu.Unlock()
	p.state, p.unseen = state, true
	p.wake()
}

// SetStateUnseen changes the state, of which Watch has not heard yet.
func (p *Port[S]) SetStateUnseen(state S) {
	p.segment.mu.Lock()
	defer p.segment.mu.Unlock()
	p.state = state
}

// Hear makes this port alone hear a packet, as if its frame were sent to this host if unicast, else to everybody.
func (p *Port[S]) Hear(packet []byte, unicast bool) {
	p.segment.mu.Lock()
	defer p.segment.mu.Unlock()
	p.hear(frame{slices.Clone(packet), unicast})
}

// Refuse makes WritePacket fail with err; nil makes it work again.
func (p *Port[S]) Refuse(err error) {
	p.segment.mu.Lock()
	defer p.segment.mu.Unlock()
	p.refusal = err
}

// Slow makes each WritePacket take so long.
func (p *Port[S]) Slow(d time.Duration) {
	p.segment.mu.Lock()
	defer p.segment.mu.Unlock()
	p.writeTime = d
}
