package listener_test

import (
	"math/rand/v2"
	"net/netip"
	"runtime"
	"slices"
	"testing"
	"time"

	"github.com/seed-aaab8e3a/cni-mld/mld"
	"github.com/seed-aaab8e3a/cni-mld/mld/listener"
)

func generalQueryV2(mrd time.Duration, qrv, qqic uint8) mld.Message {
	return mld.Message{Type: mld.TypeQuery, Version: mld.Version2, MulticastAddress: netip.IPv6Unspecified(),
		MaxResponseCode: mld.EncodeMaxResponseCode(mrd), QRV: qrv, QQIC: qqic}
}

// A querier that asks ten times within each Maximum Response Delay gets an answer within each of them all the same,
// and not ten: rule 1. (A listener that draws anew for every Query puts its answer off for good.)
func TestV2_35_V2_36_QueryStorm(t *testing.T) {
	const mrd, queries = 10 * time.Second, 20_000
	for _, about := range []netip.Addr{netip.IPv6Unspecified(), address(1)} {
		l, err := listener.New(listener.Config{}, rand.New(rand.NewPCG(3810, 62)))
		if err != nil {
			t.Fatal(err)
		}
		l.SetSource(epoch, own)
		for i := range 3 {
			if err := l.Listen(epoch, 1, address(i), listener.AnySource); err != nil {
				t.Fatal(err)
			}
		}
		var asked, answered []time.Duration
		next := 10 * time.Second
		for len(asked) < queries {
			now := next
			if deadline, ok := l.NextDeadline(); ok && deadline.Sub(epoch) < now {
				now = deadline.Sub(epoch)
				l.Advance(epoch.Add(now))
			} else {
				m := generalQueryV2(mrd, 2, 125)
				m.MulticastAddress = about
				l.Receive(epoch.Add(now), other, m)
				asked = append(asked, now)
				next += mrd / 10
			}
			for p := range l.Outgoing() {
				if p.Cause == listener.CauseAnswer {
					answered = append(answered, now)
				}
			}
		}
		for _, at := range asked[:queries-11] {
			i, _ := slices.BinarySearch(answered, at)
			if i == len(answered) || answered[i] > at+mrd {
				t.Fatalf("about %v: the Query at %v is not answered within %v", about, at, mrd)
			}
		}
		if len(answered) > queries {
			t.Errorf("about %v: %d answers to %d Queries", about, len(answered), queries)
		}
		t.Logf("about %v: %d answers to %d Queries", about, len(answered), queries)
	}
}

// However many addresses there are: an address costs no more memory than in MLDv1, an answer allocates nothing, and
// the Reports are as few as they can be.
func TestV2_40_V2_46_ManyAddresses(t *testing.T) {
	n := 1_000_000
	if testing.Short() {
		n = 100_000
	}
	rnd := rand.New(rand.NewPCG(1, 2))
	l, err := listener.New(listener.Config{}, rnd)
	if err != nil {
		t.Fatal(err)
	}
	l.SetSource(epoch, own)
	now, reported := time.Duration(0), 0
	drain := func() (packets int) {
		for p := range l.Outgoing() {
			packets++
			reported += p.Records
		}
		return packets
	}
	rest := func() (packets int) {
		for deadline, ok := l.NextDeadline(); ok; deadline, ok = l.NextDeadline() {
			now = max(now, deadline.Sub(epoch)) + time.Millisecond
			l.Advance(epoch.Add(now))
			packets += drain()
		}
		return packets
	}
	bytes, mallocs := measure(func() {
		for i := range n {
			if err := l.Listen(epoch, 1, address(i), listener.AnySource); err != nil {
				t.Fatal(err)
			}
			drain()
		}
		rest()
	})
	perAddress := float64(bytes) / float64(n)
	t.Logf("an Idle address takes %.1f octets, and took %.3f allocations", perAddress, float64(mallocs)/float64(n))
	if perAddress > 80 || mallocs >= uint64(n) {
		t.Errorf("an Idle address takes %.1f octets, want at most 80, and %d allocations for %d", perAddress, mallocs, n)
	}
	if reported != 2*n {
		t.Errorf("%d records after the joins, want %d", reported, 2*n)
	}

	for range 2 {
		reported = 0
		packets := 0
		_, mallocs = measure(func() {
			l.Receive(epoch.Add(now), other, generalQueryV2(10*time.Second, 2, 125))
			packets = drain() + rest()
		})
		if reported != n || packets != (n+71)/72 {
			t.Errorf("a General Query is answered with %d records in %d Reports, want %d in %d", reported, packets, n, (n+71)/72)
		}
		if mallocs > 50 {
			t.Errorf("%d allocations for an answer", mallocs)
		}
	}

	// One specific Query for each address, all pending at once, then all leave.
	reported = 0
	_, mallocs = measure(func() {
		for i := range n {
			m := generalQueryV2(time.Second, 2, 125)
			m.MulticastAddress = address(i)
			l.Receive(epoch.Add(now), other, m)
		}
		rest()
	})
	t.Logf("%.2f allocations for an answer to a specific Query", float64(mallocs)/float64(n))
	if reported != n {
		t.Errorf("%d answers to specific Queries, want %d", reported, n)
	}
	reported = 0
	for i := range n {
		if err := l.Listen(epoch.Add(now), 1, address(i), listener.Filter{}); err != nil {
			t.Fatal(err)
		}
		drain()
	}
	rest()
	if reported != 2*n || l.Slots() != 0 {
		t.Errorf("%d records after the leaves, want %d, and %d addresses left over", reported, 2*n, l.Slots())
	}
	if err := l.Check(); err != nil {
		t.Error(err)
	}
	runtime.KeepAlive(l)
}

