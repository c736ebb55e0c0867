package bridge

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"
	"time"

	"github.com/mdlayher/netlink"
	"golang.org/x/sys/unix"

	"github.com/seed-aaab8e3a/cni-mld/mld/netns"
)

// Names from linux/if_bridge.h that golang.org/x/sys does not have.
const (
	mdbaMDB          = 1 // MDBA_MDB
	mdbaMDBEntry     = 1 // MDBA_MDB_ENTRY
	mdbaMDBEntryInfo = 1 // MDBA_MDB_ENTRY_INFO

	mdbaEntryTimer     = 1 // MDBA_MDB_EATTR_TIMER
	mdbaEntryGroupMode = 3 // MDBA_MDB_EATTR_GROUP_MODE
	mdbaEntrySource    = 4 // MDBA_MDB_EATTR_SOURCE

	mdbPermanent    = 1      // MDB_PERMANENT
	mdbFlagsBlocked = 1 << 3 // MDB_FLAGS_BLOCKED

	modeInclude = 1 // MCAST_INCLUDE

	sizeofPortMsg  = 8  // struct br_port_msg
	sizeofMDBEntry = 28 // struct br_mdb_entry
)

// userHZ is the unit of the kernel's timers in netlink messages, USER_HZ.
const userHZ = 100

// An Entry is one line of the MDB: the bridge knows of a listener to a group behind a port.
type Entry struct {
	Bridge int        // ifindex
	Port   int        // ifindex; that of the bridge if the host itself listens
	VLAN   uint16     // 0 without VLAN filtering
	Group  netip.Addr // always IPv6
	Source netip.Addr // of an (S,G) entry; zero in a (*,G) entry
	// Include says that a (*,G) entry is in INCLUDE mode: it forwards nothing by itself, its (S,G) entries do.
	Include bool
	// Blocked says that an (S,G) entry keeps a source out, as EXCLUDE mode asks for (B18).
	Blocked   bool
	Permanent bool          // made by hand, does not age
	Timer     time.Duration // until the entry ages, in steps of 10 ms; 0 if it does not, or where events do not tell
}

// Forwards tells whether the bridge sends something to the port because of this entry, provided that it constrains
// at all, see [State].
func (e Entry) Forwards() bool {
	return !e.Blocked && (e.Source.IsValid() || !e.Include)
}

// String writes the entry the usual way: "(*,ff05::1) port 3".
func (e Entry) String() string {
	source := "*"
	if e.Source.IsValid() {
		source = e.Source.String()
	}
	return fmt.Sprintf("(%s,%s) port %d", source, e.Group, e.Port)
}

// SourceLimit says in words, to end a text about sources that have no entry, that a port's entries for a group have as many
// sources as a Linux bridge keeps (PG_SRC_ENT_LIMIT). It is empty where they have fewer.
func SourceLimit(entries []Entry, group netip.Addr) string {
	sources := make(map[uint16]int) // by VLAN
	for _, e := range entries {
		if e.Group == group && e.Source.IsValid() {
			sources[e.VLAN]++
		}
		if sources[e.VLAN] == 32 {
			return ": a Linux bridge keeps 32 sources for a port and group: name fewer"
		}
	}
	return ""
}

// errInterrupted says that the database changed so often that no consistent copy could be had.
var errInterrupted = errors.New("changed while it was being read")

// dumpTries bounds how often a dump that was interrupted by a change is begun anew.
const dumpTries = 8

// Dump returns the IPv6 entries in the MDB of the bridge with the given ifindex in ns.
func Dump(ns *netns.Namespace, bridge int) ([]Entry, error) {
	conn, err := dial(ns)
	if err != nil {
		return nil, fmt.Errorf("bridge %d: %w", bridge, err)
	}
	defer conn.Close()
	return dump(conn, bridge)
}

