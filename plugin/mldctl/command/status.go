package command

import (
	"context"
	"fmt"
	"io"
	"strconv"
	"strings"

	"github.com/spf13/cobra"

	"github.com/seed-aaab8e3a/cni-mld/plugin/api"
)

// statusDocument is what status --json prints.
type statusDocument struct {
	Daemon      *api.Status             `json:"daemon"`
	Attachments []*api.AttachmentStatus `json:"attachments"`
}

func (t *tool) status() *cobra.Command {
	r := &api.Request{Op: api.OpList}
	cmd := &cobra.Command{
		Use:   "status",
		Short: "Show the daemon and its attachments",
		Long: `status shows the daemon, and each attachment with the state of its interface.

An attachment is ready, degraded, or has ended; REASON says why. DECLARED counts its own groups, and REPORTED those
addresses that are reported on its interface, of those that somebody wants there. KERNEL says what becomes of the
reports of the container's kernel: mute, they are dropped, for the listener speaks for the kernel as well; keep, they
are let out. QUERIER is who asked last, and HEARD how long ago.

The exit code is 1 if an attachment is not ready.

With --json: {"daemon": ..., "attachments": [...]}, as Status and AttachmentStatus of package plugin/api document.`,
		Example: "  mldctl status\n  mldctl status --network lab --json | jq '.attachments[] | select(.state != \"ready\")'",
		Args:    cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			return t.runStatus(cmd.Context(), cmd.OutOrStdout(), r)
		},
	}
	filters(cmd, &r.Attachment)
	return cmd
}

func (t *tool) runStatus(ctx context.Context, w io.Writer, r *api.Request) error {
	c, err := t.dial(ctx)
	if err != nil {
		return err
	}
	defer c.Close()
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	answer, err := call(ctx, c, &api.Request{Op: api.OpStatus})
	if err != nil {
		return err
	}
	doc := statusDocument{Daemon: answer.Status, Attachments: []*api.AttachmentStatus{}}
	if err := lines(ctx, c, r, func(l *api.Line) { doc.Attachments = append(doc.Attachments, l.Attachment) }); err != nil {
		return err
	}
	if t.json {
		err = printJSON(w, doc)
	} else {
		err = t.printStatus(w, &doc)
	}
	if err != nil {
		return err
	}
	for _, a := range doc.Attachments {
		if a.State != api.StateReady {
			return errFault
		}
	}
	return nil
}

func (t *tool) printStatus(w io.Writer, doc *statusDocument) error {
	d := doc.Daemon
	by := ""
	if d.KeeperPID != 0 {
		by = fmt.Sprintf(" of %d", d.KeeperPID)
	}
	if d.SelfStarted {
		by += ", started by mld"
	}
	fmt.Fprintf(w, "mldd %s, process %d%s, %s in %s, cgroup %s\n", d.Version, d.PID, by, d.Binary, d.Netns, cgroupText(d.Cgroup))
	if len(doc.Attachments) == 0 {
		fmt.Fprintln(w, "no attachments")
		return nil
	}
	tab := newTable("NETWORK", "CONTAINER", "INTERFACE", "STATE", "SINCE", "MLD", "KERNEL", "QUERIER", "HEARD",
		"DECLARED", "REPORTED", "BRIDGE", "PORT", "REASON")
	for _, a := range doc.Attachments {
		var mld, querier, heard, reported, bridge, port string
		if a.MLDVersion > 0 {
			mld = fmt.Sprintf("v%d", a.MLDVersion)
			reported = fmt.Sprintf("%d/%d", a.Reported, a.Wanted)
		}
		if q := a.Querier; q != nil {
			querier, heard = q.Address.String(), age(t.now(), q.Heard)
		}
		if b := a.Bridge; b != nil {
			bridge, port = b.Name, b.Port
		}
		tab.row(a.Network, shortID(a.ContainerID), ifnameText(a.IfName, a.Interface.Name), a.State, age(t.now(), a.Since), mld,
			a.KernelReports, querier, heard, strconv.Itoa(a.Declared), reported, bridge, port, a.Reason)
	}
	return tab.print(w)
}

// cgroupText is the path in the hierarchy of version 2.
func cgroupText(lines string) string {
	for line := range strings.Lines(lines) {
		if path, ok := strings.CutPrefix(strings.TrimSpace(line), "0::"); ok {
			return path
		}
	}
	return lines
}

// ifnameText is the name that an interface was attached by, and the one that it has now if that is another.
func ifnameText(attached, now string) string {
	if attached == now || now == "" {
		return attached
	}
	return attached + "=" + now
}
