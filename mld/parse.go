package mld

import "encoding/binary"

// Accept is a set of what [Parse] is to accept although the current texts do not want it. The zero Accept
// is what a listener of both versions needs.
type Accept uint8

const (
	// AcceptHopLimit accepts any Hop Limit, as RFC 2710 does not tell a receiver to look at it (K24).
	AcceptHopLimit Accept = 1 << iota
	// AcceptNoRouterAlert accepts a Hop-by-Hop Options header whose Router Alert has any value, stands
	// there more than once or not at all, and a packet that has no such header (K25).
	AcceptNoRouterAlert
	// AcceptQueryLength takes every Query of 24 octets or more that is none of version 2 for one of version 1, as
	// a listener does that knows no other version (V1-2, K21).
	AcceptQueryLength
	// AcceptUnspecified accepts every type of message from "::", as a snooping switch does.
	AcceptUnspecified
)

// Parse decodes and judges a packet that begins with its IPv6 header; octets after its Payload Length are
// taken for padding of the link. The destination is not judged: a node accepts a message to any address it
// listens to (V2-6, V2-70), and only the link knows that. Every error is a [Reason]; the Packet is zero then.
//
// It is safe for concurrent use, does not allocate, and does not change or keep packet, into which the
// Packet's Sources and Records point.
func Parse(packet []byte, accept Accept) (p Packet, err error) {
	if r := p.parse(packet, accept); r != 0 {
		return Packet{}, r
	}
	return p, nil
}

// parse settles the IPv6 part in the order of the headers, then the message.
func (p *Packet) parse(packet []byte, accept Accept) Reason {
	if len(packet) < ipv6Len {
		return ReasonHeaderLength
	}
	if packet[0]>>4 != 6 {
		return ReasonIPVersion
	}
	header, payload := packet[:ipv6Len], packet[ipv6Len:]
	n := int(binary.BigEndian.Uint16(header[4:]))
	if n > len(payload) {
		return ReasonPayloadLength
	}
	payload = payload[:n:n]

	message, r := icmpv6(header[6], payload, accept)
	if r != 0 {
		return r
	}
	if len(message) < reportV2Len {
		return ReasonMessageLength // no room for type and checksum
	}
	// Nothing of the message is used before its checksum is verified (V2-69), which covers all of it, also
	// what no version of MLD defines (V1-2, V2-4).
	if checksum((*[32]byte)(header[8:]), message) != 0xffff {
		return ReasonChecksum
	}
	if header[7] != 1 && accept&AcceptHopLimit == 0 {
		return ReasonHopLimit // V2-5
	}
	if src := header[8:24]; !isLinkLocal(src) {
		if !isUnspecified(src) {
			return ReasonSource // V1-10, V1-17, V2-5
		}
		if accept&AcceptUnspecified == 0 {
			return ReasonUnspecifiedSource // V1-33
		}
	}
	p.Src, p.Dst, p.HopLimit = addrAt(header[8:]), addrAt(header[24:]), header[7]

	m := &p.Message
	m.Type = Type(message[0])
	switch m.Type {
	case TypeQuery:
		return m.parseQuery(message, accept)
	case TypeReport, TypeDone:
		return m.parseV1(message)
	case TypeReportV2:
		return m.parseReportV2(message)
	}
	return ReasonType // V2-15
}

// The Next Header values that may come before or instead of an MLD message.
const (
	nextHopByHop = 0
	nextFragment = 44
	nextICMPv6   = 58
)

// icmpv6 steps over the extension headers: of these only a Hop-by-Hop Options header comes with MLD.
func icmpv6(next uint8, b []byte, accept Accept) (message []byte, r Reason) {
	strict := accept&AcceptNoRouterAlert == 0
	hasOptions := next == nextHopByHop
	if hasOptions {
		if len(b) < hopByHopLen {
			return nil, ReasonHopByHopLength
		}
		n := 8 + 8*int(b[1])
		if n > len(b) {
			return nil, ReasonHopByHopLength
		}
		if r := walkOptions(b[2:n], strict); r != 0 {
			return nil, r
		}
		next, b = b[0], b[n:]
	}
	switch {
	case next == nextFragment:
		return nil, ReasonFragment
	case next != nextICMPv6:
		return nil, ReasonNextHeader
	case strict && !hasOptions:
		return nil, ReasonNoHopByHop
	}
	return b, 0
}

