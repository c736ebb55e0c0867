package listener_test

import (
	"errors"
	"fmt"
	"maps"
	"math/rand/v2"
	"net/netip"
	"slices"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"pgregory.net/rapid"

	"github.com/seed-aaab8e3a/cni-mld/mld"
	"github.com/seed-aaab8e3a/cni-mld/mld/listener"
)

// A node2 is what an MLDv2 listener must do, as naively as the texts have it: RFC 3810 sections 4.2, 5.2.12, 6 and
// 8.2.1, with RFC 2710 section 5 for version 1 mode. A set is a map, every timer a time, and whatever happens walks
// over all there is. Packets and their sizes are not its concern: it says which records are sent.
type node2 struct {
	cfg      listener.Config // with the defaults filled in
	ssm      func(netip.Addr) bool
	fraction *fraction
	source   netip.Addr
	groups   map[netip.Addr]*group2

	mode             mld.Version
	olderQuerier     time.Duration // Older Version Querier Present timer; none: not running
	interfaceTimer   time.Duration
	robustness       int
	queryInterval    time.Duration
	repeat           struct{ at, due time.Duration } // of what changes at the same time
	responseInterval time.Duration

	records  []wantRecord
	v1       []string // Reports and Dones
	counters listener.Counters
}

const none = time.Duration(-1)

type set = map[netip.Addr]bool

type filter2 struct {
	mode    listener.FilterMode
	sources set
}

func (f filter2) wants(s netip.Addr) bool { return f.sources[s] == (f.mode == listener.Include) }

func (f filter2) wantsAny() bool { return f.mode == listener.Exclude || len(f.sources) > 0 }

type group2 struct {
	sockets map[listener.SubscriberID]filter2
	state   filter2 // of the interface

	filterModeCounter int
	retransmission    map[netip.Addr]int // Retransmission List
	retransmitTimer   time.Duration
	addressTimer      time.Duration
	asked             set
	reported          bool

	// Version 1.
	flag      bool
	timer     time.Duration
	repeating bool
	repeats   int
}

type wantRecord struct {
	kind    mld.RecordType
	addr    netip.Addr
	sources set
}

func newNode2(cfg listener.Config, f *fraction) *node2 {
	n := &node2{
		cfg: cfg, ssm: mld.SourceSpecific, fraction: f, groups: map[netip.Addr]*group2{},
		mode: mld.Version2, olderQuerier: none, interfaceTimer: none,
		queryInterval: 125 * time.Second, responseInterval: 10 * time.Second,
	}
	if cfg.Version == mld.Version1 {
		n.mode = mld.Version1
	}
	if n.cfg.Robustness == 0 {
		n.cfg.Robustness = 2
	}
	n.robustness = n.cfg.Robustness
	return n
}

func (n *node2) canSend() bool { return n.source.IsValid() }

func (n *node2) draw(t, d time.Duration) time.Duration {
	return t + 1 + time.Duration(n.fraction.Int64N(int64(d)))
}

// answer draws the time of an answer: a little before the Maximum Response Delay, and never at once.
func (n *node2) answer(t, mrd time.Duration) time.Duration {
	if mrd == 0 {
		return t + 1
	}
	return n.draw(t, mrd-min(5*time.Millisecond, mrd/4))
}

func (n *node2) unsolicited() time.Duration {
	switch {
	case n.cfg.UnsolicitedReportInterval != 0:
		return n.cfg.UnsolicitedReportInterval
	case n.mode == mld.Version1:
		return 10 * time.Second
	}
	return time.Second
}

// interfaceState is section 4.2.
func interfaceState(sockets map[listener.SubscriberID]filter2) filter2 {
	included, excluded := set{}, set{}
	var exclude []filter2
	for _, f := range sockets {
		if f.mode == listener.Exclude {
			exclude = append(exclude, f)
			continue
		}
		maps.Copy(included, f.sources)
	}
	if len(exclude) == 0 {
		return filter2{listener.Include, included}
	}
	for s := range exclude[0].sources {
		inAll := !included[s]
		for _, f := range exclude {
			inAll = inAll && f.sources[s]
		}
		if inAll {
			excluded[s] = true
		}
	}
	return filter2{listener.Exclude, excluded}
}

