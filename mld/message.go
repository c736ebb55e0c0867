package mld

import (
	"encoding/binary"
	"iter"
	"net/netip"
	"strconv"
	"time"
)

// Type is the ICMPv6 type of an MLD message.
type Type uint8

const (
	TypeQuery    Type = 130 // Multicast Listener Query, of version 1 or 2 by its length
	TypeReport   Type = 131 // Version 1 Multicast Listener Report
	TypeDone     Type = 132 // Version 1 Multicast Listener Done
	TypeReportV2 Type = 143 // Version 2 Multicast Listener Report
)

// String returns "Query", "Report", "Done", "ReportV2" or the number.
func (t Type) String() string {
	switch t {
	case TypeQuery:
		return "Query"
	case TypeReport:
		return "Report"
	case TypeDone:
		return "Done"
	case TypeReportV2:
		return "ReportV2"
	}
	return strconv.Itoa(int(t))
}

// Version is the version of MLD that a message belongs to.
type Version uint8

const (
	Version1 Version = 1 // RFC 2710
	Version2 Version = 2 // RFC 3810, RFC 9777
)

// RecordType is the type of a Multicast Address Record.
type RecordType uint8

const (
	ModeIsInclude   RecordType = 1
	ModeIsExclude   RecordType = 2
	ChangeToInclude RecordType = 3
	ChangeToExclude RecordType = 4
	AllowNewSources RecordType = 5
	BlockOldSources RecordType = 6
)

// String returns the short name the RFCs use ("IS_EX", "ALLOW"), or the number of a type they do not define.
func (t RecordType) String() string {
	switch t {
	case ModeIsInclude:
		return "IS_IN"
	case ModeIsExclude:
		return "IS_EX"
	case ChangeToInclude:
		return "TO_IN"
	case ChangeToExclude:
		return "TO_EX"
	case AllowNewSources:
		return "ALLOW"
	case BlockOldSources:
		return "BLOCK"
	}
	return strconv.Itoa(int(t))
}

// The multicast addresses that MLD messages are sent to, beside the address a message is about.
var (
	AllNodes        = netip.AddrFrom16([16]byte{0: 0xff, 1: 0x02, 15: 0x01}) // ff02::1, General Queries
	AllRouters      = netip.AddrFrom16([16]byte{0: 0xff, 1: 0x02, 15: 0x02}) // ff02::2, Done
	AllMLDv2Routers = netip.AddrFrom16([16]byte{0: 0xff, 1: 0x02, 15: 0x16}) // ff02::16, version 2 Reports
)

// Reportable says whether a listener sends MLD messages about addr: it is an IPv6 multicast address, it is
// not ff02::1 (V1-22), and its scope is link-local or wider (V1-23). A zone makes no difference.
func Reportable(addr netip.Addr) bool {
	a := addr.As16()
	return a[0] == 0xff && a[1]&0x0f >= 2 && a != AllNodes.As16()
}

// Packet is an MLD message with what the reader needs of the IPv6 header around it.
type Packet struct {
	Src, Dst netip.Addr // without a zone
	HopLimit uint8
	Message  Message
}

// Message is a decoded MLD message. Its Sources and Records are views into the bytes given to [Parse]: they
// are good for as long as those bytes are left alone.
type Message struct {
	Type    Type
	Version Version // of a Query by its length; 1 of a Report or Done; 2 of a ReportV2

	// MulticastAddress is what the message is about: "::" in a General Query, the zero Addr in a ReportV2.
	MulticastAddress netip.Addr

	MaxResponseCode          uint16 // of a Query, as on the wire: see MaxResponseDelay
	SuppressRouterProcessing bool   // the S flag of a version 2 Query
	QRV                      uint8  // of a version 2 Query: 0 to 7, 0 when the Querier's Robustness Variable exceeds 7
	QQIC                     uint8  // of a version 2 Query, as on the wire: see QueryInterval

	Sources Sources // of a version 2 Query
	Records Records // of a ReportV2
}

// MaxResponseDelay returns the Maximum Response Delay of a Query: the code in milliseconds in version 1
// (V1-26), the decoded code in version 2 (V2-11). Other messages have none, and give 0.
func (m *Message) MaxResponseDelay() time.Duration {
	if m.Version == Version1 {
		return time.Duration(m.MaxResponseCode) * time.Millisecond
	}
	return DecodeMaxResponseCode(m.MaxResponseCode)
}

// QueryInterval returns the Querier's Query Interval of a version 2 Query. It is 0 when the Querier does not
// tell one, which all other messages do not either.
func (m *Message) QueryInterval() time.Duration { return DecodeQQIC(m.QQIC) }

