package bridge

import (
	"context"
	"encoding/binary"
	"errors"
	"math"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/mdlayher/netlink"
	"github.com/mdlayher/netlink/nltest"
	"golang.org/x/sys/unix"

	"github.com/seed-aaab8e3a/cni-mld/mld/netns"
)

func TestOverflowReadsTheDatabaseAgain(t *testing.T) {
	events := nltest.Dial(func([]netlink.Message) ([]netlink.Message, error) { return nil, unix.ENOBUFS })
	defer events.Close()
	missing := make(pending)
	missing.add(Flow{Group: netip.MustParseAddr("ff05::1")})
	if reread, err := (&Port{}).follow(events, missing, missing, true, 0); err != nil || !reread {
		t.Errorf("got %v, %v, want a new look at the database", reread, err)
	}
}

// What is full is told from what is not: the sources of one group in one VLAN count.
func TestSourceLimit(t *testing.T) {
	group, other := netip.MustParseAddr("ff35::8000:1"), netip.MustParseAddr("ff35::8000:2")
	source := func(i int) netip.Addr { return netip.AddrFrom16([16]byte{0: 0xfd, 15: byte(i)}) }
	entries := []Entry{{Group: group, Include: true}}
	for i := range 31 {
		entries = append(entries, Entry{Group: group, Source: source(i)}, Entry{Group: other, Source: source(i)})
	}
	entries = append(entries, Entry{Group: group, VLAN: 1, Source: source(31)}, Entry{Group: other, Source: source(31)})
	missing := make(pending)
	missing.add(Flow{Group: group, Source: source(32)})
	missing.add(Flow{Group: other}) // which a full list of sources does not keep away
	if limit := missing.limit(entries); limit != "" {
		t.Errorf("31 sources: %q", limit)
	}
	if limit := missing.limit(append(entries, Entry{Group: group, Source: source(31)})); !strings.Contains(limit, "keeps 32 sources") {
		t.Errorf("32 sources: %q", limit)
	}
}

// fakeKernel answers for a bridge with one port: to each dump of its database an entry for a group, with flags. look is
// called for each.
func fakeKernel(look func() (group string, flags netlink.HeaderFlags)) *netlink.Conn {
	return nltest.Dial(func(request []netlink.Message) ([]netlink.Message, error) {
		if len(request) == 0 {
			return nil, nil
		}
		answer := netlink.Message{Header: request[0].Header}
		if request[0].Header.Type == unix.RTM_GETLINK {
			answer.Data = append(make([]byte, unix.SizeofIfInfomsg), nest(unix.IFLA_MASTER, binary.NativeEndian.AppendUint32(nil, 2))...)
			answer.Data = append(answer.Data, nest(unix.IFLA_LINKINFO, nest(unix.IFLA_INFO_SLAVE_KIND, []byte("bridge\x00")))...)
			return []netlink.Message{answer}, nil
		}
		group, flags := look()
		answer.Header.Flags, answer.Data = netlink.Multi|flags, message(2, 3, group, nil)
		done := answer
		done.Header.Type, done.Data = netlink.Done, nil
		return []netlink.Message{answer, done}, nil
	})
}

// fakePort is the port of such a bridge. It ends with the test.
func fakePort(t *testing.T, look func() (group string, flags netlink.HeaderFlags)) *Port {
	t.Helper()
	ns, err := netns.Current()
	if err != nil {
		t.Fatal(err)
	}
	p := &Port{BridgeIndex: 2, Index: 3, ns: ns, conn: fakeKernel(look)}
	t.Cleanup(func() {
		if err := errors.Join(p.Close(), ns.Close()); err != nil {
			t.Error(err)
		}
	})
	return p
}

// An address that only looks link-local to Go is none that a bridge asks from.
func TestMappedAddress(t *testing.T) {
	for addr, want := range map[netip.Addr]netip.Addr{
		netip.MustParseAddr("::ffff:169.254.0.1"): {},
		netip.MustParseAddr("fe80::1"):            netip.MustParseAddr("fe80::1"),
	} {
		conn := nltest.Dial(func(request []netlink.Message) ([]netlink.Message, error) {
			answer := netlink.Message{Header: request[0].Header}
			answer.Data = binary.NativeEndian.AppendUint32([]byte{unix.AF_INET6, 64, 0, 0}, 2)
			answer.Data = append(answer.Data, nest(unix.IFA_ADDRESS, addr.AsSlice())...)
			return nltest.Multipart([]netlink.Message{answer, {Header: request[0].Header}})
		})
		if got, err := (&Port{BridgeIndex: 2, conn: conn}).linkLocal(); err != nil || got != want {
			t.Errorf("of a bridge with %v: %v, %v, want %v", addr, got, err, want)
		}
		_ = conn.Close()
	}
}

// A dump that a change interrupted is not believed.
func TestInterruptedDump(t *testing.T) {
	for _, interruptions := range []int{0, 1, dumpTries - 1, dumpTries} {
		asked := 0
		conn := fakeKernel(func() (string, netlink.HeaderFlags) {
			if asked++; asked <= interruptions {
				return "ff05::1", netlink.DumpInterrupted
			}
			return "ff05::1", 0
		})
		entries, err := dump(conn, 2)
		if ok := err == nil && len(entries) == 1; ok != (interruptions < dumpTries) {
			t.Errorf("after %d interruptions: %v, %v", interruptions, entries, err)
		}
		if want := min(interruptions+1, dumpTries); asked != want {
			t.Errorf("after %d interruptions: asked %d times, want %d", interruptions, asked, want)
		}
		_ = conn.Close()
	}
}

