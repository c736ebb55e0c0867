module github.com/seed-aaab8e3a/cni-mld/mld/listener/gvisor

go 1.26.0

require (
	github.com/gopacket/gopacket v1.7.7
	github.com/seed-aaab8e3a/cni-mld v0.0.0
	golang.org/x/sys v0.49.0
	gvisor.dev/gvisor v0.0.0-20260518063529-209a0ce076a1
)

require (
	golang.org/x/exp v0.0.0-20250711185948-6ae5c78190dc // indirect
	golang.org/x/time v0.15.0 // indirect
)

replace github.com/seed-aaab8e3a/cni-mld => ../../..
