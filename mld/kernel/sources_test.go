package kernel_test

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/seed-aaab8e3a/cni-mld/mld"
	"github.com/seed-aaab8e3a/cni-mld/mld/kernel"
	"github.com/seed-aaab8e3a/cni-mld/netnslab"
)

var (
	channel = netip.MustParseAddr("ff3e::8000:4321") // source-specific by its address
	u       = []netip.Addr{
		netip.MustParseAddr("2001:db8::1"), netip.MustParseAddr("2001:db8::2"),
		netip.MustParseAddr("2001:db8::3"), netip.MustParseAddr("2001:db8::4"),
	}
)

// A want is what a filter lets in: bit i for the source u[i], and one more for all other sources.
type want uint8

const (
	nothing  want = 0
	anything want = 1<<5 - 1
)

func include(sources ...int) (w want) {
	for _, i := range sources {
		w |= 1 << i
	}
	return w
}

func exclude(sources ...int) want { return anything &^ include(sources...) }

// told is what a mirror tells of an address.
func told(c kernel.Change) (w want) {
	for _, s := range c.Sources {
		w |= 1 << slices.Index(u, s)
	}
	switch {
	case !c.Joined:
		return nothing
	case c.Exclude:
		return anything &^ w
	}
	return w
}

// A socket is the naive model of one: what it has asked for.
type socket struct {
	*netnslab.Membership
	joined  bool
	exclude bool
	sources []int
}

// wanted is the interface's filter by RFC 9777 section 4.2. (V2-16)
func wanted(sockets []*socket) want {
	var excluding, excluded, included = false, anything, nothing
	for _, s := range sockets {
		switch {
		case !s.joined:
		case s.exclude:
			excluding, excluded = true, excluded&include(s.sources...)
		default:
			included |= include(s.sources...)
		}
	}
	if excluding {
		return anything &^ (excluded &^ included)
	}
	return included
}

// step does something with a socket, as a program may.
func (s *socket) step(t *testing.T, e *netnslab.Endpoint, group netip.Addr, random *rand.Rand) string {
	i := random.IntN(len(u))
	has := slices.Contains(s.sources, i)
	drop := func() { s.sources = slices.DeleteFunc(s.sources, func(j int) bool { return j == i }) }
	var what string
	var err error
	switch op := random.IntN(8); {
	case !s.joined && op < 4:
		what = "join"
		s.Membership, s.joined, s.exclude, s.sources = e.Join(group), true, true, nil
	case !s.joined:
		what = fmt.Sprint("join for ", i)
		s.Membership, s.joined, s.exclude, s.sources = e.JoinSource(group, u[i]), true, false, []int{i}
	case op == 0:
		what = "leave"
		err = s.Close()
		s.joined = false
	case op < 3:
		s.exclude, s.sources = random.IntN(2) == 0, random.Perm(len(u))[:random.IntN(len(u)+1)]
		what = fmt.Sprint("filter, exclude ", s.exclude, " ", s.sources)
		list := make([]netip.Addr, len(s.sources))
		for k, j := range s.sources {
			list[k] = u[j]
		}
		err = s.SetFilter(s.exclude, list...)
		s.joined = s.exclude || len(list) > 0
		if !s.joined {
			err = s.Close()
		}
	case s.exclude && has:
		what = fmt.Sprint("unblock ", i)
		err = s.Unblock(u[i])
		drop()
	case s.exclude:
		what = fmt.Sprint("block ", i)
		err = s.Block(u[i])
		s.sources = append(s.sources, i)
	case has:
		what = fmt.Sprint("drop ", i)
		err = s.DropSource(u[i])
		drop()
		if s.joined = len(s.sources) > 0; !s.joined {
			err = s.Close()
		}
	default:
		what = fmt.Sprint("add ", i)
		err = s.AddSource(u[i])
		s.sources = append(s.sources, i)
	}
	if err != nil {
		t.Fatalf("%s: %v", what, err)
	}
	return what
}

// The mirror's filter becomes the interface's, computed from what the sockets have asked for, after every burst of
// what programs do; and what is wanted all through a burst is wanted in all that is told meanwhile.
func TestV2_16_MirrorSources(t *testing.T) {
	t.Parallel()
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	for name, events := range map[string]bool{"events": true} {
		t.Run(name, func(t *testing.T) { randomSources(t, seed, events, 300) })
	}
}

func TestV2_16_MirrorSourcesWithoutEvents(t *testing.T) {
	withoutEvents(t)
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	randomSources(t, seed, false, 60)
}

