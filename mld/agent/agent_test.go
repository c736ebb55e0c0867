package agent

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
	"golang.org/x/sys/unix"

	"github.com/seed-aaab8e3a/cni-mld/mld"
	"github.com/seed-aaab8e3a/cni-mld/mld/kernel"
	"github.com/seed-aaab8e3a/cni-mld/mld/link"
	"github.com/seed-aaab8e3a/cni-mld/mld/linktest"
	"github.com/seed-aaab8e3a/cni-mld/mld/listener"
)

// The parts that an agent is made of in these tests are those of linktest.
var (
	_ wire        = (*linktest.Port[link.State])(nil)
	_ memberships = (*linktest.Memberships[kernel.Change])(nil)
)

const subscriber listener.SubscriberID = 1

var (
	group  = netip.MustParseAddr("ff05::4321")
	other  = netip.MustParseAddr("ff05::8765")
	own    = netip.MustParseAddr("fe80::a")
	peer   = netip.MustParseAddr("fe80::b")
	router = netip.MustParseAddr("fe80::99")
	ready  = link.State{Name: "eth0", Index: 7, MTU: 1500, Up: true, IPv6: true, Ethernet: true, Source: own}
)

// A rig is an agent on a segment in a bubble of testing/synctest, whose clock goes on when everybody waits.
type rig struct {
	*testing.T
	agent   *Agent
	segment *linktest.Segment
	port    *linktest.Port[link.State]
	kernel  *linktest.Memberships[kernel.Change]
	router  *linktest.Querier
}

// setup is how a rig begins.
type setup struct {
	listener listener.Config
	link     link.State // the zero State is ready
	standing []kernel.Change
	resume   []Subscription // not nil: it resumes, with these
	keep     bool           // the kernel's reports are kept
	auto     bool           // the listener follows the querier's version; else it speaks MLDv1
	observe  func(Event)
}

// run runs a test with an agent, and ends it. The bubble fails the test if a goroutine is left.
func (s setup) run(t *testing.T, test func(r *rig)) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		if s.link.Name == "" {
			s.link = ready
		}
		if !s.auto {
			s.listener.Version = mld.Version1
		}
		r := &rig{T: t, segment: linktest.NewSegment(), kernel: linktest.NewMemberships(s.standing...)}
		r.port = linktest.Plug(r.segment, "agent", s.link)
		r.router = r.segment.Querier(router)
		r.agent = r.start(r.port, r.kernel, Config{Listener: s.listener, Resume: s.resume != nil, Standing: s.resume, Observe: s.observe}, s.keep)
		test(r)
		r.agent.Close()
		r.ended(r.agent)
		if _, err := r.kernel.Next(); !r.port.Closed() || err == nil {
			r.Error("the agent has ended and left something open")
		}
	})
}

func (r *rig) start(w wire, m memberships, cfg Config, keep bool) *Agent {
	r.Helper()
	a := r.prepare(w, m, cfg, keep)
	a.Begin()
	synctest.Wait()
	return a
}

func (r *rig) prepare(w wire, m memberships, cfg Config, keep bool) *Agent {
	r.Helper()
	a, err := newAgent(cfg, w, m, nil)
	if err != nil {
		r.Fatal(err)
	}
	a.voice.keep = keep // a mute is nothing that a bubble could hold
	state, err := w.State()
	if err == nil {
		err = a.takeOver(cfg, state)
	}
	if err != nil {
		r.Fatal(err)
	}
	return a
}

// ended waits for the end of an agent and returns its error.
func (r *rig) ended(a *Agent) error {
	r.Helper()
	select {
	case <-a.Done():
	case <-time.After(time.Hour):
		r.Fatal("the agent does not end")
	}
	return a.Err()
}

// pass lets time go by.
func (r *rig) pass(d time.Duration) {
	<-time.After(d)
	synctest.Wait()
}

// settle lets all repeats go by.
func (r *rig) settle() {
	r.pass(listener.DefaultUnsolicitedReportIntervalV1 * listener.MaxRobustness)
	r.segment.Take()
}

func (r *rig) listen(addr netip.Addr, f listener.Filter) {
	r.Helper()
	if err := r.agent.Listen(r.Context(), subscriber, addr, f); err != nil {
		r.Fatal(err)
	}
	synctest.Wait()
}

func (r *rig) state() State {
	r.Helper()
	s, err := r.agent.State(r.Context())
	if err != nil {
		r.Fatal(err)
	}
	return s
}

// inside looks at what belongs to the owner goroutine.
func (r *rig) inside(look func(a *Agent)) {
	r.Helper()
	if err := r.agent.do(r.Context(), func() { look(r.agent) }); err != nil {
		r.Fatal(err)
	}
}

func (r *rig) wantRefused(want int) {
	r.Helper()
	r.inside(func(a *Agent) {
		if n := len(a.voice.refused); n != want {
			r.Errorf("%d addresses are waiting for a Report that is taken, want %d", n, want)
		}
	})
}

func (r *rig) wantWaiters(want int) {
	r.Helper()
	r.inside(func(a *Agent) {
		if n := len(a.waiters); n != want {
			r.Errorf("%d waiters, want %d", n, want)
		}
	})
}

// wantSent compares what agents have sent with "Report ff05::1" and the like, in any order.
func (r *rig) wantSent(what string, want ...string) {
	r.Helper()
	synctest.Wait()
	var got []string
	for _, p := range r.segment.Take() {
		switch {
		case p.From == router.String():
			continue
		case p.Err != nil:
			r.Errorf("%s: sent % x: %v", what, p.Bytes, p.Err)
		}
		text := fmt.Sprint(p.Message.Type, " ", p.Message.MulticastAddress)
		if p.Src != own {
			text += " from " + p.Src.String()
		}
		got = append(got, text)
	}
	slices.Sort(got)
	slices.Sort(want)
	if diff := cmp.Diff(want, got, cmpopts.EquateEmpty()); diff != "" {
		r.Errorf("%s: sent (-want +got):\n%s", what, diff)
	}
}

// firstReport tells when an address was first reported; the zero Time if it was not.
func firstReport(sent []linktest.Packet, addr netip.Addr) time.Time {
	for _, p := range sent {
		if p.Message.Type == mld.TypeReport && p.Message.MulticastAddress == addr {
			return p.At
		}
	}
	return time.Time{}
}

func joined(addrs ...netip.Addr) []kernel.Change {
	return changes(true, addrs)
}

func left(addrs ...netip.Addr) []kernel.Change {
	return changes(false, addrs)
}

func changes(joined bool, addrs []netip.Addr) []kernel.Change {
	list := make([]kernel.Change, len(addrs))
	for i, addr := range addrs {
		list[i] = kernel.Change{Addr: addr, Joined: joined, Exclude: joined}
	}
	return list
}

// groups makes n addresses.
func groups(n int) []netip.Addr {
	list := make([]netip.Addr, n)
	for i := range list {
		list[i] = netip.AddrFrom16([16]byte{0: 0xff, 1: 0x05, 13: byte(i >> 16), 14: byte(i >> 8), 15: byte(i)})
	}
	return list
}

// TestV1_06_V1_07_V1_09_ListenAndLeave: a Report at once, one repeat within ten seconds, a Done at the end.
func TestV1_06_V1_07_V1_09_ListenAndLeave(t *testing.T) {
	setup{}.run(t, func(r *rig) {
		begin := time.Now()
		r.listen(group, listener.AnySource)
		if err := r.agent.WaitReported(r.Context(), group); err != nil || time.Since(begin) != 0 {
			r.Errorf("reported after %v: %v", time.Since(begin), err)
		}
		r.wantSent("joined", "Report ff05::4321")
		r.pass(10 * time.Second)
		r.wantSent("within ten seconds", "Report ff05::4321")
		r.pass(time.Hour)
		r.wantSent("within an hour")
		r.listen(group, listener.Filter{})
		r.wantSent("left", "Done ff05::4321")
	})
}

