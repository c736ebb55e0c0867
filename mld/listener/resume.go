package listener

import (
	"net/netip"
	"time"

	"github.com/seed-aaab8e3a/cni-mld/mld"
)

// Resume is the first [Listener.SetSource] of a listener that takes the place of another one, which has ended without
// a word on the same interface: what is listened to until now was reported by that one, and counts as reported.
// Nothing has changed, so nothing is announced; but it is told once more, by Current State Records (in MLDv1, by a
// Report each) within the Query Response Interval, as if a General Query had come. Listeners that resume together are
// thereby spread over that time.
//
// Without a valid link-local address it is SetSource: there will be news, once there is one.
func (l *Listener) Resume(now time.Time, src netip.Addr) {
	if !src.IsLinkLocalUnicast() {
		l.SetSource(now, src)
		return
	}
	t := l.begin(now)
	l.source = src.WithZone("") // K62
	for slot := range l.addresses.slots() {
		e := l.addresses.at(slot)
		if !e.has(listening) || !e.has(reportable) {
			continue
		}
		l.timers.stop(&l.addresses, slot, reportTimer) // MLDv1: of the Report of a join
		e.repeats = 0
		e.clear(repeating | otherReporter)
		e.set(reported)
	}
	switch {
	case l.version == mld.Version1:
		l.queueAnswers(sweep{running: true, at: t, mrd: l.queryResponseInterval})
		l.advanceAnswers()
	case l.wanted > 0: // V2-34
		l.general = l.answerWithin(t, l.queryResponseInterval)
	}
}
