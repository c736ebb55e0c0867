package listener

import (
	"net/netip"

	"github.com/seed-aaab8e3a/cni-mld/mld"
)

// table holds the listening state of the addresses of the interface. An address keeps its slot as long as
// somebody listens to it.
type table struct {
	slotOf  map[[16]byte]uint32
	entries slab[entry]
	free    slab[uint32]
	// others holds the subscribers of a slot beyond the first; most addresses have none.
	others map[uint32][]SubscriberID
}

// An entry is the state of one address: Idle Listener when no timer runs, else Delaying Listener. A free entry is
// the zero value.
type entry struct {
	addr    [16]byte
	first   SubscriberID // one of the subscribers
	timer   uint32       // its place in the heap of timers plus one; 0: not running
	repeats uint8        // repeats still to be sent after the running timer's
	flags   flags
}

type flags uint8

const (
	listening    flags = 1 << iota
	reportable         // MLD is spoken for this address
	lastReporter       // RFC 2710 section 5: this node sent the last Report
	repeating          // the running timer is that of a repeat, not of an answer
	reported           // a Report from a link-local address has left
	shared             // table.others has more subscribers
)

func (e *entry) has(f flags) bool { return e.flags&f != 0 }
func (e *entry) set(f flags)      { e.flags |= f }
func (e *entry) clear(f flags)    { e.flags &^= f }

func (t *table) init() {
	t.slotOf = make(map[[16]byte]uint32)
	t.others = make(map[uint32][]SubscriberID)
}

func (t *table) at(slot uint32) *entry { return t.entries.at(slot) }

// slots is the number of slots in use and free.
func (t *table) slots() uint32 { return t.entries.len }

func (t *table) find(addr netip.Addr) (slot uint32, ok bool) {
	slot, ok = t.slotOf[addr.As16()]
	return slot, ok
}

// subscribe adds a subscriber of addr and tells whether it is the first one.
func (t *table) subscribe(addr netip.Addr, id SubscriberID) (slot uint32, isNew bool) {
	if slot, ok := t.find(addr); ok {
		t.addSubscriber(slot, id)
		return slot, false
	}
	e := entry{addr: addr.As16(), first: id, flags: listening}
	if mld.Reportable(addr) {
		e.set(reportable)
	}
	if t.free.len > 0 {
		slot = t.free.pop()
		*t.at(slot) = e
	} else {
		slot = t.entries.len
		t.entries.push(e)
	}
	t.slotOf[e.addr] = slot
	return slot, true
}

func (t *table) addSubscriber(slot uint32, id SubscriberID) {
	e := t.at(slot)
	if e.first == id {
		return
	}
	for _, other := range t.others[slot] {
		if other == id {
			return
		}
	}
	t.others[slot] = append(t.others[slot], id)
	e.set(shared)
}

// unsubscribe takes a subscriber of addr away and tells whether it was the last one. The caller then removes the
// slot.
func (t *table) unsubscribe(addr netip.Addr, id SubscriberID) (slot uint32, last bool) {
	slot, ok := t.find(addr)
	if !ok {
		return 0, false
	}
	e := t.at(slot)
	if !e.has(shared) {
		return slot, e.first == id
	}
	others := t.others[slot]
	if e.first == id {
		e.first = others[len(others)-1]
		id = e.first
	}
	for i, other := range others {
		if other == id {
			others[i] = others[len(others)-1]
			t.setOthers(slot, others[:len(others)-1])
			break
		}
	}
	return slot, false
}

func (t *table) setOthers(slot uint32, others []SubscriberID) {
	if len(others) > 0 {
		t.others[slot] = others
		return
	}
	delete(t.others, slot)
	t.at(slot).clear(shared)
}

// remove frees the slot of an address nobody listens to any more.
func (t *table) remove(slot uint32) {
	delete(t.slotOf, t.at(slot).addr)
	*t.at(slot) = entry{}
	t.free.push(slot)
}

// subscribers is the number of subscribers of a slot in use.
func (t *table) subscribers(slot uint32) int { return 1 + len(t.others[slot]) }
