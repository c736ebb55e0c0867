package command

import (
	"context"
	"fmt"
	"io"
	"slices"
	"strconv"
	"strings"
	"time"

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
		Long: `status shows the daemon, and each attachment with the state of its interface. Of the daemon's two processes
it is the keeper that takes signals: to stop, SIGTERM; to replace the worker, SIGHUP.

An attachment is ready, degraded, or has ended; REASON says why. It also says why MLDv1 is spoken, and, if a querier
is the reason, for how long still unless it asks again; and why a bridge is not seen: bridges are looked for in the
network namespace of mldctl. DECLARED counts its own groups, and REPORTED those
addresses that are reported on its interface, of those that somebody wants there and that are not exempt, as ff02::1 and
the addresses of scope 0 and 1 are. KERNEL says what becomes of the
reports of the container's kernel: mute, they are dropped, for the listener speaks for the kernel as well; keep, they
are let out. QUERIER is who asked last, and HEARD how long ago.

The exit code is 1 if an attachment is not ready, or if there is none of those asked for.

With --json: {"daemon": ..., "attachments": [...]}, as Status and AttachmentStatus of package plugin/api document.`,
		Example: "  mldctl status\n  mldctl status --network lab --json | jq '.attachments[] | select(.state != \"ready\")'",
		Args:    cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			return t.runStatus(cmd.Context(), cmd.OutOrStdout(), r)
		},
	}
	t.filters(cmd, &r.Attachment)
	return cmd
}

func (t *tool) runStatus(ctx context.Context, w io.Writer, r *api.Request) error {
	answer, err := t.request(ctx, &api.Request{Op: api.OpStatus}, 0)
	if err != nil {
		return err
	}
	list, err := t.lines(ctx, r, func(*api.Line) bool { return true })
	if err != nil {
		return err
	}
	doc := statusDocument{Daemon: answer.Status, Attachments: []*api.AttachmentStatus{}}
	for _, l := range list {
		doc.Attachments = append(doc.Attachments, l.Attachment)
	}
	if t.json {
		err = printJSON(w, doc)
	} else {
		err = t.printStatus(w, &doc)
	}
	if err != nil {
		return err
	}
	if len(doc.Attachments) == 0 && r.Attachment != (api.Attachment{}) {
		return errFault
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
	who := fmt.Sprintf("process %d", d.PID)
	if d.KeeperPID != 0 {
		who = fmt.Sprintf("worker %d, keeper %d", d.PID, d.KeeperPID)
	}
	if d.SelfStarted {
		who += ", started by mld"
	}
	fmt.Fprintf(w, "mldd %s, %s, %s in %s, cgroup %s\n", d.Version, who, d.Binary, d.Netns, cgroupText(d.Cgroup))
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
			a.KernelReports, querier, heard, strconv.Itoa(a.Declared), reported, bridge, port, reasonText(t.now(), a))
	}
	return tab.print(w)
}

// reasonText says why an attachment is as it is.
func reasonText(now time.Time, a *api.AttachmentStatus) string {
	var mldv1 string
	if a.MLDVersion == 1 {
		mldv1 = "MLDv1"
		if left := a.VersionUntil.Sub(now); left > 0 {
			mldv1 += fmt.Sprintf(" for %v more", left.Round(time.Second))
		}
		mldv1 += ": " + a.VersionReason
	}
	reasons := slices.DeleteFunc([]string{a.Reason, mldv1, a.BridgeReason}, func(s string) bool { return s == "" })
	return strings.Join(reasons, "; ")
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
