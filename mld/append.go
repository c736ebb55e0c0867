package mld

import (
	"encoding/binary"
	"net/netip"
	"slices"
)

// Record is a Multicast Address Record to be sent in a version 2 Report.
type Record struct {
	Type             RecordType
	MulticastAddress netip.Addr
	Sources          []netip.Addr
}

// Query is a Query to be sent. Version 1 uses the first three fields and the code in milliseconds; every
// other Version is sent as version 2.
type Query struct {
	Version                  Version
	MulticastAddress         netip.Addr // "::" or the zero Addr in a General Query
	MaxResponseCode          uint16     // see EncodeMaxResponseCode
	SuppressRouterProcessing bool
	QRV                      uint8 // above 7 is sent as 0
	QQIC                     uint8 // see EncodeQQIC
	Sources                  []netip.Addr
}

// AppendReport appends a version 1 Report of addr, which is its destination too (V1-8), to b, and returns the
// extended slice.
func AppendReport(b []byte, src, addr netip.Addr) []byte {
	return appendV1(b, TypeReport, src, addr, addr, 0)
}

// AppendDone appends a version 1 Done for addr, with destination ff02::2 (V1-9), to b, and returns the extended
// slice.
func AppendDone(b []byte, src, addr netip.Addr) []byte {
	return appendV1(b, TypeDone, src, AllRouters, addr, 0)
}

// appendV1 appends a message of exactly 24 octets (V1-2); only a Query has a delay (V1-3).
func appendV1(b []byte, t Type, src, dst, addr netip.Addr, delay uint16) []byte {
	b, p := extend(b, icmpOffset+v1Len)
	m := p[icmpOffset:]
	putHead(m, t, delay)
	putAddr(m[8:], addr)
	seal(p, src, dst)
	return b
}

// AppendReportV2 appends a version 2 Report with destination ff02::16 (V2-1) to b, and returns the extended slice.
// It splits nothing: that the packet fits the MTU is the caller's part (see [ReportV2Len]). It panics if the records
// would not fit into any IPv6 packet, 65535 octets after its header.
func AppendReportV2(b []byte, src netip.Addr, records []Record) []byte {
	n := ReportV2Len
	for i := range records {
		n += RecordLen + SourceLen*len(records[i].Sources)
	}
	b, p := extend(b, n)
	m := p[icmpOffset:]
	putHead(m, TypeReportV2, 0)
	binary.BigEndian.PutUint16(m[6:], uint16(len(records)))
	m = m[reportV2Len:]
	for i := range records {
		r, head := &records[i], (*[RecordLen]byte)(m)
		head[0] = uint8(r.Type)
		binary.BigEndian.PutUint16(head[2:], uint16(len(r.Sources))) // no auxiliary data before it (V2-3)
		putAddr(head[4:], r.MulticastAddress)
		m = m[RecordLen:]
		for j := range r.Sources {
			putAddr(m[:SourceLen], r.Sources[j])
			m = m[SourceLen:]
		}
	}
	seal(p, src, AllMLDv2Routers)
	return b
}

// AppendQuery appends a Query to b, and returns the extended slice. Its destination is [AllNodes] for a General
// Query and the multicast address for any other, unless a test wants it otherwise (V2-6). It panics if the sources
// would not fit into any IPv6 packet, 65535 octets after its header.
func AppendQuery(b []byte, src, dst netip.Addr, q Query) []byte {
	if q.Version == Version1 {
		return appendV1(b, TypeQuery, src, dst, q.MulticastAddress, q.MaxResponseCode)
	}
	b, p := extend(b, QueryV2Len+SourceLen*len(q.Sources))
	m := p[icmpOffset:]
	putHead(m, TypeQuery, q.MaxResponseCode)
	putAddr(m[8:], q.MulticastAddress)
	if q.QRV <= 7 { // RFC 3810 section 5.1.8
		m[24] = q.QRV
	}
	if q.SuppressRouterProcessing {
		m[24] |= 0x08
	}
	m[25] = q.QQIC
	binary.BigEndian.PutUint16(m[26:], uint16(len(q.Sources)))
	m = m[queryV2Len:]
	for i := range q.Sources {
		putAddr(m[i*SourceLen:], q.Sources[i])
	}
	seal(p, src, dst)
	return b
}

// extend returns b longer by n octets, and these octets, which are zero.
func extend(b []byte, n int) (all, packet []byte) {
	if n-ipv6Len > 0xffff {
		panic("mld: message does not fit into an IPv6 packet")
	}
	end := len(b) + n
	all = slices.Grow(b, n)[:end]
	packet = all[end-n : end : end]
	clear(packet)
	return all, packet
}

// putHead writes what all messages have in common over zeros, which Code and Reserved stay (V1-3, V2-2).
func putHead(m []byte, t Type, code uint16) {
	m[0] = uint8(t)
	binary.BigEndian.PutUint16(m[4:], code)
}

// seal writes all that comes before the message, and the checksum: IPv6 header with Hop Limit 1, traffic
// class and flow label 0 (V1-1, K59), Hop-by-Hop Options header with a Router Alert of value 0 and padding.
func seal(p []byte, src, dst netip.Addr) {
	const (
		hopByHop    = 0
		routerAlert = 0x3a_00_05_02_00_00_01_00 // next header ICMPv6, 8 octets; Router Alert; PadN of none
	)
	m := p[icmpOffset:]
	binary.BigEndian.PutUint64(p, 6<<60|uint64(len(p)-ipv6Len)<<16|hopByHop<<8|1)
	putAddr(p[8:], src)
	putAddr(p[24:], dst)
	binary.BigEndian.PutUint64(p[ipv6Len:], routerAlert)
	binary.LittleEndian.PutUint16(m[2:], ^checksum((*[32]byte)(p[8:]), m))
}

// putAddr writes addr, without its zone (K62), over zeros, which the zero Addr leaves as they are. AsSlice may look
// odd where As16 would do, but the array of the latter is copied whole right after its halves were stored, and that
// stalls a processor for longer than all else here takes.
func putAddr(b []byte, addr netip.Addr) {
	if s := addr.AsSlice(); len(s) == SourceLen {
		binary.LittleEndian.PutUint64(b, binary.LittleEndian.Uint64(s))
		binary.LittleEndian.PutUint64(b[8:], binary.LittleEndian.Uint64(s[8:]))
	}
}
