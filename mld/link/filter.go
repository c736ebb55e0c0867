package link

import (
	"encoding/binary"

	"golang.org/x/net/bpf"
	"golang.org/x/sys/unix"
)

// Offsets in an Ethernet frame that carries IPv6.
const (
	ethernetLen      = 14
	etherTypeOffset  = 12
	nextHeaderOffset = ethernetLen + 6
	sourceOffset     = ethernetLen + 8
	payloadOffset    = ethernetLen + 40
)

// linkLocal is how a link-local address begins, as far as Linux makes one (RFC 4291 section 2.5.6).
const linkLocal = 0xfe80

// vlanID is what of a VLAN tag says which VLAN; 0 is none, the tag then tells the priority alone (IEEE 802.1Q).
const vlanID = 0x0fff

// The MLD messages, all of them ICMPv6 types (RFC 2710 section 3, RFC 9777 section 5).
const (
	typeQuery    = 130
	typeReport   = 131
	typeDone     = 132
	typeReportV2 = 143
)

// mldFilter passes frames with an MLD message directly behind the IPv6 header or behind a Hop-by-Hop Options
// header of any length. The former are not valid MLD but must be counted (K25). Reading behind the end of a
// frame ends a filter with a refusal, so short frames need no care.
func mldFilter() ([]bpf.RawInstruction, error) {
	return bpf.Assemble([]bpf.Instruction{
		// Only frames for this host, for everybody and for groups: with the interface in promiscuous mode the
		// unicast frames of others arrive too, and so do those of VLANs that nobody here has.
		0: bpf.LoadExtension{Num: bpf.ExtType},
		1: bpf.JumpIf{Cond: bpf.JumpLessOrEqual, Val: unix.PACKET_MULTICAST, SkipTrue: 3},
		// Those that this host sends, after HearKernel; what comes from "::" makes no difference to anybody.
		2: bpf.JumpIf{Cond: bpf.JumpNotEqual, Val: unix.PACKET_OUTGOING, SkipTrue: 21},
		3: bpf.LoadAbsolute{Off: sourceOffset, Size: 2},
		4: bpf.JumpIf{Cond: bpf.JumpNotEqual, Val: linkLocal, SkipTrue: 19},

		// A socket for every protocol gets to see the frames of VLANs without their tag.
		5: bpf.LoadExtension{Num: bpf.ExtVLANTag},
		6: bpf.JumpIf{Cond: bpf.JumpBitsSet, Val: vlanID, SkipTrue: 17},

		7: bpf.LoadAbsolute{Off: etherTypeOffset, Size: 2},
		8: bpf.JumpIf{Cond: bpf.JumpNotEqual, Val: unix.ETH_P_IPV6, SkipTrue: 15},

		// X is the length of what stands between the IPv6 header and the ICMPv6 message.
		9:  bpf.LoadConstant{Dst: bpf.RegX, Val: 0},
		10: bpf.LoadAbsolute{Off: nextHeaderOffset, Size: 1},
		11: bpf.JumpIf{Cond: bpf.JumpEqual, Val: unix.IPPROTO_ICMPV6, SkipTrue: 7},
		12: bpf.JumpIf{Cond: bpf.JumpNotEqual, Val: unix.IPPROTO_HOPOPTS, SkipTrue: 11},

		13: bpf.LoadAbsolute{Off: payloadOffset, Size: 1},
		14: bpf.JumpIf{Cond: bpf.JumpNotEqual, Val: unix.IPPROTO_ICMPV6, SkipTrue: 9},
		15: bpf.LoadAbsolute{Off: payloadOffset + 1, Size: 1},
		16: bpf.ALUOpConstant{Op: bpf.ALUOpAdd, Val: 1},
		17: bpf.ALUOpConstant{Op: bpf.ALUOpMul, Val: 8},
		18: bpf.TAX{},

		19: bpf.LoadIndirect{Off: payloadOffset, Size: 1},
		20: bpf.JumpIf{Cond: bpf.JumpEqual, Val: typeReportV2, SkipTrue: 2},
		21: bpf.JumpIf{Cond: bpf.JumpLessThan, Val: typeQuery, SkipTrue: 2},
		22: bpf.JumpIf{Cond: bpf.JumpGreaterThan, Val: typeDone, SkipTrue: 1},
		23: bpf.RetConstant{Val: 0xffff},
		24: bpf.RetConstant{Val: 0},
	})
}

// eventFilter passes all events but those of routes, of which it passes one: ff00::/8 of the table "local", which the
// kernel gives to an interface when IPv6 is switched on there, and takes away when it is switched off. No other event
// tells that of an interface without addresses.
func eventFilter() ([]bpf.RawInstruction, error) {
	const dstLenOffset, tableOffset = unix.SizeofNlMsghdr + 1, unix.SizeofNlMsghdr + 4 // in rtmsg
	// A filter reads in network order, and the kernel has written in its own.
	kind := func(v uint16) uint32 {
		return uint32(binary.BigEndian.Uint16(binary.NativeEndian.AppendUint16(nil, v)))
	}
	return bpf.Assemble([]bpf.Instruction{
		0: bpf.LoadAbsolute{Off: 4, Size: 2},
		1: bpf.JumpIf{Cond: bpf.JumpEqual, Val: kind(unix.RTM_NEWROUTE), SkipTrue: 1},
		2: bpf.JumpIf{Cond: bpf.JumpNotEqual, Val: kind(unix.RTM_DELROUTE), SkipTrue: 4},
		3: bpf.LoadAbsolute{Off: dstLenOffset, Size: 1},
		4: bpf.JumpIf{Cond: bpf.JumpNotEqual, Val: 8, SkipTrue: 3},
		5: bpf.LoadAbsolute{Off: tableOffset, Size: 1},
		6: bpf.JumpIf{Cond: bpf.JumpNotEqual, Val: unix.RT_TABLE_LOCAL, SkipTrue: 1},
		7: bpf.RetConstant{Val: 0xffff},
		8: bpf.RetConstant{Val: 0},
	})
}
