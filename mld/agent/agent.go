package agent

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"net"
	"net/netip"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/seed-aaab8e3a/cni-mld/mld"
	"github.com/seed-aaab8e3a/cni-mld/mld/kernel"
	"github.com/seed-aaab8e3a/cni-mld/mld/link"
	"github.com/seed-aaab8e3a/cni-mld/mld/listener"
	"github.com/seed-aaab8e3a/cni-mld/mld/netns"
)

// KernelReports says what becomes of the reports of the namespace's kernel on the interface.
type KernelReports uint8

// The ways to deal with the kernel's reports.
const (
	Auto KernelReports = iota // Mute where this kernel can, else Keep
	Mute                      // drop them; the agent speaks for the kernel's memberships too
	Keep                      // let them out; the agent speaks only for what the kernel does not hold
)

func (k KernelReports) String() string {
	switch k {
	case Auto:
		return "auto"
	case Mute:
		return "mute"
	case Keep:
		return "keep"
	}
	return fmt.Sprintf("KernelReports(%d)", uint8(k))
}

// KernelID is the subscriber under which the kernel's memberships stand in the listener.
const KernelID listener.SubscriberID = 0

// maxBurst is how many packets are sent before events are looked at again.
const maxBurst = 64

// ErrEthernet says that the interface does not carry Ethernet frames.
var ErrEthernet = errors.New("not an Ethernet-like interface")

// ErrStopped says that the agent has come to its end.
var ErrStopped = errors.New("the listener of this interface has ended")

// Config is what an Agent is started with.
type Config struct {
	Netns         *netns.Namespace // of the interface; stays the caller's and must stay open until Done
	Index         int              // of the interface
	Listener      listener.Config
	KernelReports KernelReports
	// Resume lets the agent take the place of one that has ended without a word: what stands is told once more within
	// the Query Response Interval (listener.Resume) instead of being announced. Standing is what was listened to there
	// beside what the kernel holds.
	Resume   bool
	Standing []Subscription
	// MaxJoined is how many addresses and sources the programs of the namespace may have joined; beyond it the agent ends
	// with [kernel.ErrTooMany], and the kernel speaks for itself again. Zero means [kernel.MaxJoined].
	MaxJoined int
	Mute      *kernel.Mute // of the interface, if Release of the agent before has returned one: Start takes it over
	Logger    *slog.Logger // nil: nothing is logged
	Observe   func(Event)  // nil: nobody is told what happens; see [Event]
}

// A Subscription is what a subscriber wants of an address, as in [Agent.Listen].
type Subscription struct {
	ID     listener.SubscriberID
	Addr   netip.Addr
	Filter listener.Filter
}

// wire is what the agent needs of a link.
type wire interface {
	State() (link.State, error)
	Watch() (link.State, error)
	ReadPacket() (packet []byte, unicast bool, err error)
	WritePacket(packet []byte) error
	HearKernel() error
	AddMembership(group netip.Addr) error
	DropMembership(group netip.Addr) error
	Close() error
}

// memberships is what the agent needs of a mirror.
type memberships interface {
	Next() ([]kernel.Change, error)
	Close() error
}

// An Agent is a listener at work on one interface. Its methods are safe for concurrent use.
type Agent struct {
	calls    chan func()
	packets  chan heard
	consumed chan struct{} // answers packets: the buffer may be used again
	links    chan struct{} // the state of the link has changed
	changes  chan []kernel.Change
	failures chan error // of a reader: the end of the agent
	stopping chan struct{}
	readers  sync.WaitGroup
	seen     atomic.Pointer[link.State] // the last one
	done     chan struct{}
	err      error // why it ended; valid after done

	beginning sync.Mutex
	begun     bool // guarded by beginning

	// What follows belongs to the owner goroutine, and to the holder of beginning before there is one.
	log         *slog.Logger
	observe     func(Event)
	accept      mld.Accept
	listener    *listener.Listener
	wire        wire
	mirror      memberships
	mute        *kernel.Mute // nil: the kernel's reports are kept
	link        link.State
	voice       voice
	takenIn     map[membership]struct{}
	waiters     []waiter
	rejected    [mld.NumReasons]uint64
	sendErrs    uint64
	lastSendErr error
	leaving     <-chan time.Time // after Stop: when to end; else nil
	quit        bool
	more        bool // to be sent, after a burst
	warnings    struct{ source, version warning }
	querier     Querier
	version     mld.Version // as it was when it was looked at last
}

// A membership is a subscriber's, in the interface's filter of group addresses.
type membership struct {
	id   listener.SubscriberID
	addr netip.Addr
}

