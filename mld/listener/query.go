package listener

import (
	"time"

	"github.com/seed-aaab8e3a/cni-mld/mld"
)

// maxPerCall bounds the addresses that one call of Advance deals with, and so its duration.
const maxPerCall = 512

// maxPieces bounds the pieces of the table that one call of Outgoing looks through for a general answer.
const maxPieces = 64

// maxAsked bounds the sources recorded for the answer to a specific Query. One more, and the whole record is the
// answer (V2-73).
const maxAsked = 1024

// A sweep is something that is to be done to every address and is worked off in pieces.
type sweep struct {
	running bool
	next    uint32        // the slot to go on with
	at      int64         // when it began; delays count from here
	mrd     time.Duration // Maximum Response Delay, of a query
}

func (s *sweep) deadline() int64 { return s.at + int64(s.mrd) }

// take returns the slots of the next piece, and ends the sweep with the last one.
func (s *sweep) take(slots, piece uint32) (from, to uint32) {
	from = s.next
	to = min(from+piece, slots)
	s.next = to
	s.running = to < slots
	return from, to
}

func (l *Listener) receiveQuery(t int64, m *mld.Message) {
	l.counters.QueriesHeard++
	older := m.Version == mld.Version1
	if older && l.cfg.Version == mld.Version2 {
		return // V2-56, section 10.1: no fallback, whoever asks for it
	}
	if older {
		l.countSourceOnly(m)
	}
	if m.MulticastAddress.IsUnspecified() {
		l.queryResponseInterval = m.MaxResponseDelay() // V2-68
	}
	if older && l.cfg.Version != mld.Version1 {
		l.heardOlder(t)
	}
	if l.version == mld.Version1 {
		// V1-26, V2-51, K21: a node in MLDv1 mode reads the delay linearly, in any Query (V2-52).
		l.receiveQueryV1(t, m, time.Duration(m.MaxResponseCode)*time.Millisecond)
	} else {
		l.learn(m)
		l.receiveQueryV2(t, m, m.MaxResponseDelay())
	}
}

// learn takes over the querier's variables.
func (l *Listener) learn(m *mld.Message) {
	l.robustness = uint8(l.cfg.Robustness)
	if m.QRV != 0 {
		l.robustness = m.QRV // V2-13, V2-83
	}
	l.queryInterval = defaultQueryInterval
	if m.QQIC != 0 {
		l.queryInterval = m.QueryInterval() // V2-14
	}
}

// countSourceOnly counts a Query of version 1 that concerns an SSM address: an error to be logged (V2-59, V2-79).
func (l *Listener) countSourceOnly(m *mld.Message) {
	if l.sourceOnly == 0 {
		return
	}
	if a := m.MulticastAddress; a.IsUnspecified() || l.cfg.SourceSpecific(a) {
		l.counters.SourceSpecificQueriesV1++
	}
}

// The answers of MLDv1: a timer for each address.

func (l *Listener) receiveQueryV1(t int64, m *mld.Message, mrd time.Duration) {
	if !m.MulticastAddress.IsUnspecified() {
		if slot, ok := l.find(m.MulticastAddress.As16()); ok { // V1-11, V1-12, K35
			l.queryV1(slot, t, mrd)
		}
		return
	}
	l.queueAnswers(sweep{running: true, at: t, mrd: mrd})
	l.advanceAnswers()
}

// queueAnswers settles what to do with a General Query while an earlier one is still being worked off, which only
// happens with many addresses. At most one waits.
func (l *Listener) queueAnswers(s sweep) {
	switch {
	case !l.answers.running || s.deadline() <= l.answers.deadline():
		l.answers, l.queued = s, sweep{} // a timer drawn for the new query is good for the old ones
	case !l.queued.running || s.deadline() <= l.queued.deadline():
		l.queued = s
	default:
		// The waiting one will have every address answered after this query and before its deadline.
	}
}

func (l *Listener) advanceAnswers() {
	if !l.answers.running {
		return
	}
	s := l.answers
	from, to := l.answers.take(l.addresses.slots(), maxPerCall)
	for slot := from; slot < to; slot++ { // V1-11, K34: one draw for each address (V1-13)
		if l.settle(slot) {
			l.queryV1(slot, s.at, s.mrd)
		}
	}
	if !l.answers.running {
		l.answers, l.queued = l.queued, sweep{}
	}
}

