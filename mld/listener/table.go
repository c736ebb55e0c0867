package listener

import (
	"slices"
)

// table holds the listening state of the addresses of the interface. An address keeps its slot as long as
// somebody listens to it.
type table struct {
	slotOf  map[addr]uint32
	entries slab[entry]
	free    slab[uint32]
	// What only few addresses have is kept aside, under the slot, with a flag in the entry.
	others map[uint32][]SubscriberID // the subscribers beyond the first
	mores  map[uint32]*more
}

// An entry is the state of one address. A free entry is the zero value.
//
// In MLDv2 its timer is that of the next State Change Report; in MLDv1 no timer means Idle Listener, and a timer
// Delaying Listener. An entry has no pointers, so that a million of them are nothing to a garbage collector.
type entry struct {
	addr    addr
	first   SubscriberID // one of the subscribers
	timer   uint32       // its place in the heap of timers plus one; 0: not running
	flags   flags
	epoch   uint16 // the last change of mode that has been carried out on the entry
	repeats uint8  // MLDv1: Reports to follow the one that the timer is for; MLDv2: Filter Mode Retransmission Counter
}

// addr is an address in network byte order, without the weight of a netip.Addr.
type addr = [16]byte

// more is what an address has that is not simply wanted from any source.
type more struct {
	filters    []subscription // of the subscribers whose filter is not EXCLUDE({})
	sources    []addr         // of the interface's filter; sorted; never changed in place
	retransmit []pending      // the Retransmission List (RFC 9777 section 6.1), sorted
	answer     uint32         // place of the Multicast Address Timer in the heap plus one; 0: not running
	asked      []addr         // the sources recorded for that answer, sorted; none: the whole record is to be sent
}

// A subscription is the filter of one subscriber.
type subscription struct {
	id      SubscriberID
	mode    FilterMode
	sources []addr // sorted
}

// A pending source is in retransmission state.
type pending struct {
	source addr
	count  uint8 // Source Retransmission Counter
}

type flags uint16

const (
	inUse          flags = 1 << iota // the slot is not free
	listening                        // somebody subscribes; without it the entry only lives to tell of the leave
	reportable                       // MLD is spoken for this address
	sourceSpecific                   // the address is for source-specific multicast
	exclude                          // the interface's filter mode is EXCLUDE
	otherReporter                    // MLDv1: another node sent the last Report (RFC 2710 section 5's flag, upside down)
	repeating                        // MLDv1: the running timer is that of a repeat, not of an answer
	reported                         // a Report from a link-local address has left
	shared                           // table.others has more subscribers
	extended                         // table.mores has more
	changeQueued                     // a State Change Report is to be sent
	answerQueued                     // an answer to a specific Query is to be sent
	reportQueued                     // MLDv1: a Report is to be sent
)

func (e *entry) has(f flags) bool { return e.flags&f != 0 }
func (e *entry) set(f flags)      { e.flags |= f }
func (e *entry) clear(f flags)    { e.flags &^= f }

func (t *table) init() {
	t.slotOf = make(map[addr]uint32)
	t.others = make(map[uint32][]SubscriberID)
	t.mores = make(map[uint32]*more)
}

func (t *table) at(slot uint32) *entry { return t.entries.at(slot) }

// more returns what an address has beyond its entry, or nil.
func (t *table) more(slot uint32) *more {
	if !t.at(slot).has(extended) {
		return nil
	}
	return t.mores[slot]
}

// extend returns what an address has beyond its entry, and makes it if need be.
func (t *table) extend(slot uint32) *more {
	m := t.more(slot)
	if m == nil {
		m = new(more)
		t.mores[slot] = m
		t.at(slot).set(extended)
	}
	return m
}

// slim drops what an address no longer has.
func (t *table) slim(slot uint32) {
	if m := t.more(slot); m != nil && len(m.filters) == 0 && len(m.sources) == 0 && len(m.retransmit) == 0 &&
		m.answer == 0 && len(m.asked) == 0 {
		delete(t.mores, slot)
		t.at(slot).clear(extended)
	}
}

