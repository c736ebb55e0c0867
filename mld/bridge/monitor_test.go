package bridge_test

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"testing"
	"time"

	"github.com/seed-aaab8e3a/cni-mld/mld/bridge"
	"github.com/seed-aaab8e3a/cni-mld/netnslab"
)

func TestMonitor(t *testing.T) {
	t.Parallel()
	options := fast
	options.Querier, options.LastMemberInterval = 2, 100*time.Millisecond
	br, alice, bob := pair(t, options)
	m, err := bridge.OpenMonitor(br.Node().Netns())
	if err != nil {
		t.Fatal(err)
	}
	changes, ended := make(chan bridge.Change), make(chan error, 1)
	go func() {
		for {
			list, err := m.Next()
			if err != nil {
				ended <- err
				return
			}
			for _, c := range list {
				changes <- c
			}
		}
	}()
	next := func(what string, e *netnslab.Endpoint, source string, gone bool) {
		t.Helper()
		deadline := time.After(10 * time.Second)
		want := fmt.Sprintf("(%s,%s) port %d gone %v", source, group, e.Peer().Index(), gone)
		for {
			select {
			case c := <-changes:
				if c.Entry.Group != group || c.Entry.Bridge != br.Index() || gone && !c.Gone { // a leave shortens first
					continue
				}
				if got := fmt.Sprint(c.Entry, " gone ", c.Gone); got != want {
					t.Errorf("%s: got %s, want %s", what, got, want)
				}
				return
			case <-deadline:
				t.Fatalf("%s: no change, want %s", what, want)
			}
		}
	}
	any := alice.Join(group)
	next("join", alice, "*", false)
	any.Close()
	next("leave", alice, "*", true)
	source := bob.JoinSource(group, netip.MustParseAddr("fd00::1"))
	next("join of a source", bob, "*", false)
	next("join of a source", bob, "fd00::1", false)
	source.Close()
	next("leave of a source", bob, "fd00::1", true)
	if err := m.Close(); err != nil {
		t.Fatal(err)
	}
	for {
		select {
		case <-changes:
		case err := <-ended:
			if !errors.Is(err, net.ErrClosed) {
				t.Errorf("after Close: %v", err)
			}
			return
		}
	}
}
