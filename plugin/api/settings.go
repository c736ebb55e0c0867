package api

import (
	"bytes"
	"encoding/json"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/containernetworking/cni/pkg/types"
)

// Values of Settings.Profile.
const (
	ProfileRFC  = "rfc"  // RFC 2710
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
	MaxRobustness                = 7                // QRV is a field of three bits (RFC 9777 section 5.1.8)
	DefaultRobustness            = 2                // RFC 2710 section 7.1
	DefaultUnsolicitedInterval   = 10 * time.Second // of MLDv1, RFC 2710 section 7.10
	MaxUnsolicitedReportInterval = time.Hour
	DefaultReadyTimeout          = time.Second
	MaxReadyTimeout              = time.Minute
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
// are sorted by address without repetition.
type Settings struct {
	// Groups are the declared groups; none is allowed: the listener then reports what applications join.
	Groups []Group `json:"groups"`
	// MLDVersion is 1.
	MLDVersion int `json:"mldVersion"`
	// Profile is one of the Profile constants.
	Profile string `json:"profile"`
	// KernelReports is one of the KernelReports constants.
	KernelReports string `json:"kernelReports"`
	// Robustness is the Robustness Variable, 1 to MaxRobustness: how often an unsolicited Report is sent.
	Robustness int `json:"robustness"`
	// UnsolicitedReportInterval is the time between these, more than 0 and up to MaxUnsolicitedReportInterval.
	UnsolicitedReportInterval Duration `json:"unsolicitedReportInterval"`
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
		MLDVersion:                1,
		Profile:                   ProfileRFC,
		KernelReports:             KernelReportsAuto,
		Robustness:                DefaultRobustness,
		UnsolicitedReportInterval: Duration(DefaultUnsolicitedInterval),
		Ready:                     Ready{Wait: WaitAuto, Timeout: Duration(DefaultReadyTimeout)},
	}
}

// ParseSettings makes settings of the keys of a network configuration that mldd acts on: groups, mldVersion,
// profile, kernelReports, robustness, unsolicitedReportInterval, alwaysDone and ready. Any other key is refused;
// the caller takes out those that belong to CNI or to itself. The result is in normal form and valid. An error has
// CNI's code 7 (types.ErrInvalidNetworkConfig) and names key, value and remedy.
func ParseSettings(keys map[string]json.RawMessage) (*Settings, *types.Error) {
	s := DefaultSettings()
	for _, key := range slices.Sorted(maps.Keys(keys)) {
		raw := keys[key]
		var err *types.Error
		switch key {
		case "groups":
			s.Groups, err = parseGroups(raw)
		case "mldVersion":
			err = parseVersion(raw)
		case "profile":
			err = parseValue(key, raw, &s.Profile, `must be "rfc" or "kame"`)
		case "kernelReports":
			err = parseValue(key, raw, &s.KernelReports, `must be "auto", "mute" or "keep"`)
		case "robustness":
			err = parseValue(key, raw, &s.Robustness, "must be a number from 1 to 7")
		case "unsolicitedReportInterval":
			err = parseValue(key, raw, &s.UnsolicitedReportInterval, intervalRule)
		case "alwaysDone":
			err = parseValue(key, raw, &s.AlwaysDone, "must be true or false")
		case "ready":
			err = parseReady(raw, &s.Ready)
		case "limits", "allowedGroups", "annotation":
			err = InvalidConfig(key, raw, "not built yet: remove the key")
		default:
			err = InvalidConfig(key, raw, "unknown key: known are "+strings.Join(settingsKeys, ", "))
		}
		if err != nil {
			return nil, err
		}
	}
	if err := s.Validate(); err != nil {
		return nil, err
	}
	return s, nil
}

var settingsKeys = []string{
	"groups", "mldVersion", "profile", "kernelReports", "robustness", "unsolicitedReportInterval", "alwaysDone",
	"ready",
}

