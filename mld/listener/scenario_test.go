package listener_test

import (
	"bytes"
	"fmt"
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/seed-aaab8e3a/cni-mld/mld"
	"github.com/seed-aaab8e3a/cni-mld/mld/listener"
)

// A scenario is a transcript in virtual time. What is done to a listener and what it says stand in it in order:
//
//	0s   source fe80::a           it may send from this address; "none": not at all
//	0s   draw 1/2                 from now on every random delay is half of what it may be at most
//	0s   join ff05::8             a subscriber comes; "by 2": subscriber 2 instead of 1
//	0s   > Report ff05::8 joined  it reports ff05::8, because it has just been joined
//	3s   query :: 1s              a General Query with that Maximum Response Delay is heard
//	3s   query ff05::8 1s         a Specific Query; "from ADDR" tells the source of any message
//	3s   report ff05::8           another node's Report is heard; likewise done, reportv2
//	4s   leave ff05::8            the subscriber goes; or forget
//	4s   ? ff05::8                what is the state of the address?
//	4s   = ff05::8 Idle           this, "last" if its node reported last, "due T" if Delaying
//	9s   wait                     nothing happens, which shows that nothing was said before
//
// Lines with ">" and "=" are the listener's, the others are done to it. When all is done, time goes on until the
// listener waits for nothing any more. The transcript must come out as it stands.
func scenario(t *testing.T, cfg listener.Config, transcript string) {
	t.Helper()
	n := newNode(t, cfg, &share{1, 1})
	var want []string
	for line := range strings.Lines(transcript) {
		f := strings.Fields(line)
		if len(f) == 0 {
			continue
		}
		at, err := time.ParseDuration(f[0])
		if err != nil {
			t.Fatalf("%q: %v", line, err)
		}
		f[0] = at.String()
		want = append(want, strings.Join(f, " "))
		if f[1] == ">" || f[1] == "=" {
			continue
		}
		n.runUntil(at)
		n.log(at, strings.Join(f[1:], " "))
		n.do(at, f[1], f[2:])
	}
	n.runUntil(forever)
	if diff := cmp.Diff(want, n.transcript); diff != "" {
		t.Errorf("the listener does not keep to its part (-want +got):\n%s", diff)
	}
}

const forever = 1000 * time.Hour

var (
	epoch = time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)
	own   = netip.MustParseAddr("fe80::a")
	other = netip.MustParseAddr("fe80::b")
)

var equalAddr = cmp.Comparer(func(a, b netip.Addr) bool { return a == b })

// A node does what every caller of a listener must do: it drains the packets after each call and comes back at
// each deadline. It judges each packet on its own, too.
type node struct {
	t          testing.TB
	l          *listener.Listener
	draws      *share
	now        time.Duration
	transcript []string
	packets    [][]byte
}

func newNode(t testing.TB, cfg listener.Config, draws *share) *node {
	t.Helper()
	l, err := listener.New(cfg, draws)
	if err != nil {
		t.Fatal(err)
	}
	return &node{t: t, l: l, draws: draws}
}

func (n *node) log(at time.Duration, what string) {
	n.transcript = append(n.transcript, at.String()+" "+what)
}

// runUntil lets time go on to at, with everything that falls due up to then.
func (n *node) runUntil(at time.Duration) {
	n.t.Helper()
	for range 100_000 {
		deadline, ok := n.l.NextDeadline()
		if !ok || deadline.Sub(epoch) > at {
			if at != forever {
				n.now = at
			}
			return
		}
		n.now = max(n.now, deadline.Sub(epoch))
		n.l.Advance(epoch.Add(n.now))
		before := len(n.transcript)
		n.drain()
		slices.Sort(n.transcript[before:]) // what falls due at one moment comes in any order
	}
	n.t.Fatalf("the listener always has a deadline before %v", at)
}

func (n *node) drain() {
	n.t.Helper()
	for p := range n.l.Outgoing() {
		n.packets = append(n.packets, bytes.Clone(p.Bytes))
		n.log(n.now, "> "+describe(n.t, p, n.l.Source()))
	}
	if err := n.l.Check(); err != nil {
		n.t.Fatal(err)
	}
}

