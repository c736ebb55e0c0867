package listener_test

import (
	"fmt"
	"math/rand/v2"
	"testing"
	"time"

	"github.com/seed-aaab8e3a/cni-mld/mld"
	"github.com/seed-aaab8e3a/cni-mld/mld/listener"
)

var benchSizes = []int{100, 10_000, 1_000_000}

// BenchmarkListen joins so many addresses one after the other, each with its Report built and its repeat pending.
func BenchmarkListen(b *testing.B) {
	for _, n := range benchSizes {
		b.Run(fmt.Sprint(n), func(b *testing.B) {
			b.ReportAllocs()
			for b.Loop() {
				benchListener(b, listener.Config{Version: mld.Version1}, n)
			}
			perAddress(b, n)
		})
	}
}

// BenchmarkGeneralQuery answers a General Query for so many addresses, to the last Report built. The caller comes
// back at most once a millisecond, as with a timer of the Go runtime.
func BenchmarkGeneralQuery(b *testing.B) {
	for _, n := range benchSizes {
		b.Run(fmt.Sprint(n), func(b *testing.B) {
			l := benchListener(b, listener.Config{Version: mld.Version1, Robustness: 1}, n)
			now := epoch
			b.ReportAllocs()
			for b.Loop() {
				l.Receive(now, other, generalQuery(10000))
				reports := 0
				for deadline, ok := l.NextDeadline(); ok; deadline, ok = l.NextDeadline() {
					if deadline.After(now) {
						now = deadline.Add(time.Millisecond)
					}
					l.Advance(now)
					for range l.Outgoing() {
						reports++
					}
				}
				if reports != n {
					b.Fatalf("%d Reports, want %d", reports, n)
				}
			}
			perAddress(b, n)
		})
	}
}

func perAddress(b *testing.B, n int) {
	b.ReportMetric(float64(b.Elapsed())/float64(b.N)/float64(n), "ns/address")
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
