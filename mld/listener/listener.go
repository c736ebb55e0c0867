package listener

import (
	"errors"
	"fmt"
	"net/netip"
	"time"

	"github.com/seed-aaab8e3a/cni-mld/mld"
)

// A SubscriberID names one of the parties on whose behalf an interface listens: a socket, a network's
// configuration, the memberships of the kernel. The caller chooses it.
type SubscriberID uint32

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
	DefaultRobustness                  = 2
	MaxRobustness                      = 7                // the largest value that a Query can carry
	DefaultUnsolicitedReportIntervalV1 = 10 * time.Second // RFC 2710 section 7.10
	DefaultUnsolicitedReportIntervalV2 = time.Second      // RFC 9777 section 9.11
	MaxUnsolicitedReportInterval       = time.Hour
)

// Config is the configuration of a Listener. The zero value is that of the RFCs.
type Config struct {
	Profile Profile

	// Version is what the listener speaks. Zero means MLDv2, and MLDv1 while a querier of that version is about (RFC
	// 9777 section 8.2.1). mld.Version2 never falls back (V2-56), mld.Version1 speaks nothing else.
	Version mld.Version

	// Robustness is the Robustness Variable, 1 to 7: how often a change is reported. Zero means 2. In MLDv2 that of
	// the querier takes its place (V2-13); in MLDv1 it makes one Report and one repeat of a join, as in the state
	// diagram of RFC 2710 section 5 (V1-7).
	Robustness int

	// UnsolicitedReportInterval is the longest time before a repeat, up to an hour. Zero means 1 s in MLDv2 and 10 s
	// in MLDv1.
	UnsolicitedReportInterval time.Duration

	// AlwaysDone has a Done sent on every leave in MLDv1, also when another node reported the address last (V1-31).
	AlwaysDone bool

	// SourceSpecific tells which addresses are for source-specific multicast. Nil means those of IANA, ff3x::/32
	// (V2-74, RFC 4604 section 2).
	SourceSpecific func(netip.Addr) bool
}

