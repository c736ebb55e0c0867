package listener

import (
	"fmt"
	"net/netip"
	"time"

	"github.com/seed-aaab8e3a/cni-mld/mld"
)

// A SubscriberID names one of the parties on whose behalf an interface listens: a socket, a network's
// configuration, the memberships of the kernel. The caller chooses it.
type SubscriberID uint32

// FilterMode is the mode of a source filter (RFC 9777 section 3).
type FilterMode uint8

// The filter modes.
const (
	Include FilterMode = iota // from the listed sources only
	Exclude                   // from all but the listed sources
)

// A Filter says which sources a subscriber wants for an address. The zero value is INCLUDE({}): none.
type Filter struct {
	Mode    FilterMode
	Sources []netip.Addr
}

// AnySource is the filter of a join without sources, EXCLUDE({}).
var AnySource = Filter{Mode: Exclude}

func (f Filter) wantsNothing() bool { return f.Mode == Include && len(f.Sources) == 0 }

// Profile selects whose behaviour the listener shows.
type Profile uint8

// The profiles.
const (
	// RFC obeys RFC 2710 and RFC 3590.
	RFC Profile = iota
	// KAME reproduces what the mld6.c of the KAME project does on the wire where it differs: timers on a grid of
	// 200 ms (K30, K31, K36), one repeat (K55), the last-reporter flag cleared by any Report (K45), and silence
	// without a link-local address, for good (K18, K57, K76).
	KAME
)

func (p Profile) String() string {
	switch p {
	case RFC:
		return "rfc"
	case KAME:
		return "kame"
	}
	return fmt.Sprintf("Profile(%d)", uint8(p))
}

// The defaults and bounds of [Config].
const (
	DefaultRobustness                = 2
	MaxRobustness                    = 7                // the largest value that a Query can carry
	DefaultUnsolicitedReportInterval = 10 * time.Second // RFC 2710 section 7.10
	MaxUnsolicitedReportInterval     = time.Hour
)

// Config is the configuration of a Listener. The zero value is RFC 2710's.
type Config struct {
	Profile Profile

	// Robustness is how often an address is reported when the node starts to listen to it, 1 to 7. Zero means 2,
	// which is one Report and one repeat, as in the state diagram of RFC 2710 section 5 (V1-7).
	Robustness int

	// UnsolicitedReportInterval is the longest time before a repeat, up to an hour. Zero means 10 s.
	UnsolicitedReportInterval time.Duration

	// AlwaysDone has a Done sent on every leave, also when another node reported the address last (V1-31).
	AlwaysDone bool
}

// withDefaults fills in the defaults, or says what is wrong.
func (c Config) withDefaults() (Config, error) {
	if c.Robustness == 0 {
		c.Robustness = DefaultRobustness
	}
	if c.UnsolicitedReportInterval == 0 {
		c.UnsolicitedReportInterval = DefaultUnsolicitedReportInterval
	}
	switch {
	case c.Profile != RFC && c.Profile != KAME:
		return c, fmt.Errorf("listener: profile %v is unknown", c.Profile)
	case c.Robustness < 1 || c.Robustness > MaxRobustness:
		return c, fmt.Errorf("listener: robustness %d is not between 1 and %d", c.Robustness, MaxRobustness)
	case c.UnsolicitedReportInterval < 0 || c.UnsolicitedReportInterval > MaxUnsolicitedReportInterval:
		return c, fmt.Errorf("listener: unsolicited report interval %v is not between 0 and %v",
			c.UnsolicitedReportInterval, MaxUnsolicitedReportInterval)
	case c.Profile == KAME && c.Robustness != DefaultRobustness:
		return c, fmt.Errorf("listener: robustness %d does not go with the KAME profile, which repeats once", c.Robustness)
	case c.Profile == KAME && c.AlwaysDone:
		return c, fmt.Errorf("listener: a Done on every leave does not go with the KAME profile, which has no such switch")
	}
	return c, nil
}

// Rand is a source of random numbers; *rand.Rand of math/rand/v2 is one.
type Rand interface {
	// Int64N returns a number in [0, n). It is called with n > 0 only.
	Int64N(n int64) int64
}

