package listener

import "github.com/seed-aaab8e3a/cni-mld/mld"

// changed carries out what the subscribers of a slot now want together. The slot is free afterwards if nobody wants
// anything and there is nothing more to tell.
func (l *Listener) changed(t int64, slot uint32) {
	e := l.addresses.at(slot)
	before, sourcesBefore := e.mode(), l.addresses.sources(slot)
	now, sourcesNow := l.addresses.merged(slot)
	l.addresses.setFilter(slot, now, sourcesNow)
	switch {
	case !e.has(reportable): // V1-22, V1-23, V2-18, K4, K5
	case l.version == mld.Version1:
		l.changedV1(t, slot, wants(before, sourcesBefore), wants(now, sourcesNow))
	default:
		l.changedV2(t, slot, before, sourcesBefore)
	}
	l.release(slot)
}

// mode is the filter mode of the interface for the address.
func (e *entry) mode() FilterMode {
	if e.has(exclude) {
		return Exclude
	}
	return Include
}

func (t *table) setFilter(slot uint32, mode FilterMode, sources []addr) {
	e := t.at(slot)
	e.clear(exclude)
	if mode == Exclude {
		e.set(exclude)
	}
	if len(sources) > 0 {
		t.extend(slot).sources = sources
	} else if m := t.more(slot); m != nil {
		m.sources = nil
	}
}

// release frees a slot that nobody listens to and that has nothing more to tell.
func (l *Listener) release(slot uint32) {
	e := l.addresses.at(slot)
	if e.has(listening|changeQueued) || l.addresses.untold(slot) > 0 {
		l.addresses.slim(slot)
		return
	}
	l.timers.stop(&l.addresses, slot, reportTimer)
	l.timers.stop(&l.addresses, slot, answerTimer)
	l.addresses.remove(slot)
}

// changedV1 is "start listening" or "stop listening" of RFC 2710 section 5. Sources do not matter (V2-50).
func (l *Listener) changedV1(t int64, slot uint32, before, now bool) {
	e := l.addresses.at(slot)
	switch {
	case now && !before: // only from Non-Listener: V1-6, K12, K68
		l.reportAnew(t, slot, CauseJoined)
	case before && !now: // V1-9, V1-35, K73
		l.timers.stop(&l.addresses, slot, reportTimer)
		e.repeats = 0
		// V1-31: without the flag another node answers for the address, so that the Done may be left out.
		if l.canSend() && (!e.has(otherReporter) || l.cfg.AlwaysDone) {
			l.send(outgoing{addr: e.addr, cause: CauseLeft})
		}
	}
}

// changedV2 schedules the State Change Reports of RFC 9777 section 6.1.
func (l *Listener) changedV2(t int64, slot uint32, before FilterMode, sourcesBefore []addr) {
	e := l.addresses.at(slot)
	if e.mode() != before {
		e.repeats = l.robustness // V2-29
	} else {
		changes := pick(nil, sourcesBefore, l.addresses.sources(slot), func(was, is bool) bool { return was != is }) // V2-21, V2-22
		if len(changes) == 0 {
			return // V2-20, V2-25
		}
		l.addresses.extend(slot).retransmitSources(changes, l.robustness)
	}
	l.queueChange(t, slot) // V2-20; V2-27: it ends the earlier series
}

// untold is the number of State Change Reports still to be sent for the address.
func (t *table) untold(slot uint32) uint8 {
	n := t.at(slot).repeats
	if m := t.more(slot); m != nil {
		for _, p := range m.retransmit {
			n = max(n, p.count)
		}
	}
	return n
}

// retransmitSources puts sources into retransmission state, anew if they are there (V2-28).
func (m *more) retransmitSources(sources []addr, count uint8) {
	before := m.retransmit
	m.retransmit = make([]pending, 0, len(before)+len(sources))
	for len(before) > 0 || len(sources) > 0 {
		if len(sources) == 0 || len(before) > 0 && compare(before[0].source, sources[0]) < 0 {
			m.retransmit = append(m.retransmit, before[0])
			before = before[1:]
			continue
		}
		if len(before) > 0 && before[0].source == sources[0] {
			before = before[1:]
		}
		m.retransmit = append(m.retransmit, pending{sources[0], count})
		sources = sources[1:]
	}
}