func dump(conn *netlink.Conn, bridge int) ([]Entry, error) {
	for range dumpTries {
		replies, err := conn.Execute(netlink.Message{
			Header: netlink.Header{Type: unix.RTM_GETMDB, Flags: netlink.Request | netlink.Dump},
			Data:   append([]byte{unix.AF_BRIDGE}, make([]byte, sizeofPortMsg-1)...),
		})
		if err != nil {
			return nil, fmt.Errorf("bridge %d: read multicast database: %w", bridge, err)
		}
		entries, interrupted := []Entry(nil), false
		for _, m := range replies {
			interrupted = interrupted || m.Header.Flags&netlink.DumpInterrupted != 0
			// The kernel answers with the type of the request, not with RTM_NEWMDB (F7), and for all bridges.
			found, err := parseEntries(m.Data)
			if err != nil {
				return nil, fmt.Errorf("bridge %d: multicast database: %w", bridge, err)
			}
			for _, e := range found {
				if e.Bridge == bridge {
					entries = append(entries, e)
				}
			}
		}
		if !interrupted {
			return entries, nil
		}
	}
	return nil, fmt.Errorf("bridge %d: multicast database %w", bridge, errInterrupted)
}

// parseEntries decodes a message about the MDB: a struct br_port_msg that names the bridge, and attributes.
// What is not an IPv6 entry is left out.
func parseEntries(b []byte) ([]Entry, error) {
	if len(b) < sizeofPortMsg {
		return nil, fmt.Errorf("message of %d bytes: %w", len(b), errShort)
	}
	bridge := int(binary.NativeEndian.Uint32(b[4:]))
	ad, err := netlink.NewAttributeDecoder(b[sizeofPortMsg:])
	if err != nil {
		return nil, err
	}
	var entries []Entry
	for ad.Next() {
		if ad.Type() != mdbaMDB {
			continue // the list of router ports
		}
		ad.Nested(func(groups *netlink.AttributeDecoder) error {
			for groups.Next() {
				if groups.Type() != mdbaMDBEntry {
					continue
				}
				groups.Nested(func(infos *netlink.AttributeDecoder) error {
					for infos.Next() {
						if infos.Type() != mdbaMDBEntryInfo {
							continue
						}
						e, ok, err := parseEntry(infos.Bytes())
						if err != nil {
							return err
						}
						if ok {
							e.Bridge = bridge
							entries = append(entries, e)
						}
					}
					return nil
				})
			}
			return nil
		})
	}
	return entries, ad.Err()
}

var errShort = errors.New("too short")

// parseEntry decodes a struct br_mdb_entry and the attributes after it; ok is false if it is not IPv6.
//
//	struct br_mdb_entry { u32 ifindex; u8 state, flags; u16 vid; struct { u8 ip6[16]; be16 proto; } addr; };
func parseEntry(b []byte) (e Entry, ok bool, err error) {
	if len(b) < sizeofMDBEntry {
		return Entry{}, false, fmt.Errorf("entry of %d bytes: %w", len(b), errShort)
	}
	if binary.BigEndian.Uint16(b[24:]) != unix.ETH_P_IPV6 {
		return Entry{}, false, nil
	}
	e = Entry{
		Port:      int(binary.NativeEndian.Uint32(b)),
		VLAN:      binary.NativeEndian.Uint16(b[6:]),
		Group:     netip.AddrFrom16([16]byte(b[8:24])),
		Permanent: b[4] == mdbPermanent,
		Blocked:   b[5]&mdbFlagsBlocked != 0,
	}
	ad, err := netlink.NewAttributeDecoder(b[sizeofMDBEntry:])
	if err != nil {
		return Entry{}, false, err
	}
	for ad.Next() {
		switch ad.Type() {
		case mdbaEntryTimer:
			e.Timer = time.Duration(ad.Uint32()) * (time.Second / userHZ)
		case mdbaEntryGroupMode:
			e.Include = ad.Uint8() == modeInclude
		case mdbaEntrySource:
			if source := ad.Bytes(); len(source) == 16 {
				e.Source = netip.AddrFrom16([16]byte(source))
			}
		}
	}
	return e, true, ad.Err()
}
