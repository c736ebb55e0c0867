package listener_test

import (
	"fmt"
	"math/rand/v2"
	"testing"
	"time"

	"github.com/seed-aaab8e3a/cni-mld/mld"
	"github.com/seed-aaab8e3a/cni-mld/mld/listener"
)

// benchmark runs a benchmark for both versions and listeners of all sizes.
func benchmark(b *testing.B, run func(b *testing.B, version mld.Version, n int)) {
	for _, version := range []mld.Version{mld.Version1, mld.Version2} {
		for _, n := range []int{100, 10_000, 1_000_000} {
			b.Run(fmt.Sprintf("v%d/%d", version, n), func(b *testing.B) {
				b.ReportAllocs()
				run(b, version, n)
				b.ReportMetric(float64(b.Elapsed())/float64(b.N)/float64(n), "ns/address")
			})
		}
	}
}

// BenchmarkListen joins so many addresses one after the other, each with its Report built and its repeat pending.
func BenchmarkListen(b *testing.B) {
	benchmark(b, func(b *testing.B, version mld.Version, n int) {
		for b.Loop() {
			benchListener(b, listener.Config{Version: version}, n)
		}
	})
}

// BenchmarkGeneralQuery answers a General Query for so many addresses, to the last Report built. The caller comes
// back at most once a millisecond, as with a timer of the Go runtime.
func BenchmarkGeneralQuery(b *testing.B) {
	benchmark(b, func(b *testing.B, version mld.Version, n int) {
		l := benchListener(b, listener.Config{Version: version, Robustness: 1}, n)
		query := generalQuery(10000)
		if version == mld.Version2 {
			query = generalQueryV2(10*time.Second, 1, 125)
		}
		now := epoch
		for b.Loop() {
			l.Receive(now, other, query)
			reported := 0
			for deadline, ok := l.NextDeadline(); ok; deadline, ok = l.NextDeadline() {
				if deadline.After(now) {
					now = deadline.Add(time.Millisecond)
				}
				l.Advance(now)
				for p := range l.Outgoing() {
					reported += max(p.Records, 1)
				}
			}
			if reported != n {
				b.Fatalf("%d addresses were reported, want %d", reported, n)
			}
		}
	})
}

func benchListener(b *testing.B, cfg listener.Config, n int) *listener.Listener {
	l, err := listener.New(cfg, rand.New(rand.NewPCG(1, 2)))
	if err != nil {
		b.Fatal(err)
	}
	l.SetSource(epoch, own)
	for i := range n {
		if err := l.Listen(epoch, 1, address(i), listener.AnySource); err != nil {
			b.Fatal(err)
		}
		for range l.Outgoing() {
		}
	}
	return l
}
