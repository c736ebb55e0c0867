package e2e

import (
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"
)

// samples are durations of several kinds, measured in turn so that whatever else the machine does falls on all of them
// alike.
type samples struct {
	names  []string
	values map[string][]time.Duration
}

func (s *samples) add(name string, d time.Duration) {
	if s.values == nil {
		s.values = map[string][]time.Duration{}
	}
	if s.values[name] == nil {
		s.names = append(s.names, name)
	}
	s.values[name] = append(s.values[name], d)
}

// time measures one call.
func (s *samples) time(b *testing.B, name string, call func() error) {
	b.Helper()
	begin := time.Now()
	if err := call(); err != nil {
		b.Fatalf("%s: %v", name, err)
	}
	s.add(name, time.Since(begin))
}

// report gives the median of each kind in milliseconds.
func (s *samples) report(b *testing.B) {
	b.ReportMetric(0, "ns/op") // the mean of a round says nothing
	for _, name := range s.names {
		b.ReportMetric(milliseconds(quantile(s.values[name], 0.5)), name+"-ms")
	}
}

// table is every kind with its median and the 95th percentile.
func (s *samples) table() string {
	var t strings.Builder
	fmt.Fprintf(&t, "%-20s %10s %10s\n", "ms", "median", "95 %")
	for _, name := range s.names {
		v := s.values[name]
		fmt.Fprintf(&t, "%-20s %10.3f %10.3f\n", name, milliseconds(quantile(v, 0.5)), milliseconds(quantile(v, 0.95)))
	}
	return t.String()
}

// tableBeside is table with what each kind adds to another one.
func (s *samples) tableBeside(than string) string {
	var t strings.Builder
	fmt.Fprintf(&t, "%-20s %10s %10s %10s\n", "ms", "median", "95 %", "added")
	for _, name := range s.names {
		v := s.values[name]
		fmt.Fprintf(&t, "%-20s %10.3f %10.3f %10.3f\n", name, milliseconds(quantile(v, 0.5)), milliseconds(quantile(v, 0.95)),
			milliseconds(s.added(name, than)))
	}
	return t.String()
}

// median is that of the kind's samples.
func (s *samples) median(name string) time.Duration { return quantile(s.values[name], 0.5) }

// added is the median of what a kind takes longer than another one in the same round.
func (s *samples) added(name, than string) time.Duration {
	more := make([]time.Duration, len(s.values[name]))
	for i, d := range s.values[name] {
		more[i] = d - s.values[than][i]
	}
	return quantile(more, 0.5)
}

func quantile(v []time.Duration, q float64) time.Duration {
	sorted := slices.Sorted(slices.Values(v))
	return sorted[min(int(q*float64(len(sorted))), len(sorted)-1)]
}

func milliseconds(d time.Duration) float64 { return float64(d) / float64(time.Millisecond) }

// slack is what a median may miss its goal by, for the machine is not ours alone.
const slack = 1.25

// tell reports a ratio.
func tell(b *testing.B, what string, d, of time.Duration) float64 {
	ratio := float64(d) / float64(of)
	b.ReportMetric(ratio, what)
	return ratio
}

// hold reports a ratio and fails where it misses its goal.
func hold(b *testing.B, what string, d, of time.Duration, goal float64) {
	b.Helper()
	if ratio := tell(b, what, d, of); ratio > goal*slack {
		b.Errorf("%s: %v / %v = %.2f: the goal is %.2f", what, d, of, ratio, goal)
	}
}
