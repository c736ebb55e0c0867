//go:build twin

package twin

import (
	"fmt"
	"math/rand/v2"
	"os"
	"strconv"
	"testing"
	"time"
)

// A script makes up steps that both twins can be put through.
type script struct {
	*rand.Rand
	sockets map[name]map[int]filter
}

func newScript(seed uint64) *script {
	s := &script{rand.New(rand.NewPCG(seed, 0)), map[name]map[int]filter{}}
	for _, n := range testGroups {
		s.sockets[n] = map[int]filter{}
	}
	return s
}

var testGroups = []name{'g', 'h', 'i', 'j', 's', 't'}

func (s *script) group() name { return testGroups[s.IntN(len(testGroups))] }

func (s *script) chance(percent int) bool { return s.IntN(100) < percent }

// sources are up to four of six.
func (s *script) sources(least int) set {
	var list set
	for n := least + s.IntN(5-least); n > 0; n-- {
		list |= 1 << s.IntN(6)
	}
	return list
}

// change is a change of one of three sockets. The first one of a round may be a join that takes two system calls:
// nothing is being told that could come between them.
func (s *script) change(n name, first bool) step {
	sockets := s.sockets[n]
	l := &listen{socket: s.IntN(3), group: n, how: s.IntN(2)}
	before := sockets[l.socket]
	switch {
	case before.wants() && s.chance(25): // leave
	case before.wants() && s.chance(40): // one source more or fewer
		l.filter = before
		l.filter.sources ^= 1 << s.IntN(6)
	case !before.wants() && (len(sockets) > 0 || !first): // a join that is one system call
		l.filter = filter{exclude: true}
		if n.sourceSpecific() || s.chance(50) {
			l.filter = filter{sources: 1 << s.IntN(6)}
		}
	case n.sourceSpecific() || s.chance(50):
		l.filter.sources = s.sources(1)
	default:
		l.filter = filter{exclude: true, sources: s.sources(0)}
	}
	delete(sockets, l.socket)
	if l.filter.wants() {
		sockets[l.socket] = l.filter
	}
	return step{listen: l}
}

func (s *script) query(version int) step {
	ms := []int{0, 10, 30, 60}[s.IntN(4)]
	q := &query{version: version, qrv: 2, qqi: 125, delay: time.Duration(ms) * time.Millisecond}
	if s.chance(60) {
		q.group = s.group()
		if version == 2 && s.chance(60) {
			q.sources = s.sources(1)
		}
	}
	return step{query: q}
}

// round is one round's steps.
func (s *script) round() []step {
	var steps []step
	changes := func(n name, times int) {
		for i := range times {
			if i > 0 {
				steps = append(steps, step{sent: n})
			}
			steps = append(steps, s.change(n, len(steps) == 0))
		}
	}
	queries := func(times int) {
		for range times {
			steps = append(steps, s.query(2))
		}
	}
	switch kind := s.IntN(100); {
	case kind < 45:
		n := s.group()
		changes(n, 1+s.IntN(3))
		if other := s.group(); other != n && s.chance(30) {
			changes(other, 1)
			if s.chance(50) {
				steps = append(steps, step{sent: n})
				changes(n, 1)
			}
		}
	case kind < 65:
		queries(1 + s.IntN(3))
	case kind < 90:
		n := s.group()
		queries(1 + s.IntN(2))
		changes(n, 1+s.IntN(2))
		if s.chance(50) {
			steps = append(steps, step{sent: n})
			queries(1)
		}
	case kind < 98:
		q := s.query(2)
		q.query.qrv = []int{0, 2, 3}[s.IntN(3)]
		steps = append(steps, q)
	default:
		return s.older()
	}
	return append(steps, step{end: true})
}

// older is a while in MLDv1 mode.
func (s *script) older() []step {
	end := step{end: true}
	short := query{version: 2, qrv: 2, qqi: 2, delay: 10 * time.Millisecond} // of Older Version Querier Present
	long := short
	long.qqi = 125
	steps := []step{
		{query: &short}, end,
		{query: &query{version: 1, delay: time.Duration(s.IntN(50)) * time.Millisecond}}, end,
	}
	for range 1 + s.IntN(5) {
		if s.chance(30) {
			q := s.query(1 + s.IntN(2))
			q.query.qqi = 2
			steps = append(steps, q, end)
		} else {
			steps = append(steps, s.change(s.group(), true), end)
		}
	}
	return append(steps, step{back: true}, end, step{query: &long}, end)
}

// number reads a number from the environment.
func number(tb testing.TB, key string, otherwise uint64) uint64 {
	text, ok := os.LookupEnv(key)
	if !ok {
		return otherwise
	}
	n, err := strconv.ParseUint(text, 0, 64)
	if err != nil {
		tb.Fatalf("%s: %v", key, err)
	}
	return n
}

// roundsPerLab is how many rounds a lab lives, so that a failure is near its cause.
const roundsPerLab = 30

// TestV2_20_V2_31_V2_34_V2_45_Random puts both twins through the same random rounds, TWIN_STEPS of them, and compares
// what they say. TWIN_SEED repeats a run.
func TestV2_20_V2_31_V2_34_V2_45_Random(t *testing.T) {
	t.Parallel()
	seed := number(t, "TWIN_SEED", uint64(time.Now().UnixNano())%1e9)
	total := int(number(t, "TWIN_STEPS", 2*roundsPerLab))
	labs := (total + roundsPerLab - 1) / roundsPerLab
	for i := range labs {
		t.Run(fmt.Sprint("seed ", seed+uint64(i)), func(t *testing.T) {
			t.Parallel()
			randomRun(t, seed+uint64(i), min(roundsPerLab, total-i*roundsPerLab))
		})
	}
}

func randomRun(t *testing.T, seed uint64, total int) {
	r := newRig(t)
	t.Logf("TWIN_SEED=%d TWIN_STEPS=%d repeats this", seed, total)
	s := newScript(seed)
	defer r.judge(t)
	for range total {
		r.run(s.round())
	}
}

// judge compares all that the twins have done.
func (r *rig) judge(t *testing.T) {
	kernel, ours := r.kernel.rounds(r.kernel.packets(t.Context())), r.ours.rounds(r.ours.packets(t.Context()))
	equal, skews := 0, 0
	deviations := map[string]int{}
	for i := range max(len(kernel), len(ours)) {
		if i >= len(kernel) || i >= len(ours) {
			t.Errorf("the kernel's twin had %d rounds, ours %d", len(kernel), len(ours))
			r.kernel.tell(t, kernel[len(kernel)-1])
			r.ours.tell(t, ours[len(ours)-1])
			break
		}
		k, o := kernel[i], ours[i]
		differences, skewed := differ(k, o)
		for _, list := range k.deviated {
			for _, d := range list {
				deviations[d]++
			}
		}
		switch {
		case k.err != nil || i == len(kernel)-1 && t.Failed() || o.err != nil || len(differences) > 0:
			t.Errorf("round %d: spec against kernel: %v; against ours: %v; differences: %q", i, k.err, o.err, differences)
			r.kernel.tell(t, k)
			r.ours.tell(t, o)
			return
		case skewed:
			skews++
		default:
			equal++
		}
	}
	t.Logf("%d rounds: %d compared; %d in which the twins met changes and transmissions in another order, held against "+
		"the spec alone; deviations of the kernel: %v", len(kernel), equal, skews, deviations)
}
