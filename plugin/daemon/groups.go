package daemon

import (
	"context"
	"fmt"
	"net/netip"
	"slices"
	"strings"

	"github.com/seed-aaab8e3a/cni-mld/mld"
	"github.com/seed-aaab8e3a/cni-mld/mld/agent"
	"github.com/seed-aaab8e3a/cni-mld/mld/bridge"
	"github.com/seed-aaab8e3a/cni-mld/mld/listener"
	"github.com/seed-aaab8e3a/cni-mld/plugin/api"
)

// groups tells of each multicast address of each interface.
func (d *Daemon) groups(ctx context.Context, r *api.Request, s *survey, say func(*api.Line) error) error {
	told, all := make(map[*iface]bool), d.viewsByInterface()
	for _, v := range d.views(r.Attachment) {
		if told[v.iface] {
			continue
		}
		told[v.iface] = true
		_, groups, err := s.judge(ctx, v.iface, all[v.iface])
		if err != nil {
			return err
		}
		for _, g := range groups {
			if err := say(&api.Line{Group: g}); err != nil {
				return err
			}
		}
	}
	return nil
}

// judge compares what is seen of an interface with what attachments declare. What disagrees is looked at again, for it
// may have changed while it was looked at.
func (s *survey) judge(ctx context.Context, i *iface, views []*view) (seen *sight, groups []*api.GroupStatus, err error) {
	for range 2 {
		if seen, err = s.look(ctx, i); err != nil {
			return nil, nil, asTypesError(err) // to be told, other than the end of the connection
		}
		if seen.ended != nil {
			return seen, nil, nil
		}
		if i := slices.IndexFunc(views, func(v *view) bool { return v.plug != nil }); i >= 0 && seen.port == nil && seen.unseen == "" {
			seen.pulled = views[i].plug.pulled()
		}
		groups = compare(seen, i.describe(), i.shown.Load().attachments, views)
		if !slices.ContainsFunc(groups, isFaulty) {
			break
		}
		clear(s.tables)
	}
	return seen, groups, nil
}

func isFaulty(g *api.GroupStatus) bool {
	return slices.ContainsFunc(g.Marks, func(m api.Mark) bool { return m.Fault })
}

// A row is what is known of an address.
type row struct {
	held     *agent.Group // by the listener; nil: nothing
	declared []api.Want
	entries  []bridge.Entry
}

// compare puts side by side what is declared, what the listener holds and what the bridge has, in the order of
// addresses.
func compare(seen *sight, at api.Interface, attachments []api.Attachment, views []*view) []*api.GroupStatus {
	rows := make(map[netip.Addr]*row)
	of := func(addr netip.Addr) *row {
		if rows[addr] == nil {
			rows[addr] = new(row)
		}
		return rows[addr]
	}
	for i := range seen.groups {
		of(seen.groups[i].Addr).held = &seen.groups[i]
	}
	for _, v := range views {
		for _, g := range v.settings.Groups {
			r := of(g.Addr)
			r.declared = append(r.declared, api.Want{
				By: api.ByAttachment, Attachment: &v.key, Deliver: g.Deliver, Filter: filterOf(g.Mode == api.Exclude, g.Sources),
			})
		}
	}
	if seen.port != nil {
		for _, e := range seen.port.entries {
			r := of(e.Group)
			r.entries = append(r.entries, e)
		}
	}
	list := make([]*api.GroupStatus, 0, len(rows))
	for addr, r := range rows {
		g := &api.GroupStatus{Interface: at, Attachments: attachments, Group: addr}
		r.fill(g, seen)
		r.mark(g, seen)
		list = append(list, g)
	}
	slices.SortFunc(list, func(a, b *api.GroupStatus) int { return a.Group.Compare(b.Group) })
	return list
}

// filterOf makes a filter that fits into a line.
func filterOf(exclude bool, sources []netip.Addr) api.Filter {
	f := api.Filter{Mode: api.Include, Sources: sources}
	if exclude {
		f.Mode = api.Exclude
	}
	if more := len(sources) - api.MaxSources; more > 0 {
		f.Sources, f.Omitted = sources[:api.MaxSources], more
	}
	return f
}

