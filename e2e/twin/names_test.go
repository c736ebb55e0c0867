//go:build twin

package twin

import (
	"cmp"
	"fmt"
	"net/netip"
	"slices"
	"strings"

	"github.com/seed-aaab8e3a/cni-mld/mld/listener"
)

// A name stands for a multicast address: 'g' to 'j' are any-source groups, 's' and 't' source-specific ones.
type name byte

const (
	barrier  name = '!' // always joined; the answer to a query for it shows that the queries before have been read
	sentinel name = '~' // joined and left at the end of a round, which makes the kernel send what is left
	other    name = '?' // all other addresses: solicited-node groups and their like
	nobody   name = 0   // the address of a General Query
)

var addresses = map[name]netip.Addr{
	'g': netip.MustParseAddr("ff05::67"), 'h': netip.MustParseAddr("ff05::68"), 'i': netip.MustParseAddr("ff0e::69"),
	'j': netip.MustParseAddr("ff02::6a:6a"),
	's': netip.MustParseAddr("ff3e::8000:73"), 't': netip.MustParseAddr("ff35::8000:74"),
	barrier: netip.MustParseAddr("ff05::ba"), sentinel: netip.MustParseAddr("ff05::5e"), nobody: netip.IPv6Unspecified(),
}

var names = func() map[netip.Addr]name {
	m := map[netip.Addr]name{}
	for n, a := range addresses {
		m[a] = n
	}
	return m
}()

func nameOf(a netip.Addr) name {
	if n, ok := names[a]; ok {
		return n
	}
	return other
}

// helper tells whether the group only serves the test.
func (n name) helper() bool { return n == barrier || n == sentinel || n == other || n == nobody }

func (n name) sourceSpecific() bool { return n == 's' || n == 't' }

func (n name) String() string { return string(rune(n)) }

// set is a set of sources, the bits of 'a' to 'h': 2001:db8::a1 to ::a8.
type set uint8

const allSources set = 0xff

func setOf(letters string) set {
	var s set
	for _, c := range letters {
		s |= 1 << (c - 'a')
	}
	return s
}

func sourceAddr(i int) netip.Addr {
	a := netip.MustParseAddr("2001:db8::a0").As16()
	a[15] += byte(i) + 1
	return netip.AddrFrom16(a)
}

func sourceBit(a netip.Addr) (set, bool) {
	for i := range 8 {
		if sourceAddr(i) == a {
			return 1 << i, true
		}
	}
	return 0, false
}

func (s set) addrs() []netip.Addr {
	var list []netip.Addr
	for i := range 8 {
		if s&(1<<i) != 0 {
			list = append(list, sourceAddr(i))
		}
	}
	return list
}

func (s set) String() string {
	var b strings.Builder
	for i := range 8 {
		if s&(1<<i) != 0 {
			b.WriteByte('a' + byte(i))
		}
	}
	return "{" + b.String() + "}"
}

// filter is what a socket wants of a group; the zero filter is INCLUDE({}), nothing.
type filter struct {
	exclude bool
	sources set
}

func (f filter) wants() bool { return f.exclude || f.sources != 0 }

func (f filter) String() string {
	if f.exclude {
		return "EX" + f.sources.String()
	}
	return "IN" + f.sources.String()
}

func (f filter) listener() listener.Filter {
	l := listener.Filter{Sources: f.sources.addrs()}
	if f.exclude {
		l.Mode = listener.Exclude
	}
	return l
}

// Record types, as RFC 9777 section 5.2.5 numbers them, and the messages of MLDv1.
const (
	isIn, isEx, toIn, toEx, allow, block = 1, 2, 3, 4, 5, 6

	report, done, reportV2 = 131, 132, 143
)

var kinds = map[int]string{isIn: "IS_IN", isEx: "IS_EX", toIn: "TO_IN", toEx: "TO_EX", allow: "ALLOW", block: "BLOCK",
	report: "Report", done: "Done"}

// A record is what a packet says of a group: a Multicast Address Record, or a whole message of MLDv1.
type record struct {
	kind    int
	group   name
	sources set
	extra   int // sources that are repeated or unknown
}

func (r record) current() bool { return r.kind == isIn || r.kind == isEx }

func (r record) String() string {
	if r.kind >= report {
		return kinds[r.kind]
	}
	text := kinds[r.kind] + r.sources.String()
	if r.extra > 0 {
		text += fmt.Sprintf("+%d", r.extra)
	}
	return text
}

// saying is what records of one group are as text, in a fixed order.
func saying(records []record) string {
	sorted := slices.SortedFunc(slices.Values(records), func(a, b record) int {
		return cmp.Or(cmp.Compare(a.kind, b.kind), cmp.Compare(a.sources, b.sources))
	})
	texts := make([]string, len(sorted))
	for i, r := range sorted {
		texts[i] = r.String()
	}
	return strings.Join(texts, "+")
}
