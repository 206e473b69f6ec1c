package report

import (
	"encoding/json"
	"errors"
	"fmt"
	"html"
	"io/fs"
	"math"
	"slices"
	"strings"

	"virtiofsd/harness/bench"
	"virtiofsd/harness/bench/guest"
)

// Files of adopted runs of the benchmarks; none has to be there.
const (
	benchFile       = evidenceDir + "/bench.json"        // `vfsmatrix bench --json`
	asleepBenchFile = evidenceDir + "/bench-asleep.json" // the same with --idle=machine, on one whose processors halt
	guestBenchFile  = evidenceDir + "/bench-guest.json"  // `vfsmatrix bench guest --json`
)

// measures are what they hold, nil where there is none.
type measures struct {
	rings, asleep *bench.Report
	guest         *guest.Report
}

func loadBench(tree fs.FS) (m measures, err error) {
	if m.rings, err = readReport[bench.Report](tree, benchFile); err != nil {
		return m, err
	}
	if m.asleep, err = readReport[bench.Report](tree, asleepBenchFile); err != nil {
		return m, err
	}
	if m.guest, err = readReport[guest.Report](tree, guestBenchFile); err != nil {
		return m, err
	}
	for file, nameless := range map[string]bool{
		benchFile:       m.rings != nil && len(m.rings.Daemons) == 0,
		asleepBenchFile: m.asleep != nil && len(m.asleep.Daemons) == 0,
		guestBenchFile:  m.guest != nil && len(m.guest.Daemons) == 0,
	} {
		if nameless {
			return m, fmt.Errorf("%s names no daemons; remedy: write it anew with vfsmatrix bench --json, or bench guest --json", file)
		}
	}
	return m, nil
}

// readReport reads a file of JSON; nil where there is none.
func readReport[T any](tree fs.FS, file string) (*T, error) {
	b, err := fs.ReadFile(tree, file)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("read the benchmark: %w", err)
	}
	r := new(T)
	if err := json.Unmarshal(b, r); err != nil {
		return nil, fmt.Errorf("read %s: %w", file, err)
	}
	return r, nil
}

// ratios is how the tables' comparisons are made: what a reader would divide instead is something else.
const ratios = "A ratio is the median of the ratios of each round, not the ratio of the medians beside it, so the two may differ where rounds do; " +
	"p is the probability that rounds as different as these come from equals: from 0.05 on the two cannot be told apart. "

// perPass reports whether an operation of a workload is a pass over all of its files or entries, which its rate counts one by one.
func perPass(w bench.Workload) bool {
	return w.Unit == "entries" || w.Unit == "files" || w.Name == "read-cold-128k"
}

// cpuOf is a daemon's processor time for an operation.
func cpuOf(r *bench.Report, w bench.Workload, d string) string {
	text := fmt.Sprintf("%.2f µs", median(r.Of(w.Name, d, bench.CPU)))
	if perPass(w) {
		text += " a pass"
	}
	return text
}

// figureOf is what a workload's measure reads of a sample.
func figureOf(w bench.Workload) func(bench.Sample) float64 {
	if w.Measure == bench.Latency {
		return func(s bench.Sample) float64 { return s.P50 }
	}
	return func(s bench.Sample) float64 { return s.Rate }
}

func median(v []float64) float64 {
	v = slices.Sorted(slices.Values(v))
	switch n := len(v); {
	case n == 0:
		return math.NaN()
	case n%2 == 1:
		return v[n/2]
	default:
		return (v[n/2-1] + v[n/2]) / 2
	}
}

