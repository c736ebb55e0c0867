package listener

import (
	"time"

	"github.com/seed-aaab8e3a/cni-mld/mld"
)

// maxPerCall bounds the addresses that one call of Advance deals with, and so its duration.
const maxPerCall = 2048

// A sweep is something that is to be done to every address and is worked off in pieces.
type sweep struct {
	running bool
	next    uint32        // the slot to go on with
	at      int64         // when it began; delays count from here
	mrd     time.Duration // Maximum Response Delay, of a query
}

func (s *sweep) deadline() int64 { return s.at + int64(s.mrd) }

// take returns the slots of the next piece, and ends the sweep with the last one.
func (s *sweep) take(slots uint32) (from, to uint32) {
	from = s.next
	to = min(from+maxPerCall, slots)
	s.next = to
	s.running = to < slots
	return from, to
}

func (l *Listener) receiveQuery(t int64, m mld.Message) {
	l.counters.QueriesHeard++
	// A node that speaks MLDv1 reads the delay linearly in any Query (V1-26, K21, RFC 2710 section 3.7).
	mrd := time.Duration(m.MaxResponseCode) * time.Millisecond
	if !m.MulticastAddress.IsUnspecified() {
		if slot, ok := l.addresses.find(m.MulticastAddress); ok { // V1-11, V1-12, K35
			l.query(slot, t, mrd)
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
	from, to := l.answers.take(l.addresses.slots())
	for slot := from; slot < to; slot++ { // V1-11, K34: one draw for each address (V1-13)
		l.query(slot, s.at, s.mrd)
	}
	if !l.answers.running {
		l.answers, l.queued = l.queued, sweep{}
	}
}

// query is the event "query received" of RFC 2710 section 5 for one address.
func (l *Listener) query(slot uint32, t int64, mrd time.Duration) {
	e := l.addresses.at(slot)
	if !e.has(reportable) { // V1-22, V1-36; free slots are not reportable either
		return
	}
	if mrd == 0 { // V1-15, K33; this is also what keeps a draw from an empty range away (K32)
		e.repeats = 0
		l.report(slot, CauseAnswer)
		l.armRepeat(t, slot)
		return
	}
	if e.timer != 0 && !l.sooner(t, mrd, l.timers.due(e.timer)) {
		return // V1-14, K38
	}
	e.repeats = 0 // V1-37: what was a pending repeat is an answer now
	e.clear(repeating)
	l.timers.set(&l.addresses, slot, l.dueWithin(t, mrd-l.margin(mrd))) // V1-13, V1-14, K36, K37
}

// margin is what is kept back of a Maximum Response Delay, so that the Report is on the wire in time although the
// caller's timer is a little late. The KAME profile keeps nothing back (K30).
func (l *Listener) margin(mrd time.Duration) time.Duration {
	if l.cfg.Profile == KAME {
		return 0
	}
	return min(5*time.Millisecond, mrd/4)
}

// advanceAnnouncement reports a piece of all addresses anew (V1-30).
func (l *Listener) advanceAnnouncement() {
	if !l.announce.running {
		return
	}
	at := l.announce.at
	from, to := l.announce.take(l.addresses.slots())
	for slot := from; slot < to; slot++ {
		if l.addresses.at(slot).has(reportable) {
			l.reportAnew(at, slot, CauseAnnounced)
		}
	}
}
