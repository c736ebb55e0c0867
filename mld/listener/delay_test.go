package listener_test

import (
	"fmt"
	"math"
	"math/rand/v2"
	"net/netip"
	"slices"
	"testing"
	"time"

	"github.com/seed-aaab8e3a/cni-mld/mld"
	"github.com/seed-aaab8e3a/cni-mld/mld/listener"
)

const drawn = 20_000 // delays in a sample

// delays has many addresses reported and returns how long after at each of the Reports left, in the order of the
// addresses.
func delays(t *testing.T, l *listener.Listener, at time.Duration) []time.Duration {
	t.Helper()
	after := map[netip.Addr]time.Duration{}
	now := at
	for {
		deadline, ok := l.NextDeadline()
		if !ok {
			break
		}
		now = max(now, deadline.Sub(epoch))
		l.Advance(epoch.Add(now))
		for p := range l.Outgoing() {
			if _, twice := after[p.Addr]; twice {
				t.Fatalf("%v is reported twice", p.Addr)
			}
			after[p.Addr] = now - at
		}
	}
	all := make([]time.Duration, 0, drawn)
	for i := range drawn {
		d, ok := after[address(i)]
		if !ok {
			t.Fatalf("%v is not reported", address(i))
		}
		all = append(all, d)
	}
	return all
}

// listening returns a listener to the addresses of a sample, just joined.
func listening(t *testing.T, cfg listener.Config) *listener.Listener {
	t.Helper()
	l, err := listener.New(cfg, rand.New(rand.NewPCG(2710, 5)))
	if err != nil {
		t.Fatal(err)
	}
	l.SetSource(epoch, own)
	for i := range drawn {
		if err := l.Listen(epoch, 1, address(i), listener.AnySource); err != nil {
			t.Fatal(err)
		}
	}
	for range l.Outgoing() {
	}
	return l
}

// kolmogorovSmirnov is the largest distance between the distribution of a sample and the uniform one on (0, top].
func kolmogorovSmirnov(sample []time.Duration, top time.Duration) float64 {
	sorted := slices.Sorted(slices.Values(sample))
	n, d := float64(len(sorted)), 0.0
	for i, v := range sorted {
		f := float64(v) / float64(top)
		d = max(d, math.Abs(f-float64(i)/n), math.Abs(float64(i+1)/n-f))
	}
	return d
}

// serialCorrelation is that of each delay of a sample with the next one.
func serialCorrelation(sample []time.Duration) float64 {
	n, mean := float64(len(sample)), 0.0
	for _, v := range sample {
		mean += float64(v) / n
	}
	var cov, square float64
	for i, v := range sample {
		square += (float64(v) - mean) * (float64(v) - mean)
		if i > 0 {
			cov += (float64(v) - mean) * (float64(sample[i-1]) - mean)
		}
	}
	return cov / square
}

// checkUniform wants a sample to be spread evenly over (0, top], its draws independent of one another. The bounds
// are those that one honest sample in a thousand fails; the seed is fixed.
func checkUniform(t *testing.T, sample []time.Duration, top time.Duration) {
	t.Helper()
	if lo, hi := slices.Min(sample), slices.Max(sample); lo <= 0 || hi > top {
		t.Errorf("the delays go from %v to %v, want (0, %v]", lo, hi, top)
	}
	root := math.Sqrt(float64(len(sample)))
	if d := kolmogorovSmirnov(sample, top); d > 1.95/root {
		t.Errorf("the delays are %.5f away from an even spread over (0, %v], want at most %.5f", d, top, 1.95/root)
	}
	if c := serialCorrelation(sample); math.Abs(c) > 3.29/root {
		t.Errorf("the delays of neighbours have correlation %.5f, want at most %.5f", c, 3.29/root)
	}
}

func TestV1_13_V1_26_AnswersAreSpreadEvenly(t *testing.T) {
	for _, ms := range []uint16{1, 50, 199, 200, 999, 10000, 65535} {
		t.Run(fmt.Sprintf("%dms", ms), func(t *testing.T) {
			l := listening(t, listener.Config{Version: mld.Version1, Robustness: 1})
			mrd := time.Duration(ms) * time.Millisecond
			l.Receive(epoch.Add(time.Minute), other, generalQuery(ms))
			checkUniform(t, delays(t, l, time.Minute), mrd-min(5*time.Millisecond, mrd/4))
		})
	}
}

// A timer that a Query pulls forward is drawn anew from the whole of the new range.
func TestV1_14_AnswersPulledForwardAreSpreadEvenly(t *testing.T) {
	l := listening(t, listener.Config{Version: mld.Version1, Robustness: 1})
	l.Receive(epoch, other, generalQuery(65535))
	for deadline, _ := l.NextDeadline(); deadline.Before(epoch); deadline, _ = l.NextDeadline() {
		l.Advance(epoch)
	}
	after := make([]time.Duration, 0, drawn)
	l.Receive(epoch, other, generalQuery(100))
	for _, d := range delays(t, l, 0) {
		if d > 95*time.Millisecond {
			t.Fatalf("a pending Report waits for %v, although one was asked for within 100ms", d)
		}
		after = append(after, d)
	}
	// 95 of 65530 kept their times, which were below 100 ms already; that does not show in a sample.
	checkUniform(t, after, 95*time.Millisecond)
}

func TestV1_07_RepeatsAreSpreadEvenly(t *testing.T) {
	for _, interval := range []time.Duration{0, time.Second, time.Millisecond} {
		l := listening(t, listener.Config{Version: mld.Version1, UnsolicitedReportInterval: interval})
		if interval == 0 {
			interval = 10 * time.Second
		}
		checkUniform(t, delays(t, l, 0), interval)
	}
}

// checkTicks wants a sample to be spread evenly over 1 to n ticks, by the chi-square test at one in a thousand.
func checkTicks(t *testing.T, sample []time.Duration, n int) {
	t.Helper()
	const tick = 200 * time.Millisecond
	count := make([]int, n+1)
	for _, d := range sample {
		k := int(d / tick)
		if d%tick != 0 || k < 1 || k > n {
			t.Fatalf("a delay is %v, want 1 to %d ticks of %v", d, n, tick)
		}
		count[k]++
	}
	expected, chi := float64(len(sample))/float64(n), 0.0
	for _, c := range count[1:] {
		chi += (float64(c) - expected) * (float64(c) - expected) / expected
	}
	// Wilson and Hilferty's approximation of the quantile
	f := float64(n - 1)
	if bound := f * math.Pow(1-2/(9*f)+3.09*math.Sqrt(2/(9*f)), 3); n > 1 && chi > bound {
		t.Errorf("chi-square of the %d ticks is %.1f, want at most %.1f", n, chi, bound)
	}
}

func TestK08_K30_K31_K36_DelaysOnTheGrid(t *testing.T) {
	for ms, ticks := range map[uint16]int{1: 1, 50: 1, 199: 1, 200: 1, 399: 1, 400: 2, 999: 4, 1000: 5, 10000: 50, 65535: 327} {
		t.Run(fmt.Sprintf("%dms", ms), func(t *testing.T) {
			l := listening(t, listener.Config{Version: mld.Version1, Profile: listener.KAME})
			checkTicks(t, delays(t, l, 0), 50)
			l.Receive(epoch.Add(time.Minute), other, generalQuery(ms))
			checkTicks(t, delays(t, l, time.Minute), ticks)
		})
	}
}