// benchPage is the page of the benchmarks.
func benchPage(m measures) string {
	var w strings.Builder
	w.WriteString(generatedNote + "# Benchmarks\n\n")
	if m.rings == nil {
		w.WriteString("Not measured yet. `bin/vfsmatrix bench --impl ours,c,rust,rust-next --json docs/evidence/bench.json` on a machine that does nothing else, then `make fix-docs`.\n\n")
	} else {
		ringTables(&w, m.rings)
	}
	if m.asleep != nil {
		asleepTable(&w, m.asleep)
	}
	if g := m.guest; g != nil {
		fmt.Fprintf(&w, "## In a guest\n\nWhat programs in a virtual machine see: each round has a fresh process of the daemon, a fresh guest and a fresh copy of the share, and the guest's caches are dropped before each program. "+
			"Medians; `cpu` is the processor time of the daemon's processes: for one operation of fio, and for the whole run of another program. %s%s%s\n\n", ratios, g.Others(), cellText(g.Method()))
		benchTable(&w, g.Table())
		w.WriteString("The programs: " + strings.Join(g.Whats(), "; ") + ".\n")
	}
	return w.String()
}

// asleepTable compares the first daemon with the best other where processors that have nothing to do are slow to come back.
func asleepTable(w *strings.Builder, r *bench.Report) {
	first := r.Daemons[0]
	fmt.Fprintf(w, "## Where processors fall asleep\n\nThe same workloads where a processor with nothing to do is slow to come back: a thread that sleeps and is woken costs up to %.0f µs there and back, depending on the host. "+
		"A daemon that saves a wake-up is far ahead at depth 1. %d rounds; host: %s. %s\n\n", slices.Max(append(r.FloorUS, 0)), r.Rounds, cellText(bench.Machinery(r.Host)), strings.TrimSpace(ratios))
	var rows [][]string
	for _, wl := range r.Work {
		if best := r.Best(wl, first); best != "" && len(r.Of(wl.Name, first, figureOf(wl))) > 0 {
			c := r.Compare(wl, first, best)
			rows = append(rows, []string{wl.Name, amount(r, wl, first), cpuOf(r, wl, first), title(best), amount(r, wl, best), cpuOf(r, wl, best), fmt.Sprintf("%.2f × (p=%.3f)", c.Times, c.P)})
		}
	}
	mdTable(w, []string{"workload", title(first), "CPU", "the best other", "has", "CPU", title(first) + " against it"}, rows)
}

// ringTables are what was measured without a guest.
func ringTables(w *strings.Builder, r *bench.Report) {
	if len(r.Work) > 0 {
		workloadTables(w, r)
	}
	if len(r.States) > 0 {
		stateTable(w, r)
	}
	if rows := r.CallTable(); len(rows) > 1 {
		w.WriteString("## System calls\n\nOf the daemon's processes, counted by strace in a run of its own: for each operation, entry or file, including what cleans up after it. A traced daemon is slower, so it sleeps and wakes more often.\n\n")
		benchTable(w, rows)
	}
	if rows := r.ScaleTable(); len(rows) > 1 {
		w.WriteString("## Scale\n\nWhat one item costs among n: a total cost that grows in proportion to n shows as a constant. With several queues it is the time from one reply to the next, on whichever queue.\n\n")
		benchTable(w, rows)
	}
	if rows := r.ContestTable(); len(rows) > 1 {
		w.WriteString("## Beside threads that compute\n\nAs many threads as there are processors compute while a guest makes requests at depth 1: what the guest gets, and how much the threads still do of what they do alone.\n\n")
		benchTable(w, rows)
	}
	if rows := r.StartTable(); len(rows) > 1 {
		w.WriteString("## Until a daemon is ready\n\nFrom the launcher's exec, including the wrapper that the scenario puts before the daemon, until the socket exists: medians. - stands for what a daemon cannot do or refuses.\n\n")
		benchTable(w, rows)
	}
	if rows := r.ReplyTable(); len(rows) > 1 {
		w.WriteString("## Until a daemon answers\n\nFrom exec until INIT is answered, with a front-end that connects the moment that the socket is there and sets so many request queues up: medians. - stands for a daemon that does not offer several queues.\n\n")
		benchTable(w, rows)
	}
}

// benchTable writes a table whose first row is its head.
func benchTable(w *strings.Builder, rows [][]string) {
	for _, row := range rows {
		for i := range row {
			row[i] = cellText(row[i])
		}
	}
	mdTable(w, rows[0], rows[1:])
}

