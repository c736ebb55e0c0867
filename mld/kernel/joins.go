package kernel

import (
	"encoding/binary"
	"errors"
	"fmt"
	"maps"
	"math/bits"
	"net"
	"net/netip"
	"os"
	"slices"
	"sync"
	"syscall"

	"golang.org/x/net/ipv6"
	"golang.org/x/sys/unix"

	"github.com/seed-aaab8e3a/cni-mld/mld/netns"
)

// Joins makes the kernel join multicast addresses on one interface, so that a program which only binds the port
// receives them. It holds as many sockets as it takes, one for about 2340 addresses at the kernel's default of
// net.core.optmem_max; they are not bound and receive nothing themselves. Its methods are safe for concurrent use.
//
// An address is joined with a source filter, which is the kernel's for the whole interface, together with those of
// other programs: what no filter wants reaches no program.
type Joins struct {
	ns     *netns.Namespace
	index  int
	keeper Keeper // nil: nobody

	mu      sync.Mutex
	sockets []*joinSocket
	joined  map[netip.Addr]joinedAddr
	closed  bool
}

// A joinedAddr is an address that a socket has joined.
type joinedAddr struct {
	socket *joinSocket
	filter sourceFilter
	lost   bool // the kernel has forgotten it, and did not take it again
}

// A sourceFilter is INCLUDE or EXCLUDE of a sorted list of sources.
type sourceFilter struct {
	exclude bool
	sources []netip.Addr
}

func (f sourceFilter) equal(o sourceFilter) bool {
	return f.exclude == o.exclude && slices.Equal(f.sources, o.sources)
}

type joinSocket struct {
	*ipv6.PacketConn
	raw  syscall.RawConn
	full bool
	kept uint64 // under which the Keeper has it
}

// A Keeper holds duplicates of sockets, in another process, so that what they have joined outlives this one: the kernel
// leaves when the last descriptor is closed.
type Keeper interface {
	// Keep takes a duplicate of a socket, whose descriptor is valid during the call, and names it.
	Keep(fd int) (id uint64, err error)
	// Drop closes that duplicate.
	Drop(id uint64) error
}

// ErrTooManySources says that the kernel takes no list of sources that long.
var ErrTooManySources = errors.New("more sources than sysctl net.ipv6.mld_max_msf allows for one address (64 unless " +
	"changed), or than sysctl net.core.optmem_max has room for")

// NewJoins prepares joins on the interface with the given index. The namespace must stay open as long. A keeper, which
// may be nil, gets every socket before it joins anything.
func NewJoins(ns *netns.Namespace, ifindex int, keeper Keeper) *Joins {
	return &Joins{ns: ns, index: ifindex, keeper: keeper, joined: make(map[netip.Addr]joinedAddr)}
}

// Join joins an address for packets from any source. If it is joined already, that replaces its filter; joining it
// again as it is does nothing. With IPv6 switched off by disable_ipv6 the kernel lets an address be joined all the
// same, for the time when it is on again; it refuses when the MTU is below 1280.
func (j *Joins) Join(addr netip.Addr) error { return j.JoinExclude(addr) }

// JoinExclude is [Joins.Join] for packets from any source but the given ones. The error wraps [ErrTooManySources] if
// they are more than the kernel takes; a filter from before stands then.
func (j *Joins) JoinExclude(addr netip.Addr, sources ...netip.Addr) error {
	return j.join(addr, sourceFilter{true, sources})
}

// JoinInclude is [Joins.Join] for packets from the given sources only, one at least. The error is that of
// [Joins.JoinExclude].
func (j *Joins) JoinInclude(addr netip.Addr, sources ...netip.Addr) error {
	if len(sources) == 0 {
		return fmt.Errorf("join %s: no sources to include", addr)
	}
	return j.join(addr, sourceFilter{false, sources})
}

func (j *Joins) join(addr netip.Addr, f sourceFilter) error {
	j.mu.Lock()
	defer j.mu.Unlock()
	addr = addr.WithZone("")
	switch {
	case j.closed:
		return net.ErrClosed
	case !addr.Is6() || !addr.IsMulticast():
		return fmt.Errorf("join %s: not an IPv6 multicast address", addr)
	case slices.ContainsFunc(f.sources, func(s netip.Addr) bool { return !s.Is6() || s.Is4In6() || s.IsMulticast() }):
		return fmt.Errorf("join %s: sources %v: not all are IPv6 unicast addresses", addr, f.sources)
	}
	f.sources = slices.Compact(slices.SortedFunc(slices.Values(f.sources), netip.Addr.Compare))
	old, again := j.joined[addr]
	if old.lost {
		old, again = joinedAddr{}, false
	}
	if again {
		if old.filter.equal(f) {
			return nil
		}
		err := old.socket.setFilter(j.index, addr, f)
		if err == nil {
			j.joined[addr] = joinedAddr{socket: old.socket, filter: f}
		}
		if !outOfMemory(err) {
			return j.joinError(addr, err)
		}
	}
	s, err := j.place(addr, f, old.socket)
	if err != nil {
		return j.joinError(addr, err)
	}
	j.joined[addr] = joinedAddr{socket: s, filter: f}
	if again {
		return j.leave(addr, old.socket)
	}
	return nil
}

