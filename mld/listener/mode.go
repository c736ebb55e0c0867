package listener

import (
	"time"

	"github.com/seed-aaab8e3a/cni-mld/mld"
)

// The variables of RFC 9777 section 9 that a listener needs until a querier tells its own.
const (
	defaultQueryInterval         = 125 * time.Second
	defaultQueryResponseInterval = 10 * time.Second
)

// never is a time that does not come.
const never = 1<<63 - 1

// Version is the version that the listener speaks now: its Host Compatibility Mode (RFC 9777 section 8.2.1).
func (l *Listener) Version() mld.Version { return l.version }

// OlderVersionQuerierPresent tells until when MLDv1 is spoken because a querier speaks it, if that asks no more (RFC 9777
// section 8.2.1); the zero Time where MLDv2 is spoken, or nothing else ever.
func (l *Listener) OlderVersionQuerierPresent() time.Time {
	if l.older == never {
		return time.Time{}
	}
	return l.base.Add(time.Duration(l.older))
}

// heardOlder is told of every Query of version 1 that a listener with a choice hears, whatever it asks for (V2-49).
func (l *Listener) heardOlder(t int64) {
	// V2-68: the Older Version Querier Present Timeout.
	l.older = t + int64(time.Duration(l.robustness)*l.queryInterval+l.queryResponseInterval)
	l.setVersion(mld.Version1)
}

// setVersion changes the mode of the interface, which cancels everything that is pending (V2-53). Nothing wanted is
// lost: the memberships stay, and in MLDv1 mode this node counts as the last reporter of all it has reported (V2-66).
// Nothing is announced either, for nothing has changed in what is wanted (V2-67).
func (l *Listener) setVersion(v mld.Version) {
	if l.version == v {
		return
	}
	l.version = v
	l.general = never
	l.current, l.answers, l.queued = sweep{}, sweep{}, sweep{}
	l.records = records{}
	if l.timers.heap.len > 0 {
		l.cancelled = append(l.cancelled, l.timers.heap)
		l.timers.heap = slab[timer]{}
	}
	l.epoch++ // the addresses follow, each when it is next looked at
	l.settleCancelled()
}

// settleCancelled settles a piece of the addresses whose timers have been cancelled.
func (l *Listener) settleCancelled() {
	for range maxPerCall {
		if len(l.cancelled) == 0 {
			return
		}
		heap := &l.cancelled[len(l.cancelled)-1]
		if heap.len == 0 {
			l.cancelled = l.cancelled[:len(l.cancelled)-1]
			continue
		}
		l.settle(heap.pop().slot)
	}
}

// settle carries out the latest change of mode on an address, and tells whether the address is still there: a leave
// that was still being told is cut off, and gets a Done instead (V2-53).
func (l *Listener) settle(slot uint32) bool {
	e := l.addresses.at(slot)
	if e.epoch == l.epoch || !e.has(inUse) {
		return e.has(inUse)
	}
	e.epoch = l.epoch
	e.timer = 0
	l.addresses.forgetChange(slot)
	e.clear(otherReporter | repeating | answerQueued)
	if m := l.addresses.more(slot); m != nil {
		m.answer, m.asked = 0, nil
	}
	if !e.has(listening) && l.version == mld.Version1 {
		l.send(outgoing{addr: e.addr, cause: CauseLeft})
	}
	l.release(slot)
	return l.addresses.at(slot).has(inUse)
}

// find returns the slot of an address that somebody listens to, or whose leave is still being told.
func (l *Listener) find(a addr) (slot uint32, ok bool) {
	slot, ok = l.addresses.slotOf[a]
	return slot, ok && l.settle(slot)
}