// A Listener is the listener of one interface. It must be made by [New] and used by one goroutine at a time.
type Listener struct {
	cfg    Config
	rnd    Rand
	base   time.Time // timers count from here; the time of the first call
	based  bool
	source netip.Addr // zero: cannot send; "::": no valid link-local address yet

	addresses table
	timers    timers
	answers   sweep // the General Query being worked off
	queued    sweep // the one to follow it
	announce  sweep // all addresses to be reported anew
	out       queue
	counters  Counters
}

// New makes a Listener that listens to nothing and cannot send until [Listener.SetSource].
func New(cfg Config, rnd Rand) (*Listener, error) {
	cfg, err := cfg.withDefaults()
	if err != nil {
		return nil, err
	}
	l := &Listener{cfg: cfg, rnd: rnd}
	l.addresses.init()
	return l, nil
}

// Listen is the service interface of RFC 9777 section 3: from now on, subscriber id wants addr as f says. Each
// call replaces what the subscriber said before; INCLUDE({}) leaves. MLDv1 tells nobody of sources, so every
// other filter is a request for the address.
//
// The link-scope all-nodes address and addresses of scope 0 and 1 are accepted, and never reported (V1-22,
// V1-23). An address that is not an IPv6 multicast address, or that has a zone, is an error and changes nothing.
func (l *Listener) Listen(now time.Time, id SubscriberID, addr netip.Addr, f Filter) error {
	if !addr.Is6() || addr.Is4In6() || !addr.IsMulticast() || addr.Zone() != "" {
		return fmt.Errorf("listener: %v is not an IPv6 multicast address without a zone", addr)
	}
	if f.wantsNothing() {
		l.unsubscribe(id, addr, true)
		return nil
	}
	slot, isNew := l.addresses.subscribe(addr, id)
	if isNew && l.addresses.at(slot).has(reportable) { // only from Non-Listener: V1-6, K12, K68; V1-22, V1-23, K4, K5
		l.reportAnew(l.elapsed(now), slot, CauseJoined)
	}
	return nil
}

// Leave ends every subscription of addr, as if all its subscribers had left.
func (l *Listener) Leave(addr netip.Addr) {
	if slot, ok := l.addresses.find(addr); ok {
		l.addresses.setOthers(slot, nil)
		l.unsubscribe(l.addresses.at(slot).first, addr, true)
	}
}

// Forget ends the subscription like a leave, but without a Done: somebody else on this node, with the same
// source address, goes on speaking for the address.
func (l *Listener) Forget(id SubscriberID, addr netip.Addr) {
	l.unsubscribe(id, addr, false)
}

func (l *Listener) unsubscribe(id SubscriberID, addr netip.Addr, done bool) {
	slot, last := l.addresses.unsubscribe(addr, id)
	if !last {
		return // not listened to at all, or others still listen (K74)
	}
	e := l.addresses.at(slot)
	l.timers.stop(&l.addresses, slot) // V1-9, V1-35
	// V1-9, V1-31: without the flag another node answers for the address, so that the Done may be left out.
	if done && l.canSend() && e.has(reportable) && (e.has(lastReporter) || l.cfg.AlwaysDone) {
		l.send(outgoing{addr: e.addr, cause: CauseLeft})
	}
	l.addresses.remove(slot) // K73: the record goes after the Done
}

// reportAnew sends a Report at once and arms the timer of its repeats.
func (l *Listener) reportAnew(t int64, slot uint32, cause Cause) {
	l.report(slot, cause)
	e := l.addresses.at(slot)
	e.repeats = uint8(l.cfg.Robustness - 1)
	l.armRepeat(t, slot)
}

// armRepeat arms the timer for the next repeat, or leaves the address Idle when there is none to come.
func (l *Listener) armRepeat(t int64, slot uint32) {
	e := l.addresses.at(slot)
	if e.repeats == 0 {
		l.timers.stop(&l.addresses, slot)
		e.clear(repeating)
		return
	}
	e.repeats--
	e.set(repeating)
	l.timers.set(&l.addresses, slot, l.dueWithin(t, l.cfg.UnsolicitedReportInterval)) // V1-7, K8
}

