package daemon

import (
	"fmt"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"

	"github.com/seed-aaab8e3a/cni-mld/mld"
	"github.com/seed-aaab8e3a/cni-mld/mld/agent"
	"github.com/seed-aaab8e3a/cni-mld/mld/bridge"
	"github.com/seed-aaab8e3a/cni-mld/mld/link"
	"github.com/seed-aaab8e3a/cni-mld/mld/listener"
	"github.com/seed-aaab8e3a/cni-mld/plugin/api"
)

// The reasons for which the three views of a group differ. What each looks like on the real kernel is the end to end
// tests' to say.
func TestMarks(t *testing.T) {
	t.Parallel()
	var (
		group   = netip.MustParseAddr("ff05::1")
		channel = netip.MustParseAddr("ff3e::8000:1")
		a, b    = netip.MustParseAddr("fd00::a"), netip.MustParseAddr("fd00::b")
		any     = listener.AnySource
		from    = func(sources ...netip.Addr) listener.Filter { return listener.Filter{Sources: sources} }
		but     = func(sources ...netip.Addr) listener.Filter {
			return listener.Filter{Mode: listener.Exclude, Sources: sources}
		}
	)
	held := func(f listener.Filter, ids ...listener.SubscriberID) *agent.Group {
		g := &agent.Group{Address: listener.Address{Addr: group, Mode: f.Mode, Sources: f.Sources}}
		for _, id := range ids {
			g.Wanted = append(g.Wanted, listener.Subscription{ID: id, Filter: f})
		}
		return g
	}
	because := func(why agent.Unreported) *agent.Group {
		g := held(any, agent.KernelID)
		g.Why, g.Words = why, "so it is"
		return g
	}
	declared := func(deliver bool) *api.Group { return &api.Group{Addr: group, Deliver: deliver} }
	star := bridge.Entry{Group: group, Timer: 200 * time.Second}
	starInclude := bridge.Entry{Group: group, Include: true}
	source := func(s netip.Addr, blocked bool) bridge.Entry {
		return bridge.Entry{Group: group, Source: s, Blocked: blocked}
	}
	var many []netip.Addr
	kept := []bridge.Entry{starInclude} // of them, by a Linux bridge
	for i := range 33 {
		many = append(many, netip.AddrFrom16([16]byte{0: 0xfd, 15: byte(i)}))
		kept = append(kept, source(many[i], false))
	}
	kept = kept[:33]
	fine := bridge.State{Snooping: true, Querier: true, MLDVersion: 2, HashMax: 4096, Forwarding: true}
	with := func(change func(*bridge.State)) bridge.State {
		s := fine
		change(&s)
		return s
	}
	for name, c := range map[string]struct {
		held     *agent.Group
		declared *api.Group
		ipv6Off  bool
		mtu      int // that of no interface
		dad      bool
		version  mld.Version // 2
		noPort   bool
		unseen   string       // why there is no port
		pulled   string       // why it is missed
		bridge   bridge.State // fine
		entries  []bridge.Entry
		want     []string
	}{
		"fine":              {held: held(any, agent.KernelID), entries: []bridge.Entry{star}},
		"fine with sources": {held: held(from(a, b), agent.KernelID), entries: []bridge.Entry{starInclude, source(a, false), source(b, false)}},
		"fine, excluding":   {held: held(but(a), agent.KernelID), entries: []bridge.Entry{star, source(a, true)}},
		"any serves one":    {held: held(from(a), agent.KernelID), entries: []bridge.Entry{star}},
		"no bridge":         {held: held(any, agent.KernelID), noPort: true},
		"bridge elsewhere":  {held: held(any, agent.KernelID), noPort: true, unseen: "so it is", want: []string{"bridge-unseen so it is"}},
		"pulled":            {held: held(any, agent.KernelID), noPort: true, pulled: "so it is", want: []string{"no-port! so it is"}},
		"delivered":         {held: held(any, agent.KernelID), declared: declared(true), entries: []bridge.Entry{star}},

		"never":    {held: because(agent.NeverReported), want: []string{"never-reported"}},
		"IPv6 off": {held: because(agent.IPv6Off), ipv6Off: true, want: []string{"ipv6-off!"}},
		"down":     {held: because(agent.LinkDown), want: []string{"link-down!"}},
		"no addr":  {held: because(agent.NoLinkLocal), want: []string{"no-link-local!"}},
		"in DAD":   {held: because(agent.NoLinkLocal), dad: true, entries: []bridge.Entry{star}, want: []string{`tentative reported from "::" until`}},
		"refused":  {held: because(agent.Refused), want: []string{"send-refused!"}},
		"due":      {held: because(agent.ReportDue), want: []string{"report-due!"}},
		"in DAD, no entry": {
			held: because(agent.NoLinkLocal), dad: true, want: []string{"tentative not reported: so it is"},
		},
		"declared alone, IPv6 off": {
			declared: declared(true), ipv6Off: true, mtu: 1500, want: []string{"ipv6-off! disable_ipv6"},
		},
		"declared alone, small MTU": {
			declared: declared(true), ipv6Off: true, mtu: 1279, want: []string{"ipv6-off! 1279"},
		},
		"declared alone": {declared: declared(true), want: []string{"not-joined!", "not-held!"}},
		"deliver false": {
			held: held(any, 1), declared: declared(false), entries: []bridge.Entry{star}, want: []string{"not-delivered"},
		},
		"deliver false, and joined": {held: held(any, agent.KernelID, 1), declared: declared(false), entries: []bridge.Entry{star}},

		"snooping off": {held: held(any, agent.KernelID), bridge: with(func(s *bridge.State) { s.Snooping, s.Querier = false, false }),
			want: []string{"snooping-off"}},
		"table full": {held: held(any, agent.KernelID), bridge: with(func(s *bridge.State) { s.Snooping, s.Querier, s.Groups = false, false, 3 }),
			want: []string{"table-full"}},
		"no querier": {held: held(any, agent.KernelID), bridge: with(func(s *bridge.State) { s.Querier = false }),
			want: []string{"no-querier"}},
		"no querier, and an entry": {held: held(any, agent.KernelID), bridge: with(func(s *bridge.State) { s.Querier = false }),
			entries: []bridge.Entry{star}},
		"port full": {held: held(any, agent.KernelID), bridge: with(func(s *bridge.State) { s.Groups, s.MaxGroups = 2, 2 }),
			want: []string{"port-full!"}},
		"port down": {held: held(any, agent.KernelID), bridge: with(func(s *bridge.State) { s.Forwarding = false }),
			entries: []bridge.Entry{star}, want: []string{"port-down!"}},
		"not in the MDB": {held: held(any, agent.KernelID), want: []string{"not-in-mdb!"}},
		"blocked": {held: held(from(a), agent.KernelID), entries: []bridge.Entry{star, source(a, true)},
			want: []string{"sources-missing! fd00::a"}},
		"one source missing": {held: held(from(a, b), agent.KernelID), entries: []bridge.Entry{starInclude, source(a, false)},
			want: []string{"sources-missing! fd00::b"}},
		"one source more than a bridge keeps": {held: held(from(many...), agent.KernelID), entries: kept,
			want: []string{"sources-missing! fd00::20: bridge br0 has no entry for it on port veth0: a Linux bridge keeps 32 sources"}},
		"any source missing beside many": {held: held(any, agent.KernelID), entries: kept,
			want: []string{"sources-missing! any source: bridge br0 has no entry for it on port veth0."}},
		"any source missing": {held: held(any, agent.KernelID), entries: []bridge.Entry{starInclude, source(a, false)},
			want: []string{"sources-missing! any source"}},
		"one source missing, no querier": {held: held(from(a), agent.KernelID), entries: []bridge.Entry{starInclude},
			bridge: with(func(s *bridge.State) { s.Querier = false })},
		"MLDv1 with sources": {held: held(from(a), agent.KernelID), version: mld.Version1, entries: []bridge.Entry{star},
			want: []string{"sources-mldv1"}},
		"bridge of MLDv1": {held: held(from(a), agent.KernelID), bridge: with(func(s *bridge.State) { s.MLDVersion = 1 }),
			entries: []bridge.Entry{star}, want: []string{"sources-bridge"}},
		"an application wants any": {
			held: held(any, agent.KernelID), declared: &api.Group{Addr: group, Mode: api.Include, Sources: []netip.Addr{a}, Deliver: true},
			entries: []bridge.Entry{star}, want: []string{"sources-any"},
		},
		"a channel from any source": {
			held: &agent.Group{
				Address: listener.Address{Addr: channel, Mode: listener.Exclude},
				Wanted:  []listener.Subscription{{ID: agent.KernelID, Filter: any}},
			},
			entries: []bridge.Entry{{Group: channel, Timer: 200 * time.Second}}, want: []string{"sources-any"},
		},
		"unwanted": {entries: []bridge.Entry{star}, want: []string{"unwanted"}},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			seen := &sight{state: agent.State{Version: mld.Version2, Link: link.State{Name: "eth0", Up: true, MTU: c.mtu, IPv6: !c.ipv6Off}}}
			if c.dad {
				seen.state.Link.Tentative = netip.MustParseAddr("fe80::1")
			}
			if c.version != 0 {
				seen.state.Version = c.version
			}
			if c.held != nil {
				seen.groups = append(seen.groups, *c.held)
			}
			seen.unseen, seen.pulled = c.unseen, c.pulled
			if !c.noPort {
				seen.port = &port{bridge: "br0", name: "veth0", state: c.bridge, entries: c.entries}
				if c.bridge == (bridge.State{}) {
					seen.port.state = fine
				}
			}
			v := &view{key: api.Attachment{Network: "lab", ContainerID: "c1", IfName: "eth0"}, settings: &api.Settings{}}
			if c.declared != nil {
				v.settings.Groups = append(v.settings.Groups, *c.declared)
			}
			list := compare(seen, api.Interface{}, nil, []*view{v})
			about := group
			if c.held != nil {
				about = c.held.Addr
			}
			if len(list) != 1 || list[0].Group != about {
				t.Fatalf("%+v", list)
			}
			var got []string
			for i, m := range list[0].Marks {
				text := m.Code
				if m.Fault {
					text += "!"
				}
				if m.Text == "" {
					t.Errorf("%s says nothing", m.Code)
				}
				if i < len(c.want) { // and what it has to name
					if _, name, ok := strings.Cut(c.want[i], " "); ok && strings.Contains(m.Text+".", name) {
						text += " " + name
					}
				}
				got = append(got, text)
			}
			if diff := cmp.Diff(c.want, got, cmpopts.EquateEmpty()); diff != "" {
				t.Errorf("marks (-want +got):\n%s%+v", diff, list[0].Marks)
			}
			if (list[0].Reported != nil) != (c.held != nil && c.held.Why == agent.Reported) {
				t.Errorf("reported: %+v", list[0].Reported)
			}
		})
	}
}

