//go:build twin

package twin

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"

	"github.com/seed-aaab8e3a/cni-mld/mld"
	"github.com/seed-aaab8e3a/cni-mld/mld/listener"
	"github.com/seed-aaab8e3a/cni-mld/netnslab"
)

// TestV2_36_Storm asks a General Query again and again (L11): each answers all that were asked before, so that none
// waits for longer than its Maximum Response Delay. The kernel draws anew with each query.
func TestV2_36_Storm(t *testing.T) {
	t.Parallel()
	const (
		delay   = 200 * time.Millisecond
		pause   = 50 * time.Millisecond
		late    = delay + pause
		queries = 100
	)
	r := newRig(t)
	for range queries {
		for _, w := range r.twins() {
			w.ask(query{version: 2, delay: delay, qrv: 2, qqi: 125})
		}
		<-time.After(pause)
	}
	// A busy machine is late now and then; drawing anew makes a quarter of the answers late.
	share := func(w *twin) int {
		unanswered, answers, tooLate := time.Time{}, 0, 0
		for _, p := range w.packets(t.Context()) {
			if p.query && unanswered.IsZero() {
				unanswered = p.time
			}
			if _, background := p.byGroup()[other]; background && p.records[0].current() && !unanswered.IsZero() {
				answers++
				if p.time.Sub(unanswered) > late {
					tooLate++
				}
				unanswered = time.Time{}
			}
		}
		t.Logf("%s: %d answers, %d of them late", w.name, answers, tooLate)
		if answers == 0 {
			return 100
		}
		return 100 * tooLate / answers
	}
	if n := share(r.ours); n > 10 {
		t.Errorf("ours: %d%% of the answers come later than %v after the query", n, delay)
	}
	if n := share(r.kernel); n == 0 {
		t.Errorf("the kernel is never late: L11 is no more")
	}
}

// TestV2_05_V2_09_Queries sends queries that are to be answered and ones that are not (L9), in which both twins have
// to agree.
func TestV2_05_V2_09_Queries(t *testing.T) {
	t.Parallel()
	g, source := addresses['g'], sourceAddr(0)
	ask := mld.Query{Version: mld.Version2, MulticastAddress: g, QRV: 2, QQIC: 125}
	withSource := ask
	withSource.Sources = []netip.Addr{source}
	general := ask
	general.MulticastAddress = netip.IPv6Unspecified()
	generalWithSource := general
	generalWithSource.Sources = withSource.Sources
	unicast := ask
	unicast.MulticastAddress = source
	build := func(src, dst netip.Addr, q mld.Query, changes ...func(b []byte) []byte) []byte {
		b := mld.AppendQuery(nil, src, dst, q)
		for _, change := range changes {
			b = change(b)
		}
		return b
	}
	set := func(at int, values ...byte) func(b []byte) []byte {
		return func(b []byte) []byte { copy(b[at:], values); return b }
	}
	const message = 48 // offset of the ICMPv6 message
	r := newRig(t)
	r.run(parse(t, "0 g EX{}"))
	for _, c := range []struct {
		rule, name string
		packet     []byte
		answered   bool
	}{
		{"V2-41", "as it should be", build(router, g, ask), true},
		{"V2-05", "hop limit 0", build(router, g, ask, set(7, 0)), false},
		{"V2-05", "hop limit 2", build(router, g, ask, set(7, 2)), false},
		{"V2-05", "hop limit 255", build(router, g, ask, set(7, 255)), false},
		{"V2-05", "no Hop-by-Hop header", build(router, g, ask, withoutHopByHop), false},
		{"V2-05", "Hop-by-Hop header without Router Alert", build(router, g, ask, set(42, 1, 4, 0, 0, 0, 0)), false},
		{"V2-05", "Router Alert of RSVP", build(router, g, ask, set(44, 0, 1)), false},
		{"V2-05", "from ::", build(netip.IPv6Unspecified(), g, ask), false},
		{"V2-05", "from a global address", build(netip.MustParseAddr("2001:db8::1"), g, ask), false},
		{"V2-69", "checksum", build(router, g, ask, set(message+2, 0, 0)), false},
		{"V2-02", "code 255", build(router, g, ask, set(message+1, 255), sum), true},
		{"V2-02", "reserved bits", build(router, g, ask, set(message+6, 255, 255), sum), true},
		{"V2-02", "flags", build(router, g, ask, set(message+24, 0xf2), sum), true},
		{"V2-12", "S flag", build(router, g, ask, set(message+24, 0x0a), sum), true},
		{"V2-08", "4 octets more", build(router, g, ask, grow(4), sum), true},
		{"V2-07", "26 octets", build(router, g, ask, grow(-2), sum), false},
		{"V2-08", "N of 1 without a source", build(router, g, ask, set(message+26, 0, 1), sum), false},
		{"V2-08", "N of 2 and one source", build(router, g, withSource, set(message+26, 0, 2), sum), false},
		{"V2-08", "N of 0 and one source", build(router, g, withSource, set(message+26, 0, 0), sum), true},
		{"V2-09", "General Query with a source", build(router, mld.AllNodes, generalWithSource), false},
		{"V2-06", "to all nodes", build(router, mld.AllNodes, ask), true},
		{"V2-10", "for a unicast address", build(router, mld.AllNodes, unicast), false},
	} {
		for _, w := range r.twins() {
			w.mark()
			begun := w.frames
			w.cable.SendPacket(c.packet)
			w.barrier(2)
			w.barrier(2) // the first may overtake the answer
			w.mark()
			answered := slices.ContainsFunc(w.glances[begun:], func(p packet) bool {
				return slices.ContainsFunc(p.records, func(x record) bool { return x.group == 'g' && x.current() })
			})
			if answered != c.answered {
				t.Errorf("%s, %s: %s: answered %v, want %v", c.rule, c.name, w.name, answered, c.answered)
			}
		}
	}
}

