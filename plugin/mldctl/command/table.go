package command

import (
	"fmt"
	"io"
	"net/netip"
	"strings"
	"unicode/utf8"

	"github.com/seed-aaab8e3a/cni-mld/plugin/api"
)

// A table is columns that are as wide as they have to be.
type table struct {
	rows   [][]string
	widths []int
}

func newTable(header ...string) *table {
	t := &table{widths: make([]int, len(header))}
	t.row(header...)
	return t
}

// row adds a row of as many cells as the header has. An empty cell is a dash, but for those at the end.
func (t *table) row(cells ...string) {
	last := len(cells)
	for last > 0 && cells[last-1] == "" {
		last--
	}
	for i, c := range cells[:last] {
		if c == "" {
			cells[i] = "-"
		}
		t.widths[i] = max(t.widths[i], utf8.RuneCountInString(cells[i]))
	}
	t.rows = append(t.rows, cells)
}

func (t *table) print(w io.Writer) error {
	var text strings.Builder
	for _, cells := range t.rows {
		var line strings.Builder
		for i, c := range cells {
			fmt.Fprintf(&line, "%-*s  ", t.widths[i], c)
		}
		text.WriteString(strings.TrimRight(line.String(), " ") + "\n")
	}
	_, err := io.WriteString(w, text.String())
	return err
}

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
