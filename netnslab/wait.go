package netnslab

import (
	"errors"
	"sync"
	"time"

	mdnetlink "github.com/mdlayher/netlink"
	"golang.org/x/sys/unix"
)

// rtnlgrpIPv6McAddr is RTNLGRP_IPV6_MCADDR (Linux 6.14 or so).
const rtnlgrpIPv6McAddr = 38

// WaitFor waits until cond is true and fails the test when timeout has passed; then it tells what was waited for
// and the state that cond saw last. It is for conditions that no other method of the lab waits for.
//
// The condition is looked at whenever netlink tells a change of links, addresses, bridge groups or memberships
// in one of the nodes, and, since not everything has an event, at growing intervals of up to 100 ms.
func WaitFor(tb TB, what string, timeout time.Duration, cond func() (bool, string), nodes ...*Node) {
	tb.Helper()
	changes := make(chan struct{}, 1)
	var watchers sync.WaitGroup
	defer watchers.Wait()
	for _, n := range nodes {
		events, err := n.dialEvents()
		if err != nil {
			tb.Fatalf("netnslab: wait for %s: node %s: %v", what, n, err)
		}
		defer events.Close()
		watchers.Go(func() {
			for {
				if _, err := events.Receive(); err != nil && !isOverflow(err) {
					return
				}
				select {
				case changes <- struct{}{}:
				default:
				}
			}
		})
	}
	deadline := time.NewTimer(timeout)
	defer deadline.Stop()
	for pause := time.Millisecond; ; pause = min(2*pause, 100*time.Millisecond) {
		if ok, _ := cond(); ok {
			return
		}
		select {
		case <-changes:
		case <-time.After(pause):
		case <-deadline.C:
			ok, state := cond()
			if ok {
				return
			}
			for _, n := range nodes {
				n.lab.saveEvidence()
			}
			tb.Fatalf("netnslab: waited %v in vain for %s; last seen: %s", timeout, what, state)
		}
	}
}

// dialEvents opens a socket that hears of the changes in a node.
func (n *Node) dialEvents() (*mdnetlink.Conn, error) {
	var events *mdnetlink.Conn
	err := n.Do(func() error {
		var err error
		events, err = mdnetlink.Dial(netlinkRoute, nil)
		return err
	})
	if err != nil {
		return nil, err
	}
	for _, group := range []uint32{
		unix.RTNLGRP_LINK, unix.RTNLGRP_NEIGH, unix.RTNLGRP_IPV6_IFADDR, unix.RTNLGRP_IPV6_ROUTE, unix.RTNLGRP_MDB,
	} {
		if err := events.JoinGroup(group); err != nil {
			_ = events.Close()
			return nil, err
		}
	}
	_ = events.JoinGroup(rtnlgrpIPv6McAddr) // an older kernel does not have it
	return events, nil
}

func isOverflow(err error) bool { return errors.Is(err, unix.ENOBUFS) }
