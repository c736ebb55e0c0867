package listener

import (
	"fmt"
	"net/netip"
	"slices"

	"github.com/seed-aaab8e3a/cni-mld/mld"
)

// MaxPerCall and PieceSize are what the bounds of the tests are computed from.
const (
	MaxPerCall = maxPerCall
	MaxAsked   = maxAsked
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
	if err := l.checkMores(); err != nil {
		return err
	}
	return l.checkMode()
}

// Backlog is the number of addresses whose change of mode is yet to be carried out.
func (l *Listener) Backlog() (n int) {
	for i := range l.cancelled {
		n += int(l.cancelled[i].len)
	}
	return n
}

// Slots is the number of addresses that there is a state of, those included whose leave is being told.
func (l *Listener) Slots() int { return len(l.addresses.slotOf) }

func (l *Listener) checkTable() error {
	t := &l.addresses
	var used, shares, wanted, sourceOnly, changes, answers int
	for slot := range t.slots() {
		e := *t.at(slot)
		if !e.has(inUse) {
			if e != (entry{}) {
				return fmt.Errorf("slot %d is free but not empty: %+v", slot, e)
			}
			continue
		}
		used++
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
		if e.has(listening) && e.has(reportable) {
			wanted++
		}
		if e.has(listening) && l.cfg.SourceSpecific(netip.AddrFrom16(e.addr)) {
			sourceOnly++
		}
		if e.has(changeQueued) {
			changes++
		}
		if e.has(answerQueued) {
			answers++
		}
		if err := l.checkEntry(slot); err != nil {
			return fmt.Errorf("slot %d, %+v: %w", slot, e, err)
		}
	}
	if wanted != l.wanted || sourceOnly != l.sourceOnly {
		return fmt.Errorf("%d addresses are wanted, %d of SSM, but the counts are %d and %d", wanted, sourceOnly, l.wanted, l.sourceOnly)
	}
	if changes > l.changes.len || answers > l.specific.len {
		return fmt.Errorf("%d changes and %d answers are queued in queues of %d and %d",
			changes, answers, l.changes.len, l.specific.len)
	}
	if used != len(t.slotOf) || used+int(t.free.len) != int(t.slots()) {
		return fmt.Errorf("%d slots, of which %d in use, %d indexed, %d free", t.slots(), used, len(t.slotOf), t.free.len)
	}
	if shares != len(t.others) {
		return fmt.Errorf("%d addresses have further subscribers, but %d lists of them exist", shares, len(t.others))
	}
	freed := map[uint32]bool{}
	for i := range t.free.len {
		slot := *t.free.at(i)
		if freed[slot] || t.at(slot).has(inUse) {
			return fmt.Errorf("slot %d was freed twice or is in use", slot)
		}
		freed[slot] = true
	}
	return nil
}

// checkEntry looks at one address. One that has not yet followed a change of mode may have anything of the old one.
func (l *Listener) checkEntry(slot uint32) error {
	e, m, untold := *l.addresses.at(slot), l.addresses.more(slot), l.addresses.untold(slot)
	mode, sources := l.addresses.merged(slot)
	settled := e.epoch == l.epoch
	switch {
	case e.mode() != mode || !slices.Equal(l.addresses.sources(slot), sources):
		return fmt.Errorf("the subscribers want %v(%x), the interface has %v(%x)", mode, sources, e.mode(), l.addresses.sources(slot))
	case !e.has(reportable) && (e.timer != 0 || e.has(otherReporter|repeating|reported|changeQueued|answerQueued|reportQueued) ||
		untold != 0 || m != nil && m.answer != 0):
		return fmt.Errorf("silent for good, but with something to say")
	case !e.has(listening) && untold == 0 && !e.has(changeQueued):
		return fmt.Errorf("nobody listens, and there is nothing to tell")
	case !settled:
		return nil
	case e.timer != 0 && l.timers.heap.at(e.timer-1).slot != slot:
		return fmt.Errorf("its timer is another's")
	case l.version == mld.Version1 && e.timer == 0 && (e.has(repeating) || e.repeats != 0):
		return fmt.Errorf("Idle, but with repeats")
	case l.version == mld.Version1 && e.repeats != 0 && !e.has(repeating):
		return fmt.Errorf("repeats after an answer")
	case l.version == mld.Version1 && (!e.has(listening) || e.has(changeQueued|answerQueued) || m != nil && (m.retransmit != nil || m.answer != 0)):
		return fmt.Errorf("something of MLDv2 in MLDv1 mode")
	case l.version == mld.Version2 && e.has(otherReporter|repeating):
		return fmt.Errorf("something of MLDv1 in MLDv2 mode")
	case l.version == mld.Version2 && untold > MaxRobustness:
		return fmt.Errorf("%d Reports to come", untold)
	case l.version == mld.Version2 && untold > 0 && e.timer == 0 && !e.has(changeQueued):
		return fmt.Errorf("%d Reports to come, but no timer runs", untold)
	case l.version == mld.Version2 && e.timer != 0 && untold == 0:
		return fmt.Errorf("a timer runs for nothing")
	}
	return nil
}

