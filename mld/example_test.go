package mld_test

import (
	"encoding/hex"
	"fmt"
	"net/netip"

	"github.com/seed-aaab8e3a/cni-mld/mld"
)

// A General Query of MLDv1, as a Linux bridge sends it, from the IPv6 header on.
func ExampleParse() {
	packet, _ := hex.DecodeString("6000000000200001" +
		"fe80000000000000000000fffe000001" + "ff020000000000000000000000000001" +
		"3a00050200000000" + "82005a1727100000" + "00000000000000000000000000000000")

	p, err := mld.Parse(packet, 0)
	if err != nil {
		fmt.Println(err)
		return
	}
	m := p.Message
	fmt.Printf("MLDv%d %v for %v from %v, answer within %v\n",
		m.Version, m.Type, m.MulticastAddress, p.Src, m.MaxResponseDelay())

	packet[7] = 64 // Hop Limit
	_, err = mld.Parse(packet, 0)
	fmt.Printf("%v: %v\n", mld.ReasonOf(err).String(), err)
	// Output:
	// MLDv1 Query for :: from fe80::ff:fe00:1, answer within 10s
	// hop_limit: Hop Limit is not 1, so the packet may come from another link
}

// Every cause of a rejection has its own counter.
func ExampleReason() {
	var rejected [mld.NumReasons]int
	for _, packet := range [][]byte{nil, {0x45}, make([]byte, 40)} {
		if _, err := mld.Parse(packet, 0); err != nil {
			rejected[mld.ReasonOf(err)]++
		}
	}
	for r := range mld.Reasons() {
		if rejected[r] > 0 {
			fmt.Println(r.String(), rejected[r])
		}
	}
	// Output:
	// header_length 2
	// ip_version 1
}

func ExampleAppendReport() {
	src := netip.MustParseAddr("fe80::ff:fe00:a")
	addr := netip.MustParseAddr("ff05::4321")

	packet := mld.AppendReport(nil, src, addr)
	fmt.Printf("IPv6        %x\n", packet[:8])
	fmt.Printf("source      %x\n", packet[8:24])
	fmt.Printf("destination %x\n", packet[24:40])
	fmt.Printf("hop-by-hop  %x\n", packet[40:48])
	fmt.Printf("report      %x\n", packet[48:56])
	fmt.Printf("address     %x\n", packet[56:])
	// Output:
	// IPv6        6000000000200001
	// source      fe80000000000000000000fffe00000a
	// destination ff050000000000000000000000004321
	// hop-by-hop  3a00050200000100
	// report      8300fad300000000
	// address     ff050000000000000000000000004321
}

func ExampleAppendReportV2() {
	src := netip.MustParseAddr("fe80::ff:fe00:a")
	packet := mld.AppendReportV2(nil, src, []mld.Record{
		{Type: mld.ChangeToExclude, MulticastAddress: netip.MustParseAddr("ff05::4321")},
		{Type: mld.AllowNewSources, MulticastAddress: netip.MustParseAddr("ff3e::8000:1"),
			Sources: []netip.Addr{netip.MustParseAddr("2001:db8::10")}},
	})
	fmt.Println(len(packet), "octets")

	p, _ := mld.Parse(packet, 0)
	for r := range p.Message.Records.All() {
		fmt.Print(r.Type, " ", r.MulticastAddress)
		for s := range r.Sources.All() {
			fmt.Print(" ", s)
		}
		fmt.Println()
	}
	// Output:
	// 112 octets
	// TO_EX ff05::4321
	// ALLOW ff3e::8000:1 2001:db8::10
}
