package result_test

import (
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"virtiofsd/harness/result"
)

func id(n int) result.CellID {
	return result.CellID{Scenario: fmt.Sprintf("a-%02d", n), Impl: "ours", Kernel: "6.12"}
}

func record(n int, v result.Verdict) result.Record {
	r := result.Record{Claim: "start/ready", CellID: id(n), Verdict: v, Expected: "holds", Because: "b"}
	if v == result.Skip {
		r.Skip = result.SkipNeed
	}
	return r
}

// stored writes a run of three cells: a pass and a known failure, a skip, an error.
func stored(t *testing.T, end bool) string {
	t.Helper()
	dir := filepath.Join(t.TempDir(), "run")
	w, err := result.Create(dir, result.Run{ID: "r1", Scenarios: []string{"a-01"}})
	require.NoError(t, err)
	known := record(1, result.Fail)
	known.Known = "it does so"
	for n, records := range [][]result.Record{{record(0, result.Skip)}, {record(1, result.Pass), known}, {record(2, result.Error)}} {
		obs := []result.Observation{{Step: "info", Probe: "info", Where: result.Guest, Facts: json.RawMessage(`{"n":1}`), T: 1.5}, {Step: "exit", Probe: "exit", Where: result.Host, Error: "gone"}}
		require.NoError(t, w.Cell(result.Cell{CellID: id(n), Status: result.CellRan}, obs))
		require.NoError(t, w.Records(records))
	}
	if end {
		e, err := w.Close(2.5)
		require.NoError(t, err)
		assert.Equal(t, result.End{Records: 4, Cells: 3, Known: 1, Seconds: 2.5, Count: map[result.Verdict]int{result.Pass: 1, result.Fail: 1, result.Skip: 1, result.Error: 1}}, e)
	}
	return dir
}

func TestWhatWasWrittenIsReadBack(t *testing.T) {
	s, err := result.Read(os.DirFS(stored(t, true)))
	require.NoError(t, err)
	assert.Equal(t, "r1", s.ID)
	require.Len(t, s.Cells, 3)
	assert.Equal(t, []string{"a-00", "a-01", "a-02"}, []string{s.Cells[0].Scenario, s.Cells[1].Scenario, s.Cells[2].Scenario})
	require.Len(t, s.Records, 4)
	assert.Equal(t, "it does so", s.Records[2].Known)
	require.Len(t, s.Observations[id(1)], 2)
	assert.JSONEq(t, `{"n":1}`, string(s.Observations[id(1)][0].Facts))
	assert.Equal(t, "gone", s.Observations[id(1)][1].Error)
	require.NotNil(t, s.End)
	assert.Equal(t, 4, s.End.Records)
}

// TestARunWithoutAnEndIsBroken, and what there is of it is returned.
func TestARunWithoutAnEndIsBroken(t *testing.T) {
	s, err := result.Read(os.DirFS(stored(t, false)))
	require.ErrorIs(t, err, result.ErrBroken)
	assert.ErrorContains(t, err, "no end record")
	assert.Nil(t, s.End)
	assert.Len(t, s.Records, 4)
	assert.Len(t, s.Cells, 3)
}

// TestRunsThatDoNotFitTogether: what was cut, doubled, added or miscounted is broken.
func TestRunsThatDoNotFitTogether(t *testing.T) {
	edit := func(name string, f func(string) string) func(*testing.T, string) {
		return func(t *testing.T, dir string) {
			p := filepath.Join(dir, name)
			b, err := os.ReadFile(p)
			require.NoError(t, err)
			after := f(string(b))
			require.NotEqual(t, string(b), after, "the edit changes nothing")
			require.NoError(t, os.WriteFile(p, []byte(after), 0o644))
		}
	}
	lines := func(f func([]string) []string) func(*testing.T, string) {
		return edit(result.ResultsFile, func(s string) string {
			return strings.Join(f(strings.SplitAfter(strings.TrimSuffix(s, "\n"), "\n")), "") + "\n"
		})
	}
	replace := func(from, to string) func(*testing.T, string) {
		return edit(result.ResultsFile, func(s string) string { return strings.Replace(s, from, to, 1) })
	}
	for _, c := range []struct {
		name  string
		spoil func(*testing.T, string)
		says  string
	}{
		{"a record lost", lines(func(l []string) []string { return l[1:] }), "counts 4 records and 3 cells, there are 3 and 3"},
		{"a record doubled", lines(func(l []string) []string { return append([]string{l[0]}, l...) }), "there are 5"},
		{"lines behind the end", lines(func(l []string) []string { return append(l, "\n"+l[0]) }), "lines behind the end record"},
		{"two ends", lines(func(l []string) []string { return append(l, "\n"+l[len(l)-1]) }), "lines behind the end record"},
		{"cut in the middle of a line", edit(result.ResultsFile, func(s string) string { return s[:len(s)/2] }), "line"},
		{"empty", edit(result.ResultsFile, func(string) string { return "" }), "no end record"},
		{"counts more cells", replace(`"cells":3`, `"cells":4`), "4 cells"},
		{"a failure turned into a pass", replace(`"verdict":"fail"`, `"verdict":"pass"`), "counts 1 pass, there are 2"},
		{"another verdict", replace(`"verdict":"pass"`, `"verdict":"fine"`), `invalid verdict "fine"`},
		{"no verdict", replace(`"verdict":"pass",`, ``), `invalid verdict ""`},
		{"a skip without its word", replace(`"skip":"need-missing",`, ``), "a skip has a word"},
		{"a skip with a word of its own", replace(`"need-missing"`, `"felt like it"`), `unknown skip word "felt like it"`},
		{"a cell removed", func(t *testing.T, dir string) { require.NoError(t, os.RemoveAll(filepath.Join(dir, id(1).Dir()))) }, "there are 4 and 2"},
	} {
		t.Run(c.name, func(t *testing.T) {
			dir := stored(t, true)
			c.spoil(t, dir)
			s, err := result.Read(os.DirFS(dir))
			require.ErrorIs(t, err, result.ErrBroken)
			assert.ErrorContains(t, err, c.says)
			require.NotNil(t, s)
			assert.Nil(t, s.End, "a broken run has no end that somebody could rely on")
		})
	}
}