// listen is section 3 and 4.1: f replaces what the socket had.
func (n *node2) listen(t time.Duration, id listener.SubscriberID, addr netip.Addr, f filter2) {
	g := n.groups[addr]
	switch {
	case g == nil && !f.wantsAny():
		return
	case g == nil:
		g = &group2{sockets: map[listener.SubscriberID]filter2{}, retransmission: map[netip.Addr]int{}, retransmitTimer: none,
			addressTimer: none, timer: none, flag: true}
		n.groups[addr] = g
	}
	if f.wantsAny() {
		if len(g.sockets) == 0 {
			g.reported = false
		}
		g.sockets[id] = f
	} else {
		delete(g.sockets, id)
	}
	n.changed(t, addr)
}

func (n *node2) leaveAll(t time.Duration, addr netip.Addr) {
	if g := n.groups[addr]; g != nil {
		clear(g.sockets)
		n.changed(t, addr)
	}
}

func (n *node2) forget(t time.Duration, id listener.SubscriberID, addr netip.Addr) {
	g := n.groups[addr]
	if g == nil || len(g.sockets) == 0 {
		return
	}
	delete(g.sockets, id)
	if len(g.sockets) == 0 {
		delete(n.groups, addr)
		return
	}
	n.changed(t, addr)
}

// changed is section 6.1, or "start listening" and "stop listening" of version 1.
func (n *node2) changed(t time.Duration, addr netip.Addr) {
	g := n.groups[addr]
	before := g.state
	g.state = interfaceState(g.sockets)
	switch {
	case silent(addr):
	case n.mode == mld.Version1 && g.state.wantsAny() && !before.wantsAny():
		n.start(t, addr, listener.CauseJoined)
	case n.mode == mld.Version1 && !g.state.wantsAny() && before.wantsAny():
		if g.flag || n.cfg.AlwaysDone {
			n.done(addr)
		}
	case n.mode == mld.Version1:
	case before.mode != g.state.mode:
		g.filterModeCounter = n.robustness
		n.tell(t, addr)
	default:
		difference := false
		for _, list := range []set{before.sources, g.state.sources} {
			for s := range list {
				if before.sources[s] != g.state.sources[s] {
					g.retransmission[s] = n.robustness
					difference = true
				}
			}
		}
		if difference {
			n.tell(t, addr)
		}
	}
	n.tidy(addr)
}

// tell sends a State Change Report and arms the timer of the next one.
func (n *node2) tell(t time.Duration, addr netip.Addr) {
	g := n.groups[addr]
	g.retransmitTimer = none
	if !n.canSend() {
		g.filterModeCounter = 0
		clear(g.retransmission)
		return
	}
	if g.filterModeCounter > 0 {
		kind := mld.ChangeToInclude
		if g.state.mode == listener.Exclude {
			kind = mld.ChangeToExclude
		}
		n.record(kind, addr, maps.Clone(g.state.sources))
		g.filterModeCounter--
	} else {
		allow, block := set{}, set{}
		for s := range g.retransmission {
			if g.state.wants(s) {
				allow[s] = true
			} else {
				block[s] = true
			}
		}
		if len(allow) > 0 {
			n.record(mld.AllowNewSources, addr, allow)
		}
		if len(block) > 0 {
			n.record(mld.BlockOldSources, addr, block)
		}
	}
	for s := range g.retransmission {
		if g.retransmission[s]--; g.retransmission[s] == 0 {
			delete(g.retransmission, s)
		}
	}
	if g.filterModeCounter > 0 || len(g.retransmission) > 0 {
		if n.repeat.at != t || n.repeat.due <= t { // what changes at the same time is told again at the same time
			n.repeat.at, n.repeat.due = t, n.draw(t, n.unsolicited())
		}
		g.retransmitTimer = n.repeat.due
	}
}

// tidy forgets a group that nobody listens to and of which all is told.
func (n *node2) tidy(addr netip.Addr) {
	if g := n.groups[addr]; len(g.sockets) == 0 && g.filterModeCounter == 0 && len(g.retransmission) == 0 {
		delete(n.groups, addr)
	}
}

func (n *node2) record(kind mld.RecordType, addr netip.Addr, sources set) {
	n.records = append(n.records, wantRecord{kind, addr, sources})
	if kind != mld.BlockOldSources && (kind != mld.ChangeToInclude || len(sources) > 0) && !n.source.IsUnspecified() {
		n.groups[addr].reported = true
	}
}

