package netnslab

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/gopacket/gopacket"
	"github.com/gopacket/gopacket/layers"
	"github.com/gopacket/gopacket/pcapgo"
	"github.com/mdlayher/socket"
	"golang.org/x/sys/unix"
)

// captureBuffer is asked for as the receive buffer of a capture; the kernel may give less.
const captureBuffer = 4 << 20

// A Frame is one Ethernet frame seen on an endpoint.
type Frame struct {
	Endpoint *Endpoint
	Time     time.Time // when the kernel saw it
	Outgoing bool      // sent by the endpoint's node, not heard by it
	Data     []byte    // from the destination MAC address on
}

// IPv6 is the frame's payload from the IPv6 header on, padding included, or nil if it is no IPv6 packet.
func (f Frame) IPv6() []byte {
	const header = 14
	if len(f.Data) < header+40 || binary.BigEndian.Uint16(f.Data[12:]) != unix.ETH_P_IPV6 {
		return nil
	}
	return f.Data[header:]
}

// Src is the IPv6 source address; zero if the frame is no IPv6 packet.
func (f Frame) Src() netip.Addr { return f.addr(8) }

// Dst is the IPv6 destination address; zero if the frame is no IPv6 packet.
func (f Frame) Dst() netip.Addr { return f.addr(24) }

func (f Frame) addr(offset int) netip.Addr {
	packet := f.IPv6()
	if packet == nil {
		return netip.Addr{}
	}
	return netip.AddrFrom16([16]byte(packet[offset:]))
}

// ICMPv6 is the type of an ICMPv6 message, with or without a Hop-by-Hop header before it; 0 if the frame is
// something else. The MLD types are 130 to 132 and 143.
func (f Frame) ICMPv6() uint8 {
	if m := f.icmpv6(); m != nil {
		return m[0]
	}
	return 0
}

// icmpv6 is an ICMPv6 message from its type on; nil if the frame is something else.
func (f Frame) icmpv6() []byte {
	packet := f.IPv6()
	if packet == nil {
		return nil
	}
	next, rest := packet[6], packet[40:]
	if next == unix.IPPROTO_HOPOPTS && len(rest) >= 2 {
		length := (int(rest[1]) + 1) * 8
		next, rest = rest[0], rest[min(length, len(rest)):]
	}
	if next != unix.IPPROTO_ICMPV6 || len(rest) == 0 {
		return nil
	}
	return rest
}

// String is the frame in one line: time, endpoint, direction, addresses, type, and which groups MLD speaks of.
func (f Frame) String() string {
	direction := "<-"
	if f.Outgoing {
		direction = "->"
	}
	text := f.Time.Format("15:04:05.000000 ") + f.Endpoint.String() + " " + direction + " "
	packet := f.IPv6()
	if packet == nil {
		return fmt.Sprintf("%s%d bytes", text, len(f.Data))
	}
	text += f.Src().String() + " > " + f.Dst().String()
	names := map[uint8]string{
		130: "MLD query", 131: "MLD report", 132: "MLD done", 143: "MLDv2 report",
		133: "router solicitation", 135: "neighbour solicitation", 136: "neighbour advertisement",
	}
	kind := f.ICMPv6()
	name, ok := names[kind]
	switch {
	case ok:
	case kind != 0:
		name = fmt.Sprintf("ICMPv6 type %d", kind)
	default:
		name = fmt.Sprintf("next header %d", packet[6])
	}
	return fmt.Sprintf("%s %s%s, %d bytes", text, name, groupsOf(f.icmpv6()), len(packet))
}

