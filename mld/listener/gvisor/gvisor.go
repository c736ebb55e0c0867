package main

import (
	"encoding/binary"
	"fmt"
	"math/rand"
	"net/netip"
	"time"

	"gvisor.dev/gvisor/pkg/buffer"
	"gvisor.dev/gvisor/pkg/tcpip"
	"gvisor.dev/gvisor/pkg/tcpip/faketime"
	"gvisor.dev/gvisor/pkg/tcpip/link/channel"
	"gvisor.dev/gvisor/pkg/tcpip/network/ipv6"
	"gvisor.dev/gvisor/pkg/tcpip/stack"

	"github.com/seed-aaab8e3a/cni-mld/mld"
)

// A gvisor is a netstack with one interface, whose packets end in a channel.
type gvisor struct {
	stack *stack.Stack
	link  *channel.Endpoint
	clock *faketime.ManualClock
}

const nic = 1

// newGvisor makes a stack that can have so many packets underway, and says nothing any more of the addresses that an
// interface listens to by itself.
func newGvisor(version mld.Version, packets int) *gvisor {
	g := &gvisor{link: channel.New(packets, mtu, "\x02\x00\x00\x00\x00\x0a"), clock: faketime.NewManualClock()}
	g.stack = stack.New(stack.Options{
		NetworkProtocols: []stack.NetworkProtocolFactory{
			ipv6.NewProtocolWithOptions(ipv6.Options{MLD: ipv6.MLDOptions{Enabled: true}}),
		},
		Clock:      g.clock,
		RandSource: rand.NewSource(1),
	})
	check(g.stack.CreateNIC(nic, g.link))
	if version == mld.Version1 {
		endpoint, err := g.stack.GetNetworkEndpoint(nic, ipv6.ProtocolNumber)
		check(err)
		endpoint.(ipv6.MLDEndpoint).SetMLDVersion(ipv6.MLDVersion1)
	}
	check(g.stack.AddProtocolAddress(nic, tcpip.ProtocolAddress{
		Protocol:          ipv6.ProtocolNumber,
		AddressWithPrefix: tcpip.AddrFrom16(own.As16()).WithPrefix(),
	}, stack.AddressProperties{}))
	g.rest()
	return g
}

func check(err tcpip.Error) {
	if err != nil {
		panic(fmt.Sprintf("gvisor: %v", err))
	}
}

func (g *gvisor) close() { g.stack.Destroy() }

// rest lets time go on until nothing is due any more.
func (g *gvisor) rest() {
	for quiet := 0; quiet < 3; quiet++ {
		g.clock.Advance(10 * time.Second)
		if g.link.Drain() > 0 {
			quiet = 0
		}
	}
}

func (g *gvisor) listen(list []tcpip.Address) {
	for _, a := range list {
		check(g.stack.JoinGroup(ipv6.ProtocolNumber, nic, a))
		if g.link.Drain() != 1 {
			panic("gvisor: a join has not made one packet")
		}
	}
}

// answer answers a General Query with a Maximum Response Delay of at most 10 s.
func (g *gvisor) answer(query []byte) {
	p := stack.NewPacketBuffer(stack.PacketBufferOptions{Payload: buffer.MakeWithData(query)})
	g.link.InjectInbound(ipv6.ProtocolNumber, p)
	p.DecRef()
	g.clock.Advance(10 * time.Second)
}

// taken takes the packets away and counts the addresses that they report.
func (g *gvisor) taken() (addresses int) {
	for p := g.link.Read(); p != nil; p = g.link.Read() {
		b := p.ToView()
		parsed, err := mld.Parse(b.AsSlice(), 0)
		if err != nil {
			panic(fmt.Sprintf("gvisor: sent a packet that is refused: %v", err))
		}
		addresses += max(1, parsed.Message.Records.Len())
		b.Release()
		p.DecRef()
	}
	return addresses
}

// tcpipAddresses returns n multicast addresses.
func tcpipAddresses(n int) []tcpip.Address {
	list := make([]tcpip.Address, n)
	for i := range list {
		list[i] = tcpip.AddrFrom16(address(i).As16())
	}
	return list
}

// address returns one of many multicast addresses.
func address(i int) netip.Addr {
	a := [16]byte{0: 0xff, 1: 0x05, 10: 0x01}
	binary.BigEndian.PutUint32(a[12:], uint32(i))
	return netip.AddrFrom16(a)
}