// report queues a Report and notes that this node was the last to report the address (V1-6, V1-16).
func (l *Listener) report(slot uint32, cause Cause) {
	e := l.addresses.at(slot)
	if l.canSend() {
		l.send(outgoing{addr: e.addr, slot: slot, cause: cause})
	} else if l.cfg.Profile == RFC {
		e.clear(lastReporter) // nobody has heard of us; the announcement that follows will set it
		return
	}
	e.set(lastReporter) // K9: mld6.c sets it for a Report that never left, too
}

// canSend tells whether there is a source address to send from: V1-30 allows "::", mld6.c does not use it (K57).
func (l *Listener) canSend() bool {
	return l.source.IsValid() && (l.cfg.Profile == RFC || !l.source.IsUnspecified())
}

// SetSource tells the address to send from: a link-local address of the interface that is valid (no longer
// tentative), "::" while there is none (RFC 3590), or the zero Addr while nothing can be sent at all, because the
// link is down or IPv6 is off. When sending becomes possible or the address is another one, every address is
// reported as if it had just been joined (V1-30).
//
// It panics if src is anything else: the caller chooses among its own addresses.
func (l *Listener) SetSource(now time.Time, src netip.Addr) {
	if src.IsValid() && (!src.Is6() || src.Is4In6() || !src.IsLinkLocalUnicast() && !src.IsUnspecified()) {
		panic(fmt.Sprintf("listener: source %v is not link-local", src))
	}
	src = src.WithZone("") // K62
	before := l.source
	l.source = src
	if !src.IsValid() || src == before || (src.IsUnspecified() && before.IsValid()) {
		return
	}
	if l.cfg.Profile == KAME {
		return // K56, K76: what was not sent is lost
	}
	l.announce = sweep{running: true, at: l.elapsed(now)}
	l.advanceAnnouncement()
}

// Receive tells of a message heard on the interface from src. The caller has checked the packet as [mld.Parse]
// does; what is not meant for a listener is ignored (V1-21).
func (l *Listener) Receive(now time.Time, src netip.Addr, m mld.Message) {
	switch m.Type {
	case mld.TypeQuery:
		l.receiveQuery(l.elapsed(now), m) // also a router's on this node: RFC 2710 section 2
	case mld.TypeReport:
		if src != l.source { // V1-25, K43: our own voice, come back
			l.receiveReport(m.MulticastAddress)
		}
	case mld.TypeDone, mld.TypeReportV2:
		// For routers (K49, K51).
	}
}

func (l *Listener) receiveReport(addr netip.Addr) {
	l.counters.ReportsHeard++
	slot, ok := l.addresses.find(addr)
	if !ok {
		return // V1-19, V1-20
	}
	e := l.addresses.at(slot)
	switch {
	case e.timer != 0: // V1-18, V1-37: another node has spoken for all of us
		l.timers.stop(&l.addresses, slot)
		e.repeats = 0
		e.clear(repeating | lastReporter)
		l.counters.Suppressed++
	case l.cfg.Profile == KAME: // K45; V1-19 leaves an Idle Listener and its flag alone
		e.clear(lastReporter)
	}
}

// Advance does what is due at now: expired timers, and a piece of what concerns all addresses.
func (l *Listener) Advance(now time.Time) {
	t := l.elapsed(now)
	l.advanceAnnouncement()
	l.advanceAnswers()
	for range maxPerCall {
		slot, ok := l.timers.expired(t)
		if !ok {
			return
		}
		e := l.addresses.at(slot)
		cause := CauseAnswer
		if e.has(repeating) {
			cause = CauseRepeat
		}
		l.report(slot, cause) // V1-16
		l.armRepeat(t, slot)
	}
}

// NextDeadline tells when Advance wants to be called next; false means not before something happens.
func (l *Listener) NextDeadline() (time.Time, bool) {
	if l.announce.running || l.answers.running {
		return l.base, true
	}
	due, ok := l.timers.next()
	if !ok {
		return time.Time{}, false
	}
	return l.base.Add(time.Duration(due)), true
}

// elapsed is the listener's own time: nanoseconds since the first call.
func (l *Listener) elapsed(now time.Time) int64 {
	if !l.based {
		l.base, l.based = now, true
	}
	return int64(now.Sub(l.base))
}
