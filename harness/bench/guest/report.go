package guest

import (
	"fmt"
	"io"
	"math"
	"slices"
	"strings"

	"virtiofsd/harness/bench"
)

// WriteTable prints what is in the report.
func (r *Report) WriteTable(out io.Writer) {
	bench.WriteRows(out, r.Table())
	fmt.Fprintln(out, r.Method())
}

// Method says how it was measured, in what a reader has to know.
func (r *Report) Method() string {
	var with []string
	for _, name := range []string{"fio", "git"} {
		if v := r.Versions[name]; v != "" {
			with = append(with, name+" "+v)
		}
	}
	with = append(with, "the rest is busybox")
	text := fmt.Sprintf("Guest: Linux %s, %s. Rounds: %d. Host: %s. ", r.Kernel, strings.Join(with, ", "), r.Rounds, bench.Machinery(r.Host))
	if r.Accel == "kvm" {
		return text + "Accelerated by KVM."
	}
	return text + "Emulated (TCG" + r.because() + "): the emulated processor is most of what is measured, and hides what daemons differ in. Requests are far apart, so what a daemon does while it waits weighs more in its processor time."
}

func (r *Report) because() string {
	if r.NoKVM == "" {
		return ""
	}
	return ", as KVM does not work: " + r.NoKVM
}

// Table has a row for each program, the head first: each daemon's median with its processor time, and the first daemon against the best other.
func (r *Report) Table() [][]string {
	first, m := r.Daemons[0], r.measures()
	head := []string{"program"}
	for _, d := range r.Daemons {
		head = append(head, d, d+" cpu")
	}
	if len(r.Daemons) > 1 {
		head = append(head, first+" : best other", "cpu : its cpu")
	}
	rows := [][]string{head}
	for _, p := range r.Programs {
		w := p.workload()
		row := []string{p.Name}
		for _, d := range r.Daemons {
			row = append(row, r.cell(m, p, d)...)
		}
		if len(r.Daemons) > 1 {
			best := m.Best(w, first)
			if c := m.Compare(w, first, best); math.IsNaN(c.Times) {
				row = append(row, "-", "-")
			} else {
				row = append(row, fmt.Sprintf("%.2f × %s (p=%.3f)", c.Times, best, c.P), fmt.Sprintf("%.2f", m.Paired(p.Name, first, best, bench.CPU)))
			}
		}
		rows = append(rows, row)
	}
	return rows
}

// cell is a daemon's median, and its processor time.
func (r *Report) cell(m *bench.Report, p Program, d string) []string {
	of := func(f func(bench.Sample) float64) float64 { return bench.Median(m.Of(p.Name, d, f)) }
	if len(m.Of(p.Name, d, bench.CPU)) == 0 {
		return []string{m.Failure(p.Name, d), ""}
	}
	f := &FIO{
		IOPS: of(func(s bench.Sample) float64 { return s.Rate }), Bytes: of(func(s bench.Sample) float64 { return s.Rate }),
		P50: of(func(s bench.Sample) float64 { return s.P50 }), P99: of(func(s bench.Sample) float64 { return s.P99 }),
	}
	return p.words(f.P50, f, of(bench.CPU))
}

// words are a figure and the processor time of one operation or run.
func (p Program) words(seconds float64, f *FIO, cpu float64) []string {
	switch p.Unit {
	case "s":
		return []string{fmt.Sprintf("%.2f s", seconds), fmt.Sprintf("%.0f ms", cpu*1e3)}
	case "bytes":
		return []string{fmt.Sprintf("%s MB/s, p50 %.0f µs, p99 %.0f µs", digits(f.Bytes/1e6), f.P50, f.P99), fmt.Sprintf("%.0f µs/op", cpu*1e6)}
	}
	return []string{fmt.Sprintf("%s k/s, p50 %.0f µs, p99 %.0f µs", digits(f.IOPS/1e3), f.P50, f.P99), fmt.Sprintf("%.1f µs/op", cpu*1e6)}
}

// digits writes a figure with three that count.
func digits(v float64) string {
	switch {
	case v >= 100:
		return fmt.Sprintf("%.0f", v)
	case v >= 10:
		return fmt.Sprintf("%.1f", v)
	}
	return fmt.Sprintf("%.2f", v)
}

// text is a sample as a line of progress.
func (s Sample) text(p Program) string {
	if s.Bad != "" {
		return p.Name + ": " + s.Bad
	}
	cpu := s.CPU
	if s.FIO != nil {
		cpu /= float64(s.FIO.Ops)
	}
	w := p.words(s.Seconds, s.FIO, cpu)
	return fmt.Sprintf("%s: %s, cpu %s", p.Name, w[0], w[1])
}

// Others tells what the variants are; "" of none.
func (r *Report) Others() string {
	var all []string
	for _, d := range r.Daemons {
		if r.Variants[d] != "" {
			all = append(all, fmt.Sprintf("`%s` is `%s` with `%s`, and nobody's peer. ", d, r.Variants[d], r.Options[d]))
		}
	}
	return strings.Join(all, "")
}

// Whats are the programs and what they do.
func (r *Report) Whats() (all []string) {
	for _, p := range r.Programs {
		all = append(all, "`"+p.Name+"` "+p.What)
	}
	return slices.Clip(all)
}
