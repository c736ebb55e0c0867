package main

import (
	"flag"
	"fmt"
	"net/netip"
	"os"
	"runtime"
	"slices"
)

const mtu = 1500

var own = netip.MustParseAddr("fe80::a")

func main() {
	rounds := flag.Int("rounds", 15, "how often ours and the peer take turns")
	flag.Parse()
	runtime.LockOSThread() // for threadTime

	var lines []*line
	for _, version := range versions {
		for _, n := range sizes {
			lines = append(lines, startListening(version, n, *rounds)...)
		}
	}
	for _, version := range versions {
		for _, n := range sizes {
			lines = append(lines, answerAndMemory(version, n, *rounds)...)
		}
	}
	for _, version := range versions {
		lines = append(lines, longestCall(version, sizes[len(sizes)-1])...)
	}
	lines = append(lines, codecs(*rounds)...)
	if err := print(os.Stdout, lines); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(2)
	}
	if slices.ContainsFunc(lines, (*line).missed) {
		os.Exit(1)
	}
}