type heard struct {
	packet  []byte
	unicast bool
}

// Start puts a listener to work. When it returns, the kernel is muted if it is to be, and the memberships that it
// holds are the listener's. An error wraps [link.ErrGone] when there is no such interface, [ErrEthernet],
// [kernel.ErrMuted], [kernel.ErrTooMany] or, if a mute was asked for by name, [kernel.ErrCannotMute].
func Start(cfg Config) (*Agent, error) {
	a, err := Prepare(cfg)
	if err != nil {
		return nil, err
	}
	a.Begin()
	return a, nil
}

// Prepare is Start for an agent that says nothing, and hears nothing, before Begin. What it is told until then is done at
// once, by the caller's goroutine; what is waited for comes after Begin.
func Prepare(cfg Config) (*Agent, error) {
	if cfg.Netns == nil {
		return nil, errors.Join(errors.New("agent: Config.Netns is nil: name the interface's namespace, such as netns.Current()"),
			closeMute(cfg.Mute))
	}
	w, err := link.Open(cfg.Netns, cfg.Index)
	if err != nil {
		return nil, errors.Join(err, closeMute(cfg.Mute))
	}
	a, err := prepare(cfg, w)
	if err != nil {
		return nil, errors.Join(err, w.Close(), closeMute(cfg.Mute))
	}
	return a, nil
}

func prepare(cfg Config, w wire) (*Agent, error) {
	state, err := w.Watch()
	if err != nil {
		return nil, err
	}
	if !state.Ethernet {
		return nil, fmt.Errorf("interface %s: %w", state.Name, ErrEthernet)
	}
	mute, err := newMute(cfg)
	if err != nil {
		return nil, fmt.Errorf("interface %s: %w", state.Name, err)
	}
	mirror, err := kernel.OpenMirror(cfg.Netns, cfg.Index, mute)
	if err != nil {
		return nil, errors.Join(err, closeMute(mute))
	}
	if cfg.MaxJoined > 0 {
		mirror.Limit(cfg.MaxJoined)
	}
	if cfg.Observe != nil {
		mirror.OnReport(func(p mld.Packet) { cfg.Observe(Event{Kind: EventMuted, Heard: p}) })
	}
	a, err := newAgent(cfg, w, mirror, mute)
	if err == nil && mute == nil {
		err = w.HearKernel()
	}
	if err == nil {
		err = a.takeOver(cfg, state)
	}
	if err != nil {
		return nil, errors.Join(err, mirror.Close(), closeMute(mute))
	}
	return a, nil
}

// newMute mutes the kernel as configured; nil means that its reports are kept.
func newMute(cfg Config) (*kernel.Mute, error) {
	if cfg.KernelReports == Keep {
		return nil, closeMute(cfg.Mute)
	}
	options := kernel.MuteOptions{Sources: cfg.Listener.Version != mld.Version1}
	if !options.Sources { // MLDv1 has no sources; then events are enough
		options.Hints = !kernel.HasEvents(cfg.Netns)
	}
	mute, err := cfg.Mute, error(nil)
	if mute != nil {
		err = mute.Renew(cfg.Netns, options)
	} else {
		mute, err = kernel.NewMute(cfg.Netns, cfg.Index, options)
	}
	if errors.Is(err, kernel.ErrCannotMute) && cfg.KernelReports == Auto {
		return nil, closeMute(cfg.Mute)
	}
	return mute, err
}

func closeMute(m *kernel.Mute) error {
	if m == nil {
		return nil
	}
	return m.Close()
}

func newAgent(cfg Config, w wire, mirror memberships, mute *kernel.Mute) (*Agent, error) {
	l, err := listener.New(cfg.Listener, rand.New(rand.NewPCG(rand.Uint64(), rand.Uint64())))
	if err != nil {
		return nil, err
	}
	a := &Agent{
		calls:    make(chan func()),
		packets:  make(chan heard),
		consumed: make(chan struct{}),
		links:    make(chan struct{}),
		changes:  make(chan []kernel.Change),
		failures: make(chan error, 3), // one for each reader
		stopping: make(chan struct{}),
		done:     make(chan struct{}),
		log:      cfg.Logger,
		observe:  cfg.Observe,
		listener: l,
		version:  l.Version(),
		wire:     w,
		mirror:   mirror,
		mute:     mute,
		takenIn:  make(map[membership]struct{}),
		voice:    voice{listener: l, keep: mute == nil},
	}
	if a.log == nil {
		a.log = slog.New(slog.DiscardHandler)
	}
	if cfg.Listener.Version == mld.Version1 {
		a.accept = mld.AcceptQueryLength // V1-2, K21
	}
	if cfg.Listener.Profile == listener.KAME {
		a.accept |= mld.AcceptHopLimit | mld.AcceptNoRouterAlert // K24, K25
	}
	return a, nil
}

