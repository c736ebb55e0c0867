package link

import (
	"golang.org/x/net/bpf"
	"golang.org/x/sys/unix"
)

// Offsets in an Ethernet frame that carries IPv6.
const (
	ethernetLen      = 14
	etherTypeOffset  = 12
	nextHeaderOffset = ethernetLen + 6
	payloadOffset    = ethernetLen + 40
)

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
		1: bpf.JumpIf{Cond: bpf.JumpGreaterThan, Val: unix.PACKET_MULTICAST, SkipTrue: 17},

		2: bpf.LoadAbsolute{Off: etherTypeOffset, Size: 2},
		3: bpf.JumpIf{Cond: bpf.JumpNotEqual, Val: unix.ETH_P_IPV6, SkipTrue: 15},

		// X is the length of what stands between the IPv6 header and the ICMPv6 message.
		4: bpf.LoadConstant{Dst: bpf.RegX, Val: 0},
		5: bpf.LoadAbsolute{Off: nextHeaderOffset, Size: 1},
		6: bpf.JumpIf{Cond: bpf.JumpEqual, Val: unix.IPPROTO_ICMPV6, SkipTrue: 7},
		7: bpf.JumpIf{Cond: bpf.JumpNotEqual, Val: unix.IPPROTO_HOPOPTS, SkipTrue: 11},

		8:  bpf.LoadAbsolute{Off: payloadOffset, Size: 1},
		9:  bpf.JumpIf{Cond: bpf.JumpNotEqual, Val: unix.IPPROTO_ICMPV6, SkipTrue: 9},
		10: bpf.LoadAbsolute{Off: payloadOffset + 1, Size: 1},
		11: bpf.ALUOpConstant{Op: bpf.ALUOpAdd, Val: 1},
		12: bpf.ALUOpConstant{Op: bpf.ALUOpMul, Val: 8},
		13: bpf.TAX{},

		14: bpf.LoadIndirect{Off: payloadOffset, Size: 1},
		15: bpf.JumpIf{Cond: bpf.JumpEqual, Val: typeReportV2, SkipTrue: 2},
		16: bpf.JumpIf{Cond: bpf.JumpLessThan, Val: typeQuery, SkipTrue: 2},
		17: bpf.JumpIf{Cond: bpf.JumpGreaterThan, Val: typeDone, SkipTrue: 1},
		18: bpf.RetConstant{Val: 0xffff},
		19: bpf.RetConstant{Val: 0},
	})
}
