package bench

import (
	"fmt"
	"io"
	"math"
	"slices"

	"github.com/jedib0t/go-pretty/v6/table"
	"golang.org/x/perf/benchmath"
)

// Stat is the median of rounds with the interval of its confidence (95 % where there are rounds enough).
type Stat struct{ Center, Lo, Hi float64 }

// Of collects a figure of a workload and a daemon over the rounds that went well.
func (r *Report) Of(workload, daemon string, figure func(Sample) float64) []float64 {
	var v []float64
	for _, s := range r.Samples {
		if s.Workload == workload && s.Daemon == daemon && s.Bad == "" && s.Ops > 0 {
			v = append(v, figure(s))
		}
	}
	return v
}

func stat(v []float64) Stat {
	if len(v) == 0 {
		return Stat{math.NaN(), math.NaN(), math.NaN()}
	}
	s := benchmath.AssumeNothing.Summary(benchmath.NewSample(slices.Clone(v), &benchmath.DefaultThresholds), 0.95)
	return Stat{s.Center, s.Lo, s.Hi}
}

// figures are what the measures of a workload read.
func (w Workload) figure(s Sample) float64 {
	if w.Measure == Latency {
		return s.P50
	}
	return s.Rate
}

// Ratio compares a daemon with another on one workload: above 1 it is better. P is that of the U-test; values from 0.05 on mean
// that the rounds do not tell the two apart.
type Ratio struct {
	Times float64
	P     float64
}

// Compare computes the median of the rounds' ratios.
func (r *Report) Compare(w Workload, daemon, other string) Ratio {
	a, b := r.Of(w.Name, daemon, w.figure), r.Of(w.Name, other, w.figure)
	if len(a) == 0 || len(b) == 0 {
		return Ratio{math.NaN(), 1}
	}
	t := &benchmath.DefaultThresholds
	c := benchmath.AssumeNothing.Compare(benchmath.NewSample(slices.Clone(a), t), benchmath.NewSample(slices.Clone(b), t))
	times := r.paired(w.Name, daemon, other, w.figure)
	if w.Measure == Latency {
		times = 1 / times
	}
	return Ratio{times, c.P}
}

// paired is the median over the rounds of a daemon's figure divided by another's in the same round.
func (r *Report) paired(workload, daemon, other string, figure func(Sample) float64) float64 {
	of := map[int]float64{}
	for _, s := range r.Samples {
		if s.Workload == workload && s.Daemon == other && s.Bad == "" && s.Ops > 0 {
			of[s.Round] = figure(s)
		}
	}
	var v []float64
	for _, s := range r.Samples {
		if o := of[s.Round]; s.Workload == workload && s.Daemon == daemon && s.Bad == "" && s.Ops > 0 && o > 0 {
			v = append(v, figure(s)/o)
		}
	}
	return stat(v).Center
}

// origin is the daemon that another one is a variant of, or itself.
func (r *Report) origin(daemon string) string {
	if of := r.Variants[daemon]; of != "" {
		return of
	}
	return daemon
}

// Peer reports whether a daemon is another program than the first: not a variant of it.
func (r *Report) Peer(daemon string) bool { return r.origin(daemon) != r.origin(r.Daemons[0]) }

// Best is the best of all daemons on a workload but one and its variants; "" if there is none.
func (r *Report) Best(w Workload, but string) string {
	best := ""
	for _, d := range r.Daemons {
		if r.origin(d) == r.origin(but) || len(r.Of(w.Name, d, w.figure)) == 0 {
			continue
		}
		if best == "" || r.Compare(w, d, best).Times > 1 {
			best = d
		}
	}
	return best
}

// With is the report with what another run counted, or measured of scale; r may be nil.
func (r *Report) With(other *Report) *Report {
	if r == nil {
		return other
	}
	for _, d := range other.Daemons {
		if slices.Contains(r.Daemons, d) {
			continue
		}
		r.Daemons = append(r.Daemons, d)
		if of := other.Variants[d]; of != "" {
			r.Variants, r.Options = put(r.Variants, d, of), put(r.Options, d, other.Options[d])
		}
	}
	if len(other.Calls) > 0 {
		r.Calls = other.Calls
	}
	if len(other.Points) > 0 {
		r.Points = other.Points
	}
	return r
}

func put(m map[string]string, k, v string) map[string]string {
	if m == nil {
		m = map[string]string{}
	}
	m[k] = v
	return m
}