func (n *node2) setSource(t time.Duration, src netip.Addr) {
	before := n.source
	n.source = src
	if !src.IsValid() || src == before || src.IsUnspecified() && before.IsValid() {
		return
	}
	for addr, g := range n.groups {
		switch {
		case silent(addr) || len(g.sockets) == 0:
		case n.mode == mld.Version1:
			n.start(t, addr, listener.CauseAnnounced)
		default:
			if g.state.mode == listener.Exclude {
				g.filterModeCounter = n.robustness
			}
			if g.state.mode == listener.Include {
				for s := range g.state.sources {
					g.retransmission[s] = n.robustness
				}
			}
			n.tell(t, addr)
		}
	}
}

func (n *node2) query(t time.Duration, q mld.Query) {
	n.counters.QueriesHeard++
	general := q.MulticastAddress.IsUnspecified()
	mrd := time.Duration(q.MaxResponseCode) * time.Millisecond
	if q.Version == mld.Version1 {
		if n.cfg.Version == mld.Version2 {
			return
		}
		for addr, g := range n.groups {
			if len(g.sockets) > 0 && n.ssm(addr) && (general || n.ssm(q.MulticastAddress)) {
				n.counters.SourceSpecificQueriesV1++
				break
			}
		}
		if general {
			n.responseInterval = mrd
		}
		if n.cfg.Version == 0 {
			n.olderQuerier = t + time.Duration(n.robustness)*n.queryInterval + n.responseInterval
			n.setMode(mld.Version1)
		}
	} else if general {
		n.responseInterval = mld.DecodeMaxResponseCode(q.MaxResponseCode)
	}
	if n.mode == mld.Version1 {
		for addr, g := range n.groups {
			if (general || addr == q.MulticastAddress) && !silent(addr) {
				n.query1(t, addr, g, mrd)
			}
		}
		return
	}
	n.robustness, n.queryInterval = n.cfg.Robustness, 125*time.Second
	if q.QRV != 0 {
		n.robustness = int(q.QRV)
	}
	if q.QQIC != 0 {
		n.queryInterval = mld.DecodeQQIC(q.QQIC)
	}
	n.query2(t, q.MulticastAddress, q.Sources, mld.DecodeMaxResponseCode(q.MaxResponseCode))
}

// query2 is section 6.2.
func (n *node2) query2(t time.Duration, addr netip.Addr, sources []netip.Addr, mrd time.Duration) {
	corresponds := false
	for a, g := range n.groups {
		if silent(a) || len(g.sockets) == 0 || !addr.IsUnspecified() && addr != a {
			continue
		}
		if len(sources) == 0 || slices.ContainsFunc(sources, g.state.wants) {
			corresponds = true
		}
	}
	if !corresponds {
		return
	}
	due := n.answer(t, mrd)
	switch g := n.groups[addr]; {
	case n.interfaceTimer != none && n.interfaceTimer < due: // rule 1
	case addr.IsUnspecified(): // rule 2
		n.interfaceTimer = due
	case g.addressTimer == none: // rule 3
		g.addressTimer = due
		g.asked = set{}
		for _, s := range sources {
			g.asked[s] = true
		}
	case len(sources) == 0 || len(g.asked) == 0: // rule 4
		g.asked = set{}
		g.addressTimer = min(g.addressTimer, due)
	default: // rule 5
		for _, s := range sources {
			g.asked[s] = true
		}
		g.addressTimer = min(g.addressTimer, due)
	}
}

// setMode is section 8.2.1.
func (n *node2) setMode(v mld.Version) {
	if n.mode == v {
		return
	}
	n.mode = v
	n.interfaceTimer = none
	for addr, g := range n.groups {
		g.filterModeCounter, g.retransmitTimer, g.addressTimer, g.asked = 0, none, none, nil
		clear(g.retransmission)
		g.timer, g.repeating, g.repeats, g.flag = none, false, 0, true
		if len(g.sockets) == 0 {
			n.done(addr)
			delete(n.groups, addr)
		}
	}
}

// olderQuerierGone has the end of version 1 happen before anything else that happens at t or later.
func (n *node2) olderQuerierGone(t time.Duration) {
	if n.olderQuerier != none && n.olderQuerier <= t {
		n.olderQuerier = none
		n.setMode(mld.Version2)
	}
}