// The mode goes to and fro while there are many addresses and thousands of leaves are being told. Whatever is wanted
// is reported whenever it is asked for, each leave that is cut off gets one Done, and no call deals with more
// addresses than it may.
func TestV2_53_V2_66_V2_67_VersionFlapping(t *testing.T) {
	const n, leaves, rounds = 100_000, 5_000, 4
	c := &crowd{t: t, rnd: &counter{rnd: rand.New(rand.NewPCG(1, 2))}}
	l, err := listener.New(listener.Config{}, c.rnd)
	if err != nil {
		t.Fatal(err)
	}
	c.l = l
	l.SetSource(epoch, own)
	var reports, dones, records int
	call := func(most int, f func()) {
		t.Helper()
		draws, backlog := c.rnd.draws, l.Backlog()
		f()
		if c.rnd.draws-draws > most || backlog-l.Backlog() > 2*listener.MaxPerCall {
			t.Fatalf("one call has drawn %d delays and settled %d addresses", c.rnd.draws-draws, backlog-l.Backlog())
		}
		for p := range l.Outgoing() {
			switch {
			case p.Records > 0:
				records += p.Records
			case p.Cause == listener.CauseLeft:
				dones++
			default:
				reports++
			}
		}
	}
	advance := func(until time.Duration) {
		for {
			deadline, ok := l.NextDeadline()
			if !ok || deadline.Sub(epoch) > until {
				c.now = until
				return
			}
			c.now = max(c.now, deadline.Sub(epoch)) + time.Millisecond
			call(2*listener.MaxPerCall, func() { l.Advance(epoch.Add(c.now)) })
		}
	}
	listen := func(i int, f listener.Filter) {
		call(1, func() {
			if err := l.Listen(epoch.Add(c.now), 1, address(i), f); err != nil {
				t.Fatal(err)
			}
		})
	}
	for i := range n {
		listen(i, listener.AnySource)
	}
	advance(10 * time.Second)

	for round := range rounds {
		c.now = time.Duration(round+1) * time.Hour
		call(1, func() { l.Receive(epoch.Add(c.now), other, generalQueryV2(time.Second, 2, 10)) })
		records = 0
		advance(c.now + 2*time.Second)
		if records != n {
			t.Fatalf("round %d: %d records answer the version 2 Query, want %d", round, records, n)
		}
		for i := range leaves { // some of which are wanted again before all is told
			listen(n+i, listener.AnySource)
			listen(n+i, listener.Filter{})
		}
		records, reports, dones = 0, 0, 0
		for range 3 { // one changes the mode, the others find it changed
			call(listener.MaxPerCall, func() { l.Receive(epoch.Add(c.now), other, generalQuery(1000)) })
		}
		if l.Version() != mld.Version1 {
			t.Fatalf("round %d: version %d", round, l.Version())
		}
		listen(n, listener.AnySource) // one of those cut off comes back
		listen(n, listener.Filter{})
		advance(c.now + 2*time.Second)
		if records != 0 || reports != n+1 || dones != leaves+1 {
			t.Fatalf("round %d: the change to version 1 gave %d records, %d Reports and %d Dones, want 0, %d and %d",
				round, records, reports, dones, n+1, leaves+1)
		}
		if l.Slots() != n {
			t.Fatalf("round %d: %d addresses, want %d", round, l.Slots(), n)
		}
		// Back to version 2 in the midst of the answers, which is cancelled.
		call(listener.MaxPerCall, func() { l.Receive(epoch.Add(c.now), other, generalQuery(60000)) })
		c.now += 2*10*time.Second + 60*time.Second
		call(2*listener.MaxPerCall, func() { l.Advance(epoch.Add(c.now)) })
		if err := l.Check(); err != nil || l.Version() != mld.Version2 {
			t.Fatalf("round %d: version %d, %v", round, l.Version(), err)
		}
		reports, records = 0, 0
		advance(c.now + 100*time.Second)
		if reports != 0 || records != 0 || l.Backlog() != 0 {
			t.Fatalf("round %d: after the return %d Reports, %d records, backlog %d", round, reports, records, l.Backlog())
		}
		if err := l.Check(); err != nil {
			t.Fatalf("round %d: %v", round, err)
		}
	}
}

