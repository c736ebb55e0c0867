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

// BenchmarkJoinToData measures the time from an application's setsockopt to the first datagram that its kernel takes in
// for it, in a container whose kernel reports by itself and in one with our listener. The bridge's querier speaks
// version 2. The goal is a fortieth of the kernel's time.
func BenchmarkJoinToData(b *testing.B) {
	options := quiet
	options.Querier = 2
	s := newSegment(b, options, map[string]any{"mldVersion": "auto"})
	kernel, listener, sender := s.connect("kernel"), s.add("listener"), s.connect("sender")
	s.bridge.WaitQuerying(b.Context())
	var found samples
	for i := 0; b.Loop(); i++ {
		for j, c := range []struct {
			name string
			*container
		}{{"Kernel", kernel}, {"Listener", listener}} {
			group := netip.AddrFrom16([16]byte{0: 0xff, 1: 5, 11: byte(j), 12: 2, 13: byte(i >> 16), 14: byte(i >> 8), 15: byte(i)})
			found.add(c.name, c.joinToData(b, group, sender))
		}
	}
	found.report(b)
	b.Log("\n" + found.table())
	hold(b, "listener/kernel", found.median("Listener"), found.median("Kernel"), 1.0/40)
}

// joinToData joins a group that another container sends to without a pause, waits for the first datagram, and leaves.
func (c *container) joinToData(b *testing.B, group netip.Addr, sender *container) time.Duration {
	b.Helper()
	var socket *net.UDPConn
	if err := c.Do(func() (err error) {
		socket, err = net.ListenUDP("udp6", &net.UDPAddr{IP: net.IPv6unspecified, Port: port})
		return err
	}); err != nil {
		b.Fatal(err)
	}
	defer socket.Close()
	raw, err := socket.SyscallConn()
	if err != nil {
		b.Fatal(err)
	}
	if err := raw.Control(func(fd uintptr) { // the kernel's time, so that the Go scheduler has no part in it
		err = unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_TIMESTAMPNS_NEW, 1)
	}); err != nil {
		b.Fatal(err)
	}
	if err != nil {
		b.Fatal(err)
	}
	defer sender.flood(b, group)()
	application := ipv6.NewPacketConn(socket)
	begin := time.Now()
	if err := application.JoinGroup(&net.Interface{Index: c.eth0.Index()}, &net.UDPAddr{IP: group.AsSlice()}); err != nil {
		b.Fatal(err)
	}
	if err := socket.SetReadDeadline(time.Now().Add(patience)); err != nil {
		b.Fatal(err)
	}
	oob := make([]byte, 64)
	_, n, _, _, err := socket.ReadMsgUDP(make([]byte, 64), oob)
	if err != nil {
		b.Fatalf("%s: no data of %v: %v", c, group, err)
	}
	messages, err := unix.ParseSocketControlMessage(oob[:n])
	if err != nil || len(messages) != 1 || len(messages[0].Data) < 16 {
		b.Fatalf("%s: no time of arrival: %v, %v", c, messages, err)
	}
	stamp := messages[0].Data
	arrived := time.Unix(int64(binary.NativeEndian.Uint64(stamp)), int64(binary.NativeEndian.Uint64(stamp[8:])))
	return arrived.Sub(begin.Round(0))
}

// flood sends to a group, a datagram about every 25 µs, until the returned function is called.
func (c *container) flood(b *testing.B, group netip.Addr) (stop func()) {
	b.Helper()
	conn := c.sender(group)
	raw, err := conn.SyscallConn()
	if err != nil {
		b.Fatal(err)
	}
	stopped, ended := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(ended)
		defer conn.Close()
		pause := unix.NsecToTimespec(int64(20 * time.Microsecond))
		for {
			select {
			case <-stopped:
				return
			default:
			}
			_ = raw.Control(func(fd uintptr) { _, _ = unix.Write(int(fd), []byte("data")) })
			_ = unix.Prctl(unix.PR_SET_TIMERSLACK, 1, 0, 0, 0) // of this thread, or it sleeps 50 µs longer
			_ = unix.Nanosleep(&pause, nil)
		}
	}()
	return func() { close(stopped); <-ended }
}