func (r *row) byKernel() (f listener.Filter, ok bool) {
	if r.held == nil || len(r.held.Wanted) == 0 || r.held.Wanted[0].ID != agent.KernelID {
		return listener.Filter{}, false
	}
	return r.held.Wanted[0].Filter, true
}

// fill says what each of the three knows.
func (r *row) fill(g *api.GroupStatus, seen *sight) {
	if f, ok := r.byKernel(); ok {
		g.Wanted = append(g.Wanted, api.Want{By: api.ByKernel, Filter: filterOf(f.Mode == listener.Exclude, f.Sources)})
	}
	g.Wanted = append(g.Wanted, r.declared...)
	if h := r.held; h != nil && h.Why == agent.Reported {
		f := filterOf(h.Mode == listener.Exclude, h.Sources)
		if seen.state.Version == mld.Version1 {
			f = api.Filter{} // V2-50: any source
		}
		g.Reported, g.ReportedBy = &f, api.ByListener
		if h.ByKernel {
			g.ReportedBy = api.ByKernel
		}
	}
	if len(r.entries) > 0 {
		g.MDB = mdbOf(r.entries)
	}
}

// mdbOf puts the entries of a group on a port together.
func mdbOf(entries []bridge.Entry) *api.MDB {
	m := &api.MDB{Mode: api.Include}
	for _, e := range entries {
		switch {
		case !e.Source.IsValid() && !e.Include:
			m.Mode = api.Exclude
		case !e.Source.IsValid():
		case len(m.Sources)+len(m.Blocked) == api.MaxSources:
			m.Omitted++
		case e.Blocked:
			m.Blocked = append(m.Blocked, e.Source)
		default:
			m.Sources = append(m.Sources, e.Source)
		}
		m.Permanent = m.Permanent || e.Permanent
		m.Expires = max(m.Expires, api.Duration(e.Timer))
	}
	slices.SortFunc(m.Sources, netip.Addr.Compare)
	slices.SortFunc(m.Blocked, netip.Addr.Compare)
	return m
}

var unreported = map[agent.Unreported]string{
	agent.NeverReported: api.MarkNeverReported,
	agent.IPv6Off:       api.MarkIPv6Off,
	agent.LinkDown:      api.MarkLinkDown,
	agent.NoLinkLocal:   api.MarkNoLinkLocal,
	agent.Refused:       api.MarkSendRefused,
	agent.ReportDue:     api.MarkReportDue,
	agent.NotHeld:       api.MarkNotHeld,
}

// mark says where the three disagree, and why.
func (r *row) mark(g *api.GroupStatus, seen *sight) {
	note := func(code, format string, args ...any) {
		g.Marks = append(g.Marks, api.NewMark(code, fmt.Sprintf(format, args...)))
	}
	if r.held == nil && len(r.declared) == 0 {
		if g.MDB.Permanent {
			note(api.MarkUnwanted, "in the MDB, but nobody wants it: the entry was made by hand")
		} else {
			note(api.MarkUnwanted, "in the MDB, but nobody wants it: the entry expires in %v, unless another listener is behind the port", g.MDB.Expires)
		}
		return
	}
	_, joined := r.byKernel()
	deliver := slices.ContainsFunc(r.declared, func(w api.Want) bool { return w.Deliver })
	switch {
	case joined || len(r.declared) == 0:
	case !deliver:
		note(api.MarkNotDelivered, "not delivered: it is declared with deliver false, and no application has joined")
	case seen.state.Link.IPv6:
		note(api.MarkNotJoined, "not delivered: it is declared, and the kernel has not joined it")
	}
	switch {
	case r.held == nil && !seen.state.Link.IPv6:
		note(api.MarkIPv6Off, "not reported: %s", seen.state.Link.Obstacle())
	case r.held == nil:
		note(api.MarkNotHeld, "not reported: the listener does not hold it")
	case r.held.Why == agent.NoLinkLocal && seen.state.Link.Tentative.IsValid() && g.MDB != nil: // V1-30
		note(api.MarkTentative, `reported from "::" until duplicate address detection of %v is done`, seen.state.Link.Tentative)
	case r.held.Why == agent.NoLinkLocal && seen.state.Link.Tentative.IsValid(): // no bridge has told
		note(api.MarkTentative, "not reported: %s", r.held.Words)
	case r.held.Why != agent.Reported:
		note(unreported[r.held.Why], "not reported: %s", r.held.Words)
	default:
		r.markReported(g, seen, note)
	}
}

