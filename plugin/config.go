package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"path/filepath"
	"slices"
	"strings"

	"github.com/containernetworking/cni/pkg/skel"
	"github.com/containernetworking/cni/pkg/types"
	"github.com/containernetworking/cni/pkg/types/create"

	"github.com/seed-aaab8e3a/cni-mld/plugin/api"
)

// config is one call's network configuration.
type config struct {
	cniVersion string
	attachment api.Attachment
	settings   *api.Settings
	runDir     string
	autostart  bool
	prevResult json.RawMessage // nil if there is none
	unheard    bool            // CNI_ARGS names groups that do not count
}

// cniKeys are the keys of a configuration that are not ours and that we let through: CNI's own, at the plugin or
// left over from the list, and deviceID and pciBusID, which Multus writes into every plugin of a network with a
// device. What of ours is in args and runtimeConfig is found by asked; capabilities have a check of their own.
var cniKeys = []string{
	"cniVersion", "cniVersions", "name", "type", "args", "capabilities", "runtimeConfig", "prevResult", "ipam", "dns",
	"disableCheck", "disableGC", "loadOnlyInlinedPlugins", "deviceID", "pciBusID",
}

// The capabilities that tell what a container asks for. podAnnotations is one of containerd and CRI-O: all of the pod's.
const (
	mldGroups      = "mldGroups"
	podAnnotations = "io.kubernetes.cri.pod-annotations"
)

// knownCapabilities are ours, and those of CNI's conventions, which a runtime may pass to any plugin.
var knownCapabilities = []string{
	mldGroups, podAnnotations, "aliases", "bandwidth", "cgroupPath", "deviceID", "dns", "infinibandGUID", "ipRanges", "ips",
	"mac", "portMappings",
}

// Bounds and default of the key annotation.
const (
	defaultAnnotation = "mld/groups"
	maxAnnotation     = 317 // bytes of a name in Kubernetes: a prefix of 253, a slash, and 63
)

// parseConfig reads the configuration of an ADD, a CHECK or a STATUS. STATUS has no attachment, so that is not
// checked here. What the container itself asks for is read for ADD alone: it may be another by the time of a CHECK, as an
// annotation that was edited, and some runtimes do not tell it again. An error has code 7 and names key, value and
// remedy.
func parseConfig(op string, args *skel.CmdArgs) (*config, *types.Error) {
	var keys map[string]json.RawMessage
	if err := json.Unmarshal(args.StdinData, &keys); err != nil {
		return nil, types.NewError(types.ErrDecodingFailure, "network configuration: "+err.Error(), "")
	}
	c := &config{
		attachment: api.Attachment{ContainerID: args.ContainerID, IfName: args.IfName},
		runDir:     api.DefaultRunDir,
		autostart:  true,
	}
	annotation := defaultAnnotation
	if raw := keys["prevResult"]; string(raw) != "null" {
		c.prevResult = raw
	}
	for _, own := range []struct {
		key  string
		to   any
		rule string
	}{
		{"cniVersion", &c.cniVersion, "must be a string"},
		{"name", &c.attachment.Network, "must be a string"},
		{"runDir", &c.runDir, runDirRule},
		{"autostart", &c.autostart, "must be true or false"},
		{"annotation", &annotation, annotationRule},
	} {
		raw, ok := keys[own.key]
		if ok && (string(raw) == "null" || json.Unmarshal(raw, own.to) != nil) {
			return nil, api.InvalidConfig(own.key, raw, own.rule)
		}
	}
	if !filepath.IsAbs(c.runDir) || len(api.SocketPath(c.runDir)) > api.MaxSocketPath {
		return nil, api.InvalidConfig("runDir", c.runDir, runDirRule)
	}
	if annotation == "" || len(annotation) > maxAnnotation {
		return nil, api.InvalidConfig("annotation", annotation, annotationRule)
	}
	if err := checkCapabilities(keys["capabilities"]); err != nil {
		return nil, err
	}
	var places, last []api.Asked
	if op == api.OpAdd {
		places, last = asked(keys, annotation, args.Args)
	}
	for _, key := range []string{"runDir", "autostart", "annotation"} {
		delete(keys, key)
	}
	for _, key := range cniKeys {
		delete(keys, key)
	}
	for key := range keys {
		if strings.HasPrefix(key, "cni.dev/") { // reserved for the runtime
			delete(keys, key)
		}
	}
	var err *types.Error
	c.settings, err = api.ParseSettings(keys, places...)
	if err != nil || len(last) == 0 {
		return c, err
	}
	if c.unheard = len(c.settings.Groups) > 0; !c.unheard {
		c.settings, err = api.ParseSettings(keys, last...)
	}
	return c, err
}

var annotationRule = fmt.Sprintf("must be the name of a pod's annotation such as %q, of 1 to %d bytes", defaultAnnotation, maxAnnotation)