func workloadTables(w *strings.Builder, r *bench.Report) {
	first := r.Daemons[0]
	fmt.Fprintf(w, "Daemons take turns (A B, B A, …), with a fresh process for each of %d rounds and without a virtual machine: a vhost-user front-end drives the rings. Figures are medians of the rounds. "+
		"Host: %s. A thread that sleeps on an eventfd and is woken takes %.1f µs there and back on this machine: no daemon that sleeps between requests can be faster than that at depth 1.\n\n",
		r.Rounds, bench.Machinery(r.Host), median(r.FloorUS))
	fmt.Fprintf(w, "## How many times as fast: %s against each other daemon\n\nRight of the line `%s` is faster, left of it slower. Pale bars: the rounds do not tell the two apart (p ≥ 0.05).\n\n![ratios](benchmarks.svg)\n\n", title(first), first)
	head := []string{"workload", "what"}
	for _, d := range r.Daemons {
		head = append(head, title(d), "CPU")
	}
	head = append(head, "against the best other")
	var rows [][]string
	for _, wl := range r.Work {
		row := []string{wl.Name, cellText(wl.What)}
		for _, d := range r.Daemons {
			row = append(row, amount(r, wl, d), cpuOf(r, wl, d))
			if len(r.Of(wl.Name, d, figureOf(wl))) == 0 {
				row[len(row)-2], row[len(row)-1] = cellText(r.Failure(wl.Name, d)), ""
			}
		}
		best := r.Best(wl, first)
		text := ""
		if best != "" && len(r.Of(wl.Name, first, figureOf(wl))) > 0 {
			c := r.Compare(wl, first, best)
			text = fmt.Sprintf("%.2f × %s (p=%.3f)", c.Times, best, c.P)
		}
		rows = append(rows, append(row, text))
	}
	mdTable(w, head, rows)
	w.WriteString("CPU is the processor time of the daemon's processes for one operation; \"a pass\" is one over all the entries, files or blocks that the workload names, while the rate beside it counts each of them. Latencies are p50.\n\n" +
		ratios + "\n\n")
	if rows := r.Modes(); rows != nil {
		fmt.Fprintf(w, "## Variants of %s\n\n", title(first))
		for _, d := range r.Daemons {
			if r.Variants[d] != "" && !r.Peer(d) {
				fmt.Fprintf(w, "`%s` is `%s` with `%s`. ", d, r.Variants[d], r.Options[d])
			}
		}
		w.WriteString("Processor time for an operation compared with the other daemon that takes the least, and at depth 1 p50 as a multiple of the wake-up above.\n\n")
		benchTable(w, rows)
	}
}

func stateTable(w *strings.Builder, r *bench.Report) {
	w.WriteString("## What a process costs\n\n")
	var rows [][]string
	for _, d := range r.Daemons {
		of := func(f func(bench.State) float64) float64 {
			var v []float64
			for _, s := range r.States {
				if s.Daemon == d {
					v = append(v, f(s))
				}
			}
			return median(v)
		}
		rows = append(rows, []string{
			title(d), fmt.Sprintf("%.1f ms", of(func(s bench.State) float64 { return s.ReadyMS })),
			fmt.Sprintf("%.3f %%", 100*of(func(s bench.State) float64 { return s.IdleCPU })),
			fmt.Sprintf("%.1f MiB", of(func(s bench.State) float64 { return s.RestRSS })),
			fmt.Sprintf("%.0f B", of(func(s bench.State) float64 { return s.PerInode })),
			fmt.Sprintf("%.0f", of(func(s bench.State) float64 { return float64(s.Known) })),
		})
	}
	mdTable(w, []string{"daemon", "until ready", "idle CPU", "resident at rest", "memory per known inode", "names known before it refused or was stopped"}, rows)
}

// amount is a daemon's figure in a workload's unit.
func amount(r *bench.Report, w bench.Workload, d string) string {
	v := median(r.Of(w.Name, d, figureOf(w)))
	switch {
	case w.Measure == bench.Latency:
		return fmt.Sprintf("%.1f µs", v)
	case w.Unit == "bytes":
		return fmt.Sprintf("%.2f GB/s", v/1e9)
	}
	return bench.PerSecond(v)
}

