package kernel

import (
	"bytes"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"maps"
	"math/bits"
	"net/netip"
	"os"
	"slices"
	"strconv"

	"golang.org/x/sys/unix"

	"github.com/seed-aaab8e3a/cni-mld/mld"
	"github.com/seed-aaab8e3a/cni-mld/mld/netns"
)

// The kernel's list of sources (/proc/net/mcfilter6) has the sources of an address with the number of sockets that
// include and that exclude each. It does not have the mode of the address, which in general cannot be computed from it:
// {INCLUDE(u1), INCLUDE(u2)} and {INCLUDE(u1, u2), EXCLUDE({})} look the same. Nor does it have every address: when
// the one that was joined last has no sources, the interface is left out (see withSourceNewest). So it is good for two
// things: to learn the first sources of an address whose join has just been told, before the kernel reports them, and
// to learn the filter of some that stand (see [standing.filter]).
const sourcesPath = "/proc/thread-self/net/mcfilter6"

// A sourceRow is a line of the list: how many sockets include and exclude a source.
type sourceRow struct {
	addr, source       netip.Addr
	includes, excludes int
}

// openList opens a list of the kernel's, which stays that of the thread's namespace, whoever reads it. It is always ready,
// so it is not given to Go's poller, as os.Open would.
func openList(path string) (*os.File, error) {
	fd, err := unix.Open(path, unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, &os.PathError{Op: "open", Path: path, Err: err}
	}
	return os.NewFile(uintptr(fd), path), nil
}

