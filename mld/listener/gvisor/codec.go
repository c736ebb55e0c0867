package main

import (
	"net/netip"

	"github.com/gopacket/gopacket"
	"github.com/gopacket/gopacket/layers"

	"github.com/seed-aaab8e3a/cni-mld/mld"
)

// codecs compares the codec with gopacket.
func codecs(rounds int) []*line {
	const small, large, encoding = 1. / 4, 1. / 10, 1. / 6
	group := address(0)
	return []*line{
		duel("read a general query, MLDv2", rounds, small, reader(mld.AppendQuery(nil, querier, mld.AllNodes,
			mld.Query{MaxResponseCode: 10000, QRV: 2, QQIC: 125}))),
		duel("read a query with 64 sources", rounds, large, reader(mld.AppendQuery(nil, querier, group,
			mld.Query{MulticastAddress: group, Sources: unicast(64)}))),
		duel("read a report of 70 records", rounds, large, reader(mld.AppendReportV2(nil, own, records(70)))),
		duel("write a report of 70 records", rounds, encoding, writer(records(70))),
	}
}

// A contest is a piece of work that both sides can do.
type contest struct{ ours, peer func() }

func duel(what string, rounds int, ratio float64, c contest) *line {
	l := &line{what: what, unit: "ns", goal: goal{ratio: ratio}}
	measured := func(f func()) float64 {
		const enough = 2e6 // ns
		for n := 64; ; n *= 2 {
			cost := measure(n, func() {
				for range n {
					f()
				}
			})
			if cost.ns*float64(n) >= enough {
				return cost.ns
			}
		}
	}
	for range rounds {
		l.ours = append(l.ours, measured(c.ours))
		l.peer = append(l.peer, measured(c.peer))
	}
	return l
}

// reader takes every address out of a packet. gopacket verifies no checksum, and only decodes.
func reader(packet []byte) contest {
	var (
		ip      layers.IPv6
		options layers.IPv6ExtensionSkipper
		icmp    layers.ICMPv6
		query   layers.MLDv2MulticastListenerQueryMessage
		report  layers.MLDv2MulticastListenerReportMessage
		decoded []gopacket.LayerType
		sought  = address(1 << 30)
	)
	parser := gopacket.NewDecodingLayerParser(layers.LayerTypeIPv6, &ip, &options, &icmp, &query, &report)
	return contest{
		ours: func() {
			p, err := mld.Parse(packet, 0)
			if err != nil {
				panic(err)
			}
			for s := range p.Message.Sources.All() {
				if s == sought {
					panic("found what is not there")
				}
			}
			for r := range p.Message.Records.All() {
				if r.MulticastAddress == sought || r.Sources.Len() > 0 {
					panic("found what is not there")
				}
			}
		},
		peer: func() {
			if err := parser.DecodeLayers(packet, &decoded); err != nil {
				panic(err)
			}
			switch decoded[len(decoded)-1] {
			case layers.LayerTypeMLDv2MulticastListenerQuery, layers.LayerTypeMLDv2MulticastListenerReport:
			default:
				panic("gopacket: not decoded to the end")
			}
		},
	}
}

// writer builds a Report.
func writer(list []mld.Record) contest {
	b := make([]byte, 0, mtu)
	src, dst := own.AsSlice(), mld.AllMLDv2Routers.AsSlice()
	ip := &layers.IPv6{Version: 6, NextHeader: layers.IPProtocolIPv6HopByHop, HopLimit: 1, SrcIP: src, DstIP: dst}
	ip.HopByHop = &layers.IPv6HopByHop{}
	ip.HopByHop.NextHeader = layers.IPProtocolICMPv6
	ip.HopByHop.Options = []*layers.IPv6HopByHopOption{
		{OptionType: 5, OptionLength: 2, OptionData: []byte{0, 0}},
		{OptionType: 1},
	}
	icmp := &layers.ICMPv6{TypeCode: layers.CreateICMPv6TypeCode(layers.ICMPv6TypeMLDv2MulticastListenerReportMessageV2, 0)}
	if err := icmp.SetNetworkLayerForChecksum(ip); err != nil {
		panic(err)
	}
	report := &layers.MLDv2MulticastListenerReportMessage{NumberOfMulticastAddressRecords: uint16(len(list))}
	for _, r := range list {
		report.MulticastAddressRecords = append(report.MulticastAddressRecords, layers.MLDv2MulticastAddressRecord{
			RecordType:       layers.MLDv2MulticastAddressRecordType(r.Type),
			MulticastAddress: r.MulticastAddress.AsSlice(),
		})
	}
	buf := gopacket.NewSerializeBuffer()
	options := gopacket.SerializeOptions{FixLengths: true, ComputeChecksums: true}
	return contest{
		ours: func() { b = mld.AppendReportV2(b[:0], own, list) },
		peer: func() {
			if err := gopacket.SerializeLayers(buf, options, ip, icmp, report); err != nil {
				panic(err)
			}
		},
	}
}

func unicast(n int) []netip.Addr {
	list := make([]netip.Addr, n)
	for i := range list {
		a := address(i).As16()
		a[0], a[1] = 0x20, 0x01
		list[i] = netip.AddrFrom16(a)
	}
	return list
}

func records(n int) []mld.Record {
	list := make([]mld.Record, n)
	for i, a := range addresses(n) {
		list[i] = mld.Record{Type: mld.ModeIsExclude, MulticastAddress: a}
	}
	return list
}
