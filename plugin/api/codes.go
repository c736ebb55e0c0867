package api

import (
	"encoding/json"
	"fmt"
	"strings"

	"github.com/containernetworking/cni/pkg/types"
)

// Error codes of mldd in a types.Error, beside those that the CNI specification defines (its section 5, "Error",
// leaves 100 and above to the plugin).
const (
	// CodeNotReady: readiness was asked for by name (ready.wait "mdb" or "report") and did not come in time.
	// Everything that ADD did is undone.
	CodeNotReady uint = 101
	// CodeIPv6Off: groups are declared with deliver, and IPv6 is switched off on the interface.
	CodeIPv6Off uint = 102
	// CodeNotEthernet: the interface is not Ethernet-like, so there is no MLD to speak on it.
	CodeNotEthernet uint = 103
	// CodeKernelReports: kernelReports "mute" was asked for and cannot be had, because the kernel is too old or
	// another process mutes this interface already.
	CodeKernelReports uint = 104
)

// InvalidConfig returns an error with CNI's code 7 for a key of the network configuration: its value, cut where it
// is long, and the rule that it breaks with the remedy.
func InvalidConfig(key string, value any, rule string) *types.Error {
	text, err := json.Marshal(value)
	if err != nil { // a value that JSON cannot express comes from Go code, not from a configuration
		text = fmt.Append(nil, value)
	}
	return types.NewError(types.ErrInvalidNetworkConfig, key+": "+Cut(string(text))+": "+rule, "")
}

// maxQuote is how many bytes of a foreign text an error repeats.
const maxQuote = 200

// Cut shortens a foreign text for an error message.
func Cut(s string) string {
	if len(s) <= maxQuote {
		return s
	}
	return strings.ToValidUTF8(s[:maxQuote], "") + "..."
}
