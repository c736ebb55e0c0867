package bridge

import (
	"errors"
	"fmt"
	"net"
	"sync/atomic"

	"github.com/mdlayher/netlink"
	"golang.org/x/sys/unix"

	"github.com/seed-aaab8e3a/cni-mld/mld/netns"
)

// A Change is an entry that has come into an MDB, that is another one now (a leave gives it less time), or that has gone.
type Change struct {
	Entry Entry // without its Timer
	Gone  bool
}

// ErrLost says that changes came faster than they were read, and that some are missing. It is no end.
var ErrLost = errors.New("changes of the multicast database were lost")

// A Monitor tells of the changes of every MDB in a namespace, as they happen.
type Monitor struct {
	conn   *netlink.Conn
	closed atomic.Bool
}

// OpenMonitor listens in the namespace that the bridges are in, commonly the host's.
func OpenMonitor(host *netns.Namespace) (*Monitor, error) {
	conn, err := dial(host, unix.RTNLGRP_MDB)
	if err != nil {
		return nil, fmt.Errorf("monitor of multicast databases: %w", err)
	}
	return &Monitor{conn: conn}, nil
}

// Next waits for changes, of IPv6 entries only. The error wraps [ErrLost], or is [net.ErrClosed] after Close. One
// goroutine calls it at a time.
func (m *Monitor) Next() ([]Change, error) {
	for {
		messages, err := m.conn.Receive()
		switch {
		case m.closed.Load():
			return nil, net.ErrClosed
		case errors.Is(err, unix.ENOBUFS):
			return nil, fmt.Errorf("monitor of multicast databases: %w", ErrLost)
		case err != nil:
			return nil, fmt.Errorf("monitor of multicast databases: %w", err)
		}
		var changes []Change
		for _, message := range messages {
			if t := message.Header.Type; t != unix.RTM_NEWMDB && t != unix.RTM_DELMDB {
				continue
			}
			entries, err := parseEntries(message.Data)
			if err != nil {
				return nil, fmt.Errorf("monitor of multicast databases: %w", err)
			}
			for _, e := range entries {
				changes = append(changes, Change{Entry: e, Gone: message.Header.Type == unix.RTM_DELMDB})
			}
		}
		if len(changes) > 0 {
			return changes, nil
		}
	}
}

// Close ends the monitor and wakes Next. Further calls do nothing.
func (m *Monitor) Close() error {
	if m.closed.Swap(true) {
		return nil
	}
	return m.conn.Close()
}