func randomSources(t *testing.T, seed uint64, events bool, steps int) {
	random := rand.New(rand.NewPCG(seed, 0))
	e := pod(t, netnslab.Down)
	announced(t, e)
	var mu sync.Mutex
	must := make(map[netip.Addr]want)
	var history []string
	f := followWith(t, e, newMute(t, e, sources), func(c kernel.Change) {
		mu.Lock()
		defer mu.Unlock()
		if w := told(c); events && w&must[c.Addr] != must[c.Addr] {
			t.Errorf("%v: %05b is told, less than %05b, which was wanted all the time: %+v after %q", c.Addr, w, must[c.Addr], c,
				history)
		}
	}, nil)
	f.equal(e)
	groups := []netip.Addr{group, channel}
	sockets := make(map[netip.Addr][]*socket)
	for _, g := range groups {
		for range 3 {
			sockets[g] = append(sockets[g], &socket{})
		}
	}
	var noise, sentinel *netnslab.Membership
	var slowest time.Duration
	for i := range steps {
		g := groups[random.IntN(2)]
		mu.Lock()
		history = nil
		mu.Unlock()
		for range 1 + max(0, random.IntN(8)-4) {
			if random.IntN(5) == 0 { // hides the others from /proc
				if noise != nil {
					if err := noise.Close(); err != nil {
						t.Fatal(err)
					}
				}
				noise = e.Join(netip.MustParseAddr("ff05::1:1"))
			}
			n := random.IntN(3)
			s := sockets[g][n]
			// What the step will want is not known before, so what it may lose is not asked for meanwhile.
			mu.Lock()
			before := must[g]
			must[g] = nothing
			mu.Unlock()
			what := s.step(t, e, g, random)
			mu.Lock()
			history = append(history, fmt.Sprint("socket ", n, ": ", what))
			must[g] = before & wanted(sockets[g])
			mu.Unlock()
		}
		// With the sentinel, what programs have joined and left before has been told.
		if sentinel != nil {
			if err := sentinel.Close(); err != nil {
				t.Fatal(err)
			}
		}
		last := netip.AddrFrom16([16]byte{0: 0xff, 1: 5, 13: 9, 14: byte(i >> 8), 15: byte(i)})
		sentinel = e.JoinSource(last, u[0])
		if !events {
			// Without events a leave and a join in one go look like nothing at all, and the filter that was known stands:
			// more than wanted, until the next General Query has the kernel tell it.
			e.Peer().SendPacket(mld.AppendQuery(nil, netip.MustParseAddr("fe80::1"), mld.AllNodes, mld.Query{
				Version: mld.Version2, MaxResponseCode: 50, QRV: 2, QQIC: 125,
			}))
		}
		start := time.Now()
		want := wanted(sockets[g])
		netnslab.WaitFor(t, fmt.Sprintf("step %d: %v: %q", i, g, history), patience, func() (bool, string) {
			c := f.filter(g)
			joined := slices.ContainsFunc(sockets[g], func(s *socket) bool { return s.joined })
			return f.filter(last).Joined && c.Joined == joined && told(c) == want, fmt.Sprintf("%+v is told, %05b, want %05b", c, told(c), want)
		}, e.Node())
		slowest = max(slowest, time.Since(start))
		mu.Lock()
		must[g] = want
		mu.Unlock()
	}
	t.Logf("the slowest of %d steps took %v", steps, slowest)
}

// announced sets an interface up and waits until the kernel has told twice each what it tells when it joins the
// solicited-node address and when it has its link-local address: in these lists of excluded sources are wrong.
func announced(t testing.TB, e *netnslab.Endpoint) {
	t.Helper()
	e.Peer().SetUp()
	c := e.Peer().Capture(netnslab.MLD)
	e.SetUp()
	own := e.LinkLocal().As16()
	solicited := netip.AddrFrom16([16]byte{0: 0xff, 1: 0x02, 11: 1, 12: 0xff, 13: own[13], 14: own[14], 15: own[15]})
	netnslab.WaitFor(t, "the kernel's announcements", patience, func() (bool, string) {
		n := 0
		for _, f := range c.Frames() {
			if f.Outgoing || f.ICMPv6() != 143 {
				continue
			}
			p, err := mld.Parse(f.IPv6(), mld.AcceptUnspecified)
			if err != nil {
				t.Fatal(err)
			}
			for r := range p.Message.Records.All() {
				if r.MulticastAddress == solicited {
					n++
				}
			}
		}
		return n >= 4, fmt.Sprintf("%d of 4 records", n)
	})
}

