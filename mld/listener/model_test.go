package listener_test

import (
	"fmt"
	"math/bits"
	"net/netip"
	"slices"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"pgregory.net/rapid"

	"github.com/seed-aaab8e3a/cni-mld/mld"
	"github.com/seed-aaab8e3a/cni-mld/mld/listener"
)

// A model is what a listener must do, written down as naively as the texts have it: no order, no heap, no slots,
// one walk over all addresses for everything. For the RFC profile it is the state table of RFC 2710 section 5
// with the source addresses of RFC 3590, for the KAME profile it is mld6.c with its counters of ticks.
//
// A listener and its model draw from the same fraction, which stays the same during a step, so that it does not
// matter in which order they draw. That the draws of one step are independent is shown by the tests of delays.
type model struct {
	cfg      listener.Config // with the defaults filled in
	source   netip.Addr
	fraction *fraction
	groups   map[netip.Addr]*group
	tick     time.Duration // KAME: when the last fast timeout was
	sent     []string
	counters listener.Counters
}

type group struct {
	subscribers map[listener.SubscriberID]listener.Filter
	flag        bool // we were the last to report
	reported    bool

	delaying  bool          // RFC: a timer runs,
	due       time.Duration // until then,
	repeating bool          // for a repeat,
	repeats   int           // which so many more follow

	ticks  int  // KAME: in6m_timer
	repeat bool // KAME: it was set by start_listening
}

// fraction draws that part of every range which f is of 1<<64.
type fraction struct{ f uint64 }

func (r *fraction) Int64N(n int64) int64 {
	if n <= 0 {
		panic("a draw from an empty range")
	}
	hi, _ := bits.Mul64(uint64(n), r.f)
	return int64(hi)
}

func (m *model) kame() bool { return m.cfg.Profile == listener.KAME }

func (m *model) canSend() bool { return m.source.IsValid() && !(m.kame() && m.source.IsUnspecified()) }

// silent: RFC 2710 section 5, the last paragraphs.
func silent(addr netip.Addr) bool {
	return addr == netip.MustParseAddr("ff02::1") || addr.As16()[1]&0xf < 2
}

func (m *model) sendReport(addr netip.Addr, cause listener.Cause) bool {
	if !m.canSend() {
		return false
	}
	m.sent = append(m.sent, fmt.Sprintf("Report %v %v from %v", addr, cause, m.source))
	m.counters.ReportsSent++
	if !m.source.IsUnspecified() {
		m.groups[addr].reported = true
	}
	return true
}

func (m *model) listen(t time.Duration, id listener.SubscriberID, addr netip.Addr, f listener.Filter) {
	if g := m.groups[addr]; g != nil {
		g.subscribers[id] = f
		return
	}
	m.groups[addr] = &group{subscribers: map[listener.SubscriberID]listener.Filter{id: f}}
	if !silent(addr) {
		m.start(t, addr, listener.CauseJoined)
	}
}

// start is "start listening", for an announcement too.
func (m *model) start(t time.Duration, addr netip.Addr, cause listener.Cause) {
	g := m.groups[addr]
	left := m.sendReport(addr, cause)
	if m.kame() {
		g.flag = true
		g.ticks = int(m.cfg.UnsolicitedReportInterval / (200 * time.Millisecond)) // as the constant of mld6.c
		g.ticks = 1 + int(m.fraction.Int64N(int64(max(g.ticks, 1))))
		g.repeat = true
		return
	}
	g.flag = left
	g.repeats = m.cfg.Robustness - 1
	m.nextRepeat(t, g)
}

func (m *model) nextRepeat(t time.Duration, g *group) {
	g.delaying = g.repeats > 0
	g.repeating = g.delaying
	if g.delaying {
		g.repeats--
		g.due = m.draw(t, m.cfg.UnsolicitedReportInterval)
	}
}

func (m *model) draw(t, d time.Duration) time.Duration {
	return t + 1 + time.Duration(m.fraction.Int64N(int64(d)))
}

func (m *model) leave(id listener.SubscriberID, addr netip.Addr, done bool) {
	g := m.groups[addr]
	if g == nil {
		return
	}
	if _, ok := g.subscribers[id]; !ok {
		return
	}
	delete(g.subscribers, id)
	if len(g.subscribers) > 0 {
		return
	}
	if done && !silent(addr) && (g.flag || m.cfg.AlwaysDone) && m.canSend() {
		m.sent = append(m.sent, fmt.Sprintf("Done %v from %v", addr, m.source))
		m.counters.DonesSent++
	}
	delete(m.groups, addr)
}

