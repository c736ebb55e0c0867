package command

import (
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
			if answer, err := t.request(cmd.Context(), &api.Request{Op: api.OpStatus}, 0); err == nil {
				doc.Mldd = answer.Status.Version
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
