package command

import (
	"context"
	"errors"
	"fmt"

	"github.com/spf13/cobra"

	"github.com/seed-aaab8e3a/cni-mld/plugin/api"
)

// versionDocument is what version --json prints.
type versionDocument struct {
	Mldctl   string `json:"mldctl"`
	Mldd     string `json:"mldd,omitempty"` // absent if none answers
	Protocol int    `json:"protocol"`       // api.Version
}

func (t *tool) versions() *cobra.Command {
	return &cobra.Command{
		Use:   "version",
		Short: "Show the versions of mldctl and of the running mldd",
		Long: `version shows the version of mldctl, and that of mldd if it runs.

With --json: {"mldctl": ..., "mldd": ..., "protocol": ...}, without mldd if none answers.`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			doc := versionDocument{Mldctl: t.version, Protocol: api.Version}
			if status, err := t.daemonStatus(cmd.Context()); err == nil {
				doc.Mldd = status.Version
			} else if !errors.Is(err, errNoDaemon) {
				fmt.Fprintf(cmd.ErrOrStderr(), "mldctl: %v\n", err)
			}
			if t.json {
				return printJSON(cmd.OutOrStdout(), doc)
			}
			fmt.Fprintf(cmd.OutOrStdout(), "mldctl %s\n", doc.Mldctl)
			if doc.Mldd != "" {
				fmt.Fprintf(cmd.OutOrStdout(), "mldd %s\n", doc.Mldd)
			}
			return nil
		},
	}
}

func (t *tool) daemonStatus(ctx context.Context) (*api.Status, error) {
	c, err := t.dial()
	if err != nil {
		return nil, err
	}
	defer c.Close()
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	answer, err := call(ctx, c, &api.Request{Op: api.OpStatus})
	if err != nil {
		return nil, err
	}
	return answer.Status, nil
}