// takeOver takes over what stands.
func (a *Agent) takeOver(cfg Config, state link.State) error {
	standing, err := a.mirror.Next()
	if err != nil {
		return err
	}
	if cfg.Resume {
		if err := a.resume(cfg.Standing, standing, state); err != nil {
			return err
		}
	} else {
		a.setLink(time.Now(), state)
		a.kernelChanged(time.Now(), standing)
	}
	return nil
}

// Begin puts an agent that Prepare has returned to work. Stop, Close and Release begin what has not begun, so that it
// ends. Further calls do nothing.
func (a *Agent) Begin() {
	a.beginning.Lock()
	defer a.beginning.Unlock()
	if a.begun {
		return
	}
	a.begun = true
	a.readers.Go(a.readPackets)
	a.readers.Go(a.watchLink)
	a.readers.Go(a.followKernel)
	go a.own()
}

// resume takes over what an agent before this one has told. What stands with the kernel alone is the listener's too.
func (a *Agent) resume(wanted []Subscription, standing []kernel.Change, state link.State) error {
	now := time.Now()
	a.voice.kernelChanged(now, standing)
	for _, s := range wanted {
		if err := a.listen(now, s.ID, s.Addr, s.Filter); err != nil {
			return err
		}
	}
	if state.Up && state.IPv6 {
		a.listener.Resume(now, state.Source)
	}
	a.setLink(now, state)
	return nil
}

// own is the owner goroutine.
func (a *Agent) own() {
	timer := time.NewTimer(time.Hour)
	defer timer.Stop()
	for !a.quit {
		a.more = a.drain()
		a.wake()
		if deadline, ok := a.listener.NextDeadline(); a.more {
			timer.Reset(0)
		} else if ok {
			timer.Reset(time.Until(deadline))
		} else {
			timer.Stop()
		}
		select {
		case h := <-a.packets:
			a.receive(h)
			a.consumed <- struct{}{}
		case <-a.links:
			_ = a.look()
		case changes := <-a.changes:
			if a.leaving == nil {
				a.lookAfter(changes)
				a.kernelChanged(time.Now(), changes)
			}
		case call := <-a.calls:
			call()
		case <-timer.C:
			a.listener.Advance(time.Now())
		case <-a.leaving:
			a.quit = true
		case err := <-a.failures:
			if a.leaving == nil { // else the interface was expected to go
				a.err = err
			}
			a.quit = true
		}
		a.noteVersion()
	}
	a.end()
}

// drain sends what is to be sent, at most maxBurst packets, and tells whether there is more.
func (a *Agent) drain() (more bool) {
	n := 0
	for p := range a.listener.Outgoing() {
		a.notice(Event{Kind: EventSent, Sent: p}) // before anybody can act upon it
		err := a.wire.WritePacket(p.Bytes)
		a.voice.sent(p, err)
		if err != nil {
			a.notice(Event{Kind: EventNotSent, Sent: p, Err: err})
			// The protocol is made for lost packets: a repeat or the next query makes up for it.
			a.sendErrs, a.lastSendErr = a.sendErrs+1, err
			a.log.Debug("packet not sent", "addr", p.Addr, "cause", p.Cause, "err", err)
		} else if a.log.Enabled(context.Background(), slog.LevelDebug) {
			a.log.Debug("packet sent", "addr", p.Addr, "cause", p.Cause, "dst", p.Dst)
		}
		if n++; n == maxBurst {
			return true
		}
	}
	return false
}

