package agent

import (
	"errors"
	"fmt"
	"net/netip"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/seed-aaab8e3a/cni-mld/mld"
	"github.com/seed-aaab8e3a/cni-mld/mld/kernel"
	"github.com/seed-aaab8e3a/cni-mld/mld/link"
	"github.com/seed-aaab8e3a/cni-mld/mld/listener"
)

// textOf says what an observer is told.
func textOf(e Event) string {
	text := e.Kind.String()
	switch e.Kind {
	case EventJoined:
		text += fmt.Sprint(" ", e.Addr, " ", e.Filter)
	case EventLeft:
		text += fmt.Sprint(" ", e.Addr)
	case EventHeard:
		text += fmt.Sprint(" ", e.Heard.Message.Version, " ", e.Heard.Src)
	case EventSuppressed:
		text += fmt.Sprint(" ", e.Addr, " by ", e.Heard.Src)
	case EventSent:
		text += fmt.Sprint(" ", e.Sent.Addr, " ", e.Sent.Cause)
	case EventNotSent:
		text += fmt.Sprint(" ", e.Sent.Addr, " ", e.Err)
	case EventVersion:
		text += fmt.Sprint(" ", e.Version)
	case EventLink:
		text += fmt.Sprint(" ", e.Before.Up, " to ", e.Link.Up)
	case EventEnded:
		text += fmt.Sprint(", gone: ", errors.Is(e.Err, link.ErrGone)) // whichever reader was first
	}
	return text
}

// An observer is told everything in its order: first what has happened, and then what is done about it.
func TestObserve(t *testing.T) {
	var seen []string
	setup{auto: true, standing: joined(mld.AllNodes), observe: func(e Event) { seen = append(seen, textOf(e)) }}.run(t, func(r *rig) {
		want := func(what string, want ...string) {
			r.Helper()
			r.inside(func(*Agent) { // so that nobody is telling now
				if diff := cmp.Diff(want, seen); diff != "" {
					r.Errorf("%s (-want +got):\n%s", what, diff)
				}
				seen = nil
			})
		}
		want("begin", "link false to true", "joined ff02::1 {EXCLUDE []}")
		r.kernel.Tell(kernel.Change{Addr: group, Joined: true, Sources: []netip.Addr{netip.MustParseAddr("fd00::1")}})
		r.pass(time.Hour)
		want("join", "joined ff05::4321 {INCLUDE [fd00::1]}", "sent ff05::4321 changed", "sent ff05::4321 changed")
		r.router.Ask(netip.Addr{}, time.Second)
		r.pass(time.Second)
		want("query", "heard 1 fe80::99", "version 1", "sent ff05::4321 answer")
		r.router.Ask(netip.Addr{}, time.Second)
		r.port.Hear(mld.AppendReport(nil, peer, group), false)
		r.pass(time.Second)
		want("suppressed", "heard 1 fe80::99", "suppressed ff05::4321 by fe80::b")
		r.pass(time.Hour)
		want("no querier of MLDv1", "version 2")
		r.port.Refuse(errors.New("full"))
		r.listen(other, listener.AnySource)
		r.pass(time.Hour)
		want("refused", "sent ff05::8765 changed", "not sent ff05::8765 full", "sent ff05::8765 changed", "not sent ff05::8765 full")
		r.port.Refuse(nil)
		state := ready
		state.Up = false
		r.port.SetState(state)
		r.pass(0)
		r.kernel.Tell(left(group)...)
		r.pass(time.Hour)
		want("down", "link true to false", "left ff05::4321")
		r.port.End(link.ErrGone)
		r.ended(r.agent)
		if diff := cmp.Diff([]string{"ended, gone: true"}, seen); diff != "" {
			r.Errorf("gone (-want +got):\n%s", diff)
		}
	})
}