func (m *model) setSource(t time.Duration, src netip.Addr) {
	before := m.source
	m.source = src
	better := src.IsValid() && (!before.IsValid() || !src.IsUnspecified() && src != before)
	if m.kame() || !better {
		return
	}
	for addr := range m.groups {
		if !silent(addr) {
			m.start(t, addr, listener.CauseAnnounced)
		}
	}
}

func (m *model) query(t time.Duration, about netip.Addr, mrd time.Duration) {
	m.counters.QueriesHeard++
	for addr, g := range m.groups {
		if silent(addr) || !about.IsUnspecified() && about != addr {
			continue
		}
		switch {
		case m.kame():
			m.kameQuery(addr, g, mrd)
		case mrd == 0:
			g.flag = m.sendReport(addr, listener.CauseAnswer)
			g.delaying, g.repeating, g.repeats = false, false, 0
		case !g.delaying || mrd < g.due-t:
			margin := min(5*time.Millisecond, mrd/4)
			g.delaying, g.repeating, g.repeats = true, false, 0
			g.due = m.draw(t, mrd-margin)
		}
	}
}

func (m *model) kameQuery(addr netip.Addr, g *group, mrd time.Duration) {
	timer := int(mrd.Milliseconds()) * 5 / 1000
	if timer == 0 && mrd != 0 {
		timer = 1
	}
	if timer == 0 {
		m.sendReport(addr, listener.CauseAnswer)
		g.ticks = 0
		g.flag = true
	} else if g.ticks == 0 || g.ticks > timer {
		g.ticks = 1 + int(m.fraction.Int64N(int64(timer)))
		g.repeat = false
	}
}

func (m *model) report(src, addr netip.Addr) {
	if src == m.source {
		return
	}
	m.counters.ReportsHeard++
	g := m.groups[addr]
	switch {
	case g == nil:
	case g.delaying || g.ticks > 0:
		m.counters.Suppressed++
		g.delaying, g.repeating, g.repeats, g.ticks, g.flag = false, false, 0, 0, false
	case m.kame():
		g.flag = false
	}
}

// advance has the timers expire. The KAME profile gets there tick by tick.
func (m *model) advance(t time.Duration) {
	if m.kame() {
		for ; m.tick+200*time.Millisecond <= t; m.tick += 200 * time.Millisecond {
			m.fasttimeo()
		}
		return
	}
	for addr, g := range m.groups {
		if !g.delaying || g.due > t {
			continue
		}
		cause := listener.CauseAnswer
		if g.repeating {
			cause = listener.CauseRepeat
		}
		g.flag = m.sendReport(addr, cause)
		m.nextRepeat(t, g)
	}
}

func (m *model) fasttimeo() {
	for addr, g := range m.groups {
		if g.ticks == 0 {
			continue
		}
		if g.ticks--; g.ticks == 0 {
			cause := listener.CauseAnswer
			if g.repeat {
				cause = listener.CauseRepeat
			}
			m.sendReport(addr, cause)
			g.flag = true
		}
	}
}

// states is what Snapshot is to show.
func (m *model) states() map[string]listener.Address {
	states := map[string]listener.Address{}
	for addr, g := range m.groups {
		a := listener.Address{
			Addr: addr, Reportable: !silent(addr), Reported: g.reported, LastReporter: g.flag, Subscribers: len(g.subscribers),
		}
		for _, f := range g.subscribers { // of one source or of any: see the filters drawn
			if f.Mode == listener.Exclude {
				a.Mode = listener.Exclude
			}
		}
		if a.Mode == listener.Include {
			a.Sources = []netip.Addr{other}
		}
		if g.delaying || g.ticks > 0 {
			a.State = listener.DelayingListener
			a.Due = epoch.Add(g.due)
			if m.kame() {
				a.Due = epoch.Add(m.tick + time.Duration(g.ticks)*200*time.Millisecond)
			}
		}
		states[addr.String()] = a
	}
	return states
}

// A machine takes a listener and its model through the same steps.
type machine struct {
	l     *listener.Listener
	m     *model
	now   time.Duration
	addrs []netip.Addr
	sent  []string // by the listener, since the last comparison
}

func (c *machine) time() time.Time { return epoch.Add(c.now) }

