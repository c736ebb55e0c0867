package main

import (
	"fmt"
	"net/netip"
	"runtime"
	"runtime/debug"
	"slices"
	"time"

	"github.com/seed-aaab8e3a/cni-mld/mld"
	"github.com/seed-aaab8e3a/cni-mld/mld/listener"
)

// A trace is a run of a listener with each of its calls timed.
type trace struct {
	node   *node
	now    time.Duration // of the thread
	calls  []uint32      // ns of each
	phases []phase
}

// A phase is the part of a trace from a call on.
type phase struct {
	name string
	from int
}

// newTrace does so much with the addresses that every kind of call is in it.
func newTrace(version mld.Version, list []netip.Addr, capacity int) *trace {
	t := &trace{node: newNode(version), calls: make([]uint32, 0, capacity), now: threadTime()}
	query := mld.Message{Type: mld.TypeQuery, Version: version, MulticastAddress: netip.IPv6Unspecified(),
		MaxResponseCode: 10000, QRV: 2}
	receive := func() { t.node.l.Receive(t.node.now, querier, query) }
	listen := func(list []netip.Addr, f listener.Filter) {
		for _, a := range list {
			t.call(func() {
				if err := t.node.l.Listen(t.node.now, 1, a, f); err != nil {
					panic(err)
				}
			})
		}
	}

	t.begin("start listening")
	listen(list, listener.AnySource)
	t.begin("its repeats")
	t.rest()
	t.begin("answer a general query")
	t.call(receive)
	t.rest()
	t.begin("answer when all is overdue")
	t.call(receive)
	for range len(list) / 1000 { // all delays are drawn, and no time goes by
		t.call(func() { t.node.l.Advance(t.node.now) })
	}
	t.node.now = t.node.now.Add(time.Minute)
	t.rest()
	t.begin("announce a new source address")
	t.call(func() { t.node.l.SetSource(t.node.now, own.Next()) })
	t.rest()
	t.begin("stop listening, but for the last address")
	listen(list[:len(list)-1], listener.Filter{})
	t.rest()
	t.begin("answer for the last address")
	t.call(receive)
	t.rest()
	return t
}

func (t *trace) begin(name string) { t.phases = append(t.phases, phase{name, len(t.calls)}) }

// call times a call, and then each packet that there is to take.
func (t *trace) call(f func()) {
	f()
	t.add()
	for range t.node.l.Outgoing() {
		t.add()
	}
	t.add()
}

// add adds a call that has begun when the one before it ended.
func (t *trace) add() {
	now := threadTime()
	t.calls = append(t.calls, uint32(now-t.now))
	t.now = now
}

// rest lets time go on until nothing is due any more.
func (t *trace) rest() {
	for {
		var deadline time.Time
		var ok bool
		t.call(func() { deadline, ok = t.node.l.NextDeadline() })
		if !ok {
			return
		}
		if deadline.After(t.node.now) {
			t.node.now = deadline.Add(grain)
		}
		t.call(func() { t.node.l.Advance(t.node.now) })
	}
}

// longestCall traces a listener to n addresses, once with the garbage collector and twice without it.
func longestCall(version mld.Version, n int) []*line {
	list := addresses(n)
	first := newTrace(version, list, 32*n)
	what := fmt.Sprintf("longest call, MLDv%d, %d addresses", version, n)
	sorted := slices.Sorted(slices.Values(first.calls))
	lines := []*line{
		micros(what+", one run, 99.99 %", sorted[len(sorted)*9999/10000], goal{}),
		micros(what+", one run", sorted[len(sorted)-1], goal{}),
	}

	percent := debug.SetGCPercent(-1)
	for i := range 2 {
		runtime.GC()
		again := newTrace(version, list, len(first.calls))
		if len(again.calls) != len(first.calls) {
			panic("the listener has not done the same again")
		}
		if i == 0 {
			lines = append(lines, micros(what+", one run without GC", slices.Max(again.calls), goal{}))
		}
		for j, d := range again.calls {
			first.calls[j] = min(first.calls[j], d)
		}
	}
	debug.SetGCPercent(percent)
	for i, p := range first.phases {
		to := len(first.calls)
		if i+1 < len(first.phases) {
			to = first.phases[i+1].from
		}
		lines = append(lines, micros(what+": "+p.name, slices.Max(first.calls[p.from:to]), goal{most: 1000}))
	}
	return lines
}

func micros(what string, ns uint32, g goal) *line {
	return &line{what: what, unit: "µs", ours: []float64{float64(ns) / 1000}, goal: g}
}
