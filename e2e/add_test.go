package e2e

import (
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/seed-aaab8e3a/cni-mld/e2e/chain"
	"github.com/seed-aaab8e3a/cni-mld/plugin/api"
)

// What mld is measured beside: nothing, the least that a program can do, a plugin that does nothing, the same with one
// unix call, and the reference plugin that sets a sysctl.
const (
	alone  = "bridge"
	least  = "least"
	noop   = "noop"
	call   = "call"
	tuning = "tuning"
	ours   = "mld"
)

// goalCall is the goal for the median, as a part of what the plugin with one call adds to the chain. What tuning adds is
// little more than what it takes to start a process: how much of it the least of programs adds is told beside.
const goalCall = 1.3

// BenchmarkAdd measures what mld adds to a chain, its daemon at work already and readiness apart, beside its peers.
func BenchmarkAdd(b *testing.B) {
	s := newSegment(b, quiet, nil)
	ctx := b.Context()
	if err := chain.BuildPeers(ctx, s.bin); err != nil {
		b.Fatal(err)
	}
	// In memory, where run directories are: the daemon syncs what it remembers to the disk.
	dir, err := os.MkdirTemp("/run", "add-")
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() { _ = os.RemoveAll(dir) })
	echo := s.echo(b)
	configs := map[string]chain.Config{
		alone: {},
		tuning: {Peer: map[string]any{
			"type": "tuning", "dataDir": filepath.Join(dir, "tuning"),
			"sysctl": map[string]string{"net.ipv6.conf.IFNAME.accept_ra": "0"},
		}},
		least: {Peer: map[string]any{"type": "least"}},
		noop:  {Peer: map[string]any{"type": "noop"}},
		call:  {Peer: map[string]any{"type": "noop", "socket": echo}},
		ours:  {MLD: map[string]any{"groups": []netip.Addr{groupA}, "ready": map[string]string{"wait": "none"}}},
	}
	names := []string{alone, least, noop, call, tuning, ours}
	chains := map[string]*chain.Chain{}
	for _, name := range names {
		c := configs[name]
		c.Host, c.Bin, c.Dir, c.Bridge = s.Host(), s.bin, filepath.Join(dir, name), "cni0"
		if chains[name], err = chain.New(c); err != nil {
			b.Fatal(err)
		}
	}
	s.chain = chains[ours]
	// Starts the daemon, and stays: a host has other containers, and the first rule of all costs the kernel more.
	other := s.Node("other")
	if err := second(s.chain.Add(ctx, other)); err != nil {
		b.Fatal(err)
	}
	defer func() { // before its run directory goes
		if err := errors.Join(s.chain.Del(ctx, other), s.chain.Stop(ctx)); err != nil {
			b.Error(err)
		}
	}()

	b.Run("Chain", func(b *testing.B) {
		var adds, dels samples
		for i := 0; b.Loop(); i++ {
			for k := range names {
				name := names[(i+k)%len(names)]
				n := s.Node(fmt.Sprintf("c%d%s", i, name))
				adds.time(b, name, func() error { return second(chains[name].Add(ctx, n)) })
				dels.time(b, name, func() error { return chains[name].Del(ctx, n) })
			}
		}
		show("in a chain, ADD", adds.tableBeside(alone), "DEL", dels.tableBeside(alone))
		b.ReportMetric(0, "ns/op")
		tell(b, "ADD-mld/tuning", adds.added(ours, alone), adds.added(tuning, alone))
		tell(b, "ADD-noop/tuning", adds.added(noop, alone), adds.added(tuning, alone))
		tell(b, "ADD-least/tuning", adds.added(least, alone), adds.added(tuning, alone))
		hold(b, "ADD-mld/call", adds.added(ours, alone), adds.added(call, alone), goalCall)
		tell(b, "DEL-mld/tuning", dels.added(ours, alone), dels.added(tuning, alone))
		hold(b, "DEL-mld/call", dels.added(ours, alone), dels.added(call, alone), goalCall)
	})
	b.Run("Plugin", func(b *testing.B) {
		var adds, dels samples
		for i := 0; b.Loop(); i++ {
			for k := range names[1:] {
				name := names[1+(i+k)%len(names[1:])]
				n := s.Node(fmt.Sprintf("p%d%s", i, name))
				eth0 := s.bridge.Connect(n, chain.IfName)
				add := chain.Call{Command: "ADD", ContainerID: n.Name(), Netns: n.Path()}
				adds.time(b, name, func() error { return second(chains[name].Run(ctx, add)) })
				del := chain.Call{Command: "DEL", ContainerID: n.Name(), Netns: n.Path()}
				dels.time(b, name, func() error { return second(chains[name].Run(ctx, del)) })
				eth0.Delete()
			}
		}
		show("by itself, ADD", adds.table(), "DEL", dels.table())
		b.ReportMetric(0, "ns/op")
		tell(b, "ADD-mld/tuning", adds.median(ours), adds.median(tuning))
		tell(b, "ADD-noop/tuning", adds.median(noop), adds.median(tuning))
		tell(b, "ADD-least/tuning", adds.median(least), adds.median(tuning))
		hold(b, "ADD-mld/call", adds.median(ours), adds.median(call), goalCall)
	})
	b.Run("Call", func(b *testing.B) { s.measureCall(b, echo) })
}