// queryV1 is the event "query received" of RFC 2710 section 5 for one address.
func (l *Listener) queryV1(slot uint32, t int64, mrd time.Duration) {
	e := l.addresses.at(slot)
	if !e.has(reportable) { // V1-22, V1-36
		return
	}
	if mrd == 0 { // V1-15, K33; this is also what keeps a draw from an empty range away (K32)
		e.repeats = 0
		l.reportV1(slot, CauseAnswer)
		l.armRepeat(t, slot)
		return
	}
	if e.timer != 0 && !l.sooner(t, mrd, l.timers.due(e.timer)) {
		return // V1-14, K38
	}
	e.repeats = 0 // V1-37: what was a pending repeat is an answer now
	e.clear(repeating)
	l.timers.set(&l.addresses, slot, reportTimer, l.answerWithin(t, mrd)) // V1-13, V1-14, K36, K37
}

// The answers of MLDv2: one Interface Timer, and a timer for an address that is asked for by name (V2-33).

func (l *Listener) receiveQueryV2(t int64, m *mld.Message, mrd time.Duration) {
	if l.wanted == 0 {
		return // V2-34
	}
	due := l.answerWithin(t, mrd)
	if l.general < due {
		return // V2-35, rule 1
	}
	if m.MulticastAddress.IsUnspecified() {
		l.general = due // V2-36, rule 2
		return
	}
	slot, ok := l.find(m.MulticastAddress.As16())
	if !ok || !l.addresses.concerns(slot, m.Sources) {
		return // V2-34
	}
	x, queued := l.addresses.extend(slot), l.addresses.at(slot).has(answerQueued)
	switch asked := m.Sources; {
	case x.answer == 0 && !queued: // V2-37, rule 3
		x.asked = appendAsked(nil, asked)
	case asked.Len() == 0 || len(x.asked) == 0: // V2-38, rule 4
		x.asked = nil
	default: // V2-39, rule 5
		x.asked = appendAsked(x.asked, asked)
	}
	switch {
	case queued: // the earlier time has come already
		return
	case x.answer != 0: // V2-38, V2-39: the earlier of the two
		due = min(due, l.timers.due(x.answer))
	}
	l.timers.set(&l.addresses, slot, answerTimer, due)
}

// concerns tells whether a Query for an address, and for these sources if there are any, is about what is wanted.
func (t *table) concerns(slot uint32, asked mld.Sources) bool {
	e := t.at(slot)
	if !e.has(listening) || !e.has(reportable) {
		return false
	}
	for a := range asked.All() {
		if t.forwards(slot, a.As16()) {
			return true
		}
	}
	return asked.Len() == 0
}

// appendAsked returns the union of recorded and asked sources, or none if they are too many (V2-73).
func appendAsked(recorded []addr, asked mld.Sources) []addr {
	if len(recorded)+asked.Len() > maxAsked {
		return nil
	}
	for a := range asked.All() {
		recorded = append(recorded, a.As16())
	}
	return sortAddrs(recorded)
}

// transmitAnswer appends the record that answers a specific Query for the address.
func (l *Listener) transmitAnswer(slot uint32) {
	e := l.addresses.at(slot)
	e.clear(answerQueued)
	var asked []addr
	if m := l.addresses.more(slot); m != nil {
		asked, m.asked = m.asked, nil // V2-44
	}
	if len(asked) == 0 {
		l.transmitCurrent(slot) // V2-41
	} else {
		l.allow = l.allow[:0]
		if e.has(exclude) {
			l.allow = difference(l.allow, asked, l.addresses.sources(slot))
		} else {
			l.allow = intersection(l.allow, asked, l.addresses.sources(slot))
		}
		if len(l.allow) > 0 { // V2-42, V2-43; what is no longer listened to is INCLUDE({})
			l.records.push(record{kind: mld.ModeIsInclude, addr: e.addr, slot: slot, sources: l.allow})
		}
	}
	l.release(slot)
}

// transmitCurrent appends the Current State Record of an address (V2-40, V2-41). What is not listened to has none.
func (l *Listener) transmitCurrent(slot uint32) {
	e := l.addresses.at(slot)
	switch {
	case !e.has(listening) || !e.has(reportable):
	case e.has(exclude):
		l.records.push(record{kind: mld.ModeIsExclude, addr: e.addr, slot: slot, sources: l.addresses.sources(slot)})
	default: // V2-43: a listener in INCLUDE has sources
		l.records.push(record{kind: mld.ModeIsInclude, addr: e.addr, slot: slot, sources: l.addresses.sources(slot)})
	}
}

// advanceAnnouncement tells a piece of all addresses anew (V1-30, V2-61).
func (l *Listener) advanceAnnouncement() {
	if !l.announce.running {
		return
	}
	at := l.announce.at
	from, to := l.announce.take(l.addresses.slots(), maxPerCall)
	for slot := from; slot < to; slot++ {
		e := l.addresses.at(slot)
		switch {
		case !l.settle(slot) || !e.has(reportable) || !e.has(listening):
		case l.version == mld.Version1:
			l.reportAnew(at, slot, CauseAnnounced)
		default:
			l.announceChange(at, slot)
		}
	}
}
