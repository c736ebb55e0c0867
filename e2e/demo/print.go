package main

import (
	"strings"
	"text/tabwriter"

	"github.com/seed-aaab8e3a/cni-mld/netnslab"
)

// table is rows of cells, the first of them the head.
type table [][]string

func (p *program) print(rows table) {
	w := tabwriter.NewWriter(p.out, 0, 0, 3, ' ', 0)
	for i, row := range rows {
		line := strings.Join(row, "\t")
		if i == 0 {
			line = strings.ToUpper(line)
		}
		_, _ = w.Write([]byte("   " + line + "\n"))
	}
	_ = w.Flush()
}

// fromContainers is a display filter: the host's own reports, of its bridge and its ports, are another story.
func (s *stage) fromContainers() string {
	var macs []string
	for _, c := range s.containers {
		macs = append(macs, c.eth0.HardwareAddr().String())
	}
	return "eth.src in {" + strings.Join(macs, ", ") + "}"
}

// conversation has tshark read what the containers have said and been asked, and names the speakers.
func (s *stage) conversation(c *netnslab.Capture) table {
	who := make(map[string]string)
	for _, c := range s.containers {
		who[c.eth0.HardwareAddr().String()] = c.Name()
	}
	who[s.bridge.HardwareAddr().String()] = bridgeName
	out := c.Tshark(s.ctx, "-Y", "icmpv6.type == 130 || "+s.fromContainers(), "-T", "fields", "-e", "frame.time_relative", "-e", "eth.src", "-e", "icmpv6.type",
		"-e", "icmpv6.mld.multicast_address", "-e", "ipv6.dst")
	rows := table{{"time", "from", "message", "group", "to"}}
	seen := make(map[string]bool)
	for line := range strings.Lines(out) {
		f := strings.Split(strings.TrimSuffix(line, "\n"), "\t")
		if len(f) != 5 {
			continue
		}
		kind := map[string]string{"130": "Query", "131": "Report", "132": "Done", "143": "Version 2 Report"}[f[2]]
		group := f[3]
		if group == "::" {
			group = "(all)"
		}
		// What the bridge asks is captured at every container, and told once.
		key := strings.Join(f[1:], " ")
		if kind == "Query" && seen[key] {
			continue
		}
		seen[key] = true
		rows = append(rows, []string{f[0][:min(len(f[0]), 6)] + " s", who[f[1]], kind, group, f[4]})
	}
	return rows
}