// wants waits until the mirror tells what is wanted of an address, and fails if it has told less before.
func (f *follower) wants(e *netnslab.Endpoint, addr netip.Addr, w want) {
	f.t.Helper()
	netnslab.WaitFor(f.t, fmt.Sprintf("%v to be told as %05b", addr, w), patience, func() (bool, string) {
		c := f.filter(addr)
		if told(c)&w != w && c.Joined {
			f.t.Errorf("%v: %05b is told, less than %05b", addr, told(c), w)
		}
		return told(c) == w, fmt.Sprintf("%+v is told", c)
	}, e.Node())
}

// ask asks the kernel for all that it has joined, and waits until it has answered and the mirror knows.
func (f *follower) ask(e *netnslab.Endpoint, m *kernel.Mute) {
	f.t.Helper()
	before := dropped(f.t, m)
	e.Peer().SendPacket(query(mld.Version2, netip.IPv6Unspecified()))
	netnslab.WaitFor(f.t, "the kernel's answer to be dropped", patience, func() (bool, string) {
		return dropped(f.t, m) > before, ""
	})
	e.Join(last)
	netnslab.WaitFor(f.t, "the sentinel to be told", patience, func() (bool, string) { return f.list()[last], "" }, e.Node())
}

// last is joined after something else, to see that the mirror has read about that.
var last = netip.MustParseAddr("ff05::5e:9")

// The kernel's list of sources is the same for two states of the sockets with different filters. What stood before the
// mirror is wanted from any source until the kernel tells.
func TestMirrorStandingSources(t *testing.T) {
	t.Parallel()
	var lists []string
	for _, tc := range []struct {
		name string
		join func(e *netnslab.Endpoint)
		want want
	}{
		{"{IN(0), IN(1)}", func(e *netnslab.Endpoint) { e.JoinSource(group, u[0]); e.JoinSource(group, u[1]) }, include(0, 1)},
		{"{IN(0,1), EX()}", func(e *netnslab.Endpoint) {
			m := e.JoinSource(group, u[0])
			e.Join(group)
			if err := m.AddSource(u[1]); err != nil {
				t.Fatal(err)
			}
		}, anything},
		{"{EX(0,1), EX(1,2)}", func(e *netnslab.Endpoint) {
			for _, list := range [][]netip.Addr{u[:2], u[1:3]} {
				if err := e.Join(group).SetFilter(true, list...); err != nil {
					t.Fatal(err)
				}
			}
		}, exclude(1)},
	} {
		t.Run(tc.name, func(t *testing.T) {
			e := pod(t, netnslab.Down)
			announced(t, e)
			tc.join(e)
			if b := strings.Split(run(t, e.Node(), "cat", "/proc/self/net/mcfilter6"), "\n"); len(lists) < 2 {
				slices.Sort(b)
				lists = append(lists, strings.Join(b, "\n"))
			}
			// What the kernel tells by itself is over.
			m := newMute(t, e, sources)
			netnslab.WaitFor(t, "the kernel's repeats", patience, func() (bool, string) {
				n := dropped(t, m)
				return n >= 1, fmt.Sprintf("%d dropped packets", n)
			})
			f := follow(t, e, m)
			f.wants(e, group, anything)
			f.ask(e, m)
			f.wants(e, group, tc.want)
		})
	}
	if len(lists) != 2 || lists[0] != lists[1] || !strings.Contains(lists[0], "ff05") {
		t.Errorf("the lists are not the same, so nothing is proved: %q", lists)
	}
}

// While the process has no descriptor left, the lists cannot be read. That passes, and is no end. No other test must run
// beside this one.
func TestMirrorWithoutDescriptors(t *testing.T) {
	lab := netnslab.New(t)
	_, e := lab.Veth(lab.Node("peer"), "eth0", lab.Node("pod"), "eth0", netnslab.Down)
	announced(t, e)
	c := e.Peer().Capture(netnslab.MLD)
	e.JoinSource(group, u[0])
	waitReport(e, c)
	m := openMirror(t, e, newMute(t, e, sources))
	defer m.Close()
	giveBack := takeDescriptors(t)
	for _, want := range []want{anything, include(0)} {
		changes, err := m.Next()
		if err != nil {
			t.Fatal(err)
		}
		if i := slices.IndexFunc(changes, func(c kernel.Change) bool { return c.Addr == group }); i < 0 || told(changes[i]) != want {
			t.Errorf("%+v is told, want %05b of %v", changes, want, group)
		}
		time.AfterFunc(100*time.Millisecond, giveBack)
	}
}

