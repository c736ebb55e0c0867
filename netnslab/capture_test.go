package netnslab_test

import (
	"fmt"
	"net/netip"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/seed-aaab8e3a/cni-mld/netnslab"
)

// marked is an Ethernet frame that is no IPv6: the local experimental ethertype and a number.
func marked(number int) []byte {
	header := []byte{0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 2, 0, 0, 0, 9, 9, 0x88, 0xb5}
	return append(header, fmt.Sprintf("%-46d", number)...)
}

func isMarked(number int) func(netnslab.Frame) bool {
	return func(f netnslab.Frame) bool {
		return strings.TrimSpace(string(f.Data[14:])) == fmt.Sprint(number) && f.IPv6() == nil
	}
}

// Nothing that is sent after Capture returned is missed, in order, in both directions, at both ends.
func TestCapture(t *testing.T) {
	t.Parallel()
	lab := netnslab.New(t)
	a, b := lab.Veth(lab.Node("alice"), "eth0", lab.Node("bob"), "eth0")
	begin := time.Now()
	frames := lab.Capture(nil, a, b)
	const n = 200
	for i := range n {
		a.SendFrame(marked(i))
	}
	last := frames.Wait(5*time.Second, "last frame at bob", func(f netnslab.Frame) bool {
		return f.Endpoint == b && isMarked(n-1)(f)
	})
	if last.Time.Before(begin.Add(-time.Millisecond)) || last.Time.After(time.Now().Add(time.Millisecond)) {
		t.Errorf("time %v is not within the test", last.Time)
	}
	frames.Close()
	next := map[*netnslab.Endpoint]int{}
	for _, f := range frames.Frames() {
		if f.IPv6() != nil {
			continue
		}
		if !isMarked(next[f.Endpoint])(f) || f.Outgoing != (f.Endpoint == a) {
			t.Fatalf("%v %q, want number %d", f, f.Data, next[f.Endpoint])
		}
		next[f.Endpoint]++
	}
	if next[a] != n || next[b] != n {
		t.Errorf("got %d and %d frames, want %d", next[a], next[b], n)
	}
	// The file names both interfaces and the directions. 1 is inbound, 2 outbound.
	shown := frames.Tshark(t.Context(), "-Y", "eth.type == 0x88b5", "-T", "fields",
		"-e", "frame.interface_name", "-e", "frame.packet_flags_direction")
	count := map[string]int{}
	for line := range strings.Lines(shown + "\n") {
		count[strings.TrimSpace(line)]++
	}
	if len(count) != 2 || count["alice:eth0\t0x00000002"] != n || count["bob:eth0\t0x00000001"] != n {
		t.Errorf("tshark counts %v", count)
	}
}

// Wait goes forward: what it has passed it does not return again.
func TestCaptureWait(t *testing.T) {
	t.Parallel()
	lab := netnslab.New(t)
	a, b := lab.Veth(lab.Node("alice"), "eth0", lab.Node("bob"), "eth0")
	frames := b.Capture()
	for i := range 3 {
		a.SendFrame(marked(i))
	}
	anyMark := func(f netnslab.Frame) bool { return f.IPv6() == nil }
	for i := range 3 {
		if f := frames.Wait(5*time.Second, "frame", anyMark); !isMarked(i)(f) {
			t.Errorf("frame %d is %q", i, f.Data)
		}
	}
	// It blocks until the frame comes.
	waited := make(chan netnslab.Frame)
	go func() { waited <- frames.Wait(5*time.Second, "frame", anyMark) }()
	a.SendFrame(marked(3))
	if f := <-waited; !isMarked(3)(f) {
		t.Errorf("got %q", f.Data)
	}
	p := run(func(p *program) {
		lab := netnslab.New(p)
		a, b := lab.Veth(lab.Node("alice"), "eth0", lab.Node("bob"), "eth0")
		frames := b.Capture()
		a.SendFrame(marked(0))
		frames.Wait(50*time.Millisecond, "miracle", func(netnslab.Frame) bool { return false })
	})
	for _, want := range []string{"waited 50ms in vain for miracle", "bob:eth0 <- 60 bytes"} {
		if log := p.log.String(); !p.Failed() || !strings.Contains(log, want) {
			t.Errorf("no %q in %q", want, log)
		}
	}
}

