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

// many is how many addresses the largest listener has.
var many = 1_000_000

// A counter counts the draws. As every timer that is set needs one, it tells how much a call has done.
type counter struct {
	rnd   *rand.Rand
	draws int
}

func (c *counter) Int64N(n int64) int64 {
	c.draws++
	return c.rnd.Int64N(n)
}

// A crowd is a listener to many addresses, of which every call is watched.
type crowd struct {
	t       *testing.T
	l       *listener.Listener
	rnd     *counter
	now     time.Duration
	durance []time.Duration // of each call, on the real clock
	report  func(addr netip.Addr, at time.Duration)
}

func newCrowd(t *testing.T, cfg listener.Config) *crowd {
	t.Helper()
	c := &crowd{t: t, rnd: &counter{rnd: rand.New(rand.NewPCG(1, 2))}}
	cfg.Version = mld.Version1
	l, err := listener.New(cfg, c.rnd)
	if err != nil {
		t.Fatal(err)
	}
	l.SetSource(epoch, own)
	c.l = l
	return c
}

// call makes a call, which may touch so many addresses, and drains the packets.
func (c *crowd) call(most int, f func()) {
	draws := c.rnd.draws
	begin := time.Now()
	f()
	c.durance = append(c.durance, time.Since(begin))
	if n := c.rnd.draws - draws; n > most {
		c.t.Fatalf("one call has drawn %d delays, want at most %d", n, most)
	}
	packets := 0
	for p := range c.l.Outgoing() {
		packets++
		if c.report != nil && p.Cause != listener.CauseLeft {
			c.report(p.Addr, c.now)
		}
	}
	if packets > most {
		c.t.Fatalf("one call has made %d packets, want at most %d", packets, most)
	}
}

// rest lets time go on until nothing is due any more, and logs how long the calls took.
func (c *crowd) rest(what string, grain time.Duration) {
	for {
		deadline, ok := c.l.NextDeadline()
		if !ok {
			break
		}
		c.now = max(c.now, deadline.Sub(epoch)) + grain
		c.call(2*listener.MaxPerCall, func() { c.l.Advance(epoch.Add(c.now)) })
	}
	c.logCalls(what)
}

func (c *crowd) logCalls(what string) {
	slices.Sort(c.durance)
	if n := len(c.durance); n > 0 {
		c.t.Logf("%s: %d calls, median %v, 99.99 %% %v, longest %v",
			what, n, c.durance[n/2], c.durance[n*9999/10000], c.durance[n-1])
	}
	c.durance = c.durance[:0]
}

// measure returns the bytes that f leaves allocated and the allocations it makes.
func measure(f func()) (bytes int64, mallocs uint64) {
	var before, after runtime.MemStats
	runtime.GC()
	runtime.ReadMemStats(&before)
	f()
	runtime.GC()
	runtime.ReadMemStats(&after)
	return int64(after.HeapAlloc) - int64(before.HeapAlloc), after.Mallocs - before.Mallocs
}

