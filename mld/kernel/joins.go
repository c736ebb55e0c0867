package kernel

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"sync"

	"golang.org/x/net/ipv6"
	"golang.org/x/sys/unix"

	"github.com/seed-aaab8e3a/cni-mld/mld/netns"
)

// Joins makes the kernel join multicast addresses on one interface, so that a program which only binds the port
// receives them. It holds as many sockets as it takes, one for about 2340 addresses at the kernel's default of
// net.core.optmem_max; they are not bound and receive nothing themselves. Its methods are safe for concurrent use.
type Joins struct {
	ns    *netns.Namespace
	index int

	mu      sync.Mutex
	sockets []*joinSocket
	joined  map[netip.Addr]*joinSocket
	closed  bool
}

type joinSocket struct {
	*ipv6.PacketConn
	full bool
}

// NewJoins prepares joins on the interface with the given index. The namespace must stay open as long.
func NewJoins(ns *netns.Namespace, ifindex int) *Joins {
	return &Joins{ns: ns, index: ifindex, joined: make(map[netip.Addr]*joinSocket)}
}

// Join joins an address. Joining one again does nothing. With IPv6 switched off by disable_ipv6 the kernel lets an
// address be joined all the same, for the time when it is on again; it refuses when the MTU is below 1280.
func (j *Joins) Join(addr netip.Addr) error {
	j.mu.Lock()
	defer j.mu.Unlock()
	addr = addr.WithZone("")
	switch {
	case j.closed:
		return net.ErrClosed
	case !addr.Is6() || !addr.IsMulticast():
		return fmt.Errorf("join %s: not an IPv6 multicast address", addr)
	case j.joined[addr] != nil:
		return nil
	}
	for _, s := range j.sockets {
		if s.full {
			continue
		}
		err := s.JoinGroup(&net.Interface{Index: j.index}, &net.UDPAddr{IP: addr.AsSlice()})
		if err == nil {
			j.joined[addr] = s
			return nil
		}
		if !errors.Is(err, unix.ENOMEM) && !errors.Is(err, unix.ENOBUFS) {
			return j.joinError(addr, err)
		}
		s.full = true
	}
	s, err := j.open()
	if err != nil {
		return j.joinError(addr, err)
	}
	j.sockets = append(j.sockets, s)
	if err := s.JoinGroup(&net.Interface{Index: j.index}, &net.UDPAddr{IP: addr.AsSlice()}); err != nil {
		return j.joinError(addr, err)
	}
	j.joined[addr] = s
	return nil
}

// Leave leaves an address. Leaving one that is not joined does nothing.
func (j *Joins) Leave(addr netip.Addr) error {
	j.mu.Lock()
	defer j.mu.Unlock()
	addr = addr.WithZone("")
	s := j.joined[addr]
	switch {
	case j.closed:
		return net.ErrClosed
	case s == nil:
		return nil
	}
	// The socket lets go of the address even where the interface has lost it already.
	err := s.LeaveGroup(&net.Interface{Index: j.index}, &net.UDPAddr{IP: addr.AsSlice()})
	delete(j.joined, addr)
	s.full = false
	if err != nil && !errors.Is(err, unix.EADDRNOTAVAIL) && !errors.Is(err, unix.ENODEV) {
		return fmt.Errorf("leave %s on %s: %w", addr, j.name(), err)
	}
	return nil
}

// Close leaves everything. Further calls do nothing.
func (j *Joins) Close() error {
	j.mu.Lock()
	defer j.mu.Unlock()
	j.closed = true
	var err error
	for _, s := range j.sockets {
		err = errors.Join(err, s.Close())
	}
	j.sockets, j.joined = nil, nil
	return err
}

func (j *Joins) open() (*joinSocket, error) {
	var fd int
	err := j.ns.Do(func() (err error) {
		fd, err = unix.Socket(unix.AF_INET6, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("open socket: %w", err)
	}
	f := os.NewFile(uintptr(fd), "joins")
	defer f.Close()
	c, err := net.FilePacketConn(f)
	if err != nil {
		return nil, fmt.Errorf("open socket: %w", err)
	}
	return &joinSocket{PacketConn: ipv6.NewPacketConn(c)}, nil
}

// joinError says what can be done about a join that failed.
func (j *Joins) joinError(addr netip.Addr, err error) error {
	name := j.name()
	if errors.Is(err, unix.ENODEV) || errors.Is(err, unix.EINVAL) || errors.Is(err, unix.EADDRNOTAVAIL) {
		return fmt.Errorf("join %s on %s: there is no IPv6 on the interface (see its MTU, which must be 1280 or more, and "+
			"sysctl net.ipv6.conf.%s.disable_ipv6), or no interface: %w", addr, name, name, err)
	}
	return fmt.Errorf("join %s on %s: %w", addr, name, err)
}

// name is what people call the interface, as far as it can be found.
func (j *Joins) name() string {
	name := fmt.Sprintf("interface %d", j.index)
	_ = j.ns.Do(func() error {
		if ifi, err := net.InterfaceByIndex(j.index); err == nil {
			name = ifi.Name
		}
		return nil
	})
	return name
}