// TestV1_13_V1_26_NoAnswerIsLate asks for a hundred addresses: each one is answered once, no later than the Maximum
// Response Delay, and each at a time of its own.
func TestV1_13_V1_26_NoAnswerIsLate(t *testing.T) {
	const n = 100
	for _, mrd := range []time.Duration{
		time.Millisecond, 50 * time.Millisecond, 199 * time.Millisecond, 200 * time.Millisecond, 999 * time.Millisecond,
		10 * time.Second, 65535 * time.Millisecond,
	} {
		for _, profile := range []listener.Profile{listener.RFC, listener.KAME} {
			if profile == listener.KAME && mrd < 200*time.Millisecond {
				continue // its ticks are longer (K30)
			}
			t.Run(fmt.Sprint(profile, " ", mrd), func(t *testing.T) {
				setup{listener: listener.Config{Profile: profile}, standing: joined(groups(n)...)}.run(t, func(r *rig) {
					r.settle()
					asked := time.Now()
					r.router.Ask(netip.Addr{}, mrd)
					r.pass(mrd)
					seen, times := map[netip.Addr]bool{}, map[time.Duration]bool{}
					first, last := mrd, time.Duration(0)
					for _, p := range r.segment.Take()[1:] { // the Query
						after := p.At.Sub(asked)
						if p.Message.Type != mld.TypeReport || seen[p.Message.MulticastAddress] || after <= 0 || after > mrd {
							r.Errorf("%v %v after %v, seen before: %v", p.Message.Type, p.Message.MulticastAddress, after,
								seen[p.Message.MulticastAddress])
						}
						seen[p.Message.MulticastAddress], times[after] = true, true
						first, last = min(first, after), max(last, after)
					}
					if len(seen) != n {
						r.Errorf("%d addresses answered, want %d", len(seen), n)
					}
					if profile == listener.RFC && (first > mrd/2 || last < mrd/2 || len(times) < n/2) { // V1-13
						r.Errorf("%d different delays from %v to %v: not drawn each from the whole range", len(times), first, last)
					}
					r.pass(time.Hour)
					r.wantSent("later")
				})
			})
		}
	}
}

// TestV1_15_ZeroDelay: with no Maximum Response Delay every address is reported at once.
func TestV1_15_ZeroDelay(t *testing.T) {
	setup{standing: joined(group, other)}.run(t, func(r *rig) {
		r.settle()
		r.router.Ask(netip.Addr{}, 0)
		r.wantSent("General Query", "Report ff05::4321", "Report ff05::8765")
		r.router.Ask(other, 0)
		r.wantSent("Specific Query", "Report ff05::8765")
	})
}

// TestV1_14_TimersFollowQueries: a shorter delay pulls a Report forward, a longer one does not push it back, and a
// script of Queries is answered within each delay.
func TestV1_14_TimersFollowQueries(t *testing.T) {
	setup{standing: joined(group, other)}.run(t, func(r *rig) {
		r.settle()
		begin := time.Now()
		r.router.Play(
			linktest.Query{MaxResponseDelay: time.Minute},
			linktest.Query{After: time.Millisecond, Addr: group, MaxResponseDelay: 100 * time.Millisecond},
			linktest.Query{After: 2 * time.Millisecond, Addr: other, MaxResponseDelay: time.Second},
			linktest.Query{After: 3 * time.Millisecond, MaxResponseDelay: time.Minute},
		)
		r.pass(time.Second)
		sent := r.segment.Take()
		for addr, limit := range map[netip.Addr]time.Duration{group: 101 * time.Millisecond, other: 1002 * time.Millisecond} {
			if after := firstReport(sent, addr).Sub(begin); after <= 0 || after > limit {
				r.Errorf("%v after %v, want within %v", addr, after, limit)
			}
		}
		// Whoever had answered before the last Query has answered that one too by now.
		r.pass(time.Minute)
		if s := r.state(); s.Counters.QueriesHeard != 4 || s.Addresses[0].State != listener.IdleListener {
			r.Errorf("%+v", s)
		}
	})
}

// TestV1_18_V1_20_V1_31_Suppression: another node's Report takes the place of ours, for its address alone; afterwards
// that node owes the Done (V1-31), unless it shall be sent always.
func TestV1_18_V1_20_V1_31_Suppression(t *testing.T) {
	for _, always := range []bool{false, true} {
		setup{listener: listener.Config{AlwaysDone: always}, standing: joined(group, other)}.run(t, func(r *rig) {
			r.settle()
			r.router.Ask(netip.Addr{}, 10*time.Second)
			r.port.Hear(mld.AppendReport(nil, peer, group), false)
			r.pass(10 * time.Second)
			r.wantSent("after the answer of another", "Report ff05::8765")
			if s := r.state(); s.Counters.Suppressed != 1 || s.Counters.ReportsHeard != 1 {
				r.Errorf("%+v", s.Counters)
			}
			r.kernel.Tell(left(group, other)...)
			if always {
				r.wantSent("left", "Done ff05::4321", "Done ff05::8765")
			} else {
				r.wantSent("left", "Done ff05::8765")
			}
		})
	}
}

// TestV1_18_TwoAgents: of two nodes on a segment one answers for each address.
func TestV1_18_TwoAgents(t *testing.T) {
	addrs := groups(100)
	setup{standing: joined(addrs...)}.run(t, func(r *rig) {
		state := ready
		state.Source = peer
		second := r.start(linktest.Plug(r.segment, "second", state), linktest.NewMemberships(joined(addrs...)...),
			Config{Listener: listener.Config{Version: mld.Version1}}, false)
		r.settle()
		r.router.Ask(netip.Addr{}, 10*time.Second)
		r.pass(10 * time.Second)
		by := map[string]int{}
		answers := map[netip.Addr]int{}
		for _, p := range r.segment.Take()[1:] {
			answers[p.Message.MulticastAddress]++
			by[p.From]++
		}
		for _, addr := range addrs {
			if answers[addr] != 1 {
				r.Errorf("%v: %d answers", addr, answers[addr])
			}
		}
		if by["agent"] == 0 || by["second"] == 0 {
			r.Errorf("answers: %v: one node did all", by)
		}
		second.Close()
		r.ended(second)
	})
}

// TestB25_UnicastReport: a bridge's unicast copy of a Report silences nobody, for the others did not get it.
func TestB25_UnicastReport(t *testing.T) {
	for _, tc := range []struct {
		rule    string
		unicast bool
		want    []string
	}{
		{"V1-18", false, nil},
		{"B25", true, []string{"Report ff05::4321"}},
	} {
		setup{standing: joined(group)}.run(t, func(r *rig) {
			r.settle()
			r.router.Ask(group, time.Second)
			r.port.Hear(mld.AppendReport(nil, peer, group), tc.unicast)
			r.pass(time.Second)
			r.wantSent(tc.rule, tc.want...)
			r.port.Hear(mld.AppendQuery(nil, router, group, mld.Query{Version: mld.Version1, MulticastAddress: group}), true)
			r.wantSent(tc.rule+": a Query is as good in a unicast frame (V2-70)", "Report ff05::4321")
		})
	}
}

// change returns the packet with one octet set; the checksum stays as it is.
func change(packet []byte, at int, value byte) []byte {
	packet = slices.Clone(packet)
	packet[at] = value
	return packet
}

// query makes a General Query that wants its answer at once.
func query(src netip.Addr) []byte {
	return mld.AppendQuery(nil, src, mld.AllNodes, mld.Query{Version: mld.Version1})
}