// Octets on the wire, for a sender that fills packets up to the MTU.
const (
	ReportV2Len = icmpOffset + reportV2Len // a whole IPv6 packet with a version 2 Report of no records
	QueryV2Len  = icmpOffset + queryV2Len  // a whole IPv6 packet with a version 2 Query of no sources
	RecordLen   = 20                       // each record of a Report, without its sources
	SourceLen   = 16                       // each source of a record or Query
)

// The layout of a packet as we send it, and of the messages in it.
const (
	ipv6Len     = 40
	hopByHopLen = 8
	icmpOffset  = ipv6Len + hopByHopLen
	v1Len       = 24 // every version 1 message
	queryV2Len  = 28 // a version 2 Query without sources
	reportV2Len = 8  // a version 2 Report without records
)

// Sources is the source list of a version 2 Query or of a record: a view into the bytes parsed. The zero
// Sources is empty. What is in it was not judged: a source may be any address.
type Sources struct{ b []byte }

// Len returns the number of sources.
func (s Sources) Len() int { return len(s.b) / SourceLen }

// At returns source i, counted from 0. It panics if i is not below Len.
func (s Sources) At(i int) netip.Addr { return addrAt(s.b[i*SourceLen:]) }

// All iterates over the sources as they stand in the message; a sender may have repeated one.
func (s Sources) All() iter.Seq[netip.Addr] {
	return func(yield func(netip.Addr) bool) {
		for b := s.b; len(b) >= SourceLen; b = b[SourceLen:] {
			if !yield(addrAt(b)) {
				return
			}
		}
	}
}

// Records is the list of Multicast Address Records of a version 2 Report: a view into the bytes parsed. The
// zero Records is empty.
type Records struct {
	b []byte // exactly n records
	n int
}

// RecordView is one record of a parsed Report. Neither type nor addresses were judged: a reader passes over
// a type it does not know (MQ-22) and an address that is not multicast.
type RecordView struct {
	Type             RecordType
	MulticastAddress netip.Addr
	Sources          Sources
}

// Len returns the number of records, those of unknown types included.
func (r Records) Len() int { return r.n }

// All iterates over the records as they stand in the message.
func (r Records) All() iter.Seq[RecordView] {
	return func(yield func(RecordView) bool) {
		for b := r.b; len(b) >= RecordLen; {
			sources, end := recordBounds(b)
			if !yield(RecordView{RecordType(b[0]), addrAt(b[4:]), Sources{b[RecordLen:sources:sources]}}) {
				return
			}
			b = b[end:]
		}
	}
}

// recordBounds returns where the sources of the record at the beginning of b end, and where the record ends
// after its auxiliary data. b holds at least RecordLen octets; the bounds may lie beyond it.
//
// Most records have neither sources nor auxiliary data. A branch of their own lets the processor go on to the next
// record before it has read the length of this one.
func recordBounds(b []byte) (sources, end int) {
	if binary.BigEndian.Uint32(b)&0x00ffffff == 0 {
		return RecordLen, RecordLen
	}
	sources = RecordLen + SourceLen*int(binary.BigEndian.Uint16(b[2:]))
	return sources, sources + 4*int(b[1])
}

func addrAt(b []byte) netip.Addr { return netip.AddrFrom16([16]byte(b)) }

func isMulticast(b []byte) bool { return b[0] == 0xff }

func isUnspecified(b []byte) bool { return [16]byte(b) == [16]byte{} }

// isLinkLocal says whether b begins with an address in fe80::/10. (netip's own test takes ::ffff:169.254.0.1
// for link-local too.)
func isLinkLocal(b []byte) bool { return b[0] == 0xfe && b[1]&0xc0 == 0x80 }

// SolicitedNode tells whether addr is a solicited-node multicast address, ff02::1:ff00:0/104, which comes and goes with
// unicast addresses (RFC 4291 section 2.7.1).
func SolicitedNode(addr netip.Addr) bool { return solicitedNode.Contains(addr) }

var solicitedNode = netip.MustParsePrefix("ff02::1:ff00:0/104")

// SourceSpecific tells whether addr is in the range that IANA has set aside for source-specific multicast, ff3x::/32
// with any scope x (V2-74, RFC 4607 section 1).
func SourceSpecific(addr netip.Addr) bool {
	a := addr.As16()
	return addr.Is6() && a[0] == 0xff && a[1]>>4 == 3 && a[2] == 0 && a[3] == 0
}