// groupsOf names the groups that an MLD message speaks of, at most eight, with what a record of version 2 says of each.
// A message that is cut short is described as far as it goes.
func groupsOf(message []byte) string {
	const header, record, most = 8, 20, 8
	addr := func(offset int) netip.Addr { return netip.AddrFrom16([16]byte(message[offset:])) }
	if len(message) < header {
		return ""
	}
	switch message[0] {
	case 130, 131, 132:
		if len(message) >= header+16 && !addr(header).IsUnspecified() {
			return " " + addr(header).String()
		}
	case 143:
		var text strings.Builder
		names := []string{1: "IS_IN", "IS_EX", "TO_IN", "TO_EX", "ALLOW", "BLOCK"}
		count := int(binary.BigEndian.Uint16(message[6:]))
		for i, at := 0, header; i < count && at+record <= len(message); i++ {
			if i == most {
				fmt.Fprintf(&text, " and %d more", count-most)
				break
			}
			name := "type " + strconv.Itoa(int(message[at]))
			if kind := int(message[at]); kind > 0 && kind < len(names) {
				name = names[kind]
			}
			sources := int(binary.BigEndian.Uint16(message[at+2:]))
			fmt.Fprintf(&text, " %s %s", name, addr(at+4))
			switch {
			case sources == 1 && at+record+16 <= len(message):
				fmt.Fprintf(&text, " {%s}", addr(at+record))
			case sources > 0:
				fmt.Fprintf(&text, " {%d sources}", sources)
			}
			at += record + 16*sources + 4*int(message[at+1])
		}
		return text.String()
	}
	return ""
}

// A Capture records the frames on one or more endpoints, in memory and in a pcapng file with one interface per
// endpoint. Its methods are safe for concurrent use, but Wait and Tshark fail the test and belong on its
// goroutine.
type Capture struct {
	lab     *Lab
	path    string
	sockets []*socket.Conn
	readers sync.WaitGroup
	closed  sync.Once

	mu      sync.Mutex
	file    *os.File
	pcap    *pcapgo.NgWriter
	frames  []Frame
	seen    int           // frames that Wait has passed
	arrived chan struct{} // closed when a frame comes
	err     error         // of writing the file
}

// Capture records what comes in and goes out at the endpoint, from its return until the end of the test or
// [Capture.Close]. With a filter only what that lets through.
func (e *Endpoint) Capture(filter ...Filter) *Capture {
	e.node.lab.tb.Helper()
	return e.node.lab.Capture(slices.Concat(filter...), e)
}

// Capture records several endpoints on one time line; a nil filter lets everything through.
func (l *Lab) Capture(filter Filter, endpoints ...*Endpoint) *Capture {
	l.tb.Helper()
	c := &Capture{lab: l, arrived: make(chan struct{})}
	err := c.open(endpoints)
	for i := 0; err == nil && i < len(endpoints); i++ {
		err = c.listen(i, endpoints[i], filter)
	}
	l.mu.Lock()
	l.captures = append(l.captures, c)
	l.mu.Unlock()
	if err != nil {
		l.fatalf("capture on %v: %v", endpoints, err)
	}
	return c
}

// open makes the file.
func (c *Capture) open(endpoints []*Endpoint) error {
	dir, err := c.lab.artifacts()
	if err != nil {
		return err
	}
	names := make([]string, len(endpoints))
	for i, e := range endpoints {
		names[i] = e.node.name + "-" + e.name
	}
	c.file, err = os.CreateTemp(dir, strings.Join(names, "+")+".*.pcapng")
	if err != nil {
		return err
	}
	c.path = c.file.Name()
	for _, e := range endpoints {
		intf := pcapgo.NgInterface{Name: e.String(), LinkType: layers.LinkTypeEthernet, OS: "linux", TimestampResolution: 9}
		if c.pcap == nil {
			c.pcap, err = pcapgo.NewNgWriterInterface(c.file, intf, pcapgo.DefaultNgWriterOptions)
		} else {
			_, err = c.pcap.AddInterface(intf)
		}
		if err != nil {
			return err
		}
	}
	return c.pcap.Flush()
}

// listen opens the socket on one endpoint and starts its reader.
func (c *Capture) listen(i int, e *Endpoint, filter Filter) error {
	conn, err := e.packetSocket(filter, unix.ETH_P_ALL)
	if err != nil {
		return err
	}
	c.sockets = append(c.sockets, conn)
	c.readers.Go(func() { c.read(i, e, conn) })
	return nil
}

