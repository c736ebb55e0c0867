package api

import (
	"encoding/json"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"

	"github.com/containernetworking/cni/pkg/types"
)

// Bounds of what a container asks for.
const (
	MaxAsked         = 256 << 10 // bytes of Asked.Groups: what Kubernetes allows all annotations of a pod together
	MaxAllowedGroups = 1000      // prefixes of the key allowedGroups
)

// Asked is what a container itself asks for in one of the places where it can.
type Asked struct {
	// Place is the place as an error names it, such as "runtimeConfig.mldGroups".
	Place string
	// Groups is a list as in the configuration's key groups, or a string with such a list, or with "group" and
	// "source@group" between commas. null and an empty string ask for nothing. It has MaxAsked bytes at most.
	Groups json.RawMessage
}

const askedRule = `must be a list such as ["ff05::4321", "fd00:1::10@ff3e::8000:1"], or text such as` +
	` "ff05::4321, fd00:1::10@ff3e::8000:1"`

// parse returns the groups in normal form, all of them allowed.
func (a Asked) parse(allowed allowList) ([]Group, *types.Error) {
	if n := len(a.Groups); n > MaxAsked {
		return nil, InvalidConfig(a.Place, a.Groups, fmt.Sprintf("is %d bytes long: at most %d are read: ask for fewer groups", n, MaxAsked))
	}
	if string(a.Groups) == "null" {
		return nil, nil
	}
	elements, err := a.elements()
	if err != nil {
		return nil, InvalidConfig(a.Place, a.Groups, askedRule)
	}
	return parseList(a.Place, elements, allowed)
}

// elements returns the members of the list, whatever its form.
func (a Asked) elements() (elements []json.RawMessage, err error) {
	list := a.Groups
	if len(list) > 0 && list[0] == '"' {
		var text string
		if err := json.Unmarshal(list, &text); err != nil {
			return nil, err
		}
		text = strings.TrimSpace(text)
		switch {
		case text == "":
			return nil, nil
		case text[0] != '[' && strings.ContainsAny(text, `"{`):
			return nil, errors.New("JSON, and not a list")
		case text[0] != '[':
			for element := range strings.SplitSeq(text, ",") {
				if several(element) {
					return nil, errors.New("something else than commas between groups")
				}
				raw, err := json.Marshal(strings.TrimSpace(element))
				if err != nil {
					return nil, err
				}
				elements = append(elements, raw)
			}
			return elements, nil
		}
		list = json.RawMessage(text)
	}
	err = json.Unmarshal(list, &elements)
	return elements, err
}

// allowList is what a container may ask for: nil is anything, empty is nothing.
type allowList []netip.Prefix

const allowedRule = `must be a list of IPv6 multicast prefixes such as ["ff05::/16", "ff02::4321/128"]`

func parseAllowed(raw json.RawMessage) (allowList, *types.Error) {
	var texts []string
	if err := parseValue("allowedGroups", raw, &texts, allowedRule); err != nil {
		return nil, err
	}
	if n := len(texts); n > MaxAllowedGroups {
		return nil, InvalidConfig("allowedGroups", raw, fmt.Sprintf("has %d prefixes: at most %d are allowed", n, MaxAllowedGroups))
	}
	allowed := make(allowList, 0, len(texts))
	for i, text := range texts {
		prefix, err := netip.ParsePrefix(text)
		if err == nil {
			err = validatePrefix(prefix)
		} else {
			err = errors.New(`not an IPv6 prefix: write it like "ff05::/16", or "ff05::4321/128" for one group`)
		}
		if err != nil {
			return nil, InvalidConfig(fmt.Sprintf("allowedGroups[%d]", i), text, err.Error())
		}
		allowed = append(allowed, prefix)
	}
	return allowed, nil
}

func validatePrefix(p netip.Prefix) error {
	switch {
	case !p.Addr().IsMulticast() || !p.Addr().Is6() || p.Addr().Is4In6() || p.Bits() < 8:
		return errors.New("not an IPv6 multicast prefix: allowed is ff00::/8 and what is within, such as ff05::/16")
	case p != p.Masked():
		return fmt.Errorf("goes on behind its %d bits: write %v, or %v/128 for one group", p.Bits(), p.Masked(), p.Addr())
	}
	return nil
}

// check says why a container may not ask for a group. It returns nil if it may.
func (l allowList) check(g Group) error {
	switch {
	case l == nil || slices.ContainsFunc(l, func(p netip.Prefix) bool { return p.Contains(g.Addr) }):
		return nil
	case len(l) == 0:
		return errors.New("allowedGroups is empty, so containers of this network may ask for no group:" +
			" remove it here, or name it in the network's allowedGroups or groups")
	}
	return fmt.Errorf("is not in allowedGroups, which for this network is %s: ask for a group that is,"+
		" or name it in the network's allowedGroups or groups", Cut(fmt.Sprint([]netip.Prefix(l))))
}