// Who waits does not mind how often a dump is interrupted before the time is up, and looks again at intervals.
func TestWaitInterrupted(t *testing.T) {
	for interruptions, patience := range map[int]time.Duration{dumpTries: 10 * time.Second, math.MaxInt: 2 * secondLook} {
		asked := 0
		p := fakePort(t, func() (string, netlink.HeaderFlags) {
			if asked++; asked <= interruptions {
				return "ff05::1", netlink.DumpInterrupted
			}
			return "ff05::1", 0
		})
		ctx, cancel := context.WithTimeout(t.Context(), patience)
		err := p.Wait(ctx, netip.MustParseAddr("ff05::1"))
		cancel()
		switch {
		case interruptions == dumpTries && err != nil:
			t.Errorf("after %d interruptions: %v", interruptions, err)
		case interruptions > dumpTries && (!errors.Is(err, context.DeadlineExceeded) || !strings.Contains(err.Error(), errInterrupted.Error())):
			t.Errorf("always interrupted: %v, want that it was", err)
		case asked > 2*dumpTries:
			t.Errorf("asked %d times in %v, want %d at most", asked, patience, 2*dumpTries)
		}
	}
}

// A dump during which entries of others leave may lack one that stands, of which no event will ever come.
func TestWaitLooksAgain(t *testing.T) {
	looks := 0
	p := fakePort(t, func() (string, netlink.HeaderFlags) {
		if looks++; looks > 2 {
			return "ff05::1", 0
		}
		return "ff05::2", 0
	})
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	if err := p.Wait(ctx, netip.MustParseAddr("ff05::1")); err != nil || looks != 3 {
		t.Errorf("after %d looks: %v", looks, err)
	}
}

// message builds a message about one entry.
func message(bridge, port uint32, group string, attrs []byte) []byte {
	info := binary.NativeEndian.AppendUint32(nil, port)
	info = append(info, 0, 0, 0, 0)
	addr := netip.MustParseAddr(group).As16()
	info = append(append(info, addr[:]...), 0x86, 0xdd, 0, 0)
	info = append(info, attrs...)
	return append(binary.NativeEndian.AppendUint32([]byte{unix.AF_BRIDGE, 0, 0, 0}, bridge),
		nest(mdbaMDB, nest(mdbaMDBEntry, nest(mdbaMDBEntryInfo, info)))...)
}

func nest(kind uint16, data []byte) []byte {
	b := binary.NativeEndian.AppendUint16(nil, uint16(len(data)+4))
	b = append(binary.NativeEndian.AppendUint16(b, kind), data...)
	return append(b, make([]byte, (4-len(b)%4)%4)...)
}

func TestParseEntries(t *testing.T) {
	source := netip.MustParseAddr("fd00::1").As16()
	attrs := append(nest(mdbaEntryTimer, binary.NativeEndian.AppendUint32(nil, 25995)), nest(mdbaEntrySource, source[:])...)
	got, err := parseEntries(message(2, 3, "ff35::1", attrs))
	if err != nil {
		t.Fatal(err)
	}
	want := []Entry{{
		Bridge: 2, Port: 3, Group: netip.MustParseAddr("ff35::1"), Source: netip.MustParseAddr("fd00::1"),
		Timer: 259950 * time.Millisecond,
	}}
	if diff := cmp.Diff(want, got, cmp.Comparer(func(a, b netip.Addr) bool { return a == b })); diff != "" {
		t.Errorf("-want +got:\n%s", diff)
	}
	if want := "(fd00::1,ff35::1) port 3"; got[0].String() != want {
		t.Errorf("got %s, want %s", got[0], want)
	}
}

// Whatever comes, the decoders return; an entry is one of an IPv6 address.
func FuzzParse(f *testing.F) {
	f.Add(message(2, 3, "ff05::1", nil))
	f.Add(message(2, 3, "ff05::1", nest(mdbaEntryGroupMode, []byte{modeInclude})))
	f.Add(message(2, 3, "ff05::1", nest(mdbaEntrySource, []byte{1, 2, 3})))
	f.Add(message(2, 3, "ff05::1", []byte{3, 0, 1, 0}))
	f.Add([]byte{})
	f.Add(append(make([]byte, unix.SizeofIfInfomsg), nest(unix.IFLA_LINKINFO, append(
		nest(unix.IFLA_INFO_KIND, []byte("bridge\x00")),
		nest(unix.IFLA_INFO_DATA, append(nest(iflaBRMcastSnooping, []byte{1}),
			nest(iflaBRMcastQuerierState, nest(bridgeQuerierIPv6OtherTimer, make([]byte, 8)))...))...))...))
	f.Fuzz(func(t *testing.T, b []byte) {
		entries, err := parseEntries(b)
		for _, e := range entries {
			if !e.Group.Is6() || e.Source.IsValid() && !e.Source.Is6() {
				t.Errorf("%+v, %v", e, err)
			}
		}
		if l, err := parseLink(b); err == nil && l.state.Querier && !l.state.Snooping {
			t.Errorf("%+v", l)
		}
		_ = (&Port{}).concerns(b)
	})
}