// advance is section 6.3.
func (n *node2) advance(t time.Duration) {
	general := n.interfaceTimer != none && n.interfaceTimer <= t
	if general {
		n.interfaceTimer = none
	}
	for _, addr := range slices.Collect(maps.Keys(n.groups)) {
		g := n.groups[addr]
		expired := func(timer *time.Duration) bool {
			if *timer == none || *timer > t {
				return false
			}
			*timer = none
			return true
		}
		if expired(&g.retransmitTimer) {
			n.tell(t, addr)
		}
		if general && n.canSend() && len(g.sockets) > 0 && !silent(addr) {
			n.current(addr)
		}
		if expired(&g.addressTimer) {
			asked := g.asked
			g.asked = nil
			if len(g.sockets) > 0 && n.canSend() {
				n.specific(addr, asked)
			}
		}
		if expired(&g.timer) {
			cause := listener.CauseAnswer
			if g.repeating {
				cause = listener.CauseRepeat
			}
			g.flag = n.report(addr, cause)
			n.nextRepeat(t, g)
		}
		n.tidy(addr)
	}
}

func (n *node2) current(addr netip.Addr) {
	kind := mld.ModeIsInclude
	if n.groups[addr].state.mode == listener.Exclude {
		kind = mld.ModeIsExclude
	}
	n.record(kind, addr, maps.Clone(n.groups[addr].state.sources))
}

func (n *node2) specific(addr netip.Addr, asked set) {
	if len(asked) == 0 {
		n.current(addr)
		return
	}
	list := set{}
	for s := range asked {
		if n.groups[addr].state.wants(s) {
			list[s] = true
		}
	}
	if len(list) > 0 {
		n.record(mld.ModeIsInclude, addr, list)
	}
}

// Version 1, RFC 2710 section 5.

func (n *node2) report(addr netip.Addr, cause listener.Cause) bool {
	if !n.canSend() {
		return false
	}
	n.v1 = append(n.v1, fmt.Sprintf("Report %v %v from %v", addr, cause, n.source))
	if !n.source.IsUnspecified() {
		n.groups[addr].reported = true
	}
	return true
}

func (n *node2) done(addr netip.Addr) {
	if n.canSend() {
		n.v1 = append(n.v1, fmt.Sprintf("Done %v from %v", addr, n.source))
		n.counters.DonesSent++
	}
}

func (n *node2) start(t time.Duration, addr netip.Addr, cause listener.Cause) {
	g := n.groups[addr]
	g.flag = n.report(addr, cause)
	g.repeats = n.cfg.Robustness - 1
	n.nextRepeat(t, g)
}

func (n *node2) nextRepeat(t time.Duration, g *group2) {
	g.timer, g.repeating = none, g.repeats > 0
	if g.repeating {
		g.repeats--
		g.timer = n.draw(t, n.unsolicited())
	}
}

func (n *node2) query1(t time.Duration, addr netip.Addr, g *group2, mrd time.Duration) {
	switch {
	case mrd == 0:
		g.flag = n.report(addr, listener.CauseAnswer)
		g.timer, g.repeating, g.repeats = none, false, 0
	case g.timer == none || mrd < g.timer-t:
		g.timer, g.repeating, g.repeats = n.answer(t, mrd), false, 0
	}
}

func (n *node2) hearReport(src, addr netip.Addr) {
	if src == n.source {
		return
	}
	n.counters.ReportsHeard++
	if g := n.groups[addr]; n.mode == mld.Version1 && g != nil && g.timer != none && !n.ssm(addr) {
		g.timer, g.repeating, g.repeats, g.flag = none, false, 0, false
		n.counters.Suppressed++
	}
}

// addresses is what Snapshot is to show.
func (n *node2) addresses() map[string]listener.Address {
	all := map[string]listener.Address{}
	for addr, g := range n.groups {
		if len(g.sockets) == 0 {
			continue
		}
		a := listener.Address{
			Addr: addr, Mode: g.state.mode, Reportable: !silent(addr), Reported: g.reported, Subscribers: len(g.sockets),
			LastReporter: !silent(addr) && (n.mode == mld.Version2 || g.flag),
			Sources:      sorted(g.state.sources),
		}
		if due := max(g.timer, g.retransmitTimer); due != none { // only one of them can run
			a.State, a.Due = listener.DelayingListener, epoch.Add(due)
		}
		all[addr.String()] = a
	}
	return all
}