// TestV1_02_V2_07_QueryLength: whoever speaks version 1 alone answers a Query of 24 octets or more, whatever follows these.
// Whoever knows version 2 ignores 25 to 27 octets (V2-7), and in either version tells a querier by its length.
func TestV1_02_V2_07_QueryLength(t *testing.T) {
	v2 := func(sources ...netip.Addr) []byte {
		return mld.AppendQuery(nil, router, mld.AllNodes, mld.Query{Version: mld.Version2, Sources: sources})
	}
	for _, tc := range []struct {
		what     string
		packet   []byte
		version  mld.Version // of the querier; 0: ignored where version 2 is known
		answered bool        // in version 1 by whoever knows version 2
	}{
		{"24 octets", query(router), mld.Version1, true},
		{"25 octets", longer(query(router), 1), 0, false},
		{"26 octets", longer(query(router), 2), 0, false},
		{"27 octets", longer(query(router), 3), 0, false},
		{"28 octets", v2(), mld.Version2, false},
		{"a General Query with a source", v2(peer), 0, false},
	} {
		t.Run(tc.what, func(t *testing.T) {
			setup{standing: joined(group)}.run(t, func(r *rig) {
				r.settle()
				r.port.Hear(tc.packet, false)
				r.wantSent("version 1", "Report ff05::4321")
				if got, want := r.state().Querier.Version, max(tc.version, mld.Version1); got != want {
					r.Errorf("the querier speaks version %d, want %d", got, want)
				}
			})
			setup{standing: joined(group), auto: true}.run(t, func(r *rig) {
				r.settle()
				r.port.Hear(tc.packet, false)
				synctest.Wait()
				s := r.state()
				if rejected := sum(s.Rejected[:]) > 0; s.Querier.Version != tc.version || rejected != (tc.version == 0) {
					r.Errorf("the querier speaks version %d, want %d; rejected: %v", s.Querier.Version, tc.version, s.Rejected)
				}
				if answered := s.Version == mld.Version1; answered != tc.answered {
					r.Errorf("speaks version %d after it", s.Version)
				}
			})
		})
	}
}

func sum(counts []uint64) (n uint64) {
	for _, c := range counts {
		n += c
	}
	return n
}

// longer adds n zero octets to the message in a packet. That its length is in the checksum's pseudo-header is all that
// changes this.
func longer(packet []byte, n int) []byte {
	const length, checksum = 4, 50
	packet[length+1] += byte(n)
	c := int(packet[checksum])<<8 | int(packet[checksum+1])
	if c -= n; c < 0 {
		c += 0xffff
	}
	packet[checksum], packet[checksum+1] = byte(c>>8), byte(c)
	return append(packet, make([]byte, n)...)
}

// TestK84_RejectedPackets: what is not valid is counted by its reason and changes nothing, nor does what is not meant
// for a listener.
func TestK84_RejectedPackets(t *testing.T) {
	unspecified, global := netip.IPv6Unspecified(), netip.MustParseAddr("fd00::1")
	const hopLimit, routerAlertValue, checksum = 7, 45, 50 // where they stand
	for _, tc := range []struct {
		rule   string
		what   string
		packet []byte
		reason mld.Reason // 0: valid, and not for us
	}{
		{"K84", "nothing", nil, mld.ReasonHeaderLength},
		{"V1-10", "a Query from a global address", query(global), mld.ReasonSource},
		{"V1-33", "a Query from ::", query(unspecified), mld.ReasonUnspecifiedSource},
		{"V1-17", "a Report from ::", mld.AppendReport(nil, unspecified, group), mld.ReasonUnspecifiedSource},
		{"V1-17", "a Report from a global address", mld.AppendReport(nil, global, group), mld.ReasonSource},
		{"V1-4", "a wrong checksum", change(query(router), checksum, 0xaa), mld.ReasonChecksum},
		{"V1-34", "another hop limit", change(query(router), hopLimit, 2), mld.ReasonHopLimit},
		{"V1-34", "another Router Alert", change(query(router), routerAlertValue, 1), mld.ReasonRouterAlertValue},
		{"V1-10", "a Query cut off", query(router)[:70], mld.ReasonPayloadLength},
		{
			"V1-10", "a Query for a unicast address",
			mld.AppendQuery(nil, router, mld.AllNodes, mld.Query{Version: mld.Version1, MulticastAddress: own}),
			mld.ReasonMulticastAddress,
		},
		{"V1-21", "another node's Done", mld.AppendDone(nil, peer, group), 0},
		{"V1-21", "another node's version 2 Report", mld.AppendReportV2(nil, peer, nil), 0},
		{"V1-12", "a Query for an address that nobody has joined", mld.AppendQuery(nil, router, mld.AllRouters,
			mld.Query{Version: mld.Version1, MulticastAddress: mld.AllRouters}), 0},
		{"V1-19", "a Report of an address that nobody has joined", mld.AppendReport(nil, peer, mld.AllRouters), 0},
		{"V1-25", "our own Report, come back", mld.AppendReport(nil, own, group), 0},
	} {
		t.Run(tc.what, func(t *testing.T) {
			setup{standing: joined(group, other)}.run(t, func(r *rig) {
				r.settle()
				r.router.Ask(group, time.Hour) // group is Delaying, other is Idle
				synctest.Wait()
				r.segment.Take()
				before := r.state()
				r.port.Hear(tc.packet, false)
				r.wantSent(tc.rule)
				after := r.state()
				if diff := cmp.Diff(before.Addresses, after.Addresses, cmpopts.EquateComparable(netip.Addr{})); diff != "" {
					r.Errorf("%s: state has changed:\n%s", tc.rule, diff)
				}
				want := [mld.NumReasons]uint64{}
				if tc.reason != 0 {
					want[tc.reason] = 1
				}
				if diff := cmp.Diff(want, after.Rejected); diff != "" {
					r.Errorf("%s: rejected: %s", tc.rule, diff)
				}
			})
		})
	}
}

// TestProfileAccepts: the KAME profile answers what the RFC profile rejects.
func TestProfileAccepts(t *testing.T) {
	long := mld.AppendQuery(nil, router, mld.AllNodes, mld.Query{Version: mld.Version2}) // 28 octets
	for _, tc := range []struct {
		rule   string
		packet []byte
		rfc    int // Reports
	}{
		{"K24", change(query(router), 7, 64), 0},
		{"K25", change(query(router), 45, 1), 0},
		{"K21", long, 2}, // a node of version 1 alone takes it as it would a longer message (V1-2)
	} {
		for profile, want := range map[listener.Profile]int{listener.RFC: tc.rfc, listener.KAME: 2} {
			setup{listener: listener.Config{Profile: profile}, standing: joined(group, other)}.run(t, func(r *rig) {
				r.settle()
				r.port.Hear(tc.packet, false)
				synctest.Wait()
				if n := len(r.segment.Take()); n != want {
					r.Errorf("%s, profile %v: %d Reports, want %d", tc.rule, profile, n, want)
				}
			})
		}
	}
}

// TestV1_30_V1_38_NewSource: until there is a link-local address Reports come from "::", and when there is one,
// everything is reported again. Another one makes the next, the same one none.
func TestV1_30_V1_38_NewSource(t *testing.T) {
	tentative := ready
	tentative.Source = netip.Addr{}
	setup{link: tentative, standing: joined(group)}.run(t, func(r *rig) {
		r.wantSent("tentative", "Report ff05::4321 from ::")
		reported := make(chan error, 1)
		go func() { reported <- r.agent.WaitReported(r.Context(), group) }()
		synctest.Wait()
		select {
		case err := <-reported:
			r.Errorf(`a Report from "::" counts: %v`, err)
		default:
		}
		r.port.SetState(ready)
		r.wantSent("valid", "Report ff05::4321")
		if err := <-reported; err != nil {
			r.Error(err)
		}
		r.settle()
		same := ready
		same.MTU = 9000
		r.port.SetState(same)
		r.wantSent("another MTU")
		moved := ready
		moved.Source = peer
		r.port.SetState(moved)
		r.wantSent("another address", "Report ff05::4321 from fe80::b")
	})
}

