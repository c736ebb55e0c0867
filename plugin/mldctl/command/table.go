package command

import (
	"fmt"
	"io"
	"net/netip"
	"strings"
	"text/tabwriter"

	"github.com/seed-aaab8e3a/cni-mld/plugin/api"
)

// A table is columns that are as wide as they have to be.
type table struct{ w *tabwriter.Writer }

func newTable(w io.Writer, header ...string) *table {
	t := &table{tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)}
	t.row(header...)
	return t
}

// row adds a row. An empty cell is a dash; at the end of the row it is nothing.
func (t *table) row(cells ...string) {
	for len(cells) > 0 && cells[len(cells)-1] == "" {
		cells = cells[:len(cells)-1]
	}
	for i, c := range cells {
		if c == "" {
			cells[i] = "-"
		}
	}
	fmt.Fprintln(t.w, strings.Join(cells, "\t"))
}

func (t *table) print() error { return t.w.Flush() }

// filterText says from where something is wanted: "any", "fd00::1", "not fd00::66".
func filterText(f api.Filter) string {
	if f.AnySource() {
		return "any"
	}
	text := addrsText(f.Sources, f.Omitted)
	if f.Mode == api.Exclude {
		return "not " + text
	}
	return text
}

// addrsText lists the first few addresses.
func addrsText(list []netip.Addr, omitted int) string {
	const most = 4
	var texts []string
	for i, a := range list {
		if i == most {
			omitted += len(list) - most
			break
		}
		texts = append(texts, a.String())
	}
	text := strings.Join(texts, ",")
	if omitted > 0 {
		text += fmt.Sprintf("+%d", omitted)
	}
	return text
}
