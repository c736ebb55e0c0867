package kernel

import (
	"net/netip"
	"slices"

	"github.com/seed-aaab8e3a/cni-mld/mld"
)

// A filter is the source filter of an interface for one multicast address (RFC 9777 section 4.2). The sources are
// sorted, and the list is replaced and never changed.
type filter struct {
	exclude bool
	sources []netip.Addr
}

var anySource = filter{exclude: true}

func (f filter) equal(g filter) bool {
	return f.exclude == g.exclude && slices.Equal(f.sources, g.sources)
}

// A membership is an address that the kernel has joined, with what is known of its filter. The zero membership is
// one that the kernel does not have.
type membership struct {
	filter
	state knowledge
}

// knowledge is how a membership's filter is known.
//
// The kernel tells filters in its reports and nowhere else (see [Mirror]), and most of these tell a change. So what a
// record means depends on what is known before.
type knowledge uint8

const (
	// absent: the kernel does not have the address.
	absent knowledge = iota
	// awaited: joined a moment ago, for source-specific multicast by its address, and the sources are not there yet:
	// the kernel tells of a join before it adds the source. Not to be told.
	awaited
	// unsure: the address stood before the mirror began, or something was lost. EXCLUDE({}) stands in for the filter:
	// more than is wanted perhaps, but never less. A change proves nothing, for it means one thing in one mode and
	// another thing in the other.
	unsure
	// fresh: joined a moment ago, and the filter is what the list of sources had of it, EXCLUDE({}) if nothing. The
	// first report tells the mode: that of an any-source join begins with TO_EX, that of a source-specific one with
	// ALLOW. Anything that takes away is about an earlier membership, long left.
	fresh
	// sure: as the kernel has reported it.
	sure
)

// size is what the membership counts for MaxJoined.
func (s membership) size() int {
	if s.state == absent {
		return 0
	}
	return 1 + len(s.sources)
}

// tells returns the filter that is told of a membership; ok is false if it is not told at all.
func (s membership) tells() (f filter, ok bool) { return s.filter, s.state > awaited }

// after is the membership after a record of the kernel's. A record that is continued tells more sources of the same
// list as the one before.
//
// A record never ends a membership, even one that says so: leaves are told by events, in their own order. The filter
// that was there last stands until then. Everything else follows the record, so that a record which comes twice, or
// after another one that says the same, changes nothing.
func (s membership) after(kind mld.RecordType, sources []netip.Addr, continued bool) membership {
	now := membership{state: sure}
	switch kind {
	case mld.ModeIsExclude, mld.ChangeToExclude:
		now.exclude, now.sources = true, sources
	case mld.ModeIsInclude, mld.ChangeToInclude:
		// No source-specific query reaches the kernel (see NewMute), so IS_IN has the whole filter in it.
		now.sources = sources
		if continued {
			now.sources = union(s.sources, sources)
		}
	case mld.AllowNewSources:
		switch {
		case s.state == unsure:
			return s
		case s.state == sure && s.exclude:
			now.exclude, now.sources = true, difference(s.sources, sources)
		case s.exclude: // what a join seemed to be
			now.sources = sources
		default:
			now.sources = union(s.sources, sources)
		}
	case mld.BlockOldSources:
		switch {
		case s.state != sure:
			return s
		case s.exclude:
			now.exclude, now.sources = true, union(s.sources, sources)
		default:
			now.sources = difference(s.sources, sources)
		}
	default:
		return s
	}
	if !now.exclude && len(now.sources) == 0 {
		return s
	}
	return now
}

// excludes are those of the sources that are known to be excluded.
func (s membership) excludes(sources []netip.Addr) []netip.Addr {
	if s.state != sure || !s.exclude {
		return nil
	}
	return difference(s.sources, difference(s.sources, sources))
}

// sourceSet makes a set of the sources in a record. What no packet can come from is left out: a program may name
// any address.
func sourceSet(s mld.Sources) []netip.Addr {
	var set []netip.Addr
	for a := range s.All() {
		if unicast(a) {
			set = append(set, a)
		}
	}
	return sortSet(set)
}

func unicast(a netip.Addr) bool { return !a.IsMulticast() && !a.IsUnspecified() && !a.Is4In6() }

func sortSet(list []netip.Addr) []netip.Addr {
	slices.SortFunc(list, netip.Addr.Compare)
	return slices.Compact(list)
}

// union returns a if it has all of b.
func union(a, b []netip.Addr) []netip.Addr {
	more := difference(b, a)
	if len(more) == 0 {
		return a
	}
	return sortSet(slices.Concat(a, more))
}

// difference returns a if it has none of b.
func difference(a, b []netip.Addr) []netip.Addr {
	in := func(x netip.Addr) bool {
		_, found := slices.BinarySearchFunc(b, x, netip.Addr.Compare)
		return found
	}
	if !slices.ContainsFunc(a, in) {
		return a
	}
	return slices.DeleteFunc(slices.Clone(a), in)
}
