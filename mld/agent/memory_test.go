package agent

import (
	"fmt"
	"os"
	"runtime"
	"runtime/debug"
	"strings"
	"sync"
	"testing"

	"github.com/seed-aaab8e3a/cni-mld/netnslab"
)

// BenchmarkMemory measures what an idle agent takes: of the heap, of stacks, of what is resident, and descriptors.
func BenchmarkMemory(b *testing.B) {
	lab := netnslab.New(b)
	const pairs = 150
	var interfaces []*netnslab.Endpoint
	for i := range pairs {
		x, y := lab.Veth(lab.Node(fmt.Sprintf("x%d", i)), "eth0", lab.Node(fmt.Sprintf("y%d", i)), "eth0")
		interfaces = append(interfaces, x, y)
	}
	n := float64(len(interfaces))
	for b.Loop() {
		before := takeMemory(b)
		agents := make([]*Agent, len(interfaces))
		for i, e := range interfaces {
			var err error
			if agents[i], err = Start(Config{Netns: e.Node().Netns(), Index: e.Index()}); err != nil {
				b.Fatal(err)
			}
		}
		for _, a := range agents { // they have said all there is to say
			if err := a.WaitReported(b.Context()); err != nil {
				b.Fatal(err)
			}
		}
		after := takeMemory(b)
		b.ReportMetric((after.heap-before.heap)/n, "heap-B")
		b.ReportMetric((after.stack-before.stack)/n, "stack-B")
		b.ReportMetric((after.resident-before.resident)/n, "resident-B")
		b.ReportMetric((after.descriptors-before.descriptors)/n, "descriptors")
		b.ReportMetric((after.goroutines-before.goroutines)/n, "goroutines")
		var ends sync.WaitGroup
		for _, a := range agents {
			ends.Go(func() {
				a.Close()
				<-a.Done()
			})
		}
		ends.Wait()
	}
	b.ReportMetric(0, "ns/op")
}

type memory struct{ heap, stack, resident, descriptors, goroutines float64 }

func takeMemory(b *testing.B) (m memory) {
	debug.FreeOSMemory()
	debug.FreeOSMemory() // what pools had is gone with the second one
	var s runtime.MemStats
	runtime.ReadMemStats(&s)
	m.heap, m.stack = float64(s.HeapAlloc), float64(s.StackInuse)
	status, err := os.ReadFile("/proc/self/status")
	if err != nil {
		b.Fatal(err)
	}
	_, line, _ := strings.Cut(string(status), "VmRSS:")
	if _, err := fmt.Sscan(line, &m.resident); err != nil {
		b.Fatal(err)
	}
	m.resident *= 1024
	fds, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		b.Fatal(err)
	}
	m.descriptors, m.goroutines = float64(len(fds)), float64(runtime.NumGoroutine())
	return m
}
