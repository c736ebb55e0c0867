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
what is declared, Queries, what is sent and why, what of the kernel's is dropped, entries that come and go in the database
of a bridge in the network namespace of mldctl, and changes of the interface and of the version that is spoken.

With groups as arguments, only events about these are printed, and those about no group: General Queries and changes.

With --json: an object in each line, as Event of package plugin/api documents. If events come faster than they are
read, some are lost, and an event of the kind lost says how many.

When the worker of the daemon is replaced, the watch goes on with the next one, and a line on standard error says so:
events may be missing there. Interrupted, the exit code is 0; when the daemon goes away, it is 3.`,
		Example: "  mldctl watch\n  mldctl watch ff05::4321 --container 0123abc\n  mldctl watch --json | jq -r 'select(.kind == \"sent\") | .cause'",
		RunE: func(cmd *cobra.Command, args []string) error {
			wanted, err := parseGroups(args)
			if err != nil {
				return err
			}
			return t.runWatch(cmd.Context(), cmd.OutOrStdout(), cmd.ErrOrStderr(), r, wanted)
		},
	}
	t.filters(cmd, &r.Attachment)
	return cmd
}

// runWatch prints events, also those of the workers that follow.
func (t *tool) runWatch(ctx context.Context, w, stderr io.Writer, r *api.Request, wanted []netip.Addr) error {
	c, err := t.dial()
	if err != nil {
		return err
	}
	defer func() { c.Close() }()
	if err := withHost(r); err != nil {
		return err
	}
	defer r.HostNetns.Close()
	for {
		err := t.printEvents(ctx, w, c, r, wanted)
		if !api.NotRunning(err) {
			return err
		}
		next, pid, nextErr := t.next(ctx)
		if ctx.Err() != nil { // by the user
			return nil
		}
		if nextErr != nil {
			return fmt.Errorf("the worker of mldd has gone, and none has followed: %w", nextErr)
		}
		c.Close()
		c = next
		fmt.Fprintf(stderr, "mldctl: the worker of mldd was replaced, it is process %d now: events may be missing\n", pid)
	}
}

// comeback is how long a daemon that has gone may take until it listens again.
const comeback = 5 * time.Second

// next connects to the worker that follows one that has gone, and tells its process. The keeper lets clients in before
// that is there, so it has to answer.
func (t *tool) next(ctx context.Context) (*api.Client, int, error) {
	ctx, cancel := context.WithTimeout(ctx, t.patience)
	defer cancel()
	for end := time.Now().Add(comeback); ; {
		c, err := t.dial()
		if err == nil {
			var answer *api.Answer
			if answer, err = call(ctx, c, &api.Request{Op: api.OpStatus}); err == nil {
				return c, answer.Status.PID, nil
			}
			c.Close()
		}
		if !api.NotRunning(err) || time.Now().After(end) {
			return nil, 0, err
		}
		select {
		case <-ctx.Done():
			return nil, 0, ctx.Err()
		case <-time.After(comeback / 50):
		}
	}
}

// printEvents prints events until there are no more.
func (t *tool) printEvents(ctx context.Context, w io.Writer, c *api.Client, r *api.Request, wanted []netip.Addr) error {
	lines := json.NewEncoder(w)
	for line, err := range c.Stream(ctx, r) {
		switch {
		case errors.Is(err, context.Canceled): // by the user
			return nil
		case err != nil:
			return err
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
			return errors.New("standard output: " + err.Error()) // not wrapped: EPIPE would be taken for the daemon's
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
