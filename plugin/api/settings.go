package api

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"strings"
	"time"

	"github.com/containernetworking/cni/pkg/types"
)

// Values of Settings.MLDVersion.
const (
	MLDVersionAuto = "auto" // MLDv2, and MLDv1 while a querier of that version is heard (RFC 9777 section 8.2.1)
	MLDVersion2    = "2"    // never MLDv1
	MLDVersion1    = "1"    // never MLDv2
)

// Values of Settings.Profile.
const (
	ProfileRFC  = "rfc"  // RFC 9777 and RFC 2710
	ProfileKAME = "kame" // the observable behaviour of KAME's listener; needs MLDv1
)

// Values of Settings.KernelReports.
const (
	KernelReportsAuto = "auto" // mute where the kernel can, else keep
	KernelReportsMute = "mute" // our listener speaks for everything; refused with CodeKernelReports where it cannot be had
	KernelReportsKeep = "keep" // the kernel goes on reporting what it has joined
)

// Values of Ready.Wait.
const (
	WaitAuto   = "auto"   // the MDB entry on a snooping bridge with an active querier, else the report; never an error
	WaitMDB    = "mdb"    // the bridge's entry, else CodeNotReady
	WaitReport = "report" // the report sent, else CodeNotReady
	WaitNone   = "none"   // nothing
)

// Bounds and defaults of Settings.
const (
	MaxRobustness                = 7 // QRV is a field of three bits (RFC 9777 section 5.1.8)
	DefaultRobustness            = 2 // RFC 9777 section 9.1
	MaxUnsolicitedReportInterval = time.Hour
	DefaultReadyTimeout          = time.Second
	MaxReadyTimeout              = time.Minute
)

// Defaults of the configuration's key limits.
const (
	DefaultMaxGroups  = 1000
	DefaultMaxSources = 64 // of one group; the kernel's own default for a socket, net.ipv6.mld_max_msf
)

// Duration is a time.Duration that is a string such as "1s" or "250ms" in JSON.
type Duration time.Duration

// String formats like time.Duration.
func (d Duration) String() string { return time.Duration(d).String() }

// MarshalJSON writes the duration as a string.
func (d Duration) MarshalJSON() ([]byte, error) { return json.Marshal(d.String()) }

// UnmarshalJSON accepts a string in the format of time.ParseDuration and nothing else.
func (d *Duration) UnmarshalJSON(data []byte) error {
	var s string
	if err := json.Unmarshal(data, &s); err != nil {
		return err
	}
	v, err := time.ParseDuration(s)
	if err != nil {
		return err
	}
	*d = Duration(v)
	return nil
}

// Settings are what the daemon does for one attachment, in normal form: every default is filled in, and the groups
// are sorted by address, each named once.
type Settings struct {
	// Groups are the declared groups; none is allowed: the listener then reports what applications join.
	Groups []Group `json:"groups"`
	// MLDVersion is one of the MLDVersion constants.
	MLDVersion string `json:"mldVersion"`
	// Profile is one of the Profile constants.
	Profile string `json:"profile"`
	// KernelReports is one of the KernelReports constants.
	KernelReports string `json:"kernelReports"`
	// Robustness is the Robustness Variable, 1 to MaxRobustness: how often a change is reported. In MLDv2 that of the
	// querier takes its place.
	Robustness int `json:"robustness"`
	// UnsolicitedReportInterval is the longest time between these reports, up to MaxUnsolicitedReportInterval. Zero is
	// the default of the version that is spoken: 1 s in MLDv2 (RFC 9777 section 9.11), 10 s in MLDv1 (RFC 2710 section
	// 7.10).
	UnsolicitedReportInterval Duration `json:"unsolicitedReportInterval,omitempty"`
	// AlwaysDone sends the Done even when another listener reported last (RFC 2710 section 4).
	AlwaysDone bool `json:"alwaysDone"`
	// Ready is what ADD waits for.
	Ready Ready `json:"ready"`
}