// deadline is when something is due next.
func (n *node2) deadline() time.Duration {
	next := none
	note := func(t time.Duration) {
		if t != none && (next == none || t < next) {
			next = t
		}
	}
	note(n.olderQuerier)
	note(n.interfaceTimer)
	for _, g := range n.groups {
		note(g.retransmitTimer)
		note(g.addressTimer)
		note(g.timer)
	}
	return next
}

func sorted(s set) []netip.Addr { return slices.SortedFunc(maps.Keys(s), netip.Addr.Compare) }

func (r wantRecord) String() string {
	return fmt.Sprintf("%v(%v; %s)", r.kind, r.addr, sourceNames(sorted(r.sources)))
}

// A machine2 takes a listener and its model through the same steps.
type machine2 struct {
	l       *listener.Listener
	m       *node2
	now     time.Duration
	mtu     int
	packets uint64
	steps   *int
	kept    map[string]string // which part of an exclude list that is too long is reported
}

func (c *machine2) time() time.Time { return epoch.Add(c.now) }

// take drains the packets and judges how they are made up. It puts together again what was split.
func (c *machine2) take(t *rapid.T) (records []wantRecord, v1 []string) {
	room := (max(c.mtu, 1280) - mld.ReportV2Len - mld.RecordLen) / mld.SourceLen
	type sent struct {
		cause   listener.Cause
		size    int
		records []wantRecord
	}
	var packets []sent
	for p := range c.l.Outgoing() {
		c.packets++
		got, err := mld.Parse(p.Bytes, mld.AcceptUnspecified)
		if err != nil || got.Src != c.m.source {
			t.Fatalf("packet %+v: %+v, %v", p, got, err)
		}
		switch got.Message.Type {
		case mld.TypeReport:
			v1 = append(v1, fmt.Sprintf("Report %v %v from %v", got.Message.MulticastAddress, p.Cause, got.Src))
			continue
		case mld.TypeDone:
			v1 = append(v1, fmt.Sprintf("Done %v from %v", got.Message.MulticastAddress, got.Src))
			continue
		}
		s := sent{cause: p.Cause, size: len(p.Bytes)}
		for r := range got.Message.Records.All() {
			list := set{}
			for a := range r.Sources.All() {
				list[a] = true
			}
			answer := r.Type == mld.ModeIsInclude || r.Type == mld.ModeIsExclude
			needsSources := r.Type == mld.ModeIsInclude || r.Type == mld.AllowNewSources || r.Type == mld.BlockOldSources
			if len(list) != r.Sources.Len() || answer != (p.Cause == listener.CauseAnswer) || needsSources && len(list) == 0 {
				t.Fatalf("record %v %v with %d sources because of %v", r.Type, r.MulticastAddress, r.Sources.Len(), p.Cause)
			}
			s.records = append(s.records, wantRecord{r.Type, r.MulticastAddress, list})
		}
		if len(s.records) == 0 || len(s.records) != p.Records || s.size > max(c.mtu, 1280) {
			t.Fatalf("a packet of %d octets and %d records, MTU %d", s.size, len(s.records), c.mtu)
		}
		packets = append(packets, s)
	}
	for i, p := range packets {
		for j, r := range p.records {
			if i > 0 && j == 0 && p.cause == packets[i-1].cause {
				last := packets[i-1]
				if size := mld.RecordLen + mld.SourceLen*len(r.sources); last.size+size <= max(c.mtu, 1280) {
					t.Fatalf("a packet of %d octets could have taken the next record, of %d octets, MTU %d", last.size, size, c.mtu)
				}
				// V2-47: a full record that stands alone may be followed by its other parts, which share no source.
				if whole := &records[len(records)-1]; len(last.records) == 1 && len(last.records[0].sources) == room &&
					whole.kind == r.kind && whole.addr == r.addr && !isExclude(r.kind) && disjoint(whole.sources, r.sources) {
					maps.Copy(whole.sources, r.sources)
					continue
				}
			}
			records = append(records, wantRecord{r.kind, r.addr, maps.Clone(r.sources)})
		}
	}
	return records, v1
}

func disjoint(a, b set) bool {
	for s := range b {
		if a[s] {
			return false
		}
	}
	return true
}

