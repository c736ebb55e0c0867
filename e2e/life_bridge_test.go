package e2e

import (
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"testing"
	"time"

	"github.com/seed-aaab8e3a/cni-mld/mld"
	"github.com/seed-aaab8e3a/cni-mld/netnslab"
	"github.com/seed-aaab8e3a/cni-mld/plugin/api"
)

// The other end of the container's link is plugged in elsewhere. Nothing of that is seen in the container, so nothing is
// said until somebody asks: the new bridge does at once if it is a querier, and another querier with its next Query.
func TestV2_36_B7_LifeElsewhere(t *testing.T) {
	t.Parallel()
	master := func(l *life, bridge string) {
		l.run("ip", "link", "set", "dev", l.alice.eth0.Peer().Name(), "master", bridge)
	}
	another := func(l *life, options netnslab.BridgeOptions) *container {
		bridge := l.Lab.Bridge("cni1", options)
		node := l.Node("elsewhere")
		sender := newContainer(l.tb, node, bridge.Connect(node, "eth0"))
		sender.eth0.AddAddr(netip.PrefixFrom(goodAddr, 64))
		sender.eth0.LinkLocal()
		return sender
	}
	for _, c := range []struct {
		name   string
		bridge string // where to
		move   func(l *life) (sender *container)
		asks   func(l *life, sender *container) // nil: the bridge asks by itself
	}{
		{
			name: "another bridge, a querier", bridge: "cni1",
			move: func(l *life) *container {
				sender := another(l, voices[l.voice].bridge)
				master(l, "cni1")
				return sender
			},
		},
		{
			name: "another bridge with another querier", bridge: "cni1",
			move: func(l *life) *container {
				sender := another(l, netnslab.BridgeOptions{})
				if l.version == mld.Version2 {
					l.run("ip", "link", "set", "dev", "cni1", "type", "bridge", "mcast_mld_version", "2")
				}
				l.wait("querier", func() (bool, string) {
					l.sendFrom(sender, l.version, 10*time.Millisecond)
					s, err := sender.eth0.Port().State()
					return err == nil && s.Querier, ""
				})
				master(l, "cni1")
				return sender
			},
			asks: func(l *life, sender *container) {
				l.answered() // here, what the former bridge has asked last
				l.wait("end of the entries", func() (bool, string) {
					entered := l.entered("cni1")
					maps.DeleteFunc(entered, func(_ netip.Addr, ok bool) bool { return !ok })
					l.forget("cni1", slices.Collect(maps.Keys(entered))...)
					return len(entered) == 0, fmt.Sprint(entered)
				})
				l.check("before the next Query", api.CodeNotReady, "cni1 port", "no entry for")
				l.sendFrom(sender, l.version, 100*time.Millisecond)
			},
		},
		{
			name: "off the bridge and on again", bridge: "cni0",
			move: func(l *life) *container {
				l.run("ip", "link", "set", "dev", l.alice.eth0.Peer().Name(), "nomaster")
				master(l, "cni0")
				return l.good
			},
		},
		{
			name: "snooping off and on", bridge: "cni0",
			move: func(l *life) *container {
				l.forget("cni0", groupA, groupC, groupD) // as if they had aged meanwhile
				l.run("ip", "link", "set", "dev", "cni0", "type", "bridge", "mcast_snooping", "0")
				l.check("without snooping", 0)
				l.received(l.good)
				l.run("ip", "link", "set", "dev", "cni0", "type", "bridge", "mcast_snooping", "1")
				return l.good
			},
		},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			inEachVoice(t, func(t *testing.T, l *life) {
				begin := time.Now()
				sender := c.move(l)
				asked := time.Now()
				if c.asks != nil {
					c.asks(l, sender)
				}
				took := l.waitEntered(c.bridge, asked)
				l.check("afterwards", 0)
				kinds := l.judgeAll(begin, l.wanted(), false, c.bridge == "cni0")
				t.Logf("entries after %v: %v; General Queries: %d", took.Round(time.Millisecond), kinds, l.queries(begin))
				l.forwarded(c.bridge, sender)
			})
		})
	}
}