// Ready is what ADD waits for, and for how long.
type Ready struct {
	Wait    string   `json:"wait"`    // one of the Wait constants
	Timeout Duration `json:"timeout"` // more than 0 and up to MaxReadyTimeout
}

// DefaultSettings returns the settings of a configuration that names no key.
func DefaultSettings() *Settings {
	return &Settings{
		MLDVersion:    MLDVersionAuto,
		Profile:       ProfileRFC,
		KernelReports: KernelReportsAuto,
		Robustness:    DefaultRobustness,
		Ready:         Ready{Wait: WaitAuto, Timeout: Duration(DefaultReadyTimeout)},
	}
}

// ParseSettings makes settings of the keys of a network configuration that mldd acts on: groups, mldVersion,
// profile, kernelReports, robustness, unsolicitedReportInterval, alwaysDone, ready, limits and allowedGroups. Any other
// key is refused; the caller takes out those that belong to CNI or to itself. Groups are the configuration's and, as far
// as allowedGroups lets them, those that the container has asked for, together: a group that is named in several places
// is wanted from every source that one of them wants, and with delivery if one of them wants it.
//
// The result is in normal form, valid and within the limits. An error has CNI's code 7 (types.ErrInvalidNetworkConfig)
// and names key or place, value and remedy.
func ParseSettings(keys map[string]json.RawMessage, asked ...Asked) (*Settings, *types.Error) {
	s, most := DefaultSettings(), limits{DefaultMaxGroups, DefaultMaxSources}
	var allowed allowList
	for _, key := range slices.Sorted(maps.Keys(keys)) {
		raw := keys[key]
		var err *types.Error
		switch key {
		case "groups":
			s.Groups, err = parseGroups(raw)
		case "mldVersion":
			err = parseVersion(raw, &s.MLDVersion)
		case "profile":
			err = parseValue(key, raw, &s.Profile, `must be "rfc" or "kame"`)
		case "kernelReports":
			err = parseValue(key, raw, &s.KernelReports, `must be "auto", "mute" or "keep"`)
		case "robustness":
			err = parseValue(key, raw, &s.Robustness, "must be a number from 1 to 7")
		case "unsolicitedReportInterval":
			err = parseInterval(raw, &s.UnsolicitedReportInterval)
		case "alwaysDone":
			err = parseValue(key, raw, &s.AlwaysDone, "must be true or false")
		case "ready":
			err = parseReady(raw, &s.Ready)
		case "limits":
			err = most.parse(raw)
		case "allowedGroups":
			allowed, err = parseAllowed(raw)
		default:
			err = InvalidConfig(key, raw, "unknown key: known are "+strings.Join(settingsKeys, ", "))
		}
		if err != nil {
			return nil, err
		}
	}
	for _, a := range asked {
		groups, err := a.parse(allowed)
		if err != nil {
			return nil, err
		}
		s.Groups = union(s.Groups, groups)
	}
	if err := s.Validate(); err != nil {
		return nil, err
	}
	if err := most.check(s.Groups); err != nil {
		return nil, err
	}
	return s, nil
}

var settingsKeys = []string{
	"groups", "mldVersion", "profile", "kernelReports", "robustness", "unsolicitedReportInterval", "alwaysDone",
	"ready", "limits", "allowedGroups", "annotation", "capabilities", "runDir", "autostart",
}

const (
	intervalRule = `must be a duration such as "10s", more than 0 and at most 1h`
	timeoutRule  = `must be a duration such as "1s", more than 0 and at most 1m`
)

// parseGroups returns the network's own groups in normal form.
func parseGroups(raw json.RawMessage) ([]Group, *types.Error) {
	var elements []json.RawMessage
	if err := parseValue("groups", raw, &elements, `must be a list such as ["ff05::4321"]`); err != nil {
		return nil, err
	}
	return parseList("groups", elements, nil)
}

