package mld

import (
	"math/bits"
	"time"
)

// Mantissa bits of the two codes of a version 2 Query [RFC 3810 sections 5.1.3 and 5.1.9]. Both codes have
// three bits of exponent, and stand for themselves below the bit in front of these.
const (
	maxResponseMantissa = 12
	qqicMantissa        = 4
)

// DecodeMaxResponseCode returns the Maximum Response Delay that the code of a version 2 Query stands for: 0
// to 8387.584 s, in steps of a millisecond below 32.768 s and of a 4096th or finer above (V2-11). A version 1
// Query does not use it: see [Message.MaxResponseDelay].
func DecodeMaxResponseCode(code uint16) time.Duration {
	return time.Duration(decodeFloat(uint64(code), maxResponseMantissa)) * time.Millisecond
}

// EncodeMaxResponseCode returns the code for the longest delay that can be represented and is not above d: 0
// if d is negative, 0xffff if it is above 8387.584 s.
func EncodeMaxResponseCode(d time.Duration) uint16 {
	return uint16(encodeFloat(uint64(max(d, 0)/time.Millisecond), maxResponseMantissa))
}

// DecodeQQIC returns the Querier's Query Interval that the code stands for: 0 to 31744 s, in steps of a
// second below 128 s and of a 16th or finer above.
func DecodeQQIC(code uint8) time.Duration {
	return time.Duration(decodeFloat(uint64(code), qqicMantissa)) * time.Second
}

// EncodeQQIC returns the code for the longest interval that can be represented and is not above d: 0 if d is
// below a second, 0xff if it is above 31744 s.
func EncodeQQIC(d time.Duration) uint8 {
	return uint8(encodeFloat(uint64(max(d, 0)/time.Second), qqicMantissa))
}

func decodeFloat(code uint64, mantissa int) uint64 {
	if code < 8<<mantissa {
		return code
	}
	exp := code >> mantissa & 7
	return (code&(1<<mantissa-1) | 1<<mantissa) << (exp + 3)
}

func encodeFloat(v uint64, mantissa int) uint64 {
	if v < 8<<mantissa {
		return v
	}
	exp := bits.Len64(v) - mantissa - 4
	if exp > 7 {
		return 16<<mantissa - 1
	}
	return 8<<mantissa | uint64(exp)<<mantissa | v>>(exp+3)&(1<<mantissa-1)
}
