package kernel_test

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"strings"
	"testing"

	"github.com/seed-aaab8e3a/cni-mld/mld/kernel"
	"github.com/seed-aaab8e3a/cni-mld/netnslab"
)

func TestJoins(t *testing.T) {
	t.Parallel()
	e := pod(t)
	j := newJoins(t, e)
	all := addrs(3000) // more than one socket holds
	for range 2 {
		for _, addr := range all {
			if err := j.Join(addr); err != nil {
				t.Fatal(err)
			}
		}
	}
	joined := func() (n int) {
		list := igmp6(t, e.Node(), e.Index())
		for _, addr := range all {
			if list[addr] {
				n++
			}
		}
		return n
	}
	if n := joined(); n != 3000 {
		t.Fatalf("%d of 3000 joined", n)
	}
	// Room that has become free is used again.
	for part := range slices.Chunk(all, 1000) {
		for _, addr := range part {
			if err := j.Leave(addr); err != nil {
				t.Fatal(err)
			}
		}
		if n := joined(); n != 2000 {
			t.Fatalf("%d joined, want 2000", n)
		}
		for _, addr := range part {
			if err := j.Join(addr); err != nil {
				t.Fatal(err)
			}
		}
	}
	if n := joined(); n != 3000 {
		t.Fatalf("%d of 3000 joined", n)
	}
	if n := j.Sockets(); n != 2 {
		t.Errorf("on %d sockets, want 2", n)
	}
	if err := j.Leave(netip.MustParseAddr("ff05::ffff")); err != nil {
		t.Errorf("leave what is not joined: %v", err)
	}
	for range 2 {
		if err := j.Close(); err != nil {
			t.Fatal(err)
		}
	}
	// A process that a test beside this one is starting may hold a copy of the sockets for a moment.
	netnslab.WaitFor(t, "everything to be left", patience, func() (bool, string) {
		n := joined()
		return n == 0, fmt.Sprintf("%d still joined after Close", n)
	}, e.Node())
	for _, err := range []error{j.Join(group), j.Leave(group)} {
		if !errors.Is(err, net.ErrClosed) {
			t.Errorf("after Close: %v", err)
		}
	}
}

func TestJoinsErrors(t *testing.T) {
	t.Parallel()
	e := pod(t)
	j := newJoins(t, e)
	for _, addr := range []string{"fe80::1", "224.0.0.1", "::", "::ffff:224.0.0.1"} {
		if err := j.Join(netip.MustParseAddr(addr)); err == nil || !strings.Contains(err.Error(), addr) {
			t.Errorf("%s: %v", addr, err)
		}
	}
	if err := j.Join(netip.Addr{}); err == nil {
		t.Error("no address: no error")
	}

	run(t, e.Node(), "ip", "link", "set", "eth0", "mtu", "1000")
	err := j.Join(group)
	for _, word := range []string{"eth0", "ff05::4321", "net.ipv6.conf.eth0.disable_ipv6"} {
		if err == nil || !strings.Contains(err.Error(), word) {
			t.Errorf("without IPv6: %v, which does not name %s", err, word)
		}
	}
	run(t, e.Node(), "ip", "link", "set", "eth0", "mtu", "1500")
	e.Node().SetSysctl("net/ipv6/conf/eth0/disable_ipv6", "1")
	t.Log("disable_ipv6:", j.Join(group))

	gone := kernel.NewJoins(e.Node().Netns(), 4711)
	defer gone.Close()
	if err := gone.Join(group); err == nil || !strings.Contains(err.Error(), "4711") {
		t.Errorf("no such interface: %v", err)
	}
}

// Leaving does not complain when the interface has lost the address before.
func TestJoinsLeaveAfterLoss(t *testing.T) {
	t.Parallel()
	e := pod(t)
	j := newJoins(t, e)
	for _, addr := range addrs(10) {
		if err := j.Join(addr); err != nil {
			t.Fatal(err)
		}
	}
	run(t, e.Node(), "ip", "link", "set", "eth0", "mtu", "1000")
	if err := j.Leave(addrs(10)[0]); err != nil {
		t.Error(err)
	}
	e.Delete()
	if err := j.Leave(addrs(10)[1]); err != nil {
		t.Error(err)
	}
}
