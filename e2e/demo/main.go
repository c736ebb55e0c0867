// The command demo shows the whole system at work: it makes a bridge and three containers in network namespaces of
// its own, attaches them through a real CNI chain, sends data, shows what is asked, reported, known to the bridge
// and forwarded, and takes everything down. It exits with 1 if anything is not as it should be.
package main

import (
	"context"
	"fmt"
	"io"
	"os"
	"os/signal"
	"time"

	"github.com/seed-aaab8e3a/cni-mld/netnslab"
)

// ceiling is how long the demonstration may take.
const ceiling = 2 * time.Minute

func main() { os.Exit(run()) }

func run() (code int) {
	if err := netnslab.Enter(); err != nil {
		fmt.Fprintln(os.Stderr, "demo:", err)
		return 1
	}
	ctx, cancel := context.WithTimeout(context.Background(), ceiling)
	defer cancel()
	ctx, stop := signal.NotifyContext(ctx, os.Interrupt)
	defer stop()
	p := &program{out: os.Stdout}
	p.run(func() { demonstrate(ctx, p) })
	return min(p.failed, 1)
}

// A program is what a test is to a lab, and prints the story.
type program struct {
	out      io.Writer
	cleanups []func()
	steps    int
	checked  int
	failed   int
}

// quit is the panic by which Fatalf ends the story.
type quit struct{}

// run tells the story, and takes down what it has built however it ends.
func (p *program) run(story func()) {
	begin := time.Now()
	p.protect(story)
	for i := len(p.cleanups) - 1; i >= 0; i-- {
		p.protect(p.cleanups[i])
	}
	verdict := "everything as it should be"
	if p.failed > 0 {
		verdict = fmt.Sprintf("%d NOT AS THEY SHOULD BE", p.failed)
	}
	p.printf("\n%d checks, %s; all taken down after %.0f s\n", p.checked, verdict, time.Since(begin).Seconds())
}

func (p *program) protect(f func()) {
	defer func() {
		if r := recover(); r != nil && r != (quit{}) {
			panic(r)
		}
	}()
	f()
}

func (p *program) printf(format string, args ...any) { fmt.Fprintf(p.out, format, args...) }

// step begins a chapter.
func (p *program) step(title string) {
	p.steps++
	p.printf("\n%d  %s\n", p.steps, title)
}

// check prints whether something is as it should be.
func (p *program) check(ok bool, format string, args ...any) {
	p.checked++
	mark := "ok  "
	if !ok {
		mark = "NOT "
		p.failed++
	}
	p.printf("   %s %s\n", mark, fmt.Sprintf(format, args...))
}

// must ends the story if err is not nil.
func (p *program) must(what string, err error) {
	if err != nil {
		p.Fatalf("%s: %v", what, err)
	}
}

// The methods of netnslab.TB.

func (p *program) Helper()          {}
func (p *program) Name() string     { return "demo" }
func (p *program) Failed() bool     { return p.failed > 0 }
func (p *program) Cleanup(f func()) { p.cleanups = append(p.cleanups, f) }

func (p *program) Logf(format string, args ...any) { p.printf("   "+format+"\n", args...) }

func (p *program) Errorf(format string, args ...any) { p.check(false, format, args...) }

func (p *program) Fatalf(format string, args ...any) {
	p.check(false, format, args...)
	panic(quit{})
}

// Skipf is a failure: a demonstration that shows nothing has not shown anything.
func (p *program) Skipf(format string, args ...any) { p.Fatalf(format, args...) }