// benchChart draws the ratios on a logarithmic axis: a bar to the right of 1 is a workload on which the first daemon is faster.
func benchChart(r *bench.Report) string {
	const left, width, bar, gap, top = 190, 760, 13, 10, 48
	first := r.Daemons[0]
	span := 2.0 // the axis goes from 1/span to span
	type row struct {
		workload, peer string
		ratio          bench.Ratio
	}
	var groups [][]row
	for _, w := range r.Work {
		var g []row
		for _, d := range r.Daemons[1:] {
			c := r.Compare(w, first, d)
			if r.Peer(d) && !math.IsNaN(c.Times) && c.Times > 0 {
				g = append(g, row{w.Name, d, c})
				span = max(span, c.Times, 1/c.Times)
			}
		}
		if len(g) > 0 {
			groups = append(groups, g)
		}
	}
	span = math.Pow(2, math.Ceil(math.Log2(span)))
	plot := float64(width - left - 70)
	x := func(times float64) float64 { return left + plot*(math.Log(times)/math.Log(span)+1)/2 }

	var s strings.Builder
	y := top
	for _, g := range groups {
		fmt.Fprintf(&s, "<text x=\"%d\" y=\"%d\" text-anchor=\"end\">%s</text>\n", left-10, y+bar*len(g)/2+5, html.EscapeString(g[0].workload))
		for _, b := range g {
			from, to := x(1), x(b.ratio.Times)
			class := fmt.Sprintf("p%d", slices.Index(r.Daemons, b.peer))
			if b.ratio.P >= 0.05 {
				class += " pale"
			}
			at, anchor := to+5, "start"
			if to < from {
				at, anchor = to-5, "end"
			}
			fmt.Fprintf(&s, "<rect class=\"%s\" x=\"%.1f\" y=\"%d\" width=\"%.1f\" height=\"%d\"/><text class=\"small\" x=\"%.1f\" y=\"%d\" text-anchor=\"%s\">%.2f</text>\n",
				class, min(from, to), y, math.Abs(to-from), bar-2, at, y+bar-3, anchor, b.ratio.Times)
			y += bar
		}
		y += gap
	}
	var axis strings.Builder
	for t := 1 / span; t <= span; t *= 2 {
		class := "grid"
		if t == 1 {
			class = "one"
		}
		label := fmt.Sprintf("%g×", t)
		if t < 1 {
			label = fmt.Sprintf("1/%g", 1/t)
		}
		fmt.Fprintf(&axis, "<path class=\"%s\" d=\"M%.1f %d V%d\"/><text class=\"small\" x=\"%.1f\" y=\"%d\" text-anchor=\"middle\">%s</text>\n", class, x(t), top-8, y, x(t), top-14, label)
	}
	lx := left
	for i, d := range r.Daemons[1:] {
		if !r.Peer(d) {
			continue
		}
		name := "against " + title(d)
		fmt.Fprintf(&axis, "<rect class=\"p%d\" x=\"%d\" y=\"6\" width=\"12\" height=\"12\"/><text x=\"%d\" y=\"17\">%s</text>\n", i+1, lx, lx+18, html.EscapeString(name))
		lx += 40 + 8*len(name)
	}
	return fmt.Sprintf(`<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 %d %d" width="%d" height="%d" role="img" aria-label="How many times as fast as the other daemons">
<style>
text { font: 13px system-ui, sans-serif; fill: #1b1f24; } .small { font-size: 11px; fill: #59636e; }
.bg { fill: #fff; } .grid { stroke: #e1e5e9; } .one { stroke: #1b1f24; } .p1 { fill: #3b6fb6; } .p2 { fill: #c2722b; } .p3 { fill: #7a4fa3; } .p4 { fill: #4d8a57; } .pale { opacity: .35; }
</style>
<rect class="bg" width="%d" height="%d"/>
%s%s</svg>
`, width, y+6, width, y+6, width, y+6, axis.String(), s.String())
}
