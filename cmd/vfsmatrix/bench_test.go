package main

import (
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"virtiofsd/harness/bench"
	"virtiofsd/harness/frontend"
	"virtiofsd/harness/impl"
)

func TestBenchComparesFiles(t *testing.T) {
	dir := t.TempDir()
	file := func(name string, us float64) string {
		r := bench.Report{Rounds: 7, Daemons: []string{"ours"}, Work: []bench.Workload{{Name: "getattr-1", Measure: bench.Latency, Unit: "ops", Depth: 1}}}
		for i := range 7 {
			r.Samples = append(r.Samples, bench.Sample{Workload: "getattr-1", Daemon: "ours", Round: i, Ops: 1, P50: us + float64(i)/10, CPU: 1})
		}
		name = filepath.Join(dir, name)
		require.NoError(t, writeJSON(name, r))
		return name
	}
	fast, slow := file("fast", 10), file("slow", 20)
	for _, tc := range []struct {
		from, old string
		want      int
	}{{slow, fast, exitNot}, {fast, slow, exitOK}, {fast, fast, exitOK}, {fast, filepath.Join(dir, "none"), exitHarness}} {
		assert.Equal(t, tc.want, run(t.Context(), []string{"bench", "--from", tc.from, "--compare", tc.old}))
	}
	require.NoError(t, writeJSON(filepath.Join(dir, "empty"), bench.Report{}))
	assert.Equal(t, exitHarness, run(t.Context(), []string{"bench", "--from", filepath.Join(dir, "empty")}))
	assert.Equal(t, exitUsage, run(t.Context(), []string{"bench", "--scale=10"}))
}

func TestBenchRefuses(t *testing.T) {
	refused(t, map[string]string{
		"bench --only zzz":              `--only "zzz" fits no workload; see vfsmatrix bench --help`,
		"bench --only state --syscalls": `--only "state" fits no workload; see vfsmatrix bench --help`,
		"bench --scale 100000":          "--scale takes its value behind =; say --scale=100000",
		"bench gest":                    `unknown command "gest" for "vfsmatrix bench"; see vfsmatrix bench --help`,
	})
}

func TestVariants(t *testing.T) {
	ours := frontend.Daemon{Name: "ours", Dialect: "ours", Exec: []string{"virtiofsd"}}
	f := benchFlags{variants: []string{"no-poll=ours:--poll-us=0 --cache=never"}}
	f.Daemons = []frontend.Daemon{ours}
	require.NoError(t, f.addVariants())
	require.Len(t, f.Daemons, 2)
	assert.Equal(t, "no-poll", f.Daemons[1].Name)
	assert.Equal(t, ours.Exec, f.Daemons[1].Exec)
	assert.Equal(t, []string{"--poll-us=0", "--cache=never"}, f.Extra["no-poll"])
	assert.Equal(t, "ours", f.Variants["no-poll"])
	for _, bad := range []string{"x", "x=ours", "x=ours:", "=ours:--a", "x=c:--a", "ours=ours:--a", "a/b=ours:--a"} {
		f := benchFlags{variants: []string{bad}}
		f.Daemons = []frontend.Daemon{ours}
		assert.ErrorAs(t, f.addVariants(), &usageError{}, bad)
	}
}

func TestBenchGuestRefuses(t *testing.T) {
	for _, args := range [][]string{{"--rounds=0"}, {"--time=0s"}, {"--only=("}, {"--only=^no-such$"}, {"untar"}} {
		assert.Equal(t, exitUsage, run(t.Context(), append([]string{"bench", "guest"}, args...)), "%v", args)
	}
	f := benchGuestFlags{variants: []string{"no-poll=ours:--poll-us=0"}}
	f.Impls = []*impl.Impl{{Name: "ours", Path: "virtiofsd"}}
	require.NoError(t, f.addVariants())
	require.Len(t, f.Impls, 2)
	assert.Equal(t, impl.Impl{Name: "no-poll", Path: "virtiofsd"}, *f.Impls[1])
	assert.Equal(t, "ours", f.Impls[0].Name)
	assert.Equal(t, []string{"--poll-us=0"}, f.Extra["no-poll"])
	assert.Equal(t, "ours", f.Variants["no-poll"])
}

func TestBenchReady(t *testing.T) {
	for _, args := range [][]string{{"--rounds=0"}, {"no-such-scenario"}, {"--first-reply", "a-root"}} {
		assert.Equal(t, exitUsage, run(t.Context(), append([]string{"bench", "ready"}, args...)), "%v", args)
	}
}