// describe decodes a packet and insists on what holds for every one.
func describe(t testing.TB, p listener.Packet, source netip.Addr) string {
	t.Helper()
	accept := mld.Accept(0)
	if source.IsUnspecified() {
		accept = mld.AcceptUnspecified
	}
	got, err := mld.Parse(p.Bytes, accept)
	if err != nil {
		t.Fatalf("packet %x: %v", p.Bytes, err)
	}
	want := mld.Packet{Src: source, Dst: p.Addr, HopLimit: 1, Message: mld.Message{
		Type: mld.TypeReport, Version: mld.Version1, MulticastAddress: p.Addr,
	}}
	if p.Cause == listener.CauseLeft {
		want.Message.Type = mld.TypeDone
		want.Dst = netip.MustParseAddr("ff02::2")
	}
	if diff := cmp.Diff(want, got, equalAddr,
		cmp.Comparer(func(a, b mld.Sources) bool { return a.Len() == b.Len() }),
		cmp.Comparer(func(a, b mld.Records) bool { return a.Len() == b.Len() })); diff != "" {
		t.Fatalf("packet (-want +got):\n%s", diff)
	}
	if p.Dst != got.Dst || len(p.Bytes) != 40+8+24 {
		t.Fatalf("packet of %d octets to %v is handed out as one to %v", len(p.Bytes), got.Dst, p.Dst)
	}
	s := fmt.Sprintf("%v %v", got.Message.Type, got.Message.MulticastAddress)
	if p.Cause != listener.CauseLeft {
		s += " " + p.Cause.String()
	}
	if source != own {
		s += " from " + source.String()
	}
	return s
}

// do carries out a line of a transcript.
func (n *node) do(at time.Duration, verb string, args []string) {
	n.t.Helper()
	addr := func(i int) netip.Addr { return netip.MustParseAddr(args[i]) }
	from, by := other, listener.SubscriberID(1)
	if i := len(args) - 2; i >= 0 && args[i] == "from" {
		from = addr(i + 1)
	} else if i >= 0 && args[i] == "by" {
		id, err := strconv.Atoi(args[i+1])
		if err != nil {
			n.t.Fatal(err)
		}
		by = listener.SubscriberID(id)
	}
	receive := func(m mld.Message) { n.l.Receive(epoch.Add(at), from, m) }
	switch verb {
	case "wait":
	case "draw":
		if _, err := fmt.Sscanf(args[0], "%d/%d", &n.draws.num, &n.draws.den); err != nil {
			n.t.Fatal(err)
		}
	case "source":
		if args[0] == "none" {
			n.l.SetSource(epoch.Add(at), netip.Addr{})
		} else {
			n.l.SetSource(epoch.Add(at), addr(0))
		}
	case "join", "leave":
		filter := listener.AnySource
		if verb == "leave" {
			filter = listener.Filter{}
		}
		if err := n.l.Listen(epoch.Add(at), by, addr(0), filter); err != nil {
			n.t.Fatal(err)
		}
	case "forget":
		n.l.Forget(by, addr(0))
	case "query":
		delay, err := time.ParseDuration(args[1])
		if err != nil {
			n.t.Fatal(err)
		}
		receive(mld.Message{Type: mld.TypeQuery, Version: mld.Version1, MulticastAddress: addr(0),
			MaxResponseCode: uint16(delay / time.Millisecond)})
	case "report":
		receive(mld.Message{Type: mld.TypeReport, Version: mld.Version1, MulticastAddress: addr(0)})
	case "done":
		receive(mld.Message{Type: mld.TypeDone, Version: mld.Version1, MulticastAddress: addr(0)})
	case "reportv2":
		receive(mld.Message{Type: mld.TypeReportV2, Version: mld.Version2})
	case "?":
		n.log(at, "= "+args[0]+" "+n.state(addr(0)))
	default:
		n.t.Fatalf("%q is no verb of a scenario", verb)
	}
	n.drain()
}

func (n *node) state(addr netip.Addr) string {
	a, ok := n.l.Address(addr)
	if !ok {
		return "Non-Listener"
	}
	s := strings.TrimSuffix(a.State.String(), " Listener")
	if a.State == listener.DelayingListener {
		s += " due " + a.Due.Sub(epoch).String()
	}
	if a.LastReporter {
		s += " last"
	}
	return s
}

// share draws the same share of every range: with 1/1 the longest delay there is, with 0/1 the shortest.
type share struct{ num, den int64 }

func (s *share) Int64N(n int64) int64 { return max(n*s.num/s.den-1, 0) }