// packetSocket opens an AF_PACKET socket on the endpoint. The filter is there before the first frame can come.
func (e *Endpoint) packetSocket(filter Filter, protocol uint16) (*socket.Conn, error) {
	var conn *socket.Conn
	err := e.node.Do(func() error {
		var err error
		conn, err = socket.Socket(unix.AF_PACKET, unix.SOCK_RAW, 0, "packet", nil)
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("%s: %w", e, err)
	}
	if len(filter) > 0 {
		err = conn.SetBPF(filter)
	}
	err = errors.Join(err,
		conn.SetReadBuffer(captureBuffer),
		conn.SetsockoptInt(unix.SOL_SOCKET, unix.SO_TIMESTAMPNS_NEW, 1),
		conn.Bind(&unix.SockaddrLinklayer{Protocol: bigEndian(protocol), Ifindex: e.index}))
	if err != nil {
		return nil, errors.Join(fmt.Errorf("%s: %w", e, err), conn.Close())
	}
	return conn, nil
}

func bigEndian(v uint16) uint16 {
	return binary.NativeEndian.Uint16(binary.BigEndian.AppendUint16(nil, v))
}

// read takes frames from a socket until Close sets a deadline, and then those that came before it.
func (c *Capture) read(i int, e *Endpoint, conn *socket.Conn) {
	raw, err := conn.SyscallConn()
	if err != nil {
		return
	}
	buf, oob := make([]byte, 1<<16+64), make([]byte, 128)
	drain := func(fd uintptr) {
		for {
			n, oobn, _, from, err := unix.Recvmsg(int(fd), buf, oob, unix.MSG_DONTWAIT)
			if errors.Is(err, unix.ENETDOWN) || errors.Is(err, unix.EINTR) {
				continue // a link that goes down is told once; it may come back
			}
			if err != nil {
				return
			}
			f := Frame{Endpoint: e, Time: timestamp(oob[:oobn]), Data: bytes.Clone(buf[:n])}
			if sa, ok := from.(*unix.SockaddrLinklayer); ok {
				f.Outgoing = sa.Pkttype == unix.PACKET_OUTGOING
			}
			c.add(i, f)
		}
	}
	_ = raw.Read(func(fd uintptr) bool { drain(fd); return false })
	_ = conn.SetReadDeadline(time.Time{})
	_ = raw.Read(func(fd uintptr) bool { drain(fd); return true })
}

// timestamp finds the kernel's time of a frame: a struct __kernel_timespec.
func timestamp(oob []byte) time.Time {
	messages, err := unix.ParseSocketControlMessage(oob)
	for _, m := range messages {
		if m.Header.Type == unix.SO_TIMESTAMPNS_NEW && len(m.Data) >= 16 && err == nil {
			seconds, nanos := binary.NativeEndian.Uint64(m.Data), binary.NativeEndian.Uint64(m.Data[8:])
			return time.Unix(int64(seconds), int64(nanos))
		}
	}
	return time.Now()
}

func (c *Capture) add(i int, f Frame) {
	c.mu.Lock()
	defer c.mu.Unlock()
	direction := pcapgo.NgEpbFlagDirectionInbound
	if f.Outgoing {
		direction = pcapgo.NgEpbFlagDirectionOutbound
	}
	info := gopacket.CaptureInfo{Timestamp: f.Time, CaptureLength: len(f.Data), Length: len(f.Data), InterfaceIndex: i}
	options := pcapgo.NgPacketOptions{Flags: &pcapgo.NgEpbFlags{Direction: direction}}
	err := c.pcap.WritePacketWithOptions(info, f.Data, options)
	c.err = errors.Join(c.err, err)
	c.frames = append(c.frames, f)
	close(c.arrived)
	c.arrived = make(chan struct{})
}

// Frames returns what has been captured so far. That a frame is not among them proves something once a frame that
// was sent after it is; [Capture.Wait] waits for that one. A [Receiver] may be ahead of a capture.
func (c *Capture) Frames() []Frame {
	c.mu.Lock()
	defer c.mu.Unlock()
	return slices.Clone(c.frames)
}

// Wait returns the next frame that matches: the first after the one that the last Wait returned, or of the whole
// capture. If none comes before timeout the test fails, telling what was waited for and what came instead.
func (c *Capture) Wait(timeout time.Duration, what string, match func(Frame) bool) Frame {
	c.lab.tb.Helper()
	deadline := time.NewTimer(timeout)
	defer deadline.Stop()
	c.mu.Lock()
	start := c.seen
	c.mu.Unlock()
	for next := start; ; {
		c.mu.Lock()
		frames, arrived := c.frames, c.arrived
		c.mu.Unlock()
		for ; next < len(frames); next++ {
			if match(frames[next]) {
				c.mu.Lock()
				c.seen = next + 1
				c.mu.Unlock()
				return frames[next]
			}
		}
		select {
		case <-arrived:
		case <-deadline.C:
			c.lab.fatalf("waited %v in vain for %s; the frames meanwhile:\n%s", timeout, what, listOf(frames[start:]))
		}
	}
}

func listOf(frames []Frame) string {
	const most = 50
	var text strings.Builder
	for i, f := range frames {
		if i == most {
			fmt.Fprintf(&text, "  and %d more\n", len(frames)-most)
			break
		}
		fmt.Fprintf(&text, "  %s\n", f)
	}
	if len(frames) == 0 {
		return "  none"
	}
	return text.String()
}

// Tshark runs tshark on the frames captured so far and returns what it prints, without the last newline. The
// arguments follow -n -r -, such as "-Y", "icmpv6.type == 131", "-T", "fields", "-e", "ipv6.src". Without tshark
// the test is skipped, see [Skip].
func (c *Capture) Tshark(ctx context.Context, args ...string) string {
	c.lab.tb.Helper()
	if _, err := exec.LookPath("tshark"); err != nil {
		Skip(c.lab.tb, "tshark is not installed")
	}
	frames, err := c.contents()
	if err != nil {
		c.lab.fatalf("capture %s: %v", c.path, err)
	}
	cmd := c.lab.Host().Command(ctx, "tshark", append([]string{"-n", "-r", "-"}, args...)...)
	cmd.Stdin = bytes.NewReader(frames)
	out, err := cmd.Output()
	if err != nil {
		c.lab.fatalf("tshark %q: %v", args, err)
	}
	return strings.TrimSuffix(string(out), "\n")
}

func (c *Capture) flush() error {
	c.mu.Lock()
	defer c.mu.Unlock()
	return errors.Join(c.err, c.pcap.Flush())
}

// contents reads the file, while nothing is written to it, for that could be half a frame.
func (c *Capture) contents() ([]byte, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if err := errors.Join(c.err, c.pcap.Flush()); err != nil {
		return nil, err
	}
	return os.ReadFile(c.path)
}

// Path is the pcapng file. It is removed when the test ends well.
func (c *Capture) Path() string { return c.path }

// Close ends the capture; the end of the test does it too. Frames that the kernel had no room for are an error.
func (c *Capture) Close() {
	c.lab.tb.Helper()
	c.closed.Do(func() {
		for _, conn := range c.sockets {
			_ = conn.SetReadDeadline(time.Unix(1, 0))
		}
		c.readers.Wait()
		for _, conn := range c.sockets {
			stats, err := conn.GetsockoptTpacketStats(unix.SOL_PACKET, unix.PACKET_STATISTICS)
			if err == nil && stats.Drops > 0 {
				c.lab.tb.Errorf("netnslab: capture %s lost %d frames", filepath.Base(c.path), stats.Drops)
			}
			_ = conn.Close()
		}
		if c.pcap != nil {
			if err := c.flush(); err != nil {
				c.lab.tb.Errorf("netnslab: capture %s: %v", c.path, err)
			}
		}
		if c.file != nil {
			_ = c.file.Close()
		}
	})
}

// multicastMAC is the Ethernet address of an IPv6 group (RFC 2464 section 7).
func multicastMAC(group netip.Addr) net.HardwareAddr {
	b := group.As16()
	return net.HardwareAddr{0x33, 0x33, b[12], b[13], b[14], b[15]}
}
