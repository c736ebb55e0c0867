package api

import (
	"encoding/json"
	"fmt"
	"os"
	"slices"
	"strings"
	"unicode"

	"github.com/containernetworking/cni/pkg/types"
)

// Version is the version of the protocol, the "v" in each line.
const Version = 1

// Values of Request.Op.
const (
	OpAdd    = "add"    // attach, or replace the settings in place, else all is as before; with Settings and both descriptors
	OpDel    = "del"    // detach; an unknown attachment is no error, and Answer.Unknown tells
	OpCheck  = "check"  // prove that the attachment works; with Settings and both descriptors
	OpStatus = "status" // answer with Status; without an attachment
	OpGC     = "gc"     // detach what is attached to Network and not in Valid
	OpList   = "list"   // answer, and then a line for each attachment
	OpGroups = "groups" // answer, and then a line for each multicast address of each interface
	OpWatch  = "watch"  // answer, and then a line for each event, until the client closes the connection
)

// ops are those that there are, in the order of an error message.
var ops = []string{OpAdd, OpDel, OpCheck, OpStatus, OpGC, OpList, OpGroups, OpWatch}

// Bounds of an Attachment, in bytes.
const (
	MaxIfName     = 15  // the kernel's IFNAMSIZ without the final zero
	MaxAttachment = 240 // of the three parts together: they make one file name, in StatePath as in libcni's cache
)

// Attachment is CNI's name for one interface of one container on one network.
type Attachment struct {
	Network     string `json:"network,omitempty"`
	ContainerID string `json:"containerID,omitempty"`
	IfName      string `json:"ifname,omitempty"`
}

// String returns "network/containerID/ifname".
func (a Attachment) String() string { return a.Network + "/" + a.ContainerID + "/" + a.IfName }

// Validate returns an error, always a *types.Error, if a part is empty, too long or has characters that CNI does
// not allow: the network and the container ID begin with a letter or a digit and go on with these, '_', '.' and
// '-'; the interface name is not "." or ".." and has no '/', ':', white space or control character. So each part
// may become part of a file name.
func (a Attachment) Validate() error {
	bad := func(code uint, what, value, rule string) error {
		return types.NewError(code, fmt.Sprintf("%s %q: %s", what, Cut(value), rule), "")
	}
	const rule = "must be letters, digits, '_', '.' and '-', and begin with a letter or a digit"
	if !isName(a.Network) {
		return bad(types.ErrInvalidNetworkConfig, "network name", a.Network, rule)
	}
	if !isName(a.ContainerID) {
		return bad(types.ErrInvalidEnvironmentVariables, "container ID", a.ContainerID, rule)
	}
	n := a.IfName
	if n == "" || len(n) > MaxIfName || n == "." || n == ".." || strings.ContainsFunc(n, notInterface) {
		return bad(types.ErrInvalidEnvironmentVariables, "interface name", n,
			"must be 1 to 15 bytes without '/', ':', white space and control characters")
	}
	if len(a.Network)+len(a.ContainerID)+len(n) > MaxAttachment {
		return bad(types.ErrInvalidEnvironmentVariables, "attachment", a.String(),
			fmt.Sprintf("network, container ID and interface name may have %d bytes together", MaxAttachment))
	}
	return nil
}

func isName(s string) bool {
	for i, r := range s {
		alnum := 'a' <= r && r <= 'z' || 'A' <= r && r <= 'Z' || '0' <= r && r <= '9'
		if !alnum && (i == 0 || r != '_' && r != '.' && r != '-') {
			return false
		}
	}
	return s != ""
}

func notInterface(r rune) bool {
	return r == '/' || r == ':' || r == unicode.ReplacementChar || unicode.IsSpace(r) || unicode.IsControl(r)
}

// Request is what a client asks of the daemon.
type Request struct {
	V  int    `json:"v"` // Version; Client.Call fills it in
	Op string `json:"op"`
	// Attachment is what OpAdd, OpDel and OpCheck are about; OpGC has its Network alone. OpList, OpGroups and OpWatch
	// tell of those attachments that have the parts that are not empty; of a ContainerID the beginning is enough.
	Attachment
	// Settings go with OpAdd and OpCheck.
	Settings *Settings `json:"settings,omitempty"`
	// NetnsPath is where the runtime says the container's namespace is: a label, up to MaxNetnsPath bytes.
	NetnsPath string `json:"netns,omitempty"`
	// Host lets OpAdd attach an interface of the client's own namespace, where Netns is HostNetns.
	Host bool `json:"host,omitempty"`
	// Valid goes with OpGC: what the runtime still knows of Network. The attachments in it name no network.
	Valid []Attachment `json:"valid,omitempty"`
	// Netns and HostNetns are the container's and the client's own network namespace, open. OpList, OpGroups and OpWatch
	// look for bridges in HostNetns, or, without, in the daemon's own. Whoever reads a
	// request owns them and closes them; a client keeps its own. That they are network namespaces is for the
	// reader to verify.
	Netns     *os.File `json:"-"`
	HostNetns *os.File `json:"-"`
}