func isExclude(k mld.RecordType) bool { return k == mld.ModeIsExclude || k == mld.ChangeToExclude }

// untruncated finds what a record is part of that was too long (V2-48), and wants it to be the same part every time.
func (c *machine2) untruncated(t *rapid.T, r wantRecord, wanted []wantRecord) wantRecord {
	room := (max(c.mtu, 1280) - mld.ReportV2Len - mld.RecordLen) / mld.SourceLen
	if !isExclude(r.kind) || len(r.sources) != room {
		return r
	}
	for _, w := range wanted {
		if w.kind != r.kind || w.addr != r.addr || len(w.sources) <= room {
			continue
		}
		for s := range r.sources {
			if !w.sources[s] {
				t.Fatalf("%v of a truncated record is not in the whole", s)
			}
		}
		key := fmt.Sprint(room, sourceNames(sorted(w.sources)))
		part := sourceNames(sorted(r.sources))
		if before, ok := c.kept[key]; ok && before != part {
			t.Fatalf("of %s first %s was reported and then %s", key, before, part)
		}
		c.kept[key] = part
		return w
	}
	return r
}

func (c *machine2) compare(t *rapid.T) {
	*c.steps++
	records, v1 := c.take(t)
	var want, got []string
	for _, r := range c.m.records {
		want = append(want, r.String())
	}
	sorting := map[netip.Addr]map[netip.Addr]mld.RecordType{}
	for _, r := range records {
		r = c.untruncated(t, r, c.m.records)
		got = append(got, r.String())
		if r.kind == mld.AllowNewSources || r.kind == mld.BlockOldSources {
			if sorting[r.addr] == nil {
				sorting[r.addr] = map[netip.Addr]mld.RecordType{}
			}
			for s := range r.sources {
				if k, twice := sorting[r.addr][s]; twice {
					t.Fatalf("at %v: %v is in %v and %v of %v", c.now, s, k, r.kind, r.addr)
				}
				sorting[r.addr][s] = r.kind
			}
		}
	}
	want, got = append(want, c.m.v1...), append(got, v1...)
	slices.Sort(want)
	slices.Sort(got)
	if !slices.Equal(want, got) {
		t.Fatalf("at %v (-want +got):\n%s", c.now, cmp.Diff(want, got))
	}
	c.m.records, c.m.v1 = nil, nil
	if diff := cmp.Diff(c.m.addresses(), snapshot(c.l), equalAddr); diff != "" {
		t.Fatalf("at %v states (-want +got):\n%s", c.now, diff)
	}
	deadline, ok := c.l.NextDeadline()
	if next := c.m.deadline(); ok != (next != none) || ok && deadline.Sub(epoch) != next {
		t.Fatalf("at %v the deadline is %v, %v, want %v", c.now, deadline.Sub(epoch), ok, next)
	}
	counters := c.m.counters
	counters.ReportsSent = c.packets - counters.DonesSent
	if got := c.l.Counters(); got != counters {
		t.Fatalf("at %v the counters are %+v, want %+v", c.now, got, counters)
	}
	if c.l.Version() != c.m.mode || c.l.Slots() != len(c.m.groups) {
		t.Fatalf("at %v: version %d, %d addresses, want %d, %d", c.now, c.l.Version(), c.l.Slots(), c.m.mode, len(c.m.groups))
	}
	var older time.Time
	if c.m.olderQuerier != none {
		older = epoch.Add(c.m.olderQuerier)
	}
	if got := c.l.OlderVersionQuerierPresent(); !got.Equal(older) {
		t.Fatalf("at %v: version 1 until %v, want %v", c.now, got, older)
	}
	if err := c.l.Check(); err != nil {
		t.Fatalf("at %v: %v", c.now, err)
	}
}

