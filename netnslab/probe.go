package netnslab

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"time"

	"github.com/mdlayher/socket"
	"github.com/vishvananda/netlink"
	"golang.org/x/net/bpf"
	"golang.org/x/sys/unix"

	"github.com/seed-aaab8e3a/cni-mld/mld/bridge"
)

// probeGroup is joined by nobody: an address for documentation (RFC 6676).
var probeGroup = netip.MustParseAddr("ff0e::db8:0:1")

// WaitQuerying waits until the bridge sends a group only where it is wanted, see [Bridge.Floods]. It fails the test
// if ctx ends first or a minute has passed. What it waits for takes a querier, and one response interval more
// (B1, B2).
func (b *Bridge) WaitQuerying(ctx context.Context) {
	b.node.lab.tb.Helper()
	ctx, cancel := context.WithTimeout(ctx, time.Minute)
	defer cancel()
	p := b.newProbe()
	defer p.close()
	for pause := time.Millisecond; p.floods(); pause = min(2*pause, 50*time.Millisecond) {
		select {
		case <-time.After(pause):
		case <-ctx.Done():
			b.node.lab.fatalf("bridge %s: still floods: %v%s", b.name, context.Cause(ctx), b.withoutQuerier())
		}
	}
}

// withoutQuerier says that the bridge knows no querier, if that is so and the kernel tells.
func (b *Bridge) withoutQuerier() string {
	port, err := bridge.FindPort(b.node.ns, b.index)
	if err != nil {
		return ""
	}
	defer port.Close()
	if state, err := port.State(); err != nil || state.Querier {
		return ""
	} else if !state.Snooping {
		return ": it does not snoop"
	}
	return ": it knows no querier, see BridgeOptions.Querier"
}

// Floods tells whether the bridge sends a group that nobody wants to all its ports, instead of only to those that
// a querier is behind. There must be a port with no querier behind it.
//
// It asks the bridge itself, by a packet to ff0e::db8:0:1 with Next Header 59 (none). If the bridge floods it
// appears at every endpoint.
func (b *Bridge) Floods() bool {
	b.node.lab.tb.Helper()
	p := b.newProbe()
	defer p.close()
	return p.floods()
}

// A probe sends packets that nobody wants into a bridge and sees which ports they leave by.
type probe struct {
	*Bridge
	send, tap *socket.Conn
}

func (b *Bridge) newProbe() *probe {
	b.node.lab.tb.Helper()
	send, err := b.rawSocket()
	b.must(err)
	tap, err := b.newTap()
	b.must(err)
	return &probe{b, send, tap}
}

func (p *probe) close() { _ = p.tap.Close() }

func (p *probe) floods() bool {
	p.node.lab.tb.Helper()
	spared, err := p.portsUp()
	p.must(err)
	if len(spared) == 0 {
		p.node.lab.fatalf("bridge %s: no port is up, so none can show whether it floods", p.name)
	}
	// The bridge and its ports have no queues: when Sendto returns, the tap has what the ports were given.
	p.must(p.send.Sendto(context.Background(), p.probeFrame(), 0, &unix.SockaddrLinklayer{Ifindex: p.index}))
	p.must(forgetOutgoing(p.tap, spared))
	return len(spared) == 0
}

// newTap opens a socket that sees probes leave by any interface of the host.
func (b *Bridge) newTap() (*socket.Conn, error) {
	mac := multicastMAC(probeGroup)
	filter, err := bpf.Assemble([]bpf.Instruction{
		bpf.LoadAbsolute{Off: 0, Size: 4},
		bpf.JumpIf{Cond: bpf.JumpEqual, Val: binary.BigEndian.Uint32(mac), SkipFalse: 3},
		bpf.LoadAbsolute{Off: 4, Size: 2},
		bpf.JumpIf{Cond: bpf.JumpEqual, Val: uint32(binary.BigEndian.Uint16(mac[4:])), SkipFalse: 1},
		bpf.RetConstant{Val: 64},
		bpf.RetConstant{Val: 0},
	})
	if err != nil {
		return nil, err
	}
	everywhere := &Endpoint{node: b.node, name: "*"}
	return everywhere.packetSocket(filter, unix.ETH_P_ALL)
}

// portsUp returns the indices of the bridge's ports that pass frames.
func (b *Bridge) portsUp() (map[int]struct{}, error) {
	links, err := b.node.links.LinkList()
	if err != nil {
		return nil, fmt.Errorf("ports: %w", err)
	}
	ports := map[int]struct{}{}
	for _, link := range links {
		if a := link.Attrs(); a.MasterIndex == b.index && a.OperState == netlink.OperUp {
			ports[a.Index] = struct{}{}
		}
	}
	return ports, nil
}

// forgetOutgoing removes from ports those that the tap has seen a frame leave by.
func forgetOutgoing(tap *socket.Conn, ports map[int]struct{}) error {
	raw, err := tap.SyscallConn()
	if err != nil {
		return err
	}
	var recvErr error
	err = raw.Read(func(fd uintptr) bool {
		buf := make([]byte, 64)
		for {
			_, from, err := unix.Recvfrom(int(fd), buf, unix.MSG_DONTWAIT)
			if err != nil {
				if !errors.Is(err, unix.EAGAIN) {
					recvErr = err
				}
				return true
			}
			if sa, ok := from.(*unix.SockaddrLinklayer); ok && sa.Pkttype == unix.PACKET_OUTGOING {
				delete(ports, sa.Ifindex)
			}
		}
	})
	return errors.Join(err, recvErr)
}

// probeFrame is an IPv6 packet to probeGroup that says nothing. The bridge drops one without any payload.
func (b *Bridge) probeFrame() []byte {
	const noNextHeader = 59
	payload := []byte("probe")
	src, dst := b.eui64().As16(), probeGroup.As16()
	frame := append(multicastMAC(probeGroup), b.mac...)
	frame = append(frame, 0x86, 0xdd, 0x60, 0, 0, 0, 0, byte(len(payload)), noNextHeader, 1)
	return slices.Concat(frame, src[:], dst[:], payload)
}