// parseList returns the groups of one list in normal form. Several entries for one address become one, and must not
// contradict each other.
func parseList(place string, elements []json.RawMessage, allowed allowList) ([]Group, *types.Error) {
	var groups []Group
	type index struct{ element, group int } // of the first entry for an address
	indices := make(map[netip.Addr]index, len(elements))
	for i, e := range elements {
		var g Group
		err := g.UnmarshalJSON(e)
		if err == nil {
			err = g.Validate()
		}
		if err == nil {
			err = allowed.check(g)
		}
		first, known := indices[g.Addr]
		if err == nil && known {
			err = g.contradicts(fmt.Sprintf("%s[%d]", place, first.element), groups[first.group])
		}
		switch {
		case err != nil:
			return nil, InvalidConfig(fmt.Sprintf("%s[%d]", place, i), e, err.Error())
		case !known:
			indices[g.Addr] = index{i, len(groups)}
			groups = append(groups, g)
		case g.Mode == Include:
			groups[first.group].Sources = append(groups[first.group].Sources, g.Sources...) // sorted below
		}
	}
	for i := range groups {
		groups[i].Sources = sortedAddrs(groups[i].Sources)
	}
	slices.SortFunc(groups, func(a, b Group) int { return a.Addr.Compare(b.Addr) })
	return groups, nil
}

const versionRule = `must be "auto", 2 or 1`

// parseVersion accepts numbers and strings.
func parseVersion(raw json.RawMessage, v *string) *types.Error {
	if s := string(raw); s == MLDVersion1 || s == MLDVersion2 {
		*v = s
		return nil
	}
	return parseValue("mldVersion", raw, v, versionRule)
}

// parseInterval refuses 0, which in Settings is the default.
func parseInterval(raw json.RawMessage, d *Duration) *types.Error {
	err := parseValue("unsolicitedReportInterval", raw, d, intervalRule)
	if err == nil && *d == 0 {
		err = InvalidConfig("unsolicitedReportInterval", raw, intervalRule)
	}
	return err
}

// limits bound what a configuration declares. They are its author's own, and so no part of Settings; mldd has ceilings
// besides.
type limits struct{ groups, sources int }

func (l *limits) parse(raw json.RawMessage) *types.Error {
	var keys map[string]json.RawMessage
	err := parseValue("limits", raw, &keys, `must be an object such as {"groups": 1000, "sources": 64}`)
	if err != nil {
		return err
	}
	for _, key := range slices.Sorted(maps.Keys(keys)) {
		const rule = "must be a number, 0 or more"
		to := &l.groups
		switch key {
		case "groups":
		case "sources":
			to = &l.sources
		default:
			return InvalidConfig("limits."+key, keys[key], "unknown key: known are groups and sources")
		}
		err := parseValue("limits."+key, keys[key], to, rule)
		if err == nil && *to < 0 {
			err = InvalidConfig("limits."+key, *to, rule)
		}
		if err != nil {
			return err
		}
	}
	return nil
}

func (l *limits) check(groups []Group) *types.Error {
	if n := len(groups); n > l.groups {
		return InvalidConfig("limits.groups", l.groups, fmt.Sprintf("is less than the %d declared: declare fewer, or raise the limit", n))
	}
	for _, g := range groups {
		if n := len(g.Sources); n > l.sources { // V2-72
			return InvalidConfig("limits.sources", l.sources,
				fmt.Sprintf("group %v has %d sources: declare fewer, or raise the limit", g.Addr, n))
		}
	}
	return nil
}

