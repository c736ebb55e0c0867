package api

import (
	"bytes"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"strings"
	"unicode"

	"github.com/seed-aaab8e3a/cni-mld/mld"
)

// Mode is the mode of a source filter (RFC 9777 section 3). In JSON it is "exclude" or "include".
type Mode uint8

// The filter modes.
const (
	Exclude Mode = iota // from any source but those listed
	Include             // from the listed sources only
)

func (m Mode) String() string {
	switch m {
	case Exclude:
		return "exclude"
	case Include:
		return "include"
	}
	return fmt.Sprintf("Mode(%d)", uint8(m))
}

// MarshalText returns what String does.
func (m Mode) MarshalText() ([]byte, error) { return []byte(m.String()), nil }

// UnmarshalText accepts "exclude" and "include".
func (m *Mode) UnmarshalText(text []byte) error {
	switch string(text) {
	case "exclude":
		*m = Exclude
	case "include":
		*m = Include
	default:
		return fmt.Errorf("%q is neither include nor exclude", Cut(string(text)))
	}
	return nil
}

// Group is one declared multicast address, and the sources from which it is wanted. Without Mode and Sources that is
// any source, EXCLUDE({}).
//
// Its JSON is the configuration's. A string means delivery: "ff05::4321" from any source, "fd00:1::10@ff3e::8000:1"
// from one. An object has the keys "group", "mode", "sources" and "deliver".
type Group struct {
	// Addr is an IPv6 multicast address of scope 2 or more, without a zone; see Validate.
	Addr netip.Addr
	// Mode says what Sources are.
	Mode Mode
	// Sources are IPv6 unicast addresses, sorted and each named once.
	Sources []netip.Addr
	// Deliver says that a socket in the container joins the group, so that an application receives it that only
	// binds the port. Without it the group is reported and the kernel is left alone.
	Deliver bool
}

// Equal tells whether both ask for the same.
func (g Group) Equal(o Group) bool {
	return g.Addr == o.Addr && g.Mode == o.Mode && slices.Equal(g.Sources, o.Sources) && g.Deliver == o.Deliver
}

// Validate says why MLD can not report the group as it is, with what is allowed instead. It returns nil if it can.
func (g Group) Validate() error {
	if err := validateAddr(g.Addr); err != nil {
		return err
	}
	for i, s := range g.Sources {
		if err := validateSource(s); err != nil {
			return fmt.Errorf("source %v %w", s, err)
		}
		if i > 0 && !g.Sources[i-1].Less(s) {
			return fmt.Errorf("source %v is named twice or not in order: sort the sources, and name each once", s)
		}
	}
	specific := mld.SourceSpecific(g.Addr)
	switch {
	case g.Mode > Include:
		return fmt.Errorf("has the unknown mode %d", g.Mode)
	case g.Mode == Include && len(g.Sources) == 0:
		return errors.New("has mode include and no sources, which would be to listen to nothing: name the sources," +
			" or leave mode out for any source")
	case specific && g.Mode == Exclude && len(g.Sources) == 0: // V2-75, RFC 4604 section 2.1
		return errors.New("is source-specific (ff3x::/32) and needs its sources: write it like fd00:1::10@ff3e::8000:1," +
			" or use an any-source group such as ff05::4321")
	case specific && g.Mode == Exclude: // V2-58, RFC 4604 section 2.2.2
		return errors.New("is source-specific (ff3x::/32), which excludes no sources: use mode include," +
			" or an any-source group such as ff05::4321")
	}
	return nil
}

func validateAddr(a netip.Addr) error {
	switch {
	case !a.Is6() || a.Is4In6():
		return errors.New("not an IPv6 address: MLD reports IPv6 multicast addresses such as ff05::4321")
	case a.Zone() != "":
		return errors.New("has a zone: leave it out, the interface is the attachment's")
	case !a.IsMulticast():
		return errors.New("not a multicast address: allowed is ff00::/8 with scope 2 to 15, such as ff05::4321")
	}
	b := a.As16()
	switch scope := b[1] & 0x0f; {
	case scope < 2: // RFC 2710 section 5, V1-23
		return fmt.Errorf("has scope %d, which never leaves the node and is never reported: allowed are scopes 2 to 15,"+
			" such as ff02::4321 or ff05::4321", scope)
	case a == mld.AllNodes: // RFC 2710 section 5, V1-22
		return errors.New("is the all-nodes address, which every node listens to and none reports: leave it out")
	case mld.SourceSpecific(a) && [8]byte(b[4:]) == [8]byte{} && binary.BigEndian.Uint32(b[12:]) <= 0x4000_0000:
		// RFC 4607 section 1, V2-74
		return fmt.Errorf("is an invalid source-specific address: allowed are ff3%x::8000:0 and above, and from"+
			" ff3%[1]x::4000:1 what IANA has assigned", scope)
	}
	return nil
}

