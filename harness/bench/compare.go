package bench

import (
	"fmt"
	"io"
	"slices"

	"golang.org/x/perf/benchmath"
)

// tolerance is how much worse a daemon may be before it counts, and significance the p below which a difference is believed.
const (
	tolerance    = 0.10
	significance = 0.05
)

// Change is one figure of a workload and a daemon in two reports.
type Change struct {
	Workload, Daemon, Figure string
	Old, New                 float64 // medians of the rounds
	P                        float64
	Times                    float64 // how many times as good as before
	Bad                      string  // what the workload fails with, which it did not before
}

// Worse reports whether the change is for the worse, by more than the tolerance, and no noise.
func (c Change) Worse() bool { return c.Bad != "" || c.P < significance && c.Times < 1/(1+tolerance) }

func (c Change) better() bool { return c.Bad == "" && c.P < significance && c.Times > 1+tolerance }

// Changes compares what both reports measured: the figure that decides, and processor time.
func (r *Report) Changes(later *Report) (all []Change) {
	for _, w := range r.Work {
		for _, d := range r.Daemons {
			if bad := later.Failure(w.Name, d); bad != "-" && len(later.Of(w.Name, d, w.figure)) == 0 && len(r.Of(w.Name, d, w.figure)) > 0 {
				all = append(all, Change{Workload: w.Name, Daemon: d, Figure: string(w.Measure), Bad: bad})
				continue
			}
			lower := w.Measure == Latency
			for _, f := range []struct {
				name  string
				of    func(Sample) float64
				lower bool // is better
			}{{string(w.Measure), w.figure, lower}, {"cpu", CPU, true}} {
				old, now := r.Of(w.Name, d, f.of), later.Of(w.Name, d, f.of)
				if len(old) == 0 || len(now) == 0 {
					continue
				}
				t := &benchmath.DefaultThresholds
				c := Change{Workload: w.Name, Daemon: d, Figure: f.name, Old: stat(old).Center, New: stat(now).Center}
				c.P = benchmath.AssumeNothing.Compare(benchmath.NewSample(slices.Clone(old), t), benchmath.NewSample(slices.Clone(now), t)).P
				if c.Times = c.New / c.Old; f.lower {
					c.Times = c.Old / c.New
				}
				all = append(all, c)
			}
		}
	}
	return all
}

// WriteChanges prints a later report's figures against this one's, and returns how many are worse.
func (r *Report) WriteChanges(out io.Writer, later *Report) (worse int) {
	rows := [][]string{{"workload", "daemon", "figure", "new : old", "p", "verdict"}}
	for _, c := range r.Changes(later) {
		row := []string{c.Workload, c.Daemon, c.Figure, c.Bad, "", ""}
		if c.Bad == "" {
			row[3], row[4] = fmt.Sprintf("%.2f", c.New/c.Old), fmt.Sprintf("%.3f", c.P)
		}
		switch {
		case c.Worse():
			row[5] = "worse"
			worse++
		case c.better():
			row[5] = "better"
		}
		rows = append(rows, row)
	}
	WriteRows(out, rows)
	if r.Idle() != later.Idle() {
		fmt.Fprintf(out, "processors were idle differently: %s, then %s; remedy: say --idle\n", r.Idle(), later.Idle())
	}
	for _, k := range []string{"cpu", "cpus", "kernel"} {
		if r.Host[k] != later.Host[k] {
			fmt.Fprintf(out, "the hosts differ in %s: %s, then %s\n", k, r.Host[k], later.Host[k])
		}
	}
	fmt.Fprintf(out, "%d of %d figures are worse by more than %.0f %%\n", worse, len(rows)-1, 100*tolerance)
	return worse
}