func (c *machine2) advance(t *rapid.T, d time.Duration, late bool) {
	to := c.now + d
	for !late {
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

func (c *machine2) step(t *rapid.T) {
	c.m.olderQuerierGone(c.now)
	c.l.Advance(c.time())
	c.m.advance(c.now)
	c.compare(t)
}

// drawFilter draws a filter, seldom one with more sources than a packet holds.
func drawFilter(t *rapid.T) (listener.Filter, filter2) {
	f := listener.Filter{Mode: rapid.SampledFrom([]listener.FilterMode{listener.Include, listener.Exclude}).Draw(t, "mode")}
	if rapid.IntRange(0, 19).Draw(t, "many") == 0 {
		rnd := rand.New(rand.NewPCG(rapid.Uint64().Draw(t, "which"), 1))
		for _, i := range rnd.Perm(200)[:rapid.IntRange(60, 200).Draw(t, "sources")] {
			f.Sources = append(f.Sources, source(i+1))
		}
	} else {
		bits := rapid.Uint8().Draw(t, "sources")
		for i := range 6 {
			if bits>>i&1 != 0 {
				f.Sources = append(f.Sources, source(i+1))
			}
		}
	}
	f2 := filter2{f.Mode, set{}}
	for _, s := range f.Sources {
		f2.sources[s] = true
	}
	return f, f2
}

func TestV2_16_V2_20_V2_27_V2_28_V2_29_V2_30_V2_34_V2_35_V2_36_V2_37_V2_38_V2_39_V2_42_V2_47_V2_48_V2_53_V2_61_V2_68_Model(t *testing.T) {
	steps := 0
	rapid.Check(t, func(t *rapid.T) { checkModel2(t, &steps) })
	t.Logf("%d comparisons of listener and model", steps)
}

func checkModel2(t *rapid.T, steps *int) {
	cfg := listener.Config{
		Version:    rapid.SampledFrom([]mld.Version{0, 0, 0, 0, mld.Version2, mld.Version2, mld.Version1}).Draw(t, "version"),
		Robustness: rapid.IntRange(0, listener.MaxRobustness).Draw(t, "robustness"),
		AlwaysDone: rapid.Bool().Draw(t, "alwaysDone"),
		UnsolicitedReportInterval: rapid.SampledFrom([]time.Duration{
			0, 0, 0, 1, 20 * time.Second, time.Hour,
		}).Draw(t, "unsolicitedReportInterval"),
	}
	draws := new(fraction)
	l, err := listener.New(cfg, draws)
	if err != nil {
		t.Fatal(err)
	}
	c := &machine2{l: l, m: newNode2(cfg, draws), mtu: 1500, steps: steps, kept: map[string]string{}}
	l.Advance(epoch) // from here its clock counts
	addrs := []netip.Addr{
		netip.MustParseAddr("ff02::1"), netip.MustParseAddr("ff01::8"), netip.MustParseAddr("ff02::1:ff00:a"),
		netip.MustParseAddr("ff3e::8000:1"), netip.MustParseAddr("ff32::4000:1"),
	}
	for i := range rapid.IntRange(1, 8).Draw(t, "addresses") {
		addrs = append(addrs, address(i))
	}
	addr := rapid.SampledFrom(addrs)
	id := rapid.SampledFrom([]listener.SubscriberID{0, 1, 7, 1 << 31})
	begin := func() { c.m.olderQuerierGone(c.now) }
	listen := func(t *rapid.T) {
		a, by := addr.Draw(t, "addr"), id.Draw(t, "id")
		f, f2 := drawFilter(t)
		take, refused := l.Listen, f.Mode == listener.Exclude && mld.SourceSpecific(a)
		if rapid.Bool().Draw(t, "mirror") {
			take, refused = l.Mirror, false
		}
		err := take(c.time(), by, a, f)
		if refused != errors.Is(err, listener.ErrSourceSpecific) || !refused && err != nil {
			t.Fatal(err)
		}
		clear(f.Sources) // the caller's slice is the caller's
		if err == nil {
			begin()
			c.m.listen(c.now, by, a, f2)
		}
	}
	query := func(t *rapid.T, q mld.Query) {
		q.MaxResponseCode = rapid.SampledFrom([]uint16{0, 1, 3, 200, 999, 1000, 5000, 9999, 10000, 0x8000, 0x9000}).Draw(t, "code")
		q.QRV = rapid.Uint8Range(0, 7).Draw(t, "qrv")
		q.QQIC = rapid.SampledFrom([]uint8{0, 1, 10, 125, 0x80}).Draw(t, "qqic")
		p, err := mld.Parse(mld.AppendQuery(nil, other, mld.AllNodes, q), 0)
		if err != nil {
			t.Fatal(err)
		}
		begin()
		l.Receive(c.time(), p.Src, p.Message)
		c.m.query(c.now, q)
	}
	specific := func(t *rapid.T) {
		query(t, mld.Query{Version: mld.Version2, MulticastAddress: addr.Draw(t, "addr")})
	}
	sourceSpecific := func(t *rapid.T) {
		q := mld.Query{Version: mld.Version2, MulticastAddress: addr.Draw(t, "addr")}
		for range rapid.IntRange(1, 4).Draw(t, "n") {
			q.Sources = append(q.Sources, source(rapid.IntRange(1, 8).Draw(t, "source")))
		}
		query(t, q)
	}
	t.Repeat(map[string]func(*rapid.T){
		"": func(t *rapid.T) {
			c.compare(t)
			draws.f = rapid.Uint64().Draw(t, "fraction")
		},
		"listen":  listen,
		"listen2": listen,
		"listen3": listen,
		"leave": func(t *rapid.T) {
			a, by := addr.Draw(t, "addr"), id.Draw(t, "id")
			if err := l.Listen(c.time(), by, a, listener.Filter{}); err != nil {
				t.Fatal(err)
			}
			begin()
			c.m.listen(c.now, by, a, filter2{listener.Include, nil})
		},
		"leaveAll": func(t *rapid.T) {
			a := addr.Draw(t, "addr")
			l.Leave(c.time(), a)
			begin()
			c.m.leaveAll(c.now, a)
		},
		"forget": func(t *rapid.T) {
			a, by := addr.Draw(t, "addr"), id.Draw(t, "id")
			l.Forget(c.time(), by, a)
			begin()
			c.m.forget(c.now, by, a)
		},
		"generalQuery": func(t *rapid.T) {
			query(t, mld.Query{Version: mld.Version2, MulticastAddress: netip.IPv6Unspecified()})
		},
		"specificQuery":        specific,
		"specificQuery2":       specific,
		"sourceSpecificQuery":  sourceSpecific,
		"sourceSpecificQuery2": sourceSpecific,
		"olderQuery": func(t *rapid.T) {
			a := netip.IPv6Unspecified()
			if rapid.Bool().Draw(t, "specific") {
				a = addr.Draw(t, "addr")
			}
			query(t, mld.Query{Version: mld.Version1, MulticastAddress: a})
		},
		"report": func(t *rapid.T) {
			a, src := addr.Draw(t, "addr"), rapid.SampledFrom(modelSenders).Draw(t, "src")
			begin()
			l.Receive(c.time(), src, mld.Message{Type: mld.TypeReport, Version: mld.Version1, MulticastAddress: a})
			c.m.hearReport(src, a)
		},
		"irrelevant": func(t *rapid.T) {
			typ := rapid.SampledFrom([]mld.Type{0, 129, mld.TypeDone, mld.TypeReportV2, 255}).Draw(t, "type")
			begin()
			l.Receive(c.time(), other, mld.Message{Type: typ, MulticastAddress: addr.Draw(t, "addr")})
		},
		"source": func(t *rapid.T) {
			src := rapid.SampledFrom(modelSources).Draw(t, "src")
			begin()
			l.SetSource(c.time(), src)
			c.m.setSource(c.now, src)
		},
		"mtu": func(t *rapid.T) {
			c.mtu = rapid.IntRange(1270, 1500).Draw(t, "mtu")
			l.SetMTU(c.mtu)
		},
		"wait": func(t *rapid.T) {
			d := time.Duration(rapid.SampledFrom([]int64{0, 1, 1e6, 2e8, 1e9, 1e10, 3e11}).Draw(t, "scale"))
			d = time.Duration(rapid.Int64Range(0, int64(d)).Draw(t, "wait"))
			c.advance(t, d, rapid.Bool().Draw(t, "late"))
		},
		"comeLate": func(t *rapid.T) {
			c.now += time.Duration(rapid.Int64Range(0, 15e9).Draw(t, "late"))
		},
		"comeVeryLate": func(t *rapid.T) { c.now += time.Duration(rapid.Int64Range(0, 3e11).Draw(t, "late")) },
		"deadline": func(t *rapid.T) {
			deadline, ok := l.NextDeadline()
			if !ok {
				t.Skip("nothing is due")
			}
			off := time.Duration(rapid.IntRange(-1, 1).Draw(t, "off"))
			c.advance(t, max(deadline.Sub(epoch)-c.now+off, 0), false)
		},
	})
}