// TestK57_K76_NewSource is the same for the KAME profile, which is silent until the next Query.
func TestK57_K76_NewSource(t *testing.T) {
	tentative := ready
	tentative.Source = netip.Addr{}
	setup{link: tentative, standing: joined(group), listener: listener.Config{Profile: listener.KAME}}.run(t, func(r *rig) {
		r.pass(time.Minute)
		r.wantSent("tentative")
		r.port.SetState(ready)
		r.wantSent("valid")
		ctx, cancel := context.WithTimeout(r.Context(), time.Second)
		defer cancel()
		if err := r.agent.WaitReported(ctx, group); err == nil || !strings.Contains(err.Error(), "still to come") {
			r.Error(err)
		}
		r.router.Ask(netip.Addr{}, 0)
		r.wantSent("Query", "Report ff05::4321")
	})
}

// TestK77_LinkDownAndUp: nothing is said while the link is down or IPv6 off, and afterwards everything is said anew,
// what was joined meanwhile included.
func TestK77_LinkDownAndUp(t *testing.T) {
	down, off := ready, ready
	down.Up = false
	off.IPv6, off.Source = false, netip.Addr{}
	for what, silent := range map[string]link.State{"link down": down, "IPv6 off": off} {
		t.Run(what, func(t *testing.T) {
			setup{standing: joined(group)}.run(t, func(r *rig) {
				r.pass(time.Millisecond) // before the repeat
				r.segment.Take()
				r.port.SetState(silent)
				synctest.Wait()
				r.kernel.Tell(joined(other)...)
				r.router.Ask(netip.Addr{}, 0)
				r.router.Ask(netip.Addr{}, time.Second)
				r.pass(time.Minute)
				r.wantSent(what)
				if s := r.state(); s.Link.Up != silent.Up || s.Link.IPv6 != silent.IPv6 || s.SendErrors != 0 {
					r.Errorf("%+v", s)
				}
				r.port.SetState(ready)
				r.wantSent("ready again", "Report ff05::4321", "Report ff05::8765")
				r.pass(10 * time.Second)
				r.wantSent("repeats", "Report ff05::4321", "Report ff05::8765")
				r.port.SetState(silent)
				synctest.Wait()
				r.kernel.Tell(left(group)...)
				r.wantSent("left meanwhile")
				r.port.SetState(ready)
				r.wantSent("ready again", "Report ff05::8765")
			})
		})
	}
}

// TestMomentsOfTheLink: what was different for a moment, and is as it was when the agent looks.
func TestMomentsOfTheLink(t *testing.T) {
	setup{standing: joined(group), listener: listener.Config{Robustness: 1}}.run(t, func(r *rig) {
		r.settle()
		flapped := ready
		flapped.Downs++
		r.port.SetState(flapped)
		r.wantSent("the carrier was lost", "Report ff05::4321")
		renamed := flapped
		renamed.Name, renamed.HardwareAddr, renamed.MTU = "net1", []byte{2, 0, 0, 0, 0, 1}, 9000
		r.port.SetState(renamed)
		r.wantSent("nothing that the wire could know")

		// The kernel's change comes before the news of the link.
		solicited := netip.MustParseAddr("ff02::1:ff00:a")
		r.kernel.Tell(joined(solicited)...)
		r.wantSent("an address", "Report ff02::1:ff00:a")
		off := renamed
		off.IPv6, off.Source = false, netip.Addr{}
		r.port.SetStateUnseen(off)
		r.kernel.Tell(left(solicited)...)
		r.wantSent("the address has gone, and nothing can be said")
		r.port.SetStateUnseen(renamed)
		r.kernel.Tell(joined(solicited)...)
		r.wantSent("and is back", "Report ff02::1:ff00:a", "Report ff05::4321")
	})
}

// TestK74_Subscribers: the kernel is one subscriber among others, and the last one to leave makes the Done.
func TestK74_Subscribers(t *testing.T) {
	setup{standing: joined(mld.AllNodes, group)}.run(t, func(r *rig) {
		r.wantSent("what stands", "Report ff05::4321") // V1-22
		r.listen(group, listener.AnySource)
		r.wantSent("declared as well")
		r.kernel.Tell(left(group)...)
		r.wantSent("an application leaves")
		r.listen(group, listener.Filter{})
		r.wantSent("not declared any more", "Done ff05::4321")
		r.kernel.Tell(slices.Concat(joined(group), left(group), joined(group))...)
		r.wantSent("joined, left and joined at once", "Report ff05::4321", "Done ff05::4321", "Report ff05::4321")
	})
}

// TestResume: what an agent before has told is told once more, when the Query Response Interval says so, and stays
// what each subscriber wants.
func TestResume(t *testing.T) {
	s := setup{standing: joined(mld.AllNodes, group), resume: []Subscription{{subscriber, other, listener.AnySource}}}
	s.run(t, func(r *rig) {
		r.wantSent("at first")
		if got := r.port.Memberships(); got[other] != 1 || len(got) != 1 {
			r.Errorf("taken in: %v, want %v", got, other)
		}
		if err := r.agent.WaitReported(r.Context(), group, other); err != nil {
			r.Error(err)
		}
		r.pass(10 * time.Second)
		r.wantSent("within ten seconds", "Report ff05::4321", "Report ff05::8765")
		r.settle()
		r.wantSent("after that")
		r.listen(other, listener.Filter{})
		r.wantSent("left by the subscriber", "Done ff05::8765")
		r.kernel.Tell(left(group)...)
		r.wantSent("left by the kernel", "Done ff05::4321")
	})
	s.link = ready
	s.link.Up = false
	s.run(t, func(r *rig) {
		r.port.SetState(ready)
		r.wantSent("up", "Report ff05::4321", "Report ff05::8765")
	})
	s.link.Up, s.keep = true, true
	s.run(t, func(r *rig) {
		r.pass(10 * time.Second)
		r.wantSent("the kernel speaks for what it holds", "Report ff05::8765")
	})
}

// TestKeep: with the kernel's reports kept, the agent speaks for what the kernel does not hold.
func TestKeep(t *testing.T) {
	setup{keep: true, standing: joined(group)}.run(t, func(r *rig) {
		r.router.Ask(netip.Addr{}, 0)
		r.wantSent("what the kernel holds")
		r.listen(group, listener.AnySource)
		r.router.Ask(group, 0)
		r.wantSent("declared too")
		if err := r.agent.WaitReported(r.Context(), group); err != nil {
			r.Errorf("the kernel has reported it: %v", err)
		}
		r.kernel.Tell(left(group)...)
		r.wantSent("the kernel leaves: its Done must not be the last word", "Report ff05::4321")
		r.pass(time.Millisecond)
		r.kernel.Tell(joined(group)...)
		r.wantSent("the kernel joins: its own Report says so")
		r.router.Ask(group, 0)
		r.pass(time.Minute)
		r.wantSent("the kernel answers, and repeats")
		r.listen(group, listener.Filter{})
		r.wantSent("not declared any more, but the kernel still holds it")
		r.kernel.Tell(left(group)...)
		r.wantSent("the kernel's own leave says all")

		r.listen(other, listener.AnySource)
		r.wantSent("only declared", "Report ff05::8765")
		r.listen(other, listener.Filter{Mode: listener.Exclude, Sources: []netip.Addr{peer}})
		r.wantSent("declared in another way")
		r.listen(other, listener.Filter{})
		r.wantSent("left", "Done ff05::8765")
		if err := r.agent.Listen(r.Context(), subscriber, own, listener.AnySource); err == nil {
			r.Error("listens to a unicast address")
		}
		r.kernel.Tell(joined(group)...)
		synctest.Wait()
		if err := r.agent.Listen(r.Context(), subscriber, group, listener.Filter{Sources: []netip.Addr{other}}); err == nil {
			r.Error("takes a multicast address for a source of what the kernel holds")
		}
		r.kernel.Tell(left(group)...)
		r.wantSent("refused")
		if s := r.state(); s.KernelReports != Keep || len(s.Addresses) != 0 {
			r.Errorf("%+v", s)
		}
		r.inside(func(a *Agent) {
			if v := a.voice; len(v.wanted) != 0 || len(v.held) != 0 {
				r.Errorf("left over: %v wanted, %v held", v.wanted, v.held)
			}
		})
	})
}

