package e2e

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"net"
	"net/netip"
	"testing"
	"time"

	mdnetlink "github.com/mdlayher/netlink"
	"golang.org/x/net/ipv6"
	"golang.org/x/sys/unix"
)

// BenchmarkJoinToMDB measures the time from an application's setsockopt to the bridge's event of the entry, in a
// container whose kernel reports by itself and in one with our listener. The kernel is in version 1 mode on a bridge
// whose querier asks so, and else in its default version 2.
func BenchmarkJoinToMDB(b *testing.B) {
	for _, querier := range []int{1, 2} {
		b.Run(fmt.Sprintf("MLDv%d", querier), func(b *testing.B) {
			options := quiet
			options.Querier = querier
			s := newSegment(b, options, nil)
			kernel, listener := s.connect("kernel"), s.add("listener")
			if querier == 1 {
				s.query(general, 0) // the bridge's own may have come too early
			}
			events := s.mdbEvents(b)
			var found samples
			for i := 0; b.Loop(); i++ {
				// Another group each time, because the bridge keeps what is left for two seconds.
				for _, c := range []struct {
					name string
					*container
				}{{"Kernel", kernel}, {"Listener", listener}} {
					group := netip.AddrFrom16([16]byte{0: 0xff, 1: 5, 12: 1, 13: byte(i >> 16), 14: byte(i >> 8), 15: byte(i)})
					found.add(c.name, c.joinToMDB(b, group, events, c.eth0.Peer().Index()))
				}
			}
			found.report(b)
		})
	}
}

// mdbEvents opens a socket that hears of new entries.
func (s *segment) mdbEvents(b *testing.B) *mdnetlink.Conn {
	b.Helper()
	var events *mdnetlink.Conn
	if err := s.Host().Do(func() (err error) {
		events, err = mdnetlink.Dial(unix.NETLINK_ROUTE, nil)
		return err
	}); err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() { _ = events.Close() })
	if err := events.JoinGroup(unix.RTNLGRP_MDB); err != nil {
		b.Fatal(err)
	}
	return events
}

// joinToMDB joins a group, waits until the bridge has it on the port, and leaves it.
func (c *container) joinToMDB(b *testing.B, group netip.Addr, events *mdnetlink.Conn, port int) time.Duration {
	b.Helper()
	var socket net.PacketConn
	if err := c.Do(func() (err error) {
		socket, err = net.ListenPacket("udp6", "[::]:0")
		return err
	}); err != nil {
		b.Fatal(err)
	}
	defer socket.Close()
	if err := events.SetReadDeadline(time.Now().Add(patience)); err != nil {
		b.Fatal(err)
	}
	application := ipv6.NewPacketConn(socket)
	address := group.As16()
	begin := time.Now()
	if err := application.JoinGroup(&net.Interface{Index: c.eth0.Index()}, &net.UDPAddr{IP: address[:]}); err != nil {
		b.Fatal(err)
	}
	index := binary.NativeEndian.AppendUint32(nil, uint32(port)) // eight octets before the group, in struct br_mdb_entry
	for {
		messages, err := events.Receive()
		if err != nil {
			b.Fatalf("%s: no entry for %v: %v", c, group, err)
		}
		for _, m := range messages {
			at := bytes.Index(m.Data, address[:])
			if m.Header.Type == unix.RTM_NEWMDB && at >= 8 && bytes.Equal(m.Data[at-8:at-4], index) {
				return time.Since(begin)
			}
		}
	}
}