// queueChange has a State Change Report for the address sent, and another one later if there is more to tell than
// one Report (V2-26). While nothing can be sent, there is nothing to tell: the announcement that follows tells all.
func (l *Listener) queueChange(t int64, slot uint32) {
	e := l.addresses.at(slot)
	if !l.canSend() {
		l.addresses.forgetChange(slot)
		l.timers.stop(&l.addresses, slot, reportTimer)
		return
	}
	if !e.has(changeQueued) {
		e.set(changeQueued)
		l.changes.push(slot)
	}
	if l.addresses.untold(slot) > 1 {
		l.timers.set(&l.addresses, slot, reportTimer, l.repeatDue(t))
	} else {
		l.timers.stop(&l.addresses, slot, reportTimer)
	}
}

// repeatDue draws when a change is told again (V2-26). The changes of one instant share it, so that what is joined
// together is told together each time, and not in a Report for each address: a bridge passes every Report to all its
// ports.
func (l *Listener) repeatDue(t int64) int64 {
	if l.repeat.at != t || l.repeat.due <= t {
		l.repeat.at, l.repeat.due = t, l.dueWithin(t, l.unsolicitedReportInterval())
	}
	return l.repeat.due
}

func (t *table) forgetChange(slot uint32) {
	t.at(slot).repeats = 0
	t.at(slot).clear(changeQueued)
	if m := t.more(slot); m != nil {
		m.retransmit = nil
	}
}

// transmitChange appends the records of one State Change Report of the address, as things stand now (V2-30, V2-31),
// and counts it.
func (l *Listener) transmitChange(slot uint32) {
	e, m := l.addresses.at(slot), l.addresses.more(slot)
	e.clear(changeQueued)
	if e.repeats > 0 { // V2-29, V2-65
		kind := mld.ChangeToInclude // V2-24
		if e.has(exclude) {
			kind = mld.ChangeToExclude // V2-23
		}
		l.records.push(record{kind: kind, addr: e.addr, slot: slot, sources: l.addresses.sources(slot)})
		e.repeats--
	} else if m != nil {
		l.transmitSources(slot, m)
	}
	if m != nil { // V2-28: every Report counts
		left := m.retransmit[:0]
		for _, p := range m.retransmit {
			if p.count > 1 {
				left = append(left, pending{p.source, p.count - 1})
			}
		}
		m.retransmit = left
	}
	l.release(slot) // V2-63
}

// transmitSources sorts the sources in retransmission state into those that are to be forwarded now and those that
// are not (V2-30).
func (l *Listener) transmitSources(slot uint32, m *more) {
	e := l.addresses.at(slot)
	l.allow, l.block = l.allow[:0], l.block[:0]
	for _, p := range m.retransmit {
		if l.addresses.forwards(slot, p.source) {
			l.allow = append(l.allow, p.source)
		} else {
			l.block = append(l.block, p.source)
		}
	}
	if len(l.allow) > 0 {
		l.records.push(record{kind: mld.AllowNewSources, addr: e.addr, slot: slot, sources: l.allow})
	}
	if len(l.block) > 0 {
		l.records.push(record{kind: mld.BlockOldSources, addr: e.addr, slot: slot, sources: l.block})
	}
}

// announceChange has an address told as if it had just been joined: TO_EX, or ALLOW of its sources (V2-61, V2-62).
func (l *Listener) announceChange(t int64, slot uint32) {
	e := l.addresses.at(slot)
	if e.has(exclude) {
		e.repeats = l.robustness
	} else {
		l.addresses.extend(slot).retransmitSources(l.addresses.sources(slot), l.robustness)
	}
	l.queueChange(t, slot)
}
