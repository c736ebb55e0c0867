package listener

// timers holds the running timers of the addresses, the earliest on top of a heap with four children a node.
// Setting and stopping one takes a number of steps that grows with the logarithm of how many run.
type timers struct {
	heap slab[timer]
}

// A timer is due at a time of the listener's own and belongs to the address in slot, which knows the timer's place in
// the heap.
type timer struct {
	due  int64
	slot uint32
	kind timerKind
}

type timerKind uint8

const (
	reportTimer timerKind = iota // MLDv2: the next State Change Report; MLDv1: the timer of RFC 2710 section 5
	answerTimer                  // MLDv2: the answer to a specific Query
)

// place is where an address keeps the place of its timer in the heap, plus one; nil if it can have no such timer now.
func (t *table) place(slot uint32, kind timerKind) *uint32 {
	if kind == reportTimer {
		return &t.at(slot).timer
	}
	if m := t.more(slot); m != nil {
		return &m.answer
	}
	return nil
}

const heapArity = 4

// next tells when the earliest timer is due.
func (h *timers) next() (int64, bool) {
	if h.heap.len == 0 {
		return 0, false
	}
	return h.heap.at(0).due, true
}

// expired returns the earliest timer of those due at t. It goes on running.
func (h *timers) expired(t int64) (timer, bool) {
	if due, ok := h.next(); !ok || due > t {
		return timer{}, false
	}
	return *h.heap.at(0), true
}

// due tells when a running timer is due.
func (h *timers) due(place uint32) int64 { return h.heap.at(place - 1).due }

// set starts a timer of an address, or moves it. The address must have a place for it.
func (h *timers) set(addresses *table, slot uint32, kind timerKind, due int64) {
	i := *addresses.place(slot, kind)
	if i == 0 {
		h.heap.push(timer{due: due, slot: slot, kind: kind})
		h.up(addresses, h.heap.len-1)
		return
	}
	h.heap.at(i - 1).due = due
	h.fix(addresses, i-1)
}

// stop stops a timer of an address, if it runs.
func (h *timers) stop(addresses *table, slot uint32, kind timerKind) {
	place := addresses.place(slot, kind)
	if place == nil || *place == 0 {
		return
	}
	i := *place - 1
	*place = 0
	last := h.heap.pop()
	if i == h.heap.len {
		return
	}
	h.place(addresses, i, last)
	h.fix(addresses, i)
}

// fix restores the order after the timer at i has changed.
func (h *timers) fix(addresses *table, i uint32) {
	if i > 0 && h.heap.at(i).due < h.heap.at((i-1)/heapArity).due {
		h.up(addresses, i)
		return
	}
	h.down(addresses, i)
}

func (h *timers) up(addresses *table, i uint32) {
	moving := *h.heap.at(i)
	for i > 0 {
		parent := (i - 1) / heapArity
		p := *h.heap.at(parent)
		if p.due <= moving.due {
			break
		}
		h.place(addresses, i, p)
		i = parent
	}
	h.place(addresses, i, moving)
}

func (h *timers) down(addresses *table, i uint32) {
	moving := *h.heap.at(i)
	for {
		first := i*heapArity + 1
		if first >= h.heap.len {
			break
		}
		least := first
		for c := first + 1; c < min(first+heapArity, h.heap.len); c++ {
			if h.heap.at(c).due < h.heap.at(least).due {
				least = c
			}
		}
		child := *h.heap.at(least)
		if moving.due <= child.due {
			break
		}
		h.place(addresses, i, child)
		i = least
	}
	h.place(addresses, i, moving)
}

func (h *timers) place(addresses *table, i uint32, t timer) {
	*h.heap.at(i) = t
	*addresses.place(t.slot, t.kind) = i + 1
}
