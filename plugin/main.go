package main

import (
	"os"
	"runtime"

	"github.com/containernetworking/cni/pkg/skel"
	cniversion "github.com/containernetworking/cni/pkg/version"
)

// version is set by the linker.
var version = "devel"

// One processor is enough for one call: what a second one would do beside is less than what its threads cost, which a
// container's start waits for, too.
func init() { runtime.GOMAXPROCS(1) }

func main() {
	versions := cniversion.PluginSupports("0.3.1", "0.4.0", "1.0.0", "1.1.0")
	if os.Getenv("CNI_COMMAND") == "DEL" { // the plugins before ours, whose DEL comes after it, are to have theirs
		versions = cniversion.All
	}
	skel.PluginMainFuncs(
		skel.CNIFuncs{Add: add, Del: del, Check: check, GC: gc, Status: status},
		versions,
		"CNI plugin mld "+version)
}
