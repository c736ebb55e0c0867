package bridge_test

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	gocmp "github.com/google/go-cmp/cmp"
	"golang.org/x/net/ipv6"

	"github.com/seed-aaab8e3a/cni-mld/mld/bridge"
	"github.com/seed-aaab8e3a/cni-mld/netnslab"
)

var group = netip.MustParseAddr("ff05::4321")

// The oracle is iproute2.
func TestDumpAgreesWithIproute2(t *testing.T) {
	t.Parallel()
	for _, version := range []int{1, 2} {
		t.Run(fmt.Sprintf("MLDv%d", version), func(t *testing.T) {
			t.Parallel()
			options := fast
			options.Querier = version
			br, alice, bob := pair(t, options)
			host := br.Node()
			alice.Join(group)
			bob.Join(group)
			sources(t, alice, "ff35::1", (*ipv6.PacketConn).JoinSourceSpecificGroup, "fd00::1", "fd00::2")
			bob.Join(netip.MustParseAddr("ff05::ee"))
			sources(t, alice, "ff05::ee", exclude, "fd00::66")
			add := host.Command(t.Context(), "bridge", "mdb", "add", "dev", "br0", "port", "bob", "grp", "ff05::9", "permanent")
			if out, err := add.CombinedOutput(); err != nil {
				t.Fatalf("%v: %s", err, out)
			}
			port := alice.Port()
			ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
			defer cancel()
			err := port.Wait(ctx, group, netip.MustParseAddr("ff35::1"), netip.MustParseAddr("ff05::ee"))
			if err != nil {
				t.Fatal(err)
			}
			// Entries come and change meanwhile, until everything has been reported: no two looks are at the same
			// moment.
			netnslab.WaitFor(t, "agreement of both", 10*time.Second, func() (bool, string) {
				got, err := bridge.Dump(host.Netns(), br.Index())
				if err != nil {
					return false, err.Error()
				}
				want := iproute2(t, br)
				for i := range got {
					got[i].Timer = 0 // below
				}
				diff := gocmp.Diff(sorted(want), sorted(got), gocmp.Comparer(func(a, b netip.Addr) bool { return a == b }))
				blocked := slices.ContainsFunc(got, func(e bridge.Entry) bool { return e.Blocked })
				return diff == "" && len(got) >= 7 && blocked == (version == 2), "-iproute2 +ours:\n" + diff
			}, host)

			members, err := port.Members()
			if err != nil {
				t.Fatal(err)
			}
			for _, e := range members {
				if e.Port != alice.Peer().Index() {
					t.Errorf("%v is not on port %d", e, alice.Peer().Index())
				}
				if e.Timer < 0 || e.Timer > 260*time.Second {
					t.Errorf("%v ages in %v", e, e.Timer)
				}
				if e.Group == group && e.Timer < 250*time.Second {
					t.Errorf("%v: ages in %v, want about 260 s (B13)", e, e.Timer)
				}
			}
		})
	}
}

