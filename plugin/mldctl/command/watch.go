package command

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/netip"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/seed-aaab8e3a/cni-mld/plugin/api"
)

func (t *tool) watch() *cobra.Command {
	r := &api.Request{Op: api.OpWatch}
	cmd := &cobra.Command{
		Use:   "watch [GROUP...]",
		Short: "Show what happens, as it happens",
		Long: `watch prints a line for each event, until it is interrupted: joins and leaves that the kernel tells of,
what is declared, Queries, what is sent and why, what of the kernel's is dropped, entries of the bridge's database that
come and go, and changes of the interface and of the version that is spoken.

With groups as arguments, only events about these are printed, and those about no group: General Queries and changes.

With --json: an object in each line, as Event of package plugin/api documents. If events come faster than they are
read, some are lost, and an event of the kind lost says how many.

Interrupted, the exit code is 0; when the daemon goes away, it is 3.`,
		Example: "  mldctl watch\n  mldctl watch ff05::4321 --container 0123abc\n  mldctl watch --json | jq -r 'select(.kind == \"sent\") | .cause'",
		RunE: func(cmd *cobra.Command, args []string) error {
			wanted, err := parseGroups(args)
			if err != nil {
				return err
			}
			return t.runWatch(cmd.Context(), cmd.OutOrStdout(), r, wanted)
		},
	}
	filters(cmd, &r.Attachment)
	return cmd
}

func (t *tool) runWatch(ctx context.Context, w io.Writer, r *api.Request, wanted []netip.Addr) error {
	c, err := t.dial(ctx)
	if err != nil {
		return err
	}
	defer c.Close()
	if err := withHost(r); err != nil {
		return err
	}
	defer r.HostNetns.Close()
	lines := json.NewEncoder(w)
	for line, err := range c.Stream(ctx, r) {
		switch {
		case errors.Is(err, context.Canceled): // by the user
			return nil
		case err != nil:
			return exchangeError(err)
		}
		e := line.Event
		if len(wanted) > 0 && e.Group.IsValid() && !slices.Contains(wanted, e.Group) {
			continue
		}
		if t.json {
			err = lines.Encode(e)
		} else {
			_, err = fmt.Fprintln(w, eventText(e))
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// eventText is an event in a line.
func eventText(e *api.Event) string {
	where := ""
	if len(e.Attachments) > 0 {
		a := e.Attachments[0]
		where = fmt.Sprintf("%s/%s/%s", a.Network, shortID(a.ContainerID), ifnameText(a.IfName, e.Interface.Name))
		if more := len(e.Attachments) - 1; more > 0 {
			where += fmt.Sprintf("+%d", more)
		}
	}
	what, detail := happened(e)
	line := fmt.Sprintf("%s %-20s %-10s %s", e.Time.Local().Format("15:04:05.000000"), where, what, detail)
	return strings.TrimRight(line, " ")
}

var causes = map[string]string{
	api.CauseJoined:    "it is wanted from now on",
	api.CauseRepeat:    "the same again, for robustness",
	api.CauseAnnounced: "sending has become possible",
	api.CauseLeft:      "it is wanted no longer",
	api.CauseChanged:   "what is wanted has changed",
	api.CauseAnswer:    "a Query has asked",
}

// happened says in words what an event is.
func happened(e *api.Event) (what, detail string) {
	switch e.Kind {
	case api.EventJoined:
		return "joined", fmt.Sprintf("%v, %s: the kernel", e.Group, sourcesText(e.Filter))
	case api.EventLeft:
		return "left", fmt.Sprintf("%v: the kernel", e.Group)
	case api.EventDeclared:
		return "declared", fmt.Sprintf("%v, %s: %v", e.Group, sourcesText(e.Filter), e.Attachment)
	case api.EventUndeclared:
		return "undeclared", fmt.Sprintf("%v: %v", e.Group, e.Attachment)
	case api.EventSent:
		return "sent", messageText(e) + ": " + causes[e.Cause]
	case api.EventNotSent:
		return "not sent", messageText(e) + ": " + e.Reason
	case api.EventHeard:
		query := "General Query"
		if e.Group.IsValid() {
			query = fmt.Sprintf("Query for %v", e.Group)
			if len(e.Sources) > 0 {
				query += " " + addrsText(e.Sources, 0)
			}
		}
		return "heard", fmt.Sprintf("%s in MLDv%d from %v, to be answered within %v", query, e.MLDVersion, e.From, time.Duration(e.MaxDelay))
	case api.EventSuppressed:
		return "suppressed", fmt.Sprintf("Report %v: %v has sent one", e.Group, e.From)
	case api.EventMuted:
		return "muted", messageText(e) + ": the kernel's"
	case api.EventVersion:
		return "version", fmt.Sprintf("MLDv%d from now on", e.MLDVersion)
	case api.EventMDB:
		return "in the MDB", fmt.Sprintf("%v, %s: %s port %s", e.Group, sourcesText(e.Filter), e.Bridge, e.Port)
	case api.EventMDBGone:
		return "not in MDB", fmt.Sprintf("%v, %s: %s port %s", e.Group, sourcesText(e.Filter), e.Bridge, e.Port)
	case api.EventLost:
		return "lost", fmt.Sprintf("%d events, at least", e.Lost)
	}
	return e.Kind, e.Reason // link, ended
}

func sourcesText(f *api.Filter) string {
	switch {
	case f == nil:
		return ""
	case f.AnySource():
		return "any source"
	case f.Mode == api.Exclude:
		return "any source but " + addrsText(f.Sources, f.Omitted)
	}
	return "source " + addrsText(f.Sources, f.Omitted)
}

// messageText is a message of version 1, or a record of version 2: "Done ff05::a", "ALLOW ff05::a fd00::1".
func messageText(e *api.Event) string {
	kind := e.Message
	if e.Record != "" {
		kind = e.Record
	}
	text := fmt.Sprintf("%s %v", kind, e.Group)
	if len(e.Sources) > 0 {
		text += " " + addrsText(e.Sources, 0)
	}
	return text
}
