package listener

import (
	"time"

	"github.com/seed-aaab8e3a/cni-mld/mld"
)

// unsolicitedReportInterval is the configured one, or that of the version in force (V1-7, V2-26, V2-50).
func (l *Listener) unsolicitedReportInterval() time.Duration {
	switch {
	case l.cfg.UnsolicitedReportInterval != 0:
		return l.cfg.UnsolicitedReportInterval
	case l.version == mld.Version1:
		return DefaultUnsolicitedReportIntervalV1
	}
	return DefaultUnsolicitedReportIntervalV2
}

// answerWithin draws the time of an answer: within the Maximum Response Delay, and a little earlier, so that the
// Report is on the wire in time although the caller's timer is a little late.
func (l *Listener) answerWithin(t int64, mrd time.Duration) int64 {
	if mrd == 0 {
		return t + 1 // V2-32: at the next timer step
	}
	if l.cfg.Profile == RFC { // mld6.c keeps nothing back (K30)
		mrd -= min(5*time.Millisecond, mrd/4)
	}
	return l.dueWithin(t, mrd)
}

// tick is the grid of the KAME profile's timers, the kernel's fast timeout of old (K30, K52).
const tick = 200 * time.Millisecond

// dueWithin draws the time of a report, uniformly from (t, t+d] (V1-7, V1-13). The KAME profile draws a whole
// number of ticks, at least one, and counts from the tick that t lies in (K8, K31, K36).
func (l *Listener) dueWithin(t int64, d time.Duration) int64 {
	if l.cfg.Profile == KAME {
		return (t/int64(tick) + 1 + l.rnd.Int64N(ticks(d))) * int64(tick)
	}
	return t + 1 + l.rnd.Int64N(int64(d))
}

// sooner tells whether d is less than what remains of a timer due at due (V1-14).
func (l *Listener) sooner(t int64, d time.Duration, due int64) bool {
	if l.cfg.Profile == KAME {
		return ticks(d) < due/int64(tick)-t/int64(tick) // K37, K38
	}
	return int64(d) < due-t
}

// ticks rounds down, but never to none (K30, K31, K32).
func ticks(d time.Duration) int64 {
	return max(1, int64(d/tick))
}