// withoutHopByHop removes the Hop-by-Hop header.
func withoutHopByHop(b []byte) []byte {
	b[6] = unix.IPPROTO_ICMPV6
	return grow(0)(slices.Concat(b[:40], b[48:]))
}

// grow makes a packet longer or shorter, and sets its Payload Length.
func grow(octets int) func(b []byte) []byte {
	return func(b []byte) []byte {
		b = append(b, make([]byte, max(0, octets))...)
		b = b[:len(b)+min(0, octets)]
		binary.BigEndian.PutUint16(b[4:], uint16(len(b)-40))
		return b
	}
}

// sum makes the checksum right again.
func sum(b []byte) []byte {
	m := b[48:]
	m[2], m[3] = 0, 0
	total := uint32(len(m)) + unix.IPPROTO_ICMPV6
	for _, part := range [][]byte{b[8:40], m} {
		for i, octet := range part {
			total += uint32(octet) << (8 * (1 - i%2))
		}
	}
	for total > 0xffff {
		total = total>>16 + total&0xffff
	}
	binary.BigEndian.PutUint16(m[2:], ^uint16(total))
	return b
}

// TestV2_58_V2_75_SourceSpecific joins an SSM group without sources (T13): ours refuses, the kernel says TO_EX.
func TestV2_58_V2_75_SourceSpecific(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	join := listen{group: 's', filter: filter{exclude: true}}
	if err := r.ours.side.listen(join, filter{}); !errors.Is(err, listener.ErrSourceSpecific) {
		t.Errorf("ours: %v, want %v", err, listener.ErrSourceSpecific)
	}
	if err := r.kernel.side.listen(join, filter{}); err != nil {
		t.Errorf("kernel: %v", err)
	}
	for _, w := range r.twins() {
		w.end() // which takes as long as telling a change does
	}
	said := func(w *twin) []string {
		var list []string
		for _, p := range w.packets(t.Context()) {
			if records := p.byGroup()['s']; len(records) > 0 {
				list = append(list, saying(records))
			}
		}
		return list
	}
	if got := said(r.ours); got != nil {
		t.Errorf("ours says %v, want nothing", got)
	}
	if got := fmt.Sprint(said(r.kernel)); got != "[TO_EX{} TO_EX{}]" {
		t.Errorf("the kernel says %v: T13 is no more", got)
	}
}