// MaxNetnsPath bounds Request.NetnsPath, in bytes (the kernel's PATH_MAX).
const MaxNetnsPath = 4096

// Close closes the descriptors of a request that was read.
func (r *Request) Close() {
	for _, f := range []*os.File{r.Netns, r.HostNetns} {
		if f != nil {
			f.Close()
		}
	}
	r.Netns, r.HostNetns = nil, nil
}

// Validate returns an error, always a *types.Error, if the request is not complete and consistent.
func (r *Request) Validate() error {
	bad := func(format string, args ...any) error {
		return types.NewError(types.ErrDecodingFailure, fmt.Sprintf("request: "+format, args...), "")
	}
	if len(r.NetnsPath) > MaxNetnsPath {
		return bad("netns is %d bytes long: at most %d are allowed", len(r.NetnsPath), MaxNetnsPath)
	}
	switch r.Op {
	case OpStatus, OpList, OpGroups, OpWatch:
		return nil
	case OpDel:
		return r.Attachment.Validate()
	case OpGC:
		return r.validateGC()
	case OpAdd, OpCheck:
		if err := r.Attachment.Validate(); err != nil {
			return err
		}
		if r.Netns == nil || r.HostNetns == nil {
			return bad("%s needs the descriptors %v", r.Op, descriptorNames)
		}
		if r.Settings == nil {
			return bad("%s needs settings", r.Op)
		}
		if err := r.Settings.Validate(); err != nil {
			return err
		}
		return nil
	default:
		return bad("unknown op %q: known are %s", Cut(r.Op), strings.Join(ops, ", "))
	}
}

// validateGC is Validate for OpGC.
func (r *Request) validateGC() error {
	if !isName(r.Network) {
		return Attachment{Network: r.Network}.Validate()
	}
	for _, a := range r.Valid {
		if a.Network != "" {
			return types.NewError(types.ErrDecodingFailure, fmt.Sprintf("request: valid attachment %v: must not name a network", a), "")
		}
		a.Network = r.Network
		if err := a.Validate(); err != nil {
			return err
		}
	}
	return nil
}

// wireRequest is a Request as it travels.
type wireRequest struct {
	*Request
	// Descriptors names the descriptors of the message in their order.
	Descriptors []string `json:"descriptors,omitempty"`
}

// descriptorNames are the names that wireRequest.Descriptors knows.
var descriptorNames = []string{"netns", "hostNetns"}

// attach gives the files to the fields that the names say. It takes all of them or none.
func (w *wireRequest) attach(files []*os.File) error {
	if len(files) != len(w.Descriptors) {
		return fmt.Errorf("request: names %d descriptors and brings %d", len(w.Descriptors), len(files))
	}
	for i, name := range w.Descriptors {
		if !slices.Contains(descriptorNames, name) || slices.Contains(w.Descriptors[:i], name) {
			return fmt.Errorf("request: descriptor %q is unknown or named twice: known are %v", Cut(name), descriptorNames)
		}
	}
	for i, name := range w.Descriptors {
		if name == descriptorNames[0] {
			w.Netns = files[i]
		} else {
			w.HostNetns = files[i]
		}
	}
	return nil
}

// Answer is what the daemon says to a request.
type Answer struct {
	V int `json:"v"` // Version; WriteAnswer fills it in
	// Error is why the request failed, nil if it did not.
	Error *types.Error `json:"error,omitempty"`
	// Degraded is why an attachment was added and is not known to be ready.
	Degraded string `json:"degraded,omitempty"`
	// Unknown says that there was nothing to detach.
	Unknown bool `json:"unknown,omitempty"`
	// Status answers OpStatus.
	Status *Status `json:"status,omitempty"`
}

// Status describes a running daemon.
type Status struct {
	Version     string `json:"version"`          // of the program
	Binary      string `json:"binary"`           // path of the program
	PID         int    `json:"pid"`              // of the worker, which does everything
	KeeperPID   int    `json:"keeper,omitempty"` // of its parent, which holds what is joined
	Cgroup      string `json:"cgroup"`           // /proc/self/cgroup, the line of version 2
	Netns       string `json:"netns"`            // the daemon's own namespace, such as "net:[4026531840]"
	SelfStarted bool   `json:"selfStarted"`
	Attachments int    `json:"attachments"`
}

// checkVersion returns an error that names both versions unless the line has ours.
func checkVersion(line []byte, what, from string) error {
	var v struct {
		V *int `json:"v"`
	}
	if err := json.Unmarshal(line, &v); err != nil {
		return fmt.Errorf("%s: %w", what, err)
	}
	if v.V == nil {
		return fmt.Errorf("%s: has no version \"v\": this side speaks version %d", what, Version)
	}
	if *v.V != Version {
		return fmt.Errorf("%s: the %s speaks protocol version %d and this side version %d:"+
			" install mld, mldctl and mldd of one release and restart mldd", what, from, *v.V, Version)
	}
	return nil
}