// The bridge's querier speaks another version, and the first one again. The listener follows, at once to the older one,
// and back when nobody speaks that any more; what is wanted stays so, and is told when somebody asks (V2-66, V2-67).
func TestV2_49_V2_54_V2_66_V2_67_LifeOfVersions(t *testing.T) {
	t.Parallel()
	l := liveOn(t, "MLDv2", netnslab.BridgeOptions{
		Querier: 2, QueryInterval: time.Second, QueryResponseInterval: 200 * time.Millisecond, StartupQueryCount: 1,
	}, nil)
	ready := time.Now()
	l.wait("Query of the bridge's", func() (bool, string) { // from which the time of version 1 is computed, and not from the router's
		return slices.ContainsFunc(l.alice.heard.Frames(), func(f netnslab.Frame) bool {
			if f.ICMPv6() != 130 || !f.Time.After(ready) {
				return false
			}
			p, err := mld.Parse(f.IPv6(), 0)
			return err == nil && p.Src != routerAddr && p.Message.Version == mld.Version2
		}), ""
	})
	l.waitKind("answer of version 2", ready, reportV2)
	begin := time.Now()
	l.run("ip", "link", "set", "dev", "cni0", "type", "bridge", "mcast_mld_version", "1")
	l.waitKind("answer of version 1", begin, report)
	older := time.Now()
	l.check("version 1", 0)
	l.waitKind("another answer of version 1", older, report)
	for _, s := range l.said(older) {
		if s.kind != "Report" {
			t.Errorf("in version 1: %v", s)
		}
	}
	l.received(l.good)

	back := time.Now()
	l.run("ip", "link", "set", "dev", "cni0", "type", "bridge", "mcast_mld_version", "2")
	first := l.waitKind("answer of version 2 again", back, reportV2)
	l.waitFrames("all answers of version 2 again", l.alice.heard, l.own, first, l.wanted(), 1)
	l.check("version 2", 0)
	l.settle()
	for _, s := range l.said(begin) {
		if s.leave() || s.news() && s.kind != "Report" {
			t.Errorf("a change of what is wanted: %v", s)
		}
		if s.kind == "Report" && s.time.After(first) {
			t.Errorf("version 1 after version 2: %v", s)
		}
	}
	if _, kernel := l.counted(); kernel != 0 {
		t.Errorf("%d messages of the kernel's have left the interface", kernel)
	}
	t.Logf("version 1 after %v, version 2 again after %v", older.Sub(begin).Round(time.Millisecond), first.Sub(back).Round(time.Millisecond))
	l.forwarded("cni0", l.good)
}

// waitKind waits for a message of a type, about all the groups that are declared, and returns when it was sent.
func (l *life) waitKind(what string, since time.Time, kind uint8) (at time.Time) {
	l.tb.Helper()
	l.wait(what, func() (bool, string) {
		i := slices.IndexFunc(l.alice.heard.Frames(), func(f netnslab.Frame) bool {
			return l.own(f) && !f.Time.Before(since) && f.ICMPv6() == kind
		})
		if i >= 0 {
			at = l.alice.heard.Frames()[i].Time
		}
		return i >= 0, ""
	})
	return at
}

// A querier comes to a segment that has none, asks often, changes its version, and goes. Its Queries are answered, and
// nothing else is said.
func TestV2_36_B1_LifeOfAQuerier(t *testing.T) {
	t.Parallel()
	l := liveOn(t, "MLDv2", netnslab.BridgeOptions{QuerierInterval: 2 * time.Second, QueryResponseInterval: 100 * time.Millisecond}, nil)
	l.run("ip", "link", "set", "dev", "cni0", "type", "bridge", "mcast_mld_version", "2")
	const delay = 100 * time.Millisecond
	l.wait("end of the first querier", func() (bool, string) { return l.bridge.Floods(), "" })
	l.check("without a querier", 0)
	l.received(l.good)

	start := time.Now()
	var older time.Time // the last Query of version 1
	for _, step := range []struct {
		name    string
		version mld.Version
		kind    uint8
		queries int
	}{
		{"it appears", mld.Version2, reportV2, 1},
		{"it restarts", mld.Version2, reportV2, 3},
		{"it speaks version 1", mld.Version1, report, 1},
		{"and restarts", mld.Version1, report, 3},
		{"it speaks version 2, but a moment ago it did not", mld.Version2, report, 1}, // V2-54
	} {
		begin := time.Now()
		for range step.queries {
			l.send(step.version, delay)
		}
		if step.version == mld.Version1 {
			older = time.Now()
		}
		l.waitFrames(step.name, l.alice.heard, l.own, begin, l.wanted(), 1)
		if step.kind == report {
			l.waitKind(step.name, begin, report)
		}
		l.check(step.name, 0)
	}
	var again time.Time
	l.wait("answer of version 2", func() (bool, string) {
		l.send(mld.Version2, delay)
		for _, f := range l.alice.heard.Frames() {
			if l.own(f) && f.ICMPv6() == reportV2 && f.Time.After(older.Add(late)) {
				again = f.Time
				return true, ""
			}
		}
		return false, ""
	})
	t.Logf("version 2 again %v after the last Query of version 1", again.Sub(older).Round(time.Millisecond))
	l.settle()
	counts := make(map[netip.Addr]int)
	for _, s := range l.said(start) {
		counts[s.addr]++
		if s.leave() || s.news() && s.kind != "Report" {
			t.Errorf("said without need: %v", s)
		}
	}
	for addr, n := range counts {
		if queries := l.queries(start); n > queries {
			t.Errorf("%v was told %d times for %d Queries", addr, n, queries)
		}
	}
	l.forwarded("cni0", l.good)

	l.wait("end of the querier", func() (bool, string) { return l.bridge.Floods(), "" })
	l.check("without a querier again", 0)
	l.received(l.good)
	if _, kernel := l.counted(); kernel != 0 {
		t.Errorf("%d messages of the kernel's have left the interface", kernel)
	}
}