// A caller who sleeps through version 1 while thousands of leaves were cut off says nothing of version 1 afterwards.
func TestV2_53_V2_54_SleepThroughVersion1(t *testing.T) {
	const n = 3 * listener.MaxPerCall
	node := newNode(t, listener.Config{}, &share{1, 1})
	node.do(0, "source", []string{"fe80::a"})
	for _, f := range []listener.Filter{listener.AnySource, {}} {
		for i := range n {
			if err := node.l.Listen(epoch, 1, address(i), f); err != nil {
				t.Fatal(err)
			}
		}
		node.drain()
	}
	node.do(0, "query", []string{"ff0e::9", "1s"})
	dones := node.l.Counters().DonesSent
	if dones == 0 || dones > listener.MaxPerCall || node.l.Backlog() == 0 {
		t.Fatalf("%d Dones at once, backlog %d", dones, node.l.Backlog())
	}
	node.now = 300 * time.Second
	node.runUntil(forever)
	if got := node.l.Counters().DonesSent; got != dones || node.l.Slots() != 0 || node.l.Backlog() != 0 {
		t.Errorf("%d Dones of version 1 in version 2, %d addresses left over, backlog %d", got-dones, node.l.Slots(), node.l.Backlog())
	}
}

// Flapping subscribers leave nothing behind.
func TestV2_63_NoLeak(t *testing.T) {
	rnd := rand.New(rand.NewPCG(5, 6))
	n := newNode(t, listener.Config{}, nil)
	l, err := listener.New(listener.Config{}, rnd)
	if err != nil {
		t.Fatal(err)
	}
	n.l = l
	n.do(0, "source", []string{"fe80::a"})
	filters := []string{"EX()", "EX(s1)", "IN(s1,s2)", "IN(s2)", "IN()"}
	for range 5000 {
		n.do(n.now, "listen", []string{address(rnd.IntN(20)).String(), filters[rnd.IntN(len(filters))]})
		switch rnd.IntN(8) {
		case 0:
			n.runUntil(n.now + time.Duration(rnd.Int64N(2e9)))
		case 1:
			n.do(n.now, "query2", []string{address(rnd.IntN(20)).String(), "1s", "sources", "s1"})
		case 2:
			n.do(n.now, "source", []string{[]string{"none", "fe80::a", "::", "fe80::c"}[rnd.IntN(4)]})
		case 3:
			n.do(n.now, "query", []string{"::", "1s"})
		}
		n.transcript, n.packets = n.transcript[:0], n.packets[:0]
	}
	for i := range 20 {
		n.do(n.now, "listen", []string{address(i).String(), "IN()"})
	}
	n.runUntil(forever)
	if l.Slots() != 0 {
		t.Errorf("%d addresses are left over", l.Slots())
	}
}

// Queries that come while a general answer is still being sent do not make it begin anew each time: every address is
// told, and the last Query gets an answer of its own.
func TestV2_35_V2_40_QueryAmidAnswer(t *testing.T) {
	const n = 400
	l, err := listener.New(listener.Config{}, rand.New(rand.NewPCG(1, 2)))
	if err != nil {
		t.Fatal(err)
	}
	l.SetMTU(1280)
	l.SetSource(epoch, own)
	now := epoch
	told := make(map[netip.Addr]int)
	send := func(most int) {
		for p := range l.Outgoing() {
			parsed, err := mld.Parse(p.Bytes, 0)
			if err != nil {
				t.Fatal(err)
			}
			for r := range parsed.Message.Records.All() {
				told[r.MulticastAddress]++
			}
			if most--; most == 0 {
				return
			}
		}
	}
	for i := range n {
		if err := l.Listen(now, 1, address(i), listener.AnySource); err != nil {
			t.Fatal(err)
		}
	}
	for range 1000 {
		send(-1)
		now = now.Add(10 * time.Millisecond)
		l.Advance(now)
	}
	clear(told)
	for range n / 61 * 4 { // as many packets as four answers take
		l.Receive(now, other, generalQueryV2(time.Millisecond, 2, 125))
		now = now.Add(time.Millisecond)
		l.Advance(now)
		send(1)
	}
	if len(told) != n {
		t.Errorf("%d addresses of %d were told", len(told), n)
	}
	clear(told)
	for deadline, ok := l.NextDeadline(); ok; deadline, ok = l.NextDeadline() {
		if deadline.After(now) {
			now = deadline
		}
		l.Advance(now)
		send(-1)
	}
	if len(told) != n {
		t.Errorf("%d addresses of %d were told after the last Query", len(told), n)
	}
}

