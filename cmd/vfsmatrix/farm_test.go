package main

import (
	"bytes"
	"os"
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"virtiofsd/harness/result"
)

// store writes a run of one scenario with the verdicts given, and returns its folder.
func store(t *testing.T, scenario string, sha string, verdicts map[string]result.Verdict) string {
	t.Helper()
	dir := filepath.Join(t.TempDir(), "run")
	id := result.CellID{Scenario: scenario, Impl: "ours", Kernel: "6.12"}
	w, err := result.Create(dir, result.Run{ID: scenario, Impls: []result.Identity{{Name: "ours", SHA256: sha}}, Scenarios: []string{scenario}})
	require.NoError(t, err)
	require.NoError(t, w.Cell(result.Cell{CellID: id, Status: result.CellRan}, nil))
	for _, c := range sortedKeys(verdicts) {
		r := result.Record{Claim: c, CellID: id, Verdict: verdicts[c], Expected: "holds", Because: "because"}
		if r.Verdict == result.Skip {
			r.Skip = result.SkipKernel
		}
		require.NoError(t, w.Records([]result.Record{r}))
	}
	_, err = w.Close(1)
	require.NoError(t, err)
	return dir
}

func read(t *testing.T, dir string) *result.Stored {
	t.Helper()
	s, err := result.Read(os.DirFS(dir))
	require.NoError(t, err)
	return s
}

func TestCompareFindsWhatGotWorse(t *testing.T) {
	old := read(t, store(t, "a-x", "1", map[string]result.Verdict{"a/same": "pass", "a/worse": "pass", "a/gone": "pass", "a/better": "fail", "a/skip": "pass"}))
	now := read(t, store(t, "a-x", "2", map[string]result.Verdict{"a/same": "pass", "a/worse": "fail", "a/better": "pass", "a/skip": "skip", "a/new": "pass"}))
	var b bytes.Buffer
	assert.Equal(t, 3, changes(&b, old, now), b.String())
	for _, c := range []string{"a/worse", "a/gone", "a/skip", "a/better"} {
		assert.Contains(t, b.String(), c)
	}
	assert.NotContains(t, b.String(), "a/same")
	b.Reset()
	assert.Zero(t, changes(&b, old, old))
	assert.Contains(t, b.String(), "nothing got worse")
}

func TestJoinShards(t *testing.T) {
	a := store(t, "a-x", "1", map[string]result.Verdict{"a/1": "pass"})
	b := store(t, "b-x", "1", map[string]result.Verdict{"a/1": "fail", "a/2": "pass"})
	into := filepath.Join(t.TempDir(), "all")
	require.NoError(t, join(into, []string{a, b}))
	s := read(t, into)
	assert.Len(t, s.Cells, 2)
	assert.Len(t, s.Records, 3)
	assert.Equal(t, []string{"a-x", "b-x"}, s.Scenarios)

	assert.ErrorContains(t, join(filepath.Join(t.TempDir(), "x"), []string{a, a}), "stands in")
	other := store(t, "c-x", "2", map[string]result.Verdict{"a/1": "pass"})
	assert.ErrorContains(t, join(filepath.Join(t.TempDir(), "y"), []string{a, other}), "different programs")
	require.NoError(t, os.Truncate(filepath.Join(b, result.ResultsFile), 0))
	assert.ErrorIs(t, join(filepath.Join(t.TempDir(), "z"), []string{a, b}), result.ErrBroken, "a run that was cut off is no shard")
}

func TestARunThatJudgedNothingIsNoSuccess(t *testing.T) {
	skipped := func(words ...result.SkipWord) (s result.Stored) {
		for _, w := range words {
			s.Records = append(s.Records, result.Record{CellID: result.CellID{Scenario: "a-x", Impl: "c", Kernel: "6.12"}, Verdict: result.Skip, Skip: w, Because: "no QEMU; remedy: install it"})
		}
		return s
	}
	s := skipped(result.SkipInexpressible, result.SkipNeed)
	assert.EqualError(t, summary(&s), "nothing could be judged: every cell was skipped, such as a-x/c/6.12: no QEMU; remedy: install it")
	s.Records = append(s.Records, result.Record{Verdict: result.Pass})
	assert.NoError(t, summary(&s), "something was")
	s = skipped(result.SkipInexpressible)
	assert.NoError(t, summary(&s), "a cell of a farm's own, of what no machine can run, is not red for ever")
}

func TestANewScenarioLeavesASoundTree(t *testing.T) {
	tree := t.TempDir()
	require.NoError(t, os.CopyFS(filepath.Join(tree, scenariosDir), os.DirFS("../../"+scenariosDir)))
	require.NoError(t, os.WriteFile(filepath.Join(tree, "go.mod"), nil, 0o644))
	for _, id := range []string{"zzz", "/tmp/zz", "x-case", "a-Root", "a-", ""} {
		status, _, errs := told(t, "new", "--tree", tree, id)
		assert.Equal(t, exitUsage, status, id)
		assert.Contains(t, errs, "the name must be", id)
	}
	for _, id := range []string{"a-copy", "c-copy"} {
		status, _, errs := told(t, "new", "--tree", tree, id)
		assert.Equal(t, exitOK, status, errs)
	}
	status, _, errs := told(t, "check", "--tree", tree)
	assert.Equal(t, exitOK, status, errs)
}

func TestShardReadsItsArgument(t *testing.T) {
	i, n, err := shard("2/5")
	require.NoError(t, err)
	assert.Equal(t, []int{2, 5}, []int{i, n})
	for _, bad := range []string{"0/5", "6/5", "1", "a/b", "1/0", "-1/2"} {
		_, _, err := shard(bad)
		assert.ErrorAs(t, err, &usageError{}, bad)
	}
}

func TestCellsInEachFormat(t *testing.T) {
	all := []result.CellID{{Scenario: "a-x", Impl: "ours", Kernel: "6.12"}, {Scenario: "b-x", Impl: "c", Kernel: "6.1"}}
	for format, want := range map[string]string{
		"text": "b-x c 6.1\n", "json": `"scenario": "b-x"`, "github": `"include": [`, "gitlab": "    - SCENARIO: \"b-x\"\n", "k8s": "completions: 2\n",
	} {
		var b bytes.Buffer
		require.NoError(t, writeCells(&b, format, all))
		assert.Contains(t, b.String(), want, format)
	}
	assert.ErrorAs(t, writeCells(&bytes.Buffer{}, "xml", all), &usageError{})
}

func TestFilterPicksCells(t *testing.T) {
	ours, c := result.CellID{Scenario: "c-user", Impl: "ours", Kernel: "6.12"}, result.CellID{Scenario: "a-root", Impl: "c", Kernel: "6.1"}
	for pattern, want := range map[string][2]bool{"": {true, true}, "c-*/ours/*": {true, false}, "*/*/6.1": {false, true}, "*/rust/*": {}} {
		fits, err := filter(pattern)
		require.NoError(t, err, pattern)
		assert.Equal(t, want, [2]bool{fits(ours), fits(c)}, pattern)
	}
	for _, bad := range []string{"c-*", "a/b", "a/b/c/d", "[/x/y"} {
		_, err := filter(bad)
		assert.ErrorAs(t, err, &usageError{}, bad)
	}
}