// show prints tables, each after its title. A benchmark's log would be cut to ten lines.
func show(parts ...string) { fmt.Fprintf(os.Stderr, "\n%s\n", strings.Join(parts, "\n")) }

// second is the error of a call whose result nobody wants.
func second[T any](_ T, err error) error { return err }

// echo answers each line of one client at a time with the same line, and returns the path of the socket.
func (s *segment) echo(b *testing.B) string {
	b.Helper()
	path := filepath.Join(s.dir, "echo.sock")
	l, err := net.Listen("unix", path)
	if err != nil {
		b.Fatal(err)
	}
	served := make(chan struct{})
	go func() {
		defer close(served)
		for {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			_, _ = io.Copy(conn, conn)
			_ = conn.Close()
		}
	}()
	b.Cleanup(func() {
		_ = l.Close()
		<-served
	})
	return path
}

// The goals for the median of a call: over a connection that stands, and as the first thing of a new process, there as a
// part of what a line takes that is only echoed.
const (
	goalWarm  = 120 * time.Microsecond
	goalFresh = 350. / 270
)

// measureCall measures a call to the daemon that changes nothing: over a connection that stands, and the first one of a new
// process, beside a line that is only echoed there.
func (s *segment) measureCall(b *testing.B, echo string) {
	ctx := b.Context()
	var found samples
	took := filepath.Join(s.dir, "took")
	fresh := func(name string, keys map[string]any) {
		keys["type"], keys["took"] = "noop", took
		c, err := chain.New(chain.Config{
			Host: s.Host(), Bin: s.bin, Dir: filepath.Join(s.dir, name), Bridge: "cni0", Peer: keys,
		})
		if err == nil {
			_, err = c.Run(ctx, chain.Call{Command: "DEL", ContainerID: "nobody"})
		}
		if err != nil {
			b.Fatal(err)
		}
		text, err := os.ReadFile(took)
		if err != nil {
			b.Fatal(err)
		}
		d, err := time.ParseDuration(string(text))
		if err != nil {
			b.Fatal(err)
		}
		found.add(name, d)
	}
	request := &api.Request{Op: api.OpDel, Attachment: api.Attachment{Network: "lab", ContainerID: "nobody", IfName: chain.IfName}}
	exchange := func(c *api.Client) error {
		answer, err := c.Call(ctx, request)
		if err == nil && answer.Error != nil {
			err = answer.Error
		}
		return err
	}
	for b.Loop() {
		standing, err := api.Dial(s.chain.RunDir)
		if err != nil {
			b.Fatal(err)
		}
		const inARow = 20 // of the first ones the caches know nothing
		for range inARow {
			found.time(b, "warm", func() error { return exchange(standing) })
		}
		standing.Close()
		fresh("fresh", map[string]any{"runDir": s.chain.RunDir})
		fresh("fresh echo", map[string]any{"socket": echo})
	}
	show("a call", found.table())
	b.ReportMetric(0, "ns/op")
	hold(b, "warm/120us", found.median("warm"), goalWarm, 1)
	hold(b, "fresh/echo", found.median("fresh"), found.median("fresh echo"), goalFresh)
}
