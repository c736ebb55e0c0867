package command

import (
	"context"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/seed-aaab8e3a/cni-mld/plugin/api"
)

// glance is how long completion waits for a daemon, as somebody waits at a prompt.
const glance = time.Second

// complete completes with a part of each attachment that a filter lets through; an empty part is none. Where no daemon
// answers in time there is nothing to complete with, and nowhere to say so.
func (t *tool) complete(filter func() api.Attachment, part func(*api.AttachmentStatus) string) cobra.CompletionFunc {
	return func(cmd *cobra.Command, _ []string, _ string) (list []string, _ cobra.ShellCompDirective) {
		ctx, cancel := context.WithTimeout(cmd.Context(), t.glance)
		defer cancel()
		named := func(l *api.Line) bool { return part(l.Attachment) != "" }
		lines, _ := t.lines(ctx, &api.Request{Op: api.OpList, Attachment: filter()}, named)
		for _, l := range lines {
			list = append(list, part(l.Attachment))
		}
		slices.Sort(list)
		return slices.Compact(list), cobra.ShellCompDirectiveNoFileComp
	}
}

// completeFlags completes the values of flags with parts of attachments.
func (t *tool) completeFlags(cmd *cobra.Command, filter func() api.Attachment, parts map[string]func(*api.AttachmentStatus) string) {
	for flag, part := range parts {
		if err := cmd.RegisterFlagCompletionFunc(flag, t.complete(filter, part)); err != nil {
			panic(err)
		}
	}
}

func networkOf(a *api.AttachmentStatus) string   { return a.Network }
func containerOf(a *api.AttachmentStatus) string { return a.ContainerID }
func ifnameOf(a *api.AttachmentStatus) string    { return a.IfName }

// netnsOf is what NETNS was for an attachment by hand, or could have been.
func netnsOf(a *api.AttachmentStatus) string {
	for _, name := range []string{a.ContainerID, a.Interface.Netns} {
		if p := (&place{netns: name}); containerID(p.path()) == a.ContainerID {
			return name
		}
	}
	return ""
}

// pidOf is what --pid was for an attachment by hand.
func pidOf(a *api.AttachmentStatus) string {
	if pid, ok := strings.CutPrefix(a.ContainerID, pidPrefix); ok {
		return pid
	}
	return ""
}

// hostOf is what --host was for an attachment by hand.
func hostOf(a *api.AttachmentStatus) string {
	if a.ContainerID == hostID {
		return a.IfName
	}
	return ""
}