// In duplicate address detection an attachment is ready if the bridge forwards.
func TestConditionInDAD(t *testing.T) {
	t.Parallel()
	group := netip.MustParseAddr("ff05::1")
	v := &view{settings: &api.Settings{Groups: []api.Group{{Addr: group}}}}
	seen := &sight{state: agent.State{Link: link.State{Name: "eth0", Up: true, IPv6: true, Tentative: netip.MustParseAddr("fe80::1")}}}
	for want, mdb := range map[string]*api.MDB{api.StateReady: {}, api.StateDegraded: nil} {
		g := &api.GroupStatus{Group: group, MDB: mdb, Marks: []api.Mark{api.NewMark(api.MarkTentative, "so it is")}}
		if state, reason := condition(v, seen, []*api.GroupStatus{g}); state != want || (reason == "") != (mdb != nil) {
			t.Errorf("MDB %+v: %s, %q", mdb, state, reason)
		}
	}
}

// A line has a bound, so lists have.
func TestFiltersAreCut(t *testing.T) {
	t.Parallel()
	sources := make([]netip.Addr, 3*api.MaxSources)
	entries := []bridge.Entry{{}}
	for i := range sources {
		sources[i] = netip.AddrFrom16([16]byte{0: 0xfd, 14: byte(i >> 8), 15: byte(i)})
		entries = append(entries, bridge.Entry{Source: sources[i], Blocked: i%2 == 0})
	}
	if f := filterOf(true, sources); len(f.Sources) != api.MaxSources || f.Omitted != 2*api.MaxSources || f.Mode != api.Exclude {
		t.Errorf("%d sources, %d omitted, %v", len(f.Sources), f.Omitted, f.Mode)
	}
	if f := filterOf(false, sources[:3]); len(f.Sources) != 3 || f.Omitted != 0 || f.Mode != api.Include {
		t.Errorf("%+v", f)
	}
	if m := mdbOf(entries); len(m.Sources)+len(m.Blocked) != api.MaxSources || m.Omitted != 2*api.MaxSources || m.Mode != api.Exclude {
		t.Errorf("%d sources, %d blocked, %d omitted, %v", len(m.Sources), len(m.Blocked), m.Omitted, m.Mode)
	}
}