// sources returns the sources of the interface's filter.
func (t *table) sources(slot uint32) []addr {
	if m := t.more(slot); m != nil {
		return m.sources
	}
	return nil
}

// forwards tells whether the interface's filter lets a source in.
func (t *table) forwards(slot uint32, source addr) bool {
	return contains(t.sources(slot), source) != t.at(slot).has(exclude)
}

// slots is the number of slots in use and free.
func (t *table) slots() uint32 { return t.entries.len }

// create makes the entry of an address that has none. Nobody listens yet.
func (t *table) create(a addr, f flags) (slot uint32) {
	e := entry{addr: a, flags: inUse | f}
	if t.free.len > 0 {
		slot = t.free.pop()
		*t.at(slot) = e
	} else {
		slot = t.entries.len
		t.entries.push(e)
	}
	t.slotOf[a] = slot
	return slot
}

// remove frees the slot of an address.
func (t *table) remove(slot uint32) {
	delete(t.slotOf, t.at(slot).addr)
	delete(t.mores, slot)
	*t.at(slot) = entry{}
	t.free.push(slot)
}

// subscribe gives a subscriber a filter that wants something.
func (t *table) subscribe(slot uint32, id SubscriberID, f Filter) {
	e := t.at(slot)
	switch {
	case !e.has(listening):
		e.first = id
		e.set(listening)
		e.clear(reported)
	case e.first != id && !slices.Contains(t.others[slot], id):
		t.others[slot] = append(t.others[slot], id)
		e.set(shared)
	}
	t.dropFilter(slot, id)
	if f.Mode == Include || len(f.Sources) > 0 {
		m := t.extend(slot)
		m.filters = append(m.filters, subscription{id: id, mode: f.Mode, sources: sortedAddrs(f.Sources)})
	}
}

// unsubscribe takes a subscriber away; one that is none changes nothing.
func (t *table) unsubscribe(slot uint32, id SubscriberID) {
	e := t.at(slot)
	if e.has(shared) {
		others := t.others[slot]
		if e.first == id {
			e.first = others[len(others)-1]
			t.setOthers(slot, others[:len(others)-1])
		} else {
			t.setOthers(slot, slices.DeleteFunc(others, func(other SubscriberID) bool { return other == id }))
		}
	} else if e.first == id {
		e.clear(listening)
	}
	t.dropFilter(slot, id)
}

// unsubscribeAll takes every subscriber away.
func (t *table) unsubscribeAll(slot uint32) {
	e := t.at(slot)
	t.setOthers(slot, nil)
	e.clear(listening)
	if m := t.more(slot); m != nil {
		m.filters = nil
	}
}

func (t *table) setOthers(slot uint32, others []SubscriberID) {
	if len(others) > 0 {
		t.others[slot] = others
		return
	}
	delete(t.others, slot)
	t.at(slot).clear(shared)
}

func (t *table) dropFilter(slot uint32, id SubscriberID) {
	if m := t.more(slot); m != nil {
		m.filters = slices.DeleteFunc(m.filters, func(s subscription) bool { return s.id == id })
	}
}

// subscribers is the number of subscribers of a slot.
func (t *table) subscribers(slot uint32) int {
	if !t.at(slot).has(listening) {
		return 0
	}
	return 1 + len(t.others[slot])
}

// merged is the interface's filter: what the subscribers want together (V2-16, RFC 9777 section 4.2).
func (t *table) merged(slot uint32) (FilterMode, []addr) {
	if !t.at(slot).has(listening) {
		return Include, nil // V2-17
	}
	m := t.more(slot)
	if m == nil || len(m.filters) == 0 {
		return Exclude, nil
	}
	return merge(m.filters, t.subscribers(slot) > len(m.filters))
}