func (a *Agent) receive(h heard) {
	now := time.Now()
	p, err := mld.Parse(h.packet, a.accept)
	if err != nil {
		reason := mld.ReasonOf(err)
		a.rejected[reason]++
		foreign := reason == mld.ReasonSource || reason == mld.ReasonUnspecifiedSource
		if foreign && typeOf(h.packet) == mld.TypeQuery && a.warnings.source.due(now) { // V1-33, V2-5
			src := netip.AddrFrom16([16]byte(h.packet[8:24])) // which Parse has read
			a.log.Warn("Query ignored: its source is not link-local, as that of a Linux bridge with a global address that asks about a group", "src", src)
		}
		return
	}
	if h.unicast && p.Message.Type == mld.TypeReport {
		return // B25: a bridge's unicast copy of a Report is not heard by the others, and must not silence us
	}
	if a.voice.keep && p.Src == a.link.Source && p.Message.Type != mld.TypeQuery {
		a.voice.kernelSaid(now, &p.Message)
		return
	}
	if p.Message.Type == mld.TypeQuery {
		a.querier = Querier{Addr: p.Src, Version: p.Message.Version, Heard: now}
		a.notice(Event{Kind: EventHeard, Heard: p})
	}
	before := a.listener.Counters()
	a.listener.Receive(now, p.Src, p.Message)
	after := a.listener.Counters()
	if after.Suppressed > before.Suppressed {
		a.notice(Event{Kind: EventSuppressed, Addr: p.Message.MulticastAddress, Heard: p})
	}
	if after.SourceSpecificQueriesV1 > before.SourceSpecificQueriesV1 && a.warnings.version.due(now) { // V2-59, V2-79
		a.log.Warn("MLDv1 query concerns a source-specific address: the querier should speak MLDv2", "querier", p.Src)
	}
}

// typeOf returns the type of a message that Parse has refused for its source, having read all headers before it. A
// Report from "::" is what every neighbour sends during its duplicate address detection (V1-30), and no news.
func typeOf(packet []byte) mld.Type {
	message := packet[40:]
	if packet[6] == 0 { // a Hop-by-Hop Options header
		message = message[8+8*int(message[1]):]
	}
	return mld.Type(message[0])
}

// A warning is what the texts want logged although anybody on the link can provoke it: once a minute at most.
type warning struct {
	next time.Time
}

const warningPause = time.Minute

// due tells whether it is time for the warning, which is then taken as said.
func (w *warning) due(now time.Time) bool {
	if now.Before(w.next) {
		return false
	}
	w.next = now.Add(warningPause)
	return true
}

// look reads the state of the link, so that what follows is said as the link is now. It fails when the interface has
// gone, which a reader will tell. For lack of descriptors or memory it may see nothing; then a reader sees it later.
func (a *Agent) look() error {
	s, err := a.wire.State()
	switch {
	case errors.Is(err, link.ErrGone):
		return err
	case err == nil && !s.Equal(a.link):
		a.setLink(time.Now(), s)
	}
	return nil
}

// lookAfter looks at the link if a solicited-node address has come or gone, and with it a unicast address: nothing is to
// be said from one that has gone a moment ago.
func (a *Agent) lookAfter(changes []kernel.Change) {
	if slices.ContainsFunc(changes, func(c kernel.Change) bool { return mld.SolicitedNode(c.Addr) }) {
		_ = a.look()
	}
}

func (a *Agent) setLink(now time.Time, s link.State) {
	a.notice(Event{Kind: EventLink, Link: s, Before: a.link})
	if a.link.Up && s.Up && a.link.Downs != s.Downs {
		a.listener.SetSource(now, netip.Addr{}) // it was down for a moment: whoever hears us now may be somebody else
	}
	a.link = s
	a.seen.Store(&s)
	a.listener.SetMTU(s.MTU)
	switch {
	case !s.Up || !s.IPv6:
		a.listener.SetSource(now, netip.Addr{})
	case s.Source.IsValid():
		a.listener.SetSource(now, s.Source)
	default:
		a.listener.SetSource(now, netip.IPv6Unspecified()) // V1-30
	}
}

// end closes everything. The mute goes first, so that the kernel may speak at once; an AF_PACKET socket takes its
// time.
func (a *Agent) end() {
	close(a.stopping)
	if a.err == nil {
		a.err = ErrStopped
	}
	for _, err := range []error{closeMute(a.mute), a.mirror.Close(), a.wire.Close()} {
		if err != nil {
			a.log.Warn("socket not closed", "err", err)
		}
	}
	a.readers.Wait()
	a.notice(Event{Kind: EventEnded, Err: a.err})
	close(a.done)
}

func (a *Agent) readPackets() {
	for {
		packet, unicast, err := a.wire.ReadPacket()
		if err != nil {
			a.fail(err)
			return
		}
		select {
		case a.packets <- heard{packet, unicast}:
			<-a.consumed
		case <-a.stopping:
			return
		}
	}
}

func (a *Agent) watchLink() {
	for {
		if _, err := a.wire.Watch(); err != nil {
			a.fail(err)
			return
		}
		select {
		case a.links <- struct{}{}:
		case <-a.stopping:
			return
		}
	}
}

