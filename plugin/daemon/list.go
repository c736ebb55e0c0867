package daemon

import (
	"context"
	"fmt"
	"net/netip"
	"slices"

	"github.com/seed-aaab8e3a/cni-mld/mld"
	"github.com/seed-aaab8e3a/cni-mld/plugin/api"
)

// list tells of each attachment.
func (d *Daemon) list(ctx context.Context, r *api.Request, s *survey, say func(*api.Line) error) error {
	all := d.viewsByInterface()
	for _, v := range d.views(r.Attachment) {
		seen, groups, err := s.judge(ctx, v.iface, all[v.iface])
		if err != nil {
			return err
		}
		if err := say(&api.Line{Attachment: describe(v, seen, groups)}); err != nil {
			return err
		}
	}
	return nil
}

// describe puts together what is seen of an attachment and of its interface.
func describe(v *view, seen *sight, groups []*api.GroupStatus) *api.AttachmentStatus {
	a := &api.AttachmentStatus{Attachment: v.key, Interface: v.iface.describe(), Since: v.since, Declared: len(v.settings.Groups)}
	a.State, a.Reason = condition(v, seen, groups)
	if seen.ended != nil {
		return a
	}
	s := seen.state
	a.KernelReports = s.KernelReports.String()
	a.Muted = s.Muted
	a.MLDVersion = int(s.Version)
	a.VersionReason = versionReason(v.settings.MLDVersion, seen)
	a.VersionUntil = s.OlderUntil.Round(0)
	a.Robustness = s.Robustness
	a.Source = s.Link.Source
	if q := s.Querier; q.Addr.IsValid() {
		a.Querier = &api.Querier{Address: q.Addr, MLDVersion: int(q.Version), Heard: q.Heard.Round(0)}
	}
	for _, g := range groups {
		if len(g.Wanted) > 0 && mld.Reportable(g.Group) {
			a.Wanted++
		}
		if g.Reported != nil {
			a.Reported++
		}
	}
	a.BridgeReason = seen.unseen
	if p := seen.port; p != nil {
		a.Bridge = &api.Bridge{
			Name: p.bridge, Port: p.name, Forwarding: p.state.Forwarding,
			Snooping: p.state.Snooping, MLDVersion: p.state.MLDVersion, Querier: p.state.QuerierAddr,
		}
	}
	return a
}

// condition judges an attachment by its own groups: what an application has joined by itself is not its business.
func condition(v *view, seen *sight, groups []*api.GroupStatus) (state, reason string) {
	switch l := seen.state.Link; {
	case seen.ended != nil:
		return api.StateEnded, endReason(seen.ended)
	case !l.IPv6, !l.Up:
		return api.StateDegraded, l.Obstacle()
	case seen.pulled != "":
		return api.StateDegraded, seen.pulled
	}
	declared := make(map[netip.Addr]bool, len(v.settings.Groups))
	for _, g := range v.settings.Groups {
		declared[g.Addr] = true
	}
	more := 0
	for _, g := range groups {
		i := slices.IndexFunc(g.Marks, func(m api.Mark) bool { return m.Fault || m.Code == api.MarkTentative && g.MDB == nil })
		switch {
		case i < 0 || !declared[g.Group]:
		case reason == "":
			reason = fmt.Sprintf("%v: %s", g.Group, g.Marks[i].Text)
		default:
			more++
		}
	}
	if more > 0 {
		reason += fmt.Sprintf("; and %d groups more", more)
	}
	if reason != "" {
		return api.StateDegraded, reason
	}
	return api.StateReady, ""
}

// versionReason says why this version is spoken.
func versionReason(configured string, seen *sight) string {
	s := seen.state
	switch {
	case configured != api.MLDVersionAuto:
		return "mldVersion is " + configured
	case s.Version == mld.Version2:
		return "no querier of MLDv1 about"
	case s.Querier.Version == mld.Version1:
		return fmt.Sprintf("querier %v asks in MLDv1", s.Querier.Addr)
	}
	return "a querier of MLDv1 was heard a while ago"
}