// TestKeepContradiction: the kernel's leave comes after the event of it, and again up to a second later, from our own
// address; what is wanted nevertheless is reported anew each time, and nothing else is.
func TestKeepContradiction(t *testing.T) {
	setup{keep: true, standing: joined(group, other)}.run(t, func(r *rig) {
		says := func(records ...mld.Record) {
			t.Helper()
			r.port.Hear(mld.AppendReportV2(nil, own, records), false)
		}
		leaves := mld.Record{Type: mld.ChangeToInclude, MulticastAddress: group}
		r.listen(group, listener.AnySource)
		says(mld.Record{Type: mld.ModeIsExclude, MulticastAddress: group})
		r.wantSent("the kernel speaks for it")
		r.kernel.Tell(left(group)...)
		r.wantSent("the kernel has left", "Report ff05::4321")
		r.settle()
		says(leaves, mld.Record{Type: mld.ModeIsExclude, MulticastAddress: other})
		r.wantSent("the kernel says so", "Report ff05::4321")
		r.settle()
		says(leaves)
		r.wantSent("the kernel says so again", "Report ff05::4321")
		r.port.Hear(mld.AppendDone(nil, own, group), false)
		r.wantSent("the kernel says so in version 1", "Report ff05::4321")
		r.settle()
		r.port.Hear(mld.AppendDone(nil, own, other), false)
		r.port.Hear(mld.AppendDone(nil, peer, group), false)
		r.wantSent("others leave, or what is not wanted is left")
		r.listen(group, listener.Filter{})
		r.wantSent("not wanted any more", "Done ff05::4321")
		says(leaves)
		r.wantSent("of no interest")
	})
}

// A full wire takes in nothing more until there is room.
type full struct {
	*linktest.Port[link.State]
	err *error
}

func (w full) AddMembership(group netip.Addr) error {
	if *w.err != nil {
		return *w.err
	}
	return w.Port.AddMembership(group)
}

// TestNotTakenIn: what the interface does not take in is not listened to, and is taken in when it is asked for again.
func TestNotTakenIn(t *testing.T) {
	setup{}.run(t, func(r *rig) {
		r.agent.Close()
		r.ended(r.agent)
		r.port = linktest.Plug(r.segment, "full", ready)
		noRoom := errors.New("no room")
		err := noRoom
		r.agent = r.start(full{r.port, &err}, linktest.NewMemberships[kernel.Change](), Config{Listener: listener.Config{Version: mld.Version1}}, false)
		for range 2 {
			if got := r.agent.Listen(r.Context(), subscriber, group, listener.AnySource); !errors.Is(got, noRoom) {
				r.Errorf("%v, want %v", got, noRoom)
			}
		}
		r.wantSent("not taken in")
		if s := r.state(); len(s.Addresses) != 0 {
			r.Errorf("listens to %v", s.Addresses)
		}
		err = nil
		r.listen(group, listener.AnySource)
		r.wantSent("taken in", "Report ff05::4321")
		if err := r.agent.Listen(r.Context(), subscriber, peer, listener.AnySource); err == nil {
			r.Errorf("listens to %v", peer)
		}
		if got := r.port.Memberships(); got[group] != 1 || len(got) != 1 {
			r.Errorf("taken in: %v, want %v", got, group)
		}
	})
}

// TestTakenIn: the interface takes in what is listened to, as often as somebody does.
func TestTakenIn(t *testing.T) {
	setup{standing: joined(other)}.run(t, func(r *rig) {
		listen := func(id listener.SubscriberID, f listener.Filter) {
			t.Helper()
			if err := r.agent.Listen(r.Context(), id, group, f); err != nil {
				t.Fatal(err)
			}
		}
		want := func(n int) {
			t.Helper()
			if got := r.port.Memberships(); got[group] != n || len(got) != min(n, 1) {
				t.Fatalf("taken in: %v, want %v %d times", got, group, n)
			}
		}
		listen(1, listener.Filter{})
		want(0)
		listen(1, listener.AnySource)
		listen(1, listener.Filter{Sources: []netip.Addr{peer}})
		want(1)
		listen(2, listener.AnySource)
		want(2)
		listen(1, listener.Filter{})
		listen(1, listener.Filter{})
		want(1)
		listen(2, listener.Filter{})
		want(0)
		if err := r.agent.Listen(r.Context(), 1, own, listener.AnySource); err == nil {
			t.Error("listens to a unicast address")
		}
		want(0)
	})
}

// TestKeepTwoSubscribers: every subscription comes back when the kernel leaves, and each is left by itself.
func TestKeepTwoSubscribers(t *testing.T) {
	setup{keep: true}.run(t, func(r *rig) {
		second := subscriber + 1
		listen := func(id listener.SubscriberID, f listener.Filter) {
			if err := r.agent.Listen(r.Context(), id, group, f); err != nil {
				r.Error(err)
			}
		}
		listen(subscriber, listener.AnySource)
		listen(second, listener.AnySource)
		r.wantSent("joined", "Report ff05::4321")
		r.kernel.Tell(joined(group)...)
		r.kernel.Tell(left(group)...)
		r.wantSent("the kernel came and went", "Report ff05::4321")
		listen(subscriber, listener.Filter{})
		r.wantSent("one is left")
		listen(second, listener.Filter{})
		r.wantSent("none is left", "Done ff05::4321")
	})
}

// TestBurst: while ten thousand Reports wait to be sent, Queries and calls are dealt with between slices of them.
func TestBurst(t *testing.T) {
	const n = 10_000
	addrs := groups(n)
	setup{standing: joined(other)}.run(t, func(r *rig) {
		r.settle()
		r.port.Slow(100 * time.Microsecond)
		r.kernel.Tell(joined(addrs...)...)
		<-time.After(50 * time.Millisecond)
		before := r.segment.Sent()
		r.router.Ask(other, time.Minute)
		for r.state().Counters.QueriesHeard == 0 {
			// Each call waits for its turn.
		}
		between := r.segment.Sent() - before
		// The owner takes what is ready by lot: to be passed over fifty times is as likely as a miracle.
		if before == 0 || between > 50*64 {
			r.Errorf("%d of %d packets sent before the Query and %d before it was looked at", before, n, between)
		}
		r.pass(5 * time.Second)
		sent := map[netip.Addr]int{}
		for _, p := range r.segment.Take() {
			if p.Message.Type == mld.TypeReport {
				sent[p.Message.MulticastAddress]++
			}
		}
		for _, addr := range addrs {
			if sent[addr] == 0 {
				r.Fatalf("%v was not reported", addr)
			}
		}
	})
}