var runDirRule = fmt.Sprintf("must be an absolute path such as %q, short enough for a socket path of %d bytes",
	api.DefaultRunDir, api.MaxSocketPath)

// checkCapabilities judges the key capabilities, which libcni obeys and hands on: by a wrong one, a container's groups
// would be lost without a word.
func checkCapabilities(raw json.RawMessage) *types.Error {
	if raw == nil {
		return nil
	}
	var capabilities map[string]json.RawMessage
	if json.Unmarshal(raw, &capabilities) != nil {
		return api.InvalidConfig("capabilities", raw, `must be an object such as {"mldGroups": true}`)
	}
	for _, name := range slices.Sorted(maps.Keys(capabilities)) {
		key, value := "capabilities."+api.Cut(name), capabilities[name]
		if !slices.Contains(knownCapabilities, name) {
			return api.InvalidConfig(key, value, "unknown key: known are "+strings.Join(knownCapabilities, ", "))
		}
		if text := string(value); text != "true" && text != "false" {
			return api.InvalidConfig(key, value, "must be true or false")
		}
	}
	return nil
}

// asked returns what the container asks for: in places that add up, and in CNI_ARGS, which CNI has deprecated and
// which counts only where nothing else names a group. Other values of the runtime's are other plugins' business,
// whatever their form.
func asked(keys map[string]json.RawMessage, annotation, cniArgs string) (places, last []api.Asked) {
	if raw, ok := member(keys["runtimeConfig"], mldGroups); ok {
		places = append(places, api.Asked{Place: "runtimeConfig.mldGroups", Groups: raw})
	}
	all, _ := member(keys["runtimeConfig"], podAnnotations)
	if raw, ok := member(all, annotation); ok {
		places = append(places, api.Asked{Place: fmt.Sprintf("runtimeConfig[%q][%q]", podAnnotations, annotation), Groups: raw})
	}
	cni, _ := member(keys["args"], "cni")
	if raw, ok := member(cni, mldGroups); ok { // where Multus puts the pod's cni-args
		places = append(places, api.Asked{Place: "args.cni.mldGroups", Groups: raw})
	}
	for arg := range strings.SplitSeq(cniArgs, ";") {
		if key, value, _ := strings.Cut(arg, "="); key == "MLD_GROUPS" && value != "" {
			raw, _ := json.Marshal(value) // a string always can be
			last = append(last, api.Asked{Place: "CNI_ARGS MLD_GROUPS", Groups: raw})
		}
	}
	return places, last
}

// member returns one member of a JSON object, if there is an object and it has it.
func member(object json.RawMessage, key string) (json.RawMessage, bool) {
	var members map[string]json.RawMessage
	if json.Unmarshal(object, &members) != nil {
		return nil, false
	}
	raw, ok := members[key]
	return raw, ok
}

func isNull(raw json.RawMessage) bool { return string(raw) == "null" }

// result returns the previous result in the configuration's version. Where it has this version already, as it has
// from every runtime, it is passed on as it came, so that nothing is lost that this program does not know.
func (c *config) result() (json.RawMessage, *types.Error) {
	if c.prevResult == nil {
		return nil, types.NewError(types.ErrInvalidNetworkConfig,
			"prevResult: missing: mld makes no interface, so put it after a plugin that does in the list of plugins", "")
	}
	bad := func(err error) *types.Error {
		return api.InvalidConfig("prevResult", c.prevResult, "not a result of CNI "+c.cniVersion+": "+err.Error())
	}
	var members map[string]json.RawMessage
	if err := json.Unmarshal(c.prevResult, &members); err != nil {
		return nil, bad(err)
	}
	var version string
	if raw, ok := members["cniVersion"]; ok {
		if err := json.Unmarshal(raw, &version); err != nil {
			return nil, bad(err)
		}
	}
	raw := c.prevResult
	if version == "" { // allowed before 1.0.0: it is the configuration's
		version = c.cniVersion
		members["cniVersion"], _ = json.Marshal(version)
		raw, _ = json.Marshal(members)
	}
	parsed, err := create.Create(version, raw)
	if err != nil {
		return nil, bad(err)
	}
	if version == c.cniVersion {
		return raw, nil
	}
	var lists struct{ Interfaces, IPs []json.RawMessage } // in which a conversion follows every pointer
	err = json.Unmarshal(raw, &lists)
	if err == nil && slices.ContainsFunc(slices.Concat(lists.Interfaces, lists.IPs), isNull) {
		err = errors.New("an entry of interfaces or ips is null")
	}
	if err != nil {
		return nil, bad(err)
	}
	converted, err := parsed.GetAsVersion(c.cniVersion)
	if err != nil {
		return nil, bad(err)
	}
	if raw, err = json.Marshal(converted); err != nil {
		return nil, bad(err)
	}
	return raw, nil
}