// WriteTable prints what is in the report.
func (r *Report) WriteTable(out io.Writer) {
	if len(r.Work) > 0 {
		r.writeSamples(out)
	}
	r.writeStates(out)
	writeRows(out, r.Modes())
	writeRows(out, r.CallTable())
	writeRows(out, r.ScaleTable())
	if len(r.FloorUS) > 0 {
		fmt.Fprintf(out, "floor: eventfd there and back between two sleeping threads %.1f µs p50; %d rounds; ", stat(r.FloorUS).Center, r.Rounds)
	}
	fmt.Fprintf(out, "%s, %s processors, Linux %s, load %s\n", r.Host["cpu"], r.Host["cpus"], r.Host["kernel"], r.Host["load"])
}

// writeRows prints a table whose first row is its head; of no more than that, nothing.
func writeRows(out io.Writer, rows [][]string) {
	if len(rows) < 2 {
		return
	}
	t := table.NewWriter()
	t.SetOutputMirror(out)
	t.SetStyle(table.StyleLight)
	for i, cells := range rows {
		row := make(table.Row, len(cells))
		for k, c := range cells {
			row[k] = c
		}
		if i == 0 {
			t.AppendHeader(row)
		} else {
			t.AppendRow(row)
		}
	}
	t.Render()
}

// CPU reads a sample's processor time.
func CPU(s Sample) float64 { return s.CPU }

// Thriftiest is the peer of the first daemon that takes the least processor time for a workload; "" if there is none.
func (r *Report) Thriftiest(w Workload) string {
	best, least := "", math.Inf(1)
	for _, d := range r.Daemons {
		if v := r.Of(w.Name, d, CPU); r.Peer(d) && len(v) > 0 && stat(v).Center < least {
			best, least = d, stat(v).Center
		}
	}
	return best
}

// floorTimes is a daemon's p50 as a multiple of the floor of the same round, where a request waits for the reply before it.
func (r *Report) floorTimes(w Workload, daemon string) string {
	if w.Measure != Latency {
		return ""
	}
	var v []float64
	for _, s := range r.Samples {
		if s.Workload == w.Name && s.Daemon == daemon && s.Bad == "" && s.Ops > 0 && s.Round < len(r.FloorUS) {
			v = append(v, s.P50/r.FloorUS[s.Round])
		}
	}
	if len(v) == 0 {
		return "-"
	}
	return fmt.Sprintf("%.2f", stat(v).Center)
}

// Modes is the table of the first daemon and its variants: processor time for an operation against the peer that takes the least, and p50
// against the floor. Nil without variants.
func (r *Report) Modes() [][]string {
	var modes []string
	for _, d := range r.Daemons {
		if !r.Peer(d) {
			modes = append(modes, d)
		}
	}
	if len(modes) < 2 {
		return nil
	}
	head := []string{"workload"}
	for _, d := range modes {
		head = append(head, d+" CPU", ": least other", "p50 : floor")
	}
	rows := [][]string{head}
	for _, w := range r.Work {
		row := []string{w.Name}
		peer := r.Thriftiest(w)
		for _, d := range modes {
			cpu := r.Of(w.Name, d, CPU)
			if len(cpu) == 0 {
				row = append(row, r.Failure(w.Name, d), "", "")
				continue
			}
			against := "-"
			if peer != "" {
				against = fmt.Sprintf("%.2f %s", r.paired(w.Name, d, peer, CPU), peer)
			}
			row = append(row, fmt.Sprintf("%.2f µs", stat(cpu).Center), against, r.floorTimes(w, d))
		}
		rows = append(rows, row)
	}
	return rows
}

// CallTable is the table of system calls, a row a workload; of no workload, the head alone.
func (r *Report) CallTable() [][]string {
	rows := [][]string{append([]string{"system calls", "per"}, r.Daemons...)}
	for _, c := range r.Calls {
		i := slices.IndexFunc(rows, func(row []string) bool { return row[0] == c.Workload })
		if i < 0 {
			row := make([]string, 2+len(r.Daemons))
			row[0] = c.Workload
			i, rows = len(rows), append(rows, row)
		}
		if c.Per != "" {
			rows[i][1] = c.Per
		}
		rows[i][2+slices.Index(r.Daemons, c.Daemon)] = c.Text()
	}
	return rows
}

// ScaleTable is the table of what an item costs among n, medians of rounds; of no points, the head alone.
func (r *Report) ScaleTable() [][]string {
	rows := [][]string{append([]string{"cost per item", "n", "unit"}, r.Daemons...)}
	for _, what := range scaleOrder {
		var sizes []int
		unit := ""
		for _, p := range r.Points {
			if p.What == what {
				sizes, unit = append(sizes, p.N), p.Unit
			}
		}
		slices.Sort(sizes)
		for _, n := range slices.Compact(sizes) {
			row := []string{what, fmt.Sprint(n), unit}
			for _, d := range r.Daemons {
				row = append(row, r.cost(what, n, d))
			}
			rows = append(rows, row)
		}
	}
	return rows
}

