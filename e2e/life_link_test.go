package e2e

import (
	"cmp"
	"net/netip"
	"testing"
	"time"

	"github.com/containernetworking/cni/pkg/types"

	"github.com/seed-aaab8e3a/cni-mld/plugin/api"
)

// What happens to the interface of a container, and is over again. While it lasts CHECK says what it is; afterwards what
// is wanted is reported anew, at once and as often as a join is, or not at all where the wire cannot know of it.
func TestV1_30_V2_61_B6_LifeOfALink(t *testing.T) {
	t.Parallel()
	linkLocal := func(l *life) netip.Prefix { return netip.PrefixFrom(l.alice.eth0.LinkLocal(), 64) }
	for _, c := range []struct {
		name    string
		prepare func(l *life)
		begin   func(l *life)
		says    []string // CHECK meanwhile; nil: it passes
		code    uint     // of that; 0 means api.CodeNotReady
		flap    bool     // it is over before anybody looks
		end     func(l *life)
		silent  bool // nothing is to be reported
		forgets bool // the kernel forgets what the application has joined

		tentative bool // the address stays so
	}{
		{
			name:  "down and up",
			begin: func(l *life) { l.alice.eth0.SetDown() }, says: []string{"interface eth0", "the link is down"},
			end: func(l *life) { l.alice.eth0.SetUp() },
		},
		{
			name: "down and up at once", flap: true,
			begin: func(l *life) { l.alice.eth0.SetDown() },
			end:   func(l *life) { l.alice.eth0.SetUp() },
		},
		{
			name:  "carrier lost and back",
			begin: func(l *life) { l.alice.eth0.Peer().SetDown() }, says: []string{"interface eth0", "has no carrier"},
			end: func(l *life) { l.alice.eth0.Peer().SetUp() },
		},
		{
			name: "carrier lost and back at once", flap: true,
			begin: func(l *life) { l.alice.eth0.Peer().SetDown() },
			end:   func(l *life) { l.alice.eth0.Peer().SetUp() },
		},
		{
			name:  "IPv6 off and on",
			begin: func(l *life) { l.sysctl("disable_ipv6", "1") }, says: []string{"net.ipv6.conf.eth0.disable_ipv6"},
			end: func(l *life) { l.sysctl("disable_ipv6", "0") },
		},
		{
			name: "IPv6 off and on without an address",
			prepare: func(l *life) {
				l.ip("link", "set", "dev", "eth0", "addrgenmode", "none")
				l.ip("-6", "addr", "flush", "dev", "eth0")
				l.check("without an address", api.CodeNotReady, "no valid link-local address")
			},
			begin: func(l *life) { l.sysctl("disable_ipv6", "1") }, says: []string{"net.ipv6.conf.eth0.disable_ipv6"},
			end: func(l *life) {
				l.ip("link", "set", "dev", "eth0", "addrgenmode", "eui64")
				l.sysctl("disable_ipv6", "0")
			},
		},
		{
			name:  "link-local address removed and added",
			begin: func(l *life) { l.alice.eth0.DelAddr(linkLocal(l)) }, says: []string{"no valid link-local address"},
			end: func(l *life) { l.alice.eth0.AddAddr(netip.MustParsePrefix("fe80::a11c:e/64")) },
		},
		{
			name:  "MTU below 1280 and back",
			begin: func(l *life) { l.ip("link", "set", "dev", "eth0", "mtu", "1279") }, says: []string{"MTU of 1279 octets"},
			end: func(l *life) { l.ip("link", "set", "dev", "eth0", "mtu", "1500") }, forgets: true,
		},
		{
			name: "duplicate address detection",
			prepare: func(l *life) {
				l.sysctl("accept_dad", "1")
				l.sysctl("dad_transmits", "100") // a second each
			},
			begin: func(l *life) {
				l.alice.eth0.SetDown()
				l.alice.eth0.SetUp()
			},
			says: []string{"no valid link-local address"},
			end: func(l *life) {
				l.sysctl("dad_transmits", "1")
				l.alice.eth0.SetDown()
				l.alice.eth0.SetUp()
			},
		},
		{
			name: "optimistic duplicate address detection",
			prepare: func(l *life) {
				l.sysctl("accept_dad", "1")
				l.sysctl("optimistic_dad", "1")
				l.sysctl("dad_transmits", "100")
			},
			begin: func(l *life) { l.alice.eth0.SetDown() }, says: []string{"the link is down"}, tentative: true,
			end: func(l *life) {
				l.alice.eth0.SetUp()
				l.wait("optimistic address", func() (bool, string) {
					out := runIn(l.tb, l.alice.Node, "ip", "-6", "addr", "show", "dev", "eth0", "optimistic")
					return len(out) > 0, string(out)
				})
			},
		},
		{
			name: "link-local address that somebody else has",
			prepare: func(l *life) {
				runIn(l.tb, l.good.Node, "ip", "addr", "add", linkLocal(l).String(), "dev", "eth0", "nodad")
				node := solicited(linkLocal(l).Addr())
				l.wait("entry, by which the question gets there", func() (bool, string) { return l.inMDB(node, l.good), node.String() })
				l.sysctl("accept_dad", "1")
			},
			begin: func(l *life) {
				l.alice.eth0.SetDown()
				l.alice.eth0.SetUp()
				l.wait("duplicate", func() (bool, string) {
					out := runIn(l.tb, l.alice.Node, "ip", "-6", "addr", "show", "dev", "eth0", "dadfailed")
					return len(out) > 0, string(out)
				})
			},
			says: []string{"is a duplicate"},
			end: func(l *life) {
				runIn(l.tb, l.good.Node, "ip", "addr", "flush", "dev", "eth0", "scope", "link")
				l.good.eth0.AddAddr(netip.MustParsePrefix("fe80::600d/64"))
				l.alice.eth0.SetDown()
				l.alice.eth0.SetUp()
			},
		},
		{
			name:  "another name",
			begin: func(l *life) { l.ip("link", "set", "dev", "eth0", "name", "net1") },
			says:  []string{"CNI_IFNAME", "eth0"}, code: types.ErrInvalidEnvironmentVariables,
			end: func(l *life) { l.ip("link", "set", "dev", "net1", "name", "eth0") }, silent: true,
		},
		{
			name: "another MAC address",
			begin: func(l *life) {
				l.macs = append(l.macs, "02:00:00:00:be:ef")
				l.ip("link", "set", "dev", "eth0", "address", l.macs[1])
			},
			end: func(*life) {}, silent: true,
		},
		{
			name:  "another MTU",
			begin: func(l *life) { l.ip("link", "set", "dev", "eth0", "mtu", "1400") },
			end:   func(l *life) { l.ip("link", "set", "dev", "eth0", "mtu", "1500") }, silent: true,
		},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			inEachVoice(t, func(t *testing.T, l *life) {
				if c.prepare != nil {
					c.prepare(l)
				}
				begin := time.Now()
				muted, _ := l.alice.muted()
				c.begin(l)
				if !c.flap {
					l.check("meanwhile", cmp.Or(c.code, api.CodeNotReady), c.says...)
					for _, s := range l.said(begin) {
						if !s.src.IsUnspecified() && c.says != nil && !solicitedNode.Contains(s.addr) {
							t.Errorf("said meanwhile: %v", s)
						}
					}
					begin = time.Now()
				}
				c.end(l)
				if c.forgets {
					l.members = nil
				}
				if !c.tentative {
					l.alice.eth0.LinkLocal()
				}
				valid := time.Since(begin)
				wanted := l.wanted()
				var took time.Duration
				if !c.silent {
					took = l.waitTold("what is wanted, anew", begin, wanted)
				}
				l.check("afterwards", 0)
				kinds := l.judge(begin, wanted, !c.silent)
				again, _ := l.alice.muted()
				t.Logf("a link-local address after %v, everything told after %v: %v; General Queries: %d; of the kernel's dropped: %d",
					valid.Round(100*time.Microsecond), took.Round(100*time.Microsecond), kinds, l.queries(begin), again-muted)
				if c.forgets {
					again := time.Now()
					l.joinAll()
					l.waitTold("what the application joins again", again, []netip.Addr{groupC, groupT})
				}
				if len(l.macs) > 1 {
					l.answersFrom(l.macs[1])
				}
				l.forwarded("cni0", l.good)
			})
		})
	}
}

// answersFrom asks, and wants the answer from a MAC address.
func (l *life) answersFrom(mac string) {
	l.tb.Helper()
	begin := time.Now()
	l.query(general, 0)
	l.waitFrames("answer", l.alice.heard, l.own, begin, []netip.Addr{groupA}, 1)
	for _, s := range l.said(begin) {
		if s.mac != mac {
			l.tb.Errorf("%v comes from %s, want %s", s, s.mac, mac)
		}
	}
}
