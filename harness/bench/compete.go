package bench

import (
	"context"
	"fmt"
	"regexp"
	"runtime"
	"slices"
	"sync"
	"sync/atomic"
	"time"
)

// Contest is a workload at depth 1 while as many threads as there are processors compute: what a guest sees whose processors compete for the
// host's, and what it leaves to the others.
type Contest struct {
	Workload string  `json:"workload"`
	Daemon   string  `json:"daemon"`
	Round    int     `json:"round"`
	Rate     float64 `json:"rate"` // operations a second
	P50      float64 `json:"p50_us"`
	CPU      float64 `json:"cpu_us"` // the daemon's for an operation
	Left     float64 `json:"left"`   // of what the threads do alone, 0 to 1
	Bad      string  `json:"error,omitempty"`
}

// contests are the workloads of Compete, unless Only names others.
var contests = regexp.MustCompile(`^(getattr-1|read-4k-1|open-read-close|create-write-unlink)$`)

// contestTime is how many times as long as other workloads those of Compete are measured: which thread shares a processor with which changes
// a few times a second, and what a daemon gets with it by several times.
const contestTime = 4

// spinners are threads that compute.
type spinners struct {
	stop atomic.Bool
	all  sync.WaitGroup
	done atomic.Uint64 // turns
}

func spin() *spinners {
	s := &spinners{}
	for range runtime.NumCPU() {
		s.all.Go(func() {
			runtime.LockOSThread()
			defer runtime.UnlockOSThread()
			for x := uint64(1); !s.stop.Load(); {
				for range 1 << 14 {
					x = x*6364136223846793005 + 1
				}
				if x != 0 { // so that it is computed
					s.done.Add(1)
				}
			}
		})
	}
	return s
}

func (s *spinners) end() uint64 {
	s.stop.Store(true)
	s.all.Wait()
	return s.done.Load()
}

// Compete measures workloads at depth 1 against threads that compute. What is left to these is of the whole time that a daemon works,
// with its warm-up.
func Compete(ctx context.Context, o Options) (*Report, error) {
	if o.Only == nil {
		o.Only = contests
	}
	b, r, err := newShare(o)
	if err != nil {
		return nil, err
	}
	defer b.close()
	// The loop that plays the guest and the threads are goroutines of one process, each on a thread of its own.
	defer runtime.GOMAXPROCS(runtime.GOMAXPROCS(2*runtime.NumCPU() + 2))
	r.Rounds = b.Rounds
	for round := range b.Rounds {
		began := time.Now()
		alone := spin()
		time.Sleep(b.Time)
		most := float64(alone.end()) / time.Since(began).Seconds()
		for n, w := range o.Chosen() {
			if w.Depth != 1 { // a queue that is never empty is not polled
				continue
			}
			for i := range b.Daemons {
				d := b.Daemons[(i+n+round)%len(b.Daemons)]
				c := Contest{Workload: w.Name, Daemon: d.Name, Round: round}
				s, err := b.begin(ctx, d, w.Queues)
				if err == nil {
					began, others := time.Now(), spin()
					sample := s.sample(w, contestTime*b.Time, round, b.hist)
					c.Left = float64(others.end()) / time.Since(began).Seconds() / most
					c.Rate, c.P50, c.CPU, c.Bad = sample.Rate, sample.P50, sample.CPU, sample.Bad
					s.end()
				} else {
					c.Bad = err.Error()
				}
				r.Contests = append(r.Contests, c)
			}
			if err := ctx.Err(); err != nil {
				return nil, err
			}
		}
		b.Progress(fmt.Sprintf("round %d of %d: %.1f s", round+1, b.Rounds, time.Since(began).Seconds()))
	}
	return r, nil
}

// ContestTable is the table of contests, medians of rounds; of none, the head alone.
func (r *Report) ContestTable() [][]string {
	rows := [][]string{{"beside threads that compute", "daemon", "operations", "p50", "cpu", "left to the threads"}}
	var names []string
	of := map[[2]string][]Contest{}
	for _, c := range r.Contests {
		if !slices.Contains(names, c.Workload) {
			names = append(names, c.Workload)
		}
		k := [2]string{c.Workload, c.Daemon}
		of[k] = append(of[k], c)
	}
	for _, name := range names {
		for _, d := range r.Daemons {
			all := of[[2]string{name, d}]
			if len(all) == 0 {
				continue
			}
			var rate, p50, cpu, left []float64
			bad := ""
			for _, c := range all {
				if c.Bad != "" {
					bad = c.Bad
					continue
				}
				rate, p50, cpu, left = append(rate, c.Rate), append(p50, c.P50), append(cpu, c.CPU), append(left, c.Left)
			}
			row := []string{name, d, bad, "", "", ""}
			if len(rate) > 0 {
				row = []string{name, d, PerSecond(Median(rate)), fmt.Sprintf("%.1f µs", Median(p50)), fmt.Sprintf("%.2f µs", Median(cpu)), fmt.Sprintf("%.0f %%", 100*Median(left))}
			}
			rows = append(rows, row)
		}
	}
	return rows
}
