package bench_test

import (
	"context"
	"encoding/json"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"virtiofsd/harness/bench"
	"virtiofsd/harness/frontend"
	"virtiofsd/internal/testenv"
)

// daemon is ours, built of this tree.
var daemon frontend.Daemon

func TestMain(m *testing.M) { os.Exit(run(m)) }

func run(m *testing.M) int {
	dir, err := os.MkdirTemp("", "bench-bin")
	if err != nil {
		panic(err)
	}
	defer os.RemoveAll(dir)
	if err := testenv.Build(dir, "virtiofsd"); err != nil {
		panic(err)
	}
	daemon = frontend.Daemon{Name: "ours", Dialect: "ours", Exec: []string{filepath.Join(dir, "virtiofsd")}}
	return m.Run()
}

func c() frontend.Daemon {
	return frontend.Daemon{Name: "c", Dialect: "c", Exec: []string{testenv.QEMUVirtiofsd}}
}

// everyWorkload has a daemon run all workloads for a moment; each moves something.
func everyWorkload(t *testing.T, d frontend.Daemon) *bench.Report {
	t.Helper()
	dir := t.TempDir()
	r, err := bench.Run(t.Context(), bench.Options{Daemons: []frontend.Daemon{d}, Rounds: 1, Time: 20 * time.Millisecond, Dir: dir})
	require.NoError(t, err)
	require.Len(t, r.Samples, len(bench.Workloads()))
	var fs unix.Statfs_t
	require.NoError(t, unix.Statfs(dir, &fs))
	for i, s := range r.Samples {
		if s.Bad == "one queue" && r.Work[i].Queues > 1 && d.Dialect != "ours" {
			continue
		}
		if fs.Type == unix.TMPFS_MAGIC && strings.HasPrefix(s.Workload, "read-cold") {
			assert.Contains(t, s.Bad, "not cold", s.Workload)
			continue
		}
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
	return r
}

func TestWorkloadsRunOnThePeer(t *testing.T) {
	testenv.Need(t, "root", "c-daemon", "fuse")
	everyWorkload(t, c())
}

func TestWorkloadsRunOnOurs(t *testing.T) {
	testenv.Need(t, "root", "fuse")
	everyWorkload(t, daemon)
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

// quick are options that measure next to nothing.
func quick(t *testing.T, only string, d ...frontend.Daemon) bench.Options {
	return bench.Options{Daemons: d, Rounds: 1, Time: time.Millisecond, Dir: t.TempDir(), Only: regexp.MustCompile(only)}
}

func TestQueuesOfThePeer(t *testing.T) {
	testenv.Need(t, "root", "c-daemon")
	o := quick(t, "^getattr-2x16$", daemon, c())
	r, err := bench.Run(t.Context(), o)
	require.NoError(t, err)
	assert.NotEmpty(t, r.Of("getattr-2x16", "ours", bench.CPU))
	assert.Equal(t, "one queue", r.Failure("getattr-2x16", "c"))
	var out strings.Builder
	r.WriteTable(&out)
	assert.Contains(t, out.String(), "one queue")
	assert.NotContains(t, out.String(), "NaN")
}

func TestNothingIsColdOnTmpfs(t *testing.T) {
	testenv.Need(t, "root")
	dir := t.TempDir()
	require.NoError(t, unix.Mount("tmpfs", dir, "tmpfs", 0, ""))
	defer unix.Unmount(dir, unix.MNT_DETACH)
	o := quick(t, "^read-cold-4k$", daemon)
	o.Dir = dir
	r, err := bench.Run(t.Context(), o)
	require.NoError(t, err)
	assert.Contains(t, r.Failure("read-cold-4k", "ours"), "not cold")
}

func TestVariantsGetTheirOptions(t *testing.T) {
	testenv.Need(t, "root")
	no := daemon
	no.Name = "no-poll"
	o := quick(t, "^getattr-1$", daemon, no)
	o.Variants, o.Extra = map[string]string{"no-poll": "ours"}, map[string][]string{"no-poll": {"--poll-us=0"}}
	r, err := bench.Run(t.Context(), o)
	require.NoError(t, err)
	assert.Equal(t, "--poll-us=0", r.Options["no-poll"])
	assert.Len(t, r.Modes(), 2)

	o.Extra["no-poll"] = []string{"--poll-us=many"}
	_, err = bench.Run(t.Context(), o)
	assert.ErrorContains(t, err, "no-poll", "the option reaches the daemon")
}

func TestScale(t *testing.T) {
	testenv.Need(t, "root")
	r, err := bench.Scale(t.Context(), quick(t, "", daemon), 2000)
	require.NoError(t, err)
	for _, p := range r.Points {
		assert.Empty(t, p.Bad, "%s, %d", p.What, p.N)
	}
	rows := r.ScaleTable()
	assert.Len(t, rows, 1+5+4, "one size, and four numbers of queues")
	for _, row := range rows {
		assert.Len(t, row, 4)
	}
	assert.Equal(t, rows, new(bench.Report).With(r).ScaleTable(), "joins a report of something else")
}

func TestSystemCalls(t *testing.T) {
	testenv.Need(t, "root", "strace")
	r, err := bench.Syscalls(t.Context(), quick(t, "^(read-4k-1|untar)$", daemon))
	require.NoError(t, err)
	require.Len(t, r.Calls, 2)
	read, untar := r.Calls[0], r.Calls[1]
	assert.Empty(t, read.Bad)
	assert.InDelta(t, 1, read.Count["preadv2"], 0.01, "each READ is one read: %s", read.Text())
	assert.Equal(t, "file", untar.Per)
	assert.InDelta(t, 1, untar.Count["utimensat"], 0.01, untar.Text())
	var out strings.Builder
	r.WriteTable(&out)
	assert.Contains(t, out.String(), "preadv2 1.00")
}

func TestMemoryOfInodesIsGivenBack(t *testing.T) {
	testenv.Need(t, "root")
	r, err := bench.Run(t.Context(), quick(t, "^state$", daemon))
	require.NoError(t, err)
	require.Len(t, r.States, 1)
	s := r.States[0]
	require.Equal(t, 20000, s.Known)
	assert.Greater(t, s.PerInode, 100.)
	assert.Less(t, s.PerInode, 400.)
	assert.Less(t, s.Kept, s.PerInode/3, "after FORGET")
}

func TestCompete(t *testing.T) {
	testenv.Need(t, "root")
	o := quick(t, "^getattr-(1|32)$", daemon)
	o.Time = 50 * time.Millisecond
	r, err := bench.Compete(t.Context(), o)
	require.NoError(t, err)
	require.Len(t, r.Contests, 1)
	c := r.Contests[0]
	assert.Empty(t, c.Bad)
	assert.Positive(t, c.Rate)
	assert.Greater(t, c.Left, 0.05)
	assert.Less(t, c.Left, 1.2)
	joined := &bench.Report{Daemons: []string{"another"}}
	assert.Len(t, joined.With(r).ContestTable(), 2, "who was not measured has no row")
}

// Processors are kept awake by a file that is open, and only so long.
func TestProcessorsAreKeptAwakeMeanwhile(t *testing.T) {
	const file = "/dev/cpu_dma_latency"
	open := func() (n int) {
		fds, err := os.ReadDir("/proc/self/fd")
		require.NoError(t, err)
		for _, fd := range fds {
			if to, _ := os.Readlink("/proc/self/fd/" + fd.Name()); to == file {
				n++
			}
		}
		return n
	}
	how, release := bench.Machine.Keep()
	assert.Equal(t, "as the machine does", how)
	assert.Zero(t, open())
	release()
	how, release = bench.Awake.Keep()
	if f, err := os.OpenFile(file, os.O_WRONLY, 0); err == nil {
		f.Close()
	} else { // no privilege, or no such machine
		assert.Contains(t, how, file)
		return
	}
	assert.Equal(t, "awake", how)
	assert.Equal(t, 1, open())
	release()
	assert.Zero(t, open())
}

// TestFirstReplies: each number of queues is set up and answered, and a daemon that has one queue
// is said to.
func TestFirstReplies(t *testing.T) {
	testenv.Need(t, "root", "c-daemon")
	r, err := bench.FirstReplies(t.Context(), bench.Options{Daemons: []frontend.Daemon{daemon, c()}, Rounds: 1, Dir: t.TempDir()})
	require.NoError(t, err)
	require.Len(t, r.Replies, 10)
	for _, reply := range r.Replies {
		if reply.Daemon == "c" && reply.Queues > 1 {
			assert.Equal(t, "one queue", reply.Bad)
			continue
		}
		assert.Empty(t, reply.Bad, "%s with %d queues", reply.Daemon, reply.Queues)
		assert.Positive(t, reply.MS)
	}
	var both *bench.Report
	both = both.With(&bench.Report{Daemons: []string{"ours"}}).With(r)
	assert.Equal(t, r.Replies, both.Replies)
	assert.Equal(t, r.ReplyTable(), both.ReplyTable())
	assert.Len(t, r.ReplyTable(), 6)
}