// TestV2_46_V2_47_Split has more sources than fit into a packet.
func TestV2_46_V2_47_Split(t *testing.T) {
	t.Parallel()
	const total, half, most = 120, 60, 89 // two sockets, because of net.ipv6.mld_max_msf; RFC 9777 section 5.2.16
	r := newRig(t)
	g := addresses['g']
	var sources []netip.Addr
	for i := range total {
		a := netip.MustParseAddr("2001:db8:1::").As16()
		a[15] = byte(i + 1)
		sources = append(sources, netip.AddrFrom16(a))
	}
	kernel, ours := r.kernel.side.(*sockets), r.ours.side.(ourSide).agent
	must := func(errs ...error) {
		t.Helper()
		if err := errors.Join(errs...); err != nil {
			t.Fatal(err)
		}
	}
	// expect waits until both have sent the records of kind for n transmissions, and compares them.
	expect := func(kind, transmissions int) {
		t.Helper()
		for _, w := range r.twins() {
			for left := 2 * transmissions; left > 0; {
				for _, x := range w.next(kinds[kind]).records {
					if x.group == 'g' && x.kind == kind {
						left--
					}
				}
			}
			only := fmt.Sprintf("icmpv6.mldr.mar.record_type == %d && icmpv6.mldr.mar.multicast_address == %s", kind, g)
			text := w.heard.Tshark(t.Context(), "-Y", only+" && icmpv6.mldr.mar.nb_sources > 0", "-T", "fields",
				"-E", "separator=|", "-e", "icmpv6.mldr.mar.nb_sources", "-e", "icmpv6.mldr.mar.source_address")
			lines := strings.Split(text, "\n")
			if len(lines) != 2*transmissions {
				t.Fatalf("%s: %s in %d packets:\n%s", w.name, kinds[kind], len(lines), text)
			}
			for i := 0; i < len(lines); i += 2 {
				first, second := strings.Split(lines[i], "|"), strings.Split(lines[i+1], "|")
				all := slices.Sorted(slices.Values(strings.Split(first[1]+","+second[1], ",")))
				if first[0] != fmt.Sprint(most) || second[0] != fmt.Sprint(total-most) || len(slices.Compact(all)) != total {
					t.Errorf("%s: %s: %s and %s sources, want %d and %d, each one once\n%s",
						w.name, kinds[kind], first[0], second[0], most, total-most, text)
				}
			}
		}
	}
	everything := listener.Filter{Sources: sources}
	for socket, part := range [][]netip.Addr{sources[:half], sources[half:]} {
		must(kernel.set(socket, unix.MCAST_JOIN_SOURCE_GROUP, g, part[0]),
			kernel.setSources(socket, g, unix.MCAST_INCLUDE, part))
	}
	must(ours.Listen(t.Context(), 1, g, everything))
	expect(allow, 2)
	for _, w := range r.twins() {
		w.ask(query{version: 2, group: 'g', qrv: 2, qqi: 125})
	}
	expect(isIn, 1)
	must(kernel.set(2, unix.MCAST_JOIN_GROUP, g), ours.Listen(t.Context(), 2, g, listener.AnySource))
	for _, w := range r.twins() {
		w.flush()
	}
	must(kernel.set(2, unix.MCAST_LEAVE_GROUP, g), ours.Listen(t.Context(), 2, g, listener.Filter{}))
	expect(toIn, 2)
	must(kernel.set(0, unix.MCAST_LEAVE_GROUP, g), kernel.set(1, unix.MCAST_LEAVE_GROUP, g),
		ours.Listen(t.Context(), 1, g, listener.Filter{}))
	expect(block, 2)
}

