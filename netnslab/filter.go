package netnslab

import "golang.org/x/net/bpf"

// A Filter lets some frames into a capture: a classic BPF program over the Ethernet frame. An empty one lets
// everything through.
type Filter []bpf.RawInstruction

var (
	// ICMPv6 lets ICMPv6 messages through, with or without a Hop-by-Hop header before them.
	ICMPv6 = icmpv6Filter(bpf.RetConstant{Val: 1 << 18})
	// MLD lets MLD messages through: ICMPv6 types 130, 131, 132 and 143.
	MLD = icmpv6Filter(
		bpf.LoadIndirect{Off: ethernetHeader + ipv6Header, Size: 1},
		bpf.JumpIf{Cond: bpf.JumpEqual, Val: 143, SkipTrue: 2},
		bpf.JumpIf{Cond: bpf.JumpLessThan, Val: 130, SkipTrue: 2},
		bpf.JumpIf{Cond: bpf.JumpGreaterThan, Val: 132, SkipTrue: 1},
		bpf.RetConstant{Val: 1 << 18},
		bpf.RetConstant{Val: 0},
	)
)

const (
	ethernetHeader = 14
	ipv6Header     = 40
)

// icmpv6Filter makes a filter of what follows once a frame is known to be ICMPv6, with the length of the
// Hop-by-Hop header in register X.
func icmpv6Filter(then ...bpf.Instruction) Filter {
	program := []bpf.Instruction{
		bpf.LoadAbsolute{Off: 12, Size: 2},
		bpf.JumpIf{Cond: bpf.JumpEqual, Val: 0x86dd, SkipFalse: 10},
		bpf.LoadAbsolute{Off: ethernetHeader + 6, Size: 1}, // next header
		bpf.LoadConstant{Dst: bpf.RegX, Val: 0},
		bpf.JumpIf{Cond: bpf.JumpEqual, Val: 58, SkipTrue: 8},
		bpf.JumpIf{Cond: bpf.JumpNotEqual, Val: 0, SkipTrue: 6},         // not Hop-by-Hop
		bpf.LoadAbsolute{Off: ethernetHeader + ipv6Header + 1, Size: 1}, // its length in units of 8 bytes,
		bpf.ALUOpConstant{Op: bpf.ALUOpAdd, Val: 1},                     // the first not counted
		bpf.ALUOpConstant{Op: bpf.ALUOpShiftLeft, Val: 3},
		bpf.TAX{},
		bpf.LoadAbsolute{Off: ethernetHeader + ipv6Header, Size: 1}, // the next header after it
		bpf.JumpIf{Cond: bpf.JumpEqual, Val: 58, SkipTrue: 1},
		bpf.RetConstant{Val: 0},
	}
	raw, err := bpf.Assemble(append(program, then...))
	if err != nil {
		panic(err) // the program is a constant
	}
	return raw
}
