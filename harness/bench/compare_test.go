package bench_test

import (
	"strings"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"virtiofsd/harness/bench"
)

// times is a series of rounds, each so many times what it was.
func times(v []float64, k float64) []float64 {
	out := make([]float64, len(v))
	for i := range v {
		out[i] = k * v[i]
	}
	return out
}

func TestCompareReports(t *testing.T) {
	quiet := []float64{10, 10.1, 10.2, 10.3, 9.9, 9.8, 9.7}
	noisy := []float64{10, 30, 12, 50, 8, 40, 20}
	old := report(quiet, noisy)
	for name, tc := range map[string]struct {
		a, b  []float64
		worse []string // daemon and figure
		says  string
	}{
		"the same":             {quiet, noisy, nil, "0 of 4"},
		"slower by a half":     {times(quiet, 1.5), noisy, []string{"a p50"}, "1 of 4"},
		"slower by a little":   {times(quiet, 1.08), noisy, nil, "0 of 4"},
		"faster":               {times(quiet, 0.5), noisy, nil, "better"},
		"slower, but so noisy": {quiet, times(noisy, 1.2), nil, "0 of 4"},
		"too few rounds":       {times(quiet[:2], 3), noisy[:2], nil, "0 of 4"},
	} {
		t.Run(name, func(t *testing.T) {
			var worse []string
			now := report(tc.a, tc.b)
			for _, c := range old.Changes(now) {
				if c.Worse() {
					worse = append(worse, c.Daemon+" "+c.Figure)
				}
			}
			assert.Equal(t, tc.worse, worse)
			var out strings.Builder
			assert.Equal(t, len(tc.worse), old.WriteChanges(&out, now))
			assert.Contains(t, out.String(), tc.says)
		})
	}
}

func TestCompareRatesAndProcessorTime(t *testing.T) {
	v := []float64{10, 11, 12, 10, 11, 12, 11}
	old, now := report(v, v), report(times(v, 2), v) // Rate is 1 / v
	old.Work[0].Measure, now.Work[0].Measure = bench.Rate, bench.Rate
	for i := range now.Samples {
		if now.Samples[i].Daemon == "b" {
			now.Samples[i].CPU *= 1.2
		}
	}
	got := map[string]bool{}
	for _, c := range old.Changes(now) {
		got[c.Daemon+" "+c.Figure] = c.Worse()
	}
	assert.Equal(t, map[string]bool{"a rate": true, "a cpu": false, "b rate": false, "b cpu": true}, got)
}

func TestCompareFailures(t *testing.T) {
	v := []float64{10, 11, 12, 10, 11, 12, 11}
	old, now := report(v, v), report(v, v)
	for i := range now.Samples {
		if now.Samples[i].Daemon == "b" {
			now.Samples[i] = bench.Sample{Workload: "w", Daemon: "b", Bad: "GETATTR: EIO"}
		}
	}
	now.Host = map[string]string{"kernel": "7.0"}
	var out strings.Builder
	assert.Equal(t, 1, old.WriteChanges(&out, now), "what worked fails now")
	assert.Contains(t, out.String(), "GETATTR: EIO")
	assert.Contains(t, out.String(), "the hosts differ in kernel")
	assert.Zero(t, now.WriteChanges(&out, old), "what failed works now")
	now.Samples = nil
	assert.Empty(t, old.Changes(now), "what was not measured is not worse")
}

func TestVariantsAreNoPeers(t *testing.T) {
	v := []float64{10, 11, 12, 10, 11, 12, 11}
	r := report(v, times(v, 2))
	r.FloorUS = times(v, 0.5)
	r.Daemons = append(r.Daemons, "a2")
	r.Variants = map[string]string{"a2": "a"}
	for i, us := range v {
		r.Samples = append(r.Samples, bench.Sample{Workload: "w", Daemon: "a2", Round: i, Ops: 1, P50: us / 4, Rate: 4 / us, CPU: 0.5})
	}
	assert.Equal(t, "b", r.Best(r.Work[0], "a"))
	assert.Equal(t, "b", r.Thriftiest(r.Work[0]))
	rows := r.Modes()
	require.Len(t, rows, 2)
	assert.Equal(t, []string{"w", "1.00 µs", "0.50 b", "2.00", "0.50 µs", "0.25 b", "0.50"}, rows[1])
	r.Variants = nil
	assert.Nil(t, r.Modes())
}