// takeDescriptors leaves the process none, until they are given back.
func takeDescriptors(t *testing.T) (giveBack func()) {
	t.Helper()
	var before unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_NOFILE, &before); err != nil {
		t.Fatal(err)
	}
	var taken []int
	giveBack = sync.OnceFunc(func() {
		for _, fd := range taken {
			_ = unix.Close(fd)
		}
		_ = unix.Setrlimit(unix.RLIMIT_NOFILE, &before)
	})
	t.Cleanup(giveBack)
	if err := unix.Setrlimit(unix.RLIMIT_NOFILE, &unix.Rlimit{Cur: 256, Max: before.Max}); err != nil {
		t.Fatal(err)
	}
	for {
		fd, err := unix.Open("/dev/null", unix.O_RDONLY|unix.O_CLOEXEC, 0)
		if err != nil {
			return giveBack
		}
		taken = append(taken, fd)
	}
}

// The filter of what stood before the mirror is told at once where the kernel's lists prove it, and otherwise nothing
// less than any source. The oracle is the kernel's answer to a query. (V2-16)
func TestV2_16_MirrorStandingFilters(t *testing.T) {
	t.Parallel()
	filter := func(t *testing.T, m *netnslab.Membership, exclude bool, sources ...netip.Addr) {
		t.Helper()
		if err := m.SetFilter(exclude, sources...); err != nil {
			t.Fatal(err)
		}
	}
	for _, tc := range []struct {
		name   string
		addr   netip.Addr
		join   func(t *testing.T, e *netnslab.Endpoint, addr netip.Addr)
		proved bool
		want   want
	}{
		{"IN(0)", group, func(_ *testing.T, e *netnslab.Endpoint, addr netip.Addr) {
			e.JoinSource(addr, u[0])
		}, true, include(0)},
		{"IN(0,1) one by one", group, func(t *testing.T, e *netnslab.Endpoint, addr netip.Addr) {
			if err := e.JoinSource(addr, u[0]).AddSource(u[1]); err != nil {
				t.Fatal(err)
			}
		}, true, include(0, 1)},
		{"IN(0,1,2) in one go", group, func(t *testing.T, e *netnslab.Endpoint, addr netip.Addr) {
			filter(t, e.JoinSource(addr, u[3]), false, u[:3]...)
		}, true, include(0, 1, 2)},
		{"IN(0), hidden", group, func(_ *testing.T, e *netnslab.Endpoint, addr netip.Addr) {
			e.JoinSource(addr, u[0])
			e.Join(netip.MustParseAddr("ff05::1:1"))
		}, true, include(0)},
		{"IN(0), IN(0,1)", channel, func(t *testing.T, e *netnslab.Endpoint, addr netip.Addr) {
			e.JoinSource(addr, u[0])
			if err := e.JoinSource(addr, u[0]).AddSource(u[1]); err != nil {
				t.Fatal(err)
			}
		}, true, include(0, 1)},
		{"IN(0), IN(1)", channel, func(_ *testing.T, e *netnslab.Endpoint, addr netip.Addr) {
			e.JoinSource(addr, u[0])
			e.JoinSource(addr, u[1])
		}, false, include(0, 1)},
		{"IN(0), EX()", channel, func(_ *testing.T, e *netnslab.Endpoint, addr netip.Addr) {
			e.JoinSource(addr, u[0])
			e.Join(addr)
		}, false, anything},
		{"IN(0,0), EX()", group, func(t *testing.T, e *netnslab.Endpoint, addr netip.Addr) { // looks like {IN(0), IN(0)}
			filter(t, e.JoinSource(addr, u[0]), false, u[0], u[0])
			e.Join(addr)
		}, false, anything},
		{"EX()", group, func(_ *testing.T, e *netnslab.Endpoint, addr netip.Addr) {
			e.Join(addr)
		}, true, anything},
		{"EX(0)", group, func(t *testing.T, e *netnslab.Endpoint, addr netip.Addr) {
			filter(t, e.Join(addr), true, u[0])
		}, false, exclude(0)},
		{"IN(0), EX(0)", channel, func(t *testing.T, e *netnslab.Endpoint, addr netip.Addr) {
			e.JoinSource(addr, u[0])
			filter(t, e.Join(addr), true, u[0])
		}, false, anything},
		{"IN(0), which was EX()", group, func(t *testing.T, e *netnslab.Endpoint, addr netip.Addr) {
			filter(t, e.Join(addr), false, u[0])
		}, true, include(0)},
		{"IN(0), which was beside EX()", group, func(t *testing.T, e *netnslab.Endpoint, addr netip.Addr) {
			other := e.Join(addr)
			e.JoinSource(addr, u[0])
			filter(t, other, false) // which leaves at once, whoever holds a copy of the socket
		}, true, include(0)},
	} {
		t.Run(tc.name, func(t *testing.T) {
			t.Parallel()
			e := pod(t, netnslab.Down)
			announced(t, e)
			tc.join(t, e, tc.addr)
			// What the kernel tells by itself is over.
			m := newMute(t, e, sources)
			netnslab.WaitFor(t, "the kernel's repeats", patience, func() (bool, string) {
				n := dropped(t, m)
				return n >= 1, fmt.Sprintf("%d dropped packets", n)
			})
			wire := e.Peer().Capture(netnslab.MLD)
			var reported atomic.Bool // of a kernel that is late: the last of its repeats
			f := followWith(t, e, m, func(c kernel.Change) {
				if c.Addr.IsInterfaceLocalMulticast() && c.Addr != netip.MustParseAddr("ff01::1") {
					t.Errorf("the mirror tells of its own address: %+v", c)
				}
			}, func(p mld.Packet) {
				for r := range p.Message.Records.All() {
					if r.MulticastAddress.IsInterfaceLocalMulticast() {
						t.Errorf("the kernel would report the mirror's own address: %+v", r)
					}
					if r.MulticastAddress == tc.addr {
						reported.Store(true)
					}
				}
			})
			first := anything
			if tc.proved {
				first = tc.want
			}
			f.equal(e)
			c := f.filter(tc.addr)
			if told(c) != first && !(told(c) == tc.want && reported.Load()) {
				t.Errorf("%+v is told at first, %05b, want %05b", c, told(c), first)
			}
			f.ask(e, m)
			f.wants(e, tc.addr, tc.want)
			for _, frame := range wire.Frames() {
				if !frame.Outgoing {
					t.Errorf("on the wire: %v", frame)
				}
			}
		})
	}
}

