package main

import (
	"runtime/debug"

	"github.com/containernetworking/cni/pkg/skel"
	"github.com/containernetworking/cni/pkg/version"
)

func main() {
	about := "CNI plugin mld"
	if info, ok := debug.ReadBuildInfo(); ok {
		about += " " + info.Main.Version
	}
	skel.PluginMainFuncs(
		skel.CNIFuncs{Add: add, Del: del, Check: check, GC: gc, Status: status},
		version.PluginSupports("0.3.1", "0.4.0", "1.0.0", "1.1.0"),
		about)
}
