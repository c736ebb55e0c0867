package mld_test

import (
	"testing"
	"time"

	"github.com/seed-aaab8e3a/cni-mld/mld"
)

func TestV2_11_MaxResponseCode(t *testing.T) {
	for code, want := range map[uint16]int{
		0: 0, 1: 1, 0x7fff: 32767, 0x8000: 32768, 0x8fff: 65528, 0x9000: 65536, 0x9c40: 115712, 0xffff: 8387584,
	} {
		if got := mld.DecodeMaxResponseCode(code); got != time.Duration(want)*time.Millisecond {
			t.Errorf("%#04x: %v, want %d ms", code, got, want)
		}
	}
}

func TestQQIC(t *testing.T) {
	for code, want := range map[uint8]int{0: 0, 0x7d: 125, 0x7f: 127, 0x80: 128, 0x82: 144, 0x8a: 208, 0xff: 31744} {
		if got := mld.DecodeQQIC(code); got != time.Duration(want)*time.Second {
			t.Errorf("%#02x: %v, want %d s", code, got, want)
		}
	}
}

// exhaust proves of a pair of functions over all codes from 0 to last that the values rise, that a value is
// encoded as its own code, and that any value up to the next one, in steps of unit, gets the code below it.
func exhaust[C uint8 | uint16](t *testing.T, last C, unit time.Duration, decode func(C) time.Duration,
	encode func(time.Duration) C) {
	for c := C(0); ; c++ {
		v := decode(c)
		if encode(v) != c {
			t.Fatalf("%v is encoded as %#x, want %#x", v, encode(v), c)
		}
		if c == last {
			break
		}
		next := decode(c + 1)
		if next <= v {
			t.Fatalf("code %#x stands for %v, the next for %v", c, v, next)
		}
		for _, between := range []time.Duration{v + 1, v + (next-v)/2, next - unit, next - 1} {
			if between < next && between >= v && encode(between) != c {
				t.Fatalf("%v is encoded as %#x, want %#x (%v)", between, encode(between), c, v)
			}
		}
	}
	for _, above := range []time.Duration{decode(last) + 1, decode(last) + unit, 2 * decode(last), 1<<63 - 1} {
		if encode(above) != last {
			t.Errorf("%v is encoded as %#x, want %#x", above, encode(above), last)
		}
	}
	for _, below := range []time.Duration{0, -1, -unit, -1 << 63} {
		if encode(below) != 0 {
			t.Errorf("%v is encoded as %#x, want 0", below, encode(below))
		}
	}
}

func TestV2_11_MaxResponseCodeBothWays(t *testing.T) {
	exhaust(t, 0xffff, time.Millisecond, mld.DecodeMaxResponseCode, mld.EncodeMaxResponseCode)
}

func TestQQICBothWays(t *testing.T) {
	exhaust(t, 0xff, time.Second, mld.DecodeQQIC, mld.EncodeQQIC)
}
