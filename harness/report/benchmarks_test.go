package report

import (
	"encoding/json"
	"math"
	"os"
	"testing"
	"testing/fstest"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"virtiofsd/harness/bench"
	"virtiofsd/harness/bench/guest"
)

func TestChartPointsToTheFasterDaemon(t *testing.T) {
	r := &bench.Report{
		Daemons: []string{"ours", "c"}, Rounds: 1, FloorUS: []float64{5},
		Work: []bench.Workload{
			{Name: "getattr-1", What: "latency", Measure: bench.Latency, Unit: "ops"},
			{Name: "read-1m", What: "rate", Measure: bench.Rate, Unit: "bytes"},
			{Name: "broken", What: "fails", Measure: bench.Rate, Unit: "ops"},
		},
		Samples: []bench.Sample{
			{Workload: "getattr-1", Daemon: "ours", Ops: 1, P50: 5}, {Workload: "getattr-1", Daemon: "c", Ops: 1, P50: 10},
			{Workload: "read-1m", Daemon: "ours", Ops: 1, Rate: 1e9}, {Workload: "read-1m", Daemon: "c", Ops: 1, Rate: 4e9},
			{Workload: "broken", Daemon: "ours", Ops: 1, Rate: 1e3}, {Workload: "broken", Daemon: "c", Bad: "EIO"},
		},
	}
	svg := benchChart(r)
	assert.Regexp(t, `text-anchor="start">2\.00<`, svg, "half the latency is twice as fast, to the right")
	assert.Regexp(t, `text-anchor="end">0\.25<`, svg, "a quarter of the rate is to the left")
	assert.NotContains(t, svg, "NaN")
	assert.NotContains(t, svg, "broken")
	assert.Contains(t, svg, "pale", "one round tells nothing apart")

	page := benchPage(measures{rings: r})
	assert.Regexp(t, `getattr-1 \| latency \| 5\.0 µs .*10\.0 µs .*2\.00 × c`, page)
	assert.Regexp(t, `broken \| fails \| 1000 /s .*EIO`, page)
	assert.Contains(t, benchPage(measures{}), "Not measured yet")
	for _, title := range []string{"## Variants", "## System calls", "## Scale", "## Until a daemon is", "## Until a daemon answers", "## Beside threads", "## Where processors", "## In a guest"} {
		assert.NotContains(t, page, title, "nothing of that was measured")
	}
}

func TestBenchPageShowsWhatElseWasMeasured(t *testing.T) {
	r := &bench.Report{
		Daemons: []string{"ours", "c", "no-poll"}, Rounds: 1, FloorUS: []float64{5},
		Variants: map[string]string{"no-poll": "ours"}, Options: map[string]string{"no-poll": "--poll-us=0"},
		Work: []bench.Workload{{Name: "getattr-1", What: "latency", Measure: bench.Latency, Unit: "ops", Depth: 1}},
		Samples: []bench.Sample{
			{Workload: "getattr-1", Daemon: "ours", Ops: 1, P50: 5, CPU: 8}, {Workload: "getattr-1", Daemon: "c", Ops: 1, P50: 10, CPU: 4},
			{Workload: "getattr-1", Daemon: "no-poll", Ops: 1, P50: 4, CPU: 2},
		},
		Calls: []bench.Calls{
			{Workload: "getattr-1", Daemon: "ours", Per: "op", Count: map[string]float64{"write": 1, "fstat": 2, "mmap": 0.001}},
			{Workload: "getattr-1", Daemon: "c", Bad: "one queue"},
		},
		Points: []bench.Point{{What: "READDIRPLUS of n entries, per entry", Unit: "µs", N: 1000, Daemon: "c", Value: 3}},
		Starts: []bench.Start{
			{Scenario: "b-user", Daemon: "ours", ReadyMS: 12}, {Scenario: "b-user", Daemon: "ours", ReadyMS: 14},
			{Scenario: "b-user", Daemon: "c", Why: "it needs root"},
		},
		Replies: []bench.Reply{
			{Queues: 1, Daemon: "ours", MS: 12}, {Queues: 1, Daemon: "ours", MS: 14}, {Queues: 1, Daemon: "c", MS: 10},
			{Queues: 64, Daemon: "ours", MS: 50}, {Queues: 64, Daemon: "c", Bad: "one queue"},
		},
		Contests: []bench.Contest{{Workload: "getattr-1", Daemon: "ours", Rate: 2000, P50: 3, CPU: 4, Left: 0.5}, {Workload: "getattr-1", Daemon: "c", Bad: "EIO"}},
	}
	page := benchPage(measures{rings: r})
	assert.Contains(t, page, "2.00 × c", "a variant is no peer")
	assert.Contains(t, page, "`no-poll` is `ours` with `--poll-us=0`")
	assert.Contains(t, page, "| getattr-1 | 8.00 µs | 2.00 c | 1.00 | 2.00 µs | 0.50 c | 0.80 |")
	assert.Contains(t, page, "| getattr-1 | op | 3.00: fstat 2.00, write 1.00 | one queue |  |")
	assert.Contains(t, page, "| READDIRPLUS of n entries, per entry | 1000 | µs | 3.00 |")
	assert.Contains(t, page, "| b-user | 13.0 | - |", "not being started is no figure")
	assert.Contains(t, page, "| first reply after, ms | ours | c |\n|---|---|---|\n| 1 queue | 13.0 | 10.0 |\n| 64 queues | 50.0 | - |\n", "what was not measured has no row")
	assert.NotContains(t, benchChart(r), "no-poll")
	assert.Contains(t, page, "| getattr-1 | ours | 2000 /s | 3.0 µs | 4.00 µs | 50 % |")
	assert.Contains(t, page, "| getattr-1 | c | EIO |  |  |  |")

	r.FloorUS = []float64{3, 40}
	page = benchPage(measures{asleep: r})
	assert.Contains(t, page, "## Where processors fall asleep")
	assert.Contains(t, page, "up to 40 µs there and back")
	assert.Regexp(t, `getattr-1 \| 5\.0 µs \| 8\.00 µs \| .* \| 10\.0 µs \| 4\.00 µs \| 2\.00 × \(p=1\.000\)`, page)
}

