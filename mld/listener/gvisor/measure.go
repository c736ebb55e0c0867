package main

import (
	"runtime"
	"time"

	"golang.org/x/sys/unix"
)

// A cost is what work has taken for each of its parts.
type cost struct{ ns, allocations, bytes float64 }

// measure does work that has so many parts.
func measure(parts int, work func()) cost {
	var before, after runtime.MemStats
	runtime.GC()
	runtime.ReadMemStats(&before)
	begin := threadTime()
	work()
	took := threadTime() - begin
	runtime.ReadMemStats(&after)
	n := float64(parts)
	return cost{
		ns:          float64(took) / n,
		allocations: float64(after.Mallocs-before.Mallocs) / n,
		bytes:       float64(after.TotalAlloc-before.TotalAlloc) / n,
	}
}

// threadTime is the processor time that the calling thread has had, to which the goroutine must be locked.
func threadTime() time.Duration {
	var t unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_THREAD_CPUTIME_ID, &t); err != nil {
		panic(err)
	}
	return time.Duration(t.Nano())
}

// kept is what the heap has grown by, in bytes, while build made something that it returns.
func kept[T any](build func() T) (bytes float64, built T) {
	var before, after runtime.MemStats
	runtime.GC()
	runtime.GC()
	runtime.ReadMemStats(&before)
	built = build()
	runtime.GC()
	runtime.GC()
	runtime.ReadMemStats(&after)
	return float64(after.HeapAlloc) - float64(before.HeapAlloc), built
}