// place joins an address on a socket with room for it, but not on the one where it is joined already.
func (j *Joins) place(addr netip.Addr, f sourceFilter, not *joinSocket) (*joinSocket, error) {
	var full []*joinSocket
	for _, s := range j.sockets {
		if s.full || s == not {
			continue
		}
		if err := s.join(j.index, addr, f); !outOfMemory(err) {
			return s, err
		}
		full = append(full, s)
	}
	s, err := j.open()
	if err != nil {
		return nil, err
	}
	if err := s.join(j.index, addr, f); err != nil {
		if outOfMemory(err) && len(f.sources) > 0 {
			err = fmt.Errorf("%d sources are %w: %w", len(f.sources), ErrTooManySources, err)
		}
		return nil, errors.Join(err, j.close(s))
	}
	for _, s := range full { // only now: it was not the list that was too long
		s.full = true
	}
	j.sockets = append(j.sockets, s)
	return s, nil
}

// outOfMemory tells whether a socket has no room for a membership, or the kernel none for a filter.
func outOfMemory(err error) bool { return errors.Is(err, unix.ENOMEM) || errors.Is(err, unix.ENOBUFS) }

// join joins an address that the socket has not joined. On an error it has not joined it.
func (s *joinSocket) join(index int, addr netip.Addr, f sourceFilter) error {
	ifi, group := &net.Interface{Index: index}, &net.UDPAddr{IP: addr.AsSlice()}
	more := f.exclude && len(f.sources) > 0 || len(f.sources) > 1 // than the join itself says
	if more {
		// The kernel refuses, for there is nothing joined yet; but a list that is too long it refuses first.
		if err := s.setFilter(index, addr, f); outOfMemory(err) {
			return err
		}
	}
	var err error
	if f.exclude {
		err = s.JoinGroup(ifi, group)
	} else { // not of any source, not even for a moment: the kernel would report that
		err = s.JoinSourceSpecificGroup(ifi, group, &net.UDPAddr{IP: f.sources[0].AsSlice()})
	}
	if err == nil && more {
		err = s.setFilter(index, addr, f)
	}
	if err != nil {
		_ = s.LeaveGroup(ifi, group) // the address alone may have been joined
	}
	return err
}

// setFilter replaces the filter of an address that the socket has joined (RFC 3678 section 6.2). Nothing is lost in
// between.
func (s *joinSocket) setFilter(index int, addr netip.Addr, f sourceFilter) error {
	// struct group_filter { u32 interface; sockaddr_storage group; u32 fmode, numsrc; sockaddr_storage slist[]; }
	const (
		groupAt   = bits.UintSize / 8
		modeAt    = groupAt + storageLen
		sourcesAt = modeAt + 8
	)
	b := make([]byte, sourcesAt+len(f.sources)*storageLen)
	binary.NativeEndian.PutUint32(b, uint32(index))
	putStorage(b[groupAt:], addr)
	mode := uint32(unix.MCAST_INCLUDE)
	if f.exclude {
		mode = unix.MCAST_EXCLUDE
	}
	binary.NativeEndian.PutUint32(b[modeAt:], mode)
	binary.NativeEndian.PutUint32(b[modeAt+4:], uint32(len(f.sources)))
	for i, source := range f.sources {
		putStorage(b[sourcesAt+i*storageLen:], source)
	}
	var optErr error
	if err := s.raw.Control(func(fd uintptr) {
		optErr = unix.SetsockoptString(int(fd), unix.SOL_IPV6, unix.MCAST_MSFILTER, string(b))
	}); err != nil {
		return err
	}
	return os.NewSyscallError("setsockopt", optErr)
}

// storageLen is the length of a struct sockaddr_storage, which is aligned like a pointer.
const storageLen = 128

// putStorage writes an address as a sockaddr_storage.
func putStorage(b []byte, addr netip.Addr) {
	const addrAt = 8 // in a struct sockaddr_in6, which begins with the family
	binary.NativeEndian.PutUint16(b, unix.AF_INET6)
	copy(b[addrAt:], addr.AsSlice())
}

