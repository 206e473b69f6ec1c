package bench

import (
	"fmt"
	"io"
	"maps"
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

// CPU reads a sample's processor time.
func CPU(s Sample) float64 { return s.CPU }

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
	times := r.Paired(w.Name, daemon, other, w.figure)
	if w.Measure == Latency {
		times = 1 / times
	}
	return Ratio{times, c.P}
}

// Paired is the median over the rounds of a daemon's figure divided by another's in the same round.
func (r *Report) Paired(workload, daemon, other string, figure func(Sample) float64) float64 {
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
		if !slices.Contains(r.Daemons, d) {
			r.Daemons = append(r.Daemons, d)
		}
	}
	if r.Variants == nil {
		r.Variants, r.Options = map[string]string{}, map[string]string{}
	}
	maps.Copy(r.Variants, other.Variants)
	maps.Copy(r.Options, other.Options)
	if len(other.Calls) > 0 {
		r.Calls = other.Calls
	}
	if len(other.Points) > 0 {
		r.Points = other.Points
	}
	if len(other.Starts) > 0 {
		r.Starts = other.Starts
	}
	if len(other.Replies) > 0 {
		r.Replies = other.Replies
	}
	if len(other.Contests) > 0 {
		r.Contests = other.Contests
	}
	return r
}

// WriteTable prints what is in the report.
func (r *Report) WriteTable(out io.Writer) {
	if len(r.Work) > 0 {
		r.writeSamples(out)
	}
	r.writeStates(out)
	WriteRows(out, r.Modes())
	WriteRows(out, r.CallTable())
	WriteRows(out, r.ScaleTable())
	WriteRows(out, r.ContestTable())
	WriteRows(out, r.StartTable())
	WriteRows(out, r.ReplyTable())
	if len(r.FloorUS) > 0 {
		fmt.Fprintf(out, "floor: eventfd there and back between two sleeping threads %.1f µs p50; %d rounds; ", stat(r.FloorUS).Center, r.Rounds)
	}
	fmt.Fprintln(out, Machinery(r.Host))
}

// Idle says what processors did that had nothing to do.
func (r *Report) Idle() string { return idle(r.Host) }

func idle(host map[string]string) string {
	if how := host["idle"]; how != "" {
		return how
	}
	return "as the machine does" // of a report from before there was a choice
}

// Machinery describes a host in a line.
func Machinery(host map[string]string) string {
	return fmt.Sprintf("%s, %s processors (idle: %s), Linux %s, load %s", host["cpu"], host["cpus"], idle(host), host["kernel"], host["load"])
}

// with is the report's daemons, less those of which a list has nothing: they were measured in other ways only.
func (r *Report) with(each func(yield func(daemon string))) []string {
	there := map[string]bool{}
	each(func(d string) { there[d] = true })
	return slices.DeleteFunc(slices.Clone(r.Daemons), func(d string) bool { return !there[d] })
}

// StartTable says how long each daemon takes until it is ready, a row for each scenario: medians of the rounds. The first row is the head.
func (r *Report) StartTable() [][]string {
	daemons := r.with(func(yield func(string)) {
		for _, s := range r.Starts {
			yield(s.Daemon)
		}
	})
	rows := [][]string{append([]string{"ready after, ms"}, daemons...)}
	all := map[string]map[string][]float64{}
	for _, s := range r.Starts {
		if all[s.Scenario] == nil {
			all[s.Scenario] = map[string][]float64{}
		}
		if s.Why == "" {
			all[s.Scenario][s.Daemon] = append(all[s.Scenario][s.Daemon], s.ReadyMS)
		}
	}
	for _, name := range slices.Sorted(maps.Keys(all)) {
		row := []string{name}
		for _, d := range daemons {
			if v := all[name][d]; len(v) > 0 {
				row = append(row, fmt.Sprintf("%.1f", stat(v).Center))
			} else {
				row = append(row, "-")
			}
		}
		rows = append(rows, row)
	}
	return rows
}

// WriteRows prints a table whose first row is its head; of no more than that, nothing.
func WriteRows(out io.Writer, rows [][]string) {
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
				row = append(row, fmt.Sprintf("%.2f × %s (p=%.3f)", c.Times, best, c.P), fmt.Sprintf("%.2f", r.Paired(w.Name, r.Daemons[0], best, CPU)))
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
		main = PerSecond(c.Center)
	}
	return fmt.Sprintf("%s%s, p99 %.0f, cpu %.2f µs", main, spread, p99, cpu)
}

// PerSecond is a rate for people.
func PerSecond(rate float64) string {
	if rate < 10e3 {
		return fmt.Sprintf("%.0f /s", rate)
	}
	return fmt.Sprintf("%.0f k/s", rate/1e3)
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

// Median is the median of rounds; NaN of none.
func Median(v []float64) float64 { return stat(v).Center }