func parseReady(raw json.RawMessage, r *Ready) *types.Error {
	var keys map[string]json.RawMessage
	err := parseValue("ready", raw, &keys, `must be an object such as {"wait": "auto", "timeout": "1s"}`)
	if err != nil {
		return err
	}
	for _, key := range slices.Sorted(maps.Keys(keys)) {
		switch key {
		case "wait":
			err = parseValue("ready.wait", keys[key], &r.Wait, `must be "auto", "mdb", "report" or "none"`)
		case "timeout":
			err = parseValue("ready.timeout", keys[key], &r.Timeout, timeoutRule)
		default:
			err = InvalidConfig("ready."+key, keys[key], "unknown key: known are wait and timeout")
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// parseValue decodes raw into v and refuses null, which encoding/json would take as "leave v alone".
func parseValue(key string, raw json.RawMessage, v any, rule string) *types.Error {
	if string(bytes.TrimSpace(raw)) == "null" || json.Unmarshal(raw, v) != nil {
		return InvalidConfig(key, raw, rule)
	}
	return nil
}

// Validate returns nil if every setting is allowed and none contradicts another, and the groups are in normal form. An
// error has CNI's code 7 (types.ErrInvalidNetworkConfig) and names key, value and remedy. It holds for settings from any
// source, not only from ParseSettings.
func (s *Settings) Validate() *types.Error {
	for i, g := range s.Groups {
		err := g.Validate()
		if err == nil && i > 0 && !s.Groups[i-1].Addr.Less(g.Addr) {
			err = errors.New("is named twice or not in order: sort the groups by address, and name each once")
		}
		if err != nil {
			return InvalidConfig(fmt.Sprintf("groups[%d]", i), g, err.Error())
		}
	}
	switch {
	case !slices.Contains([]string{MLDVersionAuto, MLDVersion2, MLDVersion1}, s.MLDVersion):
		return InvalidConfig("mldVersion", s.MLDVersion, versionRule)
	case s.Profile != ProfileRFC && s.Profile != ProfileKAME:
		return InvalidConfig("profile", s.Profile, `must be "rfc" or "kame"`)
	case s.Profile == ProfileKAME && s.MLDVersion != MLDVersion1:
		return InvalidConfig("mldVersion", s.MLDVersion, `contradicts profile "kame", which speaks MLDv1 alone: must be 1`)
	case s.Profile == ProfileKAME && s.AlwaysDone:
		return InvalidConfig("alwaysDone", true, `contradicts profile "kame", which sends a Done only as the last reporter:`+
			` use profile "rfc" or leave alwaysDone out`)
	case s.Profile == ProfileKAME && s.Robustness != DefaultRobustness:
		return InvalidConfig("robustness", s.Robustness, `contradicts profile "kame", which repeats a Report once:`+
			` use profile "rfc" or leave robustness out`)
	case !slices.Contains([]string{KernelReportsAuto, KernelReportsMute, KernelReportsKeep}, s.KernelReports):
		return InvalidConfig("kernelReports", s.KernelReports, `must be "auto", "mute" or "keep"`)
	case s.Robustness < 1 || s.Robustness > MaxRobustness:
		return InvalidConfig("robustness", s.Robustness, "must be from 1 to 7")
	case s.UnsolicitedReportInterval < 0 || time.Duration(s.UnsolicitedReportInterval) > MaxUnsolicitedReportInterval:
		return InvalidConfig("unsolicitedReportInterval", s.UnsolicitedReportInterval, intervalRule)
	case !slices.Contains([]string{WaitAuto, WaitMDB, WaitReport, WaitNone}, s.Ready.Wait):
		return InvalidConfig("ready.wait", s.Ready.Wait, `must be "auto", "mdb", "report" or "none"`)
	case s.Ready.Timeout <= 0 || time.Duration(s.Ready.Timeout) > MaxReadyTimeout:
		return InvalidConfig("ready.timeout", s.Ready.Timeout, timeoutRule)
	}
	return nil
}

// Equal reports whether both ask for the same.
func (s Settings) Equal(o Settings) bool {
	return s.MLDVersion == o.MLDVersion && s.Profile == o.Profile && s.KernelReports == o.KernelReports &&
		s.Robustness == o.Robustness && s.UnsolicitedReportInterval == o.UnsolicitedReportInterval &&
		s.AlwaysDone == o.AlwaysDone && s.Ready == o.Ready && slices.EqualFunc(s.Groups, o.Groups, Group.Equal)
}

// Covers reports whether s does what o asks for: everything as o has it, and at least its groups. The settings of an
// attachment cover those of its network's configuration, to which the container may have added groups.
func (s Settings) Covers(o Settings) bool {
	o.Groups = union(s.Groups, o.Groups)
	return s.Equal(o)
}
