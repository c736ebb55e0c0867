package mld

import (
	"encoding/binary"
	"net/netip"
	"slices"
)

// A ReportWriter builds a version 2 Report record by record, for a sender that fills packets up to the MTU. Reset
// begins a packet; Fits and Add follow for each record, and Packet completes it. The zero value must be Reset first.
// A ReportWriter keeps its buffer, so it does not allocate once that has grown to the MTU.
type ReportWriter struct {
	b       []byte
	mtu     int
	records uint16
}

// Reset begins a packet of at most mtu octets, from the IPv6 header on. An mtu below the 1280 octets that every IPv6
// link has (RFC 8200 section 5) counts as 1280, and one that is longer than any packet as the longest packet.
func (w *ReportWriter) Reset(mtu int) {
	w.b, _ = extend(w.b[:0], ReportV2Len)
	w.mtu = min(max(mtu, 1280), ipv6Len+0xffff)
	w.records = 0
}

// Len is the number of records so far.
func (w *ReportWriter) Len() int { return int(w.records) }

// Room is the number of sources that one more record can have; -1 if not even an empty record fits.
func (w *ReportWriter) Room() int {
	room := w.mtu - len(w.b) - RecordLen
	if room < 0 || w.records == 0xffff {
		return -1
	}
	return min(room/SourceLen, 0xffff)
}

// Add appends a record, which must fit (see Room). Addresses are in network byte order.
func (w *ReportWriter) Add(t RecordType, addr *[16]byte, sources [][16]byte) {
	n := len(w.b)
	w.b = slices.Grow(w.b, RecordLen)[:n+RecordLen]
	head := (*[RecordLen]byte)(w.b[n:])
	binary.BigEndian.PutUint32(head[:], uint32(t)<<24|uint32(len(sources))) // no auxiliary data (V2-3)
	*(*[16]byte)(head[4:]) = *addr
	for i := range sources {
		w.b = append(w.b, sources[i][:]...)
	}
	w.records++
}

// Packet completes the packet and returns it. It is valid until the next Reset.
func (w *ReportWriter) Packet(src netip.Addr) []byte {
	m := w.b[icmpOffset:]
	putHead(m, TypeReportV2, 0)
	binary.BigEndian.PutUint16(m[6:], w.records)
	seal(w.b, src, AllMLDv2Routers)
	return w.b
}