func (a *Agent) followKernel() {
	for {
		changes, err := a.mirror.Next()
		if err != nil {
			a.fail(err)
			return
		}
		select {
		case a.changes <- changes:
		case <-a.stopping:
			return
		}
	}
}

// fail ends the agent because of a reader. When the agent ends by itself, the readers' last error is that their
// socket was closed.
func (a *Agent) fail(err error) {
	if !errors.Is(err, net.ErrClosed) {
		a.failures <- err
	}
}

// do runs call on the owner goroutine, or at once while there is none.
func (a *Agent) do(ctx context.Context, call func()) error {
	if a.doBefore(call) {
		return nil
	}
	finished := make(chan struct{})
	select {
	case a.calls <- func() { call(); close(finished) }:
		<-finished
		return nil
	case <-a.done:
		return a.err
	case <-ctx.Done():
		return ctx.Err()
	}
}

// doBefore runs call if Begin has not been called.
func (a *Agent) doBefore(call func()) bool {
	a.beginning.Lock()
	defer a.beginning.Unlock()
	if a.begun {
		return false
	}
	call()
	return true
}

// Listen says that subscriber id, which must not be [KernelID], wants addr as f says; INCLUDE({}) leaves. What is
// to be sent is sent right after. The error is that of [listener.Listener.Listen], or of the interface that does not take
// in addr, or says that the agent has ended or that ctx has.
func (a *Agent) Listen(ctx context.Context, id listener.SubscriberID, addr netip.Addr, f listener.Filter) error {
	if id == KernelID {
		return fmt.Errorf("agent: subscriber %d is the kernel: choose another number", id)
	}
	var err error
	if doErr := a.do(ctx, func() {
		if a.leaving != nil {
			err = ErrStopped
			return
		}
		err = a.listen(time.Now(), id, addr, f)
	}); doErr != nil {
		return doErr
	}
	return err
}

// Together runs f, which must be short, while the agent looks at nothing: what the kernel joins or leaves because of it is
// told together, in a Report or two and not in one for each address. f must not call the agent.
func (a *Agent) Together(ctx context.Context, f func()) error { return a.do(ctx, f) }

// listen has the interface take in the frames of what is listened to, before anybody is told of it. The kernel sees to its
// own memberships. What cannot be taken in is not listened to.
func (a *Agent) listen(now time.Time, id listener.SubscriberID, addr netip.Addr, f listener.Filter) error {
	m := membership{id, addr}
	_, done := a.takenIn[m]
	leave := f.WantsNothing()
	if !done && !leave {
		if err := a.wire.AddMembership(addr); err != nil {
			return err
		}
	}
	err := a.voice.listen(now, id, addr, f)
	switch {
	case !done && !leave && err == nil:
		a.takenIn[m] = struct{}{}
	case !done && !leave:
		return errors.Join(err, a.wire.DropMembership(addr))
	case done && leave && err == nil:
		delete(a.takenIn, m)
		return a.wire.DropMembership(addr)
	}
	return err
}

// linger is how long the kernel stays muted after the last leave. Its own leaves are late and repeated, and would
// say again what has been said.
const linger = time.Second

// Stop leaves every address, those of the kernel's applications included: for an interface that is about to go. It
// returns when the leaves are sent. The agent ends when the interface has gone, but within a second.
func (a *Agent) Stop(ctx context.Context) error {
	defer a.Begin()
	return a.do(ctx, func() {
		a.voice.leaveAll(time.Now())
		for a.drain() {
		}
		a.leaving = time.After(linger)
	})
}

// Close ends the agent without a word: what is wanted stays wanted, and the kernel answers the next query for
// what it holds. It returns when the agent has ended, see [Agent.Done]; further calls do nothing.
func (a *Agent) Close() {
	_ = a.do(context.Background(), func() { a.quit = true }) // an agent that has ended is closed
	a.Begin()
	<-a.done
}

// Release is Close for an agent that another one of the same interface is to follow. It returns the mute, for that one's
// Config, so that nothing is heard of the kernel in between; nil if there is none, or the agent has ended already.
func (a *Agent) Release() (mute *kernel.Mute) {
	defer a.Begin()
	_ = a.do(context.Background(), func() { mute, a.mute, a.quit = a.mute, nil, true })
	return mute
}

// Done is closed when the agent has ended and let go of everything.
func (a *Agent) Done() <-chan struct{} { return a.done }

// Err tells why the agent ended: [ErrStopped] after Stop and Close, an error that wraps [link.ErrGone] when the
// interface went away, or [kernel.ErrTooMany]. It is to be called after Done.
func (a *Agent) Err() error { return a.err }