// walkOptions judges the options of a Hop-by-Hop Options header [RFC 8200 section 4.2]. If strict, exactly
// one of them is a Router Alert [RFC 2711 section 2.1] and it is that of MLD (V2-5).
func walkOptions(b []byte, strict bool) Reason {
	const (
		pad1        = 0
		routerAlert = 5
		mustNotSkip = 0xc0 // what to do with an unknown option; all but 00 end in discarding the packet
	)
	alerts := 0
	for len(b) > 0 {
		if b[0] == pad1 {
			b = b[1:]
			continue
		}
		if len(b) < 2 || 2+int(b[1]) > len(b) {
			return ReasonOptionLength
		}
		if b[0]&mustNotSkip != 0 {
			return ReasonOption
		}
		if b[0] == routerAlert {
			if b[1] != 2 {
				return ReasonRouterAlertLength
			}
			if strict && b[2]|b[3] != 0 {
				return ReasonRouterAlertValue
			}
			alerts++
		}
		b = b[2+int(b[1]):]
	}
	if strict && alerts == 0 {
		return ReasonNoRouterAlert
	}
	if strict && alerts > 1 {
		return ReasonRouterAlertRepeated
	}
	return 0
}

func (m *Message) parseQuery(b []byte, accept Accept) Reason {
	if len(b) < v1Len {
		return ReasonMessageLength
	}
	group := b[8:v1Len]
	general := isUnspecified(group)

	m.Version = Version1
	if len(b) > v1Len { // the length alone tells the version (V2-7)
		if r := m.parseQueryV2(b, general); r != 0 && accept&AcceptQueryLength == 0 {
			return r
		}
	}
	if !general && !isMulticast(group) {
		return ReasonMulticastAddress // V2-10, K28
	}
	m.MulticastAddress = addrAt(group)
	m.MaxResponseCode = binary.BigEndian.Uint16(b[4:])
	return 0
}

// parseQueryV2 decodes what version 2 has added to a Query.
func (m *Message) parseQueryV2(b []byte, general bool) Reason {
	if len(b) < queryV2Len {
		return ReasonQueryLength
	}
	n := int(binary.BigEndian.Uint16(b[26:]))
	end := queryV2Len + SourceLen*n
	if end > len(b) {
		return ReasonSourceCount // V2-8
	}
	if general && n > 0 {
		return ReasonGeneralSources // V2-9
	}
	m.Version = Version2
	m.Sources = Sources{b[queryV2Len:end:end]} // what follows is additional data (V2-4)
	m.SuppressRouterProcessing = b[24]&0x08 != 0
	m.QRV = b[24] & 0x07
	m.QQIC = b[25]
	return 0
}

// parseV1 decodes a version 1 Report or Done, of which only the address means something (V1-3); what follows
// it is ignored (V1-2).
func (m *Message) parseV1(b []byte) Reason {
	if len(b) < v1Len {
		return ReasonMessageLength // V1-17
	}
	group := b[8:v1Len]
	if !isMulticast(group) {
		return ReasonMulticastAddress // K44
	}
	m.Version = Version1
	m.MulticastAddress = addrAt(group)
	return 0
}

func (m *Message) parseReportV2(b []byte) Reason {
	n := int(binary.BigEndian.Uint16(b[6:]))
	b = b[reportV2Len:]
	at := 0
	for range n {
		if len(b)-at < RecordLen {
			return ReasonRecordCount
		}
		_, end := recordBounds(b[at:])
		if at += end; at > len(b) {
			return ReasonRecordCount
		}
	}
	m.Version = Version2
	m.Records = Records{b[:at:at], n} // what follows is additional data (V2-4)
	return 0
}
