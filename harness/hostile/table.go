package hostile

import (
	"fmt"
	"io"
	"slices"

	"github.com/jedib0t/go-pretty/v6/table"
)

// WriteTable prints case × daemon, and below it how many cases each daemon passes. What does not pass is marked.
func WriteTable(w io.Writer, results []Result) {
	var daemons []string
	for _, r := range results {
		if !slices.Contains(daemons, r.Daemon) {
			daemons = append(daemons, r.Daemon)
		}
	}
	t := table.NewWriter()
	t.SetOutputMirror(w)
	t.SetStyle(table.StyleLight)
	head := table.Row{"side", "case"}
	for _, d := range daemons {
		head = append(head, d)
	}
	t.AppendHeader(head)
	passed, of := map[string]int{}, map[string]int{}
	var row table.Row
	for _, r := range results {
		if row == nil || row[1] != r.Case || row[0] != r.Side {
			if row != nil {
				t.AppendRow(row)
			}
			row = make(table.Row, 2+len(daemons))
			row[0], row[1] = r.Side, r.Case
		}
		cell := string(r.Outcome)
		if r.Outcome == ErrorReply && r.Detail != "" && len(r.Detail) < 14 {
			cell = r.Detail
		}
		of[r.Daemon]++
		if r.Pass {
			passed[r.Daemon]++
		} else {
			cell = "✗ " + cell
		}
		row[2+slices.Index(daemons, r.Daemon)] = cell
	}
	if row != nil {
		t.AppendRow(row)
	}
	foot := table.Row{"", "passed"}
	for _, d := range daemons {
		foot = append(foot, fmt.Sprintf("%d of %d", passed[d], of[d]))
	}
	t.AppendFooter(foot)
	t.Render()
}