// readList reads a whole list.
func readList(path string) ([]byte, error) {
	f, err := openList(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	return io.ReadAll(f)
}

// readSources reads the list and calls found with the rows of an interface.
func readSources(f *os.File, ifindex int, found func(sourceRow)) error {
	buf := buffers.Get().(*[bufferLen]byte)
	defer buffers.Put(buf)
	for at, kept := int64(0), 0; ; {
		n, err := f.ReadAt(buf[kept:], at)
		at += int64(n)
		rest := buf[:kept+n]
		for {
			end := bytes.IndexByte(rest, '\n')
			if end < 0 {
				break
			}
			if index, row, ok := parseSourceRow(rest[:end]); ok && index == ifindex {
				found(row)
			}
			rest = rest[end+1:]
		}
		kept = copy(buf[:], rest)
		switch {
		case errors.Is(err, io.EOF):
			return nil
		case err != nil:
			return fmt.Errorf("read %s: %w", f.Name(), err)
		case kept == len(buf):
			return fmt.Errorf("read %s: a line of more than %d octets", f.Name(), kept)
		}
	}
}

// parseSourceRow reads a line: interface index, its name, multicast address, source, and how many sockets include and
// exclude it.
func parseSourceRow(line []byte) (index int, row sourceRow, ok bool) {
	var f [6][]byte
	for i := range f {
		line = bytes.TrimLeft(line, " ")
		end := bytes.IndexByte(line, ' ')
		if end < 0 {
			end = len(line)
		}
		f[i], line = line[:end], line[end:]
	}
	number := func(field []byte) int {
		n, err := strconv.Atoi(string(field))
		if err != nil { // the heading
			ok = false
		}
		return n
	}
	addr := func(field []byte) netip.Addr {
		a, valid := hexAddr(field)
		ok = ok && valid
		return a
	}
	ok = true
	index = number(f[0])
	row = sourceRow{addr(f[2]), addr(f[3]), number(f[4]), number(f[5])}
	return index, row, ok
}

// hexAddr reads an address of 32 hexadecimal digits.
func hexAddr(digits []byte) (addr netip.Addr, ok bool) {
	var a [16]byte
	if len(digits) != 2*len(a) {
		return addr, false
	}
	_, err := hex.Decode(a[:], digits)
	return netip.AddrFrom16(a), err == nil
}

// readMemberships reads which addresses the kernel has joined on an interface, and for how many users each.
func readMemberships(ns *netns.Namespace, ifindex int) (users map[netip.Addr]int, err error) {
	err = ns.Do(func() error {
		users, err = readUsers(ifindex)
		return err
	})
	return users, err
}

// readUsers is readMemberships of the thread's namespace (/proc/net/igmp6).
func readUsers(ifindex int) (map[netip.Addr]int, error) {
	list, err := readList("/proc/thread-self/net/igmp6")
	if err != nil {
		return nil, fmt.Errorf("read memberships: %w", err)
	}
	users := make(map[netip.Addr]int)
	for line := range bytes.Lines(list) {
		// Index, name, address, users, and how it is joined. The name may hold U+2003 and the like.
		f := bytes.FieldsFunc(line, func(r rune) bool { return r == ' ' })
		if len(f) < 4 || string(f[0]) != strconv.Itoa(ifindex) {
			continue
		}
		addr, ok := hexAddr(f[2])
		n, err := strconv.Atoi(string(f[3]))
		if ok && err == nil {
			users[addr] = n
		}
	}
	return users, nil
}

// standing is what the kernel's lists have of an interface, each row of which is of a moment of its own.
type standing struct {
	users   map[netip.Addr]int
	sources map[netip.Addr][]sourceRow
}

// readStanding reads both lists again and again, in turn, and returns the addresses of which all readings are the same.
//
// So the users were as many before, between and after. That leaves those who come and go in step with the readings; and
// an address with many rows is read in parts, between which a row can be missed, but hardly the same one twice.
func readStanding(ns *netns.Namespace, sources *os.File, ifindex int) (s standing, err error) {
	err = ns.Do(func() error {
		defer withSourceNewest(ifindex)()
		if s.users, err = readUsers(ifindex); err != nil {
			return err
		}
		for i := range 2 {
			rows := make(map[netip.Addr][]sourceRow)
			err := readSources(sources, ifindex, func(r sourceRow) { rows[r.addr] = append(rows[r.addr], r) })
			if err != nil {
				return err
			}
			users, err := readUsers(ifindex)
			if err != nil {
				return err
			}
			if i == 0 {
				s.sources = rows
			}
			maps.DeleteFunc(s.users, func(addr netip.Addr, n int) bool {
				return users[addr] != n || !slices.Equal(rows[addr], s.sources[addr])
			})
		}
		return nil
	})
	return s, err
}

// filter is the filter of an address, if the lists prove it.
//
// Each user of an address is a socket in one of the two modes, or the kernel itself, which wants any source. If no
// source is excluded, those in EXCLUDE mode are EXCLUDE({}), and in no row. If as many include one source as there are
// users, each user includes it: all are in INCLUDE mode, and what they include together is the filter (V2-16).
//
// The kernel counts a source twice that one socket names twice (MCAST_MSFILTER does not mind), so two users that include
// a source may be one, and the other one in EXCLUDE mode. A single user cannot be mistaken. Of several users the proof
// is only good where there is no EXCLUDE mode, which is source-specific multicast (RFC 4604 section 2.2.1).
func (s standing) filter(addr netip.Addr) (f filter, ok bool) {
	users := s.users[addr]
	if users == 0 || users > 1 && !mld.SourceSpecific(addr) {
		return f, false
	}
	for _, r := range s.sources[addr] {
		if r.excludes > 0 {
			return f, false
		}
		ok = ok || r.includes >= users
		if unicast(r.source) {
			f.sources = append(f.sources, r.source)
		}
	}
	f.sources = sortSet(f.sources)
	return f, ok && len(f.sources) > 0
}

// withSourceNewest makes an address with a source the one that was joined last on an interface of the thread's
// namespace, until done is called: the list of sources leaves out an interface whose newest address has none. Nobody
// hears of it, because the scope of the address is the interface, which no report is about. If the kernel
// refuses, a list may lack what stands, and proves nothing.
func withSourceNewest(ifindex int) (done func()) {
	fd, err := unix.Socket(unix.AF_INET6, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return func() {}
	}
	// struct group_source_req { u32 interface; sockaddr_storage group, source; }, aligned as in setFilter.
	const groupAt = bits.UintSize / 8
	b := make([]byte, groupAt+2*storageLen)
	binary.NativeEndian.PutUint32(b, uint32(ifindex))
	putStorage(b[groupAt:], interfaceLocal)
	putStorage(b[groupAt+storageLen:], netip.IPv6Unspecified())
	_ = unix.SetsockoptString(fd, unix.SOL_IPV6, unix.MCAST_JOIN_SOURCE_GROUP, string(b))
	return func() {
		// Not by the end of the socket, which is late while a child that is being started holds a copy.
		_ = unix.SetsockoptString(fd, unix.SOL_IPV6, unix.MCAST_LEAVE_SOURCE_GROUP, string(b))
		_ = unix.Close(fd)
	}
}

// interfaceLocal is an address for source-specific multicast that nobody else has a use for.
var interfaceLocal = netip.MustParseAddr("ff31::6d6c:6421")
