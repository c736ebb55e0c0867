package e2e

import (
	"encoding/binary"
	"net"
	"net/netip"
	"testing"
	"time"

	"golang.org/x/net/ipv6"

	"github.com/seed-aaab8e3a/cni-mld/netnslab"
)

// A stream is numbered datagrams to a group, one after the other until it is ended.
type stream struct {
	group netip.Addr
	stop  chan struct{}
	sent  chan int
}

// stream begins a stream from a container, with a datagram at each tick.
func (c *container) stream(group netip.Addr, every time.Duration) *stream {
	c.tb.Helper()
	conn := c.sender(group)
	st := &stream{group, make(chan struct{}), make(chan int, 1)}
	go func() {
		defer conn.Close()
		tick := time.NewTicker(every)
		defer tick.Stop()
		n := 0
		for {
			select {
			case <-st.stop:
				st.sent <- n
				return
			case <-tick.C:
				if _, err := conn.Write(binary.BigEndian.AppendUint64(nil, uint64(n))); err != nil {
					st.sent <- n
					return
				}
				n++
			}
		}
	}()
	return st
}

// sender opens a socket that sends to a group, by way of the container's interface.
func (c *container) sender(group netip.Addr) *net.UDPConn {
	c.tb.Helper()
	c.eth0.LinkLocal() // without a source address the kernel refuses
	var conn *net.UDPConn
	if err := c.Do(func() (err error) {
		conn, err = net.DialUDP("udp6", nil, &net.UDPAddr{IP: group.AsSlice(), Port: port, Zone: c.eth0.Name()})
		if err == nil {
			err = ipv6.NewPacketConn(conn).SetMulticastInterface(&net.Interface{Index: c.eth0.Index()})
		}
		return err
	}); err != nil {
		c.tb.Fatal(err)
	}
	return conn
}

// end ends a stream and returns how many datagrams there were.
func (st *stream) end(tb testing.TB) int {
	tb.Helper()
	close(st.stop)
	select {
	case n := <-st.sent:
		return n
	case <-time.After(patience):
		tb.Fatal("the stream does not end")
	}
	return 0
}

// A datagram of a stream, as a capture has seen it come in.
type datagram struct {
	number int
	time   time.Time
}

// arrived returns the datagrams of a stream that have come in.
func (st *stream) arrived(c *netnslab.Capture) (list []datagram) {
	const headers = 40 + 8 // IPv6 and UDP
	for _, f := range c.Frames() {
		if p := f.IPv6(); !f.Outgoing && f.Dst() == st.group && f.ICMPv6() == 0 && len(p) >= headers+8 {
			list = append(list, datagram{int(binary.BigEndian.Uint64(p[headers:])), f.Time})
		}
	}
	return list
}

// missing returns how many datagrams of a stream have been left out since it first arrived, and the longest time
// between two that have come.
func (st *stream) missing(c *netnslab.Capture) (lost int, gap time.Duration) {
	list := st.arrived(c)
	for i, d := range list[1:] {
		lost += d.number - list[i].number - 1
		gap = max(gap, d.time.Sub(list[i].time))
	}
	return lost, gap
}
