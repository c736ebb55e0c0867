package kernel

import (
	"bytes"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"net/netip"
	"os"
	"strconv"

	"github.com/seed-aaab8e3a/cni-mld/mld/netns"
)

// The kernel's list of sources (/proc/net/mcfilter6) has the sources of an address with the number of sockets that
// include and that exclude each. It does not have the mode of the address, which cannot be computed from it:
// {INCLUDE(u1), INCLUDE(u2)} and {INCLUDE(u1, u2), EXCLUDE({})} look the same. Nor does it have every address: when
// the one that was joined last has no sources, the interface is left out. So it is good for one thing only, to learn
// the first sources of an address whose join has just been told, before the kernel reports them.
const sourcesPath = "/proc/thread-self/net/mcfilter6"

// openSources opens the list. It stays that of the namespace, whoever reads it.
func openSources(ns *netns.Namespace) (f *os.File, err error) {
	err = ns.Do(func() error {
		f, err = os.Open(sourcesPath)
		return err
	})
	return f, err
}

// readSources reads the list and calls found with the rows of an interface.
func readSources(f *os.File, ifindex int, found func(addr, source netip.Addr, excludes bool)) error {
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
			if index, addr, source, excludes, ok := sourceRow(rest[:end]); ok && index == ifindex {
				found(addr, source, excludes)
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

// sourceRow reads a line: interface index, its name, multicast address, source, and how many sockets include and
// exclude it.
func sourceRow(line []byte) (index int, addr, source netip.Addr, excludes, ok bool) {
	field := func() (f []byte) {
		line = bytes.TrimLeft(line, " ")
		end := bytes.IndexByte(line, ' ')
		if end < 0 {
			end = len(line)
		}
		f, line = line[:end], line[end:]
		return f
	}
	index, err := strconv.Atoi(string(field()))
	if err != nil { // the heading
		return 0, addr, source, false, false
	}
	field()
	var a, s [16]byte
	for _, to := range []*[16]byte{&a, &s} {
		hexed := field()
		if len(hexed) != 2*len(to) {
			return 0, addr, source, false, false
		}
		if _, err := hex.Decode(to[:], hexed); err != nil {
			return 0, addr, source, false, false
		}
	}
	field()
	return index, netip.AddrFrom16(a), netip.AddrFrom16(s), string(field()) != "0", true
}

// readMemberships reads which addresses the kernel has joined on an interface (/proc/net/igmp6).
func readMemberships(ns *netns.Namespace, ifindex int) (map[netip.Addr]struct{}, error) {
	var list []byte
	err := ns.Do(func() (err error) {
		list, err = os.ReadFile("/proc/thread-self/net/igmp6")
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("read memberships: %w", err)
	}
	held := make(map[netip.Addr]struct{})
	for line := range bytes.Lines(list) {
		f := bytes.Fields(line) // index, name, address, and how it is joined
		var addr [16]byte
		if len(f) < 3 || string(f[0]) != strconv.Itoa(ifindex) || len(f[2]) != 2*len(addr) {
			continue
		}
		if _, err := hex.Decode(addr[:], f[2]); err == nil {
			held[netip.AddrFrom16(addr)] = struct{}{}
		}
	}
	return held, nil
}