// sources opens an application's socket and makes it a member of a group once for each source.
func sources(t *testing.T, e *netnslab.Endpoint, group string,
	join func(c *ipv6.PacketConn, ifi *net.Interface, group, source net.Addr) error, from ...string) {
	t.Helper()
	err := e.Node().Do(func() error {
		conn, err := net.ListenPacket("udp6", "[::]:0")
		if err != nil {
			return err
		}
		t.Cleanup(func() { _ = conn.Close() })
		for _, s := range from {
			err := join(ipv6.NewPacketConn(conn), &net.Interface{Index: e.Index()},
				&net.UDPAddr{IP: net.ParseIP(group)}, &net.UDPAddr{IP: net.ParseIP(s)})
			if err != nil {
				return err
			}
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
}

// exclude is for sources.
func exclude(c *ipv6.PacketConn, ifi *net.Interface, group, source net.Addr) error {
	return errors.Join(c.JoinGroup(ifi, group), c.ExcludeSourceSpecificGroup(ifi, group, source))
}

// iproute2 reads the database of a bridge by `bridge mdb`.
func iproute2(t *testing.T, br *netnslab.Bridge) []bridge.Entry {
	t.Helper()
	out, err := br.Node().Command(t.Context(), "bridge", "-j", "-d", "-s", "mdb", "show", "dev", br.Name()).Output()
	if err != nil {
		t.Fatal(err)
	}
	var answer []struct {
		MDB []struct {
			Port       string
			Grp, Src   netip.Addr
			State      string
			Flags      []string
			FilterMode string `json:"filter_mode"`
		}
	}
	if len(out) == 0 { // an older kernel says nothing about an empty database
		return nil
	}
	if err := json.Unmarshal(out, &answer); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	ports := map[string]int{}
	links, err := br.Node().Command(t.Context(), "ip", "-j", "link").Output()
	if err != nil {
		t.Fatal(err)
	}
	var all []struct {
		Ifindex int
		Ifname  string
	}
	if err := json.Unmarshal(links, &all); err != nil {
		t.Fatal(err)
	}
	for _, l := range all {
		ports[l.Ifname] = l.Ifindex
	}
	var entries []bridge.Entry
	for _, a := range answer {
		for _, e := range a.MDB {
			if !e.Grp.Is6() {
				continue
			}
			entries = append(entries, bridge.Entry{
				Bridge: br.Index(), Port: ports[e.Port], Group: e.Grp, Source: e.Src,
				Include: e.FilterMode == "include", Blocked: slices.Contains(e.Flags, "blocked"),
				Permanent: e.State == "permanent",
			})
		}
	}
	return entries
}

func sorted(entries []bridge.Entry) []bridge.Entry {
	return slices.SortedFunc(slices.Values(entries), func(a, b bridge.Entry) int {
		return cmp.Or(cmp.Compare(a.Port, b.Port), a.Group.Compare(b.Group), a.Source.Compare(b.Source))
	})
}

func withTimeout(t *testing.T) context.Context {
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	t.Cleanup(cancel)
	return ctx
}

func TestWait(t *testing.T) {
	t.Parallel()
	options := fast
	options.Querier = 2
	_, alice, bob := pair(t, options)
	port, second := alice.Port(), netip.MustParseAddr("ff05::4322")

	// Another port's entry is not ours; the error tells what is missing and why the waiting ended.
	bob.Join(group)
	if err := bob.Port().Wait(withTimeout(t), group); err != nil {
		t.Fatal(err)
	}
	enough := errors.New("enough")
	ctx, cancel := context.WithCancelCause(t.Context())
	cancel(enough)
	err := port.Wait(ctx, group, second)
	if !errors.Is(err, enough) {
		t.Errorf("got %v, want %v", err, enough)
	}
	for _, missing := range []netip.Addr{group, second} {
		if !strings.Contains(err.Error(), missing.String()) {
			t.Errorf("the error does not name %v: %v", missing, err)
		}
	}

	// The entries come while it waits, one after the other.
	waited := make(chan error, 1)
	go func() { waited <- port.Wait(withTimeout(t), group, second) }()
	alice.Join(group)
	if err := port.Wait(withTimeout(t), group); err != nil {
		t.Error(err)
	}
	select {
	case err := <-waited:
		t.Errorf("waiting for two groups ended with one: %v", err)
	default:
	}
	alice.Join(second)
	if err := <-waited; err != nil {
		t.Error(err)
	}
	// They stand, and a zone is of no importance.
	if err := port.Wait(withTimeout(t), group, second.WithZone("eth0")); err != nil {
		t.Error(err)
	}
	if err := port.Wait(withTimeout(t)); err != nil {
		t.Errorf("for nothing: %v", err)
	}
}

// After Listen a Wait knows what has come since, and what was there before as well.
func TestListen(t *testing.T) {
	t.Parallel()
	options := fast
	options.Querier = 2
	_, alice, _ := pair(t, options)
	port, second, third := alice.Port(), netip.MustParseAddr("ff05::4322"), netip.MustParseAddr("ff05::4323")
	listen := func() {
		t.Helper()
		if err := port.Listen(); err != nil {
			t.Fatal(err)
		}
	}
	wait := func(groups ...netip.Addr) {
		t.Helper()
		if err := port.Wait(withTimeout(t), groups...); err != nil {
			t.Error(err)
		}
	}
	listen()
	listen() // again, in place of the first
	alice.Join(group)
	wait(group)
	listen()
	alice.Join(second)
	wait(group, second)
	listen()
	wait(group, second) // nothing new
	listen()
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	if err := port.Wait(ctx, group, third); !errors.Is(err, context.DeadlineExceeded) || !strings.Contains(err.Error(), third.String()) ||
		strings.Contains(err.Error(), group.String()) {
		t.Errorf("got %v, want that %v is missing", err, third)
	}
	listen() // and no Wait
}

// What has come since Listen is not there for good: a group may have been left again, or a source be kept out of it.
func TestListenTakenBack(t *testing.T) {
	t.Parallel()
	lab := netnslab.New(t)
	options := fast
	options.Querier = 2
	alice := lab.Bridge("br0", options).Connect(lab.Node("alice"), "eth0", netnslab.FastLeave)
	port := alice.Port()
	wait := func(what string, want bool, is func(bridge.Entry) bool) {
		t.Helper()
		netnslab.WaitFor(t, what, 10*time.Second, func() (bool, string) {
			entries, err := port.Members()
			return err == nil && slices.ContainsFunc(entries, is) == want, fmt.Sprint(entries, err)
		}, lab.Host())
	}
	left, other, source := netip.MustParseAddr("ff05::1"), netip.MustParseAddr("ff05::2"), netip.MustParseAddr("fd00::1")
	for flow, do := range map[bridge.Flow]func(){
		{Group: left}: func() {
			member := alice.Join(left)
			there := func(e bridge.Entry) bool { return e.Group == left && e.Forwards() }
			wait("entry", true, there)
			if err := member.Close(); err != nil {
				t.Fatal(err)
			}
			wait("end of the entry", false, there)
		},
		{Group: other, Source: source}: func() {
			sources(t, alice, other.String(), exclude, source.String())
			wait("blocked source", true, func(e bridge.Entry) bool { return e.Group == other && e.Blocked })
		},
	} {
		if err := port.Listen(); err != nil {
			t.Fatal(err)
		}
		do()
		ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
		defer cancel()
		err := port.WaitFlows(ctx, flow)
		if !errors.Is(err, context.DeadlineExceeded) || !strings.Contains(err.Error(), flow.String()) {
			t.Errorf("got %v, want that %v is missing", err, flow)
		}
	}
}

func TestWaitEndsWithThePort(t *testing.T) {
	t.Parallel()
	br, alice, bob := pair(t, netnslab.BridgeOptions{})
	aPort, bPort := alice.Port(), bob.Port()
	waited := make(chan error, 2)
	go func() { waited <- aPort.Wait(withTimeout(t), group) }()
	go func() { waited <- bPort.Wait(withTimeout(t), group) }()
	// While it waits: an answer to the first dump and an event have to go by before.
	alice.Join(netip.MustParseAddr("ff05::1"))
	if err := aPort.Wait(withTimeout(t), netip.MustParseAddr("ff05::1")); err != nil {
		t.Error(err)
	}
	alice.Delete()
	if err := br.Node().Command(t.Context(), "ip", "link", "set", "bob", "nomaster").Run(); err != nil {
		t.Error(err)
	}
	for range 2 {
		if err := <-waited; !errors.Is(err, bridge.ErrNotPort) {
			t.Errorf("while waiting: got %v, want ErrNotPort", err)
		}
	}
	for _, port := range []*bridge.Port{aPort, bPort} {
		if err := port.Wait(withTimeout(t), group); !errors.Is(err, bridge.ErrNotPort) {
			t.Errorf("afterwards: got %v, want ErrNotPort", err)
		}
	}
}

// Source-specific listeners have entries too, and an exclusion is not one.
func TestB18_WaitForSources(t *testing.T) {
	t.Parallel()
	options := fast
	options.Querier = 2
	_, alice, _ := pair(t, options)
	sources(t, alice, "ff35::1", (*ipv6.PacketConn).JoinSourceSpecificGroup, "fd00::1")
	if err := alice.Port().Wait(withTimeout(t), netip.MustParseAddr("ff35::1")); err != nil {
		t.Error(err)
	}
}

// What is forwarded from which source, as the bridge's version of MLD has it: of version 1 it knows entries for any
// source only (B17).
func TestB17_B18_WaitFlows(t *testing.T) {
	t.Parallel()
	included, excluded, any := netip.MustParseAddr("ff35::8000:1"), netip.MustParseAddr("ff05::ee"), netip.MustParseAddr("ff05::aa")
	one, two := netip.MustParseAddr("fd00::1"), netip.MustParseAddr("fd00::2")
	for _, version := range []int{1, 2} {
		t.Run(fmt.Sprintf("MLDv%d", version), func(t *testing.T) {
			t.Parallel()
			options := fast
			options.Querier = version
			_, alice, bob := pair(t, options)
			port := alice.Port()
			bob.Join(included) // which is of no use to alice
			alice.Join(any)
			sources(t, alice, included.String(), (*ipv6.PacketConn).JoinSourceSpecificGroup, one.String())
			sources(t, alice, excluded.String(), exclude, one.String())
			err := port.WaitFlows(withTimeout(t), bridge.Flow{any, netip.Addr{}}, bridge.Flow{any, one}, bridge.Flow{included, one},
				bridge.Flow{excluded, netip.Addr{}}, bridge.Flow{excluded.WithZone("eth0"), two})
			if err != nil {
				t.Fatal(err)
			}
			if version == 2 { // the kernel excludes a moment after it has joined
				netnslab.WaitFor(t, "blocked source", 10*time.Second, func() (bool, string) {
					entries, err := port.Members()
					return slices.ContainsFunc(entries, func(e bridge.Entry) bool { return e.Blocked }), fmt.Sprint(entries, err)
				}, alice.Peer().Node())
			}
			enough := errors.New("enough")
			ctx, cancel := context.WithCancelCause(t.Context())
			cancel(enough)
			for _, f := range []bridge.Flow{{included, netip.Addr{}}, {included, two}, {excluded, one}} {
				err := port.WaitFlows(ctx, bridge.Flow{any, one}, f)
				if forwarded := err == nil; forwarded != (version == 1) {
					t.Errorf("%v: forwarded %v", f, forwarded)
				}
				if err != nil && (!errors.Is(err, enough) || !strings.Contains(err.Error(), "no entry for ["+f.String()+"]")) {
					t.Errorf("%v: %v, which does not name it alone", f, err)
				}
			}

			// Each of them comes while it is waited for: an entry, the end of one that keeps it out, one for any source.
			for f, join := range map[bridge.Flow]func(){
				{included, two}: func() {
					sources(t, alice, included.String(), (*ipv6.PacketConn).JoinSourceSpecificGroup, two.String())
				},
				{excluded, one}: func() {
					sources(t, alice, excluded.String(), (*ipv6.PacketConn).JoinSourceSpecificGroup, one.String())
				},
				{included, netip.Addr{}}: func() { alice.Join(included) },
			} {
				waited := make(chan error, 1)
				go func() { waited <- port.WaitFlows(withTimeout(t), f) }()
				join()
				if err := <-waited; err != nil {
					t.Error(err)
				}
			}
		})
	}
}

func TestWaitersNeedNoThreads(t *testing.T) {
	_, alice, _ := pair(t, netnslab.BridgeOptions{})
	port := alice.Port()
	const waiters, atOnce = 200, 10 // to begin takes a thread
	before := threads(t)
	var done sync.WaitGroup
	for n := 0; n < waiters; n += atOnce {
		for range atOnce {
			done.Go(func() {
				if err := port.Wait(withTimeout(t), group); err != nil {
					t.Error(err)
				}
			})
		}
		netnslab.WaitFor(t, "sockets of the waiters", 10*time.Second, func() (bool, string) {
			descriptors, err := os.ReadDir("/proc/self/fd")
			return len(descriptors) > n+atOnce, fmt.Sprint(len(descriptors), err)
		})
	}
	if n := threads(t) - before; n > waiters/10 {
		t.Errorf("%d waiters have %d threads", waiters, n)
	}
	alice.Join(group)
	done.Wait()
}

func threads(t *testing.T) int {
	t.Helper()
	tasks, err := os.ReadDir("/proc/self/task")
	if err != nil {
		t.Fatal(err)
	}
	return len(tasks)
}