func (c *machine) drain(t *rapid.T) {
	for p := range c.l.Outgoing() {
		got, err := mld.Parse(p.Bytes, mld.AcceptUnspecified)
		dst := p.Addr
		if p.Cause == listener.CauseLeft {
			dst = mld.AllRouters
		}
		if err != nil || got.Dst != dst || p.Dst != dst || got.Message.MulticastAddress != p.Addr || len(p.Bytes) != 72 {
			t.Fatalf("packet %+v: %+v, %v", p, got, err)
		}
		s := fmt.Sprintf("%v %v %v from %v", got.Message.Type, p.Addr, p.Cause, got.Src)
		if p.Cause == listener.CauseLeft {
			s = fmt.Sprintf("%v %v from %v", got.Message.Type, p.Addr, got.Src)
		}
		c.sent = append(c.sent, s)
	}
}

// compare wants listener and model to have said the same, and to be in the same state.
func (c *machine) compare(t *rapid.T) {
	c.drain(t)
	slices.Sort(c.sent)
	slices.Sort(c.m.sent)
	if !slices.Equal(c.m.sent, c.sent) {
		t.Fatalf("at %v packets (-want +got):\n%s", c.now, cmp.Diff(c.m.sent, c.sent))
	}
	c.sent, c.m.sent = nil, nil
	want, got := c.m.states(), snapshot(c.l)
	if diff := cmp.Diff(want, got, equalAddr); diff != "" {
		t.Fatalf("at %v states (-want +got):\n%s", c.now, diff)
	}
	next, wait := time.Time{}, false
	for _, a := range want {
		if a.State == listener.DelayingListener && (!wait || a.Due.Before(next)) {
			next, wait = a.Due, true
		}
	}
	if deadline, ok := c.l.NextDeadline(); ok != wait || !deadline.Equal(next) {
		t.Fatalf("at %v the deadline is %v, %v, want %v, %v", c.now, deadline, ok, next, wait)
	}
	if got := c.l.Counters(); got != c.m.counters {
		t.Fatalf("at %v the counters are %+v, want %+v", c.now, got, c.m.counters)
	}
	if got := c.l.Source(); got != c.m.source {
		t.Fatalf("at %v the source is %v, want %v", c.now, got, c.m.source)
	}
	if err := c.l.Check(); err != nil {
		t.Fatal(err)
	}
}

// advance lets d go by. A late caller of the RFC profile comes once for all that was due; mld6.c is never late.
func (c *machine) advance(t *rapid.T, d time.Duration, late bool) {
	to := c.now + d
	for !late || c.m.kame() {
		deadline, ok := c.l.NextDeadline()
		if !ok || deadline.Sub(epoch) > to {
			break
		}
		c.now = max(c.now, deadline.Sub(epoch))
		c.step(t)
	}
	c.now = to
	c.step(t)
}

func (c *machine) step(t *rapid.T) {
	c.l.Advance(c.time())
	c.m.advance(c.now)
	c.compare(t)
}

var (
	modelSources = []netip.Addr{{}, netip.IPv6Unspecified(), own, netip.MustParseAddr("fe80::a:a")}
	modelSenders = append(modelSources[1:], other)
	modelDelays  = []uint16{0, 1, 3, 4, 50, 199, 200, 201, 399, 400, 999, 1000, 5000, 9999, 10000, 65535}
)

