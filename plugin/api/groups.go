package api

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"net/netip"
	"strings"

	"github.com/seed-aaab8e3a/cni-mld/mld"
)

// Group is one declared multicast address.
//
// Its JSON is the configuration's: the address as a string, which means delivery, or an object with the keys
// "group" and "deliver".
type Group struct {
	// Addr is an IPv6 multicast address of scope 2 or more, without a zone; see Validate.
	Addr netip.Addr
	// Deliver says that a socket in the container joins the group, so that an application receives it that only
	// binds the port. Without it the group is reported and the kernel is left alone.
	Deliver bool
}

// errSources is the answer to every way of naming a source.
var errSources = errors.New("sources need MLDv2, which is not built yet: name the group alone")

// Validate says why MLD can not report the group, with what is allowed instead. It returns nil if it can.
func (g Group) Validate() error {
	a := g.Addr
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
	case b[1]>>4 == 3 && b[2] == 0 && b[3] == 0: // ff3x::/32, RFC 4607 section 1
		return errors.New("is source-specific (ff3x::/32) and needs a source, which needs MLDv2, not built yet:" +
			" use an any-source group such as ff05::4321")
	}
	return nil
}

// String returns the address, with a note if the group is not delivered.
func (g Group) String() string {
	if g.Deliver {
		return g.Addr.String()
	}
	return g.Addr.String() + " (deliver: false)"
}

// groupObject is the long form of a Group in JSON.
type groupObject struct {
	Group   *string         `json:"group"`
	Deliver *bool           `json:"deliver,omitempty"`
	Mode    json.RawMessage `json:"mode,omitempty"`
	Sources json.RawMessage `json:"sources,omitempty"`
}

// MarshalJSON writes the short form where it says everything.
func (g Group) MarshalJSON() ([]byte, error) {
	addr := g.Addr.String()
	if g.Deliver {
		return json.Marshal(addr)
	}
	return json.Marshal(groupObject{Group: &addr, Deliver: new(bool)})
}

// UnmarshalJSON reads both forms and refuses unknown keys. It checks the form of the address; Validate checks the
// rest.
func (g *Group) UnmarshalJSON(data []byte) error {
	var o groupObject
	switch data = bytes.TrimSpace(data); {
	case len(data) > 0 && data[0] == '"':
		o.Group = new(string)
		if err := json.Unmarshal(data, o.Group); err != nil {
			return err
		}
	case len(data) > 0 && data[0] == '{':
		d := json.NewDecoder(bytes.NewReader(data))
		d.DisallowUnknownFields()
		if err := d.Decode(&o); err != nil {
			return fmt.Errorf("%w: a group object has the keys group and deliver", err)
		}
		if o.Mode != nil || o.Sources != nil {
			return errSources
		}
		if o.Group == nil {
			return errors.New("has no key group: write {\"group\": \"ff05::4321\", \"deliver\": true}")
		}
	default:
		return errors.New("is neither a string nor an object: write \"ff05::4321\"" +
			" or {\"group\": \"ff05::4321\", \"deliver\": true}")
	}
	if strings.Contains(*o.Group, "@") {
		return errSources
	}
	addr, err := netip.ParseAddr(*o.Group)
	if err != nil {
		return errors.New("not an IPv6 address: write it like ff05::4321")
	}
	*g = Group{Addr: addr, Deliver: o.Deliver == nil || *o.Deliver}
	return nil
}