// While a program changes the filter of what stands, a mirror that begins never ends with less than is wanted.
func TestMirrorBeginsAmidChanges(t *testing.T) {
	t.Parallel()
	e := pod(t, netnslab.Down)
	announced(t, e)
	m := newMute(t, e, sources)
	member := e.JoinSource(group, u[0])
	random := rand.New(rand.NewPCG(rand.Uint64(), 0))
	for i := range 40 {
		stop := make(chan struct{})
		var wg sync.WaitGroup
		var exclude bool
		var list []netip.Addr
		wg.Go(func() {
			for {
				exclude, list = random.IntN(2) == 0, u[:1+random.IntN(len(u))]
				if exclude {
					list = nil
				}
				if err := member.SetFilter(exclude, list...); err != nil {
					t.Error(err)
				}
				select {
				case <-stop:
					return
				default:
				}
			}
		})
		mirror := openMirror(t, e, m)
		giveUp := time.AfterFunc(patience, func() { mirror.Close() })
		changes, err := mirror.Next()
		close(stop)
		wg.Wait()
		want := anything
		if !exclude {
			want = include([]int{0, 1, 2, 3}[:len(list)]...)
		}
		for err == nil && !slices.ContainsFunc(changes, func(c kernel.Change) bool {
			return c.Addr == group && told(c)&want == want
		}) {
			changes, err = mirror.Next()
		}
		if err != nil {
			t.Errorf("round %d: %05b is not told: %v", i, want, err)
		}
		giveUp.Stop()
		mirror.Close()
	}
}

// A record with more sources than a packet holds comes in parts.
func TestV2_47_MirrorManySources(t *testing.T) {
	t.Parallel()
	e := pod(t, netnslab.Down)
	announced(t, e)
	m := newMute(t, e, sources)
	f := follow(t, e, m)
	f.equal(e)
	var list []netip.Addr
	for i := range 200 {
		list = append(list, netip.AddrFrom16([16]byte{0x20, 1, 0x0d, 0xb8, 15: byte(i)}))
	}
	wait := func(what string, sources []netip.Addr, exclude bool) {
		t.Helper()
		netnslab.WaitFor(t, what, patience, func() (bool, string) {
			c := f.filter(group)
			return c.Joined && c.Exclude == exclude && slices.Equal(c.Sources, sources), fmt.Sprintf("%+v", c)
		}, e.Node())
	}
	for part := range slices.Chunk(list, 50) {
		s := e.JoinSource(group, part[0])
		for _, source := range part[1:] {
			if err := s.AddSource(source); err != nil {
				t.Fatal(err)
			}
		}
	}
	wait("ALLOW", list, false)
	other := e.Join(group)
	wait("TO_EX", nil, true)
	if err := other.Close(); err != nil {
		t.Fatal(err)
	}
	wait("TO_IN", list, false)
	f.ask(e, m)
	wait("IS_IN", list, false)
}