// However many addresses there are: no call does more than its share, an address costs no more memory, and an
// answer allocates nothing.
func TestV1_13_ManyAddresses(t *testing.T) {
	n := many
	if testing.Short() {
		n = min(n, 100_000)
	}
	c := newCrowd(t, listener.Config{Version: mld.Version1})
	c.durance = make([]time.Duration, 0, 4*n)
	sent := func() uint64 { return c.l.Counters().ReportsSent }

	bytes, mallocs := measure(func() {
		for i := range n {
			c.call(1, func() {
				if err := c.l.Listen(epoch, 1, address(i), listener.AnySource); err != nil {
					t.Fatal(err)
				}
			})
		}
		c.logCalls("Listen")
		c.rest("repeats", time.Millisecond)
	})
	perAddress := float64(bytes) / float64(n)
	t.Logf("an Idle address takes %.1f octets, and took %.3f allocations", perAddress, float64(mallocs)/float64(n))
	if perAddress > 80 {
		t.Errorf("an Idle address takes %.1f octets, want at most 80", perAddress)
	}
	if mallocs >= uint64(n) {
		t.Errorf("%d addresses took %d allocations, want less than one each", n, mallocs)
	}
	if sent() != 2*uint64(n) {
		t.Errorf("%d Reports after the joins, want %d", sent(), 2*n)
	}

	answer := func(what string, mrd uint16, grain time.Duration) {
		t.Helper()
		before, start := sent(), c.now
		_, mallocs := measure(func() {
			c.call(listener.MaxPerCall, func() { c.l.Receive(epoch.Add(c.now), other, generalQuery(mrd)) })
			c.rest(what, grain)
		})
		if got := sent() - before; got != uint64(n) {
			t.Errorf("%s: %d answers, want %d", what, got, n)
		}
		if most := time.Duration(mrd)*time.Millisecond + grain; mrd > 0 && c.now-start > most {
			t.Errorf("%s: the last one after %v, want at most %v", what, c.now-start, most)
		}
		t.Logf("%s: %d allocations", what, mallocs)
		if mallocs > 100+uint64(n)/listener.PieceSize*8 {
			t.Errorf("%s: %d allocations for %d answers", what, mallocs, n)
		}
	}
	answer("answers", 10000, time.Millisecond)
	answer("answers at once", 0, 0)
	answer("answers, each at its time", 10000, 0)
	before := sent()
	c.call(listener.MaxPerCall, func() { c.l.Receive(epoch.Add(c.now), other, generalQuery(10000)) })
	for range n / listener.MaxPerCall {
		c.call(listener.MaxPerCall, func() { c.l.Advance(epoch.Add(c.now)) })
	}
	c.now += time.Minute
	c.rest("answers, all of them overdue", 0)
	if got := sent() - before; got != uint64(n) {
		t.Errorf("%d overdue answers, want %d", got, n)
	}

	before = sent()
	c.call(2*listener.MaxPerCall, func() { c.l.SetSource(epoch.Add(c.now), netip.MustParseAddr("fe80::a:a")) })
	c.rest("announcement and repeats", time.Millisecond)
	if got := sent() - before; got != 2*uint64(n) {
		t.Errorf("%d Reports after a new source address, want %d", got, 2*n)
	}

	for i := range n {
		c.call(1, func() {
			if err := c.l.Listen(epoch.Add(c.now), 1, address(i), listener.Filter{}); err != nil {
				t.Fatal(err)
			}
		})
	}
	c.logCalls("leave")
	if got := c.l.Counters().DonesSent; got != uint64(n) {
		t.Errorf("%d Dones, want %d", got, n)
	}
	if err := c.l.Check(); err != nil {
		t.Error(err)
	}
	runtime.KeepAlive(c.l)
}

// A listener whose addresses come and go does not grow.
func TestMemoryOfChurn(t *testing.T) {
	n := min(many, 200_000)
	c := newCrowd(t, listener.Config{Version: mld.Version1})
	churn := func(from int) {
		for i := range n {
			c.call(1, func() {
				if err := c.l.Listen(epoch, 1, address(from+i), listener.AnySource); err != nil {
					t.Fatal(err)
				}
			})
			if i >= 8 {
				c.call(1, func() {
					if err := c.l.Listen(epoch, 1, address(from+i-8), listener.Filter{}); err != nil {
						t.Fatal(err)
					}
				})
			}
		}
		c.durance = nil
	}
	churn(0)
	if bytes, _ := measure(func() { churn(n) }); bytes > 4096 {
		t.Errorf("%d addresses that came and went have left %d octets", n, bytes)
	}
	runtime.KeepAlive(c.l)
}