func isSet(list []addr) bool {
	return slices.IsSortedFunc(list, compare) && len(slices.Compact(slices.Clone(list))) == len(list)
}

// checkMores looks at what addresses have aside from their entries.
func (l *Listener) checkMores() error {
	t := &l.addresses
	extensions := 0
	for slot := range t.slots() {
		if t.at(slot).has(extended) {
			extensions++
		}
	}
	if extensions != len(t.mores) {
		return fmt.Errorf("%d addresses have more, but there is more of %d", extensions, len(t.mores))
	}
	for slot, m := range t.mores {
		e := t.at(slot)
		var sources []addr
		for _, p := range m.retransmit {
			sources = append(sources, p.source)
			if p.count == 0 || p.count > MaxRobustness {
				return fmt.Errorf("slot %d: source %x has counter %d", slot, p.source, p.count)
			}
		}
		var ids []SubscriberID
		for _, f := range m.filters {
			ids = append(ids, f.id)
			if !isSet(f.sources) || len(f.sources) == 0 || !e.has(listening) || f.id != e.first && !slices.Contains(t.others[slot], f.id) {
				return fmt.Errorf("slot %d: subscriber %d has filter %v(%x)", slot, f.id, f.mode, f.sources)
			}
		}
		slices.Sort(ids)
		switch {
		case len(slices.Compact(ids)) != len(m.filters):
			return fmt.Errorf("slot %d: a subscriber has two filters", slot)
		case !isSet(sources) || !isSet(m.sources) || !isSet(m.asked):
			return fmt.Errorf("slot %d: not a set: %+v", slot, *m)
		case len(m.asked) > maxAsked:
			return fmt.Errorf("slot %d: %d sources recorded", slot, len(m.asked))
		case len(m.asked) > 0 && m.answer == 0 && !e.has(answerQueued):
			return fmt.Errorf("slot %d: %d sources recorded for no answer", slot, len(m.asked))
		case len(m.filters)+len(m.sources)+len(m.retransmit)+len(m.asked) == 0 && m.answer == 0:
			return fmt.Errorf("slot %d has more, which is nothing", slot)
		}
	}
	return nil
}

func (l *Listener) checkTimers() error {
	h := &l.timers.heap
	running := uint32(0)
	for slot := range l.addresses.slots() {
		if l.addresses.at(slot).epoch != l.epoch {
			continue
		}
		if l.addresses.at(slot).timer != 0 {
			running++
		}
		if m := l.addresses.more(slot); m != nil && m.answer != 0 {
			running++
		}
	}
	if running != h.len {
		return fmt.Errorf("%d addresses say they are Delaying, %d timers run", running, h.len)
	}
	for i := range h.len {
		timer := *h.at(i)
		if place := l.addresses.place(timer.slot, timer.kind); place == nil || *place != i+1 {
			return fmt.Errorf("timer %d belongs to slot %d, which has timer %d", i, timer.slot, l.addresses.at(timer.slot).timer)
		}
		if parent := h.at((max(i, 1) - 1) / heapArity); parent.due > timer.due {
			return fmt.Errorf("timer %d is due at %d, before its parent at %d", i, timer.due, parent.due)
		}
	}
	return nil
}

// checkMode looks at what goes on for the interface as a whole.
func (l *Listener) checkMode() error {
	switch slots := l.addresses.slots(); {
	case l.queued.running && !l.answers.running:
		return fmt.Errorf("a General Query waits for none")
	case l.answers.running && l.answers.next >= slots, l.announce.running && l.announce.next >= slots:
		return fmt.Errorf("a sweep has nothing to do: answers %+v, announcement %+v, %d slots", l.answers, l.announce, slots)
	case l.cfg.Version != 0 && (l.version != l.cfg.Version || l.older != never || l.epoch != 0):
		return fmt.Errorf("version %d although %d is configured", l.version, l.cfg.Version)
	case l.cfg.Version == 0 && (l.version == mld.Version1) != (l.older != never):
		return fmt.Errorf("version %d, and the Older Version Querier Present timer ends at %d", l.version, l.older)
	case l.version == mld.Version1 && (l.general != never || l.current.running):
		return fmt.Errorf("a general answer of MLDv2 in MLDv1 mode")
	case l.version == mld.Version2 && (l.answers.running || l.queued.running):
		return fmt.Errorf("a general answer of MLDv1 in MLDv2 mode")
	case l.robustness == 0 || l.robustness > MaxRobustness:
		return fmt.Errorf("robustness %d", l.robustness)
	}
	return nil
}
