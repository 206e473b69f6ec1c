package report

import (
	"fmt"
	"io"
	"slices"
	"strings"

	"github.com/jedib0t/go-pretty/v6/table"
	"github.com/jedib0t/go-pretty/v6/text"

	"virtiofsd/harness/result"
)

// Table writes the terminal's table of a run: a row per scenario and kernel, a column per implementation, with the counts of its
// records; then what was not as expected, then the known differences in short. A broken run is said to be broken.
func Table(w io.Writer, run *result.Stored, color bool) error {
	paint := func(c text.Color, s string) string {
		if !color {
			return s
		}
		return fmt.Sprintf("\x1b[%dm%s\x1b[0m", c, s)
	}
	impls := implsOf(run)
	type row struct{ scenario, kernel string }
	var rows []row
	count := map[result.CellID]*counts{}
	for _, r := range run.Records {
		c := count[r.CellID]
		if c == nil {
			c = &counts{}
			count[r.CellID] = c
		}
		c.add(r)
	}
	cells := map[result.CellID]result.Cell{}
	for _, c := range run.Cells {
		cells[c.CellID] = c
		if k := (row{c.Scenario, c.Kernel}); !slices.Contains(rows, k) {
			rows = append(rows, k)
		}
	}
	slices.SortFunc(rows, func(x, y row) int {
		if c := strings.Compare(x.scenario, y.scenario); c != 0 {
			return c
		}
		return compareVersions(x.kernel, y.kernel)
	})

	t := table.NewWriter()
	t.SetStyle(table.StyleLight)
	t.Style().Options.SeparateRows = false
	t.Style().Format.Header = text.FormatDefault
	head := table.Row{"scenario", "guest"}
	for _, i := range impls {
		head = append(head, i)
	}
	t.AppendHeader(head)
	for _, r := range rows {
		line := table.Row{r.scenario, r.kernel}
		for _, i := range impls {
			id := result.CellID{Scenario: r.scenario, Impl: i, Kernel: r.kernel}
			cell, there := cells[id]
			switch c := count[id]; {
			case !there:
				line = append(line, "")
			case cell.Status == result.CellSkipped:
				line = append(line, paint(text.FgHiBlack, "skipped: "+string(cell.Skip)))
			case c == nil:
				line = append(line, string(cell.Status))
			default:
				line = append(line, c.paint(paint))
			}
		}
		t.AppendRow(line)
	}

	var b strings.Builder
	b.WriteString(t.Render() + "\n")
	knownShort(&b, run)
	surprises(&b, run, paint) // last, where the tail of a log keeps it
	if run.End == nil {
		b.WriteString("\n" + paint(text.FgRed, "the run is broken: it has no end record, or its files do not fit together") + "\n")
	}
	_, err := io.WriteString(w, b.String())
	return err
}

// counts are a cell's records by verdict.
type counts struct{ pass, fail, known, skip, err int }

func (c *counts) add(r result.Record) {
	switch stateOf(r) {
	case stError:
		c.err++
	case stFail:
		c.fail++
	case stKnown:
		c.known++
	case stSkip:
		c.skip++
	default:
		c.pass++
	}
}

func (c *counts) paint(paint func(text.Color, string) string) string {
	var parts []string
	for _, p := range []struct {
		n     int
		word  string
		color text.Color
	}{
		{c.pass, "pass", text.FgGreen}, {c.fail, "fail", text.FgRed}, {c.known, "known", text.FgYellow},
		{c.skip, "skip", text.FgHiBlack}, {c.err, "error", text.FgMagenta},
	} {
		if p.n > 0 {
			parts = append(parts, paint(p.color, fmt.Sprintf("%d %s", p.n, p.word)))
		}
	}
	return strings.Join(parts, " ")
}

// surprises lists what spoils the run; the same of several kernels is said once.
func surprises(b *strings.Builder, run *result.Stored, paint func(text.Color, string) string) {
	var bad []result.Record
	whole := map[result.CellID]int{} // claims of a cell that broke as a whole: one line tells all of them
	for _, r := range run.Records {
		if !r.Bad() {
			continue
		}
		if slices.ContainsFunc(run.Cells, func(c result.Cell) bool { return c.CellID == r.CellID && c.Status == result.CellBroken }) {
			if whole[r.CellID]++; whole[r.CellID] > 1 {
				continue
			}
		}
		bad = append(bad, r)
	}
	if len(bad) == 0 {
		if slices.ContainsFunc(run.Records, func(r result.Record) bool { return r.Verdict != result.Skip }) {
			b.WriteString("\nno surprises: all as the scenarios expect, or known\n")
		}
		return
	}
	fmt.Fprintf(b, "\nsurprises (%d):\n", len(bad))
	for _, g := range group(bad, func(r result.Record) string { return r.Because }) {
		color := text.FgRed
		if g.first.Verdict == result.Error {
			color = text.FgMagenta
		}
		what := g.first.Claim
		if n := whole[g.first.CellID]; n > 0 {
			what = fmt.Sprintf("the whole cell (%d claims)", n)
		}
		fmt.Fprintf(b, "  %s %s, %s, %s on %s: %s\n", paint(color, string(g.first.Verdict)), what, g.first.Impl, g.first.Scenario,
			strings.Join(g.kernels, ", "), g.first.Because)
	}
}

// knownShort lists the known differences which showed themselves: a line for each implementation and reason.
func knownShort(b *strings.Builder, run *result.Stored) {
	type key struct{ impl, why string }
	claims := map[key][]string{}
	var order []key
	n := 0
	for _, r := range run.Records {
		if r.Verdict != result.Fail || r.Known == "" {
			continue
		}
		n++
		k := key{r.Impl, r.Known}
		if claims[k] == nil {
			order = append(order, k)
		}
		if !slices.Contains(claims[k], r.Claim) {
			claims[k] = append(claims[k], r.Claim)
		}
	}
	if n == 0 {
		return
	}
	slices.SortFunc(order, func(x, y key) int {
		if c := strings.Compare(x.impl, y.impl); c != 0 {
			return c
		}
		return strings.Compare(x.why, y.why)
	})
	fmt.Fprintf(b, "\nknown differences (%d):\n", n)
	for _, k := range order {
		slices.Sort(claims[k])
		fmt.Fprintf(b, "  %s: %s (%s)\n", k.impl, k.why, strings.Join(claims[k], ", "))
	}
}

// grouped are records that differ in the kernel only.
type grouped struct {
	first   result.Record
	kernels []string
}

func group(all []result.Record, what func(result.Record) string) []grouped {
	var out []grouped
	for _, r := range all {
		i := slices.IndexFunc(out, func(g grouped) bool {
			return g.first.Claim == r.Claim && g.first.Impl == r.Impl && g.first.Scenario == r.Scenario &&
				g.first.Verdict == r.Verdict && what(g.first) == what(r)
		})
		if i < 0 {
			out = append(out, grouped{r, []string{r.Kernel}})
			continue
		}
		out[i].kernels = append(out[i].kernels, r.Kernel)
	}
	for _, g := range out {
		slices.SortFunc(g.kernels, compareVersions)
	}
	return out
}
