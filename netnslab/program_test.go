package netnslab_test

import (
	"context"
	"fmt"
	"os"
	"runtime"
	"slices"
	"strings"
	"sync"

	"github.com/seed-aaab8e3a/cni-mld/netnslab"
)

// A program is what a lab needs from a program that is not a test.
type program struct {
	name string

	mu       sync.Mutex
	failed   bool
	skipped  bool
	log      strings.Builder
	cleanups []func()
}

var _ netnslab.TB = (*program)(nil)

func (*program) Helper()                  {}
func (p *program) Name() string           { return p.name }
func (*program) Context() context.Context { return context.Background() }

func (p *program) Logf(format string, args ...any) {
	p.mu.Lock()
	defer p.mu.Unlock()
	fmt.Fprintf(&p.log, format+"\n", args...)
}

func (p *program) Errorf(format string, args ...any) {
	p.Logf(format, args...)
	p.mu.Lock()
	defer p.mu.Unlock()
	p.failed = true
}

func (p *program) Fatalf(format string, args ...any) { p.Errorf(format, args...); runtime.Goexit() }

func (p *program) Skipf(format string, args ...any) {
	p.Logf(format, args...)
	p.skipped = true
	runtime.Goexit()
}

func (p *program) Failed() bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.failed
}

func (p *program) Cleanup(fn func()) { p.cleanups = append(p.cleanups, fn) }

// end tears everything down, the last first.
func (p *program) end() {
	for _, fn := range slices.Backward(p.cleanups) {
		fn()
	}
}

// run runs a body the way testing runs a test, to its end or to its Fatalf, and removes the evidence.
func run(body func(*program)) *program {
	p := &program{name: "program"}
	done := make(chan struct{})
	go func() {
		defer close(done)
		defer p.end()
		body(p)
	}()
	<-done
	if _, rest, ok := strings.Cut(p.log.String(), "the evidence is in "); ok {
		dir, _, _ := strings.Cut(rest, "\n")
		_ = os.RemoveAll(dir)
	}
	return p
}