// TestWaitReported: a wait that ends in vain says what is missing, and why.
func TestWaitReported(t *testing.T) {
	down, off, tentative := ready, ready, ready
	down.Up, off.IPv6, tentative.Source = false, false, netip.Addr{}
	for _, tc := range []struct {
		what  string
		link  link.State
		do    func(r *rig)
		wants string
		heals func(r *rig) // what makes a further wait succeed
	}{
		{"IPv6 off", off, nil, "IPv6 is off, see sysctl net.ipv6.conf.eth0.disable_ipv6", func(r *rig) { r.port.SetState(ready) }},
		{"link down", down, nil, "the link is down", func(r *rig) { r.port.SetState(ready) }},
		{"link down after the Report", ready, func(r *rig) {
			r.listen(group, listener.AnySource)
			r.port.SetState(down)
			synctest.Wait()
		}, "the link is down", func(r *rig) { r.port.SetState(ready) }},
		{"no address", tentative, nil, "no valid link-local address yet, see ip -6 addr show dev eth0",
			func(r *rig) { r.port.SetState(ready) }},
		{"refused", ready, func(r *rig) { r.port.Refuse(errors.New("no buffer space")) },
			"the interface refused 1 packets, the last one because of: no buffer space",
			func(r *rig) { r.port.Refuse(nil); r.router.Ask(netip.Addr{}, 0) }},
		{"not listened to", ready, func(r *rig) { r.agent.Listen(r.Context(), subscriber, group, listener.Filter{}) },
			"the listener does not hold it", func(r *rig) { r.listen(group, listener.AnySource) }},
	} {
		t.Run(tc.what, func(t *testing.T) {
			setup{link: tc.link}.run(t, func(r *rig) {
				if tc.do != nil {
					tc.do(r)
				}
				if tc.what != "not listened to" {
					r.listen(group, listener.AnySource)
				}
				ctx, cancel := context.WithTimeout(r.Context(), time.Millisecond)
				defer cancel()
				err := r.agent.WaitReported(ctx, group)
				if !errors.Is(err, context.DeadlineExceeded) {
					r.Fatalf("%v, want one that wraps the deadline", err)
				}
				for _, text := range []string{"interface eth0: [ff05::4321] not reported: ", tc.wants} {
					if !strings.Contains(err.Error(), text) {
						r.Errorf("%q does not say %q", err, text)
					}
				}
				r.wantWaiters(0)
				reported := make(chan error)
				go func() { reported <- r.agent.WaitReported(r.Context(), group) }()
				synctest.Wait()
				r.wantWaiters(1)
				tc.heals(r)
				if err := <-reported; err != nil {
					r.Error(err)
				}
				r.wantWaiters(0)
			})
		})
	}
}

// TestRefusedPackets are counted, do not end the agent, and a Done that was refused leaves nothing over.
func TestRefusedPackets(t *testing.T) {
	setup{}.run(t, func(r *rig) {
		r.port.Refuse(errors.New("no buffer space"))
		r.listen(group, listener.AnySource)
		r.listen(other, listener.AnySource)
		r.listen(other, listener.Filter{})
		if s := r.state(); s.SendErrors != 3 {
			r.Errorf("%d send errors, want 3", s.SendErrors)
		}
		r.wantRefused(1)
		r.port.Refuse(nil)
		r.pass(10 * time.Second)
		r.wantSent("the repeat makes up for it", "Report ff05::4321")
		r.wantRefused(0)
	})
}

func TestState(t *testing.T) {
	addrs := groups(300)
	slices.Reverse(addrs)
	setup{standing: joined(addrs...)}.run(t, func(r *rig) {
		r.listen(addrs[0], listener.AnySource)
		s := r.state()
		if len(s.Addresses) != len(addrs) || !slices.IsSortedFunc(s.Addresses, func(a, b listener.Address) int {
			return bytes.Compare(a.Addr.AsSlice(), b.Addr.AsSlice())
		}) {
			r.Errorf("%d addresses, or not sorted", len(s.Addresses))
		}
		if a := s.Addresses[len(addrs)-1]; a.Addr != addrs[0] || a.Subscribers != 2 || !a.Reported {
			r.Errorf("%+v", a)
		}
		if s.Counters.ReportsSent != 300 || s.Link.Name != "eth0" || s.Muted != 0 {
			r.Errorf("%+v", s)
		}
	})
}

// blind is a wire whose state cannot be read while there is an error.
type blind struct {
	wire
	err error
}

func (b *blind) State() (link.State, error) {
	if b.err != nil {
		return link.State{}, b.err
	}
	return b.wire.State()
}

// TestStateUnreadable: while the state of the link cannot be read, which passes, the one that was seen last is told.
func TestStateUnreadable(t *testing.T) {
	setup{}.run(t, func(r *rig) {
		w := &blind{wire: linktest.Plug(r.segment, "blind", ready)}
		a := r.start(w, linktest.NewMemberships[kernel.Change](), Config{}, false)
		w.err = fmt.Errorf("interface 1: %w", unix.EMFILE)
		if s, err := a.State(r.Context()); err != nil || !s.Link.Equal(ready) {
			r.Errorf("%+v, %v, want %+v", s.Link, err, ready)
		}
		w.err = fmt.Errorf("interface 1: %w", link.ErrGone)
		if _, err := a.State(r.Context()); !errors.Is(err, link.ErrGone) {
			r.Errorf("%v, want %v", err, link.ErrGone)
		}
		a.Close()
		r.ended(a)
	})
}

// TestStop: everything is left when Stop returns, applications' addresses too, and the end comes a second later.
func TestStop(t *testing.T) {
	for _, keep := range []bool{false, true} {
		setup{keep: keep, standing: joined(other)}.run(t, func(r *rig) {
			r.listen(group, listener.AnySource)
			never := groups(1)[0]
			waited := make(chan error, 1)
			go func() { waited <- r.agent.WaitReported(r.Context(), never) }()
			synctest.Wait()
			r.segment.Take()
			begin := time.Now()
			if err := r.agent.Stop(r.Context()); err != nil || time.Since(begin) != 0 {
				r.Errorf("%v after %v", err, time.Since(begin))
			}
			if keep { // the kernel leaves its own
				r.wantSent("stopped", "Done ff05::4321")
			} else {
				r.wantSent("stopped", "Done ff05::4321", "Done ff05::8765")
			}
			// What the kernel does now is no news any more, and nobody is told otherwise.
			r.kernel.Tell(slices.Concat(left(other), joined(never))...)
			r.router.Ask(netip.Addr{}, 0)
			if err := r.agent.Listen(r.Context(), subscriber, group, listener.AnySource); !errors.Is(err, ErrStopped) {
				r.Errorf("Listen after Stop: %v", err)
			}
			if r.state(); len(r.state().Addresses) != 0 {
				r.Error("something is listened to after Stop")
			}
			if err := r.agent.Stop(r.Context()); err != nil {
				r.Errorf("a second Stop: %v", err)
			}
			if err := r.ended(r.agent); !errors.Is(err, ErrStopped) || time.Since(begin) != time.Second {
				r.Errorf("ended after %v: %v", time.Since(begin), err)
			}
			if err := <-waited; !errors.Is(err, ErrStopped) {
				r.Errorf("who waited: %v", err)
			}
			r.wantSent("afterwards")
			for what, err := range map[string]error{
				"Listen":       r.agent.Listen(r.Context(), subscriber, group, listener.AnySource),
				"Stop":         r.agent.Stop(r.Context()),
				"WaitReported": r.agent.WaitReported(r.Context(), group),
				"State":        func() error { _, err := r.agent.State(r.Context()); return err }(),
			} {
				if !errors.Is(err, ErrStopped) {
					r.Errorf("%s after the end: %v", what, err)
				}
			}
		})
	}
}

// TestStopReturnsLast: when Stop returns, the last Done has left, however long that took.
func TestStopReturnsLast(t *testing.T) {
	const n = 200
	setup{standing: joined(groups(n)...)}.run(t, func(r *rig) {
		r.settle()
		r.port.Slow(time.Millisecond)
		begin := time.Now()
		err := r.agent.Stop(r.Context())
		if sent := r.segment.Sent(); err != nil || sent != n || time.Since(begin) != n*time.Millisecond {
			r.Errorf("%d Dones of %d after %v: %v", sent, n, time.Since(begin), err)
		}
	})
}