// markReported says where the bridge disagrees about an address that is reported.
func (r *row) markReported(g *api.GroupStatus, seen *sight, note func(code, format string, args ...any)) {
	p, spoken := seen.port, seen.state.Version
	named := func(w api.Want) bool { return !w.AnySource() }
	switch anySource := r.held.Mode == listener.Exclude && len(r.held.Sources) == 0; {
	case !slices.ContainsFunc(g.Wanted, named) && !mld.SourceSpecific(g.Group): // nobody names sources, nor should
	case spoken == mld.Version1:
		note(api.MarkSourcesMLDv1, "sources: MLDv1 is spoken, which cannot name them: data from any source may arrive")
	case p != nil && p.state.Snooping && p.state.MLDVersion == 1: // B17
		note(api.MarkSourcesBridge, "sources: bridge %s speaks MLDv1 (mcast_mld_version) and keeps none: data from any source may arrive", p.bridge)
	case anySource:
		note(api.MarkSourcesAny, "sources: another party wants any, or the kernel has not told yet which: in its MLDv1 mode, up to 260s after a Query, it does not")
	}
	if p == nil {
		if seen.unseen != "" {
			note(api.MarkBridgeUnseen, "%s", seen.unseen)
		}
		if seen.pulled != "" {
			note(api.MarkNoPort, "not forwarded: %s", seen.pulled)
		}
		return
	}
	if !p.state.Forwarding {
		note(api.MarkPortDown, "not forwarded: port %s of bridge %s does not pass frames", p.name, p.bridge)
	}
	switch missing := r.missing(spoken); {
	case !p.state.Snooping && p.state.Groups > 0: // B19
		note(api.MarkTableFull, "not in the MDB: the table of bridge %s was full (mcast_hash_max %d), so snooping went off: the bridge floods",
			p.bridge, p.state.HashMax)
	case !p.state.Snooping:
		note(api.MarkSnoopingOff, "not in the MDB: snooping is off on %s: the bridge floods", p.bridge)
	case len(r.entries) == 0 && !p.state.Querier: // B1
		note(api.MarkNoQuerier, "not in the MDB: bridge %s knows no querier: the bridge floods", p.bridge)
	case len(r.entries) == 0 && p.state.MaxGroups > 0 && p.state.Groups >= p.state.MaxGroups:
		note(api.MarkPortFull, "not in the MDB: port %s has its %d entries (mcast_max_groups)", p.name, p.state.MaxGroups)
	case len(r.entries) == 0:
		note(api.MarkNotInMDB, "not in the MDB: reported, and bridge %s has no entry on port %s", p.bridge, p.name)
	case len(missing) > 0 && p.state.Querier:
		limit := ""
		if r.held.Mode == listener.Include {
			limit = bridge.SourceLimit(r.entries, g.Group)
		}
		note(api.MarkSourcesMissing, "not forwarded from %s: bridge %s has no entry for it on port %s%s", strings.Join(missing, ", "), p.bridge,
			p.name, limit)
	}
}

// missing names the sources that the listener wants and that no entry forwards.
func (r *row) missing(spoken mld.Version) (missing []string) {
	var anySource bool
	forwarded := make(map[netip.Addr]bool)
	for _, e := range r.entries {
		if !e.Source.IsValid() {
			anySource = anySource || !e.Include
		} else {
			forwarded[e.Source] = !e.Blocked
		}
	}
	if r.held.Mode == listener.Exclude || spoken == mld.Version1 {
		if !anySource {
			missing = append(missing, "any source")
		}
		return missing
	}
	for _, s := range r.held.Sources {
		if ok, known := forwarded[s]; !ok && (known || !anySource) {
			missing = append(missing, s.String())
		}
	}
	const most = 5
	if more := len(missing) - most; more > 0 {
		missing = append(missing[:most], fmt.Sprintf("%d sources more", more))
	}
	return missing
}
