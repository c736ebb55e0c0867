// Package mld reads and writes the packets of Multicast Listener Discovery: version 1 [RFC 2710] and version 2
// [RFC 3810, now RFC 9777]. Hosts use MLD to tell the routers and snooping switches of a link which IPv6 multicast
// addresses they listen to.
//
// There are four messages, each an ICMPv6 message of its own in one IPv6 packet:
//
//	130 Query      a querier asks: for all addresses (General Query), for one, or for sources of one
//	131 Report     version 1: "I listen to this address"
//	132 Done       version 1: "I no longer listen to it"
//	143 ReportV2   version 2: any number of records, each an address with a list of sources
//
// A packet on the link, here with a version 1 Report, of 72 octets:
//
//	octet   0 ┌──────────────────────────────────────────────────────────────┐
//	          │ IPv6: Payload Length 32, Next Header 0, Hop Limit 1          │
//	        8 │ source        fe80::… of the interface, "::" before it has   │
//	       24 │ destination   the address; ff02::2, ff02::16 or ff02::1 for  │
//	          │               Done, ReportV2 and General Query               │
//	       40 ├──────────────────────────────────────────────────────────────┤
//	          │ Hop-by-Hop Options: Next Header 58; Router Alert 0; padding  │
//	       48 ├──────────────────────────────────────────────────────────────┤
//	          │ Type 131 │ Code 0 │ Checksum, of all this and a pseudo-header│
//	       52 │ Maximum Response Delay of a Query, 16 bits │ Reserved        │
//	       56 │ Multicast Address, 16 octets; "::" in a General Query        │
//	       72 ├──────────────────────────────────────────────────────────────┤
//	          │ a version 2 Query goes on: S, QRV, QQIC, number of sources,  │
//	       76 │ and the sources, 16 octets each                              │
//	          └──────────────────────────────────────────────────────────────┘
//
// # Reading
//
// [Parse] takes a packet from its IPv6 header on and judges all that a host must: it walks the options instead of
// comparing octets (everyone pads in a way of its own), verifies the checksum before it looks at the message, and
// wants Hop Limit 1 and a link-local source, so that nothing from another link passes. The length alone tells the
// version of a Query: 24 octets or at least 28. What it does not accept it names by a [Reason], which is an error and
// the index of a counter at once; [Accept] turns single checks off for listeners of the older kind.
//
// # Writing
//
// [AppendReport], [AppendDone], [AppendReportV2] and [AppendQuery] append a whole packet, ready for the link: octet
// for octet what a Linux host sends. They do not allocate when the slice has room. A zone of an address never reaches
// the packet, and the zero Addr is sent as "::", the source of an interface without a link-local address.
//
// The package is pure: no sockets, no clock, no state. Reading and writing do not allocate, and all of it is safe for
// concurrent use. Parsed lists are views into the packet, good for as long as its octets stay as they are.
package mld