// writeSamples prints the workloads. The last columns compare the first daemon with the best of the others.
func (r *Report) writeSamples(out io.Writer) {
	t := table.NewWriter()
	t.SetOutputMirror(out)
	t.SetStyle(table.StyleLight)
	head := table.Row{"workload"}
	for _, d := range r.Daemons {
		head = append(head, d)
	}
	if len(r.Daemons) > 1 {
		head = append(head, r.Daemons[0]+" : best other", "cpu : its cpu")
	}
	t.AppendHeader(head)
	product, n := 1.0, 0
	for _, w := range r.Work {
		row := table.Row{w.Name}
		for _, d := range r.Daemons {
			row = append(row, r.cell(w, d))
		}
		if len(r.Daemons) > 1 {
			best := r.Best(w, r.Daemons[0])
			c := r.Compare(w, r.Daemons[0], best)
			if math.IsNaN(c.Times) {
				row = append(row, "-", "-")
			} else {
				row = append(row, fmt.Sprintf("%.2f × %s (p=%.3f)", c.Times, best, c.P), fmt.Sprintf("%.2f", r.paired(w.Name, r.Daemons[0], best, CPU)))
				product, n = product*c.Times, n+1
			}
		}
		t.AppendRow(row)
	}
	if n > 0 && len(r.Daemons) > 1 {
		foot := make(table.Row, len(head))
		for i := range foot {
			foot[i] = ""
		}
		foot[0], foot[len(foot)-2] = "geometric mean", fmt.Sprintf("%.2f", math.Pow(product, 1/float64(n)))
		t.AppendFooter(foot)
	}
	t.Render()
}

// Failure says why there is no figure of a workload and a daemon.
func (r *Report) Failure(workload, daemon string) string {
	for _, s := range r.Samples {
		if s.Workload == workload && s.Daemon == daemon && s.Bad != "" {
			return s.Bad
		}
	}
	return "-"
}

func (r *Report) cell(w Workload, d string) string {
	v := r.Of(w.Name, d, w.figure)
	if len(v) == 0 {
		return r.Failure(w.Name, d)
	}
	cpu := stat(r.Of(w.Name, d, CPU)).Center
	p99 := stat(r.Of(w.Name, d, func(s Sample) float64 { return s.P99 })).Center
	c := stat(v)
	spread := ""
	if half := (c.Hi - c.Lo) / 2 / c.Center * 100; !math.IsInf(half, 0) && !math.IsNaN(half) {
		spread = fmt.Sprintf(" ±%.0f%%", half)
	}
	var main string
	switch {
	case w.Measure == Latency:
		main = fmt.Sprintf("%.1f µs", c.Center)
	case w.Unit == "bytes":
		main = fmt.Sprintf("%.2f GB/s", c.Center/1e9)
	default:
		main = fmt.Sprintf("%.0f k/s", c.Center/1e3)
	}
	return fmt.Sprintf("%s%s, p99 %.0f, cpu %.2f µs", main, spread, p99, cpu)
}

func (r *Report) writeStates(out io.Writer) {
	if len(r.States) == 0 {
		return
	}
	t := table.NewWriter()
	t.SetOutputMirror(out)
	t.SetStyle(table.StyleLight)
	t.AppendHeader(table.Row{"process", "ready", "idle cpu", "rss at rest", "anon at rest", "per known inode", "kept after forget", "names known"})
	for _, d := range r.Daemons {
		of := func(f func(State) float64) float64 {
			var v []float64
			for _, s := range r.States {
				if s.Daemon == d {
					v = append(v, f(s))
				}
			}
			return stat(v).Center
		}
		known := ""
		for _, s := range r.States {
			if s.Daemon == d {
				known = fmt.Sprint(s.Known)
				if s.Refused != "" {
					known += ", then " + s.Refused
				}
			}
		}
		t.AppendRow(table.Row{
			d, fmt.Sprintf("%.1f ms", of(func(s State) float64 { return s.ReadyMS })),
			fmt.Sprintf("%.3f %%", 100*of(func(s State) float64 { return s.IdleCPU })),
			fmt.Sprintf("%.1f MiB", of(func(s State) float64 { return s.RestRSS })),
			fmt.Sprintf("%.1f MiB", of(func(s State) float64 { return s.RestAnon })),
			fmt.Sprintf("%.0f B", of(func(s State) float64 { return s.PerInode })),
			fmt.Sprintf("%.0f B", of(func(s State) float64 { return s.Kept })), known,
		})
	}
	t.Render()
}
