package main

import (
	"encoding/json"
	"fmt"
	"path/filepath"
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
}

// cniKeys are the keys of a configuration that are not ours and that we let through: CNI's own, at the plugin or
// left over from the list, and deviceID and pciBusID, which Multus writes into every plugin of a network with a
// device. What of ours may hide in args, capabilities and runtimeConfig is checked by refuseUnbuilt.
var cniKeys = []string{
	"cniVersion", "cniVersions", "name", "type", "args", "capabilities", "runtimeConfig", "prevResult", "ipam", "dns",
	"disableCheck", "disableGC", "loadOnlyInlinedPlugins", "deviceID", "pciBusID",
}

// parseConfig reads the configuration of an ADD, a CHECK or a STATUS. STATUS has no attachment, so that is not
// checked here. An error has code 7 and names key, value and remedy.
func parseConfig(args *skel.CmdArgs) (*config, *types.Error) {
	var keys map[string]json.RawMessage
	if err := json.Unmarshal(args.StdinData, &keys); err != nil {
		return nil, types.NewError(types.ErrDecodingFailure, "network configuration: "+err.Error(), "")
	}
	if err := refuseUnbuilt(keys, args.Args); err != nil {
		return nil, err
	}
	c := &config{
		attachment: api.Attachment{ContainerID: args.ContainerID, IfName: args.IfName},
		runDir:     api.DefaultRunDir,
		autostart:  true,
	}
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
	} {
		raw, ok := keys[own.key]
		if ok && (string(raw) == "null" || json.Unmarshal(raw, own.to) != nil) {
			return nil, api.InvalidConfig(own.key, raw, own.rule)
		}
	}
	if !filepath.IsAbs(c.runDir) || len(api.SocketPath(c.runDir)) > api.MaxSocketPath {
		return nil, api.InvalidConfig("runDir", c.runDir, runDirRule)
	}
	delete(keys, "runDir")
	delete(keys, "autostart")
	for _, key := range cniKeys {
		delete(keys, key)
	}
	for key := range keys {
		if strings.HasPrefix(key, "cni.dev/") { // reserved for the runtime
			delete(keys, key)
		}
	}
	var err *types.Error
	c.settings, err = api.ParseSettings(keys)
	return c, err
}

var runDirRule = fmt.Sprintf("must be an absolute path such as %q, short enough for a socket path of %d bytes",
	api.DefaultRunDir, api.MaxSocketPath)

// refuseUnbuilt refuses every way in which a container may ask for groups, since none is built yet. Other
// capabilities, arguments and runtime values are other plugins' business, whatever their form.
func refuseUnbuilt(keys map[string]json.RawMessage, cniArgs string) *types.Error {
	const notBuilt = "not built yet: name the groups in the key groups of the network's configuration"
	const annotations = "io.kubernetes.cri.pod-annotations"
	for _, key := range []string{"mldGroups", annotations} {
		if raw, ok := member(keys["capabilities"], key); ok && string(raw) != "false" {
			return api.InvalidConfig("capabilities."+key, raw, notBuilt)
		}
	}
	if raw, ok := member(keys["runtimeConfig"], "mldGroups"); ok {
		return api.InvalidConfig("runtimeConfig.mldGroups", raw, notBuilt)
	}
	cni, _ := member(keys["args"], "cni")
	if raw, ok := member(cni, "mldGroups"); ok {
		return api.InvalidConfig("args.cni.mldGroups", raw, notBuilt)
	}
	for _, arg := range strings.Split(cniArgs, ";") {
		if key, value, _ := strings.Cut(arg, "="); key == "MLD_GROUPS" {
			return api.InvalidConfig("CNI_ARGS MLD_GROUPS", value, notBuilt)
		}
	}
	return nil
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
	converted, err := parsed.GetAsVersion(c.cniVersion)
	if err != nil {
		return nil, bad(err)
	}
	if raw, err = json.Marshal(converted); err != nil {
		return nil, bad(err)
	}
	return raw, nil
}
