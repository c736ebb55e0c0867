package mld

import (
	"encoding/binary"
	"math/bits"
)

// checksum returns the ones' complement sum over an ICMPv6 message and its pseudo-header (V1-4): addrs is source and
// destination as they stand in the IPv6 header. The next header is that of ICMPv6, whatever extension headers stand
// before the message.
//
// The sum is of little-endian words, so it is stored and read little-endian: byte order only rotates a ones'
// complement sum [RFC 1071]. A message whose checksum is right sums up to 0xffff; one whose checksum field is zero
// needs the complement of the sum there.
//
// It adds eight octets at a time: with end-around carries a wide sum is congruent to that of its 16-bit words. Two
// sums, s and t with the carries c and d, keep a processor from waiting for the carry of the addition before.
func checksum(addrs *[32]byte, message []byte) uint16 {
	le, b := binary.LittleEndian, message

	var t, d uint64
	n := uint64(len(message)) // with 58 the rest of the pseudo-header, turned into little-endian words
	s, c := bits.Add64(n&0xff<<8+n>>8&0xff+58<<8, le.Uint64(addrs[0:]), 0)
	s, c = bits.Add64(s, le.Uint64(addrs[8:]), c)
	s, c = bits.Add64(s, le.Uint64(addrs[16:]), c)
	s, c = bits.Add64(s, le.Uint64(addrs[24:]), c)
	for len(b) >= 64 {
		s, c = bits.Add64(s, le.Uint64(b), c)
		s, c = bits.Add64(s, le.Uint64(b[8:]), c)
		s, c = bits.Add64(s, le.Uint64(b[16:]), c)
		s, c = bits.Add64(s, le.Uint64(b[24:]), c)
		t, d = bits.Add64(t, le.Uint64(b[32:]), d)
		t, d = bits.Add64(t, le.Uint64(b[40:]), d)
		t, d = bits.Add64(t, le.Uint64(b[48:]), d)
		t, d = bits.Add64(t, le.Uint64(b[56:]), d)
		b = b[64:]
	}
	for len(b) >= 8 {
		s, c = bits.Add64(s, le.Uint64(b), c)
		b = b[8:]
	}
	if len(b) >= 4 {
		t, d = bits.Add64(t, uint64(le.Uint32(b)), d)
		b = b[4:]
	}
	for i, v := range b {
		t, d = bits.Add64(t, uint64(v)<<(8*i), d)
	}
	s, c = bits.Add64(s, t, c)
	s, c = bits.Add64(s, d, c)
	s += c

	s = s>>32 + s&0xffffffff
	s = s>>16 + s&0xffff
	s = s>>16 + s&0xffff
	s = s>>16 + s&0xffff
	return uint16(s)
}