// Leave leaves an address. Leaving one that is not joined does nothing.
func (j *Joins) Leave(addr netip.Addr) error {
	j.mu.Lock()
	defer j.mu.Unlock()
	addr = addr.WithZone("")
	m, joined := j.joined[addr]
	switch {
	case j.closed:
		return net.ErrClosed
	case !joined:
		return nil
	}
	delete(j.joined, addr)
	return j.leave(addr, m.socket)
}

// Joined lists what is joined, in order.
func (j *Joins) Joined() []netip.Addr {
	j.mu.Lock()
	defer j.mu.Unlock()
	return slices.SortedFunc(maps.Keys(j.joined), netip.Addr.Compare)
}

func (j *Joins) leave(addr netip.Addr, s *joinSocket) error {
	// The socket lets go of the address even where the interface has lost it already.
	err := s.LeaveGroup(&net.Interface{Index: j.index}, &net.UDPAddr{IP: addr.AsSlice()})
	s.full = false
	if err != nil && !errors.Is(err, unix.EADDRNOTAVAIL) && !errors.Is(err, unix.ENODEV) {
		return fmt.Errorf("leave %s on %s: %w", addr, j.name(), err)
	}
	return nil
}

// Restore joins again what the kernel has forgotten: with an MTU that is too small for IPv6 all memberships of the
// interface go, and they do not come back, although their sockets still have them. What the kernel has is left alone.
// What cannot be joined again is left to the next Restore, or to a join of the same address.
//
// All joins of the interface with the given index in ns go together. The kernel counts who has joined, and a socket that
// leaves what was forgotten would be counted out in place of another one that has joined anew. Those that are closed are
// passed over. The others need only their sockets: their own [netns.Namespace] may be closed, unlike ns.
func Restore(ns *netns.Namespace, ifindex int, joins ...*Joins) error {
	for _, j := range joins {
		j.mu.Lock()
		defer j.mu.Unlock()
	}
	if !slices.ContainsFunc(joins, func(j *Joins) bool { return len(j.joined) > 0 }) {
		return nil
	}
	held, err := readMemberships(ns, ifindex)
	if err != nil {
		return err
	}
	type loss struct {
		joins *Joins
		addr  netip.Addr
	}
	var lost []loss
	var errs []error
	for _, j := range joins {
		for _, addr := range slices.SortedFunc(maps.Keys(j.joined), netip.Addr.Compare) {
			if _, ok := held[addr]; ok && !j.joined[addr].lost {
				continue
			}
			if err := j.leave(addr, j.joined[addr].socket); err != nil {
				errs = append(errs, err)
			} else {
				lost = append(lost, loss{j, addr})
			}
		}
	}
	for _, l := range lost {
		m := l.joins.joined[l.addr]
		err := m.socket.join(l.joins.index, l.addr, m.filter)
		if err != nil {
			errs = append(errs, l.joins.joinError(l.addr, err))
		}
		m.lost = err != nil
		l.joins.joined[l.addr] = m
	}
	return errors.Join(errs...)
}

// Close leaves everything. Further calls do nothing.
func (j *Joins) Close() error {
	j.mu.Lock()
	defer j.mu.Unlock()
	j.closed = true
	var err error
	if j.keeper != nil { // whose descriptors hold what is not left one by one
		for addr, m := range j.joined {
			err = errors.Join(err, j.leave(addr, m.socket))
		}
	}
	for _, s := range j.sockets {
		err = errors.Join(err, j.close(s))
	}
	j.sockets, j.joined = nil, nil
	return err
}

// Abandon closes the sockets, and leaves nothing of what a [Keeper] has. Further calls do nothing.
func (j *Joins) Abandon() error {
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

// close closes a socket, the keeper's duplicate included.
func (j *Joins) close(s *joinSocket) error {
	var err error
	if j.keeper != nil {
		err = j.keeper.Drop(s.kept)
	}
	return errors.Join(err, s.Close())
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
	raw, err := c.(*net.UDPConn).SyscallConn()
	if err != nil {
		return nil, errors.Join(fmt.Errorf("open socket: %w", err), c.Close())
	}
	s := &joinSocket{PacketConn: ipv6.NewPacketConn(c), raw: raw}
	if err := j.keep(s); err != nil {
		return nil, errors.Join(fmt.Errorf("keep socket: %w", err), c.Close())
	}
	return s, nil
}

// keep gives a socket to the keeper.
func (j *Joins) keep(s *joinSocket) (err error) {
	if j.keeper == nil {
		return nil
	}
	if ctlErr := s.raw.Control(func(fd uintptr) { s.kept, err = j.keeper.Keep(int(fd)) }); ctlErr != nil {
		return ctlErr
	}
	return err
}

// joinError says what can be done about a join that failed; nil if it has not.
func (j *Joins) joinError(addr netip.Addr, err error) error {
	if err == nil {
		return nil
	}
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