func TestRunsThatCannotBeRead(t *testing.T) {
	_, err := result.Read(os.DirFS(t.TempDir()))
	assert.ErrorIs(t, err, os.ErrNotExist)
	dir := stored(t, true)
	require.NoError(t, os.WriteFile(filepath.Join(dir, id(0).Dir(), result.CellFile), []byte("{"), 0o644))
	_, err = result.Read(os.DirFS(dir))
	assert.ErrorContains(t, err, "cells/a-00/ours/6.12/cell.json")
}

// TestNothingThatNobodyCanReadIsWritten: the writer refuses what the reader would.
func TestNothingThatNobodyCanReadIsWritten(t *testing.T) {
	for name, spoil := range map[string]func(*result.Record){
		"zero verdict":   func(r *result.Record) { r.Verdict = "" },
		"no claim":       func(r *result.Record) { r.Claim = "" },
		"no scenario":    func(r *result.Record) { r.Scenario = "" },
		"no impl":        func(r *result.Record) { r.Impl = "" },
		"no kernel":      func(r *result.Record) { r.Kernel = "" },
		"skip, no word":  func(r *result.Record) { r.Verdict = result.Skip },
		"word, no skip":  func(r *result.Record) { r.Skip = result.SkipNeed },
		"a word made up": func(r *result.Record) { r.Verdict, r.Skip = result.Skip, "tired" },
	} {
		r := record(1, result.Pass)
		require.NoError(t, result.CheckRecord(r))
		spoil(&r)
		assert.Error(t, result.CheckRecord(r), name)
		w, err := result.Create(filepath.Join(t.TempDir(), "run"), result.Run{})
		require.NoError(t, err)
		assert.Error(t, w.Records([]result.Record{r}), name)
	}
	assert.Error(t, result.CheckRecord(result.Record{}))
}

func TestARunIsNotWrittenOverAnother(t *testing.T) {
	_, err := result.Create(stored(t, true), result.Run{})
	assert.ErrorIs(t, err, os.ErrExist)
}

func TestWritingFromSeveralCellsAtOnce(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "run")
	w, err := result.Create(dir, result.Run{})
	require.NoError(t, err)
	var wg sync.WaitGroup
	for n := range 40 {
		wg.Go(func() {
			assert.NoError(t, w.Cell(result.Cell{CellID: id(n), Status: result.CellRan}, nil))
			assert.NoError(t, w.Records([]result.Record{record(n, result.Pass), record(n, result.Fail)}))
		})
	}
	wg.Wait()
	_, err = w.Close(0)
	require.NoError(t, err)
	s, err := result.Read(os.DirFS(dir))
	require.NoError(t, err)
	assert.Len(t, s.Records, 80)
}

func TestWhatSpoilsARun(t *testing.T) {
	known := record(1, result.Fail)
	known.Known = "x"
	errorKnown := record(1, result.Error)
	errorKnown.Known = "x"
	assert.False(t, record(1, result.Pass).Bad())
	assert.False(t, record(1, result.Skip).Bad())
	assert.False(t, known.Bad())
	assert.True(t, record(1, result.Fail).Bad())
	assert.True(t, record(1, result.Error).Bad())
	assert.True(t, errorKnown.Bad(), "an error of ours is nobody's known difference")
	assert.False(t, result.Verdict("").Valid())
}
