package bench_test

import (
	"context"
	"encoding/json"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"virtiofsd/harness/bench"
	"virtiofsd/harness/frontend"
	"virtiofsd/internal/testenv"
)

// Every workload runs on a daemon that this project did not write, and moves something.
func TestWorkloadsRunOnThePeer(t *testing.T) {
	testenv.Need(t, "root", "c-daemon")
	c := frontend.Daemon{Name: "c", Dialect: "c", Exec: []string{testenv.QEMUVirtiofsd}}
	r, err := bench.Run(context.Background(), bench.Options{Daemons: []frontend.Daemon{c}, Rounds: 1, Time: 20 * time.Millisecond, Dir: t.TempDir()})
	require.NoError(t, err)
	require.Len(t, r.Samples, len(bench.Workloads()))
	for _, s := range r.Samples {
		assert.Empty(t, s.Bad, s.Workload)
		assert.Positive(t, s.Ops, s.Workload)
		assert.Positive(t, s.Rate, s.Workload)
		assert.Positive(t, s.CPU, s.Workload)
		assert.LessOrEqual(t, s.P50, s.P99, s.Workload)
	}
	require.Len(t, r.States, 1)
	assert.Positive(t, r.States[0].Known)
	_, err = json.Marshal(r)
	require.NoError(t, err)
}

func TestOnlyAndFailures(t *testing.T) {
	none := frontend.Daemon{Name: "none", Dialect: "ours", Exec: []string{"/bin/false"}}
	_, err := bench.Run(context.Background(), bench.Options{Daemons: []frontend.Daemon{none}, Rounds: 1, Time: time.Millisecond, Dir: t.TempDir(), Only: regexp.MustCompile("^getattr-1$")})
	assert.ErrorContains(t, err, "round 1: none")
}

func report(a, b []float64) *bench.Report {
	w := bench.Workload{Name: "w", Measure: bench.Latency, Unit: "ops", Depth: 1}
	r := &bench.Report{Rounds: len(a), Daemons: []string{"a", "b"}, Work: []bench.Workload{w}, FloorUS: []float64{1}}
	for i := range a {
		r.Samples = append(r.Samples,
			bench.Sample{Workload: "w", Daemon: "a", Round: i, Ops: 1, P50: a[i], Rate: 1 / a[i], CPU: 1},
			bench.Sample{Workload: "w", Daemon: "b", Round: i, Ops: 1, P50: b[i], Rate: 1 / b[i], CPU: 2})
	}
	return r
}

func TestRatios(t *testing.T) {
	r := report([]float64{10, 11, 12, 10, 11, 12, 11}, []float64{20, 22, 24, 20, 22, 24, 22})
	c := r.Compare(r.Work[0], "a", "b")
	assert.InDelta(t, 2, c.Times, 0.01, "half the latency is twice as good")
	assert.Less(t, c.P, 0.05)
	assert.Equal(t, "b", r.Best(r.Work[0], "a"))
	rate := r.Work[0]
	rate.Measure = bench.Rate
	assert.InDelta(t, 2, r.Compare(rate, "a", "b").Times, 0.01)

	same := report([]float64{10, 20, 30, 40, 50, 60, 70}, []float64{70, 10, 60, 20, 50, 30, 40})
	assert.Greater(t, same.Compare(same.Work[0], "a", "b").P, 0.05, "noise is no difference")

	var out strings.Builder
	r.WriteTable(&out)
	assert.Contains(t, out.String(), "2.00 × b")
	assert.Contains(t, out.String(), "0.50", "half the processor time")
}
