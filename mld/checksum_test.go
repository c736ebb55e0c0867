package mld

import (
	"encoding/binary"
	"testing"
)

// Wide sums whose halves carry at every fold, which packets hardly ever make.
func TestV1_04_ChecksumCarries(t *testing.T) {
	const pseudoHeader = 58 << 8 // of an empty message
	for sum, want := range map[uint64]uint16{
		pseudoHeader:        pseudoHeader,
		0xffffffff_00010000: 0x0001,
		0xffffffff_ffffffff: 0xffff,
		0xffffffff_fffffffe: 0xfffe,
		0x00010000_0000ffff: 0x0001,
	} {
		var addrs [32]byte
		binary.LittleEndian.PutUint64(addrs[:], sum-pseudoHeader)
		if got := checksum(&addrs, nil); got != want {
			t.Errorf("%#016x: got %#04x, want %#04x", sum, got, want)
		}
	}
}