// Most listeners have a handful of addresses, and a host has thousands of listeners.
func TestMemoryOfAFewAddresses(t *testing.T) {
	const listeners, addresses = 200, 8
	kept := make([]*listener.Listener, 0, listeners)
	rnd := rand.New(rand.NewPCG(1, 2))
	bytes, _ := measure(func() {
		for range listeners {
			l, err := listener.New(listener.Config{Version: mld.Version1}, rnd)
			if err != nil {
				t.Fatal(err)
			}
			l.SetSource(epoch, own)
			for i := range addresses {
				if err := l.Listen(epoch, 1, address(i), listener.AnySource); err != nil {
					t.Fatal(err)
				}
				for range l.Outgoing() {
				}
			}
			kept = append(kept, l)
		}
	})
	each := bytes / listeners
	t.Logf("a listener to %d addresses takes %d octets", addresses, each)
	if each > 2048 {
		t.Errorf("a listener to %d addresses takes %d octets, want at most 2048", addresses, each)
	}
	runtime.KeepAlive(kept)
}

// Queries come while earlier ones are still being worked off, and a call takes its time. Each address answers
// each of them within its delay, and none of them more than once. (A Report that was pending and early enough keeps
// its time up to the very end of the delay, so it may be late by the call that was going on then.)
func TestV1_13_V1_14_V1_26_OverlappingGeneralQueries(t *testing.T) {
	const perCall, span = 200 * time.Microsecond, 20 * time.Second
	n := min(many, 100_000)
	seeds := uint64(3)
	if testing.Short() {
		seeds = 1
	}
	for seed := range seeds {
		rnd := rand.New(rand.NewPCG(seed, 7))
		c := newCrowd(t, listener.Config{Version: mld.Version1, Robustness: 1})
		for i := range n {
			if err := c.l.Listen(epoch, 1, address(i), listener.AnySource); err != nil {
				t.Fatal(err)
			}
		}
		for range c.l.Outgoing() {
		}
		reports := make(map[netip.Addr][]time.Duration, n)
		c.report = func(addr netip.Addr, at time.Duration) { reports[addr] = append(reports[addr], at) }

		type heard struct{ at, mrd time.Duration }
		var queries []heard
		next := time.Second
		for {
			deadline, ok := c.l.NextDeadline()
			if due := deadline.Sub(epoch); next < span && (!ok || next <= max(c.now, due)) {
				c.now = max(c.now, next)
				mrd := time.Duration(200+rnd.IntN(3000)) * time.Millisecond
				queries = append(queries, heard{c.now, mrd})
				c.call(listener.MaxPerCall, func() {
					c.l.Receive(epoch.Add(c.now), other, generalQuery(uint16(mrd.Milliseconds())))
				})
				next = c.now + time.Duration(rnd.Int64N(int64(2*time.Millisecond)))
				if rnd.IntN(4) == 0 {
					next = c.now + time.Duration(rnd.Int64N(int64(2*time.Second)))
				}
			} else if ok {
				c.now = max(c.now, due)
				c.call(2*listener.MaxPerCall, func() { c.l.Advance(epoch.Add(c.now)) })
			} else {
				break
			}
			c.now += perCall
		}

		total := 0
		for i := range n {
			at := reports[address(i)]
			total += len(at)
			for _, q := range queries {
				if !slices.ContainsFunc(at, func(r time.Duration) bool { return q.at <= r && r <= q.at+q.mrd+perCall }) {
					t.Fatalf("seed %d: %v has no answer for the Query at %v with a delay of %v, only Reports at %v",
						seed, address(i), q.at, q.mrd, at)
				}
			}
		}
		if total > len(queries)*n {
			t.Errorf("seed %d: %d answers to %d Queries for %d addresses", seed, total, len(queries), n)
		}
		t.Logf("seed %d: %d Queries, %.2f answers an address", seed, len(queries), float64(total)/float64(n))
	}
}