// The kernel may block a source right after it has allowed it: one that was excluded before it was wanted, left, and is
// wanted anew. It stays wanted.
func TestMirrorAllowedAndBlocked(t *testing.T) {
	t.Parallel()
	e := pod(t, netnslab.Down)
	announced(t, e)
	reported := make(chan bool, 1)
	f := followWith(t, e, newMute(t, e, sources), nil, func(p mld.Packet) {
		allows, blocks := 0, false
		for r := range p.Message.Records.All() {
			for s := range r.Sources.All() {
				switch {
				case r.MulticastAddress != group:
				case r.Type == mld.AllowNewSources:
					allows++
				case r.Type == mld.BlockOldSources:
					blocks = blocks || s == u[0]
				}
			}
		}
		if allows == 2 {
			select {
			case reported <- blocks:
			default:
			}
		}
	})
	f.equal(e)
	member := e.Join(group)
	// The last one leaves at once, whoever holds a copy of the socket.
	if err := errors.Join(member.SetFilter(true, u[0]), member.SetFilter(false, u[0]), member.SetFilter(false)); err != nil {
		t.Fatal(err)
	}
	e.JoinSource(group, u[0])
	e.JoinSource(group, u[1])
	select {
	case blocks := <-reported:
		t.Logf("the report that allows it blocks it: %v", blocks)
	case <-time.After(patience):
		t.Fatal("the kernel does not report")
	}
	e.Join(last)
	netnslab.WaitFor(t, "the sentinel to be told", patience, func() (bool, string) { return f.list()[last], "" }, e.Node())
	if c := f.filter(group); told(c) != include(0, 1) {
		t.Errorf("%+v is told, %05b, want %05b", c, told(c), include(0, 1))
	}
}

// When the log runs over, nothing less than everything is told until the kernel has told anew.
func TestMirrorLogOverflow(t *testing.T) {
	t.Cleanup(kernel.WithLogBuffer(4 << 10))
	e := pod(t, netnslab.Down)
	announced(t, e)
	m := newMute(t, e, sources)
	mirror := openMirror(t, e, m)
	defer mirror.Close()
	giveUp := time.AfterFunc(patience, func() { mirror.Close() })
	defer giveUp.Stop()
	if _, err := mirror.Next(); err != nil {
		t.Fatal(err)
	}
	next := func(w want) {
		t.Helper()
		for {
			changes, err := mirror.Next()
			if err != nil {
				t.Fatalf("%05b is not told: %v", w, err)
			}
			for _, c := range changes {
				if c.Addr == group && told(c) == w {
					return
				}
			}
		}
	}
	member := e.JoinSource(group, u[0])
	next(include(0))
	for _, addr := range addrs(60) {
		e.Join(addr)
		before := dropped(t, m)
		e.Peer().SendPacket(query(mld.Version2, addr))
		netnslab.WaitFor(t, "an answer to be dropped", patience, func() (bool, string) { return dropped(t, m) > before, "" })
	}
	if lost := lostEvents(t, e.Node()); lost == 0 {
		t.Fatal("the log has not run over")
	}
	if err := member.AddSource(u[1]); err != nil {
		t.Fatal(err)
	}
	next(anything)
	e.Peer().SendPacket(query(mld.Version2, group))
	next(include(0, 1))
}

// A kernel in MLDv1 mode tells no sources, and no change of them.
func TestMirrorSourcesVersion1(t *testing.T) {
	t.Parallel()
	e := pod(t, netnslab.Down)
	announced(t, e)
	m := newMute(t, e, sources)
	f := follow(t, e, m)
	f.equal(e)
	member := e.JoinSource(group, u[0])
	f.wants(e, group, include(0))
	e.Node().SetSysctl("net/ipv6/conf/eth0/force_mld_version", "1")
	f.ask(e, m)
	f.wants(e, group, anything)
	e.JoinSource(channel, u[0])
	f.wants(e, channel, anything)
	if err := member.AddSource(u[1]); err != nil {
		t.Fatal(err)
	}
	e.Node().SetSysctl("net/ipv6/conf/eth0/force_mld_version", "0")
	f.ask(e, m)
	f.wants(e, group, include(0, 1))
	f.wants(e, channel, include(0))
}