// What an observer is told costs no memory.
func TestObserveAllocatesNothing(t *testing.T) {
	n := 0
	a := &Agent{observe: func(Event) { n++ }}
	c := []kernel.Change{{Addr: group, Joined: true, Exclude: true}, {Addr: group}}
	a.voice.keep = true
	a.kernelChanged(time.Time{}, c) // makes the map
	if allocs := testing.AllocsPerRun(100, func() {
		a.kernelChanged(time.Time{}, c)
		a.notice(Event{Kind: EventSent, Sent: listener.Packet{Addr: group}})
	}); allocs != 0 || n == 0 {
		t.Errorf("%v allocations for %d events", allocs, n)
	}
}

// TestGroups: what is wanted by whom, and why it is not reported.
func TestGroups(t *testing.T) {
	for _, keep := range []bool{false, true} {
		setup{auto: true, keep: keep, standing: joined(mld.AllNodes, group)}.run(t, func(r *rig) {
			source := []netip.Addr{netip.MustParseAddr("fd00::1")}
			r.listen(group, listener.Filter{Mode: listener.Include, Sources: source})
			r.listen(other, listener.AnySource)
			want := func(what string, want ...string) {
				r.Helper()
				groups, err := r.agent.Groups(r.Context())
				if err != nil {
					r.Fatal(err)
				}
				var got []string
				for _, g := range groups {
					got = append(got, fmt.Sprintf("%v %v %v kernel:%v %s", g.Addr, g.Mode, g.Wanted, g.ByKernel, g.Words))
				}
				if diff := cmp.Diff(want, got); diff != "" {
					r.Errorf("%s, keep %v (-want +got):\n%s", what, keep, diff)
				}
			}
			text := func(why string) []string {
				return []string{
					fmt.Sprintf("ff02::1 EXCLUDE [{0 {EXCLUDE []}}] kernel:%v ff02::1 and addresses of scope 0 and 1 are never reported", keep),
					fmt.Sprintf("ff05::4321 EXCLUDE [{0 {EXCLUDE []}} {1 {INCLUDE [fd00::1]}}] kernel:%v %s", keep, why),
					"ff05::8765 EXCLUDE [{1 {EXCLUDE []}}] kernel:false " + why,
				}
			}
			want("ready", text("")...)
			state := ready
			state.Source = netip.Addr{}
			r.port.SetState(state)
			r.pass(0)
			want("no address", text("there is no valid link-local address yet, see ip -6 addr show dev eth0")...)
			state.Up = false
			r.port.SetState(state)
			r.pass(0)
			want("down", text("the link is down, see ip link set dev eth0 up")...)
			state.IPv6 = false
			r.port.SetState(state)
			r.pass(0)
			want("no IPv6", text("IPv6 is off, see sysctl net.ipv6.conf.eth0.disable_ipv6")...)
		})
	}
}

// The state tells who asked last, and what is spoken because of it.
func TestStateOfQuerier(t *testing.T) {
	setup{auto: true}.run(t, func(r *rig) {
		if s := r.state(); s.Querier != (Querier{}) || s.Version != mld.Version2 || s.Robustness != 2 {
			r.Errorf("before any Query: %+v", s)
		}
		r.router.Send(mld.AppendQuery(nil, router, mld.AllNodes, mld.Query{Version: mld.Version2, QRV: 5}))
		r.pass(0)
		if s := r.state(); s.Querier != (Querier{router, mld.Version2, time.Now()}) || s.Version != mld.Version2 || s.Robustness != 5 {
			r.Errorf("after a Query of MLDv2: %+v", s)
		}
		r.pass(time.Minute)
		r.router.Ask(netip.Addr{}, time.Second)
		r.pass(time.Minute)
		if s := r.state(); s.Querier != (Querier{router, mld.Version1, time.Now().Add(-time.Minute)}) ||
			s.Version != mld.Version1 || s.Robustness != 2 {
			r.Errorf("after a Query of MLDv1: %+v", s)
		}
	})
}