const (
	intervalRule = `must be a duration such as "10s", more than 0 and at most 1h`
	timeoutRule  = `must be a duration such as "1s", more than 0 and at most 1m`
)

// parseGroups returns the groups in normal form. Repetitions that agree are one group; those that do not stay, for
// Validate to refuse them.
func parseGroups(raw json.RawMessage) ([]Group, *types.Error) {
	var elements []json.RawMessage
	if err := parseValue("groups", raw, &elements, `must be a list such as ["ff05::4321"]`); err != nil {
		return nil, err
	}
	groups := make([]Group, len(elements))
	for i, e := range elements {
		err := groups[i].UnmarshalJSON(e)
		if err == nil {
			err = groups[i].Validate()
		}
		if err != nil {
			return nil, InvalidConfig(fmt.Sprintf("groups[%d]", i), e, err.Error())
		}
	}
	slices.SortStableFunc(groups, func(a, b Group) int { return a.Addr.Compare(b.Addr) })
	return slices.Compact(groups), nil
}

// parseVersion accepts 1, the only version that is built, as a number or a string.
func parseVersion(raw json.RawMessage) *types.Error {
	switch v := string(bytes.Trim(raw, ` "`)); v {
	case "1":
		return nil
	case "2", "auto":
		return InvalidConfig("mldVersion", raw, "MLDv2 is not built yet: use 1 or leave the key out")
	default:
		return InvalidConfig("mldVersion", raw, "must be 1")
	}
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

// Validate returns nil if every setting is allowed and none contradicts another. An error has CNI's code 7
// (types.ErrInvalidNetworkConfig) and names key, value and remedy. It holds for settings from any source, not only
// from ParseSettings; the order of the groups does not matter.
func (s *Settings) Validate() *types.Error {
	deliver := make(map[Group]bool, len(s.Groups))
	for i, g := range s.Groups {
		key := fmt.Sprintf("groups[%d]", i)
		if err := g.Validate(); err != nil {
			return InvalidConfig(key, g, err.Error())
		}
		if deliver[Group{g.Addr, !g.Deliver}] {
			return InvalidConfig("groups", g.Addr, "is named with deliver true and false: name it once")
		}
		deliver[g] = true
	}
	switch {
	case s.MLDVersion != 1:
		return InvalidConfig("mldVersion", s.MLDVersion, "must be 1: MLDv2 is not built yet")
	case s.Profile != ProfileRFC && s.Profile != ProfileKAME:
		return InvalidConfig("profile", s.Profile, `must be "rfc" or "kame"`)
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
	case s.UnsolicitedReportInterval <= 0 || time.Duration(s.UnsolicitedReportInterval) > MaxUnsolicitedReportInterval:
		return InvalidConfig("unsolicitedReportInterval", s.UnsolicitedReportInterval, intervalRule)
	case !slices.Contains([]string{WaitAuto, WaitMDB, WaitReport, WaitNone}, s.Ready.Wait):
		return InvalidConfig("ready.wait", s.Ready.Wait, `must be "auto", "mdb", "report" or "none"`)
	case s.Ready.Timeout <= 0 || time.Duration(s.Ready.Timeout) > MaxReadyTimeout:
		return InvalidConfig("ready.timeout", s.Ready.Timeout, timeoutRule)
	}
	return nil
}

// Equal reports whether both ask for the same; the groups are compared as sets.
func (s Settings) Equal(o Settings) bool {
	return s.MLDVersion == o.MLDVersion && s.Profile == o.Profile && s.KernelReports == o.KernelReports &&
		s.Robustness == o.Robustness && s.UnsolicitedReportInterval == o.UnsolicitedReportInterval &&
		s.AlwaysDone == o.AlwaysDone && s.Ready == o.Ready &&
		maps.Equal(groupSet(s.Groups), groupSet(o.Groups))
}

func groupSet(groups []Group) map[Group]bool {
	set := make(map[Group]bool, len(groups))
	for _, g := range groups {
		set[g] = true
	}
	return set
}
