package listener

import "fmt"

// MaxPerCall and PieceSize are what the bounds of the tests are computed from.
const (
	MaxPerCall = maxPerCall
	PieceSize  = pieceSize
)

// Check looks for what no sequence of calls may bring about.
func (l *Listener) Check() error {
	if err := l.checkTable(); err != nil {
		return err
	}
	if err := l.checkTimers(); err != nil {
		return err
	}
	return l.checkSweeps()
}

func (l *Listener) checkTable() error {
	t := &l.addresses
	inUse, shares := 0, 0
	for slot := range t.slots() {
		e := *t.at(slot)
		if !e.has(listening) {
			if e != (entry{}) {
				return fmt.Errorf("slot %d is free but not empty: %+v", slot, e)
			}
			continue
		}
		inUse++
		if t.slotOf[e.addr] != slot {
			return fmt.Errorf("slot %d holds an address that the index has in slot %d", slot, t.slotOf[e.addr])
		}
		others, listed := t.others[slot]
		if listed != e.has(shared) || listed && len(others) == 0 {
			return fmt.Errorf("slot %d has %d further subscribers, flags %b", slot, len(others), e.flags)
		}
		if listed {
			shares++
		}
		seen := map[SubscriberID]bool{e.first: true}
		for _, id := range others {
			if seen[id] {
				return fmt.Errorf("slot %d has subscriber %d twice", slot, id)
			}
			seen[id] = true
		}
		switch {
		case !e.has(reportable) && (e.timer != 0 || e.has(lastReporter|repeating|reported)):
			return fmt.Errorf("slot %d is silent for good, but its entry is %+v", slot, e)
		case e.timer == 0 && (e.has(repeating) || e.repeats != 0):
			return fmt.Errorf("slot %d is Idle, but its entry is %+v", slot, e)
		case e.repeats != 0 && !e.has(repeating):
			return fmt.Errorf("slot %d has repeats after an answer: %+v", slot, e)
		}
	}
	if inUse != len(t.slotOf) || inUse+int(t.free.len) != int(t.slots()) {
		return fmt.Errorf("%d slots, of which %d in use, %d indexed, %d free", t.slots(), inUse, len(t.slotOf), t.free.len)
	}
	if shares != len(t.others) {
		return fmt.Errorf("%d addresses have further subscribers, but %d lists of them exist", shares, len(t.others))
	}
	freed := map[uint32]bool{}
	for i := range t.free.len {
		slot := *t.free.at(i)
		if freed[slot] || t.at(slot).has(listening) {
			return fmt.Errorf("slot %d was freed twice or is in use", slot)
		}
		freed[slot] = true
	}
	return nil
}

func (l *Listener) checkTimers() error {
	h := &l.timers.heap
	running := uint32(0)
	for slot := range l.addresses.slots() {
		if l.addresses.at(slot).timer != 0 {
			running++
		}
	}
	if running != h.len {
		return fmt.Errorf("%d addresses say they are Delaying, %d timers run", running, h.len)
	}
	for i := range h.len {
		timer := *h.at(i)
		if l.addresses.at(timer.slot).timer != i+1 {
			return fmt.Errorf("timer %d belongs to slot %d, which has timer %d", i, timer.slot, l.addresses.at(timer.slot).timer)
		}
		if parent := h.at((max(i, 1) - 1) / heapArity); parent.due > timer.due {
			return fmt.Errorf("timer %d is due at %d, before its parent at %d", i, timer.due, parent.due)
		}
	}
	return nil
}

func (l *Listener) checkSweeps() error {
	switch slots := l.addresses.slots(); {
	case l.queued.running && !l.answers.running:
		return fmt.Errorf("a General Query waits for none")
	case l.answers.running && l.answers.next >= slots, l.announce.running && l.announce.next >= slots:
		return fmt.Errorf("a sweep has nothing to do: answers %+v, announcement %+v, %d slots", l.answers, l.announce, slots)
	}
	return nil
}