func validateSource(s netip.Addr) error {
	const want = "a source is an IPv6 unicast address such as fd00:1::10"
	switch {
	case !s.Is6() || s.Is4In6():
		return errors.New("is not an IPv6 address: " + want)
	case s.Zone() != "":
		return errors.New("has a zone: leave it out, the interface is the attachment's")
	case s.IsMulticast():
		return errors.New("is a multicast address: " + want + ", and stands before the @")
	case s.IsUnspecified():
		return errors.New("is the unspecified address: " + want)
	case s.IsLoopback():
		return errors.New("is the loopback address, which is never on a link: " + want)
	}
	return nil
}

// String is the address, with a note of what is out of the ordinary.
func (g Group) String() string {
	var notes []string
	if !g.anySource() {
		notes = append(notes, fmt.Sprintf("%v %v", g.Mode, g.Sources))
	}
	if !g.Deliver {
		notes = append(notes, "deliver false")
	}
	if len(notes) == 0 {
		return g.Addr.String()
	}
	return fmt.Sprintf("%v (%s)", g.Addr, strings.Join(notes, ", "))
}

func (g Group) anySource() bool { return g.Mode == Exclude && len(g.Sources) == 0 }

// groupObject is the long form of a Group in JSON.
type groupObject struct {
	Group   string       `json:"group"`
	Mode    *Mode        `json:"mode,omitempty"`
	Sources []netip.Addr `json:"sources,omitempty"`
	Deliver *bool        `json:"deliver,omitempty"`
}

// MarshalJSON writes the short form where it says everything.
func (g Group) MarshalJSON() ([]byte, error) {
	switch {
	case g.Deliver && g.anySource():
		return json.Marshal(g.Addr.String())
	case g.Deliver && g.Mode == Include && len(g.Sources) == 1:
		return json.Marshal(g.Sources[0].String() + "@" + g.Addr.String())
	}
	o := groupObject{Group: g.Addr.String(), Sources: g.Sources}
	if !g.anySource() {
		o.Mode = &g.Mode
	}
	if !g.Deliver {
		o.Deliver = &g.Deliver
	}
	return json.Marshal(o)
}

const groupForms = `write "ff05::4321", "fd00:1::10@ff3e::8000:1" or ` +
	`{"group": "ff05::8", "mode": "exclude", "sources": ["fd00:1::66"], "deliver": true}`

// UnmarshalJSON reads all forms and refuses unknown keys. It sorts the sources and checks the form of the addresses;
// Validate checks the rest.
func (g *Group) UnmarshalJSON(data []byte) error {
	switch data = bytes.TrimSpace(data); {
	case len(data) > 0 && data[0] == '"':
		var text string
		if err := json.Unmarshal(data, &text); err != nil {
			return err
		}
		return g.parse(text)
	case len(data) > 0 && data[0] == '{':
		return g.parseObject(data)
	}
	return errors.New("is neither a string nor an object: " + groupForms)
}

// parse reads "group" and "source@group".
func (g *Group) parse(text string) error {
	read := Group{Deliver: true}
	group := text
	if several(text) {
		return errors.New("is not one GROUP or SOURCE@GROUP: write one in each string, or in each flag --group, and two of them for two sources")
	}
	if source, after, found := strings.Cut(text, "@"); found {
		addr, err := parseSource(source)
		if err != nil {
			return err
		}
		group, read.Mode, read.Sources = after, Include, []netip.Addr{addr}
	}
	var err error
	if read.Addr, err = netip.ParseAddr(group); err != nil {
		return errors.New("not an IPv6 address: write it like ff05::4321")
	}
	if len(read.Sources) > 0 && read.Sources[0].IsMulticast() && !read.Addr.IsMulticast() {
		return fmt.Errorf("has the group before the @: it is SOURCE@GROUP, so write %v@%v", read.Addr, read.Sources[0])
	}
	*g = read
	return nil
}

// several tells whether a text has more than one word, whatever is between them.
func several(text string) bool {
	return len(strings.FieldsFunc(text, func(r rune) bool { return unicode.IsSpace(r) || r == ',' || r == ';' })) > 1
}

func parseSource(text string) (netip.Addr, error) {
	addr, err := netip.ParseAddr(text)
	if err != nil {
		return netip.Addr{}, fmt.Errorf("source %q is not an IPv6 address: write it like fd00:1::10", Cut(text))
	}
	return addr, nil
}

