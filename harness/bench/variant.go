package bench

import (
	"fmt"
	"math"
)

// origin is the daemon that another one is a variant of, or itself.
func (r *Report) origin(daemon string) string {
	if of := r.Variants[daemon]; of != "" {
		return of
	}
	return daemon
}

// Peer reports whether a daemon is another program than the first: not a variant of it.
func (r *Report) Peer(daemon string) bool { return r.origin(daemon) != r.origin(r.Daemons[0]) }

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
				against = fmt.Sprintf("%.2f %s", r.Paired(w.Name, d, peer, CPU), peer)
			}
			row = append(row, fmt.Sprintf("%.2f µs", stat(cpu).Center), against, r.floorTimes(w, d))
		}
		rows = append(rows, row)
	}
	return rows
}