func TestV1_06_V1_09_V1_13_V1_14_V1_15_V1_16_V1_18_V1_19_V1_30_V1_31_V1_35_V1_37_Model(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		cfg := listener.Config{Version: mld.Version1, Profile: rapid.SampledFrom([]listener.Profile{listener.RFC, listener.KAME}).Draw(t, "profile")}
		if cfg.Profile == listener.RFC {
			cfg.Robustness = rapid.IntRange(0, listener.MaxRobustness).Draw(t, "robustness")
			cfg.AlwaysDone = rapid.Bool().Draw(t, "alwaysDone")
		}
		cfg.UnsolicitedReportInterval = rapid.SampledFrom([]time.Duration{
			0, 1, time.Millisecond, 399 * time.Millisecond, time.Second, 20 * time.Second, time.Hour,
		}).Draw(t, "unsolicitedReportInterval")
		draws := new(fraction)
		l, err := listener.New(cfg, draws)
		if err != nil {
			t.Fatal(err)
		}
		if cfg.Robustness == 0 {
			cfg.Robustness = 2
		}
		if cfg.UnsolicitedReportInterval == 0 {
			cfg.UnsolicitedReportInterval = 10 * time.Second
		}
		c := &machine{l: l, m: &model{cfg: cfg, fraction: draws, groups: map[netip.Addr]*group{}}}
		c.addrs = []netip.Addr{netip.MustParseAddr("ff02::1"), netip.MustParseAddr("ff01::8"), netip.MustParseAddr("ff02::1:ff00:a")}
		for i := range rapid.IntRange(1, 30).Draw(t, "addresses") {
			c.addrs = append(c.addrs, address(i))
		}
		l.Receive(epoch, other, generalQuery(1)) // from here the ticks of the KAME profile count
		c.m.query(0, netip.IPv6Unspecified(), time.Millisecond)
		c.now = rapid.SampledFrom([]time.Duration{0, 1, 150 * time.Millisecond}).Draw(t, "begin")

		addr := rapid.SampledFrom(c.addrs)
		id := rapid.SampledFrom([]listener.SubscriberID{0, 1, 7, 1 << 31})
		filter := rapid.SampledFrom([]listener.Filter{
			listener.AnySource, {Mode: listener.Include, Sources: []netip.Addr{other}},
		})
		listen := func(t *rapid.T) {
			a, by := addr.Draw(t, "addr"), id.Draw(t, "id")
			f := filter.Draw(t, "filter")
			if err := l.Listen(c.time(), by, a, f); err != nil {
				t.Fatal(err)
			}
			c.m.listen(c.now, by, a, f)
		}
		query := func(t *rapid.T, about netip.Addr) {
			mrd := rapid.SampledFrom(modelDelays).Draw(t, "mrd")
			m := generalQuery(mrd)
			m.MulticastAddress = about
			m.Version = rapid.SampledFrom([]mld.Version{mld.Version1, mld.Version2}).Draw(t, "version")
			l.Receive(c.time(), rapid.SampledFrom(modelSenders).Draw(t, "src"), m)
			c.m.query(c.now, about, time.Duration(mrd)*time.Millisecond)
		}
		t.Repeat(map[string]func(*rapid.T){
			"": func(t *rapid.T) {
				c.compare(t)
				draws.f = rapid.Uint64().Draw(t, "fraction")
			},
			"listen":  listen,
			"listen2": listen,
			"leave": func(t *rapid.T) {
				a, by := addr.Draw(t, "addr"), id.Draw(t, "id")
				if err := l.Listen(c.time(), by, a, listener.Filter{}); err != nil {
					t.Fatal(err)
				}
				c.m.leave(by, a, true)
			},
			"forget": func(t *rapid.T) {
				a, by := addr.Draw(t, "addr"), id.Draw(t, "id")
				l.Forget(c.time(), by, a)
				c.m.leave(by, a, false)
			},
			"generalQuery":  func(t *rapid.T) { query(t, netip.IPv6Unspecified()) },
			"specificQuery": func(t *rapid.T) { query(t, addr.Draw(t, "addr")) },
			"report": func(t *rapid.T) {
				a, src := addr.Draw(t, "addr"), rapid.SampledFrom(modelSenders).Draw(t, "src")
				l.Receive(c.time(), src, mld.Message{Type: mld.TypeReport, Version: mld.Version1, MulticastAddress: a})
				c.m.report(src, a)
			},
			"irrelevant": func(t *rapid.T) {
				typ := rapid.SampledFrom([]mld.Type{0, 1, 129, mld.TypeDone, mld.TypeReportV2, 255}).Draw(t, "type")
				l.Receive(c.time(), other, mld.Message{Type: typ, MulticastAddress: addr.Draw(t, "addr")})
			},
			"source": func(t *rapid.T) {
				src := rapid.SampledFrom(modelSources).Draw(t, "src")
				l.SetSource(c.time(), src)
				c.m.setSource(c.now, src)
			},
			"wait": func(t *rapid.T) {
				d := time.Duration(rapid.SampledFrom([]int64{0, 1, 1e6, 2e8, 1e9, 2e10}).Draw(t, "scale"))
				d = time.Duration(rapid.Int64Range(0, int64(d)).Draw(t, "wait"))
				c.advance(t, d, rapid.Bool().Draw(t, "late"))
			},
			"comeLate": func(t *rapid.T) { // the next message is heard before what is overdue is done
				if c.m.kame() {
					t.Skip("mld6.c is never late")
				}
				c.now += time.Duration(rapid.Int64Range(0, 15e9).Draw(t, "late"))
			},
			"deadline": func(t *rapid.T) { // just before, at, and after it
				deadline, ok := l.NextDeadline()
				if !ok {
					t.Skip("nothing is due")
				}
				off := time.Duration(rapid.IntRange(-1, 1).Draw(t, "off"))
				c.advance(t, max(deadline.Sub(epoch)-c.now+off, 0), false)
			},
		})
	})
}