// While a General Query is being worked off two more come, of which the last has to be answered first. Nobody
// answers twice then: one Report within its delay is good for all three.
func TestV1_13_V1_14_OneAnswerForOverlappingQueries(t *testing.T) {
	const n = 3 * listener.MaxPerCall
	c := newCrowd(t, listener.Config{Version: mld.Version1, Robustness: 1})
	for i := range n {
		if err := c.l.Listen(epoch, 1, address(i), listener.AnySource); err != nil {
			t.Fatal(err)
		}
	}
	for range c.l.Outgoing() {
	}
	reports := map[netip.Addr]int{}
	c.report = func(addr netip.Addr, _ time.Duration) { reports[addr]++ }
	for _, mrd := range []uint16{10000, 20000, 10} {
		c.call(listener.MaxPerCall, func() { c.l.Receive(epoch, other, generalQuery(mrd)) })
	}
	c.rest("", time.Millisecond)
	if c.now > 15*time.Millisecond {
		t.Errorf("the last answer came after %v, want at most 10ms", c.now)
	}
	for i := range n {
		if got := reports[address(i)]; got != 1 {
			t.Fatalf("%v has answered %d times, want once", address(i), got)
		}
	}
}

// The same calls with the same random numbers give the same octets.
func TestSameCallsSameOctets(t *testing.T) {
	run := func(seed uint64) [][]byte {
		n := newNode(t, listener.Config{Version: mld.Version1}, nil)
		l, err := listener.New(listener.Config{Version: mld.Version1, Robustness: 3}, rand.New(rand.NewPCG(seed, 1)))
		if err != nil {
			t.Fatal(err)
		}
		n.l = l
		script := rand.New(rand.NewPCG(9, 9))
		n.do(0, "source", []string{"fe80::a"})
		for range 3000 {
			if err := l.Listen(epoch.Add(n.now), 1, address(script.IntN(5000)), listener.AnySource); err != nil {
				t.Fatal(err)
			}
		}
		for range 200 {
			addr := address(script.IntN(5000)).String()
			switch script.IntN(6) {
			case 0:
				n.do(n.now, "join", []string{addr})
			case 1:
				n.do(n.now, "leave", []string{addr})
			case 2:
				n.do(n.now, "report", []string{addr})
			case 3:
				n.do(n.now, "query", []string{"::", "3s"})
			case 4:
				n.do(n.now, "source", []string{[]string{"none", "::", "fe80::a", "fe80::c"}[script.IntN(4)]})
			case 5:
				n.runUntil(n.now + time.Duration(script.Int64N(1e8)))
			}
		}
		return n.packets
	}
	same := func(a, b [][]byte) bool { return slices.EqualFunc(a, b, slices.Equal[[]byte]) }
	first := run(1)
	if len(first) < 3000 || !same(first, run(1)) {
		t.Errorf("the same calls with the same seed give other packets (%d the first time)", len(first))
	}
	if same(first, run(2)) {
		t.Error("another seed changes nothing")
	}
}

// Queries that come faster than their answers can be sent do not pile these up: anybody on the link can ask, and a Report
// that waits to be sent answers all of them.
func TestV1_15_AnswersDoNotPileUp(t *testing.T) {
	const n, burst, queries = 500, 64, 1000
	for _, mrd := range []uint16{0, 1} {
		l, err := listener.New(listener.Config{Version: mld.Version1}, rand.New(rand.NewPCG(1, 2)))
		if err != nil {
			t.Fatal(err)
		}
		l.SetSource(epoch, own)
		for i := range n {
			if err := l.Listen(epoch, 1, address(i), listener.AnySource); err != nil {
				t.Fatal(err)
			}
		}
		now := epoch
		sent := make(map[netip.Addr]int) // since the last Query
		for range queries {
			clear(sent)
			now = now.Add(time.Millisecond)
			l.Receive(now, other, generalQuery(mrd))
			l.Advance(now)
			for p := range l.Outgoing() {
				if sent[p.Addr]++; len(sent) == burst {
					break
				}
			}
		}
		for ok := true; ok; {
			for p := range l.Outgoing() {
				sent[p.Addr]++
			}
			var deadline time.Time
			if deadline, ok = l.NextDeadline(); deadline.After(now) {
				now = deadline
			}
			l.Advance(now)
		}
		for addr, times := range sent {
			if times > 2 {
				t.Fatalf("delay %d: %v was to be reported %d times more", mrd, addr, times)
			}
		}
		if len(sent) != n {
			t.Errorf("delay %d: %d addresses were reported, want %d", mrd, len(sent), n)
		}
	}
}
