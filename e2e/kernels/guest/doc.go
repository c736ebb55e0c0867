// Package guest is what runs on each kernel: the built programs and the agent, attached to a container on a bridge that
// snoops and asks, with the bridge's own multicast database and counted packets as oracles. Unlike in package e2e nothing
// is decoded by tshark, which a guest has no room for.
//
// It says what the kernel offers in lines "fact NAME VALUE", which the host compares with what it expects there.
package guest