// withDefaults fills in the defaults, or says what is wrong.
func (c Config) withDefaults() (Config, error) {
	if c.Robustness == 0 {
		c.Robustness = DefaultRobustness
	}
	if c.SourceSpecific == nil {
		c.SourceSpecific = mld.SourceSpecific
	}
	switch {
	case c.Profile != RFC && c.Profile != KAME:
		return c, fmt.Errorf("listener: profile %v is unknown", c.Profile)
	case c.Version > mld.Version2:
		return c, fmt.Errorf("listener: version %d is unknown: 1, 2, or 0 to follow the querier", c.Version)
	case c.Robustness < 1 || c.Robustness > MaxRobustness:
		return c, fmt.Errorf("listener: robustness %d is not between 1 and %d", c.Robustness, MaxRobustness)
	case c.UnsolicitedReportInterval < 0 || c.UnsolicitedReportInterval > MaxUnsolicitedReportInterval:
		return c, fmt.Errorf("listener: unsolicited report interval %v is not between 0 and %v",
			c.UnsolicitedReportInterval, MaxUnsolicitedReportInterval)
	case c.Profile == KAME && c.Version != mld.Version1:
		return c, fmt.Errorf("listener: the KAME profile speaks version 1 only")
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
	base   time.Time  // timers count from here; the time of the first call
	based  bool       // there was one
	source netip.Addr // zero: cannot send; "::": no valid link-local address yet
	mtu    int

	addresses  table
	timers     timers
	wanted     int   // reportable addresses listened to
	sourceOnly int   // SSM addresses listened to
	announce   sweep // all addresses to be told anew

	// The version in force, and what it depends on (RFC 9777 section 8.2.1).
	version               mld.Version
	older                 int64         // when the Older Version Querier Present timer ends; never: it does not run
	epoch                 uint16        // counts the changes of version
	cancelled             []slab[timer] // timers of before, whose addresses are yet to be settled
	robustness            uint8         // Robustness Variable
	queryInterval         time.Duration // Query Interval
	queryResponseInterval time.Duration // Query Response Interval

	// MLDv1.
	answers sweep           // the General Query being worked off
	queued  sweep           // the one to follow it
	out     queue[outgoing] // Reports and Dones to be sent
	buf     []byte          // of the one being built

	// MLDv2.
	general   int64                   // when the Interface Timer ends; never: it does not run
	current   sweep                   // the general answer being sent
	changes   queue[uint32]           // addresses with a State Change Report to be sent
	repeat    struct{ at, due int64 } // when the changes of an instant are told again
	specific  queue[uint32]           // addresses with an answer to a specific Query to be sent
	records   records                 // of the address whose turn it is
	recordsOf Cause                   // what they are for
	allow     []addr                  // sources of those records
	block     []addr
	writer    mld.ReportWriter

	counters Counters
}

// New makes a Listener that listens to nothing and cannot send until [Listener.SetSource].
func New(cfg Config, rnd Rand) (*Listener, error) {
	cfg, err := cfg.withDefaults()
	if err != nil {
		return nil, err
	}
	l := &Listener{
		cfg:                   cfg,
		rnd:                   rnd,
		mtu:                   1500,
		version:               mld.Version2,
		older:                 never,
		robustness:            uint8(cfg.Robustness),
		queryInterval:         defaultQueryInterval,
		queryResponseInterval: defaultQueryResponseInterval,
		general:               never,
	}
	if cfg.Version == mld.Version1 {
		l.version = mld.Version1
	}
	l.addresses.init()
	return l, nil
}

// ErrSourceSpecific refuses an any-source request for an SSM address (V2-75, RFC 4604 section 2.1).
var ErrSourceSpecific = errors.New("the address is for source-specific multicast: name the sources to include")

// Listen is the service interface of RFC 9777 section 3: from now on, subscriber id wants addr as f says. Each call
// replaces what the subscriber said before; INCLUDE({}) leaves (V2-71).
//
// The link-scope all-nodes address and addresses of scope 0 and 1 are accepted, and never reported (V1-22, V1-23,
// V2-18). An error changes nothing: it says that addr is not an IPv6 multicast address or has a zone, that a source
// is not an IPv6 unicast address, or it wraps [ErrSourceSpecific].
func (l *Listener) Listen(now time.Time, id SubscriberID, addr netip.Addr, f Filter) error {
	if err := l.Validate(addr, f); err != nil {
		return err
	}
	l.listen(now, id, addr, f)
	return nil
}

// Validate returns the error that Listen would return.
func (l *Listener) Validate(addr netip.Addr, f Filter) error {
	if l.cfg.SourceSpecific(addr) && f.Mode == Exclude {
		return fmt.Errorf("listener: %v: %w", addr, ErrSourceSpecific)
	}
	return check(addr, f)
}

// Mirror is Listen for a membership that stands already, in the kernel's own listener: an any-source request for an
// SSM address is reported as the kernel would, and not refused.
func (l *Listener) Mirror(now time.Time, id SubscriberID, addr netip.Addr, f Filter) error {
	if err := check(addr, f); err != nil {
		return err
	}
	l.listen(now, id, addr, f)
	return nil
}

func check(addr netip.Addr, f Filter) error {
	if !addr.Is6() || addr.Is4In6() || !addr.IsMulticast() || addr.Zone() != "" {
		return fmt.Errorf("listener: %v is not an IPv6 multicast address without a zone", addr)
	}
	for _, s := range f.Sources {
		if !s.Is6() || s.Is4In6() || s.IsMulticast() || s.IsUnspecified() || s.Zone() != "" {
			return fmt.Errorf("listener: %v: source %v is not an IPv6 unicast address without a zone", addr, s)
		}
	}
	return nil
}

func (l *Listener) listen(now time.Time, id SubscriberID, addr netip.Addr, f Filter) {
	t := l.begin(now)
	slot, ok := l.find(addr.As16())
	switch {
	case f.WantsNothing() && !ok:
		return
	case !ok:
		slot = l.create(addr, l.cfg.SourceSpecific(addr))
	}
	was := l.addresses.at(slot).has(listening)
	if f.WantsNothing() {
		l.addresses.unsubscribe(slot, id)
	} else {
		l.addresses.subscribe(slot, id, f)
	}
	l.recount(slot, was)
	l.changed(t, slot)
}

func (l *Listener) create(addr netip.Addr, ssm bool) (slot uint32) {
	var f flags
	if mld.Reportable(addr) {
		f = reportable
	}
	if ssm {
		f |= sourceSpecific
	}
	slot = l.addresses.create(addr.As16(), f)
	l.addresses.at(slot).epoch = l.epoch
	return slot
}

// recount keeps count of the addresses listened to, after a change of the subscribers of one.
func (l *Listener) recount(slot uint32, was bool) {
	e, n := l.addresses.at(slot), 1
	switch {
	case was == e.has(listening):
		return
	case was:
		n = -1
	}
	if e.has(reportable) {
		l.wanted += n
	}
	if e.has(sourceSpecific) {
		l.sourceOnly += n
	}
}

// Leave ends every subscription of addr, as if all its subscribers had left.
func (l *Listener) Leave(now time.Time, addr netip.Addr) {
	t := l.begin(now)
	slot, ok := l.find(addr.As16())
	if !ok {
		return
	}
	was := l.addresses.at(slot).has(listening)
	l.addresses.unsubscribeAll(slot)
	l.recount(slot, was)
	l.changed(t, slot)
}

// Forget ends a subscription like a leave, but if it was the last one, nobody is told: somebody else on this node,
// with the same source address, goes on speaking for the address.
func (l *Listener) Forget(now time.Time, id SubscriberID, addr netip.Addr) {
	t := l.begin(now)
	slot, ok := l.find(addr.As16())
	if !ok || !l.addresses.at(slot).has(listening) {
		return // nobody to forget: a leave that is being told goes on
	}
	l.addresses.unsubscribe(slot, id)
	l.recount(slot, true)
	if l.addresses.at(slot).has(listening) {
		l.changed(t, slot)
		return
	}
	l.addresses.forgetChange(slot)
	l.release(slot)
}

// reportAnew sends a Report of version 1 at once and arms the timer of its repeats.
func (l *Listener) reportAnew(t int64, slot uint32, cause Cause) {
	l.reportV1(slot, cause)
	l.addresses.at(slot).repeats = uint8(l.cfg.Robustness - 1)
	l.armRepeat(t, slot)
}

// armRepeat arms the timer for the next repeat, or leaves the address Idle when there is none to come.
func (l *Listener) armRepeat(t int64, slot uint32) {
	e := l.addresses.at(slot)
	if e.repeats == 0 {
		l.timers.stop(&l.addresses, slot, reportTimer)
		e.clear(repeating)
		return
	}
	e.repeats--
	e.set(repeating)
	l.timers.set(&l.addresses, slot, reportTimer, l.dueWithin(t, l.unsolicitedReportInterval())) // V1-7, K8
}

// reportV1 queues a Report and notes that this node was the last to report the address (V1-6, V1-16).
func (l *Listener) reportV1(slot uint32, cause Cause) {
	e := l.addresses.at(slot)
	if l.canSend() {
		// A Report that waits is an answer too: whoever asks faster than we send must not fill the queue.
		if cause != CauseAnswer || !e.has(reportQueued) {
			e.set(reportQueued)
			l.send(outgoing{addr: e.addr, slot: slot, cause: cause})
		}
	} else if l.cfg.Profile == RFC {
		e.set(otherReporter) // nobody has heard of us; the announcement that follows will clear it
		return
	}
	e.clear(otherReporter) // K9: mld6.c does so for a Report that never left, too
}

// canSend tells whether there is a source address to send from: V1-30 allows "::", mld6.c does not use it (K57).
func (l *Listener) canSend() bool {
	return l.source.IsValid() && (l.cfg.Profile == RFC || !l.source.IsUnspecified())
}

// SetMTU tells the MTU of the link, 1500 octets until then. What is below the 1280 of every IPv6 link counts as 1280.
func (l *Listener) SetMTU(mtu int) { l.mtu = mtu }

// SetSource tells the address to send from: a link-local address of the interface that is valid (no longer
// tentative), "::" while there is none (RFC 3590), or the zero Addr while nothing can be sent at all, because the
// link is down or IPv6 is off. When sending becomes possible or the address is another one, every address is
// reported as if it had just been joined (V1-30, V2-61).
//
// It panics if src is anything else: the caller chooses among its own addresses.
func (l *Listener) SetSource(now time.Time, src netip.Addr) {
	if src.IsValid() && (!src.Is6() || src.Is4In6() || !src.IsLinkLocalUnicast() && !src.IsUnspecified()) {
		panic(fmt.Sprintf("listener: source %v is not link-local", src))
	}
	t := l.begin(now)
	src = src.WithZone("") // K62
	before := l.source
	l.source = src
	if !src.IsValid() || src == before || (src.IsUnspecified() && before.IsValid()) {
		return
	}
	if l.cfg.Profile == KAME {
		return // K56, K76: what was not sent is lost
	}
	l.announce = sweep{running: true, at: t}
	l.advanceAnnouncement()
}

// Receive tells of a message heard on the interface from src. The caller has checked the packet as [mld.Parse]
// does; what is not meant for a listener is ignored (V1-21, V2-15).
func (l *Listener) Receive(now time.Time, src netip.Addr, m mld.Message) {
	t := l.begin(now)
	switch m.Type {
	case mld.TypeQuery:
		l.receiveQuery(t, &m) // also a router's on this node: RFC 2710 section 2
	case mld.TypeReport:
		if src != l.source { // V1-25, K43: our own voice, come back
			l.receiveReport(m.MulticastAddress)
		}
	case mld.TypeDone, mld.TypeReportV2:
		// For routers (K49, K51).
	}
}

func (l *Listener) receiveReport(a netip.Addr) {
	l.counters.ReportsHeard++
	if l.version != mld.Version1 || l.cfg.Profile == RFC && l.cfg.SourceSpecific(a) {
		return // V2-55: a listener in MLDv2 mode may go on, and has to for SSM addresses
	}
	slot, ok := l.find(a.As16())
	if !ok {
		return // V1-19, V1-20
	}
	e := l.addresses.at(slot)
	switch {
	case e.timer != 0: // V1-18, V1-37: another node has spoken for all of us
		l.timers.stop(&l.addresses, slot, reportTimer)
		e.repeats = 0
		e.clear(repeating)
		e.set(otherReporter)
		l.counters.Suppressed++
	case l.cfg.Profile == KAME && e.has(reportable): // K45; V1-19 leaves an Idle Listener and its flag alone
		e.set(otherReporter)
	}
}

// Advance does what is due at now: expired timers, and a piece of what concerns all addresses.
func (l *Listener) Advance(now time.Time) {
	t := l.begin(now)
	l.settleCancelled()
	l.advanceAnnouncement()
	l.advanceAnswers()
	if l.general <= t && !l.current.running { // else the one before would never come to its end
		l.general = never
		l.current = sweep{running: l.canSend()}
	}
	for range maxPerCall {
		timer, ok := l.timers.expired(t)
		if !ok {
			return
		}
		l.expire(t, timer)
	}
}

func (l *Listener) expire(t int64, timer timer) {
	e := l.addresses.at(timer.slot)
	switch {
	case timer.kind == answerTimer:
		l.timers.stop(&l.addresses, timer.slot, answerTimer)
		if !e.has(answerQueued) {
			e.set(answerQueued)
			l.specific.push(timer.slot)
		}
	case l.version == mld.Version2:
		l.queueChange(t, timer.slot)
		l.release(timer.slot) // if nothing can be sent, a leave has nothing more to tell
	default:
		cause := CauseAnswer
		if e.has(repeating) {
			cause = CauseRepeat
		}
		l.reportV1(timer.slot, cause) // V1-16
		l.armRepeat(t, timer.slot)
	}
}

// NextDeadline tells when Advance wants to be called next; false means not before something happens.
func (l *Listener) NextDeadline() (time.Time, bool) {
	if l.announce.running || l.answers.running || l.current.running || len(l.cancelled) > 0 {
		return l.base, true
	}
	due := min(l.older, l.general)
	if first, ok := l.timers.next(); ok {
		due = min(due, first)
	}
	if due == never {
		return time.Time{}, false
	}
	return l.base.Add(time.Duration(due)), true
}

// begin begins a call: it tells the listener's own time, nanoseconds since the first call, and sees to it that the
// call finds the mode of that time, even if Advance is late.
func (l *Listener) begin(now time.Time) int64 {
	if !l.based {
		l.base, l.based = now, true
	}
	t := int64(now.Sub(l.base))
	if l.older <= t { // V2-54
		l.older = never
		l.setVersion(mld.Version2)
	}
	return t
}