// When its link-local address has become valid, the kernel tells a list of excluded sources that has those in it which
// somebody wants. It must not count.
func TestMirrorAnnouncement(t *testing.T) {
	t.Parallel()
	e := pod(t, netnslab.Down)
	e.Peer().SetUp()
	if err := e.Join(group).SetFilter(true, u[0], u[2]); err != nil {
		t.Fatal(err)
	}
	e.JoinSource(group, u[2])
	m := newMute(t, e, sources)
	f := follow(t, e, m)
	f.wants(e, group, anything)
	e.SetUp()
	e.LinkLocal()
	// Both announcements, and both times that the joins are told.
	netnslab.WaitFor(t, "the kernel's announcements", patience, func() (bool, string) {
		if w := told(f.filter(group)); w&exclude(0) != exclude(0) {
			t.Errorf("%05b is told, less than %05b", w, exclude(0))
		}
		n := dropped(t, m)
		return n >= 4, fmt.Sprintf("%d dropped packets", n)
	})
	f.ask(e, m)
	f.wants(e, group, exclude(0))
}

// nextOf returns what waits for the next change of an address, after what stands. Changes of others that come before are
// kept until they are asked for. The mirror ends with the test.
func nextOf(t *testing.T, m *kernel.Mirror) func(addr netip.Addr) kernel.Change {
	t.Helper()
	giveUp := time.AfterFunc(patience, func() { m.Close() })
	t.Cleanup(func() {
		giveUp.Stop()
		m.Close()
	})
	if _, err := m.Next(); err != nil {
		t.Fatal(err)
	}
	var kept []kernel.Change
	return func(addr netip.Addr) kernel.Change {
		t.Helper()
		for {
			if i := slices.IndexFunc(kept, func(c kernel.Change) bool { return c.Addr == addr }); i >= 0 {
				c := kept[i]
				kept = slices.Delete(kept, i, i+1)
				return c
			}
			changes, err := m.Next()
			if err != nil {
				t.Fatal(err)
			}
			kept = append(kept, changes...)
		}
	}
}

// V2-58: an address for source-specific multicast is not told as one of any source because its sources are not there
// yet. Here the kernel's list hides them; it tells of the join before it adds them, too. If nobody reports, it is told.
func TestV2_58_MirrorAwaitsSources(t *testing.T) {
	restore := kernel.WithSourcesDelay(time.Hour) // the kernel's next report may be a repeat that is due within a second
	defer func() { restore() }()
	e := pod(t, netnslab.Down)
	announced(t, e)
	next := nextOf(t, openMirror(t, e, newMute(t, e, sources)))
	for i := range 5 {
		member := e.JoinSource(channel, u[0])
		hiding := e.Join(addrs(5)[i])
		if c := next(channel); told(c) != include(0) {
			t.Errorf("%+v is told", c)
		}
		if err := errors.Join(member.Close(), hiding.Close()); err != nil {
			t.Fatal(err)
		}
		if c := next(channel); c.Joined {
			t.Errorf("%+v is told", c)
		}
	}
	restore()
	e.SetDown()
	e.Join(channel)
	if c := next(channel); told(c) != anything {
		t.Errorf("%+v is told", c)
	}
}

// V2-58: sources are awaited for as long as they may take, each time, also while those of another address are awaited
// already; and what has been reported meanwhile counts, also where nobody could look before the time was up.
func TestV2_58_MirrorAwaitsEach(t *testing.T) {
	const delay = 200 * time.Millisecond
	restore := kernel.WithSourcesDelay(delay)
	defer func() { restore() }()
	e := pod(t, netnslab.Down)
	announced(t, e)
	mute := newMute(t, e, sources)
	next := nextOf(t, openMirror(t, e, mute))
	hides := addrs(3)

	before := dropped(t, mute)
	member := e.JoinSource(channel, u[0])
	e.Join(hides[0])
	next(hides[0])
	netnslab.WaitFor(t, "the kernel's report to be dropped", patience, func() (bool, string) { return dropped(t, mute) > before, "" })
	<-time.After(delay)
	if c := next(channel); told(c) != include(0) {
		t.Errorf("%+v is told, want %05b, which was reported", c, include(0))
	}

	// From here on no report gets as far as to the log.
	run(t, e.Node(), "nft", "table ip6 before { chain c { type filter hook output priority -500; icmpv6 type 143 drop; }; }")
	if err := member.Close(); err != nil {
		t.Fatal(err)
	}
	e.Join(netip.MustParseAddr("ff3e::8000:1"))
	e.Join(hides[1])
	next(hides[1])
	<-time.After(delay / 2)
	since := time.Now()
	e.JoinSource(channel, u[0])
	e.Join(hides[2])
	for c := next(channel); told(c) != anything; c = next(channel) {
	}
	if took := time.Since(since); took < delay {
		t.Errorf("any source is told after %v, want %v at least", took, delay)
	}
}