// TestStopWhenTheInterfaceGoes: the agent does not outlive the interface, and that is no failure then.
func TestStopWhenTheInterfaceGoes(t *testing.T) {
	setup{standing: joined(group)}.run(t, func(r *rig) {
		if err := r.agent.Stop(r.Context()); err != nil {
			r.Error(err)
		}
		begin := time.Now()
		r.port.End(link.ErrGone)
		if err := r.ended(r.agent); !errors.Is(err, ErrStopped) || time.Since(begin) != 0 {
			r.Errorf("ended after %v: %v", time.Since(begin), err)
		}
	})
}

// TestClose: without a word.
func TestClose(t *testing.T) {
	setup{standing: joined(group)}.run(t, func(r *rig) {
		r.listen(other, listener.AnySource)
		r.segment.Take()
		r.agent.Close()
		if err := r.ended(r.agent); !errors.Is(err, ErrStopped) {
			r.Error(err)
		}
		r.agent.Close()
		r.wantSent("closed")
	})
}

// TestReaderFails: whatever goes wrong with a source ends the agent, which says so, and all that is open is closed.
func TestReaderFails(t *testing.T) {
	broken := errors.New("broken")
	for what, end := range map[string]func(r *rig){
		"link":   func(r *rig) { r.port.End(fmt.Errorf("interface 7: %w", broken)) },
		"kernel": func(r *rig) { r.kernel.End(fmt.Errorf("memberships: %w", broken)) },
		"both":   func(r *rig) { r.kernel.End(broken); r.port.End(broken) },
		"packets": func(r *rig) {
			r.agent.Close()
			r.ended(r.agent)
			port := linktest.Plug(r.segment, "deaf", ready)
			r.agent = r.start(deaf{port, broken}, linktest.NewMemberships[kernel.Change](), Config{}, false)
		},
	} {
		t.Run(what, func(t *testing.T) {
			setup{standing: joined(group)}.run(t, func(r *rig) {
				waited := make(chan error, 1)
				go func() { waited <- r.agent.WaitReported(r.Context(), other) }()
				synctest.Wait()
				r.segment.Take()
				begin := time.Now()
				end(r)
				if err := r.ended(r.agent); !errors.Is(err, broken) || time.Since(begin) != 0 {
					r.Errorf("ended after %v: %v", time.Since(begin), err)
				}
				if err := <-waited; err == nil {
					r.Error("who waited was told of success")
				}
				if err := r.agent.Listen(r.Context(), subscriber, other, listener.AnySource); !errors.Is(err, broken) {
					r.Errorf("Listen after the end: %v", err)
				}
				r.wantSent("afterwards")
			})
		})
	}
}

// deaf is a port that hears nothing but an error.
type deaf struct {
	*linktest.Port[link.State]
	err error
}

func (d deaf) ReadPacket() (packet []byte, unicast bool, err error) { return nil, false, d.err }

// TestPrepare: what is wanted of an agent before it begins is told when it does, and it ends without having begun.
func TestPrepare(t *testing.T) {
	for name, test := range map[string]struct {
		then func(r *rig, a *Agent)
		sent []string
		ends bool
	}{
		"Begin":   {func(_ *rig, a *Agent) { a.Begin() }, []string{"Report ff05::4321", "Report ff05::8765"}, false},
		"Close":   {func(_ *rig, a *Agent) { a.Close() }, nil, true},
		"Release": {func(_ *rig, a *Agent) { a.Release() }, nil, true},
		"Stop": {func(r *rig, a *Agent) {
			if err := a.Stop(r.Context()); err != nil {
				r.Error(err)
			}
		}, []string{"Done ff05::4321", "Done ff05::8765", "Report ff05::4321", "Report ff05::8765"}, true},
	} {
		t.Run(name, func(t *testing.T) {
			setup{}.run(t, func(r *rig) {
				second := linktest.Plug(r.segment, "second", ready)
				a := r.prepare(second, linktest.NewMemberships(joined(group)...), Config{Listener: listener.Config{Version: mld.Version1}}, false)
				if err := a.Listen(r.Context(), subscriber, other, listener.AnySource); err != nil {
					r.Fatal(err)
				}
				begun := false
				if err := a.Together(r.Context(), func() { begun = a.begun }); err != nil || begun {
					r.Errorf("begun: %v, %v", begun, err)
				}
				r.wantSent("before the beginning")
				test.then(r, a)
				r.wantSent("at the beginning", test.sent...)
				if !test.ends {
					a.Close()
				}
				r.ended(a)
			})
		})
	}
}

// TestTakeOverFails: without the standing memberships there is no agent.
func TestTakeOverFails(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		broken := errors.New("broken")
		m := linktest.NewMemberships[kernel.Change]()
		m.End(broken)
		a, err := newAgent(Config{}, linktest.Plug(linktest.NewSegment(), "agent", ready), m, nil)
		if err != nil {
			t.Fatal(err)
		}
		if err := a.takeOver(Config{}, ready); !errors.Is(err, broken) {
			t.Error(err)
		}
		if _, err := newAgent(Config{Listener: listener.Config{Robustness: 8}}, nil, nil, nil); err == nil {
			t.Error("an impossible configuration is accepted")
		}
	})
}

// wantRecords compares the version 2 records that the agent has sent with "TO_EX ff05::1 []" and the like.
func (r *rig) wantRecords(what string, want ...string) {
	r.Helper()
	synctest.Wait()
	var got []string
	for _, p := range r.segment.Take() {
		for record := range p.Message.Records.All() {
			got = append(got, fmt.Sprint(record.Type, " ", record.MulticastAddress, " ", slices.Collect(record.Sources.All())))
		}
	}
	if diff := cmp.Diff(want, got, cmpopts.EquateEmpty()); diff != "" {
		r.Errorf("%s: records (-want +got):\n%s", what, diff)
	}
}

// TestKernelFilters: what the kernel wants is reported with its sources, and merged with what is declared.
func TestKernelFilters(t *testing.T) {
	a, b := netip.MustParseAddr("2001:db8::a"), netip.MustParseAddr("2001:db8::b")
	channel := netip.MustParseAddr("ff3e::8000:1")
	setup{auto: true}.run(t, func(r *rig) {
		r.kernel.Tell(kernel.Change{Addr: channel, Joined: true, Sources: []netip.Addr{a}})
		r.wantRecords("joined for a source", "ALLOW ff3e::8000:1 [2001:db8::a]")
		r.settle()
		r.kernel.Tell(kernel.Change{Addr: channel, Joined: true, Sources: []netip.Addr{a, b}})
		r.wantRecords("and another one", "ALLOW ff3e::8000:1 [2001:db8::b]")
		r.settle()
		r.kernel.Tell(kernel.Change{Addr: channel, Joined: true, Exclude: true})
		r.wantRecords("any source, though the address is not for that", "TO_EX ff3e::8000:1 []")
		r.settle()
		r.kernel.Tell(kernel.Change{Addr: channel, Joined: true, Sources: []netip.Addr{a}})
		r.wantRecords("one again", "TO_IN ff3e::8000:1 [2001:db8::a]")
		r.settle()
		if err := r.agent.Listen(r.Context(), subscriber, channel, listener.AnySource); !errors.Is(err, listener.ErrSourceSpecific) {
			r.Errorf("any source declared: %v", err)
		}
		r.listen(channel, listener.Filter{Sources: []netip.Addr{b}})
		r.wantRecords("declared for another source", "ALLOW ff3e::8000:1 [2001:db8::b]")
		r.settle()
		r.kernel.Tell(left(channel)...)
		r.wantRecords("left by the applications", "BLOCK ff3e::8000:1 [2001:db8::a]")
		r.settle()
		r.kernel.Tell(kernel.Change{Addr: group, Joined: true, Exclude: true, Sources: []netip.Addr{a, b}})
		r.wantRecords("all but two", "TO_EX ff05::4321 [2001:db8::a 2001:db8::b]")
		r.settle()
		r.listen(group, listener.Filter{Sources: []netip.Addr{b}})
		r.wantRecords("one of them declared", "ALLOW ff05::4321 [2001:db8::b]")
	})
}

