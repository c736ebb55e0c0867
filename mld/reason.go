package mld

import (
	"errors"
	"iter"
)

// Reason is why [Parse] did not accept a packet. It is an error; [Reason.String] is a label for a counter.
// The zero Reason is that of no error.
type Reason uint8

const (
	_                         Reason = iota
	ReasonHeaderLength               // shorter than an IPv6 header
	ReasonIPVersion                  // not IPv6
	ReasonPayloadLength              // shorter than its Payload Length says
	ReasonNoHopByHop                 // an ICMPv6 message without a Hop-by-Hop Options header
	ReasonHopByHopLength             // a Hop-by-Hop Options header that ends outside the packet
	ReasonOptionLength               // an option that ends outside the Hop-by-Hop Options header
	ReasonOption                     // an unknown option that must not be skipped
	ReasonRouterAlertLength          // a Router Alert whose value is not of two octets
	ReasonRouterAlertRepeated        // more than one Router Alert
	ReasonRouterAlertValue           // a Router Alert for something else than MLD
	ReasonNoRouterAlert              // no Router Alert among the options
	ReasonFragment                   // a fragment
	ReasonNextHeader                 // something else than ICMPv6
	ReasonMessageLength              // shorter than every message of its type
	ReasonChecksum                   // a wrong ICMPv6 checksum
	ReasonHopLimit                   // a Hop Limit other than 1
	ReasonUnspecifiedSource          // sent from "::"
	ReasonSource                     // sent from another address that is not link-local
	ReasonType                       // not a message of MLD
	ReasonQueryLength                // a Query of 25 to 27 octets: neither version 1 nor 2
	ReasonMulticastAddress           // about an address that is not multicast
	ReasonSourceCount                // a Query with fewer sources than it counts
	ReasonGeneralSources             // a General Query with sources
	ReasonRecordCount                // a Report with fewer records or sources than it counts
	reasonEnd
)

// NumReasons is one more than the highest Reason: the size of an array that is indexed by Reason.
const NumReasons = int(reasonEnd)

var reasonTexts = [NumReasons]struct{ label, sentence string }{
	{"none", "nothing is wrong"},
	ReasonHeaderLength:        {"header_length", "packet is shorter than the 40 octets of an IPv6 header"},
	ReasonIPVersion:           {"ip_version", "packet is not of IP version 6"},
	ReasonPayloadLength:       {"payload_length", "packet is shorter than its Payload Length says"},
	ReasonNoHopByHop:          {"no_hop_by_hop", "packet has no Hop-by-Hop Options header and so no Router Alert"},
	ReasonHopByHopLength:      {"hop_by_hop_length", "Hop-by-Hop Options header ends outside the packet"},
	ReasonOptionLength:        {"option_length", "hop-by-hop option ends outside its header"},
	ReasonOption:              {"option", "hop-by-hop option is unknown and must not be skipped"},
	ReasonRouterAlertLength:   {"router_alert_length", "Router Alert option is not of length 2"},
	ReasonRouterAlertRepeated: {"router_alert_repeated", "Router Alert option stands more than once in its header"},
	ReasonRouterAlertValue:    {"router_alert_value", "Router Alert value is not 0, the value of MLD"},
	ReasonNoRouterAlert:       {"no_router_alert", "Hop-by-Hop Options header holds no Router Alert"},
	ReasonFragment:            {"fragment", "packet is a fragment, which no MLD message may be"},
	ReasonNextHeader:          {"next_header", "packet holds something else than ICMPv6"},
	ReasonMessageLength:       {"message_length", "message is shorter than one of its type can be"},
	ReasonChecksum:            {"checksum", "ICMPv6 checksum does not fit the packet"},
	ReasonHopLimit:            {"hop_limit", "Hop Limit is not 1, so the packet may come from another link"},
	ReasonUnspecifiedSource:   {"unspecified_source", "source address is unspecified"},
	ReasonSource:              {"source", "source address is not link-local"},
	ReasonType:                {"type", "ICMPv6 type is not one of MLD"},
	ReasonQueryLength:         {"query_length", "Query is of 25 to 27 octets, which no version of MLD knows"},
	ReasonMulticastAddress:    {"multicast_address", "message is about an address that is not multicast"},
	ReasonSourceCount:         {"source_count", "Query holds fewer sources than it counts"},
	ReasonGeneralSources:      {"general_sources", "General Query holds sources"},
	ReasonRecordCount:         {"record_count", "Report holds fewer records or sources than it counts"},
}

// Reasons iterates over every reason there is for not accepting a packet.
func Reasons() iter.Seq[Reason] {
	return func(yield func(Reason) bool) {
		for r := Reason(1); r < reasonEnd && yield(r); r++ {
		}
	}
}

// ReasonOf returns the Reason that err is or wraps: 0 for nil and for an error that is not of [Parse].
func ReasonOf(err error) Reason {
	r, _ := errors.AsType[Reason](err)
	return r
}

// String returns a short label of lower-case letters and underscores ("checksum"), fit for a metric. Package fmt
// prints Error instead, as it does of every error.
func (r Reason) String() string { return r.text().label }

// Error returns a phrase that names what is wrong with the packet.
func (r Reason) Error() string { return r.text().sentence }

func (r Reason) text() struct{ label, sentence string } {
	if r >= reasonEnd {
		return struct{ label, sentence string }{"unknown", "reason is unknown"}
	}
	return reasonTexts[r]
}