// parseObject reads the long form.
func (g *Group) parseObject(data []byte) error {
	var keys map[string]json.RawMessage
	if err := json.Unmarshal(data, &keys); err != nil {
		return err
	}
	read := Group{Deliver: true}
	var group string
	var sources []string
	for _, key := range slices.Sorted(maps.Keys(keys)) {
		var err error
		switch key {
		case "group":
			err = parseMember(key, keys[key], &group, "must be an address such as ff05::4321")
		case "mode":
			err = parseMember(key, keys[key], &read.Mode, "must be include (the sources alone) or exclude (all but these)")
		case "sources":
			err = parseMember(key, keys[key], &sources, `must be a list of addresses such as ["fd00:1::10"]`)
		case "deliver":
			err = parseMember(key, keys[key], &read.Deliver, "must be true or false")
		default:
			err = fmt.Errorf("has the unknown key %q: known are group, mode, sources and deliver", Cut(key))
		}
		if err != nil {
			return err
		}
	}
	_, moded := keys["mode"]
	_, sourced := keys["sources"]
	switch {
	case keys["group"] == nil:
		return errors.New("has no key group: " + groupForms)
	case sourced && !moded:
		return errors.New("has sources and no mode: say what they are, with mode include (these alone) or exclude (all but these)")
	}
	var err error
	if read.Addr, err = netip.ParseAddr(group); err != nil {
		return errors.New("not an IPv6 address: write it like ff05::4321")
	}
	for _, text := range sources {
		addr, err := parseSource(text)
		if err != nil {
			return err
		}
		read.Sources = append(read.Sources, addr)
	}
	read.Sources = sortedAddrs(read.Sources)
	*g = read
	return nil
}

// parseMember decodes a member of an object and refuses null.
func parseMember(key string, raw json.RawMessage, v any, rule string) error {
	if string(raw) == "null" || json.Unmarshal(raw, v) != nil {
		return fmt.Errorf("%s %s", key, rule)
	}
	return nil
}

// sortedAddrs sorts in place and drops repetitions.
func sortedAddrs(addrs []netip.Addr) []netip.Addr {
	slices.SortFunc(addrs, netip.Addr.Compare)
	return slices.Compact(addrs)
}

// contradicts says why an entry for an address that the entry at place has as well can not be one with it. Sources to
// include add up.
func (g Group) contradicts(place string, first Group) error {
	wants := "from any source"
	switch {
	case g.Deliver != first.Deliver:
		wants = fmt.Sprintf("with deliver %v", first.Deliver)
	case g.Mode == first.Mode && (g.Mode == Include || slices.Equal(g.Sources, first.Sources)):
		return nil
	case first.Mode == Include:
		wants = "from named sources alone"
	case len(first.Sources) > 0:
		wants = "from all sources but the named"
	}
	return fmt.Errorf("contradicts %s, which wants %v %s: name the group once", place, first.Addr, wants)
}

// union returns what two lists in normal form ask for together, in normal form.
func union(a, b []Group) []Group {
	all := slices.Concat(a, b)
	slices.SortStableFunc(all, func(g, o Group) int { return g.Addr.Compare(o.Addr) })
	var groups []Group
	for _, g := range all {
		if last := len(groups) - 1; last >= 0 && groups[last].Addr == g.Addr {
			groups[last] = groups[last].merge(g)
		} else {
			groups = append(groups, g)
		}
	}
	return groups
}

// merge returns what two declarations of one address ask for together, as if each were a socket of its own.
func (g Group) merge(o Group) Group {
	m := Group{Addr: g.Addr, Deliver: g.Deliver || o.Deliver}
	switch { // V2-16, RFC 9777 section 4.2
	case g.Mode == Include && o.Mode == Include:
		m.Mode, m.Sources = Include, sortedAddrs(slices.Concat(g.Sources, o.Sources))
	case g.Mode == Include:
		m.Sources = without(o.Sources, g.Sources)
	case o.Mode == Include:
		m.Sources = without(g.Sources, o.Sources)
	default: // what both exclude
		m.Sources = without(g.Sources, without(g.Sources, o.Sources))
	}
	return m
}

// without returns the addresses of a that are not in b, both sorted.
func without(a, b []netip.Addr) []netip.Addr {
	return slices.DeleteFunc(slices.Clone(a), func(addr netip.Addr) bool {
		_, found := slices.BinarySearchFunc(b, addr, netip.Addr.Compare)
		return found
	})
}