func TestBenchPageShowsGuests(t *testing.T) {
	sample := func(program, daemon string, seconds float64) guest.Sample {
		return guest.Sample{Program: program, Daemon: daemon, Seconds: seconds, CPU: seconds / 10}
	}
	g := &guest.Report{
		Daemons: []string{"ours", "c"}, Rounds: 1, Accel: "tcg", NoKVM: "no /dev/kvm", Kernel: "6.12",
		Programs: []guest.Program{{Name: "tar-x", What: "tar -x", Unit: "s"}},
		Samples:  []guest.Sample{sample("tar-x", "ours", 2), sample("tar-x", "c", 4)},
	}
	page := benchPage(measures{guest: g})
	assert.Contains(t, page, "Not measured yet", "of the rings")
	assert.Contains(t, page, "## In a guest")
	assert.Contains(t, page, "| tar-x | 2.00 s | 200 ms | 4.00 s | 400 ms | 2.00 × c (p=1.000) | 0.50 |")
	assert.Contains(t, page, "KVM does not work: no /dev/kvm")
	assert.Contains(t, page, "`tar-x` tar -x.")

	// The file need not be there; one that says nothing is a mistake.
	tree := fstest.MapFS{}
	none, err := loadBench(tree)
	require.NoError(t, err)
	assert.Zero(t, none)
	b, err := json.Marshal(g)
	require.NoError(t, err)
	tree[guestBenchFile] = &fstest.MapFile{Data: b}
	read, err := loadBench(tree)
	require.NoError(t, err)
	assert.Equal(t, page, benchPage(read), "what was written reads the same")
	tree[guestBenchFile] = &fstest.MapFile{Data: []byte("{}")}
	_, err = loadBench(tree)
	assert.ErrorContains(t, err, "names no daemons")
}

// TestNothingIsMeasurablySlower: what SPECIFICATION.md promises of the adopted benchmark.
func TestNothingIsMeasurablySlower(t *testing.T) {
	m, err := loadBench(os.DirFS(root))
	require.NoError(t, err)
	for name, r := range map[string]*bench.Report{benchFile: m.rings, asleepBenchFile: m.asleep} {
		if r == nil {
			continue // nothing is adopted: the page says so
		}
		first, product, n := r.Daemons[0], 1.0, 0
		for _, w := range r.Work {
			best := r.Best(w, first)
			if best == "" {
				continue
			}
			c := r.Compare(w, first, best)
			assert.False(t, c.Times < 1 && c.P < 0.05, "%s, %s: %.2f × %s, p=%.3f", name, w.Name, c.Times, best, c.P)
			product, n = product*c.Times, n+1
		}
		require.Greater(t, n, 20, name)
		assert.Greater(t, math.Pow(product, 1/float64(n)), 1.0, name)
	}
}

func TestMedian(t *testing.T) {
	assert.Equal(t, 2.0, median([]float64{3, 1, 2}))
	assert.Equal(t, 2.5, median([]float64{4, 1, 2, 3}))
}
