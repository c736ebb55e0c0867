package listener

import (
	"bytes"
	"net/netip"
	"slices"
)

// FilterMode is the mode of a source filter (RFC 9777 section 3).
type FilterMode uint8

// The filter modes.
const (
	Include FilterMode = iota // from the listed sources only
	Exclude                   // from all but the listed sources
)

func (m FilterMode) String() string {
	if m == Exclude {
		return "EXCLUDE"
	}
	return "INCLUDE"
}

// A Filter says which sources a subscriber wants for an address. The zero value is INCLUDE({}): none. The order of
// the sources does not matter, nor does one that is named twice.
type Filter struct {
	Mode    FilterMode
	Sources []netip.Addr
}

// AnySource is the filter of a join without sources, EXCLUDE({}).
var AnySource = Filter{Mode: Exclude}

// WantsNothing tells whether the filter is INCLUDE({}), by which an address is left.
func (f Filter) WantsNothing() bool { return f.Mode == Include && len(f.Sources) == 0 }

// wants tells whether an interface's filter lets anything in.
func wants(mode FilterMode, sources []addr) bool { return mode == Exclude || len(sources) > 0 }

// Sets of addresses are sorted slices without repetition.

func compare(a, b addr) int { return bytes.Compare(a[:], b[:]) }

func sortedAddrs(list []netip.Addr) []addr {
	set := make([]addr, len(list))
	for i, a := range list {
		set[i] = a.As16()
	}
	return sortAddrs(set)
}

// sortAddrs makes a set of a list, in place.
func sortAddrs(list []addr) []addr {
	slices.SortFunc(list, compare)
	return slices.Compact(list)
}

func contains(set []addr, a addr) bool {
	_, found := slices.BinarySearchFunc(set, a, compare)
	return found
}

// walk goes through two sets in order and says of each address in which of them it is.
func walk(a, b []addr, yield func(x addr, inA, inB bool)) {
	for len(a) > 0 || len(b) > 0 {
		c := 0
		switch {
		case len(b) == 0:
			c = -1
		case len(a) == 0:
			c = 1
		default:
			c = compare(a[0], b[0])
		}
		x := addr{}
		if c <= 0 {
			x, a = a[0], a[1:]
		}
		if c >= 0 {
			x, b = b[0], b[1:]
		}
		yield(x, c <= 0, c >= 0)
	}
}

// pick appends to dst the addresses of which keep says so.
func pick(dst, a, b []addr, keep func(inA, inB bool) bool) []addr {
	walk(a, b, func(x addr, inA, inB bool) {
		if keep(inA, inB) {
			dst = append(dst, x)
		}
	})
	return dst
}

func union(a, b []addr) []addr {
	return pick(nil, a, b, func(bool, bool) bool { return true })
}

func intersection(dst, a, b []addr) []addr {
	return pick(dst, a, b, func(inA, inB bool) bool { return inA && inB })
}

func difference(dst, a, b []addr) []addr {
	return pick(dst, a, b, func(inA, inB bool) bool { return inA && !inB })
}

// merge is the rule of RFC 9777 section 4.2 (V2-16): if any filter is EXCLUDE, the interface's is EXCLUDE of what all
// of those exclude and none includes; else it is INCLUDE of what any includes. anySource says that there is an
// EXCLUDE({}) besides.
func merge(filters []subscription, anySource bool) (FilterMode, []addr) {
	mode, first := Include, true
	var excluded, included []addr
	for _, f := range filters {
		switch {
		case f.mode == Include:
			included = union(included, f.sources)
			continue
		case first:
			excluded = f.sources
		default:
			excluded = intersection(nil, excluded, f.sources)
		}
		mode, first = Exclude, false
	}
	switch {
	case anySource:
		return Exclude, nil
	case mode == Exclude:
		return Exclude, difference(nil, excluded, included)
	}
	return Include, included
}