// TestV2_46_MTU: no packet is longer than the link's MTU.
func TestV2_46_MTU(t *testing.T) {
	sources := make([]netip.Addr, 300)
	for i := range sources {
		sources[i] = netip.AddrFrom16([16]byte{0x20, 1, 0x0d, 0xb8, 14: byte(i >> 8), 15: byte(i)})
	}
	setup{auto: true}.run(t, func(r *rig) {
		for _, mtu := range []int{1280, 1500, 9000} {
			state := ready
			state.MTU = mtu
			r.port.SetState(state)
			synctest.Wait()
			r.kernel.Tell(kernel.Change{Addr: group, Joined: true, Sources: sources})
			synctest.Wait()
			got := 0
			for _, p := range r.segment.Take() {
				if len(p.Bytes) > mtu {
					r.Errorf("MTU %d: a packet of %d octets", mtu, len(p.Bytes))
				}
				for record := range p.Message.Records.All() {
					got += record.Sources.Len()
				}
			}
			if got != len(sources) {
				r.Errorf("MTU %d: %d sources are reported", mtu, got)
			}
			r.kernel.Tell(left(group)...)
			r.settle()
		}
	})
}

// TestV1_33_V2_05_V2_59_V2_79_Warnings: what the texts want logged is logged, and once a minute at most, whoever goes on
// provoking it.
func TestV1_33_V2_05_V2_59_V2_79_Warnings(t *testing.T) {
	ssm := netip.MustParseAddr("ff3e::8000:1")
	from := func(src netip.Addr) []byte {
		return mld.AppendQuery(nil, src, mld.AllNodes, mld.Query{Version: mld.Version1, MaxResponseCode: 1000})
	}
	setup{auto: true}.run(t, func(r *rig) {
		var log bytes.Buffer
		must := func(err error) {
			if err != nil {
				r.Fatal(err)
			}
		}
		must(r.agent.do(r.Context(), func() { r.agent.log = slog.New(slog.NewTextHandler(&log, nil)) }))
		must(r.agent.Listen(r.Context(), subscriber, ssm, listener.Filter{Sources: []netip.Addr{netip.MustParseAddr("2001:db8::1")}}))
		hear := func(packet []byte, text string, want int) {
			r.Helper()
			r.router.Send(packet)
			synctest.Wait()
			if n := strings.Count(log.String(), text); n != want {
				r.Errorf("%d warnings of %q, want %d:\n%s", n, text, want, &log)
			}
		}
		global := netip.MustParseAddr("fd00:1::1")
		for _, src := range []netip.Addr{netip.IPv6Unspecified(), global} { // as from a neighbour during its DAD
			hear(mld.AppendReportV2(nil, src, []mld.Record{{Type: mld.ChangeToExclude, MulticastAddress: group}}), "msg=", 0)
			hear(mld.AppendReport(nil, src, group), "msg=", 0)
			hear(mld.AppendDone(nil, src, group), "msg=", 0)
		}
		for _, c := range []struct {
			packet []byte
			text   string
		}{
			{from(netip.IPv6Unspecified()), "not link-local"},
			{from(router), "source-specific"},
		} {
			hear(c.packet, c.text, 1)
			hear(c.packet, c.text, 1)
			<-time.After(warningPause) // of the bubble's clock
			hear(c.packet, c.text, 2)
		}
	})
}

// TestKeepEcho: a port in hairpin mode sends back what we have said. That is no contradiction, or it would never end.
func TestKeepEcho(t *testing.T) {
	setup{keep: true, auto: true}.run(t, func(r *rig) {
		echo := func() (n int) {
			for _, p := range r.segment.Take() {
				r.port.Hear(p.Bytes, false)
				n++
			}
			synctest.Wait()
			return n
		}
		for _, f := range []listener.Filter{
			listener.AnySource, {Mode: listener.Exclude, Sources: []netip.Addr{peer}},
			{Sources: []netip.Addr{own, peer}}, {Sources: []netip.Addr{own}}, {},
		} {
			r.listen(group, f)
			n := 0
			for range 100 {
				n += echo()
				r.pass(time.Second)
			}
			if n == 0 || n > 10 {
				r.Errorf("%v: %d Reports", f, n)
			}
		}
	})
}

// TestKeepStop: after Stop the kernel's leave is not contradicted.
func TestKeepStop(t *testing.T) {
	setup{keep: true, standing: joined(group)}.run(t, func(r *rig) {
		r.listen(group, listener.AnySource)
		r.kernel.Tell(left(group)...)
		r.wantSent("the kernel has left", "Report ff05::4321")
		if err := r.agent.Stop(r.Context()); err != nil {
			r.Fatal(err)
		}
		r.wantSent("stopped", "Done ff05::4321")
		r.port.Hear(mld.AppendDone(nil, own, group), false)
		r.wantSent("the kernel says once more that it has left")
	})
}

// TestRefusedTogether: a Report of many addresses that was refused concerns them all, and so does one that was taken.
// Nothing is remembered of what was left without a word.
func TestRefusedTogether(t *testing.T) {
	addrs := groups(3)
	down := ready
	down.Up = false
	for _, auto := range []bool{false, true} {
		setup{auto: auto, link: down}.run(t, func(r *rig) {
			for i, addr := range addrs {
				if err := r.agent.Listen(r.Context(), listener.SubscriberID(i+1), addr, listener.AnySource); err != nil {
					r.Fatal(err)
				}
			}
			r.port.Refuse(errors.New("no buffer space"))
			r.port.SetState(ready)
			synctest.Wait()
			ctx, cancel := context.WithTimeout(r.Context(), time.Microsecond)
			defer cancel()
			err := r.agent.WaitReported(ctx, addrs...)
			if want := fmt.Sprint(addrs); err == nil || !strings.Contains(err.Error(), want) {
				r.Errorf("%v does not say %q", err, want)
			}
			r.pass(time.Minute) // all repeats are refused
			r.wantRefused(3)
			r.port.Refuse(nil)
			if err := r.agent.Listen(r.Context(), 2, addrs[1], listener.Filter{}); err != nil {
				r.Fatal(err)
			}
			r.wantRefused(2)
			r.router.Send(mld.AppendQuery(nil, router, mld.AllNodes, mld.Query{Version: mld.Version2, MaxResponseCode: 1000}))
			if err := r.agent.WaitReported(r.Context(), addrs[0], addrs[2]); err != nil {
				r.Error(err)
			}
			r.wantRefused(0)

			r.port.Refuse(errors.New("no buffer space"))
			r.listen(other, listener.AnySource)
			r.wantRefused(1)
			r.port.SetState(down)
			synctest.Wait()
			r.listen(other, listener.Filter{})
			r.wantRefused(0)
		})
	}
}

// TestWaitLeft: when it returns, the last Done has left, so that the agent may be closed.
func TestWaitLeft(t *testing.T) {
	addrs := groups(200)
	setup{standing: joined(addrs...)}.run(t, func(r *rig) {
		r.settle()
		r.port.Slow(time.Millisecond)
		r.kernel.Tell(left(addrs...)...)
		if err := r.agent.WaitLeft(r.Context(), addrs...); err != nil {
			r.Fatal(err)
		}
		if n := r.segment.Sent(); n != len(addrs) {
			r.Errorf("%d Dones, want %d", n, len(addrs))
		}
	})
}
