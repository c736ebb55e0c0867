package command

import (
	"context"
	"fmt"
	"io"
	"net/netip"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/seed-aaab8e3a/cni-mld/plugin/api"
)

// groupsDocument is what groups --json prints.
type groupsDocument struct {
	Groups []*api.GroupStatus `json:"groups"`
}

func (t *tool) groups() *cobra.Command {
	r := &api.Request{Op: api.OpGroups}
	var all bool
	cmd := &cobra.Command{
		Use:   "groups [GROUP...]",
		Short: "Show what is wanted, reported and in the bridge's database, side by side",
		Long: `groups shows each multicast address of each interface: from which sources it is wanted and by whom, what
the listener reports, and what the bridge has in its multicast database (MDB) for the container's port. Bridges are
looked for in the network namespace of mldctl.

WANTED names the sources, "any" or "not" some, and in brackets who wants them: kernel is the container's, for the
applications that have joined and for declared groups that are delivered; a network is an attachment that declares the
group. WHY says where the three disagree, and why. A row that begins with "!" is a fault: data that is wanted does not
arrive, or soon will not. The other reasons are no faults, for instance a bridge without a querier, which floods.

ff02::1 and the addresses of scope 0 and 1, which are never reported, are left out without --all.

The exit code is 1 if there is a fault, or if there is no row of those asked for.

With --json: {"groups": [...]}, as GroupStatus of package plugin/api documents, and the stable codes of the reasons.`,
		Example: "  mldctl groups\n  mldctl groups ff05::4321 --network lab\n" +
			"  mldctl groups --json | jq '.groups[] | select(any(.marks[]?; .fault)) | .group'",
		RunE: func(cmd *cobra.Command, args []string) error {
			wanted, err := parseGroups(args)
			if err != nil {
				return err
			}
			asked := len(wanted) > 0 || r.Attachment != (api.Attachment{})
			return t.runGroups(cmd.Context(), cmd.OutOrStdout(), r, asked, func(g *api.GroupStatus) bool {
				if len(wanted) > 0 {
					return slices.Contains(wanted, g.Group)
				}
				return all || !slices.ContainsFunc(g.Marks, func(m api.Mark) bool { return m.Code == api.MarkNeverReported })
			})
		},
	}
	t.filters(cmd, &r.Attachment)
	cmd.Flags().BoolVar(&all, "all", false, "also what is never reported")
	return cmd
}

// parseGroups reads the multicast addresses that the user is interested in.
func parseGroups(args []string) ([]netip.Addr, error) {
	var groups []netip.Addr
	for _, arg := range args {
		g, err := netip.ParseAddr(arg)
		if err != nil || !g.Is6() || !g.IsMulticast() || g.Zone() != "" {
			return nil, usageError("%s: not an IPv6 multicast address such as ff05::4321", arg)
		}
		groups = append(groups, g)
	}
	return groups, nil
}

func (t *tool) runGroups(ctx context.Context, w io.Writer, r *api.Request, asked bool, wanted func(*api.GroupStatus) bool) error {
	list, err := t.lines(ctx, r, func(l *api.Line) bool { return wanted(l.Group) })
	if err != nil {
		return err
	}
	doc := groupsDocument{Groups: []*api.GroupStatus{}}
	for _, l := range list {
		doc.Groups = append(doc.Groups, l.Group)
	}
	if t.json {
		err = printJSON(w, doc)
	} else {
		err = printGroups(w, doc.Groups)
	}
	none := asked && len(doc.Groups) == 0
	if err == nil && (none || slices.ContainsFunc(doc.Groups, faulty)) {
		err = errFault
	}
	return err
}

func faulty(g *api.GroupStatus) bool {
	return slices.ContainsFunc(g.Marks, func(m api.Mark) bool { return m.Fault })
}

func printGroups(w io.Writer, groups []*api.GroupStatus) error {
	if len(groups) == 0 {
		fmt.Fprintln(w, "no groups")
		return nil
	}
	tab := newTable("  CONTAINER", "INTERFACE", "GROUP", "WANTED", "REPORTED", "MDB", "WHY")
	for _, g := range groups {
		sign := "  "
		if faulty(g) {
			sign = "! "
		}
		var reported, mdb string
		if g.Reported != nil {
			reported = filterText(*g.Reported)
			if g.ReportedBy == api.ByKernel {
				reported += " (kernel)"
			}
		}
		if g.MDB != nil {
			mdb = mdbText(g.MDB)
		}
		var why []string
		for _, m := range g.Marks {
			why = append(why, m.Text)
		}
		tab.row(sign+containerText(g.Attachments), g.Interface.Name, g.Group.String(), wantedText(g.Wanted), reported, mdb,
			strings.Join(why, "; "))
	}
	return tab.print(w)
}

// containerText names the containers of attachments, of which there is one unless somebody has been creative.
func containerText(list []api.Attachment) string {
	var ids []string
	for _, a := range list {
		ids = append(ids, shortID(a.ContainerID))
	}
	slices.Sort(ids)
	return strings.Join(slices.Compact(ids), ",")
}

// wantedText says what is wanted by whom, those together who want the same.
func wantedText(wants []api.Want) string {
	var filters []string
	by := make(map[string][]string)
	for _, w := range wants {
		f, who := filterText(w.Filter), w.By
		if w.Attachment != nil {
			who = w.Attachment.Network
		}
		if by[f] == nil {
			filters = append(filters, f)
		}
		by[f] = append(by[f], who)
	}
	for i, f := range filters {
		filters[i] = f + " (" + strings.Join(by[f], ", ") + ")"
	}
	return strings.Join(filters, ", ")
}

// mdbText says what is forwarded, and how long.
func mdbText(m *api.MDB) string {
	var texts []string
	switch {
	case m.Mode == api.Exclude && len(m.Blocked) > 0:
		texts = append(texts, "not "+addrsText(m.Blocked, m.Omitted))
	case m.Mode == api.Exclude:
		texts = append(texts, "any")
	case len(m.Sources) > 0:
		texts = append(texts, addrsText(m.Sources, m.Omitted))
	default:
		texts = append(texts, "nothing")
	}
	switch {
	case m.Permanent:
		texts = append(texts, "permanent")
	case m.Expires > 0:
		texts = append(texts, time.Duration(m.Expires).Round(time.Second).String())
	}
	return strings.Join(texts, " ")
}