// TestV2_48_Truncate excludes more sources than fit into a packet, where net.ipv6.mld_max_msf, which is the machine's,
// lets a socket do so.
func TestV2_48_Truncate(t *testing.T) {
	t.Parallel()
	const total, most = 100, 89
	r := newRig(t)
	g := addresses['g']
	var sources []netip.Addr
	for i := range total {
		a := netip.MustParseAddr("2001:db8:1::").As16()
		a[15] = byte(i + 1)
		sources = append(sources, netip.AddrFrom16(a))
	}
	kernel := r.kernel.side.(*sockets)
	err := errors.Join(kernel.set(0, unix.MCAST_JOIN_GROUP, g), kernel.setSources(0, g, unix.MCAST_EXCLUDE, sources))
	if errors.Is(err, unix.ENOBUFS) {
		t.Skip("net.ipv6.mld_max_msf is below 100")
	}
	if err != nil {
		t.Fatal(err)
	}
	allBut := listener.Filter{Mode: listener.Exclude, Sources: sources}
	if err := r.ours.side.(ourSide).agent.Listen(t.Context(), 1, g, allBut); err != nil {
		t.Fatal(err)
	}
	var lists []string
	for _, w := range r.twins() {
		for left := 2; left > 0; {
			for _, x := range w.next("TO_EX").records {
				if x.group == 'g' {
					left--
				}
			}
		}
		text := w.heard.Tshark(t.Context(), "-Y", "icmpv6.mldr.mar.multicast_address == "+g.String(), "-T", "fields",
			"-E", "separator=|", "-e", "icmpv6.mldr.mar.nb_sources", "-e", "icmpv6.mldr.mar.source_address")
		lists = append(lists, strings.Split(text, "\n")...)
	}
	same := slices.Compact(slices.Clone(lists))
	if len(lists) != 4 || len(same) != 1 || !strings.HasPrefix(same[0], fmt.Sprint(most, "|")) {
		t.Errorf("want the same %d sources four times, got\n%s", most, strings.Join(lists, "\n"))
	}
}

// TestV2_14_QueryInterval0 has a querier that does not tell its interval, and then an older one (T11): 125 s are taken
// instead, so that a listener stays in MLDv1 mode. The kernel takes it for 0 and is back at once.
func TestV2_14_QueryInterval0(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	r.run(parse(t, "query 10 qqi=0; end; v1 0; end; 0 g EX{}"))
	kernel, ours := r.kernel.rounds(r.kernel.packets(t.Context())), r.ours.rounds(r.ours.packets(t.Context()))
	k, o := kernel[len(kernel)-1], ours[len(ours)-1]
	if k.err != nil || o.err != nil || k.text() != "g: TO_EX{} TO_EX{}" || o.text() != "g: Report Report" {
		t.Errorf("kernel: %v %v\nours: %v %v", k.text(), k.err, o.text(), o.err)
	}
}

// TestV2_61_Link takes the link down and up (L8, L18): all groups are told as if they had just been joined. The kernel
// does so for the link and again for the address, and is only waited for.
func TestV2_61_Link(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	r.run(parse(t, "0 g EX{a}; 0 s IN{ab}"))
	want := map[string]int{"g TO_EX{a}": 2, "s ALLOW{ab}": 2}
	for _, w := range r.twins() {
		begun := len(w.heard.Frames())
		w.port.SetDown()
		if w == r.ours {
			netnslab.WaitFor(t, "the agent sees the link down", patience, func() (bool, string) {
				state, err := w.side.(ourSide).agent.State(t.Context())
				return err == nil && !state.Link.Up, fmt.Sprint(state.Link, err)
			}, w.node)
		}
		w.port.SetUp()
		w.port.LinkLocal()
		told := func(packets []packet) map[string]int {
			count := map[string]int{}
			for _, p := range packets {
				for n, records := range p.byGroup() {
					if !n.helper() && p.src.IsLinkLocalUnicast() {
						count[n.String()+" "+saying(records)]++
					}
				}
			}
			return count
		}
		for got := told(nil); got["g TO_EX{a}"] < 2 || got["s ALLOW{ab}"] < 2; got = told(w.glances[begun:]) {
			w.next("announcement")
		}
		if w == r.kernel {
			continue
		}
		w.end()
		if diff := cmp.Diff(want, told(w.packets(t.Context())[begun:])); diff != "" {
			t.Errorf("ours told (-want +got):\n%s", diff)
		}
	}
}
