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
//	0s   resume fe80::a           it goes on from this address where another listener has ended
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
// and of MLDv2, where s1 is a source, s1-s9 are nine, and EX(s1,s2) is a filter:
//
//	0s   mtu 1280
//	0s   listen ff05::8 IN(s1)      "by 2"; mirror likewise
//	3s   query2 :: 10s              "sources s1,s2", "qrv 3", "qqic 20s", "code 0x9000" instead of a delay
//	3s   query2 ff05::8 1s sources s1,s2
//	3s   > TO_EX(ff05::8; s1,s2) BLOCK(ff05::9; s1)   a Report with two records
//	3s   ? version
//
// Lines with ">" and "=" are the listener's, the others are done to it. When all is done, time goes on until the
// listener waits for nothing any more. The transcript must come out as it stands.
func scenario(t *testing.T, cfg listener.Config, transcript string) {
	t.Helper()
	newNode(t, cfg, &share{1, 1}).play(transcript)
}

// play carries out a transcript and compares what comes out.
func (n *node) play(transcript string) {
	n.t.Helper()
	n.transcript = nil
	var want []string
	for line := range strings.Lines(transcript) {
		f := strings.Fields(line)
		if len(f) == 0 {
			continue
		}
		at, err := time.ParseDuration(f[0])
		if err != nil {
			n.t.Fatalf("%q: %v", line, err)
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
		n.t.Errorf("the listener does not keep to its part (-want +got):\n%s", diff)
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
	if got.Message.Type == mld.TypeReportV2 {
		return describeV2(t, p, got, source)
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
	number := func(s string) int {
		v, err := strconv.ParseInt(s, 0, 32)
		if err != nil {
			n.t.Fatal(err)
		}
		return int(v)
	}
	duration := func(s string) time.Duration {
		d, err := time.ParseDuration(s)
		if err != nil {
			n.t.Fatal(err)
		}
		return d
	}
	option := func(name string) (value string, ok bool) {
		i := slices.Index(args, name)
		if i < 0 {
			return "", false
		}
		return args[i+1], true
	}
	if s, ok := option("from"); ok {
		from = netip.MustParseAddr(s)
	}
	if s, ok := option("by"); ok {
		by = listener.SubscriberID(number(s))
	}
	receive := func(m mld.Message) { n.l.Receive(epoch.Add(at), from, m) }
	before := len(n.transcript)
	defer func() {
		n.drain()
		if verb == "query" || verb == "query2" || verb == "resume" { // which may concern many addresses, in any order
			slices.Sort(n.transcript[before:])
		}
	}()
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
	case "resume":
		n.l.Resume(epoch.Add(at), addr(0))
	case "join", "leave":
		filter := listener.AnySource
		if verb == "leave" {
			filter = listener.Filter{}
		}
		if err := n.l.Listen(epoch.Add(at), by, addr(0), filter); err != nil {
			n.t.Fatal(err)
		}
	case "forget":
		n.l.Forget(epoch.Add(at), by, addr(0))
	case "query":
		receive(mld.Message{Type: mld.TypeQuery, Version: mld.Version1, MulticastAddress: addr(0),
			MaxResponseCode: uint16(duration(args[1]) / time.Millisecond)})
	case "query2":
		q := mld.Query{Version: mld.Version2, MulticastAddress: addr(0), QRV: 2, QQIC: mld.EncodeQQIC(125 * time.Second)}
		if s, ok := option("code"); ok {
			q.MaxResponseCode = uint16(number(s))
		} else {
			q.MaxResponseCode = mld.EncodeMaxResponseCode(duration(args[1]))
		}
		if s, ok := option("qrv"); ok {
			q.QRV = uint8(number(s))
		}
		if s, ok := option("qqic"); ok {
			q.QQIC = mld.EncodeQQIC(duration(s))
		}
		if s, ok := option("sources"); ok {
			q.Sources = sources(n.t, s)
		}
		_, q.SuppressRouterProcessing = option("s")
		n.hear(at, mld.AppendQuery(nil, from, mld.AllNodes, q))
	case "listen", "mirror":
		take := n.l.Listen
		if verb == "mirror" {
			take = n.l.Mirror
		}
		if err := take(epoch.Add(at), by, addr(0), filter(n.t, args[1])); err != nil {
			n.log(at, "= "+err.Error())
		}
	case "mtu":
		n.l.SetMTU(number(args[0]))
	case "report":
		receive(mld.Message{Type: mld.TypeReport, Version: mld.Version1, MulticastAddress: addr(0)})
	case "done":
		receive(mld.Message{Type: mld.TypeDone, Version: mld.Version1, MulticastAddress: addr(0)})
	case "reportv2":
		receive(mld.Message{Type: mld.TypeReportV2, Version: mld.Version2})
	case "?":
		if args[0] == "version" {
			n.log(at, fmt.Sprint("= version ", n.l.Version()))
			break
		}
		n.log(at, "= "+args[0]+" "+n.state(addr(0)))
	default:
		n.t.Fatalf("%q is no verb of a scenario", verb)
	}
}

func (n *node) state(addr netip.Addr) string {
	a, ok := n.l.Address(addr)
	if !ok {
		return "Non-Listener"
	}
	s := strings.TrimSuffix(a.State.String(), " Listener")
	if n.l.Version() == mld.Version2 {
		kind := "IN"
		if a.Mode == listener.Exclude {
			kind = "EX"
		}
		s = kind + "(" + sourceNames(a.Sources) + ") " + s
	}
	if a.State == listener.DelayingListener {
		s += " due " + a.Due.Sub(epoch).String()
	}
	if a.LastReporter && n.l.Version() == mld.Version1 {
		s += " last"
	}
	return s
}

// share draws the same share of every range: with 1/1 the longest delay there is, with 0/1 the shortest.
type share struct{ num, den int64 }

func (s *share) Int64N(n int64) int64 { return max(n*s.num/s.den-1, 0) }

// hear has the listener hear a packet, as an agent would.
func (n *node) hear(at time.Duration, packet []byte) {
	n.t.Helper()
	p, err := mld.Parse(packet, 0)
	if err != nil {
		n.t.Fatal(err)
	}
	n.l.Receive(epoch.Add(at), p.Src, p.Message)
	clear(packet) // the listener must not have kept any of it
}

// source makes the i-th source, which scenarios call s1, s2 and so on.
func source(i int) netip.Addr {
	return netip.AddrFrom16([16]byte{0: 0x20, 1: 0x01, 2: 0x0d, 3: 0xb8, 14: byte(i >> 8), 15: byte(i)})
}

// sources reads a list of sources: "s1,s3-s5".
func sources(t testing.TB, list string) []netip.Addr {
	t.Helper()
	var all []netip.Addr
	for _, s := range strings.FieldsFunc(list, func(r rune) bool { return r == ',' }) {
		first, last, isRange := strings.Cut(s, "-")
		if !isRange {
			last = first
		}
		if a, err := netip.ParseAddr(first); err == nil {
			all = append(all, a)
			continue
		}
		var from, to int
		if _, err := fmt.Sscanf(first+" "+last, "s%d s%d", &from, &to); err != nil {
			t.Fatalf("%q is no list of sources: %v", list, err)
		}
		for i := from; i <= to; i++ {
			all = append(all, source(i))
		}
	}
	return all
}

// sourceNames writes a list of sources as sources reads it.
func sourceNames(list []netip.Addr) string {
	var names []string
	for i := 0; i < len(list); {
		b := list[i].As16()
		first := int(b[14])<<8 | int(b[15])
		if source(first) != list[i] {
			names = append(names, list[i].String())
			i++
			continue
		}
		run := 1
		for i+run < len(list) && list[i+run] == source(first+run) {
			run++
		}
		if run < 4 {
			run = 1
			names = append(names, fmt.Sprintf("s%d", first))
		} else {
			names = append(names, fmt.Sprintf("s%d-s%d", first, first+run-1))
		}
		i += run
	}
	return strings.Join(names, ",")
}

// filter reads a filter: "EX(s1,s2)".
func filter(t testing.TB, s string) listener.Filter {
	t.Helper()
	mode, list, ok := strings.Cut(strings.TrimSuffix(s, ")"), "(")
	f := listener.Filter{Sources: sources(t, list)}
	switch {
	case ok && mode == "IN":
	case ok && mode == "EX":
		f.Mode = listener.Exclude
	default:
		t.Fatalf("%q is no filter", s)
	}
	return f
}

// describeV2 writes the records of a Report, and insists on what holds for every Report of version 2.
func describeV2(t testing.TB, p listener.Packet, got mld.Packet, source netip.Addr) string {
	t.Helper()
	if got.Src != source || got.Dst != mld.AllMLDv2Routers || p.Dst != got.Dst || got.HopLimit != 1 {
		t.Fatalf("a Report goes from %v to %v with hop limit %d, handed out for %v", got.Src, got.Dst, got.HopLimit, p.Dst)
	}
	var s []string
	var again []mld.Record
	for r := range got.Message.Records.All() {
		answer := r.Type == mld.ModeIsInclude || r.Type == mld.ModeIsExclude
		switch {
		case answer != (p.Cause == listener.CauseAnswer), !answer && p.Cause != listener.CauseChanged:
			t.Fatalf("a record %v is handed out as %v", r.Type, p.Cause)
		case r.Sources.Len() == 0 && (r.Type == mld.ModeIsInclude || r.Type == mld.AllowNewSources || r.Type == mld.BlockOldSources):
			t.Fatalf("a record %v has no sources", r.Type) // V2-25, V2-43
		case !mld.Reportable(r.MulticastAddress):
			t.Fatalf("%v is reported", r.MulticastAddress) // V2-18
		}
		list := slices.Collect(r.Sources.All())
		again = append(again, mld.Record{Type: r.Type, MulticastAddress: r.MulticastAddress, Sources: list})
		text := fmt.Sprintf("%v(%v", r.Type, r.MulticastAddress)
		if len(list) > 0 {
			text += "; " + sourceNames(list)
		}
		s = append(s, text+")")
	}
	if len(s) == 0 || p.Records != len(s) || p.Addr != again[0].MulticastAddress {
		t.Fatalf("a Report of %d records about %v is handed out as one of %d about %v",
			len(s), again[0].MulticastAddress, p.Records, p.Addr)
	}
	// No auxiliary data, no octet more than there must be (V2-2, V2-3, V2-4).
	if want := mld.AppendReportV2(nil, source, again); !bytes.Equal(want, p.Bytes) {
		t.Fatalf("a Report is\n%x, want\n%x", p.Bytes, want)
	}
	// In which order the addresses come is nobody's concern.
	slices.SortStableFunc(s, func(a, b string) int { return strings.Compare(addressOf(a), addressOf(b)) })
	if source != own {
		s = append(s, "from "+source.String())
	}
	return strings.Join(s, " ")
}

// addressOf is the address in the text of a record.
func addressOf(record string) string {
	_, rest, _ := strings.Cut(strings.TrimSuffix(record, ")"), "(")
	addr, _, _ := strings.Cut(rest, ";")
	return addr
}
