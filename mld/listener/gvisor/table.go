package main

import (
	"fmt"
	"io"
	"slices"
	"text/tabwriter"
)

// A line is one figure of the report.
type line struct {
	what, unit string
	ours       []float64 // of each round
	peer       []float64 // none: ours stands alone
	goal       goal
}

// A goal bounds a figure, or its ratio to the peer's; 0 bounds nothing.
type goal struct {
	ratio float64
	most  float64
}

// slack is what a goal may be missed by on a noisy machine.
const slack = 1.25

// ratio is the median of the rounds' ratios.
func (l *line) ratio() float64 {
	list := make([]float64, len(l.peer))
	for i := range list {
		list[i] = l.ours[i] / l.peer[i]
	}
	return median(list)
}

// excess is how many times the goal the figure is; 0 without a goal.
func (l *line) excess() float64 {
	switch {
	case l.goal.most > 0:
		return median(l.ours) / l.goal.most
	case l.goal.ratio > 0 && len(l.peer) > 0:
		return l.ratio() / l.goal.ratio
	}
	return 0
}

func (l *line) missed() bool { return l.excess() > slack }

func (g goal) String() string {
	switch {
	case g.most > 0:
		return fmt.Sprintf("≤ %v", g.most)
	case g.ratio > 0:
		return fmt.Sprintf("≤ 1/%.0f", 1/g.ratio)
	}
	return ""
}

func (l *line) verdict() string {
	switch e := l.excess(); {
	case e == 0:
		return ""
	case e <= 1:
		return "met"
	case e <= slack:
		return "met with slack"
	}
	return "MISSED"
}

// print writes the lines as a table.
func print(w io.Writer, lines []*line) error {
	t := tabwriter.NewWriter(w, 0, 0, 2, ' ', tabwriter.AlignRight)
	fmt.Fprintln(t, "ours\tpeer\tours/peer\tgoal\t\tunit\t  what")
	for _, l := range lines {
		peer, ratio := "-", "-"
		if len(l.peer) > 0 {
			peer = figure(median(l.peer))
			if r := l.ratio(); r > 0 {
				ratio = "1/" + figure(1/r)
			}
		}
		fmt.Fprintf(t, "%s\t%s\t%s\t%s\t%s\t%s\t  %s\n",
			figure(median(l.ours)), peer, ratio, l.goal, l.verdict(), l.unit, l.what)
	}
	return t.Flush()
}

func figure(v float64) string {
	switch {
	case v == 0:
		return "0"
	case v < 0.01:
		return "<0.01"
	case v < 10:
		return fmt.Sprintf("%.2f", v)
	case v < 100:
		return fmt.Sprintf("%.1f", v)
	}
	return fmt.Sprintf("%.0f", v)
}

func median(list []float64) float64 {
	sorted := slices.Sorted(slices.Values(list))
	n := len(sorted)
	return (sorted[(n-1)/2] + sorted[n/2]) / 2
}