// The filters let through what tshark takes for MLD and ICMPv6.
func TestFilters(t *testing.T) {
	t.Parallel()
	lab := netnslab.New(t)
	br := lab.Bridge("br0", netnslab.BridgeOptions{Querier: 1})
	alice, bob := br.Connect(lab.Node("alice"), "eth0", netnslab.Down), br.Connect(lab.Node("bob"), "eth0")
	everything, mld, icmp := alice.Capture(), alice.Capture(netnslab.MLD), alice.Capture(netnslab.ICMPv6)
	alice.SetUp()
	alice.LinkLocal()
	membership := alice.Join(group)
	everything.Wait(5*time.Second, "report", func(f netnslab.Frame) bool {
		return f.ICMPv6() == 131 && f.Dst() == group
	})
	_ = membership.Close()
	everything.Wait(5*time.Second, "done", isMLD(132))
	bob.Send(allNodes, 9, []byte("no ICMPv6"), 1)
	// Checksums are left out: filters do not look at them.
	for _, p := range []struct {
		next    byte
		payload []byte
	}{
		{0, []byte{58, 1, 5, 2, 0, 0, 1, 8, 0, 0, 0, 0, 0, 0, 0, 0, 131, 0, 0, 0, 0, 0, 0, 0}}, // a Hop-by-Hop header of 16
		{0, []byte{58, 1, 5, 2, 0, 0, 1, 8, 0, 0, 0, 0, 0, 0, 0, 0, 129, 0, 0, 0, 0, 0, 0, 0}},
		{0, []byte{17, 0, 5, 2, 0, 0, 1, 0, 131, 0, 0, 9, 0, 8, 0, 0}}, // UDP behind one
		{58, []byte{135, 0, 0, 0, 0, 0, 0, 0}},
		{58, []byte{132, 0, 0, 0, 0, 0, 0, 0}},
		{58, []byte{133, 0, 0, 0, 0, 0, 0, 0}},
		{17, []byte{143, 0, 0, 9, 0, 8, 0, 0}},
	} {
		packet := slices.Concat([]byte{0x60, 0, 0, 0, 0, byte(len(p.payload)), p.next, 1},
			bob.LinkLocal().AsSlice(), allNodes.AsSlice(), p.payload)
		bob.SendPacket(packet)
	}
	bob.SendFrame(marked(1))
	everything.Wait(5*time.Second, "the end", isMarked(1))
	for _, c := range []*netnslab.Capture{everything, mld, icmp} {
		c.Close()
	}
	for _, c := range []struct {
		name, filter, last string
		capture            *netnslab.Capture
		match              func(netnslab.Frame) bool
	}{
		{"MLD", "icmpv6.type in {130,131,132,143}", "132\tfe80::ff:fe00:201", mld, isMLD(130, 131, 132, 143)},
		{"ICMPv6", "icmpv6", "133\tfe80::ff:fe00:201", icmp, func(f netnslab.Frame) bool { return f.ICMPv6() != 0 }},
	} {
		fields := []string{"-T", "fields", "-e", "icmpv6.type", "-e", "ipv6.src", "-e", "ipv6.dst"}
		want := everything.Tshark(t.Context(), append([]string{"-Y", c.filter}, fields...)...)
		got := c.capture.Tshark(t.Context(), fields...)
		// The captures do not end at the same moment, so up to the last of the frames made here. Two frames of one moment
		// may come to two captures in either order, and each capture may have read the time by itself.
		upTo := func(lines string) []string {
			before, _, _ := strings.Cut(lines, c.last)
			return slices.Sorted(strings.SplitSeq(before, "\n"))
		}
		if !slices.Equal(upTo(got), upTo(want)) || !strings.Contains(got, c.last) {
			t.Errorf("%s: got\n%s\nwant\n%s", c.name, got, want)
		}
		matches := 0
		for _, f := range everything.Frames() {
			if c.match(f) {
				matches++
			}
		}
		if lines := strings.Count(want, "\n") + 1; matches != lines {
			t.Errorf("%s: Frame.ICMPv6 says %d frames, tshark %d", c.name, matches, lines)
		}
	}
}

// A link that goes down and up does not end a capture.
func TestCaptureSurvivesLinkDown(t *testing.T) {
	t.Parallel()
	lab := netnslab.New(t)
	a, b := lab.Veth(lab.Node("alice"), "eth0", lab.Node("bob"), "eth0")
	frames := b.Capture()
	b.SetDown()
	b.SetUp()
	b.LinkLocal()
	a.SendFrame(marked(7))
	frames.Wait(5*time.Second, "frame", isMarked(7))
}

// The name of a test may be longer than that of a file.
func TestCaptureInLongTest(t *testing.T) {
	t.Run(strings.Repeat("long", 70), func(t *testing.T) {
		lab := netnslab.New(t)
		_, e := lab.Veth(lab.Host(), "v", lab.Node("pod"), "eth0")
		if _, err := os.Stat(e.Capture().Path()); err != nil {
			t.Error(err)
		}
	})
}

// The line of a frame says what MLD speaks of, in the words of RFC 9777. The kernel is the one who speaks.
func TestFrameNamesGroups(t *testing.T) {
	t.Parallel()
	lab := netnslab.New(t)
	br := lab.Bridge("br0", netnslab.BridgeOptions{Querier: 2})
	alice := br.Connect(lab.Node("alice"), "eth0")
	alice.LinkLocal()
	frames := alice.Capture(netnslab.MLD)
	says := func(want string) {
		t.Helper()
		frames.Wait(10*time.Second, want, func(f netnslab.Frame) bool { return strings.Contains(f.String(), want) })
	}
	channel, source := netip.MustParseAddr("ff3e::8000:1"), netip.MustParseAddr("fd00:1::10")
	alice.JoinSource(channel, source)
	says("ALLOW ff3e::8000:1 {fd00:1::10}")
	m := alice.Join(group)
	says("TO_EX ff05::4321")
	if err := m.Close(); err != nil {
		t.Fatal(err)
	}
	says("TO_IN ff05::4321")
	says("> ff05::4321 MLD query ff05::4321, ") // the bridge asks who is left
	says("> ff02::1 MLD query, ")

	many := make([]byte, 8+10*20) // ten records of a type that does not exist, and one more that is not there
	many[0], many[7] = 143, 11
	frame := func(message []byte) netnslab.Frame {
		packet := append(make([]byte, 14+40), message...)
		packet[12], packet[13], packet[14+6] = 0x86, 0xdd, 58
		return netnslab.Frame{Endpoint: alice, Data: packet}
	}
	if text := frame(many).String(); !strings.Contains(text, "MLDv2 report type 0 :: type 0 ::") ||
		!strings.Contains(text, "type 0 :: and 3 more, ") {
		t.Error(text)
	}
	for n := range len(many) { // foreign bytes never panic
		many[8+3] = byte(n) // sources
		_ = frame(many[:n]).String()
	}
}