// A program may name any address for a source.
func TestMirrorImpossibleSources(t *testing.T) {
	t.Parallel()
	e := pod(t, netnslab.Down)
	announced(t, e)
	f := follow(t, e, newMute(t, e, sources))
	f.equal(e)
	for _, s := range []string{"ff02::5", "::", "::ffff:192.0.2.1"} {
		source := netip.MustParseAddr(s)
		member := e.Join(group)
		f.wants(e, group, anything)
		if err := member.SetFilter(false, source); err != nil {
			t.Fatal(err)
		}
		if err := member.SetFilter(false, u[1], source); err != nil {
			t.Fatal(err)
		}
		f.wants(e, group, include(1))
		if err := member.Close(); err != nil {
			t.Fatal(err)
		}
		f.wants(e, group, nothing)
	}
}

// Without a mute that logs for sources, every membership is one of any source.
func TestMirrorWithoutSources(t *testing.T) {
	t.Parallel()
	e := pod(t)
	f := follow(t, e, newMute(t, e, hints))
	e.JoinSource(group, u[0])
	e.JoinSource(channel, u[0])
	f.equal(e)
	f.wants(e, group, anything)
	f.wants(e, channel, anything)
}

// benchmarkSource measures from before the setsockopt of a source-specific join until Next has told it so.
func benchmarkSource(b *testing.B, group netip.Addr) {
	e := pod(b, netnslab.Down)
	announced(b, e)
	m := openMirror(b, e, newMute(b, e, sources))
	defer m.Close()
	type result struct {
		at   time.Time
		want want
	}
	results := make(chan result, 16)
	go func() {
		for {
			changes, err := m.Next()
			if err != nil {
				return
			}
			at := time.Now()
			for _, c := range changes {
				if c.Addr == group {
					results <- result{at, told(c)}
				}
			}
		}
	}()
	var times []time.Duration
	var corrected int
	member := e.JoinSource(group, u[0])
	leave := func(r result) {
		b.Helper()
		if err := member.DropSource(u[0]); err != nil {
			b.Fatal(err)
		}
		for r.want != nothing {
			r = <-results
		}
	}
	leave(<-results)
	for b.Loop() {
		start := time.Now()
		if err := member.AddSource(u[0]); err != nil {
			b.Fatal(err)
		}
		r := <-results
		for ; r.want != include(0); r = <-results {
			corrected++
		}
		times = append(times, r.at.Sub(start))
		b.StopTimer()
		leave(r)
		b.StartTimer()
	}
	slices.Sort(times)
	b.ReportMetric(float64(times[len(times)/2].Microseconds()), "µs-median")
	b.ReportMetric(float64(times[len(times)*95/100].Microseconds()), "µs-p95")
	b.ReportMetric(float64(corrected)/float64(len(times)), "corrections/op")
}

func BenchmarkNextBySource(b *testing.B)  { benchmarkSource(b, group) }
func BenchmarkNextByChannel(b *testing.B) { benchmarkSource(b, channel) }

// BenchmarkMuted is a join and a leave in MLDv1 mode, with a packet for each that is dropped before setsockopt returns.
// Whoever reads has an event to read for each, too.
func BenchmarkMuted(b *testing.B) {
	for _, bm := range []struct {
		name    string
		options kernel.MuteOptions
		mirror  bool
		read    bool
	}{
		{"drop", mutes, false, false},
		{"drop and log, unread", sources, true, false},
		{"drop, events read", mutes, true, true},
		{"drop and log, both read", sources, true, true},
	} {
		b.Run(bm.name, func(b *testing.B) {
			e := pod(b)
			e.LinkLocal()
			e.Node().SetSysctl("net/ipv6/conf/eth0/force_mld_version", "1")
			m := newMute(b, e, bm.options)
			if bm.mirror {
				mirror := openMirror(b, e, m)
				defer mirror.Close()
				if bm.read {
					go func() {
						for {
							if _, err := mirror.Next(); err != nil {
								return
							}
						}
					}()
				}
			}
			j := newJoins(b, e)
			for b.Loop() {
				if err := errors.Join(j.Join(group), j.Leave(group)); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}
