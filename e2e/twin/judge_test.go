//go:build twin

package twin

import (
	"fmt"
	"maps"
	"slices"
	"strings"
	"testing"
)

// A round is what one twin did between two ends.
type round struct {
	steps    []step
	frames   []int
	order    map[name]string   // in which order a group met steps and transmissions
	said     map[name][]string // what was sent about a group, in order
	deviated map[name][]string // the kernel's known deviations that explain it
	err      error             // what the spec cannot explain
	after    *spec
}

// rounds judges everything that the twin has sent.
func (t *twin) rounds(packets []packet) []round {
	var list []round
	s := newSpec(t.spec.kernel)
	for events := t.events; len(events) > 0; {
		i := slices.IndexFunc(events, func(e event) bool { return e.step.end })
		if i < 0 {
			i = len(events) - 1
		}
		r := replays(s, events[:i+1], packets)[0]
		list = append(list, r)
		s, events = r.after, events[i+1:]
	}
	return list
}

// replays are the ways in which the spec explains a round; if there is none, how it fails to. A packet that was sent
// while a step was carried out may have been sent before that took effect.
func replays(s *spec, events []event, packets []packet) []round {
	var good []round
	first := replay(s, events, packets)
	if first.err == nil {
		good = append(good, first)
	}
	for _, order := range orders(events, packets)[1:] {
		if r := replay(s, order, packets); r.err == nil {
			good = append(good, r)
		}
	}
	if len(good) == 0 {
		return []round{first}
	}
	return good
}

// maxOrders bounds the orders that are tried; each step met by a packet on the way doubles them.
const maxOrders = 256

// orders are the orders in which events may have happened, beginning with the one in which they were noted.
func orders(events []event, packets []packet) [][]event {
	list := [][]event{nil}
	for len(events) > 0 {
		n := 1
		for n < len(events) && events[n].isFrame() {
			n++
		}
		var next [][]event
		for _, part := range partOrders(events[:n], packets) {
			for _, before := range list {
				if len(next) < maxOrders {
					next = append(next, slices.Concat(before, part))
				}
			}
		}
		list, events = next, events[n:]
	}
	return list
}

// partOrders are the orders of a step and the packets after it.
func partOrders(events []event, packets []packet) [][]event {
	list := [][]event{events}
	if events[0].isFrame() {
		return list
	}
	for n := 1; n < len(events); n++ {
		p := packets[events[n].frame]
		if p.time.After(events[0].ended) {
			break
		}
		if !p.helper() {
			list = append(list, slices.Concat(events[1:n+1], events[:1], events[n+1:]))
		}
	}
	return list
}

func replay(s *spec, events []event, packets []packet) round {
	s = s.clone()
	r := round{order: map[name]string{}, said: map[name][]string{}, deviated: map[name][]string{}, after: s}
	note := func(err error) {
		if r.err == nil {
			r.err = err
		}
	}
	for _, e := range events {
		switch {
		case e.isFrame():
			p := packets[e.frame]
			note(s.sent(p))
			r.frames = append(r.frames, e.frame)
			groups := p.byGroup()
			_, background := groups[other]
			for n, records := range groups {
				mark := "t"
				if records[0].current() {
					mark = "a"
					if background {
						mark = "G"
					}
				}
				if !n.helper() {
					r.order[n] += mark
					r.said[n] = append(r.said[n], saying(records))
				}
			}
			continue
		case e.step.listen != nil:
			l := e.step.listen
			s.listen(l.socket, l.group, l.filter)
			if l.group.helper() {
				continue
			}
			r.order[l.group] += fmt.Sprint(len(r.steps))
		case e.step.query != nil:
			s.query(*e.step.query, e.begun)
			for n := range s.groups {
				r.order[n] += fmt.Sprint(len(r.steps))
			}
		case e.step.report != nobody:
			s.heard(e.step.report)
			r.order[e.step.report] += fmt.Sprint(len(r.steps))
		case e.step.back:
			s.v1 = false
			s.groups[sentinel].reports, s.groups[sentinel].dones = 0, 0
		case e.step.end:
			for n, g := range s.groups {
				if len(g.deviated) > 0 {
					r.deviated[n] = slices.Sorted(maps.Keys(g.deviated))
				}
			}
			note(s.endRound())
		}
		r.steps = append(r.steps, e.step)
	}
	return r
}

// differ says in which groups twins differ that met the same in the same order; skewed tells that some met it in
// another.
func differ(kernel, ours round) (differences []string, skewed bool) {
	for n := range addresses {
		switch {
		case n.helper() || len(kernel.deviated[n]) > 0:
		case kernel.order[n] != ours.order[n]:
			skewed = true
		case !slices.Equal(kernel.said[n], ours.said[n]):
			differences = append(differences, fmt.Sprintf("%s: the kernel says %v, ours %v", n, kernel.said[n], ours.said[n]))
		}
	}
	return differences, skewed
}

func textOf(steps []step) string {
	texts := make([]string, len(steps))
	for i, s := range steps {
		texts[i] = s.String()
	}
	return strings.Join(texts, "; ")
}

// tell shows a round as tshark prints it.
func (t *twin) tell(tb testing.TB, r round) {
	tb.Helper()
	if len(r.frames) == 0 {
		tb.Logf("%s sent nothing", t.name)
		return
	}
	first, last := r.frames[0], r.frames[len(r.frames)-1]
	text := t.heard.Tshark(tb.Context(), "-Y", fmt.Sprintf("frame.number >= %d && frame.number <= %d", first+1, last+1),
		"-T", "fields", "-e", "frame.number", "-e", "frame.time_relative", "-e", "ipv6.src", "-e", "icmpv6.type",
		"-e", "icmpv6.mld.multicast_address", "-e", "icmpv6.mld.source_address", "-e", "icmpv6.mldr.mar.record_type",
		"-e", "icmpv6.mldr.mar.nb_sources", "-e", "icmpv6.mldr.mar.multicast_address",
		"-e", "icmpv6.mldr.mar.source_address")
	tb.Logf("%s, steps %s: %v\n%s", t.name, textOf(r.steps), r.said, text)
}