// A watcher that does not read loses events, and is told where and how many.
func TestWatcherLosesEvents(t *testing.T) {
	t.Parallel()
	var w watchers
	key := api.Attachment{Network: "lab", ContainerID: "c1", IfName: "eth0"}
	one, err := w.enter(api.Attachment{Network: "lab"})
	if err != nil {
		t.Fatal(err)
	}
	event := func(network string) *api.Event {
		k := key
		k.Network = network
		return &api.Event{Kind: api.EventLeft, Attachments: []api.Attachment{k}}
	}
	const beyond = 10
	for range maxQueue + beyond {
		w.publish(nil, event("other"), event("lab"))
	}
	first := w.take(one)
	w.publish(nil, event("lab"))
	second := w.take(one)
	last := first[len(first)-1]
	if len(first) != maxQueue || last.Kind != api.EventLost || last.Lost != beyond+1 {
		t.Errorf("%d events, the last one %+v", len(first), last)
	}
	if len(second) != 1 || second[0].Kind != api.EventLeft {
		t.Errorf("afterwards: %+v", second)
	}
	for range maxWatchers - 1 {
		if _, err := w.enter(key); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := w.enter(key); err == nil {
		t.Errorf("%d watchers", maxWatchers+1)
	}
	w.leave(one)
	if _, err := w.enter(key); err != nil {
		t.Errorf("after one has gone: %v", err)
	}
}

// The kernel tells of every change of an entry; a watcher is told of what is forwarded from then on, and of what no longer.
func TestTableTellsDifferences(t *testing.T) {
	t.Parallel()
	group, source := netip.MustParseAddr("ff05::1"), netip.MustParseAddr("fd00::1")
	i := &iface{name: "eth0"}
	i.shown.Store(&label{})
	p := tablePort{iface: i, bridge: "br0", name: "veth0", entries: make(map[entryKey]entryKind)}
	star := bridge.Entry{Group: group}
	include := bridge.Entry{Group: group, Include: true}
	one := bridge.Entry{Group: group, Source: source}
	blocked := bridge.Entry{Group: group, Source: source, Blocked: true}
	for n, step := range []struct {
		entry bridge.Entry
		gone  bool
		want  string
	}{
		{include, false, ""}, // as every entry begins
		{star, false, "mdb exclude []"},
		{star, false, ""}, // its time
		{one, false, "mdb include [fd00::1]"},
		{include, false, "mdb-gone exclude []"},
		{include, true, ""},
		{star, false, "mdb exclude []"},
		{blocked, false, "mdb exclude [fd00::1]"},
		{blocked, true, "mdb-gone exclude [fd00::1]"},
		{one, false, "mdb include [fd00::1]"},
		{one, true, "mdb-gone include [fd00::1]"},
		{star, true, "mdb-gone exclude []"},
		{star, true, ""},
	} {
		got := ""
		for _, e := range p.change(bridge.Change{Entry: step.entry, Gone: step.gone}) {
			got += fmt.Sprint(e.Kind, " ", e.Filter.Mode, " ", e.Filter.Sources)
			if e.Group != group || e.Bridge != "br0" || e.Port != "veth0" {
				t.Errorf("%+v", e)
			}
		}
		if got != step.want {
			t.Errorf("step %d: %q, want %q", n, got, step.want)
		}
	}
	if len(p.entries) != 0 {
		t.Errorf("left: %v", p.entries)
	}
}