// A source-specific Query that comes when the answer to another one is due but not yet sent, as behind many changes, adds
// to that answer and takes nothing from it.
func TestV2_38_V2_39_QueryBeforeDueAnswerIsSent(t *testing.T) {
	group, s1, s2 := address(1), netip.MustParseAddr("fd00::1"), netip.MustParseAddr("fd00::2")
	for _, tc := range []struct {
		second []netip.Addr
		want   []netip.Addr // in the answer
	}{
		{[]netip.Addr{s2}, []netip.Addr{s1, s2}},
		{nil, []netip.Addr{s1, s2}},
	} {
		l, err := listener.New(listener.Config{Robustness: 1}, rand.New(rand.NewPCG(1, 2)))
		if err != nil {
			t.Fatal(err)
		}
		l.SetSource(epoch, own)
		if err := l.Listen(epoch, 1, group, listener.Filter{Sources: []netip.Addr{s1, s2}}); err != nil {
			t.Fatal(err)
		}
		for range l.Outgoing() {
		}
		now := epoch
		ask := func(sources ...netip.Addr) {
			packet := mld.AppendQuery(nil, other, group, mld.Query{
				Version: mld.Version2, MulticastAddress: group, MaxResponseCode: 1000, QRV: 1, Sources: sources,
			})
			p, err := mld.Parse(packet, 0)
			if err != nil {
				t.Fatal(err)
			}
			l.Receive(now, p.Src, p.Message)
		}
		ask(s1)
		now = now.Add(time.Second)
		l.Advance(now)
		ask(tc.second...)
		var got []netip.Addr
		for p := range l.Outgoing() {
			parsed, err := mld.Parse(p.Bytes, 0)
			if err != nil {
				t.Fatal(err)
			}
			for r := range parsed.Message.Records.All() {
				got = slices.AppendSeq(got, r.Sources.All())
			}
		}
		if !slices.Equal(got, tc.want) {
			t.Errorf("asked for %v, and then for %v: the answer tells %v, want %v", s1, tc.second, got, tc.want)
		}
		if deadline, ok := l.NextDeadline(); ok {
			t.Errorf("asked for %v, and then for %v: something is due at %v", s1, tc.second, deadline)
		}
		if err := l.Check(); err != nil {
			t.Error(err)
		}
	}
}

// What waits to be sent when version 1 ends is cancelled, but for the first Report of an address: there is no other.
func TestV2_53_AnswersWaitingToBeSent(t *testing.T) {
	const n = 200
	l, err := listener.New(listener.Config{}, rand.New(rand.NewPCG(1, 2)))
	if err != nil {
		t.Fatal(err)
	}
	l.SetSource(epoch, own)
	listen := func(from, to int) {
		t.Helper()
		for i := from; i < to; i++ {
			if err := l.Listen(epoch, 1, address(i), listener.AnySource); err != nil {
				t.Fatal(err)
			}
		}
	}
	drain := func() (reports []netip.Addr) {
		for p := range l.Outgoing() {
			if p.Records == 0 {
				reports = append(reports, p.Addr)
			}
		}
		return reports
	}
	listen(0, n)
	drain()
	l.Receive(epoch, other, generalQueryV2(0, 1, 1)) // version 1 is to last a second
	l.Receive(epoch, other, generalQuery(0))
	listen(n, n+1)
	now := epoch.Add(time.Second)
	l.Advance(now)
	if got := drain(); l.Version() != mld.Version2 || !slices.Equal(got, []netip.Addr{address(n)}) {
		t.Errorf("%d Reports of version 1 in version %d, want that of %v", len(got), l.Version(), address(n))
	}
	l.Receive(now, other, generalQuery(0))
	if got := drain(); len(got) != n+1 {
		t.Errorf("%d answers in version 1 later on, want %d", len(got), n+1)
	}
}
